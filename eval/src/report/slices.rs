//! Scores of parts of a benchmark: by category, and by how questions begin.

use std::collections::BTreeMap;

use crate::evaluation::{Evaluation, Outcome};
use crate::item::Item;
use crate::table::Table;

/// Rows of a table; the parts with most queries come first.
const ROWS_MAX: usize = 20;

/// Words that tell the kind of a question.
const QUESTION_WORDS: usize = 2;

/// Mean credit in each part of a benchmark and each round without controls. None where the metric is no mean of
/// credits, or there are no parts.
pub(super) fn slice_tables(evaluation: &Evaluation<'_>) -> Vec<Table> {
    let by_category = table(evaluation, "category", |item| item.category.clone());
    let by_question = table(evaluation, "questions that begin", |item| {
        let words = item.fields.get("question")?.split_whitespace().take(QUESTION_WORDS);
        Some(words.collect::<Vec<_>>().join(" ").to_lowercase())
    });
    by_category.into_iter().chain(by_question).collect()
}

fn table(
    evaluation: &Evaluation<'_>,
    what: &str,
    part_of: impl Fn(&Item) -> Option<String>,
) -> Option<Table> {
    let mut parts: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (index, item) in evaluation.benchmark.query.iter().take(evaluation.n_queries).enumerate() {
        if let Some(part) = part_of(item) {
            parts.entry(part).or_default().push(index);
        }
    }
    let mut headers = vec![what.to_owned(), "queries".to_owned()];
    let mut rounds = Vec::new();
    for round in evaluation.rounds.iter().filter(|round| round.key.control.is_none()) {
        let Outcome::Scored(scored) = &round.outcome else { continue };
        let Some((_, judgement)) = scored.judgements.first() else { continue };
        let credits = judgement.credits.iter().map(serde_json::Value::as_f64);
        let Some(credits) = credits.collect::<Option<Vec<f64>>>() else { continue };
        headers.push(round.key.suffix(evaluation.has_seeds));
        rounds.push(credits);
    }
    if parts.len() < 2 || rounds.is_empty() {
        return None;
    }
    let mut parts: Vec<(String, Vec<usize>)> = parts.into_iter().collect();
    parts.sort_by_key(|(_, queries)| std::cmp::Reverse(queries.len()));
    let rows = parts.iter().take(ROWS_MAX).map(|(part, queries)| {
        let mean = |credits: &Vec<f64>| {
            let sum: f64 = queries.iter().filter_map(|&query| credits.get(query)).sum();
            format!("{:.3}", sum / queries.len() as f64)
        };
        let head = [part.clone(), queries.len().to_string()];
        head.into_iter().chain(rounds.iter().map(mean)).collect()
    });
    Some(Table { headers, rows: rows.collect() })
}
