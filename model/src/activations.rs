//! How much memory the activations of a training step take on the CPU: an estimate for plans, from shapes.
//!
//! Counted are the values that operations keep for the backward pass, in f32. Letters for a transformer
//! block: `D` wide, `W` queries, keys and values of a row, `Q` what a row reads, `H` hidden values, `U` those
//! before the activation. A row leaves
//!
//! - in a trained block `4 D + W + Q + U + H`, in a frozen one `2 D + W + U`, in one that runs again `D`
//! - in a gated cross-attention `3 D + 2 Q`, and `11 D` for its feed-forward; a row of media `V + 2 Q` for each
//! - in a layer of the perceiver, of a feature `2 V + 2 Q`, of a latent `13 V + 4 Q`
//! - after the last block `3 D`, and in an `NFNet` the results of all convolutions and what they read
//!
//! Once there are the logits of a block of rows, the gradient of a trained head, and what the backward pass
//! makes of one block: all of it, where the block runs again, and gradients of its hidden values. Frozen vision
//! encoders leave their features. Attention leaves no scores. The allocator's slack is not counted, nor up to
//! 128 MiB of buffers that wait to be used again.

use crate::block::Block;
use crate::clip::Clip;
use crate::decoder::LanguageConfig;
use crate::flamingo::Flamingo;
use crate::language_model::LanguageModel;
use crate::layers::FEED_FORWARD_WIDENING;
use crate::ops::CONTRASTED_ROWS;
use crate::ops::{self, Recompute};
use crate::params::Params;
use crate::resampler::{ResamplerConfig, ResamplerKind};
use crate::vision::{Vision, VisionConfig};

/// Values of a step.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    /// Kept until the backward pass.
    kept: usize,
    /// The most that there is once beside those.
    once: usize,
}

impl Tally {
    fn keep(&mut self, n: usize) {
        self.kept += n;
    }

    fn once(&mut self, n: usize) {
        self.once = self.once.max(n);
    }

    /// A part of `rows` rows of width `width` that leaves `full` values a row, or its input alone where it
    /// runs again; `hidden` values a row have gradients at one time.
    fn part(&mut self, rows: usize, width: usize, full: usize, hidden: usize, again: Again) {
        match again {
            Again::No => {
                self.keep(rows * full);
                self.once(rows * hidden);
            }
            Again::Yes => {
                self.keep(rows * width);
                self.once(rows * (full + hidden));
            }
        }
    }

    fn blocks(&mut self, blocks: &[Block], p: &Params, rows: usize, recompute: Recompute) {
        for block in blocks {
            let size = block.row_size(p);
            let again = Again::of(recompute, size.is_trained);
            self.part(rows, size.width, size.kept, size.hidden, again);
        }
    }

    fn head(&mut self, config: &LanguageConfig, rows: usize, is_trained: bool) {
        self.keep(3 * rows * config.width);
        let table = if is_trained { config.vocabulary * config.width } else { 0 };
        let together = ops::rows_of_logits(config.vocabulary).min(rows);
        self.once(together * config.vocabulary + table);
    }

    /// A vision encoder that is trained, over so many images.
    fn vision(
        &mut self,
        (vision, p): (&Vision, &Params),
        config: &VisionConfig,
        images: usize,
        recompute: Recompute,
    ) {
        match (vision, config) {
            (Vision::Vit(vit), _) => {
                let rows = images * (config.n_feature_rows() + 1);
                self.keep(3 * rows * config.width());
                self.blocks(&vit.blocks, p, rows, recompute);
            }
            (Vision::Nfnet(_), VisionConfig::Nfnet(config)) => {
                // The standardised kernels, and what each image leaves.
                self.keep(config.n_parameters() + images * config.n_activations());
            }
            (Vision::Nfnet(_), VisionConfig::Vit(_)) => {
                unreachable!("a tower is as its configuration")
            }
        }
    }

    /// A resampler that reads `features` rows of width `visual` of each of `images` images.
    fn resampler(
        &mut self,
        config: &ResamplerConfig,
        images: usize,
        features: usize,
        visual: usize,
    ) {
        let width = config.width.unwrap_or(visual);
        let (latents, inner) = (config.latents, config.heads * config.head_dim);
        let feed_forward = (2 + 2 * FEED_FORWARD_WIDENING) * width;
        let layer = match config.kind {
            ResamplerKind::Perceiver => {
                features * (2 * width + 2 * inner)
                    + latents * (3 * width + 4 * inner + feed_forward)
            }
            ResamplerKind::Mlp => features * feed_forward,
            ResamplerKind::Transformer => {
                (features + latents) * (2 * width + 4 * inner + feed_forward)
            }
        };
        self.keep(
            images * (config.layers * layer + features * (visual + width) + 2 * latents * width),
        );
    }

    fn bytes(self) -> u64 {
        (size_of::<f32>() * (self.kept + self.once)) as u64
    }
}

/// Whether a part runs again in the backward pass.
#[derive(Debug, Clone, Copy)]
enum Again {
    No,
    Yes,
}

impl Again {
    fn of(recompute: Recompute, is_trained: bool) -> Self {
        if recompute.covers(is_trained) { Self::Yes } else { Self::No }
    }
}

impl LanguageModel {
    /// About how many bytes the activations of a training step on so many tokens take on the CPU.
    pub fn activation_bytes(&self, tokens: usize) -> u64 {
        let mut tally = Tally::default();
        self.tally(&mut tally, tokens, self.recompute());
        tally.bytes()
    }

    fn tally(&self, tally: &mut Tally, tokens: usize, recompute: Recompute) {
        let (decoder, p) = self.parts();
        tally.keep(tokens * self.config().width);
        tally.blocks(&decoder.blocks, p, tokens, recompute);
        tally.head(self.config(), tokens, p.is_trained());
    }
}

impl Flamingo {
    /// About how many bytes the activations of a training step take on the CPU: on so many tokens, and images
    /// or clips of so many frames.
    pub fn activation_bytes(&self, tokens: usize, images: usize, frames: usize) -> u64 {
        let mut tally = Tally::default();
        let (config, recompute) = (self.config(), self.recompute());
        let (vision, p) = self.vision_parts();
        if p.is_trained() {
            tally.vision((vision, p), &config.vision, images * frames, recompute);
        }
        let features = frames * config.vision.n_feature_rows();
        tally.resampler(&config.resampler, images, features, config.vision.width());
        self.language.tally(&mut tally, tokens, recompute);
        let (width, cross) = (config.language.width, &config.cross_attention);
        let inner = cross.heads * cross.head_dim;
        let feed_forward = (3 + 2 * FEED_FORWARD_WIDENING) * width;
        let media_rows = images * config.resampler.latents;
        for _ in 0..self.n_cross_attentions() {
            tally.keep(media_rows * (config.media_width() + 2 * inner));
            let (full, hidden) = (3 * width + 2 * inner + feed_forward, 8 * width);
            tally.part(tokens, width, full, hidden, Again::of(recompute, true));
        }
        tally.keep(self.n_grafts() * tokens * (3 * width + 4 * inner));
        tally.bytes()
    }
}

impl Clip {
    /// About how many bytes the activations of a training step on so many pairs take on the CPU, their texts of
    /// so many tokens together, where all ranks have `of_all` pairs.
    pub fn activation_bytes(&self, pairs: usize, of_all: usize, tokens: usize) -> u64 {
        let mut tally = Tally::default();
        let (recompute, config) = (self.recompute(), self.config());
        tally.vision(self.vision_parts(), &config.vision, pairs, recompute);
        let (text, p) = self.text_parts();
        tally.keep(3 * tokens * config.text.width);
        tally.blocks(&text.blocks, p, tokens, recompute);
        tally.keep(pairs * (config.vision.width() + config.text.width));
        // Each rank has the embeddings and the loss of all.
        tally.keep(2 * of_all * config.embedding);
        // Similarities of a few rows, and their gradients.
        tally.keep(2 * of_all * of_all.min(CONTRASTED_ROWS));
        tally.bytes()
    }
}
