//! The output folder while a run works on it: parts that are published one by one, and the journal
//! that lets a killed run go on.
//!
//! A part is a shard, its rejects and, written last, its journal entry, which says how many items
//! of the input it covers. Where a part ends depends on the items only. A run that is resumed reads
//! the journal, skips the items it covers and writes the next part again, byte for byte. Manifest
//! and report are written once all parts are there; then the journal goes, its first entry first:
//! a manifest without that entry is a finished corpus. What the run is stays beside it.

use std::collections::BTreeMap;
use std::path::Path;

use flamingo_dataset::{
    CorpusStore, MANIFEST_FILE, Manifest, Row, ShardEntry, encode_shard, sha256_hex,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::IngestError;
use crate::figures::{self, Figures};
use crate::identity::RunIdentity;
use crate::ledger::{self, Fetch};
use crate::outcome::Outcome;
use crate::plan::{BuildPlan, ShardPlan};
use crate::reject::{self, Reject};
use crate::report;
use crate::source::is_url;

/// The effective plan, beside the shards.
pub const PLAN_FILE: &str = "plan.toml";
/// What the run is: the first file it writes, and the last one that a run that gives up removes.
pub const RUN_FILE: &str = "run.json";
/// Folder of the journal.
const JOURNAL: &str = "journal";
/// Folder of the rejects.
pub const REJECTS: &str = "rejects";
/// Folder of the figures.
pub const FIGURES: &str = "figures";
/// Folder of the ledger.
pub const LEDGER: &str = "ledger";

/// One published part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JournalEntry {
    /// Items of the input that it covers.
    n_items: u64,
    /// Its shard; none where all its items were dropped.
    shard: Option<ShardEntry>,
    /// Dropped records by stage and reason.
    rejects: BTreeMap<String, u64>,
}

/// Numbers of a whole run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Totals {
    /// Items of the input.
    pub n_items: u64,
    /// Rows of the corpus.
    pub rows: u64,
    /// Images, or frames, of the corpus.
    pub images: u64,
    /// Shards of the corpus.
    pub shards: u64,
    /// Dropped records by `stage/reason`.
    pub rejects: BTreeMap<String, u64>,
    /// Whether the corpus was finished before this run.
    pub was_finished: bool,
}

impl Totals {
    /// What a finished corpus tells of its run.
    pub fn of(manifest: &Manifest) -> Self {
        let (rows, images) = (manifest.rows, manifest.images);
        let shards = manifest.shards.len() as u64;
        Self { rows, images, shards, was_finished: true, ..Self::default() }
    }
}

/// A run's output.
pub struct Output {
    store: CorpusStore,
    identity: RunIdentity,
    limits: ShardPlan,
    entries: Vec<JournalEntry>,
    part: Part,
    /// The first record that was dropped, for the message of a run that keeps nothing.
    first_reject: Option<Reject>,
}

/// The part that is being filled.
#[derive(Default)]
struct Part {
    n_items: u64,
    rows: Vec<Row>,
    bytes: u64,
    rejects: Vec<Reject>,
    figures: Vec<Figures>,
    fetches: Vec<Fetch>,
}

/// Whether an output folder may have something in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It must be new or empty.
    New,
    /// It may hold a run that was cut off.
    Resume,
}

/// What was found at the output.
pub enum Opened {
    /// Work to do.
    Open(Box<Output>),
    /// The corpus is finished already.
    Finished(Manifest),
}

impl Output {
    /// Makes the output folder, or opens one whose run was cut off.
    ///
    /// # Errors
    /// When there is something else at the place, or the run there has another identity.
    pub fn open(
        out: &str,
        start: Start,
        identity: RunIdentity,
        plan: &BuildPlan,
    ) -> Result<Opened, IngestError> {
        let store = CorpusStore::create(out)?;
        let names = store.list("")?;
        let exists = |name: &str| names.iter().any(|found| found == name);
        if start == Start::New && !names.is_empty() {
            return Err(IngestError::OutputExists { out: out.to_owned() });
        }
        let is_new = match names.first() {
            None => true,
            Some(_) if exists(RUN_FILE) => {
                read_journal::<RunIdentity>(&store, RUN_FILE)?.expect(out, &identity)?;
                false
            }
            Some(name) => {
                let (out, name) = (out.to_owned(), name.clone());
                return Err(IngestError::OutputForeign { out, name });
            }
        };
        sweep(out);
        let entries = read_entries(&store, &names)?;
        let is_finished = exists(MANIFEST_FILE) && entries.is_empty();
        let (limits, part) = (plan.shard.clone(), Part::default());
        let output = Self { store, identity, limits, entries, part, first_reject: None };
        if is_finished {
            output.remove_journal()?;
            return Ok(Opened::Finished(Manifest::read(&output.store)?));
        }
        match output.write_head(plan, is_new) {
            Ok(()) => Ok(Opened::Open(Box::new(output))),
            Err(error) => Err(output.abandon(error)),
        }
    }

    /// Writes what does not depend on the items.
    fn write_head(&self, plan: &BuildPlan, is_new: bool) -> Result<(), IngestError> {
        if is_new {
            write_json(&self.store, RUN_FILE, &self.identity)?;
        }
        Ok(self.store.put(PLAN_FILE, plan.to_toml(self.identity.kind).into())?)
    }

    /// What a run does that ends in `error`: published parts stay, to be resumed; where there are
    /// none, nothing stays.
    pub fn abandon(self, error: IngestError) -> IngestError {
        if self.entries.is_empty() {
            // The first error says more than one on the way out.
            let _ = self.remove_all();
        }
        error
    }

    /// Items of the input that are published already.
    pub fn n_items_done(&self) -> u64 {
        self.entries.iter().map(|entry| entry.n_items).sum()
    }

    /// Numbers of what is published.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals { n_items: self.n_items_done(), ..Totals::default() };
        for entry in &self.entries {
            if let Some(shard) = &entry.shard {
                totals.rows += shard.rows;
                totals.images += shard.images;
                totals.shards += 1;
            }
            for (reason, n) in &entry.rejects {
                *totals.rejects.entry(reason.clone()).or_default() += n;
            }
        }
        totals
    }

    /// Takes what became of the next item; publishes the part when it is full.
    ///
    /// # Errors
    /// When the store refuses a write.
    pub fn push(&mut self, outcome: Outcome) -> Result<(), IngestError> {
        if self.first_reject.is_none() {
            self.first_reject = outcome.rejects.first().cloned();
        }
        let part = &mut self.part;
        part.n_items += 1;
        part.bytes += outcome.row.as_ref().map_or(0, |row| row.stored_bytes() as u64);
        part.rows.extend(outcome.row);
        part.rejects.extend(outcome.rejects);
        part.figures.extend(outcome.figures);
        part.fetches.extend(outcome.fetches);
        let is_full = part.rows.len() as u64 >= self.limits.rows_max
            || part.bytes >= self.limits.bytes_max
            || part.rejects.len() as u64 >= self.limits.rejects_max
            || part.figures.len() as u64 >= self.limits.figures_max;
        if is_full { self.publish() } else { Ok(()) }
    }

    /// Writes shard, rejects and journal entry of the part, in this order.
    fn publish(&mut self) -> Result<(), IngestError> {
        let part = std::mem::take(&mut self.part);
        let shard = match part.rows.as_slice() {
            [] => None,
            rows => Some(self.write_shard(rows)?),
        };
        let i = self.entries.len();
        self.write_table(REJECTS, i, &part.rejects, reject::encode)?;
        self.write_table(FIGURES, i, &part.figures, figures::encode)?;
        self.write_table(LEDGER, i, &part.fetches, ledger::encode)?;
        let mut rejects = BTreeMap::new();
        for reject in &part.rejects {
            *rejects.entry(reject.rule()).or_default() += 1;
        }
        let entry = JournalEntry { n_items: part.n_items, shard, rejects };
        write_json(&self.store, &entry_name(i), &entry)?;
        self.entries.push(entry);
        Ok(())
    }

    /// Writes what a part has in one of the tables beside the shards, if anything.
    fn write_table<T>(
        &self,
        table: &str,
        i: usize,
        rows: &[T],
        encode: fn(&[T]) -> Vec<u8>,
    ) -> Result<(), IngestError> {
        if rows.is_empty() {
            return Ok(());
        }
        Ok(self.store.put(&format!("{table}/part-{i:05}.parquet"), encode(rows).into())?)
    }

    fn write_shard(&self, rows: &[Row]) -> Result<ShardEntry, IngestError> {
        let bytes = encode_shard(self.identity.kind, rows)?;
        let i = self.entries.iter().filter(|entry| entry.shard.is_some()).count();
        let entry = ShardEntry {
            file: format!("shard-{i:05}.parquet"),
            rows: rows.len() as u64,
            images: rows.iter().map(|row| row.n_images() as u64).sum(),
            words: rows.iter().map(|row| row.words() as u64).sum(),
            bytes: bytes.len() as u64,
            sha256: sha256_hex(&bytes),
        };
        self.store.put(&entry.file, bytes.into())?;
        Ok(entry)
    }

    /// Publishes the last part, the report and the manifest, and removes the journal.
    ///
    /// # Errors
    /// When the store refuses a write, or when nothing was kept: then nothing stays behind.
    pub fn finish(mut self) -> Result<Totals, IngestError> {
        if self.part.n_items > 0
            && let Err(error) = self.publish()
        {
            return Err(self.abandon(error));
        }
        let totals = self.totals();
        if totals.rows == 0 {
            self.remove_all()?;
            return Err(self.nothing_kept(&totals));
        }
        let shards = self.entries.iter().filter_map(|entry| entry.shard.clone()).collect();
        let plan_sha256 = self.identity.plan_sha256.clone();
        let manifest = Manifest::new(self.identity.kind, plan_sha256, shards);
        report::write(&self.store, manifest.clone())?;
        // Last of all: with it, the corpus exists. A run that is killed before the journal is gone is
        // resumed and ends with the same bytes.
        manifest.write(&self.store)?;
        self.remove_journal()?;
        Ok(totals)
    }

    fn nothing_kept(&self, totals: &Totals) -> IngestError {
        let counts = totals.rejects.iter().map(|(rule, n)| format!("{n} {rule}"));
        let mut reasons = counts.collect::<Vec<_>>().join(", ");
        if let Some(first) = &self.first_reject {
            reasons = format!("{reasons}; first: {first}");
        }
        if totals.n_items == 0 {
            "the input is empty".clone_into(&mut reasons);
        }
        IngestError::NothingKept { n_items: totals.n_items, reasons }
    }

    /// Removes what runs write. The journal's first entry goes first and what the run is goes last,
    /// so that a run that is killed here can be resumed.
    fn remove_all(&self) -> Result<(), IngestError> {
        self.remove_journal()?;
        let is_ours = |name: &&String| {
            let is_table = [REJECTS, FIGURES, LEDGER].iter().any(|table| name.starts_with(table));
            name.starts_with("shard-") || is_table || *name == PLAN_FILE
        };
        for name in self.store.list("")?.iter().filter(is_ours) {
            self.store.delete(name)?;
        }
        self.store.delete(RUN_FILE)?;
        sweep(self.store.location());
        self.remove_folders(&[REJECTS, FIGURES, LEDGER, ""]);
        Ok(())
    }

    fn remove_journal(&self) -> Result<(), IngestError> {
        for name in self.store.list(JOURNAL)? {
            self.store.delete(&name)?;
        }
        self.remove_folders(&[JOURNAL]);
        Ok(())
    }

    /// Removes empty folders on a disk; object stores have none. One that stays does no harm.
    fn remove_folders(&self, names: &[&str]) {
        if !is_url(self.store.location()) {
            for name in names {
                let _ = std::fs::remove_dir(Path::new(self.store.location()).join(name));
            }
        }
    }
}

fn entry_name(i: usize) -> String {
    format!("{JOURNAL}/part-{i:05}.json")
}

/// The entries of a journal, from the first up to the first that is missing.
fn read_entries(store: &CorpusStore, names: &[String]) -> Result<Vec<JournalEntry>, IngestError> {
    let mut entries = Vec::new();
    while names.contains(&entry_name(entries.len())) {
        entries.push(read_journal(store, &entry_name(entries.len()))?);
    }
    Ok(entries)
}

fn read_journal<T: DeserializeOwned>(store: &CorpusStore, name: &str) -> Result<T, IngestError> {
    serde_json::from_slice(&store.get(name)?).map_err(|error| IngestError::Journal {
        out: store.location().to_owned(),
        name: name.to_owned(),
        message: error.to_string(),
    })
}

fn write_json(store: &CorpusStore, name: &str, value: &impl Serialize) -> Result<(), IngestError> {
    let json =
        serde_json::to_vec_pretty(value).expect("numbers, strings and lists have a JSON form");
    Ok(store.put(name, json.into())?)
}

/// Removes the temporary files of writes that were cut off: `NAME#NUMBER`, on a disk only.
fn sweep(out: &str) {
    if is_url(out) {
        return;
    }
    let files = crate::source::walk(Path::new(out)).unwrap_or_default();
    let is_temporary = |name: &str| {
        name.rsplit_once('#')
            .is_some_and(|(_, n)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    for file in files.iter().filter(|file| is_temporary(&file.to_string_lossy())) {
        // One that stays is only disk space: no reader lists it.
        let _ = std::fs::remove_file(file);
    }
}
