//! Captions as the words that BLEU, ROUGE-L and CIDEr-D count. They are made once for all three.

use crate::metrics::ptb_tokenize::ptb_tokens;

/// A prediction and the references of its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptionPair<'a> {
    /// What the model said.
    pub prediction: &'a str,
    /// What people said, at least one.
    pub references: Vec<&'a str>,
}

/// How a caption becomes words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Words {
    /// The Penn Treebank's tokens, lower-cased, without punctuation: the official rule.
    #[default]
    Ptb,
    /// As they stand, cut at white space: `VLMEvalKit`'s rule, whose scores compare with no one's.
    WhiteSpace,
}

/// The same pair as words with single spaces between them. A word may hold a no-break space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WordPair {
    /// Of the prediction.
    pub prediction: String,
    /// Of each reference.
    pub references: Vec<String>,
}

impl WordPair {
    /// The words of a pair.
    pub fn of(pair: &CaptionPair<'_>, words: Words) -> Self {
        let joined = |caption: &&str| match words {
            Words::Ptb => ptb_tokens(caption).join(" "),
            Words::WhiteSpace => (*caption).to_owned(),
        };
        Self {
            prediction: joined(&pair.prediction),
            references: pair.references.iter().map(joined).collect(),
        }
    }
}

/// Longest n-gram that is counted.
pub(crate) const N_MAX: usize = 4;

/// Up to four word numbers, 0 where the n-gram is shorter.
pub(crate) type NGram = [u32; N_MAX];

/// All n-grams of a caption's words, longer ones after shorter ones.
pub(crate) fn ngrams(words: &[u32]) -> Vec<NGram> {
    let mut ngrams = Vec::with_capacity(N_MAX * words.len());
    for n in 1..=N_MAX {
        ngrams.extend(words.windows(n).map(|window| {
            let mut ngram = [0; N_MAX];
            ngram[..n].copy_from_slice(window);
            ngram
        }));
    }
    ngrams
}

/// Length of an n-gram less one.
pub(crate) fn order(ngram: &NGram) -> usize {
    ngram.iter().filter(|&&word| word != 0).count() - 1
}

/// N-grams with their counts, sorted, so that sums have one order.
pub(crate) type Counts = Vec<(NGram, u32)>;

/// Word numbers from 1 on.
#[derive(Default)]
pub(crate) struct Vocabulary(std::collections::HashMap<String, u32>);

impl Vocabulary {
    /// The numbers of a caption's words. The official code splits the joined tokens again, which cuts those
    /// with a no-break space.
    pub(crate) fn numbers(&mut self, joined: &str) -> Vec<u32> {
        joined.split_whitespace().map(|word| self.number(word)).collect()
    }

    /// The n-grams of a caption.
    pub(crate) fn counts(&mut self, joined: &str) -> Counts {
        let mut ngrams = ngrams(&self.numbers(joined));
        ngrams.sort_unstable();
        ngrams.chunk_by(|a, b| a == b).map(|equal| (equal[0], equal.len() as u32)).collect()
    }

    fn number(&mut self, word: &str) -> u32 {
        if let Some(number) = self.0.get(word) {
            return *number;
        }
        let next = self.0.len() as u32 + 1;
        self.0.insert(word.to_owned(), next);
        next
    }
}
