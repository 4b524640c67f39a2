//! Checkpoints: everything that a run needs to go on as if it had never stopped.
//!
//! `checkpoints/step-N/` is a loadable model folder (`config.json`, `model.safetensors`) that also
//! holds the optimizer's moments, `state.json` and, written last, the checksums of all of them, which whoever reads
//! a file checks. It is written under a temporary name, flushed and renamed; only then does the text file `latest` move on to it. Whatever the moment of a
//! crash, `latest` names a whole checkpoint. With an early stop `best` names the one that was best so far.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::DirEntry;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use flamingo_model::{ModelError, Tensors, other_steps, verify_checksum, write_checksums};
use serde::{Deserialize, Serialize};

use crate::data_history::DataHistory;
use crate::device::Devices;
use crate::early_stop;
use crate::error::TrainError;
use crate::files;
use crate::metrics::StepMetrics;
use crate::ranks;
use crate::trouble::{RecentLosses, Trouble};
use crate::validation::CorruptTold;

const FOLDER: &str = "checkpoints";
const LATEST: &str = "latest";
const BEST: &str = "best";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const UNFINISHED: &str = "unfinished";
const REMOVED: &str = "removed-";

/// What a checkpoint knows besides weights and moments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Updates done, and the step at which the loader goes on: the rows of a step follow from its
    /// number, the seed, the tokenizer and the corpora.
    pub step: u64,
    /// Digest of the weights that are not trained, if there are any.
    pub frozen_sha256: Option<String>,
    /// Digest of the run's `tokenizer.json`.
    pub tokenizer_sha256: String,
    /// Digest of each corpus's manifest, in the order of the config.
    pub corpora_sha256: Vec<String>,
    /// Where the updates were made.
    #[serde(default)]
    pub devices: Devices,
    /// What the datasets were drawn by; empty in checkpoints of earlier versions.
    #[serde(default)]
    pub data_history: DataHistory,
    /// How many ranks made them; nothing in runs of versions before there were any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ranks: ranks::Numbers,
    /// Steps that went wrong, whose rows are left out.
    #[serde(default)]
    pub troubles: Vec<Trouble>,
    /// The losses that the next ones are compared with.
    #[serde(default)]
    pub recent_losses: RecentLosses,
    /// How the validation went.
    #[serde(default)]
    pub early_stop: early_stop::Progress,
    /// Digest of each manifest of the corpora that are not learned from, under the datasets' names.
    #[serde(default)]
    pub held_out_sha256: BTreeMap<String, String>,
    /// Corrupt rows of those corpora that were told of, under the datasets' names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub held_out_corrupt: CorruptTold,
    /// Steps that ended the run at some time, as its folder knew them. Their rows are not left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stops: Vec<Trouble>,
    /// The last step where its validation was cut off: it is made up for when the run goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmeasured: Option<StepMetrics>,
}

impl State {
    /// The step of the best checkpoint so far, where an early stop looks for one.
    pub fn best_step(&self) -> Option<u64> {
        self.early_stop.best.map(|best| best.step)
    }
}

/// A checkpoint on disk.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Its folder.
    pub folder: PathBuf,
    /// Its state.
    pub state: State,
}

impl Checkpoint {
    /// The checkpoint that `latest` names, or none if the run has not made one.
    ///
    /// # Errors
    /// When `latest` or the checkpoint that it names cannot be read.
    pub fn latest(run: &Path) -> Result<Option<Self>, TrainError> {
        let path = run.join(LATEST);
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&path).map_err(TrainError::file("read", &path))?;
        let found = text.trim().to_owned();
        if step_of(&found).is_none() {
            return Err(TrainError::Latest { path, found });
        }
        let folder = run.join(FOLDER).join(&found);
        if !folder.exists() {
            let others = other_steps(&folder);
            return Err(TrainError::NoCheckpoint { path, found, folder, others });
        }
        Self::read(folder).map(Some)
    }

    /// The newest checkpoint from which the step `step` of a run can be made again, or none if there is
    /// none.
    ///
    /// # Errors
    /// When the run or a checkpoint of it cannot be read.
    pub fn before(run: &Path, step: u64) -> Result<Option<Self>, TrainError> {
        let Some(latest) = Self::latest(run)? else { return Ok(None) };
        let parent = run.join(FOLDER);
        for step in steps_up_to(&parent, step.saturating_sub(1))?.into_iter().rev() {
            let found = Self::read(parent.join(format!("step-{step}")))?;
            // A run that went back leaves those behind that it had written.
            let knows = |trouble: &Trouble| found.state.troubles.contains(trouble);
            let happened = |trouble: &&Trouble| match trouble.back_to {
                Some(back_to) => back_to < step,
                None => trouble.step <= step,
            };
            if latest.state.troubles.iter().filter(happened).all(knows) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn read(folder: PathBuf) -> Result<Self, TrainError> {
        verify(&folder.join(STATE))?;
        let state = read_state(&folder)?;
        Ok(Self { folder, state })
    }

    /// Fails unless something that the run is built from is what it was at the checkpoint.
    ///
    /// # Errors
    /// When it is not.
    pub fn require_same(
        &self,
        what: impl Into<String>,
        was: &str,
        now: &str,
    ) -> Result<(), TrainError> {
        if was == now {
            return Ok(());
        }
        Err(TrainError::NotTheSame {
            path: self.folder.clone(),
            what: what.into(),
            was: was.to_owned(),
            now: now.to_owned(),
        })
    }

    /// The optimizer's moments, and the file that they are in.
    ///
    /// # Errors
    /// When the file cannot be read, or is not what was written.
    pub fn moments(&self) -> Result<(Tensors, PathBuf), TrainError> {
        let path = self.folder.join(OPTIMIZER);
        verify(&path)?;
        Ok((Tensors::read(&path).map_err(TrainError::model("load"))?, path))
    }
}

/// Fails unless a file of a checkpoint is what was written.
///
/// # Errors
/// When it is not, or cannot be read.
pub(crate) fn verify(path: &Path) -> Result<(), TrainError> {
    verify_checksum(path).map_err(TrainError::model("load"))
}

/// The folder of the checkpoint of a step.
pub fn folder(run: &Path, step: u64) -> PathBuf {
    run.join(FOLDER).join(format!("step-{step}"))
}

fn read_state(folder: &Path) -> Result<State, TrainError> {
    let path = folder.join(STATE);
    let text = std::fs::read_to_string(&path).map_err(TrainError::file("read", &path))?;
    serde_json::from_str(&text).map_err(|source| TrainError::Broken {
        path,
        expected: "the state of a checkpoint",
        source,
    })
}

/// Writes a checkpoint and moves `latest` to it, and `best` to the one that it knows as the best.
///
/// `save_model` writes the model's own files into the folder that it is given.
///
/// # Errors
/// When the disk is full or fails; the checkpoints that were there stay.
///
/// # Panics
/// Never: a state is plain numbers and texts.
pub fn write(
    run: &Path,
    state: &State,
    moments: &Tensors,
    save_model: impl FnOnce(&Path) -> Result<(), ModelError>,
) -> Result<(), TrainError> {
    let parent = run.join(FOLDER);
    let unfinished = parent.join(UNFINISHED);
    let written = write_unfinished(&unfinished, state, moments, save_model);
    if written.is_err() {
        // A full disk needs the room, and the first error is the one to report.
        let _ = std::fs::remove_dir_all(&unfinished);
    }
    written?;

    let name = format!("step-{}", state.step);
    // A run killed between this rename and the move of `latest` left the same step behind.
    discard(&parent, state.step)?;
    let folder = parent.join(&name);
    std::fs::rename(&unfinished, &folder).map_err(TrainError::file("rename", &unfinished))?;
    files::sync(&parent)?;
    files::sync(run)?;
    point_latest(run, &name)?;
    point_best(run, state.best_step())
}

/// Makes `best` name the checkpoint of a step; without one it is removed.
///
/// # Errors
/// When the disk cannot be written.
pub fn point_best(run: &Path, step: Option<u64>) -> Result<(), TrainError> {
    let path = run.join(BEST);
    match step {
        Some(step) => files::replace(&path, format!("step-{step}\n").as_bytes()),
        None if path.exists() => {
            std::fs::remove_file(&path).map_err(TrainError::file("remove", &path))
        }
        None => Ok(()),
    }
}

fn point_latest(run: &Path, name: &str) -> Result<(), TrainError> {
    files::replace(&run.join(LATEST), format!("{name}\n").as_bytes())
}

/// Moves `latest` back to the newest checkpoint of a step up to `step` that is a multiple of `every`, and
/// removes those of later steps, which are not gone on from; without one the run begins anew. Says which
/// step that is.
///
/// # Errors
/// When the disk cannot be read or written.
pub fn go_back(run: &Path, step: u64, every: u64) -> Result<u64, TrainError> {
    let parent = run.join(FOLDER);
    let found = if parent.exists() { steps_up_to(&parent, step)? } else { Vec::new() };
    let latest = run.join(LATEST);
    let to = found.into_iter().rfind(|step| step.is_multiple_of(every));
    let mut best = None;
    if let Some(step) = to {
        best = read_state(&folder(run, step))?.best_step();
        point_latest(run, &format!("step-{step}"))?;
    } else if latest.exists() {
        std::fs::remove_file(&latest).map_err(TrainError::file("remove", &latest))?;
        files::sync(run)?;
    }
    point_best(run, best)?;
    let to = to.unwrap_or(0);
    if parent.exists() {
        let all = steps_up_to(&parent, u64::MAX)?;
        all.into_iter().filter(|step| *step > to).try_for_each(|step| discard(&parent, step))?;
    }
    Ok(to)
}

fn write_unfinished(
    folder: &Path,
    state: &State,
    moments: &Tensors,
    save_model: impl FnOnce(&Path) -> Result<(), ModelError>,
) -> Result<(), TrainError> {
    remove(folder)?;
    std::fs::create_dir_all(folder).map_err(TrainError::file("create", folder))?;
    save_model(folder).map_err(TrainError::model("save"))?;
    moments.write(&folder.join(OPTIMIZER)).map_err(TrainError::model("save"))?;
    let text = serde_json::to_string_pretty(state).expect("a state is plain numbers and texts");
    files::write_new(&folder.join(STATE), text.as_bytes())?;
    write_checksums(folder).map_err(TrainError::model("save"))?;
    sync_files(folder)
}

/// Removes what a crash left of checkpoints that were being written or removed.
///
/// # Errors
/// When the disk cannot be read or written.
pub fn sweep(run: &Path) -> Result<(), TrainError> {
    let parent = run.join(FOLDER);
    if !parent.exists() {
        return Ok(());
    }
    let is_left = |name: &String| name == UNFINISHED || name.starts_with(REMOVED);
    names(&parent)?
        .iter()
        .filter(|name| is_left(name))
        .try_for_each(|name| remove(&parent.join(name)))
}

fn sync_files(folder: &Path) -> Result<(), TrainError> {
    for entry in std::fs::read_dir(folder).map_err(TrainError::file("read", folder))? {
        files::sync(&entry.map_err(TrainError::file("read", folder))?.path())?;
    }
    files::sync(folder)
}

/// Which checkpoints stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// So many of the newest.
    pub last: usize,
    /// All of steps that are multiples of it.
    pub every: Option<u64>,
    /// The newest of a step that is a multiple of it, to go back to.
    pub back: Option<u64>,
}

/// Removes the checkpoints of steps up to `step` that need not stay. What one that stays knows as the best
/// stays, too.
///
/// # Errors
/// When the disk cannot be read or written.
pub fn prune(run: &Path, step: u64, keep: &Keep) -> Result<(), TrainError> {
    let parent = run.join(FOLDER);
    let steps = steps_up_to(&parent, step)?;
    let n_old = steps.len().saturating_sub(keep.last);
    let back = keep.back.and_then(|every| steps.iter().rfind(|step| step.is_multiple_of(every)));
    let for_ever = |step: &&u64| keep.every.is_some_and(|every| step.is_multiple_of(every));
    let for_ever = steps.iter().filter(for_ever);
    let mut stay: BTreeSet<u64> =
        steps[n_old..].iter().chain(back).chain(for_ever).copied().collect();
    for step in stay.clone() {
        stay.extend(read_state(&parent.join(format!("step-{step}")))?.best_step());
    }
    let mut old = steps.iter().filter(|step| !stay.contains(step));
    old.try_for_each(|step| discard(&parent, *step))
}

/// The steps of checkpoints up to `step`, in order.
fn steps_up_to(parent: &Path, step: u64) -> Result<Vec<u64>, TrainError> {
    let mut steps: Vec<u64> = names(parent)?.iter().filter_map(|name| step_of(name)).collect();
    steps.retain(|found| *found <= step);
    steps.sort_unstable();
    Ok(steps)
}

/// Removes a checkpoint, if it is there. It loses its name first, so that half of one never looks
/// whole.
fn discard(parent: &Path, step: u64) -> Result<(), TrainError> {
    let folder = parent.join(format!("step-{step}"));
    let removed = parent.join(format!("{REMOVED}{step}"));
    remove(&removed)?;
    match std::fs::rename(&folder, &removed) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(TrainError::file("rename", &folder)(error)),
        Ok(()) => remove(&removed),
    }
}

fn names(folder: &Path) -> Result<Vec<String>, TrainError> {
    let entries = std::fs::read_dir(folder).map_err(TrainError::file("read", folder))?;
    let name = |entry: std::io::Result<DirEntry>| {
        let entry = entry.map_err(TrainError::file("read", folder))?;
        Ok(entry.file_name().to_string_lossy().into_owned())
    };
    entries.map(name).collect()
}

fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix("step-")?.parse().ok()
}

fn remove(folder: &Path) -> Result<(), TrainError> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(TrainError::file("remove", folder)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(step: u64) -> State {
        State {
            step,
            frozen_sha256: None,
            tokenizer_sha256: String::new(),
            corpora_sha256: Vec::new(),
            devices: Devices::new(),
            ranks: ranks::Numbers::new(),
            data_history: DataHistory::new(),
            troubles: Vec::new(),
            recent_losses: RecentLosses::default(),
            early_stop: early_stop::Progress::default(),
            held_out_sha256: BTreeMap::new(),
            held_out_corrupt: CorruptTold::new(),
            stops: Vec::new(),
            unmeasured: None,
        }
    }

    fn write_step(run: &Path, step: u64) {
        write_state(run, &state(step));
    }

    fn write_state(run: &Path, state: &State) {
        let moments = Tensors::default();
        let save_model = |folder: &Path| {
            std::fs::write(folder.join("config.json"), "{}").unwrap();
            Ok(())
        };
        write(run, state, &moments, save_model).unwrap();
        prune(run, state.step, &Keep { last: 2, every: Some(20), back: Some(5) }).unwrap();
    }

    fn sorted_names(run: &Path) -> Vec<String> {
        let mut names = names(&run.join(FOLDER)).unwrap();
        names.sort();
        names
    }

    #[test]
    fn what_a_crash_leaves_behind_is_written_over() {
        let run = tempfile::tempdir().unwrap();
        assert!(Checkpoint::latest(run.path()).unwrap().is_none());
        write_step(run.path(), 1);
        for name in [UNFINISHED, "step-2"] {
            let folder = run.path().join(FOLDER).join(name);
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join("torn"), "").unwrap();
        }
        assert_eq!(Checkpoint::latest(run.path()).unwrap().unwrap().state, state(1));
        write_step(run.path(), 2);
        let latest = Checkpoint::latest(run.path()).unwrap().unwrap();
        assert_eq!(latest.state, state(2));
        assert!(!latest.folder.join("torn").exists());
        write_step(run.path(), 10);
        assert_eq!(sorted_names(run.path()), ["step-10", "step-2"]);
    }

    #[test]
    fn a_model_that_cannot_be_saved_leaves_the_last_checkpoint() {
        let run = tempfile::tempdir().unwrap();
        write_step(run.path(), 1);
        let full = |folder: &Path| {
            std::fs::write(folder.join("model.safetensors"), "half").unwrap();
            Err(ModelError::NotARun { path: folder.to_path_buf(), expected: "room" })
        };
        write(run.path(), &state(2), &Tensors::default(), full).unwrap_err();
        assert_eq!(Checkpoint::latest(run.path()).unwrap().unwrap().state, state(1));
        assert_eq!(sorted_names(run.path()), ["step-1"]);
        write_step(run.path(), 2);
        assert_eq!(sorted_names(run.path()), ["step-1", "step-2"]);
    }

    #[test]
    fn what_a_crash_left_is_swept_and_whole_checkpoints_stay() {
        let run = tempfile::tempdir().unwrap();
        sweep(run.path()).unwrap();
        write_step(run.path(), 1);
        for name in [UNFINISHED, "removed-0"] {
            std::fs::create_dir(run.path().join(FOLDER).join(name)).unwrap();
        }
        sweep(run.path()).unwrap();
        assert_eq!(sorted_names(run.path()), ["step-1"]);
    }

    #[test]
    fn a_run_goes_back_to_a_step_that_was_due_which_is_kept_for_it() {
        let run = tempfile::tempdir().unwrap();
        let latest = || Checkpoint::latest(run.path()).unwrap().map(|found| found.state.step);
        assert_eq!(go_back(run.path(), 3, 5).unwrap(), 0);
        for step in [3, 5, 6, 7, 8] {
            write_step(run.path(), step);
        }
        assert_eq!(sorted_names(run.path()), ["step-5", "step-7", "step-8"]);
        assert_eq!((go_back(run.path(), 8, 5).unwrap(), latest()), (5, Some(5)));
        // What was gone back from does not push out what comes next.
        assert_eq!(sorted_names(run.path()), ["step-5"]);
        for step in [6, 7] {
            write_step(run.path(), step);
        }
        assert_eq!(sorted_names(run.path()), ["step-5", "step-6", "step-7"]);
        assert_eq!((go_back(run.path(), 4, 5).unwrap(), latest()), (0, None));
        assert!(sorted_names(run.path()).is_empty());
    }

    #[test]
    fn steps_that_are_multiples_of_a_number_stay_for_ever() {
        let run = tempfile::tempdir().unwrap();
        (10..=70).step_by(10).for_each(|step| write_step(run.path(), step));
        assert_eq!(sorted_names(run.path()), ["step-20", "step-40", "step-60", "step-70"]);
    }

    #[test]
    fn the_best_stays_as_long_as_a_checkpoint_that_stays_knows_it() {
        let run = tempfile::tempdir().unwrap();
        let best = || std::fs::read_to_string(run.path().join(BEST)).ok();
        let with_best = |step, best| {
            let mut state = state(step);
            state.early_stop.best = Some(early_stop::Best { step: best, value: 0.5 });
            write_state(run.path(), &state);
        };
        with_best(3, 3);
        with_best(5, 3);
        for step in [6, 7, 8] {
            with_best(step, 6);
        }
        // Whoever goes back to step 5 finds step 3 as the best.
        assert_eq!(sorted_names(run.path()), ["step-3", "step-5", "step-6", "step-7", "step-8"]);
        assert_eq!(best().as_deref(), Some("step-6\n"));
        with_best(10, 6);
        with_best(11, 11);
        assert_eq!(sorted_names(run.path()), ["step-10", "step-11", "step-6"]);
        write_step(run.path(), 12);
        assert_eq!(best(), None);
    }

    #[test]
    fn a_latest_that_names_nothing_is_an_error() {
        let run = tempfile::tempdir().unwrap();
        std::fs::write(run.path().join(LATEST), "../elsewhere\n").unwrap();
        let error = Checkpoint::latest(run.path()).unwrap_err().to_string();
        assert!(error.ends_with("names `../elsewhere`, expected `step-N`"), "{error}");
    }
}
