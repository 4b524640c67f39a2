//! How long a request waits before it is repeated: twice as long each time, and never shorter than the server asks.

use std::time::{Duration, SystemTime};

use crate::draw::{mix, mix_text};

/// The pause before the first repetition; each next one is twice as long, up to a limit.
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_mins(1);

/// Longest pause that is granted to a server that asks for one. A quota that comes back in hours ends the evaluation, which
/// goes on when the same command is given again.
pub const ASKED_MAX: Duration = Duration::from_mins(5);

/// Before repetition `tries`, from 0, of the request with this digest: a quarter more or less than its share, so that those
/// that failed together do not come back together; at least as long as the server asks.
pub fn pause(key: &str, tries: u32, asked: Option<Duration>) -> Duration {
    let doubled = PAUSE.saturating_mul(1_u32.checked_shl(tries).unwrap_or(u32::MAX));
    let spread = mix_text(mix(u64::from(tries), 4), key) as f64 / u64::MAX as f64;
    let own = doubled.min(PAUSE_MAX).mul_f64(0.75 + 0.5 * spread);
    own.max(asked.unwrap_or_default())
}

/// The pause in a `Retry-After` (RFC 9110, 10.2.3): seconds, or a date. None where it is neither, or past.
pub fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    match value.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 => {
            Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
        }
        Ok(_) => None,
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(now).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_differ() {
        let within = |tries, seconds: f64| {
            let pause = pause("a", tries, None).as_secs_f64();
            assert!((0.75 * seconds..=1.25 * seconds).contains(&pause), "{tries}: {pause}");
        };
        for (tries, seconds) in [(0, 0.5), (1, 1.0), (4, 8.0), (7, 60.0), (40, 60.0)] {
            within(tries, seconds);
        }
        assert_ne!(pause("a", 3, None), pause("b", 3, None));
    }

    #[test]
    fn what_a_server_asks_makes_pauses_longer_and_never_shorter() {
        let own = pause("a", 2, None);
        for shorter in [Duration::ZERO, Duration::from_millis(1), own] {
            assert_eq!(pause("a", 2, Some(shorter)), own);
        }
        let longer = Duration::from_secs(30);
        assert_eq!(pause("a", 2, Some(longer)), longer);
    }

    #[test]
    fn seconds_and_dates_are_read_and_nonsense_is_nothing() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let check = |value: &str, seconds: Option<f64>| {
            let found = retry_after(value, now).map(|pause| pause.as_secs_f64());
            assert_eq!(found, seconds, "{value}");
        };
        check("7", Some(7.0));
        check(" 0.5 ", Some(0.5));
        check("Sun, 06 Nov 1994 08:49:50 GMT", Some(13.0));
        for nothing in ["0", "-3", "NaN", "soon", "", "Sun, 06 Nov 1994 08:49:00 GMT"] {
            check(nothing, None);
        }
        assert_eq!(retry_after("1e400", now), Some(Duration::MAX));
    }
}
