//! `TextVQA`'s files (`TextVQA_0.5.1_val.json`): `data` of `question_id`, `image_id`, `question` and ten texts in
//! `answers`; those of the test split have no answers.
//!
//! Answers get numbers, as the official tool has them when it leaves one out after another: else equal ones would all
//! be left out at once.

use std::sync::Arc;

use serde::Deserialize;

use crate::error::EvalError;
use crate::ids::Id;
use crate::item::{Item, Truth};
use crate::metrics::vqa::HumanAnswer;
use crate::readers::SplitFiles;
use crate::readers::entries::{JsonFile, Labelled};

#[derive(Deserialize)]
struct Entry {
    question_id: Id,
    image_id: Id,
    question: String,
    answers: Option<Vec<String>>,
}

/// One item per question.
pub(super) fn read(split: &SplitFiles<'_>) -> Result<Vec<Item>, EvalError> {
    let path = split.path("annotations")?;
    let mut items = Vec::new();
    let mut labelled = Labelled::default();
    JsonFile::at(&path).each(&["data"], "entry", |entry: Entry| {
        labelled.note(&entry.question_id.0, entry.answers.is_some());
        let truth = match entry.answers {
            Some(answers) if answers.is_empty() => {
                return Err("has no answer in `answers`".to_owned());
            }
            Some(answers) => Truth::Answers(numbered(answers)),
            None => Truth::Hidden,
        };
        items.push(Item {
            medium: split.image(&[("image_id", &entry.image_id.0)])?,
            medium_id: entry.image_id.0,
            id: entry.question_id.0,
            fields: [("question", entry.question)].into(),
            truth,
            candidates: Arc::default(),
            category: None,
        });
        Ok(())
    })?;
    labelled.check(&path, "answers")?;
    Ok(items)
}

fn numbered(answers: Vec<String>) -> Vec<HumanAnswer> {
    let numbered = (1..).zip(answers).map(|(number, answer)| HumanAnswer {
        answer_id: Some(number),
        ..HumanAnswer::plain(answer)
    });
    numbered.collect()
}
