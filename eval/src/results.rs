//! `results.json`: the scores with the keys of lm-evaluation-harness and lmms-eval.
//!
//! One entry per task and shot count, `caption_4shot`, under its group `caption`. Values are
//! `"metric,filter"`, with `metric_stderr`, and the bounds of the 95 % interval as `metric_ci95`.
//! No dates and no host names: the same evaluation gives the same bytes.

use serde_json::{Map, Value, json};

use crate::bootstrap::Estimate;
use crate::evaluate::{Evaluation, Outcome, Round};

/// The filter of all scores: answers are taken as they are.
const FILTER: &str = "none";

/// The whole file.
pub fn results_json(evaluations: &[&Evaluation], n_resamples: usize) -> String {
    let mut file = Results::default();
    for evaluation in evaluations {
        for round in &evaluation.rounds {
            file.add_round(evaluation, round);
        }
        file.add_controls(evaluation);
    }
    let value = json!({
        "results": file.scores,
        "group_subtasks": file.groups,
        "configs": file.configs,
        "versions": file.versions,
        "n-shot": file.n_shot,
        "higher_is_better": file.higher_is_better,
        "n-samples": file.n_samples,
        "config": { "bootstrap_iters": n_resamples, "interval": "percentile bootstrap, 95 %" },
    });
    format!("{value:#}\n")
}

#[derive(Default)]
struct Results {
    scores: Map<String, Value>,
    groups: Map<String, Value>,
    configs: Map<String, Value>,
    versions: Map<String, Value>,
    n_shot: Map<String, Value>,
    higher_is_better: Map<String, Value>,
    n_samples: Map<String, Value>,
}

impl Results {
    fn add_round(&mut self, evaluation: &Evaluation, round: &Round) {
        let (metric, mut scores) = (evaluation.metric, Map::new());
        match &round.outcome {
            Outcome::Scored(scored) => {
                add_estimate(&mut scores, metric, &scored.estimate);
                if let Some(gain) = &scored.gain {
                    add_estimate(&mut scores, &format!("{metric}_gain"), gain);
                }
            }
            Outcome::OutOfContext { needed, context } => {
                scores.insert(format!("{metric},{FILTER}"), Value::Null);
                scores.insert("out_of_context".into(), json!([needed, context]));
            }
        }
        let better = json!({ metric: true, format!("{metric}_gain"): true });
        self.add_entry(
            evaluation,
            &format!("{}shot", round.n_shots),
            round.n_shots,
            scores,
            better,
        );
    }

    fn add_controls(&mut self, evaluation: &Evaluation) {
        let Some(controls) = &evaluation.controls else { return };
        let (mut scores, mut better) = (Map::new(), Map::new());
        for score in controls {
            add_estimate(&mut scores, score.name, &score.estimate);
            better.insert(score.name.to_owned(), score.higher_is_better.into());
        }
        self.add_entry(evaluation, "controls", 0, scores, better.into());
    }

    fn add_entry(
        &mut self,
        evaluation: &Evaluation,
        suffix: &str,
        n_shots: usize,
        mut scores: Map<String, Value>,
        better: Value,
    ) {
        let name = format!("{}_{suffix}", evaluation.task);
        scores.insert("alias".into(), format!(" - {name}").into());
        self.scores.insert(name.clone(), scores.into());
        let group = self.groups.entry(evaluation.task).or_insert_with(|| json!([]));
        if let Value::Array(members) = group {
            members.push(name.clone().into());
        }
        let mut config = json!(evaluation.settings);
        config["num_fewshot"] = n_shots.into();
        self.configs.insert(name.clone(), config);
        self.versions.insert(name.clone(), evaluation.settings.task_version.into());
        self.n_shot.insert(name.clone(), n_shots.into());
        self.higher_is_better.insert(name.clone(), better);
        let counts = json!({
            "original": evaluation.n_queries_total,
            "effective": evaluation.queries.len(),
        });
        self.n_samples.insert(name, counts);
    }
}

fn add_estimate(scores: &mut Map<String, Value>, metric: &str, estimate: &Estimate) {
    scores.insert(format!("{metric},{FILTER}"), estimate.value.into());
    scores.insert(format!("{metric}_stderr,{FILTER}"), estimate.stderr.into());
    scores.insert(format!("{metric}_ci95,{FILTER}"), json!([estimate.low, estimate.high]));
}
