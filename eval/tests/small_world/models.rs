//! Models in other forms than a run give the answers of the run.

use std::path::Path;
use std::process::{Command, Output};

use flamingo_model::{
    CrossAttentionConfig, Flamingo, FlamingoConfig, Gradients, ResamplerConfig, Trainable,
    TrainedTowers,
};
use serde_json::{Value, json};

use crate::world::World;

pub(crate) fn evaluate(world: &World, model: &str, out: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
    command.args(["run", "--model", model, "--device", "cpu"]);
    for task in ["caption", "label"] {
        command.args(["--task", task, "--annotations"]).arg(world.path(task));
    }
    command.args(more).arg("--out").arg(out).output().unwrap()
}

pub(crate) fn error(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn samples(out: &Path, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(out.join(format!("samples_{name}.jsonl"))).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn scored(world: &World, model: &Path, name: &str) -> Vec<Value> {
    let out = world.path(name);
    let output = evaluate(world, model.to_str().unwrap(), &out, &["--shots", "0,2"]);
    assert!(output.status.success(), "{}", error(&output));
    ["caption_2shot", "label_2shot"].iter().flat_map(|name| samples(&out, name)).collect()
}

/// How images become pixels in the run of the small world.
pub(crate) const IMAGES: &str = r#"{"size": {"height": 8, "width": 8}, "fit": "squash",
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}"#;

#[test]
fn an_exported_folder_answers_as_its_run() {
    let world = World::new();
    let exported = world.path("exported");
    std::fs::create_dir(&exported).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(world.path("run/checkpoints/step-2").join(name), exported.join(name))
            .unwrap();
    }
    let failed =
        |name: &str| error(&evaluate(&world, exported.to_str().unwrap(), &world.path(name), &[]));
    assert!(failed("no").contains("nor with a tokenizer.json"), "{}", failed("no"));
    std::fs::copy(world.path("run/tokenizer.json"), exported.join("tokenizer.json")).unwrap();
    let other = IMAGES.replace('8', "9");
    std::fs::write(exported.join("preprocessor_config.json"), other).unwrap();
    assert!(failed("no").contains("images of 9 pixels, but the encoder takes 8"));
    std::fs::write(exported.join("preprocessor_config.json"), IMAGES).unwrap();
    let expected = scored(&world, &world.path("run"), "of-run");
    assert_eq!(scored(&world, &exported, "of-exported"), expected);
    std::fs::remove_file(exported.join("preprocessor_config.json")).unwrap();
    assert_ne!(scored(&world, &exported, "of-clip-colours"), expected, "the colours matter");
}

/// The run of the world finetuned at images of another size, as `flamingo-train finetune` leaves it.
fn write_finetuned(world: &World, size: usize) {
    let run = world.path("tuned");
    let checkpoint = run.join("checkpoints/step-4");
    std::fs::create_dir_all(&checkpoint).unwrap();
    let trained = TrainedTowers { vision: true, language: false };
    let from = world.path("run/checkpoints/step-2");
    Flamingo::load_to_train_at(&from, size, trained).unwrap().save(&checkpoint).unwrap();
    std::fs::copy(world.path("run/tokenizer.json"), run.join("tokenizer.json")).unwrap();
    std::fs::write(run.join("latest"), "step-4\n").unwrap();
    write_finetuned_config(world, size);
}

fn write_finetuned_config(world: &World, size: usize) {
    let config = format!(
        "seed = 0\nsteps = 4\ncheckpoint_every = 2\nkeep_last = 1\n\n[optimizer]\nlr = 1e-4\nwarmup_steps = 0\n\n\
         [image]\nsize = {size}\nfit = \"squash\"\nmean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n\n\
         [model]\nfrom = \"run\"\nvision_weights = \"fine-tuned\"\n\n\
         [[data]]\nname = \"task\"\ncorpus = \"corpora/pairs\"\nbatch = 8\nweight = 1.0\n"
    );
    std::fs::write(world.path("tuned/config.toml"), config).unwrap();
}

#[test]
fn a_finetuned_run_is_asked_at_its_own_size_and_without_examples() {
    let world = World::new();
    let ask = |name: &str| {
        let tuned = world.path("tuned");
        evaluate(&world, tuned.to_str().unwrap(), &world.path(name), &["--fine-tuned"])
    };
    write_finetuned(&world, 16);
    let output = ask("at-16");
    assert!(output.status.success(), "{}", error(&output));
    for name in ["caption_fine-tuned_0shot", "label_fine-tuned_0shot"] {
        let samples = samples(&world.path("at-16"), name);
        assert!(!samples.is_empty() && samples.iter().all(|it| it["shots"] == json!([])), "{name}");
    }
    let report = std::fs::read_to_string(world.path("at-16/report.html")).unwrap();
    assert!(report.contains("loss, flamingo"), "the run that it is made of");
    // The encoder takes 16 pixels a side, and nothing else is ever made of a picture for it.
    write_finetuned_config(&world, 8);
    let message = error(&ask("at-8"));
    assert!(message.contains("images of 8 pixels in"), "{message}");
    assert!(message.contains("of 16 in") && message.contains("step-4"), "{message}");
    assert!(!world.path("at-8/results.json").exists());
}

/// A model as `OpenFlamingo` has them, saved as ours and as theirs.
fn write_open_flamingo(world: &World) {
    let (ours, theirs) = (world.path("ours"), world.path("theirs"));
    let run = world.path("run");
    let source: FlamingoConfig = flamingo_model::read_config(&run).unwrap();
    let config = FlamingoConfig {
        resampler: ResamplerConfig::open_flamingo(),
        cross_attention: CrossAttentionConfig::open_flamingo(2),
        ..source
    };
    let mut model = Flamingo::new(&config, &run.join("clip"), &run.join("language"), 5).unwrap();
    for params in model.params_mut() {
        let open = |name: &str, _: &[usize], values: &mut [f32], _: &[f32]| {
            if name.ends_with("_gate") {
                values.fill(1.0);
            }
        };
        params.update(&mut Gradients::default(), open).unwrap();
    }
    for folder in [&ours, &theirs.join("vision"), &theirs.join("language")] {
        std::fs::create_dir_all(folder).unwrap();
    }
    model.save(&ours).unwrap();
    model.save_vision_hugging_face(&theirs.join("vision")).unwrap();
    model.language_model().save_hugging_face(&theirs.join("language")).unwrap();
    model.to_open_flamingo().unwrap().write_torch(&theirs.join("checkpoint.pt")).unwrap();
    for folder in [ours.clone(), theirs.join("language")] {
        std::fs::copy(run.join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    }
    for folder in [ours, theirs.join("vision")] {
        std::fs::write(folder.join("preprocessor_config.json"), IMAGES).unwrap();
    }
}

#[test]
fn an_open_flamingo_checkpoint_beside_its_towers_answers_as_the_same_model_of_ours() {
    let world = World::new();
    write_open_flamingo(&world);
    let theirs = world.path("theirs");
    let made = scored(&world, &theirs, "of-theirs");
    // Ours begin with <BOS>, and that tokenizer puts none.
    assert_ne!(scored(&world, &world.path("ours"), "of-ours"), made);
    let adds_bos = r#"{"type": "TemplateProcessing", "single":
        [{"SpecialToken": {"id": "<BOS>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<BOS>": {"id": "<BOS>", "ids": [1], "tokens": ["<BOS>"]}}}"#;
    let path = theirs.join("language/tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    tokenizer["post_processor"] = serde_json::from_str(adds_bos).unwrap();
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let (ours, theirs_now) =
        (scored(&world, &world.path("ours"), "of-ours"), scored(&world, &theirs, "of-llama"));
    for (ours, theirs) in ours.iter().zip(&theirs_now) {
        assert_eq!(ours["prediction"], theirs["prediction"]);
    }
    let failed =
        |name: &str| error(&evaluate(&world, theirs.to_str().unwrap(), &world.path(name), &[]));
    std::fs::rename(theirs.join("vision"), theirs.join("clip")).unwrap();
    assert!(failed("no").contains("vision with the CLIP that it was trained with"));
    std::fs::rename(theirs.join("clip"), theirs.join("vision")).unwrap();
    std::fs::remove_file(theirs.join("checkpoint.pt")).unwrap();
    assert!(failed("no").contains("`checkpoint.pt` or `checkpoint.safetensors`, which joins them"));
}
