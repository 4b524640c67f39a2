//! Looks at the model between two updates: whether it reads its images, and how much of that reaches its
//! text. They change nothing, and the model has not seen the rows yet, at least not in this epoch.

use std::collections::BTreeMap;

use flamingo_dataset::Batch;
use flamingo_model::{Addition, GateSums};

use crate::error::TrainError;
use crate::gradient::{Step, StepGradient};

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
        step: &Step,
        batches: &[Batch],
        made: &StepGradient,
        done: u64,
    ) -> Result<BTreeMap<String, f64>, TrainError> {
        let is_due =
            |every: Option<u64>| every.is_some_and(|n| (done / self.turns).is_multiple_of(n));
        let mut seen = BTreeMap::new();
        if is_due(self.blindness_every) {
            seen.extend(blindness(step, batches, made)?);
        }
        if is_due(self.gates_every) {
            seen.extend(gate_ratios(step, batches)?);
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
    step: &Step,
    batches: &[Batch],
    made: &StepGradient,
) -> Result<BTreeMap<String, f64>, TrainError> {
    let Step { stage, objective, ranks, .. } = step;
    let mut all = BTreeMap::new();
    for (batch, losses) in batches.iter().zip(&made.parts) {
        // Of each kind of images: how many tokens there were, and what they lost more.
        let mut sums = [[0.0; 2]; IMAGES.len()];
        let parts = objective.parts(batch).filter(|part| stage.n_terms(part) > 0);
        for (part, seeing) in parts.zip(losses) {
            let blind = stage.blind_losses(&part)?;
            for ([n, more], images) in sums.iter_mut().zip(IMAGES) {
                let found = blind.iter().find(|(others, _)| *others == images);
                let Some((_, blind)) = found else { continue };
                let terms = seeing.terms as f64;
                *n += terms;
                *more += terms * (f64::from(*blind) - f64::from(seeing.loss));
            }
        }
        ranks.each().sum(sums.as_flattened_mut())?;
        for ([n, more], images) in sums.into_iter().zip(IMAGES).filter(|([n, _], _)| *n > 0.0) {
            all.insert(format!("blindness.{}, images {images}", batch.name), more / n);
        }
    }
    Ok(all)
}

/// Root mean square of what each block of cross-attention adds over that of what it is added to, over the
/// tokens of all batches that see an image and predict the next token.
fn gate_ratios(step: &Step, batches: &[Batch]) -> Result<BTreeMap<String, f64>, TrainError> {
    let parts = batches.iter().flat_map(|batch| step.objective.parts(batch));
    let blocks = step.stage.gate_sums(&parts.collect::<Vec<_>>())?;
    let numbers = |block: &GateSums| {
        let both = [block.attention, block.feed_forward.unwrap_or_default()];
        both.map(|sums| [sums.added, sums.onto])
    };
    let mut sums: Vec<[[f64; 2]; 2]> = blocks.iter().map(numbers).collect();
    step.ranks.each().sum(sums.as_flattened_mut().as_flattened_mut())?;
    let mut ratios = BTreeMap::new();
    for (block, (own, sums)) in blocks.iter().zip(sums).enumerate() {
        let [attention, feed_forward] = sums.map(|[added, onto]| Addition { added, onto });
        ratios.insert(format!("gate_ratio.{block}.attention"), attention.ratio());
        if own.feed_forward.is_some() {
            ratios.insert(format!("gate_ratio.{block}.feed_forward"), feed_forward.ratio());
        }
    }
    Ok(ratios)
}
