//! Matrix products on slices, through the `gemm` crate (AVX2 or AVX-512, chosen at run time).
//!
//! The only unsafe code of the CPU path: bounds are checked here, once per product.

use gemm::Parallelism;

/// A matrix inside a slice: element `(i, j)` lies at `offset + i * row_stride + j * col_stride`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) offset: usize,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix of `width` columns.
    pub(crate) fn rows(values: &'a [f32], width: usize) -> Self {
        Self { values, offset: 0, row_stride: width, col_stride: 1 }
    }

    /// The same matrix transposed.
    pub(crate) fn t(self) -> Self {
        Self { row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// The same matrix starting at row `row` and column `col`.
    pub(crate) fn at(self, row: usize, col: usize) -> Self {
        Self { offset: self.offset + row * self.row_stride + col * self.col_stride, ..self }
    }

    fn last(&self, rows: usize, cols: usize) -> usize {
        self.offset + (rows - 1) * self.row_stride + (cols - 1) * self.col_stride
    }
}

/// Where a product goes: element `(i, j)` at `offset + i * row_stride + j`.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    pub(crate) values: &'a mut [f32],
    pub(crate) offset: usize,
    pub(crate) row_stride: usize,
    /// True adds to what is there.
    pub(crate) add: bool,
}

impl<'a> Target<'a> {
    /// Overwrites a row-major matrix of `width` columns.
    pub(crate) fn rows(values: &'a mut [f32], width: usize) -> Self {
        Self { values, offset: 0, row_stride: width, add: false }
    }

    /// Adds to what the target holds.
    pub(crate) fn adding(self) -> Self {
        Self { add: true, ..self }
    }

    /// The same target starting at row `row` and column `col`.
    pub(crate) fn at(self, row: usize, col: usize) -> Self {
        Self { offset: self.offset + row * self.row_stride + col, ..self }
    }
}

/// Products below this many multiplications are not worth waking other threads for.
const PARALLEL_FROM: usize = 1 << 18;

/// `target = scale * a b` (or `+=`), with `a` `[m, k]` and `b` `[k, n]`, on all threads if it is
/// large.
///
/// # Panics
/// If a matrix reaches beyond its slice: a bug in the calling operation.
pub(crate) fn matmul(m: usize, k: usize, n: usize, scale: f32, a: View, b: View, target: Target) {
    let threads = if m * k * n < PARALLEL_FROM { 1 } else { rayon::current_num_threads() };
    product((m, k, n), scale, a, b, target, threads);
}

/// As [`matmul`], on the calling thread alone: for use inside loops that are parallel already.
pub(crate) fn matmul_here(
    m: usize,
    k: usize,
    n: usize,
    scale: f32,
    a: View,
    b: View,
    target: Target,
) {
    product((m, k, n), scale, a, b, target, 1);
}

fn product(
    (m, k, n): (usize, usize, usize),
    scale: f32,
    a: View,
    b: View,
    target: Target,
    threads: usize,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(k > 0, "a product needs a common dimension");
    assert!(a.last(m, k) < a.values.len(), "left factor reaches beyond its slice");
    assert!(b.last(k, n) < b.values.len(), "right factor reaches beyond its slice");
    let Target { values: out, offset, row_stride, add } = target;
    let last = offset + (m - 1) * row_stride + n - 1;
    assert!(last < out.len(), "product reaches beyond its slice");
    let parallelism = if threads == 1 { Parallelism::None } else { Parallelism::Rayon(threads) };
    #[expect(unsafe_code, reason = "gemm takes raw pointers")]
    // SAFETY: the three assertions above bound every element that is read or written; the target is
    // borrowed mutably, so it overlaps neither factor.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr().add(offset),
            1,
            row_stride as isize,
            add,
            a.values.as_ptr().add(a.offset),
            a.col_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr().add(b.offset),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0_f32,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::pseudo_random;

    #[test]
    fn products_of_parts_and_transposes_equal_the_definition() {
        let (m, k, n) = (5, 7, 4);
        let a = pseudo_random(m * 9, 1); // [5, 9], columns 2.. are used
        let b = pseudo_random(n * k, 2); // [4, 7], used transposed
        let mut c = vec![1.0; m * n];
        matmul(
            m,
            k,
            n,
            0.5,
            View::rows(&a, 9).at(0, 2),
            View::rows(&b, k).t(),
            Target::rows(&mut c, n).adding(),
        );
        for i in 0..m {
            for j in 0..n {
                let dot: f32 = (0..k).map(|x| a[i * 9 + 2 + x] * b[j * k + x]).sum();
                assert!((c[i * n + j] - 1.0 - 0.5 * dot).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn the_number_of_threads_does_not_change_a_bit() {
        let (m, k, n) = (130, 257, 67);
        let (a, b) = (pseudo_random(m * k, 3), pseudo_random(k * n, 4));
        let mut one = vec![0.0; m * n];
        let mut many = one.clone();
        product((m, k, n), 1.0, View::rows(&a, k), View::rows(&b, n), Target::rows(&mut one, n), 1);
        product(
            (m, k, n),
            1.0,
            View::rows(&a, k),
            View::rows(&b, n),
            Target::rows(&mut many, n),
            3,
        );
        assert_eq!(one, many);
    }
}
