//! The Flamingo stage: a frozen vision encoder and a frozen language model, joined by a resampler and gated
//! cross-attention that learn from a mixture of interleaved pages, image-text pairs and clips (paper, section 2).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use flamingo_dataset::Batch;
use flamingo_model::{
    CrossAttentionConfig, Flamingo, FlamingoConfig, Gradients, ModelError, ResamplerConfig,
    Trainable,
};
use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoint;
use crate::error::TrainError;
use crate::inputs;
use crate::run_folder;
use crate::setup::{Command, Prepared, launch, open_corpora, read_tokenizer};
use crate::trainer::{Stage, observe};

/// `[model]` of this stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlamingoModel {
    /// Run of the contrastive stage; its vision encoder is frozen.
    pub vision: String,
    /// Run of the language stage; its model is frozen, its tokenizer is used.
    pub language: String,
    /// The resampler.
    pub resampler: ResamplerConfig,
    /// The gated cross-attention.
    pub cross_attention: CrossAttentionConfig,
}

/// The model under training.
struct Joined(Flamingo);

/// Trains, or goes on.
///
/// # Errors
/// When the config, a corpus, one of the two runs or the run folder is not right, the loss is no longer a number, a
/// frozen weight changes, or the disk fails.
pub fn run(command: &Command) -> Result<(), TrainError> {
    let file = command.read_config::<FlamingoModel>()?;
    file.require_images(|images| images >= 1, "at least 1")?;
    let image = file.image()?;

    let folder = command.check_folder(file.to_toml())?;
    let corpora = open_corpora(command, &file.config.data, |_| true, "any")?;
    let model = &file.config.model;
    let (flamingo, tokenizer) = if let Some(checkpoint) = &folder.checkpoint {
        (continued(checkpoint)?, folder.tokenizer())
    } else {
        let language = PathBuf::from(command.locate(&model.language));
        let vision = PathBuf::from(command.locate(&model.vision));
        let flamingo = fresh(model, &vision, &language, file.config.seed);
        (flamingo.map_err(TrainError::model("build"))?, run_folder::tokenizer(&language))
    };
    let size = flamingo.config().vision.image_size;
    let expected = format!("{size}, as the vision encoder's image_size");
    file.require(image.size == size, "image.size", &image.size, &expected)?;
    file.require_context(flamingo.config().language.context)?;

    let prepared = Prepared {
        command,
        file: &file,
        folder: &folder,
        corpora: &corpora,
        tokenizer: read_tokenizer(&tokenizer)?,
        image,
    };
    launch(prepared, &mut Joined(flamingo))
}

fn fresh(
    model: &FlamingoModel,
    vision: &Path,
    language: &Path,
    seed: u64,
) -> Result<Flamingo, ModelError> {
    let FlamingoModel { resampler, cross_attention, .. } = model.clone();
    let config = FlamingoConfig::on_towers(vision, language, resampler, cross_attention)?;
    Flamingo::new(&config, vision, language, seed)
}

/// The model of a checkpoint, after checking that its frozen half is what the run began with.
fn continued(checkpoint: &Checkpoint) -> Result<Flamingo, TrainError> {
    let flamingo = Flamingo::load(&checkpoint.folder).map_err(TrainError::model("load"))?;
    let now = flamingo.frozen_sha256();
    match &checkpoint.state.frozen_sha256 {
        Some(was) if *was != now => Err(TrainError::NotTheSame {
            path: checkpoint.folder.clone(),
            what: "the digest of the frozen weights".to_owned(),
            was: was.clone(),
            now,
        }),
        _ => Ok(flamingo),
    }
}

impl Stage for Joined {
    fn loss(&self, batch: &Batch) -> Result<f32, TrainError> {
        self.0.loss_only(&inputs::inputs(batch)).map_err(TrainError::model("run"))
    }

    fn step(
        &self,
        batch: &Batch,
        weight: f32,
        gradients: Gradients,
    ) -> Result<(f32, Gradients), TrainError> {
        self.0.step(&inputs::inputs(batch), weight, gradients).map_err(TrainError::model("run"))
    }

    fn model(&self) -> &dyn Trainable {
        &self.0
    }

    fn model_mut(&mut self) -> &mut dyn Trainable {
        &mut self.0
    }

    fn save(&self, folder: &Path) -> Result<(), ModelError> {
        self.0.save(folder)
    }

    /// How far each gate is open, `|tanh|` (paper, figure 6).
    fn observe(&self) -> BTreeMap<String, f64> {
        observe(&self.0, |name| name.ends_with("_gate"), "gate", |alpha| alpha.tanh().abs())
    }

    fn frozen_sha256(&self) -> Option<String> {
        Some(self.0.frozen_sha256())
    }

    /// With closed gates the model must be its language model, to the last bit, whatever the images show.
    fn check_fresh(&self, first: &Batch) -> Result<Option<String>, TrainError> {
        let flamingo = self.loss(first)?;
        let language = self.0.language_model().loss_only(&inputs::text(first));
        let language = language.map_err(TrainError::model("run"))?;
        if flamingo.to_bits() != language.to_bits() {
            return Err(TrainError::GatesLeak { flamingo, language });
        }
        Ok(Some(format!("with gates at 0 the loss equals the language model's, {language}")))
    }
}
