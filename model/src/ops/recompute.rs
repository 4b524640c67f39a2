//! A stage of the model as one operation that keeps only its input: the backward pass runs the
//! stage once more, this time recording.
//!
//! What a stage makes on the way is then held for one stage at a time, so that the memory of a
//! training step grows by one matrix a stage.

use crate::tensor::{DeviceError, Matrix, Record, Store, differentiate_from, record};

/// A part of the model that can run again on the same input, with the same result bit by bit.
pub(crate) trait Stage: 'static {
    /// Whether any of the stage's own weights takes a gradient.
    fn is_trained(&self) -> bool;

    /// `[N, D]` to `[N, D']`.
    ///
    /// # Errors
    /// When the device fails.
    fn run<T: Record>(&self, x: Matrix<T>) -> Result<Matrix<T>, DeviceError>;
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
    record(out.into_values(), width, tape, wanted, move |grad_out, store: &mut Store| {
        differentiate_from(store, grad_out, |tape| stage.run(x.with(tape)))
    })
}
