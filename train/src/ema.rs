//! The exponential moving average of the trained weights, kept in f32 beside them. It is a model of its
//! own in every checkpoint, `step-N/ema/`, and a resumed run goes on with it.

use std::collections::BTreeMap;
use std::iter;
use std::path::Path;

use flamingo_model::{Average, DeviceError, ModelError, Params, Spare, Tensors, save_variant};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{self, Checkpoint};
use crate::error::TrainError;
use crate::stage::Stage;

/// Folder of the averaged model in a checkpoint's.
pub const FOLDER: &str = "ema";

/// The file with the averages in it.
const WEIGHTS: &str = "model.safetensors";

/// Read from `[ema]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmaConfig {
    /// Share of the old average in the new one. The paper averages no weights; 0.9999 is common.
    pub decay: f64,
    /// Whether the average follows the first updates faster.
    #[serde(default)]
    pub warmup: Warmup,
}

/// How an average begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Warmup {
    /// With the same decay as later: the weights that the run began with stay in it for long.
    #[default]
    None,
    /// With the lesser of `decay` and (1 + n) / (10 + n) at the update after n others, `TensorFlow`'s rule.
    ByUpdates,
}

impl EmaConfig {
    /// The decay at the update after `done` others.
    pub fn decay_at(&self, done: u64) -> f64 {
        let n = done as f64;
        match self.warmup {
            Warmup::None => self.decay,
            Warmup::ByUpdates => self.decay.min((1.0 + n) / (10.0 + n)),
        }
    }
}

/// Which weights of a model are looked at while it learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WeightsUsed {
    /// Those that are learned.
    #[default]
    Raw,
    /// Their averages.
    Ema,
}

impl WeightsUsed {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    pub(crate) fn is_raw(&self) -> bool {
        *self == Self::Raw
    }
}

/// The averages, which live where the weights do.
#[derive(Debug)]
pub struct Ema {
    config: EmaConfig,
    averages: BTreeMap<String, Average>,
}

impl Ema {
    /// Averages that begin as the weights.
    pub fn new(config: &EmaConfig, params: &[&Params]) -> Self {
        let trained = params.iter().flat_map(|params| params.iter());
        let trained = trained.filter(|parameter| parameter.weight.is_trained());
        let averages = trained.map(|parameter| {
            let values = parameter.weight.values().into_owned();
            (parameter.name.clone(), Average::new(&parameter.shape, values))
        });
        Self { config: config.clone(), averages: averages.collect() }
    }

    /// Goes on with the averages of a checkpoint.
    ///
    /// # Errors
    /// When the average of a trained parameter is missing or has another shape.
    pub fn restore(
        config: &EmaConfig,
        params: &[&Params],
        checkpoint: &Checkpoint,
    ) -> Result<Self, TrainError> {
        let load = TrainError::model;
        let path = checkpoint.folder.join(FOLDER).join(WEIGHTS);
        checkpoint::verify(&path)?;
        let mut tensors = Tensors::read(&path).map_err(load("load"))?;
        let mut averages = BTreeMap::new();
        let all = params.iter().flat_map(|params| params.iter());
        for parameter in all.filter(|parameter| parameter.weight.is_trained()) {
            let (name, shape) = (&parameter.name, &parameter.shape);
            let values = tensors.take(name, shape, &path).map_err(load("load"))?;
            averages.insert(name.clone(), Average::new(shape, values));
        }
        Ok(Self { config: config.clone(), averages })
    }

    /// Follows the update that was made after `done` others.
    ///
    /// # Errors
    /// When the device fails.
    pub fn follow(&mut self, params: &[&Params], done: u64) -> Result<(), TrainError> {
        let rate = (1.0 - self.config.decay_at(done)) as f32;
        let mut all = params.iter();
        all.try_for_each(|params| params.average(&mut self.averages, rate))
            .map_err(TrainError::model("run"))
    }

    /// What `look` finds in a model with the averages in place of its weights, which are the same to the last
    /// bit afterwards. They are copied meanwhile.
    ///
    /// # Errors
    /// When `look` or the device fails.
    pub fn in_place<T>(
        &self,
        stage: &mut dyn Stage,
        look: impl FnOnce(&dyn Stage) -> Result<T, TrainError>,
    ) -> Result<T, TrainError> {
        let params = stage.model().params();
        let averages = params.iter().map(|params| self.of(params));
        let averages = averages.collect::<Result<Vec<_>, _>>()?;
        let weights = params.iter().map(|params| params.trained_values(0..params.iter().count()));
        let weights = weights.collect();
        #[expect(
            clippy::redundant_closure,
            reason = "`put` itself wants a stage that lives longer"
        )]
        exchanged(
            stage,
            [averages, weights],
            |stage, values| put(stage, values),
            |stage| look(stage),
        )
    }

    /// The averages of the trained parameters among some, one after the other.
    fn of(&self, params: &Params) -> Result<Vec<f32>, TrainError> {
        let mut all = Vec::new();
        for parameter in params.iter().filter(|parameter| parameter.weight.is_trained()) {
            let values = self.averages[&parameter.name].values(&Spare::default());
            all.extend(values.map_err(|error| TrainError::model("run")(error.into()))?);
        }
        Ok(all)
    }

    /// A copy of the averages, for a checkpoint, made on all cores.
    ///
    /// # Errors
    /// When the device fails, or memory cannot hold the copy.
    pub fn to_tensors(&self, spare: &Spare) -> Result<Tensors, ModelError> {
        let copied = self.averages.par_iter().map(|(name, average)| {
            let values: Result<_, DeviceError> = average.values(spare);
            Ok((name, average, values?))
        });
        let copied: Vec<_> = copied.collect::<Result<_, DeviceError>>()?;
        let mut tensors = Tensors::default();
        for (name, average, values) in copied {
            tensors.insert(name.clone(), average.shape(), values);
        }
        Ok(tensors)
    }
}

/// What `look` finds after `put` gave `of` the first values. It has the second ones again afterwards, whatever
/// failed before.
///
/// # Errors
/// When `put` or `look` fails; [`TrainError::WeightsLost`] where the second values could not be put.
fn exchanged<S: ?Sized, V, T>(
    of: &mut S,
    [values, back]: [V; 2],
    put: impl Fn(&mut S, &V) -> Result<(), ModelError>,
    look: impl FnOnce(&S) -> Result<T, TrainError>,
) -> Result<T, TrainError> {
    // Some may have been put before it failed.
    let found = put(of, &values).map_err(TrainError::model("run")).and_then(|()| look(of));
    put(of, &back).map_err(|source| TrainError::WeightsLost { source: Box::new(source) })?;
    found
}

/// Gives all trained parameters of a model other values.
fn put(stage: &mut dyn Stage, values: &Vec<Vec<f32>>) -> Result<(), ModelError> {
    for (params, values) in iter::zip(stage.model_mut().params_mut(), values) {
        params.set_trained_values(0..params.iter().count(), values)?;
    }
    Ok(())
}

/// Writes an averaged model into the folder of the model that it is an average of. Frozen weights are
/// not written again.
///
/// # Errors
/// When the disk fails.
pub fn save(averages: &Tensors, model: &Path) -> Result<(), ModelError> {
    save_variant(model, FOLDER, averages)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Device errors at each of both times, and both: what the model has afterwards is known, or it is said that
    /// it is not.
    #[test]
    fn weights_are_put_back_whatever_fails_or_are_known_to_be_lost() {
        for (fails_in, fails_back, look_fails) in [
            (false, false, false),
            (false, false, true),
            (true, false, false),
            (false, true, false),
            (true, true, false),
        ] {
            let mut model = vec![1, 2];
            let put = |model: &mut Vec<i32>, values: &Vec<i32>| {
                // Half of it is there when the device fails.
                model[0] = values[0];
                if values[0] == 8 && fails_in || values[0] == 1 && fails_back {
                    return Err(ModelError::Device(DeviceError::OutOfMemory));
                }
                model[1] = values[1];
                Ok(())
            };
            let look = |model: &Vec<i32>| {
                assert_eq!(*model, [8, 9]);
                if look_fails { Err(TrainError::ValidationCut) } else { Ok(model[0]) }
            };
            let found = exchanged(&mut model, [vec![8, 9], vec![1, 2]], put, look);
            match found {
                Ok(found) => assert!(found == 8 && !fails_in && !fails_back && !look_fails),
                Err(TrainError::WeightsLost { .. }) => assert!(fails_back),
                Err(TrainError::ValidationCut) => assert!(look_fails),
                Err(_) => assert!(fails_in && !fails_back),
            }
            assert!(fails_back || model == [1, 2], "{model:?}");
        }
    }

    #[test]
    fn averages_follow_the_formula_in_double_precision() {
        const DECAY: f64 = 0.8;
        for warmup in [Warmup::None, Warmup::ByUpdates] {
            let config = EmaConfig { decay: DECAY, warmup };
            let start = vec![0.5_f32, -1.25, 3.0];
            let mut params = Params::trained([("a".to_owned(), vec![3], start.clone())]).unwrap();
            let mut ema = Ema::new(&config, &[&params]);
            let mut expected: Vec<f64> = start.into_iter().map(f64::from).collect();
            for n in 0..50_u64 {
                let weights: Vec<f32> = (0..3).map(|i| ((3 * n + i) as f32).sin()).collect();
                let mut gradients = flamingo_model::Gradients::default();
                let set = |_: &str, _: &[usize], values: &mut [f32], _: &[f32]| {
                    values.copy_from_slice(&weights);
                };
                params.update(&mut gradients, set).unwrap();
                ema.follow(&[&params], n).unwrap();
                let decay = match warmup {
                    Warmup::None => DECAY,
                    Warmup::ByUpdates => DECAY.min((1 + n) as f64 / (10 + n) as f64),
                };
                for (e, w) in expected.iter_mut().zip(&weights) {
                    *e = decay * *e + (1.0 - decay) * f64::from(*w);
                }
            }
            for (found, expected) in
                ema.averages["a"].values(&Spare::default()).unwrap().iter().zip(&expected)
            {
                assert!((f64::from(*found) - expected).abs() < 1e-6, "{found} {expected}");
            }
        }
    }
}
