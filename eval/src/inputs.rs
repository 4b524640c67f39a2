//! From a prompt and its images to what the model takes: the only place where the two meet.

use flamingo_dataset::{CorpusError, EncodedImage, ImageConfig, Tokenizer, image_pixels};
use flamingo_model::{Latents, ModelError, Prompt as ModelPrompt, TextBatch};

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

/// Pixels of a still image, one frame: `[1, 1, 3, H, W]`.
///
/// # Errors
/// When the bytes are not an image.
pub fn pixels(image: &EncodedImage, config: &ImageConfig) -> Result<Vec<f32>, CorpusError> {
    image_pixels(&image.bytes, config, None)
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
    use super::*;

    #[test]
    fn only_answers_are_predicted_and_padding_is_not() {
        let sequence = |tokens: &[u32]| Prompt { tokens: tokens.to_vec(), images: Vec::new() };
        let batch = text_batch(&[sequence(&[1, 7, 8, 9]), sequence(&[1, 5, 6])], &[2, 1], 0);
        assert_eq!(batch.tokens, [1, 7, 8, 9, 1, 5, 6, 0]);
        assert_eq!(batch.loss_mask, [0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
    }
}
