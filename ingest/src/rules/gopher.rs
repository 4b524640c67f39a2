//! Figures of Gopher's quality and repetition rules (arXiv 2112.11446, appendix A.1), as datatrove
//! computes them.

use super::counts::{Counts, Filter};
use super::measure::{Line, Lines, Values, share};
use super::tokens::{Token, TokenKind, hash};

/// The stop words of which a document must have two.
const STOP_WORDS: [&str; 8] = ["the", "be", "to", "of", "and", "that", "have", "with"];
/// Names of the figures of the most frequent n-grams, from 2-grams on.
const TOP: [&str; 3] = ["top_2_gram", "top_3_gram", "top_4_gram"];
/// Names of the figures of repeated n-grams, from 5-grams on.
const DUPLICATE: [&str; 6] = [
    "duplicate_5_gram",
    "duplicate_6_gram",
    "duplicate_7_gram",
    "duplicate_8_gram",
    "duplicate_9_gram",
    "duplicate_10_gram",
];

/// Adds the figures of the quality rules.
pub(super) fn quality(text: &str, tokens: &[Token], lines: &Lines<'_>, values: &mut Values) {
    let words = tokens.iter().filter(|token| token.kind != TokenKind::Punctuation);
    let (n_words, chars) = words.fold((0, 0), |(n, c), word| (n + 1, c + word.chars as usize));
    let n_alphabetic = tokens.iter().filter(|t| t.kind == TokenKind::Alphabetic).count();
    let hashes = text.bytes().filter(|&byte| byte == b'#').count();
    let ellipses = text.matches("...").count() + text.matches('…').count();
    let starts = |line: &&Line<'_>| line.text.trim_start().starts_with(['•', '-']);
    let ends = |line: &&Line<'_>| {
        let line = line.text.trim_end();
        line.ends_with("...") || line.ends_with('…')
    };
    values.push("gopher_words", n_words as f64);
    values.push("word_length", share(chars, n_words));
    values.push("hashes", share(hashes, tokens.len()));
    values.push("ellipses", share(ellipses, tokens.len()));
    values.push("bullet_lines", share(lines.all.iter().filter(starts).count(), lines.all.len()));
    values.push("ellipsis_lines", share(lines.all.iter().filter(ends).count(), lines.all.len()));
    values.push("alphabetic_words", share(n_alphabetic, tokens.len()));
    values.push("gopher_stop_words", n_stop_words(text, tokens) as f64);
}

/// How many of the stop words a text has.
fn n_stop_words(text: &str, tokens: &[Token]) -> usize {
    let mut is_there = [false; STOP_WORDS.len()];
    for token in tokens.iter().filter(|token| (2..=4).contains(&token.chars)) {
        let word = &text[token.start as usize..token.end as usize];
        if let Some(at) = STOP_WORDS.iter().position(|stop| *stop == word) {
            is_there[at] = true;
        }
    }
    is_there.iter().filter(|is_there| **is_there).count()
}

/// Adds the figures of the repetition rules. `n_chars` is the length of the text.
pub(super) fn repetition(
    text: &str,
    n_chars: usize,
    tokens: &[Token],
    (counts, filter): (&mut Counts, &mut Filter),
    values: &mut Values,
) {
    let paragraphs = runs_between(text.trim(), 2);
    let (n_paragraphs, n, chars) = duplicates(paragraphs, counts);
    values.push("duplicate_paragraphs", share(n, n_paragraphs));
    values.push("duplicate_paragraph_chars", share(chars, n_chars));
    let (n_lines, n, chars) = duplicates(runs_between(text, 1), counts);
    values.push("duplicate_lines", share(n, n_lines));
    values.push("duplicate_line_chars", share(chars, n_chars));
    let sums = Sums::new(tokens);
    // A longer n-gram that comes twice begins with a shorter one that does, so each step looks only
    // at the places where the step before saw something twice.
    let mut places: Vec<u32> = (0..tokens.len() as u32).collect();
    for (name, n) in TOP.into_iter().zip(2..) {
        let chars = sums.top_gram_chars(n, &mut places, (counts, filter));
        values.push(name, share(chars, n_chars));
    }
    for (name, n) in DUPLICATE.into_iter().zip(5..) {
        sums.keep_repeated(n, &mut places, (counts, filter));
        values.push(name, share(sums.duplicate_gram_chars(n, &places, counts), n_chars));
    }
}

/// What stands between runs of at least `n` line ends.
fn runs_between(text: &str, n: usize) -> impl Iterator<Item = &str> {
    let bytes = text.as_bytes();
    let mut next = Some(0);
    std::iter::from_fn(move || {
        let start = next?;
        let mut end = start;
        loop {
            let Some(found) = bytes[end..].iter().position(|&byte| byte == b'\n') else {
                next = None;
                return Some(&text[start..]);
            };
            let from = end + found;
            let length = bytes[from..].iter().take_while(|&&byte| byte == b'\n').count();
            end = from + length;
            if length >= n {
                next = Some(end);
                return Some(&text[start..from]);
            }
        }
    })
}

/// How many pieces there are, how many were there before, and the characters of those.
pub(super) fn duplicates<'a>(
    pieces: impl Iterator<Item = &'a str>,
    counts: &mut Counts,
) -> (usize, usize, usize) {
    let pieces: Vec<_> = pieces.collect();
    counts.start(pieces.len());
    let again = pieces.iter().filter(|piece| counts.add(hash(piece.as_bytes()), 0) > 1);
    let (n, chars) = again.fold((0, 0), |(n, chars), piece| (n + 1, chars + piece.chars().count()));
    (pieces.len(), n, chars)
}

/// Sums from which the hash and the length of any n-gram follow at once.
struct Sums {
    /// Polynomials in [`BASE`] of the tokens' hashes.
    hashes: Vec<u64>,
    /// Characters of the tokens.
    chars: Vec<u32>,
}

/// Base of the polynomials: any large odd number.
const BASE: u64 = 0xD6E8_FEB8_6659_FD93;

impl Sums {
    fn new(tokens: &[Token]) -> Self {
        let (mut hash, mut n_chars) = (0_u64, 0);
        let (mut hashes, mut chars) = (vec![0], vec![0]);
        hashes.reserve(tokens.len());
        chars.reserve(tokens.len());
        for token in tokens {
            hash = hash.wrapping_mul(BASE).wrapping_add(token.hash);
            n_chars += token.chars;
            hashes.push(hash);
            chars.push(n_chars);
        }
        Self { hashes, chars }
    }

    /// Function from the place of an n-gram to its hash.
    fn grams(&self, n: usize) -> impl Fn(u32) -> u64 {
        let power = (0..n).fold(1_u64, |power, _| power.wrapping_mul(BASE));
        move |place| {
            let (start, end) = (place as usize, place as usize + n);
            self.hashes[end].wrapping_sub(self.hashes[start].wrapping_mul(power))
        }
    }

    /// Characters of the n-gram that begins at token `i`.
    fn gram_chars(&self, i: usize, n: usize) -> usize {
        (self.chars[i + n] - self.chars[i]) as usize
    }

    /// Counts the n-grams at `places` and keeps the places of those that come more than once.
    fn keep_repeated(
        &self,
        n: usize,
        places: &mut Vec<u32>,
        (counts, filter): (&mut Counts, &mut Filter),
    ) {
        let n_grams = self.hashes.len().saturating_sub(n);
        places.truncate(places.partition_point(|place| (*place as usize) < n_grams));
        let gram = self.grams(n);
        filter.start(places.len());
        for place in &*places {
            filter.add(gram(*place));
        }
        places.retain(|place| filter.may_repeat(gram(*place)));
        counts.start(places.len());
        for place in &*places {
            counts.add(gram(*place), *place as usize);
        }
        places.retain(|place| counts.get(gram(*place)) > 1);
    }

    /// Characters that the most frequent n-gram covers, with single spaces between its words. Of
    /// equally frequent ones, the first counts.
    fn top_gram_chars(
        &self,
        n: usize,
        places: &mut Vec<u32>,
        (counts, filter): (&mut Counts, &mut Filter),
    ) -> usize {
        self.keep_repeated(n, places, (counts, filter));
        let most = counts.entries().iter().map(|entry| entry.count).max().unwrap_or(0);
        if most > 1 {
            let top = counts.entries().iter().find(|entry| entry.count == most);
            let first = top.map_or(0, |top| top.first as usize);
            return (self.gram_chars(first, n) + n - 1) * most as usize;
        }
        // All come once: the first of all.
        if self.hashes.len() > n { self.gram_chars(0, n) + n - 1 } else { 0 }
    }

    /// Characters of n-grams that were there before, without spaces; none is counted twice. `places`
    /// are those of all that come more than once.
    fn duplicate_gram_chars(&self, n: usize, places: &[u32], counts: &mut Counts) -> usize {
        counts.start(places.len());
        let (mut chars, mut next) = (0, 0);
        let gram = self.grams(n);
        for place in places.iter().map(|place| *place as usize) {
            if place >= next && counts.add(gram(place as u32), place) > 1 {
                chars += self.gram_chars(place, n);
                next = place + n;
            }
        }
        chars
    }
}

#[cfg(test)]
mod tests {
    use crate::rules::measure::measured;

    fn check(text: &str, expected: &[(&str, f64)]) {
        let values = measured(text);
        for (name, value) in expected {
            let found = f64::from(values.get(name).unwrap());
            assert!((found - value).abs() < 1e-6, "{text:?}: {name} is {found}, expected {value}");
        }
    }

    #[test]
    fn quality_is_counted_by_hand() {
        // Tokens: # The cat , and that dog 's ... 12; words without marks: 7.
        check(
            "# The cat, and that dog's... 12",
            &[
                ("gopher_words", 7.0),
                ("word_length", f64::from(3 + 3 + 3 + 4 + 3 + 2 + 2) / 7.0),
                ("hashes", 1.0 / 10.0),
                ("ellipses", 1.0 / 10.0),
                ("alphabetic_words", 6.0 / 10.0),
                ("gopher_stop_words", 2.0),
                ("bullet_lines", 0.0),
            ],
        );
        check("- a\n  • b\nc …\n\nd...", &[("bullet_lines", 0.4), ("ellipsis_lines", 0.4)]);
        check("", &[("gopher_words", 0.0), ("word_length", 0.0), ("top_2_gram", 0.0)]);
    }

    #[test]
    fn repetition_is_counted_by_hand() {
        // Three paragraphs, the last repeats the first: 3 of 13 characters.
        check(
            "a b\n\nc\nd\n\na b",
            &[
                ("duplicate_paragraphs", 1.0 / 3.0),
                ("duplicate_paragraph_chars", 3.0 / 13.0),
                ("duplicate_lines", 1.0 / 4.0),
                ("duplicate_line_chars", 3.0 / 13.0),
            ],
        );
        // The 2-gram "x y" comes 3 times: 3 * 3 of 11 characters; no 5-gram repeats.
        check(
            "x y x y x y",
            &[("top_2_gram", 9.0 / 11.0), ("top_3_gram", 10.0 / 11.0), ("duplicate_5_gram", 0.0)],
        );
        // All 2-grams come once: the first counts, 4 + 1 + 1 characters of 9.
        check("long a be", &[("top_2_gram", 6.0 / 9.0)]);
        // Twelve times a: 5-grams at 0 (new), 1 (again, to 6), 6 (again, to 11).
        check(
            "a a a a a a a a a a a a",
            &[("duplicate_5_gram", 10.0 / 23.0), ("duplicate_10_gram", 10.0 / 23.0)],
        );
    }
}
