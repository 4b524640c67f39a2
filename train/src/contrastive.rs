//! The contrastive stage: a vision encoder and a text encoder that match images with their captions
//! (paper, appendix B.1.3). Only the vision encoder is used further on.

use std::collections::BTreeMap;
use std::path::Path;

use flamingo_dataset::{Batch, CorpusKind};
use flamingo_model::{
    Clip, ClipConfig, Gradients, LanguageConfig, LossTerms, ModelError, Pool, Snapshot, Spare,
    Trainable, VisionConfig,
};
use serde::{Deserialize, Serialize};

use crate::config::BatchesDivide;
use crate::config_file::ConfigFile;
use crate::error::TrainError;
use crate::inputs;
use crate::setup::{Command, Prepared, Told, launch, open_corpora, own_tokenizer, until_done};
use crate::trainer::{Ended, Stage, observe};
use crate::trouble::Trouble;

/// `[model]` of this stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContrastiveModel {
    /// Width of the space in which images and captions meet. Paper: 1376.
    pub embedding: usize,
    /// Share of the target that is spread over all captions or images. Paper: 0.1.
    pub label_smoothing: f32,
    /// What stands for a whole image and a whole caption; the paper's means if not given.
    #[serde(default)]
    pub pool: Pool,
    /// The vision encoder.
    pub vision: VisionConfig,
    /// The text encoder.
    pub text: LanguageConfig,
}

/// The model under training.
struct Contrastive {
    clip: Clip,
    label_smoothing: f32,
}

/// Trains, or goes on; or says what else was asked for.
///
/// # Errors
/// When the config, a corpus or the run folder is not right, the loss is no longer a number, or the
/// disk fails.
pub fn run(command: &Command) -> Result<Told, TrainError> {
    let file = command.read_config()?;
    until_done(command, |command, troubles| attempt(command, &file, troubles))
}

fn attempt(
    command: &Command,
    file: &ConfigFile<ContrastiveModel>,
    troubles: Vec<Trouble>,
) -> Result<Ended, TrainError> {
    file.require_no_feature_cache()?;
    file.require_nothing_of_flamingo()?;
    file.require_whole_batches()?;
    file.require_no_z_loss()?;
    file.require_images(|images| images == 1, "1")?;
    for entry in &file.config.data {
        let key = format!("data.{}.pack", entry.name);
        file.require(entry.pack == 1, key, &entry.pack, "1: a caption is matched by itself")?;
    }
    let image = file.image()?;
    let model = &file.config.model;
    let (size, expected) = (model.vision.image_size(), format!("{}, as image.size", image.size));
    file.require(size == image.size, "model.vision.image_size", &size, &expected)?;
    file.require_context(model.text.context)?;
    check_model(file)?;

    let folder = command.check_folder(file)?;
    let is_pairs = |kind| kind == CorpusKind::ImageText;
    let corpora = open_corpora(command, &file.config, image, is_pairs, "image_text")?;
    let tokenizer = own_tokenizer(command, file.tokenizer()?, &folder, &corpora)?;
    file.require_vocabulary("model.text.vocabulary", model.text.vocabulary, &tokenizer)?;

    let mut clip = match &folder.checkpoint {
        Some(checkpoint) => Clip::load(&checkpoint.folder).map_err(TrainError::model("load"))?,
        None => {
            Clip::new(&clip_config(model), file.config.seed).map_err(TrainError::model("build"))?
        }
    };
    clip.set_recompute(file.config.recompute);
    let device = command.place(&mut clip)?;
    let mut stage = Contrastive { clip, label_smoothing: model.label_smoothing };
    let prepared = Prepared { command, file, folder, corpora, tokenizer, device, troubles };
    launch(prepared, &mut stage)
}

fn check_model(file: &ConfigFile<ContrastiveModel>) -> Result<(), TrainError> {
    let model = &file.config.model;
    file.require_model(clip_config(model).validate())?;
    let (smoothing, key) = (model.label_smoothing, "model.label_smoothing");
    file.require((0.0..1.0).contains(&smoothing), key, &smoothing, "0 to below 1")
}

fn clip_config(model: &ContrastiveModel) -> ClipConfig {
    let ContrastiveModel { embedding, vision, text, .. } = model.clone();
    ClipConfig { vision, text, embedding, pool: model.pool }
}

impl Stage for Contrastive {
    fn loss(&self, batch: &Batch) -> Result<f32, TrainError> {
        self.clip
            .contrastive_loss(&inputs::pairs(batch)?, self.label_smoothing)
            .map_err(TrainError::model("run"))
    }

    fn step(
        &self,
        batch: &Batch,
        weight: f32,
        gradients: Gradients,
    ) -> Result<(LossTerms, Gradients), TrainError> {
        let (pairs, smoothing) = (inputs::pairs(batch)?, self.label_smoothing);
        let step = self.clip.contrastive_step(&pairs, smoothing, weight, gradients);
        let (nll, gradients) = step.map_err(TrainError::model("run"))?;
        Ok((LossTerms { nll, z: None }, gradients))
    }

    /// Pairs: each is matched with all others.
    fn n_terms(&self, batch: &Batch) -> u64 {
        batch.size as u64
    }

    fn batches_divide(&self) -> BatchesDivide {
        BatchesDivide::No
    }

    fn model(&self) -> &dyn Trainable {
        &self.clip
    }

    fn model_mut(&mut self) -> &mut dyn Trainable {
        &mut self.clip
    }

    fn snapshot(&self, spare: &Spare) -> Result<Snapshot, ModelError> {
        self.clip.snapshot(spare)
    }

    fn save(&self, folder: &Path) -> Result<(), ModelError> {
        self.clip.save(folder)
    }

    /// The learnt inverse temperature.
    fn observe(&self) -> BTreeMap<String, f64> {
        observe(&self.clip, |name| name == "log_beta", "beta", f64::exp)
    }
}
