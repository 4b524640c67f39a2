//! What a configuration may not ask for.

use std::error::Error;

use flamingo_model::{
    Activation, Architecture, Clip, ClipConfig, CrossAttentionConfig, FlamingoConfig,
    LanguageConfig, ModelError, NfnetConfig, PatchStates, Pool, ResamplerConfig, VisionConfig,
    VitConfig, read_config,
};

const ABSURD: usize = usize::MAX / 2;

fn clip() -> ClipConfig {
    ClipConfig {
        vision: flamingo().vision,
        text: flamingo().language,
        embedding: 8,
        pool: Pool::Mean,
    }
}

fn flamingo() -> FlamingoConfig {
    let activation = Activation::Gelu;
    FlamingoConfig {
        vision: VisionConfig::Vit(VitConfig {
            image_size: 8,
            patch_size: 4,
            width: 8,
            layers: 1,
            heads: 2,
            activation,
            feed_forward_width: None,
            patch_states: PatchStates::BeforeNorm,
        }),
        resampler: ResamplerConfig {
            latents: 2,
            layers: 1,
            heads: 2,
            head_dim: 4,
            frames: 1,
            activation,
            ..ResamplerConfig::paper()
        },
        cross_attention: CrossAttentionConfig {
            heads: 2,
            head_dim: 4,
            activation,
            ..CrossAttentionConfig::paper_3b()
        },
        language: LanguageConfig {
            vocabulary: 11,
            context: 6,
            width: 8,
            layers: 1,
            heads: 2,
            activation,
            architecture: Architecture::default(),
        },
        added_tokens: 0,
        trained_tokens: Vec::new(),
    }
}

/// The vision tower, a vision transformer.
fn vit(config: &mut FlamingoConfig) -> &mut VitConfig {
    let VisionConfig::Vit(vit) = &mut config.vision else { panic!("a vision transformer") };
    vit
}

#[test]
fn a_size_that_no_machine_holds_is_refused_by_name() {
    flamingo().validate().unwrap();
    let check = |change: fn(&mut FlamingoConfig), expected: &str| {
        let mut config = flamingo();
        change(&mut config);
        match config.validate().unwrap_err() {
            ModelError::Config { field, .. } => assert_eq!(field, expected),
            other => panic!("{expected}: {other}"),
        }
    };
    check(|c| vit(c).image_size = ABSURD, "vision.image_size");
    check(|c| vit(c).patch_size = ABSURD, "vision.patch_size");
    check(
        |c| *vit(c) = VitConfig { image_size: 8192, patch_size: 1, ..vit(c).clone() },
        "vision patches of an image",
    );
    check(|c| vit(c).width = ABSURD, "vision.width");
    check(|c| vit(c).layers = ABSURD, "vision.layers");
    check(|c| vit(c).heads = ABSURD, "vision.heads");
    check(|c| c.resampler.latents = ABSURD, "resampler.latents");
    check(|c| c.resampler.layers = ABSURD, "resampler.layers");
    check(|c| c.resampler.heads = ABSURD, "resampler.heads");
    check(|c| c.resampler.head_dim = ABSURD, "resampler.head_dim");
    check(|c| c.resampler.frames = ABSURD, "resampler.frames");
    check(
        |c| (c.resampler.heads, c.resampler.head_dim) = (60_000, 60_000),
        "resampler.heads * head_dim",
    );
    check(|c| c.cross_attention.every = ABSURD, "cross_attention.every");
    check(|c| c.cross_attention.head_dim = ABSURD, "cross_attention.head_dim");
    check(|c| c.language.vocabulary = ABSURD, "language.vocabulary");
    check(|c| c.language.context = ABSURD, "language.context");
    check(|c| c.language.width = ABSURD, "language.width");
    check(|c| c.language.layers = ABSURD, "language.layers");
    // Each size is allowed by itself.
    check(
        |c| (c.language.width, c.language.layers) = (1 << 16, 1 << 10),
        "number of parameters of language",
    );
    let error = ClipConfig { embedding: ABSURD, ..clip() }.validate().unwrap_err().to_string();
    assert!(error.starts_with("embedding is"), "{error}");
}

#[test]
fn the_papers_largest_model_is_allowed() {
    let mut config = flamingo();
    config.vision = NfnetConfig::named("f6", 480).unwrap().into();
    config.resampler =
        ResamplerConfig { latents: 64, layers: 6, heads: 16, head_dim: 96, ..config.resampler };
    config.cross_attention.every = 7;
    config.language = LanguageConfig {
        vocabulary: 32_000,
        context: 2048,
        width: 8192,
        layers: 80,
        heads: 64,
        ..config.language
    };
    config.validate().unwrap();
}

#[test]
fn an_unknown_key_is_refused_in_every_table() {
    let folder = tempfile::tempdir().unwrap();
    Clip::new(&clip(), 1).unwrap().save(folder.path()).unwrap();
    let path = folder.path().join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    for table in ["", "/vision", "/text"] {
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config.pointer_mut(table).unwrap()["dropout"] = 0.1.into();
        std::fs::write(&path, config.to_string()).unwrap();
        let error = read_config::<ClipConfig>(folder.path()).unwrap_err();
        assert!(matches!(error, ModelError::ConfigFile { .. }), "{table}: {error}");
        let cause = error.source().unwrap().to_string();
        assert!(cause.contains("unknown field `dropout`"), "{table}: {cause}");
        assert!(Clip::load(folder.path()).is_err());
    }
}
