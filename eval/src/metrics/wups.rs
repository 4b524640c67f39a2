//! WUPS (Malinowski and Fritz 2014), the score of open-ended NExT-QA, as NExT-OE's `metrics.py` computes it:
//! the product, over the words of one answer, of the similarity to the most similar word of the other, the
//! smaller of both directions. Words similar to none are left out of the product, and similarities below
//! the threshold count a tenth. Words are compared by their first senses in [`wordnet`](super::wordnet).
//!
//! The published numbers come from texts lemmatised by `pywsd` with a trained tagger; its rules with public weights do
//! not reach them (README.md). There are two rules: texts as they stand, and texts in lower case without stop words.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::nltk_tokenize::nltk_words;
use super::vqa::python_words;
use super::wordnet::{Synset, WordNet};
use crate::error::EvalError;

/// What becomes of an answer before it is cut into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WupsText {
    /// Nothing.
    Raw,
    /// Lower case, without stop words.
    WithoutStopWords,
}

/// A similarity below the threshold counts a tenth.
const BELOW_THRESHOLD: f64 = 0.1;

/// Types of questions that are scored by exact match: binary ones and counts.
const EXACT_TYPES: [&str; 2] = ["DB", "DC"];

/// An answer with the right ones.
#[derive(Debug, Clone, Copy)]
pub struct WupsItem<'a> {
    /// What the model said.
    pub prediction: &'a str,
    /// Right answers, of which the best counts.
    pub references: &'a [String],
    /// Type of the question, such as `CW`.
    pub question_type: &'a str,
}

/// Scores answers; similarities of words are kept from one to the next.
pub struct Wups<'a> {
    wordnet: &'a WordNet,
    senses: HashMap<String, Option<Synset>>,
    similarities: HashMap<(Synset, Synset), f64>,
}

impl<'a> Wups<'a> {
    /// A scorer on a database.
    pub fn new(wordnet: &'a WordNet) -> Self {
        Self { wordnet, senses: HashMap::new(), similarities: HashMap::new() }
    }

    /// The credit of an answer, 0 to 1, with `threshold` 0 or 0.9.
    ///
    /// # Errors
    /// When a file of the database is not of its format.
    pub fn credit(
        &mut self,
        item: &WupsItem<'_>,
        text: WupsText,
        threshold: f64,
    ) -> Result<f64, EvalError> {
        let prediction = prepared(item.prediction, text);
        let references = item.references.iter().map(|reference| prepared(reference, text));
        if EXACT_TYPES.contains(&item.question_type) {
            let is_right = references.into_iter().any(|reference| reference == prediction);
            return Ok(f64::from(u8::from(is_right)));
        }
        let prediction = nltk_words(&prediction);
        let mut best = 0.0_f64;
        for reference in references {
            let reference = nltk_words(&reference);
            let forth = self.product(&prediction, &reference, threshold)?;
            let back = self.product(&reference, &prediction, threshold)?;
            best = best.max(forth.min(back));
        }
        Ok(best)
    }

    /// Similarity of two words, 0 to 1.
    ///
    /// # Errors
    /// When a file of the database is not of its format.
    pub fn similarity(&mut self, a: &str, b: &str) -> Result<f64, EvalError> {
        if a == b {
            return Ok(1.0);
        }
        let (Some(a), Some(b)) = (self.sense(a)?, self.sense(b)?) else { return Ok(0.0) };
        if let Some(similarity) = self.similarities.get(&(a, b)) {
            return Ok(*similarity);
        }
        let similarity = self.wordnet.wup_similarity(a, b)?.unwrap_or_default();
        self.similarities.insert((a, b), similarity);
        Ok(similarity)
    }

    fn sense(&mut self, word: &str) -> Result<Option<Synset>, EvalError> {
        if let Some(sense) = self.senses.get(word) {
            return Ok(*sense);
        }
        let sense = self.wordnet.first_synset(word)?;
        self.senses.insert(word.to_owned(), sense);
        Ok(sense)
    }

    fn product(
        &mut self,
        words: &[String],
        others: &[String],
        threshold: f64,
    ) -> Result<f64, EvalError> {
        let mut product = None;
        for word in words {
            let mut best = 0.0_f64;
            for other in others {
                let similarity = self.similarity(word, other)?;
                let factor = if similarity < threshold { BELOW_THRESHOLD } else { 1.0 };
                best = best.max(factor * similarity);
            }
            if best > 0.0 {
                product = Some(product.unwrap_or(1.0) * best);
            }
        }
        Ok(product.unwrap_or_default())
    }
}

fn prepared(answer: &str, text: WupsText) -> String {
    match text {
        WupsText::Raw => answer.to_owned(),
        WupsText::WithoutStopWords => {
            let lower = answer.to_lowercase();
            let words = python_words(&lower).filter(|word| !STOP_WORDS.contains(word));
            words.collect::<Vec<_>>().join(" ")
        }
    }
}

/// NLTK's English stop words, less those that tell answers apart (`no`, `not`, `before`, `after`, `up` and so on).
const STOP_WORDS: [&str; 156] = [
    "i",
    "me",
    "my",
    "myself",
    "we",
    "our",
    "ours",
    "ourselves",
    "you",
    "you're",
    "you've",
    "you'll",
    "you'd",
    "your",
    "yours",
    "yourself",
    "yourselves",
    "he",
    "him",
    "his",
    "himself",
    "she",
    "she's",
    "her",
    "hers",
    "herself",
    "it",
    "it's",
    "its",
    "itself",
    "they",
    "them",
    "their",
    "theirs",
    "themselves",
    "what",
    "which",
    "who",
    "whom",
    "this",
    "that",
    "that'll",
    "these",
    "those",
    "am",
    "is",
    "are",
    "was",
    "were",
    "be",
    "been",
    "being",
    "have",
    "has",
    "had",
    "having",
    "do",
    "does",
    "did",
    "doing",
    "a",
    "an",
    "the",
    "and",
    "but",
    "if",
    "or",
    "because",
    "as",
    "until",
    "while",
    "to",
    "from",
    "of",
    "at",
    "for",
    "with",
    "about",
    "into",
    "through",
    "during",
    "again",
    "further",
    "then",
    "here",
    "there",
    "when",
    "where",
    "why",
    "how",
    "all",
    "any",
    "each",
    "most",
    "other",
    "some",
    "such",
    "only",
    "own",
    "so",
    "than",
    "too",
    "very",
    "s",
    "t",
    "can",
    "will",
    "just",
    "don",
    "don't",
    "should",
    "should've",
    "now",
    "d",
    "ll",
    "m",
    "o",
    "re",
    "ve",
    "y",
    "ain",
    "aren",
    "aren't",
    "couldn",
    "couldn't",
    "didn",
    "didn't",
    "doesn",
    "doesn't",
    "hadn",
    "hadn't",
    "hasn",
    "hasn't",
    "haven",
    "haven't",
    "isn",
    "isn't",
    "ma",
    "mightn",
    "mightn't",
    "mustn",
    "mustn't",
    "needn",
    "needn't",
    "shan",
    "shan't",
    "shouldn",
    "shouldn't",
    "wasn",
    "wasn't",
    "weren",
    "weren't",
    "won",
    "won't",
    "wouldn",
    "wouldn't",
];
