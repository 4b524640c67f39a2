//! A Flamingo model under training, as the loop sees it: its losses and gradients on batches, with the features of
//! frozen encoders where they are kept, and with other images in place of their own.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use flamingo_dataset::{Batch, FeatureCache};
use flamingo_model::{
    Flamingo, GateKind, GateSums, Gradients, Inputs, LossTerms, ModelError, Objective, Params,
    Pixels, PixelsRef, Snapshot, Spare, Trainable, TrainedTowers,
};

use crate::error::TrainError;
use crate::flop::{Parts, StepRows};
use crate::inputs;
use crate::stage::{Stage, observe};
use crate::text_loss::{self, TextLoss};
use crate::validation::{HeldOut, Measures};

/// What a model is before the first update of its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beginning {
    /// With closed gates its language model.
    LanguageModel,
    /// Trained already.
    Trained,
}

/// The model under training.
pub(crate) struct Joined {
    /// The model.
    pub(crate) flamingo: Flamingo,
    /// What it began as.
    pub(crate) beginning: Beginning,
    /// What is kept of the features of frozen encoders.
    pub(crate) features: Option<Mutex<FeatureCache>>,
    /// How many parameters its parts have.
    pub(crate) parts: Parts,
    /// Its towers that are trained.
    pub(crate) trained: TrainedTowers,
    /// Weight of the term beside the loss.
    pub(crate) z_loss: f32,
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
                *nats += text_loss::nats(&nll(inputs)?) - text_loss::nats(&own);
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
        let tokens = inputs::computed_tokens(batch);
        let rows = StepRows { tokens, images, frames: batch.n_frames };
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
