//! What several seeds of the choice of shots come to: how far a score moves with other shots, and how far with
//! other queries.

use crate::evaluation::{Control, Evaluation, Outcome, RoundKey};

/// The score of one shot count and control over all seeds.
#[derive(Debug, Clone, PartialEq)]
pub struct SeedScore {
    /// What follows the task's name in results.
    pub suffix: String,
    /// Shots asked for.
    pub n_shots: usize,
    /// What is missing or wrong in the prompts.
    pub control: Option<Control>,
    /// Seeds with a score.
    pub n_seeds: usize,
    /// Mean score.
    pub mean: f64,
    /// Standard deviation of the scores: other shots, same queries. None of one seed.
    pub demo_sd: Option<f64>,
    /// Standard error of one score over queries, the root of the mean square over seeds: same shots, other
    /// queries.
    pub item_stderr: f64,
}

impl SeedScore {
    /// Standard error of the mean score: other shots and other queries. Seeds share their queries, so only the
    /// part of the shots shrinks with their number. None of one seed.
    pub fn stderr(&self) -> Option<f64> {
        let of_shots = self.demo_sd?.powi(2) / self.n_seeds as f64;
        Some((self.item_stderr.powi(2) + of_shots).sqrt())
    }
}

/// One entry per shot count and control that was asked with several seeds.
pub fn seed_scores(evaluation: &Evaluation<'_>) -> Vec<SeedScore> {
    let mut keys: Vec<(usize, Option<Control>)> = Vec::new();
    for round in &evaluation.rounds {
        let key = (round.key.n_shots, round.key.control);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    if !evaluation.has_seeds {
        return Vec::new();
    }
    keys.into_iter()
        .filter_map(|(n_shots, control)| seed_score(evaluation, n_shots, control))
        .collect()
}

fn seed_score(
    evaluation: &Evaluation<'_>,
    n_shots: usize,
    control: Option<Control>,
) -> Option<SeedScore> {
    let rounds = evaluation.rounds.iter();
    let rounds = rounds.filter(|it| (it.key.n_shots, it.key.control) == (n_shots, control));
    // Where one seed's shots do not fit the model, the mean of the others would be that of shorter shots.
    let estimates: Option<Vec<(f64, f64)>> = rounds
        .map(|round| match &round.outcome {
            Outcome::Scored(scored) => scored.headline().map(|(_, it)| (it.value, it.stderr)),
            Outcome::OutOfContext(_) => None,
        })
        .collect();
    let estimates = estimates?;
    let n_seeds = estimates.len();
    let n = n_seeds as f64;
    let mean = estimates.iter().map(|(value, _)| value).sum::<f64>() / n;
    let squares = estimates.iter().map(|(value, _)| (value - mean).powi(2)).sum::<f64>();
    let errors = estimates.iter().map(|(_, stderr)| stderr.powi(2)).sum::<f64>() / n;
    (n_seeds > 0).then(|| SeedScore {
        suffix: RoundKey { n_shots, demo_seed: 0, control }.suffix(false),
        n_shots,
        control,
        n_seeds,
        mean,
        demo_sd: (n_seeds > 1).then(|| (squares / (n - 1.0)).sqrt()),
        item_stderr: errors.sqrt(),
    })
}
