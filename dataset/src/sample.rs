//! One row to one training example: tokens, which image each may see, what is predicted, pixels.
//!
//! Letters: L tokens, N images at most, F frames of an image, H = W size of a frame.
//! Everything random here is a pure function of (seed, epoch, row).
//!
//! Text form (paper section 2.4 and appendix B.1.2):
//! - a page is `<BOS>`, its slots, `<EOC><EOS>`, with `<EOC>` before each `<image>` but a first one;
//! - a pair or clip is `<BOS><image>caption<EOC><EOS>`.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::augment::Augment;
use crate::batch::BatchPixels;
use crate::digest::{sha256_hex, sha256_u64};
use crate::keyed_random::KeyedRandom;
use crate::media_mask::{SEES_NONE, phi};
use crate::pixels::{ImageConfig, PixelType};
use crate::{Attend, CorpusError, EncodedImage, Interleaved, Row, Slot, Tokenizer};

/// Which tokens are predicted. Marks `<image>` and padding never are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossMask {
    /// Every token of text, `<EOC>` and `<EOS>` included (paper, equation 1).
    Paper,
    /// `OpenFlamingo`'s: all of a caption; of a page the texts that follow an image, each up to its
    /// `<EOC>`. What stands before the first image, or between an `<EOC>` and the next image, is read
    /// and not predicted.
    OpenFlamingo,
    /// Only tokens predicted from a position that sees an image: text before the first image (or, on a
    /// page that looks ahead, after the last one) is read and not predicted.
    SeeingAnImage,
}

/// What of a row is compared with its digest before it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verify {
    /// Nothing. So it must be with corpora of others, whose digests may be of images as they were found.
    Nothing,
    /// The stored bytes of each image that is used, where the row has a digest of them. A clip's is that of
    /// its video, which is not there.
    #[default]
    Images,
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
    /// How pixels leave the loader.
    pub pixels: PixelType,
    /// Which tokens are predicted.
    pub loss: LossMask,
    /// Rows that share a sequence, one after another; 1 for one row each. `phi` of every row is of its own
    /// images, and its first token is not predicted; a language model reads the text of those before it.
    pub pack: usize,
    /// Of captions only what follows the last occurrence of this text is predicted, such as "Answer:"; of
    /// those that `loss` chooses. A caption without it, or whose tokens end before an answer, is a row that
    /// cannot be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learn_after: Option<String>,
    /// What is compared with its digest; a row that is not what its digest says cannot be used.
    #[serde(default)]
    pub verify: Verify,
}

impl SampleConfig {
    /// The first field out of its range, with what was expected.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        let counts = [
            ("tokens", self.tokens, 2),
            ("frames", self.frames, 1),
            ("image.size", self.image.size, 1),
            ("pack", self.pack, 1),
        ];
        for (field, value, least) in counts {
            if value < least {
                return Some((field, format!("is {value}, at least {least} expected")));
            }
        }
        // Each row begins with a few tokens and may show an image.
        for (field, value) in [("tokens", self.tokens / PACKED_TOKENS_MIN), ("images", self.images)]
        {
            if self.pack > 1 && value > 0 && value < self.pack {
                let pack = self.pack;
                return Some((field, format!("leave too little to each of {pack} packed rows")));
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

/// Fewest tokens of each row of a sequence that several share.
const PACKED_TOKENS_MIN: usize = 4;

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
    /// Pixels of the images that have a mark in `tokens`, `[N, F, 3, H, W]`.
    pub pixels: BatchPixels,
    /// How many images these are.
    pub n_images: usize,
    /// Which of the row's images is the first of these.
    pub first_image: usize,
}

/// An example whose pixels are elsewhere.
pub(crate) struct Sequence {
    pub(crate) tokens: Vec<u32>,
    pub(crate) phi: Vec<i32>,
    pub(crate) loss_mask: Vec<f32>,
    pub(crate) n_images: usize,
    pub(crate) first_image: usize,
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
    packed_example(&[(row, key)], config, tokenizer).map_err(|(_, error)| error)
}

/// Makes one example of several rows, one after another. Short ones are taken whole, and the others
/// share what is left evenly.
///
/// # Errors
/// When an image cannot be decoded; names the row by its place among `rows`.
pub fn packed_example(
    rows: &[(&Row, SampleKey)],
    config: &SampleConfig,
    tokenizer: &Tokenizer,
) -> Result<Example, (usize, CorpusError)> {
    let mut pixels = BatchPixels::of(config.pixels, &config.image);
    let made = make_sequence(rows, config, tokenizer, &mut pixels)?;
    let Sequence { tokens, phi, loss_mask, n_images, first_image } = made;
    Ok(Example { tokens, phi, loss_mask, pixels, n_images, first_image })
}

/// The same with the pixels added to those of others; where it fails, some may have been added.
pub(crate) fn make_sequence(
    rows: &[(&Row, SampleKey)],
    config: &SampleConfig,
    tokenizer: &Tokenizer,
    pixels: &mut BatchPixels,
) -> Result<Sequence, (usize, CorpusError)> {
    let mut documents = Vec::with_capacity(rows.len());
    for (i, (row, key)) in rows.iter().enumerate() {
        documents.push(Document::new(row, *key, config, tokenizer).map_err(|e| (i, e))?);
    }
    let lengths: Vec<_> = documents.iter().map(|document| document.tokens.len()).collect();
    let n_marks = documents.iter().map(|document| document.n_marks(tokenizer));
    let n_tokens = even_shares(&lengths, config.tokens);
    let n_images = even_shares(&n_marks.collect::<Vec<_>>(), config.images);
    let mut made = Sequence {
        tokens: Vec::with_capacity(config.tokens),
        phi: Vec::with_capacity(config.tokens),
        loss_mask: Vec::with_capacity(config.tokens),
        n_images: 0,
        first_image: 0,
    };
    let shares = n_tokens.into_iter().zip(n_images);
    for (i, (document, (tokens, images))) in documents.iter_mut().zip(shares).enumerate() {
        let window = document.window(tokens, images, config, tokenizer);
        if document.learn_from > 0 && window.tokens.len() <= document.learn_from {
            let n_tokens = window.tokens.len();
            return Err((
                i,
                no_answer(config, format!("the caption ends after {n_tokens} tokens")),
            ));
        }
        let seen = phi(&window.tokens, tokenizer.image_id(), document.attend);
        made.loss_mask.extend(loss_mask(&window.tokens, &seen, document, config.loss, tokenizer));
        let before = made.n_images as i32;
        made.phi.extend(seen.into_iter().map(|image| match image {
            image if image == SEES_NONE || config.images == 0 => SEES_NONE,
            image => before + image,
        }));
        made.tokens.extend(window.tokens);
        let (row, key) = rows[i];
        let images = window.first_image..window.first_image + window.n_images;
        add_images(row, images, config, key, pixels).map_err(|e| (i, e))?;
        made.n_images += window.n_images;
        if i == 0 {
            made.first_image = window.first_image;
        }
    }
    // What pads sees what the last token sees, and is not predicted.
    let last = made.phi.last().copied().unwrap_or(SEES_NONE);
    made.tokens.resize(config.tokens, tokenizer.pad_id());
    made.phi.resize(config.tokens, last);
    made.loss_mask.resize(config.tokens, 0.0);
    Ok(made)
}

/// Shares of `whole` for those who want this much of it: all that is wanted where it is little, and as
/// much as the others get where it is more.
fn even_shares(wanted: &[usize], whole: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by_key(|i| wanted[*i]);
    let (mut shares, mut left) = (vec![0; wanted.len()], whole);
    for (done, i) in order.into_iter().enumerate() {
        shares[i] = wanted[i].min(left / (wanted.len() - done));
        left -= shares[i];
    }
    shares
}

/// A row as tokens, before it is cut.
struct Document {
    tokens: Vec<u32>,
    attend: Attend,
    is_page: bool,
    /// The first token that may be predicted.
    learn_from: usize,
    random: KeyedRandom,
}

impl Document {
    fn new(
        row: &Row,
        key: SampleKey,
        config: &SampleConfig,
        tokenizer: &Tokenizer,
    ) -> Result<Self, CorpusError> {
        let mut random = KeyedRandom::new(&[key.seed, key.epoch, key.row, TEXT_STREAM]);
        let caption = match row {
            Row::Interleaved(page) => {
                let tokens = page_tokens(page, tokenizer);
                let attend = attend(page, config, key.seed);
                return Ok(Self { tokens, attend, is_page: true, learn_from: 0, random });
            }
            Row::ImageText(pair) => &pair.caption,
            Row::VideoText(clip) => &clip.caption,
        };
        let space = random.chance(config.space_prefix_probability);
        let caption = if space { format!(" {caption}") } else { caption.clone() };
        let tokens = caption_tokens(&caption, tokenizer);
        let learn_from = match &config.learn_after {
            None => 0,
            Some(text) => {
                let missing = || no_answer(config, "it is not in the caption".to_owned());
                let start = caption.rfind(text).ok_or_else(missing)?;
                let question = &caption[..start + text.len()];
                let same = caption_tokens(question, tokenizer).into_iter().zip(&tokens);
                // Where answer and question share a token, that token is learned.
                same.take_while(|(of_question, token)| of_question == *token).count()
            }
        };
        Ok(Self { tokens, attend: Attend::Previous, is_page: false, learn_from, random })
    }

    fn n_marks(&self, tokenizer: &Tokenizer) -> usize {
        self.tokens.iter().filter(|token| **token == tokenizer.image_id()).count()
    }

    /// What of it stands in an example, at most so many tokens and images. With no images in the whole
    /// example the marks of any number stay.
    fn window(
        &mut self,
        n_tokens: usize,
        n_images: usize,
        config: &SampleConfig,
        tokenizer: &Tokenizer,
    ) -> Window {
        if self.is_page {
            return cut(&self.tokens, n_tokens, n_images, config, tokenizer, &mut self.random);
        }
        // A caption is never cut at its start; a long one loses its end.
        self.tokens.truncate(n_tokens);
        Window { tokens: std::mem::take(&mut self.tokens), first_image: 0, n_images }
    }
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

fn no_answer(config: &SampleConfig, problem: String) -> CorpusError {
    CorpusError::NoAnswer { text: config.learn_after.clone().unwrap_or_default(), problem }
}

/// A caption as an example has it: `<BOS><image>caption<EOC><EOS>`.
pub fn caption_tokens(caption: &str, tokenizer: &Tokenizer) -> Vec<u32> {
    let mut tokens = vec![tokenizer.bos_id(), tokenizer.image_id()];
    tokens.extend(tokenizer.encode(caption));
    tokens.extend([tokenizer.eoc_id(), tokenizer.eos_id()]);
    tokens
}

/// A random window of `n_tokens`, which ends before the mark of image `n_images + 1`, if images are
/// wanted at all. A shorter page is taken whole. Images whose marks were cut off are gone.
fn cut(
    tokens: &[u32],
    n_tokens: usize,
    n_images: usize,
    config: &SampleConfig,
    tokenizer: &Tokenizer,
    random: &mut KeyedRandom,
) -> Window {
    let is_mark = |token: &&u32| **token == tokenizer.image_id();
    let start = random.below(tokens.len().saturating_sub(n_tokens) + 1);
    let end = tokens.len().min(start + n_tokens);
    let marks = (start..end).filter(|&l| is_mark(&&tokens[l]));
    let end = match config.images {
        0 => end,
        _ => marks.clone().nth(n_images).unwrap_or(end),
    };
    Window {
        tokens: tokens[start..end].to_vec(),
        first_image: tokens[..start].iter().filter(is_mark).count(),
        n_images: marks.take(n_images).count(),
    }
}

/// Whether a page's text looks ahead or back: chosen once per document, so that every epoch and every
/// corpus that holds the document chooses the same (paper appendix A.3.2).
fn attend(page: &Interleaved, config: &SampleConfig, seed: u64) -> Attend {
    let mut random = KeyedRandom::new(&[seed, sha256_u64(page.doc_id.as_bytes()), ATTEND_STREAM]);
    if random.chance(config.next_image_probability) { Attend::Next } else { Attend::Previous }
}

/// 1 where the next token of the window is to be predicted.
fn loss_mask(
    tokens: &[u32],
    seen: &[i32],
    document: &Document,
    rule: LossMask,
    tokenizer: &Tokenizer,
) -> Vec<f32> {
    let mut mask = vec![0.0; tokens.len()];
    // Whether what comes next belongs to an image, as `OpenFlamingo` counts it.
    let mut is_answer = !document.is_page;
    for l in 0..tokens.len().saturating_sub(1) {
        if document.is_page && tokens[l] == tokenizer.image_id() {
            is_answer = true;
        } else if document.is_page && tokens[l] == tokenizer.eoc_id() {
            is_answer = false;
        }
        let next = tokens[l + 1];
        let is_text = next != tokenizer.image_id() && next != tokenizer.pad_id();
        let counts = match rule {
            LossMask::Paper => true,
            LossMask::OpenFlamingo => is_answer,
            LossMask::SeeingAnImage => seen[l] != SEES_NONE,
        };
        let is_learned = is_text && counts && l + 1 >= document.learn_from;
        mask[l] = f32::from(u8::from(is_learned));
    }
    mask
}

/// Adds the pixels of some of the images of a row.
fn add_images(
    row: &Row,
    wanted: Range<usize>,
    config: &SampleConfig,
    key: SampleKey,
    pixels: &mut BatchPixels,
) -> Result<(), CorpusError> {
    if wanted.is_empty() {
        return Ok(());
    }
    let stored = row.images();
    let images: Vec<&[&EncodedImage]> = match row {
        Row::VideoText(_) if stored.is_empty() => {
            let problem = "the clip has no frames".to_owned();
            return Err(CorpusError::Image { name: None, problem });
        }
        Row::VideoText(_) => vec![&stored],
        _ => stored.chunks(1).skip(wanted.start).take(wanted.len()).collect(),
    };
    let digests = match config.verify {
        Verify::Images => row.image_digests(),
        Verify::Nothing => Vec::new(),
    };
    for (frames, idx) in images.into_iter().zip(wanted.start..) {
        if let Some(digest) = digests.get(idx) {
            verify(frames[0], digest)?;
        }
        let key = [key.seed, key.epoch, key.row, IMAGE_STREAM, idx as u64];
        let mut random = KeyedRandom::new(&key);
        add_frames(frames, config, augment(config, &mut random), pixels)?;
    }
    Ok(())
}

fn augment(config: &SampleConfig, random: &mut KeyedRandom) -> Augment {
    let flip = random.chance(config.flip_probability);
    let mut factor = || (1.0 + config.colour_jitter * (2.0 * random.unit() - 1.0)) as f32;
    Augment { flip, brightness: factor(), contrast: factor(), saturation: factor() }
}

/// Adds the pixels `[F, 3, H, W]` of F frames spread evenly over `frames`; a clip with fewer shows
/// some of them more than once, a still image stands still.
fn add_frames(
    frames: &[&EncodedImage],
    config: &SampleConfig,
    augment: Augment,
    pixels: &mut BatchPixels,
) -> Result<(), CorpusError> {
    let mut last = None;
    for i in 0..config.frames {
        let idx = i * frames.len() / config.frames;
        if last == Some(idx) {
            pixels.repeat(3 * config.image.size * config.image.size);
            continue;
        }
        let image = frames[idx];
        pixels.add(&image.bytes, &config.image, augment).map_err(|e| named(e, image))?;
        last = Some(idx);
    }
    Ok(())
}

/// Fails unless an image is the one that its row has a digest of, if it has one.
fn verify(image: &EncodedImage, digest: &str) -> Result<(), CorpusError> {
    let found = if digest.is_empty() { String::new() } else { sha256_hex(&image.bytes) };
    if found.eq_ignore_ascii_case(digest) {
        return Ok(());
    }
    let problem = format!("its SHA-256 is {found}, but was {digest} when the corpus was made");
    Err(CorpusError::Image { name: image.path.clone(), problem })
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
            pixels: PixelType::F32,
            loss: LossMask::Paper,
            pack: 1,
            learn_after: None,
            verify: Verify::Images,
        }
    }

    /// An image whose red value is its number.
    fn image(number: u8) -> EncodedImage {
        let mut bytes = Cursor::new(Vec::new());
        let pixels = image::RgbImage::from_pixel(2, 2, image::Rgb([number, 0, 0]));
        pixels.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        EncodedImage { bytes: Bytes::from(bytes.into_inner()), path: Some(format!("{number}.png")) }
    }

    /// The number of each image, or of each frame of a clip.
    fn numbers_of(made: &Example) -> Vec<u8> {
        match &made.pixels {
            BatchPixels::F32(pixels) => {
                pixels.chunks(12).map(|image| (image[0] * 255.0).round() as u8).collect()
            }
            BatchPixels::U8 { values, .. } => values.chunks(12).map(|image| image[0]).collect(),
        }
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
    fn open_flamingo_learns_what_follows_an_image_up_to_its_end_of_chunk() {
        let rule = SampleConfig { loss: LossMask::OpenFlamingo, ..config(12, 9) };
        let learned = |row: &Row| {
            let made = make(row, &rule, 0);
            // Letters of the tokens that are predicted.
            let targets = made.tokens.iter().skip(1).zip(&made.loss_mask);
            spelled(&targets.filter(|(_, m)| **m > 0.0).map(|(t, _)| *t).collect::<Vec<_>>())
        };
        assert_eq!(learned(&page("xiyiz")), "yCzC");
        assert_eq!(learned(&page("ixy")), "x\nyC");
        assert_eq!(learned(&page("xy")), "");
        assert_eq!(learned(&pair("red")), "redCE");
    }

    #[test]
    fn packed_rows_see_their_own_images_and_are_not_predicted_from_each_other() {
        let config = SampleConfig { pack: 3, ..config(24, 4) };
        let key = |row| SampleKey { seed: 1, epoch: 0, row };
        let rows = [page("xiy"), pair("red"), page("izi")];
        let rows: Vec<_> = rows.iter().zip(0..).map(|(row, number)| (row, key(number))).collect();
        let made = packed_example(&rows, &config, &tokenizer()).unwrap();
        assert_eq!(spelled(&made.tokens), "BxCIyCEBIredCEBIzCICEPPPP");
        assert_eq!(numbers_of(&made), [0, 7, 0, 1]);
        let begins = made.tokens.iter().enumerate().filter(|(_, token)| **token == 1);
        let unlearned = begins.skip(1).all(|(l, _)| made.loss_mask[l - 1] == 0.0);
        assert!(unlearned, "the end of a row predicts nothing of the next");
        // Each part is what the row alone is.
        let mut at = 0;
        for (row, key) in &rows {
            let alone = example(row, &config, &tokenizer(), *key).unwrap();
            let n = alone.tokens.iter().take_while(|token| **token != 0).count();
            assert_eq!(made.tokens[at..at + n], alone.tokens[..n]);
            assert_eq!(made.loss_mask[at..at + n], alone.loss_mask[..n]);
            let first = made.phi[..at].iter().max().map_or(0, |image| image + 1);
            let moved = |image: &i32| if *image < 0 { *image } else { image + first };
            assert_eq!(made.phi[at..at + n], alone.phi[..n].iter().map(moved).collect::<Vec<_>>());
            at += n;
        }
    }

    #[test]
    fn rows_that_are_too_long_together_share_evenly_what_short_ones_leave() {
        assert_eq!(even_shares(&[3, 90, 50], 43), [3, 20, 20]);
        assert_eq!(even_shares(&[3, 9], 43), [3, 9]);
        assert_eq!(even_shares(&[50], 43), [43]);
        assert_eq!(even_shares(&[0, 2, 2, 2], 5), [0, 1, 2, 2]);
        let config = SampleConfig { pack: 2, ..config(16, 2) };
        let (long, short) = (pair(&"z".repeat(50)), pair("red"));
        let key = SampleKey { seed: 1, epoch: 0, row: 0 };
        let made = packed_example(&[(&long, key), (&short, key)], &config, &tokenizer()).unwrap();
        let text = spelled(&made.tokens);
        assert!(text.starts_with("BIzzz") && text.ends_with("BIredCE"), "{text}");
        let bad = SampleConfig { images: 1, ..config.clone() };
        assert_eq!(bad.problem().unwrap().0, "images");
        let mut broken = short.clone();
        let Row::ImageText(pair) = &mut broken else { unreachable!() };
        pair.image.bytes = Bytes::from_static(b"nothing");
        let rows = [(&long, key), (&broken, key)];
        assert_eq!(packed_example(&rows, &config, &tokenizer()).unwrap_err().0, 1);
    }

    #[test]
    fn a_window_ends_before_one_image_too_many() {
        let made = make(&page("xiyizi"), &config(30, 2), 0);
        assert_eq!(spelled(&made.tokens).trim_end_matches('P'), "BxCIyCIzC");
        assert_eq!(numbers_of(&made), [0, 1]);
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
            let bytes = SampleConfig { pixels: PixelType::U8, ..config.clone() };
            let reds = numbers_of(&make(row, &config, 0));
            assert_eq!(numbers_of(&make(row, &bytes, 0)), reds);
            reds
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
    fn an_image_that_changed_is_refused_where_it_is_used_and_has_a_digest() {
        let mut row = page("iti");
        let Row::Interleaved(interleaved) = &mut row else { panic!("a page") };
        for slot in &mut interleaved.slots {
            if let Slot::Image { image, meta } = slot {
                meta.sha256 = sha256_hex(&image.bytes);
            }
        }
        let changed = |at: usize, row: &Row| {
            let mut row = row.clone();
            let Row::Interleaved(interleaved) = &mut row else { panic!("a page") };
            if let Slot::Image { image: stored, .. } = &mut interleaved.slots[at] {
                // Another whole image: no decoder finds anything.
                *stored = image(99);
            }
            row
        };
        let make = |row: &Row, config: &SampleConfig| {
            let key = SampleKey { seed: 0, epoch: 0, row: 0 };
            example(row, config, &tokenizer(), key)
        };
        let both = config(16, 2);
        make(&row, &both).unwrap();
        for at in [0, 2] {
            let error = make(&changed(at, &row), &both).unwrap_err();
            assert!(error.is_about_one_row(), "{error}");
            let was = sha256_hex(&row.images()[at / 2].bytes);
            assert!(error.to_string().contains(&format!("but was {was}")), "{error}");
            make(&changed(at, &row), &SampleConfig { images: 0, ..both.clone() }).unwrap();
            let unseen = SampleConfig { verify: Verify::Nothing, ..both.clone() };
            make(&changed(at, &row), &unseen).unwrap();
            // A row without digests has nothing to be compared with.
            make(&changed(at, &page("iti")), &both).unwrap();
        }

        let Row::ImageText(mut caption) = pair("a") else { panic!("a pair") };
        caption.sha256 = sha256_hex(&caption.image.bytes).to_uppercase();
        make(&Row::ImageText(caption.clone()), &config(8, 1)).unwrap();
        caption.image = image(98);
        make(&Row::ImageText(caption), &config(8, 1)).unwrap_err();
        let Row::VideoText(mut film) = clip(2) else { panic!("a clip") };
        film.sha256 = "0".repeat(64);
        make(&Row::VideoText(film), &config(8, 1)).unwrap();
    }

    #[test]
    fn only_what_follows_the_last_question_is_learned() {
        let config = SampleConfig { learn_after: Some("A:".to_owned()), ..config(24, 1) };
        let key = SampleKey { seed: 1, epoch: 0, row: 0 };
        let targets = |made: Example| {
            let targets = made.tokens.iter().skip(1).zip(&made.loss_mask);
            let targets = targets.filter(|(_, mask)| **mask > 0.0).map(|(token, _)| *token);
            tokenizer().tokens_text(&targets.collect::<Vec<_>>())
        };
        let learned = |caption: &str, config: &SampleConfig| {
            example(&pair(caption), config, &tokenizer(), key).map(targets)
        };
        let text = |caption: &str| learned(caption, &config).unwrap();
        assert_eq!(text("Q: red? A: blue"), " blue<EOC><EOS>");
        assert_eq!(text("A: red A:blue"), "blue<EOC><EOS>");
        let packed = [(&pair("A: red"), key), (&pair("Q A: blue"), key)];
        let two = SampleConfig { pack: 2, images: 2, ..config.clone() };
        let made = packed_example(&packed, &two, &tokenizer()).unwrap();
        assert_eq!(targets(made), " red<EOC><EOS> blue<EOC><EOS>");
        for (caption, words) in [
            ("Q: red? blue", "after `A:`: it is not in the caption"),
            ("Q: red? A:", "the caption ends after"),
            ("Q: red red red red red red red? A: blue", "the caption ends after 24 tokens"),
        ] {
            let error = learned(caption, &config).unwrap_err();
            assert!(error.is_about_one_row() && error.to_string().contains(words), "{error}");
        }
        let whole = SampleConfig { learn_after: None, ..config.clone() };
        assert_eq!(learned("A: red", &whole).unwrap(), "A: red<EOC><EOS>");
    }

    #[test]
    fn augmentation_is_a_function_of_the_key() {
        let config = SampleConfig { colour_jitter: 0.5, flip_probability: 0.5, ..config(8, 1) };
        let pixels = |number| make(&pair("x"), &config, number).pixels;
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
            prop_assert_eq!(made.n_images, n_marks);
            prop_assert!(n_marks <= images);
            let numbers = numbers_of(&made);
            prop_assert_eq!(numbers.len(), n_marks);
            prop_assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1), "{:?}", numbers);
            prop_assert!(made.phi.iter().all(|&p| (SEES_NONE..n_marks as i32).contains(&p)));
            prop_assert!(made.loss_mask[tokens - 1] == 0.0);
        }
    }
}
