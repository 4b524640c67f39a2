//! A corpus open for reading: any row by its number, or all in order.

use std::sync::{Arc, Mutex, PoisonError};

use crate::block_cache::BlockCache;
use crate::digest::sha256_hex;
use crate::layout::{self, ForeignRows, Layout, Place};
use crate::shard_reader::{RowBlock, Shard, expect_equal};
use crate::{CorpusError, CorpusKind, CorpusStore, DiskCacheConfig, Manifest, Row};

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
    rows: Rows,
}

/// How the rows of shards are read.
enum Rows {
    Own { shards: Vec<Mutex<Option<Arc<Shard>>>>, blocks: BlockCache<RowBlock> },
    Foreign(Box<dyn ForeignRows>),
}

impl Corpus {
    /// Opens the corpus at a path or URL.
    ///
    /// # Errors
    /// When the location cannot be opened, has no manifest, or has one of a newer version.
    pub fn open(location: &str) -> Result<Self, CorpusError> {
        Self::open_as(location, &Layout::Corpus, None)
    }

    /// Opens what another program wrote at a path or URL, and keeps pieces of it on a local disk. All
    /// files of another program are looked into first, to count their rows; what stands for the manifest
    /// is made of that.
    ///
    /// # Errors
    /// When the location cannot be opened or listed, or a file is not of this layout.
    pub fn open_as(
        location: &str,
        layout: &Layout,
        cache: Option<&DiskCacheConfig>,
    ) -> Result<Self, CorpusError> {
        let store = CorpusStore::open_with(location, cache)?;
        if layout.is_own() {
            let manifest = Manifest::read(&store)?;
            return Self::with_manifest(store, manifest);
        }
        let (rows, manifest) = layout::open(&store, layout, cache)?;
        let corpus = Self::with_manifest(store, manifest)?;
        Ok(Self { rows: Rows::Foreign(rows), ..corpus })
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
        let rows = Rows::Own { shards, blocks: BlockCache::default() };
        Ok(Self { store, manifest, starts, rows })
    }

    /// The path or URL as it was given.
    pub fn location(&self) -> &str {
        self.store.location()
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Whether it lies in an object store, where each request takes its time.
    pub(crate) fn is_distant(&self) -> bool {
        self.store.is_distant()
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
        self.read_part(row, true)
    }

    /// The same with images that have no bytes: for text alone they are not fetched.
    ///
    /// # Errors
    /// As [`Corpus::read`].
    pub fn read_texts(&self, row: u64) -> Result<Row, CorpusError> {
        self.read_part(row, false)
    }

    fn read_part(&self, row: u64, with_images: bool) -> Result<Row, CorpusError> {
        if row >= self.n_rows() {
            let (location, n_rows) = (self.location().to_owned(), self.n_rows());
            return Err(CorpusError::NoSuchRow { location, row, n_rows });
        }
        // Empty shards share their start with the next one; the last of equals holds the row.
        let shard = self.starts.partition_point(|&start| start <= row) - 1;
        let row_idx = row - self.starts[shard];
        match &self.rows {
            Rows::Own { blocks, .. } => {
                self.shard(shard)?.read(shard, row_idx, blocks, with_images)
            }
            Rows::Foreign(rows) => {
                let place = Place { location: self.location(), row, with_images };
                rows.read(shard, row_idx, &place)
            }
        }
    }

    /// The addresses of the rows, in order.
    pub(crate) fn urls(&self) -> Result<Vec<Option<String>>, CorpusError> {
        let mut urls = Vec::with_capacity(self.n_rows() as usize);
        for idx in 0..self.manifest.shards.len() {
            urls.extend(self.shard(idx)?.urls()?);
        }
        Ok(urls)
    }

    /// All rows in order, one row group in memory at a time.
    pub fn scan(&self) -> Box<dyn Iterator<Item = Result<Row, CorpusError>> + Send + '_> {
        if let Rows::Foreign(_) = &self.rows {
            return Box::new((0..self.n_rows()).map(|row| self.read(row)));
        }
        let rows = (0..self.manifest.shards.len())
            .flat_map(move |idx| match self.shard(idx) {
                Ok(shard) => Scan::Groups((0..shard.n_groups()).map(move |g| shard.read_group(g))),
                Err(error) => Scan::Failed(Some(error)),
            })
            .flat_map(|group| match group {
                Ok(rows) => rows.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            });
        Box::new(rows)
    }

    /// Reads every shard and compares its SHA-256 with the manifest. Of what another program wrote, which
    /// has no digests, every row is read.
    ///
    /// # Errors
    /// When a shard cannot be read or differs.
    pub fn verify(&self) -> Result<(), CorpusError> {
        if let Rows::Foreign(_) = &self.rows {
            return (0..self.n_rows()).try_for_each(|row| self.read(row).map(drop));
        }
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
        let Rows::Own { shards, .. } = &self.rows else {
            unreachable!("rows of others are read without shards")
        };
        let mut slot = shards[idx].lock().unwrap_or_else(PoisonError::into_inner);
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
