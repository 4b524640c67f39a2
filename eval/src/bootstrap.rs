//! Percentile bootstrap over queries: how far a score would move with other queries of the same
//! kind, and whether two runs on the same queries differ.
//!
//! Questions of one image, and clips of one video, are no independent draws: clusters of them are drawn, with
//! all that belongs to each. A score is a function of how often each cluster is drawn. Most are ratios of sums
//! over queries: for a mean the denominators are 1; for nats per token they are token counts; for corpus
//! `CIDEr` the summands are the scores per image with the document frequencies of the whole set, which stay
//! frozen while images are drawn.

use std::collections::HashMap;
use std::hash::Hash;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::draw::{below, mix};

/// Resamples. Percentiles at 2.5 and 97.5 % then rest on 25 resamples each.
pub const RESAMPLES: usize = 1000;

/// What one query adds to the numerator and the denominator of a score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Term {
    /// Added to the numerator.
    pub sum: f64,
    /// Added to the denominator.
    pub weight: f64,
}

impl Term {
    /// A summand of a plain mean.
    pub fn of(value: f64) -> Self {
        Self { sum: value, weight: 1.0 }
    }
}

/// A score with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The score of the queries at hand.
    pub value: f64,
    /// 2.5th percentile of the resamples.
    pub low: f64,
    /// 97.5th percentile of the resamples.
    pub high: f64,
    /// Standard deviation of the resamples.
    pub stderr: f64,
}

impl Estimate {
    /// The interval moved by the mean error of the resamples. A resample holds some queries more than once, which
    /// a precision counts as so many found: its values lie above the score itself.
    #[must_use]
    pub fn centred(self, resampled: impl IntoIterator<Item = f64>) -> Self {
        let (sum, n) =
            resampled.into_iter().fold((0.0, 0.0), |(sum, n), value| (sum + value, n + 1.0));
        let bias = if n > 0.0 { sum / n - self.value } else { 0.0 };
        Self { low: self.low - bias, high: self.high - bias, ..self }
    }

    /// A score and its values in the resamples in which it has one; where it has one in none, the bounds are no
    /// numbers.
    pub fn of(value: f64, resampled: impl IntoIterator<Item = f64>) -> Self {
        let mut resampled: Vec<f64> = resampled.into_iter().collect();
        resampled.sort_by(f64::total_cmp);
        let bound = |p| percentile(&resampled, p).unwrap_or(f64::NAN);
        Self { value, low: bound(0.025), high: bound(0.975), stderr: deviation(&resampled) }
    }

    /// A score of which nothing was drawn: an empty interval.
    pub fn alone(value: f64) -> Self {
        Self { value, low: value, high: value, stderr: 0.0 }
    }
}

/// The score of `terms` with its interval; none when the weights sum to zero.
///
/// The draws are a function of (seed, resample, position): two scores over the same queries with
/// the same seed see the same resamples.
pub fn estimate(terms: &[Term], clusters: &Clusters, seed: u64) -> Option<Estimate> {
    let plan = Resampling { clusters, seed, resamples: RESAMPLES };
    let sums = Sums::of(clusters, terms.iter().map(|term| [term.sum, term.weight]));
    let drawn = plan.draw(&[&|times| vec![ratio(sums.drawn(times))]]);
    drawn.into_iter().next()?.estimates().into_iter().next()?
}

/// Which queries are drawn together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clusters {
    /// Number of the cluster of each query.
    of_query: Vec<u32>,
    n: usize,
}

impl Clusters {
    /// Each query by itself.
    pub fn alone(n_queries: usize) -> Self {
        Self { of_query: (0..n_queries as u32).collect(), n: n_queries }
    }

    /// Queries of the same name together.
    pub fn of<T: Hash + Eq>(names: impl IntoIterator<Item = T>) -> Self {
        let mut numbers = HashMap::new();
        let mut number = |name| {
            let next = numbers.len() as u32;
            *numbers.entry(name).or_insert(next)
        };
        let of_query = names.into_iter().map(&mut number).collect();
        Self { of_query, n: numbers.len() }
    }

    /// How many clusters there are.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// Number of the cluster of a query.
    pub fn of_query(&self, query: usize) -> usize {
        self.of_query[query] as usize
    }
}

/// Sums over the queries of each cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Sums<const K: usize> {
    clusters: Vec<[f64; K]>,
}

impl<const K: usize> Sums<K> {
    /// Sums of what each query adds.
    pub fn of(clusters: &Clusters, terms: impl IntoIterator<Item = [f64; K]>) -> Self {
        let mut sums = vec![[0.0; K]; clusters.len()];
        for (query, term) in terms.into_iter().enumerate() {
            let sum = &mut sums[clusters.of_query(query)];
            sum.iter_mut().zip(term).for_each(|(sum, term)| *sum += term);
        }
        Self { clusters: sums }
    }

    /// Sums over clusters that are drawn so many times.
    pub fn drawn(&self, times: &[u32]) -> [f64; K] {
        let mut drawn = [0.0; K];
        for (cluster, times) in self.clusters.iter().zip(times) {
            let times = f64::from(*times);
            drawn.iter_mut().zip(cluster).for_each(|(sum, term)| *sum += times * term);
        }
        drawn
    }
}

/// The first of two sums over the second; none where that is zero.
pub fn ratio([sum, weight]: [f64; 2]) -> Option<f64> {
    (weight > 0.0).then(|| sum / weight)
}

/// Values as a function of how often each cluster is drawn: one or more that share their work.
pub type Scores<'a> = dyn Fn(&[u32]) -> Vec<Option<f64>> + Sync + 'a;

/// What is drawn, and how often.
#[derive(Debug, Clone, Copy)]
pub struct Resampling<'a> {
    /// Drawn with replacement, as many as there are.
    pub clusters: &'a Clusters,
    /// Decides the draws.
    pub seed: u64,
    /// How often; with none there are values without intervals.
    pub resamples: usize,
}

/// Values of one or more scores, on the queries at hand and on each resample.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// Of the queries at hand.
    pub values: Vec<Option<f64>>,
    /// Of each resample.
    pub resampled: Vec<Vec<Option<f64>>>,
}

impl Resampling<'_> {
    /// The values of each of `scores`, all on the same draws.
    pub fn draw(&self, scores: &[&Scores<'_>]) -> Vec<Drawn> {
        let n = self.clusters.len();
        let of = |times: &[u32]| scores.iter().map(|score| score(times)).collect::<Vec<_>>();
        let at_hand = of(&vec![1; n]);
        let resamples: Vec<Vec<Vec<Option<f64>>>> =
            (0..self.resamples).into_par_iter().map(|resample| of(&self.times(resample))).collect();
        let mut drawn: Vec<Drawn> =
            at_hand.into_iter().map(|values| Drawn { values, resampled: Vec::new() }).collect();
        for resample in resamples {
            drawn.iter_mut().zip(resample).for_each(|(drawn, values)| drawn.resampled.push(values));
        }
        drawn
    }

    /// How often each cluster is drawn.
    fn times(&self, resample: usize) -> Vec<u32> {
        let n = self.clusters.len();
        let key = mix(self.seed, resample as u64);
        let mut times = vec![0; n];
        (0..n as u64).for_each(|i| times[below(mix(key, i), n)] += 1);
        times
    }
}

impl Drawn {
    /// Values of one score in the resamples in which it has one.
    pub fn resamples_of(&self, score: usize) -> impl Iterator<Item = f64> {
        self.resampled.iter().filter_map(move |values| values[score])
    }

    /// Each value with its interval: an empty one where nothing was drawn.
    pub fn estimates(&self) -> Vec<Option<Estimate>> {
        let estimate = |(i, value): (usize, &Option<f64>)| {
            let value = (*value)?;
            if self.resampled.is_empty() {
                return Some(Estimate::alone(value));
            }
            Some(Estimate::of(value, self.resamples_of(i)))
        };
        self.values.iter().enumerate().map(estimate).collect()
    }
}

/// Percentile of sorted values, linear between two of them.
fn percentile(sorted: &[f64], p: f64) -> Option<f64> {
    let place = p * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(below + (above - below) * place.fract())
}

fn deviation(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
    (squares / (n - 1.0).max(1.0)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of queries that are drawn one by one.
    fn of_each(terms: &[Term], seed: u64) -> Option<Estimate> {
        estimate(terms, &Clusters::alone(terms.len()), seed)
    }

    /// 400 values with mean 0.3 and variance 0.21: a coin that falls heads 3 times of 10.
    fn coin() -> Vec<Term> {
        (0..400).map(|i| Term::of(f64::from(u8::from(i % 10 < 3)))).collect()
    }

    #[test]
    fn interval_of_a_mean_agrees_with_the_normal_one() {
        let found = of_each(&coin(), 1).unwrap();
        let stderr = (0.21_f64 / 400.0).sqrt();
        assert!((found.value - 0.3).abs() < 1e-12);
        assert!((found.stderr / stderr - 1.0).abs() < 0.08, "{found:?} against {stderr}");
        for (bound, normal) in [(found.low, 0.3 - 1.96 * stderr), (found.high, 0.3 + 1.96 * stderr)]
        {
            assert!((bound - normal).abs() < 0.25 * stderr, "{bound} against {normal}");
        }
    }

    #[test]
    fn a_ratio_weighs_queries_by_their_tokens() {
        let terms = [Term { sum: 2.0, weight: 1.0 }, Term { sum: 4.0, weight: 3.0 }];
        assert!((of_each(&terms, 0).unwrap().value - 1.5).abs() < 1e-12);
    }

    #[test]
    fn equal_queries_have_no_spread_and_no_queries_no_score() {
        let expected = Estimate { value: 2.0, low: 2.0, high: 2.0, stderr: 0.0 };
        assert_eq!(of_each(&[Term::of(2.0); 9], 3), Some(expected));
        assert_eq!(of_each(&[], 3), None);
    }

    #[test]
    fn copies_of_a_query_in_one_cluster_tell_nothing_more() {
        let few: Vec<Term> = coin();
        let many: Vec<Term> = few.iter().flat_map(|term| [*term; 5]).collect();
        let names = (0..many.len()).map(|query| query / 5);
        let clusters = Clusters::of(names);
        let sums = Sums::of(&clusters, many.iter().map(|term| [term.sum, term.weight]));
        let plan = Resampling { clusters: &clusters, seed: 1, resamples: RESAMPLES };
        let drawn = plan.draw(&[&|times| vec![ratio(sums.drawn(times))]]);
        let (clustered, alone) = (drawn[0].estimates()[0].unwrap(), of_each(&few, 1).unwrap());
        assert!((clustered.stderr - alone.stderr).abs() < 1e-12, "{clustered:?} {alone:?}");
        assert!((clustered.low - alone.low).abs() < 1e-12);
        // As if they were independent, the error would be less by a factor of the root of 5.
        assert!(of_each(&many, 1).unwrap().stderr < 0.6 * alone.stderr);
    }

    #[test]
    fn a_biased_interval_is_moved_to_the_score() {
        let estimate = Estimate::of(1.0, [2.0, 3.0, 4.0]);
        assert!(estimate.low > estimate.value);
        let moved = estimate.centred([2.0, 3.0, 4.0]);
        assert!((moved.low - (estimate.low - 2.0)).abs() < 1e-12, "{moved:?}");
        assert!(moved.low < 1.0 && 1.0 < moved.high && moved.value.to_bits() == 1.0_f64.to_bits());
    }

    #[test]
    fn without_resamples_there_are_values_alone() {
        let clusters = Clusters::alone(2);
        let plan = Resampling { clusters: &clusters, seed: 0, resamples: 0 };
        let drawn = plan.draw(&[&|times| vec![Some(f64::from(times[0])), None]]);
        let expected = Estimate { value: 1.0, low: 1.0, high: 1.0, stderr: 0.0 };
        assert_eq!(drawn[0].estimates(), [Some(expected), None]);
    }

    #[test]
    fn seed_alone_decides_the_draws() {
        assert_eq!(of_each(&coin(), 5), of_each(&coin(), 5));
        assert_ne!(of_each(&coin(), 5), of_each(&coin(), 6));
    }
}
