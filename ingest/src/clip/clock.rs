//! The time of a stream in ticks and in milliseconds.

use ffmpeg::format::context::Input;
use ffmpeg::format::stream::Stream;
use ffmpeg::{Rational, media};
use ffmpeg_next as ffmpeg;

/// Parts of a tick by which a wanted time may be off: decimal fractions are not exact in binary.
const TICK_SLACK: f64 = 1e-6;
/// Start time of a stream that has none.
const NO_START: i64 = i64::MIN;

/// Ticks of a stream, and the one at which the film starts for a viewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clock {
    /// Numerator of the seconds of one tick.
    num: i64,
    /// Denominator of the seconds of one tick.
    den: i64,
    /// The tick of time 0.
    pub(super) zero: i64,
}

impl Clock {
    /// The clock of `stream`. Time 0 is where the earliest sound or picture of the file starts, as
    /// players and the ffmpeg command line have it, so that subtitles and pictures agree.
    pub(super) fn new(input: &Input, stream: &Stream<'_>) -> Self {
        let (num, den) = parts(stream.time_base());
        let timed = |kind| matches!(kind, media::Type::Video | media::Type::Audio);
        let starts = input.streams().filter(|stream| timed(stream.parameters().medium()));
        let micros = starts.filter_map(|stream| {
            let (num, den) = parts(stream.time_base());
            let start = Some(stream.start_time()).filter(|start| *start != NO_START)?;
            Some(i128::from(start) * i128::from(num) * 1_000_000 / i128::from(den))
        });
        // To the nearest tick: microseconds were cut off above.
        let (zero, tick) = (micros.min().unwrap_or(0), i128::from(num) * 1_000_000);
        let zero = (zero * i128::from(den) + tick / 2).div_euclid(tick);
        Self { num, den, zero: zero as i64 }
    }

    /// The last tick at or before a time in milliseconds.
    pub(super) fn tick(&self, ms: f64) -> i64 {
        let ticks = ms / 1000.0 * self.den as f64 / self.num as f64;
        ((ticks + TICK_SLACK).floor() as i64).saturating_add(self.zero)
    }

    /// The time of a tick in milliseconds.
    pub(super) fn ms(&self, tick: i64) -> f64 {
        let ticks = tick.saturating_sub(self.zero) as f64;
        ticks * 1000.0 * self.num as f64 / self.den as f64
    }

    /// The timestamp of a tick in microseconds, counted as the file counts.
    pub(super) fn micros(&self, tick: i64) -> i64 {
        let micros = i128::from(tick) * i128::from(self.num) * 1_000_000 / i128::from(self.den);
        micros.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
    }
}

/// Numerator and denominator of a time base, both above 0 even where a file says otherwise.
fn parts(base: Rational) -> (i64, i64) {
    (i64::from(base.numerator()).max(1), i64::from(base.denominator()).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wanted_time_is_the_last_tick_at_or_before_it() {
        let clock = Clock { num: 1001, den: 30_000, zero: 7 };
        let check = |ms, tick| assert_eq!(clock.tick(ms), tick, "{ms}");
        check(0.0, 7);
        check(33.3, 7);
        check(1001.0 / 30.0, 8);
        check(1001.0, 37);
        check(1000.0, 36);
        assert!((clock.ms(37) - 1001.0).abs() < 1e-9);
        assert_eq!(clock.micros(30), 1_001_000);
    }
}
