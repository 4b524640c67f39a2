//! Sequences that lie one after the other in the rows of a matrix, each of a length of its own: padding is
//! left out, and so needs no mask.

use std::ops::Range;
use std::sync::Arc;

/// The rows of each sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sequences {
    /// Where the sequences end, in order.
    ends: Arc<[usize]>,
}

impl Sequences {
    /// Sequences of these lengths.
    pub(crate) fn of(lengths: impl IntoIterator<Item = usize>) -> Self {
        let ends = lengths.into_iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        });
        Self { ends: ends.collect() }
    }

    /// As many sequences of `length` rows as make `rows`.
    pub(crate) fn equal(rows: usize, length: usize) -> Self {
        Self::of(std::iter::repeat_n(length, rows / length))
    }

    /// Rows of all of them.
    pub(crate) fn rows(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The rows of each.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<usize>> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(self.ends.iter()).map(|(start, end)| start..*end)
    }

    /// The place of each row in its sequence.
    pub(crate) fn positions(&self) -> Arc<[usize]> {
        self.iter().flat_map(|rows| 0..rows.len()).collect()
    }
}

/// The rows of a batch `[B, L]` that are computed: of each sequence as many as matter, from its start on.
#[derive(Debug, Clone)]
pub(crate) struct KeptRows {
    /// Their numbers in the batch.
    rows: Vec<usize>,
    pub(crate) sequences: Sequences,
}

impl KeptRows {
    /// Of each sequence the first rows, at most `length`.
    pub(crate) fn first(lengths: impl IntoIterator<Item = usize>, length: usize) -> Self {
        let lengths: Vec<usize> = lengths.into_iter().collect();
        let rows = lengths.iter().enumerate().flat_map(|(b, n)| b * length..b * length + n);
        Self { rows: rows.collect(), sequences: Sequences::of(lengths) }
    }

    /// All of `n` rows.
    pub(crate) fn all(n: usize, length: usize) -> Self {
        Self { rows: (0..n).collect(), sequences: Sequences::equal(n, length) }
    }

    /// Of each sequence the rows up to the last that predicts a token, since none looks ahead; one row if no
    /// sequence predicts any.
    pub(crate) fn predicting(targets: &[Option<u32>], length: usize) -> Self {
        let needed = |targets: &[Option<u32>]| {
            targets.iter().rposition(Option::is_some).map_or(0, |last| last + 1)
        };
        let mut lengths: Vec<usize> = targets.chunks(length).map(needed).collect();
        if lengths.iter().all(|n| *n == 0) {
            lengths[0] = 1;
        }
        Self::first(lengths, length)
    }

    /// The values of these rows among those of all.
    pub(crate) fn of<T: Clone>(&self, all: &[T]) -> Vec<T> {
        self.rows.iter().map(|row| all[*row].clone()).collect()
    }

    /// The values of these rows in the places that they have among `n`, and 0 in the others.
    pub(crate) fn spread(&self, values: &[f32], n: usize) -> Vec<f32> {
        let mut all = vec![0.0; n];
        self.rows.iter().zip(values).for_each(|(row, value)| all[*row] = *value);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_follow_each_other_and_an_empty_one_takes_no_rows() {
        let all = Sequences::of([2, 0, 3]);
        assert_eq!(all.rows(), 5);
        assert_eq!(all.iter().collect::<Vec<_>>(), [0..2, 2..2, 2..5]);
        assert_eq!(*all.positions(), [0, 1, 0, 1, 2]);
        assert_eq!(Sequences::equal(6, 3), Sequences::of([3, 3]));
        assert_eq!(Sequences::of([]).rows(), 0);
    }

    #[test]
    fn rows_are_kept_up_to_the_last_that_predicts() {
        let (p, n) = (Some(7), None);
        let kept = KeptRows::predicting(&[p, p, n, n, n, n, n, n, n, p, p, n], 4);
        assert_eq!(kept.rows, [0, 1, 8, 9, 10]);
        assert_eq!(kept.sequences, Sequences::of([2, 0, 3]));
        let all: Vec<u32> = (0..12).collect();
        assert_eq!(kept.of(&all), [0, 1, 8, 9, 10]);
        let spread = kept.spread(&[1.0, 2.0, 3.0, 4.0, 5.0], 12);
        assert_eq!(spread, [1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0, 4.0, 5.0, 0.0]);
        assert_eq!(KeptRows::predicting(&[n; 8], 4).rows, [0]);
        assert_eq!(KeptRows::all(6, 3).sequences, Sequences::of([3, 3]));
    }
}
