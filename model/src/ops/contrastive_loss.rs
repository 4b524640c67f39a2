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
    let (images, texts) = on_host(images, texts)?;
    let (all_images, all_texts) = (images.values().to_vec(), texts.values().to_vec());
    let all = BatchEmbeddings { images: all_images, texts: all_texts, first: 0 };
    contrastive_loss_in(images, texts, all, log_beta, smoothing)
}

/// Embeddings where the loss is made: its matrices have as many rows as there are pairs, little work, which
/// the processor does.
///
/// # Errors
/// When the device fails.
#[cfg_attr(not(feature = "cuda"), expect(clippy::unnecessary_wraps, reason = "GPUs need it"))]
pub(crate) fn on_host<T: Record>(
    images: Matrix<T>,
    texts: Matrix,
) -> Result<(Matrix<T>, Matrix), DeviceError> {
    #[cfg(feature = "cuda")]
    let (images, texts) = {
        let (images, tape) = images.split();
        let (texts, tape) = crate::tensor::to_host(texts.with(tape))?.split();
        (crate::tensor::to_host(images.with(tape))?, texts)
    };
    Ok((images, texts))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::pseudo_random;
    use crate::tensor::{NotRecording, Recording, differentiate, value_of};

    /// Embeddings of so many pairs, `[B, 4]`.
    fn pairs(n: usize) -> (Vec<f32>, Vec<f32>) {
        (pseudo_random(4 * n, 3), pseudo_random(4 * n, 4))
    }

    /// The loss of the pairs from `first` on, of a batch of `n`, and all gradients: of images, of texts, of the
    /// temperature.
    fn shared(n: usize, first: usize, own: usize) -> (f32, [Vec<f32>; 3]) {
        let (images, texts) = pairs(n);
        let values = 4 * first..4 * (first + own);
        let of = |all: &[f32]| Matrix::variable(all[values.clone()].to_vec().into(), 4).unwrap();
        let (i, t) = (of(&images), of(&texts));
        let log_beta = Weight::trained(vec![0.9]).unwrap();
        let all = BatchEmbeddings { images, texts, first };
        let traced = i.clone().with(Recording::default());
        let loss = contrastive_loss_in(traced, t.clone(), all, &log_beta, 0.1).unwrap();
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
        for n in [6, ROWS, 2 * ROWS + 90] {
            let (whole, [images, texts, beta]) = shared(n, 0, n);
            let parts = shares(n).map(|(first, own)| shared(n, first, own));
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

    /// The formula with all logits at once, in f64; its gradient by the logits, times that of the cosines.
    #[test]
    fn more_pairs_than_are_in_memory_have_the_loss_and_gradients_of_the_formula() {
        let n = 2 * ROWS + 90;
        let (images, texts) = pairs(n);
        let unit = |all: &[f32]| -> Vec<[f64; 5]> {
            let one = |row: &[f32]| {
                let row: Vec<f64> = row.iter().copied().map(f64::from).collect();
                let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
                [row[0] / norm, row[1] / norm, row[2] / norm, row[3] / norm, norm]
            };
            all.chunks(4).map(one).collect()
        };
        let dot = |a: &[f64], b: &[f64]| (0..4).map(|k| a[k] * b[k]).sum::<f64>();
        let (i, t, beta) = (unit(&images), unit(&texts), f64::from(0.9_f32).exp());
        let cosine = |a: usize, b: usize| dot(&i[a], &t[b]);
        let log_sum =
            |of: &dyn Fn(usize) -> f64| (0..n).map(|k| (beta * of(k)).exp()).sum::<f64>().ln();
        let rows: Vec<f64> = (0..n).map(|a| log_sum(&|b| cosine(a, b))).collect();
        let columns: Vec<f64> = (0..n).map(|b| log_sum(&|a| cosine(a, b))).collect();
        let target = |a: usize, b: usize| {
            let smoothing = f64::from(0.1_f32);
            smoothing / n as f64 + if a == b { 1.0 - smoothing } else { 0.0 }
        };
        let (mut loss, mut of_beta) = (0.0, 0.0);
        let (mut of_images, mut of_texts) = (vec![[0.0; 4]; n], vec![[0.0; 4]; n]);
        for a in 0..n {
            for b in 0..n {
                let (c, target) = (cosine(a, b), target(a, b));
                loss += target * (rows[a] + columns[b] - 2.0 * beta * c) / n as f64;
                let shares = (beta * c - rows[a]).exp() + (beta * c - columns[b]).exp();
                let g = beta * (shares - 2.0 * target) / n as f64;
                of_beta += g * c;
                for k in 0..4 {
                    of_images[a][k] += g * t[b][k];
                    of_texts[b][k] += g * i[a][k];
                }
            }
        }
        // Of the rows before they had length 1.
        let before = |grads: &[[f64; 4]], unit: &[[f64; 5]]| -> Vec<f64> {
            let one = |(g, u): (&[f64; 4], &[f64; 5])| {
                let along = dot(g, u);
                [0, 1, 2, 3].map(|k| (g[k] - u[k] * along) / u[4])
            };
            grads.iter().zip(unit).flat_map(one).collect()
        };
        let (found, grads) = shared(n, 0, n);
        assert!((f64::from(found) / loss - 1.0).abs() < 1e-6, "{found}, not {loss}");
        for (found, expected) in
            grads.iter().zip([before(&of_images, &i), before(&of_texts, &t), vec![of_beta]])
        {
            let largest = expected.iter().fold(0.0_f64, |most, v| most.max(v.abs()));
            for (found, expected) in found.iter().zip(&expected) {
                let error = (f64::from(*found) - expected).abs() / largest;
                assert!(error < 2e-5, "{found}, not {expected}");
            }
        }
    }

    #[test]
    fn gradients_equal_finite_differences() {
        let (images, texts) = (pseudo_random(12, 1), pseudo_random(12, 2));
        let loss = |images: &[f32], texts: &[f32], log_beta: f32| {
            let matrix = |v: &[f32]| Matrix::constant(v.to_vec().into(), 3);
            let log_beta = Weight::Frozen(vec![log_beta].into());
            let images = matrix(images).with(NotRecording::default());
            f64::from(
                value_of(&contrastive_loss(images, matrix(texts), &log_beta, 0.1).unwrap())
                    .unwrap(),
            )
        };
        let i = Matrix::variable(images.clone().into(), 3).unwrap();
        let t = Matrix::variable(texts.clone().into(), 3).unwrap();
        let log_beta = Weight::trained(vec![0.7]).unwrap();
        let traced = i.clone().with(Recording::default());
        let out = contrastive_loss(traced, t.clone(), &log_beta, 0.1).unwrap();
        let (_, mut grads) = differentiate(out, 1.0).unwrap();
        let h = 1e-2_f32;
        let near = |got: f32, up: f64, down: f64| {
            let expected = (up - down) / f64::from(2.0 * h);
            assert!((f64::from(got) - expected).abs() < 2e-3, "{got} against {expected}");
        };
        let bump = |x: &[f32], k: usize, h: f32| {
            let mut x = x.to_vec();
            x[k] += h;
            x
        };
        let (gi, gt) = (
            i.take_gradient(&mut grads.0).unwrap().unwrap(),
            t.take_gradient(&mut grads.0).unwrap().unwrap(),
        );
        for k in 0..12 {
            near(
                gi[k],
                loss(&bump(&images, k, h), &texts, 0.7),
                loss(&bump(&images, k, -h), &texts, 0.7),
            );
            near(
                gt[k],
                loss(&images, &bump(&texts, k, h), 0.7),
                loss(&images, &bump(&texts, k, -h), 0.7),
            );
        }
        let mut gb = 0.0;
        log_beta.accumulate(&mut grads.0, |g| gb = g[0]).unwrap();
        near(gb, loss(&images, &texts, 0.7 + h), loss(&images, &texts, 0.7 - h));
    }
}
