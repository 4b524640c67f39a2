//! The output folder while a run works on it: parts that are published one by one, and the journal
//! that lets a killed run go on.
//!
//! A part is a shard, its rejects and, written last, its journal entry, which says how many items
//! of the input it covers. Where a part ends depends on the items only. Rows of the open part go to
//! an unpublished file, and what became of its items to a record log, both in `journal/` (beside
//! an object store: in a scratch folder on this machine). A run that is resumed reads the journal and
//! the log, skips the items they cover and goes on, byte for byte. Manifest and report are written
//! once all parts are there; then the journal goes, its first entry first: a manifest without that
//! entry is a finished corpus. What the run is stays beside it.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;

use flamingo_dataset::{
    CorpusKind, CorpusStore, MANIFEST_FILE, Manifest, Row, ShardEntry, ShardWriter, sha256_hex,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::IngestError;
use crate::figures::{self, Figures};
use crate::identity::RunIdentity;
use crate::ledger::{self, Fetch};
use crate::meter::Meter;
use crate::outcome::Outcome;
use crate::plan::{BuildPlan, ShardPlan};
use crate::purge::{self, Targets};
use crate::record_log::{self, RecordLog};
use crate::reject::{self, Reject};
use crate::report;
use crate::samples::Samples;
use crate::source::{hex, is_url};

/// The effective plan, beside the shards.
pub const PLAN_FILE: &str = "plan.toml";
/// What the run is: the first file it writes, and the last one that a run that gives up removes.
pub const RUN_FILE: &str = "run.json";
/// Folder of the journal.
const JOURNAL: &str = "journal";
/// Name of the file that a run locks.
const LOCK_FILE: &str = "lock";
/// Ending of a shard that is not published.
const PARTIAL: &str = "partial";
/// Bytes of a shard that are handed to the system at a time.
const FILE_BUFFER_BYTES: usize = 1 << 20;
/// Digits of the name of a scratch folder.
const SCRATCH_NAME_CHARS: usize = 16;
/// Folder of the rejects.
pub const REJECTS: &str = "rejects";
/// Folder of the figures.
pub const FIGURES: &str = "figures";
/// Folder of the ledger.
pub const LEDGER: &str = "ledger";
/// Folder of the pictures of rejects.
pub const SAMPLES: &str = "samples";

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
    /// Items that were done before this run was resumed.
    pub resumed: u64,
    /// Whether the corpus was finished before this run.
    pub was_finished: bool,
    /// The whole, where this run was the last partition of it.
    pub joined: Option<Manifest>,
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
    /// Local folder of what is not published yet.
    scratch: PathBuf,
    identity: RunIdentity,
    limits: ShardPlan,
    entries: Vec<JournalEntry>,
    /// The part that is being published, while the next one is filled.
    publication: Option<JoinHandle<Result<JournalEntry, IngestError>>>,
    part: Part,
    /// Parts before the one that is filled.
    n_parts: usize,
    /// Shards of those parts.
    n_shards: usize,
    /// Items of the input that are done.
    n_items: u64,
    log: Option<RecordLog>,
    /// Held while this run writes: two runs must not write one journal.
    lock: Option<File>,
    meter: Arc<Meter>,
    /// What was taken out of this corpus on request: it does not come back.
    purged: Targets,
    images_min: u64,
    /// The first record that was dropped, for the message of a run that keeps nothing.
    first_reject: Option<Reject>,
}

/// The part that is being filled.
#[derive(Default)]
struct Part {
    n_items: u64,
    shard: Option<OpenShard>,
    bytes: u64,
    rejects: Vec<Reject>,
    figures: Vec<Figures>,
    fetches: Vec<Fetch>,
    samples: Samples,
}

/// A shard that is not published yet.
struct OpenShard {
    writer: ShardWriter<PartialFile>,
    path: PathBuf,
    rows: u64,
    images: u64,
    words: u64,
}

/// Everything that is needed to publish a part.
struct Publication {
    store: CorpusStore,
    i: usize,
    i_shard: usize,
    part: Part,
    /// The part's record log, which its journal entry replaces.
    log: PathBuf,
    meter: Arc<Meter>,
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
        meter: Arc<Meter>,
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
                read_json::<RunIdentity>(&store, RUN_FILE)?.expect(out, &identity)?;
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
        let purged = Targets::of_run(&store)?;
        let mut output = Self {
            purged,
            images_min: plan.document.images_min,
            scratch: scratch(out, &identity),
            store,
            identity,
            limits: plan.shard.clone(),
            publication: None,
            part: Part::default(),
            n_parts: entries.len(),
            n_shards: entries.iter().filter(|entry| entry.shard.is_some()).count(),
            n_items: entries.iter().map(|entry| entry.n_items).sum(),
            log: None,
            lock: None,
            meter,
            first_reject: None,
            entries,
        };
        if is_finished {
            output.remove_journal()?;
            return Ok(Opened::Finished(Manifest::read(&output.store)?));
        }
        if let Err(error) = output.write_head(plan, is_new) {
            return Err(output.abandon(error));
        }
        // Not abandoned: what is there is the other run's.
        output.lock()?;
        match output.replay() {
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

    /// Makes the scratch folder, unless another run writes there. The lock goes with the process.
    fn lock(&mut self) -> Result<(), IngestError> {
        let path = self.scratch.join(LOCK_FILE);
        let write = |source| IngestError::OutputWrite { path: path.clone(), source };
        std::fs::create_dir_all(&self.scratch).map_err(write)?;
        let file = File::create(&path).map_err(write)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                Err(IngestError::OutputBusy { out: self.store.location().to_owned() })
            }
            // Some network file systems have no locks.
            Ok(()) | Err(TryLockError::Error(_)) => {
                self.lock = Some(file);
                Ok(())
            }
        }
    }

    /// Takes the items that the record logs hold, and goes on writing the last one.
    fn replay(&mut self) -> Result<(), IngestError> {
        self.remove_partial_shards();
        let totals = self.totals();
        for (counter, n) in [
            (&self.meter.items, totals.n_items),
            (&self.meter.rows, totals.rows),
            (&self.meter.images, totals.images),
        ] {
            counter.fetch_add(n, Relaxed);
        }
        self.meter.count_rejects(totals.rejects.into_iter());
        for i in 0..self.n_parts {
            // Its part was published just before the run was killed.
            let _ = std::fs::remove_file(self.log_path(i));
        }
        loop {
            let i = self.n_parts;
            let path = self.log_path(i);
            if !path.exists() {
                return Ok(());
            }
            let length = record_log::replay(&path, |outcome| self.take(outcome))?;
            if self.n_parts == i {
                // The end is lost, so what was begun after it is done again.
                for later in i + 1.. {
                    if std::fs::remove_file(self.log_path(later)).is_err() {
                        break;
                    }
                }
                self.log = Some(RecordLog::open(path, length)?);
                return Ok(());
            }
        }
    }

    fn log_path(&self, i: usize) -> PathBuf {
        self.scratch.join(format!("records-{i:05}.log"))
    }

    fn remove_partial_shards(&self) {
        for file in crate::source::walk(&self.scratch).unwrap_or_default() {
            if file.extension().is_some_and(|extension| extension == PARTIAL) {
                // One that stays is overwritten.
                let _ = std::fs::remove_file(file);
            }
        }
    }

    /// What a run does that ends in `error`: published parts stay, to be resumed, and so do items that
    /// are done where the output is at fault; otherwise nothing stays.
    pub fn abandon(mut self, error: IngestError) -> IngestError {
        // The first error says more than those on the way out.
        let _ = self.join();
        let _ = self.log.as_mut().map(RecordLog::flush);
        let is_resumable = self.n_items > 0 && error.is_of_output();
        if self.entries.is_empty() && !is_resumable {
            let _ = self.remove_all();
        } else {
            self.remove_partial_shards();
        }
        error
    }

    /// Items of the input that are done already.
    pub fn n_items_done(&self) -> u64 {
        self.n_items
    }

    /// Numbers of what is published.
    pub fn totals(&self) -> Totals {
        let n_items = self.entries.iter().map(|entry| entry.n_items).sum();
        let mut totals = Totals { n_items, ..Totals::default() };
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
    /// When the store or the scratch folder refuses a write.
    pub fn push(&mut self, outcome: Outcome) -> Result<(), IngestError> {
        let log = match self.log.take() {
            Some(log) => log,
            None => RecordLog::open(self.log_path(self.n_parts), 0)?,
        };
        self.log.insert(log).append(&outcome)?;
        self.take(outcome)
    }

    fn take(&mut self, mut outcome: Outcome) -> Result<(), IngestError> {
        if !self.purged.is_empty() {
            purge::leave_out(&self.purged, &mut outcome, self.images_min);
        }
        self.part.samples.take(&mut outcome.rejects);
        self.meter.count(&outcome);
        if self.first_reject.is_none() {
            self.first_reject = outcome.rejects.first().cloned();
        }
        for row in outcome.rows {
            self.write_row(row)?;
        }
        self.n_items += 1;
        let part = &mut self.part;
        part.n_items += 1;
        part.rejects.extend(outcome.rejects);
        part.figures.extend(outcome.figures);
        part.fetches.extend(outcome.fetches);
        let is_full = part.shard.as_ref().is_some_and(|shard| shard.rows >= self.limits.rows_max)
            || part.bytes >= self.limits.bytes_max
            || part.rejects.len() as u64 >= self.limits.rejects_max
            || part.figures.len() as u64 >= self.limits.figures_max
            || part.fetches.len() as u64 >= self.limits.figures_max;
        if is_full { self.publish() } else { Ok(()) }
    }

    fn write_row(&mut self, row: Row) -> Result<(), IngestError> {
        self.part.bytes += row.stored_bytes() as u64;
        let shard = match self.part.shard.take() {
            Some(shard) => shard,
            None => OpenShard::new(
                self.identity.kind,
                self.scratch.join(format!("shard-{:05}.{PARTIAL}", self.n_shards)),
            )?,
        };
        self.part.shard.insert(shard).push(row)
    }

    /// Publishes the part in a thread of its own, so that work goes on meanwhile.
    fn publish(&mut self) -> Result<(), IngestError> {
        self.join()?;
        if let Some(mut log) = self.log.take() {
            log.flush()?;
        }
        let part = std::mem::take(&mut self.part);
        let (i, i_shard, has_shard) = (self.n_parts, self.n_shards, part.shard.is_some());
        let (store, meter) = (self.store.clone(), Arc::clone(&self.meter));
        let publication = Publication { store, i, i_shard, part, log: self.log_path(i), meter };
        self.publication = Some(std::thread::spawn(move || publication.publish()));
        self.n_parts += 1;
        self.n_shards += usize::from(has_shard);
        Ok(())
    }

    /// Waits for the part that is being published.
    fn join(&mut self) -> Result<(), IngestError> {
        if let Some(publication) = self.publication.take() {
            let entry = publication.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            self.entries.push(entry?);
        }
        Ok(())
    }

    /// Publishes the last part, the report and the manifest, and removes the journal.
    ///
    /// # Errors
    /// When the store refuses a write, or when nothing was kept: then nothing stays behind.
    pub fn finish(mut self) -> Result<Totals, IngestError> {
        let published = if self.part.n_items > 0 { self.publish() } else { Ok(()) };
        if let Err(error) = published.and_then(|()| self.join()) {
            return Err(self.abandon(error));
        }
        let totals = self.totals();
        // A partition may be empty, the whole may not.
        if totals.rows == 0 && self.identity.partition.is_none() {
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
            let is_table =
                [REJECTS, FIGURES, LEDGER, SAMPLES].iter().any(|table| name.starts_with(table));
            name.starts_with("shard-") || is_table || *name == PLAN_FILE
        };
        for name in self.store.list("")?.iter().filter(is_ours) {
            self.store.delete(name)?;
        }
        self.store.delete(RUN_FILE)?;
        sweep(self.store.location());
        self.remove_folders(&[REJECTS, FIGURES, LEDGER, SAMPLES, ""]);
        Ok(())
    }

    fn remove_journal(&self) -> Result<(), IngestError> {
        for name in self.store.list(JOURNAL)? {
            self.store.delete(&name)?;
        }
        if is_url(self.store.location()) {
            // A folder that stays is only disk space.
            let _ = std::fs::remove_dir_all(&self.scratch);
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

impl OpenShard {
    fn new(kind: CorpusKind, path: PathBuf) -> Result<Self, IngestError> {
        let file = File::create(&path)
            .map_err(|source| IngestError::OutputWrite { path: path.clone(), source })?;
        let file = BufWriter::with_capacity(FILE_BUFFER_BYTES, file);
        let file = PartialFile { file, path: path.clone(), digest: Sha256::new(), bytes: 0 };
        let writer = ShardWriter::new(kind, file)?;
        Ok(Self { writer, path, rows: 0, images: 0, words: 0 })
    }

    fn push(&mut self, row: Row) -> Result<(), IngestError> {
        self.rows += 1;
        self.images += row.n_images() as u64;
        self.words += row.words() as u64;
        Ok(self.writer.push(row)?)
    }

    /// Completes the file and describes it as shard `i`.
    fn finish(self, i: usize) -> Result<(PathBuf, ShardEntry), IngestError> {
        let Self { writer, path, rows, images, words } = self;
        let mut file = writer.finish()?;
        file.flush().map_err(|source| IngestError::OutputWrite { path: path.clone(), source })?;
        let sha256 = hex(&file.digest.finalize());
        let (file_name, bytes) = (format!("shard-{i:05}.parquet"), file.bytes);
        Ok((path, ShardEntry { file: file_name, rows, images, words, bytes, sha256 }))
    }
}

/// A file on its way to become a shard, with its checksum so far.
struct PartialFile {
    file: BufWriter<File>,
    path: PathBuf,
    digest: Sha256,
    bytes: u64,
}

impl PartialFile {
    /// The error with the file's name, which the writer of Parquet does not know.
    fn named(&self, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("cannot write {}: {error}", self.path.display()))
    }
}

impl Write for PartialFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes).map_err(|error| self.named(&error))?;
        self.digest.update(&bytes[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Publication {
    /// Writes shard, tables and journal entry of the part, in this order.
    fn publish(mut self) -> Result<JournalEntry, IngestError> {
        let shard = match self.part.shard.take() {
            None => None,
            Some(shard) => {
                let (path, entry) = shard.finish(self.i_shard)?;
                self.store.put_file(&entry.file, &path)?;
                self.meter.bytes_written.fetch_add(entry.bytes, Relaxed);
                Some(entry)
            }
        };
        let part = &self.part;
        self.write_table(REJECTS, &part.rejects, reject::encode)?;
        self.write_table(FIGURES, &part.figures, figures::encode)?;
        self.write_table(LEDGER, &part.fetches, ledger::encode)?;
        if !part.samples.is_empty() {
            let name = format!("{SAMPLES}/part-{:05}.parquet", self.i);
            self.store.put(&name, part.samples.encode().into())?;
        }
        let mut rejects = BTreeMap::new();
        for reject in &part.rejects {
            *rejects.entry(reject.rule()).or_default() += 1;
        }
        let entry = JournalEntry { n_items: part.n_items, shard, rejects };
        write_json(&self.store, &entry_name(self.i), &entry)?;
        // The entry says the same; a log that stays is removed when the run is resumed.
        let _ = std::fs::remove_file(&self.log);
        Ok(entry)
    }

    /// Writes what a part has in one of the tables beside the shards, if anything.
    fn write_table<T>(
        &self,
        table: &str,
        rows: &[T],
        encode: fn(&[T]) -> Vec<u8>,
    ) -> Result<(), IngestError> {
        if rows.is_empty() {
            return Ok(());
        }
        let name = format!("{table}/part-{:05}.parquet", self.i);
        Ok(self.store.put(&name, encode(rows).into())?)
    }
}

/// Where a run at `out` keeps what is not published: below a local output, else in the system's
/// folder for temporary files, under a name that only this run has.
fn scratch(out: &str, identity: &RunIdentity) -> PathBuf {
    if !is_url(out) {
        return Path::new(out).join(JOURNAL);
    }
    let json =
        serde_json::to_string(identity).expect("numbers, strings and lists have a JSON form");
    let name = sha256_hex(format!("{out} {json}").as_bytes());
    std::env::temp_dir().join(format!("flamingo-ingest-{}", &name[..SCRATCH_NAME_CHARS]))
}

fn entry_name(i: usize) -> String {
    format!("{JOURNAL}/part-{i:05}.json")
}

/// The entries of a journal, from the first up to the first that is missing.
fn read_entries(store: &CorpusStore, names: &[String]) -> Result<Vec<JournalEntry>, IngestError> {
    let mut entries = Vec::new();
    while names.contains(&entry_name(entries.len())) {
        entries.push(read_json(store, &entry_name(entries.len()))?);
    }
    Ok(entries)
}

/// Reads what [`write_json`] wrote.
pub(crate) fn read_json<T: DeserializeOwned>(
    store: &CorpusStore,
    name: &str,
) -> Result<T, IngestError> {
    serde_json::from_slice(&store.get(name)?).map_err(|error| IngestError::Journal {
        out: store.location().to_owned(),
        name: name.to_owned(),
        message: error.to_string(),
    })
}

/// Writes a small object that people may read.
pub(crate) fn write_json(
    store: &CorpusStore,
    name: &str,
    value: &impl Serialize,
) -> Result<(), IngestError> {
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
