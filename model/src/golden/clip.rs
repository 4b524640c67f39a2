//! CLIP, whole and its vision tower, against transformers.

use super::{Case, compare, compare_named, values};
use crate::clip::{Clip, Pairs, Pool};
use crate::clip_checkpoint::Writer;
use crate::device::Device;
use crate::params::{Declare, Source, Training};
use crate::tensor::Gradients;
use crate::vision::{Vision, VisionConfig};
use crate::vit::PatchStates;
use crate::{Activation, Trainable};

#[test]
fn clip_equals_transformers_with_either_activation() {
    check("quick_gelu", Activation::QuickGelu);
    check("gelu", Activation::Gelu);
}

fn check(name: &str, activation: Activation) {
    let Some(case) = Case::open(&format!("clip-vit/{name}")) else { return };
    for device in Device::to_compare() {
        check_on(&case, name, activation, device);
    }
}

fn check_on(case: &Case, name: &str, activation: Activation, device: Device) {
    let config = &case.json("config.json")["config"];
    let path = case.path("config.json");
    let config = Writer::transformers_clip(config, &path).unwrap();
    let VisionConfig::Vit(vit) = &config.vision else { panic!("a vision transformer") };
    let mut vit = vit.clone();
    assert_eq!((vit.activation, config.pool), (activation, Pool::Token));
    let outputs = case.tensors("outputs");
    let expected = |name: &str| outputs.get(name).unwrap().to_vec();
    let pixels = case.input("pixels");

    let mut worst = 0.0_f32;
    for (states, name) in [
        (PatchStates::BeforeNorm, "patch_tokens_before_ln_post"),
        (PatchStates::AfterNorm, "patch_tokens_after_ln_post"),
    ] {
        vit.patch_states = states;
        let tensors = case.tensors("weights");
        let source = Writer::Transformers.vision_source(&vit, tensors, path.clone());
        let declare = Declare::new(source, Training::Frozen);
        let config = VisionConfig::Vit(vit.clone());
        let (vision, p) =
            Vision::new(declare, crate::clip::VISION_PREFIX, &config, &config).unwrap();
        let p = device.with(p);
        let features = vision.features_of_each(&p, (&pixels).into(), &config).unwrap();
        worst = worst.max(compare(name, &values(&features), &expected(name)));
    }

    let rules = Writer::clip_rules(&config);
    let tensors = case.tensors("weights");
    let source = Source::Foreign { tensors, rules: rules.clone(), path: path.clone() };
    let mut model = Clip::from_source(config, source).unwrap();
    device.place(&mut model).unwrap();
    let ids = case.ids("ids");
    let length = ids.len() / 4;
    // A text ends with the token of the highest number.
    let ends = ids.chunks(length).map(|text| 1 + text.iter().position(|id| *id == 99).unwrap());
    let lengths: Vec<usize> = ends.collect();
    let images = model.embed_images(&pixels).unwrap();
    let texts = model.embed_texts(&ids, length, &lengths).unwrap();
    worst = worst.max(compare("image embeddings", &images, &expected("image_embeds")));
    worst = worst.max(compare("text embeddings", &texts, &expected("text_embeds")));

    let pairs = Pairs { images: pixels.into(), tokens: ids, length, lengths };
    // The paper adds the two terms of the loss, CLIP takes their mean.
    let (loss, mut grads) = model.contrastive_step(&pairs, 0.0, 0.5, Gradients::default()).unwrap();
    worst = worst.max(compare("loss", &[0.5 * loss], &expected("loss")));
    let mut all: Vec<(String, Vec<f32>)> = Vec::new();
    for params in model.params() {
        for p in params.iter() {
            all.push((p.name.clone(), params.gradient(&mut grads, &p.name).unwrap().unwrap()));
        }
    }
    let ours =
        rules.translate(all.iter().map(|(name, grad)| (name.as_str(), grad.into()))).unwrap();
    let mut theirs = case.tensors("grads");
    // A gradient of the input, which this model does not give.
    theirs.split_off("pixels");
    let (n, error) = compare_named(&theirs, &ours);
    assert_eq!(n, ours.names().count(), "every gradient is compared");
    eprintln!("clip {name}, {device}: values {worst:.1e}, {n} gradients {error:.1e}");
}
