//! Training learns, from the datasets that have a weight, and changes only what it may.

use crate::world::{CONTRASTIVE, FLAMINGO, LANGUAGE, World, clip, latest, metrics};

/// Loss of a dataset at the first and the last step.
fn losses(world: &World, run: &str, dataset: &str) -> (f64, f64) {
    let lines = metrics(&world.path(run));
    let loss = |line: &serde_json::Value| line["losses"][dataset].as_f64().unwrap();
    (loss(&lines[0]), loss(lines.last().unwrap()))
}

/// Arguments that fix the augmentations and the learning rate, and set the number of steps.
fn by_heart(steps: &'static str) -> Vec<&'static str> {
    let sets = [
        "data.pairs.flip_probability=0.0",
        "data.pairs.space_prefix_probability=0.0",
        "optimizer.schedule=\"constant\"",
        "checkpoint_every=100",
        steps,
    ];
    sets.into_iter().flat_map(|set| ["--set", set]).collect()
}

#[test]
fn a_single_batch_is_learned_by_heart_in_every_stage() {
    let world = World::new();

    // Six pairs: a model that knows nothing loses ln 6 in each of the two directions.
    world.train("contrastive", CONTRASTIVE, "vision", &by_heart("steps=80")).expect_success();
    let (first, last) = losses(&world, "vision", "pairs");
    assert!(first > 3.0 && last < 0.5, "contrastive: {first} to {last}");

    let whole = LANGUAGE.replacen("batch = 2", "batch = 6", 1);
    world.train("language", &whole, "language", &by_heart("steps=200")).expect_success();
    let (first, last) = losses(&world, "language", "pages");
    assert!(first > 5.0 && last < 0.4, "language: {first} to {last}");

    // Which of six colours comes in the five tokens after `a` only the image tells: a blind model
    // cannot lose less than ln 6 / 5 nats per token, 0.36.
    let only_pairs = only_pairs(FLAMINGO).replace("batch = 3", "batch = 6");
    let looking = [&by_heart("steps=100")[..], &["--set", "blindness_every=99"]].concat();
    world.train("flamingo", &only_pairs, "flamingo", &looking).expect_success();
    let (first, last) = losses(&world, "flamingo", "pairs");
    assert!(first > 0.36 && last < 0.25, "flamingo: {first} to {last}");

    // With closed gates no image counts; in the end the model needs its own.
    let lines = metrics(&world.path("flamingo"));
    for images in ["shuffled", "blank"] {
        let name = format!("blindness.pairs, images {images}");
        let more = |step: usize| lines[step - 1]["observed"][&name].as_f64();
        assert_eq!((more(1), more(2)), (Some(0.0), None), "{images}");
        assert!(more(100).unwrap() > 0.2, "{images}: {:?}", more(100));
    }
}

/// The config without its other datasets.
fn only_pairs(config: &str) -> String {
    let mut parts = config.split("[[data]]");
    let head = parts.next().unwrap();
    let part = parts.find(|part| part.contains("name = \"pairs\"")).unwrap();
    format!("{head}[[data]]{part}")
}

#[test]
fn a_dataset_without_weight_changes_no_trained_value_and_one_with_weight_does() {
    let world = World::with_towers();
    world.write_corpus("other-clips", &(2..6).map(clip).collect::<Vec<_>>());
    let other = FLAMINGO.replace("corpus = \"clips\"", "corpus = \"other-clips\"");
    let weights = |config: &str, weight: &str, run: &str| {
        let set = format!("data.clips.weight={weight}");
        world.train("flamingo", config, run, &["--set", &set]).expect_success();
        std::fs::read(latest(&world.path(run)).join("model.safetensors")).unwrap()
    };
    let zero = weights(FLAMINGO, "0.0", "zero");
    assert!(zero == weights(&other, "0.0", "zero-other"), "lambda 0 reached the weights");
    let (_, last) = losses(&world, "zero", "clips");
    assert!(last > 0.0, "the loss of a dataset without weight is still watched");
    assert!(zero != weights(FLAMINGO, "0.5", "half"), "lambda 0.5 did not reach the weights");
}

#[test]
fn a_turn_of_a_dataset_without_weight_leaves_weights_moments_and_average_alone() {
    let world = World::new();
    let set = ["mixture=\"round_robin\"", "data.pages.weight=0.0", "ema.decay=0.5"];
    let set: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
    // Pairs have the second and the fourth turn.
    let after = |step: &str| {
        let args = [&set[..], &["--resume", "--stop-after", step]].concat();
        world.train("language", LANGUAGE, "run", &args).expect_success();
        let checkpoint = latest(&world.path("run"));
        let files = ["model.safetensors", "optimizer.safetensors", "ema/model.safetensors"];
        files.map(|file| std::fs::read(checkpoint.join(file)).unwrap())
    };
    let [second, third, fourth] = ["2", "3", "4"].map(after);
    assert!(second == third, "a turn without weight is felt");
    for (file, (third, fourth)) in third.iter().zip(&fourth).enumerate() {
        assert!(third != fourth, "file {file}: a turn with weight is not felt");
    }
    let watched = &metrics(&world.path("run"))[2];
    assert!(watched["losses"]["pages"].as_f64().unwrap() > 0.0, "{watched}");
}

#[test]
fn a_fresh_flamingo_is_its_language_model_and_the_frozen_half_stays() {
    let world = World::with_towers();
    let finished = world.train("flamingo", FLAMINGO, "run", &[]);
    finished.expect_success();
    let stderr = finished.stderr();
    for dataset in ["pages", "pairs", "clips"] {
        assert!(
            stderr.contains(&format!("{dataset}: with gates at 0 the loss equals")),
            "{stderr}"
        );
    }
    let digests: Vec<&str> = stderr
        .lines()
        .filter_map(|line| line.split_once("sha256 "))
        .map(|(_, digest)| digest)
        .collect();
    assert_eq!(digests.len(), 2, "{stderr}");
    assert_eq!(digests[0], digests[1]);

    let lines = metrics(&world.path("run"));
    let mut gates = lines.last().unwrap()["observed"].as_object().unwrap().clone();
    gates.retain(|name, _| name.starts_with("gate."));
    assert_eq!(gates.len(), 4, "two gates in each of two layers: {gates:?}");
    assert!(gates.values().all(|gate| gate.as_f64().unwrap() > 0.0), "{gates:?}");
    let last = lines.last().unwrap();
    assert_eq!(last["images"].as_u64(), Some(2 * 2 + 3 + 1));
    let text_alone = &metrics(&world.path("language"))[0];
    assert_eq!(text_alone["images"].as_u64(), Some(0));
    let objective = last["losses"]["pages"].as_f64().unwrap()
        + 0.2 * last["losses"]["pairs"].as_f64().unwrap()
        + 0.03 * last["losses"]["clips"].as_f64().unwrap();
    assert!((objective - last["loss"].as_f64().unwrap()).abs() < 1e-9);
}

#[test]
fn a_model_without_gates_need_not_begin_as_its_language_model() {
    let world = World::with_towers();
    let ungated = FLAMINGO.replace("every = 1", "every = 1\ngate = \"none\"");
    let finished = world.train("flamingo", &ungated, "run", &["--stop-after", "1"]);
    finished.expect_success();
    assert!(!finished.stderr().contains("with gates at 0"), "{}", finished.stderr());
}

#[test]
fn a_mixture_may_take_turns_or_merge_its_rows() {
    let world = World::new();
    let datasets = |mode: &str| {
        let set = format!("mixture=\"{mode}\"");
        let steps = ["--set", &set, "--set", "steps=3", "--set", "data.pairs.weight=1.0"];
        world.train("language", LANGUAGE, mode, &steps).expect_success();
        let lines = metrics(&world.path(mode));
        let names = lines.iter().map(|line| line["losses"].as_object().unwrap().keys().cloned());
        names.map(Vec::from_iter).collect::<Vec<_>>()
    };
    assert_eq!(datasets("accumulate"), [["pages", "pairs"]; 3]);
    assert_eq!(datasets("round_robin"), [["pages"], ["pairs"], ["pages"]]);
    assert_eq!(datasets("merged"), [["merged"]; 3]);
}

#[test]
fn a_trained_language_model_learns_texts_beside_the_mixture() {
    let world = World::with_towers();
    std::fs::create_dir(world.path("texts")).unwrap();
    std::fs::write(world.path("texts/a.txt"), "a line of text\n\nanother one\n").unwrap();
    let texts = "[[data]]\nname = \"texts\"\ncorpus = \"texts\"\nbatch = 2\nweight = 1.0\ntokens = 24\n\
                 layout = { format = \"text_files\" }\n";
    let config = format!("{FLAMINGO}{texts}");
    let frozen = world.train("flamingo", &config, "frozen", &[]);
    assert_eq!(frozen.code(), Some(2));
    let error = frozen.stderr();
    assert!(error.contains("`data.texts.images` is 0, expected at least 1"), "{error}");

    let trained = [&by_heart("steps=40")[..], &["--set", "model.language_weights=\"fine-tuned\""]];
    world.train("flamingo", &config, "trained", &trained.concat()).expect_success();
    let (first, last) = losses(&world, "trained", "texts");
    assert!(first > 5.0 && last < 2.5, "{first} to {last}");
}
