//! Memory for the pixels of batches, used again: a batch is tens of megabytes, and memory that is new to
//! the process is cleared page by page by the system, which takes a fifth of the time of a loader.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// Most bytes that lie ready.
const SPARE_BYTES_MAX: usize = 128 << 20;
/// Smaller buffers are left to the allocator.
const SPARE_BYTES_MIN: usize = 1 << 20;

static SPARE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// Numbers whose memory is kept for others when they are dropped.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PixelBuffer(Vec<f32>);

impl PixelBuffer {
    /// An empty buffer with room for `n` numbers.
    pub(crate) fn with_capacity(n: usize) -> Self {
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is far too large stays for a batch that needs it.
        let fits = |buffer: &Vec<f32>| (n..=4 * n).contains(&buffer.capacity());
        let found = spare.iter().position(fits).map(|at| spare.swap_remove(at));
        Self(found.unwrap_or_else(|| Vec::with_capacity(n)))
    }
}

impl From<Vec<f32>> for PixelBuffer {
    fn from(numbers: Vec<f32>) -> Self {
        Self(numbers)
    }
}

impl Deref for PixelBuffer {
    type Target = Vec<f32>;

    fn deref(&self) -> &Vec<f32> {
        &self.0
    }
}

impl DerefMut for PixelBuffer {
    fn deref_mut(&mut self) -> &mut Vec<f32> {
        &mut self.0
    }
}

impl Drop for PixelBuffer {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.0);
        let bytes = |buffer: &Vec<f32>| 4 * buffer.capacity();
        if bytes(&buffer) < SPARE_BYTES_MIN {
            return;
        }
        buffer.clear();
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.iter().map(bytes).sum::<usize>() + bytes(&buffer) <= SPARE_BYTES_MAX {
            spare.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_empty_and_no_more_than_allowed_is_kept() {
        let n = SPARE_BYTES_MAX / 4 / 3;
        let address = {
            let mut first = PixelBuffer::with_capacity(n);
            first.resize(n, 1.0);
            first.as_ptr()
        };
        let again = PixelBuffer::with_capacity(n - 1);
        assert!(again.is_empty() && again.as_ptr() == address);
        drop([again, PixelBuffer::with_capacity(n), PixelBuffer::with_capacity(n)]);
        drop(PixelBuffer::with_capacity(2 * n));
        let spare = SPARE.lock().unwrap();
        assert!(spare.iter().map(|buffer| 4 * buffer.capacity()).sum::<usize>() <= SPARE_BYTES_MAX);
    }
}
