//! Two runs on the same queries: how much they differ, and whether that is more than the choice of queries
//! makes.
//!
//! The difference of two scores is taken in each resample, of the same draws for both; its p-value is the
//! share of resamples on the other side of zero, twice. Beside it stands the exact test of the queries on
//! which one run did better: the sign test, which is `McNemar`'s where credits are 0 and 1. That one takes
//! each query for independent of the others, the bootstrap each cluster.

use serde::Serialize;

use crate::bootstrap::{Drawn, Estimate};

/// What two runs come to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Difference {
    /// Score of the first.
    pub a: f64,
    /// Score of the second.
    pub b: f64,
    /// Second less first, with its interval.
    pub difference: Estimate,
    /// Two-sided, of the hypothesis that they do not differ.
    pub p: f64,
}

/// The difference of two scores on the same draws; none where one has no value.
pub fn difference(a: &Drawn, b: &Drawn, value: usize) -> Option<Difference> {
    let (of_a, of_b) = (a.values[value]?, b.values[value]?);
    let pairs = a.resampled.iter().zip(&b.resampled);
    let differences: Vec<f64> = pairs.filter_map(|(a, b)| Some(b[value]? - a[value]?)).collect();
    let count = |is_beyond: fn(&f64) -> bool| differences.iter().filter(|d| is_beyond(d)).count();
    let least = count(|d| *d <= 0.0).min(count(|d| *d >= 0.0));
    // The queries at hand count as one resample more, so that no p-value is zero.
    let p = 2.0 * (least as f64 + 1.0) / (differences.len() as f64 + 1.0);
    let is_drawn = !a.resampled.is_empty();
    let difference = of_b - of_a;
    let difference =
        if is_drawn { Estimate::of(difference, differences) } else { Estimate::alone(difference) };
    Some(Difference { a: of_a, b: of_b, difference, p: p.min(1.0) })
}

/// On how many queries the second run did better and worse than the first.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Flips {
    /// Queries with more credit.
    pub better: u64,
    /// Queries with less.
    pub worse: u64,
    /// Two-sided p-value of the exact sign test.
    pub sign_test_p: f64,
}

/// Compares credits query by query.
pub fn flips(credits: impl IntoIterator<Item = (f64, f64)>) -> Flips {
    let (mut better, mut worse) = (0, 0);
    for (a, b) in credits {
        better += u64::from(b > a);
        worse += u64::from(b < a);
    }
    Flips { better, worse, sign_test_p: sign_test(better, worse) }
}

/// Chance that of so many fair coins at least as large a majority falls on one side.
pub fn sign_test(heads: u64, tails: u64) -> f64 {
    let (n, few) = (heads + tails, heads.min(tails));
    // ln of (n choose i) / 2^n, from one i to the next.
    let mut ln_term = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = ln_term.exp();
    for i in 1..=few {
        ln_term += ((n - i + 1) as f64).ln() - (i as f64).ln();
        tail += ln_term.exp();
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap::{Clusters, Resampling, Sums, ratio};

    #[test]
    fn sign_test_is_the_binomial_one() {
        // Made with scipy.stats.binomtest(k, n, 0.5).pvalue.
        for (heads, tails, expected) in [
            (0, 0, 1.0),
            (1, 1, 1.0),
            (5, 0, 0.0625),
            (2, 8, 0.109_375),
            (40, 60, 0.056_887_933_640_980_89),
            (520, 480, 0.217_448_293_204_141_5),
        ] {
            let found = sign_test(heads, tails);
            assert!((found - expected).abs() < 1e-12, "{heads} {tails}: {found}");
            assert!((found - sign_test(tails, heads)).abs() < 1e-12);
        }
    }

    fn compared(a: &[f64], b: &[f64]) -> Difference {
        let clusters = Clusters::alone(a.len());
        let plan = Resampling { clusters: &clusters, seed: 3, resamples: 1000 };
        let sums = |credits: &[f64]| Sums::of(&clusters, credits.iter().map(|c| [*c, 1.0]));
        let (a, b) = (sums(a), sums(b));
        let drawn = plan
            .draw(&[&|times| vec![ratio(a.drawn(times))], &|times| vec![ratio(b.drawn(times))]]);
        difference(&drawn[0], &drawn[1], 0).unwrap()
    }

    #[test]
    fn a_small_gain_on_every_query_is_sure_however_queries_vary() {
        let a: Vec<f64> = (0..50).map(|i| f64::from(i % 10)).collect();
        let b: Vec<f64> = a.iter().map(|credit| credit + 0.01).collect();
        let found = compared(&a, &b);
        assert!((found.difference.value - 0.01).abs() < 1e-9);
        assert!(found.difference.low > 0.0 && found.difference.stderr < 1e-9, "{found:?}");
        assert!((found.p - 2.0 / 1001.0).abs() < 1e-12, "{found:?}");
        assert!((compared(&a, &a).p - 1.0).abs() < 1e-12);
    }

    #[test]
    fn without_draws_a_difference_stands_alone() {
        let clusters = Clusters::alone(2);
        let plan = Resampling { clusters: &clusters, seed: 3, resamples: 0 };
        let drawn = plan.draw(&[&|_| vec![Some(0.25)], &|_| vec![Some(0.75)]]);
        let found = difference(&drawn[0], &drawn[1], 0).unwrap();
        assert_eq!(found.difference, Estimate::alone(0.5));
    }

    #[test]
    fn a_difference_of_nothing_but_chance_is_not_sure() {
        let a: Vec<f64> = (0..100).map(|i| f64::from(u8::from(i % 2 == 0))).collect();
        let b: Vec<f64> = (0..100).map(|i| f64::from(u8::from(i % 2 == 1 || i == 0))).collect();
        let found = compared(&a, &b);
        assert!(found.p > 0.5 && found.difference.low < 0.0 && found.difference.high > 0.0);
        let flipped = flips(a.into_iter().zip(b));
        assert_eq!((flipped.better, flipped.worse), (50, 49));
    }
}
