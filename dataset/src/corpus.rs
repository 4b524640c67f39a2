//! A corpus open for reading: any row by its number, or all in order.

use std::sync::{Arc, Mutex, PoisonError};

use crate::block_cache::BlockCache;
use crate::digest::sha256_hex;
use crate::shard_reader::{Shard, expect_equal};
use crate::{CorpusError, CorpusKind, CorpusStore, Manifest, Row};

/// A published corpus.
///
/// Rows are numbered from 0 through all shards in the order of the manifest. Reading is possible
/// from many threads at once. Footers of shards are read when first needed and kept: about 50
/// bytes per row for the whole corpus.
pub struct Corpus {
    store: CorpusStore,
    manifest: Manifest,
    /// First row of each shard.
    starts: Vec<u64>,
    shards: Vec<Mutex<Option<Arc<Shard>>>>,
    blocks: BlockCache,
}

impl Corpus {
    /// Opens the corpus at a path or URL.
    ///
    /// # Errors
    /// When the location cannot be opened, has no manifest, or has one of a newer version.
    pub fn open(location: &str) -> Result<Self, CorpusError> {
        let store = CorpusStore::open(location)?;
        let manifest = Manifest::read(&store)?;
        Self::with_manifest(store, manifest)
    }

    /// The corpus that a manifest describes, which may not be published yet.
    ///
    /// # Errors
    /// When the manifest contradicts itself.
    pub fn with_manifest(store: CorpusStore, manifest: Manifest) -> Result<Self, CorpusError> {
        let mut n_rows = 0;
        let starts = manifest.shards.iter().map(|shard| {
            n_rows += shard.rows;
            n_rows - shard.rows
        });
        let starts = starts.collect();
        expect_equal(&store.name_of(crate::MANIFEST_FILE), "rows", &n_rows, &manifest.rows)?;
        let shards = manifest.shards.iter().map(|_| Mutex::new(None)).collect();
        Ok(Self { store, manifest, starts, shards, blocks: BlockCache::default() })
    }

    /// The path or URL as it was given.
    pub fn location(&self) -> &str {
        self.store.location()
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Kind of the rows.
    pub fn kind(&self) -> CorpusKind {
        self.manifest.kind
    }

    /// Rows in the corpus.
    pub fn n_rows(&self) -> u64 {
        self.manifest.rows
    }

    /// Row `row`, counted from 0. Costs one request for the pages of its images once the shard's footer
    /// and the texts of the rows around it are known.
    ///
    /// # Errors
    /// When there is no such row, or its shard cannot be read or is not what the manifest says.
    pub fn read(&self, row: u64) -> Result<Row, CorpusError> {
        if row >= self.n_rows() {
            let (location, n_rows) = (self.location().to_owned(), self.n_rows());
            return Err(CorpusError::NoSuchRow { location, row, n_rows });
        }
        // Empty shards share their start with the next one; the last of equals holds the row.
        let shard = self.starts.partition_point(|&start| start <= row) - 1;
        self.shard(shard)?.read(shard, row - self.starts[shard], &self.blocks)
    }

    /// All rows in order, one row group in memory at a time.
    pub fn scan(&self) -> impl Iterator<Item = Result<Row, CorpusError>> + '_ {
        (0..self.shards.len())
            .flat_map(move |idx| match self.shard(idx) {
                Ok(shard) => Scan::Groups((0..shard.n_groups()).map(move |g| shard.read_group(g))),
                Err(error) => Scan::Failed(Some(error)),
            })
            .flat_map(|group| match group {
                Ok(rows) => rows.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            })
    }

    /// Reads every shard and compares its SHA-256 with the manifest.
    ///
    /// # Errors
    /// When a shard cannot be read or differs.
    pub fn verify(&self) -> Result<(), CorpusError> {
        for (idx, entry) in self.manifest.shards.iter().enumerate() {
            self.shard(idx)?;
            let found = sha256_hex(&self.store.get(&entry.file)?);
            let object = self.store.name_of(&entry.file);
            expect_equal(&object, "sha256", &found, &entry.sha256)?;
        }
        Ok(())
    }

    /// The open shard; the first caller reads its footer while others wait.
    fn shard(&self, idx: usize) -> Result<Arc<Shard>, CorpusError> {
        let mut slot = self.shards[idx].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shard) = slot.as_ref() {
            return Ok(Arc::clone(shard));
        }
        let entry = &self.manifest.shards[idx];
        let shard = Shard::open(&self.store, self.kind(), entry, self.starts[idx])?;
        Ok(Arc::clone(slot.insert(Arc::new(shard))))
    }
}

/// The row groups of one shard, or why it cannot be opened.
enum Scan<I> {
    Groups(I),
    Failed(Option<CorpusError>),
}

impl<I: Iterator<Item = Result<Vec<Row>, CorpusError>>> Iterator for Scan<I> {
    type Item = Result<Vec<Row>, CorpusError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Groups(groups) => groups.next(),
            Self::Failed(error) => error.take().map(Err),
        }
    }
}
