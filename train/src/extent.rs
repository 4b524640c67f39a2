//! How much there is of a batch, on all ranks together.

use std::collections::BTreeMap;

use flamingo_dataset::{Batch, CorruptRow, MERGED};
use serde::{Deserialize, Serialize};

use crate::collective::Collective;
use crate::error::TrainError;
use crate::run::Source;
use crate::stage::Stage;

/// What the shares of all ranks of a batch hold together.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Extent {
    /// What its mean loss is a mean of: see [`Stage::n_terms`].
    pub terms: u64,
    /// Tokens that are predicted.
    pub tokens: u64,
    /// Images and clips that are looked at.
    pub images: u64,
    /// Sequences.
    pub samples: u64,
    /// Rows of the corpora, by dataset, in the order of the whole batch.
    pub rows: BTreeMap<String, Vec<u64>>,
    /// Corrupt rows that others stand in for.
    pub corrupt: Vec<CorruptRow>,
}

impl Extent {
    /// That of one rank's share of a batch, of so many ranks.
    pub fn of(stage: &dyn Stage, batch: &Batch, sources: &[Source], n_ranks: usize) -> Self {
        Self {
            terms: stage.n_terms(batch),
            tokens: batch.n_predicted(),
            images: stage.n_images(batch),
            samples: batch.size as u64,
            rows: rows_by_dataset(batch, sources, n_ranks),
            corrupt: batch.corrupt.clone(),
        }
    }

    /// Rows of the corpora.
    pub fn n_rows(&self) -> u64 {
        self.rows.values().map(|rows| rows.len() as u64).sum()
    }

    /// Puts the share of the next rank to that of those before it.
    fn add(&mut self, next: Self) {
        self.terms += next.terms;
        self.tokens += next.tokens;
        self.images += next.images;
        self.samples += next.samples;
        for (name, rows) in next.rows {
            self.rows.entry(name).or_default().extend(rows);
        }
        self.corrupt.extend(next.corrupt);
    }
}

/// The extents of the batches of a step, of which this rank has these `own` shares.
///
/// # Errors
/// When another rank cannot be reached.
pub fn all_extents(ranks: &dyn Collective, own: Vec<Extent>) -> Result<Vec<Extent>, TrainError> {
    if ranks.is_alone() {
        return Ok(own);
    }
    let mut sums = vec![Extent::default(); own.len()];
    for of_rank in ranks.gather_values(&own)? {
        sums.iter_mut().zip(of_rank).for_each(|(sum, next)| sum.add(next));
    }
    Ok(sums)
}

/// The rows of a rank's share of a batch under the names of the datasets that they are of.
fn rows_by_dataset(
    batch: &Batch,
    sources: &[Source],
    n_ranks: usize,
) -> BTreeMap<String, Vec<u64>> {
    if batch.name != MERGED {
        return BTreeMap::from([(batch.name.clone(), batch.rows.clone())]);
    }
    let mut rows = batch.rows.iter().copied();
    let of_one = |source: &Source| {
        let share = source.batch_rows / n_ranks;
        (source.name.clone(), rows.by_ref().take(share).collect())
    };
    sources.iter().map(of_one).collect()
}
