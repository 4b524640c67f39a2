//! Which words of a text match which of a reference: the same, of one stem, of one sense, or phrases of the table.

use rust_stemmers::{Algorithm, Stemmer};

use super::align::{Match, Module, Span};
use super::archive::Archive;
use super::paraphrases::{Paraphrases, Phrase};
use super::synonyms::Synonyms;
use super::texts::Texts;
use crate::error::EvalError;
use crate::metrics::vocabulary::Vocabulary;

/// What words of a vocabulary match.
#[derive(Debug, Default)]
pub(crate) struct Matcher {
    /// Of each word its stem, by number.
    stems: Vec<u32>,
    synonyms: Synonyms,
    paraphrases: Paraphrases,
}

/// A text with its phrases that have paraphrases.
#[derive(Debug)]
pub(crate) struct Phrased<'a> {
    words: &'a [u32],
    phrases: Vec<(Span, Phrase)>,
}

impl Matcher {
    /// What the words of some texts match.
    pub(crate) fn of(texts: &Texts, archive: &mut Archive) -> Result<Self, EvalError> {
        Ok(Self {
            stems: stems(&texts.vocabulary),
            synonyms: Synonyms::of(&texts.vocabulary, archive)?,
            paraphrases: Paraphrases::of(texts, archive)?,
        })
    }

    /// A text with its phrases.
    pub(crate) fn phrased<'a>(&self, words: &'a [u32]) -> Phrased<'a> {
        Phrased { words, phrases: self.paraphrases.phrases(words) }
    }

    /// Puts the matches of a text and a reference into `found`, by the word of the reference where they start, in the
    /// order in which the aligner tries them.
    pub(crate) fn add_matches(
        &self,
        text: &Phrased<'_>,
        reference: &Phrased<'_>,
        found: &mut Vec<Vec<Match>>,
    ) {
        found.iter_mut().for_each(Vec::clear);
        found.resize_with(reference.words.len(), Vec::new);
        for (at, (word, found)) in reference.words.iter().zip(found.iter_mut()).enumerate() {
            let mut add = |module, is_match: &dyn Fn(u32) -> bool| {
                let of_text = text.words.iter().enumerate().filter(|(_, other)| is_match(**other));
                found.extend(of_text.map(|(other, _)| Match {
                    reference: Span { start: at as u32, len: 1 },
                    text: Span { start: other as u32, len: 1 },
                    module,
                }));
            };
            let stem = |word: u32| self.stems[word as usize];
            add(Module::Exact, &|other| other == *word);
            add(Module::Stem, &|other| other != *word && stem(other) == stem(*word));
            add(Module::Synonym, &|other| self.synonyms.are_synonyms(*word, other));
        }
        self.add_paraphrases(text, reference, found);
    }

    /// Each phrase of the reference is looked up first, and its paraphrases come in the table's order. Then each phrase
    /// of the text is: a pair that the table has both ways matches twice.
    fn add_paraphrases(
        &self,
        text: &Phrased<'_>,
        reference: &Phrased<'_>,
        found: &mut [Vec<Match>],
    ) {
        let mut ordered = Vec::new();
        for (of_reference, known) in &reference.phrases {
            for (of_text, said) in &text.phrases {
                let one =
                    Match { reference: *of_reference, text: *of_text, module: Module::Paraphrase };
                if let Some(entry) = self.paraphrases.entry(*known, *said) {
                    ordered.push(((0, of_reference.len, entry, of_text.start), one));
                }
                if let Some(entry) = self.paraphrases.entry(*said, *known) {
                    ordered.push(((1, of_text.start, of_text.len, entry), one));
                }
            }
        }
        ordered.sort_unstable_by_key(|(order, one)| (*order, one.reference.start));
        for (_, one) in ordered {
            found[one.reference.start as usize].push(one);
        }
    }
}

/// The numbers of words' stems by Porter's second stemmer for English, equal for equal stems.
fn stems(vocabulary: &Vocabulary) -> Vec<u32> {
    let stemmer = Stemmer::create(Algorithm::English);
    let mut stems = Vocabulary::default();
    let words = (0..vocabulary.len() as u32).map(|number| vocabulary.text(number));
    words.map(|word| stems.number(&stemmer.stem(word))).collect()
}
