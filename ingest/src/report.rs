//! `report.html`: the funnel by stage and rule, what other thresholds would keep, what the corpus
//! holds, and samples of what was kept and dropped with their images.
//!
//! It is made from the finished corpus and the tables beside it alone, so that it can be made again
//! at any time; equal corpora give equal reports.

mod content;
mod fetches;
mod funnel;
mod sweep;

use bytes::Bytes;
use flamingo_dataset::report::Page;
use flamingo_dataset::{Corpus, CorpusStore, Manifest, Row};

use crate::error::IngestError;
use crate::output::PLAN_FILE;
use crate::plan::BuildPlan;
use crate::purge::Targets;
use crate::view::{self, cut};

/// The report, beside the shards.
pub const REPORT_FILE: &str = "report.html";
/// Rows that are shown, evenly spread over the corpus.
const SAMPLES: u64 = 8;
/// Slots, or frames, that are shown of one row.
const SAMPLE_SLOTS: usize = 12;
/// Characters that are shown of one text.
const SAMPLE_CHARS: usize = 600;

/// Writes the report of the corpus in `store` that `manifest` describes.
///
/// # Errors
/// When the corpus cannot be read or the report written.
pub fn write(store: &CorpusStore, manifest: Manifest) -> Result<(), IngestError> {
    let plan = String::from_utf8_lossy(&store.get(PLAN_FILE)?).into_owned();
    let plan = BuildPlan::parse(&plan, &store.name_of(PLAN_FILE))?;
    let corpus = Corpus::with_manifest(store.clone(), manifest)?;
    let mut page = Page::new(&format!("Corpus of {} rows", corpus.kind().name().replace('_', "/")));
    add_totals(&mut page, &corpus);
    funnel::add(&mut page, store, &corpus)?;
    sweep::add(&mut page, store, &plan, corpus.kind())?;
    content::add(&mut page, store, &corpus)?;
    fetches::add(&mut page, store)?;
    add_purged(&mut page, store)?;
    add_samples(&mut page, &corpus)?;
    Ok(store.put(REPORT_FILE, Bytes::from(page.finish()))?)
}

fn add_totals(page: &mut Page, corpus: &Corpus) {
    let manifest = corpus.manifest();
    let bytes: u64 = manifest.shards.iter().map(|shard| shard.bytes).sum();
    let per_row = |n: u64| format!("{:.1}", n as f64 / manifest.rows.max(1) as f64);
    page.heading("Kept");
    let totals = [manifest.rows, manifest.images, manifest.words, manifest.shards.len() as u64];
    let mut row: Vec<String> = totals.iter().map(ToString::to_string).collect();
    row.extend([show_bytes(bytes), per_row(manifest.images), per_row(manifest.words)]);
    let headers = ["rows", "images", "words", "shards", "bytes", "images a row", "words a row"];
    page.table(&headers, &[row]);
    page.paragraph(&format!("SHA-256 of the plan: {}", manifest.plan_sha256));
}

/// What was taken out on request.
fn add_purged(page: &mut Page, store: &CorpusStore) -> Result<(), IngestError> {
    let targets = Targets::recorded(store)?;
    if targets.is_empty() {
        return Ok(());
    }
    page.heading("Taken out on request");
    let n = |by| targets.iter().filter(|target| target.by == by).count().to_string();
    let rows = [crate::purge::By::Url, crate::purge::By::Domain, crate::purge::By::Sha256]
        .map(|by| vec![by.name().to_owned(), n(by)]);
    page.table(&["by", "requests"], &rows);
    Ok(())
}

fn add_samples(page: &mut Page, corpus: &Corpus) -> Result<(), IngestError> {
    let n = corpus.n_rows().min(SAMPLES);
    if n == 0 {
        return Ok(());
    }
    page.heading("Rows that were kept");
    page.paragraph(
        "Beside each text: the image it may see when texts follow their image, and when they precede it.",
    );
    for i in 0..n {
        let row_idx = i * corpus.n_rows() / n;
        let row = corpus.read(row_idx)?;
        page.subheading(&format!("Row {row_idx}: {}", cut(&title(&row), SAMPLE_CHARS)));
        view::add_content(page, &row, SAMPLE_CHARS, SAMPLE_SLOTS);
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
        Row::VideoText(clip) => clip.url.clone().unwrap_or_else(|| clip.key.clone()),
    }
}

/// `1.5 MB`.
fn show_bytes(bytes: u64) -> String {
    let units = [("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    let unit = units.into_iter().find(|(_, size)| bytes as f64 >= *size);
    unit.map_or(format!("{bytes} B"), |(name, size)| format!("{:.1} {name}", bytes as f64 / size))
}

/// A number as short as it can be told.
fn show_number(value: f64) -> String {
    if value.fract().abs() < 1e-9 && value.abs() < 1e15 {
        format!("{value:.0}")
    } else {
        let text = format!("{value:.4}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!([show_number(3.0), show_number(0.25), show_number(2.99999)], ["3", "0.25", "3"]);
        assert_eq!(
            [show_bytes(12), show_bytes(1500), show_bytes(2_340_000)],
            ["12 B", "1.5 kB", "2.3 MB"]
        );
    }
}
