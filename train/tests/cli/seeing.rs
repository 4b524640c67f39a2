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
