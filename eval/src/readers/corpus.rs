//! Benchmarks made of our own corpora: images or clips with texts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flamingo_dataset::{Corpus, CorpusKind, Row};

use crate::error::EvalError;
use crate::item::{Item, Truth};
use crate::medium::Medium;
use crate::readers::SplitFiles;

/// A row without its image.
struct Labelled {
    row: u64,
    key: String,
    text: String,
    sha256: String,
    source: Option<String>,
}

/// One item per distinct image, in the order of first rows, with the captions of all its rows.
pub(super) fn captions(split: &SplitFiles<'_>) -> Result<Vec<Item>, EvalError> {
    let (corpus, rows) = open(split)?;
    let mut place = BTreeMap::new();
    let mut items: Vec<Item> = Vec::new();
    for row in rows {
        let at = *place.entry(row.sha256.clone()).or_insert(items.len());
        if at == items.len() {
            items.push(item(&corpus, &row, Truth::Captions(Vec::new()), Arc::default()));
        }
        if let Truth::Captions(captions) = &mut items[at].truth {
            captions.push(row.text);
        }
    }
    Ok(items)
}

/// One item per row. Where the task names no candidates, they are the distinct texts of the split that
/// examples are drawn from, in alphabetical order.
pub(super) fn labels(split: &SplitFiles<'_>) -> Result<Vec<Item>, EvalError> {
    let (corpus, rows) = open(split)?;
    let candidates: Arc<[String]> = candidates(split)?.into();
    let refuse = |found: String, expected| EvalError::Setting {
        file: format!("{}/{}", split.location, crate::task_file::SETTINGS_FILE),
        key: "candidates",
        found,
        expected,
    };
    if candidates.len() < 2 {
        return Err(refuse(format!("{candidates:?}"), "at least two different answers"));
    }
    let items = rows.into_iter().map(|row| {
        let right = candidates.iter().position(|candidate| *candidate == row.text);
        let right = right.ok_or_else(|| {
            let found = format!("without `{}`, the answer of `{}`", row.text, row.key);
            refuse(found, "all answers of the rows")
        })?;
        let truth = Truth::Candidate { right, relevance: None };
        Ok(item(&corpus, &row, truth, candidates.clone()))
    });
    items.collect()
}

fn candidates(split: &SplitFiles<'_>) -> Result<Vec<String>, EvalError> {
    let task = split.task;
    if !task.candidates.is_empty() {
        return Ok(task.candidates.clone());
    }
    let files = task.split(task.support.as_deref().unwrap_or(&task.query))?;
    let (_, rows) = open(&SplitFiles { files, ..*split })?;
    let texts: BTreeSet<String> = rows.into_iter().map(|row| row.text).collect();
    Ok(texts.into_iter().collect())
}

fn item(corpus: &Arc<Corpus>, row: &Labelled, truth: Truth, candidates: Arc<[String]>) -> Item {
    Item {
        id: row.key.clone(),
        medium_id: row.sha256.clone(),
        medium: Some(Medium::Row {
            corpus: corpus.clone(),
            row: row.row,
            key: row.key.clone(),
            sha256: row.sha256.clone(),
        }),
        fields: BTreeMap::new(),
        truth,
        candidates,
        category: row.source.clone(),
    }
}

fn open(split: &SplitFiles<'_>) -> Result<(Arc<Corpus>, Vec<Labelled>), EvalError> {
    let location = split.path("corpus")?;
    let corpus = Corpus::open(&location)?;
    if corpus.kind() == CorpusKind::Interleaved {
        return Err(EvalError::Kind { location, found: corpus.kind() });
    }
    let mut rows = Vec::new();
    for (at, row) in (0..).zip(corpus.scan()) {
        rows.extend(labelled(at, row?));
    }
    if rows.is_empty() {
        return Err(EvalError::Empty { location });
    }
    let mut keys = BTreeSet::new();
    if let Some(Labelled { key, .. }) = rows.iter().find(|row| !keys.insert(&row.key)) {
        return Err(EvalError::DuplicateKey { location, key: key.clone() });
    }
    Ok((Arc::new(corpus), rows))
}

/// Rows of other kinds cannot occur in a corpus whose kind was checked.
fn labelled(at: u64, row: Row) -> Option<Labelled> {
    match row {
        Row::ImageText(pair) => Some(Labelled {
            row: at,
            key: pair.key,
            text: pair.caption,
            sha256: pair.sha256,
            source: pair.source,
        }),
        Row::VideoText(clip) => Some(Labelled {
            row: at,
            key: clip.key,
            text: clip.caption,
            // Clips of one film share its digest.
            sha256: format!("{}:{}-{}", clip.sha256, clip.start_ms, clip.end_ms),
            source: None,
        }),
        Row::Interleaved(_) => None,
    }
}
