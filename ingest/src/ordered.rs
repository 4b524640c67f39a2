//! Work shared among threads whose results come back in the order of the items, with bounded queues.
//!
//! Items go round the workers in turn and results are taken in the same turn, so the order is the
//! input's by construction, and a slow item holds up the rest instead of filling the memory.

use std::sync::mpsc::sync_channel;
use std::thread;

/// Items, and as many results, that wait for each worker.
const QUEUE_LENGTH: usize = 4;

/// Calls `work` on every item in `workers` threads, and `each` on every result in order, in this
/// thread. The first error ends everything.
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
    let (work, workers) = (&work, workers.max(1));
    thread::scope(|scope| {
        let mut queues = Vec::new();
        let mut results = Vec::new();
        for _ in 0..workers {
            let (to_worker, queue) = sync_channel::<Result<T, E>>(QUEUE_LENGTH);
            let (to_caller, result) = sync_channel(QUEUE_LENGTH);
            queues.push(to_worker);
            results.push(result);
            scope.spawn(move || {
                // Sending fails only where the caller has seen an error and left.
                let _ = queue.into_iter().try_for_each(|item| to_caller.send(item.and_then(work)));
            });
        }
        scope.spawn(move || {
            let mut turn = queues.iter().cycle();
            for item in items {
                let queue = turn.next().expect("there is at least one worker");
                if queue.send(item).is_err() {
                    return;
                }
            }
        });
        // The first worker that has nothing in its turn tells that there are no more items.
        results.iter().cycle().map_while(|result| result.recv().ok()).try_for_each(|r| each(r?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(workers: usize, fail_at: Option<u32>) -> (Vec<u32>, Result<(), u32>) {
        let mut seen = Vec::new();
        let items = (0..100).map(|i| if Some(i) == fail_at { Err(i) } else { Ok(i) });
        let work = |i: u32| {
            // Early items take longest.
            thread::sleep(std::time::Duration::from_micros(u64::from(100 - i)));
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
}
