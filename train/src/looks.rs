//! Looks at the model between two updates: whether it reads its images, and how much of that reaches its
//! text. They change nothing, and the model has not seen the rows yet, at least not in this epoch.

use std::collections::BTreeMap;

use flamingo_dataset::Batch;

use crate::error::TrainError;
use crate::trainer::Stage;

/// How often there is a look of each kind, in steps; where datasets take turns, in rounds of them.
#[derive(Debug, Clone, Copy)]
pub struct Looks {
    /// At how much more is lost with other images.
    pub blindness_every: Option<u64>,
    /// At what cross-attention adds.
    pub gates_every: Option<u64>,
    /// Steps in which every dataset has its turn.
    pub turns: u64,
}

impl Looks {
    /// What is seen before the update after `done` updates, of batches with these losses.
    ///
    /// # Errors
    /// When the device fails.
    pub fn look(
        &self,
        stage: &dyn Stage,
        batches: &[Batch],
        losses: &[f32],
        done: u64,
    ) -> Result<BTreeMap<String, f64>, TrainError> {
        let is_due =
            |every: Option<u64>| every.is_some_and(|n| (done / self.turns).is_multiple_of(n));
        let mut seen = BTreeMap::new();
        if is_due(self.blindness_every) {
            seen.extend(blindness(stage, batches, losses)?);
        }
        if is_due(self.gates_every) {
            seen.extend(stage.gate_ratios(batches)?);
        }
        Ok(seen)
    }
}

/// How much more each dataset loses with other images than its own, in nats per token: above 0 if the
/// model looks at them.
fn blindness(
    stage: &dyn Stage,
    batches: &[Batch],
    losses: &[f32],
) -> Result<BTreeMap<String, f64>, TrainError> {
    let mut all = BTreeMap::new();
    for (batch, loss) in batches.iter().zip(losses) {
        for (images, blind) in stage.blind_losses(batch)? {
            let more = f64::from(blind) - f64::from(*loss);
            all.insert(format!("blindness.{}, images {images}", batch.name), more);
        }
    }
    Ok(all)
}
