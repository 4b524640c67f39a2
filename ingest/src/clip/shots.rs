//! Cuts between the shots of a film, by the luma of small frames.

use ffmpeg::format::Pixel;
use ffmpeg::frame;
use ffmpeg::software::scaling::{Context, Flags};
use ffmpeg_next as ffmpeg;

use super::frames::FrameReader;
use super::{Part, Stop, library_error};
use crate::plan::VideoPlan;
use crate::reject::DropReason;

/// Size of the frames that are compared.
const SIZE: (u32, u32) = (64, 36);
/// Bins of the histogram of luma.
const N_BINS: usize = 32;
/// Frames compared per second of film.
const FRAMES_PER_SECOND: f64 = 5.0;
/// Most frames compared of one film: 5 hours. What comes later is not looked at.
const FRAMES_MAX: u32 = 90_000;

/// The shots of a part of a film.
pub(super) struct Shots {
    /// Shots in order; there is at least one.
    pub(super) parts: Vec<Part>,
    /// The largest difference between frames, 0 to 1.
    pub(super) difference_max: f64,
}

impl Shots {
    /// Finds the shots of `part`: a cut is where the histograms of two frames, a fifth of a second
    /// apart, have less than `1 - rules.scene_cut` in common.
    pub(super) fn find(
        reader: &mut FrameReader<'_>,
        part: Part,
        rules: &VideoPlan,
    ) -> Result<Self, Stop> {
        let (clock, mut scaler) = (reader.clock, Scaler::default());
        let mut before: Option<[f64; N_BINS]> = None;
        let (mut starts, mut difference_max) = (vec![part.start_ms], 0.0_f64);
        let times =
            (0..FRAMES_MAX).map(|i| part.start_ms + f64::from(i) * 1000.0 / FRAMES_PER_SECOND);
        let times = times.take_while(|ms| part.end_ms.is_none_or(|end| *ms < end));
        reader.each(times, |frame, tick| {
            let histogram = scaler.histogram(frame)?;
            if let Some(before) = &before {
                let difference = difference(before, &histogram);
                difference_max = difference_max.max(difference);
                if difference >= rules.scene_cut {
                    starts.push(clock.ms(tick).max(part.start_ms));
                }
            }
            before = Some(histogram);
            Ok(())
        })?;
        let ends = starts.iter().skip(1).map(|ms| Some(*ms)).chain([part.end_ms]);
        let parts = starts.iter().zip(ends);
        let parts = parts.map(|(&start_ms, end_ms)| Part { start_ms, end_ms }).collect();
        Ok(Self { parts, difference_max })
    }

    /// The longest shot, the first of those that are equally long; `end_ms` is where the film ends.
    pub(super) fn longest(&self, end_ms: f64) -> Part {
        let length = |part: &Part| part.end_ms.unwrap_or(end_ms) - part.start_ms;
        let longer =
            |best: Part, part: &Part| if length(part) > length(&best) { *part } else { best };
        self.parts.iter().fold(self.parts[0], longer)
    }
}

/// Half the sum of the differences of two histograms: 0 where they are the same, 1 where they have
/// nothing in common.
fn difference(one: &[f64; N_BINS], other: &[f64; N_BINS]) -> f64 {
    one.iter().zip(other).map(|(a, b)| (a - b).abs()).sum::<f64>() / 2.0
}

#[derive(Default)]
struct Scaler {
    context: Option<Context>,
}

impl Scaler {
    /// Shares of the pixels in each bin of luma.
    fn histogram(&mut self, frame: &frame::Video) -> Result<[f64; N_BINS], DropReason> {
        let (format, width, height) = (frame.format(), frame.width(), frame.height());
        let is_same = self.context.as_ref().is_some_and(|context| {
            let from = context.input();
            (from.format, from.width, from.height) == (format, width, height)
        });
        if !is_same {
            let flags = Flags::AREA | Flags::BITEXACT;
            let context = Context::get(format, width, height, Pixel::GRAY8, SIZE.0, SIZE.1, flags);
            self.context = Some(context.map_err(library_error)?);
        }
        let mut grey = frame::Video::empty();
        let context = self.context.as_mut().expect("the scaler was made above");
        context.run(frame, &mut grey).map_err(library_error)?;
        let mut counts = [0.0; N_BINS];
        for row in grey.data(0).chunks(grey.stride(0)).take(SIZE.1 as usize) {
            for &luma in &row[..SIZE.0 as usize] {
                counts[usize::from(luma) * N_BINS / 256] += 1.0;
            }
        }
        Ok(counts.map(|n| n / f64::from(SIZE.0 * SIZE.1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_shot_is_kept() {
        let part = |start_ms, end_ms| Part { start_ms, end_ms };
        let check = |parts: Vec<Part>, end_ms, expected| {
            let shots = Shots { parts, difference_max: 0.0 };
            assert_eq!(shots.longest(end_ms), expected);
        };
        let (a, b) = (part(0.0, Some(3.0)), part(3.0, None));
        check(vec![a, b], 5.0, a);
        check(vec![a, b], 6.0, a);
        check(vec![a, b], 6.5, b);
    }

    #[test]
    fn histograms_differ_by_what_they_do_not_share() {
        let mut one = [0.0; N_BINS];
        let mut other = one;
        (one[0], one[1], other[1], other[2]) = (0.25, 0.75, 0.75, 0.25);
        assert!((difference(&one, &other) - 0.25).abs() < 1e-12);
        assert!(difference(&one, &one).abs() < 1e-12);
    }
}
