//! Memory of the GPU.

use super::{CudaError, Gpu, Kind};

/// Values on a GPU. Freed, in the order of the stream, when dropped: what was launched before may still
/// read them.
pub(crate) struct Array {
    gpu: &'static Gpu,
    address: u64,
    len: usize,
    kind: Kind,
    owned: bool,
}

impl Array {
    pub(super) fn new(gpu: &'static Gpu, len: usize, kind: Kind) -> Result<Self, CudaError> {
        let address = if len == 0 { 0 } else { gpu.allocate(len * kind.size())? };
        Ok(Self { gpu, address, len, kind, owned: true })
    }

    pub(super) fn nothing(gpu: &'static Gpu) -> Self {
        Self { gpu, address: 0, len: 0, kind: gpu.kind(), owned: false }
    }

    /// `len` of the values, from number `first` on, which must not outlive this array.
    pub(crate) fn part(&self, first: usize, len: usize) -> Self {
        assert!(first + len <= self.len, "a part of {len} values from {first} of {}", self.len);
        Self { gpu: self.gpu, address: self.at(first), len, kind: self.kind, owned: false }
    }

    /// Where they lie.
    pub(crate) fn gpu(&self) -> &'static Gpu {
        self.gpu
    }

    /// Address of the first.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Address of value `i`.
    pub(crate) fn at(&self, i: usize) -> u64 {
        self.address + (i * self.kind.size()) as u64
    }

    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// How each is stored.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// The values, on the host.
    pub(crate) fn to_vec(&self) -> Result<Vec<f32>, CudaError> {
        self.gpu.download(self)
    }
}

impl std::fmt::Debug for Array {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Array({} x {:?})", self.len, self.kind)
    }
}

impl Drop for Array {
    fn drop(&mut self) {
        if self.owned && self.len > 0 {
            self.gpu.free(self.address, self.len * self.kind.size());
        }
    }
}
