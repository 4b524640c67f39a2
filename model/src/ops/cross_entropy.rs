//! Next-token loss straight from hidden states, without ever holding all logits.
//!
//! Logits are made a block of rows at a time. Since the loss is the end of the graph, their
//! gradient is turned into the hidden states' gradient in the same pass and only scaled when the
//! tape runs backwards.

use std::borrow::Cow;

use rayon::prelude::*;

use super::TokenTable;
use super::matmul::{Target, View, matmul};
use super::wide::{exp, highest, sum_by, wide};
use crate::buffer::Buffer;
use crate::tensor::{DeviceError, Loss, Matrix, Record, Weight, record_loss};

/// Rows whose logits exist at one time, where that is no more than [`LOGITS_PER_BLOCK`].
const ROWS_PER_BLOCK: usize = 256;
/// About as many logits exist at one time (32 MiB), whatever the vocabulary. Blocks of rows bound them as
/// well as blocks of the vocabulary would, which need each logit twice.
const LOGITS_PER_BLOCK: usize = 1 << 23;

/// `scale * sum over rows with a target of -log softmax(hidden head')[target]`.
///
/// `hidden` `[N, D]`; `head` `[V, D]`; `targets` `[N]`, `None` where a row predicts nothing.
///
/// # Errors
/// When the device fails.
pub(crate) fn cross_entropy<T: Record>(
    hidden: Matrix<T>,
    head: &TokenTable,
    targets: &[Option<u32>],
    scale: f32,
) -> Result<Loss<T>, DeviceError> {
    #[cfg(feature = "cuda")]
    if hidden.array().is_some() {
        return cuda::cross_entropy(hidden, head, targets, scale);
    }
    let (hidden, tape) = hidden.split();
    let weights: Vec<_> = head.parts().map(Weight::values).collect();
    let mut gradients = T::OWNS_TAPE.then(|| HeadGradients {
        hidden: Buffer::zeroed(hidden.values().len()),
        parts: head
            .parts()
            .map(|part| part.is_trained().then(|| Buffer::zeroed(part.len())))
            .collect(),
    });
    let mut sum = 0.0;
    walk_logits(&hidden, &weights, &rows_with_target(targets), |block, gathered, logits| {
        sum += losses(block, logits).iter().map(|loss| f64::from(*loss)).sum::<f64>();
        if let Some(gradients) = &mut gradients {
            gradients.add(block, logits, gathered, &weights);
        }
    });
    drop(weights);
    let head = head.clone();
    record_loss(sum as f32 * scale, tape, move |grad_out, store| {
        let mut gradients = gradients.expect("a recording forward pass made the gradients");
        let factor = grad_out * scale;
        for (part, grad) in head.parts().zip(&mut gradients.parts) {
            let Some(grad) = grad else { continue };
            grad.iter_mut().for_each(|g| *g *= factor);
            part.accumulate(store, |sum| super::add_to(sum, grad))?;
        }
        gradients.hidden.iter_mut().for_each(|g| *g *= factor);
        hidden.give_gradient(store, gradients.hidden)
    })
}

/// `-log softmax(hidden head')[target]` of every row with a target, 0 elsewhere: `[N]`.
///
/// # Errors
/// When the device fails.
#[cfg_attr(not(feature = "cuda"), expect(clippy::unnecessary_wraps, reason = "GPUs need it"))]
pub(crate) fn token_losses(
    hidden: &Matrix,
    head: &TokenTable,
    targets: &[Option<u32>],
) -> Result<Vec<f32>, DeviceError> {
    #[cfg(feature = "cuda")]
    if hidden.array().is_some() {
        return cuda::token_losses(hidden, head, targets);
    }
    let mut all = vec![0.0; targets.len()];
    let weights: Vec<_> = head.parts().map(Weight::values).collect();
    walk_logits(hidden, &weights, &rows_with_target(targets), |block, _, logits| {
        for ((row, _), loss) in block.iter().zip(losses(block, logits)) {
            all[*row] = loss;
        }
    });
    Ok(all)
}

/// Calls `visit` with the number of each row and its logits `[V]`, in order.
///
/// # Errors
/// When the device fails.
#[cfg_attr(not(feature = "cuda"), expect(clippy::unnecessary_wraps, reason = "GPUs need it"))]
pub(crate) fn each_logits(
    hidden: &Matrix,
    head: &TokenTable,
    mut visit: impl FnMut(usize, &[f32]),
) -> Result<(), DeviceError> {
    #[cfg(feature = "cuda")]
    if hidden.array().is_some() {
        return cuda::each_logits(hidden, head, visit);
    }
    let rows: Vec<(usize, u32)> = (0..hidden.rows()).map(|row| (row, 0)).collect();
    let weights: Vec<_> = head.parts().map(Weight::values).collect();
    let vocabulary = n_tokens(&weights, hidden.width());
    walk_logits(hidden, &weights, &rows, |block, _, logits| {
        for ((row, _), logits) in block.iter().zip(logits.chunks_exact(vocabulary)) {
            visit(*row, logits);
        }
    });
    Ok(())
}

/// The token with the largest logit after each row, the first among equals; none where a logit is not finite.
///
/// # Errors
/// When the device fails.
pub(crate) fn likeliest_tokens(
    hidden: &Matrix,
    head: &TokenTable,
) -> Result<Vec<Option<u32>>, DeviceError> {
    #[cfg(feature = "cuda")]
    if hidden.array().is_some() {
        return cuda::likeliest_tokens(hidden, head);
    }
    let mut all = Vec::with_capacity(hidden.rows());
    each_logits(hidden, head, |_, logits| {
        let mut best = 0;
        let mut finite = true;
        for (token, logit) in logits.iter().enumerate() {
            finite &= logit.is_finite();
            if *logit > logits[best] {
                best = token;
            }
        }
        all.push(finite.then_some(best as u32));
    })?;
    Ok(all)
}

fn rows_with_target(targets: &[Option<u32>]) -> Vec<(usize, u32)> {
    targets.iter().enumerate().filter_map(|(i, t)| t.map(|t| (i, t))).collect()
}

/// Calls `visit` with blocks of (row, target), their hidden states `[block, D]` and their logits
/// `[block, V]`.
fn walk_logits(
    hidden: &Matrix,
    head: &[Cow<[f32]>],
    rows: &[(usize, u32)],
    mut visit: impl FnMut(&[(usize, u32)], &[f32], &mut [f32]),
) {
    let width = hidden.width();
    let vocabulary = n_tokens(head, width);
    let at_once = rows_per_block(vocabulary);
    let mut all_logits = Buffer::unset(at_once.min(rows.len()) * vocabulary);
    for block in rows.chunks(at_once) {
        let mut gathered = Buffer::unset(block.len() * width);
        for (out, (row, _)) in gathered.chunks_exact_mut(width).zip(block) {
            out.copy_from_slice(&hidden.values()[row * width..][..width]);
        }
        let logits = &mut all_logits[..block.len() * vocabulary];
        let h = View::rows(&gathered, width);
        let mut first = 0;
        for part in head {
            let (n, w) = (part.len() / width, View::rows(part, width).t());
            let target = Target::rows(logits, vocabulary).at(0, first);
            matmul(block.len(), width, n, 1.0, h, w, target);
            first += n;
        }
        visit(block, &gathered, logits);
    }
}

fn rows_per_block(vocabulary: usize) -> usize {
    (LOGITS_PER_BLOCK / vocabulary).clamp(1, ROWS_PER_BLOCK)
}

/// The losses of a block of rows.
fn losses(block: &[(usize, u32)], logits: &[f32]) -> Vec<f32> {
    let vocabulary = logits.len() / block.len();
    let at_a_time = super::rows_per_chunk(vocabulary);
    let rows = logits.par_chunks_exact(vocabulary).with_min_len(at_a_time).zip(block);
    rows.map(|(row, (_, target))| wide!(negative_log_probability(row, *target))).collect()
}

#[expect(clippy::inline_always, reason = "must become part of the wide call around it")]
#[inline(always)]
fn negative_log_probability(logits: &[f32], target: u32) -> f32 {
    let top = highest(logits);
    sum_by(logits, |v| exp(v - top)).ln() + top - logits[target as usize]
}

struct HeadGradients {
    hidden: Buffer,
    /// Of each part of the head, if it is trained.
    parts: Vec<Option<Buffer>>,
}

impl HeadGradients {
    /// Turns `logits` into `softmax(logits) - one_hot(target)` and adds what follows from it.
    fn add(
        &mut self,
        block: &[(usize, u32)],
        logits: &mut [f32],
        gathered: &[f32],
        head: &[Cow<[f32]>],
    ) {
        let n = block.len();
        let (width, vocabulary) = (gathered.len() / n, logits.len() / n);
        let at_a_time = super::rows_per_chunk(vocabulary);
        logits.par_chunks_exact_mut(vocabulary).with_min_len(at_a_time).zip(block).for_each(
            |(row, (_, target))| {
                wide!(super::attention::softmax(row));
                row[*target as usize] -= 1.0;
            },
        );
        let (d, h) = (View::rows(logits, vocabulary), View::rows(gathered, width));
        let mut grad = Buffer::unset(n * width);
        let mut first = 0;
        for (part, grad_part) in head.iter().zip(&mut self.parts) {
            let (tokens, d) = (part.len() / width, d.at(0, first));
            let target = Target { add: first > 0, ..Target::rows(&mut grad, width) };
            matmul(n, tokens, width, 1.0, d, View::rows(part, width), target);
            if let Some(grad_part) = grad_part {
                let into = Target::rows(grad_part, width).adding();
                matmul(tokens, n, width, 1.0, d.t(), h, into);
            }
            first += tokens;
        }
        for ((row, _), g) in block.iter().zip(grad.chunks_exact(width)) {
            self.hidden[row * width..][..width].copy_from_slice(g);
        }
    }
}

/// Tokens that the parts of a head have rows for.
fn n_tokens(head: &[Cow<[f32]>], width: usize) -> usize {
    head.iter().map(|part| part.len() / width).sum()
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::sync::Arc;

    use super::super::TokenTable;
    use super::super::add::cuda::on_gpu;
    use super::rows_with_target;
    use crate::cuda::{Array, CudaError, Factor, Grid, Kind, Product, THREADS, kernel, long};
    use crate::tensor::{DeviceError, Loss, LossValue, Matrix, Record, record_loss};

    /// About as many logits exist at one time (1 GiB).
    const LOGITS_PER_BLOCK: usize = 1 << 28;

    /// Rows that are scored together, each with its target.
    struct Block<'a> {
        rows: &'a [(usize, u32)],
        /// The numbers of the rows.
        places: &'a Array,
        /// `[rows, D]`.
        gathered: &'a Array,
        /// `[rows, V]` in f32.
        logits: &'a Array,
    }

    /// Calls `visit` with blocks of rows and their logits.
    fn walk_logits(
        hidden: &Matrix,
        head: &TokenTable,
        rows: &[(usize, u32)],
        mut visit: impl FnMut(Block) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let input = hidden.gpu_array();
        let (gpu, kind, width) = (input.gpu(), input.kind(), hidden.width());
        let vocabulary = n_tokens(head, width);
        let at_once = (LOGITS_PER_BLOCK / vocabulary).max(1).min(rows.len());
        let all_logits = gpu.unset(at_once * vocabulary, Kind::F32)?;
        for block in rows.chunks(at_once.max(1)) {
            let n = block.len();
            let places: Vec<i32> = block.iter().map(|(row, _)| *row as i32).collect();
            let places = gpu.upload_i32(&places)?;
            let gathered = gpu.unset(n * width, kind)?;
            let args = [input.into(), (&places).into(), (&gathered).into(), width.into()];
            gpu.launch(kernel!("pick_rows", kind), Grid::rows(n, width), &args)?;
            let logits = all_logits.part(0, n * vocabulary);
            let mut first = 0;
            for part in head.parts() {
                let tokens = part.len() / width;
                gpu.multiply(&Product {
                    rows: n,
                    inner: width,
                    columns: tokens,
                    left: factor(&gathered, width, false),
                    right: factor(on_gpu(part).array(), width, true),
                    alpha: 1.0,
                    add: None,
                    bias: None,
                    out: logits.at(first),
                    out_stride: vocabulary,
                    out_kind: Kind::F32,
                })?;
                first += tokens;
            }
            visit(Block { rows: block, places: &places, gathered: &gathered, logits: &logits })?;
        }
        Ok(())
    }

    fn factor(array: &Array, stride: usize, transposed: bool) -> Factor {
        Factor { address: array.address(), stride, transposed, kind: array.kind() }
    }

    fn n_tokens(head: &TokenTable, width: usize) -> usize {
        head.parts().map(|part| part.len() / width).sum()
    }

    /// The losses of a block's rows; `gradient` gets that of the logits, times `scale`.
    fn losses(
        block: &Block,
        gradient: Option<&Array>,
        vocabulary: usize,
        kind: Kind,
        scale: f32,
    ) -> Result<Array, CudaError> {
        let gpu = block.logits.gpu();
        let n = block.rows.len();
        let targets: Vec<i32> = block.rows.iter().map(|(_, target)| *target as i32).collect();
        let targets = gpu.upload_i32(&targets)?;
        let losses = gpu.unset(n, Kind::F32)?;
        let args = [
            block.logits.into(),
            (&targets).into(),
            (&losses).into(),
            gradient.into(),
            vocabulary.into(),
            scale.into(),
        ];
        gpu.launch(kernel!("row_losses", kind), Grid::of(n, 512), &args)?;
        Ok(losses)
    }

    pub(super) fn cross_entropy<T: Record>(
        hidden: Matrix<T>,
        head: &TokenTable,
        targets: &[Option<u32>],
        scale: f32,
    ) -> Result<Loss<T>, DeviceError> {
        let (hidden, tape) = hidden.split();
        let input = hidden.gpu_array();
        let (gpu, kind, width) = (input.gpu(), input.kind(), hidden.width());
        let vocabulary = n_tokens(head, width);
        let rows = rows_with_target(targets);
        let total = gpu.zeroed(2, Kind::F32)?; // One f64.
        let grad_hidden = T::OWNS_TAPE.then(|| gpu.zeroed(input.len(), kind)).transpose()?;
        let grad_parts: Vec<Option<Arc<Array>>> = head
            .parts()
            .map(|part| {
                let room = || gpu.zeroed(part.len(), Kind::F32).map(Arc::new);
                (T::OWNS_TAPE && part.is_trained()).then(room).transpose()
            })
            .collect::<Result<_, _>>()?;
        walk_logits(&hidden, head, &rows, |block| {
            let n = block.rows.len();
            let gradient = T::OWNS_TAPE.then(|| gpu.unset(n * vocabulary, kind)).transpose()?;
            let losses = losses(&block, gradient.as_ref(), vocabulary, kind, scale)?;
            let args = [(&losses).into(), (&total).into(), n.into()];
            gpu.launch(kernel!("add_losses"), Grid::of(1, THREADS), &args)?;
            let (Some(gradient), Some(grad_hidden)) = (gradient, &grad_hidden) else {
                return Ok(());
            };
            let grad = gpu.unset(n * width, kind)?;
            let mut first = 0;
            for (part, grad_part) in head.parts().zip(&grad_parts) {
                let tokens = part.len() / width;
                let d =
                    Factor { address: gradient.at(first), ..factor(&gradient, vocabulary, false) };
                gpu.multiply(&Product {
                    rows: n,
                    inner: tokens,
                    columns: width,
                    left: d,
                    right: factor(on_gpu(part).array(), width, false),
                    alpha: 1.0,
                    add: (first > 0).then(|| grad.address()),
                    bias: None,
                    out: grad.address(),
                    out_stride: width,
                    out_kind: kind,
                })?;
                if let Some(sum) = grad_part {
                    gpu.multiply(&Product {
                        rows: tokens,
                        inner: n,
                        columns: width,
                        left: Factor { transposed: true, ..d },
                        right: factor(block.gathered, width, false),
                        alpha: 1.0,
                        add: Some(sum.address()),
                        bias: None,
                        out: sum.address(),
                        out_stride: width,
                        out_kind: Kind::F32,
                    })?;
                }
                first += tokens;
            }
            let args = [(&grad).into(), block.places.into(), grad_hidden.into(), width.into()];
            gpu.launch(kernel!("put_rows", kind), Grid::rows(n, width), &args)
        })?;
        let head = head.clone();
        let hidden = hidden.without_values();
        record_loss(LossValue::Cuda(total, scale), tape, move |grad_out, store| {
            // The scale is in them already: rounding to bf16 once is better than twice.
            let times = |array: &Array| {
                if grad_out.to_bits() == 1.0_f32.to_bits() {
                    return Ok(());
                }
                let n = array.len();
                let args = [array.into(), long(n), grad_out.into()];
                gpu.launch(kernel!("scale_values", array.kind()), Grid::each(n), &args)
            };
            for (part, grad) in head.parts().zip(grad_parts) {
                let Some(grad) = grad else { continue };
                times(&grad)?;
                let grad = Arc::into_inner(grad).expect("no one else holds it");
                on_gpu(part).add_gradient(store.device(), grad)?;
            }
            let grad = grad_hidden.expect("a recording forward pass made the gradients");
            times(&grad)?;
            hidden.give_array(store, grad)
        })
    }

    pub(super) fn token_losses(
        hidden: &Matrix,
        head: &TokenTable,
        targets: &[Option<u32>],
    ) -> Result<Vec<f32>, DeviceError> {
        let mut all = vec![0.0; targets.len()];
        let vocabulary = n_tokens(head, hidden.width());
        walk_logits(hidden, head, &rows_with_target(targets), |block| {
            let losses = losses(&block, None, vocabulary, Kind::F32, 1.0)?.to_vec()?;
            block.rows.iter().zip(losses).for_each(|((row, _), loss)| all[*row] = loss);
            Ok(())
        })?;
        Ok(all)
    }

    pub(super) fn likeliest_tokens(
        hidden: &Matrix,
        head: &TokenTable,
    ) -> Result<Vec<Option<u32>>, DeviceError> {
        let rows: Vec<(usize, u32)> = (0..hidden.rows()).map(|row| (row, 0)).collect();
        let vocabulary = n_tokens(head, hidden.width());
        let mut all = Vec::with_capacity(rows.len());
        walk_logits(hidden, head, &rows, |block| {
            let gpu = block.logits.gpu();
            let found = gpu.unset(block.rows.len(), Kind::I32)?;
            let args = [block.logits.into(), (&found).into(), vocabulary.into()];
            gpu.launch(kernel!("row_likeliest"), Grid::of(block.rows.len(), THREADS), &args)?;
            all.extend(
                gpu.download_i32(&found)?.into_iter().map(|token| u32::try_from(token).ok()),
            );
            Ok(())
        })?;
        Ok(all)
    }

    pub(super) fn each_logits(
        hidden: &Matrix,
        head: &TokenTable,
        mut visit: impl FnMut(usize, &[f32]),
    ) -> Result<(), DeviceError> {
        let rows: Vec<(usize, u32)> = (0..hidden.rows()).map(|row| (row, 0)).collect();
        let vocabulary = n_tokens(head, hidden.width());
        Ok(walk_logits(hidden, head, &rows, |block| {
            let logits = block.logits.to_vec()?;
            for ((row, _), logits) in block.rows.iter().zip(logits.chunks_exact(vocabulary)) {
                visit(*row, logits);
            }
            Ok(())
        })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::{check, pseudo_random};
    use crate::tensor::{HostDevice, differentiate, record, value_of};
    use dfdx::prelude::{
        AsArray, Backward, MeanTo, Tensor, TensorFrom, TensorFromVec, Trace, TryMatMul,
    };

    const TARGETS: [Option<u32>; 4] = [Some(2), None, Some(0), Some(4)];

    #[test]
    fn gradients_equal_finite_differences() {
        // A [1, 1] matrix stands for the scalar, so that the shared check can weigh it; its weight
        // is -1.
        fn as_matrix<T: Record>(loss: Loss<T>) -> Matrix<T> {
            let (loss, tape) = loss.split();
            record(vec![value_of(&loss).unwrap()].into(), 1, tape, true, move |grad, store| {
                loss.give_gradient(store, grad[0])
            })
            .unwrap()
        }
        // Three tokens of the model's own and two that were added.
        let two = |w: &[Weight]| TokenTable { rows: w[0].clone(), added: Some(w[1].clone()) };
        check(
            &[(pseudo_random(12, 1), 3)],
            &[pseudo_random(9, 2), pseudo_random(6, 3)],
            3e-3,
            |t, x, w| {
                as_matrix(cross_entropy(x[0].clone().with(t), &two(w), &TARGETS, 0.5).unwrap())
            },
            |t, x, w| {
                as_matrix(cross_entropy(x[0].clone().with(t), &two(w), &TARGETS, 0.5).unwrap())
            },
        );
    }

    #[test]
    fn rows_of_several_blocks_count_as_those_of_one() {
        let n = 2 * ROWS_PER_BLOCK + 60;
        let hidden = Matrix::variable(pseudo_random(3 * n, 1).into(), 3).unwrap();
        let head = TokenTable::from(Weight::trained(pseudo_random(15, 2)).unwrap());
        // Loss, and gradients of the hidden states and of the head, where only `rows` have targets.
        let of = |rows: std::ops::Range<usize>| {
            let target = |row| rows.contains(&row).then_some((row % 5) as u32);
            let targets: Vec<Option<u32>> = (0..n).map(target).collect();
            let tape = crate::tensor::Recording::default();
            let loss = cross_entropy(hidden.clone().with(tape), &head, &targets, 1.0).unwrap();
            let (loss, mut grads) = differentiate(loss, 1.0).unwrap();
            let mut all = vec![loss];
            all.extend(&*hidden.take_gradient(&mut grads.0).unwrap().unwrap());
            head.rows.accumulate(&mut grads.0, |grad| all.extend(&*grad)).unwrap();
            all
        };
        let parts: Vec<Vec<f32>> =
            (0..n).step_by(200).map(|row| of(row..n.min(row + 200))).collect();
        for (i, found) in of(0..n).into_iter().enumerate() {
            let expected: f32 = parts.iter().map(|part| part[i]).sum();
            assert!(
                (found - expected).abs() < 1e-3 + 1e-5 * expected.abs(),
                "{i}: {found} {expected}"
            );
        }
        assert_eq!([3, 32_000, 128_256, 1 << 25].map(rows_per_block), [256, 256, 65, 1]);
    }

    #[test]
    fn loss_and_gradient_equal_dfdx() {
        let (h, w) = (pseudo_random(12, 1), pseudo_random(15, 2));
        let head = TokenTable::from(Weight::trained(w.clone()).unwrap());
        let hidden = Matrix::variable(h.clone().into(), 3).unwrap();
        let each = token_losses(&hidden, &head, &TARGETS).unwrap();
        let tape = crate::tensor::Recording::default();
        let only: [Option<u32>; 4] = [None, None, Some(0), None];
        let loss = cross_entropy(hidden.clone().with(tape), &head, &only, 1.0).unwrap();
        let (loss, mut grads) = differentiate(loss, 1.0).unwrap();
        assert!((loss - each[2]).abs() < 1e-6);
        assert!(each[1].to_bits() == 0);

        let device = HostDevice::default();
        let row: Tensor<(usize,), f32, HostDevice> = device.tensor_from_vec(h[6..9].to_vec(), (3,));
        let weights: Tensor<(usize, usize), f32, HostDevice> =
            device.tensor_from_vec((0..15).map(|i| w[i % 5 * 3 + i / 5]).collect(), (3, 5));
        let logits = row.leaky_trace().matmul(weights);
        let one_hot: Tensor<(usize,), f32, HostDevice> =
            device.tensor((vec![1.0, 0.0, 0.0, 0.0, 0.0], (5,)));
        let theirs = dfdx::losses::cross_entropy_with_logits_loss(logits, one_hot).mean();
        assert!((theirs.array() - loss).abs() < 1e-5);
        let theirs = theirs.backward().get(&row);
        let ours = hidden.take_gradient(&mut grads.0).unwrap().unwrap();
        for i in 0..3 {
            assert!((theirs[[i]] - ours[6 + i]).abs() < 1e-5);
        }
    }
}
