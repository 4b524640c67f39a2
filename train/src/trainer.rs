//! The loop: rows in, gradients of all datasets into one update, metrics and checkpoints out.
//!
//! The objective is the sum over datasets of lambda times the mean loss; gradients accumulate over
//! the datasets before one update (paper, section 2.4 and appendix B.1.2). What differs between
//! stages is behind [`Stage`].

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use flamingo_dataset::{Batch, Loader};
use flamingo_model::{Gradients, ModelError, Parameter, Params, Trainable};

use crate::checkpoint::{self, State};
use crate::error::TrainError;
use crate::metrics::{MetricsLog, StepMetrics};
use crate::optimizer::AdamW;
use crate::progress::Progress;
use crate::report;
use crate::run_folder::RunFolder;
use crate::schedule::Schedule;

/// What differs between the stages of training.
pub trait Stage {
    /// Mean loss of a batch.
    ///
    /// # Errors
    /// When the batch does not fit the model or the device is out of memory.
    fn loss(&self, batch: &Batch) -> Result<f32, TrainError>;

    /// Mean loss of a batch; adds `weight` times its gradient.
    ///
    /// # Errors
    /// When the batch does not fit the model or the device is out of memory.
    fn step(
        &self,
        batch: &Batch,
        weight: f32,
        gradients: Gradients,
    ) -> Result<(f32, Gradients), TrainError>;

    /// The model's parameters, for reading.
    fn model(&self) -> &dyn Trainable;

    /// The model's parameters, for updating.
    fn model_mut(&mut self) -> &mut dyn Trainable;

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

    /// Images and clips of a batch that the stage looks at.
    fn n_images(&self, batch: &Batch) -> u64 {
        batch.image_count.iter().sum::<usize>() as u64
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
    /// The rows of each step.
    pub loader: Loader,
    /// The optimizer, with the moments of the checkpoint.
    pub optimizer: AdamW,
    /// The learning rate of each step.
    pub schedule: Schedule,
    /// Lambda of each dataset.
    pub weights: Vec<f64>,
    /// Updates between checkpoints.
    pub checkpoint_every: u64,
    /// Checkpoints that stay.
    pub keep_last: usize,
    /// Updates after which the run stops.
    pub stop_after: u64,
    /// Digest of the tokenizer's file.
    pub tokenizer_sha256: String,
    /// Digests of the corpora's manifests.
    pub corpora_sha256: Vec<String>,
}

/// Trains until the run's last step.
///
/// # Errors
/// When rows cannot be read, the loss is no longer a number, or the disk fails. The last checkpoint
/// stands.
pub fn train(mut run: Run) -> Result<(), TrainError> {
    let mut done = run.folder.step();
    let mut log = MetricsLog::open(&run.folder.path, done)?;
    let mut progress = Progress::start(done, run.stop_after);
    if done > 0 {
        progress.note(&format!("going on after step {done}"));
    }
    let frozen_sha256 = run.stage.frozen_sha256();
    note_frozen("start", frozen_sha256.as_deref(), &progress);

    if done >= run.stop_after {
        // Killed between its last checkpoint and its report.
        report::write(&run.folder.path)?;
    }
    while done < run.stop_after {
        let clock = Instant::now();
        let batches = run.loader.next_step().map_err(TrainError::loader)?;
        let data_wait_seconds = clock.elapsed().as_secs_f64();

        if done == 0 {
            check_fresh(run.stage, &batches, &progress)?;
        }

        let (losses, mut gradients) = accumulate(&run, &batches, done + 1)?;
        let grad_norm = AdamW::norm(&run.stage.model().params(), &mut gradients)
            .map_err(TrainError::model("run"))?;
        require_finite("the norm of the gradient", grad_norm, done + 1, &batches)?;

        let lr = run.schedule.lr(done);
        let params = &mut run.stage.model_mut().params_mut();
        run.optimizer
            .update(params, &mut gradients, grad_norm, lr, done)
            .map_err(TrainError::model("run"))?;
        done += 1;

        let metrics = StepMetrics {
            step: done,
            loss: objective(&losses, &batches, &run.weights),
            losses,
            lr,
            grad_norm,
            tokens: batches.iter().map(n_predicted).sum(),
            images: batches.iter().map(|batch| run.stage.n_images(batch)).sum(),
            seconds: clock.elapsed().as_secs_f64(),
            data_wait_seconds,
            corrupt_rows: batches.iter().flat_map(|batch| batch.corrupt.clone()).collect(),
            observed: run.stage.observe(),
        };
        log.append(&metrics)?;
        progress.show(&metrics);
        if done.is_multiple_of(run.checkpoint_every) || done == run.stop_after {
            log.sync()?;
            require_frozen(frozen_sha256.as_deref(), run.stage)?;
            run.stage.at_checkpoint()?;
            save(&run, done, frozen_sha256.clone())?;
            report::write(&run.folder.path)?;
        }
    }
    note_frozen("end", run.stage.frozen_sha256().as_deref(), &progress);
    progress.finish();
    Ok(())
}

fn check_fresh(
    stage: &dyn Stage,
    batches: &[Batch],
    progress: &Progress,
) -> Result<(), TrainError> {
    for batch in batches {
        if let Some(note) = stage.check_fresh(batch)? {
            progress.note(&format!("{}: {note}", batch.name));
        }
    }
    Ok(())
}

fn note_frozen(when: &str, sha256: Option<&str>, progress: &Progress) {
    if let Some(sha256) = sha256 {
        progress.note(&format!("frozen weights at the {when}: sha256 {sha256}"));
    }
}

/// Losses of all datasets, and the sum of their gradients, each times its lambda.
fn accumulate(
    run: &Run,
    batches: &[Batch],
    step: u64,
) -> Result<(BTreeMap<String, f64>, Gradients), TrainError> {
    let mut losses = BTreeMap::new();
    let mut gradients = Gradients::default();
    for batch in batches {
        let weight = run.weights[batch.dataset] as f32;
        // A dataset without weight is only watched.
        let (loss, sum) = if weight == 0.0 {
            (run.stage.loss(batch)?, gradients)
        } else {
            run.stage.step(batch, weight, gradients)?
        };
        let loss = f64::from(loss);
        let what = format!("the loss of dataset `{}`", batch.name);
        require_finite(&what, loss, step, std::slice::from_ref(batch))?;
        losses.insert(batch.name.clone(), loss);
        gradients = sum;
    }
    Ok((losses, gradients))
}

/// The sum of the losses, each times its lambda.
fn objective(losses: &BTreeMap<String, f64>, batches: &[Batch], weights: &[f64]) -> f64 {
    batches.iter().map(|batch| weights[batch.dataset] * losses[&batch.name]).sum()
}

fn require_finite(what: &str, value: f64, step: u64, batches: &[Batch]) -> Result<(), TrainError> {
    if value.is_finite() {
        return Ok(());
    }
    let rows = batches.iter().map(|batch| {
        let rows: Vec<String> = batch.rows.iter().map(u64::to_string).collect();
        format!("{} {}", batch.name, rows.join(" "))
    });
    let rows = rows.collect::<Vec<_>>().join(", ");
    Err(TrainError::NotFinite { step, what: what.to_owned(), value, rows })
}

fn require_frozen(was: Option<&str>, stage: &dyn Stage) -> Result<(), TrainError> {
    let now = stage.frozen_sha256();
    if now.as_deref() == was {
        return Ok(());
    }
    let text = |digest: Option<&str>| digest.unwrap_or("none").to_owned();
    Err(TrainError::FrozenChanged { was: text(was), now: text(now.as_deref()) })
}

fn save(run: &Run, step: u64, frozen_sha256: Option<String>) -> Result<(), TrainError> {
    let state = State {
        step,
        frozen_sha256,
        tokenizer_sha256: run.tokenizer_sha256.clone(),
        corpora_sha256: run.corpora_sha256.clone(),
    };
    let moments = run.optimizer.to_tensors();
    let save_model = |folder: &Path| run.stage.save(folder);
    checkpoint::write(&run.folder.path, &state, &moments, save_model, run.keep_last)
}

fn n_predicted(batch: &Batch) -> u64 {
    batch.loss_mask.iter().filter(|mask| **mask > 0.0).count() as u64
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
