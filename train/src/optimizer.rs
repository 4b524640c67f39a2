//! `AdamW` with decoupled weight decay, after clipping the gradient to a global norm (paper,
//! appendix B.1.2), or group by group where the config has groups (B.1.3). Clipping is once per update,
//! of the sum of all gradients.
//!
//! Moments and updates are f32, in torch's order of operations; the golden case in the tests pins
//! them to torch. The number of updates is not stored here: it is the step of the run. Skipped steps
//! count, so the correction for moments that begin at zero fades as if they had been made.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use flamingo_model::{
    AdamStep, DeviceError, Gradients, ModelError, Moments, Params, Spare, Tensors,
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::groups::{GroupConfig, Norms, group_of};
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
    /// Largest norm of the gradient over all weights together, but for those of groups with clipping of
    /// their own. Paper: 1.
    #[serde(default = "paper_clip_norm")]
    pub clip_norm: f64,
    /// Weights that are updated in ways of their own.
    #[serde(default, rename = "group", skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupConfig>,
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

/// The optimizer's state, which lives where the parameters do.
#[derive(Debug)]
pub struct AdamW {
    config: OptimizerConfig,
    moments: BTreeMap<String, Moments>,
    /// The parameters that are updated here.
    share: Share,
    /// Moments of parameters that are updated elsewhere, for a checkpoint.
    elsewhere: BTreeMap<String, Moments>,
}

/// Which parameters a rank updates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Share {
    /// Every one.
    All,
    /// Those of these names; others are updated by other ranks.
    Of(BTreeSet<String>),
}

impl Share {
    fn has(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Of(names) => names.contains(name),
        }
    }
}

/// Torch's guard against dividing by a zero norm.
const NORM_EPSILON: f64 = 1e-6;

impl AdamW {
    /// An optimizer of a share of the parameters that has seen no gradient.
    pub fn new(config: &OptimizerConfig, share: Share) -> Self {
        let (moments, elsewhere) = (BTreeMap::new(), BTreeMap::new());
        Self { config: config.clone(), moments, share, elsewhere }
    }

    /// Whether a parameter is updated here.
    pub fn updates(&self, name: &str) -> bool {
        self.share.has(name)
    }

    /// The moments of the parameters that are updated here.
    pub fn moments(&self) -> &BTreeMap<String, Moments> {
        &self.moments
    }

    /// Takes the moments of parameters that are updated elsewhere into the next copy, or forgets them.
    pub fn set_elsewhere(&mut self, moments: BTreeMap<String, Moments>) {
        self.elsewhere = moments;
    }

    /// Norms of the gradient of all trained parameters together, and by group.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn norms(
        &self,
        params: &[&Params],
        gradients: &mut Gradients,
    ) -> Result<Norms, ModelError> {
        let squares = params.iter().map(|params| params.gradient_squares(gradients));
        let squares = squares.collect::<Result<Vec<_>, _>>()?;
        Ok(self.norms_of(&squares))
    }

    /// The norms of sums of squares: of each parameter, in one list for each of a model's [`Params`].
    pub fn norms_of(&self, squares: &[Vec<(&str, f64)>]) -> Norms {
        Norms::of(&self.config.groups, squares)
    }

    /// Makes one update of all trained parameters that are updated here: the one after `done` updates, with
    /// learning rate `lr`, of gradients whose norms are `norms`.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn update(
        &mut self,
        params: &mut [&mut Params],
        gradients: &mut Gradients,
        norms: &Norms,
        lr: f64,
        done: u64,
    ) -> Result<(), ModelError> {
        for params in params {
            let config = &self.config;
            let agc = |name: &str| group_of(&config.groups, name)?.agc;
            if config.groups.iter().any(|group| group.agc.is_some()) {
                params.clip_units(gradients, agc)?;
            }
            let share = &self.share;
            params.adamw(gradients, &mut self.moments, |name, shape| {
                let update = || Update::of(config, norms, (name, shape), lr);
                share.has(name).then(|| numbers(config, &update(), done))
            })?;
        }
        Ok(())
    }

    /// A copy of the moments, for a checkpoint, made on all cores into `spare`.
    ///
    /// # Errors
    /// When the device fails, or memory cannot hold the copy.
    pub fn to_tensors(&self, spare: &Spare) -> Result<Tensors, ModelError> {
        let copied = self.moments.par_iter().chain(&self.elsewhere).map(|(name, moments)| {
            let values: Result<_, DeviceError> = moments.values(spare);
            Ok((name, moments, values?))
        });
        let copied: Vec<_> = copied.collect::<Result<_, DeviceError>>()?;
        let mut tensors = Tensors::default();
        for (name, moments, [first, second]) in copied {
            tensors.insert(format!("first.{name}"), moments.shape(), first);
            tensors.insert(format!("second.{name}"), moments.shape(), second);
        }
        Ok(tensors)
    }

    /// Goes on with this share of the moments of a checkpoint; `path` names the file in messages.
    ///
    /// # Errors
    /// When the moments of a trained parameter are missing or have another shape.
    pub fn restore(
        mut self,
        params: &[&Params],
        mut tensors: Tensors,
        path: &Path,
    ) -> Result<Self, ModelError> {
        if tensors.names().next().is_none() {
            // Every step so far was skipped.
            return Ok(self);
        }
        let all = params.iter().flat_map(|params| params.iter());
        for parameter in all.filter(|parameter| parameter.weight.is_trained()) {
            if !self.updates(&parameter.name) {
                continue;
            }
            let (name, shape) = (&parameter.name, &parameter.shape);
            let first = tensors.take(&format!("first.{name}"), shape, path)?;
            let second = tensors.take(&format!("second.{name}"), shape, path)?;
            self.moments.insert(name.clone(), Moments::new(shape, first, second));
        }
        Ok(self)
    }
}

/// True if weight decay applies. The paper decays everything but the resampler; like IDEFICS we
/// also leave out vectors (norms, biases, gates, the temperature), what stands for a place rather
/// than for content, and like `OpenFlamingo` the rows of added tokens and of marks.
pub fn decays(name: &str, shape: &[usize]) -> bool {
    let is_vector = shape.iter().filter(|&&size| size > 1).count() < 2;
    let is_place = ["position", "class", "added_", "trained_"];
    !is_vector
        && !name.split('.').any(|part| part == "resampler")
        && !is_place.iter().any(|word| name.contains(word))
}

/// What an update does to one parameter.
struct Update {
    /// What its gradient is multiplied by.
    clip: f64,
    /// Decoupled weight decay.
    weight_decay: f64,
    /// Learning rate.
    lr: f64,
}

impl Update {
    /// That of a parameter, with learning rate `lr` for those of no group.
    fn of(
        config: &OptimizerConfig,
        norms: &Norms,
        (name, shape): (&str, &[usize]),
        lr: f64,
    ) -> Self {
        let clipped = |most: f64, norm: f64| (most / (norm + NORM_EPSILON)).min(1.0);
        let by_rule = if decays(name, shape) { config.weight_decay } else { 0.0 };
        let together = clipped(config.clip_norm, norms.together);
        let Some(group) = group_of(&config.groups, name) else {
            return Self { clip: together, weight_decay: by_rule, lr };
        };
        let clip = match (group.clip_norm, group.agc) {
            (Some(most), _) => {
                clipped(most, norms.by_group.get(&group.name).copied().unwrap_or_default())
            }
            // Its units are clipped already.
            (None, Some(_)) => 1.0,
            (None, None) => together,
        };
        let weight_decay = group.weight_decay.unwrap_or(by_rule);
        Self { clip, weight_decay, lr: group.lr_scale * lr }
    }
}

/// The numbers of one update, as torch rounds them: each from f64 once.
fn numbers(config: &OptimizerConfig, update: &Update, done: u64) -> AdamStep {
    let updates = (done + 1) as f64;
    let first_correction = 1.0 - config.beta1.powf(updates);
    let second_correction = 1.0 - config.beta2.powf(updates);
    AdamStep {
        clip: update.clip as f32,
        keep: (1.0 - update.lr * update.weight_decay) as f32,
        first: (1.0 - config.beta1) as f32,
        second_keep: config.beta2 as f32,
        second: (1.0 - config.beta2) as f32,
        step_size: (update.lr / first_correction) as f32,
        second_correction_sqrt: second_correction.sqrt() as f32,
        epsilon: config.epsilon as f32,
    }
}

#[cfg(test)]
mod tests {
    use flamingo_model::Device;
    #[cfg(feature = "cuda-emulator")]
    use flamingo_model::Precision;

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
            groups: Vec::new(),
        }
    }

    fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
        for (found, expected) in found.iter().zip(expected) {
            let error = (found - expected).abs() / expected.abs().max(1e-3);
            assert!(error <= 1e-6, "{what}: {found}, torch has {expected}");
        }
    }

    /// Twenty updates of a decaying matrix `a` and a vector `b` that does not decay.
    fn check_twenty_updates(device: Device) {
        let folder = Path::new(GOLDEN);
        if !folder.exists() {
            eprintln!("skipped: no golden data in {GOLDEN}");
            return;
        }
        let read = |name: &str| Tensors::read(&folder.join(name)).unwrap();
        let (inputs, outputs) = (read("inputs.safetensors"), read("outputs.safetensors"));
        let start = |name: &str, shape: &[usize]| {
            let values = outputs.get(&format!("start.{name}")).unwrap().to_vec();
            (name.to_owned(), shape.to_vec(), values)
        };
        let mut params = Params::trained([start("a", &[6, 5]), start("b", &[5])]).unwrap();
        device.place(&mut params).unwrap();
        let schedule =
            Schedule { lr_peak: 1e-2, warmup_steps: 5, steps: 20, decay: Decay::Constant };
        let mut adamw = AdamW::new(&config(1e-2), Share::All);
        for (done, gradient) in (0..20).zip(inputs.get("gradients").unwrap().chunks(35)) {
            let mut gradients = Gradients::default();
            let (of_a, of_b) = gradient.split_at(30);
            params.add_to_gradient(&mut gradients, "a", of_a).unwrap();
            params.add_to_gradient(&mut gradients, "b", of_b).unwrap();
            let norms = adamw.norms(&[&params], &mut gradients).unwrap();
            let lr = schedule.lr(done);
            adamw.update(&mut [&mut params], &mut gradients, &norms, lr, done).unwrap();
            let step = done + 1;
            let expected = |name: &str| outputs.get(&format!("{name}.step{step}"));
            if let Some(norm_expected) = expected("norm") {
                assert_close("norm", &[norms.all as f32], norm_expected);
                for parameter in params.iter() {
                    let what = format!("{} at step {step}", parameter.name);
                    let expected = expected(&parameter.name).unwrap();
                    assert_close(&what, &parameter.weight.values(), expected);
                }
            }
        }
    }

    #[test]
    fn twenty_updates_equal_torch() {
        check_twenty_updates(Device::cpu());
        #[cfg(feature = "cuda-emulator")]
        check_twenty_updates(Device::emulated(Precision::F32));
    }

    /// The first update of a parameter whose gradient is multiplied by `clip`, in f64.
    fn first_update(value: f32, gradient: f32, clip: f64, lr: f64, weight_decay: f64) -> f64 {
        let g = clip * f64::from(gradient);
        f64::from(value) * (1.0 - lr * weight_decay) - lr * g / ((g * g).sqrt() + 1e-3)
    }

    #[test]
    fn groups_are_updated_by_the_formula_in_double_precision() {
        let toml = r#"
            lr = 1e-2
            warmup_steps = 0
            schedule = "constant"
            epsilon = 1e-3
            clip_norm = 0.5
            [[group]]
            name = "units"
            match = ["vision"]
            agc = 0.1
            lr_scale = 2.0
            [[group]]
            name = "own"
            match = ["text.a", "text.c"]
            clip_norm = 1.5
            weight_decay = 0.3
        "#;
        let config: OptimizerConfig = toml::from_str(toml).unwrap();
        let shape = [2, 3];
        let values = [0.5_f32, -1.0, 2.0, 1e-5, 0.0, -1e-5];
        let gradient = [1.0_f32, -0.25, 0.5, -2.0, 0.01, 0.75];
        let names = ["vision.a.weight", "text.a.weight", "text.b.weight", "text.c.bias"];
        let all = names.map(|name| (name.to_owned(), shape.to_vec(), values.to_vec()));
        let mut params = Params::trained(all).unwrap();
        let mut gradients = Gradients::default();
        for name in names {
            params.add_to_gradient(&mut gradients, name, &gradient).unwrap();
        }
        let mut adamw = AdamW::new(&config, Share::All);
        let norms = adamw.norms(&[&params], &mut gradients).unwrap();
        adamw.update(&mut [&mut params], &mut gradients, &norms, config.lr, 0).unwrap();

        let norm =
            |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let of_one = norm(&gradient);
        assert!((norms.all - 2.0 * of_one).abs() < 1e-12);
        for parameter in params.iter() {
            for (i, found) in parameter.weight.values().iter().enumerate() {
                let row = i / 3 * 3..i / 3 * 3 + 3;
                let units = 0.1 * norm(&values[row.clone()]).max(1e-3) / norm(&gradient[row]);
                let (clip, lr, decay) = match &*parameter.name {
                    "vision.a.weight" => (units.min(1.0), 2e-2, 0.1),
                    "text.b.weight" => (0.5 / of_one, 1e-2, 0.1),
                    // Two of the same gradient are clipped together.
                    _ => (1.5 / (2_f64.sqrt() * of_one), 1e-2, 0.3),
                };
                let expected = first_update(values[i], gradient[i], clip, lr, decay);
                let error = (f64::from(*found) - expected).abs();
                assert!(error < 1e-6, "{} {i}: {found} {expected}", parameter.name);
            }
        }
    }

    /// Moments of a parameter with many values, and of the same values as many small parameters.
    #[test]
    fn many_values_on_all_cores_equal_one_core() {
        const SMALL: usize = 1000;
        const N: usize = 70 * SMALL;
        let wave = |rate: f32| (0..N).map(|i| (i as f32 * rate).sin()).collect::<Vec<f32>>();
        let (start, gradient) = (wave(0.11), wave(0.37));
        let updated = |size: usize| {
            let part =
                |(i, values): (usize, &[f32])| (format!("{i:03}"), vec![size], values.to_vec());
            let mut params = Params::trained(start.chunks(size).enumerate().map(part)).unwrap();
            let mut adamw = AdamW::new(&config(1e-2), Share::All);
            for done in 0..2 {
                let mut gradients = Gradients::default();
                for (i, part) in gradient.chunks(size).enumerate() {
                    params.add_to_gradient(&mut gradients, &format!("{i:03}"), part).unwrap();
                }
                let norms = Norms::of(&[], &[vec![("all", 9.0)]]);
                adamw.update(&mut [&mut params], &mut gradients, &norms, 1e-2, done).unwrap();
            }
            let moments = adamw.to_tensors(&Spare::default()).unwrap();
            let values = params.iter().flat_map(|p| p.weight.values().into_owned());
            let moments = moments.names().flat_map(|name| moments.get(name).unwrap().to_vec());
            values.chain(moments).map(f32::to_bits).collect::<Vec<_>>()
        };
        assert_eq!(updated(N), updated(SMALL));
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
        check("added_tokens.weight", &[2, 8], false);
        check("trained_tokens.weight", &[2, 8], false);
        check("logit_scale", &[1], false);
    }
}
