//! All benchmarks that come with the program run, on made-up entries in their official layouts.

use std::path::Path;
use std::process::Command;

use flamingo_eval::task_file::TaskFile;
use serde_json::Value;

use crate::world::World;

/// Holds four dialogs of ten rounds before the one that is asked about.
const LONG_CONTEXT: usize = 4096;

#[test]
fn every_task_runs() {
    let world = World::with_context(LONG_CONTEXT);
    let (benchmarks, out) = (world.path("benchmarks"), world.path("scores"));
    flamingo_fixtures::benchmarks::write(&benchmarks, 0).unwrap();
    more_questions_of_one_type(&benchmarks.join("star/STAR_val.json"));
    let with_support = |name: &str| TaskFile::find(name).unwrap().support.is_some();
    let (few_shot, zero_shot): (Vec<&str>, Vec<&str>) =
        flamingo_fixtures::benchmarks::names().partition(|name| with_support(name));
    assert_eq!(zero_shot, ["rareact"]);
    for (names, shots) in [(&few_shot, "0,4"), (&zero_shot, "0")] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
        command.arg("run").arg("--model").arg(world.path("run")).args(["--device", "cpu"]);
        for name in names {
            command.args(["--task", name, "--annotations"]).arg(benchmarks.join(name));
        }
        let out = out.join(shots);
        let output = command.args(["--shots", shots, "--out"]).arg(&out).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let results = std::fs::read(out.join("results.json")).unwrap();
        let results: Value = serde_json::from_slice(&results).unwrap();
        if shots == "0,4" {
            for name in names {
                check_gain(&results["results"], name);
            }
        }
        for name in names {
            for n in shots.split(',') {
                let scores = results["results"][format!("{name}_{n}shot")].as_object().unwrap();
                let is_score = |key: &&String| {
                    key.ends_with(",none") && !key.contains("_stderr") && !key.contains("_ci95")
                };
                let keys: Vec<&String> = scores.keys().filter(is_score).collect();
                assert!(!keys.is_empty(), "{name} {n}: {scores:?}");
                for key in keys {
                    let value = scores[key].as_f64();
                    assert!(value.is_some_and(f64::is_finite), "{name} {n} {key}: {scores:?}");
                }
            }
        }
    }
}

/// The mean over the types of questions is then no mean over questions.
fn more_questions_of_one_type(star: &Path) {
    let mut questions: Vec<Value> = serde_json::from_slice(&std::fs::read(star).unwrap()).unwrap();
    for n in 0..4 {
        let mut question = questions[n].clone();
        question["question_id"] = format!("Interaction_T1_{}", 10 + n).into();
        questions.push(question);
    }
    std::fs::write(star, Value::from(questions).to_string()).unwrap();
}

/// What four shots gain is the difference of the scores that stand in the same file.
fn check_gain(results: &Value, name: &str) {
    let of = |n: usize| results[format!("{name}_{n}shot")].as_object().unwrap();
    let gain = of(4).iter().find_map(|(key, gain)| Some((key.strip_suffix("_gain,none")?, gain)));
    let (metric, gain) = gain.unwrap_or_else(|| panic!("no gain of {name}"));
    let score = |n| of(n)[&format!("{metric},none")].as_f64().unwrap();
    let difference = score(4) - score(0);
    let gain = gain.as_f64().unwrap();
    assert!((gain - difference).abs() < 1e-9, "{name}: {gain}, not {difference}");
}

/// Answers that were made elsewhere are scored where there are no pictures.
#[test]
fn predictions_need_no_media() {
    let world = World::new();
    let benchmark = world.path("coco");
    flamingo_fixtures::benchmarks::write_one(&benchmark, "coco", 0).unwrap();
    std::fs::remove_dir_all(benchmark.join("val2014")).unwrap();
    let predictions = world.path("captions.json");
    let rows: Vec<Value> = (0..3)
        .map(|id| serde_json::json!({ "image_id": id, "caption": "two red stars" }))
        .collect();
    std::fs::write(&predictions, Value::from(rows).to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
    command.args(["run", "--task", "coco", "--annotations"]).arg(&benchmark).arg("--model");
    command.arg(format!("predictions:{}", predictions.display()));
    let output = command.arg("--out").arg(world.path("scores")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    // Nor examples.
    let star = world.path("star");
    flamingo_fixtures::benchmarks::write_one(&star, "star", 0).unwrap();
    std::fs::remove_file(star.join("STAR_train.json")).unwrap();
    let questions: Value =
        serde_json::from_slice(&std::fs::read(star.join("STAR_val.json")).unwrap()).unwrap();
    let row = |it: &Value| serde_json::json!({ "question_id": it["question_id"], "answer": 0 });
    let rows: Value = questions.as_array().unwrap().iter().map(row).collect();
    std::fs::write(&predictions, rows.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
    command.args(["run", "--task", "star", "--annotations"]).arg(&star).arg("--model");
    command.arg(format!("predictions:{}", predictions.display()));
    let output = command.arg("--out").arg(world.path("chosen")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_was_left_out_is_counted_in_results() {
    let world = World::with_context(LONG_CONTEXT);
    let benchmark = world.path("coco");
    flamingo_fixtures::benchmarks::write_one(&benchmark, "coco", 0).unwrap();
    std::fs::remove_file(benchmark.join("val2014/COCO_val2014_000000000001.jpg")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
    command.args([
        "run",
        "--task",
        "coco",
        "--skip-missing-media",
        "--shots",
        "0",
        "--device",
        "cpu",
    ]);
    command.arg("--annotations").arg(&benchmark).arg("--model").arg(world.path("run"));
    let output = command.arg("--out").arg(world.path("scores")).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("1 of 3 query items"), "{told}");
    let results = std::fs::read(world.path("scores/results.json")).unwrap();
    let results: Value = serde_json::from_slice(&results).unwrap();
    let counts = &results["n-samples"]["coco_0shot"];
    assert_eq!(*counts, serde_json::json!({ "original": 3, "effective": 2 }));
}
