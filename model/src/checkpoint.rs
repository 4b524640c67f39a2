//! Model folders: `config.json` and `model.safetensors`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::error::ModelError;
use crate::params::{Params, Source};

/// The f32 tensors of a file, by name.
#[derive(Debug, Clone, Default)]
pub struct Tensors(BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl Tensors {
    /// Reads every tensor of a file.
    ///
    /// # Errors
    /// When the file cannot be read, is not a safetensors file, or holds a tensor that is not f32.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let bytes = std::fs::read(path).map_err(|source| ModelError::File {
            action: "read",
            path: path.to_path_buf(),
            source,
        })?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|source| ModelError::Weights { path: path.to_path_buf(), source })?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.tensors() {
            if view.dtype() != Dtype::F32 {
                return Err(ModelError::Type {
                    path: path.to_path_buf(),
                    name,
                    found: format!("{:?}", view.dtype()),
                });
            }
            let (values, _) = view.data().as_chunks::<4>();
            let values = values.iter().map(|b| f32::from_le_bytes(*b)).collect();
            tensors.insert(name, (view.shape().to_vec(), values));
        }
        Ok(Self(tensors))
    }

    /// Takes out all tensors whose names begin with `prefix`.
    pub(crate) fn split_off(&mut self, prefix: &str) -> Self {
        Self(self.0.extract_if(.., |name, _| name.starts_with(prefix)).collect())
    }

    /// Adds a tensor.
    pub fn insert(&mut self, name: impl Into<String>, shape: &[usize], values: Vec<f32>) {
        self.0.insert(name.into(), (shape.to_vec(), values));
    }

    /// The values of a tensor, if it is there.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.0.get(name).map(|(_, values)| values.as_slice())
    }

    /// Moves a tensor's values out, after checking its shape.
    ///
    /// # Errors
    /// When the tensor is missing or has another shape; `path` names the file in the message.
    pub fn take(
        &mut self,
        name: &str,
        shape: &[usize],
        path: &Path,
    ) -> Result<Vec<f32>, ModelError> {
        let (found, values) = self.0.remove(name).ok_or_else(|| ModelError::MissingTensor {
            path: path.to_path_buf(),
            name: name.to_owned(),
            shape: shape.to_vec(),
        })?;
        if found != shape {
            return Err(ModelError::TensorShape {
                path: path.to_path_buf(),
                name: name.to_owned(),
                expected: shape.to_vec(),
                found,
            });
        }
        Ok(values)
    }

    /// Writes the tensors to a new file and waits until they are on disk.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), ModelError> {
        let buffers: Vec<(&String, &Vec<usize>, Vec<u8>)> = self
            .0
            .iter()
            .map(|(name, (shape, values))| {
                (name, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
            })
            .collect();
        let mut views = Vec::with_capacity(buffers.len());
        for (name, shape, bytes) in &buffers {
            let view = TensorView::new(Dtype::F32, (*shape).clone(), bytes)
                .map_err(|source| ModelError::Weights { path: path.into(), source })?;
            views.push((name.as_str(), view));
        }
        let bytes = safetensors::serialize(views, None)
            .map_err(|source| ModelError::Weights { path: path.into(), source })?;
        write_synced(path, &bytes)
    }
}

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

/// Name of the configuration in a model folder; written last, so that a folder without it is not a model.
const CONFIG_FILE: &str = "config.json";
/// Name of the weights in a model folder.
const WEIGHTS_FILE: &str = "model.safetensors";
/// Name of the file in a run's folder that names its newest checkpoint.
const LATEST_FILE: &str = "latest";

/// Writes a model folder, which must exist. Both files are written under other names, brought to disk and renamed.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn save_folder(
    folder: &Path,
    config: &impl serde::Serialize,
    params: &[&Params],
) -> Result<(), ModelError> {
    let mut tensors = Tensors::default();
    for parameter in params.iter().flat_map(|params| params.iter()) {
        let values = parameter.weight.values().into_owned();
        tensors.insert(parameter.name.clone(), &parameter.shape, values);
    }
    let part = folder.join(format!("{WEIGHTS_FILE}.part"));
    tensors.write(&part)?;
    rename(&part, &folder.join(WEIGHTS_FILE))?;

    let path = folder.join(CONFIG_FILE);
    let text = serde_json::to_string_pretty(config)
        .map_err(|source| ModelError::ConfigFile { path: path.clone(), source })?;
    let part = folder.join(format!("{CONFIG_FILE}.part"));
    write_synced(&part, text.as_bytes())?;
    rename(&part, &path)
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    File::create(path)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .map_err(|source| ModelError::File { action: "write", path: path.into(), source })
}

fn rename(from: &Path, to: &Path) -> Result<(), ModelError> {
    std::fs::rename(from, to).map_err(|source| ModelError::File {
        action: "write",
        path: to.into(),
        source,
    })
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

/// As [`load_folder`]: the configuration, the tensors, and the path of the weights.
///
/// # Errors
/// When the folder is neither, or a file in it cannot be read.
pub(crate) fn read_folder<T: serde::de::DeserializeOwned>(
    folder: &Path,
) -> Result<(T, Tensors, PathBuf), ModelError> {
    let folder = model_folder(folder)?;
    let config = read_json(&folder.join(CONFIG_FILE))?;
    let path = folder.join(WEIGHTS_FILE);
    Ok((config, Tensors::read(&path)?, path))
}

/// The configuration in a model folder, or in the newest checkpoint of a run's folder.
///
/// # Errors
/// When the folder is neither, or the file cannot be read.
pub fn read_config<T: serde::de::DeserializeOwned>(folder: &Path) -> Result<T, ModelError> {
    read_json(&model_folder(folder)?.join(CONFIG_FILE))
}

/// `folder` itself if it holds a model, else the checkpoint that its `latest` names.
///
/// # Errors
/// When it holds neither.
pub fn model_folder(folder: &Path) -> Result<PathBuf, ModelError> {
    if folder.join(CONFIG_FILE).is_file() {
        return Ok(folder.to_path_buf());
    }
    let not_a_run = |expected| ModelError::NotARun { path: folder.to_path_buf(), expected };
    let latest = std::fs::read_to_string(folder.join(LATEST_FILE))
        .map_err(|_| not_a_run("`config.json` and no `latest`"))?;
    let newest = folder.join("checkpoints").join(latest.trim());
    if !newest.join(CONFIG_FILE).is_file() {
        return Err(not_a_run("`config.json` in the checkpoint that `latest` names"));
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_file_reads_back_bit_by_bit_and_misuse_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let mut tensors = Tensors::default();
        tensors.insert("a", &[2, 2], vec![1.0, -0.0, f32::MIN_POSITIVE, 3.5]);
        tensors.write(&path).unwrap();
        let mut back = Tensors::read(&path).unwrap();
        assert_eq!(back.get("a").unwrap()[1].to_bits(), (-0.0_f32).to_bits());

        let error = back.clone().take("a", &[4], &path).unwrap_err().to_string();
        assert!(error.contains("`a` has shape [2, 2], expected [4]"), "{error}");
        let error = back.take("b", &[1], &path).unwrap_err().to_string();
        assert!(error.contains("lacks tensor `b`"), "{error}");
        std::fs::write(&path, b"not weights").unwrap();
        let error = Tensors::read(&path).unwrap_err().to_string();
        assert!(error.contains("is not a safetensors file"), "{error}");
    }
}
