//! A part of the queries, for processes that share the work, and the files that it has of its own.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::EvalError;

/// One of several parts of the queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    index: usize,
    of: usize,
}

impl Part {
    /// Whether a query is of this part; of so many `together` in a row it has all or none.
    pub fn has(self, query: usize, together: usize) -> bool {
        query / together.max(1) % self.of == self.index
    }

    /// What tells the files of a part from those of the whole.
    pub fn suffix(part: Option<Self>) -> String {
        part.map(|part| format!(".part-{}-of-{}", part.index, part.of)).unwrap_or_default()
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(index, of)| {
            Some(Self { index: index.parse().ok()?, of: of.parse().ok()? })
        });
        numbers.filter(|part| part.index < part.of).ok_or_else(|| {
            "expected INDEX/COUNT with an index from 0 to COUNT - 1, e.g. 0/4".to_owned()
        })
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

/// Files `NAME.part-I-of-N.jsonl` of a folder, in the order of their names.
///
/// # Errors
/// When the folder cannot be read.
pub fn part_files(folder: &Path, name: &str) -> Result<Vec<PathBuf>, EvalError> {
    let entries = std::fs::read_dir(folder).map_err(EvalError::file("read", folder))?;
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(EvalError::file("read", folder))?;
        let file = entry.file_name().to_string_lossy().into_owned();
        let rest = file.strip_prefix(name).and_then(|rest| rest.strip_prefix(".part-"));
        if rest.is_some_and(|rest| rest.strip_suffix(".jsonl").is_some()) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// Removes these files, once all that is in them is in that of the whole.
///
/// # Errors
/// When the folder cannot be read, or a file cannot be removed.
pub fn remove_parts(folder: &Path, name: &str) -> Result<(), EvalError> {
    for path in part_files(folder, name)? {
        std::fs::remove_file(&path).map_err(EvalError::file("remove", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_one_of_its_number() {
        assert_eq!("1/4".parse::<Part>().unwrap().to_string(), "1/4");
        for wrong in ["4/4", "1", "a/b", "-1/4", "0/0"] {
            assert!(wrong.parse::<Part>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_query_is_of_one_part_and_few_are_spread() {
        let parts = ["0/3", "1/3", "2/3"].map(|text| text.parse::<Part>().unwrap());
        let check = |together: usize, owners: [usize; 7]| {
            for (query, owner) in owners.into_iter().enumerate() {
                let found: Vec<bool> = parts.map(|part| part.has(query, together)).to_vec();
                assert_eq!(found, [owner == 0, owner == 1, owner == 2], "{query} of {together}");
            }
        };
        check(1, [0, 1, 2, 0, 1, 2, 0]);
        check(2, [0, 0, 1, 1, 2, 2, 0]);
    }
}
