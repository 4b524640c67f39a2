//! CIDEr-D (Vedantam et al. 2015) as pycocoevalcap computes it, oddities included.
//!
//! Raw counts instead of term frequencies; document frequency over the references of the images at
//! hand, so that scores depend on the set; clipped counts; a Gaussian penalty on the difference of
//! lengths, where the "length" is the number of bigrams; n-grams of 1 to 4; times 10. With one
//! image every weight is ln 1 = 0, and so is the score.

use super::captions::{Caption, CaptionPair, CaptionSet, Gram, ImageCaptions, N_MAX, Words};

/// Width of the length penalty, in bigrams.
const SIGMA: f64 = 6.0;
/// Factor on the mean cosine.
const SCALE: f64 = 10.0;

/// CIDEr-D of each image; the score of the set is their mean.
pub fn cider_d(pairs: &[CaptionPair<'_>]) -> Vec<f64> {
    cider_d_of(&CaptionSet::of(pairs, Words::Ptb))
}

/// The same of words that are there already.
pub fn cider_d_of(set: &CaptionSet) -> Vec<f64> {
    let mut frequency = DocumentFrequency::none(set.n_grams);
    // Of each n-gram, the last image that had it, from 1.
    let mut last = vec![0_u32; set.n_grams];
    for (image, number) in set.images.iter().zip(1..) {
        frequency.n_images += 1;
        for gram in image.references.iter().flat_map(Caption::all_grams) {
            let at = gram.number as usize;
            frequency.images[at] += u32::from(last[at] != number);
            last[at] = number;
        }
    }
    let weights = frequency.squared_weights();
    set.images.iter().map(|image| score_of(image, &weights)).collect()
}

/// The score of an image that is looked at once.
fn score_of(image: &ImageCaptions, weights: &[f64]) -> f64 {
    let prediction = &image.prediction;
    let norms = squares(prediction, weights).map(f64::sqrt);
    let of_reference = |reference: &Caption| {
        let products = products(prediction, reference, weights);
        let penalty = penalty(prediction, reference);
        similarity(&norms, &squares(reference, weights), &products, penalty)
    };
    SCALE * image.references.iter().map(of_reference).sum::<f64>() / image.references.len() as f64
}

fn squares(caption: &Caption, weights: &[f64]) -> [f64; N_MAX] {
    std::array::from_fn(|order| {
        let terms = caption.grams(order).iter();
        terms.map(|gram| f64::from(gram.count).powi(2) * weights[gram.number as usize]).sum()
    })
}

/// Sums of min(h w, r w) r w over n-grams with counts h and r in prediction and reference, and the weight w.
fn products(prediction: &Caption, reference: &Caption, weights: &[f64]) -> [f64; N_MAX] {
    std::array::from_fn(|order| {
        let (mut theirs, mut sum) = (reference.grams(order).iter().peekable(), 0.0);
        for gram in prediction.grams(order) {
            while theirs.next_if(|other| other.number < gram.number).is_some() {}
            if let Some(other) = theirs.next_if(|other| other.number == gram.number) {
                sum += clipped(gram.count, other.count) * weights[gram.number as usize];
            }
        }
        sum
    })
}

fn clipped(count: u32, theirs: u32) -> f64 {
    f64::from(count.min(theirs)) * f64::from(theirs)
}

/// The Gaussian of the difference in bigrams.
fn penalty(prediction: &Caption, reference: &Caption) -> f64 {
    let n_bigrams = |caption: &Caption| caption.n_words.saturating_sub(1) as f64;
    let difference = n_bigrams(prediction) - n_bigrams(reference);
    (-difference * difference / (2.0 * SIGMA * SIGMA)).exp()
}

/// Mean over n of the clipped cosine, with the length penalty.
fn similarity(
    prediction: &[f64; N_MAX],
    squares: &[f64; N_MAX],
    products: &[f64; N_MAX],
    penalty: f64,
) -> f64 {
    let cosines = (0..N_MAX).map(|n| {
        let norms = prediction[n] * squares[n].sqrt();
        if norms == 0.0 { products[n] } else { products[n] / norms }
    });
    penalty * cosines.sum::<f64>() / N_MAX as f64
}

/// A set that is scored many times, with other images drawn of it each time.
pub struct CiderDraws {
    images: Vec<(ComparedImage, Vec<u32>)>,
    n_grams: usize,
}

impl CiderDraws {
    /// Compares the captions of a set.
    pub fn of(set: &CaptionSet) -> Self {
        let compared = |image: &ImageCaptions| (ComparedImage::of(image), distinct_grams(image));
        Self { images: set.images.iter().map(compared).collect(), n_grams: set.n_grams }
    }

    /// CIDEr-D of a set that has each image so many times, all of them counted for the document
    /// frequencies. None where it has no image.
    pub fn score(&self, times: impl Fn(usize) -> u32) -> Option<f64> {
        let mut frequency = DocumentFrequency::none(self.n_grams);
        let drawn = || self.images.iter().enumerate().filter(|(i, _)| times(*i) > 0);
        for (i, (_, grams)) in drawn() {
            frequency.add(grams, times(i));
        }
        let weights = frequency.squared_weights();
        let sum: f64 =
            drawn().map(|(i, (image, _))| f64::from(times(i)) * image.score(&weights)).sum();
        (frequency.n_images > 0).then(|| sum / f64::from(frequency.n_images))
    }
}

/// The n-grams of an image's references, each once.
fn distinct_grams(image: &ImageCaptions) -> Vec<u32> {
    let all = image.references.iter().flat_map(Caption::all_grams);
    let mut numbers: Vec<u32> = all.map(|gram| gram.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

/// In the references of how many images each n-gram is.
struct DocumentFrequency {
    images: Vec<u32>,
    n_images: u32,
}

impl DocumentFrequency {
    fn none(n_grams: usize) -> Self {
        Self { images: vec![0; n_grams], n_images: 0 }
    }

    fn add(&mut self, grams: &[u32], times: u32) {
        self.n_images += times;
        for gram in grams {
            self.images[*gram as usize] += times;
        }
    }

    /// Squares of the weights ln(images / images that have it): of what no reference has, ln(images).
    fn squared_weights(&self) -> Vec<f64> {
        let ln_images = f64::from(self.n_images).ln();
        let square = |images: u32| {
            let weight = ln_images - f64::from(images.max(1)).ln();
            weight * weight
        };
        // Most n-grams are in few images.
        let few: Vec<f64> = (0..FEW_IMAGES).map(square).collect();
        let weight =
            |images: &u32| few.get(*images as usize).copied().unwrap_or_else(|| square(*images));
        self.images.iter().map(weight).collect()
    }
}

/// Counts whose logarithms are kept.
const FEW_IMAGES: u32 = 4096;

/// An n-gram with the factor of its squared weight in a sum.
struct Factor {
    gram: u32,
    factor: f64,
}

/// Sums over n-grams of each length.
struct Factors {
    factors: Box<[Factor]>,
    ends: [usize; N_MAX],
}

impl Factors {
    /// Factors of the n-grams of a caption: small whole numbers, or none.
    fn of(caption: &Caption, factor: impl Fn(usize, &Gram) -> f64) -> Self {
        let mut factors = Vec::new();
        let ends = std::array::from_fn(|order| {
            factors.extend(caption.grams(order).iter().filter_map(|gram| {
                let factor = factor(order, gram);
                (factor > 0.0).then_some(Factor { gram: gram.number, factor })
            }));
            factors.len()
        });
        Self { factors: factors.into(), ends }
    }

    fn sums(&self, weights: &[f64]) -> [f64; N_MAX] {
        let mut start = 0;
        self.ends.map(|end| {
            let terms = self.factors[start..end].iter();
            start = end;
            terms.map(|term| term.factor * weights[term.gram as usize]).sum()
        })
    }
}

/// The captions of an image, ready to be scored under any weights.
struct ComparedImage {
    prediction: Factors,
    references: Vec<ComparedReference>,
}

struct ComparedReference {
    squares: Factors,
    /// What it has in common with the prediction, clipped.
    common: Factors,
    /// For the difference of lengths.
    penalty: f64,
}

impl ComparedImage {
    fn of(image: &ImageCaptions) -> Self {
        let squares = |caption| Factors::of(caption, |_, gram| f64::from(gram.count).powi(2));
        let compared = |reference| {
            let common = |order, gram: &Gram| {
                clipped(gram.count, Caption::count(reference, order, gram.number))
            };
            ComparedReference {
                squares: squares(reference),
                common: Factors::of(&image.prediction, common),
                penalty: penalty(&image.prediction, reference),
            }
        };
        Self {
            prediction: squares(&image.prediction),
            references: image.references.iter().map(compared).collect(),
        }
    }

    fn score(&self, weights: &[f64]) -> f64 {
        let norms = self.prediction.sums(weights).map(f64::sqrt);
        let of_reference = |one: &ComparedReference| {
            let (squares, products) = (one.squares.sums(weights), one.common.sums(weights));
            similarity(&norms, &squares, &products, one.penalty)
        };
        let total: f64 = self.references.iter().map(of_reference).sum();
        SCALE * total / self.references.len() as f64
    }
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

    #[test]
    fn images_drawn_twice_count_as_two() {
        let pair = |prediction, references: &[&'static str]| CaptionPair {
            prediction,
            references: references.to_vec(),
        };
        let pairs = [
            pair("a red ball", &["the red ball", "a ball"]),
            pair("two green stars", &["two stars", "green green stars"]),
            pair("a dog", &["a black dog runs", "the dog"]),
        ];
        let draws = CiderDraws::of(&CaptionSet::of(&pairs, Words::Ptb));
        for times in [[1, 1, 1], [2, 0, 1], [3, 1, 0]] {
            let drawn = pairs.iter().zip(times);
            let drawn = drawn.flat_map(|(pair, n)| std::iter::repeat_n(pair.clone(), n as usize));
            let scores = cider_d(&drawn.collect::<Vec<_>>());
            let expected = scores.iter().sum::<f64>() / scores.len() as f64;
            let found = draws.score(|i| times[i]).unwrap();
            assert!((found - expected).abs() < 1e-12, "{times:?}: {found} against {expected}");
        }
        assert_eq!(draws.score(|_| 0), None);
    }
}
