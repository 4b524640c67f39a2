//! The frames of a film at wanted times: for each time the last frame that starts at or before it,
//! which is what a viewer sees then, and what ffmpeg's filter `fps=R:round=up` gives.
//!
//! Only what is needed is decoded. Packets carry the times of their frames, so it is known from the
//! packets alone which frames are wanted. Long gaps are passed by seeking; packets before the last
//! keyframe at or before a wanted time are dropped; and frames that are not wanted are skipped by the
//! decoder where no other frame refers to them. None of this changes a frame: when a file turns out
//! to lie about keyframes or times, everything is decoded in a second try.

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;

use ffmpeg::codec::context::Context;
use ffmpeg::codec::decoder;
use ffmpeg::codec::discard::Discard;
use ffmpeg::format::context::Input;
use ffmpeg::format::stream::{Disposition, Stream};
use ffmpeg::{Dictionary, Error, Packet, Rational, frame, media};
use ffmpeg_next as ffmpeg;

use super::clock::Clock;
use super::picture::check_size;
use super::{Stop, library_error};
use crate::plan::VideoPlan;
use crate::reject::DropReason;

/// Containers that may be opened. Playlists and concatenations, which lead to other files, are not
/// among them.
const CONTAINERS: &str = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,ogg,flv,\
                          asf,gif,mxf,nut,rm,ivf,dv,wtv,h264,hevc,m4v,obu,mjpeg,yuv4mpegpipe";
/// A gap of this many milliseconds is passed by seeking. In shorter ones reading on is as fast.
const SEEK_MS: f64 = 10_000.0;
/// How many milliseconds before a wanted time a seek aims, try by try: indexes count in the order of
/// decoding, so the first try may land behind the time.
const SEEK_BACK_MS: [i64; 3] = [500, 5_000, 60_000];
/// Bytes of packets that may wait while it is found out which of them are wanted.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Packets that cannot be read in a row, after which the file is at its end.
const BAD_READS_MAX: u32 = 1_000;

/// How much of what a file says is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// Keyframes and the times of packets.
    Packets,
    /// Nothing but the times of decoded frames.
    Frames,
}

/// How far a file has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// There may be more packets.
    Inside,
    /// There are no more packets.
    AtEnd,
    /// The decoder has given its last frames, too.
    Drained,
}

/// A frame and its time.
struct Timed {
    frame: frame::Video,
    tick: i64,
}

/// A film that is being decoded.
pub(super) struct FrameReader<'a> {
    path: &'a Path,
    rules: &'a VideoPlan,
    trust: Trust,
    input: Input,
    index: usize,
    decoder: decoder::Video,
    pub(super) clock: Clock,
    /// Name of the codec.
    pub(super) codec: String,
    /// Length of the film in milliseconds, where the file tells it.
    pub(super) duration_ms: Option<f64>,

    /// Wanted times, rising.
    targets: Vec<i64>,
    /// Packets that were read but not decoded.
    queue: VecDeque<Packet>,
    queue_bytes: usize,
    /// Times of packets, from that of the frame held on.
    known: BTreeSet<i64>,
    /// Decoding time of the last packet read: later packets have no earlier frames.
    last_dts: Option<i64>,
    /// Whether every packet so far had its times, in order.
    is_ordered: bool,
    /// Whether the next packet sent does not follow the last one.
    jumped: bool,
    /// Time of the keyframe that was jumped to, until its frame is there.
    expected_key: Option<i64>,
    place: Place,

    /// Decoded frames after the one held.
    decoded: VecDeque<Timed>,
    held: Option<Timed>,
    /// Time of the last frame decoded, and the length of one.
    last_tick: i64,
    last_length: i64,
    /// When the last frame known ends.
    end: i64,
    n_sent: u64,
    last_error: Option<Error>,
}

impl<'a> FrameReader<'a> {
    pub(super) fn open(
        path: &'a Path,
        rules: &'a VideoPlan,
        trust: Trust,
    ) -> Result<Self, DropReason> {
        let input = open(path)?;
        let stream = video_stream(&input)?;
        let (index, clock) = (stream.index(), Clock::new(&input, &stream));
        let decoder = open_decoder(&stream, rules)?;
        check_size((decoder.width(), decoder.height()), rules)?;
        let codec = stream.parameters().id().name().to_owned();
        let duration_ms = Some(input.duration() as f64 / 1000.0).filter(|ms| *ms > 0.0);
        Ok(Self {
            path,
            rules,
            trust,
            index,
            decoder,
            clock,
            codec,
            duration_ms,
            input,
            targets: Vec::new(),
            queue: VecDeque::new(),
            queue_bytes: 0,
            known: BTreeSet::new(),
            last_dts: None,
            is_ordered: true,
            jumped: false,
            expected_key: None,
            place: Place::Inside,
            decoded: VecDeque::new(),
            held: None,
            last_tick: clock.zero,
            last_length: 0,
            end: i64::MIN,
            n_sent: 0,
            last_error: None,
        })
    }

    /// The stream that is read.
    pub(super) fn stream(&self) -> Result<Stream<'_>, DropReason> {
        video_stream(&self.input)
    }

    /// Shape of a pixel as the header has it.
    pub(super) fn pixel(&self) -> Rational {
        self.decoder.aspect_ratio()
    }

    /// When the last frame that was read ends, in milliseconds.
    pub(super) fn end_ms(&self) -> f64 {
        self.clock.ms(self.end.max(self.clock.zero))
    }

    /// Calls `each` with the frame of every wanted time, in order, and its tick. Times are
    /// milliseconds, rising. Times behind the last frame have none; times before the first frame have
    /// the first.
    pub(super) fn each(
        &mut self,
        times_ms: impl Iterator<Item = f64>,
        mut each: impl FnMut(&frame::Video, i64) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        self.targets = times_ms.map(|ms| self.clock.tick(ms)).collect();
        for i in 0..self.targets.len() {
            let target = self.targets[i];
            self.hold(target)?;
            let Some(held) = &self.held else { break };
            if self.is_at_end() && target >= self.end && target > held.tick {
                break;
            }
            each(&held.frame, held.tick)?;
        }
        match self.last_error {
            Some(error) if self.held.is_none() => Err(library_error(error).into()),
            _ => Ok(()),
        }
    }

    /// Decodes until the frame of `target` is held, or there are no more frames.
    fn hold(&mut self, target: i64) -> Result<(), Stop> {
        if self.is_far(target) {
            self.seek(target)?;
        }
        self.drop_before_key(target);
        loop {
            while let Some(next) = self.decoded.front() {
                if self.held.is_some() && next.tick > target {
                    return self.check_held(target);
                }
                self.held = self.decoded.pop_front();
                let tick = self.held.as_ref().map_or(0, |held| held.tick);
                self.known = self.known.split_off(&tick);
            }
            if self.place == Place::Drained {
                return self.check_held(target);
            }
            if self.best(target).is_some_and(|best| self.held_tick() == Some(best)) {
                return Ok(());
            }
            self.step(target)?;
        }
    }

    fn held_tick(&self) -> Option<i64> {
        self.held.as_ref().map(|held| held.tick)
    }

    fn trusts_packets(&self) -> bool {
        self.trust == Trust::Packets && self.is_ordered
    }

    fn is_at_end(&self) -> bool {
        self.place != Place::Inside
    }

    /// Whether all packets of frames up to `tick` have been read.
    fn has_read_past(&self, tick: i64) -> bool {
        self.is_at_end() || self.last_dts.is_some_and(|dts| dts > tick)
    }

    /// The time of the frame of `target`, where the packets tell it.
    fn best(&self, target: i64) -> Option<i64> {
        let is_known = self.trusts_packets() && self.has_read_past(target);
        self.known.range(..=target).next_back().copied().filter(|_| is_known)
    }

    /// The frame that the packets promise must be the one that came.
    fn check_held(&self, target: i64) -> Result<(), Stop> {
        match (self.best(target), self.held_tick()) {
            (Some(best), Some(tick)) if tick < best => Err(Stop::Surprise),
            (Some(_), None) => Err(Stop::Surprise),
            _ => Ok(()),
        }
    }

    /// Decodes one packet, or what is left in the decoder at the end.
    fn step(&mut self, target: i64) -> Result<(), Stop> {
        while self.trusts_packets() && !self.has_read_past(target) && self.has_room() {
            self.read(target);
        }
        if self.queue.is_empty() && !self.is_at_end() {
            self.read(target);
        }
        if let Some(packet) = self.queue.pop_front() {
            self.queue_bytes -= packet.size();
            return self.send(&packet, target);
        }
        if self.is_at_end() {
            self.place = Place::Drained;
            if self.decoder.send_eof().is_ok() {
                self.receive()?;
            }
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.queue_bytes < QUEUE_BYTES_MAX
    }

    /// Reads one packet into the queue.
    fn read(&mut self, target: i64) {
        match self.next_packet() {
            Some(packet) => self.enqueue(packet, target),
            None => self.place = Place::AtEnd,
        }
    }

    fn next_packet(&mut self) -> Option<Packet> {
        let mut n_bad = 0;
        while n_bad < BAD_READS_MAX {
            let mut packet = Packet::empty();
            match packet.read(&mut self.input) {
                Ok(()) if packet.stream() == self.index => return Some(packet),
                Ok(()) => {}
                // Damage between packets costs what it hides.
                Err(Error::InvalidData) => n_bad += 1,
                Err(_) => return None,
            }
        }
        None
    }

    fn enqueue(&mut self, packet: Packet, target: i64) {
        match (packet.pts(), packet.dts()) {
            (Some(pts), Some(dts))
                if pts >= dts && self.last_dts.is_none_or(|last| dts >= last) =>
            {
                self.last_dts = Some(dts);
                self.known.insert(pts);
                self.end = self.end.max(pts.saturating_add(packet.duration().max(1)));
            }
            _ => self.is_ordered = false,
        }
        self.queue_bytes += packet.size();
        self.queue.push_back(packet);
        self.drop_before_key(target);
    }

    /// Drops the packets before the last keyframe in the queue at or before `target`.
    fn drop_before_key(&mut self, target: i64) {
        if !self.trusts_packets() {
            return;
        }
        let is_near = |packet: &Packet| packet.pts().is_some_and(|pts| pts <= target);
        let key = self.queue.iter().rposition(|packet| packet.is_key() && is_near(packet));
        for packet in self.queue.drain(..key.unwrap_or(0)) {
            self.queue_bytes -= packet.size();
            self.jumped = true;
        }
    }

    fn send(&mut self, packet: &Packet, target: i64) -> Result<(), Stop> {
        if self.trusts_packets() {
            let before = self.jumped;
            let is_wanted = packet.pts().is_none_or(|pts| self.may_be_wanted(pts, target));
            if self.jumped && !before {
                // While it was looked at, a keyframe came behind which it is not needed.
                return Ok(());
            }
            let skip = if is_wanted { Discard::Default } else { Discard::NonReference };
            self.decoder.skip_frame(skip);
        } else {
            self.decoder.skip_frame(Discard::Default);
        }
        if std::mem::take(&mut self.jumped) {
            self.decoder.flush();
            self.expected_key = packet.pts();
        }
        self.n_sent += 1;
        if self.n_sent > self.rules.decoded_frames_max {
            let (n, limit) = (self.n_sent as f64, self.rules.decoded_frames_max as f64);
            return Err(DropReason::limit("too_many_frames", n, limit).into());
        }
        if let Err(error) = self.decoder.send_packet(packet) {
            self.note(error)?;
        }
        self.receive()
    }

    /// Whether the frame at `tick` is that of some wanted time, as far as packets tell.
    fn may_be_wanted(&mut self, tick: i64, target: i64) -> bool {
        if self.held.is_none() {
            return true;
        }
        let i = self.targets.partition_point(|target| *target < tick);
        let Some(&next) = self.targets.get(i) else { return false };
        loop {
            if tick < next && self.known.range(tick + 1..=next).next().is_some() {
                return false;
            }
            if !self.trusts_packets() || self.has_read_past(next) || !self.has_room() {
                return true;
            }
            self.read(target);
        }
    }

    /// Takes all frames that the decoder has ready.
    fn receive(&mut self) -> Result<(), Stop> {
        loop {
            let mut frame = frame::Video::empty();
            match self.decoder.receive_frame(&mut frame) {
                Ok(()) => self.take(frame)?,
                Err(Error::Eof | Error::Other { errno: ffmpeg::error::EAGAIN }) => return Ok(()),
                Err(error) => return self.note(error),
            }
        }
    }

    fn take(&mut self, frame: frame::Video) -> Result<(), Stop> {
        let guess = self.last_tick.saturating_add(self.last_length);
        let tick = frame.timestamp().unwrap_or(guess);
        if let Some(key) = self.expected_key.filter(|key| tick >= *key) {
            self.expected_key = None;
            if self.trust == Trust::Packets && (tick != key || !frame.is_key()) {
                return Err(Stop::Surprise);
            }
        }
        let length = frame.packet().duration;
        self.last_length = if length > 0 { length } else { (tick - self.last_tick).max(0) };
        self.last_tick = tick;
        self.end = self.end.max(tick.saturating_add(self.last_length.max(1)));
        self.decoded.push_back(Timed { frame, tick });
        Ok(())
    }

    /// A damaged packet costs its frames only; a decoder without memory ends the clip.
    fn note(&mut self, error: Error) -> Result<(), Stop> {
        if (error == Error::Other { errno: ffmpeg::error::ENOMEM }) {
            return Err(library_error(error).into());
        }
        self.last_error = Some(error);
        Ok(())
    }

    /// Whether `target` is so far ahead that a seek is worth it.
    fn is_far(&self, target: i64) -> bool {
        let is_new = self.n_sent == 0 && self.queue.is_empty();
        let place = self.last_dts.unwrap_or(self.clock.zero);
        (is_new || self.trusts_packets())
            && !self.is_at_end()
            && self.clock.ms(target) - self.clock.ms(place) > SEEK_MS
    }

    /// Goes on at a keyframe at or before `target`, or where it was if there is none ahead.
    fn seek(&mut self, target: i64) -> Result<(), Stop> {
        for back_ms in SEEK_BACK_MS {
            let micros = self.clock.micros(target).saturating_sub(1000 * back_ms);
            // The end of the range is the last timestamp that is accepted.
            if micros <= self.clock.micros(self.clock.zero)
                || self.input.seek(micros, ..micros).is_err()
            {
                break;
            }
            let Some(packet) = self.next_packet() else { continue };
            let is_near = packet.pts().is_some_and(|pts| pts <= target);
            if packet.is_key() && is_near && packet.dts().is_some() {
                self.land(packet, target);
                return Ok(());
            }
        }
        // From the start, without looking at what was read before.
        self.input = open(self.path)?;
        self.read_on(target);
        Ok(())
    }

    fn land(&mut self, packet: Packet, target: i64) {
        if self.last_dts.is_some_and(|last| packet.dts().is_some_and(|dts| dts <= last)) {
            return self.read_on(target);
        }
        self.queue.clear();
        self.queue_bytes = 0;
        self.known.clear();
        self.last_dts = None;
        self.jumped = true;
        self.enqueue(packet, target);
    }

    /// Reads the packets again that were read before, and the first new one into the queue.
    fn read_on(&mut self, target: i64) {
        let Some(last) = self.last_dts else { return };
        while let Some(packet) = self.next_packet() {
            if packet.dts().is_none_or(|dts| dts > last) {
                return self.enqueue(packet, target);
            }
        }
        self.place = Place::AtEnd;
    }
}

fn open(path: &Path) -> Result<Input, DropReason> {
    let name = path.to_str().filter(|name| !name.contains('\0'));
    let name = name.ok_or_else(|| DropReason::because("bad_file_name"))?;
    let mut options = Dictionary::new();
    options.set("protocol_whitelist", "file");
    options.set("format_whitelist", CONTAINERS);
    // With a protocol in front, no name is taken for another protocol.
    ffmpeg::format::input_with_dictionary(&format!("file:{name}"), options).map_err(library_error)
}

/// The best stream of moving pictures: the cover of a song is none.
fn video_stream(input: &Input) -> Result<Stream<'_>, DropReason> {
    let stream = input.streams().best(media::Type::Video);
    let moves = |stream: &Stream<'_>| !stream.disposition().contains(Disposition::ATTACHED_PIC);
    stream.filter(moves).ok_or_else(|| DropReason::because("no_video_stream"))
}

fn open_decoder(stream: &Stream<'_>, rules: &VideoPlan) -> Result<decoder::Video, DropReason> {
    let context = Context::from_parameters(stream.parameters()).map_err(library_error)?;
    let mut options = Dictionary::new();
    options.set("threads", &rules.decoder_threads.to_string());
    // Frames that grow in the middle of a clip are refused, too.
    options.set("max_pixels", &rules.pixels_max.to_string());
    let codec = decoder::find(context.id())
        .ok_or_else(|| DropReason::detail("no_decoder", context.id().name()))?;
    let opened = context.decoder().open_as_with(codec, options);
    opened.and_then(decoder::Opened::video).map_err(library_error)
}
