//! The files that the servers of benchmarks take.
//!
//! | `form` of a task's `submission` | file |
//! |---|---|
//! | `vqav2`, `textvqa` | `[{"question_id": 1, "answer": "yes"}]` |
//! | `vizwiz` | `[{"image": "VizWiz_test_1.jpg", "answer": "yes"}]` |
//! | `visdial` | `[{"image_id": 1, "round_id": 10, "ranks": [...]}]`, the rank of each candidate, from 1 |
//! | `star` | `{"Interaction": [{"question_id": "Interaction_T1_0", "answer": 2}], ...}`, candidates from 0 |
//! | `coco` | `[{"image_id": 1, "caption": "a dog"}]` |
//!
//! Every item of the split must be in it, and splits that the server does not know are none of its. VQA's server refuses files that are for
//! a part of test2015, though it scores a part: what was not asked gets an empty answer there, as in `open_flamingo`'s script. `VQAv2`'s and `VizWiz`'s forms are those of `open_flamingo`'s scripts, `VisDial`'s that of its starter code; `TextVQA`'s and STAR's
//! were not compared with anything that their servers say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::benchmark::{Benchmark, SplitChoice, SupportChoice};
use crate::error::EvalError;
use crate::evaluation::{Evaluation, Outcome};
use crate::ids::{image_and_round, some_of};
use crate::item::Item;
use crate::linter::{Severity, as_text, lint};
use crate::predictions::{Prediction, PredictionFile, Predictions, candidate_of};
use crate::readers::{SplitFiles, read_split};
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
        let predictions = PredictionFile::read(&self.predictions)?.of(&benchmark)?;
        Ok((benchmark, predictions))
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

/// What a benchmark's server takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerRule {
    /// In which form.
    pub form: Form,
    /// Of which splits.
    pub splits: Vec<String>,
    /// The split of which it wants all items: those that are not asked get an empty answer. None where that is the split
    /// that is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole: Option<String>,
}

/// A server with what it wants to have beside the answers of a benchmark's queries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    form: Form,
    /// Ids that get an empty answer.
    others: Vec<String>,
}

impl Server {
    /// The server of the split that is asked, where it has one.
    ///
    /// # Errors
    /// When the whole of which the split is a part cannot be read, or lacks some of its items.
    pub fn of(benchmark: &Benchmark) -> Result<Option<Self>, EvalError> {
        let Benchmark { task, location, query, .. } = benchmark;
        let rule = task.submission.as_ref().filter(|rule| rule.splits.contains(&task.query));
        let Some(rule) = rule else { return Ok(None) };
        let whole = rule.whole.as_ref().filter(|whole| **whole != task.query);
        let others = whole.map_or(Ok(Vec::new()), |whole| {
            let location = location.trim_end_matches('/');
            let files = SplitFiles { location, files: task.split(whole)?, task, draw: None };
            let whole_ids = read_split(&files)?.into_iter().map(|item| item.id).collect();
            others(query, whole_ids).map_err(|problem| EvalError::Unfit {
                what: format!("task `{}`, split `{whole}`", task.name),
                problem,
            })
        })?;
        Ok(Some(Self { form: rule.form, others }))
    }

    /// The same for who asks for it.
    fn wanted(benchmark: &Benchmark) -> Result<Self, EvalError> {
        let task = &benchmark.task;
        Self::of(benchmark)?.ok_or_else(|| EvalError::Unfit {
            what: format!("task `{}`, split `{}`", task.name, task.query),
            problem: match &task.submission {
                Some(rule) => format!("its server takes `{}`", rule.splits.join("`, `")),
                None => "the task has no `submission`".to_owned(),
            },
        })
    }

    fn write(&self, path: &Path, rows: &[(&Item, &Prediction)]) -> Result<(), EvalError> {
        let value = self.form.value(rows, &self.others).map_err(|problem| EvalError::Unfit {
            what: format!("the file {}", path.display()),
            problem,
        })?;
        write_whole(path, &format!("{value}\n"))
    }

    fn n_rows(&self, benchmark: &Benchmark) -> String {
        match (benchmark.query.len(), self.others.len()) {
            (n, 0) => format!("{n} answers"),
            (n, others) => format!("{n} answers, and {others} empty ones of what was not asked,"),
        }
    }
}

/// What is in the whole alone.
fn others(query: &[Item], mut whole: Vec<String>) -> Result<Vec<String>, String> {
    let mut asked: BTreeSet<&str> = query.iter().map(|item| item.id.as_str()).collect();
    whole.retain(|id| !asked.remove(id.as_str()));
    if asked.is_empty() {
        return Ok(whole);
    }
    let lacking: Vec<String> = asked.into_iter().map(str::to_owned).collect();
    Err(format!("lacks {} of the queries: {}", lacking.len(), some_of(&lacking)))
}

/// Writes the file of a server, unless it would be refused; what is to be printed comes back.
///
/// # Errors
/// When a file cannot be read or written, the split has no server, or the linter finds an error.
pub fn run(submission: &Submission) -> Result<String, EvalError> {
    let (benchmark, file) = submission.predicted.read()?;
    let server = Server::wanted(&benchmark)?;
    let findings = lint(&benchmark, &file);
    let warnings = as_text(&findings);
    if findings.iter().any(|finding| finding.severity == Severity::Error) {
        let problem = warnings.trim_end().replace('\n', "; ");
        return Err(EvalError::Annotations { path: file.path, problem });
    }
    let by_id = file.of(&benchmark.query)?;
    let rows = benchmark.query.iter().map(|item| (item, by_id[&*item.id]));
    server.write(&submission.out, &rows.collect::<Vec<_>>())?;
    Ok(format!("{warnings}{} in {}\n", server.n_rows(&benchmark), submission.out.display()))
}

/// Writes the files of servers that an evaluation of all queries gives, and says which.
///
/// # Errors
/// When a file cannot be written.
pub fn of_evaluation(
    server: &Server,
    evaluation: &Evaluation<'_>,
    out: &Path,
) -> Result<Vec<PathBuf>, EvalError> {
    let benchmark = evaluation.benchmark;
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
            server.write(&path, &rows)?;
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
        ending: sample.ending,
    }
}

/// The form of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Answers by the number of their question.
    Vqav2,
    /// The same.
    Textvqa,
    /// Answers by the name of their picture.
    Vizwiz,
    /// Captions by the number of their picture.
    Coco,
    /// Ranks of candidates.
    Visdial,
    /// Numbers of candidates, by type of question.
    Star,
}

impl Form {
    /// Whether answers are texts, which may be empty.
    pub fn is_text(self) -> bool {
        !matches!(self, Self::Visdial | Self::Star)
    }

    /// What is sent; `others` get an empty answer, where answers are texts.
    fn value(self, rows: &[(&Item, &Prediction)], others: &[String]) -> Result<Value, String> {
        let texts = |entry: fn(&str, &str) -> Value| {
            let asked = rows.iter().map(|(item, it)| entry(&item.id, &it.text));
            Ok(asked.chain(others.iter().map(|id| entry(id, ""))).collect())
        };
        let list = |entry: fn(&Item, &Prediction) -> Result<Value, String>| {
            rows.iter().map(|(item, prediction)| entry(item, prediction)).collect()
        };
        match self {
            Self::Vqav2 | Self::Textvqa => {
                texts(|id, text| json!({ "question_id": number(id), "answer": text }))
            }
            Self::Vizwiz => texts(|id, text| json!({ "image": id, "answer": text })),
            Self::Coco => texts(|id, text| json!({ "image_id": number(id), "caption": text })),
            Self::Visdial => list(|item, it| {
                let (image, round) =
                    image_and_round(&item.id).ok_or("rounds are not named IMAGE-ROUND")?;
                let ranks = ranks(item, it)?;
                Ok(json!({ "image_id": number(image), "round_id": number(round), "ranks": ranks }))
            }),
            Self::Star => {
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

    fn check(form: Form, rows: &[(&str, &str, &[f64])], expected: Result<Value, &str>) {
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
                ending: None,
            })
            .collect();
        let rows: Vec<_> = items.iter().zip(&predictions).collect();
        match (form.value(&rows, &[]), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
            (found, _) => panic!("{form:?}: {found:?}"),
        }
    }

    #[test]
    fn each_server_gets_its_form() {
        let expected = json!([{ "question_id": 12, "answer": "red" }]);
        check(Form::Vqav2, &[("12", "red", &[])], Ok(expected.clone()));
        check(Form::Textvqa, &[("12", "red", &[])], Ok(expected));
        check(
            Form::Vizwiz,
            &[("a.jpg", "r", &[])],
            Ok(json!([{ "image": "a.jpg", "answer": "r" }])),
        );
        check(
            Form::Coco,
            &[("12", "a dog", &[])],
            Ok(json!([{ "image_id": 12, "caption": "a dog" }])),
        );
        let ranked: &[(&str, &str, &[f64])] = &[("12-10", "", &[-3.0, -1.0, -3.0])];
        let expected = json!([{ "image_id": 12, "round_id": 10, "ranks": [2, 1, 3] }]);
        check(Form::Visdial, ranked, Ok(expected));
        check(
            Form::Visdial,
            &[("12-10", "", &[1.0])],
            Err("1 scores for the 3 candidates of 12-10"),
        );
        let rows: &[(&str, &str, &[f64])] =
            &[("Sequence_T1_0", "green", &[]), ("Interaction_T1_0", "1", &[])];
        let expected = json!({
            "Interaction": [{ "question_id": "Interaction_T1_0", "answer": 1 }],
            "Sequence": [{ "question_id": "Sequence_T1_0", "answer": 2 }],
        });
        check(Form::Star, rows, Ok(expected));
        check(Form::Star, &[("Sequence_T1_0", "7", &[])], Err("none of its candidates"));
    }

    #[test]
    fn a_whole_without_some_queries_is_named() {
        let item = |id: &str| Item {
            id: id.into(),
            medium_id: id.into(),
            medium: None,
            fields: BTreeMap::new(),
            truth: Truth::Hidden,
            candidates: Arc::default(),
            category: None,
        };
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        let query = [item("2"), item("7")];
        assert_eq!(others(&query, ids(&["1", "2", "7", "3"])), Ok(ids(&["1", "3"])));
        let error = others(&query, ids(&["2", "3"])).unwrap_err();
        assert_eq!(error, "lacks 1 of the queries: 7");
    }

    #[test]
    fn rules_of_servers_are_checked() {
        let text = crate::tasks::built_in("visdial").unwrap();
        let check = |rule: &str, expected: &str| {
            let own = text.replace(r#"splits = ["test"] }"#, rule);
            let error = crate::task_file::TaskFile::parse("mine", &own).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(r#"splits = ["tset"] }"#, "no split `tset`");
        check(r#"splits = ["test"], whole = "all" }"#, "no split `all`");
        check(r#"splits = ["val"], whole = "test" }"#, "no rank is empty");
        let own = text.replace(r#"form = "visdial""#, r#"form = "kaggle""#);
        let error = crate::task_file::TaskFile::parse("mine", &own).unwrap_err().to_string();
        assert!(error.contains("expected one of `vqav2`, `textvqa`"), "{error}");
    }
}
