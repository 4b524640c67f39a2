//! Names for dfdx's types, and the only file that spells its generics.
//!
//! What is dfdx's: the tape, the store of gradients and the loss. dfdx hides the buffers of its
//! tensors, so a custom operation on them would copy every input. Activations and weights therefore
//! live in shared buffers of our own; a one-element dfdx tensor is the key under which the store
//! holds a gradient.
//!
//! Every activation is a [`Matrix`] `[rows, width]` in row-major order: batch, time and heads are
//! folded into the rows, and each operation is told how to read them. A [`Weight`] is either
//! trained (the tape knows its key) or frozen (a plain buffer, for which no gradient is
//! ever computed or stored).

use std::borrow::Cow;
use std::sync::Arc;

use dfdx::prelude::{
    Backward, NoneTape, OwnedTape, PutTape, Rank0, SplitTape, Tape, Tensor, TensorFromVec, Trace,
    TryMul,
};

use crate::buffer::Buffer;

/// Where tensors live.
pub(crate) type Device = dfdx::tensor::Cpu;
/// What a device reports when it runs out of memory.
pub type DeviceError = dfdx::tensor::CpuError;
/// A loss.
pub(crate) type Scalar<T = NoneTape> = Tensor<Rank0, f32, Device, T>;
/// The tape of a training pass.
pub(crate) type Recording = OwnedTape<f32, Device>;
/// The tape of a forward pass that is never differentiated.
pub(crate) type NotRecording = NoneTape;
/// dfdx's gradient store, as backward operations see it.
pub(crate) type Store = dfdx::tensor::Gradients<f32, Device>;

/// A tape, recording or not.
pub(crate) trait Record: Tape<f32, Device> {}
impl<T: Tape<f32, Device>> Record for T {}

/// Gradients of trained weights, summed over the losses that were differentiated into them.
#[derive(Debug)]
pub struct Gradients(pub(crate) Store);

impl Default for Gradients {
    fn default() -> Self {
        Self(Store::leaky())
    }
}

impl Gradients {
    /// Starts a recording that adds to these gradients.
    pub(crate) fn into_tape(self) -> Result<Recording, DeviceError> {
        Ok(scalar(0.0)?.traced(self.0).split_tape().1)
    }
}

fn scalar(value: f32) -> Result<Scalar, DeviceError> {
    Device::default().try_tensor_from_vec(vec![value], ())
}

/// `[rows, width]`, row-major, shared.
#[derive(Debug, Clone)]
pub(crate) struct Matrix<T = NotRecording> {
    values: Arc<Buffer>,
    width: usize,
    /// Where the gradient lies; none if no trained weight lies behind this matrix.
    key: Option<Scalar>,
    tape: T,
}

impl Matrix {
    /// A matrix that needs no gradient.
    pub(crate) fn constant(values: Buffer, width: usize) -> Self {
        Self { values: Arc::new(values), width, key: None, tape: NoneTape }
    }

    /// A matrix that gets a gradient.
    pub(crate) fn variable(values: Buffer, width: usize) -> Result<Self, DeviceError> {
        Ok(Self { key: Some(scalar(0.0)?), ..Self::constant(values, width) })
    }

    /// Lets the tape travel with this matrix.
    pub(crate) fn with<T: Record>(self, tape: T) -> Matrix<T> {
        Matrix { values: self.values, width: self.width, key: self.key, tape }
    }

    /// True if a gradient of this matrix is of use.
    pub(crate) fn wants_gradient(&self) -> bool {
        self.key.is_some()
    }

    /// The place of the gradient alone: the values may be freed.
    pub(crate) fn without_values(self) -> Self {
        Self { values: Arc::new(Buffer::from(Vec::new())), ..self }
    }

    /// Moves the gradient out of the store, if one was given.
    #[cfg(test)]
    pub(crate) fn take_gradient(&self, store: &mut Store) -> Result<Option<Buffer>, DeviceError> {
        let Some(key) = &self.key else { return Ok(None) };
        let gradient = std::mem::take(&mut **store.get_or_alloc_mut(key)?);
        Ok((gradient.len() == self.values.len()).then(|| gradient.into()))
    }

    /// Adds to the gradient; the first to give one gives the buffer itself.
    pub(crate) fn give_gradient(
        &self,
        store: &mut Store,
        delta: Buffer,
    ) -> Result<(), DeviceError> {
        let Some(key) = &self.key else { return Ok(()) };
        if delta.is_empty() {
            return Ok(());
        }
        let gradient = &mut **store.get_or_alloc_mut(key)?;
        if gradient.len() == delta.len() {
            crate::ops::add_to(gradient, &delta);
        } else {
            *gradient = delta.into_vec();
        }
        Ok(())
    }
}

impl<T> Matrix<T> {
    /// The values, row by row.
    pub(crate) fn values(&self) -> &[f32] {
        &self.values
    }

    /// Number of columns.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.values.len() / self.width
    }

    /// True if both are the same values in the same place.
    pub(crate) fn shares_values_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.values, &other.values)
    }

    /// The values, copied only if others share them.
    pub(crate) fn into_values(self) -> Buffer {
        Arc::try_unwrap(self.values).unwrap_or_else(|shared| shared.to_vec().into())
    }

    /// The matrix and its tape, apart.
    pub(crate) fn split(self) -> (Matrix, T) {
        let Self { values, width, key, tape } = self;
        (Matrix { values, width, key, tape: NoneTape }, tape)
    }
}

/// Makes an operation's output and puts its backward pass on the tape.
///
/// `wanted` says whether any input or weight of the operation takes a gradient; if not, nothing is
/// recorded. `backward` gets the gradient of the output by value: the operation that made a matrix
/// is the last to read its gradient.
pub(crate) fn record<T: Record>(
    values: Buffer,
    width: usize,
    mut tape: T,
    wanted: bool,
    backward: impl FnOnce(Buffer, &mut Store) -> Result<(), DeviceError> + 'static,
) -> Result<Matrix<T>, DeviceError> {
    if !(T::OWNS_TAPE && wanted) {
        return Ok(Matrix::constant(values, width).with(tape));
    }
    let n = values.len();
    let out = Matrix::variable(values, width)?;
    // Only the key is kept for the backward pass: the output's own values may be freed before.
    let key = out.clone().without_values();
    tape.add_backward_op(move |store| {
        let Some(key) = &key.key else { return Ok(()) };
        let gradient = std::mem::take(&mut **store.get_or_alloc_mut(key)?);
        // A length other than the output's means that no loss depends on it.
        if gradient.len() == n { backward(gradient.into(), store) } else { Ok(()) }
    });
    Ok(out.with(tape))
}

/// As [`record`], for a loss. `backward` gets the loss's own gradient.
pub(crate) fn record_loss<T: Record>(
    value: f32,
    mut tape: T,
    backward: impl FnOnce(f32, &mut Store) -> Result<(), DeviceError> + 'static,
) -> Result<Scalar<T>, DeviceError> {
    let out = scalar(value)?;
    if T::OWNS_TAPE {
        let ghost = out.ghost();
        tape.add_backward_op(move |store| {
            let gradient = store.get_or_alloc_mut(&ghost)?[0];
            backward(gradient, store)
        });
    }
    Ok(out.put_tape(tape))
}

/// Runs the tape of `scale * loss` backwards: the loss's own value and the gradients.
pub(crate) fn differentiate(
    loss: Scalar<Recording>,
    scale: f32,
) -> Result<(f32, Gradients), DeviceError> {
    let value = value_of(&loss);
    Ok((value, Gradients(loss.try_mul(scale)?.try_backward()?)))
}

/// Adds to `store` the gradients of everything behind what `forward` makes, given the gradient
/// `grad_out` of that.
pub(crate) fn differentiate_from(
    store: &mut Store,
    grad_out: Buffer,
    forward: impl FnOnce(Recording) -> Result<Matrix<Recording>, DeviceError>,
) -> Result<(), DeviceError> {
    let so_far = std::mem::replace(store, Store::leaky());
    let (out, tape) = forward(Gradients(so_far).into_tape()?)?.split();
    let loss = record_loss(0.0, tape, move |_, store| out.give_gradient(store, grad_out))?;
    *store = loss.try_backward()?;
    Ok(())
}

/// The value of a loss.
pub(crate) fn value_of<T>(loss: &Scalar<T>) -> f32 {
    loss[[]]
}

/// A trained weight: values of our own under a key of dfdx's, as with a [`Matrix`], so that operations
/// read them where they lie.
#[derive(Debug, Clone)]
pub struct TrainedWeight {
    values: Arc<Vec<f32>>,
    key: Scalar,
}

impl TrainedWeight {
    /// The gradient, zeros if there is none yet.
    pub(crate) fn gradient<'a>(&self, store: &'a mut Store) -> Result<&'a mut [f32], DeviceError> {
        let gradient = &mut **store.get_or_alloc_mut(&self.key)?;
        if gradient.len() != self.values.len() {
            *gradient = zeros(self.values.len())?;
        }
        Ok(gradient)
    }

    /// The values, to be changed; copied if a clone of the model shares them.
    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        Arc::make_mut(&mut self.values).as_mut_slice()
    }
}

/// `n` zeros; an error where memory cannot hold them.
fn zeros(n: usize) -> Result<Vec<f32>, DeviceError> {
    let mut values = Vec::new();
    values.try_reserve_exact(n).map_err(|_| DeviceError::OutOfMemory)?;
    values.resize(n, 0.0);
    Ok(values)
}

/// The values of one parameter, trained or frozen.
#[derive(Debug, Clone)]
pub enum Weight {
    /// Known to the tape; gets a gradient.
    Trained(TrainedWeight),
    /// A plain buffer that operations only read.
    Frozen(Arc<Vec<f32>>),
}

impl Weight {
    /// A weight that is trained.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn trained(values: Vec<f32>) -> Result<Self, DeviceError> {
        Ok(Self::Trained(TrainedWeight { values: Arc::new(values), key: scalar(0.0)? }))
    }

    /// The values.
    pub fn values(&self) -> Cow<'_, [f32]> {
        let (Self::Trained(TrainedWeight { values, .. }) | Self::Frozen(values)) = self;
        Cow::Borrowed(values)
    }

    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        self.values().len()
    }

    /// True if the weight gets a gradient.
    pub fn is_trained(&self) -> bool {
        matches!(self, Self::Trained(_))
    }

    /// Lets `add` add to this weight's gradient; does nothing for a frozen weight.
    pub(crate) fn accumulate(
        &self,
        store: &mut Store,
        add: impl FnOnce(&mut [f32]),
    ) -> Result<(), DeviceError> {
        if let Self::Trained(trained) = self {
            add(trained.gradient(store)?);
        }
        Ok(())
    }
}
