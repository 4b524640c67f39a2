//! Words as numbers, so that they are compared and counted without their letters.

use std::rc::Rc;

use rustc_hash::FxHashMap;

/// Words in the order in which they came, numbered from 0.
#[derive(Debug, Default)]
pub(crate) struct Vocabulary {
    numbers: FxHashMap<Rc<str>, u32>,
    texts: Vec<Rc<str>>,
}

impl Vocabulary {
    /// The number of a word.
    pub(crate) fn number(&mut self, word: &str) -> u32 {
        if let Some(number) = self.numbers.get(word) {
            return *number;
        }
        let (number, word) = (self.texts.len() as u32, Rc::<str>::from(word));
        self.texts.push(Rc::clone(&word));
        self.numbers.insert(word, number);
        number
    }

    /// The number of a word, if it has one.
    pub(crate) fn find(&self, word: &str) -> Option<u32> {
        self.numbers.get(word).copied()
    }

    /// A word by its number.
    pub(crate) fn text(&self, number: u32) -> &str {
        &self.texts[number as usize]
    }

    /// How many words there are.
    pub(crate) fn len(&self) -> usize {
        self.texts.len()
    }
}
