//! How many bytes may wait for the work, without the first in line ever waiting for the others.
//!
//! Bodies arrive in any order and leave in the order of the items. If a body that comes early could
//! hold the last bytes and then wait, the item that everyone waits for might never start. So nobody
//! waits for bytes while it holds anything: a request that finds none is given up, and starts again
//! when there is room; the first in line takes what it needs.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Bytes that a body is expected to have before any has come.
const BYTES_EXPECTED: u64 = 256 << 10;
/// How many bodies it takes for the expectation to follow them.
const BODIES_REMEMBERED: u64 = 16;

/// The bytes that are shared.
pub(crate) struct Budget {
    bytes_max: u64,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    used: u64,
    /// About how many bytes a body has.
    expected: u64,
    /// The item that leaves next.
    first: u64,
    /// Nobody takes items any more.
    is_closed: bool,
}

impl State {
    fn has_room(&self, item: u64, n: u64, bytes_max: u64) -> bool {
        self.is_closed || item <= self.first || self.used.saturating_add(n) <= bytes_max
    }
}

impl Budget {
    pub(crate) fn new(bytes_max: u64) -> Arc<Self> {
        let state = State { used: 0, expected: BYTES_EXPECTED, first: 0, is_closed: false };
        Arc::new(Self { bytes_max, state: Mutex::new(state), changed: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing taken yet, for the body of an item.
    fn share(self: &Arc<Self>, item: u64) -> Share {
        Share { budget: Arc::clone(self), item, taken: 0 }
    }

    /// Waits until a body of an item can be asked for, and takes what such bodies need. Half of the
    /// bytes are left to those that turn out larger.
    pub(crate) async fn start(self: &Arc<Self>, item: u64) -> Share {
        let expected = self.state().expected;
        self.room(item, expected.saturating_add(self.bytes_max / 2)).await;
        let mut share = self.share(item);
        share.grow(expected);
        share
    }

    /// Waits until `n` bytes for an item would be given.
    async fn room(&self, item: u64, n: u64) {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.state().has_room(item, n, self.bytes_max) {
                return;
            }
            changed.await;
        }
    }

    /// An item has left.
    pub(crate) fn left(&self, item: u64) {
        self.state().first = item + 1;
        self.changed.notify_waiters();
    }

    /// Lets everyone go: nobody takes items any more.
    pub(crate) fn close(&self) {
        self.state().is_closed = true;
        self.changed.notify_waiters();
    }

    /// Whether nobody takes items any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.state().is_closed
    }
}

/// The bytes that one body has taken; given back when it is dropped.
pub(crate) struct Share {
    budget: Arc<Budget>,
    item: u64,
    taken: u64,
}

impl Share {
    /// Takes bytes so that it has `n` in all; false where there are none.
    pub(crate) fn grow(&mut self, n: u64) -> bool {
        let more = n.saturating_sub(self.taken);
        let mut state = self.budget.state();
        if !state.has_room(self.item, more, self.budget.bytes_max) {
            return false;
        }
        state.used += more;
        self.taken += more;
        true
    }

    /// Waits until it could have `n` bytes, holding none in the meantime.
    pub(crate) async fn wait(&mut self, n: u64) {
        self.give_back();
        self.budget.room(self.item, n).await;
    }

    /// Gives back what is above `n`.
    pub(crate) fn shrink(&mut self, n: u64) {
        let less = self.taken.saturating_sub(n);
        self.budget.state().used -= less;
        self.taken -= less;
        if less > 0 {
            self.budget.changed.notify_waiters();
        }
    }

    /// The body is whole and has `n` bytes.
    pub(crate) fn settle(&mut self, n: u64) {
        let mut state = self.budget.state();
        state.expected = (state.expected * (BODIES_REMEMBERED - 1) + n) / BODIES_REMEMBERED;
        drop(state);
        self.shrink(n);
    }

    /// Whether nobody takes items any more.
    pub(crate) fn is_in_vain(&self) -> bool {
        self.budget.is_closed()
    }

    fn give_back(&mut self) {
        self.shrink(0);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_in_line_is_never_refused() {
        let budget = Budget::new(100);
        let (mut first, mut second) = (budget.share(0), budget.share(1));
        assert!(second.grow(100) && !second.grow(101));
        assert!(first.grow(5000));
        second.shrink(40);
        assert!(!second.grow(41), "the first is over the limit");
        drop(first);
        assert!(second.grow(41));
        budget.left(0);
        assert!(second.grow(500), "it is the first now");
        drop(second);
        assert_eq!(budget.state().used, 0);
    }

    #[tokio::test]
    async fn those_who_wait_go_on_when_there_is_room() {
        let budget = Budget::new(100);
        let mut first = budget.share(0);
        assert!(first.grow(80));
        let mut third = budget.share(2);
        assert!(third.grow(10) && !third.grow(60));
        let waiting = tokio::spawn(async move {
            third.wait(60).await;
            third.grow(60)
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        assert!(waiting.await.unwrap());
    }
}
