//! Steps that go wrong: a loss or a gradient that is not a number, or a loss that leaps. A run stops
//! at one, or goes on without the rows that it was computed from.
//!
//! The rows that are left out are part of what a run is: they stand in the checkpoint, and a run that
//! goes on from there draws the same rows as one that was never stopped. A step that ends the run has no
//! checkpoint after it: it stands in `stops.jsonl`, one line a stop.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::files;

/// Name of the file with the steps that ended a run.
const STOPS: &str = "stops.jsonl";

/// Read from `[guard]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GuardConfig {
    /// What follows.
    pub action: Action,
    /// A loss more than so many times the median of its dataset's last losses is trouble, too. Without
    /// it, only what is not a number is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leap: Option<f64>,
    /// Losses of a dataset from which the median is taken; none is a leap before there are so many.
    pub window: usize,
    /// Steps that may go wrong in a run; the next one stops it.
    pub most: usize,
}

impl Default for GuardConfig {
    fn default() -> Self {
        Self { action: Action::Stop, leap: None, window: 50, most: 10 }
    }
}

/// What follows a step that went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The run stops; its last checkpoint stands.
    Stop,
    /// The step counts, but changes nothing.
    Skip,
    /// The run goes back to its last checkpoint that was due, whatever others there are: where it goes
    /// must not depend on where it was stopped.
    RollBack,
}

/// A step that went wrong, and what followed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trouble {
    /// The update that was being made, from 1.
    pub step: u64,
    /// What was found, such as "the loss of dataset `pairs` is NaN".
    pub found: String,
    /// The step that the run went back to; none if the step was skipped or ended the run.
    pub back_to: Option<u64>,
    /// Whether it ended the run. Such steps are kept by themselves: see [`stops`].
    #[serde(skip)]
    pub stops: bool,
    /// Rows that the step was computed from, which are not drawn again, of each dataset.
    pub rows: BTreeMap<String, Vec<u64>>,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, found, back_to, .. } = self;
        let action = back_to.map_or_else(
            || "the step is skipped".to_owned(),
            |step| format!("the run goes back to step {step}"),
        );
        let rows = self.rows_text();
        write!(f, "step {step}: {found}; {action}, without its rows from here on: {rows}")
    }
}

impl Trouble {
    /// What followed, in words.
    pub fn action(&self) -> String {
        match self.back_to {
            Some(step) => format!("back to step {step}"),
            None if self.stops => "the run stopped".to_owned(),
            None => "skipped".to_owned(),
        }
    }

    /// The step after which its rows are left out.
    pub fn begins_after(&self) -> u64 {
        self.back_to.unwrap_or(self.step)
    }

    /// The rows, such as "pages 3 17, pairs 20".
    pub fn rows_text(&self) -> String {
        let one = |(name, rows): (&String, &Vec<u64>)| {
            let rows: Vec<String> = rows.iter().map(u64::to_string).collect();
            format!("{name} {}", rows.join(" "))
        };
        self.rows.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

/// The steps that ended a run so far, oldest first.
///
/// # Errors
/// When its file cannot be read.
pub fn stops(run: &Path) -> Result<Vec<Trouble>, TrainError> {
    let path = run.join(STOPS);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(&path).map_err(TrainError::file("read", &path))?;
    let read = |line| serde_json::from_str(line).map(|stop| Trouble { stops: true, ..stop });
    let stops = text.lines().map(read).collect::<Result<Vec<_>, _>>();
    let expected = "steps that ended the run, one JSON object a line";
    stops.map_err(|source| TrainError::Broken { path, expected, source })
}

/// Notes that a step ends the run, after the stops that were before.
///
/// # Errors
/// When the disk cannot be written.
pub fn note_stop(run: &Path, before: &[Trouble], stop: &Trouble) -> Result<(), TrainError> {
    let all = before.iter().chain([stop]);
    let lines: String = all.map(|stop| serde_json::json!(stop).to_string() + "\n").collect();
    files::replace(&run.join(STOPS), lines.as_bytes())
}

/// What is wrong with a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The dataset that it was found in; none if it may be any.
    pub dataset: Option<String>,
    /// In words.
    pub text: String,
}

/// Looks at the losses and the gradient of each step.
#[derive(Debug, Clone)]
pub struct Guard {
    config: GuardConfig,
    recent: RecentLosses,
}

/// The last losses of each dataset, oldest first.
pub type RecentLosses = BTreeMap<String, Vec<f32>>;

impl Guard {
    /// A guard that remembers these losses.
    pub fn new(config: &GuardConfig, recent: RecentLosses) -> Self {
        // They would grow old where none are added.
        let recent = if config.leap.is_some() { recent } else { RecentLosses::new() };
        Self { config: config.clone(), recent }
    }

    /// What follows a step that goes wrong after `n` others did.
    pub fn action_after(&self, n: usize) -> Action {
        if n < self.config.most { self.config.action } else { Action::Stop }
    }

    /// What is wrong with a step, if anything. The losses of a sound one are remembered.
    pub fn look(&mut self, losses: &[(&str, f32)], grad_norm: f64) -> Option<Finding> {
        let of_dataset = |(name, loss): &(&str, f32)| {
            let text = self.look_at(name, *loss)?;
            Some(Finding { dataset: Some((*name).to_owned()), text })
        };
        let not_finite =
            || Finding { dataset: None, text: format!("the norm of the gradient is {grad_norm}") };
        let found = losses.iter().find_map(of_dataset);
        let found = found.or_else(|| (!grad_norm.is_finite()).then(not_finite));
        if found.is_none() && self.config.leap.is_some() {
            for (name, loss) in losses {
                let recent = self.recent.entry((*name).to_owned()).or_default();
                recent.push(*loss);
                let too_many = recent.len().saturating_sub(self.config.window);
                recent.drain(..too_many);
            }
        }
        found
    }

    fn look_at(&self, name: &str, loss: f32) -> Option<String> {
        if !loss.is_finite() {
            return Some(format!("the loss of dataset `{name}` is {loss}"));
        }
        let recent = self.recent.get(name).filter(|recent| recent.len() >= self.config.window)?;
        let mut sorted = recent.clone();
        sorted.sort_by(f32::total_cmp);
        let median = sorted[sorted.len() / 2];
        // A median of 0 is one of batches in which nothing is learned.
        let leaps = median > 0.0 && f64::from(loss) > self.config.leap? * f64::from(median);
        leaps.then(|| {
            format!(
                "the loss of dataset `{name}` leaps to {loss} from a median of {median} over {} steps",
                self.config.window
            )
        })
    }

    /// The losses that are remembered, for a checkpoint.
    pub fn recent(&self) -> &RecentLosses {
        &self.recent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(leap: Option<f64>) -> Guard {
        let config = GuardConfig { action: Action::Skip, leap, window: 3, most: 2 };
        Guard::new(&config, RecentLosses::default())
    }

    #[test]
    fn what_is_not_a_number_is_trouble_at_once() {
        let mut guard = guard(None);
        assert_eq!(guard.look(&[("a", 2.0), ("b", 1e30)], 1.0), None);
        let found = guard.look(&[("a", 2.0), ("b", f32::NAN)], f64::NAN).unwrap();
        assert_eq!(found.text, "the loss of dataset `b` is NaN");
        assert_eq!(found.dataset.as_deref(), Some("b"));
        let found = guard.look(&[("a", 2.0)], f64::INFINITY).unwrap();
        assert_eq!(found.text, "the norm of the gradient is inf");
        assert_eq!(found.dataset, None);
    }

    #[test]
    fn a_loss_leaps_against_its_own_dataset_once_there_are_enough() {
        let mut guard = guard(Some(1.5));
        for (a, b) in [(2.0, 20.0), (9.0, 21.0), (1.0, 22.0)] {
            assert_eq!(guard.look(&[("a", a), ("b", b)], 1.0), None);
        }
        assert_eq!(guard.look(&[("b", 30.0)], 1.0), None);
        let found = guard.look(&[("a", 3.5)], 1.0).unwrap();
        assert_eq!(
            found.text,
            "the loss of dataset `a` leaps to 3.5 from a median of 2 over 3 steps"
        );
        for loss in [0.0, 0.0, 0.0, 5.0] {
            assert_eq!(guard.look(&[("c", loss)], 1.0), None);
        }
        // It is not remembered itself.
        assert_eq!(guard.recent()["a"], [2.0, 9.0, 1.0]);
        assert_eq!(guard.recent()["b"], [21.0, 22.0, 30.0]);
    }

    #[test]
    fn too_many_troubles_stop_a_run() {
        let guard = guard(None);
        assert_eq!(
            [0, 1, 2].map(|n| guard.action_after(n)),
            [Action::Skip, Action::Skip, Action::Stop]
        );
    }
}
