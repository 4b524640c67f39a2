//! `samples_*.jsonl`: what was found for each query, one JSON object a line, written as it is
//! found.
//!
//! A file left by a killed evaluation is continued: a torn last line is cut off, queries that have
//! their line are not asked again.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use flamingo_dataset::write_durably;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::EvalError;
use crate::part::part_files;
use crate::subject::Ending;

/// Something recorded per query.
pub trait Record: Serialize + DeserializeOwned {
    /// Key of the query.
    fn key(&self) -> &str;
}

/// What the model answered to one query.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Number of the query in its corpus.
    pub doc_id: usize,
    /// Id of the query.
    pub key: String,
    /// Its image or video: intervals draw its queries together.
    pub cluster: String,
    /// Ids of the support examples that were shown, in order.
    pub shots: Vec<String>,
    /// Right answers.
    pub target: Vec<String>,
    /// The answer.
    pub prediction: String,
    /// Log-likelihood of each candidate in nats, in the order of the candidates; of closed tasks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log_likelihoods: Vec<f64>,
    /// How the answer ended, if not by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<Ending>,
    /// What it adds under each metric; known once all queries are answered.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub credit: Map<String, Value>,
    /// What the scores are made of that are no means of credits, by metric.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub terms: Map<String, Value>,
}

impl Record for Sample {
    fn key(&self) -> &str {
        &self.key
    }
}

/// The open file.
pub struct SampleLog<R> {
    file: File,
    path: PathBuf,
    /// Records by key of their query.
    records: BTreeMap<String, R>,
}

impl<R: Record> SampleLog<R> {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// When the file cannot be read or written, or holds lines that are not such records.
    pub fn open(path: &Path) -> Result<Self, EvalError> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.map_err(EvalError::file("create", path))?;
        let text = std::fs::read(path).map_err(EvalError::file("read", path))?;
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64).map_err(EvalError::file("shorten", path))?;
        let mut records = BTreeMap::new();
        for (index, line) in text[..whole].split_inclusive(|&byte| byte == b'\n').enumerate() {
            let record: R = serde_json::from_slice(line).map_err(|source| EvalError::Sample {
                path: path.to_path_buf(),
                line: index + 1,
                source,
            })?;
            records.insert(record.key().to_owned(), record);
        }
        Ok(Self { file, path: path.to_path_buf(), records })
    }

    /// The record of a query.
    pub fn get(&self, key: &str) -> Option<&R> {
        self.records.get(key)
    }

    /// Takes the record of a query out of memory.
    pub fn take(&mut self, key: &str) -> Option<R> {
        self.records.remove(key)
    }

    /// Takes over the records in the files of parts `NAME.part-I-of-N.jsonl` of a folder, each query once.
    ///
    /// # Errors
    /// When a file cannot be read or written, or holds other lines.
    pub fn take_over(&mut self, folder: &Path, name: &str) -> Result<(), EvalError> {
        for path in part_files(folder, name)? {
            let part = Self::open(&path)?;
            self.append(part.records.into_values().collect())?;
        }
        Ok(())
    }

    /// Waits until all records are on the disk.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub fn sync(&self) -> Result<(), EvalError> {
        self.file.sync_all().map_err(EvalError::file("write", &self.path))
    }

    /// Adds the records of queries that have none yet, in one write.
    ///
    /// # Errors
    /// When the disk is full or fails.
    ///
    /// # Panics
    /// Never: a record is made of texts and numbers.
    pub fn append(&mut self, records: Vec<R>) -> Result<(), EvalError> {
        let mut lines = Vec::new();
        for record in records {
            if self.records.contains_key(record.key()) {
                continue;
            }
            let start = lines.len();
            serde_json::to_writer(&mut lines, &record).expect("records are texts and numbers");
            // What a resumed evaluation would read: decimal numbers may differ in the last bit.
            let stored = serde_json::from_slice(&lines[start..]).expect("it was just written");
            lines.push(b'\n');
            self.records.insert(record.key().to_owned(), stored);
        }
        self.file.write_all(&lines).map_err(EvalError::file("write", &self.path))?;
        self.file.flush().map_err(EvalError::file("write", &self.path))
    }
}

/// Writes a file again, whole or not at all: first `records` in their order, then what else it has, by key.
///
/// # Errors
/// When the file cannot be read, a line of it has no key, or the disk is full or fails.
///
/// # Panics
/// Never: a record is made of texts and numbers.
pub fn rewrite<R: Record>(
    path: &Path,
    records: impl IntoIterator<Item = R>,
) -> Result<(), EvalError> {
    let before = std::fs::read(path).map_err(EvalError::file("read", path))?;
    let (mut lines, mut keys) = (Vec::with_capacity(before.len()), HashSet::new());
    for record in records {
        serde_json::to_writer(&mut lines, &record).expect("records are texts and numbers");
        lines.push(b'\n');
        keys.insert(record.key().to_owned());
    }
    let mut rest = BTreeMap::new();
    for (index, line) in before.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let Keyed { key } = serde_json::from_slice(line).map_err(|source| EvalError::Sample {
            path: path.to_path_buf(),
            line: index + 1,
            source,
        })?;
        if !keys.contains(&*key) {
            rest.insert(key, line);
        }
    }
    for line in rest.values() {
        lines.extend_from_slice(line);
    }
    write_durably(path, &lines).map_err(EvalError::file("write", path))
}

/// A record of which its key alone is read.
#[derive(Deserialize)]
struct Keyed<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(key: &str, value: f64) -> Sample {
        Sample {
            doc_id: 0,
            key: key.into(),
            cluster: key.into(),
            shots: vec!["s1".into()],
            target: vec!["red".into()],
            prediction: "line\nbreak".into(),
            ending: None,
            credit: Map::new(),
            terms: Map::new(),
            log_likelihoods: vec![value, -0.1],
        }
    }

    #[test]
    fn a_torn_line_is_cut_and_done_queries_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("samples.jsonl");
        let mut log = SampleLog::open(&path).unwrap();
        log.append(vec![sample("a", -1.5), sample("b", -2.0)]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        log.file.write_all(b"{\"doc_id\": 3, \"ke").unwrap();

        let mut log = SampleLog::<Sample>::open(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        log.append(vec![sample("a", -9.0), sample("c", -3.0)]).unwrap();
        let log = SampleLog::<Sample>::open(&path).unwrap();
        assert_eq!(log.get("a").unwrap(), &sample("a", -1.5));
        assert_eq!(log.get("c").unwrap(), &sample("c", -3.0));
        assert_eq!(log.get("d"), None);
    }

    #[test]
    fn what_is_written_again_comes_first_and_the_rest_by_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("samples.jsonl");
        let mut log = SampleLog::open(&path).unwrap();
        log.append(["d", "c", "\"b\"", "a"].map(|key| sample(key, -1.5)).to_vec()).unwrap();
        let (a, b) = (log.take("a").unwrap(), sample("\"b\"", -2.5));
        assert_eq!(log.take("a"), None, "it was taken");
        rewrite(&path, [a.clone(), b.clone()]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let found: Vec<Sample> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(found, [a, b, sample("c", -1.5), sample("d", -1.5)]);
    }

    #[test]
    fn numbers_are_the_same_before_and_after_reading() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("samples.jsonl");
        let mut log = SampleLog::open(&path).unwrap();
        for i in 0..200 {
            let value = -(f64::from(i) * 0.7).exp().sin() * 1e-3 / 3.0;
            log.append(vec![sample(&i.to_string(), value)]).unwrap();
        }
        let back = SampleLog::<Sample>::open(&path).unwrap();
        assert_eq!(back.records, log.records);
    }

    #[test]
    fn a_strange_line_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("samples.jsonl");
        std::fs::write(&path, "{}\n").unwrap();
        let error = SampleLog::<Sample>::open(&path).err().unwrap().to_string();
        assert!(
            error.ends_with("samples.jsonl line 1 is not a sample of an evaluation"),
            "{error}"
        );
    }
}
