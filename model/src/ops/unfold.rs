//! Squares of pixels as rows: what a vision tower reads first. Values of 256 are augmented and become numbers on the
//! way; on the processor by [`PixelsRef::numbers`].
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
    use crate::cuda::{Arg, Array, CudaError, Gpu, Grid, Kind, THREADS, kernel};
    use crate::pixels::{FrameAugment, Normal, PixelsRef, Rectangle};
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
        let launch = |name, source: &[Arg]| {
            let places = [(&out).into(), size.into(), patch.into(), blocks.into()];
            gpu.launch(name, grid, &[source, &places].concat())
        };
        match pixels {
            PixelsRef::F32(numbers) => {
                let numbers = gpu.upload_as(numbers, Kind::F32)?;
                launch(kernel!("unfold_numbers", gpu.kind()), &[(&numbers).into()])?;
            }
            PixelsRef::U8 { values, frames: [], normal } => {
                let (values, normal) = (gpu.upload_u8(values)?, constants(gpu, normal)?);
                let source = [(&values).into(), (&*normal).into()];
                launch(kernel!("unfold_bytes", gpu.kind()), &source)?;
            }
            PixelsRef::U8 { values, frames, normal } => {
                let (values, normal) = (gpu.upload_u8(values)?, constants(gpu, normal)?);
                let greys = gpu.unset(frames.len(), Kind::F32)?;
                let uses_greys = frames.iter().any(FrameAugment::changes_contrast);
                let frames: Vec<i32> = frames.iter().flat_map(words).collect();
                let frames = gpu.upload_i32(&frames)?;
                if uses_greys {
                    let args = [(&values).into(), (&frames).into(), (&greys).into(), size.into()];
                    gpu.launch(kernel!("mean_greys"), Grid::of(greys.len(), THREADS), &args)?;
                }
                let source =
                    [(&values).into(), (&*normal).into(), (&frames).into(), (&greys).into()];
                launch(kernel!("unfold_augmented", gpu.kind()), &source)?;
            }
        }
        Ok(Matrix::on_gpu(out.into(), CHANNELS * patch * patch, false))
    }

    fn constants(gpu: &'static Gpu, normal: Normal) -> Result<Arc<Array>, CudaError> {
        gpu.constant(&[normal.factor, normal.shift].concat().into())
    }

    /// A `Frame` of the kernels.
    fn words(frame: &FrameAugment) -> [i32; 8] {
        let FrameAugment { rectangle, flip, brightness, contrast, saturation } = *frame;
        let Rectangle { left, top, width, height } = rectangle;
        let [left, top, width, height] = [left, top, width, height].map(|n| n as i32);
        let factors = [brightness, contrast, saturation].map(|f| f.to_bits().cast_signed());
        [left, top, width, height, i32::from(flip), factors[0], factors[1], factors[2]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pixels::{FrameAugment, Normal, Pixels, Rectangle};

    /// CLIP's mean and standard deviation, as the loader makes factors of them.
    fn normal() -> Normal {
        let (mean, std) =
            ([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_6, 0.275_777_1]);
        let factor = std.map(|std: f32| 1.0 / (255.0 * std));
        Normal { factor, shift: [0, 1, 2].map(|colour| mean[colour] / std[colour]) }
    }

    /// Images in which each value of 256 comes with each colour.
    fn images(size: usize, frames: Vec<FrameAugment>) -> Pixels {
        let values = (0..frames.len() * 3 * size * size).map(|i| (i * 7 % 256) as u8).collect();
        Pixels::of_256(values, frames, normal())
    }

    /// The numbers of images by the formulas, in f64.
    fn formulas(pixels: &Pixels, size: usize) -> Vec<f64> {
        let Pixels::U8 { values, frames, normal } = pixels else { panic!("values of 256") };
        let plane = size * size;
        let mut numbers = vec![0.0; values.len()];
        let grey = |rgb: [f64; 3]| 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2];
        let spread = |rgb: [f64; 3], grey: f64, factor: f32| {
            rgb.map(|value| (grey + (value - grey) * f64::from(factor)).clamp(0.0, 255.0))
        };
        for (i, values) in values.chunks(3 * plane).enumerate() {
            let frame = frames.get(i).copied().unwrap_or(FrameAugment::none(size));
            let Rectangle { left, top, width, height } = frame.rectangle;
            let bright = |x: usize, y: usize| {
                [0, 1, 2].map(|colour| {
                    let value = f64::from(values[colour * plane + y * size + x]);
                    (value * f64::from(frame.brightness)).clamp(0.0, 255.0)
                })
            };
            let all = || (0..width * height).map(|i| (left + i % width, top + i / width));
            let mean = all().map(|(x, y)| grey(bright(x, y))).sum::<f64>();
            let mean = mean / (width * height) as f64;
            for (x, y) in all() {
                let from = if frame.flip { left + (left + width - 1 - x) } else { x };
                let rgb = spread(bright(from, y), mean, frame.contrast);
                let rgb = spread(rgb, grey(rgb), frame.saturation);
                for (colour, value) in rgb.into_iter().enumerate() {
                    numbers[(3 * i + colour) * plane + y * size + x] =
                        value * f64::from(normal.factor[colour]) - f64::from(normal.shift[colour]);
                }
            }
        }
        numbers
    }

    /// By a formula for the place of each value, and each value in f64.
    fn check_places(size: usize, patch: usize, found: &[f32], numbers: &[f64]) {
        assert_eq!(found.len(), numbers.len());
        let (side, area) = (size / patch, patch * patch);
        for (i, found) in found.iter().enumerate() {
            let (image, square) = (i / (3 * size * size), i / (3 * area) % (side * side));
            let (colour, y, x) = (i / area % 3, i % area / patch, i % patch);
            let (line, column) = (square / side * patch + y, square % side * patch + x);
            let expected = numbers[((3 * image + colour) * size + line) * size + column];
            let error = (f64::from(*found) - expected).abs();
            assert!(error <= 2e-6 * expected.abs().max(1.0), "{i}: {found}, not {expected}");
            assert!(expected != 0.0 || found.to_bits() == 0, "{i}: {found}, not 0");
        }
    }

    /// That rows are what the formulas say, whether numbers are made before or on the way, and to the last bit
    /// the same on GPUs.
    fn check(size: usize, patch: usize, frames: Vec<FrameAugment>) {
        let pixels = images(size, frames);
        let numbers = PixelsRef::from(&pixels).numbers(3 * size * size).into_owned();
        let here = unfold_here((&pixels).into(), size, patch);
        assert_eq!(here.width(), 3 * patch * patch);
        check_places(size, patch, here.values(), &formulas(&pixels, size));
        let of_numbers = unfold_here((&numbers).into(), size, patch);
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
        assert_eq!(bits(here.values()), bits(of_numbers.values()));
        #[cfg(feature = "cuda")]
        for gpu in crate::ops::gradient_check::gpus() {
            let stored = crate::ops::gradient_check::stored(gpu, here.values());
            for pixels in [PixelsRef::from(&pixels), (&numbers).into()] {
                let there = cuda::unfold(gpu, pixels, size, patch).unwrap();
                assert_eq!((there.rows(), there.width()), (here.rows(), here.width()));
                assert_eq!(bits(&there.to_vec().unwrap()), bits(&stored), "{gpu:?}");
            }
        }
    }

    #[test]
    fn squares_lie_where_the_formula_says_with_numbers_of_any_device() {
        for (size, patch) in [(24, 4), (17, 1), (20, 20)] {
            check(size, patch, vec![FrameAugment::none(size); 2]);
        }
    }

    /// Rectangles of a square: all of it, with borders that are one pixel wider on one side, a line, a corner, none.
    fn rectangles(size: usize) -> [Rectangle; 6] {
        let at = |left, top, width, height| Rectangle { left, top, width, height };
        [
            at(0, 0, size, size),
            at(1, 0, size - 3, size),
            at(0, 2, size, size - 3),
            at(size / 2, 0, 1, size),
            at(size - 1, size - 1, 1, 1),
            at(0, 0, 0, 0),
        ]
    }

    /// Brightness, contrast and saturation, alone and together; with some of them values are clamped.
    const COLOURS: [[f32; 3]; 11] = [
        [1.0, 1.0, 1.0],
        [0.7, 1.0, 1.0],
        [1.9, 1.0, 1.0],
        [1.0, 0.4, 1.0],
        [1.0, 1.8, 1.0],
        [1.0, 1.0, 0.0],
        [1.0, 1.0, 1.7],
        [1.0 + f32::EPSILON, 1.0 + f32::EPSILON, 1.0 - f32::EPSILON],
        [1.3, 0.9, 1.1],
        [0.0, 1.5, 0.5],
        [0.9, 1.6, 2.0],
    ];

    #[test]
    fn images_change_as_the_formulas_say_on_any_device() {
        for (size, patch) in [(6, 3), (5, 1), (8, 8), (12, 4)] {
            let mut frames = Vec::new();
            for rectangle in rectangles(size) {
                for [brightness, contrast, saturation] in COLOURS {
                    for flip in [false, true] {
                        let colours =
                            FrameAugment { rectangle, flip, brightness, contrast, saturation };
                        frames.push(colours);
                    }
                }
            }
            check(size, patch, frames);
        }
    }

    /// More pixels than a block has threads, in rows that no number of threads divides.
    #[test]
    fn the_mean_grey_is_that_of_a_large_rectangle_alone() {
        let rectangle = Rectangle { left: 3, top: 7, width: 61, height: 47 };
        let dull = FrameAugment { rectangle, contrast: 0.3, ..FrameAugment::none(64) };
        let loud = FrameAugment { brightness: 0.4, contrast: 1.9, ..FrameAugment::none(64) };
        check(64, 16, vec![dull, FrameAugment::none(64), loud]);
    }
}
