//! From a loader's batch to what the models take: the only place where the two meet.
//!
//! Letters: `B` rows, `L` tokens, `N` image places per row, `M` images in all rows, `F` frames.

use std::ops::Range;

use flamingo_dataset::{Augment, Batch, BatchPixels, Normalise};
use flamingo_model::{FrameAugment, Inputs, Normal, Pairs, Pixels, Rectangle, TextBatch};

use crate::error::TrainError;

/// All of a batch, for the whole model.
pub fn inputs(batch: &Batch) -> Inputs {
    Inputs {
        tokens: batch.tokens.clone(),
        length: batch.length,
        phi: batch.phi.clone(),
        loss_mask: batch.loss_mask.clone(),
        pixels: packed_pixels(batch),
        features: None,
        n_frames: batch.n_frames,
        image_count: batch.image_count.clone(),
    }
}

/// The text of a batch, for the language model.
pub fn text(batch: &Batch) -> TextBatch {
    TextBatch {
        tokens: batch.tokens.clone(),
        length: batch.length,
        loss_mask: batch.loss_mask.clone(),
    }
}

/// The images and captions of a batch of pairs, for the contrastive model.
///
/// # Errors
/// When nothing is left of a caption.
pub fn pairs(batch: &Batch) -> Result<Pairs, TrainError> {
    let rows = batch.loss_mask.chunks(batch.length).zip(&batch.rows);
    let real_tokens = |(mask, row): (&[f32], &u64)| {
        // The last position that predicts is followed by the last real token.
        let last = mask.iter().rposition(|m| *m > 0.0);
        last.map(|l| l + 2)
            .ok_or_else(|| TrainError::NoCaption { name: batch.name.clone(), row: *row })
    };
    Ok(Pairs {
        images: packed_pixels(batch),
        tokens: batch.tokens.clone(),
        length: batch.length,
        lengths: rows.map(real_tokens).collect::<Result<_, _>>()?,
    })
}

/// How many tokens a step computes: of each row those up to the last that predicts, since the models
/// leave out what comes after it.
pub(crate) fn computed_tokens(batch: &Batch) -> usize {
    let of_row = |mask: &[f32]| mask.iter().rposition(|m| *m > 0.0).map_or(0, |last| last + 1);
    batch.loss_mask.chunks(batch.length).map(of_row).sum()
}

/// All pixels of a batch with the padding, `[B, N, F, 3, H, W]`, and `H`; none where there are no images.
pub(crate) fn padded_pixels(batch: &Batch) -> Option<(usize, Vec<f32>)> {
    let frames = batch.size * batch.n_images * batch.n_frames;
    if frames == 0 || batch.pixels.is_empty() {
        return None;
    }
    let plane = batch.pixels.len() / (3 * frames);
    let mut pixels = Vec::with_capacity(batch.pixels.len());
    batch.pixels.append_to(&mut pixels, 0..batch.pixels.len());
    Some((plane.isqrt(), pixels))
}

/// The pixels of the images that are there, without the padding: `[M, F, 3, H, W]` from
/// `[B, N, F, 3, H, W]`. Values of 256 stay what they are: the model augments and normalises them where it runs.
fn packed_pixels(batch: &Batch) -> Pixels {
    let places = batch.size * batch.n_images;
    if places == 0 || batch.pixels.is_empty() {
        return Pixels::none();
    }
    // Of all that each place has so many of.
    let kept = |of_place: usize| {
        batch.image_count.iter().enumerate().map(move |(row, count)| {
            let first = row * batch.n_images * of_place;
            first..first + count * of_place
        })
    };
    let of_values = kept(batch.pixels.len() / places);
    match &batch.pixels {
        BatchPixels::F32(numbers) => Pixels::F32(parts(numbers, of_values)),
        BatchPixels::U8 { values, frames, mean, std } => {
            let Normalise { factor, shift } = Normalise::new(*mean, *std);
            let frames = parts(frames, kept(batch.n_frames)).into_iter().map(frame).collect();
            Pixels::of_256(parts(values, of_values), frames, Normal { factor, shift })
        }
    }
}

/// What the loader leaves to be done with a frame, as the model takes it.
fn frame(frame: flamingo_dataset::FrameAugment) -> FrameAugment {
    let flamingo_dataset::Rectangle { left, top, width, height } = frame.rectangle;
    let Augment { flip, brightness, contrast, saturation } = frame.augment;
    let rectangle = Rectangle { left, top, width, height };
    FrameAugment { rectangle, flip, brightness, contrast, saturation }
}

/// Some ranges of values, one after the other.
fn parts<T: Copy>(values: &[T], kept: impl Iterator<Item = Range<usize>> + Clone) -> Vec<T> {
    let mut all = Vec::with_capacity(kept.clone().map(|range| range.len()).sum());
    kept.for_each(|range| all.extend_from_slice(&values[range]));
    all
}

#[cfg(test)]
mod tests {
    use flamingo_dataset::{Fit, ImageConfig, image_bytes, image_pixels};
    use flamingo_model::PixelsRef;

    use super::*;

    fn image(value: f32) -> [f32; 6] {
        [value; 6]
    }

    fn numbers(numbers: Vec<f32>) -> BatchPixels {
        BatchPixels::F32(numbers.into())
    }

    /// Two rows of four tokens with one and two images; the first ends in padding.
    fn batch() -> Batch {
        Batch {
            dataset: 0,
            name: "pages".to_owned(),
            tokens: vec![1, 3, 9, 0, 1, 3, 9, 3],
            phi: vec![-1, 0, 0, 0, -1, 0, 0, 1],
            loss_mask: vec![0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0],
            pixels: numbers([image(1.0), image(0.0), image(2.0), image(3.0)].concat()),
            image_count: vec![1, 2],
            n_images: 2,
            n_frames: 2,
            size: 2,
            length: 4,
            rows: vec![7, 9],
            corrupt: Vec::new(),
        }
    }

    #[test]
    fn the_padding_of_a_caption_is_not_real() {
        assert_eq!(pairs(&batch()).unwrap().lengths, [3, 4]);
    }

    #[test]
    fn tokens_after_the_last_prediction_are_not_counted() {
        assert_eq!(computed_tokens(&batch()), 2 + 3);
        let nothing = Batch { loss_mask: vec![0.0; 8], ..batch() };
        assert_eq!(computed_tokens(&nothing), 0);
    }

    #[test]
    fn a_caption_without_a_token_is_an_error_that_names_its_row() {
        let mut batch = batch();
        batch.loss_mask[4..].fill(0.0);
        let error = pairs(&batch).unwrap_err().to_string();
        assert!(error.starts_with("dataset `pages` row 9: no token"), "{error}");
    }

    #[test]
    fn padding_between_the_images_of_two_rows_is_left_out() {
        let batch = batch();
        let kept = [image(1.0), image(2.0), image(3.0)].concat();
        assert_eq!(packed_pixels(&batch), Pixels::F32(kept));
        let no_images =
            Batch { n_images: 0, pixels: numbers(Vec::new()), image_count: vec![0, 0], ..batch };
        assert!(packed_pixels(&no_images).is_empty());
    }

    /// A picture of many colours.
    fn picture(width: u32, height: u32) -> Vec<u8> {
        let picture = image::RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([x * 37 + y, y * 23, x * y * 5 + 90].map(|value| (value % 256) as u8))
        });
        let mut bytes = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    fn bits(numbers: &[f32]) -> Vec<u32> {
        numbers.iter().map(|number| number.to_bits()).collect()
    }

    /// Changes of colours alone and together, each also mirrored.
    fn changes() -> Vec<Augment> {
        let factors = [[1.0, 1.0, 1.0], [1.4, 1.0, 1.0], [1.0, 0.3, 1.0], [1.0, 1.0, 1.8]];
        let together = [[0.6, 1.7, 0.2], [1.9, 1.9, 1.9], [0.0, 0.0, 0.0]];
        let all = factors.into_iter().chain(together).flat_map(|factors| {
            let [brightness, contrast, saturation] = factors;
            [false, true].map(|flip| Augment { flip, brightness, contrast, saturation })
        });
        all.collect()
    }

    #[test]
    fn values_of_256_become_the_numbers_of_the_loader_to_the_last_bit() {
        let (mean, std) = ([0.48, 0.45, 0.4], [0.26, 0.27, 0.28]);
        for (width, height) in [(31, 18), (18, 31), (40, 40), (5, 64), (64, 3), (17, 16)] {
            let picture = picture(width, height);
            for (size, fit) in [
                (16, Fit::MeanPad),
                (21, Fit::MeanPad),
                (16, Fit::CenterCrop),
                (16, Fit::CropFrom(18)),
                (12, Fit::Squash),
            ] {
                let config = ImageConfig { size, fit, mean, std };
                let (one, rectangle) = image_bytes(&picture, &config).unwrap();
                // A row for each change, with one image; the second place of each stays empty.
                let changes = changes();
                let (mut values, mut frames, mut expected) = (Vec::new(), Vec::new(), Vec::new());
                for augment in &changes {
                    let nothing = flamingo_dataset::Rectangle { width: 0, height: 0, ..rectangle };
                    for rectangle in [rectangle, nothing] {
                        let augment = *augment;
                        frames.push(flamingo_dataset::FrameAugment { rectangle, augment });
                    }
                    values.extend_from_slice(&one);
                    values.resize(values.len() + one.len(), 0);
                    expected.push(image_pixels(&picture, &config, Some(*augment)).unwrap());
                }
                let n_rows = changes.len();
                let values = values.into();
                let batch = Batch {
                    pixels: BatchPixels::U8 { values, frames, mean, std },
                    n_frames: 1,
                    size: n_rows,
                    image_count: vec![1; n_rows],
                    ..batch()
                };
                let packed = packed_pixels(&batch);
                let found = PixelsRef::from(&packed).numbers(one.len()).into_owned();
                assert_eq!(
                    bits(&found),
                    bits(&expected.concat()),
                    "{width} x {height}: {config:?}"
                );
                let zeros = vec![0.0; one.len()];
                let padded = expected.iter().flat_map(|image| [image, &zeros]).flatten().copied();
                let (side, found) = padded_pixels(&batch).unwrap();
                assert_eq!(bits(&found), bits(&padded.collect::<Vec<_>>()));
                assert_eq!(side, size);
            }
        }
    }

    #[test]
    fn films_and_images_keep_what_is_to_be_done_with_them() {
        let frame = |left| flamingo_dataset::FrameAugment {
            rectangle: flamingo_dataset::Rectangle { left, top: 0, width: 1, height: 1 },
            augment: Augment { flip: left % 2 == 0, ..Augment::NONE },
        };
        let values: Vec<u8> = (0..24).collect();
        let pixels = BatchPixels::U8 {
            values: values.into(),
            frames: (0..8).map(frame).collect(),
            mean: [0.5; 3],
            std: [0.5; 3],
        };
        // Two rows of two places of two frames: of the first row one place is kept.
        let packed = packed_pixels(&Batch { pixels: pixels.clone(), ..batch() });
        let Pixels::U8 { values, frames, .. } = packed else { panic!("values of 256") };
        assert_eq!(values, (0..6).chain(12..24).collect::<Vec<u8>>());
        let lefts: Vec<_> = frames.iter().map(|frame| frame.rectangle.left).collect();
        assert_eq!(lefts, [0, 1, 4, 5, 6, 7]);
        assert!(frames.iter().all(|frame| frame.flip == (frame.rectangle.left % 2 == 0)));

        let BatchPixels::U8 { values, mut frames, mean, std } = pixels else { unreachable!() };
        let still = flamingo_dataset::FrameAugment { augment: Augment::NONE, ..frame(0) };
        frames.fill(still);
        // A place that is not kept may be of any kind.
        frames[2..4].fill(frame(2));
        let pixels = BatchPixels::U8 { values, frames, mean, std };
        let Pixels::U8 { frames, .. } = packed_pixels(&Batch { pixels, ..batch() }) else {
            panic!("values of 256")
        };
        assert_eq!(frames, [], "nothing is to be done");
    }
}
