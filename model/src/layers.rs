//! The layers that every tower is built of: affine map, layer norm, feed-forward.

use crate::error::ModelError;
use crate::ops::{self, Activation, Kernel, KernelLayout};
use crate::params::{Declare, ParamId, Params, Start};
use crate::tensor::{DeviceError, Matrix, Record};

/// An affine map.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    kernel: ParamId,
    bias: Option<ParamId>,
    layout: KernelLayout,
    outputs: usize,
}

impl Linear {
    /// PyTorch's `Linear`: `NAME.weight` `[out, in]`, without bias.
    pub(crate) fn new(
        declare: &mut Declare,
        name: &str,
        inputs: usize,
        outputs: usize,
    ) -> Result<Self, ModelError> {
        let start = Start::Normal((inputs as f32).sqrt().recip());
        let kernel = declare.add(format!("{name}.weight"), &[outputs, inputs], start)?;
        Ok(Self { kernel, bias: None, layout: KernelLayout::OutIn, outputs })
    }

    /// GPT-2's `Conv1D`: `NAME.weight` `[in, out]` and `NAME.bias`.
    pub(crate) fn gpt2(
        declare: &mut Declare,
        name: &str,
        inputs: usize,
        outputs: usize,
        start: Start,
    ) -> Result<Self, ModelError> {
        let kernel = declare.add(format!("{name}.weight"), &[inputs, outputs], start)?;
        let bias = declare.add(format!("{name}.bias"), &[outputs], Start::Constant(0.0))?;
        Ok(Self { kernel, bias: Some(bias), layout: KernelLayout::InOut, outputs })
    }

    /// `[N, in]` to `[N, out]`.
    pub(crate) fn forward<T: Record>(
        &self,
        p: &Params,
        x: Matrix<T>,
    ) -> Result<Matrix<T>, DeviceError> {
        ops::linear(x, self.kernel(p))
    }

    /// As [`Linear::forward`], plus `residual` `[N, out]`.
    pub(crate) fn forward_onto<T: Record>(
        &self,
        p: &Params,
        x: Matrix<T>,
        residual: Matrix,
    ) -> Result<Matrix<T>, DeviceError> {
        ops::linear_onto(x, self.kernel(p), residual)
    }

    fn kernel(&self, p: &Params) -> Kernel {
        Kernel {
            weight: p.get(self.kernel).clone(),
            layout: self.layout,
            bias: self.bias.map(|id| p.get(id).clone()),
            outputs: self.outputs,
        }
    }
}

/// Layer norm with `NAME.weight` and `NAME.bias`.
#[derive(Debug, Clone)]
pub(crate) struct LayerNorm {
    scale: ParamId,
    bias: ParamId,
    epsilon: f32,
}

impl LayerNorm {
    pub(crate) fn new(
        declare: &mut Declare,
        name: &str,
        width: usize,
        epsilon: f32,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            scale: declare.add(format!("{name}.weight"), &[width], Start::Constant(1.0))?,
            bias: declare.add(format!("{name}.bias"), &[width], Start::Constant(0.0))?,
            epsilon,
        })
    }

    /// `[N, D]` to `[N, D]`.
    pub(crate) fn forward<T: Record>(
        &self,
        p: &Params,
        x: Matrix<T>,
    ) -> Result<Matrix<T>, DeviceError> {
        ops::layer_norm(x, p.get(self.scale), p.get(self.bias), self.epsilon)
    }
}

/// Times that the hidden layer of a feed-forward is wider than its ends (paper, table 5).
pub(crate) const FEED_FORWARD_WIDENING: usize = 4;
/// Epsilon of the layer norms of resampler and gated cross-attention; the paper does not state one.
pub(crate) const NORM_EPSILON: f32 = 1e-5;

/// Norm, up, activation, down, without biases (paper, appendix A.1): `NAME.norm`, `NAME.up`,
/// `NAME.down`.
#[derive(Debug, Clone)]
pub(crate) struct FeedForward {
    norm: LayerNorm,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl FeedForward {
    pub(crate) fn new(
        declare: &mut Declare,
        name: &str,
        width: usize,
        activation: Activation,
    ) -> Result<Self, ModelError> {
        let hidden = FEED_FORWARD_WIDENING * width;
        Ok(Self {
            norm: LayerNorm::new(declare, &format!("{name}.norm"), width, NORM_EPSILON)?,
            up: Linear::new(declare, &format!("{name}.up"), width, hidden)?,
            down: Linear::new(declare, &format!("{name}.down"), hidden, width)?,
            activation,
        })
    }

    /// `[N, D]` to `[N, D]`, without the residual sum.
    pub(crate) fn forward<T: Record>(
        &self,
        p: &Params,
        x: Matrix<T>,
    ) -> Result<Matrix<T>, DeviceError> {
        self.down.forward(p, self.hidden(p, x)?)
    }

    /// `x + forward(x)`.
    pub(crate) fn forward_residual<T: Record>(
        &self,
        p: &Params,
        x: Matrix<T>,
    ) -> Result<Matrix<T>, DeviceError> {
        let (x, tape) = x.split();
        self.down.forward_onto(p, self.hidden(p, x.clone().with(tape))?, x)
    }

    fn hidden<T: Record>(&self, p: &Params, x: Matrix<T>) -> Result<Matrix<T>, DeviceError> {
        let x = self.up.forward(p, self.norm.forward(p, x)?)?; // [N, 4 D]
        ops::activate(x, self.activation)
    }
}
