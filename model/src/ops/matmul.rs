//! Matrix products on slices: large ones on AVX2 through [`matmul_avx2`](super::matmul_avx2), all
//! others through the `gemm` crate, which chooses among AVX-512, AVX2 and less at run time.
//!
//! Bounds are checked here, once per product, before anything unsafe.

use gemm::Parallelism;

#[cfg(target_arch = "x86_64")]
use super::matmul_avx2;

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

    /// Whether rows or columns lie without gaps.
    #[cfg(target_arch = "x86_64")]
    fn is_dense(&self) -> bool {
        self.row_stride == 1 || self.col_stride == 1
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

/// Longest sum that is added to a result at once. It decides the rounding, and must be the same in
/// all kernels: the number of rows chooses the kernel, and a row must not depend on the others.
/// `gemm` alone would cut at 512 or, with other caches, later.
const LONGEST_SUM: usize = 512;

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

/// As [`matmul`], through `gemm` in any case: what the bench compares with.
#[cfg(feature = "ops-bench")]
pub(super) fn matmul_by_gemm(
    m: usize,
    k: usize,
    n: usize,
    scale: f32,
    a: View,
    b: View,
    target: Target,
) {
    product_by(Kernels::Gemm, (m, k, n), scale, a, b, target, rayon::current_num_threads());
}

/// Who makes a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernels {
    /// The fastest for these sizes on this processor.
    Fastest,
    #[cfg(any(test, feature = "ops-bench"))]
    Gemm,
    /// Those of AVX2 wherever they run.
    #[cfg(test)]
    Avx2,
}

#[cfg(target_arch = "x86_64")]
impl Kernels {
    fn are_avx2(self, m: usize, k: usize, n: usize) -> bool {
        match self {
            Self::Fastest => matmul_avx2::is_best(m, k, n),
            #[cfg(any(test, feature = "ops-bench"))]
            Self::Gemm => false,
            #[cfg(test)]
            Self::Avx2 => matmul_avx2::is_possible(),
        }
    }
}

fn product(
    sizes: (usize, usize, usize),
    scale: f32,
    a: View,
    b: View,
    target: Target,
    threads: usize,
) {
    product_by(Kernels::Fastest, sizes, scale, a, b, target, threads);
}

#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(unused_variables, reason = "elsewhere there is one kind of kernels")
)]
fn product_by(
    kernels: Kernels,
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
    assert!(m == 1 || row_stride >= n, "rows of a product overlap");
    let longest = k.div_ceil(k.div_ceil(LONGEST_SUM));
    #[cfg(target_arch = "x86_64")]
    if kernels.are_avx2(m, k, n) && a.is_dense() && b.is_dense() {
        let start = out.as_mut_ptr().wrapping_add(offset);
        let results = matmul_avx2::Results { start, row_stride, scale, add };
        #[expect(unsafe_code, reason = "the product writes through a raw pointer")]
        // SAFETY: the processor was looked at; the last assertions bound what is written and keep rows
        // apart, and the target is borrowed mutably.
        unsafe {
            matmul_avx2::product((m, k, n), longest, a, b, results, threads);
        }
        return;
    }
    let parallelism = if threads == 1 { Parallelism::None } else { Parallelism::Rayon(threads) };
    for first in (0..k).step_by(longest) {
        let (a, b) = (a.at(0, first), b.at(first, 0));
        #[expect(unsafe_code, reason = "gemm takes raw pointers")]
        // SAFETY: the three assertions above bound every element that is read or written; the target
        // is borrowed mutably, so it overlaps neither factor.
        unsafe {
            gemm::gemm(
                m,
                n,
                longest.min(k - first),
                out.as_mut_ptr().add(offset),
                1,
                row_stride as isize,
                add || first > 0,
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

    fn rows_and_transposed(values: &[f32], rows: usize, cols: usize) -> [View<'_>; 2] {
        [View::rows(values, cols), View::rows(values, rows).t()]
    }

    /// Two kinds of kernels, where this processor has both.
    fn all_kernels() -> Vec<Kernels> {
        #[cfg(target_arch = "x86_64")]
        if matmul_avx2::is_possible() {
            return vec![Kernels::Gemm, Kernels::Avx2];
        }
        eprintln!("no AVX2 here: its kernels are not tested");
        vec![Kernels::Gemm]
    }

    #[test]
    fn products_of_any_size_equal_the_definition_and_each_other() {
        // Nothing is a multiple of what a kernel takes at once. One sum is cut; so are the columns of
        // one product.
        for (m, k, n) in [(101, 601, 131), (7, 9, 2065), (1, 1, 1), (13, 96, 48)] {
            // Factors lie inside larger matrices.
            let a = pseudo_random((m + 3) * (k + 3), 1);
            let b = pseudo_random((k + 3) * (n + 3), 2);
            for a in rows_and_transposed(&a, m + 3, k + 3).map(|a| a.at(2, 1)) {
                for b in rows_and_transposed(&b, k + 3, n + 3).map(|b| b.at(1, 3)) {
                    let made = |kernels: Kernels, threads: usize| {
                        let mut c = vec![7.0; (m + 1) * (n + 3)];
                        let whole = Target::rows(&mut c, n + 3).adding().at(1, 2);
                        product_by(kernels, (m, k, n), -0.3, a, b, whole, threads);
                        c
                    };
                    let expected = made(Kernels::Gemm, 1);
                    for (i, row) in expected.chunks(n + 3).enumerate() {
                        for (j, found) in row.iter().enumerate() {
                            let inside = i > 0 && (2..n + 2).contains(&j);
                            let sum =
                                if inside { dot(k, a.at(i - 1, 0), b.at(0, j - 2)) } else { 0.0 };
                            assert!((f64::from(*found) - (7.0 - 0.3 * sum)).abs() < 1e-4);
                        }
                    }
                    for kernels in all_kernels() {
                        for threads in [1, 2, 64] {
                            assert_eq!(
                                made(kernels, threads),
                                expected,
                                "{kernels:?} on {threads}"
                            );
                        }
                    }
                }
            }
        }
    }

    /// First row times first column.
    fn dot(k: usize, a: View, b: View) -> f64 {
        let pair = |i| (a.values[a.at(0, i).offset], b.values[b.at(i, 0).offset]);
        (0..k).map(pair).map(|(a, b)| f64::from(a) * f64::from(b)).sum()
    }

    #[test]
    fn a_row_is_the_same_among_few_and_many() {
        let (m, n) = (200, 131);
        for k in [96, 512, 600, 1300] {
            let (a, b) = (pseudo_random(m * k, 1), pseudo_random(k * n, 2));
            for b in rows_and_transposed(&b, k, n) {
                let rows = |m: usize| {
                    let mut c = vec![0.5; m * n];
                    matmul(m, k, n, 0.3, View::rows(&a, k), b, Target::rows(&mut c, n).adding());
                    c
                };
                let many = rows(m);
                for few in [5, 7, 50, 95, 96, 103] {
                    assert_eq!(rows(few), many[..few * n], "{few} rows of {k}");
                }
            }
        }
    }

    #[test]
    fn the_number_of_threads_does_not_change_a_bit() {
        let (m, k, n) = (130, 257, 97);
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
