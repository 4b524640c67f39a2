//! Whether a corpus keeps its promises: checksums, counts, the columns of the media mask, and
//! images that decode.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int16Type, Int32Type};
use flamingo_dataset::media_mask::phi_of_marks;
use flamingo_dataset::{Attend, Corpus, CorpusError, CorpusKind, CorpusStore, IMAGE_MARK, Row};
use image::{ImageReader, Limits};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::error::IngestError;

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
    for (i, image) in row.images().into_iter().enumerate() {
        check_image(&image.bytes).map_err(|problem| format!("image {i}: {problem}"))?;
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

fn check_image(bytes: &[u8]) -> Result<(), String> {
    let reader = ImageReader::new(std::io::Cursor::new(bytes)).with_guessed_format();
    let mut reader = reader.map_err(|error| error.to_string())?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(DECODER_BYTES_MAX);
    reader.limits(limits);
    reader.decode().map(drop).map_err(|error| error.to_string())
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
    let text: Vec<char> = batch["text"].as_string::<i32>().value(i).chars().collect();
    let offsets = list("image_char_offset");
    let offsets = offsets.as_primitive::<Int32Type>().values();
    let is_mark = |&offset: &i32| {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        text.get(from..)
            .is_some_and(|rest| rest.iter().copied().take(IMAGE_MARK.len()).eq(IMAGE_MARK.chars()))
    };
    if offsets.len() != marks.iter().filter(|mark| **mark).count() || !offsets.iter().all(is_mark) {
        return Err("`image_char_offset` does not point at its image marks".to_owned());
    }
    Ok(())
}
