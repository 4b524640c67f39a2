//! Multi-head attention within a sequence, or from queries to a block of keys of the same sequence.
//!
//! Scores are made head by head and never kept: the backward pass makes them again from the inputs.

use rayon::prelude::*;

use super::matmul::{Target, View, matmul_here};
use super::wide::{dot, exp, highest, sum_by, wide};
use crate::buffer::Buffer;
use crate::tensor::{DeviceError, Matrix, Record, record};

/// Which keys a query may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Visible {
    /// Every key of the sequence.
    All,
    /// The keys at or before the query; the last query sees the last key.
    Causal,
}

/// Sizes of an attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionShape {
    /// Queries of one sequence.
    pub(crate) queries: usize,
    /// Keys of one sequence.
    pub(crate) keys: usize,
    /// Heads.
    pub(crate) heads: usize,
}

/// Attention within sequences of `length` rows of `qkv` `[B * length, 3 D]`, which holds queries,
/// keys and values side by side: `[B * length, D]`. Scores are scaled by `1 / sqrt(D / heads)`.
///
/// # Errors
/// When the device fails.
pub(crate) fn self_attention<T: Record>(
    qkv: Matrix<T>,
    length: usize,
    heads: usize,
    visible: Visible,
) -> Result<Matrix<T>, DeviceError> {
    let (qkv, tape) = qkv.split();
    let (rows, stride) = (qkv.rows(), qkv.width());
    let width = stride / 3;
    let shape = AttentionShape { queries: length, keys: length, heads };
    let core = Core::new(shape, width, visible);
    let spread = Spread::of(rows / length);
    let mut out = Buffer::unset(rows * width);
    out.par_chunks_mut(length * width).enumerate().for_each(|(b, out)| {
        core.forward(out, thirds(&qkv, b * length), spread);
    });
    record(out, width, tape, qkv.wants_gradient(), move |grad_out, store| {
        let mut grad = Buffer::unset(qkv.values().len());
        grad.par_chunks_mut(length * stride).enumerate().for_each(|(b, grad)| {
            let g = View::rows(&grad_out, width).at(b * length, 0);
            for (h, parts) in core.backward(g, thirds(&qkv, b * length), spread).iter().enumerate()
            {
                for (part, values) in parts.iter().enumerate() {
                    put_columns(grad, stride, part * width + h * core.size, values, core.size);
                }
            }
        });
        qkv.give_gradient(store, grad)
    })
}

/// Attention of `q` `[B * queries, D]` to `k`, `v` `[B * keys, D]`: `[B * queries, D]`.
///
/// # Errors
/// When the device fails.
pub(crate) fn attention<T: Record>(
    q: Matrix<T>,
    k: Matrix,
    v: Matrix,
    shape: AttentionShape,
    visible: Visible,
) -> Result<Matrix<T>, DeviceError> {
    let (q, tape) = q.split();
    let width = q.width();
    let core = Core::new(shape, width, visible);
    let (query_block, key_block) = (shape.queries * width, shape.keys * width);
    let spread = Spread::of(q.rows() / shape.queries);
    let mut out = Buffer::unset(q.values().len());
    out.par_chunks_mut(query_block).enumerate().for_each(|(b, out)| {
        let (query, key) = (b * shape.queries, b * shape.keys);
        let views = [from_row(&q, query), from_row(&k, key), from_row(&v, key)];
        core.forward(out, views, spread);
    });
    let wanted = q.wants_gradient() || k.wants_gradient() || v.wants_gradient();
    record(out, width, tape, wanted, move |grad_out, store| {
        let mut grad_q = Buffer::unset(q.values().len());
        let mut grad_k = Buffer::unset(k.values().len());
        let mut grad_v = Buffer::unset(v.values().len());
        grad_q
            .par_chunks_mut(query_block)
            .zip(grad_k.par_chunks_mut(key_block))
            .zip(grad_v.par_chunks_mut(key_block))
            .enumerate()
            .for_each(|(b, ((gq, gk), gv))| {
                let (query, key) = (b * shape.queries, b * shape.keys);
                let g = View::rows(&grad_out, width).at(query, 0);
                let views = [from_row(&q, query), from_row(&k, key), from_row(&v, key)];
                for (h, grads) in core.backward(g, views, spread).iter().enumerate() {
                    let targets = [&mut *gq, &mut *gk, &mut *gv];
                    for (target, values) in targets.into_iter().zip(grads) {
                        put_columns(target, width, h * core.size, values, core.size);
                    }
                }
            });
        q.give_gradient(store, grad_q)?;
        k.give_gradient(store, grad_k)?;
        v.give_gradient(store, grad_v)
    })
}

/// The rows of `x` from `row` on.
fn from_row(x: &Matrix, row: usize) -> View<'_> {
    View::rows(x.values(), x.width()).at(row, 0)
}

/// Queries, keys and values in the rows of `qkv` from `row` on.
fn thirds(qkv: &Matrix, row: usize) -> [View<'_>; 3] {
    let rows = from_row(qkv, row);
    [0, 1, 2].map(|part| rows.at(0, part * (qkv.width() / 3)))
}

/// Keys and values that a sequence has made so far in one layer: rows `[t, 2 D]`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Past(Vec<f32>);

/// Causal attention of new rows `qkv` `[sum of counts, 3 D]` of several sequences, each to its own
/// past and to itself; the new keys and values are added to the past. `counts` says how many rows
/// belong to each past, in order.
pub(crate) fn continue_attention(
    qkv: &Matrix,
    pasts: &mut [&mut Past],
    counts: &[usize],
    heads: usize,
) -> Matrix {
    let stride = qkv.width();
    let width = stride / 3;
    let mut first = 0;
    let mut jobs = Vec::with_capacity(counts.len());
    for (past, count) in pasts.iter_mut().zip(counts) {
        jobs.push((&mut past.0, &qkv.values()[first * stride..][..count * stride], *count));
        first += count;
    }
    let spread = Spread::of(jobs.len());
    let rows: Vec<Vec<f32>> = jobs
        .into_par_iter()
        .map(|(past, new, count)| {
            new.chunks_exact(stride).for_each(|row| past.extend_from_slice(&row[width..]));
            let keys = past.len() / (2 * width);
            let shape = AttentionShape { queries: count, keys, heads };
            let kv = View::rows(past, 2 * width);
            let mut out = vec![0.0; count * width];
            let views = [View::rows(new, stride), kv, kv.at(0, width)];
            Core::new(shape, width, Visible::Causal).forward(&mut out, views, spread);
            out
        })
        .collect();
    Matrix::constant(rows.concat().into(), width)
}

/// The scale of attention scores.
pub(super) fn scale_of(width: usize, heads: usize) -> f32 {
    ((width / heads) as f32).sqrt().recip()
}

/// Where the threads go; decided by the number of sequences alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spread {
    /// One sequence each.
    Sequences,
    /// One head each, since there are few sequences.
    Heads,
}

impl Spread {
    fn of(sequences: usize) -> Self {
        if sequences < 8 { Self::Heads } else { Self::Sequences }
    }

    /// `work(h)` of every head.
    fn heads<R: Send>(self, n: usize, work: impl Fn(usize) -> R + Send + Sync) -> Vec<R> {
        match self {
            Self::Sequences => (0..n).map(work).collect(),
            Self::Heads => (0..n).into_par_iter().map(work).collect(),
        }
    }
}

/// One sequence's attention. Views `q`, `k`, `v` start at the sequence's first row and its first
/// head's column.
#[derive(Debug, Clone, Copy)]
pub(super) struct Core {
    shape: AttentionShape,
    visible: Visible,
    scale: f32,
    /// Width of one head.
    size: usize,
}

impl Core {
    fn new(shape: AttentionShape, width: usize, visible: Visible) -> Self {
        let scale = scale_of(width, shape.heads);
        Self { shape, visible, scale, size: width / shape.heads }
    }

    /// Attention weights of head `h`: `[queries, keys]`, each row summing to 1.
    fn weights(&self, q: View, k: View, h: usize) -> Buffer {
        let AttentionShape { queries, keys, .. } = self.shape;
        let (q, k) = (q.at(0, h * self.size), k.at(0, h * self.size));
        let mut scores = Buffer::unset(queries * keys);
        let target = Target::rows(&mut scores, keys);
        matmul_here(queries, self.size, keys, self.scale, q, k.t(), target);
        wide!({
            for (i, row) in scores.chunks_exact_mut(keys).enumerate() {
                let seen = match self.visible {
                    Visible::All => keys,
                    Visible::Causal => keys - queries + i + 1,
                };
                row[seen..].fill(0.0);
                softmax(&mut row[..seen]);
            }
        });
        scores
    }

    /// Writes rows `[queries, heads * size]`.
    fn forward(&self, out: &mut [f32], [q, k, v]: [View; 3], spread: Spread) {
        let AttentionShape { queries, keys, heads } = self.shape;
        let read = |h, target: Target| {
            let weights = self.weights(q, k, h);
            let v = v.at(0, h * self.size);
            matmul_here(queries, keys, self.size, 1.0, View::rows(&weights, keys), v, target);
        };
        let width = heads * self.size;
        if spread == Spread::Sequences {
            return (0..heads).for_each(|h| read(h, Target::rows(out, width).at(0, h * self.size)));
        }
        let parts = spread.heads(heads, |h| {
            let mut part = Buffer::unset(queries * self.size);
            read(h, Target::rows(&mut part, self.size));
            part
        });
        for (h, part) in parts.iter().enumerate() {
            put_columns(out, width, h * self.size, part, self.size);
        }
    }

    /// Per head the gradients of `q` `[queries, size]`, `k` and `v` `[keys, size]`.
    ///
    /// With weights `p`: `dv = p' g`, `dp = g v'`, `ds = p * (dp - sum(dp * p))`,
    /// `dq = ds k * scale`, `dk = ds' q * scale`.
    fn backward(&self, g: View, [q, k, v]: [View; 3], spread: Spread) -> Vec<[Buffer; 3]> {
        let AttentionShape { queries, keys, heads } = self.shape;
        let size = self.size;
        spread.heads(heads, |h| {
            let weights = self.weights(q, k, h);
            let [g, q, k, v] = [g, q, k, v].map(|view| view.at(0, h * size));
            let p = View::rows(&weights, keys);
            let mut dq = Buffer::unset(queries * size);
            let mut dk = Buffer::unset(keys * size);
            let mut dv = Buffer::unset(keys * size);
            let mut ds = Buffer::unset(queries * keys);
            matmul_here(keys, queries, size, 1.0, p.t(), g, Target::rows(&mut dv, size));
            matmul_here(queries, size, keys, 1.0, g, v.t(), Target::rows(&mut ds, keys));
            softmax_backward(&mut ds, &weights, keys);
            let s = View::rows(&ds, keys);
            matmul_here(queries, keys, size, self.scale, s, k, Target::rows(&mut dq, size));
            matmul_here(keys, queries, size, self.scale, s.t(), q, Target::rows(&mut dk, size));
            [dq, dk, dv]
        })
    }
}

/// Writes `part` `[rows, size]` into columns `from ..` of `all` `[rows, stride]`.
fn put_columns(all: &mut [f32], stride: usize, from: usize, part: &[f32], size: usize) {
    for (row, part) in all.chunks_exact_mut(stride).zip(part.chunks_exact(size)) {
        row[from..from + size].copy_from_slice(part);
    }
}

/// Turns scores into weights that sum to 1.
#[expect(clippy::inline_always, reason = "must become part of the wide loop around it")]
#[inline(always)]
pub(super) fn softmax(row: &mut [f32]) {
    let top = highest(row);
    for v in row.iter_mut() {
        *v = exp(*v - top);
    }
    let inverse = 1.0 / sum_by(row, |v| v);
    for v in row.iter_mut() {
        *v *= inverse;
    }
}

/// Turns gradients of weights (in `ds`) into gradients of scores, row by row.
pub(super) fn softmax_backward(ds: &mut [f32], weights: &[f32], keys: usize) {
    wide!({
        for (ds, p) in ds.chunks_exact_mut(keys).zip(weights.chunks_exact(keys)) {
            let dot = dot(ds, p);
            ds.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - dot));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::{check, pseudo_random};

    fn constant(values: &[f32], width: usize) -> Matrix {
        Matrix::constant(values.to_vec().into(), width)
    }

    #[test]
    fn gradients_equal_finite_differences() {
        for visible in [Visible::All, Visible::Causal] {
            // 2 sequences spread over heads, 9 over sequences.
            for n in [2, 9] {
                let qkv = [(pseudo_random(n * 3 * 12, 1), 12)];
                check(
                    &qkv,
                    &[],
                    4e-3,
                    |t, x, _| self_attention(x[0].clone().with(t), 3, 2, visible).unwrap(),
                    |t, x, _| self_attention(x[0].clone().with(t), 3, 2, visible).unwrap(),
                );
                let shape = AttentionShape { queries: 2, keys: 3, heads: 2 };
                let inputs =
                    [(1, 2), (2, 3), (3, 3)].map(|(s, rows)| (pseudo_random(n * rows * 4, s), 4));
                check(
                    &inputs,
                    &[],
                    4e-3,
                    |t, x, _| {
                        attention(x[0].clone().with(t), x[1].clone(), x[2].clone(), shape, visible)
                            .unwrap()
                    },
                    |t, x, _| {
                        attention(x[0].clone().with(t), x[1].clone(), x[2].clone(), shape, visible)
                            .unwrap()
                    },
                );
            }
        }
    }

    #[test]
    fn a_later_key_cannot_change_an_earlier_query() {
        let run = |last: f32| {
            let mut x = pseudo_random(36, 5);
            x[27..].fill(last);
            self_attention(constant(&x, 9), 4, 1, Visible::Causal).unwrap().values().to_vec()
        };
        assert_eq!(run(0.0)[..9], run(7.0)[..9]);
    }

    #[test]
    fn continuing_in_pieces_equals_the_whole() {
        let x = pseudo_random(5 * 12, 6);
        let whole = self_attention(constant(&x, 12), 5, 2, Visible::Causal).unwrap();
        let mut past = Past::default();
        let mut pieces = Vec::new();
        for (from, to) in [(0, 2), (2, 3), (3, 5)] {
            let new = constant(&x[from * 12..to * 12], 12);
            let out = continue_attention(&new, &mut [&mut past], &[to - from], 2);
            pieces.extend_from_slice(out.values());
        }
        for (a, b) in pieces.iter().zip(whole.values()) {
            assert!((a - b).abs() < 1e-6, "{a} against {b}");
        }
    }
}
