//! `results.json`: the scores with the keys of lm-evaluation-harness and lmms-eval.
//!
//! One entry per task and round, `caption_4shot`, under its group `caption`. Values are
//! `"metric,filter"`, with `metric_stderr`, and the bounds of the 95 % interval as `metric_ci95`. The score that
//! counts has the filter `none`; all have their rule as filter: `cider,coco`. Where shots are drawn by several
//! seeds, `caption_4shot` is the mean of `caption_4shot_seed0` and so on.
//! No dates and no host names: the same evaluation gives the same bytes.

use serde_json::{Map, Value, json};

use crate::bootstrap::Estimate;
use crate::evaluation::{Evaluation, Outcome, Round, TooLong};
use crate::metric::Metric;
use crate::oddities::Oddity;
use crate::seeds::seed_scores;

/// The filter of the score that counts.
const FILTER: &str = "none";

/// The whole file.
pub fn results_json(evaluations: &[Evaluation<'_>], n_resamples: usize) -> String {
    let mut file = Results::default();
    for evaluation in evaluations {
        for round in &evaluation.rounds {
            file.add_round(evaluation, round);
        }
        file.add_seeds(evaluation);
        file.add_controls(evaluation);
    }
    let value = json!({
        "results": file.scores,
        // Rounds of one task have no mean that says anything: a group has a name and its members.
        "groups": file.groups.keys().map(|name| (name.clone(), json!({ "alias": name }))).collect::<Map<_, _>>(),
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

/// The name of the score that counts.
pub(crate) fn short_name(metric: Metric) -> String {
    match metric {
        Metric::Accuracy => "acc".to_owned(),
        other => {
            let name = other.name();
            name.split_once(':').map_or(name.clone(), |(family, _)| family.to_owned())
        }
    }
}

/// The key of a figure by its name: `cider:coco` is `cider,coco`.
fn key_of(figure: &str) -> (String, String) {
    let (name, rule) = figure.split_once(':').unwrap_or((figure, "rule"));
    (name.to_owned(), rule.to_owned())
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
    fn add_round(&mut self, evaluation: &Evaluation<'_>, round: &Round) {
        let metric = short_name(evaluation.benchmark.task.metric());
        let (mut scores, mut better) = (Map::new(), Map::new());
        match &round.outcome {
            Outcome::Scored(scored) => {
                if let Some((_, estimate)) = scored.headline() {
                    add_estimate(&mut scores, &metric, FILTER, &estimate);
                    better.insert(metric.clone(), true.into());
                }
                for (_, judgement) in &scored.judgements {
                    for figure in &judgement.figures {
                        let (name, rule) = key_of(&figure.name);
                        add_estimate(&mut scores, &name, &rule, &figure.estimate);
                        better.insert(name, true.into());
                    }
                }
                let counts = Oddity::ALL.map(|it| (it.key(), it.count(evaluation, scored)));
                for (name, n) in counts.into_iter().filter(|(_, n)| *n > 0) {
                    scores.insert(name.into(), n.into());
                }
                if let Some(gain) = &scored.gain {
                    add_estimate(&mut scores, &format!("{metric}_gain"), FILTER, &gain.estimate);
                    better.insert(format!("{metric}_gain"), true.into());
                }
            }
            Outcome::OutOfContext(TooLong { longest, n_queries, of }) => {
                scores.insert(format!("{metric},{FILTER}"), Value::Null);
                let longest = longest.map(|it| [it.needed, it.context]);
                scores.insert("out_of_context".into(), json!(longest));
                scores.insert("out_of_context_queries".into(), json!(n_queries));
                scores.insert("out_of_context_looked_at".into(), json!(of));
            }
        }
        let suffix = round.key.suffix(evaluation.has_seeds);
        self.add_entry(evaluation, &suffix, round.key.n_shots, scores, better);
    }

    /// What several seeds come to.
    fn add_seeds(&mut self, evaluation: &Evaluation<'_>) {
        let metric = short_name(evaluation.benchmark.task.metric());
        for seeds in seed_scores(evaluation) {
            let scores = [
                (format!("{metric},{FILTER}"), json!(seeds.mean)),
                (format!("{metric}_stderr,{FILTER}"), json!(seeds.stderr())),
                (format!("{metric}_demo_sd,{FILTER}"), json!(seeds.demo_sd)),
                (format!("{metric}_item_stderr,{FILTER}"), json!(seeds.item_stderr)),
                ("n_demo_seeds".to_owned(), json!(seeds.n_seeds)),
            ];
            let better = Map::from_iter([(metric.clone(), true.into())]);
            self.add_entry(
                evaluation,
                &seeds.suffix,
                seeds.n_shots,
                scores.into_iter().filter(|(_, value)| !value.is_null()).collect(),
                better,
            );
        }
    }

    fn add_controls(&mut self, evaluation: &Evaluation<'_>) {
        let Some(controls) = &evaluation.reading_controls else { return };
        let (mut scores, mut better) = (Map::new(), Map::new());
        for score in controls {
            add_estimate(&mut scores, score.name, FILTER, &score.estimate);
            better.insert(score.name.to_owned(), score.higher_is_better.into());
        }
        self.add_entry(evaluation, "controls", 0, scores, better);
    }

    fn add_entry(
        &mut self,
        evaluation: &Evaluation<'_>,
        suffix: &str,
        n_shots: usize,
        mut scores: Map<String, Value>,
        better: Map<String, Value>,
    ) {
        let task = &evaluation.benchmark.task;
        let name = format!("{}_{suffix}", task.name);
        scores.insert("alias".into(), format!(" - {name}").into());
        self.scores.insert(name.clone(), scores.into());
        let group = self.groups.entry(task.name.clone()).or_insert_with(|| json!([]));
        if let Value::Array(members) = group {
            members.push(name.clone().into());
        }
        let mut config = json!(evaluation.settings);
        config["num_fewshot"] = n_shots.into();
        self.configs.insert(name.clone(), config);
        let version = format!("{}.{}", evaluation.settings.task_version, task.version);
        self.versions.insert(name.clone(), version.into());
        self.n_shot.insert(name.clone(), n_shots.into());
        self.higher_is_better.insert(name.clone(), better.into());
        let counts = json!({
            "original": evaluation.benchmark.query.len() + evaluation.benchmark.n_skipped,
            "effective": evaluation.n_queries,
        });
        self.n_samples.insert(name, counts);
    }
}

fn add_estimate(scores: &mut Map<String, Value>, metric: &str, rule: &str, estimate: &Estimate) {
    scores.insert(format!("{metric},{rule}"), estimate.value.into());
    scores.insert(format!("{metric}_stderr,{rule}"), estimate.stderr.into());
    scores.insert(format!("{metric}_ci95,{rule}"), json!([estimate.low, estimate.high]));
}
