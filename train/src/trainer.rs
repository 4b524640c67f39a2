//! The loop: rows in, gradients of all datasets into one update, metrics and checkpoints out.
//!
//! The objective is the sum over datasets of lambda times the mean loss; gradients accumulate over
//! the datasets before one update (paper, section 2.4 and appendix B.1.2). What differs between
//! stages is behind [`Stage`].

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use flamingo_dataset::{Batch, Loader};
use flamingo_model::{
    GateSums, Gradients, LossTerms, ModelError, Parameter, Params, Snapshot, Spare, Trainable,
};

use crate::accounting::{Accounting, Mixture};
use crate::checkpoint::{self, Keep, State};
use crate::checkpoint_writer::Learned;
use crate::config::BatchesDivide;
use crate::data_history::DataHistory;
use crate::device::Devices;
use crate::early_stop::{EarlyStop, Verdict};
use crate::ema::Ema;
use crate::error::TrainError;
use crate::extent::{Extent, all_extents};
use crate::few_shot::FewShot;
use crate::gradient::{Objective, Step, StepGradient, accumulate};
use crate::looks::Looks;
use crate::machine::Gauge;
use crate::metrics::StepMetrics;
use crate::optimizer::AdamW;
use crate::outputs::Outputs;
use crate::ranks::{self, Ranks};
use crate::run_folder::RunFolder;
use crate::schedule::Schedule;
use crate::setup::Told;
use crate::stop::{StopSignal, StopSignals};
use crate::trouble::{Action, Finding, Guard, Trouble};
use crate::validation::{self, CorruptTold, Found, HeldOut, Measures, Validation};

/// What differs between the stages of training.
pub trait Stage {
    /// Mean loss of a batch.
    ///
    /// # Errors
    /// When the batch does not fit the model or the device is out of memory.
    fn loss(&self, batch: &Batch) -> Result<f32, TrainError>;

    /// Mean loss of a batch; adds `weight` times its gradient and that of the term beside it, if the stage
    /// has one.
    ///
    /// # Errors
    /// When the batch does not fit the model or the device is out of memory.
    fn step(
        &self,
        batch: &Batch,
        weight: f32,
        gradients: Gradients,
    ) -> Result<(LossTerms, Gradients), TrainError>;

    /// The model's parameters, for reading.
    fn model(&self) -> &dyn Trainable;

    /// The model's parameters, for updating.
    fn model_mut(&mut self) -> &mut dyn Trainable;

    /// A copy of the model in `spare`, to be written while it goes on learning.
    ///
    /// # Errors
    /// When memory cannot hold it, or the device fails.
    fn snapshot(&self, spare: &Spare) -> Result<Snapshot, ModelError>;

    /// Writes a loadable model into a folder.
    ///
    /// # Errors
    /// When the disk cannot be written.
    fn save(&self, folder: &Path) -> Result<(), ModelError>;

    /// Brings to the disk what the stage keeps beside its model.
    ///
    /// # Errors
    /// When the disk cannot be written.
    fn at_checkpoint(&self) -> Result<(), TrainError> {
        Ok(())
    }

    /// What the mean loss of a batch is a mean of: the tokens that are predicted.
    fn n_terms(&self, batch: &Batch) -> u64 {
        batch.n_predicted()
    }

    /// Whether a batch can be cut into parts: the loss of each row is its own.
    fn batches_divide(&self) -> BatchesDivide {
        BatchesDivide::Yes
    }

    /// Images and clips of a batch that the stage looks at.
    fn n_images(&self, batch: &Batch) -> u64 {
        batch.image_count.iter().sum::<usize>() as u64
    }

    /// Operations of a training step on a batch, where they are counted: see [`flop`](crate::flop).
    fn flop(&self, _batch: &Batch) -> Option<f64> {
        None
    }

    /// Mean losses of a batch with other images than its own, each with what they are, of
    /// [`IMAGES`](crate::looks::IMAGES).
    ///
    /// # Errors
    /// As those of [`loss`](Self::loss).
    fn blind_losses(&self, _batch: &Batch) -> Result<Vec<(&'static str, f32)>, TrainError> {
        Ok(Vec::new())
    }

    /// What each cross-attention block adds to the text states of these parts of batches, over the tokens
    /// that see an image and predict the next token.
    ///
    /// # Errors
    /// As those of [`loss`](Self::loss).
    fn gate_sums(&self, _parts: &[Cow<Batch>]) -> Result<Vec<GateSums>, TrainError> {
        Ok(Vec::new())
    }

    /// What is measured on rows that are not learned from, under the names of the measures.
    ///
    /// # Errors
    /// When rows cannot be read, do not fit the model, or the device is out of memory.
    fn validate(&self, _held_out: &HeldOut) -> Result<Measures, TrainError> {
        Ok(Measures::new())
    }

    /// What a run logs about the model besides its loss.
    fn observe(&self) -> BTreeMap<String, f64> {
        BTreeMap::new()
    }

    /// Digest of the weights that are not trained, if there are any.
    fn frozen_sha256(&self) -> Option<String> {
        None
    }

    /// Checks a fresh model on the first rows; says what was found.
    ///
    /// # Errors
    /// When the model is not what a fresh one should be.
    fn check_fresh(&self, _first: &Batch) -> Result<Option<String>, TrainError> {
        Ok(None)
    }
}

/// A run that is ready to go on.
pub struct Run<'run> {
    /// Its folder.
    pub folder: &'run RunFolder,
    /// What is trained.
    pub stage: &'run mut dyn Stage,
    /// Who trains it together.
    pub ranks: Ranks,
    /// This rank's share of the rows of each step.
    pub loader: Loader,
    /// How many ranks made its updates, and make them.
    pub numbers: ranks::Numbers,
    /// Where its updates were made, and are.
    pub devices: Devices,
    /// What its datasets were drawn by, and are.
    pub data_history: DataHistory,
    /// What can be done where memory does not suffice, such as "give it `--set recompute=\"all\"`".
    pub less_memory: String,
    /// The optimizer, with the moments of the checkpoint.
    pub optimizer: AdamW,
    /// The running average of the weights, if one is kept.
    pub ema: Option<Ema>,
    /// The learning rate of each step.
    pub schedule: Schedule,
    /// What is minimised.
    pub objective: Objective,
    /// Updates between checkpoints.
    pub checkpoint_every: u64,
    /// Checkpoints that stay.
    pub keep: Keep,
    /// Updates after which the run stops.
    pub stop_after: u64,
    /// Looks at the model between updates.
    pub looks: Looks,
    /// Looks at the gradients of datasets.
    pub accounting: Accounting,
    /// Evaluations of checkpoints.
    pub few_shot: FewShot,
    /// What is looked at that is not learned from.
    pub validation: Option<Validation>,
    /// The last step where that was cut off.
    pub unmeasured: Option<StepMetrics>,
    /// Whether that ends the run.
    pub early_stop: Option<EarlyStop>,
    /// Reads what the machine does.
    pub gauge: Gauge,
    /// Looks for steps that go wrong.
    pub guard: Guard,
    /// Those that did so far.
    pub troubles: Vec<Trouble>,
    /// The rows of each dataset.
    pub sources: Vec<Source>,
    /// Digest of the tokenizer's file.
    pub tokenizer_sha256: String,
    /// Digests of the corpora's manifests.
    pub corpora_sha256: Vec<String>,
    /// The same of the corpora that are not learned from, under the datasets' names.
    pub held_out_sha256: BTreeMap<String, String>,
    /// Corrupt rows of those that were told of.
    pub held_out_corrupt: CorruptTold,
    /// Steps that ended it before.
    pub stops: Vec<Trouble>,
}

impl Run<'_> {
    /// Makes the update after `done` others, and lets the average follow. A step in which nothing was learned
    /// from changes nothing: moments and weight decay would move the weights all the same.
    pub(crate) fn update(
        &mut self,
        made: &mut StepGradient,
        lr: f64,
        done: u64,
    ) -> Result<(), TrainError> {
        let clock = Instant::now();
        let StepGradient { gradients, norms, is_learned, .. } = made;
        if !*is_learned {
            return Ok(());
        }
        let params = &mut self.stage.model_mut().params_mut();
        let updated = self.optimizer.update(params, gradients, norms, lr, done);
        updated.map_err(TrainError::model("run"))?;
        self.ranks.share_weights(params)?;
        if let Some(ema) = &mut self.ema {
            ema.follow(&self.stage.model().params(), done)?;
        }
        made.seconds += clock.elapsed().as_secs_f64();
        Ok(())
    }

    /// What a step is made with.
    pub(crate) fn step(&self) -> Step<'_> {
        let Self { stage, objective, optimizer, ranks, .. } = self;
        Step { stage: &**stage, objective, optimizer, ranks }
    }

    /// How much there is of the batches of which these are this rank's shares.
    pub(crate) fn extents(&self, batches: &[Batch]) -> Result<Vec<Extent>, TrainError> {
        let n_ranks = self.ranks.rank().count;
        let own = batches.iter().map(|b| Extent::of(self.stage, b, &self.sources, n_ranks));
        all_extents(self.ranks.each(), own.collect())
    }

    /// What a checkpoint is made of.
    pub(crate) fn learned(&self) -> Learned<'_> {
        Learned { stage: self.stage, optimizer: &self.optimizer, ema: self.ema.as_ref() }
    }

    /// What is seen of the gradients of the datasets, beside that of the mixture.
    fn account(
        &mut self,
        batches: &[Batch],
        extents: &[Extent],
        made: &mut StepGradient,
        done: u64,
    ) -> Result<BTreeMap<String, f64>, TrainError> {
        let mixture = Mixture { objective: &self.objective, batches, extents, made, done };
        self.accounting.look(self.stage, mixture)
    }

    /// Whether an early stop has ended the run.
    fn has_stopped(&self) -> bool {
        self.early_stop.as_ref().is_some_and(|stop| stop.progress().has_stopped)
    }

    /// For `map_err` on what is done after `done` updates.
    pub(crate) fn failed(&self, done: u64) -> impl Fn(TrainError) -> TrainError {
        move |error| error.in_step(done + 1, &self.less_memory)
    }
}

/// The rows of a dataset.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// Sequences of one batch.
    pub batch: usize,
    /// Rows of one batch, of which several may share a sequence.
    pub batch_rows: usize,
    /// Rows of its corpus.
    pub n_rows: u64,
    /// Those that are left out.
    pub left_out: BTreeSet<u64>,
}

impl Source {
    /// Whether a batch has rows of its own when these are left out, too.
    fn fills_a_batch_without(&self, rows: &[u64]) -> bool {
        let more: BTreeSet<&u64> = rows.iter().filter(|row| !self.left_out.contains(row)).collect();
        let left = self.n_rows.saturating_sub((self.left_out.len() + more.len()) as u64);
        left >= self.batch_rows as u64
    }
}

/// How [`train`] ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Ended {
    /// At its last step, or by its early stop.
    Done,
    /// Where a scheduler stopped it, at a checkpoint.
    Stopped,
    /// At a step that went wrong, the last of these: the run goes on from the checkpoint that is the
    /// latest now, without their rows.
    GoesOn(Vec<Trouble>),
    /// Without training, after this was found.
    Told(Told),
}

impl Ended {
    /// What is to be said of it on standard output.
    pub(crate) fn into_told(self) -> Told {
        match self {
            Self::Told(told) => told,
            Self::Done | Self::Stopped | Self::GoesOn(_) => {
                Told { text: String::new(), is_right: true }
            }
        }
    }
}

/// Trains until the run's last step, until a signal stops it, or until a step goes wrong.
///
/// # Errors
/// When rows cannot be read, a step goes wrong and the run is to stop then, the user stops it, or the
/// disk fails. The last checkpoint stands.
pub fn train(mut run: Run) -> Result<Ended, TrainError> {
    let signals = StopSignals::listen().map_err(TrainError::Signals)?;
    let mut done = run.folder.step();
    let mut outputs = Outputs::open(&mut run, done)?;
    run.accounting.recall(&run.folder.path)?;
    note_start(&run, done, &outputs);
    let frozen_sha256 = run.stage.frozen_sha256();
    note_frozen("start", frozen_sha256.as_deref(), &outputs);

    run.ranks.require_same_weights(&run.stage.model().params())?;
    // One that is over may have been stopped before its last checkpoint was evaluated, or its report drawn.
    let is_over = done >= run.stop_after || run.has_stopped();
    if !is_over || run.few_shot.is_due(done) || run.unmeasured.is_some() {
        outputs.begin(&run, done)?;
    }
    let frozen = || frozen_sha256.clone();
    if let Some(ended) = make_up(&mut run, frozen(), &mut outputs)? {
        return Ok(ended);
    }
    while done < run.stop_after && !run.has_stopped() {
        outputs.check()?;
        outputs.evaluate(&mut run.few_shot, done)?;
        let clock = Instant::now();
        let ended = run.loader.next_step_unless(&|| signals.came().is_some());
        let ended = run.ranks.together(ended)?;
        let Ok(Some(batches)) = ended else {
            let why = ended.map(|_| ()).map_err(TrainError::loader);
            return end_without_rows(&mut run, done, frozen(), why, &mut outputs);
        };
        let data_wait_seconds = clock.elapsed().as_secs_f64();

        if done == 0 {
            check_fresh(&run, &batches, &outputs).map_err(run.failed(done))?;
        }

        let extents = run.extents(&batches)?;
        let mut made = accumulate(&run.step(), &batches, &extents).map_err(run.failed(done))?;
        let found = run.guard.look(&learned_losses(&run, &batches, &made.losses), made.norms.all);
        if let Some(found) = &found {
            outputs.wait(&run)?;
            let trouble = trouble(&run, &batches, &extents, done, found)?;
            let goes_back = trouble.back_to.is_some();
            run.troubles.push(trouble);
            outputs.note_trouble(&run)?;
            if goes_back {
                outputs.finish();
                return Ok(Ended::GoesOn(run.troubles));
            }
        }

        let mut observed = BTreeMap::new();
        let lr = run.schedule.lr(done);
        if found.is_none() {
            let seen = run.looks.look(&run.step(), &batches, &made, done);
            observed = seen.map_err(run.failed(done))?;
            let seen = run.account(&batches, &extents, &mut made, done);
            observed.extend(seen.map_err(run.failed(done))?);
            run.update(&mut made, lr, done).map_err(run.failed(done))?;
        }
        done += 1;
        observed.extend(run.stage.observe());
        observed.extend(made.norms.observed());
        observed.extend(made.z_losses(run.ranks.each(), &batches)?);
        let update = Update {
            step: done,
            made,
            extents,
            lr,
            clock,
            data_wait_seconds,
            skipped: found.map(|found| found.text),
            observed,
        };
        let mut metrics = measured(&run, &batches, update)?;
        let verdict = add(&mut run, &mut metrics, &mut outputs)?;
        let Ok(Some(verdict)) = verdict else {
            return end_without_rows(&mut run, done, frozen(), verdict.map(|_| ()), &mut outputs);
        };
        let signal = run.ranks.signal(signals.came())?;
        let is_last = done == run.stop_after || verdict == Verdict::Stops;
        let is_due = done.is_multiple_of(run.checkpoint_every) || is_last;
        if is_due || verdict == Verdict::Best || signal.is_some() || metrics.skipped.is_some() {
            let state = gathered(&mut run, done, frozen())?;
            // Others are taken in need; they must not push out what came before it.
            outputs.save(&run, state, is_due.then_some(run.keep))?;
            run.optimizer.set_elsewhere(BTreeMap::new());
        }
        if signal.is_some() {
            outputs.wait(&run)?;
            return stopped(&run, signal, done, &mut outputs);
        }
        if metrics.skipped.is_some() && done < run.stop_after {
            outputs.wait(&run)?;
            outputs.finish();
            return Ok(Ended::GoesOn(run.troubles));
        }
    }
    outputs.wait(&run)?;
    outputs.evaluate(&mut run.few_shot, done)?;
    let signal = run.ranks.signal(signals.came())?;
    if signal.is_some() {
        return stopped(&run, signal, done, &mut outputs);
    }
    outputs.draw(&run)?;
    note_frozen("end", run.stage.frozen_sha256().as_deref(), &outputs);
    outputs.finish();
    Ok(Ended::Done)
}

fn note_start(run: &Run, done: u64, outputs: &Outputs) {
    if done > 0 {
        outputs.note(&format!("going on after step {done}"));
    }
    if let Some((_, device)) = run.devices.last_key_value() {
        outputs.note(&format!("device: {device}"));
    }
}

/// Ends a run that no rows come to, by a signal or by what is `why`: what was learned so far is kept.
fn end_without_rows(
    run: &mut Run,
    done: u64,
    frozen_sha256: Option<String>,
    why: Result<(), TrainError>,
    outputs: &mut Outputs,
) -> Result<Ended, TrainError> {
    let signals = StopSignals::listen().map_err(TrainError::Signals)?;
    let state = gathered(run, done, frozen_sha256);
    let kept = state.and_then(|state| outputs.settle(run, state));
    why?;
    let signal = kept.and_then(|()| run.ranks.signal(signals.came()))?;
    stopped(run, signal, done, outputs)
}

/// Makes up for a validation that was cut off; says how the run ends where it is again.
fn make_up(
    run: &mut Run,
    frozen_sha256: Option<String>,
    outputs: &mut Outputs,
) -> Result<Option<Ended>, TrainError> {
    let Some(mut metrics) = run.unmeasured.clone() else { return Ok(None) };
    let verdict = add(run, &mut metrics, outputs)?;
    if matches!(verdict, Ok(Some(_))) {
        return Ok(None);
    }
    end_without_rows(run, metrics.step, frozen_sha256, verdict.map(|_| ()), outputs).map(Some)
}

/// What a run that a signal ends says and returns.
fn stopped(
    run: &Run,
    signal: Option<StopSignal>,
    done: u64,
    outputs: &mut Outputs,
) -> Result<Ended, TrainError> {
    outputs.draw(run)?;
    let signal = signal.unwrap_or(StopSignal::Terminate);
    let name = signal.name();
    outputs.note(&format!("{name} after step {done}; --resume goes on from there"));
    outputs.finish();
    match signal {
        StopSignal::Terminate => Ok(Ended::Stopped),
        StopSignal::Interrupt => Err(TrainError::Interrupted { step: done }),
    }
}

/// Looks at the first part of each batch: what a step has memory for.
fn check_fresh(run: &Run, batches: &[Batch], outputs: &Outputs) -> Result<(), TrainError> {
    for part in batches.iter().filter_map(|batch| run.objective.parts(batch).next()) {
        if let Some(note) = run.stage.check_fresh(&part)? {
            outputs.note(&format!("{}: {note}", part.name));
        }
    }
    Ok(())
}

fn note_frozen(when: &str, sha256: Option<&str>, outputs: &Outputs) {
    if let Some(sha256) = sha256 {
        outputs.note(&format!("frozen weights at the {when}: sha256 {sha256}"));
    }
}

/// The losses that are learned from, by dataset.
fn learned_losses<'a>(run: &Run, batches: &'a [Batch], losses: &[f32]) -> Vec<(&'a str, f32)> {
    let learned = batches.iter().zip(losses).filter(|(batch, _)| run.objective.learns_from(batch));
    learned.map(|(batch, loss)| (&*batch.name, *loss)).collect()
}

/// Writes what a step measured, after a validation where that is due. Where it cannot be made it is made
/// up for when the run goes on.
fn add(
    run: &mut Run,
    metrics: &mut StepMetrics,
    outputs: &mut Outputs,
) -> Result<Result<Option<Verdict>, TrainError>, TrainError> {
    let verdict = validate(run, metrics, outputs);
    outputs.add(run, metrics)?;
    run.unmeasured = (!matches!(verdict, Ok(Some(_)))).then(|| metrics.clone());
    Ok(verdict)
}

/// Validates the model where that is due, and adds the measures to those of the step. None where a signal
/// cuts it off, or another rank cannot make it.
fn validate(
    run: &mut Run,
    metrics: &mut StepMetrics,
    outputs: &Outputs,
) -> Result<Option<Verdict>, TrainError> {
    let validation = run.validation.as_ref().filter(|it| it.is_due(metrics.step));
    let Some(validation) = validation else { return Ok(Some(Verdict::GoesOn)) };
    // One rank alone measures, so that all of them decide by the same bits.
    let is_first = run.ranks.each().is_first();
    let measure = || validation.measure(&mut *run.stage, run.ema.as_ref(), metrics.step);
    let own = is_first.then(measure).transpose();
    let own = own.or_else(|error| match error {
        TrainError::ValidationCut => Ok(None),
        other => Err(other),
    });
    let told = &mut run.held_out_corrupt;
    let own = own.map(|found| {
        let mut found = found?;
        found.tell_once(told);
        let Found { measures, corrupt_rows } = found;
        metrics.corrupt_rows.extend(corrupt_rows);
        Some(measures)
    });
    let Some(measures) = run.ranks.each().of_first(own)? else { return Ok(None) };
    let step = metrics.step;
    outputs.note(&format!("after step {step}: {}", validation::text(&measures)));
    let stop = run.early_stop.as_mut();
    let verdict = stop.map_or(Verdict::GoesOn, |stop| stop.look(step, &measures));
    if let (Verdict::Stops, Some(stop)) = (verdict, &run.early_stop) {
        outputs.note(&stop.reason());
    }
    metrics.observed.extend(measures.into_iter().filter(|(_, value)| value.is_finite()));
    Ok(Some(verdict))
}

/// What the loop knows of an update.
struct Update {
    /// Updates done, this one included.
    step: u64,
    made: StepGradient,
    extents: Vec<Extent>,
    lr: f64,
    /// Since the update began.
    clock: Instant,
    data_wait_seconds: f64,
    /// Why it changed nothing.
    skipped: Option<String>,
    observed: BTreeMap<String, f64>,
}

fn measured(run: &Run, batches: &[Batch], update: Update) -> Result<StepMetrics, TrainError> {
    let Update { made, extents, mut observed, .. } = update;
    observed.retain(|_, value| value.is_finite());
    let finite = batches.iter().zip(&made.losses).filter(|(_, loss)| loss.is_finite());
    let learned = batches.iter().filter(|batch| run.objective.learns_from(batch));
    let flop = learned.map(|batch| run.stage.flop(batch)).sum();
    let seconds = update.clock.elapsed().as_secs_f64();
    Ok(StepMetrics {
        step: update.step,
        loss: run.objective.value(batches, &extents, &made.losses),
        losses: finite.map(|(batch, loss)| (batch.name.clone(), f64::from(*loss))).collect(),
        lr: update.lr,
        grad_norm: made.norms.all,
        tokens: extents.iter().map(|extent| extent.tokens).sum(),
        images: extents.iter().map(|extent| extent.images).sum(),
        samples: extents.iter().map(|extent| extent.samples).sum(),
        seconds,
        data_wait_seconds: update.data_wait_seconds,
        model_seconds: made.seconds,
        machine: run.gauge.read(flop, seconds)?,
        corrupt_rows: extents.into_iter().flat_map(|extent| extent.corrupt).collect(),
        skipped: update.skipped,
        observed,
    })
}

/// What follows where the guard found something in the step after `done`. To go back, `latest` is moved.
fn trouble(
    run: &Run,
    batches: &[Batch],
    extents: &[Extent],
    done: u64,
    found: &Finding,
) -> Result<Trouble, TrainError> {
    let is_it = |name: &str| found.dataset.as_ref().is_none_or(|it| it == name);
    let learned = |batch: &Batch| run.objective.learns_from(batch) && is_it(&batch.name);
    let extents = batches.iter().zip(extents).filter(|(batch, _)| learned(batch));
    let rows = extents.flat_map(|(_, extent)| extent.rows.clone()).collect();
    let text = found.text.clone();
    let mut trouble = Trouble { step: done + 1, found: text, back_to: None, stops: false, rows };
    let mut action = run.guard.action_after(run.troubles.len());
    let used_up = run.sources.iter().find(|source| {
        let rows = trouble.rows.get(&source.name);
        rows.is_some_and(|rows| !source.fills_a_batch_without(rows))
    });
    if let Some(source) = used_up.filter(|_| action != Action::Stop) {
        action = Action::Stop;
        let name = &source.name;
        let more = format!(", and without its rows dataset `{name}` would not fill a batch");
        trouble.found.push_str(&more);
    }
    match action {
        Action::Stop => trouble.stops = true,
        Action::Skip => {}
        Action::RollBack => {
            trouble.back_to = Some(go_back(run, done)?);
        }
    }
    Ok(trouble)
}

/// Moves `latest` back, and says which step to.
fn go_back(run: &Run, done: u64) -> Result<u64, TrainError> {
    let ranks = run.ranks.each();
    let to = if ranks.is_first() {
        checkpoint::go_back(&run.folder.path, done, run.checkpoint_every)?
    } else {
        0
    };
    Ok(ranks.gather_values(&to)?[0])
}

/// What the checkpoint after `step` updates is made of besides what has learned, of which the first rank
/// is lent what others have.
fn gathered(run: &mut Run, step: u64, frozen_sha256: Option<String>) -> Result<State, TrainError> {
    run.stage.at_checkpoint()?;
    run.ranks.lend_moments(&run.stage.model().params(), &mut run.optimizer)?;
    Ok(State {
        step,
        frozen_sha256,
        tokenizer_sha256: run.tokenizer_sha256.clone(),
        corpora_sha256: run.corpora_sha256.clone(),
        devices: run.devices.clone(),
        ranks: run.numbers.clone(),
        data_history: run.data_history.clone(),
        troubles: run.troubles.clone(),
        recent_losses: run.guard.recent().clone(),
        early_stop: run.early_stop.as_ref().map(EarlyStop::progress).unwrap_or_default(),
        held_out_sha256: run.held_out_sha256.clone(),
        held_out_corrupt: run.held_out_corrupt.clone(),
        stops: run.stops.clone(),
        unmeasured: run.unmeasured.clone(),
    })
}

/// The single values of a model whose names `wanted` chooses, after `view`, under `group` and their
/// names.
pub(crate) fn observe(
    model: &dyn Trainable,
    wanted: impl Fn(&str) -> bool,
    group: &str,
    view: impl Fn(f64) -> f64,
) -> BTreeMap<String, f64> {
    let parameters = model.params().into_iter().flat_map(Params::iter);
    let wanted = parameters.filter(|parameter| wanted(&parameter.name));
    let value = |parameter: &Parameter| {
        let value = f64::from(parameter.weight.values()[0]);
        (format!("{group}.{}", parameter.name), view(value))
    };
    wanted.map(value).collect()
}
