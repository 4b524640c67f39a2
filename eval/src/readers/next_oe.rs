//! `NExT-QA`'s open-ended questions (`NExT-OE`, `test.csv`): `video`, `question`, `answer`, `qid` and `type`. The test
//! split has second answers in `add_reference_answer_test.json`: by film, then by question.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;

use crate::error::EvalError;
use crate::ids::some_of;
use crate::item::{Item, Truth};
use crate::metrics::vqa::HumanAnswer;
use crate::readers::SplitFiles;
use crate::readers::entries::{JsonFile, csv_rows};

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
    let mut second = path.as_deref().map(SecondAnswers::read).transpose()?;
    let mut items = Vec::new();
    let mut seen = BTreeSet::new();
    csv_rows(&split.path("annotations")?, |_, row: Row| {
        let id = format!("{}_{}", row.video, row.qid);
        if !seen.insert(id.clone()) {
            return Err(format!("is the second of question {id}"));
        }
        let other = second.as_mut().and_then(|second| second.take(&row.video, &row.qid));
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
    second.map_or(Ok(()), |second| second.check())?;
    Ok(items)
}

/// Second right answers, which all questions of a split have or none.
pub(crate) struct SecondAnswers {
    file: JsonFile,
    /// By film, then by question.
    left: BTreeMap<String, BTreeMap<String, String>>,
    /// Questions without one.
    bare: Vec<String>,
}

impl SecondAnswers {
    pub(crate) fn read(path: &str) -> Result<Self, EvalError> {
        let file = JsonFile::at(path);
        let left = file.whole()?;
        Ok(Self { file, left, bare: Vec::new() })
    }

    /// That of a question.
    pub(crate) fn take(&mut self, video: &str, question: &str) -> Option<String> {
        let answer = self.left.get_mut(video).and_then(|answers| answers.remove(question));
        if answer.is_none() {
            self.bare.push(format!("{video}_{question}"));
        }
        answer
    }

    /// # Errors
    /// When there are answers to other questions than those that took one, or some got none.
    pub(crate) fn check(&self) -> Result<(), EvalError> {
        let unknown = self.left.iter().flat_map(|(video, answers)| {
            answers.keys().map(move |question| format!("{video}_{question}"))
        });
        let unknown: Vec<String> = unknown.collect();
        for (problem, ids) in [
            ("questions that are not listed", &unknown),
            ("listed questions without a second answer", &self.bare),
        ] {
            if !ids.is_empty() {
                let problem = format!("{} {problem}: {}", ids.len(), some_of(ids));
                return Err(self.file.wrong(problem));
            }
        }
        Ok(())
    }
}
