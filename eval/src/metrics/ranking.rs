//! Rankings of candidate answers: `VisDial`'s NDCG, and where the right one stands.

use std::cmp::Ordering;

/// Candidates by falling score; of equal scores, the first one first. What is not a number is last.
fn order(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    let key = |i: &usize| if scores[*i].is_nan() { f64::NEG_INFINITY } else { scores[*i] };
    order.sort_by(|a, b| key(b).partial_cmp(&key(a)).unwrap_or(Ordering::Equal));
    order
}

/// Normalised discounted cumulative gain (`VisDial` 1.0): gains are the relevance itself, and only as many
/// places count as there are relevant candidates. None where nothing is relevant.
///
/// # Panics
/// If there are not as many scores as candidates.
pub fn ndcg(scores: &[f64], relevance: &[f64]) -> Option<f64> {
    assert_eq!(scores.len(), relevance.len());
    let k = relevance.iter().filter(|relevance| **relevance != 0.0).count();
    let gain = |order: Vec<usize>| {
        let discounted = |(place, i): (usize, usize)| relevance[i] / (place as f64 + 2.0).log2();
        order.into_iter().take(k).enumerate().map(discounted).sum::<f64>()
    };
    let ideal = gain(order(relevance));
    (ideal > 0.0).then(|| gain(order(scores)) / ideal)
}

/// Place of a candidate from 1, behind all others that score as much: a model that cannot tell them apart
/// gains nothing by it.
///
/// # Panics
/// If there is no such candidate.
pub fn rank(scores: &[f64], right: usize) -> usize {
    let worse = |i: usize| i == right || scores[i] < scores[right];
    scores.len() - (0..scores.len()).filter(|i| worse(*i)).count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_scores_help_no_one() {
        assert_eq!(rank(&[1.0, 3.0, 2.0], 2), 2);
        assert_eq!(rank(&[2.0, 2.0, 2.0], 0), 3);
        assert_eq!(rank(&[f64::NAN, 1.0], 0), 2);
    }

    #[test]
    fn only_as_many_places_count_as_are_relevant() {
        let relevance = [0.0, 1.0, 0.5, 0.0];
        assert_eq!(ndcg(&[0.0, 9.0, 8.0, 7.0], &relevance), Some(1.0));
        // The relevant ones stand second and third of two that count.
        let ideal = 1.0 + 0.5 / 3.0_f64.log2();
        let found = ndcg(&[9.0, 8.0, 7.0, 0.0], &relevance).unwrap();
        assert!((found - (1.0 / 3.0_f64.log2()) / ideal).abs() < 1e-12);
        assert_eq!(ndcg(&[1.0], &[0.0]), None);
    }
}
