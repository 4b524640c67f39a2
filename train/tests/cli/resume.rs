//! A run that was stopped, in whatever way, ends as one that was not.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flamingo_model::Tensors;

use crate::world::{FLAMINGO, Finished, LANGUAGE, STAGES, World, latest, metrics};

/// All files in a folder and in those inside it.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<_> = paths
        .flat_map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                let inside = files(&path).into_iter();
                return inside.map(|(file, bytes)| (format!("{name}/{file}"), bytes)).collect();
            }
            vec![(name, std::fs::read(path).unwrap())]
        })
        .collect();
    all.sort();
    all
}

/// Everything in the last checkpoint, and which steps the log knows.
fn outcome(run: &Path) -> (Vec<(String, Vec<u8>)>, Vec<u64>) {
    let files = files(&latest(run));
    let steps = metrics(run).iter().map(|line| line["step"].as_u64().unwrap()).collect();
    (files, steps)
}

pub(crate) fn assert_same_outcome(expected: &Path, found: &Path) {
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
    limited.args(["-c", "ulimit -f 64; exec \"$0\" \"$@\""]);
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

#[test]
fn a_later_checkpoint_without_room_ends_the_run_and_the_last_one_stands() {
    let world = World::new();
    let run = world.path("run");
    world.train("language", LANGUAGE, "run", &["--stop-after", "3"]).expect_success();
    let before = outcome(&run);
    let command = world.command("language", LANGUAGE, "run", &["--resume"]);
    let output = on_a_full_disk(&command).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("cannot save the model: cannot write"), "{stderr}");
    assert!(before.0 == outcome(&run).0, "the last checkpoint does not stand");
    assert!(metrics(&run).len() >= 6, "the run did not come to its next checkpoint");
    assert_eq!(std::fs::read_dir(run.join("checkpoints")).unwrap().count(), 1);

    world.train("language", LANGUAGE, "run", &["--resume"]).expect_success();
    world.train("language", LANGUAGE, "whole", &[]).expect_success();
    assert_same_outcome(&world.path("whole"), &run);
}

#[test]
fn a_limit_of_the_size_of_files_is_told_of_by_every_command() {
    let world = World::new();
    world.train("language", LANGUAGE, "run", &["--stop-after", "1"]).expect_success();
    let mut export = Command::new(env!("CARGO_BIN_EXE_flamingo-train"));
    export.arg("export").arg("--model").arg(world.path("run"));
    export.args(["--format", "hugging-face", "--out"]).arg(world.path("out"));
    let output = on_a_full_disk(&export).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("File too large"), "{stderr}");
    assert!(!world.path("out").exists(), "half an export");
}

#[test]
fn a_damaged_checkpoint_is_told_of_and_the_one_before_it_can_be_named() {
    let world = World::new();
    world.train("language", LANGUAGE, "run", &["--stop-after", "4"]).expect_success();
    let run = world.path("run");
    for file in ["model.safetensors", "optimizer.safetensors", "config.json", "state.json"] {
        let path = latest(&run).join(file);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() * 2 / 3]).unwrap();
        let refused = world.train("language", LANGUAGE, "run", &["--resume"]);
        assert_eq!(refused.code(), Some(1), "{}", refused.stderr());
        let words = format!("run/checkpoints/step-4/{file}");
        assert!(refused.stderr().contains(&words), "{}", refused.stderr());
        std::fs::write(&path, &whole).unwrap();
    }
    std::fs::write(latest(&run).join("model.safetensors"), "").unwrap();
    std::fs::write(run.join("latest"), "step-3\n").unwrap();
    world.train("language", LANGUAGE, "run", &["--resume"]).expect_success();
    world.train("language", LANGUAGE, "whole", &[]).expect_success();
    assert_same_outcome(&world.path("whole"), &run);
}

/// Changes one bit in the middle of a file, and says what was there.
fn flip_a_bit(path: &Path) -> Vec<u8> {
    let whole = std::fs::read(path).unwrap();
    let mut other = whole.clone();
    other[whole.len() / 2] ^= 1;
    std::fs::write(path, other).unwrap();
    whole
}

#[test]
fn a_checkpoint_with_one_bit_changed_is_used_by_no_command() {
    let world = World::with_towers();
    let config = FLAMINGO.replacen("[optimizer]", "[ema]\ndecay = 0.5\n\n[optimizer]", 1);
    world.train("flamingo", &config, "run", &["--stop-after", "4"]).expect_success();
    let run = world.path("run");
    let step = latest(&run);
    let command = |words: &[&str], folder: &Path, rest: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-train"));
        Finished(command.args(words).arg(folder).args(rest).output().unwrap())
    };
    let resume = || world.train("flamingo", &config, "run", &["--resume"]);
    let replay = || command(&["replay", "--run"], &run, &["--step", "5"]);
    let out = world.path("out");
    let to = ["--format", "flamingo", "--out", out.to_str().unwrap()];
    let export = || command(&["export", "--model"], &run, &to);
    let averaged = || command(&["export", "--model"], &step.join("ema"), &to);
    let told = |told: Finished, file: &str, what: &str| {
        let (code, stderr) = (told.code(), told.stderr());
        assert_eq!(code, Some(1), "{what}, {file}: {stderr}");
        let named = stderr.contains(&format!("run/checkpoints/step-4/{file} is damaged"));
        let others = stderr.contains("`latest` may name in the place of this one: step-3");
        assert!(named && others, "{what}: {stderr}");
    };
    for file in
        ["model.safetensors", "optimizer.safetensors", "ema/model.safetensors", "state.json"]
    {
        let whole = flip_a_bit(&step.join(file));
        told(resume(), file, "resume");
        if file.ends_with("model.safetensors") {
            told(averaged(), file, "export of the averages");
        }
        if file == "model.safetensors" {
            told(export(), file, "export");
        }
        std::fs::write(step.join(file), whole).unwrap();
    }
    // A replay of a later step begins with this one; `metrics.jsonl` need not have it for that.
    let whole = flip_a_bit(&step.join("model.safetensors"));
    told(replay(), "model.safetensors", "replay");
    // Checkpoints of earlier versions have no checksums.
    std::fs::remove_file(step.join("SHA256SUMS")).unwrap();
    export().expect_success();
    std::fs::write(step.join("model.safetensors"), whole).unwrap();
    resume().expect_success();
}

#[test]
fn checksums_are_those_of_sha256sum() {
    let world = World::new();
    world.train("language", LANGUAGE, "run", &["--stop-after", "1"]).expect_success();
    let run = world.path("run");
    let folder = latest(&run);
    let check = Command::new("sha256sum").args(["-c", "SHA256SUMS"]).current_dir(&folder).output();
    let Ok(check) = check else {
        eprintln!("skipped: there is no sha256sum here");
        return;
    };
    let told = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.success(), "{told}");
    let files = std::fs::read_dir(&folder).unwrap().count();
    assert_eq!(told.lines().filter(|line| line.ends_with(": OK")).count(), files - 1, "{told}");
}

#[test]
fn a_latest_whose_checkpoint_is_gone_is_told_of_with_those_that_are_there() {
    let world = World::new();
    world.train("language", LANGUAGE, "run", &["--stop-after", "4"]).expect_success();
    let run = world.path("run");
    std::fs::write(run.join("latest"), "step-40\n").unwrap();
    let export = || {
        let mut export = Command::new(env!("CARGO_BIN_EXE_flamingo-train"));
        export.arg("export").arg("--model").arg(&run).args(["--format", "flamingo", "--out"]);
        Finished(export.arg(world.path("out")).output().unwrap())
    };
    for refused in [world.train("language", LANGUAGE, "run", &["--resume"]), export()] {
        assert_eq!(refused.code(), Some(1), "{}", refused.stderr());
        for words in ["run/latest", "`step-40`", "checkpoints/step-40", "step-4, step-3"] {
            assert!(refused.stderr().contains(words), "no {words}: {}", refused.stderr());
        }
    }
    assert!(!world.path("out").exists());
}

#[test]
fn a_broken_line_of_metrics_does_not_take_those_after_it_along() {
    let world = World::new();
    world.train("language", LANGUAGE, "run", &["--stop-after", "4"]).expect_success();
    let path = world.path("run/metrics.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let broken = text.replacen("{\"step\":2", "\0\0", 1);
    std::fs::write(&path, &broken).unwrap();
    let refused = world.train("language", LANGUAGE, "run", &["--resume"]);
    assert_eq!(refused.code(), Some(1), "{}", refused.stderr());
    assert!(refused.stderr().contains("metrics.jsonl line 2 is not"), "{}", refused.stderr());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), broken);
    let rest: Vec<&str> =
        text.split_inclusive('\n').filter(|l| !l.contains("\"step\":2,")).collect();
    std::fs::write(&path, rest.concat()).unwrap();
    world.train("language", LANGUAGE, "run", &["--resume"]).expect_success();
    assert_eq!(outcome(&world.path("run")).1, [1, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn steps_that_are_multiples_of_keep_every_stay_for_ever() {
    let world = World::new();
    let few = ["--set", "checkpoint_every=1", "--set", "keep_last=1"];
    let keep = |every: &'static str| [&few[..], &["--set", every]].concat();
    let names = || {
        let found = std::fs::read_dir(world.path("run/checkpoints")).unwrap();
        let names = found.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    let args = [&keep("keep_every=2")[..], &["--stop-after", "5"]].concat();
    world.train("language", LANGUAGE, "run", &args).expect_success();
    assert_eq!(names(), ["step-2", "step-4", "step-5"]);
    // Another number is heeded from then on.
    let args = [&keep("keep_every=4")[..], &["--resume"]].concat();
    world.train("language", LANGUAGE, "run", &args).expect_success();
    assert_eq!(names(), ["step-4", "step-8"]);
    world.train("language", LANGUAGE, "whole", &few).expect_success();
    assert_same_outcome(&world.path("whole"), &world.path("run"));
}

/// A file system of its own in memory.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    /// None where the tests may not mount.
    fn mount(at: std::path::PathBuf, bytes: u64) -> Option<Self> {
        std::fs::create_dir(&at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"]).arg(&at);
        let mounted = mount.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        mounted.then(|| Self(at))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_disk_without_room_for_a_checkpoint_is_told_of_before_anything_is_written() {
    let world = World::new();
    let Some(_disk) = SmallDisk::mount(world.path("full"), 1 << 20) else {
        eprintln!("skipped: not allowed to mount a file system");
        return;
    };
    let refused = world.train("language", LANGUAGE, "full/run", &[]);
    assert_eq!(refused.code(), Some(1), "{}", refused.stderr());
    let stderr = refused.stderr();
    assert!(stderr.contains("full/run: 1048576 bytes free on its disk"), "{stderr}");
    assert!(!world.path("full/run").exists(), "something was written");
    let needed = stderr.split_once("a checkpoint takes ").unwrap().1;
    let needed: u64 = needed.split_once(';').unwrap().0.parse().unwrap();

    // Room for a first one, but not for a second one beside it.
    let _disk = SmallDisk::mount(world.path("small"), needed + (64 << 10)).unwrap();
    let stopped = world.train("language", LANGUAGE, "small/run", &[]);
    let stderr = stopped.stderr();
    assert_eq!(stopped.code(), Some(1), "{stderr}");
    assert!(stderr.contains("bytes free on its disk, but a checkpoint takes"), "{stderr}");
    let run = world.path("small/run");
    assert!(latest(&run).ends_with("step-3"));
    assert_eq!(outcome(&run).1, [1, 2, 3, 4, 5, 6]);
    let names: Vec<_> = std::fs::read_dir(run.join("checkpoints")).unwrap().collect();
    assert_eq!(names.len(), 1, "something of the second checkpoint was written");
    world.train("language", LANGUAGE, "other", &["--stop-after", "3"]).expect_success();
    assert!(outcome(&world.path("other")).0 == outcome(&run).0, "the last checkpoint is another");
}

/// What schedulers send before they take a machine away.
const TERM: &str = "TERM";
/// What Ctrl-C sends.
const INT: &str = "INT";

#[test]
fn a_signal_ends_a_run_at_a_checkpoint_and_it_goes_on_to_the_same_bytes() {
    let world = World::with_towers();
    let long = ["--set", "steps=100000", "--set", "checkpoint_every=100000"];
    let endless = FLAMINGO.replace("\"cosine\"", "\"constant\"");
    for (signal, code, words) in
        [(TERM, 0, "SIGTERM after step"), (INT, 130, "error: interrupted after step")]
    {
        let mut command = world.command("flamingo", &endless, signal, &long);
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        let run = world.path(signal);
        let started = Instant::now();
        while std::fs::metadata(run.join("metrics.jsonl")).map_or(0, |file| file.len()) == 0 {
            assert!(started.elapsed() < Duration::from_mins(1), "no step after a minute");
            std::thread::sleep(Duration::from_millis(5));
        }
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(words), "{stderr}");

        let steps = metrics(&run).len();
        assert!(latest(&run).ends_with(format!("step-{steps}")));
        let end = (steps + 3).to_string();
        let more = [&long[..], &["--resume", "--stop-after", &end]].concat();
        world.train("flamingo", &endless, signal, &more).expect_success();
        let whole = format!("{signal}-whole");
        world.train("flamingo", &endless, &whole, &more).expect_success();
        assert_same_outcome(&world.path(&whole), &run);
    }
}

/// Steps that a run's journal knows, in the order in which they went wrong, and the rows of each.
fn troubles(run: &Path) -> Vec<(u64, serde_json::Value)> {
    let state = std::fs::read(latest(run).join("state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
    let all = state["troubles"].as_array().unwrap().clone();
    all.into_iter().map(|one| (one["step"].as_u64().unwrap(), one["rows"].clone())).collect()
}

#[test]
fn a_run_goes_on_without_the_rows_of_steps_that_leap_however_it_is_stopped() {
    let world = World::new();
    // Any loss above the last one is a leap. An epoch is three steps.
    let leaps =
        ["--set", "guard.leap=1.000001", "--set", "guard.window=1", "--set", "guard.most=2"];
    let rest = ["--set", "steps=60", "--set", "checkpoint_every=5"];
    for action in ["skip", "roll_back"] {
        for mixture in ["accumulate", "merged"] {
            let action_set = format!("guard.action={action:?}");
            let mixture_set = format!("mixture={mixture:?}");
            let rest = [&rest[..], &["--set", &action_set, "--set", &mixture_set]].concat();
            let alike = ["--set", "data.pairs.weight=1.0"];
            let rest = [&rest[..], if mixture == "merged" { &alike } else { &[] }].concat();
            let train = |name: &str, more: &[&str]| {
                let name = format!("{action}-{mixture}-{name}");
                let args = [&rest, more].concat();
                (world.path(&name), world.train("language", LANGUAGE, &name, &args))
            };
            // The third leap stops the run; the others go before the step before it.
            let (_, finished) = train("probe", &leaps);
            let stderr = finished.stderr();
            assert_eq!(finished.code(), Some(1), "{stderr}");
            let error = stderr.rsplit_once("error: step ").unwrap().1;
            assert!(error.contains(" leaps to ") && error.contains("(dataset rows: p"), "{stderr}");
            let step: u64 = error.split_once(':').unwrap().0.parse().unwrap();

            let until = |name: &str, step: u64| {
                let step = step.to_string();
                let (run, finished) =
                    train(name, &[&leaps[..], &["--resume", "--stop-after", &step]].concat());
                finished.expect_success();
                run
            };
            let whole = until("whole", step - 1);
            let found = troubles(&whole);
            assert_eq!(found.len(), 2, "{stderr}");
            let rows = found[0].1.as_object().unwrap();
            assert_eq!(rows.len(), if mixture == "merged" { 2 } else { 1 }, "{stderr}");
            assert!(rows.values().all(|rows| rows.as_array().unwrap().len() == 2), "{stderr}");
            let html = std::fs::read_to_string(whole.join("report.html")).unwrap();
            assert!(html.contains("Steps that went wrong"), "the report is silent");

            for step in 1..step - 1 {
                until("stopped", step);
            }
            assert_same_outcome(&whole, &until("stopped", step - 1));
        }
    }
}

#[test]
fn a_run_that_was_stopped_by_a_step_tells_of_it_ever_after() {
    let world = World::new();
    let leaps = ["--set", "guard.leap=1.000001", "--set", "guard.window=1"];
    let steps = ["--set", "steps=60", "--set", "checkpoint_every=5"];
    let stopped = |run: &str| {
        let finished =
            world.train("language", LANGUAGE, run, &[&leaps[..], &steps, &["--resume"]].concat());
        let stderr = finished.stderr();
        assert_eq!(finished.code(), Some(1), "{stderr}");
        let error = stderr.rsplit_once("error: step ").unwrap().1;
        error.split_once(':').unwrap().0.parse::<u64>().unwrap()
    };
    let step = stopped("run");
    // Once more: the same rows are drawn.
    assert_eq!(stopped("run"), step);
    world
        .train("language", LANGUAGE, "run", &[&steps[..], &["--resume"]].concat())
        .expect_success();
    let run = world.path("run");
    let html = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert!(html.contains("the run stopped") && html.contains("leaps to"), "the report is silent");
    let state = std::fs::read(latest(&run).join("state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
    let stops = state["stops"].as_array().unwrap();
    assert_eq!(stops.len(), 2, "{state}");
    for stop in stops {
        assert_eq!(stop["step"].as_u64(), Some(step), "{state}");
    }
    // Its rows are learned from.
    assert_eq!(state["troubles"].as_array().map(Vec::len), Some(0), "{state}");
    world.train("language", LANGUAGE, "whole", &steps).expect_success();
    let weights = |run: &str| std::fs::read(latest(&world.path(run)).join("model.safetensors"));
    assert!(weights("run").unwrap() == weights("whole").unwrap(), "other weights");
}

#[test]
fn a_skipped_step_changes_no_weight_and_says_so() {
    let world = World::new();
    // After the first update no weight is of use.
    let set = ["--set", "optimizer.lr=1e30", "--set", "guard.action=\"skip\""];
    let train = |more: &[&str]| {
        let finished = world.train("language", LANGUAGE, "run", &[&set, more].concat());
        finished.expect_success();
        let weights = std::fs::read(latest(&world.path("run")).join("model.safetensors"));
        (finished.stderr(), weights.unwrap())
    };
    let (stderr, at_2) = train(&["--stop-after", "2"]);
    let run = world.path("run");
    assert!(stderr.contains("is NaN; the step is skipped, without its rows"), "{stderr}");
    let lines = metrics(&run);
    assert!(lines[0].get("skipped").is_none(), "{}", lines[0]);
    assert_eq!(lines[1]["skipped"], "the loss of dataset `pages` is NaN");
    assert!(lines[1]["loss"].is_null() && lines[1]["losses"].as_object().unwrap().is_empty());
    let (_, at_3) = train(&["--resume", "--stop-after", "3"]);
    assert!(at_2 == at_3, "a skipped step changed the weights");
    let steps: Vec<u64> = troubles(&run).into_iter().map(|(step, _)| step).collect();
    assert_eq!(steps, [2, 3], "{stderr}");
}

#[test]
fn a_run_that_begins_with_skipped_steps_goes_on_until_its_rows_are_used_up() {
    let world = World::new();
    // Beyond what an f32 holds: no gradient is finite. Each step takes two of six rows.
    let set = ["--set", "data.pages.weight=1e39", "--set", "guard.action=\"skip\"", "--resume"];
    for steps in ["1", "2"] {
        let args = [&set[..], &["--stop-after", steps]].concat();
        world.train("language", LANGUAGE, "run", &args).expect_success();
    }
    let before = outcome(&world.path("run"));
    let finished = world.train("language", LANGUAGE, "run", &set);
    assert_eq!(finished.code(), Some(1), "{}", finished.stderr());
    let words = "without its rows dataset `pages` would not fill a batch";
    assert!(finished.stderr().contains(words), "{}", finished.stderr());
    let report = std::fs::read_to_string(world.path("run").join("report.html")).unwrap();
    assert!(report.contains(words) && report.contains("the run stopped"), "the report is silent");
    assert!(before == outcome(&world.path("run")), "the last checkpoint does not stand");
}

#[test]
fn what_is_only_watched_is_no_trouble_and_loses_no_rows() {
    let world = World::new();
    let watched = "data.pages.weight=0.0";
    let skip = "guard.action=\"skip\"";
    let set = ["--set", watched, "--set", skip, "--set", "data.pairs.weight=1e39"];
    let args = [&set[..], &["--stop-after", "1"]].concat();
    world.train("language", LANGUAGE, "infinite", &args).expect_success();
    let (_, rows) = &troubles(&world.path("infinite"))[0];
    assert_eq!(rows.as_object().unwrap().keys().collect::<Vec<_>>(), ["pairs"]);

    // Nothing is learned, so each loss that is above the last one would be a leap of `pages`.
    let still = ["--set", "optimizer.lr=1e-30", "--set", "data.pairs.space_prefix_probability=0"];
    let leaps = ["--set", "guard.leap=1.000001", "--set", "guard.window=1"];
    let args = [&["--set", watched, "--stop-after", "9"], &still[..], &leaps].concat();
    let whole = LANGUAGE.replace("corpus = \"pairs\"\nbatch = 2", "corpus = \"pairs\"\nbatch = 6");
    world.train("language", &whole, "still", &args).expect_success();
    let losses = |line: serde_json::Value| line["losses"]["pages"].as_f64().unwrap();
    let pages: Vec<f64> = metrics(&world.path("still")).into_iter().map(losses).collect();
    assert!(pages.windows(2).any(|two| two[1] > 1.00001 * two[0]), "{pages:?}");
}
