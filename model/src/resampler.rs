//! The Perceiver resampler: any number of visual features to a fixed number of latents (paper,
//! section 2.1, figure 5).
//!
//! Letters: `M` images or videos, `F` frames, `P` features per frame, `R` latents, `V` width.

use serde::{Deserialize, Serialize};

use crate::error::ModelError;
use crate::layers::{FeedForward, LayerNorm, Linear, NORM_EPSILON};
use crate::limits::{
    FRAMES_MAX, LATENTS_MAX, LAYERS_MAX, check_at_most, check_free_heads, check_size,
};
use crate::ops::{self, Activation, AttentionShape, Visible};
use crate::params::{Declare, ParamId, Params, Start};
use crate::tensor::{DeviceError, Matrix, Record};

/// Shape of the resampler. Read from `[model.resampler]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResamplerConfig {
    /// Latents per image or video. Paper: 64.
    #[serde(default = "paper_latents")]
    pub latents: usize,
    /// Layers. Paper: 6.
    pub layers: usize,
    /// Heads. Paper: 16.
    pub heads: usize,
    /// Width of one head; `heads * head_dim` need not equal the visual width.
    pub head_dim: usize,
    /// Time embeddings. Paper: 8. Longer videos interpolate between them.
    pub frames: usize,
    /// Activation of the feed-forward. Paper: squared `ReLU`.
    pub activation: Activation,
}

impl ResamplerConfig {
    /// Checks that the sizes can work.
    ///
    /// # Errors
    /// Names the first field that cannot.
    pub fn validate(&self) -> Result<(), ModelError> {
        check_size("resampler.latents", self.latents, LATENTS_MAX)?;
        check_at_most("resampler.layers", self.layers, LAYERS_MAX)?;
        check_free_heads("resampler", self.heads, self.head_dim)?;
        check_size("resampler.frames", self.frames, FRAMES_MAX)
    }
}

/// Latents per image in the paper (section 2.1).
fn paper_latents() -> usize {
    64
}

/// The resampler.
#[derive(Debug, Clone)]
pub(crate) struct Resampler {
    latents: ParamId,
    time: ParamId,
    layers: Vec<Layer>,
    norm: LayerNorm,
    n_latents: usize,
    width: usize,
}

/// Attention from the latents to features and latents, then a feed-forward.
#[derive(Debug, Clone)]
struct Layer {
    feature_norm: LayerNorm,
    latent_norm: LayerNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    feed_forward: FeedForward,
    heads: usize,
}

impl Resampler {
    /// Declares the resampler under `name`.
    pub(crate) fn new(
        declare: &mut Declare,
        name: &str,
        width: usize,
        config: &ResamplerConfig,
    ) -> Result<Self, ModelError> {
        let start = Start::Normal(1.0);
        let latents = declare.add(format!("{name}latents"), &[config.latents, width], start)?;
        let start = Start::Normal(0.02);
        let time = declare.add(format!("{name}time"), &[config.frames, width], start)?;
        let layers = (0..config.layers)
            .map(|i| Layer::new(declare, &format!("{name}layers.{i}."), width, config))
            .collect::<Result<_, _>>()?;
        let norm = LayerNorm::new(declare, &format!("{name}norm"), width, NORM_EPSILON)?;
        Ok(Self { latents, time, layers, norm, n_latents: config.latents, width })
    }

    /// Features `[M * F * P, V]` of `n` images with `frames` frames each to latents `[M * R, V]`.
    ///
    /// The tape comes with the features.
    pub(crate) fn forward<T: Record>(
        &self,
        p: &Params,
        features: Matrix<T>,
        n: usize,
        frames: usize,
    ) -> Result<Matrix<T>, DeviceError> {
        let per_image = features.rows() / n;
        let features = ops::add_time(features, p.get(self.time), frames, per_image / frames)?;
        let (features, tape) = features.split();
        let mut x = ops::repeat_latents(p.get(self.latents), n, self.width, tape)?; // [M * R, V]
        for layer in &self.layers {
            x = layer.attend(p, x, &features, per_image, self.n_latents)?;
            x = layer.feed_forward.forward_residual(p, x)?;
        }
        self.norm.forward(p, x)
    }
}

impl Layer {
    fn new(
        declare: &mut Declare,
        name: &str,
        width: usize,
        config: &ResamplerConfig,
    ) -> Result<Self, ModelError> {
        let inner = config.heads * config.head_dim;
        let at = |part: &str| format!("{name}{part}");
        Ok(Self {
            feature_norm: LayerNorm::new(declare, &at("kv_norm"), width, NORM_EPSILON)?,
            latent_norm: LayerNorm::new(declare, &at("q_norm"), width, NORM_EPSILON)?,
            to_q: Linear::new(declare, &at("attn.q"), width, inner)?,
            to_k: Linear::new(declare, &at("attn.k"), width, inner)?,
            to_v: Linear::new(declare, &at("attn.v"), width, inner)?,
            to_out: Linear::new(declare, &at("attn.o"), inner, width)?,
            feed_forward: FeedForward::new(declare, &at("ffw"), width, config.activation)?,
            heads: config.heads,
        })
    }

    /// Latents `x` `[M * R, V]` plus what they read from features `[M * S, V]` and from themselves.
    fn attend<T: Record>(
        &self,
        p: &Params,
        x: Matrix<T>,
        features: &Matrix,
        features_per_image: usize,
        n_latents: usize,
    ) -> Result<Matrix<T>, DeviceError> {
        let (x, tape) = x.split();
        let features = self.feature_norm.forward(p, features.clone().with(tape))?; // [M * S, V]
        let (features, tape) = features.split();
        let latents = self.latent_norm.forward(p, x.clone().with(tape))?; // [M * R, V]
        let (latents, tape) = latents.split();
        let features = features.with(tape);
        let kv = ops::with_latents(features, latents.clone(), features_per_image, n_latents)?;
        let (kv, tape) = kv.split(); // [M * (S + R), V]
        let (k, tape) = self.to_k.forward(p, kv.clone().with(tape))?.split(); // [M * (S + R), H K]
        let (v, tape) = self.to_v.forward(p, kv.with(tape))?.split(); // [M * (S + R), H K]
        let q = self.to_q.forward(p, latents.with(tape))?; // [M * R, H K]
        let shape = AttentionShape {
            queries: n_latents,
            keys: features_per_image + n_latents,
            heads: self.heads,
        };
        let read = ops::attention(q, k, v, shape, &Visible::All)?; // [M * R, H K]
        self.to_out.forward_onto(p, read, x)
    }
}
