//! `AdamW` with decoupled weight decay, after clipping the gradient to a global norm (paper,
//! appendix B.1.2).
//!
//! Moments and updates are f32, in torch's order of operations; the golden case in the tests pins
//! them to torch. The number of updates is not stored here: it is the step of the run. Skipped steps
//! count, so the correction for moments that begin at zero fades as if they had been made.

use std::collections::BTreeMap;
use std::path::Path;

use flamingo_model::{Gradients, ModelError, Params, Tensors};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::schedule::Decay;

/// Read from `[optimizer]`. Defaults are the paper's where it gives a number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Peak learning rate. Paper: 1e-4, contrastive 1e-3.
    pub lr: f64,
    /// Steps of linear warm-up. Paper: 5000.
    pub warmup_steps: u64,
    /// What follows the warm-up. Paper: constant; contrastive: linear.
    pub schedule: Decay,
    /// Decoupled weight decay of the weights that decay at all. Paper: 0.1.
    #[serde(default = "paper_weight_decay")]
    pub weight_decay: f64,
    /// Decay of the mean of gradients. The paper gives none; IDEFICS: 0.9.
    #[serde(default = "idefics_beta1")]
    pub beta1: f64,
    /// Decay of the mean of squared gradients. The paper gives none; IDEFICS: 0.999.
    #[serde(default = "idefics_beta2")]
    pub beta2: f64,
    /// Keeps the division finite. The paper gives none; torch's and IDEFICS': 1e-8.
    #[serde(default = "torch_epsilon")]
    pub epsilon: f64,
    /// Largest norm of the gradient over all weights together. Paper: 1.
    #[serde(default = "paper_clip_norm")]
    pub clip_norm: f64,
}

fn paper_weight_decay() -> f64 {
    0.1
}

fn idefics_beta1() -> f64 {
    0.9
}

fn idefics_beta2() -> f64 {
    0.999
}

fn torch_epsilon() -> f64 {
    1e-8
}

fn paper_clip_norm() -> f64 {
    1.0
}

/// Running means of one parameter's gradients.
#[derive(Debug, Clone, PartialEq)]
struct Moments {
    shape: Vec<usize>,
    /// Mean of the gradients.
    first: Vec<f32>,
    /// Mean of their squares.
    second: Vec<f32>,
}

/// The optimizer's state.
#[derive(Debug, Clone)]
pub struct AdamW {
    config: OptimizerConfig,
    moments: BTreeMap<String, Moments>,
}

/// The numbers of one update, as torch rounds them: each from f64 once.
#[derive(Debug, Clone, Copy)]
struct Coefficients {
    clip: f32,
    keep: f32,
    first: f32,
    second_keep: f32,
    second: f32,
    step_size: f32,
    second_correction_sqrt: f32,
    epsilon: f32,
}

/// Parameters of at least this many values are updated on all cores.
const PARALLEL_VALUES_MIN: usize = 1 << 16;
/// Values that one core updates at a time.
const CHUNK_VALUES: usize = 1 << 14;
/// Torch's guard against dividing by a zero norm.
const NORM_EPSILON: f64 = 1e-6;

impl AdamW {
    /// An optimizer that has seen no gradient.
    pub fn new(config: &OptimizerConfig) -> Self {
        Self { config: config.clone(), moments: BTreeMap::new() }
    }

    /// Norm of the gradient of all trained parameters together.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn norm(params: &[&Params], gradients: &mut Gradients) -> Result<f64, ModelError> {
        let squares = params.iter().map(|params| params.gradient_square_sum(gradients));
        Ok(squares.sum::<Result<f64, ModelError>>()?.sqrt())
    }

    /// Makes one update of all trained parameters: the one after `done` updates, with learning rate
    /// `lr`, of gradients whose norm is `norm`.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn update(
        &mut self,
        params: &mut [&mut Params],
        gradients: &mut Gradients,
        norm: f64,
        lr: f64,
        done: u64,
    ) -> Result<(), ModelError> {
        for params in params {
            params.update(gradients, |name, shape, values, gradient| {
                self.update_parameter((name, shape), values, gradient, norm, lr, done);
            })?;
        }
        Ok(())
    }

    fn update_parameter(
        &mut self,
        (name, shape): (&str, &[usize]),
        values: &mut [f32],
        gradient: &[f32],
        norm: f64,
        lr: f64,
        done: u64,
    ) {
        let decay = if decays(name, shape) { self.config.weight_decay } else { 0.0 };
        let numbers = coefficients(&self.config, norm, lr, decay, done);
        let moments = self.moments.entry(name.to_owned()).or_insert_with(|| Moments {
            shape: shape.to_vec(),
            first: vec![0.0; values.len()],
            second: vec![0.0; values.len()],
        });
        update_values(values, gradient, moments, numbers);
    }

    /// The moments, for a checkpoint.
    pub fn to_tensors(&self) -> Tensors {
        let mut tensors = Tensors::default();
        for (name, moments) in &self.moments {
            tensors.insert(format!("first.{name}"), &moments.shape, moments.first.clone());
            tensors.insert(format!("second.{name}"), &moments.shape, moments.second.clone());
        }
        tensors
    }

    /// Goes on with the moments of a checkpoint; `path` names the file in messages.
    ///
    /// # Errors
    /// When the moments of a trained parameter are missing or have another shape.
    pub fn restore(
        config: &OptimizerConfig,
        params: &[&Params],
        mut tensors: Tensors,
        path: &Path,
    ) -> Result<Self, ModelError> {
        if tensors.names().next().is_none() {
            // Every step so far was skipped.
            return Ok(Self::new(config));
        }
        let mut moments = BTreeMap::new();
        let all = params.iter().flat_map(|params| params.iter());
        for parameter in all.filter(|parameter| parameter.weight.is_trained()) {
            let (name, shape) = (&parameter.name, &parameter.shape);
            let first = tensors.take(&format!("first.{name}"), shape, path)?;
            let second = tensors.take(&format!("second.{name}"), shape, path)?;
            moments.insert(name.clone(), Moments { shape: shape.clone(), first, second });
        }
        Ok(Self { config: config.clone(), moments })
    }
}

/// True if weight decay applies. The paper decays everything but the resampler; like IDEFICS we
/// also leave out vectors (norms, biases, gates, the temperature), what stands for a place rather
/// than for content, and like `OpenFlamingo` the rows of added tokens.
pub fn decays(name: &str, shape: &[usize]) -> bool {
    let is_vector = shape.iter().filter(|&&size| size > 1).count() < 2;
    let is_place = ["position", "class", "added_"];
    !is_vector
        && !name.split('.').any(|part| part == "resampler")
        && !is_place.iter().any(|word| name.contains(word))
}

fn coefficients(
    config: &OptimizerConfig,
    norm: f64,
    lr: f64,
    weight_decay: f64,
    done: u64,
) -> Coefficients {
    let updates = (done + 1) as f64;
    let first_correction = 1.0 - config.beta1.powf(updates);
    let second_correction = 1.0 - config.beta2.powf(updates);
    Coefficients {
        clip: (config.clip_norm / (norm + NORM_EPSILON)).min(1.0) as f32,
        keep: (1.0 - lr * weight_decay) as f32,
        first: (1.0 - config.beta1) as f32,
        second_keep: config.beta2 as f32,
        second: (1.0 - config.beta2) as f32,
        step_size: (lr / first_correction) as f32,
        second_correction_sqrt: second_correction.sqrt() as f32,
        epsilon: config.epsilon as f32,
    }
}

fn update_values(values: &mut [f32], gradient: &[f32], moments: &mut Moments, with: Coefficients) {
    let (first, second) = (&mut moments.first, &mut moments.second);
    if values.len() < PARALLEL_VALUES_MIN {
        return update_chunk(values, gradient, first, second, with);
    }
    values
        .par_chunks_mut(CHUNK_VALUES)
        .zip(gradient.par_chunks(CHUNK_VALUES))
        .zip(first.par_chunks_mut(CHUNK_VALUES))
        .zip(second.par_chunks_mut(CHUNK_VALUES))
        .for_each(|(((values, gradient), first), second)| {
            update_chunk(values, gradient, first, second, with);
        });
}

fn update_chunk(
    values: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    with: Coefficients,
) {
    let moments = first.iter_mut().zip(second);
    for ((value, gradient), (first, second)) in values.iter_mut().zip(gradient).zip(moments) {
        let gradient = gradient * with.clip;
        *value *= with.keep;
        *first += with.first * (gradient - *first);
        *second = *second * with.second_keep + with.second * gradient * gradient;
        let spread = second.sqrt() / with.second_correction_sqrt + with.epsilon;
        *value -= with.step_size * (*first / spread);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Schedule;

    const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/golden/adamw");

    fn config(lr: f64) -> OptimizerConfig {
        OptimizerConfig {
            lr,
            warmup_steps: 5,
            schedule: Decay::Constant,
            weight_decay: 0.1,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            clip_norm: 1.0,
        }
    }

    fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
        for (found, expected) in found.iter().zip(expected) {
            let error = (found - expected).abs() / expected.abs().max(1e-3);
            assert!(error <= 1e-6, "{what}: {found}, torch has {expected}");
        }
    }

    /// Twenty updates of a decaying matrix `a` and a vector `b` that does not decay.
    #[test]
    fn twenty_updates_equal_torch() {
        let folder = Path::new(GOLDEN);
        if !folder.exists() {
            eprintln!("skipped: no golden data in {GOLDEN}");
            return;
        }
        let read = |name: &str| Tensors::read(&folder.join(name)).unwrap();
        let (inputs, outputs) = (read("inputs.safetensors"), read("outputs.safetensors"));
        let mut a = outputs.get("start.a").unwrap().to_vec();
        let mut b = outputs.get("start.b").unwrap().to_vec();
        let schedule =
            Schedule { lr_peak: 1e-2, warmup_steps: 5, steps: 20, decay: Decay::Constant };
        let mut adamw = AdamW::new(&config(1e-2));
        let gradients = inputs.get("gradients").unwrap();
        for (done, gradient) in (0..20).zip(gradients.chunks(35)) {
            let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            let lr = schedule.lr(done);
            let (of_a, of_b) = gradient.split_at(30);
            adamw.update_parameter(("a", &[6, 5]), &mut a, of_a, norm, lr, done);
            adamw.update_parameter(("b", &[5]), &mut b, of_b, norm, lr, done);
            let step = done + 1;
            if let Some(expected) = outputs.get(&format!("a.step{step}")) {
                assert_close(&format!("a at step {step}"), &a, expected);
                assert_close(
                    "norm",
                    &[norm as f32],
                    outputs.get(&format!("norm.step{step}")).unwrap(),
                );
                assert_close("b", &b, outputs.get(&format!("b.step{step}")).unwrap());
            }
        }
    }

    #[test]
    fn many_values_on_all_cores_equal_one_core() {
        let n = PARALLEL_VALUES_MIN + 77;
        let gradient: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
        let start: Vec<f32> = (0..n).map(|i| (i as f32 * 0.11).cos()).collect();
        let moments = Moments { shape: vec![n], first: start.clone(), second: gradient.clone() };
        let with = coefficients(&config(1e-2), 3.0, 1e-2, 0.1, 4);
        let (mut values, mut state) = (start.clone(), moments.clone());
        let (mut values_one, mut state_one) = (start, moments);
        update_values(&mut values, &gradient, &mut state, with);
        update_chunk(&mut values_one, &gradient, &mut state_one.first, &mut state_one.second, with);
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&values), bits(&values_one));
        assert_eq!(bits(&state.second), bits(&state_one.second));
    }

    #[test]
    fn only_matrices_outside_the_resampler_decay() {
        let check = |name: &str, shape: &[usize], expected: bool| {
            assert_eq!(decays(name, shape), expected, "{name}");
        };
        check("language.blocks.0.attn.qkv.weight", &[24, 8], true);
        check("language.tokens.weight", &[512, 8], true);
        check("gated_xattn.0.attn.q.weight", &[8, 8], true);
        check("gated_xattn.0.attn_gate", &[1], false);
        check("language.blocks.0.norm_1.weight", &[8], false);
        check("language.blocks.0.mlp.up.bias", &[32], false);
        check("language.positions.weight", &[256, 8], false);
        check("vision.position_embedding", &[65, 8], false);
        check("vision.class_embedding", &[8], false);
        check("resampler.layers.0.attn.q.weight", &[8, 8], false);
        check("resampler.latents", &[64, 8], false);
        check("logit_scale", &[1], false);
    }
}
