//! The pre-norm transformer block of GPT-2 and CLIP, shared by every tower: attention, then
//! feed-forward, each after a layer norm and onto a residual. Names and kernel layout are GPT-2's.

use crate::error::ModelError;
use crate::layers::{FEED_FORWARD_WIDENING, LayerNorm, Linear, NORM_EPSILON};
use crate::ops::{self, Activation};
use crate::params::{Declare, Params, Start};
use crate::tensor::{DeviceError, Matrix, Record};

/// Sizes of a stack of blocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockSize {
    pub(crate) width: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) activation: Activation,
}

/// One block.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    norm_1: LayerNorm,
    to_qkv: Linear,
    to_out: Linear,
    norm_2: LayerNorm,
    up: Linear,
    down: Linear,
    activation: Activation,
    /// Number of heads.
    pub(crate) heads: usize,
}

impl Block {
    /// Declares a block under `name`, which ends in a dot.
    ///
    /// Kernels start normal with deviation `1 / sqrt(inputs)`; those that feed the residual are
    /// divided by `sqrt(2 layers)` as in GPT-2, so that the residual's size does not grow with
    /// depth.
    pub(crate) fn new(
        declare: &mut Declare,
        name: &str,
        size: BlockSize,
    ) -> Result<Self, ModelError> {
        let width = size.width;
        let hidden = FEED_FORWARD_WIDENING * width;
        let start = |inputs: usize| Start::Normal((inputs as f32).sqrt().recip());
        let onto =
            |inputs: usize| Start::Normal(((inputs * 2 * size.layers) as f32).sqrt().recip());
        let at = |part: &str| format!("{name}{part}");
        Ok(Self {
            norm_1: LayerNorm::new(declare, &at("ln_1"), width, NORM_EPSILON)?,
            to_qkv: Linear::gpt2(declare, &at("attn.c_attn"), width, 3 * width, start(width))?,
            to_out: Linear::gpt2(declare, &at("attn.c_proj"), width, width, onto(width))?,
            norm_2: LayerNorm::new(declare, &at("ln_2"), width, NORM_EPSILON)?,
            up: Linear::gpt2(declare, &at("mlp.c_fc"), width, hidden, start(width))?,
            down: Linear::gpt2(declare, &at("mlp.c_proj"), hidden, width, onto(hidden))?,
            activation: size.activation,
            heads: size.heads,
        })
    }

    /// Declares `size.layers` blocks under `NAME0.`, `NAME1.` and so on.
    pub(crate) fn stack(
        declare: &mut Declare,
        name: &str,
        size: BlockSize,
    ) -> Result<Vec<Self>, ModelError> {
        (0..size.layers).map(|i| Self::new(declare, &format!("{name}{i}."), size)).collect()
    }

    /// `[N, D]` to `[N, D]`; `attend` turns queries, keys and values `[N, 3 D]` into what is read
    /// `[N, D]`.
    pub(crate) fn forward<T: Record>(
        &self,
        p: &Params,
        x: Matrix<T>,
        attend: impl FnOnce(Matrix<T>) -> Result<Matrix<T>, DeviceError>,
    ) -> Result<Matrix<T>, DeviceError> {
        let (x, tape) = x.split();
        let qkv = self.norm_1.forward(p, x.clone().with(tape))?; // [N, D]
        let qkv = self.to_qkv.forward(p, qkv)?; // [N, 3 D]
        let x = self.to_out.forward_onto(p, attend(qkv)?, x)?; // [N, D]
        let (x, tape) = x.split();
        let hidden = self.up.forward(p, self.norm_2.forward(p, x.clone().with(tape))?)?; // [N, 4 D]
        self.down.forward_onto(p, ops::activate(hidden, self.activation)?, x)
    }
}
