//! A step that is made again is the step that was made.

use std::path::Path;
use std::process::Command;

use flamingo_model::Tensors;

use crate::plan::files;
use crate::world::{FLAMINGO, Finished, LANGUAGE, STAGES, World, metrics, pair};

fn replay(run: &Path, step: u64, more: &[&str]) -> Finished {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-train"));
    command.arg("replay").arg("--run").arg(run).args(["--step", &step.to_string()]).args(more);
    Finished(command.output().unwrap())
}

/// Makes a step again, which must come out as it was, from this checkpoint.
fn check(run: &Path, step: u64, from: &str) {
    let finished = replay(run, step, &[]);
    let text = finished.stdout();
    assert_eq!(finished.code(), Some(0), "step {step}: {text}{}", finished.stderr());
    assert!(text.lines().next().unwrap().ends_with(from), "{text}");
    assert_eq!(text.matches("the same as in metrics.jsonl, bit by bit").count(), 2, "{text}");
}

const KEEP: [&str; 2] = ["--set", "keep_every=3"];

#[test]
fn a_step_amid_an_epoch_comes_out_bit_by_bit_in_every_stage() {
    let world = World::with_towers();
    for (stage, config) in STAGES {
        let name = format!("run-{stage}");
        let run = world.path(&name);
        world.train(stage, config, &name, &KEEP).expect_success();
        let before = files(&run);
        check(&run, 2, "from the start");
        check(&run, 7, "from the checkpoint of step 6");
        let out = world.path(&format!("{stage}-5"));
        let finished = replay(&run, 5, &["--out", out.to_str().unwrap()]);
        finished.expect_success();
        assert!(finished.stdout().contains("from the checkpoint of step 3"), "{stage}");
        assert!(files(&run) == before, "{stage}: the run folder changed");

        // The norm over all gradients is the one of the log.
        let gradients = Tensors::read(&out.join("gradients.safetensors")).unwrap();
        let values = gradients.names().flat_map(|name| gradients.get(name).unwrap().to_vec());
        let norm = values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt();
        let logged = metrics(&run)[4]["grad_norm"].as_f64().unwrap();
        assert!((norm / logged - 1.0).abs() < 1e-12, "{norm}, {logged}");
        let summary = std::fs::read(out.join("step.json")).unwrap();
        let summary: serde_json::Value = serde_json::from_slice(&summary).unwrap();
        let parameters = summary["parameters"].as_array().unwrap();
        let trained = parameters.iter().filter(|one| !one["gradient"].is_null());
        assert_eq!(trained.count(), gradients.names().count());
        assert_eq!(summary["losses"], metrics(&run)[4]["losses"]);

        // The rows are those that the command for batches writes.
        let mut batches = Command::new(env!("CARGO_BIN_EXE_flamingo-train"));
        batches.args(["batches", "--first", "5", "--root"]).arg(world.path(""));
        batches.arg("--config").arg(run.join("config.toml"));
        batches.arg("--tokenizer").arg(run.join("tokenizer.json"));
        let folder = world.path(&format!("{stage}-batches"));
        batches.arg("--out").arg(&folder);
        assert!(batches.output().unwrap().status.success());
        let expected = std::fs::read(folder.join("step-5.safetensors")).unwrap();
        assert!(std::fs::read(out.join("batch.safetensors")).unwrap() == expected, "{stage}");
    }
}

#[test]
fn steps_after_troubles_come_out_without_the_rows_that_were_left_out() {
    let world = World::new();
    let set = [
        ["--set", "guard.leap=1.000001"],
        ["--set", "guard.window=1"],
        ["--set", "guard.most=2"],
        ["--set", "steps=60"],
        ["--set", "checkpoint_every=5"],
        ["--set", "keep_every=5"],
    ]
    .concat();
    for action in ["skip", "roll_back"] {
        let action_set = format!("guard.action={action:?}");
        let args = [&set[..], &["--set", &action_set]].concat();
        // The third leap stops the run. It is made once more up to the step before.
        let finished = world.train("language", LANGUAGE, "probe", &args);
        std::fs::remove_dir_all(world.path("probe")).unwrap();
        let stderr = finished.stderr();
        let last = stderr.rsplit_once("error: step ").unwrap().1.split_once(':').unwrap().0;
        let last = (last.parse::<u64>().unwrap() - 1).to_string();
        let args = [&args[..], &["--stop-after", &last]].concat();
        world.train("language", LANGUAGE, action, &args).expect_success();
        let run = world.path(action);
        let lines = metrics(&run);
        let skipped = lines.iter().filter(|line| line.get("skipped").is_some()).count();
        assert_eq!(skipped, if action == "skip" { 2 } else { 0 });
        for line in lines {
            let step = line["step"].as_u64().unwrap();
            let finished = replay(&run, step, &[]);
            assert_eq!(finished.code(), Some(0), "step {step}: {}", finished.stdout());
        }
    }
}

#[test]
fn steps_come_out_as_they_were_made_after_the_run_went_on_with_other_batches_or_rows() {
    let world = World::new();
    let change = [
        ["--resume", "--set", "data.pages.batch=4"],
        ["--set", "data.pages.micro_batches=2", "--set"],
        ["data.pairs.micro_batches=2", "--set", "data.pairs.skip_rows=[1, 4]"],
    ]
    .concat();
    let back = ["--resume", "--set", "data.pages.skip_rows=[0]"];
    for mixture in ["accumulate", "merged"] {
        let mixture_set = format!("mixture={mixture:?}");
        let train = |more: &[&str]| {
            let set = ["--set", &mixture_set, "--set", "data.pairs.weight=1"];
            let args = [&KEEP[..], &set, more].concat();
            world.train("language", LANGUAGE, mixture, &args).expect_success();
        };
        train(&["--stop-after", "2"]);
        train(&[&change[..], &["--stop-after", "6"]].concat());
        train(&back);
        let run = world.path(mixture);
        // The config of a run that is done is written once more; no step was made by it.
        train(&change);
        for (step, from) in
            [(1, "the start"), (3, "the start"), (5, "step 3"), (6, "step 3"), (8, "step 6")]
        {
            check(&run, step, from);
        }

        // A run that was killed after its change, before it made a checkpoint.
        train(&back);
        std::fs::write(run.join("latest"), "step-6\n").unwrap();
        std::fs::remove_dir_all(run.join("checkpoints/step-8")).unwrap();
        check(&run, 8, "step 6");
        check(&run, 4, "step 3");

        // Checkpoints of an earlier version do not know it: the config's are taken.
        let state = run.join("checkpoints/step-6/state.json");
        let text = std::fs::read_to_string(&state).unwrap();
        let mut old: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(old.as_object_mut().unwrap().remove("data_history").is_some());
        std::fs::write(&state, old.to_string()).unwrap();
        std::fs::remove_file(state.with_file_name("SHA256SUMS")).unwrap();
        check(&run, 8, "step 6");
        train(&back);
    }
}

#[test]
fn a_step_is_made_again_without_what_only_looked_at_the_run() {
    let world = World::with_towers();
    let held_out = "[validation]\nevery = 2\nbatches = 1\n[[validation.data]]\nname = \"held\"\n\
                    corpus = \"held\"\nbatch = 2\ntokens = 24\nimages = 1\n";
    world.write_corpus("held", &(0..2).map(pair).collect::<Vec<_>>());
    let config = format!("{FLAMINGO}\n{held_out}");
    world.train("flamingo", &config, "run", &KEEP).expect_success();
    let run = world.path("run");
    std::fs::remove_dir_all(world.path("held")).unwrap();
    // A program that is not there, as `flamingo-eval` may be where the run is looked at.
    let path = run.join("config.toml");
    let few_shot = "\n[[few_shot]]\ntask = \"caption\"\nannotations = \"a\"\nevery = 3\n";
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("eval_program = \"nowhere\"\n{text}{few_shot}")).unwrap();
    check(&run, 7, "from the checkpoint of step 6");
}

#[test]
fn another_number_in_the_log_is_told_of_and_steps_that_are_not_there_are_refused() {
    let world = World::new();
    let run = world.path("run");
    world.train("language", LANGUAGE, "run", &KEEP).expect_success();
    let log = run.join("metrics.jsonl");
    let text = std::fs::read_to_string(&log).unwrap();
    let norm = metrics(&run)[4]["grad_norm"].to_string();
    let changed = text.replacen(&norm, &format!("{norm}1"), 1);
    std::fs::write(&log, changed).unwrap();
    let finished = replay(&run, 5, &[]);
    assert_eq!(finished.code(), Some(1), "{}", finished.stdout());
    let text = finished.stdout();
    assert!(text.contains("NOT the same as in metrics.jsonl"), "{text}");
    assert_eq!(text.matches("bit by bit").count(), 1, "{text}");

    // Beside it lie what a crash left of it, and what another replay is writing.
    let (out, left) = (world.path("step-1.6"), world.path("step-1.6.part"));
    let of_another = world.path("step-1.part");
    for folder in [&left, &of_another] {
        std::fs::create_dir(folder).unwrap();
        std::fs::write(folder.join("more"), "").unwrap();
    }
    replay(&run, 8, &["--out", out.to_str().unwrap()]).expect_success();
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 3);
    assert!(of_another.join("more").exists() && !left.exists());

    let refused = replay(&run, 9, &[]);
    assert_eq!(refused.code(), Some(2));
    let words = "metrics.jsonl has no step 9; its last one is 8";
    assert!(refused.stderr().contains(words), "{}", refused.stderr());
    let refused = replay(&world.path("pages"), 1, &[]);
    assert_eq!(refused.code(), Some(2));
    assert!(refused.stderr().contains("is neither a run"), "{}", refused.stderr());
    let refused = replay(&run, 1, &["--out", run.to_str().unwrap()]);
    assert!(refused.stderr().contains("cannot write"), "{}", refused.stderr());
    // A run that was moved away from its corpora is told where they are.
    std::fs::remove_file(run.join("run.json")).unwrap();
    assert_eq!(replay(&run, 8, &[]).code(), Some(1));
    let root = world.path("");
    replay(&run, 8, &["--root", root.to_str().unwrap()]).expect_success();
}
