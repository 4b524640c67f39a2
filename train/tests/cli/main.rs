//! The promises of `flamingo-train`, checked by running the real binary on tiny corpora.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod batches;
mod bench;
mod configs;
mod distant;
#[cfg(feature = "cuda-emulator")]
mod emulated;
mod export;
mod finetune;
mod learning;
mod masks;
mod micro_batches;
mod optimisation;
mod pixels;
mod plan;
#[cfg(feature = "mpi")]
mod ranks;
mod refusal;
mod replay;
mod resume;
mod seeing;
mod validation;
mod world;
