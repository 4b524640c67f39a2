//! Examples stacked to a batch. Letters: B sequences, L tokens, N images, F frames, H = W size.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::CorpusError;
use crate::augment::{Augment, FrameAugment, Normalise, Rectangle};
use crate::digest::hex;
use crate::pixel_buffer::PixelBuffer;
use crate::pixels::{ImageConfig, PixelType, add_bytes, add_pixels};
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
    /// Augmented and normalised.
    F32(PixelBuffer<f32>),
    /// To be augmented, and normalised: `(value / 255 - mean) / std` of red, green and blue.
    U8 {
        /// Values of 256.
        values: PixelBuffer<u8>,
        /// What is to be done with each frame `[B, N, F]`; where a sequence has fewer than N images, its
        /// rectangle is empty.
        frames: Vec<FrameAugment>,
        /// Mean of red, green and blue, 0 to 1.
        mean: [f32; 3],
        /// Standard deviation of red, green and blue.
        std: [f32; 3],
    },
}

impl BatchPixels {
    /// None yet, of a type.
    pub(crate) fn of(pixels: PixelType, image: &ImageConfig) -> Self {
        match pixels {
            PixelType::F32 => Self::F32(PixelBuffer::default()),
            PixelType::U8 => Self::U8 {
                values: PixelBuffer::default(),
                frames: Vec::new(),
                mean: image.mean,
                std: image.std,
            },
        }
    }

    /// Makes room for `n` values.
    fn reserve(&mut self, n: usize) {
        match self {
            Self::F32(pixels) => *pixels = PixelBuffer::with_capacity(n),
            Self::U8 { values, .. } => *values = PixelBuffer::with_capacity(n),
        }
    }

    /// How many values there are.
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

    /// Adds the numbers of a range of whole frames to others, augmented and normalised.
    ///
    /// # Panics
    /// When the range is not within the pixels, or is one of values of 256 and not of whole frames.
    pub fn append_to(&self, numbers: &mut Vec<f32>, range: Range<usize>) {
        match self {
            Self::F32(pixels) => numbers.extend_from_slice(&pixels[range]),
            Self::U8 { values, frames, mean, std } => {
                let normalise = Normalise::new(*mean, *std);
                let frames = &frames[part_of(frames.len(), values.len(), &range)];
                let one = range.len() / frames.len().max(1);
                for (frame, values) in frames.iter().zip(values[range].chunks(one.max(1))) {
                    frame.add_numbers(numbers, values, &normalise);
                }
            }
        }
    }

    /// Adds one frame.
    pub(crate) fn add(
        &mut self,
        image: &[u8],
        config: &ImageConfig,
        augment: Augment,
    ) -> Result<(), CorpusError> {
        match self {
            Self::F32(pixels) => add_pixels(pixels, image, config, Some(augment)),
            Self::U8 { values, frames, .. } => {
                let rectangle = add_bytes(values, image, config)?;
                frames.push(FrameAugment { rectangle, augment });
                Ok(())
            }
        }
    }

    /// Adds the last frame, of `n` values, once more.
    pub(crate) fn repeat(&mut self, n: usize) {
        let last = self.len() - n..;
        match self {
            Self::F32(pixels) => pixels.extend_from_within(last),
            Self::U8 { values, frames, .. } => {
                values.extend_from_within(last);
                frames.extend(frames.last().copied());
            }
        }
    }

    /// Those of a range of whole frames.
    fn slice(&self, range: Range<usize>) -> Self {
        match self {
            Self::F32(pixels) => Self::F32(pixels[range].to_vec().into()),
            Self::U8 { values, frames, mean, std } => Self::U8 {
                frames: frames[part_of(frames.len(), values.len(), &range)].to_vec(),
                values: values[range].to_vec().into(),
                mean: *mean,
                std: *std,
            },
        }
    }

    /// Leaves the first `n` values, which are whole frames.
    pub(crate) fn truncate(&mut self, n: usize) {
        match self {
            Self::F32(pixels) => pixels.truncate(n),
            Self::U8 { values, frames, .. } => {
                frames.truncate(part_of(frames.len(), values.len(), &(0..n)).len());
                values.truncate(n);
            }
        }
    }

    /// Adds frames without an image until there are `n`, each of so many values.
    fn pad(&mut self, n: usize, frame_len: usize) {
        match self {
            Self::F32(pixels) => pixels.resize(n * frame_len, 0.0),
            Self::U8 { values, frames, .. } => {
                values.resize(n * frame_len, 0);
                let rectangle = Rectangle::NOTHING;
                frames.resize(n, FrameAugment { rectangle, augment: Augment::NONE });
            }
        }
    }
}

/// The frames, of `n_frames` with so many values, that a range of values is of.
fn part_of(n_frames: usize, n_values: usize, range: &Range<usize>) -> Range<usize> {
    // Without frames there is nothing to divide.
    let one = (n_values / n_frames.max(1)).max(1);
    let is_whole = range.start.is_multiple_of(one) && range.end.is_multiple_of(one);
    assert!(is_whole, "{range:?} is not of frames of {one} values");
    range.start / one..range.end / one
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
}

impl Batch {
    /// A batch without sequences, with room for the pixels of `size`, which are of the kind of `pixels`.
    pub(crate) fn empty(
        dataset: usize,
        name: &str,
        size: usize,
        shape: BatchShape,
        mut pixels: BatchPixels,
    ) -> Self {
        pixels.reserve(size * shape.images * shape.image_len);
        Self {
            dataset,
            name: name.to_owned(),
            tokens: Vec::new(),
            phi: Vec::new(),
            loss_mask: Vec::new(),
            pixels,
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
            BatchPixels::U8 { values, frames, mean, std } => {
                for number in mean.iter().chain(std) {
                    hash.update(number.to_bits().to_le_bytes());
                }
                for FrameAugment { rectangle, augment } in frames {
                    let Rectangle { left, top, width, height } = *rectangle;
                    for n in [left, top, width, height, usize::from(augment.flip)] {
                        hash.update((n as u64).to_le_bytes());
                    }
                    for factor in [augment.brightness, augment.contrast, augment.saturation] {
                        hash.update(factor.to_bits().to_le_bytes());
                    }
                }
                hash.update(&values[..]);
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
        let frames = shape.images * shape.frames;
        self.pixels.pad(self.size * frames, shape.image_len / shape.frames);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::Fit;

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

    /// Bytes whose frames tell their number by their left side.
    fn bytes() -> BatchPixels {
        let values: Vec<u8> = (0..3 * 4 * FRAME).map(|n| n as u8).collect();
        let rectangle = |left| Rectangle { left, top: 0, width: 1, height: 1 };
        let frame = |left| FrameAugment { rectangle: rectangle(left), augment: Augment::NONE };
        let frames = (0..12).map(frame).collect();
        BatchPixels::U8 { values: values.into(), frames, mean: [0.1; 3], std: [0.2; 3] }
    }

    #[test]
    fn bytes_and_batches_without_pixels_are_sliced_too() {
        let BatchPixels::U8 { values, frames, mean, std } = batch(bytes()).slice(1..2).pixels
        else {
            panic!("they were bytes")
        };
        assert_eq!((mean, std), ([0.1; 3], [0.2; 3]));
        assert_eq!(values[..], (4 * FRAME..8 * FRAME).map(|n| n as u8).collect::<Vec<_>>());
        let lefts = frames.iter().map(|frame| frame.rectangle.left);
        assert_eq!(lefts.collect::<Vec<_>>(), [4, 5, 6, 7]);
        assert!(batch(BatchPixels::F32(Vec::new().into())).slice(2..3).pixels.is_empty());
        let image = ImageConfig { size: 2, fit: Fit::Squash, mean: [0.1; 3], std: [0.2; 3] };
        let mut none = BatchPixels::of(PixelType::U8, &image);
        assert!(batch(none.clone()).slice(2..3).pixels.is_empty());
        let mut numbers = Vec::new();
        none.append_to(&mut numbers, 0..0);
        none.truncate(0);
        assert!(numbers.is_empty() && none.is_empty());
    }

    #[test]
    fn places_without_an_image_are_zero_and_what_is_taken_off_takes_its_frames_along() {
        let mut pixels = bytes();
        pixels.truncate(2 * FRAME);
        pixels.pad(4, FRAME);
        let BatchPixels::U8 { frames, .. } = &pixels else { panic!("they were bytes") };
        let widths = frames.iter().map(|frame| frame.rectangle.width);
        assert_eq!(widths.collect::<Vec<_>>(), [1, 1, 0, 0]);
        let mut numbers = Vec::new();
        pixels.append_to(&mut numbers, FRAME..4 * FRAME);
        assert_eq!(numbers.len(), 3 * FRAME);
        assert!(numbers[FRAME..].iter().all(|number| number.to_bits() == 0));
        assert!(numbers[1].abs() > 0.1, "{numbers:?}");
    }

    #[test]
    fn all_that_a_device_does_with_a_frame_is_part_of_the_digest() {
        let changed = |change: &dyn Fn(&mut FrameAugment)| {
            let mut pixels = bytes();
            let BatchPixels::U8 { frames, .. } = &mut pixels else { panic!("they were bytes") };
            change(&mut frames[3]);
            batch(pixels).sha256()
        };
        let digests = [
            changed(&|_| ()),
            changed(&|frame| frame.rectangle.left = 1),
            changed(&|frame| frame.rectangle.top = 1),
            changed(&|frame| frame.rectangle.width = 2),
            changed(&|frame| frame.rectangle.height = 2),
            changed(&|frame| frame.augment.flip = true),
            changed(&|frame| frame.augment.brightness = 1.5),
            changed(&|frame| frame.augment.contrast = 1.5),
            changed(&|frame| frame.augment.saturation = 1.5),
        ];
        assert_eq!(digests.iter().collect::<HashSet<_>>().len(), digests.len());
        assert_eq!(digests[0], batch(bytes()).sha256());
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
