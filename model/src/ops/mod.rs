//! Custom differentiable operations, one file each: forward, backward, and a gradient check against
//! finite differences or against dfdx's own operations.
//!
//! dfdx 0.13.0 computes both gradients of every product, and its soft-max and layer norm on the CPU
//! are tens of times slower than PyTorch's; so the model's operations are coarse, run on plain
//! slices on all cores, and hang themselves on dfdx's tape. Work is cut into pieces whose size
//! depends on the shapes alone, and sums over pieces run in their order, so that results do not
//! depend on the number of threads, bit by bit.
//!
//! The tape travels with an operation's first argument; the others come without.

use std::sync::{Mutex, PoisonError};

mod activation;
mod adamw;
mod add;
mod attention;
#[cfg(feature = "cuda")]
mod attention_cuda;
mod average;
#[cfg(feature = "ops-bench")]
pub mod benches;
#[cfg(all(feature = "cuda", feature = "ops-bench"))]
pub mod benches_cuda;
mod contrastive_loss;
mod convolution;
mod cross_entropy;
mod embedding;
mod gated;
mod linear;
mod matmul;
#[cfg(target_arch = "x86_64")]
mod matmul_avx2;
mod media_attention;
mod media_tokens;
mod norm;
mod pooling;
mod recompute;
mod rotary;
mod rows;
mod sequences;
mod squeeze_excitation;
mod token_table;
mod unfold;
mod unit_clip;
mod wide;

pub use activation::Activation;
pub(crate) use activation::{activate, activate_times};
pub(crate) use adamw::adamw;
#[cfg(feature = "cuda")]
pub(crate) use adamw::cuda::square_sums;
pub use adamw::{AdamStep, Moments};
pub(crate) use add::{add_gated, add_to};
pub(crate) use attention::{
    AttentionShape, Heads, Past, Visible, attention, continue_attention, self_attention,
};
pub use average::Average;
pub(crate) use average::average;
pub use contrastive_loss::BatchEmbeddings;
pub(crate) use contrastive_loss::{
    ROWS as CONTRASTED_ROWS, contrastive_loss, contrastive_loss_in, unit_rows,
};
pub(crate) use convolution::{Convolution, Grid, KernelSize, convolve, standardize};
pub(crate) use cross_entropy::{
    Shares, cross_entropy, each_logits, likeliest_tokens, rows_of_logits, token_losses,
};
pub(crate) use embedding::embed_tokens;
pub(crate) use gated::activate_gate;
pub(crate) use linear::{Kernel, adds_in_one_order, linear, linear_onto};
pub(crate) use media_attention::{MediaReads, media_attention};
pub(crate) use media_tokens::{add_time, repeat_latents, with_latents};
pub(crate) use norm::{Norm, normalise, normalise_columns};
pub(crate) use pooling::halve;
pub use recompute::Recompute;
pub(crate) use recompute::{Stage, recomputed};
pub(crate) use rotary::{Rotation, rotate};
pub(crate) use rows::{join_rows, mean_rows, pick_rows, prepend_class};
pub(crate) use sequences::{KeptRows, Sequences};
pub(crate) use squeeze_excitation::{SqueezeExcitation, squeeze_excite_onto};
pub(crate) use token_table::{MovedRows, TokenTable};
#[cfg(all(feature = "cuda", feature = "ops-bench"))]
pub(crate) use unfold::cuda::unfold as unfold_on_gpu;
pub(crate) use unfold::unfold;
#[cfg(test)]
pub(crate) use unfold::unfold_here;
pub(crate) use unit_clip::clip_units;
pub(crate) use wide::processor;

/// Elements that one thread takes at a time in element-wise loops: small enough for its cache,
/// large enough that waking the thread pays.
const CHUNK: usize = 1 << 14;

/// Rows of `width` values that one thread takes at a time: about [`CHUNK`] elements.
fn rows_per_chunk(width: usize) -> usize {
    (CHUNK / width).max(1)
}

/// Runs `work` on the first thread of the pool, so that the parallel loops inside need not wake one to
/// begin. Always the same thread: the system's allocator keeps what one thread frees from others, and
/// steps that wander between threads hold the memory of several.
pub(crate) fn on_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    if rayon::current_thread_index().is_some() {
        return work();
    }
    let (work, result) = (Mutex::new(Some(work)), Mutex::new(None));
    rayon::broadcast(|thread| {
        if thread.index() == 0
            && let Some(work) = work.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(work());
        }
    });
    let result = result.into_inner().unwrap_or_else(PoisonError::into_inner);
    result.expect("a pool has a first thread")
}

#[cfg(test)]
mod formula;
#[cfg(test)]
pub(crate) mod gradient_check;
