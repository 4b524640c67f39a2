//! Figures of OBELICS' rules (arXiv 2306.16527, appendix A.2), for documents, paragraphs and
//! captions, as its code computes them.
//!
//! One difference: OBELICS lists the characters it calls special (punctuation, digits, white space,
//! symbols, emoji); here they are all that are no letters, which is the same for any usual text.

use super::lexicon::Lexicon;
use super::measure::{Lines, Scratch, Values, share};
use super::tokens::{hash, is_word, mix};

/// Characters of the n-grams that tell repeated characters.
const CHAR_GRAM: usize = 10;
/// Words of the n-grams that tell repeated words.
const WORD_GRAM: usize = 5;
/// Base of the polynomials that hash n-grams: any large odd number.
const BASE: u64 = 0xD6E8_FEB8_6659_FD93;

/// Adds all figures. The share of punctuation is 1 for texts with fewer marks and words than
/// `punctuation_words`, as it says nothing there.
pub(super) fn measure(
    text: &str,
    lines: &Lines<'_>,
    lexicon: &Lexicon,
    punctuation_words: u64,
    scratch: &mut Scratch,
    values: &mut Values,
) {
    let words = &lines.words;
    let share_in = |list: &super::lexicon::Words| {
        share(words.iter().filter(|word| list.contains(**word)).count(), words.len())
    };
    values.push("words", words.len() as f64);
    values.push("sentences", lines.all.iter().map(|line| line.n_sentences).sum::<usize>() as f64);
    values.push("stop_words", share_in(&lexicon.stop));
    values.push("flagged_words", share_in(&lexicon.explicit));
    values.push("spam_words", share_in(&lexicon.spam));
    if let Some(common) = &lexicon.common {
        values.push("common_words", share_in(common));
    }
    values.push("word_repetition", word_repetition(words, scratch));
    let chars = read_chars(text, scratch);
    values.push("char_repetition", char_repetition(scratch));
    values.push("special_chars", share(chars.special, chars.all));
    let n_parts = chars.marks + chars.words;
    let is_short = (n_parts as u64) < punctuation_words;
    values.push("punctuation", if is_short { 1.0 } else { share(chars.marks, n_parts) });
}

/// Hash of a word in lower case, without what is no letter at its ends; none where nothing is left.
pub(super) fn word_hash(word: &str) -> Option<u64> {
    let bytes = word.as_bytes();
    let is_bare =
        [bytes.first(), bytes.last()].iter().all(|end| end.is_some_and(u8::is_ascii_alphabetic));
    let word = if is_bare { word } else { word.trim_matches(|c: char| !c.is_alphabetic()) };
    if word.is_empty() {
        return None;
    }
    let mut lower = [0; 32];
    if let Some(lower) = lower.get_mut(..word.len())
        && word.is_ascii()
    {
        lower.copy_from_slice(word.as_bytes());
        lower.make_ascii_lowercase();
        return Some(hash(lower));
    }
    Some(hash(word.to_lowercase().as_bytes()))
}

/// Share of the 5-grams of words that come more than once.
fn word_repetition(words: &[u64], scratch: &mut Scratch) -> f64 {
    scratch.grams.clear();
    scratch.grams.extend(words.windows(WORD_GRAM).map(|gram| {
        gram.iter().fold(0, |sum: u64, word| sum.wrapping_mul(BASE).wrapping_add(*word))
    }));
    let (repeated, _) = repeated(scratch);
    share(repeated.iter().map(|count| *count as usize).sum(), scratch.grams.len())
}

/// How often each n-gram comes that comes more than once, and how many different ones there are.
fn repeated(scratch: &mut Scratch) -> (Vec<u32>, usize) {
    let Scratch { counts, filter, grams, .. } = scratch;
    filter.start(grams.len());
    for gram in grams.iter() {
        filter.add(*gram);
    }
    counts.start(grams.len());
    let mut n_single = 0;
    for (i, gram) in grams.iter().enumerate() {
        if filter.may_repeat(*gram) {
            counts.add(*gram, i);
        } else {
            n_single += 1;
        }
    }
    let repeated = counts.entries().iter().map(|entry| entry.count).filter(|count| *count > 1);
    (repeated.collect(), n_single + counts.entries().len())
}

/// Share of the most frequent 10-grams of characters, of which the scratch has the hashes: of as many
/// as the root of the number of different ones, and of those that come more than once.
fn char_repetition(scratch: &mut Scratch) -> f64 {
    let n_grams = scratch.grams.len();
    let (mut repeated, n_different) = repeated(scratch);
    let n_top = n_different.isqrt().min(repeated.len());
    repeated.sort_unstable_by(|a, b| b.cmp(a));
    share(repeated[..n_top].iter().map(|count| *count as usize).sum(), n_grams)
}

/// Numbers of characters, and of what they make up.
#[derive(Default)]
struct Chars {
    all: usize,
    /// Those that are no letters.
    special: usize,
    /// Punctuation marks.
    marks: usize,
    /// Runs of letters, digits, underscores and apostrophes.
    words: usize,
}

/// Counts the characters of a text and leaves the hashes of its 10-grams in the scratch.
fn read_chars(text: &str, scratch: &mut Scratch) -> Chars {
    let Scratch { chars, grams, .. } = scratch;
    chars.clear();
    grams.clear();
    let mut n = Chars::default();
    let mut in_word = false;
    for c in text.chars() {
        chars.push(mix(u64::from(c) + 1));
        n.special += usize::from(!c.is_alphabetic());
        let is_part = is_word(c) || c == '\'';
        n.words += usize::from(is_part && !in_word);
        n.marks += usize::from(matches!(c, ',' | ';' | ':' | '?' | '!' | '.'));
        in_word = is_part;
    }
    n.all = chars.len();
    let power = (0..CHAR_GRAM).fold(1_u64, |power, _| power.wrapping_mul(BASE));
    let first = chars.len().min(CHAR_GRAM - 1);
    let push = |gram: u64, c: u64| gram.wrapping_mul(BASE).wrapping_add(c);
    let mut gram = chars[..first].iter().fold(0, |gram, c| push(gram, *c));
    // The character that leaves an n-gram with each that enters it; none leaves the first.
    let leaving = std::iter::once(&0).chain(&*chars);
    grams.extend(chars[first..].iter().zip(leaving).map(|(enters, leaves)| {
        gram = push(gram, enters.wrapping_sub(leaves.wrapping_mul(power)));
        gram
    }));
    n
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::measure::passage;

    fn check(text: &str, expected: &[(&str, f64)]) {
        let values = passage(text, &Lexicon::default(), 0);
        for (name, value) in expected {
            let found = f64::from(values.get(name).unwrap());
            assert!((found - value).abs() < 1e-6, "{text:?}: {name} is {found}, expected {value}");
        }
    }

    #[test]
    fn words_are_counted_by_hand() {
        // Words: the, cat, and, élan, porn; 12 and - are none.
        check(
            "The cat, 12 and - Élan! (PORN)",
            &[
                ("words", 5.0),
                ("stop_words", 2.0 / 5.0),
                ("flagged_words", 1.0 / 5.0),
                // 30 characters, 17 letters.
                ("special_chars", 13.0 / 30.0),
                // , and ! beside six words.
                ("punctuation", 2.0 / 8.0),
                ("sentences", 2.0),
            ],
        );
        let short = passage("no marks here", &Lexicon::default(), 4);
        assert_eq!(short.get("punctuation"), Some(1.0));
        check("Click here, subscribe now", &[("spam_words", 2.0 / 4.0)]);
        check("", &[("words", 0.0), ("char_repetition", 0.0), ("special_chars", 0.0)]);
    }

    #[test]
    fn repetition_is_counted_by_hand() {
        // Ten words: six 5-grams, the first and the last are equal.
        check("a b c d e A b, c d e", &[("word_repetition", 2.0 / 6.0)]);
        // 30 characters of period 3: 21 10-grams of 3 kinds, 7 each; the root of 3 is 1.
        check(&"abc".repeat(10), &[("char_repetition", 7.0 / 21.0)]);
        // Nine characters have no 10-gram; ten have one.
        check("abcabcabc", &[("char_repetition", 0.0)]);
        check("abcabcabca", &[("char_repetition", 0.0)]);
    }
}
