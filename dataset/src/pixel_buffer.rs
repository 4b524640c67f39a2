//! Memory for the pixels of batches, used again: a batch is tens of megabytes, and memory that is new to
//! the process is cleared page by page by the system, which takes a fifth of the time of a loader.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// Most bytes of either kind that lie ready.
const SPARE_BYTES_MAX: usize = 128 << 20;
/// Smaller buffers are left to the allocator.
const SPARE_BYTES_MIN: usize = 1 << 20;

/// What a pixel is: a number, or a value of 256.
pub trait Pixel: Sized + 'static {
    /// The buffers that lie ready.
    fn spare() -> &'static Mutex<Vec<Vec<Self>>>;
}

impl Pixel for f32 {
    fn spare() -> &'static Mutex<Vec<Vec<Self>>> {
        static SPARE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());
        &SPARE
    }
}

impl Pixel for u8 {
    fn spare() -> &'static Mutex<Vec<Vec<Self>>> {
        static SPARE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
        &SPARE
    }
}

/// Pixels whose memory is kept for others when they are dropped.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PixelBuffer<V: Pixel>(Vec<V>);

impl<V: Pixel> PixelBuffer<V> {
    /// An empty buffer with room for `n` pixels.
    pub(crate) fn with_capacity(n: usize) -> Self {
        let mut spare = V::spare().lock().unwrap_or_else(PoisonError::into_inner);
        // One that is far too large stays for a batch that needs it.
        let fits = |buffer: &Vec<V>| (n..=4 * n).contains(&buffer.capacity());
        let found = spare.iter().position(fits).map(|at| spare.swap_remove(at));
        Self(found.unwrap_or_else(|| Vec::with_capacity(n)))
    }
}

impl<V: Pixel> From<Vec<V>> for PixelBuffer<V> {
    fn from(pixels: Vec<V>) -> Self {
        Self(pixels)
    }
}

impl<V: Pixel> Deref for PixelBuffer<V> {
    type Target = Vec<V>;

    fn deref(&self) -> &Vec<V> {
        &self.0
    }
}

impl<V: Pixel> DerefMut for PixelBuffer<V> {
    fn deref_mut(&mut self) -> &mut Vec<V> {
        &mut self.0
    }
}

impl<V: Pixel> Drop for PixelBuffer<V> {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.0);
        let bytes = |buffer: &Vec<V>| size_of::<V>() * buffer.capacity();
        if bytes(&buffer) < SPARE_BYTES_MIN {
            return;
        }
        buffer.clear();
        let mut spare = V::spare().lock().unwrap_or_else(PoisonError::into_inner);
        if spare.iter().map(bytes).sum::<usize>() + bytes(&buffer) <= SPARE_BYTES_MAX {
            spare.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<V: Pixel + Clone>(pixel: V) {
        let n = SPARE_BYTES_MAX / size_of::<V>() / 3;
        let address = {
            let mut first = PixelBuffer::with_capacity(n);
            first.resize(n, pixel);
            first.as_ptr()
        };
        let again = PixelBuffer::<V>::with_capacity(n - 1);
        assert!(again.is_empty() && again.as_ptr() == address);
        drop([again, PixelBuffer::with_capacity(n), PixelBuffer::with_capacity(n)]);
        drop(PixelBuffer::<V>::with_capacity(2 * n));
        let spare = V::spare().lock().unwrap();
        let bytes = spare.iter().map(|buffer| size_of::<V>() * buffer.capacity());
        assert!(bytes.sum::<usize>() <= SPARE_BYTES_MAX);
    }

    #[test]
    fn memory_comes_back_empty_and_no_more_than_allowed_is_kept() {
        check(1.0_f32);
        check(1_u8);
    }
}
