//! One open shard: its footer and offset index, and reads of single rows or whole row groups.
//!
//! The footer is read once. A row then costs one request for the pages of its images; its other
//! columns, which are small, are read for a block of rows at once and kept by [`BlockCache`].

use std::io::{self, Read};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, AsArray, StructArray};
use arrow::datatypes::{DataType, Field};
use bytes::{Buf, Bytes};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection,
    RowSelectionPolicy, RowSelector,
};
use parquet::column::reader::{get_column_reader, get_typed_column_reader};
use parquet::data_type::ByteArrayType;
use parquet::errors::ParquetError;
use parquet::file::metadata::PageIndexPolicy;
use parquet::file::page_index::offset_index::{OffsetIndexMetaData, PageLocation};
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;

use crate::block_cache::{BlockCache, BlockKey};
use crate::row_view::read_row;
use crate::schema::image_leaf;
use crate::{CorpusError, CorpusKind, CorpusStore, Row, ShardEntry, schema};

/// Rows decoded at a time in a scan.
const SCAN_ROWS: usize = 64;

/// Columns for other readers: a row is made without them.
const DERIVED_COLUMNS: [&str; 4] = ["text", "media_prev", "media_next", "image_char_offset"];

/// Fewest and most rows of a block, whose texts are read at once.
const BLOCK_ROWS_MIN: u64 = 64;
const BLOCK_ROWS_MAX: u64 = 1024;

/// How much a reader of the footer fetches at a time where the length is not known before.
const FOOTER_READ_BYTES: u64 = 64 * 1024;

/// Rows without the bytes of their images; none where a row contradicts itself or is damaged.
pub(crate) type RowBlock = Vec<Option<Row>>;

/// A shard whose footer was read and whose columns were checked.
pub(crate) struct Shard {
    store: CorpusStore,
    file: String,
    kind: CorpusKind,
    first_row: u64,
    metadata: ArrowReaderMetadata,
    /// All columns of the schema.
    all: ProjectionMask,
    /// Those without the bytes of images.
    texts: ProjectionMask,
    /// Number of the column with the bytes of images.
    image_leaf: usize,
    /// Rows of a block of each row group.
    block_rows: Vec<u64>,
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
        let columns = metadata.parquet_schema();
        let names = schema(kind);
        let all =
            ProjectionMask::columns(columns, names.fields().iter().map(|f| f.name().as_str()));
        let image = image_leaf(kind);
        let is_image = |leaf: &usize| columns.column(*leaf).path().parts() == image;
        let is_derived = |leaf: &usize| {
            DERIVED_COLUMNS.contains(&columns.column(*leaf).path().parts()[0].as_str())
        };
        let leaves = || (0..columns.num_columns()).filter(|leaf| all.leaf_included(*leaf));
        let texts = leaves().filter(|leaf| !is_image(leaf) && !is_derived(leaf));
        let texts = ProjectionMask::leaves(columns, texts);
        let image_leaf = leaves().find(is_image).expect("the columns were checked");
        let (store, file) = (store.clone(), entry.file.clone());
        let block_rows = block_rows(&metadata, &texts);
        Ok(Self { store, file, kind, first_row, metadata, all, texts, image_leaf, block_rows })
    }

    /// Row groups in the shard.
    pub(crate) fn n_groups(&self) -> usize {
        self.metadata.metadata().num_row_groups()
    }

    /// Row `row_idx` of the shard, which is number `shard` of its corpus.
    pub(crate) fn read(
        &self,
        shard: usize,
        row_idx: u64,
        cache: &BlockCache<RowBlock>,
        with_images: bool,
    ) -> Result<Row, CorpusError> {
        let (group, start) = self.group_of(row_idx)?;
        let place = row_idx - start;
        let block_rows = self.block_rows[group];
        let key = BlockKey { shard, group, block: place / block_rows };
        let block = cache.get(key, || self.read_block(group, key.block, start))?;
        let Some(row) = block.get((place % block_rows) as usize) else {
            return Err(self.damaged(format!("its pages lack row {row_idx}")));
        };
        let chunk = self.metadata.metadata().row_group(group).column(self.image_leaf);
        let has_dictionary = with_images && chunk.dictionary_page_offset().is_some();
        let Some(mut row) = row.clone().filter(|_| !has_dictionary) else {
            return self.read_alone(row_idx, group, start, with_images);
        };
        if with_images && !row.add_image_bytes(self.image_bytes(group, place)?) {
            // Says what is wrong.
            return self.read_alone(row_idx, group, start, with_images);
        }
        Ok(row)
    }

    /// The row without help of the rows around it.
    fn read_alone(
        &self,
        row_idx: u64,
        group: usize,
        start: u64,
        with_images: bool,
    ) -> Result<Row, CorpusError> {
        let selection = one_row(row_idx - start);
        let wanted = if with_images { &self.all } else { &self.texts };
        let pages = self.fetch(self.page_ranges(group, wanted, &selection)?)?;
        let columns = self.decode(group, wanted, pages, Some(selection), row_idx)?;
        let columns = self.only(columns, row_idx)?;
        if columns.len() != 1 {
            return Err(self.damaged(format!("its pages lack row {row_idx}")));
        }
        self.row(&columns, 0, row_idx)
    }

    /// The rows of a block of a row group without the bytes of their images, and their size in memory;
    /// `start` is the group's first row.
    fn read_block(
        &self,
        group: usize,
        block: u64,
        start: u64,
    ) -> Result<(RowBlock, usize), CorpusError> {
        let columns = match self.read_texts(group, block, start) {
            Ok(columns) => columns,
            // What is damaged may be one row: each is read alone, and the block not once more for each.
            Err(error) if error.is_about_one_row() => {
                let nothing = vec![None; self.block_rows[group] as usize];
                let bytes = size_of_val(&nothing[..]);
                return Ok((nothing, bytes));
            }
            Err(error) => return Err(error),
        };
        let first = start + block * self.block_rows[group];
        let rows = (0..columns.len()).map(|at| self.row(&columns, at, first + at as u64).ok());
        let rows: RowBlock = rows.collect();
        let bytes = |row: &Option<Row>| row.as_ref().map_or(size_of_val(row), Row::memory_bytes);
        let bytes = rows.iter().map(bytes).sum();
        Ok((rows, bytes))
    }

    /// The columns that [`Self::read_block`] makes rows of.
    fn read_texts(&self, group: usize, block: u64, start: u64) -> Result<StructArray, CorpusError> {
        let block_rows = self.block_rows[group];
        let first = block * block_rows;
        let n_rows = self.metadata.metadata().row_group(group).num_rows() as u64;
        let n = block_rows.min(n_rows.saturating_sub(first)) as usize;
        let selection =
            RowSelection::from(vec![RowSelector::skip(first as usize), RowSelector::select(n)]);
        let pages = self.fetch(self.page_ranges(group, &self.texts, &selection)?)?;
        let columns = self.decode(group, &self.texts, pages, Some(selection), start + first)?;
        self.only(columns, start + first)
    }

    /// The bytes of the images of a row of a row group: of each element of its list, where it is one.
    ///
    /// Only the page of the row is looked at: a reader of whole columns would pass over all pages
    /// before it.
    fn image_bytes(&self, group: usize, place: u64) -> Result<Vec<Option<Bytes>>, CorpusError> {
        let decode = || self.image_bytes_of_page(group, place);
        catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| {
            Err(self.damaged(format!("row {place} of row group {group} cannot be decoded")))
        })
    }

    fn image_bytes_of_page(
        &self,
        group: usize,
        place: u64,
    ) -> Result<Vec<Option<Bytes>>, CorpusError> {
        let row_group = self.metadata.metadata().row_group(group);
        let pages = self.offset_index(group)?[self.image_leaf].page_locations();
        let is_before = |page: &PageLocation| page.first_row_index as u64 <= place;
        // Nearly every page is one row, and a search would miss the processor's cache a few times.
        let alone = place as usize + 1;
        let neighbours = pages.get(place as usize).zip(pages.get(alone));
        let after = match neighbours {
            Some((page, next)) if is_before(page) && !is_before(next) => alone,
            _ => pages.partition_point(is_before),
        };
        let Some(page) = after.checked_sub(1).map(|at| &pages[at]) else {
            return Err(self.damaged(format!("its pages lack row {place} of row group {group}")));
        };
        let first = page.first_row_index as u64;
        let end = pages.get(after).map_or(row_group.num_rows(), |next| next.first_row_index);
        let n_rows = (end as u64).saturating_sub(first) as usize;
        let (offset, size) = (page.offset as u64, page.compressed_page_size as u64);
        let range = offset..offset.saturating_add(size);
        let page_bytes = self.store.get_range(&self.file, range)?;
        let column = row_group.column(self.image_leaf);
        let values = || -> Result<_, ParquetError> {
            // Told as if the page were the first of its column, where no dictionary can come before it.
            let location = PageLocation {
                offset: column.data_page_offset(),
                compressed_page_size: page.compressed_page_size,
                first_row_index: 0,
            };
            let parts = Arc::new([(location.offset as u64, page_bytes.clone())]);
            let pages = SerializedPageReader::new(
                Arc::new(FetchedRanges { parts }),
                column,
                n_rows,
                Some(vec![location]),
            )?;
            let reader = get_column_reader(column.column_descr_ptr(), Box::new(pages));
            let mut reader = get_typed_column_reader::<ByteArrayType>(reader);
            reader.skip_records((place - first) as usize)?;
            let (mut defined, mut repeated, mut values) = (Vec::new(), Vec::new(), Vec::new());
            reader.read_records(1, Some(&mut defined), Some(&mut repeated), &mut values)?;
            Ok((column.column_descr().max_def_level(), defined, values))
        };
        let (deepest, defined, values) = values().map_err(|e| self.broken(e))?;
        // An image may be null, or its bytes may be; what is less deep is no element of a list.
        let mut values = values.iter().map(|value| shared(&page_bytes, value.data()));
        let images = defined.iter().filter(|level| **level >= deepest - 2);
        Ok(images.map(|level| if *level == deepest { values.next() } else { None }).collect())
    }

    fn offset_index(&self, group: usize) -> Result<&[OffsetIndexMetaData], CorpusError> {
        let index = self.metadata.metadata().offset_index();
        let index = index.and_then(|index| index.get(group)).map(Vec::as_slice);
        index.ok_or_else(|| self.damaged("it has no offset index".to_owned()))
    }

    fn row(&self, columns: &StructArray, at: usize, row_idx: u64) -> Result<Row, CorpusError> {
        read_row(self.kind, columns, at, self.store.location(), self.first_row + row_idx)
    }

    /// The addresses of the rows, in order.
    pub(crate) fn urls(&self) -> Result<Vec<Option<String>>, CorpusError> {
        let (mut urls, mut start) = (Vec::new(), 0);
        for group in 0..self.n_groups() {
            let n_rows = self.metadata.metadata().row_group(group).num_rows() as u64;
            for block in 0..n_rows.div_ceil(self.block_rows[group]) {
                let texts = self.read_texts(group, block, start)?;
                let column = texts.column_by_name("url").expect("the columns were checked");
                urls.extend(column.as_string::<i32>().iter().map(|url| url.map(str::to_owned)));
            }
            start += n_rows;
        }
        Ok(urls)
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
        let batches = self.decode(group, &self.all, pages, None, start as u64)?;
        let places = batches.iter().flat_map(|batch| (0..batch.len()).map(move |at| (batch, at)));
        let numbered = places.zip(start as u64..);
        numbered.map(|((batch, at), row_idx)| self.row(batch, at, row_idx)).collect()
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

    /// Ranges of the pages of some columns that hold the selected rows of a row group.
    fn page_ranges(
        &self,
        group: usize,
        columns: &ProjectionMask,
        selection: &RowSelection,
    ) -> Result<Vec<Range<u64>>, CorpusError> {
        let index = self.offset_index(group)?;
        let chunks = self.metadata.metadata().row_group(group).columns();
        let mut ranges = Vec::new();
        for (leaf, (pages, column)) in index.iter().zip(chunks).enumerate() {
            if !columns.leaf_included(leaf) {
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

    /// Columns of a row group from their fetched pages; `row_idx` is the first row of them in the shard.
    ///
    /// The decoders index by what they read, so damaged pages may make them panic: that is an error of
    /// these pages like any other.
    fn decode(
        &self,
        group: usize,
        columns: &ProjectionMask,
        pages: FetchedRanges,
        selection: Option<RowSelection>,
        row_idx: u64,
    ) -> Result<Vec<StructArray>, CorpusError> {
        let decode = || self.decode_pages(group, columns, pages, selection);
        catch_unwind(AssertUnwindSafe(decode))
            .unwrap_or_else(|_| Err(self.damaged(format!("row {row_idx} cannot be decoded"))))
    }

    fn decode_pages(
        &self,
        group: usize,
        columns: &ProjectionMask,
        pages: FetchedRanges,
        selection: Option<RowSelection>,
    ) -> Result<Vec<StructArray>, CorpusError> {
        let batch_rows = selection.as_ref().map_or(SCAN_ROWS, RowSelection::row_count);
        let mut builder =
            ParquetRecordBatchReaderBuilder::new_with_metadata(pages, self.metadata.clone())
                .with_row_groups(vec![group])
                .with_projection(columns.clone())
                .with_row_selection_policy(RowSelectionPolicy::Selectors)
                .with_batch_size(batch_rows);
        if let Some(selection) = selection {
            builder = builder.with_row_selection(selection);
        }
        let arrow = |source| CorpusError::Arrow { object: self.name(), source };
        let reader = builder.build().map_err(|e| self.broken(e))?;
        reader.map(|batch| batch.map(StructArray::from).map_err(arrow)).collect()
    }

    /// What was decoded of at most a block of rows.
    fn only(
        &self,
        mut batches: Vec<StructArray>,
        row_idx: u64,
    ) -> Result<StructArray, CorpusError> {
        match batches.pop() {
            Some(batch) if batches.is_empty() => Ok(batch),
            _ => Err(self.damaged(format!("its pages lack row {row_idx}"))),
        }
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

/// A part of a page, without a copy where it lies in it as it is.
fn shared(page: &Bytes, part: &[u8]) -> Bytes {
    if page.as_ptr_range().contains(&part.as_ptr()) {
        page.slice_ref(part)
    } else {
        Bytes::copy_from_slice(part)
    }
}

/// Rows of a block of each row group: as many as a page has of the column with the longest texts, so that
/// its pages are decompressed about once.
fn block_rows(metadata: &ArrowReaderMetadata, texts: &ProjectionMask) -> Vec<u64> {
    let groups = metadata.metadata().row_groups().iter().enumerate();
    let rows = groups.map(|(group, meta)| {
        let index = metadata.metadata().offset_index().and_then(|index| index.get(group));
        let columns = index.into_iter().flatten().enumerate();
        let pages = columns.filter(|(leaf, _)| texts.leaf_included(*leaf));
        let n_pages = pages.map(|(_, column)| column.page_locations().len()).max();
        let rows = meta.num_rows() as u64 / n_pages.unwrap_or(1).max(1) as u64;
        rows.clamp(BLOCK_ROWS_MIN, BLOCK_ROWS_MAX)
    });
    rows.collect()
}

/// Selects one row.
fn one_row(place: u64) -> RowSelection {
    RowSelection::from(vec![RowSelector::skip(place as usize), RowSelector::select(1)])
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
    let object = StoredObject { store: store.clone(), file: file.to_owned(), size, failure: None };
    ArrowReaderMetadata::load(&object, options)
}

fn check_columns(
    object: &str,
    kind: CorpusKind,
    metadata: &ArrowReaderMetadata,
) -> Result<(), CorpusError> {
    for field in schema(kind).fields() {
        let found = metadata.schema().field_with_name(field.name()).ok();
        if found.is_some_and(|f| is_same_type(f.data_type(), field.data_type())) {
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

/// Whether types are the same with the names within them, by which columns are found.
fn is_same_type(found: &DataType, expected: &DataType) -> bool {
    match (found, expected) {
        (DataType::List(found), DataType::List(expected)) => is_same_field(found, expected),
        (DataType::Struct(found), DataType::Struct(expected)) => {
            let mut pairs = found.iter().zip(expected);
            found.len() == expected.len() && pairs.all(|(f, e)| is_same_field(f, e))
        }
        _ => found.equals_datatype(expected),
    }
}

fn is_same_field(found: &Field, expected: &Field) -> bool {
    found.name() == expected.name() && is_same_type(found.data_type(), expected.data_type())
}

/// An object of a store read piece by piece: a Parquet file of which only some columns or rows are
/// wanted is opened without being read whole.
pub struct StoredObject {
    store: CorpusStore,
    file: String,
    size: u64,
    failure: Option<Failure>,
}

/// The first failure of a store that a decoder met.
pub(crate) type Failure = Arc<Mutex<Option<CorpusError>>>;

impl StoredObject {
    /// The object `file` of a store.
    ///
    /// # Errors
    /// When the object does not exist or cannot be read.
    pub fn open(store: &CorpusStore, file: &str) -> Result<Self, CorpusError> {
        let size = store.size(file)?;
        Ok(Self { store: store.clone(), file: file.to_owned(), size, failure: None })
    }

    /// The same, where its size is known; the first failure of the store goes into `failure`, since
    /// decoders pass on no more than its words.
    pub(crate) fn known(store: &CorpusStore, file: &str, size: u64, failure: &Failure) -> Self {
        let (store, file, failure) = (store.clone(), file.to_owned(), Some(Arc::clone(failure)));
        Self { store, file, size, failure }
    }

    /// Its size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn range(&self, range: Range<u64>) -> Result<Bytes, CorpusError> {
        let found = self.store.get_range(&self.file, range.clone());
        match (found, &self.failure) {
            // What is not in the file is no fault of the store.
            (Err(error), Some(failure)) if range.end <= self.size => {
                let problem = error.to_string();
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                let (object, source) = (self.store.name_of(&self.file), ParquetError::EOF(problem));
                Err(CorpusError::Parquet { object, source })
            }
            (found, _) => found,
        }
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
        let (store, file, failure) = (self.store.clone(), self.file.clone(), self.failure.clone());
        let object = Self { store, file, size: self.size, failure };
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

#[cfg(test)]
mod tests {
    use arrow::datatypes::Fields;

    use super::*;
    use crate::schema::image_type;

    #[test]
    fn types_with_other_names_within_are_others() {
        let image = |names: [&str; 2]| {
            let [bytes, path] = names;
            DataType::Struct(Fields::from(vec![
                Field::new(bytes, DataType::Binary, false),
                Field::new(path, DataType::Utf8, true),
            ]))
        };
        let list = |name: &str, of| DataType::List(Arc::new(Field::new(name, of, true)));
        // Whether a value may be missing is no matter.
        assert!(is_same_type(&image(["bytes", "path"]), &image_type()));
        assert!(!is_same_type(&image(["bytes", "filename"]), &image_type()));
        let [named, renamed] = ["element", "item"].map(|name| list(name, DataType::Utf8));
        assert!(is_same_type(&named, &named) && !is_same_type(&renamed, &named));
        assert!(!is_same_type(&list("element", DataType::Int32), &named));
    }
}
