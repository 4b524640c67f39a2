//! The Arrow schema of each kind of corpus, and its version.
//!
//! Rules that other programs depend on: every field is nullable at every level; lists are `List`
//! (never large or view types); an image is `struct<bytes: binary, path: string>`; the metadata
//! key `huggingface` names the image columns. With them Hugging Face `datasets` shows images and
//! pyarrow, `DuckDB` and polars open the files unconverted.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Version of the columns below. A reader refuses a corpus with a higher one.
pub const SCHEMA_VERSION: u32 = 1;

/// Metadata key under which Hugging Face `datasets` looks for its features.
pub(crate) const HUGGINGFACE_KEY: &str = "huggingface";

/// Name of the child of every list, as the Parquet format recommends.
const LIST_ELEMENT: &str = "element";

/// What one row of a corpus is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CorpusKind {
    /// A web page: text and images in reading order (the paper's M3W, section 2.4).
    Interleaved,
    /// One image with its text (the paper's ALIGN and LTIP, section 2.4).
    ImageText,
    /// The frames of one clip with its text (the paper's VTP, section 2.4).
    VideoText,
}

impl CorpusKind {
    /// The name in manifests and plans, e.g. `image_text`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interleaved => "interleaved",
            Self::ImageText => "image_text",
            Self::VideoText => "video_text",
        }
    }
}

impl fmt::Display for CorpusKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The columns of a corpus of `kind`, with the `huggingface` metadata.
pub fn schema(kind: CorpusKind) -> SchemaRef {
    static SCHEMAS: LazyLock<[SchemaRef; 3]> = LazyLock::new(|| {
        [CorpusKind::Interleaved, CorpusKind::ImageText, CorpusKind::VideoText].map(make_schema)
    });
    Arc::clone(match kind {
        CorpusKind::Interleaved => &SCHEMAS[0],
        CorpusKind::ImageText => &SCHEMAS[1],
        CorpusKind::VideoText => &SCHEMAS[2],
    })
}

fn make_schema(kind: CorpusKind) -> SchemaRef {
    let fields: Fields = match kind {
        CorpusKind::Interleaved => interleaved_fields(),
        CorpusKind::ImageText => image_text_fields(),
        CorpusKind::VideoText => video_text_fields(),
    };
    let features = json!({ "info": { "features": struct_feature(&fields) } });
    let metadata = HashMap::from([(HUGGINGFACE_KEY.to_owned(), features.to_string())]);
    Arc::new(Schema::new_with_metadata(fields, metadata))
}

fn interleaved_fields() -> Fields {
    Fields::from(vec![
        field("doc_id", DataType::Utf8),
        field("url", DataType::Utf8),
        field("texts", list_type(DataType::Utf8)),
        field("images", list_type(image_type())),
        field("media_prev", list_type(DataType::Int16)),
        field("media_next", list_type(DataType::Int16)),
        field("image_meta", list_type(DataType::Struct(image_meta_fields()))),
        field("text", DataType::Utf8),
        field("image_char_offset", list_type(DataType::Int32)),
        field("title", DataType::Utf8),
        field("lang", DataType::Utf8),
        field("lang_score", DataType::Float32),
        field("warc_filename", DataType::Utf8),
        field("warc_record_offset", DataType::Int64),
        field("warc_record_length", DataType::Int64),
        field("fetched_at", timestamp_type()),
    ])
}

fn image_text_fields() -> Fields {
    Fields::from(vec![
        field("key", DataType::Utf8),
        field("url", DataType::Utf8),
        field("caption", DataType::Utf8),
        field("image", image_type()),
        field("width", DataType::Int32),
        field("height", DataType::Int32),
        field("original_width", DataType::Int32),
        field("original_height", DataType::Int32),
        field("sha256", DataType::Utf8),
        field("phash", DataType::UInt64),
        field("source", DataType::Utf8),
        field("scores", list_type(DataType::Struct(score_fields()))),
        field("warc_filename", DataType::Utf8),
        field("warc_record_offset", DataType::Int64),
        field("warc_record_length", DataType::Int64),
    ])
}

fn video_text_fields() -> Fields {
    Fields::from(vec![
        field("key", DataType::Utf8),
        field("url", DataType::Utf8),
        field("caption", DataType::Utf8),
        field("frames", list_type(image_type())),
        field("frame_ms", list_type(DataType::Int32)),
        field("start_ms", DataType::Int32),
        field("end_ms", DataType::Int32),
        field("duration_ms", DataType::Int32),
        field("width", DataType::Int32),
        field("height", DataType::Int32),
        field("codec", DataType::Utf8),
        field("sha256", DataType::Utf8),
    ])
}

/// `struct<bytes: binary, path: string>`, in this order: `datasets` insists on it.
pub(crate) fn image_fields() -> Fields {
    Fields::from(vec![field("bytes", DataType::Binary), field("path", DataType::Utf8)])
}

pub(crate) fn image_meta_fields() -> Fields {
    Fields::from(vec![
        field("url", DataType::Utf8),
        field("alt", DataType::Utf8),
        field("width", DataType::Int32),
        field("height", DataType::Int32),
        field("sha256", DataType::Utf8),
        field("phash", DataType::UInt64),
        field("mime", DataType::Utf8),
    ])
}

/// Scores are a list of named numbers, since polars and `DuckDB` differ on Arrow's map type.
pub(crate) fn score_fields() -> Fields {
    Fields::from(vec![field("name", DataType::Utf8), field("score", DataType::Float32)])
}

pub(crate) fn list_element(values: DataType) -> Arc<Field> {
    Arc::new(field(LIST_ELEMENT, values))
}

/// Parquet path of the bytes of the images in a corpus of `kind`.
pub(crate) fn image_leaf(kind: CorpusKind) -> Vec<String> {
    let path = match kind {
        CorpusKind::Interleaved => vec!["images", "list", LIST_ELEMENT, "bytes"],
        CorpusKind::ImageText => vec!["image", "bytes"],
        CorpusKind::VideoText => vec!["frames", "list", LIST_ELEMENT, "bytes"],
    };
    path.into_iter().map(str::to_owned).collect()
}

fn field(name: &str, values: DataType) -> Field {
    Field::new(name, values, true)
}

fn list_type(values: DataType) -> DataType {
    DataType::List(list_element(values))
}

pub(crate) fn image_type() -> DataType {
    DataType::Struct(image_fields())
}

fn timestamp_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// The feature of one field in the vocabulary of Hugging Face `datasets`.
fn feature(values: &DataType) -> Value {
    match values {
        DataType::List(element) => {
            json!({ "feature": feature(element.data_type()), "_type": "List" })
        }
        DataType::Struct(fields) if *fields == image_fields() => json!({ "_type": "Image" }),
        DataType::Struct(fields) => struct_feature(fields),
        scalar => json!({ "dtype": dtype(scalar), "_type": "Value" }),
    }
}

fn struct_feature(fields: &Fields) -> Value {
    let features = fields.iter().map(|f| (f.name().clone(), feature(f.data_type())));
    Value::Object(features.collect::<Map<_, _>>())
}

fn dtype(scalar: &DataType) -> &'static str {
    match scalar {
        DataType::Utf8 => "string",
        DataType::Binary => "binary",
        DataType::Int16 => "int16",
        DataType::Int32 => "int32",
        DataType::Int64 => "int64",
        DataType::UInt64 => "uint64",
        DataType::Float32 => "float32",
        DataType::Timestamp(..) => "timestamp[us, tz=UTC]",
        other => unreachable!("no column of the schema has type {other}"),
    }
}
