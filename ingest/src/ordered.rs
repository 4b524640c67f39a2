//! Work shared among threads whose results come back in the order of the items, in bounded memory.
//!
//! Any thread takes the next item, so a slow one holds up nobody until the window is full: at most
//! [`WINDOW`] items for each worker, and at most a number of bytes, are between the iterator and the
//! caller. The next result in order is always let through, so the limit cannot stop the work.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::meter::Meter;

/// Items for each worker that are taken from the iterator and not yet given to the caller.
const WINDOW: usize = 16;

/// Something whose bytes count while it waits in a queue.
pub trait Weigh {
    /// About how many bytes of memory it takes beyond its own small size.
    fn weight(&self) -> u64 {
        0
    }
}

/// How much work is under way at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Threads that work.
    pub workers: usize,
    /// Bytes of items and results that wait; passed by one item and one result at most.
    pub bytes_max: u64,
}

/// What is under way.
struct Flight {
    bytes: u64,
    items: usize,
    /// Number of the result that the caller takes next.
    next: u64,
    /// Whether the caller has left, or a worker panicked.
    is_over: bool,
}

/// Lets items and results in while there is room.
struct Gate<'a> {
    meter: &'a Meter,
    flight: Mutex<Flight>,
    changed: Condvar,
    bytes_max: u64,
    items_max: usize,
}

impl<'a> Gate<'a> {
    fn new(limits: Limits, meter: &'a Meter) -> Self {
        let flight = Flight { bytes: 0, items: 0, next: 0, is_over: false };
        let items_max = limits.workers.saturating_mul(WINDOW);
        let (flight, changed) = (Mutex::new(flight), Condvar::new());
        Self { meter, flight, changed, bytes_max: limits.bytes_max, items_max }
    }

    fn lock(&self) -> MutexGuard<'_, Flight> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while(&self, is_full: impl Fn(&Flight) -> bool) -> MutexGuard<'_, Flight> {
        let waited =
            self.changed.wait_while(self.lock(), |flight| !flight.is_over && is_full(flight));
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until an item fits; whether the work goes on.
    fn enter(&self, weight: u64) -> bool {
        let mut flight = self.wait_while(|flight| {
            flight.items > 0
                && (flight.items >= self.items_max || flight.bytes + weight > self.bytes_max)
        });
        flight.items += 1;
        flight.bytes += weight;
        self.show(&flight);
        !flight.is_over
    }

    /// Waits until the result of an item fits in its place.
    fn exchange(&self, seq: u64, item: u64, result: u64) {
        let mut flight = self.wait_while(|flight| {
            flight.next != seq && flight.bytes - item + result > self.bytes_max
        });
        flight.bytes = flight.bytes - item + result;
        self.show(&flight);
        self.changed.notify_all();
    }

    /// The caller is done with the next result.
    fn leave(&self, result: u64) {
        let mut flight = self.lock();
        flight.bytes -= result;
        flight.items -= 1;
        flight.next += 1;
        self.show(&flight);
        self.changed.notify_all();
    }

    fn show(&self, flight: &Flight) {
        self.meter.items_under_way.store(flight.items as u64, Relaxed);
        self.meter.bytes_under_way.store(flight.bytes, Relaxed);
    }

    fn end(&self) {
        self.lock().is_over = true;
        self.changed.notify_all();
    }
}

/// Ends the work when the caller leaves, or a worker panics.
struct EndOnDrop<'a>(&'a Gate<'a>);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// What weighs nothing.
struct Light<T>(T);

impl<T> Weigh for Light<T> {}

/// [`ordered_map_within`] for small items and results.
///
/// # Errors
/// The first error in the order of the items: of the iterator, of `work` or of `each`.
///
/// # Panics
/// When `work` panics.
pub fn ordered_map<T: Send, R: Send, E: Send>(
    items: impl Iterator<Item = Result<T, E>> + Send,
    workers: usize,
    work: impl Fn(T) -> Result<R, E> + Sync,
    mut each: impl FnMut(R) -> Result<(), E>,
) -> Result<(), E> {
    let limits = Limits { workers, bytes_max: u64::MAX };
    let (items, meter) = (items.map(|item| item.map(Light)), Meter::default());
    let work = |Light(item)| work(item).map(Light);
    ordered_map_within(items, limits, &meter, work, |Light(result)| each(result))
}

/// Calls `work` on every item in several threads, and `each` on every result in order, in this
/// thread. The first error ends everything.
///
/// # Errors
/// The first error in the order of the items: of the iterator, of `work` or of `each`.
///
/// # Panics
/// When `work` panics.
pub fn ordered_map_within<T: Send + Weigh, R: Send + Weigh, E: Send>(
    items: impl Iterator<Item = Result<T, E>> + Send,
    limits: Limits,
    meter: &Meter,
    work: impl Fn(T) -> Result<R, E> + Sync,
    mut each: impl FnMut(R) -> Result<(), E>,
) -> Result<(), E> {
    let limits = Limits { workers: limits.workers.max(1), ..limits };
    let gate = &Gate::new(limits, meter);
    let work = &work;
    let (to_workers, queue) = channel::<(u64, u64, Result<T, E>)>();
    let queue = &Mutex::new(queue);
    thread::scope(|scope| {
        let _end = EndOnDrop(gate);
        let (to_caller, results) = channel();
        for _ in 0..limits.workers {
            let to_caller = to_caller.clone();
            scope.spawn(move || {
                let end = EndOnDrop(gate);
                while let Some((seq, weight, item)) = take(queue) {
                    let result = item.and_then(work);
                    let after = result.as_ref().map_or(0, Weigh::weight);
                    gate.exchange(seq, weight, after);
                    if to_caller.send((seq, after, result)).is_err() {
                        break;
                    }
                }
                // Only a panic ends the others' work.
                std::mem::forget(end);
            });
        }
        drop(to_caller);
        scope.spawn(move || {
            for (seq, item) in items.enumerate() {
                let weight = item.as_ref().map_or(0, Weigh::weight);
                if !gate.enter(weight) || to_workers.send((seq as u64, weight, item)).is_err() {
                    return;
                }
            }
        });
        give_in_order(&results, |(weight, result)| {
            each(result?)?;
            gate.leave(weight);
            Ok(())
        })
    })
}

/// The next item, whichever worker asks first; none when there are no more.
fn take<T>(queue: &Mutex<Receiver<T>>) -> Option<T> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

/// Calls `each` on what arrives, in the order of its numbers.
fn give_in_order<A, R, E>(
    results: &Receiver<(u64, A, R)>,
    mut each: impl FnMut((A, R)) -> Result<(), E>,
) -> Result<(), E> {
    let mut early = BTreeMap::new();
    let mut next = 0;
    for (seq, weight, result) in results {
        early.insert(seq, (weight, result));
        while let Some(result) = early.remove(&next) {
            next += 1;
            each(result)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;

    fn run(workers: usize, fail_at: Option<u32>) -> (Vec<u32>, Result<(), u32>) {
        let mut seen = Vec::new();
        let items = (0..100).map(|i| if Some(i) == fail_at { Err(i) } else { Ok(i) });
        let work = |i: u32| {
            // Early items take longest.
            thread::sleep(Duration::from_micros(u64::from(100 - i)));
            Ok(i * 2)
        };
        let result = ordered_map(items, workers, work, |i| {
            seen.push(i);
            Ok(())
        });
        (seen, result)
    }

    #[test]
    fn results_come_in_order_for_any_number_of_workers() {
        let expected: Vec<u32> = (0..100).map(|i| i * 2).collect();
        for workers in [0, 1, 3, 7] {
            assert_eq!(run(workers, None), (expected.clone(), Ok(())), "{workers} workers");
        }
    }

    #[test]
    fn the_first_error_ends_the_work() {
        for workers in [1, 3] {
            let (seen, result) = run(workers, Some(37));
            assert_eq!((seen.len(), result), (37, Err(37)));
        }
        let ended = ordered_map((0..).map(Ok::<u32, &str>), 2, Ok, |i| {
            if i == 5 { Err("five") } else { Ok(()) }
        });
        assert_eq!(ended, Err("five"));
    }

    /// A block of bytes that counts how many of them live.
    struct Block<'a>(u64, &'a AtomicU64);

    impl Weigh for Block<'_> {
        fn weight(&self) -> u64 {
            self.0
        }
    }

    impl Drop for Block<'_> {
        fn drop(&mut self) {
            self.1.fetch_sub(self.0, Ordering::SeqCst);
        }
    }

    #[test]
    fn bytes_under_way_are_bounded_and_the_slowest_item_does_not_stop_the_rest() {
        let (alive, most) = (AtomicU64::new(0), AtomicU64::new(0));
        let block = |n: u64| {
            let now = alive.fetch_add(n, Ordering::SeqCst) + n;
            most.fetch_max(now, Ordering::SeqCst);
            Block(n, &alive)
        };
        let limits = Limits { workers: 4, bytes_max: 100 };
        let (mut n, mut ahead) = (0, 0);
        let done = AtomicU64::new(0);
        let work = |Light(i): Light<u32>| {
            if i == 0 {
                thread::sleep(Duration::from_millis(30));
            }
            done.fetch_add(1, Ordering::SeqCst);
            Ok::<_, ()>(block(10 + u64::from(i % 7)))
        };
        ordered_map_within((0..300).map(|i| Ok(Light(i))), limits, &Meter::default(), work, |_| {
            if n == 0 {
                ahead = done.load(Ordering::SeqCst);
            }
            n += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(n, 300);
        assert!(ahead > 4, "the others waited for the slow one: {ahead} were done");
        // Each worker may hold a result that waits for room.
        let most = most.load(Ordering::SeqCst);
        assert!(most <= 100 + 5 * 16, "{most}");
    }
}
