//! From a prompt and its images to what the model takes: the only place where the two meet.

use flamingo_dataset::{CorpusError, EncodedImage, ImageConfig, Normalise, Tokenizer, image_bytes};
use flamingo_model::{
    FrameAugment, Latents, ModelError, Normal, Pixels, Prompt as ModelPrompt, Rectangle, TextBatch,
};

use crate::prompt::Prompt;

/// A prompt with the latents of its images, in the order of their marks.
///
/// # Errors
/// When the device of the latents fails.
pub fn model_prompt<'a>(
    prompt: &Prompt,
    latents: impl IntoIterator<Item = &'a Latents>,
    tokenizer: &Tokenizer,
) -> Result<ModelPrompt, ModelError> {
    Ok(ModelPrompt {
        tokens: prompt.tokens.clone(),
        phi: prompt.phi(tokenizer),
        latents: Latents::join(latents)?,
    })
}

/// Pixels of pictures, or of the frames of a film: `[F, 3, H, W]` values of 256, which the model normalises where
/// it runs.
///
/// # Errors
/// When the bytes of one are not an image.
pub fn pixels(images: &[EncodedImage], config: &ImageConfig) -> Result<Pixels, CorpusError> {
    let (mut values, mut frames) = (Vec::new(), Vec::with_capacity(images.len()));
    for image in images {
        let (of_image, at) = image_bytes(&image.bytes, config)?;
        values.extend(of_image);
        let flamingo_dataset::Rectangle { left, top, width, height } = at;
        let rectangle = Rectangle { left, top, width, height };
        frames.push(FrameAugment { rectangle, ..FrameAugment::none(config.size) });
    }
    let Normalise { factor, shift } = Normalise::new(config.mean, config.std);
    Ok(Pixels::of_256(values, frames, Normal { factor, shift }))
}

/// Sequences `[B, L]` for the bare language model, padded at the end; the tokens after the first
/// `prompt_lengths` of each are to be predicted.
pub fn text_batch(sequences: &[Prompt], prompt_lengths: &[usize], pad_id: u32) -> TextBatch {
    let length = sequences.iter().map(|sequence| sequence.tokens.len()).max().unwrap_or(0);
    let mut batch = TextBatch { tokens: Vec::new(), length, loss_mask: Vec::new() };
    for (sequence, &prompt_length) in sequences.iter().zip(prompt_lengths) {
        let n = sequence.tokens.len();
        batch.tokens.extend(&sequence.tokens);
        batch.tokens.resize(batch.tokens.len() + length - n, pad_id);
        let is_asked = |l: usize| l + 1 >= prompt_length && l + 1 < n;
        batch.loss_mask.extend((0..length).map(|l| f32::from(u8::from(is_asked(l)))));
    }
    batch
}

#[cfg(test)]
mod tests {
    use flamingo_dataset::{Fit, image_pixels};
    use flamingo_model::PixelsRef;

    use super::*;

    #[test]
    fn pictures_of_any_shape_are_the_numbers_of_the_loader() {
        let png = |width, height| {
            let colour = |x: u32, y: u32| [x * 9, y * 17, x * y].map(|value| (value % 256) as u8);
            let picture = image::RgbImage::from_fn(width, height, |x, y| image::Rgb(colour(x, y)));
            let mut bytes = std::io::Cursor::new(Vec::new());
            picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
            EncodedImage { bytes: bytes.into_inner().into(), path: None }
        };
        let images = [png(20, 7), png(16, 16), png(3, 20)];
        for fit in [Fit::MeanPad, Fit::CenterCrop] {
            let config = ImageConfig { size: 16, fit, mean: [0.3; 3], std: [0.2; 3] };
            let found = pixels(&images, &config).unwrap();
            let found = PixelsRef::from(&found).numbers(3 * 16 * 16).into_owned();
            let one = |image: &EncodedImage| image_pixels(&image.bytes, &config, None).unwrap();
            let expected: Vec<f32> = images.iter().flat_map(one).collect();
            let bits = |all: &[f32]| all.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&found), bits(&expected), "{fit:?}");
        }
    }

    #[test]
    fn only_answers_are_predicted_and_padding_is_not() {
        let sequence = |tokens: &[u32]| Prompt { tokens: tokens.to_vec(), images: Vec::new() };
        let batch = text_batch(&[sequence(&[1, 7, 8, 9]), sequence(&[1, 5, 6])], &[2, 1], 0);
        assert_eq!(batch.tokens, [1, 7, 8, 9, 1, 5, 6, 0]);
        assert_eq!(batch.loss_mask, [0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
    }
}
