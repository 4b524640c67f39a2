//! Penn Treebank tokens of a caption, as the official caption metrics see them: `CoreNLP` 3.4.1
//! with `-preserveLines -lowerCase`, after which pycocoevalcap drops the punctuation tokens.
//!
//! The lexer is a list of rules; at each position the longest match wins, and the earlier rule wins
//! a tie. A rule may look ahead: then what it saw counts for the contest, but is not consumed.
//! Unlike the original, no character of a caption ends the line, so a stray form feed cannot shift
//! the captions after it. Rules for markup, accented contractions and emoticons are left out.

mod abbreviations;
mod far_rules;
mod rules;
mod scan;

use far_rules::Ahead;
use rustc_hash::FxHashMap;
use scan::{Hit, is_space};

use super::vocabulary::Vocabulary;

/// Characters at which the original ends a line, and thereby gives every later caption to another picture. The line feed
/// is not among them, as pycocoevalcap takes it out, and U+0085 was seen not to end one.
pub const LINE_ENDS: [char; 5] = ['\r', '\u{b}', '\u{c}', '\u{2028}', '\u{2029}'];

/// Tokens that pycocoevalcap drops. The bracket names are absent: the official list has them in
/// upper case, which never equals the lower-cased token, so brackets stay in the caption.
const PUNCTUATION: [&str; 13] =
    ["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"];

/// The lower-cased tokens of a caption without punctuation.
///
/// A token may hold a no-break space: the lexer joins phone numbers and mixed fractions with it.
pub fn ptb_tokens(caption: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    PtbTokenizer::default().each_token(caption, |token| tokens.push(token.to_owned()));
    tokens
}

/// The tokenizer with what it knows of words that it has met: rules look ahead and never back, so that
/// letters between spaces, and whatever ends a caption, have the same tokens wherever they stand.
#[derive(Default)]
pub struct PtbTokenizer {
    vocabulary: Vocabulary,
    /// Tokens of letters, with a comma or without, before a space.
    inner: FxHashMap<String, Box<[u32]>>,
    /// Tokens of the last word of a caption.
    last: FxHashMap<String, Box<[u32]>>,
}

/// Words that a tokenizer remembers.
const WORDS_MAX: usize = 1 << 20;

/// Bytes of a word that it remembers.
const WORD_BYTES_MAX: usize = 32;

impl PtbTokenizer {
    /// Calls `take` with each token of a caption.
    pub fn each_token(&mut self, caption: &str, mut take: impl FnMut(&str)) {
        let mut numbers = Vec::new();
        self.add_numbers(caption, &mut numbers);
        for number in numbers {
            take(self.vocabulary.text(number));
        }
    }

    /// The words that there are.
    pub(crate) fn vocabulary(&mut self) -> &mut Vocabulary {
        &mut self.vocabulary
    }

    /// Adds the numbers of a caption's tokens in the vocabulary.
    pub(crate) fn add_numbers(&mut self, caption: &str, numbers: &mut Vec<u32>) {
        let Self { vocabulary, inner, last } = self;
        let is_plain = |byte: u8| byte == b'\n' || (b' '..0x7f).contains(&byte) && byte != b'&';
        if !caption.bytes().all(is_plain) {
            lex(&unescape(caption), 0, Until::End, &mut |token| {
                numbers.push(vocabulary.number(token));
            });
            return;
        }
        // Made when a word needs the rules; of plain captions, characters are bytes.
        let mut chars = Vec::new();
        let mut at = 0;
        while let Some(spaces) = caption[at..].find(|c| c != ' ' && c != '\n') {
            at += spaces;
            let word = caption[at..].split([' ', '\n']).next().unwrap_or_default();
            let is_last = at + word.len() == caption.len();
            let letters = word.strip_suffix(',').unwrap_or(word);
            let is_known = is_last || letters.bytes().all(|byte| byte.is_ascii_alphabetic());
            if is_known && word.len() <= WORD_BYTES_MAX {
                let known = if is_last { &mut *last } else { &mut *inner };
                if let Some(tokens) = known.get(word) {
                    numbers.extend_from_slice(tokens);
                } else {
                    let tokens = word_numbers(word, is_last, vocabulary);
                    numbers.extend_from_slice(&tokens);
                    if known.len() < WORDS_MAX {
                        known.insert(word.to_owned(), tokens);
                    }
                }
                at += word.len();
            } else {
                if chars.is_empty() {
                    chars = caption.chars().collect();
                }
                let mut take = |token: &str| numbers.push(vocabulary.number(token));
                at = lex(&chars, at, Until::Space, &mut take);
            }
        }
    }
}

fn word_numbers(word: &str, is_last: bool, vocabulary: &mut Vocabulary) -> Box<[u32]> {
    let text: Vec<char> = word.chars().chain((!is_last).then_some(' ')).collect();
    let mut tokens = Vec::new();
    lex(&text, 0, Until::End, &mut |token: &str| tokens.push(vocabulary.number(token)));
    tokens.into()
}

/// How far to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    End,
    /// Up to a space that no token takes.
    Space,
}

/// Gives the tokens from `at` on to `take`. Where it ended comes back.
fn lex(chars: &[char], mut at: usize, until: Until, take: &mut impl FnMut(&str)) -> usize {
    let mut ahead = Ahead::default();
    while at < chars.len() {
        if is_space(chars[at]) {
            if until == Until::Space {
                break;
            }
            at += 1;
            continue;
        }
        let (length, token) = next_token(chars, at, &mut ahead);
        let token = token.to_lowercase();
        if !token.is_empty() && !PUNCTUATION.contains(&token.as_str()) {
            take(&token);
        }
        at += length;
    }
    at
}

type Rule = fn(&[char]) -> Option<Hit>;

/// In the order of the original grammar, which decides ties; addresses, which look far ahead, stand between these
/// and [`LATER_RULES`].
const FIRST_RULES: [Rule; 5] = [
    rules::assimilation,
    rules::word_before_not,
    rules::not,
    rules::word_before_clitic,
    rules::word,
];

/// Those after the addresses.
const LATER_RULES: [Rule; 14] = [
    rules::handle,
    rules::clitic,
    rules::date,
    rules::number,
    rules::fraction,
    abbreviations::abbreviation,
    rules::apostrophe_word,
    rules::word_before_inner_punctuation,
    rules::phone,
    rules::thing,
    rules::slashed,
    rules::initials_joined,
    rules::ellipsis,
    rules::repeated_mark,
];

/// Length and text of the token at `at`, where no space is.
fn next_token(chars: &[char], at: usize, ahead: &mut Ahead) -> (usize, String) {
    let rest = &chars[at..];
    let first = FIRST_RULES.iter().map(|rule| rule(rest));
    let far = [ahead.web_address(chars, at), ahead.email(chars, at)];
    let later = LATER_RULES.iter().map(|rule| rule(rest));
    let hits = first.chain(far).chain(later).flatten();
    let longer = |best: Hit, hit: Hit| if hit.reach > best.reach { hit } else { best };
    match hits.reduce(longer) {
        Some(hit) => (hit.length, token_text(&rest[..hit.length])),
        None => (1, symbol(rest[0])),
    }
}

/// Token text: spaces inside become no-break, any ellipsis three stops, a dash two hyphens.
fn token_text(chars: &[char]) -> String {
    let text: String = chars.iter().map(|&c| if is_space(c) { '\u{a0}' } else { c }).collect();
    let is_ellipsis = chars.len() > 1 && chars.iter().all(|&c| c == '.' || is_space(c));
    match text.as_str() {
        "---" | "----" => "--".into(),
        _ if is_ellipsis => "...".into(),
        _ => text,
    }
}

/// What a single character that no rule takes becomes; empty for those the lexer skips.
fn symbol(c: char) -> String {
    match c {
        '(' => "-lrb-".into(),
        ')' => "-rrb-".into(),
        '[' => "-lsb-".into(),
        ']' => "-rsb-".into(),
        '{' => "-lcb-".into(),
        '}' => "-rcb-".into(),
        '"' | '\u{201c}' | '\u{201d}' | '\u{ab}' | '\u{bb}' => "''".into(),
        '\u{2018}' | '\u{2019}' => "'".into(),
        '\u{2013}' | '\u{2014}' => "--".into(),
        '\u{2026}' => "...".into(),
        '\u{a3}' => "#".into(),
        '\u{a4}' | '\u{20ac}' => "$".into(),
        '\u{a2}' => "cents".into(),
        c if c.is_control() => String::new(),
        c => c.to_string(),
    }
}

/// Characters of the caption with the five XML entities decoded.
fn unescape(caption: &str) -> Vec<char> {
    const ENTITIES: [(&str, char); 5] =
        [("&apos;", '\''), ("&quot;", '"'), ("&lt;", '<'), ("&gt;", '>'), ("&amp;", '&')];
    let mut chars = Vec::new();
    let mut rest = caption;
    while let Some(first) = rest.chars().next() {
        let entity = ENTITIES.iter().find(|(name, _)| rest.starts_with(name));
        let (c, length) = entity.map_or((first, first.len_utf8()), |&(name, c)| (c, name.len()));
        chars.push(c);
        rest = &rest[length..];
    }
    chars
}

#[cfg(test)]
mod tests {
    use super::ptb_tokens;

    #[test]
    fn tokens_are_those_of_the_official_tool() {
        let check = |caption: &str, expected: &str| {
            assert_eq!(ptb_tokens(caption).join(" "), expected, "tokens of {caption:?}");
        };
        check("A man doesn't wait.", "a man does n't wait");
        check("it cannot be RV'S (red)", "it can not be rv 's -lrb- red -rrb-");
        check("Dunkin' Donuts at six o'clock", "dunkin' donuts at six o'clock");
        check("M&Ms, AT&T and at&t", "m&m s at&t and at & t");
        check("U.S. Open on Division St.", "u.s. open on division st.");
        check("symphony no.1? no.", "symphony no. 1 no");
        check("paid $14.99 at 4:38 on 10/27/2013", "paid $ 14.99 at 4:38 on 10/27/2013");
        check("22 3/4 street, call 800 643 2112", "22\u{a0}3/4 street call 800\u{a0}643\u{a0}2112");
        check("his/her well-worn - hat -- and/or", "his/her well-worn hat and/or");
        check("see www.nano-macro.com or @idris", "see www.nano-macro.com or @idris");
        check("a.b.com.1,c.org/x.y", "a.b.com .1 c.org/x.y");
        check("me,you@here.com!", "me,you@here com");
        check("pay a$b.com", "pay a $ b.com");
        check("www.a.info www.a.world.", "www.a.info www.a.world");
        check("open b.com/ and c.org//a", "open b.com / and c.org//a");
        check("one.com,two.com,three", "one.com two.com three");
        check("www.a.com,www.b.org", "www.a.com www.b.org");
        check("at www.a.com/x.yy now", "at www.a.com/x.yy now");
        check("mail -a@b or a@b and c@d", "mail a@b or a@b and c@d");
        check("a -b.com www.x-.info/", "a b.com www.x-.info /");
        check("www.a.world/- www.com/www.a", "www.a.world / www.com/www.a");
        check("www..www.-.com", "www www.-.com");
        check("", "");
    }

    /// Each would take an hour if every token looked through the rest.
    #[test]
    fn long_texts_without_spaces_have_as_many_tokens_as_their_parts() {
        for part in ["a,", "a.1a.", "www.1$", "a.com-", "1@a@@"] {
            let n_tokens = |n: usize| ptb_tokens(&part.repeat(n)).len();
            let of_each = n_tokens(200) - n_tokens(100);
            assert!(of_each > 0, "{part}");
            assert_eq!(n_tokens(100_100), n_tokens(100) + 1000 * of_each, "{part}");
        }
        assert_eq!(ptb_tokens(&".".repeat(1 << 19)).len(), 0);
    }

    #[test]
    fn line_breaks_inside_a_caption_are_spaces() {
        assert_eq!(ptb_tokens("a\rb\u{c}c\u{2028}d\ne"), ["a", "b", "c", "d", "e"]);
    }
}
