//! METEOR 1.5 (Denkowski and Lavie 2014) for English, ranking task, as pycocoevalcap has it, without its Java: words
//! of a prediction are aligned to those of each reference; precision and recall weigh content words more than function
//! words, and many chunks are punished. The best reference counts; the score of a set is made of summed counts.
//!
//! The word lists and the table of paraphrases are METEOR's own, read from a folder of it (see [`Meteor::open`]).
//! Sources: the papers, and what the program answers; none of its code.
//!
//! In reading order: `archive` (the folder), `normalise`, `texts`, `synonyms`, `paraphrases`, `matches`, `align`.

use std::path::Path;

use rustc_hash::FxHashSet;

use super::captions::CaptionPair;
use crate::error::EvalError;

mod align;
mod archive;
mod matches;
mod normalise;
mod paraphrases;
mod synonyms;
mod texts;

use align::{Alignment, Match, Search};
use archive::Archive;
use matches::Matcher;
use normalise::Prefixes;
use texts::{Texts, Words};

/// The name of the variable that names METEOR's folder.
pub const FOLDER_VARIABLE: &str = archive::FOLDER_VARIABLE;

/// Weight of recall against precision.
const ALPHA: f64 = 0.85;
/// Power of the share of chunks.
const BETA: f64 = 0.2;
/// Weight of the punishment of chunks.
const GAMMA: f64 = 0.6;
/// Weight of content words against function words.
const DELTA: f64 = 0.75;
/// Weights of matches by module: exact, stem, synonym, paraphrase.
const WEIGHTS: [f64; N_MODULES] = [1.0, 0.6, 0.8, 0.6];

const N_MODULES: usize = 4;

/// Words that count less.
const FUNCTION_WORDS: &str = "function/english.words";

/// What ends no sentence.
const PREFIXES: &str = "nonbreaking/english.prefixes";

/// Most pairs of a word of a prediction and one of a reference that are compared.
const WORD_PAIRS_MAX: usize = 1 << 24;

/// Words of a text, some of them function words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WordCounts {
    /// All of them.
    pub all: u64,
    /// Function words.
    pub function: u64,
}

impl WordCounts {
    fn content(self) -> f64 {
        (self.all - self.function) as f64
    }
}

/// What one or more predictions count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MeteorCounts {
    /// Words of the predictions, and of the references that score best.
    pub words: [WordCounts; 2],
    /// Of these, those that match, by module.
    pub matched: [[WordCounts; 2]; N_MODULES],
    /// Chunks of matched words; none where a prediction matches as a whole.
    pub chunks: u64,
}

/// How many numbers counts are.
pub const N_TERMS: usize = 4 * (1 + N_MODULES) + 1;

impl MeteorCounts {
    /// The counts as numbers that add up, see [`MeteorCounts::of_terms`].
    pub fn terms(&self) -> [f64; N_TERMS] {
        let pairs = std::iter::once(&self.words).chain(&self.matched).flatten();
        let counts = pairs.flat_map(|words| [words.all, words.function]).chain([self.chunks]);
        let mut terms = [0.0; N_TERMS];
        terms.iter_mut().zip(counts).for_each(|(term, count)| *term = count as f64);
        terms
    }

    /// The counts of sums of terms.
    pub fn of_terms(terms: [f64; N_TERMS]) -> Self {
        let count = |at: usize| terms[at] as u64;
        let words = |at| WordCounts { all: count(at), function: count(at + 1) };
        let pair = |at| [words(at), words(at + 2)];
        Self {
            words: pair(0),
            matched: std::array::from_fn(|module| pair(4 * (1 + module))),
            chunks: count(N_TERMS - 1),
        }
    }

    /// METEOR, 0 to 1.
    pub fn score(&self) -> f64 {
        let [precision, recall] = [0, 1].map(|side| {
            // In this order, to the last bit: it decides which of two references that score alike is the better one.
            let matched = || self.matched.iter().map(|of| of[side]).zip(WEIGHTS);
            let content = matched().map(|(words, weight)| words.content() * weight * DELTA);
            let function =
                matched().map(|(words, weight)| words.function as f64 * weight * (1.0 - DELTA));
            let words = self.words[side];
            let all = DELTA * words.content() + (1.0 - DELTA) * words.function as f64;
            content.chain(function).fold(0.0, |sum, term| sum + term) / all
        });
        let mean = 1.0 / ((1.0 - ALPHA) / precision + ALPHA / recall);
        let score = mean * (1.0 - self.punishment());
        // Without matches there is nothing to divide.
        if score > 0.0 { score } else { 0.0 }
    }

    fn punishment(&self) -> f64 {
        let mean = self.n_matched().iter().sum::<u64>() as f64 / 2.0;
        GAMMA * (self.chunks as f64 / mean).powf(BETA)
    }

    /// Words of the predictions and of the references that match.
    fn n_matched(&self) -> [u64; 2] {
        [0, 1].map(|side| self.matched.iter().map(|of| of[side].all).sum())
    }

    /// Whether every word matches in one chunk.
    fn is_whole(&self) -> bool {
        self.chunks == 1 && self.n_matched() == self.words.map(|words| words.all)
    }
}

/// METEOR on the data of a folder.
#[derive(Debug)]
pub struct Meteor {
    archive: Archive,
    prefixes: Prefixes,
    function_words: FxHashSet<String>,
}

impl Meteor {
    /// Opens the folder of METEOR 1.5 with `meteor-1.5.jar` and `data/paraphrase-en.gz`: the folder `meteor` of
    /// pycocoevalcap, or that of the authors. Without one, that which `METEOR_DATA` names.
    ///
    /// # Errors
    /// When no folder is named, or a file is absent or not what it should be.
    pub fn open(folder: Option<&Path>) -> Result<Self, EvalError> {
        let mut archive = Archive::open(folder)?;
        let prefixes = Prefixes::parse(&archive.list(PREFIXES)?);
        let function_words = archive.list(FUNCTION_WORDS)?.lines().map(str::to_owned).collect();
        Ok(Self { archive, prefixes, function_words })
    }

    /// The counts of each prediction against its best reference.
    ///
    /// # Errors
    /// When the data is not what it should be, or texts are too long.
    pub fn counts(&mut self, pairs: &[CaptionPair<'_>]) -> Result<Vec<MeteorCounts>, MeteorError> {
        let texts = Texts::of(pairs, &self.prefixes);
        for (at, image) in texts.images.iter().enumerate() {
            let longest = image.references.iter().map(|words| words.len()).max();
            let n_pairs = image.prediction.len().saturating_mul(longest.unwrap_or_default());
            if n_pairs > WORD_PAIRS_MAX {
                return Err(MeteorError::TooLong { at, n_words: image.prediction.len() });
            }
        }
        let vocabulary = &texts.vocabulary;
        let words = (0..vocabulary.len() as u32).map(|number| vocabulary.text(number));
        let mut counting = Counting {
            is_function: words.map(|word| self.function_words.contains(word)).collect(),
            matcher: Matcher::of(&texts, &mut self.archive)?,
            search: Search::default(),
            matches: Vec::new(),
        };
        Ok(texts.images.iter().map(|image| counting.best(image)).collect())
    }
}

/// Why there are no counts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MeteorError {
    /// The data is not what it should be.
    #[error(transparent)]
    Data(#[from] EvalError),
    /// Texts have more words than are compared.
    #[error("prediction {at} of {n_words} words and its references are too long for METEOR")]
    TooLong {
        /// Which prediction.
        at: usize,
        /// How many words it has.
        n_words: usize,
    },
}

/// Counts one image after the other.
struct Counting {
    /// Of each word of the vocabulary.
    is_function: Vec<bool>,
    matcher: Matcher,
    search: Search,
    matches: Vec<Vec<Match>>,
}

impl Counting {
    /// The counts against the reference that gives the highest score, the first of equals.
    fn best(&mut self, image: &Words) -> MeteorCounts {
        let text = self.matcher.phrased(&image.prediction);
        let mut best: Option<(f64, MeteorCounts)> = None;
        for reference in &image.references {
            let phrased = self.matcher.phrased(reference);
            self.matcher.add_matches(&text, &phrased, &mut self.matches);
            let alignment = self.search.alignment(&self.matches, image.prediction.len());
            let counts = self.counts([&image.prediction, reference], &alignment);
            let score = counts.score();
            if best.is_none_or(|(highest, _)| score > highest) {
                best = Some((score, counts));
            }
        }
        best.map(|(_, counts)| counts).unwrap_or_default()
    }

    fn counts(&self, texts: [&[u32]; 2], alignment: &Alignment) -> MeteorCounts {
        let words = |words: &[u32]| {
            let is_function = |word: &&u32| self.is_function[**word as usize];
            let function = words.iter().filter(is_function).count() as u64;
            WordCounts { all: words.len() as u64, function }
        };
        let mut counts = MeteorCounts {
            words: texts.map(words),
            chunks: u64::from(alignment.n_chunks),
            ..MeteorCounts::default()
        };
        for one in &alignment.matches {
            let matched = &mut counts.matched[one.module as usize];
            for ((text, span), total) in texts.iter().zip([one.text, one.reference]).zip(matched) {
                let found = words(&text[span.range()]);
                total.all += found.all;
                total.function += found.function;
            }
        }
        if counts.is_whole() {
            counts.chunks = 0;
        }
        counts
    }
}
