//! Does the model look? The right captions under the right image, another image and none.
//!
//! No shots: `<BOS><image>Output: caption<EOC>`, each caption token predicted from the true ones
//! before it. Without an image, its mark is left out too. Queries swap images along one random
//! cycle through all queries of the corpus, so that nobody keeps its own and a limit changes
//! nothing.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::benchmark::Benchmark;
use crate::bootstrap::{Clusters, Estimate, Term, estimate};
use crate::draw::{mix, mix_text};
use crate::error::EvalError;
use crate::item::Truth;
use crate::local_subject::{LocalSubject, Reading, Taught};
use crate::prompt::{ImagePlace, Template};
use crate::samples::Record;
use crate::words::content_ranges;

/// Ways in which each caption is shown: with the right image, with another one, without.
const VARIANTS: usize = 3;

/// Sums over the captions of one query.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ControlSample {
    /// Key of the query.
    pub key: String,
    /// Key of the query whose image it got.
    pub shuffled_with: String,
    /// Tokens of all its captions, `<EOC>` included.
    pub tokens: usize,
    /// Loss with the right image, in nats.
    pub nll_right: f64,
    /// Loss with another image, in nats.
    pub nll_shuffled: f64,
    /// Loss without an image, in nats.
    pub nll_no_image: f64,
    /// Loss of the language model alone, in nats: that of closed gates.
    pub nll_closed_gates: f64,
    /// Words that only the image tells.
    pub words: usize,
    /// Those of them that the model would have said with the right image.
    pub words_right: usize,
    /// Those of them that the model would have said with another image.
    pub words_shuffled: usize,
}

impl Record for ControlSample {
    fn key(&self) -> &str {
        &self.key
    }
}

/// For each query, by key, the one whose image it gets; none where there is no other.
pub fn swap_images(keys: &[&str], seed: u64) -> Option<Vec<usize>> {
    if keys.len() < 2 {
        return None;
    }
    let mut cycle: Vec<usize> = (0..keys.len()).collect();
    cycle.sort_by_key(|&index| (mix_text(mix(seed, 1), keys[index]), index));
    let mut partner = vec![0; keys.len()];
    for (place, &index) in cycle.iter().enumerate() {
        partner[index] = cycle[(place + 1) % cycle.len()];
    }
    Some(partner)
}

/// The right captions, read by a model under one image or another.
pub struct ReadingControls<'a> {
    /// The model with its images.
    pub subject: &'a LocalSubject<'a>,
    /// The benchmark.
    pub benchmark: &'a Benchmark,
    /// What stands between image and caption.
    pub template: &'a Template,
}

impl ReadingControls<'_> {
    /// Measures some queries, each with the query whose image it gets.
    ///
    /// # Errors
    /// When an image cannot be read or the model fails.
    pub fn measure(&self, pairs: &[(usize, usize)]) -> Result<Vec<ControlSample>, EvalError> {
        let taught: Vec<Taught> =
            pairs.iter().flat_map(|&(query, other)| self.sequences(query, other)).collect();
        let readings = self.subject.read(&taught)?;
        let with_right_image: Vec<Taught> = taught.into_iter().step_by(VARIANTS).collect();
        let closed = self.subject.nll_with_closed_gates(&with_right_image)?;
        let mut at = 0;
        let samples = pairs.iter().map(|&(query, other)| {
            let captions = at..at + self.captions(query).len();
            at = captions.end;
            let own = &readings[VARIANTS * captions.start..VARIANTS * captions.end];
            let nll_closed_gates = closed[captions].iter().sum();
            ControlSample { nll_closed_gates, ..self.sample(query, other, own) }
        });
        Ok(samples.collect())
    }

    /// Right image, other image, no image for each caption in turn.
    fn sequences(&self, query: usize, other: usize) -> Vec<Taught> {
        let tokenizer = self.subject.tokenizer();
        let item = &self.benchmark.query[query];
        let images = [Some(query), Some(other), None];
        let all = self.captions(query).iter().flat_map(|caption| {
            images.map(|image| Taught {
                prompt: self
                    .subject
                    .prompt(&self.template.query(item, image.map(ImagePlace::Query))),
                answer: self.template.answer_tokens(caption, tokenizer),
            })
        });
        all.collect()
    }

    /// The captions of a query.
    fn captions(&self, query: usize) -> &[String] {
        match &self.benchmark.query[query].truth {
            Truth::Captions(captions) => captions,
            _ => &[],
        }
    }

    fn sample(&self, query: usize, other: usize, readings: &[Reading]) -> ControlSample {
        let key = |query: usize| self.benchmark.query[query].id.clone();
        let mut sample = ControlSample {
            key: key(query),
            shuffled_with: key(other),
            tokens: 0,
            nll_right: 0.0,
            nll_shuffled: 0.0,
            nll_no_image: 0.0,
            nll_closed_gates: 0.0,
            words: 0,
            words_right: 0,
            words_shuffled: 0,
        };
        for (caption, three) in self.captions(query).iter().zip(readings.chunks_exact(VARIANTS)) {
            let ranges = content_ranges(
                self.template,
                caption,
                &self.benchmark.task.content_words,
                self.subject.tokenizer(),
            );
            sample.tokens += three[0].nll.len();
            sample.nll_right += three[0].total();
            sample.nll_shuffled += three[1].total();
            sample.nll_no_image += three[2].total();
            sample.words += ranges.len();
            sample.words_right += words_told(&three[0], &ranges);
            sample.words_shuffled += words_told(&three[1], &ranges);
        }
        sample
    }
}

/// Words of which the model ranks every token first.
fn words_told(reading: &Reading, words: &[Range<usize>]) -> usize {
    words.iter().filter(|range| reading.is_top[(*range).clone()].iter().all(|&top| top)).count()
}

/// Length of the longest sequence that the controls of the first queries show the model, in tokens.
pub fn longest(controls: &ReadingControls<'_>, n_queries: usize) -> usize {
    let tokenizer = controls.subject.tokenizer();
    let lengths = (0..n_queries).map(|query| {
        let item = &controls.benchmark.query[query];
        let pieces = controls.template.query(item, Some(ImagePlace::Query(query)));
        let answers = controls.captions(query).iter();
        let answers = answers.map(|it| controls.template.answer_tokens(it, tokenizer).len());
        controls.subject.prompt(&pieces).tokens.len() + answers.max().unwrap_or_default()
    });
    lengths.max().unwrap_or_default()
}

/// One line of the controls' table.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlScore {
    /// Name in results.
    pub name: &'static str,
    /// What it is, with its unit.
    pub about: &'static str,
    /// Whether more is better, where that makes sense.
    pub higher_is_better: bool,
    /// The score with its interval.
    pub estimate: Estimate,
}

/// Scores of all controls; those of content words only where the benchmark names some.
pub fn control_scores(
    samples: &[ControlSample],
    clusters: &Clusters,
    seed: u64,
) -> Vec<ControlScore> {
    let per_token = |sum: fn(&ControlSample) -> f64| terms(samples, sum, |sample| sample.tokens);
    let per_word = |sum: fn(&ControlSample) -> f64| terms(samples, sum, |sample| sample.words);
    let lines: [(_, _, _, Vec<Term>); 9] = [
        ("nll_right", "loss, right image (nats/token)", false, per_token(|s| s.nll_right)),
        ("nll_shuffled", "loss, another image (nats/token)", false, per_token(|s| s.nll_shuffled)),
        ("nll_no_image", "loss, no image (nats/token)", false, per_token(|s| s.nll_no_image)),
        (
            "nll_closed_gates",
            "loss, gates closed: the language model alone (nats/token)",
            false,
            per_token(|s| s.nll_closed_gates),
        ),
        (
            "nll_shuffled_minus_right",
            "another image - right image (nats/token)",
            true,
            per_token(|s| s.nll_shuffled - s.nll_right),
        ),
        (
            "nll_no_image_minus_right",
            "no image - right image (nats/token)",
            true,
            per_token(|s| s.nll_no_image - s.nll_right),
        ),
        (
            "words_right",
            "content words told, right image",
            true,
            per_word(|s| s.words_right as f64),
        ),
        (
            "words_shuffled",
            "content words told, another image",
            false,
            per_word(|s| s.words_shuffled as f64),
        ),
        (
            "words_right_minus_shuffled",
            "right image - another image (content words)",
            true,
            per_word(|s| s.words_right as f64 - s.words_shuffled as f64),
        ),
    ];
    let scored = lines.into_iter().filter_map(|(name, about, higher_is_better, terms)| {
        let estimate = estimate(&terms, clusters, seed)?;
        Some(ControlScore { name, about, higher_is_better, estimate })
    });
    scored.collect()
}

fn terms(
    samples: &[ControlSample],
    sum: fn(&ControlSample) -> f64,
    weight: fn(&ControlSample) -> usize,
) -> Vec<Term> {
    let term = |sample: &ControlSample| Term { sum: sum(sample), weight: weight(sample) as f64 };
    samples.iter().map(term).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(tokens: usize, right: f64, shuffled: f64, words: usize) -> ControlSample {
        ControlSample {
            key: "q".into(),
            shuffled_with: "r".into(),
            tokens,
            nll_right: right,
            nll_shuffled: shuffled,
            nll_no_image: shuffled,
            nll_closed_gates: shuffled,
            words,
            words_right: words,
            words_shuffled: 0,
        }
    }

    #[test]
    fn losses_are_weighed_by_tokens_and_words_by_words() {
        let (a, b) = (sample(1, 2.0, 3.0, 0), sample(3, 2.0, 9.0, 2));
        let scores = control_scores(&[a, b], &Clusters::alone(2), 0);
        let value = |name: &str| {
            scores.iter().find(|score| score.name == name).map(|score| score.estimate.value)
        };
        assert_eq!(value("nll_right"), Some(1.0));
        assert_eq!(value("nll_shuffled_minus_right"), Some(2.0));
        assert_eq!(value("words_right_minus_shuffled"), Some(1.0));
        assert_eq!(control_scores(&[sample(1, 2.0, 3.0, 0)], &Clusters::alone(1), 0).len(), 6);
    }

    #[test]
    fn nobody_keeps_its_image_and_every_image_is_used_once() {
        let keys: Vec<String> = (0..30).map(|i| format!("q{i}")).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let partners = swap_images(&keys, 5).unwrap();
        assert!(partners.iter().enumerate().all(|(own, &other)| own != other));
        let mut used = partners.clone();
        used.sort_unstable();
        assert_eq!(used, (0..30).collect::<Vec<_>>());
        assert_ne!(swap_images(&keys, 6).unwrap(), partners);
        assert_eq!(swap_images(&keys[..1], 5), None);
    }

    #[test]
    fn a_word_is_told_when_all_its_tokens_are() {
        let reading = Reading { nll: vec![0.0; 5], is_top: vec![true, true, false, true, true] };
        assert_eq!(words_told(&reading, &[0..2, 1..3, 3..4, 3..5]), 3);
        assert_eq!(words_told(&reading, &[]), 0);
    }
}
