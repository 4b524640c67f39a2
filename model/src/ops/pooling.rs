//! Averages of two by two pixels, which halve an image.

use rayon::prelude::*;

use super::convolution::Grid;
use super::wide::wide;
use crate::buffer::Buffer;
use crate::tensor::{DeviceError, Matrix, Record, record};

/// Height and width of what is averaged, and the step to the next.
const SIDE: usize = 2;

/// Averages squares of two by two pixels of images `x` `[M * H * W, C]`: `[M * H' * W', C]` with
/// half the lines and columns, rounded up. At an odd border only the pixels that there are count.
///
/// # Errors
/// When the device fails.
pub(crate) fn halve<T: Record>(x: Matrix<T>, grid: Grid) -> Result<Matrix<T>, DeviceError> {
    #[cfg(feature = "cuda")]
    if x.array().is_some() {
        return cuda::halve(x, grid);
    }
    let (x, tape) = x.split();
    let (width, small) = (x.width(), grid.strided(SIDE));
    let mut out = Buffer::zeroed(x.rows() / grid.n_pixels() * small.n_pixels() * width);
    out.par_chunks_mut(small.width * width).enumerate().for_each(|(line, out)| {
        let (image, top) = (line / small.height, line % small.height * SIDE);
        for y in top..(top + SIDE).min(grid.height) {
            let from = (image * grid.height + y) * grid.width * width;
            let line = &x.values()[from..][..grid.width * width];
            for (column, (out, pixels)) in
                out.chunks_exact_mut(width).zip(line.chunks(SIDE * width)).enumerate()
            {
                let share = share(grid, top, column * SIDE);
                for pixel in pixels.chunks_exact(width) {
                    wide!(out.iter_mut().zip(pixel).for_each(|(o, v)| *o += share * v));
                }
            }
        }
    });
    record(out, width, tape, x.wants_gradient(), move |grad_out, store| {
        let mut grad = Buffer::unset(x.values().len());
        grad.par_chunks_mut(grid.width * width).enumerate().for_each(|(line, grad)| {
            let (image, y) = (line / grid.height, line % grid.height);
            let from = (image * small.height + y / SIDE) * small.width * width;
            for (column, grad) in grad.chunks_exact_mut(width).enumerate() {
                let share = share(grid, y / SIDE * SIDE, column / SIDE * SIDE);
                let g = &grad_out[from + column / SIDE * width..][..width];
                wide!(grad.iter_mut().zip(g).for_each(|(o, g)| *o = share * g));
            }
        });
        x.give_gradient(store, grad)
    })
}

/// One over the number of pixels in the square that begins at `top` and `left`.
fn share(grid: Grid, top: usize, left: usize) -> f32 {
    let pixels = (grid.height - top).min(SIDE) * (grid.width - left).min(SIDE);
    (pixels as f32).recip()
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::{Grid as ImageGrid, SIDE};
    use crate::cuda::{Grid, kernel};
    use crate::tensor::{DeviceError, Matrix, Record, record_on_gpu};

    pub(super) fn halve<T: Record>(
        x: Matrix<T>,
        grid: ImageGrid,
    ) -> Result<Matrix<T>, DeviceError> {
        let (x, tape) = x.split();
        let input = x.gpu_array();
        let (gpu, kind, width, rows) = (input.gpu(), input.kind(), x.width(), x.rows());
        let small = rows / grid.n_pixels() * grid.strided(SIDE).n_pixels();
        let out = gpu.unset(small * width, kind)?;
        let sizes = [grid.height.into(), grid.width.into(), width.into()];
        let args = [&[input.into(), (&out).into()], &sizes[..]].concat();
        gpu.launch(kernel!("halve", kind), Grid::rows(small, width), &args)?;
        let (wanted, x) = (x.wants_gradient(), x.without_values());
        record_on_gpu(out, width, tape, wanted, move |grad_out, store| {
            let grad = gpu.unset(rows * width, kind)?;
            let args = [&[(&grad_out).into(), (&grad).into()], &sizes[..]].concat();
            gpu.launch(kernel!("halve_backward", kind), Grid::rows(rows, width), &args)?;
            x.give_array(store, grad)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::{check, pseudo_random};

    #[test]
    fn an_odd_border_averages_the_pixels_that_there_are() {
        let x = Matrix::constant((0..9).map(|v| v as f32).collect::<Vec<_>>().into(), 1);
        let out = halve(x, Grid { height: 3, width: 3 }).unwrap();
        assert_eq!(out.values(), [2.0, 3.5, 6.5, 8.0]);
    }

    #[test]
    fn values_and_gradients_equal_the_formula() {
        for grid in [Grid { height: 4, width: 2 }, Grid { height: 3, width: 5 }] {
            check(
                &[(pseudo_random(2 * grid.n_pixels() * 3, 1), 3)],
                &[],
                |t, x, _| halve(x[0].clone().with(t), grid).unwrap(),
                |t, x, _| halve(x[0].clone().with(t), grid).unwrap(),
                |x, _| {
                    let mut out = Vec::new();
                    for image in x[0].chunks_exact(3 * grid.n_pixels()) {
                        for (y, z) in (0..grid.height)
                            .step_by(2)
                            .flat_map(|y| (0..grid.width).step_by(2).map(move |z| (y, z)))
                        {
                            let pixels: Vec<usize> =
                                [(y, z), (y, z + 1), (y + 1, z), (y + 1, z + 1)]
                                    .into_iter()
                                    .filter(|(y, z)| *y < grid.height && *z < grid.width)
                                    .map(|(y, z)| y * grid.width + z)
                                    .collect();
                            let sum =
                                |c: usize| pixels.iter().map(|p| image[3 * p + c]).sum::<f64>();
                            out.extend([0, 1, 2].map(|c| sum(c) / pixels.len() as f64));
                        }
                    }
                    out
                },
            );
        }
    }
}
