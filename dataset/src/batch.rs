//! Examples stacked to a batch. Letters: B sequences, L tokens, N images, F frames, H = W size.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::CorpusError;
use crate::digest::hex;
use crate::pixel_buffer::PixelBuffer;
use crate::pixels::{Augment, ImageConfig, Normalise, add_bytes, add_pixels};
use crate::sample::Sequence;

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
    pub pixels: BatchPixels,
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
    /// Rows of its corpus that the sequences were made from, one after another: as many for each as are
    /// packed, or one.
    pub rows: Vec<u64>,
    /// Corrupt rows that others stand in for.
    pub corrupt: Vec<CorruptRow>,
}

/// The pixels of a batch, as numbers or as values of 256.
#[derive(Debug, Clone, PartialEq)]
pub enum BatchPixels {
    /// Normalised.
    F32(PixelBuffer),
    /// To be normalised: `(value / 255 - mean) / std` of red, green and blue.
    U8 {
        /// Values of 256.
        values: Vec<u8>,
        /// Mean of red, green and blue, 0 to 1.
        mean: [f32; 3],
        /// Standard deviation of red, green and blue.
        std: [f32; 3],
    },
}

impl BatchPixels {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(numbers) => numbers.len(),
            Self::U8 { values, .. } => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds the numbers of a range to others, normalised; `plane` is the number of pixels of one colour.
    ///
    /// # Panics
    /// When the range is not within the pixels, or does not begin with a plane of red.
    pub fn append_to(&self, numbers: &mut Vec<f32>, range: Range<usize>, plane: usize) {
        match self {
            Self::F32(pixels) => numbers.extend_from_slice(&pixels[range]),
            Self::U8 { values, mean, std } => {
                assert!(range.start.is_multiple_of(3 * plane), "{range:?} begins within an image");
                let normalise = Normalise::new(*mean, *std);
                for (values, colour) in values[range].chunks(plane).zip((0..3).cycle()) {
                    let number = |value: &u8| normalise.number(f32::from(*value), colour);
                    numbers.extend(values.iter().map(number));
                }
            }
        }
    }

    /// Adds one frame.
    pub(crate) fn add(
        &mut self,
        image: &[u8],
        config: &ImageConfig,
        augment: Option<Augment>,
    ) -> Result<(), CorpusError> {
        match self {
            Self::F32(pixels) => add_pixels(pixels, image, config, augment),
            Self::U8 { values, .. } => add_bytes(values, image, config, augment),
        }
    }

    /// Adds the last `n` of them once more.
    pub(crate) fn repeat(&mut self, n: usize) {
        let last = self.len() - n..;
        match self {
            Self::F32(pixels) => pixels.extend_from_within(last),
            Self::U8 { values, .. } => values.extend_from_within(last),
        }
    }

    /// Those of a range.
    fn slice(&self, range: Range<usize>) -> Self {
        match self {
            Self::F32(pixels) => Self::F32(pixels[range].to_vec().into()),
            Self::U8 { values, mean, std } => {
                Self::U8 { values: values[range].to_vec(), mean: *mean, std: *std }
            }
        }
    }

    /// Takes off what is more, or pads with zeros.
    pub(crate) fn resize(&mut self, n: usize) {
        match self {
            Self::F32(pixels) => pixels.resize(n, 0.0),
            Self::U8 { values, .. } => values.resize(n, 0),
        }
    }
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
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct BatchShape {
    /// L.
    pub(crate) tokens: usize,
    /// N.
    pub(crate) images: usize,
    /// F.
    pub(crate) frames: usize,
    /// Numbers in one image, F * 3 * H * W.
    pub(crate) image_len: usize,
    /// None for numbers, else mean and standard deviation.
    pub(crate) of_256: Option<([f32; 3], [f32; 3])>,
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
            pixels: match shape.of_256 {
                None => BatchPixels::F32(PixelBuffer::with_capacity(
                    size * shape.images * shape.image_len,
                )),
                Some((mean, std)) => BatchPixels::U8 { values: Vec::new(), mean, std },
            },
            image_count: Vec::new(),
            n_images: shape.images,
            n_frames: shape.frames,
            size: 0,
            length: shape.tokens,
            rows: Vec::new(),
            corrupt: Vec::new(),
        }
    }

    /// The sequences of a range, as a batch of their own. Corrupt rows stay with the whole: each of them
    /// is to be told of once.
    ///
    /// # Panics
    /// When the range is not within the batch.
    #[must_use]
    pub fn slice(&self, sequences: Range<usize>) -> Self {
        assert!(sequences.end <= self.size, "{sequences:?} of {} sequences", self.size);
        // A batch without sequences has nothing to divide.
        let of_one = |n: usize| n / self.size.max(1);
        let part = |n: usize| sequences.start * of_one(n)..sequences.end * of_one(n);
        Self {
            dataset: self.dataset,
            name: self.name.clone(),
            tokens: self.tokens[part(self.tokens.len())].to_vec(),
            phi: self.phi[part(self.phi.len())].to_vec(),
            loss_mask: self.loss_mask[part(self.loss_mask.len())].to_vec(),
            pixels: self.pixels.slice(part(self.pixels.len())),
            image_count: self.image_count[sequences.clone()].to_vec(),
            n_images: self.n_images,
            n_frames: self.n_frames,
            size: sequences.len(),
            length: self.length,
            rows: self.rows[part(self.rows.len())].to_vec(),
            corrupt: Vec::new(),
        }
    }

    /// Positions from which a token is to be predicted.
    pub fn n_predicted(&self) -> u64 {
        self.loss_mask.iter().filter(|mask| **mask > 0.0).count() as u64
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
        for number in &self.loss_mask {
            hash.update(number.to_bits().to_le_bytes());
        }
        match &self.pixels {
            BatchPixels::F32(pixels) => {
                for number in pixels.iter() {
                    hash.update(number.to_bits().to_le_bytes());
                }
            }
            BatchPixels::U8 { values, mean, std } => {
                for number in mean.iter().chain(std) {
                    hash.update(number.to_bits().to_le_bytes());
                }
                hash.update(values);
            }
        }
        hex(&hash.finalize())
    }

    /// Adds one sequence whose pixels are there already, padded to the shape of the batch.
    pub(crate) fn push(
        &mut self,
        sequence: Sequence,
        rows: &[u64],
        pad_id: u32,
        shape: BatchShape,
    ) {
        self.size += 1;
        self.rows.extend(rows);
        self.image_count.push(sequence.n_images);
        // Padding after the end sees what the last token saw; nothing there is predicted.
        let last_phi = sequence.phi.last().copied().unwrap_or(crate::media_mask::SEES_NONE);
        self.tokens.extend(sequence.tokens);
        self.tokens.resize(self.size * shape.tokens, pad_id);
        self.phi.extend(sequence.phi);
        self.phi.resize(self.size * shape.tokens, last_phi);
        self.loss_mask.extend(sequence.loss_mask);
        self.loss_mask.resize(self.size * shape.tokens, 0.0);
        self.pixels.resize(self.size * shape.images * shape.image_len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: usize = 3 * 2 * 2;

    /// Three sequences of two packed rows each, of `n_images` places of two frames; every number tells its
    /// sequence, and its place there.
    fn batch(pixels: BatchPixels) -> Batch {
        let per = |n: usize| (0..3).flat_map(move |b| (0..n).map(move |i| 100 * b + i));
        Batch {
            dataset: 1,
            name: "clips".to_owned(),
            tokens: per(4).map(|n| n as u32).collect(),
            phi: per(4).map(|n| n as i32).collect(),
            loss_mask: vec![0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            pixels,
            image_count: vec![2, 0, 1],
            n_images: 2,
            n_frames: 2,
            size: 3,
            length: 4,
            rows: per(2).map(|n| n as u64).collect(),
            corrupt: vec![CorruptRow {
                dataset: "clips".to_owned(),
                row: 7,
                problem: String::new(),
            }],
        }
    }

    fn numbers() -> BatchPixels {
        BatchPixels::F32((0..3 * 4 * FRAME).map(|n| n as f32).collect::<Vec<_>>().into())
    }

    #[test]
    fn a_slice_has_what_belongs_to_its_sequences() {
        let part = batch(numbers()).slice(1..3);
        assert_eq!(part.tokens, [100, 101, 102, 103, 200, 201, 202, 203]);
        assert_eq!(part.phi, [100, 101, 102, 103, 200, 201, 202, 203]);
        assert_eq!(part.loss_mask, [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(part.rows, [100, 101, 200, 201]);
        assert_eq!((part.image_count, part.size, part.length), (vec![0, 1], 2, 4));
        assert_eq!((part.n_images, part.n_frames, part.dataset), (2, 2, 1));
        let BatchPixels::F32(pixels) = part.pixels else { panic!("they were numbers") };
        assert_eq!(pixels[..], (4 * FRAME..12 * FRAME).map(|n| n as f32).collect::<Vec<_>>());
        assert_eq!(part.corrupt, []);
    }

    #[test]
    fn bytes_and_batches_without_pixels_are_sliced_too() {
        let values = (0..3 * 4 * FRAME).map(|n| n as u8).collect();
        let bytes = BatchPixels::U8 { values, mean: [0.1; 3], std: [0.2; 3] };
        let BatchPixels::U8 { values, mean, std } = batch(bytes).slice(0..1).pixels else {
            panic!("they were bytes")
        };
        assert_eq!((mean, std), ([0.1; 3], [0.2; 3]));
        assert_eq!(values, (0..4 * FRAME).map(|n| n as u8).collect::<Vec<_>>());
        assert!(batch(BatchPixels::F32(Vec::new().into())).slice(2..3).pixels.is_empty());
    }

    #[test]
    fn slices_one_after_the_other_are_the_whole() {
        let whole = batch(numbers());
        let parts = [whole.slice(0..1), whole.slice(1..3)];
        assert_eq!(parts.iter().map(Batch::n_predicted).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(whole.n_predicted(), 3);
        assert_eq!(parts.each_ref().map(|p| p.tokens.clone()).concat(), whole.tokens);
        let all = Batch { corrupt: Vec::new(), ..whole.clone() };
        assert_eq!(whole.slice(0..3), all);
    }
}
