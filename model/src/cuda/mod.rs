//! The GPU as operations see it: arrays, launches of our kernels, matrix products.
//!
//! Everything runs in the order of one stream. What waits for the GPU: [`Gpu::download`] and its kin,
//! [`Gpu::wait`], the end of timing, and an upload while both pinned buffers are on their way.
//! Behind it is the driver of NVIDIA, loaded when a GPU is asked for, so that the same program starts where
//! there is none; or, for tests, an emulator that runs the kernels on the CPU.

mod array;
mod driver;
#[cfg(feature = "cuda-emulator")]
mod emulator;
mod failure;
mod product;

use std::collections::HashMap;
use std::ffi::c_void;
#[cfg(feature = "cuda-emulator")]
use std::sync::OnceLock;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use crate::device::Precision;
pub(crate) use array::Array;
pub use failure::CudaError;
pub(crate) use product::{Factor, Product};

use driver::Driver;

/// How a value is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    F32,
    Bf16,
    I32,
    U8,
}

impl Kind {
    /// Bytes of one value.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::Bf16 => 2,
            Self::U8 => 1,
        }
    }
}

/// The name of a kernel that there is for f32 and for bf16, as one of the two.
macro_rules! kernel {
    ($name:literal, $kind:expr) => {
        if $kind == $crate::cuda::Kind::Bf16 {
            concat!($name, "_bf16\0")
        } else {
            concat!($name, "_f32\0")
        }
    };
    ($name:literal) => {
        concat!($name, "\0")
    };
}
pub(crate) use kernel;

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arg {
    Pointer(u64),
    I32(i32),
    I64(i64),
    F32(f32),
}

impl Arg {
    /// Where the value lies, as launches take it.
    fn pointer(&self) -> *mut c_void {
        match self {
            Self::Pointer(v) => std::ptr::from_ref(v).cast_mut().cast(),
            Self::I32(v) => std::ptr::from_ref(v).cast_mut().cast(),
            Self::I64(v) => std::ptr::from_ref(v).cast_mut().cast(),
            Self::F32(v) => std::ptr::from_ref(v).cast_mut().cast(),
        }
    }
}

impl From<&Array> for Arg {
    fn from(array: &Array) -> Self {
        Self::Pointer(array.address())
    }
}

impl From<Option<&Array>> for Arg {
    fn from(array: Option<&Array>) -> Self {
        Self::Pointer(array.map_or(0, Array::address))
    }
}

impl From<&Arc<Array>> for Arg {
    fn from(array: &Arc<Array>) -> Self {
        Self::Pointer(array.address())
    }
}

impl From<usize> for Arg {
    fn from(value: usize) -> Self {
        Self::I32(i32::try_from(value).expect("sizes are below 2^31"))
    }
}

impl From<i32> for Arg {
    fn from(value: i32) -> Self {
        Self::I32(value)
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}

/// How many threads a kernel is launched with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    /// Blocks.
    pub(crate) blocks: [usize; 2],
    /// Threads of one.
    pub(crate) threads: usize,
    /// Bytes of memory that its threads share.
    pub(crate) shared: usize,
}

impl Grid {
    /// Blocks of `threads` threads without shared memory of run-time size.
    pub(crate) fn of(blocks: usize, threads: usize) -> Self {
        Self { blocks: [blocks, 1], threads, shared: 0 }
    }

    /// Threads for `n` pieces of work, one each.
    pub(crate) fn each(n: usize) -> Self {
        Self::of(n.div_ceil(THREADS), THREADS)
    }

    /// One block a row, with as many threads as `width` values keep busy.
    pub(crate) fn rows(rows: usize, width: usize) -> Self {
        Self::of(rows, width.div_ceil(8).next_multiple_of(32).clamp(32, THREADS))
    }
}

/// Threads of a block in kernels that do not care.
pub(crate) const THREADS: usize = 256;

enum Backend {
    Driver(Box<Driver>),
    #[cfg(feature = "cuda-emulator")]
    Emulator(emulator::Emulator),
}

/// Tables that are used again, by what they are made of: see [`Gpu::kept`].
type Kept = HashMap<Vec<usize>, Arc<Array>>;

/// One GPU, with the number format of its activations.
pub(crate) struct Gpu {
    backend: Backend,
    kind: Kind,
    /// Whether attention is made of products of warpgroups where it can be.
    wgmma: bool,
    kept: Mutex<Kept>,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gpu({:?})", self.kind)
    }
}

/// GPUs that are in use, each until the program ends.
static GPUS: Mutex<Vec<(Opened, &'static Gpu)>> = Mutex::new(Vec::new());

/// A GPU's number, and how it is used: format of activations, products of warpgroups.
type Opened = (usize, Kind, bool);

/// Most plans that are kept.
const KEPT_MAX: usize = 1024;

impl Gpu {
    /// The GPU of this number, with activations of this kind.
    ///
    /// # Errors
    /// When there is no driver, no such GPU, or no library of matrix products.
    pub(crate) fn open(index: usize, kind: Kind) -> Result<&'static Self, CudaError> {
        Self::open_as(index, kind, false)
    }

    /// The first GPU if it is a Hopper, with the attention of `attention_hopper.cu`. Models do not run so yet: these
    /// kernels have passed their tests in the emulator and have run on no GPU.
    ///
    /// # Errors
    /// As [`Gpu::open`], and when the GPU is of another kind.
    #[cfg(any(test, feature = "ops-bench"))]
    pub(crate) fn hopper() -> Result<&'static Self, CudaError> {
        Self::open_as(0, Kind::Bf16, true)
    }

    fn open_as(index: usize, kind: Kind, wgmma: bool) -> Result<&'static Self, CudaError> {
        let mut all = GPUS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, gpu)) = all.iter().find(|(key, _)| *key == (index, kind, wgmma)) {
            return Ok(gpu);
        }
        let driver = Driver::open(index)?;
        if wgmma && driver.capability() != (9, 0) {
            let (major, minor) = driver.capability();
            return Err(CudaError::Kernels { name: driver.name().to_owned(), major, minor });
        }
        let gpu = Self::leaked(Backend::Driver(Box::new(driver)), kind, wgmma);
        all.push(((index, kind, wgmma), gpu));
        Ok(gpu)
    }

    /// Kernels on the CPU.
    #[cfg(feature = "cuda-emulator")]
    pub(crate) fn emulated(kind: Kind) -> &'static Self {
        static BOTH: OnceLock<[&'static Gpu; 2]> = OnceLock::new();
        let make =
            |kind| Self::leaked(Backend::Emulator(emulator::Emulator::default()), kind, false);
        let both = BOTH.get_or_init(|| [make(Kind::F32), make(Kind::Bf16)]);
        both[usize::from(kind == Kind::Bf16)]
    }

    /// Kernels on the CPU, with so many bytes of memory.
    #[cfg(feature = "cuda-emulator")]
    pub(crate) fn emulated_with_room(kind: Kind, bytes: u64) -> &'static Self {
        let emulator = emulator::Emulator::default();
        emulator.set_room(bytes);
        Self::leaked(Backend::Emulator(emulator), kind, false)
    }

    /// Kernels of a Hopper on the CPU.
    #[cfg(all(test, feature = "cuda-emulator"))]
    pub(crate) fn emulated_hopper() -> &'static Self {
        Self::leaked(Backend::Emulator(emulator::Emulator::default()), Kind::Bf16, true)
    }

    fn leaked(backend: Backend, kind: Kind, wgmma: bool) -> &'static Self {
        Box::leak(Box::new(Self { backend, kind, wgmma, kept: Mutex::default() }))
    }

    /// Whether attention is made of products of warpgroups where it can be.
    pub(crate) fn uses_wgmma(&self) -> bool {
        self.wgmma
    }

    /// Most bytes that the threads of a block can share.
    pub(crate) fn shared_max(&self) -> usize {
        match &self.backend {
            Backend::Driver(driver) => driver.shared_max(),
            #[cfg(feature = "cuda-emulator")]
            Backend::Emulator(_) => 227 << 10,
        }
    }

    /// Number of multiprocessors.
    pub(crate) fn multiprocessors(&self) -> usize {
        match &self.backend {
            Backend::Driver(driver) => driver.multiprocessors(),
            #[cfg(feature = "cuda-emulator")]
            Backend::Emulator(_) => 2,
        }
    }

    /// An array without values.
    pub(crate) fn nothing(&'static self) -> Arc<Array> {
        Arc::new(Array::nothing(self))
    }

    /// How activations are stored.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// How activations are stored, in words of command lines.
    pub(crate) fn precision(&self) -> Precision {
        if self.kind == Kind::Bf16 { Precision::Bf16 } else { Precision::F32 }
    }

    /// What the GPU is called.
    pub(crate) fn name(&self) -> String {
        match &self.backend {
            Backend::Driver(driver) => driver.name().to_owned(),
            #[cfg(feature = "cuda-emulator")]
            Backend::Emulator(_) => "emulated".to_owned(),
        }
    }

    /// `n` values of any content.
    pub(crate) fn unset(&'static self, n: usize, kind: Kind) -> Result<Array, CudaError> {
        Array::new(self, n, kind)
    }

    /// `n` zeros.
    pub(crate) fn zeroed(&'static self, n: usize, kind: Kind) -> Result<Array, CudaError> {
        let array = self.unset(n, kind)?;
        if n > 0 {
            match &self.backend {
                Backend::Driver(driver) => driver.clear(array.address(), n * kind.size())?,
                #[cfg(feature = "cuda-emulator")]
                Backend::Emulator(emulator) => emulator.clear(array.address(), n * kind.size()),
            }
        }
        Ok(array)
    }

    /// Activations of the host, in the GPU's format for them.
    pub(crate) fn upload(&'static self, values: &[f32]) -> Result<Array, CudaError> {
        self.upload_as(values, self.kind)
    }

    /// Values of the host, as f32 or bf16.
    pub(crate) fn upload_as(&'static self, values: &[f32], kind: Kind) -> Result<Array, CudaError> {
        if kind == Kind::Bf16 {
            let mut rounded = vec![0_u16; values.len()];
            rounded.par_iter_mut().zip(values).with_min_len(1 << 14).for_each(|(r, v)| {
                *r = to_bf16(*v);
            });
            return self.upload_bytes(bytemuck::cast_slice(&rounded), values.len(), kind);
        }
        self.upload_bytes(bytemuck::cast_slice(values), values.len(), Kind::F32)
    }

    /// Whole numbers of the host.
    pub(crate) fn upload_i32(&'static self, values: &[i32]) -> Result<Array, CudaError> {
        self.upload_bytes(bytemuck::cast_slice(values), values.len(), Kind::I32)
    }

    /// Values of 256 of the host.
    pub(crate) fn upload_u8(&'static self, values: &[u8]) -> Result<Array, CudaError> {
        self.upload_bytes(values, values.len(), Kind::U8)
    }

    /// Words of 64 bits, in an array of twice as many whole numbers.
    pub(crate) fn upload_words(&'static self, words: &[u64]) -> Result<Array, CudaError> {
        self.upload_bytes(bytemuck::cast_slice(words), 2 * words.len(), Kind::I32)
    }

    fn upload_bytes(&'static self, bytes: &[u8], n: usize, kind: Kind) -> Result<Array, CudaError> {
        let array = self.unset(n, kind)?;
        if !bytes.is_empty() {
            match &self.backend {
                Backend::Driver(driver) => driver.upload(array.address(), bytes)?,
                #[cfg(feature = "cuda-emulator")]
                Backend::Emulator(emulator) => emulator.upload(array.address(), bytes),
            }
        }
        Ok(array)
    }

    /// The values of an array, once all that was launched before has run.
    pub(crate) fn download(&self, array: &Array) -> Result<Vec<f32>, CudaError> {
        let bytes = self.download_bytes(array)?;
        Ok(match array.kind() {
            Kind::Bf16 => bytes
                .par_chunks_exact(2)
                .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))
                .collect(),
            Kind::F32 => bytemuck::pod_collect_to_vec(&bytes),
            Kind::I32 | Kind::U8 => unreachable!("whole numbers stay on the GPU"),
        })
    }

    /// As [`Gpu::download`], where each two f32 are the room of one f64.
    pub(crate) fn download_f64(&self, array: &Array) -> Result<Vec<f64>, CudaError> {
        Ok(bytemuck::pod_collect_to_vec(&self.download_bytes(array)?))
    }

    /// As [`Gpu::download`], of whole numbers.
    pub(crate) fn download_i32(&self, array: &Array) -> Result<Vec<i32>, CudaError> {
        Ok(bytemuck::pod_collect_to_vec(&self.download_bytes(array)?))
    }

    fn download_bytes(&self, array: &Array) -> Result<Vec<u8>, CudaError> {
        let mut bytes = vec![0_u8; array.len() * array.kind().size()];
        if !bytes.is_empty() {
            match &self.backend {
                Backend::Driver(driver) => driver.download(&mut bytes, array.address())?,
                #[cfg(feature = "cuda-emulator")]
                Backend::Emulator(emulator) => emulator.download(&mut bytes, array.address()),
            }
        }
        Ok(bytes)
    }

    /// A copy of an array, in the same format or another.
    pub(crate) fn copy(&'static self, from: &Array, kind: Kind) -> Result<Array, CudaError> {
        let to = self.unset(from.len(), kind)?;
        self.copy_into(&to, from)?;
        Ok(to)
    }

    /// Copies as many values as `to` has.
    pub(crate) fn copy_into(&self, to: &Array, from: &Array) -> Result<(), CudaError> {
        let name = match (from.kind(), to.kind()) {
            (Kind::Bf16, Kind::F32) => kernel!("copy_bf16_to", Kind::F32),
            (Kind::F32, Kind::Bf16) => kernel!("copy_f32_to", Kind::Bf16),
            (Kind::Bf16, _) => kernel!("copy_bf16_to", Kind::Bf16),
            _ => kernel!("copy_f32_to", Kind::F32),
        };
        let n = to.len();
        self.launch(name, Grid::each(n.div_ceil(PER_THREAD)), &[from.into(), to.into(), long(n)])
    }

    /// Copies the values from number `first` on into all of `to`, of the same format.
    pub(crate) fn copy_part(
        &self,
        to: &Array,
        from: &Array,
        first: usize,
    ) -> Result<(), CudaError> {
        self.copy_within(to.address(), from.at(first), to.len(), to.kind())
    }

    /// Copies all of `from` to the values from number `first` on, of the same format.
    pub(crate) fn put_part(&self, to: &Array, first: usize, from: &Array) -> Result<(), CudaError> {
        self.copy_within(to.at(first), from.address(), from.len(), to.kind())
    }

    fn copy_within(&self, to: u64, from: u64, n: usize, kind: Kind) -> Result<(), CudaError> {
        if n == 0 {
            return Ok(());
        }
        match &self.backend {
            Backend::Driver(driver) => driver.copy(to, from, n * kind.size()),
            #[cfg(feature = "cuda-emulator")]
            Backend::Emulator(emulator) => {
                emulator.copy(to, from, n * kind.size());
                Ok(())
            }
        }
    }

    /// What `make` gives for `key`, made once: tables that depend on shapes alone.
    pub(crate) fn kept(
        &'static self,
        key: Vec<usize>,
        make: impl FnOnce() -> Vec<i32>,
    ) -> Result<Arc<Array>, CudaError> {
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = lock().get(&key) {
            return Ok(Arc::clone(found));
        }
        // Not under the lock: threads of the pool help to send much.
        let made = Arc::new(self.upload_i32(&make())?);
        let mut kept = lock();
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        kept.insert(key, Arc::clone(&made));
        Ok(made)
    }

    /// Values that never change, as f32: sent once.
    pub(crate) fn constant(&'static self, values: &Arc<[f32]>) -> Result<Arc<Array>, CudaError> {
        let bits = values.iter().map(|value| value.to_bits());
        let key = [usize::MAX - 1].into_iter().chain(bits.clone().map(|bits| bits as usize));
        self.kept(key.collect(), || bits.map(|bits| bits as i32).collect())
    }

    /// Runs a kernel, named by [`kernel!`].
    pub(crate) fn launch(
        &self,
        name: &'static str,
        grid: Grid,
        args: &[Arg],
    ) -> Result<(), CudaError> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        match &self.backend {
            Backend::Driver(driver) => driver.launch(name, grid, args),
            #[cfg(feature = "cuda-emulator")]
            Backend::Emulator(emulator) => emulator.launch(name, grid, args),
        }
    }

    /// Makes a matrix product.
    pub(crate) fn multiply(&self, product: &Product) -> Result<(), CudaError> {
        if product.rows == 0 || product.columns == 0 {
            return Ok(());
        }
        match &self.backend {
            Backend::Driver(driver) => driver.multiply(product),
            #[cfg(feature = "cuda-emulator")]
            Backend::Emulator(emulator) => {
                emulator.multiply(product);
                Ok(())
            }
        }
    }

    /// Waits until all that was launched has run.
    pub(crate) fn wait(&self) -> Result<(), CudaError> {
        match &self.backend {
            Backend::Driver(driver) => driver.wait(),
            #[cfg(feature = "cuda-emulator")]
            Backend::Emulator(_) => Ok(()),
        }
    }

    /// Times every launch from here on.
    pub(crate) fn start_timing(&self) {
        match &self.backend {
            Backend::Driver(driver) => driver.start_timing(),
            #[cfg(feature = "cuda-emulator")]
            Backend::Emulator(_) => {}
        }
    }

    /// Launches since [`Gpu::start_timing`]: names and seconds, in order.
    pub(crate) fn end_timing(&self) -> Result<Vec<(&'static str, f64)>, CudaError> {
        match &self.backend {
            Backend::Driver(driver) => driver.end_timing(),
            #[cfg(feature = "cuda-emulator")]
            Backend::Emulator(_) => Ok(Vec::new()),
        }
    }

    /// Bytes in use now, and most bytes in use at one time since the last call with `reset`.
    pub(crate) fn memory(&self, reset: bool) -> Result<(u64, u64), CudaError> {
        match &self.backend {
            Backend::Driver(driver) => driver.memory(reset),
            #[cfg(feature = "cuda-emulator")]
            Backend::Emulator(emulator) => Ok(emulator.memory(reset)),
        }
    }

    fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        match &self.backend {
            Backend::Driver(driver) => driver.allocate(bytes),
            #[cfg(feature = "cuda-emulator")]
            Backend::Emulator(emulator) => emulator.allocate(bytes),
        }
    }

    fn free(&self, address: u64, bytes: usize) {
        match &self.backend {
            Backend::Driver(driver) => driver.free(address),
            #[cfg(feature = "cuda-emulator")]
            Backend::Emulator(emulator) => emulator.free(address, bytes),
        }
        let _ = bytes;
    }
}

/// Values that one thread of an element-wise kernel takes.
pub(crate) const PER_THREAD: usize = 8;

/// A number of values as a kernel takes it.
pub(crate) fn long(n: usize) -> Arg {
    Arg::I64(n as i64)
}

/// The value of a bf16.
#[cfg(test)]
pub(crate) fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The nearest bf16, to even where two are as near.
pub(crate) fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) >> 16) as u16
}

#[cfg(all(test, feature = "cuda-emulator"))]
mod tests {
    use super::*;
    use crate::{
        Activation, Architecture, Gradients, LanguageConfig, LanguageModel, ModelError, TextBatch,
        Trainable,
    };

    #[test]
    fn a_full_gpu_is_an_error_with_sizes_wherever_it_fills_up_and_keeps_nothing() {
        let config = LanguageConfig {
            vocabulary: 16,
            context: 8,
            width: 16,
            layers: 2,
            heads: 2,
            activation: Activation::GeluTanh,
            architecture: Architecture::default(),
        };
        let batch = TextBatch {
            tokens: (0..16).collect(),
            length: 8,
            loss_mask: (0..16).map(|i| f32::from(u8::from(i % 8 < 7))).collect(),
        };
        let emulator = emulator::Emulator::default();
        let gpu = Gpu::leaked(Backend::Emulator(emulator), Kind::Bf16, false);
        let Backend::Emulator(emulator) = &gpu.backend else { unreachable!("it was made so") };
        let mut model = LanguageModel::new(&config, 1).unwrap();
        model.params_mut().into_iter().try_for_each(|params| params.place(Some(gpu))).unwrap();
        // Tables that are kept are made by the first step.
        drop(model.step(&batch, 1.0, Gradients::default()).unwrap());
        let (weights, most) = gpu.memory(true).unwrap();
        let mut failures = 0;
        for room in (weights + 1..most).step_by(((most - weights) / 40) as usize) {
            emulator.set_room(room);
            let error = model.step(&batch, 1.0, Gradients::default()).unwrap_err();
            let ModelError::Device(crate::DeviceError::Cuda(CudaError::Memory {
                asked,
                used,
                free,
                total,
            })) = error
            else {
                panic!("{error}")
            };
            assert_eq!((total as u64, used + free), (room, total));
            assert!(asked > free);
            assert_eq!(gpu.memory(false).unwrap().0, weights, "with room for {room} bytes");
            failures += 1;
        }
        assert!(failures >= 40);
        emulator.set_room(0);
        model.step(&batch, 1.0, Gradients::default()).unwrap();
    }
}
