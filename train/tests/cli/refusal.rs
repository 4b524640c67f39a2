//! What is wrong is said in one line, with the right exit code, and leaves nothing behind.

use crate::world::{CONTRASTIVE, FLAMINGO, LANGUAGE, STAGES, World, clip, latest, metrics};

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
    language("lr = 1e-2", "lr = -1", &["`optimizer.lr` is -1, expected a number above 0"]);
    language("weight = 0.2", "weight = -0.2", &["`data.pairs.weight` is -0.2"]);
    language("name = \"pairs\"", "name = \"pages\"", &["`data.1.name` is pages"]);
    language("name = \"pages\"", "name = \" \"", &["`data.0.name` is \" \", expected a name"]);
    language(
        "name = \"pages\"",
        "name = \"a\\n\"",
        &["`data.0.name` is \"a\\n\", expected a name"],
    );
    language("rows_max = 100", "rows_max = 0", &["`tokenizer.train.rows_max` is 0"]);
    language("lr = 1e-2", "lr = inf", &["`optimizer.lr` is inf, expected a number above 0"]);
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

/// Runs a stage on its config with one text replaced, which must be refused before the corpora are
/// opened.
fn check_change(world: &World, stage: &str, from: &str, to: &str, words: &[&str]) {
    let config = STAGES.iter().find(|(name, _)| *name == stage).unwrap().1;
    assert!(config.contains(from), "{from}");
    let config = config.replacen(from, to, 1).replace("corpus = \"p", "corpus = \"no-p");
    let file = format!("{stage}.toml: ");
    check(world, stage, &config, &[], 2, &[words, &[&file]].concat());
}

/// What stands between `[model]` and a key of it in the language stage's config.
fn before_in_language(key: &str) -> &'static str {
    let (_, model) = LANGUAGE.split_once("[model]\n").unwrap();
    let end = model.find(key).unwrap();
    &model[..end]
}

#[test]
fn what_no_model_or_image_can_be_is_refused_under_the_key_of_the_config() {
    let world = World::new();
    let change = |stage: &str, from: &str, to: &str, words: &[&str]| {
        check_change(&world, stage, from, to, words);
    };
    change("language", "heads = 2", "heads = 3", &["`model.heads` is 3"]);
    change("language", "width = 16", "width = 0", &["`model.width` is 0"]);
    change("contrastive", "patch_size = 8", "patch_size = 7", &["`model.vision.patch_size` is 7"]);
    for (key, was) in [("layers", 2), ("heads", 2), ("vocabulary", 300), ("context", 48)] {
        let was = format!("[model]\n{}{key} = {was}", before_in_language(key));
        let none = was.replace(was.rsplit('\n').next().unwrap(), &format!("{key} = 0"));
        change("language", &was, &none, &[&format!("`model.{key}` is 0, expected at least 1")]);
    }
    for (stage, table, key, was) in [
        (
            "contrastive",
            "vision",
            "width",
            "width = 16\nlayers = 1\nheads = 2\nactivation = \"quick",
        ),
        ("contrastive", "vision", "layers", "layers = 1\nheads = 2\nactivation = \"quick"),
        ("contrastive", "vision", "heads", "heads = 2\nactivation = \"quick"),
        ("contrastive", "text", "vocabulary", "vocabulary = 300\ncontext = 24"),
        ("contrastive", "text", "context", "context = 24"),
        ("contrastive", "text", "width", "width = 16\nlayers = 1\nheads = 2\nactivation = \"gelu"),
        ("contrastive", "text", "layers", "layers = 1\nheads = 2\nactivation = \"gelu"),
        ("contrastive", "text", "heads", "heads = 2\nactivation = \"gelu"),
        ("flamingo", "resampler", "latents", "latents = 3"),
        ("flamingo", "resampler", "layers", "layers = 1\nheads = 2\nhead_dim = 8\nframes"),
        ("flamingo", "resampler", "heads", "heads = 2\nhead_dim = 8\nframes"),
        ("flamingo", "resampler", "head_dim", "head_dim = 8\nframes"),
        ("flamingo", "cross_attention", "every", "every = 1"),
        ("flamingo", "cross_attention", "heads", "heads = 2\nhead_dim = 8\nactivation"),
        ("flamingo", "cross_attention", "head_dim", "head_dim = 8\nactivation"),
    ] {
        let (first, rest) = was.split_once(' ').unwrap();
        assert_eq!(first, key);
        let rest = rest.trim_start_matches(|c: char| "= 0123456789".contains(c));
        let words = format!("`model.{table}.{key}` is 0, expected at least 1");
        change(stage, was, &format!("{key} = 0{rest}"), &[&words]);
    }
    let after = "images = 1\nlearn_after = \"Answer:\"";
    change("contrastive", "images = 1", after, &["`data.pairs.learn_after` is Answer:"]);
    let text = ("context = 24\nwidth = 16\nlayers = 1\nheads = 2", "`model.text.heads` is 5");
    change("contrastive", text.0, &text.0.replace("heads = 2", "heads = 5"), &[text.1]);
    change("contrastive", "embedding = 8", "embedding = 0", &["`model.embedding` is 0"]);
    let smoothing = ("label_smoothing = 0.0", "label_smoothing = 1.0");
    change("contrastive", smoothing.0, smoothing.1, &["`model.label_smoothing` is 1"]);
    change("contrastive", "std = [0.25,", "std = [0.0,", &["`image.std` is [0.0, 0.25, 0.25]"]);
    let closer = "fit = { crop_from = 1 }";
    change("contrastive", "fit = \"mean_pad\"", closer, &["`image.fit.crop_from` is 1, expected"]);
    change("contrastive", "mean = [0.5,", "mean = [nan,", &["`image.mean` is [NaN, 0.5, 0.5]"]);
    let tokenizer = ("vocabulary = 300\nrows_max", "vocabulary = 20\nrows_max");
    let words = ["`tokenizer.train.vocabulary` is 20", "at least 261"];
    change("language", tokenizer.0, tokenizer.1, &words);
    let guard = |key: &str| format!("keep_last = 2\n[guard]\n{key}\n");
    for (key, words) in [
        ("leap = 1.0", ["`guard.leap` is 1", "above 1"]),
        ("window = 0", ["`guard.window` is 0", "at least 1"]),
        ("most = 9999", ["`guard.most` is 9999", "at most 1000"]),
    ] {
        change("language", "keep_last = 2\n", &guard(key), &words);
    }
    for every in ["4", "0"] {
        let words = [&format!("`keep_every` is {every}")[..], "a multiple of checkpoint_every, 3"];
        let keep = format!("keep_last = 2\nkeep_every = {every}\n");
        change("language", "keep_last = 2\n", &keep, &words);
    }
    let blindness = "keep_last = 2\nblindness_every = 3\n";
    for stage in ["language", "contrastive"] {
        change(stage, "keep_last = 2\n", blindness, &["`blindness_every` is 3, expected nothing"]);
    }
    let hardware = "keep_last = 2\n[hardware]\npeak_tflops = 0.0\n";
    let words = ["`hardware.peak_tflops` is 0, expected a number above 0"];
    change("flamingo", "keep_last = 2\n", hardware, &words);
    let gates = "keep_last = 2\ngates_every = 3\n";
    change("language", "keep_last = 2\n", gates, &["`gates_every` is 3, expected nothing"]);
    let gates = gates.replace('3', "0");
    change("flamingo", "keep_last = 2\n", &gates, &["`gates_every` is 0, expected at least 1"]);
    let accounting = "keep_last = 2\naccounting_every = 5\n";
    let words = ["`accounting_every` is 5, expected nothing: it needs two datasets"];
    change("contrastive", "keep_last = 2\n", accounting, &words);
    let turns = format!("mixture = \"round_robin\"\n{accounting}");
    change("language", "keep_last = 2\n", &turns, &words);
    change("flamingo", "heads = 2", "heads = 0", &["`model.resampler.heads` is 0"]);
    change("flamingo", "every = 1", "every = 0", &["`model.cross_attention.every` is 0"]);
    let merged = "seed = 3\nmixture = \"merged\"";
    change("flamingo", "seed = 3", merged, &["`data.clips.frames` is 2, expected 1"]);
    let merged = "seed = 2\nmixture = \"merged\"";
    change("language", "seed = 2", merged, &["`data.pairs.weight` is 0.2, expected 1 with"]);
    let words = ["`data.pairs.weight` is 0, expected above 0 in one dataset at least"];
    change("contrastive", "weight = 1.0", "weight = 0.0", &words);
    let attend = ("every = 1", "every = 1\nattend = \"all-previous\"");
    let words = ["`data.pages.next_image_probability` is 0.5, expected 0"];
    change("flamingo", attend.0, attend.1, &words);
    let cached = "seed = 3\nfeature_cache = { folder = \"features\" }";
    let config = FLAMINGO.replace("[model]", "[model]\nvision_weights = \"fine-tuned\"");
    check(&world, "flamingo", &config.replace("seed = 3", cached), &[], 2, &["`feature_cache`"]);
}

#[test]
fn keys_that_mean_nothing_in_a_stage_are_refused() {
    let world = World::new();
    let change = |stage: &str, to: &str, words: &[&str]| {
        check_change(&world, stage, "keep_last = 2\n", &format!("keep_last = 2\n{to}"), words);
    };
    let tokenizer = "[tokenizer]\npath = \"tokenizer.json\"\n";
    let words = "`tokenizer` is given, expected nothing: that of `model.language` is taken";
    change("flamingo", tokenizer, &[words]);
    let finetune = format!(
        "{}[tokenizer]\npath = \"t\"\n",
        FLAMINGO
            .split_once("[model]")
            .map(|(head, data)| {
                let data = &data[data.find("[[data]]").unwrap()..];
                format!("{head}[model]\nfrom = \"flamingo\"\n{data}")
            })
            .unwrap()
    );
    let words = "`tokenizer` is given, expected nothing: that of `model.from` is taken";
    check(&world, "finetune", &finetune, &[], 2, &[words]);
    let image = "[image]\nsize = 16\nfit = \"squash\"\nmean = [0, 0, 0]\nstd = [1, 1, 1]\n";
    let words = "`image` is given, expected nothing: images are not read here";
    change("language", image, &[words]);
    let held = "[validation]\nevery = 2\nbatches = 1\n[[validation.data]]\nname = \"held\"\n\
                corpus = \"pairs\"\nbatch = 2\ntokens = 24\nimages = 1\n";
    let prompts = format!("{held}prompts = [\"a {{}}\"]\n");
    let words = "`validation.data.held.prompts` is [\"a {}\"], expected nothing without `classes`";
    for stage in ["contrastive", "flamingo"] {
        change(stage, &prompts, &[words]);
    }
    let loss = format!("{held}loss = \"open_flamingo\"\n");
    let expected = "is \"open_flamingo\", expected \"paper\", the default";
    change("contrastive", &loss, &["`validation.data.held.loss`", expected]);
    let loss = CONTRASTIVE.replace("images = 1", "images = 1\nloss = \"open_flamingo\"");
    check(&world, "contrastive", &loss, &[], 2, &["`data.pairs.loss`", expected]);
}

#[test]
fn sizes_have_limits() {
    let world = World::new();
    let change = |stage: &str, from: &str, to: &str, words: &[&str]| {
        check_change(&world, stage, from, to, &[words, &["expected at most"]].concat());
    };
    let large = |key: &str| format!("`{key}` is 9000000");
    let number = |key: &str| format!("{key} = 9000000");
    for (stage, line, key) in [
        ("language", "batch = 2", "data.pages.batch"),
        ("language", "tokens = 48", "data.pages.tokens"),
        ("flamingo", "images = 2", "data.pages.images"),
        ("contrastive", "size = 16", "image.size"),
        ("contrastive", "width = 16", "model.vision.width"),
        ("contrastive", "embedding = 8", "model.embedding"),
        ("language", "layers = 2", "model.layers"),
        ("language", "context = 48", "model.context"),
        ("language", "vocabulary = 300\n", "tokenizer.train.vocabulary"),
        ("flamingo", "latents = 3", "model.resampler.latents"),
        ("flamingo", "frames = 2", "model.resampler.frames"),
        ("flamingo", "head_dim = 8", "model.resampler.head_dim"),
    ] {
        let field = line.split(' ').next().unwrap();
        let end = if line.ends_with('\n') { "\n" } else { "" };
        change(stage, line, &(number(field) + end), &[&large(key)]);
    }
    let frames = "images = 1\nframes = 9000000";
    change("contrastive", "images = 1", frames, &[&large("data.pairs.frames")]);
    // Each of these is within its limit.
    let batch = ("batch = 6", "batch = 100000\nframes = 1000");
    change("contrastive", batch.0, batch.1, &["`data.pairs.batch` is 100000", "pixel values"]);
    let tokens = ("batch = 2\nweight = 1.0\ntokens = 48", "batch = 100000\nweight = 1.0");
    let to = format!("{}\ntokens = 60000", tokens.1);
    change("language", tokens.0, &to, &["`data.pages.batch` is 100000", "batch * tokens"]);
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
    let finished = world.train("language", LANGUAGE, "refused", &["--stop-after", "0"]);
    assert_eq!(finished.code(), Some(2), "{}", finished.stderr());
}

#[test]
fn devices_that_are_not_there_are_refused_by_name() {
    let world = World::new();
    let finished = world.train("language", LANGUAGE, "refused", &["--device", "gpu"]);
    assert_eq!(finished.code(), Some(2));
    let words = "`gpu` is none of cpu, cuda:0, cuda:1, ..., auto";
    assert!(finished.stderr().contains(words), "{}", finished.stderr());
    let finished = world.train("language", LANGUAGE, "refused", &["--precision", "f16"]);
    assert!(finished.stderr().contains("`f16` is neither bf16 nor f32"), "{}", finished.stderr());
    #[cfg(not(feature = "cuda"))]
    for (stage, config) in [("language", LANGUAGE), ("contrastive", CONTRASTIVE)] {
        let words = ["built without CUDA", "build-cuda.sh"];
        check(&world, stage, config, &["--device", "cuda:0"], 2, &words);
    }
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
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot read the config"));
}

#[test]
fn a_flamingo_reads_images_as_its_vision_encoder_does_and_knows_its_tokens() {
    let world = World::with_towers();
    let change = |from: &str, to: &str, words: &[&str]| {
        check(&world, "flamingo", &FLAMINGO.replacen(from, to, 1), &[], 2, words);
    };
    let run = "vision/config.toml";
    change("mean_pad", "squash", &["`image.fit` is \"squash\", expected \"mean_pad\"", run]);
    change("mean = [0.5,", "mean = [0.25,", &["`image.mean` is [0.25, ", "[0.5, 0.5, 0.5]", run]);
    change("std = [0.25,", "std = [0.5,", &["`image.std` is [0.5, ", "[0.25, 0.25, 0.25]", run]);
    change("size = 16", "size = 24", &["`image.size` is 24, expected 16", run]);
    let by_checkpoint = latest(&world.path("vision")).display().to_string();
    let by_checkpoint = format!("vision = \"{by_checkpoint}\"");
    let squash = FLAMINGO.replace("mean_pad", "squash");
    let squash = squash.replace("vision = \"vision\"", &by_checkpoint);
    check(&world, "flamingo", &squash, &[], 2, &["`image.fit`", run]);

    let more = LANGUAGE.replace("vocabulary = 300", "vocabulary = 310");
    world.train("language", &more, "more", &["--stop-after", "1"]).expect_success();
    std::fs::copy(world.path("more/tokenizer.json"), world.path("language/tokenizer.json"))
        .unwrap();
    let words = ["`model.language` is 300, expected at least the tokenizer's 3"];
    check(&world, "flamingo", FLAMINGO, &[], 2, &words);
}

#[test]
fn a_folder_that_is_not_a_run_is_not_continued() {
    let world = World::new();
    let resume = |name: &str| {
        let finished = world.train("language", LANGUAGE, name, &["--resume"]);
        (finished.code(), finished.stderr())
    };
    let refuse = |name: &str| {
        let (code, stderr) = resume(name);
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(&format!("{name} is neither a run")), "{stderr}");
    };
    std::fs::create_dir(world.path("photos")).unwrap();
    std::fs::write(world.path("photos/holiday.png"), "").unwrap();
    refuse("photos");
    std::fs::create_dir(world.path("torn")).unwrap();
    std::fs::write(world.path("torn/latest"), "step-1\n").unwrap();
    refuse("torn");
    std::fs::write(world.path("file"), "").unwrap();
    refuse("file");
    assert_eq!(std::fs::read_dir(world.path("photos")).unwrap().count(), 1);

    std::fs::create_dir(world.path("blank")).unwrap();
    assert_eq!(resume("blank").0, Some(0));
}

#[test]
fn a_run_is_trained_by_one_process_at_a_time() {
    let world = World::new();
    world.train("language", LANGUAGE, "run", &["--stop-after", "1"]).expect_success();
    let lock = std::fs::File::open(world.path("run/lock")).unwrap();
    lock.try_lock().unwrap();
    let finished = world.train("language", LANGUAGE, "run", &["--resume"]);
    assert_eq!(finished.code(), Some(1), "{}", finished.stderr());
    assert!(finished.stderr().contains("another process trains in "), "{}", finished.stderr());
    // A process that was killed a moment ago lets go of it.
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(500));
            drop(lock);
        });
        world.train("language", LANGUAGE, "run", &["--resume"]).expect_success();
    });
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
    let without = ["--resume", "--stop-after", "2", "--set", "data.pairs.skip_rows=[1, 4]"];
    world.train("language", LANGUAGE, "run", &without).expect_success();
    let config = std::fs::read_to_string(world.path("run/config.toml")).unwrap();
    assert!(config.contains("skip_rows = [1, 4]"), "{config}");
    let smaller = ["--resume", "--stop-after", "3", "--set", "data.pairs.batch=1"];
    world.train("language", LANGUAGE, "run", &smaller).expect_success();
    expect(
        &["--resume", "--set", "data.pairs.weight=0.5"],
        2,
        "`data.pairs.weight` is 0.5, but the run in",
    );
    let cosine = LANGUAGE.replace("\"constant\"", "\"cosine\"");
    world.train("language", &cosine, "decays", &["--stop-after", "1"]).expect_success();
    let longer = ["--resume", "--set", "steps=9"];
    let finished = world.train("language", &cosine, "decays", &longer);
    assert_eq!(finished.code(), Some(2), "{}", finished.stderr());
    assert!(finished.stderr().contains("`steps` is 9, but the run in"), "{}", finished.stderr());

    let tokenizer = world.path("run/tokenizer.json");
    let text = std::fs::read_to_string(&tokenizer).unwrap();
    std::fs::write(&tokenizer, format!("{text} ")).unwrap();
    expect(&["--resume"], 1, "the digest of tokenizer.json is");
    std::fs::write(&tokenizer, text).unwrap();
    world.write_corpus("pairs", &(0..4).map(clip).collect::<Vec<_>>());
    expect(&["--resume"], 1, "the manifest's digest of dataset `pairs` is");
}

#[test]
fn a_file_is_no_run_and_steps_beyond_all_numbers_have_no_batches() {
    let world = World::new();
    std::fs::write(world.path("file"), "mine").unwrap();
    let finished = world.train("language", LANGUAGE, "file", &[]);
    assert_eq!(finished.code(), Some(2), "{}", finished.stderr());
    assert!(finished.stderr().contains("file exists, expected a folder"), "{}", finished.stderr());
    assert_eq!(std::fs::read_to_string(world.path("file")).unwrap(), "mine");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_flamingo-train"));
    command.args(["batches", "--first", "18446744073709551615", "--out", "out"]);
    command.args(["--config", "none.toml", "--tokenizer", "none.json"]);
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && stderr.contains("is not in 1..="), "{stderr}");
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
