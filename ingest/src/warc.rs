//! Records of a WARC file (ISO 28500, versions 0.17 to 1.1), plain or with one gzip member each.
//!
//! A damaged record is reported with its offset and the reader goes on at the next place that looks
//! like the start of a record. ARC files and archives compressed as one stream are reported, not read.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

use crate::source::{Source, SourceReader};

/// Longest record header in bytes.
const HEADER_MAX: usize = 64 << 10;
/// First bytes of a gzip member with the deflate method.
const GZIP_MAGIC: [u8; 3] = [0x1f, 0x8b, 0x08];
/// First bytes of every record header.
const WARC_MAGIC: &[u8] = b"WARC/";

/// One record: its place, its header and the first bytes of its block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Offset of the record (of its gzip member) in the file.
    pub offset: u64,
    /// Bytes that the record takes in the file, its member's trailer or closing blank lines included.
    pub length: u64,
    /// Header fields in order, names as written.
    pub fields: Vec<(String, String)>,
    /// The first bytes of the block, as many as were asked for.
    pub block: Vec<u8>,
    /// Whether the block is longer than [`Record::block`].
    pub is_cut: bool,
}

impl Record {
    /// Value of a header field, whatever the case of its name.
    pub fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// `WARC-Type`, or nothing.
    pub fn kind(&self) -> &str {
        self.field("WARC-Type").unwrap_or("")
    }

    /// `WARC-Target-URI` without the angle brackets that some writers put around it.
    pub fn target(&self) -> Option<&str> {
        self.field("WARC-Target-URI").map(|uri| uri.trim_matches(['<', '>']))
    }
}

/// What is wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// The file ends inside the record.
    Truncated,
    /// The compressed data is damaged.
    BadGzip,
    /// There is no record header where one must be.
    NotWarc,
    /// The header is too long, not text, or lacks a length.
    BadHeader,
    /// The header says more bytes than there are, and other records follow.
    BadLength,
    /// A gzip member holds more than one record, so that records cannot be found by offset.
    NotPerRecord,
}

impl Damage {
    /// Name of the reason in the rejects table.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Truncated => "truncated_archive",
            Self::BadGzip => "bad_gzip",
            Self::NotWarc => "not_a_warc_record",
            Self::BadHeader => "bad_warc_header",
            Self::BadLength => "bad_content_length",
            Self::NotPerRecord => "gzip_not_per_record",
        }
    }
}

/// A walk over the records of a file, or a damaged place's offset.
pub struct Records<'a> {
    source: &'a Source,
    reader: SourceReader<'a>,
    block_max: usize,
}

/// A walk over `source` from its start that keeps the first `block_max` bytes of every block.
pub fn records(source: &Source, block_max: usize) -> Records<'_> {
    Records { source, reader: source.reader(0), block_max }
}

impl Iterator for Records<'_> {
    /// The record, or what is wrong at which offset.
    type Item = io::Result<Result<Record, (u64, Damage)>>;

    fn next(&mut self) -> Option<Self::Item> {
        let offset = self.reader.position();
        if offset >= self.source.len() {
            return None;
        }
        match read_next(&mut self.reader, self.block_max).transpose()? {
            Ok(Ok(record)) => Some(Ok(Ok(record))),
            Ok(Err(damage)) => match next_start(self.source, offset + 1) {
                Ok(start) => {
                    self.reader = self.source.reader(start.unwrap_or(self.source.len()));
                    // What lacks its end in front of another record is no end of the file.
                    let is_followed = start.is_some_and(|start| has_header(self.source, start));
                    let is_length = damage == Damage::Truncated && is_followed;
                    let damage = if is_length { Damage::BadLength } else { damage };
                    Some(Ok(Err((offset, damage))))
                }
                Err(error) => Some(Err(error)),
            },
            Err(error) => Some(Err(error)),
        }
    }
}

/// The record at `offset`, about `length` bytes long in the file, with the first `block_max` bytes
/// of its block.
///
/// # Errors
/// The outer error when the file cannot be read, the inner one when the record is damaged.
pub fn read_record(
    source: &Source,
    offset: u64,
    length: u64,
    block_max: usize,
) -> io::Result<Result<Record, Damage>> {
    let read = read_next(&mut source.reader_of(offset, length), block_max)?;
    Ok(read.unwrap_or(Err(Damage::Truncated)))
}

/// The record at the reader's place; none where only blank lines are left.
fn read_next(
    reader: &mut SourceReader<'_>,
    block_max: usize,
) -> io::Result<Option<Result<Record, Damage>>> {
    let is_gzip = reader.fill_buf()?.starts_with(&GZIP_MAGIC[..1]);
    let read = if is_gzip { read_member(reader, block_max) } else { read_plain(reader, block_max) };
    match read {
        Ok(record) => Ok(record.map(Ok)),
        Err(Failure::Damage(damage)) => Ok(Some(Err(damage))),
        Err(Failure::Io(error)) => match error.kind() {
            io::ErrorKind::UnexpectedEof => Ok(Some(Err(Damage::Truncated))),
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData if is_gzip => {
                Ok(Some(Err(Damage::BadGzip)))
            }
            _ => Err(error),
        },
    }
}

/// Header fields in order.
type Fields = Vec<(String, String)>;

enum Failure {
    Damage(Damage),
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A record that is a gzip member of its own.
fn read_member(reader: &mut SourceReader<'_>, block_max: usize) -> Result<Option<Record>, Failure> {
    let offset = reader.position();
    let mut member = io::BufReader::new(GzDecoder::new(&mut *reader));
    let Some((fields, length)) = read_header(&mut member)? else {
        return Err(Failure::Damage(Damage::NotWarc));
    };
    let (block, is_cut) = read_block(&mut member, length, block_max)?;
    let skipped = io::copy(&mut (&mut member).take(length - block.len() as u64), &mut io::sink())?;
    if skipped + (block.len() as u64) < length {
        return Err(Failure::Damage(Damage::Truncated));
    }
    // The closing blank lines; reading to the end of the member checks its checksum.
    let mut tail = Vec::new();
    (&mut member).take(WARC_MAGIC.len() as u64 + 8).read_to_end(&mut tail)?;
    if tail.trim_ascii().starts_with(WARC_MAGIC) {
        return Err(Failure::Damage(Damage::NotPerRecord));
    }
    io::copy(&mut member, &mut io::sink())?;
    drop(member);
    Ok(Some(Record { offset, length: reader.position() - offset, fields, block, is_cut }))
}

/// A record that lies in the file as it is, with its closing blank lines.
fn read_plain(reader: &mut SourceReader<'_>, block_max: usize) -> Result<Option<Record>, Failure> {
    let offset = reader.position();
    let Some((fields, length)) = read_header(reader)? else { return Ok(None) };
    let block_end = reader.position().saturating_add(length);
    if block_end > reader.end() {
        return Err(Failure::Damage(Damage::Truncated));
    }
    let (block, is_cut) = read_block(reader, length, block_max)?;
    reader.skip(block_end - reader.position());
    skip_blank(reader)?;
    Ok(Some(Record { offset, length: reader.position() - offset, fields, block, is_cut }))
}

fn read_block(
    reader: &mut impl Read,
    length: u64,
    block_max: usize,
) -> io::Result<(Vec<u8>, bool)> {
    let kept = length.min(block_max as u64);
    let mut block = Vec::new();
    reader.take(kept).read_to_end(&mut block)?;
    if (block.len() as u64) < kept {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((block, length > kept))
}

/// Skips CR and LF bytes.
fn skip_blank(reader: &mut impl BufRead) -> io::Result<()> {
    loop {
        let bytes = reader.fill_buf()?;
        let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        let is_over = bytes.is_empty() || blank < bytes.len();
        reader.consume(blank);
        if is_over {
            return Ok(());
        }
    }
}

/// Header fields and `Content-Length`; none at the end of the input.
fn read_header(reader: &mut impl BufRead) -> Result<Option<(Fields, u64)>, Failure> {
    skip_blank(reader)?;
    let mut limited = reader.take(HEADER_MAX as u64);
    let mut line = Vec::new();
    limited.read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if !line.starts_with(WARC_MAGIC) {
        let is_prefix = WARC_MAGIC.starts_with(&line);
        return Err(Failure::Damage(if is_prefix { Damage::Truncated } else { Damage::NotWarc }));
    }
    let mut fields: Vec<(String, String)> = Vec::new();
    loop {
        line.clear();
        limited.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\n") {
            let is_long = limited.limit() == 0;
            return Err(Failure::Damage(if is_long {
                Damage::BadHeader
            } else {
                Damage::Truncated
            }));
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if text.is_empty() {
            break;
        }
        match text.split_once(':') {
            // A folded line goes on with the value of the field before it.
            _ if text.starts_with([' ', '\t']) => {
                let Some((_, value)) = fields.last_mut() else { continue };
                value.push(' ');
                value.push_str(text.trim());
            }
            Some((name, value)) => fields.push((name.trim().to_owned(), value.trim().to_owned())),
            None => return Err(Failure::Damage(Damage::BadHeader)),
        }
    }
    let length = fields.iter().find(|(name, _)| name.eq_ignore_ascii_case("Content-Length"));
    let length = length.and_then(|(_, value)| value.parse().ok());
    length.map(|length| Some((fields, length))).ok_or(Failure::Damage(Damage::BadHeader))
}

/// Offset of the next place, from `from` on, where a record may start.
fn next_start(source: &Source, from: u64) -> io::Result<Option<u64>> {
    let mut reader = source.reader(from);
    let mut window: Vec<u8> = Vec::new();
    let mut window_offset = from;
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let n = bytes.len();
        window.extend_from_slice(bytes);
        reader.consume(n);
        for (at, rest) in (0..window.len()).map(|at| (at, &window[at..])) {
            let is_start = rest.starts_with(b"WARC/1.") || rest.starts_with(b"WARC/0.");
            if is_start
                || (rest.starts_with(&GZIP_MAGIC) && opens(source, window_offset + at as u64))
            {
                return Ok(Some(window_offset + at as u64));
            }
        }
        // A start may be cut by the end of the window: its last bytes are looked at again.
        let kept = window.len().min(WARC_MAGIC.len() + 1);
        window_offset += (window.len() - kept) as u64;
        window.drain(..window.len() - kept);
    }
}

/// Whether a gzip member at `offset` begins with a record header.
fn opens(source: &Source, offset: u64) -> bool {
    let mut first = [0; WARC_MAGIC.len()];
    let mut member = GzDecoder::new(source.reader(offset));
    member.read_exact(&mut first).is_ok() && first == *WARC_MAGIC
}

/// Whether a whole record header is at `offset`: a text about archives may hold its first bytes.
fn has_header(source: &Source, offset: u64) -> bool {
    let mut reader = source.reader_of(offset, HEADER_MAX as u64);
    let is_gzip = reader.fill_buf().is_ok_and(|bytes| bytes.starts_with(&GZIP_MAGIC));
    let header = if is_gzip {
        read_header(&mut io::BufReader::new(GzDecoder::new(reader)))
    } else {
        read_header(&mut reader)
    };
    matches!(header, Ok(Some(_)))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn record(target: &str, block: &[u8]) -> Vec<u8> {
        let mut bytes = format!(
            "WARC/1.1\r\nWARC-Type: response\r\nwarc-target-uri: <{target}>\r\nX: a\r\n b\r\nContent-Length: {}\r\n\r\n",
            block.len()
        )
        .into_bytes();
        bytes.extend_from_slice(block);
        bytes.extend_from_slice(b"\r\n\r\n");
        bytes
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    type Seen = Result<(u64, String, usize), (u64, Damage)>;

    fn walk(bytes: &[u8], block_max: usize) -> Vec<Seen> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.warc");
        std::fs::write(&path, bytes).unwrap();
        let source = Source::open(path.to_str().unwrap()).unwrap();
        let seen = records(&source, block_max).map(|item| {
            let item = item.unwrap();
            if let Ok(record) = &item {
                let again =
                    read_record(&source, record.offset, record.length, block_max).unwrap().unwrap();
                assert_eq!(
                    &again, record,
                    "a record found by its offset is the record of the walk"
                );
            }
            item.map(|r| (r.offset, r.target().unwrap().to_owned(), r.block.len()))
        });
        seen.collect()
    }

    #[test]
    fn plain_and_gzip_hold_the_same_records() {
        let (a, b) = (record("http://a/", b"one"), record("http://b/", &[7; 5000]));
        let expect = |second: usize| -> Vec<Seen> {
            vec![Ok((0, "http://a/".into(), 3)), Ok((second as u64, "http://b/".into(), 100))]
        };
        assert_eq!(walk(&[a.clone(), b.clone()].concat(), 100), expect(a.len()));
        let (a, b) = (gzip(&a), gzip(&b));
        assert_eq!(walk(&[a.clone(), b].concat(), 100), expect(a.len()));
    }

    #[test]
    fn a_cut_file_gives_its_whole_records_and_the_offset_of_the_cut() {
        let (a, b) = (record("http://a/", b"one"), record("http://b/", &[7; 50]));
        for (a, b) in [(a.clone(), b.clone()), (gzip(&a), gzip(&b))] {
            let whole = [a.clone(), b].concat();
            for end in [a.len() + 3, a.len() + 20, whole.len() - 12] {
                let seen = walk(&whole[..end], 100);
                assert_eq!(seen.len(), 2, "cut at {end}");
                assert_eq!(seen[1], Err((a.len() as u64, Damage::Truncated)), "cut at {end}");
            }
        }
    }

    #[test]
    fn damage_in_the_middle_costs_one_record() {
        let plain =
            [record("http://a/", b"1"), record("http://b/", b"2"), record("http://c/", b"3")];
        let members = plain.clone().map(|record| gzip(&record));
        for (mut records, damage) in [(members, Damage::BadGzip), (plain, Damage::NotWarc)] {
            records[1][..12].fill(0xee);
            if damage == Damage::BadGzip {
                records[1][..3].copy_from_slice(&GZIP_MAGIC);
            }
            let seen = walk(&records.concat(), 100);
            let targets: Vec<_> =
                seen.iter().flatten().map(|(_, target, _)| target.as_str()).collect();
            assert_eq!(targets, ["http://a/", "http://c/"]);
            assert_eq!(seen[1].clone().unwrap_err().0, records[0].len() as u64, "{seen:?}");
        }
    }

    #[test]
    fn a_length_beyond_the_end_is_a_cut_only_in_the_last_record() {
        let (a, b) = (record("http://a/", b"one"), record("http://b/", b"two"));
        let long = String::from_utf8(a).unwrap().replace("Length: 3", "Length: 99999");
        let targets = |bytes: &[u8]| walk(bytes, 100).into_iter().map(|r| r.map(|(_, t, _)| t));
        for (a, b) in [(long.clone().into_bytes(), b.clone()), (gzip(long.as_bytes()), gzip(&b))] {
            let seen: Vec<_> = targets(&[a.clone(), b].concat()).collect();
            assert_eq!(seen, [Err((0, Damage::BadLength)), Ok("http://b/".into())]);
            let seen: Vec<_> = targets(&a).collect();
            assert_eq!(seen, [Err((0, Damage::Truncated))]);
        }
        // A page about archives that is cut off.
        let page = record("http://a/", b"first come the bytes WARC/1.1 and then\n");
        let seen: Vec<_> = targets(&page[..page.len() - 6]).collect();
        assert_eq!(seen[0], Err((0, Damage::Truncated)));
    }

    #[test]
    fn one_stream_of_many_records_is_named_as_such() {
        let both = [record("http://a/", b"one"), record("http://b/", b"two")].concat();
        assert_eq!(walk(&gzip(&both), 100), [Err((0, Damage::NotPerRecord))]);
        assert_eq!(walk(b"hello, this is no archive", 100), [Err((0, Damage::NotWarc))]);
    }

    #[test]
    fn fields_are_found_in_any_case_and_unfolded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.warc");
        std::fs::write(&path, record("http://a/", b"")).unwrap();
        let source = Source::open(path.to_str().unwrap()).unwrap();
        let record = read_record(&source, 0, 100, 10).unwrap().unwrap();
        assert_eq!((record.field("x"), record.kind()), (Some("a b"), "response"));
    }
}
