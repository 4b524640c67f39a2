//! `flamingo-eval self-check`: every metric against values that the official tools gave, on small made-up files
//! in the program itself, or on the official data in a folder.
//!
//! The files in the program, and how their values came about: `self_check/make_fixtures.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use crate::error::EvalError;
use crate::metric::{Metric, Rule};
use crate::metrics::meteor::Meteor;
use crate::metrics::nltk_tokenize::nltk_words;
use crate::metrics::ptb_tokenize::ptb_tokens;
use crate::metrics::vqa::normalised;
use crate::metrics::wordnet::WordNet;
use crate::metrics::wups::Wups;
use crate::score::{Score, Scored, scored_bytes};
use crate::table::Table;

mod official;

/// What is checked.
#[derive(Debug, Args)]
pub struct SelfCheck {
    /// Folder with the official data and `reference-values.json`, in place of the files in the program.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Folder of the `WordNet` 3.0 database, for WUPS [default: `FLAMINGO_WORDNET`, or /usr/share/wordnet].
    #[arg(long, value_name = "DIR")]
    pub wordnet: Option<PathBuf>,
    /// Folder of METEOR 1.5, with meteor-1.5.jar and data/paraphrase-en.gz [default: `METEOR_DATA`].
    #[arg(long, value_name = "DIR")]
    pub meteor_data: Option<PathBuf>,
}

/// Where the data of others lies that metrics read, unless it is at the usual places.
#[derive(Debug, Clone, Copy, Default)]
struct Folders<'a> {
    wordnet: Option<&'a Path>,
    meteor: Option<&'a Path>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// A table.
    pub text: String,
    /// Whether a value differs.
    pub has_failed: bool,
}

/// Values of one metric against those of its tool.
#[derive(Debug, Clone, PartialEq)]
struct Check {
    metric: String,
    tool: String,
    /// Values compared.
    n: usize,
    /// The largest absolute difference; texts that differ have 1. None where the check was skipped.
    difference: Option<f64>,
    /// That which passes.
    tolerance: f64,
    /// The value that differs most, or why the check was skipped.
    note: String,
}

/// Corpus metrics must agree to this.
const TOLERANCE: f64 = 1e-9;

impl Check {
    fn of(metric: &str, tool: &str, tolerance: f64) -> Self {
        Self {
            metric: metric.to_owned(),
            tool: tool.to_owned(),
            n: 0,
            difference: Some(0.0),
            tolerance,
            note: String::new(),
        }
    }

    fn skipped(metric: &str, tool: &str, why: &EvalError) -> Self {
        Self { difference: None, note: format!("skipped: {why}"), ..Self::of(metric, tool, 0.0) }
    }

    /// Compares a value; one that is not there, or is no number, is off by infinity.
    fn value(&mut self, name: &str, found: Option<f64>, expected: f64) {
        let difference = found.map_or(f64::INFINITY, |found| (found - expected).abs());
        self.add(difference, || format!("{name}: {found:?}, expected {expected}"));
    }

    /// Compares a text.
    fn text(&mut self, name: &str, found: &str, expected: &str) {
        let difference = f64::from(u8::from(found != expected));
        self.add(difference, || format!("{name:?}: {found:?}, expected {expected:?}"));
    }

    fn add(&mut self, difference: f64, note: impl FnOnce() -> String) {
        self.n += 1;
        let most = self.difference.unwrap_or_default();
        // A NaN is beyond any difference.
        if difference.is_nan() || difference > most {
            self.difference = Some(if difference.is_nan() { f64::INFINITY } else { difference });
            if self.has_failed() {
                self.note = note();
            }
        }
    }

    /// Whether a value differs, or none was compared.
    fn has_failed(&self) -> bool {
        self.difference.is_some_and(|difference| self.n == 0 || difference > self.tolerance)
    }

    fn cells(&self) -> Vec<String> {
        let found = match self.difference {
            None => "-".to_owned(),
            Some(_) if self.n == 0 => "NO VALUE".to_owned(),
            Some(_) if self.has_failed() => "DIFFERS".to_owned(),
            Some(_) => "equal".to_owned(),
        };
        let difference = self.difference.map_or_else(|| "-".to_owned(), |d| format!("{d:.1e}"));
        let tolerance = format!("{:.0e}", self.tolerance);
        let [metric, tool, note] = [&self.metric, &self.tool, &self.note].map(Clone::clone);
        vec![metric, self.n.to_string(), difference, tolerance, found, tool, note]
    }
}

/// Checks every metric.
///
/// # Errors
/// When a file of the folder is missing or not what it should be.
pub fn run(args: &SelfCheck) -> Result<Report, EvalError> {
    let folders = Folders { wordnet: args.wordnet.as_deref(), meteor: args.meteor_data.as_deref() };
    let checks = match &args.data {
        None => bundled(folders)?,
        Some(folder) => official::checks(folder, folders)?,
    };
    let headers = ["metric", "values", "largest difference", "allowed", "result", "tool", ""];
    let rows = checks.iter().map(Check::cells).collect();
    let table = Table { headers: headers.map(str::to_owned).to_vec(), rows }.to_text();
    let n_failed = checks.iter().filter(|check| check.has_failed()).count();
    let n_skipped = checks.iter().filter(|check| check.difference.is_none()).count();
    let n = checks.len();
    let text = format!("{table}\n{n} checks, {n_failed} differ, {n_skipped} skipped\n");
    Ok(Report { text, has_failed: n_failed > 0 })
}

/// The files in the program.
#[derive(Debug, Deserialize)]
struct Fixtures {
    /// Texts by name; arrays in base64.
    files: BTreeMap<String, String>,
    checks: Vec<FixtureCheck>,
    words: Vec<WordCheck>,
}

#[derive(Debug, Deserialize)]
struct FixtureCheck {
    metrics: Vec<String>,
    tool: String,
    annotations: String,
    predictions: String,
    values: BTreeMap<String, f64>,
    tolerance: f64,
}

impl FixtureCheck {
    /// Whether a value is one of the figures of a metric: `wups0:raw/DC`, `bleu-4:coco`.
    fn is_of(&self, metric: &str, value: &str) -> bool {
        let whole =
            value.strip_prefix(metric).is_some_and(|part| part.is_empty() || part.starts_with('/'));
        let of_order = |order: &str| metric.replace("bleu:", &format!("bleu-{order}:")) == value;
        whole || ["1", "2", "3", "4"].into_iter().any(of_order) || self.metrics.len() == 1
    }
}

/// Texts, or pairs of words, with what a tool makes of them.
#[derive(Debug, Deserialize)]
struct WordCheck {
    name: String,
    tool: String,
    pairs: Vec<Vec<Value>>,
}

const FIXTURES: &str = include_str!("self_check/fixtures.json");

fn bundled(folders: Folders<'_>) -> Result<Vec<Check>, EvalError> {
    checks_of(FIXTURES, folders)
}

/// The checks of a text such as [`FIXTURES`].
fn checks_of(fixtures: &str, folders: Folders<'_>) -> Result<Vec<Check>, EvalError> {
    let path = Path::new("fixtures.json");
    let refuse = |problem| EvalError::Annotations { path: path.to_path_buf(), problem };
    let fixtures: Fixtures =
        serde_json::from_str(fixtures).map_err(|error| refuse(error.to_string()))?;
    let database = WordNet::open(folders.wordnet);
    let meteor = Meteor::open(folders.meteor);
    let mut checks = Vec::new();
    for words in &fixtures.words {
        checks.push(word_check(words, database.as_ref()).map_err(refuse)?);
    }
    for one in &fixtures.checks {
        let is_lost = |value: &&String| !one.metrics.iter().any(|name| one.is_of(name, value));
        if let Some(value) = one.values.keys().find(is_lost) {
            return Err(refuse(format!("{value} is of none of {}", one.metrics.join(", "))));
        }
        let file = |name: &String| {
            let text = fixtures.files.get(name).ok_or_else(|| refuse(format!("no file {name}")))?;
            let is_array = Path::new(name).extension().is_some_and(|it| it == "npy");
            if !is_array {
                return Ok(text.clone().into_bytes());
            }
            let bytes = base64::engine::general_purpose::STANDARD.decode(text);
            bytes.map_err(|error| refuse(format!("{name}: {error}")))
        };
        let (truth, said) = (file(&one.annotations)?, file(&one.predictions)?);
        for name in &one.metrics {
            let metric = Metric::try_from(name.clone()).map_err(refuse)?;
            let absent = match metric.rule() {
                Rule::Wups { .. } => database.as_ref().err(),
                Rule::Meteor => meteor.as_ref().err(),
                _ => None,
            };
            if let Some(error) = absent {
                checks.push(Check::skipped(name, &one.tool, error));
                continue;
            }
            let score = Score {
                metrics: vec![metric],
                wordnet: folders.wordnet.map(Path::to_path_buf),
                meteor_data: folders.meteor.map(Path::to_path_buf),
                ..Score::of((&one.annotations).into(), (&one.predictions).into())
            };
            let scored = scored_bytes(&score, &truth, &said)?;
            let mut check = Check::of(name, &one.tool, one.tolerance);
            let expected = one.values.iter().filter(|(value, _)| one.is_of(name, value));
            for (value, expected) in expected {
                check.value(value, figure(&scored, value), *expected);
            }
            checks.push(check);
        }
    }
    Ok(checks)
}

fn word_check(words: &WordCheck, database: Result<&WordNet, &EvalError>) -> Result<Check, String> {
    let mut check = Check::of(&words.name, &words.tool, TOLERANCE);
    if words.name == "wup similarity" {
        let database = match database {
            Ok(database) => database,
            Err(error) => return Ok(Check::skipped(&words.name, &words.tool, error)),
        };
        similarities(&mut check, database, &words.pairs)?;
        return Ok(check);
    }
    for pair in &words.pairs {
        let [Value::String(text), Value::String(expected)] = pair.as_slice() else {
            return Err(format!("{}: {pair:?} is no pair of texts", words.name));
        };
        let found = match words.name.as_str() {
            "ptb tokens" => ptb_tokens(text).join(" "),
            "vqa normaliser" => normalised(text),
            "nltk words" => nltk_words(text).join(" "),
            other => return Err(format!("no words called {other}")),
        };
        check.text(text, &found, expected);
    }
    Ok(check)
}

/// Compares rows of two words and their similarity.
fn similarities(check: &mut Check, database: &WordNet, rows: &[Vec<Value>]) -> Result<(), String> {
    let mut wups = Wups::new(database);
    for row in rows {
        let [Value::String(a), Value::String(b), Value::Number(expected)] = row.as_slice() else {
            return Err(format!("{row:?} is not two words and their similarity"));
        };
        let found = wups.similarity(a, b).map_err(|error| error.to_string())?;
        check.value(&format!("{a}, {b}"), Some(found), expected.as_f64().unwrap_or(f64::NAN));
    }
    Ok(())
}

/// The value of a figure.
fn figure(scored: &Scored, name: &str) -> Option<f64> {
    scored.rows.iter().find(|row| row.name == name).map(|row| row.estimate.value)
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    /// Names of metrics that no check is of.
    fn unchecked(checks: &[Check]) -> Vec<String> {
        let names = Metric::value_variants().iter().map(|metric| metric.name());
        names.filter(|name| checks.iter().all(|check| check.metric != *name)).collect()
    }

    #[test]
    fn every_metric_equals_its_tool_and_is_checked() {
        let checks = bundled(Folders::default()).unwrap();
        for check in &checks {
            assert!(!check.has_failed(), "{check:?}");
        }
        // Each value is that of one metric.
        let fixtures: Fixtures = serde_json::from_str(FIXTURES).unwrap();
        if checks.iter().all(|check| check.difference.is_some()) {
            let n_values: usize = fixtures.checks.iter().map(|one| one.values.len()).sum();
            let n_pairs: usize = fixtures.words.iter().map(|words| words.pairs.len()).sum();
            assert_eq!(checks.iter().map(|check| check.n).sum::<usize>(), n_values + n_pairs);
        }
        // Of these there is no tool, or the rule is that of another metric.
        assert_eq!(unchecked(&checks), ["accuracy", "top-k", "star:mc"]);
    }

    #[test]
    fn a_value_that_is_off_fails_and_is_named() {
        let expected = "\"next-qa:mc\": 0.";
        assert_eq!(FIXTURES.matches(expected).count(), 1);
        let changed = FIXTURES.replace(expected, "\"next-qa:mc\": 1.");
        let checks = checks_of(&changed, Folders::default()).unwrap();
        let failed: Vec<&Check> = checks.iter().filter(|check| check.has_failed()).collect();
        assert_eq!(failed.len(), 1);
        assert!(failed[0].note.starts_with("next-qa:mc: Some(0."), "{failed:?}");
        // A figure that is not there, and a metric without any value.
        for (from, to) in [("\"recall@10\":", "\"recall@11\":"), ("\"exact\":", "\"wups0:raw/\":")]
        {
            let changed = FIXTURES.replacen(from, to, 1);
            let checks = checks_of(&changed, Folders::default()).unwrap();
            let failed: Vec<&Check> = checks.iter().filter(|check| check.has_failed()).collect();
            assert_eq!(failed.len(), 1, "{failed:?}");
            assert_eq!(failed[0].difference, Some(f64::INFINITY), "{failed:?}");
        }
        let lost = FIXTURES.replacen("\"bleu-4:coco\":", "\"bleu-5:coco\":", 1);
        let error = checks_of(&lost, Folders::default()).unwrap_err().to_string();
        assert!(error.contains("bleu-5:coco is of none of bleu:coco, rouge:coco"), "{error}");
        let mut check = Check::of("m", "t", TOLERANCE);
        assert!(check.has_failed(), "nothing was compared");
        check.value("x", Some(f64::NAN), 1.0);
        assert!(check.has_failed());
        check.value("y", None, 1.0);
        assert_eq!(check.difference, Some(f64::INFINITY));
    }

    #[test]
    fn without_their_data_metrics_are_skipped_by_name() {
        let nowhere = Some(Path::new("/nonexistent"));
        let checks = bundled(Folders { wordnet: nowhere, meteor: nowhere }).unwrap();
        let skipped: Vec<&str> = checks
            .iter()
            .filter(|check| check.difference.is_none())
            .map(|check| check.metric.as_str())
            .collect();
        let expected =
            ["wup similarity", "meteor:coco", "wups0:raw", "wups0:stop", "wups9:raw", "wups9:stop"];
        assert_eq!(skipped, expected);
    }
}
