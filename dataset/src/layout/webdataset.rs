//! Pairs in tar files of webdataset.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use serde_json::Value;
use tar::{Archive, EntryType};

use super::{ForeignRows, IndexedFile, Place};
use crate::digest::sha256_hex;
use crate::shard_reader::StoredObject;
use crate::{CorpusError, CorpusStore, EncodedImage, ImageText, Row};

/// Endings of members that are images.
const IMAGES: [&str; 6] = ["jpg", "jpeg", "png", "webp", "gif", "bmp"];

/// A pair: what its members are called before the first dot, and where they lie.
#[derive(Debug, Default)]
pub(super) struct Sample {
    key: String,
    /// Its ending and place.
    image: Option<(&'static str, Range<u64>)>,
    text: Option<Range<u64>>,
    json: Option<Range<u64>>,
}

/// Finds the pairs of a tar file: members in a row with the same key. One without an image is no pair.
pub(super) fn index(
    store: &CorpusStore,
    file: &str,
) -> Result<IndexedFile<Vec<Sample>>, CorpusError> {
    let object = StoredObject::open(store, file)?;
    let problem =
        |e: io::Error| CorpusError::Layout { object: store.name_of(file), problem: e.to_string() };
    let size = object.size();
    let mut samples: Vec<Sample> = Vec::new();
    let mut archive = Archive::new(SeekableObject { object, next: 0 });
    for entry in archive.entries_with_seek().map_err(problem)? {
        let entry = entry.map_err(problem)?;
        if entry.header().entry_type() != EntryType::Regular {
            continue;
        }
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Some((key, ending)) = key_and_ending(&path) else { continue };
        if samples.last().is_none_or(|sample| sample.key != key) {
            samples.push(Sample { key: key.to_owned(), ..Sample::default() });
        }
        let sample = samples.last_mut().expect("one was there or was pushed");
        let range = entry.raw_file_position()..entry.raw_file_position() + entry.size();
        if range.end > size {
            let problem = format!("cut off: `{path}` ends at byte {} of {size}", range.end);
            return Err(CorpusError::Layout { object: store.name_of(file), problem });
        }
        let ending = ending.to_ascii_lowercase();
        let image = IMAGES.into_iter().find(|image| *image == ending);
        if let Some(image) = image.filter(|_| sample.image.is_none()) {
            sample.image = Some((image, range));
        } else if ending == "txt" {
            sample.text = Some(range);
        } else if ending == "json" {
            sample.json = Some(range);
        }
    }
    samples.retain(|sample| sample.image.is_some());
    let shown = |range: Option<&Range<u64>>| range.map_or(0..0, Range::clone);
    let places = samples.iter().map(|sample| {
        let image = shown(sample.image.as_ref().map(|(_, range)| range));
        let (text, json) = (shown(sample.text.as_ref()), shown(sample.json.as_ref()));
        let numbers = [image.start, image.end, text.start, text.end, json.start, json.end];
        format!("{} {}", numbers.map(|number| number.to_string()).join(" "), sample.key)
    });
    let sha256 = sha256_hex(places.collect::<Vec<_>>().join("\n").as_bytes());
    Ok(IndexedFile { n_rows: samples.len() as u64, rows: samples, sha256 })
}

/// What a member is called up to the first dot of its file name, and what follows.
fn key_and_ending(path: &str) -> Option<(&str, &str)> {
    let name = path.rfind('/').map_or(0, |slash| slash + 1);
    let dot = name + path[name..].find('.')?;
    Some((&path[..dot], &path[dot + 1..]))
}

pub(super) struct TarFiles {
    store: CorpusStore,
    files: Vec<String>,
    samples: Vec<Vec<Sample>>,
}

impl TarFiles {
    pub(super) fn new(store: &CorpusStore, files: Vec<String>, samples: Vec<Vec<Sample>>) -> Self {
        Self { store: store.clone(), files, samples }
    }
}

impl ForeignRows for TarFiles {
    fn read(&self, file: usize, row_idx: u64, place: &Place) -> Result<Row, CorpusError> {
        let sample = &self.samples[file][row_idx as usize];
        let Some((ending, image)) = &sample.image else {
            return Err(place.wrong("image", "there is none"));
        };
        let image = place.with_images.then_some(image);
        let wanted = [image, sample.text.as_ref(), sample.json.as_ref()];
        let ranges = wanted.iter().flatten().map(|range| (*range).clone()).collect();
        let mut found = self.store.get_ranges(&self.files[file], ranges)?.into_iter();
        let bytes = image.and_then(|_| found.next()).unwrap_or_default();
        let text = sample.text.as_ref().and_then(|_| found.next());
        let json = sample.json.as_ref().and_then(|_| found.next());
        let json: Value = match json.map(|json| serde_json::from_slice(&json)) {
            Some(Ok(json)) => json,
            // Beside a caption it only adds to what is known; img2dataset writes NaN into some.
            Some(Err(_)) if text.is_some() => Value::Null,
            Some(Err(error)) => return Err(place.wrong("json", error.to_string())),
            None => Value::Null,
        };
        let caption = match text {
            Some(text) => String::from_utf8(text.to_vec())
                .map_err(|_| place.wrong("txt", "it is not UTF-8"))?,
            None => match json["caption"].as_str() {
                Some(caption) => caption.to_owned(),
                None => return Err(place.wrong("txt", "there is no caption")),
            },
        };
        let field = |name: &str| json[name].as_str().map(str::to_owned);
        let side = |name: &str| i32::try_from(json[name].as_i64().unwrap_or(0)).unwrap_or(0);
        Ok(Row::ImageText(ImageText {
            key: sample.key.clone(),
            url: field("url"),
            caption,
            image: EncodedImage { bytes, path: Some(format!("{}.{ending}", sample.key)) },
            width: side("width"),
            height: side("height"),
            original_width: side("original_width"),
            original_height: side("original_height"),
            sha256: field("sha256").unwrap_or_default(),
            phash: 0,
            source: Some(self.store.name_of(&self.files[file])),
            scores: Vec::new(),
            warc: None,
        }))
    }
}

/// An object that is read from anywhere.
struct SeekableObject {
    object: StoredObject,
    next: u64,
}

impl Read for SeekableObject {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let end = self.object.size().min(self.next.saturating_add(buffer.len() as u64));
        if end <= self.next {
            return Ok(0);
        }
        let bytes = self.object.range(self.next..end).map_err(io::Error::other)?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        self.next = end;
        Ok(bytes.len())
    }
}

impl Seek for SeekableObject {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let next = match to {
            SeekFrom::Start(place) => Some(place),
            SeekFrom::Current(offset) => self.next.checked_add_signed(offset),
            SeekFrom::End(offset) => self.object.size().checked_add_signed(offset),
        };
        self.next = next.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_ends_at_the_first_dot_of_the_name() {
        assert_eq!(key_and_ending("a.b/c/0001.seg.json"), Some(("a.b/c/0001", "seg.json")));
        assert_eq!(key_and_ending("0001.jpg"), Some(("0001", "jpg")));
        assert_eq!(key_and_ending("a.b/LICENCE"), None);
    }
}
