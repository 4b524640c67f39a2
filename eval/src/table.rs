//! The scores as tables, the same on the terminal and in the report.

use crate::bootstrap::Estimate;
use crate::evaluation::{Control, Evaluation, Gain, Outcome, Round, RoundKey, TooLong};
use crate::metric::Metric;
use crate::seeds::seed_scores;

/// A table of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Names of the columns.
    pub headers: Vec<String>,
    /// As many cells per row as there are columns.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// The table in aligned columns, two spaces apart, with a line under the headers.
    pub fn to_text(&self) -> String {
        let widths: Vec<usize> = (0..self.headers.len())
            .map(|column| {
                let cells = self.rows.iter().map(|row| &row[column]);
                cells.chain([&self.headers[column]]).map(|cell| cell.chars().count()).max()
            })
            .map(Option::unwrap_or_default)
            .collect();
        let line = |cells: &[String]| {
            let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
        };
        let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
        let rows = self.rows.iter().map(|row| line(row));
        [line(&self.headers), line(&rule)].into_iter().chain(rows).collect()
    }
}

/// Scores by shot count, with the gain over the first shot count under each. A task has a row for each seed and
/// control.
pub fn score_table(evaluations: &[Evaluation<'_>]) -> Table {
    let mut headers: Vec<String> = ["task", "score", "queries"].map(str::to_owned).to_vec();
    let shots = evaluations.iter().map(shot_counts).max_by_key(Vec::len).unwrap_or_default();
    headers.extend(shots.iter().map(|n_shots| format!("{n_shots} shots")));
    let rows = evaluations.iter().flat_map(|evaluation| score_rows(evaluation, &shots));
    Table { headers, rows: rows.collect() }
}

/// Shot counts in the order in which they were asked for.
fn shot_counts(evaluation: &Evaluation<'_>) -> Vec<usize> {
    let mut counts: Vec<usize> = evaluation.rounds.iter().map(|it| it.key.n_shots).collect();
    counts.dedup();
    counts
}

fn score_rows(evaluation: &Evaluation<'_>, shots: &[usize]) -> Vec<Vec<String>> {
    let task = &evaluation.benchmark.task;
    let mut kinds: Vec<(u64, Option<Control>)> = Vec::new();
    for round in &evaluation.rounds {
        let kind = (round.key.demo_seed, round.key.control);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let mut rows = Vec::new();
    for (at, (demo_seed, control)) in kinds.into_iter().enumerate() {
        let round = move |n_shots: usize| {
            let mut rounds = evaluation.rounds.iter();
            rounds.find(|it| it.key == RoundKey { n_shots, demo_seed, control })
        };
        let cells = |cell: fn(&Round) -> String| {
            shots.iter().map(move |&n_shots| round(n_shots).map(cell).unwrap_or_default())
        };
        let seed = evaluation.has_seeds.then(|| format!("seed {demo_seed}"));
        let control = control.map(|control| control.name().to_owned());
        let what: Vec<String> = seed.into_iter().chain(control).collect();
        let name = if at == 0 { task.name.clone() } else { String::new() };
        let mut score = metric_name(task.metric());
        if !what.is_empty() {
            score = format!("{score}, {}", what.join(", "));
        }
        let queries = if at == 0 { evaluation.n_queries.to_string() } else { String::new() };
        rows.push([name, score, queries].into_iter().chain(cells(score_cell)).collect());
        let gains: Vec<String> = cells(gain_cell).collect();
        if gains.iter().any(|gain| !gain.is_empty()) {
            let over = shots.iter().find_map(|&n_shots| gain(round(n_shots)?));
            let over = over.map(|gain| gain.over).unwrap_or_default();
            let head = [String::new(), format!("gain over {over} shots"), String::new()];
            rows.push(head.into_iter().chain(gains).collect());
        }
    }
    rows
}

/// The score's name in the literature.
fn metric_name(metric: Metric) -> String {
    match metric {
        Metric::CiderCoco => "CIDEr-D".into(),
        Metric::Accuracy => "accuracy".into(),
        other => other.name(),
    }
}

fn score_cell(round: &Round) -> String {
    match &round.outcome {
        Outcome::Scored(scored) => scored.headline().map_or_else(
            || "answers are hidden".to_owned(),
            |(_, estimate)| with_interval(&estimate),
        ),
        Outcome::OutOfContext(TooLong { longest, n_queries, of }) => {
            let longest =
                longest.map(|it| format!("{} tokens, the model holds {}; ", it.needed, it.context));
            format!("out of context ({}{n_queries} of {of} queries)", longest.unwrap_or_default())
        }
    }
}

fn gain(round: &Round) -> Option<Gain> {
    match &round.outcome {
        Outcome::Scored(scored) => scored.gain,
        Outcome::OutOfContext(_) => None,
    }
}

fn gain_cell(round: &Round) -> String {
    gain(round).map(|gain| signed(&gain.estimate)).unwrap_or_default()
}

/// How scores move with other shots and with other queries; none where nothing was asked with several seeds.
pub fn seed_table(evaluation: &Evaluation<'_>) -> Option<Table> {
    let headers = ["seeds", "mean", "sd over shots", "stderr over queries", "stderr of the mean"];
    let several = seed_scores(evaluation).into_iter().filter(|seeds| seeds.n_seeds > 1);
    let rows = several.map(|seeds| {
        let name = format!("{}_{}", evaluation.benchmark.task.name, seeds.suffix);
        let number = |value: Option<f64>| value.map_or_else(|| "-".into(), |it| format!("{it:.4}"));
        let values = [Some(seeds.mean), seeds.demo_sd, Some(seeds.item_stderr), seeds.stderr()];
        let values = values.map(number);
        [format!("{name}, {} seeds", seeds.n_seeds)].into_iter().chain(values).collect()
    });
    let rows: Vec<Vec<String>> = rows.collect();
    (!rows.is_empty()).then(|| Table { headers: headers.map(str::to_owned).to_vec(), rows })
}

/// `0.412 [0.360, 0.470]`; the score alone where no resample has one.
pub fn with_interval(estimate: &Estimate) -> String {
    if estimate.low.is_nan() {
        return format!("{:.3}", estimate.value);
    }
    format!("{:.3} [{:.3}, {:.3}]", estimate.value, estimate.low, estimate.high)
}

fn signed(estimate: &Estimate) -> String {
    format!("{:+.3} [{:+.3}, {:+.3}]", estimate.value, estimate.low, estimate.high)
}

/// What the controls found.
pub fn control_table(evaluation: &Evaluation<'_>) -> Option<Table> {
    let controls = evaluation.reading_controls.as_ref()?;
    let headers = [
        format!("{} controls", evaluation.benchmark.task.name),
        "value [95 % interval]".to_owned(),
    ];
    let rows = controls.iter().map(|score| {
        let is_difference = score.name.contains("_minus_");
        let value = if is_difference { signed } else { with_interval }(&score.estimate);
        vec![score.about.to_owned(), value]
    });
    Some(Table { headers: headers.to_vec(), rows: rows.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_that_no_resample_has_stands_alone() {
        let estimate = Estimate { value: 0.5, low: 0.25, high: 0.75, stderr: 0.1 };
        assert_eq!(with_interval(&estimate), "0.500 [0.250, 0.750]");
        assert_eq!(with_interval(&Estimate::of(0.5, [])), "0.500");
    }

    #[test]
    fn columns_are_aligned() {
        let cells = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let table = Table {
            headers: cells(["task", "0 shots"]),
            rows: vec![cells(["caption", "0.5"]), cells(["", "+0.1"])],
        };
        let expected = "task     0 shots\n-------  -------\ncaption  0.5\n         +0.1\n";
        assert_eq!(table.to_text(), expected);
    }
}
