//! The folder of a run: whether it may be started or continued, and the files that stand in it from
//! the start.
//!
//! A new folder is written only after the whole set-up of a run has succeeded, so a wrong config
//! leaves none behind. While a process trains it holds `lock`, which ends with the process.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::checkpoint::{self, Checkpoint};
use crate::collective::Collective;
use crate::config_file::{ConfigFile, parse_error};
use crate::difference::first_difference;
use crate::error::TrainError;
use crate::files;
use crate::schedule::Decay;

/// Name of the effective config in a run folder.
pub const CONFIG: &str = "config.toml";

/// Name of the file that says where a run was trained.
const PLACE: &str = "run.json";

/// Name of the file that the training process holds locked.
const LOCK: &str = "lock";

/// Keys that may change when a run is continued: they say what is kept or looked at, not what comes
/// out; or what is done about steps that go wrong from then on.
const MAY_CHANGE: &[&str] = &[
    "accounting_every",
    "blindness_every",
    "checkpoint_every",
    "disk_cache",
    "eval_program",
    "feature_cache",
    FEW_SHOT,
    "gates_every",
    "guard",
    "hardware",
    "keep_every",
    "keep_last",
    "recompute",
    VALIDATION,
];

/// Keys of a dataset that may: rows that spoil a run are left out from then on, and a run goes on where
/// there is less memory.
const MAY_CHANGE_OF_DATA: [&str; 5] =
    ["batch", "micro_batches", "skip_rows", "corrupt_share_max", PIXELS];

/// How pixels leave a loader, of a validation as well. Numbers are the same to the last bit.
const PIXELS: &str = "pixels";

/// The key that may change as well where the learning rate does not depend on it.
const STEPS: &str = "steps";

/// Tasks that checkpoints are put to. Which weights of them may not change.
const FEW_SHOT: &str = "few_shot";

/// A key that may change only as long as no [`EARLY_STOP`] depends on it.
const VALIDATION: &str = "validation";
const EARLY_STOP: &str = "early_stop";

/// What to do with a run folder that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It must not be there.
    New,
    /// Go on from its last checkpoint; start if there is none.
    Resume,
    /// Look at it as it was before a step, from the newest checkpoint before that or from the start.
    Before(u64),
}

/// A stage of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StageName {
    /// A vision encoder.
    Contrastive,
    /// A language model.
    Language,
    /// What joins them.
    Flamingo,
    /// A task for what is joined.
    Finetune,
}

/// The stage that a run is of: each has a key of `[model]` that the others lack.
///
/// # Errors
/// When the folder is not a run.
pub fn stage_of(run: &Path) -> Result<StageName, TrainError> {
    let path = run.join(CONFIG);
    let not_a_run = || TrainError::NotARun { path: run.to_path_buf() };
    let text = std::fs::read_to_string(&path).map_err(|_| not_a_run())?;
    let table: Table = toml::from_str(&text).map_err(|e| parse_error(&path, &text, &e))?;
    let has = |key| table.get("model").is_some_and(|model| model.get(key).is_some());
    [
        ("resampler", StageName::Flamingo),
        ("embedding", StageName::Contrastive),
        ("vocabulary", StageName::Language),
        ("from", StageName::Finetune),
    ]
    .into_iter()
    .find_map(|(key, stage)| has(key).then_some(stage))
    .ok_or_else(not_a_run)
}

/// What a run knows of the place that it was last trained in.
#[derive(Debug, Serialize, Deserialize)]
struct Place {
    /// The folder that relative paths in the config start from.
    root: PathBuf,
}

/// The folder that relative paths in a run's config start from; none if the run does not know it.
///
/// # Errors
/// When what it knows cannot be read.
pub fn root_of(run: &Path) -> Result<Option<PathBuf>, TrainError> {
    let path = run.join(PLACE);
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).map_err(TrainError::file("read", &path))?;
    let place: Result<Place, _> = serde_json::from_str(&text);
    let place = place.map_err(|source| TrainError::Broken {
        path,
        expected: "where a run was trained",
        source,
    })?;
    Ok(Some(place.root))
}

/// What a process does with a run folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It trains there, or the first of its ranks.
    Writes,
    /// Another rank does.
    Reads,
}

impl Role {
    /// That of a rank.
    pub fn of(ranks: &dyn Collective) -> Self {
        if ranks.is_first() { Self::Writes } else { Self::Reads }
    }
}

/// A run folder that may be used.
#[derive(Debug)]
pub struct RunFolder {
    /// Where it is, or will be.
    pub path: PathBuf,
    /// Where to go on.
    pub checkpoint: Option<Checkpoint>,
    /// The effective config.
    config: String,
    /// Held from the moment that the folder is a run.
    lock: Option<File>,
}

impl RunFolder {
    /// Decides whether a run with this config may use the folder. Locks it if it is a run already
    /// and this process is to write there.
    ///
    /// # Errors
    /// When the folder exists and is not to be continued, is not a run, is in use, or was started
    /// with another config.
    pub fn check<M: DeserializeOwned + Serialize>(
        path: &Path,
        start: Start,
        file: &ConfigFile<M>,
        role: Role,
    ) -> Result<Self, TrainError> {
        if start == Start::New && path.exists() {
            return Err(TrainError::RunExists { path: path.to_path_buf() });
        }
        let config = file.to_toml();
        if let Start::Before(step) = start {
            let checkpoint = Checkpoint::before(path, step)?;
            return Ok(Self { path: path.to_path_buf(), checkpoint, config, lock: None });
        }
        if !path.join(CONFIG).is_file() {
            require_blank(path)?;
            return Ok(Self { path: path.to_path_buf(), checkpoint: None, config, lock: None });
        }
        let lock = if role == Role::Writes { Some(lock(path)?) } else { None };
        require_same_config(path, &file.path, &config, file.config.optimizer.schedule)?;
        let checkpoint = Checkpoint::latest(path)?;
        Ok(Self { path: path.to_path_buf(), checkpoint, config, lock })
    }

    /// Updates that are done.
    pub fn step(&self) -> u64 {
        self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.state.step)
    }

    /// Makes the folder, locks it, writes the effective config and `root`, which its relative paths start
    /// from, and clears what a crash left.
    ///
    /// # Errors
    /// When another process trains in the folder by now, or the disk cannot be written.
    pub fn create(&mut self, root: Option<&Path>) -> Result<(), TrainError> {
        std::fs::create_dir_all(&self.path).map_err(TrainError::file("create", &self.path))?;
        if self.lock.is_none() {
            self.lock = Some(lock(&self.path)?);
            // Another process may have made a run of it since the check.
            if self.path.join(CONFIG).exists() {
                return Err(TrainError::RunExists { path: self.path.clone() });
            }
        }
        files::replace(&self.path.join(CONFIG), self.config.as_bytes())?;
        let root = root.unwrap_or(Path::new("."));
        let root = root.canonicalize().map_err(TrainError::file("find", root))?;
        // Paths that are not text would not come back; the user gives them again.
        if let Ok(place) = serde_json::to_vec_pretty(&Place { root }) {
            files::replace(&self.path.join(PLACE), &place)?;
        }
        files::sync_parent(&self.path)?;
        let best = self.checkpoint.as_ref().and_then(|checkpoint| checkpoint.state.best_step());
        checkpoint::point_best(&self.path, best)?;
        checkpoint::sweep(&self.path)
    }

    /// The file with the tokenizer.
    pub fn tokenizer(&self) -> PathBuf {
        tokenizer(&self.path)
    }
}

/// The file with the tokenizer of a run.
pub fn tokenizer(run: &Path) -> PathBuf {
    run.join("tokenizer.json")
}

/// The run that a path leads to: itself, or the run that it is a checkpoint of.
pub fn run_of(path: &Path) -> PathBuf {
    // A checkpoint is RUN/checkpoints/step-N, and its averaged model RUN/checkpoints/step-N/ema.
    let mut candidates =
        [Some(path), path.ancestors().nth(2), path.ancestors().nth(3)].into_iter().flatten();
    let run = candidates.find(|run| run.join(CONFIG).is_file());
    run.unwrap_or(path).to_path_buf()
}

/// Fails unless the folder is absent or holds nothing but what [`RunFolder::create`] begins with.
fn require_blank(path: &Path) -> Result<(), TrainError> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotADirectory => {
            return Err(TrainError::NotARun { path: path.to_path_buf() });
        }
        Err(error) => return Err(TrainError::file("read", path)(error)),
    };
    let temporary = files::temporary(Path::new(CONFIG));
    for entry in entries {
        let name = entry.map_err(TrainError::file("read", path))?.file_name();
        if name != LOCK && name != temporary.as_os_str() {
            return Err(TrainError::NotARun { path: path.to_path_buf() });
        }
    }
    Ok(())
}

/// Tries at the lock, and the time between two. A process that was killed keeps it until the system has taken
/// its memory back, which takes seconds where that is much; a scheduler starts the next one at once.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(200);

fn lock(run: &Path) -> Result<File, TrainError> {
    let path = run.join(LOCK);
    let file = OpenOptions::new().create(true).append(true).open(&path);
    let file = file.map_err(TrainError::file("open", &path))?;
    for attempt in 1.. {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if attempt < LOCK_TRIES => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::WouldBlock) => {
                return Err(TrainError::InUse { path: run.to_path_buf() });
            }
            Err(TryLockError::Error(error)) => return Err(TrainError::file("lock", &path)(error)),
        }
    }
    Ok(file)
}

fn require_same_config(
    run: &Path,
    config_path: &Path,
    config: &str,
    decay: Decay,
) -> Result<(), TrainError> {
    let path = run.join(CONFIG);
    let was = std::fs::read_to_string(&path).map_err(TrainError::file("read", &path))?;
    let [of_was, of_now] = [(&*path, &*was), (config_path, config)].map(|(p, t)| table(p, t));
    let (was, now) = (of_was?, of_now?);
    let weights = weights_used(&was, &now);
    let lasting = first_difference(&lasting(was, decay), &lasting(now, decay));
    match lasting.or(weights) {
        None => Ok(()),
        Some((key, was, now)) => Err(TrainError::ConfigChanged {
            config: config_path.to_path_buf(),
            run: run.to_path_buf(),
            key,
            was,
            now,
        }),
    }
}

fn table(path: &Path, text: &str) -> Result<Table, TrainError> {
    toml::from_str(text).map_err(|error| TrainError::ConfigParse {
        path: path.to_path_buf(),
        line: None,
        message: error.message().to_owned(),
    })
}

/// Where a validation or a task looks at other weights than before: the key and both values.
fn weights_used(was: &Table, now: &Table) -> Option<(String, String, String)> {
    if let (Some(was), Some(now)) = (was.get(VALIDATION), now.get(VALIDATION))
        && let (was, now) = (weights_of(was), weights_of(now))
        && was != now
    {
        // Its figures would not tell.
        return Some((format!("{VALIDATION}.weights"), was, now));
    }
    let (was, now) = (tasks(was), tasks(now));
    // One that was there with other weights, and is no more: a task may be left out, or given once for each.
    now.difference(&was).find_map(|(task, weights)| {
        let left = was.difference(&now).find(|(other, _)| other == task);
        let key = format!("{FEW_SHOT}.{task}.weights");
        left.map(|(_, was)| (key, was.clone(), weights.clone()))
    })
}

/// The weights that a validation or a task looks at, as they are written.
fn weights_of(section: &Value) -> String {
    format!("{:?}", section.get("weights").and_then(Value::as_str).unwrap_or("raw"))
}

/// The tasks of a config, and the weights that each looks at.
fn tasks(config: &Table) -> BTreeSet<(String, String)> {
    let all = config.get(FEW_SHOT).and_then(Value::as_array);
    let one = |entry: &Value| {
        let task = entry.get("task").and_then(Value::as_str).unwrap_or_default();
        (task.to_owned(), weights_of(entry))
    };
    all.into_iter().flatten().map(one).collect()
}

/// A config without the keys that may change.
fn lasting(mut table: Table, decay: Decay) -> Table {
    let is_decisive = |key: &str| key == VALIDATION && table.contains_key(EARLY_STOP);
    let may_change = |key: &str| {
        MAY_CHANGE.contains(&key) && !is_decisive(key) || decay.is_endless() && key == STEPS
    };
    let lasting = table.keys().filter(|key| !may_change(key)).cloned();
    let lasting: BTreeSet<String> = lasting.collect();
    table.retain(|key, _| lasting.contains(key));
    for entry in table.get_mut("data").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(entry) = entry.as_table_mut() {
            entry.retain(|key, _| !MAY_CHANGE_OF_DATA.contains(&key));
        }
    }
    let held_out = table.get_mut(VALIDATION).and_then(|validation| validation.get_mut("data"));
    for entry in held_out.and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(entry) = entry.as_table_mut() {
            entry.remove(PIXELS);
        }
    }
    table
}
