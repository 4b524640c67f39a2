//! A stage of the model as one operation that keeps only its input: the backward pass runs the
//! stage once more, this time recording.
//!
//! What a stage makes on the way is then held for one stage at a time, so that the memory of a
//! training step grows by one matrix a stage.

#[cfg(feature = "cuda")]
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::tensor::{DeviceError, Matrix, Record, Recording, Store, differentiate_from, record};
#[cfg(feature = "cuda")]
use crate::tensor::{differentiate_from_array, record_on_gpu};

/// Which blocks of a training step keep only their input for the backward pass, which makes the rest
/// a second time: less memory, more time, the same numbers bit by bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recompute {
    /// None.
    Nothing,
    /// Frozen ones.
    #[default]
    Frozen,
    /// Frozen and trained ones.
    All,
}

impl Recompute {
    /// Whether a block, trained or frozen, keeps only its input.
    pub(crate) fn covers(self, trained: bool) -> bool {
        match self {
            Self::Nothing => false,
            Self::Frozen => !trained,
            Self::All => true,
        }
    }
}

/// A part of the model that can run again on the same input, with the same result bit by bit.
pub(crate) trait Stage: 'static {
    /// Whether any of the stage's own weights takes a gradient.
    fn is_trained(&self) -> bool;

    /// `[N, D]` to `[N, D']`.
    ///
    /// # Errors
    /// When the device fails.
    fn run<T: Record>(&self, x: Matrix<T>) -> Result<Matrix<T>, DeviceError>;

    /// Runs again to be differentiated. The values of the result need not be made: they are known.
    ///
    /// # Errors
    /// When the device fails.
    fn run_again(&self, x: Matrix<Recording>) -> Result<Matrix<Recording>, DeviceError> {
        self.run(x)
    }
}

/// What `stage` makes of `x`.
///
/// # Errors
/// When the device fails.
pub(crate) fn recomputed<T: Record>(
    x: Matrix<T>,
    stage: impl Stage,
) -> Result<Matrix<T>, DeviceError> {
    let (x, tape) = x.split();
    let out = stage.run(x.clone())?;
    let width = out.width();
    let wanted = x.wants_gradient() || stage.is_trained();
    #[cfg(feature = "cuda")]
    if let Some(values) = out.array() {
        let values = Arc::clone(values);
        return record_on_gpu(values, width, tape, wanted, move |grad_out, store| {
            differentiate_from_array(store, grad_out, |tape| stage.run_again(x.with(tape)))
        });
    }
    record(out.into_values(), width, tape, wanted, move |grad_out, store: &mut Store| {
        differentiate_from(store, grad_out, |tape| stage.run_again(x.with(tape)))
    })
}
