//! A few of the images that were dropped, small enough to be shown: a rule that drops the wrong
//! pictures is found by looking at them.
//!
//! `samples/part-NNNNN.parquet` lies beside the shards and is no part of them. Which rejects are kept
//! follows from a hash of their place, so that it does not depend on the number of workers, on kills,
//! or on what other rules drop.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, Float64Array, Int64Array, RecordBatch, StringArray, StructArray,
};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use bytes::Bytes;
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageReader, Limits};
use sha2::{Digest, Sha256};

use crate::reject::{self, Reject};

/// Most images of one rule in one part.
const PER_RULE_MAX: usize = 12;
/// Most rules of one part that have images: the first ones in the order of the input.
const RULES_MAX: usize = 32;
/// Longest side of a stored picture.
const SIDE_MAX: u32 = 96;
/// JPEG quality of a stored picture.
const QUALITY: u8 = 80;
/// Larger images are not decoded to be shown.
const PIXELS_MAX: u64 = 16_000_000;
/// Most bytes that a decoder may take.
const DECODER_BYTES_MAX: u64 = 256 << 20;

/// The samples of one part while it is filled.
#[derive(Debug, Default)]
pub struct Samples {
    rules: BTreeMap<String, BTreeSet<Sample>>,
}

/// One rejected image; ordered by its hash.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Sample {
    hash: [u8; 16],
    jpeg: Bytes,
    place: Place,
}

/// What the reject says, in an order that is total.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    url: Option<String>,
    source: String,
    offset: Option<i64>,
    stage: &'static str,
    reason: String,
    measured: Option<u64>,
    limit: Option<u64>,
    detail: Option<String>,
}

impl Samples {
    /// Takes the pictures off the rejects and keeps those that are chosen.
    pub fn take(&mut self, rejects: &mut [Reject]) {
        for reject in rejects {
            if let Some(picture) = reject.drop.picture.take() {
                self.offer(reject, &picture);
            }
        }
    }

    fn offer(&mut self, reject: &Reject, picture: &Bytes) {
        let rule = reject.rule();
        if self.rules.len() >= RULES_MAX && !self.rules.contains_key(&rule) {
            return;
        }
        let hash = hash(reject);
        let chosen = self.rules.entry(rule).or_default();
        let is_full = chosen.len() >= PER_RULE_MAX;
        if is_full && chosen.last().is_some_and(|last| last.hash <= hash) {
            return;
        }
        // A decoder that panics on a hostile file costs its picture.
        let jpeg = catch_unwind(AssertUnwindSafe(|| thumbnail(picture))).ok().flatten();
        let Some(jpeg) = jpeg else { return };
        chosen.insert(Sample { hash, jpeg, place: Place::of(reject) });
        if chosen.len() > PER_RULE_MAX {
            chosen.pop_last();
        }
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.rules.values().all(BTreeSet::is_empty)
    }

    /// The samples as a Parquet file; equal rejects give equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        reject::encode_batch(&self.to_batch())
    }

    fn to_batch(&self) -> RecordBatch {
        let samples: Vec<&Sample> = self.rules.values().flatten().collect();
        let text = |value: fn(&Place) -> Option<&str>| -> ArrayRef {
            Arc::new(samples.iter().map(|sample| value(&sample.place)).collect::<StringArray>())
        };
        let number = |value: fn(&Place) -> Option<u64>| -> ArrayRef {
            let numbers = samples.iter().map(|sample| value(&sample.place).map(f64::from_bits));
            Arc::new(numbers.collect::<Float64Array>())
        };
        let bytes = BinaryArray::from_iter_values(samples.iter().map(|sample| &sample.jpeg));
        let paths = StringArray::new_null(samples.len());
        let images: [ArrayRef; 2] = [Arc::new(bytes), Arc::new(paths)];
        let offsets = samples.iter().map(|sample| sample.place.offset).collect::<Int64Array>();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StructArray::new(image_fields(), images.into(), None)),
            text(|place| place.url.as_deref()),
            text(|place| Some(&place.source)),
            Arc::new(offsets),
            text(|place| Some(place.stage)),
            text(|place| Some(&place.reason)),
            number(|place| place.measured),
            number(|place| place.limit),
            text(|place| place.detail.as_deref()),
        ];
        RecordBatch::try_new(schema(), columns).expect("the columns are built from the same schema")
    }
}

impl Place {
    fn of(reject: &Reject) -> Self {
        Self {
            url: reject.url.clone(),
            source: reject.source.clone(),
            offset: reject.offset,
            stage: reject.stage.name(),
            reason: reject.drop.reason.to_string(),
            measured: reject.drop.measured.map(f64::to_bits),
            limit: reject.drop.limit.map(f64::to_bits),
            detail: reject.drop.detail.clone(),
        }
    }
}

/// Arrow schema of `samples/part-NNNNN.parquet`; Hugging Face `datasets` shows its pictures.
pub fn schema() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let number = |name: &str| Field::new(name, DataType::Float64, true);
    let fields = vec![
        Field::new("image", DataType::Struct(image_fields()), true),
        text("url"),
        text("source"),
        Field::new("record_offset", DataType::Int64, true),
        text("stage"),
        text("reason"),
        number("measured"),
        number("limit"),
        text("detail"),
    ];
    let value = |dtype: &str| serde_json::json!({ "dtype": dtype, "_type": "Value" });
    let features = fields.iter().map(|field| {
        let feature = match field.data_type() {
            DataType::Utf8 => value("string"),
            DataType::Int64 => value("int64"),
            DataType::Float64 => value("float64"),
            _ => serde_json::json!({ "_type": "Image" }),
        };
        (field.name().clone(), feature)
    });
    let features: serde_json::Map<_, _> = features.collect();
    let info = serde_json::json!({ "info": { "features": features } }).to_string();
    Arc::new(Schema::new(fields).with_metadata([("huggingface".to_owned(), info)].into()))
}

fn image_fields() -> Fields {
    let field = |name: &str, values| Field::new(name, values, true);
    Fields::from(vec![field("bytes", DataType::Binary), field("path", DataType::Utf8)])
}

/// Chooses by place and rule alone.
fn hash(reject: &Reject) -> [u8; 16] {
    let mut digest = Sha256::new();
    digest.update(reject.source.as_bytes());
    digest.update(reject.offset.unwrap_or(-1).to_le_bytes());
    digest.update(reject.url.as_deref().unwrap_or("").as_bytes());
    digest.update(reject.rule().as_bytes());
    let mut hash = [0; 16];
    hash.copy_from_slice(&digest.finalize()[..16]);
    hash
}

/// A small JPEG of an image, where it can be decoded and is not too large.
fn thumbnail(bytes: &[u8]) -> Option<Bytes> {
    let reader = || {
        let mut reader =
            ImageReader::new(std::io::Cursor::new(bytes)).with_guessed_format().ok()?;
        let mut limits = Limits::default();
        limits.max_alloc = Some(DECODER_BYTES_MAX);
        reader.limits(limits);
        Some(reader)
    };
    let (width, height) = reader()?.into_dimensions().ok()?;
    if u64::from(width) * u64::from(height) > PIXELS_MAX {
        return None;
    }
    let image = reader()?.decode().ok()?;
    let is_small = width.max(height) <= SIDE_MAX;
    let small = if is_small { image } else { image.thumbnail(SIDE_MAX, SIDE_MAX) };
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, QUALITY)
        .encode_image(&DynamicImage::from(small.into_rgb8()))
        .ok()?;
    Some(jpeg.into())
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;

    use super::*;
    use crate::reject::{DropReason, Origin, Stage};

    fn png(width: u32, height: u32) -> Bytes {
        let mut png = std::io::Cursor::new(Vec::new());
        image::RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 9]))
            .write_to(&mut png, image::ImageFormat::Png)
            .unwrap();
        png.into_inner().into()
    }

    fn reject(offset: i64, picture: &Bytes) -> Reject {
        let origin = Origin { source: "a.warc".into(), offset: Some(offset), url: None };
        DropReason::limit("aspect", 4.0, 3.0).with_picture(picture).at(Stage::Image, &origin, None)
    }

    #[test]
    fn the_same_rejects_are_chosen_in_any_order() {
        let picture = png(8, 32);
        let choose = |offsets: &mut dyn Iterator<Item = i64>| {
            let mut samples = Samples::default();
            for offset in offsets {
                let mut rejects = [reject(offset, &picture)];
                samples.take(&mut rejects);
                assert_eq!(rejects[0].drop.picture, None);
            }
            samples.encode()
        };
        assert_eq!(choose(&mut (0..100)), choose(&mut (0..100).rev()));
    }

    #[test]
    fn pictures_are_few_and_small() {
        let mut samples = Samples::default();
        assert!(samples.is_empty());
        let mut rejects: Vec<_> = (0..40).map(|offset| reject(offset, &png(300, 20))).collect();
        rejects.push(reject(99, &Bytes::from_static(b"no picture")));
        samples.take(&mut rejects);
        let batch = samples.to_batch();
        assert_eq!((batch.num_rows(), samples.is_empty()), (PER_RULE_MAX, false));
        let images = batch["image"].as_struct().column(0).as_binary::<i32>().clone();
        let image = image::load_from_memory(images.value(0)).unwrap();
        assert_eq!((image.width(), image.height()), (SIDE_MAX, 6));
        assert_eq!(batch["reason"].as_string::<i32>().value(0), "aspect");
    }

    #[test]
    fn large_files_do_not_travel() {
        assert!(reject(1, &png(8, 8)).drop.picture.is_some());
        assert!(reject(1, &Bytes::from(vec![0; 2 << 20])).drop.picture.is_none());
    }
}
