//! `flamingo-eval score`: a file of predictions against a file of annotations, as they are downloaded, under
//! one or more rules by name.
//!
//! Annotations are COCO's captions (`annotations` of `image_id` and `caption`), VQA's (`annotations` of
//! `question_id` and `answers`), or `VizWiz`'s list (of `image` and `answers`); predictions are what the
//! official tools take: a list of `image_id` and `caption`, of `question_id` and `answer`, or of `image` and
//! `answer`. Every prediction must be of an annotated image or question, and there must be one for each.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::bootstrap::Estimate;
use crate::error::EvalError;
use crate::item::{Item, Truth};
use crate::metric::{Figure, Judged, Metric};
use crate::metrics::vqa::HumanAnswer;
use crate::table::{Table, with_interval};

/// What is scored, and how.
#[derive(Debug, Args)]
pub struct Score {
    /// Official file of annotations (JSON).
    #[arg(long, value_name = "FILE")]
    annotations: PathBuf,
    /// Predictions as the official tool takes them (JSON).
    #[arg(long, value_name = "FILE")]
    predictions: PathBuf,
    /// A metric with its rule; repeatable [default: the official ones of the annotations].
    #[arg(long = "metric", value_enum, value_name = "METRIC:RULE")]
    metrics: Vec<Metric>,
    /// Score the annotations that have a prediction, as the official caption tool does; CIDEr-D of another set
    /// of images is another score.
    #[arg(long)]
    subset: bool,
    /// Writes the credit of each image or question under each metric, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    samples: Option<PathBuf>,
    /// Prints one JSON object in place of a table.
    #[arg(long)]
    json: bool,
    /// Seed of the intervals.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// An annotated image or question with its prediction.
#[derive(Debug)]
struct Predicted {
    item: Item,
    text: String,
}

/// Ids that a message names; of the rest it says how many.
const NAMED_MAX: usize = 5;

/// Scores the files; what is to be printed comes back.
///
/// # Errors
/// When a file cannot be read or is of no known form, ids do not fit, a metric does not fit the
/// annotations, or the samples cannot be written.
pub fn run(score: &Score) -> Result<String, EvalError> {
    let predicted = predicted(score)?;
    let judged: Vec<Judged<'_>> = predicted
        .iter()
        .map(|one| Judged { item: &one.item, prediction: &one.text, scores: &[] })
        .collect();
    let (mut figures, mut credits) = (Vec::new(), Vec::new());
    for metric in score.metrics_for(&predicted[0].item.truth)? {
        let found = metric.judge(&judged, score.seed);
        figures.extend(found.figures);
        credits.push((metric.name(), found.credits));
    }
    if let Some(path) = &score.samples {
        write_samples(path, &predicted, &credits)?;
    }
    Ok(if score.json { as_json(&figures, judged.len()) } else { as_table(&figures, judged.len()) })
}

impl Score {
    fn metrics_for(&self, truth: &Truth) -> Result<Vec<Metric>, EvalError> {
        let official = match truth {
            Truth::Captions(_) => &[Metric::BleuCoco, Metric::RougeCoco, Metric::CiderCoco][..],
            _ => &[Metric::VqaOfficial],
        };
        let metrics = if self.metrics.is_empty() { official } else { &self.metrics };
        match metrics.iter().find(|metric| !metric.fits(truth)) {
            None => Ok(metrics.to_vec()),
            Some(metric) => {
                let has = match truth {
                    Truth::Captions(_) => "captions",
                    _ => "answers",
                };
                let problem = format!("it has {has}, of which there is no {}", metric.name());
                Err(EvalError::Annotations { path: self.annotations.clone(), problem })
            }
        }
    }
}

/// The annotations in the order of their ids, each with its prediction.
fn predicted(score: &Score) -> Result<Vec<Predicted>, EvalError> {
    let mut truths = truths(&score.annotations)?;
    let mut predicted = Vec::new();
    let (mut unknown, mut repeated) = (Vec::new(), Vec::new());
    let mut seen = BTreeSet::new();
    for (id, prediction) in predictions(&score.predictions)? {
        if !seen.insert(id.clone()) {
            repeated.push(id);
        } else if let Some(truth) = truths.remove(&id) {
            predicted.push(Predicted { item: item(id, truth), text: prediction });
        } else {
            unknown.push(id);
        }
    }
    let missing = if score.subset { Vec::new() } else { truths.into_keys().collect() };
    let mut problem = String::new();
    for (what, ids) in [
        ("more than one prediction of", repeated),
        ("predictions of what is not annotated:", unknown),
        ("no prediction of", missing),
    ] {
        if !ids.is_empty() {
            let (named, n) = (ids[..ids.len().min(NAMED_MAX)].join(", "), ids.len());
            let more =
                if n > NAMED_MAX { format!(" and {} more", n - NAMED_MAX) } else { String::new() };
            let separator = if problem.is_empty() { "" } else { "; " };
            let _ = write!(problem, "{separator}{what} {named}{more}");
        }
    }
    if problem.is_empty() && predicted.is_empty() {
        "no predictions".clone_into(&mut problem);
    }
    if !problem.is_empty() {
        return Err(EvalError::Annotations { path: score.predictions.clone(), problem });
    }
    let place = |one: &Predicted| (one.item.id.len(), one.item.id.clone());
    predicted.sort_by_cached_key(place);
    Ok(predicted)
}

fn item(id: String, truth: Truth) -> Item {
    Item {
        medium_id: id.clone(),
        id,
        medium: None,
        fields: BTreeMap::new(),
        truth,
        candidates: Arc::default(),
        category: None,
    }
}

fn read_json(path: &Path) -> Result<Value, EvalError> {
    let bytes = std::fs::read(path).map_err(EvalError::file("read", path))?;
    serde_json::from_slice(&bytes).map_err(|error| EvalError::Annotations {
        path: path.to_path_buf(),
        problem: format!("it is not JSON: {error}"),
    })
}

/// Keys that name an image or question, in the order in which they are looked for.
const ID_KEYS: [&str; 3] = ["question_id", "image_id", "image"];

fn id_of(row: &Value) -> Option<String> {
    let id = ID_KEYS.iter().find_map(|key| row.get(key))?;
    id.as_str().map(str::to_owned).or_else(|| id.as_i64().map(|id| id.to_string()))
}

/// What people wrote, by the id of its image or question.
fn truths(path: &Path) -> Result<BTreeMap<String, Truth>, EvalError> {
    let refuse = |problem: String| EvalError::Annotations { path: path.to_path_buf(), problem };
    let file = read_json(path)?;
    let rows = file.get("annotations").unwrap_or(&file).as_array().filter(|rows| !rows.is_empty());
    let rows = rows.ok_or_else(|| refuse("it has no list `annotations`".to_owned()))?;
    let mut truths = BTreeMap::new();
    for (i, row) in rows.iter().enumerate() {
        let wrong = |expected: &str| refuse(format!("annotation {i} has no {expected}"));
        let id = id_of(row).ok_or_else(|| wrong("`question_id`, `image_id` or `image`"))?;
        if let Some(caption) = row.get("caption").and_then(Value::as_str) {
            let entry = truths.entry(id).or_insert_with(|| Truth::Captions(Vec::new()));
            let Truth::Captions(captions) = entry else { return Err(wrong("`answers`")) };
            captions.push(caption.to_owned());
        } else {
            let answers = row.get("answers").ok_or_else(|| wrong("`caption` or `answers`"))?;
            let answers: Vec<HumanAnswer> = Deserialize::deserialize(answers)
                .map_err(|error| refuse(format!("annotation {i}: `answers`: {error}")))?;
            if truths.insert(id, Truth::Answers(answers)).is_some() {
                return Err(refuse(format!("annotation {i} is of a question that has one")));
            }
        }
    }
    let n_captioned = truths.values().filter(|truth| matches!(truth, Truth::Captions(_))).count();
    if n_captioned != 0 && n_captioned != truths.len() {
        return Err(refuse("it has captions and answers".to_owned()));
    }
    Ok(truths)
}

/// Ids and texts, in the order of the file.
fn predictions(path: &Path) -> Result<Vec<(String, String)>, EvalError> {
    let refuse = |problem: String| EvalError::Annotations { path: path.to_path_buf(), problem };
    let file = read_json(path)?;
    let rows =
        file.as_array().ok_or_else(|| refuse("it is not a list of predictions".to_owned()))?;
    let one = |(i, row): (usize, &Value)| {
        let text = row.get("caption").or_else(|| row.get("answer")).and_then(Value::as_str);
        let both = id_of(row).zip(text.map(str::to_owned));
        both.ok_or_else(|| {
            let ids = ID_KEYS.join("`, `");
            refuse(format!("prediction {i} lacks an id (`{ids}`) or a text (`caption`, `answer`)"))
        })
    };
    rows.iter().enumerate().map(one).collect()
}

fn write_samples(
    path: &Path,
    predicted: &[Predicted],
    credits: &[(String, Vec<Value>)],
) -> Result<(), EvalError> {
    let mut text = String::new();
    for (i, one) in predicted.iter().enumerate() {
        let credit: Map<String, Value> =
            credits.iter().map(|(name, credit)| (name.clone(), credit[i].clone())).collect();
        let line = json!({ "id": one.item.id, "prediction": one.text, "credit": credit });
        let _ = writeln!(text, "{line}");
    }
    std::fs::write(path, text).map_err(EvalError::file("write", path))
}

fn as_table(figures: &[Figure], n: usize) -> String {
    let row = |figure: &Figure| vec![figure.name.clone(), with_interval(&figure.estimate)];
    let headers = vec![format!("{n} predictions"), "value [95 % interval]".to_owned()];
    Table { headers, rows: figures.iter().map(row).collect() }.to_text()
}

fn as_json(figures: &[Figure], n: usize) -> String {
    let one = |figure: &Figure| {
        let Estimate { value, low, high, stderr } = figure.estimate;
        (figure.name.clone(), json!({ "value": value, "ci95": [low, high], "stderr": stderr }))
    };
    let scores: Map<String, Value> = figures.iter().map(one).collect();
    format!("{}\n", json!({ "predictions": n, "scores": scores }))
}
