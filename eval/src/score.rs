//! `flamingo-eval score`: a file of predictions against a file of annotations, as they are downloaded, under
//! one or more rules by name.
//!
//! What a file annotates is told from its columns or keys; predictions are what the official tools take.
//! Every prediction must be of an annotated image or question, and there must be one for each.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, Value, json};

use crate::bootstrap::{Clusters, Drawn, Estimate, RESAMPLES, Resampling, Scores};
use crate::error::EvalError;
use crate::metric::evidence::{Evidence, Prediction};
use crate::metric::measure::{Bench, Frequencies, Measured, Measuring};
use crate::metric::{Form, Judging, Metric};
use crate::paired::{Difference, difference};
use crate::predictions::matched::{Matched, Names};
use crate::predictions::rows::entries;
use crate::settings::write_whole;
use crate::table::{Table, with_interval};

mod by_task;
mod truth;
mod warnings;

use truth::{Truths, truths};

/// What is scored, and how.
#[derive(Debug, Args)]
pub struct Score {
    /// Official file of annotations: COCO's captions, VQA's, `VizWiz`'s or `TextVQA`'s answers, MSVD's and
    /// `MSRVTT`'s questions, `VisDial`'s dialogs or relevance, STAR's questions (JSON), `HatefulMemes`' labels (JSONL), tables
    /// of iVQA, NExT-QA or `RareAct` (CSV). With --task, the folder of its official files.
    #[arg(long, value_name = "FILE")]
    pub annotations: PathBuf,
    /// Task of `flamingo-eval tasks`, or the path of a task file: its reader finds what was asked, and its metrics
    /// are taken.
    #[arg(long, value_name = "TASK")]
    pub task: Option<String>,
    /// Split that the predictions are of, if not the task's own.
    #[arg(long, value_name = "SPLIT", requires = "task")]
    pub query_split: Option<String>,
    /// Second right answers of the test split of open-ended NExT-QA (JSON).
    #[arg(long, value_name = "FILE", conflicts_with = "task")]
    pub more_annotations: Option<PathBuf>,
    /// Predictions as the official tool takes them (JSON, JSONL, CSV; of `RareAct` .npy).
    #[arg(long, value_name = "FILE")]
    pub predictions: PathBuf,
    /// A metric with its rule; repeatable [default: the official ones of the annotations].
    #[arg(long = "metric", value_enum, value_name = "METRIC:RULE")]
    pub metrics: Vec<Metric>,
    /// Score the annotations that have a prediction, as the official caption tool does; CIDEr-D of another set
    /// of images is another score.
    #[arg(long)]
    pub subset: bool,
    /// Writes the credit of each image or question under each metric, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    pub samples: Option<PathBuf>,
    /// Prints one JSON object in place of a table.
    #[arg(long)]
    pub json: bool,
    /// Seed of the intervals.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Resamples of the intervals, of images or videos with all that is of them; 0 for none.
    #[arg(long, default_value_t = RESAMPLES)]
    pub resamples: usize,
    /// How CIDEr-D is drawn.
    #[arg(long, value_enum, default_value = "frozen")]
    pub frequencies: Frequencies,
    /// Folder of the `WordNet` 3.0 database, for WUPS [default: `FLAMINGO_WORDNET`, or /usr/share/wordnet].
    #[arg(long, value_name = "DIR")]
    pub wordnet: Option<PathBuf>,
    /// Folder of METEOR 1.5, with meteor-1.5.jar and data/paraphrase-en.gz [default: `METEOR_DATA`].
    #[arg(long, value_name = "DIR")]
    pub meteor_data: Option<PathBuf>,
}

impl Score {
    fn judging(&self) -> Judging<'_> {
        Judging {
            seed: self.seed,
            resamples: self.resamples,
            frequencies: self.frequencies,
            wordnet: self.wordnet.as_deref(),
            meteor: self.meteor_data.as_deref(),
            path: &self.predictions,
        }
    }

    /// The official metrics of two files, without intervals.
    pub fn of(annotations: PathBuf, predictions: PathBuf) -> Self {
        Self {
            annotations,
            task: None,
            query_split: None,
            more_annotations: None,
            predictions,
            metrics: Vec::new(),
            subset: false,
            samples: None,
            json: false,
            seed: 0,
            resamples: 0,
            frequencies: Frequencies::Frozen,
            wordnet: None,
            meteor_data: None,
        }
    }
}

/// A score with its interval.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Metric and rule, and the type of questions where it is of one.
    pub name: String,
    /// The score.
    pub estimate: Estimate,
    /// Against the first rule of its family, by name, where there are more.
    pub against: Option<(String, Difference)>,
}

/// What scoring found.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The rows of each metric in turn.
    pub rows: Vec<Row>,
    /// How many predictions were scored.
    pub n_predictions: usize,
    /// Resamples that the intervals rest on.
    pub resamples: usize,
    /// What is odd about the predictions.
    pub warnings: Vec<String>,
    /// Ids of the items.
    pub(crate) ids: Vec<String>,
    /// Of each metric, in the order of the items.
    pub(crate) credits: Vec<Credits>,
}

/// Scores the files; what is to be printed comes back.
///
/// # Errors
/// When a file cannot be read or is of no known form, ids do not fit, a metric does not fit the
/// annotations, or the samples cannot be written.
pub fn run(score: &Score) -> Result<String, EvalError> {
    let scored = scored(score)?;
    Ok(if score.json { as_json(&scored) } else { as_table(&scored) })
}

/// Scores the files.
///
/// # Errors
/// As [`run`].
pub fn scored(score: &Score) -> Result<Scored, EvalError> {
    if let Some(task) = &score.task {
        return by_task::scored(score, task);
    }
    let read = |path: &Path| std::fs::read(path).map_err(EvalError::file("read", path));
    // The bytes of the annotations go before anything else comes.
    let truths = score.truths(&read(&score.annotations)?)?;
    scored_against(score, truths, &read(&score.predictions)?)
}

/// Scores the contents of the files of annotations and of predictions.
pub(crate) fn scored_bytes(
    score: &Score,
    annotated: &[u8],
    said: &[u8],
) -> Result<Scored, EvalError> {
    scored_against(score, score.truths(annotated)?, said)
}

fn scored_against(score: &Score, mut truths: Truths, said: &[u8]) -> Result<Scored, EvalError> {
    let metrics = score.metrics_for(truths.form)?;
    let mut warnings = Vec::new();
    let (items, predictions) = paired(score, &mut truths, said, &mut warnings)?;
    warnings.extend(warnings::of(truths.form, &items, &predictions));
    let clusters =
        Clusters::of(items.iter().map(|item| item.cluster.as_deref().unwrap_or(&item.id)));
    let how = Measuring {
        clusters: &clusters,
        frequencies: score.frequencies,
        wordnet: score.wordnet.as_deref(),
        meteor: score.meteor_data.as_deref(),
        path: &score.predictions,
    };
    let mut bench = Bench::of((&items, &predictions), &mut truths.answers, how);
    let mut measured = Vec::new();
    for metric in metrics {
        measured.push(bench.measure(metric)?);
    }
    let plan = Resampling { clusters: &clusters, seed: score.seed, resamples: score.resamples };
    let scores: Vec<&Scores<'_>> = measured.iter().map(|one| &*one.scores).collect();
    let drawn = plan.draw(&scores);
    let said = items.iter().zip(&predictions).map(|(item, said)| Said {
        id: &item.id,
        cluster: item.cluster.as_deref(),
        prediction: said_of(said),
        scores: said.scores(),
    });
    finished(score, (measured, &drawn), said, warnings)
}

/// What was said of one item.
struct Said<'a> {
    id: &'a str,
    cluster: Option<&'a str>,
    prediction: Value,
    /// Of each candidate.
    scores: &'a [f64],
}

/// The scores of what was measured, after the samples are written if they are asked for.
fn finished<'a>(
    score: &Score,
    (measured, drawn): (Vec<Measured>, &[Drawn]),
    said: impl Iterator<Item = Said<'a>> + Clone,
    mut warnings: Vec<String>,
) -> Result<Scored, EvalError> {
    let rows = rows(&measured, drawn);
    let problems = measured.iter().zip(drawn).filter_map(|(one, drawn)| one.problem(drawn));
    let problems: Vec<String> = problems.collect();
    if rows.is_empty() && !problems.is_empty() {
        let problem = problems.join("; ");
        return Err(EvalError::Annotations { path: score.annotations.clone(), problem });
    }
    warnings.extend(problems);
    let ids: Vec<String> = said.clone().map(|one| one.id.to_owned()).collect();
    let credits: Vec<Credits> = measured.into_iter().map(Credits::of).collect();
    if let Some(path) = &score.samples {
        write_whole(path, &samples(said, &credits))?;
    }
    Ok(Scored {
        rows,
        n_predictions: ids.len(),
        resamples: score.resamples,
        warnings,
        ids,
        credits,
    })
}

/// What items add under one metric.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Credits {
    pub(crate) metric: String,
    pub(crate) of_items: Vec<Value>,
    /// What the score is made of, where it is no mean of credits.
    terms: Vec<Value>,
    needs_scores: bool,
}

impl Credits {
    fn of(measured: Measured) -> Self {
        let (of_items, terms) = (measured.credits, measured.terms);
        let metric = measured.metric;
        Self { metric: metric.name(), of_items, terms, needs_scores: metric.needs_scores() }
    }
}

impl Score {
    fn truths(&self, annotated: &[u8]) -> Result<Truths, EvalError> {
        truths(&self.annotations, annotated, self.more_annotations.as_deref())
    }

    fn metrics_for(&self, form: Form) -> Result<Vec<Metric>, EvalError> {
        if self.metrics.is_empty() {
            return Ok(Metric::official(form).to_vec());
        }
        let metrics = Metric::each_once(&self.metrics);
        match metrics.iter().find(|metric| !metric.is_of(form)) {
            None => Ok(metrics),
            Some(metric) => {
                let problem =
                    format!("it has {}, of which there is no {}", form.holds(), metric.name());
                Err(EvalError::Annotations { path: self.annotations.clone(), problem })
            }
        }
    }
}

/// The annotated items that have a prediction, in their order, and the predictions.
fn paired<'a>(
    score: &Score,
    truths: &mut Truths,
    said: &'a [u8],
    warnings: &mut Vec<String>,
) -> Result<(Vec<Evidence<'a>>, Vec<Prediction<'a>>), EvalError> {
    let refuse = |problem| EvalError::Annotations { path: score.predictions.clone(), problem };
    let mut items = std::mem::take(&mut truths.items);
    let ids: Vec<&str> = items.iter().map(|item| item.id.as_str()).collect();
    let mut predicted = Vec::new();
    for entry in entries(&score.predictions, said, truths.form, &ids)? {
        predicted.push(entry.without_candidates(truths.form).map_err(refuse)?);
    }
    let named = items.iter().map(|item| (item.id.as_str(), item.cluster.as_deref()));
    let names = Names::of(truths.form, named);
    let mut matched = Matched::of(&names, items.len(), predicted.iter().map(|(id, _)| id.as_str()));
    if !score.subset {
        matched = matched.with_missing(ids.iter().copied());
    }
    if matched.n_other_rounds > 0 {
        let n = matched.n_other_rounds;
        warnings.push(format!("{n} rounds without relevance are not scored"));
    }
    if !matched.faults.is_empty() {
        return Err(refuse(matched.faults.lines().join("; ")));
    }
    let mut said = Vec::with_capacity(predicted.len());
    let mut predicted: Vec<Option<Prediction<'a>>> =
        predicted.into_iter().map(|(_, prediction)| Some(prediction)).collect();
    said.extend(matched.of_item.iter().flatten().filter_map(|at| predicted[*at].take()));
    if said.is_empty() {
        return Err(refuse("no predictions".to_owned()));
    }
    let mut of_item = matched.of_item.iter();
    items.retain(|_| of_item.next().is_some_and(Option::is_some));
    Ok((items, said))
}

fn rows(measured: &[Measured], drawn: &[Drawn]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (at, one) in measured.iter().enumerate() {
        let first = measured.iter().position(|other| other.metric.family() == one.metric.family());
        let first = first.filter(|first| *first < at);
        for (i, estimate) in one.estimates(&drawn[at]).into_iter().enumerate() {
            let Some(estimate) = estimate else { continue };
            let against = first.and_then(|first| {
                let difference = difference(&drawn[first], &drawn[at], i)?;
                Some((measured[first].names.get(i)?.clone(), difference))
            });
            rows.push(Row { name: one.names[i].clone(), estimate, against });
        }
    }
    rows
}

/// What samples hold of a prediction.
fn said_of(prediction: &Prediction<'_>) -> Value {
    match prediction {
        Prediction::Text(text) => json!(text),
        Prediction::Ranking(ranking) => json!(ranking),
        Prediction::Choice(choice) => json!(choice),
        Prediction::Scores(scores) if scores.len() == 1 => json!(scores[0]),
        Prediction::Scores(_) => Value::Null,
    }
}

/// A JSON object a line for each item.
fn samples<'a>(said: impl Iterator<Item = Said<'a>>, credits: &[Credits]) -> String {
    let mut text = String::new();
    let need_scores = credits.iter().any(|of_metric| of_metric.needs_scores);
    for (i, Said { id, cluster, prediction, scores }) in said.enumerate() {
        let (mut credit, mut terms) = (Map::new(), Map::new());
        for of_metric in credits {
            credit.insert(of_metric.metric.clone(), of_metric.of_items[i].clone());
            if let Some(term) = of_metric.terms.get(i) {
                terms.insert(of_metric.metric.clone(), term.clone());
            }
        }
        let mut line = json!({ "id": id, "prediction": prediction, "credit": credit });
        if let Some(cluster) = cluster {
            line["cluster"] = json!(cluster);
        }
        if need_scores {
            line["scores"] = json!(scores);
        }
        if !terms.is_empty() {
            line["terms"] = terms.into();
        }
        let _ = writeln!(text, "{line}");
    }
    text
}

fn as_table(scored: &Scored) -> String {
    let has_families = scored.rows.iter().any(|row| row.against.is_some());
    let row = |figure: &Row| {
        let value = match scored.resamples {
            0 => format!("{:.3}", figure.estimate.value),
            _ => with_interval(&figure.estimate),
        };
        let mut row = vec![figure.name.clone(), value];
        if has_families {
            let against = figure.against.as_ref().map(|(name, difference)| {
                let Estimate { value, low, high, .. } = difference.difference;
                match scored.resamples {
                    0 => format!("{value:+.3} {name}"),
                    _ => format!("{value:+.3} [{low:+.3}, {high:+.3}] {name}"),
                }
            });
            row.push(against.unwrap_or_default());
        }
        row
    };
    let value = if scored.resamples == 0 { "value" } else { "value [95 % interval]" };
    let mut headers = vec![format!("{} predictions", scored.n_predictions), value.to_owned()];
    if has_families {
        headers.push("against".to_owned());
    }
    let table = Table { headers, rows: scored.rows.iter().map(row).collect() }.to_text();
    let warnings = scored.warnings.iter().map(|warning| format!("warning: {warning}\n"));
    std::iter::once(table).chain(warnings).collect()
}

fn as_json(scored: &Scored) -> String {
    let one = |figure: &Row| {
        let Estimate { value, low, high, stderr } = figure.estimate;
        let mut entry = match scored.resamples {
            0 => json!({ "value": value }),
            _ => json!({ "value": value, "ci95": [low, high], "stderr": stderr }),
        };
        if let Some((name, difference)) = &figure.against {
            entry["against"] = match scored.resamples {
                0 => {
                    json!({ "metric": name, "difference": { "value": difference.difference.value } })
                }
                _ => {
                    json!({ "metric": name, "difference": difference.difference, "p": difference.p })
                }
            };
        }
        (figure.name.clone(), entry)
    };
    let scores: Map<String, Value> = scored.rows.iter().map(one).collect();
    let json = json!({ "predictions": scored.n_predictions, "scores": scores,
        "warnings": scored.warnings });
    format!("{json}\n")
}
