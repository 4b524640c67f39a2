//! CIDEr-D (Vedantam et al. 2015) as pycocoevalcap computes it, oddities included.
//!
//! Raw counts instead of term frequencies; document frequency over the references of the images at
//! hand, so that scores depend on the set; clipped counts; a Gaussian penalty on the difference of
//! lengths, where the "length" is the number of bigrams; n-grams of 1 to 4; times 10. With one
//! image every weight is ln 1 = 0, and so is the score.

use std::collections::{BTreeSet, HashMap};

use super::captions::{CaptionPair, Counts, N_MAX, NGram, Vocabulary, WordPair, Words, order};

/// Width of the length penalty, in bigrams.
const SIGMA: f64 = 6.0;
/// Factor on the mean cosine.
const SCALE: f64 = 10.0;

/// CIDEr-D of each image; the score of the set is their mean.
pub fn cider_d(pairs: &[CaptionPair<'_>]) -> Vec<f64> {
    let words: Vec<WordPair> = pairs.iter().map(|pair| WordPair::of(pair, Words::Ptb)).collect();
    cider_d_of_words(&words)
}

/// The same of words that are there already.
pub fn cider_d_of_words(pairs: &[WordPair]) -> Vec<f64> {
    let mut vocabulary = Vocabulary::default();
    let mut count = |pair: &WordPair| CountedPair {
        prediction: vocabulary.counts(&pair.prediction),
        references: pair.references.iter().map(|words| vocabulary.counts(words)).collect(),
    };
    let counted: Vec<CountedPair> = pairs.iter().map(&mut count).collect();
    let idf = InverseDocumentFrequency::of(&counted);
    counted.iter().map(|pair| score(pair, &idf)).collect()
}

struct CountedPair {
    prediction: Counts,
    references: Vec<Counts>,
}

/// How rare each n-gram is among the images' references.
struct InverseDocumentFrequency {
    images: HashMap<NGram, f64>,
    ln_images: f64,
}

impl InverseDocumentFrequency {
    fn of(pairs: &[CountedPair]) -> Self {
        let mut images = HashMap::new();
        for pair in pairs {
            let seen: BTreeSet<NGram> = pair.references.iter().flatten().map(|c| c.0).collect();
            for ngram in seen {
                *images.entry(ngram).or_insert(0.0) += 1.0;
            }
        }
        Self { images, ln_images: (pairs.len() as f64).ln() }
    }

    fn weight(&self, ngram: &NGram) -> f64 {
        self.ln_images - self.images.get(ngram).map_or(0.0, |n| n.ln())
    }
}

/// A caption as weighted n-grams.
struct Weighted {
    weights: Vec<(NGram, f64)>,
    norms: [f64; N_MAX],
    bigrams: f64,
}

impl Weighted {
    fn of(counts: &Counts, idf: &InverseDocumentFrequency) -> Self {
        let mut squares = [0.0; N_MAX];
        let mut bigrams = 0.0;
        let mut weights = Vec::with_capacity(counts.len());
        for (ngram, count) in counts {
            let weight = f64::from(*count) * idf.weight(ngram);
            squares[order(ngram)] += weight * weight;
            if order(ngram) == 1 {
                bigrams += f64::from(*count);
            }
            weights.push((*ngram, weight));
        }
        Self { weights, norms: squares.map(f64::sqrt), bigrams }
    }
}

fn score(pair: &CountedPair, idf: &InverseDocumentFrequency) -> f64 {
    let prediction = Weighted::of(&pair.prediction, idf);
    let references = pair.references.iter().map(|counts| Weighted::of(counts, idf));
    let total: f64 = references.map(|reference| similarity(&prediction, &reference)).sum();
    SCALE * total / pair.references.len() as f64
}

/// Mean over n of the clipped cosine, with the length penalty.
fn similarity(prediction: &Weighted, reference: &Weighted) -> f64 {
    let mut products = [0.0; N_MAX];
    for (ngram, weight) in &prediction.weights {
        if let Ok(at) = reference.weights.binary_search_by(|entry| entry.0.cmp(ngram)) {
            let theirs = reference.weights[at].1;
            products[order(ngram)] += weight.min(theirs) * theirs;
        }
    }
    let difference = prediction.bigrams - reference.bigrams;
    let penalty = (-difference * difference / (2.0 * SIGMA * SIGMA)).exp();
    let cosines = (0..N_MAX).map(|n| {
        let norms = prediction.norms[n] * reference.norms[n];
        if norms == 0.0 { products[n] } else { products[n] / norms }
    });
    penalty * cosines.sum::<f64>() / N_MAX as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pairs: &[(&str, &[&str])], expected: &[f64]) {
        let pairs: Vec<CaptionPair<'_>> = pairs
            .iter()
            .map(|(prediction, references)| CaptionPair {
                prediction,
                references: references.to_vec(),
            })
            .collect();
        let scores = cider_d(&pairs);
        assert_eq!(scores.len(), expected.len());
        for (score, expected) in scores.iter().zip(expected) {
            assert!((score - expected).abs() < 1e-12, "{scores:?} against {expected}");
        }
    }

    #[test]
    fn a_copy_of_the_reference_scores_ten() {
        let other: &[&str] = &["five green stars lie here"];
        check(&[("one red ball rolls", &["one red ball rolls"]), ("", other)], &[10.0, 0.0]);
    }

    #[test]
    fn a_short_copy_has_no_longer_ngrams_to_match() {
        // Two words: the cosines for n = 1 and 2 are 1, those for 3 and 4 are 0.
        check(&[("red ball", &["Red ball."]), ("x", &["green star"])], &[5.0, 0.0]);
    }

    #[test]
    fn words_of_every_image_weigh_nothing() {
        check(&[("a", &["a"]), ("a", &["a"])], &[0.0, 0.0]);
    }

    #[test]
    fn one_image_scores_zero() {
        check(&[("one red ball rolls", &["one red ball rolls"])], &[0.0]);
    }

    #[test]
    fn a_repeated_word_is_clipped_and_longer_is_worse() {
        // Unigrams: (2w * clipped to w)w / (2w * w) = 1/2; one bigram more than the reference's 0.
        let penalty = (-1.0_f64 / 72.0).exp();
        check(&[("red red", &["red"]), ("x", &["green"])], &[10.0 * penalty / 4.0 / 2.0, 0.0]);
    }

    #[test]
    fn references_are_averaged() {
        check(&[("red", &["red", "blue"]), ("x", &["green"])], &[10.0 / 4.0 / 2.0, 0.0]);
    }
}
