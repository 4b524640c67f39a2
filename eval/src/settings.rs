//! What samples depend on, kept beside them: samples made with other settings are never mixed.

use std::path::Path;

use flamingo_dataset::write_durably;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::benchmark::{Benchmark, items_sha256};
use crate::error::EvalError;
use crate::evaluate::Options;
use crate::shots::ShotChoice;
use crate::subject::ModelCard;
use crate::task_file::TaskFile;

/// Raised whenever the rules of all tasks change so that answers or scores do.
pub const TASK_VERSION: u32 = 2;

/// Everything that decides a sample, but not which queries and rounds are asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The benchmark's rules.
    pub task: TaskFile,
    /// [`TASK_VERSION`] of the program that made them.
    pub task_version: u32,
    /// Name of the template.
    pub template: String,
    /// How shots are chosen.
    pub shot_choice: ShotChoice,
    /// Whose vision encoder finds examples, where it is not the model's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rices_with: Option<Eyes>,
    /// Orders of the shots over which likelihoods are averaged.
    pub orders: usize,
    /// Open continuations at a time.
    pub beams: usize,
    /// A continuation's log-probability is divided by its length to this power.
    pub length_penalty: f32,
    /// Seed of the examples to draw from, of the shuffled images, of orders and of the intervals; and of the
    /// choice of shots, where it has no seeds of its own.
    pub seed: u64,
    /// Digest of the model's weights, config and tokenizer.
    pub model_sha256: String,
    /// Where the model computes, and in which number format: answers differ in the last bits.
    pub device: String,
    /// Digest of the items that examples are drawn from.
    pub support_sha256: String,
    /// Digest of the items that are asked about.
    pub query_sha256: String,
}

/// The model whose vision encoder finds the examples of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eyes {
    /// Digest of its weights, config and tokenizer.
    pub model_sha256: String,
    /// Where it computes, and in which number format: of pictures about as similar, another may come first.
    pub device: String,
}

impl From<ModelCard> for Eyes {
    fn from(card: ModelCard) -> Self {
        Self { model_sha256: card.sha256, device: card.device }
    }
}

impl Settings {
    /// The settings of a benchmark for a model.
    pub fn new(benchmark: &Benchmark, card: &ModelCard, options: &Options) -> Self {
        Self {
            task: benchmark.task.clone(),
            task_version: TASK_VERSION,
            template: options.template.clone(),
            shot_choice: options.choice,
            rices_with: None,
            orders: options.orders,
            beams: options.beams,
            length_penalty: options.length_penalty,
            seed: options.seed,
            model_sha256: card.sha256.clone(),
            device: card.device.clone(),
            support_sha256: items_sha256(&benchmark.support, &benchmark.location),
            query_sha256: items_sha256(&benchmark.query, &benchmark.location),
        }
    }

    /// Writes the settings to `path`, or compares them with those that are there.
    ///
    /// # Errors
    /// When the file cannot be read or written, or holds other settings.
    ///
    /// # Panics
    /// Never: settings are made of texts and numbers.
    pub fn claim(&self, path: &Path) -> Result<(), EvalError> {
        let now = serde_json::to_value(self).expect("settings are texts and numbers");
        if !path.exists() {
            return write_whole(path, &format!("{now:#}\n"));
        }
        let text = std::fs::read(path).map_err(EvalError::file("read", path))?;
        let was: Value = serde_json::from_slice(&text).map_err(|source| EvalError::Sample {
            path: path.to_path_buf(),
            line: source.line(),
            source,
        })?;
        match first_difference("", &was, &now) {
            None => Ok(()),
            Some((key, was, now)) => {
                Err(EvalError::OtherSettings { path: path.to_path_buf(), key, was, now })
            }
        }
    }
}

/// The path of the first key whose values differ, with both.
fn first_difference(at: &str, was: &Value, now: &Value) -> Option<(String, String, String)> {
    let (Value::Object(before), Value::Object(after)) = (was, now) else {
        return (was != now).then(|| (at.to_owned(), was.to_string(), now.to_string()));
    };
    let absent = || Value::String("absent".into());
    let keys = after.keys().chain(before.keys().filter(|key| !after.contains_key(*key)));
    keys.into_iter().find_map(|key| {
        let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        let (was, now) = (before.get(key), after.get(key));
        let (was, now) = (was.cloned().unwrap_or_else(absent), now.cloned().unwrap_or_else(absent));
        first_difference(&path, &was, &now)
    })
}

/// Writes a whole file or nothing.
pub(crate) fn write_whole(path: &Path, text: &str) -> Result<(), EvalError> {
    write_durably(path, text.as_bytes()).map_err(EvalError::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_that_changed_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("settings_label.json");
        let settings = Settings {
            task: TaskFile::find("label").unwrap(),
            task_version: TASK_VERSION,
            template: "flamingo".into(),
            shot_choice: ShotChoice::Random,
            rices_with: None,
            orders: 1,
            beams: 3,
            length_penalty: 0.0,
            seed: 0,
            model_sha256: "m".into(),
            device: "CPU (f32)".into(),
            support_sha256: "s".into(),
            query_sha256: "q".into(),
        };
        settings.claim(&path).unwrap();
        settings.claim(&path).unwrap();
        let other = Settings { seed: 1, ..settings.clone() };
        let error = other.claim(&path).unwrap_err().to_string();
        assert!(error.contains("`seed` 0, now 1"), "{error}");
        let other = Settings { task_version: TASK_VERSION + 1, ..settings.clone() };
        let error = other.claim(&path).unwrap_err().to_string();
        assert!(error.contains("`task_version` 2, now 3"), "{error}");
        let other = Settings { device: "NVIDIA H200 (bf16)".into(), ..settings.clone() };
        let error = other.claim(&path).unwrap_err().to_string();
        assert!(error.contains("`device` \"CPU (f32)\", now \"NVIDIA H200 (bf16)\""), "{error}");
        let task = settings.task.clone().with_settings("task.toml", "prompt = \"shows:\"").unwrap();
        let error = Settings { task, ..settings }.claim(&path).unwrap_err().to_string();
        assert!(error.contains("`task.templates.flamingo.prompt`"), "{error}");
        assert!(error.contains("\"<image>Output:\", now \"<image>shows:\""), "{error}");
    }
}
