//! What a report shows of all steps of a run, in memory that does not grow with them: sums, and curves
//! of at most [`BUCKETS_MAX`] buckets, of each of which the least and the greatest value stay.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use flamingo_dataset::CorruptRow;

use crate::metrics::StepMetrics;
use crate::validation;

/// Buckets of a curve. A chart is fewer pixels wide.
const BUCKETS_MAX: usize = 1024;

/// Corrupt rows that are named; the metrics have all.
const CORRUPT_ROWS_MAX: usize = 100;

/// How names of what is known of datasets' gradients begin.
const GRADIENTS: &str = "gradient.";

/// A part of the report. In the order in which they stand there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// What is learned.
    Loss,
    /// What is seen of the model.
    Observed,
    /// How it is changed.
    Optimizer,
    /// How fast, and on what.
    Speed,
}

impl Display for Section {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loss => "Loss",
            Self::Observed => "Observed",
            Self::Optimizer => "Optimizer",
            Self::Speed => "Speed",
        })
    }
}

/// Curves by name.
pub type Chart = BTreeMap<String, Curve>;

/// All steps of a run so far.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// The last of them.
    pub last: Option<StepMetrics>,
    /// What was observed at the last look at the datasets' gradients, and its step.
    pub gradients: Option<(u64, BTreeMap<String, f64>)>,
    /// Charts with at least one point, by section and title.
    pub charts: BTreeMap<(Section, String), Chart>,
    /// Seconds of all steps.
    pub seconds: f64,
    /// Of these, waiting for rows.
    pub data_wait_seconds: f64,
    /// Tokens that were predicted.
    pub tokens: u64,
    /// Images that were looked at.
    pub images: u64,
    /// Sequences.
    pub samples: u64,
    /// Corrupt rows.
    pub n_corrupt: u64,
    /// The first [`CORRUPT_ROWS_MAX`] of them, each with its step.
    pub corrupt: Vec<(u64, CorruptRow)>,
}

impl History {
    /// Takes in the next step.
    pub fn add(&mut self, step: &StepMetrics) {
        self.seconds += step.seconds;
        self.data_wait_seconds += step.data_wait_seconds;
        self.tokens += step.tokens;
        self.images += step.images;
        self.samples += step.samples;
        self.n_corrupt += step.corrupt_rows.len() as u64;
        let room = CORRUPT_ROWS_MAX - self.corrupt.len();
        let rows = step.corrupt_rows.iter().take(room);
        self.corrupt.extend(rows.map(|row| (step.step, row.clone())));
        if step.observed.keys().any(|name| name.starts_with(GRADIENTS)) {
            self.gradients = Some((step.step, step.observed.clone()));
        }
        self.draw(step);
        self.last = Some(step.clone());
    }

    /// Adds a point to a curve; one that is not finite is left out.
    pub fn point(&mut self, (section, title): (Section, &str), line: &str, step: u64, value: f64) {
        if !value.is_finite() {
            return;
        }
        let chart = self.charts.entry((section, title.to_owned())).or_default();
        if let Some(curve) = chart.get_mut(line) {
            return curve.push(step, value);
        }
        chart.entry(line.to_owned()).or_default().push(step, value);
    }

    fn draw(&mut self, step: &StepMetrics) {
        let number = step.step;
        for (name, loss) in &step.losses {
            self.point((Section::Loss, "Loss of each dataset"), name, number, *loss);
        }
        self.point((Section::Loss, "Objective"), "loss", number, step.loss);
        for (name, value) in &step.observed {
            let (chart, line) = chart_of(name);
            self.point((Section::Observed, &chart), line, number, *value);
        }
        self.point((Section::Optimizer, "Learning rate"), "lr", number, step.lr);
        let title = "Norm of the gradient before clipping";
        self.point((Section::Optimizer, title), "norm", number, step.grad_norm);
        let machine = &step.machine;
        let gibibytes = |bytes: Option<u64>| bytes.map(|n| n as f64 / f64::from(1 << 30));
        for (title, line, value) in [
            ("Seconds per step", "whole step", Some(step.seconds)),
            ("Seconds per step", "waiting for rows", Some(step.data_wait_seconds)),
            ("Samples per second", "samples", Some(step.per_second(step.samples))),
            ("Images for 1,000 predicted tokens", "images", Some(1e3 * step.images_per_token())),
            ("Operations in 10^12 a second", "counted", machine.tflops),
            ("Share of the device's operations (MFU)", "mfu", machine.mfu),
            ("Memory in GiB", "process", gibibytes(machine.memory_bytes)),
            ("Memory in GiB", "process, at most", gibibytes(machine.memory_peak_bytes)),
            ("Memory in GiB", "GPU", gibibytes(machine.gpu_memory_bytes)),
            ("Memory in GiB", "GPU, at most", gibibytes(machine.gpu_memory_peak_bytes)),
        ] {
            if let Some(value) = value {
                self.point((Section::Speed, title), line, number, value);
            }
        }
    }
}

/// The chart of something observed, and its line there: `gate.0.attention` is line `0.attention` of
/// chart `gate`. What is known of gradients and validations has not one unit, so `gradient.pages.norm` is
/// line `pages` of chart `gradient, norm`.
fn chart_of(name: &str) -> (String, &str) {
    let (group, line) = name.split_once('.').unwrap_or((name, name));
    match line.rsplit_once('.') {
        Some((line, measure)) if matches!(group, "gradient" | validation::PREFIX) => {
            (format!("{group}, {measure}"), line)
        }
        _ => (group.to_owned(), line),
    }
}

/// A curve that keeps the least and the greatest point of each bucket. The same points in the same order
/// make the same curve.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Points of a full bucket.
    points_per_bucket: u64,
    buckets: Vec<Bucket>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Bucket {
    n_points: u64,
    least: (u64, f64),
    greatest: (u64, f64),
}

impl Default for Curve {
    fn default() -> Self {
        Self { points_per_bucket: 1, buckets: Vec::new() }
    }
}

impl Curve {
    fn push(&mut self, x: u64, y: f64) {
        let point = Bucket { n_points: 1, least: (x, y), greatest: (x, y) };
        match self.buckets.last_mut() {
            Some(last) if last.n_points < self.points_per_bucket => *last = last.with(&point),
            _ => self.buckets.push(point),
        }
        if self.buckets.len() > BUCKETS_MAX {
            self.buckets = in_pairs(&self.buckets);
            self.points_per_bucket *= 2;
        }
    }

    /// At most `most` points, in order, the least and the greatest among them.
    pub fn points(&self, most: usize) -> Vec<(f64, f64)> {
        let points = |buckets: &[Bucket]| buckets.iter().flat_map(Bucket::points).collect();
        let mut buckets = self.buckets.clone();
        let mut kept: Vec<_> = points(&buckets);
        while buckets.len() > 1 && kept.len() > most {
            buckets = in_pairs(&buckets);
            kept = points(&buckets);
        }
        kept
    }
}

impl Bucket {
    /// Both together, `other` coming after this one.
    fn with(&self, other: &Self) -> Self {
        let least = if other.least.1 < self.least.1 { other.least } else { self.least };
        let greater = other.greatest.1 > self.greatest.1;
        let greatest = if greater { other.greatest } else { self.greatest };
        Self { n_points: self.n_points + other.n_points, least, greatest }
    }

    fn points(&self) -> impl Iterator<Item = (f64, f64)> {
        let mut both = [self.least, self.greatest];
        both.sort_by_key(|(x, _)| *x);
        let n = if both[0].0 == both[1].0 { 1 } else { 2 };
        both.into_iter().take(n).map(|(x, y)| (x as f64, y))
    }
}

fn in_pairs(buckets: &[Bucket]) -> Vec<Bucket> {
    let merged = |pair: &[Bucket]| match pair {
        [first, second] => first.with(second),
        pair => pair[0],
    };
    buckets.chunks(2).map(merged).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::metrics;

    fn curve(n: u32, y: impl Fn(u32) -> f64) -> Curve {
        let mut curve = Curve::default();
        (0..n).for_each(|x| curve.push(u64::from(x), y(x)));
        curve
    }

    #[test]
    fn a_short_curve_keeps_every_point() {
        let points = curve(1000, |x| f64::from(x % 7)).points(1600);
        let all: Vec<_> = (0..1000).map(|x| (f64::from(x), f64::from(x % 7))).collect();
        assert_eq!(points, all);
    }

    #[test]
    fn a_long_curve_keeps_its_extremes_in_order_in_bounded_memory() {
        let spikes = |x| match x {
            31_337 => 9.0,
            200_001 => -4.0,
            _ => f64::from(x % 10) / 10.0,
        };
        let curve = curve(1_000_000, spikes);
        assert!(curve.buckets.len() <= BUCKETS_MAX);
        for most in [1600, 200, 2] {
            let points = curve.points(most);
            assert!(points.len() <= most, "{} of {most}", points.len());
            assert!(points.is_sorted_by(|a, b| a.0 < b.0), "{most}");
            assert!(points.contains(&(31_337.0, 9.0)), "{most}");
            assert!(points.contains(&(200_001.0, -4.0)), "{most}");
        }
        let n: u64 = curve.buckets.iter().map(|bucket| bucket.n_points).sum();
        assert_eq!(n, 1_000_000);
    }

    #[test]
    fn what_is_not_a_number_and_what_is_missing_leave_gaps() {
        let mut history = History::default();
        let mut steps = [metrics(1, 3.0), metrics(2, f64::NAN), metrics(3, 1.0)];
        steps[1].losses = BTreeMap::from([("clips".to_owned(), 5.0)]);
        for step in &steps {
            history.add(step);
        }
        let points = |title: &str, line: &str| {
            history.charts[&(Section::Loss, title.to_owned())][line].points(10)
        };
        assert_eq!(points("Objective", "loss"), [(1.0, 3.0), (3.0, 1.0)]);
        assert_eq!(points("Loss of each dataset", "clips"), [(2.0, 5.0)]);
        assert_eq!((history.samples, history.seconds), (12, 0.75));
    }

    #[test]
    fn what_is_observed_is_drawn_by_group_and_what_has_many_units_by_measure() {
        for (name, chart, line) in [
            ("gate.0.attention", "gate", "0.attention"),
            ("beta", "beta", "beta"),
            ("validation.a.b.nll", "validation, nll", "a.b"),
            ("gradient.pages.norm", "gradient, norm", "pages"),
            ("gradient.my.pages.cosine", "gradient, cosine", "my.pages"),
        ] {
            assert_eq!(chart_of(name), (chart.to_owned(), line), "{name}");
        }
    }
}
