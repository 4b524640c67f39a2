//! Early stop: a run ends when a measure of its validation has not become better for some time; the
//! checkpoint of the best one stays.

use serde::{Deserialize, Serialize};

use crate::validation::Measures;

/// Read from `[early_stop]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyStopConfig {
    /// A measure, such as `validation.pairs.nll`.
    pub metric: String,
    /// Validations in a row that may bring nothing better; the run stops at the last of them.
    pub patience: u64,
    /// Which values are better.
    pub better: Better,
    /// How much better a value must be.
    #[serde(default)]
    pub min_delta: f64,
}

/// Which values are better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// Lower ones, as of a loss.
    Lower,
    /// Higher ones, as of a recall.
    Higher,
}

impl Better {
    /// By how much a value is better than another; negative if it is worse.
    pub fn gain(self, value: f64, than: f64) -> f64 {
        match self {
            Self::Lower => than - value,
            Self::Higher => value - than,
        }
    }

    /// Whether a value is better than the best so far, and by so much.
    pub fn is_improved(self, value: f64, best: Option<Best>, min_delta: f64) -> bool {
        best.is_none_or(|best| {
            let gain = self.gain(value, best.value);
            gain > 0.0 && gain >= min_delta
        })
    }
}

/// A value and the step that it is of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Updates done.
    pub step: u64,
    /// The measure.
    pub value: f64,
}

/// What a checkpoint knows of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The best so far.
    pub best: Option<Best>,
    /// Validations since then.
    pub since: u64,
    /// Whether the run has ended by it.
    pub has_stopped: bool,
}

/// What follows a validation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    GoesOn,
    /// The model is the best so far: its checkpoint is kept.
    Best,
    /// The run ends.
    Stops,
}

/// Looks at validations.
#[derive(Debug, Clone)]
pub struct EarlyStop {
    config: EarlyStopConfig,
    progress: Progress,
}

impl EarlyStop {
    /// Goes on from what a checkpoint knows.
    pub fn new(config: EarlyStopConfig, progress: Progress) -> Self {
        Self { config, progress }
    }

    /// For the checkpoint.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// What follows a validation after `step` updates. A measure that is missing or no number is not
    /// better than any.
    pub fn look(&mut self, step: u64, measures: &Measures) -> Verdict {
        let Progress { best, since, has_stopped } = &mut self.progress;
        let value = measures.get(&self.config.metric).filter(|value| value.is_finite());
        let EarlyStopConfig { better, min_delta, .. } = self.config;
        let is_better = |value: &f64| better.is_improved(*value, *best, min_delta);
        if let Some(value) = value.copied().filter(is_better) {
            (*best, *since) = (Some(Best { step, value }), 0);
            return Verdict::Best;
        }
        *since += 1;
        *has_stopped = *since >= self.config.patience;
        if *has_stopped { Verdict::Stops } else { Verdict::GoesOn }
    }

    /// Why the run has ended.
    pub fn reason(&self) -> String {
        let Progress { best, since, .. } = self.progress;
        let metric = &self.config.metric;
        match best {
            Some(Best { step, value }) => format!(
                "early stop: {metric} was best after step {step}, {value:.6}, and {since} validations \
                 brought nothing better"
            ),
            None => format!("early stop: {metric} was no number in {since} validations"),
        }
    }
}

#[cfg(test)]
mod tests {
    use Verdict::{Best as IsBest, GoesOn, Stops};

    use super::*;

    fn check(better: Better, min_delta: f64, values: &[f64], expected: &[Verdict]) {
        let metric = "validation.pairs.nll".to_owned();
        let config = EarlyStopConfig { metric: metric.clone(), patience: 2, better, min_delta };
        let mut stop = EarlyStop::new(config.clone(), Progress::default());
        for (step, (value, expected)) in values.iter().zip(expected).enumerate() {
            let measures = Measures::from([(metric.clone(), *value)]);
            assert_eq!(stop.look(step as u64, &measures), *expected, "{values:?} at {step}");
            assert_eq!(stop.progress().has_stopped, *expected == Stops);
            // As through a checkpoint.
            let text = serde_json::to_string(&stop.progress()).unwrap();
            stop = EarlyStop::new(config.clone(), serde_json::from_str(&text).unwrap());
        }
    }

    #[test]
    fn a_run_stops_when_patience_is_at_its_end() {
        let lower =
            |values: &[f64], expected: &[Verdict]| check(Better::Lower, 0.0, values, expected);
        lower(&[3.0, 2.0, 2.0, 1.9, 2.1, 1.9], &[IsBest, IsBest, GoesOn, IsBest, GoesOn, Stops]);
        lower(&[f64::NAN, f64::INFINITY], &[GoesOn, Stops]);
        lower(&[f64::NAN, 2.0, f64::NAN, 1.0], &[GoesOn, IsBest, GoesOn, IsBest]);
        check(Better::Higher, 0.0, &[0.1, 0.2, 0.2, 0.1], &[IsBest, IsBest, GoesOn, Stops]);
        check(Better::Lower, 0.5, &[3.0, 2.6, 2.5, 2.1], &[IsBest, GoesOn, IsBest, GoesOn]);
    }

    #[test]
    fn the_reason_names_the_best_step() {
        let config = EarlyStopConfig {
            metric: "validation.a.nll".to_owned(),
            patience: 1,
            better: Better::Lower,
            min_delta: 0.0,
        };
        let mut stop = EarlyStop::new(config, Progress::default());
        let look = |stop: &mut EarlyStop, step, value| {
            stop.look(step, &Measures::from([("validation.a.nll".to_owned(), value)]))
        };
        look(&mut stop, 5, 1.5);
        look(&mut stop, 10, 2.5);
        assert_eq!(
            stop.reason(),
            "early stop: validation.a.nll was best after step 5, 1.500000, and 1 validations brought \
             nothing better"
        );
    }
}
