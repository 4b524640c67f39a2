//! Waiting for a store that does not answer.
//!
//! `object_store` repeats a request by itself: up to ten times within three minutes, after errors of the
//! server, broken connections and answers that do not come (30 s). A longer outage would end a run of
//! weeks, so a row is asked for several times more, with growing pauses. What no waiting mends - an
//! object that is not there or denied, a damaged row - is told at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::CorpusError;

/// Times that a row is asked for: with the pauses and the repeats of `object_store` an outage may last 5
/// minutes where connections are refused, and more than 20 where answers do not come.
const ATTEMPTS: u32 = 6;

/// The first pause. Each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_secs(10);

/// How long a pause goes on after the reader has stopped.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Reads, again after pauses where the store is at fault, until `stop` is set.
///
/// # Errors
/// The last one, if it is not mended by waiting.
pub(crate) fn patiently<T>(
    stop: &AtomicBool,
    read: impl FnMut() -> Result<T, CorpusError>,
) -> Result<T, CorpusError> {
    repeat(read, |pause| {
        let mut left = pause;
        while !left.is_zero() && !stop.load(Ordering::Relaxed) {
            let now = left.min(LOOK_EVERY);
            std::thread::sleep(now);
            left -= now;
        }
        !stop.load(Ordering::Relaxed)
    })
}

/// `pause` says whether to go on after it.
fn repeat<T>(
    mut read: impl FnMut() -> Result<T, CorpusError>,
    mut pause: impl FnMut(Duration) -> bool,
) -> Result<T, CorpusError> {
    let mut length = FIRST_PAUSE;
    for _ in 1..ATTEMPTS {
        match read() {
            Err(error) if error.is_outage() && pause(length) => length *= 2,
            ended => return ended,
        }
    }
    read()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(source: object_store::Error) -> CorpusError {
        CorpusError::Object { action: "read", object: "s3://bucket/shard".to_owned(), source }
    }

    fn outage() -> CorpusError {
        let source = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        object(object_store::Error::Generic { store: "S3", source: Box::new(source) })
    }

    fn missing() -> CorpusError {
        let source = std::io::Error::from(std::io::ErrorKind::NotFound);
        object(object_store::Error::NotFound { path: String::new(), source: Box::new(source) })
    }

    /// The result after these errors, and the pauses in seconds.
    fn check(errors: &[fn() -> CorpusError], goes_on: bool) -> (Result<(), CorpusError>, Vec<u64>) {
        let (mut errors, mut pauses) = (errors.iter(), Vec::new());
        let read = || errors.next().map_or(Ok(()), |error| Err(error()));
        let pause = |length: Duration| {
            pauses.push(length.as_secs());
            goes_on
        };
        let result = repeat(read, pause);
        (result, pauses)
    }

    #[test]
    fn an_outage_is_waited_for_with_growing_pauses_and_not_for_ever() {
        let (read, pauses) = check(&[outage, outage], true);
        assert!(read.is_ok());
        assert_eq!(pauses, [10, 20]);
        let (read, pauses) = check(&[outage as fn() -> _; 5], true);
        assert!(read.is_ok());
        assert_eq!(pauses, [10, 20, 40, 80, 160]);
        let (read, pauses) = check(&[outage as fn() -> _; 6], true);
        assert!(read.unwrap_err().is_outage());
        assert_eq!(pauses.len(), 5);
    }

    #[test]
    fn what_waiting_does_not_mend_is_told_at_once_and_a_reader_that_stops_is_not_kept() {
        let (read, pauses) = check(&[missing], true);
        assert!(read.unwrap_err().is_not_found());
        assert!(pauses.is_empty());
        let (read, pauses) = check(&[outage as fn() -> _; 3], false);
        assert!(read.unwrap_err().is_outage());
        assert_eq!(pauses, [10]);
        let stop = AtomicBool::new(true);
        let mut n_reads = 0;
        let read = patiently(&stop, || {
            n_reads += 1;
            Err::<(), _>(outage())
        });
        assert!(read.is_err());
        assert_eq!(n_reads, 1);
    }
}
