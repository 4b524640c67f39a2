//! What a user sees of a run: beside its losses, and changing none of them.

use std::path::Path;

use flamingo_model::Tensors;

use crate::world::{FLAMINGO, World, latest, metrics};

/// Weights and moments of the last checkpoint.
fn weights(run: &Path) -> [Vec<u8>; 2] {
    ["model.safetensors", "optimizer.safetensors"]
        .map(|name| std::fs::read(latest(run).join(name)).unwrap())
}

#[test]
fn a_step_tells_its_samples_operations_and_memory() {
    let world = World::with_towers();
    let set = ["--set", "hardware.peak_tflops=0.5", "--stop-after", "3"];
    let finished = world.train("flamingo", FLAMINGO, "run", &set);
    finished.expect_success();
    assert!(finished.stderr().contains(" samples/s "), "{}", finished.stderr());
    let lines = metrics(&world.path("run"));
    let flops = lines.iter().map(|line| {
        let machine = &line["machine"];
        let [tflops, mfu] = ["tflops", "mfu"].map(|key| machine[key].as_f64().unwrap());
        assert!((mfu - tflops / 0.5).abs() <= 1e-12 * mfu, "{line}");
        let bytes = |key: &str| machine[key].as_u64();
        if cfg!(target_os = "linux") {
            assert!(bytes("memory_bytes") > Some(1 << 20), "{line}");
            assert!(bytes("memory_peak_bytes") >= bytes("memory_bytes"), "{line}");
        }
        assert_eq!(line["samples"], 2 + 3 + 1);
        tflops * line["seconds"].as_f64().unwrap() * 1e12
    });
    // Rows of pages, pairs and clips: 48, 24 and 32 tokens; 4 patches and a class for each frame.
    let model = Tensors::open(&latest(&world.path("run")).join("model.safetensors")).unwrap();
    let n = |part: &str| {
        let names = model.names().filter(|name| name.starts_with(part));
        names.map(|name| model.get(name).unwrap().len()).sum::<usize>()
    };
    let tokens = 2 * 48 + 3 * 24 + 32;
    let (latents, visual) = ((2 * 2 + 3 + 1) * 3, (2 * 2 + 3 + 2) * (4 + 1));
    let expected = 4 * n("language.") * tokens
        + 6 * n("cross_attention.") * tokens
        + 6 * n("resampler.") * latents
        + 2 * n("vision.") * visual;
    for flop in flops {
        assert!((flop / expected as f64 - 1.0).abs() < 1e-9, "{flop}, not {expected}");
    }
    let html = std::fs::read_to_string(world.path("run").join("report.html")).unwrap();
    for title in ["Samples per second", "(MFU)", "Images for 1,000 predicted tokens"] {
        assert!(html.contains(title), "no {title}");
    }
    // Another machine may go on.
    let more = ["--resume", "--set", "hardware.peak_tflops=2.0"];
    world.train("flamingo", FLAMINGO, "run", &more).expect_success();
    world.train("flamingo", FLAMINGO, "whole", &[]).expect_success();
    assert!(weights(&world.path("run")) == weights(&world.path("whole")), "other weights");
    assert!(metrics(&world.path("whole"))[0]["machine"].get("mfu").is_none());
}

#[test]
fn what_cross_attention_adds_is_measured_and_changes_nothing() {
    let world = World::with_towers();
    let run = world.path("run");
    let train = |more: &[&str]| world.train("flamingo", FLAMINGO, "run", more).expect_success();
    train(&["--set", "gates_every=3", "--stop-after", "5"]);
    train(&["--resume", "--set", "gates_every=2"]);
    world.train("flamingo", FLAMINGO, "whole", &[]).expect_success();
    assert!(weights(&run) == weights(&world.path("whole")), "other weights");
    let of_step = |line: &serde_json::Value| -> Vec<f64> {
        let names = ["0.attention", "0.feed_forward", "1.attention", "1.feed_forward"];
        let ratio = |name: &&str| line["observed"][format!("gate_ratio.{name}")].as_f64();
        names.iter().filter_map(ratio).collect()
    };
    let lines = metrics(&run);
    let looked: Vec<usize> = (1..=8).filter(|step| !of_step(&lines[step - 1]).is_empty()).collect();
    assert_eq!(looked, [1, 4, 7]);
    assert_eq!(of_step(&lines[0]), [0.0; 4], "gates are closed before the first update");
    let opened = of_step(&lines[6]);
    assert!(opened.len() == 4 && opened.iter().all(|ratio| *ratio > 0.0), "{opened:?}");
    let html = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert!(html.contains("Observed: gate_ratio"), "no chart");
}
