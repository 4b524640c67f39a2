//! Events for `TensorBoard`, under `tensorboard/` in the run folder: the numbers of `metrics.jsonl`.
//!
//! A file is a list of records: length, checksum of the length, event, checksum of the event. Events
//! are protocol buffers (tensorflow/core/util/event.proto), of which three kinds are written: the
//! version of the file, the step at which a process goes on, and the scalars of a step. `TensorBoard`
//! forgets what older files say of steps from there on.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crc_fast::CrcAlgorithm;

use crate::error::TrainError;
use crate::few_shot::Score;
use crate::metrics::StepMetrics;

const FOLDER: &str = "tensorboard";

/// The events of one process.
#[derive(Debug)]
pub struct Events {
    file: File,
    path: PathBuf,
}

impl Events {
    /// A new file for a process that goes on after `step`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(run: &Path, step: u64) -> Result<Self, TrainError> {
        let folder = run.join(FOLDER);
        std::fs::create_dir_all(&folder).map_err(TrainError::file("create", &folder))?;
        let now = wall_time();
        // Files are read in the order of their names.
        let name = format!("events.out.tfevents.{now:017.6}.step-{step}");
        let path = folder.join(name);
        let file = OpenOptions::new().append(true).create_new(true).open(&path);
        let file = file.map_err(TrainError::file("create", &path))?;
        let mut events = Self { file, path };
        events.write(&[version(now), went_on(now, step + 1)].concat())?;
        Ok(events)
    }

    /// Adds the numbers of a step.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub fn append(&mut self, metrics: &StepMetrics) -> Result<(), TrainError> {
        self.write(&scalars(wall_time(), metrics.step, &numbers(metrics)))
    }

    /// Adds the few-shot scores of a checkpoint.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub fn append_scores(&mut self, scores: &[Score]) -> Result<(), TrainError> {
        scores.iter().try_for_each(|score| {
            let number = (format!("few_shot/{}", score.name()), score.value);
            self.write(&scalars(wall_time(), score.step, &[number]))
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), TrainError> {
        self.file.write_all(bytes).map_err(TrainError::file("write", &self.path))
    }
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0.0, |time| time.as_secs_f64())
}

/// What is shown of a step. Tags with the same first part share a section.
fn numbers(metrics: &StepMetrics) -> Vec<(String, f64)> {
    let mut numbers = vec![
        ("loss".to_owned(), metrics.loss),
        ("optimizer/lr".to_owned(), metrics.lr),
        ("optimizer/grad_norm".to_owned(), metrics.grad_norm),
        ("speed/steps_per_second".to_owned(), metrics.per_second(1)),
        ("speed/tokens_per_second".to_owned(), metrics.per_second(metrics.tokens)),
        ("speed/images_per_second".to_owned(), metrics.per_second(metrics.images)),
        ("speed/data_wait_share".to_owned(), metrics.data_wait_share()),
        ("speed/samples_per_second".to_owned(), metrics.per_second(metrics.samples)),
        ("speed/images_per_token".to_owned(), metrics.images_per_token()),
    ];
    let machine = metrics.machine;
    let bytes = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64);
    let known = [
        ("speed/tflops", machine.tflops),
        ("speed/mfu", machine.mfu),
        ("memory/process", bytes(machine.memory_bytes)),
        ("memory/process_peak", bytes(machine.memory_peak_bytes)),
        ("memory/gpu", bytes(machine.gpu_memory_bytes)),
        ("memory/gpu_peak", bytes(machine.gpu_memory_peak_bytes)),
    ];
    numbers.extend(known.into_iter().filter_map(|(tag, value)| Some((tag.to_owned(), value?))));
    numbers.extend(metrics.losses.iter().map(|(name, loss)| (format!("loss/{name}"), *loss)));
    let observed = metrics.observed.iter();
    numbers.extend(observed.map(|(name, value)| (name.replacen('.', "/", 1), *value)));
    numbers
}

fn version(wall_time: f64) -> Vec<u8> {
    record(&[double(1, wall_time), bytes(3, b"brain.Event:2")].concat())
}

/// A session log with the status START.
fn went_on(wall_time: f64, step: u64) -> Vec<u8> {
    record(&[double(1, wall_time), varint(2, step), bytes(7, &varint(1, 1))].concat())
}

fn scalars(wall_time: f64, step: u64, numbers: &[(String, f64)]) -> Vec<u8> {
    let value = |(tag, number): &(String, f64)| {
        bytes(1, &[bytes(1, tag.as_bytes()), float(2, *number as f32)].concat())
    };
    let summary: Vec<u8> = numbers.iter().flat_map(value).collect();
    record(&[double(1, wall_time), varint(2, step), bytes(5, &summary)].concat())
}

fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    [&length[..], &checksum(&length), event, &checksum(event)].concat()
}

/// CRC-32C, turned and shifted: a checksum of data that holds checksums would be a weak one.
fn checksum(of: &[u8]) -> [u8; 4] {
    let crc = crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, of) as u32;
    crc.rotate_right(15).wrapping_add(0xA282_EAD8).to_le_bytes()
}

/// Number and type of a field of a protocol buffer.
fn key(field: u8, wire_type: u8) -> u8 {
    field << 3 | wire_type
}

fn varint(field: u8, value: u64) -> Vec<u8> {
    let mut encoded = vec![key(field, 0)];
    push_varint(&mut encoded, value);
    encoded
}

fn push_varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

fn double(field: u8, value: f64) -> Vec<u8> {
    [&[key(field, 1)][..], &value.to_le_bytes()].concat()
}

fn float(field: u8, value: f32) -> Vec<u8> {
    [&[key(field, 5)][..], &value.to_le_bytes()].concat()
}

fn bytes(field: u8, value: &[u8]) -> Vec<u8> {
    let mut encoded = vec![key(field, 2)];
    push_varint(&mut encoded, value.len() as u64);
    encoded.extend(value);
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::metrics;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
    }

    /// The expected bytes are those of `RecordWriter` and `Event` of the package `tensorboard`.
    #[test]
    fn records_are_those_of_tensorboard() {
        let expected = "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a32\
                        2a28646c";
        assert_eq!(hex(&version(1.5)), expected);
        let expected = "100000000000000095fbfe1809000000000000f83f10ac023a020801713b788a";
        assert_eq!(hex(&went_on(1.5, 300)), expected);
        let numbers = [("loss".to_owned(), 0.75), ("loss/pairs".to_owned(), -2.0)];
        let expected = "2e00000000000000c5cb57fa09000000000000024010ad022a200a0b0a046c6f73731500\
                        00403f0a110a0a6c6f73732f706169727315000000c0e18cd078";
        assert_eq!(hex(&scalars(2.25, 301, &numbers)), expected);
    }

    #[test]
    fn each_process_has_a_file_of_its_own() {
        let run = tempfile::tempdir().unwrap();
        for step in [0, 7] {
            let mut events = Events::create(run.path(), step).unwrap();
            events.append(&metrics(step + 1, 2.5)).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let files = std::fs::read_dir(run.path().join(FOLDER)).unwrap();
        let mut files: Vec<PathBuf> = files.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let texts = files.iter().map(|path| std::fs::read(path).unwrap());
        let texts: Vec<String> =
            texts.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect();
        assert_eq!(texts.len(), 2);
        assert!(files[1].to_string_lossy().ends_with("step-7"));
        for tag in ["loss/pairs", "gate/0.attention", "speed/data_wait_share"] {
            assert!(texts.iter().all(|text| text.contains(tag)), "no {tag}");
        }
    }
}
