//! Buffers of f32 that are used again.
//!
//! A training step makes and drops the same few hundred large buffers every time. Getting them from
//! the system and clearing them costs as much as the small matrix products between them, so a
//! dropped buffer is kept for the next request of its length.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// Shorter buffers are left to the system's allocator, which is quick for them.
const KEPT_FROM: usize = 1 << 10;
/// Most values that are kept for later use (128 MiB); beyond it all kept buffers are given back.
const KEPT_MAX: usize = 1 << 25;

/// Buffers waiting for use, by length.
#[derive(Debug)]
struct Kept {
    by_length: BTreeMap<usize, Vec<Vec<f32>>>,
    n_values: usize,
}

static KEPT: Mutex<Kept> = Mutex::new(Kept { by_length: BTreeMap::new(), n_values: 0 });

impl Kept {
    fn take(&mut self, n: usize) -> Option<Vec<f32>> {
        let found = self.by_length.get_mut(&n)?.pop()?;
        self.n_values -= n;
        Some(found)
    }

    fn put(&mut self, values: Vec<f32>) {
        if self.n_values + values.len() > KEPT_MAX {
            self.by_length.clear();
            self.n_values = 0;
        }
        self.n_values += values.len();
        self.by_length.entry(values.len()).or_default().push(values);
    }
}

/// Values on the heap.
#[derive(Debug)]
pub(crate) struct Buffer(Vec<f32>);

impl Buffer {
    /// `n` values of any content: for a result that is written in full.
    pub(crate) fn unset(n: usize) -> Self {
        let found = if n < KEPT_FROM {
            None
        } else {
            KEPT.lock().unwrap_or_else(PoisonError::into_inner).take(n)
        };
        Self(found.unwrap_or_else(|| vec![0.0; n]))
    }

    /// `n` zeros.
    pub(crate) fn zeroed(n: usize) -> Self {
        let mut buffer = Self::unset(n);
        buffer.fill(0.0);
        buffer
    }

    /// The values as a plain vector.
    pub(crate) fn into_vec(mut self) -> Vec<f32> {
        std::mem::take(&mut self.0)
    }
}

impl From<Vec<f32>> for Buffer {
    fn from(values: Vec<f32>) -> Self {
        Self(values)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.0.len() >= KEPT_FROM {
            let values = std::mem::take(&mut self.0);
            KEPT.lock().unwrap_or_else(PoisonError::into_inner).put(values);
        }
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_used_again_and_clearing_clears_it() {
        // A length that no other test asks for.
        let n = 1_234_567;
        let mut buffer = Buffer::unset(n);
        buffer[7] = 3.0;
        let place = buffer.as_ptr();
        drop(buffer);
        let again = Buffer::zeroed(n);
        assert_eq!(again.as_ptr(), place);
        assert!(again.iter().all(|v| v.to_bits() == 0));
    }
}
