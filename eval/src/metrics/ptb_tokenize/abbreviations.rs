//! Words that keep their full stop.

use super::scan::{Hit, is_space, run};

/// Words that keep a full stop after them, in lower case: months, days, states, titles, company
/// forms and units of the original grammar. Those that are also common words are in
/// [`CAPITALISED`].
const WORDS: &[&str] = &[
    "jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec", "mon",
    "tue", "tues", "wed", "thu", "thurs", "fri", "ala", "ariz", "calif", "colo", "conn", "ct",
    "dak", "fla", "ga", "ind", "kan", "kans", "ky", "md", "mich", "minn", "mo", "mont", "neb",
    "nev", "okla", "penn", "tenn", "va", "vt", "wis", "wisc", "wyo", "mr", "mrs", "ms", "dr",
    "drs", "prof", "profs", "sen", "sens", "rep", "reps", "atty", "attys", "lt", "col", "gen",
    "messrs", "gov", "govs", "adm", "rev", "maj", "sgt", "cpl", "pvt", "capt", "st", "ste", "ave",
    "pres", "lieut", "hon", "brig", "comdr", "cmdr", "pfc", "spc", "supt", "supts", "jr", "sr",
    "bros", "blvd", "rd", "esq", "inc", "co", "cos", "corp", "ltd", "plc", "bancorp", "dept",
    "assn", "univ", "intl", "est", "etc", "ext", "vs",
];

/// Abbreviations only when they start with a capital.
const CAPITALISED: &[&str] =
    &["Ark", "Del", "Ill", "La", "Mass", "Miss", "Ore", "Pa", "Tex", "Wash"];

/// A listed word or an initial with its full stop, or `u.s.`: single letters with one after each.
pub(super) fn abbreviation(s: &[char]) -> Option<Hit> {
    let end = run(s, 0, char::is_alphabetic);
    if s.get(end) != Some(&'.') {
        return None;
    }
    if end == 1 {
        return initials(s);
    }
    let word: String = s[..end].iter().collect();
    let lower = word.to_lowercase();
    let listed = WORDS.contains(&lower.as_str()) || CAPITALISED.contains(&word.as_str());
    let numbered = matches!(lower.as_str(), "no" | "nos") && number_follows(&s[end + 1..]);
    (listed || numbered).then(|| Hit::of(end + 1))
}

/// `s.`, `u.s.a.`; but `I` and `U` alone are words.
fn initials(s: &[char]) -> Option<Hit> {
    let mut end = 2;
    while s.get(end).is_some_and(char::is_ascii_alphabetic) && s.get(end + 1) == Some(&'.') {
        end += 2;
    }
    let is_word = end == 2 && matches!(s[0], 'i' | 'I' | 'u' | 'U');
    (!is_word).then(|| Hit::of(end))
}

/// Whether a digit is the next thing after spaces.
fn number_follows(s: &[char]) -> bool {
    s.get(run(s, 0, is_space)).is_some_and(char::is_ascii_digit)
}
