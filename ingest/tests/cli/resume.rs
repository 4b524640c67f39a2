//! The same inputs and plan give the same bytes, whatever the number of workers and however often
//! the run is killed.

use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use flamingo_fixtures::web::{self, WebSize};

use crate::program::{files, folder, ingest, run, succeed};

/// Small parts, so that a run has many moments at which it can be killed.
const PLAN: &str = "[shard]\nrows_max = 4\n";
/// Most kills of one run; then it is left alone.
const KILLS_MAX: u64 = 12;

struct Made {
    _folder: tempfile::TempDir,
    root: String,
}

fn make(pages: u64, pairs: u64, clips: u64) -> Made {
    let (folder, root) = folder();
    let size = WebSize { pages, pairs, clips, support: 1, queries: 1 };
    web::write(Path::new(&format!("{root}/web")), &size, 5).unwrap();
    std::fs::write(format!("{root}/plan.toml"), PLAN).unwrap();
    Made { _folder: folder, root }
}

impl Made {
    fn arguments(&self, command: &str, input: &str, out: &str, more: &[&str]) -> Vec<String> {
        let root = &self.root;
        let fixed = [
            command,
            "--plan",
            &format!("{root}/plan.toml"),
            "--input",
            &format!("{root}/web/{input}"),
            "--out",
            &format!("{root}/{out}"),
        ];
        fixed.iter().chain(more).map(|&argument| argument.to_owned()).collect()
    }

    fn run(&self, command: &str, input: &str, out: &str, more: &[&str]) -> Vec<(String, Vec<u8>)> {
        let arguments = self.arguments(command, input, out, more);
        succeed(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        files(Path::new(&format!("{}/{out}", self.root)))
    }

    /// Starts the run again and again and kills it soon after it has published one more part; the
    /// number of kills that left a journal behind.
    fn kill_often(&self, command: &str, input: &str, out: &str) -> u64 {
        let arguments = self.arguments(command, input, out, &["--resume", "--workers", "2"]);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let journal = Path::new(&self.root).join(out).join("journal");
        let mut n_inside = 0;
        for kill in 0..KILLS_MAX {
            let mut child = ingest(&arguments).stdout(Stdio::null()).spawn().unwrap();
            let part = journal.join(format!("part-{kill:05}.json"));
            while !part.exists() && child.try_wait().unwrap().is_none() {
                sleep(Duration::from_micros(200));
            }
            // Not always at the same moment of the next part.
            sleep(Duration::from_micros(kill * 7919 % 3000));
            child.kill().unwrap();
            child.wait().unwrap();
            n_inside += u64::from(journal.join("part-00000.json").exists());
        }
        n_inside
    }
}

fn check(command: &str, input: &str, made: &Made) {
    let whole = made.run(command, input, "whole", &["--workers", "1"]);
    let three = made.run(command, input, "three", &["--workers", "3"]);
    assert_same(&three, &whole);
    let n_inside = made.kill_often(command, input, "killed");
    println!("{command}: {n_inside} of {KILLS_MAX} kills hit an unfinished run");
    let killed = made.run(command, input, "killed", &["--resume"]);
    assert_same(&killed, &whole);
    assert!(n_inside > 0, "no kill hit the run");
    // A finished run that is resumed stays as it is.
    assert_same(&made.run(command, input, "killed", &["--resume"]), &whole);
    succeed(&["check", &format!("{}/killed", made.root)]);
}

fn assert_same(found: &[(String, Vec<u8>)], expected: &[(String, Vec<u8>)]) {
    let names = |files: &[(String, Vec<u8>)]| -> Vec<String> {
        files.iter().map(|(name, _)| name.clone()).collect()
    };
    assert_eq!(names(found), names(expected));
    for ((name, found), (_, expected)) in found.iter().zip(expected) {
        assert!(found == expected, "{name} differs");
    }
    assert!(
        expected.iter().any(|(name, _)| name == "shard-00001.parquet"),
        "{:?}",
        names(expected)
    );
}

#[test]
fn pages_survive_kills_bit_for_bit() {
    check("webpages", "pages.warc.gz", &make(60, 1, 0));
}

#[test]
fn pairs_survive_kills_bit_for_bit() {
    check("alt-text", "pairs.parquet", &make(1, 60, 0));
}

#[test]
fn clips_survive_kills_bit_for_bit() {
    check("video-text", "clips", &make(1, 1, 10));
}

/// Resumes the run at `out` in another way, which must be refused because of `what`.
fn refuse(arguments: &[&str], what: &str) {
    let output = run(&[arguments, &["--resume"]].concat());
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
    assert!(message.contains(&format!("started with another {what}")), "{message}");
}

fn pages_of<'a>(plan: &'a str, input: &'a str, out: &'a str) -> [&'a str; 7] {
    ["webpages", "--plan", plan, "--input", input, "--out", out]
}

#[test]
fn another_plan_or_input_is_not_resumed() {
    let made = make(8, 3, 0);
    let path = |name: &str| format!("{}/{name}", made.root);
    let (out, list, images) = (path("out"), path("pairs.csv"), path("web"));
    let plan = path("plan.toml");
    let other = path("other.toml");
    std::fs::write(&other, "[image]\nside_min = 65\n").unwrap();
    flamingo_fixtures::web::write(
        Path::new(&path("more")),
        &WebSize { pages: 9, pairs: 1, clips: 0, support: 1, queries: 1 },
        5,
    )
    .unwrap();
    let (pages, more) = (path("web/pages.warc.gz"), path("more/pages.warc.gz"));
    // The run is finished: what it was made of counts all the same.
    succeed(&pages_of(&plan, &pages, &out));
    refuse(&pages_of(&other, &pages, &out), "plan");
    refuse(&pages_of(&plan, &more, &out), "input");
    let lines = succeed(&[&pages_of(&plan, &pages, &out)[..], &["--resume"]].concat());
    assert!(lines.contains("complete already, 8 documents"), "{lines}");
    // A run that was cut off: one byte of a list changes, its size does not.
    std::fs::write(&list, "file,caption\na.jpg,one\nb.jpg,two\n").unwrap();
    let out = path("cut");
    std::fs::create_dir(&out).unwrap();
    let pairs = ["alt-text", "--input", &list, "--images", &images, "--out", &out];
    std::fs::write(path("web/a.jpg"), picture()).unwrap();
    std::fs::write(path("web/b.jpg"), picture()).unwrap();
    succeed(&pairs);
    std::fs::remove_file(format!("{out}/manifest.json")).unwrap();
    std::fs::write(&list, "file,caption\na.jpg,one\nb.jpg,TWO\n").unwrap();
    refuse(&pairs, "input");
    std::fs::write(&list, "file,caption\na.jpg,one\nb.jpg,two\n").unwrap();
    refuse(&["alt-text", "--input", &list, "--out", &out], "folder of images");
    // The same list elsewhere is the same input.
    let copy = path("more/pairs.csv");
    std::fs::copy(&list, &copy).unwrap();
    succeed(&["alt-text", "--input", &copy, "--images", &images, "--out", &out, "--resume"]);
    succeed(&["check", &out]);
}

fn picture() -> Vec<u8> {
    use flamingo_fixtures::{image, scene::Scene};
    image::jpeg(Scene::random(1, 1), image::SIZE, 1)
}
