//! Corpora of pages, captioned images and captioned clips: how they are stored, and how they
//! become the batches that Flamingo (arXiv 2204.14198) is trained on.
//!
//! A corpus is a folder or object-store prefix of Parquet shards with a manifest. Ingest writes
//! one; Hugging Face `datasets`, pyarrow, `DuckDB` and polars open it as it is. Any row can be read
//! by its number at the cost of its own pages.
//!
//! A [`Loader`] draws from several corpora at once. What a step holds is a pure function of
//! manifest, seed and step, so a run resumes from one number and threads change nothing. This crate
//! knows no model: it ends at [`Batch`].
//!
//! ```
//! use std::collections::BTreeSet;
//! use std::sync::Arc;
//! use bytes::Bytes;
//! use flamingo_dataset::*;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let location = folder.path().to_str().ok_or("a path in UTF-8")?;
//! # let mut png = std::io::Cursor::new(Vec::new());
//! # image::RgbImage::new(4, 4).write_to(&mut png, image::ImageFormat::Png)?;
//! # let png = png.into_inner();
//! let row = Row::ImageText(ImageText {
//!     key: "0".into(),
//!     url: None,
//!     caption: "a black square".into(),
//!     image: EncodedImage { bytes: Bytes::from(png), path: Some("0.png".into()) },
//!     width: 4,
//!     height: 4,
//!     original_width: 4,
//!     original_height: 4,
//!     sha256: String::new(),
//!     phash: 0,
//!     source: None,
//!     scores: vec![],
//!     warc: None,
//! });
//! let shard = encode_shard(CorpusKind::ImageText, &[row])?;
//! let entry = ShardEntry {
//!     file: "shard-00000.parquet".into(),
//!     rows: 1,
//!     images: 1,
//!     words: 3,
//!     bytes: shard.len() as u64,
//!     sha256: sha256_hex(&shard),
//! };
//! let store = CorpusStore::create(location)?;
//! store.put(&entry.file, Bytes::from(shard))?;
//! Manifest::new(CorpusKind::ImageText, sha256_hex(b"the plan"), vec![entry]).write(&store)?;
//!
//! let texts = ["a black square".to_string()].into_iter();
//! let tokenizer = Arc::new(Tokenizer::train(texts, 270)?);
//! let sample = SampleConfig {
//!     tokens: 32,
//!     images: 1,
//!     frames: 1,
//!     next_image_probability: 0.5,
//!     space_prefix_probability: 0.5,
//!     flip_probability: 0.0,
//!     colour_jitter: 0.0,
//!     image: ImageConfig { size: 8, fit: Fit::MeanPad, mean: [0.5; 3], std: [0.5; 3] },
//!     pixels: PixelType::F32,
//!     loss: LossMask::Paper,
//!     pack: 1,
//!     learn_after: None,
//!     verify: Verify::Images,
//! };
//! let pairs = MixtureEntry {
//!     name: "pairs".into(),
//!     corpus: location.into(),
//!     layout: Layout::Corpus,
//!     disk_cache: None,
//!     batch: 2,
//!     weight: 1.0,
//!     sample,
//!     shuffle: Shuffle::default(),
//!     skip_rows: BTreeSet::new(),
//!     corrupt_share_max: 0.01,
//! };
//! let mut loader = Loader::open(vec![pairs], tokenizer, MixtureMode::Accumulate, 0, 0)?;
//! let batches = loader.next_step()?;
//! assert_eq!(batches[0].tokens.len(), 2 * 32);
//! assert_eq!(loader.cursor(), Cursor { step: 1 });
//! # Ok(())
//! # }
//! ```
//!
//! Modules in reading order. The corpus: `document` (rows as values), `schema` (their columns),
//! `store` (where it lies), `open_files` (those of a folder), `disk_cache` (pieces of it nearby), `manifest`, `columns` and `shard_writer` (rows to Parquet),
//! `shard_reader`, `block_cache` and `row_view` (and back), `corpus` (rows by number), `layout` (what others wrote). Examples: [`media_mask`]
//! (which image a token may see), `tokenizer`, `bpe_ranks`, `decode` (a file to an image), `picture` (what it looks like), `pixels`, `augment`, `sample` (a row to an example), `example_check`. Batches:
//! `order`, `permutation` and `keyed_random` (order without state), `batch`, `pixel_buffer`, `mixture` (what a step holds),
//! `read_ahead` (of distant rows), `patience` (with their stores), `loader` (batches made ahead). `feature_cache` keeps what a frozen encoder made of images. For others: [`report`] (HTML pages), `durable` (whole files), `digest`,
//! `error`.

mod augment;
mod batch;
mod block_cache;
mod bpe_ranks;
mod columns;
mod corpus;
mod decode;
mod digest;
mod disk_cache;
mod document;
mod durable;
mod error;
mod example_check;
mod feature_cache;
mod keyed_random;
mod layout;
mod loader;
mod manifest;
pub mod media_mask;
mod mixture;
mod open_files;
mod order;
mod patience;
mod permutation;
mod picture;
mod pixel_buffer;
mod pixels;
mod read_ahead;
pub mod report;
mod row_view;
mod sample;
mod schema;
mod shard_reader;
mod shard_writer;
mod store;
mod tokenizer;

pub use augment::{Augment, FrameAugment, Normalise, Rectangle};
pub use batch::{Batch, BatchPixels, CorruptRow};
pub use corpus::Corpus;
pub use digest::{sha256_hex, sha256_hex_of};
pub use disk_cache::DiskCacheConfig;
pub use document::{
    EncodedImage, IMAGE_MARK, ImageMeta, ImageText, Interleaved, JoinedText, Row, Slot, VideoText,
    WarcPlace,
};
pub use durable::write_durably;
pub use error::CorpusError;
pub use example_check::{ExampleProblem, example_problems};
pub use feature_cache::FeatureCache;
pub use layout::{Layout, MissingImage};
pub use loader::{Cursor, LOOK_EVERY, Loader};
pub use manifest::{MANIFEST_FILE, Manifest, ShardEntry};
pub use media_mask::Attend;
pub use mixture::{MERGED, Mixture, MixtureEntry, MixtureMode, Rank};
pub use order::{EpochOrder, Shuffle, ShuffleQuality};
pub use picture::{difference_hash, image_hash, image_png};
pub use pixel_buffer::PixelBuffer;
pub use pixels::{Fit, ImageConfig, PixelType, image_bytes, image_pixels};
pub use row_view::read_row;
pub use sample::{
    Example, LossMask, SampleConfig, SampleKey, Verify, caption_tokens, example, packed_example,
};
pub use schema::{CorpusKind, SCHEMA_VERSION, schema};
pub use shard_reader::StoredObject;
pub use shard_writer::{ShardWriter, encode_shard};
pub use store::CorpusStore;
pub use tokenizer::Tokenizer;
