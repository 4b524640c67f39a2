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
use crate::tensor::{DeviceError, Matrix, Record, Scalar, Weight, record_loss};

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
) -> Result<Scalar<T>, DeviceError> {
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
pub(crate) fn token_losses(
    hidden: &Matrix,
    head: &TokenTable,
    targets: &[Option<u32>],
) -> Vec<f32> {
    let mut all = vec![0.0; targets.len()];
    let weights: Vec<_> = head.parts().map(Weight::values).collect();
    walk_logits(hidden, &weights, &rows_with_target(targets), |block, _, logits| {
        for ((row, _), loss) in block.iter().zip(losses(block, logits)) {
            all[*row] = loss;
        }
    });
    all
}

/// Calls `visit` with the number of each row and its logits `[V]`, in order.
pub(crate) fn each_logits(
    hidden: &Matrix,
    head: &TokenTable,
    mut visit: impl FnMut(usize, &[f32]),
) {
    let rows: Vec<(usize, u32)> = (0..hidden.rows()).map(|row| (row, 0)).collect();
    let weights: Vec<_> = head.parts().map(Weight::values).collect();
    let vocabulary = n_tokens(&weights, hidden.width());
    walk_logits(hidden, &weights, &rows, |block, _, logits| {
        for ((row, _), logits) in block.iter().zip(logits.chunks_exact(vocabulary)) {
            visit(*row, logits);
        }
    });
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::{check, pseudo_random};
    use crate::tensor::{Device, differentiate, record, value_of};
    use dfdx::prelude::{
        AsArray, Backward, MeanTo, SplitTape, Tensor, TensorFrom, TensorFromVec, Trace, TryMatMul,
    };

    const TARGETS: [Option<u32>; 4] = [Some(2), None, Some(0), Some(4)];

    #[test]
    fn gradients_equal_finite_differences() {
        // A [1, 1] matrix stands for the scalar, so that the shared check can weigh it; its weight
        // is -1.
        fn as_matrix<T: Record>(loss: Scalar<T>) -> Matrix<T> {
            let (loss, tape) = loss.split_tape();
            record(vec![value_of(&loss)].into(), 1, tape, true, move |grad, store| {
                store.get_or_alloc_mut(&loss)?[0] += grad[0];
                Ok(())
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
        let each = token_losses(&hidden, &head, &TARGETS);
        let tape = crate::tensor::Recording::default();
        let only: [Option<u32>; 4] = [None, None, Some(0), None];
        let loss = cross_entropy(hidden.clone().with(tape), &head, &only, 1.0).unwrap();
        let (loss, mut grads) = differentiate(loss, 1.0).unwrap();
        assert!((loss - each[2]).abs() < 1e-6);
        assert!(each[1].to_bits() == 0);

        let device = Device::default();
        let row: Tensor<(usize,), f32, Device> = device.tensor_from_vec(h[6..9].to_vec(), (3,));
        let weights: Tensor<(usize, usize), f32, Device> =
            device.tensor_from_vec((0..15).map(|i| w[i % 5 * 3 + i / 5]).collect(), (3, 5));
        let logits = row.leaky_trace().matmul(weights);
        let one_hot: Tensor<(usize,), f32, Device> =
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
