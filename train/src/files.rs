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

/// The name beside `out` under which it is written until it is whole.
pub(crate) fn part_of(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    out.with_file_name(name)
}

/// Makes a folder under another name, fills it and gives it its own. In a folder that is there, files
/// are replaced one by one, and others left alone. What `fill` writes it brings to disk.
///
/// # Errors
/// When `fill` fails or the disk cannot be written; nothing is left of a folder that was not there.
pub(crate) fn fill_folder<T>(
    out: &Path,
    fill: impl FnOnce(&Path) -> Result<T, TrainError>,
) -> Result<T, TrainError> {
    if out.exists() {
        return fill(out);
    }
    let part = part_of(out);
    if part.exists() {
        std::fs::remove_dir_all(&part).map_err(TrainError::file("remove", &part))?;
    }
    let made = std::fs::create_dir_all(&part).map_err(TrainError::file("make", &part));
    let filled = made.and_then(|()| {
        let filled = fill(&part)?;
        sync(&part)?;
        std::fs::rename(&part, out).map_err(TrainError::file("rename", &part))?;
        Ok(filled)
    });
    if filled.is_err() {
        let _ = std::fs::remove_dir_all(&part);
    }
    let filled = filled?;
    sync_parent(out)?;
    Ok(filled)
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

    #[test]
    fn a_folder_that_cannot_be_filled_is_not_there_and_another_ones_part_stays() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("step-1.6");
        let of_another = part_of(&folder.path().join("step-1.5"));
        std::fs::create_dir(&of_another).unwrap();
        std::fs::create_dir(part_of(&out)).unwrap();
        std::fs::write(part_of(&out).join("left"), "by a crash").unwrap();
        let failed = fill_folder(&out, |part| {
            write_new(&part.join("whole"), b"")?;
            sync(&part.join("missing"))
        });
        assert!(failed.is_err() && !out.exists() && !part_of(&out).exists());
        fill_folder(&out, |part| write_new(&part.join("whole"), b"")).unwrap();
        let entries = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(entries.collect::<Vec<_>>(), ["whole"]);
        assert!(of_another.exists());
    }
}
