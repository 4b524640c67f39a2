//! A command of a stage: where its config, corpora and run folder are, who runs it, and what is wanted.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use flamingo_model::{Device, ModelError, Trainable};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::collective::Collective;
use crate::config::RunConfig;
use crate::config_file::ConfigFile;
use crate::device::{DeviceArgs, Freezable, what_fits};
use crate::error::TrainError;
use crate::few_shot::{self, FewShot, FewShotConfig};
use crate::overrides::Override;
use crate::replay;
use crate::run_folder::{Role, RunFolder, Start};

/// A command line, checked for form.
#[derive(Debug, Clone)]
pub struct Command {
    /// Config file.
    pub config: PathBuf,
    /// Folder that relative paths in the config start from; none is the working directory.
    pub root: Option<PathBuf>,
    /// Run folder.
    pub out: PathBuf,
    /// Whether the run folder may be there.
    pub start: Start,
    /// Changes to the config.
    pub overrides: Vec<Override>,
    /// Stop after this step although the config asks for more.
    pub stop_after: Option<u64>,
    /// Where the model runs.
    pub device: DeviceArgs,
    /// Who trains it together.
    pub ranks: Rc<dyn Collective>,
    /// What is wanted of the run.
    pub purpose: Purpose,
}

/// What is wanted of a run that is ready.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Purpose {
    /// That it goes on.
    #[default]
    Train,
    /// To be told what it would be.
    DryRun,
    /// To see one step of it again.
    Replay(replay::Job),
}

impl Purpose {
    /// Whether a step is to be seen again.
    pub(crate) fn is_replay(&self) -> bool {
        matches!(self, Self::Replay(_))
    }
}

/// What a command has to say on standard output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Lines.
    pub text: String,
    /// Whether all is as it should be.
    pub is_right: bool,
}

impl Command {
    /// Where a path of the config leads; URLs stay as they are.
    pub fn locate(&self, path: &str) -> String {
        located(self.root.as_deref(), path)
    }

    /// The program that evaluates checkpoints.
    fn eval_program<M>(&self, config: &RunConfig<M>) -> Result<PathBuf, TrainError> {
        let locate = |path: &PathBuf| PathBuf::from(self.locate(&path.to_string_lossy()));
        few_shot::program(config.eval_program.as_ref().map(locate).as_deref())
    }

    /// Fails unless the program that evaluates knows the tasks of the config, where any are to be evaluated.
    pub(crate) fn require_tasks<M: DeserializeOwned + Serialize>(
        &self,
        file: &ConfigFile<M>,
    ) -> Result<(), TrainError> {
        if self.purpose.is_replay() {
            return Ok(());
        }
        file.require_tasks(&self.eval_program(&file.config)?)
    }

    /// The evaluations of a run.
    pub(crate) fn few_shot<M>(&self, config: &RunConfig<M>) -> Result<FewShot, TrainError> {
        let located = |entry: &FewShotConfig| FewShotConfig {
            annotations: self.locate(&entry.annotations),
            ..entry.clone()
        };
        let tasks = config.few_shot.iter().map(located).collect();
        Ok(FewShot::new(&self.out, self.eval_program(config)?, tasks, self.device))
    }

    /// Reads the config.
    pub(crate) fn read_config<M: DeserializeOwned + Serialize>(
        &self,
    ) -> Result<ConfigFile<M>, TrainError> {
        let file = ConfigFile::read(&self.config, &self.overrides)?;
        file.require_ranks(self.ranks.rank().count)?;
        Ok(file)
    }

    /// Sends a model to the device that it is to be trained on. Some of its towers may be frozen by a key.
    pub(crate) fn place(
        &self,
        model: &mut impl Trainable,
        towers: &[Freezable],
    ) -> Result<Device, TrainError> {
        let device = self.device.open()?;
        device.place(model).map_err(|source| match &source {
            ModelError::NoRoom(no_room) => TrainError::WeightsMemory {
                advice: what_fits(no_room, towers),
                source: Box::new(source),
            },
            _ => TrainError::Model { action: "place", source },
        })?;
        Ok(device)
    }

    /// Decides whether the run folder may be used.
    pub(crate) fn check_folder<M: DeserializeOwned + Serialize>(
        &self,
        file: &ConfigFile<M>,
    ) -> Result<RunFolder, TrainError> {
        let role = Role::of(&*self.ranks);
        let folder = RunFolder::check(&self.out, self.start, file, role)?;
        self.ranks.require_same("the config", &file.to_toml())?;
        self.ranks.require_same("the last checkpoint", &folder.step().to_string())?;
        Ok(folder)
    }
}

/// Where a path of a config leads that starts from `root`; URLs stay as they are.
pub(crate) fn located(root: Option<&Path>, path: &str) -> String {
    match root {
        Some(root) if !path.contains("://") => root.join(path).display().to_string(),
        _ => path.to_owned(),
    }
}
