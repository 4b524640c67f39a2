//! Memory for copies of trained weights, their moments and averages, which is used again for the next copy.
//!
//! Copying a gigabyte takes a tenth of a second; getting the memory for it from the system takes several
//! times that, and is done while something else goes on.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::params::Params;
use crate::tensor::{DeviceError, zeros};

/// Buffers for the copies of one model; none for a model on a GPU, whose values come into buffers of their
/// own.
#[derive(Debug, Default)]
pub struct Spare(Mutex<BTreeMap<usize, Buffers>>);

/// Buffers of one length.
#[derive(Debug, Default)]
struct Buffers {
    /// Most that are kept.
    most: usize,
    free: Vec<Vec<f32>>,
}

impl Spare {
    /// Place for so many copies of each trained parameter of a model, without memory for them yet.
    pub fn of(params: &[&Params], copies: usize) -> Self {
        let mut by_length: BTreeMap<usize, Buffers> = BTreeMap::new();
        let on_host = params.iter().filter(|params| !params.is_on_gpu());
        let all = on_host.flat_map(|params| params.iter());
        for parameter in all.filter(|parameter| parameter.weight.is_trained()) {
            by_length.entry(parameter.n_values()).or_default().most += copies;
        }
        Self(Mutex::new(by_length))
    }

    /// Gets the memory.
    ///
    /// # Errors
    /// When there is too little.
    pub fn fill(&self) -> Result<(), DeviceError> {
        for (length, buffers) in &mut *self.lock() {
            while buffers.free.len() < buffers.most {
                buffers.free.push(zeros(*length)?);
            }
        }
        Ok(())
    }

    /// Bytes of all buffers that are there.
    pub fn bytes(&self) -> u64 {
        let of_length = |(length, buffers): (&usize, &Buffers)| length * buffers.free.len();
        (size_of::<f32>() * self.lock().iter().map(of_length).sum::<usize>()) as u64
    }

    /// The same values in a buffer, or in new memory where none is left.
    ///
    /// # Errors
    /// When memory cannot hold the copy.
    pub(crate) fn copy(&self, values: &[f32]) -> Result<Vec<f32>, DeviceError> {
        let found = self.lock().get_mut(&values.len()).and_then(|buffers| buffers.free.pop());
        let mut copy = found.unwrap_or_default();
        copy.clear();
        copy.try_reserve_exact(values.len()).map_err(|_| DeviceError::OutOfMemory)?;
        copy.extend_from_slice(values);
        Ok(copy)
    }

    /// Takes a buffer back.
    pub(crate) fn put(&self, buffer: Vec<f32>) {
        let mut all = self.lock();
        let Some(buffers) = all.get_mut(&buffer.len()) else { return };
        if buffers.free.len() < buffers.most {
            buffers.free.push(buffer);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, Buffers>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again_and_no_more_are_kept_than_a_model_needs() {
        let params = Params::trained([("a".to_owned(), vec![5], vec![0.0; 5])]).unwrap();
        let spare = Spare::of(&[&params], 3);
        assert_eq!(spare.bytes(), 0);
        spare.fill().unwrap();
        assert_eq!(spare.bytes(), 60);
        let copy = spare.copy(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        assert_eq!((&copy[..], spare.bytes()), (&[1.0, 2.0, 3.0, 4.0, 5.0][..], 40));
        let place = copy.as_ptr();
        spare.put(copy);
        let again = spare.copy(&[9.0; 5]).unwrap();
        assert_eq!(again.as_ptr(), place);
        drop(again);
        (0..9).for_each(|_| spare.put(vec![0.0; 5]));
        spare.put(vec![0.0; 6]);
        assert_eq!(spare.bytes(), 60);
        assert_eq!(spare.copy(&[7.0; 6]).unwrap(), [7.0; 6]);
    }
}
