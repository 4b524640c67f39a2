//! What the whole model reads, and the checks at its edge.

use std::ops::Range;

use crate::buffer::Buffer;
use crate::clip::check_pixels;
use crate::error::ModelError;
use crate::flamingo::FlamingoConfig;
use crate::gated_xattn::MediaAttention;
use crate::language_model::targets;
use crate::ops;
use crate::pixels::{Pixels, PixelsRef};
use crate::tensor::Matrix;

/// A batch of interleaved sequences.
#[derive(Debug, Clone, PartialEq)]
pub struct Inputs {
    /// `[B, L]`.
    pub tokens: Vec<u32>,
    /// `L`.
    pub length: usize,
    /// `[B, L]`: the image of its sequence that a token sees, -1 for none.
    pub phi: Vec<i32>,
    /// `[B, L]`: 1 where `tokens[l + 1]` is to be predicted from position l, else 0. Last positions
    /// are 0.
    pub loss_mask: Vec<f32>,
    /// `[M, F, 3, H, W]`: the images of all sequences one after the other, without padding.
    pub pixels: Pixels,
    /// `[M, F, P, V]`: what [`Flamingo::features`](crate::Flamingo::features) made of these images, in
    /// place of `pixels`, which are not looked at then.
    pub features: Option<Vec<f32>>,
    /// `F`.
    pub n_frames: usize,
    /// `[B]`: images of each sequence.
    pub image_count: Vec<usize>,
}

/// What the resampler made of images: `[M, R, V]`. Cheap to clone; each image's part depends on
/// that image alone.
#[derive(Debug, Clone)]
pub struct Latents {
    pub(crate) matrix: Matrix,
    pub(crate) n_images: usize,
}

impl Inputs {
    /// Checks everything about the batch; returns what each position predicts and how many do, at
    /// least 1.
    pub(crate) fn check(
        &self,
        config: &FlamingoConfig,
    ) -> Result<(Vec<Option<u32>>, usize), ModelError> {
        let n = config.check_tokens(&self.tokens, self.length)?;
        if self.image_count.len() != n {
            return Err(ModelError::Input {
                what: "image_count",
                found: format!("{} values", self.image_count.len()),
                expected: format!("{n}, one for each sequence"),
            });
        }
        check_phi_length(&self.phi, &self.tokens)?;
        for (phi, images) in self.phi.chunks(self.length).zip(&self.image_count) {
            check_phi(phi, *images)?;
        }
        let n_images = self.image_count.iter().sum();
        match &self.features {
            Some(features) => check_features(features, n_images, self.n_frames, config)?,
            None => check_media((&self.pixels).into(), n_images, self.n_frames, config)?,
        }
        targets(&self.tokens, self.length, &self.loss_mask)
    }

    /// The images that each token sees, counted over the whole batch.
    pub(crate) fn images_seen(
        &self,
        attend: MediaAttention,
    ) -> impl Iterator<Item = Range<usize>> + '_ {
        let firsts = self.image_count.iter().scan(0, |next, n| {
            let first = *next;
            *next += n;
            Some(first)
        });
        self.phi
            .chunks(self.length)
            .zip(firsts)
            .flat_map(move |(phi, first)| phi.iter().map(move |image| attend.images(*image, first)))
    }
}

impl Latents {
    /// No images.
    pub fn none() -> Self {
        Self { matrix: Matrix::constant(Buffer::from(Vec::new()), 1), n_images: 0 }
    }

    /// Number of images.
    pub fn n_images(&self) -> usize {
        self.n_images
    }

    /// The latents of several images one after the other. They must come from one model; latents
    /// that do not fit are refused where they are used.
    ///
    /// # Errors
    /// When the device fails.
    pub fn join<'a>(parts: impl IntoIterator<Item = &'a Self>) -> Result<Self, ModelError> {
        let parts: Vec<&Self> = parts.into_iter().filter(|part| part.n_images > 0).collect();
        let width = parts.first().map_or(1, |part| part.matrix.width());
        let n_images = parts.iter().map(|part| part.n_images).sum();
        let matrices: Vec<Matrix> = parts.into_iter().map(|part| part.matrix.clone()).collect();
        Ok(Self { matrix: ops::join_rows(&matrices, width)?, n_images })
    }
}

/// Checks that these pixels are `n_images` images or videos of `n_frames` frames.
pub(crate) fn check_media(
    pixels: PixelsRef,
    n_images: usize,
    n_frames: usize,
    config: &FlamingoConfig,
) -> Result<(), ModelError> {
    check_frames(n_frames, config)?;
    check_pixels(pixels, &config.vision, Some(n_images.saturating_mul(n_frames)))
}

/// Checks that `features` are those of `n_images` images or videos of `n_frames` frames.
pub(crate) fn check_features(
    features: &[f32],
    n_images: usize,
    n_frames: usize,
    config: &FlamingoConfig,
) -> Result<(), ModelError> {
    check_frames(n_frames, config)?;
    let one = config.vision.n_feature_values();
    let expected = n_images.checked_mul(n_frames).and_then(|n| n.checked_mul(one));
    if expected == Some(features.len()) {
        return Ok(());
    }
    Err(ModelError::Input {
        what: "features",
        found: format!("{} values", features.len()),
        expected: format!("{n_images} images of {n_frames} frames of {one} values"),
    })
}

fn check_frames(n_frames: usize, config: &FlamingoConfig) -> Result<(), ModelError> {
    let expected = match (n_frames, config.resampler.frames) {
        (0, _) => "at least 1",
        (2.., 0) => "1, since the resampler has no time embeddings (resampler.frames is 0)",
        _ => return Ok(()),
    };
    Err(ModelError::Input {
        what: "n_frames",
        found: n_frames.to_string(),
        expected: expected.to_owned(),
    })
}

/// Checks that every token has an entry in `phi`.
pub(crate) fn check_phi_length(phi: &[i32], tokens: &[u32]) -> Result<(), ModelError> {
    if phi.len() == tokens.len() {
        return Ok(());
    }
    Err(ModelError::Input {
        what: "phi",
        found: format!("{} values", phi.len()),
        expected: format!("{}, one for each token", tokens.len()),
    })
}

/// Checks that tokens see only images that are there.
pub(crate) fn check_phi(phi: &[i32], n_images: usize) -> Result<(), ModelError> {
    match phi.iter().find(|image| **image < -1 || **image >= n_images as i32) {
        None => Ok(()),
        Some(image) => Err(ModelError::Input {
            what: "phi",
            found: image.to_string(),
            expected: format!("-1 or the number of one of {n_images} images"),
        }),
    }
}
