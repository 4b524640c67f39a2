//! Records that cannot be read again where they lie, kept in a file until the end of the run.
//!
//! An archive that was compressed as one stream can only be read from its start. While it is walked
//! over, the records whose bodies are needed later are copied here as plain WARC records.

use std::fs::File;
use std::io::{self, BufWriter, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::IngestError;
use crate::source::Source;
use crate::warc::Fields;

/// Bytes collected before they are written.
const WRITE_BYTES: usize = 256 << 10;

/// Where the spools of a run lie, and how much they may hold together.
pub(crate) struct SpoolRoom {
    folder: PathBuf,
    limit: u64,
    used: AtomicU64,
}

impl SpoolRoom {
    pub(crate) fn new(folder: &Path, limit: u64) -> Self {
        Self { folder: folder.to_owned(), limit, used: AtomicU64::new(0) }
    }
}

/// The spool of one archive. The file has no name: it is gone when the run ends, however it ends.
pub(crate) struct Spool<'a> {
    room: &'a SpoolRoom,
    file: Option<BufWriter<File>>,
    len: u64,
    /// What went wrong first; nothing is written after that.
    failed: Option<io::Error>,
    is_full: bool,
}

impl<'a> Spool<'a> {
    /// A spool that takes no space before the first record.
    pub(crate) fn new(room: &'a SpoolRoom) -> Self {
        Self { room, file: None, len: 0, failed: None, is_full: false }
    }

    /// Begins a record; the offset at which it begins.
    pub(crate) fn begin(&mut self, fields: &Fields, block: &[u8]) -> u64 {
        let begin = self.len;
        self.push(b"WARC/1.1\r\n");
        for (name, value) in fields.iter() {
            self.push(name.as_bytes());
            self.push(b": ");
            self.push(value.as_bytes());
            self.push(b"\r\n");
        }
        self.push(b"\r\n");
        self.push(block);
        begin
    }

    /// Adds bytes to the record.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_some() || self.is_full {
            return;
        }
        let used = self.room.used.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if used.saturating_add(bytes.len() as u64) > self.room.limit {
            self.is_full = true;
            return;
        }
        match self.file().and_then(|file| file.write_all(bytes)) {
            Ok(()) => self.len += bytes.len() as u64,
            Err(error) => self.failed = Some(error),
        }
    }

    fn file(&mut self) -> io::Result<&mut BufWriter<File>> {
        if self.file.is_none() {
            let file = tempfile::tempfile_in(&self.room.folder)?;
            self.file = Some(BufWriter::with_capacity(WRITE_BYTES, file));
        }
        Ok(self.file.as_mut().expect("it was made above"))
    }

    /// Takes back everything from `begin` on.
    pub(crate) fn forget(&mut self, begin: u64) {
        self.room.used.fetch_sub(self.len - begin, Ordering::Relaxed);
        self.len = begin;
        if let Some(file) = &mut self.file
            && let Err(error) = file.seek(SeekFrom::Start(begin))
        {
            self.failed = Some(error);
        }
    }

    /// Whether everything was written so far.
    ///
    /// # Errors
    /// When it was not.
    pub(crate) fn check(&mut self) -> Result<(), IngestError> {
        if self.is_full {
            let (folder, limit) = (self.room.folder.clone(), self.room.limit);
            return Err(IngestError::SpoolFull { folder, limit });
        }
        self.failed.take().map_or(Ok(()), |source| {
            Err(IngestError::SpoolWrite { folder: self.room.folder.clone(), source })
        })
    }

    /// The spooled records as a plain archive; none where there are none.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(crate) fn into_source(mut self, name: &str) -> Result<Option<Source>, IngestError> {
        self.check()?;
        let Some(file) = self.file else { return Ok(None) };
        let failed = |source| IngestError::SpoolWrite { folder: self.room.folder.clone(), source };
        let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
        Ok(Some(Source::of_file(name, file, self.len)))
    }
}
