//! One thing that a benchmark asks: a picture or film, a question, and what people said.
//!
//! Readers make items of official files; everything after them - prompts, shots, metrics, reports - sees
//! items alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::medium::Medium;
use crate::metrics::vqa::HumanAnswer;

/// A query, or an example to be shown with one.
#[derive(Debug, Clone)]
pub struct Item {
    /// The id that official prediction files name it by: of a question, image or clip. No two items of a
    /// split share one.
    pub id: String,
    /// Its image or video: items of one medium are drawn together in intervals, and no query is shown an
    /// example of its own.
    pub medium_id: String,
    /// Where the picture or film lies; none in a file of annotations that is scored without media.
    pub medium: Option<Medium>,
    /// What a template's marks stand for, by name: `question`, `text`, `history`.
    pub fields: BTreeMap<&'static str, String>,
    /// What people said.
    pub truth: Truth,
    /// The answers to choose from, of closed tasks; shared by items that have the same.
    pub candidates: Arc<[String]>,
    /// Its kind, such as `question_type` or a sub-dataset: scores are given for each, too, and shots of tasks
    /// that say so are of the query's own.
    pub category: Option<String>,
}

/// What people said of an item.
#[derive(Debug, Clone, PartialEq)]
pub enum Truth {
    /// Descriptions, at least one.
    Captions(Vec<String>),
    /// Answers of one or more people, at least one.
    Answers(Vec<HumanAnswer>),
    /// One of the candidates is right.
    Candidate {
        /// Its number among the candidates, from 0.
        right: usize,
        /// How far each candidate is right, 0 to 1, where people said so (`VisDial`).
        relevance: Option<Vec<f64>>,
    },
    /// An action class with how far the clip shows it (`RareAct`).
    Action {
        /// The class that the clip was judged for, among the candidates, from 0.
        class: usize,
        /// The verdict, 0 to 4, as in `rareact.csv`.
        annotation: u8,
    },
    /// The benchmark keeps it back; answers go to its server.
    Hidden,
}

/// Which of several human answers an example is shown with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShownAnswer {
    /// The first.
    #[default]
    First,
    /// The one that most people gave; of equals, the one that came first.
    MostCommon,
}

impl Item {
    /// The answer that the item is shown with as an example; none where it is hidden, or the clip does not
    /// show the action.
    pub fn shown_answer(&self, rule: ShownAnswer) -> Option<&str> {
        match &self.truth {
            Truth::Captions(captions) => captions.first().map(String::as_str),
            Truth::Answers(answers) => match rule {
                ShownAnswer::First => answers.first().map(|it| &*it.answer),
                ShownAnswer::MostCommon => most_common(answers),
            },
            Truth::Candidate { right, .. } => self.candidates.get(*right).map(String::as_str),
            Truth::Action { class, annotation: 1 } => {
                self.candidates.get(*class).map(String::as_str)
            }
            Truth::Action { .. } | Truth::Hidden => None,
        }
    }

    /// Every right answer, for records and reports.
    pub fn targets(&self) -> Vec<String> {
        match &self.truth {
            Truth::Captions(captions) => captions.clone(),
            Truth::Answers(answers) => answers.iter().map(|it| it.answer.to_string()).collect(),
            Truth::Candidate { .. } | Truth::Action { .. } | Truth::Hidden => {
                self.shown_answer(ShownAnswer::First).map(str::to_owned).into_iter().collect()
            }
        }
    }
}

fn most_common(answers: &[HumanAnswer]) -> Option<&str> {
    let votes = |answer: &str| answers.iter().filter(|other| *other.answer == *answer).count();
    let mut best: Option<(&str, usize)> = None;
    for it in answers {
        let n = votes(&it.answer);
        if best.is_none_or(|(_, most)| n > most) {
            best = Some((&it.answer, n));
        }
    }
    best.map(|(answer, _)| answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(answers: &[&str]) -> Item {
        let answer = |answer: &&str| HumanAnswer {
            answer: (*answer).into(),
            answer_confidence: None,
            answer_id: None,
        };
        Item {
            id: "1".into(),
            medium_id: "1".into(),
            medium: None,
            fields: BTreeMap::new(),
            truth: Truth::Answers(answers.iter().map(answer).collect()),
            candidates: Arc::default(),
            category: None,
        }
    }

    #[test]
    fn most_people_decide_and_the_first_of_equals() {
        let check = |answers: &[&str], expected: Option<&str>| {
            assert_eq!(item(answers).shown_answer(ShownAnswer::MostCommon), expected);
        };
        check(&["red", "blue", "blue"], Some("blue"));
        check(&["red", "blue", "blue", "red"], Some("red"));
        check(&[], None);
        assert_eq!(item(&["red", "blue", "blue"]).shown_answer(ShownAnswer::First), Some("red"));
    }

    #[test]
    fn what_is_kept_back_or_not_seen_is_no_example() {
        let candidates: Arc<[String]> = ["cut an egg", "boil a phone"].map(str::to_owned).into();
        let of = |truth| Item { truth, candidates: candidates.clone(), ..item(&[]) };
        let shown = |truth| of(truth).shown_answer(ShownAnswer::First).map(str::to_owned);
        assert_eq!(shown(Truth::Hidden), None);
        assert_eq!(shown(Truth::Action { class: 1, annotation: 2 }), None);
        assert_eq!(shown(Truth::Action { class: 1, annotation: 1 }), Some("boil a phone".into()));
        let right = Truth::Candidate { right: 0, relevance: None };
        assert_eq!(shown(right), Some("cut an egg".into()));
    }
}
