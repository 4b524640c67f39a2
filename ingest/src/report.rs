//! `report.html`: what was kept and dropped, by stage and reason, and samples with their images.
//!
//! It is made from the finished corpus alone, so that it can be made again at any time.

use std::collections::BTreeMap;

use arrow::array::{Array, RecordBatch, StringArray};
use bytes::Bytes;
use flamingo_dataset::report::Page;
use flamingo_dataset::{Corpus, CorpusError, CorpusKind, CorpusStore, EncodedImage, Manifest, Row};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::error::IngestError;
use crate::output::REJECTS;

/// The report, beside the shards.
pub const REPORT_FILE: &str = "report.html";
/// Rows that are shown, evenly spread over the corpus.
const SAMPLES: u64 = 8;
/// Images that are shown of one row.
const SAMPLE_IMAGES: usize = 8;
/// Characters that are shown of one text.
const SAMPLE_CHARS: usize = 600;

/// Dropped records of one rule.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Dropped {
    n: u64,
    /// The first one's address, or the file it came from.
    example: String,
}

/// Writes the report of the corpus in `store` that `manifest` describes.
///
/// # Errors
/// When the corpus cannot be read or the report written.
pub fn write(store: &CorpusStore, manifest: Manifest) -> Result<(), IngestError> {
    let corpus = Corpus::with_manifest(store.clone(), manifest)?;
    let dropped = count_rejects(store)?;
    let mut page = Page::new(&format!("Corpus of {} rows", corpus.kind().name().replace('_', "/")));
    add_totals(&mut page, &corpus);
    add_dropped(&mut page, &dropped);
    add_samples(&mut page, &corpus)?;
    Ok(store.put(REPORT_FILE, Bytes::from(page.finish()))?)
}

fn add_totals(page: &mut Page, corpus: &Corpus) {
    let manifest = corpus.manifest();
    let bytes: u64 = manifest.shards.iter().map(|shard| shard.bytes).sum();
    page.heading("Kept");
    let row = [manifest.rows, manifest.images, manifest.words, manifest.shards.len() as u64, bytes];
    let row = row.map(|n| n.to_string()).to_vec();
    page.table(&["rows", "images", "words", "shards", "bytes"], &[row]);
    page.paragraph(&format!("SHA-256 of the plan: {}", manifest.plan_sha256));
}

fn add_dropped(page: &mut Page, dropped: &BTreeMap<(String, String), Dropped>) {
    page.heading("Dropped");
    if dropped.is_empty() {
        page.paragraph("Nothing was dropped.");
        return;
    }
    let total: u64 = dropped.values().map(|dropped| dropped.n).sum();
    let rows: Vec<_> = dropped
        .iter()
        .map(|((stage, reason), dropped)| {
            let share = format!("{:.1} %", 100.0 * dropped.n as f64 / total as f64);
            vec![
                stage.clone(),
                reason.clone(),
                dropped.n.to_string(),
                share,
                dropped.example.clone(),
            ]
        })
        .collect();
    page.table(&["stage", "reason", "records", "share", "first"], &rows);
}

/// Counts the rejects by stage and reason, one file in memory at a time.
fn count_rejects(store: &CorpusStore) -> Result<BTreeMap<(String, String), Dropped>, IngestError> {
    let mut dropped = BTreeMap::new();
    let names = store.list("")?;
    // Those of the partitions, too.
    for name in names.into_iter().filter(|name| name.split('/').any(|part| part == REJECTS)) {
        let broken = |source| CorpusError::Parquet { object: name.clone(), source };
        let file = store.get(&name)?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(file)
            .and_then(ParquetRecordBatchReaderBuilder::build)
            .map_err(broken)?;
        for batch in reader {
            let batch =
                batch.map_err(|source| CorpusError::Arrow { object: name.clone(), source })?;
            count_batch(&batch, &mut dropped);
        }
    }
    Ok(dropped)
}

fn count_batch(batch: &RecordBatch, dropped: &mut BTreeMap<(String, String), Dropped>) {
    let column = |name| {
        let column = batch.column_by_name(name)?;
        column.as_any().downcast_ref::<StringArray>()
    };
    let Some((stages, reasons)) = column("stage").zip(column("reason")) else { return };
    let Some((sources, urls)) = column("source").zip(column("url")) else { return };
    for i in 0..batch.num_rows() {
        let rule = (stages.value(i).to_owned(), reasons.value(i).to_owned());
        let entry = dropped.entry(rule).or_insert_with(|| {
            let example = if urls.is_valid(i) { urls.value(i) } else { sources.value(i) };
            Dropped { n: 0, example: example.to_owned() }
        });
        entry.n += 1;
    }
}

fn add_samples(page: &mut Page, corpus: &Corpus) -> Result<(), IngestError> {
    page.heading("Samples");
    let n = corpus.n_rows().min(SAMPLES);
    for i in 0..n {
        let row_idx = i * corpus.n_rows() / n;
        let row = corpus.read(row_idx)?;
        page.paragraph(&format!("Row {row_idx}: {}", title(&row)));
        for (image, caption) in figures(&row).into_iter().take(SAMPLE_IMAGES) {
            page.figure(&image.bytes, mime(image), &excerpt(&caption));
        }
        if corpus.kind() == CorpusKind::Interleaved {
            page.paragraph(&excerpt(&row.texts().join(" ")));
        }
    }
    Ok(())
}

fn title(row: &Row) -> String {
    match row {
        Row::Interleaved(document) => {
            let title = document.title.as_deref().unwrap_or("");
            format!("{title} {}", document.url)
        }
        Row::ImageText(pair) => pair.url.clone().unwrap_or_else(|| pair.key.clone()),
        Row::VideoText(clip) => format!("{}: {}", clip.key, clip.caption),
    }
}

/// Images of a row with what is to be read below them.
fn figures(row: &Row) -> Vec<(&EncodedImage, String)> {
    match row {
        Row::Interleaved(document) => {
            let slots = document.slots.iter().filter_map(|slot| match slot {
                flamingo_dataset::Slot::Image { image, meta } => {
                    Some((image, meta.alt.clone().unwrap_or_default()))
                }
                flamingo_dataset::Slot::Text(_) => None,
            });
            slots.collect()
        }
        Row::ImageText(pair) => vec![(&pair.image, pair.caption.clone())],
        Row::VideoText(clip) => {
            let times = clip.frame_ms.iter().map(|ms| format!("{:.1} s", f64::from(*ms) / 1000.0));
            clip.frames.iter().zip(times).collect()
        }
    }
}

fn mime(image: &EncodedImage) -> &'static str {
    ::image::guess_format(&image.bytes).map_or("application/octet-stream", |f| f.to_mime_type())
}

/// The beginning of a text.
fn excerpt(text: &str) -> String {
    match text.char_indices().nth(SAMPLE_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reject::{DropReason, Origin, Stage, to_batch};

    #[test]
    fn rejects_are_counted_by_rule_with_their_first_example() {
        let origin = |url: Option<&str>| Origin {
            source: "a.warc".into(),
            offset: None,
            url: url.map(str::to_owned),
        };
        let reject = |reason, url| DropReason::because(reason).at(Stage::Image, &origin(url), None);
        let rejects = [
            reject("aspect", Some("one")),
            reject("aspect", Some("two")),
            reject("empty_file", None),
        ];
        let mut dropped = BTreeMap::new();
        count_batch(&to_batch(&rejects), &mut dropped);
        let rule = |reason: &str| ("image".to_owned(), reason.to_owned());
        assert_eq!(dropped[&rule("aspect")], Dropped { n: 2, example: "one".into() });
        assert_eq!(dropped[&rule("empty_file")], Dropped { n: 1, example: "a.warc".into() });
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(excerpt("short"), "short");
        let long = "é".repeat(SAMPLE_CHARS + 1);
        assert_eq!(excerpt(&long).chars().count(), SAMPLE_CHARS + 1);
    }
}
