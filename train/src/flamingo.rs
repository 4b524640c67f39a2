//! The Flamingo stage: a vision encoder and a language model, frozen as a rule, joined by a resampler
//! and gated cross-attention that learn from a mixture of interleaved pages, image-text pairs and
//! clips (paper, section 2).

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use flamingo_dataset::{FeatureCache, ImageConfig, Tokenizer};
use flamingo_model::{
    CrossAttentionConfig, Flamingo, FlamingoConfig, MediaAttention, ResamplerConfig, Tower,
    TrainedTowers, VisionConfig,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoint;
use crate::command::{Command, Purpose, Told};
use crate::config::FeatureCacheConfig;
use crate::config_file::ConfigFile;
use crate::corpora::open_corpora;
use crate::device::Freezable;
use crate::ended::Ended;
use crate::error::TrainError;
use crate::flop::Parts;
use crate::grid;
use crate::joined::{Beginning, Joined};
use crate::preprocessor;
use crate::run_folder::{self, RunFolder, run_of};
use crate::run_image::{image_of_run, is_run, require_same_image};
use crate::run_tokenizer::{read_tokenizer, same_tokenizer};
use crate::setup::{Prepared, launch, until_done};
use crate::trouble::Trouble;

/// `[model]` of this stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlamingoModel {
    /// Run of the contrastive stage, or a folder of transformers' or `open_clip`'s CLIP or of timm's
    /// `dm_nfnet`.
    pub vision: String,
    /// What becomes of its vision encoder.
    #[serde(default)]
    pub vision_weights: TowerWeights,
    /// Run of the language stage, or a folder of Hugging Face; its tokenizer is used.
    pub language: String,
    /// What becomes of its model.
    #[serde(default)]
    pub language_weights: TowerWeights,
    /// What becomes of its rows of `<image>` and `<EOC>`, where the rest of it is frozen.
    #[serde(default)]
    pub mark_rows: MarkRows,
    /// The resampler.
    pub resampler: ResamplerConfig,
    /// The gated cross-attention.
    pub cross_attention: CrossAttentionConfig,
}

/// What becomes of the weights of a tower (paper, table 3, row viii).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TowerWeights {
    /// They stay as they are, the paper's choice.
    #[default]
    Frozen,
    /// They are trained with the rest.
    FineTuned,
    /// Fresh ones in their place, of the same shapes, are trained with the rest.
    FromScratch,
}

/// What becomes of the rows of embeddings and head of the marks `<image>` and `<EOC>`, where a frozen
/// language model has them. Rows of marks that it lacks are trained in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MarkRows {
    /// They stay as they are, like the rest.
    #[default]
    Frozen,
    /// They alone are trained, as `OpenFlamingo` does: in a language model of others they mean nothing yet.
    Trained,
}

impl FlamingoModel {
    /// The towers that are trained.
    fn trained(&self) -> TrainedTowers {
        let [vision, language] =
            [self.vision_weights, self.language_weights].map(|w| w != TowerWeights::Frozen);
        TrainedTowers { vision, language }
    }
}

/// What is measured on rows that are not learned from: of texts, and how much more is lost without the
/// own images, in nats per token.
pub(crate) const MEASURES: [&str; 5] =
    ["nll", "perplexity", "bits_per_byte", "blindness_shuffled", "blindness_blank"];

/// The towers, which may be frozen.
const FREEZABLE: [Freezable; 2] = [
    Freezable { name: "vision", key: "model.vision_weights" },
    Freezable { name: "language", key: "model.language_weights" },
];

/// A model that is ready to be trained, and what the rest of the set-up needs to know of it.
pub(crate) struct Joining {
    pub(crate) flamingo: Flamingo,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) trained: TrainedTowers,
    pub(crate) beginning: Beginning,
    /// The key of the config that the vocabulary comes from.
    pub(crate) vocabulary: &'static str,
}

/// Trains, or goes on; or says what else was asked for.
///
/// # Errors
/// When the config, a corpus, one of the two runs or the run folder is not right, the loss is no
/// longer a number, a frozen weight changes, or the disk fails.
pub fn run(command: &Command) -> Result<Told, TrainError> {
    grid::run(command, |command, file| {
        until_done(command, |command, troubles| attempt(command, file, troubles))
    })
}

fn attempt(
    command: &Command,
    file: &ConfigFile<FlamingoModel>,
    troubles: Vec<Trouble>,
) -> Result<Ended, TrainError> {
    check_images(file)?;
    file.require_no_tokenizer("model.language")?;
    file.require_measures(&MEASURES)?;
    let image = file.image()?;
    check_model(file)?;
    command.require_tasks(file)?;

    let folder = command.check_folder(file)?;
    let trained = file.config.model.trained();
    if trained.vision {
        file.require_no_feature_cache()?;
    }
    let (flamingo, tokenizer) = match &folder.checkpoint {
        Some(checkpoint) => (continued(checkpoint, trained)?, same_tokenizer(&folder, checkpoint)?),
        None => fresh(command, file, image)?,
    };
    let (beginning, vocabulary) = (Beginning::LanguageModel, "model.language");
    let joining = Joining { flamingo, tokenizer, trained, beginning, vocabulary };
    launch_joined(command, file, folder, joining, troubles)
}

/// Completes the set-up of a model that is there, and trains.
///
/// # Errors
/// When its rows or corpora do not fit it, and as [`launch`].
pub(crate) fn launch_joined<M: DeserializeOwned + Serialize>(
    command: &Command,
    file: &ConfigFile<M>,
    folder: RunFolder,
    joining: Joining,
    troubles: Vec<Trouble>,
) -> Result<Ended, TrainError> {
    let Joining { mut flamingo, tokenizer, trained, beginning, vocabulary: key } = joining;
    flamingo.set_recompute(file.config.recompute);
    let language = &flamingo.config().language;
    file.require_context(language.context)?;
    let vocabulary = flamingo.config().vocabulary();
    file.require_vocabulary(key, vocabulary, &tokenizer)?;
    let corpora = open_corpora(command, &file.config, file.image()?, |_| true, "any")?;

    let device = command.place(&mut flamingo, &FREEZABLE)?;
    let features = file.config.feature_cache.as_ref();
    let features = features.filter(|_| command.purpose == Purpose::Train);
    let features = features.map(|config| feature_cache(command, config, &flamingo)).transpose()?;
    let parts = Parts::of(flamingo.config())?;
    let prepared = Prepared { command, file, folder, corpora, tokenizer, device, troubles };
    let (features, z_loss) = (features.map(Mutex::new), file.config.z_loss.unwrap_or_default());
    launch(prepared, &mut Joined { flamingo, beginning, features, parts, trained, z_loss })
}

/// The features of the model's vision encoder.
fn feature_cache(
    command: &Command,
    config: &FeatureCacheConfig,
    flamingo: &Flamingo,
) -> Result<FeatureCache, TrainError> {
    let folder = command.locate(&config.folder.to_string_lossy());
    let n_values = flamingo.config().vision.n_feature_values();
    let encoder = flamingo.vision_sha256();
    FeatureCache::open(Path::new(&folder), &encoder, n_values, config.bytes_max)
        .map_err(TrainError::loader)
}

/// A language model that is trained may learn from texts alone beside the mixture (paper, table 10,
/// co-training); to a frozen one such a dataset is a mistake.
fn check_images(file: &ConfigFile<FlamingoModel>) -> Result<(), TrainError> {
    let looks = file.config.data.iter().any(|entry| entry.images > 0);
    if looks && file.config.model.trained().language {
        return Ok(());
    }
    file.require_images(|images| images >= 1, "at least 1")
}

fn check_model(file: &ConfigFile<FlamingoModel>) -> Result<(), TrainError> {
    let FlamingoModel { resampler, cross_attention, .. } = &file.config.model;
    let (towers, rows) = (file.config.model.trained(), file.config.model.mark_rows);
    let expected = "\"frozen\": every row of a trained language model is trained";
    let fits = rows == MarkRows::Frozen || !towers.language;
    file.require(fits, "model.mark_rows", &"\"trained\"", expected)?;
    file.require_model(resampler.validate())?;
    file.require_model(cross_attention.validate())?;
    check_attend(file, cross_attention)
}

/// Fails where text looks ahead that attends to all images before it.
///
/// # Errors
/// When a dataset has a chance of that.
pub(crate) fn check_attend<M: DeserializeOwned + Serialize>(
    file: &ConfigFile<M>,
    cross_attention: &CrossAttentionConfig,
) -> Result<(), TrainError> {
    if cross_attention.attend == MediaAttention::AllPrevious {
        for (path, entry) in file.datasets() {
            let (key, chance) =
                (format!("{path}.next_image_probability"), entry.next_image_probability);
            file.require(
                chance == 0.0,
                key,
                &chance,
                "0: tokens attend to all images before them",
            )?;
        }
    }
    Ok(())
}

/// A model on the two runs, and the tokenizer of the language run.
fn fresh(
    command: &Command,
    file: &ConfigFile<FlamingoModel>,
    image: &ImageConfig,
) -> Result<(Flamingo, Tokenizer), TrainError> {
    let model = &file.config.model;
    let vision = PathBuf::from(command.locate(&model.vision));
    let language = PathBuf::from(command.locate(&model.language));
    let FlamingoModel { resampler, cross_attention, .. } = model.clone();
    let built = TrainError::model("build");
    let config = FlamingoConfig::on_towers(&vision, &language, resampler, cross_attention);
    let mut config = match config {
        Ok(config) => config,
        Err(error) => return Err(built(error)),
    };
    let tokenizer = if is_run(&language) {
        read_tokenizer(&run_folder::tokenizer(&run_of(&language)))?
    } else {
        let tokenizer = read_tokenizer(&language)?;
        // Marks that the tokenizer of others lacked are tokens that their language model lacks.
        config.added_tokens = tokenizer.n_tokens().saturating_sub(config.language.vocabulary);
        tokenizer
    };
    if model.mark_rows == MarkRows::Trained {
        config.trained_tokens = marks(&tokenizer, config.language.vocabulary);
    }
    if is_run(&vision) && model.vision_weights != TowerWeights::FromScratch {
        let (was, path) = image_of_run(&run_of(&vision))?;
        // An `NFNet` has no position embeddings (paper: 288 pixels, then 320).
        let takes_any_size = matches!(config.vision, VisionConfig::Nfnet(_));
        let size = if takes_any_size { was.size } else { image.size };
        require_same_image(file, &ImageConfig { size, ..image.clone() }, &was, &path)?;
    } else if model.vision_weights != TowerWeights::FromScratch {
        preprocessor::require_as_known(file, image, &vision)?;
    }
    config.vision.set_image_size(image.size);
    let tower = |folder, weights| Tower {
        from: (weights != TowerWeights::FromScratch).then_some(folder),
        trained: weights != TowerWeights::Frozen,
    };
    let (vision, language) =
        (tower(&*vision, model.vision_weights), tower(&*language, model.language_weights));
    let flamingo =
        Flamingo::on_towers(&config, vision, language, file.config.seed).map_err(built)?;
    Ok((flamingo, tokenizer))
}

/// The marks that a language model of this vocabulary has rows for, in ascending order.
fn marks(tokenizer: &Tokenizer, vocabulary: usize) -> Vec<u32> {
    let mut marks = vec![tokenizer.image_id(), tokenizer.eoc_id()];
    marks.retain(|mark| (*mark as usize) < vocabulary);
    marks.sort_unstable();
    marks
}

/// The model of a checkpoint, after checking that its frozen half is what the run began with.
///
/// # Errors
/// When it cannot be read, or was changed.
pub(crate) fn continued(
    checkpoint: &Checkpoint,
    trained: TrainedTowers,
) -> Result<Flamingo, TrainError> {
    let flamingo = Flamingo::load_to_train(&checkpoint.folder, trained);
    let flamingo = flamingo.map_err(TrainError::model("load"))?;
    if let Some(was) = &checkpoint.state.frozen_sha256 {
        let now = flamingo.frozen_sha256();
        checkpoint.require_same("the digest of the frozen weights", was, &now)?;
    }
    Ok(flamingo)
}
