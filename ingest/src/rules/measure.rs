//! All figures of one text.

use std::cell::RefCell;

use super::counts::{Counts, Filter};
use super::lexicon::Lexicon;
use super::lines::ends_sentence;
use super::tokens::{Token, tokenize};
use super::words::word_hash;
use super::{gopher, lines, words};

/// Bytes of a text that are measured: what is longer is judged by its beginning, so that memory and
/// time have a limit.
const MEASURED_BYTES_MAX: usize = 1 << 20;

/// Figures by name, as they are stored.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Values(pub Vec<(&'static str, f32)>);

impl Values {
    /// Adds a figure.
    pub fn push(&mut self, name: &'static str, value: f64) {
        self.0.push((name, value as f32));
    }

    /// The figure of that name, if it was taken.
    pub fn get(&self, name: &str) -> Option<f32> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }
}

/// A text as lines and words, read once for all figures.
pub(super) struct Lines<'a> {
    /// All, empty ones too.
    pub(super) all: Vec<Line<'a>>,
    /// Hashes of the words of all lines: what [`word_hash`] makes of what stands between white space.
    pub(super) words: Vec<u64>,
}

/// A line of a text.
pub(super) struct Line<'a> {
    /// Where it begins in the text.
    pub(super) start: usize,
    /// Without its end.
    pub(super) text: &'a str,
    /// What stands between white space.
    pub(super) n_words: usize,
    /// Characters of the longest word, where that may be more than [`LONG_WORD_CHARS`], else 0.
    pub(super) long_word_chars: usize,
    /// How many sentences it has: one, and one more for each end with words after it.
    pub(super) n_sentences: usize,
}

/// Only longer words have their characters counted.
pub(super) const LONG_WORD_CHARS: usize = 1000;

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        let mut words = Vec::with_capacity(text.len() / 5);
        let mut start = 0;
        let all = text.split_inclusive('\n').map(|line| {
            let line_start = start;
            start += line.len();
            Line::read(line_start, line.lines().next().unwrap_or(""), &mut words)
        });
        let all = all.collect();
        Self { all, words }
    }

    /// Those with something on them.
    pub(super) fn full(&self) -> impl Iterator<Item = &Line<'a>> {
        self.all.iter().filter(|line| line.n_words > 0)
    }

    /// How many have something on them.
    pub(super) fn n_full(&self) -> usize {
        self.full().count()
    }
}

impl<'a> Line<'a> {
    /// Reads a line, and adds the hashes of its words to `words`.
    fn read(start: usize, text: &'a str, words: &mut Vec<u64>) -> Self {
        let (mut n_words, mut n_sentences, mut long_word_chars) = (0, 0, 0);
        let mut is_open = false;
        for word in text.split_whitespace() {
            n_words += 1;
            words.extend(word_hash(word));
            if word.len() > LONG_WORD_CHARS {
                long_word_chars = long_word_chars.max(word.chars().count());
            }
            is_open = !ends_sentence(word);
            n_sentences += usize::from(!is_open);
        }
        n_sentences += usize::from(is_open);
        Self { start, text, n_words, long_word_chars, n_sentences }
    }
}

/// A share, 0 of nothing.
pub(super) fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Memory that is used for text after text.
#[derive(Default)]
pub(super) struct Scratch {
    tokens: Vec<Token>,
    /// How often n-grams come.
    pub(super) counts: Counts,
    /// Which n-grams may come again.
    pub(super) filter: Filter,
    /// Hashes of characters.
    pub(super) chars: Vec<u64>,
    /// Hashes of n-grams.
    pub(super) grams: Vec<u64>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The figures of a whole document: Gopher's, C4's, `FineWeb`'s and OBELICS'.
pub fn document(text: &str, lexicon: &Lexicon, punctuation_words: u64) -> Values {
    let text = beginning(text);
    SCRATCH.with_borrow_mut(|scratch| {
        let Scratch { tokens, counts, filter, .. } = scratch;
        let mut values = Values::default();
        tokenize(text, tokens);
        let by_line = Lines::new(text);
        let n_chars = text.chars().count();
        gopher::quality(text, tokens, &by_line, &mut values);
        gopher::repetition(text, n_chars, tokens, (counts, filter), &mut values);
        lines::c4(text, &by_line, &mut values);
        lines::fineweb(text, n_chars, &by_line, tokens.len(), counts, &mut values);
        words::measure(text, &by_line, lexicon, punctuation_words, scratch, &mut values);
        values
    })
}

/// The figures of a paragraph or caption: OBELICS'.
pub fn passage(text: &str, lexicon: &Lexicon, punctuation_words: u64) -> Values {
    let text = beginning(text);
    SCRATCH.with_borrow_mut(|scratch| {
        let mut values = Values::default();
        let lines = Lines::new(text);
        words::measure(text, &lines, lexicon, punctuation_words, scratch, &mut values);
        values
    })
}

fn beginning(text: &str) -> &str {
    &text[..text.floor_char_boundary(MEASURED_BYTES_MAX)]
}

/// The figures of a document with the lists that the program brings.
#[cfg(test)]
pub(super) fn measured(text: &str) -> Values {
    document(text, &Lexicon::default(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_is_a_column_and_finite() {
        for text in ["", "\n", "word", "a\u{301}b 日本。\u{0}\u{1F600}", &"x ".repeat(1 << 20)] {
            let values = measured(text);
            for (name, value) in &values.0 {
                assert!(crate::figures::NAMES.contains(name), "{name}");
                assert!(value.is_finite() && *value >= 0.0, "{name} is {value}");
            }
            assert_eq!(values.0.len(), measured("some words").0.len());
        }
    }
}
