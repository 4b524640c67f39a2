//! How a decoder is built in detail: what tells the families of language models apart.

use serde::{Deserialize, Serialize};

use crate::block::BlockShape;
use crate::decoder::LanguageConfig;
use crate::error::ModelError;
use crate::layers::{FEED_FORWARD_WIDENING, NORM_EPSILON, NormKind};
use crate::limits::{
    WIDTH_MAX, check_at_most, check_divides, check_free_heads, check_size, refuse,
};
use crate::ops::{Heads, Rotation, Visible};

/// How a decoder knows where a token stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Positions {
    /// A learnt vector a position, added to the token's.
    #[default]
    Learned,
    /// Attention falls off with the distance, by a slope of each head (`ALiBi`).
    Alibi,
    /// Queries and keys are turned by their position, see [`Rotary`].
    Rotary,
}

/// Rotary position embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rotary {
    /// Share of a head's width that is turned; the first columns are.
    pub fraction: f32,
    /// Pair i of n turns by `base^(-i / n)` radians a position.
    pub base: f32,
    /// How far apart positions are spread beyond the length of the first training.
    pub scaling: RotaryScaling,
}

impl Default for Rotary {
    fn default() -> Self {
        Self { fraction: 1.0, base: 10_000.0, scaling: RotaryScaling::None }
    }
}

/// How a rotary model was stretched to longer texts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum RotaryScaling {
    /// Not at all.
    None,
    /// All positions are divided by `factor`.
    Linear {
        /// At least 1.
        factor: f32,
    },
    /// Slow pairs are divided by `factor`, fast ones left, and those between in part (`LLaMA` 3.1).
    Llama3 {
        /// At least 1.
        factor: f32,
        /// Pairs that turn less than this often in `trained_context` are slow.
        low_frequency_factor: f32,
        /// Pairs that turn more than this often in `trained_context` are fast.
        high_frequency_factor: f32,
        /// Tokens of the first training's sequences.
        trained_context: usize,
    },
}

impl RotaryScaling {
    fn apply(self, speed: f32) -> f32 {
        match self {
            Self::None => speed,
            Self::Linear { factor } => speed / factor,
            Self::Llama3 {
                factor,
                low_frequency_factor: low,
                high_frequency_factor: high,
                trained_context,
            } => {
                let turns = trained_context as f32 * speed / (2.0 * std::f32::consts::PI);
                if turns < low {
                    return speed / factor;
                }
                let share = ((turns - low) / (high - low)).min(1.0);
                share * speed + (1.0 - share) * speed / factor
            }
        }
    }
}

/// What a decoder is built of beside its sizes. The default is GPT-2.
#[expect(clippy::struct_excessive_bools, reason = "each is a choice of its own, by its field name")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Architecture {
    /// How positions are told.
    pub positions: Positions,
    /// Learnt positions begin at this row of their table; 2 in OPT.
    pub position_offset: usize,
    /// Of rotary positions.
    pub rotary: Rotary,
    /// Kind of all norms.
    pub norm: NormKind,
    /// Added to the variance by all norms.
    pub norm_epsilon: f32,
    /// Whether attention and feed-forward of a block read the same states (GPT-NeoX).
    pub parallel: bool,
    /// Width of the feed-forward's hidden layer; four times the width if not given.
    pub feed_forward_width: Option<usize>,
    /// Whether the hidden layer is `activation(a) * b` (`SwiGLU`).
    pub gated: bool,
    /// Heads of keys and values, if fewer than those of queries (grouped queries).
    pub kv_heads: Option<usize>,
    /// Width of a head; width / heads if not given.
    pub head_dim: Option<usize>,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the other affine maps have biases.
    pub biases: bool,
    /// Whether queries and keys are normalised, each over all heads together (MPT-1B).
    pub qk_norm: bool,
    /// Whether the head is the token embedding.
    pub tied: bool,
}

impl Default for Architecture {
    fn default() -> Self {
        Self {
            positions: Positions::Learned,
            position_offset: 0,
            rotary: Rotary::default(),
            norm: NormKind::Layer,
            norm_epsilon: NORM_EPSILON,
            parallel: false,
            feed_forward_width: None,
            gated: false,
            kv_heads: None,
            head_dim: None,
            qkv_bias: true,
            biases: true,
            qk_norm: false,
            tied: true,
        }
    }
}

impl Architecture {
    /// Checks that the choices fit `config`, whose key is `table`.
    pub(crate) fn validate_at(
        &self,
        table: &str,
        config: &LanguageConfig,
    ) -> Result<(), ModelError> {
        let at = |field: &str| format!("{table}.architecture.{field}");
        if let Some(width) = self.feed_forward_width {
            check_size(&at("feed_forward_width"), width, WIDTH_MAX)?;
        }
        let head_dim = if let Some(head_dim) = self.head_dim {
            head_dim
        } else {
            check_divides(&format!("{table}.heads"), config.heads, "width", config.width)?;
            config.width / config.heads
        };
        check_free_heads(table, config.heads, head_dim)?;
        if let Some(kv_heads) = self.kv_heads {
            check_divides(&at("kv_heads"), kv_heads, "number of heads", config.heads)?;
        }
        check_at_most(&at("position_offset"), self.position_offset, WIDTH_MAX)?;
        let epsilon = self.norm_epsilon;
        if !(epsilon > 0.0 && epsilon < 1.0) {
            return refuse(&at("norm_epsilon"), epsilon, "above 0 and below 1");
        }
        let Rotary { fraction, base, .. } = self.rotary;
        if !(fraction > 0.0 && fraction <= 1.0) {
            return refuse(&at("rotary.fraction"), fraction, "above 0 and at most 1");
        }
        if !(base > 1.0 && base.is_finite()) {
            return refuse(&at("rotary.base"), base, "above 1");
        }
        let factor = match self.rotary.scaling {
            RotaryScaling::None => 1.0,
            RotaryScaling::Linear { factor } => factor,
            RotaryScaling::Llama3 {
                factor,
                low_frequency_factor: low,
                high_frequency_factor: high,
                ..
            } => {
                if !(low > 0.0 && high > low && high.is_finite()) {
                    let expected = "a low frequency factor above 0 and a high one above it";
                    return refuse(&at("rotary.scaling"), high, expected);
                }
                factor
            }
        };
        if !(factor >= 1.0 && factor.is_finite()) {
            return refuse(&at("rotary.scaling.factor"), factor, "at least 1");
        }
        Ok(())
    }

    /// The shape of the blocks of `config`.
    pub(crate) fn block_shape(&self, config: &LanguageConfig) -> BlockShape {
        let size = self.head_dim.unwrap_or(config.width / config.heads);
        let keys = self.kv_heads.unwrap_or(config.heads);
        let heads = Heads { queries: config.heads, keys, size };
        BlockShape {
            width: config.width,
            layers: config.layers,
            heads,
            hidden: self.feed_forward_width.unwrap_or(FEED_FORWARD_WIDENING * config.width),
            activation: config.activation,
            gated: self.gated,
            norm: self.norm,
            norm_epsilon: self.norm_epsilon,
            parallel: self.parallel,
            qkv_bias: self.qkv_bias,
            biases: self.biases,
            qk_norm: self.qk_norm,
            rotation: (self.positions == Positions::Rotary).then(|| self.rotation(heads)),
        }
    }

    fn rotation(&self, heads: Heads) -> Rotation {
        let turned = (heads.size as f32 * self.rotary.fraction) as usize;
        let speed = |i: usize| {
            let speed = self.rotary.base.powf((2 * i) as f32 / turned as f32).recip();
            self.rotary.scaling.apply(speed)
        };
        Rotation {
            heads: heads.queries + heads.keys,
            size: heads.size,
            speeds: (0..turned / 2).map(speed).collect(),
        }
    }

    /// The keys that a token sees.
    pub(crate) fn visible(&self, heads: usize) -> Visible {
        match self.positions {
            Positions::Alibi => Visible::sloped(heads),
            Positions::Learned | Positions::Rotary => Visible::Causal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_leaves_fast_pairs_and_slows_slow_ones() {
        let scaling = RotaryScaling::Llama3 {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            trained_context: 8192,
        };
        let turning = |turns: f32| turns * 2.0 * std::f32::consts::PI / 8192.0;
        let kept = |turns: f32| scaling.apply(turning(turns)) / turning(turns);
        assert!((kept(5.0) - 1.0).abs() < 1e-6);
        assert!((kept(0.5) - 0.125).abs() < 1e-6);
        // Half way between 1 and 4 turns: (1 + 1 / 8) / 2.
        assert!((kept(2.5) - 0.5625).abs() < 1e-6);
    }
}
