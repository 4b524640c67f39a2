//! An input file that can be read at any offset, on a disk or on an object store.
//!
//! Archives are walked once and then visited record by record, by several threads at a time, so a
//! source is shared and reading it changes nothing.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use flamingo_dataset::{CorpusError, CorpusStore, sha256_hex};
use sha2::{Digest, Sha256};

use crate::error::IngestError;

/// Bytes read from a disk at a time.
const DISK_CHUNK: usize = 256 << 10;
/// Bytes asked from an object store at a time: large, since every request costs a round trip.
const STORE_CHUNK: usize = 4 << 20;
/// Bytes at each end of a file that are part of its fingerprint.
const FINGERPRINT_BYTES: u64 = 64 << 10;
/// Most files of one folder, so that a wrong folder is an error before it fills the memory.
const FILES_MAX: usize = 10_000_000;

/// One input file.
pub struct Source {
    input: String,
    name: String,
    len: u64,
    kind: SourceKind,
    /// The zstd dictionary that the file brings, once it was looked for.
    dictionary: OnceLock<Option<Arc<[u8]>>>,
}

enum SourceKind {
    /// Opened by each reader: a run may have more inputs than a process may have open files.
    Disk(PathBuf),
    /// A file that has no name any more.
    Spool(File),
    Store {
        store: CorpusStore,
        object: String,
    },
    Memory(Bytes),
}

impl Source {
    /// Opens a local path or an object's address.
    ///
    /// # Errors
    /// When there is no such file or it cannot be read.
    pub fn open(input: &str) -> Result<Self, IngestError> {
        if is_url(input) { Self::open_object(input) } else { Self::open_file(Path::new(input)) }
    }

    fn open_file(path: &Path) -> Result<Self, IngestError> {
        let input = path.to_string_lossy().into_owned();
        let read = |source| IngestError::InputRead { input: input.clone(), source };
        // A pipe would block for ever when it is opened.
        let metadata = std::fs::metadata(path).map_err(read)?;
        if !metadata.is_file() {
            return Err(read(io::Error::other("it is not a file")));
        }
        File::open(path).map_err(read)?;
        let (name, len) = (file_name(&input), metadata.len());
        Ok(Self {
            input,
            name,
            len,
            kind: SourceKind::Disk(path.to_owned()),
            dictionary: OnceLock::new(),
        })
    }

    /// Bytes in memory under a name.
    pub fn of_bytes(name: &str, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let (name, len) = (name.to_owned(), bytes.len() as u64);
        Self {
            input: name.clone(),
            name,
            len,
            kind: SourceKind::Memory(bytes),
            dictionary: OnceLock::new(),
        }
    }

    /// An open file of `len` bytes, whether or not it still has a name.
    pub(crate) fn of_file(name: &str, file: File, len: u64) -> Self {
        let kind = SourceKind::Spool(file);
        let (input, name) = (name.to_owned(), name.to_owned());
        Self { input, name, len, kind, dictionary: OnceLock::new() }
    }

    fn open_object(url: &str) -> Result<Self, IngestError> {
        let fetch = |source: CorpusError| IngestError::InputFetch {
            input: url.to_owned(),
            source: Box::new(source),
        };
        let (prefix, object) = url.rsplit_once('/').unwrap_or((url, ""));
        let store = CorpusStore::open(prefix).map_err(fetch)?;
        let len = store.size(object).map_err(fetch)?;
        let kind = SourceKind::Store { store, object: object.to_owned() };
        let (input, name) = (url.to_owned(), file_name(url));
        Ok(Self { input, name, len, kind, dictionary: OnceLock::new() })
    }

    /// The dictionary that a zstd archive brings in its first frame.
    pub(crate) fn dictionary(&self) -> io::Result<Option<Arc<[u8]>>> {
        if let Some(known) = self.dictionary.get() {
            return Ok(known.clone());
        }
        let found = crate::unpack::read_dictionary(self)?;
        Ok(self.dictionary.get_or_init(|| found).clone())
    }

    /// The path or address as given.
    pub fn input(&self) -> &str {
        &self.input
    }

    /// The whole file; the caller has compared its length with a limit.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_all(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.len as usize];
        self.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Hex SHA-256 of the file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn sha256(&self) -> io::Result<String> {
        let (mut reader, mut digest) = (self.reader(0), Sha256::new());
        loop {
            let bytes = reader.fill_buf()?;
            if bytes.is_empty() {
                break;
            }
            digest.update(bytes);
            let n = bytes.len();
            reader.consume(n);
        }
        Ok(hex(&digest.finalize()))
    }

    /// Hex SHA-256 of both ends of the file: with the length it tells files apart at the cost of two
    /// small reads.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn fingerprint(&self) -> io::Result<String> {
        let edge = self.len.min(FINGERPRINT_BYTES);
        let mut bytes = vec![0; 2 * edge as usize];
        let (head, tail) = bytes.split_at_mut(edge as usize);
        self.read_at(0, head)?;
        self.read_at(self.len - edge, tail)?;
        Ok(sha256_hex(&bytes))
    }

    /// The last part of the path: what a corpus calls this input, wherever it lay. Inputs that share
    /// it have their number in front, see [`open_all`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Length in bytes when it was opened.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A buffered reader that starts at `offset` and reads large chunks.
    pub fn reader(&self, offset: u64) -> SourceReader<'_> {
        self.reader_of(offset, u64::MAX)
    }

    /// A buffered reader for about `length` bytes at `offset`: it fetches no more at a time.
    pub fn reader_of(&self, offset: u64, length: u64) -> SourceReader<'_> {
        let chunk_max = match self.kind {
            SourceKind::Disk(_) | SourceKind::Spool(_) | SourceKind::Memory(_) => DISK_CHUNK,
            SourceKind::Store { .. } => STORE_CHUNK,
        };
        let chunk = usize::try_from(length).unwrap_or(usize::MAX).clamp(1, chunk_max);
        SourceReader { source: self, file: None, next: offset, chunk, buffer: Vec::new(), used: 0 }
    }

    /// Fills `bytes` from `offset`, which the caller knows to be inside the file.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        BYTES_READ.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        match &self.kind {
            SourceKind::Disk(path) => File::open(path)?.read_exact_at(bytes, offset),
            SourceKind::Spool(file) => file.read_exact_at(bytes, offset),
            SourceKind::Memory(all) => {
                let (from, to) = (offset as usize, offset as usize + bytes.len());
                let found = all.get(from..to).ok_or(io::ErrorKind::UnexpectedEof)?;
                bytes.copy_from_slice(found);
                Ok(())
            }
            SourceKind::Store { store, object } => {
                let range = offset..offset + bytes.len() as u64;
                let fetched = store.get_range(object, range).map_err(io::Error::other)?;
                let whole = fetched.get(..bytes.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
                bytes.copy_from_slice(whole);
                Ok(())
            }
        }
    }
}

/// Two digits for each byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("writing to a string does not fail");
        hex
    })
}

/// Bytes that this process has read from sources.
static BYTES_READ: AtomicU64 = AtomicU64::new(0);

/// Bytes that this process has read from sources.
pub(crate) fn bytes_read() -> u64 {
    BYTES_READ.load(Ordering::Relaxed)
}

/// A buffered reader over a [`Source`] that knows its place and can skip without reading.
pub struct SourceReader<'a> {
    source: &'a Source,
    /// The file, once it has been read from.
    file: Option<File>,
    /// Offset of the byte after the buffer.
    next: u64,
    /// Bytes fetched at a time.
    chunk: usize,
    buffer: Vec<u8>,
    used: usize,
}

impl SourceReader<'_> {
    /// Offset of the next byte to be read.
    pub fn position(&self) -> u64 {
        self.next - (self.buffer.len() - self.used) as u64
    }

    /// Offset of the end of the file.
    pub fn end(&self) -> u64 {
        self.source.len
    }

    /// The next bytes, at least `n` unless the file ends before; `n` is at most a few chunks.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn peek(&mut self, n: usize) -> io::Result<&[u8]> {
        while self.buffer.len() - self.used < n && self.next < self.source.len {
            self.buffer.drain(..self.used);
            self.used = 0;
            self.append()?;
        }
        Ok(&self.buffer[self.used..])
    }

    /// What is in the buffer.
    pub(crate) fn buffered(&self) -> &[u8] {
        &self.buffer[self.used..]
    }

    /// Reads one more chunk behind the buffer.
    fn append(&mut self) -> io::Result<()> {
        let left = self.source.len.saturating_sub(self.next);
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(self.chunk);
        let kept = self.buffer.len();
        self.buffer.resize(kept + n, 0);
        if n > 0
            && let Err(error) = self.read_at_next(kept)
        {
            self.buffer.truncate(kept);
            return Err(error);
        }
        self.next += n as u64;
        Ok(())
    }

    /// Fills the buffer from `kept` on.
    fn read_at_next(&mut self, kept: usize) -> io::Result<()> {
        let SourceKind::Disk(path) = &self.source.kind else {
            return self.source.read_at(self.next, &mut self.buffer[kept..]);
        };
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(File::open(path)?),
        };
        let bytes = &mut self.buffer[kept..];
        BYTES_READ.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        file.read_exact_at(bytes, self.next)
    }

    /// Goes on at `offset`.
    pub fn seek(&mut self, offset: u64) {
        self.next = offset;
        self.buffer.clear();
        self.used = 0;
    }

    /// Moves forward by `n` bytes, also past the end.
    pub fn skip(&mut self, n: u64) {
        let target = self.position().saturating_add(n);
        if target <= self.next {
            self.used = self.buffer.len() - (self.next - target) as usize;
        } else {
            self.next = target;
            self.buffer.clear();
            self.used = 0;
        }
    }
}

impl BufRead for SourceReader<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.used == self.buffer.len() {
            // The buffer keeps its length, so that it is not cleared for every chunk.
            let left = self.source.len.saturating_sub(self.next);
            let n = usize::try_from(left).unwrap_or(usize::MAX).min(self.chunk);
            self.buffer.resize(n, 0);
            self.used = n;
            if n > 0 {
                self.read_at_next(0)?;
            }
            self.used = 0;
            self.next += n as u64;
        }
        Ok(&self.buffer[self.used..])
    }

    fn consume(&mut self, amount: usize) {
        self.used = (self.used + amount).min(self.buffer.len());
    }
}

impl Read for SourceReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n = available.len().min(out.len());
        out[..n].copy_from_slice(&available[..n]);
        self.consume(n);
        Ok(n)
    }
}

/// Opens all inputs of a run and gives those that share a name their number in front (`2/a.csv`), so
/// that the keys of a corpus are unique.
///
/// # Errors
/// When an input is there twice or cannot be read.
pub fn open_all(inputs: &[String]) -> Result<Vec<Arc<Source>>, IngestError> {
    let mut seen = HashSet::new();
    let mut n_named = HashMap::<String, usize>::new();
    for input in inputs {
        if !seen.insert(place(input)) {
            return Err(IngestError::InputRepeated { input: input.clone() });
        }
        *n_named.entry(file_name(input)).or_default() += 1;
    }
    let open = |(i, input): (usize, &String)| {
        let mut source = Source::open(input)?;
        if n_named[&source.name] > 1 {
            source.name = format!("{i}/{}", source.name);
        }
        Ok(Arc::new(source))
    };
    inputs.iter().enumerate().map(open).collect()
}

/// The one place of an input that may be spelled in several ways. Links are kept: two of them may
/// lead to the same bytes on purpose.
fn place(input: &str) -> PathBuf {
    let path = Path::new(input);
    if is_url(input) {
        return path.to_owned();
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new(".")).canonicalize();
    folder.map_or_else(|_| path.to_owned(), |folder| folder.join(file_name(input)))
}

/// Whether an input names an object store rather than a path.
pub fn is_url(input: &str) -> bool {
    input.split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric() || c == '+')
    })
}

/// The files that `inputs` name: files as they are, folders, and prefixes of an object store that end
/// with a slash, as all files in them with one of `suffixes`, sorted by path.
///
/// # Errors
/// When an input is missing, is a file of another kind, or is a folder without such files.
pub fn expand(inputs: &[String], suffixes: &[&str]) -> Result<Vec<String>, IngestError> {
    let mut files = Vec::new();
    for input in inputs {
        if !is_url(input) && Path::new(input).is_dir() {
            files.extend(expand_folder(input, suffixes)?);
        } else if is_prefix(input) {
            files.extend(expand_prefix(input, suffixes)?);
        } else if has_suffix(input, suffixes) {
            // That there is such a file is found out when it is opened.
            files.push(input.clone());
        } else {
            let expected = suffixes.join(", ");
            return Err(IngestError::InputKind { input: input.clone(), expected });
        }
    }
    Ok(files)
}

fn expand_folder(folder: &str, suffixes: &[&str]) -> Result<Vec<String>, IngestError> {
    let files = walk(Path::new(folder))
        .map_err(|source| IngestError::InputRead { input: folder.to_owned(), source })?;
    let files = files.iter().map(|file| file.to_string_lossy().into_owned());
    let files: Vec<_> = files.filter(|file| has_suffix(file, suffixes)).collect();
    if files.is_empty() {
        let expected = suffixes.join(", ");
        return Err(IngestError::InputEmpty { input: folder.to_owned(), expected });
    }
    Ok(files)
}

/// Whether an input is the address of many objects.
pub(crate) fn is_prefix(input: &str) -> bool {
    is_url(input) && input.ends_with('/')
}

fn expand_prefix(prefix: &str, suffixes: &[&str]) -> Result<Vec<String>, IngestError> {
    let fetch =
        |source| IngestError::InputFetch { input: prefix.to_owned(), source: Box::new(source) };
    let store = CorpusStore::open(prefix).map_err(fetch)?;
    let names = store.list("").map_err(fetch)?;
    let names = names.into_iter().filter(|name| has_suffix(name, suffixes));
    let files: Vec<_> = names.map(|name| format!("{prefix}{name}")).collect();
    if files.is_empty() {
        let expected = suffixes.join(", ");
        return Err(IngestError::InputEmpty { input: prefix.to_owned(), expected });
    }
    Ok(files)
}

/// Every file below `folder`, sorted by path. Links to files are followed, links to folders are not:
/// they may lead in a circle.
pub(crate) fn walk(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if !path.is_dir() {
                files.push(path);
            }
            if files.len() + folders.len() > FILES_MAX {
                return Err(io::Error::other(format!("it holds more than {FILES_MAX} files")));
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Whether the last part of `input` ends with one of `suffixes`, whatever the case.
pub(crate) fn has_suffix(input: &str, suffixes: &[&str]) -> bool {
    let name = file_name(input).to_lowercase();
    suffixes.iter().any(|suffix| name.ends_with(suffix))
}

/// The last part of a path or address.
pub(crate) fn file_name(input: &str) -> String {
    input.trim_end_matches('/').rsplit('/').next().unwrap_or(input).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(bytes: &[u8]) -> (tempfile::TempDir, Source) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        std::fs::write(&path, bytes).unwrap();
        let source = Source::open(path.to_str().unwrap()).unwrap();
        (folder, source)
    }

    #[test]
    fn a_reader_knows_its_place_across_chunks_and_skips() {
        let bytes: Vec<u8> = (0..DISK_CHUNK * 2 + 10).map(|i| (i % 251) as u8).collect();
        let (_folder, source) = source(&bytes);
        let mut reader = source.reader(5);
        let mut first = [0; 7];
        reader.read_exact(&mut first).unwrap();
        assert_eq!((first.as_slice(), reader.position()), (&bytes[5..12], 12));
        reader.skip(3);
        assert_eq!(reader.position(), 15);
        reader.skip(DISK_CHUNK as u64);
        assert_eq!(reader.position(), 15 + DISK_CHUNK as u64);
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, bytes[15 + DISK_CHUNK..]);
        reader.skip(100);
        assert_eq!(reader.read(&mut first).unwrap(), 0);
    }

    #[test]
    fn inputs_are_files_of_the_right_kind_or_folders_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::create_dir(path("deep")).unwrap();
        for name in ["b.warc", "deep/a.WARC.gz", "notes.txt"] {
            std::fs::write(path(name), "x").unwrap();
        }
        let suffixes: &[&str] = &[".warc", ".warc.gz"];
        let all = expand(&[folder.path().to_str().unwrap().to_owned()], suffixes).unwrap();
        assert_eq!(all, [path("b.warc"), path("deep/a.WARC.gz")]);
        let check = |input: String, code: u8, part: &str| {
            let error = expand(&[input], suffixes).unwrap_err();
            assert_eq!(error.exit_code(), code, "{error}");
            assert!(error.to_string().contains(part), "{error}");
        };
        check(path("notes.txt"), 2, "notes.txt");
        std::fs::remove_file(path("deep/a.WARC.gz")).unwrap();
        check(path("deep"), 2, "deep");
    }

    #[test]
    fn a_folder_that_leads_in_a_circle_is_walked_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("a.warc"), "x").unwrap();
        std::os::unix::fs::symlink(folder.path(), path("circle")).unwrap();
        std::os::unix::fs::symlink(path("a.warc"), path("b.warc")).unwrap();
        assert_eq!(walk(folder.path()).unwrap(), [path("a.warc"), path("b.warc")]);
    }

    #[test]
    fn inputs_of_one_name_are_told_apart_and_one_given_twice_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::create_dir(path("b")).unwrap();
        for name in ["a.csv", "b/a.csv", "c.csv"] {
            std::fs::write(path(name), "x").unwrap();
        }
        let sources = open_all(&["a.csv", "b/a.csv", "c.csv"].map(path)).unwrap();
        let names: Vec<_> = sources.iter().map(|source| source.name()).collect();
        assert_eq!(names, ["0/a.csv", "1/a.csv", "c.csv"]);
        let error = open_all(&["a.csv", "b/../a.csv"].map(path)).err().unwrap();
        assert_eq!(error.exit_code(), 2, "{error}");
    }

    #[test]
    fn a_fingerprint_sees_both_ends_and_a_digest_everything() {
        let mut bytes = vec![7; 3 * FINGERPRINT_BYTES as usize];
        let (_folder, before) = source(&bytes);
        let last = bytes.len() - 1;
        let middle = bytes.len() / 2;
        bytes[middle] = 8;
        let (_folder, changed) = source(&bytes);
        assert_eq!(changed.fingerprint().unwrap(), before.fingerprint().unwrap());
        assert_ne!(changed.sha256().unwrap(), before.sha256().unwrap());
        assert_eq!(changed.sha256().unwrap(), sha256_hex(&bytes));
        bytes[last] = 8;
        let (_folder, changed) = source(&bytes);
        assert_ne!(changed.fingerprint().unwrap(), before.fingerprint().unwrap());
    }
}
