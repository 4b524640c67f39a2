//! What people answered, as the files of VQA and `VizWiz` have it, with each text kept once: ten people answer two hundred
//! thousand questions with some ten thousand texts.

use std::borrow::Cow;
use std::sync::Arc;

use rustc_hash::FxHashSet;
use serde::Deserialize;

use crate::metrics::vqa::HumanAnswer;

/// A person's answer in a file.
#[derive(Deserialize)]
pub(crate) struct PersonRow<'a> {
    #[serde(borrow)]
    pub(crate) answer: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) answer_confidence: Option<Cow<'a, str>>,
    #[serde(default)]
    pub(crate) answer_id: Option<i64>,
}

/// The texts of all answers so far.
#[derive(Default)]
pub(super) struct People {
    texts: FxHashSet<Arc<str>>,
}

impl People {
    /// The answers to a question, in their order.
    pub(super) fn answers(&mut self, rows: &[PersonRow<'_>]) -> Vec<HumanAnswer> {
        let answer = |row: &PersonRow<'_>| HumanAnswer {
            answer: self.text(&row.answer),
            answer_confidence: row.answer_confidence.as_deref().map(|text| self.text(text)),
            answer_id: row.answer_id,
        };
        rows.iter().map(answer).collect()
    }

    fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        let text: Arc<str> = text.into();
        self.texts.insert(text.clone());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_kept_once_and_answers_stay_as_they_are() {
        let text = r#"[{"answer": "a \"dog\"", "answer_confidence": "yes", "answer_id": 1}, {"answer": "yes"}]"#;
        let rows: Vec<PersonRow<'_>> = serde_json::from_str(text).unwrap();
        let answers = People::default().answers(&rows);
        let first = HumanAnswer {
            answer: "a \"dog\"".into(),
            answer_confidence: Some("yes".into()),
            answer_id: Some(1),
        };
        assert_eq!(answers, [first, HumanAnswer::plain("yes")]);
        let confidence = answers[0].answer_confidence.as_ref().unwrap();
        assert!(Arc::ptr_eq(confidence, &answers[1].answer));
    }
}
