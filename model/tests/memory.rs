//! Peak memory of training steps: frozen weights cost no gradients, frozen blocks one hidden state
//! each. Allocated bytes are counted, not resident pages, which vary with the system's allocator;
//! every step runs in a process of its own, since the model keeps dropped buffers for later steps.

use std::env;
use std::error::Error;
use std::process::Command;

use flamingo_model::{
    Activation, Architecture, CrossAttentionConfig, FirstBlock, Flamingo, FlamingoConfig,
    Gradients, Inputs, LanguageConfig, PatchStates, Pixels, Recompute, ResamplerConfig, Tower,
    Trainable, VitConfig,
};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

const MIB: usize = 1 << 20;
/// Tokens of the sequence.
const LENGTH: usize = 512;
/// Width of the language model.
const WIDTH: usize = 256;
/// Bytes of a hidden state of the sequence.
const HIDDEN: usize = 4 * LENGTH * WIDTH;

/// A small resampler and one cross-attention before a language model of so many layers and tokens.
fn config(layers: usize, vocabulary: usize) -> FlamingoConfig {
    let activation = Activation::SquaredRelu;
    FlamingoConfig {
        vision: VitConfig {
            image_size: 8,
            patch_size: 4,
            width: 16,
            layers: 1,
            heads: 2,
            activation,
            feed_forward_width: None,
            patch_states: PatchStates::BeforeNorm,
        }
        .into(),
        language: LanguageConfig {
            vocabulary,
            context: LENGTH,
            width: WIDTH,
            layers,
            heads: 4,
            activation,
            architecture: Architecture::default(),
        },
        resampler: ResamplerConfig {
            latents: 4,
            layers: 1,
            heads: 2,
            head_dim: 8,
            frames: 1,
            activation,
            ..ResamplerConfig::paper()
        },
        cross_attention: CrossAttentionConfig {
            every: layers,
            first: FirstBlock::Zero,
            heads: 2,
            head_dim: 16,
            ..CrossAttentionConfig::paper_3b()
        },
        added_tokens: 0,
        trained_tokens: Vec::new(),
    }
}

/// A sequence of the first tokens with one image.
fn inputs(length: usize) -> Inputs {
    let mut loss_mask = vec![1.0; length];
    loss_mask[length - 1] = 0.0;
    Inputs {
        tokens: (0..length as u32).map(|i| i % 64).collect(),
        length,
        phi: vec![0; length],
        loss_mask,
        pixels: Pixels::F32((0..3 * 64).map(|i| (i % 7) as f32 - 3.0).collect()),
        features: None,
        n_frames: 1,
        image_count: vec![1],
    }
}

/// A training step that is measured.
#[derive(Debug, Clone, Copy)]
struct Case {
    layers: usize,
    vocabulary: usize,
    /// Whether the language model is trained.
    trained: bool,
    recompute: Recompute,
    length: usize,
}

const SHALLOW: Case = Case {
    layers: 2,
    vocabulary: 64,
    trained: false,
    recompute: Recompute::Frozen,
    length: LENGTH,
};
/// 64 MiB of embeddings, 12 of blocks; few tokens, so that a step makes little else.
const WIDE: Case = Case { layers: 4, vocabulary: 65_536, length: 8, ..SHALLOW };

/// The cases that a process can be told to run, by number.
const CASES: [Case; 6] = [
    WIDE,
    Case { trained: true, ..WIDE },
    SHALLOW,
    Case { layers: 34, ..SHALLOW },
    Case { recompute: Recompute::Nothing, ..SHALLOW },
    Case { layers: 34, recompute: Recompute::Nothing, ..SHALLOW },
];

/// Bytes that the step of a case allocates at its peak beyond what the process holds before it.
fn growth(case: Case) -> Result<usize, Box<dyn Error>> {
    let tower = |trained| Tower { from: None, trained };
    let config = config(case.layers, case.vocabulary);
    let mut model = Flamingo::on_towers(&config, tower(false), tower(case.trained), 1)?;
    model.set_recompute(case.recompute);
    for params in model.params_mut() {
        params.update(&mut Gradients::default(), |name, _, values, _| {
            if name.ends_with("_gate") {
                values.fill(0.5);
            }
        })?;
    }
    let inputs = inputs(case.length);
    ALLOCATED.reset_peak_usage();
    let before = ALLOCATED.current_usage();
    let (loss, _gradients) = model.step(&inputs, 1.0, Gradients::default())?;
    assert!(loss.is_finite());
    Ok(ALLOCATED.peak_usage() - before)
}

/// The number of the case that this process runs.
const CASE: &str = "MEMORY_TEST_CASE";
/// Before the bytes that it found.
const FOUND: &str = "peak grew by ";

/// What [`growth`] is in a process of its own.
fn growth_alone(case: usize) -> Result<usize, Box<dyn Error>> {
    let test = "frozen_weights_cost_no_gradients_and_frozen_blocks_one_hidden_state_each";
    let mut command = Command::new(env::current_exe()?);
    command.args(["--exact", test, "--nocapture"]).env(CASE, case.to_string());
    let text = String::from_utf8(command.output()?.stderr)?;
    let found = text.lines().find_map(|line| line.strip_prefix(FOUND));
    Ok(found.ok_or_else(|| format!("case {case}: {text}"))?.parse()?)
}

#[test]
fn frozen_weights_cost_no_gradients_and_frozen_blocks_one_hidden_state_each() {
    if let Ok(case) = env::var(CASE) {
        let case = CASES[case.parse::<usize>().unwrap()];
        eprintln!("{FOUND}{}", growth(case).unwrap());
        return;
    }
    let [frozen, trained, shallow, deep, shallow_kept, deep_kept] =
        [0, 1, 2, 3, 4, 5].map(|case| growth_alone(case).unwrap());
    eprintln!("of 76 MiB of weights: {} MiB frozen, {} trained", frozen / MIB, trained / MIB);
    assert!(frozen < 32 * MIB, "{frozen} bytes");
    assert!(trained > 76 * MIB, "{trained} bytes: this test sees gradients");

    let states = |deep: usize, shallow: usize| (deep - shallow) as f64 / (32 * HIDDEN) as f64;
    let (once, kept) = (states(deep, shallow), states(deep_kept, shallow_kept));
    eprintln!("hidden states a block: {once:.2} recomputed, {kept:.2} kept");
    assert!(once < 1.5, "{once} hidden states a block");
    assert!(kept > 4.0, "{kept} hidden states a block: this test sees what blocks keep");
}
