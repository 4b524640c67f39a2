//! Checkpoints that are written while training goes on.
//!
//! Training waits as long as it takes to copy what changes: trained weights, their moments and averages. A thread
//! writes the copy, brings it to disk and moves `latest`, as [`checkpoint::write`] does, then removes old
//! checkpoints. One is written at a time. The memory of the copy is got at the start, beside the first
//! steps, and kept; where there is too little of it, training waits for the disk.

use std::path::{Path, PathBuf};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use flamingo_model::{ModelError, Snapshot, Spare, Tensors};

use crate::checkpoint::{self, Keep, State};
use crate::ema::{self, Ema};
use crate::error::TrainError;
use crate::metrics::MetricsLog;
use crate::optimizer::AdamW;
use crate::room::{self, Size};
use crate::stage::Stage;

/// What a checkpoint is made of besides the model and its moments.
#[derive(Debug)]
pub struct Job {
    /// The run folder.
    pub run: PathBuf,
    /// What the checkpoint knows.
    pub state: State,
    /// The log, which must be on disk before `latest` moves.
    pub log: MetricsLog,
    /// Which old checkpoints stay; none if all do.
    pub keep: Option<Keep>,
}

/// The checkpoint that is being written, if there is one. Dropping it waits for its end.
#[derive(Debug)]
pub struct CheckpointWriter {
    /// The step of the newest checkpoint, written or being written.
    newest: u64,
    size: Size,
    /// Memory for the copy, while no thread uses it.
    spare: Spare,
    writing: Option<JoinHandle<Result<Spare, TrainError>>>,
}

/// What has learned, and what its updates go by.
#[derive(Clone, Copy)]
pub struct Learned<'a> {
    /// The model.
    pub stage: &'a dyn Stage,
    /// Its moments.
    pub optimizer: &'a AdamW,
    /// The running average of its weights, if one is kept.
    pub ema: Option<&'a Ema>,
}

/// The same at one moment, by itself.
struct Copied {
    model: Snapshot,
    moments: Tensors,
    averages: Option<Tensors>,
}

impl CheckpointWriter {
    /// Begins to get memory for the copies, in a run whose newest checkpoint is that of step `newest`.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start(learned: Learned, newest: u64) -> Result<Self, TrainError> {
        let params = learned.stage.model().params();
        let copies = room::copies(learned.ema);
        let (size, spare) = (Size::of(&params, copies), Spare::of(&params, copies));
        let mut writer = Self { newest, size, spare, writing: None };
        if size.fits_memory(0) {
            // What it fails to get is asked for again by the first checkpoint.
            writer.spawn(|spare| {
                let _ = spare.fill();
                Ok(())
            })?;
        }
        Ok(writer)
    }

    /// Begins to write a checkpoint, after the one before it is written. Says how many seconds that and
    /// the copy took.
    ///
    /// # Errors
    /// When the one before it could not be written, the disk has no room, or the device fails; and when
    /// this one cannot be written, where memory does not suffice for a copy.
    pub fn write(&mut self, job: Job, learned: Learned) -> Result<f64, TrainError> {
        let clock = Instant::now();
        self.wait()?;
        self.newest = job.state.step;
        self.size.require_disk(&job.run, room::disk_bytes)?;
        let fits = self.size.fits_memory(self.spare.bytes());
        match fits.then(|| Copied::take(learned, &self.spare)) {
            Some(Ok(copied)) => self.spawn(move |spare| {
                job.write_copied(&copied)?;
                copied.into_spare(spare);
                Ok(())
            })?,
            Some(Err(error)) if !error.is_out_of_memory() => {
                return Err(TrainError::model("save")(error));
            }
            _ => {
                let moments = learned.optimizer.to_tensors(&self.spare);
                let moments = moments.map_err(TrainError::model("save"))?;
                job.write(&moments, learned.stage.frozen_sha256(), |folder| {
                    learned.stage.save(folder)?;
                    let averages =
                        learned.ema.map(|ema| ema.to_tensors(&self.spare)).transpose()?;
                    averages.map_or(Ok(()), |averages| ema::save(&averages, folder))
                })?;
            }
        }
        Ok(clock.elapsed().as_secs_f64())
    }

    /// Writes a checkpoint unless that of its step is the newest, and waits until it is written.
    ///
    /// # Errors
    /// As those of [`write`](Self::write) and [`wait`](Self::wait).
    pub fn settle(&mut self, job: Job, learned: Learned) -> Result<(), TrainError> {
        if job.state.step != self.newest {
            self.write(job, learned)?;
        }
        self.wait()
    }

    fn spawn(
        &mut self,
        work: impl FnOnce(&Spare) -> Result<(), TrainError> + Send + 'static,
    ) -> Result<(), TrainError> {
        let spare = std::mem::take(&mut self.spare);
        let work = move || work(&spare).map(|()| spare);
        let thread = Builder::new().name("checkpoint".to_owned()).spawn(work);
        self.writing = Some(thread.map_err(TrainError::Thread)?);
        Ok(())
    }

    /// Fails if the checkpoint that was being written could not be. Does not wait.
    ///
    /// # Errors
    /// When it could not be written; the one before it stands.
    pub fn check(&mut self) -> Result<(), TrainError> {
        if self.writing.as_ref().is_some_and(JoinHandle::is_finished) {
            return self.wait();
        }
        Ok(())
    }

    /// Waits until the checkpoint is written and `latest` names it.
    ///
    /// # Errors
    /// When it could not be written; the one before it stands.
    pub fn wait(&mut self) -> Result<(), TrainError> {
        let Some(thread) = self.writing.take() else { return Ok(()) };
        let ended = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        self.spare = ended?;
        Ok(())
    }
}

impl Drop for CheckpointWriter {
    fn drop(&mut self) {
        if let Some(thread) = self.writing.take() {
            // The run ends with another error, which is the one to report.
            let _ = thread.join();
        }
    }
}

impl Copied {
    fn take(learned: Learned, spare: &Spare) -> Result<Self, ModelError> {
        Ok(Self {
            model: learned.stage.snapshot(spare)?,
            moments: learned.optimizer.to_tensors(spare)?,
            averages: learned.ema.map(|ema| ema.to_tensors(spare)).transpose()?,
        })
    }

    /// Gives the memory back.
    fn into_spare(self, spare: &Spare) {
        self.model.into_spare(spare);
        self.moments.into_spare(spare);
        if let Some(averages) = self.averages {
            averages.into_spare(spare);
        }
    }
}

impl Job {
    fn write_copied(&self, copied: &Copied) -> Result<(), TrainError> {
        let frozen = self.state.frozen_sha256.as_ref().map(|_| copied.model.frozen_sha256());
        self.write(&copied.moments, frozen, |folder| {
            copied.model.save(folder)?;
            copied.averages.as_ref().map_or(Ok(()), |averages| ema::save(averages, folder))
        })
    }

    /// `frozen` is the digest of the weights that must be what they were.
    fn write(
        &self,
        moments: &Tensors,
        frozen: Option<String>,
        save_model: impl FnOnce(&Path) -> Result<(), ModelError>,
    ) -> Result<(), TrainError> {
        if frozen != self.state.frozen_sha256 {
            let text = |digest: Option<String>| digest.unwrap_or_else(|| "none".to_owned());
            let was = text(self.state.frozen_sha256.clone());
            return Err(TrainError::FrozenChanged { was, now: text(frozen) });
        }
        self.log.sync()?;
        checkpoint::write(&self.run, &self.state, moments, save_model)?;
        match &self.keep {
            Some(keep) => checkpoint::prune(&self.run, self.state.step, keep),
            None => Ok(()),
        }
    }
}
