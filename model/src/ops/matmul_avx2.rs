//! Matrix products on processors with AVX2 and FMA: with the shapes of these models faster than through
//! the `gemm` crate, which makes the others (`benches/ops.rs` times both).
//!
//! The product is made of tiles of [`ROWS`] by [`COLS`] results, which fill the registers: 12 of the
//! 16 hold sums. Both factors are first copied into the order in which a tile reads them ("packed"),
//! the right one once for all threads, the left one by each thread for its own rows. The order of
//! additions depends on nothing but the length of the sums.

use std::arch::x86_64::{
    __m256, _MM_HINT_T0, _mm_prefetch, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_mul_ps,
    _mm256_permute2f128_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_storeu_ps,
    _mm256_unpackhi_ps, _mm256_unpacklo_ps,
};
use std::cell::RefCell;
use std::thread::LocalKey;

use rayon::prelude::*;

use super::matmul::View;

/// Rows of a tile.
const ROWS: usize = 6;
/// Columns of a tile: two registers.
const COLS: usize = 16;
/// Most tiles side by side for which columns are packed at once, so that they stay in the last cache.
const PANELS: usize = 128;
/// So many values are between packed rows of the left factor: rows of a power of two would all start in
/// one set of the first cache.
const LEFT_PADDING: usize = 8;
/// As many panels are packed together.
const AT_ONCE: usize = 8;
/// Least rows, columns and length of sums that are worth packing.
const WORTH_PACKING: usize = 96;
/// About as many tiles above each other are a thread's piece of work: their rows stay in the second
/// cache while the columns pass by.
const TILES: usize = 8;

/// A row of a tile, or of the columns that it reads.
type Row = [f32; COLS];

thread_local! {
    static LEFT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static RIGHT: RefCell<Vec<Row>> = const { RefCell::new(Vec::new()) };
}

/// Whether [`product`] runs here.
pub(super) fn is_possible() -> bool {
    std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
}

/// Whether [`product`] is the fastest way to `[m, k]` times `[k, n]` here: not with the wider registers
/// of AVX-512, nor where a value is used too seldom to be worth packing.
pub(super) fn is_best(m: usize, k: usize, n: usize) -> bool {
    m.min(k).min(n) >= WORTH_PACKING
        && is_possible()
        && !std::arch::is_x86_feature_detected!("avx512f")
}

/// Results, of which each task writes its own.
#[derive(Clone, Copy)]
pub(super) struct Results {
    /// Element `(0, 0)`.
    pub(super) start: *mut f32,
    pub(super) row_stride: usize,
    pub(super) scale: f32,
    /// True adds to what is there.
    pub(super) add: bool,
}

#[expect(unsafe_code, reason = "tasks write to one slice, which rows cannot be split from safely")]
// SAFETY: [`product`] gives each task tiles of its own.
unsafe impl Sync for Results {}

impl Results {
    /// Where element `(row, col)` lies.
    fn at(&self, row: usize, col: usize) -> *mut f32 {
        self.start.wrapping_add(row * self.row_stride + col)
    }
}

/// `out = scale * a b` (or `+=`), with `a` `[m, k]` and `b` `[k, n]`, none of them empty. In each
/// factor rows or columns must lie without gaps. Sums of up to `longest` products are added to a
/// result at once.
///
/// # Safety
/// The processor must have AVX2 and FMA; `out` must reach to element `(m - 1, n - 1)`, and nothing
/// else may read or write its rows' first `n` elements.
#[expect(unsafe_code, reason = "the caller vouches for processor and results")]
pub(super) unsafe fn product(
    (m, k, n): (usize, usize, usize),
    longest: usize,
    a: View,
    b: View,
    out: Results,
    threads: usize,
) {
    let tiles = m.div_ceil(ROWS);
    let widest = n.div_ceil(n.div_ceil(PANELS * COLS)).next_multiple_of(COLS);
    for first_col in (0..n).step_by(widest) {
        let cols = widest.min(n - first_col);
        let panels = cols.div_ceil(COLS);
        for first in (0..k).step_by(longest) {
            let depth = longest.min(k - first);
            let out = Results { add: out.add || first > 0, ..out };
            with_scratch(&RIGHT, panels * depth, |right| {
                let pack_some = |(i, packed): (usize, &mut [Row])| {
                    let done = i * AT_ONCE * COLS;
                    let part = b.at(first, first_col + done);
                    // SAFETY: the caller vouches for AVX2.
                    unsafe { pack_right(part, depth, cols - done, packed) };
                };
                if threads == 1 {
                    right.chunks_mut(AT_ONCE * depth).enumerate().for_each(pack_some);
                } else {
                    right.par_chunks_mut(AT_ONCE * depth).enumerate().for_each(pack_some);
                }
                let right = &*right;
                // Pieces of the same size, as many for each thread. Where there are not enough rows to
                // go round, the columns are cut, too.
                let pieces = tiles.div_ceil(TILES);
                let (row_pieces, col_pieces) = if pieces < threads {
                    (pieces, threads.div_ceil(pieces).min(panels))
                } else {
                    (pieces.next_multiple_of(threads), 1)
                };
                let piece = |i: usize| {
                    let (i, j) = (i / col_pieces, i % col_pieces);
                    let cut = |of: usize, i: usize, n: usize| of * i / n;
                    let rows = ROWS * cut(tiles, i, row_pieces)
                        ..m.min(ROWS * cut(tiles, i + 1, row_pieces));
                    let columns = cut(panels, j, col_pieces)..cut(panels, j + 1, col_pieces);
                    let right = &right[columns.start * depth..columns.end * depth];
                    let columns = COLS * columns.start..cols.min(COLS * columns.end);
                    let padded = rows.len().next_multiple_of(ROWS);
                    let stride = depth + LEFT_PADDING;
                    with_scratch(&LEFT, padded * stride, |left| {
                        let (taken, padding) = left.split_at_mut(rows.len() * stride);
                        padding.fill(0.0);
                        let start = out.at(rows.start, first_col + columns.start);
                        let out = Results { start, ..out };
                        // SAFETY: the caller vouches for AVX2, FMA and the results; pieces do not
                        // overlap.
                        unsafe {
                            pack_left(a.at(rows.start, first), depth, taken, stride);
                            multiply(left, right, depth, (rows.len(), columns.len()), out);
                        }
                    });
                };
                if threads == 1 {
                    (0..row_pieces * col_pieces).for_each(piece);
                } else {
                    (0..row_pieces * col_pieces).into_par_iter().for_each(piece);
                }
            });
        }
    }
}

/// Runs `work` with `n` values of any content, which the thread keeps for the next product.
fn with_scratch<T: Copy + Default>(
    kept: &'static LocalKey<RefCell<Vec<T>>>,
    n: usize,
    work: impl FnOnce(&mut [T]),
) {
    // Taken, not borrowed: a thread that waits for others may begin another product.
    let mut scratch = kept.take();
    if scratch.len() < n {
        scratch.resize(n, T::default());
    }
    work(&mut scratch[..n]);
    kept.set(scratch);
}

/// Results `[rows, cols]` from packed factors: `left` in tiles of `[ROWS, depth]`, `right` in tiles
/// of `[depth, COLS]`; what they hold beyond `rows` and `cols` is not written.
#[target_feature(enable = "avx2,fma")]
#[expect(unsafe_code, reason = "see `Results`")]
unsafe fn multiply(
    left: &[f32],
    right: &[Row],
    depth: usize,
    (rows, cols): (usize, usize),
    out: Results,
) {
    for (right, col) in right.chunks_exact(depth).zip((0..).step_by(COLS)) {
        let cols = COLS.min(cols - col);
        for (left, row) in left.chunks_exact(ROWS * (depth + LEFT_PADDING)).zip((0..).step_by(ROWS))
        {
            let rows = ROWS.min(rows - row);
            let out = Results { start: out.at(row, col), ..out };
            if (rows, cols) == (ROWS, COLS) {
                for row in 0..ROWS {
                    _mm_prefetch::<_MM_HINT_T0>(out.at(row, 0).cast());
                    _mm_prefetch::<_MM_HINT_T0>(out.at(row, COLS - 1).cast());
                }
                // SAFETY: all of the tile is the caller's.
                unsafe { tile(left, right, out) };
                continue;
            }
            let mut beside = [[0.0; COLS]; ROWS];
            let start = (&raw mut beside).cast();
            let whole = Results { start, row_stride: COLS, scale: 1.0, add: false };
            // SAFETY: it has room for a tile.
            unsafe { tile(left, right, whole) };
            for (row, sums) in beside[..rows].iter().enumerate() {
                // SAFETY: row and columns are the caller's.
                let to = unsafe { std::slice::from_raw_parts_mut(out.at(row, 0), cols) };
                for (to, sum) in to.iter_mut().zip(sums) {
                    // As `gemm` rounds.
                    *to = if out.add { out.scale.mul_add(*sum, *to) } else { out.scale * sum };
                }
            }
        }
    }
}

/// Puts `left` `[ROWS, depth]` times `right` `[depth, COLS]` into `out`, scaled, or adds it.
///
/// # Safety
/// `out` must have room for `[ROWS, COLS]` results, which nothing else may use.
#[target_feature(enable = "avx2,fma")]
#[inline]
#[expect(unsafe_code, reason = "see `Results`")]
unsafe fn tile(left: &[f32], right: &[Row], out: Results) {
    let depth = right.len();
    // The compiler keeps the sums in registers only if nothing in the loop can fail: no index.
    let (right, right_rest) = right.as_chunks::<4>();
    let rows: [_; ROWS] =
        std::array::from_fn(|row| left[row * (depth + LEFT_PADDING)..][..depth].as_chunks::<4>());
    let [r0, r1, r2, r3, r4, r5] = rows;
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    let left = r0.0.iter().zip(r1.0).zip(r2.0).zip(r3.0).zip(r4.0).zip(r5.0);
    for (right, (((((r0, r1), r2), r3), r4), r5)) in right.iter().zip(left) {
        for k in 0..4 {
            add(&mut sums, [r0[k], r1[k], r2[k], r3[k], r4[k], r5[k]], &right[k]);
        }
    }
    let left = r0.1.iter().zip(r1.1).zip(r2.1).zip(r3.1).zip(r4.1).zip(r5.1);
    for (right, (((((r0, r1), r2), r3), r4), r5)) in right_rest.iter().zip(left) {
        add(&mut sums, [*r0, *r1, *r2, *r3, *r4, *r5], right);
    }
    // Nor may they be looked at in more than one way: straight from there to the results.
    let scale = _mm256_set1_ps(out.scale);
    for (row, sums) in sums.into_iter().enumerate() {
        for (i, sum) in sums.into_iter().enumerate() {
            let to = out.at(row, 8 * i);
            // SAFETY: the caller vouches for the place.
            unsafe {
                let sum = if out.add {
                    _mm256_fmadd_ps(scale, sum, _mm256_loadu_ps(to))
                } else {
                    _mm256_mul_ps(scale, sum)
                };
                _mm256_storeu_ps(to, sum);
            }
        }
    }
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn add(sums: &mut [[__m256; 2]; ROWS], left: [f32; ROWS], right: &Row) {
    let right = [load(&right[..8]), load(&right[8..])];
    for (sums, left) in sums.iter_mut().zip(left) {
        let left = _mm256_set1_ps(left);
        for (sum, right) in sums.iter_mut().zip(right) {
            *sum = _mm256_fmadd_ps(left, right, *sum);
        }
    }
}

/// Copies `from` `[rows, cols]`, row by row.
#[target_feature(enable = "avx2")]
fn pack_left(from: View, cols: usize, to: &mut [f32], stride: usize) {
    let values = &from.values[from.offset..];
    if from.col_stride == 1 {
        for (row, to) in to.chunks_exact_mut(stride).enumerate() {
            to[..cols].copy_from_slice(&values[row * from.row_stride..][..cols]);
        }
    } else {
        transpose(values, from.col_stride, cols, to, stride);
    }
}

/// Copies `from` `[depth, cols]` in panels of [`COLS`], one after the other, as many as have room;
/// beyond `cols` with zeros.
#[target_feature(enable = "avx2")]
fn pack_right(from: View, depth: usize, cols: usize, to: &mut [Row]) {
    let values = &from.values[from.offset..];
    let cols = cols.min(to.len() / depth * COLS);
    if from.col_stride == 1 {
        // Along the rows of `from`: memory is slow in small pieces.
        for row in 0..depth {
            let (panels, rest) = values[row * from.row_stride..][..cols].as_chunks::<COLS>();
            let mut to = to[row..].iter_mut().step_by(depth);
            panels.iter().zip(&mut to).for_each(|(from, to)| *to = *from);
            if let Some(to) = to.next() {
                *to = [0.0; COLS];
                to[..rest.len()].copy_from_slice(rest);
            }
        }
        return;
    }
    for (panel, to) in to.chunks_exact_mut(depth).enumerate() {
        let done = panel * COLS;
        if cols < done + COLS {
            to.fill([0.0; COLS]);
        }
        let values = &values[done * from.col_stride..];
        transpose(values, from.col_stride, COLS.min(cols - done), to.as_flattened_mut(), COLS);
    }
}

/// The columns of a matrix, which lie `stride` apart in `from`, as columns of rows that lie
/// `to_stride` apart.
#[target_feature(enable = "avx2")]
fn transpose(from: &[f32], stride: usize, cols: usize, to: &mut [f32], to_stride: usize) {
    let rows = to.len() / to_stride;
    let (whole_rows, whole_cols) = (rows / 8 * 8, cols / 8 * 8);
    // Many rows at a time: each column is often in another page of memory, which the processor does not
    // foresee.
    for first_row in (0..whole_rows).step_by(64) {
        for col in (0..whole_cols).step_by(8) {
            let rows = first_row..whole_rows.min(first_row + 64);
            for next in 16..24 {
                for row in rows.clone().step_by(16) {
                    let at = from.as_ptr().wrapping_add((col + next) * stride + row);
                    _mm_prefetch::<_MM_HINT_T0>(at.cast());
                }
            }
            for row in rows.step_by(8) {
                let from_here = &from[col * stride + row..];
                transpose_8(from_here, stride, &mut to[row * to_stride + col..], to_stride);
            }
        }
    }
    for row in 0..rows {
        for col in if row < whole_rows { whole_cols } else { 0 }..cols {
            to[row * to_stride + col] = from[col * stride + row];
        }
    }
}

/// Transposes 8 by 8 values between rows that lie `stride` and `to_stride` apart.
#[target_feature(enable = "avx2")]
fn transpose_8(from: &[f32], stride: usize, to: &mut [f32], to_stride: usize) {
    let rows: [__m256; 8] = std::array::from_fn(|i| load(&from[i * stride..]));
    let pair = |i: usize| {
        let (x, y) = (rows[i], rows[i + 1]);
        (_mm256_unpacklo_ps(x, y), _mm256_unpackhi_ps(x, y))
    };
    let four = |i: usize| {
        let ((x0, x1), (y0, y1)) = (pair(i), pair(i + 2));
        [
            _mm256_shuffle_ps::<0x44>(x0, y0),
            _mm256_shuffle_ps::<0xEE>(x0, y0),
            _mm256_shuffle_ps::<0x44>(x1, y1),
            _mm256_shuffle_ps::<0xEE>(x1, y1),
        ]
    };
    for (i, (x, y)) in four(0).into_iter().zip(four(4)).enumerate() {
        store(_mm256_permute2f128_ps::<0x20>(x, y), &mut to[i * to_stride..]);
        store(_mm256_permute2f128_ps::<0x31>(x, y), &mut to[(i + 4) * to_stride..]);
    }
}

#[target_feature(enable = "avx2")]
fn load(from: &[f32]) -> __m256 {
    let from: &[f32; 8] = from[..8].try_into().expect("8 values");
    #[expect(unsafe_code, reason = "loads take raw pointers")]
    // SAFETY: 8 values are there.
    unsafe {
        _mm256_loadu_ps(from.as_ptr())
    }
}

#[target_feature(enable = "avx2")]
fn store(values: __m256, to: &mut [f32]) {
    let to: &mut [f32; 8] = (&mut to[..8]).try_into().expect("8 values");
    #[expect(unsafe_code, reason = "stores take raw pointers")]
    // SAFETY: there is room for 8 values.
    unsafe {
        _mm256_storeu_ps(to.as_mut_ptr(), values);
    }
}
