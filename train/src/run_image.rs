//! How images became pixels in another run, which the model that it made knows no others than.

use std::path::{Path, PathBuf};

use flamingo_dataset::ImageConfig;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::Table;

use crate::config_file::{ConfigFile, parse_error};
use crate::difference::first_difference;
use crate::error::TrainError;
use crate::run_folder::{self, run_of};

/// Whether a folder is a run of ours or a checkpoint of one.
pub(crate) fn is_run(folder: &Path) -> bool {
    run_of(folder).join(run_folder::CONFIG).is_file()
}

/// What is read of the config of another run.
#[derive(Deserialize)]
struct RunWithImages {
    image: ImageConfig,
}

/// How images became pixels in another run, and the config that says so.
///
/// # Errors
/// When its config cannot be read.
pub(crate) fn image_of_run(run: &Path) -> Result<(ImageConfig, PathBuf), TrainError> {
    let path = run.join(run_folder::CONFIG);
    let text = std::fs::read_to_string(&path).map_err(TrainError::file("read", &path))?;
    let run: RunWithImages = toml::from_str(&text).map_err(|e| parse_error(&path, &text, &e))?;
    Ok((run.image, path))
}

/// Fails unless images become pixels as they `was` for the vision encoder, by the config at `path`: it
/// knows no others.
///
/// # Errors
/// When a key differs.
pub(crate) fn require_same_image<M: DeserializeOwned + Serialize>(
    file: &ConfigFile<M>,
    image: &ImageConfig,
    was: &ImageConfig,
    path: &Path,
) -> Result<(), TrainError> {
    match first_difference(&table(was), &table(image)) {
        None => Ok(()),
        Some((key, was, now)) => Err(TrainError::ConfigValue {
            path: file.path.clone(),
            key: format!("image.{key}"),
            value: now,
            expected: format!("{was}, as in {}", path.display()),
        }),
    }
}

fn table(image: &ImageConfig) -> Table {
    Table::try_from(image).expect("a config holds only numbers, texts and lists")
}
