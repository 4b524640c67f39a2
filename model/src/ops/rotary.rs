//! Rotary position embeddings (Su and others, 2021): every pair of a head's values is turned by an
//! angle that grows with the position. Pairs lie half the rotated width apart, as in GPT-NeoX and
//! `LLaMA`.

use std::sync::Arc;

use rayon::prelude::*;

use super::rows_per_chunk;
use super::wide::wide;
use crate::buffer::Buffer;
use crate::tensor::{DeviceError, Matrix, Record, record};

/// Which columns of a row are turned, and how fast.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rotation {
    /// Heads side by side from the first column on: those of queries and of keys.
    pub(crate) heads: usize,
    /// Width of one head.
    pub(crate) size: usize,
    /// Radians a position, of each pair: `[rotated width of a head / 2]`.
    pub(crate) speeds: Arc<[f32]>,
}

/// Turns the heads in every row of `x` `[N, W]` by the row's position `[N]`; columns beyond the
/// heads, and beyond the pairs of a head, stay as they are.
///
/// # Errors
/// When the device fails.
pub(crate) fn rotate<T: Record>(
    x: Matrix<T>,
    positions: &Arc<[usize]>,
    rotation: &Rotation,
) -> Result<Matrix<T>, DeviceError> {
    #[cfg(feature = "cuda")]
    if x.array().is_some() {
        return cuda::rotate(x, positions, rotation);
    }
    let (x, tape) = x.split();
    let mut out = Buffer::unset(x.values().len());
    out.copy_from_slice(x.values());
    turn(&mut out, x.width(), positions, rotation, 1.0);
    let (positions, rotation) = (Arc::clone(positions), rotation.clone());
    record(out, x.width(), tape, x.wants_gradient(), move |mut grad, store| {
        // The transpose of a rotation is the rotation back.
        turn(&mut grad, x.width(), &positions, &rotation, -1.0);
        x.give_gradient(store, grad)
    })
}

fn turn(x: &mut [f32], width: usize, positions: &[usize], rotation: &Rotation, sign: f32) {
    let rows = rows_per_chunk(width);
    let half = rotation.speeds.len();
    x.par_chunks_mut(rows * width).zip(positions.par_chunks(rows)).for_each(|(rows, positions)| {
        let (mut cos, mut sin) = (vec![0.0; half], vec![0.0; half]);
        for (row, position) in rows.chunks_exact_mut(width).zip(positions) {
            for ((cos, sin), speed) in cos.iter_mut().zip(&mut sin).zip(&*rotation.speeds) {
                // In f32, as the peers compute it: at large positions the rounding shows.
                let angle = *position as f32 * speed;
                (*sin, *cos) = angle.sin_cos();
                *sin *= sign;
            }
            wide!({
                let heads = row.chunks_exact_mut(rotation.size).take(rotation.heads);
                for head in heads {
                    let (first, second) = head[..2 * half].split_at_mut(half);
                    let pairs = first.iter_mut().zip(second).zip(cos.iter().zip(&sin));
                    for ((a, b), (cos, sin)) in pairs {
                        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                    }
                }
            });
        }
    });
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::sync::Arc;

    use super::Rotation;
    use crate::cuda::{Array, CudaError, Grid, kernel};
    use crate::tensor::{DeviceError, Matrix, Record, record_on_gpu};

    pub(super) fn rotate<T: Record>(
        x: Matrix<T>,
        positions: &Arc<[usize]>,
        rotation: &Rotation,
    ) -> Result<Matrix<T>, DeviceError> {
        let (x, tape) = x.split();
        let input = x.gpu_array();
        let (gpu, width) = (input.gpu(), x.width());
        let places = gpu
            .kept([usize::MAX].into_iter().chain(positions.iter().copied()).collect(), || {
                positions.iter().map(|position| *position as i32).collect()
            })?;
        let speeds = gpu.constant(&rotation.speeds)?;
        let (heads, size, half) = (rotation.heads, rotation.size, rotation.speeds.len());
        let turn = move |x: &Array, sign: f32| -> Result<(), CudaError> {
            let args = [
                x.into(),
                (&places).into(),
                (&speeds).into(),
                width.into(),
                heads.into(),
                size.into(),
                half.into(),
                sign.into(),
            ];
            gpu.launch(kernel!("rotate", gpu.kind()), Grid::rows(x.len() / width, width), &args)
        };
        let out = gpu.copy(input, gpu.kind())?;
        turn(&out, 1.0)?;
        let (wanted, x) = (x.wants_gradient(), x.without_values());
        record_on_gpu(out, width, tape, wanted, move |grad, store| {
            turn(&grad, -1.0)?;
            x.give_array(store, grad)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::{check, pseudo_random};

    fn rotation() -> Rotation {
        Rotation { heads: 3, size: 5, speeds: [1.0, 0.1].into() }
    }

    #[test]
    fn values_and_gradients_equal_the_formula() {
        let positions: Arc<[usize]> = [0, 1, 7].into();
        check(
            &[(pseudo_random(3 * 17, 1), 17)],
            &[],
            |t, x, _| rotate(x[0].clone().with(t), &positions, &rotation()).unwrap(),
            |t, x, _| rotate(x[0].clone().with(t), &positions, &rotation()).unwrap(),
            |x, _| {
                let mut out = x[0].clone();
                for (row, position) in out.chunks_exact_mut(17).zip(&*positions) {
                    for head in row[..15].chunks_exact_mut(5) {
                        for (pair, speed) in [1.0, f64::from(0.1_f32)].into_iter().enumerate() {
                            let (sin, cos) = (*position as f64 * speed).sin_cos();
                            let (a, b) = (head[pair], head[pair + 2]);
                            head[pair] = a * cos - b * sin;
                            head[pair + 2] = a * sin + b * cos;
                        }
                    }
                }
                out
            },
        );
    }

    #[test]
    fn products_of_turned_rows_depend_on_the_distance_alone() {
        let (q, k) = (pseudo_random(17, 1), pseudo_random(17, 2));
        let product = |at: usize, other: usize| -> f32 {
            let turned = |row: &[f32], position: usize| {
                let row = Matrix::constant(row.to_vec().into(), 17);
                rotate(row, &[position].into(), &rotation()).unwrap().values()[..15].to_vec()
            };
            turned(&q, at).iter().zip(turned(&k, other)).map(|(a, b)| a * b).sum()
        };
        assert!((product(3, 1) - product(9, 7)).abs() < 1e-5);
        assert!((product(3, 1) - product(3, 2)).abs() > 1e-3);
    }
}
