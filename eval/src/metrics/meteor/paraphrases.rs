//! Phrases that say the same, of METEOR's table: millions of entries, of which those are kept that the texts at hand
//! can have.

use std::hash::BuildHasher as _;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use memchr::memchr;
use rustc_hash::{FxBuildHasher, FxHashMap};

use super::align::Span;
use super::archive::Archive;
use super::texts::Texts;
use crate::error::EvalError;

/// Longer phrases are not looked for: those of the table have 7 words at most.
const PHRASE_WORDS_MAX: usize = 16;

/// A phrase, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Phrase(u32);

/// Phrases and their paraphrases.
#[derive(Debug, Clone, Default)]
pub(crate) struct Paraphrases {
    /// A phrase with one more word, from 0, the phrase without words.
    longer: FxHashMap<(u32, u32), u32>,
    /// Of phrases by number: whether an entry has it, on either side.
    is_entered: Vec<bool>,
    /// Where in the table a phrase and its paraphrase are.
    entries: FxHashMap<(Phrase, Phrase), u32>,
}

impl Paraphrases {
    /// The entries of the table with one side among the predictions, and the other among the references.
    pub(crate) fn of(texts: &Texts, archive: &Archive) -> Result<Self, EvalError> {
        let (path, table) = archive.table()?;
        let said = texts.images.iter().map(|image| &*image.prediction);
        let predictions = Seen::of(texts, said);
        let known = texts.images.iter().flat_map(|image| image.references.iter().map(|it| &**it));
        let references = Seen::of(texts, known);
        let mut paraphrases = Self { is_entered: vec![false], ..Self::default() };
        let mut lines = Lines::of(path, table);
        let mut before = (Vec::new(), false, false);
        let mut entry = 0;
        while lines.advance()? {
            if !lines.line().first().is_some_and(u8::is_ascii_digit) {
                return Err(lines.wrong("it is no probability"));
            }
            let phrase = lines.next_of_entry()?;
            if before.0 != phrase {
                before = (phrase.to_vec(), predictions.has(phrase), references.has(phrase));
            }
            let (phrase, is_said, is_known) = (&before.0, before.1, before.2);
            let other = lines.next_of_entry()?;
            if is_said && references.has(other) || is_known && predictions.has(other) {
                paraphrases.add(texts, phrase, other, entry);
            }
            entry += 1;
        }
        Ok(paraphrases)
    }

    /// Adds an entry, unless a word of it is in no text.
    fn add(&mut self, texts: &Texts, phrase: &[u8], other: &[u8], entry: u32) {
        let words = |bytes| {
            let words = std::str::from_utf8(bytes).ok()?.split(' ');
            words.map(|word| texts.vocabulary.find(word)).collect::<Option<Vec<u32>>>()
        };
        let (Some(phrase), Some(other)) = (words(phrase), words(other)) else { return };
        let (phrase, other) = (self.number(&phrase), self.number(&other));
        self.entries.entry((phrase, other)).or_insert(entry);
    }

    /// The number of a phrase that is entered.
    fn number(&mut self, words: &[u32]) -> Phrase {
        let mut number = 0;
        for word in words {
            let new = self.is_entered.len() as u32;
            number = *self.longer.entry((number, *word)).or_insert(new);
            if number == new {
                self.is_entered.push(false);
            }
        }
        self.is_entered[number as usize] = true;
        Phrase(number)
    }

    /// The phrases of a text that have paraphrases, by their first words.
    pub(crate) fn phrases(&self, words: &[u32]) -> Vec<(Span, Phrase)> {
        let mut phrases = Vec::new();
        for start in 0..words.len() {
            let mut number = 0;
            for (len, word) in (1..).zip(&words[start..]) {
                let Some(longer) = self.longer.get(&(number, *word)) else { break };
                number = *longer;
                if self.is_entered[number as usize] {
                    phrases.push((Span { start: start as u32, len }, Phrase(number)));
                }
            }
        }
        phrases
    }

    /// Where in the table `other` is a paraphrase of `phrase`.
    pub(crate) fn entry(&self, phrase: Phrase, other: Phrase) -> Option<u32> {
        self.entries.get(&(phrase, other)).copied()
    }
}

/// Which phrases texts have: never no for one that they have, seldom yes for another.
struct Seen {
    bits: Vec<u64>,
}

/// Bits for the phrases of texts: of those of 40,504 images' captions a fifth are set.
const SEEN_BITS: usize = 1 << 26;

impl Seen {
    fn of<'a>(texts: &Texts, some: impl Iterator<Item = &'a [u32]>) -> Self {
        let mut seen = Self { bits: vec![0; SEEN_BITS / 64] };
        for words in some {
            let text = texts.joined(words);
            let spaces = text.match_indices(' ').map(|(at, _)| at);
            let ends: Vec<usize> = spaces.chain([text.len()]).collect();
            let mut start = 0;
            for (at, end) in ends.iter().enumerate() {
                for end in ends[at..].iter().take(PHRASE_WORDS_MAX) {
                    let (word, bit) = Self::place(&text.as_bytes()[start..*end]);
                    seen.bits[word] |= bit;
                }
                start = end + 1;
            }
        }
        seen
    }

    fn has(&self, phrase: &[u8]) -> bool {
        let (word, bit) = Self::place(phrase);
        self.bits[word] & bit != 0
    }

    fn place(phrase: &[u8]) -> (usize, u64) {
        let at = FxBuildHasher.hash_one(phrase) as usize % SEEN_BITS;
        (at / 64, 1 << (at % 64))
    }
}

/// Lines of a long text.
struct Lines<'a, R> {
    path: &'a Path,
    reader: R,
    buffer: Vec<u8>,
    /// The line at hand.
    line: Range<usize>,
    /// What of the buffer is read and behind the line.
    rest: Range<usize>,
    /// Of the line, from 1.
    number: u64,
}

/// Longest line, and how much is read at once.
const LINE_BYTES_MAX: usize = 1 << 18;

impl<'a, R: Read> Lines<'a, R> {
    fn of(path: &'a Path, reader: R) -> Self {
        Self { path, reader, buffer: vec![0; LINE_BYTES_MAX], line: 0..0, rest: 0..0, number: 0 }
    }

    /// The line at hand, without its end.
    fn line(&self) -> &[u8] {
        &self.buffer[self.line.clone()]
    }

    /// Goes to the next line, if there is one.
    fn advance(&mut self) -> Result<bool, EvalError> {
        let mut end = memchr(b'\n', &self.buffer[self.rest.clone()]);
        while end.is_none() && self.read()? {
            end = memchr(b'\n', &self.buffer[self.rest.clone()]);
        }
        if end.is_none() && self.rest.is_empty() {
            return Ok(false);
        }
        self.number += 1;
        let start = self.rest.start;
        self.line = start..end.map_or(self.rest.end, |end| start + end);
        self.rest.start = self.rest.end.min(self.line.end + 1);
        Ok(true)
    }

    /// Reads more, if there is more.
    fn read(&mut self) -> Result<bool, EvalError> {
        if self.rest.len() == LINE_BYTES_MAX {
            self.number += 1;
            return Err(self.wrong(&format!("it has more than {LINE_BYTES_MAX} bytes")));
        }
        self.buffer.copy_within(self.rest.clone(), 0);
        self.rest = 0..self.rest.len();
        let free = &mut self.buffer[self.rest.end..];
        let n = self.reader.read(free).map_err(EvalError::file("read", self.path))?;
        self.rest.end += n;
        Ok(n > 0)
    }

    /// A line that must be there.
    fn next_of_entry(&mut self) -> Result<&[u8], EvalError> {
        if self.advance()? {
            return Ok(self.line());
        }
        Err(self.wrong("the table ends within an entry"))
    }

    /// An error about the line at hand.
    fn wrong(&self, problem: &str) -> EvalError {
        let problem = format!("line {}: {problem}", self.number);
        EvalError::Meteor { path: self.path.to_path_buf(), problem }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phrases_are_found_where_they_are_entered() {
        let mut paraphrases = Paraphrases { is_entered: vec![false], ..Paraphrases::default() };
        let [ab, abc, c] = [&[1, 2][..], &[1, 2, 3], &[3]].map(|words| paraphrases.number(words));
        assert_eq!(paraphrases.number(&[1, 2]), ab);
        let span = |start, len| Span { start, len };
        let expected = [(span(1, 2), ab), (span(1, 3), abc), (span(3, 1), c)];
        assert_eq!(paraphrases.phrases(&[2, 1, 2, 3, 1]), expected);
        assert_eq!(paraphrases.phrases(&[1]), []);
    }

    #[test]
    fn every_phrase_of_a_text_is_seen_and_hardly_another() {
        let mut texts = Texts::default();
        let words: Vec<u32> = (0..12).map(|n| texts.vocabulary.number(&format!("w{n}"))).collect();
        let seen = Seen::of(&texts, [&words[..6], &words[6..], &[]].into_iter());
        for phrase in ["w0", "w5", "w0 w1 w2 w3 w4 w5", "w6 w7", "w11"] {
            assert!(seen.has(phrase.as_bytes()), "{phrase}");
        }
        for phrase in ["w5 w6", "w", "w1 w3", "w12"] {
            assert!(!seen.has(phrase.as_bytes()), "{phrase}");
        }
    }

    #[test]
    fn lines_are_cut_wherever_reading_stops() {
        struct Drops<'a>(&'a [u8]);
        impl Read for Drops<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                let n = self.0.len().min(3).min(buffer.len());
                buffer[..n].copy_from_slice(&self.0[..n]);
                self.0 = &self.0[n..];
                Ok(n)
            }
        }
        let mut lines = Lines::of(Path::new("x"), Drops(b"one\n\nthree and\nmore"));
        let mut found = Vec::new();
        while lines.advance().unwrap() {
            found.push(String::from_utf8(lines.line().to_vec()).unwrap());
        }
        assert_eq!(found, ["one", "", "three and", "more"]);
    }
}
