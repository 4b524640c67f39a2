//! `NExT-QA`'s open-ended questions (`NExT-OE`, `test.csv`): `video`, `question`, `answer`, `qid` and `type`. The test
//! split has second answers in `add_reference_answer_test.json`: by film, then by question.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;

use crate::error::EvalError;
use crate::item::{Item, Truth};
use crate::metrics::vqa::HumanAnswer;
use crate::readers::SplitFiles;
use crate::readers::entries::{JsonFile, csv_rows, some_of};

#[derive(Deserialize)]
struct Row {
    video: String,
    question: String,
    answer: String,
    qid: String,
    #[serde(rename = "type")]
    kind: String,
}

/// One item per question, named by film and question: `4924794333_3`. Categories are the types: CH, CW, TN, TC, TP,
/// DL, DC, DB, DO.
pub(super) fn read(split: &SplitFiles<'_>) -> Result<Vec<Item>, EvalError> {
    let path = split.optional("references");
    let references = path.as_deref().map(JsonFile::read).transpose()?;
    let mut second: BTreeMap<String, BTreeMap<String, String>> =
        references.as_ref().map(JsonFile::whole).transpose()?.unwrap_or_default();
    let mut items = Vec::new();
    let mut seen = BTreeSet::new();
    let mut bare = Vec::new();
    csv_rows(&split.path("annotations")?, |_, row: Row| {
        let id = format!("{}_{}", row.video, row.qid);
        if !seen.insert(id.clone()) {
            return Err(format!("is the second of question {id}"));
        }
        let other = second.get_mut(&row.video).and_then(|answers| answers.remove(&row.qid));
        if other.is_none() && path.is_some() {
            bare.push(id.clone());
        }
        let answers = [row.answer].into_iter().chain(other).map(HumanAnswer::plain).collect();
        items.push(Item {
            medium: split.film(&[("video_id", &row.video)], None)?,
            medium_id: row.video,
            fields: [("question", row.question)].into(),
            truth: Truth::Answers(answers),
            candidates: Arc::default(),
            category: Some(row.kind),
            id,
        });
        Ok(())
    })?;
    let unknown = second
        .iter()
        .flat_map(|(video, answers)| answers.keys().map(move |qid| format!("{video}_{qid}")));
    let unknown: Vec<String> = unknown.collect();
    let Some(file) = references else { return Ok(items) };
    for (problem, ids) in [
        ("questions that are not listed", &unknown),
        ("listed questions without a second answer", &bare),
    ] {
        if !ids.is_empty() {
            return Err(file.wrong(format!("{} {problem}: {}", ids.len(), some_of(ids))));
        }
    }
    Ok(items)
}
