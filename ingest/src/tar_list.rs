//! Samples of a tar file in the convention of webdataset: neighbours whose names are the same up to
//! the first dot, e.g. `00012.jpg`, `00012.txt` and `00012.json`, are one row.
//!
//! A thread of its own unpacks, and waits while its samples are not wanted yet.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;

use crate::list::{Items, ListItem, ListRow, broken};
use crate::plan::ListPlan;
use crate::reject::{DropReason, Origin, Stage};
use crate::source::{Source, has_suffix};

/// Endings of such files.
pub(crate) const SUFFIXES: &[&str] = &[".tar", ".tar.gz", ".tgz"];
/// Endings of images.
const IMAGES: &[&str] = &["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jxl"];
/// Endings of captions.
const CAPTIONS: &[&str] = &["txt", "caption"];
/// Largest member that is read; a larger one costs its sample.
const MEMBER_BYTES_MAX: u64 = 64 << 20;
/// Samples that wait to be taken.
const QUEUE_LENGTH: usize = 1;

/// Members with the same name before the first dot.
#[derive(Default)]
struct Sample {
    key: String,
    image: Option<(String, Bytes)>,
    caption: Option<String>,
    json: HashMap<String, serde_json::Value>,
    /// Why it is not used.
    drop: Option<DropReason>,
}

/// The rows of a list.
pub(crate) fn rows<'a>(list: usize, source: &'a Arc<Source>, plan: &'a ListPlan) -> Items<'a> {
    let (sender, samples) = sync_channel(QUEUE_LENGTH);
    let shared = Arc::clone(source);
    let mut thread = Some(std::thread::spawn(move || send_samples(&shared, &sender)));
    let mut row = 0;
    Box::new(std::iter::from_fn(move || {
        if let Ok(sample) = samples.recv() {
            row += 1;
            return Some(Ok(to_item(sample, source, plan, list, row - 1)));
        }
        // The thread is over: with the file, or with what is wrong with it.
        let ended = thread.take()?.join();
        let ended = ended.unwrap_or_else(|_| Err("the reader panicked".to_owned()));
        let error = ended.err()?;
        Some(Err(broken(source, format!("after sample {row}: {error}"))))
    }))
}

/// Reads all members; ends early where nobody wants more samples.
fn send_samples(source: &Source, sender: &SyncSender<Sample>) -> Result<(), String> {
    let reader = source.reader(0);
    let reader: Box<dyn Read + '_> = if has_suffix(source.input(), &[".gz", ".tgz"]) {
        Box::new(MultiGzDecoder::new(reader))
    } else {
        Box::new(reader)
    };
    let mut archive = tar::Archive::new(reader);
    let text = |error: std::io::Error| error.to_string();
    let mut sample = Sample::default();
    for member in archive.entries().map_err(text)? {
        let mut member = member.map_err(text)?;
        if !member.header().entry_type().is_file() {
            continue;
        }
        let name = String::from_utf8_lossy(&member.path_bytes()).into_owned();
        let Some((key, ending)) = split_name(&name) else { continue };
        if key != sample.key {
            let next = Sample { key: key.to_owned(), ..Sample::default() };
            let whole = std::mem::replace(&mut sample, next);
            if !whole.is_empty() && sender.send(whole).is_err() {
                return Ok(());
            }
        }
        let size = member.size();
        if !Sample::wants(&ending) {
            continue;
        }
        if size > MEMBER_BYTES_MAX {
            let drop = DropReason::limit("too_many_bytes", size as f64, MEMBER_BYTES_MAX as f64);
            sample.drop = Some(drop);
            continue;
        }
        let mut bytes = Vec::new();
        member.read_to_end(&mut bytes).map_err(|error| format!("{name}: {error}"))?;
        if bytes.len() as u64 != size {
            return Err(format!("{name}: the file ends inside it"));
        }
        sample.add(&name, &ending, bytes);
    }
    if !sample.is_empty() {
        // The last one: whether anyone wants it no longer matters.
        let _ = sender.send(sample);
    }
    Ok(())
}

/// The key of a member and its ending in lower case; none for files without an ending.
fn split_name(name: &str) -> Option<(&str, String)> {
    let start = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = start + name[start..].find('.')?;
    (dot > start).then(|| (&name[..dot], name[dot + 1..].to_lowercase()))
}

impl Sample {
    fn wants(ending: &str) -> bool {
        ending == "json" || IMAGES.contains(&ending) || CAPTIONS.contains(&ending)
    }

    fn is_empty(&self) -> bool {
        let Self { image, caption, json, drop, .. } = self;
        image.is_none() && caption.is_none() && json.is_empty() && drop.is_none()
    }

    fn add(&mut self, name: &str, ending: &str, bytes: Vec<u8>) {
        let bad = |error: String| DropReason::detail("bad_row", format!("{name}: {error}"));
        if IMAGES.contains(&ending) {
            // A sample of several images has one caption: its first image is meant.
            self.image.get_or_insert_with(|| (name.to_owned(), bytes.into()));
        } else if CAPTIONS.contains(&ending) {
            match String::from_utf8(bytes) {
                Ok(caption) => self.caption = Some(caption),
                Err(error) => self.drop = Some(bad(error.to_string())),
            }
        } else {
            match serde_json::from_slice(&bytes) {
                Ok(json) => self.json = json,
                Err(error) => self.drop = Some(bad(error.to_string())),
            }
        }
    }
}

fn to_item(sample: Sample, source: &Source, plan: &ListPlan, list: usize, row: u64) -> ListItem {
    let Sample { key, image, caption, json, drop } = sample;
    let field = |column: &String| {
        let value = json.get(column)?.as_str()?;
        (!value.trim().is_empty()).then(|| value.to_owned())
    };
    let url = field(&plan.url_column);
    if let Some(drop) = drop {
        let (source, offset) = (source.name().to_owned(), Some(row as i64));
        let origin = Origin { source, offset, url: url.or(Some(key)) };
        return ListItem::Dropped(drop.at(Stage::Read, &origin, None));
    }
    let (file, image) = image.unzip();
    ListItem::Row(ListRow {
        list,
        row,
        url,
        caption: caption.or_else(|| field(&plan.caption_column)),
        file,
        source: field(&plan.source_column),
        image,
        ..ListRow::default()
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::error::IngestError;

    fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn read(name: &str, bytes: &[u8]) -> Vec<Result<ListItem, IngestError>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let source = Arc::new(Source::open(path.to_str().unwrap()).unwrap());
        rows(0, &source, &ListPlan::default()).collect()
    }

    #[test]
    fn neighbours_with_one_key_are_a_row() {
        let long = format!("{}/b.jpg", "a".repeat(120));
        let bytes = archive(&[
            ("x/1.jpg", b"one"),
            ("x/1.txt", b"first"),
            ("x/1.json", br#"{"url": "http://a/1", "caption": "other", "n": 1}"#),
            ("x/1.cls", b"3"),
            ("x/2.seg.png", b"no image by its ending"),
            ("x/2.JSON", br#"{"caption": "second"}"#),
            ("README", b"no sample"),
            ("3.png", b"three"),
            ("4.json", b"{"),
            (&long, b"long"),
        ]);
        let image = |bytes: &'static [u8]| Some(Bytes::from_static(bytes));
        let (caption, file) =
            (|text: &str| Some(text.to_owned()), |text: &str| Some(text.to_owned()));
        let expected = [
            ListRow {
                url: Some("http://a/1".into()),
                caption: caption("first"),
                file: file("x/1.jpg"),
                image: image(b"one"),
                ..ListRow::default()
            },
            ListRow { row: 1, caption: caption("second"), ..ListRow::default() },
            ListRow { row: 2, file: file("3.png"), image: image(b"three"), ..ListRow::default() },
            ListRow { row: 4, file: file(&long), image: image(b"long"), ..ListRow::default() },
        ];
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&bytes).unwrap();
        for (name, bytes) in [("a.tar", bytes), ("a.tar.gz", gzip.finish().unwrap())] {
            let items: Vec<_> = read(name, &bytes).into_iter().map(|item| item.unwrap()).collect();
            assert!(
                matches!(&items[3], ListItem::Dropped(reject) if reject.drop.reason == "bad_row")
            );
            let found: Vec<_> = items
                .into_iter()
                .filter_map(|item| match item {
                    ListItem::Row(row) => Some(row),
                    ListItem::Dropped(_) => None,
                })
                .collect();
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn a_broken_file_is_an_error_after_its_whole_samples() {
        let mut bytes = archive(&[("1.jpg", b"one"), ("2.jpg", &[7; 2000])]);
        bytes.truncate(2048);
        let items = read("a.tar", &bytes);
        assert_eq!(items.len(), 2, "{items:?}");
        let error = items[1].as_ref().unwrap_err().to_string();
        assert!(items[0].is_ok() && error.contains("a.tar: after sample 1: 2.jpg"), "{error}");
        assert!(read("b.tar", &[7; 2048]).pop().unwrap().is_err());
    }

    #[test]
    fn a_list_that_is_not_read_to_its_end_stops_its_thread() {
        let members: Vec<_> = (0..50).map(|i| (format!("{i}.jpg"), b"x")).collect();
        let members: Vec<_> =
            members.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        std::fs::write(&path, archive(&members)).unwrap();
        let source = Arc::new(Source::open(path.to_str().unwrap()).unwrap());
        let plan = ListPlan::default();
        let mut items = rows(0, &source, &plan);
        assert!(items.next().unwrap().is_ok());
        drop(items);
        // Only the thread shares the source with this test.
        for _ in 0..1000 {
            if Arc::strong_count(&source) == 1 {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        panic!("the thread is still there");
    }
}
