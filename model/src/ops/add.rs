//! Sums, plain and behind a tanh gate.

use rayon::prelude::*;

use super::CHUNK;
use super::wide::{dot, wide};
use crate::buffer::Buffer;
use crate::tensor::{DeviceError, Matrix, Record, Weight, record};

/// Adds `delta` to `sum`, element by element.
pub(crate) fn add_to(sum: &mut [f32], delta: &[f32]) {
    let add = |(sum, delta): (&mut [f32], &[f32])| {
        wide!(sum.iter_mut().zip(delta).for_each(|(s, d)| *s += d));
    };
    if sum.len() <= CHUNK {
        return add((sum, delta));
    }
    sum.par_chunks_mut(CHUNK).zip(delta.par_chunks(CHUNK)).for_each(add);
}

/// Adds the sum over the rows of `x` `[N, D]` to `sum` `[D]`.
pub(super) fn add_rows_to(sum: &mut [f32], x: &[f32]) {
    let width = sum.len();
    let partial: Vec<Vec<f32>> = x
        .par_chunks(width * super::rows_per_chunk(width))
        .map(|rows| {
            let mut sum = vec![0.0; width];
            wide!({
                for row in rows.chunks_exact(width) {
                    sum.iter_mut().zip(row).for_each(|(s, v)| *s += v);
                }
            });
            sum
        })
        .collect();
    for p in &partial {
        add_to(sum, p);
    }
}

/// `x + tanh(gate) * y` with one learnt scalar `gate` (paper, section 2.2): at 0 the result is `x`.
/// The tape comes with `y`.
///
/// # Errors
/// When the device fails.
pub(crate) fn add_gated<T: Record>(
    y: Matrix<T>,
    x: Matrix,
    gate: &Weight,
) -> Result<Matrix<T>, DeviceError> {
    #[cfg(feature = "cuda")]
    if x.array().is_some() {
        return cuda::add_gated(y, x, gate);
    }
    let width = x.width();
    let opening = gate.values()[0].tanh();
    let (y, tape) = y.split();
    let mut out = Buffer::unset(x.values().len());
    out.par_chunks_mut(CHUNK)
        .zip(x.values().par_chunks(CHUNK))
        .zip(y.values().par_chunks(CHUNK))
        .for_each(|((out, x), y)| {
            wide!({
                for ((o, x), y) in out.iter_mut().zip(x).zip(y) {
                    *o = x + opening * y;
                }
            });
        });
    let gate = gate.clone();
    let wanted = x.wants_gradient() || y.wants_gradient() || gate.is_trained();
    record(out, width, tape, wanted, move |grad_out, store| {
        gate.accumulate(store, |sum| {
            let dots: Vec<f32> = grad_out
                .par_chunks(CHUNK)
                .zip(y.values().par_chunks(CHUNK))
                .map(|(g, y)| wide!(dot(g, y)))
                .collect();
            let dot: f64 = dots.iter().map(|d| f64::from(*d)).sum();
            sum[0] += dot as f32 * (1.0 - opening * opening);
        })?;
        if y.wants_gradient() {
            let mut grad_y = Buffer::unset(grad_out.len());
            grad_y.par_chunks_mut(CHUNK).zip(grad_out.par_chunks(CHUNK)).for_each(|(gy, g)| {
                wide!(gy.iter_mut().zip(g).for_each(|(gy, g)| *gy = opening * g));
            });
            y.give_gradient(store, grad_y)?;
        }
        x.give_gradient(store, grad_out)
    })
}

#[cfg(feature = "cuda")]
pub(super) mod cuda {
    use crate::cuda::{Arg, Array, CudaError, Grid, Kind, PER_THREAD, THREADS, kernel, long};
    use crate::device_weight::DeviceWeight;
    use crate::tensor::{DeviceError, Matrix, Record, Store, Weight, record_on_gpu};

    /// Most parts that a sum is made of.
    const PARTS_MAX: usize = 256;
    /// Rows that a block adds at least.
    const ROWS_MIN: usize = 64;

    /// Rows that one block adds, and the number of blocks.
    pub(in super::super) fn parts(rows: usize) -> (usize, usize) {
        let each = rows.div_ceil(PARTS_MAX).max(ROWS_MIN);
        (each, rows.div_ceil(each))
    }

    /// The sums of the first `n` columns of `x` `[rows, width]`: `[n]` in f32, into the gradient of a
    /// trained weight.
    pub(in super::super) fn add_column_sums(
        weight: &Weight,
        store: &mut Store,
        x: &Array,
        width: usize,
        n: usize,
    ) -> Result<(), DeviceError> {
        let (true, Some(weight)) = (weight.is_trained(), weight.device()) else { return Ok(()) };
        let (gradient, adds) = weight.gradient_to_write(store.device())?;
        Ok(column_sums(x, width, n, gradient, adds)?)
    }

    /// The sums of the first `n` columns of `x` `[rows, width]`, added or written to `sums` `[n]`.
    pub(in super::super) fn column_sums(
        x: &Array,
        width: usize,
        n: usize,
        sums: &Array,
        adds: bool,
    ) -> Result<(), CudaError> {
        let (gpu, rows) = (x.gpu(), x.len() / width);
        let (each, blocks) = parts(rows);
        let partial = gpu.unset(blocks * n, Kind::F32)?;
        let grid = Grid { blocks: [n.div_ceil(32), blocks], threads: THREADS, shared: 0 };
        let args = [x.into(), (&partial).into(), rows.into(), long(width), n.into(), each.into()];
        gpu.launch(kernel!("column_sums", x.kind()), grid, &args)?;
        add_partials(&partial, blocks, n, 0, sums, adds)
    }

    /// Adds up `parts` rows of `partial`, `n` of every `stride` values beginning at `from`.
    pub(in super::super) fn add_partials(
        partial: &Array,
        parts: usize,
        stride: usize,
        from: usize,
        sums: &Array,
        adds: bool,
    ) -> Result<(), CudaError> {
        let n = sums.len();
        let args = [
            Arg::Pointer(partial.at(from)),
            sums.into(),
            parts.into(),
            long(stride),
            n.into(),
            i32::from(adds).into(),
        ];
        partial.gpu().launch(kernel!("add_partials"), Grid::each(n), &args)
    }

    /// The gradient of a weight as an array to add to, zeros at first; none if it is frozen.
    pub(in super::super) fn gradient_to_add<'a>(
        weight: &Weight,
        store: &'a mut Store,
    ) -> Result<Option<&'a Array>, DeviceError> {
        let (true, Some(weight)) = (weight.is_trained(), weight.device()) else { return Ok(None) };
        Ok(Some(weight.gradient_to_add(store.device())?))
    }

    pub(super) fn add_gated<T: Record>(
        y: Matrix<T>,
        x: Matrix,
        gate: &Weight,
    ) -> Result<Matrix<T>, DeviceError> {
        let (y, tape) = y.split();
        let (of_x, of_y) = (x.gpu_array(), y.gpu_array());
        let (gpu, n, width) = (of_x.gpu(), of_x.len(), x.width());
        let out = gpu.unset(n, gpu.kind())?;
        let opening = on_gpu(gate);
        let args = [of_y.into(), of_x.into(), opening.full().into(), (&out).into(), long(n)];
        let blocks = n.div_ceil(PER_THREAD * THREADS);
        gpu.launch(kernel!("add_gated", gpu.kind()), Grid::of(blocks, THREADS), &args)?;
        let gate = gate.clone();
        let wanted = x.wants_gradient() || y.wants_gradient() || gate.is_trained();
        let x = x.without_values();
        record_on_gpu(out, width, tape, wanted, move |grad_out, store| {
            let opening = on_gpu(&gate);
            let blocks = blocks.min(PARTS_MAX);
            let partial = gpu.unset(blocks, Kind::F32)?;
            let grad_y = y.wants_gradient().then(|| gpu.unset(n, gpu.kind())).transpose()?;
            let args = [
                (&grad_out).into(),
                y.gpu_array().into(),
                opening.full().into(),
                grad_y.as_ref().into(),
                (&partial).into(),
                long(n),
            ];
            gpu.launch(
                kernel!("add_gated_backward", gpu.kind()),
                Grid::of(blocks, THREADS),
                &args,
            )?;
            if let Some(gradient) = gradient_to_add(&gate, store)? {
                let args =
                    [(&partial).into(), opening.full().into(), gradient.into(), blocks.into()];
                gpu.launch(kernel!("gate_gradient"), Grid::of(1, THREADS), &args)?;
            }
            if let Some(grad_y) = grad_y {
                y.give_array(store, grad_y)?;
            }
            x.give_array(store, grad_out)
        })
    }

    /// Where a weight is that an operation reads beside a matrix on a GPU.
    pub(in super::super) fn on_gpu(weight: &Weight) -> &DeviceWeight {
        weight.device().expect("weights are where the matrices are")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::{check, pseudo_random};

    #[test]
    fn values_and_gradients_equal_the_formula() {
        check(
            &[(pseudo_random(44, 1), 4), (pseudo_random(44, 2), 4)],
            &[vec![0.3]],
            |t, x, w| add_gated(x[1].clone().with(t), x[0].clone(), &w[0]).unwrap(),
            |t, x, w| add_gated(x[1].clone().with(t), x[0].clone(), &w[0]).unwrap(),
            |x, w| x[0].iter().zip(&x[1]).map(|(x, y)| x + w[0][0].tanh() * y).collect(),
        );
    }
}
