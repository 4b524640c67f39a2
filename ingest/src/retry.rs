//! `retry`: asks again for the addresses of a finished corpus of pairs that failed for reasons that
//! pass, and adds the pairs that can be made now.
//!
//! Shards that are there are not touched: new pairs go to new shards. The ledger, the rejects and the
//! figures tell afterwards what became of each row last. All changes of a step are prepared beside the
//! corpus; from the moment its commit record is there they are made, if need be by the next retry.
//! Whenever it is killed, the manifest describes a whole corpus, old or new.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::{Int64Type, SchemaRef};
use flamingo_dataset::{
    CorpusError, CorpusKind, CorpusStore, Manifest, Row, ShardEntry, encode_shard, sha256_hex,
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::{Deserialize, Serialize};

use crate::alt_text::{key, pair_of_row};
use crate::error::IngestError;
use crate::fetch::{Asked, Fetcher, Wish};
use crate::figures::{self, Figures};
use crate::ledger::{self, Fetch};
use crate::list::ListRow;
use crate::meter::Meter;
use crate::ordered::ordered_map;
use crate::outcome::Outcome;
use crate::output::{FIGURES, LEDGER, PLAN_FILE, REJECTS};
use crate::plan::BuildPlan;
use crate::progress::{Phase, Progress};
use crate::purge::{self, Targets};
use crate::reject::{self, DropReason, Reject, encode_batch};
use crate::report;
use crate::rules::Rules;

/// Folder of what is prepared and not yet part of the corpus.
const FOLDER: &str = "retry";
/// Its record: once it is there, what it names becomes part of the corpus.
pub(crate) const COMMIT: &str = "retry/commit.json";

/// What to ask for again.
#[derive(Debug, Clone)]
pub struct RetryJob {
    /// The corpus.
    pub corpus: String,
    /// Causes as in the ledger.
    pub causes: Vec<String>,
    /// Threads that work on images.
    pub workers: usize,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Retried {
    /// Addresses that were asked for again.
    pub n_asked: u64,
    /// Pairs that were added.
    pub n_added: u64,
    /// Rows that are still dropped, by `stage/reason`.
    pub rejects: BTreeMap<String, u64>,
}

/// What is about to become part of the corpus.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Commit {
    /// Tables that lie below [`FOLDER`] under the same names.
    tables: Vec<String>,
    /// The corpus afterwards.
    manifest: Manifest,
}

/// A row of a list that is to be asked for again.
struct Failed {
    /// Its ledger file.
    part: usize,
    list: String,
    row: ListRow,
}

/// Asks again for what failed with one of the causes.
///
/// # Errors
/// When the corpus cannot be read or written, is no corpus of pairs, or its plan names no contact.
pub fn retry(job: &RetryJob) -> Result<Retried, IngestError> {
    let store = CorpusStore::open(&job.corpus)?;
    if store.exists(COMMIT)? {
        apply(&store)?;
    }
    let manifest = Manifest::read(&store)?;
    if manifest.kind != CorpusKind::ImageText {
        let (corpus, kind) = (job.corpus.clone(), manifest.kind.name());
        return Err(IngestError::RetryKind { corpus, kind });
    }
    clear(&store)?;
    let text = String::from_utf8_lossy(&store.get(PLAN_FILE)?).into_owned();
    let plan = BuildPlan::from_toml(&text, &format!("{}/{PLAN_FILE}", job.corpus))?;
    let marker = format!("{LEDGER}/part-");
    let is_part = |name: &String| name.starts_with(&marker) || name.contains(&format!("/{marker}"));
    let parts: Vec<_> = store.list("")?.into_iter().filter(is_part).collect();
    let mut patch = Patch::new(&store, &plan, manifest, &parts);
    let rules = Rules::new(&plan)?;
    let fetcher = Fetcher::new(&plan);
    let meter = Arc::new(Meter::default());
    let progress = Progress::start(Phase::Work, "addresses", &meter);
    // What was taken out on request is not even asked for.
    let purged = Targets::recorded(&store)?;
    let is_purged =
        |failed: &Failed| failed.row.url.as_ref().is_some_and(|url| purged.of_url(url).is_some());
    let failed = (0..parts.len()).flat_map(|part| {
        let rows = failed_rows(&store, &parts, part, &job.causes);
        let (mut rows, error) =
            rows.map_or_else(|error| (Vec::new(), Some(error)), |rows| (rows, None));
        rows.retain(|failed| !is_purged(failed));
        rows.into_iter().map(Ok).chain(error.map(Err))
    });
    std::thread::scope(|scope| {
        let wish = |failed: Failed| {
            let wish = failed.wish(&plan);
            (failed, vec![wish])
        };
        let asked = fetcher.ahead(scope, failed, wish);
        let work = |asked| Ok(work(&plan, &rules, asked));
        ordered_map(asked, job.workers, work, |mut tried: Tried| {
            // An image may be named by its hash, which is known only now.
            purge::leave_out(&purged, &mut tried.outcome, plan.document.images_min);
            for reject in &mut tried.outcome.rejects {
                reject.drop.picture = None;
            }
            meter.count(&tried.outcome);
            patch.push(tried)
        })
    })?;
    drop(progress);
    patch.commit()?;
    let retried = patch.retried;
    if retried.n_asked > 0 {
        report::write(&store, Manifest::read(&store)?)?;
    }
    Ok(retried)
}

impl Failed {
    fn wish(&self, plan: &BuildPlan) -> Wish {
        let url = self.row.url.clone().unwrap_or_default();
        Wish { key: key(&self.list, self.row.row), url, bytes_max: plan.image.bytes_max }
    }
}

/// A row that was asked for again, and what became of it.
struct Tried {
    part: usize,
    list: String,
    row: u64,
    outcome: Outcome,
}

fn work(plan: &BuildPlan, rules: &Rules, Asked { item, mut answers }: Asked<Failed>) -> Tried {
    let Failed { part, list, row } = item;
    let number = row.row;
    let unasked = |_: &ListRow| Err(DropReason::because("not_fetched"));
    let outcome = pair_of_row(plan, rules, &list, row, answers.pop(), unasked);
    Tried { part, list, row: number, outcome }
}

/// Rows of one ledger file that failed with one of the causes.
fn failed_rows(
    store: &CorpusStore,
    parts: &[String],
    part: usize,
    causes: &[String],
) -> Result<Vec<Failed>, IngestError> {
    let Some(batch) = read_table(store, &parts[part], &ledger::schema())? else {
        return Ok(Vec::new());
    };
    let text = |name: &str| batch.column_by_name(name).and_then(|c| c.as_string_opt::<i32>());
    let columns = (text("cause"), text("list"), text("url"), text("caption"), text("source"));
    let numbers = batch.column_by_name("row").and_then(|c| c.as_primitive_opt::<Int64Type>());
    let ((Some(cause), Some(list), Some(url), Some(caption), Some(source)), Some(numbers)) =
        (columns, numbers)
    else {
        return Ok(Vec::new());
    };
    let value = |column: &arrow::array::StringArray, i: usize| {
        column.is_valid(i).then(|| column.value(i).to_owned())
    };
    let is_wanted = |&i: &usize| {
        list.is_valid(i)
            && numbers.is_valid(i)
            && causes.iter().any(|wanted| wanted == cause.value(i))
    };
    let row = |i: usize| Failed {
        part,
        list: list.value(i).to_owned(),
        row: ListRow {
            row: numbers.value(i) as u64,
            url: value(url, i),
            caption: value(caption, i),
            source: value(source, i),
            ..ListRow::default()
        },
    };
    Ok((0..batch.num_rows()).filter(is_wanted).map(row).collect())
}

/// A Parquet file beside the shards as one batch; none where it is not there.
fn read_table(
    store: &CorpusStore,
    name: &str,
    schema: &SchemaRef,
) -> Result<Option<RecordBatch>, IngestError> {
    if !store.exists(name)? {
        return Ok(None);
    }
    let parquet = |source| CorpusError::Parquet { object: name.to_owned(), source };
    let arrow = |source| CorpusError::Arrow { object: name.to_owned(), source };
    let reader = ParquetRecordBatchReaderBuilder::try_new(store.get(name)?).map_err(parquet)?;
    if reader.schema().fields() != schema.fields() {
        return Err(IngestError::CheckFailed {
            corpus: store.location().to_owned(),
            message: format!("{name} has other columns than this version writes"),
        });
    }
    let batches = reader.build().map_err(parquet)?.collect::<Result<Vec<_>, _>>().map_err(arrow)?;
    Ok(Some(concat_batches(schema, &batches).map_err(arrow)?))
}

/// Changes on their way into the corpus.
struct Patch<'a> {
    store: &'a CorpusStore,
    plan: &'a BuildPlan,
    manifest: Manifest,
    parts: &'a [String],
    rows: Vec<Row>,
    bytes: u64,
    /// What became of the rows of each ledger file.
    changes: BTreeMap<usize, Change>,
    retried: Retried,
}

/// What became of rows of one ledger file.
#[derive(Default)]
struct Change {
    keys: HashSet<String>,
    places: HashSet<(String, i64)>,
    fetches: Vec<Fetch>,
    rejects: Vec<Reject>,
    figures: Vec<Figures>,
}

impl<'a> Patch<'a> {
    fn new(
        store: &'a CorpusStore,
        plan: &'a BuildPlan,
        manifest: Manifest,
        parts: &'a [String],
    ) -> Self {
        let (rows, changes) = (Vec::new(), BTreeMap::new());
        let retried = Retried::default();
        Self { store, plan, manifest, parts, rows, bytes: 0, changes, retried }
    }

    fn push(&mut self, tried: Tried) -> Result<(), IngestError> {
        let Tried { part, list, row, outcome } = tried;
        self.retried.n_asked += 1;
        self.retried.n_added += outcome.rows.len() as u64;
        for reject in &outcome.rejects {
            *self.retried.rejects.entry(reject.rule()).or_default() += 1;
        }
        self.bytes += outcome.rows.iter().map(|row| row.stored_bytes() as u64).sum::<u64>();
        self.rows.extend(outcome.rows);
        let change = self.changes.entry(part).or_default();
        change.keys.insert(key(&list, row));
        change.places.insert((list, row as i64));
        change.fetches.extend(outcome.fetches);
        change.rejects.extend(outcome.rejects);
        change.figures.extend(outcome.figures);
        let limits = &self.plan.shard;
        let n_changed: usize = self.changes.values().map(|change| change.keys.len()).sum();
        let is_full = self.rows.len() as u64 >= limits.rows_max
            || self.bytes >= limits.bytes_max
            || n_changed as u64 >= limits.rejects_max;
        if is_full { self.commit() } else { Ok(()) }
    }

    /// Makes what was found so far part of the corpus.
    fn commit(&mut self) -> Result<(), IngestError> {
        let changes = std::mem::take(&mut self.changes);
        if changes.is_empty() {
            return Ok(());
        }
        let mut shards = self.manifest.shards.clone();
        if !self.rows.is_empty() {
            // Nothing refers to it before the manifest does.
            shards.push(self.write_shard()?);
        }
        let mut tables = Vec::new();
        for (part, change) in changes {
            tables.extend(self.prepare(&self.parts[part], &change)?);
        }
        let plan_sha256 = self.manifest.plan_sha256.clone();
        self.manifest = Manifest::new(self.manifest.kind, plan_sha256, shards);
        let commit = Commit { tables, manifest: self.manifest.clone() };
        let json = serde_json::to_vec_pretty(&commit).expect("names and numbers have a JSON form");
        self.store.put(COMMIT, json.into())?;
        apply(self.store)
    }

    fn write_shard(&mut self) -> Result<ShardEntry, IngestError> {
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        let number = |shard: &ShardEntry| {
            // A shard that a purge wrote again is `shard-00001-g1.parquet`.
            let name = shard.file.strip_prefix("shard-")?.strip_suffix(".parquet")?;
            name.split("-g").next()?.parse::<u64>().ok()
        };
        let i = self.manifest.shards.iter().filter_map(number).max().map_or(0, |last| last + 1);
        let bytes = encode_shard(self.manifest.kind, &rows)?;
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

    /// Writes the tables of one part with the changed rows in place of the old ones, below
    /// [`FOLDER`]; their names in the corpus.
    fn prepare(&self, ledger: &str, change: &Change) -> Result<Vec<String>, IngestError> {
        let sibling = |table: &str| ledger.replacen(&format!("{LEDGER}/"), &format!("{table}/"), 1);
        let by_key = |batch: &RecordBatch| -> BooleanArray {
            let keys = batch.column_by_name("key").map(AsArray::as_string::<i32>);
            let stays = |i| keys.is_none_or(|keys| !change.keys.contains(keys.value(i)));
            (0..batch.num_rows()).map(stays).collect::<Vec<_>>().into()
        };
        let by_place = |batch: &RecordBatch| -> BooleanArray {
            let sources = batch.column_by_name("source").map(AsArray::as_string::<i32>);
            let rows = batch.column_by_name("record_offset");
            let rows = rows.map(AsArray::as_primitive::<Int64Type>);
            let stays = |i| {
                sources.zip(rows).is_none_or(|(sources, rows)| {
                    !change.places.contains(&(sources.value(i).to_owned(), rows.value(i)))
                })
            };
            (0..batch.num_rows()).map(stays).collect::<Vec<_>>().into()
        };
        let new = [
            (
                ledger.to_owned(),
                ledger::to_batch(&change.fetches),
                self.keep(ledger, &ledger::schema(), by_key)?,
            ),
            (
                sibling(REJECTS),
                reject::to_batch(&change.rejects),
                self.keep(&sibling(REJECTS), &reject::schema(), by_place)?,
            ),
            (
                sibling(FIGURES),
                figures::to_batch(&change.figures),
                self.keep(&sibling(FIGURES), &figures::schema(), by_key)?,
            ),
        ];
        let mut names = Vec::new();
        for (name, added, kept) in new {
            if kept.is_none() && added.num_rows() == 0 {
                continue;
            }
            let batches: Vec<_> = kept.into_iter().chain([added]).collect();
            let joined = concat_batches(&batches[0].schema(), &batches)
                .map_err(|source| CorpusError::Arrow { object: name.clone(), source })?;
            self.store.put(&format!("{FOLDER}/{name}"), encode_batch(&joined).into())?;
            names.push(name);
        }
        Ok(names)
    }

    /// The rows of a table that stay.
    fn keep(
        &self,
        name: &str,
        schema: &SchemaRef,
        stays: impl Fn(&RecordBatch) -> BooleanArray,
    ) -> Result<Option<RecordBatch>, IngestError> {
        let Some(batch) = read_table(self.store, name, schema)? else { return Ok(None) };
        let kept = filter_record_batch(&batch, &stays(&batch))
            .map_err(|source| CorpusError::Arrow { object: name.to_owned(), source })?;
        Ok(Some(kept))
    }
}

/// Does what the commit record says, from the beginning or from wherever it was cut off.
fn apply(store: &CorpusStore) -> Result<(), IngestError> {
    let commit: Commit = serde_json::from_slice(&store.get(COMMIT)?).map_err(|error| {
        let (out, name) = (store.location().to_owned(), COMMIT.to_owned());
        IngestError::Journal { out, name, message: error.to_string() }
    })?;
    for name in &commit.tables {
        store.put(name, store.get(&format!("{FOLDER}/{name}"))?)?;
    }
    commit.manifest.write(store)?;
    // Without the record the rest means nothing.
    store.delete(COMMIT)?;
    clear(store)
}

/// Removes what was prepared and never became part of the corpus.
fn clear(store: &CorpusStore) -> Result<(), IngestError> {
    let mut folders = BTreeSet::from([FOLDER.to_owned()]);
    for name in store.list(FOLDER)? {
        store.delete(&name)?;
        folders.extend(name.rmatch_indices('/').map(|(at, _)| name[..at].to_owned()));
    }
    if !crate::source::is_url(store.location()) {
        let root = std::path::Path::new(store.location());
        for folder in folders.iter().rev() {
            // One that stays does no harm.
            let _ = std::fs::remove_dir(root.join(folder));
        }
    }
    Ok(())
}
