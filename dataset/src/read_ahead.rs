//! Rows of a distant store, read by many requests at a time and handed out in order.
//!
//! A store answers after tens of milliseconds, however little is asked for: rows that are read one after the
//! other would cost seconds for a batch. Which rows come next is known, so threads that mostly wait
//! read them while the first are decoded. How far they run ahead is bounded by the bytes of the rows.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::{CorpusError, Row};

/// Requests at a time for one batch.
const THREADS: usize = 16;

/// Most bytes of rows that wait to be used.
const BYTES_MAX: usize = 64 << 20;

/// Rows on their way, in the order in which they are wanted.
pub(crate) struct ReadAhead<'a> {
    rows: &'a [u64],
    bytes_max: usize,
    state: Mutex<State>,
    /// Signalled when a row is there or was taken, or the reading ends.
    moved: Condvar,
}

#[derive(Default)]
struct State {
    /// The first row that no thread reads yet, by its place among those wanted.
    claimed: usize,
    /// The first row that was not taken.
    taken: usize,
    ready: HashMap<usize, Result<Row, CorpusError>>,
    /// Bytes of those that are ready.
    bytes: usize,
    ended: bool,
}

/// Reads `rows` ahead while `work` takes them.
pub(crate) fn read_ahead<T>(
    rows: &[u64],
    read: impl Fn(u64) -> Result<Row, CorpusError> + Sync,
    work: impl FnOnce(&ReadAhead) -> T,
) -> T {
    run(rows, BYTES_MAX, &read, work)
}

fn run<T>(
    rows: &[u64],
    bytes_max: usize,
    read: &(impl Fn(u64) -> Result<Row, CorpusError> + Sync),
    work: impl FnOnce(&ReadAhead) -> T,
) -> T {
    let ahead = ReadAhead { rows, bytes_max, state: Mutex::default(), moved: Condvar::new() };
    std::thread::scope(|scope| {
        for _ in 0..THREADS.min(rows.len()) {
            scope.spawn(|| ahead.read_all(read));
        }
        // Ended in a panic too, or the threads would wait for ever.
        let _ended = End(&ahead);
        work(&ahead)
    })
}

/// Ends the reading when it is dropped.
struct End<'a>(&'a ReadAhead<'a>);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.moved.notify_all();
    }
}

impl ReadAhead<'_> {
    /// The row, if it is the next of those that were wanted.
    pub(crate) fn take(&self, row: u64) -> Option<Result<Row, CorpusError>> {
        let mut state = self.lock();
        let place = state.taken;
        if self.rows.get(place) != Some(&row) {
            return None;
        }
        loop {
            if let Some(read) = state.ready.remove(&place) {
                state.taken += 1;
                state.bytes -= bytes_of(&read);
                self.moved.notify_all();
                return Some(read);
            }
            if state.ended {
                return None;
            }
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What each thread does.
    fn read_all(&self, read: &impl Fn(u64) -> Result<Row, CorpusError>) {
        while let Some(place) = self.claim() {
            // A reader that panics ends the reading: whoever waits reads the row anew.
            let ended = End(self);
            let row = read(self.rows[place]);
            std::mem::forget(ended);
            let mut state = self.lock();
            state.bytes += bytes_of(&row);
            state.ready.insert(place, row);
            self.moved.notify_all();
        }
    }

    /// The next row to read, once there is room for it. The one that is waited for always has room.
    fn claim(&self) -> Option<usize> {
        let mut state = self.lock();
        loop {
            let place = state.claimed;
            if state.ended || place == self.rows.len() {
                return None;
            }
            if state.bytes < self.bytes_max || place == state.taken {
                state.claimed += 1;
                return Some(place);
            }
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bytes_of(row: &Result<Row, CorpusError>) -> usize {
    row.as_ref().map_or(0, Row::stored_bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::{EncodedImage, ImageText};

    /// A pair whose image has so many bytes.
    fn pair(number: u64, n_bytes: usize) -> Row {
        let image = EncodedImage { bytes: Bytes::from(vec![0; n_bytes]), path: None };
        Row::ImageText(ImageText {
            key: number.to_string(),
            url: None,
            caption: String::new(),
            image,
            width: 1,
            height: 1,
            original_width: 1,
            original_height: 1,
            sha256: String::new(),
            phash: 0,
            source: None,
            scores: Vec::new(),
            warc: None,
        })
    }

    #[test]
    fn rows_come_in_order_from_many_threads_and_few_wait() {
        let rows: Vec<u64> = (0..200).rev().collect();
        let (at_once, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (held, most_held) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let read = |row: u64| {
            most.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(row % 7));
            at_once.fetch_sub(1, Ordering::SeqCst);
            most_held.fetch_max(held.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            if row == 50 { Err(CorpusError::EmptyMixture) } else { Ok(pair(row, 1000)) }
        };
        run(&rows, 10_000, &read, |ahead| {
            for &row in &rows {
                let found = ahead.take(row).expect("it is the next");
                assert_eq!(found.is_err(), row == 50);
                if let Ok(found) = found {
                    assert_eq!(found.key(), row.to_string());
                }
                held.fetch_sub(1, Ordering::SeqCst);
                assert!(ahead.take(row).is_none(), "taken before");
            }
        });
        assert!((8..=THREADS).contains(&most.into_inner()));
        // Those that were on their way when there was no more room come on top.
        assert!(most_held.into_inner() <= 10 + THREADS);
    }

    #[test]
    fn a_row_larger_than_the_room_is_read_and_an_early_end_is_no_hang() {
        let rows: Vec<u64> = (0..40).collect();
        let n_read = AtomicUsize::new(0);
        let read = |row: u64| {
            n_read.fetch_add(1, Ordering::SeqCst);
            Ok(pair(row, 5000))
        };
        run(&rows, 1, &read, |ahead| {
            assert!(ahead.take(7).is_none(), "not the next");
            (0..3).for_each(|row| assert!(ahead.take(row).is_some()));
        });
        assert!(n_read.into_inner() < 40);
        let panics =
            |row: u64| if row == 2 { panic!("a broken decoder") } else { Ok(pair(row, 1)) };
        let found = std::panic::catch_unwind(|| {
            run(&rows, 1, &panics, |ahead| (0..40).filter(|row| ahead.take(*row).is_some()).count())
        });
        assert!(found.is_err(), "the panic of a thread is passed on");
    }
}
