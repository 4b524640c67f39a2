//! iVQA (`test.csv`): `video_id`, `start`, `end`, `question`, and five people's answers `answer1` to `answer5` with
//! `conf1` to `conf5`.

use std::sync::Arc;

use serde::Deserialize;

use crate::error::EvalError;
use crate::item::{Item, Truth};
use crate::metrics::vqa::HumanAnswer;
use crate::readers::SplitFiles;
use crate::readers::entries::csv_rows;

#[derive(Deserialize)]
struct Row {
    video_id: String,
    start: String,
    end: String,
    question: String,
    answer1: String,
    answer2: String,
    answer3: String,
    answer4: String,
    answer5: String,
}

/// One item per row, named by its film and number, since the file has no ids: `Xw3_9qk-17`.
pub(super) fn read(split: &SplitFiles<'_>) -> Result<Vec<Item>, EvalError> {
    let mut items = Vec::new();
    csv_rows(&split.path("annotations")?, |number, row: Row| {
        let seconds =
            |text: &str| text.parse::<f64>().map_err(|_| format!("has `{text}` for a second"));
        let span = (seconds(&row.start)?, seconds(&row.end)?);
        let values = [("video_id", &*row.video_id), ("start", &row.start), ("end", &row.end)];
        let medium = split.film(&values, Some(span))?;
        let answers = [row.answer1, row.answer2, row.answer3, row.answer4, row.answer5];
        let answers = ivqa_answers(answers);
        if answers.is_empty() {
            return Err("has no answer".to_owned());
        }
        items.push(Item {
            id: ivqa_id(&row.video_id, number),
            medium_id: row.video_id,
            medium,
            fields: [("question", row.question)].into(),
            truth: Truth::Answers(answers.into_iter().map(HumanAnswer::plain).collect()),
            candidates: Arc::default(),
            category: None,
        });
        Ok(())
    })?;
    Ok(items)
}

/// The name of a question, by its film and the number of its row, from 0.
pub(crate) fn ivqa_id(video: &str, number: usize) -> String {
    format!("{video}-{number}")
}

/// What people answered: some cells are empty.
pub(crate) fn ivqa_answers(cells: impl IntoIterator<Item = String>) -> Vec<String> {
    cells.into_iter().filter(|answer| !answer.trim().is_empty()).collect()
}
