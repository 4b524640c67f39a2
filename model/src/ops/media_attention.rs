//! Cross-attention from text to media: each token sees the latents of a range of neighbouring
//! images or videos, mostly of exactly one, or of none.
//!
//! The paper masks a full product of all tokens with all latents (appendix A.1.1). A token sees one
//! image at most, or in an ablation its image and all before it, so the same result comes from the
//! products of each run of tokens with its own images' latents: the work does not grow with the
//! number of images that are not seen. A token that sees none gets exactly zero.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::attention::{scale_of, softmax, softmax_backward};
use super::matmul::{Target, View, matmul_here};
use super::wide::wide;
use crate::buffer::Buffer;
use crate::tensor::{DeviceError, Matrix, Record, record};

/// Which images each row of text sees.
#[derive(Debug, Clone)]
pub(crate) struct MediaReads {
    /// Runs of neighbouring rows that see the same images: rows and latents, in the order of the
    /// rows.
    runs: Vec<(Range<usize>, Range<usize>)>,
}

impl MediaReads {
    /// Every row of text sees the images in the range that `images` gives, none if it is empty.
    /// `latents` is the number per image.
    pub(crate) fn new(images: impl Iterator<Item = Range<usize>>, latents: usize) -> Self {
        let mut runs: Vec<(Range<usize>, Range<usize>)> = Vec::new();
        for (row, images) in images.enumerate().filter(|(_, images)| !images.is_empty()) {
            let media = images.start * latents..images.end * latents;
            match runs.last_mut() {
                Some((rows, last)) if *last == media && rows.end == row => rows.end += 1,
                _ => runs.push((row..row + 1, media)),
            }
        }
        Self { runs }
    }

    /// Runs of neighbouring rows that see the same images: rows and latents.
    #[cfg(feature = "cuda")]
    pub(super) fn runs(&self) -> &[(Range<usize>, Range<usize>)] {
        &self.runs
    }
}

/// Attention of text `q` `[N, D]` to media `k`, `v` `[images * R, D]` by `reads`: `[N, D]`.
///
/// # Errors
/// When the device fails.
pub(crate) fn media_attention<T: Record>(
    q: Matrix<T>,
    k: Matrix,
    v: Matrix,
    reads: &Arc<MediaReads>,
    heads: usize,
) -> Result<Matrix<T>, DeviceError> {
    #[cfg(feature = "cuda")]
    if q.array().is_some() {
        return super::attention_cuda::media_attention(q, k, v, reads, heads);
    }
    let (q, tape) = q.split();
    let width = q.width();
    let core = Run { heads, width, scale: scale_of(width, heads) };
    let parts: Vec<Buffer> = reads
        .runs
        .par_iter()
        .map(|(rows, media)| core.forward(rows, media, q.values(), k.values(), v.values()))
        .collect();
    let mut out = Buffer::zeroed(q.values().len());
    for ((rows, _), part) in reads.runs.iter().zip(&parts) {
        out[rows.start * width..rows.end * width].copy_from_slice(part);
    }
    drop(parts);
    let reads = Arc::clone(reads);
    let wanted = q.wants_gradient() || k.wants_gradient() || v.wants_gradient();
    record(out, width, tape, wanted, move |grad_out, store| {
        let parts: Vec<[Buffer; 3]> = reads
            .runs
            .par_iter()
            .map(|(rows, media)| {
                core.backward(rows, media, &grad_out, [q.values(), k.values(), v.values()])
            })
            .collect();
        let mut grad_q = Buffer::zeroed(q.values().len());
        let mut grad_k = Buffer::zeroed(k.values().len());
        let mut grad_v = Buffer::zeroed(v.values().len());
        // In order, since several runs may see one image.
        for ((rows, media), [dq, dk, dv]) in reads.runs.iter().zip(&parts) {
            grad_q[rows.start * width..rows.end * width].copy_from_slice(dq);
            super::add_to(&mut grad_k[media.start * width..media.end * width], dk);
            super::add_to(&mut grad_v[media.start * width..media.end * width], dv);
        }
        q.give_gradient(store, grad_q)?;
        k.give_gradient(store, grad_k)?;
        v.give_gradient(store, grad_v)
    })
}

/// The attention of one run of rows to its latents.
#[derive(Debug, Clone, Copy)]
struct Run {
    heads: usize,
    width: usize,
    scale: f32,
}

impl Run {
    /// Row `row`, head `h` of `[_, D]`.
    fn view<'a>(&self, values: &'a [f32], row: usize, h: usize) -> View<'a> {
        View::rows(values, self.width).at(row, h * (self.width / self.heads))
    }

    /// Attention weights of `n` rows to `r` latents, each row summing to 1.
    fn weights(&self, n: usize, r: usize, q: View, k: View) -> Buffer {
        let mut scores = Buffer::unset(n * r);
        let target = Target::rows(&mut scores, r);
        matmul_here(n, self.width / self.heads, r, self.scale, q, k.t(), target);
        wide!(scores.chunks_exact_mut(r).for_each(softmax));
        scores
    }

    fn forward(
        &self,
        rows: &Range<usize>,
        media: &Range<usize>,
        q: &[f32],
        k: &[f32],
        v: &[f32],
    ) -> Buffer {
        let (n, r, size) = (rows.len(), media.len(), self.width / self.heads);
        let mut out = Buffer::unset(n * self.width);
        for h in 0..self.heads {
            let (q, k) = (self.view(q, rows.start, h), self.view(k, media.start, h));
            let weights = self.weights(n, r, q, k);
            let p = View::rows(&weights, r);
            let target = Target::rows(&mut out, self.width).at(0, h * size);
            matmul_here(n, r, size, 1.0, p, self.view(v, media.start, h), target);
        }
        out
    }

    /// Gradients of the run's rows of `q` `[n, D]` and, from this run, of its images' `k` and `v`
    /// `[r, D]`.
    fn backward(
        &self,
        rows: &Range<usize>,
        media: &Range<usize>,
        g: &[f32],
        [q, k, v]: [&[f32]; 3],
    ) -> [Buffer; 3] {
        let (n, r, size) = (rows.len(), media.len(), self.width / self.heads);
        let mut dq = Buffer::unset(n * self.width);
        let mut dk = Buffer::unset(r * self.width);
        let mut dv = Buffer::unset(r * self.width);
        let mut ds = Buffer::unset(n * r);
        for h in 0..self.heads {
            let text = |values| self.view(values, rows.start, h);
            let media = |values| self.view(values, media.start, h);
            let weights = self.weights(n, r, text(q), media(k));
            let p = View::rows(&weights, r);
            let into = |target| Target::rows(target, self.width).at(0, h * size);
            matmul_here(r, n, size, 1.0, p.t(), text(g), into(&mut dv));
            matmul_here(n, size, r, 1.0, text(g), media(v).t(), Target::rows(&mut ds, r));
            softmax_backward(&mut ds, &weights, r);
            let s = View::rows(&ds, r);
            matmul_here(n, r, size, self.scale, s, media(k), into(&mut dq));
            matmul_here(r, n, size, self.scale, s.t(), text(q), into(&mut dk));
        }
        [dq, dk, dv]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::formula::Attention;
    use crate::ops::gradient_check::{devices, pseudo_random};

    /// Two sequences of 4 tokens with 2 and 1 images of 3 latents; two tokens see none, one image
    /// is seen by two runs.
    fn reads() -> Arc<MediaReads> {
        let images = [0..0, 0..1, 1..2, 0..1, 2..3, 2..3, 0..0, 2..3];
        Arc::new(MediaReads::new(images.into_iter(), 3))
    }

    /// The same tokens, each seeing its image and those before it.
    fn reads_of_all_previous() -> Arc<MediaReads> {
        let images = [0..0, 0..1, 0..2, 0..2, 2..3, 2..3, 2..2, 2..3];
        Arc::new(MediaReads::new(images.into_iter(), 3))
    }

    #[test]
    fn values_and_gradients_equal_the_formula() {
        let inputs = [(8, 1), (9, 2), (9, 3)].map(|(rows, s)| (pseudo_random(rows * 4, s), 4));
        // Latents that each row sees, written out anew.
        let own = [0..0, 0..3, 3..6, 0..3, 6..9, 6..9, 0..0, 6..9];
        let all_previous = [0..0, 0..3, 0..6, 0..6, 6..9, 6..9, 0..0, 6..9];
        for (reads, seen) in [(reads(), own), (reads_of_all_previous(), all_previous)] {
            Attention::of_media(&seen, 2, 2).check(
                &devices(),
                &inputs,
                |t, x, _| {
                    let q = x[0].clone().with(t);
                    media_attention(q, x[1].clone(), x[2].clone(), &reads, 2).unwrap()
                },
                |t, x, _| {
                    let q = x[0].clone().with(t);
                    media_attention(q, x[1].clone(), x[2].clone(), &reads, 2).unwrap()
                },
            );
        }
    }

    #[test]
    fn a_token_reads_its_own_image_only() {
        let run = |image: usize| {
            let mut kv = pseudo_random(9 * 4, 2);
            kv[image * 12..(image + 1) * 12].fill(3.0);
            let matrix = |values: &[f32]| Matrix::constant(values.to_vec().into(), 4);
            let q = matrix(&pseudo_random(32, 1));
            media_attention(q, matrix(&kv), matrix(&kv), &reads(), 2).unwrap().values().to_vec()
        };
        let (first, second) = (run(0), run(1));
        assert!(first[..4].iter().all(|v| v.to_bits() == 0), "a token without image reads zero");
        assert_ne!(first[4..8], second[4..8]);
        assert_ne!(first[8..12], second[8..12]);
        assert_eq!(first[16..], second[16..], "the other sequence is untouched");
    }
}
