//! A grid: the same run with every combination of some values, each in a folder of its own, one after the
//! other (paper, appendix B.2.2: learning rates from 3e-8 to 1e-5, augmentation on or off). What came of
//! them stands in `summary.md` and `summary.json`.
//!
//! Every point is a run like any other: it can be resumed by itself, and evaluated. One that fails does not
//! keep the others from being run.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::Value;

use crate::checkpoint::State;
use crate::command::{Command, Purpose, Told};
use crate::config::RunConfig;
use crate::config_file::ConfigFile;
use crate::early_stop::{Best, Better, EarlyStopConfig};
use crate::ended::Ended;
use crate::error::TrainError;
use crate::files;
use crate::limits::GRID_POINTS_MAX;
use crate::metrics::{self, StepMetrics};
use crate::overrides::Override;
use crate::run_folder::{CONFIG, Role, RunFolder, Start};
use crate::validation::measure_name;

/// Read from `[grid]`: the values of keys, which are spelled as for `--set`; `lr` is `optimizer.lr`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GridConfig(pub BTreeMap<String, Vec<Value>>);

/// The key that has a short name.
const LR: (&str, &str) = ("lr", "optimizer.lr");

/// Longest name of a folder; points with more are numbered.
const NAME_CHARS_MAX: usize = 100;

/// The summary in Markdown, and as JSON.
const SUMMARY: [&str; 2] = ["summary.md", "summary.json"];

/// One combination.
struct Point<M> {
    name: String,
    values: BTreeMap<String, Value>,
    command: Command,
    file: ConfigFile<M>,
}

/// What came of a point.
#[derive(Debug, Serialize)]
struct Outcome {
    /// The folder of its run, in that of the grid.
    point: String,
    values: BTreeMap<String, Value>,
    /// How it ended, or that it has not.
    status: Status,
    /// Updates done.
    steps: u64,
    /// Its best validation.
    best: Option<Best>,
    /// Loss at the last step.
    final_loss: Option<f64>,
    /// Why it failed.
    error: Option<String>,
}

/// How far a point is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    /// Nothing was done.
    Waiting,
    /// Some steps are done.
    UnderWay,
    /// At its last step.
    Done,
    /// By its early stop.
    StoppedEarly,
    /// With an error.
    Failed,
}

/// What a summary compares.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    /// The measure whose best value is told.
    metric: Option<&'a str>,
    better: Option<Better>,
    /// The point with the best of them.
    best: Option<&'a str>,
    points: &'a [Outcome],
}

/// Reads a config and trains by it; if it has a `[grid]`, each point of that.
///
/// # Errors
/// When the config is not right, a run fails, the user stops it, or the disk fails. Of a grid the other
/// points are run before that is told.
pub(crate) fn run<M: DeserializeOwned + Serialize>(
    command: &Command,
    train: impl Fn(&Command, &ConfigFile<M>) -> Result<Ended, TrainError>,
) -> Result<Told, TrainError> {
    let file = command.read_config::<M>()?;
    let Some(grid) = &file.config.grid else {
        return train(command, &file).map(Ended::into_told);
    };
    let ranks = &*command.ranks;
    let points = points(command, &file, grid)?;
    if command.purpose == Purpose::DryRun {
        return told(&points, train);
    }
    if command.start == Start::New && command.out.exists() {
        return Err(TrainError::RunExists { path: command.out.clone() });
    }
    if command.out.join(CONFIG).exists() {
        return Err(TrainError::NotAGrid { path: command.out.clone() });
    }
    // What is wrong with any of them is said before the first one is run.
    points.iter().try_for_each(|point| point.status().map(|_| ()))?;
    // No rank makes what another one looks for and must not find.
    ranks.barrier()?;
    let say = |text: String| {
        if ranks.is_first() {
            eprintln!("{text}");
        }
    };
    let summarise = |errors: &BTreeMap<String, String>| {
        if ranks.is_first() { write_summary(&command.out, &points, errors) } else { Ok(()) }
    };
    let mut errors = BTreeMap::new();
    for (number, point) in (1..).zip(&points) {
        let name = &point.name;
        if point.is_over()? {
            say(format!("{name} ({number} of {}): is done", points.len()));
            continue;
        }
        say(format!("{name} ({number} of {})", points.len()));
        let ended = train(&point.command, &point.file);
        let goes_on = match &ended {
            // What one rank alone fails with, the others do not know of.
            Err(error) if !ranks.is_alone() => matches!(error, TrainError::Trouble { .. }),
            // What the first one cannot even begin with, all lack.
            Err(_) if number == 1 && !point.command.out.exists() => false,
            Err(error) => error.is_of_one_run(),
            Ok(ended) => *ended != Ended::Stopped,
        };
        if let Err(error) = &ended
            && goes_on
        {
            say(format!("error: {name}: {}", error.one_line()));
            errors.insert(name.clone(), error.one_line());
        }
        if goes_on || command.out.exists() {
            summarise(&errors)?;
        }
        if !goes_on {
            return ended.map(Ended::into_told);
        }
    }
    summarise(&errors)?;
    ranks.barrier()?;
    match errors.len() {
        0 => Ok(Told { text: String::new(), is_right: true }),
        failed => {
            let path = command.out.join(SUMMARY[0]);
            Err(TrainError::GridFailed { failed, points: points.len(), path })
        }
    }
}

/// What is to be told of each point.
fn told<M>(
    points: &[Point<M>],
    train: impl Fn(&Command, &ConfigFile<M>) -> Result<Ended, TrainError>,
) -> Result<Told, TrainError> {
    let mut all = Told { text: String::new(), is_right: true };
    for Point { name, command, file, .. } in points {
        let Told { text, is_right } = train(command, file)?.into_told();
        writeln!(all.text, "{name}\n{text}").expect("writing to a String cannot fail");
        all.is_right &= is_right;
    }
    Ok(all)
}

/// All combinations, in the order of the values, the last key's changing first.
fn points<M: DeserializeOwned + Serialize>(
    command: &Command,
    file: &ConfigFile<M>,
    grid: &GridConfig,
) -> Result<Vec<Point<M>>, TrainError> {
    let n_points = grid.0.values().try_fold(1_usize, |n, values| n.checked_mul(values.len()));
    let fits = n_points.is_some_and(|n| (1..=GRID_POINTS_MAX).contains(&n)) && !grid.0.is_empty();
    let number = n_points.map_or_else(|| "too many points".to_owned(), |n| format!("{n} points"));
    file.require(fits, "grid", &number, &format!("1 to {GRID_POINTS_MAX}, a value of each key"))?;
    let both = [LR.0, LR.1].iter().all(|key| grid.0.contains_key(*key));
    let expected = format!("nothing beside `{}`: both are one key", LR.1);
    file.require(!both, "grid.lr", &"given", &expected)?;
    let mut all = vec![BTreeMap::new()];
    for (key, values) in &grid.0 {
        let with = |values_before: &BTreeMap<String, Value>, value: &Value| {
            let mut values = values_before.clone();
            values.insert(key.clone(), value.clone());
            values
        };
        all = all.iter().flat_map(|before| values.iter().map(|v| with(before, v))).collect();
    }
    let mut points: Vec<Point<M>> = Vec::with_capacity(all.len());
    for (index, values) in all.into_iter().enumerate() {
        let mut name = name_of(&values);
        if name.len() > NAME_CHARS_MAX {
            name = format!("point-{index}");
        }
        let is_new = points.iter().all(|other| other.name != name);
        file.require(is_new, "grid", &name, "each point once")?;
        let mut command = command.clone();
        command.out = command.out.join(&name);
        command.overrides.extend(values.iter().map(|(key, value)| {
            let key = if key == LR.0 { LR.1 } else { key };
            Override::new(key, value.clone())
        }));
        let file = command.read_config()?;
        points.push(Point { name, values, command, file });
    }
    Ok(points)
}

/// Such as `data.task.flip_probability=0.5,lr=1e-7`.
fn name_of(values: &BTreeMap<String, Value>) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-+".contains(c) { c } else { '_' };
    let one = |(key, value): (&String, &Value)| {
        let [key, value] =
            [key.clone(), value_text(value)].map(|text| text.replace(|c| plain(c) != c, "_"));
        format!("{key}={value}")
    };
    values.iter().map(one).collect::<Vec<_>>().join(",")
}

fn value_text(value: &Value) -> String {
    match value {
        Value::Float(number) if *number != 0.0 && !(1e-3..1e6).contains(&number.abs()) => {
            format!("{number:e}")
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

impl<M: DeserializeOwned + Serialize> Point<M> {
    fn config(&self) -> &RunConfig<M> {
        &self.file.config
    }

    /// What its last checkpoint knows.
    fn state(&self) -> Result<Option<State>, TrainError> {
        if self.command.start == Start::New && !self.command.out.exists() {
            return Ok(None);
        }
        let role = Role::of(&*self.command.ranks);
        let folder = RunFolder::check(&self.command.out, Start::Resume, &self.file, role)?;
        Ok(folder.checkpoint.map(|checkpoint| checkpoint.state))
    }

    /// How far it is by its last checkpoint.
    fn status(&self) -> Result<Status, TrainError> {
        Ok(match self.state()? {
            Some(state) if state.early_stop.has_stopped => Status::StoppedEarly,
            Some(state) if state.step >= self.config().steps => Status::Done,
            Some(_) => Status::UnderWay,
            None => Status::Waiting,
        })
    }

    /// Whether it is as far as it is to go now.
    fn is_over(&self) -> Result<bool, TrainError> {
        let steps = self.config().steps;
        let last = self.command.stop_after.map_or(steps, |step| step.min(steps));
        let is_over = |state: State| state.early_stop.has_stopped || state.step >= last;
        Ok(self.state()?.is_some_and(is_over))
    }

    fn outcome(
        &self,
        metric: Option<&Metric>,
        error: Option<&String>,
    ) -> Result<Outcome, TrainError> {
        let folder = &self.command.out;
        let (mut steps, mut final_loss, mut best) = (0, None, None);
        if folder.join(metrics::FILE).exists() {
            metrics::each(folder, |line| {
                (steps, final_loss) = (line.step, Some(line.loss).filter(|loss| loss.is_finite()));
                if let Some(metric) = metric {
                    metric.take(&mut best, &line);
                }
            })?;
        }
        let status = if error.is_some() { Status::Failed } else { self.status()? };
        Ok(Outcome {
            point: self.name.clone(),
            values: self.values.clone(),
            status,
            steps,
            best,
            final_loss,
            error: error.cloned(),
        })
    }
}

/// A measure, and which of its values are better.
#[derive(Debug, Clone, PartialEq)]
struct Metric {
    name: String,
    better: Better,
    /// How much better a value must be than one before it in its run.
    min_delta: f64,
}

impl Metric {
    /// That of the early stop, else the first one of the first validation's dataset.
    fn of<M>(config: &RunConfig<M>) -> Vec<Self> {
        if let Some(stop) = &config.early_stop {
            let EarlyStopConfig { metric, better, min_delta, .. } = stop;
            return vec![Self { name: metric.clone(), better: *better, min_delta: *min_delta }];
        }
        let data = config.validation.iter().flat_map(|validation| &validation.data).next();
        let measure = |data: &str, (measure, better): (&str, Better)| Self {
            name: measure_name(data, measure),
            better,
            min_delta: 0.0,
        };
        let measures = [("nll", Better::Lower), ("image_to_text_r1", Better::Higher)];
        data.into_iter().flat_map(|data| measures.map(|of| measure(&data.name, of))).collect()
    }

    /// Takes in a step, as an early stop does; the first of the best values stays.
    fn take(&self, best: &mut Option<Best>, line: &StepMetrics) {
        let Some(value) = line.observed.get(&self.name).copied() else { return };
        if self.better.is_improved(value, *best, self.min_delta) {
            *best = Some(Best { step: line.step, value });
        }
    }
}

fn write_summary<M: DeserializeOwned + Serialize>(
    out: &Path,
    points: &[Point<M>],
    errors: &BTreeMap<String, String>,
) -> Result<(), TrainError> {
    let metrics = points.first().map(|point| Metric::of(point.config())).unwrap_or_default();
    let outcomes = |metric: Option<&Metric>| {
        let outcome = |point: &Point<M>| point.outcome(metric, errors.get(&point.name));
        points.iter().map(outcome).collect::<Result<Vec<_>, _>>()
    };
    let mut chosen = (None, outcomes(None)?);
    for metric in &metrics {
        let outcomes = outcomes(Some(metric))?;
        if outcomes.iter().any(|outcome| outcome.best.is_some()) {
            chosen = (Some(metric), outcomes);
            break;
        }
    }
    let (metric, outcomes) = chosen;
    let best = metric.and_then(|metric| best_point(metric, &outcomes));
    let summary = Summary {
        metric: metric.map(|metric| &*metric.name),
        better: metric.map(|metric| metric.better),
        best: best.map(|outcome| &*outcome.point),
        points: &outcomes,
    };
    std::fs::create_dir_all(out).map_err(TrainError::file("create", out))?;
    let json =
        serde_json::to_string_pretty(&summary).expect("a summary is plain numbers and texts");
    files::replace(&out.join(SUMMARY[0]), markdown(&summary, best).as_bytes())?;
    files::replace(&out.join(SUMMARY[1]), json.as_bytes())
}

/// The first of the points with the best value, of those that did not fail.
fn best_point<'a>(metric: &Metric, outcomes: &'a [Outcome]) -> Option<&'a Outcome> {
    let sound = outcomes.iter().filter(|outcome| outcome.status != Status::Failed);
    let with_value = sound.filter_map(|outcome| Some((outcome, outcome.best?.value)));
    let better = |best: (&'a Outcome, f64), next: (&'a Outcome, f64)| {
        if metric.better.gain(next.1, best.1) > 0.0 { next } else { best }
    };
    with_value.reduce(better).map(|(outcome, _)| outcome)
}

fn markdown(summary: &Summary, best: Option<&Outcome>) -> String {
    let metric = summary.metric.unwrap_or("validation");
    let mut text = format!(
        "| point | best {metric} | at step | final loss | steps | how it ended |\n\
         |---|---|---|---|---|---|\n"
    );
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.4}"));
    for outcome in summary.points {
        let ended = match (&outcome.error, outcome.status) {
            (Some(error), _) => error.replace('|', "\\|"),
            (None, Status::Waiting) => "not begun".to_owned(),
            (None, Status::UnderWay) => "under way".to_owned(),
            (None, Status::StoppedEarly) => "stopped early".to_owned(),
            (None, Status::Done | Status::Failed) => "done".to_owned(),
        };
        let Outcome { point, steps, final_loss, .. } = outcome;
        let step = outcome.best.map_or_else(|| "-".to_owned(), |best| best.step.to_string());
        let (value, loss) = (number(outcome.best.map(|best| best.value)), number(*final_loss));
        let line = writeln!(text, "| {point} | {value} | {step} | {loss} | {steps} | {ended} |");
        line.expect("writing to a String cannot fail");
    }
    if let Some((outcome, found)) = best.and_then(|outcome| Some((outcome, outcome.best?))) {
        let (point, Best { step, value }) = (&outcome.point, found);
        let line = writeln!(text, "\nBest: {point}, {metric} {value:.6} after step {step}.");
        line.expect("writing to a String cannot fail");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_named_by_what_they_change() {
        let check = |values: &str, expected: &str| {
            let values: BTreeMap<String, Value> = toml::from_str(values).unwrap();
            assert_eq!(name_of(&values), expected);
        };
        check("lr = 1e-7", "lr=1e-7");
        check("lr = 0.003", "lr=0.003");
        check(
            "lr = 3e-8\n'data.task.flip_probability' = 0.0",
            "data.task.flip_probability=0.0,lr=3e-8",
        );
        check("'image.fit' = '../out'", "image.fit=.._out");
        check("steps = 12\nrecompute = 'all'", "recompute=all,steps=12");
    }

    #[test]
    fn the_best_point_is_sound_and_the_first_of_equals() {
        let outcome = |point: &str, value: Option<f64>, status| Outcome {
            point: point.to_owned(),
            values: BTreeMap::new(),
            status,
            steps: 4,
            best: value.map(|value| Best { step: 2, value }),
            final_loss: Some(1.0),
            error: (status == Status::Failed).then(|| "a | b".to_owned()),
        };
        let outcomes = [
            outcome("a", Some(2.0), Status::Done),
            outcome("b", Some(1.0), Status::StoppedEarly),
            outcome("c", Some(0.5), Status::Failed),
            outcome("d", Some(1.0), Status::Done),
            outcome("e", None, Status::Waiting),
        ];
        let best = |better| {
            let metric = Metric { name: "m".to_owned(), better, min_delta: 0.0 };
            best_point(&metric, &outcomes).map(|outcome| &*outcome.point)
        };
        assert_eq!((best(Better::Lower), best(Better::Higher)), (Some("b"), Some("a")));
        let (metric, better) = (Some("m"), Some(Better::Lower));
        let summary = Summary { metric, better, best: Some("b"), points: &outcomes };
        let text = markdown(&summary, Some(&outcomes[1]));
        for line in [
            "| b | 1.0000 | 2 | 1.0000 | 4 | stopped early |",
            "| c | 0.5000 | 2 | 1.0000 | 4 | a \\| b |",
            "| e | - | - | 1.0000 | 4 | not begun |",
            "Best: b, m 1.000000 after step 2.",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
    }
}
