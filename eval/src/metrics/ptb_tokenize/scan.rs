//! The few scanning steps that the lexer's rules are made of.

/// What a rule matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hit {
    /// Characters of the token.
    pub(super) length: usize,
    /// Characters the rule saw, its lookahead included: the longest reach wins.
    pub(super) reach: usize,
}

impl Hit {
    pub(super) fn of(length: usize) -> Self {
        Self { length, reach: length }
    }

    pub(super) fn looking_ahead(length: usize, reach: usize) -> Self {
        Self { length, reach }
    }
}

/// End of the run of characters at `from` that `keep` holds for.
pub(super) fn run(s: &[char], from: usize, keep: impl Fn(char) -> bool) -> usize {
    let rest = s.get(from..).unwrap_or_default();
    from + rest.iter().take_while(|&&c| keep(c)).count()
}

/// End of a letter followed by letters and digits at `from`.
pub(super) fn letters_and_digits(s: &[char], from: usize) -> Option<usize> {
    s.get(from).filter(|c| c.is_alphabetic())?;
    Some(run(s, from, char::is_alphanumeric))
}

/// Whether `s` starts with `word`, in any case, where `word` is ASCII in lower case.
pub(super) fn starts_with(s: &[char], word: &str) -> bool {
    let mut chars = s.iter();
    word.chars().all(|w| {
        chars
            .next()
            .is_some_and(|&c| c.to_ascii_lowercase() == w || (w == '\'' && is_apostrophe(c)))
    })
}

pub(super) fn is_apostrophe(c: char) -> bool {
    matches!(c, '\'' | '\u{92}' | '\u{2019}')
}

/// Whether the lexer skips `c` between tokens.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace()
}
