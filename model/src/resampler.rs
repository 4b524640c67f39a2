//! The Perceiver resampler: any number of visual features to a fixed number of latents (paper,
//! section 2.1, figure 5), and the two modules that the paper compares it with, a plain
//! Transformer and an MLP of the same parameter budget (section 3.3, table 3, row vi).
//!
//! Of those two the paper says no more than that, and that they are slower and do worse. What is
//! open: how a Transformer or an MLP comes to a fixed number of outputs, or whether it does, and
//! how deep each is. Here every kind gives `R` latents per image, so that nothing else changes. For
//! a budget of 6 Perceiver layers, whose heads together are as wide as the latents (12 `V`^2 each),
//! a Transformer has 6 layers (12 `V`^2), an MLP 9 (8 `V`^2).
//!
//! Letters: `M` images or videos, `F` frames, `P` features per frame, `S = F P` features, `R`
//! latents, `U` width of the tower's features, `V` width of the latents.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::ModelError;
use crate::layers::{FeedForward, LayerNorm, Linear, NORM_EPSILON};
use crate::limits::{
    FRAMES_MAX, LATENTS_MAX, LAYERS_MAX, WIDTH_MAX, check_at_most, check_free_heads, check_size,
};
use crate::ops::{self, Activation, AttentionShape, Sequences, Visible};
use crate::params::{Declare, ParamId, Params, Start};
use crate::self_attention::SelfAttention;
use crate::tensor::{DeviceError, Matrix, Record, Weight};

/// Shape of the resampler. Read from `[model.resampler]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResamplerConfig {
    /// What turns features into latents. Paper: Perceiver.
    #[serde(default)]
    pub kind: ResamplerKind,
    /// Width of the latents, to which the features are mapped first; none for the tower's own width
    /// and no map. Paper: 1536 of 3072, if its number of parameters is to fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Latents per image or video. Paper: 64.
    #[serde(default = "paper_latents")]
    pub latents: usize,
    /// Layers. Paper: 6.
    pub layers: usize,
    /// Heads. Paper: 16.
    pub heads: usize,
    /// Width of one head; `heads * head_dim` need not equal the width of the latents. An MLP has no
    /// heads.
    pub head_dim: usize,
    /// Time embeddings. Paper: 8. Longer videos interpolate between them. 0, as in `OpenFlamingo`:
    /// none, and every image is a single frame.
    pub frames: usize,
    /// Activation of the feed-forward. Paper: squared `ReLU`.
    pub activation: Activation,
}

/// What turns features into latents (paper, table 3, row vi).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResamplerKind {
    /// Latents attend to features and latents (paper, figure 5).
    #[default]
    Perceiver,
    /// Residual feed-forwards on each feature by itself; latent i is then the mean over the i-th of
    /// `R` spans of the features, which are evenly laid over them in their order.
    Mlp,
    /// Features and latents attend to each other; the rows of the latents are the output.
    Transformer,
}

impl ResamplerConfig {
    /// The paper's (table 5; section 2.1), of the width of the vision tower.
    pub fn paper() -> Self {
        Self {
            kind: ResamplerKind::Perceiver,
            width: None,
            latents: 64,
            layers: 6,
            heads: 16,
            head_dim: 96,
            frames: 8,
            activation: Activation::SquaredRelu,
        }
    }

    /// `OpenFlamingo`'s, of every size of it.
    pub fn open_flamingo() -> Self {
        Self { heads: 8, head_dim: 64, frames: 0, activation: Activation::Gelu, ..Self::paper() }
    }

    /// Checks that the sizes can work.
    ///
    /// # Errors
    /// Names the first field that cannot.
    pub fn validate(&self) -> Result<(), ModelError> {
        check_size("resampler.latents", self.latents, LATENTS_MAX)?;
        check_size("resampler.layers", self.layers, LAYERS_MAX)?;
        check_free_heads("resampler", self.heads, self.head_dim)?;
        check_size("resampler.width", self.width.unwrap_or(1), WIDTH_MAX)?;
        check_at_most("resampler.frames", self.frames, FRAMES_MAX)
    }
}

/// Latents per image in the paper (section 2.1).
fn paper_latents() -> usize {
    64
}

/// The resampler.
#[derive(Debug, Clone)]
pub(crate) struct Resampler {
    input: Option<Linear>,
    time: Option<ParamId>,
    body: Body,
    norm: LayerNorm,
    n_latents: usize,
    width: usize,
}

/// The layers by their kind; see [`ResamplerKind`].
#[derive(Debug, Clone)]
enum Body {
    Perceiver { latents: ParamId, layers: Vec<Layer> },
    Mlp { layers: Vec<FeedForward> },
    Transformer { latents: ParamId, layers: Vec<(SelfAttention, FeedForward)> },
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
    /// Declares the resampler under `name`, for features of `visual_width`.
    pub(crate) fn new(
        declare: &mut Declare,
        name: &str,
        visual_width: usize,
        config: &ResamplerConfig,
    ) -> Result<Self, ModelError> {
        let width = config.width.unwrap_or(visual_width);
        let at = |part: &str| format!("{name}{part}");
        let input = config
            .width
            .map(|width| Linear::new(declare, &at("input"), visual_width, width))
            .transpose()?;
        let start = Start::Normal(0.02);
        let time = (config.frames > 0)
            .then(|| declare.add(at("time"), &[config.frames, width], start))
            .transpose()?;
        let body = Body::new(declare, name, width, config)?;
        let norm = LayerNorm::new(declare, &at("norm"), width, NORM_EPSILON)?;
        Ok(Self { input, time, body, norm, n_latents: config.latents, width })
    }

    /// Features `[M * F * P, U]` of `n` images with `frames` frames each to latents `[M * R, V]`.
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
        let mut x = features;
        if let Some(input) = &self.input {
            x = input.forward(p, x)?; // [M * S, V]
        }
        if let Some(time) = self.time {
            x = ops::add_time(x, p.get(time), frames, per_image / frames)?;
        }
        let latents = match &self.body {
            Body::Perceiver { latents, layers } => {
                let (features, tape) = x.split();
                let latents = p.get(*latents);
                let mut x = ops::repeat_latents(latents, n, self.width, tape)?; // [M * R, V]
                for layer in layers {
                    x = layer.attend(p, x, &features, per_image, self.n_latents)?;
                    x = layer.feed_forward.forward_residual(p, x)?;
                }
                x
            }
            Body::Mlp { layers } => {
                for layer in layers {
                    x = layer.forward_residual(p, x)?;
                }
                ops::mean_rows(x, even_spans(n, per_image, self.n_latents))? // [M * R, V]
            }
            Body::Transformer { latents, layers } => {
                let latents = p.get(*latents);
                self.transform(p, x, latents, layers, per_image)?
            }
        };
        self.norm.forward(p, latents)
    }

    /// Features `[M * S, V]`, and `latents` beside each image's, through the layers of a
    /// Transformer: the latents' rows `[M * R, V]`.
    fn transform<T: Record>(
        &self,
        p: &Params,
        features: Matrix<T>,
        latents: &Weight,
        layers: &[(SelfAttention, FeedForward)],
        per_image: usize,
    ) -> Result<Matrix<T>, DeviceError> {
        let n = features.rows() / per_image;
        let (features, tape) = features.split();
        let latents = ops::repeat_latents(latents, n, self.width, tape)?; // [M * R, V]
        let (latents, tape) = latents.split();
        let mut x = ops::with_latents(features.with(tape), latents, per_image, self.n_latents)?;
        let length = per_image + self.n_latents;
        let sequences = Sequences::equal(x.rows(), length);
        for (attention, feed_forward) in layers {
            let (y, tape) = x.split(); // [M * (S + R), V]
            let read = attention.read(p, y.clone().with(tape), |qkv| {
                ops::self_attention(qkv, &sequences, attention.heads, &Visible::All)
            })?; // [M * (S + R), H K]
            x = attention.to_out.forward_onto(p, read, y)?;
            x = feed_forward.forward_residual(p, x)?;
        }
        let rows = (0..n).flat_map(|image| image * length + per_image..(image + 1) * length);
        ops::pick_rows(x, rows.collect())
    }
}

impl Body {
    fn new(
        declare: &mut Declare,
        name: &str,
        width: usize,
        config: &ResamplerConfig,
    ) -> Result<Self, ModelError> {
        let latents = |declare: &mut Declare| {
            let start = Start::Normal(1.0);
            declare.add(format!("{name}latents"), &[config.latents, width], start)
        };
        let ffw = |declare: &mut Declare, name: &str| {
            FeedForward::new(declare, &format!("{name}ffw"), width, config.activation)
        };
        let names = (0..config.layers).map(|i| format!("{name}layers.{i}."));
        Ok(match config.kind {
            ResamplerKind::Perceiver => Self::Perceiver {
                latents: latents(declare)?,
                layers: names
                    .map(|name| Layer::new(declare, &name, width, config))
                    .collect::<Result<_, _>>()?,
            },
            ResamplerKind::Mlp => Self::Mlp {
                layers: names.map(|name| ffw(declare, &name)).collect::<Result<_, _>>()?,
            },
            ResamplerKind::Transformer => Self::Transformer {
                latents: latents(declare)?,
                layers: names
                    .map(|name| {
                        let (heads, head_dim) = (config.heads, config.head_dim);
                        let attention = SelfAttention::new(declare, &name, width, heads, head_dim)?;
                        Ok((attention, ffw(declare, &name)?))
                    })
                    .collect::<Result<_, ModelError>>()?,
            },
        })
    }
}

/// `pooled` spans of the rows of each of `n` images, `per_image` rows each: evenly laid, they cover
/// all, and overlap by at most a row unless the rows are fewer than they.
fn even_spans(n: usize, per_image: usize, pooled: usize) -> Vec<Range<usize>> {
    let span = |i: usize| i * per_image / pooled..((i + 1) * per_image).div_ceil(pooled);
    let of_image = |image: usize| {
        let first = image * per_image;
        (0..pooled).map(move |i| first + span(i).start..first + span(i).end)
    };
    (0..n).flat_map(of_image).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_cover_every_feature_whether_more_or_fewer_than_latents() {
        assert_eq!(even_spans(2, 4, 2), [0..2, 2..4, 4..6, 6..8]);
        assert_eq!(even_spans(1, 5, 3), [0..2, 1..4, 3..5]);
        assert_eq!(even_spans(1, 2, 4), [0..1, 0..1, 1..2, 1..2]);
        assert_eq!(even_spans(2, 3, 1), [0..3, 3..6]);
    }

    #[test]
    fn a_configuration_without_variants_is_the_papers() {
        let short = r#"{"layers": 6, "heads": 16, "head_dim": 96, "frames": 8,
            "activation": "sqrelu"}"#;
        let config: ResamplerConfig = serde_json::from_str(short).unwrap();
        assert_eq!(config, ResamplerConfig::paper());
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<ResamplerConfig>(&text).unwrap(), config);
        let wide = ResamplerConfig { width: Some(0), ..config };
        let error = wide.validate().unwrap_err().to_string();
        assert!(error.starts_with("resampler.width is 0"), "{error}");
    }
}
