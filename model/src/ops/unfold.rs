//! Squares of pixels as rows, and values of 256 as numbers on the way: what a vision tower reads first.
//!
//! Letters: `M` images, `p` pixels of a square's side, `P` squares of an image.

use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::params::Params;
use crate::pixels::PixelsRef;
use crate::tensor::{DeviceError, Matrix};

/// Planes of an image: red, green, blue.
const CHANNELS: usize = 3;

/// Cuts images `[M, 3, size, size]` into squares of `patch` by `patch` pixels, lines of squares first, where
/// the parameters are: `[M * P, 3 p p]`. With squares of one pixel these are pixels with their colours last.
///
/// # Errors
/// When the device fails.
#[cfg_attr(not(feature = "cuda"), expect(clippy::unnecessary_wraps, reason = "GPUs need it"))]
pub(crate) fn unfold(
    p: &Params,
    pixels: PixelsRef,
    size: usize,
    patch: usize,
) -> Result<Matrix, DeviceError> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = p.gpu() {
        return cuda::unfold(gpu, pixels, size, patch);
    }
    let _ = p;
    Ok(unfold_here(pixels, size, patch))
}

/// As [`unfold`], on the processor.
pub(crate) fn unfold_here(pixels: PixelsRef, size: usize, patch: usize) -> Matrix {
    let n = CHANNELS * size * size;
    let mut out = Buffer::unset(pixels.len());
    out.par_chunks_mut(n).zip(pixels.chunks(n)).for_each(|(out, image)| {
        let image = image.numbers(n);
        if patch == 1 { colours_last(&image, out) } else { squares(&image, out, size, patch) }
    });
    Matrix::constant(out, CHANNELS * patch * patch)
}

fn squares(image: &[f32], out: &mut [f32], size: usize, patch: usize) {
    let side = size / patch;
    for (i, out) in out.chunks_exact_mut(CHANNELS * patch * patch).enumerate() {
        let (top, left) = (i / side * patch, i % side * patch);
        for (line, out) in out.chunks_exact_mut(patch).enumerate() {
            let (channel, y) = (line / patch, line % patch);
            let from = (channel * size + top + y) * size + left;
            out.copy_from_slice(&image[from..from + patch]);
        }
    }
}

fn colours_last(image: &[f32], out: &mut [f32]) {
    for (colour, plane) in image.chunks_exact(image.len() / CHANNELS).enumerate() {
        let to = out[colour..].iter_mut().step_by(CHANNELS);
        to.zip(plane).for_each(|(to, from)| *to = *from);
    }
}

#[cfg(feature = "cuda")]
pub(super) mod cuda {
    use std::sync::Arc;

    use super::CHANNELS;
    use crate::cuda::{Gpu, Grid, Kind, THREADS, kernel};
    use crate::pixels::PixelsRef;
    use crate::tensor::{DeviceError, Matrix};

    pub(crate) fn unfold(
        gpu: &'static Gpu,
        pixels: PixelsRef,
        size: usize,
        patch: usize,
    ) -> Result<Matrix, DeviceError> {
        let n = CHANNELS * size * size;
        let blocks = n.div_ceil(THREADS);
        let grid = Grid::of(pixels.len() / n * blocks, THREADS);
        let out = gpu.unset(pixels.len(), gpu.kind())?;
        match pixels {
            PixelsRef::F32(numbers) => {
                let numbers = gpu.upload_as(numbers, Kind::F32)?;
                let args =
                    [(&numbers).into(), (&out).into(), size.into(), patch.into(), blocks.into()];
                gpu.launch(kernel!("unfold_numbers", gpu.kind()), grid, &args)?;
            }
            PixelsRef::U8(values, normal) => {
                let values = gpu.upload_u8(values)?;
                let normal: Arc<[f32]> = [normal.factor, normal.shift].concat().into();
                let normal = gpu.constant(&normal)?;
                let args = [
                    (&values).into(),
                    (&normal).into(),
                    (&out).into(),
                    size.into(),
                    patch.into(),
                    blocks.into(),
                ];
                gpu.launch(kernel!("unfold_bytes", gpu.kind()), grid, &args)?;
            }
        }
        Ok(Matrix::on_gpu(out.into(), CHANNELS * patch * patch, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pixels::{Normal, Pixels};

    /// CLIP's mean and standard deviation, as the loader makes factors of them.
    fn normal() -> Normal {
        let (mean, std) =
            ([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_6, 0.275_777_1]);
        let factor = std.map(|std: f32| 1.0 / (255.0 * std));
        Normal { factor, shift: [0, 1, 2].map(|colour| mean[colour] / std[colour]) }
    }

    /// Two images, in which each value of 256 comes with each colour, and the numbers of them in f64.
    fn images(size: usize) -> (Pixels, Vec<f64>) {
        let plane = size * size;
        let values: Vec<u8> = (0..6 * plane).map(|i| (i * 7 % 256) as u8).collect();
        let number = |(i, value): (usize, &u8)| {
            let (normal, colour) = (normal(), i / plane % 3);
            f64::from(*value) * f64::from(normal.factor[colour]) - f64::from(normal.shift[colour])
        };
        let numbers = values.iter().enumerate().map(number).collect();
        (Pixels::U8 { values, normal: normal() }, numbers)
    }

    /// By a formula for the place of each value, and each value in f64.
    fn check(size: usize, patch: usize, found: &[f32], tolerance: f64) {
        let (_, numbers) = images(size);
        assert_eq!(found.len(), numbers.len());
        let (side, area) = (size / patch, patch * patch);
        for (i, found) in found.iter().enumerate() {
            let (image, square) = (i / (3 * size * size), i / (3 * area) % (side * side));
            let (colour, y, x) = (i / area % 3, i % area / patch, i % patch);
            let (line, column) = (square / side * patch + y, square % side * patch + x);
            let expected = numbers[((3 * image + colour) * size + line) * size + column];
            let error = (f64::from(*found) - expected).abs();
            assert!(error <= tolerance * expected.abs().max(1.0), "{i}: {found}, not {expected}");
        }
    }

    #[test]
    fn squares_lie_where_the_formula_says_with_numbers_of_any_device() {
        for (size, patch) in [(24, 4), (17, 1), (20, 20)] {
            let (pixels, _) = images(size);
            let pixels = PixelsRef::from(&pixels);
            let numbers = pixels.numbers(3 * size * size).into_owned();
            let here = unfold_here(pixels, size, patch);
            assert_eq!(here.width(), 3 * patch * patch);
            check(size, patch, here.values(), 1e-6);
            let of_numbers = unfold_here((&numbers).into(), size, patch);
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
            assert_eq!(bits(here.values()), bits(of_numbers.values()));
            #[cfg(feature = "cuda")]
            for gpu in crate::ops::gradient_check::gpus() {
                let stored = crate::ops::gradient_check::stored(gpu, here.values());
                for pixels in [pixels, (&numbers).into()] {
                    let there = cuda::unfold(gpu, pixels, size, patch).unwrap();
                    assert_eq!((there.rows(), there.width()), (here.rows(), here.width()));
                    assert_eq!(bits(&there.to_vec().unwrap()), bits(&stored), "{gpu:?}");
                }
            }
        }
    }
}
