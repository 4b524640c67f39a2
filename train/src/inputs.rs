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

/// The pixels of the images that are there, without the padding: `[M, F, 3, H, W]` from
/// `[B, N, F, 3, H, W]`.
fn packed_pixels(batch: &Batch) -> Vec<f32> {
    let places = batch.size * batch.n_images;
    if places == 0 {
        return Vec::new();
    }
    let image_values = batch.pixels.len() / places;
    let rows = batch.pixels.chunks(batch.n_images * image_values);
    let counted = rows.zip(&batch.image_count);
    counted.flat_map(|(row, count)| &row[..count * image_values]).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(value: f32) -> [f32; 6] {
        [value; 6]
    }

    /// Two rows of four tokens with one and two images; the first ends in padding.
    fn batch() -> Batch {
        Batch {
            dataset: 0,
            name: "pages".to_owned(),
            tokens: vec![1, 3, 9, 0, 1, 3, 9, 3],
            phi: vec![-1, 0, 0, 0, -1, 0, 0, 1],
            loss_mask: vec![0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0],
            pixels: [image(1.0), image(0.0), image(2.0), image(3.0)].concat().into(),
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
            Batch { n_images: 0, pixels: Vec::new().into(), image_count: vec![0, 0], ..batch };
        assert!(packed_pixels(&no_images).is_empty());
    }
}
