//! BLEU-1 to BLEU-4 (Papineni et al. 2002) as pycocoevalcap computes it: n-grams clipped to the most that
//! one reference has, the geometric mean of their precisions, and a brevity penalty on the length of the
//! corpus against the references' closest lengths. Tiny numbers keep empty counts from being zero.

use super::captions::{Caption, CaptionSet, Gram, ImageCaptions, N_MAX};

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
    fn of(image: &ImageCaptions) -> Self {
        let prediction = &image.prediction;
        let correct = std::array::from_fn(|order| {
            let clipped = |gram: &Gram| {
                let counts = image.references.iter().map(|other| other.count(order, gram.number));
                u64::from(counts.max().unwrap_or_default().min(gram.count))
            };
            prediction.grams(order).iter().map(clipped).sum()
        });
        let n_words = |caption: &Caption| caption.n_words as u64;
        let words = n_words(prediction);
        let lengths = image.references.iter().map(n_words);
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

    /// The counts as numbers that add up, see [`BleuCounts::of_terms`].
    pub fn terms(&self) -> [f64; 2 + 2 * N_MAX] {
        let counts = [self.words, self.reference_words].into_iter();
        let counts = counts.chain(self.guessed).chain(self.correct).map(|count| count as f64);
        let mut terms = [0.0; 2 + 2 * N_MAX];
        terms.iter_mut().zip(counts).for_each(|(term, count)| *term = count);
        terms
    }

    /// The counts of sums of terms.
    pub fn of_terms(terms: [f64; 2 + 2 * N_MAX]) -> Self {
        let count = |at: usize| terms[at] as u64;
        Self {
            words: count(0),
            reference_words: count(1),
            guessed: std::array::from_fn(|n| count(2 + n)),
            correct: std::array::from_fn(|n| count(2 + N_MAX + n)),
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

/// The counts of each image; those of the set are their sum, see [`total`].
pub fn bleu_counts(set: &CaptionSet) -> Vec<BleuCounts> {
    set.images.iter().map(BleuCounts::of).collect()
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
    use crate::metrics::captions::{CaptionPair, Words};

    fn counts(prediction: &str, references: &[&str]) -> BleuCounts {
        let pair = CaptionPair { prediction, references: references.to_vec() };
        bleu_counts(&CaptionSet::of(&[pair], Words::WhiteSpace))[0]
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
