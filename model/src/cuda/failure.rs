//! What a GPU cannot do.

/// Why the GPU failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// A library is not there.
    #[error("{library} was not found: {hint}")]
    NoLibrary {
        /// Its name.
        library: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// There is no GPU of this number.
    #[error("there is no GPU {index}; this machine has {count}")]
    NoDevice {
        /// The number asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// The GPU is too old, or too new for the kernels of this program.
    #[error(
        "the kernels of this program do not run on {name} (compute capability {major}.{minor})"
    )]
    Kernels {
        /// The GPU.
        name: String,
        /// Its compute capability.
        major: i32,
        /// The part after the dot.
        minor: i32,
    },
    /// Memory is full.
    #[error(
        "the GPU's memory is full: {asked} bytes were asked for, {used} are in use, {free} of {total} are free"
    )]
    Memory {
        /// Bytes of the array that found no place.
        asked: usize,
        /// Bytes in use by this program.
        used: usize,
        /// Bytes free.
        free: usize,
        /// Bytes of the GPU.
        total: usize,
    },
    /// A call of the driver or of a library failed.
    #[error("{call} failed: {answer}")]
    Call {
        /// What was called.
        call: &'static str,
        /// What it answered.
        answer: String,
    },
}
