//! What the contrastive model promises.
#![expect(clippy::unwrap_used, reason = "in a test, what cannot go on should stop")]

use flamingo_model::{
    Activation, Architecture, Clip, ClipConfig, Gradients, LanguageConfig, Pairs, Params,
    PatchStates, Pixels, Pool, Tensors, Trainable, VisionConfig, VitConfig,
};

fn config() -> ClipConfig {
    ClipConfig {
        vision: VisionConfig::Vit(VitConfig {
            image_size: 8,
            patch_size: 4,
            width: 12,
            layers: 2,
            heads: 2,
            activation: Activation::QuickGelu,
            feed_forward_width: None,
            patch_states: PatchStates::BeforeNorm,
        }),
        text: LanguageConfig {
            vocabulary: 11,
            context: 6,
            width: 8,
            layers: 1,
            heads: 2,
            activation: Activation::Gelu,
            architecture: Architecture::default(),
        },
        embedding: 8,
        pool: Pool::Mean,
    }
}

fn pairs() -> Pairs {
    Pairs {
        images: Pixels::F32(
            (0..4 * 192).map(|i| ((i * 7919 % 1009) as f32 / 504.5) - 1.0).collect(),
        ),
        tokens: (0..24).map(|i| i * 5 % 11).collect(),
        length: 6,
        lengths: vec![3, 6, 1, 4],
    }
}

fn change_vision(config: &mut ClipConfig, change: impl FnOnce(&mut VitConfig)) {
    let VisionConfig::Vit(vit) = &mut config.vision else { panic!("a vision transformer") };
    change(vit);
}

#[test]
fn gradients_equal_finite_differences() {
    let mut model = Clip::new(&config(), 4).unwrap();
    let (_, mut gradients) =
        model.contrastive_step(&pairs(), 0.1, 2.0, Gradients::default()).unwrap();
    let all: Vec<(String, Vec<f32>)> = model.params()[0]
        .iter()
        .map(|p| {
            let gradient = model.params()[0].gradient(&mut gradients, &p.name).unwrap();
            (p.name.clone(), gradient.unwrap())
        })
        .collect();
    for (name, gradient) in all {
        let largest = gradient.iter().fold(5e-3_f32, |m, g| m.max(g.abs()));
        for i in [0, gradient.len() / 2, gradient.len() - 1] {
            let mut at = |step: f32| {
                bump(&mut model, &name, i, step);
                let loss = model.contrastive_loss(&pairs(), 0.1).unwrap();
                bump(&mut model, &name, i, -step);
                loss
            };
            let h = 4e-3;
            let expected = 2.0 * (at(h) - at(-h)) / (2.0 * h);
            let error = (gradient[i] - expected).abs() / largest;
            assert!(error < 0.03, "{name}[{i}]: {} against {expected}", gradient[i]);
        }
    }
}

fn bump(model: &mut Clip, which: &str, i: usize, step: f32) {
    for params in model.params_mut() {
        params
            .update(&mut Gradients::default(), |name, _, values, _| {
                if name == which {
                    values[i] += step;
                }
            })
            .unwrap();
    }
}

#[test]
fn padding_of_texts_does_not_change_their_embeddings() {
    let model = Clip::new(&config(), 4).unwrap();
    let embed = |tokens: &[u32]| model.embed_texts(tokens, 6, &[3, 2]).unwrap();
    let a = embed(&[1, 2, 3, 0, 0, 0, 4, 5, 0, 0, 0, 0]);
    let b = embed(&[1, 2, 3, 9, 8, 7, 4, 5, 7, 7, 7, 7]);
    assert_eq!(a, b);
    assert!(a.chunks(8).all(|e| (e.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-5));
}

#[test]
fn it_saves_loads_and_refuses_what_does_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    let model = Clip::new(&config(), 4).unwrap();
    model.save(folder.path()).unwrap();
    let back = Clip::load(folder.path()).unwrap();
    let images = &pairs().images;
    assert_eq!(back.embed_images(images).unwrap(), model.embed_images(images).unwrap());
    let names: Vec<&str> =
        back.params().into_iter().flat_map(Params::iter).map(|p| p.name.as_str()).collect();
    let mut distinct = names.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), names.len());

    let file = folder.path().join("model.safetensors");
    let mut tensors = Tensors::open(&file).unwrap();
    for name in ["log_beta", "vision.class_embedding"] {
        let shape = tensors.shape(name).unwrap().to_vec();
        tensors.take(name, &shape, &file).unwrap();
    }
    tensors.insert("text_projection.weight", &[1], vec![0.0]);
    tensors.write(&file).unwrap();
    let error = Clip::load(folder.path()).unwrap_err().to_string();
    for wrong in ["log_beta", "vision.class_embedding", "text_projection.weight"] {
        assert!(error.contains(wrong), "{error}");
    }

    let check = |change: fn(&mut Pairs), expected: &str| {
        let mut pairs = pairs();
        change(&mut pairs);
        let error = model.contrastive_loss(&pairs, 0.0).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(|p| p.lengths[1] = 0, "input lengths is 0, expected 1 to 6 tokens");
    check(|p| p.lengths.truncate(3), "input lengths is 3 values");
    check(|p| p.images = Pixels::F32(vec![0.0; 100]), "expected 4 images of 3 x 8 x 8 values");
    let mut wrong = config();
    change_vision(&mut wrong, |vit| vit.heads = 5);
    let error = Clip::new(&wrong, 0).unwrap_err().to_string();
    assert!(error.contains("vision.heads is 5, expected a divisor of the width 12"), "{error}");
    wrong = config();
    wrong.text.width = 0;
    let error = Clip::new(&wrong, 0).unwrap_err().to_string();
    assert!(error.contains("text.width is 0, expected at least 1"), "{error}");
    wrong = config();
    change_vision(&mut wrong, |vit| vit.patch_size = 3);
    let error = Clip::new(&wrong, 0).unwrap_err().to_string();
    assert!(error.contains("vision.patch_size is 3, expected a divisor"), "{error}");
}
