//! Room for checkpoints: the bytes that one takes, and those that a disk and the memory still have.

use std::path::Path;

use flamingo_model::{Parameter, Params};

use crate::ema::Ema;
use crate::error::TrainError;

/// Bytes of a value: all are f32.
const VALUE_BYTES: u64 = size_of::<f32>() as u64;

/// Values that a trained parameter has in a checkpoint: its own, and two moments of each.
const TRAINED_COPIES: usize = 3;

/// Values of its running average, if one is kept.
const AVERAGE_COPIES: usize = 1;

/// Bytes that a parameter takes beside its values: names and shapes in three places.
const ENTRY_BYTES: u64 = 1 << 10;

/// Bytes of all that does not depend on the model: the state, the report, a line of metrics.
const REST_BYTES: u64 = 1 << 20;

/// Values of each trained parameter that are copied for a checkpoint and stand in it.
pub fn copies(ema: Option<&Ema>) -> usize {
    TRAINED_COPIES + ema.map_or(0, |_| AVERAGE_COPIES)
}

/// How large a checkpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Trained weights, their moments and averages, which are copied while a checkpoint is written.
    pub copied_bytes: u64,
    /// All files.
    pub file_bytes: u64,
}

impl Size {
    /// The size of the checkpoints of a model with so many values of each trained parameter.
    pub fn of(params: &[&Params], copies: usize) -> Self {
        let all = params.iter().flat_map(|params| params.iter());
        let bytes = |parameter: &Parameter| VALUE_BYTES * parameter.n_values() as u64;
        let (mut copied_bytes, mut file_bytes) = (0, REST_BYTES);
        for parameter in all {
            file_bytes += ENTRY_BYTES;
            if parameter.weight.is_trained() {
                copied_bytes += copies as u64 * bytes(parameter);
            } else {
                file_bytes += bytes(parameter);
            }
        }
        Self { copied_bytes, file_bytes: file_bytes + copied_bytes }
    }

    /// Fails unless the disk has room for the files. What it does not tell is taken for enough.
    ///
    /// # Errors
    /// When it has not.
    pub fn require_disk(
        &self,
        run: &Path,
        free: impl Fn(&Path) -> Option<u64>,
    ) -> Result<(), TrainError> {
        match free(run) {
            Some(free) if free < self.file_bytes => {
                Err(TrainError::NoRoom { folder: run.to_path_buf(), needed: self.file_bytes, free })
            }
            _ => Ok(()),
        }
    }

    /// Whether the copies fit into the memory that is left beside `held_bytes` that are there for them. What the system does not tell is taken for
    /// enough.
    pub fn fits_memory(&self, held_bytes: u64) -> bool {
        let needed = self.copied_bytes.saturating_sub(held_bytes);
        memory_bytes().is_none_or(|free| needed < free)
    }
}

/// Bytes that a user may still write below a folder, or below the nearest one above it that is there.
pub fn disk_bytes(folder: &Path) -> Option<u64> {
    let here = folder.ancestors().find(|path| path.exists()).filter(|path| *path != Path::new(""));
    let disk = rustix::fs::statvfs(here.unwrap_or(Path::new("."))).ok()?;
    // Some file systems of the network do not know their size, and say 0.
    (disk.f_blocks > 0).then(|| disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Bytes of memory that can be had without pushing anything else out of it: those of the system, or of
/// the control groups that the process is in, if that is less.
pub(crate) fn memory_bytes() -> Option<u64> {
    let system = std::fs::read_to_string("/proc/meminfo").ok();
    let system = system.and_then(|text| Some(1024 * number(&text, "MemAvailable:")?));
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok();
    let group =
        groups.and_then(|text| group_bytes(text.lines().find_map(|l| l.strip_prefix("0::/"))?));
    system.into_iter().chain(group).min()
}

/// As [`memory_bytes`], of a control group and those above it.
fn group_bytes(group: &str) -> Option<u64> {
    let of_one = |group: &Path| {
        let folder = Path::new("/sys/fs/cgroup").join(group);
        let read = |file: &str| std::fs::read_to_string(folder.join(file)).ok();
        let one = |file: &str| read(file)?.trim().parse::<u64>().ok();
        // Files that were read and are in no one's use stand in it, too.
        let unused = read("memory.stat").and_then(|text| number(&text, "inactive_file "));
        let used = one("memory.current")?.saturating_sub(unused.unwrap_or(0));
        Some(one("memory.max")?.saturating_sub(used))
    };
    Path::new(group).ancestors().filter_map(of_one).min()
}

/// The number in the line that begins with `key`.
fn number(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ema::{EmaConfig, Warmup};

    #[test]
    fn a_disk_must_have_room_for_weights_and_two_moments() {
        let params = Params::trained([("a".to_owned(), vec![1000, 1000], vec![0.0; 1_000_000])]);
        let params = params.unwrap();
        let ema = Ema::new(&EmaConfig { decay: 0.9, warmup: Warmup::None }, &[&params]);
        assert_eq!(Size::of(&[&params], copies(Some(&ema))).copied_bytes, 16_000_000);
        let size = Size::of(&[&params], copies(None));
        assert_eq!(size.copied_bytes, 12_000_000);
        let run = Path::new("runs/mine");
        let require = |free| size.require_disk(run, |_| free);
        require(None).unwrap();
        require(Some(size.file_bytes)).unwrap();
        let error = require(Some(12_000_000)).unwrap_err().to_string();
        let needed = 12_000_000 + ENTRY_BYTES + REST_BYTES;
        assert!(error.contains("runs/mine") && error.contains("12000000 bytes free"), "{error}");
        assert!(error.contains(&format!("takes {needed}")), "{error}");
    }

    #[test]
    fn the_disk_of_a_folder_that_is_not_there_yet_is_that_of_the_one_above() {
        let folder = tempfile::tempdir().unwrap();
        assert!(disk_bytes(&folder.path().join("a/b/c")).unwrap() > 0);
        assert!(disk_bytes(Path::new("not-there")).unwrap() > 0);
    }

    #[test]
    fn memory_is_read_from_what_the_system_writes() {
        let text = "MemTotal:       24661 kB\nMemAvailable:   23 kB\n";
        assert_eq!(number(text, "MemAvailable:"), Some(23));
        assert_eq!(number("anon 1\ninactive_file 77\n", "inactive_file "), Some(77));
        assert_eq!(number("", "MemAvailable:"), None);
        assert!(memory_bytes().unwrap() > 0);
        let size = |copied_bytes| Size { copied_bytes, file_bytes: 0 };
        assert!(size(1).fits_memory(0));
        assert!(!size(1 << 60).fits_memory(0));
        assert!(size(1 << 60).fits_memory(1 << 60));
    }
}
