//! GATED XATTN-DENSE: a cross-attention to the media and a feed-forward, each behind a tanh gate,
//! put before a frozen language model block (paper, section 2.2 and appendix A.1.2), and the ways
//! to condition the language model that the paper compares it with (table 3, rows iii to v).
//!
//! Letters: `B` sequences, `L` tokens, `D` text width, `M` images, `R` latents per image, `V`
//! media width.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::ModelError;
use crate::gate_sums::{Addition, GateSums};
use crate::layers::{FeedForward, LayerNorm, Linear, NORM_EPSILON};
use crate::limits::{LAYERS_MAX, check_free_heads, check_size};
use crate::ops::{self, Activation, Heads, MediaReads};
use crate::params::{Declare, ParamId, Params, Start};
use crate::self_attention::SelfAttention;
use crate::tensor::{DeviceError, Matrix, Record};

/// Shape of the gated cross-attention blocks. Read from `[model.cross_attention]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrossAttentionConfig {
    /// Language model layers from one block to the next. Paper: 1 (3B), 4 (9B), 7 (80B). Of no
    /// effect with a single block or with grafting.
    pub every: usize,
    /// Which layers they are.
    #[serde(default)]
    pub first: FirstBlock,
    /// Heads.
    pub heads: usize,
    /// Width of one head. Paper, first version: 128.
    pub head_dim: usize,
    /// Activation of the feed-forward. Paper: squared `ReLU`.
    pub activation: Activation,
    /// Whether the media pass a layer norm before keys and values are made of them. Paper: true.
    /// `OpenFlamingo`: false.
    #[serde(default = "paper_media_norm")]
    pub media_norm: bool,
    /// What stands between a block's results and the residual.
    #[serde(default)]
    pub gate: GateKind,
    /// Which images a token sees.
    #[serde(default)]
    pub attend: MediaAttention,
    /// How the language model is conditioned.
    #[serde(default)]
    pub conditioning: Conditioning,
}

/// The paper's choice (appendix A.1.2, first version: one norm for keys and values).
fn paper_media_norm() -> bool {
    true
}

/// Where the first block stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirstBlock {
    /// At layer 0: layers 0, `every`, `2 every` and so on, the paper's.
    #[default]
    Zero,
    /// At the last of the first `every` layers: `every - 1`, `2 every - 1` and so on,
    /// `OpenFlamingo`'s.
    LastOfEvery,
    /// In the middle, at layer `layers / 2`, and nowhere else (paper, table 3, row v).
    Single,
}

/// What stands between a result and the residual that it is added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GateKind {
    /// The result times `tanh` of a learnt scalar that starts at 0 (paper, section 2.2).
    #[default]
    Tanh,
    /// Nothing (paper, table 3, row iii): a fresh block is not the identity.
    None,
}

/// Which images a token sees, `phi` being the image that the data gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MediaAttention {
    /// Image `phi` alone. Whether that is the previous or the next one is a matter of the data
    /// (`next_image_probability`).
    #[default]
    One,
    /// Images 0 to `phi` of the token's sequence (paper, table 10). A next image as `phi`
    /// would be seen as well, so `next_image_probability` should be 0.
    AllPrevious,
}

/// How the language model is conditioned on the media (paper, table 3, row iv).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Conditioning {
    /// GATED XATTN-DENSE: cross-attention and a feed-forward of their own before a frozen layer.
    #[default]
    Dense,
    /// "VANILLA XATTN": a cross-attention between a frozen layer's self-attention and its
    /// feed-forward, behind its gate, without feed-forward of its own.
    Vanilla,
    /// "GRAFTING": self-attention, cross-attention and feed-forward, layer on layer, on what the
    /// frozen language model's last layer gives.
    ///
    /// The paper says that the stack reads the frozen model's output and feeds its frozen output
    /// embedding. Here it stands before the frozen last norm, so that with closed gates the whole
    /// is the bare language model. The paper states neither its depth nor where gates are; here
    /// each of the three sublayers has one.
    Grafting {
        /// Layers of the stack.
        layers: usize,
    },
}

impl MediaAttention {
    /// The images that a token with this `phi` sees; its sequence's images begin at `first`.
    pub(crate) fn images(self, phi: i32, first: usize) -> Range<usize> {
        match (self, usize::try_from(phi)) {
            (_, Err(_)) => first..first,
            (Self::One, Ok(image)) => first + image..first + image + 1,
            (Self::AllPrevious, Ok(image)) => first..first + image + 1,
        }
    }
}

impl CrossAttentionConfig {
    /// The paper's smallest model's (table 5; head width of the first version).
    pub fn paper_3b() -> Self {
        Self {
            every: 1,
            first: FirstBlock::Zero,
            heads: 16,
            head_dim: 128,
            activation: Activation::SquaredRelu,
            media_norm: true,
            gate: GateKind::Tanh,
            attend: MediaAttention::One,
            conditioning: Conditioning::Dense,
        }
    }

    /// `OpenFlamingo`'s, of every size of it.
    pub fn open_flamingo(every: usize) -> Self {
        Self {
            every,
            first: FirstBlock::LastOfEvery,
            heads: 8,
            head_dim: 64,
            activation: Activation::Gelu,
            media_norm: false,
            ..Self::paper_3b()
        }
    }

    /// Checks that the sizes can work.
    ///
    /// # Errors
    /// Names the first field that cannot.
    pub fn validate(&self) -> Result<(), ModelError> {
        check_size("cross_attention.every", self.every, LAYERS_MAX)?;
        if let Conditioning::Grafting { layers } = self.conditioning {
            check_size("cross_attention.conditioning.grafting.layers", layers, LAYERS_MAX)?;
        }
        check_free_heads("cross_attention", self.heads, self.head_dim)
    }

    /// Number of blocks for a language model of `layers` layers.
    pub(crate) fn n_blocks(&self, layers: usize) -> usize {
        match (self.conditioning, self.first) {
            (Conditioning::Grafting { layers }, _) => layers,
            (_, FirstBlock::Zero) => layers.div_ceil(self.every),
            (_, FirstBlock::LastOfEvery) => layers / self.every,
            (_, FirstBlock::Single) => layers.min(1),
        }
    }

    /// The block that stands at layer `layer` of `layers`, if any.
    pub(crate) fn block_at(&self, layer: usize, layers: usize) -> Option<usize> {
        let every = self.every;
        match self.first {
            FirstBlock::Zero => layer.is_multiple_of(every).then_some(layer / every),
            FirstBlock::LastOfEvery => {
                (layer + 1).is_multiple_of(every).then(|| (layer + 1) / every - 1)
            }
            FirstBlock::Single => (layer == layers / 2).then_some(0),
        }
    }
}

/// A gate in place.
#[derive(Debug, Clone, Copy)]
enum Gate {
    Tanh(ParamId),
    None,
}

impl Gate {
    /// Declares a closed gate called `name`, if there is to be one.
    fn new(declare: &mut Declare, name: String, kind: GateKind) -> Result<Self, ModelError> {
        match kind {
            GateKind::Tanh => Ok(Self::Tanh(declare.add(name, &[1], Start::Constant(0.0))?)),
            GateKind::None => Ok(Self::None),
        }
    }

    /// What a result is multiplied by.
    fn factor(self, p: &Params) -> f64 {
        match self {
            Self::Tanh(gate) => f64::from(p.get(gate).values()[0]).tanh(),
            Self::None => 1.0,
        }
    }

    /// `y + gate * to_out(x)`. The tape comes with `x`.
    fn add<T: Record>(
        self,
        p: &Params,
        to_out: &Linear,
        x: Matrix<T>,
        y: Matrix,
    ) -> Result<Matrix<T>, DeviceError> {
        match self {
            Self::Tanh(gate) => ops::add_gated(to_out.forward(p, x)?, y, p.get(gate)),
            Self::None => to_out.forward_onto(p, x, y),
        }
    }
}

/// Keys and values of the media for one block, each `[M * R, H K]`.
#[derive(Debug, Clone)]
pub(crate) struct MediaKeys {
    k: Matrix,
    v: Matrix,
}

/// One block.
#[derive(Debug, Clone)]
pub(crate) struct GatedCrossAttention {
    norm: LayerNorm,
    media_norm: Option<LayerNorm>,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    attention_gate: Gate,
    /// None in a vanilla block.
    feed_forward: Option<(FeedForward, Gate)>,
    heads: usize,
}

impl GatedCrossAttention {
    /// Declares a block under `name`; gates start at 0, so a fresh block with gates is the
    /// identity.
    pub(crate) fn new(
        declare: &mut Declare,
        name: &str,
        text_width: usize,
        media_width: usize,
        config: &CrossAttentionConfig,
    ) -> Result<Self, ModelError> {
        let inner = config.heads * config.head_dim;
        let at = |part: &str| format!("{name}{part}");
        let norm = LayerNorm::new(declare, &at("norm"), text_width, NORM_EPSILON)?;
        let media_norm = config
            .media_norm
            .then(|| LayerNorm::new(declare, &at("kv_norm"), media_width, NORM_EPSILON))
            .transpose()?;
        let to_q = Linear::new(declare, &at("attn.q"), text_width, inner)?;
        let to_k = Linear::new(declare, &at("attn.k"), media_width, inner)?;
        let to_v = Linear::new(declare, &at("attn.v"), media_width, inner)?;
        let to_out = Linear::new(declare, &at("attn.o"), inner, text_width)?;
        let attention_gate = Gate::new(declare, at("attn_gate"), config.gate)?;
        let feed_forward = if config.conditioning == Conditioning::Vanilla {
            None
        } else {
            let inside = FeedForward::new(declare, &at("ffw"), text_width, config.activation)?;
            Some((inside, Gate::new(declare, at("ffw_gate"), config.gate)?))
        };
        let heads = config.heads;
        Ok(Self { norm, media_norm, to_q, to_k, to_v, to_out, attention_gate, feed_forward, heads })
    }

    /// Keys and values of `media` `[M * R, V]`.
    pub(crate) fn media_keys<T: Record>(
        &self,
        p: &Params,
        media: Matrix<T>,
    ) -> Result<(MediaKeys, T), DeviceError> {
        let media = match &self.media_norm {
            Some(norm) => norm.forward(p, media)?, // [M * R, V]
            None => media,
        };
        let (media, tape) = media.split();
        let (k, tape) = self.to_k.forward(p, media.clone().with(tape))?.split(); // [M * R, H K]
        let (v, tape) = self.to_v.forward(p, media.with(tape))?.split(); // [M * R, H K]
        Ok((MediaKeys { k, v }, tape))
    }

    /// Adds to text states `y` `[B * L, D]` what each token reads from its images, then the
    /// feed-forward, each behind its gate.
    pub(crate) fn forward<T: Record>(
        &self,
        p: &Params,
        y: Matrix<T>,
        media: &MediaKeys,
        reads: &Arc<MediaReads>,
    ) -> Result<Matrix<T>, DeviceError> {
        let (y, tape) = y.split();
        let read = self.read_media(p, y.clone().with(tape), media, reads)?; // [B * L, H K]
        let y = self.attention_gate.add(p, &self.to_out, read, y)?; // [B * L, D]
        let Some((feed_forward, gate)) = &self.feed_forward else { return Ok(y) };
        let (y, tape) = y.split();
        let hidden = feed_forward.hidden(p, y.clone().with(tape))?; // [B * L, 4 D]
        gate.add(p, &feed_forward.down, hidden, y)
    }

    /// As [`GatedCrossAttention::forward`] over `media` and what is read of it, bit by bit; and what it
    /// adds in the `counted` rows.
    ///
    /// A branch is measured before its gate and its sum multiplied by the gate afterwards: the difference
    /// of the states before and after would drown in their rounding while a gate is nearly closed.
    pub(crate) fn measured(
        &self,
        p: &Params,
        y: Matrix,
        (media, reads): (&MediaKeys, &Arc<MediaReads>),
        counted: &[bool],
    ) -> Result<(Matrix, GateSums), DeviceError> {
        let read = self.read_media(p, y.clone(), media, reads)?; // [B * L, H K]
        let branch = self.to_out.forward(p, read.clone())?; // [B * L, D]
        let attention = Addition::of(&branch, self.attention_gate.factor(p), &y, counted)?;
        let y = self.attention_gate.add(p, &self.to_out, read, y)?; // [B * L, D]
        let Some((inside, gate)) = &self.feed_forward else {
            return Ok((y, GateSums { attention, feed_forward: None }));
        };
        let hidden = inside.hidden(p, y.clone())?; // [B * L, 4 D]
        let branch = inside.down.forward(p, hidden.clone())?; // [B * L, D]
        let feed_forward = Some(Addition::of(&branch, gate.factor(p), &y, counted)?);
        let y = gate.add(p, &inside.down, hidden, y)?; // [B * L, D]
        Ok((y, GateSums { attention, feed_forward }))
    }

    /// What the heads read: `[B * L, H K]`, exactly zero where a token sees no image.
    fn read_media<T: Record>(
        &self,
        p: &Params,
        y: Matrix<T>,
        media: &MediaKeys,
        reads: &Arc<MediaReads>,
    ) -> Result<Matrix<T>, DeviceError> {
        let q = self.to_q.forward(p, self.norm.forward(p, y)?)?; // [B * L, H K]
        ops::media_attention(q, media.k.clone(), media.v.clone(), reads, self.heads)
    }

    /// The attention half before its gate: `[B * L, D]`, exactly zero where a token sees no image.
    #[cfg(test)]
    pub(crate) fn attention_half(
        &self,
        p: &Params,
        y: Matrix,
        media: &MediaKeys,
        reads: &Arc<MediaReads>,
    ) -> Result<Matrix, DeviceError> {
        self.to_out.forward(p, self.read_media(p, y, media, reads)?)
    }
}

/// The self-attention of a grafted layer, behind a gate; its cross-attention follows.
#[derive(Debug, Clone)]
pub(crate) struct GraftedSelfAttention {
    inside: SelfAttention,
    gate: Gate,
}

impl GraftedSelfAttention {
    /// Declares the layer under `name`, the name of its cross-attention.
    pub(crate) fn new(
        declare: &mut Declare,
        name: &str,
        width: usize,
        config: &CrossAttentionConfig,
    ) -> Result<Self, ModelError> {
        let (heads, head_dim) = (config.heads, config.head_dim);
        let at = format!("{name}self.");
        Ok(Self {
            inside: SelfAttention::new(declare, &at, width, heads, head_dim)?,
            gate: Gate::new(declare, format!("{name}self_gate"), config.gate)?,
        })
    }

    /// Adds to states `y` `[N, D]` what they read from each other; `attend` turns queries, keys and
    /// values `[N, 3 H K]` into that, given the heads.
    pub(crate) fn forward<T: Record>(
        &self,
        p: &Params,
        y: Matrix<T>,
        attend: impl FnOnce(Matrix<T>, Heads) -> Result<Matrix<T>, DeviceError>,
    ) -> Result<Matrix<T>, DeviceError> {
        let (y, tape) = y.split();
        let heads = self.inside.heads;
        let read = self.inside.read(p, y.clone().with(tape), |qkv| attend(qkv, heads))?;
        self.gate.add(p, &self.inside.to_out, read, y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_stand_where_paper_and_open_flamingo_put_them() {
        let check = |first, every, layers, expected: &[usize]| {
            let config = CrossAttentionConfig { every, first, ..CrossAttentionConfig::paper_3b() };
            let found = (0..layers).filter_map(|at| Some((at, config.block_at(at, layers)?)));
            let expected = expected.iter().copied().enumerate().map(|(i, at)| (at, i));
            assert_eq!(found.collect::<Vec<_>>(), expected.clone().collect::<Vec<_>>());
            assert_eq!(config.n_blocks(layers), expected.count());
        };
        check(FirstBlock::Zero, 4, 10, &[0, 4, 8]);
        check(FirstBlock::Zero, 1, 3, &[0, 1, 2]);
        check(FirstBlock::LastOfEvery, 4, 10, &[3, 7]);
        check(FirstBlock::LastOfEvery, 1, 3, &[0, 1, 2]);
        check(FirstBlock::Single, 1, 24, &[12]);
        check(FirstBlock::Single, 1, 1, &[0]);
        check(FirstBlock::Single, 1, 0, &[]);
    }

    #[test]
    fn a_configuration_without_variants_is_the_papers() {
        let short = r#"{"every": 1, "heads": 16, "head_dim": 128, "activation": "sqrelu"}"#;
        let config: CrossAttentionConfig = serde_json::from_str(short).unwrap();
        assert_eq!(config, CrossAttentionConfig::paper_3b());
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<CrossAttentionConfig>(&text).unwrap(), config);
        let grafting = r#"{"every": 1, "heads": 1, "head_dim": 1, "activation": "gelu",
            "first": "last-of-every", "media_norm": false, "gate": "none", "attend": "all-previous",
            "conditioning": {"grafting": {"layers": 2}}}"#;
        let config: CrossAttentionConfig = serde_json::from_str(grafting).unwrap();
        assert_eq!(config.conditioning, Conditioning::Grafting { layers: 2 });
        let none = CrossAttentionConfig {
            conditioning: Conditioning::Grafting { layers: 0 },
            ..CrossAttentionConfig::paper_3b()
        };
        let error = none.validate().unwrap_err().to_string();
        assert!(error.starts_with("cross_attention.conditioning.grafting.layers is 0"), "{error}");
    }
}
