//! Weights files: f32 tensors by name, in the safetensors format.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::File;
use std::path::Path;

use safetensors::{Dtype, SafeTensorError, SafeTensors, View};

use crate::error::ModelError;

/// The f32 tensors of a file, by name.
#[derive(Debug, Clone, Default)]
pub struct Tensors(BTreeMap<String, Tensor>);

#[derive(Debug, Clone)]
struct Tensor {
    shape: Vec<usize>,
    values: Vec<f32>,
}

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
            tensors.insert(name, Tensor { shape: view.shape().to_vec(), values });
        }
        Ok(Self(tensors))
    }

    /// Takes out all tensors whose names begin with `prefix`.
    pub(crate) fn split_off(&mut self, prefix: &str) -> Self {
        Self(self.0.extract_if(.., |name, _| name.starts_with(prefix)).collect())
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Gives every tensor another name.
    pub(crate) fn rename(&mut self, to: impl Fn(&str) -> String) {
        let all = std::mem::take(&mut self.0);
        self.0 = all.into_iter().map(|(name, tensor)| (to(&name), tensor)).collect();
    }

    /// Adds a tensor.
    pub fn insert(&mut self, name: impl Into<String>, shape: &[usize], values: Vec<f32>) {
        self.0.insert(name.into(), Tensor { shape: shape.to_vec(), values });
    }

    /// The values of a tensor, if it is there.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.0.get(name).map(|tensor| tensor.values.as_slice())
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
        let found = self.0.remove(name).ok_or_else(|| ModelError::MissingTensor {
            path: path.to_path_buf(),
            name: name.to_owned(),
            shape: shape.to_vec(),
        })?;
        if found.shape != shape {
            return Err(ModelError::TensorShape {
                path: path.to_path_buf(),
                name: name.to_owned(),
                expected: shape.to_vec(),
                found: found.shape,
            });
        }
        Ok(found.values)
    }

    /// Writes the tensors to a file and waits until they are on disk.
    ///
    /// # Errors
    /// When the file cannot be written; there is none then.
    pub fn write(&self, path: &Path) -> Result<(), ModelError> {
        write_tensors(path, self.0.iter(), &[])
    }

    /// As [`Tensors::write`], with keys and values for the file's header.
    ///
    /// # Errors
    /// When the file cannot be written; there is none then.
    pub(crate) fn write_with(
        &self,
        path: &Path,
        header: &[(&str, &str)],
    ) -> Result<(), ModelError> {
        write_tensors(path, self.0.iter(), header)
    }
}

impl View for &Tensor {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        le_bytes(&self.values).into()
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values.as_slice())
    }
}

/// The bytes of values as weights files hold them.
pub(crate) fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Writes tensors to a file and waits until they are on disk. Bytes are made of one tensor at a
/// time.
///
/// # Errors
/// When the file cannot be written; there is none then.
pub(crate) fn write_tensors<S: AsRef<str> + Ord + Display>(
    path: &Path,
    tensors: impl IntoIterator<Item = (S, impl View)>,
    header: &[(&str, &str)],
) -> Result<(), ModelError> {
    let file = |source| ModelError::File { action: "write", path: path.into(), source };
    // The library's file would be for its owner alone.
    let made = File::create(path).and_then(|file| file.metadata()).map_err(file)?;
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let header = (!header.is_empty()).then(|| header.iter().map(owned).collect());
    let written = safetensors::serialize_to_file(tensors, header, path)
        .map_err(|source| match source {
            SafeTensorError::IoError(source) => file(source),
            source => ModelError::Weights { path: path.into(), source },
        })
        .and_then(|()| {
            std::fs::set_permissions(path, made.permissions())
                .and_then(|()| File::open(path)?.sync_all())
                .map_err(file)
        });
    if written.is_err() {
        // The error that matters is the first one.
        let _ = std::fs::remove_file(path);
    }
    written
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

    #[test]
    fn a_file_that_cannot_be_written_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let nowhere = folder.path().join("nowhere").join("w.safetensors");
        let error = Tensors::default().write(&nowhere).unwrap_err();
        assert!(matches!(error, ModelError::File { action: "write", .. }), "{error}");
        let mut tensors = Tensors::default();
        tensors.insert("a", &[3], vec![1.0]);
        let path = folder.path().join("w.safetensors");
        assert!(tensors.write(&path).is_err(), "shape and values differ");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
