//! The area under the receiver operating characteristic, and average precision, of yes-or-no answers.
//! Equal scores are one threshold, as in scikit-learn.

use std::cmp::Ordering;

/// A score and whether the truth is yes.
pub type Judged = (f64, bool);

/// Chance that a yes scores more than a no, equal scores counting half. None without a yes or a no, or
/// where a score is not a number.
pub fn roc_auc(answers: &[Judged]) -> Option<f64> {
    let (mut below, mut area) = (0.0, 0.0);
    let (mut n_yes, mut n_no) = (0.0, 0.0);
    for equal in thresholds(answers)?.rev() {
        let (yes, no) = equal;
        area += yes * (below + no / 2.0);
        below += no;
        n_yes += yes;
        n_no += no;
    }
    (n_yes > 0.0 && n_no > 0.0).then(|| area / (n_yes * n_no))
}

/// The mean of precision over recall, in steps. None without a yes, or where a score is not a number.
pub fn average_precision(answers: &[Judged]) -> Option<f64> {
    let (mut n_yes, mut n, mut sum) = (0.0, 0.0, 0.0);
    for (yes, no) in thresholds(answers)? {
        n_yes += yes;
        n += yes + no;
        sum += yes * n_yes / n;
    }
    (n_yes > 0.0).then(|| sum / n_yes)
}

/// How many truths are yes and no at each score, from the highest.
fn thresholds(answers: &[Judged]) -> Option<impl DoubleEndedIterator<Item = (f64, f64)>> {
    if answers.iter().any(|(score, _)| score.is_nan()) {
        return None;
    }
    let mut sorted = answers.to_vec();
    sorted.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    // Neither is NaN; zeros of either sign are equal.
    let is_equal = |(a, _): &Judged, (b, _): &Judged| a.partial_cmp(b) == Some(Ordering::Equal);
    let counts = sorted.chunk_by(is_equal).map(|equal| {
        let yes = equal.iter().filter(|(_, truth)| *truth).count();
        (yes as f64, (equal.len() - yes) as f64)
    });
    Some(counts.collect::<Vec<_>>().into_iter())
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
}
