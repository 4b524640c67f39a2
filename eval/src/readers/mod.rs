//! Official annotation files as they are downloaded, read into items. One file per layout.
//!
//! To add a layout: a file here with `read`, a name in [`Reader`], and a made-up example in its official form
//! for the tests.

mod corpus;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::EvalError;
use crate::item::Item;
use crate::task_file::TaskFile;

/// A layout of annotation files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reader {
    /// One of our corpora (role `corpus`); rows with one image are one item with several captions.
    CorpusCaptions,
    /// One of our corpora (role `corpus`); the caption is the answer, and the category is `source`.
    CorpusLabels,
}

impl Reader {
    /// Whether a `task.toml` in the folder may change settings of the task.
    pub fn has_settings(self) -> bool {
        matches!(self, Self::CorpusCaptions | Self::CorpusLabels)
    }
}

/// The files of a split.
pub struct SplitFiles<'a> {
    /// The folder that is given as annotations, or the prefix of an object store, without a slash at its end.
    pub location: &'a str,
    /// Their paths in it, by role.
    pub files: &'a BTreeMap<String, String>,
    /// The benchmark.
    pub task: &'a TaskFile,
}

impl SplitFiles<'_> {
    /// The path of the file with a role.
    ///
    /// # Errors
    /// When the task names none.
    pub fn path(&self, role: &'static str) -> Result<String, EvalError> {
        self.optional(role).ok_or_else(|| EvalError::NoFile { task: self.task.name.clone(), role })
    }

    /// The path of the file with a role, where the task names one.
    pub fn optional(&self, role: &str) -> Option<String> {
        self.files.get(role).map(|file| format!("{}/{file}", self.location))
    }
}

/// The items of a split, in the order of its files.
///
/// # Errors
/// When a file is missing, or is not of the layout; messages name the file and the entry.
pub fn read_split(split: &SplitFiles<'_>) -> Result<Vec<Item>, EvalError> {
    match split.task.reader {
        Reader::CorpusCaptions => corpus::captions(split),
        Reader::CorpusLabels => corpus::labels(split),
    }
}
