//! Layer norm and root-mean-square norm with learnt scale, over all columns or some of them.

use std::ops::Range;

use rayon::prelude::*;

use super::rows_per_chunk;
use super::wide::{dot, sum_by, wide};
use crate::buffer::Buffer;
use crate::tensor::{DeviceError, Matrix, Record, Weight, record};

/// A norm's weights.
#[derive(Debug, Clone)]
pub(crate) struct Norm {
    /// `[D]`.
    pub(crate) scale: Weight,
    /// `[D]`.
    pub(crate) bias: Option<Weight>,
    /// Whether the mean is taken off first, as layer norm does and the root-mean-square norm
    /// (Zhang and Sennrich, 2019) does not.
    pub(crate) centred: bool,
    /// Added to the variance.
    pub(crate) epsilon: f32,
}

/// Mean and reciprocal deviation of one row; the mean is 0 where it is not taken off.
#[expect(clippy::inline_always, reason = "must become part of the wide loop around it")]
#[inline(always)]
pub(super) fn moments(row: &[f32], centred: bool, epsilon: f32) -> (f32, f32) {
    let n = row.len() as f32;
    let mean = if centred { sum_by(row, |v| v) / n } else { 0.0 };
    let variance = sum_by(row, |v| (v - mean) * (v - mean)) / n;
    (mean, (variance + epsilon).sqrt().recip())
}

impl Norm {
    #[expect(clippy::inline_always, reason = "must become part of the wide loop around it")]
    #[inline(always)]
    fn moments(&self, row: &[f32]) -> (f32, f32) {
        moments(row, self.centred, self.epsilon)
    }

    #[expect(clippy::inline_always, reason = "must become part of the wide call around it")]
    #[inline(always)]
    fn forward_row(&self, row: &mut [f32], gain: &[f32], shift: Option<&[f32]>) {
        let (mean, inverse) = self.moments(row);
        for (v, g) in row.iter_mut().zip(gain) {
            *v = (*v - mean) * inverse * g;
        }
        if let Some(shift) = shift {
            row.iter_mut().zip(shift).for_each(|(v, b)| *v += b);
        }
    }

    /// Backward of a row `x`: turns the gradient `h` of the output into that of the input, and adds
    /// to the sums for scale and bias. `normal` is room for a row.
    ///
    /// With `n = (x - mean) / std` and `h = grad * gain`:
    /// `grad_x = (h - mean(h) - n * mean(h * n)) / std`, without `mean(h)` where not centred.
    #[expect(clippy::inline_always, reason = "must become part of the wide call around it")]
    #[inline(always)]
    fn backward_row(
        &self,
        h: &mut [f32],
        x: &[f32],
        gain: &[f32],
        normal: &mut [f32],
        (scale_sum, bias_sum): (&mut [f32], &mut [f32]),
    ) {
        let width = gain.len() as f32;
        let (mean, inverse) = self.moments(x);
        normal.iter_mut().zip(x).for_each(|(n, x)| *n = (x - mean) * inverse);
        scale_sum.iter_mut().zip(&*h).zip(&*normal).for_each(|((s, g), n)| *s += g * n);
        bias_sum.iter_mut().zip(&*h).for_each(|(s, g)| *s += g);
        h.iter_mut().zip(gain).for_each(|(h, gain)| *h *= gain);
        let mean_h = if self.centred { sum_by(h, |v| v) / width } else { 0.0 };
        let mean_hn = dot(h, normal) / width;
        for (h, n) in h.iter_mut().zip(&*normal) {
            *h = (*h - mean_h - n * mean_hn) * inverse;
        }
    }
}

/// Normalises every row of `x` `[N, D]`.
///
/// # Errors
/// When the device fails.
pub(crate) fn normalise<T: Record>(x: Matrix<T>, norm: Norm) -> Result<Matrix<T>, DeviceError> {
    let columns = 0..x.width();
    normalise_columns(x, columns, norm)
}

/// Normalises `columns` of every row of `x` `[N, W]`, as many as the norm has; the others stay.
///
/// # Errors
/// When the device fails.
pub(crate) fn normalise_columns<T: Record>(
    x: Matrix<T>,
    columns: Range<usize>,
    norm: Norm,
) -> Result<Matrix<T>, DeviceError> {
    #[cfg(feature = "cuda")]
    if x.array().is_some() {
        return cuda::normalise_columns(x, &columns, norm);
    }
    let (x, tape) = x.split();
    let width = x.width();
    let chunk = width * rows_per_chunk(width);
    let mut out = Buffer::unset(x.values().len());
    let (gain, shift) = (norm.scale.values(), norm.bias.as_ref().map(Weight::values));
    out.par_chunks_mut(chunk).zip(x.values().par_chunks(chunk)).for_each(|(out, x)| {
        out.copy_from_slice(x);
        wide!({
            for row in out.chunks_exact_mut(width) {
                norm.forward_row(&mut row[columns.clone()], &gain, shift.as_deref());
            }
        });
    });
    drop((gain, shift));

    let wanted = x.wants_gradient()
        || norm.scale.is_trained()
        || norm.bias.as_ref().is_some_and(Weight::is_trained);
    record(out, width, tape, wanted, move |mut grad, store| {
        let gain = norm.scale.values();
        // Per chunk: the sums of grad * normalised and of grad, for scale and bias.
        let sums: Vec<[Vec<f32>; 2]> = grad
            .par_chunks_mut(chunk)
            .zip(x.values().par_chunks(chunk))
            .map(|(grad, x)| {
                let [mut scale, mut bias, mut normal] = [0; 3].map(|_| vec![0.0; columns.len()]);
                wide!({
                    for (grad, x) in grad.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                        let (grad, x) = (&mut grad[columns.clone()], &x[columns.clone()]);
                        let sums = (&mut *scale, &mut *bias);
                        norm.backward_row(grad, x, &gain, &mut normal, sums);
                    }
                });
                [scale, bias]
            })
            .collect();
        drop(gain);
        let total = |part: usize| {
            let sums = &sums;
            move |total: &mut [f32]| sums.iter().for_each(|s| super::add_to(total, &s[part]))
        };
        norm.scale.accumulate(store, total(0))?;
        if let Some(bias) = &norm.bias {
            bias.accumulate(store, total(1))?;
        }
        x.give_gradient(store, grad)
    })
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::ops::Range;

    use super::super::add::cuda::{add_partials, on_gpu, parts};
    use super::Norm;
    use crate::cuda::{Grid, Kind, THREADS, kernel};
    use crate::tensor::{DeviceError, Matrix, Record, Weight, record_on_gpu};

    pub(super) fn normalise_columns<T: Record>(
        x: Matrix<T>,
        columns: &Range<usize>,
        norm: Norm,
    ) -> Result<Matrix<T>, DeviceError> {
        let (x, tape) = x.split();
        let input = x.gpu_array();
        let (gpu, kind) = (input.gpu(), input.kind());
        let (rows, width, first, n) = (x.rows(), x.width(), columns.start, columns.len());
        let out = if n == width { gpu.unset(input.len(), kind)? } else { gpu.copy(input, kind)? };
        let wanted = x.wants_gradient()
            || norm.scale.is_trained()
            || norm.bias.as_ref().is_some_and(Weight::is_trained);
        let wanted = T::OWNS_TAPE && wanted;
        let stats = wanted.then(|| gpu.unset(2 * rows, Kind::F32)).transpose()?;
        let grid = Grid::rows(rows, n);
        let centred = i32::from(norm.centred);
        gpu.launch(
            kernel!("norm_forward", kind),
            grid,
            &[
                input.into(),
                (&out).into(),
                on_gpu(&norm.scale).full().into(),
                norm.bias.as_ref().map(|bias| on_gpu(bias).full()).into(),
                stats.as_ref().into(),
                width.into(),
                first.into(),
                n.into(),
                centred.into(),
                norm.epsilon.into(),
            ],
        )?;
        record_on_gpu(out, width, tape, wanted, move |grad, store| {
            let (input, stats) = (x.gpu_array(), stats.expect("a recorded norm"));
            if norm.scale.is_trained() {
                let (each, blocks) = parts(rows);
                let partial = gpu.unset(blocks * 2 * n, Kind::F32)?;
                let sums = Grid { blocks: [n.div_ceil(32), blocks], threads: THREADS, shared: 0 };
                let args = [
                    input.into(),
                    (&grad).into(),
                    (&stats).into(),
                    (&partial).into(),
                    rows.into(),
                    width.into(),
                    first.into(),
                    n.into(),
                    each.into(),
                ];
                gpu.launch(kernel!("norm_sums", kind), sums, &args)?;
                for (part, weight) in [&norm.scale].into_iter().chain(&norm.bias).enumerate() {
                    let (sum, adds) = on_gpu(weight).gradient_to_write(store.device())?;
                    add_partials(&partial, blocks, 2 * n, part * n, sum, adds)?;
                }
            }
            if x.wants_gradient() {
                let args = [
                    input.into(),
                    (&grad).into(),
                    on_gpu(&norm.scale).full().into(),
                    (&stats).into(),
                    width.into(),
                    first.into(),
                    n.into(),
                    centred.into(),
                ];
                gpu.launch(kernel!("norm_backward", kind), grid, &args)?;
            }
            x.give_array(store, grad)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::{check, pseudo_random};

    const EPSILON: f32 = 1e-5;

    fn norm(w: &[Weight], centred: bool) -> Norm {
        Norm { scale: w[0].clone(), bias: w.get(1).cloned(), centred, epsilon: EPSILON }
    }

    /// `(x - mean) / sqrt(variance + epsilon) * scale + bias` of a row.
    fn of_row(row: &mut [f64], w: &[Vec<f64>], centred: bool) {
        let n = row.len() as f64;
        let mean = if centred { row.iter().sum::<f64>() / n } else { 0.0 };
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        for (i, v) in row.iter_mut().enumerate() {
            let normal = (*v - mean) / (variance + f64::from(EPSILON)).sqrt();
            *v = normal * w[0][i] + w.get(1).map_or(0.0, |bias| bias[i]);
        }
    }

    #[test]
    fn values_and_gradients_equal_the_formula() {
        // Rows of 16 bytes' multiples on a GPU, and others; the widest take several warps.
        let sizes = [(16, 2), (7, 1), (7, 2), (296, 2), (301, 1)];
        for (centred, (width, n_weights)) in
            [true, false].into_iter().flat_map(|centred| sizes.map(|size| (centred, size)))
        {
            let weights: Vec<_> = (0..n_weights).map(|i| pseudo_random(width, 2 + i)).collect();
            check(
                &[(pseudo_random(3 * width, 1), width)],
                &weights,
                |t, x, w| normalise(x[0].clone().with(t), norm(w, centred)).unwrap(),
                |t, x, w| normalise(x[0].clone().with(t), norm(w, centred)).unwrap(),
                |x, w| {
                    let mut out = x[0].clone();
                    out.chunks_exact_mut(width).for_each(|row| of_row(row, w, centred));
                    out
                },
            );
            let all = width + 3;
            let columns = || 2..2 + width;
            check(
                &[(pseudo_random(3 * all, 1), all)],
                &weights,
                |t, x, w| {
                    normalise_columns(x[0].clone().with(t), columns(), norm(w, centred)).unwrap()
                },
                |t, x, w| {
                    normalise_columns(x[0].clone().with(t), columns(), norm(w, centred)).unwrap()
                },
                |x, w| {
                    let mut out = x[0].clone();
                    let rows = out.chunks_exact_mut(all);
                    rows.for_each(|row| of_row(&mut row[columns()], w, centred));
                    out
                },
            );
        }
    }
}
