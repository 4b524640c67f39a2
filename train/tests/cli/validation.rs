//! What is held out is looked at and not learned from, and is measured as the formulas say.

use std::path::Path;

use flamingo_dataset::{Row, Tokenizer, caption_tokens};
use flamingo_model::{Clip, LanguageModel};
use serde_json::Value;

use crate::world::{CONTRASTIVE, FLAMINGO, LANGUAGE, STAGES, World, colour, latest, metrics, pair};

/// Held-out pairs, six rows in three batches.
const PAIRS: &str = r#"
[validation]
every = 2
batches = 9

[[validation.data]]
name = "held"
corpus = "pairs"
batch = 2
tokens = 24
images = 1
"#;

fn validated(config: &str) -> String {
    let texts_alone = config == LANGUAGE;
    let keys = if texts_alone { PAIRS.replace("images = 1\n", "") } else { PAIRS.to_owned() };
    format!("{config}\n{keys}")
}

/// What the validation after a step found, under the names of the measures.
fn found(run: &Path, step: usize) -> Vec<(String, f64)> {
    let line = &metrics(run)[step - 1];
    let observed = line["observed"].as_object().unwrap().clone();
    let of_held = |(key, value): (String, Value)| {
        Some((key.strip_prefix("validation.held.")?.to_owned(), value.as_f64().unwrap()))
    };
    observed.into_iter().filter_map(of_held).collect()
}

fn value(run: &Path, step: usize, measure: &str) -> f64 {
    let all = found(run, step);
    all.iter().find(|(name, _)| name == measure).unwrap_or_else(|| panic!("{measure} in {all:?}")).1
}

#[test]
fn it_changes_no_weight_and_a_resumed_run_finds_the_same() {
    let world = World::with_towers();
    for (stage, config) in STAGES {
        let with = validated(config);
        let [plain, whole, stopped] =
            ["plain", "whole", "stopped"].map(|name| format!("{stage}-{name}"));
        world.train(stage, config, &plain, &[]).expect_success();
        world.train(stage, &with, &whole, &[]).expect_success();
        world.train(stage, &with, &stopped, &["--stop-after", "3"]).expect_success();
        world.train(stage, &with, &stopped, &["--resume"]).expect_success();
        let [plain, whole, stopped] = [plain, whole, stopped].map(|run| world.path(&run));
        let weights = |run: &Path| std::fs::read(latest(run).join("model.safetensors")).unwrap();
        assert!(weights(&plain) == weights(&whole), "{stage}: validation reached the weights");
        assert!(weights(&stopped) == weights(&whole), "{stage}");
        for step in 1..=8 {
            let found_whole = found(&whole, step);
            assert_eq!(found_whole.is_empty(), step % 2 == 1, "{stage} {step}");
            assert_eq!(found_whole, found(&stopped, step), "{stage} {step}");
            assert!(found(&plain, step).is_empty());
        }
        let report = std::fs::read_to_string(whole.join("report.html")).unwrap();
        let chart = if stage == "contrastive" { "image_to_text_r1" } else { "bits_per_byte" };
        assert!(report.contains(&format!("Observed: validation, {chart}")), "{stage}");
    }
}

#[test]
fn there_is_a_validation_after_the_last_step_and_none_where_a_run_is_stopped() {
    let world = World::new();
    let config = validated(LANGUAGE).replace("every = 2", "every = 3");
    world.train("language", &config, "whole", &[]).expect_success();
    world.train("language", &config, "stopped", &["--stop-after", "4"]).expect_success();
    assert!(found(&world.path("stopped"), 4).is_empty());
    world.train("language", &config, "stopped", &["--resume"]).expect_success();
    for step in 1..=8 {
        let whole = found(&world.path("whole"), step);
        assert_eq!(whole.is_empty(), ![3, 6, 8].contains(&step), "{step}");
        assert_eq!(whole, found(&world.path("stopped"), step), "{step}");
    }
    let late = config.replace("every = 3", "every = 100");
    world.train("language", &late, "late", &[]).expect_success();
    assert_eq!(found(&world.path("late"), 8), found(&world.path("whole"), 8));
}

/// A corpus in which the bytes of one row's image were overwritten by those of another, whole one.
fn with_an_overwritten_image(world: &World, name: &str, at: usize) {
    let mut rows: Vec<Row> = (0..6).map(pair).collect();
    let Row::ImageText(other) = pair(at + 1) else { panic!("a pair") };
    let Row::ImageText(row) = &mut rows[at] else { panic!("a pair") };
    row.image = other.image;
    world.write_corpus(name, &rows);
}

#[test]
fn an_image_that_is_not_what_its_digest_says_is_a_corrupt_row() {
    let world = World::new();
    with_an_overwritten_image(&world, "changed", 3);
    let config = CONTRASTIVE.replace("corpus = \"pairs\"", "corpus = \"changed\"");
    let found = |run: &str, more: &[&str]| {
        world.train("contrastive", &config, run, more).expect_success();
        let lines = metrics(&world.path(run));
        let rows = lines.iter().filter_map(|line| line["corrupt_rows"].as_array().cloned());
        rows.flatten().collect::<Vec<_>>()
    };
    let told = found("run", &[]);
    assert!(!told.is_empty());
    for row in &told {
        assert_eq!((&row["dataset"], &row["row"]), (&"pairs".into(), &3.into()));
        let problem = row["problem"].as_str().unwrap();
        assert!(problem.contains("its SHA-256 is"), "{problem}");
    }
    let report = std::fs::read_to_string(world.path("run/report.html")).unwrap();
    assert!(report.contains("its SHA-256 is"));
    assert_eq!(found("unseen", &["--set", "data.pairs.verify=\"nothing\""]), Vec::<Value>::new());
    let none = ["--set", "data.pairs.corrupt_share_max=0.0"];
    let refused = world.train("contrastive", &config, "refused", &none);
    assert_eq!(refused.code(), Some(1), "{}", refused.stderr());
    assert!(refused.stderr().contains("row 3: image: its SHA-256 is"), "{}", refused.stderr());
    // What it says of rows may not change under way.
    let changed = ["--resume", "--set", "data.pairs.verify=\"nothing\""];
    let changed = world.train("contrastive", &config, "run", &changed);
    assert_eq!(changed.code(), Some(2), "{}", changed.stderr());
    assert!(changed.stderr().contains("verify"), "{}", changed.stderr());
}

#[test]
fn a_held_out_image_is_compared_with_its_digest_as_well() {
    let world = World::new();
    with_an_overwritten_image(&world, "changed", 3);
    for (more, n) in [("", 1), ("\nverify = \"nothing\"", 0)] {
        let held = format!("name = \"held\"\ncorpus = \"changed\"{more}");
        let config = validated(CONTRASTIVE).replace("name = \"held\"\ncorpus = \"pairs\"", &held);
        let run = format!("run-{n}");
        world.train("contrastive", &config, &run, &["--stop-after", "3"]).expect_success();
        let lines = metrics(&world.path(&run));
        let told = lines.iter().filter_map(|line| line["corrupt_rows"].as_array().cloned());
        assert_eq!(told.flatten().count(), n);
    }
}

#[test]
fn corrupt_rows_that_are_held_out_are_told_once() {
    let world = World::new();
    let mut rows: Vec<Row> = (0..6).map(pair).collect();
    let Row::ImageText(broken) = &mut rows[3] else { panic!("a pair") };
    broken.image.bytes = b"no picture".as_slice().into();
    world.write_corpus("broken", &rows);
    let held = "name = \"held\"\ncorpus = \"broken\"\ncorrupt_share_max = 0.5";
    let config = validated(CONTRASTIVE).replace("name = \"held\"\ncorpus = \"pairs\"", held);
    world.train("contrastive", &config, "run", &["--stop-after", "3"]).expect_success();
    world.train("contrastive", &config, "run", &["--resume"]).expect_success();
    let lines = metrics(&world.path("run"));
    // It is read again at each validation, and told of at the first one.
    let told: Vec<(u64, Value)> = lines
        .iter()
        .flat_map(|line| {
            let rows = line["corrupt_rows"].as_array().cloned().unwrap_or_default();
            rows.into_iter().map(|row| (line["step"].as_u64().unwrap(), row))
        })
        .collect();
    assert_eq!(told.len(), 1, "{told:?}");
    let (step, row) = &told[0];
    assert_eq!((*step, row["dataset"].as_str()), (2, Some("validation.held")));
    assert_eq!(row["row"].as_u64(), Some(3));
}

/// The loss of the rows that a model was to predict, from its logits in f64.
fn nats(model: &LanguageModel, rows: &[Vec<u32>]) -> f64 {
    let vocabulary = model.config().vocabulary;
    let of_row = |row: &Vec<u32>| {
        let logits = model.logits(row, row.len()).unwrap();
        // The image mark is not predicted.
        let of_position = |l: usize| {
            let logits: Vec<f64> =
                logits[l * vocabulary..][..vocabulary].iter().map(|v| f64::from(*v)).collect();
            let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
            sum.ln() - logits[row[l + 1] as usize]
        };
        (1..row.len() - 1).map(of_position).sum::<f64>()
    };
    rows.iter().map(of_row).sum()
}

#[test]
fn texts_are_measured_over_all_tokens_and_bytes() {
    let world = World::new();
    let run = world.path("run");
    world.train("language", &validated(LANGUAGE), "run", &[]).expect_success();
    let tokenizer = Tokenizer::load(run.join("tokenizer.json")).unwrap();
    let model = LanguageModel::load(&latest(&run)).unwrap();
    let captions: Vec<String> = (0..6).map(|i| format!("a {} square", colour(i))).collect();
    let rows: Vec<Vec<u32>> = captions.iter().map(|c| caption_tokens(c, &tokenizer)).collect();
    let (nats, n_bytes) = (nats(&model, &rows), captions.iter().map(String::len).sum::<usize>());
    // Of each row all but its begin and its image mark.
    let n_tokens = rows.iter().map(|row| row.len() - 2).sum::<usize>();
    let nll = nats / n_tokens as f64;
    for (measure, expected) in [
        ("nll", nll),
        ("perplexity", nll.exp()),
        ("bits_per_byte", nats / 2.0_f64.ln() / n_bytes as f64),
    ] {
        let found = value(&run, 8, measure);
        assert!((found / expected - 1.0).abs() < 1e-5, "{measure}: {found}, not {expected}");
    }
}

/// Negative log-likelihood per token of all captions, of a model in a folder.
fn nll_of_captions(folder: &Path, tokenizer: &Tokenizer) -> f64 {
    let model = LanguageModel::load(folder).unwrap();
    let captions = (0..6).map(|i| format!("a {} square", colour(i)));
    let rows: Vec<Vec<u32>> = captions.map(|c| caption_tokens(&c, tokenizer)).collect();
    let n_tokens = rows.iter().map(|row| row.len() - 2).sum::<usize>();
    nats(&model, &rows) / n_tokens as f64
}

#[test]
fn averages_are_validated_in_place_of_the_weights_and_leave_them_as_they_were() {
    let world = World::new();
    let raw = format!("{}\n[ema]\ndecay = 0.9\n", validated(LANGUAGE));
    let averaged = raw.replace("batches = 9", "batches = 9\nweights = \"ema\"");
    world.train("language", &raw, "raw", &[]).expect_success();
    world.train("language", &averaged, "averaged", &[]).expect_success();
    let [raw, averaged] = ["raw", "averaged"].map(|run| world.path(run));
    let tokenizer = Tokenizer::load(averaged.join("tokenizer.json")).unwrap();
    let of_raw = nll_of_captions(&latest(&averaged), &tokenizer);
    let of_averages = nll_of_captions(&latest(&averaged).join("ema"), &tokenizer);
    assert!((of_raw / of_averages - 1.0).abs() > 1e-3, "{of_raw} and {of_averages} are alike");
    for (run, expected) in [(&raw, of_raw), (&averaged, of_averages)] {
        let found = value(run, 8, "nll");
        assert!((found / expected - 1.0).abs() < 1e-5, "{found}, not {expected}");
    }
    for file in ["model.safetensors", "optimizer.safetensors", "ema/model.safetensors"] {
        let [raw, averaged] =
            [&raw, &averaged].map(|run| std::fs::read(latest(run).join(file)).unwrap());
        assert!(raw == averaged, "{file} differs");
    }
}

#[test]
fn a_flamingo_is_exactly_blind_to_held_out_images_while_its_gates_are_closed() {
    let world = World::with_towers();
    let set = ["--set", "optimizer.lr=1e-30", "--stop-after", "2"];
    world.train("flamingo", &validated(FLAMINGO), "closed", &set).expect_success();
    world.train("flamingo", &validated(FLAMINGO), "open", &[]).expect_success();
    for images in ["blindness_shuffled", "blindness_blank"] {
        assert!(value(&world.path("closed"), 2, images).abs() < f64::EPSILON, "{images}");
        assert!(value(&world.path("open"), 8, images).abs() > 1e-6, "{images}");
    }
    // With the gates closed it is the language model on the same rows.
    let closed = value(&world.path("closed"), 2, "nll");
    let model = LanguageModel::load(&latest(&world.path("language"))).unwrap();
    let tokenizer = Tokenizer::load(world.path("language").join("tokenizer.json")).unwrap();
    let rows = (0..6).map(|i| caption_tokens(&format!("a {} square", colour(i)), &tokenizer));
    let rows: Vec<Vec<u32>> = rows.collect();
    let n_tokens = rows.iter().map(|row| row.len() - 2).sum::<usize>();
    let expected = nats(&model, &rows) / n_tokens as f64;
    assert!((closed / expected - 1.0).abs() < 1e-5, "{closed}, not {expected}");
}

#[test]
fn images_and_captions_find_each_other_once_they_are_learned() {
    let world = World::new();
    let classes = "classes = [\"red\", \"green\", \"blue\", \"yellow\", \"purple\", \"pink\"]\n\
                   prompts = [\"a {} square\"]\n";
    let config = format!("{}{classes}", validated(CONTRASTIVE).replace("every = 2", "every = 79"));
    let by_heart = [
        "steps=79",
        "data.pairs.flip_probability=0.0",
        "data.pairs.space_prefix_probability=0.0",
        "optimizer.schedule=\"constant\"",
        "checkpoint_every=100",
    ];
    let set: Vec<&str> = by_heart.into_iter().flat_map(|set| ["--set", set]).collect();
    world.train("contrastive", &config, "run", &set).expect_success();
    let run = world.path("run");
    for measure in ["image_to_text_r1", "text_to_image_r1", "class_accuracy"] {
        assert!((value(&run, 79, measure) - 1.0).abs() < f64::EPSILON, "{measure}");
    }
    // No caption names pink, and orange is no class.
    assert!((value(&run, 79, "class_rows") - 5.0).abs() < f64::EPSILON);

    // Of a model that knows nothing, against all similarities one by one.
    let fresh = ["--set", "optimizer.lr=1e-30", "--stop-after", "2"];
    world.train("contrastive", &validated(CONTRASTIVE), "fresh", &fresh).expect_success();
    let run = world.path("fresh");
    let clip = Clip::load(&latest(&run)).unwrap();
    let tokenizer = Tokenizer::load(run.join("tokenizer.json")).unwrap();
    let rows: Vec<_> = (0..6).map(|i| embed(&clip, &tokenizer, i)).collect();
    let similar = |i: usize, j: usize| {
        let (image, text) = (&rows[i].0, &rows[j].1);
        image.iter().zip(text).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
    };
    let first = |query: usize, similar: &dyn Fn(usize) -> f64| {
        (0..6).all(|other| other == query || similar(other) < similar(query))
    };
    let to_text = (0..6).filter(|i| first(*i, &|j| similar(*i, j))).count() as f64 / 6.0;
    let to_image = (0..6).filter(|j| first(*j, &|i| similar(i, *j))).count() as f64 / 6.0;
    assert!((value(&run, 2, "image_to_text_r1") - to_text).abs() < f64::EPSILON, "{to_text}");
    assert!((value(&run, 2, "text_to_image_r1") - to_image).abs() < f64::EPSILON, "{to_image}");
    assert!((value(&run, 2, "image_to_text_r10") - 1.0).abs() < f64::EPSILON);
}

/// Image and caption of the `i`-th pair, embedded by themselves.
fn embed(clip: &Clip, tokenizer: &Tokenizer, i: usize) -> (Vec<f32>, Vec<f32>) {
    let Row::ImageText(pair) = pair(i) else { panic!("a pair") };
    let image = flamingo_dataset::ImageConfig {
        size: 16,
        fit: flamingo_dataset::Fit::MeanPad,
        mean: [0.5; 3],
        std: [0.25; 3],
    };
    let pixels = flamingo_dataset::image_pixels(&pair.image.bytes, &image, None).unwrap();
    let tokens = caption_tokens(&pair.caption, tokenizer);
    let text = clip.embed_texts(&tokens, tokens.len(), &[tokens.len()]).unwrap();
    (clip.embed_images(&pixels).unwrap(), text)
}

/// Ends of its own accord after step 3: what is learned is called worse.
fn early(patience: u64) -> String {
    let validated = validated(LANGUAGE).replace("every = 2", "every = 1");
    let keys =
        format!("metric = \"validation.held.nll\"\npatience = {patience}\nbetter = \"higher\"");
    format!("{validated}\n[early_stop]\n{keys}\n").replace("keep_last = 2", "keep_last = 1")
}

#[test]
fn a_run_ends_early_and_its_best_checkpoint_stays() {
    let world = World::new();
    let files = |run: &str| {
        let run = world.path(run);
        let checkpoints = std::fs::read_dir(run.join("checkpoints")).unwrap();
        let names = checkpoints.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        let read = |name: &str| std::fs::read(latest(&run).join(name)).unwrap();
        let of_latest = ["model.safetensors", "state.json", "optimizer.safetensors"].map(read);
        let best = std::fs::read_to_string(run.join("best")).unwrap();
        (names, best, of_latest, metrics(&run).len())
    };
    let finished = world.train("language", &early(2), "whole", &[]);
    finished.expect_success();
    let told = finished.stderr();
    assert!(told.contains("early stop: validation.held.nll was best after step 1"), "{told}");
    let whole = files("whole");
    assert_eq!(whole.0, ["step-1", "step-3"]);
    assert_eq!((&*whole.1, whole.3), ("step-1\n", 3));
    world.train("language", &early(2), "whole", &["--resume"]).expect_success();
    assert!(files("whole") == whole, "a run that has ended goes on");

    for step in ["1", "2"] {
        let run = format!("stopped-{step}");
        world.train("language", &early(2), &run, &["--stop-after", step]).expect_success();
        // As a crash between the moves of `latest` and `best` leaves it.
        std::fs::write(world.path(&run).join("best"), "step-7\n").unwrap();
        world.train("language", &early(2), &run, &["--resume"]).expect_success();
        assert!(files(&run) == whole, "stopped after step {step}");
    }

    let changed = |config: &str, key: &str| {
        let finished = world.train("language", config, "whole", &["--resume"]);
        assert_eq!(finished.code(), Some(2), "{}", finished.stderr());
        assert!(finished.stderr().contains(key), "no `{key}` in {}", finished.stderr());
    };
    changed(&early(3), "`early_stop.patience` is 3");
    changed(&early(2).replace("batches = 9", "batches = 1"), "`validation.batches` is 1");
}

#[test]
fn a_validation_may_change_at_a_resume_but_a_name_stays_with_its_corpus() {
    let world = World::new();
    let stop = ["--stop-after", "2"];
    world.train("language", &validated(LANGUAGE), "run", &stop).expect_success();
    let often = validated(LANGUAGE).replace("every = 2", "every = 1");
    world.write_corpus("others", &(2..8).map(pair).collect::<Vec<_>>());
    let others = often
        .replace("name = \"held\"\ncorpus = \"pairs\"", "name = \"held\"\ncorpus = \"others\"");
    let finished = world.train("language", &others, "run", &["--resume"]);
    assert_eq!(finished.code(), Some(1), "{}", finished.stderr());
    assert!(finished.stderr().contains("validation's dataset `held`"), "{}", finished.stderr());
    world.train("language", &often, "run", &["--resume"]).expect_success();
    assert!(!found(&world.path("run"), 3).is_empty());
}

#[test]
fn a_validation_keeps_to_its_weights() {
    let world = World::new();
    let averaged = |config: &str| config.replace("batches = 9", "batches = 9\nweights = \"ema\"");
    let raw = validated(LANGUAGE);
    for (name, first, other, was, now) in [
        ("raw", raw.clone(), averaged(&raw), "raw", "ema"),
        ("ema", averaged(&raw), raw.clone(), "ema", "raw"),
    ] {
        let train = |config: &str, more: &[&str]| {
            let args = [&["--set", "ema.decay=0.5"], more].concat();
            world.train("language", config, name, &args)
        };
        train(&first, &["--stop-after", "2"]).expect_success();
        let refused = train(&other, &["--resume"]);
        assert_eq!(refused.code(), Some(2), "{}", refused.stderr());
        let stderr = refused.stderr();
        let words = format!("`validation.weights` is \"{now}\"");
        assert!(stderr.contains(&words) && stderr.contains(&format!("\"{was}\"")), "{stderr}");
        train(&first, &["--resume", "--stop-after", "4"]).expect_success();
        // It may be left out; what comes back is a new one.
        train(LANGUAGE, &["--resume", "--stop-after", "5"]).expect_success();
        train(&other, &["--resume"]).expect_success();
    }
}

#[test]
fn what_cannot_be_validated_is_refused_before_the_first_step() {
    let world = World::with_towers();
    let check = |stage: &str, config: &str, from: &str, to: &str, words: &str| {
        let config = validated(config);
        assert!(config.contains(from), "{from}");
        let finished = world.train(stage, &config.replace(from, to), "refused", &[]);
        assert_eq!(finished.code(), Some(2), "{}", finished.stderr());
        assert!(finished.stderr().contains(words), "no `{words}` in {}", finished.stderr());
        assert!(!world.path("refused").exists());
    };
    let language = |from: &str, to: &str, words: &str| check("language", LANGUAGE, from, to, words);
    language("every = 2", "every = 0", "`validation.every` is 0, expected at least 1");
    language("batches = 9", "batches = 0", "`validation.batches` is 0");
    let words = "`validation.weights` is \"ema\", expected \"raw\" without a section [ema]";
    language("batches = 9", "batches = 9\nweights = 'ema'", words);
    let held = "name = \"held\"\ncorpus = \"pairs\"\nbatch = 2\ntokens = 24";
    let changed = |from: &str, to: &str| held.replace(from, to);
    let images = format!("{held}\nimages = 1");
    language(held, &images, "`validation.data.held.images` is 1, expected 0");
    let long = changed("tokens = 24", "tokens = 64");
    language(
        held,
        &long,
        "`validation.data.held.tokens` is 64, expected at most the model's context",
    );
    let large = changed("batch = 2", "batch = 7");
    language(held, &large, "`validation.data.held.batch` is 7, expected a batch that the 6 rows");
    language(held, &format!("{held}\nweight = 1.0"), "unknown field `weight`");
    language(held, &format!("{held}\nclasses = ['a', 'b']"), "only in the contrastive stage");
    let added = |stage: &str, config: &str, keys: &str, words: &str| {
        let config = format!("{}{keys}\n", validated(config));
        let finished = world.train(stage, &config, "refused", &[]);
        assert_eq!(finished.code(), Some(2), "{}", finished.stderr());
        assert!(finished.stderr().contains(words), "no `{words}` in {}", finished.stderr());
        assert!(!world.path("refused").exists());
    };
    for metric in ["loss", "validation.other.nll", "validation.held.image_to_text_r1"] {
        let stop = format!("[early_stop]\nmetric = {metric:?}\npatience = 1\nbetter = 'lower'");
        added("language", LANGUAGE, &stop, "`early_stop.metric`");
    }
    let stop = |metric: &str| {
        format!(
            "[early_stop]\nmetric = 'validation.held.{metric}'\npatience = 1\nbetter = 'higher'"
        )
    };
    for metric in ["class_accuracy", "class_rows"] {
        let words = "expected a measure that needs no `validation.data.held.classes`";
        added("contrastive", CONTRASTIVE, &stop(metric), words);
    }
    // Without one, there is a validation after the last step.
    let late = ["--set", "validation.every=9"];
    let finished = world.train("language", &early(2), "refused", &late);
    let words = "`validation.every` is 9, expected at most `steps`, 8,";
    assert_eq!(finished.code(), Some(2), "{}", finished.stderr());
    assert!(finished.stderr().contains(words), "{}", finished.stderr());
    assert!(!world.path("refused").exists());
    for (keys, words) in [
        ("classes = ['a']", "`validation.data.held.classes` is one class"),
        ("classes = ['a', 'A']", "expected each class once"),
        ("classes = ['dark red', 'dark-red']", "is \"dark-red\", expected each class once"),
        ("classes = ['red', '?!']", "is \"?!\", expected a class with a letter or digit"),
        ("classes = ['a', 'b']\nprompts = ['an a']", "`validation.data.held.prompts` is an a"),
        ("pack = 2", "`validation.data.held.pack` is 2"),
    ] {
        added("contrastive", CONTRASTIVE, keys, words);
    }
}

#[test]
fn a_dataset_that_was_left_out_for_a_while_comes_back_as_what_it_was() {
    let world = World::new();
    let with = validated(LANGUAGE);
    let train = |config: &str, more: &[&str]| world.train("language", config, "run", more);
    train(&with, &["--stop-after", "2"]).expect_success();
    train(LANGUAGE, &["--resume", "--stop-after", "4"]).expect_success();
    let (was, other) =
        ("name = \"held\"\ncorpus = \"pairs\"", "name = \"held\"\ncorpus = \"clips\"");
    assert!(with.contains(was));
    let error = train(&with.replace(was, other), &["--resume"]).stderr();
    assert!(error.contains("digest of the validation's dataset `held`"), "{error}");
    train(&with, &["--resume"]).expect_success();
}
