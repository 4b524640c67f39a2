//! What a benchmark is made of: support examples to choose shots from, queries, and `task.toml`.
//!
//! The folder holds two corpora of images with texts, `support/` and `query/`. Texts and keys are
//! kept in memory, images are read when they are needed.

use std::collections::BTreeSet;

use flamingo_dataset::{Corpus, CorpusKind, EncodedImage, Row};

use crate::error::EvalError;
use crate::task_file::TaskConfig;

/// One image with its text, without the image's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Stable identifier.
    pub key: String,
    /// The text.
    pub caption: String,
    /// Hex SHA-256 of the image: equal for rows of one image.
    pub sha256: String,
    /// The sub-dataset that it belongs to.
    pub source: Option<String>,
}

/// One of the two corpora.
pub struct Split {
    corpus: Corpus,
    /// The rows in order.
    pub examples: Vec<Example>,
}

impl Split {
    fn open(location: &str) -> Result<Self, EvalError> {
        let corpus = Corpus::open(location)?;
        if corpus.kind() != CorpusKind::ImageText {
            return Err(EvalError::Kind { location: location.to_owned(), found: corpus.kind() });
        }
        let examples = corpus.scan().map(|row| Ok(example(row?))).collect::<Result<Vec<_>, _>>();
        let examples: Vec<Example> =
            examples.map_err(EvalError::Corpus)?.into_iter().flatten().collect();
        if examples.is_empty() {
            return Err(EvalError::Empty { location: location.to_owned() });
        }
        let mut keys = BTreeSet::new();
        match examples.iter().find(|example| !keys.insert(&example.key)) {
            Some(Example { key, .. }) => {
                let (location, key) = (location.to_owned(), key.clone());
                Err(EvalError::DuplicateKey { location, key })
            }
            None => Ok(Self { corpus, examples }),
        }
    }

    /// Reads the image of example `index`.
    ///
    /// # Errors
    /// When the corpus cannot be read any more.
    ///
    /// # Panics
    /// Never: the kind of the corpus was checked when it was opened.
    pub fn image(&self, index: usize) -> Result<EncodedImage, EvalError> {
        match self.corpus.read(index as u64)? {
            Row::ImageText(pair) => Ok(pair.image),
            Row::Interleaved(_) | Row::VideoText(_) => unreachable!("the kind is image_text"),
        }
    }

    /// Digest of the corpus, its shards included.
    pub fn sha256(&self) -> String {
        self.corpus.manifest().sha256()
    }
}

/// Rows of other kinds cannot occur in a corpus whose kind was checked.
fn example(row: Row) -> Option<Example> {
    let Row::ImageText(pair) = row else { return None };
    Some(Example { key: pair.key, caption: pair.caption, sha256: pair.sha256, source: pair.source })
}

/// A benchmark's files.
pub struct Annotations {
    /// Where they lie, as given.
    pub location: String,
    /// Examples to choose shots from.
    pub support: Split,
    /// Held-out examples to be answered.
    pub query: Split,
    /// Settings.
    pub config: TaskConfig,
}

impl Annotations {
    /// Opens a folder, or the prefix of an object store.
    ///
    /// # Errors
    /// When one of the corpora or `task.toml` cannot be read or is not what it should be.
    pub fn open(location: &str) -> Result<Self, EvalError> {
        let at = location.trim_end_matches('/');
        let config = TaskConfig::read(at)?;
        let support = Split::open(&format!("{at}/support"))?;
        let query = Split::open(&format!("{at}/query"))?;
        Ok(Self { location: location.to_owned(), support, query, config })
    }
}
