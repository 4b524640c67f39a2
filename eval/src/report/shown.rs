//! Texts as a page can show them, whatever a model wrote.

use std::fmt::Write as _;

/// Characters of a text that are shown; models may write a megabyte.
const SHOWN_MAX: usize = 600;

/// The beginning of a text, with characters that are not seen, or that turn others around, as their numbers. The page escapes what HTML gives
/// a meaning.
pub(super) fn shown(text: &str) -> String {
    let mut shown = String::new();
    for (n, c) in text.chars().enumerate() {
        if n == SHOWN_MAX {
            let _ = write!(shown, " ... ({} bytes in all)", text.len());
            break;
        }
        if c == '\n' || !is_unseen(c) {
            shown.push(c);
        } else {
            let _ = write!(shown, "\\u{{{:x}}}", u32::from(c));
        }
    }
    shown
}

/// Controls, line and paragraph separators, and marks of direction.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_seen_is_spelled_and_what_is_long_is_cut() {
        assert_eq!(shown("a\nb"), "a\nb");
        assert_eq!(shown("a\0\r\u{2028}\u{202e}b"), "a\\u{0}\\u{d}\\u{2028}\\u{202e}b");
        let long = shown(&"\u{e9}".repeat(1 << 19));
        assert!(long.ends_with("\u{e9} ... (1048576 bytes in all)"), "{}", long.len());
        assert_eq!(long.chars().filter(|c| *c == '\u{e9}').count(), SHOWN_MAX);
    }
}
