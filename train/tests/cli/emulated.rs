//! Runs on an emulated GPU follow those on the CPU, and go on where the others stopped.

use std::path::Path;
use std::rc::Rc;

use flamingo_model::{Device, Precision};
use flamingo_train::collective::Alone;
use flamingo_train::command::{Purpose, Told};
use flamingo_train::device::DeviceArgs;
use flamingo_train::run_folder::Start;
use flamingo_train::{Command, TrainError, contrastive, flamingo, language};

use crate::pixels::{changing, in_f32};
use crate::resume::assert_same_outcome;
use crate::world::{STAGES, World, latest, metrics, with_nfnet};

/// Trains on a device, up to a step.
fn train(world: &World, stage: &str, run: &str, device: Device, stop_after: u64) {
    let (_, config) = STAGES.iter().find(|(name, _)| *name == stage).unwrap();
    train_by(config, world, stage, run, device, stop_after).unwrap();
}

fn train_by(
    config: &str,
    world: &World,
    stage: &str,
    run: &str,
    device: Device,
    stop_after: u64,
) -> Result<Told, TrainError> {
    let path = world.path(&format!("{stage}.toml"));
    std::fs::write(&path, config).unwrap();
    let command = Command {
        config: path,
        root: Some(world.path("")),
        out: world.path(run),
        start: Start::Resume,
        overrides: Vec::new(),
        stop_after: Some(stop_after),
        device: DeviceArgs { ready: Some(device), ..DeviceArgs::default() },
        ranks: Rc::new(Alone),
        purpose: Purpose::Train,
    };
    let run: fn(&Command) -> Result<Told, TrainError> = match stage {
        "contrastive" => contrastive::run,
        "language" => language::run,
        _ => flamingo::run,
    };
    run(&command)
}

/// The objective and the norm of the gradient of each step.
fn curve(run: &Path) -> Vec<f64> {
    let both =
        |line: &serde_json::Value| ["loss", "grad_norm"].map(|key| line[key].as_f64().unwrap());
    metrics(run).iter().flat_map(both).collect()
}

fn assert_close(expected: &Path, found: &Path, tolerance: f64) {
    let (expected, found) = (curve(expected), curve(found));
    assert_eq!(expected.len(), found.len());
    for (number, (expected, found)) in expected.iter().zip(&found).enumerate() {
        let error = (expected - found).abs() / expected.abs().max(1.0);
        assert!(error < tolerance, "number {number}: {found}, the CPU has {expected}");
    }
}

#[test]
fn every_stage_follows_the_cpu_and_goes_on_there_and_back() {
    let world = World::with_towers();
    let (cpu, gpu) = (Device::cpu(), Device::emulated(Precision::F32));
    for (stage, _) in STAGES {
        let name = |run: &str| format!("{stage}-{run}");
        train(&world, stage, &name("cpu"), cpu, 6);
        train(&world, stage, &name("away"), gpu, 3);
        train(&world, stage, &name("away"), cpu, 5);
        train(&world, stage, &name("away"), gpu, 6);
        assert_close(&world.path(&name("cpu")), &world.path(&name("away")), 1e-4);
        let run = world.path(&name("away"));
        let state = std::fs::read(latest(&run).join("state.json")).unwrap();
        let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
        let devices = serde_json::json!({
            "0": "emulated (f32)", "3": "CPU (f32)", "5": "emulated (f32)"
        });
        assert_eq!(state["devices"], devices);
        let report = std::fs::read_to_string(run.join("report.html")).unwrap();
        assert!(report.contains("emulated (f32), after step 3 CPU (f32), after step 5 emulated"));
    }
}

/// That a fresh model equals its language model to the last bit is checked at the first step.
#[test]
fn a_flamingo_in_bf16_follows_the_cpu_from_afar() {
    let world = World::with_towers();
    train(&world, "flamingo", "cpu", Device::cpu(), 3);
    train(&world, "flamingo", "bf16", Device::emulated(Precision::Bf16), 3);
    assert_close(&world.path("cpu"), &world.path("bf16"), 3e-2);
}

/// The GPU augments and normalises, for either kind of vision tower.
#[test]
fn pixels_that_a_gpu_augments_are_those_of_the_cpu() {
    let world = World::with_towers();
    let flamingo = STAGES[2].1;
    for (stage, config) in [("contrastive", with_nfnet()), ("flamingo", flamingo.to_owned())] {
        let config = changing(&world, &config);
        let name = |run: &str| format!("{stage}-{run}");
        train_by(&config, &world, stage, &name("cpu"), Device::cpu(), 3).unwrap();
        let gpu = Device::emulated(Precision::F32);
        train_by(&config, &world, stage, &name("gpu"), gpu, 3).unwrap();
        assert_close(&world.path(&name("cpu")), &world.path(&name("gpu")), 1e-4);
        // Of numbers that the loader made, the GPU makes the same, to the last bit.
        train_by(&in_f32(&config), &world, stage, &name("numbers"), gpu, 3).unwrap();
        assert_same_outcome(&world.path(&name("numbers")), &world.path(&name("gpu")));
    }
}

#[test]
fn a_gpu_without_room_for_the_weights_tells_what_takes_how_much() {
    let world = World::with_towers();
    let device = Device::emulated_with_room(Precision::F32, 5000);
    let error = train_by(STAGES[2].1, &world, "flamingo", "full", device, 3).unwrap_err();
    let line = error.one_line();
    for part in
        ["the GPU has no room for this model: no precision", "of a GPU in f32 (", "language "]
    {
        assert!(line.contains(part), "{line}");
    }
    assert!(
        line.contains("which has 5000 bytes free of 5000 bytes; with `--device cpu`"),
        "{line}"
    );
    // Nothing stands in the way of the same run on the CPU.
    train(&world, "flamingo", "full", Device::cpu(), 3);
}
