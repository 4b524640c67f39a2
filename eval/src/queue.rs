//! What is still to be asked of a server, and when: requests in their order, and before them those whose pause before a
//! repetition is over.

use std::collections::BTreeMap;
use std::ops::Range;

use tokio::time::Instant;

/// Requests that wait.
pub struct Queue<T> {
    /// Numbers of those that were never sent.
    fresh: Range<usize>,
    /// Those that failed, by when they are due and in the order in which they did.
    failed: BTreeMap<(Instant, usize), T>,
    n_failures: usize,
    /// Until when nothing is sent, as the server asked for a pause.
    quiet_until: Option<Instant>,
}

/// What is sent next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next<T> {
    /// A request by its number, for the first time.
    Fresh(usize),
    /// A request once more.
    Again(T),
}

impl<T> Queue<T> {
    /// Requests `0..n`, none of them sent.
    pub fn new(n: usize) -> Self {
        Self { fresh: 0..n, failed: BTreeMap::new(), n_failures: 0, quiet_until: None }
    }

    /// What can be sent now; none where all have to wait or nothing is left. Where `most` or more wait to be repeated,
    /// nothing is sent for the first time.
    pub fn next(&mut self, now: Instant, most: usize) -> Option<Next<T>> {
        if self.quiet_until.is_some_and(|until| until > now) {
            return None;
        }
        let n_failed = self.failed.len();
        match self.failed.first_entry() {
            Some(first) if first.key().0 <= now => Some(Next::Again(first.remove())),
            _ if n_failed >= most => None,
            _ => self.fresh.next().map(Next::Fresh),
        }
    }

    /// Puts a request back until it is due.
    pub fn put_back(&mut self, request: T, due: Instant) {
        self.failed.insert((due, self.n_failures), request);
        self.n_failures += 1;
    }

    /// Nothing is sent until then.
    pub fn be_quiet(&mut self, until: Instant) {
        self.quiet_until = self.quiet_until.max(Some(until));
    }

    /// When the next one that waits for a time can be sent; none where none does.
    pub fn due(&self) -> Option<Instant> {
        let first = self.failed.first_key_value().map(|((due, _), _)| *due);
        let due = if self.fresh.is_empty() { first? } else { first.or(self.quiet_until)? };
        Some(due.max(self.quiet_until.unwrap_or(due)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_failed_comes_back_when_it_is_due_and_before_what_is_new() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut queue = Queue::new(3);
        assert_eq!(queue.next(at(0), 9), Some(Next::Fresh(0)));
        assert_eq!(queue.due(), None);
        queue.put_back("late", at(9));
        queue.put_back("early", at(5));
        queue.put_back("early, too", at(5));
        assert_eq!(queue.due(), Some(at(5)));
        assert_eq!(queue.next(at(4), 3), None, "three wait already");
        assert_eq!(queue.next(at(4), 9), Some(Next::Fresh(1)));
        assert_eq!(queue.next(at(5), 9), Some(Next::Again("early")));
        assert_eq!(queue.next(at(5), 9), Some(Next::Again("early, too")));
        assert_eq!(queue.next(at(5), 9), Some(Next::Fresh(2)));
        assert_eq!(queue.next(at(8), 9), None);
        assert_eq!(queue.due(), Some(at(9)));
        assert_eq!(queue.next(at(20), 9), Some(Next::Again("late")));
        assert_eq!((queue.next(at(20), 9), queue.due()), (None, None));
    }

    #[test]
    fn a_pause_that_the_server_asks_for_holds_everything() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut queue = Queue::new(1);
        queue.put_back("failed", at(1));
        queue.be_quiet(at(6));
        queue.be_quiet(at(3));
        assert_eq!((queue.next(at(5), 9), queue.due()), (None, Some(at(6))));
        assert_eq!(queue.next(at(6), 9), Some(Next::Again("failed")));
        assert_eq!(queue.next(at(6), 9), Some(Next::Fresh(0)));
        queue.be_quiet(at(9));
        assert_eq!(queue.due(), None, "nothing is left to send");
    }
}
