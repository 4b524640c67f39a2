//! A trained Flamingo learns a task from its answers, on larger images, with any of several learning rates.

use std::path::Path;

use flamingo_dataset::{Row, Tokenizer};
use flamingo_model::Tensors;
use serde_json::Value;

use crate::world::{CONTRASTIVE, FLAMINGO, LANGUAGE, World, colour, latest, metrics, pair};

const FINETUNE: &str = r#"
seed = 4
steps = 6
checkpoint_every = 2
keep_last = 2

[optimizer]
lr = 1e-2
warmup_steps = 0
schedule = "exponential"

[image]
size = 24
fit = "mean_pad"
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]

[model]
from = "flamingo"

[validation]
every = 2
batches = 9

[[validation.data]]
name = "held"
corpus = "task"
batch = 3
tokens = 40
images = 1
learn_after = "Answer:"

[[data]]
name = "task"
corpus = "task"
batch = 6
weight = 1.0
tokens = 40
images = 1
flip_probability = 0.0
space_prefix_probability = 0.0
learn_after = "Answer:"
"#;

/// A question about the `index`-th picture.
fn question(index: usize, answer: &str) -> Row {
    let Row::ImageText(mut row) = pair(index) else { panic!("a pair") };
    row.caption = format!("Question: which colour?{answer}");
    Row::ImageText(row)
}

fn answer(index: usize) -> String {
    format!(" Answer: {}", colour(index))
}

/// A world with a trained Flamingo and a corpus of questions, whose texts the language model has read for
/// so many steps.
fn world_after(language_steps: &str) -> World {
    let world = World::new();
    let rows: Vec<Row> = (0..6).map(|index| question(index, &answer(index))).collect();
    world.write_corpus("task", &rows);
    let (steps, language_steps) = (["--set", "steps=2"], ["--set", language_steps]);
    let language =
        LANGUAGE.replace("corpus = \"pairs\"\nbatch = 2", "corpus = \"task\"\nbatch = 6");
    let language =
        language.replace("tokens = 24", "tokens = 40").replace("weight = 0.2", "weight = 1.0");
    world.train("contrastive", CONTRASTIVE, "vision", &steps).expect_success();
    world.train("language", &language, "language", &language_steps).expect_success();
    world.train("flamingo", FLAMINGO, "flamingo", &steps).expect_success();
    world
}

fn world() -> World {
    world_after("steps=2")
}

fn weights(run: &Path) -> Tensors {
    Tensors::open(&latest(run).join("model.safetensors")).unwrap()
}

fn numbers(tensors: &Tensors, name: &str) -> Vec<f32> {
    tensors.get(name).unwrap().to_owned()
}

#[test]
fn a_model_that_is_no_run_is_given_images_of_its_colours() {
    let world = world();
    let to = |run: &str, format: &str, out: &str| {
        world.export(&["--model", run, "--format", format, "--out", out]).expect_success();
    };
    to("flamingo", "flamingo", "exported");
    to("vision", "hugging-face", "vision-hf");
    to("language", "hugging-face", "language-hf");
    let finetune = FINETUNE.replace("from = \"flamingo\"", "from = \"exported\"");
    let flamingo = FLAMINGO
        .replace("vision = \"vision\"", "vision = \"vision-hf\"")
        .replace("language = \"language\"", "language = \"language-hf\"");
    let stop = ["--stop-after", "1"];
    for (stage, config, folder) in
        [("finetune", &finetune, "exported"), ("flamingo", &flamingo, "vision-hf")]
    {
        for (key, value, was) in [
            ("mean", "[0.5, 0.5, 0.49]", "[0.5, 0.5, 0.5]"),
            ("std", "[0.26, 0.25, 0.25]", "[0.25, 0.25, 0.25]"),
            ("fit", "\"squash\"", "\"mean_pad\""),
        ] {
            let set = format!("image.{key}={value}");
            let finished =
                world.train(stage, config, "refused", &[&stop[..], &["--set", &set]].concat());
            let stderr = finished.stderr();
            assert_eq!(finished.code(), Some(2), "{stderr}");
            let words = format!("`image.{key}` is {value}, expected {was}, as in ");
            assert!(stderr.contains(&words), "no `{words}` in {stderr}");
            assert!(stderr.contains(&format!("{folder}/preprocessor_config.json")), "{stderr}");
        }
        world.train(stage, config, &format!("{stage}-run"), &stop).expect_success();
    }
    // It says so of a copy of the copy, too.
    to("exported", "flamingo", "again");
    let [once, twice] = ["exported", "again"]
        .map(|name| std::fs::read(world.path(name).join("preprocessor_config.json")).unwrap());
    assert!(once == twice);
}

/// What PyTorch 2.11 makes of a 2 x 2 grid with `interpolate(size=(3, 3), mode="bicubic")`, as a matrix: a
/// row for each new place, a column for each old one.
const TWO_TO_THREE: [[f32; 4]; 9] = [
    [1.181_147, -0.094_341, -0.094_341, 0.007_535],
    [0.543_403, 0.543_403, -0.043_403, -0.043_403],
    [-0.094_341, 1.181_146, 0.007_535, -0.094_341],
    [0.543_403, -0.043_403, 0.543_403, -0.043_403],
    [0.250_000, 0.250_000, 0.250_000, 0.250_000],
    [-0.043_403, 0.543_403, -0.043_403, 0.543_403],
    [-0.094_341, 0.007_535, 1.181_147, -0.094_341],
    [-0.043_403, -0.043_403, 0.543_403, 0.543_403],
    [0.007_535, -0.094_341, -0.094_341, 1.181_146],
];

#[test]
fn larger_images_need_interpolated_positions_and_nothing_else() {
    let world = world();
    let still = ["--set", "optimizer.lr=1e-30", "--set", "optimizer.weight_decay=0.0"];
    let still = [&still[..], &["--stop-after", "1"]].concat();
    world.train("finetune", FINETUNE, "run", &still).expect_success();
    let (before, after) = (weights(&world.path("flamingo")), weights(&world.path("run")));
    let positions = "vision.position_embedding";
    let (old, new) = (numbers(&before, positions), numbers(&after, positions));
    let width = 16;
    assert_eq!((old.len(), new.len()), (5 * width, 10 * width));
    assert_eq!(old[..width], new[..width], "the class row");
    for (place, row) in TWO_TO_THREE.iter().enumerate() {
        for i in 0..width {
            let of = |(k, weight): (usize, &f32)| weight * old[(1 + k) * width + i];
            let expected: f32 = row.iter().enumerate().map(of).sum();
            let found = new[(1 + place) * width + i];
            assert!((found - expected).abs() < 1e-5, "{place} {i}: {found}, not {expected}");
        }
    }
    for name in ["language.tokens.weight", "vision.patch_embedding.weight", "resampler.latents"] {
        assert_eq!(numbers(&before, name), numbers(&after, name), "{name}");
    }
}

#[test]
fn answers_are_learned_by_all_but_the_language_model() {
    let world = world_after("steps=120");
    world.train("finetune", FINETUNE, "run", &["--set", "steps=60"]).expect_success();
    let lines = metrics(&world.path("run"));
    let loss = |line: &Value| line["loss"].as_f64().unwrap();
    let (first, last) = (loss(&lines[0]), loss(lines.last().unwrap()));
    assert!(last < 0.3 * first, "{first} to {last}");
    let held = |step: usize| lines[step - 1]["observed"]["validation.held.nll"].as_f64().unwrap();
    assert!(held(60) < 0.3 * held(2), "{} to {}", held(2), held(60));
    let tokenizer = Tokenizer::load(world.path("run").join("tokenizer.json")).unwrap();
    // Each answer, its end of chunk and the end.
    let n_tokens = |i: usize| tokenizer.encode(&format!(" {}", colour(i))).len() as u64 + 2;
    assert_eq!(lines[0]["tokens"].as_u64(), Some((0..6).map(n_tokens).sum()));
    let lr = |step: usize| lines[step - 1]["lr"].as_f64().unwrap();
    assert!((lr(31) / lr(1) - 0.1_f64.sqrt()).abs() < 1e-9, "{} {}", lr(1), lr(31));

    let before = weights(&world.path("flamingo"));
    let differs =
        |run: &str, name: &str| numbers(&before, name) != numbers(&weights(&world.path(run)), name);
    assert!(!differs("run", "language.tokens.weight"));
    for name in ["vision.patch_embedding.weight", "resampler.latents"] {
        assert!(differs("run", name), "{name}");
    }
    let frozen = FINETUNE.replace("[model]", "[model]\nvision_weights = \"frozen\"");
    world.train("finetune", &frozen, "frozen", &[]).expect_success();
    assert!(!differs("frozen", "vision.patch_embedding.weight"));
    assert!(differs("frozen", "resampler.latents"));
}

#[test]
fn a_stopped_run_ends_as_one_that_was_not_and_may_be_finetuned_again() {
    let world = world();
    world.train("finetune", FINETUNE, "whole", &[]).expect_success();
    world.train("finetune", FINETUNE, "stopped", &["--stop-after", "3"]).expect_success();
    world.train("finetune", FINETUNE, "stopped", &["--resume"]).expect_success();
    let files = |run: &str| {
        let folder = latest(&world.path(run));
        ["model.safetensors", "optimizer.safetensors", "state.json", "config.json"]
            .map(|name| std::fs::read(folder.join(name)).unwrap())
    };
    assert!(files("whole") == files("stopped"));
    let observed =
        |run: &str| metrics(&world.path(run)).iter().map(|l| l["observed"].clone()).collect();
    let (whole, stopped): (Vec<Value>, Vec<Value>) = (observed("whole"), observed("stopped"));
    assert_eq!(whole, stopped);
    let again = FINETUNE.replace("\"flamingo\"", "\"whole\"").replace("size = 24", "size = 16");
    world.train("finetune", &again, "again", &["--stop-after", "1"]).expect_success();
    assert_eq!(numbers(&weights(&world.path("again")), "vision.position_embedding").len(), 5 * 16);
}

#[test]
fn what_cannot_be_finetuned_is_refused() {
    let world = world();
    let check = |from: &str, to: &str, code: i32, words: &str| {
        assert!(FINETUNE.contains(from), "{from}");
        let finished = world.train("finetune", &FINETUNE.replace(from, to), "refused", &[]);
        assert_eq!(finished.code(), Some(code), "{}", finished.stderr());
        assert!(finished.stderr().contains(words), "no `{words}` in {}", finished.stderr());
    };
    check("size = 24", "size = 20", 2, "`image.size` is 20, expected a size for which");
    check("mean = [0.5,", "mean = [0.4,", 2, "`image.mean` is [0.4");
    let scratch = "[model]\nvision_weights = \"from-scratch\"";
    check("[model]", scratch, 2, "`model.vision_weights` is from-scratch");
    check("\"flamingo\"", "\"language\"", 2, "missing field `image`");
    check("learn_after = \"Answer:\"", "learn_after = \"\"", 2, "learn_after` is empty");
    let tokens = "batch = 6\nweight = 1.0\ntokens = 40";
    check(tokens, &tokens.replace("40", "64"), 2, "`data.task.tokens` is 64");
    let pages = "name = \"task\"\ncorpus = \"pages\"";
    check("name = \"task\"\ncorpus = \"task\"", pages, 1, "`learn_after` is for captions");
    world.write_corpus("silent", &(0..6).map(|i| question(i, "")).collect::<Vec<_>>());
    let silent = "name = \"task\"\ncorpus = \"silent\"";
    check("name = \"task\"\ncorpus = \"task\"", silent, 1, "no answer to learn after `Answer:`");
}

/// The language stage's config, validated, with a grid.
fn grid(keys: &str) -> String {
    let held = "[validation]\nevery = 2\nbatches = 3\n[[validation.data]]\nname = \"held\"\n\
                corpus = \"pairs\"\nbatch = 2\ntokens = 24\n";
    format!("{LANGUAGE}\n{held}\n[grid]\n{keys}\n")
}

fn summary(world: &World, run: &str) -> Value {
    let text = std::fs::read_to_string(world.path(run).join("summary.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn each_point_of_a_grid_is_the_run_that_it_would_be_alone() {
    let world = World::new();
    let config = grid("lr = [1e-2, 3e-5]\n\"data.pairs.weight\" = [0.2, 1.0]");
    let points = [
        "data.pairs.weight=0.2,lr=0.01",
        "data.pairs.weight=0.2,lr=3e-5",
        "data.pairs.weight=1.0,lr=0.01",
        "data.pairs.weight=1.0,lr=3e-5",
    ];
    world.train("language", &config, "grid", &["--stop-after", "3"]).expect_success();
    for point in points {
        assert!(latest(&world.path("grid").join(point)).ends_with("step-3"), "{point}");
    }
    let statuses: Vec<String> = {
        let found = summary(&world, "grid");
        let points = found["points"].as_array().unwrap();
        points.iter().map(|point| point["status"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(statuses, ["under_way"; 4]);
    let again = world.train("language", &config, "grid", &["--resume", "--stop-after", "3"]);
    assert!(again.stderr().contains("(4 of 4): is done"), "{}", again.stderr());
    world.train("language", &config, "grid", &["--resume"]).expect_success();
    let model = |run: &Path| std::fs::read(latest(run).join("model.safetensors")).unwrap();
    let alone = grid("").replace("[grid]", "");
    let set = ["--set", "optimizer.lr=3e-5", "--set", "data.pairs.weight=1.0"];
    world.train("language", &alone, "alone", &set).expect_success();
    assert!(model(&world.path("alone")) == model(&world.path("grid").join(points[3])));

    let found = summary(&world, "grid");
    let lines = found["points"].as_array().unwrap();
    assert_eq!(
        lines.iter().map(|line| line["point"].as_str().unwrap()).collect::<Vec<_>>(),
        points
    );
    let value = |i: usize| lines[i]["best"]["value"].as_f64().unwrap();
    let alone = metrics(&world.path("alone"));
    let nll = |line: &Value| line["observed"]["validation.held.nll"].as_f64();
    let least = alone.iter().filter_map(nll).fold(f64::INFINITY, f64::min);
    assert!((value(3) - least).abs() < f64::EPSILON, "{} and {least}", value(3));
    let best = (0..4).min_by(|i, j| value(*i).total_cmp(&value(*j))).unwrap();
    assert_eq!(found["best"].as_str(), Some(points[best]));
    assert_eq!(lines[3]["final_loss"], alone[7]["loss"]);
    assert_eq!(lines[0]["steps"].as_u64(), Some(8));
    let text = std::fs::read_to_string(world.path("grid/summary.md")).unwrap();
    assert!(text.contains(&format!("Best: {}, validation.held.nll", points[best])), "{text}");
}

#[test]
fn the_best_of_a_point_is_that_of_its_early_stop() {
    let world = World::new();
    let stop = "[early_stop]\nmetric = \"validation.held.nll\"\nbetter = \"lower\"\n\
                patience = 9\nmin_delta = 100.0";
    let config = grid(&format!("lr = [1e-2]\n{stop}"));
    world.train("language", &config, "grid", &[]).expect_success();
    let lines = metrics(&world.path("grid/lr=0.01"));
    let nll = |step: usize| lines[step - 1]["observed"]["validation.held.nll"].as_f64();
    assert!(nll(8) < nll(2), "nothing was learned");
    // Nothing after it was better by so much.
    let best = std::fs::read_to_string(world.path("grid/lr=0.01/best")).unwrap();
    assert_eq!(best, "step-2\n");
    let found = summary(&world, "grid");
    let best = &found["points"][0]["best"];
    assert_eq!((best["step"].as_u64(), best["value"].as_f64()), (Some(2), nll(2)), "{found}");
}

#[test]
fn a_point_that_fails_stands_in_the_summary_and_finished_ones_are_not_run_again() {
    let world = World::new();
    let config = grid("lr = [1e-2, 1e38, 1e-3]");
    let finished = world.train("language", &config, "grid", &[]);
    assert_eq!(finished.code(), Some(1), "{}", finished.stderr());
    assert!(finished.stderr().contains("1 of 3 points failed"), "{}", finished.stderr());
    let statuses = |found: &Value| -> Vec<String> {
        let points = found["points"].as_array().unwrap();
        points.iter().map(|point| point["status"].as_str().unwrap().to_owned()).collect()
    };
    let found = summary(&world, "grid");
    assert_eq!(statuses(&found), ["done", "failed", "done"]);
    assert!(found["points"][1]["error"].as_str().unwrap().contains("step "), "{found}");
    let text = std::fs::read_to_string(world.path("grid/summary.md")).unwrap();
    assert!(text.contains("| lr=1e38 |") && text.contains("is NaN"), "{text}");

    let events = |point: &str| {
        let folder = world.path("grid").join(point).join("tensorboard");
        std::fs::read_dir(folder).unwrap().count()
    };
    let again = world.train("language", &config, "grid", &["--resume"]);
    assert_eq!(again.code(), Some(1), "{}", again.stderr());
    assert!(again.stderr().contains("lr=0.01 (1 of 3): is done"), "{}", again.stderr());
    assert_eq!((events("lr=0.01"), events("lr=0.001")), (1, 1));
    assert_eq!(statuses(&summary(&world, "grid")), statuses(&found));

    // More points may be added; one that has begun is the run that it was.
    let more = grid("lr = [1e-2, 2e-3]");
    world.train("language", &more, "grid", &["--resume"]).expect_success();
    assert_eq!(statuses(&summary(&world, "grid")), ["done", "done"]);
    let other = more.replace("seed = 2", "seed = 3");
    let refused = world.train("language", &other, "grid", &["--resume"]);
    assert_eq!(refused.code(), Some(2), "{}", refused.stderr());
    assert!(refused.stderr().contains("`seed` is 3"), "{}", refused.stderr());
}

#[test]
fn grids_that_cannot_work_are_refused_before_the_first_point() {
    let world = World::new();
    world.train("language", LANGUAGE, "run", &["--stop-after", "1"]).expect_success();
    let check = |keys: &str, run: &str, more: &[&str], words: &str| {
        let finished = world.train("language", &grid(keys), run, more);
        assert_eq!(finished.code(), Some(2), "{}", finished.stderr());
        assert!(finished.stderr().contains(words), "no `{words}` in {}", finished.stderr());
    };
    check("lr = []", "refused", &[], "`grid` is 0 points");
    check("", "refused", &[], "`grid` is 1 points, expected");
    check("lr = [1e-2, 0.01]", "refused", &[], "`grid` is lr=0.01, expected each point once");
    let both = "`grid.lr` is given, expected nothing beside `optimizer.lr`";
    check("lr = [1e-2]\n\"optimizer.lr\" = [1e-3]", "refused", &[], both);
    let rare = ["--set", "validation.every=9"];
    check("lr = [1e-2]", "refused", &rare, "`validation.every` is 9, expected at most `steps`");
    check("lr = [1e-2, -1.0]", "refused", &[], "`optimizer.lr` is -1");
    check("\"optimizer.rate\" = [1.0]", "refused", &[], "rate");
    let nowhere = grid("lr = [1e-2, 1e-3]").replace("corpus = \"pages\"", "corpus = \"nowhere\"");
    let finished = world.train("language", &nowhere, "refused", &[]);
    assert_eq!(finished.code(), Some(1), "{}", finished.stderr());
    assert!(finished.stderr().contains("error: dataset `pages`"), "{}", finished.stderr());
    check("lr = [1e-2]", "run", &["--resume"], "is a run, not the folder of a grid");
    check("lr = [1e-2]", "run", &[], "exists; --resume continues it");
    assert!(!world.path("refused").exists());
}
