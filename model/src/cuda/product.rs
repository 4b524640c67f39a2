//! A matrix product as it is asked for.

use super::Kind;

/// One factor, row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Factor {
    /// Where its first value lies.
    pub(crate) address: u64,
    /// Values from one row to the next.
    pub(crate) stride: usize,
    /// Whether the factor is the transpose of what lies there.
    pub(crate) transposed: bool,
    /// f32 or bf16; the same for both factors.
    pub(crate) kind: Kind,
}

/// `out = alpha * left * right + beta * add + bias`, all row-major: `left` `[rows, inner]`, `right`
/// `[inner, columns]`, `add` and `out` `[rows, columns]`, `bias` `[columns]`. Sums are f32.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product {
    pub(crate) rows: usize,
    pub(crate) inner: usize,
    pub(crate) columns: usize,
    pub(crate) left: Factor,
    pub(crate) right: Factor,
    pub(crate) alpha: f32,
    /// Address of what is added, in the format of the result; `out` itself adds to it.
    pub(crate) add: Option<u64>,
    /// Address of the bias, in the format of the result.
    pub(crate) bias: Option<u64>,
    pub(crate) out: u64,
    /// Values from one row of the result to the next, and of what is added.
    pub(crate) out_stride: usize,
    pub(crate) out_kind: Kind,
}
