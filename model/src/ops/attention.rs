//! Multi-head attention within a sequence, or from queries to a block of keys of the same sequence.
//! Several heads of queries may share one head of keys and values.
//!
//! Scores are made head by head and never kept: the backward pass makes them again from the inputs.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::matmul::{Target, View, matmul_here};
use super::sequences::Sequences;
use super::wide::{dot, exp, highest, sum_by, wide};
use crate::buffer::Buffer;
use crate::tensor::{DeviceError, Matrix, Record, record};

/// Which keys a query may see.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Visible {
    /// Every key of the sequence.
    All,
    /// The keys at or before the query; the last query sees the last key.
    Causal,
    /// As `Causal`, and a key that lies `d` before the query loses `d` times its head's slope
    /// (`ALiBi`; Press and others, 2022).
    CausalSloped(Arc<[f32]>),
}

impl Visible {
    /// `ALiBi`'s slopes: `2^(-8 i / n)` for head i of 1 to n, n a power of two; for other numbers
    /// of heads those of the next power of two, every second one first, as MPT takes them.
    pub(crate) fn sloped(heads: usize) -> Self {
        let n = heads.next_power_of_two();
        let slope = |i: usize| (-8.0 * i as f32 / n as f32).exp2();
        let taken = |i: &usize| n == heads || i.is_multiple_of(2);
        let order = (1..=n).filter(taken).chain((1..=n).filter(|i| !taken(i)));
        Self::CausalSloped(order.take(heads).map(slope).collect())
    }
}

/// Heads of a self-attention. A row of its input holds the queries of all heads, then the keys,
/// then the values: `(heads + 2 kv_heads) * size` values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heads {
    /// Heads of queries.
    pub(crate) queries: usize,
    /// Heads of keys and values, which divide those of queries.
    pub(crate) keys: usize,
    /// Width of one head.
    pub(crate) size: usize,
}

impl Heads {
    /// Width of the queries of a row, and of what attention returns.
    pub(crate) fn query_width(self) -> usize {
        self.queries * self.size
    }

    /// Width of the keys of a row, and of the values.
    pub(crate) fn key_width(self) -> usize {
        self.keys * self.size
    }

    /// Width of a row of queries, keys and values.
    pub(crate) fn row_width(self) -> usize {
        self.query_width() + 2 * self.key_width()
    }

    /// Queries, keys and values in `rows`.
    fn parts(self, rows: View<'_>) -> [View<'_>; 3] {
        let (q, k) = (self.query_width(), self.key_width());
        [0, q, q + k].map(|column| rows.at(0, column))
    }
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

/// Attention within the sequences of the rows of `qkv` `[N, row width]`: `[N, heads * size]`. Scores
/// are scaled by `1 / sqrt(size)`.
///
/// # Errors
/// When the device fails.
pub(crate) fn self_attention<T: Record>(
    qkv: Matrix<T>,
    sequences: &Sequences,
    heads: Heads,
    visible: &Visible,
) -> Result<Matrix<T>, DeviceError> {
    assert_eq!(qkv.rows(), sequences.rows(), "every row is of a sequence");
    #[cfg(feature = "cuda")]
    if qkv.array().is_some() {
        return super::attention_cuda::self_attention(qkv, sequences, heads, visible);
    }
    let (qkv, tape) = qkv.split();
    let (width, stride) = (heads.query_width(), qkv.width());
    let whole = |rows: Range<usize>| {
        let core = Core::new(heads, rows.len(), rows.len(), visible.clone());
        Whole { rows, core }
    };
    let all: Vec<Whole> = sequences.iter().filter(|rows| !rows.is_empty()).map(whole).collect();
    let spread = Spread::of(all.len());
    let mut out = Buffer::unset(qkv.rows() * width);
    split(&mut out, width, &all).into_par_iter().for_each(|(Whole { rows, core }, out)| {
        let [q, k, v] = heads.parts(from_row(&qkv, rows.start));
        core.forward(out, q, &[Segment { k, v, keys: rows.len() }], spread);
    });
    record(out, width, tape, qkv.wants_gradient(), move |grad_out, store| {
        let mut grad = Buffer::unset(qkv.values().len());
        split(&mut grad, stride, &all).into_par_iter().for_each(|(Whole { rows, core }, grad)| {
            let g = View::rows(&grad_out, width).at(rows.start, 0);
            let grads = core.backward(g, heads.parts(from_row(&qkv, rows.start)), spread);
            let (q, k) = (heads.query_width(), heads.key_width());
            for (part, column) in [(0, 0), (1, q), (2, q + k)] {
                core.gather(grad, stride, column, &grads, part);
            }
        });
        qkv.give_gradient(store, grad)
    })
}

/// A sequence that attends to itself.
struct Whole {
    rows: Range<usize>,
    core: Core,
}

/// Each sequence with its values, of rows of `width` values.
fn split<'a>(
    mut values: &'a mut [f32],
    width: usize,
    sequences: &'a [Whole],
) -> Vec<(&'a Whole, &'a mut [f32])> {
    let mut parts = Vec::with_capacity(sequences.len());
    for sequence in sequences {
        let part = values.split_off_mut(..sequence.rows.len() * width);
        parts.push((sequence, part.expect("the sequences make all rows")));
    }
    parts
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
    visible: &Visible,
) -> Result<Matrix<T>, DeviceError> {
    #[cfg(feature = "cuda")]
    if q.array().is_some() {
        return super::attention_cuda::attention(q, k, v, shape, visible);
    }
    let (q, tape) = q.split();
    let width = q.width();
    let heads = Heads { queries: shape.heads, keys: shape.heads, size: width / shape.heads };
    let core = Core::new(heads, shape.queries, shape.keys, visible.clone());
    let (query_block, key_block) = (shape.queries * width, shape.keys * width);
    let spread = Spread::of(q.rows() / shape.queries);
    let mut out = Buffer::unset(q.values().len());
    out.par_chunks_mut(query_block).enumerate().for_each(|(b, out)| {
        let (query, key) = (b * shape.queries, b * shape.keys);
        let segment = Segment { k: from_row(&k, key), v: from_row(&v, key), keys: shape.keys };
        core.forward(out, from_row(&q, query), &[segment], spread);
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
                let grads = core.backward(g, views, spread);
                for (part, target) in [gq, gk, gv].into_iter().enumerate() {
                    core.gather(target, width, 0, &grads, part);
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

/// Keys and values that a sequence has made so far in one layer: rows `[t, 2 * key width]`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Past {
    /// The first rows, which continuations of one prompt have in common.
    shared: Option<Arc<Vec<f32>>>,
    /// The rows after them.
    own: Vec<f32>,
    /// All rows, if they are on a GPU.
    #[cfg(feature = "cuda")]
    device: super::attention_cuda::DevicePast,
}

impl Past {
    /// Makes all rows so far common to this past and to those that are cloned from it. On a GPU, those copy them
    /// before they add their own.
    pub(crate) fn share(&mut self) {
        let mut rows = self.shared.take().map_or_else(Vec::new, |rows| rows.to_vec());
        rows.append(&mut self.own);
        self.shared = Some(Arc::new(rows));
    }
}

/// Causal attention of new rows `qkv` of several sequences, each to its own past and to itself; the
/// new keys and values are added to the past. `counts` says how many rows belong to each past, in
/// order.
///
/// # Errors
/// When the device fails.
#[cfg_attr(not(feature = "cuda"), expect(clippy::unnecessary_wraps, reason = "GPUs need it"))]
pub(crate) fn continue_attention(
    qkv: &Matrix,
    pasts: &mut [&mut Past],
    counts: &[usize],
    heads: Heads,
    visible: &Visible,
) -> Result<Matrix, DeviceError> {
    #[cfg(feature = "cuda")]
    if qkv.array().is_some() {
        let mut pasts: Vec<_> = pasts.iter_mut().map(|past| &mut past.device).collect();
        return super::attention_cuda::continue_attention(qkv, &mut pasts, counts, heads, visible);
    }
    let stride = qkv.width();
    let (width, key_width) = (heads.query_width(), heads.key_width());
    let mut first = 0;
    let mut jobs = Vec::with_capacity(counts.len());
    for (past, count) in pasts.iter_mut().zip(counts) {
        jobs.push((past, &qkv.values()[first * stride..][..count * stride], *count));
        first += count;
    }
    let spread = Spread::of(jobs.len());
    let rows: Vec<Vec<f32>> = jobs
        .into_par_iter()
        .map(|(past, new, count)| {
            new.chunks_exact(stride).for_each(|row| past.own.extend_from_slice(&row[width..]));
            let shared = past.shared.as_ref().map_or(&[][..], |rows| rows);
            let segments: Vec<Segment> = [shared, &past.own]
                .into_iter()
                .filter(|rows| !rows.is_empty())
                .map(|rows| {
                    let k = View::rows(rows, 2 * key_width);
                    Segment { k, v: k.at(0, key_width), keys: rows.len() / (2 * key_width) }
                })
                .collect();
            let keys = segments.iter().map(|segment| segment.keys).sum();
            let mut out = vec![0.0; count * width];
            let core = Core::new(heads, count, keys, visible.clone());
            core.forward(&mut out, View::rows(new, stride), &segments, spread);
            out
        })
        .collect();
    Ok(Matrix::constant(rows.concat().into(), width))
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

/// Keys and values that follow each other in memory.
#[derive(Debug, Clone, Copy)]
struct Segment<'a> {
    k: View<'a>,
    v: View<'a>,
    keys: usize,
}

/// Queries that are scored together where each sees the keys before it: scores of later keys are not
/// made at all, and a product with fewer rows spends more of its time on arranging the keys.
const QUERIES_PER_BLOCK: usize = 64;

/// One sequence's attention. Views `q`, `k`, `v` start at the sequence's first row and its first
/// head's column.
#[derive(Debug, Clone)]
struct Core {
    heads: Heads,
    queries: usize,
    keys: usize,
    visible: Visible,
    scale: f32,
}

impl Core {
    fn new(heads: Heads, queries: usize, keys: usize, visible: Visible) -> Self {
        let scale = scale_of(heads.query_width(), heads.queries);
        Self { heads, queries, keys, visible, scale }
    }

    /// The first column of head `h` of queries, and of its keys and values.
    fn columns(&self, h: usize) -> (usize, usize) {
        let Heads { queries, keys, size } = self.heads;
        (h * size, h * keys / queries * size)
    }

    /// The queries in blocks, each with the keys that its last query sees: the first query, and the
    /// block's own attention. There is one where every query sees every key.
    fn blocks(&self) -> Vec<(usize, Self)> {
        let most = match self.visible {
            Visible::All => self.queries,
            Visible::Causal | Visible::CausalSloped(_) => QUERIES_PER_BLOCK,
        };
        let block = |first| {
            let queries = most.min(self.queries - first);
            let keys = self.keys - self.queries + first + queries;
            (first, Self { queries, keys, ..self.clone() })
        };
        (0..self.queries).step_by(most).map(block).collect()
    }

    /// Attention weights of head `h`: `[queries, keys]`, each row summing to 1. Keys of `segments`
    /// beyond `keys` are not looked at.
    fn weights(&self, q: View, segments: &[Segment], h: usize) -> Buffer {
        let (queries, keys) = (self.queries, self.keys);
        let (of_q, of_k) = self.columns(h);
        let mut scores = Buffer::unset(queries * keys);
        let mut first = 0;
        for segment in segments {
            let n = segment.keys.min(keys - first);
            if n == 0 {
                break;
            }
            let target = Target::rows(&mut scores, keys).at(0, first);
            let k = segment.k.at(0, of_k).t();
            let size = self.heads.size;
            matmul_here(queries, size, n, self.scale, q.at(0, of_q), k, target);
            first += n;
        }
        wide!({
            for (i, row) in scores.chunks_exact_mut(keys).enumerate() {
                let seen = match &self.visible {
                    Visible::All => keys,
                    Visible::Causal => keys - queries + i + 1,
                    Visible::CausalSloped(slopes) => {
                        let seen = keys - queries + i + 1;
                        let slope = slopes[h];
                        for (j, score) in row[..seen].iter_mut().enumerate() {
                            *score -= slope * (seen - 1 - j) as f32;
                        }
                        seen
                    }
                };
                row[seen..].fill(0.0);
                softmax(&mut row[..seen]);
            }
        });
        scores
    }

    /// Writes rows `[queries, heads * size]`.
    fn forward(&self, out: &mut [f32], q: View, segments: &[Segment], spread: Spread) {
        let Heads { queries: heads, size, .. } = self.heads;
        let width = heads * size;
        let read = |h, out: &mut [f32], stride, column| {
            let of_v = self.columns(h).1;
            for (query, block) in self.blocks() {
                let weights = block.weights(q.at(query, 0), segments, h);
                let mut first = 0;
                for segment in segments {
                    let n = segment.keys.min(block.keys - first);
                    if n == 0 {
                        break;
                    }
                    let target = Target::rows(out, stride).at(query, column);
                    let target = Target { add: first > 0, ..target };
                    let p = View::rows(&weights, block.keys).at(0, first);
                    matmul_here(block.queries, n, size, 1.0, p, segment.v.at(0, of_v), target);
                    first += n;
                }
            }
        };
        if spread == Spread::Sequences {
            return (0..heads).for_each(|h| read(h, out, width, h * size));
        }
        let parts = spread.heads(heads, |h| {
            let mut part = Buffer::unset(self.queries * size);
            read(h, &mut part, size, 0);
            part
        });
        for (h, part) in parts.iter().enumerate() {
            put_columns(out, width, h * size, part, size);
        }
    }

    /// Per head of queries the gradients of `q` `[queries, size]`, `k` and `v` `[keys, size]`.
    ///
    /// With weights `p`: `dv = p' g`, `dp = g v'`, `ds = p * (dp - sum(dp * p))`,
    /// `dq = ds k * scale`, `dk = ds' q * scale`.
    fn backward(&self, g: View, [q, k, v]: [View; 3], spread: Spread) -> Vec<[Buffer; 3]> {
        let (queries, keys, size) = (self.queries, self.keys, self.heads.size);
        spread.heads(self.heads.queries, |h| {
            let (of_q, of_k) = self.columns(h);
            let mut dq = Buffer::unset(queries * size);
            let mut dk = Buffer::unset(keys * size);
            let mut dv = Buffer::unset(keys * size);
            // The last block sees every key: it writes what the others add to.
            for (query, block) in self.blocks().into_iter().rev() {
                let (rows, keys) = (block.queries, block.keys);
                let weights = block.weights(q.at(query, 0), &[Segment { k, v, keys }], h);
                let (g, q) = (g.at(query, of_q), q.at(query, of_q));
                let (k, v) = (k.at(0, of_k), v.at(0, of_k));
                let p = View::rows(&weights, keys);
                let mut ds = Buffer::unset(rows * keys);
                let add = query + rows < queries;
                let into = |grad| Target { add, ..Target::rows(grad, size) };
                matmul_here(keys, rows, size, 1.0, p.t(), g, into(&mut dv));
                matmul_here(rows, size, keys, 1.0, g, v.t(), Target::rows(&mut ds, keys));
                softmax_backward(&mut ds, &weights, keys);
                let s = View::rows(&ds, keys);
                let target = Target::rows(&mut dq, size).at(query, 0);
                matmul_here(rows, keys, size, self.scale, s, k, target);
                matmul_here(keys, rows, size, self.scale, s.t(), q, into(&mut dk));
            }
            [dq, dk, dv]
        })
    }

    /// Writes part 0 (queries), 1 (keys) or 2 (values) of the heads' gradients into the columns of
    /// `all` from `column` on. Heads that share keys are summed in their order.
    fn gather(
        &self,
        all: &mut [f32],
        stride: usize,
        column: usize,
        heads: &[[Buffer; 3]],
        part: usize,
    ) {
        let Heads { queries, keys, size } = self.heads;
        let group = if part == 0 { 1 } else { queries / keys };
        for (h, grads) in heads.iter().enumerate() {
            let at = column + h / group * size;
            if h % group == 0 {
                put_columns(all, stride, at, &grads[part], size);
            } else {
                for (row, part) in all.chunks_exact_mut(stride).zip(grads[part].chunks_exact(size))
                {
                    super::add_to(&mut row[at..at + size], part);
                }
            }
        }
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
    use crate::ops::formula;
    use crate::ops::gradient_check::{
        Case, devices, error_max, gradients_of_sum, pseudo_random, relative_error,
    };
    use crate::tensor::Recording;

    fn constant(values: &[f32], width: usize) -> Matrix {
        Matrix::constant(values.to_vec().into(), width)
    }

    #[test]
    fn values_and_gradients_equal_the_formula() {
        let heads = |queries, keys, size| Heads { queries, keys, size };
        for visible in [Visible::All, Visible::Causal, Visible::sloped(2)] {
            // 2 sequences spread over heads, 9 over sequences. The last are more than one block of queries.
            for (heads, n, length) in [
                (heads(2, 2, 2), 2, 3),
                (heads(2, 2, 2), 9, 3),
                (heads(2, 1, 3), 2, 3),
                (heads(2, 1, 3), 9, 3),
                (heads(2, 1, 3), 1, QUERIES_PER_BLOCK + 5),
                (heads(2, 2, 3), 1, QUERIES_PER_BLOCK + 5),
            ] {
                let width = heads.row_width();
                let sequences = Sequences::equal(n * length, length);
                formula::Attention::of_itself(&sequences, heads, &visible).check(
                    &devices(),
                    &[(pseudo_random(n * length * width, 1), width)],
                    |t, x, _| {
                        self_attention(x[0].clone().with(t), &sequences, heads, &visible).unwrap()
                    },
                    |t, x, _| {
                        self_attention(x[0].clone().with(t), &sequences, heads, &visible).unwrap()
                    },
                );
            }
        }
        for n in [2, 9] {
            let shape = AttentionShape { queries: 2, keys: 3, heads: 2 };
            let inputs =
                [(1, 2), (2, 3), (3, 3)].map(|(s, rows)| (pseudo_random(n * rows * 4, s), 4));
            formula::Attention::of_another(n, shape, 2).check(
                &devices(),
                &inputs,
                |t, x, _| {
                    let (q, k, v) = (x[0].clone().with(t), x[1].clone(), x[2].clone());
                    attention(q, k, v, shape, &Visible::All).unwrap()
                },
                |t, x, _| {
                    let (q, k, v) = (x[0].clone().with(t), x[1].clone(), x[2].clone());
                    attention(q, k, v, shape, &Visible::All).unwrap()
                },
            );
        }
    }

    #[test]
    fn a_later_key_cannot_change_an_earlier_query() {
        let heads = Heads { queries: 1, keys: 1, size: 3 };
        let run = |last: f32| {
            let mut x = pseudo_random(36, 5);
            x[27..].fill(last);
            let sequences = Sequences::of([4]);
            let out = self_attention(constant(&x, 9), &sequences, heads, &Visible::Causal);
            out.unwrap().values().to_vec()
        };
        assert_eq!(run(0.0)[..9], run(7.0)[..9]);
    }

    #[test]
    fn sequences_of_unequal_lengths_do_not_see_each_other() {
        let (heads, width) = (Heads { queries: 2, keys: 1, size: 3 }, 12);
        let x = pseudo_random(9 * width, 4);
        let run = |x: &[f32], sequences: &Sequences, visible: &Visible| {
            let x = Matrix::variable(x.to_vec().into(), width).unwrap();
            let out =
                self_attention(x.clone().with(Recording::default()), sequences, heads, visible);
            let (out, mut grads) = gradients_of_sum(out.unwrap(), |n| vec![1.0; n]);
            let gradient = x.take_gradient(&mut grads.0).unwrap().unwrap();
            [out.values().to_vec(), gradient.into_vec()]
        };
        for visible in [Visible::All, Visible::Causal, Visible::sloped(2)] {
            let all = run(&x, &Sequences::of([4, 0, 1, 4]), &visible);
            let mut apart = [Vec::new(), Vec::new()];
            for rows in [0..4, 4..5, 5..9] {
                let one = Sequences::of([rows.len()]);
                let part = run(&x[rows.start * width..rows.end * width], &one, &visible);
                apart.iter_mut().zip(part).for_each(|(all, part)| all.extend(part));
            }
            assert_eq!(all, apart);
        }
    }

    #[test]
    fn continuing_in_pieces_equals_the_formula_of_the_whole() {
        for (device, size) in devices().into_iter().flat_map(|device| [(device, 3), (device, 64)]) {
            let (heads, whole) = (Heads { queries: 2, keys: 1, size }, Sequences::of([5]));
            let width = heads.row_width();
            let x = (pseudo_random(5 * width, 6), width);
            let case = Case { device, inputs: std::slice::from_ref(&x), params: &[] };
            for visible in [Visible::Causal, Visible::sloped(2)] {
                let formula = formula::Attention::of_itself(&whole, heads, &visible);
                let mut past = Past::default();
                let mut pieces = Vec::new();
                for (from, to) in [(0, 2), (2, 3), (3, 5)] {
                    let new = device.variable(&x.0[from * width..to * width], width);
                    let (mut pasts, counts) = ([&mut past], [to - from]);
                    let out = continue_attention(&new, &mut pasts, &counts, heads, &visible);
                    if from == 0 {
                        past.share();
                    }
                    pieces.extend(out.unwrap().to_vec().unwrap());
                }
                let error = relative_error(&pieces, &formula.values(&case.stored()));
                assert!(error < error_max(device), "{device}, {visible:?}: {error:.1e}");
            }
        }
    }

    #[test]
    fn slopes_of_eight_and_of_six_heads_are_the_published_ones() {
        let Visible::CausalSloped(eight) = Visible::sloped(8) else { panic!() };
        assert_eq!(eight[..3], [0.5, 0.25, 0.125]);
        let Visible::CausalSloped(six) = Visible::sloped(6) else { panic!() };
        assert_eq!(*six, [0.25, 0.0625, 0.015_625, 0.003_906_25, 0.5, 0.125]);
    }
}
