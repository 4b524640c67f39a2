//! Words of the program's own: names of rules, causes and figures.
//!
//! They are constants where they are made. Where they are read back from a journal they are looked
//! up in a table of words, which grows by one entry for each word and never shrinks.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use serde::de::{Deserialize, Deserializer, Error};

/// A word that lives as long as the program.
pub type Word = &'static str;

/// Most different words; the program has a few hundred.
const WORDS_MAX: usize = 10_000;

static WORDS: Mutex<BTreeSet<Word>> = Mutex::new(BTreeSet::new());

/// The word that is spelled like this; none where there are too many already.
pub fn word(text: &str) -> Option<Word> {
    let mut words = WORDS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(word) = words.get(text) {
        return Some(word);
    }
    if words.len() >= WORDS_MAX {
        return None;
    }
    let word: Word = Box::leak(text.to_owned().into_boxed_str());
    words.insert(word);
    Some(word)
}

/// Reads one word, for `#[serde(deserialize_with)]`.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Word, D::Error> {
    known(&String::deserialize(from)?)
}

/// Reads numbers with their names, for `#[serde(deserialize_with)]`.
pub(crate) fn deserialize_named<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Vec<(Word, f32)>, D::Error> {
    let named = Vec::<(String, f32)>::deserialize(from)?;
    named.into_iter().map(|(name, value)| Ok((known(&name)?, value))).collect()
}

fn known<E: Error>(text: &str) -> Result<Word, E> {
    word(text).ok_or_else(|| E::custom(format!("more than {WORDS_MAX} different words")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_kept_once() {
        let (a, b) = (word("aspect").unwrap(), word(&String::from("aspect")).unwrap());
        assert!(std::ptr::eq(a, b));
        assert_ne!(word("bytes").unwrap(), a);
    }
}
