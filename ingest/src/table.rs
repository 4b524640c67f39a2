//! Parquet files of a corpus read batch by batch, only the columns that are asked for.
//!
//! Used by everything that is done with a finished corpus. A damaged file is an error that names it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow::array::{Array, AsArray, RecordBatch};
use flamingo_dataset::{CorpusError, CorpusStore, StoredObject};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
    ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::PageIndexPolicy;

use crate::error::IngestError;

/// Rows of texts and numbers in memory at a time.
const BATCH_ROWS: usize = 1024;

/// The batches of one file, without its other columns.
///
/// # Errors
/// When the object cannot be read or is not Parquet.
pub(crate) fn read(
    store: &CorpusStore,
    name: &str,
    columns: &[&str],
) -> Result<Batches, IngestError> {
    let object = StoredObject::open(store, name)?;
    let object_name = store.name_of(name);
    let opened = guarded(|| {
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
        let metadata = ArrowReaderMetadata::load(&object, options)?;
        let mask = if columns.is_empty() {
            ProjectionMask::all()
        } else {
            ProjectionMask::columns(metadata.parquet_schema(), columns.iter().copied())
        };
        ParquetRecordBatchReaderBuilder::new_with_metadata(object, metadata)
            .with_projection(mask)
            .with_batch_size(BATCH_ROWS)
            .build()
    });
    match opened {
        Ok(reader) => Ok(Batches { reader, object: object_name }),
        Err(source) => Err(CorpusError::Parquet { object: object_name, source }.into()),
    }
}

/// Batches of one file.
pub(crate) struct Batches {
    reader: ParquetRecordBatchReader,
    object: String,
}

impl Iterator for Batches {
    type Item = Result<RecordBatch, IngestError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = guarded(|| self.reader.next().transpose().map_err(ParquetError::from));
        let broken = |source| CorpusError::Parquet { object: self.object.clone(), source };
        next.map_err(|error| broken(error).into()).transpose()
    }
}

/// Decoders index by what they read, so that a damaged file may make them panic: an error like
/// any other.
pub(crate) fn guarded<T>(
    read: impl FnOnce() -> Result<T, ParquetError>,
) -> Result<T, ParquetError> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(ParquetError::General("its pages cannot be decoded".to_owned())))
}

/// The text of a column in one row; none where it is null or the column is missing.
pub(crate) fn text<'a>(batch: &'a RecordBatch, column: &str, row: usize) -> Option<&'a str> {
    let values = batch.column_by_name(column)?.as_string_opt::<i32>()?;
    values.is_valid(row).then(|| values.value(row))
}

/// The files of a table beside the shards, in order; those of partitions, too.
///
/// # Errors
/// When the store cannot list.
pub(crate) fn parts(store: &CorpusStore, table: &str) -> Result<Vec<String>, IngestError> {
    let is_part = |name: &String| {
        let folder = name.strip_suffix(".parquet").and_then(|stem| stem.rsplit_once('/'));
        folder.is_some_and(|(folder, _)| folder.rsplit('/').next() == Some(table))
    };
    Ok(store.list("")?.into_iter().filter(is_part).collect())
}
