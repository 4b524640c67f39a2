//! A small world for tests: coloured images with captions, and a random model that looks at them.

use std::path::{Path, PathBuf};

use flamingo_dataset::{
    CorpusKind, CorpusStore, EncodedImage, ImageText, Manifest, Row, ShardEntry, Tokenizer,
    encode_shard, sha256_hex,
};
use flamingo_model::{
    Activation, Architecture, Clip, ClipConfig, CrossAttentionConfig, Flamingo, FlamingoConfig,
    Gradients, LanguageConfig, LanguageModel, PatchStates, Pool, ResamplerConfig, Trainable,
    VisionConfig, VitConfig,
};

/// Tokens that the model can hold.
pub(crate) const CONTEXT: usize = 96;

const COLOURS: [(&str, [u8; 3]); 4] = [
    ("red", [220, 20, 20]),
    ("green", [20, 200, 20]),
    ("blue", [20, 20, 220]),
    ("white", [250; 3]),
];

const SHAPES: [&str; 3] = ["square", "circle", "star"];

/// A temporary folder with `run/`, `caption/` and `label/`.
pub(crate) struct World {
    dir: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with_context(CONTEXT)
    }

    /// With a model that holds so many tokens.
    pub(crate) fn with_context(context: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let world = Self { dir };
        write_run(&world.path("run"), context);
        let task = "prompt = \"shows:\"\ncontent_words = [\"red\", \"green\", \"blue\", \"star\"]\n\
                    max_new_tokens = 8\n";
        write_benchmark(&world.path("caption"), task, caption_row);
        write_benchmark(&world.path("label"), "prompt = \"shows:\"\n", label_row);
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Saves the model again with this value in all gates.
    pub(crate) fn set_gates(&self, gate: f32) {
        let checkpoint = self.path("run/checkpoints/step-2");
        let mut model = Flamingo::load(&checkpoint).unwrap();
        for params in model.params_mut() {
            let set = |name: &str, _: &[usize], values: &mut [f32], _: &[f32]| {
                if name.ends_with("_gate") {
                    values.fill(gate);
                }
            };
            params.update(&mut Gradients::default(), set).unwrap();
        }
        model.save(&checkpoint).unwrap();
    }
}

fn write_benchmark(dir: &Path, task: &str, row: fn(usize, &str) -> Row) {
    for (split, n) in [("support", 24), ("query", 20)] {
        let rows: Vec<Row> = (0..n).map(|i| row(i, split)).collect();
        write_corpus(&dir.join(split), &rows);
    }
    std::fs::write(dir.join("task.toml"), task).unwrap();
}

pub(crate) fn write_corpus(dir: &Path, rows: &[Row]) {
    std::fs::create_dir_all(dir).unwrap();
    let store = CorpusStore::open(dir.to_str().unwrap()).unwrap();
    let bytes = encode_shard(CorpusKind::ImageText, rows).unwrap();
    let shard = ShardEntry {
        file: "shard-00000.parquet".into(),
        rows: rows.len() as u64,
        images: rows.len() as u64,
        words: rows.iter().map(|row| row.words() as u64).sum(),
        bytes: bytes.len() as u64,
        sha256: sha256_hex(&bytes),
    };
    store.put(&shard.file.clone(), bytes.into()).unwrap();
    Manifest::new(CorpusKind::ImageText, String::new(), vec![shard]).write(&store).unwrap();
}

/// Every fifth query has the image of the one before it.
fn caption_row(i: usize, split: &str) -> Row {
    let image = if i % 5 == 4 { i - 1 } else { i };
    let (colour, rgb) = COLOURS[image % COLOURS.len()];
    let caption = format!("a {colour} {} number {i}", SHAPES[image % SHAPES.len()]);
    row(format!("{split}-{i}"), caption, &bmp(rgb, 40 + image as u8 + split.len() as u8), "full")
}

/// Two sub-datasets, one of which asks for the colour and the other for the shape.
fn label_row(i: usize, split: &str) -> Row {
    let (colour, rgb) = COLOURS[i / 2 % COLOURS.len()];
    let (answer, source) =
        if i.is_multiple_of(2) { (colour, "colour") } else { (SHAPES[i % SHAPES.len()], "shape") };
    row(format!("{split}-{i}"), answer.into(), &bmp(rgb, 9 + i as u8 + split.len() as u8), source)
}

pub(crate) fn row(key: String, caption: String, image: &[u8], source: &str) -> Row {
    Row::ImageText(ImageText {
        key,
        url: None,
        caption,
        image: EncodedImage { bytes: image.to_vec().into(), path: None },
        width: 8,
        height: 8,
        original_width: 8,
        original_height: 8,
        sha256: sha256_hex(image),
        phash: 0,
        source: Some(source.into()),
        scores: Vec::new(),
        warc: None,
    })
}

/// An 8 x 8 bitmap of one colour with one odd corner, so that images differ.
pub(crate) fn bmp(rgb: [u8; 3], corner: u8) -> Vec<u8> {
    let mut file = b"BM".to_vec();
    let words: [u32; 13] = [54 + 192, 0, 54, 40, 8, 8, 1 | 24 << 16, 0, 192, 2835, 2835, 0, 0];
    file.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    let [red, green, blue] = rgb;
    (0..64).for_each(|_| file.extend([blue, green, red]));
    file[54] = corner;
    file
}

fn write_run(run: &Path, context: usize) {
    let checkpoint = run.join("checkpoints/step-2");
    std::fs::create_dir_all(&checkpoint).unwrap();
    let tokenizer = tokenizer();
    tokenizer.save(run.join("tokenizer.json")).unwrap();
    std::fs::write(run.join("latest"), "step-2\n").unwrap();
    let config = "seed = 0\nsteps = 2\n\n[image]\nsize = 8\nfit = \"squash\"\n\
                  mean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n\n[model]\n\
                  vision = \"vision\"\n";
    std::fs::write(run.join("config.toml"), config).unwrap();
    let metrics =
        "{\"step\":1,\"losses\":{\"pages\":3.5}}\n{\"step\":2,\"losses\":{\"pages\":3.0}}\n";
    std::fs::write(run.join("metrics.jsonl"), metrics).unwrap();
    model(tokenizer.n_tokens(), context, run).save(&checkpoint).unwrap();
}

fn tokenizer() -> Tokenizer {
    let captions = (0..20).flat_map(|i| [caption_row(i, "query"), label_row(i, "query")]);
    let texts = captions.flat_map(|row| {
        row.texts().into_iter().map(|text| format!("shows: {text}")).collect::<Vec<_>>()
    });
    Tokenizer::train(texts.collect::<Vec<_>>().into_iter(), 290).unwrap()
}

/// A random model with open gates.
fn model(vocabulary: usize, context: usize, scratch: &Path) -> Flamingo {
    let activation = Activation::GeluTanh;
    let vision = VisionConfig::Vit(VitConfig {
        image_size: 8,
        patch_size: 4,
        width: 16,
        layers: 1,
        heads: 2,
        activation,
        feed_forward_width: None,
        patch_states: PatchStates::BeforeNorm,
    });
    let language = LanguageConfig {
        vocabulary,
        context,
        width: 16,
        layers: 2,
        heads: 2,
        activation,
        architecture: Architecture::default(),
    };
    let text = LanguageConfig { width: 8, layers: 1, ..language.clone() };
    let (from_clip, from_language) = (scratch.join("clip"), scratch.join("language"));
    std::fs::create_dir_all(&from_clip).unwrap();
    std::fs::create_dir_all(&from_language).unwrap();
    Clip::new(&ClipConfig { vision, text, embedding: 8, pool: Pool::Mean }, 1)
        .unwrap()
        .save(&from_clip)
        .unwrap();
    LanguageModel::new(&language, 2).unwrap().save(&from_language).unwrap();
    let resampler = ResamplerConfig {
        latents: 4,
        layers: 1,
        heads: 2,
        head_dim: 8,
        frames: 1,
        activation,
        ..ResamplerConfig::paper()
    };
    let paper = CrossAttentionConfig::paper_3b();
    let cross = CrossAttentionConfig { heads: 2, head_dim: 8, activation, ..paper };
    let config = FlamingoConfig::on_towers(&from_clip, &from_language, resampler, cross).unwrap();
    let mut model = Flamingo::new(&config, &from_clip, &from_language, 3).unwrap();
    for params in model.params_mut() {
        let open = |name: &str, _: &[usize], values: &mut [f32], _: &[f32]| {
            let gain = if name.contains("gate") { 0.0 } else { 3.0 };
            for value in values.iter_mut() {
                *value = *value * gain + (1.0 - gain.min(1.0));
            }
        };
        params.update(&mut Gradients::default(), open).unwrap();
    }
    model
}
