//! What every variant of the trained parts promises, on models small enough for finite differences.

use std::cell::RefCell;

use crate::flamingo::Towers;
use crate::gated_xattn::{Conditioning, FirstBlock, GateKind, MediaAttention};
use crate::ops::gradient_check::{gradients_of_ramp, pseudo_random, weighted_sum};
use crate::ops::{KeptRows, Recompute};
use crate::params::{Source, Training};
use crate::resampler::ResamplerKind;
use crate::tensor::{Matrix, NotRecording, Recording};
use crate::{
    Activation, CrossAttentionConfig, Flamingo, FlamingoConfig, Gradients, Inputs, LanguageConfig,
    LanguageModel, Latents, NfnetConfig, Params, Pixels, Prompt, ResamplerConfig, Tensors,
    TextBatch, Tower, Trainable, VisionConfig, VitConfig,
};
use crate::{Architecture, Generation, PatchStates};

/// Pixels of one frame of the tiny model.
const PIXELS: usize = 3 * 8 * 8;
/// Tokens of the tiny model.
const VOCABULARY: usize = 23;

fn paper() -> FlamingoConfig {
    let activation = Activation::Gelu;
    FlamingoConfig {
        vision: VisionConfig::Vit(VitConfig {
            image_size: 8,
            patch_size: 4,
            width: 12,
            layers: 1,
            heads: 2,
            activation,
            feed_forward_width: None,
            patch_states: PatchStates::BeforeNorm,
        }),
        resampler: ResamplerConfig {
            latents: 3,
            layers: 2,
            heads: 2,
            head_dim: 5,
            frames: 2,
            activation,
            ..ResamplerConfig::paper()
        },
        cross_attention: CrossAttentionConfig {
            every: 2,
            heads: 2,
            head_dim: 6,
            activation,
            ..CrossAttentionConfig::paper_3b()
        },
        language: LanguageConfig {
            vocabulary: VOCABULARY,
            context: 16,
            width: 16,
            layers: 3,
            heads: 2,
            activation,
            architecture: Architecture::default(),
        },
        added_tokens: 0,
        trained_tokens: Vec::new(),
    }
}

/// The paper's model and every variant by itself, some together.
fn variants() -> Vec<(&'static str, FlamingoConfig)> {
    let with = |change: fn(&mut FlamingoConfig)| {
        let mut config = paper();
        change(&mut config);
        config.validate().unwrap();
        config
    };
    vec![
        ("paper", paper()),
        ("mlp resampler", with(|c| c.resampler.kind = ResamplerKind::Mlp)),
        ("transformer resampler", with(|c| c.resampler.kind = ResamplerKind::Transformer)),
        ("width of the latents", with(|c| c.resampler.width = Some(10))),
        (
            "mlp of another width, more latents than features",
            with(|c| {
                c.resampler.kind = ResamplerKind::Mlp;
                (c.resampler.width, c.resampler.latents) = (Some(14), 11);
            }),
        ),
        ("no media norm", with(|c| c.cross_attention.media_norm = false)),
        ("no gate", with(|c| c.cross_attention.gate = GateKind::None)),
        ("last of every", with(|c| c.cross_attention.first = FirstBlock::LastOfEvery)),
        ("single", with(|c| c.cross_attention.first = FirstBlock::Single)),
        ("all previous", with(|c| c.cross_attention.attend = MediaAttention::AllPrevious)),
        ("vanilla", with(|c| c.cross_attention.conditioning = Conditioning::Vanilla)),
        (
            "vanilla without gate, single",
            with(|c| {
                c.cross_attention.conditioning = Conditioning::Vanilla;
                c.cross_attention.gate = GateKind::None;
                c.cross_attention.first = FirstBlock::Single;
            }),
        ),
        (
            "grafting",
            with(|c| c.cross_attention.conditioning = Conditioning::Grafting { layers: 2 }),
        ),
        (
            "grafting without gate, all previous",
            with(|c| {
                c.cross_attention.conditioning = Conditioning::Grafting { layers: 1 };
                c.cross_attention.gate = GateKind::None;
                c.cross_attention.attend = MediaAttention::AllPrevious;
            }),
        ),
        (
            "OpenFlamingo",
            with(|c| {
                c.resampler = ResamplerConfig {
                    latents: 3,
                    layers: 2,
                    heads: 2,
                    head_dim: 5,
                    ..ResamplerConfig::open_flamingo()
                };
                c.cross_attention = CrossAttentionConfig {
                    heads: 2,
                    head_dim: 6,
                    ..CrossAttentionConfig::open_flamingo(2)
                };
            }),
        ),
    ]
}

/// A model with closed gates. Its embeddings are as large as those of a trained language model:
/// beside fresh ones any step that finite differences can take would be a long one.
fn fresh(config: &FlamingoConfig) -> Flamingo {
    fresh_but(config, |_, _| {})
}

/// As [`fresh`], with weights of the language model changed.
fn fresh_but(config: &FlamingoConfig, change: impl Fn(&str, &mut [f32])) -> Flamingo {
    let mut tensors = Tensors::default();
    for parameter in LanguageModel::new(&config.language, 2).unwrap().params()[0].iter() {
        let gain = if parameter.shape[0] == VOCABULARY { 25.0 } else { 1.0 };
        let mut values: Vec<f32> = parameter.weight.values().iter().map(|v| gain * v).collect();
        change(&parameter.name, &mut values);
        tensors.insert(&parameter.name, &parameter.shape, values);
    }
    let language = Source::Stored { tensors, path: "language".into() };
    let [vision, rest] = [1, 3].map(|seed| Source::Random { seed });
    let train = [Training::Frozen; 2];
    let towers = Towers { shape: config.vision.clone(), vision, language, train };
    Flamingo::from_sources(config.clone(), towers, rest).unwrap()
}

/// As [`fresh`], with open gates.
fn opened(config: &FlamingoConfig) -> Flamingo {
    open_gates(fresh(config))
}

fn open_gates(mut model: Flamingo) -> Flamingo {
    change(&mut model, |name, values| {
        if name.ends_with("_gate") {
            values.fill(0.7);
        }
    });
    model
}

fn change(model: &mut impl Trainable, mut f: impl FnMut(&str, &mut [f32])) {
    for params in model.params_mut() {
        params.update(&mut Gradients::default(), |name, _, values, _| f(name, values)).unwrap();
    }
}

/// Frames of the images that a model can read: 2, or 1 where it has no time embeddings.
fn frames(config: &FlamingoConfig) -> usize {
    config.resampler.frames.clamp(1, 2)
}

/// The numbers of the images of a batch, to be changed.
fn numbers(batch: &mut Inputs) -> &mut Vec<f32> {
    match &mut batch.pixels {
        Pixels::F32(numbers) => numbers,
        Pixels::U8 { .. } => panic!("the images are numbers"),
    }
}

/// Two sequences of 6 tokens: two images (the first seen from position 1, the second from 4), and
/// one.
fn inputs(config: &FlamingoConfig) -> Inputs {
    Inputs {
        tokens: vec![1, 3, 5, 7, 3, 9, 1, 2, 3, 11, 13, 0],
        length: 6,
        phi: vec![-1, 0, 0, 0, 1, 1, -1, -1, 0, 0, 0, 0],
        loss_mask: vec![1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0],
        pixels: pseudo_random(3 * frames(config) * PIXELS, 1).into(),
        features: None,
        n_frames: frames(config),
        image_count: vec![2, 1],
    }
}

/// The two sequences of [`inputs`] and one without images as prompts.
fn prompts(model: &Flamingo) -> Vec<Prompt> {
    let (mut batch, n_frames) = (inputs(&model.config), frames(&model.config));
    let pixels = numbers(&mut batch).clone();
    let one = n_frames * PIXELS;
    let latents =
        |from: usize, to: usize| model.latents(&pixels[from * one..to * one], n_frames).unwrap();
    vec![
        Prompt {
            tokens: batch.tokens[..6].to_vec(),
            phi: batch.phi[..6].to_vec(),
            latents: Latents::join([&latents(0, 1), &latents(1, 2)]).unwrap(),
        },
        Prompt {
            tokens: batch.tokens[6..10].to_vec(),
            phi: batch.phi[6..10].to_vec(),
            latents: latents(2, 3),
        },
        Prompt { tokens: vec![4], phi: vec![-1], latents: Latents::none() },
    ]
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn closed_gates_give_exactly_the_bare_language_models_logits() {
    for (name, config) in variants() {
        let model = fresh(&config);
        let batch = inputs(&config);
        let bare = model.language_model().logits(&batch.tokens, batch.length).unwrap();
        let same = bits(&model.logits(&batch).unwrap()) == bits(&bare);
        assert_eq!(same, config.cross_attention.gate == GateKind::Tanh, "{name}");
        assert_ne!(bits(&opened(&config).logits(&batch).unwrap()), bits(&bare), "{name}");
    }
}

/// Sequence `b` of [`inputs`], cut off after its last prediction.
fn alone(config: &FlamingoConfig, b: usize) -> Inputs {
    let (mut all, image) = (inputs(config), frames(config) * PIXELS);
    let (start, length, images) = [(0, 6, 0..2), (6, 5, 2..3)][b].clone();
    let rows = start..start + length;
    let pixels = numbers(&mut all).clone();
    Inputs {
        tokens: all.tokens[rows.clone()].to_vec(),
        length,
        phi: all.phi[rows.clone()].to_vec(),
        loss_mask: all.loss_mask[rows].to_vec(),
        pixels: pixels[images.start * image..images.end * image].to_vec().into(),
        image_count: vec![images.len()],
        ..all
    }
}

#[test]
fn a_loss_that_leaves_padding_out_is_that_of_all_logits_and_of_each_sequence_by_itself() {
    for (name, config) in variants() {
        let model = opened(&config);
        let batch = inputs(&config);
        let (targets, n) = batch.check(&config).unwrap();
        let logits = model.logits(&batch).unwrap();
        let nll = model.token_nll(&batch).unwrap();
        assert_eq!(nll.len(), 12, "{name}");
        for ((nll, logits), target) in nll.iter().zip(logits.chunks(VOCABULARY)).zip(&targets) {
            let logits: Vec<f64> = logits.iter().map(|v| f64::from(*v)).collect();
            let log_z = logits.iter().map(|v| v.exp()).sum::<f64>().ln();
            let expected = target.map_or(0.0, |target| log_z - logits[target as usize]);
            assert!((f64::from(*nll) - expected).abs() < 1e-5, "{name}: {nll}, {expected}");
        }
        let (loss, together) = model.step(&batch, 1.0, Gradients::default()).unwrap();
        let (mut sum, mut apart) = (0.0, Gradients::default());
        for b in 0..2 {
            let batch = alone(&config, b);
            let share = batch.check(&config).unwrap().1 as f32 / n as f32;
            let part;
            (part, apart) = model.step(&batch, share, apart).unwrap();
            sum += share * part;
        }
        assert!((loss - sum).abs() < 1e-6, "{name}: {loss}, {sum}");
        let (mut together, mut apart) = (together, apart);
        for params in model.params() {
            for parameter in params.iter().filter(|parameter| parameter.weight.is_trained()) {
                let of = |gradients: &mut Gradients| {
                    params.gradient(gradients, &parameter.name).unwrap().unwrap_or_default()
                };
                let (a, b) = (of(&mut together), of(&mut apart));
                let norm = |v: &[f32]| v.iter().map(|v| v * v).sum::<f32>().sqrt();
                let difference: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
                let error = norm(&difference) / norm(&b).max(1e-3);
                assert!(a.len() == b.len() && error < 1e-4, "{name}, {}: {error}", parameter.name);
            }
        }
    }
}

/// The loss, and the gradients of all that is trained, by their bits.
fn step_bits(model: &impl Trainable, (loss, mut gradients): (f32, Gradients)) -> Vec<Vec<u32>> {
    let mut all = vec![vec![loss.to_bits()]];
    for params in model.params() {
        for parameter in params.iter().filter(|parameter| parameter.weight.is_trained()) {
            let gradient = params.gradient(&mut gradients, &parameter.name).unwrap();
            all.push(bits(&gradient.unwrap_or_default()));
        }
    }
    all
}

/// No row predicts at position 5, and no position before looks at it. Were it computed, its states would be no
/// numbers, nor would the gradients of weights that are sums over all states.
#[test]
fn what_follows_the_last_prediction_is_not_computed() {
    let spoil = |name: &str, values: &mut [f32]| {
        if name.ends_with("positions.weight") {
            values[5 * 16..6 * 16].fill(f32::NAN);
        }
    };
    for (name, config) in variants() {
        let batch = inputs(&config);
        let step = |model: &Flamingo| {
            step_bits(model, model.step(&batch, 1.0, Gradients::default()).unwrap())
        };
        let spoilt = open_gates(fresh_but(&config, spoil));
        assert!(step(&spoilt) == step(&opened(&config)), "{name}");
    }
    let config = paper().language;
    let Inputs { tokens, length, loss_mask, .. } = inputs(&paper());
    let batch = TextBatch { tokens, length, loss_mask };
    let step = |model: &LanguageModel| {
        step_bits(model, model.step(&batch, 1.0, Gradients::default()).unwrap())
    };
    let mut model = LanguageModel::new(&config, 2).unwrap();
    let expected = step(&model);
    change(&mut model, spoil);
    assert!(step(&model) == expected);
}

#[test]
fn a_token_depends_on_the_images_that_it_may_see_alone() {
    let row = |logits: &[f32], l: usize| bits(&logits[l * VOCABULARY..(l + 1) * VOCABULARY]);
    for (name, config) in variants() {
        let model = opened(&config);
        let one = frames(&config) * PIXELS;
        let before = model.logits(&inputs(&config)).unwrap();
        // The second image, seen from position 4 on.
        let mut batch = inputs(&config);
        numbers(&mut batch)[one..2 * one].fill(0.3);
        let after = model.logits(&batch).unwrap();
        for l in (0..4).chain(6..12) {
            assert_eq!(row(&before, l), row(&after, l), "{name}, position {l}");
        }
        assert_ne!(row(&before, 4), row(&after, 4), "{name}");
        // The first image, seen from position 1 on.
        let mut batch = inputs(&config);
        numbers(&mut batch)[..one].fill(-0.3);
        let after = model.logits(&batch).unwrap();
        for l in [0].into_iter().chain(6..12) {
            assert_eq!(row(&before, l), row(&after, l), "{name}, position {l}");
        }
        assert_ne!(row(&before, 1), row(&after, 1), "{name}");
    }
}

/// Without self-attention in between, so that what a token reads itself can be told.
#[test]
fn all_previous_images_are_read_and_with_one_only_the_last() {
    for attend in [MediaAttention::One, MediaAttention::AllPrevious] {
        let mut config = paper();
        config.cross_attention.attend = attend;
        config.language.layers = 1;
        let model = opened(&config);
        let read = |batch: &Inputs| {
            let hidden = model.hidden(batch, &all_rows(batch), NotRecording::default()).unwrap();
            bits(&hidden.values()[4 * 16..5 * 16])
        };
        // Only position 4 sees anything: the second image, or both.
        let batch =
            Inputs { phi: vec![-1, -1, -1, -1, 1, -1, -1, -1, -1, -1, -1, -1], ..inputs(&config) };
        let mut changed = batch.clone();
        numbers(&mut changed)[..2 * PIXELS].fill(-0.3);
        assert_eq!(read(&batch) == read(&changed), attend == MediaAttention::One);
    }
}

/// A model with these gates in all blocks.
fn with_gates(config: &FlamingoConfig, alpha: f32, beta: f32) -> Flamingo {
    let mut model = fresh(config);
    change(&mut model, |name, values| match name.rsplit('.').next() {
        Some("attn_gate") => values.fill(alpha),
        Some("ffw_gate") => values.fill(beta),
        _ => {}
    });
    model
}

/// States before and after the first block: `[12, 16]` each.
fn around_the_first_block(model: &Flamingo, batch: &Inputs) -> [Vec<f32>; 2] {
    let seen = RefCell::new(Vec::new());
    let pass = |i, y: Matrix, media: &_, reads: &_| {
        let after = model.cross(i, y.clone(), media, reads)?;
        seen.borrow_mut().push([y.to_vec()?, after.to_vec()?]);
        Ok(after)
    };
    model.hidden_by(batch, &all_rows(batch), NotRecording::default(), pass).unwrap();
    seen.into_inner().swap_remove(0)
}

/// By another way: from the states before and after, with the second half open and closed.
#[test]
fn what_a_block_adds_is_the_difference_of_the_states() {
    let (config, batch) = (paper(), inputs(&paper()));
    // Those that see an image and predict the next token.
    let rows = |values: &[f32]| -> Vec<f64> {
        let row = |l: usize| values[l * 16..(l + 1) * 16].iter().map(|v| f64::from(*v));
        [1, 3, 4, 8, 9].into_iter().flat_map(row).collect()
    };
    let square = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>();
    let change = |after: &[f32], before: &[f32]| {
        let both = rows(after).into_iter().zip(rows(before));
        square(&both.map(|(after, before)| after - before).collect::<Vec<_>>())
    };
    let close = |found: f64, expected: f64| {
        assert!((found / expected - 1.0).abs() < 1e-4, "{found}, expected {expected}");
    };
    let [before, between] = around_the_first_block(&with_gates(&config, 0.7, 0.0), &batch);
    let open = with_gates(&config, 0.7, -0.4);
    let [_, after] = around_the_first_block(&open, &batch);
    let sums = open.gate_sums(&batch).unwrap();
    let (attention, feed_forward) = (sums[0].attention, sums[0].feed_forward.unwrap());
    close(attention.onto, square(&rows(&before)));
    close(attention.added, change(&between, &before));
    close(attention.ratio(), (change(&between, &before) / square(&rows(&before))).sqrt());
    close(feed_forward.onto, square(&rows(&between)));
    close(feed_forward.added, change(&after, &between));
}

#[test]
fn closed_gates_add_exactly_nothing_and_open_ones_something() {
    for (name, config) in variants() {
        let (batch, crossing) = (inputs(&config), &config.cross_attention);
        let blind = Inputs { phi: vec![-1; 12], ..batch.clone() };
        let is_gated = crossing.gate == GateKind::Tanh;
        let is_vanilla = crossing.conditioning == Conditioning::Vanilla;
        for (model, is_closed) in [(fresh(&config), is_gated), (opened(&config), false)] {
            let sums = model.gate_sums(&batch).unwrap();
            assert_eq!(sums.len(), crossing.n_blocks(config.language.layers), "{name}");
            for block in sums {
                assert_eq!(block.feed_forward.is_none(), is_vanilla, "{name}");
                for half in [Some(block.attention), block.feed_forward].into_iter().flatten() {
                    assert!(half.ratio().is_finite(), "{name}: {half:?}");
                    assert_eq!(half.ratio() == 0.0, is_closed, "{name}: {half:?}");
                }
            }
            assert!(model.gate_sums(&blind).unwrap()[0].attention.ratio().is_nan(), "{name}");
        }
    }
}

#[test]
fn gradients_of_every_variant_equal_finite_differences() {
    for (name, config) in variants() {
        let error = largest_gradient_error(name, &mut opened(&config), &inputs(&config));
        eprintln!("{name}: gradients within {error:.1e} of finite differences");
    }
}

/// Most values of a parameter that are checked.
const CHECKED: usize = 6;
/// Steps of the differences: rounding spoils the short ones where a gradient is small, curvature
/// the long ones where a norm or a gate bends the states. One of them has to agree.
const STEPS: [f32; 4] = [0.03, 0.08, 0.01, 0.004];
/// Relative error in norm allowed in the gradient of a parameter.
const TOLERANCE: f64 = 3e-3;
/// Norm of a gradient below which errors are relative to this instead: there rounding, 5e-5 of the
/// summed outputs, is all that differences show.
const SMALL: f64 = 0.05;

/// The largest relative error, in norm, of the gradients of single parameters: of the states after
/// the last norm, summed by evenly spaced weights.
fn largest_gradient_error(variant: &str, model: &mut Flamingo, batch: &Inputs) -> f64 {
    let gradients = trained_gradients(model, batch);
    let mut largest = 0.0_f64;
    for (name, gradient) in gradients {
        let n = gradient.len();
        let checked: Vec<usize> = (0..n).step_by(n.div_ceil(CHECKED)).collect();
        let mut error_of = |h: f32| {
            let (mut wrong, mut whole) = (0.0, 0.0);
            for i in &checked {
                let expected = difference(model, batch, (&name, *i), h);
                wrong += (f64::from(gradient[*i]) - expected).powi(2);
                whole += expected.powi(2);
            }
            assert!(whole > 0.0, "{variant}: no gradient reaches {name}");
            wrong.sqrt() / whole.sqrt().max(SMALL)
        };
        let mut error = f64::INFINITY;
        for step in STEPS {
            if error >= TOLERANCE {
                error = error.min(error_of(step));
            }
        }
        assert!(error < TOLERANCE, "{variant}: gradient of {name} differs by {error:.1e}");
        largest = largest.max(error);
    }
    largest
}

fn all_rows(batch: &Inputs) -> KeptRows {
    KeptRows::all(batch.tokens.len(), batch.length)
}

/// The gradients of all trained parameters by name: of the states after the last norm, summed by
/// evenly spaced weights.
fn trained_gradients(model: &Flamingo, batch: &Inputs) -> Vec<(String, Vec<f32>)> {
    let (_, mut gradients) =
        gradients_of_ramp(model.hidden(batch, &all_rows(batch), Recording::default()).unwrap());
    let mut all = Vec::new();
    for params in model.params() {
        for parameter in params.iter().filter(|parameter| parameter.weight.is_trained()) {
            let gradient = params.gradient(&mut gradients, &parameter.name).unwrap().unwrap();
            all.push((parameter.name.clone(), gradient));
        }
    }
    all
}

/// An `NFNet` for images of 8 pixels a side: one feature row of 16 values.
fn tiny_nfnet() -> VisionConfig {
    let f0 = NfnetConfig::named("f0", 8).unwrap();
    VisionConfig::Nfnet(NfnetConfig {
        depths: [1; 4],
        channels: [16; 4],
        stem_channels: 16,
        group_size: 8,
        num_features: 16,
        ..f0
    })
}

#[test]
fn towers_are_trained_or_frozen_as_told_and_recomputing_changes_no_bit() {
    for (name, vision) in [("vision transformer", paper().vision), ("NFNet", tiny_nfnet())] {
        let config = FlamingoConfig { vision, ..paper() };
        for [vision, language] in [[false, false], [true, false], [false, true], [true, true]] {
            let fresh = |trained| Tower { from: None, trained };
            let mut model =
                Flamingo::on_towers(&config, fresh(vision), fresh(language), 5).unwrap();
            change(&mut model, |name, values| {
                if name.ends_with("_gate") || name.ends_with("skipinit_gain") {
                    values.fill(0.7);
                }
            });
            let batch = inputs(&config);
            let gradients = trained_gradients(&model, &batch);
            let reaches = |prefix: &str| {
                let of = |(name, _): &&(String, Vec<f32>)| name.starts_with(prefix);
                gradients.iter().filter(of).count()
            };
            assert_eq!(reaches("vision.") > 0, vision, "{name}");
            assert_eq!(reaches("language.") > 0, language, "{name}");
            let moved = |(name, values): &(String, Vec<f32>)| {
                // The class row and the last norm feed no feature; biases of keys cannot matter.
                let idle = name.contains("class") || name.contains("ln_post");
                idle || values.iter().any(|v| *v != 0.0)
            };
            assert!(gradients.iter().all(moved), "{name}");
            for recompute in [Recompute::Nothing, Recompute::All] {
                model.set_recompute(recompute);
                assert!(trained_gradients(&model, &batch) == gradients, "{name} {recompute:?}");
            }
            let frozen = model.frozen_sha256();
            change(&mut model, |_, values| values.iter_mut().for_each(|v| *v += 1.0));
            assert_eq!(model.frozen_sha256(), frozen, "{name}");
        }
    }
}

#[test]
fn gradients_of_trained_towers_equal_finite_differences() {
    for (name, vision) in [("vision transformer", paper().vision), ("NFNet", tiny_nfnet())] {
        let config = FlamingoConfig { vision, ..paper() };
        let tower = Tower { from: None, trained: true };
        let mut model = Flamingo::on_towers(&config, tower, tower, 5).unwrap();
        change(&mut model, |name, values| {
            if name.ends_with("_gate") || name.ends_with("skipinit_gain") {
                values.fill(0.7);
            }
            if name == "language.tokens.weight" || name == "language.positions.weight" {
                for value in values {
                    *value *= 25.0;
                }
            }
        });
        let batch = inputs(&config);
        let mut worst = 0.0_f64;
        for part in ["vision.", "language."] {
            let all = trained_gradients(&model, &batch);
            // What feeds a `ReLU` directly may cross its kink; timm's golden gradients have it too.
            let checked = |name: &str| name.starts_with(part) && !name.contains(".fc1.");
            for (name, gradient) in all.iter().filter(|(name, _)| checked(name)) {
                let largest = (0..gradient.len())
                    .max_by(|a, b| gradient[*a].abs().total_cmp(&gradient[*b].abs()));
                let i = largest.unwrap();
                let error = STEPS.map(|h| {
                    let expected = difference(&mut model, &batch, (name, i), h);
                    (f64::from(gradient[i]) - expected).abs() / expected.abs().max(SMALL)
                });
                let error = error.into_iter().fold(f64::INFINITY, f64::min);
                assert!(error < TOLERANCE, "gradient of {name}[{i}] differs by {error:.1e}");
                worst = worst.max(error);
            }
        }
        eprintln!("{name} and language model, trained: {worst:.1e}");
    }
}

/// The slope of the summed outputs in value `i` of a parameter, from central differences of steps
/// `h` and `2 h`, in which the third derivative drops out.
fn difference(model: &mut Flamingo, batch: &Inputs, (name, i): (&str, usize), h: f32) -> f64 {
    let mut slope = |h: f32| {
        let mut at = |step: f32| {
            let mut kept = 0.0;
            change(model, |which, values| {
                if which == name {
                    kept = values[i];
                    values[i] += step;
                }
            });
            let sum = weighted_sum(
                &model.hidden(batch, &all_rows(batch), NotRecording::default()).unwrap(),
            );
            change(model, |which, values| {
                if which == name {
                    values[i] = kept;
                }
            });
            sum
        };
        (at(h) - at(-h)) / f64::from(2.0 * h)
    };
    (4.0 * slope(h) - slope(2.0 * h)) / 3.0
}

#[test]
fn rows_of_added_tokens_are_trained_and_embed_and_score() {
    for tied in [true, false] {
        let mut config = FlamingoConfig { added_tokens: 2, ..paper() };
        config.language.architecture.tied = tied;
        let mut batch = inputs(&config);
        batch.tokens[3] = VOCABULARY as u32 + 1;
        let mut model = opened(&config);
        if tied {
            // Of the states before the head, which has a check of its own.
            let error = largest_gradient_error("added tokens", &mut model, &batch);
            eprintln!("added tokens: gradients within {error:.1e} of finite differences");
        }
        let (_, mut grads) = model.step(&batch, 1.0, Gradients::default()).unwrap();
        let name = if tied { "added_tokens.weight" } else { "added_head.weight" };
        let head = model.params.gradient(&mut grads, name).unwrap().unwrap();
        assert!(head.chunks(16).all(|row| row.iter().any(|v| *v != 0.0)), "every row is scored");
        assert_eq!(model.logits(&batch).unwrap().len(), batch.tokens.len() * (VOCABULARY + 2));
        let prompts = prompts(&model);
        let written = model.generate(&prompts, &Generation::greedy(3, u32::MAX)).unwrap();
        assert!(written.iter().all(|tokens| tokens.len() == 3));
        batch.tokens[3] += 1;
        let error = model.logits(&batch).unwrap_err().to_string();
        assert!(error.contains("token is 25, expected below 25"), "{error}");
    }
}

/// Rows of tokens that stand in the place of the language model's own are the model that has them there.
#[test]
fn rows_of_trained_tokens_embed_and_score_in_their_place() {
    for tied in [true, false] {
        let mut own = FlamingoConfig { added_tokens: 1, ..paper() };
        own.language.architecture.tied = tied;
        let mut batch = inputs(&own);
        // A token that is moved, one that was added, and targets of both kinds.
        (batch.tokens[1], batch.tokens[3], batch.tokens[4]) = (2, VOCABULARY as u32, 2);
        let moved = FlamingoConfig { trained_tokens: vec![0, 2], ..own.clone() };
        let (own, mut model) = (opened(&own), opened(&moved));
        let logits = |model: &Flamingo| model.logits(&batch).unwrap();
        for (a, b) in logits(&own).iter().zip(logits(&model)) {
            assert!((a - b).abs() < 1e-5 * a.abs().max(1.0), "{a} {b}");
        }
        assert_eq!(own.frozen_sha256(), model.frozen_sha256());
        if tied {
            // Of the states before the head, which has a check of its own.
            let error = largest_gradient_error("trained tokens", &mut model, &batch);
            eprintln!("trained tokens: gradients within {error:.1e} of finite differences");
        }
        let (_, mut grads) = model.step(&batch, 1.0, Gradients::default()).unwrap();
        let names = ["trained_tokens.weight", "trained_head.weight"];
        for name in &names[..if tied { 1 } else { 2 }] {
            let rows = model.params.gradient(&mut grads, name).unwrap().unwrap();
            assert_eq!(rows.len(), 2 * 16, "{name}");
            assert!(rows[16..].iter().any(|v| *v != 0.0), "{name}");
        }
        let prompts = prompts(&model);
        let written = model.generate(&prompts, &Generation::greedy(3, u32::MAX)).unwrap();
        assert_eq!(written, own.generate(&prompts, &Generation::greedy(3, u32::MAX)).unwrap());
    }
}

#[test]
fn generation_from_kept_keys_equals_reading_everything_again() {
    for (name, config) in variants() {
        let model = opened(&config);
        let prompts = prompts(&model);
        let written = model.generate(&prompts, &Generation::greedy(12, 10_000)).unwrap();
        for (prompt, written) in prompts.iter().zip(&written) {
            let mut longer = prompt.clone();
            assert_eq!(written.len(), 12.min(17 - prompt.tokens.len()));
            for token in written {
                let scores = model.score(std::slice::from_ref(&longer)).unwrap();
                assert_eq!(scores[0].likeliest.last(), Some(token), "{name}");
                longer.tokens.push(*token);
                longer.phi.push(*longer.phi.last().unwrap());
            }
        }
    }
}

#[test]
fn scores_and_ranks_of_prompts_equal_those_of_the_batch() {
    for (name, config) in variants() {
        let model = opened(&config);
        let batch = Inputs {
            loss_mask: vec![1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0],
            ..inputs(&config)
        };
        let nll = model.token_nll(&batch).unwrap();
        let all = prompts(&model);
        let scores = model.score(&all).unwrap();
        for (first, scores) in [0, 6].into_iter().zip(&scores) {
            for (l, loss) in scores.nll.iter().enumerate() {
                let expected = nll[first + l];
                assert!((loss - expected).abs() < 1e-5, "{name}: {loss} against {expected}");
            }
        }
        let answer = vec![5, 6, 7];
        let ranked = model.rank(&all[0], std::slice::from_ref(&answer)).unwrap()[0];
        let mut whole = all[0].clone();
        whole.tokens.extend(answer);
        whole.phi.resize(9, 1);
        let sum: f32 = model.score(&[whole]).unwrap()[0].nll[5..].iter().sum();
        assert!((sum + ranked).abs() < 1e-4, "{name}: {sum} against {ranked}");
    }
}

#[test]
fn every_variant_loads_as_it_was_saved() {
    for (name, config) in variants() {
        let (folder, model) = (tempfile::tempdir().unwrap(), opened(&config));
        model.save(folder.path()).unwrap();
        let back = Flamingo::load(folder.path()).unwrap();
        assert_eq!(back.config(), &config, "{name}");
        let n_values =
            |model: &Flamingo| -> usize { model.params().into_iter().map(Params::n_values).sum() };
        assert_eq!(n_values(&back), n_values(&model), "{name}");
        let batch = inputs(&config);
        assert_eq!(
            bits(&back.logits(&batch).unwrap()),
            bits(&model.logits(&batch).unwrap()),
            "{name}"
        );
    }
}

#[test]
fn variants_have_the_parts_that_their_names_say() {
    let has = |variant: &str, part: &str| {
        let (_, config) = variants().into_iter().find(|(name, _)| *name == variant).unwrap();
        fresh(&config).params.iter().any(|parameter| parameter.name.contains(part))
    };
    assert!(has("paper", "cross_attention.1.ffw_gate") && !has("paper", "cross_attention.2."));
    assert!(has("paper", "kv_norm") && !has("paper", "input") && !has("paper", "self"));
    assert!(!has("last of every", "cross_attention.1.") && !has("single", "cross_attention.1."));
    assert!(!has("vanilla", "cross_attention.0.ffw") && has("vanilla", "cross_attention.0.attn_g"));
    assert!(!has("no gate", "_gate") && has("no gate", "cross_attention.0.ffw.up"));
    assert!(!has("no media norm", "cross_attention.0.kv_norm"));
    assert!(has("grafting", "cross_attention.1.self_gate") && !has("mlp resampler", "latents"));
    assert!(!has("OpenFlamingo", "time") && has("width of the latents", "resampler.input.weight"));
}

#[test]
fn what_a_variant_cannot_read_is_named() {
    let (_, config) = variants().pop().unwrap();
    let model = opened(&config);
    let video = Inputs { n_frames: 2, ..inputs(&paper()) };
    for error in [model.loss_only(&video), model.latents(&video.pixels, 2).map(|_| 0.0)] {
        let error = error.unwrap_err().to_string();
        assert!(error.contains("input n_frames is 2, expected 1, since"), "{error}");
    }
    let mut config = paper();
    config.cross_attention.first = FirstBlock::LastOfEvery;
    config.cross_attention.every = 4;
    let error = config.validate().unwrap_err().to_string();
    assert!(error.contains("cross_attention.every is 4, expected at most 3"), "{error}");
    config.cross_attention.conditioning = Conditioning::Grafting { layers: 1 };
    config.validate().unwrap();
    let mut batch = inputs(&config);
    batch.phi[3] = 2;
    let error = opened(&config).loss_only(&batch).unwrap_err().to_string();
    assert!(error.contains("input phi is 2"), "{error}");
}
