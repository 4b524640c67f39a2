//! Predictions and references as METEOR's words, by number.

use super::normalise::Prefixes;
use crate::metrics::captions::CaptionPair;
use crate::metrics::ptb_tokenize::PtbTokenizer;
use crate::metrics::vocabulary::Vocabulary;

/// A prediction and the references of its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Words {
    pub(crate) prediction: Box<[u32]>,
    pub(crate) references: Vec<Box<[u32]>>,
}

/// The texts of a set of images.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    pub(crate) images: Vec<Words>,
    pub(crate) vocabulary: Vocabulary,
}

impl Texts {
    /// The words of some images' captions: the Penn Treebank's tokens, normalised once more.
    pub(crate) fn of(pairs: &[CaptionPair<'_>], prefixes: &Prefixes) -> Self {
        let mut tokenizer = PtbTokenizer::default();
        let mut texts = Self::default();
        let mut tokens = |text: &str| {
            let mut spaced = String::with_capacity(text.len());
            tokenizer.each_token(text, |token| {
                if !spaced.is_empty() {
                    spaced.push(' ');
                }
                spaced.push_str(token);
            });
            spaced
        };
        for pair in pairs {
            let mut words = |text: &str| {
                let mut words = Vec::new();
                prefixes.each_word(text, |word| words.push(texts.vocabulary.number(word)));
                words.into_boxed_slice()
            };
            // The official tool takes its own separator out of predictions.
            let prediction = words(&tokens(pair.prediction).replace("|||", ""));
            let references = pair.references.iter().map(|text| words(&tokens(text))).collect();
            texts.images.push(Words { prediction, references });
        }
        texts
    }

    /// A text, its words between spaces.
    pub(crate) fn joined(&self, words: &[u32]) -> String {
        let words: Vec<&str> = words.iter().map(|word| self.vocabulary.text(*word)).collect();
        words.join(" ")
    }
}
