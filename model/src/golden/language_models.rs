//! Language models of every family against transformers.

use super::{Case, compare, compare_named};
use crate::device::Device;
use crate::families::Family;
use crate::generate::{Generation, Search};
use crate::language_model::{LANGUAGE_PREFIX, LanguageModel};
use crate::ops::Recompute;
use crate::params::Training;
use crate::tensor::Gradients;
use crate::translate::Rules;
use crate::weights_file::Tensors;
use crate::{TextBatch, Trainable};

/// Tokens of a golden sequence.
const LENGTH: usize = 20;
/// Tokens of the prompt that golden texts continue.
const PROMPT: usize = 8;
/// The token that ends a golden beam.
const STOP: u32 = 2;

fn check_family(name: &str, hidden_states: usize) {
    let Some(case) = Case::open(&format!("language-models/{name}")) else { return };
    for device in Device::to_compare() {
        check_family_on(&case, name, hidden_states, device);
    }
}

fn check_family_on(case: &Case, name: &str, hidden_states: usize, device: Device) {
    let config = case.json("hf_config.json");
    let weights = case.tensors("weights");
    let path = case.path("weights.safetensors");
    let (family, config) = Family::read(&config, &path).unwrap();
    assert_eq!(Family::of(&config).unwrap(), family);
    let written = family.write(&config);
    let (same, again) = Family::read(&written, &path).unwrap();
    assert_eq!((same, family.write(&again)), (family, written));
    let rules = family.rules(LANGUAGE_PREFIX, &config);
    let source = family.source(&config, weights.clone(), path).unwrap();
    let mut model = LanguageModel::from_source(config, source, Training::Trained).unwrap();
    device.place(&mut model).unwrap();
    let ids = case.ids("ids");
    let outputs = case.tensors("outputs");
    let expected = |name: &str| outputs.get(name).unwrap().to_vec();

    let logits = model.logits(&ids, LENGTH).unwrap();
    let error = compare("logits", &logits, &expected("logits"));
    let hidden = model.all_hidden(&ids, LENGTH);
    assert_eq!(hidden.len(), hidden_states);
    let errors = hidden.iter().enumerate().map(|(i, states)| {
        compare(&format!("hidden {i}"), states, &expected(&format!("hidden.{i}")))
    });
    let worst = errors.fold(0.0, f32::max);
    let vocabulary = model.config().vocabulary;
    check_padded(case, &model, &ids, &expected("logits_left_padded"), vocabulary);

    // The same numbers whether blocks keep what they make or make it again.
    let mask = |i: usize| if (i + 1).is_multiple_of(LENGTH) { 0.0 } else { 1.0 };
    let loss_mask: Vec<f32> = (0..ids.len()).map(mask).collect();
    let batch = TextBatch { tokens: ids.clone(), length: LENGTH, loss_mask };
    let mut worst_gradient = 0.0;
    let mut kept = None;
    for recompute in [Recompute::Nothing, Recompute::All] {
        model.set_recompute(recompute);
        let (loss, mut grads) = model.step(&batch, 1.0, Gradients::default()).unwrap();
        compare("loss", &[loss], &expected("loss"));
        let ours = gradients(&model, &rules, &mut grads);
        let (n, error) = compare_named(&case.tensors("grads"), &ours);
        assert_eq!(n, case.tensors("grads").names().count(), "every gradient is compared");
        worst_gradient = error;
        let all: Vec<Vec<f32>> = ours.names().map(|n| ours.get(n).unwrap().to_vec()).collect();
        assert!(kept.is_none_or(|kept| kept == all), "recomputing changes no bit");
        kept = Some(all);
    }
    eprintln!(
        "{name}, {device}: logits {error:.1e}, hidden {worst:.1e}, gradients {worst_gradient:.1e}"
    );

    let prompt = vec![ids[..PROMPT].to_vec()];
    let mut generation = Generation::greedy(LENGTH - PROMPT, u32::MAX);
    let whole = |written: Vec<Vec<u32>>| -> Vec<f32> {
        let mut all = [&prompt[0][..], &written[0]].concat();
        all.resize(LENGTH, STOP);
        all.iter().map(|token| *token as f32).collect()
    };
    assert_eq!(whole(model.generate(&prompt, &generation).unwrap()), expected("greedy"));
    generation.stop = STOP;
    generation.search = Search::Beam { beams: 3, length_penalty: 0.0 };
    assert_eq!(whole(model.generate(&prompt, &generation).unwrap()), expected("beam3"));
    // Without the cache: every token from the whole text before it.
    let mut text = prompt[0].clone();
    while text.len() < LENGTH {
        let logits = model.logits(&text, text.len()).unwrap();
        let last = &logits[logits.len() - vocabulary..];
        let best = (0..vocabulary).rev().max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
        text.push(best as u32);
    }
    assert_eq!(whole(vec![text[PROMPT..].to_vec()]), expected("greedy"));

    // Names and values come back as they were.
    let ours = model.params()[0].iter().map(|p| (p.name.as_str(), p.weight.values()));
    let back = rules.translate(ours).unwrap();
    for name in back.names() {
        assert_eq!(back.get(name).unwrap(), weights.get(name).unwrap(), "{name}");
    }
    assert_eq!(back.names().count(), weights.names().count());
}

/// The rows of a left-padded batch, of which real tokens are compared.
fn check_padded(
    case: &Case,
    model: &LanguageModel,
    ids: &[u32],
    expected: &[f32],
    vocabulary: usize,
) {
    let mask = case.input("attention_mask");
    let rows =
        ids.chunks(LENGTH).zip(mask.chunks(LENGTH)).zip(expected.chunks(LENGTH * vocabulary));
    for ((ids, mask), expected) in rows {
        let padding = mask.iter().filter(|real| **real == 0.0).count();
        let logits = model.logits(&ids[padding..], LENGTH - padding).unwrap();
        compare("logits of a padded text", &logits, &expected[padding * vocabulary..]);
    }
}

/// All gradients under their own names.
fn gradients(model: &LanguageModel, rules: &Rules, grads: &mut Gradients) -> Tensors {
    let params = model.params()[0];
    let all: Vec<(String, Vec<f32>)> = params
        .iter()
        .map(|p| (p.name.clone(), params.gradient(grads, &p.name).unwrap().unwrap()))
        .collect();
    rules.translate(all.iter().map(|(name, grad)| (name.as_str(), grad.into()))).unwrap()
}

#[test]
fn gpt2_equals_transformers() {
    check_family("gpt2", 4);
}

#[test]
fn mpt_equals_transformers() {
    check_family("mpt", 5);
}

#[test]
fn gpt_neox_equals_transformers_with_parallel_blocks_and_without() {
    check_family("neox", 5);
    check_family("neox-sequential", 5);
}

#[test]
fn opt_equals_transformers() {
    check_family("opt", 4);
}

#[test]
fn llama_equals_transformers_with_grouped_queries_and_with_scaled_positions() {
    check_family("llama", 4);
    check_family("llama-scaled", 3);
}
