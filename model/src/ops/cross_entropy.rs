//! Next-token loss straight from hidden states, without ever holding all logits.
//!
//! Logits are made a block of rows at a time. Since the loss is the end of the graph, their
//! gradient is turned into the hidden states' gradient in the same pass and only scaled when the
//! tape runs backwards.

use std::borrow::Cow;

use rayon::prelude::*;

use super::TokenTable;
use super::matmul::{Target, View, matmul};
use super::token_table::Part;
use super::wide::{exp, highest, sum_by, wide};
use crate::buffer::Buffer;
use crate::tensor::{DeviceError, Loss, Matrix, Record, Weight, record_loss};

/// Rows whose logits exist at one time, where that is no more than [`LOGITS_PER_BLOCK`].
const ROWS_PER_BLOCK: usize = 256;
/// About as many logits exist at one time (32 MiB), whatever the vocabulary. Blocks of rows bound them as
/// well as blocks of the vocabulary would, which need each logit twice.
const LOGITS_PER_BLOCK: usize = 1 << 23;

/// What each row with a target adds to a loss: `scale * (nll + z * log(Z)^2)`, `Z` being the sum of the
/// exponentials of its logits (`PaLM`, arXiv 2204.02311, section 5).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Shares {
    pub(crate) scale: f32,
    pub(crate) z: f32,
}

impl From<f32> for Shares {
    fn from(scale: f32) -> Self {
        Self { scale, z: 0.0 }
    }
}

/// `scale * sum over rows with a target of -log softmax(hidden head')[target]`, and beside it the term
/// that keeps the logits small, if `shares` wants it.
///
/// `hidden` `[N, D]`; `head` `[V, D]`; `targets` `[N]`, `None` where a row predicts nothing.
///
/// # Errors
/// When the device fails.
pub(crate) fn cross_entropy<T: Record>(
    hidden: Matrix<T>,
    head: &TokenTable,
    targets: &[Option<u32>],
    shares: impl Into<Shares>,
) -> Result<Loss<T>, DeviceError> {
    let shares = shares.into();
    #[cfg(feature = "cuda")]
    if hidden.array().is_some() {
        return cuda::cross_entropy(hidden, head, targets, shares);
    }
    let (hidden, tape) = hidden.split();
    let rows = HeadRows::of(head, hidden.width());
    let mut gradients = T::OWNS_TAPE.then(|| HeadGradients {
        hidden: Buffer::zeroed(hidden.values().len()),
        weights: head
            .weights()
            .map(|weight| weight.is_trained().then(|| Buffer::zeroed(weight.len())))
            .collect(),
    });
    let (mut sum, mut squares) = (0.0, 0.0);
    walk_logits(&hidden, &rows, &rows_with_target(targets), |block, gathered, logits| {
        let losses = losses(block, logits);
        sum += losses.iter().map(|[nll, _]| f64::from(*nll)).sum::<f64>();
        squares += losses.iter().map(|[_, log_z]| f64::from(*log_z).powi(2)).sum::<f64>();
        if let Some(gradients) = &mut gradients {
            let log_z: Vec<f32> = losses.into_iter().map(|[_, log_z]| log_z).collect();
            turn_into_gradient(block, logits, &log_z, shares.z);
            gradients.add(block, logits, gathered, &rows);
        }
    });
    drop(rows);
    let head = head.clone();
    let loss = record_loss(sum as f32 * shares.scale, tape, move |grad_out, store| {
        let mut gradients = gradients.expect("a recording forward pass made the gradients");
        let factor = grad_out * shares.scale;
        for (weight, grad) in head.weights().zip(&mut gradients.weights) {
            let Some(grad) = grad else { continue };
            grad.iter_mut().for_each(|g| *g *= factor);
            weight.accumulate(store, |sum| super::add_to(sum, grad))?;
        }
        gradients.hidden.iter_mut().for_each(|g| *g *= factor);
        hidden.give_gradient(store, gradients.hidden)
    })?;
    let z = f64::from(shares.scale) * f64::from(shares.z) * squares;
    Ok(loss.beside((shares.z > 0.0).then(|| (z as f32).into())))
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
    let head = HeadRows::of(head, hidden.width());
    walk_logits(hidden, &head, &rows_with_target(targets), |block, _, logits| {
        for ((row, _), [nll, _]) in block.iter().zip(losses(block, logits)) {
            all[*row] = nll;
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
    let head = HeadRows::of(head, hidden.width());
    let vocabulary = head.n_tokens;
    walk_logits(hidden, &head, &rows, |block, _, logits| {
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

/// The rows of a head.
struct HeadRows<'a> {
    weights: Vec<Cow<'a, [f32]>>,
    parts: Vec<Part>,
    n_tokens: usize,
    width: usize,
}

impl<'a> HeadRows<'a> {
    fn of(head: &'a TokenTable, width: usize) -> Self {
        let layout = head.layout(width);
        let weights = head.weights().map(Weight::values).collect();
        Self { weights, parts: layout.parts(), n_tokens: layout.n_tokens(), width }
    }

    /// `[part.n_rows, D]`.
    fn rows(&self, part: &Part) -> View<'_> {
        let first = part.first_row * self.width;
        View::rows(&self.weights[part.weight][first..][..part.n_rows * self.width], self.width)
    }
}

/// Calls `visit` with blocks of (row, target), their hidden states `[block, D]` and their logits
/// `[block, V]`.
fn walk_logits(
    hidden: &Matrix,
    head: &HeadRows,
    rows: &[(usize, u32)],
    mut visit: impl FnMut(&[(usize, u32)], &[f32], &mut [f32]),
) {
    let (width, vocabulary) = (head.width, head.n_tokens);
    let at_once = rows_of_logits(vocabulary);
    let mut all_logits = Buffer::unset(at_once.min(rows.len()) * vocabulary);
    for block in rows.chunks(at_once) {
        let mut gathered = Buffer::unset(block.len() * width);
        for (out, (row, _)) in gathered.chunks_exact_mut(width).zip(block) {
            out.copy_from_slice(&hidden.values()[row * width..][..width]);
        }
        let logits = &mut all_logits[..block.len() * vocabulary];
        let h = View::rows(&gathered, width);
        let mut first = 0;
        for part in &head.parts {
            let target = Target::rows(logits, vocabulary).at(0, first);
            matmul(block.len(), width, part.n_rows, 1.0, h, head.rows(part).t(), target);
            first += part.n_rows;
        }
        visit(block, &gathered, logits);
    }
}

/// Rows whose logits exist at one time, of a vocabulary.
pub(crate) fn rows_of_logits(vocabulary: usize) -> usize {
    (LOGITS_PER_BLOCK / vocabulary).clamp(1, ROWS_PER_BLOCK)
}

/// The losses of a block of rows, each with the logarithm of the sum of the exponentials of its logits.
fn losses(block: &[(usize, u32)], logits: &[f32]) -> Vec<[f32; 2]> {
    let vocabulary = logits.len() / block.len();
    let at_a_time = super::rows_per_chunk(vocabulary);
    let rows = logits.par_chunks_exact(vocabulary).with_min_len(at_a_time).zip(block);
    let loss = |row: &[f32], target: u32| {
        let log_z = wide!(log_sum_of_exponentials(row));
        [log_z - row[target as usize], log_z]
    };
    rows.map(|(row, (_, target))| loss(row, *target)).collect()
}

#[expect(clippy::inline_always, reason = "must become part of the wide call around it")]
#[inline(always)]
fn log_sum_of_exponentials(logits: &[f32]) -> f32 {
    let top = highest(logits);
    sum_by(logits, |v| exp(v - top)).ln() + top
}

/// Turns the logits of a block of rows, whose sums of exponentials have the logarithms `log_z`, into the
/// gradient of `nll + z * log_z^2`: `softmax(logits) * (1 + 2 * z * log_z) - one_hot(target)`.
fn turn_into_gradient(block: &[(usize, u32)], logits: &mut [f32], log_z: &[f32], z: f32) {
    let vocabulary = logits.len() / block.len();
    let at_a_time = super::rows_per_chunk(vocabulary);
    let rows = logits.par_chunks_exact_mut(vocabulary).with_min_len(at_a_time);
    rows.zip(block.par_iter().zip(log_z)).for_each(|(row, ((_, target), log_z))| {
        wide!(super::attention::softmax(row));
        if z > 0.0 {
            let factor = 1.0 + 2.0 * z * log_z;
            for p in row.iter_mut() {
                *p *= factor;
            }
        }
        row[*target as usize] -= 1.0;
    });
}

struct HeadGradients {
    hidden: Buffer,
    /// Of each weight of the head, if it is trained.
    weights: Vec<Option<Buffer>>,
}

impl HeadGradients {
    /// Adds what follows from the gradient of the logits of a block.
    fn add(&mut self, block: &[(usize, u32)], gradient: &[f32], gathered: &[f32], head: &HeadRows) {
        let n = block.len();
        let (width, vocabulary) = (head.width, head.n_tokens);
        let (d, h) = (View::rows(gradient, vocabulary), View::rows(gathered, width));
        let mut grad = Buffer::unset(n * width);
        let mut first = 0;
        for part in &head.parts {
            let (tokens, d) = (part.n_rows, d.at(0, first));
            let target = Target { add: first > 0, ..Target::rows(&mut grad, width) };
            matmul(n, tokens, width, 1.0, d, head.rows(part), target);
            if let Some(sums) = &mut self.weights[part.weight] {
                let sums = &mut sums[part.first_row * width..][..tokens * width];
                matmul(tokens, n, width, 1.0, d.t(), h, Target::rows(sums, width).adding());
            }
            first += tokens;
        }
        for ((row, _), g) in block.iter().zip(grad.chunks_exact(width)) {
            self.hidden[row * width..][..width].copy_from_slice(g);
        }
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::sync::Arc;

    use super::super::TokenTable;
    use super::super::add::cuda::on_gpu;
    use super::super::token_table::Part;
    use super::{Shares, rows_with_target};
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
        let layout = head.layout(width);
        let (parts, vocabulary) = (layout.parts(), layout.n_tokens());
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
            for part in &parts {
                gpu.multiply(&Product {
                    rows: n,
                    inner: width,
                    columns: part.n_rows,
                    left: factor(&gathered, width, false),
                    right: Factor { transposed: true, ..rows_of(head, part, width) },
                    alpha: 1.0,
                    add: None,
                    bias: None,
                    out: logits.at(first),
                    out_stride: vocabulary,
                    out_kind: Kind::F32,
                })?;
                first += part.n_rows;
            }
            visit(Block { rows: block, places: &places, gathered: &gathered, logits: &logits })?;
        }
        Ok(())
    }

    fn factor(array: &Array, stride: usize, transposed: bool) -> Factor {
        Factor { address: array.address(), stride, transposed, kind: array.kind() }
    }

    /// The rows of a part of a head `[n_rows, D]`.
    fn rows_of(head: &TokenTable, part: &Part, width: usize) -> Factor {
        let weight = head.weights().nth(part.weight).expect("a part is of one of the weights");
        let rows = on_gpu(weight).array();
        Factor { address: rows.at(part.first_row * width), ..factor(rows, width, false) }
    }

    /// What becomes of the logits of a block.
    struct Wanted<'a> {
        /// Gets the gradient of the logits, times `scale`.
        gradient: Option<&'a Array>,
        /// Gets the squares of the logarithms of the sums of exponentials, one a row.
        squares: Option<&'a Array>,
        vocabulary: usize,
        /// Of the gradient.
        kind: Kind,
        shares: Shares,
    }

    /// The losses of a block's rows.
    fn losses(block: &Block, wanted: &Wanted) -> Result<Array, CudaError> {
        let Wanted { gradient, squares, vocabulary, kind, shares } = *wanted;
        let gpu = block.logits.gpu();
        let n = block.rows.len();
        let targets: Vec<i32> = block.rows.iter().map(|(_, target)| *target as i32).collect();
        let targets = gpu.upload_i32(&targets)?;
        let losses = gpu.unset(n, Kind::F32)?;
        let args = [
            block.logits.into(),
            (&targets).into(),
            (&losses).into(),
            squares.into(),
            gradient.into(),
            vocabulary.into(),
            shares.scale.into(),
            shares.z.into(),
        ];
        gpu.launch(kernel!("row_losses", kind), Grid::of(n, 512), &args)?;
        Ok(losses)
    }

    pub(super) fn cross_entropy<T: Record>(
        hidden: Matrix<T>,
        head: &TokenTable,
        targets: &[Option<u32>],
        shares: Shares,
    ) -> Result<Loss<T>, DeviceError> {
        let (hidden, tape) = hidden.split();
        let input = hidden.gpu_array();
        let (gpu, kind, width) = (input.gpu(), input.kind(), hidden.width());
        let layout = head.layout(width);
        let (parts, vocabulary) = (layout.parts(), layout.n_tokens());
        let rows = rows_with_target(targets);
        let total = gpu.zeroed(2, Kind::F32)?; // One f64.
        let total_of_squares = (shares.z > 0.0).then(|| gpu.zeroed(2, Kind::F32)).transpose()?; // One f64.
        // Its parts are added, and it is scaled, before it is rounded to bf16.
        let grad_hidden = T::OWNS_TAPE.then(|| gpu.zeroed(input.len(), Kind::F32)).transpose()?;
        let grad_weights: Vec<Option<Arc<Array>>> = head
            .weights()
            .map(|weight| {
                let room = || gpu.zeroed(weight.len(), Kind::F32).map(Arc::new);
                (T::OWNS_TAPE && weight.is_trained()).then(room).transpose()
            })
            .collect::<Result<_, _>>()?;
        walk_logits(&hidden, head, &rows, |block| {
            let n = block.rows.len();
            let gradient = T::OWNS_TAPE.then(|| gpu.unset(n * vocabulary, kind)).transpose()?;
            let squares = total_of_squares.as_ref().map(|_| gpu.unset(n, Kind::F32)).transpose()?;
            let (gradient_of, squares_of) = (gradient.as_ref(), squares.as_ref());
            let wanted =
                Wanted { gradient: gradient_of, squares: squares_of, vocabulary, kind, shares };
            let losses = losses(&block, &wanted)?;
            let add = |values: &Array, total: &Array| {
                let args = [values.into(), total.into(), n.into()];
                gpu.launch(kernel!("add_losses"), Grid::of(1, THREADS), &args)
            };
            add(&losses, &total)?;
            if let (Some(squares), Some(total)) = (&squares, &total_of_squares) {
                add(squares, total)?;
            }
            let (Some(gradient), Some(grad_hidden)) = (gradient, &grad_hidden) else {
                return Ok(());
            };
            let grad = gpu.unset(n * width, Kind::F32)?;
            let mut first = 0;
            for part in &parts {
                let tokens = part.n_rows;
                let d =
                    Factor { address: gradient.at(first), ..factor(&gradient, vocabulary, false) };
                gpu.multiply(&Product {
                    rows: n,
                    inner: tokens,
                    columns: width,
                    left: d,
                    right: rows_of(head, part, width),
                    alpha: 1.0,
                    add: (first > 0).then(|| grad.address()),
                    bias: None,
                    out: grad.address(),
                    out_stride: width,
                    out_kind: Kind::F32,
                })?;
                if let Some(sum) = &grad_weights[part.weight] {
                    let sum = sum.at(part.first_row * width);
                    gpu.multiply(&Product {
                        rows: tokens,
                        inner: n,
                        columns: width,
                        left: Factor { transposed: true, ..d },
                        right: factor(block.gathered, width, false),
                        alpha: 1.0,
                        add: Some(sum),
                        bias: None,
                        out: sum,
                        out_stride: width,
                        out_kind: Kind::F32,
                    })?;
                }
                first += tokens;
            }
            let args = [(&grad).into(), block.places.into(), grad_hidden.into(), width.into()];
            gpu.launch(kernel!("put_rows", Kind::F32), Grid::rows(n, width), &args)
        })?;
        let head = head.clone();
        let hidden = hidden.without_values();
        let loss =
            record_loss(LossValue::Cuda(total, shares.scale), tape, move |grad_out, store| {
                let times = |array: &Array, out: &Array| {
                    let n = array.len();
                    let args = [array.into(), out.into(), long(n), grad_out.into()];
                    gpu.launch(kernel!("scale_to", out.kind()), Grid::each(n), &args)
                };
                for (weight, grad) in head.weights().zip(grad_weights) {
                    let Some(grad) = grad else { continue };
                    if grad_out.to_bits() != 1.0_f32.to_bits() {
                        times(&grad, &grad)?;
                    }
                    let grad = Arc::into_inner(grad).expect("no one else holds it");
                    on_gpu(weight).add_gradient(store.device(), grad)?;
                }
                let grad = grad_hidden.expect("a recording forward pass made the gradients");
                let scaled = gpu.unset(grad.len(), kind)?;
                times(&grad, &scaled)?;
                hidden.give_array(store, scaled)
            })?;
        let beside = |total| LossValue::Cuda(total, shares.scale * shares.z);
        Ok(loss.beside(total_of_squares.map(beside)))
    }

    pub(super) fn token_losses(
        hidden: &Matrix,
        head: &TokenTable,
        targets: &[Option<u32>],
    ) -> Result<Vec<f32>, DeviceError> {
        let mut all = vec![0.0; targets.len()];
        let wanted = Wanted {
            gradient: None,
            squares: None,
            vocabulary: head.layout(hidden.width()).n_tokens(),
            kind: Kind::F32,
            shares: Shares::from(1.0),
        };
        walk_logits(hidden, head, &rows_with_target(targets), |block| {
            let losses = losses(&block, &wanted)?.to_vec()?;
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
        let vocabulary = head.layout(hidden.width()).n_tokens();
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
        let vocabulary = head.layout(hidden.width()).n_tokens();
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
    use crate::ops::MovedRows;
    use crate::ops::formula::product;
    use crate::ops::gradient_check::{check, devices, pseudo_random, relative_error};
    use crate::tensor::{differentiate, differentiate_terms, record, whole_value_of};

    /// Of the hidden states.
    const WIDTH: usize = 16;
    const TARGETS: [Option<u32>; 4] = [Some(2), None, Some(0), Some(4)];

    /// What each row with a target adds to the loss and to the term beside it.
    fn by_formula(h: &[f64], w: &[f64], z: f64) -> Vec<[f64; 2]> {
        let logits = product(h, w, WIDTH);
        let rows = logits.chunks_exact(w.len() / WIDTH).zip(TARGETS);
        let of_row = |(logits, target): (&[f64], Option<u32>)| {
            let log_z = logits.iter().map(|v| v.exp()).sum::<f64>().ln();
            target.map_or([0.0; 2], |target| [log_z - logits[target as usize], z * log_z * log_z])
        };
        rows.map(of_row).collect()
    }

    #[test]
    fn loss_and_gradients_equal_the_formula() {
        // A [1, 1] matrix of 0.7 times the loss, so that the shared check can weigh it; its weight
        // is -1.
        fn as_matrix<T: Record>(loss: Loss<T>) -> Matrix<T> {
            let (loss, tape) = loss.split();
            let value = whole_value_of(&loss).unwrap();
            record(vec![0.7 * value].into(), 1, tape, true, move |grad, store| {
                loss.give_gradient(store, 0.7 * grad[0])
            })
            .unwrap()
        }
        // Three tokens of the model's own, of which the row of one stands elsewhere, and two that were
        // added.
        let table = |w: &[Weight]| TokenTable {
            rows: w[0].clone(),
            added: Some(w[1].clone()),
            moved: w.get(2).map(|rows| MovedRows { tokens: [2].into(), rows: rows.clone() }),
        };
        let weights =
            [(3, 2), (2, 3), (1, 4)].map(|(rows, seed)| pseudo_random(rows * WIDTH, seed));
        for (weights, z) in [(&weights[..2], 0.0), (&weights, 0.0), (&weights, 0.3)] {
            let shares = Shares { scale: 0.5, z };
            check(
                &[(pseudo_random(4 * WIDTH, 1), WIDTH)],
                weights,
                |t, x, w| {
                    let x = x[0].clone().with(t);
                    as_matrix(cross_entropy(x, &table(w), &TARGETS, shares).unwrap())
                },
                |t, x, w| {
                    let x = x[0].clone().with(t);
                    as_matrix(cross_entropy(x, &table(w), &TARGETS, shares).unwrap())
                },
                |x, w| {
                    let third = w.get(2).map_or(&w[0][2 * WIDTH..], |moved| moved);
                    let rows = [&w[0][..2 * WIDTH], third, &w[1]].concat();
                    let shares = by_formula(&x[0], &rows, f64::from(z));
                    vec![0.5 * f64::from(0.7_f32) * shares.into_iter().flatten().sum::<f64>()]
                },
            );
        }
    }

    #[test]
    fn the_term_beside_the_loss_and_the_losses_of_tokens_equal_the_formula() {
        let (h, w) = (pseudo_random(4 * WIDTH, 1), pseudo_random(5 * WIDTH, 2));
        let shares = Shares { scale: 0.25, z: 0.125 };
        for device in devices() {
            let [of_h, of_w] = [&h, &w].map(|values| -> Vec<f64> {
                device.stored(values).into_iter().map(f64::from).collect()
            });
            let expected = by_formula(&of_h, &of_w, f64::from(shares.z));
            let head = TokenTable::from(device.weight(Weight::Frozen(w.clone().into())));
            let hidden = device.variable(&h, WIDTH);
            let near = |found: &[f32], which: usize, scale: f64| {
                let each = expected.iter().map(|row| scale * row[which]);
                let expected: Vec<f64> =
                    if found.len() == 1 { vec![each.sum()] } else { each.collect() };
                let error = relative_error(found, &expected);
                assert!(error < 1e-5, "{device}: {found:?}, not {expected:?}");
            };
            let tape = crate::tensor::Recording::default();
            let loss = cross_entropy(hidden.clone().with(tape), &head, &TARGETS, shares).unwrap();
            let (nll, beside, _) = differentiate_terms(loss, 1.0).unwrap();
            near(&[nll], 0, 0.25);
            near(&[beside.unwrap()], 1, 0.25);
            let losses = token_losses(&hidden, &head, &TARGETS).unwrap();
            near(&losses, 0, 1.0);
            assert!(losses[1].to_bits() == 0, "a row without target has no loss");
        }
    }

    #[test]
    fn logits_and_the_likeliest_tokens_equal_the_formula() {
        // More tokens than a block has threads.
        let (h, w) = (pseudo_random(4 * WIDTH, 1), pseudo_random(300 * WIDTH, 2));
        for device in devices() {
            let [of_h, of_w] = [&h, &w].map(|values| -> Vec<f64> {
                device.stored(values).into_iter().map(f64::from).collect()
            });
            let expected = product(&of_h, &of_w, WIDTH);
            let head = TokenTable::from(device.weight(Weight::Frozen(w.clone().into())));
            let hidden = device.variable(&h, WIDTH);
            let mut found = Vec::new();
            each_logits(&hidden, &head, |row, logits| {
                assert_eq!(found.len(), row * 300);
                found.extend_from_slice(logits);
            })
            .unwrap();
            let error = relative_error(&found, &expected);
            assert!(error < 1e-5, "{device}: {error:.1e}");
            let likeliest = |row: &[f64]| {
                let best = (0..300).max_by(|a, b| row[*a].total_cmp(&row[*b]));
                best.map(|token| token as u32)
            };
            let expected: Vec<Option<u32>> = expected.chunks_exact(300).map(likeliest).collect();
            assert_eq!(likeliest_tokens(&hidden, &head).unwrap(), expected, "{device}");
        }
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
        assert_eq!([3, 32_000, 128_256, 1 << 25].map(rows_of_logits), [256, 256, 65, 1]);
    }
}
