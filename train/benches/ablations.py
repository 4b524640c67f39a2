"""Trains rows of the paper's ablation tables at toy scale and puts our scores beside the paper's.

  ./demo.sh                  # makes corpora, tasks and the two towers
  python3 train/benches/ablations.py [--demo runs/demo] [--rows base,round-robin,...] [--seeds 0,1,2] [--steps 300] [--out FOLDER]

configs/ablations.toml says what a row changes in configs/flamingo.toml. Each row is trained once for each seed, all for as many
gradients, and scored on the demo's held-out scenes: captions with 4 shots (CIDEr-D) beside the paper's COCO, labels with 4 shots
(accuracy) beside its VQAv2, and, least noisy of all, the negative log-likelihood of the true captions under their images (nats a token)
beside its overall score. Runs that are there already go on, or are not done again, so a list of rows can grow. What
the programs say of a run stands beside it in RUN.log. The table has the mean
over seeds with lowest and highest, and on how many seeds the difference to `base` has the paper's sign.
"""
import argparse
import json
import statistics
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TASKS = ["caption", "label"]
# Name, entry and metric in results.json, the paper's column in ablations.toml and its name, and whether less is better.
FIGURES = [
    ("captions, CIDEr-D", "caption_4shot", "cider,none", 0, "COCO", False),
    ("labels, accuracy", "label_4shot", "acc,none", 2, "VQAv2", False),
    ("captions, nats a token", "caption_controls", "nll_right,none", 5, "overall", True),
]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=ROOT / "runs/demo")
    parser.add_argument("--programs", type=Path, default=ROOT / "target/release", help="folder of flamingo-train and flamingo-eval")
    parser.add_argument("--out", type=Path, help="folder of the runs [default: ablations, in the demo's]")
    parser.add_argument("--rows", help="names of rows [default: all]")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--queries", type=int, default=300)
    return parser.parse_args()


def run(log, *command):
    with log.open("a") as file:
        ended = subprocess.run([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=file)
    if ended.returncode != 0:
        raise SystemExit(f"{command[0]} {command[1]} ended with {ended.returncode}; what it said is in {log}")


def log_of(out):
    """The file with what is said of a run, beside its folder."""
    return out.with_name(out.name + ".log")


def train(options, row, seed, out):
    steps = options.steps * row.get("steps_times", 1)
    changes = row["set"] + [f"seed={seed}", f"steps={steps}", f"checkpoint_every={steps}", f"blindness_every={steps}"]
    resume = ["--resume"] if out.exists() else []
    run(log_of(out), options.programs / "flamingo-train", "flamingo", "--config", ROOT / "configs/flamingo.toml", "--root", options.demo,
        "--out", out, *resume, *(part for change in changes for part in ("--set", change)))


def scores(options, model):
    out = model.with_name(model.name + "-scores")
    tasks = [part for task in TASKS for part in ("--task", task, "--annotations", options.demo / "tasks" / task)]
    if not (out / "results.json").exists():
        run(log_of(model), options.programs / "flamingo-eval", "run", "--model", model, *tasks, "--shots", "4", "--out", out,
            "--limit", options.queries)
    results = json.loads((out / "results.json").read_text())["results"]
    return [results[entry][metric] for _, entry, metric, *_ in FIGURES]


def text(values, digits=2):
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def sign(ours, base, paper, paper_base, less_is_better):
    """On how many seeds a row is better than the base where the paper's is, or worse where it is worse."""
    same = sum((mine < its) == ((paper > paper_base) == less_is_better) and mine != its for mine, its in zip(ours, base))
    return f"{same} of {len(ours)}"


def main(options):
    rows = tomllib.loads((ROOT / "configs/ablations.toml").read_text())["row"]
    wanted = options.rows.split(",") if options.rows else [row["name"] for row in rows]
    unknown = set(wanted) - {row["name"] for row in rows}
    if unknown:
        raise SystemExit(f"configs/ablations.toml has no row {', '.join(sorted(unknown))}")
    seeds = [int(seed) for seed in options.seeds.split(",")]
    folder, base = options.out or options.demo / "ablations", None
    folder.mkdir(parents=True, exist_ok=True)
    print("| row | " + " | ".join(f"{name} | paper, {theirs} | sign" for name, _, _, _, theirs, _ in FIGURES) + " |")
    print("|---|" + "---|---|---|" * len(FIGURES))
    for row in (row for row in rows if row["name"] in wanted):
        of_seed = []
        for seed in seeds:
            out = folder / f"{row['name']}-{seed}"
            train(options, row, seed, out)
            of_seed.append(scores(options, out))
        ours = list(zip(*of_seed))
        if row["name"] == "base":
            base, paper_base = ours, row["paper"]
        cells = []
        for i, (*_, column, _, less) in enumerate(FIGURES):
            paper, compared = row["paper"][column], base is not None and row["name"] != "base"
            against = row.get("paper_base", paper_base) if compared else None
            verdict = sign(ours[i], base[i], paper, against[column], less) if compared else ""
            cells += [text(ours[i]), str(paper), verdict]
        print(f"| {row['name']} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(arguments())
