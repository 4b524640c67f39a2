//! `score`: files of predictions against files of annotations, by the real binary.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

fn score(folder: &Path, annotations: &Value, predictions: &Value, more: &[&str]) -> Output {
    let write = |name: &str, value: &Value| {
        let path = folder.join(name);
        std::fs::write(&path, value.to_string()).unwrap();
        path
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
    command.arg("score").arg("--annotations").arg(write("truth.json", annotations));
    command.arg("--predictions").arg(write("mine.json", predictions)).args(more).output().unwrap()
}

fn captions() -> Value {
    let rows = [(7, "A red ball rolls ."), (7, "the ball"), (8, "two green stars"), (12, "a dog")];
    let row = |(id, caption): &(i64, &str)| json!({ "image_id": id, "caption": caption });
    json!({ "images": [], "annotations": rows.iter().map(row).collect::<Vec<_>>() })
}

fn predicted(rows: &[(i64, &str)]) -> Value {
    rows.iter().map(|(id, text)| json!({ "image_id": id, "caption": text })).collect()
}

#[test]
fn a_line_break_in_a_prediction_moves_no_other_one() {
    let folder = tempfile::tempdir().unwrap();
    let value = |first: &str| {
        let predictions = predicted(&[(7, first), (8, "two green stars"), (12, "a dog")]);
        let samples = folder.path().join("samples.jsonl");
        let more = ["--json", "--samples", samples.to_str().unwrap()];
        let output = score(folder.path(), &captions(), &predictions, &more);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = std::fs::read_to_string(samples).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let credits: Vec<Value> = lines.map(|line| line["credit"]["rouge:coco"].clone()).collect();
        (serde_json::from_slice::<Value>(&output.stdout).unwrap(), credits)
    };
    let (scores, credits) = value("a red ball rolls");
    assert_eq!(credits, [json!(1.0), json!(1.0), json!(1.0)]);
    for name in ["bleu-1:coco", "bleu-4:coco", "rouge:coco", "cider:coco"] {
        assert!(scores["scores"][name]["value"].is_f64(), "{name}: {scores}");
    }
    for broken in ["a red\rball rolls", "a red\u{2028}ball rolls", "a red\u{c}ball\nrolls", "\0"] {
        let (_, credits) = value(broken);
        assert_eq!(credits[1..], [json!(1.0), json!(1.0)], "{broken:?}");
    }
    assert_eq!(value("a red\u{2028}ball\nrolls").1[0], json!(1.0));
}

#[test]
fn ids_that_do_not_fit_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = |predictions: &Value, more: &[&str]| {
        let output = score(folder.path(), &captions(), predictions, more);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let text = error(&predicted(&[(7, "x"), (7, "y"), (9, "z")]), &[]);
    for part in
        ["mine.json: more than one prediction of 7", "not asked: 9", "no prediction of 8, 12"]
    {
        assert!(text.contains(part), "{text}");
    }
    assert!(error(&json!([]), &["--subset"]).contains("no predictions"));
    assert!(
        error(&json!([{ "image_id": 7 }]), &[])
            .contains("prediction 0: it has no text (`caption`)")
    );
    assert!(error(&json!({ "7": "x" }), &[]).contains("mine.json: no prediction of 8, 12"));
    assert!(error(&json!({ "7": 1 }), &[]).contains("7: the answer is 1, expected a text"));
    let all = predicted(&[(7, "x"), (8, "y"), (12, "z")]);
    let text = error(&all, &["--metric", "vqa:official"]);
    assert!(text.contains("it has captions, of which there is no vqa:official"), "{text}");
    let subset = score(folder.path(), &captions(), &predicted(&[(8, "x")]), &["--subset"]);
    assert!(subset.status.success());
    assert!(String::from_utf8(subset.stdout).unwrap().starts_with("1 predictions"));
}

#[test]
fn one_file_is_scored_under_several_rules() {
    let folder = tempfile::tempdir().unwrap();
    // Seven of ten say "Two", and VizWiz numbers no answers.
    let answers: Vec<Value> = (0..10)
        .map(|i| json!({ "answer": if i < 7 { "Two" } else { "2" }, "answer_confidence": "yes" }))
        .collect();
    let truth = json!([{ "image": "a.jpg", "answers": answers, "answerable": 1 }]);
    let mine = json!([{ "image": "a.jpg", "answer": "two." }]);
    let rules = ["vqa:official", "vqa:open-flamingo", "vqa:vizwiz-api"];
    let metrics = rules.iter().flat_map(|rule| ["--metric", rule]);
    let more: Vec<&str> = metrics.chain(["--json"]).collect();
    let alone = [&more[..], &["--resamples", "0"]].concat();
    let output = score(folder.path(), &truth, &mine, &alone);
    let scores: Value = serde_json::from_slice(&output.stdout).unwrap();
    let against = json!({ "metric": "vqa:official", "difference": { "value": 0.9 } });
    assert_eq!(scores["scores"]["vqa:vizwiz-api"]["against"], against);
    let table = |more: &[&str]| {
        let more: Vec<&str> = more.iter().copied().filter(|it| *it != "--json").collect();
        String::from_utf8(score(folder.path(), &truth, &mine, &more).stdout).unwrap()
    };
    let (drawn, bare) = (table(&more), table(&alone));
    assert!(
        drawn.contains("  0.900 [0.900, 0.900]   +0.900 [+0.900, +0.900] vqa:official\n"),
        "{drawn}"
    );
    assert!(bare.contains("  0.900  +0.900 vqa:official\n"), "{bare}");
    let output = score(folder.path(), &truth, &mine, &more);
    let scores: Value = serde_json::from_slice(&output.stdout).unwrap();
    let value = |rule: &str| scores["scores"][rule]["value"].as_f64().unwrap();
    // Equal answers without numbers are left out at once, all of them once they are normalised; of those as
    // they stand, three are "2".
    let expected = [0.0, 0.0, (7.0 + 3.0 * 2.0 / 3.0) / 10.0];
    for (rule, expected) in rules.iter().zip(expected) {
        assert!(
            (value(rule) - expected).abs() < 1e-12,
            "{rule}: {} against {expected}",
            value(rule)
        );
    }
}
