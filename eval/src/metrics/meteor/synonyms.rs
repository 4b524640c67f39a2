//! Words that share a sense of `WordNet`, by the lists in METEOR's program.
//!
//! The senses of a word are its own and those of its base forms: where the list of exceptions has it, as in
//! `goose` / `geese`, those that it names, else the first that a rule of `WordNet`'s makes and the list of senses has,
//! whatever part of speech the rule is for.

use rustc_hash::{FxHashMap, FxHashSet};

use super::archive::Archive;
use crate::error::EvalError;
use crate::metrics::vocabulary::Vocabulary;

/// Senses by word: a word on a line, the numbers of its senses on the next.
const SENSES: &str = "synonym/english.synsets";

/// Irregular forms: a base form on a line, its forms on the next.
const EXCEPTIONS: &str = "synonym/english.exceptions";

/// Endings and what stands in their place in the base form, in the order in which they are tried.
const RULES: [(&str, &str); 18] = [
    ("s", ""),
    ("ses", "s"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
    ("es", "e"),
    ("es", ""),
    ("ed", "e"),
    ("ed", ""),
    ("ing", "e"),
    ("ing", ""),
    ("er", ""),
    ("est", ""),
    ("er", "e"),
    ("est", "e"),
];

/// Shorter words have no endings.
const INFLECTED_BYTES_MIN: usize = 3;

/// Of each word of a vocabulary the others that share a sense with it, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Synonyms(Vec<Box<[u32]>>);

impl Synonyms {
    /// The synonyms within a vocabulary.
    pub(crate) fn of(vocabulary: &Vocabulary, archive: &mut Archive) -> Result<Self, EvalError> {
        let exceptions = archive.list(EXCEPTIONS)?;
        let bases = irregular_bases(archive.entries(EXCEPTIONS, &exceptions)?, vocabulary);
        let list = archive.list(SENSES)?;
        let senses: FxHashMap<&str, &str> = archive.entries(SENSES, &list)?.collect();
        let mut words_of_sense: FxHashMap<u32, Vec<u32>> = FxHashMap::default();
        for number in 0..vocabulary.len() as u32 {
            let word = vocabulary.text(number);
            let regular = || regular_base(word).find_map(|base| senses.get(base.as_str()));
            let of_bases = match bases.get(word) {
                Some(bases) => bases.iter().filter_map(|base| senses.get(base)).collect(),
                None => Vec::from_iter(regular()),
            };
            for sense in senses.get(word).into_iter().chain(of_bases).flat_map(|it| it.split(' ')) {
                let sense = sense.parse().map_err(|_| {
                    let problem = format!("`{sense}` for `{word}` is no number of a sense");
                    archive.wrong_list(SENSES, problem)
                })?;
                words_of_sense.entry(sense).or_default().push(number);
            }
        }
        Ok(Self::sharing(words_of_sense.into_values(), vocabulary.len()))
    }

    /// From groups of words that share a sense.
    fn sharing(groups: impl Iterator<Item = Vec<u32>>, n_words: usize) -> Self {
        let mut synonyms: Vec<FxHashSet<u32>> = vec![FxHashSet::default(); n_words];
        for group in groups {
            for word in &group {
                synonyms[*word as usize].extend(group.iter().filter(|other| *other != word));
            }
        }
        let sorted = |words: FxHashSet<u32>| {
            let mut words: Vec<u32> = words.into_iter().collect();
            words.sort_unstable();
            words.into_boxed_slice()
        };
        Self(synonyms.into_iter().map(sorted).collect())
    }

    /// Whether two words, which are not the same, share a sense.
    pub(crate) fn are_synonyms(&self, a: u32, b: u32) -> bool {
        self.0[a as usize].binary_search(&b).is_ok()
    }
}

/// The base forms of the words that are irregular forms.
fn irregular_bases<'a>(
    exceptions: impl Iterator<Item = (&'a str, &'a str)>,
    vocabulary: &Vocabulary,
) -> FxHashMap<&'a str, Vec<&'a str>> {
    let words: FxHashSet<&str> =
        (0..vocabulary.len() as u32).map(|number| vocabulary.text(number)).collect();
    let mut bases: FxHashMap<&str, Vec<&str>> = FxHashMap::default();
    for (base, forms) in exceptions {
        for form in forms.split(' ').filter(|form| words.contains(form)) {
            bases.entry(form).or_default().push(base);
        }
    }
    bases
}

/// What a word may be a form of, by rule.
fn regular_base(word: &str) -> impl Iterator<Item = String> {
    let is_inflected = word.len() >= INFLECTED_BYTES_MIN && !word.ends_with("ss");
    let base =
        |(ending, other): (&str, &str)| Some(format!("{}{other}", word.strip_suffix(ending)?));
    RULES.into_iter().filter(move |_| is_inflected).filter_map(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_come_by_the_rules_in_their_order() {
        let check = |word: &str, expected: &[&str]| {
            assert_eq!(regular_base(word).collect::<Vec<_>>(), expected, "{word}");
        };
        check("passes", &["passe", "pass", "passe", "pass"]);
        check("policemen", &["policeman"]);
        check("flies", &["flie", "fly", "flie", "fli"]);
        check("hoping", &["hope", "hop"]);
        check("nicest", &["nic", "nice"]);
        check("glass", &[]);
        check("as", &[]);
    }

    #[test]
    fn words_share_senses_both_ways_and_none_with_themselves() {
        let synonyms = Synonyms::sharing([vec![0, 1], vec![1, 2], vec![3]].into_iter(), 4);
        let found: Vec<(u32, u32)> = (0..4)
            .flat_map(|a| (0..4).map(move |b| (a, b)))
            .filter(|(a, b)| synonyms.are_synonyms(*a, *b))
            .collect();
        assert_eq!(found, [(0, 1), (1, 0), (1, 2), (2, 1)]);
    }
}
