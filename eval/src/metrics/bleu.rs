//! BLEU-1 to BLEU-4 (Papineni et al. 2002) as pycocoevalcap computes it: n-grams clipped to the most that
//! one reference has, the geometric mean of their precisions, and a brevity penalty on the length of the
//! corpus against the references' closest lengths. Tiny numbers keep empty counts from being zero.

use std::collections::HashMap;

use super::captions::{Counts, N_MAX, NGram, Vocabulary, WordPair, order};

/// Added to n-grams that match.
const TINY: f64 = 1e-15;
/// Added to n-grams that there are.
const SMALL: f64 = 1e-9;

/// What one or more captions count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BleuCounts {
    /// Words of the predictions.
    pub words: u64,
    /// Words of the reference whose length is closest, the shorter one of two.
    pub reference_words: u64,
    /// N-grams of the predictions, for n from 1.
    pub guessed: [u64; N_MAX],
    /// Of these, those that a reference has.
    pub correct: [u64; N_MAX],
}

impl BleuCounts {
    /// Counts one prediction.
    fn of(prediction: &Counts, references: &[Counts]) -> Self {
        let mut most: HashMap<NGram, u32> = HashMap::new();
        for (ngram, count) in references.iter().flatten() {
            let most = most.entry(*ngram).or_default();
            *most = (*most).max(*count);
        }
        let (words, mut correct) = (n_words(prediction), [0; N_MAX]);
        for (ngram, count) in prediction {
            let in_reference = most.get(ngram).copied().unwrap_or_default();
            correct[order(ngram)] += u64::from(in_reference.min(*count));
        }
        let lengths = references.iter().map(n_words);
        let closest = lengths.min_by_key(|length| (length.abs_diff(words), *length));
        let guessed = std::array::from_fn(|n| words.saturating_sub(n as u64));
        Self { words, reference_words: closest.unwrap_or_default(), guessed, correct }
    }

    fn add(&mut self, other: &Self) {
        self.words += other.words;
        self.reference_words += other.reference_words;
        for n in 0..N_MAX {
            self.guessed[n] += other.guessed[n];
            self.correct[n] += other.correct[n];
        }
    }

    /// BLEU-1 to BLEU-4.
    pub fn scores(&self) -> [f64; N_MAX] {
        let ratio = (self.words as f64 + TINY) / (self.reference_words as f64 + SMALL);
        let brevity = if ratio < 1.0 { (1.0 - 1.0 / ratio).exp() } else { 1.0 };
        let mut product = 1.0;
        std::array::from_fn(|n| {
            product *= (self.correct[n] as f64 + TINY) / (self.guessed[n] as f64 + SMALL);
            product.powf(1.0 / (n + 1) as f64) * brevity
        })
    }
}

fn n_words(counts: &Counts) -> u64 {
    counts.iter().filter(|(ngram, _)| order(ngram) == 0).map(|(_, count)| u64::from(*count)).sum()
}

/// The counts of each image; those of the set are their sum, see [`total`].
pub fn bleu_counts(pairs: &[WordPair]) -> Vec<BleuCounts> {
    let mut vocabulary = Vocabulary::default();
    let of_pair = |pair: &WordPair| {
        let prediction = vocabulary.counts(&pair.prediction);
        let references = pair.references.iter().map(|words| vocabulary.counts(words));
        let references: Vec<Counts> = references.collect();
        BleuCounts::of(&prediction, &references)
    };
    pairs.iter().map(of_pair).collect()
}

/// The counts of a set of captions.
pub fn total<'a>(counts: impl IntoIterator<Item = &'a BleuCounts>) -> BleuCounts {
    let mut total = BleuCounts::default();
    counts.into_iter().for_each(|counts| total.add(counts));
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(prediction: &str, references: &[&str]) -> BleuCounts {
        let references = references.iter().map(|words| (*words).to_owned()).collect();
        bleu_counts(&[WordPair { prediction: prediction.to_owned(), references }])[0]
    }

    #[test]
    fn words_are_clipped_to_the_reference_that_has_most() {
        let found = counts("the the the cat", &["the cat", "the the dog sat down"]);
        assert_eq!((found.guessed, found.correct), ([4, 3, 2, 1], [3, 2, 0, 0]));
        // Lengths 2 and 5 are off by 2 and 1.
        assert_eq!((found.words, found.reference_words), (4, 5));
        assert_eq!(counts("a b c", &["a b c d", "a b"]).reference_words, 2);
    }

    #[test]
    fn what_is_short_is_punished_and_what_is_empty_scores_nothing() {
        let [one, two, ..] = counts("a b", &["a b c d"]).scores();
        assert!((one - (-1.0_f64).exp()).abs() < 1e-8 && (two - one).abs() < 1e-8, "{one} {two}");
        assert!(counts("", &["a"]).scores()[0] < 1e-5);
    }
}
