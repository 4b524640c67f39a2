//! GATED XATTN-DENSE: a cross-attention to the media and a feed-forward, each behind a tanh gate,
//! put before a frozen language model block (paper, section 2.2 and appendix A.1.2).
//!
//! Letters: `B` sequences, `L` tokens, `D` text width, `M` images, `R` latents per image, `V`
//! visual width.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::ModelError;
use crate::layers::{FeedForward, LayerNorm, Linear, NORM_EPSILON};
use crate::limits::{LAYERS_MAX, check_free_heads, check_size};
use crate::ops::{self, Activation, MediaReads};
use crate::params::{Declare, ParamId, Params, Start};
use crate::tensor::{DeviceError, Matrix, Record};

/// Shape of the gated cross-attention blocks. Read from `[model.cross_attention]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrossAttentionConfig {
    /// A block stands before language model layers 0, `every`, `2 every` and so on. Paper: 1 (3B),
    /// 4 (9B), 7 (80B).
    pub every: usize,
    /// Heads.
    pub heads: usize,
    /// Width of one head. Paper, first version: 128.
    pub head_dim: usize,
    /// Activation of the feed-forward. Paper: squared `ReLU`.
    pub activation: Activation,
}

impl CrossAttentionConfig {
    /// Checks that the sizes can work.
    ///
    /// # Errors
    /// Names the first field that cannot.
    pub fn validate(&self) -> Result<(), ModelError> {
        check_size("cross_attention.every", self.every, LAYERS_MAX)?;
        check_free_heads("cross_attention", self.heads, self.head_dim)
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
    media_norm: LayerNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    attention_gate: ParamId,
    feed_forward: FeedForward,
    feed_forward_gate: ParamId,
    heads: usize,
}

impl GatedCrossAttention {
    /// Declares a block under `name`; both gates start at 0, so a fresh block is the identity.
    pub(crate) fn new(
        declare: &mut Declare,
        name: &str,
        text_width: usize,
        visual_width: usize,
        config: &CrossAttentionConfig,
    ) -> Result<Self, ModelError> {
        let inner = config.heads * config.head_dim;
        let at = |part: &str| format!("{name}{part}");
        let closed = Start::Constant(0.0);
        Ok(Self {
            norm: LayerNorm::new(declare, &at("norm"), text_width, NORM_EPSILON)?,
            media_norm: LayerNorm::new(declare, &at("kv_norm"), visual_width, NORM_EPSILON)?,
            to_q: Linear::new(declare, &at("attn.q"), text_width, inner)?,
            to_k: Linear::new(declare, &at("attn.k"), visual_width, inner)?,
            to_v: Linear::new(declare, &at("attn.v"), visual_width, inner)?,
            to_out: Linear::new(declare, &at("attn.o"), inner, text_width)?,
            attention_gate: declare.add(at("attn_gate"), &[1], closed)?,
            feed_forward: FeedForward::new(declare, &at("ffw"), text_width, config.activation)?,
            feed_forward_gate: declare.add(at("ffw_gate"), &[1], closed)?,
            heads: config.heads,
        })
    }

    /// Keys and values of `media` `[M * R, V]`.
    pub(crate) fn media_keys<T: Record>(
        &self,
        p: &Params,
        media: Matrix<T>,
    ) -> Result<(MediaKeys, T), DeviceError> {
        let (media, tape) = self.media_norm.forward(p, media)?.split(); // [M * R, V]
        let (k, tape) = self.to_k.forward(p, media.clone().with(tape))?.split(); // [M * R, H K]
        let (v, tape) = self.to_v.forward(p, media.with(tape))?.split(); // [M * R, H K]
        Ok((MediaKeys { k, v }, tape))
    }

    /// Adds to text states `y` `[B * L, D]` what each token reads from its image, then the gated
    /// feed-forward.
    pub(crate) fn forward<T: Record>(
        &self,
        p: &Params,
        y: Matrix<T>,
        media: &MediaKeys,
        reads: &Arc<MediaReads>,
    ) -> Result<Matrix<T>, DeviceError> {
        let (y, tape) = y.split();
        let read = self.read_media(p, y.clone().with(tape), media, reads)?; // [B * L, D]
        let y = ops::add_gated(read, y, p.get(self.attention_gate))?;
        let (y, tape) = y.split();
        let thought = self.feed_forward.forward(p, y.clone().with(tape))?; // [B * L, D]
        ops::add_gated(thought, y, p.get(self.feed_forward_gate))
    }

    /// The attention half before its gate: `[B * L, D]`, exactly zero where a token sees no image.
    pub(crate) fn read_media<T: Record>(
        &self,
        p: &Params,
        y: Matrix<T>,
        media: &MediaKeys,
        reads: &Arc<MediaReads>,
    ) -> Result<Matrix<T>, DeviceError> {
        let q = self.to_q.forward(p, self.norm.forward(p, y)?)?; // [B * L, H K]
        let (k, v) = (media.k.clone(), media.v.clone());
        self.to_out.forward(p, ops::media_attention(q, k, v, reads, self.heads)?)
    }
}
