//! The loop: rows in, gradients of all datasets into one update, metrics and checkpoints out.
//!
//! The objective is the sum over datasets of lambda times the mean loss; gradients accumulate over
//! the datasets before one update (paper, section 2.4 and appendix B.1.2). What differs between
//! stages is behind [`Stage`](crate::stage::Stage); what the loop works with is a [`Run`].

use std::collections::BTreeMap;
use std::time::Instant;

use flamingo_dataset::Batch;

use crate::early_stop::Verdict;
use crate::ended::{self, Ended};
use crate::error::TrainError;
use crate::gradient::accumulate;
use crate::measured::{Update, add, make_up, measured};
use crate::metrics::StepMetrics;
use crate::outputs::Outputs;
use crate::recovery::{GoesOn, recover};
use crate::run::Run;
use crate::stop::{StopSignal, StopSignals};

/// Trains until the run's last step, until a signal stops it, or until a step goes wrong.
///
/// # Errors
/// When rows cannot be read, a step goes wrong and the run is to stop then, the user stops it, or the
/// disk fails. The last checkpoint stands.
pub fn train(mut run: Run) -> Result<Ended, TrainError> {
    let signals = StopSignals::listen().map_err(TrainError::Signals)?;
    let mut outputs = begin(&mut run)?;
    if let Some(ended) = make_up(&mut run, &mut outputs)? {
        return Ok(ended);
    }
    while !run.is_over() {
        outputs.check()?;
        outputs.evaluate(&mut run.few_shot, run.done)?;
        let clock = Instant::now();
        let rows = run.loader.next_step_unless(&|| signals.came().is_some());
        let rows = run.ranks.together(rows)?;
        let Ok(Some(batches)) = rows else {
            let why = rows.map(|_| ()).map_err(TrainError::loader);
            return ended::without_rows(&mut run, why, &mut outputs);
        };
        let data_wait_seconds = clock.elapsed().as_secs_f64();
        check_fresh(&run, &batches, &outputs).map_err(run.failed())?;

        let extents = run.extents(&batches)?;
        let mut made = accumulate(&run.step(), &batches, &extents).map_err(run.failed())?;
        let found = run.find_trouble(&batches, &made);
        let mut seen = BTreeMap::new();
        if let Some(found) = &found {
            let goes_on = recover(&mut run, &batches, &extents, found, &mut outputs)?;
            if goes_on == GoesOn::FromACheckpoint {
                outputs.finish();
                return Ok(Ended::GoesOn(run.troubles));
            }
        } else {
            let looked = run.look(&batches, &extents, &mut made);
            seen = looked.map_err(run.failed())?;
            run.update(&mut made).map_err(run.failed())?;
        }
        run.done += 1;

        let skipped = found.map(|found| found.text);
        let update = Update { made, extents, clock, data_wait_seconds, skipped, seen };
        let mut metrics = measured(&run, &batches, update)?;
        let verdict = add(&mut run, &mut metrics, &mut outputs)?;
        let Ok(Some(verdict)) = verdict else {
            return ended::without_rows(&mut run, verdict.map(|_| ()), &mut outputs);
        };
        let signal = run.ranks.signal(signals.came())?;
        save_if_due(&mut run, &metrics, verdict, signal, &mut outputs)?;
        if signal.is_some() {
            outputs.wait(&run)?;
            return ended::by_signal(&run, signal, &mut outputs);
        }
        if metrics.skipped.is_some() && run.done < run.stop_after {
            // The rows of the step are left out from here on.
            outputs.wait(&run)?;
            outputs.finish();
            return Ok(Ended::GoesOn(run.troubles));
        }
    }
    ended::at_the_end(&mut run, signals, &mut outputs)
}

/// Opens what the run writes, says where it begins, and makes sure that all ranks begin with the same weights.
fn begin(run: &mut Run) -> Result<Outputs, TrainError> {
    let mut outputs = Outputs::open(run)?;
    if run.ranks.each().is_first() {
        // The others know no metrics that are theirs to read; what is made of these is logged by the first.
        run.accounting.recall(&run.folder.path)?;
    }
    outputs.note_start(run);
    run.frozen_sha256 = run.stage.frozen_sha256();
    outputs.note_frozen("start", run.frozen_sha256.as_deref());
    run.ranks.require_same_weights(&run.stage.model().params())?;
    // One that is over may have been stopped before its last checkpoint was evaluated, or its report drawn.
    if !run.is_over() || run.few_shot.is_due(run.done) || run.unmeasured.is_some() {
        outputs.begin(run)?;
    }
    Ok(outputs)
}

/// Looks, before the first update, at the first part of each batch: what a step has memory for.
fn check_fresh(run: &Run, batches: &[Batch], outputs: &Outputs) -> Result<(), TrainError> {
    let batches = batches.iter().filter(|_| run.done == 0);
    for part in batches.filter_map(|batch| run.objective.parts(batch).next()) {
        if let Some(note) = run.stage.check_fresh(&part)? {
            outputs.note(&format!("{}: {note}", part.name));
        }
    }
    Ok(())
}

/// Begins to write a checkpoint of a step where one is due, or where what follows needs one.
fn save_if_due(
    run: &mut Run,
    metrics: &StepMetrics,
    verdict: Verdict,
    signal: Option<StopSignal>,
    outputs: &mut Outputs,
) -> Result<(), TrainError> {
    let is_last = run.done == run.stop_after || verdict == Verdict::Stops;
    let is_due = run.done.is_multiple_of(run.checkpoint_every) || is_last;
    let is_needed = verdict == Verdict::Best || signal.is_some() || metrics.skipped.is_some();
    if !is_due && !is_needed {
        return Ok(());
    }
    let state = run.state()?;
    // Others are taken in need; they must not push out what came before it.
    outputs.save(run, state, is_due.then_some(run.keep))?;
    run.optimizer.set_elsewhere(BTreeMap::new());
    Ok(())
}
