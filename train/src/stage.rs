//! What differs between the stages of training, and what the loop asks of each.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use flamingo_dataset::Batch;
use flamingo_model::{
    GateSums, Gradients, LossTerms, ModelError, Parameter, Params, Snapshot, Spare, Trainable,
};

use crate::config::BatchesDivide;
use crate::error::TrainError;
use crate::validation::{HeldOut, Measures};

/// A stage, with the model that it trains.
pub trait Stage {
    /// Mean loss of a batch.
    ///
    /// # Errors
    /// When the batch does not fit the model or the device is out of memory.
    fn loss(&self, batch: &Batch) -> Result<f32, TrainError>;

    /// Mean loss of a batch; adds `weight` times its gradient and that of the term beside it, if the stage
    /// has one.
    ///
    /// # Errors
    /// When the batch does not fit the model or the device is out of memory.
    fn step(
        &self,
        batch: &Batch,
        weight: f32,
        gradients: Gradients,
    ) -> Result<(LossTerms, Gradients), TrainError>;

    /// The model's parameters, for reading.
    fn model(&self) -> &dyn Trainable;

    /// The model's parameters, for updating.
    fn model_mut(&mut self) -> &mut dyn Trainable;

    /// A copy of the model in `spare`, to be written while it goes on learning.
    ///
    /// # Errors
    /// When memory cannot hold it, or the device fails.
    fn snapshot(&self, spare: &Spare) -> Result<Snapshot, ModelError>;

    /// Writes a loadable model into a folder.
    ///
    /// # Errors
    /// When the disk cannot be written.
    fn save(&self, folder: &Path) -> Result<(), ModelError>;

    /// Brings to the disk what the stage keeps beside its model.
    ///
    /// # Errors
    /// When the disk cannot be written.
    fn at_checkpoint(&self) -> Result<(), TrainError> {
        Ok(())
    }

    /// What the mean loss of a batch is a mean of: the tokens that are predicted.
    fn n_terms(&self, batch: &Batch) -> u64 {
        batch.n_predicted()
    }

    /// Whether a batch can be cut into parts: the loss of each row is its own.
    fn batches_divide(&self) -> BatchesDivide {
        BatchesDivide::Yes
    }

    /// Images and clips of a batch that the stage looks at.
    fn n_images(&self, batch: &Batch) -> u64 {
        batch.image_count.iter().sum::<usize>() as u64
    }

    /// Operations of a training step on a batch, where they are counted: see [`flop`](crate::flop).
    fn flop(&self, _batch: &Batch) -> Option<f64> {
        None
    }

    /// About how many bytes the activations of a training step on a batch take, in f32 on the CPU.
    fn activation_bytes(&self, batch: &Batch) -> u64;

    /// Mean losses of a batch with other images than its own, each with what they are, of
    /// [`IMAGES`](crate::looks::IMAGES).
    ///
    /// # Errors
    /// As those of [`loss`](Self::loss).
    fn blind_losses(&self, _batch: &Batch) -> Result<Vec<(&'static str, f32)>, TrainError> {
        Ok(Vec::new())
    }

    /// What each cross-attention block adds to the text states of these parts of batches, over the tokens
    /// that see an image and predict the next token.
    ///
    /// # Errors
    /// As those of [`loss`](Self::loss).
    fn gate_sums(&self, _parts: &[Cow<Batch>]) -> Result<Vec<GateSums>, TrainError> {
        Ok(Vec::new())
    }

    /// What is measured on rows that are not learned from, under the names of the measures.
    ///
    /// # Errors
    /// When rows cannot be read, do not fit the model, or the device is out of memory.
    fn validate(&self, _held_out: &HeldOut) -> Result<Measures, TrainError> {
        Ok(Measures::new())
    }

    /// What a run logs about the model besides its loss.
    fn observe(&self) -> BTreeMap<String, f64> {
        BTreeMap::new()
    }

    /// Digest of the weights that are not trained, if there are any.
    fn frozen_sha256(&self) -> Option<String> {
        None
    }

    /// Checks a fresh model on the first rows; says what was found.
    ///
    /// # Errors
    /// When the model is not what a fresh one should be.
    fn check_fresh(&self, _first: &Batch) -> Result<Option<String>, TrainError> {
        Ok(None)
    }
}

/// The single values of a model whose names `wanted` chooses, after `view`, under `group` and their
/// names.
pub(crate) fn observe(
    model: &dyn Trainable,
    wanted: impl Fn(&str) -> bool,
    group: &str,
    view: impl Fn(f64) -> f64,
) -> BTreeMap<String, f64> {
    let parameters = model.params().into_iter().flat_map(Params::iter);
    let wanted = parameters.filter(|parameter| wanted(&parameter.name));
    let value = |parameter: &Parameter| {
        let value = f64::from(parameter.weight.values()[0]);
        (format!("{group}.{}", parameter.name), view(value))
    };
    wanted.map(value).collect()
}
