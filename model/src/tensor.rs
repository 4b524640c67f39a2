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
use std::cell::RefCell;
use std::sync::Arc;

use dfdx::prelude::{
    Backward, NoneTape, OwnedTape, PutTape, Rank0, SplitTape, Tape as _, Tensor, TensorFromVec,
    Trace, TryMul,
};

use crate::buffer::Buffer;
#[cfg(feature = "cuda")]
use crate::cuda::{Array, CudaError, Gpu};
#[cfg(feature = "cuda")]
use crate::device_weight::{DeviceGradients, DeviceWeight};
#[cfg(feature = "cuda")]
use crate::params::Training;
use crate::spare::Spare;

/// Where keys of gradients live, and all values that are not on a GPU.
pub(crate) type HostDevice = dfdx::tensor::Cpu;
type HostError = dfdx::tensor::CpuError;
type HostStore = dfdx::tensor::Gradients<f32, HostDevice>;
type Key = Tensor<Rank0, f32, HostDevice>;
/// The tape of a forward pass that is never differentiated.
pub(crate) type NotRecording = NoneTape;

/// Why a device could not do its work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The host's memory is full.
    #[error("out of memory")]
    OutOfMemory,
    /// A GPU failed.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

impl From<HostError> for DeviceError {
    fn from(_: HostError) -> Self {
        // The other error, too few elements for a shape, cannot come from scalars.
        FAILURE.take().unwrap_or(Self::OutOfMemory)
    }
}

thread_local! {
    /// What a backward operation failed of: dfdx's tape carries errors of its own alone.
    static FAILURE: RefCell<Option<DeviceError>> = const { RefCell::new(None) };
}

/// Gradients, as backward operations see them.
#[derive(Debug)]
pub(crate) struct Store {
    host: HostStore,
    #[cfg(feature = "cuda")]
    device: DeviceGradients,
}

impl Store {
    fn empty() -> Self {
        Self {
            host: HostStore::leaky(),
            #[cfg(feature = "cuda")]
            device: DeviceGradients::default(),
        }
    }

    /// The gradients that are on a GPU, to be read.
    #[cfg(feature = "cuda")]
    pub(crate) fn device_ref(&self) -> &DeviceGradients {
        &self.device
    }

    /// The gradients that are on a GPU.
    #[cfg(feature = "cuda")]
    pub(crate) fn device(&mut self) -> &mut DeviceGradients {
        &mut self.device
    }
}

/// Whether and where a forward pass is recorded.
pub(crate) trait Record: Default {
    /// Whether it is.
    const OWNS_TAPE: bool;

    /// Puts a backward operation on the tape; does nothing where nothing is recorded.
    fn push(&mut self, operation: impl FnOnce(&mut Store) -> Result<(), DeviceError> + 'static);
}

impl Record for NotRecording {
    const OWNS_TAPE: bool = false;

    fn push(&mut self, _: impl FnOnce(&mut Store) -> Result<(), DeviceError> + 'static) {}
}

/// The tape of a training pass: dfdx's, and beside its store of gradients that of a GPU.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    tape: OwnedTape<f32, HostDevice>,
    #[cfg(feature = "cuda")]
    device: std::rc::Rc<RefCell<DeviceGradients>>,
}

impl Record for Recording {
    const OWNS_TAPE: bool = true;

    fn push(&mut self, operation: impl FnOnce(&mut Store) -> Result<(), DeviceError> + 'static) {
        #[cfg(feature = "cuda")]
        let device = std::rc::Rc::clone(&self.device);
        self.tape.add_backward_op(move |host| {
            let mut store = Store {
                host: std::mem::replace(host, HostStore::leaky()),
                #[cfg(feature = "cuda")]
                device: device.take(),
            };
            let result = operation(&mut store);
            *host = store.host;
            #[cfg(feature = "cuda")]
            device.replace(store.device);
            result.map_err(|error| {
                FAILURE.set(Some(error));
                HostError::OutOfMemory
            })
        });
    }
}

/// The value of a loss.
#[derive(Debug)]
pub(crate) enum LossValue {
    /// Known.
    Host(f32),
    /// One f64 on a GPU, which is known once it is read, times a factor.
    #[cfg(feature = "cuda")]
    Cuda(Array, f32),
}

impl From<f32> for LossValue {
    fn from(value: f32) -> Self {
        Self::Host(value)
    }
}

/// A loss.
#[derive(Debug)]
pub(crate) struct Loss<T = NotRecording> {
    value: LossValue,
    /// A term that is differentiated with the loss and stands beside its value.
    beside: Option<LossValue>,
    key: Key,
    tape: T,
}

impl Loss {
    /// Adds to the gradient of this loss.
    #[cfg(test)]
    pub(crate) fn give_gradient(&self, store: &mut Store, by: f32) -> Result<(), DeviceError> {
        store.host.get_or_alloc_mut(&self.key)?[0] += by;
        Ok(())
    }
}

impl<T> Loss<T> {
    /// The loss with a term beside it, which the same tape differentiates.
    pub(crate) fn beside(self, term: Option<LossValue>) -> Self {
        Self { beside: term, ..self }
    }

    /// The loss and its tape, apart.
    #[cfg(test)]
    pub(crate) fn split(self) -> (Loss, T) {
        (Loss { value: self.value, beside: self.beside, key: self.key, tape: NoneTape }, self.tape)
    }
}

/// Gradients of trained weights, summed over the losses that were differentiated into them.
#[derive(Debug)]
pub struct Gradients(pub(crate) Store);

impl Default for Gradients {
    fn default() -> Self {
        Self(Store::empty())
    }
}

impl Gradients {
    /// Starts a recording that adds to these gradients.
    pub(crate) fn into_tape(self) -> Result<Recording, DeviceError> {
        Ok(Recording {
            tape: scalar(0.0)?.traced(self.0.host).split_tape().1,
            #[cfg(feature = "cuda")]
            device: std::rc::Rc::new(RefCell::new(self.0.device)),
        })
    }
}

fn scalar(value: f32) -> Result<Key, DeviceError> {
    Ok(HostDevice::default().try_tensor_from_vec(vec![value], ())?)
}

/// Values of a matrix.
#[derive(Debug, Clone)]
enum Values {
    Host(Arc<Buffer>),
    #[cfg(feature = "cuda")]
    Cuda(Arc<Array>),
}

/// Where a gradient lies.
#[derive(Debug, Clone)]
enum Slot {
    Host(Key),
    #[cfg(feature = "cuda")]
    Cuda(u64),
}

/// `[rows, width]`, row-major, shared.
#[derive(Debug, Clone)]
pub(crate) struct Matrix<T = NotRecording> {
    values: Values,
    width: usize,
    /// Where the gradient lies; none if no trained weight lies behind this matrix.
    slot: Option<Slot>,
    tape: T,
}

impl Matrix {
    /// A matrix that needs no gradient.
    pub(crate) fn constant(values: Buffer, width: usize) -> Self {
        Self { values: Values::Host(Arc::new(values)), width, slot: None, tape: NoneTape }
    }

    /// A matrix that gets a gradient.
    #[cfg(any(test, feature = "ops-bench"))]
    pub(crate) fn variable(values: Buffer, width: usize) -> Result<Self, DeviceError> {
        Ok(Self { slot: Some(Slot::Host(scalar(0.0)?)), ..Self::constant(values, width) })
    }

    /// A matrix on a GPU, with or without gradient.
    #[cfg(feature = "cuda")]
    pub(crate) fn on_gpu(values: Arc<Array>, width: usize, wants_gradient: bool) -> Self {
        let slot = wants_gradient.then(|| Slot::Cuda(crate::device_weight::new_id()));
        Self { values: Values::Cuda(values), width, slot, tape: NoneTape }
    }

    /// Lets the tape travel with this matrix.
    pub(crate) fn with<T: Record>(self, tape: T) -> Matrix<T> {
        Matrix { values: self.values, width: self.width, slot: self.slot, tape }
    }

    /// True if a gradient of this matrix is of use.
    pub(crate) fn wants_gradient(&self) -> bool {
        self.slot.is_some()
    }

    /// The place of the gradient alone: the values may be freed.
    pub(crate) fn without_values(self) -> Self {
        let values = match self.values {
            #[cfg(feature = "cuda")]
            Values::Cuda(array) => Values::Cuda(array.gpu().nothing()),
            Values::Host(_) => Values::Host(Arc::new(Buffer::from(Vec::new()))),
        };
        Self { values, ..self }
    }

    /// The same values without gradient.
    #[cfg(test)]
    pub(crate) fn as_constant(&self) -> Self {
        Self { slot: None, ..self.clone() }
    }

    /// Moves the gradient out of the store, if one was given.
    #[cfg(test)]
    pub(crate) fn take_gradient(&self, store: &mut Store) -> Result<Option<Buffer>, DeviceError> {
        match &self.slot {
            None => Ok(None),
            Some(Slot::Host(key)) => {
                let gradient = std::mem::take(&mut **store.host.get_or_alloc_mut(key)?);
                Ok((gradient.len() == self.values().len()).then(|| gradient.into()))
            }
            #[cfg(feature = "cuda")]
            Some(Slot::Cuda(id)) => {
                let array = store.device.remove(*id);
                Ok(array.map(|array| array.to_vec()).transpose()?.map(Buffer::from))
            }
        }
    }

    /// Adds to the gradient; the first to give one gives the buffer itself.
    pub(crate) fn give_gradient(
        &self,
        store: &mut Store,
        delta: Buffer,
    ) -> Result<(), DeviceError> {
        let key = match &self.slot {
            None => return Ok(()),
            Some(Slot::Host(key)) => key,
            #[cfg(feature = "cuda")]
            Some(Slot::Cuda(_)) => unreachable!("a gradient on the host of a matrix on a GPU"),
        };
        if delta.is_empty() {
            return Ok(());
        }
        let gradient = &mut **store.host.get_or_alloc_mut(key)?;
        if gradient.len() == delta.len() {
            crate::ops::add_to(gradient, &delta);
        } else {
            *gradient = delta.into_vec();
        }
        Ok(())
    }

    /// As [`Matrix::give_gradient`], wherever the matrix is.
    #[cfg(test)]
    pub(crate) fn give_values(
        &self,
        store: &mut Store,
        delta: Vec<f32>,
    ) -> Result<(), DeviceError> {
        #[cfg(feature = "cuda")]
        if let Some(array) = self.array() {
            return self.give_array(store, array.gpu().upload(&delta)?);
        }
        self.give_gradient(store, delta.into())
    }

    /// As [`Matrix::give_gradient`], on a GPU. Sums are f32 in weights, and of the activations' format here.
    #[cfg(feature = "cuda")]
    pub(crate) fn give_array(&self, store: &mut Store, delta: Array) -> Result<(), DeviceError> {
        match &self.slot {
            Some(Slot::Cuda(id)) if delta.len() > 0 => Ok(store.device.add(*id, delta)?),
            _ => Ok(()),
        }
    }
}

impl<T> Matrix<T> {
    /// The values, row by row.
    ///
    /// # Panics
    /// If the matrix is on a GPU: an operation without a part for GPUs must bring it home first.
    pub(crate) fn values(&self) -> &[f32] {
        match &self.values {
            Values::Host(values) => values,
            #[cfg(feature = "cuda")]
            Values::Cuda(_) => unreachable!("the values are on a GPU"),
        }
    }

    /// The values, if they are on a GPU.
    #[cfg(feature = "cuda")]
    pub(crate) fn array(&self) -> Option<&Arc<Array>> {
        match &self.values {
            Values::Host(_) => None,
            Values::Cuda(array) => Some(array),
        }
    }

    /// The values of a matrix that is on a GPU.
    ///
    /// # Panics
    /// If it is not: an operation chooses its part by its first matrix, and all others lie beside that one.
    #[cfg(feature = "cuda")]
    pub(crate) fn gpu_array(&self) -> &Arc<Array> {
        self.array().expect("all matrices of an operation are on one device")
    }

    /// A copy of the values, wherever they are.
    ///
    /// # Errors
    /// When the device fails.
    #[cfg_attr(not(feature = "cuda"), expect(clippy::unnecessary_wraps, reason = "GPUs need it"))]
    pub(crate) fn to_vec(&self) -> Result<Vec<f32>, DeviceError> {
        match &self.values {
            Values::Host(values) => Ok(values.to_vec()),
            #[cfg(feature = "cuda")]
            Values::Cuda(array) => Ok(array.to_vec()?),
        }
    }

    /// Number of columns.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        let n = match &self.values {
            Values::Host(values) => values.len(),
            #[cfg(feature = "cuda")]
            Values::Cuda(array) => array.len(),
        };
        n / self.width
    }

    /// True if both are the same values in the same place.
    pub(crate) fn shares_values_with(&self, other: &Self) -> bool {
        match (&self.values, &other.values) {
            (Values::Host(a), Values::Host(b)) => Arc::ptr_eq(a, b),
            #[cfg(feature = "cuda")]
            (Values::Cuda(a), Values::Cuda(b)) => Arc::ptr_eq(a, b),
            #[cfg(feature = "cuda")]
            _ => false,
        }
    }

    /// The values, copied only if others share them.
    pub(crate) fn into_values(self) -> Buffer {
        match self.values {
            Values::Host(values) => {
                Arc::try_unwrap(values).unwrap_or_else(|shared| shared.to_vec().into())
            }
            #[cfg(feature = "cuda")]
            Values::Cuda(_) => unreachable!("the values are on a GPU"),
        }
    }

    /// The matrix and its tape, apart.
    pub(crate) fn split(self) -> (Matrix, T) {
        let Self { values, width, slot, tape } = self;
        (Matrix { values, width, slot, tape: NoneTape }, tape)
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
    let key = scalar(0.0)?;
    let slot = Some(Slot::Host(key.clone()));
    let out = Matrix { slot, ..Matrix::constant(values, width) };
    tape.push(move |store| {
        let gradient = std::mem::take(&mut **store.host.get_or_alloc_mut(&key)?);
        // A length other than the output's means that no loss depends on it.
        if gradient.len() == n { backward(gradient.into(), store) } else { Ok(()) }
    });
    Ok(out.with(tape))
}

/// As [`record`], on a GPU.
#[expect(clippy::unnecessary_wraps, reason = "as `record` has it")]
#[cfg(feature = "cuda")]
pub(crate) fn record_on_gpu<T: Record>(
    values: impl Into<Arc<Array>>,
    width: usize,
    mut tape: T,
    wanted: bool,
    backward: impl FnOnce(Array, &mut Store) -> Result<(), DeviceError> + 'static,
) -> Result<Matrix<T>, DeviceError> {
    let wanted = T::OWNS_TAPE && wanted;
    let out = Matrix::on_gpu(values.into(), width, wanted);
    if let Some(Slot::Cuda(id)) = out.slot {
        tape.push(move |store| {
            store.device.remove(id).map_or(Ok(()), |gradient| backward(gradient, store))
        });
    }
    Ok(out.with(tape))
}

/// As [`record`], for a loss. `backward` gets the loss's own gradient.
pub(crate) fn record_loss<T: Record>(
    value: impl Into<LossValue>,
    mut tape: T,
    backward: impl FnOnce(f32, &mut Store) -> Result<(), DeviceError> + 'static,
) -> Result<Loss<T>, DeviceError> {
    let key = scalar(0.0)?;
    if T::OWNS_TAPE {
        let key = key.clone();
        tape.push(move |store| {
            let gradient = store.host.get_or_alloc_mut(&key)?[0];
            backward(gradient, store)
        });
    }
    Ok(Loss { value: value.into(), beside: None, key, tape })
}

/// Runs the tape of `scale * loss` backwards: the loss's own value and the gradients.
pub(crate) fn differentiate(
    loss: Loss<Recording>,
    scale: f32,
) -> Result<(f32, Gradients), DeviceError> {
    let (value, _, gradients) = differentiate_terms(loss, scale)?;
    Ok((value, gradients))
}

/// As [`differentiate`]: the loss's own value, the term beside it, and the gradients of both.
pub(crate) fn differentiate_terms(
    loss: Loss<Recording>,
    scale: f32,
) -> Result<(f32, Option<f32>, Gradients), DeviceError> {
    let Loss { value, beside, key, tape } = loss;
    // The value comes last: it is there long before a GPU has made the gradients, but who asks waits.
    let host = key.put_tape(tape.tape).try_mul(scale)?.try_backward()?;
    let store = Store {
        host,
        #[cfg(feature = "cuda")]
        device: tape.device.take(),
    };
    let beside = beside.as_ref().map(read).transpose()?;
    Ok((read(&value)?, beside, Gradients(store)))
}

/// Adds to `store` the gradients of everything behind what `forward` makes, given the gradient of
/// that, which `give` adds.
fn differentiate_behind(
    store: &mut Store,
    give: impl FnOnce(&Matrix, &mut Store) -> Result<(), DeviceError> + 'static,
    forward: impl FnOnce(Recording) -> Result<Matrix<Recording>, DeviceError>,
) -> Result<(), DeviceError> {
    let so_far = std::mem::replace(store, Store::empty());
    let (out, tape) = forward(Gradients(so_far).into_tape()?)?.split();
    let loss = record_loss(0.0, tape, move |_, store| give(&out, store))?;
    *store = differentiate(loss, 1.0)?.1.0;
    Ok(())
}

/// Adds to `store` the gradients of everything behind what `forward` makes, given the gradient
/// `grad_out` of that.
pub(crate) fn differentiate_from(
    store: &mut Store,
    grad_out: Buffer,
    forward: impl FnOnce(Recording) -> Result<Matrix<Recording>, DeviceError>,
) -> Result<(), DeviceError> {
    differentiate_behind(store, |out, store| out.give_gradient(store, grad_out), forward)
}

/// As [`differentiate_from`], on a GPU.
#[cfg(feature = "cuda")]
pub(crate) fn differentiate_from_array(
    store: &mut Store,
    grad_out: Array,
    forward: impl FnOnce(Recording) -> Result<Matrix<Recording>, DeviceError>,
) -> Result<(), DeviceError> {
    differentiate_behind(store, |out, store| out.give_array(store, grad_out), forward)
}

/// The value of a loss and of the term beside it, together.
#[cfg(test)]
pub(crate) fn whole_value_of<T>(loss: &Loss<T>) -> Result<f32, DeviceError> {
    Ok(read(&loss.value)? + loss.beside.as_ref().map_or(Ok(0.0), read)?)
}

/// The value of a loss.
///
/// # Errors
/// When the device fails.
pub(crate) fn value_of<T>(loss: &Loss<T>) -> Result<f32, DeviceError> {
    read(&loss.value)
}

#[cfg_attr(not(feature = "cuda"), expect(clippy::unnecessary_wraps, reason = "GPUs need it"))]
fn read(value: &LossValue) -> Result<f32, DeviceError> {
    match value {
        LossValue::Host(value) => Ok(*value),
        #[cfg(feature = "cuda")]
        LossValue::Cuda(sum, factor) => Ok(sum.gpu().download_f64(sum)?[0] as f32 * factor),
    }
}

/// A trained weight: values of our own under a key of dfdx's, as with a [`Matrix`], so that operations
/// read them where they lie.
#[derive(Debug, Clone)]
pub struct TrainedWeight {
    values: Arc<Vec<f32>>,
    key: Key,
    /// The values, if they are on a GPU: there are none on the host then.
    #[cfg(feature = "cuda")]
    device: Option<Arc<DeviceWeight>>,
}

impl TrainedWeight {
    /// The gradient, zeros if there is none yet.
    pub(crate) fn gradient<'a>(&self, store: &'a mut Store) -> Result<&'a mut [f32], DeviceError> {
        #[cfg(feature = "cuda")]
        if let Some(device) = &self.device {
            // A copy, which lies where a gradient of the host would.
            let values = device.gradient(&mut store.device)?;
            **store.host.get_or_alloc_mut(&self.key)? = values;
            return Ok(&mut **store.host.get_or_alloc_mut(&self.key)?);
        }
        let gradient = &mut **store.host.get_or_alloc_mut(&self.key)?;
        if gradient.len() != self.values.len() {
            *gradient = zeros(self.values.len())?;
        }
        Ok(gradient)
    }

    /// Lets `change` change the values; they are copied if a clone of the model shares them.
    #[cfg_attr(not(feature = "cuda"), expect(clippy::unnecessary_wraps, reason = "GPUs need it"))]
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut [f32])) -> Result<(), DeviceError> {
        #[cfg(feature = "cuda")]
        if let Some(device) = &mut self.device {
            let mut values = device.values()?;
            change(&mut values);
            *device = Arc::new(device.with_values(&values)?);
            return Ok(());
        }
        change(Arc::make_mut(&mut self.values).as_mut_slice());
        Ok(())
    }

    /// The values of a weight that is not on a GPU.
    pub(crate) fn host_values(&self) -> &[f32] {
        &self.values
    }

    /// Where the weight is on a GPU, if it is.
    #[cfg(feature = "cuda")]
    pub(crate) fn on_gpu(&self) -> Option<&DeviceWeight> {
        self.device.as_deref()
    }

    /// Whether the values are on a GPU.
    #[cfg(feature = "cuda")]
    pub(crate) fn is_on_gpu(&self) -> bool {
        self.device.is_some()
    }

    /// The values on a GPU, for changes in their place; copied if a clone of the model shares them.
    #[cfg(feature = "cuda")]
    pub(crate) fn own_device(&mut self) -> Result<Option<&DeviceWeight>, DeviceError> {
        let Some(device) = &mut self.device else { return Ok(None) };
        if Arc::get_mut(device).is_none() {
            *device = Arc::new(device.copied()?);
        }
        Ok(Some(device))
    }
}

/// `n` zeros; an error where memory cannot hold them.
pub(crate) fn zeros(n: usize) -> Result<Vec<f32>, DeviceError> {
    let mut values = Vec::new();
    values.try_reserve_exact(n).map_err(|_| DeviceError::OutOfMemory)?;
    values.resize(n, 0.0);
    Ok(values)
}

/// A frozen weight.
#[derive(Debug, Clone)]
pub struct FrozenWeight {
    values: Arc<Vec<f32>>,
    /// A copy on a GPU.
    #[cfg(feature = "cuda")]
    device: Option<Arc<DeviceWeight>>,
}

impl From<Vec<f32>> for FrozenWeight {
    fn from(values: Vec<f32>) -> Self {
        Self {
            values: Arc::new(values),
            #[cfg(feature = "cuda")]
            device: None,
        }
    }
}

/// The values of one parameter, trained or frozen.
#[derive(Debug, Clone)]
pub enum Weight {
    /// Known to the tape; gets a gradient.
    Trained(TrainedWeight),
    /// A plain buffer that operations only read.
    Frozen(FrozenWeight),
}

impl Weight {
    /// A weight that is trained.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn trained(values: Vec<f32>) -> Result<Self, DeviceError> {
        Ok(Self::Trained(TrainedWeight {
            values: Arc::new(values),
            key: scalar(0.0)?,
            #[cfg(feature = "cuda")]
            device: None,
        }))
    }

    /// The values; copied from a GPU if they are trained there.
    ///
    /// # Panics
    /// If a GPU that holds them has failed.
    pub fn values(&self) -> Cow<'_, [f32]> {
        #[cfg(feature = "cuda")]
        if let Self::Trained(TrainedWeight { device: Some(device), .. }) = self {
            return Cow::Owned(device.values().expect("the GPU can still be read"));
        }
        let (Self::Trained(TrainedWeight { values, .. })
        | Self::Frozen(FrozenWeight { values, .. })) = self;
        Cow::Borrowed(values)
    }

    /// The same values at rest, on the host: a copy of those that are trained, the very ones of those that
    /// are not.
    ///
    /// # Errors
    /// When memory cannot hold the copy, or a GPU fails.
    pub(crate) fn at_rest(&self, spare: &Spare) -> Result<Self, DeviceError> {
        let values = match self {
            #[cfg(feature = "cuda")]
            Self::Trained(TrainedWeight { device: Some(device), .. }) => device.values()?,
            Self::Trained(TrainedWeight { values, .. }) => spare.copy(values)?,
            Self::Frozen(FrozenWeight { values, .. }) => {
                return Ok(Self::Frozen(FrozenWeight {
                    values: Arc::clone(values),
                    #[cfg(feature = "cuda")]
                    device: None,
                }));
            }
        };
        Ok(Self::Frozen(values.into()))
    }

    /// The values, where nothing else shares them.
    pub(crate) fn into_values(self) -> Option<Vec<f32>> {
        let (Self::Trained(TrainedWeight { values, .. })
        | Self::Frozen(FrozenWeight { values, .. })) = self;
        Arc::into_inner(values)
    }

    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        #[cfg(feature = "cuda")]
        if let Some(device) = self.device() {
            return device.len();
        }
        let (Self::Trained(TrainedWeight { values, .. })
        | Self::Frozen(FrozenWeight { values, .. })) = self;
        values.len()
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
        let Self::Trained(trained) = self else { return Ok(()) };
        add(trained.gradient(store)?);
        #[cfg(feature = "cuda")]
        if let Some(device) = &trained.device {
            let gradient = std::mem::take(&mut **store.host.get_or_alloc_mut(&trained.key)?);
            device.set_gradient(&mut store.device, &gradient)?;
        }
        Ok(())
    }

    /// Where the weight is on a GPU, if it is.
    #[cfg(feature = "cuda")]
    pub(crate) fn device(&self) -> Option<&Arc<DeviceWeight>> {
        let (Self::Trained(TrainedWeight { device, .. })
        | Self::Frozen(FrozenWeight { device, .. })) = self;
        device.as_ref()
    }

    /// Sends the values to a GPU, or home from one.
    #[cfg(feature = "cuda")]
    pub(crate) fn place(&mut self, gpu: Option<&'static Gpu>) -> Result<(), DeviceError> {
        let trained = self.is_trained();
        let (Self::Trained(TrainedWeight { values, device, .. })
        | Self::Frozen(FrozenWeight { values, device })) = self;
        if let Some(found) = device.take_if(|_| trained) {
            *values = Arc::new(found.values()?);
        }
        *device = None;
        if let Some(gpu) = gpu {
            *device = Some(Arc::new(DeviceWeight::new(gpu, values, Training::of(trained))?));
            if trained {
                // They would be out of date after the first step.
                *values = Arc::default();
            }
        }
        Ok(())
    }
}
