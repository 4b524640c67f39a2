//! The order in which one epoch reads a corpus, as a function that can be asked for any position.
//!
//! The corpus is a ring, cut at a random row into blocks of neighbouring rows. A permutation puts the
//! blocks in order; a number of them in a row make a group, and another permutation mixes the rows of
//! each group. So a reader has few blocks at work at a time, and a store at a distance is read block
//! by block, while a batch still draws from the whole group. Nothing is stored: a resumed run needs
//! only its position.

use serde::{Deserialize, Serialize};

use crate::keyed_random::KeyedRandom;
use crate::permutation::Permutation;

/// How far rows are mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shuffle {
    /// Neighbouring rows that are read about the same time.
    pub block_rows: u64,
    /// Blocks whose rows are mixed. Larger groups mix better and keep more blocks at work.
    pub group_blocks: u64,
}

impl Default for Shuffle {
    fn default() -> Self {
        Self { block_rows: 256, group_blocks: 64 }
    }
}

/// The order of one epoch.
#[derive(Debug, Clone)]
pub struct EpochOrder {
    n_rows: u64,
    shuffle: Shuffle,
    /// The row at which the ring is cut.
    cut: u64,
    /// The order of the blocks that are not shorter than the others; none where there is no such block.
    blocks: Option<Permutation>,
    n_full: u64,
    key: u64,
}

/// Purposes that draw from streams of their own.
const CUT_STREAM: u64 = 0;
const BLOCK_STREAM: u64 = 1;
const GROUP_STREAM: u64 = 2;

impl EpochOrder {
    /// The order of `0..n_rows` that `key` names, e.g. (corpus, seed, epoch).
    ///
    /// # Panics
    /// When there are no rows, or blocks or groups of none.
    pub fn new(n_rows: u64, shuffle: Shuffle, key: &[u64]) -> Self {
        assert!(n_rows > 0, "an order needs a row");
        assert!(shuffle.block_rows > 0 && shuffle.group_blocks > 0, "{shuffle:?}");
        let key = KeyedRandom::new(key).next_u64();
        let n_full = n_rows / shuffle.block_rows;
        let cut = KeyedRandom::new(&[key, CUT_STREAM]).below(n_rows as usize) as u64;
        let block_key = KeyedRandom::new(&[key, BLOCK_STREAM]).next_u64();
        let blocks = (n_full > 0).then(|| Permutation::new(n_full, block_key));
        Self { n_rows, shuffle, cut, blocks, n_full, key }
    }

    /// The row at a position below the number of rows.
    ///
    /// # Panics
    /// When the position is not.
    pub fn row(&self, position: u64) -> u64 {
        assert!(position < self.n_rows, "position {position} of {}", self.n_rows);
        let Shuffle { block_rows, group_blocks } = self.shuffle;
        let group_rows = block_rows.saturating_mul(group_blocks);
        let group = position / group_rows;
        let first = group * group_rows;
        let key = KeyedRandom::new(&[self.key, GROUP_STREAM, group]).next_u64();
        let mixed = Permutation::new(group_rows.min(self.n_rows - first), key).at(position - first);
        let slot = group * group_blocks + mixed / block_rows;
        // The last block, which may be shorter, stays the last: the ring is cut anywhere.
        let block = match &self.blocks {
            Some(blocks) if slot < self.n_full => blocks.at(slot),
            _ => slot,
        };
        (block * block_rows + mixed % block_rows + self.cut) % self.n_rows
    }

    /// How well the order mixes, seen by batches of `batch` rows. Reads the whole order.
    pub fn quality(&self, batch: u64) -> ShuffleQuality {
        let n = self.n_rows;
        let mut positions = vec![0; n as usize];
        let mut moved = 0;
        for position in 0..n {
            let row = self.row(position);
            positions[row as usize] = position;
            moved += row.abs_diff(position);
        }
        let batch_of = |position: &u64| position / batch.max(1);
        let together = positions.windows(2).filter(|pair| batch_of(&pair[0]) == batch_of(&pair[1]));
        let together = together.count() as f64;
        let share = if n > 1 { together / (n - 1) as f64 } else { 0.0 };
        ShuffleQuality {
            displacement: moved as f64 / (n as f64 * n as f64),
            neighbours: share,
            neighbours_uniform: if n > 1 {
                (batch.min(n) - 1) as f64 / (n - 1) as f64
            } else {
                0.0
            },
        }
    }
}

/// How well an order mixes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ShuffleQuality {
    /// Mean distance of a row's position from its place in the corpus, as a share of the corpus: 1/3 for
    /// a uniform permutation.
    pub displacement: f64,
    /// Share of the pairs of neighbouring rows that land in one batch.
    pub neighbours: f64,
    /// The same share of a uniform permutation.
    pub neighbours_uniform: f64,
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_row_comes_exactly_once(
            n in 1_u64..700, block_rows in 1_u64..40, group_blocks in 1_u64..9, key: u64,
        ) {
            let order = EpochOrder::new(n, Shuffle { block_rows, group_blocks }, &[key]);
            let mut rows: Vec<u64> = (0..n).map(|position| order.row(position)).collect();
            rows.sort_unstable();
            prop_assert_eq!(rows, (0..n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_group_draws_from_few_blocks_and_mixes_them() {
        let shuffle = Shuffle { block_rows: 16, group_blocks: 8 };
        let n = 16 * 8 * 10 + 5;
        let order = EpochOrder::new(n, shuffle, &[3]);
        for group in 0..10 {
            let rows: Vec<u64> = (group * 128..(group + 1) * 128).map(|p| order.row(p)).collect();
            // Blocks are counted from the cut of the ring.
            let block = |row: &u64| (row + n - order.cut) % n / 16;
            assert_eq!(rows.iter().map(block).collect::<HashSet<_>>().len(), 8);
            let stays = rows.windows(2).filter(|pair| block(&pair[0]) == block(&pair[1])).count();
            assert!(stays < 40, "{stays} of 127 rows follow one of their block");
        }
    }

    #[test]
    fn keys_give_unrelated_orders() {
        let shuffle = Shuffle { block_rows: 10, group_blocks: 10 };
        let [a, b] = [[1, 2], [1, 3]].map(|key| EpochOrder::new(3000, shuffle, &key));
        let same = (0..3000).filter(|&p| a.row(p) == b.row(p)).count();
        assert!(same < 12, "{same} of 3000 places agree");
    }

    #[test]
    fn quality_is_that_of_a_uniform_order_where_one_group_holds_all() {
        let uniform = EpochOrder::new(16_384, Shuffle::default(), &[5]).quality(64);
        assert!((uniform.displacement - 1.0 / 3.0).abs() < 0.01, "{uniform:?}");
        let ratio = uniform.neighbours / uniform.neighbours_uniform;
        assert!((0.6..1.5).contains(&ratio), "{uniform:?}");
        // Ten groups: rows still go anywhere, neighbours meet ten times as often.
        let grouped = Shuffle { block_rows: 64, group_blocks: 26 };
        let grouped = EpochOrder::new(16_384, grouped, &[5]).quality(64);
        assert!((grouped.displacement - 1.0 / 3.0).abs() < 0.05, "{grouped:?}");
        let ratio = grouped.neighbours / grouped.neighbours_uniform;
        assert!((6.0..14.0).contains(&ratio), "{grouped:?}");
        let sorted = EpochOrder::new(1000, Shuffle { block_rows: 1000, group_blocks: 1 }, &[5]);
        assert!(sorted.quality(1).neighbours < f64::EPSILON);
    }
}
