//! The two-term contrastive loss with learnt temperature (paper, appendix B.1.3; CLIP).

use super::matmul::{Target, View, matmul};
use super::wide::wide;
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

/// The loss of the pairs of `all`, of which `images` and `texts` `[b, E]` are those that were embedded here and
/// get their gradients. The temperature gets `b / B` of its gradient: over all shares of a batch these are
/// the whole.
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
    let beta = log_beta.values()[0].exp();
    let (image_unit, image_norm) = unit_rows(&all_images, width);
    let (text_unit, text_norm) = unit_rows(&all_texts, width);

    let mut cosine = vec![0.0; n * n];
    let (i, t) = (View::rows(&image_unit, width), View::rows(&text_unit, width));
    matmul(n, width, n, 1.0, i, t.t(), Target::rows(&mut cosine, n));
    let mut gradient = vec![0.0; n * n]; // of the logits beta * cosine
    let mut loss = 0.0;
    for axis in [Axis::Rows, Axis::Columns] {
        loss += add_term(&cosine, beta, n, smoothing, axis, &mut gradient);
    }
    let log_beta = log_beta.clone();
    record_loss(loss as f32, tape, move |grad_out, store| {
        let dot: f64 =
            gradient.iter().zip(&cosine).map(|(g, c)| f64::from(*g) * f64::from(*c)).sum();
        let share = own as f32 / n as f32;
        log_beta.accumulate(store, |sum| sum[0] += grad_out * beta * dot as f32 * share)?;
        let g = View::rows(&gradient, n);
        let (rows, values) = (first..first + own, first * width..(first + own) * width);
        for (x, g, other, unit, norm) in [
            (&images, g.at(first, 0), &text_unit, &image_unit, &image_norm),
            (&texts, g.at(0, first).t(), &image_unit, &text_unit, &text_norm),
        ] {
            let mut grad = Buffer::unset(own * width);
            let other = View::rows(other, width);
            matmul(own, n, width, grad_out * beta, g, other, Target::rows(&mut grad, width));
            unit_rows_backward(&mut grad, &unit[values.clone()], &norm[rows.clone()], width);
            x.give_gradient(store, grad)?;
        }
        Ok(())
    })
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

#[derive(Clone, Copy)]
enum Axis {
    Rows,
    Columns,
}

/// Mean cross-entropy of the diagonal along one axis; adds its gradient with regard to the logits.
fn add_term(
    cosine: &[f32],
    beta: f32,
    n: usize,
    smoothing: f32,
    axis: Axis,
    gradient: &mut [f32],
) -> f64 {
    let at = |i: usize, j: usize| match axis {
        Axis::Rows => i * n + j,
        Axis::Columns => j * n + i,
    };
    let spread = smoothing / n as f32;
    let mut loss = 0.0;
    let mut row = vec![0.0; n];
    for i in 0..n {
        for (j, v) in row.iter_mut().enumerate() {
            *v = beta * cosine[at(i, j)];
        }
        let logits = row.clone();
        wide!(super::attention::softmax(&mut row));
        let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let log_sum = logits.iter().map(|v| (v - highest).exp()).sum::<f32>().ln() + highest;
        for j in 0..n {
            let target = if i == j { 1.0 - smoothing + spread } else { spread };
            loss += f64::from(target * (log_sum - logits[j])) / n as f64;
            gradient[at(i, j)] += (row[j] - target) / n as f32;
        }
    }
    loss
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::pseudo_random;
    use crate::tensor::{NotRecording, Recording, differentiate, value_of};

    /// The loss of the pairs from `first` on, of a batch of six, and all gradients: of images, of texts, of the
    /// temperature.
    fn shared(first: usize, own: usize) -> (f32, [Vec<f32>; 3]) {
        let (images, texts) = (pseudo_random(24, 3), pseudo_random(24, 4));
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
        let (whole, [images, texts, beta]) = shared(0, 6);
        let parts = [(0, 1), (1, 3), (4, 2)].map(|(first, own)| shared(first, own));
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
