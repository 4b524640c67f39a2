//! Whose gradient it is: how much each dataset contributes to the update, whether it pulls where the
//! mixture goes, and how noisy it is. It changes nothing: gradients are computed once more, one dataset
//! after the other, beside the one that the update is made of.
//!
//! Letters: `B` sequences of a dataset's batch, `g` its gradient times lambda, `G` what `g` is on the
//! average over all rows, `S` the trace of the covariance of the gradient of one sequence.
//!
//! The gradient noise scale `S / |G|^2` (`McCandlish` et al., 2018: "An Empirical Model of Large-Batch
//! Training", equation 2.8) is about the batch beyond which more rows help little. Its two parts are
//! estimated without bias from two batch sizes (appendix A.1): here halves of the batch, `g_1` and `g_2`
//! of `B_1` and `B_2` sequences, against the whole. From `E |g_i|^2 = |G|^2 + S / B_i` and since halves
//! are independent,
//!
//! - `|G|^2` is `g_1 . g_2`, where `g` is their mean, so `g_1 . g_2` follows from three norms
//! - `S` is `B_i (|g_i|^2 - g_1 . g_2)`, the mean of both
//!
//! For halves of one size these are the paper's formulas. Either is noisy, so their quotient is taken of
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
    cosine: f64,
    noise: Option<Noise>,
}

/// Unbiased estimates of `|G|^2` and `S`. Either may come out below 0.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Noise {
    signal: f64,
    noise: f64,
}

/// Half of a batch.
struct Half<'a> {
    /// The sequences, as many at a time as a step computes with.
    parts: Vec<Cow<'a, Batch>>,
    /// Its share of the batch's mean: of the tokens that are predicted, or of the rows.
    share: f64,
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
    /// - `cosine`: of the angle between `g` and the gradient of the mixture
    /// - `signal`, `noise`: this step's estimates of `|G|^2` and `S`, where rows have losses of their own and
    ///   one rank has them all
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
            see("cosine", cosine);
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
    let Step { stage, objective, optimizer, ranks } = *step;
    let factor = objective.factor(batch, extent);
    let add = |parts: &[Cow<Batch>], mut gradients| {
        for part in parts.iter().filter(|part| stage.n_terms(part) > 0) {
            let share = stage.n_terms(part) as f64 / extent.terms as f64;
            gradients = stage.step(part, (factor * share) as f32, gradients)?.1;
        }
        Ok::<_, TrainError>(gradients)
    };
    let is_alone = ranks.each().is_alone();
    let halves = is_alone.then(|| halves(stage, objective, batch)).flatten();
    let (mut whole, squares) = match &halves {
        None => {
            let parts: Vec<_> = objective.parts(batch).collect();
            (add(&parts, Gradients::default())?, None)
        }
        Some([first, second]) => {
            let mut half = add(&first.parts, Gradients::default())?;
            let of_first = square(stage, &mut half)?;
            drop(half);
            let mut half = add(&second.parts, Gradients::default())?;
            let of_second = square(stage, &mut half)?;
            (add(&first.parts, half)?, Some([of_first, of_second]))
        }
    };
    let params = stage.model().params();
    let norm = ranks.sum_gradients(optimizer, &params, &mut whole)?.all;
    // Of either gradient each rank has the part that it updates.
    let counts = |name: &str| optimizer.updates(name);
    let dots =
        params.iter().map(|params| params.gradient_dot(&mut whole, &mut made.gradients, counts));
    let mut dot = [dots.sum::<Result<f64, _>>().map_err(TrainError::model("run"))?];
    ranks.each().sum(&mut dot)?;
    let noise = halves.as_ref().zip(squares).map(|(halves, squares)| {
        let sizes = halves.each_ref().map(|half| half.size() as f64);
        Noise::of(norm * norm, squares, halves.each_ref().map(|half| half.share), sizes)
    });
    Ok(Look { norm, cosine: dot[0] / (norm * made.norms.all), noise })
}

impl Half<'_> {
    /// Sequences.
    fn size(&self) -> usize {
        self.parts.iter().map(|part| part.size).sum()
    }
}

impl Noise {
    /// From `|g|^2`, the squares of the halves' parts of `g`, their shares of it, and their sequences.
    fn of(square: f64, of_halves: [f64; 2], shares: [f64; 2], sizes: [f64; 2]) -> Self {
        let [first, second] = of_halves;
        let signal = (square - first - second) / (2.0 * shares[0] * shares[1]);
        let noise = |i: usize| sizes[i] * (of_halves[i] / (shares[i] * shares[i]) - signal);
        Self { signal, noise: f64::midpoint(noise(0), noise(1)) }
    }
}

/// A batch in two, where each row has its own loss and both halves have tokens to predict.
fn halves<'a>(stage: &dyn Stage, objective: &Objective, batch: &'a Batch) -> Option<[Half<'a>; 2]> {
    if stage.batches_divide() == BatchesDivide::No {
        return None;
    }
    let mut parts: Vec<_> = objective.parts(batch).collect();
    if parts.len() == 1 {
        let middle = batch.size / 2;
        parts = [0..middle, middle..batch.size].map(|half| Cow::Owned(batch.slice(half))).into();
    }
    let second = parts.split_off(parts.len() / 2);
    let counted = |batch: &Batch| match objective.normalisation {
        LossNormalisation::TokenMean => stage.n_terms(batch),
        LossNormalisation::Sum => batch.size as u64,
    };
    let halves = [parts, second].map(|parts| {
        let of_half: u64 = parts.iter().map(|part| counted(part)).sum();
        let has_terms = parts.iter().any(|part| stage.n_terms(part) > 0);
        let share = if has_terms { of_half as f64 / counted(batch) as f64 } else { 0.0 };
        Half { parts, share }
    });
    halves.iter().all(|half| half.share > 0.0).then_some(halves)
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
    pub cosine: f64,
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
            "cosine" => account.cosine = *value,
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
        let unknown = || "not known".to_owned();
        let noise = noise_scale.map_or_else(unknown, |scale| format!("{scale:.1}"));
        let lambda = lambda_advised.map_or_else(unknown, |lambda| format!("{lambda:.3}"));
        let share = 100.0 * share;
        format!(
            "{name} norm {norm:.3} ({share:.0} %) cosine {cosine:.2} noise scale {noise} \
             lambda for equal shares {lambda}"
        )
    };
    let all: Vec<String> = accounts(observed).into_iter().map(one).collect();
    (!all.is_empty()).then(|| format!("gradients of step {step}: {}", all.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Over all batches of 4 and of 3 that can be drawn from a population of three gradients: the means
    /// of the estimates are what they estimate.
    #[test]
    fn estimates_are_without_bias() {
        const ROWS: [[f64; 2]; 3] = [[1.0, 0.5], [-2.0, 1.5], [2.5, 0.25]];
        let mean = [0, 1].map(|i| ROWS.iter().map(|row| row[i]).sum::<f64>() / 3.0);
        let square = |v: [f64; 2]| v[0] * v[0] + v[1] * v[1];
        let deviation = |row: &[f64; 2]| square([row[0] - mean[0], row[1] - mean[1]]);
        let trace = ROWS.iter().map(deviation).sum::<f64>() / 3.0;
        for (first, second) in [(2_usize, 2_usize), (1, 2)] {
            let n = first + second;
            let shares = [first, second].map(|size| size as f64 / n as f64);
            let (mut signal, mut noise) = (0.0, 0.0);
            let n_draws = 3_usize.pow(n as u32);
            for draw in 0..n_draws {
                let row = |at: usize| ROWS[draw / 3_usize.pow(at as u32) % 3];
                // A half's part of the mean over the batch.
                let part = |rows: std::ops::Range<usize>| {
                    [0, 1].map(|i| rows.clone().map(|at| row(at)[i]).sum::<f64>() / n as f64)
                };
                let (a, b) = (part(0..first), part(first..n));
                let whole = square([a[0] + b[0], a[1] + b[1]]);
                let sizes = [first as f64, second as f64];
                let found = Noise::of(whole, [square(a), square(b)], shares, sizes);
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
        let found = Noise::of(g_big, of_halves.map(|square| square / 4.0), [0.5; 2], [4.0; 2]);
        assert!((found.signal - signal).abs() < 1e-12, "{found:?}, not {signal}");
        assert!((found.noise - noise).abs() < 1e-12, "{found:?}, not {noise}");
    }

    #[test]
    fn a_noise_scale_is_told_of_looks_that_saw_noise_alone() {
        let mut accounting = Accounting::new(Some(1));
        let look = |measures: &[(&str, f64)]| {
            let named = measures.iter().map(|(measure, value)| (key("pages", measure), *value));
            named.collect::<BTreeMap<_, _>>()
        };
        // Alone, and then as one of several ranks.
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
        assert_eq!((found["a.b"].share, found["a.b"].cosine), (0.75, 0.5));
        let note = note(7, &observed).unwrap();
        assert!(
            note.starts_with("gradients of step 7: a.b norm 3.000 (75 %) cosine 0.50"),
            "{note}"
        );
        assert_eq!(super::note(7, &BTreeMap::new()), None);
    }
}
