//! What is found of one benchmark: rounds of questions with their answers and scores.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::benchmark::Benchmark;
use crate::bootstrap::{Drawn, Estimate};
use crate::controls::ControlScore;
use crate::metric::{Judgement, Metric};
use crate::paired::difference;
use crate::samples::Sample;
use crate::settings::Settings;
use crate::subject::OutOfContext;

/// A prompt in which something is missing or wrong: what its score loses is what the right one gains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Control {
    /// Shots without their images; the query has its own.
    TextShots,
    /// The query has another query's image.
    ShuffledImages,
    /// No images at all.
    NoImage,
}

impl Control {
    /// Its name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::TextShots => "text-shots",
            Self::ShuffledImages => "shuffled-images",
            Self::NoImage => "no-image",
        }
    }
}

/// A round of questions: with how many shots, drawn by which seed, and what is wrong with the prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundKey {
    /// Shots asked for.
    pub n_shots: usize,
    /// Seed of their choice.
    pub demo_seed: u64,
    /// What is missing or wrong.
    pub control: Option<Control>,
}

/// What became of one benchmark.
pub struct Evaluation<'a> {
    /// The benchmark.
    pub benchmark: &'a Benchmark,
    /// Queries that were asked: the first so many.
    pub n_queries: usize,
    /// One entry per shot count, seed and control.
    pub rounds: Vec<Round>,
    /// Whether the model looks, by the loss of the right captions; of captioning by a model of ours.
    pub reading_controls: Option<Vec<ControlScore>>,
    /// The settings that the samples were made with.
    pub settings: Settings,
    /// Whether there are several seeds, so that rounds are named by theirs.
    pub has_seeds: bool,
}

/// One round.
pub struct Round {
    /// What was asked.
    pub key: RoundKey,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of one round.
pub enum Outcome {
    /// All queries were answered.
    Scored(Scored),
    /// Some prompts and their answers do not fit the model. Nothing is cut: the round has no score.
    OutOfContext(TooLong),
}

/// Prompts that are longer than what a model holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong {
    /// The longest; none where a server does not say how long it is.
    pub longest: Option<OutOfContext>,
    /// Queries whose prompts are too long.
    pub n_queries: usize,
    /// Queries that were looked at: a server is not asked further.
    pub of: usize,
}

/// Answers with their scores.
pub struct Scored {
    /// One per query, in order.
    pub samples: Vec<Sample>,
    /// What each metric found; empty where the benchmark keeps the truth back.
    pub judgements: Vec<(Metric, Judgement)>,
    /// What more shots gain; none for the first shot count with a score.
    pub gain: Option<Gain>,
}

/// How much better a round is than the same with fewer shots.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gain {
    /// The shot count that it is over: the first with a score.
    pub over: usize,
    /// Score less the other's, with the interval of the difference on the same draws of queries.
    pub estimate: Estimate,
}

impl Scored {
    /// The score that counts.
    pub fn headline(&self) -> Option<(Metric, Estimate)> {
        let (metric, judgement) = self.judgements.first()?;
        Some((*metric, judgement.figures.first()?.estimate))
    }

    /// Values of the metric that counts.
    fn drawn(&self) -> Option<&Drawn> {
        Some(&self.judgements.first()?.1.drawn)
    }
}

impl RoundKey {
    /// What follows the task's name in files and results.
    pub fn suffix(self, has_seeds: bool) -> String {
        let seed = if has_seeds { format!("_seed{}", self.demo_seed) } else { String::new() };
        let control = self.control.map(|control| format!("_{}", control.name()));
        format!("{}shot{seed}{}", self.n_shots, control.unwrap_or_default())
    }
}

/// The difference to the same control at the first shot count, with the same shots' seed where there is
/// one.
pub(crate) fn gain(now: &Scored, key: RoundKey, before: &[Round]) -> Option<Gain> {
    let scored = before.iter().filter_map(|round| match &round.outcome {
        Outcome::Scored(scored) if round.key.control == key.control => Some((round.key, scored)),
        _ => None,
    });
    let scored: Vec<(RoundKey, &Scored)> = scored.collect();
    let (first, _) = scored.first().filter(|(first, _)| first.n_shots != key.n_shots)?;
    let same_seed = RoundKey { demo_seed: key.demo_seed, ..*first };
    let then = scored.iter().find(|(it, _)| *it == same_seed).or(scored.first())?;
    let estimate = difference(then.1.drawn()?, now.drawn()?, 0)?.difference;
    Some(Gain { over: first.n_shots, estimate })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_named_by_shots_seed_and_control() {
        let key = RoundKey { n_shots: 4, demo_seed: 7, control: Some(Control::NoImage) };
        assert_eq!(key.suffix(false), "4shot_no-image");
        assert_eq!(RoundKey { control: None, ..key }.suffix(true), "4shot_seed7");
    }
}
