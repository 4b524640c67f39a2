//! Weights on a GPU, and the gradients there.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cuda::{Arg, Array, CudaError, Gpu, Grid, Kind, PER_THREAD, kernel, long};
use crate::params::Training;
use crate::placement::Kept;

/// A number that no other weight or activation has.
pub(crate) fn new_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Gradients on a GPU, of weights and of activations.
#[derive(Debug, Default)]
pub(crate) struct DeviceGradients(HashMap<u64, Array>);

impl DeviceGradients {
    /// Moves a gradient out.
    pub(crate) fn remove(&mut self, id: u64) -> Option<Array> {
        self.0.remove(&id)
    }

    /// The gradient under this number.
    pub(crate) fn get(&self, id: u64) -> Option<&Array> {
        self.0.get(&id)
    }

    /// Adds to a gradient; the first to give one gives the array itself.
    pub(crate) fn add(&mut self, id: u64, delta: Array) -> Result<(), CudaError> {
        if let Some(sum) = self.0.get(&id) {
            let n = sum.len();
            let name = kernel!("add_to", sum.kind());
            let args = [sum.into(), (&delta).into(), long(n)];
            return sum.gpu().launch(name, Grid::each(n.div_ceil(PER_THREAD)), &args);
        }
        self.0.insert(id, delta);
        Ok(())
    }
}

/// The values of one weight.
#[derive(Debug)]
pub(crate) struct DeviceWeight {
    id: u64,
    gpu: &'static Gpu,
    n: usize,
    full: Option<Array>,
    low: Option<Array>,
}

impl DeviceWeight {
    /// Sends `values` to a GPU.
    pub(crate) fn new(
        gpu: &'static Gpu,
        values: &[f32],
        training: Training,
    ) -> Result<Self, CudaError> {
        let Kept { full, low } = Kept::of(values.len(), gpu.precision(), training);
        let full = full.then(|| gpu.upload_as(values, Kind::F32)).transpose()?;
        let low = low.then(|| gpu.upload_as(values, Kind::Bf16)).transpose()?;
        Ok(Self { id: new_id(), gpu, n: values.len(), full, low })
    }

    /// The same weight with other values.
    pub(crate) fn with_values(&self, values: &[f32]) -> Result<Self, CudaError> {
        Ok(Self { id: self.id, ..Self::new(self.gpu, values, Training::Trained)? })
    }

    /// The same weight in memory of its own.
    pub(crate) fn copied(&self) -> Result<Self, CudaError> {
        let copy = |array: &Option<Array>| {
            array.as_ref().map(|array| self.gpu.copy(array, array.kind())).transpose()
        };
        let (full, low) = (copy(&self.full)?, copy(&self.low)?);
        Ok(Self { id: self.id, gpu: self.gpu, n: self.n, full, low })
    }

    /// The GPU.
    pub(crate) fn gpu(&self) -> &'static Gpu {
        self.gpu
    }

    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        self.n
    }

    /// In the format of activations.
    pub(crate) fn array(&self) -> &Array {
        self.low.as_ref().or(self.full.as_ref()).expect("a weight has values")
    }

    /// In f32.
    ///
    /// # Panics
    /// If it is frozen and no vector: operations read such weights as activations.
    pub(crate) fn full(&self) -> &Array {
        self.full.as_ref().expect("a vector, or trained")
    }

    /// In f32, if it is kept so.
    pub(crate) fn full_if_there(&self) -> Option<&Array> {
        self.full.as_ref()
    }

    /// The bf16 copy, which must follow the values.
    pub(crate) fn low(&self) -> Option<&Array> {
        self.low.as_ref()
    }

    /// The values, on the host.
    pub(crate) fn values(&self) -> Result<Vec<f32>, CudaError> {
        self.full.as_ref().unwrap_or_else(|| self.array()).to_vec()
    }

    /// The gradient on the GPU, if there is one.
    pub(crate) fn gradient_array<'a>(&self, all: &'a DeviceGradients) -> Option<&'a Array> {
        all.get(self.id)
    }

    /// The gradient, on the host; zeros if there is none.
    pub(crate) fn gradient(&self, all: &mut DeviceGradients) -> Result<Vec<f32>, CudaError> {
        all.get(self.id).map_or_else(|| Ok(vec![0.0; self.n]), Array::to_vec)
    }

    /// Gives the gradient other values.
    pub(crate) fn set_gradient(
        &self,
        all: &mut DeviceGradients,
        values: &[f32],
    ) -> Result<(), CudaError> {
        all.0.insert(self.id, self.gpu.upload_as(values, Kind::F32)?);
        Ok(())
    }

    /// Adds to the gradient.
    pub(crate) fn add_gradient(
        &self,
        all: &mut DeviceGradients,
        delta: Array,
    ) -> Result<(), CudaError> {
        all.add(self.id, delta)
    }

    /// The gradient `[n]` in f32, and whether it has values to add to: if not, all must be written.
    pub(crate) fn gradient_to_write<'a>(
        &self,
        all: &'a mut DeviceGradients,
    ) -> Result<(&'a Array, bool), CudaError> {
        let adds = all.0.contains_key(&self.id);
        if !adds {
            all.0.insert(self.id, self.gpu.unset(self.n, Kind::F32)?);
        }
        Ok((&all.0[&self.id], adds))
    }

    /// The gradient `[n]` in f32 to add to, zeros at first.
    pub(crate) fn gradient_to_add<'a>(
        &self,
        all: &'a mut DeviceGradients,
    ) -> Result<&'a Array, CudaError> {
        match all.0.entry(self.id) {
            Entry::Occupied(found) => Ok(found.into_mut()),
            Entry::Vacant(room) => Ok(room.insert(self.gpu.zeroed(self.n, Kind::F32)?)),
        }
    }
}

impl From<&DeviceWeight> for Arg {
    /// In the format of activations.
    fn from(weight: &DeviceWeight) -> Self {
        weight.array().into()
    }
}
