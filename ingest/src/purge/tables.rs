//! `purged/`, and what a purge takes out of the other tables.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use flamingo_dataset::{CorpusStore, ImageMeta, Row};

use super::PURGED;
use super::targets::{Target, Targets};
use crate::error::IngestError;
use crate::output::{FIGURES, REJECTS, SAMPLES};
use crate::{reject, table};

/// What a row of `purged/` with a target that was asked for says of itself.
const REQUEST: &str = "request";

/// One thing that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Why.
    pub target: Target,
    /// What it was: `document`, `image`, `pair`, `clip`, or a row of a table: `reject`, `figure`,
    /// `sample`.
    pub what: &'static str,
    /// Identifier of the row it was, or was in.
    pub key: Option<String>,
    /// Its address.
    pub url: Option<String>,
    /// Its hash.
    pub sha256: Option<String>,
}

impl Record {
    pub(super) fn of_row(
        target: &Target,
        row: &Row,
        url: Option<&str>,
        sha256: Option<&str>,
    ) -> Self {
        let what = match row {
            Row::Interleaved(_) => "document",
            Row::ImageText(_) => "pair",
            Row::VideoText(_) => "clip",
        };
        Self {
            target: target.clone(),
            what,
            key: Some(row.key().to_owned()),
            url: url.map(str::to_owned),
            sha256: sha256.map(str::to_owned),
        }
    }

    pub(super) fn of_image(target: &Target, key: &str, meta: &ImageMeta) -> Self {
        Self {
            target: target.clone(),
            what: "image",
            key: Some(key.to_owned()),
            url: meta.url.clone(),
            sha256: Some(meta.sha256.clone()),
        }
    }

    /// Whether a whole row of the corpus went.
    pub(super) fn is_row(&self) -> bool {
        matches!(self.what, "document" | "pair" | "clip")
    }
}

/// Arrow schema of `purged/part-NNNNN.parquet`: a row for each target that was asked for (`what` is
/// `request`) and for each thing that went because of one.
pub fn schema() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        Field::new("purged_at", time, true),
        text("by"),
        text("value"),
        text("what"),
        text("key"),
        text("url"),
        text("sha256"),
    ]))
}

/// Writes one more part of `purged/`: the new targets, and what is going to go.
pub(super) fn record(
    store: &CorpusStore,
    new: &Targets,
    records: &[Record],
    now_us: i64,
) -> Result<(), IngestError> {
    let requests = new.iter().map(|target| Record {
        target: target.clone(),
        what: REQUEST,
        key: None,
        url: None,
        sha256: None,
    });
    let rows: Vec<Record> = requests.chain(records.iter().cloned()).collect();
    let text = |value: fn(&Record) -> Option<&str>| -> ArrayRef {
        Arc::new(rows.iter().map(value).collect::<StringArray>())
    };
    let times = TimestampMicrosecondArray::from(vec![now_us; rows.len()]).with_timezone("UTC");
    let columns = vec![
        Arc::new(times) as ArrayRef,
        text(|r| Some(r.target.by.name())),
        text(|r| Some(&r.target.value)),
        text(|r| Some(r.what)),
        text(|r| r.key.as_deref()),
        text(|r| r.url.as_deref()),
        text(|r| r.sha256.as_deref()),
    ];
    let batch = RecordBatch::try_new(schema(), columns)
        .expect("the columns are built from the same schema");
    let names = store.list(PURGED)?;
    let numbers = names
        .iter()
        .filter_map(|name| name.strip_suffix(".parquet")?.rsplit_once('-')?.1.parse::<u64>().ok());
    let next = numbers.max().map_or(0, |last| last + 1);
    let name = format!("{PURGED}/part-{next:05}.parquet");
    Ok(store.put(&name, reject::encode_batch(&batch).into())?)
}

/// The targets of all parts, as `(by, value)`.
pub(super) fn recorded(store: &CorpusStore) -> Result<Vec<(String, String)>, IngestError> {
    let mut targets = Vec::new();
    for part in table::parts(store, PURGED)? {
        for batch in table::read(store, &part, &["by", "value", "what"])? {
            let batch = batch?;
            for i in 0..batch.num_rows() {
                let column = |name| table::text(&batch, name, i);
                if let (Some(REQUEST), Some(by), Some(value)) =
                    (column("what"), column("by"), column("value"))
                {
                    targets.push((by.to_owned(), value.to_owned()));
                }
            }
        }
    }
    Ok(targets)
}

/// Parts of tables that are to be written again.
#[derive(Default)]
pub(super) struct Rewrite {
    pub(super) n_rows: u64,
    /// Name and what stays; none where nothing does.
    parts: Vec<(String, Option<Vec<u8>>)>,
}

impl Rewrite {
    pub(super) fn write(self, store: &CorpusStore) -> Result<(), IngestError> {
        for (name, bytes) in self.parts {
            match bytes {
                Some(bytes) => store.put(&name, bytes.into())?,
                None => store.delete(&name)?,
            }
        }
        Ok(())
    }
}

/// What is to go from rejects, figures and samples: rows about an address that is named, and figures
/// of rows that go.
pub(super) fn plan(
    store: &CorpusStore,
    targets: &Targets,
    removed: &BTreeSet<String>,
    records: &mut Vec<Record>,
) -> Result<Rewrite, IngestError> {
    let mut rewrite = Rewrite::default();
    for (folder, what) in [(REJECTS, "reject"), (FIGURES, "figure"), (SAMPLES, "sample")] {
        for name in table::parts(store, folder)? {
            let batches = table::read(store, &name, &[])?.collect::<Result<Vec<_>, _>>()?;
            let Some(first) = batches.first() else { continue };
            let mut n = 0;
            let mut kept = Vec::new();
            for batch in &batches {
                let stays = |i| {
                    let key = table::text(batch, "key", i);
                    let url = table::text(batch, "url", i);
                    if let Some(target) = url.and_then(|url| targets.of_url(url)) {
                        n += 1;
                        records.push(Record {
                            target: target.clone(),
                            what,
                            key: key.map(str::to_owned),
                            url: url.map(str::to_owned),
                            sha256: None,
                        });
                        return false;
                    }
                    let is_removed = key.is_some_and(|key| removed.contains(key));
                    n += u64::from(is_removed);
                    !is_removed
                };
                let stays: BooleanArray = (0..batch.num_rows()).map(stays).map(Some).collect();
                let batch = filter_record_batch(batch, &stays);
                kept.push(batch.expect("one flag was made for each row"));
            }
            if n == 0 {
                continue;
            }
            rewrite.n_rows += n;
            let batch = concat_batches(&first.schema(), &kept);
            let batch = batch.expect("all batches are of one file");
            let bytes = (batch.num_rows() > 0).then(|| reject::encode_batch(&batch));
            rewrite.parts.push((name, bytes));
        }
    }
    Ok(rewrite)
}
