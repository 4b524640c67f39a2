//! What is wrong is said in one line, with the right exit code, and leaves nothing behind.

use crate::world::{CONTRASTIVE, FLAMINGO, LANGUAGE, World, clip, latest, metrics};

/// Runs a stage on a config that must be refused with this exit code and all these words.
fn check(world: &World, stage: &str, config: &str, more: &[&str], code: i32, words: &[&str]) {
    let finished = world.train(stage, config, "refused", more);
    let stderr = finished.stderr();
    assert_eq!(finished.code(), Some(code), "{stderr}");
    let line = stderr.strip_prefix("error: ").unwrap_or_else(|| panic!("{stderr}"));
    assert_eq!(line.trim_end().lines().count(), 1, "{stderr}");
    for word in words {
        assert!(line.contains(word), "no `{word}` in {stderr}");
    }
    assert!(!world.path("refused").exists(), "{words:?} left a run folder");
}

#[test]
fn bad_configs_name_file_and_key() {
    let world = World::new();
    let language = |from: &str, to: &str, words: &[&str]| {
        assert!(LANGUAGE.contains(from), "{from}");
        check(&world, "language", &LANGUAGE.replacen(from, to, 1), &[], 2, words);
    };
    language("seed = 2", "seeed = 2", &["language.toml line 2", "`seeed`"]);
    language("warmup_steps", "warmup", &["language.toml line 9", "`warmup`"]);
    language("width = 16", "wide = 16", &["language.toml", "`wide`"]);
    language("steps = 8", "steps = 'many'", &["language.toml line 3", "string"]);
    language("steps = 8", "steps = ", &["language.toml line 3"]);
    language("seed = 2\n", "", &["language.toml", "`seed`"]);
    language("steps = 8", "steps = 0", &["`steps` is 0, expected at least 1"]);
    language("lr = 1e-2", "lr = -1", &["`optimizer.lr` is -1, expected above 0"]);
    language("weight = 0.2", "weight = -0.2", &["`data.pairs.weight` is -0.2"]);
    language("name = \"pairs\"", "name = \"pages\"", &["`data.1.name` is pages"]);
    language("batch = 2", "batch = 0", &["`data.pages.batch` is 0"]);
    language("tokens = 48", "tokens = 64", &["`data.pages.tokens` is 64", "context"]);
    language("tokens = 48", "tokens = 48\nimages = 2", &["`data.pages.images` is 2, expected 0"]);
    language(
        "vocabulary = 300\ncontext",
        "vocabulary = 20\ncontext",
        &["`model.vocabulary` is 20"],
    );
    let images = CONTRASTIVE.replace("images = 1", "images = 2");
    check(&world, "contrastive", &images, &[], 2, &["`data.pairs.images` is 2, expected 1"]);
    let size = CONTRASTIVE.replace("image_size = 16", "image_size = 24");
    check(&world, "contrastive", &size, &[], 2, &["`model.vision.image_size` is 24"]);
    let no_image = FLAMINGO.replace("[image]", "[imagee]");
    check(&world, "flamingo", &no_image, &[], 2, &["flamingo.toml line 12", "`imagee`"]);
}

#[test]
fn bad_overrides_name_the_argument() {
    let world = World::new();
    let set = |given: &str, words: &[&str]| {
        check(&world, "language", LANGUAGE, &["--set", given], 2, words);
    };
    set("stepps=3", &["--set stepps=3", "`stepps`"]);
    set("optimizer.lr=\"high\"", &["--set optimizer.lr=\"high\""]);
    set("data.clips.batch=3", &["no element of the list is `clips`"]);
    set("steps=0", &["`steps` is 0"]);
    let finished = world.train("language", LANGUAGE, "refused", &["--set", "steps"]);
    assert_eq!(finished.code(), Some(2));
    assert!(finished.stderr().contains("expected key.path=value"), "{}", finished.stderr());
}

#[test]
fn bad_inputs_are_named() {
    let world = World::new();
    std::fs::create_dir(world.path("empty")).unwrap();
    let corpus = |to: &str, words: &[&str]| {
        let config = CONTRASTIVE.replace("corpus = \"pairs\"", &format!("corpus = \"{to}\""));
        check(&world, "contrastive", &config, &[], 1, words);
    };
    corpus("empty", &["dataset `pairs`", "empty is not a corpus", "manifest.json"]);
    corpus("nowhere", &["dataset `pairs`", "nowhere"]);
    corpus("pages", &["is a corpus of kind interleaved, expected image_text"]);
    check(&world, "flamingo", FLAMINGO, &[], 1, &["vision"]);
    let path = LANGUAGE.replace("[tokenizer.train]", "[tokenizer]\npath = \"no.json\"\n[unused]");
    check(&world, "language", &path, &[], 2, &["`unused`"]);
    let path = LANGUAGE.replace(
        "[tokenizer.train]\nvocabulary = 300\nrows_max = 100",
        "[tokenizer]\npath = \"no.json\"",
    );
    check(&world, "language", &path, &[], 1, &["tokenizer", "no.json"]);

    let mut command = world.command("language", LANGUAGE, "refused", &[]);
    std::fs::remove_file(world.path("language.toml")).unwrap();
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot read"));
}

#[test]
fn a_run_folder_is_never_overwritten_and_never_continued_with_other_numbers() {
    let world = World::new();
    world.train("language", LANGUAGE, "run", &["--stop-after", "1"]).expect_success();
    let expect = |more: &[&str], code: i32, words: &str| {
        let finished = world.train("language", LANGUAGE, "run", more);
        assert_eq!(finished.code(), Some(code), "{}", finished.stderr());
        assert!(finished.stderr().contains(words), "{}", finished.stderr());
    };
    expect(&[], 2, "exists; --resume continues it");
    expect(
        &["--resume", "--set", "data.pairs.weight=0.5"],
        2,
        "`data.pairs.weight` is 0.5, but the run in",
    );
    world.write_corpus("pairs", &(0..4).map(clip).collect::<Vec<_>>());
    expect(&["--resume"], 1, "the manifest's digest of dataset `pairs` is");
}

#[test]
fn a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_checkpoint() {
    let world = World::new();
    let explode = ["--set", "optimizer.lr=1e30", "--set", "checkpoint_every=1"];
    let finished = world.train("language", LANGUAGE, "run", &explode);
    assert_eq!(finished.code(), Some(1), "{}", finished.stderr());
    for word in ["error: step ", "is NaN (dataset rows: p", "the last checkpoint stands"] {
        assert!(finished.stderr().contains(word), "{}", finished.stderr());
    }
    let done = metrics(&world.path("run")).len();
    assert!((1..4).contains(&done), "{done} steps");
    assert!(latest(&world.path("run")).ends_with(format!("step-{done}")));
}
