//! Affine maps: `y = x W + b`, optionally onto a residual. A frozen `W` costs no weight gradient
//! (dfdx's own product computes both gradients).

use rayon::prelude::*;

use super::add::add_rows_to;
use super::matmul::{Target, View, matmul};
use super::wide::{dot, wide};
use crate::buffer::Buffer;
use crate::tensor::{DeviceError, Matrix, Record, Weight, record};

/// The weights of an affine map.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// `W'` `[O, I]`, as PyTorch's `Linear` has it.
    pub(crate) weight: Weight,
    /// `b` `[O]`.
    pub(crate) bias: Option<Weight>,
    /// `O`.
    pub(crate) outputs: usize,
    /// Whether only gradients are wanted: the result has any values.
    pub(crate) unread: bool,
}

/// Whether each row of an affine map's result is the same, bit by bit, with `rows` rows and with
/// more: few rows go by dot products, and `gemm` has a kernel of its own for up to 256 results; all
/// others add in an order that the number of inputs decides.
pub(crate) fn adds_in_one_order(rows: usize, outputs: usize) -> bool {
    rows > FEW_ROWS && rows * outputs > 256
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
    #[cfg(feature = "cuda")]
    if x.array().is_some() {
        return cuda::affine(x, kernel, residual);
    }
    let (x, tape) = x.split();
    let out = kernel.forward(&x, residual.as_ref());
    let wanted = x.wants_gradient()
        || kernel.weight.is_trained()
        || kernel.bias.as_ref().is_some_and(Weight::is_trained)
        || residual.as_ref().is_some_and(Matrix::wants_gradient);
    // Only the gradient of the kernel is made of the input's values.
    let x = if kernel.weight.is_trained() { x } else { x.without_values() };
    let residual = residual.map(Matrix::without_values);
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
        let bias = self.bias.as_ref().map(Weight::values);
        let mut out = Buffer::unset(x.rows() * outputs);
        if self.unread {
            return out;
        }
        if (1..=FEW_ROWS).contains(&x.rows()) {
            start_rows(&mut out, residual.map(Matrix::values), bias.as_deref());
            add_few_rows(&mut out, x, &weight, residual.is_some() || bias.is_some());
            return out;
        }
        let add = residual.is_some() || bias.is_some();
        if add {
            let chunk = outputs * super::rows_per_chunk(outputs);
            out.par_chunks_mut(chunk).enumerate().for_each(|(i, out)| {
                let residual = residual.map(|r| &r.values()[i * chunk..][..out.len()]);
                start_rows(out, residual, bias.as_deref());
            });
        }
        let (x_rows, weight) = (View::rows(x.values(), inputs), View::rows(&weight, inputs).t());
        let target = Target { add, ..Target::rows(&mut out, outputs) };
        matmul(x.rows(), inputs, outputs, 1.0, x_rows, weight, target);
        out
    }

    /// Gradient of the input: `grad_out W'`.
    fn backward(&self, grad_out: &[f32], inputs: usize) -> Buffer {
        let outputs = self.outputs;
        let weight = self.weight.values();
        let n = grad_out.len() / outputs;
        let mut grad = Buffer::unset(n * inputs);
        let (g, back) = (View::rows(grad_out, outputs), View::rows(&weight, inputs));
        matmul(n, outputs, inputs, 1.0, g, back, Target::rows(&mut grad, inputs));
        grad
    }

    /// Adds the gradient of the weight: `grad_out' x`.
    fn add_gradient(&self, sum: &mut [f32], x: &Matrix, grad_out: &[f32]) {
        let (n, inputs, outputs) = (x.rows(), x.width(), self.outputs);
        let (x, grad) = (View::rows(x.values(), inputs), View::rows(grad_out, outputs));
        matmul(outputs, n, inputs, 1.0, grad.t(), x, Target::rows(sum, inputs).adding());
    }
}

/// Up to so many rows are multiplied by dot products: each row of the kernel is read once, as it
/// lies, which is all the time that a product with so few rows takes.
const FEW_ROWS: usize = 4;

/// Adds to `out` `[n, O]`, or writes it, the product of few rows `x` `[n, I]` with `weight` `[O, I]`.
fn add_few_rows(out: &mut [f32], x: &Matrix, weight: &[f32], add: bool) {
    let (n, inputs) = (x.rows(), x.width());
    let outputs = weight.len() / inputs;
    let mut products = Buffer::unset(outputs * n); // [O, n]
    let at_a_time = super::rows_per_chunk(inputs);
    products.par_chunks_mut(at_a_time * n).zip(weight.par_chunks(at_a_time * inputs)).for_each(
        |(products, weight)| {
            wide!({
                for (products, w) in products.chunks_exact_mut(n).zip(weight.chunks_exact(inputs)) {
                    for (product, x) in products.iter_mut().zip(x.values().chunks_exact(inputs)) {
                        *product = dot(w, x);
                    }
                }
            });
        },
    );
    for (row, out) in out.chunks_exact_mut(outputs).enumerate() {
        for (o, products) in out.iter_mut().zip(products.chunks_exact(n)) {
            *o = if add { *o + products[row] } else { products[row] };
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

#[cfg(feature = "cuda")]
mod cuda {
    use super::super::add::cuda::{add_column_sums, on_gpu};
    use super::Kernel;
    use crate::cuda::{Factor, Product};
    use crate::tensor::{DeviceError, Matrix, Record, Weight, record_on_gpu};

    pub(super) fn affine<T: Record>(
        x: Matrix<T>,
        kernel: Kernel,
        residual: Option<Matrix>,
    ) -> Result<Matrix<T>, DeviceError> {
        let (x, tape) = x.split();
        let (rows, inputs, outputs) = (x.rows(), x.width(), kernel.outputs);
        let input = x.gpu_array();
        let (gpu, kind) = (input.gpu(), input.kind());
        let rows_of = move |address, stride| Factor { address, stride, transposed: false, kind };
        let out = gpu.unset(rows * outputs, kind)?;
        if !kernel.unread {
            let weight = on_gpu(&kernel.weight).array().address();
            gpu.multiply(&Product {
                rows,
                inner: inputs,
                columns: outputs,
                left: rows_of(input.address(), inputs),
                right: Factor { transposed: true, ..rows_of(weight, inputs) },
                alpha: 1.0,
                add: residual.as_ref().and_then(Matrix::array).map(|r| r.address()),
                bias: kernel.bias.as_ref().map(|bias| on_gpu(bias).array().address()),
                out: out.address(),
                out_stride: outputs,
                out_kind: kind,
            })?;
        }
        let wanted = x.wants_gradient()
            || kernel.weight.is_trained()
            || kernel.bias.as_ref().is_some_and(Weight::is_trained)
            || residual.as_ref().is_some_and(Matrix::wants_gradient);
        // Only the gradient of the kernel is made of the input's values.
        let x = if kernel.weight.is_trained() { x } else { x.without_values() };
        let residual = residual.map(Matrix::without_values);
        record_on_gpu(out, outputs, tape, wanted, move |grad_out, store| {
            let g = rows_of(grad_out.address(), outputs);
            if x.wants_gradient() {
                let grad = gpu.unset(rows * inputs, kind)?;
                gpu.multiply(&Product {
                    rows,
                    inner: outputs,
                    columns: inputs,
                    left: g,
                    right: rows_of(on_gpu(&kernel.weight).array().address(), inputs),
                    alpha: 1.0,
                    add: None,
                    bias: None,
                    out: grad.address(),
                    out_stride: inputs,
                    out_kind: kind,
                })?;
                x.give_array(store, grad)?;
            }
            if kernel.weight.is_trained() {
                let weight = on_gpu(&kernel.weight);
                let (sum, adds) = weight.gradient_to_write(store.device())?;
                let input = x.gpu_array().address();
                gpu.multiply(&Product {
                    rows: outputs,
                    inner: rows,
                    columns: inputs,
                    left: Factor { transposed: true, ..g },
                    right: rows_of(input, inputs),
                    alpha: 1.0,
                    add: adds.then(|| sum.address()),
                    bias: None,
                    out: sum.address(),
                    out_stride: inputs,
                    out_kind: sum.kind(),
                })?;
            }
            if let Some(bias) = &kernel.bias {
                add_column_sums(bias, store, &grad_out, outputs, outputs)?;
            }
            residual.map_or(Ok(()), |residual| residual.give_array(store, grad_out))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::formula::{by_column, product};
    use crate::ops::gradient_check::{check, pseudo_random};

    #[test]
    fn values_and_gradients_equal_the_formula() {
        let kernel = |w: &[Weight]| Kernel {
            weight: w[0].clone(),
            bias: w.get(1).cloned(),
            outputs: 4,
            unread: false,
        };
        let formula = |x: &[f64], w: &[Vec<f64>]| {
            let out = product(x, &w[0], 5);
            w.get(1).map_or_else(|| out.clone(), |bias| by_column(&out, bias, |v, b| v + b))
        };
        // 3 rows go by dot products, 6 by the library's product.
        for (n, n_weights) in [(3, 1), (3, 2), (6, 1), (6, 2)] {
            let x = (pseudo_random(n * 5, 1), 5);
            let weights = [pseudo_random(20, 2), pseudo_random(4, 3)];
            check(
                &[x.clone(), (pseudo_random(n * 4, 4), 4)],
                &weights[..n_weights],
                |t, x, w| linear_onto(x[0].clone().with(t), kernel(w), x[1].clone()).unwrap(),
                |t, x, w| linear_onto(x[0].clone().with(t), kernel(w), x[1].clone()).unwrap(),
                |x, w| {
                    formula(&x[0], w).iter().zip(&x[1]).map(|(v, residual)| v + residual).collect()
                },
            );
            check(
                &[x],
                &weights[..n_weights],
                |t, x, w| linear(x[0].clone().with(t), kernel(w)).unwrap(),
                |t, x, w| linear(x[0].clone().with(t), kernel(w)).unwrap(),
                |x, w| formula(&x[0], w),
            );
        }
    }
}
