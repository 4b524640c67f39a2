//! Pages in JSON lines of mmc4: `text_list`, and `image_info` with the sentence that each image matches.

use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;

use parquet::file::reader::ChunkReader;
use serde::Deserialize;

use super::image_source::{ImageSource, meta, no_image};
use super::obelics::{page, require_image};
use super::{ForeignRows, IndexedFile, MissingImage, Place};
use crate::digest::sha256_hex;
use crate::shard_reader::StoredObject;
use crate::{CorpusError, CorpusStore, Row, Slot};

/// Longest line that is read; pages have some kilobytes.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// What is read of a line.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    url: String,
    text_list: Vec<String>,
    image_info: Vec<Image>,
}

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "image_name")]
    name: Option<String>,
    raw_url: Option<String>,
    matched_text_index: usize,
    #[serde(default)]
    matched_sim: f64,
}

/// Finds the lines of a file.
pub(super) fn index(
    store: &CorpusStore,
    file: &str,
) -> Result<IndexedFile<Vec<Range<u64>>>, CorpusError> {
    let problem =
        |e: io::Error| CorpusError::Layout { object: store.name_of(file), problem: e.to_string() };
    let object = StoredObject::open(store, file)?;
    let reader = object.get_read(0).map_err(|e| problem(io::Error::other(e)))?;
    let mut reader = BufReader::new(reader);
    let (mut lines, mut start, mut line) = (Vec::new(), 0, Vec::new());
    loop {
        line.clear();
        let n =
            reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).map_err(problem)?;
        let n = n as u64;
        if n == LINE_BYTES_MAX {
            let long = format!("a line of more than {LINE_BYTES_MAX} bytes at byte {start}");
            return Err(problem(io::Error::other(long)));
        }
        if n == 0 {
            break;
        }
        if !line.trim_ascii().is_empty() {
            lines.push(start..start + n);
        }
        start += n;
    }
    let places: Vec<_> = lines.iter().map(|line| format!("{} {}", line.start, line.end)).collect();
    let sha256 = sha256_hex(places.join("\n").as_bytes());
    Ok(IndexedFile { n_rows: lines.len() as u64, rows: lines, sha256 })
}

pub(super) struct LineFiles {
    pub(super) store: CorpusStore,
    pub(super) files: Vec<String>,
    pub(super) lines: Vec<Vec<Range<u64>>>,
}

pub(super) struct Pages {
    pub(super) files: LineFiles,
    pub(super) images: ImageSource,
    pub(super) similarity_min: f64,
    pub(super) missing: MissingImage,
}

impl ForeignRows for Pages {
    fn read(&self, file: usize, row_idx: u64, place: &Place) -> Result<Row, CorpusError> {
        let LineFiles { store, files, lines } = &self.files;
        let line = store.get_range(&files[file], lines[file][row_idx as usize].clone())?;
        let document: Document =
            serde_json::from_slice(&line).map_err(|e| place.wrong("line", e.to_string()))?;
        let n_texts = document.text_list.len();
        // Images before each sentence, in the order in which they are listed.
        let mut before: Vec<Vec<Slot>> = (0..n_texts).map(|_| Vec::new()).collect();
        for image in document.image_info {
            if image.matched_sim < self.similarity_min {
                continue;
            }
            let Some(before) = before.get_mut(image.matched_text_index) else {
                let at = image.matched_text_index;
                return Err(place.wrong("image_info", format!("sentence {at} of {n_texts}")));
            };
            let url = image.raw_url.as_deref();
            let (address, name) = (url.unwrap_or_default(), image.name.as_deref());
            let found = if place.with_images {
                self.images.find(address, name, place)?
            } else {
                Some(no_image())
            };
            match found {
                Some(found) => before.push(Slot::Image { image: found, meta: meta(image.raw_url) }),
                None => self.missing.check(url, place)?,
            }
        }
        let sentences = document.text_list.into_iter().map(Slot::Text).zip(before);
        let slots = sentences.flat_map(|(text, mut before)| {
            before.push(text);
            before
        });
        let slots: Vec<Slot> = slots.collect();
        require_image(&slots, place)?;
        let doc_id = format!("{}:{row_idx}", files[file]);
        Ok(page(doc_id, document.url, slots, None))
    }
}
