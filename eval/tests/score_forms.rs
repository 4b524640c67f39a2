//! `flamingo-eval score` on each form of official files, with values worked out by hand, and on what is wrong.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

/// Scores two files, written under their names.
fn score(truth: (&str, &str), mine: (&str, &str), more: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let write = |(name, text): (&str, &str)| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
    command.args(["score", "--json", "--annotations"]).arg(write(truth));
    command.arg("--predictions").arg(write(mine)).args(more).output().unwrap()
}

/// The figures must be there, with these values.
fn check(truth: (&str, &str), mine: (&str, &str), more: &[&str], expected: &[(&str, f64)]) {
    let output = score(truth, mine, more);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (name, expected) in expected {
        let value = found["scores"][name]["value"].as_f64();
        let value = value.unwrap_or_else(|| panic!("no {name} in {found}"));
        assert!((value - expected).abs() < 1e-12, "{name}: {value}, not {expected}");
    }
}

/// The message must have all these parts, and the exit code be 1.
fn refused(truth: (&str, &str), mine: (&str, &str), more: &[&str], parts: &[&str]) {
    let output = score(truth, mine, more);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in {text}");
    }
}

#[test]
fn one_right_answer_is_matched_exactly_and_ranked() {
    let truth = json!([
        { "id": 1, "video_id": 7, "question": "q", "answer": "dog" },
        { "id": 2, "video_id": 7, "question": "q", "answer": "red ball" },
    ]);
    let truth = truth.to_string();
    let mine = json!([{ "id": 2, "answer": "ball" }, { "id": 1, "answer": " Dog " }]).to_string();
    check(("test_qa.json", &truth), ("mine.json", &mine), &[], &[("exact", 0.5)]);
    let ranked = json!([
        { "question_id": 1, "answers": ["cat", "dog"] },
        { "question_id": 2, "answers": ["red ball", "dog"] },
    ]);
    let more = ["--metric", "top-k", "--metric", "exact"];
    let expected = [("top-1", 0.5), ("top-5", 1.0), ("exact", 0.5)];
    check(("test_qa.json", &truth), ("mine.json", &ranked.to_string()), &more, &expected);
}

#[test]
fn vqa_counts_by_type_of_answer_where_questions_have_one() {
    let answers: Vec<Value> = (0..10).map(|i| json!({ "answer": "two", "answer_id": i })).collect();
    let question = |id: usize, kind: &str| json!({ "question_id": id, "image_id": 1, "answer_type": kind, "answers": answers });
    let truth = json!({ "annotations":
        [question(1, "number"), question(2, "number"), question(3, "yes/no")] });
    let mine = json!([{ "question_id": 1, "answer": "two" }, { "question_id": 2, "answer": "no" },
        { "question_id": 3, "answer": "two" }]);
    let expected =
        [("vqa:official", 2.0 / 3.0), ("vqa:official/number", 0.5), ("vqa:official/yes/no", 1.0)];
    check(("v.json", &truth.to_string()), ("m.json", &mine.to_string()), &[], &expected);
    let more = ["--resamples", "0", "--metric", "vqa:official", "--metric", "vqa:official"];
    let output = score(("v.json", &truth.to_string()), ("m.json", &mine.to_string()), &more);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["scores"]["vqa:official/number"], json!({ "value": 0.5 }));
}

#[test]
fn two_annotators_of_ivqa_make_an_answer_right() {
    let truth = "video_id,start,end,question,answer1,answer2,answer3,answer4,answer5,conf1\n\
        v1,0,5,q,pan,pan,pot,wok,lid,1\nv2,0,5,q,salt,salt,salt,salt,salt,1\n";
    let mine =
        json!([{ "video_id": "v1", "answer": "pot" }, { "video_id": "v2", "answer": "Salt" }]);
    check(("test.csv", truth), ("mine.json", &mine.to_string()), &[], &[("ivqa", 0.75)]);
    // A cell without an answer is no one who says nothing.
    let empty = truth.replace("wok,lid", ",");
    let silent = json!([{ "video_id": "v1", "answer": "" }, { "video_id": "v2", "answer": "" }]);
    check(("test.csv", &empty), ("mine.json", &silent.to_string()), &[], &[("ivqa", 0.0)]);
    let none = truth.replace("pan,pan,pot,wok,lid", " ,,,,");
    refused(("test.csv", &none), ("m.json", "[]"), &[], &["test.csv: row 1: no answer"]);
    // Of a film with several questions each has its own name.
    let twice = truth.replace("v2", "v1");
    let rows = json!([{ "id": "v1-0", "answer": "pot" }, { "id": "v1-1", "answer": "Salt" }]);
    check(("test.csv", &twice), ("mine.json", &rows.to_string()), &[], &[("ivqa", 0.75)]);
    let parts = &["predictions of what is not asked: v1", "no prediction of v1-0, v1-1"];
    let film = json!([{ "video_id": "v1", "answer": "pot" }]).to_string();
    refused(("test.csv", &twice), ("m.json", &film), &[], parts);
}

#[test]
fn choices_count_by_type() {
    let truth = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n\
        5,1,1,1,q,0,1,TN,a,b,c,d,e\n5,1,1,1,q,2,2,TP,a,b,c,d,e\n6,1,1,1,q,4,1,CW,a,b,c,d,e\n";
    let mine = json!({ "5_1": { "prediction": 0, "answer": 0 }, "5_2": { "prediction": 1 },
        "6_1": { "prediction": 4 } });
    let expected = [
        ("next-qa:mc", 2.0 / 3.0),
        ("next-qa:mc/T", 0.5),
        ("next-qa:mc/TN", 0.5),
        ("next-qa:mc/C", 1.0),
        ("next-qa:mc/CW", 1.0),
    ];
    check(("val.csv", truth), ("mine.json", &mine.to_string()), &[], &expected);
}

#[test]
fn types_of_star_count_alike_however_many_questions_they_have() {
    let question = |id: &str, answer: &str| {
        let choices: Vec<Value> = ["a", "b", "c", "d"]
            .iter()
            .enumerate()
            .map(|(i, choice)| json!({ "choice_id": i, "choice": choice }))
            .collect();
        json!({ "question_id": id, "question": "q", "video_id": "V", "answer": answer, "choices": choices })
    };
    let mut truth = vec![
        question("Interaction_T1_1", "a"),
        question("Interaction_T1_2", "b"),
        question("Sequence_T1_1", "c"),
    ];
    let mine = json!({
        "Interaction": [{ "question_id": "Interaction_T1_1", "answer": 0 },
            { "question_id": "Interaction_T1_2", "answer": 0 }],
        "Sequence": [{ "question_id": "Sequence_T1_1", "answer": 2 }],
    });
    let mine = mine.to_string();
    let expected = [("star:mc", 0.75), ("star:mc/Interaction", 0.5), ("star:mc/Sequence", 1.0)];
    check(("STAR_val.json", &json!(truth).to_string()), ("mine.json", &mine), &[], &expected);
    truth.push(question("Sequence_T1_2", "z"));
    let truth = json!(truth).to_string();
    refused(("STAR.json", &truth), ("m.json", &mine), &[], &["annotation 3", "`z` is none"]);
}

#[test]
fn labels_are_ranked_by_score_and_a_score_must_be_a_number() {
    let truth = "{\"id\": 1, \"img\": \"a\", \"label\": 1, \"text\": \"t\"}\n{\"id\": 2, \"label\": 0}\n\
        {\"id\": 3, \"label\": 0}\n";
    let table = "id,proba,label\n1,0.5,1\n2,0.5,0\n3,0.1,0\n";
    check(("dev.jsonl", truth), ("mine.csv", table), &[], &[("roc_auc", 0.75)]);
    let lines =
        "{\"id\": 1, \"score\": 0.5}\n{\"id\": 2, \"score\": 0.9}\n{\"id\": 3, \"score\": 0.1}\n";
    check(("dev.jsonl", truth), ("mine.jsonl", lines), &[], &[("roc_auc", 0.5)]);
    let alike = truth.replace("\"label\": 1", "\"label\": 0");
    refused(
        ("dev.jsonl", &alike),
        ("m.csv", table),
        &[],
        &["dev.jsonl: no roc_auc: all labels are alike"],
    );
    // One resample of three labels may have no area; the score itself stays.
    for seed in 0..8 {
        let more = ["--resamples", "1", "--seed", &seed.to_string()];
        check(("dev.jsonl", truth), ("mine.csv", table), &more, &[("roc_auc", 0.75)]);
    }
    let nan = table.replace("2,0.5", "2,nan");
    refused(("dev.jsonl", truth), ("m.csv", &nan), &[], &["m.csv: the score of 2 is not a number"]);
    let word = table.replace("2,0.5", "2,high");
    refused(("dev.jsonl", truth), ("m.csv", &word), &[], &["row 2: `proba` is `high`"]);
    let json = "[{\"id\": 1, \"score\": NaN}]";
    refused(("dev.jsonl", truth), ("m.json", json), &[], &["m.json: it is not JSON"]);
}

#[test]
fn rounds_are_ranked_and_those_without_relevance_are_told() {
    let truth =
        json!([{ "image_id": 9, "round_id": 2, "gt_relevance": [0.0, 1.0, 0.5] }]).to_string();
    let mine = json!([
        { "image_id": 9, "round_id": 1, "ranks": [1, 2, 3] },
        { "image_id": 9, "round_id": 2, "ranks": [1, 2, 3] },
    ]);
    let mine = mine.to_string();
    let ideal = 1.0 + 0.5 / 3.0_f64.log2();
    check(
        ("dense.json", &truth),
        ("mine.json", &mine),
        &[],
        &[("ndcg", (1.0 / 3.0_f64.log2()) / ideal)],
    );
    let output = score(("dense.json", &truth), ("mine.json", &mine), &[]);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["warnings"], json!(["1 rounds without relevance are not scored"]));
    let other = mine.replace("\"round_id\":1", "\"round_id\":0");
    refused(("d.json", &truth), ("m.json", &other), &[], &["not asked: 9-0"]);
    let other = json!([{ "image_id": 9, "round_id": 2, "ranks": [1, 2, 3] },
        { "image_id": 8, "round_id": 2, "ranks": [1, 2, 3] }]);
    refused(("d.json", &truth), ("m.json", &other.to_string()), &[], &["not asked: 8-2"]);
    let tied = mine.replace("[1,2,3]", "[1,1,2]");
    refused(
        ("d.json", &truth),
        ("m.json", &tied),
        &[],
        &["prediction 0: `ranks` are not the numbers 1 to 3"],
    );
    let few = mine.replace("[1,2,3]", "[1,2]");
    refused(("d.json", &truth), ("m.json", &few), &[], &["9-2 has 2 candidates, expected 3"]);

    let round =
        |right: usize| json!({ "question": 0, "answer_options": [4, 5, 6], "gt_index": right });
    let dialogs = json!({ "version": "1.0", "data": { "questions": [], "dialogs":
        [{ "image_id": 9, "caption": "c", "dialog": [round(0), round(2)] }] } });
    let expected = [
        ("recall@1", 0.5),
        ("recall@5", 1.0),
        ("mean-rank", 2.0),
        ("mean-reciprocal-rank", 2.0 / 3.0),
    ];
    check(("visdial.json", &dialogs.to_string()), ("mine.json", &mine), &[], &expected);
}

#[test]
fn clips_and_their_scores_are_rows_of_two_files() {
    let truth = "id,video_id,start,end,class_id,verb,noun,annotation\n\
        0,a,0,10,0,cut,phone,1\n1,b,0,10,0,cut,phone,0\n2,c,0,10,1,cut,shoe,1\n";
    let folder = tempfile::tempdir().unwrap();
    let array = |rows: usize, values: &[f32]| {
        let header =
            format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, 2), }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        bytes
    };
    let run = |bytes: &[u8]| {
        let (annotations, mine) = (folder.path().join("rareact.csv"), folder.path().join("m.npy"));
        std::fs::write(&annotations, truth).unwrap();
        std::fs::write(&mine, bytes).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
        let command = command.args(["score", "--json", "--annotations"]).arg(annotations);
        command.arg("--predictions").arg(mine).output().unwrap()
    };
    // `cut phone`: its positive stands behind both others; `cut shoe`: behind one of two.
    let output = run(&array(3, &[0.1, 0.2, 0.5, 0.0, 0.4, 0.1]));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let value = found["scores"]["mwap"]["value"].as_f64().unwrap();
    assert!((value - 5.0 / 12.0).abs() < 1e-12, "{found}");
    let error = |bytes: &[u8]| String::from_utf8(run(bytes).stderr).unwrap();
    let hidden = truth.replace("phone,1", "phone,0").replace("shoe,1", "shoe,2");
    let mine = folder.path().join("m.npy");
    let all = folder.path().join("hidden.csv");
    std::fs::write(&all, hidden).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
    let command = command.args(["score", "--annotations"]).arg(all).arg("--predictions").arg(mine);
    let message = String::from_utf8(command.output().unwrap().stderr).unwrap();
    assert!(message.contains("hidden.csv: no mwap: no clip shows its action"), "{message}");
    assert!(error(&array(2, &[0.0; 4])).contains("it has 2 rows, the annotations have 3"));
    let nan = array(3, &[0.1, 0.2, f32::NAN, 0.0, 0.4, 0.1]);
    assert!(error(&nan).contains("the score of clip 1 for class 0 is not a number"));
}

#[test]
fn answers_of_next_qa_need_the_database_and_have_second_references() {
    if !Path::new("/usr/share/wordnet/index.noun").exists()
        && std::env::var_os("FLAMINGO_WORDNET").is_none()
    {
        eprintln!("skipped: the package wordnet-base is not installed");
        return;
    }
    let truth = "video,frame_count,width,height,question,answer,qid,type\n\
        5,1,1,1,q,walking,1,CW\n5,1,1,1,q,two,2,DC\n6,1,1,1,q,dog,1,DO\n";
    let mine = json!({ "5": { "1": "walking", "2": "three" }, "6": { "1": "canine" } }).to_string();
    // NLTK: wup_similarity(dog.n.01, canine.n.01 (a tooth)) = 0.2.
    let expected = [
        ("wups0:raw", (1.0 + 0.2) / 3.0),
        ("wups9:raw", (1.0 + 0.02) / 3.0),
        ("wups0:raw/DC", 0.0),
    ];
    check(("val.csv", truth), ("mine.json", &mine), &[], &expected);
    let folder = tempfile::tempdir().unwrap();
    let second = folder.path().join("add.json");
    let more = ["--more-annotations", second.to_str().unwrap()];
    let all = json!({ "5": { "1": "x", "2": "three" }, "6": { "1": "cat" } });
    std::fs::write(&second, all.to_string()).unwrap();
    check(
        ("val.csv", truth),
        ("mine.json", &mine),
        &more,
        &[("wups0:raw/DC", 1.0), ("wups0:raw/CW", 1.0)],
    );
    std::fs::write(&second, json!({ "5": { "1": "x" } }).to_string()).unwrap();
    let parts = &["add.json: 2 listed questions without a second answer: 5_2, 6_1"];
    refused(("val.csv", truth), ("m.json", &mine), &more, parts);
    let more_of = json!({ "5": { "1": "x", "2": "y", "9": "z" }, "6": { "1": "cat" } });
    std::fs::write(&second, more_of.to_string()).unwrap();
    let parts = &["add.json: 1 questions that are not listed: 5_9"];
    refused(("val.csv", truth), ("m.json", &mine), &more, parts);
    let absent = ["--wordnet", "/nonexistent", "--metric", "wups0:raw"];
    refused(
        ("val.csv", truth),
        ("m.json", &mine),
        &absent,
        &["no WordNet 3.0 database at /nonexistent"],
    );
}

#[test]
fn what_comes_twice_or_is_of_another_form_is_told() {
    let truth = "video,frame_count,width,height,question,answer,qid,type\n5,1,1,1,q,a,1,CW\n";
    let mine = "{\"5\": {\"1\": \"a\"}, \"5\": {\"1\": \"b\"}}";
    let exact = ["--metric", "exact"];
    refused(("val.csv", truth), ("m.json", mine), &exact, &["more than one prediction of 5_1"]);
    refused(
        ("val.csv", truth),
        ("m.json", "{\"5\": {\"1\": 3}}"),
        &exact,
        &["5_1: the answer is 3"],
    );
    refused(
        ("v.csv", "a,b\n1,2\n"),
        ("m.json", "[]"),
        &[],
        &["its columns a, b are those of no known"],
    );
    refused(("v.json", "{\"annotations\": []}"), ("m.json", "[]"), &[], &["no list `annotations`"]);
    let silent = json!([{ "question_id": 1, "image_id": 1, "answers": [] }]).to_string();
    refused(
        ("v.json", &silent),
        ("m.json", "[]"),
        &[],
        &["annotation 0: it has no answer in `answers`"],
    );
    let mixed = json!([{ "image_id": 1, "caption": "a" }, { "id": 2, "label": 1 }]).to_string();
    refused(
        ("v.json", &mixed),
        ("m.json", "[]"),
        &[],
        &["annotation 1", "it has labels, others have captions"],
    );
}

#[test]
fn odd_captions_are_scored_and_told() {
    let truth = json!({ "annotations": [
        { "image_id": 1, "caption": "a red ball rolls" }, { "image_id": 2, "caption": "two green stars" },
        { "image_id": 3, "caption": "a dog" }, { "image_id": 4, "caption": "a cat" },
    ] });
    let long = "dog ".repeat(250_000);
    let mine = json!([
        { "image_id": 1, "caption": "a red\rball\u{2028}rolls" }, { "image_id": 2, "caption": "" },
        { "image_id": 3, "caption": long }, { "image_id": 4, "caption": "a cat\u{0}" },
    ]);
    let output = score(("t.json", &truth.to_string()), ("m.json", &mine.to_string()), &[]);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let warnings = found["warnings"].to_string();
    for part in [
        "1 prediction without a word (first: 2)",
        "1 prediction with a line end inside",
        "1 prediction with the character NUL (first: 4)",
        "1 prediction of more than 2000 bytes (first: 3)",
    ] {
        assert!(warnings.contains(part), "{part}: {warnings}");
    }
    // The first and the last are as their references, of the long one half the reference is there.
    let value = found["scores"]["rouge:coco"]["value"].as_f64().unwrap();
    assert!((0.5..0.5001).contains(&value), "{value}");
}
