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
fn items_of_one_picture_are_drawn_together() {
    let folder = tempfile::tempdir().unwrap();
    let credit = |i: usize, side: usize| (i * (3 + 4 * side) % 11) as f64 / 10.0;
    // Copies of an item under its cluster tell nothing more than the item alone.
    let found = [1, 3].map(|n_copies| {
        let files = [0, 1].map(|side| {
            let lines = (0..40).flat_map(|i| (0..n_copies).map(move |copy| {
                json!({ "id": format!("{i:02}-{copy}"), "cluster": i, "credit": { "exact": credit(i, side) } })
            }));
            write(folder.path(), &format!("{n_copies}-{side}.jsonl"), &lines.collect::<Vec<_>>())
        });
        let metric = compared(&files[0], &files[1])["tasks"][0]["metrics"][0].clone();
        (metric["n"].clone(), ["low", "high", "stderr"].map(|key| metric["difference"][key].as_f64().unwrap()))
    });
    assert_eq!([&found[0].0, &found[1].0], [&json!(40), &json!(120)]);
    for (one, copies) in found[0].1.iter().zip(found[1].1) {
        assert!((one - copies).abs() < 1e-12, "{found:?}");
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

/// What `score --samples` writes is compared to the values that it gives, of every figure that both have.
fn check_corpus(folder: &Path, truth: &Path, mine: [&Path; 2], n_figures: usize) {
    let scored = ["a", "b"].into_iter().zip(mine).map(|(side, mine)| {
        let samples = folder.join(format!("{side}.jsonl"));
        let [truth, mine, out] = [truth, mine, &samples].map(|path| path.to_str().unwrap());
        let args =
            ["score", "--json", "--annotations", truth, "--predictions", mine, "--samples", out];
        let output = eval(&args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (samples, serde_json::from_slice::<Value>(&output.stdout).unwrap())
    });
    let scored: Vec<(PathBuf, Value)> = scored.collect();
    let found = compared(&scored[0].0, &scored[1].0);
    let metrics = found["tasks"][0]["metrics"].as_array().unwrap();
    assert_eq!(metrics.len(), n_figures, "{found}");
    for metric in metrics {
        let name = metric["metric"].as_str().unwrap();
        for (side, (_, scores)) in ["a", "b"].into_iter().zip(&scored) {
            let expected = scores["scores"][name]["value"].as_f64();
            let expected = expected.unwrap_or_else(|| panic!("no {name} in {scores}"));
            let value = metric[side].as_f64().unwrap();
            assert!((value - expected).abs() < 1e-12, "{name} of {side}: {value}, not {expected}");
        }
    }
    // Without what the scores are made of there is nothing to compare.
    let text = std::fs::read_to_string(&scored[0].0).unwrap();
    let bare: Vec<Value> = text
        .lines()
        .map(|line| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            line.as_object_mut().unwrap().remove("terms");
            line
        })
        .collect();
    if text.contains("\"terms\"") {
        let bare = write(folder, "bare.jsonl", &bare);
        let output = eval(&["compare", scored[1].0.to_str().unwrap(), bare.to_str().unwrap()]);
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(
            message.contains("bare.jsonl: `") && message.contains("has no `terms` of"),
            "{message}"
        );
    }
}

#[test]
fn means_over_types_and_ranks_are_compared_as_they_are_scored() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, value: &Value| write(folder.path(), name, std::slice::from_ref(value));
    let question = |id: &str| {
        let choices = json!([{ "choice_id": 0, "choice": "a" }, { "choice_id": 1, "choice": "b" }]);
        json!({ "question_id": id, "question": "q", "video_id": "V", "answer": "a", "choices": choices })
    };
    let ids = ["Interaction_T1_1", "Interaction_T1_2", "Interaction_T1_3", "Sequence_T1_1"];
    let truth = file("star.json", &ids.iter().map(|id| question(id)).collect());
    let answers = |choices: [usize; 4]| -> Value {
        let rows = ids.iter().zip(choices);
        let rows: Vec<Value> =
            rows.map(|(id, choice)| json!({ "question_id": id, "answer": choice })).collect();
        json!({ "Interaction": rows[..3], "Sequence": rows[3..] })
    };
    let mine = [file("1.json", &answers([0, 1, 1, 0])), file("2.json", &answers([0, 0, 0, 1]))];
    check_corpus(folder.path(), &truth, [&mine[0], &mine[1]], 1);

    let label = |id: usize| json!({ "id": id, "label": usize::from(id.is_multiple_of(3)) });
    let truth = write(folder.path(), "dev.jsonl", &(0..9).map(label).collect::<Vec<_>>());
    let proba = |odd: usize| -> Value {
        (0..9).map(|id| json!({ "id": id, "proba": (id * odd % 7) as f64 / 7.0 })).collect()
    };
    let mine = [file("3.json", &proba(3)), file("4.json", &proba(5))];
    check_corpus(folder.path(), &truth, [&mine[0], &mine[1]], 1);

    let round =
        |right: usize| json!({ "question": 0, "answer_options": [4, 5, 6], "gt_index": right });
    let dialogs = json!({ "version": "1.0", "data": { "questions": [], "dialogs":
        [{ "image_id": 9, "caption": "c", "dialog": [round(0), round(2)] }] } });
    let truth = file("visdial.json", &dialogs);
    let ranks = |ranks: [usize; 3]| -> Value {
        (1..3).map(|n| json!({ "image_id": 9, "round_id": n, "ranks": ranks })).collect()
    };
    let mine = [file("5.json", &ranks([1, 2, 3])), file("6.json", &ranks([3, 1, 2]))];
    check_corpus(folder.path(), &truth, [&mine[0], &mine[1]], 1);
}

#[test]
fn clips_that_do_not_show_their_action_count_in_a_comparison() {
    let folder = tempfile::tempdir().unwrap();
    let truth = folder.path().join("rareact.csv");
    let rows = "id,video_id,start,end,class_id,verb,noun,annotation\n\
        0,a,0,10,0,cut,phone,1\n1,b,0,10,0,cut,phone,0\n2,c,0,10,1,cut,shoe,1\n3,a,0,10,1,cut,shoe,2\n";
    std::fs::write(&truth, rows).unwrap();
    let scores = |name: &str, values: [f32; 8]| {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 2), }\n";
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let a = scores("a.npy", [0.1, 0.2, 0.5, 0.0, 0.4, 0.1, 0.3, 0.3]);
    let b = scores("b.npy", [0.9, 0.2, 0.5, 0.0, 0.4, 0.8, 0.3, 0.3]);
    check_corpus(folder.path(), &truth, [&a, &b], 1);
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
    for folder in [&a, &b] {
        // Readings without credit, a part of a round, and answers that only a server can judge.
        write(folder, "samples_caption_controls.jsonl", &[json!({ "key": "k", "right": 1.0 })]);
        write(folder, "samples_caption_2shot.part-0-of-2.jsonl", &[line(1.0)]);
        write(folder, "samples_star_0shot.jsonl", &[json!({ "key": "k", "prediction": "x" })]);
    }
    let found = compared(&a, &b);
    assert_eq!(found["tasks"].as_array().unwrap().len(), 1, "{found}");
    assert_eq!(found["tasks"][0]["task"], "caption_4shot");
    assert_eq!(found["not_scored"], json!(["star_0shot"]));
    let text = eval(&["compare", a.to_str().unwrap(), b.to_str().unwrap()]).stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("\nnot scored: star_0shot\n"), "{text}");
    assert!(!text.contains("controls") && !text.contains("part-0"), "{text}");
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
    refused(&good, &bare, "bare.jsonl: `k` has no `credit`");
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
