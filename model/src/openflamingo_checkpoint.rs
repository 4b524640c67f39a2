//! Whole models from `OpenFlamingo`'s checkpoints and to them.
//!
//! A checkpoint holds what was trained: `perceiver`, the cross-attention blocks under the layers
//! that they stand before, and the embeddings of tokens, which have rows that the language model of
//! others lacks. Both towers come from elsewhere. Sizes are those of `OpenFlamingo` 2.0.1, which
//! leaves no choice but the distance of the blocks.

use std::path::Path;

use serde_json::Value;

use crate::decoder::TokenRows;
use crate::error::ModelError;
use crate::families::Family;
use crate::flamingo::{Flamingo, FlamingoConfig};
use crate::gated_xattn::{CrossAttentionConfig, FirstBlock};
use crate::language_model::{LANGUAGE_PREFIX, LanguageModel, language_folder};
use crate::openflamingo::{
    THEIR_LANGUAGE_MODEL, is_of_trained_parts, openflamingo_export, openflamingo_name,
    openflamingo_names,
};
use crate::params::{Params, Source, Trainable, Training};
use crate::resampler::ResamplerConfig;
use crate::vision::{Vision, VisionConfig, vision_folder};
use crate::weights_file::Tensors;

impl Flamingo {
    /// The tensors of the checkpoint that `OpenFlamingo` would save of this model, to be loaded with
    /// `strict=False` beside the same towers.
    ///
    /// # Errors
    /// When it cannot have such a model; all that is different is listed.
    pub fn to_open_flamingo(&self) -> Result<Tensors, ModelError> {
        let family = Family::of(&self.config.language);
        let reasons = differences(&self.config);
        let (Ok(family), true) = (family, reasons.is_empty()) else {
            return Err(ModelError::NotOpenFlamingo { reasons });
        };
        let every = self.config.cross_attention.every;
        let ours = tensors_of(&self.params);
        let (mut theirs, _) = openflamingo_export(ours, &family.layers(), every);

        let embeddings = ["tokens.weight", "head.weight"].map(|p| format!("{LANGUAGE_PREFIX}{p}"));
        let all = self.language.params().into_iter().flat_map(Params::iter);
        let embeddings = all.filter(|p| embeddings.contains(&p.name));
        let embeddings = embeddings.map(|p| (p.name.as_str(), p.weight.values()));
        let rules = family.rules(LANGUAGE_PREFIX, &self.config.language);
        let beside = self.rows_beside();
        let (width, is_head) = (self.config.language.width, |name: &str| name == family.head());
        for (name, mut shape, mut values) in rules.translate(embeddings)?.into_parts() {
            let of = |rows: &TokenRows| {
                if is_head(&name) { rows.head.clone() } else { rows.tokens.clone() }
            };
            // There the marks' rows were trained in their place, and the language model's own embeddings
            // made longer.
            if let Some((tokens, rows)) = &beside.moved {
                for (token, row) in tokens.iter().zip(of(rows).values().chunks(width)) {
                    values[*token as usize * width..][..width].copy_from_slice(row);
                }
            }
            if let Some(added) = &beside.added {
                values.extend_from_slice(&of(added).values());
                shape[0] += self.config.added_tokens;
            }
            theirs.insert(format!("{THEIR_LANGUAGE_MODEL}{name}"), &shape, values);
        }
        Ok(theirs)
    }

    /// The model of a checkpoint of `OpenFlamingo`, on a CLIP and a language model in folders of
    /// ours or of others, with a block before the last of every `every` layers. Embeddings are the
    /// checkpoint's if it has any, whatever the number of their rows.
    ///
    /// # Errors
    /// When a folder does not hold the tower, or the checkpoint not the rest: all tensors that are
    /// missing, misshapen or of other blocks are listed.
    pub fn from_open_flamingo(
        checkpoint: &Path,
        vision: &Path,
        language: &Path,
        every: usize,
    ) -> Result<Self, ModelError> {
        let (vision, vision_source) = vision_folder(vision)?;
        let (language, language_source) = language_folder(language)?;
        let mut config = FlamingoConfig {
            added_tokens: 0,
            trained_tokens: Vec::new(),
            vision,
            resampler: ResamplerConfig::open_flamingo(),
            cross_attention: CrossAttentionConfig::open_flamingo(every),
            language: language.clone(),
        };
        config.validate()?;
        let family = Family::of(&language)?;
        let layers = family.layers();
        let mut theirs = Tensors::open(checkpoint)?;
        theirs.rename(|name| openflamingo_name(name, &layers), checkpoint)?;
        let tokens = format!("{THEIR_LANGUAGE_MODEL}{}", family.tokens());
        let head = format!("{THEIR_LANGUAGE_MODEL}{}", family.head());
        let rows = theirs.shape(&tokens).and_then(|shape| shape.first()).copied();
        config.language.vocabulary = rows.unwrap_or(language.vocabulary);
        config.validate()?;

        let outline = config.outline()?;
        let (expected, _) = openflamingo_export(tensors_of(&outline.params), &layers, every);
        let shape =
            |name: &str| expected.shape(name).map(|shape| (name.to_owned(), shape.to_vec()));
        let mut expected: Vec<_> = expected.names().filter_map(shape).collect();
        let tied = language.architecture.tied;
        if let Some(rows) = rows {
            let names = [Some(&tokens), (!tied).then_some(&head)];
            let shape = vec![rows, language.width];
            expected.extend(names.into_iter().flatten().map(|name| (name.clone(), shape.clone())));
        }
        theirs.check_all(&expected, |name| !is_of_trained_parts(name), checkpoint)?;
        theirs.retain(|name| expected.iter().any(|(expected, _)| expected == name));

        let shape = config.vision.clone();
        let vision = Vision::from_source(vision_source, Training::Frozen, &shape, &shape)?;
        let width = language.width;
        let mut language = LanguageModel::from_source(language, language_source, Training::Frozen)?;
        if let Some(rows) = rows {
            let mut take = |name| theirs.take(name, &[rows, width], checkpoint);
            let tokens = take(&tokens)?;
            let head = (!tied).then(|| take(&head)).transpose()?;
            language.replace_embeddings(rows, tokens, head)?;
        }
        let (ours, _) = openflamingo_names(theirs);
        let rest = Source::Stored { tensors: ours, path: checkpoint.into() };
        Self::join(config, vision, language, rest)
    }
}

/// All parameters as tensors.
fn tensors_of(params: &Params) -> Tensors {
    let mut all = Tensors::default();
    for p in params.iter() {
        all.insert(&p.name, &p.shape, p.weight.values().into_owned());
    }
    all
}

/// In what a model differs from every one that `OpenFlamingo` can have.
fn differences(config: &FlamingoConfig) -> Vec<String> {
    let mut all = Vec::new();
    if matches!(config.vision, VisionConfig::Nfnet(_)) {
        all.push("vision is an NFNet, expected a vision transformer".to_owned());
    }
    let expected = ResamplerConfig::open_flamingo();
    add_differences(&mut all, "resampler", &config.resampler, &expected);
    let mut crossing = config.cross_attention.clone();
    let expected = CrossAttentionConfig::open_flamingo(crossing.every);
    // A block before every layer stands in the same places either way.
    if (crossing.every, crossing.first) == (1, FirstBlock::Zero) {
        crossing.first = expected.first;
    }
    add_differences(&mut all, "cross_attention", &crossing, &expected);
    if Family::of(&config.language).is_err() {
        let families = "one built like a family of Hugging Face's";
        all.push(format!("language is a model of our own, expected {families}"));
    }
    all
}

/// Adds the fields of `table` in which `found` differs from `expected`.
fn add_differences<T: serde::Serialize>(
    all: &mut Vec<String>,
    table: &str,
    found: &T,
    expected: &T,
) {
    let fields = |config| match serde_json::to_value(config) {
        Ok(Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (found, expected) = (fields(found), fields(expected));
    let names = found.keys().chain(expected.keys().filter(|name| !found.contains_key(*name)));
    for name in names {
        let [is, should] = [&found, &expected].map(|fields| match fields.get(name) {
            None => "not given".to_owned(),
            Some(value) => value.to_string(),
        });
        if is != should {
            all.push(format!("{table}.{name} is {is}, expected {should}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::Architecture;
    use crate::decoder::LanguageConfig;
    use crate::flamingo::Tower;
    use crate::ops::Activation;
    use crate::vit::{PatchStates, VitConfig};

    #[test]
    fn rows_of_added_tokens_lengthen_the_embeddings_and_trained_ones_take_their_place() {
        for tied in [true, false] {
            let config = FlamingoConfig {
                vision: VisionConfig::Vit(VitConfig {
                    image_size: 8,
                    patch_size: 4,
                    width: 12,
                    layers: 1,
                    heads: 2,
                    activation: Activation::QuickGelu,
                    feed_forward_width: None,
                    patch_states: PatchStates::BeforeNorm,
                }),
                resampler: ResamplerConfig::open_flamingo(),
                cross_attention: CrossAttentionConfig::open_flamingo(2),
                language: LanguageConfig {
                    vocabulary: 23,
                    context: 16,
                    width: 16,
                    layers: 2,
                    heads: 2,
                    activation: Activation::GeluTanh,
                    architecture: Architecture { tied, ..Architecture::default() },
                },
                added_tokens: 2,
                trained_tokens: vec![3, 22],
            };
            let fresh = Tower { from: None, trained: false };
            let mut model = Flamingo::on_towers(&config, fresh, fresh, 1).unwrap();
            let untrained = model.to_open_flamingo().unwrap();
            let other = |name: &str, _: &[usize], values: &mut [f32], _: &[f32]| {
                if name.starts_with("trained_") {
                    for value in values {
                        *value += 1.0;
                    }
                }
            };
            model.params.update(&mut crate::Gradients::default(), other).unwrap();
            let theirs = model.to_open_flamingo().unwrap();
            let ours = tensors_of(&model.params);
            let head = if tied { "added_tokens.weight" } else { "added_head.weight" };
            let mut pairs = vec![("transformer.wte.weight", "added_tokens.weight")];
            if !tied {
                pairs.push(("lm_head.weight", head));
            }
            for (name, added) in pairs {
                let trained = ours.get(&added.replace("added", "trained")).unwrap();
                let name = format!("{THEIR_LANGUAGE_MODEL}{name}");
                for (token, row) in [3, 22].into_iter().zip(trained.chunks(16)) {
                    assert_eq!(theirs.get(&name).unwrap()[token * 16..][..16], *row, "{name}");
                }
                assert_eq!(theirs.shape(&name), Some(&[25, 16][..]));
                let [before, after] = [&untrained, &theirs].map(|all| all.get(&name).unwrap());
                let changed = before.chunks(16).zip(after.chunks(16)).enumerate();
                let changed = changed.filter(|(_, (before, after))| before != after);
                assert_eq!(changed.map(|(token, _)| token).collect::<Vec<_>>(), [3, 22], "{name}");
                assert_eq!(theirs.get(&name).unwrap()[23 * 16..], *ours.get(added).unwrap());
            }
        }
    }
}
