//! `metrics.jsonl`: one JSON object per update, in order, each step once.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use flamingo_dataset::CorruptRow;
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::TrainError;
use crate::machine::Machine;

/// Name of the file in a run folder.
pub const FILE: &str = "metrics.jsonl";

/// What one update measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Updates done, this one included.
    pub step: u64,
    /// The objective: the sum of the datasets' losses, each times its weight; null where it is not a
    /// number.
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
    /// Mean loss of each dataset where it is a number: nats per token, or the two-term contrastive loss.
    pub losses: BTreeMap<String, f64>,
    /// Learning rate.
    pub lr: f64,
    /// Norm of the gradient before clipping; null where it is not a number.
    #[serde(deserialize_with = "number_or_null")]
    pub grad_norm: f64,
    /// Tokens that were predicted.
    pub tokens: u64,
    /// Images or clips that were looked at.
    pub images: u64,
    /// Sequences of all batches.
    #[serde(default)]
    pub samples: u64,
    /// Seconds of the whole update, waiting for rows included.
    pub seconds: f64,
    /// Seconds spent waiting for rows.
    pub data_wait_seconds: f64,
    /// Seconds of passes of the model, sums over ranks and the update; looks between updates are apart.
    #[serde(default)]
    pub model_seconds: f64,
    /// What the step asked of the machine.
    #[serde(default)]
    pub machine: Machine,
    /// Rows that could not be used and were replaced by the next ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub corrupt_rows: Vec<CorruptRow>,
    /// Why the step changed nothing, if it was skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// What the stage observes about its model, such as the gates of each layer; null where it is not a number.
    #[serde(deserialize_with = "numbers_or_nulls")]
    pub observed: BTreeMap<String, f64>,
}

impl StepMetrics {
    /// How many of something there were a second.
    pub fn per_second(&self, n: u64) -> f64 {
        n as f64 / self.seconds
    }

    /// Share of the step that was spent waiting for rows, 0 to 1.
    pub fn data_wait_share(&self) -> f64 {
        self.data_wait_seconds / self.seconds
    }

    /// Images or clips for each token that was predicted.
    pub fn images_per_token(&self) -> f64 {
        self.images as f64 / self.tokens as f64
    }
}

fn number_or_null<'de, D: Deserializer<'de>>(value: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or(f64::NAN))
}

fn numbers_or_nulls<'de, D: Deserializer<'de>>(
    values: D,
) -> Result<BTreeMap<String, f64>, D::Error> {
    let values = BTreeMap::<String, Option<f64>>::deserialize(values)?;
    Ok(values.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect())
}

/// The open file.
#[derive(Debug)]
pub struct MetricsLog {
    file: File,
    path: PathBuf,
}

impl MetricsLog {
    /// Opens the log of a run to go on after `step`; what was written about later steps is cut off.
    ///
    /// # Errors
    /// When the file cannot be read or written, or a line before that of the step is not metrics: to cut it off
    /// would take those after it along.
    pub fn open(run: &Path, step: u64) -> Result<Self, TrainError> {
        let path = run.join(FILE);
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).open(&path);
        let file = file.map_err(TrainError::file("open", &path))?;
        let length = length_up_to(&path, step)?;
        file.set_len(length).map_err(TrainError::file("shorten", &path))?;
        Ok(Self { file, path })
    }

    /// Adds one line.
    ///
    /// # Errors
    /// When the disk is full or fails.
    ///
    /// # Panics
    /// Never: metrics are numbers under texts.
    pub fn append(&mut self, metrics: &StepMetrics) -> Result<(), TrainError> {
        let mut line = serde_json::to_vec(metrics).expect("metrics are numbers under texts");
        line.push(b'\n');
        self.file.write_all(&line).map_err(TrainError::file("write", &self.path))
    }

    /// The same file, for another thread.
    ///
    /// # Errors
    /// When the system has no more handles.
    pub fn shared(&self) -> Result<Self, TrainError> {
        let file = self.file.try_clone().map_err(TrainError::file("open", &self.path))?;
        Ok(Self { file, path: self.path.clone() })
    }

    /// Waits until all lines are on disk, so that a checkpoint never knows more than its log.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub fn sync(&self) -> Result<(), TrainError> {
        self.file.sync_all().map_err(TrainError::file("flush", &self.path))
    }
}

/// Gives `take` the metrics of each step of a run, one at a time: those of a long run together would fill
/// the memory.
///
/// # Errors
/// When the file cannot be read or holds a line that is not metrics.
pub fn each(run: &Path, mut take: impl FnMut(StepMetrics)) -> Result<(), TrainError> {
    each_with_text(run, |metrics, _| take(metrics))
}

/// As [`each`], with the text of each line.
///
/// # Errors
/// As those of [`each`].
pub fn each_with_text(
    run: &Path,
    mut take: impl FnMut(StepMetrics, &[u8]),
) -> Result<(), TrainError> {
    let path = run.join(FILE);
    let file = File::open(&path).map_err(TrainError::file("open", &path))?;
    let (mut lines, mut line) = (BufReader::new(file), Vec::new());
    for number in 1.. {
        if lines.read_until(b'\n', &mut line).map_err(TrainError::file("read", &path))? == 0 {
            break;
        }
        for whole in whole_lines(&line) {
            let metrics = parsed(&path, number, whole)?;
            take(metrics, whole);
        }
        line.clear();
    }
    Ok(())
}

/// Lines with their ends; a last line without one was cut by a crash and is left out.
fn whole_lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"))
}

/// Bytes of the lines up to a step, which are read one at a time.
fn length_up_to(path: &Path, step: u64) -> Result<u64, TrainError> {
    let file = File::open(path).map_err(TrainError::file("open", path))?;
    let (mut lines, mut line, mut length, mut last) = (BufReader::new(file), Vec::new(), 0, 0);
    for number in 1.. {
        lines.read_until(b'\n', &mut line).map_err(TrainError::file("read", path))?;
        // What follows the step goes, whatever it is.
        if !line.ends_with(b"\n") || last >= step {
            break;
        }
        last = parsed(path, number, &line)?.step;
        if last > step {
            break;
        }
        length += line.len() as u64;
        line.clear();
    }
    Ok(length)
}

fn parsed(path: &Path, line: u64, text: &[u8]) -> Result<StepMetrics, TrainError> {
    let broken = |source| TrainError::BrokenLog { path: path.to_path_buf(), line, source };
    serde_json::from_slice(text).map_err(broken)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn metrics(step: u64, loss: f64) -> StepMetrics {
        StepMetrics {
            step,
            loss,
            losses: BTreeMap::from([("pairs".to_owned(), loss)]),
            lr: 1e-3,
            grad_norm: 0.5,
            tokens: 12,
            images: 3,
            samples: 4,
            seconds: 0.25,
            data_wait_seconds: 0.05,
            model_seconds: 0.15,
            machine: Machine::default(),
            corrupt_rows: Vec::new(),
            skipped: None,
            observed: BTreeMap::from([("gate.0.attention".to_owned(), 0.125)]),
        }
    }

    #[test]
    fn lines_after_the_step_and_a_torn_line_are_cut_off() {
        let run = tempfile::tempdir().unwrap();
        let mut log = MetricsLog::open(run.path(), 0).unwrap();
        (1..=5).for_each(|step| log.append(&metrics(step, 1.0)).unwrap());
        log.file.write_all(b"{\"step\": 6, \"lo").unwrap();
        log.sync().unwrap();

        let mut log = MetricsLog::open(run.path(), 3).unwrap();
        log.append(&metrics(4, 0.5)).unwrap();
        let mut back = Vec::new();
        each(run.path(), |step| back.push(step)).unwrap();
        assert_eq!(back.iter().map(|m| m.step).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(back[3], metrics(4, 0.5));
    }

    #[test]
    fn a_line_that_is_not_metrics_is_an_error_that_names_the_file() {
        let run = tempfile::tempdir().unwrap();
        std::fs::write(run.path().join(FILE), "{}\n").unwrap();
        let error = each(run.path(), |_| ()).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl line 1 is not the metrics of a step"), "{error}");
    }

    #[test]
    fn a_broken_line_takes_no_others_along_when_a_run_goes_on() {
        let run = tempfile::tempdir().unwrap();
        let path = run.path().join(FILE);
        let line = |step| serde_json::to_string(&metrics(step, 1.0)).unwrap();
        let text = [&line(1), "junk", &line(3), &line(4), "more junk", ""].join("\n");
        std::fs::write(&path, &text).unwrap();
        let error = MetricsLog::open(run.path(), 4).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl line 2 is not the metrics of a step"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "something was cut off");
        // After the step all goes, as what a crash left.
        std::fs::write(&path, text.replacen("junk\n", "", 1)).unwrap();
        MetricsLog::open(run.path(), 4).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            [&line(1), &line(3), &line(4), ""].join("\n")
        );
    }

    #[test]
    fn what_was_observed_and_is_no_number_is_read_back() {
        let run = tempfile::tempdir().unwrap();
        let observed = BTreeMap::from([("validation.a.nll".to_owned(), f64::NAN)]);
        let mut log = MetricsLog::open(run.path(), 0).unwrap();
        log.append(&StepMetrics { observed, ..metrics(1, 1.0) }).unwrap();
        let mut back = Vec::new();
        each(run.path(), |step| back.push(step)).unwrap();
        assert!(back[0].observed["validation.a.nll"].is_nan());
    }
}
