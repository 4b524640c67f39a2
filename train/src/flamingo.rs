//! The Flamingo stage: a vision encoder and a language model, frozen as a rule, joined by a resampler
//! and gated cross-attention that learn from a mixture of interleaved pages, image-text pairs and
//! clips (paper, section 2).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use flamingo_dataset::{Batch, FeatureCache, ImageConfig, Tokenizer};
use flamingo_model::{
    CrossAttentionConfig, Flamingo, FlamingoConfig, GateKind, GateSums, Gradients, Inputs,
    LossTerms, MediaAttention, ModelError, Objective, Params, Pixels, PixelsRef, ResamplerConfig,
    Snapshot, Spare, Tower, Trainable, TrainedTowers, VisionConfig,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::Table;

use crate::checkpoint::Checkpoint;
use crate::command::{Command, Purpose, Told};
use crate::config::FeatureCacheConfig;
use crate::config_file::{ConfigFile, parse_error};
use crate::corpora::open_corpora;
use crate::device::Freezable;
use crate::difference::first_difference;
use crate::ended::Ended;
use crate::error::TrainError;
use crate::flop::{Parts, StepRows};
use crate::grid;
use crate::inputs;
use crate::preprocessor;
use crate::run_folder::{self, RunFolder, run_of};
use crate::run_tokenizer::{read_tokenizer, same_tokenizer};
use crate::setup::{Prepared, launch, until_done};
use crate::stage::{Stage, observe};
use crate::trouble::Trouble;
use crate::validation::{self, HeldOut, Measures, TextLoss};

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

/// What a model is before the first update of its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beginning {
    /// With closed gates its language model.
    LanguageModel,
    /// Trained already.
    Trained,
}

/// A model that is ready to be trained, and what the rest of the set-up needs to know of it.
pub(crate) struct Joining {
    pub(crate) flamingo: Flamingo,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) trained: TrainedTowers,
    pub(crate) beginning: Beginning,
    /// The key of the config that the vocabulary comes from.
    pub(crate) vocabulary: &'static str,
}

/// The model under training.
struct Joined {
    flamingo: Flamingo,
    beginning: Beginning,
    features: Option<Mutex<FeatureCache>>,
    parts: Parts,
    trained: TrainedTowers,
    /// Weight of the term beside the loss.
    z_loss: f32,
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

impl Joined {
    /// A batch, with the features of its images where they are kept.
    fn inputs(&self, batch: &Batch) -> Result<Inputs, TrainError> {
        let mut inputs = inputs::inputs(batch);
        let Some(cache) = &self.features else { return Ok(inputs) };
        let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
        let vision = &self.flamingo.config().vision;
        let n = vision.n_pixel_values();
        let frames = PixelsRef::from(&inputs.pixels).chunks(n);
        let key = |frame: &PixelsRef| FeatureCache::key(&frame.numbers(n));
        let keys: Vec<String> = frames.iter().map(key).collect();
        let kept = keys.iter().map(|key| cache.get(key)).collect::<Result<Vec<_>, _>>();
        let kept = kept.map_err(TrainError::loader)?;
        let missing = frames.iter().zip(&kept).filter(|(_, kept)| kept.is_none());
        let missing = PixelsRef::join(missing.map(|(frame, _)| *frame));
        let made = self.flamingo.features(&missing).map_err(TrainError::model("run"))?;
        let mut made = made.chunks(vision.n_feature_values());
        let mut features = Vec::with_capacity(frames.len() * vision.n_feature_values());
        for (key, kept) in keys.into_iter().zip(kept) {
            if let Some(feature) = kept {
                features.extend(feature);
            } else if let Some(feature) = made.next() {
                features.extend_from_slice(feature);
                cache.put(key, feature.to_vec()).map_err(TrainError::loader)?;
            }
        }
        inputs.features = Some(features);
        Ok(inputs)
    }
}

/// By how many images those of a batch must be turned so that no row keeps one of its own; none if one
/// row has too many.
fn shift_to_other_rows(image_count: &[usize]) -> Option<usize> {
    let most = *image_count.iter().max()?;
    (most > 0 && 2 * most <= image_count.iter().sum()).then_some(most)
}

/// Gives `look` inputs with other images, in place of their own: those of other rows, then images of the
/// mean colour alone, which is 0 after normalisation.
fn with_other_images(
    inputs: &mut Inputs,
    mut look: impl FnMut(&'static str, &Inputs) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    if let Some(shift) = shift_to_other_rows(&inputs.image_count) {
        let n_images = inputs.image_count.iter().sum::<usize>();
        let first = |n_values: usize| shift * (n_values / n_images);
        let first_pixel = first(inputs.pixels.len());
        inputs.pixels.rotate_left(first_pixel);
        if let Some(features) = &mut inputs.features {
            let first = first(features.len());
            features.rotate_left(first);
        }
        look("shuffled", inputs)?;
    }
    if !inputs.pixels.is_empty() {
        inputs.pixels = Pixels::F32(vec![0.0; inputs.pixels.len()]);
        inputs.features = None;
        look("blank", inputs)?;
    }
    Ok(())
}

impl Stage for Joined {
    fn loss(&self, batch: &Batch) -> Result<f32, TrainError> {
        self.flamingo.loss_only(&self.inputs(batch)?).map_err(TrainError::model("run"))
    }

    fn step(
        &self,
        batch: &Batch,
        weight: f32,
        gradients: Gradients,
    ) -> Result<(LossTerms, Gradients), TrainError> {
        let objective = Objective { scale: weight, z_loss: self.z_loss };
        let step = self.flamingo.step_on(&self.inputs(batch)?, objective, gradients);
        step.map_err(TrainError::model("run"))
    }

    fn blind_losses(&self, batch: &Batch) -> Result<Vec<(&'static str, f32)>, TrainError> {
        let mut losses = Vec::new();
        let mut inputs = self.inputs(batch)?;
        with_other_images(&mut inputs, |images, inputs| {
            let loss = self.flamingo.loss_only(inputs).map_err(TrainError::model("run"))?;
            losses.push((images, loss));
            Ok(())
        })?;
        Ok(losses)
    }

    fn gate_sums(&self, parts: &[Cow<Batch>]) -> Result<Vec<GateSums>, TrainError> {
        let mut all: Vec<GateSums> = Vec::new();
        for part in parts {
            let sums = self.flamingo.gate_sums(&self.inputs(part)?);
            let sums = sums.map_err(TrainError::model("run"))?;
            all.resize(sums.len(), GateSums::default());
            all.iter_mut().zip(sums).for_each(|(all, sums)| *all += sums);
        }
        Ok(all)
    }

    fn validate(&self, held_out: &HeldOut) -> Result<Measures, TrainError> {
        let nll =
            |inputs: &Inputs| self.flamingo.token_nll(inputs).map_err(TrainError::model("run"));
        let mut loss = TextLoss::default();
        // Nats more than with the own images, and tokens, of the batches that could be looked at.
        let mut blind: BTreeMap<&str, (f64, u64)> = BTreeMap::new();
        held_out.each_batch(|batch| {
            let mut inputs = self.inputs(batch)?;
            let own = nll(&inputs)?;
            loss.add(batch, &own, held_out.tokenizer());
            with_other_images(&mut inputs, |images, inputs| {
                let (nats, tokens) = blind.entry(images).or_default();
                *nats += validation::nats(&nll(inputs)?) - validation::nats(&own);
                *tokens += batch.n_predicted();
                Ok(())
            })
        })?;
        let mut measures = loss.measures();
        let blind = blind.into_iter().filter(|(_, (_, tokens))| *tokens > 0);
        measures.extend(
            blind.map(|(images, (nats, tokens))| {
                (format!("blindness_{images}"), nats / tokens as f64)
            }),
        );
        Ok(measures)
    }

    fn model(&self) -> &dyn Trainable {
        &self.flamingo
    }

    fn model_mut(&mut self) -> &mut dyn Trainable {
        &mut self.flamingo
    }

    fn snapshot(&self, spare: &Spare) -> Result<Snapshot, ModelError> {
        self.flamingo.snapshot(spare)
    }

    fn save(&self, folder: &Path) -> Result<(), ModelError> {
        self.flamingo.save(folder)
    }

    fn at_checkpoint(&self) -> Result<(), TrainError> {
        let Some(cache) = &self.features else { return Ok(()) };
        cache.lock().unwrap_or_else(PoisonError::into_inner).flush().map_err(TrainError::loader)
    }

    /// Without the vision encoder where its features are kept: they may not be made again.
    fn flop(&self, batch: &Batch) -> Option<f64> {
        let (config, kept) = (self.flamingo.config(), self.features.is_some());
        let images = batch.image_count.iter().sum();
        let rows = StepRows { tokens: batch.tokens.len(), images, frames: batch.n_frames };
        let by_part = self.parts.flop(config, self.trained, rows).into_iter();
        Some(by_part.filter(|(part, _)| !kept || *part != "vision").map(|(_, flop)| flop).sum())
    }

    fn activation_bytes(&self, batch: &Batch) -> u64 {
        let images = batch.image_count.iter().sum();
        self.flamingo.activation_bytes(batch.tokens.len(), images, batch.n_frames)
    }

    /// How far each gate is open, `|tanh|` (paper, figure 6).
    fn observe(&self) -> BTreeMap<String, f64> {
        observe(&self.flamingo, |name| name.ends_with("_gate"), "gate", |alpha| alpha.tanh().abs())
    }

    fn frozen_sha256(&self) -> Option<String> {
        let mut all = self.flamingo.params().into_iter().flat_map(Params::iter);
        let frozen = all.any(|parameter| !parameter.weight.is_trained());
        frozen.then(|| self.flamingo.frozen_sha256())
    }

    /// With closed gates the model must be its language model, to the last bit, whatever the images
    /// show.
    fn check_fresh(&self, first: &Batch) -> Result<Option<String>, TrainError> {
        let config = self.flamingo.config();
        // Without gates a fresh block is not the identity; a language model to which tokens are added does
        // not know them all, and shares no probability among them; and with rows elsewhere logits are
        // multiplied in other pieces.
        let other_rows = config.added_tokens > 0 || !config.trained_tokens.is_empty();
        let is_trained = self.beginning == Beginning::Trained;
        if is_trained || config.cross_attention.gate == GateKind::None || other_rows {
            return Ok(None);
        }
        let flamingo = self.loss(first)?;
        let language = self.flamingo.language_model().loss_only(&inputs::text(first));
        let language = language.map_err(TrainError::model("run"))?;
        if flamingo.to_bits() != language.to_bits() {
            return Err(TrainError::GatesLeak { flamingo, language });
        }
        Ok(Some(format!("with gates at 0 the loss equals the language model's, {language}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turned_images_are_all_of_other_rows() {
        for (counts, expected) in [
            (&[1, 1, 1][..], Some(1)),
            (&[2, 0, 3, 1], Some(3)),
            (&[3, 1, 1], None),
            (&[2, 2], Some(2)),
            (&[0, 0], None),
            (&[], None),
        ] {
            let shift = shift_to_other_rows(counts);
            assert_eq!(shift, expected, "{counts:?}");
            let Some(shift) = shift else { continue };
            let rows = counts.iter().enumerate().flat_map(|(row, n)| vec![row; *n]);
            let rows: Vec<usize> = rows.collect();
            let mut turned = rows.clone();
            turned.rotate_left(shift);
            assert!(rows.iter().zip(&turned).all(|(row, other)| row != other), "{counts:?}");
        }
    }
}
