//! What the whole model promises, on a model small enough for finite differences.
#![expect(clippy::unwrap_used, reason = "in a test, what cannot go on should stop")]

use std::path::Path;

use flamingo_model::{
    Activation, Architecture, Clip, ClipConfig, CrossAttentionConfig, Flamingo, FlamingoConfig,
    Generation, Gradients, Inputs, LanguageConfig, LanguageModel, Latents, ModelError, Params,
    PatchStates, Pixels, PixelsRef, Pool, Prompt, ResamplerConfig, TextBatch, Tower, Trainable,
    VisionConfig, VitConfig,
};

/// Pixels of one image of the tiny model.
const PIXELS: usize = 3 * 8 * 8;

fn vision() -> VisionConfig {
    VisionConfig::Vit(VitConfig {
        image_size: 8,
        patch_size: 4,
        width: 12,
        layers: 1,
        heads: 2,
        activation: Activation::QuickGelu,
        feed_forward_width: None,
        patch_states: PatchStates::BeforeNorm,
    })
}

fn language() -> LanguageConfig {
    LanguageConfig {
        vocabulary: 23,
        context: 16,
        width: 16,
        layers: 3,
        heads: 2,
        activation: Activation::GeluTanh,
        architecture: Architecture::default(),
    }
}

/// Fresh towers in `folder`, and a Flamingo on them with a cross-attention block before layers 0
/// and 2.
fn fresh(folder: &Path) -> Flamingo {
    let (v, l) = (folder.join("vision"), folder.join("language"));
    std::fs::create_dir_all(&v).unwrap();
    std::fs::create_dir_all(&l).unwrap();
    let clip = ClipConfig { vision: vision(), text: language(), embedding: 8, pool: Pool::Mean };
    Clip::new(&clip, 1).unwrap().save(&v).unwrap();
    LanguageModel::new(&language(), 2).unwrap().save(&l).unwrap();
    let resampler = ResamplerConfig {
        latents: 3,
        layers: 1,
        heads: 2,
        head_dim: 5,
        frames: 2,
        ..ResamplerConfig::paper()
    };
    let cross_attention = CrossAttentionConfig {
        every: 2,
        heads: 2,
        head_dim: 6,
        activation: Activation::Gelu,
        ..CrossAttentionConfig::paper_3b()
    };
    let config = FlamingoConfig::on_towers(&v, &l, resampler, cross_attention).unwrap();
    Flamingo::new(&config, &v, &l, 3).unwrap()
}

/// As [`fresh`], with open gates.
fn opened() -> Flamingo {
    let folder = tempfile::tempdir().unwrap();
    let mut model = fresh(folder.path());
    change(&mut model, |name, values| {
        if name.ends_with("_gate") {
            values.fill(0.7);
        }
    });
    model
}

fn change(model: &mut Flamingo, mut f: impl FnMut(&str, &mut [f32])) {
    for params in model.params_mut() {
        params.update(&mut Gradients::default(), |name, _, values, _| f(name, values)).unwrap();
    }
}

fn noise(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| (((i + 31 * seed) * 7919 % 1009) as f32 / 504.5) - 1.0).collect()
}

/// Two sequences of 6 tokens: two images (the first seen from position 1, the second from 4), and
/// one.
fn inputs() -> Inputs {
    Inputs {
        tokens: vec![1, 3, 5, 7, 3, 9, 1, 2, 3, 11, 13, 0],
        length: 6,
        phi: vec![-1, 0, 0, 0, 1, 1, -1, -1, 0, 0, 0, 0],
        loss_mask: vec![1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0],
        pixels: noise(3 * 2 * PIXELS, 1).into(),
        features: None,
        n_frames: 2,
        image_count: vec![2, 1],
    }
}

/// The numbers of the images of a batch, to be changed.
fn numbers(batch: &mut Inputs) -> &mut Vec<f32> {
    match &mut batch.pixels {
        Pixels::F32(numbers) => numbers,
        Pixels::U8 { .. } => panic!("the images are numbers"),
    }
}

#[test]
fn closed_gates_give_exactly_the_bare_language_models_logits() {
    let folder = tempfile::tempdir().unwrap();
    let model = fresh(folder.path());
    let batch = inputs();
    let bare = model.language_model().logits(&batch.tokens, batch.length).unwrap();
    assert_eq!(bits(&model.logits(&batch).unwrap()), bits(&bare));
    assert_ne!(bits(&opened().logits(&batch).unwrap()), bits(&bare));
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn a_token_depends_on_no_image_before_its_own_mark_and_on_no_later_image() {
    let model = opened();
    let before = model.logits(&inputs()).unwrap();
    let row = |logits: &[f32], l: usize| bits(&logits[l * 23..(l + 1) * 23]);
    let mut batch = inputs();
    numbers(&mut batch)[2 * PIXELS..4 * PIXELS].fill(0.3); // the second image of the first sequence
    let after = model.logits(&batch).unwrap();
    for l in (0..4).chain(6..12) {
        assert_eq!(row(&before, l), row(&after, l), "position {l}");
    }
    assert_ne!(row(&before, 4), row(&after, 4));
    numbers(&mut batch)[..2 * PIXELS].fill(-0.3); // the first image
    let after = model.logits(&batch).unwrap();
    assert_eq!(row(&before, 0), row(&after, 0), "text before the first image");
    assert_ne!(row(&before, 1), row(&after, 1));
}

#[test]
fn gradients_of_the_whole_loss_equal_finite_differences() {
    let mut model = opened();
    let batch = inputs();
    let (_, mut gradients) = model.step(&batch, 0.5, Gradients::default()).unwrap();
    let names: Vec<(String, usize)> =
        trained(&model).map(|p| (p.name.clone(), p.n_values())).collect();
    assert!(names.len() > 40);
    for (name, n) in names {
        let gradient = gradient(&model, &mut gradients, &name).unwrap();
        let largest = gradient.iter().fold(2e-3_f32, |m, g| m.max(g.abs()));
        for i in [0, n / 2, n - 1] {
            let h = 1e-2;
            let mut at = |step: f32| {
                change(&mut model, |which, values| {
                    if which == name {
                        values[i] += step;
                    }
                });
                let loss = model.loss_only(&batch).unwrap();
                change(&mut model, |which, values| {
                    if which == name {
                        values[i] -= step;
                    }
                });
                loss
            };
            let expected = 0.5 * (at(h) - at(-h)) / (2.0 * h);
            let error = (gradient[i] - expected).abs() / largest;
            assert!(error < 0.03, "{name}[{i}]: {} against {expected}", gradient[i]);
        }
    }
}

fn trained(model: &Flamingo) -> impl Iterator<Item = &flamingo_model::Parameter> {
    model.params().into_iter().flat_map(Params::iter).filter(|p| p.weight.is_trained())
}

fn gradient(model: &Flamingo, gradients: &mut Gradients, name: &str) -> Option<Vec<f32>> {
    model.params().iter().find_map(|params| params.gradient(gradients, name).unwrap())
}

#[test]
fn frozen_weights_get_no_gradient_and_do_not_change() {
    let mut model = opened();
    let before = model.frozen_sha256();
    let frozen: Vec<String> = model
        .params()
        .into_iter()
        .flat_map(Params::iter)
        .filter(|p| !p.weight.is_trained())
        .map(|p| p.name.clone())
        .collect();
    assert!(frozen.iter().any(|name| name.starts_with("vision.")));
    assert!(frozen.iter().any(|name| name.starts_with("language.")));
    let (_, mut gradients) = model.step(&inputs(), 1.0, Gradients::default()).unwrap();
    for name in &frozen {
        assert!(gradient(&model, &mut gradients, name).is_none(), "{name}");
    }
    let mut updated = Vec::new();
    for params in model.params_mut() {
        params
            .update(&mut gradients, |name, _, values, gradient| {
                assert!(gradient.iter().any(|g| *g != 0.0), "no gradient reaches {name}");
                values.iter_mut().zip(gradient).for_each(|(v, g)| *v -= 0.1 * g);
                updated.push(name.to_owned());
            })
            .unwrap();
    }
    assert!(
        updated
            .iter()
            .all(|name| { name.starts_with("resampler.") || name.starts_with("cross_attention.") })
    );
    assert_eq!(model.frozen_sha256(), before);
}

#[test]
fn gradients_accumulate_over_batches() {
    let model = opened();
    let once = model.step(&inputs(), 1.0, Gradients::default()).unwrap().1;
    let mut twice = model.step(&inputs(), 0.5, once).unwrap().1;
    let mut once = model.step(&inputs(), 1.0, Gradients::default()).unwrap().1;
    assert_eq!(
        model.step(&inputs(), 0.25, Gradients::default()).unwrap().0.to_bits(),
        model.loss_only(&inputs()).unwrap().to_bits(),
        "the reported loss is not scaled"
    );
    let name = "cross_attention.1.attn.k.weight";
    let (a, b) =
        (gradient(&model, &mut once, name).unwrap(), gradient(&model, &mut twice, name).unwrap());
    assert!(a.iter().zip(&b).all(|(a, b)| (1.5 * a - b).abs() < 1e-5 * (1.0 + a.abs())));
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let model = opened();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (loss, mut gradients) = model.step(&inputs(), 1.0, Gradients::default()).unwrap();
            let all = trained(&model)
                .flat_map(|p| gradient(&model, &mut gradients, &p.name).unwrap())
                .collect::<Vec<_>>();
            (loss.to_bits(), bits(&all))
        })
    };
    let one = run(1);
    assert_eq!(run(2), one);
    assert_eq!(run(5), one);
}

#[test]
fn nor_does_it_where_every_operation_is_cut_into_pieces() {
    let config =
        LanguageConfig { vocabulary: 300, context: 67, width: 96, layers: 2, ..language() };
    let model = LanguageModel::new(&config, 6).unwrap();
    let tokens: Vec<u32> = (0..9 * 67).map(|i| i * 131 % 300).collect();
    let mask = |i: usize| if (i + 1).is_multiple_of(67) { 0.0 } else { 1.0 };
    let batch = TextBatch { loss_mask: (0..9 * 67).map(mask).collect(), tokens, length: 67 };
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (loss, mut gradients) = model.step(&batch, 1.0, Gradients::default()).unwrap();
            let params = model.params()[0];
            let all: Vec<f32> = params
                .iter()
                .flat_map(|p| params.gradient(&mut gradients, &p.name).unwrap().unwrap())
                .collect();
            (loss.to_bits(), bits(&all))
        })
    };
    let one = run(1);
    assert_eq!(run(2), one);
    assert_eq!(run(7), one);
}

#[test]
fn a_saved_model_loads_bit_by_bit() {
    let (folder, model) = (tempfile::tempdir().unwrap(), opened());
    model.save(folder.path()).unwrap();
    let back = Flamingo::load(folder.path()).unwrap();
    assert_eq!(back.config(), model.config());
    assert_eq!(back.frozen_sha256(), model.frozen_sha256());
    assert_eq!(bits(&back.logits(&inputs()).unwrap()), bits(&model.logits(&inputs()).unwrap()));

    // The same through a run's folder, as training lays it out.
    let run = tempfile::tempdir().unwrap();
    let step = run.path().join("checkpoints/step-7");
    std::fs::create_dir_all(&step).unwrap();
    assert!(matches!(Flamingo::load(run.path()), Err(ModelError::NotARun { .. })));
    model.save(&step).unwrap();
    std::fs::write(run.path().join("latest"), "step-7\n").unwrap();
    assert_eq!(Flamingo::load(run.path()).unwrap().frozen_sha256(), model.frozen_sha256());

    std::fs::write(step.join("model.safetensors"), b"cut off").unwrap();
    let error = Flamingo::load(run.path()).unwrap_err().to_string();
    assert!(error.contains("is not a safetensors file"), "{error}");
    let error = LanguageModel::load(run.path()).unwrap_err().to_string();
    assert!(error.contains("is not a valid configuration"), "{error}");
}

/// The two sequences of [`inputs`] as prompts.
fn prompts(model: &Flamingo) -> Vec<Prompt> {
    let mut batch = inputs();
    let pixels = numbers(&mut batch).clone();
    let latents = |from: usize, to: usize| {
        model.latents(&pixels[from * 2 * PIXELS..to * 2 * PIXELS], 2).unwrap()
    };
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

#[test]
fn greedy_generation_equals_reading_everything_again() {
    let model = opened();
    let prompts = prompts(&model);
    let stop = 10_000;
    let written = model.generate(&prompts, &Generation::greedy(12, stop)).unwrap();
    for (prompt, written) in prompts.iter().zip(&written) {
        let mut longer = prompt.clone();
        // A model of 16 positions predicts a last token from position 16.
        assert_eq!(written.len(), 12.min(17 - prompt.tokens.len()));
        for token in written {
            let scores = model.score(std::slice::from_ref(&longer)).unwrap();
            assert_eq!(scores[0].likeliest.last(), Some(token));
            longer.tokens.push(*token);
            longer.phi.push(*longer.phi.last().unwrap());
        }
    }
    let stopped = model.generate(&prompts, &Generation::greedy(12, written[0][0])).unwrap();
    assert!(stopped[0].is_empty());
}

#[test]
fn thirty_two_shots_of_clips_are_read_beside_a_prompt_of_none() {
    const SHOTS: usize = 32;
    const SHOT: [u32; 4] = [1, 3, 5, 9];
    let tiny = opened().config().clone();
    let config = FlamingoConfig { language: LanguageConfig { context: 160, ..language() }, ..tiny };
    let tower = Tower { from: None, trained: false };
    let mut model = Flamingo::on_towers(&config, tower, tower, 5).unwrap();
    change(&mut model, |name, values| {
        if name.ends_with("_gate") {
            values.fill(0.7);
        }
    });
    let few_shot = |first_clip: usize| {
        let clips: Vec<Latents> = (0..=SHOTS)
            .map(|i| if i == 0 { first_clip } else { i })
            .map(|seed| model.latents(&noise(2 * PIXELS, seed), 2).unwrap())
            .collect();
        let tokens = SHOT.repeat(SHOTS + 1);
        Prompt {
            phi: (0..tokens.len()).map(|l| (l / SHOT.len()) as i32).collect(),
            tokens,
            latents: Latents::join(&clips).unwrap(),
        }
    };
    let prompts =
        [few_shot(0), Prompt { tokens: vec![4], phi: vec![-1], latents: Latents::none() }];
    let written = model.generate(&prompts, &Generation::greedy(5, 10_000)).unwrap();
    for (prompt, written) in prompts.iter().zip(&written) {
        assert_eq!(written.len(), 5);
        let mut longer = prompt.clone();
        for token in written {
            let scores = model.score(std::slice::from_ref(&longer)).unwrap();
            assert_eq!(scores[0].likeliest.last(), Some(token));
            longer.tokens.push(*token);
            longer.phi.push(*longer.phi.last().unwrap());
        }
    }
    let [here, elsewhere] =
        [0, 77].map(|clip| model.rank(&few_shot(clip), &[vec![3], vec![5, 6]]).unwrap());
    assert_ne!(here, elsewhere, "the last answer depends on the first shot's clip");
}

#[test]
fn scores_of_prompts_equal_those_of_the_padded_batch() {
    let model = opened();
    let batch = Inputs {
        loss_mask: vec![1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0],
        ..inputs()
    };
    let nll = model.token_nll(&batch).unwrap();
    let best = |logits: &[f32]| {
        (0..logits.len()).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32
    };
    let likeliest: Vec<u32> = model.logits(&batch).unwrap().chunks(23).map(best).collect();
    let scores = model.score(&prompts(&model)).unwrap();
    for (first, scores) in [0, 6].into_iter().zip(&scores) {
        for (l, loss) in scores.nll.iter().enumerate() {
            assert!((loss - nll[first + l]).abs() < 1e-5, "{loss} against {}", nll[first + l]);
        }
        assert_eq!(scores.likeliest, likeliest[first..first + scores.likeliest.len()]);
    }
    let mean = nll.iter().sum::<f32>() / 8.0;
    assert!((mean - model.loss_only(&batch).unwrap()).abs() < 1e-5);
}

#[test]
fn ranking_equals_the_scores_of_prompt_and_answer_together() {
    let model = opened();
    let answers = vec![vec![3], vec![5, 6, 7], vec![8, 9]];
    for prompt in &prompts(&model) {
        let ranked = model.rank(prompt, &answers).unwrap();
        for (answer, ranked) in answers.iter().zip(ranked) {
            let mut whole = prompt.clone();
            whole.tokens.extend(answer);
            whole.phi.resize(whole.tokens.len(), *prompt.phi.last().unwrap());
            let scores = model.score(&[whole]).unwrap();
            let sum: f32 = scores[0].nll[prompt.tokens.len() - 1..].iter().sum();
            assert!((sum + ranked).abs() < 1e-4, "{sum} against {ranked}");
        }
    }
}

#[test]
fn weights_that_diverged_are_an_error_and_not_token_0() {
    let mut model = opened();
    change(&mut model, |name, values| {
        if name == "cross_attention.1.ffw_gate" {
            values.fill(f32::NAN);
        }
    });
    let prompts = prompts(&model);
    let errors = [
        model.generate(&prompts, &Generation::greedy(3, 0)).unwrap_err(),
        model.score(&prompts).unwrap_err(),
        model.rank(&prompts[0], &[vec![3], vec![5, 6]]).unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, ModelError::NotFinite { .. }), "{error}");
    }
}

#[test]
fn features_of_frames_alone_give_what_pixels_give() {
    let model = opened();
    let batch = inputs();
    let frames = PixelsRef::from(&batch.pixels).chunks(PIXELS).into_iter();
    let alone = frames.map(|frame| model.features(frame).unwrap());
    let features = alone.collect::<Vec<_>>().concat();
    assert_eq!(bits(&features), bits(&model.features(&batch.pixels).unwrap()));
    let kept = Inputs { pixels: Pixels::none(), features: Some(features.clone()), ..batch.clone() };
    let step = |inputs: &Inputs| {
        let (loss, mut gradients) = model.step(inputs, 1.0, Gradients::default()).unwrap();
        let gradient = gradient(&model, &mut gradients, "resampler.latents").unwrap();
        (loss.to_bits(), bits(&gradient))
    };
    assert_eq!(step(&kept), step(&batch));
    assert_eq!(bits(&model.logits(&kept).unwrap()), bits(&model.logits(&batch).unwrap()));
    let short = Inputs { features: Some(features[1..].to_vec()), ..kept.clone() };
    assert!(model.loss_only(&short).unwrap_err().to_string().contains("features"));
    assert!(model.features(&numbers(&mut batch.clone())[1..]).is_err());
    let no_images =
        Inputs { phi: vec![-1; 12], features: Some(Vec::new()), image_count: vec![0, 0], ..kept };
    assert!(model.loss_only(&no_images).unwrap().is_finite());
    assert_eq!(model.vision_sha256().len(), 64);
    assert_ne!(model.vision_sha256(), model.frozen_sha256());
}

#[test]
fn padding_of_length_and_images_does_not_change_results() {
    let model = opened();
    let batch = inputs();
    let mut longer = Inputs {
        length: 9,
        tokens: Vec::new(),
        phi: Vec::new(),
        loss_mask: Vec::new(),
        ..batch.clone()
    };
    for b in 0..2 {
        let rows = b * 6..(b + 1) * 6;
        longer.tokens.extend(batch.tokens[rows.clone()].iter().chain(&[0, 0, 0]));
        longer.phi.extend(batch.phi[rows.clone()].iter().chain(&[-1, -1, -1]));
        longer.loss_mask.extend(batch.loss_mask[rows].iter().chain(&[0.0; 3]));
    }
    // An image that no token sees.
    longer.image_count[1] = 2;
    numbers(&mut longer).extend(noise(2 * PIXELS, 9));
    let (a, b) = (model.token_nll(&batch).unwrap(), model.token_nll(&longer).unwrap());
    for b_and_l in 0..12 {
        let (a, b) = (a[b_and_l], b[b_and_l / 6 * 9 + b_and_l % 6]);
        assert!((a - b).abs() < 1e-5, "{a} against {b}");
    }
    let (a, b) = (model.loss_only(&batch).unwrap(), model.loss_only(&longer).unwrap());
    assert!((a - b).abs() < 1e-5);
}

#[test]
fn text_without_any_image_is_read_like_the_bare_language_model_but_for_the_feed_forward() {
    let model = opened();
    let batch =
        Inputs { phi: vec![-1; 12], pixels: Pixels::none(), image_count: vec![0, 0], ..inputs() };
    let (loss, mut gradients) = model.step(&batch, 1.0, Gradients::default()).unwrap();
    assert!(loss.is_finite());
    let of = |name: &str, gradients: &mut Gradients| gradient(&model, gradients, name).unwrap();
    assert!(of("cross_attention.0.attn.q.weight", &mut gradients).iter().all(|g| *g == 0.0));
    assert!(of("cross_attention.0.ffw.up.weight", &mut gradients).iter().any(|g| *g != 0.0));
}

#[test]
fn a_language_model_learns_a_sequence_by_heart() {
    let mut model = LanguageModel::new(&language(), 5).unwrap();
    let batch = TextBatch {
        tokens: vec![1, 2, 3, 1, 4, 3, 1, 5],
        length: 8,
        loss_mask: vec![1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
    };
    let first = model.loss_only(&batch).unwrap();
    for _ in 0..150 {
        let (_, mut gradients) = model.step(&batch, 1.0, Gradients::default()).unwrap();
        for params in model.params_mut() {
            params
                .update(&mut gradients, |_, _, values, gradient| {
                    values.iter_mut().zip(gradient).for_each(|(v, g)| *v -= 0.1 * g);
                })
                .unwrap();
        }
    }
    let last = model.loss_only(&batch).unwrap();
    assert!(first > 2.5 && last < 0.2, "{first} to {last}");
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let model = opened();
    let check = |change: fn(&mut Inputs), expected: &str| {
        let mut batch = inputs();
        change(&mut batch);
        let error = model.token_nll(&batch).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(|b| b.length = 0, "input length is 0");
    check(|b| b.length = 17, "input length is 17");
    check(|b| b.length = 5, "input tokens is 12 tokens, expected a multiple of the length 5");
    check(|b| b.tokens[3] = 23, "input token is 23, expected below 23");
    check(|b| b.phi[3] = 2, "input phi is 2");
    check(|b| b.phi[3] = -2, "input phi is -2");
    check(|b| b.phi.truncate(5), "input phi is 5 values");
    check(|b| b.loss_mask[5] = 1.0, "1 at position 5 of sequence 0");
    check(|b| b.loss_mask[0] = 0.5, "0.5 at position 0 of sequence 0");
    check(|b| b.loss_mask.clear(), "input loss_mask is 0 values");
    check(|b| b.n_frames = 0, "input n_frames is 0");
    check(|b| b.image_count = vec![3], "input image_count is 1 values");
    check(|b| b.image_count[1] = 2, "expected 8 images of 3 x 8 x 8 values");

    let mut prompt = prompts(&model).remove(0);
    prompt.latents = Latents::none();
    let error = model.generate(&[prompt], &Generation::greedy(3, 0)).unwrap_err().to_string();
    assert!(error.contains("one of 0 images"), "{error}");
}

#[test]
fn a_tower_of_another_shape_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = fresh(folder.path());
    let (v, l) = (folder.path().join("vision"), folder.path().join("language"));
    let mut config = model.config().clone();
    config.language.layers = 4;
    let error = Flamingo::new(&config, &v, &l, 3).unwrap_err().to_string();
    assert!(error.contains("language is") && error.contains("the tower in"), "{error}");
    let mut config = model.config().clone();
    config.cross_attention.every = 0;
    let error = Flamingo::new(&config, &v, &l, 3).unwrap_err().to_string();
    assert!(error.contains("cross_attention.every is 0"), "{error}");
}
