//! What every stage does between its config and the loop: corpora, tokenizer, optimizer, loader,
//! run folder.

use std::rc::Rc;
use std::sync::Arc;

use flamingo_dataset::{Corpus, Loader, Mixture, MixtureEntry, MixtureMode, Rank, Tokenizer};
use flamingo_model::Device;

use crate::accounting::Accounting;
use crate::checkpoint::State;
use crate::command::{Command, Purpose, Told};
use crate::config::RunConfig;
use crate::config_file::ConfigFile;
use crate::corpora::{Corpora, same_corpora, same_held_out, sources};
use crate::data_history::{self, AllDrawn, DataHistory};
use crate::device::{self, Devices};
use crate::early_stop::EarlyStop;
use crate::ema::Ema;
use crate::ended::Ended;
use crate::error::TrainError;
use crate::gradient::Objective;
use crate::groups;
use crate::looks::Looks;
use crate::machine::Gauge;
use crate::optimizer::AdamW;
use crate::plan::{Beside, Plan};
use crate::ranks::{self, Ranks};
use crate::replay::{self, Rows};
use crate::room::{self, Size};
use crate::run::Run;
use crate::run_folder::{RunFolder, Start};
use crate::run_tokenizer::tokenizer_sha256;
use crate::stage::Stage;
use crate::trainer::train;
use crate::trouble::{self, Guard, Trouble};
use crate::validation::Validation;

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
    let Prepared { command, file, mut folder, corpora, tokenizer, device, troubles } = prepared;
    let config = &file.config;
    let state = folder.checkpoint.as_ref().map(|checkpoint| checkpoint.state.clone());
    let entries = corpora.learned.iter().map(|(entry, _)| entry.clone()).collect();
    let known = state.iter().flat_map(|state| &state.troubles).cloned().collect();
    let troubles = longer(troubles, known);
    let Corpora { mut learned, held_out } = corpora;
    leave_out(&mut learned, &troubles);
    let stop_after = command.stop_after.map_or(config.steps, |step| step.min(config.steps));
    let drawn = data_history::drawn(&config.data);
    let now = (folder.step() < stop_after).then_some((device, &drawn));
    let (devices, data_history, numbers) = noted(state.as_ref(), now, command.ranks.rank());
    let sources = sources(config, &learned);
    let corpora_sha256 = same_corpora(config, &folder, &learned)?;
    let held_out_sha256 = same_held_out(&folder, &held_out)?;
    let Learner { ranks, optimizer, ema } = learner(command, file, &folder, stage)?;
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
    let (loader, turns) = (Loader::start(mixture, folder.step(), n_threads), turns(config));
    let (schedule, objective) = (config.schedule(), objective(config));

    require_same_rows(&ranks, &tokenizer, &corpora_sha256)?;
    if command.purpose == Purpose::DryRun {
        let plan = Plan {
            run: &folder.path,
            stage,
            copies,
            beside: Beside::of(config),
            sources: &sources,
            objective: &objective,
            turns,
            schedule,
            loader,
            tokenizer: &tokenizer,
            n_ranks: ranks.rank().count,
        };
        return Ok(Ended::Told(Told { text: plan.text()?, is_right: true }));
    }
    if command.purpose == Purpose::Train && ranks.each().is_first() {
        create(&mut folder, command, &tokenizer)?;
    }
    ranks.each().barrier()?;
    let less_memory = config.less_memory(stage.batches_divide(), ranks.rank().count);
    let run = Run {
        folder: &folder,
        done: folder.step(),
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
        frozen_sha256: None,
        tokenizer_sha256: tokenizer_sha256(&folder.tokenizer())?,
        corpora_sha256,
        held_out_sha256,
    };
    let Purpose::Replay(job) = &command.purpose else { return train(run) };
    let rows = Rows { entries, drawn, tokenizer, mode: config.mixture, seed: config.seed };
    replay::replay(run, &rows, job).map(Ended::Told)
}

/// Makes the run folder, and what stands in it from the start.
fn create(
    folder: &mut RunFolder,
    command: &Command,
    tokenizer: &Tokenizer,
) -> Result<(), TrainError> {
    folder.create(command.root.as_deref())?;
    match folder.checkpoint {
        None => tokenizer.save(folder.tokenizer()).map_err(TrainError::tokenizer("write")),
        Some(_) => Ok(()),
    }
}

/// The troubles of this process, or those that the checkpoint knows, if they are more.
fn longer(own: Vec<Trouble>, known: Vec<Trouble>) -> Vec<Trouble> {
    if own.len() < known.len() { known } else { own }
}

/// Leaves the rows of all steps that went wrong out.
fn leave_out(learned: &mut [(MixtureEntry, Corpus)], troubles: &[Trouble]) {
    for (entry, _) in learned {
        let rows = troubles.iter().filter_map(|trouble| trouble.rows.get(&entry.name));
        entry.skip_rows.extend(rows.flatten());
    }
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

/// What updates the weights.
struct Learner {
    ranks: Ranks,
    optimizer: AdamW,
    ema: Option<Ema>,
}

fn learner<M>(
    command: &Command,
    file: &ConfigFile<M>,
    folder: &RunFolder,
    stage: &dyn Stage,
) -> Result<Learner, TrainError> {
    check_groups(file, stage)?;
    let ranks = Ranks::new(Rc::clone(&command.ranks), &stage.model().params());
    let optimizer = optimizer(&file.config, folder, stage, &ranks)?;
    // Where checkpoints are written; all ranks have the weights that it follows.
    let ema = if ranks.each().is_first() { ema(&file.config, folder, stage)? } else { None };
    Ok(Learner { ranks, optimizer, ema })
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
