//! Words of a text as NLTK 3.10's `NLTKWordTokenizer` cuts them: the Penn Treebank's rules as a list of
//! replacements, each over the whole text. The official tool of NExT-OE counts on these words.
//!
//! Texts are taken as one sentence: NLTK's `word_tokenize` first looks for the ends of sentences with a
//! trained model, which tells full stops at the end of a sentence from those of abbreviations.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

use super::vqa::python_words;

/// The words of a text, punctuation among them.
pub fn nltk_words(text: &str) -> Vec<String> {
    let rules = &*RULES;
    let text = replaced(&rules.starting_quotes, text.to_owned());
    let text = replaced(&rules.punctuation, after_opening_apostrophes(&text));
    let text = replaced(&rules.rest, format!(" {text} "));
    python_words(&text).map(str::to_owned).collect()
}

/// Replacements in the order in which they are made.
struct Rules {
    starting_quotes: Vec<Rule>,
    punctuation: Vec<Rule>,
    /// Made with a space before and behind the text.
    rest: Vec<Rule>,
}

/// A pattern and what takes its place.
type Rule = (Regex, &'static str);

static RULES: LazyLock<Rules> = LazyLock::new(|| Rules {
    starting_quotes: rules(&[
        ("([«“‘„]|`+)", " $1 "),
        ("^\"", "``"),
        ("(``)", " $1 "),
        (r#"([ (\[{<])("|'{2})"#, "$1 `` "),
    ]),
    punctuation: rules(&[
        (r#"([^.])(\.)([\])}>"' »”’]*)[\s\x1c-\x1f]*$"#, "$1 $2 $3 "),
        (r"([:,])([^\d])", " $1 $2"),
        ("([:,])$", " $1 "),
        (r"\.{2,}", " $0 "),
        ("[;@#$%&]", " $0 "),
        (r"[\x{2012}-\x{2015}]", " $0 "),
        (r#"([^.])(\.)([\])}>"']*)[\s\x1c-\x1f]*$"#, "$1 $2$3 "),
        ("[?!]", " $0 "),
        ("([^'])' ", "$1 ' "),
        ("[*]", " $0 "),
        (r"[\]\[(){}<>]", " $0 "),
        ("--", " -- "),
    ]),
    rest: rules(&[
        ("([»”’])", " $1 "),
        ("''", " '' "),
        ("\"", " '' "),
        (r"[\s\x1c-\x1f]+", " "),
        ("([^' ])('[sS]|'[mM]|'[dD]|') ", "$1 $2 "),
        ("([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", "$1 $2 "),
        (r"(?i)\b(can)(not)\b", " $1 $2 "),
        (r"(?i)\b(d)('ye)\b", " $1 $2 "),
        (r"(?i)\b(gim)(me)\b", " $1 $2 "),
        (r"(?i)\b(gon)(na)\b", " $1 $2 "),
        (r"(?i)\b(got)(ta)\b", " $1 $2 "),
        (r"(?i)\b(lem)(me)\b", " $1 $2 "),
        (r"(?i)\b(more)('n)\b", " $1 $2 "),
        (r"(?i)\b(wan)(na)(\s)", " $1 $2 $3"),
        (r"(?i) ('t)(is)\b", " $1 $2 "),
        (r"(?i) ('t)(was)\b", " $1 $2 "),
    ]),
});

fn rules(patterns: &[(&str, &'static str)]) -> Vec<Rule> {
    let rule = |(pattern, with): &(&str, &'static str)| {
        (Regex::new(pattern).expect("the patterns are constants that a test compiles"), *with)
    };
    patterns.iter().map(rule).collect()
}

fn replaced(rules: &[Rule], mut text: String) -> String {
    for (pattern, with) in rules {
        if let Cow::Owned(changed) = pattern.replace_all(&text, *with) {
            text = changed;
        }
    }
    text
}

/// What may follow an apostrophe as the end of a word.
const CLITICS: [&str; 8] = ["re", "ve", "ll", "m", "t", "s", "d", "n"];

/// Puts a space behind an apostrophe that opens a word, unless the word is the end of one.
fn after_opening_apostrophes(text: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut out = String::with_capacity(text.len());
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        out.push(c);
        if c == '\'' && !is_word(before) {
            let rest = &text[at + 1..];
            let word = &rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())];
            let is_clitic = CLITICS.iter().any(|clitic| word.eq_ignore_ascii_case(clitic));
            if !word.is_empty() && !is_clitic {
                out.push(' ');
            }
        }
        before = c;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with NLTK 3.10.4's `NLTKWordTokenizer().tokenize`.
    const TOKENS: [(&str, &str); 40] = [
        ("from the drivers cabin", "from|the|drivers|cabin"),
        ("", ""),
        ("  a  b ", "a|b"),
        ("he's the dog's toy.", "he|'s|the|dog|'s|toy|."),
        ("they can't, won't and don't", "they|ca|n't|,|wo|n't|and|do|n't"),
        ("it costs $3.88 (about 3,36 euros).", "it|costs|$|3.88|(|about|3,36|euros|)|."),
        ("\"quoted\" words \"here\"", "``|quoted|''|words|``|here|''"),
        ("'twas 'tis gonna gimme wanna go", "'|twas|'|tis|gon|na|gim|me|wan|na|go"),
        ("wanna", "wan|na"),
        ("cannot lemme gotta", "can|not|lem|me|got|ta"),
        ("a:b c,d 1,000 1:30:", "a|:|b|c|,|d|1,000|1:30|:"),
        ("wait... what?! no.", "wait|...|what|?|!|no|."),
        ("rock 'n' roll 'em 'em's", "rock|'n|'|roll|'|em|'|em|'s"),
        ("the cats' toy 'quoted'", "the|cats|'|toy|'|quoted|'"),
        (
            "\u{201c}curly\u{201d} \u{2018}quotes\u{2019} \u{ab}g\u{bb}",
            "\u{201c}|curly|\u{201d}|\u{2018}|quotes|\u{2019}|\u{ab}|g|\u{bb}",
        ),
        ("a--b \u{2013} c \u{2014} d", "a|--|b|\u{2013}|c|\u{2014}|d"),
        ("e-mail a@b.c #1 50% x&y;z *", "e-mail|a|@|b.c|#|1|50|%|x|&|y|;|z|*"),
        ("Mr. Smith goes. Then stops.", "Mr.|Smith|goes.|Then|stops|."),
        ("end.)", "end|.|)"),
        ("end.\") ", "end|.|''|)"),
        ("''double'' ``ticks``", "''|double|''|``|ticks|``"),
        ("I'LL HE'S N'T we've they're I'm", "I|'LL|HE|'S|N'T|we|'ve|they|'re|I|'m"),
        ("tab\tnew\nline\u{1c}fs\u{1f}", "tab|new|line|fs"),
        ("d'ye more'n", "d|'ye|more|'n"),
        ("'s 'Re 'x", "'s|'Re|'|x"),
        ("na\u{ef}ve caf\u{e9}'s", "na\u{ef}ve|caf\u{e9}|'s"),
        ("a.b.", "a.b|."),
        ("a .", "a|."),
        ("[x]{y}<z>", "[|x|]|{|y|}|<|z|>"),
        ("\u{2026}", "\u{2026}"),
        ("don't.", "do|n't|."),
        ("'' ", "''"),
        ("\u{85}nel\u{a0}nb", "nel|nb"),
        ("x:\n", "x|:"),
        ("what's?", "what|'s|?"),
        ("'", "'"),
        ("a' b", "a|'|b"),
        ("'a'", "'|a|'"),
        ("_'x", "_'x"),
        ("\u{663}'x '\u{663}", "\u{663}'x|'|\u{663}"),
    ];

    /// Each text with NLTK's tokens, joined by a line.
    fn check(text: &str, expected: &str) {
        assert_eq!(nltk_words(text).join("|"), expected, "{text:?}");
    }

    #[test]
    fn words_are_those_of_nltk() {
        for (text, expected) in TOKENS {
            check(text, expected);
        }
    }
}
