//! What was dropped, stage by stage and rule by rule, with pictures.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float32Type, Float64Type};
use flamingo_dataset::report::{Bar, Page};
use flamingo_dataset::{Corpus, CorpusKind, CorpusStore};

use super::{cut, show_bytes, show_number};
use crate::error::IngestError;
use crate::output::{FIGURES, REJECTS, SAMPLES};
use crate::reject::Stage;
use crate::table;

/// Stages in the order of the run.
const STAGES: [Stage; 9] = [
    Stage::Read,
    Stage::Split,
    Stage::OptOut,
    Stage::Fetch,
    Stage::Page,
    Stage::Caption,
    Stage::Image,
    Stage::Video,
    Stage::Document,
];
/// Examples without pictures of one rule.
const EXAMPLES: usize = 3;
/// Pictures of one rule, those with the smallest hash of their place.
const PICTURES: usize = 8;
/// Characters of an address or an explanation.
const CHARS: usize = 160;

/// Dropped records of one rule.
#[derive(Debug, Clone, PartialEq, Default)]
struct Dropped {
    n: u64,
    /// Bytes of the images among them, where they were measured.
    bytes: u64,
    /// Smallest and largest measured value.
    measured: Option<(f64, f64)>,
    limit: Option<f64>,
    examples: Vec<Vec<String>>,
}

/// A rule: its stage's place in the run, the stage, the reason.
type Rule = (usize, String, String);

/// What became of the things of one level.
#[derive(Debug, Clone, Copy, Default)]
struct Level {
    measured: u64,
    kept: u64,
}

pub(super) fn add(
    page: &mut Page,
    store: &CorpusStore,
    corpus: &Corpus,
) -> Result<(), IngestError> {
    let mut rules = count_rejects(store)?;
    let levels = count_figures(store, &mut rules)?;
    page.heading("The funnel");
    add_levels(page, &levels);
    if rules.is_empty() {
        page.paragraph("Nothing was dropped.");
        return Ok(());
    }
    let noun = match corpus.kind() {
        CorpusKind::Interleaved => "documents kept",
        CorpusKind::ImageText => "pairs kept",
        CorpusKind::VideoText => "clips kept",
    };
    let mut bars: Vec<Bar> = rules
        .iter()
        .map(|((_, stage, reason), dropped)| Bar {
            label: format!("{stage} / {reason}"),
            value: dropped.n as f64,
            note: dropped.n.to_string(),
        })
        .collect();
    let rows = corpus.n_rows();
    bars.push(Bar { label: noun.to_owned(), value: rows as f64, note: rows.to_string() });
    page.bars(&bars);
    add_rules(page, &rules);
    add_pictures(page, store)
}

fn add_levels(page: &mut Page, levels: &BTreeMap<String, Level>) {
    if levels.is_empty() {
        return;
    }
    let rows: Vec<_> = levels
        .iter()
        .map(|(name, level)| {
            let share = 100.0 * level.kept as f64 / level.measured.max(1) as f64;
            vec![
                name.clone(),
                level.measured.to_string(),
                level.kept.to_string(),
                (level.measured - level.kept).to_string(),
                format!("{share:.1} %"),
            ]
        })
        .collect();
    page.table(&["what", "measured", "kept", "dropped", "kept, share"], &rows);
}

fn add_rules(page: &mut Page, rules: &BTreeMap<Rule, Dropped>) {
    let total: u64 = rules.values().map(|dropped| dropped.n).sum();
    let rows: Vec<_> = rules
        .iter()
        .map(|((_, stage, reason), dropped)| {
            let share = format!("{:.1} %", 100.0 * dropped.n as f64 / total as f64);
            let range = dropped.measured.map_or(String::new(), |(low, high)| {
                format!("{} to {}", show_number(low), show_number(high))
            });
            let bytes = if dropped.bytes > 0 { show_bytes(dropped.bytes) } else { String::new() };
            let limit = dropped.limit.map_or(String::new(), show_number);
            vec![stage.clone(), reason.clone(), dropped.n.to_string(), share, bytes, range, limit]
        })
        .collect();
    let headers = ["stage", "reason", "records", "share", "bytes", "measured", "limit"];
    page.table(&headers, &rows);
    page.subheading("Examples");
    let examples = rules.iter().flat_map(|((_, stage, reason), dropped)| {
        dropped.examples.iter().map(move |example| {
            let mut row = vec![format!("{stage} / {reason}")];
            row.extend(example.iter().cloned());
            row
        })
    });
    let headers = ["rule", "measured", "from", "address, explanation"];
    page.table(&headers, &examples.collect::<Vec<_>>());
}

/// Counts the rejects by stage and reason, one batch in memory at a time.
fn count_rejects(store: &CorpusStore) -> Result<BTreeMap<Rule, Dropped>, IngestError> {
    let mut rules = BTreeMap::new();
    for name in table::parts(store, REJECTS)? {
        for batch in table::read(store, &name, &[])? {
            count_batch(&batch?, &mut rules);
        }
    }
    Ok(rules)
}

fn count_batch(batch: &RecordBatch, rules: &mut BTreeMap<Rule, Dropped>) {
    let number = |name: &str, i: usize| {
        let values = batch.column_by_name(name)?.as_primitive_opt::<Float64Type>()?;
        values.is_valid(i).then(|| values.value(i))
    };
    for i in 0..batch.num_rows() {
        let text = |name| table::text(batch, name, i);
        let (Some(stage), Some(reason)) = (text("stage"), text("reason")) else { continue };
        let dropped = rules.entry(rule(stage, reason)).or_default();
        dropped.n += 1;
        let measured = number("measured", i);
        if let Some(value) = measured {
            let (low, high) = dropped.measured.unwrap_or((value, value));
            dropped.measured = Some((low.min(value), high.max(value)));
        }
        dropped.limit = dropped.limit.or(number("limit", i));
        if dropped.examples.len() < EXAMPLES {
            let mut words = text("url").unwrap_or("").to_owned();
            if let Some(detail) = text("detail") {
                words = format!("{words}\n{detail}");
            }
            dropped.examples.push(vec![
                measured.map_or(String::new(), show_number),
                text("source").unwrap_or("").to_owned(),
                cut(words.trim(), CHARS),
            ]);
        }
    }
}

fn rule(stage: &str, reason: &str) -> Rule {
    let place = STAGES.iter().position(|known| known.name() == stage).unwrap_or(STAGES.len());
    (place, stage.to_owned(), reason.to_owned())
}

/// Counts what was measured by level, and adds the bytes of dropped images to their rules.
fn count_figures(
    store: &CorpusStore,
    rules: &mut BTreeMap<Rule, Dropped>,
) -> Result<BTreeMap<String, Level>, IngestError> {
    let mut levels: BTreeMap<String, Level> = BTreeMap::new();
    for name in table::parts(store, FIGURES)? {
        for batch in table::read(store, &name, &["level", "kept", "dropped_by", "bytes"])? {
            let batch = batch?;
            let bytes = batch.column_by_name("bytes");
            let bytes = bytes.and_then(|column| column.as_primitive_opt::<Float32Type>());
            for i in 0..batch.num_rows() {
                let Some(level) = table::text(&batch, "level", i) else { continue };
                let level = levels.entry(level.to_owned()).or_default();
                level.measured += 1;
                let Some(dropped_by) = table::text(&batch, "dropped_by", i) else {
                    level.kept += 1;
                    continue;
                };
                let Some((stage, reason)) = dropped_by.split_once('/') else { continue };
                let size = bytes.filter(|b| b.is_valid(i)).map_or(0, |b| b.value(i) as u64);
                if let Some(dropped) = rules.get_mut(&rule(stage, reason)) {
                    dropped.bytes += size;
                }
            }
        }
    }
    Ok(levels)
}

/// Pictures of rejects, rule by rule.
fn add_pictures(page: &mut Page, store: &CorpusStore) -> Result<(), IngestError> {
    let mut rules: BTreeMap<Rule, Vec<(Vec<u8>, String)>> = BTreeMap::new();
    for name in table::parts(store, SAMPLES)? {
        for batch in table::read(store, &name, &[])? {
            let batch = batch?;
            let Some(images) = batch.column_by_name("image").and_then(|c| c.as_struct_opt()) else {
                continue;
            };
            let Some(bytes) = images.column(0).as_binary_opt::<i32>() else { continue };
            for i in 0..batch.num_rows() {
                let text = |name| table::text(&batch, name, i);
                let (Some(stage), Some(reason)) = (text("stage"), text("reason")) else { continue };
                let pictures = rules.entry(rule(stage, reason)).or_default();
                if pictures.len() < PICTURES && bytes.is_valid(i) {
                    let measured = batch.column_by_name("measured");
                    let measured = measured.and_then(|c| c.as_primitive_opt::<Float64Type>());
                    let measured = measured.filter(|m| m.is_valid(i)).map(|m| m.value(i));
                    let measured = measured.map_or(String::new(), show_number);
                    let words = text("detail").or(text("url")).unwrap_or("");
                    let caption = format!("{measured}\n{}", cut(words, CHARS));
                    pictures.push((bytes.value(i).to_vec(), caption.trim().to_owned()));
                }
            }
        }
    }
    if rules.is_empty() {
        return Ok(());
    }
    page.subheading("Images that were dropped");
    for ((_, stage, reason), pictures) in rules {
        page.paragraph(&format!("{stage} / {reason}"));
        for (jpeg, caption) in pictures {
            page.thumbnail(&jpeg, "image/jpeg", &caption);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reject::{DropReason, Origin, to_batch};

    #[test]
    fn rejects_are_counted_by_rule_in_the_order_of_the_run() {
        let origin = |url: Option<&str>| Origin {
            source: "a.warc".into(),
            offset: None,
            url: url.map(str::to_owned),
        };
        let image = |measured, url| {
            DropReason::limit("aspect", measured, 3.0).at(Stage::Image, &origin(url), None)
        };
        let rejects = [
            image(4.0, Some("one")),
            image(9.0, Some("two")),
            DropReason::because("empty_file").at(Stage::Read, &origin(None), None),
        ];
        let mut rules = BTreeMap::new();
        count_batch(&to_batch(&rejects), &mut rules);
        let names: Vec<_> = rules.keys().map(|(_, stage, _)| stage.as_str()).collect();
        assert_eq!(names, ["read", "image"]);
        let aspect = &rules[&rule("image", "aspect")];
        assert_eq!((aspect.n, aspect.measured, aspect.limit), (2, Some((4.0, 9.0)), Some(3.0)));
        assert_eq!(aspect.examples[0], ["4", "a.warc", "one"]);
    }
}
