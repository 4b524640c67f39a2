//! What a step measured, and a validation after it where one is due, on its way to the outputs.

use std::collections::BTreeMap;
use std::time::Instant;

use flamingo_dataset::Batch;

use crate::early_stop::Verdict;
use crate::ended::{self, Ended};
use crate::error::TrainError;
use crate::extent::Extent;
use crate::gradient::StepGradient;
use crate::metrics::StepMetrics;
use crate::outputs::Outputs;
use crate::run::Run;
use crate::validation::{self, Found};

/// What the loop knows of the step that is done.
pub(crate) struct Update {
    pub(crate) made: StepGradient,
    pub(crate) extents: Vec<Extent>,
    /// Since it began.
    pub(crate) clock: Instant,
    pub(crate) data_wait_seconds: f64,
    /// Why it changed nothing.
    pub(crate) skipped: Option<String>,
    /// What was seen before the update.
    pub(crate) seen: BTreeMap<String, f64>,
}

/// All that is measured of it but for a validation.
pub(crate) fn measured(
    run: &Run,
    batches: &[Batch],
    update: Update,
) -> Result<StepMetrics, TrainError> {
    let Update { made, extents, seen: mut observed, .. } = update;
    observed.extend(run.stage.observe());
    observed.extend(made.norms.observed());
    observed.extend(made.z_losses(run.ranks.each(), batches)?);
    observed.retain(|_, value| value.is_finite());
    let finite = batches.iter().zip(&made.losses).filter(|(_, loss)| loss.is_finite());
    let learned = batches.iter().filter(|batch| run.objective.learns_from(batch));
    let flop = learned.map(|batch| run.stage.flop(batch)).sum();
    let seconds = update.clock.elapsed().as_secs_f64();
    Ok(StepMetrics {
        step: run.done,
        loss: run.objective.value(batches, &extents, &made.losses),
        losses: finite.map(|(batch, loss)| (batch.name.clone(), f64::from(*loss))).collect(),
        lr: run.schedule.lr(run.done - 1),
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

/// Writes what a step measured, after a validation where that is due. Where it cannot be made it is made
/// up for when the run goes on.
pub(crate) fn add(
    run: &mut Run,
    metrics: &mut StepMetrics,
    outputs: &mut Outputs,
) -> Result<Result<Option<Verdict>, TrainError>, TrainError> {
    let verdict = validate(run, metrics, outputs);
    outputs.add(run, metrics)?;
    run.unmeasured = (!matches!(verdict, Ok(Some(_)))).then(|| metrics.clone());
    Ok(verdict)
}

/// Makes up for a validation that was cut off; says how the run ends where it is again.
pub(crate) fn make_up(run: &mut Run, outputs: &mut Outputs) -> Result<Option<Ended>, TrainError> {
    let Some(mut metrics) = run.unmeasured.clone() else { return Ok(None) };
    let verdict = add(run, &mut metrics, outputs)?;
    if matches!(verdict, Ok(Some(_))) {
        return Ok(None);
    }
    ended::without_rows(run, verdict.map(|_| ()), outputs).map(Some)
}

/// Validates the model where that is due, and adds the measures to those of the step. None where a signal
/// cuts it off, or another rank cannot make it.
fn validate(
    run: &mut Run,
    metrics: &mut StepMetrics,
    outputs: &Outputs,
) -> Result<Option<Verdict>, TrainError> {
    let step = metrics.step;
    let Some(validation) = run.validation.as_ref().filter(|it| it.is_due(step)) else {
        return Ok(Some(Verdict::GoesOn));
    };
    // One rank alone measures, so that all of them decide by the same bits.
    let measure = || validation.measure(&mut *run.stage, run.ema.as_ref(), step);
    let own = run.ranks.each().is_first().then(measure).transpose();
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
    outputs.note(&format!("after step {step}: {}", validation::text(&measures)));
    let stop = run.early_stop.as_mut();
    let verdict = stop.map_or(Verdict::GoesOn, |stop| stop.look(step, &measures));
    if let (Verdict::Stops, Some(stop)) = (verdict, &run.early_stop) {
        outputs.note(&stop.reason());
    }
    metrics.observed.extend(measures.into_iter().filter(|(_, value)| value.is_finite()));
    Ok(Some(verdict))
}
