//! What can go wrong between a user's files or inputs and the model.

use std::path::PathBuf;

use crate::tensor::DeviceError;

/// Why a model could not be built, loaded, saved or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried: `read`, `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A weights file is not in the safetensors format.
    #[error("{} is not a safetensors file", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        source: safetensors::SafeTensorError,
    },
    /// A tensor has a type that is not read.
    #[error("{}: tensor `{name}` is {found}, expected F32", path.display())]
    Type {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        found: String,
    },
    /// A weights file lacks a tensor.
    #[error("{} lacks tensor `{name}` of shape {shape:?}", path.display())]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The shape that the configuration asks for.
        shape: Vec<usize>,
    },
    /// A tensor has the wrong shape.
    #[error("{}: tensor `{name}` has shape {found:?}, expected {expected:?}", path.display())]
    TensorShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The shape that the configuration asks for.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A parameter has no name in the form that was asked for.
    #[error("parameter `{name}` has no place in this form of checkpoint")]
    NoName {
        /// Our name.
        name: String,
    },
    /// A configuration file asks for what is not supported, or lacks a field.
    #[error("{}: `{field}` is {value}, expected {expected}", path.display())]
    ConfigField {
        /// The file.
        path: PathBuf,
        /// The field.
        field: Box<str>,
        /// Its value.
        value: Box<str>,
        /// What is supported.
        expected: Box<str>,
    },
    /// A model is built as no family that others know.
    #[error("{what} is not built like any model of {of}: it cannot be written in that form")]
    NoFamily {
        /// The part of the model.
        what: &'static str,
        /// Whose form was asked for.
        of: &'static str,
    },
    /// A configuration file is not valid JSON of the expected form.
    #[error("{} is not a valid configuration", path.display())]
    ConfigFile {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A configuration value cannot work.
    #[error("{field} is {value}, expected {expected}")]
    Config {
        /// The key.
        field: String,
        /// Its value.
        value: String,
        /// What would work.
        expected: String,
    },
    /// A folder is neither a run nor a checkpoint.
    #[error("{} is not a run or checkpoint: no {expected}", path.display())]
    NotARun {
        /// The folder.
        path: PathBuf,
        /// The file that was looked for.
        expected: &'static str,
    },
    /// A run's `latest` does not name a checkpoint.
    #[error("{} holds `{found}`, expected `step-N`", path.display())]
    Latest {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: String,
    },
    /// The model gives numbers that cannot be compared, as diverged weights do.
    #[error("the {what} of the model are not finite")]
    NotFinite {
        /// Which numbers: `logits`, `log-likelihoods`.
        what: &'static str,
    },
    /// An input does not fit the model or itself.
    #[error("input {what} is {found}, expected {expected}")]
    Input {
        /// Which part of the input.
        what: &'static str,
        /// Its size or value.
        found: String,
        /// What would fit.
        expected: String,
    },
    /// The device gave up.
    #[error("the device failed: {0}")]
    Device(DeviceError),
}

impl From<DeviceError> for ModelError {
    fn from(source: DeviceError) -> Self {
        Self::Device(source)
    }
}
