//! Whole models of OpenFlamingo on every family of language models, and its checkpoints.

use std::path::{Path, PathBuf};

use super::{Case, GRADIENT_TOLERANCE, compare, compare_named, values};
use crate::device::Device;
use crate::families::Family;
use crate::flamingo::{Flamingo, FlamingoConfig, Towers};
use crate::gated_xattn::CrossAttentionConfig;
use crate::inputs::{Inputs, Latents};
use crate::openflamingo::{openflamingo_export, openflamingo_names};
use crate::params::{Source, Training};
use crate::pixels::Pixels;
use crate::resampler::ResamplerConfig;
use crate::tensor::Gradients;
use crate::vision::VisionConfig;
use crate::vit::{PatchStates, VitConfig};
use crate::weights_file::Tensors;
use crate::{Activation, Generation, Prompt, Search};

/// Tokens of a golden sequence.
const LENGTH: usize = 24;
/// Tokens of the prompt that golden texts continue.
const PROMPT: usize = 20;
/// Tokens that they have then.
const WRITTEN: usize = 32;
/// The token that ends a golden beam.
const STOP: u32 = 2;
/// The token of an image.
const IMAGE: u32 = 98;

/// The models of PyTorch's OpenFlamingo with the place of their layers and the distance of blocks.
const CASES: [(&str, &str, usize); 5] = [
    ("mpt-every1", "transformer.blocks", 1),
    ("mpt-every2", "transformer.blocks", 2),
    ("neox-every2", "gpt_neox.layers", 2),
    ("opt-every1", "model.decoder.layers", 1),
    ("llama-every1", "model.layers", 1),
];

#[test]
fn open_flamingo_on_every_language_model_is_a_configuration_of_ours() {
    for (name, layers, every) in CASES {
        let Some(case) = Case::open(&format!("openflamingo/{name}")) else { return };
        let mut without_images = None;
        for device in Device::to_compare() {
            let nll = check_model(&case, name, every, device);
            // A prompt that has no image is read alike everywhere.
            compare("a text alone", &nll, without_images.get_or_insert(nll.clone()));
        }
        let theirs = case.tensors("weights");
        let (ours, _) = openflamingo_names(theirs.clone());
        let (back, lost) = openflamingo_export(ours, layers, every);
        assert_eq!(lost.names().count(), 0);
        for name in back.names() {
            assert_eq!(back.get(name), theirs.get(name), "{name}");
        }
        // What it saves: exactly these tensors, in its own file.
        let saved = Tensors::open(&case.path("checkpoint.pt")).unwrap();
        // Each block under one of its two names.
        let named =
            |name: &str| name.contains("gated_cross_attn_layer.") || name.contains("perceiver");
        let saved: Vec<&str> = saved.names().filter(|name| named(name)).collect();
        assert_eq!(saved, back.names().collect::<Vec<_>>());
    }
}

/// Returns the losses of a text without images.
fn check_model(case: &Case, name: &str, every: usize, device: Device) -> Vec<f32> {
    let (ours, rest) = openflamingo_names(case.tensors("weights"));
    let mut model = open(case, every, ours, rest);
    let features = case.input("vision_x");
    let made_at_home = model.latents_of(&features, 1).unwrap();
    device.place(&mut model).unwrap();
    let outputs = case.tensors("outputs");
    let expected = |name: &str| outputs.get(name).unwrap().to_vec();

    let latents = model.latents_of(&features, 1).unwrap();
    compare("latents", &values(&latents.matrix), &expected("resampled"));
    let inputs = inputs(case);
    let logits = compare("logits", &model.logits(&inputs).unwrap(), &expected("logits"));
    let (loss, mut grads) = model.step(&inputs, 1.0, Gradients::default()).unwrap();
    compare("loss", &[loss], &expected("loss"));
    let (expected_grads, others) = openflamingo_names(case.tensors("grads"));
    let mut found = Tensors::default();
    for p in model.params.iter() {
        let grad = model.params.gradient(&mut grads, &p.name).unwrap().unwrap();
        found.insert(&p.name, &p.shape, grad);
    }
    let (n, gradients) = compare_named(&expected_grads, &found);
    assert_eq!((n, others.names().count()), (found.names().count(), 0));
    assert!(gradients < GRADIENT_TOLERANCE);
    eprintln!("OpenFlamingo, {name}, {device}: logits {logits:.1e}, {n} gradients {gradients:.1e}");

    check_generation(&model, &inputs, &features, &expected("greedy"), &expected("beam3"));

    let tokens = inputs.tokens[..PROMPT].to_vec();
    let text = Prompt { phi: vec![-1; PROMPT], latents: Latents::none(), tokens };
    // Together with latents that were made here, and before the model came here.
    let latents = Latents::join([&latents, &Latents::none()]).unwrap();
    let here = Prompt { phi: inputs.phi[..PROMPT].to_vec(), latents, ..text.clone() };
    let from_home = Prompt { latents: made_at_home, ..here.clone() };
    let scores = model.score(&[here, text.clone(), from_home]).unwrap();
    compare("with latents from elsewhere", &scores[2].nll, &scores[0].nll);
    let alone = model.score(&[text]).unwrap().swap_remove(0).nll;
    compare("a text beside texts with images", &scores[1].nll, &alone);
    alone
}

fn open(case: &Case, every: usize, ours: Tensors, mut rest: Tensors) -> Flamingo {
    let path = case.path("weights.safetensors");
    let (family, language) = Family::read(&case.json("config.json")["lang_config"], &path).unwrap();
    rest.split_off("lang_encoder.old_decoder_blocks.");
    let named = |name: &str| name.replace("lang_encoder.", "").replace(".decoder_layer.", ".");
    rest.rename(named, &path).unwrap();
    let text = family.source(&language, rest, path.clone()).unwrap();
    let config = FlamingoConfig {
        // Features are given, so that the tower only says how many: 9 of width 24.
        vision: VisionConfig::Vit(VitConfig {
            image_size: 6,
            patch_size: 2,
            width: 24,
            layers: 1,
            heads: 4,
            activation: Activation::Gelu,
            feed_forward_width: None,
            patch_states: PatchStates::BeforeNorm,
        }),
        resampler: ResamplerConfig::open_flamingo(),
        cross_attention: CrossAttentionConfig::open_flamingo(every),
        language,
        added_tokens: 0,
        trained_tokens: Vec::new(),
    };
    let towers = Towers {
        shape: config.vision.clone(),
        vision: Source::Random { seed: 1 },
        language: text,
        train: [Training::Frozen; 2],
    };
    let stored = Source::Stored { tensors: ours, path };
    Flamingo::from_sources(config, towers, stored).unwrap()
}

fn inputs(case: &Case) -> Inputs {
    let ids = case.ids("ids");
    let mut phi = Vec::new();
    for sequence in ids.chunks(LENGTH) {
        phi.extend(sequence.iter().scan(-1, |image, id| {
            *image += i32::from(*id == IMAGE);
            Some(*image)
        }));
    }
    let labels = case.input("labels");
    let predicts = |l: usize| !(l + 1).is_multiple_of(LENGTH) && labels[l + 1] >= 0.0;
    Inputs {
        length: LENGTH,
        phi,
        loss_mask: (0..ids.len()).map(|l| f32::from(u8::from(predicts(l)))).collect(),
        tokens: ids,
        pixels: Pixels::none(),
        features: Some(case.input("vision_x")),
        n_frames: 1,
        image_count: vec![3, 3],
    }
}

fn check_generation(
    model: &Flamingo,
    inputs: &Inputs,
    features: &[f32],
    greedy: &[f32],
    beam: &[f32],
) {
    let tokens = inputs.tokens[..PROMPT].to_vec();
    let prompt = Prompt {
        phi: inputs.phi[..PROMPT].to_vec(),
        latents: model.latents_of(&features[..features.len() / 2], 1).unwrap(),
        tokens: tokens.clone(),
    };
    let search = |stop, search| {
        let generation = Generation { tokens_max: WRITTEN - PROMPT, stop, search };
        let written = model.generate(std::slice::from_ref(&prompt), &generation).unwrap();
        let mut all = [&tokens[..], &written[0]].concat();
        all.resize(WRITTEN, STOP);
        all.iter().map(|token| *token as f32).collect::<Vec<_>>()
    };
    assert_eq!(search(u32::MAX, Search::Greedy), greedy);
    assert_eq!(search(STOP, Search::Beam { beams: 3, length_penalty: 0.0 }), beam);
}

/// Folders with what a golden model stands on, as transformers writes them: a vision encoder, whose
/// features are given in its place, and the language model, without the last `rows_left_out` rows
/// of its vocabulary.
fn write_towers(case: &Case, root: &Path, rows_left_out: usize) -> [PathBuf; 2] {
    let [vision, language] = ["vision", "language"].map(|name| root.join(name));
    std::fs::create_dir_all(&language).unwrap();
    let mut theirs = case.tensors("weights");
    theirs.split_off("lang_encoder.old_decoder_blocks.");
    theirs.split_off("lang_encoder.gated_cross_attn_layers.");
    theirs.retain(|name| name.starts_with("lang_encoder.") && !name.contains("gated_cross_attn"));
    let named = |name: &str| name.replace("lang_encoder.", "").replace(".decoder_layer.", ".");
    theirs.rename(named, &language).unwrap();
    let mut config = case.json("config.json")["lang_config"].clone();
    let vocabulary = config["vocab_size"].as_u64().unwrap() as usize;
    config["vocab_size"] = (vocabulary - rows_left_out).into();
    let mut kept = Tensors::default();
    for (name, mut shape, mut values) in theirs.into_parts() {
        if shape.first() == Some(&vocabulary) {
            values.truncate(values.len() / vocabulary * (vocabulary - rows_left_out));
            shape[0] -= rows_left_out;
        }
        kept.insert(name, &shape, values);
    }
    kept.write(&language.join("model.safetensors")).unwrap();
    std::fs::write(language.join("config.json"), config.to_string()).unwrap();

    let (ours, rest) = openflamingo_names(case.tensors("weights"));
    std::fs::create_dir_all(&vision).unwrap();
    open(case, 2, ours, rest).save_vision_hugging_face(&vision).unwrap();
    [vision, language]
}

#[test]
fn a_checkpoint_of_open_flamingo_on_folders_of_others_is_the_whole_model() {
    let Some(case) = Case::open("openflamingo/mpt-every2") else { return };
    let folder = tempfile::tempdir().unwrap();
    let expected = case.tensors("outputs").get("logits").unwrap().to_vec();
    let inputs = inputs(&case);
    let [vision, language] = write_towers(&case, folder.path(), 0);
    let path = case.path("checkpoint.pt");
    let model = Flamingo::from_open_flamingo(&path, &vision, &language, 2).unwrap();
    let logits = model.logits(&inputs).unwrap();
    compare("logits", &logits, &expected);

    // Saved in either form and read again, with its embeddings on a language model that lacks the
    // last three.
    let theirs = model.to_open_flamingo().unwrap();
    let [vision, language] = write_towers(&case, &folder.path().join("short"), 3);
    // Transformers 5 writes the vision encoder under shorter names.
    let mut short = Tensors::open(&vision).unwrap();
    short.rename(|name| name.replace("vision_model.", ""), &vision).unwrap();
    short.write(&vision.join("model.safetensors")).unwrap();
    for (name, write) in [
        ("whole.pt", Tensors::write_torch as fn(&Tensors, &Path) -> _),
        ("whole.safetensors", Tensors::write),
    ] {
        let path = folder.path().join(name);
        write(&theirs, &path).unwrap();
        let again = Flamingo::from_open_flamingo(&path, &vision, &language, 2).unwrap();
        assert_eq!(again.config().language.vocabulary, 100);
        assert_eq!(again.logits(&inputs).unwrap(), logits, "{name}");
    }

    let refused = |every| Flamingo::from_open_flamingo(&path, &vision, &language, every);
    let error = refused(1).unwrap_err().to_string();
    let gate = "`lang_encoder.transformer.blocks.0.gated_cross_attn_layer.attn_gate` [1]";
    for words in ["checkpoint.pt does not hold the model's tensors: 22 missing: ", gate] {
        assert!(error.contains(words), "{error}");
    }
    let error = refused(4).unwrap_err().to_string();
    let words =
        "11 unexpected: `lang_encoder.transformer.blocks.1.gated_cross_attn_layer.attn.norm";
    assert!(error.contains(words), "{error}");
}

#[test]
fn checkpoints_of_open_flamingo_hold_the_weights_of_the_whole() {
    for (name, ..) in CASES {
        let Some(case) = Case::open(&format!("openflamingo/{name}")) else { return };
        let theirs = case.tensors("weights");
        let files: &[&str] = if name == "mpt-every1" {
            &["checkpoint.pt", "checkpoint_wrapped.pt"]
        } else {
            &["checkpoint.pt"]
        };
        for file in files {
            let (ours, _) = openflamingo_names(Tensors::open(&case.path(file)).unwrap());
            let (whole, _) = openflamingo_names(theirs.clone());
            assert_eq!(ours.names().collect::<Vec<_>>(), whole.names().collect::<Vec<_>>());
            for name in ours.names() {
                assert_eq!(ours.get(name), whole.get(name), "{file}: {name}");
            }
        }
    }
}
