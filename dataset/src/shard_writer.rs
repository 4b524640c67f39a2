//! Rows to one Parquet file, so that one row can be read back without its neighbours.
//!
//! Image bytes are stored plain: no dictionary, no statistics, no compression, and a page is closed
//! after each row, so that the images of one row are one range of the file. Texts are compressed in
//! small pages. The same rows give the same bytes.

use std::io::Write;

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

/// Rows are turned into columns a few at a time, so that a row group's images are in memory once.
const BATCH_BYTES_MAX: usize = 16 << 20;

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
    let mut writer = RowWriter::new(kind, Vec::new())?;
    for row in rows {
        writer.push(row.clone())?;
    }
    writer.finish()
}

/// A shard that is written row by row: at most one row group of it is in memory. The same rows give
/// the same bytes as [`encode_shard`].
pub struct ShardWriter<W: Write + Send> {
    kind: CorpusKind,
    rows: RowWriter<W>,
}

impl<W: Write + Send> ShardWriter<W> {
    /// Starts a shard in `file`.
    ///
    /// # Errors
    /// When the file refuses its first bytes.
    pub fn new(kind: CorpusKind, file: W) -> Result<Self, CorpusError> {
        let rows =
            RowWriter::new(kind, file).map_err(|source| CorpusError::Encode { kind, source })?;
        Ok(Self { kind, rows })
    }

    /// Adds a row.
    ///
    /// # Errors
    /// When the row is of another kind or larger than a gigabyte, or the file refuses bytes.
    pub fn push(&mut self, row: Row) -> Result<(), CorpusError> {
        let kind = self.kind;
        check_rows(kind, std::slice::from_ref(&row))?;
        self.rows.push(row).map_err(|source| CorpusError::Encode { kind, source })
    }

    /// Writes what is left and the footer; returns the file.
    ///
    /// # Errors
    /// When the file refuses bytes.
    pub fn finish(self) -> Result<W, CorpusError> {
        let kind = self.kind;
        self.rows.finish().map_err(|source| CorpusError::Encode { kind, source })
    }
}

/// Rows on their way into row groups.
struct RowWriter<W: Write + Send> {
    kind: CorpusKind,
    writer: ArrowWriter<W>,
    /// Rows that are no columns yet.
    waiting: Vec<Row>,
    waiting_bytes: usize,
    /// Bytes of the open row group, those that wait included.
    group_bytes: usize,
}

impl<W: Write + Send> RowWriter<W> {
    fn new(kind: CorpusKind, file: W) -> Result<Self, ParquetError> {
        let writer = ArrowWriter::try_new(file, schema(kind), Some(properties(kind)?))?;
        Ok(Self { kind, writer, waiting: Vec::new(), waiting_bytes: 0, group_bytes: 0 })
    }

    /// Adds a row; the row group is closed before it holds more than [`ROW_GROUP_BYTES_MAX`], unless
    /// by one row.
    fn push(&mut self, row: Row) -> Result<(), ParquetError> {
        let bytes = row.stored_bytes();
        if self.group_bytes > 0 && self.group_bytes + bytes > ROW_GROUP_BYTES_MAX {
            self.write_waiting()?;
            self.writer.flush()?;
            self.group_bytes = 0;
        }
        self.waiting.push(row);
        self.waiting_bytes += bytes;
        self.group_bytes += bytes;
        if self.waiting_bytes >= BATCH_BYTES_MAX { self.write_waiting() } else { Ok(()) }
    }

    fn write_waiting(&mut self) -> Result<(), ParquetError> {
        if !self.waiting.is_empty() {
            self.writer.write(&record_batch(self.kind, &self.waiting)?)?;
            self.waiting.clear();
            self.waiting_bytes = 0;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<W, ParquetError> {
        self.write_waiting()?;
        self.writer.into_inner()
    }
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
