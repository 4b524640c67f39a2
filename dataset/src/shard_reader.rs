//! One open shard: its footer and offset index, and reads of single rows or whole row groups.
//!
//! The footer is read once. A row then costs one request for the pages that hold it.

use std::io::{self, Read};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{Array, StructArray};
use bytes::{Buf, Bytes};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection,
    RowSelectionPolicy, RowSelector,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::PageIndexPolicy;
use parquet::file::reader::{ChunkReader, Length};

use crate::row_view::read_row;
use crate::{CorpusError, CorpusKind, CorpusStore, Row, ShardEntry, schema};

/// Rows decoded at a time in a scan.
const SCAN_ROWS: usize = 64;

/// How much a reader of the footer fetches at a time where the length is not known before.
const FOOTER_READ_BYTES: u64 = 64 * 1024;

/// A shard whose footer was read and whose columns were checked.
pub(crate) struct Shard {
    store: CorpusStore,
    file: String,
    kind: CorpusKind,
    first_row: u64,
    metadata: ArrowReaderMetadata,
    projection: ProjectionMask,
}

impl Shard {
    /// Opens a shard and compares it with its manifest entry; `first_row` is its place in the corpus.
    pub(crate) fn open(
        store: &CorpusStore,
        kind: CorpusKind,
        entry: &ShardEntry,
        first_row: u64,
    ) -> Result<Self, CorpusError> {
        let object = store.name_of(&entry.file);
        let size = store.size(&entry.file)?;
        expect_equal(&object, "bytes", &size, &entry.bytes)?;
        let metadata = read_footer(store, &entry.file, size)
            .map_err(|source| CorpusError::Footer { object: object.clone(), source })?;
        let rows = metadata.metadata().file_metadata().num_rows() as u64;
        expect_equal(&object, "rows", &rows, &entry.rows)?;
        check_columns(&object, kind, &metadata)?;
        let names = schema(kind);
        let names = names.fields().iter().map(|f| f.name().as_str());
        let projection = ProjectionMask::columns(metadata.parquet_schema(), names);
        let (store, file) = (store.clone(), entry.file.clone());
        Ok(Self { store, file, kind, first_row, metadata, projection })
    }

    /// Row groups in the shard.
    pub(crate) fn n_groups(&self) -> usize {
        self.metadata.metadata().num_row_groups()
    }

    /// Row `row_idx` of the shard.
    pub(crate) fn read(&self, row_idx: u64) -> Result<Row, CorpusError> {
        let (group, start) = self.group_of(row_idx)?;
        let place = (row_idx - start) as usize;
        let selection = RowSelection::from(vec![RowSelector::skip(place), RowSelector::select(1)]);
        let pages = self.fetch(self.page_ranges(group, &selection)?)?;
        let mut rows = self.decode(group, pages, Some(selection), row_idx)?;
        rows.pop().ok_or_else(|| self.damaged(format!("its pages lack row {row_idx}")))
    }

    /// All rows of one row group, in order.
    pub(crate) fn read_group(&self, group: usize) -> Result<Vec<Row>, CorpusError> {
        let groups = self.metadata.metadata().row_groups();
        let start: i64 =
            groups[..group].iter().map(parquet::file::metadata::RowGroupMetaData::num_rows).sum();
        let columns = groups[group].columns().iter().map(|column| {
            let (offset, length) = column.byte_range();
            offset..offset + length
        });
        let pages = self.fetch(columns.collect())?;
        self.decode(group, pages, None, start as u64)
    }

    /// The row group that holds a row, and the first row of that group.
    fn group_of(&self, row_idx: u64) -> Result<(usize, u64), CorpusError> {
        let mut start = 0;
        for (group, meta) in self.metadata.metadata().row_groups().iter().enumerate() {
            let end = start + meta.num_rows() as u64;
            if row_idx < end {
                return Ok((group, start));
            }
            start = end;
        }
        Err(self.damaged(format!("its row groups hold {start} rows, row {row_idx} is wanted")))
    }

    /// Ranges of the pages that hold the selected rows of a row group.
    fn page_ranges(
        &self,
        group: usize,
        selection: &RowSelection,
    ) -> Result<Vec<Range<u64>>, CorpusError> {
        let Some(index) = self.metadata.metadata().offset_index() else {
            return Err(self.damaged("it has no offset index".to_owned()));
        };
        let columns = self.metadata.metadata().row_group(group).columns();
        let mut ranges = Vec::new();
        for (leaf, (pages, column)) in index[group].iter().zip(columns).enumerate() {
            if !self.projection.leaf_included(leaf) {
                continue;
            }
            if let Some(dictionary) = column.dictionary_page_offset() {
                ranges.push(dictionary as u64..column.data_page_offset() as u64);
            }
            ranges.extend(selection.scan_ranges(pages.page_locations()));
        }
        Ok(ranges)
    }

    fn fetch(&self, ranges: Vec<Range<u64>>) -> Result<FetchedRanges, CorpusError> {
        let bytes = self.store.get_ranges(&self.file, ranges.clone())?;
        let mut parts: Vec<_> = ranges.into_iter().map(|r| r.start).zip(bytes).collect();
        parts.sort_by_key(|(start, _)| *start);
        Ok(FetchedRanges { parts: parts.into() })
    }

    /// Rows of a row group from its fetched pages; `row_idx` is the first of them in the shard.
    ///
    /// The decoders index by what they read, so damaged pages may make them panic: that is an error of
    /// these pages like any other.
    fn decode(
        &self,
        group: usize,
        pages: FetchedRanges,
        selection: Option<RowSelection>,
        row_idx: u64,
    ) -> Result<Vec<Row>, CorpusError> {
        let decode = || self.decode_pages(group, pages, selection, row_idx);
        catch_unwind(AssertUnwindSafe(decode))
            .unwrap_or_else(|_| Err(self.damaged(format!("row {row_idx} cannot be decoded"))))
    }

    fn decode_pages(
        &self,
        group: usize,
        pages: FetchedRanges,
        selection: Option<RowSelection>,
        row_idx: u64,
    ) -> Result<Vec<Row>, CorpusError> {
        let mut builder =
            ParquetRecordBatchReaderBuilder::new_with_metadata(pages, self.metadata.clone())
                .with_row_groups(vec![group])
                .with_projection(self.projection.clone())
                .with_row_selection_policy(RowSelectionPolicy::Selectors)
                .with_batch_size(SCAN_ROWS);
        if let Some(selection) = selection {
            builder = builder.with_row_selection(selection);
        }
        let mut rows = Vec::new();
        for batch in builder.build().map_err(|e| self.broken(e))? {
            let batch =
                batch.map_err(|source| CorpusError::Arrow { object: self.name(), source })?;
            let columns = StructArray::from(batch);
            for idx in 0..columns.len() {
                let row = self.first_row + row_idx + rows.len() as u64;
                rows.push(read_row(self.kind, &columns, idx, self.store.location(), row)?);
            }
        }
        Ok(rows)
    }

    fn name(&self) -> String {
        self.store.name_of(&self.file)
    }

    fn damaged(&self, problem: String) -> CorpusError {
        self.broken(ParquetError::General(problem))
    }

    fn broken(&self, source: ParquetError) -> CorpusError {
        CorpusError::Parquet { object: self.name(), source }
    }
}

/// Compares a number of the file with the manifest.
pub(crate) fn expect_equal<T: PartialEq + ToString + ?Sized>(
    object: &str,
    what: &'static str,
    found: &T,
    expected: &T,
) -> Result<(), CorpusError> {
    if found == expected {
        return Ok(());
    }
    let (found, expected) = (found.to_string(), expected.to_string());
    Err(CorpusError::ShardMismatch { object: object.to_owned(), what, found, expected })
}

fn read_footer(
    store: &CorpusStore,
    file: &str,
    size: u64,
) -> Result<ArrowReaderMetadata, ParquetError> {
    // Column statistics are not used to find rows, so only the offset index is kept.
    let options = ArrowReaderOptions::new()
        .with_offset_index_policy(PageIndexPolicy::Required)
        .with_column_index_policy(PageIndexPolicy::Skip);
    let object = StoredObject { store: store.clone(), file: file.to_owned(), size };
    ArrowReaderMetadata::load(&object, options)
}

fn check_columns(
    object: &str,
    kind: CorpusKind,
    metadata: &ArrowReaderMetadata,
) -> Result<(), CorpusError> {
    for field in schema(kind).fields() {
        let found = metadata.schema().field_with_name(field.name()).ok();
        if found.is_some_and(|f| f.data_type().equals_datatype(field.data_type())) {
            continue;
        }
        return Err(CorpusError::Column {
            object: object.to_owned(),
            column: field.name().clone(),
            expected: field.data_type().to_string(),
            found: found.map_or("nothing".to_owned(), |f| f.data_type().to_string()),
        });
    }
    Ok(())
}

/// An object of a store read piece by piece: a Parquet file of which only some columns or rows are
/// wanted is opened without being read whole.
pub struct StoredObject {
    store: CorpusStore,
    file: String,
    size: u64,
}

impl StoredObject {
    /// The object `file` of a store.
    ///
    /// # Errors
    /// When the object does not exist or cannot be read.
    pub fn open(store: &CorpusStore, file: &str) -> Result<Self, CorpusError> {
        let size = store.size(file)?;
        Ok(Self { store: store.clone(), file: file.to_owned(), size })
    }

    fn range(&self, range: Range<u64>) -> Result<Bytes, CorpusError> {
        self.store.get_range(&self.file, range)
    }
}

impl Length for StoredObject {
    fn len(&self) -> u64 {
        self.size
    }
}

impl ChunkReader for StoredObject {
    type T = StoredObjectReader;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        let object = Self { store: self.store.clone(), file: self.file.clone(), size: self.size };
        Ok(StoredObjectReader { object, next: start, piece: Bytes::new() })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        self.range(start..start + length as u64).map_err(|e| ParquetError::External(Box::new(e)))
    }
}

/// Reads an object from one place to its end.
pub struct StoredObjectReader {
    object: StoredObject,
    next: u64,
    piece: Bytes,
}

impl Read for StoredObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() && self.next < self.object.size {
            let end = self.object.size.min(self.next + FOOTER_READ_BYTES);
            self.piece = self.object.range(self.next..end).map_err(io::Error::other)?;
            self.next = end;
        }
        let n = buffer.len().min(self.piece.len());
        buffer[..n].copy_from_slice(&self.piece.split_to(n));
        Ok(n)
    }
}

/// The ranges of a file that were fetched, as if they were the file.
struct FetchedRanges {
    /// First byte and content of each range, sorted.
    parts: Arc<[(u64, Bytes)]>,
}

impl FetchedRanges {
    /// All that was fetched from `start` on, to the end of its range.
    fn from(&self, start: u64) -> Result<Bytes, ParquetError> {
        let after = self.parts.partition_point(|(first, _)| *first <= start);
        let missing = || ParquetError::General(format!("the page at {start} was not fetched"));
        let (first, bytes) = &self.parts[after.checked_sub(1).ok_or_else(missing)?];
        let skip = (start - first) as usize;
        if skip > bytes.len() {
            return Err(missing());
        }
        Ok(bytes.slice(skip..))
    }
}

impl Length for FetchedRanges {
    fn len(&self) -> u64 {
        self.parts.last().map_or(0, |(start, bytes)| start + bytes.len() as u64)
    }
}

impl ChunkReader for FetchedRanges {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(self.from(start)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let bytes = self.from(start)?;
        if bytes.len() < length {
            let have = bytes.len();
            let problem = format!("{length} bytes wanted at {start}, {have} fetched");
            return Err(ParquetError::EOF(problem));
        }
        Ok(bytes.slice(..length))
    }
}
