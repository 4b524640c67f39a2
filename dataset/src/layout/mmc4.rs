//! Pages in JSON lines of mmc4: `text_list`, and `image_info` with the sentence that each image matches.

use serde::Deserialize;

use super::image_source::{ImageSource, meta, no_image};
use super::lines::LineFiles;
use super::obelics::{page, require_image};
use super::{ForeignRows, MissingImage, Place};
use crate::{CorpusError, Row, Slot};

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

pub(super) struct Pages {
    pub(super) files: LineFiles,
    pub(super) images: ImageSource,
    pub(super) similarity_min: f64,
    pub(super) missing: MissingImage,
}

impl ForeignRows for Pages {
    fn read(&self, file: usize, row_idx: u64, place: &Place) -> Result<Row, CorpusError> {
        let line = self.files.read(file, row_idx)?;
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
        Ok(page(self.files.id(file, row_idx), document.url, slots, None))
    }
}
