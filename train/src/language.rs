//! The language stage: a decoder on the texts of any corpora. Marks of images stay in the text, so
//! that the model knows them before the Flamingo stage freezes it; pixels are never read.

use std::path::Path;

use flamingo_dataset::{Batch, Fit, ImageConfig};
use flamingo_model::{
    Gradients, LanguageConfig, LanguageModel, LossTerms, ModelError, Objective, Snapshot, Spare,
    Trainable,
};

use crate::command::{Command, Told};
use crate::config_file::ConfigFile;
use crate::corpora::open_corpora;
use crate::ended::Ended;
use crate::error::TrainError;
use crate::flop;
use crate::grid;
use crate::inputs;
use crate::run_tokenizer::own_tokenizer;
use crate::setup::{Prepared, launch, until_done};
use crate::stage::Stage;
use crate::text_loss::TextLoss;
use crate::trouble::Trouble;
use crate::validation::{self, HeldOut, Measures};

/// The model under training.
pub(crate) struct Language {
    pub(crate) model: LanguageModel,
    /// Weight of the term beside the loss.
    pub(crate) z_loss: f32,
}

/// Trains, or goes on; or says what else was asked for.
///
/// # Errors
/// When the config, a corpus or the run folder is not right, the loss is no longer a number, or the
/// disk fails.
pub fn run(command: &Command) -> Result<Told, TrainError> {
    grid::run(command, |command, file| {
        until_done(command, |command, troubles| attempt(command, file, troubles))
    })
}

fn attempt(
    command: &Command,
    file: &ConfigFile<LanguageConfig>,
    troubles: Vec<Trouble>,
) -> Result<Ended, TrainError> {
    file.require_no_feature_cache()?;
    file.require_nothing_of_flamingo()?;
    file.require_no_image()?;
    file.require_images(|images| images == 0, "0")?;
    file.require_measures(&validation::OF_TEXTS)?;
    let model = &file.config.model;
    file.require_model(model.validate())?;
    file.require_context(model.context)?;

    let folder = command.check_folder(file)?;
    let corpora = open_corpora(command, &file.config, &no_image(), |_| true, "any")?;
    let tokenizer = own_tokenizer(command, file.tokenizer()?, &folder, &corpora)?;
    file.require_vocabulary("model.vocabulary", model.vocabulary, &tokenizer)?;

    let mut language = match &folder.checkpoint {
        Some(checkpoint) => {
            LanguageModel::load(&checkpoint.folder).map_err(TrainError::model("load"))?
        }
        None => LanguageModel::new(model, file.config.seed).map_err(TrainError::model("build"))?,
    };
    language.set_recompute(file.config.recompute);
    let device = command.place(&mut language, &[])?;
    let prepared = Prepared { command, file, folder, corpora, tokenizer, device, troubles };
    launch(
        prepared,
        &mut Language { model: language, z_loss: file.config.z_loss.unwrap_or_default() },
    )
}

/// What the loader is told of images, of which it reads none.
fn no_image() -> ImageConfig {
    ImageConfig { size: 1, fit: Fit::Squash, mean: [0.0; 3], std: [1.0; 3] }
}

impl Stage for Language {
    fn loss(&self, batch: &Batch) -> Result<f32, TrainError> {
        self.model.loss_only(&inputs::text(batch)).map_err(TrainError::model("run"))
    }

    fn step(
        &self,
        batch: &Batch,
        weight: f32,
        gradients: Gradients,
    ) -> Result<(LossTerms, Gradients), TrainError> {
        let objective = Objective { scale: weight, z_loss: self.z_loss };
        let step = self.model.step_on(&inputs::text(batch), objective, gradients);
        step.map_err(TrainError::model("run"))
    }

    fn validate(&self, held_out: &HeldOut) -> Result<Measures, TrainError> {
        let mut loss = TextLoss::default();
        held_out.each_batch(|batch| {
            let nll = self.model.nll(&inputs::text(batch)).map_err(TrainError::model("run"))?;
            loss.add(batch, &nll, held_out.tokenizer());
            Ok(())
        })?;
        Ok(loss.measures())
    }

    fn flop(&self, batch: &Batch) -> Option<f64> {
        Some(flop::of_language(&self.model, inputs::computed_tokens(batch)))
    }

    fn activation_bytes(&self, batch: &Batch) -> u64 {
        self.model.activation_bytes(batch.tokens.len())
    }

    fn n_images(&self, _batch: &Batch) -> u64 {
        0
    }

    fn model(&self) -> &dyn Trainable {
        &self.model
    }

    fn model_mut(&mut self) -> &mut dyn Trainable {
        &mut self.model
    }

    fn snapshot(&self, spare: &Spare) -> Result<Snapshot, ModelError> {
        self.model.snapshot(spare)
    }

    fn save(&self, folder: &Path) -> Result<(), ModelError> {
        self.model.save(folder)
    }
}
