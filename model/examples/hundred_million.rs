//! A Flamingo of a hundred million parameters and more, with random weights, for timing and for
//! comparing with other implementations: CLIP's ViT-B/32, a GPT-2 of 12 layers of width 512, a
//! resampler of 64 latents and cross-attention before every layer, gates half open.
//!
//! ```text
//! hundred_million weights FOLDER       writes the model, and its inputs to inputs.safetensors
//! hundred_million check FOLDER         writes what the model makes of them to outputs.safetensors
//! hundred_million step FOLDER N        times N training steps of 4 x 256 tokens and 12 images
//! hundred_million step-keeping FOLDER N  likewise; frozen blocks keep what they make, too
//! hundred_million forward FOLDER N     times the loss alone
//! hundred_million generate FOLDER N    times N times 32 tokens after 64 tokens and 3 images
//! hundred_million first-token FOLDER   reads a prompt with one image and writes one token
//! ```
//!
//! Prints lines of `name value`: losses, tokens, seconds, the largest memory in MiB.
//! `model/benches/pytorch.py` runs the same model on the same files.
#![expect(clippy::print_stdout, reason = "the example reports on standard output")]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::time::Instant;

use flamingo_model::{
    Activation, Architecture, Clip, ClipConfig, CrossAttentionConfig, Flamingo, FlamingoConfig,
    Generation, Gradients, Inputs, LanguageConfig, LanguageModel, Latents, PatchStates, PixelsRef,
    Pool, Prompt, Recompute, ResamplerConfig, Tensors, Trainable, VitConfig,
};
use rayon::prelude::*;

/// Sequences of a batch.
const BATCH: usize = 4;
/// Tokens of a sequence of a batch.
const LENGTH: usize = 256;
/// Images of a sequence and of a prompt.
const IMAGES: usize = 3;
/// Tokens of a prompt.
const PROMPT: usize = 64;
/// Tokens that are written after a prompt.
const WRITTEN: usize = 32;
/// Tokens of the tokenizer.
const VOCABULARY: usize = 32_000;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["weights", folder] => write_weights(Path::new(folder))?,
        ["check", folder] => check(Path::new(folder))?,
        ["step", folder, n] => steps(Path::new(folder), n.parse()?, Recompute::Frozen)?,
        ["step-keeping", folder, n] => {
            steps(Path::new(folder), n.parse()?, Recompute::Nothing)?;
        }
        ["forward", folder, n] => forwards(Path::new(folder), n.parse()?)?,
        ["generate", folder, n] => generate(Path::new(folder), n.parse()?)?,
        ["first-token", folder] => first_token(Path::new(folder))?,
        _ => return Err("expected weights, check, step, step-keeping, forward, generate or first-token, a folder, and a number of times".into()),
    }
    println!("peak_mib {}", peak_mib()?);
    Ok(())
}

/// The largest memory that this process has had.
fn peak_mib() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = line.ok_or("no VmHWM")?.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024)
}

/// Makes the model on fresh towers, opens its gates, and writes it with its inputs.
fn write_weights(folder: &Path) -> Result<(), Box<dyn Error>> {
    let vision: flamingo_model::VisionConfig = VitConfig {
        image_size: 224,
        patch_size: 32,
        width: 768,
        layers: 12,
        heads: 12,
        activation: Activation::QuickGelu,
        feed_forward_width: None,
        patch_states: PatchStates::BeforeNorm,
    }
    .into();
    let language = LanguageConfig {
        vocabulary: VOCABULARY,
        context: 1024,
        width: 512,
        layers: 12,
        heads: 8,
        activation: Activation::GeluTanh,
        architecture: Architecture::default(),
    };
    let config = FlamingoConfig {
        vision: vision.clone(),
        language: language.clone(),
        resampler: ResamplerConfig {
            latents: 64,
            layers: 2,
            heads: 8,
            head_dim: 64,
            frames: 8,
            activation: Activation::SquaredRelu,
            ..ResamplerConfig::paper()
        },
        cross_attention: CrossAttentionConfig {
            every: 1,
            heads: 8,
            head_dim: 64,
            activation: Activation::SquaredRelu,
            ..CrossAttentionConfig::paper_3b()
        },
        added_tokens: 0,
        trained_tokens: Vec::new(),
    };
    let towers = ["vision", "language"].map(|name| folder.join(name));
    towers.iter().try_for_each(std::fs::create_dir_all)?;
    let [vision_folder, language_folder] = &towers;
    // The text tower is not used.
    let text =
        LanguageConfig { vocabulary: 8, context: 8, width: 8, layers: 1, ..language.clone() };
    let clip = ClipConfig { vision, text, embedding: 8, pool: Pool::Mean };
    Clip::new(&clip, 1)?.save(vision_folder)?;
    LanguageModel::new(&language, 2)?.save(language_folder)?;
    let mut model = Flamingo::new(&config, vision_folder, language_folder, 3)?;
    towers.iter().try_for_each(std::fs::remove_dir_all)?;
    for params in model.params_mut() {
        params.update(&mut Gradients::default(), |name, _, values, _| {
            if name.ends_with("_gate") {
                values.fill(0.5);
            }
        })?;
    }
    model.save(folder)?;

    let n_pixels = config.vision.n_pixel_values();
    let rows = BATCH * LENGTH;
    let mut inputs = Tensors::default();
    inputs.insert("tokens", &[BATCH, LENGTH], draw_tokens(rows, 131));
    inputs.insert("pixels", &[BATCH * IMAGES, 3, 224, 224], noise(BATCH * IMAGES * n_pixels));
    inputs.insert("prompt", &[PROMPT], draw_tokens(PROMPT, 211));
    inputs.write(&folder.join("inputs.safetensors"))?;
    let n: usize = model.params().iter().map(|params| params.n_values()).sum();
    println!("parameters {n}");
    Ok(())
}

/// Tokens without pattern, as weights files hold numbers.
fn draw_tokens(n: usize, factor: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * i * factor + 7919 * i) % VOCABULARY) as f32).collect()
}

/// Values in -1..1 without pattern.
fn noise(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + i / 1013) % 10007) as f32 / 5003.5 - 1.0).collect()
}

/// The image that each of `length` tokens sees: each a share of the sequence.
fn phi(length: usize, images: usize) -> impl Iterator<Item = i32> {
    (0..length).map(move |l| (l * images / length) as i32)
}

fn read_tokens(inputs: &Tensors, name: &str) -> Result<Vec<u32>, Box<dyn Error>> {
    let values = inputs.get(name).ok_or("a part of the inputs is missing")?;
    Ok(values.iter().map(|token| *token as u32).collect())
}

fn read_inputs(folder: &Path) -> Result<(Inputs, Vec<u32>), Box<dyn Error>> {
    let path = folder.join("inputs.safetensors");
    let mut inputs = Tensors::read(&path)?;
    let (tokens, prompt) = (read_tokens(&inputs, "tokens")?, read_tokens(&inputs, "prompt")?);
    let mask = |i: usize| if (i + 1).is_multiple_of(LENGTH) { 0.0 } else { 1.0 };
    let batch = Inputs {
        length: LENGTH,
        phi: (0..BATCH).flat_map(|_| phi(LENGTH, IMAGES)).collect(),
        loss_mask: (0..tokens.len()).map(mask).collect(),
        tokens,
        pixels: inputs.take("pixels", &[BATCH * IMAGES, 3, 224, 224], &path)?.into(),
        features: None,
        n_frames: 1,
        image_count: vec![IMAGES; BATCH],
    };
    Ok((batch, prompt))
}

/// Reads the prompt with the first images of the batch and writes on.
fn write_on(
    model: &Flamingo,
    (batch, tokens): &(Inputs, Vec<u32>),
    images: usize,
    n: usize,
) -> Result<Vec<u32>, Box<dyn Error>> {
    let one = model.config().vision.n_pixel_values();
    let images_of =
        |batch: &Inputs| model.latents(PixelsRef::from(&batch.pixels).chunks(images * one)[0], 1);
    let prompt = Prompt {
        tokens: tokens.clone(),
        phi: phi(tokens.len(), images).collect(),
        latents: Latents::join([&images_of(batch)?])?,
    };
    let written = model.generate(&[prompt], &Generation::greedy(n, u32::MAX))?;
    Ok(written.into_iter().next().unwrap_or_default())
}

/// Writes loss, logits of the last position of each sequence and the tokens after the prompt.
fn check(folder: &Path) -> Result<(), Box<dyn Error>> {
    let model = Flamingo::load(folder)?;
    let inputs = read_inputs(folder)?;
    let logits = model.logits(&inputs.0)?;
    let last = logits.chunks(LENGTH * VOCABULARY).flat_map(|all| &all[(LENGTH - 1) * VOCABULARY..]);
    let written = write_on(&model, &inputs, IMAGES, WRITTEN)?;
    let mut outputs = Tensors::default();
    outputs.insert("loss", &[1], vec![model.loss_only(&inputs.0)?]);
    outputs.insert("logits", &[BATCH, VOCABULARY], last.copied().collect());
    let (_, mut gradients) = model.step(&inputs.0, 1.0, Gradients::default())?;
    for name in ["resampler.latents", "cross_attention.0.attn.k.weight"] {
        for params in model.params() {
            if let Some(values) = params.gradient(&mut gradients, name)? {
                outputs.insert(format!("gradient.{name}"), &[values.len()], values);
            }
        }
    }
    outputs.insert("written", &[WRITTEN], written.iter().map(|token| *token as f32).collect());
    outputs.write(&folder.join("outputs.safetensors"))?;
    Ok(())
}

fn steps(folder: &Path, n: usize, recompute: Recompute) -> Result<(), Box<dyn Error>> {
    let mut model = Flamingo::load(folder)?;
    model.set_recompute(recompute);
    let (batch, _) = read_inputs(folder)?;
    let mut moments = BTreeMap::new();
    for done in 1..=n {
        let start = Instant::now();
        let (loss, mut gradients) = model.step(&batch, 1.0, Gradients::default())?;
        for params in model.params_mut() {
            params.update(&mut gradients, |name, _, values, gradient| {
                let moments = moments
                    .entry(name.to_owned())
                    .or_insert_with(|| [0; 2].map(|_| vec![0.0; values.len()]));
                adamw(values, gradient, moments, done as i32);
            })?;
        }
        println!("loss {loss}");
        println!("seconds {}", start.elapsed().as_secs_f64());
    }
    Ok(())
}

/// One step of `AdamW`, with PyTorch's defaults and a learning rate of 1e-4.
fn adamw(values: &mut [f32], gradient: &[f32], [first, second]: &mut [Vec<f32>; 2], done: i32) {
    const CHUNK: usize = 1 << 14;
    const RATE: f32 = 1e-4;
    let rate = RATE / (1.0 - 0.9_f32.powi(done));
    let correction = (1.0 - 0.999_f32.powi(done)).sqrt().recip();
    values
        .par_chunks_mut(CHUNK)
        .zip(gradient.par_chunks(CHUNK))
        .zip(first.par_chunks_mut(CHUNK))
        .zip(second.par_chunks_mut(CHUNK))
        .for_each(|(((values, gradient), first), second)| {
            let moments = first.iter_mut().zip(second);
            for ((value, gradient), (first, second)) in values.iter_mut().zip(gradient).zip(moments)
            {
                *first += 0.1 * (gradient - *first);
                *second += 0.001 * (gradient * gradient - *second);
                *value *= 1.0 - RATE * 0.01;
                *value -= rate * *first / (second.sqrt() * correction + 1e-8);
            }
        });
}

fn forwards(folder: &Path, n: usize) -> Result<(), Box<dyn Error>> {
    let model = Flamingo::load(folder)?;
    let (batch, _) = read_inputs(folder)?;
    for _ in 0..n {
        let start = Instant::now();
        println!("loss {}", model.loss_only(&batch)?);
        println!("seconds {}", start.elapsed().as_secs_f64());
    }
    Ok(())
}

fn generate(folder: &Path, n: usize) -> Result<(), Box<dyn Error>> {
    let model = Flamingo::load(folder)?;
    let inputs = read_inputs(folder)?;
    for _ in 0..n {
        let start = Instant::now();
        let written = write_on(&model, &inputs, IMAGES, WRITTEN)?;
        println!("seconds {}", start.elapsed().as_secs_f64());
        println!("tokens {written:?}");
    }
    Ok(())
}

fn first_token(folder: &Path) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let model = Flamingo::load(folder)?;
    println!("loaded {}", start.elapsed().as_secs_f64());
    let inputs = read_inputs(folder)?;
    println!("tokens {:?}", write_on(&model, &inputs, 1, 1)?);
    println!("seconds {}", start.elapsed().as_secs_f64());
    Ok(())
}
