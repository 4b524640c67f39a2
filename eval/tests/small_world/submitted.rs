//! Files for servers, and what is said of files that a server would refuse, by the real binary.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::models::{error, samples};
use crate::world::World;

/// The task `label` with a server that takes STAR's form.
fn task(world: &World) -> PathBuf {
    let path = world.path("served.toml");
    let text = include_str!("../../src/tasks/label.toml");
    let own = text.replace(
        "name = \"label\"",
        "name = \"served\"\nsubmission = { form = \"star\", splits = [\"query\"] }",
    );
    assert_ne!(own, text);
    std::fs::write(&path, own).unwrap();
    path
}

fn eval(world: &World, action: &str, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
    command
        .arg(action)
        .arg("--task")
        .arg(task(world))
        .arg("--annotations")
        .arg(world.path("label"));
    command.args(more).output().unwrap()
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_run_writes_what_the_server_takes_and_so_does_submission_of_its_samples() {
    let world = World::new();
    let (out, run) = (world.path("out"), world.path("run"));
    let shots = ["--shots", "0,2", "--controls", "no-image", "--device", "cpu", "--model"];
    let more = [&shots[..], &[run.to_str().unwrap(), "--out", out.to_str().unwrap()]].concat();
    let output = eval(&world, "run", &more);
    assert!(output.status.success(), "{}", error(&output));
    let file = out.join("submission_served_2shot.json");
    let written = read(&file);
    let types = ["colour", "shape"].map(|kind| written[kind].as_array().unwrap().len());
    assert_eq!(types, [10, 10]);
    for sample in samples(&out, "served_2shot") {
        let scores = sample["log_likelihoods"].as_array().unwrap();
        let scores: Vec<f64> = scores.iter().map(|score| score.as_f64().unwrap()).collect();
        let best = (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap();
        let all = written.as_object().unwrap().values().flat_map(|list| list.as_array().unwrap());
        let answer = all.into_iter().find(|it| it["question_id"] == sample["key"]).unwrap();
        assert_eq!(answer["answer"], best);
    }
    assert!(out.join("submission_served_0shot.json").exists());
    assert!(!out.join("submission_served_2shot_no-image.json").exists());

    let again = world.path("again.json");
    let from = |predictions: &Path| {
        let paths = [predictions, &again].map(|path| path.to_str().unwrap().to_owned());
        eval(&world, "submission", &["--predictions", &paths[0], "--out", &paths[1]])
    };
    let output = from(&out.join("samples_served_2shot.jsonl"));
    assert!(output.status.success(), "{}", error(&output));
    assert_eq!(read(&again), written);
    assert!(from(&file).status.success());
    assert_eq!(read(&again), written, "what was written is read");

    // A part of the queries is no file for a server.
    std::fs::remove_file(&again).unwrap();
    let mut less = written.clone();
    less["shape"].as_array_mut().unwrap().truncate(7);
    std::fs::write(&file, less.to_string()).unwrap();
    let message = error(&from(&file));
    assert!(message.contains("3: no prediction of query-15, query-17, query-19"), "{message}");
    assert!(!again.exists());
}

#[test]
fn lint_lists_what_is_wrong_and_fails_on_errors_alone() {
    let world = World::new();
    let lint = |rows: &Value| {
        let path = world.path("mine.json");
        std::fs::write(&path, rows.to_string()).unwrap();
        let output = eval(&world, "lint", &["--predictions", path.to_str().unwrap()]);
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let row = |i: usize| json!({ "id": format!("query-{i}"), "answer": (i % 7).to_string() });
    let sound: Vec<Value> = (0..20).map(row).collect();
    assert_eq!(lint(&json!(sound)), (0, "20 predictions: nothing to complain about\n".to_owned()));
    let mut odd = sound.clone();
    odd[3]["answer"] = json!("Answer: mauve");
    let (code, text) = lint(&json!(odd));
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("warning: 1 answers that are none of the candidates: query-3"), "{text}");
    odd[4]["id"] = json!("query-5");
    let (code, text) = lint(&json!(odd));
    assert_eq!(code, 1);
    assert!(text.starts_with("error: 1: more than one prediction of query-5"), "{text}");
    assert!(text.contains("error: 1: no prediction of query-4\nwarning: "), "{text}");
}

#[test]
fn the_server_of_vqav2_gets_all_of_test2015_and_nothing_of_another_split() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("vqav2");
    flamingo_fixtures::benchmarks::write_one(&data, "vqav2", 0).unwrap();
    let questions = |set: &str| {
        let file = read(&data.join(format!("v2_OpenEnded_mscoco_{set}_questions.json")));
        let ids = file["questions"].as_array().unwrap().iter().map(|it| it["question_id"].clone());
        ids.collect::<Vec<Value>>()
    };
    let (mine, out) = (dir.path().join("mine.json"), dir.path().join("out"));
    let act = |action: &str, split: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
        command.args([action, "--task", "vqav2", "--annotations"]).arg(&data);
        command.args(["--query-split", split]).args(more).output().unwrap()
    };
    let run = |split: &str, set: &str| {
        let rows = questions(set).into_iter().map(|id| json!({ "question_id": id, "answer": "x" }));
        std::fs::write(&mine, rows.collect::<Value>().to_string()).unwrap();
        let model = format!("predictions:{}", mine.display());
        let folder = out.join(split);
        let more = ["--model", &model, "--out", folder.to_str().unwrap()];
        let output = act("run", split, &more);
        assert!(output.status.success(), "{output:?}");
        folder.join("submission_vqav2_0shot.json")
    };
    let all = questions("test2015");
    let part = questions("test-dev2015");
    assert!(part.len() < all.len());
    let answers = |asked: &[Value]| {
        let text = |id: &Value| if asked.contains(id) { "x" } else { "" };
        all.iter().map(|id| json!({ "question_id": id, "answer": text(id) })).collect::<Value>()
    };
    assert_eq!(read(&run("test", "test2015")), answers(&all));
    assert_eq!(read(&run("test-dev", "test-dev2015")), answers(&part));
    let (again, file) = (dir.path().join("again.json"), mine.to_str().unwrap());
    let more = ["--predictions", file, "--out", again.to_str().unwrap()];
    let output = act("submission", "test-dev", &more);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("2 answers, and 1 empty ones of what was not asked"), "{output:?}");
    assert_eq!(read(&again), answers(&part));

    // What the server would refuse is not announced.
    assert!(!run("val", "val2014").exists());
    let message = error(&act("submission", "val", &more));
    assert!(message.contains("split `val`: its server takes `test-dev`, `test`"), "{message}");
    // Nor a part without its whole, which is no reason not to score or ask.
    std::fs::remove_file(data.join("v2_OpenEnded_mscoco_test2015_questions.json")).unwrap();
    std::fs::remove_dir_all(&out).unwrap();
    assert!(!run("test-dev", "test-dev2015").exists());
    assert!(error(&act("submission", "test-dev", &more)).contains("test2015_questions.json"));
}
