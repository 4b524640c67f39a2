//! Where the lines of a text file are, or the documents that lines stand between.

use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;

use bytes::Bytes;
use parquet::file::reader::ChunkReader;

use super::IndexedFile;
use crate::digest::sha256_hex;
use crate::shard_reader::StoredObject;
use crate::{CorpusError, CorpusStore};

/// Longest line that is read; pages have some kilobytes.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// Longest document: each draw reads and tokenizes all of it for a window of some hundred tokens.
const DOCUMENT_BYTES_MAX: u64 = 16 << 20;

/// The bytes of each row of a file.
type Places = Vec<Range<u64>>;

/// Finds the lines of a file; blank ones have no number.
pub(super) fn index(store: &CorpusStore, file: &str) -> Result<IndexedFile<Places>, CorpusError> {
    let mut lines = Vec::new();
    each_line(store, file, |place, line| {
        if !line.is_empty() {
            lines.push(place);
        }
    })?;
    Ok(indexed(lines))
}

/// Finds the documents of a file: what stands between lines that are `separator`, white space at both ends
/// left out.
pub(super) fn index_documents(
    store: &CorpusStore,
    file: &str,
    separator: &str,
) -> Result<IndexedFile<Places>, CorpusError> {
    let refuse = |problem: String| CorpusError::Layout { object: store.name_of(file), problem };
    if separator.trim() != separator || separator.contains('\n') {
        let problem = format!(
            "`separator` is {separator:?}, expected a line without white space at its ends"
        );
        return Err(refuse(problem));
    }
    let (mut documents, mut open): (Vec<Range<u64>>, _) = (Vec::new(), false);
    each_line(store, file, |place, line| {
        if line == separator.as_bytes() {
            open = false;
        } else if let Some(document) = documents.last_mut().filter(|_| open) {
            document.end = place.end;
        } else if !line.is_empty() {
            documents.push(place);
            open = true;
        }
    })?;
    let long = documents.iter().find(|document| document.end - document.start > DOCUMENT_BYTES_MAX);
    if let Some(Range { start, .. }) = long {
        let problem = format!(
            "the document at byte {start} has more than {DOCUMENT_BYTES_MAX} bytes; `separator` is \
             the line that stands between documents"
        );
        return Err(refuse(problem));
    }
    Ok(indexed(documents))
}

/// Gives `look` the place of each line, and the line without white space at both ends.
fn each_line(
    store: &CorpusStore,
    file: &str,
    mut look: impl FnMut(Range<u64>, &[u8]),
) -> Result<(), CorpusError> {
    let problem =
        |e: io::Error| CorpusError::Layout { object: store.name_of(file), problem: e.to_string() };
    let object = StoredObject::open(store, file)?;
    let reader = object.get_read(0).map_err(|e| problem(io::Error::other(e)))?;
    let mut reader = BufReader::new(reader);
    let (mut start, mut line) = (0, Vec::new());
    loop {
        line.clear();
        let n =
            reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).map_err(problem)?;
        let n = n as u64;
        if n == LINE_BYTES_MAX {
            let long = format!("a line of more than {LINE_BYTES_MAX} bytes at byte {start}");
            return Err(problem(io::Error::other(long)));
        }
        if n == 0 {
            return Ok(());
        }
        look(start..start + n, line.trim_ascii());
        start += n;
    }
}

fn indexed(rows: Places) -> IndexedFile<Places> {
    let places: Vec<_> = rows.iter().map(|row| format!("{} {}", row.start, row.end)).collect();
    let sha256 = sha256_hex(places.join("\n").as_bytes());
    IndexedFile { n_rows: rows.len() as u64, rows, sha256 }
}

/// Files of which each row is a range of bytes.
pub(super) struct LineFiles {
    pub(super) store: CorpusStore,
    pub(super) files: Vec<String>,
    pub(super) lines: Vec<Places>,
}

impl LineFiles {
    /// The bytes of a row.
    pub(super) fn read(&self, file: usize, row_idx: u64) -> Result<Bytes, CorpusError> {
        let place = self.lines[file][row_idx as usize].clone();
        self.store.get_range(&self.files[file], place)
    }

    /// A name for a row, among all files.
    pub(super) fn id(&self, file: usize, row_idx: u64) -> String {
        format!("{}:{row_idx}", self.files[file])
    }
}
