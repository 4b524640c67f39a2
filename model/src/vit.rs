//! CLIP's vision transformer (Radford and others, 2021): patches, a class row, learned positions,
//! pre-norm blocks.
//!
//! The paper's own encoder is an NFNet-F6; CLIP's ViT-L/14 is its ablation (table 3) and what the
//! peers use. Letters: `M` images, `P` patches per image, `V` width.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::block::{Block, BlockShape, Part, WholeSequences};
use crate::clip::Pool;
use crate::error::ModelError;
use crate::layers::{FEED_FORWARD_WIDENING, LayerNorm, Linear, NORM_EPSILON, NormKind};
use crate::limits::{
    IMAGE_SIZE_MAX, LAYERS_MAX, PATCHES_MAX, WIDTH_MAX, check_at_most, check_heads, check_size,
    check_tower,
};
use crate::ops::{self, Activation, Heads, Recompute, Sequences, Visible};
use crate::params::{Declare, ParamId, Params, Start};
use crate::pixels::PixelsRef;
use crate::tensor::{DeviceError, Matrix, Record};
use crate::vision::is_default;

/// Colours of a pixel.
pub(crate) const CHANNELS: usize = 3;

/// Shape of the vision tower. Read from `[model.vision]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VitConfig {
    /// Height and width of an image, in pixels.
    pub image_size: usize,
    /// Height and width of a patch, in pixels; divides `image_size`.
    pub patch_size: usize,
    /// Width of the residual.
    pub width: usize,
    /// Blocks.
    pub layers: usize,
    /// Heads; divide `width`.
    pub heads: usize,
    /// Activation of the feed-forward; `quick_gelu` in `OpenAI`'s models.
    pub activation: Activation,
    /// Width of the feed-forward's hidden layer; four times the width if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feed_forward_width: Option<usize>,
    /// Which states of the patches the resampler reads.
    #[serde(default, skip_serializing_if = "is_default")]
    pub patch_states: PatchStates,
}

/// States of a vision transformer's patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PatchStates {
    /// Before the last norm: what `OpenFlamingo`'s released models read.
    #[default]
    BeforeNorm,
    /// After it: what `open_clip` from 2.23 on returns.
    AfterNorm,
}

impl VitConfig {
    /// Checks that the sizes can work.
    ///
    /// # Errors
    /// Names the first field that cannot.
    pub fn validate(&self) -> Result<(), ModelError> {
        check_size("vision.image_size", self.image_size, IMAGE_SIZE_MAX)?;
        check_size("vision.patch_size", self.patch_size, IMAGE_SIZE_MAX)?;
        if !self.image_size.is_multiple_of(self.patch_size) {
            return Err(ModelError::Config {
                field: "vision.patch_size".to_owned(),
                value: self.patch_size.to_string(),
                expected: format!("a divisor of the image size {}", self.image_size),
            });
        }
        check_at_most("vision patches of an image", self.n_patches(), PATCHES_MAX)?;
        check_size("vision.width", self.width, WIDTH_MAX)?;
        check_size("vision.layers", self.layers, LAYERS_MAX)?;
        check_heads("vision.heads", self.heads, self.width)?;
        if let Some(width) = self.feed_forward_width {
            check_size("vision.feed_forward_width", width, WIDTH_MAX)?;
        }
        let patch_rows = CHANNELS * self.patch_size * self.patch_size;
        check_tower("vision", self.width, self.layers, self.n_patches() + 1 + patch_rows)
    }

    /// Patches of one image.
    pub fn n_patches(&self) -> usize {
        self.side() * self.side()
    }

    /// Patches along one side of an image.
    fn side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Width of the feed-forward's hidden layer.
    pub(crate) fn hidden(&self) -> usize {
        self.feed_forward_width.unwrap_or(FEED_FORWARD_WIDENING * self.width)
    }

    /// Values of the features of one image `[P, V]`.
    pub fn n_feature_values(&self) -> usize {
        self.n_patches() * self.width
    }

    /// Values of one image `[3, H, W]`.
    pub fn n_pixel_values(&self) -> usize {
        CHANNELS * self.image_size * self.image_size
    }
}

/// The vision tower.
#[derive(Debug, Clone)]
pub(crate) struct Vit {
    patch_embedding: Linear,
    class: ParamId,
    positions: ParamId,
    norm_before: LayerNorm,
    /// The blocks, from the bottom up.
    pub(crate) blocks: Vec<Block>,
    norm_after: LayerNorm,
    config: VitConfig,
}

impl Vit {
    /// Declares the tower under `name`.
    pub(crate) fn new(
        declare: &mut Declare,
        name: &str,
        config: &VitConfig,
    ) -> Result<Self, ModelError> {
        let width = config.width;
        let at = |part: &str| format!("{name}{part}");
        let size = width / config.heads;
        let shape = BlockShape {
            width,
            layers: config.layers,
            heads: Heads { queries: config.heads, keys: config.heads, size },
            hidden: config.hidden(),
            activation: config.activation,
            gated: false,
            norm: NormKind::Layer,
            norm_epsilon: NORM_EPSILON,
            parallel: false,
            qkv_bias: true,
            biases: true,
            qk_norm: false,
            rotation: None,
        };
        // CLIP's own deviation for class and positions.
        let start = Start::Normal((width as f32).sqrt().recip());
        Ok(Self {
            patch_embedding: Linear::new(
                declare,
                &at("patch_embedding"),
                CHANNELS * config.patch_size * config.patch_size,
                width,
            )?,
            class: declare.add(at("class_embedding"), &[width], start)?,
            positions: declare.add(
                at("position_embedding"),
                &[config.n_patches() + 1, width],
                start,
            )?,
            norm_before: LayerNorm::new(declare, &at("ln_pre"), width, NORM_EPSILON)?,
            blocks: Block::stack(declare, &at("blocks."), shape)?,
            norm_after: LayerNorm::new(declare, &at("ln_post"), width, NORM_EPSILON)?,
            config: config.clone(),
        })
    }

    /// Pixels `[M, 3, H, W]` to the states after the last block: `[M * (1 + P), V]`, class row
    /// first.
    pub(crate) fn forward<T: Record>(
        &self,
        p: &Params,
        pixels: PixelsRef,
        tape: T,
        recompute: Recompute,
    ) -> Result<Matrix<T>, DeviceError> {
        let (size, patch) = (self.config.image_size, self.config.patch_size);
        let patches = ops::unfold(p, pixels, size, patch)?; // [M * P, 3 p p]
        let x = self.patch_embedding.forward(p, patches.with(tape))?; // [M * P, V]
        let (class, positions) = (p.get(self.class), p.get(self.positions));
        let x = ops::prepend_class(x, class, positions)?; // [M * (1 + P), V]
        let mut x = self.norm_before.forward(p, x)?;
        let sequences = Sequences::equal(x.rows(), 1 + self.config.n_patches());
        let positions = sequences.positions();
        for block in &self.blocks {
            let pass = WholeSequences {
                block: block.clone(),
                params: p.clone(),
                positions: Arc::clone(&positions),
                sequences: sequences.clone(),
                visible: Visible::All,
                part: Part::All,
            };
            x = pass.forward(x, recompute)?;
        }
        Ok(x)
    }

    /// Patch rows of pixels `[M, 3, H, W]`, the class row dropped, as the resampler reads them:
    /// `[M * P, V]`.
    pub(crate) fn features<T: Record>(
        &self,
        p: &Params,
        pixels: PixelsRef,
        tape: T,
        recompute: Recompute,
    ) -> Result<Matrix<T>, DeviceError> {
        let mut x = self.forward(p, pixels, tape, recompute)?;
        if self.config.patch_states == PatchStates::AfterNorm {
            x = self.norm_after.forward(p, x)?;
        }
        // The class row comes first.
        let length = 1 + self.config.n_patches();
        let patches = (0..x.rows()).filter(|row| !row.is_multiple_of(length)).collect();
        ops::pick_rows(x, patches)
    }

    /// One row for each image, after the last norm: `[M, V]`.
    pub(crate) fn pool<T: Record>(
        &self,
        p: &Params,
        x: Matrix<T>,
        pool: Pool,
    ) -> Result<Matrix<T>, DeviceError> {
        let length = 1 + self.config.n_patches();
        let firsts = (0..x.rows() / length).map(|i| i * length);
        match pool {
            Pool::Mean => {
                let spans = firsts.map(|first| first + 1..first + length).collect();
                ops::mean_rows(self.norm_after.forward(p, x)?, spans)
            }
            Pool::Token => self.norm_after.forward(p, ops::pick_rows(x, firsts.collect())?),
        }
    }

    /// The tower for images of another size: position embeddings of the patches are interpolated
    /// (bicubic, as transformers does it).
    pub(crate) fn resize(&mut self, p: &mut Params, image_size: usize) -> Result<(), ModelError> {
        let config = VitConfig { image_size, ..self.config.clone() };
        config.validate()?;
        let (from, to) = (self.config.side(), config.side());
        if from != to {
            let width = config.width;
            let values = p.get(self.positions).values();
            let (class, patches) = values.split_at(width);
            let mut resized = class.to_vec();
            resized.extend(interpolate(patches, from, to, width));
            drop(values);
            p.replace(self.positions, &[config.n_patches() + 1, width], resized)?;
        }
        self.config = config;
        Ok(())
    }
}

/// A grid of `from` by `from` rows as one of `to` by `to`: bicubic with a = -0.75, corners not
/// aligned, edges repeated; PyTorch's `interpolate`.
fn interpolate(rows: &[f32], from: usize, to: usize, width: usize) -> Vec<f32> {
    let weights = |i: usize| -> [(usize, f32); 4] {
        let place = (i as f32 + 0.5) * from as f32 / to as f32 - 0.5;
        let (floor, t) = (place.floor(), place - place.floor());
        let near = |x: f32| (1.25 * x - 2.25) * x * x + 1.0;
        let far = |x: f32| ((-0.75 * x + 3.75) * x - 6.0) * x + 3.0;
        let values = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
        std::array::from_fn(|k| {
            let at = floor as isize + k as isize - 1;
            (at.clamp(0, from as isize - 1) as usize, values[k])
        })
    };
    let mut out = vec![0.0; to * to * width];
    for (i, out) in out.chunks_exact_mut(width).enumerate() {
        for (y, of_y) in weights(i / to) {
            for (x, of_x) in weights(i % to) {
                let row = &rows[(y * from + x) * width..][..width];
                out.iter_mut().zip(row).for_each(|(o, v)| *o += of_y * of_x * v);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_embeddings_are_interpolated_as_in_pytorch() {
        // interpolate(arange(9.).sqrt().view(1, 1, 3, 3), size=(4, 4), mode="bicubic")
        let rows: Vec<f32> = (0..9).map(|i| (i as f32).sqrt()).collect();
        let expected = [
            -0.199_870_9,
            0.502_024_9,
            1.197_729,
            1.385_872,
            0.990_350_8,
            1.340_619,
            1.738_303,
            1.896_806,
            2.169_264,
            2.262_624,
            2.431_406,
            2.553_976,
            2.487_268,
            2.603_585,
            2.777_544,
            2.883_782,
        ];
        for (a, b) in interpolate(&rows, 3, 4, 1).iter().zip(expected) {
            assert!((a - b).abs() < 2e-6, "{a} against {b}");
        }
        assert_eq!(interpolate(&rows, 3, 3, 1), rows);
    }
}
