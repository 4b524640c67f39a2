//! Files of predictions, by whomever they were made: what the official tools and servers take, and samples of ours.
//!
//! | form | an entry |
//! |---|---|
//! | COCO, VQA, `VizWiz`, lists of other benchmarks | an id (`question_id`, `image_id`, `image`, `video_id`, `id` or `key`) with `caption`, `answer` or `prediction` |
//! | `VisDial` | `image_id`, `round_id` and `ranks` of the candidates, from 1 |
//! | STAR | lists of entries under the names of the four types |
//! | a map | ids with their texts |
//! | `samples_*.jsonl` | one sample a line, with the likelihoods of the candidates |

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use flamingo_dataset::sha256_hex;
use serde_json::{Map, Value};

use crate::benchmark::Benchmark;
use crate::error::EvalError;
use crate::item::Item;
use crate::samples::Sample;
use crate::subject::{Asked, ModelCard, OutOfContext, Ranked, Subject, Writing};
use crate::task_file::Decoding;

/// Keys that name what a prediction is of, in the order in which they are looked for.
const ID_KEYS: [&str; 6] = ["question_id", "image_id", "image", "video_id", "id", "key"];

/// Keys of the text.
const TEXT_KEYS: [&str; 3] = ["caption", "answer", "prediction"];

/// Ids that a message names; of the rest it says how many.
pub const NAMED_MAX: usize = 5;

/// What was predicted of one thing.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Id of the image, question or clip.
    pub id: String,
    /// The answer; empty where only ranks are given.
    pub text: String,
    /// A score for each candidate, the higher the better; empty where none are given.
    pub scores: Vec<f64>,
}

/// A file of predictions.
#[derive(Debug, Clone, PartialEq)]
pub struct Predictions {
    /// The file.
    pub path: PathBuf,
    /// Digest of its bytes.
    pub sha256: String,
    /// Its entries, in its order; ids may be there twice.
    pub entries: Vec<Prediction>,
}

impl Predictions {
    /// Reads a file of any of the forms.
    ///
    /// # Errors
    /// When it cannot be read, or an entry is of none of the forms; the first such entry is named.
    pub fn read(path: &Path) -> Result<Self, EvalError> {
        let wrong = |problem: String| EvalError::Annotations { path: path.to_path_buf(), problem };
        let bytes = std::fs::read(path).map_err(EvalError::file("read", path))?;
        let entries = entries(&bytes).map_err(wrong)?;
        if entries.is_empty() {
            return Err(wrong("no predictions".to_owned()));
        }
        Ok(Self { path: path.to_path_buf(), sha256: sha256_hex(&bytes), entries })
    }

    /// Each prediction by its id.
    ///
    /// # Errors
    /// When there are several of one item, some of none of `items`, or none of an item; ids are named, with counts.
    pub fn of<'p>(
        &'p self,
        items: &[Item],
    ) -> Result<BTreeMap<&'p str, &'p Prediction>, EvalError> {
        let faults = self.faults(items);
        if !faults.is_empty() {
            let problem = faults.lines().join("; ");
            return Err(EvalError::Annotations { path: self.path.clone(), problem });
        }
        Ok(self.entries.iter().map(|entry| (&*entry.id, entry)).collect())
    }

    /// What does not fit between the predictions and the items that are asked about.
    pub fn faults(&self, items: &[Item]) -> IdFaults {
        let known: BTreeSet<&str> = items.iter().map(|item| item.id.as_str()).collect();
        let (mut seen, mut faults) = (BTreeSet::new(), IdFaults::default());
        for entry in &self.entries {
            if !seen.insert(entry.id.as_str()) {
                faults.repeated.push(entry.id.clone());
            } else if !known.contains(entry.id.as_str()) {
                faults.unknown.push(entry.id.clone());
            }
        }
        let missing = items.iter().filter(|item| !seen.contains(item.id.as_str()));
        faults.missing = missing.map(|item| item.id.clone()).collect();
        faults
    }
}

/// Ids that do not fit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdFaults {
    /// Of more than one prediction.
    pub repeated: Vec<String>,
    /// Of predictions, but of no item.
    pub unknown: Vec<String>,
    /// Of items without a prediction.
    pub missing: Vec<String>,
}

impl IdFaults {
    /// Whether all fit.
    pub fn is_empty(&self) -> bool {
        self.repeated.is_empty() && self.unknown.is_empty() && self.missing.is_empty()
    }

    /// One line for each kind of fault, with the first ids and how many there are.
    pub fn lines(&self) -> Vec<String> {
        let kinds = [
            ("more than one prediction of", &self.repeated),
            ("predictions of what is not asked:", &self.unknown),
            ("no prediction of", &self.missing),
        ];
        let kinds = kinds.into_iter().filter(|(_, ids)| !ids.is_empty());
        kinds.map(|(what, ids)| format!("{what} {}", some_of(ids))).collect()
    }
}

/// The candidate that a prediction names, by its text or else by its number, both as files have them.
pub fn candidate_of(item: &Item, text: &str) -> Option<usize> {
    let by_text = item.candidates.iter().position(|candidate| candidate == text);
    let by_number = || text.parse().ok().filter(|number| *number < item.candidates.len());
    by_text.or_else(by_number)
}

/// The first ids, and how many more there are.
pub fn some_of(ids: &[String]) -> String {
    let named = ids[..ids.len().min(NAMED_MAX)].join(", ");
    match ids.len().checked_sub(NAMED_MAX) {
        Some(more) if more > 0 => format!("{named} and {more} more"),
        _ => named,
    }
}

fn entries(bytes: &[u8]) -> Result<Vec<Prediction>, String> {
    let lines = serde_json::Deserializer::from_slice(bytes).into_iter::<Value>();
    let mut values = Vec::new();
    for value in lines {
        values.push(value.map_err(|error| format!("it is not JSON: {error}"))?);
    }
    let samples = values.len() > 1 || values.iter().all(|value| value.get("doc_id").is_some());
    if samples {
        return numbered("line", values, |value| entry(&value));
    }
    match values.into_iter().next() {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) => numbered("entry", list, |value| entry(&value)),
        Some(Value::Object(map)) => of_map(map),
        Some(_) => Err("it is no list or map of predictions".to_owned()),
    }
}

/// A map of ids and texts; of names and lists; or with a list `results`.
fn of_map(map: Map<String, Value>) -> Result<Vec<Prediction>, String> {
    let mut all = Vec::new();
    for (key, value) in map {
        match value {
            Value::String(text) => all.push(Prediction { id: key, text, scores: Vec::new() }),
            Value::Array(list) => {
                all.extend(numbered(&format!("entry of `{key}`"), list, |value| entry(&value))?);
            }
            _ => return Err(format!("`{key}` has no text and no list of predictions")),
        }
    }
    Ok(all)
}

fn numbered(
    what: &str,
    values: Vec<Value>,
    read: impl Fn(Value) -> Result<Prediction, String>,
) -> Result<Vec<Prediction>, String> {
    let numbered = values.into_iter().enumerate();
    let read = |(i, value)| read(value).map_err(|problem| format!("{what} {}: {problem}", i + 1));
    numbered.map(read).collect()
}

fn entry(value: &Value) -> Result<Prediction, String> {
    if value.get("doc_id").is_some() {
        let sample: Sample = serde_json::from_value(value.clone())
            .map_err(|error| format!("no sample of an evaluation: {error}"))?;
        let (id, text, scores) = (sample.key, sample.prediction, sample.log_likelihoods);
        return Ok(Prediction { id, text, scores });
    }
    let named = ID_KEYS.iter().find_map(|key| id_text(value.get(key)?));
    let id = named.ok_or_else(|| format!("no id (`{}`)", ID_KEYS.join("`, `")))?;
    if let Some(ranks) = value.get("ranks") {
        let round = value.get("round_id").and_then(id_text).ok_or("`ranks` without `round_id`")?;
        let (id, scores) = (format!("{id}-{round}"), scores_of_ranks(ranks)?);
        return Ok(Prediction { id, text: String::new(), scores });
    }
    let text = TEXT_KEYS.iter().find_map(|key| id_text(value.get(key)?));
    let text = text.ok_or_else(|| format!("no text (`{}`)", TEXT_KEYS.join("`, `")))?;
    Ok(Prediction { id, text, scores: Vec::new() })
}

/// A text, or a whole number as text.
fn id_text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned).or_else(|| value.as_i64().map(|number| number.to_string()))
}

/// The lower the rank, the better.
fn scores_of_ranks(ranks: &Value) -> Result<Vec<f64>, String> {
    let ranks: Option<Vec<u64>> =
        ranks.as_array().and_then(|ranks| ranks.iter().map(Value::as_u64).collect());
    let ranks = ranks.ok_or("`ranks` are not whole numbers")?;
    let distinct: BTreeSet<u64> = ranks.iter().copied().collect();
    if distinct.len() != ranks.len() || distinct.iter().copied().ne(1..=ranks.len() as u64) {
        return Err(format!("`ranks` are not the numbers 1 to {}, each once", ranks.len()));
    }
    Ok(ranks.iter().map(|rank| -(*rank as f64)).collect())
}

/// Predictions as a model on one benchmark.
pub struct PredictionSubject<'a> {
    file: &'a Predictions,
    by_id: BTreeMap<&'a str, &'a Prediction>,
}

impl<'a> PredictionSubject<'a> {
    /// The predictions of the items of a benchmark that are asked about.
    ///
    /// # Errors
    /// As [`Predictions::of`]; and when scores are not as many as the candidates of their item.
    pub fn new(file: &'a Predictions, benchmark: &Benchmark) -> Result<Self, EvalError> {
        let by_id = file.of(&benchmark.query)?;
        if benchmark.task.decoding.is_closed() {
            for item in &benchmark.query {
                let (found, expected) = (by_id[&*item.id].scores.len(), item.candidates.len());
                if found != 0 && found != expected {
                    let id = &item.id;
                    let problem = format!("{found} scores for the {expected} candidates of {id}");
                    return Err(EvalError::Annotations { path: file.path.clone(), problem });
                }
            }
        }
        Ok(Self { file, by_id })
    }

    /// A score for each candidate: those of the file, or 1 for the one that the text names.
    fn ranked(&self, item: &Item) -> Ranked {
        let prediction = self.by_id[&*item.id];
        if !prediction.scores.is_empty() {
            return Ranked::of(prediction.scores.clone());
        }
        let mut scores = vec![0.0; item.candidates.len()];
        match candidate_of(item, &prediction.text) {
            Some(index) => {
                scores[index] = 1.0;
                Ranked::of(scores)
            }
            None => Ranked { scores, said: Some(prediction.text.clone()) },
        }
    }
}

impl Subject for PredictionSubject<'_> {
    fn card(&self) -> ModelCard {
        self.file.card()
    }

    fn out_of_context(&self, _: &Asked<'_>, _: usize) -> Option<OutOfContext> {
        None
    }

    fn write(&self, asked: &[Asked<'_>], _: Writing<'_>) -> Result<Vec<String>, EvalError> {
        Ok(asked.iter().map(|asked| self.by_id[&*asked.item.id].text.clone()).collect())
    }

    fn rank(&self, asked: &[Asked<'_>], _: Decoding) -> Result<Vec<Ranked>, EvalError> {
        Ok(asked.iter().map(|asked| self.ranked(asked.item)).collect())
    }
}

impl Predictions {
    /// What results say of it.
    pub fn card(&self) -> ModelCard {
        ModelCard {
            name: format!("predictions:{}", self.path.display()),
            sha256: self.sha256.clone(),
            device: "a file".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Prediction>, String> {
        entries(text.as_bytes())
    }

    #[test]
    fn forms_of_all_benchmarks_are_read() {
        let check = |text: &str, expected: &[(&str, &str)]| {
            let found = read(text).unwrap();
            let found: Vec<(&str, &str)> = found.iter().map(|it| (&*it.id, &*it.text)).collect();
            assert_eq!(found, expected, "{text}");
        };
        check(r#"[{"image_id": 7, "caption": "a"}]"#, &[("7", "a")]);
        check(r#"[{"question_id": 7, "image_id": 1, "answer": "a"}]"#, &[("7", "a")]);
        check(r#"[{"image": "V_1.jpg", "answer": "a"}]"#, &[("V_1.jpg", "a")]);
        check(r#"{"Sequence": [{"question_id": "S_T1_0", "answer": 2}]}"#, &[("S_T1_0", "2")]);
        check(r#"{"v1_0": "a", "v1_1": "b"}"#, &[("v1_0", "a"), ("v1_1", "b")]);
        check(
            "{\"key\": \"k\", \"prediction\": \"a\"}\n{\"key\": \"l\", \"prediction\": \"b\"}\n",
            &[("k", "a"), ("l", "b")],
        );
        let sample = r#"{"doc_id": 0, "key": "k", "cluster": "c", "shots": [], "target": [], "prediction": "a", "log_likelihoods": [-1.5, -0.5]}"#;
        assert_eq!(read(sample).unwrap()[0].scores, [-1.5, -0.5]);
        let ranks = read(r#"[{"image_id": 3, "round_id": 10, "ranks": [2, 1, 3]}]"#).unwrap();
        assert_eq!((ranks[0].id.as_str(), &ranks[0].scores[..]), ("3-10", &[-2.0, -1.0, -3.0][..]));
    }

    #[test]
    fn what_is_no_prediction_is_named() {
        let check = |text: &str, part: &str| {
            let error = read(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        };
        check("[{\"image_id\": 1, \"caption\": \"a\"}, {\"caption\": \"b\"}]", "entry 2: no id");
        check("[{\"image_id\": 1, \"caption\": null}]", "entry 1: no text");
        check("[{\"image_id\": 1.5, \"caption\": \"\"}]", "entry 1: no id");
        check("[1", "not JSON");
        check("7", "no list or map");
        check("{\"a\": 3}", "`a` has no text");
        check("[{\"image_id\": 1, \"round_id\": 2, \"ranks\": [1, 1]}]", "1 to 2, each once");
        check("[{\"image_id\": 1, \"ranks\": [1]}]", "without `round_id`");
    }
}
