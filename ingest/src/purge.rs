//! Takedown: documents and images are taken out of a finished corpus by address, domain or hash, and
//! stay out.
//!
//! What was asked for is kept in `purged/`, with what it removed and when: runs and retries that
//! write to the same corpus leave such things out, see [`Purged`]. Only shards that hold something
//! to remove are written again, under new names; the others keep their bytes. The manifest is
//! replaced when all new shards are there, and old shards go after that: whenever a purge is cut
//! off, the corpus is the old one or the new one, and the same command (or one without anything to
//! remove) ends what was begun.

mod row;
mod tables;
mod targets;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use flamingo_dataset::{
    Corpus, CorpusKind, CorpusStore, Manifest, Row, ShardEntry, encode_shard, sha256_hex,
};

use crate::error::IngestError;
use crate::output::{PLAN_FILE, RUN_FILE};
use crate::plan::BuildPlan;
use crate::reject::{DropReason, Stage};
use crate::report;
use crate::retry::COMMIT;
use crate::source::is_url;

pub use row::{Applied, apply};
pub use tables::{Record, schema};
pub use targets::{By, Target, Targets};

/// Folder of what was purged.
pub const PURGED: &str = "purged";

/// What one purge does or did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Rows that are gone.
    pub rows: u64,
    /// Images that are gone from rows that stay.
    pub images: u64,
    /// Documents that lost an image and stay.
    pub rewritten: u64,
    /// Shards that are written again or gone.
    pub shards: u64,
    /// Shards of the corpus before.
    pub of_shards: u64,
    /// Rows of the tables beside the shards that are gone.
    pub table_rows: u64,
    /// Targets that are new in `purged/`.
    pub recorded: u64,
    /// Targets of this call of which the corpus has nothing.
    pub not_found: Vec<String>,
}

/// Whether anything is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Remove.
    Remove,
    /// Only tell what would be removed.
    DryRun,
}

/// Removes what `targets` name from the corpus at `location`, and what earlier purges that were cut
/// off left there.
///
/// # Errors
/// When there is no finished corpus, another purge is at work, or the store cannot be read or written.
pub fn purge(location: &str, targets: &Targets, mode: Mode) -> Result<Outcome, IngestError> {
    let corpus = Corpus::open(location)?;
    let store = CorpusStore::open(location)?;
    if !store.list("journal")?.is_empty() || store.exists(COMMIT)? {
        return Err(IngestError::CorpusBusy { corpus: location.to_owned() });
    }
    let _lock = lock(location)?;
    let recorded = Targets::recorded(&store)?;
    let new = targets.without(&recorded);
    let all = recorded.with(targets);
    let job =
        Job { corpus: &corpus, store: &store, targets: &all, images_min: images_min(&store)? };
    let mut records = Vec::new();
    let mut outcome = Outcome {
        of_shards: corpus.manifest().shards.len() as u64,
        recorded: new.len() as u64,
        ..Outcome::default()
    };
    let shards = job.shards(mode, &mut records, &mut outcome)?;
    let rows = records.iter().filter(|record| record.is_row());
    let removed: BTreeSet<String> = rows.filter_map(|record| record.key.clone()).collect();
    let tables = tables::plan(&store, &all, &removed, &mut records)?;
    outcome.table_rows = tables.n_rows;
    outcome.not_found = targets.not_among(&records);
    if mode == Mode::DryRun || (new.is_empty() && records.is_empty()) {
        return Ok(outcome);
    }
    tables::record(&store, &new, &records, now_us())?;
    let old = corpus.manifest();
    let manifest = Manifest::new(old.kind, old.plan_sha256.clone(), shards);
    if manifest != *old {
        // Partitions first: whoever joins them again then writes the new manifest.
        write_partitions(&store, &manifest)?;
        manifest.write(&store)?;
    }
    tables.write(&store)?;
    sweep(&store, &manifest)?;
    report::write(&store, manifest)?;
    Ok(outcome)
}

/// Says so where a purge was cut off before it had removed everything.
///
/// # Errors
/// When the store cannot be read.
pub fn note_unfinished(
    store: &CorpusStore,
    manifest: &Manifest,
    notes: &mut Vec<String>,
) -> Result<(), IngestError> {
    let targets = Targets::recorded(store)?;
    if targets.is_empty() {
        return Ok(());
    }
    let mut n = 0;
    for entry in &manifest.shards {
        // A shard that cannot be read is a problem of its own.
        n += u64::from(row::has_target(store, manifest.kind, entry, &targets).unwrap_or(false));
    }
    if n > 0 {
        notes.push(format!(
            "{n} shards hold what was to be purged: a purge was cut off, run `purge` again"
        ));
    }
    Ok(())
}

/// Takes what was purged out of something that is about to be written, also out of what is told of it
/// in the tables. What is left out is a reject that does not say what it was.
pub fn leave_out(targets: &Targets, outcome: &mut crate::outcome::Outcome, images_min: u64) {
    let is_purged = |url: Option<&String>| url.is_some_and(|url| targets.of_url(url).is_some());
    outcome.rejects.retain(|reject| !is_purged(reject.url.as_ref()));
    outcome.figures.retain(|figures| !is_purged(figures.url.as_ref()));
    for row in std::mem::take(&mut outcome.rows) {
        let origin = row::origin(&row);
        let applied = apply(targets, row, images_min);
        outcome.rows.extend(applied.row);
        for record in applied.removed {
            let words = format!("{} by {}", record.what, record.target.by.name());
            let drop = DropReason::detail("purged", words);
            outcome.rejects.push(drop.at(Stage::OptOut, &origin, None));
            if record.is_row() {
                outcome.figures.retain(|figures| Some(&figures.key) != record.key.as_ref());
            }
        }
    }
}

struct Job<'a> {
    corpus: &'a Corpus,
    store: &'a CorpusStore,
    targets: &'a Targets,
    images_min: u64,
}

impl Job<'_> {
    /// The shards of the new manifest; those that change are written, one in memory at a time.
    fn shards(
        &self,
        mode: Mode,
        records: &mut Vec<Record>,
        outcome: &mut Outcome,
    ) -> Result<Vec<ShardEntry>, IngestError> {
        let kind = self.corpus.kind();
        let mut shards = Vec::new();
        let mut first_row = 0;
        for entry in &self.corpus.manifest().shards {
            if row::has_target(self.store, kind, entry, self.targets)? {
                outcome.shards += 1;
                let rows = self.rows(first_row, entry, records, outcome)?;
                if !rows.is_empty() && mode == Mode::Remove {
                    shards.push(self.write(kind, entry, &rows)?);
                }
            } else {
                shards.push(entry.clone());
            }
            first_row += entry.rows;
        }
        Ok(shards)
    }

    /// What stays of one shard.
    fn rows(
        &self,
        first_row: u64,
        entry: &ShardEntry,
        records: &mut Vec<Record>,
        outcome: &mut Outcome,
    ) -> Result<Vec<Row>, IngestError> {
        let mut rows = Vec::new();
        for row in first_row..first_row + entry.rows {
            let applied = apply(self.targets, self.corpus.read(row)?, self.images_min);
            outcome.rows += u64::from(applied.row.is_none());
            if applied.row.is_some() && !applied.removed.is_empty() {
                outcome.rewritten += 1;
                outcome.images += applied.removed.len() as u64;
            }
            rows.extend(applied.row);
            records.extend(applied.removed);
        }
        Ok(rows)
    }

    fn write(
        &self,
        kind: CorpusKind,
        entry: &ShardEntry,
        rows: &[Row],
    ) -> Result<ShardEntry, IngestError> {
        let bytes = encode_shard(kind, rows)?;
        let entry = ShardEntry {
            file: next_generation(&entry.file),
            rows: rows.len() as u64,
            images: rows.iter().map(|row| row.n_images() as u64).sum(),
            words: rows.iter().map(|row| row.words() as u64).sum(),
            bytes: bytes.len() as u64,
            sha256: sha256_hex(&bytes),
        };
        self.store.put(&entry.file, bytes.into())?;
        Ok(entry)
    }
}

/// The name of a shard that is written again: `shard-00001.parquet`, `shard-00001-g1.parquet`, ...
fn next_generation(file: &str) -> String {
    let stem = file.strip_suffix(".parquet").unwrap_or(file);
    let (stem, generation) = match stem.rsplit_once("-g") {
        Some((before, n)) if n.bytes().all(|b| b.is_ascii_digit()) => {
            (before, n.parse::<u64>().unwrap_or(0))
        }
        _ => (stem, 0),
    };
    format!("{stem}-g{}.parquet", generation + 1)
}

/// Manifests of the partitions of a run that several machines shared, each with its own shards.
fn write_partitions(store: &CorpusStore, manifest: &Manifest) -> Result<(), IngestError> {
    for name in store.list("")? {
        let Some(folder) = name.strip_suffix("/manifest.json") else { continue };
        let shards = manifest.shards.iter().filter_map(|shard| {
            let file = shard.file.strip_prefix(folder)?.strip_prefix('/')?.to_owned();
            Some(ShardEntry { file, ..shard.clone() })
        });
        let part = Manifest::new(manifest.kind, manifest.plan_sha256.clone(), shards.collect());
        store.put(&name, part.to_json().into())?;
    }
    Ok(())
}

/// Deletes the shards that the manifest does not list.
fn sweep(store: &CorpusStore, manifest: &Manifest) -> Result<(), IngestError> {
    for name in store.list("")? {
        let file = name.rsplit('/').next().unwrap_or(&name);
        let is_shard = file.starts_with("shard-") && file.ends_with(".parquet");
        if is_shard && !manifest.shards.iter().any(|shard| shard.file == name) {
            store.delete(&name)?;
        }
    }
    Ok(())
}

/// The rule that a document with fewer images breaks.
fn images_min(store: &CorpusStore) -> Result<u64, IngestError> {
    let text = String::from_utf8_lossy(&store.get(PLAN_FILE)?).into_owned();
    Ok(BuildPlan::parse(&text, &store.name_of(PLAN_FILE))?.document.images_min)
}

/// Keeps two purges of a local corpus apart; the lock goes with the process, however it ends. Object
/// stores have no locks.
fn lock(location: &str) -> Result<Option<File>, IngestError> {
    let folder = location.strip_prefix("file://").unwrap_or(location);
    let path = Path::new(folder).join(RUN_FILE);
    if is_url(folder) || !path.exists() {
        return Ok(None);
    }
    let failed = |source| {
        let input = path.display().to_string();
        IngestError::InputRead { input, source }
    };
    let file = File::open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(IngestError::CorpusBusy { corpus: location.to_owned() })
        }
        Err(std::fs::TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_that_is_written_again_has_a_new_name() {
        let check = |file: &str, expected: &str| assert_eq!(next_generation(file), expected);
        check("shard-00001.parquet", "shard-00001-g1.parquet");
        check("shard-00001-g1.parquet", "shard-00001-g2.parquet");
        check("part-1-of-2/shard-00001-g9.parquet", "part-1-of-2/shard-00001-g10.parquet");
        check("shard-g.parquet", "shard-g1.parquet");
    }
}
