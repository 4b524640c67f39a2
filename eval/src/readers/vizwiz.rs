//! `VizWiz`'s list (`val.json`): entries of `image`, `question`, `answers` and `answer_type`; those of the test split
//! have no answers.

use std::sync::Arc;

use serde::Deserialize;

use crate::error::EvalError;
use crate::item::{Item, Truth};
use crate::readers::SplitFiles;
use crate::readers::entries::{JsonFile, Labelled};
use crate::readers::people::{People, PersonRow};

#[derive(Deserialize)]
struct Entry<'a> {
    image: String,
    question: String,
    #[serde(borrow)]
    answers: Option<Vec<PersonRow<'a>>>,
    answer_type: Option<String>,
}

/// One item per image, which has one question.
pub(super) fn read(split: &SplitFiles<'_>) -> Result<Vec<Item>, EvalError> {
    let path = split.path("annotations")?;
    let mut items = Vec::new();
    let (mut labelled, mut people) = (Labelled::default(), People::default());
    let file = JsonFile::at(&path);
    file.each(&[], "entry", |entry: Entry<'_>| {
        labelled.note(&entry.image, entry.answers.is_some());
        let truth = match entry.answers {
            Some(answers) if answers.is_empty() => {
                return Err("has no answer in `answers`".to_owned());
            }
            Some(answers) => Truth::Answers(people.answers(&answers)),
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
