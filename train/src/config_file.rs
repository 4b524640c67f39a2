//! Reading a config file: overrides, and messages that name file, key and line. What can work is checked in
//! [`config_checks`](crate::config_checks) and [`data_checks`](crate::data_checks) for all stages, and in
//! [`stage_checks`](crate::stage_checks) for one.

use std::path::{Path, PathBuf};

use flamingo_dataset::ImageConfig;
use flamingo_model::ModelError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::Table;

use crate::config::{DataConfig, RunConfig, TokenizerConfig};
use crate::error::TrainError;
use crate::limits::Size;
use crate::overrides::Override;

/// A config as read, with the names that messages need.
#[derive(Debug, Clone)]
pub struct ConfigFile<M> {
    /// The checked config.
    pub config: RunConfig<M>,
    /// The file that it was read from.
    pub path: PathBuf,
}

impl<M: DeserializeOwned + Serialize> ConfigFile<M> {
    /// Reads a config file, applies overrides and checks what is common to all stages.
    ///
    /// # Errors
    /// When the file cannot be read, is not TOML, has unknown, missing or wrong keys, or an
    /// override does not fit.
    pub fn read(path: &Path, overrides: &[Override]) -> Result<Self, TrainError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| TrainError::ConfigRead { path: path.to_path_buf(), source })?;
        let mut table: Table = toml::from_str(&text).map_err(|e| parse_error(path, &text, &e))?;
        if overrides.is_empty() {
            let config = toml::from_str(&text).map_err(|e| parse_error(path, &text, &e))?;
            return Self { config, path: path.to_path_buf() }.checked();
        }
        for change in overrides {
            change
                .apply(&mut table)
                .map_err(|message| TrainError::Override { given: change.given.clone(), message })?;
        }
        let config = table
            .try_into()
            .map_err(|error| overridden_error::<M>(path, &text, overrides, &error))?;
        Self { config, path: path.to_path_buf() }.checked()
    }

    /// All datasets, each with its path in the config.
    pub(crate) fn datasets(&self) -> Vec<(String, DataConfig)> {
        let learned = self.config.data.iter().cloned().map(|entry| ("data", entry));
        let held_out = self.config.held_out().into_iter().map(|entry| ("validation.data", entry));
        let all = learned.chain(held_out);
        all.map(|(table, entry)| (format!("{table}.{}", entry.name), entry)).collect()
    }

    /// Fails unless every size of a table is within its limit.
    pub(crate) fn require_sizes(&self, table: &str, sizes: &[Size]) -> Result<(), TrainError> {
        sizes.iter().try_for_each(|(field, value, most)| {
            self.require(
                value <= most,
                format!("{table}.{field}"),
                value,
                &format!("at most {most}"),
            )
        })
    }

    /// Blames this file for what a model finds wrong with its `[model]`.
    ///
    /// # Errors
    /// When `checked` is an error. Its key becomes the one that stands in this file.
    pub fn require_model(&self, checked: Result<(), ModelError>) -> Result<(), TrainError> {
        checked.map_err(|error| match error {
            ModelError::Config { field, value, expected } => {
                let key = model_key(&field);
                TrainError::ConfigValue { path: self.path.clone(), key, value, expected }
            }
            other => TrainError::model("build")(other),
        })
    }

    /// Fails with the key's name unless `holds`.
    ///
    /// # Errors
    /// When `holds` is false.
    pub fn require(
        &self,
        holds: bool,
        key: impl Into<String>,
        value: &impl ToString,
        expected: &str,
    ) -> Result<(), TrainError> {
        if holds {
            return Ok(());
        }
        Err(TrainError::ConfigValue {
            path: self.path.clone(),
            key: key.into(),
            value: value.to_string(),
            expected: expected.to_owned(),
        })
    }

    /// The `[image]` section.
    ///
    /// # Errors
    /// When there is none.
    pub fn image(&self) -> Result<&ImageConfig, TrainError> {
        self.section(self.config.image.as_ref(), "image")
    }

    /// The `[tokenizer]` section.
    ///
    /// # Errors
    /// When there is none.
    pub fn tokenizer(&self) -> Result<&TokenizerConfig, TrainError> {
        self.section(self.config.tokenizer.as_ref(), "tokenizer")
    }

    fn section<'config, T>(
        &self,
        section: Option<&'config T>,
        key: &str,
    ) -> Result<&'config T, TrainError> {
        section.ok_or_else(|| TrainError::ConfigValue {
            path: self.path.clone(),
            key: key.to_owned(),
            value: "missing".to_owned(),
            expected: format!("a section [{key}]"),
        })
    }

    /// The effective config, as it is written to the run folder.
    ///
    /// # Panics
    /// Never: a config holds only numbers, texts, lists and tables.
    pub fn to_toml(&self) -> String {
        toml::to_string(&self.config).expect("a config holds only numbers, texts, lists and tables")
    }
}

/// The key of a model's field in a stage's config. The language stage's `[model]` is the model's
/// `language`; a field of several words and no table is a number that follows from others.
fn model_key(field: &str) -> String {
    if field.contains(' ') && !field.contains('.') {
        return field.to_owned();
    }
    format!("model.{}", field.strip_prefix("language.").unwrap_or(field))
}

pub(crate) fn parse_error(path: &Path, text: &str, error: &toml::de::Error) -> TrainError {
    let line = error.span().map(|span| text[..span.start].matches('\n').count() + 1);
    let message = error.message().trim().replace('\n', " ");
    TrainError::ConfigParse { path: path.to_path_buf(), line, message }
}

/// Blames the file where the file alone is wrong, and the overrides otherwise.
fn overridden_error<M: DeserializeOwned>(
    path: &Path,
    text: &str,
    overrides: &[Override],
    error: &toml::de::Error,
) -> TrainError {
    if let Err(error) = toml::from_str::<RunConfig<M>>(text) {
        return parse_error(path, text, &error);
    }
    let given: Vec<&str> = overrides.iter().map(|change| change.given.as_str()).collect();
    let message = error.to_string().trim().replace('\n', " ");
    TrainError::Override { given: given.join(" --set "), message }
}
