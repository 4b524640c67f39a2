//! What other thresholds would keep, from the figures that were stored: no run is made again.
//!
//! A thing that a rule dropped was not looked at by later rules. So a looser threshold keeps at most
//! what is shown; a stricter one keeps exactly that.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Float32Type;
use flamingo_dataset::report::Page;
use flamingo_dataset::{CorpusKind, CorpusStore};

use super::show_number;
use crate::error::IngestError;
use crate::figures::{Level, NAMES};
use crate::output::FIGURES;
use crate::plan::BuildPlan;
use crate::rules;
use crate::table;

/// Thresholds of one chart on either side of today's.
const STEPS: i32 = 16;
/// The outermost thresholds are today's divided and multiplied by this.
const SPAN: f64 = 4.0;
/// Thresholds that the table names, as parts of today's.
const TABLE: [f64; 5] = [0.5, 0.8, 1.0, 1.25, 2.0];

/// A rule with a number.
#[derive(Debug, Clone, PartialEq)]
struct Threshold {
    /// What it looks at: `document`, `paragraph`, `caption`, `image`.
    level: String,
    /// `stage/reason` of what it drops.
    dropped_by: String,
    /// Key of the plan.
    key: String,
    /// Figures, of which the smallest or largest counts.
    figures: Vec<String>,
    bound: Bound,
    limit: f64,
}

/// The side on which a rule keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound {
    Min,
    Max,
}

/// What is counted for one threshold.
struct Sweep {
    threshold: Threshold,
    grid: Vec<f64>,
    /// Values below the first grid point, between two, and from the last on.
    bins: Vec<u64>,
    n: u64,
}

impl Sweep {
    fn new(threshold: Threshold, (low, high): (f64, f64)) -> Self {
        let limit = threshold.limit;
        let is_far = limit <= 0.0 || limit > high.max(1e-9) * SPAN * SPAN;
        let mut grid: Vec<f64> = if is_far {
            let step = (high - low) / f64::from(2 * STEPS);
            (0..=2 * STEPS).map(|i| low + step * f64::from(i)).collect()
        } else {
            (-STEPS..=STEPS).map(|i| limit * SPAN.powf(f64::from(i) / f64::from(STEPS))).collect()
        };
        if !is_far {
            grid.extend(TABLE.map(|part| part * limit));
        }
        grid.sort_by(f64::total_cmp);
        grid.dedup();
        let bins = vec![0; grid.len() + 1];
        Self { threshold, grid, bins, n: 0 }
    }

    fn count(&mut self, value: f64) {
        // A minimum keeps what is equal to it, and so does a maximum.
        let bin = match self.threshold.bound {
            Bound::Min => self.grid.partition_point(|&point| point <= value),
            Bound::Max => self.grid.partition_point(|&point| point < value),
        };
        self.bins[bin] += 1;
        self.n += 1;
    }

    /// How many stay at each threshold of the grid.
    fn kept(&self) -> Vec<(f64, f64)> {
        let mut below = 0;
        let mut kept = Vec::with_capacity(self.grid.len());
        for (i, &point) in self.grid.iter().enumerate() {
            below += self.bins[i];
            // Bins 0 to i hold the values that a minimum here drops, or a maximum keeps.
            let n = match self.threshold.bound {
                Bound::Min => self.n - below,
                Bound::Max => below,
            };
            kept.push((point, n as f64));
        }
        kept
    }
}

pub(super) fn add(
    page: &mut Page,
    store: &CorpusStore,
    plan: &BuildPlan,
    kind: CorpusKind,
) -> Result<(), IngestError> {
    let thresholds = thresholds(plan, kind);
    let ranges = ranges(store, &thresholds)?;
    let mut sweeps: Vec<Sweep> = thresholds
        .into_iter()
        .filter_map(|threshold| {
            let range = *ranges.get(&threshold.key)?;
            Some(Sweep::new(threshold, range))
        })
        .collect();
    if sweeps.is_empty() {
        return Ok(());
    }
    each_batch(store, |batch| {
        for sweep in &mut sweeps {
            let threshold = sweep.threshold.clone();
            each_value(batch, &threshold, |value| sweep.count(value));
        }
    })?;
    page.heading("Other thresholds");
    page.paragraph(
        "How many would stay if one number of the plan were another and all others stayed. A stricter \
         threshold keeps exactly so many, a looser one at most.",
    );
    add_table(page, &sweeps);
    for sweep in &sweeps {
        add_chart(page, sweep);
    }
    Ok(())
}

fn add_table(page: &mut Page, sweeps: &[Sweep]) {
    let mut rows = Vec::new();
    for sweep in sweeps {
        let kept = sweep.kept();
        let limit = sweep.threshold.limit;
        let at = |part: f64| {
            let found = kept.iter().find(|(point, _)| point.total_cmp(&(limit * part)).is_eq());
            found.map_or(String::new(), |(point, n)| format!("{n:.0} at {}", show_number(*point)))
        };
        let side = if sweep.threshold.bound == Bound::Min { "at least" } else { "at most" };
        let mut row = vec![
            format!("{}: {side} {}", sweep.threshold.key, show_number(limit)),
            sweep.threshold.level.clone(),
            sweep.n.to_string(),
        ];
        row.extend(TABLE.map(at));
        rows.push(row);
    }
    let headers = ["rule", "of", "measured", "half", "0.8 x", "today", "1.25 x", "double"];
    page.table(&headers, &rows);
}

fn add_chart(page: &mut Page, sweep: &Sweep) {
    let kept = sweep.kept();
    let most = kept.iter().map(|(_, n)| *n).fold(0.0, f64::max);
    let Threshold { key, level, limit, .. } = &sweep.threshold;
    let mut series = vec![(format!("{level}s that stay"), kept.clone())];
    let is_inside = kept.first().is_some_and(|first| first.0 <= *limit)
        && kept.last().is_some_and(|last| last.0 >= *limit);
    if is_inside {
        let name = format!("today: {}", show_number(*limit));
        series.push((name, vec![(*limit, 0.0), (*limit, most)]));
    }
    page.line_chart(key, "threshold", &series);
}

/// Smallest and largest value of each rule's figure, by the rule's key.
fn ranges(
    store: &CorpusStore,
    thresholds: &[Threshold],
) -> Result<BTreeMap<String, (f64, f64)>, IngestError> {
    let mut ranges: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    each_batch(store, |batch| {
        for threshold in thresholds {
            each_value(batch, threshold, |value| {
                let (low, high) = ranges.entry(threshold.key.clone()).or_insert((value, value));
                *low = low.min(value);
                *high = high.max(value);
            });
        }
    })?;
    Ok(ranges)
}

fn each_batch(store: &CorpusStore, mut each: impl FnMut(&RecordBatch)) -> Result<(), IngestError> {
    for name in table::parts(store, FIGURES)? {
        for batch in table::read(store, &name, &[])? {
            each(&batch?);
        }
    }
    Ok(())
}

/// Calls `each` with the value of everything that the rule decides alone: kept, or dropped by it.
fn each_value(batch: &RecordBatch, threshold: &Threshold, mut each: impl FnMut(f64)) {
    let columns: Option<Vec<_>> = threshold
        .figures
        .iter()
        .map(|figure| batch.column_by_name(figure)?.as_primitive_opt::<Float32Type>())
        .collect();
    let Some(columns) = columns else { return };
    for i in 0..batch.num_rows() {
        if table::text(batch, "level", i) != Some(&threshold.level) {
            continue;
        }
        let dropped_by = table::text(batch, "dropped_by", i);
        if dropped_by.is_some_and(|rule| rule != threshold.dropped_by) {
            continue;
        }
        let values = columns.iter().filter(|column| column.is_valid(i)).map(|c| c.value(i));
        let value = match threshold.bound {
            Bound::Min => values.reduce(f32::min),
            Bound::Max => values.reduce(f32::max),
        };
        if let Some(value) = value {
            each(f64::from(value));
        }
    }
}

/// The rules of a plan whose figures are stored.
fn thresholds(plan: &BuildPlan, kind: CorpusKind) -> Vec<Threshold> {
    let is_read = |level: Level| match kind {
        CorpusKind::Interleaved => level != Level::Caption,
        CorpusKind::ImageText => matches!(level, Level::Caption | Level::Image),
        CorpusKind::VideoText => false,
    };
    // Of the sides of an image, the shorter one counts.
    let figures = |figure: &'static str| match figure {
        "side" => vec!["width", "height"],
        figure => vec![figure],
    };
    let rules = rules::rules(plan).into_iter().filter(|rule| is_read(rule.level) && rule.is_on());
    let thresholds = rules.filter_map(|rule| {
        let figures = figures(rule.figure);
        let is_stored = figures.iter().all(|figure| NAMES.contains(figure));
        is_stored.then(|| Threshold {
            level: rule.level.name().to_owned(),
            dropped_by: format!("{}/{}", rule.stage.name(), rule.reason),
            key: rule.key.to_owned(),
            figures: figures.into_iter().map(str::to_owned).collect(),
            bound: match rule.bound {
                rules::Bound::Min => Bound::Min,
                rules::Bound::Max => Bound::Max,
            },
            limit: rule.limit,
        })
    });
    thresholds.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::{Figures, Level, to_batch};

    fn sweep(bound: Bound, limit: f64, values: &[f64]) -> Sweep {
        let threshold = Threshold {
            level: "image".into(),
            dropped_by: "image/aspect".into(),
            key: "image.aspect_max".into(),
            figures: vec!["aspect".into()],
            bound,
            limit,
        };
        let mut sweep = Sweep::new(threshold, (0.0, 100.0));
        for &value in values {
            sweep.count(value);
        }
        sweep
    }

    #[test]
    fn each_threshold_keeps_what_a_rule_with_it_would() {
        let values = [0.5, 1.0, 2.0, 2.0, 3.0, 3.7, 4.0, 11.0, 12.0, 13.0, 40.0];
        for limit in [0.0, 2.0, 3.0] {
            for (kept, bound) in [
                (sweep(Bound::Min, limit, &values).kept(), Bound::Min),
                (sweep(Bound::Max, limit, &values).kept(), Bound::Max),
            ] {
                for (threshold, n) in kept {
                    let keeps = |value: &&f64| match bound {
                        Bound::Min => **value >= threshold,
                        Bound::Max => **value <= threshold,
                    };
                    let expected = values.iter().filter(keeps).count();
                    assert!((n - expected as f64).abs() < 0.1, "{bound:?} {threshold}: {n}");
                }
            }
        }
    }

    #[test]
    fn only_what_the_rule_decides_is_counted() {
        let figures = |dropped_by: Option<&str>, aspect| Figures {
            level: Level::Image,
            key: "k".into(),
            url: None,
            dropped_by: dropped_by.map(str::to_owned),
            values: vec![("aspect", aspect)],
        };
        let batch = to_batch(&[
            figures(None, 1.5),
            figures(Some("image/aspect"), 4.0),
            figures(Some("image/too_small"), 2.0),
        ]);
        let mut values = Vec::new();
        let threshold = sweep(Bound::Max, 3.0, &[]).threshold;
        each_value(&batch, &threshold, |value| values.push(value));
        assert_eq!(values, [1.5, 4.0]);
    }
}
