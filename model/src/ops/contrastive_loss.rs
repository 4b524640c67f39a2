//! The two-term contrastive loss with learnt temperature (paper, appendix B.1.3; CLIP).

use std::ops::Range;

use super::matmul::{Target, View, matmul};
use super::wide::{dot, exp, highest, sum_by, wide};
use crate::buffer::Buffer;
use crate::tensor::{DeviceError, Loss, Matrix, Record, Weight, record_loss};

/// Embeddings of a batch of which some pairs were embedded here, and the others elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchEmbeddings {
    /// Of all images, `[B, E]`.
    pub images: Vec<f32>,
    /// Of all texts, `[B, E]`.
    pub texts: Vec<f32>,
    /// The place of the first pair that was embedded here; the others of these follow it.
    pub first: usize,
}

/// Text-to-image plus image-to-text, each the mean cross-entropy of `exp(log_beta) * cosine`.
///
/// `images`, `texts` `[B, E]`: row i of each belong together. They are normalised here. `smoothing`
/// spreads that share of the target evenly over all rows. The tape comes with `images`.
///
/// # Errors
/// When the device fails.
pub(crate) fn contrastive_loss<T: Record>(
    images: Matrix<T>,
    texts: Matrix,
    log_beta: &Weight,
    smoothing: f32,
) -> Result<Loss<T>, DeviceError> {
    #[cfg(feature = "cuda")]
    if images.array().is_some() {
        return cuda::contrastive_loss(images, texts, log_beta, smoothing);
    }
    let (all_images, all_texts) = (images.values().to_vec(), texts.values().to_vec());
    let all = BatchEmbeddings { images: all_images, texts: all_texts, first: 0 };
    contrastive_loss_in(images, texts, all, log_beta, smoothing)
}

/// Rows of logits that are in memory at a time: of `B` pairs `ROWS x B`, and never all `B x B`.
pub(crate) const ROWS: usize = 256;

/// The loss of the pairs of `all`, of which `images` and `texts` `[b, E]` are those that were embedded here and
/// get their gradients. The temperature gets what the rows of these images have in its gradient: over all shares
/// of a batch these are the whole.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// If there are fewer rows in `all` than were embedded here.
pub(crate) fn contrastive_loss_in<T: Record>(
    images: Matrix<T>,
    texts: Matrix,
    all: BatchEmbeddings,
    log_beta: &Weight,
    smoothing: f32,
) -> Result<Loss<T>, DeviceError> {
    #[cfg(feature = "cuda")]
    if images.array().is_some() {
        return cuda::contrastive_loss_in(images, texts, &all, log_beta, smoothing);
    }
    let (images, tape) = images.split();
    let (own, width) = (images.rows(), images.width());
    let BatchEmbeddings { images: all_images, texts: all_texts, first } = all;
    let n = all_images.len() / width;
    assert!(first + own <= n && all_texts.len() == all_images.len());
    let (mut of_images, mut of_texts) = (Side::of(&all_images, width), Side::of(&all_texts, width));
    let logits = Logits { n, width, beta: log_beta.values()[0].exp(), smoothing };
    let loss = logits.loss(&mut of_images, &mut of_texts);
    let log_beta = log_beta.clone();
    record_loss(loss as f32, tape, move |grad_out, store| {
        let own = first..first + own;
        let (grad, dot) = logits.gradient(&of_images, &of_texts, own.clone(), grad_out);
        images.give_gradient(store, grad)?;
        log_beta.accumulate(store, |sum| sum[0] += grad_out * logits.beta * dot as f32)?;
        let (grad, _) = logits.gradient(&of_texts, &of_images, own.clone(), grad_out);
        texts.give_gradient(store, grad)
    })
}

/// The images of a batch, or its texts.
struct Side {
    /// Of length 1, `[B, E]`.
    unit: Vec<f32>,
    /// Their lengths before.
    norm: Vec<f32>,
    /// Of each, the logarithm of the sum of `exp` of its logits, once the loss is known.
    log_sums: Vec<f32>,
}

impl Side {
    fn of(embeddings: &[f32], width: usize) -> Self {
        let (unit, norm) = unit_rows(embeddings, width);
        Self { unit, norm, log_sums: Vec::new() }
    }
}

/// The logits `beta * cosine` `[B, B]` of all images, the rows, with all texts, made a few rows at a time, and
/// once more for the gradient.
struct Logits {
    /// Pairs, `B`.
    n: usize,
    /// `E`.
    width: usize,
    beta: f32,
    smoothing: f32,
}

impl Logits {
    /// Rows of the cosines of one side with the other, into `cosines` `[rows, B]`.
    fn cosines(&self, of: &Side, with: &Side, rows: &Range<usize>, cosines: &mut Vec<f32>) {
        let Self { n, width, .. } = *self;
        cosines.resize(rows.len() * n, 0.0);
        let (of, with) = (View::rows(&of.unit, width), View::rows(&with.unit, width));
        let target = Target::rows(cosines, n);
        matmul(rows.len(), width, n, 1.0, of.at(rows.start, 0), with.t(), target);
    }

    /// The loss of the whole batch. With the share `s` that is spread over all, a row of it is
    /// `log_sum - (1 - s) * logit of its pair - s * mean of its logits`.
    fn loss(&self, images: &mut Side, texts: &mut Side) -> f64 {
        let Self { n, beta, smoothing, .. } = *self;
        // Of the columns, over the rows so far.
        let (mut highest_of, mut sum_of) = (vec![f32::NEG_INFINITY; n], vec![0.0_f32; n]);
        let (mut logits, mut paired, mut all) = (Vec::new(), 0.0, 0.0);
        for rows in blocks(0..n) {
            self.cosines(images, texts, &rows, &mut logits);
            for v in &mut logits {
                *v *= beta;
            }
            for (i, row) in rows.zip(logits.chunks(n)) {
                paired += f64::from(row[i]);
                let (top, sum, total) = wide!({
                    let top = highest(row);
                    (top, sum_by(row, |v| exp(v - top)), sum_by(row, |v| v))
                });
                images.log_sums.push(sum.ln() + top);
                all += f64::from(total);
            }
            wide!({
                let before = highest_of.clone();
                for row in logits.chunks(n) {
                    for (top, v) in highest_of.iter_mut().zip(row) {
                        *top = if *v > *top { *v } else { *top };
                    }
                }
                for ((sum, before), top) in sum_of.iter_mut().zip(&before).zip(&highest_of) {
                    *sum *= exp(*before - *top);
                }
                for row in logits.chunks(n) {
                    for ((sum, top), v) in sum_of.iter_mut().zip(&highest_of).zip(row) {
                        *sum += exp(*v - *top);
                    }
                }
            });
        }
        texts.log_sums = highest_of.iter().zip(&sum_of).map(|(top, sum)| sum.ln() + top).collect();
        let log_sums: f64 =
            images.log_sums.iter().chain(&texts.log_sums).copied().map(f64::from).sum();
        let (n, smoothing) = (n as f64, f64::from(smoothing));
        (log_sums - 2.0 * ((1.0 - smoothing) * paired + smoothing / n * all)) / n
    }

    /// The gradient of some rows of a side before they had length 1, and what these rows have of the product of
    /// cosines and the gradients of logits.
    fn gradient(&self, of: &Side, with: &Side, own: Range<usize>, grad_out: f32) -> (Buffer, f64) {
        let Self { n, width, beta, smoothing } = *self;
        let (spread, scale) = (smoothing / n as f32, 1.0 / n as f32);
        let mut grad = Buffer::unset(own.len() * width);
        let (mut cosines, mut of_logits, mut product) = (Vec::new(), Vec::new(), 0.0);
        for rows in blocks(own.clone()) {
            self.cosines(of, with, &rows, &mut cosines);
            of_logits.resize(cosines.len(), 0.0);
            for ((i, g), row) in rows.clone().zip(of_logits.chunks_mut(n)).zip(cosines.chunks(n)) {
                let log_sum = of.log_sums[i];
                product += f64::from(wide!({
                    for ((g, c), other) in g.iter_mut().zip(row).zip(&with.log_sums) {
                        let logit = beta * c;
                        let share = exp(logit - log_sum) + exp(logit - other);
                        *g = (share - 2.0 * spread) * scale;
                    }
                    g[i] -= 2.0 * (1.0 - smoothing) * scale;
                    dot(g, row)
                }));
            }
            let (m, g, with) =
                (rows.len(), View::rows(&of_logits, n), View::rows(&with.unit, width));
            let at = (rows.start - own.start) * width;
            let target = Target::rows(&mut grad[at..at + m * width], width);
            matmul(m, n, width, grad_out * beta, g, with, target);
        }
        let unit = &of.unit[own.start * width..own.end * width];
        unit_rows_backward(&mut grad, unit, &of.norm[own], width);
        (grad, product)
    }
}

/// Rows that are in memory together, from a range of them.
fn blocks(rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = rows.end;
    rows.step_by(ROWS).map(move |first| first..end.min(first + ROWS))
}

/// Rows to unit length, and their lengths.
pub(crate) fn unit_rows(x: &[f32], width: usize) -> (Vec<f32>, Vec<f32>) {
    let mut unit = x.to_vec();
    let norms = unit
        .chunks_mut(width)
        .map(|row| {
            let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
            for v in row.iter_mut() {
                *v /= norm;
            }
            norm
        })
        .collect();
    (unit, norms)
}

/// Gradient of the unit rows to gradient of the rows: `(g - unit * (g . unit)) / norm`.
fn unit_rows_backward(grad: &mut [f32], unit: &[f32], norms: &[f32], width: usize) {
    for ((g, u), norm) in grad.chunks_mut(width).zip(unit.chunks(width)).zip(norms) {
        let dot: f32 = g.iter().zip(u).map(|(g, u)| g * u).sum();
        g.iter_mut().zip(u).for_each(|(g, u)| *g = (*g - u * dot) / norm);
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::ops::Range;

    use super::super::add::cuda::on_gpu;
    use super::{BatchEmbeddings, ROWS, blocks};
    use crate::cuda::{Array, CudaError, Factor, Gpu, Grid, Kind, Product, THREADS, kernel};
    use crate::tensor::{DeviceError, Loss, LossValue, Matrix, Record, Weight, record_loss};

    /// The images of a batch, or its texts, in f32.
    struct Side {
        /// Of length 1, `[B, E]`.
        unit: Array,
        /// Their lengths before.
        norms: Array,
        /// Of each, the logarithm of the sum of `exp` of its logits, once the loss is known.
        log_sums: Array,
    }

    impl Side {
        fn of(embeddings: &Array, width: usize) -> Result<Self, CudaError> {
            let (gpu, n) = (embeddings.gpu(), embeddings.len() / width);
            let unset = |n| gpu.unset(n, Kind::F32);
            let side = Self { unit: unset(n * width)?, norms: unset(n)?, log_sums: unset(n)? };
            let args = [embeddings.into(), (&side.unit).into(), (&side.norms).into(), width.into()];
            let name = kernel!("unit_rows", embeddings.kind());
            gpu.launch(name, Grid::rows(n, width), &args)?;
            Ok(side)
        }
    }

    /// As the processor has them; the logarithm of `beta` is where the weight is.
    struct Logits {
        gpu: &'static Gpu,
        n: usize,
        width: usize,
        log_beta: Weight,
        smoothing: f32,
    }

    impl Logits {
        /// Room for the cosines of some rows.
        fn room(&self, rows: usize) -> Result<Array, CudaError> {
            self.gpu.unset(rows.min(ROWS) * self.n, Kind::F32)
        }

        fn factor(address: u64, stride: usize) -> Factor {
            Factor { address, stride, transposed: false, kind: Kind::F32 }
        }

        /// Rows of the cosines of one side with the other, into `cosines` `[rows, B]`.
        fn cosines(
            &self,
            of: &Side,
            with: &Side,
            rows: &Range<usize>,
            cosines: &Array,
        ) -> Result<(), CudaError> {
            let Self { gpu, n, width, .. } = *self;
            let with = Self::factor(with.unit.address(), width);
            gpu.multiply(&Product {
                rows: rows.len(),
                inner: width,
                columns: n,
                left: Self::factor(of.unit.at(rows.start * width), width),
                right: Factor { transposed: true, ..with },
                alpha: 1.0,
                add: None,
                bias: None,
                out: cosines.address(),
                out_stride: n,
                out_kind: Kind::F32,
            })
        }

        fn beta(&self) -> &Array {
            on_gpu(&self.log_beta).full()
        }

        /// The loss of the whole batch, one f64; both sides get their sums.
        fn loss(&self, images: &Side, texts: &Side) -> Result<Array, CudaError> {
            let Self { gpu, n, smoothing, .. } = *self;
            let cosines = self.room(n)?;
            let unset = || gpu.unset(n, Kind::F32);
            let (paired, totals, highest) = (unset()?, unset()?, unset()?);
            for rows in blocks(0..n) {
                self.cosines(images, texts, &rows, &cosines)?;
                let args = [
                    (&cosines).into(),
                    self.beta().into(),
                    (&images.log_sums).into(),
                    (&paired).into(),
                    (&totals).into(),
                    rows.start.into(),
                    n.into(),
                ];
                let grid = Grid::of(rows.len(), THREADS);
                gpu.launch(kernel!("contrastive_rows"), grid, &args)?;
                let args = [
                    (&cosines).into(),
                    self.beta().into(),
                    (&highest).into(),
                    (&texts.log_sums).into(),
                    rows.len().into(),
                    n.into(),
                    i32::from(rows.start == 0).into(),
                ];
                gpu.launch(kernel!("contrastive_columns"), Grid::each(n), &args)?;
            }
            let loss = gpu.unset(2, Kind::F32)?; // One f64.
            let args = [
                (&images.log_sums).into(),
                (&paired).into(),
                (&totals).into(),
                (&highest).into(),
                (&texts.log_sums).into(),
                (&loss).into(),
                smoothing.into(),
                n.into(),
            ];
            gpu.launch(kernel!("contrastive_loss"), Grid::of(1, THREADS), &args)?;
            Ok(loss)
        }

        /// The gradient, in this format, of some rows of a side before they had length 1, and what each of these rows
        /// has of the product of cosines and the gradients of logits.
        fn gradient(
            &self,
            [of, with]: [&Side; 2],
            own: Range<usize>,
            grad_out: f32,
            kind: Kind,
        ) -> Result<(Array, Array), CudaError> {
            let Self { gpu, n, width, smoothing, .. } = *self;
            let products = gpu.unset(own.len(), Kind::F32)?;
            let of_unit = gpu.unset(own.len() * width, Kind::F32)?;
            let cosines = self.room(own.len())?;
            for rows in blocks(own.clone()) {
                self.cosines(of, with, &rows, &cosines)?;
                let (m, at) = (rows.len(), rows.start - own.start);
                let args = [
                    (&cosines).into(),
                    self.beta().into(),
                    (&of.log_sums).into(),
                    (&with.log_sums).into(),
                    (&products.part(at, m)).into(),
                    grad_out.into(),
                    smoothing.into(),
                    rows.start.into(),
                    n.into(),
                ];
                gpu.launch(kernel!("contrastive_gradient"), Grid::of(m, THREADS), &args)?;
                gpu.multiply(&Product {
                    rows: m,
                    inner: n,
                    columns: width,
                    left: Self::factor(cosines.address(), n),
                    right: Self::factor(with.unit.address(), width),
                    alpha: 1.0,
                    add: None,
                    bias: None,
                    out: of_unit.at(at * width),
                    out_stride: width,
                    out_kind: Kind::F32,
                })?;
            }
            let grad = gpu.unset(own.len() * width, kind)?;
            let args = [
                (&of_unit).into(),
                (&of.unit.part(own.start * width, own.len() * width)).into(),
                (&of.norms.part(own.start, own.len())).into(),
                (&grad).into(),
                width.into(),
            ];
            let grid = Grid::rows(own.len(), width);
            gpu.launch(kernel!("unit_rows_backward", kind), grid, &args)?;
            Ok((grad, products))
        }
    }

    /// As [`super::contrastive_loss`].
    pub(super) fn contrastive_loss<T: Record>(
        images: Matrix<T>,
        texts: Matrix,
        log_beta: &Weight,
        smoothing: f32,
    ) -> Result<Loss<T>, DeviceError> {
        let width = images.width();
        let all = [Side::of(images.gpu_array(), width)?, Side::of(texts.gpu_array(), width)?];
        loss_of(images, texts, (all, 0), log_beta, smoothing)
    }

    /// As [`super::contrastive_loss_in`].
    pub(super) fn contrastive_loss_in<T: Record>(
        images: Matrix<T>,
        texts: Matrix,
        all: &BatchEmbeddings,
        log_beta: &Weight,
        smoothing: f32,
    ) -> Result<Loss<T>, DeviceError> {
        let (gpu, width) = (images.gpu_array().gpu(), images.width());
        let side = |embeddings| Side::of(&gpu.upload_as(embeddings, Kind::F32)?, width);
        let sides = [side(&all.images)?, side(&all.texts)?];
        loss_of(images, texts, (sides, all.first), log_beta, smoothing)
    }

    /// The loss of all pairs, of which those from number `first` on are these.
    fn loss_of<T: Record>(
        images: Matrix<T>,
        texts: Matrix,
        (all, first): ([Side; 2], usize),
        log_beta: &Weight,
        smoothing: f32,
    ) -> Result<Loss<T>, DeviceError> {
        let (images, tape) = images.split();
        let (gpu, width) = (images.gpu_array().gpu(), images.width());
        let own = first..first + images.rows();
        let n = all[0].norms.len();
        assert!(own.end <= n && all[1].norms.len() == n);
        let logits = Logits { gpu, n, width, log_beta: log_beta.clone(), smoothing };
        let loss = logits.loss(&all[0], &all[1])?;
        let (images, texts) = (images.without_values(), texts.without_values());
        record_loss(LossValue::Cuda(loss, 1.0), tape, move |grad_out, store| {
            let [of_images, of_texts] = &all;
            let kind = gpu.kind();
            let gradient = |sides| logits.gradient(sides, own.clone(), grad_out, kind);
            let (grad, products) = gradient([of_images, of_texts])?;
            images.give_array(store, grad)?;
            if logits.log_beta.is_trained() {
                let sum = on_gpu(&logits.log_beta).gradient_to_add(store.device())?;
                let args = [
                    (&products).into(),
                    logits.beta().into(),
                    sum.into(),
                    grad_out.into(),
                    own.len().into(),
                ];
                gpu.launch(kernel!("contrastive_temperature"), Grid::of(1, THREADS), &args)?;
            }
            let (grad, _) = gradient([of_texts, of_images])?;
            texts.give_array(store, grad)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::ops::formula::{dot, product};
    use crate::ops::gradient_check::{Expected, devices, error_max, pseudo_random, relative_error};
    use crate::params::Params;
    use crate::tensor::{Recording, differentiate};

    /// Embeddings of so many pairs, `[B, 4]`.
    fn pairs(n: usize) -> (Vec<f32>, Vec<f32>) {
        (pseudo_random(4 * n, 3), pseudo_random(4 * n, 4))
    }

    /// The logarithm of the inverse temperature on a device, trained.
    fn log_beta(device: Device, value: f32) -> Params {
        device.with(Params::trained([("log_beta".to_owned(), vec![1], vec![value])]).unwrap())
    }

    /// The loss of the pairs from `first` on, of a batch of `n`, and all gradients: of images, of texts, of the
    /// temperature.
    fn shared(device: Device, n: usize, first: usize, own: usize) -> (f32, [Vec<f32>; 3]) {
        let (images, texts) = pairs(n);
        let values = 4 * first..4 * (first + own);
        let of = |all: &[f32]| device.variable(&all[values.clone()], 4);
        let (i, t) = (of(&images), of(&texts));
        let params = log_beta(device, 0.9);
        let log_beta = &params.iter().next().unwrap().weight;
        let all = BatchEmbeddings { images, texts, first };
        let traced = i.clone().with(Recording::default());
        let loss = if own == n {
            contrastive_loss(traced, t.clone(), log_beta, 0.1).unwrap()
        } else {
            contrastive_loss_in(traced, t.clone(), all, log_beta, 0.1).unwrap()
        };
        let (loss, mut grads) = differentiate(loss, 1.0).unwrap();
        let [i, t] = [i, t].map(|x| x.take_gradient(&mut grads.0).unwrap().unwrap().to_vec());
        let mut beta = Vec::new();
        log_beta.accumulate(&mut grads.0, |g| beta = g.to_vec()).unwrap();
        (loss, [i, t, beta])
    }

    #[test]
    fn shares_of_a_batch_have_its_loss_and_together_its_gradients() {
        // As many rows as are in memory at a time, fewer and more, of the batch and of a share.
        let shares = |n: usize| [(0, n / 6), (n / 6, n / 2), (n / 6 + n / 2, n - n / 6 - n / 2)];
        let sizes = [6, ROWS, 2 * ROWS + 90];
        let devices = Device::to_compare().into_iter();
        for (device, n) in devices.flat_map(|device| sizes.map(|n| (device, n))) {
            let (whole, [images, texts, beta]) = shared(device, n, 0, n);
            let parts = shares(n).map(|(first, own)| shared(device, n, first, own));
            let joined = |which: usize| parts.iter().flat_map(move |(_, all)| all[which].clone());
            for (name, found, expected) in [
                ("images", joined(0).collect(), images),
                ("texts", joined(1).collect::<Vec<f32>>(), texts),
                ("temperature", vec![joined(2).sum()], beta),
            ] {
                assert_eq!(found.len(), expected.len());
                for (found, expected) in found.iter().zip(&expected) {
                    assert!((found - expected).abs() < 1e-6, "{name}: {found}, whole {expected}");
                }
            }
            assert!(parts.iter().all(|(loss, _)| loss.to_bits() == whole.to_bits()));
        }
    }

    /// The loss of pairs by its formula in f64, and its gradients of images, texts and logarithm of beta: with all
    /// logits at once, and by their gradients times those of the cosines.
    fn by_formula(
        [images, texts]: [&[f64]; 2],
        width: usize,
        log_beta: f64,
        smoothing: f64,
    ) -> (f64, [Vec<f64>; 3]) {
        let n = images.len() / width;
        let lengths = |x: &[f64]| -> Vec<f64> {
            let length = |row: &[f64]| dot(row, row).sqrt().max(f64::from(f32::MIN_POSITIVE));
            x.chunks_exact(width).map(length).collect()
        };
        let unit = |x: &[f64], lengths: &[f64]| -> Vec<f64> {
            let of_row = |(row, length): (&[f64], &f64)| -> Vec<f64> {
                row.iter().map(|v| v / length).collect()
            };
            x.chunks_exact(width).zip(lengths).flat_map(of_row).collect()
        };
        let [of_images, of_texts] = [images, texts].map(lengths);
        let (i, t, beta) = (unit(images, &of_images), unit(texts, &of_texts), log_beta.exp());
        let cosines = product(&i, &t, width);
        let log_sum =
            |c: &mut dyn Iterator<Item = &f64>| c.map(|c| (beta * c).exp()).sum::<f64>().ln();
        let rows: Vec<f64> = cosines.chunks_exact(n).map(|row| log_sum(&mut row.iter())).collect();
        let columns: Vec<f64> =
            (0..n).map(|b| log_sum(&mut cosines.iter().skip(b).step_by(n))).collect();
        let (mut loss, mut of_beta) = (0.0, 0.0);
        let (mut grad_i, mut grad_t) = (vec![0.0; n * width], vec![0.0; n * width]);
        for (place, c) in cosines.iter().enumerate() {
            let (a, b) = (place / n, place % n);
            let target = smoothing / n as f64 + if a == b { 1.0 - smoothing } else { 0.0 };
            loss += target * (rows[a] + columns[b] - 2.0 * beta * c) / n as f64;
            let shares = (beta * c - rows[a]).exp() + (beta * c - columns[b]).exp();
            let g = beta * (shares - 2.0 * target) / n as f64;
            of_beta += g * c;
            for k in 0..width {
                grad_i[a * width + k] += g * t[b * width + k];
                grad_t[b * width + k] += g * i[a * width + k];
            }
        }
        // Of the rows before they had length 1.
        let before = |mut grads: Vec<f64>, unit: &[f64], lengths: &[f64]| -> Vec<f64> {
            let rows = grads.chunks_exact_mut(width).zip(unit.chunks_exact(width));
            for ((g, u), length) in rows.zip(lengths) {
                let along = dot(g, u);
                g.iter_mut().zip(u).for_each(|(g, u)| *g = (*g - u * along) / length);
            }
            grads
        };
        let (of_i, of_t) = (before(grad_i, &i, &of_images), before(grad_t, &t, &of_texts));
        (loss, [of_i, of_t, vec![of_beta]])
    }

    fn in_f64(values: &[f32]) -> Vec<f64> {
        values.iter().copied().map(f64::from).collect()
    }

    #[test]
    fn gradients_of_the_formula_are_those_of_its_loss() {
        let (n, width) = (4, 3);
        let [images, texts] = [1, 2].map(|seed| in_f64(&pseudo_random(n * width, seed)));
        let of = |x: &[Vec<f64>]| by_formula([&x[0], &x[1]], width, x[2][0], 0.1);
        let variables = vec![images, texts, vec![0.7]];
        let (_, found) = of(&variables);
        // The weight of a sum of one value is -1.
        let expected = Expected::by_differences(variables, |x| vec![-of(x).0]).gradients;
        for (found, expected) in found.concat().into_iter().zip(expected.concat()) {
            assert!((found - expected).abs() < 1e-8, "{found} {expected}");
        }
    }

    #[test]
    fn more_pairs_than_are_in_memory_have_the_loss_and_gradients_of_the_formula() {
        let n = 2 * ROWS + 90;
        let (images, texts) = pairs(n);
        let (loss, expected) = by_formula(
            [&in_f64(&images), &in_f64(&texts)],
            4,
            f64::from(0.9_f32),
            f64::from(0.1_f32),
        );
        for device in Device::to_compare() {
            let (found, grads) = shared(device, n, 0, n);
            let error = (f64::from(found) / loss - 1.0).abs();
            assert!(error < 1e-6, "{device}: {found}, not {loss}");
            for (k, (found, expected)) in grads.iter().zip(&expected).enumerate() {
                let error = relative_error(found, expected);
                assert!(error < 1e-5, "{device}, {k}: {error:.1e}");
            }
        }
    }

    /// Embeddings wider than a block has threads, among them one of length 0, in f32 and in bf16.
    #[test]
    fn wide_embeddings_have_the_loss_and_gradients_of_the_formula() {
        let (n, width, smoothing) = (5, 520, 0.25);
        let mut images = pseudo_random(n * width, 5);
        images[2 * width..3 * width].fill(0.0);
        let texts = pseudo_random(n * width, 6);
        for device in devices() {
            let [of_images, of_texts] = [&images, &texts].map(|v| in_f64(&device.stored(v)));
            let (loss, [of_images, of_texts, of_beta]) =
                by_formula([&of_images, &of_texts], width, f64::from(2.7_f32), smoothing);
            let [i, t] = [&images, &texts].map(|values| device.variable(values, width));
            let log_beta = device.weight(Weight::trained(vec![2.7]).unwrap());
            let traced = i.clone().with(Recording::default());
            let found = contrastive_loss(traced, t.clone(), &log_beta, smoothing as f32).unwrap();
            let (found, mut grads) = differentiate(found, 0.5).unwrap();
            let near = |what: &str, found: &[f32], expected: &[f64]| {
                let expected: Vec<f64> = expected.iter().map(|v| 0.5 * v).collect();
                let error = relative_error(found, &expected);
                let error_max = error_max(device);
                assert!(error < error_max, "{device}, {what}: {error:.1e}");
            };
            near("loss", &[0.5 * found], &[loss]);
            let [i, t] = [i, t].map(|x| x.take_gradient(&mut grads.0).unwrap().unwrap());
            // The row of zeros, whose gradient is huge, apart.
            for rows in [0..2, 2..3, 3..n] {
                let values = rows.start * width..rows.end * width;
                near("images", &i[values.clone()], &of_images[values]);
            }
            near("texts", &t, &of_texts);
            log_beta.accumulate(&mut grads.0, |g| near("temperature", g, &of_beta)).unwrap();
        }
    }
}
