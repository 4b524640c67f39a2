//! The row-per-item Parquet of `NeMo` Curator's interleaved stages: a row with metadata at position -1,
//! then one row for each text and image of the sample, in order.

use std::io;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, Int32Array, Int64Array, LargeBinaryArray, RecordBatch, StringArray,
    StructArray,
};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use bytes::Bytes;
use flamingo_dataset::{EncodedImage, Row, Slot};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::{Counted, Writer, about, mime};

/// A row group is written before it holds more bytes of images.
const GROUP_BYTES_MAX: usize = 64 << 20;
/// Items of a row group.
const GROUP_ITEMS_MAX: usize = 10_000;
/// A constant, so that a file does not depend on the version of a library.
const CREATED_BY: &str = "flamingo-ingest version 1";

/// One file of items.
pub(super) struct Items {
    writer: ArrowWriter<Counted>,
    group: Vec<Item>,
    bytes: usize,
}

/// One row of the file.
struct Item {
    sample_id: String,
    position: i32,
    modality: &'static str,
    content_type: &'static str,
    text: Option<String>,
    binary: Option<Bytes>,
    /// Where it was found.
    uri: Option<String>,
    frame: Option<i32>,
}

impl Items {
    pub(super) fn create(folder: &Path, i: u64) -> io::Result<Self> {
        let file = Counted::create(&folder.join(format!("part-{i:05}.parquet")))?;
        let image = ColumnPath::new(vec!["binary_content".to_owned()]);
        let properties = WriterProperties::builder()
            .set_created_by(CREATED_BY.to_owned())
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_column_compression(image.clone(), Compression::UNCOMPRESSED)
            .set_column_dictionary_enabled(image.clone(), false)
            .set_column_statistics_enabled(image, EnabledStatistics::None)
            .build();
        let writer = ArrowWriter::try_new(file, schema(), Some(properties))?;
        Ok(Self { writer, group: Vec::new(), bytes: 0 })
    }

    fn push(&mut self, item: Item) {
        self.bytes += item.binary.as_ref().map_or(0, Bytes::len);
        self.bytes += item.text.as_ref().map_or(0, String::len);
        self.group.push(item);
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.group.is_empty() {
            self.writer.write(&to_batch(&self.group))?;
            self.writer.flush()?;
        }
        self.group.clear();
        self.bytes = 0;
        Ok(())
    }
}

impl Writer for Items {
    fn add(&mut self, _: u64, row: &Row) -> io::Result<()> {
        if self.bytes > GROUP_BYTES_MAX || self.group.len() > GROUP_ITEMS_MAX {
            self.flush()?;
        }
        let id = row.key();
        self.push(Item {
            content_type: "application/json",
            text: Some(about(row).to_string()),
            ..Item::new(id, -1, "metadata")
        });
        let mut position = 0;
        let mut next = || {
            position += 1;
            position - 1
        };
        match row {
            Row::Interleaved(page) => {
                for slot in &page.slots {
                    let item = match slot {
                        Slot::Text(text) => Item::text(id, next(), text),
                        Slot::Image { image, meta } => {
                            Item::image(id, next(), image, meta.url.as_deref())
                        }
                    };
                    self.push(item);
                }
            }
            Row::ImageText(pair) => {
                self.push(Item::image(id, next(), &pair.image, pair.url.as_deref()));
                self.push(Item::text(id, next(), &pair.caption));
            }
            Row::VideoText(clip) => {
                for (i, frame) in clip.frames.iter().enumerate() {
                    let item = Item::image(id, next(), frame, clip.url.as_deref());
                    self.push(Item { frame: Some(i as i32), ..item });
                }
                self.push(Item::text(id, next(), &clip.caption));
            }
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> io::Result<u64> {
        self.flush()?;
        let mut file = self.writer.into_inner()?;
        io::Write::flush(&mut file)?;
        Ok(file.bytes)
    }
}

impl Item {
    fn new(sample_id: &str, position: i32, modality: &'static str) -> Self {
        Self {
            sample_id: sample_id.to_owned(),
            position,
            modality,
            content_type: "text/plain",
            text: None,
            binary: None,
            uri: None,
            frame: None,
        }
    }

    fn text(id: &str, position: i32, text: &str) -> Self {
        Self { text: Some(text.to_owned()), ..Self::new(id, position, "text") }
    }

    fn image(id: &str, position: i32, image: &EncodedImage, url: Option<&str>) -> Self {
        Self {
            content_type: mime(image),
            binary: Some(image.bytes.clone()),
            uri: url.map(str::to_owned),
            ..Self::new(id, position, "image")
        }
    }
}

/// `INTERLEAVED_SCHEMA` of `NeMo` Curator.
fn schema() -> SchemaRef {
    let field = Field::new;
    Arc::new(Schema::new(vec![
        field("sample_id", DataType::Utf8, false),
        field("position", DataType::Int32, false),
        field("modality", DataType::Utf8, false),
        field("content_type", DataType::Utf8, true),
        field("text_content", DataType::Utf8, true),
        field("binary_content", DataType::LargeBinary, true),
        field("source_ref", DataType::Struct(reference_fields()), true),
        field("source_member", DataType::Utf8, true),
        field("source_frame_index", DataType::Int32, true),
        field("materialize_error", DataType::Utf8, true),
    ]))
}

/// Parquet's reference to a file.
fn reference_fields() -> Fields {
    Fields::from(vec![
        Field::new("uri", DataType::Utf8, true),
        Field::new("offset", DataType::Int64, true),
        Field::new("size", DataType::Int64, true),
        Field::new("content_type", DataType::Utf8, true),
        Field::new("checksum", DataType::Utf8, true),
        Field::new("inline", DataType::Binary, true),
    ])
}

fn to_batch(items: &[Item]) -> RecordBatch {
    let n = items.len();
    let text = |value: fn(&Item) -> Option<&str>| -> ArrayRef {
        Arc::new(items.iter().map(value).collect::<StringArray>())
    };
    let none: ArrayRef = Arc::new(StringArray::new_null(n));
    let numbers: ArrayRef = Arc::new(Int64Array::new_null(n));
    let references: Vec<ArrayRef> = vec![
        text(|item| item.uri.as_deref()),
        Arc::clone(&numbers),
        numbers,
        Arc::clone(&none),
        Arc::clone(&none),
        Arc::new(BinaryArray::new_null(n)),
    ];
    let is_there = items.iter().map(|item| item.uri.is_some()).collect::<Vec<_>>();
    let references = StructArray::new(reference_fields(), references, Some(is_there.into()));
    let binary = items.iter().map(|item| item.binary.as_deref()).collect::<LargeBinaryArray>();
    let columns = vec![
        text(|item| Some(&item.sample_id)),
        Arc::new(items.iter().map(|item| Some(item.position)).collect::<Int32Array>()),
        text(|item| Some(item.modality)),
        text(|item| Some(item.content_type)),
        text(|item| item.text.as_deref()),
        Arc::new(binary),
        Arc::new(references),
        Arc::clone(&none),
        Arc::new(items.iter().map(|item| item.frame).collect::<Int32Array>()),
        none,
    ];
    RecordBatch::try_new(schema(), columns).expect("the columns are built from the same schema")
}
