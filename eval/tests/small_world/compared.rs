//! `compare` of the folders that `run` writes: every round by its scores in results.json, and nothing else.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::run::{check_failure, results, succeed};
use crate::world::World;

fn run(out: &Path, model: &str, tasks: &[(&str, &Path)], more: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
    command.args(["run", "--device", "cpu", "--model", model]);
    for (task, annotations) in tasks {
        command.args(["--task", task, "--annotations"]).arg(annotations);
    }
    succeed(command.args(more).arg("--out").arg(out));
}

fn compare(a: &Path, b: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
    command.arg("compare").arg(a).arg(b);
    command
}

/// The rounds by name, each of whose metrics has the values of both results under this key.
fn compared(a: &Path, b: &Path, key: impl Fn(&str) -> String) -> Vec<String> {
    let output = succeed(compare(a, b).arg("--json"));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let tasks = found["tasks"].as_array().unwrap();
    let check = |task: &Value| {
        let name = task["task"].as_str().unwrap();
        let metric = &task["metrics"][0];
        for (side, out) in [("a", a), ("b", b)] {
            let expected = results(out)["results"][name][key(name)].as_f64();
            let expected = expected.unwrap_or_else(|| panic!("no {name}"));
            let value = metric[side].as_f64().unwrap();
            assert!((value - expected).abs() < 1e-9, "{name} {side}: {value}, not {expected}");
        }
        name.to_owned()
    };
    for key in ["not_scored", "files_only_in_a", "files_only_in_b"] {
        assert_eq!(found[key], serde_json::json!([]), "{found}");
    }
    tasks.iter().map(check).collect()
}

#[test]
fn two_runs_are_compared_round_by_round() {
    let world = World::new();
    let model = world.path("run");
    let [caption, label] = ["caption", "label"].map(|task| world.path(task));
    let outs = ["0", "1"].map(|seed| {
        let out = world.path(&format!("out-{seed}"));
        let tasks = [("caption", &*caption), ("label", &*label)];
        let more = ["--shots", "0,2", "--controls", "no-image", "--seed", seed];
        run(&out, model.to_str().unwrap(), &tasks, &more);
        out
    });
    let [a, b] = &outs;
    // Readings of the controls are no answers, though they stand beside them.
    assert!(a.join("samples_caption_controls.jsonl").exists());
    let key = |name: &str| if name.starts_with("label") { "acc,none" } else { "cider,none" };
    let names = compared(a, b, |name| key(name).to_owned());
    let expected = ["caption", "label"].into_iter().flat_map(|task| {
        ["0shot", "0shot_no-image", "2shot", "2shot_no-image"]
            .map(|round| format!("{task}_{round}"))
    });
    assert_eq!(names, expected.collect::<Vec<_>>());
    let zero = "--resamples: is 0, expected 1 or more";
    check_failure(compare(a, b).args(["--resamples", "0"]), 2, &[zero]);
}

#[test]
fn clips_are_compared_by_the_scores_in_their_samples() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("rareact");
    flamingo_fixtures::benchmarks::write_one(&data, "rareact", 0).unwrap();
    let outs = [7_u16, 5].map(|odd| {
        let header = "{'descr': '<f8', 'fortran_order': False, 'shape': (12, 6), }\n";
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend((0..72).flat_map(|i| f64::from(i * odd % 31).to_le_bytes()));
        let mine = dir.path().join(format!("mine-{odd}.npy"));
        std::fs::write(&mine, bytes).unwrap();
        let out = dir.path().join(format!("out-{odd}"));
        run(&out, &format!("predictions:{}", mine.display()), &[("rareact", &data)], &[]);
        out
    });
    let [a, b] = &outs;
    assert_eq!(compared(a, b, |_| "mwap,none".to_owned()), ["rareact_0shot"]);
    let samples = std::fs::read_to_string(a.join("samples_rareact_0shot.jsonl")).unwrap();
    let first: Value = serde_json::from_str(samples.lines().next().unwrap()).unwrap();
    assert_eq!(first["log_likelihoods"].as_array().unwrap().len(), 6);
    assert_eq!(first["terms"]["mwap"].as_array().unwrap().len(), 1, "scores stand there once");
}
