//! What a run does about a step that goes wrong: it stops, skips the step, or goes back to a checkpoint, and
//! leaves out the rows from then on. What counts as wrong is [`trouble`](crate::trouble)'s.

use flamingo_dataset::Batch;

use crate::checkpoint;
use crate::error::TrainError;
use crate::extent::Extent;
use crate::outputs::Outputs;
use crate::run::Run;
use crate::trouble::{Action, Finding, Trouble};

/// Where the run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GoesOn {
    /// Here, without the update of this step.
    AfterTheStep,
    /// From an earlier checkpoint, which is the latest now.
    FromACheckpoint,
}

/// Does what is to be done about the next step, in which this was found.
///
/// # Errors
/// What was found, where the run stops at it, and when the disk fails.
pub(crate) fn recover(
    run: &mut Run,
    batches: &[Batch],
    extents: &[Extent],
    found: &Finding,
    outputs: &mut Outputs,
) -> Result<GoesOn, TrainError> {
    outputs.wait(run)?;
    let trouble = trouble(run, batches, extents, found)?;
    let goes_back = trouble.back_to.is_some();
    run.troubles.push(trouble);
    outputs.note_trouble(run)?;
    Ok(if goes_back { GoesOn::FromACheckpoint } else { GoesOn::AfterTheStep })
}

/// What follows. To go back, `latest` is moved.
fn trouble(
    run: &Run,
    batches: &[Batch],
    extents: &[Extent],
    found: &Finding,
) -> Result<Trouble, TrainError> {
    let is_it = |name: &str| found.dataset.as_ref().is_none_or(|it| it == name);
    let learned = |batch: &Batch| run.objective.learns_from(batch) && is_it(&batch.name);
    let extents = batches.iter().zip(extents).filter(|(batch, _)| learned(batch));
    let rows = extents.flat_map(|(_, extent)| extent.rows.clone()).collect();
    let (step, text) = (run.done + 1, found.text.clone());
    let mut trouble = Trouble { step, found: text, back_to: None, stops: false, rows };
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
        Action::RollBack => trouble.back_to = Some(go_back(run)?),
    }
    Ok(trouble)
}

/// Moves `latest` back, and says which step to.
fn go_back(run: &Run) -> Result<u64, TrainError> {
    let ranks = run.ranks.each();
    let to = if ranks.is_first() {
        checkpoint::go_back(&run.folder.path, run.done, run.checkpoint_every)?
    } else {
        0
    };
    Ok(ranks.gather_values(&to)?[0])
}
