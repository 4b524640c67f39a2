//! Files of a folder that were read last, kept open: a row is one small read, and to open its file anew
//! takes as long.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use rustix::buffer::spare_capacity;

/// Most files that are kept open: the default shuffle is at work on 64 blocks, each of which may lie in a
/// file of its own.
const OPEN_MAX: usize = 64;

/// Most of all folders together: systems allow a process some thousand.
const PROCESS_OPEN_MAX: usize = 512;

/// Files that are kept open by this process.
static PROCESS_OPEN: AtomicUsize = AtomicUsize::new(0);

/// A folder of this machine.
#[derive(Debug)]
pub(crate) struct OpenFiles {
    folder: Arc<LocalFileSystem>,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    files: HashMap<String, Slot>,
    /// Counts uses.
    clock: u64,
    /// Counts what was forgotten.
    forgotten: u64,
}

#[derive(Debug)]
struct Slot {
    file: Arc<OpenFile>,
    used: u64,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    /// Bytes of it when it was opened.
    size: u64,
}

impl Drop for Slot {
    fn drop(&mut self) {
        PROCESS_OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

impl OpenFiles {
    pub(crate) fn new(folder: Arc<LocalFileSystem>) -> Self {
        Self { folder, kept: Mutex::default() }
    }

    /// Ranges of a file. One that was replaced since it was opened is read as it was, or as it is where
    /// that fails.
    ///
    /// # Errors
    /// When there is no such file, or it is shorter or cannot be read.
    pub(crate) fn read(
        &self,
        object: &str,
        ranges: &[Range<u64>],
    ) -> Result<Vec<Bytes>, object_store::Error> {
        let read = |file: Arc<OpenFile>| {
            ranges.iter().map(|range| file.read(range)).collect::<io::Result<Vec<_>>>()
        };
        let found = self.kept(object).and_then(|file| read(file).ok());
        let found = found.map_or_else(|| self.open(object).and_then(read), Ok);
        found.map_err(|source: io::Error| {
            let (path, source) = (object.to_owned(), Box::new(source));
            match source.kind() {
                io::ErrorKind::NotFound => object_store::Error::NotFound { path, source },
                _ => object_store::Error::Generic { store: "LocalFileSystem", source },
            }
        })
    }

    /// Opens a file anew when it is read next.
    pub(crate) fn forget(&self, object: &str) {
        let mut kept = self.lock();
        kept.files.remove(object);
        kept.forgotten += 1;
    }

    fn kept(&self, object: &str) -> Option<Arc<OpenFile>> {
        let mut kept = self.lock();
        kept.clock += 1;
        let used = kept.clock;
        let slot = kept.files.get_mut(object)?;
        slot.used = used;
        Some(Arc::clone(&slot.file))
    }

    fn open(&self, object: &str) -> io::Result<Arc<OpenFile>> {
        let forgotten = self.lock().forgotten;
        let path = Path::parse(object).map_err(io::Error::other)?;
        let file = File::open(self.folder.path_to_filesystem(&path)?)?;
        let size = file.metadata()?.len();
        let file = Arc::new(OpenFile { file, size });
        let mut kept = self.lock();
        // One that was replaced in the meantime is not the one that was opened.
        if kept.forgotten == forgotten {
            kept.add(object, &file);
        }
        Ok(file)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn add(&mut self, object: &str, file: &Arc<OpenFile>) {
        self.files.remove(object);
        let is_full = || PROCESS_OPEN.load(Ordering::Relaxed) >= PROCESS_OPEN_MAX;
        if self.files.len() >= OPEN_MAX || is_full() {
            let oldest = self.files.iter().min_by_key(|(_, slot)| slot.used);
            if let Some(oldest) = oldest.map(|(object, _)| object.clone()) {
                self.files.remove(&oldest);
            }
        }
        // Where others have them all, this one is closed after it was read.
        if !is_full() {
            PROCESS_OPEN.fetch_add(1, Ordering::Relaxed);
            let slot = Slot { file: Arc::clone(file), used: self.clock };
            self.files.insert(object.to_owned(), slot);
        }
    }
}

impl OpenFile {
    fn read(&self, range: &Range<u64>) -> io::Result<Bytes> {
        let Range { start, end } = *range;
        let short = |have: u64| {
            let problem = format!("bytes {start} to {end} wanted of {have}");
            io::Error::new(io::ErrorKind::UnexpectedEof, problem)
        };
        // A damaged footer may ask for anything, and a file may have grown.
        if start > end || (end > self.size && end > self.file.metadata()?.len()) {
            return Err(short(self.size));
        }
        let wanted = (end - start) as usize;
        let mut bytes = Vec::with_capacity(wanted);
        while bytes.len() < wanted {
            let next = start + bytes.len() as u64;
            match rustix::io::pread(&self.file, spare_capacity(&mut bytes), next) {
                Ok(0) => return Err(short(next)),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // The room may be larger than what was asked for.
        bytes.truncate(wanted);
        Ok(Bytes::from(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> (tempfile::TempDir, OpenFiles) {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalFileSystem::new_with_prefix(folder.path()).unwrap();
        (folder, OpenFiles::new(Arc::new(store)))
    }

    #[test]
    fn ranges_are_those_of_the_file_until_it_is_forgotten() {
        let (folder, files) = files();
        let path = folder.path().join("a");
        std::fs::write(&path, b"0123456789").unwrap();
        let read = |start: u64, end: u64| files.read("a", std::slice::from_ref(&(start..end)));
        assert_eq!(
            files.read("a", &[2..5, 0..10, 4..4]).unwrap(),
            [&b"234"[..], b"0123456789", b""]
        );
        let error = read(0, 11).unwrap_err().to_string();
        assert!(error.contains("bytes 0 to 11 wanted of 10"), "{error}");
        std::fs::write(folder.path().join("b"), b"new").unwrap();
        std::fs::rename(folder.path().join("b"), &path).unwrap();
        assert_eq!(read(0, 3).unwrap(), [&b"012"[..]]);
        files.forget("a");
        assert_eq!(read(0, 3).unwrap(), [&b"new"[..]]);
        // One that is cut while it is open ends where it now ends; another in its place is found then.
        std::fs::write(&path, b"n").unwrap();
        assert!(read(0, 3).unwrap_err().to_string().contains("wanted of 1"));
        std::fs::write(folder.path().join("b"), b"longer").unwrap();
        std::fs::rename(folder.path().join("b"), &path).unwrap();
        assert_eq!(read(0, 6).unwrap(), [&b"longer"[..]]);
        assert_eq!(read(5, 6).unwrap(), [&b"r"[..]]);
    }

    #[test]
    fn no_more_files_are_open_than_allowed() {
        let (folder, files) = files();
        for number in 0..3 * OPEN_MAX {
            std::fs::write(folder.path().join(number.to_string()), number.to_string()).unwrap();
        }
        for round in 0..2 {
            for number in (0..3 * OPEN_MAX).chain([0]) {
                let name = number.to_string();
                let whole = 0..name.len() as u64;
                let found = files.read(&name, std::slice::from_ref(&whole));
                assert_eq!(found.unwrap(), [name.into_bytes()], "round {round}");
                assert!(files.kept.lock().unwrap().files.len() <= OPEN_MAX);
            }
        }
        assert!(matches!(
            files.read("none", &[0..1, 1..2]),
            Err(object_store::Error::NotFound { .. })
        ));
    }
}
