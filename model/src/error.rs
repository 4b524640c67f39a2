//! What can go wrong between a user's files or inputs and the model.

use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;

#[cfg(feature = "cuda")]
use crate::cuda::CudaError;
use crate::pickle::PickleError;
use crate::placement::NoRoom;
use crate::tensor::DeviceError;

/// Names of each kind that [`Mismatches`] prints.
const PRINTED_MAX: usize = 20;

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
    /// A file that is not safetensors cannot be read as a checkpoint of PyTorch either.
    #[error("{} is not a PyTorch checkpoint that can be read", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: PickleError,
    },
    /// A folder holds no weights under a name that is known.
    #[error("{} holds none of {}", path.display(), expected.join(", "))]
    NoWeights {
        /// The folder.
        path: PathBuf,
        /// The names that were looked for.
        expected: &'static [&'static str],
    },
    /// An index of shards does not fit its folder.
    #[error("{} puts tensor `{name}` into `{shard}`, which {problem}", path.display())]
    Shard {
        /// The index.
        path: PathBuf,
        /// The tensor.
        name: Box<str>,
        /// The shard.
        shard: Box<str>,
        /// What is wrong with the shard: `is not there`.
        problem: &'static str,
    },
    /// Two tensors that differ, or are of two files, have one name.
    #[error("{}: `{first}` and `{second}` both give tensor `{name}`", path.display())]
    TwoTensors {
        /// The file, or the index of the files.
        path: PathBuf,
        /// The name.
        name: Box<str>,
        /// The first tensor's file or former name.
        first: Box<str>,
        /// The second's.
        second: Box<str>,
    },
    /// A tensor's bytes are too few or not in the file, as in one that was cut short.
    #[error(
        "{}: tensor `{name}` lies at bytes {start} to {end} of {available}, but needs {needed}",
        path.display()
    )]
    TensorBytes {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: Box<str>,
        /// Where its bytes begin.
        start: u64,
        /// Where they end.
        end: u64,
        /// How many its shape and type ask for.
        needed: u64,
        /// Size of the file.
        available: u64,
    },
    /// The tensors of a file are not those of the model.
    #[error("{} does not hold the model's tensors: {problems}", path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// All that is wrong.
        problems: Box<Mismatches>,
    },
    /// A tensor has a type that is not read.
    #[error("{}: tensor `{name}` is {found}, expected F32, F16, BF16 or F64", path.display())]
    Type {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type, or what stands in its place.
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
    /// A model has parts that `OpenFlamingo` cannot have.
    #[error("OpenFlamingo has no such model: {}", reasons.join("; "))]
    NotOpenFlamingo {
        /// All that is different, by the keys of the configuration.
        reasons: Vec<String>,
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
    /// A run's `latest` names a checkpoint that is not there.
    #[error(
        "{} holds `{found}`, but checkpoints/{found} has no config.json; checkpoints that are there: {others}",
        path.display()
    )]
    NoStep {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: String,
        /// The checkpoints that are there, the newest first.
        others: String,
    },
    /// A file of a checkpoint is not what was written.
    #[error(
        "{} is damaged or was changed: its SHA-256 is {now}, but was {was} when it was written; checkpoints \
         that the run's `latest` may name in the place of this one: {others}",
        path.display()
    )]
    Checksum {
        /// The file.
        path: PathBuf,
        /// Its SHA-256 when it was written.
        was: Box<str>,
        /// Its SHA-256.
        now: Box<str>,
        /// The other checkpoints of the run, the newest first.
        others: String,
    },
    /// The checksums of a folder lack a file of it.
    #[error(
        "{} has no line `SHA-256  NAME` for `{name}`: it is damaged, or the file is not of this checkpoint",
        path.display()
    )]
    NoChecksum {
        /// The file with the checksums.
        path: PathBuf,
        /// The file that it lacks.
        name: Box<str>,
    },
    /// The file in a model folder that names the folder with the rest of its weights names another.
    #[error("{} holds `{found}`, expected `..`", path.display())]
    Base {
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
    /// A GPU was asked for.
    #[error("this program was built without CUDA: see ./build-cuda.sh")]
    NoCuda,
    /// A GPU has no room for the weights.
    #[error("{0}")]
    NoRoom(Box<NoRoom>),
    /// The device gave up.
    #[error("the device failed: {0}")]
    Device(DeviceError),
}

impl ModelError {
    /// Whether the memory of the device is full: smaller inputs may fit.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Device(DeviceError::OutOfMemory) => true,
            #[cfg(feature = "cuda")]
            Self::Device(DeviceError::Cuda(error)) => matches!(error, CudaError::Memory { .. }),
            _ => false,
        }
    }
}

impl From<DeviceError> for ModelError {
    fn from(source: DeviceError) -> Self {
        Self::Device(source)
    }
}

/// How the tensors of a file differ from those that a model has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mismatches {
    /// Names and shapes of tensors that are not there.
    pub missing: Vec<(String, Vec<usize>)>,
    /// Names of tensors that the model does not have.
    pub unexpected: Vec<String>,
    /// Names with the expected shape and the one found.
    pub misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// Names with what is there instead of floating-point numbers.
    pub mistyped: Vec<(String, String)>,
}

impl Mismatches {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Display for Mismatches {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut lists = Vec::new();
        list(&mut lists, "missing", &self.missing, |(name, shape)| format!("`{name}` {shape:?}"));
        list(&mut lists, "unexpected", &self.unexpected, |name| format!("`{name}`"));
        list(&mut lists, "misshapen", &self.misshapen, |(name, expected, found)| {
            format!("`{name}` {found:?} instead of {expected:?}")
        });
        list(&mut lists, "not of numbers that are read", &self.mistyped, |(name, found)| {
            format!("`{name}` is {found}")
        });
        f.write_str(&lists.join("; "))
    }
}

/// Adds one kind of problem to `lists`, if there is any: how many and the first of them.
fn list<T>(lists: &mut Vec<String>, what: &str, items: &[T], print: impl Fn(&T) -> String) {
    if items.is_empty() {
        return;
    }
    let printed: Vec<String> = items.iter().take(PRINTED_MAX).map(print).collect();
    let more = match items.len().saturating_sub(PRINTED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    lists.push(format!("{} {what}: {}{more}", items.len(), printed.join(", ")));
}
