//! What metrics look at: of each image, question or clip what is known of it, and what a model says.

use std::borrow::Cow;

use serde_json::json;

use crate::metrics::mwap::Clip;
use crate::metrics::vqa::Person;

/// What is known of one image, question or clip.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Truth<'a> {
    Captions(Vec<Cow<'a, str>>),
    People(Vec<Person>),
    Texts(Vec<String>),
    Choice(i64),
    Label(bool),
    Relevance(Vec<f64>),
    Candidate(usize),
    Clip(Box<Clip>),
}

/// An image, question or clip with what is known of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Evidence<'a> {
    pub(crate) id: String,
    /// The image or video that it is of, where several may be of one.
    pub(crate) cluster: Option<String>,
    /// Type of the question, or nothing.
    pub(crate) kind: String,
    pub(crate) truth: Truth<'a>,
}

/// What a model says of one image, question or clip.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Prediction<'a> {
    Text(Cow<'a, str>),
    /// Texts, the best one first.
    Ranking(Vec<String>),
    Choice(i64),
    /// Of one yes, or of each candidate; more is better.
    Scores(Vec<f64>),
}

impl<'a> Prediction<'a> {
    /// A text, or the number of a choice as one.
    pub(crate) fn into_text(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Text(text) => Some(text),
            Self::Choice(choice) => Some(choice.to_string().into()),
            Self::Ranking(_) | Self::Scores(_) => None,
        }
    }

    /// As JSON, for messages.
    pub(crate) fn shown(&self) -> String {
        let value = match self {
            Self::Text(text) => json!(text),
            Self::Ranking(ranking) => json!(ranking),
            Self::Choice(choice) => json!(choice),
            Self::Scores(scores) => json!(scores),
        };
        value.to_string()
    }
}

impl Prediction<'_> {
    /// The text, or the best one; of what is no text, nothing.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Ranking(ranking) => ranking.first().map_or("", String::as_str),
            Self::Choice(_) | Self::Scores(_) => "",
        }
    }

    /// The scores; of what has none, nothing.
    pub(crate) fn scores(&self) -> &[f64] {
        match self {
            Self::Scores(scores) => scores,
            Self::Text(_) | Self::Ranking(_) | Self::Choice(_) => &[],
        }
    }
}
