//! How much gated cross-attention adds to the text states that it is added to: whether it is used at
//! all, which the gates alone (paper, figure 6) do not tell.

use std::ops::AddAssign;

use rayon::prelude::*;

use crate::tensor::{DeviceError, Matrix};

/// What one gated branch adds in some rows, as sums of squares over them and the width.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Addition {
    /// Of what the branch adds, its gate included.
    pub added: f64,
    /// Of the states that it is added to.
    pub onto: f64,
}

/// What one block adds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GateSums {
    /// `tanh(alpha) * xattn(y)` onto `y`.
    pub attention: Addition,
    /// `tanh(beta) * ffw(y)` onto `y` after the attention; none in a block without a feed-forward.
    pub feed_forward: Option<Addition>,
}

impl Addition {
    /// Of `branch` `[N, D]` times `gate` onto `y` `[N, D]`, in the `counted` of their `N` rows. In f64, in an
    /// order that does not depend on the number of threads.
    pub(crate) fn of(
        branch: &Matrix,
        gate: f64,
        y: &Matrix,
        counted: &[bool],
    ) -> Result<Self, DeviceError> {
        let [branch, onto] = [branch, y].map(|matrix| square_sum(matrix, counted));
        Ok(Self { added: gate * gate * branch?, onto: onto? })
    }

    /// Root mean square of what is added over that of what it is added to. Not a number where no row
    /// counts.
    pub fn ratio(&self) -> f64 {
        (self.added / self.onto).sqrt()
    }
}

impl AddAssign for Addition {
    fn add_assign(&mut self, other: Self) {
        self.added += other.added;
        self.onto += other.onto;
    }
}

impl AddAssign for GateSums {
    fn add_assign(&mut self, other: Self) {
        self.attention += other.attention;
        match (&mut self.feed_forward, other.feed_forward) {
            (Some(sum), Some(other)) => *sum += other,
            (sum, other) => *sum = sum.or(other),
        }
    }
}

fn square_sum(matrix: &Matrix, counted: &[bool]) -> Result<f64, DeviceError> {
    let values = matrix.to_vec()?;
    let rows = values.par_chunks(matrix.width()).zip(counted).filter(|(_, counted)| **counted);
    let square = |value: &f32| f64::from(*value) * f64::from(*value);
    let sums: Vec<f64> = rows.map(|(row, _)| row.iter().map(square).sum()).collect();
    Ok(sums.iter().sum())
}
