//! STAR (`STAR_val.json`): a list of `question_id` (`Interaction_T1_13`), `question`, `video_id`, `start`, `end`,
//! `choices` and `answer`, which is the text of one of them; the test split has no answers.

use std::sync::Arc;

use serde::Deserialize;

use crate::error::EvalError;
use crate::item::{Item, Truth};
use crate::readers::SplitFiles;
use crate::readers::entries::{JsonFile, Labelled};

#[derive(Deserialize)]
struct Entry {
    question_id: String,
    question: String,
    video_id: String,
    start: f64,
    end: f64,
    answer: Option<String>,
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    choice: String,
}

/// One item per question. Categories are the four types: Interaction, Sequence, Prediction, Feasibility.
pub(super) fn read(split: &SplitFiles<'_>) -> Result<Vec<Item>, EvalError> {
    let path = split.path("annotations")?;
    let mut items = Vec::new();
    let mut labelled = Labelled::default();
    JsonFile::at(&path).each(&[], "entry", |entry: Entry| {
        labelled.note(&entry.question_id, entry.answer.is_some());
        items.push(item(split, entry)?);
        Ok(())
    })?;
    labelled.check(&path, "answer")?;
    Ok(items)
}

fn item(split: &SplitFiles<'_>, entry: Entry) -> Result<Item, String> {
    let candidates: Arc<[String]> = entry.choices.into_iter().map(|it| it.choice).collect();
    let right = |answer: String| {
        let right = candidates.iter().position(|choice| *choice == answer);
        right.ok_or_else(|| format!("has the answer `{answer}`, which is none of its choices"))
    };
    let truth = match entry.answer.map(right).transpose()? {
        Some(right) => Truth::Candidate { right, relevance: None },
        None => Truth::Hidden,
    };
    let (kind, _) = entry.question_id.split_once('_').ok_or("has a `question_id` without type")?;
    let texts = [entry.start, entry.end].map(|second| second.to_string());
    let values = [("video_id", &*entry.video_id), ("start", &texts[0]), ("end", &texts[1])];
    Ok(Item {
        category: Some(kind.to_owned()),
        medium: split.film(&values, Some((entry.start, entry.end)))?,
        medium_id: entry.video_id,
        fields: [("question", entry.question)].into(),
        truth,
        candidates,
        id: entry.question_id,
    })
}
