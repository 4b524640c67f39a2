//! Predictions of a benchmark's items, which its task file finds in the official files.

use serde_json::json;

use crate::error::EvalError;
use crate::linter::{Severity, lint};
use crate::metric::{Judged, Metric, measured};
use crate::predictions::Predictions;
use crate::score::{Said, Score, Scored, finished};
use crate::submission::Predicted;

/// Scores the predictions by the metrics of the task, or those that are asked for.
pub(super) fn scored(score: &Score, task: &str) -> Result<Scored, EvalError> {
    let predicted = Predicted {
        task: task.to_owned(),
        annotations: score.annotations.display().to_string(),
        query_split: score.query_split.clone(),
        predictions: score.predictions.clone(),
    };
    let (mut benchmark, file) = predicted.read()?;
    if score.subset {
        let faults = file.faults(&benchmark.query);
        let missing: std::collections::BTreeSet<String> = faults.missing.into_iter().collect();
        benchmark.query.retain(|item| !missing.contains(&item.id));
    }
    let by_id = file.of(&benchmark.query)?;
    let pairs = benchmark.query.iter().map(|item| (item, by_id[&*item.id]));
    let judged: Vec<Judged<'_>> =
        pairs.map(|(item, it)| Judged { item, prediction: &it.text, scores: &it.scores }).collect();
    let metrics = metrics(score, &benchmark.task.metrics, &judged, &file)?;
    let (measured, drawn) = measured(&metrics, &judged, &score.judging())?;
    let findings = lint(&benchmark, &file).into_iter();
    let warnings = findings.filter(|finding| finding.severity == Severity::Warning);
    let warnings = warnings.map(|finding| finding.text).collect();
    let said = judged.iter().map(|one| Said {
        id: &one.item.id,
        cluster: Some(&one.item.medium_id),
        prediction: json!(one.prediction),
        scores: one.scores,
    });
    finished(score, (measured, &drawn), said, warnings)
}

fn metrics(
    score: &Score,
    of_task: &[Metric],
    judged: &[Judged<'_>],
    file: &Predictions,
) -> Result<Vec<Metric>, EvalError> {
    let metrics = if score.metrics.is_empty() { of_task } else { &score.metrics };
    let unfit = metrics.iter().find_map(|metric| {
        let one = judged.iter().find(|one| !metric.fits(&one.item.truth))?;
        Some((metric, &one.item.id))
    });
    match unfit {
        None if !judged.is_empty() => Ok(Metric::each_once(metrics)),
        None => Err(EvalError::Annotations {
            path: file.path.clone(),
            problem: "no prediction of the split".to_owned(),
        }),
        Some((metric, id)) => Err(EvalError::Annotations {
            path: score.annotations.clone(),
            problem: format!("`{id}` has nothing that {} could judge", metric.name()),
        }),
    }
}
