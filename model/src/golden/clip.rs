//! CLIP, whole and its vision tower, against transformers.

use super::{Case, compare, compare_named};
use crate::clip::{Clip, Pairs, Pool};
use crate::clip_checkpoint::Writer;
use crate::params::{Declare, Source, Training};
use crate::tensor::Gradients;
use crate::vision::{PatchStates, Vision};
use crate::{Activation, Trainable};

#[test]
fn clip_equals_transformers_with_either_activation() {
    check("quick_gelu", Activation::QuickGelu);
    check("gelu", Activation::Gelu);
}

fn check(name: &str, activation: Activation) {
    let Some(case) = Case::open(&format!("clip-vit/{name}")) else { return };
    let config = &case.json("config.json")["config"];
    let path = case.path("config.json");
    let mut config = Writer::transformers_clip(config, &path).unwrap();
    assert_eq!((config.vision.activation, config.pool), (activation, Pool::Token));
    let outputs = case.tensors("outputs");
    let expected = |name: &str| outputs.get(name).unwrap().to_vec();
    let pixels = case.input("pixels");

    let mut worst = 0.0_f32;
    for (states, name) in [
        (PatchStates::BeforeNorm, "patch_tokens_before_ln_post"),
        (PatchStates::AfterNorm, "patch_tokens_after_ln_post"),
    ] {
        config.vision.patch_states = states;
        let tensors = case.tensors("weights");
        let source = Writer::Transformers.vision_source(&config.vision, tensors, path.clone());
        let mut declare = Declare::new(source, Training::Frozen);
        let vision = Vision::new(&mut declare, crate::clip::VISION_PREFIX, &config.vision).unwrap();
        let features = vision.features(&declare.finish(), &pixels).unwrap();
        worst = worst.max(compare(name, features.values(), &expected(name)));
    }

    let rules = Writer::clip_rules(&config);
    let tensors = case.tensors("weights");
    let source = Source::Foreign { tensors, rules: rules.clone(), path: path.clone() };
    let model = Clip::from_source(config, source).unwrap();
    let ids = case.ids("ids");
    let length = ids.len() / 4;
    // A text ends with the token of the highest number.
    let ends = ids.chunks(length).map(|text| 1 + text.iter().position(|id| *id == 99).unwrap());
    let lengths: Vec<usize> = ends.collect();
    let images = model.embed_images(&pixels).unwrap();
    let texts = model.embed_texts(&ids, length, &lengths).unwrap();
    worst = worst.max(compare("image embeddings", &images, &expected("image_embeds")));
    worst = worst.max(compare("text embeddings", &texts, &expected("text_embeds")));

    let pairs = Pairs { images: pixels, tokens: ids, length, lengths };
    // The paper adds the two terms of the loss, CLIP takes their mean.
    let (loss, mut grads) = model.contrastive_step(&pairs, 0.0, 0.5, Gradients::default()).unwrap();
    worst = worst.max(compare("loss", &[0.5 * loss], &expected("loss")));
    let params = model.params()[0];
    let all: Vec<(String, Vec<f32>)> = params
        .iter()
        .map(|p| (p.name.clone(), params.gradient(&mut grads, &p.name).unwrap().unwrap()))
        .collect();
    let ours =
        rules.translate(all.iter().map(|(name, grad)| (name.as_str(), grad.into()))).unwrap();
    let mut theirs = case.tensors("grads");
    // A gradient of the input, which this model does not give.
    theirs.split_off("pixels");
    let (n, error) = compare_named(&theirs, &ours);
    assert_eq!(n, ours.names().count(), "every gradient is compared");
    eprintln!("clip {name}: values {worst:.1e}, {n} gradients {error:.1e}");
}
