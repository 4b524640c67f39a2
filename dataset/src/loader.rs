//! The mixture read ahead on background threads, in step order.
//!
//! Threads claim batches in order and may run only a few ahead of the reader, so memory is bounded.
//! What a batch holds never depends on how many threads there are: that is fixed by
//! [`Mixture`]. The cursor is the number of the next step, nothing else.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Batch, CorpusError, MERGED, Mixture, MixtureEntry, MixtureMode, Tokenizer};

/// Finished batches that may wait for the reader, beside the one each thread works on.
const BATCHES_AHEAD: u64 = 2;

/// A share of corrupt rows is taken of no fewer rows than this: the first row may be a bad one.
const CORRUPT_ROWS_MIN: u64 = 1000;

/// How often a reader that waits is asked whether it still wants its rows.
pub const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Where a loader stands. A run stores it in its checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The step that comes next.
    pub step: u64,
}

/// Yields the batches of one step after another. Dropping it stops its threads.
pub struct Loader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    cursor: Cursor,
    /// The first step that it does not give.
    end: u64,
    failed: bool,
    /// Rows and corrupt rows of each dataset, by name, since the loader began.
    read: BTreeMap<String, (u64, u64)>,
}

impl Loader {
    /// Opens a mixture and starts to read at `first_step`, with one thread per processor.
    ///
    /// # Errors
    /// As [`Mixture::open`].
    pub fn open(
        entries: Vec<MixtureEntry>,
        tokenizer: Arc<Tokenizer>,
        mode: MixtureMode,
        seed: u64,
        first_step: u64,
    ) -> Result<Self, CorpusError> {
        let mixture = Mixture::open(entries, tokenizer, mode, seed)?;
        let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self::start(mixture, first_step, n_threads))
    }

    /// Starts to read an open mixture at `first_step` with `n_threads` threads (at least one).
    pub fn start(mixture: Mixture, first_step: u64, n_threads: usize) -> Self {
        Self::start_within(mixture.into(), first_step..u64::MAX, n_threads)
    }

    /// As [`Loader::start`], for the steps of a range alone: nothing is read ahead that lies behind it, and
    /// several loaders may read one mixture.
    pub fn start_within(mixture: Arc<Mixture>, steps: Range<u64>, n_threads: usize) -> Self {
        let n_threads = n_threads.max(1);
        let first = steps.start * mixture.batches_per_step();
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue { claimed: first, taken: first, ready: BTreeMap::new() }),
            moved: Condvar::new(),
            stop: AtomicBool::new(false),
            batches_ahead: n_threads as u64 + BATCHES_AHEAD,
            end: steps.end.saturating_mul(mixture.batches_per_step()),
            mixture,
        });
        let threads = (0..n_threads).map(|_| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.work())
        });
        let threads = threads.collect();
        Self {
            shared,
            threads,
            cursor: Cursor { step: steps.start },
            end: steps.end,
            failed: false,
            read: BTreeMap::new(),
        }
    }

    /// The batches of the next step.
    ///
    /// # Errors
    /// When a corpus cannot be read, or has too many corrupt rows in a row or in all, or the loader's range is
    /// at its end. The loader is of no further use then.
    pub fn next_step(&mut self) -> Result<Vec<Batch>, CorpusError> {
        let step = self.cursor.step;
        let batches = self.next_step_unless(&|| false)?;
        batches.ok_or(CorpusError::LoaderStopped { step })
    }

    /// The batches of the next step; none if `is_over` says so while they are waited for. It is asked every
    /// [`LOOK_EVERY`]. The loader is of no further use then, and dropping it does not wait for what its
    /// threads are at, such as a store that does not answer.
    ///
    /// # Errors
    /// As those of [`Loader::next_step`].
    pub fn next_step_unless(
        &mut self,
        is_over: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<Batch>>, CorpusError> {
        let step = self.cursor.step;
        if self.failed || step >= self.end {
            return Err(CorpusError::LoaderStopped { step });
        }
        let n_batches = self.shared.mixture.batches_per_step();
        let batches = (0..n_batches).map(|_| self.shared.take(is_over));
        let batches = batches.collect::<Option<Result<Vec<_>, _>>>();
        let Some(batches) = batches else {
            self.failed = true;
            // They end with the process, or when their requests do.
            self.threads.clear();
            return Ok(None);
        };
        let batches = batches.and_then(|batches| self.check_corrupt(&batches).map(|()| batches));
        self.failed = batches.is_err();
        if !self.failed {
            self.cursor.step += 1;
        }
        batches.map(Some)
    }

    /// Counts the rows of a step, and stops where more are corrupt than a dataset allows.
    fn check_corrupt(&mut self, batches: &[Batch]) -> Result<(), CorpusError> {
        for (entry, share) in self.shared.mixture.shares() {
            let (n_rows, n_corrupt) = self.read.entry(entry.name.clone()).or_default();
            let has_it = |batch: &&Batch| batch.name == entry.name || batch.name == MERGED;
            for batch in batches.iter().filter(has_it) {
                let corrupt: Vec<_> =
                    batch.corrupt.iter().filter(|found| found.dataset == entry.name).collect();
                *n_corrupt += corrupt.len() as u64;
                *n_rows += share * entry.sample.pack as u64 + corrupt.len() as u64;
                let allowed = entry.corrupt_share_max * (*n_rows).max(CORRUPT_ROWS_MIN) as f64;
                if let Some(last) = corrupt.last().filter(|_| *n_corrupt as f64 > allowed) {
                    return Err(CorpusError::TooManyCorrupt {
                        name: entry.name.clone(),
                        location: entry.corpus.clone(),
                        n_corrupt: *n_corrupt,
                        n_rows: *n_rows,
                        share_max: entry.corrupt_share_max,
                        row: last.row,
                        problem: last.problem.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    /// The step that [`Loader::next_step`] gives next.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Under the lock, so that no thread misses the call between its check and its wait.
        drop(self.shared.lock());
        self.shared.moved.notify_all();
        for thread in self.threads.drain(..) {
            // A panic was caught and reported as an error of its step.
            let _ = thread.join();
        }
    }
}

struct Shared {
    mixture: Arc<Mixture>,
    queue: Mutex<Queue>,
    /// Signalled when a batch became ready, was taken, or the loader stops.
    moved: Condvar,
    stop: AtomicBool,
    batches_ahead: u64,
    /// The first batch that is not made.
    end: u64,
}

/// Batches are numbered from step 0 on.
struct Queue {
    /// The first batch that no thread works on yet.
    claimed: u64,
    /// The first batch that the reader has not taken yet.
    taken: u64,
    ready: BTreeMap<u64, Result<Batch, CorpusError>>,
}

impl Shared {
    /// What each thread does until the loader stops.
    fn work(&self) {
        while let Some(number) = self.claim() {
            let made = catch_unwind(AssertUnwindSafe(|| self.mixture.batch(number, &self.stop)));
            let step = number / self.mixture.batches_per_step();
            let made = made.unwrap_or(Err(CorpusError::LoaderStopped { step }));
            let Some(made) = made.transpose() else { return };
            self.lock().ready.insert(number, made);
            self.moved.notify_all();
        }
    }

    /// The next batch to make, once there is room for it; `None` at the end, or when the loader stops.
    fn claim(&self) -> Option<u64> {
        let mut queue = self.lock();
        loop {
            if self.stop.load(Ordering::Relaxed) || queue.claimed >= self.end {
                return None;
            }
            if queue.claimed < queue.taken + self.batches_ahead {
                queue.claimed += 1;
                return Some(queue.claimed - 1);
            }
            queue = self.moved.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the next batch in order, as long as the reader wants it.
    fn take(&self, is_over: &dyn Fn() -> bool) -> Option<Result<Batch, CorpusError>> {
        let mut queue = self.lock();
        loop {
            let next = queue.taken;
            if let Some(batch) = queue.ready.remove(&next) {
                queue.taken += 1;
                self.moved.notify_all();
                return Some(batch);
            }
            if is_over() {
                return None;
            }
            let waited = self.moved.wait_timeout(queue, LOOK_EVERY);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
