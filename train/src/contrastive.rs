//! The contrastive stage: a vision encoder and a text encoder that match images with their captions
//! (paper, appendix B.1.3). Only the vision encoder is used further on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;

use flamingo_dataset::{Batch, CorpusKind, caption_tokens};
use flamingo_model::{
    BatchEmbeddings, Clip, ClipConfig, Gradients, LanguageConfig, LossTerms, ModelError, Pool,
    Snapshot, Spare, Trainable, VisionConfig,
};
use serde::{Deserialize, Serialize};

use crate::collective::Collective;
use crate::command::{Command, Told};
use crate::config::BatchesDivide;
use crate::config_file::ConfigFile;
use crate::corpora::open_corpora;
use crate::ended::Ended;
use crate::error::TrainError;
use crate::flop::ContrastiveProducts;
use crate::grid;
use crate::inputs;
use crate::retrieval::{self, Side};
use crate::run_tokenizer::own_tokenizer;
use crate::setup::{Prepared, launch, until_done};
use crate::stage::{Stage, observe};
use crate::trouble::Trouble;
use crate::validation::{
    CLASS_ACCURACY, CLASS_PLACE, CLASS_ROWS, HeldOut, HeldOutConfig, Measures,
};

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

/// What is measured on rows that are not learned from.
const MEASURES: [&str; 8] = [
    "image_to_text_r1",
    "image_to_text_r5",
    "image_to_text_r10",
    "text_to_image_r1",
    "text_to_image_r5",
    "text_to_image_r10",
    CLASS_ACCURACY,
    CLASS_ROWS,
];

/// Among how many of the others a right one must be.
const RECALL_AT: [usize; 3] = [1, 5, 10];

/// Embeddings of all rows of a dataset that is not learned from.
#[derive(Default)]
struct Embedded {
    /// `[B, E]`.
    images: Vec<f32>,
    /// `[B, E]`.
    texts: Vec<f32>,
    /// The tokens of each caption, without padding.
    captions: Vec<Vec<u32>>,
}

impl Embedded {
    /// Recalls in both directions. An image finds its caption among all that differ, and a caption any of
    /// the images that have it: captions alike are one caption.
    fn recalls(&self, width: usize) -> Measures {
        let of = retrieval::numbered(&self.captions);
        let mut seen = BTreeSet::new();
        let first: Vec<usize> = (0..of.len()).filter(|i| seen.insert(of[*i])).collect();
        let texts: Vec<f32> =
            first.iter().flat_map(|i| &self.texts[i * width..][..width]).copied().collect();
        let of_texts: Vec<usize> = first.iter().map(|i| of[*i]).collect();
        let images = Side { embeddings: &self.images, of: &of };
        let texts = Side { embeddings: &texts, of: &of_texts };
        let mut measures = Measures::new();
        for (from_to, queries, candidates) in
            [("image_to_text", images, texts), ("text_to_image", texts, images)]
        {
            let ranks = retrieval::ranks(queries, candidates, width);
            for k in RECALL_AT {
                measures.insert(format!("{from_to}_r{k}"), retrieval::recall(&ranks, k));
            }
        }
        measures
    }
}

/// The model under training.
struct Contrastive {
    clip: Clip,
    label_smoothing: f32,
    products: ContrastiveProducts,
    /// Who has the other pairs of a batch.
    ranks: Rc<dyn Collective>,
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
    file: &ConfigFile<ContrastiveModel>,
    troubles: Vec<Trouble>,
) -> Result<Ended, TrainError> {
    file.require_no_feature_cache()?;
    file.require_nothing_of_flamingo()?;
    file.require_whole_batches()?;
    file.require_whole_captions()?;
    file.require_no_z_loss()?;
    file.require_images(|images| images == 1, "1")?;
    file.require_measures(&MEASURES)?;
    for (path, entry) in file.datasets() {
        let key = format!("{path}.pack");
        file.require(entry.pack == 1, key, &entry.pack, "1: a caption is matched by itself")?;
        let (after, key) = (&entry.learn_after, format!("{path}.learn_after"));
        let given = after.clone().unwrap_or_default();
        file.require(after.is_none(), key, &given, "nothing: a caption is matched as a whole")?;
    }
    let image = file.image()?;
    let model = &file.config.model;
    let (size, expected) = (model.vision.image_size(), format!("{}, as image.size", image.size));
    file.require(size == image.size, "model.vision.image_size", &size, &expected)?;
    check_model(file)?;
    file.require_context(model.text.context)?;

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
    let device = command.place(&mut clip, &[])?;
    let (products, label_smoothing) = (ContrastiveProducts::of(&clip), model.label_smoothing);
    let ranks = Rc::clone(&command.ranks);
    let mut stage = Contrastive { clip, label_smoothing, products, ranks };
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

impl Contrastive {
    /// The embeddings of a batch of which these are this rank's share, each `[b, E]`.
    fn of_all_ranks(&self, [images, texts]: [&[f32]; 2]) -> Result<BatchEmbeddings, TrainError> {
        let (images, first) = self.ranks.gather_floats(images)?;
        let (texts, _) = self.ranks.gather_floats(texts)?;
        Ok(BatchEmbeddings { images, texts, first: first / self.clip.config().embedding })
    }

    /// Embeddings of all rows, each row once: one may stand in for a corrupt one.
    fn embed(&self, held_out: &HeldOut) -> Result<Embedded, TrainError> {
        let (mut all, mut rows) = (Embedded::default(), BTreeSet::new());
        let width = self.clip.config().embedding;
        held_out.each_batch(|batch| {
            let pairs = inputs::pairs(batch)?;
            let images = self.clip.embed_images(&pairs.images).map_err(TrainError::model("run"))?;
            let texts = self.clip.embed_texts(&pairs.tokens, pairs.length, &pairs.lengths);
            let texts = texts.map_err(TrainError::model("run"))?;
            for (i, row) in batch.rows.iter().enumerate() {
                if !rows.insert(*row) {
                    continue;
                }
                all.images.extend_from_slice(&images[i * width..][..width]);
                all.texts.extend_from_slice(&texts[i * width..][..width]);
                let caption = &pairs.tokens[i * pairs.length..][..pairs.lengths[i]];
                all.captions.push(caption.to_vec());
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// The embedding of each class, the mean of those of its prompts: `[C, E]`.
    fn classes(&self, held_out: &HeldOut) -> Result<Vec<f32>, TrainError> {
        let HeldOutConfig { classes, prompts, tokens: length, .. } = held_out.config();
        let mut all = Vec::new();
        for class in classes {
            let (mut tokens, mut lengths) = (Vec::new(), Vec::new());
            for prompt in prompts {
                let prompt = prompt.replace(CLASS_PLACE, class);
                let mut row = caption_tokens(&prompt, held_out.tokenizer());
                row.truncate(*length);
                lengths.push(row.len());
                row.resize(*length, held_out.tokenizer().pad_id());
                tokens.extend(row);
            }
            let embeddings = self.clip.embed_texts(&tokens, *length, &lengths);
            let embeddings = embeddings.map_err(TrainError::model("run"))?;
            all.extend(retrieval::mean_direction(&embeddings, self.clip.config().embedding));
        }
        Ok(all)
    }

    /// Share of the images that are nearest to the class that their caption names, and how many these
    /// are: those whose caption names none, or several, are left out.
    fn classified(&self, held_out: &HeldOut, all: &Embedded) -> Result<Measures, TrainError> {
        let (width, names) = (self.clip.config().embedding, &held_out.config().classes);
        let (mut images, mut of) = (Vec::new(), Vec::new());
        for (image, caption) in all.images.chunks(width).zip(&all.captions) {
            let caption = held_out.tokenizer().decode(caption);
            if let Some(class) = retrieval::class_named(&caption, names) {
                images.extend_from_slice(image);
                of.push(class);
            }
        }
        let (classes, numbers) = (self.classes(held_out)?, (0..names.len()).collect::<Vec<_>>());
        let classes = Side { embeddings: &classes, of: &numbers };
        let ranks = retrieval::ranks(Side { embeddings: &images, of: &of }, classes, width);
        let mut measures = Measures::from([(CLASS_ROWS.to_owned(), of.len() as f64)]);
        if !of.is_empty() {
            measures.insert(CLASS_ACCURACY.to_owned(), retrieval::recall(&ranks, 1));
        }
        Ok(measures)
    }
}

impl Stage for Contrastive {
    fn validate(&self, held_out: &HeldOut) -> Result<Measures, TrainError> {
        let all = self.embed(held_out)?;
        let mut measures = all.recalls(self.clip.config().embedding);
        if !held_out.config().classes.is_empty() {
            measures.extend(self.classified(held_out, &all)?);
        }
        Ok(measures)
    }

    /// Of the pairs of all ranks: each is compared with all others of its batch.
    fn loss(&self, batch: &Batch) -> Result<f32, TrainError> {
        let (pairs, smoothing) = (inputs::pairs(batch)?, self.label_smoothing);
        let run = TrainError::model;
        if self.ranks.is_alone() {
            return self.clip.contrastive_loss(&pairs, smoothing).map_err(run("run"));
        }
        let [images, texts] = self.clip.embeddings(&pairs).map_err(run("run"))?;
        let all = self.of_all_ranks([&images, &texts])?;
        self.clip.loss_of([all.images, all.texts], smoothing).map_err(run("run"))
    }

    fn step(
        &self,
        batch: &Batch,
        weight: f32,
        gradients: Gradients,
    ) -> Result<(LossTerms, Gradients), TrainError> {
        let (pairs, smoothing) = (inputs::pairs(batch)?, self.label_smoothing);
        let run = TrainError::model;
        let (nll, gradients) = if self.ranks.is_alone() {
            let step = self.clip.contrastive_step(&pairs, smoothing, weight, gradients);
            step.map_err(run("run"))?
        } else {
            let embedded = self.clip.embed_to_learn(&pairs, gradients).map_err(run("run"))?;
            let all = self.of_all_ranks(embedded.embeddings())?;
            // The weight is that of this rank's share, and the loss that of all.
            let weight = weight * self.ranks.rank().count as f32;
            embedded.learn(all, smoothing, weight).map_err(run("run"))?
        };
        Ok((LossTerms { nll, z: None }, gradients))
    }

    /// Pairs: each is matched with all others.
    fn n_terms(&self, batch: &Batch) -> u64 {
        batch.size as u64
    }

    fn flop(&self, batch: &Batch) -> Option<f64> {
        // The end of a caption is computed, and predicts nothing.
        Some(self.products.flop(batch.size, inputs::computed_tokens(batch) + batch.size))
    }

    fn activation_bytes(&self, batch: &Batch) -> u64 {
        let of_all = batch.size * self.ranks.rank().count;
        self.clip.activation_bytes(batch.size, of_all, batch.tokens.len())
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
