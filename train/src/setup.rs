//! What every stage does between its config and the loop: corpora, tokenizer, optimizer, loader,
//! run folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use flamingo_dataset::{
    Corpus, CorpusError, CorpusKind, ImageConfig, Loader, Mixture, MixtureEntry, MixtureMode, Rank,
    Row, Slot, Tokenizer, sha256_hex,
};
use flamingo_model::{Device, Trainable};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::accounting::Accounting;
use crate::checkpoint::{Checkpoint, State};
use crate::collective::Collective;
use crate::config::{DataConfig, RunConfig, TokenizerConfig};
use crate::config_file::ConfigFile;
use crate::data_history::{self, AllDrawn, DataHistory};
use crate::device::{self, DeviceArgs, Devices};
use crate::early_stop::EarlyStop;
use crate::ema::Ema;
use crate::error::TrainError;
use crate::few_shot::{self, FewShot, FewShotConfig};
use crate::gradient::Objective;
use crate::groups;
use crate::looks::Looks;
use crate::machine::Gauge;
use crate::optimizer::AdamW;
use crate::overrides::Override;
use crate::plan::Plan;
use crate::ranks::{self, Ranks};
use crate::replay::{self, Rows};
use crate::room::{self, Size};
use crate::run_folder::{Role, RunFolder, Start};
use crate::trainer::{Ended, Run, Source, Stage, train};
use crate::trouble::{self, Guard, Trouble};
use crate::validation::Validation;

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
    /// Where the model runs.
    pub device: DeviceArgs,
    /// Who trains it together.
    pub ranks: Rc<dyn Collective>,
    /// What is wanted of the run.
    pub purpose: Purpose,
}

/// What is wanted of a run that is ready.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Purpose {
    /// That it goes on.
    #[default]
    Train,
    /// To be told what it would be.
    DryRun,
    /// To see one step of it again.
    Replay(replay::Job),
}

impl Purpose {
    /// Whether a step is to be seen again.
    pub(crate) fn is_replay(&self) -> bool {
        matches!(self, Self::Replay(_))
    }
}

/// What a command has to say on standard output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Lines.
    pub text: String,
    /// Whether all is as it should be.
    pub is_right: bool,
}

impl Command {
    /// Where a path of the config leads; URLs stay as they are.
    pub fn locate(&self, path: &str) -> String {
        located(self.root.as_deref(), path)
    }

    /// The program that evaluates checkpoints.
    fn eval_program<M>(&self, config: &RunConfig<M>) -> Result<PathBuf, TrainError> {
        let locate = |path: &PathBuf| PathBuf::from(self.locate(&path.to_string_lossy()));
        few_shot::program(config.eval_program.as_ref().map(locate).as_deref())
    }

    /// Fails unless the program that evaluates knows the tasks of the config, where any are to be evaluated.
    pub(crate) fn require_tasks<M: DeserializeOwned + Serialize>(
        &self,
        file: &ConfigFile<M>,
    ) -> Result<(), TrainError> {
        if self.purpose.is_replay() {
            return Ok(());
        }
        file.require_tasks(&self.eval_program(&file.config)?)
    }

    /// The evaluations of a run.
    fn few_shot<M>(&self, config: &RunConfig<M>) -> Result<FewShot, TrainError> {
        let located = |entry: &FewShotConfig| FewShotConfig {
            annotations: self.locate(&entry.annotations),
            ..entry.clone()
        };
        let tasks = config.few_shot.iter().map(located).collect();
        Ok(FewShot::new(&self.out, self.eval_program(config)?, tasks, self.device))
    }

    /// Reads the config.
    pub(crate) fn read_config<M: DeserializeOwned + Serialize>(
        &self,
    ) -> Result<ConfigFile<M>, TrainError> {
        let file = ConfigFile::read(&self.config, &self.overrides)?;
        file.require_ranks(self.ranks.rank().count)?;
        Ok(file)
    }

    /// Fails where there are several ranks: `what` is for one, by this reason.
    pub(crate) fn require_one_rank(
        &self,
        what: &'static str,
        reason: &'static str,
    ) -> Result<(), TrainError> {
        let count = self.ranks.rank().count;
        if count == 1 { Ok(()) } else { Err(TrainError::OneRank { what, count, reason }) }
    }

    /// Sends a model to the device that it is to be trained on.
    pub(crate) fn place(&self, model: &mut impl Trainable) -> Result<Device, TrainError> {
        let device = self.device.open()?;
        device.place(model).map_err(TrainError::model("place"))?;
        Ok(device)
    }

    /// Decides whether the run folder may be used.
    pub(crate) fn check_folder<M: DeserializeOwned + Serialize>(
        &self,
        file: &ConfigFile<M>,
    ) -> Result<RunFolder, TrainError> {
        let role = if self.ranks.is_first() { Role::Writes } else { Role::Reads };
        let folder = RunFolder::check(&self.out, self.start, file, role)?;
        self.ranks.require_same("the config", &file.to_toml())?;
        self.ranks.require_same("the last checkpoint", &folder.step().to_string())?;
        Ok(folder)
    }
}

/// Where a path of a config leads that starts from `root`; URLs stay as they are.
pub(crate) fn located(root: Option<&Path>, path: &str) -> String {
    match root {
        Some(root) if !path.contains("://") => root.join(path).display().to_string(),
        _ => path.to_owned(),
    }
}

/// Open corpora, in the order of the config.
pub(crate) struct Corpora {
    /// Those that are learned from.
    pub(crate) learned: Vec<(MixtureEntry, Corpus)>,
    /// Those of `[validation]`; none where a step is only seen again.
    pub(crate) held_out: Vec<(MixtureEntry, Corpus)>,
}

/// Opens the corpora of a config.
///
/// `expected` describes the kinds for which `fits` holds.
pub(crate) fn open_corpora<M>(
    command: &Command,
    config: &RunConfig<M>,
    image: &ImageConfig,
    fits: impl Fn(CorpusKind) -> bool,
    expected: &'static str,
) -> Result<Corpora, TrainError> {
    let open = |mut entry: MixtureEntry| {
        if command.purpose == Purpose::DryRun {
            entry.disk_cache = None;
        }
        let corpus = Corpus::open_as(&entry.corpus, &entry.layout, entry.disk_cache.as_ref())
            .map_err(in_dataset(&entry.name))?;
        if fits(corpus.kind()) {
            return Ok((entry, corpus));
        }
        Err(TrainError::CorpusKind {
            name: entry.name.clone(),
            corpus: corpus.location().to_owned(),
            found: corpus.kind().name().to_owned(),
            expected,
        })
    };
    let all = |entries: Vec<MixtureEntry>| entries.into_iter().map(open).collect();
    let learned: Result<_, TrainError> =
        all(config.mixture_entries(image, |path| command.locate(path)));
    let held_out = if command.purpose.is_replay() {
        Vec::new()
    } else {
        config.held_out_entries(image, |path| command.locate(path))
    };
    let held_out: Result<_, TrainError> = all(held_out);
    Ok(Corpora { learned: learned?, held_out: held_out? })
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
    corpora: &Corpora,
) -> Result<Tokenizer, TrainError> {
    if let Some(checkpoint) = &folder.checkpoint {
        return same_tokenizer(folder, checkpoint);
    }
    match config {
        TokenizerConfig::Path(path) => {
            read_tokenizer(Path::new(&command.locate(&path.to_string_lossy())))
        }
        TokenizerConfig::Train { vocabulary, rows_max } => {
            let corpora = corpora.learned.iter().map(|(_, corpus)| corpus);
            Ok(train_tokenizer(*vocabulary, *rows_max, corpora)?.0)
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
    let now = tokenizer_sha256(&path)?;
    let was = &checkpoint.state.tokenizer_sha256;
    checkpoint.require_same("the digest of tokenizer.json", was, &now)?;
    read_tokenizer(&path)
}

/// Names the marks of a tokenizer beside it where their names do not.
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// Digest of a run's tokenizer, with what names its marks where there is such a file.
fn tokenizer_sha256(path: &Path) -> Result<String, TrainError> {
    let read = |path: &Path| std::fs::read(path).map_err(TrainError::file("read", path));
    let mut bytes = read(path)?;
    let config = path.with_file_name(TOKENIZER_CONFIG);
    if config.exists() {
        bytes.extend(read(&config)?);
    }
    Ok(sha256_hex(&bytes))
}

pub(crate) fn read_tokenizer(path: &Path) -> Result<Tokenizer, TrainError> {
    Tokenizer::load(path).map_err(TrainError::tokenizer("read"))
}

fn train_tokenizer<'a>(
    vocabulary: usize,
    rows_max: u64,
    corpora: impl Iterator<Item = &'a Corpus> + Send,
) -> Result<(Tokenizer, u64), TrainError> {
    let (mut failed, mut n_rows) = (None, 0_u64);
    let rows = corpora.flat_map(|corpus| {
        let numbers = 0..corpus.n_rows().min(rows_max);
        numbers.map(|number| corpus.read_texts(number))
    });
    // What is corrupt teaches nothing; it is counted and named where it is trained on.
    let rows = rows.filter(|row| !row.as_ref().is_err_and(CorpusError::is_about_one_row));
    let rows = rows.map_while(|row| row.map_err(|error| failed = Some(error)).ok());
    let rows = rows.inspect(|_| n_rows += 1);
    let tokenizer = Tokenizer::train(rows.flat_map(texts), vocabulary);
    let result = failed.map_or(tokenizer, Err);
    let tokenizer = result.map_err(TrainError::tokenizer("train"))?;
    Ok((tokenizer, n_rows))
}

/// Trains a tokenizer on the first `rows_max` rows of each corpus and writes it into a new file. Says how
/// many tokens it has, and of how many rows how many could be read.
///
/// # Errors
/// When the file, or a `tokenizer_config.json` beside it, is there already or cannot be written, or a
/// corpus cannot be read.
pub fn write_tokenizer(
    corpora: &[String],
    vocabulary: usize,
    rows_max: u64,
    out: &Path,
) -> Result<String, TrainError> {
    for path in [out.to_path_buf(), out.with_file_name(TOKENIZER_CONFIG)] {
        if path.exists() {
            let there = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
            return Err(TrainError::file("write", &path)(there));
        }
    }
    let corpora = corpora.iter().map(|corpus| Corpus::open(corpus));
    let corpora = corpora.collect::<Result<Vec<_>, _>>().map_err(TrainError::loader)?;
    let (tokenizer, n_read) = train_tokenizer(vocabulary, rows_max, corpora.iter())?;
    tokenizer.save(out).map_err(TrainError::tokenizer("write"))?;
    let n_rows: u64 = corpora.iter().map(|corpus| corpus.n_rows().min(rows_max)).sum();
    let (n_tokens, name) = (tokenizer.n_tokens(), out.display());
    Ok(format!("{n_tokens} tokens in {name}, from {n_read} of {n_rows} rows"))
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
    pub(crate) corpora: Corpora,
    pub(crate) tokenizer: Tokenizer,
    /// Where the stage's model is.
    pub(crate) device: Device,
    /// Steps that went wrong in this process before.
    pub(crate) troubles: Vec<Trouble>,
}

/// Makes attempts at a run, each without the rows of the troubles of those before, until it is done. Says
/// what it was asked to say in place of training.
///
/// # Errors
/// When an attempt fails.
pub(crate) fn until_done(
    command: &Command,
    attempt: impl Fn(&Command, Vec<Trouble>) -> Result<Ended, TrainError>,
) -> Result<Ended, TrainError> {
    let mut command = command.clone();
    let mut troubles = Vec::new();
    loop {
        match attempt(&command, troubles)? {
            Ended::GoesOn(with) => troubles = with,
            ended => return Ok(ended),
        }
        command.start = Start::Resume;
    }
}

/// Completes the set-up, makes the run folder and trains; or does what else is wanted of the run.
pub(crate) fn launch<M>(prepared: Prepared<M>, stage: &mut dyn Stage) -> Result<Ended, TrainError> {
    let Prepared { command, file, mut folder, corpora, tokenizer, device, mut troubles } = prepared;
    let config = &file.config;
    let state = folder.checkpoint.as_ref().map(|checkpoint| checkpoint.state.clone());
    let entries = corpora.learned.iter().map(|(entry, _)| entry.clone()).collect();
    if let Some(state) = &state
        && troubles.len() < state.troubles.len()
    {
        troubles.clone_from(&state.troubles);
    }
    let Corpora { mut learned, held_out } = corpora;
    for (entry, _) in &mut learned {
        let rows = troubles.iter().filter_map(|trouble| trouble.rows.get(&entry.name));
        entry.skip_rows.extend(rows.flatten());
    }
    let stop_after = command.stop_after.map_or(config.steps, |step| step.min(config.steps));
    let drawn = data_history::drawn(&config.data);
    let now = (folder.step() < stop_after).then_some((device, &drawn));
    let (devices, data_history, numbers) = noted(state.as_ref(), now, command.ranks.rank());
    let sources = sources(config, &learned);
    let corpora_sha256 = same_corpora(config, &folder, &learned)?;
    let held_out_sha256 = same_held_out(&folder, &held_out)?;
    check_groups(file, stage)?;
    let ranks = Ranks::new(Rc::clone(&command.ranks), &stage.model().params());
    let optimizer = optimizer(config, &folder, stage, &ranks)?;
    // Where checkpoints are written; all ranks have the weights that it follows.
    let ema = if ranks.each().is_first() { ema(config, &folder, stage)? } else { None };
    let copies = room::copies(ema.as_ref());
    let writes = ranks.each().is_first() && !command.purpose.is_replay();
    if folder.step() < stop_after && writes {
        let size = Size::of(&stage.model().params(), copies);
        size.require_disk(&folder.path, room::disk_bytes)?;
    }
    let tokenizer = Arc::new(tokenizer);
    let mixture =
        Mixture::with_corpora(learned, Arc::clone(&tokenizer), config.mixture, config.seed)
            .and_then(|mixture| mixture.for_rank(ranks.rank()))
            .map_err(TrainError::loader)?;
    let validation = Validation::open(file, held_out, &tokenizer)?;
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let loader = Loader::start(mixture, folder.step(), n_threads);
    let turns = turns(config);
    let (schedule, objective) = (config.schedule(), objective(config));

    require_same_rows(&ranks, &tokenizer, &corpora_sha256)?;
    match command.purpose {
        Purpose::Train if ranks.each().is_first() => {
            folder.create(command.root.as_deref())?;
            if folder.checkpoint.is_none() {
                tokenizer.save(folder.tokenizer()).map_err(TrainError::tokenizer("write"))?;
            }
        }
        Purpose::DryRun => {
            let (run, params) = (&*folder.path, stage.model().params());
            let (sources, weights, tokenizer) = (&*sources, &*objective.weights, &*tokenizer);
            let n_ranks = ranks.rank().count;
            let plan = Plan {
                run,
                params,
                copies,
                sources,
                weights,
                turns,
                schedule,
                loader,
                tokenizer,
                n_ranks,
            };
            return Ok(Ended::Told(Told { text: plan.text()?, is_right: true }));
        }
        Purpose::Train | Purpose::Replay(_) => {}
    }
    ranks.each().barrier()?;
    let less_memory = config.less_memory(stage.batches_divide(), ranks.rank().count);
    let run = Run {
        folder: &folder,
        stage,
        ranks,
        numbers,
        devices,
        data_history,
        less_memory,
        loader,
        optimizer,
        ema,
        schedule,
        objective,
        checkpoint_every: config.checkpoint_every,
        keep: config.keep(),
        looks: Looks {
            blindness_every: config.blindness_every,
            gates_every: config.gates_every,
            turns,
        },
        few_shot: command.few_shot(config)?,
        accounting: Accounting::new(config.accounting_every),
        validation,
        unmeasured: state.as_ref().and_then(|state| state.unmeasured.clone()),
        held_out_corrupt: state
            .as_ref()
            .map(|state| state.held_out_corrupt.clone())
            .unwrap_or_default(),
        stops: trouble::stops(&folder.path)?,
        early_stop: early_stop(config, state.as_ref()),
        gauge: Gauge::new(device, &config.hardware.unwrap_or_default()),
        guard: Guard::new(
            &config.guard,
            state.map(|state| state.recent_losses).unwrap_or_default(),
        ),
        troubles,
        sources,
        stop_after,
        tokenizer_sha256: tokenizer_sha256(&folder.tokenizer())?,
        corpora_sha256,
        held_out_sha256,
    };
    let Purpose::Replay(job) = &command.purpose else { return train(run) };
    let rows = Rows { entries, drawn, tokenizer, mode: config.mixture, seed: config.seed };
    replay::replay(run, &rows, job).map(Ended::Told)
}

/// Where the updates of a run were made, what its datasets were drawn by and how many ranks there were, and
/// `now` are where it goes on.
fn noted(
    state: Option<&State>,
    now: Option<(Device, &AllDrawn)>,
    rank: Rank,
) -> (Devices, DataHistory, ranks::Numbers) {
    let known =
        |state: &State| (state.devices.clone(), state.data_history.clone(), state.ranks.clone());
    let (mut devices, mut data_history, mut numbers) = state.map(known).unwrap_or_default();
    if let Some((device, drawn)) = now {
        let step = state.map_or(0, |state| state.step);
        device::note(&mut devices, step, device);
        data_history::note(&mut data_history, step, drawn);
        ranks::note(&mut numbers, step, rank.count);
    }
    (devices, data_history, numbers)
}

/// The rows of each dataset.
fn sources<M>(config: &RunConfig<M>, learned: &[(MixtureEntry, Corpus)]) -> Vec<Source> {
    let source = |(data, (entry, corpus)): (&DataConfig, &(MixtureEntry, Corpus))| Source {
        name: data.name.clone(),
        batch: data.batch,
        batch_rows: data.rows(),
        n_rows: corpus.n_rows(),
        left_out: entry.skip_rows.clone(),
    };
    config.data.iter().zip(learned).map(source).collect()
}

/// What ends the run early, as far as the checkpoint knows it.
fn early_stop<M>(config: &RunConfig<M>, state: Option<&State>) -> Option<EarlyStop> {
    let progress = state.map(|state| state.early_stop).unwrap_or_default();
    config.early_stop.clone().map(|stop| EarlyStop::new(stop, progress))
}

/// Steps in which every dataset has its turn.
fn turns<M>(config: &RunConfig<M>) -> u64 {
    match config.mixture {
        MixtureMode::RoundRobin => config.data.len() as u64,
        MixtureMode::Accumulate | MixtureMode::Merged => 1,
    }
}

/// What a config minimises. Rows of all datasets in one batch are one dataset without lambda.
fn objective<M>(config: &RunConfig<M>) -> Objective {
    let each: Vec<(f64, usize)> = match config.mixture {
        MixtureMode::Merged => vec![(1.0, config.data[0].micro_batches)],
        MixtureMode::Accumulate | MixtureMode::RoundRobin => {
            config.data.iter().map(|entry| (entry.weight, entry.micro_batches)).collect()
        }
    };
    let (weights, micro_batches) = each.into_iter().unzip();
    Objective { weights, normalisation: config.loss_normalisation, micro_batches }
}

/// Digests of the corpora, after comparing them with the checkpoint's: rows of another corpus are
/// other rows.
fn same_corpora<M>(
    config: &RunConfig<M>,
    folder: &RunFolder,
    corpora: &[(MixtureEntry, Corpus)],
) -> Result<Vec<String>, TrainError> {
    let now: Vec<String> = corpora.iter().map(|(_, corpus)| corpus.manifest().sha256()).collect();
    let Some(checkpoint) = &folder.checkpoint else { return Ok(now) };
    let both = checkpoint.state.corpora_sha256.iter().zip(&now);
    for (entry, (was, now)) in config.data.iter().zip(both) {
        let what = format!("the manifest's digest of dataset `{}`", entry.name);
        checkpoint.require_same(what, was, now)?;
    }
    Ok(now)
}

/// The same for corpora that are not learned from: under one name there is one curve.
fn same_held_out(
    folder: &RunFolder,
    corpora: &[(MixtureEntry, Corpus)],
) -> Result<BTreeMap<String, String>, TrainError> {
    let digest =
        |(entry, corpus): &(MixtureEntry, Corpus)| (entry.name.clone(), corpus.manifest().sha256());
    let now: BTreeMap<String, String> = corpora.iter().map(digest).collect();
    let Some(checkpoint) = &folder.checkpoint else { return Ok(now) };
    for (name, now) in &now {
        if let Some(was) = checkpoint.state.held_out_sha256.get(name) {
            let what = format!("the manifest's digest of the validation's dataset `{name}`");
            checkpoint.require_same(what, was, now)?;
        }
    }
    // A dataset that is left out for a while comes back as what it was.
    let mut known = checkpoint.state.held_out_sha256.clone();
    known.extend(now);
    Ok(known)
}

/// Fails unless all ranks make the same tokens of the same corpora.
fn require_same_rows(
    ranks: &Ranks,
    tokenizer: &Tokenizer,
    corpora_sha256: &[String],
) -> Result<(), TrainError> {
    if ranks.each().is_alone() {
        return Ok(());
    }
    let ids: Vec<u32> = (0..tokenizer.n_tokens() as u32).collect();
    ranks.each().require_same("the tokenizer", &tokenizer.tokens_text(&ids))?;
    ranks.each().require_same("the corpora", &corpora_sha256.join(" "))
}

fn check_groups<M>(file: &ConfigFile<M>, stage: &dyn Stage) -> Result<(), TrainError> {
    let refuse = |key, value, expected| TrainError::ConfigValue {
        path: file.path.clone(),
        key,
        value,
        expected,
    };
    groups::check(&file.config.optimizer.groups, &stage.model().params(), refuse)
}

/// The running average of the weights: the checkpoint's, or one that begins now.
fn ema<M>(
    config: &RunConfig<M>,
    folder: &RunFolder,
    stage: &dyn Stage,
) -> Result<Option<Ema>, TrainError> {
    let params = stage.model().params();
    let ema = config.ema.as_ref().map(|ema| match &folder.checkpoint {
        Some(checkpoint) => Ema::restore(ema, &params, checkpoint),
        None => Ok(Ema::new(ema, &params)),
    });
    ema.transpose()
}

fn optimizer<M>(
    config: &RunConfig<M>,
    folder: &RunFolder,
    stage: &dyn Stage,
    ranks: &Ranks,
) -> Result<AdamW, TrainError> {
    let params = stage.model().params();
    let fresh = AdamW::new(&config.optimizer, ranks.share(&params));
    let Some(checkpoint) = &folder.checkpoint else { return Ok(fresh) };
    let (tensors, path) = checkpoint.moments()?;
    fresh.restore(&params, tensors, &path).map_err(TrainError::model("load"))
}
