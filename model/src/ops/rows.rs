//! Choosing and averaging rows, and the class row of a vision transformer.

use std::ops::Range;

use rayon::prelude::*;

use super::wide::wide;
use crate::buffer::Buffer;
use crate::tensor::{DeviceError, Matrix, Record, Weight, record};

/// Rows `picked` of `x` `[N, D]`: `[n, D]`. Where `x` is differentiated, each is picked at most once.
///
/// # Errors
/// When the device fails.
pub(crate) fn pick_rows<T: Record>(
    x: Matrix<T>,
    picked: Vec<usize>,
) -> Result<Matrix<T>, DeviceError> {
    #[cfg(feature = "cuda")]
    if x.array().is_some() {
        return cuda::pick_rows(x, &picked);
    }
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

/// The rows of some matrices `[_, D]`, one after the other: `[n, D]`; on a GPU if any of them is. None of them is
/// differentiated.
///
/// # Errors
/// When the device fails.
#[cfg_attr(not(feature = "cuda"), expect(clippy::unnecessary_wraps, reason = "GPUs need it"))]
pub(crate) fn join_rows(parts: &[Matrix], width: usize) -> Result<Matrix, DeviceError> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = parts.iter().find_map(|part| Some(part.array()?.gpu())) {
        let n = parts.iter().map(|part| part.rows() * part.width()).sum();
        let (out, mut first) = (gpu.unset(n, gpu.kind())?, 0);
        for part in parts {
            let array = match part.array() {
                Some(array) if array.kind() == gpu.kind() => array.part(0, array.len()),
                Some(array) => gpu.copy(array, gpu.kind())?,
                None => gpu.upload(part.values())?,
            };
            gpu.put_part(&out, first, &array)?;
            first += array.len();
        }
        return Ok(Matrix::on_gpu(out.into(), width, false));
    }
    let parts: Vec<&[f32]> = parts.iter().map(Matrix::values).collect();
    Ok(Matrix::constant(parts.concat().into(), width))
}

/// The mean over each of `spans` of rows of `x` `[N, D]`, none empty: `[n, D]`. Spans may overlap.
///
/// # Errors
/// When the device fails.
pub(crate) fn mean_rows<T: Record>(
    x: Matrix<T>,
    spans: Vec<Range<usize>>,
) -> Result<Matrix<T>, DeviceError> {
    #[cfg(feature = "cuda")]
    if x.array().is_some() {
        return cuda::mean_rows(x, &spans);
    }
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
    #[cfg(feature = "cuda")]
    if patches.array().is_some() {
        return cuda::prepend_class(patches, class, positions);
    }
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

#[cfg(feature = "cuda")]
mod cuda {
    use std::ops::Range;

    use super::super::add::cuda::{add_column_sums, on_gpu};
    use crate::cuda::{Grid, kernel};
    use crate::tensor::{DeviceError, Matrix, Record, Weight, record_on_gpu};

    pub(super) fn pick_rows<T: Record>(
        x: Matrix<T>,
        picked: &[usize],
    ) -> Result<Matrix<T>, DeviceError> {
        let (x, tape) = x.split();
        let input = x.gpu_array();
        let (gpu, kind, width, n) = (input.gpu(), input.kind(), x.width(), input.len());
        let places: Vec<i32> = picked.iter().map(|row| *row as i32).collect();
        let places = gpu.upload_i32(&places)?;
        let out = gpu.unset(picked.len() * width, kind)?;
        let grid = Grid::rows(picked.len(), width);
        let args = [input.into(), (&places).into(), (&out).into(), width.into()];
        gpu.launch(kernel!("pick_rows", kind), grid, &args)?;
        let (wanted, x) = (x.wants_gradient(), x.without_values());
        record_on_gpu(out, width, tape, wanted, move |grad_out, store| {
            let grad = gpu.zeroed(n, kind)?;
            let args = [(&grad_out).into(), (&places).into(), (&grad).into(), width.into()];
            gpu.launch(kernel!("put_rows", kind), grid, &args)?;
            x.give_array(store, grad)
        })
    }

    pub(super) fn mean_rows<T: Record>(
        x: Matrix<T>,
        spans: &[Range<usize>],
    ) -> Result<Matrix<T>, DeviceError> {
        let (x, tape) = x.split();
        let input = x.gpu_array();
        let (gpu, kind, width, rows) = (input.gpu(), input.kind(), x.width(), x.rows());
        let ends: Vec<i32> =
            spans.iter().flat_map(|span| [span.start as i32, span.end as i32]).collect();
        let ends = gpu.upload_i32(&ends)?;
        let out = gpu.unset(spans.len() * width, kind)?;
        let args = [input.into(), (&ends).into(), (&out).into(), width.into()];
        gpu.launch(kernel!("mean_rows", kind), Grid::rows(spans.len(), width), &args)?;
        let (wanted, x) = (T::OWNS_TAPE && x.wants_gradient(), x.without_values());
        let spans = if wanted { spans.to_vec() } else { Vec::new() };
        record_on_gpu(out, width, tape, wanted, move |grad_out, store| {
            // Of each row, the spans that hold it.
            let mut of_rows = vec![Vec::new(); rows];
            for (i, span) in spans.iter().enumerate() {
                of_rows[span.clone()].iter_mut().for_each(|of: &mut Vec<i32>| of.push(i as i32));
            }
            let mut starts = vec![0_i32];
            for of in &of_rows {
                starts.push(starts[starts.len() - 1] + of.len() as i32);
            }
            let starts = gpu.upload_i32(&starts)?;
            let of = gpu.upload_i32(&of_rows.concat())?;
            let grad = gpu.unset(rows * width, kind)?;
            let args = [
                (&grad_out).into(),
                (&ends).into(),
                (&starts).into(),
                (&of).into(),
                (&grad).into(),
                width.into(),
            ];
            gpu.launch(kernel!("mean_rows_backward", kind), Grid::rows(rows, width), &args)?;
            x.give_array(store, grad)
        })
    }

    pub(super) fn prepend_class<T: Record>(
        patches: Matrix<T>,
        class: &Weight,
        positions: &Weight,
    ) -> Result<Matrix<T>, DeviceError> {
        let (patches, tape) = patches.split();
        let input = patches.gpu_array();
        let (gpu, kind, width, n) = (input.gpu(), input.kind(), patches.width(), input.len());
        let per_image = positions.len() / width;
        let rows = patches.rows() / (per_image - 1) * per_image;
        let out = gpu.unset(rows * width, kind)?;
        let args = [
            input.into(),
            on_gpu(class).into(),
            on_gpu(positions).into(),
            (&out).into(),
            per_image.into(),
            width.into(),
        ];
        gpu.launch(kernel!("prepend_class", kind), Grid::rows(rows, width), &args)?;
        let (class, positions) = (class.clone(), positions.clone());
        let wanted = patches.wants_gradient() || class.is_trained() || positions.is_trained();
        let patches = patches.without_values();
        record_on_gpu(out, width, tape, wanted, move |grad_out, store| {
            let image = per_image * width;
            add_column_sums(&class, store, &grad_out, image, width)?;
            add_column_sums(&positions, store, &grad_out, image, image)?;
            let grad = gpu.unset(n, kind)?;
            let args = [
                (&grad_out).into(),
                (&grad).into(),
                per_image.into(),
                1_i32.into(),
                (per_image - 1).into(),
                width.into(),
            ];
            gpu.launch(kernel!("take_part", kind), Grid::rows(n / width, width), &args)?;
            patches.give_array(store, grad)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::{check, pseudo_random};

    #[test]
    fn values_and_gradients_equal_the_formula() {
        // Rows of 16 bytes' multiples, and others.
        for width in [3, 16] {
            check(
                &[(pseudo_random(4 * width, 1), width)],
                &[],
                |t, x, _| pick_rows(x[0].clone().with(t), vec![2, 0]).unwrap(),
                |t, x, _| pick_rows(x[0].clone().with(t), vec![2, 0]).unwrap(),
                |x, _| [&x[0][2 * width..3 * width], &x[0][..width]].concat(),
            );
        }
        for spans in [vec![0..3, 4..5], vec![0..3, 2..5, 2..3]] {
            check(
                &[(pseudo_random(80, 1), 16)],
                &[],
                |t, x, _| mean_rows(x[0].clone().with(t), spans.clone()).unwrap(),
                |t, x, _| mean_rows(x[0].clone().with(t), spans.clone()).unwrap(),
                |x, _| {
                    let mean = |span: &Range<usize>, c: usize| {
                        span.clone().map(|row| x[0][row * 16 + c]).sum::<f64>() / span.len() as f64
                    };
                    let of = |span| (0..16).map(move |c| mean(span, c));
                    spans.iter().flat_map(of).collect()
                },
            );
        }
        check(
            &[(pseudo_random(12, 1), 3)],
            &[pseudo_random(3, 2), pseudo_random(9, 3)],
            |t, x, w| prepend_class(x[0].clone().with(t), &w[0], &w[1]).unwrap(),
            |t, x, w| prepend_class(x[0].clone().with(t), &w[0], &w[1]).unwrap(),
            |x, w| {
                let rows = [&w[0], &x[0][..6], &w[0], &x[0][6..]].concat();
                rows.iter().zip(w[1].repeat(2)).map(|(v, place)| v + place).collect()
            },
        );
    }
}
