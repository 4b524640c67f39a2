//! What the corpus holds: languages, images a row, sizes of images.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int32Type;
use flamingo_dataset::report::{Bar, Page};
use flamingo_dataset::{Corpus, CorpusKind, CorpusStore};

use crate::error::IngestError;
use crate::table;

/// Languages that are shown; the others are one bar.
const LANGUAGES_MAX: usize = 12;
/// Lower ends of the bars for the short side of images.
const SIDES: [i32; 8] = [0, 64, 128, 192, 256, 384, 512, 1024];
/// Lower ends of the bars for images a row.
const IMAGES: [i32; 9] = [0, 1, 2, 3, 4, 6, 9, 16, 31];

#[derive(Default)]
struct Counts {
    languages: BTreeMap<String, u64>,
    sides: [u64; SIDES.len()],
    images: [u64; IMAGES.len()],
}

pub(super) fn add(
    page: &mut Page,
    store: &CorpusStore,
    corpus: &Corpus,
) -> Result<(), IngestError> {
    let columns: &[&str] = match corpus.kind() {
        CorpusKind::Interleaved => &["lang", "image_meta"],
        CorpusKind::ImageText => &["width", "height"],
        CorpusKind::VideoText => &["width", "height", "frame_ms"],
    };
    let mut counts = Counts::default();
    for entry in &corpus.manifest().shards {
        for batch in table::read(store, &entry.file, columns)? {
            counts.add(&batch?, corpus.kind());
        }
    }
    page.heading("What the corpus holds");
    if corpus.kind() != CorpusKind::ImageText {
        let noun = if corpus.kind() == CorpusKind::Interleaved { "Images" } else { "Frames" };
        page.subheading(&format!("{noun} a row"));
        page.bars(&ranges(&IMAGES, &counts.images));
    }
    page.subheading("Short side in pixels, as stored");
    page.bars(&ranges(&SIDES, &counts.sides));
    if !counts.languages.is_empty() {
        page.subheading("Languages");
        page.bars(&languages(&counts.languages));
    }
    Ok(())
}

impl Counts {
    fn add(&mut self, batch: &RecordBatch, kind: CorpusKind) {
        if kind == CorpusKind::Interleaved {
            for i in 0..batch.num_rows() {
                let lang = table::text(batch, "lang", i).unwrap_or("not known");
                *self.languages.entry(lang.to_owned()).or_default() += 1;
            }
            let Some(metas) = batch["image_meta"].as_list_opt::<i32>() else { return };
            for i in 0..metas.len() {
                count(&IMAGES, &mut self.images, metas.value_length(i));
            }
            // The values of a slice of a list may go past it on both sides.
            let (start, end) = (metas.offsets()[0], metas.offsets()[metas.len()]);
            let values = metas.values().slice(start as usize, (end - start) as usize);
            self.add_sides(&RecordBatch::from(values.as_struct()));
            return;
        }
        self.add_sides(batch);
        if let Some(frames) = batch.column_by_name("frame_ms").and_then(|c| c.as_list_opt::<i32>())
        {
            for i in 0..frames.len() {
                count(&IMAGES, &mut self.images, frames.value_length(i));
            }
        }
    }

    fn add_sides(&mut self, batch: &RecordBatch) {
        let side = |name: &str| batch.column_by_name(name)?.as_primitive_opt::<Int32Type>();
        let Some((widths, heights)) = side("width").zip(side("height")) else { return };
        for (width, height) in widths.iter().zip(heights).filter_map(|(w, h)| w.zip(h)) {
            count(&SIDES, &mut self.sides, width.min(height));
        }
    }
}

fn count(starts: &[i32], counts: &mut [u64], value: i32) {
    let bin = starts.partition_point(|&start| start <= value).saturating_sub(1);
    counts[bin] += 1;
}

/// A bar for each range; empty ones at both ends are left out.
fn ranges(starts: &[i32], counts: &[u64]) -> Vec<Bar> {
    let used: Vec<usize> = (0..counts.len()).filter(|&i| counts[i] > 0).collect();
    let (Some(&first), Some(&last)) = (used.first(), used.last()) else { return Vec::new() };
    (first..=last)
        .map(|i| {
            let label = match starts.get(i + 1) {
                Some(next) if *next == starts[i] + 1 => starts[i].to_string(),
                Some(next) => format!("{} to {}", starts[i], next - 1),
                None => format!("{} and more", starts[i]),
            };
            Bar { label, value: counts[i] as f64, note: counts[i].to_string() }
        })
        .collect()
}

fn languages(counts: &BTreeMap<String, u64>) -> Vec<Bar> {
    let mut sorted: Vec<_> = counts.iter().collect();
    sorted.sort_by_key(|(name, n)| (std::cmp::Reverse(**n), (*name).clone()));
    let bar =
        |label: &str, n: u64| Bar { label: label.to_owned(), value: n as f64, note: n.to_string() };
    let mut bars: Vec<Bar> =
        sorted.iter().take(LANGUAGES_MAX).map(|(name, n)| bar(name, **n)).collect();
    let others: u64 = sorted.iter().skip(LANGUAGES_MAX).map(|(_, n)| **n).sum();
    if others > 0 {
        bars.push(bar("others", others));
    }
    bars
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fall_into_ranges() {
        let mut counts = [0; IMAGES.len()];
        for value in [1, 1, 5, 30, 31, 900] {
            count(&IMAGES, &mut counts, value);
        }
        let bars = ranges(&IMAGES, &counts);
        let shown: Vec<_> = bars.iter().map(|bar| format!("{}: {}", bar.label, bar.note)).collect();
        let expected = [
            "1: 2",
            "2: 0",
            "3: 0",
            "4 to 5: 1",
            "6 to 8: 0",
            "9 to 15: 0",
            "16 to 30: 1",
            "31 and more: 2",
        ];
        assert_eq!(shown, expected);
    }
}
