//! Texts as METEOR 1.5 normalises them (`-norm`, English): Moses' tokenizer with quotes and dashes made plain, words
//! cut at hyphens, and abbreviations without their points; all in lower case.

use rustc_hash::FxHashSet;

/// When a word keeps its point, as in `Mr.`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Prefixes {
    always: FxHashSet<String>,
    /// Before a number, as in `No. 5`.
    before_numbers: FxHashSet<String>,
}

/// Marks the prefixes of Moses' list that keep their points before numbers alone.
const NUMERIC_ONLY: &str = "#NUMERIC_ONLY#";

impl Prefixes {
    /// The prefixes of a file of Moses' format: one a line, comments after `#`.
    pub(crate) fn parse(text: &str) -> Self {
        let mut prefixes = Self::default();
        for line in text.lines().map(str::trim) {
            if let Some(prefix) = line.strip_suffix(NUMERIC_ONLY) {
                prefixes.before_numbers.insert(prefix.trim_end().to_owned());
            } else if !line.is_empty() && !line.starts_with('#') {
                prefixes.always.insert(line.to_owned());
            }
        }
        prefixes
    }

    /// Calls `each` with the words of a text, in lower case.
    pub(crate) fn each_word(&self, text: &str, mut each: impl FnMut(&str)) {
        let spaced = spaced(text);
        let mut words = spaced.split_ascii_whitespace().peekable();
        while let Some(word) = words.next() {
            match self.ending(word, words.peek().copied()) {
                Ending::Kept => each(&word.to_lowercase()),
                Ending::Cut(before) => {
                    each(&before.to_lowercase());
                    each(".");
                }
                Ending::Abbreviation => each(&word.replace('.', "").to_lowercase()),
            }
        }
    }

    /// What becomes of the point at the end of a word.
    fn ending<'a>(&self, word: &'a str, next: Option<&str>) -> Ending<'a> {
        let Some(before) = word.strip_suffix('.') else { return Ending::Kept };
        if before.bytes().all(|byte| byte == b'.') {
            return Ending::Kept;
        }
        if before.contains('.') && before.contains(is_letter) {
            return Ending::Abbreviation;
        }
        let next = next.and_then(|next| next.bytes().next());
        let is_kept = self.always.contains(before)
            || next.is_some_and(|byte| byte.is_ascii_lowercase())
            || self.before_numbers.contains(before)
                && next.is_some_and(|byte| byte.is_ascii_digit());
        if is_kept { Ending::Kept } else { Ending::Cut(before) }
    }
}

enum Ending<'a> {
    Kept,
    /// A sentence ends.
    Cut(&'a str),
    /// All points go.
    Abbreviation,
}

/// Letters of Latin and Cyrillic script: all others are cut off like punctuation.
fn is_letter(c: char) -> bool {
    c.is_ascii_alphabetic()
        || matches!(c, '\u{c0}'..='\u{17e}' if c != '\u{d7}' && c != '\u{f7}')
        || matches!(c, '\u{400}'..='\u{527}' | '\u{1d00}'..='\u{1d7f}')
        || matches!(c, '\u{a640}'..='\u{a66e}' | '\u{a67e}'..='\u{a697}')
}

fn is_digit(c: char) -> bool {
    c.is_ascii_digit()
}

/// A text with spaces around everything that is a word by itself, but for points.
fn spaced(text: &str) -> String {
    // Java's `trim`: ends of a text that are no characters to it.
    let text = text.trim_matches(|c| c <= ' ');
    let mut chars = vec![' '];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\u{2018}' | '\u{2019}' => chars.push('\''),
            '\u{201c}' | '\u{201d}' => chars.extend([' ', '"', ' ']),
            '\u{2013}' => chars.extend([' ', '-', ' ']),
            '.' => {
                let n = 1 + std::iter::from_fn(|| rest.next_if_eq(&'.')).count();
                let around = usize::from(n > 1);
                chars.extend(std::iter::repeat_n(' ', around));
                chars.extend(std::iter::repeat_n('.', n));
                chars.extend(std::iter::repeat_n(' ', around));
            }
            '\'' | '`' | ',' | '-' => chars.push(c),
            c if is_letter(c) || is_digit(c) => chars.push(c),
            c if c.is_whitespace() => chars.push(' '),
            c => chars.extend([' ', c, ' ']),
        }
    }
    chars.push(' ');
    let chars = pairs(&without_commas(chars), '-', &['-']);
    let chars = without_hyphens(&without_apostrophes(&with_quotes(chars)));
    chars.into_iter().collect()
}

/// Cuts commas off, but for those between digits.
fn without_commas(chars: Vec<char>) -> Vec<char> {
    let cut = |chars: Vec<char>, before: fn(char) -> bool, after: fn(char) -> bool| {
        between(&chars, ',', (before, after), &[' ', ',', ' '])
    };
    let chars = cut(chars, |c| !is_digit(c), |c| !is_digit(c));
    let chars = cut(chars, is_digit, |c| !is_digit(c));
    cut(chars, |c| !is_digit(c), is_digit)
}

/// Makes two apostrophes a quotation mark.
fn with_quotes(mut chars: Vec<char>) -> Vec<char> {
    chars.iter_mut().filter(|c| **c == '`').for_each(|c| *c = '\'');
    pairs(&chars, '\'', &[' ', '"', ' '])
}

fn without_apostrophes(chars: &[char]) -> Vec<char> {
    let apart = &[' ', '\'', ' '];
    let first = &[' ', '\''];
    let is_other = |c| !is_letter(c);
    let is_neither = |c| !is_letter(c) && !is_digit(c);
    let chars = between(chars, '\'', (is_other, is_other), apart);
    let chars = between(&chars, '\'', (is_neither, is_letter), apart);
    let chars = between(&chars, '\'', (is_letter, is_other), apart);
    let chars = between(&chars, '\'', (is_letter, is_letter), first);
    between(&chars, '\'', (is_digit, |c| c == 's'), first)
}

fn without_hyphens(chars: &[char]) -> Vec<char> {
    let is_before = |c| c == '.' || is_letter(c) || is_digit(c);
    between(chars, '-', (is_before, |c| is_letter(c) || is_digit(c)), &[' '])
}

/// Replaces two of a character.
fn pairs(chars: &[char], one: char, by: &[char]) -> Vec<char> {
    let mut replaced = Vec::with_capacity(chars.len());
    let mut rest = chars.iter().peekable();
    while let Some(c) = rest.next() {
        if *c == one && rest.next_if_eq(&&one).is_some() {
            replaced.extend_from_slice(by);
        } else {
            replaced.push(*c);
        }
    }
    replaced
}

/// Replaces a character where its neighbours are of two kinds. Like a regular expression's, a match takes its
/// neighbours with it: they are in no other.
fn between(
    chars: &[char],
    middle: char,
    (before, after): (impl Fn(char) -> bool, impl Fn(char) -> bool),
    by: &[char],
) -> Vec<char> {
    let mut replaced = Vec::with_capacity(chars.len() + 2);
    let mut rest = chars;
    while let [first, others @ ..] = rest {
        replaced.push(*first);
        rest = match others {
            [second, third, others @ ..]
                if *second == middle && before(*first) && after(*third) =>
            {
                replaced.extend_from_slice(by);
                replaced.push(*third);
                others
            }
            _ => others,
        };
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks against what METEOR 1.5 writes with `-norm -writeAlignments`.
    fn check(text: &str, expected: &str) {
        let prefixes = Prefixes::parse("# Titles\n\nMr\nSt\nNo #NUMERIC_ONLY#\n");
        let mut words = Vec::new();
        prefixes.each_word(text, |word| words.push(word.to_owned()));
        assert_eq!(words.join(" "), expected, "{text:?}");
    }

    #[test]
    fn punctuation_is_cut_off_as_in_moses() {
        check("A dog, \u{201c}big\u{201d} & (red)!", "a dog , \" big \" & ( red ) !");
        check("1,000 a,b a,1 1,,2", "1,000 a , b a , 1 1 , , 2");
        check(
            "don't 'tis dogs' 1990's 1'a rock'n'roll",
            "don 't ' tis dogs ' 1990 's 1'a rock 'n'roll",
        );
        check("``hi'' `x", "\" hi \" ' x");
        check(
            "a\u{a0}b \u{65e5}\u{672c} x\u{2019}s \u{e9}'\u{e9}",
            "a b \u{65e5} \u{672c} x 's \u{e9} '\u{e9}",
        );
        check("\u{1}a \u{1} b\u{1}", "a \u{1} b");
    }

    #[test]
    fn hyphens_cut_words_one_in_each_match() {
        check("dark-haired tug-o-war a--b a---b", "dark haired tug o-war a b a--b");
        check("u.s.-based -a a- _-b a \u{2013} b", "us based -a a- _ -b a - b");
        check(" ,--,\u{2013}x", ", - , - x");
    }

    #[test]
    fn points_end_sentences_but_for_abbreviations() {
        check("the U.S. e.g., p.m.x a.b.. 1.2. x", "the us eg , p.m.x a.b .. 1.2. x");
        check("Mr. X mr. X st. x St. X", "mr. x mr . x st. x st. x");
        check("No. 5 No. X no. 5", "no. 5 no . x no . 5");
        check("end. The end.", "end . the end .");
        check("a...b . .. wait...", "a ... b . .. wait ...");
    }
}
