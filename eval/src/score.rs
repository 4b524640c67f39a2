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

use clap::{Args, ValueEnum};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::bootstrap::{Estimate, Term, estimate, estimate_by};
use crate::error::EvalError;
use crate::metrics::bleu::{bleu_counts, total};
use crate::metrics::captions::{CaptionPair, WordPair, Words};
use crate::metrics::cider::cider_d_of_words;
use crate::metrics::rouge::rouge_l;
use crate::metrics::vqa::{HumanAnswer, VqaRule, vqa_accuracy};
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

/// A metric and a rule for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Metric {
    /// BLEU-1 to BLEU-4 of the Penn Treebank's tokens, the official rule.
    #[value(name = "bleu:coco")]
    BleuCoco,
    /// ROUGE-L, likewise.
    #[value(name = "rouge:coco")]
    RougeCoco,
    /// CIDEr-D, likewise.
    #[value(name = "cider:coco")]
    CiderCoco,
    /// BLEU-1 to BLEU-4 of texts cut at white space, as `VLMEvalKit` has it.
    #[value(name = "bleu:no-ptb")]
    BleuNoPtb,
    /// ROUGE-L, likewise.
    #[value(name = "rouge:no-ptb")]
    RougeNoPtb,
    /// CIDEr-D, likewise.
    #[value(name = "cider:no-ptb")]
    CiderNoPtb,
    /// VQA accuracy of the official tool.
    #[value(name = "vqa:official")]
    VqaOfficial,
    /// VQA accuracy of `open_flamingo`.
    #[value(name = "vqa:open-flamingo")]
    VqaOpenFlamingo,
    /// VQA accuracy of `VizWiz`'s tool.
    #[value(name = "vqa:vizwiz-api")]
    VqaVizwiz,
}

/// A family of metrics and the rule.
#[derive(Debug, Clone, Copy)]
enum Rule {
    Bleu(Words),
    Rouge(Words),
    Cider(Words),
    Vqa(VqaRule),
}

impl Metric {
    fn rule(self) -> Rule {
        match self {
            Self::BleuCoco => Rule::Bleu(Words::Ptb),
            Self::RougeCoco => Rule::Rouge(Words::Ptb),
            Self::CiderCoco => Rule::Cider(Words::Ptb),
            Self::BleuNoPtb => Rule::Bleu(Words::WhiteSpace),
            Self::RougeNoPtb => Rule::Rouge(Words::WhiteSpace),
            Self::CiderNoPtb => Rule::Cider(Words::WhiteSpace),
            Self::VqaOfficial => Rule::Vqa(VqaRule::Official),
            Self::VqaOpenFlamingo => Rule::Vqa(VqaRule::OpenFlamingo),
            Self::VqaVizwiz => Rule::Vqa(VqaRule::ByIndex),
        }
    }

    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// What people wrote about one image or question.
#[derive(Debug)]
enum Truth {
    Captions(Vec<String>),
    Answers(Vec<HumanAnswer>),
}

/// An annotated image or question with its prediction.
#[derive(Debug)]
struct Judged {
    id: String,
    truth: Truth,
    prediction: String,
}

/// A score with its interval.
struct Figure {
    name: String,
    estimate: Estimate,
}

/// Ids that a message names; of the rest it says how many.
const NAMED_MAX: usize = 5;

/// Scores the files; what is to be printed comes back.
///
/// # Errors
/// When a file cannot be read or is of no known form, ids do not fit, a metric does not fit the
/// annotations, or the samples cannot be written.
pub fn run(score: &Score) -> Result<String, EvalError> {
    let judged = judged(score)?;
    let metrics = score.metrics_for(&judged[0].truth)?;
    let (mut figures, mut credits) = (Vec::new(), Vec::new());
    for metric in metrics {
        let (found, credit) = figures_of(metric, &judged, score.seed);
        figures.extend(found);
        credits.push((metric.name(), credit));
    }
    if let Some(path) = &score.samples {
        write_samples(path, &judged, &credits)?;
    }
    Ok(if score.json { as_json(&figures, judged.len()) } else { as_table(&figures, judged.len()) })
}

impl Score {
    fn metrics_for(&self, truth: &Truth) -> Result<Vec<Metric>, EvalError> {
        let official = match truth {
            Truth::Captions(_) => &[Metric::BleuCoco, Metric::RougeCoco, Metric::CiderCoco][..],
            Truth::Answers(_) => &[Metric::VqaOfficial],
        };
        let metrics = if self.metrics.is_empty() { official } else { &self.metrics };
        let is_of = |metric: &Metric| {
            matches!(metric.rule(), Rule::Vqa(_)) == matches!(truth, Truth::Answers(_))
        };
        match metrics.iter().find(|metric| !is_of(metric)) {
            None => Ok(metrics.to_vec()),
            Some(metric) => {
                let has = match truth {
                    Truth::Captions(_) => "captions",
                    Truth::Answers(_) => "answers",
                };
                let problem = format!("it has {has}, of which there is no {}", metric.name());
                Err(EvalError::Annotations { path: self.annotations.clone(), problem })
            }
        }
    }
}

/// The annotations in the order of their ids, each with its prediction.
fn judged(score: &Score) -> Result<Vec<Judged>, EvalError> {
    let mut truths = truths(&score.annotations)?;
    let mut judged = Vec::new();
    let (mut unknown, mut repeated) = (Vec::new(), Vec::new());
    let mut seen = BTreeSet::new();
    for (id, prediction) in predictions(&score.predictions)? {
        if !seen.insert(id.clone()) {
            repeated.push(id);
        } else if let Some(truth) = truths.remove(&id) {
            judged.push(Judged { id, truth, prediction });
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
    if problem.is_empty() && judged.is_empty() {
        "no predictions".clone_into(&mut problem);
    }
    if !problem.is_empty() {
        return Err(EvalError::Annotations { path: score.predictions.clone(), problem });
    }
    judged.sort_by(|a, b| a.id.len().cmp(&b.id.len()).then_with(|| a.id.cmp(&b.id)));
    Ok(judged)
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

/// The figures of a metric, and the credit of each sample.
fn figures_of(metric: Metric, judged: &[Judged], seed: u64) -> (Vec<Figure>, Vec<Value>) {
    let mean = |scores: &[f64]| {
        let terms: Vec<Term> = scores.iter().map(|score| Term::of(*score)).collect();
        let figure =
            estimate(&terms, seed).map(|estimate| Figure { name: metric.name(), estimate });
        (figure.into_iter().collect(), scores.iter().map(|score| json!(score)).collect())
    };
    match metric.rule() {
        Rule::Vqa(rule) => mean(&vqa_scores(rule, judged)),
        Rule::Rouge(words) => mean(&rouge_l(&word_pairs(judged, words))),
        Rule::Cider(words) => mean(&cider_d_of_words(&word_pairs(judged, words))),
        Rule::Bleu(words) => {
            let counts = bleu_counts(&word_pairs(judged, words));
            let figure = |n: usize| {
                let score = |drawn: &mut dyn Iterator<Item = usize>| {
                    Some(total(drawn.map(|i| &counts[i])).scores()[n - 1])
                };
                let estimate = estimate_by(counts.len(), seed, score)?;
                Some(Figure { name: metric.name().replace("bleu", &format!("bleu-{n}")), estimate })
            };
            let credits = counts.iter().map(|counts| json!(counts.scores()));
            ((1..=4).filter_map(figure).collect(), credits.collect())
        }
    }
}

fn vqa_scores(rule: VqaRule, judged: &[Judged]) -> Vec<f64> {
    let score = |one: &Judged| match &one.truth {
        Truth::Answers(answers) => vqa_accuracy(rule, &one.prediction, answers),
        Truth::Captions(_) => unreachable!("the metric fits the annotations"),
    };
    judged.iter().map(score).collect()
}

fn word_pairs(judged: &[Judged], words: Words) -> Vec<WordPair> {
    let pair = |one: &Judged| match &one.truth {
        Truth::Captions(captions) => {
            let references = captions.iter().map(String::as_str).collect();
            WordPair::of(&CaptionPair { prediction: &one.prediction, references }, words)
        }
        Truth::Answers(_) => unreachable!("the metric fits the annotations"),
    };
    judged.iter().map(pair).collect()
}

fn write_samples(
    path: &Path,
    judged: &[Judged],
    credits: &[(String, Vec<Value>)],
) -> Result<(), EvalError> {
    let mut text = String::new();
    for (i, one) in judged.iter().enumerate() {
        let credit: Map<String, Value> =
            credits.iter().map(|(name, credit)| (name.clone(), credit[i].clone())).collect();
        let line = json!({ "id": one.id, "prediction": one.prediction, "credit": credit });
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
