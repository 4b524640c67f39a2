//! Figures of C4's and `FineWeb`'s rules, which look at lines, as datatrove computes them.

use std::borrow::Cow;
use std::sync::LazyLock;

use aho_corasick::AhoCorasick;

use super::counts::Counts;
use super::gopher::duplicates;
use super::measure::{LONG_WORD_CHARS, Line, Lines, Values, share};
use super::tokens::is_terminal;

/// What C4 takes for the end of a sentence.
const END_MARKS: [char; 5] = ['.', '?', '!', '"', '\''];
/// Fewest words of a line that C4 keeps.
const LINE_WORDS_MIN: usize = 3;
/// Phrases of lines that C4 takes out or counts: the first of a text of no use, the second of a script
/// that did not run, the others of lines about the use of a site.
const PHRASES: [&str; 8] = [
    "lorem ipsum",
    "javascript",
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
];
/// Finds [`PHRASES`], whatever their case.
static PHRASE_FINDER: LazyLock<AhoCorasick> = LazyLock::new(|| {
    let mut builder = AhoCorasick::builder();
    builder.ascii_case_insensitive(true).build(PHRASES).expect("a few short phrases fit")
});
/// Longest line that `FineWeb` calls short, in characters.
const SHORT_LINE_CHARS: usize = 30;
/// Marks that may follow the end of a sentence and still belong to it.
const CLOSING_MARKS: [char; 9] = ['"', '\'', '”', '’', '»', ')', ']', '}', '*'];
/// Abbreviations, in lower case, whose full stop ends no sentence.
const ABBREVIATIONS: [&str; 31] = [
    "mr", "mrs", "ms", "dr", "prof", "st", "sr", "jr", "vs", "etc", "e.g", "i.e", "fig", "no",
    "vol", "pp", "al", "inc", "ltd", "co", "corp", "jan", "feb", "mar", "apr", "aug", "sept",
    "oct", "nov", "dec", "approx",
];

/// Which kinds of [`PHRASES`] a line has.
#[derive(Clone, Copy, Default)]
struct Phrases {
    is_lorem: bool,
    is_script: bool,
    is_policy: bool,
}

/// What each line has.
fn phrases(text: &str, lines: &Lines<'_>) -> Vec<Phrases> {
    let mut found = vec![Phrases::default(); lines.all.len()];
    for phrase in PHRASE_FINDER.find_overlapping_iter(text) {
        let line = lines.all.partition_point(|line| line.start <= phrase.start()) - 1;
        match phrase.pattern().as_usize() {
            0 => found[line].is_lorem = true,
            1 => found[line].is_script = true,
            _ => found[line].is_policy = true,
        }
    }
    found
}

/// Adds the figures of C4.
pub(super) fn c4(text: &str, lines: &Lines<'_>, values: &mut Values) {
    let phrases = phrases(text, lines);
    let count = |is_it: fn(&Phrases) -> bool| phrases.iter().filter(|found| is_it(found)).count();
    let (mut curly, mut kept, mut n_sentences) = (0, 0, 0);
    for (line, found) in lines.all.iter().zip(&phrases) {
        curly += usize::from(line.text.contains('{'));
        if is_sentence_line(line) && !found.is_script && !found.is_policy {
            kept += 1;
            n_sentences += line.n_sentences;
        }
    }
    values.push("c4_sentences", n_sentences as f64);
    values.push("c4_lines", share(kept, lines.n_full()));
    values.push("lorem_ipsum", count(|found| found.is_lorem) as f64);
    values.push("curly_brackets", curly as f64);
    values.push("javascript_lines", count(|found| found.is_script) as f64);
    values.push("policy_lines", count(|found| found.is_policy) as f64);
}

/// Whether C4 takes a line for running text.
fn is_sentence_line(line: &Line<'_>) -> bool {
    if line.n_words < LINE_WORDS_MIN || line.long_word_chars > LONG_WORD_CHARS {
        return false;
    }
    let text = without_citations(line.text.trim());
    text.ends_with(END_MARKS) && !text.ends_with("...")
}

/// The line without marks like `[12]`, `[edit]` and `[citation needed]`.
fn without_citations(line: &str) -> Cow<'_, str> {
    if !line.contains('[') {
        return Cow::Borrowed(line);
    }
    let (mut kept, mut rest) = (String::new(), line);
    while let Some(start) = rest.find('[') {
        kept.push_str(&rest[..start]);
        let inside = &rest[start + 1..];
        let end = inside.find(']').filter(|&end| {
            let inside = &inside[..end];
            inside == "edit" || inside == "citation needed" || inside.chars().all(char::is_numeric)
        });
        if let Some(end) = end {
            rest = &inside[end + 1..];
        } else {
            kept.push('[');
            rest = inside;
        }
    }
    kept.push_str(rest);
    Cow::Owned(kept)
}

/// Adds the figures of `FineWeb`.
pub(super) fn fineweb(
    text: &str,
    n_chars: usize,
    lines: &Lines<'_>,
    n_tokens: usize,
    counts: &mut Counts,
    values: &mut Values,
) {
    let full = || lines.full().map(|line| line.text);
    let n_full = lines.n_full();
    let n_ended = full().filter(|line| line.chars().next_back().is_some_and(is_terminal)).count();
    let is_short = |line: &&str| {
        line.len() <= SHORT_LINE_CHARS || line.chars().nth(SHORT_LINE_CHARS).is_none()
    };
    let newlines = text.bytes().filter(|&byte| byte == b'\n').count();
    let (.., chars) = duplicates(full(), counts);
    values.push("line_punctuation", share(n_ended, n_full));
    values.push("short_lines", share(full().filter(is_short).count(), n_full));
    values.push("duplicate_chars", share(chars, n_chars - newlines));
    values.push("newlines", share(newlines, n_tokens));
}

/// Whether a word carries the end of a sentence.
pub(super) fn ends_sentence(word: &str) -> bool {
    if word.as_bytes().last().is_some_and(u8::is_ascii_alphanumeric) {
        return false;
    }
    let word = word.trim_end_matches(CLOSING_MARKS);
    let Some(mark) = word.chars().next_back().filter(|c| is_terminal(*c) || *c == '…') else {
        return false;
    };
    if mark != '.' {
        return true;
    }
    let stem = word.trim_end_matches('.');
    let stem = stem.trim_start_matches(|c: char| !c.is_alphanumeric());
    // Initials have one letter; of abbreviations with inner full stops, only the last one may end.
    let is_initial = stem.chars().count() == 1 && stem.chars().all(char::is_uppercase);
    let is_known = stem.len() <= 6 && ABBREVIATIONS.contains(&stem.to_ascii_lowercase().as_str());
    let is_dotted = stem.contains('.') && stem.split('.').all(is_single);
    !(is_initial || is_known || is_dotted)
}

fn is_single(part: &str) -> bool {
    let mut chars = part.chars();
    chars.next().is_some_and(char::is_alphabetic) && chars.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::measure::measured;

    #[test]
    fn sentences_end_where_a_reader_says() {
        let check = |line: &str, expected: usize| {
            assert_eq!(measured(line).get("sentences"), Some(expected as f32), "{line}");
        };
        check("", 0);
        check("no end", 1);
        check("One. Two! Three? (Four.) \"Five.\" Six", 6);
        check("Dr. J. Smith, e.g. of the U.S. army, has 3.5 dogs etc. and cats.", 1);
        check("It is 5 p.m. now.", 1);
        check("Well... yes.", 2);
        check("これ。 それ。", 2);
    }

    fn check(text: &str, expected: &[(&str, f64)]) {
        let values = measured(text);
        for (name, value) in expected {
            let found = f64::from(values.get(name).unwrap());
            assert!((found - value).abs() < 1e-6, "{text:?}: {name} is {found}, expected {value}");
        }
    }

    #[test]
    fn lines_are_judged_as_c4_does() {
        let text = "A heading\n\nThis is one. This is two.[12] \nTwo words.\nThis goes on...\n\
                    Please enable JavaScript now.\nSee our privacy policy here.\n\
                    Is { a lorem Ipsum line here?";
        check(
            text,
            &[
                ("c4_sentences", 3.0),
                ("c4_lines", 2.0 / 7.0),
                ("lorem_ipsum", 1.0),
                ("curly_brackets", 1.0),
                ("javascript_lines", 1.0),
                ("policy_lines", 1.0),
            ],
        );
        assert_eq!(without_citations("a[1][edit] [b] [citation needed]."), "a [b] .");
        assert_eq!(without_citations("a [b"), "a [b");
    }

    #[test]
    fn lines_are_judged_as_fineweb_does() {
        // Lines: 31 characters without an end; 30 with one; the second again. 93 characters in all.
        let long = "x".repeat(31);
        let short = format!("{}.", "y".repeat(29));
        check(
            &format!("{long}\n{short}\n\n{short}\n"),
            &[
                ("line_punctuation", 2.0 / 3.0),
                ("short_lines", 2.0 / 3.0),
                ("duplicate_chars", 30.0 / 91.0),
                ("newlines", 4.0 / 5.0),
            ],
        );
    }
}
