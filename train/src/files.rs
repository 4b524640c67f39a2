//! Files that are either old or new after a crash, never half-written.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::error::TrainError;

/// Replaces a file as a whole: a temporary file beside it, flushed to disk, then renamed.
///
/// # Errors
/// When the folder cannot be written.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let temporary = path.with_extension("tmp");
    write_new(&temporary, bytes)?;
    std::fs::rename(&temporary, path).map_err(TrainError::file("replace", path))?;
    sync_parent(path)
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
