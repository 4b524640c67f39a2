//! Fields of the `config.json` of others.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::error::ModelError;
use crate::ops::Activation;

/// Reads the fields of a `config.json` and answers with errors that name them.
pub(crate) struct Fields<'a> {
    /// The file, for messages.
    pub(crate) path: &'a Path,
    /// What it holds.
    pub(crate) all: &'a Value,
}

impl Fields<'_> {
    /// The value of a field.
    pub(crate) fn get<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<T, ModelError> {
        self.or(name, None)
    }

    /// The value of a field, which may be missing or null if there is a default.
    pub(crate) fn or<T: for<'de> Deserialize<'de>>(
        &self,
        name: &str,
        default: Option<T>,
    ) -> Result<T, ModelError> {
        let value = self.all.get(name).filter(|value| !value.is_null());
        match (value, default) {
            (None, Some(default)) => Ok(default),
            (value, _) => T::deserialize(value.unwrap_or(&Value::Null))
                .map_err(|_| self.refused(name, "a value of the right kind")),
        }
    }

    /// Refuses any value but `expected`, which is also the default.
    pub(crate) fn only(&self, name: &str, expected: &Value) -> Result<(), ModelError> {
        match self.all.get(name) {
            Some(value) if !value.is_null() && value != expected => {
                Err(self.refused(name, &expected.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// The error that says what a field should be.
    pub(crate) fn refused(&self, name: &str, expected: &str) -> ModelError {
        let value = self.all.get(name).map_or("nothing".to_owned(), Value::to_string);
        ModelError::ConfigField {
            path: self.path.to_path_buf(),
            field: name.into(),
            value: value.into(),
            expected: expected.into(),
        }
    }

    /// An activation by its name, which may be missing.
    pub(crate) fn activation_or(
        &self,
        name: &str,
        default: Activation,
    ) -> Result<Activation, ModelError> {
        if self.all.get(name).is_none() { Ok(default) } else { self.activation(name) }
    }

    /// An activation by its name.
    pub(crate) fn activation(&self, name: &str) -> Result<Activation, ModelError> {
        let known: Result<Activation, _> = self.get(name);
        known.map_err(|_| self.refused(name, "`gelu`, `gelu_new`, `quick_gelu`, `relu` or `silu`"))
    }
}
