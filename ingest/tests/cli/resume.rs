//! The same inputs and plan give the same bytes, whatever the number of workers and however often
//! the run is killed.

use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use flamingo_fixtures::web::{self, WebSize};

use crate::program::{files, folder, ingest, run, succeed};

/// Small parts, so that a run has many moments at which it can be killed.
const PLAN: &str = "[shard]\nrows_max = 4\n";
/// Kills of each kind of run, at moments drawn from a seed.
const KILLS: u64 = 20;

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

    /// Starts the run again and again and kills it at random moments; a run that was not killed in
    /// time must have given `whole` and is begun anew. How many kills hit an unfinished run, and how
    /// many items the resumed runs did not do again.
    fn kill_often(
        &self,
        command: &str,
        input: &str,
        whole: &[(String, Vec<u8>)],
        time: Duration,
    ) -> (u64, u64) {
        let out = Path::new(&self.root).join("killed");
        let more = ["--resume", "--workers", "2"];
        let arguments = self.arguments(command, input, "killed", &more);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let (mut n_inside, mut n_kept, mut done_before) = (0, 0, 0);
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..KILLS {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let moment = time.mul_f64((random >> 40) as f64 / f64::from(1 << 24));
            let mut child = ingest(&arguments).stdout(Stdio::piped()).spawn().unwrap();
            sleep(moment);
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            if output.status.success() {
                let lines = String::from_utf8(output.stdout).unwrap();
                let resumed = resumed(&lines);
                // Nothing that was on disk at the kill before is lost.
                assert!(resumed >= done_before, "{resumed} of {done_before}: {lines}");
                n_kept += resumed;
                assert_same(&files(&out), whole);
                std::fs::remove_dir_all(&out).unwrap();
                done_before = 0;
            } else {
                n_inside += u64::from(!out.join("manifest.json").exists());
                // A run that is finished and killed on its way out has no journal any more.
                if out.join("manifest.json").exists() && items_on_disk(&out) == 0 {
                    done_before = 0;
                    continue;
                }
                let now = items_on_disk(&out);
                assert!(now >= done_before, "{now} items on disk, {done_before} before");
                done_before = now;
            }
        }
        (n_inside, n_kept)
    }
}

/// What a resumed run says of the items that were done before.
fn resumed(lines: &str) -> u64 {
    let line = lines.lines().find_map(|line| line.strip_prefix("resumed: "));
    line.map_or(0, |line| line.split(' ').next().unwrap().parse().unwrap())
}

/// Items that the journal covers, and whole records of the open part.
fn items_on_disk(out: &Path) -> u64 {
    let (mut n_items, mut n_parts) = (0, 0);
    let journal = out.join("journal");
    while let Ok(entry) = std::fs::read(journal.join(format!("part-{n_parts:05}.json"))) {
        let entry: serde_json::Value = serde_json::from_slice(&entry).unwrap();
        n_items += entry["n_items"].as_u64().unwrap();
        n_parts += 1;
    }
    while let Ok(log) = std::fs::read(journal.join(format!("records-{n_parts:05}.log"))) {
        let mut rest = log.get(8..).unwrap_or_default();
        while let Some((head, payload)) = rest.split_at_checked(8) {
            let length = u32::from_le_bytes(head[..4].try_into().unwrap()) as usize;
            let Some((_, after)) = payload.split_at_checked(length) else { break };
            (rest, n_items) = (after, n_items + 1);
        }
        n_parts += 1;
    }
    n_items
}

fn check(command: &str, input: &str, made: &Made) {
    let whole = made.run(command, input, "whole", &["--workers", "1"]);
    let started = Instant::now();
    let three = made.run(command, input, "three", &["--workers", "3"]);
    assert_same(&three, &whole);
    let (n_inside, n_kept) = made.kill_often(command, input, &whole, started.elapsed());
    println!("{command}: {n_inside} of {KILLS} kills hit an unfinished run; {n_kept} items kept");
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
