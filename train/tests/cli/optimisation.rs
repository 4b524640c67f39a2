//! Groups of weights, clipping by unit, averaged weights, the term beside the loss, rows of marks: they do
//! what the config says, and resume.

use std::path::Path;
use std::process::Command;

use flamingo_dataset::Tokenizer;
use flamingo_model::Tensors;

use crate::export::open_flamingo;
use crate::resume::assert_same_outcome;
use crate::world::{CONTRASTIVE, FLAMINGO, Finished, LANGUAGE, STAGES, World, latest, metrics};

/// The paper's clipping in the contrastive stage (appendix B.1.3).
const PAPER_GROUPS: &str = r#"
[[optimizer.group]]
name = "vision"
match = ["vision"]
agc = 1e-2

[[optimizer.group]]
name = "text"
match = ["text"]
clip_norm = 10.0
"#;

fn with_groups(config: &str, groups: &str) -> String {
    let (head, rest) = config.split_once("schedule = ").unwrap();
    let (schedule, rest) = rest.split_once('\n').unwrap();
    format!("{head}schedule = {schedule}\n{groups}\n{rest}")
}

fn export(world: &World, from: &str, format: &str, to: &str) -> Finished {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-train"));
    command.current_dir(world.path(""));
    command.args(["export", "--model", from, "--format", format, "--out", to]);
    Finished(command.output().unwrap())
}

fn with_ema(config: &str) -> String {
    config.replacen("[optimizer]", "[ema]\ndecay = 0.75\nwarmup = \"by-updates\"\n\n[optimizer]", 1)
}

#[test]
fn norms_of_groups_are_logged_and_add_up() {
    let world = World::with_towers();
    let few = ["--set", "steps=3"];
    world.train("flamingo", FLAMINGO, "default", &few).expect_success();
    let config = with_groups(CONTRASTIVE, PAPER_GROUPS);
    world.train("contrastive", &config, "paper", &few).expect_success();
    let tower = FLAMINGO.replace("[model]\n", "[model]\nlanguage_weights = \"fine-tuned\"\n");
    world.train("flamingo", &tower, "tuned", &few).expect_success();
    for (run, expected) in [
        ("default", &["cross_attention", "resampler"][..]),
        ("tuned", &["cross_attention", "language", "resampler"]),
        ("paper", &["log_beta", "text", "text_projection", "vision", "vision_projection"]),
    ] {
        for line in metrics(&world.path(run)) {
            let observed = line["observed"].as_object().unwrap();
            let norms = observed.iter().filter_map(|(key, norm)| {
                Some((key.strip_prefix("grad_norm.")?, norm.as_f64().unwrap()))
            });
            let (names, norms): (Vec<_>, Vec<_>) = norms.unzip();
            assert_eq!(names, expected, "{run}");
            let all = norms.iter().map(|norm| norm * norm).sum::<f64>().sqrt();
            assert!((all / line["grad_norm"].as_f64().unwrap() - 1.0).abs() < 1e-12, "{line}");
        }
    }
}

#[test]
fn groups_change_what_is_learned_and_a_stopped_run_ends_as_a_whole_one() {
    let world = World::with_towers();
    for (stage, config) in STAGES {
        let part = if stage == "flamingo" { "resampler" } else { "blocks" };
        let groups = format!(
            "[[optimizer.group]]\nname = \"units\"\nmatch = [{part:?}]\nagc = 0.01\nlr_scale = 0.5\n"
        );
        let config = with_ema(&with_groups(config, &groups));
        let run = |name: &str, more: &[&str]| {
            let name = format!("{stage}-{name}");
            world.train(stage, &config, &name, more).expect_success();
            world.path(&name)
        };
        let whole = run("whole", &[]);
        run("stopped", &["--stop-after", "2"]);
        run("stopped", &["--resume", "--stop-after", "5"]);
        assert_same_outcome(&whole, &run("stopped", &["--resume"]));
        let other = run("other", &["--set", "optimizer.group.units.agc=0.02"]);
        let loss = |run: &Path| metrics(run).last().unwrap()["loss"].as_f64().unwrap();
        assert_ne!(loss(&whole).to_bits(), loss(&other).to_bits(), "{stage}");
        let last = ["--resume", "--set", "optimizer.group.units.agc=0.02"];
        let refused = world.train(stage, &config, &format!("{stage}-whole"), &last);
        assert_eq!(refused.code(), Some(2));
        let stderr = refused.stderr();
        assert!(stderr.contains("`optimizer.group.units.agc` is 0.02, but"), "{stderr}");
    }
}

/// What the averages of a checkpoint are, and the weights that they are of.
fn averages(run: &Path, step: u64) -> (Tensors, Tensors) {
    let folder = run.join(format!("checkpoints/step-{step}"));
    (Tensors::open(&folder.join("ema")).unwrap(), Tensors::open(&folder).unwrap())
}

#[test]
fn averages_in_checkpoints_follow_the_formula_and_are_a_model() {
    let world = World::with_towers();
    let each = ["--set", "checkpoint_every=1", "--set", "keep_last=9"];
    world.train("flamingo", &with_ema(FLAMINGO), "run", &each).expect_success();
    let run = world.path("run");
    // Before the first update averages are the weights; here they stay as they are.
    let still = ["--set", "optimizer.lr=1e-30", "--set", "checkpoint_every=1", "--stop-after", "1"];
    world.train("flamingo", &with_ema(FLAMINGO), "still", &still).expect_success();
    for step in 1..=8_u64 {
        let before = match step {
            1 => averages(&world.path("still"), 1).1,
            _ => averages(&run, step - 1).0,
        };
        let (after, weights) = averages(&run, step);
        // The update after `n` others.
        let n = (step - 1) as f64;
        let decay = ((1.0 + n) / (10.0 + n)).min(0.75);
        assert!(after.names().all(|name| !name.starts_with("language.")), "a frozen tower twice");
        for name in after.names() {
            let weights = weights.get(name).unwrap();
            let (before, after) = (before.get(name).unwrap(), after.get(name).unwrap());
            for ((after, before), weight) in after.iter().zip(before).zip(weights) {
                let expected = decay * f64::from(*before) + (1.0 - decay) * f64::from(*weight);
                let error = (f64::from(*after) - expected).abs();
                assert!(error <= 1e-6 * expected.abs().max(1e-2), "{name}: {after} {expected}");
            }
        }
    }
    // As a model it is the averages, with the frozen towers of the checkpoint around it.
    let export = |from: &str, to: &str| export(&world, from, "flamingo", to);
    export("run/checkpoints/step-8/ema", "averaged").expect_success();
    assert!(world.path("averaged/tokenizer.json").is_file());
    let averaged = Tensors::open(&world.path("averaged")).unwrap();
    let (ema, weights) = averages(&run, 8);
    assert_eq!(averaged.names().collect::<Vec<_>>(), weights.names().collect::<Vec<_>>());
    for name in weights.names() {
        assert_eq!(averaged.get(name), ema.get(name).or(weights.get(name)), "{name}");
    }
    assert_ne!(ema.get("resampler.latents"), weights.get("resampler.latents"));
    std::fs::write(run.join("checkpoints/step-8/ema/base"), "/elsewhere\n").unwrap();
    let refused = export("run/checkpoints/step-8/ema", "refused").stderr();
    assert!(refused.contains("ema/base holds `/elsewhere`, expected `..`"), "{refused}");
}

#[test]
fn groups_and_averages_that_cannot_be_are_refused_before_the_first_step() {
    let world = World::new();
    let refused = |config: &str, words: &[&str]| {
        let finished = world.train("language", config, "refused", &[]);
        let stderr = finished.stderr();
        assert_eq!(finished.code(), Some(2), "{stderr}");
        for word in words {
            assert!(stderr.contains(word), "no `{word}` in {stderr}");
        }
        assert!(!world.path("refused").exists(), "{words:?} left a run folder");
    };
    let group = |keys: &str| {
        let text = format!("[[optimizer.group]]\nname = \"g\"\n{keys}\n");
        with_groups(LANGUAGE, &text)
    };
    let blocks = "match = [\"blocks\"]";
    for (keys, word) in [
        (
            "match = [\"block\"]",
            "`optimizer.group.g.match` is [\"block\"], expected parts of names",
        ),
        ("match = [\"block\"]", "language.tokens.weight"),
        ("match = []", "`optimizer.group.g.match` is [], expected 1 to 64 parts"),
        ("match = [\"a..b\"]", "`optimizer.group.g.match`"),
        (
            &format!("{blocks}\nlr_scale = 0.0"),
            "`optimizer.group.g.lr_scale` is 0, expected a number above 0",
        ),
        (&format!("{blocks}\nagc = -1.0"), "`optimizer.group.g.agc` is -1"),
        (&format!("{blocks}\nclip_norm = nan"), "`optimizer.group.g.clip_norm` is NaN"),
        (&format!("{blocks}\nweight_decay = -1.0"), "`optimizer.group.g.weight_decay` is -1"),
        (
            &format!("{blocks}\nagc = 0.1\nclip_norm = 1.0"),
            "`optimizer.group.g.agc` is 0.1, expected nothing",
        ),
        (&format!("{blocks}\nlr = 1.0"), "unknown field `lr`"),
    ] {
        refused(&group(keys), &[word]);
    }
    let twice = format!("{blocks}\n[[optimizer.group]]\nname = \"g\"\n{blocks}");
    refused(&group(&twice), &["`optimizer.group.1.name` is g, expected a name of its own"]);
    let hidden = format!("{blocks}\n[[optimizer.group]]\nname = \"h\"\nmatch = [\"attn\"]");
    refused(&group(&hidden), &["`optimizer.group.h.match`"]);
    let ema = LANGUAGE.replacen("[optimizer]", "[ema]\ndecay = 1.0\n[optimizer]", 1);
    refused(&ema, &["`ema.decay` is 1, expected 0 to below 1"]);
}

#[test]
fn the_term_beside_the_loss_moves_the_weights_and_not_the_losses() {
    let world = World::with_towers();
    for (stage, config) in [("language", LANGUAGE), ("flamingo", FLAMINGO)] {
        let run = |name: &str, more: &[&str]| {
            let name = format!("{stage}-{name}");
            world.train(stage, config, &name, more).expect_success();
            world.path(&name)
        };
        let plain = metrics(&run("plain", &[]));
        let z_loss = ["--set", "z_loss=0.01"];
        let whole = run("whole", &z_loss);
        let with = metrics(&whole);
        assert_eq!(with[0]["losses"], plain[0]["losses"], "{stage}");
        assert_eq!(with[0]["loss"], plain[0]["loss"], "{stage}");
        assert_ne!(with[0]["grad_norm"], plain[0]["grad_norm"], "{stage}");
        assert_ne!(with[7]["losses"], plain[7]["losses"], "{stage}");
        for dataset in plain[0]["losses"].as_object().unwrap().keys() {
            let key = format!("z_loss.{dataset}");
            // About log(301)^2 of 0.01, for a model that knows nothing.
            let z = with[0]["observed"][&key].as_f64().unwrap();
            assert!((0.05..1.0).contains(&z), "{stage} {key}: {z}");
            assert!(plain[0]["observed"].get(&key).is_none(), "{stage}");
        }
        run("stopped", &[&z_loss[..], &["--stop-after", "3"]].concat());
        assert_same_outcome(&whole, &run("stopped", &[&z_loss[..], &["--resume"]].concat()));
    }
    for (stage, config, value, words) in [
        ("contrastive", CONTRASTIVE, "1e-4", "expected nothing: no language model learns here"),
        ("language", LANGUAGE, "0.0", "`z_loss` is 0, expected above 0 and below 1"),
        ("language", LANGUAGE, "1.0", "`z_loss` is 1, expected above 0 and below 1"),
    ] {
        let set = format!("z_loss={value}");
        let refused = world.train(stage, config, "refused", &["--set", &set]);
        assert_eq!(refused.code(), Some(2));
        assert!(refused.stderr().contains(words), "{}", refused.stderr());
    }
}

#[test]
fn rows_of_marks_learn_alone_and_go_back_to_their_places() {
    const TABLE: &str = "lang_encoder.transformer.wte.weight";
    const WIDTH: usize = 16;
    let world = World::with_towers();
    let config = open_flamingo().replace("[model]\n", "[model]\nmark_rows = \"trained\"\n");
    let run = |name: &str, more: &[&str]| {
        world
            .train("flamingo", &config, name, &[&["--set", "steps=4"], more].concat())
            .expect_success();
        world.path(name)
    };
    let whole = run("whole", &[]);
    run("stopped", &["--stop-after", "2"]);
    assert_same_outcome(&whole, &run("stopped", &["--resume"]));

    let tokenizer = Tokenizer::load(whole.join("tokenizer.json")).unwrap();
    let mut marks = [tokenizer.image_id() as usize, tokenizer.eoc_id() as usize];
    marks.sort_unstable();
    let language = Tensors::open(&latest(&world.path("language"))).unwrap();
    let before = language.get("language.tokens.weight").unwrap();
    let model = Tensors::open(&latest(&whole)).unwrap();
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let frozen = model.get("language.tokens.weight").unwrap();
    assert_eq!(bits(frozen), bits(before), "the language model's own rows changed");
    let trained = model.get("trained_tokens.weight").unwrap();

    export(&world, "whole", "open-flamingo", "whole.safetensors").expect_success();
    let theirs = Tensors::open(&world.path("whole.safetensors")).unwrap();
    let after = theirs.get(TABLE).unwrap();
    assert_eq!(after.len(), before.len());
    for (token, (before, after)) in before.chunks(WIDTH).zip(after.chunks(WIDTH)).enumerate() {
        match marks.iter().position(|mark| *mark == token) {
            Some(row) => {
                assert_ne!(before, after, "the row of mark {token} learned nothing");
                assert_eq!(bits(after), bits(&trained[row * WIDTH..][..WIDTH]));
            }
            None => assert_eq!(bits(before), bits(after), "row {token} changed"),
        }
    }
    let tuned = config.replace("mark_rows", "language_weights = \"fine-tuned\"\nmark_rows");
    let refused = world.train("flamingo", &tuned, "refused", &[]);
    assert_eq!(refused.code(), Some(2));
    let words = "`model.mark_rows` is \"trained\", expected \"frozen\"";
    assert!(refused.stderr().contains(words), "{}", refused.stderr());
}
