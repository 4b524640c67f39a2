//! The command line on a small world: what it writes, that it goes on where it was killed, and what
//! it says about bad input.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::world::{self, World};
use serde_json::Value;

/// What `Child::kill` sends.
const SIGKILL: i32 = 9;

fn command(world: &World, out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
    command.arg("run").arg("--model").arg(world.path("run")).args(["--device", "cpu"]);
    for task in ["caption", "label"] {
        command.args(["--task", task, "--annotations"]).arg(world.path(task));
    }
    command.args(["--shots", "0,1,3", "--out"]).arg(out);
    command
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub(crate) fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    output
}

pub(crate) fn results(out: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(out.join("results.json")).unwrap()).unwrap()
}

pub(crate) fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Names and bytes of all files.
pub(crate) fn files(out: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let bytes = std::fs::read(&path).unwrap();
        (path.strip_prefix(out).unwrap().to_path_buf(), bytes)
    };
    paths.into_iter().map(read).collect()
}

#[test]
fn one_command_scores_both_tasks_and_reports() {
    let world = World::new();
    let out = world.path("out");
    let output = succeed(&mut command(&world, &out));
    let table = text(&output.stdout);
    for expected in ["task", "0 shots", "CIDEr-D", "accuracy", "gain over 0 shots", "nats/token"] {
        assert!(table.contains(expected), "{expected} in {table}");
    }

    let file = results(&out);
    for name in ["caption_0shot", "caption_1shot", "caption_3shot"] {
        assert!(file["results"][name]["cider,none"].is_f64(), "{name}: {file:#}");
        assert!(file["results"][name]["cider_stderr,none"].is_f64(), "{name}");
        // 20 rows, every fifth with the image of the one before.
        assert_eq!(file["n-samples"][name]["effective"], 16, "{name}");
    }
    assert_eq!(file["n-shot"]["label_3shot"], 3);
    assert_eq!(file["configs"]["label_3shot"]["device"], "CPU (f32)");
    assert_eq!(file["group_subtasks"]["label"][2], "label_3shot");
    let controls = &file["results"]["caption_controls"];
    for name in ["nll_right", "nll_no_image", "nll_closed_gates", "words_right_minus_shuffled"] {
        assert!(controls[format!("{name},none")].is_f64(), "{name} in {controls:#}");
    }
    let report = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(report.contains("gain over 0 shots") && report.contains("loss, this model"));
    assert!(report.contains("data:image/bmp;base64,") && report.contains(", on CPU (f32)"));

    let label = lines(&out.join("samples_label_3shot.jsonl"));
    assert_eq!(label.len(), 20);
    for sample in &label {
        let number =
            |key: &Value| key.as_str().unwrap().rsplit('-').next().unwrap().parse::<u32>().unwrap();
        // Even rows ask for the colour, odd ones for the shape.
        let shots = sample["shots"].as_array().unwrap();
        assert_eq!(shots.len(), 3);
        assert!(shots.iter().all(|shot| number(shot) % 2 == number(&sample["key"]) % 2));
        assert_eq!(sample["log_likelihoods"].as_array().unwrap().len(), 7);
    }
    let caption = lines(&out.join("samples_caption_0shot.jsonl"));
    assert_eq!(caption[3]["target"].as_array().unwrap().len(), 2);
    assert_eq!(caption[3]["shots"].as_array().unwrap().len(), 2, "two shots without images");
}

#[test]
fn a_killed_evaluation_goes_on_to_the_same_bytes() {
    let world = World::new();
    let whole = world.path("whole");
    succeed(&mut command(&world, &whole));
    let expected = files(&whole);

    let killed = world.path("killed");
    let mut child = command(&world, &killed).spawn().unwrap();
    let started = killed.join("samples_caption_0shot.jsonl");
    while !started.exists() && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(SIGKILL), "it ended before it was killed");
    succeed(&mut command(&world, &killed));
    assert_eq!(files(&killed), expected);

    // A kill between two batches and one inside a line.
    let samples = killed.join("samples_label_1shot.jsonl");
    let all = std::fs::read(&samples).unwrap();
    for kept in [0, all.len() / 3, all.len() - 1] {
        std::fs::write(&samples, &all[..kept]).unwrap();
        std::fs::remove_file(killed.join("samples_caption_controls.jsonl")).unwrap();
        std::fs::remove_file(killed.join("results.json")).unwrap();
        succeed(&mut command(&world, &killed));
        assert_eq!(files(&killed), expected, "{kept} bytes kept");
    }
}

#[test]
fn neither_limit_nor_threads_change_an_answer() {
    let world = World::new();
    let (all, some) = (world.path("all"), world.path("some"));
    succeed(&mut command(&world, &all));
    succeed(command(&world, &some).args(["--limit", "5"]).env("RAYON_NUM_THREADS", "1"));
    for name in ["samples_caption_3shot.jsonl", "samples_label_1shot.jsonl"] {
        let (all, some) = (lines(&all.join(name)), lines(&some.join(name)));
        assert_eq!(some.len(), 5);
        for (some, all) in some.iter().zip(&all) {
            assert_eq!(some["shots"], all["shots"]);
            assert_eq!(some["prediction"], all["prediction"]);
        }
    }
    assert_eq!(results(&some)["n-samples"]["label_1shot"]["effective"], 5);
}

#[test]
fn shots_that_do_not_fit_are_reported_as_out_of_context() {
    let world = World::new();
    let out = world.path("out");
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
    command.arg("run").arg("--model").arg(world.path("run/checkpoints/step-2"));
    command.args(["--task", "caption", "--annotations"]).arg(world.path("caption"));
    let output = succeed(command.args(["--shots", "0,20", "--out"]).arg(&out));
    assert!(text(&output.stdout).contains("out of context ("), "{}", text(&output.stdout));
    let file = results(&out);
    assert!(file["results"]["caption_20shot"]["cider,none"].is_null());
    assert_eq!(file["results"]["caption_20shot"]["out_of_context"][1], world::CONTEXT);
    assert!(file["results"]["caption_0shot"]["cider,none"].is_f64());
}

/// The command must fail with this code and say all of these in one line on stderr.
pub(crate) fn check_failure(command: &mut Command, code: i32, expected: &[&str]) {
    let output = command.output().unwrap();
    let line = text(&output.stderr);
    let line = line.trim_end().lines().last().unwrap_or_default();
    assert_eq!(output.status.code(), Some(code), "{line}");
    for part in expected {
        assert!(line.contains(part), "`{part}` in `{line}`");
    }
    assert!(line.starts_with("error: "), "{line}");
}

pub(crate) fn single(model: &Path, annotations: &Path, out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
    command.arg("run").arg("--model").arg(model).args(["--task", "label", "--annotations"]);
    command.arg(annotations).args(["--shots", "1", "--device", "cpu", "--out"]).arg(out);
    command
}

#[test]
fn bad_input_is_named_in_one_line() {
    let world = World::new();
    let (run, label, out) = (world.path("run"), world.path("label"), world.path("out"));
    let nowhere = world.path("nowhere");
    check_failure(&mut single(&nowhere, &label, &out), 1, &["nowhere is no run folder"]);
    check_failure(&mut single(&label, &label, &out), 1, &["label is not a run", "`latest`"]);
    check_failure(&mut single(&run, &run, &out), 1, &["run/support"]);
    let many = &mut single(&run, &label, &out);
    check_failure(many.args(["--shots", "13"]), 2, &["query-0", "12 support", "13 shots"]);
    assert!(!out.exists(), "too many shots fail before the first round");

    let task = label.join("task.toml");
    std::fs::write(&task, "prompt = \"shows:\"\nanswers = []\n").unwrap();
    let parts = ["task.toml line 2", "unknown field `answers`", "candidates"];
    check_failure(&mut single(&run, &label, &out), 2, &parts);
    std::fs::write(&task, "candidates = [\"red\", \"green\"]\n").unwrap();
    check_failure(
        &mut single(&run, &label, &out),
        2,
        &["task.toml: `candidates`", "`circle`", "support-1"],
    );

    std::fs::write(&task, "candidates = [\"red\", \"green\", \"red\"]\n").unwrap();
    check_failure(&mut single(&run, &label, &out), 2, &["`candidates`", "`red` twice"]);

    std::fs::remove_file(&task).unwrap();
    std::fs::write(run.join("checkpoints/step-2/model.safetensors"), "torn").unwrap();
    check_failure(&mut single(&run, &label, &out), 1, &["model.safetensors"]);
}

#[test]
fn an_image_that_is_none_is_named_by_its_key() {
    let world = World::new();
    let broken = world::row("query-broken".into(), "red".into(), b"<html>404</html>", "colour");
    world::write_corpus(&world.path("label/query"), &[broken]);
    let command = &mut single(&world.path("run"), &world.path("label"), &world.path("out"));
    check_failure(command, 1, &["image of `query-broken`"]);
}

#[test]
fn a_model_that_diverged_is_never_scored() {
    let world = World::new();
    world.set_gates(f32::NAN);
    let out = world.path("out");
    check_failure(&mut command(&world, &out), 1, &["step-2", "logits", "not finite"]);
    let label = &mut single(&world.path("run"), &world.path("label"), &out);
    check_failure(label, 1, &["step-2", "log-likelihoods", "not finite"]);
    assert!(!out.join("results.json").exists());
}

#[test]
fn other_settings_are_never_mixed() {
    let world = World::new();
    let (run, label, out) = (world.path("run"), world.path("label"), world.path("out"));
    succeed(&mut single(&run, &label, &out));
    let before = files(&out);
    let changed = &mut single(&run, &label, &out);
    check_failure(changed.args(["--seed", "7"]), 2, &["`seed` 0, now 7", "settings_label.json"]);
    assert_eq!(files(&out), before);
}

#[test]
fn bad_usage_exits_with_two() {
    let world = World::new();
    let (run, label, out) = (world.path("run"), world.path("label"), world.path("out"));
    let code = |command: &mut Command| command.output().unwrap().status.code();
    assert_eq!(code(single(&run, &label, &out).args(["--task", "caption"])), Some(2));
    assert_eq!(code(single(&run, &label, &out).args(["--shots", "1,1"])), Some(2));
    assert_eq!(code(single(&run, &label, &out).args(["--limit", "0"])), Some(2));
    let device = |name: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
        command.args(["run", "--task", "label", "--device", name]);
        command.arg("--annotations").arg(&label).arg("--model").arg(&run).arg("--out").arg(&out);
        let output = command.output().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    let (code, stderr) = device("gpu");
    assert_eq!(code, Some(2));
    assert!(stderr.contains("`gpu` is none of cpu, cuda:0"), "{stderr}");
    if !cfg!(feature = "cuda") {
        let (code, stderr) = device("cuda:0");
        assert_eq!(code, Some(2));
        assert!(stderr.starts_with("error: this program was built without CUDA"), "{stderr}");
    }
    assert!(!out.exists());
    let tasks = succeed(Command::new(env!("CARGO_BIN_EXE_flamingo-eval")).arg("tasks"));
    assert!(text(&tasks.stdout).contains("\nlabel "), "{}", text(&tasks.stdout));
}
