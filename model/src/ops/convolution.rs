//! Convolutions of images with standardised weights, as `NFNet` has them (Brock and others,
//! 2021).
//!
//! An image is rows of pixels, line by line, with its channels as the columns: `[M * H * W, C]`.
//! Letters: `M` images, `I` and `O` channels of one group, `G` groups, `T` taps of a kernel. A
//! kernel is `[G * T * I, O]`, so that a group's part multiplies what its taps see, `[N, T * I]`,
//! as it lies. Products therefore work on pieces of gathered rows; a kernel of one tap reads the
//! rows where they are.

use std::ops::Range;

use rayon::prelude::*;

use super::add::add_rows_to;
use super::matmul::{Target, View, matmul, matmul_here};
use super::norm::moments;
use super::wide::{dot, sum_by, wide};
use crate::buffer::Buffer;
use crate::tensor::{DeviceError, Matrix, Record, Weight, record};

/// Height and width of an image, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) height: usize,
    pub(crate) width: usize,
}

impl Grid {
    /// Pixels of one image.
    pub(crate) fn n_pixels(self) -> usize {
        self.height * self.width
    }

    /// What is left when every `stride`-th line and column is kept, the first ones included.
    pub(crate) fn strided(self, stride: usize) -> Self {
        Self { height: self.height.div_ceil(stride), width: self.width.div_ceil(stride) }
    }
}

/// Sizes of a kernel, stored as PyTorch's `[G * O, I, side, side]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KernelSize {
    /// `G * I`.
    pub(crate) inputs: usize,
    /// `G * O`.
    pub(crate) outputs: usize,
    /// Height and width; `T` is the square.
    pub(crate) side: usize,
    /// `G`; divides inputs and outputs.
    pub(crate) groups: usize,
}

impl KernelSize {
    fn taps(self) -> usize {
        self.side * self.side
    }

    /// `I`.
    pub(crate) fn group_inputs(self) -> usize {
        self.inputs / self.groups
    }

    /// `O`.
    fn group_outputs(self) -> usize {
        self.outputs / self.groups
    }

    /// Values that one output is a sum of: `T * I`.
    pub(crate) fn fan_in(self) -> usize {
        self.taps() * self.group_inputs()
    }
}

/// Rows or columns that are transposed together: a cache line of f32.
const BLOCK: usize = 16;

/// `gain * (w - mean) / sqrt(variance + epsilon) / sqrt(T * I)` over the weights of each output
/// (Brock and others, 2021, equation 2), from `weight` `[G * O, I, side, side]` and `gain`
/// `[G * O]`: `[G * T * I, O]`. The variance is the mean
/// of the squares, as in timm.
///
/// # Errors
/// When the device fails.
pub(crate) fn standardize<T: Record>(
    weight: &Weight,
    gain: &Weight,
    size: KernelSize,
    epsilon: f32,
    tape: T,
) -> Result<Matrix<T>, DeviceError> {
    #[cfg(feature = "cuda")]
    if weight.device().is_some() {
        return cuda::standardize(weight, gain, size, epsilon, tape);
    }
    let out = size.standardized(&weight.values(), &gain.values(), epsilon);
    let (weight, gain) = (weight.clone(), gain.clone());
    let wanted = weight.is_trained() || gain.is_trained();
    record(out, size.group_outputs(), tape, wanted, move |grad_out, store| {
        let (values, gains) = (weight.values(), gain.values());
        let (grad, grad_gain) = size.standardized_back(&values, &gains, &grad_out, epsilon);
        drop((values, gains));
        weight.accumulate(store, |sum| super::add_to(sum, &grad))?;
        gain.accumulate(store, |sum| super::add_to(sum, &grad_gain))
    })
}

impl KernelSize {
    fn scale(self) -> f32 {
        (self.fan_in() as f32).sqrt().recip()
    }

    fn standardized(self, weight: &[f32], gain: &[f32], epsilon: f32) -> Buffer {
        let (taps, inputs, outputs) = (self.taps(), self.group_inputs(), self.group_outputs());
        let fan_in = self.fan_in();
        let rows: Vec<(f32, f32)> = weight
            .par_chunks(fan_in)
            .zip(gain)
            .map(|(row, gain)| {
                let (mean, inverse) = wide!(moments(row, true, epsilon));
                (mean, inverse * gain * self.scale())
            })
            .collect();
        let mut out = Buffer::unset(weight.len());
        out.par_chunks_mut(inputs * outputs).enumerate().for_each(|(i, out)| {
            let (group, tap) = (i / taps, i % taps);
            out.par_chunks_mut(BLOCK * outputs).enumerate().for_each(|(block, out)| {
                // Through a square, since writing columns costs a cache line for each value.
                let n = out.len() / outputs;
                for first in (0..outputs).step_by(BLOCK) {
                    let mut square = [[0.0; BLOCK]; BLOCK];
                    let columns = first..(first + BLOCK).min(outputs);
                    for (column, i) in columns.clone().enumerate() {
                        let output = group * outputs + i;
                        let (mean, factor) = rows[output];
                        let from = &weight[output * fan_in + block * BLOCK * taps + tap..];
                        for (row, from) in square[..n].iter_mut().zip(from.iter().step_by(taps)) {
                            row[column] = (from - mean) * factor;
                        }
                    }
                    for (out, row) in out.chunks_exact_mut(outputs).zip(&square) {
                        out[columns.clone()].copy_from_slice(&row[..columns.len()]);
                    }
                }
            });
        });
        out
    }

    /// The gradients of weight and gain.
    ///
    /// With `n = (w - mean) / std` and `h = gain * scale * grad`:
    /// `grad_w = (h - mean(h) - n * mean(h * n)) / std`, `grad_gain = scale * sum(grad * n)`.
    fn standardized_back(
        self,
        weight: &[f32],
        gain: &[f32],
        grad_out: &[f32],
        epsilon: f32,
    ) -> (Buffer, Vec<f32>) {
        let (fan_in, outputs) = (self.fan_in(), self.group_outputs());
        let mut grad = Buffer::unset(weight.len());
        let mut grad_gain = vec![0.0; self.outputs];
        let groups = grad.par_chunks_mut(fan_in * outputs).zip(grad_gain.par_chunks_mut(outputs));
        groups.zip(grad_out.par_chunks(fan_in * outputs)).enumerate().for_each(
            |(group, ((grad, grad_gain), grad_out))| {
                let blocks =
                    grad.par_chunks_mut(BLOCK * fan_in).zip(grad_gain.par_chunks_mut(BLOCK));
                blocks.enumerate().for_each(|(block, (grad, grad_gain))| {
                    self.transpose_back(grad, &grad_out[block * BLOCK..]);
                    let first = group * outputs + block * BLOCK;
                    let mut normal = vec![0.0; fan_in];
                    for (i, (grad, grad_gain)) in
                        grad.chunks_exact_mut(fan_in).zip(grad_gain).enumerate()
                    {
                        let row = &weight[(first + i) * fan_in..][..fan_in];
                        let factor = gain[first + i] * self.scale();
                        let sum = wide!(row_back(grad, &mut normal, row, factor, epsilon));
                        *grad_gain = sum * self.scale();
                    }
                });
            },
        );
        (grad, grad_gain)
    }

    /// Copies columns of one group's `[T * I, O]`, starting with the first, to rows `[n, I * T]`.
    fn transpose_back(self, rows: &mut [f32], columns: &[f32]) {
        let (taps, inputs, fan_in) = (self.taps(), self.group_inputs(), self.fan_in());
        for (k, column) in columns.chunks(self.group_outputs()).enumerate() {
            let at = k % inputs * taps + k / inputs;
            for (to, from) in rows[at..].iter_mut().step_by(fan_in).zip(column) {
                *to = *from;
            }
        }
    }
}

/// Turns the gradient of one standardised row into the raw row's; returns `sum(grad * normal)`.
#[expect(clippy::inline_always, reason = "must become part of the wide call around it")]
#[inline(always)]
fn row_back(grad: &mut [f32], normal: &mut [f32], row: &[f32], factor: f32, epsilon: f32) -> f32 {
    let n = row.len() as f32;
    let (mean, inverse) = moments(row, true, epsilon);
    normal.iter_mut().zip(row).for_each(|(n, w)| *n = (w - mean) * inverse);
    let mean_grad = sum_by(grad, |g| g) / n;
    let along = dot(grad, normal);
    for (g, normal) in grad.iter_mut().zip(normal) {
        *g = (*g - mean_grad - *normal * (along / n)) * (factor * inverse);
    }
    along
}

/// How a kernel passes over images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Convolution {
    /// The images that come in.
    pub(crate) grid: Grid,
    /// Height and width of the kernel.
    pub(crate) side: usize,
    /// Pixels from one position of the kernel to the next.
    pub(crate) stride: usize,
    /// `G`.
    pub(crate) groups: usize,
}

/// Convolves images `x` `[M * H * W, G * I]` with `kernel` `[G * T * I, O]` and adds `bias`
/// `[G * O]`: `[M * H' * W', G * O]`, where `H'` is `H / stride`, rounded up.
///
/// Zeros around the image make up for what the kernel lacks at the borders, one more behind than
/// before where they are odd (TensorFlow's `SAME`).
///
/// # Errors
/// When the device fails.
pub(crate) fn convolve<T: Record>(
    x: Matrix<T>,
    kernel: Matrix,
    bias: &Weight,
    shape: Convolution,
) -> Result<Matrix<T>, DeviceError> {
    #[cfg(feature = "cuda")]
    if x.array().is_some() {
        return cuda::convolve(x, kernel, bias, shape);
    }
    let (x, tape) = x.split();
    let out = shape.forward(&x, &kernel, &bias.values());
    let bias = bias.clone();
    let wanted = x.wants_gradient() || kernel.wants_gradient() || bias.is_trained();
    record(out, shape.groups * kernel.width(), tape, wanted, move |grad_out, store| {
        if x.wants_gradient() {
            x.give_gradient(store, shape.input_gradient(&x, &kernel, &grad_out))?;
        }
        if kernel.wants_gradient() {
            kernel.give_gradient(store, shape.kernel_gradient(&x, &kernel, &grad_out))?;
        }
        bias.accumulate(store, |sum| add_rows_to(sum, &grad_out))
    })
}

/// Rows that one product takes at a time, of `n`: enough that arranging the kernel for the
/// registers, which every product does anew, is a small part.
fn rows_per_piece(n: usize, most: usize) -> usize {
    n.div_ceil(16).clamp(ROWS_AT_LEAST, most)
}

/// Fewest rows of a piece, if there are as many.
const ROWS_AT_LEAST: usize = 256;
/// Most rows of a piece that is read in place.
const ROWS_IN_PLACE: usize = 1024;
/// Most rows of a piece that is gathered: with 128 channels a group and nine taps, 1.2 MB.
const ROWS_GATHERED: usize = 256;
/// Rows of a piece of one tap, and the channels whose weights one thread sums.
const ROWS_OF_TAP: usize = 1024;
const CHANNELS_OF_TAP: usize = 128;

/// A product on this thread, or on all where the pieces around it are too few to keep them busy;
/// its bits are the same.
fn product_for(n_pieces: usize) -> fn(usize, usize, usize, f32, View, View, Target) {
    if n_pieces < rayon::current_num_threads() { matmul } else { matmul_here }
}

impl Convolution {
    /// The images that go out.
    pub(crate) fn out_grid(&self) -> Grid {
        self.grid.strided(self.stride)
    }

    fn taps(&self) -> usize {
        self.side * self.side
    }

    /// True if the kernel reads each row where it is.
    fn in_place(&self) -> bool {
        self.side == 1 && self.stride == 1
    }

    /// Zeros before the first of `length` pixels.
    fn padding(&self, length: usize) -> usize {
        let reach = (length.div_ceil(self.stride) - 1) * self.stride + self.side;
        reach.saturating_sub(length) / 2
    }

    fn forward(&self, x: &Matrix, kernel: &Matrix, bias: &[f32]) -> Buffer {
        let (inputs, outputs) = (x.width() / self.groups, kernel.width());
        let n = x.rows() / self.grid.n_pixels() * self.out_grid().n_pixels();
        let k = self.taps() * inputs;
        let most = if self.in_place() { ROWS_IN_PLACE } else { ROWS_GATHERED };
        let at_a_time = rows_per_piece(n, most);
        let product = product_for(n.div_ceil(at_a_time));
        let mut out = Buffer::unset(n * bias.len());
        out.par_chunks_mut(at_a_time * bias.len()).enumerate().for_each(|(i, out)| {
            out.chunks_exact_mut(bias.len()).for_each(|row| row.copy_from_slice(bias));
            let (first, rows) = (i * at_a_time, out.len() / bias.len());
            let mut seen = Buffer::unset(if self.in_place() { 0 } else { at_a_time * k });
            for group in 0..self.groups {
                let channels = group * inputs..(group + 1) * inputs;
                let weight = View::rows(kernel.values(), outputs).at(group * k, 0);
                let target = Target::rows(out, bias.len()).at(0, group * outputs).adding();
                let seen = self.see(&mut seen, x, first..first + rows, 0..self.taps(), channels);
                product(rows, k, outputs, 1.0, seen, weight, target);
            }
        });
        out
    }

    /// The gradient of the images: for each position of the kernel, what its taps get, summed where
    /// taps of several positions lie on one pixel.
    fn input_gradient(&self, x: &Matrix, kernel: &Matrix, grad_out: &[f32]) -> Buffer {
        let width = x.width();
        let (inputs, outputs) = (width / self.groups, kernel.width());
        let (k, out_width) = (self.taps() * inputs, self.groups * outputs);
        let mut grad = Buffer::unset(x.values().len());
        if self.in_place() {
            let at_a_time = rows_per_piece(x.rows(), ROWS_IN_PLACE);
            let product = product_for(x.rows().div_ceil(at_a_time));
            let pieces = grad.par_chunks_mut(at_a_time * width);
            pieces.zip(grad_out.par_chunks(at_a_time * out_width)).for_each(|(grad, g)| {
                for group in 0..self.groups {
                    let g = View::rows(g, out_width).at(0, group * outputs);
                    let back = View::rows(kernel.values(), outputs).at(group * k, 0).t();
                    let target = Target::rows(grad, width).at(0, group * inputs);
                    product(target.values.len() / width, outputs, inputs, 1.0, g, back, target);
                }
            });
            return grad;
        }
        let positions = self.out_grid().n_pixels();
        let at_a_time = rows_per_piece(positions, ROWS_GATHERED).min(positions);
        let product = product_for(x.rows() / self.grid.n_pixels());
        let images = grad.par_chunks_mut(self.grid.n_pixels() * width);
        images.zip(grad_out.par_chunks(positions * out_width)).for_each(|(grad, g)| {
            grad.fill(0.0);
            let mut tap_grads = Buffer::unset(at_a_time * k);
            for (i, g) in g.chunks(at_a_time * out_width).enumerate() {
                let rows = g.len() / out_width;
                for group in 0..self.groups {
                    let g = View::rows(g, out_width).at(0, group * outputs);
                    let back = View::rows(kernel.values(), outputs).at(group * k, 0).t();
                    let target = Target::rows(&mut tap_grads, k);
                    product(rows, outputs, k, 1.0, g, back, target);
                    let tap_grads = &tap_grads[..rows * k];
                    wide!(self.scatter(grad, group, i * at_a_time, tap_grads));
                }
            }
        });
        grad
    }

    /// The gradient of the kernel. A thread sums the weights of one tap and some channels over all
    /// rows, so that no partial sums need memory.
    fn kernel_gradient(&self, x: &Matrix, kernel: &Matrix, grad_out: &[f32]) -> Buffer {
        let (inputs, outputs, taps) = (x.width() / self.groups, kernel.width(), self.taps());
        let out_width = self.groups * outputs;
        let n = grad_out.len() / out_width;
        let grad_out = View::rows(grad_out, out_width);
        let mut grad = Buffer::unset(kernel.values().len());
        grad.par_chunks_mut(inputs * outputs).enumerate().for_each(|(i, grad)| {
            let (group, tap) = (i / taps, i % taps);
            let blocks = grad.par_chunks_mut(CHANNELS_OF_TAP * outputs);
            blocks.enumerate().for_each(|(block, grad)| {
                let c = grad.len() / outputs;
                let first = group * inputs + block * CHANNELS_OF_TAP;
                let mut seen = Buffer::unset(if self.in_place() { 0 } else { ROWS_OF_TAP * c });
                for row in (0..n).step_by(ROWS_OF_TAP) {
                    let rows = row..(row + ROWS_OF_TAP).min(n);
                    let g = grad_out.at(row, group * outputs);
                    let target = Target { add: row > 0, ..Target::rows(grad, outputs) };
                    let n = rows.len();
                    let seen = self.see(&mut seen, x, rows, tap..tap + 1, first..first + c);
                    matmul_here(c, n, outputs, 1.0, seen.t(), g, target);
                }
            });
        });
        grad
    }

    /// What `taps` see of `channels` at positions `rows` of all images: `[rows, taps * channels]`,
    /// in place or gathered into `room`.
    fn see<'a>(
        &self,
        room: &'a mut [f32],
        x: &'a Matrix,
        rows: Range<usize>,
        taps: Range<usize>,
        channels: Range<usize>,
    ) -> View<'a> {
        if self.in_place() {
            return View::rows(x.values(), x.width()).at(rows.start, channels.start);
        }
        let (n, width) = (channels.len(), taps.len() * channels.len());
        for (row, seen) in rows.zip(room.chunks_exact_mut(width)) {
            let image = row / self.out_grid().n_pixels() * self.grid.n_pixels();
            let pixels = self.pixels(row % self.out_grid().n_pixels(), taps.clone());
            for (pixel, seen) in pixels.zip(seen.chunks_exact_mut(n)) {
                match pixel {
                    Some(pixel) => {
                        let from = (image + pixel) * x.width() + channels.start;
                        seen.copy_from_slice(&x.values()[from..from + n]);
                    }
                    None => seen.fill(0.0),
                }
            }
        }
        View::rows(room, width)
    }

    /// Adds what taps get at positions from `first` on, `[n, T * I]`, to the channels of one group
    /// of an image `[H * W, G * I]`.
    #[expect(clippy::inline_always, reason = "must become part of the wide call around it")]
    #[inline(always)]
    fn scatter(&self, image: &mut [f32], group: usize, first: usize, tap_grads: &[f32]) {
        let width = image.len() / self.grid.n_pixels();
        let inputs = width / self.groups;
        for (i, row) in tap_grads.chunks_exact(self.taps() * inputs).enumerate() {
            let pixels = self.pixels(first + i, 0..self.taps());
            for (pixel, g) in pixels.zip(row.chunks_exact(inputs)) {
                let Some(pixel) = pixel else { continue };
                let to = &mut image[pixel * width + group * inputs..][..inputs];
                to.iter_mut().zip(g).for_each(|(to, g)| *to += g);
            }
        }
    }

    /// The pixels of their image that `taps` lie on at one position, none in the padding.
    #[expect(clippy::inline_always, reason = "must become part of the wide loop around it")]
    #[inline(always)]
    fn pixels(&self, position: usize, taps: Range<usize>) -> impl Iterator<Item = Option<usize>> {
        let (grid, side, out_width) = (self.grid, self.side, self.out_grid().width);
        let top = position / out_width * self.stride;
        let left = position % out_width * self.stride;
        let (above, before) = (self.padding(grid.height), self.padding(grid.width));
        let mut at = (taps.start / side, taps.start % side);
        taps.map(move |_| {
            let (y, x) = at;
            at = if x + 1 == side { (y + 1, 0) } else { (y, x + 1) };
            let y = (top + y).checked_sub(above).filter(|y| *y < grid.height)?;
            let x = (left + x).checked_sub(before).filter(|x| *x < grid.width)?;
            Some(y * grid.width + x)
        })
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::super::add::cuda::{add_column_sums, gradient_to_add, on_gpu};
    use super::{Convolution, KernelSize};
    use crate::cuda::{Arg, Array, CudaError, Factor, Gpu, Grid, Kind, Product, kernel, long};
    use crate::tensor::{DeviceError, Matrix, Record, Weight, record_on_gpu};

    /// About as many values of what taps see exist at one time.
    const SEEN_AT_ONCE: usize = 1 << 27;

    /// The values of a weight in f32; those of a large frozen one are as bf16 has them.
    fn in_f32(weight: &Weight) -> Result<Array, CudaError> {
        let weight = on_gpu(weight);
        match weight.full_if_there() {
            Some(full) => Ok(full.part(0, full.len())),
            None => weight.gpu().copy(weight.array(), Kind::F32),
        }
    }

    pub(super) fn standardize<T: Record>(
        weight: &Weight,
        gain: &Weight,
        size: KernelSize,
        epsilon: f32,
        tape: T,
    ) -> Result<Matrix<T>, DeviceError> {
        let gpu = on_gpu(weight).gpu();
        let out = gpu.unset(weight.len(), gpu.kind())?;
        let sizes = move || -> [Arg; 5] {
            [
                size.group_inputs().into(),
                size.taps().into(),
                size.group_outputs().into(),
                epsilon.into(),
                size.scale().into(),
            ]
        };
        let values = in_f32(weight)?;
        let inputs = [(&values).into(), on_gpu(gain).full().into(), (&out).into()];
        let grid = Grid::rows(size.outputs, size.fan_in());
        gpu.launch(kernel!("standardize", gpu.kind()), grid, &[&inputs[..], &sizes()].concat())?;
        let (weight, gain) = (weight.clone(), gain.clone());
        let wanted = weight.is_trained() || gain.is_trained();
        record_on_gpu(out, size.group_outputs(), tape, wanted, move |grad_out, store| {
            let values = in_f32(&weight)?;
            let grad = gradient_to_add(&weight, store)?.map(Array::address).unwrap_or_default();
            let grad_gain = gradient_to_add(&gain, store)?.map(Array::address).unwrap_or_default();
            let inputs = [
                (&values).into(),
                on_gpu(&gain).full().into(),
                (&grad_out).into(),
                Arg::Pointer(grad),
                Arg::Pointer(grad_gain),
            ];
            let name = kernel!("standardize_backward", gpu.kind());
            Ok(gpu.launch(name, grid, &[&inputs[..], &sizes()].concat())?)
        })
    }

    pub(super) fn convolve<T: Record>(
        x: Matrix<T>,
        kernel: Matrix,
        bias: &Weight,
        shape: Convolution,
    ) -> Result<Matrix<T>, DeviceError> {
        let (x, tape) = x.split();
        let images = Images::of(&x, &kernel, shape);
        let out = images.forward(&x, &kernel, bias)?;
        let bias = bias.clone();
        let wanted = x.wants_gradient() || kernel.wants_gradient() || bias.is_trained();
        let width = images.out_width();
        record_on_gpu(out, width, tape, wanted, move |grad_out, store| {
            if x.wants_gradient() {
                x.give_array(store, images.input_gradient(&kernel, &grad_out)?)?;
            }
            if kernel.wants_gradient() {
                kernel.give_array(store, images.kernel_gradient(&x, &grad_out)?)?;
            }
            add_column_sums(&bias, store, &grad_out, width, width)
        })
    }

    /// Images that a kernel passes over.
    #[derive(Clone, Copy)]
    struct Images {
        gpu: &'static Gpu,
        shape: Convolution,
        n: usize,
        /// Channels of all groups, and of one.
        width: usize,
        inputs: usize,
        outputs: usize,
    }

    impl Images {
        fn of(x: &Matrix, kernel: &Matrix, shape: Convolution) -> Self {
            let gpu = x.gpu_array().gpu();
            let (n, width) = (x.rows() / shape.grid.n_pixels(), x.width());
            Self { gpu, shape, n, width, inputs: width / shape.groups, outputs: kernel.width() }
        }

        fn out_width(&self) -> usize {
            self.shape.groups * self.outputs
        }

        fn positions(&self) -> usize {
            self.shape.out_grid().n_pixels()
        }

        /// Values that one output is a sum of.
        fn fan_in(&self) -> usize {
            self.shape.taps() * self.inputs
        }

        /// Images whose taps are looked at together: first and number.
        fn pieces(&self) -> impl Iterator<Item = (usize, usize)> {
            let one = (self.positions() * self.fan_in()).max(1);
            let at_once = (SEEN_AT_ONCE / one).max(1);
            let n = self.n;
            (0..n).step_by(at_once).map(move |first| (first, at_once.min(n - first)))
        }

        fn passage(&self) -> [Arg; 8] {
            let (grid, out) = (self.shape.grid, self.shape.out_grid());
            [
                grid.height,
                grid.width,
                out.height,
                out.width,
                self.shape.side,
                self.shape.stride,
                self.shape.padding(grid.height),
                self.shape.padding(grid.width),
            ]
            .map(Arg::from)
        }

        fn factor(&self, address: u64, stride: usize, transposed: bool) -> Factor {
            Factor { address, stride, transposed, kind: self.gpu.kind() }
        }

        /// What the taps see of one group's channels in `n` images from `first` on, gathered into `room` unless
        /// it can be read in place.
        fn see(
            &self,
            room: Option<&Array>,
            x: &Array,
            (first, n): (usize, usize),
            group: usize,
        ) -> Result<Factor, CudaError> {
            let channel = group * self.inputs;
            let Some(room) = room else {
                let pixel = first * self.shape.grid.n_pixels();
                return Ok(self.factor(x.at(pixel * self.width + channel), self.width, false));
            };
            let rows = n * self.positions();
            let mut args = vec![x.into(), room.into()];
            args.extend(self.passage());
            args.extend([
                long(first * self.positions()),
                self.width.into(),
                channel.into(),
                self.inputs.into(),
            ]);
            let grid = Grid::rows(rows, self.fan_in());
            self.gpu.launch(kernel!("see", self.gpu.kind()), grid, &args)?;
            Ok(self.factor(room.address(), self.fan_in(), false))
        }

        /// Room for what the taps see in the images of the first piece, which is the largest.
        fn room(&self) -> Result<Option<Array>, CudaError> {
            let n = self.pieces().next().map_or(0, |(_, n)| n);
            let room = || self.gpu.unset(n * self.positions() * self.fan_in(), self.gpu.kind());
            (!self.shape.in_place()).then(room).transpose()
        }

        fn forward(&self, x: &Matrix, kernel: &Matrix, bias: &Weight) -> Result<Array, CudaError> {
            let (gpu, kind, width) = (self.gpu, self.gpu.kind(), self.out_width());
            let [x, kernel] = [x, kernel].map(Matrix::gpu_array);
            let out = gpu.unset(self.n * self.positions() * width, kind)?;
            let room = self.room()?;
            for (first, n) in self.pieces() {
                for group in 0..self.shape.groups {
                    let left = self.see(room.as_ref(), x, (first, n), group)?;
                    let weights = kernel.at(group * self.fan_in() * self.outputs);
                    gpu.multiply(&Product {
                        rows: n * self.positions(),
                        inner: self.fan_in(),
                        columns: self.outputs,
                        left,
                        right: self.factor(weights, self.outputs, false),
                        alpha: 1.0,
                        add: None,
                        bias: Some(on_gpu(bias).array().at(group * self.outputs)),
                        out: out.at(first * self.positions() * width + group * self.outputs),
                        out_stride: width,
                        out_kind: kind,
                    })?;
                }
            }
            Ok(out)
        }

        fn input_gradient(&self, kernel: &Matrix, grad_out: &Array) -> Result<Array, CudaError> {
            let (gpu, kind, width) = (self.gpu, self.gpu.kind(), self.out_width());
            let kernel = kernel.gpu_array();
            let pixels = self.shape.grid.n_pixels();
            let grad = gpu.unset(self.n * pixels * self.width, kind)?;
            let room = self.room()?;
            for (first, n) in self.pieces() {
                for group in 0..self.shape.groups {
                    let rows = n * self.positions();
                    let from = first * self.positions() * width + group * self.outputs;
                    let weights = kernel.at(group * self.fan_in() * self.outputs);
                    let channel = group * self.inputs;
                    let to = grad.at(first * pixels * self.width + channel);
                    let (out, out_stride) = match &room {
                        Some(room) => (room.address(), self.fan_in()),
                        None => (to, self.width),
                    };
                    gpu.multiply(&Product {
                        rows,
                        inner: self.outputs,
                        columns: self.fan_in(),
                        left: self.factor(grad_out.at(from), width, false),
                        right: self.factor(weights, self.outputs, true),
                        alpha: 1.0,
                        add: None,
                        bias: None,
                        out,
                        out_stride,
                        out_kind: kind,
                    })?;
                    let Some(room) = &room else { continue };
                    let here = grad.at(first * pixels * self.width);
                    let mut args = vec![room.into(), Arg::Pointer(here)];
                    args.extend(self.passage());
                    args.extend([self.width, channel, self.inputs].map(Arg::from));
                    let grid = Grid::rows(n * pixels, self.inputs);
                    gpu.launch(kernel!("unsee", kind), grid, &args)?;
                }
            }
            Ok(grad)
        }

        fn kernel_gradient(&self, x: &Matrix, grad_out: &Array) -> Result<Array, CudaError> {
            let (gpu, width) = (self.gpu, self.out_width());
            let x = x.gpu_array();
            let part = self.fan_in() * self.outputs;
            let grad = gpu.unset(self.shape.groups * part, Kind::F32)?;
            let room = self.room()?;
            for (i, (first, n)) in self.pieces().enumerate() {
                for group in 0..self.shape.groups {
                    let seen = self.see(room.as_ref(), x, (first, n), group)?;
                    let from = first * self.positions() * width + group * self.outputs;
                    let to = grad.at(group * part);
                    gpu.multiply(&Product {
                        rows: self.fan_in(),
                        inner: n * self.positions(),
                        columns: self.outputs,
                        left: Factor { transposed: true, ..seen },
                        right: self.factor(grad_out.at(from), width, false),
                        alpha: 1.0,
                        add: (i > 0).then_some(to),
                        bias: None,
                        out: to,
                        out_stride: self.outputs,
                        out_kind: Kind::F32,
                    })?;
                }
            }
            gpu.copy(&grad, gpu.kind())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::{check, gradients_of_ramp, pseudo_random};
    use crate::tensor::Recording;

    const EPSILON: f32 = 1e-5;

    /// Kernels with one tap and with nine, in one group and in several, with and without a stride.
    const SHAPES: [(usize, usize, usize); 5] =
        [(1, 1, 1), (1, 1, 2), (3, 1, 2), (3, 2, 1), (3, 2, 2)];

    fn shape((side, stride, groups): (usize, usize, usize)) -> Convolution {
        Convolution { grid: Grid { height: 5, width: 4 }, side, stride, groups }
    }

    /// Two images of 5 x 4 pixels with 4 channels, convolved to 6.
    fn size(of: &Convolution) -> KernelSize {
        KernelSize { inputs: 4, outputs: 6, side: of.side, groups: of.groups }
    }

    /// `x` `[2 * 5 * 4, 4]` convolved, and a bias added.
    fn convolved(x: &[f64], kernel: &[f64], bias: &[f64], shape: Convolution) -> Vec<f64> {
        let (size, out) = (size(&shape), shape.out_grid());
        let (inputs, outputs) = (size.group_inputs(), size.group_outputs());
        // TensorFlow pads (5, 4) with (1, 1) before for stride 1, with (1, 0) for stride 2.
        let before = if shape.side == 1 { (0, 0) } else { (1, 2 - shape.stride) };
        let of = |i: usize| {
            let (row, o) = (i / 6, i % 6);
            let (image, at) = (row / out.n_pixels(), row % out.n_pixels());
            let group = o / outputs;
            let mut sum = bias[o];
            for (tap, c) in (0..size.taps()).flat_map(|t| (0..inputs).map(move |c| (t, c))) {
                let y = (at / out.width * shape.stride + tap / shape.side).wrapping_sub(before.0);
                let z = (at % out.width * shape.stride + tap % shape.side).wrapping_sub(before.1);
                if y < 5 && z < 4 {
                    let seen = x[(image * 20 + y * 4 + z) * 4 + group * inputs + c];
                    let weight = ((group * size.taps() + tap) * inputs + c) * outputs;
                    sum += seen * kernel[weight + o % outputs];
                }
            }
            sum
        };
        (0..2 * out.n_pixels() * 6).map(of).collect()
    }

    /// `gain * (w - mean) / sqrt(variance + epsilon) / sqrt(T * I)`, transposed.
    fn standardized(weight: &[f64], gain: &[f64], size: KernelSize) -> Vec<f64> {
        let (taps, inputs, outputs) = (size.taps(), size.group_inputs(), size.group_outputs());
        let n = size.fan_in() as f64;
        let mut out = vec![0.0; weight.len()];
        for (of, (row, gain)) in weight.chunks_exact(size.fan_in()).zip(gain).enumerate() {
            let (group, o) = (of / outputs, of % outputs);
            let mean = row.iter().sum::<f64>() / n;
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
            for (i, v) in row.iter().enumerate() {
                let (c, tap) = (i / taps, i % taps);
                out[((group * taps + tap) * inputs + c) * outputs + o] =
                    gain * (v - mean) / ((variance + f64::from(EPSILON)) * n).sqrt();
            }
        }
        out
    }

    #[test]
    fn values_and_gradients_equal_the_formula() {
        for shape in SHAPES.map(shape) {
            let size = size(&shape);
            let outputs = size.group_outputs();
            check(
                &[
                    (pseudo_random(2 * 20 * 4, 1), 4),
                    (pseudo_random(size.fan_in() * 6, 2), outputs),
                ],
                &[pseudo_random(6, 3)],
                |t, x, w| convolve(x[0].clone().with(t), x[1].clone(), &w[0], shape).unwrap(),
                |t, x, w| convolve(x[0].clone().with(t), x[1].clone(), &w[0], shape).unwrap(),
                |x, w| convolved(&x[0], &x[1], &w[0], shape),
            );
            // Wider, since a standardised row of few weights hardly depends on them.
            let size = KernelSize { inputs: 24, ..size };
            check(
                &[],
                &[pseudo_random(size.fan_in() * 6, 2), pseudo_random(6, 3)],
                |t, _, w| standardize(&w[0], &w[1], size, EPSILON, t).unwrap(),
                |t, _, w| standardize(&w[0], &w[1], size, EPSILON, t).unwrap(),
                |_, w| standardized(&w[0], &w[1], size),
            );
        }
    }

    #[test]
    fn standardized_rows_have_mean_zero_and_the_variance_of_their_gain() {
        let size = KernelSize { inputs: 40, outputs: 6, side: 3, groups: 2 };
        let weight = Weight::Frozen(pseudo_random(6 * size.fan_in(), 1).into());
        let gain = Weight::Frozen(vec![0.5, 1.0, 2.0, 1.0, 1.0, 3.0].into());
        let tape = crate::tensor::NotRecording::default();
        let kernel = standardize(&weight, &gain, size, EPSILON, tape).unwrap();
        for (o, gain) in gain.values().iter().enumerate() {
            let part = &kernel.values()[o / 3 * size.fan_in() * 3..][..size.fan_in() * 3];
            let row: Vec<f32> = part.iter().skip(o % 3).step_by(3).copied().collect();
            assert!(row.iter().sum::<f32>().abs() < 1e-5);
            let squares: f32 = row.iter().map(|v| v * v).sum();
            assert!((squares - gain * gain).abs() < 1e-3 * gain * gain, "{squares} {gain}");
        }
    }

    #[test]
    fn the_number_of_threads_does_not_change_a_bit() {
        // More rows than a piece of any kind holds, and images whose pieces end within a line.
        let grid = Grid { height: 23, width: 29 };
        for (side, stride) in [(1, 1), (3, 1), (3, 2)] {
            let shape = Convolution { grid, side, stride, groups: 2 };
            let run = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    let x = pseudo_random(3 * grid.n_pixels() * 32, 1);
                    let x = Matrix::variable(x.into(), 32).unwrap();
                    let kernel = pseudo_random(2 * side * side * 16 * 24, 2);
                    let kernel = Matrix::variable(kernel.into(), 24).unwrap();
                    let bias = Weight::trained(pseudo_random(48, 3)).unwrap();
                    let taped = x.clone().with(Recording::default());
                    let out = convolve(taped, kernel.clone(), &bias, shape).unwrap();
                    let (out, mut grads) = gradients_of_ramp(out);
                    let mut bias_grad = Vec::new();
                    bias.accumulate(&mut grads.0, |g| bias_grad = g.to_vec()).unwrap();
                    let mut grad =
                        |x: &Matrix| x.take_gradient(&mut grads.0).unwrap().unwrap().into_vec();
                    [out.values().to_vec(), grad(&x), grad(&kernel), bias_grad]
                })
            };
            assert!(run(1) == run(5), "side {side}, stride {stride}");
        }
    }
}
