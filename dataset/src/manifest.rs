//! The manifest of a corpus: what it is, its shards, and their checksums.
//!
//! It is written last and atomically, so a folder without one is not a corpus.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::digest::sha256_hex;
use crate::{CorpusError, CorpusKind, CorpusStore, SCHEMA_VERSION};

/// Name of the manifest inside a corpus.
pub const MANIFEST_FILE: &str = "manifest.json";

/// One shard as the manifest describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// Object name relative to the corpus, e.g. `shard-00000.parquet`.
    pub file: String,
    /// Rows in the shard.
    pub rows: u64,
    /// Images, or frames, in the shard.
    pub images: u64,
    /// Words of text in the shard.
    pub words: u64,
    /// Size of the file in bytes.
    pub bytes: u64,
    /// Hex SHA-256 of the file.
    pub sha256: String,
}

/// What a corpus is and holds. Stored as `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Kind of the rows.
    pub kind: CorpusKind,
    /// Version of the columns, at most [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Hex SHA-256 of the plan that built the corpus.
    pub plan_sha256: String,
    /// Rows in all shards.
    pub rows: u64,
    /// Images, or frames, in all shards.
    pub images: u64,
    /// Words of text in all shards.
    pub words: u64,
    /// Shards in the order of their rows.
    pub shards: Vec<ShardEntry>,
}

/// The part of a manifest that every version has.
#[derive(Deserialize)]
struct Version {
    schema_version: u32,
}

impl Manifest {
    /// A manifest of `shards`, with their sums.
    pub fn new(kind: CorpusKind, plan_sha256: String, shards: Vec<ShardEntry>) -> Self {
        Self {
            kind,
            schema_version: SCHEMA_VERSION,
            plan_sha256,
            rows: shards.iter().map(|s| s.rows).sum(),
            images: shards.iter().map(|s| s.images).sum(),
            words: shards.iter().map(|s| s.words).sum(),
            shards,
        }
    }

    /// Indented JSON with a final line break; the same manifest gives the same bytes.
    ///
    /// # Panics
    /// Never: every field has a JSON form.
    pub fn to_json(&self) -> String {
        let json = serde_json::to_string_pretty(self).expect("every field has a JSON form");
        format!("{json}\n")
    }

    /// Reads what [`Manifest::to_json`] wrote.
    ///
    /// # Errors
    /// When the text is not a manifest, or is one of a newer version.
    pub fn from_json(json: &str) -> Result<Self, CorpusError> {
        parse(MANIFEST_FILE, json.as_bytes())
    }

    /// Reads the manifest of a corpus.
    ///
    /// # Errors
    /// When there is none, it cannot be read, or it is of a newer version.
    pub fn read(store: &CorpusStore) -> Result<Self, CorpusError> {
        if !store.exists(MANIFEST_FILE)? {
            return Err(CorpusError::NotACorpus { location: store.location().to_owned() });
        }
        parse(&store.name_of(MANIFEST_FILE), &store.get(MANIFEST_FILE)?)
    }

    /// The manifest in the JSON of a corpus at `location`.
    ///
    /// # Errors
    /// As [`Manifest::from_json`], naming the location.
    pub fn parse(location: &str, json: &[u8]) -> Result<Self, CorpusError> {
        parse(&format!("{location}/{MANIFEST_FILE}"), json)
    }

    /// Writes the manifest, which publishes the corpus: do this last.
    ///
    /// # Errors
    /// When the store refuses the write.
    pub fn write(&self, store: &CorpusStore) -> Result<(), CorpusError> {
        store.put(MANIFEST_FILE, Bytes::from(self.to_json()))
    }

    /// Hex SHA-256 of the JSON form: names the corpus, down to every byte of its shards.
    pub fn sha256(&self) -> String {
        sha256_hex(self.to_json().as_bytes())
    }
}

fn parse(object: &str, json: &[u8]) -> Result<Manifest, CorpusError> {
    let invalid = |source| CorpusError::Manifest { object: object.to_owned(), source };
    let version: Version = serde_json::from_slice(json).map_err(invalid)?;
    if version.schema_version > SCHEMA_VERSION {
        return Err(CorpusError::NewerSchema {
            object: object.to_owned(),
            found: version.schema_version,
            known: SCHEMA_VERSION,
        });
    }
    serde_json::from_slice(json).map_err(invalid)
}
