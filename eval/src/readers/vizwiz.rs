//! `VizWiz`'s list (`val.json`): entries of `image`, `question`, `answers` and `answer_type`; those of the test split
//! have no answers.

use std::sync::Arc;

use serde::Deserialize;

use crate::error::EvalError;
use crate::item::{Item, Truth};
use crate::metrics::vqa::HumanAnswer;
use crate::readers::SplitFiles;
use crate::readers::entries::{JsonFile, Labelled};

#[derive(Deserialize)]
struct Entry {
    image: String,
    question: String,
    answers: Option<Vec<HumanAnswer>>,
    answer_type: Option<String>,
}

/// One item per image, which has one question.
pub(super) fn read(split: &SplitFiles<'_>) -> Result<Vec<Item>, EvalError> {
    let path = split.path("annotations")?;
    let mut items = Vec::new();
    let mut labelled = Labelled::default();
    JsonFile::read(&path)?.each(&[], "entry", |entry: Entry| {
        labelled.note(&entry.image, entry.answers.is_some());
        let truth = match entry.answers {
            Some(answers) if answers.is_empty() => {
                return Err("has no answer in `answers`".to_owned());
            }
            Some(answers) => Truth::Answers(answers),
            None => Truth::Hidden,
        };
        items.push(Item {
            medium: split.image(&[("image", &entry.image)])?,
            medium_id: entry.image.clone(),
            id: entry.image,
            fields: [("question", entry.question)].into(),
            truth,
            candidates: Arc::default(),
            category: entry.answer_type,
        });
        Ok(())
    })?;
    labelled.check(&path, "answers")?;
    Ok(items)
}
