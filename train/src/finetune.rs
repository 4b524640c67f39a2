//! The finetune stage: a trained Flamingo learns one task from a corpus of its own (paper, appendix
//! B.2.2).
//!
//! The language model stays frozen; resampler, gated cross-attention and, as a rule, the vision encoder
//! are trained at a small learning rate, on larger images than before: 480 pixels in the paper. A vision
//! transformer's position embeddings are interpolated for them, an `NFNet` takes any size. Of rows such as
//! "Question: ... Answer: ..." only answers are learned with `learn_after = "Answer:"`.

use std::path::PathBuf;

use flamingo_dataset::{ImageConfig, Tokenizer};
use flamingo_model::{Flamingo, ModelError, TrainedTowers};
use serde::{Deserialize, Serialize};

use crate::command::{Command, Told};
use crate::config_file::ConfigFile;
use crate::ended::Ended;
use crate::error::TrainError;
use crate::flamingo::{Joining, MEASURES, TowerWeights, check_attend, continued, launch_joined};
use crate::grid;
use crate::joined::Beginning;
use crate::preprocessor;
use crate::run_folder::{self, RunFolder, run_of};
use crate::run_image::{image_of_run, is_run, require_same_image};
use crate::run_tokenizer::{read_tokenizer, same_tokenizer};
use crate::setup::until_done;
use crate::trouble::Trouble;

/// `[model]` of this stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinetuneModel {
    /// Run of the Flamingo stage or of this one, a checkpoint of it, or a folder with such a model; its
    /// tokenizer is used. Images must have its colours, which a folder knows where it has a
    /// `preprocessor_config.json`, as `export` writes it.
    pub from: String,
    /// What becomes of its vision encoder: `fine-tuned` or `frozen`. Paper: fine-tuned.
    #[serde(default = "fine_tuned")]
    pub vision_weights: TowerWeights,
}

fn fine_tuned() -> TowerWeights {
    TowerWeights::FineTuned
}

/// Trains, or goes on; or says what else was asked for.
///
/// # Errors
/// When the config, a corpus, the model or the run folder is not right, the loss is no longer a number, a
/// frozen weight changes, or the disk fails.
pub fn run(command: &Command) -> Result<Told, TrainError> {
    grid::run(command, |command, file| {
        until_done(command, |command, troubles| attempt(command, file, troubles))
    })
}

fn attempt(
    command: &Command,
    file: &ConfigFile<FinetuneModel>,
    troubles: Vec<Trouble>,
) -> Result<Ended, TrainError> {
    file.require_images(|images| images >= 1, "at least 1")?;
    file.require_no_tokenizer("model.from")?;
    file.require_measures(&MEASURES)?;
    let image = file.image()?;
    let weights = file.config.model.vision_weights;
    let (known, expected) = (weights != TowerWeights::FromScratch, "fine-tuned or frozen");
    file.require(known, "model.vision_weights", &"from-scratch", expected)?;
    let trained = TrainedTowers { vision: weights == TowerWeights::FineTuned, language: false };
    if trained.vision {
        file.require_no_feature_cache()?;
    }
    command.require_tasks(file)?;
    let folder = command.check_folder(file)?;
    let (flamingo, tokenizer) = model(command, file, &folder, image, trained)?;
    check_attend(file, &flamingo.config().cross_attention)?;
    let joining = Joining {
        flamingo,
        tokenizer,
        trained,
        beginning: Beginning::Trained,
        vocabulary: "model.from",
    };
    launch_joined(command, file, folder, joining, troubles)
}

/// The model of the run's checkpoint, or the one to start from, and its tokenizer.
fn model(
    command: &Command,
    file: &ConfigFile<FinetuneModel>,
    folder: &RunFolder,
    image: &ImageConfig,
    trained: TrainedTowers,
) -> Result<(Flamingo, Tokenizer), TrainError> {
    if let Some(checkpoint) = &folder.checkpoint {
        return Ok((continued(checkpoint, trained)?, same_tokenizer(folder, checkpoint)?));
    }
    let from = PathBuf::from(command.locate(&file.config.model.from));
    let tokenizer = if is_run(&from) {
        let run = run_of(&from);
        let (was, path) = image_of_run(&run)?;
        // Larger images are what this is for; what becomes of their colours must be the same.
        let resized = ImageConfig { size: was.size, ..image.clone() };
        require_same_image(file, &resized, &was, &path)?;
        read_tokenizer(&run_folder::tokenizer(&run))?
    } else {
        preprocessor::require_as_known(file, image, &from)?;
        read_tokenizer(&from)?
    };
    let flamingo = Flamingo::load_to_train_at(&from, image.size, trained);
    let flamingo = flamingo.map_err(|error| match error {
        ModelError::Config { field, expected, .. } if field.starts_with("vision") => {
            TrainError::ConfigValue {
                path: file.path.clone(),
                key: "image.size".to_owned(),
                value: image.size.to_string(),
                expected: format!("a size for which the model's `{field}` is {expected}"),
            }
        }
        other => TrainError::model("load")(other),
    })?;
    Ok((flamingo, tokenizer))
}
