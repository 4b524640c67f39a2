//! The gate of a gated feed-forward (`SwiGLU`; Shazeer, 2020): `activation(a) * b`.

use rayon::prelude::*;

use super::wide::wide;
use super::{Activation, rows_per_chunk};
use crate::buffer::Buffer;
use crate::tensor::{DeviceError, Matrix, Record, record};

/// `kind(a) * b` of rows `[a, b]` of `x` `[N, 2 H]`: `[N, H]`.
///
/// # Errors
/// When the device fails.
pub(crate) fn activate_gate<T: Record>(
    x: Matrix<T>,
    kind: Activation,
) -> Result<Matrix<T>, DeviceError> {
    #[cfg(feature = "cuda")]
    if x.array().is_some() {
        return cuda::activate_gate(x, kind);
    }
    let (x, tape) = x.split();
    let hidden = x.width() / 2;
    let rows = rows_per_chunk(x.width());
    let mut out = Buffer::unset(x.rows() * hidden);
    out.par_chunks_mut(rows * hidden).zip(x.values().par_chunks(rows * 2 * hidden)).for_each(
        |(out, x)| {
            wide!({
                for (out, x) in out.chunks_exact_mut(hidden).zip(x.chunks_exact(2 * hidden)) {
                    let (a, b) = x.split_at(hidden);
                    kind.values(out, a);
                    out.iter_mut().zip(b).for_each(|(o, b)| *o *= b);
                }
            });
        },
    );
    record(out, hidden, tape, x.wants_gradient(), move |grad_out, store| {
        let mut grad = Buffer::unset(x.values().len());
        grad.par_chunks_mut(rows * 2 * hidden)
            .zip(x.values().par_chunks(rows * 2 * hidden))
            .zip(grad_out.par_chunks(rows * hidden))
            .for_each(|((grad, x), g)| {
                wide!({
                    let both = grad.chunks_exact_mut(2 * hidden).zip(x.chunks_exact(2 * hidden));
                    for ((grad, x), g) in both.zip(g.chunks_exact(hidden)) {
                        let ((ga, gb), (a, b)) = (grad.split_at_mut(hidden), x.split_at(hidden));
                        kind.values(gb, a);
                        gb.iter_mut().zip(g).for_each(|(s, g)| *s *= g);
                        ga.iter_mut().zip(g).zip(b).for_each(|((s, g), b)| *s = g * b);
                        kind.times_slope(ga, a);
                    }
                });
            });
        x.give_gradient(store, grad)
    })
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::Activation;
    use crate::cuda::{Grid, PER_THREAD, kernel};
    use crate::tensor::{DeviceError, Matrix, Record, record_on_gpu};

    pub(super) fn activate_gate<T: Record>(
        x: Matrix<T>,
        kind: Activation,
    ) -> Result<Matrix<T>, DeviceError> {
        let (x, tape) = x.split();
        let input = x.gpu_array();
        let (gpu, hidden, rows) = (input.gpu(), x.width() / 2, x.rows());
        let out = gpu.unset(rows * hidden, gpu.kind())?;
        let grid = Grid::each(rows * hidden.div_ceil(PER_THREAD));
        let args = [input.into(), (&out).into(), rows.into(), hidden.into(), kind.into()];
        gpu.launch(kernel!("activate_gate", gpu.kind()), grid, &args)?;
        record_on_gpu(out, hidden, tape, x.wants_gradient(), move |grad_out, store| {
            let input = x.gpu_array();
            let grad = gpu.unset(input.len(), gpu.kind())?;
            let args = [
                input.into(),
                (&grad_out).into(),
                (&grad).into(),
                rows.into(),
                hidden.into(),
                kind.into(),
            ];
            gpu.launch(kernel!("activate_gate_backward", gpu.kind()), grid, &args)?;
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
        let kinds = [Activation::Silu, Activation::GeluTanh];
        // Rows of 16 bytes' multiples, and others.
        for (kind, hidden) in kinds.into_iter().flat_map(|kind| [(kind, 3), (kind, 16)]) {
            check(
                &[(pseudo_random(8 * hidden, 1), 2 * hidden)],
                &[],
                |t, x, _| activate_gate(x[0].clone().with(t), kind).unwrap(),
                |t, x, _| activate_gate(x[0].clone().with(t), kind).unwrap(),
                |x, _| {
                    let gated = |row: &[f64]| -> Vec<f64> {
                        let (a, b) = row.split_at(hidden);
                        a.iter().zip(b).map(|(a, b)| activated(kind, *a) * b).collect()
                    };
                    x[0].chunks_exact(2 * hidden).flat_map(gated).collect()
                },
            );
        }
    }
}
