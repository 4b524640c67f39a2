//! Reading a config file: overrides, the checks common to all stages, and messages that name file, key and line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use flamingo_dataset::{ImageConfig, Tokenizer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::config::{DataConfig, RunConfig, TokenizerConfig};
use crate::error::TrainError;
use crate::optimizer::OptimizerConfig;
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
    /// When the file cannot be read, is not TOML, has unknown, missing or wrong keys, or an override does not fit.
    pub fn read(path: &Path, overrides: &[Override]) -> Result<Self, TrainError> {
        let text = std::fs::read_to_string(path).map_err(TrainError::file("read", path))?;
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

    fn checked(self) -> Result<Self, TrainError> {
        let config = &self.config;
        for (key, value) in [
            ("steps", config.steps),
            ("checkpoint_every", config.checkpoint_every),
            ("keep_last", config.keep_last as u64),
        ] {
            self.require(value > 0, key, &value, "at least 1")?;
        }
        self.check_optimizer(&config.optimizer)?;
        self.require(!config.data.is_empty(), "data", &"empty", "at least one dataset")?;
        for (index, entry) in config.data.iter().enumerate() {
            self.check_dataset(index, entry)?;
        }
        Ok(self)
    }

    fn check_optimizer(&self, optimizer: &OptimizerConfig) -> Result<(), TrainError> {
        for (key, value) in [
            ("optimizer.lr", optimizer.lr),
            ("optimizer.clip_norm", optimizer.clip_norm),
            ("optimizer.epsilon", optimizer.epsilon),
        ] {
            self.require(value > 0.0 && value.is_finite(), key, &value, "above 0")?;
        }
        for (key, value) in
            [("optimizer.beta1", optimizer.beta1), ("optimizer.beta2", optimizer.beta2)]
        {
            self.require((0.0..1.0).contains(&value), key, &value, "0 to below 1")?;
        }
        let decay = optimizer.weight_decay;
        let fits = decay >= 0.0 && decay.is_finite();
        self.require(fits, "optimizer.weight_decay", &decay, "0 or more")
    }

    fn check_dataset(&self, index: usize, entry: &DataConfig) -> Result<(), TrainError> {
        let key = |field: &str| format!("data.{}.{field}", entry.name);
        let is_new = self.config.data[..index].iter().all(|other| other.name != entry.name);
        self.require(is_new, format!("data.{index}.name"), &entry.name, "a name of its own")?;
        self.require(entry.batch > 0, key("batch"), &entry.batch, "at least 1")?;
        let weight = entry.weight;
        self.require(weight >= 0.0 && weight.is_finite(), key("weight"), &weight, "0 or more")?;
        self.require(entry.tokens > 1, key("tokens"), &entry.tokens, "at least 2")?;
        self.require(entry.frames > 0, key("frames"), &entry.frames, "at least 1")?;
        for (field, value) in [
            ("next_image_probability", entry.next_image_probability),
            ("space_prefix_probability", entry.space_prefix_probability),
            ("flip_probability", entry.flip_probability),
            ("colour_jitter", entry.colour_jitter),
        ] {
            self.require((0.0..=1.0).contains(&value), key(field), &value, "0 to 1")?;
        }
        Ok(())
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

    /// Fails unless every dataset has a number of images that the stage can take.
    ///
    /// # Errors
    /// When a dataset has another number of images.
    pub fn require_images(
        &self,
        fits: impl Fn(usize) -> bool,
        expected: &str,
    ) -> Result<(), TrainError> {
        self.config.data.iter().try_for_each(|entry| {
            let key = format!("data.{}.images", entry.name);
            self.require(fits(entry.images), key, &entry.images, expected)
        })
    }

    /// Fails unless every dataset's rows fit the positions of the language model.
    ///
    /// # Errors
    /// When a dataset has longer rows.
    pub fn require_context(&self, context: usize) -> Result<(), TrainError> {
        self.config.data.iter().try_for_each(|entry| {
            let key = format!("data.{}.tokens", entry.name);
            let expected = format!("at most the model's context of {context}");
            self.require(entry.tokens <= context, key, &entry.tokens, &expected)
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

    /// Fails unless the model has a row for every token.
    ///
    /// # Errors
    /// When the tokenizer has more tokens than the model's vocabulary.
    pub fn require_vocabulary(
        &self,
        key: &str,
        vocabulary: usize,
        tokenizer: &Tokenizer,
    ) -> Result<(), TrainError> {
        let n_tokens = tokenizer.n_tokens();
        let expected = format!("at least the tokenizer's {n_tokens} tokens");
        self.require(vocabulary >= n_tokens, key, &vocabulary, &expected)
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

fn parse_error(path: &Path, text: &str, error: &toml::de::Error) -> TrainError {
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

/// The first key, in alphabetical order, whose value differs between two configs: its path and both values.
pub fn first_difference(was: &Table, now: &Table) -> Option<(String, String, String)> {
    let (was, now) = (leaves(was), leaves(now));
    let mut keys: Vec<&String> = was.keys().chain(now.keys()).collect();
    keys.sort();
    let value = |of: &BTreeMap<String, String>, key: &String| {
        of.get(key).cloned().unwrap_or_else(|| "missing".to_owned())
    };
    keys.into_iter()
        .find(|key| was.get(*key) != now.get(*key))
        .map(|key| (key.clone(), value(&was, key), value(&now, key)))
}

/// Every single value of a config under its path, with the elements of lists under their `name` or index.
fn leaves(table: &Table) -> BTreeMap<String, String> {
    fn collect(path: &str, value: &Value, into: &mut BTreeMap<String, String>) {
        match value {
            Value::Table(table) => {
                for (key, value) in table {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    collect(&path, value, into);
                }
            }
            Value::Array(list) if list.iter().any(Value::is_table) => {
                for (index, value) in list.iter().enumerate() {
                    let name = value.get("name").and_then(Value::as_str);
                    let name = name.map_or_else(|| index.to_string(), str::to_owned);
                    collect(&format!("{path}.{name}"), value, into);
                }
            }
            value => {
                into.insert(path.to_owned(), value.to_string());
            }
        }
    }
    let mut into = BTreeMap::new();
    collect("", &Value::Table(table.clone()), &mut into);
    into
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named_by_its_path() {
        let check = |was: &str, now: &str, expected: Option<(&str, &str, &str)>| {
            let found =
                first_difference(&toml::from_str(was).unwrap(), &toml::from_str(now).unwrap());
            let found = found.as_ref().map(|(key, was, now)| (&key[..], &was[..], &now[..]));
            assert_eq!(found, expected);
        };
        check("a = 1\nb = [1, 2]", "b = [1, 2]\na = 1", None);
        check("a = 1\nb.c = 2", "a = 1\nb.c = 3", Some(("b.c", "2", "3")));
        check("a = 1", "", Some(("a", "1", "missing")));
        let pairs = "[[data]]\nname = 'pairs'\nbatch = 1\n";
        check(pairs, &pairs.replace('1', "2"), Some(("data.pairs.batch", "1", "2")));
    }
}
