//! The folder of a run: whether it may be started or continued, and the files that stand in it from the start.
//!
//! Nothing is written before the whole set-up of a run has succeeded, so a wrong config leaves no folder behind.

use std::path::{Path, PathBuf};

use toml::Table;

use crate::checkpoint::Checkpoint;
use crate::config_file::first_difference;
use crate::error::TrainError;
use crate::files;

/// Name of the effective config in a run folder.
pub const CONFIG: &str = "config.toml";

/// Keys that may change when a run is continued: they say how long it goes, not what it computes.
const MAY_CHANGE: [&str; 3] = ["steps", "checkpoint_every", "keep_last"];

/// What to do with a run folder that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It must not be there.
    New,
    /// Go on from its last checkpoint; start if there is none.
    Resume,
}

/// A run folder that may be used.
#[derive(Debug)]
pub struct RunFolder {
    /// Where it is, or will be.
    pub path: PathBuf,
    /// Where to go on.
    pub checkpoint: Option<Checkpoint>,
    config: String,
}

impl RunFolder {
    /// Decides whether a run with this effective config may use the folder. Only reads.
    ///
    /// # Errors
    /// When the folder exists and is not to be continued, or was started with another config.
    pub fn check(
        path: &Path,
        start: Start,
        config_path: &Path,
        config: String,
    ) -> Result<Self, TrainError> {
        if start == Start::New && path.exists() {
            return Err(TrainError::RunExists { path: path.to_path_buf() });
        }
        require_same_config(path, config_path, &config)?;
        let checkpoint = Checkpoint::latest(path)?;
        Ok(Self { path: path.to_path_buf(), checkpoint, config })
    }

    /// Updates that are done.
    pub fn step(&self) -> u64 {
        self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.state.step)
    }

    /// Makes the folder and writes the effective config.
    ///
    /// # Errors
    /// When the disk cannot be written.
    pub fn create(&self) -> Result<(), TrainError> {
        std::fs::create_dir_all(&self.path).map_err(TrainError::file("create", &self.path))?;
        files::replace(&self.path.join(CONFIG), self.config.as_bytes())?;
        files::sync_parent(&self.path)
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

fn require_same_config(run: &Path, config_path: &Path, config: &str) -> Result<(), TrainError> {
    let path = run.join(CONFIG);
    if !path.exists() {
        return Ok(());
    }
    let was = std::fs::read_to_string(&path).map_err(TrainError::file("read", &path))?;
    match first_difference(&lasting(&path, &was)?, &lasting(config_path, config)?) {
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

/// A config without the keys that may change.
fn lasting(path: &Path, text: &str) -> Result<Table, TrainError> {
    let mut table: Table = toml::from_str(text).map_err(|error| TrainError::ConfigParse {
        path: path.to_path_buf(),
        line: None,
        message: error.message().to_owned(),
    })?;
    table.retain(|key, _| !MAY_CHANGE.contains(&key));
    Ok(table)
}
