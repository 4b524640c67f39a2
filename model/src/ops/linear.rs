//! Affine maps: `y = x W + b`, optionally onto a residual. A frozen `W` costs no weight gradient
//! (dfdx's own product computes both gradients).

use super::wide::wide;
use rayon::prelude::*;

use super::add::add_rows_to;
use super::matmul::{Target, View, matmul, matmul_here};
use crate::buffer::Buffer;
use crate::tensor::{DeviceError, Matrix, Record, Weight, record};

/// How a kernel lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KernelLayout {
    /// `[out, in]`, PyTorch's `Linear`.
    OutIn,
    /// `[in, out]`, GPT-2's `Conv1D`.
    InOut,
}

/// The weights of an affine map.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// `W`.
    pub(crate) weight: Weight,
    /// How `W` lies in memory.
    pub(crate) layout: KernelLayout,
    /// `b` `[O]`.
    pub(crate) bias: Option<Weight>,
    /// `O`.
    pub(crate) outputs: usize,
}

/// Rows that one thread multiplies at a time, of `n`: enough that arranging the kernel for the
/// registers, which every product does anew, is a small part; few enough that many threads get
/// some.
fn rows_per_piece(n: usize) -> usize {
    n.div_ceil(16).clamp(128, 1024)
}

/// `x` `[N, I]` times a kernel of `O` outputs, plus its bias: `[N, O]`.
///
/// # Errors
/// When the device fails.
pub(crate) fn linear<T: Record>(x: Matrix<T>, kernel: Kernel) -> Result<Matrix<T>, DeviceError> {
    affine(x, kernel, None)
}

/// As [`linear`], plus `residual` `[N, O]`.
///
/// # Errors
/// When the device fails.
pub(crate) fn linear_onto<T: Record>(
    x: Matrix<T>,
    kernel: Kernel,
    residual: Matrix,
) -> Result<Matrix<T>, DeviceError> {
    affine(x, kernel, Some(residual))
}

fn affine<T: Record>(
    x: Matrix<T>,
    kernel: Kernel,
    residual: Option<Matrix>,
) -> Result<Matrix<T>, DeviceError> {
    let (x, tape) = x.split();
    let out = kernel.forward(&x, residual.as_ref());
    let wanted = x.wants_gradient()
        || kernel.weight.is_trained()
        || kernel.bias.as_ref().is_some_and(Weight::is_trained)
        || residual.as_ref().is_some_and(Matrix::wants_gradient);
    record(out, kernel.outputs, tape, wanted, move |grad_out, store| {
        if x.wants_gradient() {
            x.give_gradient(store, kernel.backward(&grad_out, x.width()))?;
        }
        kernel.weight.accumulate(store, |sum| kernel.add_gradient(sum, &x, &grad_out))?;
        if let Some(bias) = &kernel.bias {
            bias.accumulate(store, |sum| add_rows_to(sum, &grad_out))?;
        }
        residual.map_or(Ok(()), |residual| residual.give_gradient(store, grad_out))
    })
}

impl Kernel {
    fn forward(&self, x: &Matrix, residual: Option<&Matrix>) -> Buffer {
        let (inputs, outputs) = (x.width(), self.outputs);
        let weight = self.weight.values();
        let weight = self.as_in_out(&weight, inputs);
        let bias = self.bias.as_ref().map(Weight::values);
        let mut out = Buffer::unset(x.rows() * outputs);
        let at_a_time = rows_per_piece(x.rows());
        let piece = |(i, out): (usize, &mut [f32])| {
            let rows = out.len() / outputs;
            let first = i * at_a_time;
            start_rows(
                out,
                residual.map(|r| &r.values()[first * outputs..][..rows * outputs]),
                bias.as_deref(),
            );
            let x = View::rows(x.values(), inputs).at(first, 0);
            let add = residual.is_some() || bias.is_some();
            let target = Target { add, ..Target::rows(out, outputs) };
            matmul_here(rows, inputs, outputs, 1.0, x, weight, target);
        };
        out.par_chunks_mut(at_a_time * outputs).enumerate().for_each(piece);
        out
    }

    /// Gradient of the input: `grad_out W'`.
    fn backward(&self, grad_out: &[f32], inputs: usize) -> Buffer {
        let outputs = self.outputs;
        let weight = self.weight.values();
        let back = self.as_in_out(&weight, inputs).t(); // [O, I]
        let n = grad_out.len() / outputs;
        let mut grad = Buffer::unset(n * inputs);
        grad.par_chunks_mut(rows_per_piece(n) * inputs)
            .zip(grad_out.par_chunks(rows_per_piece(n) * outputs))
            .for_each(|(grad, g)| {
                let rows = grad.len() / inputs;
                let g = View::rows(g, outputs);
                matmul_here(rows, outputs, inputs, 1.0, g, back, Target::rows(grad, inputs));
            });
        grad
    }

    /// Adds the gradient of the weight: `x' grad_out`, in the weight's layout.
    fn add_gradient(&self, sum: &mut [f32], x: &Matrix, grad_out: &[f32]) {
        let (n, inputs, outputs) = (x.rows(), x.width(), self.outputs);
        let (x, grad) = (View::rows(x.values(), inputs), View::rows(grad_out, outputs));
        match self.layout {
            KernelLayout::OutIn => {
                let target = Target::rows(sum, inputs).adding();
                matmul(outputs, n, inputs, 1.0, grad.t(), x, target);
            }
            KernelLayout::InOut => {
                let target = Target::rows(sum, outputs).adding();
                matmul(inputs, n, outputs, 1.0, x.t(), grad, target);
            }
        }
    }

    /// The kernel as `[in, out]`.
    fn as_in_out<'a>(&self, weight: &'a [f32], inputs: usize) -> View<'a> {
        match self.layout {
            KernelLayout::OutIn => View::rows(weight, inputs).t(),
            KernelLayout::InOut => View::rows(weight, self.outputs),
        }
    }
}

/// Fills rows with what a product is added to: residual, bias, both or nothing.
fn start_rows(out: &mut [f32], residual: Option<&[f32]>, bias: Option<&[f32]>) {
    if let Some(residual) = residual {
        out.copy_from_slice(residual);
    }
    let Some(bias) = bias else { return };
    for row in out.chunks_exact_mut(bias.len()) {
        match residual {
            Some(_) => wide!(row.iter_mut().zip(bias).for_each(|(o, b)| *o += b)),
            None => row.copy_from_slice(bias),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::{check, pseudo_random};

    #[test]
    fn gradients_equal_finite_differences() {
        for layout in [KernelLayout::OutIn, KernelLayout::InOut] {
            let kernel = |w: &[Weight]| Kernel {
                weight: w[0].clone(),
                layout,
                bias: Some(w[1].clone()),
                outputs: 4,
            };
            check(
                &[(pseudo_random(15, 1), 5), (pseudo_random(12, 4), 4)],
                &[pseudo_random(20, 2), pseudo_random(4, 3)],
                2e-3,
                |t, x, w| linear_onto(x[0].clone().with(t), kernel(w), x[1].clone()).unwrap(),
                |t, x, w| linear_onto(x[0].clone().with(t), kernel(w), x[1].clone()).unwrap(),
            );
            check(
                &[(pseudo_random(15, 1), 5)],
                &[pseudo_random(20, 2), pseudo_random(4, 3)],
                2e-3,
                |t, x, w| linear(x[0].clone().with(t), kernel(w)).unwrap(),
                |t, x, w| linear(x[0].clone().with(t), kernel(w)).unwrap(),
            );
        }
    }
}
