//! The whole model: frozen vision tower and language model, and between them, trained, the
//! Perceiver resampler and the gated cross-attention blocks (paper, section 2 and figure 3).
//!
//! Letters: `B` sequences, `L` tokens, `M` images or videos, `F` frames, `P` patches, `R` latents,
//! `V` visual width.

use std::cell::RefCell;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::buffer::Buffer;
use crate::checkpoint::{Snapshot, read_folder, save_folder};
use crate::clip::VISION_PREFIX;
use crate::clip_checkpoint::Writer;
use crate::decoder::{EMBEDDING_DEVIATION, LanguageConfig, Pass, Place, RowsBeside, TokenRows};
use crate::error::ModelError;
use crate::gate_sums::GateSums;
use crate::gated_xattn::{
    Conditioning, CrossAttentionConfig, FirstBlock, GatedCrossAttention, GraftedSelfAttention,
    MediaKeys,
};
use crate::inputs::{Inputs, Latents, check_features, check_media};
use crate::language_model::{LanguageModel, LossTerms, Objective, all_logits, language_folder};
use crate::limits::{VOCABULARY_MAX, check_at_most};
use crate::ops::{self, Heads, KeptRows, MediaReads, Recompute, Shares, Stage, Visible};
use crate::params::{Declare, ParamId, Parameter, Params, Source, Start, Trainable, Training};
use crate::pixels::PixelsRef;
use crate::resampler::{Resampler, ResamplerConfig};
use crate::spare::Spare;
use crate::tensor::{
    DeviceError, Gradients, Loss, Matrix, NotRecording, Record, differentiate_terms, value_of,
};
use crate::vision::{Vision, VisionConfig, is_default, vision_folder};
use crate::weights_file::{Tensors, le_bytes};

/// Values whose bytes are made and hashed at once.
const HASHED_AT_ONCE: usize = 1 << 14;

/// Shape of the whole model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlamingoConfig {
    /// The frozen vision tower, as the contrastive stage trained it.
    pub vision: VisionConfig,
    /// The resampler.
    pub resampler: ResamplerConfig,
    /// The gated cross-attention blocks.
    pub cross_attention: CrossAttentionConfig,
    /// The frozen language model, as the language stage trained it.
    pub language: LanguageConfig,
    /// Tokens beside the language model's own, whose rows are trained: `<EOC>` in the paper.
    #[serde(default, skip_serializing_if = "is_default")]
    pub added_tokens: usize,
    /// Tokens of the language model, in ascending order, for which trained rows of embeddings and head
    /// stand in the place of its own, which stay as they are: `<image>` and `<EOC>`, as `OpenFlamingo` has
    /// it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub trained_tokens: Vec<u32>,
}

impl FlamingoConfig {
    /// The configuration of a model on the towers in two folders, models or runs.
    ///
    /// # Errors
    /// When a folder does not hold what it should.
    pub fn on_towers(
        vision_from: &Path,
        language_from: &Path,
        resampler: ResamplerConfig,
        cross_attention: CrossAttentionConfig,
    ) -> Result<Self, ModelError> {
        let (vision, _) = vision_folder(vision_from)?;
        let (language, _) = language_folder(language_from)?;
        let (added_tokens, trained_tokens) = (0, Vec::new());
        Ok(Self { vision, resampler, cross_attention, language, added_tokens, trained_tokens })
    }

    /// Checks that the sizes can work.
    ///
    /// # Errors
    /// Names the first field that cannot.
    pub fn validate(&self) -> Result<(), ModelError> {
        self.vision.validate()?;
        self.resampler.validate()?;
        self.cross_attention.validate()?;
        self.language.validate()?;
        check_at_most("added_tokens", self.added_tokens, VOCABULARY_MAX)?;
        let all_in_order = self.trained_tokens.is_sorted_by(|a, b| a < b);
        let last = self.trained_tokens.last().copied();
        if !all_in_order || last.is_some_and(|last| last as usize >= self.language.vocabulary) {
            return Err(ModelError::Config {
                field: "trained_tokens".to_owned(),
                value: format!("{:?}", self.trained_tokens),
                expected: "tokens of the language model in ascending order".to_owned(),
            });
        }
        let CrossAttentionConfig { every, first, conditioning, .. } = &self.cross_attention;
        if *conditioning == Conditioning::Vanilla && self.language.architecture.parallel {
            return Err(ModelError::Config {
                field: "cross_attention.conditioning".to_owned(),
                value: "vanilla".to_owned(),
                expected: "a language model whose blocks have a middle: not parallel".to_owned(),
            });
        }
        let inside = !matches!(conditioning, Conditioning::Grafting { .. });
        if inside && *first == FirstBlock::LastOfEvery && *every > self.language.layers {
            return Err(ModelError::Config {
                field: "cross_attention.every".to_owned(),
                value: every.to_string(),
                expected: format!("at most {}, the language model's layers", self.language.layers),
            });
        }
        Ok(())
    }

    /// Tokens that the model knows.
    pub fn vocabulary(&self) -> usize {
        self.language.vocabulary + self.added_tokens
    }

    /// Checks tokens `[B, L]`; returns `B`.
    pub(crate) fn check_tokens(&self, tokens: &[u32], length: usize) -> Result<usize, ModelError> {
        self.language.check_tokens_below(tokens, length, self.vocabulary())
    }

    /// Width of the media that the cross-attention reads: the resampler's.
    pub(crate) fn media_width(&self) -> usize {
        self.resampler.width.unwrap_or(self.vision.width())
    }
}

/// The whole model.
#[derive(Debug, Clone)]
pub struct Flamingo {
    pub(crate) config: FlamingoConfig,
    vision_params: Params,
    vision: Vision,
    pub(crate) language: LanguageModel,
    pub(crate) params: Params,
    resampler: Resampler,
    cross_attention: Vec<GatedCrossAttention>,
    /// With grafting one for each cross-attention, which it comes before, else none.
    grafts: Vec<GraftedSelfAttention>,
    /// Embeddings and head of added tokens.
    added: Option<[ParamId; 2]>,
    /// Embeddings and head of tokens whose rows are trained, and these tokens.
    moved: Option<(Arc<[u32]>, [ParamId; 2])>,
    recompute: Recompute,
}

/// A tower that a new model is built on.
#[derive(Debug, Clone, Copy)]
pub struct Tower<'a> {
    /// The folder that it comes from; a fresh one if none.
    pub from: Option<&'a Path>,
    /// Whether it is trained; else it is frozen.
    pub trained: bool,
}

/// Which towers of a model are trained with the rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrainedTowers {
    /// The vision tower.
    pub vision: bool,
    /// The language model.
    pub language: bool,
}

/// Where the towers' parameters come from.
pub(crate) struct Towers {
    /// The vision tower that `vision` holds; it may be for images of another size.
    pub(crate) shape: VisionConfig,
    pub(crate) vision: Source,
    pub(crate) language: Source,
    /// Of vision and language.
    pub(crate) train: [Training; 2],
}

impl Flamingo {
    /// A model on the frozen towers in two folders, a contrastive and a language model or run, or
    /// models of transformers or `open_clip`, with fresh resampler and cross-attention. Its gates are
    /// closed, so that it begins as the language model.
    ///
    /// # Errors
    /// When the configuration cannot work, or a folder does not hold the tower that it describes.
    pub fn new(
        config: &FlamingoConfig,
        vision_from: &Path,
        language_from: &Path,
        seed: u64,
    ) -> Result<Self, ModelError> {
        let frozen = |folder| Tower { from: Some(folder), trained: false };
        Self::on_towers(config, frozen(vision_from), frozen(language_from), seed)
    }

    /// As [`Flamingo::new`], with towers that are frozen, fine-tuned or trained from scratch.
    ///
    /// # Errors
    /// When the configuration cannot work, or a folder does not hold the tower that it describes.
    pub fn on_towers(
        config: &FlamingoConfig,
        vision: Tower,
        language: Tower,
        seed: u64,
    ) -> Result<Self, ModelError> {
        config.validate()?;
        let fresh = |tower| Source::Random { seed: seed.wrapping_add(tower) };
        let (shape, vision_source) = match vision.from {
            Some(folder) => {
                let (shape, source) = vision_folder(folder)?;
                let used = shape.as_used_by(&config.vision);
                // Any image size will do, and any of the tower's features.
                check_same("vision", &config.vision, &used, folder)?;
                (shape, source)
            }
            None => (config.vision.clone(), fresh(1)),
        };
        let language_source = match language.from {
            Some(folder) => {
                let (found, source) = language_folder(folder)?;
                check_same("language", &config.language, &found, folder)?;
                source
            }
            None => fresh(2),
        };
        let towers = Towers {
            shape,
            vision: vision_source,
            language: language_source,
            train: [vision.trained, language.trained].map(Training::of),
        };
        Self::from_sources(config.clone(), towers, Source::Random { seed })
    }

    /// The model in a folder that [`Flamingo::save`] or a run wrote, its towers frozen.
    ///
    /// # Errors
    /// When the folder does not hold a whole model.
    pub fn load(folder: &Path) -> Result<Self, ModelError> {
        Self::load_to_train(folder, TrainedTowers::default())
    }

    /// As [`Flamingo::load`], with towers that are to be trained.
    ///
    /// # Errors
    /// When the folder does not hold a whole model.
    pub fn load_to_train(folder: &Path, trained: TrainedTowers) -> Result<Self, ModelError> {
        let (config, tensors, path) = read_folder(folder)?;
        Self::loaded(config, None, tensors, &path, trained)
    }

    /// As [`Flamingo::load_to_train`], for images of another size: a vision transformer's position
    /// embeddings are interpolated.
    ///
    /// # Errors
    /// When the folder does not hold a whole model, or the tower cannot take images of this size.
    pub fn load_to_train_at(
        folder: &Path,
        image_size: usize,
        trained: TrainedTowers,
    ) -> Result<Self, ModelError> {
        let (config, tensors, path) = read_folder(folder)?;
        Self::loaded(config, Some(image_size), tensors, &path, trained)
    }

    fn loaded(
        mut config: FlamingoConfig,
        image_size: Option<usize>,
        mut tensors: Tensors,
        path: &Path,
        trained: TrainedTowers,
    ) -> Result<Self, ModelError> {
        let outline = config.outline()?;
        let whole = outline.params().into_iter().flat_map(Params::iter);
        let whole: Vec<_> = whole.map(|p| (p.name.clone(), p.shape.clone())).collect();
        tensors.check_all(&whole, |_| true, path)?;
        let mut part = |prefix: &str| Source::Stored {
            tensors: tensors.split_off(prefix),
            path: path.to_path_buf(),
        };
        let (vision, language) =
            (part(VISION_PREFIX), part(crate::language_model::LANGUAGE_PREFIX));
        let rest = part("");
        let shape = config.vision.clone();
        if let Some(size) = image_size {
            config.vision.set_image_size(size);
        }
        let train = [trained.vision, trained.language].map(Training::of);
        Self::from_sources(config, Towers { shape, vision, language, train }, rest)
    }

    pub(crate) fn from_sources(
        config: FlamingoConfig,
        towers: Towers,
        rest: Source,
    ) -> Result<Self, ModelError> {
        config.validate()?;
        let [train_vision, train_language] = towers.train;
        let vision =
            Vision::from_source(towers.vision, train_vision, &towers.shape, &config.vision)?;
        let language =
            LanguageModel::from_source(config.language.clone(), towers.language, train_language)?;
        Self::join(config, vision, language, rest)
    }

    /// The model on two towers, of which it has the configurations.
    ///
    /// # Errors
    /// When `rest` does not hold the resampler and the cross-attention, or memory is out.
    pub(crate) fn join(
        config: FlamingoConfig,
        (vision, vision_params): (Vision, Params),
        language: LanguageModel,
        rest: Source,
    ) -> Result<Self, ModelError> {
        let is_fresh = matches!(rest, Source::Random { .. });
        let mut declare = Declare::new(rest, Training::Trained);
        let (resampling, crossing) = (&config.resampler, &config.cross_attention);
        let (visual, text) = (config.vision.width(), config.language.width);
        let resampler = Resampler::new(&mut declare, "resampler.", visual, resampling)?;
        let (mut cross_attention, mut grafts) = (Vec::new(), Vec::new());
        for i in 0..crossing.n_blocks(config.language.layers) {
            let (name, media) = (format!("cross_attention.{i}."), config.media_width());
            if matches!(crossing.conditioning, Conditioning::Grafting { .. }) {
                grafts.push(GraftedSelfAttention::new(&mut declare, &name, text, crossing)?);
            }
            let block = GatedCrossAttention::new(&mut declare, &name, text, media, crossing)?;
            cross_attention.push(block);
        }
        let tied = config.language.architecture.tied;
        let mut rows = |kind: &str, n: usize| {
            let start = Start::Normal(EMBEDDING_DEVIATION);
            let mut add = |of: &str| declare.add(format!("{kind}_{of}.weight"), &[n, text], start);
            let tokens = add("tokens")?;
            Ok::<_, ModelError>([tokens, if tied { tokens } else { add("head")? }])
        };
        let n_added = config.added_tokens;
        let added = (n_added > 0).then(|| rows("added", n_added)).transpose()?;
        let n_moved = config.trained_tokens.len();
        let moved = (n_moved > 0).then(|| rows("trained", n_moved)).transpose()?;
        let mut params = declare.finish();
        if let Some([tokens, head]) = moved.filter(|_| is_fresh) {
            let (decoder, own) = language.parts();
            let (of_tokens, of_head) = decoder.rows_of(own, &config.trained_tokens);
            params.replace(tokens, &[n_moved, text], of_tokens)?;
            if let Some(values) = of_head {
                params.replace(head, &[n_moved, text], values)?;
            }
        }
        Ok(Self {
            moved: moved.map(|ids| (config.trained_tokens.clone().into(), ids)),
            config,
            vision_params,
            vision,
            language,
            params,
            resampler,
            cross_attention,
            grafts,
            added,
            recompute: Recompute::default(),
        })
    }

    /// Writes `config.json` and `model.safetensors`, all towers included, into an existing folder.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), ModelError> {
        save_folder(folder, &self.config, &self.params())
    }

    /// What [`save`](Self::save) writes, as it is now, copied into `spare`.
    ///
    /// # Errors
    /// As those of [`Snapshot::take`].
    pub fn snapshot(&self, spare: &Spare) -> Result<Snapshot, ModelError> {
        Snapshot::take(spare, &self.config, &self.params())
    }

    /// The configuration.
    pub fn config(&self) -> &FlamingoConfig {
        &self.config
    }

    /// The language model inside, frozen and without cross-attention; its weights are shared.
    pub fn language_model(&self) -> &LanguageModel {
        &self.language
    }

    /// Writes the vision tower's `config.json` and `model.safetensors` into an existing folder, as
    /// transformers reads a `CLIPVisionModel`.
    ///
    /// # Errors
    /// When the tower is no vision transformer, or the folder cannot be written.
    pub fn save_vision_hugging_face(&self, folder: &Path) -> Result<(), ModelError> {
        let VisionConfig::Vit(config) = &self.config.vision else {
            return Err(ModelError::NoFamily { what: "the vision encoder", of: "Hugging Face" });
        };
        Writer::save_transformers_vision(folder, config, &self.vision_params)
    }

    /// SHA-256 over names, shapes and values of all frozen parameters, in hexadecimal: equal before
    /// and after training.
    pub fn frozen_sha256(&self) -> String {
        let all = self.params().into_iter().flat_map(Params::iter);
        sha256(all.filter(|parameter| !parameter.weight.is_trained()))
    }

    /// The same over the vision tower and the GPU that it is on with its number format, or the instructions
    /// of this processor: names what [`Flamingo::features`] are of. Processors of one kind of instructions
    /// whose caches differ may still differ in the last bits.
    pub fn vision_sha256(&self) -> String {
        let weights = sha256(self.vision_params.iter());
        let computed_by = self.vision_params.gpu_name().unwrap_or_else(ops::processor);
        let all = format!("{weights} {:?} {computed_by}", self.config.vision);
        hex(&Sha256::digest(all.as_bytes()))
    }

    /// Adds to `gradients` those of `scale` times the mean loss over the predicted tokens; returns
    /// the mean loss itself, in nats per token.
    ///
    /// # Errors
    /// When the inputs do not fit the model or each other.
    pub fn step(
        &self,
        inputs: &Inputs,
        scale: f32,
        gradients: Gradients,
    ) -> Result<(f32, Gradients), ModelError> {
        let (terms, gradients) = self.step_on(inputs, Objective::nll(scale), gradients)?;
        Ok((terms.nll, gradients))
    }

    /// Adds to `gradients` those of the objective; returns its terms.
    ///
    /// # Errors
    /// When the inputs do not fit the model or each other.
    pub fn step_on(
        &self,
        inputs: &Inputs,
        objective: Objective,
        gradients: Gradients,
    ) -> Result<(LossTerms, Gradients), ModelError> {
        let (targets, n) = inputs.check(&self.config)?;
        ops::on_pool(|| {
            let shares = objective.shares(n);
            let loss = self.loss(inputs, &targets, shares, gradients.into_tape()?)?;
            let (nll, z, gradients) = differentiate_terms(loss, objective.scale)?;
            Ok((LossTerms { nll, z }, gradients))
        })
    }

    /// The mean loss over the predicted tokens, in nats per token.
    ///
    /// # Errors
    /// When the inputs do not fit the model or each other.
    pub fn loss_only(&self, inputs: &Inputs) -> Result<f32, ModelError> {
        let (targets, n) = inputs.check(&self.config)?;
        ops::on_pool(|| {
            let tape = NotRecording::default();
            Ok(value_of(&self.loss(inputs, &targets, Objective::nll(1.0).shares(n), tape)?)?)
        })
    }

    /// The loss at each position that predicts, 0 elsewhere, in nats: `[B * L]`.
    ///
    /// # Errors
    /// When the inputs do not fit the model or each other.
    pub fn token_nll(&self, inputs: &Inputs) -> Result<Vec<f32>, ModelError> {
        let (targets, _) = inputs.check(&self.config)?;
        ops::on_pool(|| {
            let kept = KeptRows::predicting(&targets, inputs.length);
            let hidden = self.hidden(inputs, &kept, NotRecording::default())?;
            let (decoder, params) = self.language.parts();
            let head = decoder.head(params, &self.rows_beside());
            let losses = ops::token_losses(&hidden, &head, &kept.of(&targets))?;
            Ok(kept.spread(&losses, targets.len()))
        })
    }

    /// The logits at every position: `[B * L * vocabulary]`.
    ///
    /// # Errors
    /// When the inputs do not fit the model or each other.
    pub fn logits(&self, inputs: &Inputs) -> Result<Vec<f32>, ModelError> {
        inputs.check(&self.config)?;
        ops::on_pool(|| {
            let kept = KeptRows::all(inputs.tokens.len(), inputs.length);
            let hidden = self.hidden(inputs, &kept, NotRecording::default())?;
            let (decoder, params) = self.language.parts();
            let head = decoder.head(params, &self.rows_beside());
            Ok(all_logits(&hidden, &head, self.config.vocabulary())?)
        })
    }

    /// What the frozen vision tower makes of `pixels` `[M, 3, H, W]`, for [`Inputs::features`]: `[M, P, V]`.
    /// The part of each image depends on that image alone, to the last bit; on a GPU the last bits also depend on how
    /// many images there are, since its library chooses by that how to multiply.
    ///
    /// # Errors
    /// When the pixels are not whole images of the model's size.
    pub fn features<'a>(&self, pixels: impl Into<PixelsRef<'a>>) -> Result<Vec<f32>, ModelError> {
        let pixels = pixels.into();
        let n_images = pixels.len() / self.config.vision.n_pixel_values();
        check_media(pixels, n_images, 1, &self.config)?;
        if n_images == 0 {
            return Ok(Vec::new());
        }
        ops::on_pool(|| Ok(self.features_of_each(pixels)?.to_vec()?))
    }

    /// The latents of `features` `[M, F, P, V]`, which [`Flamingo::features`] made.
    ///
    /// # Errors
    /// When the features are not those of whole images.
    pub fn latents_of(&self, features: &[f32], n_frames: usize) -> Result<Latents, ModelError> {
        let one = self.config.vision.n_feature_values() * n_frames;
        let n_images = features.len().checked_div(one).unwrap_or(0);
        check_features(features, n_images, n_frames, &self.config)?;
        ops::on_pool(|| {
            let features = Buffer::from(features.to_vec());
            let features = self.params.beside(features, self.config.vision.width())?;
            let matrix = self.resampler.forward(&self.params, features, n_images, n_frames)?;
            Ok(Latents { matrix, n_images })
        })
    }

    /// The latents of `pixels` `[M, F, 3, H, W]`, so that images which are read often are resampled
    /// once.
    ///
    /// # Errors
    /// When the pixels are not whole images of the model's size.
    pub fn latents<'a>(
        &self,
        pixels: impl Into<PixelsRef<'a>>,
        n_frames: usize,
    ) -> Result<Latents, ModelError> {
        let pixels = pixels.into();
        let one = self.config.vision.n_pixel_values() * n_frames;
        let n_images = pixels.len().checked_div(one).unwrap_or(0);
        check_media(pixels, n_images, n_frames, &self.config)?;
        ops::on_pool(|| {
            let matrix = self.resample(pixels, n_images, n_frames, NotRecording::default())?;
            Ok(Latents { matrix, n_images })
        })
    }

    /// Whether states change between the halves of the language model's blocks.
    pub(crate) fn splits_blocks(&self) -> bool {
        self.config.cross_attention.conditioning == Conditioning::Vanilla
    }

    /// Which blocks of towers and cross-attention keep only their inputs in training steps.
    pub fn set_recompute(&mut self, recompute: Recompute) {
        self.recompute = recompute;
    }

    pub(crate) fn recompute(&self) -> Recompute {
        self.recompute
    }

    /// The vision tower and its parameters.
    pub(crate) fn vision_parts(&self) -> (&Vision, &Params) {
        (&self.vision, &self.vision_params)
    }

    /// Number of cross-attention blocks.
    pub(crate) fn n_cross_attentions(&self) -> usize {
        self.cross_attention.len()
    }

    /// The rows of tokens that stand beside the language model's.
    pub(crate) fn rows_beside(&self) -> RowsBeside {
        let rows = |ids: [ParamId; 2]| {
            let [tokens, head] = ids.map(|id| self.params.get(id).clone());
            TokenRows { tokens, head }
        };
        let moved = self.moved.as_ref().map(|(tokens, ids)| (Arc::clone(tokens), rows(*ids)));
        RowsBeside { added: self.added.map(rows), moved }
    }

    /// Number of grafted layers.
    pub(crate) fn n_grafts(&self) -> usize {
        self.grafts.len()
    }

    /// Sends states `y` `[N, D]` through the cross-attention block that stands at a place inside
    /// the language model, if any.
    pub(crate) fn condition<T: Record>(
        &self,
        place: Place,
        y: Matrix<T>,
        media: &[MediaKeys],
        reads: &Arc<MediaReads>,
    ) -> Result<Matrix<T>, DeviceError> {
        match self.block_at(place) {
            Some(i) => self.cross(i, y, &media[i], reads),
            None => Ok(y),
        }
    }

    /// The cross-attention block that stands at a place inside the language model, if any.
    fn block_at(&self, place: Place) -> Option<usize> {
        let config = &self.config.cross_attention;
        match (config.conditioning, place) {
            (Conditioning::Dense, Place::Before(layer))
            | (Conditioning::Vanilla, Place::Middle(layer)) => {
                config.block_at(layer, self.config.language.layers)
            }
            _ => None,
        }
    }

    /// Sends states `y` `[N, D]` through block `i`.
    pub(crate) fn cross<T: Record>(
        &self,
        i: usize,
        y: Matrix<T>,
        media: &MediaKeys,
        reads: &Arc<MediaReads>,
    ) -> Result<Matrix<T>, DeviceError> {
        let block = &self.cross_attention[i];
        if !(T::OWNS_TAPE && self.recompute.covers(true)) {
            return block.forward(&self.params, y, media, reads);
        }
        let crossing = Crossing {
            block: block.clone(),
            params: self.params.clone(),
            media: media.clone(),
            reads: Arc::clone(reads),
        };
        ops::recomputed(y, crossing)
    }

    /// Sends the states `y` `[N, D]` of the language model's last layer through the grafted layers,
    /// if any. `attend(i, qkv, heads)` is the attention of graft `i` within sequences.
    pub(crate) fn graft<T: Record>(
        &self,
        y: Matrix<T>,
        media: &[MediaKeys],
        reads: &Arc<MediaReads>,
        attend: impl FnMut(usize, Matrix<T>, Heads) -> Result<Matrix<T>, DeviceError>,
    ) -> Result<Matrix<T>, DeviceError> {
        self.graft_by(y, attend, |i, y| self.cross(i, y, &media[i], reads))
    }

    /// As [`Flamingo::graft`], with `cross(i, y)` for the cross-attention of graft `i`.
    fn graft_by<T: Record>(
        &self,
        mut y: Matrix<T>,
        mut attend: impl FnMut(usize, Matrix<T>, Heads) -> Result<Matrix<T>, DeviceError>,
        cross: impl Fn(usize, Matrix<T>) -> Result<Matrix<T>, DeviceError>,
    ) -> Result<Matrix<T>, DeviceError> {
        for (i, graft) in self.grafts.iter().enumerate() {
            y = graft.forward(&self.params, y, |qkv, heads| attend(i, qkv, heads))?;
            y = cross(i, y)?;
        }
        Ok(y)
    }

    fn features_of_each(&self, pixels: PixelsRef) -> Result<Matrix, DeviceError> {
        self.vision.features_of_each(&self.vision_params, pixels, &self.config.vision)
    }

    /// `[M, F, 3, H, W]` to `[M * R, V]`. A frozen vision tower never records.
    fn resample<T: Record>(
        &self,
        pixels: PixelsRef,
        n_images: usize,
        n_frames: usize,
        tape: T,
    ) -> Result<Matrix<T>, DeviceError> {
        if n_images == 0 {
            let none = Buffer::from(Vec::new());
            return Ok(self.params.beside(none, self.config.media_width())?.with(tape));
        }
        // [M * F * P, V]
        let features = if T::OWNS_TAPE && self.vision_params.is_trained() {
            self.vision.features(&self.vision_params, pixels, tape, self.recompute)?
        } else {
            self.features_of_each(pixels)?.with(tape)
        };
        self.resampler.forward(&self.params, features, n_images, n_frames)
    }

    /// The latents of the images of a batch: `[M * R, V]`.
    fn media<T: Record>(&self, inputs: &Inputs, tape: T) -> Result<Matrix<T>, DeviceError> {
        let n_images = inputs.image_count.iter().sum();
        match &inputs.features {
            Some(features) if n_images > 0 => {
                let features = Buffer::from(features.clone());
                let features = self.params.beside(features, self.config.vision.width())?;
                let features = features.with(tape);
                self.resampler.forward(&self.params, features, n_images, inputs.n_frames)
            }
            _ => self.resample((&inputs.pixels).into(), n_images, inputs.n_frames, tape),
        }
    }

    /// States of some rows after the language model's last norm: `[N, D]`.
    pub(crate) fn hidden<T: Record>(
        &self,
        inputs: &Inputs,
        kept: &KeptRows,
        tape: T,
    ) -> Result<Matrix<T>, DeviceError> {
        self.hidden_by(inputs, kept, tape, |i, y, media, reads| self.cross(i, y, media, reads))
    }

    /// As [`Flamingo::hidden`], with `cross(i, y, media, reads)` for the cross-attention block `i`.
    pub(crate) fn hidden_by<T: Record>(
        &self,
        inputs: &Inputs,
        kept: &KeptRows,
        tape: T,
        cross: impl Fn(usize, Matrix<T>, &MediaKeys, &Arc<MediaReads>) -> Crossed<T>,
    ) -> Result<Matrix<T>, DeviceError> {
        let media = self.media(inputs, tape)?;
        let (keys, tape) = self.media_keys(media)?;
        let seen: Vec<_> = inputs.images_seen(self.config.cross_attention.attend).collect();
        let seen = kept.of(&seen).into_iter();
        let reads = Arc::new(MediaReads::new(seen, self.config.resampler.latents));
        let (decoder, params) = self.language.parts();
        let (tokens, sequences) = (kept.of(&inputs.tokens), &kept.sequences);
        let pass = Pass {
            beside: self.rows_beside(),
            recompute: self.recompute,
            split: self.splits_blocks(),
        };
        let cross = |i, y| cross(i, y, &keys[i], &reads);
        decoder.forward(params, &tokens, sequences, tape, &pass, |place, y| match place {
            Place::End => self.graft_by(
                y,
                |_, qkv, heads| ops::self_attention(qkv, sequences, heads, &Visible::Causal),
                cross,
            ),
            _ => match self.block_at(place) {
                Some(i) => cross(i, y),
                None => Ok(y),
            },
        })
    }

    /// Keys and values of the media for every cross-attention block.
    pub(crate) fn media_keys<T: Record>(
        &self,
        media: Matrix<T>,
    ) -> Result<(Vec<MediaKeys>, T), DeviceError> {
        let (media, mut tape) = media.split();
        let mut all = Vec::with_capacity(self.cross_attention.len());
        for block in &self.cross_attention {
            let keys;
            (keys, tape) = block.media_keys(&self.params, media.clone().with(tape))?;
            all.push(keys);
        }
        Ok((all, tape))
    }

    /// How much each cross-attention block adds, as sums of squares over the tokens of a batch that see
    /// an image and predict the next token: in the order of the blocks.
    ///
    /// # Errors
    /// When the inputs do not fit the model or each other.
    pub fn gate_sums(&self, inputs: &Inputs) -> Result<Vec<GateSums>, ModelError> {
        let (targets, _) = inputs.check(&self.config)?;
        let tokens = inputs.phi.iter().zip(&targets);
        let counted: Vec<bool> =
            tokens.map(|(phi, target)| *phi >= 0 && target.is_some()).collect();
        ops::on_pool(|| {
            let all = RefCell::new(vec![GateSums::default(); self.cross_attention.len()]);
            let kept = KeptRows::predicting(&targets, inputs.length);
            let counted = kept.of(&counted);
            self.hidden_by(inputs, &kept, NotRecording::default(), |i, y, media, reads| {
                let block = &self.cross_attention[i];
                let (y, sums) = block.measured(&self.params, y, (media, reads), &counted)?;
                all.borrow_mut()[i] = sums;
                Ok(y)
            })?;
            Ok(all.into_inner())
        })
    }

    fn loss<T: Record>(
        &self,
        inputs: &Inputs,
        targets: &[Option<u32>],
        shares: Shares,
        tape: T,
    ) -> Result<Loss<T>, DeviceError> {
        let kept = KeptRows::predicting(targets, inputs.length);
        let hidden = self.hidden(inputs, &kept, tape)?;
        let (decoder, params) = self.language.parts();
        let head = decoder.head(params, &self.rows_beside());
        ops::cross_entropy(hidden, &head, &kept.of(targets), shares)
    }
}

/// Text states after a cross-attention block.
type Crossed<T> = Result<Matrix<T>, DeviceError>;

/// A cross-attention block of a training step, which can run again.
struct Crossing {
    block: GatedCrossAttention,
    params: Params,
    media: MediaKeys,
    reads: Arc<MediaReads>,
}

impl Stage for Crossing {
    fn is_trained(&self) -> bool {
        true
    }

    fn run<T: Record>(&self, y: Matrix<T>) -> Result<Matrix<T>, DeviceError> {
        self.block.forward(&self.params, y, &self.media, &self.reads)
    }
}

pub(crate) fn sha256<'a>(parameters: impl Iterator<Item = &'a Parameter>) -> String {
    let mut digest = Sha256::new();
    for parameter in parameters {
        digest.update(format!("{} {:?}\n", parameter.name, parameter.shape));
        for block in parameter.weight.values().chunks(HASHED_AT_ONCE) {
            digest.update(le_bytes(block));
        }
    }
    hex(&digest.finalize())
}

/// Bytes as lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a string takes all that is written");
    }
    text
}

fn check_same<C: PartialEq + std::fmt::Debug>(
    field: &str,
    configured: &C,
    found: &C,
    folder: &Path,
) -> Result<(), ModelError> {
    if configured == found {
        return Ok(());
    }
    Err(ModelError::Config {
        field: field.to_owned(),
        value: format!("{configured:?}"),
        expected: format!("{found:?}, the tower in {}", folder.display()),
    })
}

impl Trainable for Flamingo {
    fn params(&self) -> Vec<&Params> {
        [&self.vision_params]
            .into_iter()
            .chain(self.language.params())
            .chain([&self.params])
            .collect()
    }

    fn params_mut(&mut self) -> Vec<&mut Params> {
        [&mut self.vision_params]
            .into_iter()
            .chain(self.language.params_mut())
            .chain([&mut self.params])
            .collect()
    }
}
