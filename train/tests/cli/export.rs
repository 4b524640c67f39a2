//! Models go to others and come back, to the bit, or are refused with every reason.

use std::path::Path;
use std::process::Command;

use flamingo_dataset::Tokenizer;
use flamingo_model::{LanguageModel, Tensors};

use crate::world::{CONTRASTIVE, FLAMINGO, Finished, LANGUAGE, World, latest, with_nfnet};

impl World {
    /// Runs `export` with these arguments in the world's folder.
    pub(crate) fn export(&self, args: &[&str]) -> Finished {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-train"));
        command.current_dir(self.path("")).arg("export").args(args);
        Finished(command.output().unwrap())
    }

    /// A run of `steps` whose trained parts are built as this says.
    fn trained(&self, run: &str, config: &str) {
        self.train("flamingo", config, run, &["--set", "steps=2"]).expect_success();
    }
}

/// The config with `OpenFlamingo`'s trained parts.
pub(crate) fn open_flamingo() -> String {
    let mut config = FLAMINGO.to_owned();
    for (from, to) in [
        (
            "latents = 3\nlayers = 1\nheads = 2\nhead_dim = 8\nframes = 2",
            "latents = 64\nlayers = 6\nheads = 8\nhead_dim = 64\nframes = 0",
        ),
        (
            "every = 1\nheads = 2\nhead_dim = 8",
            "every = 2\nfirst = \"last-of-every\"\nmedia_norm = false\nheads = 8\nhead_dim = 64",
        ),
        ("activation = \"sqrelu\"", "activation = \"gelu\""),
        ("activation = \"sqrelu\"", "activation = \"gelu\""),
    ] {
        assert!(config.contains(from), "{from}");
        config = config.replacen(from, to, 1);
    }
    // Without time embeddings there are no clips.
    config.split("[[data]]\nname = \"clips\"").next().unwrap().to_owned()
}

#[test]
fn parameters_are_counted_of_presets_and_of_models() {
    let world = World::with_towers();
    let finished = world.export(&["--preset", "flamingo-80b", "--dry-run"]);
    finished.expect_success();
    let table = finished.stdout();
    let row = |part: &str| table.lines().find(|line| line.starts_with(part)).unwrap().to_owned();
    assert!(row("cross-attention").ends_with("trained        10B"), "{table}");
    assert!(row("vision encoder").contains("435,"), "{table}");

    world.trained("run", FLAMINGO);
    let finished = world.export(&["--model", "run", "--dry-run"]);
    finished.expect_success();
    let weights = Tensors::open(&latest(&world.path("run")).join("model.safetensors")).unwrap();
    let n_values = |name| weights.shape(name).unwrap().iter().product::<usize>();
    let total: usize = weights.names().map(n_values).sum();
    let digits: String = finished.stdout().replace(',', "");
    let found = digits.lines().find(|line| line.starts_with("total")).unwrap();
    assert_eq!(found.split_whitespace().nth(1), Some(&*total.to_string()), "{digits}");
}

#[test]
fn a_model_goes_to_open_flamingo_and_transformers_and_comes_back() {
    let world = World::with_towers();
    world.trained("run", &open_flamingo());
    let towers = ["--model", "run", "--format", "hugging-face", "--out", "towers"];
    world.export(&towers).expect_success();
    let run = Tensors::open(&latest(&world.path("run"))).unwrap();
    for name in ["of.pt", "of.safetensors"] {
        let out = ["--model", "run", "--format", "open-flamingo", "--out", name];
        let finished = world.export(&out);
        finished.expect_success();
        // 3 + 6 * 11 of the perceiver, 11 of the one block, the embeddings.
        assert_eq!(finished.stdout(), format!("81 tensors in {name}\n"));
        let theirs = Tensors::open(&world.path(name)).unwrap();
        let gate = "lang_encoder.transformer.h.1.gated_cross_attn_layer.attn_gate";
        assert_eq!(theirs.get(gate), run.get("cross_attention.0.attn_gate"));
        assert_eq!(
            theirs.get("lang_encoder.transformer.wte.weight"),
            run.get("language.tokens.weight")
        );

        let back = format!("back-{name}");
        let args = [
            "--from-open-flamingo",
            name,
            "--vision",
            "towers/vision",
            "--every",
            "2",
            "--language",
            "towers/language",
            "--format",
            "flamingo",
            "--out",
            &back,
        ];
        world.export(&args).expect_success();
        let back = Tensors::open(&world.path(&back)).unwrap();
        assert_eq!(back.names().collect::<Vec<_>>(), run.names().collect::<Vec<_>>());
        for name in run.names() {
            assert!(back.get(name) == run.get(name), "{name} changed on its way");
        }
    }
    let tokenizer =
        |folder: &str| std::fs::read(world.path(folder).join("tokenizer.json")).unwrap();
    for folder in ["towers/language", "back-of.pt"] {
        assert_eq!(tokenizer(folder), tokenizer("run"), "{folder}");
    }

    // A model is written over itself, over another, and over one whose tokenizer is not its own.
    let over = |model: &str, out: &str| {
        let args = ["--model", model, "--format", "flamingo", "--out", out, "--force"];
        world.export(&args).expect_success();
        let [model, out] = [model, out].map(|name| Tensors::open(&world.path(name)).unwrap());
        for name in run.names() {
            assert!(out.get(name) == run.get(name) && model.get(name) == run.get(name), "{name}");
        }
    };
    over("back-of.pt", "back-of.pt");
    assert_eq!(tokenizer("back-of.pt"), tokenizer("run"));
    std::fs::remove_file(world.path("back-of.pt/tokenizer.json")).unwrap();
    over("back-of.pt", "back-of.safetensors");
    assert!(!world.path("back-of.safetensors/tokenizer.json").exists(), "that of another model");

    let left = std::fs::read_dir(world.path("")).unwrap();
    let left =
        left.filter(|entry| entry.as_ref().unwrap().path().to_string_lossy().ends_with(".part"));
    assert_eq!(left.count(), 0, "a part is left");
}

/// What a folder says of how images become pixels.
fn preprocessor(folder: &Path) -> serde_json::Value {
    let text = std::fs::read(folder.join("preprocessor_config.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// Transformers cannot pad images with their mean.
#[test]
fn an_export_says_where_transformers_makes_squares_in_another_way() {
    let world = World::new();
    for (fit, is_said) in [("mean_pad", true), ("center_crop", false), ("squash", false)] {
        let set = format!("image.fit={fit:?}");
        let set = ["--set", &set, "--stop-after", "1"];
        world.train("contrastive", CONTRASTIVE, fit, &set).expect_success();
        let out = format!("{fit}-hf");
        let exported = world.export(&["--model", fit, "--format", "hugging-face", "--out", &out]);
        exported.expect_success();
        let said = exported.stdout();
        assert_eq!(said.contains("it is told to squash them"), is_said, "{fit}: {said}");
        let told = preprocessor(&world.path(&out));
        assert_eq!(told["fit"], fit);
        assert_eq!(told["size"].get("height").is_some(), fit != "center_crop", "{told}");
    }
}

#[test]
fn towers_that_are_runs_of_their_own_go_to_transformers() {
    let world = World::with_towers();
    let out = |run: &str, out: &str| {
        world.export(&["--model", run, "--format", "hugging-face", "--out", out]).expect_success();
    };
    out("language", "language-hf");
    out("vision", "vision-hf");
    let [ours, theirs] =
        ["language", "language-hf"].map(|name| LanguageModel::load(&world.path(name)).unwrap());
    let tokens = [1, 7, 250, 3, 99];
    assert_eq!(ours.logits(&tokens, 5).unwrap(), theirs.logits(&tokens, 5).unwrap());
    let tokenizer = |name: &str| std::fs::read(world.path(name).join("tokenizer.json")).unwrap();
    assert_eq!(tokenizer("language"), tokenizer("language-hf"));
    assert!(!world.path("language-hf/preprocessor_config.json").exists());

    let [ours, theirs] = [latest(&world.path("vision")), world.path("vision-hf")]
        .map(|folder| Tensors::open(&folder).unwrap());
    for (our, their) in [
        ("vision.class_embedding", "vision_model.embeddings.class_embedding"),
        ("vision.ln_post.weight", "vision_model.post_layernorm.weight"),
        ("vision.blocks.0.mlp.up.bias", "vision_model.encoder.layers.0.mlp.fc1.bias"),
    ] {
        assert!(ours.get(our).is_some() && ours.get(our) == theirs.get(their), "{our}");
    }
    assert!(theirs.names().all(|name| name.starts_with("vision_model.")));
    assert!(!world.path("vision-hf/tokenizer.json").exists());
    let found = preprocessor(&world.path("vision-hf"));
    assert_eq!(found["image_mean"], serde_json::json!([0.5, 0.5, 0.5]));
    assert_eq!(found["crop_size"]["height"], 16);

    for (run, format, what) in [
        ("language", "open-flamingo", "a language model is no Flamingo"),
        ("language", "flamingo", "a language model is no Flamingo"),
        ("vision", "flamingo", "a contrastive model is no Flamingo"),
    ] {
        let finished = world.export(&["--model", run, "--format", format, "--out", "no.pt"]);
        assert_eq!(finished.code(), Some(2), "{}", finished.stderr());
        assert!(finished.stderr().contains(what), "{}", finished.stderr());
    }
    // Transformers has no NFNet.
    world.train("contrastive", &with_nfnet(), "nfnet", &["--stop-after", "1"]).expect_success();
    let finished = world.export(&["--model", "nfnet", "--format", "hugging-face", "--out", "no"]);
    assert_eq!(finished.code(), Some(1), "{}", finished.stderr());
    let words = "the vision encoder is not built like any model of Hugging Face";
    assert!(finished.stderr().contains(words), "{}", finished.stderr());
    assert!(!world.path("no").exists() && !world.path("no.part").exists());
}

#[test]
fn what_cannot_be_exported_is_refused_and_nothing_is_replaced_unasked() {
    let world = World::with_towers();
    world.trained("run", FLAMINGO);
    let check = |args: &[&str], code: i32, words: &[&str]| {
        let finished = world.export(args);
        let stderr = finished.stderr();
        assert_eq!(finished.code(), Some(code), "{stderr}");
        for word in words {
            assert!(stderr.contains(word), "no `{word}` in {stderr}");
        }
    };
    let to = |out| ["--model", "run", "--format", "open-flamingo", "--out", out];
    let reasons = [
        "error: cannot export the model: OpenFlamingo has no such model: ",
        "resampler.frames is 2, expected 0; ",
        "resampler.heads is 2, expected 8; ",
        "resampler.activation is \"sqrelu\", expected \"gelu\"; ",
        "cross_attention.media_norm is true, expected false",
    ];
    check(&to("of.pt"), 1, &reasons);
    assert!(!world.path("of.pt").exists() && !world.path("of.pt.part").exists());
    check(&to("of.bin"), 2, &["of.bin does not end in .pt or .safetensors"]);
    std::fs::write(world.path("there.pt"), "mine").unwrap();
    check(&to("there.pt"), 2, &["there.pt exists; --force replaces it"]);
    check(&[&to("there.pt")[..], &["--force"]].concat(), 1, &reasons);
    assert_eq!(std::fs::read_to_string(world.path("there.pt")).unwrap(), "mine");

    check(&[], 2, &["--preset", "--model", "--from-open-flamingo"]);
    check(&["--model", "run"], 2, &["--format"]);
    check(&["--preset", "flamingo-3b", "--format", "flamingo", "--out", "x"], 2, &["--dry-run"]);
    check(&["--preset", "flamingo-4b", "--dry-run"], 2, &["flamingo-3b", "openflamingo-9b"]);
    check(&["--from-open-flamingo", "a.pt", "--dry-run"], 2, &["--vision", "--every"]);
    check(&["--model", "nowhere", "--dry-run"], 1, &["nowhere is not a run or checkpoint"]);

    // A language model goes on: files are replaced, others stay.
    let towers = ["--model", "run", "--format", "hugging-face", "--out", "towers"];
    world.export(&towers).expect_success();
    std::fs::write(world.path("towers/notes.txt"), "mine").unwrap();
    check(&towers, 2, &["towers exists; --force replaces it"]);
    world.export(&[&towers[..], &["--force"]].concat()).expect_success();
    assert!(world.path("towers/notes.txt").exists());
}

#[test]
fn a_tokenizer_whose_names_do_not_tell_its_marks_goes_with_what_names_them() {
    let world = World::with_towers();
    // As others name them.
    let renamed = std::fs::read_to_string(world.path("language/tokenizer.json")).unwrap();
    let renamed = renamed.replace("<EOS>", "<fin>").replace("<PAD>", "<void>");
    std::fs::create_dir(world.path("odd")).unwrap();
    std::fs::write(world.path("odd/tokenizer.json"), renamed).unwrap();
    let names = r#"{"bos_token": "<BOS>", "eos_token": "<fin>", "pad_token": "<void>"}"#;
    std::fs::write(world.path("odd/tokenizer_config.json"), names).unwrap();
    let config = LANGUAGE.replace(
        "[tokenizer.train]\nvocabulary = 300\nrows_max = 100",
        "[tokenizer]\npath = \"odd\"",
    );
    world.train("language", &config, "odd-run", &["--stop-after", "1"]).expect_success();
    let flamingo = FLAMINGO.replace("language = \"language\"", "language = \"odd-run\"");
    world.train("flamingo", &flamingo, "run", &["--stop-after", "1"]).expect_success();
    let export = |run: &str, format: &str, out: &str, more: &[&str]| {
        let args = ["--model", run, "--format", format, "--out", out];
        world.export(&[&args[..], more].concat())
    };
    export("odd-run", "hugging-face", "language-hf", &[]).expect_success();
    export("run", "flamingo", "exported", &[]).expect_success();
    export("run", "hugging-face", "towers", &[]).expect_success();
    export("exported", "flamingo", "again", &[]).expect_success();
    let marks = |folder: &str| {
        let tokenizer = Tokenizer::load(world.path(folder)).unwrap();
        (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id(), tokenizer.n_tokens())
    };
    for out in ["language-hf", "exported", "towers/language", "again"] {
        assert_eq!(marks(out), marks("odd"), "{out}");
    }

    // What stood beside another model does not stand beside this one.
    export("language", "hugging-face", "language-hf", &["--force"]).expect_success();
    assert!(!world.path("language-hf/tokenizer_config.json").exists());
    assert_eq!(marks("language-hf"), marks("language"));
    export("vision", "hugging-face", "language-hf", &["--force"]).expect_success();
    assert!(!world.path("language-hf/tokenizer.json").exists());
    assert!(world.path("language-hf/preprocessor_config.json").exists());
    export("language", "hugging-face", "language-hf", &["--force"]).expect_success();
    assert!(!world.path("language-hf/preprocessor_config.json").exists());
    // A run is no such folder: the tokenizer there is its own.
    let finished = export("vision", "hugging-face", "language", &["--force"]);
    assert_eq!(finished.code(), Some(2), "{}", finished.stderr());
    assert!(finished.stderr().contains("language is a run"), "{}", finished.stderr());
    assert!(world.path("language/tokenizer.json").exists());
}
