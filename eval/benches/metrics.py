"""Time and memory of `flamingo-eval score` beside pycocoevalcap, in one run, on the official data.

    cargo build --release --package flamingo-eval
    python eval/benches/metrics.py [--data ../shared/data/parity] [--peer] [--meteor-data DIR]

With --peer also pycocoevalcap (pip install pycocoevalcap, and Java) scores the same files: BLEU, ROUGE-L and CIDEr. CPU seconds
are user and system time of a process with its children, memory is the largest resident set of one process. With --meteor-data, the
folder of METEOR 1.5, also METEOR is scored; the peer's Java for it lives until its memory is read.

The set of 40,504 images is made of the captions of the official one: each reference is one of them, or the first half of one and
the second half of the next, so that there are as many n-grams. The 214,354 questions are real ones, some 23 times each.
"""
import argparse
import json
import multiprocessing
import os
import pathlib
import statistics
import sys
import tempfile
import time

PEER = """
import json, sys
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
gts, res = {}, {}
for row in json.load(open(sys.argv[1]))["annotations"]:
    gts.setdefault(row["image_id"], []).append(row)
for row in json.load(open(sys.argv[2])):
    res[row["image_id"]] = [row]
gts = {i: gts[i] for i in res}
gts, res = PTBTokenizer().tokenize(gts), PTBTokenizer().tokenize(res)
if sys.argv[3:] == ["meteor"]:
    meteor = Meteor()
    print(meteor.compute_score(gts, res)[0])
    meteor.meteor_p.stdin.close()
    meteor.meteor_p.wait()
else:
    for scorer in (Bleu(4), Rouge(), Cider()):
        print(scorer.compute_score(gts, res)[0])
"""


def measured(command):
    """Wall and CPU seconds, and MiB, of a command that must succeed."""
    start = time.perf_counter()
    null = os.open(os.devnull, os.O_WRONLY)
    pid = os.posix_spawnp(command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, null, 1), (os.POSIX_SPAWN_DUP2, null, 2)])
    _, status, usage = os.wait4(pid, 0)
    os.close(null)
    if status:
        sys.exit(f"{' '.join(map(str, command))}: exit status {status}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def many_captions(data, folder):
    texts = [raw for raw, _ in json.loads((data / "coco-caption/ptb_pairs_val2014_all.json").read_text())]
    halves = lambda a, b: " ".join(a.split()[: len(a.split()) // 2] + b.split()[len(b.split()) // 2 :])
    texts += [halves(a, b) for a, b in zip(texts, texts[1:] + texts[:1])]
    n = 40_504
    rows = [dict(image_id=i % n, id=i, caption=text) for i, text in enumerate(texts)]
    said = [dict(image_id=i, caption=texts[(i * 7 + 3) % len(texts)]) for i in range(n)]
    truth, mine = folder / "captions40k.json", folder / "said40k.json"
    truth.write_text(json.dumps(dict(images=[], annotations=rows)))
    mine.write_text(json.dumps(said))
    return truth, mine


def many_questions(data, folder):
    rows = []
    for name in ("textvqa", "vizwiz"):
        rows += json.loads((data / f"vqa/{name}_val_annotations_vqa_format.json").read_text())["annotations"]
    rows = [dict(rows[i % len(rows)], question_id=i, image_id=i // 5) for i in range(214_354)]
    said = [dict(question_id=row["question_id"], answer=row["answers"][i % 10]["answer"]) for i, row in enumerate(rows)]
    truth, mine = folder / "questions.json", folder / "answers.json"
    truth.write_text(json.dumps(dict(annotations=rows)))
    mine.write_text(json.dumps(said))
    return truth, mine


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=pathlib.Path, default="../shared/data/parity")
    parser.add_argument("--program", default="target/release/flamingo-eval")
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--meteor-data")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        few = args.data / "coco-caption/human5k_gt.json", args.data / "coco-caption/human5k_results.json"
        # Made in other processes: a program starts with the resident set of the one that starts it.
        with multiprocessing.Pool(1) as pool:
            many = pool.apply(many_captions, (args.data, folder))
            questions = pool.apply(many_questions, (args.data, folder))
        tiny = folder / "tiny.json", folder / "tiny_said.json"
        tiny[0].write_text(json.dumps(dict(annotations=[dict(image_id=i, caption="a dog") for i in range(2)])))
        tiny[1].write_text(json.dumps([dict(image_id=i, caption="a dog") for i in range(2)]))
        score = lambda files, *more: [args.program, "score", "--annotations", str(files[0]), "--predictions", str(files[1]), *more]
        peer = lambda files, *more: [sys.executable, "-c", PEER, str(files[0]), str(files[1]), *more]
        none = ("--resamples", "0")
        cider = ("--metric", "cider:coco")
        jobs = [
            ("BLEU, ROUGE-L, CIDEr of 5,000 images", score(few, *none), peer(few)),
            ("the same with 1,000 resamples", score(few), None),
            ("BLEU, ROUGE-L, CIDEr of 40,504 images", score(many, *none), peer(many)),
            ("the same with 1,000 resamples", score(many), None),
            ("CIDEr of 5,000 images, 1,000 resamples, frozen", score(few, *cider), None),
            ("the same, recomputed", score(few, *cider, "--frequencies", "recomputed"), None),
            ("VQA accuracy of 214,354 questions", score(questions, *none), None),
            ("the same with 1,000 resamples", score(questions), None),
        ]
        if args.meteor_data:
            meteor = ("--metric", "meteor:coco", "--meteor-data", args.meteor_data)
            jobs += [
                ("METEOR of 5,000 images", score(few, *none, *meteor), peer(few, "meteor")),
                ("the same with 1,000 resamples", score(few, *meteor), None),
                ("METEOR of 40,504 images", score(many, *none, *meteor), peer(many, "meteor")),
            ]
        print("| job | wall s | CPU s | MiB | pycocoevalcap: wall s | CPU s | MiB |\n|---|---|---|---|---|---|---|")
        for job, ours, theirs in jobs:
            wall, cpu, memory = measured(ours)
            line = f"| {job} | {wall:.2f} | {cpu:.2f} | {memory:.0f} |"
            if theirs and args.peer:
                wall, cpu, memory = measured(theirs)
                line += f" {wall:.1f} | {cpu:.1f} | {memory:.0f} |"
            else:
                line += " | | |"
            print(line, flush=True)
        starts = [measured(score(tiny, *none)) for _ in range(20)]
        wall, cpu = statistics.median(s[0] for s in starts), statistics.median(s[1] for s in starts)
        print(f"| two captions (median of 20) | {wall:.4f} | {cpu:.4f} | {max(s[2] for s in starts):.0f} | | | |")


if __name__ == "__main__":
    main()
