//! A Parquet file of any writer: its texts by blocks of rows, kept while they are used, and its images
//! one by one.
//!
//! Such a file seldom says where its pages begin. The reader finds an image by going from page to
//! page of its row group, which reads their heads and the one page: for a store at a distance a
//! request each, unless a disk cache has them.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray, StructArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection,
    RowSelectionPolicy, RowSelector,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, PageIndexPolicy, RowGroupMetaData};

use crate::block_cache::{BlockCache, BlockKey};
use crate::digest::sha256_hex;
use crate::shard_reader::{Failure, StoredObject};
use crate::{CorpusError, CorpusStore, EncodedImage};

/// Rows whose texts are read together.
const BLOCK_ROWS: usize = 256;

pub(super) struct ParquetFile {
    store: CorpusStore,
    file: String,
    size: u64,
    metadata: ArrowReaderMetadata,
    texts: ProjectionMask,
    images: ProjectionMask,
}

impl ParquetFile {
    /// Opens a file; [`ParquetFile::with_columns`] says what is read of it.
    pub(super) fn open(store: &CorpusStore, file: &str) -> Result<Self, CorpusError> {
        let object = StoredObject::open(store, file)?;
        let options = ArrowReaderOptions::new()
            .with_offset_index_policy(PageIndexPolicy::Optional)
            .with_column_index_policy(PageIndexPolicy::Skip);
        let load = || ArrowReaderMetadata::load(&object, options);
        let metadata = catch_unwind(AssertUnwindSafe(load))
            .unwrap_or_else(|_| Err(ParquetError::General("its footer is damaged".to_owned())))
            .map_err(|source| CorpusError::Footer { object: store.name_of(file), source })?;
        let counts = metadata.metadata().row_groups().iter().map(RowGroupMetaData::num_rows);
        let counted = counts.clone().all(|n| n >= 0)
            && counts.sum::<i64>() == metadata.metadata().file_metadata().num_rows();
        if !counted {
            let problem = "its row groups and its footer count other rows".to_owned();
            return Err(CorpusError::Layout { object: store.name_of(file), problem });
        }
        let all = ProjectionMask::all();
        let (store, file, size) = (store.clone(), file.to_owned(), object.size());
        Ok(Self { store, file, size, metadata, texts: all.clone(), images: all })
    }

    /// Says which columns are texts and which are images.
    pub(super) fn with_columns(mut self, texts: &[&str], images: &str) -> Self {
        self.texts = self.mask(texts);
        self.images = self.mask(&[images]);
        self
    }

    /// The type of a column.
    pub(super) fn column(&self, name: &str) -> Option<&DataType> {
        self.metadata.schema().field_with_name(name).ok().map(arrow::datatypes::Field::data_type)
    }

    pub(super) fn column_names(&self) -> Vec<&str> {
        self.metadata.schema().fields().iter().map(|field| field.name().as_str()).collect()
    }

    pub(super) fn n_rows(&self) -> u64 {
        self.metadata.metadata().file_metadata().num_rows() as u64
    }

    /// Digest of where everything is in the file.
    pub(super) fn sha256(&self) -> String {
        let groups = self.metadata.metadata().row_groups().iter();
        let places =
            groups.flat_map(|group| group.columns().iter().map(ColumnChunkMetaData::byte_range));
        let places = places.map(|(start, length)| format!("{start} {length}"));
        sha256_hex(places.collect::<Vec<_>>().join("\n").as_bytes())
    }

    /// Its name in the corpus.
    pub(super) fn file(&self) -> &str {
        &self.file
    }

    /// Name for messages.
    pub(super) fn name(&self) -> String {
        self.store.name_of(&self.file)
    }

    pub(super) fn problem(&self, problem: impl Into<String>) -> CorpusError {
        CorpusError::Layout { object: self.name(), problem: problem.into() }
    }

    /// All values of a column of texts.
    pub(super) fn all_texts(&self, column: &str) -> Result<Vec<Option<String>>, CorpusError> {
        let mask = self.mask(&[column]);
        let mut all = Vec::new();
        for group in 0..self.metadata.metadata().num_row_groups() {
            if self.group_rows(group) == 0 {
                continue;
            }
            let columns = self.decode(group, &mask, 0..self.group_rows(group))?;
            let texts =
                cast(columns.column(0), &DataType::Utf8).map_err(|e| self.broken(e.into()))?;
            all.extend(texts.as_string::<i32>().iter().map(|text| text.map(str::to_owned)));
        }
        Ok(all)
    }

    /// Columns by name, dots in names included.
    fn mask(&self, names: &[&str]) -> ProjectionMask {
        let fields = self.metadata.schema().fields();
        let roots = fields.iter().enumerate().filter(|(_, f)| names.contains(&f.name().as_str()));
        ProjectionMask::roots(self.metadata.parquet_schema(), roots.map(|(root, _)| root))
    }

    /// The row group of a row, and its place in it.
    pub(super) fn place_of(&self, row_idx: u64) -> Option<(usize, usize)> {
        let mut start = 0;
        for (group, meta) in self.metadata.metadata().row_groups().iter().enumerate() {
            let end = start + meta.num_rows() as u64;
            if row_idx < end {
                return Some((group, (row_idx - start) as usize));
            }
            start = end;
        }
        None
    }

    /// The texts of a row, as the only one; read with those of the rows around it.
    pub(super) fn texts(
        &self,
        file: usize,
        group: usize,
        place: usize,
        cache: &BlockCache<StructArray>,
    ) -> Result<StructArray, CorpusError> {
        let block = place / BLOCK_ROWS;
        let first = block * BLOCK_ROWS;
        let rows = first..self.group_rows(group).min(first + BLOCK_ROWS);
        let key = BlockKey { shard: file, group, block: block as u64 };
        let read = || {
            let texts = self.decode(group, &self.texts, rows)?;
            let bytes = texts.get_array_memory_size();
            Ok((texts, bytes))
        };
        match cache.get(key, read) {
            Ok(texts) => Ok(texts.slice(place - first, 1)),
            // What is damaged may be another row.
            Err(error) if error.is_about_one_row() => {
                self.decode(group, &self.texts, place..place + 1)
            }
            Err(error) => Err(error),
        }
    }

    /// The images of a row: one or a list. None where the row has none.
    pub(super) fn images(
        &self,
        group: usize,
        place: usize,
    ) -> Result<Vec<Option<EncodedImage>>, CorpusError> {
        let columns = self.decode(group, &self.images, place..place + 1)?;
        Ok(images_of(columns.column(0)))
    }

    fn group_rows(&self, group: usize) -> usize {
        self.metadata.metadata().row_group(group).num_rows() as usize
    }

    /// Some columns of some rows of a row group.
    fn decode(
        &self,
        group: usize,
        columns: &ProjectionMask,
        rows: Range<usize>,
    ) -> Result<StructArray, CorpusError> {
        let failure = Failure::default();
        let n_rows = rows.len();
        let decode = || self.decode_pages(group, columns, rows, &failure);
        let decoded = catch_unwind(AssertUnwindSafe(decode))
            .unwrap_or_else(|_| Err(self.damaged(format!("row group {group} cannot be decoded"))));
        // A store that fails is no fault of the rows.
        if let Some(error) = failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        let decoded = decoded?;
        if decoded.len() != n_rows {
            let found = decoded.len();
            let problem = format!("{found} of {n_rows} rows are in the pages of row group {group}");
            return Err(self.damaged(problem));
        }
        Ok(decoded)
    }

    fn decode_pages(
        &self,
        group: usize,
        columns: &ProjectionMask,
        rows: Range<usize>,
        failure: &Failure,
    ) -> Result<StructArray, CorpusError> {
        let object = StoredObject::known(&self.store, &self.file, self.size, failure);
        let selection = vec![RowSelector::skip(rows.start), RowSelector::select(rows.len())];
        let reader =
            ParquetRecordBatchReaderBuilder::new_with_metadata(object, self.metadata.clone())
                .with_row_groups(vec![group])
                .with_projection(columns.clone())
                .with_row_selection_policy(RowSelectionPolicy::Selectors)
                .with_row_selection(RowSelection::from(selection))
                .with_batch_size(rows.len().max(1))
                .build();
        let arrow = |source| CorpusError::Arrow { object: self.name(), source };
        match reader.map_err(|e| self.broken(e))?.next() {
            Some(batch) => batch.map(StructArray::from).map_err(arrow),
            None => Err(self.damaged(format!("row group {group} is empty"))),
        }
    }

    fn damaged(&self, problem: String) -> CorpusError {
        self.broken(ParquetError::General(problem))
    }

    fn broken(&self, source: ParquetError) -> CorpusError {
        CorpusError::Parquet { object: self.name(), source }
    }
}

/// The text of a column of a single row, of whatever type texts have; the first text of a list.
pub(super) fn text_of(row: &StructArray, column: &str) -> Option<String> {
    texts_of(row.column_by_name(column)?).into_iter().next().flatten()
}

/// The whole number of a column of a single row.
pub(super) fn number_of(row: &StructArray, column: &str) -> Option<i64> {
    let value = cast(row.column_by_name(column)?, &DataType::Int64).ok()?;
    value.as_primitive::<arrow::datatypes::Int64Type>().iter().next().flatten()
}

/// The texts of a single value: one, or those of a list.
pub(super) fn texts_of(value: &ArrayRef) -> Vec<Option<String>> {
    let Some(values) = elements(value) else { return Vec::new() };
    let Ok(texts) = cast(&values, &DataType::Utf8) else { return Vec::new() };
    texts.as_string::<i32>().iter().map(|text| text.map(str::to_owned)).collect()
}

/// The images of a single value: bytes, a struct with bytes, or a list of these.
fn images_of(value: &ArrayRef) -> Vec<Option<EncodedImage>> {
    let Some(values) = elements(value) else { return Vec::new() };
    let (bytes, paths) = match values.as_struct_opt() {
        Some(columns) => (columns.column_by_name("bytes").cloned(), columns.column_by_name("path")),
        None => (Some(Arc::clone(&values)), None),
    };
    let bytes = bytes.and_then(|bytes| cast(&bytes, &DataType::Binary).ok());
    let Some(bytes) = bytes else { return vec![None; values.len()] };
    let bytes = bytes.as_binary::<i32>();
    let paths = paths.and_then(|paths| cast(paths, &DataType::Utf8).ok());
    let image = |at: usize| {
        let is_there = values.is_valid(at) && bytes.is_valid(at);
        let path = paths.as_ref().map(AsArray::as_string::<i32>);
        let path = path.filter(|paths| paths.is_valid(at)).map(|paths| paths.value(at).to_owned());
        is_there.then(|| EncodedImage { bytes: Bytes::copy_from_slice(bytes.value(at)), path })
    };
    (0..values.len()).map(image).collect()
}

/// The elements of a list, or else the value itself; none where it is null.
fn elements(value: &ArrayRef) -> Option<ArrayRef> {
    if value.is_empty() || value.is_null(0) {
        return None;
    }
    let short = value.as_list_opt::<i32>().map(|list| list.value(0));
    let long = || value.as_list_opt::<i64>().map(|list| list.value(0));
    Some(short.or_else(long).unwrap_or_else(|| Arc::clone(value)))
}
