//! The scores as tables, the same on the terminal and in the report.

use crate::bootstrap::Estimate;
use crate::evaluate::{Evaluation, Outcome, Round};

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

/// Scores by shot count, with the gain over the first shot count under each.
pub fn score_table(evaluations: &[&Evaluation]) -> Table {
    let mut headers: Vec<String> = ["task", "score", "queries"].map(str::to_owned).to_vec();
    let shots = evaluations.first().map(|evaluation| &evaluation.rounds);
    headers.extend(shots.into_iter().flatten().map(|round| format!("{} shots", round.n_shots)));
    let rows = evaluations.iter().flat_map(|evaluation| score_rows(evaluation));
    Table { headers, rows: rows.collect() }
}

fn score_rows(evaluation: &Evaluation) -> Vec<Vec<String>> {
    let row = |task: &str, score: String, queries: String, cell: fn(&Round) -> String| {
        let cells = evaluation.rounds.iter().map(cell);
        [task.to_owned(), score, queries].into_iter().chain(cells).collect::<Vec<String>>()
    };
    let queries = evaluation.queries.len().to_string();
    let mut rows =
        vec![row(evaluation.task, metric_name(evaluation.metric).into(), queries, score_cell)];
    let has_gain = |round: &Round| !gain_cell(round).is_empty();
    if evaluation.rounds.iter().any(has_gain) {
        let first = evaluation.rounds.iter().find(|r| matches!(r.outcome, Outcome::Scored(_)));
        let over = first.map_or(0, |round| round.n_shots);
        rows.push(row("", format!("gain over {over} shots"), String::new(), gain_cell));
    }
    rows
}

/// The score's name in the literature.
fn metric_name(metric: &str) -> &str {
    match metric {
        "cider" => "CIDEr-D",
        "acc" => "accuracy",
        other => other,
    }
}

fn score_cell(round: &Round) -> String {
    match &round.outcome {
        Outcome::Scored(scored) => with_interval(&scored.estimate),
        Outcome::OutOfContext { needed, context } => {
            format!("out of context ({needed} tokens, the model holds {context})")
        }
    }
}

fn gain_cell(round: &Round) -> String {
    match &round.outcome {
        Outcome::Scored(scored) => scored.gain.as_ref().map(signed).unwrap_or_default(),
        Outcome::OutOfContext { .. } => String::new(),
    }
}

/// `0.412 [0.360, 0.470]`.
pub fn with_interval(estimate: &Estimate) -> String {
    format!("{:.3} [{:.3}, {:.3}]", estimate.value, estimate.low, estimate.high)
}

fn signed(estimate: &Estimate) -> String {
    format!("{:+.3} [{:+.3}, {:+.3}]", estimate.value, estimate.low, estimate.high)
}

/// What the controls found.
pub fn control_table(evaluation: &Evaluation) -> Option<Table> {
    let controls = evaluation.controls.as_ref()?;
    let headers = [format!("{} controls", evaluation.task), "value [95 % interval]".to_owned()];
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
