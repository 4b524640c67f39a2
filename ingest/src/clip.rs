//! One clip to a few frames (paper, section 2.4 and appendix A.3.1: one frame per second, eight
//! frames), decoded by `FFmpeg`.
//!
//! Files are untrusted: only containers of films are opened, so that no playlist can make the
//! decoder read another file or a host; pixels are checked before a frame is decoded, and the
//! number of decoded frames is bounded.

use std::path::Path;
use std::sync::Once;

use ffmpeg::codec::packet::side_data::Type as SideDataType;
use ffmpeg::codec::{context::Context, decoder};
use ffmpeg::format::context::Input;
use ffmpeg::format::stream::Stream;
use ffmpeg::software::scaling;
use ffmpeg::{Dictionary, Packet, Rational, frame, media};
use ffmpeg_next as ffmpeg;
use image::RgbImage;

use crate::image::{SIDE_MAX, fit};
use crate::plan::VideoPlan;
use crate::reject::DropReason;

/// Containers that may be opened. Playlists and concatenations are not among them.
const CONTAINERS: &str = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,flv,asf,gif";
/// Milliseconds by which a frame may come early and still count as the one of its time: half the
/// time of a frame at 60 per second, since times are rounded in files.
const EARLY_MS: f64 = 8.0;

/// A clip as frames.
#[derive(Debug, Clone, PartialEq)]
pub struct Clip {
    /// Upright frames with square pixels, all of one size.
    pub frames: Vec<RgbImage>,
    /// Time of each frame from the start of the clip, in milliseconds.
    pub frame_ms: Vec<i32>,
    /// Length of the clip in milliseconds.
    pub duration_ms: i32,
    /// Name of the codec.
    pub codec: String,
}

/// Reads the frames of a clip.
///
/// # Errors
/// When it breaks a rule, or there is nothing to decode.
pub fn read_clip(path: &Path, rules: &VideoPlan) -> Result<Clip, DropReason> {
    static QUIET: Once = Once::new();
    // What the library would print is in the reject.
    QUIET.call_once(|| ffmpeg::util::log::set_level(ffmpeg::util::log::Level::Quiet));
    let mut input = open(path)?;
    let stream = input.streams().best(media::Type::Video);
    let stream = stream.ok_or_else(|| DropReason::because("no_video_stream"))?;
    let (index, turn) = (stream.index(), quarter_turns(&stream));
    let clock = Clock::new(&stream);
    let mut decoder = open_decoder(&stream, rules)?;
    check_size((decoder.width(), decoder.height()), rules)?;
    let codec = decoder.codec().map_or_else(String::new, |codec| codec.name().to_owned());
    let mut wanted = Wanted::new(rules, clock, turn);
    decode(&mut input, index, &mut decoder, &mut wanted)?;
    let duration_ms = duration(&input, &wanted);
    if wanted.frames.is_empty() {
        return Err(DropReason::because("no_frames"));
    }
    let (frames, frame_ms) = (wanted.frames, wanted.frame_ms);
    Ok(Clip { frames, frame_ms, duration_ms, codec: codec_name(&codec) })
}

fn open(path: &Path) -> Result<Input, DropReason> {
    let name = path.to_str().filter(|name| !name.contains('\0'));
    let name = name.ok_or_else(|| DropReason::because("bad_file_name"))?;
    let mut options = Dictionary::new();
    options.set("protocol_whitelist", "file");
    options.set("format_whitelist", CONTAINERS);
    // With a protocol in front, no name is taken for another protocol.
    let opened = ffmpeg::format::input_with_dictionary(&format!("file:{name}"), options);
    opened.map_err(|error| DropReason::detail("bad_video", error.to_string()))
}

fn open_decoder(stream: &Stream<'_>, rules: &VideoPlan) -> Result<decoder::Video, DropReason> {
    let bad = |error: ffmpeg::Error| DropReason::detail("bad_video", error.to_string());
    let context = Context::from_parameters(stream.parameters()).map_err(bad)?;
    let mut options = Dictionary::new();
    // Clips are shared among threads; frames that grow in the middle of a clip are refused, too.
    options.set("threads", "1");
    options.set("max_pixels", &rules.pixels_max.to_string());
    let codec = decoder::find(context.id())
        .ok_or_else(|| DropReason::detail("no_decoder", context.id().name()))?;
    let opened = context.decoder().open_as_with(codec, options);
    opened.and_then(decoder::Opened::video).map_err(bad)
}

fn check_size((width, height): (u32, u32), rules: &VideoPlan) -> Result<(), DropReason> {
    let pixels = u64::from(width) * u64::from(height);
    let short = width.min(height);
    if pixels > rules.pixels_max {
        return Err(DropReason::limit("too_many_pixels", pixels as f64, rules.pixels_max as f64));
    }
    if short < rules.side_min || short == 0 {
        return Err(DropReason::limit("too_small", f64::from(short), f64::from(rules.side_min)));
    }
    Ok(())
}

/// Sends packets until all wanted frames are there. Damage after the first frame ends the clip;
/// what came before is kept.
fn decode(
    input: &mut Input,
    index: usize,
    decoder: &mut decoder::Video,
    wanted: &mut Wanted,
) -> Result<(), DropReason> {
    let mut last_error = None;
    let mut packet = Packet::empty();
    while !wanted.is_complete() && packet.read(input).is_ok() {
        if packet.stream() != index {
            continue;
        }
        // A damaged packet costs its frames only.
        if let Err(error) = decoder.send_packet(&packet) {
            last_error = Some(error);
            continue;
        }
        receive(decoder, wanted)?;
    }
    if !wanted.is_complete() && decoder.send_eof().is_ok() {
        receive(decoder, wanted)?;
    }
    match last_error {
        Some(error) if wanted.frames.is_empty() => {
            Err(DropReason::detail("bad_video", error.to_string()))
        }
        _ => Ok(()),
    }
}

fn receive(decoder: &mut decoder::Video, wanted: &mut Wanted) -> Result<(), DropReason> {
    let mut decoded = frame::Video::empty();
    while !wanted.is_complete() && decoder.receive_frame(&mut decoded).is_ok() {
        wanted.take(&decoded)?;
    }
    Ok(())
}

/// Times of a stream in milliseconds from its start.
struct Clock {
    ms_per_tick: f64,
    start: i64,
}

impl Clock {
    fn new(stream: &Stream<'_>) -> Self {
        let base = stream.time_base();
        let ms_per_tick =
            1000.0 * f64::from(base.numerator()) / f64::from(base.denominator().max(1));
        // Streams without a start say so with the smallest number there is.
        let start = Some(stream.start_time()).filter(|start| *start != i64::MIN).unwrap_or(0);
        Self { ms_per_tick, start }
    }

    fn ms(&self, timestamp: i64) -> f64 {
        timestamp.saturating_sub(self.start) as f64 * self.ms_per_tick
    }
}

/// The frames that are wanted: for each wanted time the first frame at or after it.
struct Wanted<'a> {
    rules: &'a VideoPlan,
    clock: Clock,
    /// Quarter turns clockwise that set a frame upright.
    turn: u8,
    n_decoded: u64,
    frames: Vec<RgbImage>,
    frame_ms: Vec<i32>,
    /// Time of the last frame seen.
    last_ms: f64,
    scaler: Option<scaling::Context>,
}

impl<'a> Wanted<'a> {
    fn new(rules: &'a VideoPlan, clock: Clock, turn: u8) -> Self {
        let (frames, frame_ms) = (Vec::new(), Vec::new());
        Self { rules, clock, turn, n_decoded: 0, frames, frame_ms, last_ms: 0.0, scaler: None }
    }

    fn is_complete(&self) -> bool {
        self.frames.len() >= self.rules.frames_max as usize
            || self.n_decoded >= self.rules.decoded_frames_max
    }

    fn take(&mut self, decoded: &frame::Video) -> Result<(), DropReason> {
        self.n_decoded += 1;
        let ms = decoded.timestamp().map_or(self.last_ms, |timestamp| self.clock.ms(timestamp));
        self.last_ms = ms;
        let target = self.frames.len() as f64 * 1000.0 / self.rules.frames_per_second;
        if ms + EARLY_MS < target {
            return Ok(());
        }
        check_size((decoded.width(), decoded.height()), self.rules)?;
        let rgb = self.upright_rgb(decoded)?;
        // All frames of a row have one size; those of another are passed over.
        if self.frames.first().is_none_or(|first| first.dimensions() == rgb.dimensions()) {
            self.frames.push(rgb);
            self.frame_ms.push(ms.round().clamp(0.0, f64::from(i32::MAX)) as i32);
        }
        Ok(())
    }

    /// The frame as RGB, with square pixels, upright, shrunk to the longest side of the plan.
    fn upright_rgb(&mut self, decoded: &frame::Video) -> Result<RgbImage, DropReason> {
        let bad = |error: ffmpeg::Error| DropReason::detail("bad_video", error.to_string());
        let (width, height) = (decoded.width(), decoded.height());
        let (to_width, to_height) =
            stored_size((width, height), decoded.aspect_ratio(), self.rules)?;
        let is_same = self.scaler.as_ref().is_some_and(|scaler| {
            let input = scaler.input();
            (input.format, input.width, input.height) == (decoded.format(), width, height)
        });
        if !is_same {
            let flags =
                scaling::Flags::AREA | scaling::Flags::ACCURATE_RND | scaling::Flags::BITEXACT;
            let rgb = ffmpeg::format::Pixel::RGB24;
            let scaler = scaling::Context::get(
                decoded.format(),
                width,
                height,
                rgb,
                to_width,
                to_height,
                flags,
            );
            self.scaler = Some(scaler.map_err(bad)?);
        }
        let scaler = self.scaler.as_mut().expect("the scaler was made above");
        let mut scaled = frame::Video::empty();
        scaler.run(decoded, &mut scaled).map_err(bad)?;
        let row_bytes = 3 * to_width as usize;
        let rows = scaled.data(0).chunks(scaled.stride(0)).take(to_height as usize);
        let raw = rows.flat_map(|row| &row[..row_bytes]).copied().collect();
        let rgb = RgbImage::from_raw(to_width, to_height, raw)
            .ok_or_else(|| DropReason::detail("bad_video", "a frame is not whole"))?;
        Ok(turned(rgb, self.turn))
    }
}

/// The size at which a frame of this size and shape of pixels is stored.
fn stored_size(
    (width, height): (u32, u32),
    pixel: Rational,
    rules: &VideoPlan,
) -> Result<(u32, u32), DropReason> {
    let (width, height) = fit((square_pixels(width, pixel), height), rules.stored_side_max);
    let (pixels, long) = (u64::from(width) * u64::from(height), width.max(height));
    // Pixels that are not square can make a frame up to four times as wide.
    if pixels > rules.pixels_max {
        return Err(DropReason::limit("too_many_pixels", pixels as f64, rules.pixels_max as f64));
    }
    if long > SIDE_MAX {
        return Err(DropReason::limit("too_large", f64::from(long), f64::from(SIDE_MAX)));
    }
    Ok((width, height))
}

/// The width at which a frame is shown on square pixels, at most four times its own.
fn square_pixels(width: u32, pixel: Rational) -> u32 {
    let (n, d) = (i64::from(pixel.numerator()), i64::from(pixel.denominator()));
    if n <= 0 || d <= 0 || n > 4 * d || d > 4 * n {
        return width;
    }
    ((i64::from(width) * n + d / 2) / d).max(1) as u32
}

fn turned(rgb: RgbImage, turn: u8) -> RgbImage {
    match turn {
        1 => image::imageops::rotate90(&rgb),
        2 => image::imageops::rotate180(&rgb),
        3 => image::imageops::rotate270(&rgb),
        _ => rgb,
    }
}

/// Quarter turns clockwise that the display matrix of a stream asks for.
fn quarter_turns(stream: &Stream<'_>) -> u8 {
    let matrix = stream.side_data().find(|data| data.kind() == SideDataType::DisplayMatrix);
    matrix.map_or(0, |matrix| quarter_turns_of(matrix.data()))
}

/// The turn in a matrix of nine little-endian numbers of 32 bits, by the signs of its first row.
fn quarter_turns_of(matrix: &[u8]) -> u8 {
    let number = |i: usize| {
        let bytes = matrix.get(4 * i..4 * i + 4)?;
        Some(i32::from_ne_bytes(bytes.try_into().ok()?))
    };
    match number(0).zip(number(1)) {
        Some((0, b)) if b > 0 => 1,
        Some((0, b)) if b < 0 => 3,
        Some((a, 0)) if a < 0 => 2,
        _ => 0,
    }
}

/// Length of the clip: what the container says, else the time of the last frame.
fn duration(input: &Input, wanted: &Wanted) -> i32 {
    let micros = input.duration();
    let ms = if micros > 0 { micros as f64 / 1000.0 } else { wanted.last_ms };
    ms.round().clamp(0.0, f64::from(i32::MAX)) as i32
}

/// The name of a codec without the library that decodes it: `libdav1d` reads `av1`.
fn codec_name(decoder: &str) -> String {
    match decoder {
        "libdav1d" | "libaom-av1" => "av1".to_owned(),
        "libvpx-vp9" => "vp9".to_owned(),
        "libvpx" => "vp8".to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_become_square() {
        assert_eq!(square_pixels(720, Rational::new(16, 15)), 768);
        assert_eq!(square_pixels(720, Rational::new(0, 1)), 720);
        assert_eq!(square_pixels(720, Rational::new(1000, 1)), 720);
    }

    #[test]
    fn a_frame_is_measured_as_it_is_stored() {
        let rules = |stored_side_max| VideoPlan { stored_side_max, ..VideoPlan::default() };
        let wide = Rational::new(4, 1);
        let reason = |size| stored_size(size, wide, &rules(0)).unwrap_err().reason;
        assert_eq!(reason((20_000, 64)), "too_large");
        assert_eq!(reason((8_000, 4_000)), "too_many_pixels");
        assert_eq!(stored_size((20_000, 100), wide, &rules(800)), Ok((800, 1)));
    }

    #[test]
    fn the_display_matrix_tells_the_turn() {
        let matrix = |a: i32, b: i32| [a, b].map(i32::to_ne_bytes).concat();
        let check = |a, b, expected| assert_eq!(quarter_turns_of(&matrix(a, b)), expected);
        check(0x10000, 0, 0);
        check(0, 0x10000, 1);
        check(-0x10000, 0, 2);
        check(0, -0x10000, 3);
        assert_eq!(quarter_turns_of(&[]), 0);
    }

    #[test]
    fn a_playlist_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.mp4");
        std::fs::write(&path, "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n/etc/hostname\n")
            .unwrap();
        let drop = read_clip(&path, &VideoPlan::default()).unwrap_err();
        assert_eq!(drop.reason, "bad_video", "{drop:?}");
    }
}
