//! From a loader's batch to what the models take: the only place where the two meet.
//!
//! Letters: `B` rows, `L` tokens, `N` image places per row, `M` images in all rows, `F` frames.

use flamingo_dataset::Batch;
use flamingo_model::{Inputs, Pairs, TextBatch};

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
/// `[B, N, F, 3, H, W]`.
fn packed_pixels(batch: &Batch) -> Vec<f32> {
    let places = batch.size * batch.n_images;
    if places == 0 || batch.pixels.is_empty() {
        return Vec::new();
    }
    let image_values = batch.pixels.len() / places;
    let plane = image_values / (3 * batch.n_frames);
    let mut packed = Vec::with_capacity(batch.image_count.iter().sum::<usize>() * image_values);
    for (row, count) in batch.image_count.iter().enumerate() {
        let first = row * batch.n_images * image_values;
        batch.pixels.append_to(&mut packed, first..first + count * image_values, plane);
    }
    packed
}

#[cfg(test)]
mod tests {
    use flamingo_dataset::BatchPixels;

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
    fn a_caption_without_a_token_is_an_error_that_names_its_row() {
        let mut batch = batch();
        batch.loss_mask[4..].fill(0.0);
        let error = pairs(&batch).unwrap_err().to_string();
        assert!(error.starts_with("dataset `pages` row 9: no token"), "{error}");
    }

    #[test]
    fn padding_between_the_images_of_two_rows_is_left_out() {
        let batch = batch();
        assert_eq!(packed_pixels(&batch), [image(1.0), image(2.0), image(3.0)].concat());
        let no_images =
            Batch { n_images: 0, pixels: numbers(Vec::new()), image_count: vec![0, 0], ..batch };
        assert!(packed_pixels(&no_images).is_empty());
    }

    #[test]
    fn values_of_256_are_normalised_here() {
        let frame = |values: [u8; 3]| values.to_vec();
        let values = [[0, 51, 255], [0; 3], [255, 0, 102], [1, 2, 3]].map(frame).concat();
        let (mean, std) = ([0.0, 0.2, 0.5], [1.0, 0.5, 0.25]);
        let pixels = BatchPixels::U8 { values, mean, std };
        let batch = Batch { pixels, n_frames: 1, n_images: 2, image_count: vec![1, 1], ..batch() };
        let expected = [0.0, 0.0, 2.0, 1.0, -0.4, -0.4];
        let found = packed_pixels(&batch);
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
        assert_eq!(found.len(), 6);
    }
}
