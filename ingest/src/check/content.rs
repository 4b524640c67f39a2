//! The rows: columns that follow from the slots, and images that are what is said of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use arrow::array::{Array, AsArray, RecordBatch, StructArray};
use arrow::datatypes::{Int16Type, Int32Type};
use flamingo_dataset::media_mask::phi_of_marks;
use flamingo_dataset::{
    Attend, CorpusKind, CorpusStore, IMAGE_MARK, Manifest, Row, Slot, StoredObject, read_row,
    sha256_hex,
};
use image::{ImageReader, Limits};
use parquet::arrow::arrow_reader::{
    ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder, RowSelection, RowSelector,
};
use parquet::errors::ParquetError;
use parquet::file::reader::ChunkReader;

use super::layout::error_text;
use super::shard::Footer;
use super::{Checked, Problem, Sample};
use crate::error::IngestError;
use crate::meter::Meter;
use crate::ordered::ordered_map;
use crate::progress::{Phase, Progress};
use crate::table::guarded;

/// Most bytes that the decoder of one image may take.
const DECODER_BYTES_MAX: u64 = 1 << 30;
/// Rows that are handed to a thread at a time.
const BATCH_ROWS: usize = 16;

/// One piece of work.
enum Item {
    /// Rows of a shard, and the numbers that they have in the corpus.
    Rows { shard: usize, rows: Vec<u64>, batch: RecordBatch },
    /// What was found without looking at rows.
    Problem(Problem),
    /// A shard whose checksum was compared.
    Hashed,
}

/// What one piece of work found.
#[derive(Default)]
struct Found {
    shard: usize,
    rows: u64,
    images: u64,
    words: u64,
    bytes: u64,
    problems: Vec<Problem>,
    hashed: usize,
}

pub(super) fn check(
    store: &CorpusStore,
    manifest: &Manifest,
    footers: &[Footer<'_>],
    (sample, workers): (Sample, usize),
    checked: &mut Checked,
) -> Result<(), IngestError> {
    let kind = manifest.kind;
    let n_rows = sample.of(manifest.rows);
    let chosen = Chosen { n: n_rows, of: manifest.rows };
    let hashed = Chosen { n: sample.of(footers.len() as u64), of: footers.len() as u64 };
    // At least one checksum, however small the sample is.
    let hashed = match sample {
        Sample::Rows(_) => Chosen { n: n_shards_of_rows(&chosen, footers), ..hashed },
        _ => hashed,
    };
    let meter = Arc::new(Meter::default());
    meter.items_expected.store(n_rows, Relaxed);
    let progress = Progress::start(Phase::Work, "rows", &meter);
    let items = footers.iter().enumerate().flat_map(|(i, footer)| {
        let shard = Shard { store, footer, i, chosen: &chosen, is_hashed: hashed.has(i as u64) };
        shard.items()
    });
    let work = |item| Ok(look_at(kind, store.location(), item));
    let mut sums: BTreeMap<usize, [u64; 3]> = BTreeMap::new();
    ordered_map(items, workers, work, |found: Found| {
        meter.items.fetch_add(found.rows, Relaxed);
        meter.rows.fetch_add(found.rows, Relaxed);
        meter.images.fetch_add(found.images, Relaxed);
        meter.bytes_fetched.fetch_add(found.bytes, Relaxed);
        if found.rows > 0 {
            let sum = sums.entry(found.shard).or_default();
            *sum = [sum[0] + found.rows, sum[1] + found.images, sum[2] + found.words];
        }
        checked.rows_read += found.rows;
        checked.images += found.images;
        checked.words += found.words;
        checked.shards_hashed += found.hashed;
        checked.add_all(found.problems);
        Ok(())
    })?;
    drop(progress);
    for (i, [rows, images, words]) in sums {
        let entry = footers[i].entry;
        // A sample says nothing of sums, nor does a shard with rows that cannot be read.
        if rows != entry.rows {
            continue;
        }
        for (what, found, told) in [("images", images, entry.images), ("words", words, entry.words)]
        {
            if found != told {
                let problem = format!("it has {found} {what}, the manifest says {told}");
                checked.add(&entry.file, problem);
            }
        }
    }
    Ok(())
}

/// `n` of `of` things, evenly spread: the middle of each of `n` equal parts.
struct Chosen {
    n: u64,
    of: u64,
}

impl Chosen {
    fn nth(&self, i: u64) -> u64 {
        ((u128::from(2 * i + 1) * u128::from(self.of)) / (2 * u128::from(self.n))) as u64
    }

    fn has(&self, thing: u64) -> bool {
        self.within(thing, thing + 1).next().is_some()
    }

    /// The chosen ones from `start` up to `end`, in order.
    fn within(&self, start: u64, end: u64) -> impl Iterator<Item = u64> + '_ {
        // The first whose place may be at `start`: places grow evenly.
        let guess = u128::from(start) * u128::from(self.n) / u128::from(self.of.max(1));
        let first = (guess as u64).saturating_sub(1);
        let places = (first..self.n).map(|i| self.nth(i));
        places.skip_while(move |place| *place < start).take_while(move |place| *place < end)
    }
}

/// As many shards as a sample of rows touches.
fn n_shards_of_rows(chosen: &Chosen, footers: &[Footer<'_>]) -> u64 {
    let share = chosen.n as f64 / chosen.of.max(1) as f64;
    ((footers.len() as f64 * share).ceil() as u64).clamp(1, footers.len().max(1) as u64)
}

struct Shard<'a> {
    store: &'a CorpusStore,
    footer: &'a Footer<'a>,
    i: usize,
    chosen: &'a Chosen,
    is_hashed: bool,
}

type Items<'a> = Box<dyn Iterator<Item = Result<Item, IngestError>> + Send + 'a>;

impl<'a> Shard<'a> {
    /// The work on one shard. Where its checksum is compared, the file is read once, whole; the rows
    /// of a file that is another than the manifest's are not looked at.
    fn items(self) -> Items<'a> {
        if !self.is_hashed {
            return match StoredObject::open(self.store, &self.footer.entry.file) {
                Ok(_) => {
                    let (store, file) = (self.store, &self.footer.entry.file);
                    self.rows(move || StoredObject::open(store, file).map_err(IngestError::from))
                }
                Err(error) => Box::new(std::iter::once(Err(error.into()))),
            };
        }
        let entry = self.footer.entry;
        let bytes = match self.store.get(&entry.file) {
            Ok(bytes) => bytes,
            Err(error) => return Box::new(std::iter::once(Err(error.into()))),
        };
        let sha256 = sha256_hex(&bytes);
        if sha256 != entry.sha256 {
            let problem = format!(
                "its sha256 is {sha256}, the manifest says {}; its rows were not read",
                entry.sha256
            );
            let problem = Problem { place: entry.file.clone(), problem };
            return Box::new([Ok(Item::Hashed), Ok(Item::Problem(problem))].into_iter());
        }
        let rows = self.rows(move || Ok(bytes.clone()));
        Box::new(std::iter::once(Ok(Item::Hashed)).chain(rows))
    }

    /// The chosen rows, one row group open at a time: a batch never spans two, so that its columns
    /// stay within what Arrow can count.
    fn rows<R: ChunkReader + 'static>(
        self,
        open: impl Fn() -> Result<R, IngestError> + Send + 'a,
    ) -> Items<'a> {
        let Self { footer, i: shard, chosen, .. } = self;
        let mut start = footer.first_row;
        let groups = footer.metadata.metadata().row_groups().iter().enumerate();
        let groups: Vec<_> = groups
            .map(|(group, meta)| {
                let first = start;
                start += meta.num_rows() as u64;
                (group, first, start)
            })
            .collect();
        Box::new(groups.into_iter().flat_map(move |(group, first, end)| -> Items<'a> {
            let rows: Vec<u64> = chosen.within(first, end).collect();
            if rows.is_empty() {
                return Box::new(std::iter::empty());
            }
            let selection = (rows.len() as u64 != end - first).then(|| select(first, &rows));
            let reader = match open() {
                Ok(object) => open_group(footer, object, group, selection),
                Err(error) => return Box::new(std::iter::once(Err(error))),
            };
            Box::new(batches(footer, shard, rows, reader))
        }))
    }
}

fn select(first: u64, rows: &[u64]) -> RowSelection {
    let mut next = first;
    let mut selectors = Vec::with_capacity(2 * rows.len());
    for &row in rows {
        selectors.push(RowSelector::skip((row - next) as usize));
        selectors.push(RowSelector::select(1));
        next = row + 1;
    }
    selectors.into()
}

fn open_group<R: ChunkReader + 'static>(
    footer: &Footer<'_>,
    object: R,
    group: usize,
    selection: Option<RowSelection>,
) -> Result<ParquetRecordBatchReader, ParquetError> {
    let mut builder =
        ParquetRecordBatchReaderBuilder::new_with_metadata(object, footer.metadata.clone())
            .with_row_groups(vec![group])
            .with_batch_size(BATCH_ROWS);
    if let Some(selection) = selection {
        builder = builder.with_row_selection(selection);
    }
    guarded(|| builder.build())
}

fn batches<'a>(
    footer: &'a Footer<'_>,
    shard: usize,
    rows: Vec<u64>,
    reader: Result<ParquetRecordBatchReader, ParquetError>,
) -> impl Iterator<Item = Result<Item, IngestError>> + Send + 'a {
    let mut reader = Some(reader);
    let mut rows = rows.into_iter();
    std::iter::from_fn(move || {
        let next = match reader.as_mut()? {
            Ok(open) => guarded(|| open.next().transpose().map_err(ParquetError::from)),
            Err(error) => Err(ParquetError::General(error.to_string())),
        };
        match next {
            Ok(batch) => {
                let batch = batch?;
                let rows = rows.by_ref().take(batch.num_rows()).collect();
                Some(Ok(Item::Rows { shard, rows, batch }))
            }
            Err(error) => {
                reader = None;
                let row = rows.next().map(|row| format!(" row {row}")).unwrap_or_default();
                let place = format!("{}{row}", footer.entry.file);
                let problem = format!("it cannot be decoded: {}", error_text(&error));
                Some(Ok(Item::Problem(Problem { place, problem })))
            }
        }
    })
}

fn look_at(kind: CorpusKind, location: &str, item: Item) -> Found {
    match item {
        Item::Hashed => Found { hashed: 1, ..Found::default() },
        Item::Problem(problem) => Found { problems: vec![problem], ..Found::default() },
        Item::Rows { shard, rows, batch } => {
            let mut found = Found { shard, ..Found::default() };
            let columns = StructArray::from(batch.clone());
            for (i, &row) in rows.iter().enumerate() {
                found.rows += 1;
                match read_row(kind, &columns, i, location, row) {
                    Ok(value) => look_at_row(&value, &batch, i, row, &mut found),
                    Err(error) => found.add(row, error.to_string()),
                }
            }
            found
        }
    }
}

impl Found {
    fn add(&mut self, row: u64, problem: String) {
        self.problems.push(Problem { place: format!("row {row}"), problem });
    }
}

fn look_at_row(value: &Row, batch: &RecordBatch, i: usize, row: u64, found: &mut Found) {
    found.images += value.n_images() as u64;
    found.words += value.words() as u64;
    found.bytes += value.stored_bytes() as u64;
    if let Err(problem) = check_row(value) {
        found.add(row, problem);
    }
    for (image, (bytes, told)) in images(value).into_iter().enumerate() {
        if let Err(problem) = check_image(bytes, told) {
            found.add(row, format!("image {image}: {problem}"));
        }
    }
    if let Row::Interleaved(_) = value
        && let Err(problem) = check_mask(batch, i)
    {
        found.add(row, problem);
    }
}

fn check_row(row: &Row) -> Result<(), String> {
    match row {
        _ if row.key().is_empty() => Err("it has no key".to_owned()),
        Row::VideoText(clip) if !clip.frame_ms.is_sorted() => {
            Err("the times of the frames are not in order".to_owned())
        }
        Row::VideoText(clip) if clip.start_ms > clip.end_ms || clip.start_ms < 0 => {
            Err(format!("it goes from {} ms to {} ms", clip.start_ms, clip.end_ms))
        }
        Row::VideoText(clip) if clip.frames.is_empty() => Err("it has no frame".to_owned()),
        Row::Interleaved(page) if page.slots.is_empty() => Err("it has no slot".to_owned()),
        _ => Ok(()),
    }
}

/// What a row says of an image.
#[derive(Debug, Clone, Copy)]
struct Told<'a> {
    size: (i32, i32),
    /// None for a frame: its row has the hash of the clip.
    sha256: Option<&'a str>,
    mime: Option<&'a str>,
}

/// The images of a row with what the row says of each.
fn images(row: &Row) -> Vec<(&[u8], Told<'_>)> {
    match row {
        Row::Interleaved(document) => {
            let images = document.slots.iter().filter_map(|slot| match slot {
                Slot::Image { image, meta } => {
                    let (size, sha256) = ((meta.width, meta.height), Some(meta.sha256.as_str()));
                    Some((&image.bytes[..], Told { size, sha256, mime: Some(&meta.mime) }))
                }
                Slot::Text(_) => None,
            });
            images.collect()
        }
        Row::ImageText(pair) => {
            let (size, sha256) = ((pair.width, pair.height), Some(pair.sha256.as_str()));
            vec![(&pair.image.bytes, Told { size, sha256, mime: None })]
        }
        Row::VideoText(clip) => {
            let told = Told { size: (clip.width, clip.height), sha256: None, mime: None };
            clip.frames.iter().map(|frame| (&frame.bytes[..], told)).collect()
        }
    }
}

fn check_image(bytes: &[u8], told: Told<'_>) -> Result<(), String> {
    if let Some(told) = told.sha256
        && told != sha256_hex(bytes)
    {
        return Err(format!("its sha256 is not {told}"));
    }
    let decode = || {
        let mut reader = ImageReader::new(std::io::Cursor::new(bytes)).with_guessed_format()?;
        let mut limits = Limits::default();
        limits.max_alloc = Some(DECODER_BYTES_MAX);
        reader.limits(limits);
        let format = reader.format();
        reader.decode().map(|image| (format, image))
    };
    // A decoder that panics on a hostile file has found a problem of the file.
    let decoded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(decode));
    let (format, image) = decoded
        .map_err(|_| "the decoder panicked".to_owned())?
        .map_err(|error| error.to_string())?;
    let size = (image.width() as i32, image.height() as i32);
    if size != told.size {
        return Err(format!("its size is {size:?}, its row says {:?}", told.size));
    }
    match (told.mime, format.map(|format| format.to_mime_type())) {
        (Some(told), Some(found)) if told != found => {
            Err(format!("it is {found}, its row says {told}"))
        }
        _ => Ok(()),
    }
}

/// Compares the columns of the media mask with the slots they are made from.
fn check_mask(batch: &RecordBatch, i: usize) -> Result<(), String> {
    let derived = ["media_prev", "media_next", "text", "image_char_offset"];
    if let Some(name) = derived.into_iter().find(|name| batch[*name].is_null(i)) {
        return Err(format!("`{name}` is null"));
    }
    let list = |name: &str| batch[name].as_list::<i32>().value(i);
    let (texts, images) = (list("texts"), list("images"));
    let marks: Vec<bool> = (0..images.len()).map(|slot| images.is_valid(slot)).collect();
    let is_parallel =
        texts.len() == images.len() && (0..texts.len()).all(|s| texts.is_valid(s) != marks[s]);
    if !is_parallel {
        return Err("its texts and images are not parallel".to_owned());
    }
    let n_images = marks.iter().filter(|mark| **mark).count();
    if list("image_meta").len() != n_images {
        let n = list("image_meta").len();
        return Err(format!("`image_meta` has {n} entries for {n_images} images"));
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
    use arrow::array::{ArrayRef, Int32Builder, ListBuilder, StringArray, StringBuilder};

    use super::*;

    #[test]
    fn an_image_is_what_is_said_of_it() {
        let mut png = std::io::Cursor::new(Vec::new());
        image::RgbImage::new(3, 2).write_to(&mut png, image::ImageFormat::Png).unwrap();
        let png = png.into_inner();
        let sha256 = sha256_hex(&png);
        let check = |size, sha256: &str, mime| {
            check_image(&png, Told { size, sha256: Some(sha256), mime: Some(mime) })
        };
        check((3, 2), &sha256, "image/png").unwrap();
        assert!(check((2, 3), &sha256, "image/png").unwrap_err().contains("its size is (3, 2)"));
        assert!(check((3, 2), "other", "image/png").unwrap_err().contains("sha256 is not other"));
        assert!(check((3, 2), &sha256, "image/jpeg").unwrap_err().contains("it is image/png"));
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

    #[test]
    fn chosen_rows_are_spread_and_found_range_by_range() {
        for (n, of) in [(1, 1), (1, 10), (3, 10), (10, 10), (7, 1000), (0, 5), (0, 0)] {
            let chosen = Chosen { n, of };
            let all: Vec<_> = chosen.within(0, of).collect();
            assert_eq!(all.len() as u64, n, "{n} of {of}");
            assert!(all.windows(2).all(|pair| pair[0] < pair[1]), "{all:?}");
            let by_three: Vec<_> = (0..of)
                .step_by(3)
                .flat_map(|i| chosen.within(i, (i + 3).min(of)).collect::<Vec<_>>())
                .collect();
            assert_eq!(by_three, all, "{n} of {of}");
        }
    }
}
