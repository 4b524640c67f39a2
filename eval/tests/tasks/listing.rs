//! `flamingo-eval tasks`: the list, all of one task, and the check of a folder, by the real binary.

use std::path::Path;
use std::process::{Command, Output};

use crate::layouts::made_up;

fn tasks(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flamingo-eval")).arg("tasks").args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The command must fail and say all of these.
fn check_failure(output: &Output, code: i32, expected: &[&str]) {
    let line = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{line}");
    for part in expected {
        assert!(line.contains(part), "`{part}` in `{line}`");
    }
}

#[test]
fn all_tasks_are_listed_and_told_of() {
    let list = stdout(&tasks(&[]));
    for name in flamingo_fixtures::benchmarks::names() {
        assert!(list.contains(&format!("{name} ")), "{name} in {list}");
        let told = stdout(&tasks(&[name]));
        assert!(told.starts_with(&format!("{name}: ")) && told.contains("where they come from"));
    }
    let told = stdout(&tasks(&["vqav2"]));
    for part in [
        "v2_mscoco_val2014_annotations.json",
        "https://visualqa.org/download.html",
        "val  asked about",
        "train  examples",
        "test-dev\n",
        "[templates.open-flamingo]",
    ] {
        assert!(told.contains(part), "{part} in {told}");
    }
    check_failure(&tasks(&["vqav3"]), 2, &["no task `vqav3`"]);
    check_failure(&tasks(&["--toml"]), 2, &["<TASK>"]);
}

#[test]
fn a_task_is_copied_changed_and_checked() {
    let dir = made_up(&["msrvttqa"]);
    let mine = dir.path().join("mine.toml");
    let text = stdout(&tasks(&["msrvttqa", "--toml"]));
    std::fs::write(&mine, text.replace("name = \"msrvttqa\"", "name = \"mine\"")).unwrap();
    let folder = dir.path().join("msrvttqa");
    let args = [mine.to_str().unwrap(), "--check", folder.to_str().unwrap()];
    let told = stdout(&tasks(&args));
    assert!(told.starts_with("mine: ") && told.contains("is complete"), "{told}");
    assert!(told.contains("query    test       4 items, 4 pictures or films"), "{told}");
    assert!(told.contains("support  train      14 items, 14 pictures or films"), "{told}");
    let wrong = text.replace("frames = \"frames/video{video_id}\"", "film = \"x\"");
    std::fs::write(&mine, wrong).unwrap();
    check_failure(&tasks(&args), 2, &["mine.toml", "`splits`", "unknown role `film`"]);
}

#[test]
fn what_is_missing_is_named_and_counted() {
    let dir = made_up(&["coco", "vqav2"]);
    let folder = dir.path().join("coco");
    let check = || tasks(&["coco", "--check", folder.to_str().unwrap()]);
    let remove = |file: &str| std::fs::remove_file(folder.join(file)).unwrap();
    remove("val2014/COCO_val2014_000000000001.jpg");
    remove("train2014/COCO_train2014_000000000107.jpg");
    remove("train2014/COCO_train2014_000000000109.jpg");
    let expected = [
        "1 of 3 query items have no picture",
        "COCO_val2014_000000000001.jpg",
        "2 of 14 support items",
        "COCO_train2014_000000000107.jpg",
        "COCO_train2014_000000000109.jpg",
    ];
    check_failure(&check(), 1, &expected);

    let vqa = dir.path().join("vqav2");
    std::fs::remove_file(vqa.join("v2_mscoco_val2014_annotations.json")).unwrap();
    std::fs::remove_file(vqa.join("v2_OpenEnded_mscoco_train2014_questions.json")).unwrap();
    let run = |folder: &Path, task: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
        command.args(["run", "--task", task, "--annotations"]).arg(folder);
        command.args(["--model", "nowhere", "--out"]).arg(dir.path().join("out"));
        command.args(more).output().unwrap()
    };
    // Before the model is looked for.
    let missing = [
        "v2_OpenEnded_mscoco_train2014_questions.json, v2_mscoco_val2014_annotations.json",
        "are not there",
    ];
    check_failure(&run(&vqa, "vqav2", &[]), 1, &missing);
    check_failure(
        &run(&folder, "coco", &[]),
        1,
        &["2 of 14 support items", "--skip-missing-media"],
    );
    let skipping = run(&folder, "coco", &["--skip-missing-media"]);
    check_failure(&skipping, 1, &["1 of 3 query items", "they are left out", "nowhere"]);
    assert!(!dir.path().join("out").exists());
}

#[test]
fn films_without_frames_are_missing_too() {
    let dir = made_up(&["youcook2"]);
    let folder = dir.path().join("youcook2");
    let check = || tasks(&["youcook2", "--check", folder.to_str().unwrap()]);
    assert!(stdout(&check()).contains("is complete"));
    let file = folder.join("youcookii_annotations_trainval.json");
    let text = std::fs::read_to_string(&file).unwrap();
    // The film has three frames, one second of it.
    std::fs::write(&file, text.replacen("\"segment\":[0.4,1]", "\"segment\":[7,9]", 1)).unwrap();
    check_failure(&check(), 1, &["1 of 8 query items", "frames/cook-0 from 7 to 9 s"]);
    std::fs::write(&file, text).unwrap();
    for frame in 1..=3 {
        std::fs::remove_file(folder.join(format!("frames/cook-101/{frame:06}.jpg"))).unwrap();
    }
    check_failure(
        &check(),
        1,
        &["2 of 28 support items", "2 missing or without frames", "cook-101"],
    );
}
