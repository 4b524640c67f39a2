//! Why a run stops, and with which exit code.

use std::error::Error as _;
use std::path::{Path, PathBuf};

use flamingo_dataset::CorpusError;
use flamingo_model::ModelError;

use crate::bench_memory::TooLittle;

/// Why a run could not start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A file or folder could not be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried: `read`, `write`, `rename`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The config cannot be read.
    #[error("cannot read the config {}", path.display())]
    ConfigRead {
        /// The config file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The config is not TOML, or has a key or a type that it must not have.
    #[error("{}{}: {message}", path.display(), place(*line))]
    ConfigParse {
        /// The config file.
        path: PathBuf,
        /// Where in the file, from 1, if known.
        line: Option<usize>,
        /// What the parser expected.
        message: String,
    },
    /// A `--set` is not `key.path=value`, or its key cannot be set.
    #[error("--set {given}: {message}")]
    Override {
        /// The argument.
        given: String,
        /// What was expected.
        message: String,
    },
    /// A value of the config cannot work.
    #[error("{}: `{key}` is {value}, expected {expected}", path.display())]
    ConfigValue {
        /// The config file.
        path: PathBuf,
        /// Its key.
        key: String,
        /// The value.
        value: String,
        /// What would work.
        expected: String,
    },
    /// The run folder is there already.
    #[error("{} exists{}", path.display(), if path.is_dir() { "; --resume continues it" } else { ", expected a folder, or nothing yet" })]
    RunExists {
        /// The folder.
        path: PathBuf,
    },
    /// The output of an export is there already.
    #[error("{} exists; --force replaces it", path.display())]
    OutExists {
        /// The file or folder.
        path: PathBuf,
    },
    /// The averages were looked at in place of the weights, which could not be put back.
    #[error(
        "the weights could not be put back in place of their averages; nothing of the model is kept, and \
         --resume goes on from the last checkpoint"
    )]
    WeightsLost {
        /// Why.
        source: Box<ModelError>,
    },
    /// The output of an export would be written over a run.
    #[error("{} is a run: an export is written into a folder of its own", path.display())]
    OutIsRun {
        /// The run folder.
        path: PathBuf,
    },
    /// The name of an output does not say what it is to be.
    #[error("{} does not end in {expected}", path.display())]
    OutName {
        /// The file.
        path: PathBuf,
        /// What it may end in.
        expected: &'static str,
    },
    /// A preset has no weights that could be written.
    #[error("a preset has no weights: give --dry-run, or --model or --from-open-flamingo")]
    NoModel,
    /// Only a whole Flamingo has the form that was asked for.
    #[error(
        "{what} is no Flamingo: it is written with --format hugging-face alone, and has no table"
    )]
    NoForm {
        /// The model.
        what: &'static str,
    },
    /// The folder of a grid is that of a run.
    #[error("{} is a run, not the folder of a grid", path.display())]
    NotAGrid {
        /// The folder.
        path: PathBuf,
    },
    /// Points of a grid failed; the others were run.
    #[error("{failed} of {points} points failed, see {}", path.display())]
    GridFailed {
        /// Those that failed.
        failed: usize,
        /// All of them.
        points: usize,
        /// The summary, with their errors.
        path: PathBuf,
    },
    /// The folder that is to be continued holds something else than a run.
    #[error("{} is neither a run, for it has no config.toml, nor an empty folder", path.display())]
    NotARun {
        /// The folder.
        path: PathBuf,
    },
    /// The run has not made a step that is to be made again.
    #[error("{}: metrics.jsonl has no step {step}; its last one is {last}", run.display())]
    NoStep {
        /// The run folder.
        run: PathBuf,
        /// The step that was asked for.
        step: u64,
        /// The last step that is there.
        last: u64,
    },
    /// The run is under way.
    #[error("another process trains in {}", path.display())]
    InUse {
        /// The run folder.
        path: PathBuf,
    },
    /// The run was started with another config.
    #[error(
        "{}: `{key}` is {now}, but the run in {} was started with {was}",
        config.display(),
        run.display()
    )]
    ConfigChanged {
        /// The config file that was given.
        config: PathBuf,
        /// The run folder.
        run: PathBuf,
        /// The first key that differs.
        key: String,
        /// Its value in the run.
        was: String,
        /// Its value now.
        now: String,
    },
    /// Something that the run was built from is not what it was at the checkpoint.
    #[error("{}: {what} is {now}, but was {was} at the checkpoint", path.display())]
    NotTheSame {
        /// The checkpoint.
        path: PathBuf,
        /// What differs.
        what: String,
        /// Its digest or name at the checkpoint.
        was: String,
        /// Its digest or name now.
        now: String,
    },
    /// A file of a run does not have the form that it was written with.
    #[error("{} is not {expected}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A line of a run's metrics is not one.
    #[error(
        "{} line {line} is not the metrics of a step; without this line the run can be read and goes on",
        path.display()
    )]
    BrokenLog {
        /// The file.
        path: PathBuf,
        /// Of the file, from 1.
        line: u64,
        /// What the parser says of the line.
        source: serde_json::Error,
    },
    /// The text file `latest` names no checkpoint.
    #[error("{} names `{found}`, expected `step-N`", path.display())]
    Latest {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// The text file `latest` names a checkpoint that is not there.
    #[error(
        "{} names `{found}`, but there is no {}; checkpoints that are there, of which it may name one: {others}",
        path.display(),
        folder.display()
    )]
    NoCheckpoint {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// Where that would be.
        folder: PathBuf,
        /// The checkpoints that are there.
        others: String,
    },
    /// A corpus cannot be read.
    #[error("dataset `{name}`")]
    Corpus {
        /// The dataset's name in the config.
        name: String,
        /// What the corpus says.
        source: Box<CorpusError>,
    },
    /// A corpus is of a kind that the stage does not learn from.
    #[error("dataset `{name}`: {corpus} is a corpus of kind {found}, expected {expected}")]
    CorpusKind {
        /// The dataset's name in the config.
        name: String,
        /// Where the corpus is.
        corpus: String,
        /// Its kind.
        found: String,
        /// What the stage learns from.
        expected: &'static str,
    },
    /// The datasets cannot be mixed or read on.
    #[error("cannot read the datasets")]
    Loader(#[source] Box<CorpusError>),
    /// The tokenizer cannot be trained, read or written.
    #[error("cannot {action} the tokenizer")]
    Tokenizer {
        /// What was tried: `train`, `read`, `write`.
        action: &'static str,
        /// What the tokenizer says.
        source: Box<CorpusError>,
    },
    /// The model cannot be built, run or saved.
    #[error("cannot {action} the model")]
    Model {
        /// What was tried: `build`, `load`, `run`, `save`, `export`.
        action: &'static str,
        /// What the model says.
        source: ModelError,
    },
    /// A GPU has no room to train a model.
    #[error("the GPU has no room for this model: {advice}")]
    WeightsMemory {
        /// What can be done.
        advice: String,
        /// What takes how much.
        source: Box<ModelError>,
    },
    /// The device cannot be used.
    #[error(transparent)]
    Device(ModelError),
    /// A caption is cut off before its first token.
    #[error("dataset `{name}` row {row}: no token of the caption is left, raise `tokens`")]
    NoCaption {
        /// The dataset's name in the config.
        name: String,
        /// The row of its corpus.
        row: u64,
    },
    /// A step went wrong. Nothing of it is kept.
    #[error("step {step}: {found} (dataset rows: {rows}); the last checkpoint stands")]
    Trouble {
        /// The update that was being made, from 1.
        step: u64,
        /// What was found.
        found: String,
        /// The rows that the step was computed from.
        rows: String,
    },
    /// The memory of the device does not suffice for a step. Nothing of it is kept.
    #[error(
        "step {step} does not fit into memory; the last checkpoint, if there is one, stands: {less_memory}"
    )]
    Memory {
        /// The update that was being made, from 1.
        step: u64,
        /// What can be done.
        less_memory: String,
        /// What the device says.
        source: Box<ModelError>,
    },
    /// The memory of the device does not suffice for a validation.
    #[error(
        "the validation of `{dataset}` after step {step} does not fit into memory; the last checkpoint, if \
         there is one, stands: {less_memory}"
    )]
    ValidationMemory {
        /// Updates done.
        step: u64,
        /// The dataset of `[validation]`.
        dataset: String,
        /// What can be done.
        less_memory: String,
        /// What the device says.
        source: Box<ModelError>,
    },
    /// The user stopped the run.
    #[error("interrupted after step {step}, at a checkpoint; --resume goes on from there")]
    Interrupted {
        /// Updates done.
        step: u64,
    },
    /// The disk has no room for a checkpoint. Nothing of it is written.
    #[error(
        "{}: {free} bytes free on its disk, but a checkpoint takes {needed}; the last checkpoint, if there \
         is one, stands",
        folder.display()
    )]
    NoRoom {
        /// The run folder.
        folder: PathBuf,
        /// Bytes of a checkpoint.
        needed: u64,
        /// Bytes that may be written.
        free: u64,
    },
    /// The memory of the machine does not suffice for a benchmark. Nothing of it was taken.
    #[error(transparent)]
    BenchMemory(Box<TooLittle>),
    /// The system has no thread left.
    #[error("cannot start the thread that writes checkpoints")]
    Thread(#[source] std::io::Error),
    /// An evaluation failed, and the run is to stop then.
    #[error("no few-shot score of `{task}`, step {step}: {failure}; the checkpoint stands")]
    FewShot {
        /// The task.
        task: String,
        /// The step of the checkpoint.
        step: u64,
        /// What happened.
        failure: String,
    },
    /// The system does not say where this program is.
    #[error("cannot find this program, beside which flamingo-eval should be")]
    OwnProgram(#[source] std::io::Error),
    /// A variable of the environment is not what a launcher would set.
    #[error("the environment's {name} is `{value}`, expected {expected}")]
    Launch {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        expected: String,
    },
    /// The program was built without what ranks talk through.
    #[error("{count} ranks need a build with `--features {feature}`")]
    NoTransport {
        /// How many were started.
        count: usize,
        /// The feature of this crate.
        feature: &'static str,
    },
    /// Ranks on CPUs were started by who does not know MPI.
    #[error(
        "{count} ranks on CPUs are to be started by mpirun or srun; torchrun's take `--device cuda`"
    )]
    NoMpiLauncher {
        /// How many were started.
        count: usize,
    },
    /// Nobody says where the first rank is.
    #[error("the environment lacks MASTER_ADDR and MASTER_PORT: where the first rank can be asked")]
    NoMaster,
    /// MPI is in use already.
    #[error("MPI was begun twice in one process")]
    MpiTwice,
    /// MPI and the launcher do not agree.
    #[error(
        "the environment tells of {launched} ranks and MPI of {mpi}: start them with mpirun, or with srun and \
         its --mpi, of the MPI that the program was built with"
    )]
    MpiDiffers {
        /// Ranks that MPI knows.
        mpi: usize,
        /// Ranks that the environment tells of.
        launched: usize,
    },
    /// Ranks do not agree in what must be the same on all of them.
    #[error("{what} of rank {ranks} is not that of rank 0")]
    RanksDiffer {
        /// What differs.
        what: String,
        /// The ranks that differ from the first.
        ranks: String,
    },
    /// Another rank cannot be reached, or does not speak as this one.
    #[error("cannot {action} other ranks")]
    Ranks {
        /// What was tried: `reach`, `read`.
        action: &'static str,
        /// What failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A signal ends the run before a validation is through.
    #[error("a signal came while rows that are not learned from were waited for")]
    ValidationCut,
    /// The system does not let the process hear signals.
    #[error("cannot listen to signals")]
    Signals(#[source] std::io::Error),
    /// A fresh Flamingo model differs from its language model although its gates are closed.
    #[error("with gates at 0 the loss is {flamingo}, but the language model's is {language}")]
    GatesLeak {
        /// Loss with the images.
        flamingo: f32,
        /// Loss of the language model alone.
        language: f32,
    },
    /// A weight that must not change did.
    #[error("frozen weights changed: their digest is {now}, but was {was} at the start")]
    FrozenChanged {
        /// Digest at the start.
        was: String,
        /// Digest now.
        now: String,
    },
}

fn place(line: Option<usize>) -> String {
    line.map(|line| format!(" line {line}")).unwrap_or_default()
}

impl TrainError {
    /// 2 where the command line or the config is at fault, 1 otherwise.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::ConfigRead { .. }
            | Self::ConfigParse { .. }
            | Self::Override { .. }
            | Self::ConfigValue { .. }
            | Self::RunExists { .. }
            | Self::OutExists { .. }
            | Self::OutIsRun { .. }
            | Self::OutName { .. }
            | Self::NoModel
            | Self::NoForm { .. }
            | Self::NotAGrid { .. }
            | Self::NotARun { .. }
            | Self::NoStep { .. }
            | Self::ConfigChanged { .. }
            | Self::Launch { .. }
            | Self::NoTransport { .. }
            | Self::NoMpiLauncher { .. }
            | Self::NoMaster
            | Self::MpiDiffers { .. }
            | Self::Device(_) => 2,
            // As of a process that the signal ended: a script does not go on.
            Self::Interrupted { .. } => 130,
            _ => 1,
        }
    }

    /// The error and its causes in one line, separated by colons.
    pub fn one_line(&self) -> String {
        let mut line = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            line = format!("{line}: {error}");
            cause = error.source();
        }
        line.replace('\n', " ")
    }

    /// Whether other runs may do better: neither is the config at fault nor does the user stop.
    pub(crate) fn is_of_one_run(&self) -> bool {
        self.exit_code() == 1
    }

    /// This error, or what can be done about it where it is that a step found no memory.
    pub(crate) fn in_step(self, step: u64, less_memory: &str) -> Self {
        match self {
            Self::Model { source, .. } if source.is_out_of_memory() => {
                let (less_memory, source) = (less_memory.to_owned(), Box::new(source));
                Self::Memory { step, less_memory, source }
            }
            other => other,
        }
    }

    /// For `map_err` on file operations.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::File { action, path, source }
    }

    /// For `map_err` on tokenizer calls.
    pub(crate) fn tokenizer(action: &'static str) -> impl FnOnce(CorpusError) -> Self {
        move |source| Self::Tokenizer { action, source: Box::new(source) }
    }

    /// For `map_err` on the loader.
    pub(crate) fn loader(source: CorpusError) -> Self {
        Self::Loader(Box::new(source))
    }

    /// For `map_err` on what other ranks are asked.
    pub(crate) fn ranks<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        action: &'static str,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Ranks { action, source: source.into() }
    }

    /// For `map_err` on model calls.
    pub(crate) fn model(action: &'static str) -> impl FnOnce(ModelError) -> Self {
        move |source| Self::Model { action, source }
    }
}
