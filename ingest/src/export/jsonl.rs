//! JSON lines beside a folder of image files. Documents have OBELICS' columns: `images` and `texts`
//! in parallel, metadata as JSON in strings; `image_files` says where the bytes are.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use flamingo_dataset::{EncodedImage, Row, Slot};
use serde_json::{Value, json};

use super::webdataset::texts;
use super::{Counted, Writer, about, about_image, extension, name};

/// One file of lines, and its folder of images.
pub(super) struct Lines {
    file: Counted,
    root: PathBuf,
    /// Relative to the export.
    images: String,
    image_bytes: u64,
}

impl Lines {
    pub(super) fn create(folder: &Path, i: u64) -> io::Result<Self> {
        let images = format!("images/{i:05}");
        fs::create_dir_all(folder.join(&images))?;
        let file = Counted::create(&folder.join(format!("part-{i:05}.jsonl")))?;
        Ok(Self { file, root: folder.to_owned(), images, image_bytes: 0 })
    }

    /// Writes an image; its path relative to the export.
    fn image(&mut self, name: &str, image: &EncodedImage) -> io::Result<String> {
        let path = format!("{}/{name}.{}", self.images, extension(image));
        fs::write(self.root.join(&path), &image.bytes)?;
        self.image_bytes += image.bytes.len() as u64;
        Ok(path)
    }
}

impl Writer for Lines {
    fn add(&mut self, row_idx: u64, row: &Row) -> io::Result<()> {
        let name = name(row_idx);
        let mut line = about(row);
        match row {
            Row::ImageText(pair) => line["image_file"] = self.image(&name, &pair.image)?.into(),
            Row::VideoText(clip) => {
                let mut files = Vec::new();
                for (i, frame) in clip.frames.iter().enumerate() {
                    files.push(self.image(&format!("{name}-{i}"), frame)?);
                }
                line["frame_files"] = json!(files);
            }
            Row::Interleaved(page) => {
                let mut files = Vec::new();
                for slot in &page.slots {
                    files.push(match slot {
                        Slot::Image { image, .. } => {
                            let n = files.iter().flatten().count();
                            Some(self.image(&format!("{name}-{n}"), image)?)
                        }
                        Slot::Text(_) => None,
                    });
                }
                let urls = page.slots.iter().map(|slot| match slot {
                    Slot::Image { meta, .. } => meta.url.clone().map_or(json!(""), Value::from),
                    Slot::Text(_) => Value::Null,
                });
                let metas = page.slots.iter().map(|slot| about_image(slot, &page.url));
                let metas: Vec<Option<Value>> = metas.collect();
                line = json!({
                    "images": urls.collect::<Vec<_>>(),
                    "texts": texts(page),
                    "metadata": json!(metas).to_string(),
                    "general_metadata": line.to_string(),
                    "image_files": files,
                });
            }
        }
        writeln!(self.file, "{line}")
    }

    fn finish(mut self: Box<Self>) -> io::Result<u64> {
        self.file.flush()?;
        Ok(self.file.bytes + self.image_bytes)
    }
}
