//! Choosing and averaging rows, and the class row of a vision transformer.

use std::ops::Range;

use rayon::prelude::*;

use super::wide::wide;
use crate::buffer::Buffer;
use crate::tensor::{DeviceError, Matrix, Record, Weight, record};

/// Rows `picked` of `x` `[N, D]`, each at most once: `[n, D]`.
///
/// # Errors
/// When the device fails.
pub(crate) fn pick_rows<T: Record>(
    x: Matrix<T>,
    picked: Vec<usize>,
) -> Result<Matrix<T>, DeviceError> {
    let (x, tape) = x.split();
    let width = x.width();
    let mut out = Buffer::unset(picked.len() * width);
    for (out, row) in out.chunks_exact_mut(width).zip(&picked) {
        out.copy_from_slice(&x.values()[row * width..][..width]);
    }
    record(out, width, tape, x.wants_gradient(), move |grad_out, store| {
        let mut grad = Buffer::zeroed(x.values().len());
        for (row, g) in picked.iter().zip(grad_out.chunks_exact(width)) {
            grad[row * width..][..width].copy_from_slice(g);
        }
        x.give_gradient(store, grad)
    })
}

/// The mean over each of `spans` of rows of `x` `[N, D]`, none empty: `[n, D]`. Spans may overlap.
///
/// # Errors
/// When the device fails.
pub(crate) fn mean_rows<T: Record>(
    x: Matrix<T>,
    spans: Vec<Range<usize>>,
) -> Result<Matrix<T>, DeviceError> {
    let (x, tape) = x.split();
    let width = x.width();
    let mut out = Buffer::zeroed(spans.len() * width);
    for (out, span) in out.chunks_exact_mut(width).zip(&spans) {
        let share = 1.0 / span.len() as f32;
        for row in x.values()[span.start * width..span.end * width].chunks_exact(width) {
            wide!(out.iter_mut().zip(row).for_each(|(o, v)| *o += share * v));
        }
    }
    record(out, width, tape, x.wants_gradient(), move |grad_out, store| {
        let mut grad = Buffer::zeroed(x.values().len());
        for (span, g) in spans.iter().zip(grad_out.chunks_exact(width)) {
            let share = 1.0 / span.len() as f32;
            for row in grad[span.start * width..span.end * width].chunks_exact_mut(width) {
                row.iter_mut().zip(g).for_each(|(s, g)| *s += share * g);
            }
        }
        x.give_gradient(store, grad)
    })
}

/// Puts the class row before each image's patches and adds position embeddings.
///
/// `patches` `[B * P, D]`, `class` `[D]`, `positions` `[P + 1, D]`: `[B * (P + 1), D]`.
///
/// # Errors
/// When the device fails.
pub(crate) fn prepend_class<T: Record>(
    patches: Matrix<T>,
    class: &Weight,
    positions: &Weight,
) -> Result<Matrix<T>, DeviceError> {
    let (patches, tape) = patches.split();
    let width = patches.width();
    let (class_row, places) = (class.values(), positions.values());
    let image = places.len();
    let n_images = patches.values().len() / (image - width);
    let mut out = Buffer::unset(n_images * image);
    out.par_chunks_mut(image).zip(patches.values().par_chunks(image - width)).for_each(
        |(out, patches)| {
            out[..width].copy_from_slice(&class_row);
            out[width..].copy_from_slice(patches);
            wide!(out.iter_mut().zip(places.iter()).for_each(|(o, p)| *o += p));
        },
    );
    drop((class_row, places));
    let (class, positions) = (class.clone(), positions.clone());
    let wanted = patches.wants_gradient() || class.is_trained() || positions.is_trained();
    record(out, width, tape, wanted, move |grad_out, store| {
        class.accumulate(store, |sum| {
            for g in grad_out.chunks_exact(image) {
                sum.iter_mut().zip(g).for_each(|(s, g)| *s += g);
            }
        })?;
        positions.accumulate(store, |sum| {
            grad_out.chunks_exact(image).for_each(|g| super::add_to(sum, g));
        })?;
        let mut grad = Buffer::unset(patches.values().len());
        grad.par_chunks_mut(image - width)
            .zip(grad_out.par_chunks(image))
            .for_each(|(grad, g)| grad.copy_from_slice(&g[width..]));
        patches.give_gradient(store, grad)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::{check, pseudo_random};

    #[test]
    fn gradients_equal_finite_differences() {
        check(
            &[(pseudo_random(12, 1), 3)],
            &[],
            2e-3,
            |t, x, _| pick_rows(x[0].clone().with(t), vec![2, 0]).unwrap(),
            |t, x, _| pick_rows(x[0].clone().with(t), vec![2, 0]).unwrap(),
        );
        check(
            &[(pseudo_random(15, 1), 3)],
            &[],
            2e-3,
            |t, x, _| mean_rows(x[0].clone().with(t), vec![0..3, 4..5]).unwrap(),
            |t, x, _| mean_rows(x[0].clone().with(t), vec![0..3, 4..5]).unwrap(),
        );
        check(
            &[(pseudo_random(15, 1), 3)],
            &[],
            2e-3,
            |t, x, _| mean_rows(x[0].clone().with(t), vec![0..3, 2..5, 2..3]).unwrap(),
            |t, x, _| mean_rows(x[0].clone().with(t), vec![0..3, 2..5, 2..3]).unwrap(),
        );
        check(
            &[(pseudo_random(12, 1), 3)],
            &[pseudo_random(3, 2), pseudo_random(9, 3)],
            2e-3,
            |t, x, w| prepend_class(x[0].clone().with(t), &w[0], &w[1]).unwrap(),
            |t, x, w| prepend_class(x[0].clone().with(t), &w[0], &w[1]).unwrap(),
        );
    }
}
