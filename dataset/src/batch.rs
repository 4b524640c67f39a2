//! Examples stacked to a batch. Letters: B sequences, L tokens, N images, F frames, H = W size.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::digest::hex;
use crate::pixel_buffer::PixelBuffer;
use crate::pixels::recycle;
use crate::sample::Example;

/// What one training step reads of one dataset.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Index of the dataset in the mixture; 0 for a merged batch.
    pub dataset: usize,
    /// Name of the dataset, or [`MERGED`](crate::MERGED).
    pub name: String,
    /// Token ids `[B, L]`.
    pub tokens: Vec<u32>,
    /// Image of its own sequence that each token may see, -1 none `[B, L]`.
    pub phi: Vec<i32>,
    /// 1 where `tokens[l + 1]` is to be predicted from position l, else 0 `[B, L]`.
    pub loss_mask: Vec<f32>,
    /// Pixels `[B, N, F, 3, H, W]`, zero where a sequence has fewer than N images.
    pub pixels: PixelBuffer,
    /// Images of each sequence `[B]`, at most N.
    pub image_count: Vec<usize>,
    /// N.
    pub n_images: usize,
    /// F.
    pub n_frames: usize,
    /// B.
    pub size: usize,
    /// L.
    pub length: usize,
    /// Row of its corpus that each sequence was made from `[B]`.
    pub rows: Vec<u64>,
    /// Corrupt rows that others stand in for.
    pub corrupt: Vec<CorruptRow>,
}

/// A row that could not be read or made into an example.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorruptRow {
    /// Name of its dataset.
    pub dataset: String,
    /// Its number in the corpus.
    pub row: u64,
    /// What is wrong with it.
    pub problem: String,
}

/// The lengths that all sequences of a batch share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchShape {
    /// L.
    pub(crate) tokens: usize,
    /// N.
    pub(crate) images: usize,
    /// F.
    pub(crate) frames: usize,
    /// Numbers in one image, F * 3 * H * W.
    pub(crate) image_len: usize,
}

impl Batch {
    /// A batch without sequences, with room for the pixels of `size`.
    pub(crate) fn empty(dataset: usize, name: &str, size: usize, shape: BatchShape) -> Self {
        Self {
            dataset,
            name: name.to_owned(),
            tokens: Vec::new(),
            phi: Vec::new(),
            loss_mask: Vec::new(),
            pixels: PixelBuffer::with_capacity(size * shape.images * shape.image_len),
            image_count: Vec::new(),
            n_images: shape.images,
            n_frames: shape.frames,
            size: 0,
            length: shape.tokens,
            rows: Vec::new(),
            corrupt: Vec::new(),
        }
    }

    /// SHA-256 of everything that a step reads: tokens, masks, pixels to the last bit, and the rows they
    /// come from. Two runs that agree in it for every batch have read the same.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        let counts = [self.size, self.length, self.n_images, self.n_frames, self.dataset];
        for n in counts.iter().chain(&self.image_count) {
            hash.update((*n as u64).to_le_bytes());
        }
        hash.update(self.name.as_bytes());
        for id in &self.tokens {
            hash.update(id.to_le_bytes());
        }
        for image in &self.phi {
            hash.update(image.to_le_bytes());
        }
        for row in &self.rows {
            hash.update(row.to_le_bytes());
        }
        for number in self.loss_mask.iter().chain(&*self.pixels) {
            hash.update(number.to_bits().to_le_bytes());
        }
        hex(&hash.finalize())
    }

    /// Adds one sequence, padded to the shape of the batch.
    pub(crate) fn push(&mut self, example: Example, row: u64, pad_id: u32, shape: BatchShape) {
        self.size += 1;
        self.rows.push(row);
        self.image_count.push(example.images.len());
        // Padding after the end sees what the last token saw; nothing there is predicted.
        let last_phi = example.phi.last().copied().unwrap_or(crate::media_mask::SEES_NONE);
        self.tokens.extend(example.tokens);
        self.tokens.resize(self.size * shape.tokens, pad_id);
        self.phi.extend(example.phi);
        self.phi.resize(self.size * shape.tokens, last_phi);
        self.loss_mask.extend(example.loss_mask);
        self.loss_mask.resize(self.size * shape.tokens, 0.0);
        for image in example.images {
            self.pixels.extend_from_slice(&image);
            recycle(image);
        }
        self.pixels.resize(self.size * shape.images * shape.image_len, 0.0);
    }
}
