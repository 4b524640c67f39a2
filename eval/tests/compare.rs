//! `flamingo-eval compare`: what two runs come to, and what is told of items that only one has.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

fn eval(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flamingo-eval")).args(args).output().unwrap()
}

fn write(folder: &Path, name: &str, lines: &[Value]) -> PathBuf {
    std::fs::create_dir_all(folder).unwrap();
    let path = folder.join(name);
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

fn compared(a: &Path, b: &Path) -> Value {
    let output = eval(&["compare", "--json", a.to_str().unwrap(), b.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn differences_are_paired_and_lone_items_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let line = |id: usize, credit: f64| json!({ "id": id, "cluster": id / 2, "prediction": "x", "credit": { "exact": credit } });
    let a: Vec<Value> = (0..40).map(|id| line(id, f64::from(u8::from(id % 4 == 0)))).collect();
    // Right where the first is, and on eight more; wrong on item 0.
    let right = |id: usize| (4..44).step_by(4).any(|n| n == id) || id % 5 == 1;
    let b: Vec<Value> = (1..44).map(|id| line(id, f64::from(u8::from(right(id))))).collect();
    let a = write(folder.path(), "a.jsonl", &a);
    let b = write(folder.path(), "b.jsonl", &b);
    let found = compared(&a, &b);
    let task = &found["tasks"][0];
    assert_eq!(task["n"], 39);
    assert_eq!(task["only_in_a"], json!({ "n": 1, "first": ["0"] }));
    assert_eq!(task["only_in_b"]["n"], 4);
    let metric = &task["metrics"][0];
    assert!((metric["a"].as_f64().unwrap() - 9.0 / 39.0).abs() < 1e-12, "{metric}");
    // 1, 6, 11, 21, 26, 31 are new; 16 and 36 were right.
    assert_eq!(metric["flips"]["better"], 6);
    assert_eq!(metric["flips"]["worse"], 0);
    assert!((metric["flips"]["sign_test_p"].as_f64().unwrap() - 2.0 / 64.0).abs() < 1e-12);
    let difference = &metric["difference"];
    assert!((difference["value"].as_f64().unwrap() - 6.0 / 39.0).abs() < 1e-12);
    assert!(difference["low"].as_f64().unwrap() > 0.0 && metric["p"].as_f64().unwrap() < 0.05);
    assert_eq!(metric["most_better"].as_array().unwrap().len(), 5);

    let text = eval(&["compare", a.to_str().unwrap(), b.to_str().unwrap()]).stdout;
    let text = String::from_utf8(text).unwrap();
    for part in
        ["39 items", "warning: 1 items only in A: 0\n", "warning: 4 items only in B: 40, 41"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn corpus_scores_are_compared_by_what_they_are_made_of() {
    let folder = tempfile::tempdir().unwrap();
    let truth = json!({ "annotations": [
        { "image_id": 1, "caption": "a red ball rolls on grass" }, { "image_id": 2, "caption": "two stars" },
        { "image_id": 3, "caption": "the dog sleeps" },
    ] });
    let truth = write(folder.path(), "truth.json", &[truth]);
    let scored = |name: &str, captions: [&str; 3]| {
        let rows: Value = captions
            .iter()
            .enumerate()
            .map(|(i, caption)| json!({ "image_id": i + 1, "caption": caption }))
            .collect();
        let mine = write(folder.path(), "mine.json", &[rows]);
        let samples = folder.path().join(name);
        let files = [&truth, &mine, &samples].map(|path| path.to_str().unwrap().to_owned());
        let [truth, mine, out] = &files;
        let args =
            ["score", "--json", "--annotations", truth, "--predictions", mine, "--samples", out];
        let output = eval(&args);
        (samples, serde_json::from_slice::<Value>(&output.stdout).unwrap())
    };
    let (a, of_a) = scored("a.jsonl", ["a red ball", "two green stars", "a dog"]);
    let (b, of_b) = scored("b.jsonl", ["a red ball rolls", "two stars", "the dog sleeps here"]);
    let found = compared(&a, &b);
    let metrics = found["tasks"][0]["metrics"].as_array().unwrap();
    assert_eq!(metrics.len(), 6);
    for metric in metrics {
        let name = metric["metric"].as_str().unwrap();
        for (side, scores) in [("a", &of_a), ("b", &of_b)] {
            let expected = scores["scores"][name]["value"].as_f64().unwrap();
            let value = metric[side].as_f64().unwrap();
            assert!((value - expected).abs() < 1e-12, "{name} of {side}: {value}, not {expected}");
        }
    }
}

#[test]
fn folders_are_compared_file_by_file_and_what_is_no_sample_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let line = |credit: f64| json!({ "doc_id": 0, "key": "k", "credit": { "cider:coco": credit } });
    for (folder, credit) in [(&a, 1.0), (&b, 2.0)] {
        write(folder, "samples_caption_4shot.jsonl", &[line(credit)]);
    }
    write(&a, "samples_caption_0shot.jsonl", &[line(1.0)]);
    let found = compared(&a, &b);
    assert_eq!(found["tasks"][0]["task"], "caption_4shot");
    assert_eq!(found["files_only_in_a"], json!(["samples_caption_0shot.jsonl"]));

    let refused = |a: &Path, b: &Path, part: &str| {
        let output = eval(&["compare", a.to_str().unwrap(), b.to_str().unwrap()]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(part), "`{part}` is not in {text}");
    };
    let good = write(folder.path(), "good.jsonl", &[line(1.0)]);
    refused(&a, &good, "good.jsonl: it is no folder, but the other one is");
    let bare = write(folder.path(), "bare.jsonl", &[json!({ "key": "k" })]);
    refused(&good, &bare, "bare.jsonl: line 1: no `credit`");
    let twice = write(folder.path(), "twice.jsonl", &[line(1.0), line(1.0)]);
    refused(&good, &twice, "twice.jsonl: line 2: `k` is there twice");
    let other = write(
        folder.path(),
        "other.jsonl",
        &[json!({ "id": "z", "credit": { "cider:coco": 1.0 } })],
    );
    refused(&good, &other, "other.jsonl: it has no id that the other file has, too");
    let torn = folder.path().join("torn.jsonl");
    std::fs::write(&torn, "{\"id\": 1, \"cre").unwrap();
    refused(&good, &torn, "torn.jsonl: line 1: no sample");
}
