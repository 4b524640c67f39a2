//! Where a model runs.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

#[cfg(feature = "cuda")]
use crate::cuda::{CudaError, Gpu, Kind};
use crate::error::ModelError;
use crate::params::Trainable;
#[cfg(feature = "cuda")]
use crate::placement::NoRoom;
#[cfg(feature = "cuda")]
use crate::tensor::DeviceError;

/// A choice of device, as command lines spell it: `cpu`, `cuda:0`, or `auto` for the first GPU if there
/// is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The processor.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
    /// The first GPU, and the processor where there is none or the program was built without GPUs.
    #[default]
    Auto,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cpu" => Ok(Self::Cpu),
            "auto" => Ok(Self::Auto),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("`{text}` is none of cpu, cuda:0, cuda:1, ..., auto")),
        }
    }
}

impl Display for DeviceChoice {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Auto => f.write_str("auto"),
        }
    }
}

/// How a GPU stores activations and frozen weights, and multiplies. Sums within an operation, trained weights,
/// their gradients and moments are f32 in either. A processor computes in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// As fast as the GPU can.
    #[default]
    Bf16,
    /// As exact as the processor.
    F32,
}

impl Display for Precision {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        })
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "bf16" => Ok(Self::Bf16),
            "f32" => Ok(Self::F32),
            _ => Err(format!("`{text}` is neither bf16 nor f32")),
        }
    }
}

/// A device that is ready.
#[derive(Debug, Clone, Copy)]
pub struct Device {
    #[cfg(feature = "cuda")]
    gpu: Option<&'static Gpu>,
}

/// Bytes of a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// In use.
    pub used: u64,
    /// In use at one time, at most, since [`Device::forget_peak`].
    pub peak: u64,
}

impl Device {
    /// The processor.
    pub fn cpu() -> Self {
        Self {
            #[cfg(feature = "cuda")]
            gpu: None,
        }
    }

    /// Opens the chosen device. Where `auto` finds no GPU that works, it says why through `note`.
    ///
    /// # Errors
    /// When a GPU was asked for by its number and cannot be used.
    pub fn open(
        choice: DeviceChoice,
        precision: Precision,
        note: impl FnOnce(&str),
    ) -> Result<Self, ModelError> {
        match choice {
            DeviceChoice::Cpu => Ok(Self::cpu()),
            DeviceChoice::Cuda(index) => Self::cuda(index, precision),
            DeviceChoice::Auto => Ok(Self::cuda(0, precision).unwrap_or_else(|error| {
                if cfg!(feature = "cuda") {
                    note(&format!("runs on the CPU: {error}"));
                }
                Self::cpu()
            })),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda(index: usize, precision: Precision) -> Result<Self, ModelError> {
        let kind = if precision == Precision::Bf16 { Kind::Bf16 } else { Kind::F32 };
        let gpu = Gpu::open(index, kind)?;
        Ok(Self { gpu: Some(gpu) })
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda(_: usize, _: Precision) -> Result<Self, ModelError> {
        Err(ModelError::NoCuda)
    }

    /// The emulated GPU of the tests.
    #[cfg(feature = "cuda-emulator")]
    #[doc(hidden)]
    pub fn emulated(precision: Precision) -> Self {
        let kind = if precision == Precision::Bf16 { Kind::Bf16 } else { Kind::F32 };
        Self { gpu: Some(Gpu::emulated(kind)) }
    }

    /// An emulated GPU of so many bytes.
    #[cfg(feature = "cuda-emulator")]
    #[doc(hidden)]
    pub fn emulated_with_room(precision: Precision, bytes: u64) -> Self {
        let kind = if precision == Precision::Bf16 { Kind::Bf16 } else { Kind::F32 };
        Self { gpu: Some(Gpu::emulated_with_room(kind, bytes)) }
    }

    /// The processor, and GPUs in f32 for tests to compare with it: real ones, or the emulator where its
    /// feature is on and there is none.
    #[cfg(test)]
    pub(crate) fn to_compare() -> Vec<Self> {
        let mut all = crate::ops::gradient_check::devices();
        all.retain(|device| device.precision() == Precision::F32);
        all
    }

    /// A GPU that is open.
    #[cfg(all(test, feature = "cuda"))]
    pub(crate) fn of(gpu: &'static Gpu) -> Self {
        Self { gpu: Some(gpu) }
    }

    /// Values as activations are stored here.
    #[cfg(test)]
    #[cfg_attr(not(feature = "cuda"), expect(clippy::unused_self, reason = "GPUs need it"))]
    pub(crate) fn stored(self, values: &[f32]) -> Vec<f32> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = self.gpu {
            return crate::ops::gradient_check::stored(gpu, values);
        }
        values.to_vec()
    }

    /// Sends a weight here.
    #[cfg(test)]
    #[cfg_attr(not(feature = "cuda"), expect(clippy::unused_self, reason = "GPUs need it"))]
    pub(crate) fn weight(self, mut weight: crate::tensor::Weight) -> crate::tensor::Weight {
        #[cfg(feature = "cuda")]
        weight.place(self.gpu).expect("the GPU has room");
        let _ = &mut weight;
        weight
    }

    /// A matrix here that gets a gradient.
    #[cfg(test)]
    #[cfg_attr(not(feature = "cuda"), expect(clippy::unused_self, reason = "GPUs need it"))]
    pub(crate) fn variable(self, values: &[f32], width: usize) -> crate::tensor::Matrix {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = self.gpu {
            let values = gpu.upload(values).expect("the GPU has room");
            return crate::tensor::Matrix::on_gpu(values.into(), width, true);
        }
        crate::tensor::Matrix::variable(values.to_vec().into(), width).expect("there is room")
    }

    /// Sends parameters here.
    #[cfg(test)]
    #[cfg_attr(not(feature = "cuda"), expect(clippy::unused_self, reason = "GPUs need it"))]
    pub(crate) fn with(self, mut params: crate::params::Params) -> crate::params::Params {
        #[cfg(feature = "cuda")]
        params.place(self.gpu).expect("the GPU has room");
        let _ = &mut params;
        params
    }

    /// Whether this is a GPU.
    pub fn is_gpu(&self) -> bool {
        #[cfg(feature = "cuda")]
        return self.gpu.is_some();
        #[cfg(not(feature = "cuda"))]
        false
    }

    /// How it stores activations.
    pub fn precision(&self) -> Precision {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = self.gpu {
            return gpu.precision();
        }
        Precision::F32
    }

    /// Sends all weights of a model here. Gradients, and moments of an optimizer, from before are of no
    /// more use.
    ///
    /// # Errors
    /// When a GPU has no room for them, which is said with sizes, or the device fails. The model is of no use then.
    #[cfg(feature = "cuda")]
    pub fn place(&self, model: &mut impl Trainable) -> Result<(), ModelError> {
        let before = self.memory()?.map_or(0, |memory| memory.used);
        let placed = model.params_mut().into_iter().try_for_each(|params| params.place(self.gpu));
        let Err(error) = placed else { return Ok(()) };
        if let DeviceError::Cuda(CudaError::Memory { used, free, total, .. }) = error {
            // What is in use may be weights that were placed.
            let free = free as u64 + (used as u64).saturating_sub(before);
            let no_room = NoRoom::of(&model.params(), self.precision(), [free, total as u64]);
            return Err(ModelError::NoRoom(Box::new(no_room)));
        }
        Err(error.into())
    }

    /// Sends all weights of a model here, where they are.
    ///
    /// # Errors
    /// Never.
    #[cfg(not(feature = "cuda"))]
    pub fn place(&self, _: &mut impl Trainable) -> Result<(), ModelError> {
        Ok(())
    }

    /// Waits until the device has done all that was asked of it: for clocks.
    ///
    /// # Errors
    /// When the device fails.
    pub fn wait(&self) -> Result<(), ModelError> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = self.gpu {
            gpu.wait()?;
        }
        Ok(())
    }

    /// Times everything that is launched on a GPU from here to [`Device::end_timing`], which makes launches
    /// slower.
    pub fn start_timing(&self) {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = self.gpu {
            gpu.start_timing();
        }
    }

    /// What ran on a GPU since [`Device::start_timing`]: name, number of launches and seconds in all, the longest
    /// first. Nothing on a processor.
    ///
    /// # Errors
    /// When the device fails.
    pub fn end_timing(&self) -> Result<Vec<(String, usize, f64)>, ModelError> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = self.gpu {
            let mut by_name = std::collections::BTreeMap::<&str, (usize, f64)>::new();
            for (name, seconds) in gpu.end_timing()? {
                let sum = by_name.entry(name.trim_end_matches('\0')).or_default();
                *sum = (sum.0 + 1, sum.1 + seconds);
            }
            let named = |(name, (n, seconds)): (&str, _)| (name.to_owned(), n, seconds);
            let mut all: Vec<_> = by_name.into_iter().map(named).collect();
            all.sort_by(|a, b| b.2.total_cmp(&a.2));
            return Ok(all);
        }
        Ok(Vec::new())
    }

    /// The memory of a GPU; none of a processor.
    ///
    /// # Errors
    /// When the device fails.
    pub fn memory(&self) -> Result<Option<DeviceMemory>, ModelError> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = self.gpu {
            let (used, peak) = gpu.memory(false)?;
            return Ok(Some(DeviceMemory { used, peak }));
        }
        Ok(None)
    }

    /// Counts the peak of memory from here on.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forget_peak(&self) -> Result<(), ModelError> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = self.gpu {
            gpu.memory(true)?;
        }
        Ok(())
    }
}

impl Display for Device {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = self.gpu {
            return write!(f, "{} ({})", gpu.name(), self.precision());
        }
        f.write_str("CPU (f32)")
    }
}

#[cfg(feature = "cuda")]
impl From<CudaError> for ModelError {
    fn from(error: CudaError) -> Self {
        Self::Device(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_read_as_they_are_written() {
        for choice in [DeviceChoice::Cpu, DeviceChoice::Cuda(3), DeviceChoice::Auto] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        for wrong in ["gpu", "cuda:", "cuda:-1", "cuda:x", ""] {
            assert!(wrong.parse::<DeviceChoice>().unwrap_err().contains("cuda:0"));
        }
    }
}
