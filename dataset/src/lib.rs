//! dataset

mod columns;
mod corpus;
mod digest;
mod document;
mod error;
mod manifest;
pub mod media_mask;
pub mod report;
mod row_view;
mod schema;
mod shard_reader;
mod shard_writer;
mod store;

pub use corpus::Corpus;
pub use digest::sha256_hex;
pub use document::{
    EncodedImage, IMAGE_MARK, ImageMeta, ImageText, Interleaved, JoinedText, Row, Slot, VideoText,
    WarcPlace,
};
pub use error::CorpusError;
pub use manifest::{MANIFEST_FILE, Manifest, ShardEntry};
pub use media_mask::Attend;
pub use schema::{CorpusKind, SCHEMA_VERSION, schema};
pub use shard_writer::encode_shard;
pub use store::CorpusStore;
