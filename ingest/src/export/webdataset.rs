//! Tar archives: a sample is the run of files whose names are equal up to the first dot.

use std::io::{self, Write as _};
use std::path::Path;

use flamingo_dataset::{Interleaved, Row, Slot};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::{Counted, Writer, about, about_image, extension, name};

/// Time, owner and mode of every member are the same, so that archives are.
fn append(tar: &mut Builder<Counted>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_entry_type(EntryType::Regular);
    tar.append_data(&mut header, name, bytes)
}

fn create(folder: &Path, i: u64) -> io::Result<Builder<Counted>> {
    Ok(Builder::new(Counted::create(&folder.join(format!("{i:05}.tar")))?))
}

fn finish(tar: Builder<Counted>) -> io::Result<u64> {
    let mut file = tar.into_inner()?;
    file.flush()?;
    Ok(file.bytes)
}

fn json_bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// Images as members of their own.
pub(super) struct Samples {
    tar: Builder<Counted>,
}

impl Samples {
    pub(super) fn create(folder: &Path, i: u64) -> io::Result<Self> {
        Ok(Self { tar: create(folder, i)? })
    }
}

impl Writer for Samples {
    fn add(&mut self, row_idx: u64, row: &Row) -> io::Result<()> {
        let name = name(row_idx);
        let mut about = about(row);
        match row {
            Row::ImageText(pair) => {
                let image = format!("{name}.{}", extension(&pair.image));
                append(&mut self.tar, &image, &pair.image.bytes)?;
                append(&mut self.tar, &format!("{name}.txt"), pair.caption.as_bytes())?;
            }
            Row::VideoText(clip) => {
                for (i, frame) in clip.frames.iter().enumerate() {
                    let image = format!("{name}.{i}.{}", extension(frame));
                    append(&mut self.tar, &image, &frame.bytes)?;
                }
                append(&mut self.tar, &format!("{name}.txt"), clip.caption.as_bytes())?;
            }
            Row::Interleaved(page) => {
                let mut images = Vec::new();
                let mut n = 0;
                for slot in &page.slots {
                    images.push(match slot {
                        Slot::Image { image, .. } => {
                            // What webdataset calls this member of the sample.
                            let field = format!("{n}.{}", extension(image));
                            append(&mut self.tar, &format!("{name}.{field}"), &image.bytes)?;
                            n += 1;
                            Some(field)
                        }
                        Slot::Text(_) => None,
                    });
                }
                about["texts"] = json!(texts(page));
                about["images"] = json!(images);
                let metas = page.slots.iter().filter_map(|slot| about_image(slot, &page.url));
                about["image_metadata"] = metas.collect();
            }
        }
        append(&mut self.tar, &format!("{name}.json"), &json_bytes(&about))
    }

    fn finish(self: Box<Self>) -> io::Result<u64> {
        finish(self.tar)
    }
}

/// The text of each slot; none for images.
pub(super) fn texts(page: &Interleaved) -> Vec<Option<&str>> {
    let mut texts = Vec::with_capacity(page.slots.len());
    for slot in &page.slots {
        texts.push(match slot {
            Slot::Text(text) => Some(text.as_str()),
            Slot::Image { .. } => None,
        });
    }
    texts
}

/// Documents as mmc4 has them: sentences, and images that are matched with one each.
pub(super) struct Documents {
    tar: Builder<Counted>,
}

impl Documents {
    pub(super) fn create(folder: &Path, i: u64) -> io::Result<Self> {
        Ok(Self { tar: create(folder, i)? })
    }
}

impl Writer for Documents {
    fn add(&mut self, row_idx: u64, row: &Row) -> io::Result<()> {
        let Row::Interleaved(page) = row else {
            return Err(io::Error::other("only documents have sentences and images"));
        };
        let name = name(row_idx);
        append(&mut self.tar, &format!("{name}.json"), &json_bytes(&document(&name, page)))
    }

    fn finish(self: Box<Self>) -> io::Result<u64> {
        finish(self.tar)
    }
}

/// An image belongs to the text that follows it, or to the last one. The similarity is 1 there and 0
/// elsewhere, so that every threshold and every assignment keeps the order of the page.
fn document(name: &str, page: &Interleaved) -> Value {
    let sentences: Vec<&str> = page.texts().collect();
    let mut infos = Vec::new();
    let mut matrix = Vec::new();
    let mut n_before = 0;
    for slot in &page.slots {
        let Slot::Image { image, meta } = slot else {
            n_before += 1;
            continue;
        };
        let matched = n_before.min(sentences.len().saturating_sub(1));
        let similarity: Vec<f32> =
            (0..sentences.len()).map(|i| if i == matched { 1.0 } else { 0.0 }).collect();
        infos.push(json!({
            "image_name": format!("{name}.{}.{}", infos.len(), extension(image)),
            "raw_url": meta.url,
            "matched_text_index": matched,
            "matched_sim": 1.0,
            "face_detections": Value::Null,
            "image_base64": flamingo_dataset::report::base64(&image.bytes),
        }));
        matrix.push(similarity);
    }
    json!({
        "url": page.url,
        "text_list": sentences,
        "image_info": infos,
        "similarity_matrix": matrix,
        "could_have_url_duplicate": 0,
    })
}
