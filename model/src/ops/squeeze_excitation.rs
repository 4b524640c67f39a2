//! Squeeze and excitation (Hu and others, 2018) behind a learnt gain and onto a residual: the end
//! of an `NFNet`'s block. Letters: `M` images, `P` pixels, `C` channels, `S` squeezed channels.

use std::ops::Range;

use rayon::prelude::*;

use super::add::add_rows_to;
use super::matmul::{Target, View, matmul};
use super::wide::{sigmoid, wide};
use super::{add_to, rows_per_chunk};
use crate::buffer::Buffer;
use crate::tensor::{DeviceError, Matrix, Record, Weight, record};

/// The weights, and what multiplies the result.
#[derive(Debug, Clone)]
pub(crate) struct SqueezeExcitation {
    /// `[S, C]`.
    pub(crate) squeeze: Weight,
    /// `[S]`.
    pub(crate) squeeze_bias: Weight,
    /// `[C, S]`.
    pub(crate) excite: Weight,
    /// `[C]`.
    pub(crate) excite_bias: Weight,
    /// One value, 0 in a fresh block, which makes it the identity (De and Smith, 2020).
    pub(crate) gain: Weight,
    /// A constant beside the gain.
    pub(crate) factor: f32,
}

/// What is kept for the backward pass, per image.
struct Gates {
    /// `[M, C]`.
    means: Buffer,
    /// `[M, S]`, after the `ReLU`.
    hidden: Buffer,
    /// `[M, C]`, after the sigmoid.
    open: Buffer,
}

/// `residual + factor * gain * sigmoid(excite relu(squeeze mean(x))) * x` with the mean over the
/// `n_pixels` of each image: `[M * P, C]` to the same. The tape comes with `x`.
///
/// # Errors
/// When the device fails.
pub(crate) fn squeeze_excite_onto<T: Record>(
    x: Matrix<T>,
    residual: Matrix,
    n_pixels: usize,
    weights: SqueezeExcitation,
) -> Result<Matrix<T>, DeviceError> {
    #[cfg(feature = "cuda")]
    if x.array().is_some() {
        return cuda::squeeze_excite_onto(x, residual, n_pixels, weights);
    }
    let (x, tape) = x.split();
    let width = x.width();
    let gates = weights.gates(&x, n_pixels);
    let gain = weights.factor * weights.gain.values()[0];
    let mut out = Buffer::unset(x.values().len());
    each_image(&mut out, n_pixels * width, width, |image, start, out| {
        let open = &gates.open[image * width..][..width];
        let (x, residual) = (&x.values()[start..], &residual.values()[start..]);
        wide!(combine(out, x, residual, open, gain));
    });
    let wanted = x.wants_gradient()
        || residual.wants_gradient()
        || weights.gain.is_trained()
        || weights.excite.is_trained();
    record(out, width, tape, wanted, move |grad_out, store| {
        // What the gates get before their sigmoid: [M, C].
        let mut grad_open = sum_images(&x, n_pixels, |sum, rows| {
            let (x, g) = (&x.values()[rows.clone()], &grad_out[rows]);
            wide!(add_products(sum, x, g));
        });
        weights.gain.accumulate(store, |sum| {
            let both = grad_open.iter().zip(&*gates.open);
            let along: f64 = both.map(|(g, open)| f64::from(*g) * f64::from(*open)).sum();
            sum[0] += along as f32 * weights.factor;
        })?;
        for (g, open) in grad_open.iter_mut().zip(&*gates.open) {
            *g *= gain * open * (1.0 - open);
        }
        let grad_mean = weights.backward(&gates, &grad_open, store)?;
        if x.wants_gradient() {
            let mut grad = Buffer::unset(grad_out.len());
            let share = (n_pixels as f32).recip();
            each_image(&mut grad, n_pixels * width, width, |image, start, grad| {
                let at = image * width..(image + 1) * width;
                let (open, mean) = (&gates.open[at.clone()], &grad_mean[at]);
                wide!(spread(grad, &grad_out[start..], open, mean, gain, share));
            });
            x.give_gradient(store, grad)?;
        }
        residual.give_gradient(store, grad_out)
    })
}

impl SqueezeExcitation {
    fn gates(&self, x: &Matrix, n_pixels: usize) -> Gates {
        let width = x.width();
        let mut means = sum_images(x, n_pixels, |sum, rows| {
            for row in x.values()[rows].chunks_exact(width) {
                wide!(sum.iter_mut().zip(row).for_each(|(s, v)| *s += v));
            }
        });
        let share = (n_pixels as f32).recip();
        means.iter_mut().for_each(|v| *v *= share);
        let mut hidden = affine(&means, width, &self.squeeze, &self.squeeze_bias);
        hidden.iter_mut().for_each(|v| *v = v.max(0.0));
        let squeezed = hidden.len() / (means.len() / width);
        let mut open = affine(&hidden, squeezed, &self.excite, &self.excite_bias);
        open.iter_mut().for_each(|v| *v = sigmoid(*v));
        Gates { means, hidden, open }
    }

    /// From the gradient of the gates before their sigmoid `[M, C]` to that of the means `[M, C]`.
    fn backward(
        &self,
        gates: &Gates,
        grad: &[f32],
        store: &mut crate::tensor::Store,
    ) -> Result<Buffer, DeviceError> {
        let width = self.excite_bias.values().len();
        let images = grad.len() / width;
        let squeezed = gates.hidden.len() / images;
        let back = |g: &[f32], from: usize, weight: &Weight, to: usize| {
            let mut out = Buffer::unset(images * to);
            let (g, weight) = (View::rows(g, from), weight.values());
            matmul(images, from, to, 1.0, g, View::rows(&weight, to), Target::rows(&mut out, to));
            out
        };
        let add = |sum: &mut [f32], g: &[f32], outputs: usize, x: &[f32], inputs: usize| {
            let (g, x) = (View::rows(g, outputs).t(), View::rows(x, inputs));
            matmul(outputs, images, inputs, 1.0, g, x, Target::rows(sum, inputs).adding());
        };
        self.excite.accumulate(store, |sum| add(sum, grad, width, &gates.hidden, squeezed))?;
        self.excite_bias.accumulate(store, |sum| add_rows_to(sum, grad))?;
        let mut grad_hidden = back(grad, width, &self.excite, squeezed); // [M, S]
        for (g, hidden) in grad_hidden.iter_mut().zip(&*gates.hidden) {
            *g = if *hidden > 0.0 { *g } else { 0.0 };
        }
        self.squeeze
            .accumulate(store, |sum| add(sum, &grad_hidden, squeezed, &gates.means, width))?;
        self.squeeze_bias.accumulate(store, |sum| add_rows_to(sum, &grad_hidden))?;
        Ok(back(&grad_hidden, squeezed, &self.squeeze, width))
    }
}

/// `x` `[M, I]` times `weight` `[O, I]` transposed, plus `bias` `[O]`: `[M, O]`.
fn affine(x: &[f32], inputs: usize, weight: &Weight, bias: &Weight) -> Buffer {
    let (weight, bias) = (weight.values(), bias.values());
    let (images, outputs) = (x.len() / inputs, bias.len());
    let mut out = Buffer::unset(images * outputs);
    out.chunks_exact_mut(outputs).for_each(|row| row.copy_from_slice(&bias));
    let (x, weight) = (View::rows(x, inputs), View::rows(&weight, inputs).t());
    matmul(images, inputs, outputs, 1.0, x, weight, Target::rows(&mut out, outputs).adding());
    out
}

/// Sums over the pixels of each image: `[M, C]`. `add` adds the rows that hold a range of values.
fn sum_images(
    x: &Matrix,
    n_pixels: usize,
    add: impl Fn(&mut [f32], Range<usize>) + Sync,
) -> Buffer {
    let (width, image) = (x.width(), n_pixels * x.width());
    let at_a_time = rows_per_chunk(width) * width;
    let pieces = image.div_ceil(at_a_time);
    let images = x.values().len() / image;
    let partial: Vec<Vec<f32>> = (0..images * pieces)
        .into_par_iter()
        .map(|i| {
            let (first, piece) = (i / pieces * image, i % pieces * at_a_time);
            let mut sum = vec![0.0; width];
            add(&mut sum, first + piece..first + (piece + at_a_time).min(image));
            sum
        })
        .collect();
    let mut out = Buffer::zeroed(images * width);
    for (out, partial) in out.chunks_exact_mut(width).zip(partial.chunks_exact(pieces)) {
        for sum in partial {
            add_to(out, sum);
        }
    }
    out
}

/// Runs `work` on every piece of every image with the image and the place of the piece's start.
fn each_image(
    values: &mut [f32],
    image: usize,
    width: usize,
    work: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    let at_a_time = rows_per_chunk(width) * width;
    values.par_chunks_mut(image).enumerate().for_each(|(i, values)| {
        values
            .par_chunks_mut(at_a_time)
            .enumerate()
            .for_each(|(piece, values)| work(i, i * image + piece * at_a_time, values));
    });
}

#[expect(clippy::inline_always, reason = "must become part of the wide call around it")]
#[inline(always)]
fn combine(out: &mut [f32], x: &[f32], residual: &[f32], open: &[f32], gain: f32) {
    let width = open.len();
    let rows = out.chunks_exact_mut(width).zip(x.chunks_exact(width));
    for ((out, x), residual) in rows.zip(residual.chunks_exact(width)) {
        for (((o, x), residual), open) in out.iter_mut().zip(x).zip(residual).zip(open) {
            *o = residual + gain * open * x;
        }
    }
}

#[expect(clippy::inline_always, reason = "must become part of the wide call around it")]
#[inline(always)]
fn spread(grad: &mut [f32], g: &[f32], open: &[f32], mean: &[f32], gain: f32, share: f32) {
    let width = open.len();
    for (grad, g) in grad.chunks_exact_mut(width).zip(g.chunks_exact(width)) {
        for (((o, g), open), mean) in grad.iter_mut().zip(g).zip(open).zip(mean) {
            *o = gain * open * g + share * mean;
        }
    }
}

#[expect(clippy::inline_always, reason = "must become part of the wide call around it")]
#[inline(always)]
fn add_products(sum: &mut [f32], x: &[f32], g: &[f32]) {
    let width = sum.len();
    for (x, g) in x.chunks_exact(width).zip(g.chunks_exact(width)) {
        sum.iter_mut().zip(x).zip(g).for_each(|((s, x), g)| *s += x * g);
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::super::Activation;
    use super::super::add::cuda::{add_column_sums, column_sums, gradient_to_add, on_gpu};
    use super::SqueezeExcitation;
    use crate::cuda::{
        Array, CudaError, Factor, Grid, Kind, PER_THREAD, Product, THREADS, kernel, long,
    };
    use crate::tensor::{DeviceError, Matrix, Record, Store, Weight, record_on_gpu};

    /// What is kept for the backward pass, per image, in f32: few values, on whose way several roundings to bf16
    /// would add up.
    struct Gates {
        /// `[M, C]`.
        means: Array,
        /// `[M, S]`, after the `ReLU`.
        hidden: Array,
        /// `[M, C]`, before the sigmoid.
        logits: Array,
    }

    pub(super) fn squeeze_excite_onto<T: Record>(
        x: Matrix<T>,
        residual: Matrix,
        n_pixels: usize,
        weights: SqueezeExcitation,
    ) -> Result<Matrix<T>, DeviceError> {
        let (x, tape) = x.split();
        let [of_x, of_residual] = [&x, &residual].map(Matrix::gpu_array);
        let (gpu, kind, rows, width) = (of_x.gpu(), of_x.kind(), x.rows(), x.width());
        let gates = Gates::of(of_x, n_pixels, &weights)?;
        let out = gpu.unset(rows * width, kind)?;
        let sizes = [n_pixels.into(), width.into(), weights.factor.into()];
        let gain = on_gpu(&weights.gain).full().into();
        let inputs = [of_x.into(), of_residual.into(), (&gates.logits).into(), gain, (&out).into()];
        let args = [&inputs[..], &sizes].concat();
        gpu.launch(kernel!("excite", kind), Grid::rows(rows, width), &args)?;
        let wanted = x.wants_gradient()
            || residual.wants_gradient()
            || weights.gain.is_trained()
            || weights.excite.is_trained();
        let residual = residual.without_values();
        record_on_gpu(out, width, tape, wanted, move |grad_out, store| {
            let of_x = x.gpu_array();
            let gain = on_gpu(&weights.gain).full().into();
            let [grad_logits, along] = [(); 2].map(|()| gpu.unset(gates.logits.len(), Kind::F32));
            let (grad_logits, along) = (grad_logits?, along?);
            let inputs = [
                (&grad_out).into(),
                of_x.into(),
                (&gates.logits).into(),
                gain,
                (&grad_logits).into(),
                (&along).into(),
            ];
            let args = [&inputs[..], &sizes].concat();
            gpu.launch(kernel!("excite_sums", kind), of_images(rows / n_pixels, width), &args)?;
            if let Some(sum) = gradient_to_add(&weights.gain, store)? {
                column_sums(&along, 1, 1, sum, true)?;
            }
            let grad_means = gates.backward(&grad_logits, &weights, store)?;
            if x.wants_gradient() {
                let grad = gpu.unset(rows * width, kind)?;
                let inputs = [
                    (&grad_out).into(),
                    (&gates.logits).into(),
                    gain,
                    (&grad_means).into(),
                    (&grad).into(),
                ];
                let args = [&inputs[..], &sizes].concat();
                gpu.launch(kernel!("excite_backward", kind), Grid::rows(rows, width), &args)?;
                x.give_array(store, grad)?;
            }
            residual.give_array(store, grad_out)
        })
    }

    /// A block for 32 channels of an image.
    fn of_images(images: usize, width: usize) -> Grid {
        Grid { blocks: [width.div_ceil(32), images], threads: THREADS, shared: 0 }
    }

    impl Gates {
        /// Of images `[M * P, C]`.
        fn of(x: &Array, n_pixels: usize, weights: &SqueezeExcitation) -> Result<Self, CudaError> {
            let (gpu, width) = (x.gpu(), weights.excite_bias.len());
            let images = x.len() / (n_pixels * width);
            let means = gpu.unset(images * width, Kind::F32)?;
            let args = [x.into(), (&means).into(), n_pixels.into(), width.into()];
            gpu.launch(kernel!("mean_pixels", x.kind()), of_images(images, width), &args)?;
            let hidden = affine(&means, &weights.squeeze, &weights.squeeze_bias)?;
            let n = hidden.len();
            let relu = Activation::Relu.into();
            let args = [(&hidden).into(), (&hidden).into(), long(n), relu, 1.0_f32.into()];
            let grid = Grid::each(n.div_ceil(PER_THREAD));
            gpu.launch(kernel!("activate", Kind::F32), grid, &args)?;
            let logits = affine(&hidden, &weights.excite, &weights.excite_bias)?;
            Ok(Self { means, hidden, logits })
        }

        /// From the gradient of the logits `[M, C]` to that of the means `[M, C]`.
        fn backward(
            &self,
            grad_logits: &Array,
            weights: &SqueezeExcitation,
            store: &mut Store,
        ) -> Result<Array, DeviceError> {
            let (excite, bias) = (&weights.excite, &weights.excite_bias);
            let grad = affine_backward(&self.hidden, grad_logits, excite, bias, store)?;
            let n = grad.len();
            // What the `ReLU` let pass is positive after it as before.
            let relu = Activation::Relu.into();
            let args = [(&self.hidden).into(), (&grad).into(), long(n), relu, 1.0_f32.into()];
            let grid = Grid::each(n.div_ceil(PER_THREAD));
            grad.gpu().launch(kernel!("activate_backward", Kind::F32), grid, &args)?;
            let (squeeze, bias) = (&weights.squeeze, &weights.squeeze_bias);
            affine_backward(&self.means, &grad, squeeze, bias, store)
        }
    }

    /// `x` `[M, I]` times `weight` `[O, I]` transposed, plus `bias` `[O]`: `[M, O]`.
    fn affine(x: &Array, weight: &Weight, bias: &Weight) -> Result<Array, CudaError> {
        let (outputs, weight) = (bias.len(), in_f32(weight)?);
        let inputs = weight.len() / outputs;
        let out = x.gpu().unset(x.len() / inputs * outputs, Kind::F32)?;
        let right = Factor { transposed: true, ..rows_of(&weight, inputs) };
        x.gpu().multiply(&Product {
            bias: Some(on_gpu(bias).full().address()),
            ..product(rows_of(x, inputs), right, inputs, outputs, &out)
        })?;
        Ok(out)
    }

    /// From the gradient of the result `[M, O]` to that of `x` `[M, I]`; adds those of weight and bias.
    fn affine_backward(
        x: &Array,
        grad_out: &Array,
        weight: &Weight,
        bias: &Weight,
        store: &mut Store,
    ) -> Result<Array, DeviceError> {
        let (gpu, outputs) = (x.gpu(), bias.len());
        let (inputs, images) = (weight.len() / outputs, grad_out.len() / outputs);
        let g = rows_of(grad_out, outputs);
        if weight.is_trained() {
            let (sum, adds) = on_gpu(weight).gradient_to_write(store.device())?;
            let g = Factor { transposed: true, ..g };
            gpu.multiply(&Product {
                add: adds.then(|| sum.address()),
                ..product(g, rows_of(x, inputs), images, inputs, sum)
            })?;
        }
        add_column_sums(bias, store, grad_out, outputs, outputs)?;
        let (grad, weight) = (gpu.unset(x.len(), Kind::F32)?, in_f32(weight)?);
        gpu.multiply(&product(g, rows_of(&weight, inputs), outputs, inputs, &grad))?;
        Ok(grad)
    }

    /// A weight in f32; a copy where it is frozen and kept in bf16 alone.
    fn in_f32(weight: &Weight) -> Result<Array, CudaError> {
        let weight = on_gpu(weight);
        weight.full_if_there().map_or_else(
            || weight.gpu().copy(weight.array(), Kind::F32),
            |full| Ok(full.part(0, full.len())),
        )
    }

    fn rows_of(array: &Array, stride: usize) -> Factor {
        Factor { address: array.address(), stride, transposed: false, kind: Kind::F32 }
    }

    /// `left * right`, the inner size and the number of columns given, written to all of `out`.
    fn product(left: Factor, right: Factor, inner: usize, columns: usize, out: &Array) -> Product {
        Product {
            rows: out.len() / columns,
            inner,
            columns,
            left,
            right,
            alpha: 1.0,
            add: None,
            bias: None,
            out: out.address(),
            out_stride: columns,
            out_kind: Kind::F32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::formula::{by_column, product, sigmoid};
    use crate::ops::gradient_check::{check, pseudo_random};

    fn weights(w: &[Weight]) -> SqueezeExcitation {
        SqueezeExcitation {
            squeeze: w[0].clone(),
            squeeze_bias: w[1].clone(),
            excite: w[2].clone(),
            excite_bias: w[3].clone(),
            gain: w[4].clone(),
            factor: 0.7,
        }
    }

    #[test]
    fn values_and_gradients_equal_the_formula() {
        // Two images of five pixels with eight channels, squeezed to three. The biases keep the
        // hidden values away from 0, where the `ReLU` has a kink: one is off, two are on.
        let params = [
            pseudo_random(24, 1),
            vec![3.0, -3.0, 2.5],
            pseudo_random(24, 3),
            pseudo_random(8, 4),
            vec![0.6],
        ];
        check(
            &[(pseudo_random(80, 5), 8), (pseudo_random(80, 6), 8)],
            &params,
            |t, x, w| {
                squeeze_excite_onto(x[0].clone().with(t), x[1].clone(), 5, weights(w)).unwrap()
            },
            |t, x, w| {
                squeeze_excite_onto(x[0].clone().with(t), x[1].clone(), 5, weights(w)).unwrap()
            },
            |x, w| {
                let gain = f64::from(0.7_f32) * w[4][0];
                let of_image = |(x, residual): (&[f64], &[f64])| -> Vec<f64> {
                    let mean = |c: usize| x.iter().skip(c).step_by(8).sum::<f64>() / 5.0;
                    let means: Vec<f64> = (0..8).map(mean).collect();
                    let hidden =
                        by_column(&product(&means, &w[0], 8), &w[1], |v, b| (v + b).max(0.0));
                    let open = by_column(&product(&hidden, &w[2], 3), &w[3], |v, b| sigmoid(v + b));
                    let scaled = by_column(x, &open, |x, open| gain * open * x);
                    residual.iter().zip(scaled).map(|(residual, v)| residual + v).collect()
                };
                x[0].chunks_exact(40).zip(x[1].chunks_exact(40)).flat_map(of_image).collect()
            },
        );
    }

    #[test]
    fn without_gain_the_residual_comes_back() {
        let zero = |n: usize| Weight::Frozen(vec![0.0; n].into());
        let w = [zero(12), zero(3), zero(12), zero(4), zero(1)];
        let matrix = |seed| Matrix::constant(pseudo_random(24, seed).into(), 4);
        let out = squeeze_excite_onto(matrix(1), matrix(2), 3, weights(&w)).unwrap();
        assert_eq!(out.values(), matrix(2).values());
    }
}
