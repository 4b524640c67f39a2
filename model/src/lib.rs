//! Flamingo (arXiv 2204.14198) on dfdx: everything between pixels and tokens on one side and a loss
//! on the other.
//!
//! Three models come out of this crate, one for each stage of training. [`Clip`] learns images and
//! their texts by contrast and leaves a vision tower; [`LanguageModel`] learns text; [`Flamingo`]
//! freezes both and learns to connect them: a Perceiver resampler turns any number of image
//! features into a few latents, and gated cross-attention lets each token of the text read the
//! latents of one image. Frozen weights are plain buffers that no gradient is computed for.
//!
//! A model is a value: `step` takes a batch and the gradients so far and returns the loss and the
//! sums, and [`Params::update`] lets an optimizer change the weights. Inputs are checked once, at
//! the edge, and answered with a [`ModelError`]; inside, everything is a row-major matrix. All sums
//! run in an order that depends on the shapes alone, so results are the same bit by bit whatever
//! the number of threads.
//!
//! Shape letters: `B` sequences, `L` tokens, `D` text width, `M` images or videos, `F` frames, `P`
//! patches, `R` latents, `V` visual width, `H` heads, `K` width of one head.
//!
//! ```
//! use flamingo_model::{
//!     Activation, Architecture, Gradients, LanguageConfig, LanguageModel, TextBatch, Trainable,
//! };
//!
//! let config = LanguageConfig {
//!     vocabulary: 16, context: 8, width: 8, layers: 1, heads: 2, activation: Activation::GeluTanh,
//!     architecture: Architecture::default(),
//! };
//! let mut model = LanguageModel::new(&config, 1)?;
//! let batch =
//!     TextBatch { tokens: vec![1, 2, 3, 4], length: 4, loss_mask: vec![1.0, 1.0, 1.0, 0.0] };
//! let (before, mut gradients) = model.step(&batch, 1.0, Gradients::default())?;
//! for params in model.params_mut() {
//!     params.update(&mut gradients, |_name, _shape, values, gradient| {
//!         values.iter_mut().zip(gradient).for_each(|(v, g)| *v -= 0.1 * g);
//!     })?;
//! }
//! assert!(model.loss_only(&batch)? < before);
//! # Ok::<(), flamingo_model::ModelError>(())
//! ```
//!
//! Reading order: `error` what can go wrong | `limits` of configurations | `tensor` dfdx's types and
//! ours | `buffer` recycled memory | `ops` custom operations | `params` named parameters |
//! `weights_file` tensors on disk | `pickle` checkpoints of PyTorch | `translate` names of others |
//! `checkpoint` model folders | `checksums` of their files | `layers` affine map, norm, feed-forward | `block` transformer block |
//! `vision` tower: `vit` CLIP's or `nfnet` the paper's | `architecture` and `decoder` of language models | `families` of them |
//! `clip` contrastive model | `language_model` | `self_attention` of trained parts | `resampler` |
//! `gated_xattn` and `gate_sums` how much it adds | `pixels` of images and `inputs` what Flamingo reads | `flamingo` the whole | `generate` and `beam` writing
//! and scoring | `openflamingo` names of its checkpoints | `openflamingo_checkpoint` whole models from and
//! to them | `torch_file` checkpoints written for PyTorch | `presets` named models and their
//! numbers of parameters | `activations` how much memory a step takes, `placement`
//! how much the weights take of a GPU.

mod activations;
mod architecture;
mod beam;
mod block;
mod buffer;
mod checkpoint;
mod checksums;
mod clip;
mod clip_checkpoint;
mod config_fields;
#[cfg(feature = "cuda")]
mod cuda;
mod decoder;
mod device;
#[cfg(feature = "cuda")]
mod device_weight;
mod error;
mod families;
mod flamingo;
mod gate_sums;
mod gated_xattn;
mod generate;
#[cfg(test)]
mod golden;
mod inputs;
mod language_model;
mod layers;
mod limits;
mod nfnet;
mod openflamingo;
mod openflamingo_checkpoint;
mod ops;
mod params;
mod pickle;
mod pixels;
mod placement;
mod presets;
mod resampler;
mod self_attention;
mod spare;
mod tensor;
mod torch_file;
mod translate;
#[cfg(test)]
mod variants;
mod vision;
mod vit;
mod weights_file;

pub use architecture::{Architecture, Positions, Rotary, RotaryScaling};
pub use checkpoint::{
    Snapshot, base_weights, model_folder, other_steps, read_config, save_variant,
};
pub use checksums::{CHECKSUMS_FILE, verify_checksum, write_checksums};
pub use clip::{Clip, ClipConfig, EmbeddedPairs, Pairs, Pool};
#[cfg(feature = "cuda")]
pub use cuda::CudaError;
pub use decoder::LanguageConfig;
pub use device::{Device, DeviceChoice, DeviceMemory, Precision};
pub use error::{Mismatches, ModelError};
pub use flamingo::{Flamingo, FlamingoConfig, Tower, TrainedTowers};
pub use gate_sums::{Addition, GateSums};
pub use gated_xattn::{Conditioning, CrossAttentionConfig, FirstBlock, GateKind, MediaAttention};
pub use generate::{Generation, Prompt, Scores, Search};
pub use inputs::{Inputs, Latents};
pub use language_model::{LanguageModel, LossTerms, Objective, TextBatch};
pub use layers::NormKind;
pub use nfnet::{NfnetConfig, NfnetFeatures};
pub use openflamingo::{openflamingo_export, openflamingo_names};
#[cfg(feature = "ops-bench")]
#[doc(hidden)]
pub use ops::benches as ops_bench;
#[cfg(all(feature = "cuda", feature = "ops-bench"))]
#[doc(hidden)]
pub use ops::benches_cuda as gpu_bench;
pub use ops::{Activation, AdamStep, Average, BatchEmbeddings, Moments, Recompute};
pub use params::{Parameter, Params, Trainable};
pub use pickle::PickleError;
pub use pixels::{FrameAugment, Normal, Pixels, PixelsRef, Rectangle};
pub use placement::{Bytes, NoRoom};
pub use presets::{ParameterRow, ParameterTable};
pub use resampler::{ResamplerConfig, ResamplerKind};
pub use spare::Spare;
pub use tensor::{DeviceError, Gradients, Weight};
pub use vision::VisionConfig;
pub use vit::{PatchStates, VitConfig};
pub use weights_file::Tensors;
