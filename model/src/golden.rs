//! The model's parts against tiny models of its peers in PyTorch, read from `shared/data/golden`
//! beside the checkout.
//!
//! Where the folder is absent, a test prints one line and passes. Tolerances are relative to the
//! largest expected value.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};

use crate::device::Device;
use crate::gated_xattn::{CrossAttentionConfig, GatedCrossAttention, MediaAttention};
use crate::layers::{LayerNorm, NORM_EPSILON};
use crate::openflamingo::openflamingo_names;
use crate::ops::gradient_check::gradients_of_ramp;
use crate::ops::{self, Activation, MediaReads};
use crate::params::{Declare, Params, Source, Training};
use crate::resampler::{Resampler, ResamplerConfig};
use crate::tensor::{Gradients, Matrix, NotRecording, Recording, differentiate};
use crate::weights_file::Tensors;

/// Relative error allowed in every comparison; f32 sums in another order stay well below.
const TOLERANCE: f32 = 2e-5;

mod clip;
mod language_models;
mod openflamingo;

/// Relative error in norm allowed of a gradient: small gradients of what feeds a softmax are
/// differences of large ones.
const GRADIENT_TOLERANCE: f32 = 5e-4;

pub(crate) struct Case(PathBuf);

impl Case {
    pub(crate) fn open(name: &str) -> Option<Self> {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/golden"));
        let path = root.join(name);
        if !path.is_dir() {
            eprintln!("skipped: no golden case {}", path.display());
            return None;
        }
        Some(Self(path))
    }

    /// Every tensor of a file; whole numbers become f32, which holds all of these exactly.
    pub(crate) fn tensors(&self, file: &str) -> Tensors {
        let bytes = std::fs::read(self.0.join(format!("{file}.safetensors"))).unwrap();
        let mut tensors = Tensors::default();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let values = if view.dtype() == Dtype::I64 {
                let (values, _) = view.data().as_chunks();
                values.iter().map(|b| i64::from_le_bytes(*b) as f32).collect()
            } else {
                let (values, _) = view.data().as_chunks();
                values.iter().map(|b| f32::from_le_bytes(*b)).collect()
            };
            tensors.insert(name, view.shape(), values);
        }
        tensors
    }

    pub(crate) fn source(&self) -> Source {
        Source::Stored { tensors: self.tensors("weights"), path: self.0.clone() }
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    fn json(&self, file: &str) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.path(file)).unwrap()).unwrap()
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.input(name).iter().map(|id| *id as u32).collect()
    }

    pub(crate) fn input(&self, name: &str) -> Vec<f32> {
        self.tensors("inputs").get(name).unwrap().to_vec()
    }
}

/// Fails if `got` differs from `expected` by more than the tolerance; returns the error reached.
pub(crate) fn compare(what: &str, got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1e-6_f32, |m, v| m.max(v.abs()));
    let error = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / scale;
    assert!(error < TOLERANCE, "{what}: relative error {error:.1e}");
    error
}

/// Compares every expected gradient that is a parameter's, and says how many there were.
fn compare_gradients(expected: &Tensors, params: &Params, grads: &mut Gradients) -> usize {
    let mut compared = 0;
    for parameter in params.iter() {
        let Some(theirs) = expected.get(&parameter.name) else { continue };
        let ours = params.gradient(grads, &parameter.name).unwrap().unwrap();
        compare(&format!("gradient of {}", parameter.name), &ours, theirs);
        compared += 1;
    }
    compared
}

/// Compares every expected gradient with ours of the same name, by the norm of the difference;
/// returns how many there were and the largest error.
fn compare_named(expected: &Tensors, ours: &Tensors) -> (usize, f32) {
    let norm = |values: &mut dyn Iterator<Item = f32>| -> f32 {
        values.map(|v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt() as f32
    };
    let of = |name: &str| norm(&mut expected.get(name).unwrap().iter().copied());
    // Smaller ones, such as those of biases of keys, which cannot matter, are rounding alone.
    let smallest = 1e-4 * expected.names().map(of).fold(0.0, f32::max);
    let (mut n, mut worst) = (0, 0.0_f32);
    for name in expected.names() {
        let (theirs, ours) = (expected.get(name).unwrap(), ours.get(name).expect(name));
        assert_eq!(theirs.len(), ours.len(), "{name}");
        let difference = norm(&mut theirs.iter().zip(ours).map(|(a, b)| a - b));
        let error = difference / of(name).max(smallest);
        assert!(error < GRADIENT_TOLERANCE, "gradient of {name}: relative error {error:.1e}");
        (n, worst) = (n + 1, worst.max(error));
    }
    (n, worst)
}

/// The values of a matrix, wherever it is.
fn values(x: &Matrix) -> Vec<f32> {
    x.to_vec().unwrap()
}

#[test]
fn gated_cross_attention_equals_the_papers_equations() {
    for activation in [Activation::SquaredRelu, Activation::Gelu] {
        for gate in ["0", "0.5", "-1.3"] {
            let name = if activation == Activation::Gelu { "gelu" } else { "sqrelu" };
            let Some(case) = Case::open(&format!("gated-xattn-paper/{name}-gate{gate}")) else {
                return;
            };
            for device in Device::to_compare() {
                check_gated_cross_attention(&case, activation, device);
            }
        }
    }
}

fn check_gated_cross_attention(case: &Case, activation: Activation, device: Device) {
    let config = CrossAttentionConfig {
        heads: 4,
        head_dim: 16,
        activation,
        ..CrossAttentionConfig::paper_3b()
    };
    let mut declare = Declare::new(case.source(), Training::Trained);
    let block = GatedCrossAttention::new(&mut declare, "", 48, 40, &config).unwrap();
    let p = device.with(declare.finish());
    let outputs = case.tensors("outputs");
    let (x, y) = (device.variable(&case.input("x"), 40), device.variable(&case.input("y"), 48));
    // 2 sequences of 12 tokens with 3 images each.
    let phi: Vec<f32> = case.input("phi");
    let image = |(l, image): (usize, &f32)| MediaAttention::One.images(*image as i32, l / 12 * 3);
    let reads = Arc::new(MediaReads::new(phi.iter().enumerate().map(image), 8));

    let (keys, _) = block.media_keys(&p, x.clone().with(NotRecording::default())).unwrap();
    let read = block.attention_half(&p, y.clone(), &keys, &reads).unwrap();
    let read = values(&read);
    compare("attention", &read, outputs.get("attention").unwrap());
    for (row, image) in read.chunks(48).zip(&phi) {
        assert!(*image >= 0.0 || row.iter().all(|v| *v == 0.0), "a token without image reads 0");
    }

    let (keys, tape) = block.media_keys(&p, x.clone().with(Recording::default())).unwrap();
    let out = block.forward(&p, y.clone().with(tape), &keys, &reads).unwrap();
    let (out, mut grads) = gradients_of_ramp(out);
    let error = compare("out", &values(&out), outputs.get("out").unwrap());
    eprintln!("gated cross-attention, {device}: {error:.1e}");
    let expected = case.tensors("grads");
    assert_eq!(compare_gradients(&expected, &p, &mut grads), 14);
    for (name, input) in [("x", x), ("y", y)] {
        let ours = input.take_gradient(&mut grads.0).unwrap().unwrap();
        compare(name, &ours, expected.get(name).unwrap());
    }

    // A block without media norm, given media that passed the norm before.
    let mut declare = Declare::new(case.source(), Training::Frozen);
    let media_norm = LayerNorm::new(&mut declare, "kv_norm", 40, NORM_EPSILON).unwrap();
    let normed = media_norm
        .forward(&device.with(declare.finish()), device.variable(&case.input("x"), 40))
        .unwrap();
    let config = CrossAttentionConfig { media_norm: false, ..config };
    let mut declare = Declare::new(case.source(), Training::Trained);
    let block = GatedCrossAttention::new(&mut declare, "", 48, 40, &config).unwrap();
    let p = device.with(declare.finish());
    assert!(p.iter().all(|parameter| !parameter.name.starts_with("kv_norm")));
    let (keys, _) = block.media_keys(&p, normed.with(NotRecording::default())).unwrap();
    let out = block.forward(&p, device.variable(&case.input("y"), 48), &keys, &reads).unwrap();
    compare("out without media norm", &values(&out), outputs.get("out").unwrap());
}

#[test]
fn the_resampler_equals_the_papers_figure_and_interpolates_time() {
    for frames in [1, 8, 30] {
        let Some(case) = Case::open(&format!("perceiver-paper/frames{frames}")) else { return };
        for device in Device::to_compare() {
            check_resampler(&case, frames, device);
        }
    }
}

fn check_resampler(case: &Case, frames: usize, device: Device) {
    let config = ResamplerConfig {
        latents: 8,
        layers: 2,
        heads: 4,
        head_dim: 12,
        ..ResamplerConfig::paper()
    };
    let mut declare = Declare::new(case.source(), Training::Trained);
    let resampler = Resampler::new(&mut declare, "", 40, &config).unwrap();
    let p = device.with(declare.finish());
    let features = device.variable(&case.input("features"), 40);
    let traced = features.clone().with(Recording::default());
    let out = resampler.forward(&p, traced, 2, frames).unwrap();
    let (out, mut grads) = gradients_of_ramp(out);
    let outputs = case.tensors("outputs");
    let error = compare("out", &values(&out), outputs.get("out").unwrap());
    eprintln!("resampler, {frames} frames, {device}: {error:.1e}");
    let expected = case.tensors("grads");
    assert_eq!(compare_gradients(&expected, &p, &mut grads), 28);
    let ours = features.take_gradient(&mut grads.0).unwrap().unwrap();
    compare("features", &ours, expected.get("features").unwrap());
}

/// All tensors again, each name with `prefix` before it.
fn prefixed(prefix: &str, tensors: Tensors) -> Tensors {
    let mut all = Tensors::default();
    for (name, shape, values) in tensors.into_parts() {
        all.insert(format!("{prefix}{name}"), &shape, values);
    }
    all
}

#[test]
fn open_flamingos_resampler_is_a_configuration_of_ours() {
    let Some(case) = Case::open("perceiver-openflamingo") else { return };
    for device in Device::to_compare() {
        check_open_flamingos_resampler(&case, device);
    }
}

fn check_open_flamingos_resampler(case: &Case, device: Device) {
    let config = ResamplerConfig {
        latents: 8,
        layers: 2,
        heads: 4,
        head_dim: 8,
        ..ResamplerConfig::open_flamingo()
    };
    let ours = |file| openflamingo_names(prefixed("perceiver.", case.tensors(file))).0;
    let source = Source::Stored { tensors: ours("weights"), path: case.0.clone() };
    let mut declare = Declare::new(source, Training::Trained);
    let resampler = Resampler::new(&mut declare, "resampler.", 32, &config).unwrap();
    let p = device.with(declare.finish());
    // 2 sequences of 3 images of one frame of 9 features.
    let features = device.variable(&case.input("x"), 32);
    let out = resampler.forward(&p, features.clone().with(Recording::default()), 6, 1).unwrap();
    let (out, mut grads) = gradients_of_ramp(out);
    let error = compare("out", &values(&out), case.tensors("outputs").get("out").unwrap());
    eprintln!("OpenFlamingo's resampler, {device}: {error:.1e}");
    assert_eq!(compare_gradients(&ours("grads"), &p, &mut grads), 3 + 2 * 12);
    let ours = features.take_gradient(&mut grads.0).unwrap().unwrap();
    compare("x", &ours, case.tensors("grads").get("x").unwrap());
}

#[test]
fn the_contrastive_loss_equals_pytorch_with_and_without_smoothing() {
    let Some(case) = Case::open("contrastive") else { return };
    let outputs = case.tensors("outputs");
    let expected = case.tensors("grads");
    let start = case.tensors("weights").get("log_beta").unwrap().to_vec();
    let both = [("0", 0.0), ("0.1", 0.1)];
    let devices = Device::to_compare();
    for ((suffix, smoothing), device) in
        both.iter().flat_map(|b| devices.iter().map(move |d| (*b, *d)))
    {
        let trained = [("log_beta".to_owned(), vec![1], start.clone())];
        let params = device.with(Params::trained(trained).unwrap());
        let log_beta = &params.iter().next().unwrap().weight;
        let (image, text) =
            (device.variable(&case.input("image"), 16), device.variable(&case.input("text"), 16));
        let traced = image.clone().with(Recording::default());
        let loss = ops::contrastive_loss(traced, text.clone(), log_beta, smoothing).unwrap();
        let (loss, mut grads) = differentiate(loss, 1.0).unwrap();
        let error = compare("loss", &[loss], outputs.get(&format!("loss.{suffix}")).unwrap());
        eprintln!("contrastive loss, smoothing {suffix}, {device}: {error:.1e}");
        for (name, x) in [("image", image), ("text", text)] {
            let ours = x.take_gradient(&mut grads.0).unwrap().unwrap();
            compare(name, &ours, expected.get(&format!("{name}.{suffix}")).unwrap());
        }
        let mut ours = 0.0;
        log_beta.accumulate(&mut grads.0, |g| ours = g[0]).unwrap();
        compare("log_beta", &[ours], expected.get(&format!("log_beta.{suffix}")).unwrap());
    }
}
