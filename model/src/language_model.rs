//! The language model by itself: trained first, then frozen inside Flamingo.

use std::path::Path;

use crate::checkpoint::{Folder, Snapshot, open_folder, save_folder, save_tensors};
#[cfg(test)]
use crate::decoder::Place;
use crate::decoder::{Decoder, LanguageConfig, Pass, RowsBeside};
use crate::error::ModelError;
use crate::families::Family;
#[cfg(test)]
use crate::ops::Sequences;
use crate::ops::{self, KeptRows, Recompute, Shares};
use crate::params::{Declare, Params, Source, Trainable, Training};
use crate::spare::Spare;
use crate::tensor::{
    DeviceError, Gradients, Loss, Matrix, NotRecording, Record, differentiate_terms, value_of,
};

/// Prefix of the language model's parameters, in its own checkpoints and in Flamingo's.
pub(crate) const LANGUAGE_PREFIX: &str = "language.";

/// A batch of text.
#[derive(Debug, Clone, PartialEq)]
pub struct TextBatch {
    /// `[B, L]`.
    pub tokens: Vec<u32>,
    /// `L`.
    pub length: usize,
    /// `[B, L]`: 1 where `tokens[l + 1]` is to be predicted from position l, else 0. Last positions
    /// are 0.
    pub loss_mask: Vec<f32>,
}

/// What a step of a language model goes down: `scale` times the mean of `nll + z_loss * log(Z)^2` over the
/// predicted tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    /// What the gradient is multiplied by.
    pub scale: f32,
    /// Weight of `log(Z)^2`, `Z` being the sum of the exponentials of a token's logits, which keeps them
    /// from growing; 0 is none. `PaLM`: 1e-4, IDEFICS: 1e-3.
    pub z_loss: f32,
}

impl Objective {
    /// The loss alone.
    pub fn nll(scale: f32) -> Self {
        Self { scale, z_loss: 0.0 }
    }

    /// What each of `n` predicted tokens adds.
    pub(crate) fn shares(self, n: usize) -> Shares {
        Shares { scale: 1.0 / n as f32, z: self.z_loss }
    }
}

/// The terms of an objective, means over the predicted tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LossTerms {
    /// The loss in nats.
    pub nll: f32,
    /// `z_loss * log(Z)^2`, if it is wanted.
    pub z: Option<f32>,
}

/// A decoder with its head.
#[derive(Debug, Clone)]
pub struct LanguageModel {
    config: LanguageConfig,
    params: Params,
    decoder: Decoder,
    recompute: Recompute,
}

impl LanguageModel {
    /// A fresh model, ready to be trained.
    ///
    /// # Errors
    /// When the configuration cannot work.
    pub fn new(config: &LanguageConfig, seed: u64) -> Result<Self, ModelError> {
        Self::from_source(config.clone(), Source::Random { seed }, Training::Trained)
    }

    /// The model in a folder that [`LanguageModel::save`] or a run wrote, or in one of Hugging
    /// Face, ready to be trained on.
    ///
    /// # Errors
    /// When the folder does not hold a language model.
    pub fn load(folder: &Path) -> Result<Self, ModelError> {
        let (config, source) = language_folder(folder)?;
        Self::from_source(config, source, Training::Trained)
    }

    pub(crate) fn from_source(
        config: LanguageConfig,
        source: Source,
        training: Training,
    ) -> Result<Self, ModelError> {
        config.validate()?;
        let mut outline = Declare::new(Source::Shapes, Training::Frozen);
        Decoder::new(&mut outline, LANGUAGE_PREFIX, &config)?;
        source.check(&[&outline.finish()])?;
        let mut declare = Declare::new(source, training);
        let decoder = Decoder::new(&mut declare, LANGUAGE_PREFIX, &config)?;
        Ok(Self { config, params: declare.finish(), decoder, recompute: Recompute::default() })
    }

    /// Writes `config.json` and `model.safetensors` as Hugging Face's transformers reads them, into
    /// an existing folder.
    ///
    /// # Errors
    /// When the model is built like none of its families, or the folder cannot be written.
    pub fn save_hugging_face(&self, folder: &Path) -> Result<(), ModelError> {
        let family = Family::of(&self.config)?;
        let rules = family.rules(LANGUAGE_PREFIX, &self.config);
        let ours = self.params.iter().map(|p| (p.name.as_str(), p.weight.values()));
        save_tensors(folder, &family.write(&self.config), &rules.translate(ours)?)
    }

    /// Writes `config.json` and `model.safetensors`.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), ModelError> {
        save_folder(folder, &self.config, &[&self.params])
    }

    /// What [`save`](Self::save) writes, as it is now, copied into `spare`.
    ///
    /// # Errors
    /// As those of [`Snapshot::take`].
    pub fn snapshot(&self, spare: &Spare) -> Result<Snapshot, ModelError> {
        Snapshot::take(spare, &self.config, &[&self.params])
    }

    /// Which blocks keep only their inputs in training steps.
    pub fn set_recompute(&mut self, recompute: Recompute) {
        self.recompute = recompute;
    }

    /// The configuration.
    pub fn config(&self) -> &LanguageConfig {
        &self.config
    }

    /// Gives the model other embeddings of tokens, `[vocabulary, D]`, and another head where it has
    /// one of its own; the vocabulary becomes as large as they are.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn replace_embeddings(
        &mut self,
        vocabulary: usize,
        tokens: Vec<f32>,
        head: Option<Vec<f32>>,
    ) -> Result<(), ModelError> {
        self.decoder.replace_embeddings(&mut self.params, vocabulary, tokens, head)?;
        self.config.vocabulary = vocabulary;
        Ok(())
    }

    pub(crate) fn recompute(&self) -> Recompute {
        self.recompute
    }

    pub(crate) fn parts(&self) -> (&Decoder, &Params) {
        (&self.decoder, &self.params)
    }

    /// Adds to `gradients` those of `scale` times the mean loss over the predicted tokens; returns
    /// the mean loss itself, in nats per token.
    ///
    /// # Errors
    /// When the batch does not fit the model.
    pub fn step(
        &self,
        batch: &TextBatch,
        scale: f32,
        gradients: Gradients,
    ) -> Result<(f32, Gradients), ModelError> {
        let (terms, gradients) = self.step_on(batch, Objective::nll(scale), gradients)?;
        Ok((terms.nll, gradients))
    }

    /// Adds to `gradients` those of the objective; returns its terms.
    ///
    /// # Errors
    /// When the batch does not fit the model.
    pub fn step_on(
        &self,
        batch: &TextBatch,
        objective: Objective,
        gradients: Gradients,
    ) -> Result<(LossTerms, Gradients), ModelError> {
        let (targets, n) = batch.targets(&self.config)?;
        ops::on_pool(|| {
            let shares = objective.shares(n);
            let loss = self.loss(batch, &targets, shares, gradients.into_tape()?)?;
            let (nll, z, gradients) = differentiate_terms(loss, objective.scale)?;
            Ok((LossTerms { nll, z }, gradients))
        })
    }

    /// The mean loss over the predicted tokens, in nats per token.
    ///
    /// # Errors
    /// When the batch does not fit the model.
    pub fn loss_only(&self, batch: &TextBatch) -> Result<f32, ModelError> {
        let (targets, n) = batch.targets(&self.config)?;
        ops::on_pool(|| {
            let tape = NotRecording::default();
            Ok(value_of(&self.loss(batch, &targets, Objective::nll(1.0).shares(n), tape)?)?)
        })
    }

    /// The loss at each position that predicts, 0 elsewhere, in nats: `[B * L]`.
    ///
    /// # Errors
    /// When the batch does not fit the model.
    pub fn nll(&self, batch: &TextBatch) -> Result<Vec<f32>, ModelError> {
        let (targets, _) = batch.targets(&self.config)?;
        ops::on_pool(|| {
            let kept = KeptRows::predicting(&targets, batch.length);
            let hidden = self.hidden(&batch.tokens, &kept, NotRecording::default())?;
            let head = self.decoder.head(&self.params, &RowsBeside::default());
            let losses = ops::token_losses(&hidden, &head, &kept.of(&targets))?;
            Ok(kept.spread(&losses, targets.len()))
        })
    }

    /// The logits at every position of `tokens` `[B, L]`: `[B * L * vocabulary]`.
    ///
    /// # Errors
    /// When the tokens do not fit the model.
    pub fn logits(&self, tokens: &[u32], length: usize) -> Result<Vec<f32>, ModelError> {
        self.config.check_tokens(tokens, length)?;
        ops::on_pool(|| {
            let kept = KeptRows::all(tokens.len(), length);
            let hidden = self.hidden(tokens, &kept, NotRecording::default())?;
            let head = self.decoder.head(&self.params, &RowsBeside::default());
            Ok(all_logits(&hidden, &head, self.config.vocabulary)?)
        })
    }

    /// States before every block, then after the last norm, each `[B * L, D]`.
    #[cfg(test)]
    pub(crate) fn all_hidden(&self, tokens: &[u32], length: usize) -> Vec<Vec<f32>> {
        let all = std::cell::RefCell::new(Vec::new());
        let tape = NotRecording::default();
        let last = self.decoder.forward(
            &self.params,
            tokens,
            &Sequences::equal(tokens.len(), length),
            tape,
            &Pass::default(),
            |place, x| {
                if let Place::Before(_) = place {
                    all.borrow_mut().push(x.to_vec()?);
                }
                Ok(x)
            },
        );
        let mut all = all.into_inner();
        all.push(last.unwrap().to_vec().unwrap());
        all
    }

    /// States of some rows of `tokens` `[B, L]`.
    fn hidden<T: Record>(
        &self,
        tokens: &[u32],
        kept: &KeptRows,
        tape: T,
    ) -> Result<Matrix<T>, DeviceError> {
        self.decoder.forward(
            &self.params,
            &kept.of(tokens),
            &kept.sequences,
            tape,
            &Pass { recompute: self.recompute, ..Pass::default() },
            |_, x| Ok(x),
        )
    }

    fn loss<T: Record>(
        &self,
        batch: &TextBatch,
        targets: &[Option<u32>],
        shares: Shares,
        tape: T,
    ) -> Result<Loss<T>, DeviceError> {
        let kept = KeptRows::predicting(targets, batch.length);
        let hidden = self.hidden(&batch.tokens, &kept, tape)?;
        let head = self.decoder.head(&self.params, &RowsBeside::default());
        ops::cross_entropy(hidden, &head, &kept.of(targets), shares)
    }
}

/// The language model in a folder of ours, a run's or Hugging Face's.
///
/// # Errors
/// When the folder does not hold a language model, or one that is not supported.
pub(crate) fn language_folder(folder: &Path) -> Result<(LanguageConfig, Source), ModelError> {
    match open_folder(folder)? {
        Folder::Ours(config, source) => Ok((config, source)),
        Folder::HuggingFace { config, tensors, path } => {
            let (family, config) = Family::read(&config, &path)?;
            let source = family.source(&config, tensors, path)?;
            Ok((config, source))
        }
    }
}

/// The logits of all rows, one after the other.
///
/// # Errors
/// When the device fails.
pub(crate) fn all_logits(
    hidden: &Matrix,
    head: &ops::TokenTable,
    vocabulary: usize,
) -> Result<Vec<f32>, DeviceError> {
    let mut all = Vec::with_capacity(hidden.rows() * vocabulary);
    ops::each_logits(hidden, head, |_, logits| all.extend_from_slice(logits))?;
    Ok(all)
}

impl Trainable for LanguageModel {
    fn params(&self) -> Vec<&Params> {
        vec![&self.params]
    }

    fn params_mut(&mut self) -> Vec<&mut Params> {
        vec![&mut self.params]
    }
}

impl TextBatch {
    /// What each position predicts, and the number of positions that do, at least 1.
    fn targets(&self, config: &LanguageConfig) -> Result<(Vec<Option<u32>>, usize), ModelError> {
        config.check_tokens(&self.tokens, self.length)?;
        targets(&self.tokens, self.length, &self.loss_mask)
    }
}

/// The token that each position of `tokens` `[B, L]` is to predict, and how many do, at least 1 so
/// that it can divide.
pub(crate) fn targets(
    tokens: &[u32],
    length: usize,
    loss_mask: &[f32],
) -> Result<(Vec<Option<u32>>, usize), ModelError> {
    if loss_mask.len() != tokens.len() {
        return Err(ModelError::Input {
            what: "loss_mask",
            found: format!("{} values", loss_mask.len()),
            expected: format!("{}, one for each token", tokens.len()),
        });
    }
    let mut all = Vec::with_capacity(tokens.len());
    for (i, mask) in loss_mask.iter().enumerate() {
        let last = (i + 1).is_multiple_of(length);
        // Exactly 0 or 1 by their bits: a mask is a choice, not a weight.
        let predicts = mask.to_bits() == 1.0_f32.to_bits();
        if (!predicts && mask.to_bits() != 0) || (predicts && last) {
            return Err(ModelError::Input {
                what: "loss_mask",
                found: format!("{mask} at position {} of sequence {}", i % length, i / length),
                expected: "0 or 1, and 0 at the last position".to_owned(),
            });
        }
        all.push(predicts.then(|| tokens[i + 1]));
    }
    let n = all.iter().flatten().count().max(1);
    Ok((all, n))
}
