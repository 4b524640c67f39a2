//! The files of a corpus: which are there, the plan, what the run was, and the tables beside the shards.

use arrow::datatypes::{DataType, Schema, SchemaRef};
use flamingo_dataset::{CorpusStore, MANIFEST_FILE, Manifest};

use super::{Checked, hash_of, sums};
use crate::error::IngestError;
use crate::output::{FIGURES, LEDGER, PLAN_FILE, REJECTS, RUN_FILE, SAMPLES};
use crate::plan::BuildPlan;
use crate::purge::{self, PURGED};
use crate::report::REPORT_FILE;
use crate::table;
use crate::{figures, ledger, reject, samples};

/// Name of a table beside the shards, and the columns that it has.
type Table = (&'static str, fn() -> SchemaRef);

const TABLES: [Table; 5] = [
    (REJECTS, reject::schema),
    (FIGURES, figures::schema),
    (LEDGER, ledger::schema),
    (SAMPLES, samples::schema),
    (PURGED, purge::schema),
];

/// Files that a corpus has beside its shards and tables.
const FILES: [&str; 4] = [MANIFEST_FILE, PLAN_FILE, RUN_FILE, REPORT_FILE];

pub(super) fn check(
    store: &CorpusStore,
    manifest: &Manifest,
    checked: &mut Checked,
) -> Result<(), IngestError> {
    checked.add_all(sums(manifest));
    for name in store.list("")? {
        if !is_known(&name, manifest) {
            let problem = if is_shard(&name) {
                "the manifest does not list this shard"
            } else if name.starts_with("retry/") {
                "a retry is at work here, or was cut off: run it again"
            } else if name.starts_with("journal/") {
                "a run is at work here, or was cut off: finish it with --resume"
            } else {
                "no run of flamingo-ingest writes such a file"
            };
            checked.add(name, problem);
        }
    }
    check_plan(store, manifest, checked)?;
    check_run(store, manifest, checked)?;
    for (name, schema) in TABLES {
        check_table(store, name, &schema(), checked)?;
    }
    Ok(())
}

/// Whether a file belongs to a corpus, or to one of its partitions, which are corpora of their own.
fn is_known(name: &str, manifest: &Manifest) -> bool {
    if manifest.shards.iter().any(|shard| shard.file == name) {
        return true;
    }
    let inside = match name.split_once('/') {
        Some((folder, rest)) if folder.starts_with("part-") && folder.contains("-of-") => rest,
        _ => name,
    };
    let (folder, file) = inside.rsplit_once('/').unwrap_or(("", inside));
    let is_part = file.starts_with("part-") && file.strip_suffix(".parquet").is_some();
    FILES.contains(&inside) || (is_part && TABLES.iter().any(|(table, _)| *table == folder))
}

fn is_shard(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name);
    file.starts_with("shard-") && file.ends_with(".parquet")
}

fn check_plan(
    store: &CorpusStore,
    manifest: &Manifest,
    checked: &mut Checked,
) -> Result<(), IngestError> {
    match hash_of(store, PLAN_FILE)? {
        None => checked.add(PLAN_FILE, "it is missing"),
        Some(hash) if hash != manifest.plan_sha256 => {
            checked.add(PLAN_FILE, format!("{PLAN_FILE} is not the plan that the manifest names"));
        }
        Some(_) => {
            let text = String::from_utf8_lossy(&store.get(PLAN_FILE)?).into_owned();
            let plan = BuildPlan::parse(&text, PLAN_FILE).and_then(|plan| plan.validate());
            if let Err(error) = plan {
                checked.add(PLAN_FILE, error.to_string());
            }
        }
    }
    Ok(())
}

/// `run.json` names the plan that the manifest names.
fn check_run(
    store: &CorpusStore,
    manifest: &Manifest,
    checked: &mut Checked,
) -> Result<(), IngestError> {
    if !store.exists(RUN_FILE)? {
        checked.add(RUN_FILE, "it is missing");
        return Ok(());
    }
    let run: Result<serde_json::Value, _> = serde_json::from_slice(&store.get(RUN_FILE)?);
    match run {
        Err(error) => checked.add(RUN_FILE, error.to_string()),
        Ok(run) if run["plan_sha256"] != manifest.plan_sha256.as_str() => {
            checked.add(RUN_FILE, "it names another plan than the manifest");
        }
        Ok(_) => {}
    }
    Ok(())
}

/// Reads a table to its end and compares its columns.
fn check_table(
    store: &CorpusStore,
    name: &'static str,
    schema: &Schema,
    checked: &mut Checked,
) -> Result<(), IngestError> {
    let mut rows = 0;
    for part in table::parts(store, name)? {
        let read = table::read(store, &part, &[]).and_then(|batches| {
            let mut n = 0;
            for batch in batches {
                let batch = batch?;
                if let Some(problem) = wrong_columns(&batch.schema(), schema) {
                    return Ok(Err(problem));
                }
                n += batch.num_rows() as u64;
            }
            Ok(Ok(n))
        });
        match read {
            Ok(Ok(n)) => rows += n,
            Ok(Err(problem)) => checked.add(part, problem),
            Err(error) => checked.add(part, error_text(&error)),
        }
    }
    if rows > 0 {
        checked.tables.insert(name, rows);
    }
    Ok(())
}

/// Columns that an earlier version did not have may be missing, numbers only; all others are exact.
fn wrong_columns(found: &Schema, expected: &Schema) -> Option<String> {
    for field in expected.fields() {
        match found.field_with_name(field.name()) {
            Ok(other) if other.data_type() == field.data_type() && other.is_nullable() => {}
            Err(_) if *field.data_type() == DataType::Float32 => {}
            Ok(other) => {
                let (name, is, should) = (field.name(), other.data_type(), field.data_type());
                return Some(format!("column `{name}` should be nullable {should}, found {is}"));
            }
            Err(_) => return Some(format!("it lacks column `{}`", field.name())),
        }
    }
    let unknown = found.fields().iter().find(|f| expected.field_with_name(f.name()).is_err());
    unknown.map(|field| format!("column `{}` is not known", field.name()))
}

/// An error with its causes.
pub(super) fn error_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}
