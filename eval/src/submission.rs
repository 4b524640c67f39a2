//! The files that the servers of benchmarks take.
//!
//! | task's `submission` | file |
//! |---|---|
//! | `vqav2`, `textvqa` | `[{"question_id": 1, "answer": "yes"}]` |
//! | `vizwiz` | `[{"image": "VizWiz_test_1.jpg", "answer": "yes"}]` |
//! | `visdial` | `[{"image_id": 1, "round_id": 10, "ranks": [...]}]`, the rank of each candidate, from 1 |
//! | `star` | `{"Interaction": [{"question_id": "Interaction_T1_0", "answer": 2}], ...}`, candidates from 0 |
//! | `coco` | `[{"image_id": 1, "caption": "a dog"}]` |
//!
//! Every item of the split must be in it: VQA's server refuses files that are for a part of test2015, though it scores
//! a part. `VQAv2`'s and `VizWiz`'s forms are those of `open_flamingo`'s scripts, `VisDial`'s that of its starter code; `TextVQA`'s and STAR's
//! were not compared with anything that their servers say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, Value, json};

use crate::benchmark::{Benchmark, SplitChoice, SupportChoice};
use crate::error::EvalError;
use crate::evaluate::{Evaluation, Outcome};
use crate::item::Item;
use crate::linter::{Severity, as_text, lint};
use crate::predictions::{Prediction, Predictions, candidate_of};
use crate::samples::Sample;
use crate::settings::write_whole;
use crate::task_file::TaskFile;

/// A task with predictions of its items.
#[derive(Debug, Args)]
pub struct Predicted {
    /// Task of `flamingo-eval tasks`, or the path of a task file.
    #[arg(long, value_name = "TASK")]
    pub task: String,
    /// Folder with the official files.
    #[arg(long, value_name = "DIR")]
    pub annotations: String,
    /// Split that the predictions are of, if not the task's own.
    #[arg(long, value_name = "SPLIT")]
    pub query_split: Option<String>,
    /// Samples of ours, or predictions as the official tool or server takes them.
    #[arg(long, value_name = "FILE")]
    pub predictions: PathBuf,
}

impl Predicted {
    /// The items that are asked about, without examples, and the file.
    ///
    /// # Errors
    /// When a file cannot be read or is not what was expected.
    pub fn read(&self) -> Result<(Benchmark, Predictions), EvalError> {
        let task = TaskFile::find(&self.task)?;
        let support = SupportChoice::Nowhere;
        let splits = SplitChoice { query: self.query_split.clone(), support };
        let benchmark = Benchmark::open(task, &self.annotations, &splits, 0)?;
        Ok((benchmark, Predictions::read(&self.predictions)?))
    }
}

/// What is submitted, and where it goes.
#[derive(Debug, Args)]
pub struct Submission {
    #[command(flatten)]
    predicted: Predicted,
    /// File to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Writes the file of a server, unless it would be refused; what is to be printed comes back.
///
/// # Errors
/// When a file cannot be read or written, the task has no server, or the linter finds an error.
pub fn run(submission: &Submission) -> Result<String, EvalError> {
    let (benchmark, file) = submission.predicted.read()?;
    let form = Form::of(&benchmark.task)?;
    let findings = lint(&benchmark, &file);
    let warnings = as_text(&findings);
    if findings.iter().any(|finding| finding.severity == Severity::Error) {
        let problem = warnings.trim_end().replace('\n', "; ");
        return Err(EvalError::Annotations { path: file.path, problem });
    }
    let by_id = file.of(&benchmark.query)?;
    let rows = benchmark.query.iter().map(|item| (item, by_id[&*item.id]));
    write(&submission.out, form, &rows.collect::<Vec<_>>())?;
    Ok(format!("{warnings}{} answers in {}\n", benchmark.query.len(), submission.out.display()))
}

/// Writes the files of servers that an evaluation of all queries gives, and says which.
///
/// # Errors
/// When a file cannot be written, or the task names a server that is not known.
pub fn of_evaluation(evaluation: &Evaluation<'_>, out: &Path) -> Result<Vec<PathBuf>, EvalError> {
    let benchmark = evaluation.benchmark;
    if benchmark.task.submission.is_none() {
        return Ok(Vec::new());
    }
    let form = Form::of(&benchmark.task)?;
    if evaluation.n_queries < benchmark.query.len() + benchmark.n_skipped {
        eprintln!("{}: no file for its server, which wants all queries", benchmark.task.name);
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for round in &evaluation.rounds {
        let Outcome::Scored(scored) = &round.outcome else { continue };
        if round.key.control.is_none() {
            let predictions: Vec<Prediction> = scored.samples.iter().map(of_sample).collect();
            let rows: Vec<_> = benchmark.query.iter().zip(&predictions).collect();
            let suffix = round.key.suffix(evaluation.has_seeds);
            let path = out.join(format!("submission_{}_{suffix}.json", benchmark.task.name));
            write(&path, form, &rows)?;
            files.push(path);
        }
    }
    Ok(files)
}

fn of_sample(sample: &Sample) -> Prediction {
    Prediction {
        id: sample.key.clone(),
        text: sample.prediction.clone(),
        scores: sample.log_likelihoods.clone(),
    }
}

fn write(path: &Path, form: Form, rows: &[(&Item, &Prediction)]) -> Result<(), EvalError> {
    let value = form.value(rows).map_err(|problem| EvalError::Unfit {
        what: format!("the file {}", path.display()),
        problem,
    })?;
    write_whole(path, &format!("{value}\n"))
}

/// The form of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Questions,
    Images,
    Captions,
    Ranks,
    Types,
}

/// Names of forms in task files.
const FORMS: [(&str, Form); 6] = [
    ("vqav2", Form::Questions),
    ("textvqa", Form::Questions),
    ("vizwiz", Form::Images),
    ("coco", Form::Captions),
    ("visdial", Form::Ranks),
    ("star", Form::Types),
];

impl Form {
    fn of(task: &TaskFile) -> Result<Self, EvalError> {
        let names = || FORMS.map(|(name, _)| name).join(", ");
        let unfit = |problem| EvalError::Unfit { what: format!("task `{}`", task.name), problem };
        let Some(name) = &task.submission else {
            return Err(unfit(format!("has no `submission`, which is one of {}", names())));
        };
        let known = FORMS.iter().find(|(known, _)| known == name).map(|(_, form)| *form);
        known.ok_or_else(|| unfit(format!("`submission` is `{name}`, expected one of {}", names())))
    }

    fn value(self, rows: &[(&Item, &Prediction)]) -> Result<Value, String> {
        let list = |entry: fn(&Item, &Prediction) -> Result<Value, String>| {
            rows.iter().map(|(item, prediction)| entry(item, prediction)).collect()
        };
        match self {
            Self::Questions => {
                list(|item, it| Ok(json!({ "question_id": number(&item.id), "answer": it.text })))
            }
            Self::Images => list(|item, it| Ok(json!({ "image": item.id, "answer": it.text }))),
            Self::Captions => {
                list(|item, it| Ok(json!({ "image_id": number(&item.id), "caption": it.text })))
            }
            Self::Ranks => list(|item, it| {
                let (image, round) =
                    item.id.rsplit_once('-').ok_or("rounds are not named IMAGE-ROUND")?;
                let ranks = ranks(item, it)?;
                Ok(json!({ "image_id": number(image), "round_id": number(round), "ranks": ranks }))
            }),
            Self::Types => {
                let mut types: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
                for (item, prediction) in rows {
                    let kind = item.category.as_deref().unwrap_or("Other");
                    let entry =
                        json!({ "question_id": item.id, "answer": chosen(item, prediction)? });
                    types.entry(kind).or_default().push(entry);
                }
                Ok(Value::Object(types.into_iter().fold(Map::new(), |mut map, (kind, list)| {
                    map.insert(kind.to_owned(), list.into());
                    map
                })))
            }
        }
    }
}

/// A number where the id is one: servers compare ids with those of their files.
fn number(id: &str) -> Value {
    id.parse::<i64>().map_or_else(|_| json!(id), |number| json!(number))
}

/// The rank of each candidate by its score, from 1; of equals the first is the better.
fn ranks(item: &Item, prediction: &Prediction) -> Result<Vec<usize>, String> {
    let scores = &prediction.scores;
    if scores.len() != item.candidates.len() {
        let (n, all, id) = (scores.len(), item.candidates.len(), &item.id);
        return Err(format!("{n} scores for the {all} candidates of {id}"));
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let mut ranks = vec![0; scores.len()];
    for (rank, index) in (1..).zip(order) {
        ranks[index] = rank;
    }
    Ok(ranks)
}

/// The number of the candidate that was chosen, from 0.
fn chosen(item: &Item, prediction: &Prediction) -> Result<usize, String> {
    let text = &prediction.text;
    candidate_of(item, text).ok_or_else(|| {
        format!("the answer `{text}` to {} is none of its candidates and no number of one", item.id)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::item::Truth;

    fn check(form: &str, rows: &[(&str, &str, &[f64])], expected: Result<Value, &str>) {
        let candidates: Arc<[String]> = ["red", "blue", "green"].map(str::to_owned).into();
        let item = |id: &str| Item {
            id: id.into(),
            medium_id: id.into(),
            medium: None,
            fields: BTreeMap::new(),
            truth: Truth::Hidden,
            candidates: candidates.clone(),
            category: id.split_once('_').map(|(kind, _)| kind.to_owned()),
        };
        let items: Vec<Item> = rows.iter().map(|row| item(row.0)).collect();
        let predictions: Vec<Prediction> = rows
            .iter()
            .map(|(id, text, scores)| Prediction {
                id: (*id).into(),
                text: (*text).into(),
                scores: scores.to_vec(),
            })
            .collect();
        let mut task = TaskFile::find("label").unwrap();
        task.submission = Some(form.into());
        let rows: Vec<_> = items.iter().zip(&predictions).collect();
        match (Form::of(&task).map(|form| form.value(&rows)), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found.unwrap(), expected),
            (Ok(Err(error)), Err(part)) => assert!(error.contains(part), "{error}"),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (found, _) => panic!("{form}: {:?}", found.is_ok()),
        }
    }

    #[test]
    fn each_server_gets_its_form() {
        let expected = json!([{ "question_id": 12, "answer": "red" }]);
        check("vqav2", &[("12", "red", &[])], Ok(expected.clone()));
        check("textvqa", &[("12", "red", &[])], Ok(expected));
        check("vizwiz", &[("a.jpg", "r", &[])], Ok(json!([{ "image": "a.jpg", "answer": "r" }])));
        check("coco", &[("12", "a dog", &[])], Ok(json!([{ "image_id": 12, "caption": "a dog" }])));
        let ranked: &[(&str, &str, &[f64])] = &[("12-10", "", &[-3.0, -1.0, -3.0])];
        let expected = json!([{ "image_id": 12, "round_id": 10, "ranks": [2, 1, 3] }]);
        check("visdial", ranked, Ok(expected));
        check("visdial", &[("12-10", "", &[1.0])], Err("1 scores for the 3 candidates of 12-10"));
        let rows: &[(&str, &str, &[f64])] =
            &[("Sequence_T1_0", "green", &[]), ("Interaction_T1_0", "1", &[])];
        let expected = json!({
            "Interaction": [{ "question_id": "Interaction_T1_0", "answer": 1 }],
            "Sequence": [{ "question_id": "Sequence_T1_0", "answer": 2 }],
        });
        check("star", rows, Ok(expected));
        check("star", &[("Sequence_T1_0", "7", &[])], Err("none of its candidates"));
        check("kaggle", &[], Err("expected one of vqav2, textvqa"));
    }
}
