//! Several ranks train as one process does. Needs `mpirun`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flamingo_model::Tensors;
use serde_json::Value;

use crate::micro_batches::assert_same_metrics;
use crate::world::{CONTRASTIVE, FLAMINGO, Finished, LANGUAGE, World, latest, metrics};

/// A command of ours as so many ranks, which share what processors there are.
fn on_ranks(n: usize, command: &Command) -> Command {
    let mut ranks = Command::new("mpirun");
    ranks.args(["-n", &n.to_string(), "--allow-run-as-root", "--oversubscribe"]);
    ranks.args(["--bind-to", "none", "--mca", "btl_vader_single_copy_mechanism", "none"]);
    ranks.env("RAYON_NUM_THREADS", "1");
    ranks.arg(command.get_program()).args(command.get_args());
    ranks
}

fn train(world: &World, n: usize, config: &str, run: &str, more: &[&str]) -> Finished {
    let stage = match config {
        _ if config.contains("[model.resampler]") => "flamingo",
        _ if config.contains("embedding = ") => "contrastive",
        _ => "language",
    };
    let command = world.command(stage, config, run, more);
    if n == 1 {
        return world.train(stage, config, run, more);
    }
    Finished(on_ranks(n, &command).output().unwrap())
}

/// Batches that four ranks can share.
fn for_four(config: &str) -> String {
    let fours = ["batch = 1\n", "batch = 2\n", "batch = 3\n"];
    fours.iter().fold(config.to_owned(), |text, batch| text.replace(batch, "batch = 4\n"))
}

/// Weights or moments of the last checkpoint.
fn tensors(run: &Path, file: &str) -> Tensors {
    Tensors::open(&latest(run).join(file)).unwrap()
}

/// Fails unless the last checkpoints of two runs are alike but for the rounding of sums.
fn assert_close_checkpoints(found: &Path, expected: &Path, most: f32) {
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let (found, expected) = (tensors(found, file), tensors(expected, file));
        let names = |all: &Tensors| all.names().map(ToOwned::to_owned).collect::<Vec<String>>();
        assert_eq!(names(&found), names(&expected), "{file}");
        for name in names(&expected) {
            let pairs = found.get(&name).unwrap().iter().zip(expected.get(&name).unwrap());
            let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < most, "{file} {name} differs by {worst}");
        }
    }
}

fn assert_same_bytes(found: &Path, expected: &Path) {
    for file in ["model.safetensors", "optimizer.safetensors", "state.json"] {
        let [found, expected] =
            [found, expected].map(|run| std::fs::read(latest(run).join(file)).unwrap());
        assert!(found == expected, "{file} differs");
    }
}

/// What a name under `observed` ends in.
fn measure(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or_default()
}

#[test]
fn one_two_and_four_ranks_measure_and_learn_the_same() {
    let world = World::with_towers();
    // The norm is clipped, images are looked at, a row stands in for a corrupt one: none of it is one
    // rank's affair. Few steps and a low rate: rounding grows as a run goes on.
    let more = ["--set", "steps=3", "--set", "blindness_every=1", "--set", "gates_every=1"];
    let more = [&more[..], &["--set", "optimizer.lr=1e-3", "--set", "ema.decay=0.5"]].concat();
    let more = [&more[..], &["--set", "z_loss=0.01"]].concat();
    for (name, mixture) in [("each", "accumulate"), ("all", "merged"), ("turn", "round_robin")] {
        let mut config = for_four(FLAMINGO);
        if mixture == "merged" {
            config = config.replace("images = 1\nframes = 2\n", "images = 1\n");
            config = config.replace("corpus = \"clips\"", "corpus = \"pairs\"");
            config = config.replace("weight = 0.2", "weight = 1.0");
            config = config.replace("weight = 0.03", "weight = 1.0");
        }
        let set = format!("mixture={mixture:?}");
        let mut more = [&more[..], &["--set", &set]].concat();
        if mixture == "accumulate" {
            more.extend(["--set", "accounting_every=2"]);
        }
        let run = |n: usize| world.path(&format!("{name}-{n}"));
        // Images are shuffled among the rows of a rank. Halves of a batch are the shares of two ranks, but not
        // those of four; one sequence in each has a noise scale, too.
        let without = |lines: &[Value], measures: &[&str]| {
            let mut lines = lines.to_vec();
            for line in &mut lines {
                let is_one = mixture == "accumulate" && line["step"].as_u64() != Some(2);
                let observed = line["observed"].as_object_mut().unwrap();
                let noise = observed.iter().filter(|(name, _)| measure(name) == "noise");
                let noise: Vec<&Value> = noise.map(|(_, noise)| noise).collect();
                assert!(noise.iter().all(|noise| noise.is_f64()));
                assert_eq!(noise.len(), if is_one { 3 } else { 0 });
                observed.retain(|name, _| !measures.iter().any(|of| name.ends_with(of)));
            }
            lines
        };
        let measured = |n: usize| {
            let finished = train(&world, n, &config, &format!("{name}-{n}"), &more);
            finished.expect_success();
            metrics(&run(n))
        };
        let alone = measured(1);
        for (n, unlike) in
            [(2, &["shuffled"][..]), (4, &["shuffled", ".signal", ".noise", ".noise_scale"])]
        {
            assert_same_metrics(&without(&measured(n), unlike), &without(&alone, unlike), 1e-6);
            assert_close_checkpoints(&run(n), &run(1), 2e-5);
        }
    }
}

/// Each pair is compared with those of the other ranks, too.
#[test]
fn contrast_is_that_of_all_pairs_whoever_has_them() {
    let world = World::new();
    let watched = "[[data]]\nname = \"watched\"\ncorpus = \"pairs\"\nbatch = 4\nweight = 0.0\n\
                   tokens = 24\nimages = 1\n";
    let config = CONTRASTIVE.replace("batch = 6", "batch = 4");
    let config = format!("{config}\n{watched}").replace("smoothing = 0.0", "smoothing = 0.1");
    let more = ["--set", "steps=3", "--set", "optimizer.lr=1e-4", "--set", "ema.decay=0.5"];
    let run = |n: usize| world.path(&format!("run-{n}"));
    for n in [1, 2, 4] {
        train(&world, n, &config, &format!("run-{n}"), &more).expect_success();
    }
    let alone = metrics(&run(1));
    assert_eq!(alone[0]["losses"].as_object().map(serde_json::Map::len), Some(2));
    for n in [2, 4] {
        let found = metrics(&run(n));
        assert_same_metrics(&found[..1], &alone[..1], 1e-6);
        // Later steps begin with weights that were rounded otherwise, which pairs in contrast make more of.
        assert_same_metrics(&found, &alone, 5e-6);
        assert_close_checkpoints(&run(n), &run(1), 2e-5);
    }
    train(&world, 2, &config, "stopped", &[&more[..], &["--stop-after", "2"]].concat())
        .expect_success();
    train(&world, 2, &config, "stopped", &[&more[..], &["--resume"]].concat()).expect_success();
    assert_same_bytes(&world.path("stopped"), &run(2));
}

#[test]
fn ranks_work_through_a_grid_together() {
    let world = World::new();
    let config =
        for_four(LANGUAGE).replace("[optimizer]", "[grid]\nlr = [1e-4, 1e30, 2e-4]\n\n[optimizer]");
    let few = ["--set", "steps=4"];
    for n in [1, 2] {
        let finished = train(&world, n, &config, &format!("grid-{n}"), &few);
        assert_eq!(finished.code(), Some(1), "{}", finished.stderr());
        assert!(finished.stderr().contains("1 of 3 points failed, see "), "{}", finished.stderr());
    }
    let summary = |n: usize| {
        let text = std::fs::read(world.path(&format!("grid-{n}/summary.json"))).unwrap();
        let summary: Value = serde_json::from_slice(&text).unwrap();
        let points = summary["points"].as_array().unwrap().clone();
        points
            .into_iter()
            .map(|p| (p["point"].clone(), p["status"].clone(), p["steps"].clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(summary(2), summary(1));
    assert_eq!(summary(2)[1].1, "failed");
    for point in ["lr=1e-4", "lr=2e-4"] {
        let [two, one] = [2, 1].map(|n| world.path(&format!("grid-{n}/{point}")));
        assert_same_metrics(&metrics(&two), &metrics(&one), 1e-6);
        assert_close_checkpoints(&two, &one, 2e-5);
    }
    // What is done is not done again.
    let finished = train(&world, 2, &config, "grid-2", &[&few[..], &["--resume"]].concat());
    assert_eq!(finished.code(), Some(1), "{}", finished.stderr());
    assert!(finished.stderr().contains("lr=2e-4 (3 of 3): is done"), "{}", finished.stderr());
}

#[test]
fn a_step_of_several_ranks_is_made_again_by_one_but_for_rounding() {
    let world = World::new();
    let more = ["--stop-after", "3", "--set", "optimizer.lr=1e-3"];
    train(&world, 2, &for_four(LANGUAGE), "run", &more).expect_success();
    let mut replay = Command::new(env!("CARGO_BIN_EXE_flamingo-train"));
    replay.arg("replay").arg("--run").arg(world.path("run")).args(["--step", "2"]);
    let replayed = Finished(replay.output().unwrap());
    replayed.expect_success();
    assert!(replayed.stdout().contains("made by 2 ranks"), "{}", replayed.stdout());
}

#[test]
fn stopped_ranks_go_on_to_the_same_bytes_and_other_numbers_of_them_go_on_too() {
    let world = World::new();
    let config = for_four(LANGUAGE);
    train(&world, 2, &config, "whole", &[]).expect_success();
    train(&world, 2, &config, "stopped", &["--stop-after", "4"]).expect_success();
    train(&world, 2, &config, "stopped", &["--resume"]).expect_success();
    assert_same_bytes(&world.path("stopped"), &world.path("whole"));

    train(&world, 1, &config, "alone", &[]).expect_success();
    train(&world, 4, &config, "mixed", &["--stop-after", "2"]).expect_success();
    train(&world, 1, &config, "mixed", &["--resume", "--stop-after", "5"]).expect_success();
    train(&world, 2, &config, "mixed", &["--resume"]).expect_success();
    let [mixed, alone] = ["mixed", "alone"].map(|run| metrics(&world.path(run)));
    assert_same_metrics(&mixed, &alone, 1e-4);
}

#[test]
fn steps_that_go_wrong_are_left_out_on_all_ranks_alike() {
    let world = World::new();
    let config = LANGUAGE.replace("batch = 2", "batch = 2\nspace_prefix_probability = 0.0");
    for action in ["skip", "roll_back"] {
        let set = format!("guard.action={action:?}");
        let leaps = ["--set", &set, "--set", "guard.leap=1.01", "--set", "guard.window=1"];
        let more = [&leaps[..], &["--set", "guard.most=1", "--set", "checkpoint_every=2"]].concat();
        let ended = [1, 2].map(|n| {
            let run = format!("{action}-{n}");
            let finished =
                train(&world, n, &config, &run, &[&more[..], &["--set", "steps=30"]].concat());
            let stderr = finished.stderr();
            let told =
                |line: &&str| line.contains("; the step is skipped") || line.contains("goes back");
            let told: Vec<String> = stderr.lines().filter(told).map(ToOwned::to_owned).collect();
            let state =
                std::fs::read_to_string(latest(&world.path(&run)).join("state.json")).unwrap();
            let state: Value = serde_json::from_str(&state).unwrap();
            (told.len(), state["troubles"][0]["step"].clone(), state["troubles"][0]["rows"].clone())
        });
        assert_eq!(ended[0], ended[1]);
        assert_eq!(ended[0].0, 1, "one trouble is told of, once");
    }
}

#[test]
fn a_killed_rank_ends_the_job_and_it_goes_on_from_the_last_checkpoint() {
    let world = World::new();
    let config = for_four(LANGUAGE);
    let long = ["--set", "steps=100000", "--set", "checkpoint_every=2"];
    let command = world.command("language", &config, "run", &long);
    let mut job = on_ranks(2, &command);
    let job = job.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let run = world.path("run");
    let started = Instant::now();
    while !run.join("latest").exists() {
        assert!(started.elapsed() < Duration::from_mins(2), "no checkpoint after two minutes");
        std::thread::sleep(Duration::from_millis(20));
    }
    let victim = child_of(job.id(), "OMPI_COMM_WORLD_RANK=1");
    assert!(Command::new("kill").args(["-9", &victim]).status().unwrap().success());
    let output = job.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{stderr}");
    assert!(stderr.contains("rank 1") && stderr.contains("signal 9"), "{stderr}");

    let step: u64 = latest(&run).to_str().unwrap().rsplit_once('-').unwrap().1.parse().unwrap();
    let end = (step + 3).to_string();
    let more = [&long[..], &["--resume", "--stop-after", &end]].concat();
    train(&world, 2, &config, "run", &more).expect_success();
    assert!(latest(&run).ends_with(format!("step-{end}")));
    let steps: Vec<u64> = metrics(&run).iter().map(|m| m["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=step + 3).collect::<Vec<_>>());
    train(&world, 2, &config, "whole", &[&long[..], &["--stop-after", &end]].concat())
        .expect_success();
    assert_same_bytes(&run, &world.path("whole"));
}

/// The number of the process below another that has this variable.
fn child_of(parent: u32, variable: &str) -> String {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let mut found = processes.filter_map(|entry| {
        let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
        let is_child = status.lines().any(|line| line == format!("PPid:\t{parent}"));
        let environment = std::fs::read(entry.path().join("environ")).ok()?;
        let has_it = environment.split(|byte| *byte == 0).any(|one| one == variable.as_bytes());
        (is_child && has_it).then(|| entry.file_name().to_str().unwrap().to_owned())
    });
    found.next().unwrap()
}

/// Each has its share of a batch, and the first one the moments of all while it makes a checkpoint.
#[test]
fn a_dry_run_of_ranks_counts_what_the_first_of_them_holds() {
    let world = World::with_towers();
    for config in [LANGUAGE, FLAMINGO] {
        let planned = |n: usize, config: &str| {
            let planned = train(&world, n, config, "run", &["--dry-run"]);
            planned.expect_success();
            let text = planned.stdout();
            let start = text.find("\nmemory").unwrap();
            let lines = text[start..].trim_start().lines().map(ToOwned::to_owned);
            let (told, rows): (Vec<_>, Vec<_>) = lines
                .take_while(|line| !line.starts_with("activations are"))
                .partition(|line| line.starts_with("memory"));
            (told.concat(), rows)
        };
        let config = for_four(config);
        let half = config.replace("batch = 4", "batch = 2");
        let (told, of_two) = planned(2, &config);
        assert!(told.starts_with("memory of the first of 2 ranks,"), "{told}");
        let (told, alone) = planned(1, &half);
        assert!(told.starts_with("memory, in f32"), "{told}");
        assert_eq!(of_two, alone);
        assert!(of_two.iter().any(|row| row.starts_with("activations, estimated")), "{of_two:?}");
        assert_ne!(of_two, planned(1, &config).1);
    }
}

#[test]
fn what_ranks_cannot_do_is_refused_before_the_first_step() {
    let world = World::new();
    let refused = |stage: &str, config: &str, words: &str| {
        let command = world.command(stage, config, "refused", &[]);
        let output = on_ranks(2, &command).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(words), "{stderr}");
        assert!(!world.path("refused").exists());
    };
    let odd = LANGUAGE.replacen("batch = 2", "batch = 3", 1);
    let words = "`data.pages.batch` is 3, expected a multiple of the 2 ranks";
    refused("language", &odd, words);
    let cut = LANGUAGE.replacen("batch = 2", "batch = 2\nmicro_batches = 2", 1);
    let words = "is 2, expected a multiple of the 2 ranks times 2 micro_batches";
    refused("language", &cut, words);
}
