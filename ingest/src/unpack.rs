//! The bytes of an archive with their compression removed, member by member.
//!
//! A member is what a reader can start at: a gzip member, a zstd or lz4 frame, or one record of a
//! plain file. Which it is, its first bytes tell, whatever the name of the file. Nothing here knows
//! what a record is.

use std::io::{self, BufRead as _, Read as _};
use std::sync::Arc;

use flate2::{Decompress, FlushDecompress, Status};
use lz4_flex::frame::FrameDecoder;
use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

use crate::source::{Source, SourceReader};

/// Bytes of a compressed member that are unpacked at a time. A record header fits.
const BUFFER_BYTES: usize = 128 << 10;
/// First bytes of a gzip member with the deflate method.
pub(crate) const GZIP_MAGIC: [u8; 3] = [0x1f, 0x8b, 0x08];
/// First bytes of a zstd frame.
pub(crate) const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// First bytes of an lz4 frame.
pub(crate) const LZ4_MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];
/// Last bytes of the magic number of a frame that readers of zstd and lz4 skip; its first is 0x50 to 0x5f.
const SKIPPABLE_MAGIC: [u8; 3] = [0x2a, 0x4d, 0x18];
/// First byte of the skippable frame that holds the dictionary of a zstd archive (the IIPC's rule).
const DICTIONARY_FRAME: u8 = 0x5d;
/// First bytes of a zstd dictionary.
const DICTIONARY_MAGIC: [u8; 4] = [0x37, 0xa4, 0x30, 0xec];
/// Largest dictionary.
const DICTIONARY_BYTES_MAX: usize = 16 << 20;
/// Largest window of a zstd frame, as a power of two: 128 MiB, which every decoder must offer at most.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Why a member cannot be read on.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The file ends inside the member.
    Truncated,
    /// The compressed bytes are damaged.
    Corrupt,
    /// The file cannot be read.
    Io(io::Error),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// How a member is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
    Lz4,
}

impl Packing {
    /// The packing of a member that begins with `bytes`.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        if bytes.starts_with(&GZIP_MAGIC) {
            Self::Gzip
        } else if bytes.starts_with(&ZSTD_MAGIC) {
            Self::Zstd
        } else if bytes.starts_with(&LZ4_MAGIC) {
            Self::Lz4
        } else {
            Self::Plain
        }
    }
}

/// Where the packed bytes come from.
enum Input<'a> {
    Bare(SourceReader<'a>),
    Lz4(Box<FrameDecoder<SourceReader<'a>>>),
    /// Only while one becomes the other.
    Moving,
}

/// Reads an archive member by member.
pub(crate) struct Unpacked<'a> {
    source: &'a Source,
    input: Input<'a>,
    packing: Packing,
    gzip: Option<Decompress>,
    zstd: Option<DCtx<'static>>,
    /// What is unpacked and not yet consumed is `buffer[start..end]`; unused where nothing is packed.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Whether all of the member is in the buffer or consumed.
    is_whole: bool,
    /// Offset of the member in the file.
    member: u64,
    /// Bytes of the member that are consumed.
    consumed: u64,
    /// Unpacked bytes of the members before this one.
    before: u64,
}

impl<'a> Unpacked<'a> {
    /// Reads on from the reader's place, which is the start of a member.
    pub(crate) fn new(source: &'a Source, reader: SourceReader<'a>) -> Self {
        let member = reader.position();
        Self {
            source,
            input: Input::Bare(reader),
            packing: Packing::Plain,
            gzip: None,
            zstd: None,
            buffer: Vec::new(),
            start: 0,
            end: 0,
            is_whole: true,
            member,
            consumed: 0,
            before: member,
        }
    }

    /// How the current member is packed.
    pub(crate) fn packing(&self) -> Packing {
        self.packing
    }

    /// Whether all of the current member was unpacked.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Offset of the current member in the file.
    pub(crate) fn member(&self) -> u64 {
        self.member
    }

    /// Bytes of the current member that were consumed.
    pub(crate) fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Offset in the file as it is without compression.
    pub(crate) fn unpacked_position(&self) -> u64 {
        if self.packing == Packing::Plain {
            self.member + self.consumed
        } else {
            self.before + self.consumed
        }
    }

    /// Offset in the file of the first byte that was not read for what is consumed or in the buffer.
    pub(crate) fn packed_position(&mut self) -> u64 {
        match &mut self.input {
            Input::Bare(reader) => reader.position(),
            Input::Lz4(decoder) => decoder.get_mut().position(),
            Input::Moving => unreachable!("the input is moved within one call"),
        }
    }

    /// Bytes of the file behind what is consumed, where nothing is packed.
    pub(crate) fn plain_left(&mut self) -> Option<u64> {
        let Input::Bare(reader) = &self.input else { return None };
        let is_plain = self.packing == Packing::Plain;
        is_plain.then(|| reader.end().saturating_sub(reader.position()))
    }

    /// Begins the member at the reader's place, after empty space and frames that hold no data.
    /// Whether there is one.
    pub(crate) fn next_member(&mut self) -> Result<bool, Broken> {
        self.before += self.consumed;
        (self.start, self.end, self.consumed) = (0, 0, 0);
        let reader = self.bare();
        loop {
            skip_space(reader)?;
            let bytes = reader.peek(8)?;
            if bytes.is_empty() {
                return Ok(false);
            }
            let Some(length) = skippable(bytes) else { break };
            reader.skip(8 + u64::from(length));
        }
        let packing = Packing::of(reader.peek(4)?);
        self.member = reader.position();
        self.packing = packing;
        self.is_whole = false;
        self.begin()?;
        Ok(true)
    }

    fn begin(&mut self) -> Result<(), Broken> {
        if self.packing != Packing::Plain && self.buffer.is_empty() {
            self.buffer.resize(BUFFER_BYTES, 0);
        }
        match self.packing {
            Packing::Plain => {}
            Packing::Gzip => match &mut self.gzip {
                Some(gzip) => gzip.reset(true),
                none => *none = Some(Decompress::new_gzip(15)),
            },
            Packing::Zstd => match &mut self.zstd {
                Some(zstd) => zstd.reset(ResetDirective::SessionOnly).map(drop).map_err(corrupt)?,
                none => *none = Some(zstd_decoder(self.source.dictionary()?)?),
            },
            Packing::Lz4 => {
                self.input = match std::mem::replace(&mut self.input, Input::Moving) {
                    Input::Bare(reader) => Input::Lz4(Box::new(FrameDecoder::new(reader))),
                    other => other,
                };
            }
        }
        Ok(())
    }

    /// The reader, outside of any frame.
    fn bare(&mut self) -> &mut SourceReader<'a> {
        self.input = match std::mem::replace(&mut self.input, Input::Moving) {
            Input::Lz4(decoder) => Input::Bare(decoder.into_inner()),
            other => other,
        };
        match &mut self.input {
            Input::Bare(reader) => reader,
            _ => unreachable!("a frame's decoder was taken off above"),
        }
    }

    /// What is unpacked and not yet consumed.
    pub(crate) fn data(&self) -> &[u8] {
        match &self.input {
            Input::Bare(reader) if self.packing == Packing::Plain => reader.buffered(),
            _ => &self.buffer[self.start..self.end],
        }
    }

    /// Unpacks more behind [`Self::data`]. Whether there was more; a full buffer counts as no more.
    pub(crate) fn more(&mut self) -> Result<bool, Broken> {
        if self.packing == Packing::Plain {
            let Input::Bare(reader) = &mut self.input else {
                unreachable!("plain bytes come from the file itself")
            };
            let n = reader.buffered().len();
            return Ok(reader.peek(n + 1)?.len() > n);
        }
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let before = self.end;
        while !self.is_whole && self.end == before && self.end < self.buffer.len() {
            match self.packing {
                Packing::Gzip => self.more_gzip()?,
                Packing::Zstd => self.more_zstd()?,
                Packing::Lz4 => self.more_lz4()?,
                Packing::Plain => unreachable!("plain bytes were read above"),
            }
        }
        Ok(self.end > before)
    }

    fn more_gzip(&mut self) -> Result<(), Broken> {
        let (Input::Bare(reader), Some(gzip)) = (&mut self.input, &mut self.gzip) else {
            unreachable!("a gzip member was begun")
        };
        let input = reader.fill_buf()?;
        if input.is_empty() {
            return Err(Broken::Truncated);
        }
        let n = input.len();
        let (in_before, out_before) = (gzip.total_in(), gzip.total_out());
        let status = gzip.decompress(input, &mut self.buffer[self.end..], FlushDecompress::None);
        let n_in = (gzip.total_in() - in_before) as usize;
        let n_out = (gzip.total_out() - out_before) as usize;
        reader.consume(n_in.min(n));
        self.end += n_out;
        match status {
            Ok(Status::StreamEnd) => self.is_whole = true,
            Ok(_) if n_in + n_out > 0 => {}
            _ => return Err(Broken::Corrupt),
        }
        Ok(())
    }

    fn more_zstd(&mut self) -> Result<(), Broken> {
        let (Input::Bare(reader), Some(zstd)) = (&mut self.input, &mut self.zstd) else {
            unreachable!("a zstd frame was begun")
        };
        let bytes = reader.fill_buf()?;
        let mut input = InBuffer::around(bytes);
        let mut output = OutBuffer::around(&mut self.buffer[self.end..]);
        let left = zstd.decompress_stream(&mut output, &mut input).map_err(corrupt)?;
        let (n_in, n_out, is_over) = (input.pos(), output.pos(), bytes.is_empty());
        reader.consume(n_in);
        self.end += n_out;
        if left == 0 {
            self.is_whole = true;
        } else if n_in + n_out == 0 {
            return Err(if is_over { Broken::Truncated } else { Broken::Corrupt });
        }
        Ok(())
    }

    fn more_lz4(&mut self) -> Result<(), Broken> {
        let Input::Lz4(decoder) = &mut self.input else { unreachable!("an lz4 frame was begun") };
        match decoder.read(&mut self.buffer[self.end..]) {
            Ok(0) => self.is_whole = true,
            Ok(n) => self.end += n,
            Err(error)
                if error.get_ref().is_some_and(
                    <dyn std::error::Error + Send + Sync>::is::<lz4_flex::frame::Error>,
                ) =>
            {
                return Err(Broken::Corrupt);
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(Broken::Truncated);
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(Broken::Corrupt);
            }
            Err(error) => return Err(Broken::Io(error)),
        }
        Ok(())
    }

    /// Consumes bytes of [`Self::data`].
    pub(crate) fn consume(&mut self, n: usize) {
        match &mut self.input {
            Input::Bare(reader) if self.packing == Packing::Plain => reader.consume(n),
            _ => self.start += n,
        }
        self.consumed += n as u64;
    }

    /// Consumes up to `n` bytes; how many there were. Plain bytes are not even read.
    pub(crate) fn skip(&mut self, n: u64) -> Result<u64, Broken> {
        if let Some(left) = self.plain_left() {
            let Input::Bare(reader) = &mut self.input else {
                unreachable!("plain bytes come from the file itself")
            };
            let skipped = n.min(left);
            reader.skip(skipped);
            self.consumed += skipped;
            return Ok(skipped);
        }
        let mut skipped = 0;
        while skipped < n {
            if self.data().is_empty() && !self.more()? {
                break;
            }
            let step = (self.data().len() as u64).min(n - skipped);
            self.consume(step as usize);
            skipped += step;
        }
        Ok(skipped)
    }

    /// Goes to `offset` in the file, outside of any member.
    pub(crate) fn seek(&mut self, offset: u64) {
        self.bare().seek(offset);
        self.before = self.before.max(offset);
        (self.start, self.end, self.consumed) = (0, 0, 0);
        self.packing = Packing::Plain;
        self.member = offset;
        self.is_whole = true;
    }
}

/// Length of a frame that holds no data, without its head, where `bytes` begin one.
fn skippable(bytes: &[u8]) -> Option<u32> {
    let is_one = (0x50..=0x5f).contains(bytes.first()?) && bytes.get(1..4)? == SKIPPABLE_MAGIC;
    let length = bytes.get(4..8).filter(|_| is_one)?;
    Some(u32::from_le_bytes(length.try_into().expect("four bytes were taken")))
}

/// Skips line ends, and the zeros with which some tools fill a file up.
fn skip_space(reader: &mut SourceReader<'_>) -> io::Result<()> {
    loop {
        let bytes = reader.fill_buf()?;
        let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n' | 0)).count();
        let is_over = bytes.is_empty() || blank < bytes.len();
        reader.consume(blank);
        if is_over {
            return Ok(());
        }
    }
}

fn corrupt(_: usize) -> Broken {
    Broken::Corrupt
}

fn zstd_decoder(dictionary: Option<Arc<[u8]>>) -> Result<DCtx<'static>, Broken> {
    let mut decoder = DCtx::create();
    decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX)).map_err(corrupt)?;
    if let Some(dictionary) = dictionary {
        decoder.load_dictionary(&dictionary).map_err(corrupt)?;
    }
    Ok(decoder)
}

/// The dictionary that a zstd archive brings in its first frame; none where there is no such frame or
/// it cannot be used.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn read_dictionary(source: &Source) -> io::Result<Option<Arc<[u8]>>> {
    let mut reader = source.reader(0);
    let bytes = reader.peek(8)?;
    let length = skippable(bytes).filter(|_| bytes[0] == DICTIONARY_FRAME);
    let Some(length) = length.map(|length| length as usize) else { return Ok(None) };
    if length > DICTIONARY_BYTES_MAX || length as u64 + 8 > source.len() {
        return Ok(None);
    }
    reader.consume(8);
    let mut frame = vec![0; length];
    reader.read_exact(&mut frame)?;
    if frame.starts_with(&DICTIONARY_MAGIC) {
        return Ok(Some(frame.into()));
    }
    if !frame.starts_with(&ZSTD_MAGIC) {
        return Ok(None);
    }
    let packed = Source::of_bytes(source.name(), frame);
    let mut bytes = Unpacked::new(&packed, packed.reader(0));
    let mut dictionary = Vec::new();
    let mut read = || -> Result<(), Broken> {
        bytes.next_member()?;
        while bytes.more()? {
            dictionary.extend_from_slice(bytes.data());
            bytes.consume(bytes.data().len());
            if dictionary.len() > DICTIONARY_BYTES_MAX {
                return Err(Broken::Corrupt);
            }
        }
        Ok(())
    };
    Ok(read().is_ok().then(|| dictionary.into()))
}
