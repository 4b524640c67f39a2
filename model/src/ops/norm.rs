//! Layer norm with learnt scale and bias, over the last axis.

use rayon::prelude::*;

use super::rows_per_chunk;
use super::wide::{sum_by, wide};
use crate::buffer::Buffer;
use crate::tensor::{DeviceError, Matrix, Record, Weight, record};

/// Mean and reciprocal standard deviation of one row.
#[expect(clippy::inline_always, reason = "must become part of the wide loop around it")]
#[inline(always)]
fn moments(row: &[f32], epsilon: f32) -> (f32, f32) {
    let n = row.len() as f32;
    let mean = sum_by(row, |v| v) / n;
    let variance = sum_by(row, |v| (v - mean) * (v - mean)) / n;
    (mean, (variance + epsilon).sqrt().recip())
}

/// Normalises every row of `x` `[N, D]`, then scales by `scale` `[D]` and adds `bias` `[D]`.
///
/// # Errors
/// When the device fails.
pub(crate) fn layer_norm<T: Record>(
    x: Matrix<T>,
    scale: &Weight,
    bias: &Weight,
    epsilon: f32,
) -> Result<Matrix<T>, DeviceError> {
    let (x, tape) = x.split();
    let width = x.width();
    let chunk = width * rows_per_chunk(width);
    let mut out = Buffer::unset(x.values().len());
    let (gain, shift) = (scale.values(), bias.values());
    out.par_chunks_mut(chunk)
        .zip(x.values().par_chunks(chunk))
        .for_each(|(out, x)| wide!(forward_rows(out, x, &gain, &shift, epsilon)));
    drop((gain, shift));

    let (scale, bias) = (scale.clone(), bias.clone());
    let wanted = x.wants_gradient() || scale.is_trained() || bias.is_trained();
    record(out, width, tape, wanted, move |grad_out, store| {
        let gain = scale.values();
        let mut grad_x = Buffer::unset(grad_out.len());
        // Per chunk: the sums of grad * normalised and of grad, for scale and bias.
        let sums: Vec<(Vec<f32>, Vec<f32>)> = grad_x
            .par_chunks_mut(chunk)
            .zip(x.values().par_chunks(chunk))
            .zip(grad_out.par_chunks(chunk))
            .map(|((gx, x), g)| wide!(backward_rows(gx, x, g, &gain, epsilon)))
            .collect();
        drop(gain);
        scale.accumulate(store, |total| {
            for (s, _) in &sums {
                super::add_to(total, s);
            }
        })?;
        bias.accumulate(store, |total| {
            for (_, s) in &sums {
                super::add_to(total, s);
            }
        })?;
        x.give_gradient(store, grad_x)
    })
}

#[expect(clippy::inline_always, reason = "must become part of the wide call around it")]
#[inline(always)]
fn forward_rows(out: &mut [f32], x: &[f32], gain: &[f32], shift: &[f32], epsilon: f32) {
    let width = gain.len();
    for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
        let (mean, inverse) = moments(x, epsilon);
        for (((o, v), g), b) in out.iter_mut().zip(x).zip(gain).zip(shift) {
            *o = (*v - mean) * inverse * g + b;
        }
    }
}

/// Backward of a chunk of rows: writes `grad_x`, returns the chunk's sums for scale and bias.
///
/// With `n = (x - mean) / std` and `h = grad * gain`:
/// `grad_x = (h - mean(h) - n * mean(h * n)) / std`.
#[expect(clippy::inline_always, reason = "must become part of the wide call around it")]
#[inline(always)]
fn backward_rows(
    grad_x: &mut [f32],
    x: &[f32],
    grad_out: &[f32],
    gain: &[f32],
    epsilon: f32,
) -> (Vec<f32>, Vec<f32>) {
    let width = gain.len();
    let (mut scale_sum, mut bias_sum) = (vec![0.0; width], vec![0.0; width]);
    let mut normal = vec![0.0; width];
    let rows = grad_x.chunks_exact_mut(width).zip(x.chunks_exact(width));
    for ((gx, x), g) in rows.zip(grad_out.chunks_exact(width)) {
        let (mean, inverse) = moments(x, epsilon);
        normal.iter_mut().zip(x).for_each(|(n, x)| *n = (x - mean) * inverse);
        gx.iter_mut().zip(g).zip(gain).for_each(|((h, g), gain)| *h = g * gain);
        scale_sum.iter_mut().zip(g).zip(&normal).for_each(|((s, g), n)| *s += g * n);
        bias_sum.iter_mut().zip(g).for_each(|(s, g)| *s += g);
        let mean_h = sum_by(gx, |v| v) / width as f32;
        let mean_hn = super::wide::dot(gx, &normal) / width as f32;
        for (h, n) in gx.iter_mut().zip(&normal) {
            *h = (*h - mean_h - n * mean_hn) * inverse;
        }
    }
    (scale_sum, bias_sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::{check, pseudo_random};

    #[test]
    fn gradients_equal_finite_differences() {
        check(
            &[(pseudo_random(21, 1), 7)],
            &[pseudo_random(7, 2), pseudo_random(7, 3)],
            3e-3,
            |t, x, w| layer_norm(x[0].clone().with(t), &w[0], &w[1], 1e-5).unwrap(),
            |t, x, w| layer_norm(x[0].clone().with(t), &w[0], &w[1], 1e-5).unwrap(),
        );
    }
}
