//! COCO's captions: `images` of `id` and `file_name`, `annotations` of `image_id` and `caption`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use crate::error::EvalError;
use crate::ids::{Id, some_of};
use crate::item::{Item, Truth};
use crate::readers::SplitFiles;
use crate::readers::entries::JsonFile;

#[derive(Deserialize)]
struct Image {
    id: Id,
    #[serde(default)]
    file_name: String,
}

#[derive(Deserialize)]
struct Annotation {
    image_id: Id,
    caption: String,
}

/// One item per image, with all its captions.
pub(super) fn read(split: &SplitFiles<'_>) -> Result<Vec<Item>, EvalError> {
    let file = JsonFile::at(&split.path("annotations")?);
    let mut place = BTreeMap::new();
    let mut items: Vec<Item> = Vec::new();
    file.each(&["images"], "image", |image: Image| {
        if place.insert(image.id.clone(), items.len()).is_some() {
            return Err("is there twice".to_owned());
        }
        items.push(item(split, image)?);
        Ok(())
    })?;
    file.each(&["annotations"], "annotation", |it: Annotation| {
        let at = place.get(&it.image_id);
        let at = at.ok_or_else(|| format!("is of image {}, which is not listed", it.image_id.0))?;
        if let Truth::Captions(captions) = &mut items[*at].truth {
            captions.push(it.caption.trim().to_owned());
        }
        Ok(())
    })?;
    let is_bare = |item: &&Item| matches!(&item.truth, Truth::Captions(all) if all.is_empty());
    let bare: Vec<&str> = items.iter().filter(is_bare).map(|item| item.id.as_str()).collect();
    if bare.is_empty() {
        return Ok(items);
    }
    Err(file.wrong(format!("{} images have no caption: {}", bare.len(), some_of(&bare))))
}

fn item(split: &SplitFiles<'_>, image: Image) -> Result<Item, String> {
    let Id(id) = image.id;
    Ok(Item {
        medium: split.image(&[("image_id", &id), ("file_name", &image.file_name)])?,
        medium_id: id.clone(),
        id,
        fields: BTreeMap::new(),
        truth: Truth::Captions(Vec::new()),
        candidates: Arc::default(),
        category: None,
    })
}
