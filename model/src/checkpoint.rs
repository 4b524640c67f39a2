//! Model folders: `config.json` and `model.safetensors`, by themselves or as checkpoints of a run.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::checksums::verify_checksum;
use crate::error::ModelError;
use crate::flamingo::sha256;
use crate::params::{Parameter, Params, Source};
use crate::spare::Spare;
use crate::tensor::DeviceError;
use crate::weights_file::{Tensors, write_tensors};

/// Reads a JSON file.
///
/// # Errors
/// When the file cannot be read or does not have the expected form.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    let text = std::fs::read_to_string(path).map_err(|source| ModelError::File {
        action: "read",
        path: path.to_path_buf(),
        source,
    })?;
    serde_json::from_str(&text)
        .map_err(|source| ModelError::ConfigFile { path: path.to_path_buf(), source })
}

/// Name of the configuration in a model folder; written last, so that a folder without it is not a
/// model.
const CONFIG_FILE: &str = "config.json";
/// Name of the weights in a model folder.
const WEIGHTS_FILE: &str = "model.safetensors";
/// Name of the file in a model folder that says where the weights are that its own file lacks.
const BASE_FILE: &str = "base";
/// What it says: the folder around it, so that it cannot lead elsewhere.
const BASE: &str = "..";
/// Name of the file in a run's folder that names its newest checkpoint.
const LATEST_FILE: &str = "latest";

/// Writes a model folder, which must exist. Both files are written under other names, brought to
/// disk and renamed.
///
/// # Errors
/// When a file cannot be written, or a GPU that holds the parameters has failed.
pub(crate) fn save_folder(
    folder: &Path,
    config: &impl serde::Serialize,
    params: &[&Params],
) -> Result<(), ModelError> {
    params.iter().try_for_each(|params| params.ready())?;
    let all = params.iter().flat_map(|params| params.iter());
    let tensors = all.map(|parameter| (&parameter.name, parameter));
    save_parts(folder, &config_text(folder, config)?, |part| write_tensors(part, tensors, &[]))
}

/// A model as it was at one moment, on the host: what a checkpoint is written from while the model goes on
/// learning. Trained weights are copies; frozen ones are those of the model itself, and take no memory.
#[derive(Debug)]
pub struct Snapshot {
    /// The text of `config.json`.
    config: String,
    parameters: Vec<Parameter>,
    /// Whether each is one that is not trained.
    is_frozen: Vec<bool>,
}

impl Snapshot {
    /// Copies what may change of a model's parameters, on all cores.
    ///
    /// # Errors
    /// When memory cannot hold the copies, or a GPU that holds the parameters has failed.
    pub(crate) fn take(
        spare: &Spare,
        config: &impl serde::Serialize,
        params: &[&Params],
    ) -> Result<Self, ModelError> {
        params.iter().try_for_each(|params| params.ready())?;
        let all: Vec<&Parameter> = params.iter().flat_map(|params| params.iter()).collect();
        let at_rest = |parameter: &&Parameter| {
            let (name, shape) = (parameter.name.clone(), parameter.shape.clone());
            Ok(Parameter { name, shape, weight: parameter.weight.at_rest(spare)? })
        };
        let parameters: Result<_, DeviceError> = all.par_iter().map(at_rest).collect();
        Ok(Self {
            config: config_text(Path::new(""), config)?,
            parameters: parameters?,
            is_frozen: all.iter().map(|parameter| !parameter.weight.is_trained()).collect(),
        })
    }

    /// Writes a model folder, which must exist, of the same bytes as the model would have written.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), ModelError> {
        let tensors = self.parameters.iter().map(|parameter| (&parameter.name, parameter));
        save_parts(folder, &self.config, |part| write_tensors(part, tensors, &[]))
    }

    /// Gives the memory of the copies back.
    pub fn into_spare(self, spare: &Spare) {
        let trained = self.parameters.into_iter().zip(self.is_frozen).filter(|(_, frozen)| !frozen);
        let buffers = trained.filter_map(|(parameter, _)| parameter.weight.into_values());
        buffers.for_each(|buffer| spare.put(buffer));
    }

    /// SHA-256 over names, shapes and values of the frozen parameters, in hexadecimal, as
    /// [`Flamingo::frozen_sha256`](crate::Flamingo::frozen_sha256).
    pub fn frozen_sha256(&self) -> String {
        let all = self.parameters.iter().zip(&self.is_frozen);
        sha256(all.filter(|(_, is_frozen)| **is_frozen).map(|(parameter, _)| parameter))
    }
}

fn config_text(folder: &Path, config: &impl serde::Serialize) -> Result<String, ModelError> {
    serde_json::to_string_pretty(config)
        .map_err(|source| ModelError::ConfigFile { path: folder.join(CONFIG_FILE), source })
}

/// As [`save_folder`], with tensors under any names.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn save_tensors(
    folder: &Path,
    config: &impl serde::Serialize,
    tensors: &Tensors,
) -> Result<(), ModelError> {
    let write = |part: &Path| tensors.write_with(part, &[("format", "pt")]);
    save_parts(folder, &config_text(folder, config)?, write)
}

fn save_parts(
    folder: &Path,
    config: &str,
    write: impl FnOnce(&Path) -> Result<(), ModelError>,
) -> Result<(), ModelError> {
    let part = folder.join(format!("{WEIGHTS_FILE}.part"));
    write(&part)?;
    rename(&part, &folder.join(WEIGHTS_FILE))?;

    let path = folder.join(CONFIG_FILE);
    let part = folder.join(format!("{CONFIG_FILE}.part"));
    write_synced(&part, config.as_bytes())?;
    rename(&part, &path)?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| ModelError::File {
        action: "write",
        path: folder.into(),
        source,
    })
}

pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    let written = File::create(path)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.map_err(|source| {
        // The error that matters is the first one.
        let _ = std::fs::remove_file(path);
        ModelError::File { action: "write", path: path.into(), source }
    })
}

fn rename(from: &Path, to: &Path) -> Result<(), ModelError> {
    std::fs::rename(from, to).map_err(|source| {
        let _ = std::fs::remove_file(from);
        ModelError::File { action: "write", path: to.into(), source }
    })
}

/// Writes a model into a new folder inside that of another one, from which it differs in the values of
/// `tensors` alone. What is the same in both is not written again: the file `base` says where it is.
///
/// # Errors
/// When `model` is not the folder of a model or cannot be written.
pub fn save_variant(model: &Path, name: &str, tensors: &Tensors) -> Result<(), ModelError> {
    let folder = model.join(name);
    let made = std::fs::create_dir(&folder);
    made.map_err(|source| ModelError::File { action: "create", path: folder.clone(), source })?;
    write_synced(&folder.join(BASE_FILE), format!("{BASE}\n").as_bytes())?;
    let path = model.join(CONFIG_FILE);
    let config = std::fs::read_to_string(&path);
    let config = config.map_err(|source| ModelError::File { action: "read", path, source })?;
    save_parts(&folder, &config, |part| tensors.write(part))
}

/// The weights of a model folder, with those of its base where it has one, and the path of the file.
fn read_weights(folder: &Path) -> Result<(Tensors, PathBuf), ModelError> {
    let path = folder.join(WEIGHTS_FILE);
    verify_checksum(&path)?;
    let tensors = Tensors::read(&path)?;
    let base = folder.join(BASE_FILE);
    let text = match std::fs::read_to_string(&base) {
        Ok(text) => text,
        Err(source) if source.kind() == ErrorKind::NotFound => return Ok((tensors, path)),
        Err(source) => return Err(ModelError::File { action: "read", path: base, source }),
    };
    if text.trim() != BASE {
        return Err(ModelError::Base { path: base, found: text.trim().to_owned() });
    }
    let around = folder.join(BASE);
    let around = around.canonicalize().unwrap_or(around).join(WEIGHTS_FILE);
    verify_checksum(&around)?;
    let mut all = Tensors::read(&around)?;
    all.replace(tensors);
    Ok((all, path))
}

/// The file with the weights that the model in a folder shares with the one in the folder around it, if
/// it does.
pub fn base_weights(folder: &Path) -> Option<PathBuf> {
    folder.join(BASE_FILE).is_file().then(|| folder.join(BASE).join(WEIGHTS_FILE))
}

/// The configuration and weights in a model folder, or in the newest checkpoint of a run's folder.
///
/// # Errors
/// When the folder is neither, or a file in it cannot be read.
pub(crate) fn load_folder<T: serde::de::DeserializeOwned>(
    folder: &Path,
) -> Result<(T, Source), ModelError> {
    let (config, tensors, path) = read_folder(folder)?;
    Ok((config, Source::Stored { tensors, path }))
}

/// What a folder holds: a model of ours, or one in the form of Hugging Face.
#[derive(Debug)]
pub(crate) enum Folder<T> {
    /// The configuration, and where the parameters come from.
    Ours(T, Source),
    /// `config.json` as it is, and the weights.
    HuggingFace {
        /// `config.json`.
        config: serde_json::Value,
        /// The weights.
        tensors: Tensors,
        /// The folder.
        path: PathBuf,
    },
}

/// Opens a model folder or a run's, in whichever form: Hugging Face's `config.json` names a
/// `model_type`, ours does not.
///
/// # Errors
/// When the folder is neither, or a file in it cannot be read.
pub(crate) fn open_folder<T: serde::de::DeserializeOwned>(
    folder: &Path,
) -> Result<Folder<T>, ModelError> {
    let path = model_folder(folder)?;
    let config: serde_json::Value = read_json(&path.join(CONFIG_FILE))?;
    if config.get("model_type").is_none() {
        let (config, source) = load_folder(&path)?;
        return Ok(Folder::Ours(config, source));
    }
    let tensors = Tensors::open(&path)?;
    Ok(Folder::HuggingFace { config, tensors, path })
}

/// As [`load_folder`]: the configuration, the tensors, and the path of the weights.
///
/// # Errors
/// When the folder is neither, or a file in it cannot be read.
pub(crate) fn read_folder<T: serde::de::DeserializeOwned>(
    folder: &Path,
) -> Result<(T, Tensors, PathBuf), ModelError> {
    let folder = model_folder(folder)?;
    let path = folder.join(CONFIG_FILE);
    verify_checksum(&path)?;
    let config = read_json(&path)?;
    let (tensors, path) = read_weights(&folder)?;
    Ok((config, tensors, path))
}

/// The configuration in a model folder, or in the newest checkpoint of a run's folder.
///
/// # Errors
/// When the folder is neither, or the file cannot be read.
pub fn read_config<T: serde::de::DeserializeOwned>(folder: &Path) -> Result<T, ModelError> {
    read_json(&model_folder(folder)?.join(CONFIG_FILE))
}

/// The model folder that `folder` means: of a run, the checkpoint that its `latest` names; else
/// `folder` itself.
///
/// # Errors
/// When it is neither a run with a checkpoint nor a model folder, or `latest` does not name a step.
pub fn model_folder(folder: &Path) -> Result<PathBuf, ModelError> {
    let not_a_run = |expected| ModelError::NotARun { path: folder.to_path_buf(), expected };
    let latest = folder.join(LATEST_FILE);
    if !latest.is_file() {
        let is_model = folder.join(CONFIG_FILE).is_file();
        let lacks = || not_a_run("`latest` and no `config.json`");
        return is_model.then(|| folder.to_path_buf()).ok_or_else(lacks);
    }
    let text = std::fs::read_to_string(&latest).map_err(|source| ModelError::File {
        action: "read",
        path: latest.clone(),
        source,
    })?;
    let name = text.trim();
    if !is_step(name) {
        return Err(ModelError::Latest { path: latest, found: name.to_owned() });
    }
    let newest = folder.join("checkpoints").join(name);
    if !newest.join(CONFIG_FILE).is_file() {
        let (found, others) = (name.to_owned(), other_steps(&newest));
        return Err(ModelError::NoStep { path: latest, found, others });
    }
    Ok(newest)
}

/// Whether a name is `step-N`, so that `latest` cannot lead out of its run.
fn is_step(name: &str) -> bool {
    name.strip_prefix("step-")
        .is_some_and(|step| !step.is_empty() && step.bytes().all(|digit| digit.is_ascii_digit()))
}

/// Checkpoints that [`other_steps`] names.
const NAMED_MAX: usize = 5;

/// Names the checkpoints of a run but for the one that `path` is or is in, the newest first, for messages.
pub fn other_steps(path: &Path) -> String {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // One that is gone is named by its run.
    let path = path.canonicalize().unwrap_or_else(|_| path.into());
    let Some(own) = path.ancestors().find(|folder| is_step(&name(folder))) else {
        return "none".to_owned();
    };
    let entries = own.parent().and_then(|parent| std::fs::read_dir(parent).ok());
    let paths = entries.into_iter().flatten().flatten().map(|entry| entry.path());
    let others = paths.filter(|path| path != own && path.join(CONFIG_FILE).is_file());
    let number = |path: PathBuf| name(&path).strip_prefix("step-")?.parse::<u64>().ok();
    let mut steps: Vec<u64> = others.filter_map(number).collect();
    steps.sort_unstable_by(|a, b| b.cmp(a));
    let names: Vec<String> =
        steps.iter().take(NAMED_MAX).map(|step| format!("step-{step}")).collect();
    match steps.len() {
        0 => "none".to_owned(),
        n if n > NAMED_MAX => format!("{} and {} older ones", names.join(", "), n - NAMED_MAX),
        _ => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_decides_and_must_name_a_step_of_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path();
        let error = || model_folder(run).unwrap_err().to_string();
        assert!(error().contains("no `latest` and no `config.json`"), "{}", error());
        std::fs::write(run.join("config.json"), "{}").unwrap();
        assert_eq!(model_folder(run).unwrap(), run);

        let step = run.join("checkpoints/step-7");
        std::fs::create_dir_all(&step).unwrap();
        std::fs::write(run.join("latest"), "step-7\n").unwrap();
        assert!(error().contains("`step-7`, but checkpoints/step-7 has no"), "{}", error());
        assert!(error().ends_with("that are there: none"), "{}", error());
        for other in ["step-3", "step-12", "removed-1", "unfinished"] {
            let other = run.join("checkpoints").join(other);
            std::fs::create_dir(&other).unwrap();
            std::fs::write(other.join("config.json"), "{}").unwrap();
        }
        assert!(error().ends_with("that are there: step-12, step-3"), "{}", error());
        for step in 20..25 {
            let other = run.join(format!("checkpoints/step-{step}"));
            std::fs::create_dir(&other).unwrap();
            std::fs::write(other.join("config.json"), "{}").unwrap();
        }
        assert!(error().ends_with("step-22, step-21, step-20 and 2 older ones"), "{}", error());
        std::fs::write(step.join("config.json"), "{}").unwrap();
        assert_eq!(model_folder(run).unwrap(), step);
        assert_eq!(model_folder(&step).unwrap(), step);

        for name in ["", "..", "/etc", "step-", "step-7/..", "step--1", "step-x"] {
            std::fs::write(run.join("latest"), name).unwrap();
            let expected = format!("latest holds `{name}`, expected `step-N`");
            assert!(error().contains(&expected), "{}", error());
        }
    }

    #[test]
    fn a_snapshot_is_the_model_as_it_was_byte_by_byte() {
        let config: crate::LanguageConfig = serde_json::from_str(
            r#"{"vocabulary": 9, "context": 4, "width": 8, "layers": 1, "heads": 2,
                "activation": "gelu"}"#,
        )
        .unwrap();
        let mut model = crate::LanguageModel::new(&config, 5).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let [then, snapshot, now] = ["then", "snapshot", "now"].map(|name| {
            let folder = folder.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            folder
        });
        model.save(&then).unwrap();
        let taken = model.snapshot(&Spare::default()).unwrap();
        for params in crate::Trainable::params_mut(&mut model) {
            let change = |_: &str, _: &[usize], values: &mut [f32], _: &[f32]| values.fill(1.0);
            params.update(&mut crate::Gradients::default(), change).unwrap();
        }
        taken.save(&snapshot).unwrap();
        model.save(&now).unwrap();
        for file in [WEIGHTS_FILE, CONFIG_FILE] {
            let read = |folder: &Path| std::fs::read(folder.join(file)).unwrap();
            assert!(read(&then) == read(&snapshot), "{file} is not what the model would write");
            assert_eq!(read(&then) == read(&now), file == CONFIG_FILE);
        }
    }

    #[test]
    fn frozen_weights_are_shared_with_a_snapshot_and_trained_ones_are_not() {
        let config = crate::FlamingoConfig::preset("tiny").unwrap();
        let tower = crate::Tower { from: None, trained: false };
        let model = crate::Flamingo::on_towers(&config, tower, tower, 3).unwrap();
        let taken = model.snapshot(&Spare::default()).unwrap();
        assert_eq!(taken.frozen_sha256(), model.frozen_sha256());
        let all = crate::Trainable::params(&model);
        let all = all.iter().flat_map(|params| params.iter());
        for (parameter, copy) in all.zip(&taken.parameters) {
            let (values, copied) = (parameter.weight.values(), copy.weight.values());
            let (name, is_trained) = (&parameter.name, parameter.weight.is_trained());
            assert_eq!(values, copied, "{name}");
            assert_eq!(values.as_ptr() != copied.as_ptr(), is_trained, "{name}");
        }
    }
}
