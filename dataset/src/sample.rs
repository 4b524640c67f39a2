//! One row to one training example: tokens, which image each may see, what is predicted, pixels.
//!
//! Letters: L tokens, N images at most, F frames of an image, H = W size of a frame.
//! Everything random here is a pure function of (seed, epoch, row).
//!
//! Text form (paper section 2.4 and appendix B.1.2):
//! - a page is `<BOS>`, its slots, `<EOC><EOS>`, with `<EOC>` before each `<image>` but a first one;
//! - a pair or clip is `<BOS><image>caption<EOC><EOS>`.

use serde::{Deserialize, Serialize};

use crate::digest::sha256_u64;
use crate::keyed_random::KeyedRandom;
use crate::media_mask::{SEES_NONE, phi};
use crate::pixels::{Augment, ImageConfig, image_pixels};
use crate::{Attend, CorpusError, EncodedImage, Interleaved, Row, Slot, Tokenizer};

/// Which tokens are predicted. Marks `<image>` and padding never are; `<EOC>` and `<EOS>` are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossMask {
    /// Every token of text.
    All,
    /// Only tokens predicted from a position that sees an image: text before the first image (or, on a
    /// page that looks ahead, after the last one) is read and not predicted.
    SeeingAnImage,
}

/// How rows of one dataset become examples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleConfig {
    /// Tokens L of an example. Paper: 256 for pages, 32 for pairs and clips.
    pub tokens: usize,
    /// Most images N of an example. Paper: 5 for pages, 1 for pairs and clips. With 0 the example is
    /// text: marks stay where they are, and no image is decoded.
    pub images: usize,
    /// Frames F of each image: 1, or for clips up to 8 in the paper.
    pub frames: usize,
    /// Probability that the text of a page sees the next image in place of the previous one
    /// (`p_next`). Paper: 0.5. Captions always see the image they belong to.
    pub next_image_probability: f64,
    /// Probability of a space before a caption. Paper: 0.5.
    pub space_prefix_probability: f64,
    /// Probability that an image is mirrored; 0 where left and right matter.
    pub flip_probability: f64,
    /// Strength s of colour jitter: brightness, contrast and saturation times 1 - s to 1 + s.
    pub colour_jitter: f64,
    /// What the vision encoder reads.
    pub image: ImageConfig,
    /// Which tokens are predicted.
    pub loss: LossMask,
}

impl SampleConfig {
    /// The first field out of its range, with what was expected.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        let counts = [
            ("tokens", self.tokens, 2),
            ("frames", self.frames, 1),
            ("image.size", self.image.size, 1),
        ];
        for (field, value, least) in counts {
            if value < least {
                return Some((field, format!("is {value}, at least {least} expected")));
            }
        }
        let shares = [
            ("next_image_probability", self.next_image_probability),
            ("space_prefix_probability", self.space_prefix_probability),
            ("flip_probability", self.flip_probability),
            ("colour_jitter", self.colour_jitter),
        ];
        for (field, value) in shares {
            if !(0.0..=1.0).contains(&value) {
                return Some((field, format!("is {value}, 0 to 1 expected")));
            }
        }
        let std = self.image.std;
        let usable = std.iter().all(|s| s.is_finite() && *s > 0.0);
        (!usable).then(|| ("image.std", format!("is {std:?}, positive numbers expected")))
    }
}

/// What an example is a function of, beside the row itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleKey {
    /// Seed of the run.
    pub seed: u64,
    /// How often the corpus was gone through before.
    pub epoch: u64,
    /// Number of the row in its corpus.
    pub row: u64,
}

/// One training example.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Token ids `[L]`, padded with `<PAD>`.
    pub tokens: Vec<u32>,
    /// Image that each token may see `[L]`, -1 none.
    pub phi: Vec<i32>,
    /// 1 where `tokens[l + 1]` is to be predicted from position l, else 0 `[L]`.
    pub loss_mask: Vec<f32>,
    /// Pixels of each image that has a mark in `tokens`, `[F, 3, H, W]` each.
    pub images: Vec<Vec<f32>>,
    /// Which of the row's images is the first of these.
    pub first_image: usize,
}

/// Purposes that draw from streams of their own, so that one does not shift another.
const TEXT_STREAM: u64 = 1;
const IMAGE_STREAM: u64 = 2;
const ATTEND_STREAM: u64 = 3;

/// Makes the example of `row` that `key` names.
///
/// # Errors
/// When an image of the example cannot be decoded.
pub fn example(
    row: &Row,
    config: &SampleConfig,
    tokenizer: &Tokenizer,
    key: SampleKey,
) -> Result<Example, CorpusError> {
    let mut random = KeyedRandom::new(&[key.seed, key.epoch, key.row, TEXT_STREAM]);
    let (window, attend) = match row {
        Row::Interleaved(page) => {
            let window = cut(&page_tokens(page, tokenizer), config, tokenizer, &mut random);
            (window, attend(page, config, key.seed))
        }
        Row::ImageText(pair) => {
            let tokens = caption_tokens(&pair.caption, config, tokenizer, &mut random);
            (from_start(tokens, config), Attend::Previous)
        }
        Row::VideoText(clip) => {
            let tokens = caption_tokens(&clip.caption, config, tokenizer, &mut random);
            (from_start(tokens, config), Attend::Previous)
        }
    };
    let mut tokens = window.tokens;
    tokens.resize(config.tokens, tokenizer.pad_id());
    let seen = phi(&tokens, tokenizer.image_id(), attend);
    let loss_mask = loss_mask(&tokens, &seen, config.loss, tokenizer);
    let phi = if config.images == 0 { vec![SEES_NONE; tokens.len()] } else { seen };
    let images = pixels_of(row, window.first_image, window.n_images, config, key)?;
    Ok(Example { tokens, phi, loss_mask, images, first_image: window.first_image })
}

/// A run of tokens of a document and the images whose marks it holds.
struct Window {
    tokens: Vec<u32>,
    first_image: usize,
    n_images: usize,
}

/// The whole page as tokens.
fn page_tokens(page: &Interleaved, tokenizer: &Tokenizer) -> Vec<u32> {
    let mut tokens = vec![tokenizer.bos_id()];
    let mut text = String::new();
    for slot in &page.slots {
        match slot {
            Slot::Text(piece) => {
                if !text.is_empty() {
                    text.push('\n');
                }
                text.push_str(piece);
            }
            Slot::Image { .. } => {
                tokens.extend(tokenizer.encode(&std::mem::take(&mut text)));
                if tokens.len() > 1 {
                    tokens.push(tokenizer.eoc_id());
                }
                tokens.push(tokenizer.image_id());
            }
        }
    }
    tokens.extend(tokenizer.encode(&text));
    tokens.extend([tokenizer.eoc_id(), tokenizer.eos_id()]);
    tokens
}

fn caption_tokens(
    caption: &str,
    config: &SampleConfig,
    tokenizer: &Tokenizer,
    random: &mut KeyedRandom,
) -> Vec<u32> {
    let space = random.chance(config.space_prefix_probability);
    let caption = if space { format!(" {caption}") } else { caption.to_owned() };
    let mut tokens = vec![tokenizer.bos_id(), tokenizer.image_id()];
    tokens.extend(tokenizer.encode(&caption));
    tokens.extend([tokenizer.eoc_id(), tokenizer.eos_id()]);
    tokens
}

/// A caption is never cut at its start; a long one loses its end.
fn from_start(mut tokens: Vec<u32>, config: &SampleConfig) -> Window {
    tokens.truncate(config.tokens);
    Window { tokens, first_image: 0, n_images: config.images.min(1) }
}

/// A random window of L tokens, which ends before the mark of image N + 1, if images are wanted at
/// all. A shorter page is taken whole. Images whose marks were cut off are gone.
fn cut(
    tokens: &[u32],
    config: &SampleConfig,
    tokenizer: &Tokenizer,
    random: &mut KeyedRandom,
) -> Window {
    let is_mark = |token: &&u32| **token == tokenizer.image_id();
    let start = random.below(tokens.len().saturating_sub(config.tokens) + 1);
    let end = tokens.len().min(start + config.tokens);
    let marks = (start..end).filter(|&l| is_mark(&&tokens[l]));
    let end = match config.images {
        0 => end,
        n_images => marks.clone().nth(n_images).unwrap_or(end),
    };
    Window {
        tokens: tokens[start..end].to_vec(),
        first_image: tokens[..start].iter().filter(is_mark).count(),
        n_images: marks.take(config.images).count(),
    }
}

/// Whether a page's text looks ahead or back: chosen once per document, so that every epoch and every
/// corpus that holds the document chooses the same (paper appendix A.3.2).
fn attend(page: &Interleaved, config: &SampleConfig, seed: u64) -> Attend {
    let mut random = KeyedRandom::new(&[seed, sha256_u64(page.doc_id.as_bytes()), ATTEND_STREAM]);
    if random.chance(config.next_image_probability) { Attend::Next } else { Attend::Previous }
}

fn loss_mask(tokens: &[u32], seen: &[i32], rule: LossMask, tokenizer: &Tokenizer) -> Vec<f32> {
    let mut mask = vec![0.0; tokens.len()];
    for l in 0..tokens.len().saturating_sub(1) {
        let next = tokens[l + 1];
        let is_text = next != tokenizer.image_id() && next != tokenizer.pad_id();
        let counts = match rule {
            LossMask::All => true,
            LossMask::SeeingAnImage => seen[l] != SEES_NONE,
        };
        mask[l] = f32::from(u8::from(is_text && counts));
    }
    mask
}

fn pixels_of(
    row: &Row,
    first_image: usize,
    n_images: usize,
    config: &SampleConfig,
    key: SampleKey,
) -> Result<Vec<Vec<f32>>, CorpusError> {
    if n_images == 0 {
        return Ok(Vec::new());
    }
    let stored = row.images();
    let images: Vec<&[&EncodedImage]> = match row {
        Row::VideoText(_) if stored.is_empty() => {
            let problem = "the clip has no frames".to_owned();
            return Err(CorpusError::Image { name: None, problem });
        }
        Row::VideoText(_) => vec![&stored],
        _ => stored.chunks(1).skip(first_image).take(n_images).collect(),
    };
    let with_idx = images.into_iter().zip(first_image as u64..);
    with_idx
        .map(|(frames, idx)| {
            let mut random = KeyedRandom::new(&[key.seed, key.epoch, key.row, IMAGE_STREAM, idx]);
            frames_pixels(frames, config.frames, &config.image, Some(augment(config, &mut random)))
        })
        .collect()
}

fn augment(config: &SampleConfig, random: &mut KeyedRandom) -> Augment {
    let flip = random.chance(config.flip_probability);
    let mut factor = || (1.0 + config.colour_jitter * (2.0 * random.unit() - 1.0)) as f32;
    Augment { flip, brightness: factor(), contrast: factor(), saturation: factor() }
}

/// Pixels `[F, 3, H, W]` of `n_frames` frames spread evenly over `frames`; a clip with fewer shows
/// some of them more than once, a still image stands still.
fn frames_pixels(
    frames: &[&EncodedImage],
    n_frames: usize,
    config: &ImageConfig,
    augment: Option<Augment>,
) -> Result<Vec<f32>, CorpusError> {
    if n_frames == 1 {
        let image = frames[0];
        return image_pixels(&image.bytes, config, augment).map_err(|e| named(e, image));
    }
    let mut pixels = Vec::with_capacity(n_frames * 3 * config.size * config.size);
    let mut last = None;
    for i in 0..n_frames {
        let idx = i * frames.len() / n_frames;
        if last == Some(idx) {
            let frame = pixels.len() - 3 * config.size * config.size;
            pixels.extend_from_within(frame..);
            continue;
        }
        let image = frames[idx];
        pixels.extend(image_pixels(&image.bytes, config, augment).map_err(|e| named(e, image))?);
        last = Some(idx);
    }
    Ok(pixels)
}

fn named(error: CorpusError, image: &EncodedImage) -> CorpusError {
    match error {
        CorpusError::Image { problem, .. } => {
            CorpusError::Image { name: image.path.clone(), problem }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::media_mask::SEES_NONE;
    use crate::{Fit, ImageMeta, ImageText, VideoText};

    fn tokenizer() -> Tokenizer {
        Tokenizer::train(["red circle blue square".to_owned()].into_iter(), 270).unwrap()
    }

    fn config(tokens: usize, images: usize) -> SampleConfig {
        SampleConfig {
            tokens,
            images,
            frames: 1,
            next_image_probability: 0.0,
            space_prefix_probability: 0.0,
            flip_probability: 0.0,
            colour_jitter: 0.0,
            image: ImageConfig { size: 2, fit: Fit::Squash, mean: [0.0; 3], std: [1.0; 3] },
            loss: LossMask::All,
        }
    }

    /// An image whose red value is its number.
    fn image(number: u8) -> EncodedImage {
        let mut bytes = Cursor::new(Vec::new());
        let pixels = image::RgbImage::from_pixel(2, 2, image::Rgb([number, 0, 0]));
        pixels.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        EncodedImage { bytes: Bytes::from(bytes.into_inner()), path: Some(format!("{number}.png")) }
    }

    fn number_of(pixels: &[f32]) -> u8 {
        (pixels[0] * 255.0).round() as u8
    }

    /// A page from a pattern: `i` is an image, any other letter a text.
    fn page(pattern: &str) -> Row {
        let mut n_images = 0;
        let slots = pattern.chars().map(|c| {
            if c != 'i' {
                return Slot::Text(c.to_string());
            }
            n_images += 1;
            let meta = ImageMeta {
                url: None,
                alt: None,
                width: 2,
                height: 2,
                sha256: String::new(),
                phash: 0,
                mime: "image/png".to_owned(),
            };
            Slot::Image { image: image(n_images - 1), meta }
        });
        Row::Interleaved(Interleaved {
            doc_id: "d".to_owned(),
            url: String::new(),
            slots: slots.collect(),
            title: None,
            lang: None,
            lang_score: None,
            warc: None,
            fetched_at_us: None,
        })
    }

    fn pair(caption: &str) -> Row {
        Row::ImageText(ImageText {
            key: "k".to_owned(),
            url: None,
            caption: caption.to_owned(),
            image: image(7),
            width: 2,
            height: 2,
            original_width: 2,
            original_height: 2,
            sha256: String::new(),
            phash: 0,
            source: None,
            scores: vec![],
            warc: None,
        })
    }

    fn clip(n_frames: u8) -> Row {
        Row::VideoText(VideoText {
            key: "k".to_owned(),
            url: None,
            caption: "c".to_owned(),
            frames: (0..n_frames).map(image).collect(),
            frame_ms: (0..i32::from(n_frames)).collect(),
            start_ms: 0,
            end_ms: 1,
            duration_ms: 1,
            width: 2,
            height: 2,
            codec: "h264".to_owned(),
            sha256: String::new(),
        })
    }

    fn make(row: &Row, config: &SampleConfig, number: u64) -> Example {
        example(row, config, &tokenizer(), SampleKey { seed: 1, epoch: 0, row: number }).unwrap()
    }

    /// Tokens as letters: P pad, B bos, E eos, I image, C eoc, else the byte.
    fn spelled(tokens: &[u32]) -> String {
        let tokenizer = tokenizer();
        let letter = |&token: &u32| match token {
            0 => "P".to_owned(),
            1 => "B".to_owned(),
            2 => "E".to_owned(),
            3 => "I".to_owned(),
            4 => "C".to_owned(),
            other => tokenizer.decode(&[other]),
        };
        tokens.iter().map(letter).collect()
    }

    #[test]
    fn an_end_of_chunk_stands_before_every_image_but_a_first_one_and_at_the_end() {
        let check = |pattern: &str, expected: &str| {
            let tokens = make(&page(pattern), &config(40, 9), 0).tokens;
            assert_eq!(spelled(&tokens).trim_end_matches('P'), expected, "{pattern}");
        };
        check("ix", "BIxCE");
        check("xi", "BxCICE");
        check("xiyiz", "BxCIyCIzCE");
        check("ii", "BICICE");
        check("xyi", "Bx\nyCICE");
        check("xixyi", "BxCIx\nyCICE");
        check("", "BCE");
    }

    #[test]
    fn a_pair_is_image_caption_end() {
        let made = make(&pair("red"), &config(10, 1), 0);
        assert_eq!(spelled(&made.tokens).trim_end_matches('P'), "BIredCE");
        assert_eq!(made.phi[..3], [-1, 0, 0]);
        let spaced = SampleConfig { space_prefix_probability: 1.0, ..config(10, 1) };
        let spaced = make(&pair("red"), &spaced, 0);
        assert_eq!(spelled(&spaced.tokens).trim_end_matches('P'), "BI redCE");
        let long = make(&pair(&"z".repeat(99)), &config(10, 1), 0);
        assert_eq!(spelled(&long.tokens), "BIzzzzzzzz");
    }

    #[test]
    fn marks_and_padding_are_never_predicted() {
        let made = make(&page("xiy"), &config(10, 9), 0);
        assert_eq!(spelled(&made.tokens), "BxCIyCEPPP");
        assert_eq!(made.loss_mask, [1., 1., 0., 1., 1., 1., 0., 0., 0., 0.]);
        let after = SampleConfig { loss: LossMask::SeeingAnImage, ..config(10, 9) };
        let made = make(&page("xiy"), &after, 0);
        assert_eq!(made.loss_mask, [0., 0., 0., 1., 1., 1., 0., 0., 0., 0.]);
        let ahead = SampleConfig { next_image_probability: 1.0, ..after };
        let made = make(&page("xiy"), &ahead, 0);
        assert_eq!(made.loss_mask, [1., 1., 0., 1., 0., 0., 0., 0., 0., 0.]);
    }

    #[test]
    fn a_window_ends_before_one_image_too_many() {
        let made = make(&page("xiyizi"), &config(30, 2), 0);
        assert_eq!(spelled(&made.tokens).trim_end_matches('P'), "BxCIyCIzC");
        assert_eq!(made.images.iter().map(|i| number_of(i)).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn the_next_image_is_seen_as_often_as_asked() {
        let half = SampleConfig { next_image_probability: 0.5, ..config(8, 9) };
        let looks_ahead = |document: usize, number| {
            let Row::Interleaved(mut page) = page("xi") else { unreachable!() };
            page.doc_id = document.to_string();
            make(&Row::Interleaved(page), &half, number).phi[0] == 0
        };
        let next = (0..400).filter(|&document| looks_ahead(document, 0)).count();
        assert!((160..240).contains(&next), "{next} of 400");
        let always =
            |document| (0..9).all(|n| looks_ahead(document, n) == looks_ahead(document, 0));
        assert!((0..20).all(always), "a document chooses once, whatever the row and epoch");
    }

    #[test]
    fn frames_are_spread_over_a_clip_and_a_short_clip_stands_still() {
        let frames = |n_frames, row: &Row| {
            let config = SampleConfig { frames: n_frames, ..config(8, 1) };
            let pixels = make(row, &config, 0).images.remove(0);
            pixels.chunks(12).map(number_of).collect::<Vec<_>>()
        };
        assert_eq!(frames(4, &clip(8)), [0, 2, 4, 6]);
        assert_eq!(frames(4, &clip(2)), [0, 0, 1, 1]);
        assert_eq!(frames(3, &pair("x")), [7, 7, 7]);
    }

    #[test]
    fn a_corrupt_image_names_itself_and_only_if_it_is_needed() {
        let Row::Interleaved(mut bad) = page("ixi") else { unreachable!() };
        let Slot::Image { image, .. } = &mut bad.slots[2] else { unreachable!() };
        image.bytes = Bytes::from_static(b"nothing");
        let bad = Row::Interleaved(bad);
        let key = SampleKey { seed: 1, epoch: 0, row: 0 };
        let error = example(&bad, &config(20, 2), &tokenizer(), key).unwrap_err();
        assert!(error.is_about_one_row() && error.to_string().contains("1.png"), "{error}");
        assert!(example(&bad, &config(20, 1), &tokenizer(), key).is_ok());
        assert!(example(&clip(0), &config(20, 1), &tokenizer(), key).is_err());
    }

    #[test]
    fn augmentation_is_a_function_of_the_key() {
        let config = SampleConfig { colour_jitter: 0.5, flip_probability: 0.5, ..config(8, 1) };
        let pixels = |number| make(&pair("x"), &config, number).images;
        assert_eq!(pixels(1), pixels(1));
        assert_ne!(pixels(1), pixels(2));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// In every window: one image per mark, the right ones, and no token sees one that is gone.
        #[test]
        fn marks_and_images_agree(
            pattern in "[xi]{0,14}",
            tokens in 2..20usize,
            images in 1..4usize,
            next in any::<bool>(),
            number in any::<u64>(),
        ) {
            let mut config = config(tokens, images);
            config.next_image_probability = f64::from(u8::from(next));
            let made = make(&page(&pattern), &config, number);
            prop_assert_eq!(made.tokens.len(), tokens);
            let n_marks = made.tokens.iter().filter(|&&t| t == 3).count();
            prop_assert_eq!(made.images.len(), n_marks);
            prop_assert!(n_marks <= images);
            let numbers: Vec<u8> = made.images.iter().map(|i| number_of(i)).collect();
            prop_assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1), "{:?}", numbers);
            prop_assert!(made.phi.iter().all(|&p| (SEES_NONE..n_marks as i32).contains(&p)));
            prop_assert!(made.loss_mask[tokens - 1] == 0.0);
        }
    }
}
