//! The area under the receiver operating characteristic, and average precision, of yes-or-no answers.
//! Equal scores are one threshold, as in scikit-learn.

use std::cmp::Ordering;

/// A score and whether the truth is yes.
pub type Judged = (f64, bool);

/// Answers by falling score, ready to be weighed in more than one way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thresholds {
    /// Number of each answer and its truth.
    sorted: Vec<(usize, bool)>,
    /// Where in `sorted` each run of equal scores ends.
    ends: Vec<usize>,
}

impl Thresholds {
    /// None where a score is not a number.
    pub fn of(answers: &[Judged]) -> Option<Self> {
        if answers.iter().any(|(score, _)| score.is_nan()) {
            return None;
        }
        let mut order: Vec<usize> = (0..answers.len()).collect();
        order.sort_by(|a, b| answers[*b].0.total_cmp(&answers[*a].0));
        // Neither is NaN; zeros of either sign are equal.
        let is_equal = |a: &usize, b: &usize| {
            answers[*a].0.partial_cmp(&answers[*b].0) == Some(Ordering::Equal)
        };
        let mut end = 0;
        let ends = order.chunk_by(is_equal).map(|equal| {
            end += equal.len();
            end
        });
        let ends = ends.collect();
        Some(Self { sorted: order.into_iter().map(|i| (i, answers[i].1)).collect(), ends })
    }

    /// Weights of the truths that are yes and no at each score, from the highest.
    fn weighed(&self, weight: impl Fn(usize) -> f64) -> impl Iterator<Item = (f64, f64)> {
        let mut start = 0;
        self.ends.iter().map(move |end| {
            let (mut yes, mut no) = (0.0, 0.0);
            for (i, truth) in &self.sorted[start..*end] {
                *(if *truth { &mut yes } else { &mut no }) += weight(*i);
            }
            start = *end;
            (yes, no)
        })
    }

    /// Chance that a yes scores more than a no, equal scores counting half, where answer `i` counts
    /// `weight(i)` times. None without a yes or a no.
    pub fn roc_auc(&self, weight: impl Fn(usize) -> f64) -> Option<f64> {
        let (mut area, mut n_yes, mut n_no) = (0.0, 0.0, 0.0);
        for (yes, no) in self.weighed(weight) {
            area += no * (n_yes + yes / 2.0);
            n_yes += yes;
            n_no += no;
        }
        (n_yes > 0.0 && n_no > 0.0).then(|| area / (n_yes * n_no))
    }

    /// The mean of precision over recall, in steps, likewise. None without a yes.
    pub fn average_precision(&self, weight: impl Fn(usize) -> f64) -> Option<f64> {
        let (mut n_yes, mut n, mut sum) = (0.0, 0.0, 0.0);
        for (yes, no) in self.weighed(weight) {
            n_yes += yes;
            n += yes + no;
            // Of nothing there is no precision.
            if yes > 0.0 {
                sum += yes * n_yes / n;
            }
        }
        (n_yes > 0.0).then(|| sum / n_yes)
    }

    /// What each answer adds: the share of the other truths that it is on the right side of, equal scores
    /// counting half. The mean over the yeses, as over the noes, is the area.
    pub fn shares(&self) -> Vec<Option<f64>> {
        let totals = self.weighed(|_| 1.0).fold((0.0, 0.0), |(y, n), (yes, no)| (y + yes, n + no));
        let mut shares = vec![None; self.sorted.len()];
        let (mut n_yes, mut n_no, mut start) = (0.0, 0.0, 0);
        for ((yes, no), end) in self.weighed(|_| 1.0).zip(&self.ends) {
            for (i, truth) in &self.sorted[start..*end] {
                let (right, others) = if *truth {
                    (totals.1 - n_no - no / 2.0, totals.1)
                } else {
                    (n_yes + yes / 2.0, totals.0)
                };
                shares[*i] = (others > 0.0).then(|| right / others);
            }
            (n_yes, n_no, start) = (n_yes + yes, n_no + no, *end);
        }
        shares
    }

    /// Precision among the answers that score at least as much as each yes; none for a no. Their weighted
    /// mean is the average precision.
    pub fn precisions(&self, weight: impl Fn(usize) -> f64) -> Vec<Option<f64>> {
        let mut precisions = vec![None; self.sorted.len()];
        let (mut n_yes, mut n, mut start) = (0.0, 0.0, 0);
        for ((yes, no), end) in self.weighed(weight).zip(&self.ends) {
            (n_yes, n) = (n_yes + yes, n + yes + no);
            for (i, truth) in &self.sorted[start..*end] {
                precisions[*i] = truth.then(|| n_yes / n);
            }
            start = *end;
        }
        precisions
    }
}

/// Chance that a yes scores more than a no, equal scores counting half. None without a yes or a no, or
/// where a score is not a number.
pub fn roc_auc(answers: &[Judged]) -> Option<f64> {
    Thresholds::of(answers)?.roc_auc(|_| 1.0)
}

/// The mean of precision over recall, in steps. None without a yes, or where a score is not a number.
pub fn average_precision(answers: &[Judged]) -> Option<f64> {
    Thresholds::of(answers)?.average_precision(|_| 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_count_half_and_one_sided_truths_have_no_area() {
        let answers = [(0.9, true), (0.5, true), (0.5, false), (0.1, false)];
        // Of four pairs, three and a half are in order.
        assert_eq!(roc_auc(&answers), Some(3.5 / 4.0));
        // Half the recall at precision 1, half at 2/3.
        let found = average_precision(&answers).unwrap();
        assert!((found - (0.5 + 0.5 * 2.0 / 3.0)).abs() < 1e-12);
        assert_eq!(roc_auc(&[(0.5, true)]), None);
        assert_eq!(roc_auc(&[(0.5, true), (f64::NAN, false)]), None);
        assert_eq!(average_precision(&[(0.5, false)]), None);
        assert_eq!(roc_auc(&[(0.0, true), (-0.0, false)]), Some(0.5));
    }

    #[test]
    fn weights_count_as_copies_do() {
        let answers = [(0.9, true), (0.5, false), (0.5, true), (0.4, false), (0.1, true)];
        let copies = [2, 0, 3, 1, 1];
        let copied: Vec<Judged> = answers
            .iter()
            .zip(copies)
            .flat_map(|(answer, n)| std::iter::repeat_n(*answer, n))
            .collect();
        let thresholds = Thresholds::of(&answers).unwrap();
        let weight = |i: usize| copies[i] as f64;
        let close = |a: Option<f64>, b: Option<f64>| (a.unwrap() - b.unwrap()).abs() < 1e-12;
        assert!(close(thresholds.roc_auc(weight), roc_auc(&copied)));
        assert!(close(thresholds.average_precision(weight), average_precision(&copied)));
    }

    #[test]
    fn credits_have_the_score_as_their_mean() {
        let answers = [(0.9, true), (0.5, false), (0.5, true), (0.4, false), (0.1, true)];
        let thresholds = Thresholds::of(&answers).unwrap();
        let (shares, precisions) = (thresholds.shares(), thresholds.precisions(|_| 1.0));
        let mean = |values: &[Option<f64>], truth: bool| {
            let of_truth = values.iter().zip(&answers).filter(|(_, answer)| answer.1 == truth);
            let values: Vec<f64> = of_truth.filter_map(|(value, _)| *value).collect();
            values.iter().sum::<f64>() / values.len() as f64
        };
        let area = roc_auc(&answers).unwrap();
        assert!((mean(&shares, true) - area).abs() < 1e-12);
        assert!((mean(&shares, false) - area).abs() < 1e-12);
        assert!((mean(&precisions, true) - average_precision(&answers).unwrap()).abs() < 1e-12);
        assert!(mean(&precisions, false).is_nan());
    }
}
