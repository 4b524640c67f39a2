//! A prompt for evaluation: pieces of text and images to tokens, mask and pixels.
//!
//! The caller lays out the shots (paper appendix A.2); this file only knows the marks. No `<EOS>`
//! is added, so that the model goes on from the last piece.

use crate::media_mask::phi;
use crate::sample::frames_pixels;
use crate::{Attend, CorpusError, EncodedImage, ImageConfig, Tokenizer};

/// One piece of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Text; neighbours are tokenized as one.
    Text(String),
    /// One visual input: an image, or the frames of a clip.
    Image(Vec<EncodedImage>),
    /// `<EOC>`: the end of the text that belongs to an image.
    EndOfChunk,
}

/// A prompt as the model reads it. Letters: L tokens, F frames, H = W size of a frame.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedPrompt {
    /// `<BOS>` and the pieces `[L]`.
    pub tokens: Vec<u32>,
    /// Image that each token may see, the previous one; -1 none `[L]`.
    pub phi: Vec<i32>,
    /// Pixels of each image, `[F, 3, H, W]` each.
    pub pixels: Vec<Vec<f32>>,
    /// F: frames of the longest clip of the prompt, 1 where there is no image.
    pub n_frames: usize,
}

/// Encodes the pieces of a prompt. Images with fewer frames than the longest clip stand still.
///
/// # Errors
/// When an image has no frame or cannot be decoded.
pub fn encode_prompt(
    pieces: &[Piece],
    tokenizer: &Tokenizer,
    image: &ImageConfig,
) -> Result<EncodedPrompt, CorpusError> {
    let tokens = prompt_tokens(pieces, tokenizer);
    let images = || {
        pieces.iter().filter_map(|piece| match piece {
            Piece::Image(frames) => Some(frames),
            _ => None,
        })
    };
    let n_frames = images().map(Vec::len).max().unwrap_or(1);
    let mut pixels = Vec::new();
    for frames in images() {
        if frames.is_empty() {
            let problem = "a piece of the prompt has no frames".to_owned();
            return Err(CorpusError::Image { name: None, problem });
        }
        let frames: Vec<&EncodedImage> = frames.iter().collect();
        pixels.push(frames_pixels(&frames, n_frames, image, None)?);
    }
    let phi = phi(&tokens, tokenizer.image_id(), Attend::Previous);
    Ok(EncodedPrompt { tokens, phi, pixels, n_frames })
}

fn prompt_tokens(pieces: &[Piece], tokenizer: &Tokenizer) -> Vec<u32> {
    let mut tokens = vec![tokenizer.bos_id()];
    let mut text = String::new();
    for piece in pieces {
        let mark = match piece {
            Piece::Text(more) => {
                text.push_str(more);
                continue;
            }
            Piece::Image(_) => tokenizer.image_id(),
            Piece::EndOfChunk => tokenizer.eoc_id(),
        };
        tokens.extend(tokenizer.encode(&std::mem::take(&mut text)));
        tokens.push(mark);
    }
    tokens.extend(tokenizer.encode(&text));
    tokens
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use bytes::Bytes;

    use super::*;
    use crate::Fit;

    const CONFIG: ImageConfig =
        ImageConfig { size: 2, fit: Fit::Squash, mean: [0.0; 3], std: [1.0; 3] };

    fn tokenizer() -> Tokenizer {
        Tokenizer::train(["Output: red".to_owned()].into_iter(), 270).unwrap()
    }

    fn image() -> EncodedImage {
        let mut bytes = Cursor::new(Vec::new());
        let pixels = image::RgbImage::from_pixel(2, 2, image::Rgb([255, 0, 0]));
        pixels.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        EncodedImage { bytes: Bytes::from(bytes.into_inner()), path: None }
    }

    #[test]
    fn shots_are_laid_out_as_given_and_the_end_is_open() {
        let t = tokenizer();
        let text = |text: &str| Piece::Text(text.to_owned());
        let shot = [Piece::Image(vec![image()]), text("Output:"), text(" red"), Piece::EndOfChunk];
        let query = [Piece::Image(vec![image()]), text("Output: <image>")];
        let prompt = encode_prompt(&[shot.as_slice(), &query].concat(), &t, &CONFIG).unwrap();
        let expected = [
            vec![t.bos_id(), t.image_id()],
            t.encode("Output: red"),
            vec![t.eoc_id(), t.image_id()],
            t.encode("Output: <image>"),
        ];
        assert_eq!(prompt.tokens, expected.concat());
        assert_eq!(prompt.phi, phi(&prompt.tokens, t.image_id(), Attend::Previous));
        assert_eq!(prompt.phi.last(), Some(&1));
        assert_eq!(prompt.pixels.len(), 2);
        assert_eq!((prompt.n_frames, prompt.pixels[0].len()), (1, 12));
    }

    #[test]
    fn all_images_have_the_frames_of_the_longest_clip() {
        let pieces = [Piece::Image(vec![image(); 3]), Piece::Image(vec![image()])];
        let prompt = encode_prompt(&pieces, &tokenizer(), &CONFIG).unwrap();
        assert_eq!(prompt.n_frames, 3);
        assert!(prompt.pixels.iter().all(|pixels| pixels.len() == 3 * 12));
    }

    #[test]
    fn text_alone_is_a_prompt_and_an_empty_clip_is_not() {
        let t = tokenizer();
        let prompt = encode_prompt(&[Piece::Text("red".to_owned())], &t, &CONFIG).unwrap();
        assert!(prompt.pixels.is_empty() && prompt.phi.iter().all(|&p| p == -1));
        assert!(encode_prompt(&[Piece::Image(vec![])], &t, &CONFIG).is_err());
    }
}
