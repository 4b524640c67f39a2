//! What the formulas of several operations' tests have in common, in f64, as it is defined.

use std::f64::consts::{FRAC_1_SQRT_2, PI};
use std::ops::Range;

use super::Activation;
use super::attention::{AttentionShape, Heads, Visible};
use super::gradient_check::{Case, Expected, coarse_ramp};
use super::sequences::Sequences;
use crate::device::Device;
use crate::tensor::{Matrix, NotRecording, Recording, Weight};

/// `x` `[N, I]` times `weight` `[O, I]` transposed: `[N, O]`.
pub(super) fn product(x: &[f64], weight: &[f64], inputs: usize) -> Vec<f64> {
    let rows = x.chunks_exact(inputs);
    rows.flat_map(|x| weight.chunks_exact(inputs).map(|w| dot(x, w))).collect()
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Each value of rows with what `row` has in its column.
pub(super) fn by_column(x: &[f64], row: &[f64], f: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    x.iter().zip(row.iter().cycle()).map(|(x, r)| f(*x, *r)).collect()
}

pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub(super) fn activated(kind: Activation, x: f64) -> f64 {
    match kind {
        Activation::Gelu => x * 0.5 * (1.0 + error_function(x * FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            x * 0.5 * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
        }
        Activation::QuickGelu => x * sigmoid(1.702 * x),
        Activation::Relu => x.max(0.0),
        Activation::Silu => x * sigmoid(x),
        Activation::SquaredRelu => x.max(0.0).powi(2),
    }
}

/// `2 / sqrt(pi) * exp(-x^2) * sum over n of 2^n x^(2 n + 1) / (1 * 3 * ... * (2 n + 1))`, whose terms have one
/// sign.
fn error_function(x: f64) -> f64 {
    let (mut sum, mut term) = (0.0, x);
    for n in 1..200 {
        sum += term;
        term *= 2.0 * x * x / f64::from(2 * n + 1);
    }
    2.0 / PI.sqrt() * (-x * x).exp() * sum
}

/// The columns of one head in some rows of an input.
#[derive(Clone)]
struct Part {
    input: usize,
    rows: Range<usize>,
    column: usize,
}

/// Attention of some queries of one head to all of some keys.
struct Head<'a> {
    queries: Part,
    keys: Part,
    values: Part,
    /// Added to the score of a query and a key, minus infinity where it does not see it.
    added: Box<dyn Fn(usize, usize) -> f64 + 'a>,
}

/// Attention, head by head. What a head reads lies in the columns of its queries.
pub(super) struct Attention<'a> {
    heads: Vec<Head<'a>>,
    /// Width of a head.
    size: usize,
    /// Widths of the inputs.
    widths: Vec<usize>,
    /// Width of the result.
    width: usize,
}

impl<'a> Attention<'a> {
    /// Of sequences, whose rows hold queries, keys and values of all heads.
    pub(super) fn of_itself(sequences: &Sequences, heads: Heads, visible: &'a Visible) -> Self {
        let Heads { queries, keys, size } = heads;
        let of = |rows: &Range<usize>, h: usize| {
            let part = |head: usize| Part { input: 0, rows: rows.clone(), column: head * size };
            let kv = h / (queries / keys);
            Head {
                queries: part(h),
                keys: part(queries + kv),
                values: part(queries + keys + kv),
                added: Box::new(move |i, j| match visible {
                    Visible::All => 0.0,
                    _ if j > i => f64::NEG_INFINITY,
                    Visible::Causal => 0.0,
                    Visible::CausalSloped(slopes) => -f64::from(slopes[h]) * (i - j) as f64,
                }),
            }
        };
        let of_all = |rows: Range<usize>| (0..queries).map(move |h| of(&rows, h));
        let heads = sequences.iter().flat_map(of_all).collect();
        let (width, row) = (queries * size, (queries + 2 * keys) * size);
        Self { heads, size, widths: vec![row], width }
    }

    /// Of sequences of queries to all keys of sequences that are another input, as are values.
    pub(super) fn of_another(sequences: usize, shape: AttentionShape, size: usize) -> Self {
        let pairs = (0..sequences).map(|s| {
            (s * shape.queries..(s + 1) * shape.queries, s * shape.keys..(s + 1) * shape.keys)
        });
        Self::of_pairs(pairs, shape.heads, size)
    }

    /// Of each row to the latents that it sees.
    pub(super) fn of_media(seen: &[Range<usize>], heads: usize, size: usize) -> Self {
        let rows = seen.iter().enumerate().filter(|(_, seen)| !seen.is_empty());
        Self::of_pairs(rows.map(|(row, seen)| (row..row + 1, seen.clone())), heads, size)
    }

    /// Of rows of queries to rows of keys and values.
    fn of_pairs(
        pairs: impl Iterator<Item = (Range<usize>, Range<usize>)>,
        heads: usize,
        size: usize,
    ) -> Self {
        let of = |(rows, seen): (Range<usize>, Range<usize>)| {
            (0..heads).map(move |h| {
                let part = |input: usize, rows: &Range<usize>| Part {
                    input,
                    rows: rows.clone(),
                    column: h * size,
                };
                Head {
                    queries: part(0, &rows),
                    keys: part(1, &seen),
                    values: part(2, &seen),
                    added: Box::new(|_, _| 0.0),
                }
            })
        };
        let width = heads * size;
        Self { heads: pairs.flat_map(of).collect(), size, widths: vec![width; 3], width }
    }

    /// `softmax(q k' / sqrt(size) + added) v` of every head; zeros where none has queries.
    pub(super) fn values(&self, x: &[Vec<f64>]) -> Vec<f64> {
        let mut out = vec![0.0; x[0].len() / self.widths[0] * self.width];
        self.each_query(x, |head, i, seen| {
            for (j, p) in seen.iter().enumerate() {
                let value = self.row(x, &head.values, j);
                let out = &mut out[self.result(head, i)..][..self.size];
                out.iter_mut().zip(value).for_each(|(o, v)| *o += p * v);
            }
        });
        out
    }

    /// Values and gradients. With `d` the gradient of what a query reads, `p` its softmax and `s` its scores:
    /// `dv = p d`, `dp = d v'`, `ds = p (dp - sum(p dp))`, `dq = ds k / sqrt(size)`, `dk = ds q / sqrt(size)`.
    pub(super) fn expected(&self, x: &[Vec<f64>]) -> Expected {
        let values = self.values(x);
        let weights = coarse_ramp(values.len());
        let weights: Vec<f64> = weights.into_iter().map(f64::from).collect();
        let mut gradients: Vec<Vec<f64>> = x.iter().map(|x| vec![0.0; x.len()]).collect();
        self.each_query(x, |head, i, seen| {
            let d = &weights[self.result(head, i)..][..self.size];
            let q = self.row(x, &head.queries, i);
            let of_seen: Vec<f64> =
                (0..seen.len()).map(|j| dot(d, self.row(x, &head.values, j))).collect();
            let mean = dot(seen, &of_seen);
            let mut add = |part: &Part, i: usize, factor: f64, row: &[f64]| {
                let sum = &mut gradients[part.input][self.place(part, i)..][..self.size];
                sum.iter_mut().zip(row).for_each(|(s, v)| *s += factor * v);
            };
            for (j, (p, of_p)) in seen.iter().zip(of_seen).enumerate() {
                let of_score = p * (of_p - mean) / (self.size as f64).sqrt();
                add(&head.values, j, *p, d);
                add(&head.queries, i, of_score, self.row(x, &head.keys, j));
                add(&head.keys, j, of_score, q);
            }
        });
        Expected { values, gradients }
    }

    /// Compares an operation on `inputs` with this on each of `devices`.
    pub(super) fn check(
        &self,
        devices: &[Device],
        inputs: &[(Vec<f32>, usize)],
        taped: impl Fn(Recording, &[Matrix], &[Weight]) -> Matrix<Recording>,
        plain: impl Fn(NotRecording, &[Matrix], &[Weight]) -> Matrix,
    ) {
        for device in devices {
            let case = Case { device: *device, inputs, params: &[] };
            case.check(&self.expected(&case.stored()), &taped, &plain);
        }
    }

    /// Calls `visit` with each query of each head and its softmax over the keys.
    fn each_query(&self, x: &[Vec<f64>], mut visit: impl FnMut(&Head, usize, &[f64])) {
        for head in &self.heads {
            for i in 0..head.queries.rows.len() {
                let q = self.row(x, &head.queries, i);
                let score = |j: usize| {
                    let score = dot(q, self.row(x, &head.keys, j)) / (self.size as f64).sqrt();
                    (score + (head.added)(i, j)).exp()
                };
                let mut seen: Vec<f64> = (0..head.keys.rows.len()).map(score).collect();
                let sum: f64 = seen.iter().sum();
                for p in &mut seen {
                    *p /= sum;
                }
                visit(head, i, &seen);
            }
        }
    }

    fn row<'x>(&self, x: &'x [Vec<f64>], part: &Part, i: usize) -> &'x [f64] {
        &x[part.input][self.place(part, i)..][..self.size]
    }

    fn place(&self, part: &Part, i: usize) -> usize {
        (part.rows.start + i) * self.widths[part.input] + part.column
    }

    /// Where what a query reads lies in the result.
    fn result(&self, head: &Head, i: usize) -> usize {
        (head.queries.rows.start + i) * self.width + head.queries.column
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::pseudo_random;

    #[test]
    fn gradients_of_attention_are_those_of_its_values() {
        let heads = Heads { queries: 4, keys: 2, size: 2 };
        let shape = AttentionShape { queries: 2, keys: 3, heads: 2 };
        let near = |formula: &Attention, rows: &[usize]| {
            let x: Vec<Vec<f64>> = rows
                .iter()
                .zip(&formula.widths)
                .enumerate()
                .map(|(i, (rows, width))| {
                    let values = pseudo_random(rows * width, i as u64);
                    values.into_iter().map(f64::from).collect()
                })
                .collect();
            let found = formula.expected(&x).gradients;
            let expected = Expected::by_differences(x, |x| formula.values(x)).gradients;
            for (found, expected) in found.concat().into_iter().zip(expected.concat()) {
                assert!((found - expected).abs() < 1e-8, "{found} {expected}");
            }
        };
        near(&Attention::of_itself(&Sequences::of([4, 2]), heads, &Visible::sloped(4)), &[6]);
        near(&Attention::of_another(2, shape, 2), &[4, 6, 6]);
        near(&Attention::of_media(&[0..0, 0..2, 0..4, 2..4], 2, 3), &[4, 4, 4]);
    }
}
