//! ROUGE-L (Lin 2004) as pycocoevalcap computes it: the longest common subsequence over the words of
//! prediction and reference. The best precision and the best recall may be of two references, and the
//! empty text is one empty word.

use super::captions::{CaptionSet, ImageCaptions};

/// How much more recall counts than precision.
const BETA: f64 = 1.2;

/// ROUGE-L of each image; the score of a set is their mean.
pub fn rouge_l(set: &CaptionSet) -> Vec<f64> {
    set.images.iter().map(rouge_l_of).collect()
}

fn rouge_l_of(image: &ImageCaptions) -> f64 {
    let prediction = &image.prediction.words;
    let (mut precision, mut recall) = (0.0_f64, 0.0_f64);
    for reference in &image.references {
        let reference = &reference.words;
        let common = longest_common(prediction, reference) as f64;
        precision = precision.max(common / prediction.len() as f64);
        recall = recall.max(common / reference.len() as f64);
    }
    if precision == 0.0 || recall == 0.0 {
        return 0.0;
    }
    (1.0 + BETA * BETA) * precision * recall / (recall + BETA * BETA * precision)
}

/// Length of the longest common subsequence.
fn longest_common(a: &[u32], b: &[u32]) -> usize {
    // Of the words of `a` before the one at hand, with the first words of `b`.
    let mut lengths = vec![0; b.len() + 1];
    for word in a {
        let mut before = 0;
        for (i, other) in b.iter().enumerate() {
            let above = lengths[i + 1];
            lengths[i + 1] = if word == other { before + 1 } else { above.max(lengths[i]) };
            before = above;
        }
    }
    lengths[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::captions::{CaptionPair, Words};

    fn check(prediction: &str, references: &[&str], expected: f64) {
        let pair = CaptionPair { prediction, references: references.to_vec() };
        let found = rouge_l(&CaptionSet::of(&[pair], Words::WhiteSpace))[0];
        assert!((found - expected).abs() < 1e-12, "{found}, not {expected}");
    }

    #[test]
    fn subsequences_may_have_gaps_but_keep_their_order() {
        assert_eq!(longest_common(&[1, 2, 3, 4], &[2, 9, 4, 1]), 2);
        check("a b", &["a b"], 1.0);
        check("a b", &["c d"], 0.0);
        check("", &["a"], 0.0);
        check("", &[""], 1.0);
    }

    #[test]
    fn precision_and_recall_may_be_of_two_references() {
        // Precision 1 from the first, recall 1 from the second.
        check("a b", &["a b c d", "a"], 1.0);
        let beta = BETA * BETA;
        check("a b", &["a c d"], (1.0 + beta) * 0.5 / 3.0 / (1.0 / 3.0 + beta * 0.5));
    }
}
