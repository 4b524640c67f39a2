//! From a loader's batch to what the models take: the only place where the two meet.
//!
//! Letters: `B` rows, `L` tokens, `N` image places per row, `M` images in all rows, `F` frames.

use std::ops::Range;

use flamingo_dataset::{Batch, BatchPixels, Normalise};
use flamingo_model::{Inputs, Normal, Pairs, Pixels, TextBatch};

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
    batch.pixels.append_to(&mut pixels, 0..batch.pixels.len(), plane);
    Some((plane.isqrt(), pixels))
}

/// The pixels of the images that are there, without the padding: `[M, F, 3, H, W]` from
/// `[B, N, F, 3, H, W]`. Values of 256 stay what they are: the model normalises them where it runs.
fn packed_pixels(batch: &Batch) -> Pixels {
    let places = batch.size * batch.n_images;
    if places == 0 || batch.pixels.is_empty() {
        return Pixels::none();
    }
    let image_values = batch.pixels.len() / places;
    let kept = batch.image_count.iter().enumerate().map(|(row, count)| {
        let first = row * batch.n_images * image_values;
        first..first + count * image_values
    });
    match &batch.pixels {
        BatchPixels::F32(numbers) => Pixels::F32(parts(numbers, kept)),
        BatchPixels::U8 { values, mean, std } => {
            let Normalise { factor, shift } = Normalise::new(*mean, *std);
            Pixels::U8 { values: parts(values, kept), normal: Normal { factor, shift } }
        }
    }
}

/// Some ranges of values, one after the other.
fn parts<T: Copy>(values: &[T], kept: impl Iterator<Item = Range<usize>> + Clone) -> Vec<T> {
    let mut all = Vec::with_capacity(kept.clone().map(|range| range.len()).sum());
    kept.for_each(|range| all.extend_from_slice(&values[range]));
    all
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn values_of_256_go_to_the_model_as_they_are_and_mean_what_the_loader_means() {
        let frame = |values: [u8; 3]| values.to_vec();
        let values = [[0, 51, 255], [0; 3], [255, 0, 102], [1, 2, 3]].map(frame).concat();
        let (mean, std) = ([0.0, 0.2, 0.5], [1.0, 0.5, 0.25]);
        let pixels = BatchPixels::U8 { values, mean, std };
        let batch = Batch { pixels, n_frames: 1, n_images: 2, image_count: vec![1, 1], ..batch() };
        let packed = packed_pixels(&batch);
        let Pixels::U8 { values, .. } = &packed else { panic!("{packed:?}") };
        assert_eq!(values[..], [0, 51, 255, 255, 0, 102]);
        let found = PixelsRef::from(&packed).numbers(3).into_owned();
        let expected = [0.0, 0.0, 2.0, 1.0, -0.4, -0.4];
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
        let mut of_loader = Vec::new();
        batch.pixels.append_to(&mut of_loader, 0..3, 1);
        batch.pixels.append_to(&mut of_loader, 6..9, 1);
        let bits = |numbers: &[f32]| numbers.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
        assert_eq!(bits(&found), bits(&of_loader));
    }
}
