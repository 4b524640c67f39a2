//! The record log: what became of the items of a part that is not published yet, in order.
//!
//! A run that is killed reads it back, so that no finished item is worked on or fetched again. A
//! frame is the length and the CRC-32 of an outcome, then the outcome; the first frame that is not
//! whole ends the log. Outcomes that cost a fetch are written at once, others a few at a time. Nothing
//! is synced: a process that dies loses nothing that was written, a machine that dies may lose the
//! end, which is then done again.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::IngestError;
use crate::outcome::Outcome;

/// The first bytes of a log.
const MAGIC: &[u8; 8] = b"outcome1";
/// Bytes of a frame before its outcome.
const HEAD_BYTES: usize = 8;
/// Outcomes that cost no fetch are written when they are this many bytes,
const BUFFER_BYTES: usize = 256 << 10;
/// or when the first of them is this old.
const BUFFER_TIME: Duration = Duration::from_millis(250);
/// Longest outcome that is read back; a row holds at most half as much.
const OUTCOME_BYTES_MAX: u32 = 2 << 30;

/// A log that is written.
pub(crate) struct RecordLog {
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
    written: Instant,
}

impl RecordLog {
    /// Goes on after the first `length` bytes of the log at `path`; 0 begins a new one.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn open(path: PathBuf, length: u64) -> Result<Self, IngestError> {
        let open = || {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
            file.set_len(length)?;
            file.seek(SeekFrom::Start(length))?;
            Ok(file)
        };
        let file = open().map_err(|source| write_error(&path, source))?;
        let buffer = if length == 0 { MAGIC.to_vec() } else { Vec::new() };
        Ok(Self { path, file, buffer, written: Instant::now() })
    }

    /// Adds an outcome.
    ///
    /// # Errors
    /// When the file cannot be written.
    ///
    /// # Panics
    /// Never: every outcome has a form in the log.
    pub(crate) fn append(&mut self, outcome: &Outcome) -> Result<(), IngestError> {
        let start = self.buffer.len();
        self.buffer.extend([0; HEAD_BYTES]);
        rmp_serde::encode::write_named(&mut self.buffer, outcome)
            .expect("numbers, texts and lists have a form, and memory takes every write");
        let (length, crc) = frame_head(&self.buffer[start + HEAD_BYTES..]);
        self.buffer[start..start + 4].copy_from_slice(&length.to_le_bytes());
        self.buffer[start + 4..start + HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
        let is_due = !outcome.fetches.is_empty()
            || self.buffer.len() >= BUFFER_BYTES
            || self.written.elapsed() >= BUFFER_TIME;
        if is_due { self.flush() } else { Ok(()) }
    }

    /// Hands everything to the system.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn flush(&mut self) -> Result<(), IngestError> {
        self.written = Instant::now();
        let written = self.file.write_all(&self.buffer);
        self.buffer.clear();
        // One large document must not keep its bytes here for ever.
        self.buffer.shrink_to(2 * BUFFER_BYTES);
        written.map_err(|source| write_error(&self.path, source))
    }
}

fn frame_head(outcome: &[u8]) -> (u32, u32) {
    let length = u32::try_from(outcome.len()).expect("a row is shorter than a gigabyte");
    (length, crc32fast::hash(outcome))
}

fn write_error(path: &Path, source: io::Error) -> IngestError {
    IngestError::OutputWrite { path: path.to_owned(), source }
}

/// Reads the log at `path` and gives each whole outcome to `each`; the length up to there.
///
/// # Errors
/// When the file cannot be read, or `each` fails.
pub(crate) fn replay(
    path: &Path,
    mut each: impl FnMut(Outcome) -> Result<(), IngestError>,
) -> Result<u64, IngestError> {
    let unread = |source| IngestError::InputRead { input: path.display().to_string(), source };
    let file = File::open(path).map_err(unread)?;
    let mut reader = BufReader::new(file);
    let mut magic = [0; MAGIC.len()];
    if reader.read_exact(&mut magic).is_err() || &magic != MAGIC {
        return Ok(0);
    }
    let mut length = MAGIC.len() as u64;
    while let Some(payload) = next_frame(&mut reader).map_err(unread)? {
        // Another version of this program may have written it: then the rest is done again.
        let Ok(outcome) = rmp_serde::from_slice(&payload) else { break };
        length += (HEAD_BYTES + payload.len()) as u64;
        each(outcome)?;
    }
    Ok(length)
}

/// The next outcome's bytes; none where the file ends or is damaged.
fn next_frame(reader: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut head = [0; HEAD_BYTES];
    match reader.read_exact(&mut head) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let number =
        |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (length, crc) = (number(0), number(4));
    if length > OUTCOME_BYTES_MAX {
        return Ok(None);
    }
    let mut payload = Vec::new();
    reader.take(u64::from(length)).read_to_end(&mut payload)?;
    let is_whole = payload.len() == length as usize && crc32fast::hash(&payload) == crc;
    Ok(is_whole.then_some(payload))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flamingo_dataset::{EncodedImage, ImageMeta, Interleaved, Row, Slot, WarcPlace};

    use super::*;
    use crate::figures::{Figures, Level};
    use crate::ledger::{Fetch, PairRow};
    use crate::reject::{DropReason, Origin, Stage};

    /// Outcomes with everything in them.
    fn outcomes() -> Vec<Outcome> {
        let image = EncodedImage { bytes: Bytes::from(vec![0, 255, 7]), path: Some("a".into()) };
        let meta = ImageMeta {
            url: None,
            alt: Some("é".into()),
            width: 1,
            height: 2,
            sha256: "00".into(),
            phash: u64::MAX,
            mime: "image/png".into(),
        };
        let row = Row::Interleaved(Interleaved {
            doc_id: "d".into(),
            url: "http://a/".into(),
            slots: vec![Slot::Text("t".into()), Slot::Image { image, meta }],
            title: None,
            lang: Some("en".into()),
            lang_score: Some(0.5),
            warc: Some(WarcPlace { filename: "a.warc".into(), offset: 1, length: 2 }),
            fetched_at_us: Some(-1),
        });
        let origin = Origin { source: "a".into(), offset: Some(3), url: None };
        let whole = Outcome {
            rows: vec![row],
            rejects: vec![DropReason::limit("aspect", 4.0, 3.0).at(Stage::Image, &origin, None)],
            figures: vec![Figures {
                level: Level::Image,
                key: "d".into(),
                url: None,
                dropped_by: None,
                values: vec![("aspect", 4.0)],
            }],
            fetches: vec![Fetch {
                key: "d".into(),
                url: "http://a/b.png".into(),
                final_url: None,
                attempts: 1,
                http_status: Some(200),
                cause: "ok",
                detail: None,
                robots: "none",
                bytes: 3,
                started_us: 5,
                elapsed_ms: 6,
                pair: Some(PairRow {
                    list: "a.csv".into(),
                    row: 3,
                    caption: Some("a cat".into()),
                    source: None,
                }),
            }],
        };
        let dropped =
            Outcome::dropped(DropReason::because("no_image").at(Stage::Read, &origin, None));
        vec![whole.clone(), dropped, Outcome::default(), whole]
    }

    fn read(path: &Path) -> (Vec<Outcome>, u64) {
        let mut found = Vec::new();
        let length = replay(path, |outcome| {
            found.push(outcome);
            Ok(())
        });
        (found, length.unwrap())
    }

    #[test]
    fn whole_outcomes_are_read_back_wherever_the_log_was_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let expected = outcomes();
        let mut log = RecordLog::open(path.clone(), 0).unwrap();
        let mut ends = Vec::new();
        for outcome in &expected {
            log.append(outcome).unwrap();
            log.flush().unwrap();
            ends.push(std::fs::metadata(&path).unwrap().len());
        }
        let bytes = std::fs::read(&path).unwrap();
        for cut in 0..=bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let n = ends.iter().filter(|&&end| end <= cut as u64).count();
            let (found, length) = read(&path);
            assert_eq!(found, expected[..n], "cut at {cut}");
            // A log that was cut is written on.
            if cut % 37 == 0 {
                let mut log = RecordLog::open(path.clone(), length).unwrap();
                log.append(&expected[0]).unwrap();
                log.flush().unwrap();
                assert_eq!(read(&path).0.len(), n + 1);
            }
        }
        let mut damaged = bytes.clone();
        damaged[ends[0] as usize + HEAD_BYTES + 3] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        assert_eq!(read(&path).0, expected[..1]);
    }
}
