//! Whose gradient it is: how much each dataset contributes to the update, whether it pulls where the
//! mixture goes, and how noisy it is. It changes nothing: gradients are computed once more, one dataset
//! after the other, beside the one that the update is made of.
//!
//! Letters: `B` sequences of a dataset's batch, `g` its gradient times lambda, `G` what `g` is on the
//! average over all rows, `S` the trace of the covariance of the gradient of one sequence.
//!
//! The gradient noise scale `S / |G|^2` (`McCandlish` et al., 2018: "An Empirical Model of Large-Batch
//! Training", equation 2.8) is about the batch beyond which more rows help little. Its two parts are
//! estimated without bias from two batch sizes (appendix A.1): here parts of the batch against the whole. One
//! rank takes halves; several take what each of them has, which they must compute anyhow. Part `i` has
//! `B_i` sequences, the mean gradient `g_i` and the share `s_i` of the whole, `g = sum of s_i g_i`. From
//! `E |g_i|^2 = |G|^2 + S / B_i` and since parts are independent,
//!
//! - `|G|^2` is the mean of `g_i . g_j` over all pairs, weighted by `s_i s_j`, which follows from norms alone:
//!   `(|g|^2 - sum of |s_i g_i|^2) / (1 - sum of s_i^2)`
//! - `S` is the mean of `B_i (|g_i|^2 - |G|^2)`
//!
//! For parts of one size these are the paper's formulas. Either is noisy, so their quotient is taken of
//! running means, as the paper does. That sequences have unlike numbers of tokens is left out of account.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use flamingo_dataset::Batch;
use flamingo_model::Gradients;

use crate::config::BatchesDivide;
use crate::error::TrainError;
use crate::extent::Extent;
use crate::gradient::{LossNormalisation, Objective, Step, StepGradient};
use crate::metrics;
use crate::stage::Stage;

/// What is observed has names `gradient.<dataset>.<measure>`.
pub const GROUP: &str = "gradient";

/// Share of a running mean that stays at the next look.
const MEAN_KEPT: f64 = 0.9;

/// Looks at the gradients of datasets.
#[derive(Debug, Default)]
pub struct Accounting {
    /// Steps between two looks; none are taken if it is not given.
    every: Option<u64>,
    /// By dataset.
    means: BTreeMap<String, Means>,
}

/// The step that is looked at, before its update.
pub struct Mixture<'a> {
    /// What it is made with.
    pub step: Step<'a>,
    /// The batches of the step.
    pub batches: &'a [Batch],
    /// How much there is of each.
    pub extents: &'a [Extent],
    /// Its gradient.
    pub made: &'a mut StepGradient,
    /// Updates before it.
    pub done: u64,
}

/// Running means over the looks, all from the same start, so that quotients of them need no correction.
#[derive(Debug, Clone, Copy, Default)]
struct Means {
    norm_square: f64,
    signal: f64,
    noise: f64,
}

/// Of one dataset.
#[derive(Debug, Clone, Copy)]
struct Look {
    norm: f64,
    /// None of a batch that predicts nothing.
    cosine: Option<f64>,
    noise: Option<Noise>,
}

/// Unbiased estimates of `|G|^2` and `S`. Either may come out below 0.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Noise {
    signal: f64,
    noise: f64,
}

/// A part of a batch that is independent of the others.
#[derive(Debug, Clone, Copy, Default)]
struct Part {
    /// `|s_i g_i|^2`.
    square: f64,
    /// Its share of the batch's mean: of the tokens that are predicted, or of the sequences.
    share: f64,
    /// Sequences.
    size: f64,
}

impl Accounting {
    /// Without running means yet.
    pub fn new(every: Option<u64>) -> Self {
        Self { every, means: BTreeMap::new() }
    }

    /// Takes the running means from the metrics of a run that goes on.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn recall(&mut self, run: &Path) -> Result<(), TrainError> {
        match self.every {
            Some(_) => metrics::each(run, |step| self.remember(&step.observed)),
            None => Ok(()),
        }
    }

    /// What is seen of the gradients of a step, where it is one to be looked at: for each dataset with a
    /// lambda above 0
    ///
    /// - `norm`: `|g|`
    /// - `cosine`: of the angle between `g` and the gradient of the mixture; none if `g` is 0
    /// - `signal`, `noise`: this step's estimates of `|G|^2` and `S`, where rows have losses of their own and
    ///   at least two parts of the batch have some
    /// - `noise_scale`: in sequences, of running means; none while they do not tell `|G|^2` from 0
    /// - `lambda_advised`: see [`advise`]
    ///
    /// # Errors
    /// When the device is out of memory: a second gradient is held; and when another rank cannot be reached.
    pub fn look(&mut self, mixture: Mixture) -> Result<BTreeMap<String, f64>, TrainError> {
        let mut seen = BTreeMap::new();
        let Mixture { step, batches, extents, made, done } = mixture;
        let objective = step.objective;
        if self.every.is_none_or(|every| !done.is_multiple_of(every)) {
            return Ok(seen);
        }
        let learned = || batches.iter().filter(|batch| objective.learns_from(batch));
        for (batch, extent) in batches.iter().zip(extents) {
            if !objective.learns_from(batch) {
                continue;
            }
            let Look { norm, cosine, noise } = look_at(&step, (batch, extent), made)?;
            let mut see = |measure, value| seen.insert(key(&batch.name, measure), value);
            see("norm", norm);
            if let Some(cosine) = cosine {
                see("cosine", cosine);
            }
            if let Some(Noise { signal, noise }) = noise {
                see("signal", signal);
                see("noise", noise);
            }
        }
        self.remember(&seen);
        let lambdas = learned().map(|batch| (&*batch.name, objective.weights[batch.dataset]));
        for (name, advised) in advise(lambdas, &self.means) {
            seen.insert(key(name, "lambda_advised"), advised);
        }
        self.add_noise_scales(&mut seen);
        Ok(seen)
    }

    /// Adds the noise scales of the datasets whose noise was seen in this step: means of others are old.
    fn add_noise_scales(&self, seen: &mut BTreeMap<String, f64>) {
        for (name, means) in &self.means {
            if means.signal > 0.0 && seen.contains_key(&key(name, "noise")) {
                seen.insert(key(name, "noise_scale"), means.noise.max(0.0) / means.signal);
            }
        }
    }

    /// Takes a look into the running means.
    fn remember(&mut self, observed: &BTreeMap<String, f64>) {
        for (name, norm) in observed {
            let Some((dataset, "norm")) = dataset_and_measure(name) else { continue };
            let measure = |measure| observed.get(&key(dataset, measure)).copied();
            let means = self.means.entry(dataset.to_owned()).or_default();
            let mean = |mean: &mut f64, value: f64| {
                *mean = MEAN_KEPT * *mean + (1.0 - MEAN_KEPT) * value;
            };
            mean(&mut means.norm_square, norm * norm);
            if let (Some(signal), Some(noise)) = (measure("signal"), measure("noise")) {
                mean(&mut means.signal, signal);
                mean(&mut means.noise, noise);
            }
        }
    }
}

/// The lambda of each dataset at which all of them would contribute gradients of one norm, and their
/// norms together would be what they are now, so that the learning rate still fits: `GradNorm`'s target
/// (Chen et al., 2018) with `alpha` 0. Norms are root mean squares over the looks.
///
/// It is advice, and nothing follows from it. Whoever wants a dataset to have a share `s` of the norm
/// multiplies its lambda by `s` times the number of datasets. The paper chose its lambdas by trials on small models
/// (section 2.4), and its datasets are not meant to have equal shares.
fn advise<'a>(
    lambdas: impl Iterator<Item = (&'a str, f64)>,
    means: &BTreeMap<String, Means>,
) -> Vec<(&'a str, f64)> {
    let norm = |name: &str| Some(means.get(name)?.norm_square.sqrt()).filter(|norm| *norm > 0.0);
    let known: Vec<_> =
        lambdas.filter_map(|(name, lambda)| Some((name, lambda, norm(name)?))).collect();
    let mean = known.iter().map(|(.., norm)| norm).sum::<f64>() / known.len() as f64;
    known.into_iter().map(|(name, lambda, norm)| (name, lambda * mean / norm)).collect()
}

/// Looks at one dataset beside the mixture's gradient.
fn look_at(
    step: &Step,
    (batch, extent): (&Batch, &Extent),
    made: &mut StepGradient,
) -> Result<Look, TrainError> {
    let Step { stage, optimizer, ranks, .. } = *step;
    let (mut whole, parts) = if ranks.each().is_alone() {
        of_halves(step, batch, extent)?
    } else {
        of_ranks(step, batch, extent)?
    };
    let params = stage.model().params();
    let norm = ranks.sum_gradients(optimizer, &params, &mut whole)?.all;
    // Of either gradient each rank has the part that it updates.
    let counts = |name: &str| optimizer.updates(name);
    let dots =
        params.iter().map(|params| params.gradient_dot(&mut whole, &mut made.gradients, counts));
    let mut dot = [dots.sum::<Result<f64, _>>().map_err(TrainError::model("run"))?];
    ranks.each().sum(&mut dot)?;
    let has_own_losses = stage.batches_divide() != BatchesDivide::No;
    let noise = has_own_losses.then(|| Noise::of(norm * norm, &parts)).flatten();
    let cosine = Some(dot[0] / (norm * made.norms.all)).filter(|cosine| cosine.is_finite());
    Ok(Look { norm, cosine, noise })
}

/// The gradient of a batch, and its halves. The first one is computed twice, so that no more than one gradient is held
/// beside the mixture's.
fn of_halves(
    step: &Step,
    batch: &Batch,
    extent: &Extent,
) -> Result<(Gradients, Vec<Part>), TrainError> {
    let [first, second] = halves(step.objective, batch);
    let add = |half, gradients| add(step, half, (batch, extent), gradients);
    if first.is_empty() || step.stage.batches_divide() == BatchesDivide::No {
        return Ok((add(&second, add(&first, Gradients::default())?)?, Vec::new()));
    }
    let mut gradients = add(&first, Gradients::default())?;
    let of_first = Part::of(step, &first, extent, &mut gradients)?;
    drop(gradients);
    let mut gradients = add(&second, Gradients::default())?;
    let of_second = Part::of(step, &second, extent, &mut gradients)?;
    Ok((add(&first, gradients)?, vec![of_first, of_second]))
}

/// This rank's share of the gradient of a batch, and the shares of all ranks.
fn of_ranks(
    step: &Step,
    batch: &Batch,
    extent: &Extent,
) -> Result<(Gradients, Vec<Part>), TrainError> {
    let own: Vec<_> = step.objective.parts(batch).collect();
    let mut gradients = add(step, &own, (batch, extent), Gradients::default())?;
    let Part { square, share, size } = Part::of(step, &own, extent, &mut gradients)?;
    let rank = step.ranks.rank();
    let mut all = vec![[0.0; 3]; rank.count];
    all[rank.index] = [square, share, size];
    step.ranks.each().sum(all.as_flattened_mut())?;
    let parts = all.into_iter().map(|[square, share, size]| Part { square, share, size });
    Ok((gradients, parts.collect()))
}

/// Adds the gradient of some sequences of a batch, as many at a time as a step computes with.
fn add(
    step: &Step,
    sequences: &[Cow<Batch>],
    (batch, extent): (&Batch, &Extent),
    mut gradients: Gradients,
) -> Result<Gradients, TrainError> {
    let Step { stage, objective, .. } = *step;
    let factor = objective.factor(batch, extent);
    for part in sequences.iter().filter(|part| stage.n_terms(part) > 0) {
        let share = stage.n_terms(part) as f64 / extent.terms as f64;
        gradients = stage.step(part, (factor * share) as f32, gradients)?.1;
    }
    Ok(gradients)
}

/// A batch in two; the first half of a single sequence is empty.
fn halves<'a>(objective: &Objective, batch: &'a Batch) -> [Vec<Cow<'a, Batch>>; 2] {
    let mut parts: Vec<_> = objective.parts(batch).collect();
    if parts.len() == 1 && batch.size > 1 {
        let middle = batch.size / 2;
        parts = [0..middle, middle..batch.size].map(|half| Cow::Owned(batch.slice(half))).into();
    }
    let second = parts.split_off(parts.len() / 2);
    [parts, second]
}

impl Part {
    /// Some sequences of a batch of this extent, whose part of the gradient this is.
    fn of(
        step: &Step,
        sequences: &[Cow<Batch>],
        extent: &Extent,
        gradients: &mut Gradients,
    ) -> Result<Self, TrainError> {
        let size = sequences.iter().map(|part| part.size).sum::<usize>() as f64;
        let terms = || sequences.iter().map(|part| step.stage.n_terms(part)).sum::<u64>() as f64;
        let share = match step.objective.normalisation {
            LossNormalisation::TokenMean => terms() / extent.terms.max(1) as f64,
            LossNormalisation::Sum => size / extent.samples as f64,
        };
        Ok(Self { square: square(step.stage, gradients)?, share, size })
    }
}

impl Noise {
    /// From `|g|^2` and the parts of `g`. Those without a share tell nothing, and one alone has no other
    /// beside it.
    fn of(square: f64, parts: &[Part]) -> Option<Self> {
        let parts: Vec<&Part> = parts.iter().filter(|part| part.share > 0.0).collect();
        if parts.len() < 2 {
            return None;
        }
        let sum = |of: fn(&Part) -> f64| parts.iter().map(|part| of(part)).sum::<f64>();
        let signal = (square - sum(|part| part.square)) / (1.0 - sum(|part| part.share.powi(2)));
        let noise = |part: &&Part| part.size * (part.square / part.share.powi(2) - signal);
        let noise = parts.iter().map(noise).sum::<f64>() / parts.len() as f64;
        Some(Self { signal, noise })
    }
}

fn square(stage: &dyn Stage, gradients: &mut Gradients) -> Result<f64, TrainError> {
    let mut sum = 0.0;
    for params in stage.model().params() {
        let squares = params.gradient_squares(gradients).map_err(TrainError::model("run"))?;
        sum += squares.iter().map(|(_, square)| square).sum::<f64>();
    }
    Ok(sum)
}

fn key(dataset: &str, measure: &str) -> String {
    format!("{GROUP}.{dataset}.{measure}")
}

/// Of a name under [`GROUP`].
fn dataset_and_measure(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix(GROUP)?.strip_prefix('.')?.rsplit_once('.')
}

/// What is known of a dataset's gradient, for a table.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Account {
    /// Of its gradient times lambda.
    pub norm: f64,
    /// That as a share of the sum over the datasets, 0 to 1.
    pub share: f64,
    /// Of the angle to the mixture's.
    pub cosine: Option<f64>,
    /// In sequences.
    pub noise_scale: Option<f64>,
    /// Lambda at which all would have the same share.
    pub lambda_advised: Option<f64>,
}

/// By dataset, from what was observed in one step; empty if there was no look.
pub fn accounts(observed: &BTreeMap<String, f64>) -> BTreeMap<&str, Account> {
    let mut all: BTreeMap<&str, Account> = BTreeMap::new();
    for (name, value) in observed {
        let Some((dataset, measure)) = dataset_and_measure(name) else { continue };
        let account = all.entry(dataset).or_default();
        match measure {
            "norm" => account.norm = *value,
            "cosine" => account.cosine = Some(*value),
            "noise_scale" => account.noise_scale = Some(*value),
            "lambda_advised" => account.lambda_advised = Some(*value),
            _ => {}
        }
    }
    let sum: f64 = all.values().map(|account| account.norm).sum();
    for account in all.values_mut() {
        account.share = account.norm / sum;
    }
    all
}

/// In words, if there was a look.
pub fn note(step: u64, observed: &BTreeMap<String, f64>) -> Option<String> {
    let one = |(name, account): (&str, Account)| {
        let Account { norm, share, cosine, noise_scale, lambda_advised } = account;
        let text = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "not known".to_owned(), |value| format!("{value:.digits$}"))
        };
        let (cosine, noise, lambda) =
            (text(cosine, 2), text(noise_scale, 1), text(lambda_advised, 3));
        let share = 100.0 * share;
        format!(
            "{name} norm {norm:.3} ({share:.0} %) cosine {cosine} noise scale {noise} \
             lambda for equal shares {lambda}"
        )
    };
    let all: Vec<String> = accounts(observed).into_iter().map(one).collect();
    (!all.is_empty()).then(|| format!("gradients of step {step}: {}", all.join("; ")))
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use flamingo_dataset::Rank;

    use super::*;
    use crate::collective::tests::on_threads;
    use crate::collective::{Alone, Collective};
    use crate::gradient::accumulate;
    use crate::gradient::tests::{batch, objective, stage};
    use crate::optimizer::AdamW;
    use crate::ranks::Ranks;

    /// Over all batches that can be drawn from a population of three gradients: the means of the estimates
    /// are what they estimate.
    #[test]
    fn estimates_are_without_bias() {
        const ROWS: [[f64; 2]; 3] = [[1.0, 0.5], [-2.0, 1.5], [2.5, 0.25]];
        let mean = [0, 1].map(|i| ROWS.iter().map(|row| row[i]).sum::<f64>() / 3.0);
        let square = |v: [f64; 2]| v[0] * v[0] + v[1] * v[1];
        let deviation = |row: &[f64; 2]| square([row[0] - mean[0], row[1] - mean[1]]);
        let trace = ROWS.iter().map(deviation).sum::<f64>() / 3.0;
        for sizes in [&[2_usize, 2][..], &[1, 2], &[1, 1, 1, 1], &[2, 1, 2]] {
            let n: usize = sizes.iter().sum();
            let (mut signal, mut noise) = (0.0, 0.0);
            let n_draws = 3_usize.pow(n as u32);
            for draw in 0..n_draws {
                let row = |at: usize| ROWS[draw / 3_usize.pow(at as u32) % 3];
                // What some rows make of the mean over the batch.
                let sum = |rows: std::ops::Range<usize>| {
                    [0, 1].map(|i| rows.clone().map(|at| row(at)[i]).sum::<f64>() / n as f64)
                };
                let firsts =
                    sizes.iter().scan(0, |next, size| Some(std::mem::replace(next, *next + size)));
                let part = |(first, size): (usize, &usize)| Part {
                    square: square(sum(first..first + size)),
                    share: *size as f64 / n as f64,
                    size: *size as f64,
                };
                let parts: Vec<Part> = firsts.zip(sizes).map(part).collect();
                let found = Noise::of(square(sum(0..n)), &parts).unwrap();
                signal += found.signal / n_draws as f64;
                noise += found.noise / n_draws as f64;
            }
            assert!((signal - square(mean)).abs() < 1e-12, "{signal}, not {}", square(mean));
            assert!((noise - trace).abs() < 1e-12, "{noise}, not {trace}");
        }
    }

    /// The formulas of appendix A.1 as they are printed, for a whole of 8 and halves of 4.
    #[test]
    fn halves_of_one_size_are_the_papers_two_batch_sizes() {
        let (big, small, g_big, of_halves) = (8.0, 4.0, 0.7, [1.3, 0.9]);
        let g_small = f64::midpoint(of_halves[0], of_halves[1]);
        let signal = (big * g_big - small * g_small) / (big - small);
        let noise = (g_small - g_big) / (1.0 / small - 1.0 / big);
        // Parts of the mean are halves of the halves' means.
        let part = |square: f64| Part { square: square / 4.0, share: 0.5, size: 4.0 };
        let found = Noise::of(g_big, &of_halves.map(part)).unwrap();
        assert!((found.signal - signal).abs() < 1e-12, "{found:?}, not {signal}");
        assert!((found.noise - noise).abs() < 1e-12, "{found:?}, not {noise}");
    }

    /// What one rank, of those whose gradients accumulate, sees of a dataset of these tokens in its sequences.
    fn seen(
        each: Rc<dyn Collective>,
        normalisation: LossNormalisation,
        predicted: &[usize],
    ) -> Look {
        let stage = stage();
        let whole = batch(0, predicted);
        let extent = Extent::of(&stage, &whole, &[], 1);
        let Rank { index, count } = each.rank();
        let size = whole.size / count;
        let batches = [whole.slice(index * size..(index + 1) * size)];
        let extents = [extent];
        let ranks = Ranks::new(each, &stage.model().params());
        let config = "lr = 1.0\nwarmup_steps = 0\nschedule = 'constant'";
        let share = ranks.share(&stage.model().params());
        let optimizer = AdamW::new(&toml::from_str(config).unwrap(), share);
        let objective = objective(normalisation, [1, 1]);
        let step =
            Step { stage: &stage, objective: &objective, optimizer: &optimizer, ranks: &ranks };
        let mut made = accumulate(&step, &batches, &extents).unwrap();
        look_at(&step, (&batches[0], &extents[0]), &mut made).unwrap()
    }

    /// The gradients that parts of a batch make of it, as vectors in f64.
    fn parts_by_themselves(
        normalisation: LossNormalisation,
        predicted: &[usize],
        n: usize,
    ) -> Vec<Vec<f64>> {
        let stage = stage();
        let whole = batch(0, predicted);
        let extent = Extent::of(&stage, &whole, &[], 1);
        let objective = objective(normalisation, [1, 1]);
        let factor = objective.factor(&whole, &extent);
        let size = whole.size / n;
        let one = |part: usize| {
            let part = whole.slice(part * size..(part + 1) * size);
            let params = stage.model().params();
            let mut gradients = Gradients::default();
            if stage.n_terms(&part) > 0 {
                gradients = stage.step(&part, 1.0, gradients).unwrap().1;
            }
            let weight = factor * stage.n_terms(&part) as f64 / extent.terms as f64;
            let parameters = params[0].iter().map(|parameter| {
                let found = params[0].gradient(&mut gradients, &parameter.name).unwrap();
                found.unwrap_or_else(|| vec![0.0; parameter.n_values()])
            });
            parameters.flatten().map(|value| weight * f64::from(value)).collect()
        };
        (0..n).map(one).collect()
    }

    /// Against the vectors themselves: `|G|^2` is the weighted mean of the products of all pairs of means.
    #[test]
    fn ranks_tell_the_noise_that_their_gradients_have() {
        let close = |found: f64, expected: f64| {
            assert!((found / expected - 1.0).abs() < 1e-4, "{found}, not {expected}");
        };
        let predicted = [5, 1, 3, 2, 4, 4, 1, 2];
        for (normalisation, n) in [
            (LossNormalisation::TokenMean, 2),
            (LossNormalisation::TokenMean, 4),
            (LossNormalisation::Sum, 4),
        ] {
            let parts = parts_by_themselves(normalisation, &predicted, n);
            let size = predicted.len() / n;
            let share = |part: &[usize]| match normalisation {
                LossNormalisation::TokenMean => part.iter().sum::<usize>() as f64 / 22.0,
                LossNormalisation::Sum => 1.0 / n as f64,
            };
            let shares: Vec<f64> = predicted.chunks(size).map(share).collect();
            let dot = |i: usize, j: usize| {
                let products = parts[i].iter().zip(&parts[j]).map(|(a, b)| a * b);
                products.sum::<f64>() / (shares[i] * shares[j])
            };
            let pairs = || (0..n).flat_map(|i| (0..i).map(move |j| (i, j)));
            let weights: f64 = pairs().map(|(i, j)| shares[i] * shares[j]).sum();
            let signal =
                pairs().map(|(i, j)| shares[i] * shares[j] * dot(i, j)).sum::<f64>() / weights;
            let noise = (0..n).map(|i| size as f64 * (dot(i, i) - signal)).sum::<f64>() / n as f64;
            for look in on_threads(n, |each| seen(Rc::new(each.clone()), normalisation, &predicted))
            {
                let found = look.noise.unwrap();
                close(found.signal, signal);
                close(found.noise, noise);
            }
            if n == 2 {
                // The halves of one rank are the shares of two.
                let found = seen(Rc::new(Alone), normalisation, &predicted).noise.unwrap();
                close(found.signal, signal);
                close(found.noise, noise);
            }
        }
    }

    #[test]
    fn parts_that_predict_nothing_tell_no_noise_and_nothing_at_all_no_angle() {
        let mean = LossNormalisation::TokenMean;
        let of_two = |predicted: &[usize]| {
            on_threads(2, |each| seen(Rc::new(each.clone()), mean, predicted))
        };
        for look in
            of_two(&[0, 0, 3, 2]).into_iter().chain([seen(Rc::new(Alone), mean, &[0, 0, 3, 2])])
        {
            assert_eq!(look.noise, None);
            assert!((look.cosine.unwrap() - 1.0).abs() < 1e-5, "{look:?}");
        }
        for look in of_two(&[0, 0]).into_iter().chain([seen(Rc::new(Alone), mean, &[0, 0])]) {
            assert_eq!((look.norm, look.cosine, look.noise), (0.0, None, None));
        }
        // A sequence alone has no halves.
        assert_eq!(seen(Rc::new(Alone), mean, &[3]).noise, None);
    }

    #[test]
    fn a_noise_scale_is_told_of_looks_that_saw_noise_alone() {
        let mut accounting = Accounting::new(Some(1));
        let look = |measures: &[(&str, f64)]| {
            let named = measures.iter().map(|(measure, value)| (key("pages", measure), *value));
            named.collect::<BTreeMap<_, _>>()
        };
        // And then a batch whose halves do not tell.
        let mut alone = look(&[("norm", 1.0), ("signal", 0.5), ("noise", 2.0)]);
        accounting.remember(&alone);
        accounting.add_noise_scales(&mut alone);
        assert!((alone[&key("pages", "noise_scale")] - 4.0).abs() < 1e-12, "{alone:?}");
        let mut shared = look(&[("norm", 1.0)]);
        accounting.remember(&shared);
        accounting.add_noise_scales(&mut shared);
        assert_eq!(shared, look(&[("norm", 1.0)]));
    }

    #[test]
    fn advised_lambdas_make_norms_equal_and_keep_their_sum() {
        let of_norm = |norm: f64| Means { norm_square: norm * norm, ..Means::default() };
        let means = BTreeMap::from([
            ("pages".to_owned(), of_norm(3.0)),
            ("pairs".to_owned(), of_norm(1.0)),
            ("clips".to_owned(), of_norm(0.0)),
        ]);
        let lambdas = [("pages", 1.0), ("pairs", 0.2), ("clips", 0.03), ("new", 1.0)];
        let advised = advise(lambdas.into_iter(), &means);
        assert_eq!(advised.len(), 2, "{advised:?}");
        for ((name, advised), (expected, lambda)) in
            advised.into_iter().zip([("pages", 1.0 * 2.0 / 3.0), ("pairs", 0.2 * 2.0)])
        {
            assert!(name == expected && (advised - lambda).abs() < 1e-12, "{name} {advised}");
        }
    }

    #[test]
    fn accounts_are_read_back_by_dataset_even_with_dots_in_its_name() {
        let observed = [("a.b", "norm", 3.0), ("a.b", "cosine", 0.5), ("c", "norm", 1.0)];
        let observed = observed.map(|(dataset, measure, value)| (key(dataset, measure), value));
        let mut observed = BTreeMap::from(observed);
        observed.insert("gate.0.attention".to_owned(), 0.5);
        let found = accounts(&observed);
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), ["a.b", "c"]);
        assert_eq!((found["a.b"].share, found["a.b"].cosine), (0.75, Some(0.5)));
        let note = note(7, &observed).unwrap();
        assert!(
            note.starts_with("gradients of step 7: a.b norm 3.000 (75 %) cosine 0.50"),
            "{note}"
        );
        assert_eq!(super::note(7, &BTreeMap::new()), None);
    }
}
