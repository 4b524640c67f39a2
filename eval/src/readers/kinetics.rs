//! Kinetics (`val.csv`): `label`, `youtube_id`, `time_start` and `time_end`; a file without labels is of a split
//! that is kept back.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Deserialize;

use crate::error::EvalError;
use crate::item::{Item, Truth};
use crate::readers::SplitFiles;
use crate::readers::entries::{Labelled, csv_rows, wrong};
use crate::readers::kept::Kept;

#[derive(Deserialize)]
struct Row {
    #[serde(default)]
    label: String,
    youtube_id: String,
    time_start: String,
    time_end: String,
}

/// One item per clip, named as its file is in most copies: `0wR5jVB-WPk_000417_000427`. Candidates are the labels of
/// the split and of that which examples are drawn from, in alphabetical order.
pub(super) fn read(split: &SplitFiles<'_>) -> Result<Vec<Item>, EvalError> {
    let path = split.path("annotations")?;
    let mut labels = BTreeSet::new();
    for path in [Some(path.clone()), support(split)?].into_iter().flatten() {
        csv_rows(&path, |_, row: Row| {
            labels.insert(row.label);
            Ok(())
        })?;
    }
    labels.remove("");
    let candidates: Arc<[String]> = labels.into_iter().collect();
    let (mut kept, mut labelled) = (Kept::new(split.draw), Labelled::default());
    let mut seen = BTreeSet::new();
    csv_rows(&path, |place, row: Row| {
        let Row { label, youtube_id, time_start, time_end } = row;
        let seconds =
            |text: &str| text.parse::<u32>().map_err(|_| format!("has `{text}` for a second"));
        let (start, end) = (seconds(&time_start)?, seconds(&time_end)?);
        let id = format!("{youtube_id}_{start:06}_{end:06}");
        if !seen.insert(id.clone()) {
            return Err(format!("is the second of clip {id}"));
        }
        let right = candidates.binary_search(&label).ok();
        labelled.note(&id, right.is_some());
        if !kept.wants(&id, place) {
            return Ok(());
        }
        let values = [
            ("video_id", &*youtube_id),
            ("start", &time_start),
            ("end", &time_end),
            ("label", &label),
        ];
        let item = Item {
            id: id.clone(),
            medium: split.film(&values, Some((f64::from(start), f64::from(end))))?,
            medium_id: youtube_id,
            fields: [].into(),
            truth: right.map_or(Truth::Hidden, |right| Truth::Candidate { right, relevance: None }),
            candidates: candidates.clone(),
            category: None,
        };
        kept.push(&id, place, item);
        Ok(())
    })?;
    labelled.check(&path, "label")?;
    if candidates.len() < 2 {
        return Err(wrong(
            &path,
            format!("it has {} labels, expected at least two", candidates.len()),
        ));
    }
    Ok(kept.into_entries())
}

/// The file that examples are drawn from.
fn support(split: &SplitFiles<'_>) -> Result<Option<String>, EvalError> {
    let Some(support) = &split.task.support else { return Ok(None) };
    let files = split.task.split(support)?;
    SplitFiles { files, ..*split }.path("annotations").map(Some)
}
