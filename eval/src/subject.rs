//! The model under test, whatever it is: weights of ours, a server, a file of answers.

use serde::{Deserialize, Serialize};

use crate::error::EvalError;
use crate::item::Item;
use crate::local_subject::LocalSubject;
use crate::prompt::Piece;
use crate::task_file::Decoding;

/// What is put to a model.
#[derive(Debug, Clone)]
pub struct Asked<'a> {
    /// The item that it is about.
    pub item: &'a Item,
    /// Examples and the question.
    pub pieces: Vec<Piece>,
    /// The texts that may follow, one per candidate; empty where the answer is to be written.
    pub answers: Vec<String>,
    /// How the answer comes about.
    pub decoding: Decoding,
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Writing<'a> {
    /// Most tokens.
    pub tokens_max: usize,
    /// Open continuations at a time, 1 for the likeliest token at each step. Paper: 3.
    pub beams: usize,
    /// A continuation's log-probability is divided by its length to this power.
    pub length_penalty: f32,
    /// What comes from where one of these begins is cut off afterwards, so it need not be written.
    pub stop: &'a [String],
}

/// What a model wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The text.
    pub text: String,
    /// How it ended, if not by itself.
    pub ending: Option<Ending>,
}

impl Said {
    /// A text that ended by itself.
    pub fn whole(text: impl Into<String>) -> Self {
        Self { text: text.into(), ending: None }
    }
}

/// How an answer ends that does not end by itself. The names are those of the chat interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// At the limit of its tokens.
    Length,
    /// Its server keeps it back, or the model refuses: there is none.
    ContentFilter,
    /// The prompt is longer than what the model holds: there is none. How long, where the server says so.
    OutOfContext(Option<OutOfContext>),
}

/// What a model makes of the candidates of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranked {
    /// A score for each; the highest is chosen.
    pub scores: Vec<f64>,
    /// What it said in place of a candidate, where it was asked for one and said something else.
    pub said: Option<String>,
    /// How what it said ended, if not by itself.
    pub ending: Option<Ending>,
}

impl Ranked {
    /// Of a model that scores each candidate.
    pub fn of(scores: Vec<f64>) -> Self {
        Self { scores, said: None, ending: None }
    }
}

/// Queries that are put to a model of ours at a time.
const BATCH: usize = 16;

/// A prompt with its answer that is longer than what a model holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutOfContext {
    /// Tokens of the prompt and its answer.
    pub needed: usize,
    /// Tokens that the model holds.
    pub context: usize,
}

/// What results say of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelCard {
    /// Folder, address or file.
    pub name: String,
    /// Digest of all that decides its answers, as far as that is known.
    pub sha256: String,
    /// Where it computes and in which number format, such as `CPU (f32)`.
    pub device: String,
}

/// A model on the media of one benchmark.
pub trait Subject {
    /// What it is.
    fn card(&self) -> ModelCard;

    /// Whether a prompt with its answer, written or chosen, is too long; none too where that is not known
    /// before it is asked.
    fn out_of_context(&self, asked: &Asked<'_>, tokens_max: usize) -> Option<OutOfContext>;

    /// Queries that are put to it at a time. The same for the same model, so that a resumed evaluation and one
    /// in parts repeat the same batches and thereby the same rounding.
    fn batch(&self) -> usize {
        BATCH
    }

    /// Queries in a row of which a part of an evaluation has all or none, as their rounding may depend on each
    /// other.
    fn together(&self) -> usize {
        self.batch()
    }

    /// Writes an answer to each prompt.
    ///
    /// # Errors
    /// When a picture cannot be read or the model fails.
    fn write(&self, asked: &[Asked<'_>], writing: Writing<'_>) -> Result<Vec<Said>, EvalError>;

    /// Scores the answers of each prompt; the highest is chosen.
    ///
    /// # Errors
    /// When a picture cannot be read, the model fails, or gives what is no number.
    fn rank(&self, asked: &[Asked<'_>], decoding: Decoding) -> Result<Vec<Ranked>, EvalError>;

    /// The same model with what only weights at hand can tell.
    fn local(&self) -> Option<&LocalSubject<'_>> {
        None
    }
}
