//! Records of web archives: WARC (ISO 28500, versions 0.17 to 1.1) and ARC (versions 1 and 2), plain
//! or compressed with gzip, zstd or lz4, each record for itself or many together.
//!
//! A damaged record is reported with its offset and the reader goes on at the next place that looks
//! like the start of a record. [`Walk`] gives every payload piece by piece and without copies;
//! [`records`] gives records with the beginnings of their blocks.

use std::io;
use std::ops::Range;

use memchr::{memchr, memmem};

use crate::source::{Source, SourceReader};
use crate::spool::Spool;
use crate::unpack::{Broken, GZIP_MAGIC, LZ4_MAGIC, Packing, Unpacked, ZSTD_MAGIC};

/// Longest record header in bytes.
const HEADER_MAX: usize = 64 << 10;
/// First bytes of every WARC record header.
const WARC_MAGIC: &[u8] = b"WARC/";
/// Longest first line of an ARC record.
const ARC_LINE_MAX: usize = 16 << 10;
/// Bytes behind a place that decide whether a record may start there.
const START_WINDOW: usize = 4 << 10;

/// The named fields of a record's header, in order, names as written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fields {
    text: String,
    /// Where in the text a name and its value are.
    spans: Vec<(Range<u32>, Range<u32>)>,
}

impl Fields {
    fn push(&mut self, name: &str, value: &str) {
        let from = self.text.len() as u32;
        self.text.push_str(name);
        let middle = self.text.len() as u32;
        self.text.push_str(value);
        self.spans.push((from..middle, middle..self.text.len() as u32));
    }

    /// A folded line goes on with the value of the field before it.
    fn extend_last(&mut self, more: &str) {
        let Some((_, value)) = self.spans.last_mut() else { return };
        self.text.push(' ');
        self.text.push_str(more);
        value.end = self.text.len() as u32;
    }

    /// Value of a field, whatever the case of its name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Names and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let part = |range: &Range<u32>| &self.text[range.start as usize..range.end as usize];
        self.spans.iter().map(move |(name, value)| (part(name), part(value)))
    }
}

/// One record: its place, its header and the first bytes of its block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Offset of the record in the file: of its own compressed member, or, behind another record in
    /// the same member, in the file as it is without compression.
    pub offset: u64,
    /// Bytes that the record takes there, its member's trailer or closing blank lines included.
    pub length: u64,
    /// Whether it can be found by its offset: it is plain or the first of its member.
    pub is_first: bool,
    /// Header fields. Those of an ARC record have the names that WARC gives them.
    pub fields: Fields,
    /// The first bytes of the block, as many as were asked for.
    pub block: Vec<u8>,
    /// Whether the block is longer than [`Record::block`].
    pub is_cut: bool,
}

impl Record {
    /// Value of a header field, whatever the case of its name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name)
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
    BadCompression,
    /// There is no record header where one must be.
    NotWarc,
    /// The header is too long, or lacks a length.
    BadHeader,
    /// The header says more bytes than there are, and other records follow.
    BadLength,
}

impl Damage {
    /// Name of the reason in the rejects table.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Truncated => "truncated_archive",
            Self::BadCompression => "bad_compression",
            Self::NotWarc => "not_a_warc_record",
            Self::BadHeader => "bad_warc_header",
            Self::BadLength => "bad_content_length",
        }
    }
}

/// What can end a step of the walk: damage, or a file that cannot be read.
enum Failure {
    Damage(Damage),
    Io(io::Error),
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Truncated => Self::Damage(Damage::Truncated),
            Broken::Corrupt => Self::Damage(Damage::BadCompression),
            Broken::Io(error) => Self::Io(error),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What a step gives: a value or the damage at an offset; the outer error when the file cannot be read.
pub type Step<T> = io::Result<Result<T, (u64, Damage)>>;

/// A walk over an archive, record by record and, inside a record, piece by piece.
///
/// ```
/// use flamingo_ingest::source::Source;
/// use flamingo_ingest::warc::Walk;
///
/// let archive = b"WARC/1.1\r\nWARC-Type: resource\r\nContent-Length: 5\r\n\r\nhello\r\n\r\n";
/// let source = Source::of_bytes("a.warc", archive.to_vec());
/// let mut walk = Walk::new(&source);
/// while let Some(step) = walk.advance()? {
///     step.unwrap();
///     assert_eq!(walk.fields().get("warc-type"), Some("resource"));
///     while let Some(piece) = walk.piece()?.unwrap() {
///         assert_eq!(piece, b"hello");
///     }
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Walk<'a> {
    source: &'a Source,
    bytes: Unpacked<'a>,
    fields: Fields,
    /// Offset of the record, see [`Record::offset`].
    offset: u64,
    is_first: bool,
    /// Bytes that the finished record takes, see [`Record::length`].
    length: u64,
    /// Bytes of the member that were consumed before the record.
    begin: u64,
    /// Offset of the block in the file, where nothing is compressed.
    block: u64,
    /// Bytes of the block that were not given yet.
    left: u64,
    /// Bytes given and not yet consumed.
    given: usize,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Outside of any member.
    Outside,
    /// Inside a compressed member, before a record.
    Between,
    /// Inside a record.
    Inside,
}

impl<'a> Walk<'a> {
    /// A walk from the start of the file.
    pub fn new(source: &'a Source) -> Self {
        Self::from(source, source.reader(0))
    }

    /// A walk from the reader's place, at which a member begins.
    fn from(source: &'a Source, reader: SourceReader<'a>) -> Self {
        Self {
            source,
            bytes: Unpacked::new(source, reader),
            fields: Fields::default(),
            offset: 0,
            is_first: true,
            length: 0,
            begin: 0,
            block: 0,
            left: 0,
            given: 0,
            state: State::Outside,
        }
    }

    /// Header of the current record.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// Offset of the current record, see [`Record::offset`].
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Goes to the next record and reads its header; none at the end of the file. Damage is told
    /// with its offset, after which the walk goes on.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn advance(&mut self) -> io::Result<Option<Result<(), (u64, Damage)>>> {
        if self.state == State::Inside
            && let Err(damage) = self.finish()?
        {
            return Ok(Some(Err(damage)));
        }
        match self.begin_record() {
            Ok(false) => Ok(None),
            Ok(true) => Ok(Some(Ok(()))),
            Err(failure) => Ok(Some(Err(self.recover(failure)?))),
        }
    }

    /// The next piece of the record's block; none at its end.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn piece(&mut self) -> Step<Option<&[u8]>> {
        match self.next_piece() {
            Ok(n) => Ok(Ok((n > 0).then(|| &self.bytes.data()[..n]))),
            Err(failure) => Ok(Err(self.recover(failure)?)),
        }
    }

    /// Reads to the end of the record, and of its member where nothing else is in it.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn finish(&mut self) -> Step<()> {
        match self.finish_record() {
            Ok(()) => Ok(Ok(())),
            Err(failure) => Ok(Err(self.recover(failure)?)),
        }
    }

    /// The rest of the current record with the first `block_max` bytes of its block. Where `spool` is
    /// given, a record that cannot be found by its offset and that `is_wanted` is copied there; its
    /// place there comes with it.
    pub(crate) fn take_record(
        &mut self,
        block_max: usize,
        spool: Option<&mut Spool>,
        is_wanted: impl FnOnce(&Record) -> bool,
    ) -> Step<(Record, Option<u64>)> {
        let taken = self.take_parts(block_max, spool, is_wanted);
        match taken {
            Ok(taken) => Ok(Ok(taken)),
            Err(failure) => Ok(Err(self.recover(failure)?)),
        }
    }

    fn take_parts(
        &mut self,
        block_max: usize,
        spool: Option<&mut Spool>,
        is_wanted: impl FnOnce(&Record) -> bool,
    ) -> Result<(Record, Option<u64>), Failure> {
        let block = self.take_block(block_max)?;
        let mut record = Record {
            offset: self.offset,
            length: 0,
            is_first: self.is_first,
            fields: self.fields.clone(),
            block,
            is_cut: self.left > 0,
        };
        let mut place = None;
        if let Some(spool) = spool.filter(|_| !record.is_first && is_wanted(&record)) {
            let begin = spool.begin(&record.fields, &record.block);
            loop {
                match self.next_piece() {
                    Ok(0) => break,
                    Ok(n) => spool.push(&self.bytes.data()[..n]),
                    Err(failure) => {
                        spool.forget(begin);
                        return Err(failure);
                    }
                }
            }
            spool.push(b"\r\n\r\n");
            place = Some(begin);
        }
        self.finish_record()?;
        record.length = self.length;
        Ok((record, place))
    }

    /// The next bytes of the block, at most `block_max`.
    fn take_block(&mut self, block_max: usize) -> Result<Vec<u8>, Failure> {
        let mut block = Vec::new();
        loop {
            let n = self.next_piece()?;
            let taken = n.min(block_max - block.len());
            block.extend_from_slice(&self.bytes.data()[..taken]);
            // What is too much is given again.
            self.left += (n - taken) as u64;
            self.given = taken;
            if n == 0 || taken < n || block.len() == block_max {
                return Ok(block);
            }
        }
    }

    /// Goes to the next header and reads it. Whether there is one.
    fn begin_record(&mut self) -> Result<bool, Failure> {
        loop {
            self.is_first = self.state == State::Outside;
            if self.is_first && !self.bytes.next_member()? {
                return Ok(false);
            }
            self.state = State::Between;
            self.offset = self.bytes.member();
            self.skip_blank()?;
            if self.bytes.data().is_empty() {
                self.state = State::Outside;
                continue;
            }
            if !self.is_first {
                self.offset = self.bytes.unpacked_position();
            }
            break;
        }
        self.begin = self.bytes.consumed();
        let (header, length) = read_header(&mut self.bytes, &mut self.fields)?;
        self.bytes.consume(header);
        self.block = self.bytes.unpacked_position();
        if self.bytes.plain_left().is_some_and(|left| left < length) {
            return Err(Failure::Damage(Damage::Truncated));
        }
        (self.left, self.given, self.state) = (length, 0, State::Inside);
        Ok(true)
    }

    /// Length of the next piece, which is then the first of the buffer; 0 at the end of the block.
    fn next_piece(&mut self) -> Result<usize, Failure> {
        self.bytes.consume(std::mem::take(&mut self.given));
        if self.left == 0 || self.state != State::Inside {
            return Ok(0);
        }
        if self.bytes.data().is_empty() && !self.bytes.more()? {
            return Err(Failure::Damage(Damage::Truncated));
        }
        let data = self.bytes.data().len();
        self.given = usize::try_from(self.left).map_or(data, |left| left.min(data));
        self.left -= self.given as u64;
        Ok(self.given)
    }

    fn finish_record(&mut self) -> Result<(), Failure> {
        if self.state != State::Inside {
            return Ok(());
        }
        self.bytes.consume(std::mem::take(&mut self.given));
        let left = std::mem::take(&mut self.left);
        if self.bytes.skip(left)? < left {
            return Err(Failure::Damage(Damage::Truncated));
        }
        let block_end = self.bytes.unpacked_position();
        let is_closed = self.skip_blank()?;
        let is_over = self.bytes.data().is_empty();
        let is_plain = self.bytes.packing() == Packing::Plain;
        self.length = if is_over && self.is_first && !is_plain {
            self.bytes.packed_position() - self.bytes.member()
        } else {
            self.bytes.consumed() - self.begin
        };
        // A block that is followed by something else has another length than it says. The place where
        // the next record really begins is behind us where that length is too large.
        while is_plain && !is_closed && self.bytes.data().len() < START_WINDOW {
            if !self.bytes.more()? {
                break;
            }
        }
        if is_plain
            && !is_closed
            && !starts_record(self.bytes.data())
            && let Some(start) = next_start(self.source, self.block, block_end)?
        {
            self.bytes.seek(start);
            self.state = State::Outside;
            return Err(Failure::Damage(Damage::BadLength));
        }
        self.state = if is_over || is_plain { State::Outside } else { State::Between };
        Ok(())
    }

    /// Skips line ends and zeros. Whether there was one, or nothing is left.
    fn skip_blank(&mut self) -> Result<bool, Failure> {
        let mut is_blank = false;
        loop {
            if self.bytes.data().is_empty() && !self.bytes.more()? {
                return Ok(true);
            }
            let data = self.bytes.data();
            let n = data.iter().take_while(|byte| matches!(byte, b'\r' | b'\n' | 0)).count();
            is_blank |= n > 0;
            let is_over = n < data.len();
            self.bytes.consume(n);
            if is_over {
                return Ok(is_blank);
            }
        }
    }

    /// Goes to where a record may start again; the damage and the offset of the damaged record.
    fn recover(&mut self, failure: Failure) -> io::Result<(u64, Damage)> {
        let damage = match failure {
            Failure::Io(error) => return Err(error),
            Failure::Damage(damage) => damage,
        };
        (self.left, self.given) = (0, 0);
        let is_plain = self.bytes.packing() == Packing::Plain;
        if self.state == State::Outside && damage == Damage::BadLength {
            return Ok((self.offset, damage));
        }
        let is_readable = matches!(damage, Damage::NotWarc | Damage::BadHeader);
        if !is_plain && is_readable && self.find_in_member() {
            return Ok((self.offset, damage));
        }
        if !is_plain && damage == Damage::Truncated && self.bytes.is_whole() {
            // The member is sound, but its record says more bytes than there are in it.
            self.state = State::Outside;
            let is_last = self.bytes.packed_position() >= self.source.len();
            return Ok((self.offset, if is_last { damage } else { Damage::BadLength }));
        }
        let start = next_start(self.source, self.bytes.member() + 1, u64::MAX)?;
        self.bytes.seek(start.unwrap_or(self.source.len()));
        self.state = State::Outside;
        // What lacks its end in front of another record is no end of the file.
        let damage = match damage {
            Damage::Truncated if start.is_some() && is_plain => Damage::BadLength,
            Damage::Truncated if start.is_some() => Damage::BadCompression,
            damage => damage,
        };
        Ok((self.offset, damage))
    }

    /// Goes to the next header in the rest of a compressed member, or to the end of the member. Whether
    /// that can be read so far.
    fn find_in_member(&mut self) -> bool {
        // The first byte belongs to what is damaged.
        let mut from = 1;
        loop {
            let found = {
                let data = self.bytes.data();
                let found = memmem::find_iter(data.get(from..).unwrap_or(&[]), WARC_MAGIC)
                    .map(|at| from + at)
                    .find(|&at| starts_record(&data[at..]));
                found.ok_or(data.len())
            };
            match found {
                Ok(at) => {
                    self.bytes.consume(at);
                    self.state = State::Between;
                    return true;
                }
                Err(length) => {
                    // A header may be cut by the end of the buffer.
                    self.bytes.consume(length.saturating_sub(START_WINDOW));
                    from = usize::from(length <= START_WINDOW && from == 1);
                }
            }
            match self.bytes.more() {
                Ok(true) => {}
                Ok(false) => {
                    self.bytes.consume(self.bytes.data().len());
                    self.state = State::Outside;
                    return true;
                }
                Err(_) => return false,
            }
        }
    }
}

/// Reads the header that is next: its bytes, which are not consumed, and the length of the block.
fn read_header(bytes: &mut Unpacked<'_>, fields: &mut Fields) -> Result<(usize, u64), Failure> {
    loop {
        match parse_header(bytes.data(), fields) {
            Parsed::Whole { header, block } => return Ok((header, block)),
            Parsed::Bad(damage) => return Err(Failure::Damage(damage)),
            Parsed::Partial if bytes.data().len() > HEADER_MAX => {
                return Err(Failure::Damage(Damage::BadHeader));
            }
            Parsed::Partial => {}
        }
        if !bytes.more()? {
            let begins = bytes.data();
            let begins = &begins[..begins.len().min(WARC_MAGIC.len())];
            let is_warc = WARC_MAGIC.starts_with(begins);
            return Err(Failure::Damage(if is_warc { Damage::Truncated } else { Damage::NotWarc }));
        }
    }
}

enum Parsed {
    Whole {
        header: usize,
        block: u64,
    },
    /// It goes on behind the bytes.
    Partial,
    Bad(Damage),
}

/// Reads the header at the start of `bytes`.
fn parse_header(bytes: &[u8], fields: &mut Fields) -> Parsed {
    fields.text.clear();
    fields.spans.clear();
    let begins = &bytes[..bytes.len().min(WARC_MAGIC.len())];
    if begins == WARC_MAGIC {
        parse_warc_header(bytes, fields)
    } else if WARC_MAGIC.starts_with(begins) {
        Parsed::Partial
    } else {
        parse_arc_header(bytes, fields)
    }
}

fn parse_warc_header(bytes: &[u8], fields: &mut Fields) -> Parsed {
    let mut at = 0;
    loop {
        let Some(length) = memchr(b'\n', &bytes[at..]) else { return Parsed::Partial };
        let line = String::from_utf8_lossy(&bytes[at..at + length]);
        let line = line.trim_end();
        let is_version = at == 0;
        at += length + 1;
        if line.is_empty() {
            break;
        }
        match line.split_once(':') {
            _ if is_version => {}
            // A folded line, or an address with a line end in it.
            _ if line.starts_with([' ', '\t']) => fields.extend_last(line.trim()),
            None => fields.extend_last(line.trim()),
            Some((name, value)) => fields.push(name.trim(), value.trim()),
        }
    }
    match fields.get("Content-Length").and_then(|length| length.parse().ok()) {
        Some(block) => Parsed::Whole { header: at, block },
        None => Parsed::Bad(Damage::BadHeader),
    }
}

/// The line before an ARC record: address, IP address, date, type, length; in version 2 status,
/// checksum, location, offset and file name before the length. Addresses may hold spaces.
fn parse_arc_header(bytes: &[u8], fields: &mut Fields) -> Parsed {
    let window = &bytes[..bytes.len().min(ARC_LINE_MAX)];
    let Some(end) = memchr(b'\n', window) else {
        let is_long = bytes.len() >= ARC_LINE_MAX || !looks_like_address(window);
        return if is_long { Parsed::Bad(Damage::NotWarc) } else { Parsed::Partial };
    };
    let line = String::from_utf8_lossy(&bytes[..end]);
    let parts: Vec<_> = line.trim_end().split(' ').collect();
    let is_date = |from_end: usize| {
        let date = parts.len().checked_sub(from_end).filter(|&at| at >= 2).map(|at| parts[at]);
        date.is_some_and(|date| date.len() == 14 && date.bytes().all(|b| b.is_ascii_digit()))
    };
    let date = [3, 8].into_iter().find(|&from_end| is_date(from_end));
    let length = parts.last().and_then(|length| length.parse::<u64>().ok());
    let (Some(date), Some(length)) = (date.map(|from_end| parts.len() - from_end), length) else {
        return Parsed::Bad(Damage::NotWarc);
    };
    let url = parts[..date - 1].join(" ");
    if !looks_like_address(url.as_bytes()) {
        return Parsed::Bad(Damage::NotWarc);
    }
    let kind = if url.starts_with("filedesc:") { "warcinfo" } else { "response" };
    fields.push("WARC-Type", kind);
    fields.push("WARC-Target-URI", &url);
    fields.push("WARC-Date", &arc_date(parts[date]));
    fields.push("WARC-IP-Address", parts[date - 1]);
    fields.push("Content-Type", parts[date + 1]);
    fields.push("Content-Length", &length.to_string());
    Parsed::Whole { header: end + 1, block: length }
}

/// Whether bytes begin like an address: a scheme and a colon.
fn looks_like_address(bytes: &[u8]) -> bool {
    let scheme = bytes.iter().take_while(|byte| byte.is_ascii_alphanumeric()).count();
    (2..=16).contains(&scheme) && bytes.get(scheme).is_none_or(|&byte| byte == b':')
}

/// `20140216050221` as WARC writes it.
fn arc_date(digits: &str) -> String {
    let part = |from: usize, to: usize| &digits[from..to];
    let (year, month, day) = (part(0, 4), part(4, 6), part(6, 8));
    format!("{year}-{month}-{day}T{}:{}:{}Z", part(8, 10), part(10, 12), part(12, 14))
}

/// Whether bytes begin like a record header. They may be cut off.
fn starts_record(bytes: &[u8]) -> bool {
    let window = &bytes[..bytes.len().min(START_WINDOW)];
    if window.len() < WARC_MAGIC.len() {
        return false;
    }
    if !window.starts_with(WARC_MAGIC) {
        return matches!(parse_arc_header(window, &mut Fields::default()), Parsed::Whole { .. });
    }
    // A text about archives may hold the first bytes of a header.
    let mut lines = window.split(|&byte| byte == b'\n');
    let version = lines.next().unwrap_or(&[]).trim_ascii_end();
    let is_version = matches!(version.get(WARC_MAGIC.len()..), Some([b'0'..=b'9', b'.', rest @ ..])
        if !rest.is_empty() && rest.iter().all(u8::is_ascii_digit));
    is_version && lines.next().is_some_and(|line| memchr(b':', line).is_some())
}

/// Offset of the next place, in `from..until`, where a record may start: in plain bytes or in a
/// compressed member.
fn next_start(source: &Source, from: u64, until: u64) -> io::Result<Option<u64>> {
    let finders =
        [WARC_MAGIC, &GZIP_MAGIC, &ZSTD_MAGIC, &LZ4_MAGIC, b"\nhttp"].map(memmem::Finder::new);
    let mut reader = source.reader(from);
    loop {
        let offset = reader.position();
        let window = reader.peek(2 * START_WINDOW)?;
        if window.is_empty() || offset >= until {
            return Ok(None);
        }
        // What stands near the end of the window is looked at with the next one.
        let is_last = window.len() < 2 * START_WINDOW;
        let n = if is_last { window.len() } else { window.len() - START_WINDOW };
        let mut places: Vec<usize> = finders
            .iter()
            .flat_map(|finder| {
                let skipped = usize::from(finder.needle()[0] == b'\n');
                finder.find_iter(window).map(move |at| at + skipped)
            })
            .filter(|&at| at < n)
            .collect();
        places.sort_unstable();
        for at in places {
            if may_start(&window[at..]) {
                let start = offset + at as u64;
                return Ok((start < until).then_some(start));
            }
        }
        reader.skip(n as u64);
    }
}

/// Whether a record may start here, plain or compressed.
fn may_start(bytes: &[u8]) -> bool {
    match Packing::of(bytes) {
        Packing::Plain => starts_record(bytes),
        // Four bytes are hardly ever there by chance, three are.
        Packing::Zstd | Packing::Lz4 => true,
        Packing::Gzip => {
            let window = bytes[..bytes.len().min(START_WINDOW)].to_vec();
            let source = Source::of_bytes("", window);
            let mut member = Unpacked::new(&source, source.reader(0));
            matches!(member.next_member(), Ok(true))
                && matches!(member.more(), Ok(true))
                && starts_record(member.data())
        }
    }
}

/// A walk over the records of a file, or a damaged place's offset.
pub struct Records<'a> {
    walk: Walk<'a>,
    block_max: usize,
}

/// A walk over `source` from its start that keeps the first `block_max` bytes of every block.
pub fn records(source: &Source, block_max: usize) -> Records<'_> {
    Records { walk: Walk::new(source), block_max }
}

impl Iterator for Records<'_> {
    /// The record, or what is wrong at which offset.
    type Item = io::Result<Result<Record, (u64, Damage)>>;

    fn next(&mut self) -> Option<Self::Item> {
        let taken = match self.walk.advance().transpose()? {
            Ok(Ok(())) => self.walk.take_record(self.block_max, None, |_| false),
            Ok(Err(damage)) => Ok(Err(damage)),
            Err(error) => Err(error),
        };
        Some(taken.map(|taken| taken.map(|(record, _)| record)))
    }
}

/// Whether a file begins like an archive.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn starts(source: &Source) -> io::Result<bool> {
    let mut reader = source.reader_of(0, START_WINDOW as u64);
    let bytes = reader.peek(START_WINDOW)?;
    Ok(may_start(bytes.trim_ascii_start()) || source.dictionary()?.is_some())
}

/// The record at `offset`, about `length` bytes long in the file, with the first `block_max` bytes
/// of its block. It must be one that can be found by its offset.
///
/// # Errors
/// The outer error when the file cannot be read, the inner one when the record is damaged.
pub fn read_record(
    source: &Source,
    offset: u64,
    length: u64,
    block_max: usize,
) -> io::Result<Result<Record, Damage>> {
    let mut walk = Walk::from(source, source.reader_of(offset, length));
    let taken = match walk.advance()? {
        None => return Ok(Err(Damage::Truncated)),
        Some(Err(damage)) => Err(damage),
        Some(Ok(())) => walk.take_record(block_max, None, |_| false)?,
    };
    Ok(taken.map(|(record, _)| record).map_err(|(_, damage)| damage))
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
            if let Ok(record) = &item
                && record.is_first
            {
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
        for (mut records, damage) in [(members, Damage::BadCompression), (plain, Damage::NotWarc)] {
            records[1][..12].fill(0xee);
            if damage == Damage::BadCompression {
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

    fn zstd(bytes: &[u8], dictionary: Option<&[u8]>) -> Vec<u8> {
        let mut packer = zstd_safe::CCtx::create();
        if let Some(dictionary) = dictionary {
            packer.load_dictionary(dictionary).unwrap();
        }
        let mut packed = Vec::with_capacity(zstd_safe::compress_bound(bytes.len()));
        packer.compress2(&mut packed, bytes).unwrap();
        packed
    }

    type Pack = fn(&[u8]) -> Vec<u8>;

    fn lz4(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// Targets of the records of one archive.
    fn targets(bytes: &[u8]) -> Vec<Result<String, Damage>> {
        let seen = walk(bytes, 100).into_iter();
        seen.map(|seen| seen.map(|(_, target, _)| target).map_err(|(_, damage)| damage)).collect()
    }

    fn found(targets: &[&str]) -> Vec<Result<String, Damage>> {
        targets.iter().map(|&target| Ok(target.to_owned())).collect()
    }

    #[test]
    fn every_packing_is_read_record_by_record_and_as_one_stream() {
        let records: Vec<_> = (0..5)
            .map(|i| record(&format!("http://{i}/"), &vec![b'a' + i; 70_000 * usize::from(i)]))
            .collect();
        let expected = found(&["http://0/", "http://1/", "http://2/", "http://3/", "http://4/"]);
        let packings: [Pack; 4] = [<[u8]>::to_vec, gzip, |bytes| zstd(bytes, None), lz4];
        for pack in packings {
            let single: Vec<_> = records.iter().map(|record| pack(record)).collect();
            assert_eq!(targets(&single.concat()), expected);
            assert_eq!(targets(&pack(&records.concat())), expected);
            // Two and two, and empty members between them.
            let two = [pack(&records[..2].concat()), pack(b""), pack(&records[2..].concat())];
            assert_eq!(targets(&two.concat()), expected);
        }
        // One file may mix them, and be filled up with zeros.
        let mixed =
            [records[0].clone(), gzip(&records[1]), lz4(&records[2]), zstd(&records[3], None)];
        assert_eq!(targets(&[mixed.concat(), vec![0; 5000]].concat()), expected[..4]);
    }

    #[test]
    fn a_zstd_archive_brings_its_dictionary() {
        let samples: Vec<_> =
            (0..500).map(|i| record(&format!("http://a/{i}"), &[b'a'; 50])).collect();
        let sizes: Vec<_> = samples.iter().map(Vec::len).collect();
        let record = record("http://a/", b"one");
        let archive = |frame: &[u8], dictionary: &[u8]| {
            let length = (frame.len() as u32).to_le_bytes();
            let head = [&[0x5d, 0x2a, 0x4d, 0x18], &length[..], frame].concat();
            [head, zstd(&record, Some(dictionary)), zstd(&record, Some(dictionary))].concat()
        };
        let mut dictionary = Vec::with_capacity(1000);
        let trained = zstd_safe::train_from_buffer(&mut dictionary, &samples.concat(), &sizes);
        assert!(trained.is_ok() && dictionary.len() > 8);
        let expected = found(&["http://a/", "http://a/"]);
        assert_eq!(targets(&archive(&dictionary, &dictionary)), expected);
        assert_eq!(targets(&archive(&zstd(&dictionary, None), &dictionary)), expected);
    }

    #[test]
    fn arc_records_have_the_fields_of_warc_records() {
        let head =
            "filedesc://a.arc 0.0.0.0 20140216050221 text/plain 22\n1 0 x\nURL IP-address\n\n\n";
        let one = "http://a/b c 1.2.3.4 20140216050222 text/html 3\none\n";
        let two = "http://b/ 1.2.3.4 20140216050223 text/html 200 - - 77 a.arc 3\ntwo\n";
        let expected = found(&["filedesc://a.arc", "http://a/b c", "http://b/"]);
        assert_eq!(targets([head, one, two].concat().as_bytes()), expected);
        let members = [head, one, two].map(|record| gzip(record.as_bytes()));
        assert_eq!(targets(&members.concat()), expected);
        let source = Source::of_bytes("a.arc", one.as_bytes().to_vec());
        let record = read_record(&source, 0, 100, 10).unwrap().unwrap();
        let field = |name| record.field(name).unwrap();
        assert_eq!((record.kind(), &*record.block), ("response", &b"one"[..]));
        assert_eq!(
            (field("WARC-Date"), field("Content-Type")),
            ("2014-02-16T05:02:22Z", "text/html")
        );
        // A length that is wrong costs one record.
        let wrong = one.replace(" 3\n", " 9\n");
        let expected =
            [Ok("filedesc://a.arc".to_owned()), Err(Damage::BadLength), Ok("http://b/".to_owned())];
        assert_eq!(targets([head, &wrong, two].concat().as_bytes()), expected);
    }

    #[test]
    fn a_wrong_length_costs_one_record_and_is_never_silent() {
        let (a, b, c) =
            (record("http://a/", b"one"), record("http://b/", b"two"), record("http://c/", b"3"));
        let with =
            |length: &str| String::from_utf8(b.clone()).unwrap().replace("Length: 3", length);
        // Too long: the next record would be part of the block.
        let long = with("Length: 20");
        let expected = [Ok("http://a/".into()), Err(Damage::BadLength), Ok("http://c/".into())];
        assert_eq!(targets(&[&*a, long.as_bytes(), &c].concat()), expected);
        // Too short: the rest of the block is no record.
        let short = with("Length: 1");
        let expected = [
            Ok("http://a/".into()),
            Ok("http://b/".into()),
            Err(Damage::NotWarc),
            Ok("http://c/".into()),
        ];
        assert_eq!(targets(&[&*a, short.as_bytes(), &c].concat()), expected);
        assert_eq!(targets(&gzip(&[&*a, short.as_bytes(), &c].concat())), expected);
        assert_eq!(targets(&[gzip(&a), gzip(short.as_bytes()), gzip(&c)].concat()), expected);
        let without = with("Nothing: 3");
        let expected = [Ok("http://a/".into()), Err(Damage::BadHeader), Ok("http://c/".into())];
        assert_eq!(targets(&[&*a, without.as_bytes(), &c].concat()), expected);
        assert_eq!(targets(&gzip(&[&*a, without.as_bytes(), &c].concat())), expected);
    }

    #[test]
    fn what_is_no_archive_is_named_as_such() {
        assert_eq!(walk(b"hello, this is no archive", 100), [Err((0, Damage::NotWarc))]);
        assert_eq!(targets(&gzip(b"hello, this is no archive")), [Err(Damage::NotWarc)]);
        assert!(walk(b"", 100).is_empty());
    }

    #[test]
    fn places_that_only_look_like_members_cost_little() {
        let bytes = GZIP_MAGIC.repeat(200_000);
        let started = std::time::Instant::now();
        assert!(targets(&bytes).iter().all(Result::is_err));
        assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
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
