//! Figures of C4's and `FineWeb`'s rules, which look at lines, as datatrove computes them.

use std::borrow::Cow;

use super::counts::Counts;
use super::gopher::duplicates;
use super::measure::{Lines, Values, share};
use super::tokens::is_terminal;

/// What C4 takes for the end of a sentence.
const END_MARKS: [char; 5] = ['.', '?', '!', '"', '\''];
/// Fewest words of a line that C4 keeps.
const LINE_WORDS_MIN: usize = 3;
/// Longest word of a line that C4 keeps, in characters.
const WORD_CHARS_MAX: usize = 1000;
/// Phrases, in lower case, of lines about the use of a site.
const POLICY_PHRASES: [&str; 6] = [
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
];
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

/// Adds the figures of C4.
pub(super) fn c4(lines: &Lines<'_>, values: &mut Values) {
    let (mut lorem, mut curly, mut script, mut policy) = (0, 0, 0, 0);
    let (mut kept, mut n_sentences) = (0, 0);
    for line in &lines.full {
        let line = line.trim();
        let lower = line.to_lowercase();
        let has_policy = POLICY_PHRASES.iter().any(|phrase| lower.contains(phrase));
        let has_script = lower.contains("javascript");
        lorem += usize::from(lower.contains("lorem ipsum"));
        curly += usize::from(line.contains('{'));
        script += usize::from(has_script);
        policy += usize::from(has_policy);
        if is_sentence_line(line) && !has_script && !has_policy {
            kept += 1;
            n_sentences += sentences(line);
        }
    }
    values.push("c4_sentences", n_sentences as f64);
    values.push("c4_lines", share(kept, lines.full.len()));
    values.push("lorem_ipsum", f64::from(lorem as u32));
    values.push("curly_brackets", f64::from(curly as u32));
    values.push("javascript_lines", f64::from(script as u32));
    values.push("policy_lines", f64::from(policy as u32));
}

/// Whether C4 takes a line for running text.
fn is_sentence_line(line: &str) -> bool {
    let mut n_words = 0;
    for word in line.split_whitespace() {
        n_words += 1;
        if word.len() > WORD_CHARS_MAX && word.chars().count() > WORD_CHARS_MAX {
            return false;
        }
    }
    let line = without_citations(line);
    n_words >= LINE_WORDS_MIN && line.ends_with(END_MARKS) && !line.ends_with("...")
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
    let full = &lines.full;
    let n_ended = full.iter().filter(|line| line.chars().next_back().is_some_and(is_terminal));
    let is_short = |line: &&&str| {
        line.len() <= SHORT_LINE_CHARS || line.chars().nth(SHORT_LINE_CHARS).is_none()
    };
    let newlines = text.bytes().filter(|&byte| byte == b'\n').count();
    let (.., chars) = duplicates(full.iter().copied(), counts);
    values.push("line_punctuation", share(n_ended.count(), full.len()));
    values.push("short_lines", share(full.iter().filter(is_short).count(), full.len()));
    values.push("duplicate_chars", share(chars, n_chars - newlines));
    values.push("newlines", share(newlines, n_tokens));
}

/// How many sentences a line has: one, and one more for each end with words after it.
pub(super) fn sentences(line: &str) -> usize {
    let mut words = line.split_whitespace().peekable();
    let mut n = 0;
    while let Some(word) = words.next() {
        n += usize::from(words.peek().is_none() || ends_sentence(word));
    }
    n
}

/// Whether a word carries the end of a sentence.
fn ends_sentence(word: &str) -> bool {
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
        let check = |line: &str, expected: usize| assert_eq!(sentences(line), expected, "{line}");
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
