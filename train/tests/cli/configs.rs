//! The configs that come with the project are read by the binary, and say what they promise.

use std::path::{Path, PathBuf};
use std::process::Command;

use flamingo_model::{
    CrossAttentionConfig, FlamingoConfig, NfnetConfig, ResamplerConfig, VisionConfig,
};
use toml::Table;

use crate::world::{FLAMINGO, Finished, World, latest, with_nfnet};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(name)
}

fn read(name: &str) -> Table {
    toml::from_str(&std::fs::read_to_string(path(name)).unwrap()).unwrap()
}

/// Whether a config passes every check, up to the first corpus or model that it needs, which is not there.
fn check(stage: &str, name: &str, set: &[String]) {
    let root = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-train"));
    command.arg(stage).arg("--config").arg(path(name)).arg("--root").arg(root.path());
    command.arg("--out").arg(root.path().join("out"));
    command.args(set.iter().flat_map(|change| ["--set", change]));
    let finished = Finished(command.output().unwrap());
    let stderr = finished.stderr();
    assert_eq!(finished.code(), Some(1), "{name} {set:?}: {stderr}");
    assert!(stderr.contains(root.path().to_str().unwrap()), "{name} {set:?}: {stderr}");
}

#[test]
fn every_config_of_training_passes_all_checks() {
    let stages = [
        ("contrastive", &["vision.toml", "paper-contrastive.toml"][..]),
        ("language", &["language.toml"]),
        ("flamingo", &["flamingo.toml", "paper-flamingo-3b.toml"]),
        ("finetune", &["finetune.toml"]),
    ];
    let mut n_checked = 0;
    for (stage, names) in stages {
        for name in names {
            check(stage, name, &[]);
            n_checked += 1;
        }
    }
    let names = std::fs::read_dir(path("")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let is_of_training = |name: &String| !name.starts_with("plan-") && name != "ablations.toml";
    assert_eq!(names.filter(is_of_training).count(), n_checked);
}

#[test]
fn every_ablation_passes_all_checks() {
    for row in read("ablations.toml")["row"].as_array().unwrap() {
        let set = row["set"].as_array().unwrap().iter();
        let set: Vec<String> = set.map(|change| change.as_str().unwrap().to_owned()).collect();
        check("flamingo", "flamingo.toml", &set);
    }
}

#[test]
fn the_papers_configs_have_the_papers_parts() {
    let preset = FlamingoConfig::preset("flamingo-3b").unwrap();
    let flamingo = read("paper-flamingo-3b.toml");
    let part = |name: &str| flamingo["model"][name].clone();
    let resampler: ResamplerConfig = part("resampler").try_into().unwrap();
    assert_eq!(resampler, preset.resampler);
    let cross_attention: CrossAttentionConfig = part("cross_attention").try_into().unwrap();
    assert_eq!(cross_attention, preset.cross_attention);
    let weights: Vec<(&str, f64)> = flamingo["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|data| (data["name"].as_str().unwrap(), data["weight"].as_float().unwrap()))
        .collect();
    assert_eq!(weights, [("m3w", 1.0), ("align", 0.2), ("ltip", 0.2), ("vtp", 0.03)]);
    let vision = read("paper-contrastive.toml")["model"]["vision"].clone();
    let vision: VisionConfig = vision.try_into().unwrap();
    assert_eq!(vision, NfnetConfig::named("f6", 288).unwrap().into());
}

/// As the paper does: 288 pixels in the contrastive stage, then 320.
#[test]
fn an_nfnet_of_a_run_takes_images_of_another_size() {
    let world = World::with_towers();
    let steps = ["--set", "steps=1"];
    world.train("contrastive", &with_nfnet(), "nfnet", &steps).expect_success();
    let on_nfnet = FLAMINGO.replace("vision = \"vision\"", "vision = \"nfnet\"");
    let larger = on_nfnet.replace("size = 16", "size = 64");
    world.train("flamingo", &larger, "larger", &steps).expect_success();
    let config = std::fs::read_to_string(latest(&world.path("larger")).join("config.json"));
    let config: serde_json::Value = serde_json::from_str(&config.unwrap()).unwrap();
    assert_eq!(config["vision"]["image_size"], 64);
    let squash = larger.replace("mean_pad", "squash");
    let refused = world.train("flamingo", &squash, "squash", &steps);
    assert_eq!(refused.code(), Some(2), "{}", refused.stderr());
    assert!(refused.stderr().contains("`image.fit` is \"squash\""), "{}", refused.stderr());
}
