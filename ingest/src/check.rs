//! Whether a corpus keeps its promises: files and checksums, exact columns and how they are stored,
//! masks, texts and offsets that follow from the slots, keys that are unique, images that decode and
//! are what is said of them, and tables that can be read.
//!
//! All problems are found, not only the first; a finished check lists the first
//! [`PROBLEMS_SHOWN_MAX`] of them.

mod content;
mod keys;
mod layout;
mod shard;

use std::collections::BTreeMap;

use flamingo_dataset::{CorpusKind, CorpusStore, Manifest, sha256_hex};

use crate::error::IngestError;
use crate::purge;

/// Most problems that are kept with their words; all are counted.
pub const PROBLEMS_SHOWN_MAX: usize = 20;

/// How much of a corpus is read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sample {
    /// Everything.
    All,
    /// This part of the rows, evenly spread, and of the checksums.
    Fraction(f64),
    /// This many rows, evenly spread.
    Rows(u64),
}

impl std::str::FromStr for Sample {
    type Err = String;

    /// `all`, a fraction with a decimal point (`0.01`), or a number of rows (`500`).
    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected `all`, a fraction such as 0.01, or a number of rows".to_owned();
        if text == "all" {
            return Ok(Self::All);
        }
        if !text.contains('.') {
            let rows = text.parse::<u64>().map_err(|_| expected())?;
            return if rows > 0 { Ok(Self::Rows(rows)) } else { Err(expected()) };
        }
        let fraction = text.parse::<f64>().map_err(|_| expected())?;
        if fraction > 0.0 && fraction <= 1.0 {
            Ok(Self::Fraction(fraction))
        } else {
            Err(expected())
        }
    }
}

impl Sample {
    /// How many of `n` are read.
    fn of(self, n: u64) -> u64 {
        match self {
            Self::All => n,
            Self::Fraction(fraction) => ((n as f64 * fraction).ceil() as u64).min(n),
            Self::Rows(rows) => rows.min(n),
        }
    }
}

/// One broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, with the row where it is about one.
    pub place: String,
    /// What is wrong with it.
    pub problem: String,
}

/// What was looked at, and what was wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Kind of the corpus.
    pub kind: CorpusKind,
    /// Rows of the corpus.
    pub rows: u64,
    /// Rows that were decoded.
    pub rows_read: u64,
    /// Images, or frames, that were decoded.
    pub images: u64,
    /// Words of the rows that were read.
    pub words: u64,
    /// Shards of the corpus.
    pub shards: usize,
    /// Shards whose checksum was compared.
    pub shards_hashed: usize,
    /// Rows of each table beside the shards.
    pub tables: BTreeMap<&'static str, u64>,
    /// The first problems.
    pub problems: Vec<Problem>,
    /// How many there are.
    pub n_problems: u64,
    /// What is not wrong but should be known.
    pub notes: Vec<String>,
}

impl Checked {
    fn add(&mut self, place: impl Into<String>, problem: impl Into<String>) {
        self.n_problems += 1;
        if self.problems.len() < PROBLEMS_SHOWN_MAX {
            self.problems.push(Problem { place: place.into(), problem: problem.into() });
        }
    }

    fn add_all(&mut self, problems: impl IntoIterator<Item = Problem>) {
        for Problem { place, problem } in problems {
            self.add(place, problem);
        }
    }

    /// Fails where there is a problem; the message names the first.
    ///
    /// # Errors
    /// When there is a problem.
    pub fn verdict(&self, corpus: &str) -> Result<(), IngestError> {
        let Some(Problem { place, problem }) = self.problems.first() else { return Ok(()) };
        let of = if self.n_problems > 1 {
            format!("{} problems, first: ", self.n_problems)
        } else {
            String::new()
        };
        let message = format!("{of}{place}: {problem}");
        Err(IngestError::CheckFailed { corpus: corpus.to_owned(), message })
    }

    /// The whole result as JSON.
    pub fn to_json(&self, corpus: &str) -> String {
        let problems: Vec<_> = self
            .problems
            .iter()
            .map(|p| serde_json::json!({ "place": p.place, "problem": p.problem }))
            .collect();
        let json = serde_json::json!({
            "corpus": corpus,
            "ok": self.n_problems == 0,
            "kind": self.kind.name(),
            "rows": self.rows,
            "rows_read": self.rows_read,
            "images_decoded": self.images,
            "words": self.words,
            "shards": self.shards,
            "shards_hashed": self.shards_hashed,
            "tables": self.tables,
            "n_problems": self.n_problems,
            "problems": problems,
            "notes": self.notes,
        });
        format!("{json:#}\n")
    }
}

/// Checks a corpus with `workers` threads.
///
/// # Errors
/// When there is no corpus, or the store cannot be read. Broken promises are part of the result.
pub fn check(location: &str, sample: Sample, workers: usize) -> Result<Checked, IngestError> {
    let store = CorpusStore::open(location)?;
    let manifest = Manifest::read(&store)?;
    let mut checked = Checked {
        kind: manifest.kind,
        rows: manifest.rows,
        rows_read: 0,
        images: 0,
        words: 0,
        shards: manifest.shards.len(),
        shards_hashed: 0,
        tables: BTreeMap::new(),
        problems: Vec::new(),
        n_problems: 0,
        notes: Vec::new(),
    };
    layout::check(&store, &manifest, &mut checked)?;
    let shards = shard::check_all(&store, &manifest, &mut checked)?;
    keys::check(&store, manifest.kind, &shards, &mut checked);
    content::check(&store, &manifest, &shards, (sample, workers), &mut checked)?;
    purge::note_unfinished(&store, &manifest, &mut checked.notes)?;
    Ok(checked)
}

/// Whether the sums of a manifest are those of its shards, and its names are different.
fn sums(manifest: &Manifest) -> Vec<Problem> {
    let shards = &manifest.shards;
    let of = |n: fn(&flamingo_dataset::ShardEntry) -> u64| shards.iter().map(n).sum::<u64>();
    let sums = [
        ("rows", manifest.rows, of(|s| s.rows)),
        ("images", manifest.images, of(|s| s.images)),
        ("words", manifest.words, of(|s| s.words)),
    ];
    let wrong = sums.into_iter().filter(|(_, told, found)| told != found);
    let mut problems: Vec<_> = wrong
        .map(|(what, told, found)| Problem {
            place: flamingo_dataset::MANIFEST_FILE.to_owned(),
            problem: format!("it says {told} {what}, its shards have {found}"),
        })
        .collect();
    let mut names: Vec<_> = shards.iter().map(|shard| &shard.file).collect();
    names.sort();
    for pair in names.windows(2).filter(|pair| pair[0] == pair[1]) {
        let place = flamingo_dataset::MANIFEST_FILE.to_owned();
        problems.push(Problem { place, problem: format!("it lists {} twice", pair[0]) });
    }
    problems
}

/// The hash of a text file of the corpus, where there is one.
fn hash_of(store: &CorpusStore, name: &str) -> Result<Option<String>, IngestError> {
    Ok(if store.exists(name)? { Some(sha256_hex(&store.get(name)?)) } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_a_fraction_or_rows() {
        let check = |text: &str, expected: Option<Sample>| {
            assert_eq!(text.parse::<Sample>().ok(), expected, "{text}");
        };
        check("all", Some(Sample::All));
        check("0.01", Some(Sample::Fraction(0.01)));
        check("1.0", Some(Sample::Fraction(1.0)));
        check("1", Some(Sample::Rows(1)));
        check("500", Some(Sample::Rows(500)));
        for wrong in ["0", "0.0", "1.5", "-3", "half", ""] {
            check(wrong, None);
        }
        assert_eq!(
            [Sample::Fraction(0.5).of(3), Sample::Rows(9).of(3), Sample::All.of(3)],
            [2, 3, 3]
        );
    }
}
