//! Files that are either old or new after a crash, never half-written.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::TrainError;

/// Replaces a file as a whole: a temporary file beside it, flushed to disk, then renamed.
///
/// # Errors
/// When the folder cannot be written; the temporary file is gone then.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let temporary = temporary(path);
    let replaced = write_new(&temporary, bytes).and_then(|()| {
        std::fs::rename(&temporary, path).map_err(TrainError::file("replace", path))
    });
    if replaced.is_err() {
        // The first error is the one to report.
        let _ = std::fs::remove_file(&temporary);
    }
    replaced?;
    sync_parent(path)
}

/// The name under which [`replace`] writes a file.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    path.with_extension("tmp")
}

/// Writes a file and waits until it is on disk.
///
/// # Errors
/// When it cannot be written.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    File::create(path)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .map_err(TrainError::file("write", path))
}

/// Waits until a file, or the entries of a folder, are on disk.
///
/// # Errors
/// When the disk fails.
pub fn sync(path: &Path) -> Result<(), TrainError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(TrainError::file("flush", path))
}

/// Waits until the folder that holds `path` knows it.
///
/// # Errors
/// When the disk fails.
pub fn sync_parent(path: &Path) -> Result<(), TrainError> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => sync(Path::new(".")),
        Some(parent) => sync(parent),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_replaced_leaves_no_temporary_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.html");
        std::fs::create_dir(&path).unwrap();
        let error = replace(&path, b"new").unwrap_err().to_string();
        assert!(error.starts_with("cannot replace"), "{error}");
        assert!(!temporary(&path).exists());
    }
}
