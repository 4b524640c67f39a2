//! dataset

mod batch;
mod columns;
mod corpus;
mod digest;
mod document;
mod error;
mod keyed_random;
mod loader;
mod manifest;
pub mod media_mask;
mod mixture;
mod permutation;
mod pixels;
pub mod prompt;
pub mod report;
mod row_view;
mod sample;
mod schema;
mod shard_reader;
mod shard_writer;
mod store;
mod tokenizer;

pub use batch::Batch;
pub use corpus::Corpus;
pub use digest::sha256_hex;
pub use document::{
    EncodedImage, IMAGE_MARK, ImageMeta, ImageText, Interleaved, JoinedText, Row, Slot, VideoText,
    WarcPlace,
};
pub use error::CorpusError;
pub use loader::{Cursor, Loader};
pub use manifest::{MANIFEST_FILE, Manifest, ShardEntry};
pub use media_mask::Attend;
pub use mixture::{MERGED, Mixture, MixtureEntry, MixtureMode};
pub use pixels::{Augment, Fit, ImageConfig, image_pixels};
pub use sample::{Example, LossMask, SampleConfig, SampleKey, example};
pub use schema::{CorpusKind, SCHEMA_VERSION, schema};
pub use shard_writer::encode_shard;
pub use store::CorpusStore;
pub use tokenizer::Tokenizer;
