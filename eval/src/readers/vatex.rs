//! VATEX (`vatex_validation_v1.0.json`): a list of `videoID`, which is `YOUTUBE_START_END`, and ten English captions
//! in `enCap`; those of the private test split have none.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use crate::error::EvalError;
use crate::item::{Item, Truth};
use crate::readers::SplitFiles;
use crate::readers::entries::{JsonFile, Labelled};

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "videoID")]
    video_id: String,
    #[serde(rename = "enCap")]
    captions: Option<Vec<String>>,
}

/// One item per clip.
pub(super) fn read(split: &SplitFiles<'_>) -> Result<Vec<Item>, EvalError> {
    let path = split.path("annotations")?;
    let mut items = Vec::new();
    let mut labelled = Labelled::default();
    JsonFile::at(&path).each(&[], "entry", |entry: Entry| {
        labelled.note(&entry.video_id, entry.captions.is_some());
        items.push(item(split, entry)?);
        Ok(())
    })?;
    labelled.check(&path, "enCap")?;
    Ok(items)
}

fn item(split: &SplitFiles<'_>, entry: Entry) -> Result<Item, String> {
    let id = entry.video_id;
    let mut parts = id.rsplitn(3, '_');
    let (end, start, youtube) = (parts.next(), parts.next(), parts.next());
    let named = youtube.zip(start).zip(end).filter(|((youtube, _), _)| !youtube.is_empty());
    let ((youtube, start), end) = named.ok_or("has a `videoID` that is not YOUTUBE_START_END")?;
    let seconds =
        |text: &str| text.parse::<f64>().map_err(|_| format!("has `{text}` for a second"));
    let span = (seconds(start)?, seconds(end)?);
    let values = [("video_id", &*id), ("youtube_id", youtube), ("start", start), ("end", end)];
    let truth = match entry.captions {
        Some(captions) if captions.is_empty() => return Err("has no caption in `enCap`".to_owned()),
        Some(captions) => Truth::Captions(captions),
        None => Truth::Hidden,
    };
    // Folders are of clips in most copies; one that is of whole films says so by `{youtube_id}`.
    let is_whole = split.files.get("frames").is_some_and(|it| it.contains("{youtube_id}"));
    Ok(Item {
        medium: split.film(&values, is_whole.then_some(span))?,
        medium_id: youtube.to_owned(),
        fields: BTreeMap::new(),
        truth,
        candidates: Arc::default(),
        category: None,
        id,
    })
}
