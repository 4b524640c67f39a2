//! Element-wise activations of the feed-forward layers.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::CHUNK;
use super::wide::{normal_distribution, sigmoid, wide};
use crate::buffer::Buffer;
use crate::tensor::{DeviceError, Matrix, Record, record};

/// An activation, by the name that Hugging Face configurations give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// `x * Phi(x)` with the exact error function.
    #[serde(rename = "gelu")]
    Gelu,
    /// GPT-2's approximation by tanh.
    #[serde(rename = "gelu_new")]
    GeluTanh,
    /// CLIP's `x * sigmoid(1.702 x)`.
    #[serde(rename = "quick_gelu")]
    QuickGelu,
    /// `max(x, 0)`, OPT's.
    #[serde(rename = "relu")]
    Relu,
    /// `x * sigmoid(x)`, `LLaMA`'s.
    #[serde(rename = "silu")]
    Silu,
    /// `max(x, 0)^2`, the paper's choice for resampler and gated cross-attention (table 5).
    #[serde(rename = "sqrelu")]
    SquaredRelu,
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const TANH_CUBIC: f32 = 0.044_715;
const QUICK_SLOPE: f32 = 1.702;

#[expect(clippy::inline_always, reason = "must become part of the wide loop around it")]
impl Activation {
    /// Writes the activation of every `x`. The choice is made once per chunk, so that each loop can
    /// be wide.
    #[inline(always)]
    pub(super) fn values(self, out: &mut [f32], x: &[f32]) {
        match self {
            Self::Gelu => map(out, x, |x| x * normal_distribution(x).0),
            // 0.5 (1 + tanh u) = sigmoid(2 u).
            Self::GeluTanh => map(out, x, |x| x * sigmoid(2.0 * tanh_argument(x))),
            Self::QuickGelu => map(out, x, |x| x * sigmoid(QUICK_SLOPE * x)),
            Self::Relu => map(out, x, |x| x.max(0.0)),
            Self::Silu => map(out, x, |x| x * sigmoid(x)),
            Self::SquaredRelu => map(out, x, |x| x.max(0.0) * x.max(0.0)),
        }
    }

    /// Multiplies the gradients `g` by the activation's slope at every `x`.
    #[inline(always)]
    pub(super) fn times_slope(self, g: &mut [f32], x: &[f32]) {
        match self {
            Self::Gelu => scale(g, x, |x| {
                let (below, density) = normal_distribution(x);
                below + x * density
            }),
            Self::GeluTanh => scale(g, x, |x| {
                let s = sigmoid(2.0 * tanh_argument(x));
                let inner = SQRT_2_OVER_PI * (1.0 + 3.0 * TANH_CUBIC * x * x);
                s + x * 2.0 * s * (1.0 - s) * inner
            }),
            Self::QuickGelu => scale(g, x, |x| {
                let s = sigmoid(QUICK_SLOPE * x);
                s + QUICK_SLOPE * x * s * (1.0 - s)
            }),
            Self::Relu => scale(g, x, |x| if x > 0.0 { 1.0 } else { 0.0 }),
            Self::Silu => scale(g, x, |x| {
                let s = sigmoid(x);
                s + x * s * (1.0 - s)
            }),
            Self::SquaredRelu => scale(g, x, |x| 2.0 * x.max(0.0)),
        }
    }
}

#[expect(clippy::inline_always, reason = "must become part of the wide loop around it")]
#[inline(always)]
fn tanh_argument(x: f32) -> f32 {
    SQRT_2_OVER_PI * (x + TANH_CUBIC * x * x * x)
}

#[expect(clippy::inline_always, reason = "must become part of the wide call around it")]
#[inline(always)]
fn map(out: &mut [f32], x: &[f32], f: impl Fn(f32) -> f32) {
    out.iter_mut().zip(x).for_each(|(o, x)| *o = f(*x));
}

#[expect(clippy::inline_always, reason = "must become part of the wide call around it")]
#[inline(always)]
fn scale(g: &mut [f32], x: &[f32], slope: impl Fn(f32) -> f32) {
    g.iter_mut().zip(x).for_each(|(g, x)| *g *= slope(*x));
}

/// Applies `kind` to every element.
///
/// # Errors
/// When the device fails.
pub(crate) fn activate<T: Record>(
    x: Matrix<T>,
    kind: Activation,
) -> Result<Matrix<T>, DeviceError> {
    activate_times(x, kind, 1.0)
}

/// Applies `kind` to every element and multiplies by `factor`.
///
/// # Errors
/// When the device fails.
pub(crate) fn activate_times<T: Record>(
    x: Matrix<T>,
    kind: Activation,
    factor: f32,
) -> Result<Matrix<T>, DeviceError> {
    #[cfg(feature = "cuda")]
    if x.array().is_some() {
        return cuda::activate_times(x, kind, factor);
    }
    let (x, tape) = x.split();
    let mut out = Buffer::unset(x.values().len());
    // While a chunk is in the cache, so that it costs no pass over memory; times 1 is exact.
    let times = move |values: &mut [f32]| {
        if factor.to_bits() != 1.0_f32.to_bits() {
            wide!(values.iter_mut().for_each(|v| *v *= factor));
        }
    };
    out.par_chunks_mut(CHUNK).zip(x.values().par_chunks(CHUNK)).for_each(|(out, x)| {
        wide!(kind.values(out, x));
        times(out);
    });
    record(out, x.width(), tape, x.wants_gradient(), move |mut grad, store| {
        grad.par_chunks_mut(CHUNK).zip(x.values().par_chunks(CHUNK)).for_each(|(g, x)| {
            wide!(kind.times_slope(g, x));
            times(g);
        });
        x.give_gradient(store, grad)
    })
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::Activation;
    use crate::cuda::{Arg, Grid, PER_THREAD, kernel, long};
    use crate::tensor::{DeviceError, Matrix, Record, record_on_gpu};

    impl From<Activation> for Arg {
        /// The number by which the kernels know it.
        fn from(kind: Activation) -> Self {
            Self::I32(kind as i32)
        }
    }

    pub(super) fn activate_times<T: Record>(
        x: Matrix<T>,
        kind: Activation,
        factor: f32,
    ) -> Result<Matrix<T>, DeviceError> {
        let (x, tape) = x.split();
        let input = x.gpu_array();
        let (gpu, n) = (input.gpu(), input.len());
        let out = gpu.unset(n, gpu.kind())?;
        let grid = Grid::each(n.div_ceil(PER_THREAD));
        let args = [input.into(), (&out).into(), long(n), kind.into(), factor.into()];
        gpu.launch(kernel!("activate", gpu.kind()), grid, &args)?;
        record_on_gpu(out, x.width(), tape, x.wants_gradient(), move |grad, store| {
            let input = x.gpu_array();
            let args = [input.into(), (&grad).into(), long(n), kind.into(), factor.into()];
            gpu.launch(kernel!("activate_backward", gpu.kind()), grid, &args)?;
            x.give_array(store, grad)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::formula::activated;
    use crate::ops::gradient_check::{check, pseudo_random};

    #[test]
    fn values_and_gradients_equal_the_formula() {
        for kind in [
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::QuickGelu,
            Activation::Relu,
            Activation::Silu,
            Activation::SquaredRelu,
        ] {
            // Away from 0, where `ReLU` has a kink.
            let x: Vec<f32> = pseudo_random(44, 1).iter().map(|v| v * 4.0 + 0.01).collect();
            check(
                &[(x, 4)],
                &[],
                |t, x, _| activate(x[0].clone().with(t), kind).unwrap(),
                |t, x, _| activate(x[0].clone().with(t), kind).unwrap(),
                |x, _| x[0].iter().map(|x| activated(kind, *x)).collect(),
            );
            check(
                &[(pseudo_random(44, 2), 4)],
                &[],
                |t, x, _| activate_times(x[0].clone().with(t), kind, 1.75).unwrap(),
                |t, x, _| activate_times(x[0].clone().with(t), kind, 1.75).unwrap(),
                |x, _| x[0].iter().map(|x| 1.75 * activated(kind, *x)).collect(),
            );
        }
    }
}
