//! What a user sees of a run: beside its losses, and changing none of them.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use flamingo_model::Tensors;

use crate::world::{CONTRASTIVE, FLAMINGO, Finished, LANGUAGE, World, latest, metrics};

/// Weights and moments of the last checkpoint.
fn weights(run: &Path) -> [Vec<u8>; 2] {
    ["model.safetensors", "optimizer.safetensors"]
        .map(|name| std::fs::read(latest(run).join(name)).unwrap())
}

#[test]
fn a_step_tells_its_samples_operations_and_memory() {
    let world = World::with_towers();
    let set = ["--set", "hardware.peak_tflops=0.5", "--stop-after", "3"];
    let finished = world.train("flamingo", FLAMINGO, "run", &set);
    finished.expect_success();
    assert!(finished.stderr().contains(" samples/s "), "{}", finished.stderr());
    let lines = metrics(&world.path("run"));
    let flops = lines.iter().map(|line| {
        let machine = &line["machine"];
        let [tflops, mfu] = ["tflops", "mfu"].map(|key| machine[key].as_f64().unwrap());
        assert!((mfu - tflops / 0.5).abs() <= 1e-12 * mfu, "{line}");
        let bytes = |key: &str| machine[key].as_u64();
        if cfg!(target_os = "linux") {
            assert!(bytes("memory_bytes") > Some(1 << 20), "{line}");
            assert!(bytes("memory_peak_bytes") >= bytes("memory_bytes"), "{line}");
        }
        assert_eq!(line["samples"], 2 + 3 + 1);
        tflops * line["seconds"].as_f64().unwrap() * 1e12
    });
    // 4 patches and a class for each frame.
    let model = Tensors::open(&latest(&world.path("run")).join("model.safetensors")).unwrap();
    let n = |part: &str| {
        let names = model.names().filter(|name| name.starts_with(part));
        names.map(|name| model.get(name).unwrap().len()).sum::<usize>()
    };
    let (latents, visual) = ((2 * 2 + 3 + 1) * 3, (2 * 2 + 3 + 2) * (4 + 1));
    for (flop, tokens) in flops.zip(computed_tokens(&world, "run", 3)) {
        // Positions are looked up, and so are tokens but in the head.
        let expected = 4 * (n("language.") - n("language.positions.")) * tokens
            + 6 * n("cross_attention.") * tokens
            + 6 * n("resampler.") * latents
            + 2 * n("vision.") * visual;
        assert!((flop / expected as f64 - 1.0).abs() < 1e-9, "{flop}, not {expected}");
    }
    let html = std::fs::read_to_string(world.path("run").join("report.html")).unwrap();
    for title in ["Samples per second", "(MFU)", "Images for 1,000 predicted tokens"] {
        assert!(html.contains(title), "no {title}");
    }
    // Another machine may go on.
    let more = ["--resume", "--set", "hardware.peak_tflops=2.0"];
    world.train("flamingo", FLAMINGO, "run", &more).expect_success();
    world.train("flamingo", FLAMINGO, "whole", &[]).expect_success();
    assert!(weights(&world.path("run")) == weights(&world.path("whole")), "other weights");
    assert!(metrics(&world.path("whole"))[0]["machine"].get("mfu").is_none());
}

/// Tokens of each of the first steps of a run up to the last prediction of their row, by the batches' files.
fn computed_tokens(world: &World, run: &str, steps: usize) -> Vec<usize> {
    let out = world.path(&format!("{run}-batches"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-train"));
    command.arg("batches").arg("--config").arg(world.path(run).join("config.toml"));
    command.arg("--root").arg(world.path("")).arg("--out").arg(&out);
    command.arg("--tokenizer").arg(world.path(run).join("tokenizer.json"));
    Finished(command.args(["--steps", &steps.to_string()]).output().unwrap()).expect_success();
    let of_step = |step: usize| {
        let file = Tensors::read(&out.join(format!("step-{step}.safetensors"))).unwrap();
        let of_dataset = |name: &str| {
            let length = file.shape(name).unwrap()[1];
            let masks = file.get(name).unwrap().to_vec();
            let last = |mask: &[f32]| mask.iter().rposition(|m| *m > 0.0).map_or(0, |l| l + 1);
            masks.chunks(length).map(last).sum::<usize>()
        };
        file.names().filter(|name| name.ends_with(".loss_mask")).map(of_dataset).sum()
    };
    (1..=steps).map(of_step).collect()
}

/// Operations of the first step of a run, by what it says of its speed.
fn flop_of_first_step(run: &Path) -> f64 {
    let line = &metrics(run)[0];
    let tflops = line["machine"]["tflops"].as_f64().unwrap();
    assert!((line["machine"]["mfu"].as_f64().unwrap() - 2.0 * tflops).abs() <= 1e-12 * tflops);
    tflops * line["seconds"].as_f64().unwrap() * 1e12
}

/// Values of the parameters of a run whose names `counts` chooses.
fn n_values(run: &Path, counts: impl Fn(&str) -> bool) -> f64 {
    let model = Tensors::open(&latest(run).join("model.safetensors")).unwrap();
    let names = model.names().filter(|name| counts(name));
    names.map(|name| model.get(name).unwrap().len()).sum::<usize>() as f64
}

#[test]
fn towers_tell_their_operations_too() {
    let world = World::new();
    let set = ["--set", "hardware.peak_tflops=0.5", "--stop-after", "1"];
    world.train("language", LANGUAGE, "language", &set).expect_success();
    world.train("contrastive", CONTRASTIVE, "vision", &set).expect_success();
    let near = |found: f64, expected: f64| {
        assert!((found / expected - 1.0).abs() < 1e-9, "{found}, not {expected}");
    };
    // The head is the table of the tokens.
    let language = world.path("language");
    let multiplied = n_values(&language, |name| name != "language.positions.weight");
    assert!(multiplied < n_values(&language, |_| true));
    let tokens = computed_tokens(&world, "language", 1)[0] as f64;
    near(flop_of_first_step(&language), 6.0 * multiplied * tokens);
    // Six pairs, whose ends predict nothing; 4 patches and a class for each image.
    let vision = world.path("vision");
    let of = |part: &str| {
        n_values(&vision, |name| {
            let is_table = ["tokens", "positions", "head"].iter().any(|t| name.contains(t));
            name.starts_with(part) && !is_table
        })
    };
    let expected = 5.0 * of("vision.") + of("vision_projection.") + of("text_projection.");
    let tokens = computed_tokens(&world, "vision", 1)[0] as f64 + 6.0;
    near(flop_of_first_step(&vision), 6.0 * (6.0 * expected + tokens * of("text.")));
}

#[test]
fn what_cross_attention_adds_is_measured_and_changes_nothing() {
    let world = World::with_towers();
    let run = world.path("run");
    let train = |more: &[&str]| world.train("flamingo", FLAMINGO, "run", more).expect_success();
    train(&["--set", "gates_every=3", "--stop-after", "5"]);
    train(&["--resume", "--set", "gates_every=2"]);
    world.train("flamingo", FLAMINGO, "whole", &[]).expect_success();
    assert!(weights(&run) == weights(&world.path("whole")), "other weights");
    let of_step = |line: &serde_json::Value| -> Vec<f64> {
        let names = ["0.attention", "0.feed_forward", "1.attention", "1.feed_forward"];
        let ratio = |name: &&str| line["observed"][format!("gate_ratio.{name}")].as_f64();
        names.iter().filter_map(ratio).collect()
    };
    let lines = metrics(&run);
    let looked: Vec<usize> = (1..=8).filter(|step| !of_step(&lines[step - 1]).is_empty()).collect();
    assert_eq!(looked, [1, 4, 7]);
    assert_eq!(of_step(&lines[0]), [0.0; 4], "gates are closed before the first update");
    let opened = of_step(&lines[6]);
    assert!(opened.len() == 4 && opened.iter().all(|ratio| *ratio > 0.0), "{opened:?}");
    let html = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert!(html.contains("Observed: gate_ratio"), "no chart");
}

/// What was observed in a step of the gradient of a dataset.
fn of_gradient(line: &serde_json::Value, dataset: &str, measure: &str) -> Option<f64> {
    line["observed"][format!("gradient.{dataset}.{measure}")].as_f64()
}

const DATASETS: [&str; 3] = ["pages", "pairs", "clips"];

#[test]
fn gradients_of_datasets_are_accounted_for_and_no_bit_of_the_run_changes() {
    let world = World::with_towers();
    let [run, whole] = ["run", "whole"].map(|name| world.path(name));
    world.train("flamingo", FLAMINGO, "plain", &[]).expect_success();
    let every = ["--set", "accounting_every=3"];
    let finished = world.train("flamingo", FLAMINGO, "whole", &every);
    finished.expect_success();
    let stderr = finished.stderr();
    assert!(stderr.contains("gradients of step 4: clips norm "), "{stderr}");
    for more in [&["--stop-after", "5"][..], &["--resume"]] {
        world.train("flamingo", FLAMINGO, "run", &[&every, more].concat()).expect_success();
    }
    assert!(weights(&world.path("plain")) == weights(&whole), "accounting changed the run");

    let lines = metrics(&whole);
    for (line, plain) in lines.iter().zip(metrics(&world.path("plain"))) {
        assert_eq!((&line["loss"], &line["grad_norm"]), (&plain["loss"], &plain["grad_norm"]));
    }
    let has_look = |line: &&serde_json::Value| of_gradient(line, "pages", "norm").is_some();
    let looks: Vec<_> = lines.iter().filter(has_look).collect();
    assert_eq!(
        looks.iter().map(|line| line["step"].as_u64()).collect::<Vec<_>>(),
        [Some(1), Some(4), Some(7)]
    );
    for line in looks {
        // The mixture is the sum of the datasets, so its square is that of their projections on it.
        let [norm, cosine] = ["norm", "cosine"];
        let along = DATASETS.map(|name| {
            let of = |measure| of_gradient(line, name, measure).unwrap();
            of(norm) * of(cosine)
        });
        let (sum, expected) = (along.iter().sum::<f64>(), line["grad_norm"].as_f64().unwrap());
        assert!((sum / expected - 1.0).abs() < 1e-5, "{sum}, not {expected}: {line}");
        // Clips come one by one.
        let known = DATASETS.map(|name| of_gradient(line, name, "signal").is_some());
        assert_eq!(known, [true, true, false], "{line}");
    }
    // Running means go on where the run was stopped.
    let last = metrics(&run).swap_remove(6);
    for (name, value) in lines[6]["observed"].as_object().unwrap() {
        assert_eq!(*value, last["observed"][name], "{name}");
    }
    let html = std::fs::read_to_string(whole.join("report.html")).unwrap();
    for part in ["Gradients of the datasets at step 7", "Observed: gradient, cosine"] {
        assert!(html.contains(part), "no {part}");
    }
}

#[test]
fn a_dataset_alone_has_the_norm_that_accounting_tells_and_advised_lambdas_make_norms_equal() {
    let world = World::new();
    let first = |run: &str, sets: &[String]| {
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        let args = [&["--stop-after", "1"], &sets[..]].concat();
        world.train("language", LANGUAGE, run, &args).expect_success();
        metrics(&world.path(run)).swap_remove(0)
    };
    let close = |found: f64, expected: f64| {
        assert!((found / expected - 1.0).abs() < 1e-4, "{found}, not {expected}");
    };
    let every = "accounting_every=1".to_owned();
    let line = first("accounted", std::slice::from_ref(&every));
    let of = |line: &serde_json::Value, measure: &str| {
        ["pages", "pairs"].map(|name| of_gradient(line, name, measure).unwrap())
    };
    for (dataset, norm) in ["pairs", "pages"].iter().zip(of(&line, "norm").into_iter().rev()) {
        let other = if *dataset == "pages" { "pairs" } else { "pages" };
        let alone = first(&format!("{dataset}-alone"), &[format!("data.{other}.weight=0.0")]);
        close(norm, alone["grad_norm"].as_f64().unwrap());
    }
    // Parts of a batch are its halves.
    let parts = first("parts", &[every.clone(), "data.pages.micro_batches=2".to_owned()]);
    for measure in ["norm", "signal", "noise"] {
        close(of(&parts, measure)[0], of(&line, measure)[0]);
    }
    let advised = of(&line, "lambda_advised");
    let sets = [("pages", advised[0]), ("pairs", advised[1])]
        .map(|(name, lambda)| format!("data.{name}.weight={lambda}"));
    let then = of(&first("advised", &[&sets[..], &[every]].concat()), "norm");
    close(then[0], then[1]);
    close(then.iter().sum(), of(&line, "norm").iter().sum());
}

/// A program in place of `flamingo-eval`: the score of a checkpoint is its step, plus a tenth of the shots, and
/// of its averages below 0.
const EVAL: &str = r#"#!/bin/sh
if [ "$1" = tasks ]; then echo "caption   what is there"; echo "label     which it is"; exit; fi
echo "$@" >> "$0.calls"
while [ $# -gt 0 ]; do
  case "$1" in --model) model="$2";; --out) out="$2";; --shots) shots="$2";; esac
  shift
done
[ -f "$model/model.safetensors" ] && [ -f "${model%/ema}/state.json" ] || { echo "no model" >&2; exit 1; }
if [ -f "$0.fails" ]; then echo "first" >&2; echo "error: out of cheese" >&2; exit 1; fi
mkdir "$out" && [ "$shots" = 0,4 ]
step="${model##*-}"
case "$step" in */ema) step="-${step%/ema}";; esac
printf '{"results": {"caption_0shot": {"cider,none": %s.0, "cider_stderr,none": 0.5}, "caption_4shot": {"cider,none": %s.4}}}' "$step" "$step" > "$out/results.json"
"#;

/// A config that evaluates, with a world's program.
fn evaluating(world: &World) -> String {
    use std::os::unix::fs::PermissionsExt;
    let path = world.path("eval");
    std::fs::write(&path, EVAL).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let config = FLAMINGO.replace("seed = 3", "seed = 3\neval_program = \"eval\"");
    let task = "task = \"caption\"\nannotations = \"tasks/caption\"\nevery = 3\nqueries = 5";
    format!("{config}\n[[few_shot]]\n{task}\n")
}

/// Step, shots and value of each score of a run.
fn scores(run: &Path) -> Vec<(u64, u64, f64)> {
    let text = std::fs::read_to_string(run.join("few_shot.jsonl")).unwrap();
    let line = |line: &str| {
        let score: serde_json::Value = serde_json::from_str(line).unwrap();
        let number = |key: &str| score[key].as_u64().unwrap();
        (number("step"), number("shots"), score["value"].as_f64().unwrap())
    };
    text.lines().map(line).collect()
}

#[test]
fn checkpoints_are_put_to_few_shot_tasks_while_the_run_goes_on() {
    let world = World::with_towers();
    let config = evaluating(&world);
    let finished = world.train("flamingo", &config, "run", &["--stop-after", "4"]);
    finished.expect_success();
    let told = "few-shot at step 3: caption, 0 shots, cider 3.0000, caption, 4 shots, cider 3.4000";
    assert!(finished.stderr().contains(told), "{}", finished.stderr());
    world.train("flamingo", &config, "run", &["--resume"]).expect_success();
    world.train("flamingo", FLAMINGO, "plain", &[]).expect_success();
    let run = world.path("run");
    assert!(weights(&run) == weights(&world.path("plain")), "evaluating changed the run");
    assert_eq!(scores(&run), [(3, 0, 3.0), (3, 4, 3.4), (6, 0, 6.0), (6, 4, 6.4)]);
    let calls = std::fs::read_to_string(world.path("eval.calls")).unwrap();
    assert_eq!(calls.lines().count(), 2, "{calls}");
    let annotations = world.path("tasks/caption");
    let asked = format!("--annotations {} --shots 0,4 --limit 5 --model ", annotations.display());
    assert!(calls.contains(&asked) && calls.contains("--device auto --precision bf16"), "{calls}");
    let html = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert!(html.contains("Observed: few_shot") && html.contains("caption.4"), "no chart");

    let averaged = config.replace("queries = 5", "queries = 5\nweights = \"ema\"");
    let set = ["--stop-after", "4", "--set", "ema.decay=0.5"];
    world.train("flamingo", &averaged, "averaged", &set).expect_success();
    let calls = std::fs::read_to_string(world.path("eval.calls")).unwrap();
    let model = world.path("averaged/checkpoints/step-3/ema");
    let asked = format!("--model {} --out", model.display());
    assert!(calls.lines().last().is_some_and(|call| call.contains(&asked)), "{calls}");
    assert!(model.join("config.json").is_file());
    assert_eq!(scores(&world.path("averaged")), [(3, 0, -3.0), (3, 4, -3.4)]);
}

#[test]
fn a_task_may_be_put_to_weights_and_to_their_averages_and_keeps_to_them() {
    let world = World::with_towers();
    let one = evaluating(&world);
    let task = &one[one.find("[[few_shot]]").unwrap()..];
    let both = format!("{one}\n{task}weights = \"ema\"\n");
    let train = |config: &str, more: &[&str]| {
        world.train("flamingo", config, "run", &[&["--set", "ema.decay=0.5"], more].concat())
    };
    train(&both, &["--stop-after", "4"]).expect_success();
    train(&both, &["--resume"]).expect_success();
    let run = world.path("run");
    let of = |step: u64| {
        let whole = step as f64;
        [(step, 0, whole), (step, 4, whole + 0.4), (step, 0, -whole), (step, 4, -whole - 0.4)]
    };
    assert_eq!(scores(&run), [of(3), of(6)].concat());
    let html = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert!(html.contains("caption.4") && html.contains("caption.ema.4"), "no two curves");
    for folder in ["step-6", "step-6-ema"] {
        assert!(run.join("few_shot/caption").join(folder).join("results.json").is_file());
    }

    // One may be left out and come back, and not be another one.
    let averaged = one.clone() + "weights = \"ema\"\n";
    train(&one, &["--resume"]).expect_success();
    let refused = |was: &str, now: &str, config: &str| {
        let finished = train(config, &["--resume"]);
        assert_eq!(finished.code(), Some(2), "{}", finished.stderr());
        let words = format!("`few_shot.caption.weights` is \"{now}\"");
        let stderr = finished.stderr();
        assert!(stderr.contains(&words) && stderr.contains(&format!("\"{was}\"")), "{stderr}");
    };
    refused("raw", "ema", &averaged);
    train(&both, &["--resume"]).expect_success();
    train(&averaged, &["--resume"]).expect_success();
    refused("ema", "raw", &one);
    let twice = format!("{averaged}\n{task}weights = \"ema\"\n");
    let finished = train(&twice, &["--resume"]);
    let words =
        "`few_shot.1.task` is caption, expected a task of its own, or other `weights` of it";
    assert!(finished.stderr().contains(words), "{}", finished.stderr());
}

#[test]
fn an_evaluation_that_fails_is_said_or_stops_the_run_and_is_made_up_for() {
    let world = World::with_towers();
    let config = evaluating(&world);
    std::fs::write(world.path("eval.fails"), "").unwrap();
    let finished = world.train("flamingo", &config, "run", &["--stop-after", "4"]);
    finished.expect_success();
    let words = "no few-shot score of `caption`, step 3: flamingo-eval ended with exit status: 1: \
                 error: out of cheese";
    assert!(finished.stderr().contains(words), "{}", finished.stderr());

    let strict = format!("{config}on_failure = \"stop\"\n");
    let finished = world.train("flamingo", &strict, "strict", &[]);
    assert_eq!(finished.code(), Some(1), "{}", finished.stderr());
    let error = format!("error: {words}; the checkpoint stands");
    assert!(finished.stderr().contains(&error), "{}", finished.stderr());
    assert!(latest(&world.path("strict")).ends_with("step-3"));
    std::fs::remove_file(world.path("eval.fails")).unwrap();
    world.train("flamingo", &strict, "strict", &["--resume"]).expect_success();
    let steps: Vec<u64> = scores(&world.path("strict")).iter().map(|score| score.0).collect();
    assert_eq!(steps, [3, 3, 6, 6]);
    world.train("flamingo", FLAMINGO, "plain", &[]).expect_success();
    assert!(weights(&world.path("strict")) == weights(&world.path("plain")), "other weights");
}

#[test]
fn an_evaluation_without_end_is_ended() {
    let world = World::with_towers();
    let config = evaluating(&world) + "seconds_max = 1\n";
    let endless = EVAL.replace("mkdir", "exec sleep 1000; mkdir");
    std::fs::write(world.path("eval"), endless).unwrap();
    let finished = world.train("flamingo", &config, "run", &["--stop-after", "3"]);
    finished.expect_success();
    assert!(finished.stderr().contains("it took longer than 1 s"), "{}", finished.stderr());
}

#[test]
fn an_evaluation_after_the_last_step_that_a_signal_cuts_off_is_made_up_for() {
    let world = World::with_towers();
    let config = evaluating(&world);
    let waits = EVAL.replace("mkdir", "[ \"${model##*-}\" = 3 ] || exec sleep 1000; mkdir");
    std::fs::write(world.path("eval"), waits).unwrap();
    let last = ["--set", "steps=6"];
    let mut command = world.command("flamingo", &config, "run", &last);
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    let calls = || std::fs::read_to_string(world.path("eval.calls")).unwrap_or_default();
    while calls().lines().count() < 2 {
        assert_eq!(child.try_wait().unwrap(), None, "it ended before its last evaluation");
        std::thread::sleep(Duration::from_millis(10));
    }
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-s", "INT", &id]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let steps = || scores(&world.path("run")).iter().map(|score| score.0).collect::<Vec<_>>();
    assert_eq!(steps(), [3, 3]);

    std::fs::write(world.path("eval"), EVAL).unwrap();
    let resumed = [&last[..], &["--resume"]].concat();
    world.train("flamingo", &config, "run", &resumed).expect_success();
    assert_eq!(steps(), [3, 3, 6, 6]);
    let html = std::fs::read_to_string(world.path("run/report.html")).unwrap();
    assert!(html.contains("Observed: few_shot"), "no chart");
    world.train("flamingo", &config, "run", &resumed).expect_success();
    assert_eq!(calls().lines().count(), 3, "{}", calls());
}

#[test]
fn few_shot_tasks_that_cannot_be_are_refused_before_the_first_step() {
    let world = World::with_towers();
    let good = evaluating(&world);
    let check = |from: &str, to: &str, words: &str| {
        assert!(good.contains(from), "{from}");
        let finished = world.train("flamingo", &good.replacen(from, to, 1), "refused", &[]);
        assert_eq!(finished.code(), Some(2), "{}", finished.stderr());
        assert!(finished.stderr().contains(words), "no `{words}` in {}", finished.stderr());
        assert!(!world.path("refused").exists());
    };
    check(
        "every = 3\nqueries",
        "every = 4\nqueries",
        "`few_shot.0.every` is 4, expected a multiple",
    );
    check("queries = 5", "queries = 0", "`few_shot.0.queries` is 0");
    let words = "`few_shot.0.weights` is \"ema\", expected \"raw\" without a section [ema]";
    check("queries = 5", "weights = \"ema\"", words);
    check("queries = 5", "shots = [4, 4]", "`few_shot.0.shots` is [4, 4], expected different");
    check(
        "task = \"caption\"",
        "task = \"chess\"",
        "`few_shot.0.task` is chess, expected one of caption, label",
    );
    let program = "eval_program = \"eval\"";
    check(program, "eval_program = \"no-eval\"", "expected a flamingo-eval that runs (");
    let twice = "[[few_shot]]\ntask = \"caption\"\nannotations = \"a\"\nevery = 3\n[[few_shot]]";
    check("[[few_shot]]", twice, "`few_shot.1.task` is caption, expected a task of its own");
    let language = LANGUAGE.to_owned() + &good[good.find("[[few_shot]]").unwrap()..];
    let finished = world.train("language", &language, "refused", &[]);
    assert!(finished.stderr().contains("`few_shot` is given, expected nothing"));
}
