//! A text as tokens: what Gopher's rules call words.
//!
//! A token is a run of letters, digits and underscores, also with the marks inside of a number like
//! `3.5`; what follows an apostrophe inside a word, with it, as in `Newton` and `'s`; or a run of one
//! other mark. datatrove leaves this step to a tokenizer for each language, and its rules take any;
//! this one agrees with that for English in nearly all that the rules look at.

/// One token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    /// First byte.
    pub(super) start: u32,
    /// First byte after it.
    pub(super) end: u32,
    /// Length in characters.
    pub(super) chars: u32,
    /// Hash of its bytes.
    pub(super) hash: u64,
    /// What it is made of.
    pub(super) kind: TokenKind,
    /// Whether it is no run of marks.
    is_word: bool,
}

/// What a token is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// A word with a letter.
    Alphabetic,
    /// A number, or anything else that is no punctuation.
    Other,
    /// Punctuation only.
    Punctuation,
}

/// Puts the tokens of a text into `tokens`, which is emptied before.
pub(super) fn tokenize(text: &str, tokens: &mut Vec<Token>) {
    tokens.clear();
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let (c, width) = char_at(text, i);
        if c.is_whitespace() {
            i += width;
            continue;
        }
        let is_suffix = matches!(c, '\'' | '\u{2019}')
            && tokens.last().is_some_and(|last| last.end as usize == i && last.is_word)
            && is_word_at(text, i + width);
        let token = if is_word(c) || is_suffix { word(text, i) } else { marks(text, i, c, width) };
        i = token.end as usize;
        tokens.push(token);
    }
}

/// The character at a byte, and how many bytes it takes.
#[inline]
fn char_at(text: &str, i: usize) -> (char, usize) {
    let byte = text.as_bytes()[i];
    if byte < 0x80 {
        return (char::from(byte), 1);
    }
    let c = text[i..].chars().next().unwrap_or_default();
    (c, c.len_utf8())
}

/// What a regular expression calls `\w`.
#[inline]
pub(super) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn word(text: &str, start: usize) -> Token {
    let bytes = text.as_bytes();
    let (mut end, mut chars, mut has_letter, mut has_digit) = (start, 0, false, false);
    while end < bytes.len() {
        let (c, width) = char_at(text, end);
        if is_word(c) {
            has_letter |= c.is_alphabetic();
            has_digit |= c != '_';
        } else if end > start
            && !(matches!(c, '.' | ',')
                && is_digit_at(bytes, end - 1)
                && is_digit_at(bytes, end + 1))
        {
            break;
        }
        end += width;
        chars += 1;
    }
    let kind = match (has_letter, has_digit) {
        (true, _) => TokenKind::Alphabetic,
        (false, true) => TokenKind::Other,
        (false, false) => TokenKind::Punctuation,
    };
    let hash = hash(&bytes[start..end]);
    Token { start: start as u32, end: end as u32, chars, hash, kind, is_word: true }
}

fn is_word_at(text: &str, i: usize) -> bool {
    i < text.len() && is_word(char_at(text, i).0)
}

fn is_digit_at(bytes: &[u8], i: usize) -> bool {
    bytes.get(i).is_some_and(u8::is_ascii_digit)
}

/// A run of one mark.
fn marks(text: &str, start: usize, mark: char, width: usize) -> Token {
    let (mut end, mut chars) = (start + width, 1);
    while end < text.len() && char_at(text, end).0 == mark {
        end += width;
        chars += 1;
    }
    let kind = if is_punctuation(mark) { TokenKind::Punctuation } else { TokenKind::Other };
    let hash = hash(&text.as_bytes()[start..end]);
    Token { start: start as u32, end: end as u32, chars, hash, kind, is_word: false }
}

/// Marks that are no words of their own: the punctuation of Gopher's rules in datatrove. Symbols
/// like `•`, `©` and `×` are not among them.
fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation()
        || c.is_control()
        || is_terminal(c)
        || matches!(
            c,
            '«' | '´'
                | '»'
                | '–'
                | '—'
                | '’'
                | '“'
                | '”'
                | '„'
                | '…'
                | '∶'
                | '━'
                | '►'
                | '、'
                | '〈'
                | '〉'
                | '《'
                | '》'
                | '「'
                | '」'
                | '【'
                | '】'
                | '％'
                | '＆'
                | '（'
                | '）'
                | '，'
                | '：'
                | '；'
                | '～'
        )
}

/// Marks that end a sentence in any script (Unicode's property `Sentence_Terminal`).
pub(super) fn is_terminal(c: char) -> bool {
    matches!(u32::from(c),
        0x21 | 0x2E | 0x3F | 0x589 | 0x61D..=0x61F | 0x6D4 | 0x700..=0x702 | 0x7F9 | 0x837 | 0x839
        | 0x83D..=0x83E | 0x964..=0x965 | 0x104A..=0x104B | 0x1362 | 0x1367..=0x1368 | 0x166E
        | 0x1735..=0x1736 | 0x17D4..=0x17D6 | 0x17D9..=0x17DA | 0x1803 | 0x1809 | 0x1944..=0x1945
        | 0x1AA8..=0x1AAB | 0x1B5A..=0x1B5B | 0x1B5E..=0x1B5F | 0x1B7D..=0x1B7E
        | 0x1C3B..=0x1C3C | 0x1C7E..=0x1C7F | 0x203C..=0x203D | 0x2047..=0x2049 | 0x2E2E | 0x2E3C
        | 0x2E53..=0x2E54 | 0x3002 | 0xA4FF | 0xA60E..=0xA60F | 0xA6F3 | 0xA6F7 | 0xA876..=0xA877
        | 0xA8CE..=0xA8CF | 0xA92F | 0xA9C8..=0xA9C9 | 0xAA5D..=0xAA5F | 0xAAF0..=0xAAF1 | 0xABEB
        | 0xFE52 | 0xFE56..=0xFE57 | 0xFF01 | 0xFF0E | 0xFF1F | 0xFF61)
}

/// An odd multiplier with well-mixed bits (the golden ratio).
const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;

/// A 64-bit hash of bytes that never changes: figures are made from it.
#[inline]
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let mut hash = (bytes.len() as u64).wrapping_mul(MULTIPLIER);
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        hash = mix(hash ^ u64::from_le_bytes(chunk.try_into().expect("a chunk has 8 bytes")));
    }
    let mut last = [0; 8];
    last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    mix(hash ^ u64::from_le_bytes(last))
}

/// Every bit of the result depends on every bit of `x`; different numbers stay different.
#[inline]
pub(super) fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 32)).wrapping_mul(MULTIPLIER);
    let x = (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x ^ (x >> 32)
}

#[cfg(test)]
mod tests {
    use super::TokenKind::{Alphabetic, Other, Punctuation};
    use super::*;

    #[test]
    fn words_numbers_and_marks_are_told_apart() {
        let check = |text: &str, expected: &[&str]| {
            let mut tokens = Vec::new();
            tokenize(text, &mut tokens);
            let found: Vec<_> =
                tokens.iter().map(|t| &text[t.start as usize..t.end as usize]).collect();
            assert_eq!(found, expected, "{text}");
            let chars: Vec<_> = found.iter().map(|token| token.chars().count() as u32).collect();
            assert_eq!(tokens.iter().map(|t| t.chars).collect::<Vec<_>>(), chars);
        };
        check(
            "Don't stop... it's 3.5% 'off'!?",
            &["Don", "'t", "stop", "...", "it", "'s", "3.5", "%", "'", "off", "'", "!", "?"],
        );
        check("l’été_1 — ¿qué?", &["l", "’été_1", "—", "¿", "qué", "?"]);
        check("1,000.5. a.b 7.", &["1,000.5", ".", "a", ".", "b", "7", "."]);
        check(" \n\t ", &[]);
        check("日本語。", &["日本語", "。"]);
    }

    #[test]
    fn kinds_say_what_a_token_is_made_of() {
        let kinds = |text: &str| {
            let mut tokens = Vec::new();
            tokenize(text, &mut tokens);
            tokens.iter().map(|t| t.kind).collect::<Vec<_>>()
        };
        assert_eq!(
            kinds("a1 12 ... • © __"),
            [Alphabetic, Other, Punctuation, Other, Other, Punctuation]
        );
    }

    #[test]
    fn hashes_tell_zeros_and_lengths_apart() {
        let inputs: [&[u8]; 6] = [b"", b"\0", b"\0\0", b"abcdefgh", b"abcdefgh\0", b"abcdefghi"];
        let hashes: std::collections::HashSet<_> = inputs.iter().map(|b| hash(b)).collect();
        assert_eq!(hashes.len(), inputs.len());
    }
}
