//! What every stage does between its config and the loop: corpora, tokenizer, optimizer, loader,
//! run folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use flamingo_dataset::{
    Corpus, CorpusError, CorpusKind, ImageConfig, Loader, MixtureMode, Row, Slot, Tokenizer,
    sha256_hex,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::checkpoint::Checkpoint;
use crate::config::{DataConfig, RunConfig, TokenizerConfig};
use crate::config_file::ConfigFile;
use crate::error::TrainError;
use crate::optimizer::AdamW;
use crate::overrides::Override;
use crate::run_folder::{RunFolder, Start};
use crate::trainer::{Run, Stage, train};

/// A command line, checked for form.
#[derive(Debug, Clone)]
pub struct Command {
    /// Config file.
    pub config: PathBuf,
    /// Folder that relative paths in the config start from; none is the working directory.
    pub root: Option<PathBuf>,
    /// Run folder.
    pub out: PathBuf,
    /// Whether the run folder may be there.
    pub start: Start,
    /// Changes to the config.
    pub overrides: Vec<Override>,
    /// Stop after this step although the config asks for more.
    pub stop_after: Option<u64>,
}

impl Command {
    /// Where a path of the config leads; URLs stay as they are.
    pub fn locate(&self, path: &str) -> String {
        match &self.root {
            Some(root) if !path.contains("://") => root.join(path).display().to_string(),
            _ => path.to_owned(),
        }
    }

    /// Reads the config.
    pub(crate) fn read_config<M: DeserializeOwned + Serialize>(
        &self,
    ) -> Result<ConfigFile<M>, TrainError> {
        ConfigFile::read(&self.config, &self.overrides)
    }

    /// Decides whether the run folder may be used.
    pub(crate) fn check_folder<M: DeserializeOwned + Serialize>(
        &self,
        file: &ConfigFile<M>,
    ) -> Result<RunFolder, TrainError> {
        RunFolder::check(&self.out, self.start, file)
    }
}

/// Opens the corpora of a config, in its order.
///
/// `expected` describes the kinds for which `fits` holds.
pub(crate) fn open_corpora(
    command: &Command,
    data: &[DataConfig],
    fits: impl Fn(CorpusKind) -> bool,
    expected: &'static str,
) -> Result<Vec<Corpus>, TrainError> {
    let open = |entry: &DataConfig| {
        let corpus =
            Corpus::open(&command.locate(&entry.corpus)).map_err(in_dataset(&entry.name))?;
        if fits(corpus.kind()) {
            return Ok(corpus);
        }
        Err(TrainError::CorpusKind {
            name: entry.name.clone(),
            corpus: corpus.location().to_owned(),
            found: corpus.kind().name().to_owned(),
            expected,
        })
    };
    data.iter().map(open).collect()
}

fn in_dataset(name: &str) -> impl FnOnce(CorpusError) -> TrainError {
    let name = name.to_owned();
    move |source| TrainError::Corpus { name, source: Box::new(source) }
}

/// The tokenizer of a stage that has its own: the run's, once it is under way, or as the config
/// says.
pub(crate) fn own_tokenizer(
    command: &Command,
    config: &TokenizerConfig,
    folder: &RunFolder,
    corpora: &[Corpus],
) -> Result<Tokenizer, TrainError> {
    if let Some(checkpoint) = &folder.checkpoint {
        return same_tokenizer(folder, checkpoint);
    }
    match config {
        TokenizerConfig::Path(path) => {
            read_tokenizer(Path::new(&command.locate(&path.to_string_lossy())))
        }
        TokenizerConfig::Train { vocabulary, rows_max } => {
            train_tokenizer(*vocabulary, *rows_max, corpora)
        }
    }
}

/// The tokenizer of a run under way, after comparing it with the checkpoint's: other tokens are
/// other rows.
pub(crate) fn same_tokenizer(
    folder: &RunFolder,
    checkpoint: &Checkpoint,
) -> Result<Tokenizer, TrainError> {
    let path = folder.tokenizer();
    let now = file_sha256(&path)?;
    let was = &checkpoint.state.tokenizer_sha256;
    checkpoint.require_same("the digest of tokenizer.json", was, &now)?;
    read_tokenizer(&path)
}

fn file_sha256(path: &Path) -> Result<String, TrainError> {
    Ok(sha256_hex(&std::fs::read(path).map_err(TrainError::file("read", path))?))
}

pub(crate) fn read_tokenizer(path: &Path) -> Result<Tokenizer, TrainError> {
    Tokenizer::load(path).map_err(TrainError::tokenizer("read"))
}

fn train_tokenizer(
    vocabulary: usize,
    rows_max: u64,
    corpora: &[Corpus],
) -> Result<Tokenizer, TrainError> {
    let mut failed = None;
    let rows = corpora.iter().flat_map(|corpus| corpus.scan().take(rows_max as usize));
    let rows = rows.map_while(|row| row.map_err(|error| failed = Some(error)).ok());
    let tokenizer = Tokenizer::train(rows.flat_map(texts), vocabulary);
    let result = failed.map_or(tokenizer, Err);
    result.map_err(TrainError::tokenizer("train"))
}

fn texts(row: Row) -> Vec<String> {
    match row {
        Row::Interleaved(document) => {
            let text = |slot| match slot {
                Slot::Text(text) => Some(text),
                Slot::Image { .. } => None,
            };
            document.slots.into_iter().filter_map(text).collect()
        }
        Row::ImageText(pair) => vec![pair.caption],
        Row::VideoText(clip) => vec![clip.caption],
    }
}

/// What a stage brings to [`launch`].
pub(crate) struct Prepared<'run, M> {
    pub(crate) command: &'run Command,
    pub(crate) file: &'run ConfigFile<M>,
    pub(crate) folder: RunFolder,
    pub(crate) corpora: &'run [Corpus],
    pub(crate) tokenizer: Tokenizer,
    pub(crate) image: &'run ImageConfig,
}

/// Completes the set-up, makes the run folder and trains.
pub(crate) fn launch<M>(prepared: Prepared<M>, stage: &mut dyn Stage) -> Result<(), TrainError> {
    let Prepared { command, file, mut folder, corpora, tokenizer, image } = prepared;
    let config = &file.config;
    let corpora_sha256 = same_corpora(config, &folder, corpora)?;
    let optimizer = optimizer(config, &folder, stage)?;
    let tokenizer = Arc::new(tokenizer);
    let loader = Loader::open(
        config.mixture_entries(image, |corpus| command.locate(corpus)),
        Arc::clone(&tokenizer),
        config.mixture,
        config.seed,
        folder.step(),
    )
    .map_err(TrainError::loader)?;

    folder.create()?;
    if folder.checkpoint.is_none() {
        tokenizer.save(folder.tokenizer()).map_err(TrainError::tokenizer("write"))?;
    }
    train(Run {
        folder: &folder,
        stage,
        loader,
        optimizer,
        schedule: config.schedule(),
        weights: weights(config),
        checkpoint_every: config.checkpoint_every,
        keep_last: config.keep_last,
        stop_after: command.stop_after.map_or(config.steps, |step| step.min(config.steps)),
        tokenizer_sha256: file_sha256(&folder.tokenizer())?,
        corpora_sha256,
    })
}

/// Lambda of each dataset, by its index in batches. Rows of all datasets in one batch are one
/// dataset without lambda.
fn weights<M>(config: &RunConfig<M>) -> Vec<f64> {
    match config.mixture {
        MixtureMode::Merged => vec![1.0],
        MixtureMode::Accumulate | MixtureMode::RoundRobin => {
            config.data.iter().map(|entry| entry.weight).collect()
        }
    }
}

/// Digests of the corpora, after comparing them with the checkpoint's: rows of another corpus are
/// other rows.
fn same_corpora<M>(
    config: &RunConfig<M>,
    folder: &RunFolder,
    corpora: &[Corpus],
) -> Result<Vec<String>, TrainError> {
    let now: Vec<String> = corpora.iter().map(|corpus| corpus.manifest().sha256()).collect();
    let Some(checkpoint) = &folder.checkpoint else { return Ok(now) };
    let both = checkpoint.state.corpora_sha256.iter().zip(&now);
    for (entry, (was, now)) in config.data.iter().zip(both) {
        let what = format!("the manifest's digest of dataset `{}`", entry.name);
        checkpoint.require_same(what, was, now)?;
    }
    Ok(now)
}

fn optimizer<M>(
    config: &RunConfig<M>,
    folder: &RunFolder,
    stage: &dyn Stage,
) -> Result<AdamW, TrainError> {
    let Some(checkpoint) = &folder.checkpoint else { return Ok(AdamW::new(&config.optimizer)) };
    let (tensors, path) = checkpoint.moments()?;
    AdamW::restore(&config.optimizer, &stage.model().params(), tensors, &path)
        .map_err(TrainError::model("load"))
}
