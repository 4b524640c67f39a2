//! The gradient of a step: batches in parts, each part's gradient added to those before it.
//!
//! The objective is the sum over datasets of lambda times what [`LossNormalisation`] makes of the negative
//! log-likelihood of the dataset's batch (paper, section 2.4). A batch may be cut into parts that run one
//! after the other, so that the memory of one part suffices; each counts by its share of what the loss is
//! a mean of, so the parts together are the whole but for the rounding of sums.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::iter;
use std::time::Instant;

use flamingo_dataset::Batch;
use flamingo_model::Gradients;
use serde::{Deserialize, Serialize};

use crate::collective::Collective;
use crate::error::TrainError;
use crate::extent::Extent;
use crate::groups::Norms;
use crate::optimizer::AdamW;
use crate::ranks::Ranks;
use crate::stage::Stage;

/// What the losses of the tokens of a batch become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossNormalisation {
    /// Their mean: each token counts the same. What the peers do.
    #[default]
    TokenMean,
    /// Their sum over the tokens of a row, and the mean of that over the rows: equation 2 of the paper,
    /// read literally. Long rows count more, and gradients are larger by the tokens of a row.
    Sum,
}

/// What is minimised.
#[derive(Debug, Clone)]
pub struct Objective {
    /// Lambda of each dataset, by its index in batches. Paper: 1.0 for M3W, 0.2 for ALIGN and LTIP, 0.03 for
    /// VTP.
    pub weights: Vec<f64>,
    /// What the losses of tokens become.
    pub normalisation: LossNormalisation,
    /// Parts that the batches of each dataset are cut into, by its index in batches.
    pub micro_batches: Vec<usize>,
}

impl Objective {
    /// Whether a batch changes the model, or is only watched.
    pub fn learns_from(&self, batch: &Batch) -> bool {
        self.weights[batch.dataset] > 0.0
    }

    /// What the mean loss of a batch is multiplied by to be its part of the objective.
    pub(crate) fn factor(&self, batch: &Batch, extent: &Extent) -> f64 {
        let of_normalisation = match self.normalisation {
            LossNormalisation::TokenMean => 1.0,
            LossNormalisation::Sum => extent.terms as f64 / extent.n_rows().max(1) as f64,
        };
        self.weights[batch.dataset] * of_normalisation
    }

    /// The objective of a step whose batches have these extents and mean losses.
    pub fn value(&self, batches: &[Batch], extents: &[Extent], losses: &[f32]) -> f64 {
        let all = batches.iter().zip(extents).zip(losses);
        let learned = all.filter(|((batch, _), _)| self.learns_from(batch));
        learned.map(|((batch, extent), loss)| self.factor(batch, extent) * f64::from(*loss)).sum()
    }

    /// The parts of a batch, in order. The whole is not copied.
    pub fn parts<'batch>(&self, batch: &'batch Batch) -> impl Iterator<Item = Cow<'batch, Batch>> {
        let n = self.micro_batches[batch.dataset];
        let size = batch.size / n;
        let whole = (n == 1).then_some(Cow::Borrowed(batch));
        let cut = (0..n).filter(move |_| n > 1);
        let cut = cut.map(move |i| Cow::Owned(batch.slice(i * size..(i + 1) * size)));
        whole.into_iter().chain(cut)
    }
}

/// Mean loss of a part of a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PartLoss {
    /// What it is a mean of.
    pub terms: u64,
    /// In nats, or the two-term contrastive loss.
    pub loss: f32,
    /// Mean of the term beside it, if it is learned from and there is one.
    pub z_loss: Option<f32>,
}

/// What a step's batches make.
#[derive(Debug)]
pub struct StepGradient {
    /// Mean losses of the parts of each batch that this rank has.
    pub parts: Vec<Vec<PartLoss>>,
    /// Mean loss of each batch.
    pub losses: Vec<f32>,
    /// The gradient of the objective, of the parameters that this rank updates.
    pub gradients: Gradients,
    /// Its norms.
    pub norms: Norms,
    /// What it took, and the update once that is made: passes of the model and sums over ranks.
    pub seconds: f64,
    /// Whether there was anything to learn from, on any rank.
    pub is_learned: bool,
}

impl StepGradient {
    /// Means of the terms beside the losses of batches that have one, as they are logged: `z_loss.DATASET`.
    ///
    /// # Errors
    /// When another rank cannot be reached.
    pub fn z_losses(
        &self,
        ranks: &dyn Collective,
        batches: &[Batch],
    ) -> Result<BTreeMap<String, f64>, TrainError> {
        // Of each batch: what there is one mean of, and the sum.
        let of_parts = |parts: &Vec<PartLoss>| {
            let one = |part: &PartLoss| Some((part.terms as f64, part.z_loss?));
            let add = |[n, sum]: [f64; 2], (terms, z)| [n + terms, sum + terms * f64::from(z)];
            parts.iter().filter_map(one).fold([0.0; 2], add)
        };
        let mut sums: Vec<[f64; 2]> = self.parts.iter().map(of_parts).collect();
        ranks.sum(sums.as_flattened_mut())?;
        let there = batches.iter().zip(sums).filter(|(_, [n, _])| *n > 0.0);
        Ok(there.map(|(b, [n, sum])| (format!("z_loss.{}", b.name), sum / n)).collect())
    }
}

/// What a step is made with.
#[derive(Clone, Copy)]
pub struct Step<'run> {
    /// The model.
    pub stage: &'run dyn Stage,
    /// What is minimised.
    pub objective: &'run Objective,
    /// What will make the update.
    pub optimizer: &'run AdamW,
    /// Who makes it together.
    pub ranks: &'run Ranks,
}

/// The losses of batches of these extents, of which `batches` are this rank's shares, and the gradient of the objective.
///
/// # Errors
/// When a batch does not fit the model, or the device is out of memory.
pub fn accumulate(
    step: &Step,
    batches: &[Batch],
    extents: &[Extent],
) -> Result<StepGradient, TrainError> {
    let clock = Instant::now();
    let mut gradients = Gradients::default();
    let mut parts = Vec::with_capacity(batches.len());
    for (batch, extent) in batches.iter().zip(extents) {
        let (of_batch, sum) = add_batch(step, batch, extent, gradients)?;
        parts.push(of_batch);
        gradients = sum;
    }
    let own = iter::zip(&parts, extents).map(|(parts, extent)| mean(parts, extent));
    let mut losses: Vec<f64> = own.collect();
    step.ranks.each().sum(&mut losses)?;
    let losses = losses.into_iter().map(|loss| loss as f32).collect();
    let params = step.stage.model().params();
    let norms = step.ranks.sum_gradients(step.optimizer, &params, &mut gradients)?;
    let is_learned = iter::zip(batches, extents)
        .any(|(batch, extent)| step.objective.learns_from(batch) && extent.terms > 0);
    let seconds = clock.elapsed().as_secs_f64();
    Ok(StepGradient { parts, losses, gradients, norms, seconds, is_learned })
}

/// Mean losses of the parts of a batch; adds its part of the objective's gradient.
fn add_batch(
    step: &Step,
    batch: &Batch,
    extent: &Extent,
    mut gradients: Gradients,
) -> Result<(Vec<PartLoss>, Gradients), TrainError> {
    let Step { stage, objective, .. } = step;
    let mut losses = Vec::new();
    for part in objective.parts(batch) {
        let terms = stage.n_terms(&part);
        if terms == 0 {
            // Its mean is one of nothing.
            continue;
        }
        let share = terms as f64 / extent.terms as f64;
        // A dataset without weight is only watched.
        let (loss, z_loss) = if objective.learns_from(batch) {
            let weight = (share * objective.factor(batch, extent)) as f32;
            let (of_part, sum) = stage.step(&part, weight, gradients)?;
            gradients = sum;
            (of_part.nll, of_part.z)
        } else {
            (stage.loss(&part)?, None)
        };
        losses.push(PartLoss { terms, loss, z_loss });
    }
    Ok((losses, gradients))
}

/// The mean loss of a batch of this extent, or as much of it as these parts make.
fn mean(parts: &[PartLoss], extent: &Extent) -> f64 {
    let share = |part: &PartLoss| part.terms as f64 / extent.terms as f64;
    parts.iter().map(|part| share(part) * f64::from(part.loss)).sum()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::rc::Rc;

    use flamingo_dataset::BatchPixels;
    use flamingo_model::{LanguageConfig, LanguageModel, Params};

    use super::*;
    use crate::collective::Alone;
    use crate::language::Language;
    use crate::optimizer::Share;

    const LENGTH: usize = 6;

    pub(crate) fn stage() -> Language {
        let config =
            "vocabulary = 20\ncontext = 6\nwidth = 8\nlayers = 1\nheads = 2\nactivation = 'gelu'";
        let config: LanguageConfig = toml::from_str(config).unwrap();
        Language { model: LanguageModel::new(&config, 1).unwrap(), z_loss: 0.0 }
    }

    /// Sequences of two packed rows each, which predict so many tokens.
    pub(crate) fn batch(dataset: usize, predicted: &[usize]) -> Batch {
        let size = predicted.len();
        let mask = |n: &usize| (0..LENGTH).map(|l| f32::from(u8::from(l < *n))).collect::<Vec<_>>();
        Batch {
            dataset,
            name: dataset.to_string(),
            tokens: (0..size * LENGTH).map(|i| ((7 * i + dataset) % 20) as u32).collect(),
            phi: vec![-1; size * LENGTH],
            loss_mask: predicted.iter().flat_map(mask).collect(),
            pixels: BatchPixels::F32(Vec::new().into()),
            image_count: vec![0; size],
            n_images: 0,
            n_frames: 1,
            size,
            length: LENGTH,
            rows: (0..2 * size as u64).collect(),
            corrupt: Vec::new(),
        }
    }

    /// The second dataset's first row predicts nothing.
    fn batches() -> Vec<Batch> {
        vec![batch(0, &[5, 1, 3, 2]), batch(1, &[0, 4])]
    }

    pub(crate) fn objective(
        normalisation: LossNormalisation,
        micro_batches: [usize; 2],
    ) -> Objective {
        let micro_batches = micro_batches.to_vec();
        Objective { weights: vec![0.5, 2.0], normalisation, micro_batches }
    }

    fn step(
        stage: &Language,
        objective: &Objective,
        batches: &[Batch],
        extents: &[Extent],
    ) -> StepGradient {
        let config = "lr = 1.0\nwarmup_steps = 0\nschedule = 'constant'";
        let optimizer = &AdamW::new(&toml::from_str(config).unwrap(), Share::All);
        let ranks = &Ranks::new(Rc::new(Alone), &stage.model().params());
        accumulate(&Step { stage, objective, optimizer, ranks }, batches, extents).unwrap()
    }

    fn made(stage: &Language, objective: &Objective) -> (f64, StepGradient) {
        let batches = batches();
        let extents: Vec<_> =
            batches.iter().map(|batch| Extent::of(stage, batch, &[], 1)).collect();
        let made = step(stage, objective, &batches, &extents);
        (objective.value(&batches, &extents, &made.losses), made)
    }

    /// All gradients, one after the other.
    fn values(stage: &Language, made: &mut StepGradient) -> Vec<f32> {
        let names = stage.model().params().into_iter().flat_map(Params::iter);
        let names: Vec<String> = names.map(|parameter| parameter.name.clone()).collect();
        let params = stage.model().params();
        let one = |name: &String| params[0].gradient(&mut made.gradients, name).unwrap().unwrap();
        names.iter().flat_map(one).collect()
    }

    #[test]
    fn parts_one_after_the_other_are_the_whole() {
        let stage = Language { z_loss: 0.01, ..stage() };
        for normalisation in [LossNormalisation::TokenMean, LossNormalisation::Sum] {
            let (value, mut whole) = made(&stage, &objective(normalisation, [1, 1]));
            for parts in [[2, 1], [4, 2]] {
                let (of_parts, mut cut) = made(&stage, &objective(normalisation, parts));
                assert!((of_parts / value - 1.0).abs() < 1e-6, "{of_parts}, whole {value}");
                for (a, b) in cut.losses.iter().zip(&whole.losses) {
                    assert!((a / b - 1.0).abs() < 1e-6, "{a}, whole {b}");
                }
                let z_losses =
                    [&cut, &whole].map(|made| made.z_losses(&Alone, &batches()).unwrap());
                assert_eq!(z_losses[1].keys().collect::<Vec<_>>(), ["z_loss.0", "z_loss.1"]);
                for (a, b) in z_losses[0].values().zip(z_losses[1].values()) {
                    assert!((a / b - 1.0).abs() < 1e-6, "{a}, whole {b}");
                }
                let most = whole.norms.all as f32 * 1e-6;
                for (a, b) in values(&stage, &mut cut).iter().zip(values(&stage, &mut whole)) {
                    assert!((a - b).abs() < most, "{a}, whole {b}");
                }
            }
        }
    }

    #[test]
    fn the_gradient_is_that_of_the_objective() {
        // How far along the gradient the difference is taken: short against its curves, long against the
        // rounding of an f32.
        const FAR: f32 = 1e-3;
        for normalisation in [LossNormalisation::TokenMean, LossNormalisation::Sum] {
            let objective = objective(normalisation, [2, 1]);
            let along = |far: f32| {
                let mut stage = stage();
                let (_, StepGradient { mut gradients, norms, .. }) = made(&stage, &objective);
                let norm = norms.all;
                let by = far / norm as f32;
                for params in stage.model_mut().params_mut() {
                    let change = |_: &str, _: &[usize], values: &mut [f32], gradient: &[f32]| {
                        values.iter_mut().zip(gradient).for_each(|(v, g)| *v += by * g);
                    };
                    params.update(&mut gradients, change).unwrap();
                }
                (made(&stage, &objective).0, norm)
            };
            let ((ahead, norm), (behind, _)) = (along(FAR), along(-FAR));
            let slope = (ahead - behind) / f64::from(2.0 * FAR);
            assert!((slope / norm - 1.0).abs() < 2e-3, "{normalisation:?}: {slope}, norm {norm}");
        }
    }

    #[test]
    fn a_sum_is_taken_over_tokens_and_a_mean_over_rows() {
        let stage = stage();
        let (value, made) = made(&stage, &objective(LossNormalisation::Sum, [1, 1]));
        // Each token's own loss, in f64; eight rows in the first dataset, four in the second.
        let sums = batches().into_iter().map(|batch| {
            let nll = stage.model.nll(&crate::inputs::text(&batch)).unwrap();
            nll.into_iter().map(f64::from).sum::<f64>()
        });
        let sums: Vec<f64> = sums.collect();
        let expected = 0.5 * sums[0] / 8.0 + 2.0 * sums[1] / 4.0;
        assert!((value / expected - 1.0).abs() < 1e-6, "{value}, expected {expected}");
        for (loss, mean) in made.losses.iter().zip([sums[0] / 11.0, sums[1] / 4.0]) {
            assert!((f64::from(*loss) / mean - 1.0).abs() < 1e-6, "{loss}, expected {mean}");
        }
    }

    #[test]
    fn a_batch_that_predicts_nothing_loses_nothing_and_moves_nothing() {
        let (stage, batches) = (stage(), [batch(0, &[0, 0])]);
        let extents = [Extent::of(&stage, &batches[0], &[], 1)];
        let objective = objective(LossNormalisation::TokenMean, [2, 1]);
        let made = step(&stage, &objective, &batches, &extents);
        assert_eq!((&made.losses[..], made.norms.all), (&[0.0][..], 0.0));
        assert!(!made.is_learned);
    }
}
