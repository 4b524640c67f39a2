//! The models that can be evaluated: weights on this machine, a server, a file of predictions.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use flamingo_model::{Device, DeviceChoice, Precision};

use crate::benchmark::Benchmark;
use crate::endpoint::{Endpoint, EndpointOptions};
use crate::error::EvalError;
use crate::local_subject::{LoadedModel, LocalSubject};
use crate::part::Part;
use crate::predictions::{PredictionFile, PredictionSubject};
use crate::run_folder::RunFolder;
use crate::served_subject::EndpointSubject;
use crate::subject::{ModelCard, Subject};

/// The environment variable with the key of a server.
const KEY_VARIABLE: &str = "OPENAI_API_KEY";

/// Which model, as the command line names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelChoice {
    /// A run, checkpoint or model folder.
    Folder(PathBuf),
    /// `openai:NAME`: the model of this name at a server.
    Endpoint(String),
    /// `predictions:FILE`: what was predicted elsewhere.
    Predictions(PathBuf),
}

impl FromStr for ModelChoice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if let Some(name) = text.strip_prefix("openai:") {
            Self::Endpoint(name.to_owned())
        } else if let Some(file) = text.strip_prefix("predictions:") {
            Self::Predictions(file.into())
        } else {
            Self::Folder(text.into())
        })
    }
}

/// Where a model of ours computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The device.
    pub device: DeviceChoice,
    /// The number format, on a GPU.
    pub precision: Precision,
}

/// A model of ours, on a device.
///
/// # Errors
/// When the device cannot be used, or the model cannot be read.
pub fn open_local(path: &Path, place: Place) -> Result<LoadedModel, EvalError> {
    let device = Device::open(place.device, place.precision, |text| eprintln!("{text}"));
    let device = device.map_err(EvalError::Device)?;
    let model = LoadedModel::open(path, device)?;
    eprintln!("device: {device}");
    Ok(model)
}

/// A model that is ready to be asked.
pub enum Model {
    /// Weights.
    Local(Box<LoadedModel>),
    /// A server.
    Endpoint(Box<Endpoint>),
    /// A file.
    Predictions(PredictionFile),
}

impl Model {
    /// Loads weights, makes a client, or reads a file.
    ///
    /// # Errors
    /// When the device cannot be used, the model or file cannot be read, or the server has no address.
    pub fn open(
        choice: &ModelChoice,
        place: Place,
        endpoint: &EndpointOptions,
    ) -> Result<Self, EvalError> {
        match choice {
            ModelChoice::Folder(path) => Ok(Self::Local(Box::new(open_local(path, place)?))),
            ModelChoice::Endpoint(name) => {
                let key = std::env::var(KEY_VARIABLE).ok().filter(|key| !key.is_empty());
                Ok(Self::Endpoint(Box::new(Endpoint::open(name, endpoint, key.as_deref())?)))
            }
            ModelChoice::Predictions(path) => PredictionFile::read(path).map(Self::Predictions),
        }
    }

    /// The model on the media of a benchmark; `out` is the folder of the samples.
    ///
    /// # Errors
    /// When predictions are not of its items, or earlier answers cannot be read.
    pub fn subject<'a>(
        &'a self,
        benchmark: &'a Benchmark,
        out: &Path,
        part: Option<Part>,
    ) -> Result<Box<dyn Subject + 'a>, EvalError> {
        Ok(match self {
            Self::Local(model) => Box::new(LocalSubject::new(model, benchmark)),
            Self::Endpoint(endpoint) => {
                Box::new(EndpointSubject::new(endpoint, benchmark, out, part)?)
            }
            Self::Predictions(file) => Box::new(PredictionSubject::new(file, benchmark)?),
        })
    }

    /// What results say of it.
    pub fn card(&self) -> ModelCard {
        match self {
            Self::Local(model) => model.card(),
            Self::Endpoint(endpoint) => endpoint.card(),
            Self::Predictions(file) => file.card(),
        }
    }

    /// Its run, where there is one.
    pub fn run(&self) -> Option<&RunFolder> {
        match self {
            Self::Local(model) => Some(&model.folder),
            Self::Endpoint(_) | Self::Predictions(_) => None,
        }
    }
}
