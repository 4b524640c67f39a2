//! Self-attention of the trained parts, before its residual sum: the resampler's Transformer
//! variant and grafted layers.

use crate::error::ModelError;
use crate::layers::{LayerNorm, Linear, NORM_EPSILON};
use crate::ops::Heads;
use crate::params::{Declare, Params};
use crate::tensor::{DeviceError, Matrix, Record};

/// Norm, then queries, keys and values without bias: `NAMEnorm`, `NAMEattn.qkv`, `NAMEattn.o`.
#[derive(Debug, Clone)]
pub(crate) struct SelfAttention {
    norm: LayerNorm,
    to_qkv: Linear,
    /// From what the heads read, `[N, H K]`, to the width of the states.
    pub(crate) to_out: Linear,
    /// The heads.
    pub(crate) heads: Heads,
}

impl SelfAttention {
    /// Declares the layer under `name`, which ends in a dot.
    pub(crate) fn new(
        declare: &mut Declare,
        name: &str,
        width: usize,
        heads: usize,
        head_dim: usize,
    ) -> Result<Self, ModelError> {
        let inner = heads * head_dim;
        let at = |part: &str| format!("{name}{part}");
        Ok(Self {
            norm: LayerNorm::new(declare, &at("norm"), width, NORM_EPSILON)?,
            to_qkv: Linear::new(declare, &at("attn.qkv"), width, 3 * inner)?,
            to_out: Linear::new(declare, &at("attn.o"), inner, width)?,
            heads: Heads { queries: heads, keys: heads, size: head_dim },
        })
    }

    /// What the heads read for states `x` `[N, D]`: `[N, H K]`; `attend` turns queries, keys and
    /// values `[N, 3 H K]` into it.
    pub(crate) fn read<T: Record>(
        &self,
        p: &Params,
        x: Matrix<T>,
        attend: impl FnOnce(Matrix<T>) -> Result<Matrix<T>, DeviceError>,
    ) -> Result<Matrix<T>, DeviceError> {
        attend(self.to_qkv.forward(p, self.norm.forward(p, x)?)?)
    }
}
