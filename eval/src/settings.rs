//! What samples depend on, kept beside them: samples made with other settings are never mixed.

use std::path::Path;

use flamingo_dataset::write_durably;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::annotations::Annotations;
use crate::error::EvalError;
use crate::subject::Subject;
use crate::task_file::TaskConfig;

/// Raised whenever a task's rules change so that its answers or scores do.
pub const TASK_VERSION: u32 = 1;

/// Everything that decides a sample, but not which queries and shot counts are asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Name of the task.
    pub task: String,
    /// [`TASK_VERSION`] of the program that made them.
    pub task_version: u32,
    /// Seed of the choice of shots, of the shuffled images and of the intervals.
    pub seed: u64,
    /// Digest of the model's weights, config and tokenizer.
    pub model_sha256: String,
    /// Where the model computes, and in which number format: answers differ in the last bits.
    pub device: String,
    /// Digest of the support corpus.
    pub support_sha256: String,
    /// Digest of the query corpus.
    pub query_sha256: String,
    /// Settings of the benchmark.
    #[serde(flatten)]
    pub config: TaskConfig,
}

impl Settings {
    /// The settings of a task on some annotations.
    pub fn new(task: &str, annotations: &Annotations, subject: &Subject<'_>, seed: u64) -> Self {
        Self {
            task: task.to_owned(),
            task_version: TASK_VERSION,
            seed,
            model_sha256: subject.sha256().to_owned(),
            device: subject.device(),
            support_sha256: annotations.support.sha256(),
            query_sha256: annotations.query.sha256(),
            config: annotations.config.clone(),
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
        let keys = now.as_object().into_iter().flat_map(|object| object.keys());
        match keys.into_iter().find(|key| was.get(key) != now.get(key)) {
            None => Ok(()),
            Some(key) => Err(EvalError::OtherSettings {
                path: path.to_path_buf(),
                key: key.clone(),
                was: was.get(key).map_or_else(|| "absent".to_owned(), Value::to_string),
                now: now[key].to_string(),
            }),
        }
    }
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
            task: "label".into(),
            task_version: TASK_VERSION,
            seed: 0,
            model_sha256: "m".into(),
            device: "CPU (f32)".into(),
            support_sha256: "s".into(),
            query_sha256: "q".into(),
            config: TaskConfig::default(),
        };
        settings.claim(&path).unwrap();
        settings.claim(&path).unwrap();
        let other = Settings { seed: 1, ..settings.clone() };
        let error = other.claim(&path).unwrap_err().to_string();
        assert!(error.contains("`seed` 0, now 1"), "{error}");
        let other = Settings { task_version: TASK_VERSION + 1, ..settings.clone() };
        let error = other.claim(&path).unwrap_err().to_string();
        assert!(error.contains("`task_version` 1, now 2"), "{error}");
        let other = Settings { device: "NVIDIA H200 (bf16)".into(), ..settings.clone() };
        let error = other.claim(&path).unwrap_err().to_string();
        assert!(error.contains("`device` \"CPU (f32)\", now \"NVIDIA H200 (bf16)\""), "{error}");
        let config = TaskConfig { prompt: "shows:".into(), ..TaskConfig::default() };
        let error = Settings { config, ..settings }.claim(&path).unwrap_err().to_string();
        assert!(error.contains("`prompt` \"Output:\", now \"shows:\""), "{error}");
    }
}
