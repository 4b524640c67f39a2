//! What differs between benchmarks. Everything else - choosing shots, laying out prompts, resuming,
//! intervals, reports - is the same for all.

use flamingo_dataset::Tokenizer;

use crate::annotations::{Annotations, Example};
use crate::caption::Caption;
use crate::error::EvalError;
use crate::label::Label;
use crate::prompt::{Prompt, Template};
use crate::samples::Sample;
use crate::subject::Subject;

/// What a query is shown when no shots are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroShot {
    /// Some shots without their images, which tell the format of the answer and nothing of the
    /// image (paper, appendix A.2).
    TextShots(usize),
    /// Nothing: the answers to choose from tell the format.
    Bare,
}

/// One image to be asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Index of its first row in the query corpus.
    pub example: usize,
    /// Right answers, at least one.
    pub targets: Vec<String>,
}

/// What the model made of a query.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Its answer.
    pub prediction: String,
    /// Log-likelihoods of the candidates, in nats; of closed tasks.
    pub log_likelihoods: Vec<f64>,
}

/// A benchmark's own rules.
pub trait Task {
    /// Its name on the command line and in results.
    fn name(&self) -> &'static str;

    /// Name of its score; higher is better.
    fn metric(&self) -> &'static str;

    /// What stands between image and answer.
    fn template(&self) -> &Template;

    /// What is shown at 0 shots.
    fn zero_shot(&self) -> ZeroShot;

    /// The queries, in the order of the corpus.
    fn queries(&self, annotations: &Annotations) -> Vec<Query>;

    /// Whether `shot` may be shown to `query`.
    fn may_show(&self, query: &Example, shot: &Example) -> bool;

    /// Most tokens that come after a prompt.
    fn answer_tokens_max(&self, tokenizer: &Tokenizer) -> usize;

    /// Answers prompts, one answer each.
    ///
    /// # Errors
    /// When an image cannot be read or the model fails.
    fn answer(&self, subject: &Subject<'_>, prompts: &[Prompt]) -> Result<Vec<Answer>, EvalError>;

    /// Score of each sample; the score of the task is their mean.
    fn scores(&self, samples: &[&Sample]) -> Vec<f64>;

    /// Whether the controls of captioning apply.
    fn has_controls(&self) -> bool;
}

/// The tasks there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum TaskName {
    /// Describe the image in free text.
    Caption,
    /// Choose one of some candidates.
    Label,
}

impl TaskName {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Caption => "caption",
            Self::Label => "label",
        }
    }

    /// One line on what is asked and how it is scored.
    pub fn about(self) -> &'static str {
        match self {
            Self::Caption => {
                "describe the image: greedy text up to <EOC>, CIDEr-D; rows of one \
                 image are its references"
            }
            Self::Label => {
                "choose a candidate by log-likelihood, accuracy; shots have the `source` \
                 of the query"
            }
        }
    }

    /// The task on some annotations.
    ///
    /// # Errors
    /// When the annotations lack what the task needs.
    pub fn on(self, annotations: &Annotations) -> Result<Box<dyn Task>, EvalError> {
        Ok(match self {
            Self::Caption => Box::new(Caption::new(&annotations.config)),
            Self::Label => Box::new(Label::new(annotations)?),
        })
    }
}
