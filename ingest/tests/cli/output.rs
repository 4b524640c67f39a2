//! An output that takes no more bytes: a full disk, a folder that may not be written, one that goes
//! away. Each is one clear line, and the run goes on when there is room again.

use std::path::Path;
use std::process::{Command, Output};

use flamingo_fixtures::web::{self, WebSize};

use crate::program::{files, folder, succeed};

/// Small parts, so that some are published before the disk is full.
const PLAN: &str = "[shard]\nrows_max = 20\n";

fn check_message(output: &Output, parts: &[&str]) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in {message}");
    }
}

#[test]
fn a_full_disk_is_named_and_the_run_goes_on_later() {
    let (_folder, root) = folder();
    let size = WebSize { pages: 80, pairs: 1, clips: 0, support: 1, queries: 1 };
    web::write(Path::new(&format!("{root}/web")), &size, 3).unwrap();
    let (input, plan) = (format!("{root}/web/pages.warc.gz"), format!("{root}/plan.toml"));
    std::fs::write(&plan, PLAN).unwrap();
    let whole = format!("{root}/whole");
    let arguments = |out: &str| {
        ["webpages", "--plan", &plan, "--input", &input, "--out", out].map(str::to_owned)
    };
    succeed(&arguments(&whole).each_ref().map(String::as_str));
    let whole = files(Path::new(&whole));
    let largest = whole.iter().filter(|(name, _)| name.starts_with("shard")).map(|(_, b)| b.len());
    let largest = largest.max().unwrap() as u64;
    // A limit on the size of a file stands for the full disk: it needs no rights. At half a shard the
    // first part fails, below a shard's size a later one may.
    for limit in [0, largest / 2, largest - 1024] {
        let out = format!("{root}/full-{limit}");
        let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", limit / 512);
        let output = Command::new("sh")
            .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_flamingo-ingest")])
            .args(arguments(&out))
            .output()
            .unwrap();
        check_message(&output, &["error: cannot write", &out, "File too large"]);
        assert!(!Path::new(&out).join("manifest.json").exists());
        let lines =
            succeed(&[&arguments(&out).each_ref().map(String::as_str)[..], &["--resume"]].concat());
        assert_eq!(lines.contains("resumed: "), limit > 0, "{lines}");
        assert!(files(Path::new(&out)) == whole, "limit {limit}");
    }
}

#[test]
fn two_runs_do_not_write_one_output() {
    let (_folder, root) = folder();
    let size = WebSize { pages: 2, pairs: 1, clips: 0, support: 1, queries: 1 };
    web::write(Path::new(&format!("{root}/web")), &size, 3).unwrap();
    let (input, out) = (format!("{root}/web/pages.warc.gz"), format!("{root}/out"));
    let arguments = ["webpages", "--input", &input, "--out", &out, "--resume"];
    // Another run would hold this lock.
    std::fs::create_dir_all(format!("{out}/journal")).unwrap();
    let lock = std::fs::File::create(format!("{out}/journal/lock")).unwrap();
    lock.lock().unwrap();
    std::fs::rename(format!("{out}/journal"), format!("{root}/journal")).unwrap();
    succeed(&arguments);
    std::fs::remove_file(format!("{out}/manifest.json")).unwrap();
    std::fs::rename(format!("{root}/journal"), format!("{out}/journal")).unwrap();
    let output =
        Command::new(env!("CARGO_BIN_EXE_flamingo-ingest")).args(arguments).output().unwrap();
    check_message(&output, &["error: output", &out, "another run"]);
    drop(lock);
    succeed(&arguments);
    succeed(&["check", &out]);
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let (_folder, root) = folder();
    let size = WebSize { pages: 2, pairs: 1, clips: 0, support: 1, queries: 1 };
    web::write(Path::new(&format!("{root}/web")), &size, 3).unwrap();
    let input = format!("{root}/web/pages.warc.gz");
    // A file where a folder is needed refuses everyone, root included.
    std::fs::write(format!("{root}/file"), "x").unwrap();
    let out = format!("{root}/file/corpus");
    let output = Command::new(env!("CARGO_BIN_EXE_flamingo-ingest"))
        .args(["webpages", "--input", &input, "--out", &out])
        .output()
        .unwrap();
    check_message(&output, &["error: ", &out, "Not a directory"]);
}
