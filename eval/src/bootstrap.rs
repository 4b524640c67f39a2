//! Percentile bootstrap over queries: how far a score would move with other queries of the same
//! kind.
//!
//! Every score here is a ratio of sums over queries. For a mean the denominators are 1; for nats
//! per token they are token counts; for corpus `CIDEr` the summands are the scores per image with
//! the document frequencies of the whole set, which stay frozen while images are drawn.

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

/// The score of `terms` with its interval; none when the weights sum to zero.
///
/// The draws are a function of (seed, resample, position): two scores over the same queries with
/// the same seed see the same resamples.
pub fn estimate(terms: &[Term], seed: u64) -> Option<Estimate> {
    estimate_by(terms.len(), seed, |drawn| ratio(drawn.map(|i| &terms[i])))
}

/// The score of `n` queries with its interval; `score` gives that of queries by their numbers, of which
/// some may come more than once.
pub fn estimate_by(
    n: usize,
    seed: u64,
    score: impl Fn(&mut dyn Iterator<Item = usize>) -> Option<f64>,
) -> Option<Estimate> {
    let value = score(&mut (0..n))?;
    let mut resampled: Vec<f64> = (0..RESAMPLES)
        .filter_map(|resample| {
            let key = mix(seed, resample as u64);
            score(&mut (0..n as u64).map(|i| below(mix(key, i), n)))
        })
        .collect();
    resampled.sort_by(f64::total_cmp);
    Some(Estimate {
        value,
        low: percentile(&resampled, 0.025)?,
        high: percentile(&resampled, 0.975)?,
        stderr: deviation(&resampled),
    })
}

fn ratio<'a>(terms: impl Iterator<Item = &'a Term>) -> Option<f64> {
    let (sum, weight) = terms.fold((0.0, 0.0), |(s, w), term| (s + term.sum, w + term.weight));
    (weight > 0.0).then(|| sum / weight)
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

    /// 400 values with mean 0.3 and variance 0.21: a coin that falls heads 3 times of 10.
    fn coin() -> Vec<Term> {
        (0..400).map(|i| Term::of(f64::from(u8::from(i % 10 < 3)))).collect()
    }

    #[test]
    fn interval_of_a_mean_agrees_with_the_normal_one() {
        let found = estimate(&coin(), 1).unwrap();
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
        assert!((estimate(&terms, 0).unwrap().value - 1.5).abs() < 1e-12);
    }

    #[test]
    fn equal_queries_have_no_spread_and_no_queries_no_score() {
        let expected = Estimate { value: 2.0, low: 2.0, high: 2.0, stderr: 0.0 };
        assert_eq!(estimate(&[Term::of(2.0); 9], 3), Some(expected));
        assert_eq!(estimate(&[], 3), None);
    }

    #[test]
    fn seed_alone_decides_the_draws() {
        assert_eq!(estimate(&coin(), 5), estimate(&coin(), 5));
        assert_ne!(estimate(&coin(), 5), estimate(&coin(), 6));
    }
}
