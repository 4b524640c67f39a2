//! One row of a corpus to look at: its slots with what each may see, in a terminal or as a page with
//! its images.

use std::fmt::Write as _;

use flamingo_dataset::media_mask::{Attend, phi_of_marks};
use flamingo_dataset::report::Page;
use flamingo_dataset::{Corpus, CorpusKind, CorpusStore, EncodedImage, Interleaved, Row, Slot};

use crate::error::IngestError;
use crate::table;

/// Characters of one text in a terminal.
const TEXT_CHARS: usize = 400;

/// Which row is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// By its number, from 0.
    Row(u64),
    /// By its identifier: `doc_id` or `key`.
    Key(String),
    /// By its address.
    Url(String),
}

/// Reads the row; its number comes with it. Only the column that is looked for is searched.
///
/// # Errors
/// When the corpus cannot be read or has no such row.
pub fn find(location: &str, which: &Which) -> Result<(u64, Row), IngestError> {
    let corpus = Corpus::open(location)?;
    let row = match which {
        Which::Row(row) => Some(*row),
        Which::Key(key) => {
            let column = if corpus.kind() == CorpusKind::Interleaved { "doc_id" } else { "key" };
            search(&corpus, column, key)?
        }
        Which::Url(url) => search(&corpus, "url", url)?,
    };
    let Some(row) = row else {
        let (what, value) = match which {
            Which::Key(key) => ("key", key.clone()),
            Which::Url(url) => ("address", url.clone()),
            Which::Row(row) => ("row", row.to_string()),
        };
        return Err(IngestError::NoSuchRow { corpus: location.to_owned(), what, value });
    };
    Ok((row, corpus.read(row)?))
}

fn search(corpus: &Corpus, column: &str, value: &str) -> Result<Option<u64>, IngestError> {
    let store = CorpusStore::open(corpus.location())?;
    let mut first_row = 0;
    for entry in &corpus.manifest().shards {
        let mut row = first_row;
        for batch in table::read(&store, &entry.file, &[column])? {
            let batch = batch?;
            let found =
                (0..batch.num_rows()).find(|&i| table::text(&batch, column, i) == Some(value));
            if let Some(i) = found {
                return Ok(Some(row + i as u64));
            }
            row += batch.num_rows() as u64;
        }
        first_row += entry.rows;
    }
    Ok(None)
}

/// The row as lines of text.
pub fn to_text(row_idx: u64, row: &Row) -> String {
    let mut text = format!("row {row_idx}\n");
    for (name, value) in facts(row) {
        writeln!(text, "{name}: {value}").expect("writing to a string does not fail");
    }
    match row {
        Row::Interleaved(page) => {
            text.push_str(
                "slots, each with the image that it sees (the one before, the one after):\n",
            );
            for (slot, sees) in page.slots.iter().zip(seen(page)) {
                let line = match slot {
                    Slot::Text(words) => excerpt(words),
                    Slot::Image { image, meta } => format!(
                        "<image> {} {}x{} {} bytes, sha256 {}…, phash {:016x}{}{}",
                        meta.mime,
                        meta.width,
                        meta.height,
                        image.bytes.len(),
                        meta.sha256.get(..12).unwrap_or(&meta.sha256),
                        meta.phash,
                        meta.url.as_ref().map(|url| format!(", {url}")).unwrap_or_default(),
                        meta.alt.as_ref().map(|alt| format!(", alt: {alt}")).unwrap_or_default(),
                    ),
                };
                writeln!(text, "{sees:>9} | {}", line.replace('\n', "\n          | "))
                    .expect("writing to a string does not fail");
            }
        }
        Row::ImageText(pair) => {
            writeln!(text, "image: {}\ncaption: {}", about_image(&pair.image), pair.caption)
                .expect("writing to a string does not fail");
        }
        Row::VideoText(clip) => {
            for (frame, ms) in clip.frames.iter().zip(&clip.frame_ms) {
                writeln!(text, "{ms:>8} ms | {}", about_image(frame))
                    .expect("writing to a string does not fail");
            }
            writeln!(text, "caption: {}", clip.caption).expect("writing to a string does not fail");
        }
    }
    text
}

/// The row as one self-contained page, with its images.
pub fn to_html(row_idx: u64, row: &Row) -> String {
    let mut page = Page::new(&format!("Row {row_idx}"));
    let facts: Vec<Vec<String>> =
        facts(row).into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    page.table(&["field", "value"], &facts);
    add_content(&mut page, row, usize::MAX, usize::MAX);
    page.finish()
}

/// Adds texts and images of a row in order, at most so many characters of a text and so many slots.
pub(crate) fn add_content(page: &mut Page, row: &Row, chars_max: usize, slots_max: usize) {
    match row {
        Row::Interleaved(document) => {
            let slots = document.slots.iter().zip(seen(document)).take(slots_max);
            for (slot, sees) in slots {
                match slot {
                    Slot::Text(words) => page.slot(&sees, &cut(words, chars_max)),
                    Slot::Image { image, meta } => {
                        let alt = meta.alt.as_deref().unwrap_or("");
                        let caption = format!("{sees}  {}x{}\n{alt}", meta.width, meta.height);
                        page.figure(&image.bytes, mime(image), &cut(&caption, chars_max));
                    }
                }
            }
            let n = document.slots.len();
            if n > slots_max {
                page.paragraph(&format!("… and {} more slots", n - slots_max));
            }
        }
        Row::ImageText(pair) => {
            page.figure(&pair.image.bytes, mime(&pair.image), &cut(&pair.caption, chars_max));
        }
        Row::VideoText(clip) => {
            for (frame, ms) in clip.frames.iter().zip(&clip.frame_ms).take(slots_max) {
                let time = format!("{:.1} s", f64::from(*ms) / 1000.0);
                page.figure(&frame.bytes, mime(frame), &time);
            }
            page.slot("caption", &cut(&clip.caption, chars_max));
        }
    }
}

/// What is known of a row beside its texts and images.
fn facts(row: &Row) -> Vec<(&'static str, String)> {
    let mut facts = vec![("key", row.key().to_owned())];
    let mut add = |name, value: Option<String>| facts.extend(value.map(|value| (name, value)));
    let place = |warc: Option<&flamingo_dataset::WarcPlace>| {
        warc.map(|w| format!("{} at {}, {} bytes", w.filename, w.offset, w.length))
    };
    match row {
        Row::Interleaved(page) => {
            add("url", Some(page.url.clone()));
            add("title", page.title.clone());
            let score = page.lang_score.map(|score| format!(" ({score:.3})")).unwrap_or_default();
            add("lang", page.lang.as_ref().map(|lang| format!("{lang}{score}")));
            add("archive", place(page.warc.as_ref()));
        }
        Row::ImageText(pair) => {
            add("url", pair.url.clone());
            add("source", pair.source.clone());
            add("size", Some(format!("{}x{}", pair.width, pair.height)));
            let (width, height) = (pair.original_width, pair.original_height);
            add("original size", Some(format!("{width}x{height}")));
            add("sha256", Some(pair.sha256.clone()));
            add("phash", Some(format!("{:016x}", pair.phash)));
            for (name, score) in &pair.scores {
                add("score", Some(format!("{name} {score}")));
            }
            add("archive", place(pair.warc.as_ref()));
        }
        Row::VideoText(clip) => {
            add("url", clip.url.clone());
            add("codec", Some(clip.codec.clone()));
            add("size", Some(format!("{}x{}", clip.width, clip.height)));
            let (start, end, duration) = (clip.start_ms, clip.end_ms, clip.duration_ms);
            add("time", Some(format!("{start} ms to {end} ms of {duration} ms")));
            add("sha256", Some(clip.sha256.clone()));
        }
    }
    add("images", Some(row.n_images().to_string()));
    add("words", Some(row.words().to_string()));
    facts
}

/// Which image each slot sees: `image 2` for an image, `1 < > 2` for a text.
fn seen(page: &Interleaved) -> Vec<String> {
    let marks: Vec<bool> = page.slots.iter().map(Slot::is_image).collect();
    let previous = phi_of_marks(&marks, Attend::Previous);
    let next = phi_of_marks(&marks, Attend::Next);
    let name = |image: i32| if image < 0 { "-".to_owned() } else { image.to_string() };
    let places = marks.iter().zip(previous.iter().zip(&next));
    places
        .map(|(&is_image, (&before, &after))| {
            if is_image {
                format!("image {before}")
            } else {
                format!("{} < > {}", name(before), name(after))
            }
        })
        .collect()
}

fn about_image(image: &EncodedImage) -> String {
    let size = image::ImageReader::new(std::io::Cursor::new(&image.bytes))
        .with_guessed_format()
        .ok()
        .and_then(|reader| reader.into_dimensions().ok());
    let size = size.map(|(width, height)| format!("{width}x{height} ")).unwrap_or_default();
    format!("{} {size}{} bytes", mime(image), image.bytes.len())
}

pub(crate) fn mime(image: &EncodedImage) -> &'static str {
    image::guess_format(&image.bytes).map_or("application/octet-stream", |f| f.to_mime_type())
}

fn excerpt(text: &str) -> String {
    cut(text, TEXT_CHARS)
}

/// The beginning of a text.
pub(crate) fn cut(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut("short", 5), "short");
        assert_eq!(cut(&"é".repeat(9), 8).chars().count(), 9);
        assert_eq!(cut("any", usize::MAX), "any");
    }

    #[test]
    fn each_slot_says_what_it_sees() {
        let image = || {
            let meta = flamingo_dataset::ImageMeta {
                url: None,
                alt: Some("a cat".into()),
                width: 2,
                height: 3,
                sha256: "ab".into(),
                phash: 7,
                mime: "image/png".into(),
            };
            Slot::Image { image: EncodedImage { bytes: bytes::Bytes::new(), path: None }, meta }
        };
        let text = |text: &str| Slot::Text(text.into());
        let page = Interleaved {
            doc_id: "d".into(),
            url: "u".into(),
            slots: vec![text("one"), image(), text("two\nlines"), image(), text("three")],
            title: None,
            lang: None,
            lang_score: None,
            warc: None,
            fetched_at_us: None,
        };
        let lines = to_text(4, &Row::Interleaved(page));
        for line in [
            "row 4\n",
            "  - < > 0 | one\n",
            "  image 0 | <image> image/png 2x3",
            "  0 < > 1 | two\n          | lines\n",
            "  1 < > - | three\n",
            "alt: a cat",
        ] {
            assert!(lines.contains(line), "{line:?} is not in {lines}");
        }
    }
}
