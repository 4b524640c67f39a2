//! Lists of words that the figures look for.

use crate::error::IngestError;
use crate::plan::BuildPlan;

use super::files;
use super::words::word_hash;

/// English function words: articles, pronouns, prepositions, conjunctions, auxiliaries and the most
/// common adverbs and quantifiers.
const STOP: &str = include_str!("lists/stop.txt");
/// Words that tell explicit English texts.
const EXPLICIT: &str = include_str!("lists/explicit.txt");
/// Words that tell advertising and page controls.
const SPAM: &str = include_str!("lists/spam.txt");

/// A set of words in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    /// Sorted hashes.
    hashes: Vec<u64>,
    /// One bit for each value of the lowest bits of a hash: most words that are not in the set are
    /// told by it alone.
    filter: Vec<u64>,
}

/// Bits of [`Words::filter`].
const FILTER_BITS: usize = 1 << 14;

impl Words {
    /// The words of a list, one a line; what follows `#` is a comment.
    pub fn parse(list: &str) -> Self {
        let lines = list.lines().map(|line| line.split('#').next().unwrap_or(""));
        let mut hashes: Vec<_> = lines.filter_map(|line| word_hash(line.trim())).collect();
        hashes.sort_unstable();
        hashes.dedup();
        let mut filter = vec![0; FILTER_BITS / 64];
        for hash in &hashes {
            let bit = *hash as usize % FILTER_BITS;
            filter[bit / 64] |= 1 << (bit % 64);
        }
        Self { hashes, filter }
    }

    /// Whether the word with this hash is in the set.
    #[inline]
    pub(super) fn contains(&self, hash: u64) -> bool {
        let bit = hash as usize % FILTER_BITS;
        self.filter[bit / 64] >> (bit % 64) & 1 == 1 && self.hashes.binary_search(&hash).is_ok()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }
}

/// All lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lexicon {
    /// Function words.
    pub stop: Words,
    /// Explicit words.
    pub explicit: Words,
    /// Words of advertising.
    pub spam: Words,
    /// Common words, where the plan has a list of them.
    pub common: Option<Words>,
}

impl Default for Lexicon {
    fn default() -> Self {
        let [stop, explicit, spam] = [STOP, EXPLICIT, SPAM].map(Words::parse);
        Self { stop, explicit, spam, common: None }
    }
}

impl Lexicon {
    /// The lists of a plan.
    ///
    /// # Errors
    /// When a file cannot be read or is not the one that the plan was made with.
    pub fn new(plan: &BuildPlan) -> Result<Self, IngestError> {
        let (words, explicit) = (&plan.words, &plan.explicit);
        let read = |file: &str, or: &str| match file {
            "" => Ok(Words::parse(or)),
            file => files::read_text(file).map(|list| Words::parse(&list)),
        };
        Ok(Self {
            stop: read(&words.stop_file, STOP)?,
            explicit: read(&explicit.words_file, EXPLICIT)?,
            spam: read(&words.spam_file, SPAM)?,
            common: Some(read(&words.common_file, "")?).filter(|words| !words.is_empty()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_word_by_word() {
        let words = Words::parse("# a comment\nThe\n\nélan # another\n the \n");
        assert_eq!(words.len(), 2);
        let contains = |word: &str| words.contains(word_hash(word).unwrap());
        assert!(contains("THE") && contains("Élan,") && !contains("cat"));
        let own = Lexicon::default();
        assert!(own.stop.len() > 200 && own.explicit.len() > 40 && own.spam.len() > 40);
        assert!(!own.stop.contains(word_hash("galaxy").unwrap()));
    }
}
