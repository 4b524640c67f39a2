//! One clip, or a part of one, to a few frames (paper, section 2.4 and appendix A.3.1: one frame per
//! second, eight frames), decoded by `FFmpeg`.
//!
//! Files are untrusted: only containers of films are opened, so that no playlist can make the
//! decoder read another file or a host; pixels are checked before a frame is decoded; the number of
//! decoded frames is bounded; and [`crate::decoder`] does all this in a process of its own.

mod clock;
mod frames;
mod picture;
mod shots;

use std::path::Path;
use std::sync::Once;

use ffmpeg_next as ffmpeg;
use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::plan::{Sampling, SceneCuts, VideoPlan};
use crate::reject::DropReason;
use frames::{FrameReader, Trust};
use picture::Easel;
use shots::Shots;

/// A part of a film, in milliseconds from its start.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Where it starts.
    pub start_ms: f64,
    /// Where it ends; none is the end of the film.
    pub end_ms: Option<f64>,
}

impl Part {
    /// The whole film.
    pub const WHOLE: Self = Self { start_ms: 0.0, end_ms: None };
}

/// A frame, or the news that all frames so far are void.
#[derive(Debug, Clone, PartialEq)]
pub enum Sampled {
    /// A frame as a viewer sees it, with its time in milliseconds from the start of the part.
    Frame(RgbImage, i32),
    /// The file lied about its frames: they come again from the first one.
    Again,
}

/// What there is to know of a clip beside its frames.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClipFacts {
    /// Where the part starts, in milliseconds from the start of the film.
    pub start_ms: i32,
    /// Where it ends.
    pub end_ms: i32,
    /// Length of the whole film in milliseconds.
    pub duration_ms: i32,
    /// Name of the codec.
    pub codec: String,
}

/// Why the reading of a clip stopped.
enum Stop {
    /// A rule was broken.
    Drop(DropReason),
    /// The file said something of its frames that is not so.
    Surprise,
}

impl From<DropReason> for Stop {
    fn from(drop: DropReason) -> Self {
        Self::Drop(drop)
    }
}

/// Reads the frames of a part of a film and gives them to `sink`, in order. `sink` may stop it.
///
/// # Errors
/// When the clip breaks a rule, or there is nothing to decode.
pub fn read_clip(
    path: &Path,
    part: Part,
    rules: &VideoPlan,
    mut sink: impl FnMut(Sampled) -> Result<(), DropReason>,
) -> Result<ClipFacts, DropReason> {
    static QUIET: Once = Once::new();
    // What the library would print is in the reject.
    QUIET.call_once(|| ffmpeg::util::log::set_level(ffmpeg::util::log::Level::Quiet));
    match read_with(path, part, rules, Trust::Packets, &mut sink) {
        Err(Stop::Surprise) => sink(Sampled::Again)?,
        Err(Stop::Drop(drop)) => return Err(drop),
        Ok(facts) => return Ok(facts),
    }
    read_with(path, part, rules, Trust::Frames, &mut sink).map_err(|stop| match stop {
        Stop::Drop(drop) => drop,
        Stop::Surprise => DropReason::detail("bad_video", "its frames have no order"),
    })
}

fn read_with(
    path: &Path,
    part: Part,
    rules: &VideoPlan,
    trust: Trust,
    sink: &mut impl FnMut(Sampled) -> Result<(), DropReason>,
) -> Result<ClipFacts, Stop> {
    let mut reader = FrameReader::open(path, rules, trust)?;
    let known_end = part.end_ms.into_iter().chain(reader.duration_ms).reduce(f64::min);
    let mut part = Part { end_ms: part.end_ms.and(known_end), ..part };
    if let Some(duration) = reader.duration_ms.filter(|duration| part.start_ms >= *duration) {
        return Err(DropReason::limit("starts_behind_end", part.start_ms, duration).into());
    }
    if rules.scene_cuts != SceneCuts::Ignore {
        let shots = Shots::find(&mut reader, part, rules)?;
        let n_cuts = shots.parts.len() - 1;
        if rules.scene_cuts == SceneCuts::Drop && n_cuts > 0 {
            return Err(DropReason {
                detail: Some(format!("{n_cuts} cuts")),
                ..DropReason::limit("scene_cut", shots.difference_max, rules.scene_cut)
            }
            .into());
        }
        if rules.scene_cuts == SceneCuts::LongestShot {
            part = shots.longest(known_end.unwrap_or(reader.end_ms()));
        }
        reader = FrameReader::open(path, rules, trust)?;
    }
    let mut easel = Easel::new(&reader.stream()?, reader.pixel(), rules);
    let times = sample_times(part, known_end, rules)?;
    let (clock, mut first, mut n_frames) = (reader.clock, None, 0_u32);
    reader.each(times.into_iter(), |frame, tick| {
        let rgb = easel.rgb(frame)?;
        // All frames of a row have one size; those of another are passed over.
        if *first.get_or_insert(rgb.dimensions()) == rgb.dimensions() {
            n_frames += 1;
            sink(Sampled::Frame(rgb, whole_ms(clock.ms(tick) - part.start_ms)))?;
        }
        Ok(())
    })?;
    if n_frames == 0 {
        return Err(DropReason::because("no_frames").into());
    }
    if n_frames < rules.frames_min {
        let (n, limit) = (f64::from(n_frames), f64::from(rules.frames_min));
        return Err(DropReason::limit("few_frames", n, limit).into());
    }
    let duration = reader.duration_ms.unwrap_or_else(|| reader.end_ms());
    Ok(ClipFacts {
        start_ms: whole_ms(part.start_ms),
        end_ms: whole_ms(part.end_ms.unwrap_or(duration)),
        duration_ms: whole_ms(duration),
        codec: reader.codec.clone(),
    })
}

/// The times at which frames are wanted, in milliseconds from the start of the film, rising.
fn sample_times(
    part: Part,
    known_end: Option<f64>,
    rules: &VideoPlan,
) -> Result<Vec<f64>, DropReason> {
    let step = match (rules.sampling, known_end) {
        (Sampling::Rate, _) => 1000.0 / rules.frames_per_second,
        (Sampling::Uniform, Some(end)) => (end - part.start_ms) / f64::from(rules.frames_max),
        (Sampling::Uniform, None) => return Err(DropReason::because("no_duration")),
    };
    let first = match rules.sampling {
        Sampling::Rate => part.start_ms,
        Sampling::Uniform => part.start_ms + step / 2.0,
    };
    let times = (0..rules.frames_max).map(|i| first + f64::from(i) * step);
    Ok(times.take_while(|ms| part.end_ms.is_none_or(|end| *ms < end)).collect())
}

/// A time in whole milliseconds; frames on the screen before a part starts have time 0 in it.
fn whole_ms(ms: f64) -> i32 {
    ms.round().clamp(0.0, f64::from(i32::MAX)) as i32
}

/// What the video library said, as the reason of a reject.
fn library_error(error: ffmpeg::Error) -> DropReason {
    if (error == ffmpeg::Error::Other { errno: ffmpeg::error::ENOMEM }) {
        return DropReason::because("out_of_memory");
    }
    // Some decoders say no more than that they failed, which the library takes for a code of the system.
    if (error == ffmpeg::Error::Other { errno: ffmpeg::error::EPERM }) {
        return DropReason::detail("bad_video", "the decoder failed: damage, or too little memory");
    }
    DropReason::detail("bad_video", error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_a_step_apart_or_in_the_middle_of_equal_parts() {
        let check = |sampling, frames_max, start_ms, end_ms, expected: &[f64]| {
            let rules = VideoPlan { sampling, frames_max, ..VideoPlan::default() };
            let times = sample_times(Part { start_ms, end_ms }, end_ms, &rules).unwrap();
            assert_eq!(times, expected);
        };
        check(Sampling::Rate, 3, 500.0, None, &[500.0, 1500.0, 2500.0]);
        check(Sampling::Rate, 8, 0.0, Some(2000.0), &[0.0, 1000.0]);
        check(Sampling::Uniform, 4, 1000.0, Some(9000.0), &[2000.0, 4000.0, 6000.0, 8000.0]);
        let rules = VideoPlan { sampling: Sampling::Uniform, ..VideoPlan::default() };
        let drop = sample_times(Part::WHOLE, None, &rules).unwrap_err();
        assert_eq!(drop.reason, "no_duration");
    }

    #[test]
    fn a_playlist_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.mp4");
        std::fs::write(&path, "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n/etc/hostname\n")
            .unwrap();
        let rules = VideoPlan::default();
        let drop = read_clip(&path, Part::WHOLE, &rules, |_| Ok(())).unwrap_err();
        assert_eq!(drop.reason, "bad_video", "{drop:?}");
    }
}
