//! Lists in Parquet, with the images inside or beside. Only the columns that a plan names are read,
//! a few rows at a time, or one at a time where rows hold images.
//!
//! A page of a column is decompressed as a whole, so it is the least that is in memory at a time.
//! The format allows it 2 GiB; the Parquet library shows no page's size before it reads the page, so
//! only its compressed size is limited here.

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, LargeBinaryArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

use crate::error::IngestError;
use crate::list::{Items, ListItem, ListRow, broken};
use crate::plan::ListPlan;
use crate::source::Source;

/// Rows decoded at a time where they hold texts only.
const BATCH_ROWS: usize = 32;
/// Rows decoded at a time where none is large.
const TEXT_BATCH_ROWS: usize = 8192;
/// Most bytes that are read at once, a compressed page or a footer: writers close pages at about
/// 1 MB, or with the one value that is larger.
const READ_BYTES_MAX: usize = 256 << 20;

/// A source as the Parquet reader wants it.
#[derive(Clone)]
struct File(Arc<Source>);

impl Length for File {
    fn len(&self) -> u64 {
        self.0.len()
    }
}

/// A reader that owns what it reads.
struct FileReader {
    source: Arc<Source>,
    next: u64,
}

impl Read for FileReader {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = self.source.reader_of(self.next, out.len() as u64).read(out)?;
        self.next += n as u64;
        Ok(n)
    }
}

impl ChunkReader for File {
    type T = std::io::BufReader<FileReader>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        let reader = FileReader { source: Arc::clone(&self.0), next: start };
        Ok(std::io::BufReader::new(reader))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        if start.saturating_add(length as u64) > self.0.len() {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} are not there")));
        }
        if length > READ_BYTES_MAX {
            let message =
                format!("a page or footer of {length} bytes, expected at most {READ_BYTES_MAX}");
            return Err(ParquetError::General(message));
        }
        let mut bytes = vec![0; length];
        self.0.reader_of(start, length as u64).read_exact(&mut bytes)?;
        Ok(bytes.into())
    }
}

/// Names of the columns of a list.
///
/// # Errors
/// When it is no Parquet file.
pub(crate) fn columns(source: &Arc<Source>) -> Result<Vec<String>, IngestError> {
    let builder = open(source)?;
    Ok(builder.schema().fields().iter().map(|field| field.name().clone()).collect())
}

/// Rows of a list.
///
/// # Errors
/// When it is no Parquet file.
pub(crate) fn n_rows(source: &Arc<Source>) -> Result<u64, IngestError> {
    Ok(open(source)?.metadata().file_metadata().num_rows() as u64)
}

fn open(source: &Arc<Source>) -> Result<ParquetRecordBatchReaderBuilder<File>, IngestError> {
    let file = File(Arc::clone(source));
    no_panic(source, || ParquetRecordBatchReaderBuilder::try_new(file))
}

/// The rows of some columns of a Parquet file, in batches.
///
/// # Errors
/// When it is no Parquet file.
pub(crate) fn batches<'a>(
    source: &'a Arc<Source>,
    columns: &[&str],
) -> Result<impl Iterator<Item = Result<RecordBatch, IngestError>> + use<'a>, IngestError> {
    let builder = open(source)?;
    let fields = builder.schema().fields().iter().enumerate();
    let roots = fields.filter(|(_, field)| columns.contains(&field.name().as_str()));
    let mask = ProjectionMask::roots(builder.parquet_schema(), roots.map(|(i, _)| i));
    let builder = builder.with_projection(mask).with_batch_size(TEXT_BATCH_ROWS);
    let mut reader = no_panic(source, || builder.build())?;
    Ok(std::iter::from_fn(move || no_panic(source, || Ok(reader.next().transpose()?)).transpose()))
}

/// The reader's result; a panic inside it, which a hostile file may cause, is an error as well.
fn no_panic<T>(
    source: &Source,
    read: impl FnOnce() -> Result<T, ParquetError>,
) -> Result<T, IngestError> {
    let result = catch_unwind(AssertUnwindSafe(read));
    let result =
        result.unwrap_or_else(|_| Err(ParquetError::General("the reader panicked".into())));
    result.map_err(|error| broken(source, error.to_string()))
}

/// The rows of a list.
pub(crate) fn rows<'a>(list: usize, source: &'a Arc<Source>, plan: &'a ListPlan) -> Items<'a> {
    let mut reader = match reader(source, plan) {
        Ok(reader) => reader,
        Err(error) => return Box::new(std::iter::once(Err(error))),
    };
    let mut first_row = 0;
    let mut is_over = false;
    let batches = std::iter::from_fn(move || {
        if is_over {
            return None;
        }
        let batch = no_panic(source, || Ok(reader.next().transpose()?)).transpose()?;
        let items = batch.and_then(|batch| {
            let rows = batch_rows(source, &batch, plan, list, first_row)?;
            first_row += batch.num_rows() as u64;
            Ok(rows)
        });
        is_over = items.is_err();
        Some(items)
    });
    Box::new(batches.flat_map(|rows| match rows {
        Ok(rows) => rows.into_iter().map(|row| Ok(ListItem::Row(row))).collect(),
        Err(error) => vec![Err(error)],
    }))
}

fn reader(source: &Arc<Source>, plan: &ListPlan) -> Result<ParquetRecordBatchReader, IngestError> {
    let builder = open(source)?;
    let wanted = [
        &plan.url_column,
        &plan.caption_column,
        &plan.file_column,
        &plan.source_column,
        &plan.image_column,
        &plan.start_column,
        &plan.end_column,
    ];
    let mask = {
        let fields = builder.schema().fields().iter().enumerate();
        let roots = fields.filter(|(_, field)| wanted.contains(&field.name())).map(|(i, _)| i);
        ProjectionMask::roots(builder.parquet_schema(), roots)
    };
    let has_images = builder.schema().field_with_name(&plan.image_column).is_ok();
    let batch_rows = if has_images { 1 } else { BATCH_ROWS };
    let builder = builder.with_projection(mask).with_batch_size(batch_rows);
    no_panic(source, || builder.build())
}

fn batch_rows(
    source: &Source,
    batch: &RecordBatch,
    plan: &ListPlan,
    list: usize,
    first_row: u64,
) -> Result<Vec<ListRow>, IngestError> {
    let text = |column: &str| texts(source, batch, column);
    let (url, caption) = (text(&plan.url_column)?, text(&plan.caption_column)?);
    let (file, origin) = (text(&plan.file_column)?, text(&plan.source_column)?);
    let (start, end) = (text(&plan.start_column)?, text(&plan.end_column)?);
    let images = images(source, batch, &plan.image_column)?;
    let value = |texts: &Option<StringArray>, i: usize| {
        let texts = texts.as_ref().filter(|texts| texts.is_valid(i))?;
        Some(texts.value(i)).filter(|text| !text.trim().is_empty()).map(str::to_owned)
    };
    let row = |i: usize| ListRow {
        list,
        row: first_row + i as u64,
        url: value(&url, i),
        caption: value(&caption, i),
        file: value(&file, i),
        source: value(&origin, i),
        start: value(&start, i),
        end: value(&end, i),
        image: images
            .as_ref()
            .filter(|images| images.is_valid(i))
            .map(|images| Bytes::copy_from_slice(images.value(i))),
    };
    Ok((0..batch.num_rows()).map(row).collect())
}

/// A column of texts of any Arrow type; none where the list lacks it.
fn texts(
    source: &Source,
    batch: &RecordBatch,
    column: &str,
) -> Result<Option<StringArray>, IngestError> {
    let Some(array) = batch.column_by_name(column) else { return Ok(None) };
    let texts =
        cast(array, &DataType::Utf8).map_err(|_| wrong_type(source, column, array, "text"))?;
    Ok(Some(texts.as_string::<i32>().clone()))
}

/// A column of files: bytes, or a struct with a field `bytes`.
fn images(
    source: &Source,
    batch: &RecordBatch,
    column: &str,
) -> Result<Option<LargeBinaryArray>, IngestError> {
    let Some(array) = batch.column_by_name(column) else { return Ok(None) };
    let wrong = || wrong_type(source, column, array, "bytes or a struct with `bytes`");
    let bytes = match array.as_struct_opt() {
        Some(image) => image.column_by_name("bytes").ok_or_else(wrong)?,
        None => array,
    };
    if !matches!(bytes.data_type(), DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
    {
        return Err(wrong());
    }
    let bytes = cast(bytes, &DataType::LargeBinary).map_err(|_| wrong())?;
    Ok(Some(bytes.as_binary::<i64>().clone()))
}

fn wrong_type(source: &Source, column: &str, array: &ArrayRef, expected: &str) -> IngestError {
    let found = array.data_type();
    broken(source, format!("column `{column}` holds {found}, expected {expected}"))
}

#[cfg(test)]
mod tests {
    use arrow::array::{BinaryArray, Int32Array, LargeStringArray, StructArray};
    use arrow::datatypes::Field;
    use parquet::arrow::ArrowWriter;

    use super::*;

    fn write(columns: Vec<(&str, ArrayRef)>) -> (tempfile::TempDir, Arc<Source>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let file = std::fs::File::create(&path).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let source = Arc::new(Source::open(path.to_str().unwrap()).unwrap());
        (folder, source)
    }

    fn read(source: &Arc<Source>) -> Vec<Result<ListItem, IngestError>> {
        rows(0, source, &ListPlan::default()).collect()
    }

    #[test]
    fn images_are_read_as_bytes_or_as_a_struct() {
        let n = 2 * BATCH_ROWS + 1;
        let captions: ArrayRef =
            Arc::new(LargeStringArray::from_iter_values((0..n).map(|i| i.to_string())));
        let images: ArrayRef =
            Arc::new(BinaryArray::from_iter_values((0..n).map(|i| vec![i as u8; 3])));
        let field = Arc::new(Field::new("bytes", DataType::Binary, true));
        let nested: ArrayRef = Arc::new(StructArray::from(vec![(field, Arc::clone(&images))]));
        for image in [images, nested] {
            let other: ArrayRef = Arc::new(Int32Array::from_iter_values(0..n as i32));
            let (_folder, source) =
                write(vec![("n", other), ("caption", Arc::clone(&captions)), ("image", image)]);
            let items = read(&source);
            assert_eq!(items.len(), n);
            for (i, item) in items.into_iter().enumerate() {
                let expected = ListRow {
                    row: i as u64,
                    caption: Some(i.to_string()),
                    image: Some(Bytes::from(vec![i as u8; 3])),
                    ..ListRow::default()
                };
                assert_eq!(item.unwrap(), ListItem::Row(expected));
            }
            assert_eq!(columns(&source).unwrap(), ["n", "caption", "image"]);
            assert_eq!(n_rows(&source).unwrap(), n as u64);
        }
    }

    #[test]
    fn rows_with_images_are_decoded_one_by_one() {
        let captions: ArrayRef = Arc::new(StringArray::from(vec!["a", "b", "c"]));
        let images: ArrayRef = Arc::new(BinaryArray::from_vec(vec![b"x", b"y", b"z"]));
        let first = |columns| {
            let (_folder, source) = write(columns);
            reader(&source, &ListPlan::default()).unwrap().next().unwrap().unwrap().num_rows()
        };
        assert_eq!(first(vec![("caption", Arc::clone(&captions))]), 3);
        assert_eq!(first(vec![("caption", captions), ("image", images)]), 1);
    }

    #[test]
    fn a_column_of_another_type_is_named() {
        let numbers: ArrayRef = Arc::new(Int32Array::from(vec![1]));
        let (_folder, source) = write(vec![("image", numbers)]);
        let error = read(&source).pop().unwrap().unwrap_err().to_string();
        assert!(error.contains("column `image` holds Int32"), "{error}");
    }
}
