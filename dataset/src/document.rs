//! The rows of a corpus, as values: a page, an image with its text, a clip with its text.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::CorpusKind;

/// Mark that stands for one image in the joined text of a document.
pub const IMAGE_MARK: &str = "<image>";

/// What the allocator takes for a text beside its bytes.
const ALLOCATION_BYTES: usize = 16;

/// Bytes that a row takes beside its images and texts; only used to size row groups.
const ROW_OVERHEAD_BYTES: usize = 256;

/// An image as it lies in the corpus: a complete JPEG, PNG, WebP or other file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncodedImage {
    /// The whole file.
    #[serde(with = "byte_string")]
    pub bytes: Bytes,
    /// A file name, where one is known.
    pub path: Option<String>,
}

/// What is known of one image of a page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageMeta {
    /// Absolute URL the image came from.
    pub url: Option<String>,
    /// The `alt` attribute.
    pub alt: Option<String>,
    /// Width of the stored image in pixels.
    pub width: i32,
    /// Height of the stored image in pixels.
    pub height: i32,
    /// Hex SHA-256 of the stored bytes.
    pub sha256: String,
    /// Perceptual hash, 64 bits.
    pub phash: u64,
    /// Media type, e.g. `image/jpeg`.
    pub mime: String,
}

/// One place of a page: text, or an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Slot {
    /// A run of text.
    Text(String),
    /// An image.
    Image {
        /// The file.
        image: EncodedImage,
        /// What is known of it.
        meta: ImageMeta,
    },
}

impl Slot {
    fn image_mut(&mut self) -> Option<&mut EncodedImage> {
        match self {
            Self::Text(_) => None,
            Self::Image { image, .. } => Some(image),
        }
    }

    /// Whether this slot is an image.
    pub fn is_image(&self) -> bool {
        matches!(self, Self::Image { .. })
    }
}

/// Where a record lies in a WARC file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarcPlace {
    /// Name of the WARC file.
    pub filename: String,
    /// First byte of the record.
    pub offset: i64,
    /// Length of the record in bytes, as stored.
    pub length: i64,
}

/// A web page: text and images in reading order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interleaved {
    /// Stable identifier of the document.
    pub doc_id: String,
    /// Address of the page.
    pub url: String,
    /// The page in reading order.
    pub slots: Vec<Slot>,
    /// Title of the page.
    pub title: Option<String>,
    /// Language code, e.g. `en`.
    pub lang: Option<String>,
    /// Confidence of `lang`, 0 to 1.
    pub lang_score: Option<f32>,
    /// Where the page was read from.
    pub warc: Option<WarcPlace>,
    /// Time of the fetch in microseconds since 1970, UTC.
    pub fetched_at_us: Option<i64>,
}

/// The joined text of a document, with a mark where each image stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinedText {
    /// Text slots as stored, `"\n"` between two of them, [`IMAGE_MARK`] for each image.
    pub text: String,
    /// Position of each mark in `text`, counted in Unicode scalar values.
    pub image_char_offset: Vec<i32>,
}

impl Interleaved {
    /// Joins the slots into one text.
    pub fn joined_text(&self) -> JoinedText {
        let mut text = String::new();
        let mut image_char_offset = Vec::new();
        let mut n_chars = 0;
        let mut after_text = false;
        for slot in &self.slots {
            let piece = match slot {
                Slot::Text(piece) => piece.as_str(),
                Slot::Image { .. } => IMAGE_MARK,
            };
            if slot.is_image() {
                image_char_offset.push(n_chars);
            } else if after_text {
                text.push('\n');
                n_chars += 1;
            }
            text.push_str(piece);
            n_chars += piece.chars().count() as i32;
            after_text = !slot.is_image();
        }
        JoinedText { text, image_char_offset }
    }

    /// The images in reading order.
    pub fn images(&self) -> impl Iterator<Item = &EncodedImage> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Image { image, .. } => Some(image),
            Slot::Text(_) => None,
        })
    }

    /// The texts in reading order.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Text(text) => Some(text.as_str()),
            Slot::Image { .. } => None,
        })
    }
}

/// One image with its text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageText {
    /// Stable identifier of the pair.
    pub key: String,
    /// Address of the image.
    pub url: Option<String>,
    /// The text.
    pub caption: String,
    /// The image.
    pub image: EncodedImage,
    /// Width of the stored image in pixels.
    pub width: i32,
    /// Height of the stored image in pixels.
    pub height: i32,
    /// Width of the image as fetched.
    pub original_width: i32,
    /// Height of the image as fetched.
    pub original_height: i32,
    /// Hex SHA-256 of the stored bytes.
    pub sha256: String,
    /// Perceptual hash, 64 bits.
    pub phash: u64,
    /// The list or page that the pair came from.
    pub source: Option<String>,
    /// Named scores, e.g. of a similarity model.
    pub scores: Vec<(String, f32)>,
    /// Where the image was read from.
    pub warc: Option<WarcPlace>,
}

/// The frames of one clip with its text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VideoText {
    /// Stable identifier of the clip.
    pub key: String,
    /// Address of the video.
    pub url: Option<String>,
    /// The text.
    pub caption: String,
    /// Frames in order of time.
    pub frames: Vec<EncodedImage>,
    /// Time of each frame in the video, in milliseconds.
    pub frame_ms: Vec<i32>,
    /// Start of the clip in the video, in milliseconds.
    pub start_ms: i32,
    /// End of the clip in the video, in milliseconds.
    pub end_ms: i32,
    /// Length of the whole video, in milliseconds.
    pub duration_ms: i32,
    /// Width of the stored frames in pixels.
    pub width: i32,
    /// Height of the stored frames in pixels.
    pub height: i32,
    /// Name of the video codec, e.g. `h264`.
    pub codec: String,
    /// Hex SHA-256 of the video file.
    pub sha256: String,
}

/// One row of a corpus of any kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Row {
    /// A web page.
    Interleaved(Interleaved),
    /// An image with its text.
    ImageText(ImageText),
    /// A clip with its text.
    VideoText(VideoText),
}

impl Row {
    /// The kind of corpus that holds such a row.
    pub fn kind(&self) -> CorpusKind {
        match self {
            Self::Interleaved(_) => CorpusKind::Interleaved,
            Self::ImageText(_) => CorpusKind::ImageText,
            Self::VideoText(_) => CorpusKind::VideoText,
        }
    }

    /// The stable identifier: `doc_id` or `key`.
    pub fn key(&self) -> &str {
        match self {
            Self::Interleaved(page) => &page.doc_id,
            Self::ImageText(pair) => &pair.key,
            Self::VideoText(clip) => &clip.key,
        }
    }

    /// Images, or frames of the clip.
    pub fn n_images(&self) -> usize {
        self.images().len()
    }

    /// Images in reading order, or frames in order of time.
    pub fn images(&self) -> Vec<&EncodedImage> {
        match self {
            Self::Interleaved(page) => page.images().collect(),
            Self::ImageText(pair) => vec![&pair.image],
            Self::VideoText(clip) => clip.frames.iter().collect(),
        }
    }

    /// The digest that the row has of each of [`Self::images`], empty where it has none. Of a clip there are none: its
    /// digest is that of the video.
    pub fn image_digests(&self) -> Vec<&str> {
        match self {
            Self::Interleaved(page) => {
                let digests = page.slots.iter().filter_map(|slot| match slot {
                    Slot::Image { meta, .. } => Some(meta.sha256.as_str()),
                    Slot::Text(_) => None,
                });
                digests.collect()
            }
            Self::ImageText(pair) => vec![&pair.sha256],
            Self::VideoText(_) => Vec::new(),
        }
    }

    /// Gives images that have no bytes theirs: one entry for each, and none for each slot of a page that
    /// is a text. False where they do not match.
    pub(crate) fn add_image_bytes(&mut self, bytes: Vec<Option<Bytes>>) -> bool {
        let images: Vec<Option<&mut EncodedImage>> = match self {
            Self::Interleaved(page) => page.slots.iter_mut().map(Slot::image_mut).collect(),
            Self::ImageText(pair) => vec![Some(&mut pair.image)],
            Self::VideoText(clip) => clip.frames.iter_mut().map(Some).collect(),
        };
        images.len() == bytes.len()
            && images.into_iter().zip(bytes).all(|both| match both {
                (Some(image), Some(bytes)) => {
                    image.bytes = bytes;
                    true
                }
                (None, None) => true,
                _ => false,
            })
    }

    /// Texts in reading order.
    pub fn texts(&self) -> Vec<&str> {
        match self {
            Self::Interleaved(page) => page.texts().collect(),
            Self::ImageText(pair) => vec![&pair.caption],
            Self::VideoText(clip) => vec![&clip.caption],
        }
    }

    /// Approximate size in a shard before compression, in bytes.
    pub fn stored_bytes(&self) -> usize {
        let images: usize = self.images().iter().map(|i| i.bytes.len()).sum();
        let texts: usize = self.texts().iter().map(|t| t.len()).sum();
        // Pages store each text twice: per slot and joined.
        images + 2 * texts + ROW_OVERHEAD_BYTES
    }

    /// Bytes in memory, those of encoded images left out.
    pub(crate) fn memory_bytes(&self) -> usize {
        let text = |text: &String| text.capacity() + ALLOCATION_BYTES;
        let any = |any: &Option<String>| any.as_ref().map_or(0, text);
        let warc = |warc: &Option<WarcPlace>| warc.as_ref().map_or(0, |warc| text(&warc.filename));
        let slot = |slot: &Slot| match slot {
            Slot::Text(words) => text(words),
            Slot::Image { image, meta } => {
                let ImageMeta { url, alt, sha256, mime, .. } = meta;
                any(&image.path) + any(url) + any(alt) + text(sha256) + text(mime)
            }
        };
        let parts = match self {
            Self::Interleaved(page) => {
                let Interleaved { doc_id, url, slots, title, lang, .. } = page;
                let texts = text(doc_id) + text(url) + any(title) + any(lang) + warc(&page.warc);
                texts + size_of_val(&slots[..]) + slots.iter().map(slot).sum::<usize>()
            }
            Self::ImageText(pair) => {
                let ImageText { key, url, caption, image, sha256, source, scores, .. } = pair;
                let scores = scores.iter().map(|(name, score)| text(name) + size_of_val(score));
                let texts = text(key) + any(url) + text(caption) + any(&image.path) + text(sha256);
                texts + any(source) + warc(&pair.warc) + scores.sum::<usize>()
            }
            Self::VideoText(clip) => {
                let VideoText { key, url, caption, frames, frame_ms, codec, sha256, .. } = clip;
                let texts = text(key) + any(url) + text(caption) + text(codec) + text(sha256);
                let paths = frames.iter().map(|frame| any(&frame.path)).sum::<usize>();
                texts + paths + size_of_val(&frames[..]) + size_of_val(&frame_ms[..])
            }
        };
        size_of::<Self>() + parts
    }

    /// Words of all texts, separated by white space.
    pub fn words(&self) -> usize {
        self.texts().iter().map(|t| t.split_whitespace().count()).sum()
    }
}

/// Bytes as one string of bytes, not as a list of numbers.
mod byte_string {
    use std::fmt;

    use bytes::Bytes;
    use serde::de::{Deserializer, Error, Visitor};
    use serde::ser::Serializer;

    pub(super) fn serialize<S: Serializer>(bytes: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        from.deserialize_byte_buf(ByteString)
    }

    struct ByteString;

    impl Visitor<'_> for ByteString {
        type Value = Bytes;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string of bytes")
        }

        fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
            Ok(Bytes::copy_from_slice(bytes))
        }

        fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
            Ok(bytes.into())
        }
    }
}
