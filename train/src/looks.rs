//! Looks at the model between two updates: whether it reads its images, and how much of that reaches its
//! text. They change nothing, and the model has not seen the rows yet, at least not in this epoch.

use std::collections::BTreeMap;

use flamingo_dataset::Batch;

use crate::error::TrainError;
use crate::gradient::{Objective, StepGradient};
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
    /// What is seen before the update after `done` updates, of the batches that `made` it.
    ///
    /// # Errors
    /// When the device fails.
    pub fn look(
        &self,
        stage: &dyn Stage,
        objective: &Objective,
        batches: &[Batch],
        made: &StepGradient,
        done: u64,
    ) -> Result<BTreeMap<String, f64>, TrainError> {
        let is_due =
            |every: Option<u64>| every.is_some_and(|n| (done / self.turns).is_multiple_of(n));
        let mut seen = BTreeMap::new();
        if is_due(self.blindness_every) {
            seen.extend(blindness(stage, objective, batches, made)?);
        }
        if is_due(self.gates_every) {
            let parts = batches.iter().flat_map(|batch| objective.parts(batch));
            seen.extend(stage.gate_ratios(&parts.collect::<Vec<_>>())?);
        }
        Ok(seen)
    }
}

/// What the images of a batch become.
pub const IMAGES: [&str; 2] = ["shuffled", "blank"];

/// How much more each dataset loses with other images than its own, in nats per token: above 0 if the
/// model looks at them. Images are shuffled among the rows of a part of a batch; parts in which that
/// leaves a row one of its own do not count.
fn blindness(
    stage: &dyn Stage,
    objective: &Objective,
    batches: &[Batch],
    made: &StepGradient,
) -> Result<BTreeMap<String, f64>, TrainError> {
    let mut all = BTreeMap::new();
    for (batch, losses) in batches.iter().zip(&made.parts) {
        let mut sums = [Sum::default(); IMAGES.len()];
        let parts = objective.parts(batch).filter(|part| stage.n_terms(part) > 0);
        for (part, seeing) in parts.zip(losses) {
            let blind = stage.blind_losses(&part)?;
            for (sum, images) in sums.iter_mut().zip(IMAGES) {
                let found = blind.iter().find(|(others, _)| *others == images);
                let Some((_, blind)) = found else { continue };
                let terms = seeing.terms as f64;
                sum.terms += terms;
                sum.more += terms * (f64::from(*blind) - f64::from(seeing.loss));
            }
        }
        for (sum, images) in sums.iter().zip(IMAGES).filter(|(sum, _)| sum.terms > 0.0) {
            all.insert(format!("blindness.{}, images {images}", batch.name), sum.more / sum.terms);
        }
    }
    Ok(all)
}

/// What the tokens of several parts lose more, and how many they are.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    terms: f64,
    more: f64,
}
