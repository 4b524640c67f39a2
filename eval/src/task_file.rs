//! `task.toml`: the settings of a benchmark.

use std::collections::BTreeSet;

use flamingo_dataset::CorpusStore;
use serde::{Deserialize, Serialize};

use crate::error::EvalError;

/// Name of the settings file in an annotations folder.
pub const TASK_FILE: &str = "task.toml";

/// Settings of a benchmark, from its `task.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TaskConfig {
    /// Text between an image and its caption. Paper, appendix B.1.5: `Output:`.
    pub prompt: String,
    /// Words of the captions that only the image tells; the controls count how many are right.
    pub content_words: Vec<String>,
    /// Answers to choose from; empty: the distinct captions of the support examples.
    pub candidates: Vec<String>,
    /// Tokens after which a caption without `<EOC>` is cut. The paper gives no limit, Open Flamingo
    /// takes 20 of a larger vocabulary.
    pub max_new_tokens: usize,
}

impl Default for TaskConfig {
    fn default() -> Self {
        Self {
            prompt: "Output:".into(),
            content_words: Vec::new(),
            candidates: Vec::new(),
            max_new_tokens: 32,
        }
    }
}

impl TaskConfig {
    /// The settings in an annotations folder; the defaults where it has none.
    ///
    /// # Errors
    /// When `task.toml` cannot be read or a setting in it is out of range.
    pub fn read(location: &str) -> Result<Self, EvalError> {
        let store = CorpusStore::open(location)?;
        let file = format!("{location}/{TASK_FILE}");
        if !store.exists(TASK_FILE)? {
            return Ok(Self::default());
        }
        let text = String::from_utf8_lossy(&store.get(TASK_FILE)?).into_owned();
        let config: Self =
            toml::from_str(&text).map_err(|error| EvalError::toml(&file, &text, &error))?;
        let setting =
            |key, found, expected| EvalError::Setting { file: file.clone(), key, found, expected };
        if config.max_new_tokens == 0 {
            return Err(setting("max_new_tokens", "0".into(), "at least 1"));
        }
        if config.candidates.len() == 1 {
            let found = format!("{:?}", config.candidates);
            return Err(setting("candidates", found, "none or at least two"));
        }
        let mut seen = BTreeSet::new();
        match config.candidates.iter().find(|candidate| !seen.insert(*candidate)) {
            None => Ok(config),
            Some(twice) => {
                Err(setting("candidates", format!("`{twice}` twice"), "different answers"))
            }
        }
    }
}
