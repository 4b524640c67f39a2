//! One partition of a run that several machines share: `--index 2/16` works on every sixteenth item
//! and writes a corpus of its own below the output. There is no coordinator: whoever finds all
//! partitions finished joins them, and all who find that write the same bytes.

use std::fmt;
use std::str::FromStr;

use flamingo_dataset::{CorpusStore, MANIFEST_FILE, Manifest};

use crate::error::IngestError;
use crate::identity::RunIdentity;
use crate::output::{self, PLAN_FILE, RUN_FILE};
use crate::plan::BuildPlan;
use crate::report;

/// Most partitions of a run.
const PARTITIONS_MAX: u32 = 100_000;
/// Inputs are dealt out whole where there are this many for each partition.
const FILES_EACH_MIN: usize = 4;

/// Partition `index` of `of`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    index: u32,
    of: u32,
}

impl FromStr for Partition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(index, of)| {
            Some(Self { index: index.parse().ok()?, of: of.parse().ok()? })
        });
        match numbers {
            Some(Self { of, .. }) if of > PARTITIONS_MAX => {
                Err(format!("{of} partitions, expected at most {PARTITIONS_MAX}"))
            }
            Some(partition) if partition.index < partition.of => Ok(partition),
            _ => {
                Err("expected INDEX/COUNT with an index from 0 to COUNT - 1, e.g. 0/16".to_owned())
            }
        }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

impl Partition {
    /// Whether item or input `n` belongs to it.
    pub fn has(self, n: u64) -> bool {
        n % u64::from(self.of) == u64::from(self.index)
    }

    /// How many of `n` items belong to it.
    pub fn share(self, n: u64) -> u64 {
        let (index, of) = (u64::from(self.index), u64::from(self.of));
        (n + of - 1 - index) / of
    }

    /// Whether inputs are dealt out whole, which saves reading each of them everywhere; else items.
    pub fn deals_files(self, n_files: usize) -> bool {
        n_files >= FILES_EACH_MIN.saturating_mul(self.of as usize)
    }

    /// Its folder below the output. Sorted by name, partitions are in order.
    pub fn folder(self) -> String {
        folder(self.index, self.of)
    }

    /// Where it writes.
    pub fn location(self, out: &str) -> String {
        format!("{}/{}", out.trim_end_matches('/'), self.folder())
    }

    /// Finds out whether something else lies at `out`: a whole corpus, or a run with another number
    /// of partitions.
    ///
    /// # Errors
    /// With the first name that is foreign.
    pub fn check_out(self, out: &str) -> Result<(), IngestError> {
        let store = CorpusStore::create(out)?;
        let of = format!("-of-{:05}", self.of);
        let joined = [MANIFEST_FILE, PLAN_FILE, RUN_FILE, report::REPORT_FILE];
        for name in store.list("")? {
            let ours = match name.split_once('/') {
                Some((folder, _)) => folder.starts_with("part-") && folder.ends_with(&of),
                None => joined.contains(&name.as_str()),
            };
            if !ours {
                return Err(IngestError::OutputForeign { out: out.to_owned(), name });
            }
        }
        Ok(())
    }

    /// Joins the partitions at `out` if all of them are finished: one corpus over all their shards.
    ///
    /// # Errors
    /// When a partition was made of other inputs or by another plan, nothing was kept by any, or the
    /// store fails.
    pub fn join(
        self,
        out: &str,
        identity: &RunIdentity,
        plan: &BuildPlan,
    ) -> Result<Option<Manifest>, IngestError> {
        let store = CorpusStore::open(out)?;
        let mut shards = Vec::new();
        for index in 0..self.of {
            let folder = folder(index, self.of);
            let part = format!("{}/{folder}", out.trim_end_matches('/'));
            if !store.exists(&format!("{folder}/{MANIFEST_FILE}"))? {
                return Ok(None);
            }
            let run: RunIdentity = output::read_json(&store, &format!("{folder}/{RUN_FILE}"))?;
            let expected = Self { index, of: self.of }.to_string();
            identity.with_partition(Some(expected)).expect(&part, &run)?;
            let manifest =
                Manifest::parse(&part, &store.get(&format!("{folder}/{MANIFEST_FILE}"))?)?;
            shards.extend(manifest.shards.into_iter().map(|mut shard| {
                shard.file = format!("{folder}/{}", shard.file);
                shard
            }));
        }
        let manifest = Manifest::new(identity.kind, identity.plan_sha256.clone(), shards);
        if manifest.rows == 0 {
            let reasons = format!("see rejects/ in its {} partitions", self.of);
            return Err(IngestError::NothingKept { n_items: 0, reasons });
        }
        output::write_json(&store, RUN_FILE, &identity.with_partition(None))?;
        store.put(PLAN_FILE, plan.to_toml(identity.kind).into())?;
        report::write(&store, manifest.clone())?;
        manifest.write(&store)?;
        Ok(Some(manifest))
    }
}

fn folder(index: u32, of: u32) -> String {
    format!("part-{index:05}-of-{of:05}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_below_its_count() {
        let partition: Partition = "2/16".parse().unwrap();
        assert_eq!(partition.to_string(), "2/16");
        assert_eq!(partition.location("s3://b/x/"), "s3://b/x/part-00002-of-00016");
        for wrong in ["", "3", "16/16", "1/0", "-1/2", "a/b", "0/100001", "0/1/2"] {
            assert!(wrong.parse::<Partition>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_item_belongs_to_one_partition() {
        for (of, n) in [(1, 5), (3, 10), (4, 2), (7, 0)] {
            let all: Vec<_> = (0..of).map(|index| Partition { index, of }).collect();
            for item in 0..n {
                assert_eq!(all.iter().filter(|partition| partition.has(item)).count(), 1);
            }
            let shares: Vec<_> = all.iter().map(|partition| partition.share(n)).collect();
            let counts: Vec<_> = all
                .iter()
                .map(|partition| (0..n).filter(|&item| partition.has(item)).count() as u64)
                .collect();
            assert_eq!(shares, counts);
        }
    }

    #[test]
    fn files_are_dealt_out_where_there_are_many() {
        let partition: Partition = "0/4".parse().unwrap();
        assert!(partition.deals_files(16) && !partition.deals_files(15));
    }
}
