//! A run that was stopped, in whatever way, ends as one that was not.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flamingo_model::Tensors;

use crate::world::{FLAMINGO, LANGUAGE, STAGES, World, latest, metrics};

/// Everything in the last checkpoint, and which steps the log knows.
fn outcome(run: &Path) -> (Vec<(String, Vec<u8>)>, Vec<u64>) {
    let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(latest(run))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(path).unwrap())
        })
        .collect();
    files.sort();
    let steps = metrics(run).iter().map(|line| line["step"].as_u64().unwrap()).collect();
    (files, steps)
}

fn assert_same_outcome(expected: &Path, found: &Path) {
    let ((expected, steps), (found, found_steps)) = (outcome(expected), outcome(found));
    let names = |files: &[(String, Vec<u8>)]| {
        files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&found), names(&expected));
    for ((name, expected), (_, found)) in expected.iter().zip(&found) {
        assert!(expected == found, "{name} differs");
    }
    assert_eq!(found_steps, steps);
}

#[test]
fn two_stops_change_nothing_in_any_stage() {
    let world = World::with_towers();
    for (stage, config) in STAGES {
        world.train(stage, config, &format!("{stage}-whole"), &[]).expect_success();
        let run = format!("{stage}-stopped");
        world.train(stage, config, &run, &["--stop-after", "2"]).expect_success();
        assert!(latest(&world.path(&run)).ends_with("step-2"));
        world.train(stage, config, &run, &["--resume", "--stop-after", "5"]).expect_success();
        world.train(stage, config, &run, &["--resume"]).expect_success();
        assert_same_outcome(&world.path(&format!("{stage}-whole")), &world.path(&run));
    }
}

#[test]
fn towers_are_trained_on_request_and_recomputing_changes_no_bit() {
    let world = World::with_towers();
    world.train("flamingo", FLAMINGO, "frozen", &["--stop-after", "1"]).expect_success();
    let first_loss = |run: &str| metrics(&world.path(run))[0]["loss"].as_f64().unwrap();
    let language_of = |run: &str| {
        let weights = Tensors::open(&latest(&world.path(run)).join("model.safetensors")).unwrap();
        weights.get("language.tokens.weight").unwrap().to_owned()
    };
    for (weights, same_start) in [("fine-tuned", true), ("from-scratch", false)] {
        let keys =
            format!("[model]\nvision_weights = {weights:?}\nlanguage_weights = {weights:?}\n");
        let config = FLAMINGO.replace("[model]\n", &keys);
        let run = |name: &str, more: &[&str]| {
            let finished = world.train("flamingo", &config, &format!("{weights}-{name}"), more);
            finished.expect_success();
            finished.stderr()
        };
        let told = run("whole", &[]);
        assert!(told.contains("with gates at 0 the loss equals"), "{told}");
        assert!(!told.contains("frozen weights"), "{told}");
        run("stopped", &["--stop-after", "3", "--set", "recompute=\"nothing\""]);
        run("stopped", &["--resume", "--set", "recompute=\"all\""]);
        let [whole, stopped] = ["whole", "stopped"].map(|name| format!("{weights}-{name}"));
        assert_same_outcome(&world.path(&whole), &world.path(&stopped));
        assert_eq!(first_loss(&whole).to_bits() == first_loss("frozen").to_bits(), same_start);
        assert_ne!(language_of(&whole), language_of("frozen"), "{weights}");
    }
}

#[test]
fn kept_features_change_no_bit_and_serve_another_run() {
    let world = World::with_towers();
    world.train("flamingo", FLAMINGO, "whole", &[]).expect_success();
    let folder = world.path("features");
    let keeping = format!("{FLAMINGO}\n[feature_cache]\nfolder = {:?}\n", folder.display());
    world.train("flamingo", &keeping, "keeping", &["--stop-after", "2"]).expect_success();
    let files = || {
        let encoders = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let parts = encoders.flat_map(|encoder| std::fs::read_dir(encoder).unwrap());
        parts.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    let first = files();
    assert!(!first.is_empty());
    // Dropped or taken up at a resume: the run is the same.
    world
        .train("flamingo", FLAMINGO, "keeping", &["--resume", "--stop-after", "4"])
        .expect_success();
    world.train("flamingo", &keeping, "keeping", &["--resume"]).expect_success();
    assert_same_outcome(&world.path("whole"), &world.path("keeping"));
    world.train("flamingo", &keeping, "again", &[]).expect_success();
    let all = files().len();
    world.train("flamingo", &keeping, "served", &[]).expect_success();
    assert_eq!(files().len(), all, "nothing was new");
    assert_same_outcome(&world.path("whole"), &world.path("served"));
    std::fs::write(&first[0], b"PAR1").unwrap();
    let broken = world.train("flamingo", &keeping, "broken", &[]);
    assert_eq!(broken.code(), Some(1));
    assert!(broken.stderr().contains("feature cache"), "{}", broken.stderr());
    let language = format!("{LANGUAGE}\n[feature_cache]\nfolder = {:?}\n", folder.display());
    let refused = world.train("language", &language, "refused", &[]);
    assert_eq!(refused.code(), Some(2));
    assert!(refused.stderr().contains("`feature_cache`"), "{}", refused.stderr());
}

#[test]
fn a_finished_run_may_go_on_for_more_steps_and_old_checkpoints_go() {
    let world = World::with_towers();
    let run = world.path("run");
    let endless = FLAMINGO.replace("\"cosine\"", "\"constant\"");
    world.train("flamingo", &endless, "run", &[]).expect_success();
    let before = outcome(&run);
    let report = std::fs::read(run.join("report.html")).unwrap();
    std::fs::remove_file(run.join("report.html")).unwrap();
    world.train("flamingo", &endless, "run", &["--resume"]).expect_success();
    assert!(before == outcome(&run), "a finished run changed");
    assert!(report == std::fs::read(run.join("report.html")).unwrap(), "another report");

    let more = ["--resume", "--set", "steps=10", "--set", "checkpoint_every=1"];
    world.train("flamingo", &endless, "run", &more).expect_success();
    assert!(latest(&run).ends_with("step-10"));
    let mut names: Vec<_> = std::fs::read_dir(run.join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["step-10", "step-9"]);
    assert!(std::fs::read_to_string(run.join("report.html")).unwrap().contains("Observed: gate"));
}

/// What [`std::process::Child::kill`] sends.
const SIGKILL: i32 = 9;

/// Moments of the kills, in thousandths of the time that the whole run takes.
const KILLS: [u128; 6] = [150, 400, 650, 300, 120, 500];

#[test]
fn killed_at_any_moment_and_resumed_ends_with_the_same_bytes() {
    let world = World::with_towers();
    let longer = ["--set", "steps=60", "--set", "checkpoint_every=2", "--resume"];
    let clock = Instant::now();
    world.train("flamingo", FLAMINGO, "whole", &longer).expect_success();
    let whole = clock.elapsed();

    let mut n_killed = 0;
    for permille in KILLS {
        let mut command = world.command("flamingo", FLAMINGO, "killed", &longer);
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis((whole.as_millis() * permille / 1000) as u64));
        child.kill().unwrap();
        n_killed += usize::from(child.wait().unwrap().signal() == Some(SIGKILL));
    }
    assert!(n_killed > 0, "every run had ended before its kill");
    world.train("flamingo", FLAMINGO, "killed", &longer).expect_success();
    assert_same_outcome(&world.path("whole"), &world.path("killed"));
}

/// The command where no file may grow beyond 32 KiB: the tokenizer fits, the model does not.
fn on_a_full_disk(command: &Command) -> Command {
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\""]);
    limited.arg(command.get_program()).args(command.get_args());
    limited
}

#[test]
fn a_first_checkpoint_without_room_leaves_a_run_that_can_go_on() {
    let world = World::new();
    let command = world.command("language", LANGUAGE, "run", &[]);
    let output = on_a_full_disk(&command).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("cannot save the model: cannot write"), "{stderr}");
    let run = world.path("run");
    assert_eq!(std::fs::read_dir(run.join("checkpoints")).unwrap().count(), 0);
    assert!(!run.join("latest").exists() && !run.join("report.html").exists());

    world.train("language", LANGUAGE, "run", &["--resume"]).expect_success();
    world.train("language", LANGUAGE, "whole", &[]).expect_success();
    assert_same_outcome(&world.path("whole"), &run);
}
