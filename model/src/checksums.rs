//! Checksums of the files of a checkpoint: the file `SHA256SUMS` in a folder, in the form that `sha256sum -c` reads.
//!
//! Whoever reads a file of such a folder checks it first: bytes that changed on a disk, or were overwritten by as
//! many others, would be weights like any. Folders without the file, as earlier versions and others write them, are
//! read unchecked.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::checkpoint::{other_steps, write_synced};
use crate::error::ModelError;
use crate::flamingo::hex;

/// Name of the file.
pub const CHECKSUMS_FILE: &str = "SHA256SUMS";

/// Bytes of a file that are read and hashed at once.
const HASHED_AT_ONCE: usize = 1 << 20;

/// Writes the checksums of all files in a folder, and of those in the folders inside it.
///
/// # Errors
/// When a file cannot be read, or the checksums cannot be written.
pub fn write_checksums(folder: &Path) -> Result<(), ModelError> {
    let read = |source| ModelError::File { action: "read", path: folder.into(), source };
    let mut lines = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let entry = entry.map_err(read)?;
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() {
            write_checksums(&path)?;
        } else if name != CHECKSUMS_FILE {
            let name = name.to_string_lossy().into_owned();
            lines.push((name.clone(), format!("{}  {name}\n", file_sha256(&path)?)));
        }
    }
    lines.sort();
    let text: String = lines.into_iter().map(|(_, line)| line).collect();
    write_synced(&folder.join(CHECKSUMS_FILE), text.as_bytes())
}

/// Fails unless a file is what its folder's checksums say, where the folder has any.
///
/// # Errors
/// When it is not or has none among them, or cannot be read.
pub fn verify_checksum(path: &Path) -> Result<(), ModelError> {
    let Some(sums) = path.parent().map(|folder| folder.join(CHECKSUMS_FILE)) else { return Ok(()) };
    let text = match std::fs::read(&sums) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(ModelError::File { action: "read", path: sums, source }),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut known = text.lines().filter_map(|line| line.split_once("  "));
    let Some((was, _)) = known.find(|(_, other)| *other == name) else {
        return Err(ModelError::NoChecksum { path: sums, name: name.into() });
    };
    let now = file_sha256(path)?;
    if now == was {
        return Ok(());
    }
    let (path, was, others) = (PathBuf::from(path), was.into(), other_steps(path));
    Err(ModelError::Checksum { path, was, now: now.into(), others })
}

fn file_sha256(path: &Path) -> Result<String, ModelError> {
    let read = |source| ModelError::File { action: "read", path: path.into(), source };
    let mut file = File::open(path).map_err(read)?;
    let (mut digest, mut block) = (Sha256::new(), vec![0; HASHED_AT_ONCE]);
    loop {
        match file.read(&mut block) {
            Ok(0) => return Ok(hex(&digest.finalize())),
            Ok(n) => digest.update(&block[..n]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(read(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What coreutils' `sha256sum` says of a file with `abc` (NIST's example) and of an empty one.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  abc\n";
    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  empty\n";

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("ema")).unwrap();
        for (name, text) in [("empty", ""), ("abc", "abc"), ("ema/abc", "abc")] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn each_folder_lists_its_own_files_as_sha256sum_does() {
        let folder = folder();
        // Written again they are the same: the list is no file of the list.
        for _ in 0..2 {
            write_checksums(folder.path()).unwrap();
            let sums = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
            assert_eq!(sums("SHA256SUMS"), format!("{ABC}{EMPTY}"));
            assert_eq!(sums("ema/SHA256SUMS"), ABC);
        }
    }

    #[test]
    fn a_file_longer_than_a_block_is_hashed_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("long");
        let mut bytes = vec![7; HASHED_AT_ONCE + 1];
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(file_sha256(&path).unwrap(), hex(&Sha256::digest(&bytes)));
        write_checksums(folder.path()).unwrap();
        verify_checksum(&path).unwrap();
        *bytes.last_mut().unwrap() = 8;
        std::fs::write(&path, &bytes).unwrap();
        assert!(verify_checksum(&path).is_err());
    }

    #[test]
    fn a_file_that_changed_is_refused_and_one_without_checksums_is_not() {
        let folder = folder();
        let abc = folder.path().join("abc");
        verify_checksum(&abc).unwrap();
        write_checksums(folder.path()).unwrap();
        verify_checksum(&abc).unwrap();
        std::fs::write(&abc, "abd").unwrap();
        let error = verify_checksum(&abc).unwrap_err().to_string();
        assert!(error.contains("abc is damaged") && error.contains(&ABC[..64]), "{error}");
        verify_checksum(&folder.path().join("empty")).unwrap();
        verify_checksum(&folder.path().join("ema/abc")).unwrap();
    }

    #[test]
    fn a_list_that_was_cut_short_is_no_list_of_checksums() {
        let folder = folder();
        write_checksums(folder.path()).unwrap();
        let sums = folder.path().join("SHA256SUMS");
        std::fs::write(&sums, ABC).unwrap();
        verify_checksum(&folder.path().join("abc")).unwrap();
        let error = verify_checksum(&folder.path().join("empty")).unwrap_err().to_string();
        assert!(error.contains("SHA256SUMS") && error.contains("`empty`"), "{error}");
    }
}
