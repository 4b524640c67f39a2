//! Tiny corpora of coloured squares, configs for tiny models, and the binary.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use flamingo_dataset::{
    CorpusStore, EncodedImage, ImageMeta, ImageText, Interleaved, Manifest, Row, ShardEntry, Slot,
    VideoText, encode_shard, sha256_hex,
};

const COLOURS: [(&str, [u8; 3]); 6] = [
    ("red", [220, 30, 30]),
    ("green", [30, 180, 30]),
    ("blue", [30, 30, 220]),
    ("yellow", [220, 210, 30]),
    ("purple", [150, 40, 170]),
    ("orange", [240, 140, 20]),
];
const IMAGE_SIDE: u32 = 16;

/// A temporary folder with corpora `pages`, `pairs`, `clips` and config files.
pub(crate) struct World {
    folder: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        let world = Self { folder: tempfile::tempdir().unwrap() };
        world.write_corpus("pages", &(0..6).map(page).collect::<Vec<_>>());
        world.write_corpus("pairs", &(0..6).map(pair).collect::<Vec<_>>());
        world.write_corpus("clips", &(0..4).map(clip).collect::<Vec<_>>());
        world
    }

    /// A world in which the runs `vision` and `language` are done.
    pub(crate) fn with_towers() -> Self {
        let world = Self::new();
        let steps = ["--set", "steps=2"];
        world.train("contrastive", CONTRASTIVE, "vision", &steps).expect_success();
        world.train("language", LANGUAGE, "language", &steps).expect_success();
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The command for a stage, on a config text, with a run folder of this name.
    pub(crate) fn command(&self, stage: &str, config: &str, run: &str, more: &[&str]) -> Command {
        let path = self.path(&format!("{stage}.toml"));
        std::fs::write(&path, config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-train"));
        command.arg(stage).arg("--config").arg(path);
        command.arg("--root").arg(self.folder.path()).arg("--out").arg(self.path(run));
        command.args(more);
        command
    }

    pub(crate) fn train(&self, stage: &str, config: &str, run: &str, more: &[&str]) -> Finished {
        Finished(self.command(stage, config, run, more).output().unwrap())
    }

    /// Makes a corpus of rows of one kind.
    pub(crate) fn write_corpus(&self, name: &str, rows: &[Row]) {
        let kind = rows[0].kind();
        let bytes = encode_shard(kind, rows).unwrap();
        let file = "shard-00000.parquet".to_owned();
        let entry = ShardEntry {
            file: file.clone(),
            rows: rows.len() as u64,
            images: rows.iter().map(|row| row.n_images() as u64).sum(),
            words: rows.iter().map(|row| row.words() as u64).sum(),
            bytes: bytes.len() as u64,
            sha256: sha256_hex(&bytes),
        };
        let store = CorpusStore::create(self.path(name).to_str().unwrap()).unwrap();
        store.put(&file, bytes.into()).unwrap();
        Manifest::new(kind, "0".repeat(64), vec![entry]).write(&store).unwrap();
    }
}

/// How a run of the binary ended.
pub(crate) struct Finished(pub(crate) Output);

impl Finished {
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }

    pub(crate) fn code(&self) -> Option<i32> {
        self.0.status.code()
    }

    pub(crate) fn expect_success(&self) {
        assert_eq!(self.code(), Some(0), "{}", self.stderr());
    }
}

/// The files of the checkpoint that `latest` names.
pub(crate) fn latest(run: &Path) -> PathBuf {
    let name = std::fs::read_to_string(run.join("latest")).unwrap();
    run.join("checkpoints").join(name.trim())
}

/// The metrics of a run, one JSON value a step.
pub(crate) fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A picture with a square of the `index`-th colour, as PNG.
fn picture(index: usize) -> EncodedImage {
    let colour = COLOURS[index % COLOURS.len()].1;
    let picture = image::RgbImage::from_fn(IMAGE_SIDE, IMAGE_SIDE, |x, y| {
        let inside = (4..12).contains(&x) && (4..12).contains(&y);
        image::Rgb(if inside { colour } else { [250, 250, 250] })
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    EncodedImage { bytes: bytes.into_inner().into(), path: None }
}

pub(crate) fn colour(index: usize) -> &'static str {
    COLOURS[index % COLOURS.len()].0
}

/// The `index`-th image-text row.
pub(crate) fn pair(index: usize) -> Row {
    let image = picture(index);
    let side = IMAGE_SIDE as i32;
    Row::ImageText(ImageText {
        key: format!("pair-{index}"),
        url: None,
        caption: format!("a {} square", colour(index)),
        width: side,
        height: side,
        original_width: side,
        original_height: side,
        sha256: sha256_hex(&image.bytes),
        image,
        phash: 0,
        source: None,
        scores: Vec::new(),
        warc: None,
    })
}

/// The `index`-th page: two pictures, each with its sentence.
pub(crate) fn page(index: usize) -> Row {
    let meta = ImageMeta {
        url: None,
        alt: None,
        width: IMAGE_SIDE as i32,
        height: IMAGE_SIDE as i32,
        sha256: String::new(),
        phash: 0,
        mime: "image/png".to_owned(),
    };
    let slots = (index..index + 2).flat_map(|index| {
        let image = Slot::Image { image: picture(index), meta: meta.clone() };
        [image, Slot::Text(format!("here we see a {} square .", colour(index)))]
    });
    Row::Interleaved(Interleaved {
        doc_id: format!("page-{index}"),
        url: format!("http://made.up/{index}"),
        slots: slots.collect(),
        title: None,
        lang: None,
        lang_score: None,
        warc: None,
        fetched_at_us: None,
    })
}

/// The `index`-th clip, of two frames.
pub(crate) fn clip(index: usize) -> Row {
    Row::VideoText(VideoText {
        key: format!("clip-{index}"),
        url: None,
        caption: format!("a {} square turns {}", colour(index), colour(index + 1)),
        frames: vec![picture(index), picture(index + 1)],
        frame_ms: vec![0, 1000],
        start_ms: 0,
        end_ms: 2000,
        duration_ms: 2000,
        width: IMAGE_SIDE as i32,
        height: IMAGE_SIDE as i32,
        codec: "h264".to_owned(),
        sha256: String::new(),
    })
}

pub(crate) const CONTRASTIVE: &str = r#"
seed = 1
steps = 8
checkpoint_every = 3
keep_last = 2

[optimizer]
lr = 3e-3
warmup_steps = 2
schedule = "linear"

[tokenizer.train]
vocabulary = 300
rows_max = 100

[image]
size = 16
fit = "mean_pad"
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]

[model]
embedding = 8
label_smoothing = 0.0

[model.vision]
image_size = 16
patch_size = 8
width = 16
layers = 1
heads = 2
activation = "quick_gelu"

[model.text]
vocabulary = 300
context = 24
width = 16
layers = 1
heads = 2
activation = "gelu"

[[data]]
name = "pairs"
corpus = "pairs"
batch = 6
weight = 1.0
tokens = 24
images = 1
"#;

pub(crate) const LANGUAGE: &str = r#"
seed = 2
steps = 8
checkpoint_every = 3
keep_last = 2

[optimizer]
lr = 1e-2
warmup_steps = 2
schedule = "constant"

[tokenizer.train]
vocabulary = 300
rows_max = 100

[model]
vocabulary = 300
context = 48
width = 16
layers = 2
heads = 2
activation = "gelu"

[[data]]
name = "pages"
corpus = "pages"
batch = 2
weight = 1.0
tokens = 48

[[data]]
name = "pairs"
corpus = "pairs"
batch = 2
weight = 0.2
tokens = 24
"#;

pub(crate) const FLAMINGO: &str = r#"
seed = 3
steps = 8
checkpoint_every = 3
keep_last = 2

[optimizer]
lr = 1e-2
warmup_steps = 2
schedule = "cosine"

[image]
size = 16
fit = "mean_pad"
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]

[model]
vision = "vision"
language = "language"

[model.resampler]
latents = 3
layers = 1
heads = 2
head_dim = 8
frames = 2
activation = "sqrelu"

[model.cross_attention]
every = 1
heads = 2
head_dim = 8
activation = "sqrelu"

[[data]]
name = "pages"
corpus = "pages"
batch = 2
weight = 1.0
tokens = 48
images = 2
colour_jitter = 0.2

[[data]]
name = "pairs"
corpus = "pairs"
batch = 3
weight = 0.2
tokens = 24
images = 1

[[data]]
name = "clips"
corpus = "clips"
batch = 1
weight = 0.03
tokens = 32
images = 1
frames = 2
"#;

/// The contrastive stage's config with a small `NFNet` in place of the vision transformer.
pub(crate) fn with_nfnet() -> String {
    let (head, rest) = CONTRASTIVE.split_once("[model.vision]").unwrap();
    let text = &rest[rest.find("[model.text]").unwrap()..];
    let nfnet = "[model.vision]\nimage_size = 32\ndepths = [1, 1, 1, 1]\n\
                 channels = [16, 16, 16, 16]\nstem_channels = 16\ngroup_size = 8\n\
                 squeeze_ratio = 0.5\nalpha = 0.2\nattn_gain = 2.0\nnum_features = 16\n\
                 features = \"final_conv\"\n\n";
    format!("{}{nfnet}{text}", head.replace("size = 16", "size = 32"))
}

/// Stage, config and kind of the first corpus, for tests of all stages.
pub(crate) const STAGES: [(&str, &str); 3] =
    [("contrastive", CONTRASTIVE), ("language", LANGUAGE), ("flamingo", FLAMINGO)];
