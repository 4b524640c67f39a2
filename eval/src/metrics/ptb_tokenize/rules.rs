//! One function per lexer rule: what, if anything, it matches at the start of the text.

use super::scan::{Hit, is_apostrophe, is_space, letters_and_digits, run, starts_with};

/// `cannot`, `gonna`, `'tis`: one word written for two.
pub(super) fn assimilation(s: &[char]) -> Option<Hit> {
    const SPLITS: [(&str, usize); 8] = [
        ("cannot", 3),
        ("gonna", 3),
        ("gotta", 3),
        ("lemme", 3),
        ("gimme", 3),
        ("wanna", 3),
        ("'tis", 2),
        ("'twas", 2),
    ];
    let (word, first) = SPLITS.iter().find(|(word, _)| starts_with(s, word))?;
    Some(Hit::looking_ahead(*first, word.len()))
}

/// `does` before `n't`.
pub(super) fn word_before_not(s: &[char]) -> Option<Hit> {
    let end = run(s, 0, |c| c.is_ascii_alphabetic());
    let stem = end.checked_sub(1)?;
    let stem_is_word = stem > 0 && !matches!(s[stem - 1], 'n' | 'N');
    (stem_is_word && not(&s[stem..]).is_some()).then(|| Hit::looking_ahead(stem, stem + 3))
}

/// `n't`.
pub(super) fn not(s: &[char]) -> Option<Hit> {
    let [a, b, c, ..] = s else { return None };
    let same_case = matches!((a, c), ('n', 't') | ('N', 'T'));
    (same_case && is_apostrophe(*b)).then(|| Hit::of(3))
}

/// A word before `'s`, `'m`, `'d`, `'re`, `'ve` or `'ll`.
pub(super) fn word_before_clitic(s: &[char]) -> Option<Hit> {
    let end = word_end(s)?;
    let length = clitic_length(&s[end..])?;
    Some(Hit::looking_ahead(end, end + length))
}

/// `'s`, `'m`, `'d`, `'re`, `'ve`, `'ll` that no letter follows.
pub(super) fn clitic(s: &[char]) -> Option<Hit> {
    let length = clitic_length(s)?;
    let letter_follows = s.get(length).is_some_and(|c| c.is_alphabetic());
    (!letter_follows).then(|| Hit::looking_ahead(length, length + 1))
}

fn clitic_length(s: &[char]) -> Option<usize> {
    if !is_apostrophe(*s.first()?) {
        return None;
    }
    let pair: String = s[1..].iter().take(2).collect();
    if ["re", "RE", "ve", "VE", "ll", "LL"].contains(&pair.as_str()) {
        return Some(3);
    }
    matches!(s.get(1)?, 's' | 'm' | 'd' | 'S' | 'M' | 'D').then_some(2)
}

/// Letters, then letters and digits; a full stop, `!` or `?` between letters stays inside.
pub(super) fn word(s: &[char]) -> Option<Hit> {
    word_end(s).map(Hit::of)
}

fn word_end(s: &[char]) -> Option<usize> {
    let mut end = letters_and_digits(s, 0)?;
    while matches!(s.get(end), Some('.' | '!' | '?'))
        && let Some(next) = letters_and_digits(s, end + 1)
    {
        end = next;
    }
    Some(end)
}

/// `phone.` in `phone.,`: a word, a full stop and a comma, semicolon or colon.
pub(super) fn word_before_inner_punctuation(s: &[char]) -> Option<Hit> {
    let end = word_end(s)?;
    let stop = s.get(end) == Some(&'.') && matches!(s.get(end + 1), Some(',' | ';' | ':'));
    stop.then(|| Hit::looking_ahead(end + 1, end + 2))
}

/// `@name` and `#topic`.
pub(super) fn handle(s: &[char]) -> Option<Hit> {
    let marked = matches!(s.first()?, '@' | '#') && s.get(1).is_some_and(|c| c.is_alphabetic());
    marked.then(|| Hit::of(run(s, 2, |c| c.is_alphanumeric() || c == '_')))
}

/// `10/27/2013`, `1-2-99`.
pub(super) fn date(s: &[char]) -> Option<Hit> {
    let month = digits(s, 0, 1, 2)?;
    let day = digits(s, after(s, month, "-/")?, 1, 2)?;
    digits(s, after(s, day, "-/")?, 2, 4).map(Hit::of)
}

/// `14.99`, `4:38`, `-150,000`, `:30`.
pub(super) fn number(s: &[char]) -> Option<Hit> {
    let sign = usize::from(matches!(s.first(), Some('-' | '+')));
    let mut end = run(s, sign, |c| c.is_ascii_digit());
    while matches!(s.get(end), Some('.' | ':' | ','))
        && s.get(end + 1).is_some_and(char::is_ascii_digit)
    {
        end = run(s, end + 1, |c| c.is_ascii_digit());
    }
    (end > sign).then(|| Hit::of(end))
}

/// `3/4` and `22 3/4`.
pub(super) fn fraction(s: &[char]) -> Option<Hit> {
    let top_and_bottom = |from| {
        let top = digits(s, from, 1, 4)?;
        digits(s, after(s, top, "/\u{2044}")?, 1, 4)
    };
    let whole = digits(s, 0, 1, 4).and_then(|end| after(s, end, "- \u{a0}"));
    whole.and_then(top_and_bottom).or_else(|| top_and_bottom(0)).map(Hit::of)
}

/// Telephone numbers, whose parts may be split by spaces, hyphens or full stops.
pub(super) fn phone(s: &[char]) -> Option<Hit> {
    let gap = "- \u{a0}";
    let mut best = None;
    // Lengths are tried in full, since a regular expression would also back off.
    let mut keep = |end: Option<usize>| best = best.max(end);
    let starts = digit_ends(s, 0, 2, 4).filter_map(|end| after(s, end, gap));
    let starts: Vec<usize> = starts.collect();
    let seconds = starts.iter().flat_map(|&at| digit_ends(s, at, 2, 4));
    let seconds: Vec<usize> = seconds.filter_map(|end| after(s, end, gap)).collect();
    for &area in starts.iter().chain(&seconds) {
        for end in digit_ends(s, area, 3, 4) {
            keep(digits(s, after(s, end, gap).unwrap_or(end), 3, 5));
        }
    }
    best.map(Hit::of)
}

/// Letters and digits joined by single hyphens, after an optional `d'`, `o'` or `l'`.
pub(super) fn thing(s: &[char]) -> Option<Hit> {
    let part = |from: usize| {
        let elided = matches!(s.get(from), Some('d' | 'D' | 'o' | 'O' | 'l' | 'L'))
            && s.get(from + 1).is_some_and(|&c| is_apostrophe(c))
            && s.get(from + 2).is_some_and(|c| c.is_alphanumeric());
        let start = if elided { from + 2 } else { from };
        let end = run(s, start, char::is_alphanumeric);
        (end > start).then_some(end)
    };
    let mut end = part(0)?;
    while s.get(end) == Some(&'-')
        && let Some(next) = part(end + 1)
    {
        end = next;
    }
    Some(Hit::of(end))
}

/// `his/her`: two or three hyphenated words with slashes between.
pub(super) fn slashed(s: &[char]) -> Option<Hit> {
    const SLASHES_MAX: usize = 2;
    let part = |from: usize| {
        let mut end = run(s, from, |c| c.is_ascii_alphanumeric());
        if end == from {
            return None;
        }
        for _ in 0..2 {
            let next = run(s, end + 1, |c| c.is_ascii_alphabetic());
            if s.get(end) != Some(&'-') || next == end + 1 {
                break;
            }
            end = next;
        }
        Some(end)
    };
    let mut end = part(0)?;
    let mut slashes = 0;
    while slashes < SLASHES_MAX
        && s.get(end) == Some(&'/')
        && let Some(next) = part(end + 1)
    {
        end = next;
        slashes += 1;
    }
    (slashes > 0).then(|| Hit::of(end))
}

/// `AT&T`: capitals joined by `&` or `+`.
pub(super) fn initials_joined(s: &[char]) -> Option<Hit> {
    let capital = |c: char| c.is_ascii_uppercase();
    let first = run(s, 0, capital);
    let mut end = first;
    while end > 0
        && matches!(s.get(end), Some('&' | '+'))
        && s.get(end + 1).is_some_and(|&c| capital(c))
    {
        end = run(s, end + 1, capital);
    }
    (end > first).then(|| Hit::of(end))
}

/// Words whose apostrophe belongs to them: `graffiti'ed`, `o'clock`, `dunkin'`, `c'mon`.
pub(super) fn apostrophe_word(s: &[char]) -> Option<Hit> {
    const WHOLE: [&str; 8] =
        ["dunkin'", "somethin'", "ol'", "'em", "c'mon", "'cause", "s'mores", "li'l"];
    let listed = WHOLE.iter().filter(|w| starts_with(s, w)).map(|w| w.len()).max();
    let vowels = apostrophe_between_vowels(s);
    let initial = apostrophe_after_initial(s);
    listed.max(vowels).max(initial).map(Hit::of)
}

/// Letters, a vowel or `y`, an apostrophe, a vowel or capital, letters.
fn apostrophe_between_vowels(s: &[char]) -> Option<usize> {
    let at = run(s, 0, char::is_alphabetic);
    let before = at > 0 && "aeiouyAEIOUY".contains(s[at - 1]);
    let apostrophe = s.get(at).is_some_and(|&c| is_apostrophe(c));
    let after = s.get(at + 1).is_some_and(|&c| c.is_ascii_uppercase() || "aeiou".contains(c));
    (before && apostrophe && after).then(|| run(s, at + 1, char::is_alphabetic))
}

/// A capital or `n`, an apostrophe and at least two letters: `D'Arcy`, `n'all`.
fn apostrophe_after_initial(s: &[char]) -> Option<usize> {
    let [first, apostrophe, ..] = s else { return None };
    let initial = (first.is_ascii_uppercase() && *first != 'I') || *first == 'n';
    let end = run(s, 2, char::is_alphabetic);
    (initial && is_apostrophe(*apostrophe) && end >= 4).then_some(end)
}

/// `...` and `. . .`.
pub(super) fn ellipsis(s: &[char]) -> Option<Hit> {
    const STOPS_MAX: usize = 5;
    // Of more stops than these the whole run need not be known.
    let stops = run(&s[..s.len().min(STOPS_MAX + 1)], 0, |c| c == '.');
    if (3..=STOPS_MAX).contains(&stops) {
        return Some(Hit::of(stops));
    }
    let mut end = 0;
    let mut count = 0;
    while count < 4 && s.get(end) == Some(&'.') && s.get(end + 1).is_some_and(|&c| is_space(c)) {
        end += 2;
        count += 1;
    }
    (count >= 2 && s.get(end) == Some(&'.')).then(|| Hit::of(end + 1))
}

/// Runs that stay one token: hyphens, `!!`, `??`, quotes, `@@`, `__`, `##`, `**`.
pub(super) fn repeated_mark(s: &[char]) -> Option<Hit> {
    let first = *s.first()?;
    if matches!(first, '!' | '?') {
        return Some(Hit::of(run(s, 0, |c| matches!(c, '!' | '?'))));
    }
    if matches!(first, '\'' | '`') && s.get(1) == Some(&first) {
        return Some(Hit::of(2));
    }
    matches!(first, '-' | '@' | '_' | '#' | '*' | '=' | '>' | '<')
        .then(|| Hit::of(run(s, 0, |c| c == first)))
}

/// End of the run of digits at `from`, when it has `least..=most` digits or is cut at `most`.
fn digits(s: &[char], from: usize, least: usize, most: usize) -> Option<usize> {
    digit_ends(s, from, least, most).last()
}

fn digit_ends(
    s: &[char],
    from: usize,
    least: usize,
    most: usize,
) -> impl Iterator<Item = usize> + use<> {
    let count = run(s, from, |c| c.is_ascii_digit()).saturating_sub(from).min(most);
    (least..=count).map(move |n| from + n)
}

/// Position after `at` when one of `marks` stands there.
fn after(s: &[char], at: usize, marks: &str) -> Option<usize> {
    s.get(at).filter(|&&c| marks.contains(c)).map(|_| at + 1)
}
