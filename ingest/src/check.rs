//! Whether a corpus keeps its promises: checksums, counts, its plan, the columns that follow from
//! its slots, and images that decode and are what is said of them.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int16Type, Int32Type};
use flamingo_dataset::media_mask::phi_of_marks;
use flamingo_dataset::{
    Attend, Corpus, CorpusError, CorpusKind, CorpusStore, IMAGE_MARK, Row, Slot, sha256_hex,
};
use image::{ImageReader, Limits};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::error::IngestError;
use crate::output::PLAN_FILE;

/// Most bytes that the decoder of one image may take.
const DECODER_BYTES_MAX: u64 = 1 << 30;
/// Rows whose masks are in memory at a time.
const BATCH_ROWS: usize = 64;

/// What was found to be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// Kind of the corpus.
    pub kind: CorpusKind,
    /// Rows read.
    pub rows: u64,
    /// Images decoded.
    pub images: u64,
    /// Words counted.
    pub words: u64,
    /// Shards whose checksum was compared.
    pub shards: usize,
}

/// Reads everything in a corpus.
///
/// # Errors
/// With the first promise that is broken.
pub fn check(location: &str) -> Result<Checked, IngestError> {
    let corpus = Corpus::open(location)?;
    corpus.verify()?;
    let failed = |message| IngestError::CheckFailed { corpus: location.to_owned(), message };
    let plan = sha256_hex(&CorpusStore::open(location)?.get(PLAN_FILE)?);
    if plan != corpus.manifest().plan_sha256 {
        return Err(failed(format!("{PLAN_FILE} is not the plan that the manifest names")));
    }
    let (mut rows, mut images, mut words) = (0, 0, 0);
    for row in corpus.scan() {
        let row = row?;
        check_row(&row).map_err(|problem| failed(format!("row {rows}: {problem}")))?;
        rows += 1;
        images += row.n_images() as u64;
        words += row.words() as u64;
    }
    let manifest = corpus.manifest();
    for (what, found, expected) in [
        ("rows", rows, manifest.rows),
        ("images", images, manifest.images),
        ("words", words, manifest.words),
    ] {
        if found != expected {
            return Err(failed(format!("it has {found} {what}, the manifest says {expected}")));
        }
    }
    if corpus.kind() == CorpusKind::Interleaved {
        check_masks(&corpus)?;
    }
    Ok(Checked { kind: corpus.kind(), rows, images, words, shards: manifest.shards.len() })
}

fn check_row(row: &Row) -> Result<(), String> {
    for (i, (bytes, told)) in images(row).into_iter().enumerate() {
        check_image(bytes, told).map_err(|problem| format!("image {i}: {problem}"))?;
    }
    match row {
        Row::VideoText(clip) if clip.frames.len() != clip.frame_ms.len() => {
            Err(format!("{} frames and {} times", clip.frames.len(), clip.frame_ms.len()))
        }
        Row::VideoText(clip) if !clip.frame_ms.is_sorted() => {
            Err("the times of the frames are not in order".to_owned())
        }
        _ if row.key().is_empty() => Err("it has no key".to_owned()),
        _ => Ok(()),
    }
}

/// What a row says of an image.
#[derive(Debug, Clone, Copy)]
struct Told<'a> {
    size: (i32, i32),
    /// None for a frame: its row has the hash of the clip.
    sha256: Option<&'a str>,
}

/// The images of a row with what the row says of each.
fn images(row: &Row) -> Vec<(&[u8], Told<'_>)> {
    match row {
        Row::Interleaved(document) => {
            let images = document.slots.iter().filter_map(|slot| match slot {
                Slot::Image { image, meta } => {
                    let (size, sha256) = ((meta.width, meta.height), Some(meta.sha256.as_str()));
                    Some((&image.bytes[..], Told { size, sha256 }))
                }
                Slot::Text(_) => None,
            });
            images.collect()
        }
        Row::ImageText(pair) => {
            let (size, sha256) = ((pair.width, pair.height), Some(pair.sha256.as_str()));
            vec![(&pair.image.bytes, Told { size, sha256 })]
        }
        Row::VideoText(clip) => {
            let told = Told { size: (clip.width, clip.height), sha256: None };
            clip.frames.iter().map(|frame| (&frame.bytes[..], told)).collect()
        }
    }
}

fn check_image(bytes: &[u8], told: Told<'_>) -> Result<(), String> {
    let reader = ImageReader::new(std::io::Cursor::new(bytes)).with_guessed_format();
    let mut reader = reader.map_err(|error| error.to_string())?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(DECODER_BYTES_MAX);
    reader.limits(limits);
    let image = reader.decode().map_err(|error| error.to_string())?;
    let size = (image.width() as i32, image.height() as i32);
    if size != told.size {
        return Err(format!("its size is {size:?}, its row says {:?}", told.size));
    }
    match told.sha256 {
        Some(told) if told != sha256_hex(bytes) => Err(format!("its sha256 is not {told}")),
        _ => Ok(()),
    }
}

/// Compares the columns of the media mask with the slots they are made from.
fn check_masks(corpus: &Corpus) -> Result<(), IngestError> {
    const COLUMNS: [&str; 6] =
        ["texts", "images", "media_prev", "media_next", "text", "image_char_offset"];
    let store = CorpusStore::open(corpus.location())?;
    for shard in &corpus.manifest().shards {
        let object = || shard.file.clone();
        let parquet = |source| CorpusError::Parquet { object: object(), source };
        let builder =
            ParquetRecordBatchReaderBuilder::try_new(store.get(&shard.file)?).map_err(parquet)?;
        let mask = ProjectionMask::columns(builder.parquet_schema(), COLUMNS);
        let reader = builder.with_projection(mask).with_batch_size(BATCH_ROWS).build();
        let mut first_row = 0;
        for batch in reader.map_err(parquet)? {
            let batch = batch.map_err(|source| CorpusError::Arrow { object: object(), source })?;
            for i in 0..batch.num_rows() {
                check_mask(&batch, i).map_err(|problem| IngestError::CheckFailed {
                    corpus: corpus.location().to_owned(),
                    message: format!("{} row {}: {problem}", shard.file, first_row + i),
                })?;
            }
            first_row += batch.num_rows();
        }
    }
    Ok(())
}

fn check_mask(batch: &RecordBatch, i: usize) -> Result<(), String> {
    let list = |name: &str| batch[name].as_list::<i32>().value(i);
    let (texts, images) = (list("texts"), list("images"));
    let marks: Vec<bool> = (0..images.len()).map(|slot| images.is_valid(slot)).collect();
    let is_parallel =
        texts.len() == images.len() && (0..texts.len()).all(|s| texts.is_valid(s) != marks[s]);
    if !is_parallel {
        return Err("its texts and images are not parallel".to_owned());
    }
    for (name, attend) in [("media_prev", Attend::Previous), ("media_next", Attend::Next)] {
        let stored = list(name);
        let stored = stored.as_primitive::<Int16Type>().values().iter().map(|&n| i32::from(n));
        if !stored.eq(phi_of_marks(&marks, attend)) {
            return Err(format!("`{name}` does not follow from its slots"));
        }
    }
    check_text(batch, i, &marks)
}

/// Compares the joined text and the places of its marks with the slots.
fn check_text(batch: &RecordBatch, i: usize, marks: &[bool]) -> Result<(), String> {
    let list = |name: &str| batch[name].as_list::<i32>().value(i);
    let texts = list("texts");
    let texts = texts.as_string::<i32>();
    let (mut joined, mut offsets, mut n_chars) = (String::new(), Vec::new(), 0);
    for (slot, &is_image) in marks.iter().enumerate() {
        let is_after_text = slot > 0 && !marks[slot - 1];
        let glue = if is_after_text && !is_image { "\n" } else { "" };
        let piece = if is_image { IMAGE_MARK } else { texts.value(slot) };
        if is_image {
            offsets.push(n_chars);
        }
        joined.extend([glue, piece]);
        n_chars += (glue.len() + piece.chars().count()) as i32;
    }
    if batch["text"].as_string::<i32>().value(i) != joined {
        return Err("`text` is not its slots joined".to_owned());
    }
    if list("image_char_offset").as_primitive::<Int32Type>().values() != &offsets[..] {
        return Err("`image_char_offset` does not point at its image marks".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int32Builder, ListBuilder, StringArray, StringBuilder};

    use super::*;

    #[test]
    fn an_image_is_what_is_said_of_it() {
        let mut png = std::io::Cursor::new(Vec::new());
        image::RgbImage::new(3, 2).write_to(&mut png, image::ImageFormat::Png).unwrap();
        let png = png.into_inner();
        let sha256 = sha256_hex(&png);
        let check = |size, sha256| check_image(&png, Told { size, sha256: Some(sha256) });
        check((3, 2), &sha256).unwrap();
        assert!(check((2, 3), &sha256).unwrap_err().contains("its size is (3, 2)"));
        assert!(check((3, 2), "other").unwrap_err().contains("its sha256 is not other"));
    }

    #[test]
    fn the_text_is_its_slots_joined() {
        let check = |text: &str, offset: i32| {
            let mut texts = ListBuilder::new(StringBuilder::new());
            texts.append_value([Some("é"), Some("b"), None, Some("c")]);
            let mut offsets = ListBuilder::new(Int32Builder::new());
            offsets.append_value([Some(offset)]);
            let columns: [(&str, ArrayRef); 3] = [
                ("texts", Arc::new(texts.finish())),
                ("image_char_offset", Arc::new(offsets.finish())),
                ("text", Arc::new(StringArray::from(vec![text]))),
            ];
            let batch = RecordBatch::try_from_iter(columns).unwrap();
            check_text(&batch, 0, &[false, false, true, false])
        };
        check("é\nb<image>c", 3).unwrap();
        assert!(check("é\nb<image>d", 3).is_err());
        assert!(check("é\nb<image>c", 2).is_err());
    }
}
