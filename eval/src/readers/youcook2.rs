//! `YouCook2` (`youcookii_annotations_trainval.json`): `database` of films by id, each with `subset` and `annotations`
//! of `segment` (start and end in seconds), `id` and `sentence`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use crate::error::EvalError;
use crate::ids::Id;
use crate::item::{Item, Truth};
use crate::readers::SplitFiles;
use crate::readers::entries::JsonFile;

#[derive(Deserialize)]
struct File {
    database: BTreeMap<String, Film>,
}

#[derive(Deserialize)]
struct Film {
    subset: String,
    #[serde(default)]
    annotations: Vec<Segment>,
}

#[derive(Deserialize)]
struct Segment {
    /// From second to second.
    #[serde(rename = "segment")]
    bounds: [f64; 2],
    id: Id,
    sentence: String,
}

/// One item per segment of the films of a subset, in the order of the films' ids: `GLd3aX16zBg_0`.
pub(super) fn read(split: &SplitFiles<'_>) -> Result<Vec<Item>, EvalError> {
    let subset = split.selector("subset")?;
    let file = JsonFile::at(&split.path("annotations")?);
    let films = file.whole::<File>()?.database;
    let mut items = Vec::new();
    for (film, segment) in films
        .iter()
        .filter(|(_, film)| film.subset == subset)
        .flat_map(|(id, film)| film.annotations.iter().map(move |segment| (id, segment)))
    {
        let item = item(split, film, segment);
        let Id(number) = &segment.id;
        items.push(item.map_err(|it| file.wrong(format!("segment {number} of `{film}` {it}")))?);
    }
    if items.is_empty() {
        return Err(file.wrong(format!("it has no segment of the subset `{subset}`")));
    }
    Ok(items)
}

fn item(split: &SplitFiles<'_>, film: &str, segment: &Segment) -> Result<Item, String> {
    let [start, end] = segment.bounds;
    let texts = [start, end].map(|second| second.to_string());
    let values =
        [("video_id", film), ("id", &segment.id.0), ("start", &texts[0]), ("end", &texts[1])];
    if segment.sentence.trim().is_empty() {
        return Err("has no sentence".to_owned());
    }
    Ok(Item {
        id: format!("{film}_{}", segment.id.0),
        medium_id: film.to_owned(),
        medium: split.film(&values, Some((start, end)))?,
        fields: BTreeMap::new(),
        truth: Truth::Captions(vec![segment.sentence.trim().to_owned()]),
        candidates: Arc::default(),
        category: None,
    })
}
