//! Karpathy's splits of COCO and Flickr30k (`dataset_coco.json`, `dataset_flickr30k.json`): `images` of `filename`,
//! `split` and `sentences`; COCO's have `filepath` and `cocoid`, too.
//!
//! The role `subset` names the splits that are meant, with `+` between them: COCO's training images are `train` and
//! `restval`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use crate::error::EvalError;
use crate::ids::Id;
use crate::item::{Item, Truth};
use crate::readers::SplitFiles;
use crate::readers::entries::JsonFile;

#[derive(Deserialize)]
struct Image {
    filename: String,
    #[serde(default)]
    filepath: String,
    split: String,
    cocoid: Option<Id>,
    sentences: Vec<Sentence>,
}

#[derive(Deserialize)]
struct Sentence {
    raw: String,
}

/// One item per image of the subset, named by `cocoid`, or by the name of its file without the ending.
pub(super) fn read(split: &SplitFiles<'_>) -> Result<Vec<Item>, EvalError> {
    let subset = split.selector("subset")?;
    let file = JsonFile::at(&split.path("annotations")?);
    let mut items = Vec::new();
    file.each(&["images"], "image", |image: Image| {
        if subset.split('+').any(|part| part == image.split) {
            items.push(item(split, image)?);
        }
        Ok(())
    })?;
    if items.is_empty() {
        return Err(file.wrong(format!("it has no image of the split `{subset}`")));
    }
    Ok(items)
}

fn item(split: &SplitFiles<'_>, image: Image) -> Result<Item, String> {
    let stem = Path::new(&image.filename).file_stem().map(|stem| stem.to_string_lossy());
    let stem = stem.ok_or("has no name of a file")?.into_owned();
    let id = image.cocoid.map_or(stem, |Id(id)| id);
    let captions: Vec<String> =
        image.sentences.iter().map(|sentence| sentence.raw.trim().to_owned()).collect();
    if captions.is_empty() {
        return Err("has no sentence".to_owned());
    }
    let values = [("image_id", &*id), ("filepath", &image.filepath), ("filename", &image.filename)];
    Ok(Item {
        medium: split.image(&values)?,
        medium_id: id.clone(),
        id,
        fields: BTreeMap::new(),
        truth: Truth::Captions(captions),
        candidates: Arc::default(),
        category: None,
    })
}
