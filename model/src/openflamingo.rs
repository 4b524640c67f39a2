//! The names that `OpenFlamingo` gives the trained parts in its checkpoints, and ours: resampler
//! and gated cross-attention, without towers and embeddings.
//!
//! A cross-attention block is found under either of two prefixes, which hold the same tensors:
//! `lang_encoder.LAYERS.J.gated_cross_attn_layer.` and `lang_encoder.gated_cross_attn_layers.J.`,
//! where `J` counts language model layers. Training's checkpoints may put `module.` before a name
//! and `_checkpoint_wrapped_module.` into it. `to_kv` holds the rows of the keys, then those of the
//! values.

use std::collections::{BTreeMap, BTreeSet};

use crate::weights_file::Tensors;

/// Their name and ours of every tensor that is the same on both sides, below a layer's prefix.
type Parts = [(&'static str, &'static str)];

const RESAMPLER: &Parts = &[
    ("latents", "latents"),
    ("frame_embs", "time"),
    ("norm.weight", "norm.weight"),
    ("norm.bias", "norm.bias"),
];

const RESAMPLER_LAYER: &Parts = &[
    ("0.norm_media.weight", "kv_norm.weight"),
    ("0.norm_media.bias", "kv_norm.bias"),
    ("0.norm_latents.weight", "q_norm.weight"),
    ("0.norm_latents.bias", "q_norm.bias"),
    ("0.to_q.weight", "attn.q.weight"),
    ("0.to_kv.weight", KEYS_VALUES),
    ("0.to_out.weight", "attn.o.weight"),
    ("1.0.weight", "ffw.norm.weight"),
    ("1.0.bias", "ffw.norm.bias"),
    ("1.1.weight", "ffw.up.weight"),
    ("1.3.weight", "ffw.down.weight"),
];

const CROSS_ATTENTION: &Parts = &[
    ("attn.norm.weight", "norm.weight"),
    ("attn.norm.bias", "norm.bias"),
    ("attn.to_q.weight", "attn.q.weight"),
    ("attn.to_kv.weight", KEYS_VALUES),
    ("attn.to_out.weight", "attn.o.weight"),
    ("attn_gate", "attn_gate"),
    ("ff.0.weight", "ffw.norm.weight"),
    ("ff.0.bias", "ffw.norm.bias"),
    ("ff.1.weight", "ffw.up.weight"),
    ("ff.3.weight", "ffw.down.weight"),
    ("ff_gate", "ffw_gate"),
];

/// Stands for our two names of what is one tensor of theirs.
const KEYS_VALUES: &str = "attn.k.weight and attn.v.weight";
const KEYS: &str = "attn.k.weight";
const VALUES: &str = "attn.v.weight";

const THEIR_RESAMPLER: &str = "perceiver.";
/// What the names of the resampler's parameters begin with.
pub(crate) const OUR_RESAMPLER: &str = "resampler.";
/// What the names of the cross-attention's parameters begin with; a block's number follows.
pub(crate) const OUR_CROSS_ATTENTION: &str = "cross_attention.";
/// What the names of all that belongs to the language model begin with.
pub(crate) const THEIR_LANGUAGE_MODEL: &str = "lang_encoder.";

/// The trained parts in an `OpenFlamingo` state dict under our names, and all its other tensors
/// under its own. Blocks are numbered in the order of the layers that they stand at.
pub fn openflamingo_names(theirs: Tensors) -> (Tensors, Tensors) {
    let layers: BTreeSet<usize> =
        theirs.names().filter_map(|name| Some(crossed_layer(&unwrapped(name))?.0)).collect();
    let (mut ours, mut rest) = (Tensors::default(), Tensors::default());
    for (name, mut shape, mut keys) in theirs.into_parts() {
        match our_name(&unwrapped(&name), &layers) {
            Some((prefix, KEYS_VALUES)) if halve(&mut shape) => {
                let values = keys.split_off(keys.len() / 2);
                ours.insert(prefix.clone() + KEYS, &shape, keys);
                ours.insert(prefix + VALUES, &shape, values);
            }
            Some((prefix, part)) if part != KEYS_VALUES => ours.insert(prefix + part, &shape, keys),
            _ => rest.insert(name, &shape, keys),
        }
    }
    (ours, rest)
}

/// The other way: our trained parts as `OpenFlamingo` names them, and all tensors that it has no
/// name for. Its language model keeps its layers under `layers` (`transformer.blocks` in MPT) and
/// has a block at the last of every `every` layers.
pub fn openflamingo_export(ours: Tensors, layers: &str, every: usize) -> (Tensors, Tensors) {
    let (mut theirs, mut rest) = (Tensors::default(), Tensors::default());
    // Names are read in order, so keys come before their values.
    let mut keys_of: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for (name, mut shape, values) in ours.into_parts() {
        let Some((prefix, part)) = their_name(&name, layers, every) else {
            rest.insert(name, &shape, values);
            continue;
        };
        let place = prefix + part;
        if name.ends_with(KEYS) {
            keys_of.insert(place, values);
        } else if name.ends_with(VALUES) {
            let mut both = keys_of.remove(&place).unwrap_or_default();
            both.extend_from_slice(&values);
            shape.iter_mut().take(1).for_each(|rows| *rows *= 2);
            theirs.insert(place, &shape, both);
        } else {
            theirs.insert(place, &shape, values);
        }
    }
    (theirs, rest)
}

/// The one name among those that `OpenFlamingo` may give a tensor under which
/// [`openflamingo_export`] writes it.
pub(crate) fn openflamingo_name(name: &str, layers: &str) -> String {
    let name = unwrapped(name);
    match crossed_layer(&name) {
        Some((layer, part)) => {
            format!("{THEIR_LANGUAGE_MODEL}{layers}.{layer}.gated_cross_attn_layer.{part}")
        }
        None => name,
    }
}

/// Whether a tensor under that name is one of the trained parts, or would be.
pub(crate) fn is_of_trained_parts(name: &str) -> bool {
    name.starts_with(THEIR_RESAMPLER) || crossed_layer(name).is_some()
}

/// Halves the number of rows, if it is even.
fn halve(shape: &mut [usize]) -> bool {
    match shape.first_mut() {
        Some(rows) if rows.is_multiple_of(2) => {
            *rows /= 2;
            true
        }
        _ => false,
    }
}

/// A name without what training wraps around modules.
fn unwrapped(name: &str) -> String {
    let name = name.replace("_checkpoint_wrapped_module.", "");
    name.strip_prefix("module.").map_or(name.clone(), str::to_owned)
}

/// The language model layer that a tensor of a cross-attention block belongs to, and its name below
/// the block.
fn crossed_layer(name: &str) -> Option<(usize, &str)> {
    let name = name.strip_prefix(THEIR_LANGUAGE_MODEL)?;
    let (layer, part) = if let Some(name) = name.strip_prefix("gated_cross_attn_layers.") {
        name.split_once('.')?
    } else {
        let (layer, part) = name.split_once(".gated_cross_attn_layer.")?;
        (layer.rsplit('.').next()?, part)
    };
    Some((layer.parse().ok()?, part))
}

/// Our prefix and part for their name; `layers` are those with a cross-attention block.
fn our_name(name: &str, layers: &BTreeSet<usize>) -> Option<(String, &'static str)> {
    let ours = |parts: &Parts, part: &str| {
        parts.iter().find(|(theirs, _)| *theirs == part).map(|(_, ours)| *ours)
    };
    if let Some((layer, part)) = crossed_layer(name) {
        let block = layers.range(..layer).count();
        return Some((format!("{OUR_CROSS_ATTENTION}{block}."), ours(CROSS_ATTENTION, part)?));
    }
    let name = name.strip_prefix(THEIR_RESAMPLER)?;
    match numbered(name, "layers.") {
        Some((i, part)) => {
            Some((format!("{OUR_RESAMPLER}layers.{i}."), ours(RESAMPLER_LAYER, part)?))
        }
        None => Some((OUR_RESAMPLER.to_owned(), ours(RESAMPLER, name)?)),
    }
}

/// Their prefix and part for our name.
fn their_name(name: &str, layers: &str, every: usize) -> Option<(String, &'static str)> {
    let theirs = |parts: &Parts, part: &str| {
        let part = if part == KEYS || part == VALUES { KEYS_VALUES } else { part };
        parts.iter().find(|(_, ours)| *ours == part).map(|(theirs, _)| *theirs)
    };
    if let Some((block, part)) = numbered(name, OUR_CROSS_ATTENTION) {
        let layer = (block + 1) * every - 1;
        let prefix = format!("{THEIR_LANGUAGE_MODEL}{layers}.{layer}.gated_cross_attn_layer.");
        return Some((prefix, theirs(CROSS_ATTENTION, part)?));
    }
    let name = name.strip_prefix(OUR_RESAMPLER)?;
    match numbered(name, "layers.") {
        Some((i, part)) => {
            Some((format!("{THEIR_RESAMPLER}layers.{i}."), theirs(RESAMPLER_LAYER, part)?))
        }
        None => Some((THEIR_RESAMPLER.to_owned(), theirs(RESAMPLER, name)?)),
    }
}

/// `PREFIX3.rest` to 3 and `rest`.
fn numbered<'a>(name: &'a str, prefix: &str) -> Option<(usize, &'a str)> {
    let (number, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(names: &[&str]) -> Tensors {
        let mut all = Tensors::default();
        for (i, name) in names.iter().enumerate() {
            let first = i as f32 * 10.0;
            all.insert(*name, &[4, 1], vec![first, first + 1.0, first + 2.0, first + 3.0]);
        }
        all
    }

    #[test]
    fn either_prefix_and_wrapped_names_are_read() {
        let check = |name: &str, expected: &[&str]| {
            let (ours, rest) = openflamingo_names(tensors(&[name]));
            assert_eq!(ours.names().collect::<Vec<_>>(), expected, "{name}");
            assert_eq!(rest.names().count(), usize::from(expected.is_empty()), "{name}");
        };
        let block = ["cross_attention.0.attn_gate"];
        check("lang_encoder.gated_cross_attn_layers.3.attn_gate", &block);
        check("lang_encoder.transformer.blocks.3.gated_cross_attn_layer.attn_gate", &block);
        check("lang_encoder.gpt_neox.layers.7.gated_cross_attn_layer.attn_gate", &block);
        check("module.lang_encoder.gated_cross_attn_layers.0.attn_gate", &block);
        let wrapped = "module.lang_encoder.model.layers.3.gated_cross_attn_layer.\
                       _checkpoint_wrapped_module.ff.1.weight";
        check(wrapped, &["cross_attention.0.ffw.up.weight"]);
        check("perceiver.layers.5.1.3.weight", &["resampler.layers.5.ffw.down.weight"]);
        check(
            "perceiver.layers.0.0.to_kv.weight",
            &["resampler.layers.0.attn.k.weight", "resampler.layers.0.attn.v.weight"],
        );
        check("perceiver.media_time_embs", &[]);
        check("lang_encoder.transformer.wte.weight", &[]);
        check("lang_encoder.transformer.blocks.0.decoder_layer.norm_1.weight", &[]);
    }

    #[test]
    fn names_go_back_to_where_they_came_from() {
        let names = [
            "perceiver.latents",
            "perceiver.layers.1.0.to_kv.weight",
            "perceiver.layers.1.0.norm_latents.bias",
            "lang_encoder.transformer.blocks.1.gated_cross_attn_layer.attn.to_kv.weight",
            "lang_encoder.transformer.blocks.3.gated_cross_attn_layer.attn.to_kv.weight",
            "lang_encoder.transformer.blocks.11.gated_cross_attn_layer.ff_gate",
        ];
        let (ours, _) = openflamingo_names(tensors(&names));
        assert_eq!(ours.get("cross_attention.1.attn.v.weight"), Some([42.0, 43.0].as_slice()));
        assert!(ours.get("cross_attention.2.ffw_gate").is_some(), "blocks are numbered by rank");
        let (theirs, rest) = openflamingo_export(ours, "transformer.blocks", 2);
        assert_eq!(rest.names().count(), 0);
        for name in &names[..5] {
            assert_eq!(theirs.get(name), tensors(&names).get(name), "{name}");
        }
        let (_, rest) = openflamingo_export(tensors(&["resampler.input.weight"]), "h", 1);
        assert_eq!(rest.names().collect::<Vec<_>>(), ["resampler.input.weight"]);
    }
}
