//! Whether every row has a key of its own, in bounded memory: hashes are sorted range by range, and
//! only keys whose hashes meet are compared themselves.

use std::collections::{BTreeMap, BTreeSet};

use flamingo_dataset::{CorpusKind, CorpusStore};
use sha2::{Digest, Sha256};

use super::layout::error_text;
use super::shard::Footer;
use super::{Checked, Problem};
use crate::error::IngestError;
use crate::table;

/// Hashes in memory at a time: 128 MiB.
const HASHES_MAX: u64 = 1 << 24;

/// The column that names a row.
pub(crate) fn column(kind: CorpusKind) -> &'static str {
    match kind {
        CorpusKind::Interleaved => "doc_id",
        CorpusKind::ImageText | CorpusKind::VideoText => "key",
    }
}

pub(super) fn check(
    store: &CorpusStore,
    kind: CorpusKind,
    footers: &[Footer<'_>],
    checked: &mut Checked,
) {
    let rows: u64 = footers.iter().map(|footer| footer.entry.rows).sum();
    check_in_passes(store, kind, footers, rows.div_ceil(HASHES_MAX).max(1), checked);
}

fn check_in_passes(
    store: &CorpusStore,
    kind: CorpusKind,
    footers: &[Footer<'_>],
    n_passes: u64,
    checked: &mut Checked,
) {
    for pass in 0..n_passes {
        let mut hashes = Vec::new();
        let failed = each_key(store, kind, footers, |_, key| {
            let hash = hash(key);
            if hash % n_passes == pass {
                hashes.push(hash);
            }
        });
        if let Err((file, error)) = failed {
            checked.add(file, error_text(&error));
            return;
        }
        hashes.sort_unstable();
        let repeated: BTreeSet<u64> =
            hashes.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
        drop(hashes);
        if !repeated.is_empty() {
            checked.add_all(name_repeated(store, kind, footers, &repeated));
        }
    }
}

/// The keys themselves, where hashes meet.
fn name_repeated(
    store: &CorpusStore,
    kind: CorpusKind,
    footers: &[Footer<'_>],
    repeated: &BTreeSet<u64>,
) -> Vec<Problem> {
    let mut rows: BTreeMap<String, u64> = BTreeMap::new();
    let mut problems = Vec::new();
    // What can be read once can be read again; a disk that fails in between is found elsewhere.
    let _ = each_key(store, kind, footers, |row, key| {
        if !repeated.contains(&hash(key)) {
            return;
        }
        if let Some(first) = rows.get(key) {
            let place = format!("row {row}");
            let problem = format!("its key `{key}` is that of row {first} already");
            problems.push(Problem { place, problem });
        } else {
            rows.insert(key.to_owned(), row);
        }
    });
    problems
}

/// Calls `each` with the number and key of every row; rows without a key are found elsewhere.
fn each_key<'a>(
    store: &CorpusStore,
    kind: CorpusKind,
    footers: &'a [Footer<'_>],
    mut each: impl FnMut(u64, &str),
) -> Result<(), (&'a str, IngestError)> {
    let column = column(kind);
    for footer in footers {
        let named = |error| (footer.entry.file.as_str(), error);
        let mut row = footer.first_row;
        for batch in table::read(store, &footer.entry.file, &[column]).map_err(named)? {
            let batch = batch.map_err(named)?;
            for i in 0..batch.num_rows() {
                if let Some(key) = table::text(&batch, column, i) {
                    each(row, key);
                }
                row += 1;
            }
        }
    }
    Ok(())
}

fn hash(key: &str) -> u64 {
    let digest = Sha256::digest(key.as_bytes());
    digest.iter().take(8).fold(0, |hash, &byte| hash << 8 | u64::from(byte))
}
