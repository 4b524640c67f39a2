//! Rows to one Parquet file, so that one row can be read back without its neighbours.
//!
//! Image bytes are stored plain: no dictionary, no statistics, no compression, and a page is closed
//! after each row, so that the images of one row are one range of the file. Texts are compressed in
//! small pages. The same rows give the same bytes.

use arrow::array::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::schema::{HUGGINGFACE_KEY, image_leaf};
use crate::{CorpusError, CorpusKind, ImageText, Interleaved, Row, VideoText, columns, schema};

/// A row group is closed before it holds more. Viewers load one row group at a time.
const ROW_GROUP_BYTES_MAX: usize = 100_000_000;

/// Largest row: Arrow counts the bytes of a column with 31 bits.
const ROW_BYTES_MAX: usize = 1 << 30;

/// A page of image bytes is closed past this size; nearly every image is larger, so it is alone.
const IMAGE_PAGE_BYTES: usize = 4096;

/// Small pages of text: to read one row, one page of each text column is decompressed.
const TEXT_PAGE_BYTES: usize = 64 * 1024;

/// Level 3 is zstd's default: near the knee of size against speed.
const ZSTD_LEVEL: i32 = 3;

/// A constant, so that a shard does not depend on the version of a library.
const CREATED_BY: &str = "flamingo-dataset version 1";

/// A whole shard as one Parquet file.
///
/// # Errors
/// When a row is of another kind or larger than a gigabyte.
pub fn encode_shard(kind: CorpusKind, rows: &[Row]) -> Result<Vec<u8>, CorpusError> {
    check_rows(kind, rows)?;
    write(kind, rows).map_err(|source| CorpusError::Encode { kind, source })
}

fn write(kind: CorpusKind, rows: &[Row]) -> Result<Vec<u8>, ParquetError> {
    let mut file = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut file, schema(kind), Some(properties(kind)?))?;
    for group in row_groups(rows) {
        writer.write(&record_batch(kind, group)?)?;
        writer.flush()?;
    }
    writer.close()?;
    Ok(file)
}

fn check_rows(kind: CorpusKind, rows: &[Row]) -> Result<(), CorpusError> {
    for row in rows {
        let problem = if row.kind() != kind {
            format!("it is {}", row.kind())
        } else if row.stored_bytes() > ROW_BYTES_MAX {
            format!("it has {} bytes, at most {ROW_BYTES_MAX} fit", row.stored_bytes())
        } else if row.n_images() > i16::MAX as usize {
            format!("it has {} images, at most {} fit", row.n_images(), i16::MAX)
        } else {
            continue;
        };
        return Err(CorpusError::Unwritable { key: row.key().to_owned(), kind, problem });
    }
    Ok(())
}

/// Splits rows into runs of at most [`ROW_GROUP_BYTES_MAX`], but at least one row.
fn row_groups(rows: &[Row]) -> Vec<&[Row]> {
    let mut groups = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (i, row) in rows.iter().enumerate() {
        if i > start && bytes + row.stored_bytes() > ROW_GROUP_BYTES_MAX {
            groups.push(&rows[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += row.stored_bytes();
    }
    if start < rows.len() {
        groups.push(&rows[start..]);
    }
    groups
}

fn record_batch(kind: CorpusKind, rows: &[Row]) -> Result<RecordBatch, ParquetError> {
    let mut pages: Vec<&Interleaved> = Vec::new();
    let mut pairs: Vec<&ImageText> = Vec::new();
    let mut clips: Vec<&VideoText> = Vec::new();
    for row in rows {
        match row {
            Row::Interleaved(page) => pages.push(page),
            Row::ImageText(pair) => pairs.push(pair),
            Row::VideoText(clip) => clips.push(clip),
        }
    }
    let columns = match kind {
        CorpusKind::Interleaved => columns::interleaved(&pages),
        CorpusKind::ImageText => columns::image_text(&pairs),
        CorpusKind::VideoText => columns::video_text(&clips),
    };
    Ok(RecordBatch::try_new(schema(kind), columns)?)
}

fn properties(kind: CorpusKind) -> Result<WriterProperties, ParquetError> {
    let image = ColumnPath::new(image_leaf(kind));
    let features = schema(kind).metadata()[HUGGINGFACE_KEY].clone();
    Ok(WriterProperties::builder()
        .set_created_by(CREATED_BY.to_owned())
        .set_key_value_metadata(Some(vec![KeyValue::new(HUGGINGFACE_KEY.to_owned(), features)]))
        .set_max_row_group_row_count(None)
        .set_max_row_group_bytes(None)
        // The size of a page is looked at after each batch of values: after each value.
        .set_write_batch_size(1)
        .set_dictionary_enabled(false)
        .set_data_page_size_limit(TEXT_PAGE_BYTES)
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL)?))
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_column_data_page_size_limit(image.clone(), IMAGE_PAGE_BYTES)
        .set_column_compression(image.clone(), Compression::UNCOMPRESSED)
        .set_column_encoding(image.clone(), Encoding::PLAIN)
        .set_column_statistics_enabled(image, EnabledStatistics::None)
        .build())
}
