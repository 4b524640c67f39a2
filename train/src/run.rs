//! A run that is ready to go on: all that the loop works with, and what it makes of it in each step.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use flamingo_dataset::{Batch, Loader};

use crate::accounting::{Accounting, Mixture};
use crate::checkpoint::{Keep, State};
use crate::checkpoint_writer::Learned;
use crate::data_history::DataHistory;
use crate::device::Devices;
use crate::early_stop::EarlyStop;
use crate::ema::Ema;
use crate::error::TrainError;
use crate::extent::{Extent, all_extents};
use crate::few_shot::FewShot;
use crate::gradient::{Objective, Step, StepGradient};
use crate::looks::Looks;
use crate::machine::Gauge;
use crate::metrics::StepMetrics;
use crate::optimizer::AdamW;
use crate::ranks::{self, Ranks};
use crate::run_folder::RunFolder;
use crate::schedule::Schedule;
use crate::stage::Stage;
use crate::trouble::{Finding, Guard, Trouble};
use crate::validation::{CorruptTold, Validation};

/// A run that is ready to go on.
pub struct Run<'run> {
    /// Its folder.
    pub folder: &'run RunFolder,
    /// Updates that are done.
    pub done: u64,
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
    /// Digest of the weights that are not trained, if there are any, once the run has begun.
    pub frozen_sha256: Option<String>,
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
    /// Whether its last step is done, or an early stop has ended it.
    pub(crate) fn is_over(&self) -> bool {
        let has_stopped = |stop: &EarlyStop| stop.progress().has_stopped;
        self.done >= self.stop_after || self.early_stop.as_ref().is_some_and(has_stopped)
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

    /// What is wrong with a step, if anything, by the losses that are learned from and the gradient.
    pub(crate) fn find_trouble(
        &mut self,
        batches: &[Batch],
        made: &StepGradient,
    ) -> Option<Finding> {
        let all = batches.iter().zip(&made.losses);
        let learned = all.filter(|(batch, _)| self.objective.learns_from(batch));
        let losses: Vec<(&str, f32)> = learned.map(|(batch, loss)| (&*batch.name, *loss)).collect();
        self.guard.look(&losses, made.norms.all)
    }

    /// What is seen of the model and of the gradients of the datasets before the next update.
    pub(crate) fn look(
        &mut self,
        batches: &[Batch],
        extents: &[Extent],
        made: &mut StepGradient,
    ) -> Result<BTreeMap<String, f64>, TrainError> {
        let done = self.done;
        let mut seen = self.looks.look(&self.step(), batches, made, done)?;
        let Self { stage, objective, optimizer, ranks, accounting, .. } = self;
        let step = Step { stage: &**stage, objective, optimizer, ranks };
        seen.extend(accounting.look(Mixture { step, batches, extents, made, done })?);
        Ok(seen)
    }

    /// Makes the next update, and lets the average follow. A step in which nothing was learned from changes
    /// nothing: moments and weight decay would move the weights all the same.
    pub(crate) fn update(&mut self, made: &mut StepGradient) -> Result<(), TrainError> {
        let (clock, done) = (Instant::now(), self.done);
        let StepGradient { gradients, norms, is_learned, .. } = made;
        if !*is_learned {
            return Ok(());
        }
        let lr = self.schedule.lr(done);
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

    /// What has learned, for a checkpoint.
    pub(crate) fn learned(&self) -> Learned<'_> {
        Learned { stage: self.stage, optimizer: &self.optimizer, ema: self.ema.as_ref() }
    }

    /// What else a checkpoint knows; the first rank is lent the moments that others have.
    pub(crate) fn state(&mut self) -> Result<State, TrainError> {
        self.stage.at_checkpoint()?;
        self.ranks.lend_moments(&self.stage.model().params(), &mut self.optimizer)?;
        Ok(State {
            step: self.done,
            frozen_sha256: self.frozen_sha256.clone(),
            tokenizer_sha256: self.tokenizer_sha256.clone(),
            corpora_sha256: self.corpora_sha256.clone(),
            devices: self.devices.clone(),
            ranks: self.numbers.clone(),
            data_history: self.data_history.clone(),
            troubles: self.troubles.clone(),
            recent_losses: self.guard.recent().clone(),
            early_stop: self.early_stop.as_ref().map(EarlyStop::progress).unwrap_or_default(),
            held_out_sha256: self.held_out_sha256.clone(),
            held_out_corrupt: self.held_out_corrupt.clone(),
            stops: self.stops.clone(),
            unmeasured: self.unmeasured.clone(),
        })
    }

    /// For `map_err` on what belongs to the next update.
    pub(crate) fn failed(&self) -> impl Fn(TrainError) -> TrainError {
        move |error| error.in_step(self.done + 1, &self.less_memory)
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
    pub(crate) fn fills_a_batch_without(&self, rows: &[u64]) -> bool {
        let more: BTreeSet<&u64> = rows.iter().filter(|row| !self.left_out.contains(row)).collect();
        let left = self.n_rows.saturating_sub((self.left_out.len() + more.len()) as u64);
        left >= self.batch_rows as u64
    }
}
