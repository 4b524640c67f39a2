//! Why an evaluation could not be done.

use std::path::PathBuf;

use flamingo_dataset::{CorpusError, CorpusKind};
use flamingo_model::ModelError;

use crate::evaluation::TooLong;

/// Every failure of this crate. Each message names the file, row or key that it is about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The folder given as model lacks a part of one.
    #[error(
        "{} is no run folder of flamingo-train, exported model or OpenFlamingo: {problem}", path.display()
    )]
    NotARun {
        /// The folder as given.
        path: PathBuf,
        /// What was looked for.
        problem: String,
    },
    /// The folder given as model names no checkpoint.
    #[error(transparent)]
    NoModel(ModelError),
    /// The device cannot be used.
    #[error(transparent)]
    Device(ModelError),
    /// A file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// `read`, `write`, `create` or `shorten`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A TOML file has wrong syntax, an unknown key or a value of the wrong type.
    #[error("{file}: {problem}")]
    Toml {
        /// The file, with the line where it is known.
        file: String,
        /// What the parser expected.
        problem: String,
    },
    /// A file of an earlier evaluation is not what this program writes.
    #[error("{} line {line} is not a sample of an evaluation", path.display())]
    Sample {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Where the JSON departs from the expectation.
        source: serde_json::Error,
    },
    /// A file of annotations or predictions is not what was expected.
    #[error("{}: {problem}", path.display())]
    Annotations {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no such benchmark.
    #[error(
        "no task `{name}`: `flamingo-eval tasks` lists them; one of your own is given by the path of its .toml"
    )]
    NoTask {
        /// The name as given.
        name: String,
    },
    /// A benchmark has no such split.
    #[error("task `{task}` has no split `{split}`, expected one of {}", splits.join(", "))]
    NoSplit {
        /// The task.
        task: String,
        /// The split.
        split: String,
        /// Its splits.
        splits: Vec<String>,
    },
    /// A split of a task file names no file for something that its reader needs.
    #[error("task `{task}`: a split has no `{role}`, which its reader needs")]
    NoFile {
        /// The task.
        task: String,
        /// What the file is for.
        role: &'static str,
    },
    /// A template names a field that an item lacks.
    #[error("{template} has {{{field}}}, which item `{item}` has not, only {fields}")]
    NoField {
        /// The template with its task.
        template: String,
        /// The field.
        field: String,
        /// Id of an item without it.
        item: String,
        /// The fields that it has.
        fields: String,
    },
    /// A template or another choice by name is not there.
    #[error("task `{task}` has no template `{template}`, expected one of {}", templates.join(", "))]
    NoTemplate {
        /// The task.
        task: String,
        /// The template.
        template: String,
        /// Its templates.
        templates: Vec<String>,
    },
    /// A closed task has an item without answers to choose from.
    #[error("task `{task}`: item `{item}` has no two answers to choose from")]
    NoCandidates {
        /// The task.
        task: String,
        /// Id of the item.
        item: String,
    },
    /// A picture or film cannot be used.
    #[error("{name}: {problem}")]
    Medium {
        /// File, folder or key.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// What was asked for and the model or task do not go together.
    #[error("{what}: {problem}")]
    Unfit {
        /// The option or key.
        what: String,
        /// Why not.
        problem: String,
    },
    /// The `WordNet` database is not where it was looked for.
    #[error(
        "no WordNet 3.0 database at {}: install the Debian package wordnet-base, or name the folder of its \
         files by --wordnet or FLAMINGO_WORDNET",
        path.display()
    )]
    NoWordNet {
        /// The folder.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file of the `WordNet` database is not what its format says.
    #[error("{} is no file of WordNet 3.0: {problem}", path.display())]
    WordNet {
        /// The file.
        path: PathBuf,
        /// Where it departs from the format.
        problem: String,
    },
    /// No folder of METEOR 1.5 is named.
    #[error(
        "METEOR needs the data of METEOR 1.5: name the folder with meteor-1.5.jar and data/paraphrase-en.gz by \
         --meteor-data or METEOR_DATA, such as `pycocoevalcap/meteor` of the Python package pycocoevalcap"
    )]
    NoMeteorFolder,
    /// A file of METEOR 1.5 is not where it was looked for.
    #[error(
        "no file of METEOR 1.5 at {}: it comes with the Python package pycocoevalcap, in its folder `meteor`, or \
         with METEOR 1.5 of its authors; name the folder by --meteor-data or METEOR_DATA",
        path.display()
    )]
    NoMeteor {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file of METEOR 1.5 is not what it should be.
    #[error("{} is no file of METEOR 1.5: {problem}", path.display())]
    Meteor {
        /// The file, or one in the program's archive.
        path: PathBuf,
        /// Where it departs from the format.
        problem: String,
    },
    /// A corpus, image or tokenizer could not be read.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// The model could not be loaded or run.
    #[error("model {}", path.display())]
    Model {
        /// Its checkpoint folder.
        path: PathBuf,
        /// What the model says.
        source: ModelError,
    },
    /// A server says that prompts are too long for its model.
    #[error("{} of {} prompts do not fit the model", .0.n_queries, .0.of)]
    OutOfContext(TooLong),
    /// A server does not answer, or refuses a request.
    #[error("{address} at item `{item}`: {problem}")]
    Endpoint {
        /// Where it was asked.
        address: String,
        /// Id of the item that it was asked about.
        item: String,
        /// What it did.
        problem: String,
    },
    /// The image of an example cannot be decoded.
    #[error("image of `{key}`")]
    Image {
        /// Key of the example.
        key: String,
        /// What is wrong with it.
        source: Box<CorpusError>,
    },
    /// The model gives a likelihood that is no number, as diverged weights do.
    #[error("model {} gives the log-likelihood {found} for `{text}`", path.display())]
    NotFinite {
        /// Its checkpoint folder.
        path: PathBuf,
        /// What it gives.
        found: f64,
        /// The answer.
        text: String,
    },
    /// An annotation corpus holds rows of another kind.
    #[error("{location} holds {found} rows, expected image_text or video_text")]
    Kind {
        /// The corpus.
        location: String,
        /// Kind of its rows.
        found: CorpusKind,
    },
    /// An annotation corpus has no rows.
    #[error("{location} has no rows")]
    Empty {
        /// The corpus.
        location: String,
    },
    /// Two queries have the same key, so their samples could not be told apart.
    #[error("{location} has two rows with key `{key}`")]
    DuplicateKey {
        /// The corpus.
        location: String,
        /// The key.
        key: String,
    },
    /// A setting of `task.toml` is out of range.
    #[error("{file}: `{key}` is {found}, expected {expected}")]
    Setting {
        /// The file.
        file: String,
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A task that is asked without examples only was to show some.
    #[error("task `{task}` has no examples to show: ask it by itself, with `--shots 0`")]
    NoExamples {
        /// The task.
        task: String,
    },
    /// There are fewer support examples than shots.
    #[error(
        "query `{query}` has {available} support examples to draw from, {shots} shots need more"
    )]
    FewExamples {
        /// Key of the query.
        query: String,
        /// Support examples that may be shown with it.
        available: usize,
        /// Shots asked for.
        shots: usize,
    },
    /// The output folder holds samples made with other settings.
    #[error(
        "{} holds samples made with `{key}` {was}, now {now}; choose another --out or \
         remove the folder",
        path.display()
    )]
    OtherSettings {
        /// The settings file of the earlier evaluation.
        path: PathBuf,
        /// The first setting that differs.
        key: String,
        /// Its value then.
        was: String,
        /// Its value now.
        now: String,
    },
}

impl EvalError {
    /// For `map_err`: a failed operation on a file.
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    /// For `map_err`: a failed operation of the model in `path`.
    pub(crate) fn model(path: impl Into<PathBuf>) -> impl FnOnce(ModelError) -> Self {
        let path = path.into();
        move |source| Self::Model { path, source }
    }

    /// A TOML file that cannot be taken: names the line and what was expected.
    pub(crate) fn toml(file: &str, text: &str, error: &toml::de::Error) -> Self {
        let line =
            error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        let file = line.map_or_else(|| file.to_owned(), |line| format!("{file} line {line}"));
        Self::Toml { file, problem: error.message().replace('\n', ", ") }
    }

    /// Whether the user's settings are at fault, rather than the input or the machine.
    pub fn is_bad_config(&self) -> bool {
        matches!(
            self,
            Self::Toml { .. }
                | Self::Setting { .. }
                | Self::NoExamples { .. }
                | Self::FewExamples { .. }
                | Self::NoTask { .. }
                | Self::NoSplit { .. }
                | Self::NoFile { .. }
                | Self::NoField { .. }
                | Self::NoTemplate { .. }
                | Self::NoCandidates { .. }
                | Self::Unfit { .. }
                | Self::OtherSettings { .. }
                | Self::Device(_)
        )
    }
}
