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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::{check, each_row, equals_dfdx, pseudo_random, theirs};
    use dfdx::prelude::{Trace, TryMatMul};

    #[test]
    fn gradients_equal_finite_differences() {
        let inputs = [(pseudo_random(12, 1), 4), (pseudo_random(12, 2), 4)];
        check(
            &inputs,
            &[vec![0.3]],
            2e-3,
            |t, x, w| add_gated(x[1].clone().with(t), x[0].clone(), &w[0]).unwrap(),
            |t, x, w| add_gated(x[1].clone().with(t), x[0].clone(), &w[0]).unwrap(),
        );
    }

    #[test]
    fn values_and_gradients_equal_dfdx() {
        equals_dfdx(
            &[(pseudo_random(12, 1), 4), (pseudo_random(12, 2), 4)],
            &[(vec![0.3], 1)],
            |t, x, w| add_gated(x[1].clone().with(t), x[0].clone(), &w[0]).unwrap(),
            |all| {
                let gate = all[2].leaky_trace().tanh().matmul(theirs(vec![1.0; 4], 4));
                all[0].leaky_trace() + each_row(3, gate) * all[1].leaky_trace()
            },
        );
    }
}
