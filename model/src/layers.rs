//! The layers that every tower is built of: affine map, norm, feed-forward.

use serde::{Deserialize, Serialize};

use crate::error::ModelError;
use crate::ops::{self, Activation, Kernel};
use crate::params::{Declare, ParamId, Params, Start};
use crate::tensor::{DeviceError, Matrix, Record};

/// An affine map.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    kernel: ParamId,
    bias: Option<ParamId>,
    outputs: usize,
    unread: bool,
}

impl Linear {
    /// `NAME.weight` `[out, in]` without bias, normal with deviation `1 / sqrt(in)`.
    pub(crate) fn new(
        declare: &mut Declare,
        name: &str,
        inputs: usize,
        outputs: usize,
    ) -> Result<Self, ModelError> {
        Self::starting(declare, name, (inputs, outputs), false, fan_in(inputs))
    }

    /// `NAME.weight` `[out, in]`, which starts as told, and `NAME.bias` `[out]` if there is to be
    /// one.
    pub(crate) fn starting(
        declare: &mut Declare,
        name: &str,
        (inputs, outputs): (usize, usize),
        bias: bool,
        start: Start,
    ) -> Result<Self, ModelError> {
        let kernel = declare.add(format!("{name}.weight"), &[outputs, inputs], start)?;
        let bias = bias
            .then(|| declare.add(format!("{name}.bias"), &[outputs], Start::Constant(0.0)))
            .transpose()?;
        Ok(Self { kernel, bias, outputs, unread: false })
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

    /// The same map, whose result has any values: for gradients alone.
    pub(crate) fn unread(self) -> Self {
        Self { unread: true, ..self }
    }

    /// Whether the kernel is trained.
    pub(crate) fn is_trained(&self, p: &Params) -> bool {
        p.get(self.kernel).is_trained()
    }

    fn kernel(&self, p: &Params) -> Kernel {
        Kernel {
            weight: p.get(self.kernel).clone(),
            bias: self.bias.map(|id| p.get(id).clone()),
            outputs: self.outputs,
            unread: self.unread,
        }
    }
}

/// The start of a kernel with so many inputs: normal with deviation `1 / sqrt(inputs)`.
pub(crate) fn fan_in(inputs: usize) -> Start {
    Start::Normal((inputs as f32).sqrt().recip())
}

pub(crate) type LayerNorm = Norm;

/// The kinds of norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormKind {
    /// Layer norm with scale and bias.
    #[default]
    Layer,
    /// Layer norm with scale alone, MPT's.
    LayerWithoutBias,
    /// Root-mean-square norm, `LLaMA`'s.
    RootMeanSquare,
}

/// A norm with `NAME.weight` and, if its kind has one, `NAME.bias`.
#[derive(Debug, Clone)]
pub(crate) struct Norm {
    scale: ParamId,
    bias: Option<ParamId>,
    kind: NormKind,
    epsilon: f32,
}

impl Norm {
    /// A layer norm with bias.
    pub(crate) fn new(
        declare: &mut Declare,
        name: &str,
        width: usize,
        epsilon: f32,
    ) -> Result<Self, ModelError> {
        Self::of_kind(declare, name, width, NormKind::Layer, epsilon)
    }

    pub(crate) fn of_kind(
        declare: &mut Declare,
        name: &str,
        width: usize,
        kind: NormKind,
        epsilon: f32,
    ) -> Result<Self, ModelError> {
        let scale = declare.add(format!("{name}.weight"), &[width], Start::Constant(1.0))?;
        let bias = (kind == NormKind::Layer)
            .then(|| declare.add(format!("{name}.bias"), &[width], Start::Constant(0.0)))
            .transpose()?;
        Ok(Self { scale, bias, kind, epsilon })
    }

    /// `[N, D]` to `[N, D]`.
    pub(crate) fn forward<T: Record>(
        &self,
        p: &Params,
        x: Matrix<T>,
    ) -> Result<Matrix<T>, DeviceError> {
        ops::normalise(x, self.weights(p))
    }

    /// As [`Norm::forward`], on the columns of `x` `[N, W]` from `column` on.
    pub(crate) fn forward_columns<T: Record>(
        &self,
        p: &Params,
        x: Matrix<T>,
        column: usize,
    ) -> Result<Matrix<T>, DeviceError> {
        let weights = self.weights(p);
        let width = weights.scale.len();
        ops::normalise_columns(x, column..column + width, weights)
    }

    fn weights(&self, p: &Params) -> ops::Norm {
        ops::Norm {
            scale: p.get(self.scale).clone(),
            bias: self.bias.map(|id| p.get(id).clone()),
            centred: self.kind != NormKind::RootMeanSquare,
            epsilon: self.epsilon,
        }
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
    norm: Norm,
    up: Linear,
    /// From the hidden layer, `[N, 4 D]`, back to `[N, D]`.
    pub(crate) down: Linear,
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
            norm: Norm::new(declare, &format!("{name}.norm"), width, NORM_EPSILON)?,
            up: Linear::new(declare, &format!("{name}.up"), width, hidden)?,
            down: Linear::new(declare, &format!("{name}.down"), hidden, width)?,
            activation,
        })
    }

    /// `[N, D]` to `[N, D]`: `x` plus the feed-forward of `x`.
    pub(crate) fn forward_residual<T: Record>(
        &self,
        p: &Params,
        x: Matrix<T>,
    ) -> Result<Matrix<T>, DeviceError> {
        let (x, tape) = x.split();
        self.down.forward_onto(p, self.hidden(p, x.clone().with(tape))?, x)
    }

    /// The hidden layer: `[N, D]` to `[N, 4 D]`.
    pub(crate) fn hidden<T: Record>(
        &self,
        p: &Params,
        x: Matrix<T>,
    ) -> Result<Matrix<T>, DeviceError> {
        let x = self.up.forward(p, self.norm.forward(p, x)?)?; // [N, 4 D]
        ops::activate(x, self.activation)
    }
}
