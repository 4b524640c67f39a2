//! Dropped records: what was dropped, where it came from, which rule, and the measured value.
//!
//! A drop is a value, never an error: it is counted in the funnel and kept in `rejects/`, so that
//! anyone can ask why a picture is not in the corpus without running the job again.

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde::{Deserialize, Serialize};

use crate::word::{self, Word};

/// A constant, so that a file does not depend on the version of a library.
const CREATED_BY: &str = "flamingo-ingest version 1";

/// Largest image that travels with its reject until it is known whether it will be shown. It bounds
/// what results that wait for their turn take.
const PICTURE_BYTES_MAX: usize = 1 << 20;

/// The step of the run at which something was dropped, in the order of the funnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Stage {
    /// Reading a record of an archive, or a row of a list.
    Read,
    /// Choosing between training and held-out rows.
    Split,
    /// What the site or the file says about its use in training.
    OptOut,
    /// Asking for an image or clip over the network.
    Fetch,
    /// A web page.
    Page,
    /// A paragraph of a page.
    Paragraph,
    /// The text of a page: its quality, language and words.
    Text,
    /// A caption.
    Caption,
    /// One image.
    Image,
    /// One clip.
    Video,
    /// The assembled document.
    Document,
}

impl Stage {
    /// Name in the rejects table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Split => "split",
            Self::OptOut => "opt_out",
            Self::Fetch => "fetch",
            Self::Page => "page",
            Self::Paragraph => "paragraph",
            Self::Text => "text",
            Self::Caption => "caption",
            Self::Image => "image",
            Self::Video => "video",
            Self::Document => "document",
        }
    }
}

/// Why something was dropped: a rule's name and, where there is one, the measured value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DropReason {
    /// Name of the rule in `snake_case`.
    #[serde(deserialize_with = "word::deserialize")]
    pub reason: Word,
    /// The value that the rule looked at.
    pub measured: Option<f64>,
    /// The limit that the value broke.
    pub limit: Option<f64>,
    /// Words for the reader: a header line, a decoder's message.
    pub detail: Option<String>,
    /// The image that was dropped, as found: a few are shown in the report, see [`crate::samples`].
    #[serde(with = "picture")]
    pub picture: Option<Bytes>,
}

/// Pictures as strings of bytes in the journal, not as lists of numbers.
mod picture {
    use std::fmt;

    use bytes::Bytes;
    use serde::de::{Deserializer, Error, Visitor};
    use serde::ser::Serializer;

    #[expect(clippy::ref_option, reason = "serde calls it with a reference to the field")]
    pub(super) fn serialize<S: Serializer>(
        bytes: &Option<Bytes>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => to.serialize_bytes(bytes),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Bytes>, D::Error> {
        from.deserialize_any(Picture)
    }

    struct Picture;

    impl Visitor<'_> for Picture {
        type Value = Option<Bytes>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("bytes or nothing")
        }

        fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
            Ok(Some(Bytes::copy_from_slice(bytes)))
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
    }
}

impl DropReason {
    /// A rule without a number.
    pub fn because(reason: &'static str) -> Self {
        Self { reason, measured: None, limit: None, detail: None, picture: None }
    }

    /// A rule whose `measured` value broke its `limit`.
    pub fn limit(reason: &'static str, measured: f64, limit: f64) -> Self {
        Self { measured: Some(measured), limit: Some(limit), ..Self::because(reason) }
    }

    /// A rule with an explanation.
    pub fn detail(reason: &'static str, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..Self::because(reason) }
    }

    /// The same with the image that it is about, unless that is too large to be carried along.
    #[must_use]
    pub fn with_picture(self, bytes: &Bytes) -> Self {
        let is_small = bytes.len() <= PICTURE_BYTES_MAX;
        Self { picture: is_small.then(|| bytes.clone()), ..self }
    }

    /// The full reject, once it is known where the thing came from.
    pub fn at(self, stage: Stage, origin: &Origin, url: Option<&str>) -> Reject {
        Reject {
            source: origin.source.clone(),
            offset: origin.offset,
            url: url.or(origin.url.as_deref()).map(str::to_owned),
            stage,
            drop: self,
        }
    }
}

/// Where a record came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// File name of the archive, list or clip.
    pub source: String,
    /// Byte offset in an archive, row number (from 0) in a list, none for a clip of a folder.
    pub offset: Option<i64>,
    /// Address of the page, image or clip.
    pub url: Option<String>,
}

/// One dropped record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reject {
    /// File name of the archive, list or clip.
    pub source: String,
    /// Byte offset in an archive, row number (from 0) in a list.
    pub offset: Option<i64>,
    /// Address of what was dropped.
    pub url: Option<String>,
    /// Where in the run.
    pub stage: Stage,
    /// Which rule, with its numbers.
    pub drop: DropReason,
}

impl Reject {
    /// Stage and reason in one word, under which it is counted.
    pub fn rule(&self) -> String {
        format!("{}/{}", self.stage.name(), self.drop.reason)
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source)?;
        if let Some(offset) = self.offset {
            write!(f, " at {offset}")?;
        }
        if let Some(url) = &self.url {
            write!(f, " ({url})")?;
        }
        write!(f, ": {}", self.drop.reason)?;
        match (&self.drop.detail, self.drop.measured) {
            (Some(detail), _) => write!(f, ", {detail}"),
            (None, Some(measured)) => write!(f, ", {measured}"),
            (None, None) => Ok(()),
        }
    }
}

/// Arrow schema of `rejects/part-NNNNN.parquet`; every column is nullable, as in the corpus.
pub fn schema() -> SchemaRef {
    let column = |name: &str, data_type| Field::new(name, data_type, true);
    Arc::new(Schema::new(vec![
        column("source", DataType::Utf8),
        column("record_offset", DataType::Int64),
        column("url", DataType::Utf8),
        column("stage", DataType::Utf8),
        column("reason", DataType::Utf8),
        column("measured", DataType::Float64),
        column("limit", DataType::Float64),
        column("detail", DataType::Utf8),
    ]))
}

/// The rejects as a Parquet file; equal rejects give equal bytes.
pub fn encode(rejects: &[Reject]) -> Vec<u8> {
    encode_batch(&to_batch(rejects))
}

/// A batch as a Parquet file; equal batches give equal bytes.
///
/// # Panics
/// Never: the schemas of the tables beside the shards have a Parquet form and memory takes every write.
pub(crate) fn encode_batch(batch: &RecordBatch) -> Vec<u8> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_created_by(CREATED_BY.to_owned())
        .build();
    let mut file = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut file, batch.schema(), Some(properties))
        .expect("the schema has a Parquet form");
    writer.write(batch).expect("the batch is of the writer's schema");
    writer.close().expect("memory takes every write");
    file
}

/// The rejects as one record batch of [`schema`].
///
/// # Panics
/// Never: the columns are built from the same schema.
pub fn to_batch(rejects: &[Reject]) -> RecordBatch {
    let text = |value: fn(&Reject) -> Option<&str>| -> ArrayRef {
        Arc::new(rejects.iter().map(value).collect::<StringArray>())
    };
    let number = |value: fn(&Reject) -> Option<f64>| -> ArrayRef {
        Arc::new(rejects.iter().map(value).collect::<Float64Array>())
    };
    let columns = vec![
        text(|r| Some(&r.source)),
        Arc::new(rejects.iter().map(|r| r.offset).collect::<Int64Array>()),
        text(|r| r.url.as_deref()),
        text(|r| Some(r.stage.name())),
        text(|r| Some(r.drop.reason)),
        number(|r| r.drop.measured),
        number(|r| r.drop.limit),
        text(|r| r.drop.detail.as_deref()),
    ];
    RecordBatch::try_new(schema(), columns).expect("the columns are built from the same schema")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_survives_the_journal() {
        for picture in [None, Some(Bytes::from_static(b"\x00\xffpng"))] {
            let drop = DropReason { picture, ..DropReason::limit("aspect", 4.0, 3.0) };
            let bytes = rmp_serde::to_vec_named(&drop).unwrap();
            assert_eq!(rmp_serde::from_slice::<DropReason>(&bytes).unwrap(), drop);
        }
    }

    #[test]
    fn a_reject_keeps_place_rule_and_numbers() {
        let origin = Origin { source: "a.warc".into(), offset: Some(7), url: Some("page".into()) };
        let own = DropReason::limit("aspect", 4.0, 3.0).at(Stage::Image, &origin, Some("image"));
        let inherited = DropReason::because("no_images").at(Stage::Document, &origin, None);
        assert_eq!((own.url.as_deref(), inherited.url.as_deref()), (Some("image"), Some("page")));
        let batch = to_batch(&[own, inherited]);
        assert_eq!((batch.num_rows(), batch.num_columns()), (2, 8));
        let measured = batch.column(5).as_any().downcast_ref::<Float64Array>().unwrap();
        assert!((measured.value(0) - 4.0).abs() < f64::EPSILON);
    }
}
