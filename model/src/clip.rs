//! The contrastive model that makes the vision tower (paper, appendix B.1.3; CLIP): an image and a
//! text tower, each projected to one embedding, and a learnt temperature.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Folder, Snapshot, open_folder, save_folder};
use crate::clip_checkpoint::Writer;
use crate::decoder::{Decoder, LanguageConfig, Pass};
use crate::error::ModelError;
use crate::layers::Linear;
use crate::limits::{WIDTH_MAX, check_size};
use crate::ops::{self, BatchEmbeddings, KeptRows, Recompute};
use crate::params::{Declare, ParamId, Params, Source, Start, Trainable, Training};
use crate::pixels::{Pixels, PixelsRef};
use crate::spare::Spare;
use crate::tensor::{
    DeviceError, Gradients, Loss, Matrix, NotRecording, Record, Recording, Weight, differentiate,
    value_of,
};
use crate::vision::{Vision, VisionConfig, is_default};

/// Prefix of the vision tower's parameters, here and in Flamingo's checkpoints.
pub(crate) const VISION_PREFIX: &str = "vision.";
/// Prefix of the text tower's parameters.
pub(crate) const TEXT_PREFIX: &str = "text.";
/// The temperature at the start is 0.07, as in CLIP: `ln(1 / 0.07)`.
const LOG_BETA_START: f32 = 2.659_26;

/// Shape of the contrastive model. Read from `[model]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipConfig {
    /// The image tower.
    pub vision: VisionConfig,
    /// The text tower; its head is not used.
    pub text: LanguageConfig,
    /// Width of the common embedding. Paper: 1376.
    pub embedding: usize,
    /// What stands for a whole image and a whole text.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pool: Pool,
}

/// What stands for a whole image and a whole text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pool {
    /// The mean of the patches, and of the tokens: the paper's choice (appendix B.1.3). It makes
    /// every patch useful by itself, which is what the resampler needs.
    #[default]
    Mean,
    /// The class row, and the last token: CLIP's.
    Token,
}

impl ClipConfig {
    /// Checks that the sizes can work.
    ///
    /// # Errors
    /// Names the first field that cannot.
    pub fn validate(&self) -> Result<(), ModelError> {
        self.vision.validate()?;
        self.text.validate_at("text")?;
        check_size("embedding", self.embedding, WIDTH_MAX)
    }
}

/// Images with their texts: row i of each belong together.
#[derive(Debug, Clone, PartialEq)]
pub struct Pairs {
    /// `[B, 3, H, W]`.
    pub images: Pixels,
    /// `[B, L]`, padded at the end with any token.
    pub tokens: Vec<u32>,
    /// `L`.
    pub length: usize,
    /// `[B]`: real tokens of each text, at least 1.
    pub lengths: Vec<usize>,
}

/// Image and text tower with a common embedding.
#[derive(Debug, Clone)]
pub struct Clip {
    config: ClipConfig,
    vision_params: Params,
    params: Params,
    vision: Vision,
    text: Decoder,
    vision_projection: Linear,
    text_projection: Linear,
    log_beta: ParamId,
    recompute: Recompute,
}

impl Clip {
    /// A fresh model, ready to be trained.
    ///
    /// # Errors
    /// When the configuration cannot work.
    pub fn new(config: &ClipConfig, seed: u64) -> Result<Self, ModelError> {
        Self::from_source(config.clone(), Source::Random { seed })
    }

    /// The model in a folder that [`Clip::save`] or a run wrote, or transformers, ready to be
    /// trained on.
    ///
    /// # Errors
    /// When the folder does not hold a contrastive model.
    pub fn load(folder: &Path) -> Result<Self, ModelError> {
        let (config, source) = match open_folder(folder)? {
            Folder::Ours(config, source) => (config, source),
            Folder::HuggingFace { config, tensors, path } => {
                let config = Writer::transformers_clip(&config, &path)?;
                let rules = Writer::clip_rules(&config);
                (config, Source::Foreign { tensors, rules, path })
            }
        };
        Self::from_source(config, source)
    }

    pub(crate) fn from_source(config: ClipConfig, source: Source) -> Result<Self, ModelError> {
        config.validate()?;
        source.check(&Self::declare(config.clone(), Source::Shapes)?.params())?;
        Self::declare(config, source)
    }

    fn declare(config: ClipConfig, mut source: Source) -> Result<Self, ModelError> {
        let towers = Declare::new(source.split_off(VISION_PREFIX), Training::Trained);
        let (vision, vision_params) =
            Vision::new(towers, VISION_PREFIX, &config.vision, &config.vision)?;
        let mut declare = Declare::new(source, Training::Trained);
        let text = Decoder::new(&mut declare, TEXT_PREFIX, &config.text)?;
        let (from, to) = (config.vision.width(), config.embedding);
        let vision_projection = Linear::new(&mut declare, "vision_projection", from, to)?;
        let text_projection = Linear::new(&mut declare, "text_projection", config.text.width, to)?;
        let log_beta = declare.add("log_beta", &[1], Start::Constant(LOG_BETA_START))?;
        let params = declare.finish();
        Ok(Self {
            config,
            vision_params,
            params,
            vision,
            text,
            vision_projection,
            text_projection,
            log_beta,
            recompute: Recompute::default(),
        })
    }

    /// Writes `config.json` and `model.safetensors` into an existing folder.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), ModelError> {
        save_folder(folder, &self.config, &self.params())
    }

    /// Writes the vision tower as transformers' `CLIPVisionModel` into an existing folder.
    ///
    /// # Errors
    /// When it is an `NFNet`, which transformers has not, or the folder cannot be written.
    pub fn save_vision_hugging_face(&self, folder: &Path) -> Result<(), ModelError> {
        let VisionConfig::Vit(config) = &self.config.vision else {
            return Err(ModelError::NoFamily { what: "the vision encoder", of: "Hugging Face" });
        };
        Writer::save_transformers_vision(folder, config, &self.vision_params)
    }

    /// What [`save`](Self::save) writes, as it is now, copied into `spare`.
    ///
    /// # Errors
    /// As those of [`Snapshot::take`].
    pub fn snapshot(&self, spare: &Spare) -> Result<Snapshot, ModelError> {
        Snapshot::take(spare, &self.config, &self.params())
    }

    /// Which blocks of the towers keep only their inputs in training steps.
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

    /// The text tower and the parameters of it and of all that joins the towers.
    pub(crate) fn text_parts(&self) -> (&Decoder, &Params) {
        (&self.text, &self.params)
    }

    /// The configuration.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// Adds to `gradients` those of `scale` times the two-term loss with label `smoothing`; returns
    /// the loss itself.
    ///
    /// # Errors
    /// When the pairs do not fit the model.
    pub fn contrastive_step(
        &self,
        pairs: &Pairs,
        smoothing: f32,
        scale: f32,
        gradients: Gradients,
    ) -> Result<(f32, Gradients), ModelError> {
        self.check_pairs(pairs)?;
        ops::on_pool(|| {
            let loss = self.loss(pairs, smoothing, gradients.into_tape()?)?;
            Ok(differentiate(loss, scale)?)
        })
    }

    /// Embeds pairs that are a part of a batch, to be learned from once the embeddings of the others are there
    /// by [`EmbeddedPairs::learn`], which adds to `gradients`.
    ///
    /// # Errors
    /// When the pairs do not fit the model.
    pub fn embed_to_learn(
        &self,
        pairs: &Pairs,
        gradients: Gradients,
    ) -> Result<EmbeddedPairs, ModelError> {
        self.check_pairs(pairs)?;
        let (images, texts) = self.embed(pairs, gradients.into_tape()?)?;
        let embeddings = [images.to_vec()?, texts.to_vec()?];
        let log_beta = self.params.get(self.log_beta).clone();
        Ok(EmbeddedPairs { images, texts, embeddings, log_beta })
    }

    /// Embeddings of pairs, as [`loss_of`](Self::loss_of) takes them: of images and of texts, each `[B * E]`.
    ///
    /// # Errors
    /// When the pairs do not fit the model.
    pub fn embeddings(&self, pairs: &Pairs) -> Result<[Vec<f32>; 2], ModelError> {
        self.check_pairs(pairs)?;
        ops::on_pool(|| {
            let (images, texts) = self.embed(pairs, NotRecording::default())?;
            Ok([images.to_vec()?, texts.to_vec()?])
        })
    }

    /// The two-term loss of embeddings of images and texts, each `[B * E]`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn loss_of(
        &self,
        [images, texts]: [Vec<f32>; 2],
        smoothing: f32,
    ) -> Result<f32, ModelError> {
        let matrix = |values: Vec<f32>| self.params.beside(values.into(), self.config.embedding);
        let images = matrix(images)?.with(NotRecording::default());
        let log_beta = self.params.get(self.log_beta);
        Ok(value_of(&ops::contrastive_loss(images, matrix(texts)?, log_beta, smoothing)?)?)
    }

    /// The two-term loss.
    ///
    /// # Errors
    /// When the pairs do not fit the model.
    pub fn contrastive_loss(&self, pairs: &Pairs, smoothing: f32) -> Result<f32, ModelError> {
        self.check_pairs(pairs)?;
        ops::on_pool(|| Ok(value_of(&self.loss(pairs, smoothing, NotRecording::default())?)?))
    }

    fn loss<T: Record>(
        &self,
        pairs: &Pairs,
        smoothing: f32,
        tape: T,
    ) -> Result<Loss<T>, DeviceError> {
        let (images, texts) = self.embed(pairs, tape)?;
        ops::contrastive_loss(images, texts, self.params.get(self.log_beta), smoothing)
    }

    /// Images and texts, each `[B, E]`; the tape comes with the images.
    fn embed<T: Record>(&self, pairs: &Pairs, tape: T) -> Result<(Matrix<T>, Matrix), DeviceError> {
        let (texts, tape) = self.texts(&pairs.tokens, pairs.length, &pairs.lengths, tape)?.split();
        Ok((self.images((&pairs.images).into(), tape)?, texts))
    }

    /// Images `[B, 3, H, W]` to embeddings of length 1: `[B * E]`.
    ///
    /// # Errors
    /// When the images do not fit the model.
    pub fn embed_images<'a>(
        &self,
        images: impl Into<PixelsRef<'a>>,
    ) -> Result<Vec<f32>, ModelError> {
        let images = images.into();
        check_pixels(images, &self.config.vision, None)?;
        ops::on_pool(|| {
            let x = self.images(images, NotRecording::default())?;
            Ok(ops::unit_rows(&x.to_vec()?, x.width()).0)
        })
    }

    /// Texts `[B, L]`, of which `lengths` `[B]` are real tokens, to embeddings of length 1:
    /// `[B * E]`.
    ///
    /// # Errors
    /// When the texts do not fit the model.
    pub fn embed_texts(
        &self,
        tokens: &[u32],
        length: usize,
        lengths: &[usize],
    ) -> Result<Vec<f32>, ModelError> {
        self.check_texts(tokens, length, lengths)?;
        ops::on_pool(|| {
            let x = self.texts(tokens, length, lengths, NotRecording::default())?;
            Ok(ops::unit_rows(&x.to_vec()?, x.width()).0)
        })
    }

    fn images<T: Record>(&self, images: PixelsRef, tape: T) -> Result<Matrix<T>, DeviceError> {
        let (p, pool) = (&self.vision_params, self.config.pool);
        let x = self.vision.pooled(p, images, tape, self.recompute, pool)?; // [B, V]
        self.vision_projection.forward(&self.params, x) // [B, E]
    }

    /// Padding at the end is left out.
    fn texts<T: Record>(
        &self,
        tokens: &[u32],
        length: usize,
        lengths: &[usize],
        tape: T,
    ) -> Result<Matrix<T>, DeviceError> {
        let kept = KeptRows::first(lengths.iter().copied(), length);
        let x = self.text.forward(
            &self.params,
            &kept.of(tokens),
            &kept.sequences,
            tape,
            &Pass { recompute: self.recompute, ..Pass::default() },
            |_, x| Ok(x),
        )?; // [N, D]
        let spans = kept.sequences.iter();
        let x = match self.config.pool {
            Pool::Mean => ops::mean_rows(x, spans.collect())?,
            Pool::Token => ops::pick_rows(x, spans.map(|span| span.end - 1).collect())?,
        };
        self.text_projection.forward(&self.params, x) // [B, E]
    }

    fn check_pairs(&self, pairs: &Pairs) -> Result<(), ModelError> {
        self.check_texts(&pairs.tokens, pairs.length, &pairs.lengths)?;
        check_pixels((&pairs.images).into(), &self.config.vision, Some(pairs.lengths.len()))
    }

    fn check_texts(
        &self,
        tokens: &[u32],
        length: usize,
        lengths: &[usize],
    ) -> Result<(), ModelError> {
        let texts = self.config.text.check_tokens(tokens, length)?;
        if lengths.len() != texts {
            return Err(ModelError::Input {
                what: "lengths",
                found: format!("{} values", lengths.len()),
                expected: format!("{texts}, one for each text"),
            });
        }
        match lengths.iter().find(|n| **n == 0 || **n > length) {
            None => Ok(()),
            Some(n) => Err(ModelError::Input {
                what: "lengths",
                found: n.to_string(),
                expected: format!("1 to {length} tokens"),
            }),
        }
    }
}

/// Pairs that are embedded and not yet learned from: the batch has others, elsewhere.
#[derive(Debug)]
pub struct EmbeddedPairs {
    images: Matrix<Recording>,
    texts: Matrix,
    /// Of images and of texts, as others are sent them.
    embeddings: [Vec<f32>; 2],
    log_beta: Weight,
}

impl EmbeddedPairs {
    /// Embeddings of images and of texts, each `[b * E]`.
    pub fn embeddings(&self) -> [&[f32]; 2] {
        self.embeddings.each_ref().map(Vec::as_slice)
    }

    /// The two-term loss of the whole batch, and the gradients of `scale` times it with regard to these pairs.
    /// Over all parts of a batch they are its gradients.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// If `all` has not these pairs.
    pub fn learn(
        self,
        all: BatchEmbeddings,
        smoothing: f32,
        scale: f32,
    ) -> Result<(f32, Gradients), ModelError> {
        let Self { images, texts, log_beta, .. } = self;
        let loss = ops::contrastive_loss_in(images, texts, all, &log_beta, smoothing)?;
        Ok(differentiate(loss, scale)?)
    }
}

/// Checks that these pixels are `images` images, or any number but 0, of the tower's size.
pub(crate) fn check_pixels(
    pixels: PixelsRef,
    config: &VisionConfig,
    images: Option<usize>,
) -> Result<(), ModelError> {
    let (n_values, one) = (pixels.len(), config.n_pixel_values());
    let fits = match images {
        Some(n) => n.checked_mul(one) == Some(n_values),
        None => n_values > 0 && n_values.is_multiple_of(one),
    };
    if fits {
        return pixels.check_frames(config.image_size());
    }
    let number = images.map_or("a positive number of".to_owned(), |n| n.to_string());
    Err(ModelError::Input {
        what: "pixels",
        found: format!("{n_values} values"),
        expected: format!(
            "{number} images of 3 x {} x {} values",
            config.image_size(),
            config.image_size()
        ),
    })
}

impl Trainable for Clip {
    fn params(&self) -> Vec<&Params> {
        vec![&self.vision_params, &self.params]
    }

    fn params_mut(&mut self) -> Vec<&mut Params> {
        vec![&mut self.vision_params, &mut self.params]
    }
}
