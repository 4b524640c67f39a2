//! How a run ends: at its last step, by a signal, or without rows. What was learned is on disk then.

use crate::command::Told;
use crate::error::TrainError;
use crate::outputs::Outputs;
use crate::run::Run;
use crate::stop::{StopSignal, StopSignals};
use crate::trouble::Trouble;

/// How [`train`](crate::trainer::train) ended.
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

/// Ends a run after its last step; the checkpoint of that is evaluated, if it is to be.
pub(crate) fn at_the_end(
    run: &mut Run,
    signals: &StopSignals,
    outputs: &mut Outputs,
) -> Result<Ended, TrainError> {
    outputs.wait(run)?;
    outputs.evaluate(&mut run.few_shot, run.done)?;
    let signal = run.ranks.signal(signals.came())?;
    if signal.is_some() {
        return by_signal(run, signal, outputs);
    }
    outputs.draw(run)?;
    outputs.note_frozen("end", run.stage.frozen_sha256().as_deref());
    outputs.finish();
    Ok(Ended::Done)
}

/// Ends a run that no rows come to, by a signal or by what is `why`: what was learned so far is kept, unless the
/// model may hold something else.
pub(crate) fn without_rows(
    run: &mut Run,
    why: Result<(), TrainError>,
    outputs: &mut Outputs,
) -> Result<Ended, TrainError> {
    if let Err(lost @ TrainError::WeightsLost { .. }) = why {
        return Err(lost);
    }
    let signals = StopSignals::listen().map_err(TrainError::Signals)?;
    let state = run.state();
    let kept = state.and_then(|state| outputs.settle(run, state));
    why?;
    let signal = kept.and_then(|()| run.ranks.signal(signals.came()))?;
    by_signal(run, signal, outputs)
}

/// What a run that a signal ends says and returns.
pub(crate) fn by_signal(
    run: &Run,
    signal: Option<StopSignal>,
    outputs: &mut Outputs,
) -> Result<Ended, TrainError> {
    outputs.draw(run)?;
    let (done, signal) = (run.done, signal.unwrap_or(StopSignal::Terminate));
    let name = signal.name();
    outputs.note(&format!("{name} after step {done}; --resume goes on from there"));
    outputs.finish();
    match signal {
        StopSignal::Terminate => Ok(Ended::Stopped),
        StopSignal::Interrupt => Err(TrainError::Interrupted { step: done }),
    }
}
