//! Hateful Memes (`dev_seen.jsonl`): lines of `id`, `img`, `label` and `text`; 1 is hateful. A split without labels is
//! one that the benchmark keeps back.

use std::sync::Arc;

use serde::Deserialize;

use crate::error::EvalError;
use crate::ids::Id;
use crate::item::{Item, Truth};
use crate::readers::SplitFiles;
use crate::readers::entries::{Labelled, json_lines};

/// Answers by label.
const ANSWERS: [&str; 2] = ["no", "yes"];

#[derive(Deserialize)]
struct Line {
    id: Id,
    img: String,
    label: Option<usize>,
    text: String,
}

/// One item per meme.
pub(super) fn read(split: &SplitFiles<'_>) -> Result<Vec<Item>, EvalError> {
    let path = split.path("annotations")?;
    let candidates: Arc<[String]> = ANSWERS.map(str::to_owned).into();
    let mut items = Vec::new();
    let mut labelled = Labelled::default();
    json_lines(&path, |line: Line| {
        labelled.note(&line.id.0, line.label.is_some());
        let truth = match line.label {
            Some(label) if label >= ANSWERS.len() => {
                return Err(format!("has the label {label}, expected 0 or 1"));
            }
            Some(right) => Truth::Candidate { right, relevance: None },
            None => Truth::Hidden,
        };
        items.push(Item {
            medium: split.image(&[("id", &line.id.0), ("img", &line.img)])?,
            medium_id: line.id.0.clone(),
            id: line.id.0,
            fields: [("text", line.text)].into(),
            truth,
            candidates: candidates.clone(),
            category: None,
        });
        Ok(())
    })?;
    labelled.check(&path, "label")?;
    Ok(items)
}
