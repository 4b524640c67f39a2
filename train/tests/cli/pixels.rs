//! Pixels that leave the loader as values of 256 teach what numbers do, to the last bit.

use std::path::Path;
use std::process::Command;

use flamingo_dataset::{EncodedImage, Row, sha256_hex};

use crate::plan::files;
use crate::resume::assert_same_outcome;
use crate::world::{CONTRASTIVE, FLAMINGO, Finished, World, metrics, pair, with_nfnet};

/// A pair whose picture leaves a border, has many colours, and is not its own mirror image.
fn oblong(index: usize) -> Row {
    let Row::ImageText(mut row) = pair(index) else { unreachable!() };
    let (width, height) = [(23, 10), (9, 31), (16, 16), (40, 37)][index % 4];
    let i = index as u32;
    let picture = image::RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([x * 11 + i * 31, y * 8, x * y + 5 * i].map(|value| (value % 256) as u8))
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    row.image = EncodedImage { bytes: bytes.into_inner().into(), path: None };
    row.sha256 = sha256_hex(&row.image.bytes);
    Row::ImageText(row)
}

/// A config whose pairs are oblong and whose images all change: flips are half of them, as where nothing is said.
pub(crate) fn changing(world: &World, config: &str) -> String {
    if !world.path("oblong").exists() {
        world.write_corpus("oblong", &(0..8).map(oblong).collect::<Vec<_>>());
    }
    let config = config.replace("colour_jitter = 0.2\n", "");
    let config = config.replace("corpus = \"pairs\"", "corpus = \"oblong\"");
    config.replace("[[data]]\n", "[[data]]\ncolour_jitter = 0.4\n")
}

/// A config whose pixels leave the loader as numbers, as they did where nothing was said.
pub(crate) fn in_f32(config: &str) -> String {
    let config = config.replace("[[data]]\n", "[[data]]\npixels = \"f32\"\n");
    config.replace("[[validation.data]]\n", "[[validation.data]]\npixels = \"f32\"\n")
}

/// What each step of a run measured.
fn measured(run: &Path) -> Vec<[serde_json::Value; 3]> {
    let of =
        |line: &serde_json::Value| ["losses", "grad_norm", "observed"].map(|key| line[key].clone());
    metrics(run).iter().map(of).collect()
}

#[test]
fn values_of_256_train_the_same_weights_and_runs_go_on_with_them() {
    let world = World::with_towers();
    // Where a run may end by it, what is held out must stay what it is.
    let held_out = "[validation]\nevery = 2\nbatches = 1\n[[validation.data]]\nname = \"held\"\n\
                    corpus = \"pairs\"\nbatch = 2\ntokens = 24\nimages = 1\n\
                    [early_stop]\nmetric = \"validation.held.nll\"\npatience = 9\n\
                    better = \"lower\"\n";
    for (name, stage, config) in [
        ("vit", "contrastive", CONTRASTIVE.to_owned()),
        ("nfnet", "contrastive", with_nfnet()),
        ("flamingo", "flamingo", format!("{FLAMINGO}{held_out}")),
    ] {
        let config = changing(&world, &config);
        let run = |kind: &str| format!("{name}-{kind}");
        world.train(stage, &in_f32(&config), &run("f32"), &[]).expect_success();
        world.train(stage, &config, &run("u8"), &[]).expect_success();
        assert_same_outcome(&world.path(&run("f32")), &world.path(&run("u8")));
        assert_eq!(measured(&world.path(&run("f32"))), measured(&world.path(&run("u8"))));
        // As a run goes on that was begun when `f32` was what stood where nothing is said.
        let old = ["--stop-after", "3"];
        world.train(stage, &in_f32(&config), &run("old"), &old).expect_success();
        world.train(stage, &config, &run("old"), &["--resume"]).expect_success();
        assert_same_outcome(&world.path(&run("f32")), &world.path(&run("old")));
        let unchanged = config.replace("colour_jitter = 0.4\n", "flip_probability = 0.0\n");
        world.train(stage, &unchanged, &run("unchanged"), &[]).expect_success();
        assert_ne!(measured(&world.path(&run("u8"))), measured(&world.path(&run("unchanged"))));
    }
}

#[test]
fn features_that_are_kept_and_batches_that_are_written_are_the_same() {
    let world = World::with_towers();
    let folder = world.path("features");
    let keeping = format!("{FLAMINGO}\n[feature_cache]\nfolder = {:?}\n", folder.display());
    let config = changing(&world, &keeping);
    world.train("flamingo", &in_f32(&config), "f32", &[]).expect_success();
    let kept = files(&folder);
    assert!(!kept.is_empty());
    world.train("flamingo", &config, "u8", &[]).expect_success();
    assert!(files(&folder) == kept, "features were made anew");
    assert_same_outcome(&world.path("f32"), &world.path("u8"));

    let [numbers, values] = ["f32", "u8"].map(|run| {
        let (run, out) = (world.path(run), world.path(&format!("{run}-batches")));
        let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-train"));
        command.args(["batches", "--steps", "4"]).arg("--config").arg(run.join("config.toml"));
        command.arg("--root").arg(world.path("")).arg("--out").arg(&out);
        command.arg("--tokenizer").arg(run.join("tokenizer.json"));
        Finished(command.output().unwrap()).expect_success();
        files(&out)
    });
    assert_eq!(numbers.len(), 4);
    assert!(numbers.values().eq(values.values()), "batches differ");
}
