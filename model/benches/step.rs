//! Times training steps and generation of tiny models, the sizes of the demo: median milliseconds
//! and estimated GFLOP/s.
//!
//! `cargo bench -p flamingo-model` runs all, `cargo bench -p flamingo-model -- clip` those whose
//! name contains `clip`. The estimate counts the products of the linear layers and of attention: 2
//! per multiply-add, three times the forward pass for trained parts, twice for frozen parts that
//! gradients pass through, once for the vision tower.
#![expect(clippy::print_stdout, reason = "a bench reports on standard output")]

use std::path::Path;
use std::time::Instant;

use flamingo_model::{
    Activation, Architecture, Clip, ClipConfig, CrossAttentionConfig, Flamingo, FlamingoConfig,
    Generation, Gradients, Inputs, LanguageConfig, LanguageModel, Latents, ModelError, Pairs,
    PatchStates, Pool, Prompt, ResamplerConfig, TextBatch, VisionConfig, VitConfig,
};

/// Timed runs of each step, after two that are not timed.
const RUNS: usize = 11;

fn main() -> Result<(), ModelError> {
    // `cargo test --all-targets` starts benches too, without this flag: nothing is timed then.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let wanted = |name: &str| only.as_ref().is_none_or(|part| name.contains(part.as_str()));
    if wanted("clip") {
        clip()?;
    }
    if wanted("language") {
        language()?;
    }
    if wanted("flamingo") || wanted("generate") {
        flamingo()?;
    }
    Ok(())
}

/// Prints the median time of `step`, whose products take `flop` operations.
fn time(
    name: &str,
    flop: f64,
    mut step: impl FnMut() -> Result<(), ModelError>,
) -> Result<(), ModelError> {
    let mut seconds = Vec::with_capacity(RUNS);
    for run in 0..RUNS + 2 {
        let start = Instant::now();
        step()?;
        if run >= 2 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    let (median, best) = (seconds[RUNS / 2], seconds[0]);
    println!(
        "{name:<40} median {:8.2} ms   best {:8.2} ms   {:6.1} GFLOP/s",
        1e3 * median,
        1e3 * best,
        flop / median / 1e9
    );
    Ok(())
}

/// Forward operations of a stack of blocks over `n` sequences of `length` rows.
fn blocks(n: usize, length: usize, width: usize, layers: usize) -> f64 {
    let rows = (n * length) as f64;
    layers as f64 * rows * (24 * width * width + 4 * width * length) as f64
}

fn vision_config() -> VisionConfig {
    VisionConfig::Vit(VitConfig {
        image_size: 64,
        patch_size: 8,
        width: 96,
        layers: 4,
        heads: 4,
        activation: Activation::QuickGelu,
        feed_forward_width: None,
        patch_states: PatchStates::BeforeNorm,
    })
}

fn language_config(context: usize) -> LanguageConfig {
    LanguageConfig {
        vocabulary: 512,
        context,
        width: 128,
        layers: 4,
        heads: 4,
        activation: Activation::GeluTanh,
        architecture: Architecture::default(),
    }
}

/// Values in -1..1 without pattern.
fn noise(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 % 10007) as f32 / 5003.5) - 1.0).collect()
}

fn tokens(n: usize) -> Vec<u32> {
    (0..n).map(|i| (i * 131 % 509) as u32).collect()
}

fn mask(n: usize, length: usize) -> Vec<f32> {
    (0..n).map(|i| if (i + 1).is_multiple_of(length) { 0.0 } else { 1.0 }).collect()
}

fn clip() -> Result<(), ModelError> {
    let (batch, length) = (64, 32);
    let text = LanguageConfig { width: 96, ..language_config(length) };
    let config = ClipConfig { vision: vision_config(), text, embedding: 64, pool: Pool::Mean };
    let model = Clip::new(&config, 1)?;
    let pairs = Pairs {
        images: noise(batch * config.vision.n_pixel_values()).into(),
        tokens: tokens(batch * length),
        length,
        lengths: vec![20; batch],
    };
    let embedding = (2 * batch * config.vision.n_pixel_values() * 96) as f64;
    let flop = 3.0 * (embedding + blocks(batch, 65, 96, 4) + blocks(batch, length, 96, 4));
    time("clip step, 64 pairs", flop, || {
        model.contrastive_step(&pairs, 0.1, 1.0, Gradients::default()).map(drop)
    })
}

fn language() -> Result<(), ModelError> {
    let (batch, length) = (16, 128);
    let model = LanguageModel::new(&language_config(length), 1)?;
    let text = TextBatch {
        tokens: tokens(batch * length),
        length,
        loss_mask: mask(batch * length, length),
    };
    let head = (2 * batch * length * 128 * 512) as f64;
    let flop = 3.0 * (head + blocks(batch, length, 128, 4));
    time("language step, 16 x 128 tokens", flop, || {
        model.step(&text, 1.0, Gradients::default()).map(drop)
    })
}

/// A Flamingo on fresh towers.
fn make_flamingo(context: usize) -> Result<Flamingo, ModelError> {
    let folder = std::env::temp_dir().join(format!("flamingo-model-bench-{}", std::process::id()));
    let result = on_towers_in(&folder, context);
    let _ = std::fs::remove_dir_all(&folder);
    result
}

fn on_towers_in(folder: &Path, context: usize) -> Result<Flamingo, ModelError> {
    let (vision, language) = (folder.join("vision"), folder.join("language"));
    for path in [&vision, &language] {
        std::fs::create_dir_all(path).map_err(|source| ModelError::File {
            action: "write",
            path: path.clone(),
            source,
        })?;
    }
    let text = LanguageConfig { width: 96, ..language_config(32) };
    Clip::new(&ClipConfig { vision: vision_config(), text, embedding: 64, pool: Pool::Mean }, 1)?
        .save(&vision)?;
    LanguageModel::new(&language_config(context), 2)?.save(&language)?;
    let config = FlamingoConfig::on_towers(
        &vision,
        &language,
        ResamplerConfig {
            latents: 16,
            layers: 2,
            heads: 4,
            head_dim: 24,
            ..ResamplerConfig::paper()
        },
        CrossAttentionConfig { heads: 4, head_dim: 32, ..CrossAttentionConfig::paper_3b() },
    )?;
    Flamingo::new(&config, &vision, &language, 3)
}

fn flamingo() -> Result<(), ModelError> {
    let (batch, length, images) = (8, 128, 5);
    let model = make_flamingo(512)?;
    let pixels = model.config().vision.n_pixel_values();
    let phi = |length: usize, images: usize| {
        (0..length).map(move |l| (l * (images + 1) / length) as i32 - 1)
    };
    let inputs = Inputs {
        tokens: tokens(batch * length),
        length,
        phi: (0..batch).flat_map(|_| phi(length, images)).collect(),
        loss_mask: mask(batch * length, length),
        pixels: noise(batch * images * pixels).into(),
        features: None,
        n_frames: 1,
        image_count: vec![images; batch],
    };
    let (rows, n) = ((batch * length) as f64, (batch * images) as f64);
    let tower = n * (2 * pixels * 96) as f64 + blocks(batch * images, 65, 96, 4);
    let resampler =
        2.0 * n * f64::from(2 * 80 * 96 * 96 * 2 + 2 * 16 * 96 * 96 * 10 + 4 * 16 * 80 * 96);
    let cross = 4.0
        * (rows * f64::from(2 * 128 * 128 * 10 + 4 * 16 * 128)
            + n * f64::from(2 * 16 * 96 * 128 * 2));
    let language = rows * f64::from(2 * 128 * 512) + blocks(batch, length, 128, 4);
    let flop = tower + 3.0 * (resampler + cross) + 2.0 * language;
    time("flamingo step, 8 x 128 tokens, 40 images", flop, || {
        model.step(&inputs, 1.0, Gradients::default()).map(drop)
    })?;

    let latents: Vec<Latents> =
        (0..10).map(|_| model.latents(&noise(pixels), 1)).collect::<Result<_, _>>()?;
    let latents = Latents::join(&latents)?;
    let prompts: Vec<Prompt> = (0..100)
        .map(|i| Prompt {
            tokens: tokens(200 + i % 56),
            phi: phi(200 + i % 56, 10).collect(),
            latents: latents.clone(),
        })
        .collect();
    time("generate, 100 prompts x 10 tokens", 0.0, || {
        model.generate(&prompts, &Generation::greedy(10, u32::MAX)).map(drop)
    })?;
    let answers: Vec<Vec<u32>> = (0..32).map(|i| tokens(4 + i % 5)).collect();
    time("rank 32 answers", 0.0, || model.rank(&prompts[0], &answers).map(drop))
}
