//! What a run writes while it goes on: metrics, events, report, progress and checkpoints. With several ranks
//! the first one alone does.

use crate::accounting;
use crate::checkpoint::{Keep, State};
use crate::checkpoint_writer::{CheckpointWriter, Job};
use crate::error::TrainError;
use crate::few_shot::FewShot;
use crate::metrics::{MetricsLog, StepMetrics};
use crate::progress::Progress;
use crate::report::Report;
use crate::run::Run;
use crate::stop::StopSignals;
use crate::tensorboard::Events;
use crate::trouble::{self, Trouble};

/// Everything that is written; nothing on other ranks than the first.
pub(crate) struct Outputs(Option<Open>);

struct Open {
    log: MetricsLog,
    report: Report,
    progress: Progress,
    /// None until there is a step to be made.
    steps: Option<(Events, CheckpointWriter)>,
}

impl Outputs {
    /// Goes on after the updates that are done.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub(crate) fn open(run: &mut Run) -> Result<Self, TrainError> {
        let done = run.done;
        if !run.ranks.each().is_first() {
            return Ok(Self(None));
        }
        // A step whose validation is made up for is written then.
        let logged = if run.unmeasured.is_some() { done - 1 } else { done };
        let log = MetricsLog::open(&run.folder.path, logged)?;
        let progress = Progress::start(done, run.stop_after);
        let mut report = Report::open(&run.folder.path)?;
        report.add_scores(run.few_shot.open(done)?);
        Ok(Self(Some(Open { log, report, progress, steps: None })))
    }

    /// Prepares for steps.
    ///
    /// # Errors
    /// When a file cannot be written, or the system has no thread left.
    pub(crate) fn begin(&mut self, run: &Run) -> Result<(), TrainError> {
        let Some(open) = &mut self.0 else { return Ok(()) };
        let events = Events::create(&run.folder.path, run.done)?;
        open.steps = Some((events, CheckpointWriter::start(run.learned(), run.done)?));
        Ok(())
    }

    /// Says something that stays on the screen.
    pub(crate) fn note(&self, text: &str) {
        if let Some(open) = &self.0 {
            open.progress.note(text);
        }
    }

    /// Says where a run begins.
    pub(crate) fn note_start(&self, run: &Run) {
        if run.done > 0 {
            self.note(&format!("going on after step {}", run.done));
        }
        if let Some((_, device)) = run.devices.last_key_value() {
            self.note(&format!("device: {device}"));
        }
        if let Some(warning) = run.schedule.warning() {
            self.note(&warning);
        }
    }

    /// Says what the weights are that are not trained, if there are any.
    pub(crate) fn note_frozen(&self, when: &str, sha256: Option<&str>) {
        if let Some(sha256) = sha256 {
            self.note(&format!("frozen weights at the {when}: sha256 {sha256}"));
        }
    }

    /// Says what followed the last step that went wrong.
    ///
    /// # Errors
    /// What was found, where it ends the run; it stands in the report then.
    pub(crate) fn note_trouble(&mut self, run: &Run) -> Result<(), TrainError> {
        let Some(trouble) = run.troubles.last() else { return Ok(()) };
        if !trouble.stops {
            self.note(&trouble.to_string());
            return Ok(());
        }
        if self.0.is_some() {
            // That it cannot be kept or drawn is the lesser evil.
            let _ = trouble::note_stop(&run.folder.path, &run.stops, trouble);
            let _ = self.draw(run);
        }
        let (step, found, rows) = (trouble.step, trouble.found.clone(), trouble.rows_text());
        Err(TrainError::Trouble { step, found, rows })
    }

    /// Writes what a step measured.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn add(&mut self, run: &Run, metrics: &StepMetrics) -> Result<(), TrainError> {
        let Some(open) = &mut self.0 else { return Ok(()) };
        open.log.append(metrics)?;
        if let Some((events, _)) = &mut open.steps {
            events.append(metrics)?;
        }
        open.report.add(metrics);
        open.report.draw_if_due(&run.devices, &troubles(run), &open.progress);
        open.progress.show(metrics);
        open.progress.note_all(accounting::note(metrics.step, &metrics.observed));
        Ok(())
    }

    /// Begins to write a checkpoint.
    ///
    /// # Errors
    /// As those of [`CheckpointWriter::write`].
    pub(crate) fn save(
        &mut self,
        run: &Run,
        state: State,
        keep: Option<Keep>,
    ) -> Result<(), TrainError> {
        let Some(Open { log, progress, steps: Some((_, checkpoints)), .. }) = &mut self.0 else {
            return Ok(());
        };
        let step = state.step;
        let job = Job { run: run.folder.path.clone(), state, log: log.shared()?, keep };
        let seconds = checkpoints.write(job, run.learned())?;
        progress.note_wait(step, seconds);
        Ok(())
    }

    /// Brings what was learned so far to the disk where no checkpoint has it yet.
    ///
    /// # Errors
    /// As those of [`CheckpointWriter::settle`], and when another rank cannot be reached.
    pub(crate) fn settle(&mut self, run: &Run, state: State) -> Result<(), TrainError> {
        if let Some(Open { log, steps: Some((_, checkpoints)), .. }) = &mut self.0 {
            let (run_path, log) = (run.folder.path.clone(), log.shared()?);
            let job = Job { run: run_path, state, log, keep: None };
            checkpoints.settle(job, run.learned())?;
        }
        run.ranks.each().barrier()
    }

    /// Fails if a checkpoint could not be written. Does not wait.
    ///
    /// # Errors
    /// When it could not.
    pub(crate) fn check(&mut self) -> Result<(), TrainError> {
        match &mut self.0 {
            Some(Open { steps: Some((_, checkpoints)), .. }) => checkpoints.check(),
            _ => Ok(()),
        }
    }

    /// Waits, on all ranks, until the last checkpoint is written.
    ///
    /// # Errors
    /// When it could not be, or another rank cannot be reached.
    pub(crate) fn wait(&mut self, run: &Run) -> Result<(), TrainError> {
        if let Some(Open { steps: Some((_, checkpoints)), .. }) = &mut self.0 {
            checkpoints.wait()?;
        }
        run.ranks.each().barrier()
    }

    /// Puts the checkpoint after `done` updates to tasks where that is due; a run that was stopped before it
    /// could does so when it goes on.
    ///
    /// # Errors
    /// As those of [`FewShot::evaluate`], and when the checkpoint could not be written.
    pub(crate) fn evaluate(&mut self, few_shot: &mut FewShot, done: u64) -> Result<(), TrainError> {
        let Some(Open { report, progress, steps: Some((events, checkpoints)), .. }) = &mut self.0
        else {
            return Ok(());
        };
        if !few_shot.is_due(done) {
            return Ok(());
        }
        checkpoints.wait()?;
        let signals = StopSignals::listen().map_err(TrainError::Signals)?;
        let scores = few_shot.evaluate(done, progress, || signals.came().is_some())?;
        events.append_scores(&scores)?;
        report.add_scores(&scores);
        Ok(())
    }

    /// Draws the report once more, after the last step.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn draw(&mut self, run: &Run) -> Result<(), TrainError> {
        match &mut self.0 {
            Some(open) => open.report.draw(&run.devices, &troubles(run)),
            None => Ok(()),
        }
    }

    /// Leaves the progress as it stands.
    pub(crate) fn finish(&self) {
        if let Some(open) = &self.0 {
            open.progress.finish();
        }
    }
}

/// All steps that went wrong, those that ended the run among them.
fn troubles(run: &Run) -> Vec<Trouble> {
    let mut all = [&run.stops[..], &run.troubles].concat();
    all.sort_by_key(|trouble| trouble.step);
    all
}
