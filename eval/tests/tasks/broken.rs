//! Broken annotations are refused with the file and the entry that is wrong.

use std::path::{Path, PathBuf};

use flamingo_eval::benchmark::{Benchmark, SplitChoice};
use flamingo_eval::task_file::TaskFile;
use serde_json::{Value, json};

use crate::layouts::made_up;

/// A made-up benchmark, one file of which is spoilt.
struct Broken {
    dir: tempfile::TempDir,
    task: &'static str,
}

impl Broken {
    fn new(task: &'static str) -> Self {
        Self { dir: made_up(&[task]), task }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(self.task).join(file)
    }

    fn error(&self) -> String {
        let task = TaskFile::find(self.task).unwrap();
        let folder = self.path("");
        let opened = Benchmark::open(task, folder.to_str().unwrap(), &SplitChoice::default(), 0);
        opened.err().map_or_else(|| "no error".to_owned(), |error| error.to_string())
    }

    /// What is said when a text file is changed.
    fn check_text(&self, file: &str, change: impl Fn(&str) -> String, expected: &[&str]) {
        let path = self.path(file);
        let before = std::fs::read_to_string(&path).unwrap();
        let after = change(&before);
        assert_ne!(before, after, "{file} was not changed");
        std::fs::write(&path, after).unwrap();
        let error = self.error();
        std::fs::write(&path, before).unwrap();
        let name = Path::new(file).file_name().unwrap().to_str().unwrap();
        for part in expected {
            assert!(error.contains(part), "`{part}` in `{error}`");
        }
        // Of ids that are there twice the split is named.
        assert!(error.contains(name) || error.contains("(split `"), "`{name}` in `{error}`");
        assert_eq!(self.error(), "no error");
    }

    /// What is said when a JSON file is changed.
    fn check(&self, file: &str, change: impl Fn(&mut Value), expected: &[&str]) {
        let changed = |text: &str| {
            let mut value: Value = serde_json::from_str(text).unwrap();
            change(&mut value);
            value.to_string()
        };
        self.check_text(file, changed, expected);
    }
}

fn remove(entry: &mut Value, key: &str) {
    entry.as_object_mut().unwrap().remove(key).unwrap();
}

#[test]
fn vqa() {
    let broken = Broken::new("vqav2");
    let (annotations, questions) =
        ("v2_mscoco_val2014_annotations.json", "v2_OpenEnded_mscoco_val2014_questions.json");
    let at = |n: usize| format!("annotation {n} (question_id {})", n * 1000);
    let spoil = |change: fn(&mut Value), expected: &[&str]| {
        broken.check(annotations, |file| change(&mut file["annotations"]), expected);
    };
    spoil(|all| remove(&mut all[2], "answers"), &[&at(2), "has no `answers`"]);
    spoil(|all| all[1]["answers"] = json!([]), &[&at(1), "no answer"]);
    spoil(|all| all[1]["answers"][3] = json!({ "answer": 5 }), &[&at(1), "invalid type", "string"]);
    spoil(|all| all[1]["question_id"] = json!(7), &["annotation 1 (question_id 7)", "not listed"]);
    spoil(|all| all[1] = all[0].clone(), &["annotation 1 (question_id 0)", "has one already"]);
    spoil(|all| all[3]["image_id"] = json!(99), &[&at(3), "image 99", "of image 3"]);
    spoil(
        |all| *all = json!(all.as_array().unwrap()[1..]),
        &["1 questions of", "no annotation: 0"],
    );
    spoil(|all| *all = json!({}), &["expected a list"]);
    broken.check(annotations, |file| remove(file, "annotations"), &["no list `annotations`"]);
    broken.check_text(annotations, |text| text[..text.len() / 2].to_owned(), &["EOF"]);
    broken.check_text(annotations, |text| format!("{text}x"), &["trailing"]);
    broken.check(
        questions,
        |file| file["questions"][1] = file["questions"][0].clone(),
        &["question 1 (question_id 0)", "is there twice"],
    );
    std::fs::remove_file(broken.path(questions)).unwrap();
    assert!(broken.error().contains(&format!("cannot read {}", broken.path(questions).display())));
}

#[test]
fn captions() {
    let broken = Broken::new("coco");
    let spoil = |change: fn(&mut Value), expected: &[&str]| {
        broken.check("dataset_coco.json", |file| change(&mut file["images"]), expected);
    };
    spoil(|all| remove(&mut all[1], "sentences"), &["image 1 (cocoid 1)", "has no `sentences`"]);
    spoil(|all| all[1]["sentences"] = json!([]), &["image 1 (cocoid 1)", "has no sentence"]);
    spoil(|all| all[1]["cocoid"] = json!(0), &["two rows with key `0`", "coco"]);
    spoil(|all| all[1]["filepath"] = json!(".."), &["image 1", "not a place in the folder"]);
    let rename = |text: &str| text.replace("\"test\"", "\"tset\"");
    broken.check_text("dataset_coco.json", rename, &["no image of the split `test`"]);

    let vatex = Broken::new("vatex");
    let file = "vatex_public_test_english_v1.1.json";
    vatex.check(
        file,
        |all| all[2]["videoID"] = json!("x_1"),
        &["entry 2 (videoID x_1)", "YOUTUBE_START_END"],
    );
    vatex.check(file, |all| remove(&mut all[2], "enCap"), &["1 entries have no `enCap`", "yt_002"]);

    let cook = Broken::new("youcook2");
    let spoil = |change: fn(&mut Value), expected: &[&str]| {
        let film = |file: &mut Value| change(&mut file["database"]["cook-1"]["annotations"][0]);
        cook.check("youcookii_annotations_trainval.json", film, expected);
    };
    spoil(|it| it["segment"] = json!([5, 2]), &["segment 0 of `cook-1`", "from 5 to 2 seconds"]);
    spoil(|it| remove(it, "sentence"), &["missing field `sentence`"]);
    spoil(|it| it["id"] = json!(1), &["two rows with key `cook-1_1`"]);
}

#[test]
fn lists() {
    let vizwiz = Broken::new("vizwiz");
    vizwiz.check(
        "val.json",
        |all| remove(&mut all[2], "answers"),
        &["1 entries have no `answers`", "VizWiz_val_00000002.jpg"],
    );
    vizwiz.check(
        "val.json",
        |all| remove(&mut all[2], "question"),
        &["entry 2 (image VizWiz_val_00000002.jpg)", "has no `question`"],
    );
    vizwiz.check(
        "val.json",
        |all| all[1]["image"] = json!("../../passwd"),
        &["entry 1", "not a place"],
    );
    let textvqa = Broken::new("textvqa");
    let file = "TextVQA_0.5.1_val.json";
    textvqa.check(
        file,
        |all| all["data"][1]["answers"] = json!("red"),
        &["entry 1 (question_id 34603)", "sequence"],
    );
    let memes = Broken::new("hateful_memes");
    let relabel = |text: &str| text.replacen("\"label\":1", "\"label\":2", 1);
    memes.check_text(
        "test_seen.jsonl",
        relabel,
        &["line 2 (id 00001)", "label 2, expected 0 or 1"],
    );
    memes.check_text(
        "test_seen.jsonl",
        |text| text.replacen("\"label\":1,", "", 1),
        &["1 entries have no `label`", "00001"],
    );
    memes.check_text("test_seen.jsonl", |text| text.replacen('}', "", 1), &["line 1", "wrong"]);
}

#[test]
fn dialogs() {
    let broken = Broken::new("visdial");
    let spoil = |change: fn(&mut Value), expected: &[&str]| {
        let dialogs = |file: &mut Value| change(&mut file["data"]["dialogs"]);
        broken.check("visdial_1.0_val.json", dialogs, expected);
    };
    let at = "dialog 1 (image_id 1)";
    spoil(
        |all| all[1]["dialog"][1]["gt_index"] = json!(100),
        &[at, "`gt_index` 100 of 100 options in round 2"],
    );
    spoil(|all| remove(&mut all[1]["dialog"][1], "gt_index"), &[at, "no `gt_index` in round 2"]);
    spoil(|all| all[1]["dialog"][1]["answer_options"][4] = json!(999), &[at, "answer 999 of 120"]);
    spoil(|all| all[1]["dialog"][0]["question"] = json!(77), &[at, "question 77 of 10"]);
    spoil(|all| remove(&mut all[1]["dialog"][0], "answer"), &[at, "no `answer` before round 2"]);
    spoil(|all| all[1]["dialog"] = json!([]), &[at, "has 0 rounds and no round 2"]);
    spoil(
        |all| all[1]["image_id"] = json!(55),
        &["no dialog of 1 images with dense annotations: 1"],
    );
    let dense = "visdial_1.0_val_dense_annotations.json";
    let spoil = |change: fn(&mut Value), expected: &[&str]| broken.check(dense, change, expected);
    spoil(
        |all| all[2]["round_id"] = json!(0),
        &["dense annotation 2 (image_id 2)", "`round_id` 0"],
    );
    spoil(
        |all| all[2]["gt_relevance"][0] = json!(1.5),
        &["dense annotation 2", "1.5, expected 0 to 1"],
    );
    spoil(|all| all[2] = all[1].clone(), &["dense annotation 2 (image_id 1)", "has one already"]);
    let short = |text: &str| text.replacen("\"gt_relevance\":[0.0,", "\"gt_relevance\":[", 1);
    let error = {
        let path = broken.path(dense);
        std::fs::write(&path, short(&std::fs::read_to_string(&path).unwrap())).unwrap();
        broken.error()
    };
    assert!(error.contains("100 options in round") && error.contains("99 relevances"), "{error}");
}

#[test]
fn films() {
    let msvd = Broken::new("msvdqa");
    msvd.check(
        "test_qa.json",
        |all| all[1]["video_id"] = json!(9999),
        &["entry 1 (id 158582)", "film 9999", "mapping"],
    );
    msvd.check(
        "test_qa.json",
        |all| all[1]["id"] = all[0]["id"].clone(),
        &["two rows with key `158581`"],
    );
    msvd.check_text(
        "youtube_mapping.txt",
        |text| text.replacen(" vid2\n", " film2\n", 1),
        &["line 2", "vidN"],
    );
    msvd.check_text(
        "youtube_mapping.txt",
        |text| text.replacen(" vid2\n", " vid1\n", 1),
        &["line 2", "second of film 1"],
    );
    let ivqa = Broken::new("ivqa");
    ivqa.check_text(
        "test.csv",
        |text| text.replacen(",0,", ",zero,", 1),
        &["row 0", "`zero` for a second"],
    );
    ivqa.check_text(
        "test.csv",
        |text| text.replacen("question", "query", 1),
        &["row 0", "has no `question`"],
    );
    let next = Broken::new("nextqa");
    next.check(
        "add_reference_answer_test.json",
        |all| all["7"] = json!({ "1": "x" }),
        &["1 questions that are not listed: 7_1"],
    );
    next.check(
        "add_reference_answer_test.json",
        |all| remove(all, "4924794335"),
        &["1 listed questions without a second answer: 4924794335_3"],
    );
    next.check_text(
        "test.csv",
        |text| text.replacen("4924794334", "4924794333", 1),
        &["row 1", "second of question 4924794333_3"],
    );
    let star = Broken::new("star");
    star.check(
        "STAR_val.json",
        |all| all[1]["answer"] = json!("The moon."),
        &["entry 1 (question_id Sequence_T1_1)", "`The moon.`", "none of its choices"],
    );
    star.check(
        "STAR_val.json",
        |all| all[1]["question_id"] = json!("x"),
        &["entry 1 (question_id x)", "without type"],
    );
    let rare = Broken::new("rareact");
    rare.check_text(
        "rareact.csv",
        |text| text.replacen("fry,bacon,1", "fry,bacon,5", 1),
        &["row 3", "annotation 5"],
    );
    rare.check_text(
        "rareact.csv",
        |text| text.replacen("fry,bacon,1", "fry,egg,1", 1),
        &["row 9", "class 3 as `fry bacon`"],
    );
    rare.check_text(
        "rareact.csv",
        |text| text.replacen(",3,fry", ",three,fry", 1),
        &["row 3", "wrong `class_id`"],
    );
    let kinetics = Broken::new("kinetics");
    kinetics.check_text(
        "val.csv",
        |text| text.replacen("kin_1,", "kin_0,", 1),
        &["row 1", "second of clip kin_0_000003_000013"],
    );
}

#[test]
fn classes() {
    let broken = Broken::new("imagenet");
    broken.check_text(
        "LOC_synset_mapping.txt",
        |text| text.replacen("n01443537", "n01440764", 1),
        &["line 2", "second of class"],
    );
    std::fs::create_dir(broken.path("val/n99999999")).unwrap();
    assert!(
        broken.error().contains("1 folders are of no known class: n99999999"),
        "{}",
        broken.error()
    );
}

#[test]
fn wrong_types_are_told_with_their_field() {
    let vqa = Broken::new("vqav2");
    let spoil = |change: fn(&mut Value), expected: &[&str]| {
        let file = "v2_mscoco_val2014_annotations.json";
        vqa.check(file, |file| change(&mut file["annotations"][2]), expected);
    };
    let at = "annotation 2 (question_id 2000)";
    spoil(|it| it["answers"][3]["answer"] = json!(7), &[at, "a wrong `answers[3].answer`", "7"]);
    spoil(|it| it["answers"][3]["answer_id"] = json!("x"), &[at, "`answers[3].answer_id`"]);
    spoil(|it| remove(&mut it["answers"][3], "answer"), &[at, "no `answer` in `answers[3]`"]);
    spoil(
        |it| it["question_type"] = json!([1]),
        &[at, "a wrong `question_type`", "expected a string"],
    );
    vqa.check(
        "v2_OpenEnded_mscoco_val2014_questions.json",
        |file| file["questions"][1]["question"] = json!(null),
        &["question 1 (question_id 1000)", "a wrong `question`"],
    );
    let memes = Broken::new("hateful_memes");
    memes.check_text(
        "test_seen.jsonl",
        |text| text.replacen("\"label\":", "\"label\": [], \"was\":", 1),
        &["line 1 (id ", "a wrong `label`"],
    );
    let next = Broken::new("nextqa");
    next.check(
        "add_reference_answer_test.json",
        |all| all["4924794335"]["3"] = json!(5),
        &["`4924794335.3` is wrong", "expected a string"],
    );
}

#[test]
fn rows_of_tables_are_told_with_their_ids() {
    let rare = Broken::new("rareact");
    rare.check_text(
        "rareact.csv",
        |text| text.replacen(",3,fry", ",three,fry", 1),
        &["row 3 (id ", "video_id ", "a wrong `class_id`"],
    );
    let next = Broken::new("nextqa");
    next.check_text(
        "test.csv",
        |text| text.replacen("4924794334", "4924794333", 1),
        &["row 1 (video 4924794333, qid 3)"],
    );
    let kinetics = Broken::new("kinetics");
    kinetics.check_text(
        "val.csv",
        |text| text.replacen("kin_1,", "kin_0,", 1),
        &["row 1 (youtube_id kin_0)"],
    );
}
