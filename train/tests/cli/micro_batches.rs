//! A batch that is cut into parts, and what its losses are a mean of.

use serde_json::Value;

use crate::world::{CONTRASTIVE, FLAMINGO, LANGUAGE, World, metrics};

/// Fails unless two numbers of a step are alike but for the rounding of sums.
fn assert_close(what: &str, found: &Value, expected: &Value, tolerance: f64) {
    let numbers = [found, expected].map(|value| value.as_f64().unwrap());
    let error = (numbers[0] - numbers[1]).abs() / numbers[1].abs().max(1.0);
    assert!(error < tolerance, "{what}: {found}, expected {expected}");
}

/// Fails unless both runs measured the same at each step.
pub(crate) fn assert_same_metrics(found: &[Value], expected: &[Value], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        let step = &expected["step"];
        for key in ["step", "tokens", "images", "lr"] {
            assert_eq!(found[key], expected[key], "{key} at step {step}");
        }
        assert_eq!(found.get("corrupt_rows"), expected.get("corrupt_rows"), "at step {step}");
        for key in ["loss", "grad_norm"] {
            let what = format!("{key} at step {step}");
            assert_close(&what, &found[key], &expected[key], tolerance);
        }
        for group in ["losses", "observed"] {
            let [found, expected] = [found, expected].map(|line| line[group].as_object().unwrap());
            assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
            for (name, expected) in expected {
                let what = format!("{group} {name} at step {step}");
                // A quotient of small differences of large sums.
                let times = if name.ends_with(".noise_scale") { 100.0 } else { 1.0 };
                assert_close(&what, &found[name], expected, times * tolerance);
            }
        }
    }
}

#[test]
fn parts_of_a_batch_train_as_the_whole_does_in_any_mixture() {
    let world = World::with_towers();
    // Packed rows, several images in a row, and clips; a batch that others stand in is one of rows of
    // different lengths.
    let base = [
        "--set",
        "data.pages.pack=2",
        "--set",
        "data.clips.batch=2",
        "--set",
        "blindness_every=1",
        "--set",
        "gates_every=1",
    ];
    let merged = [
        "mixture=\"merged\"",
        "data.pages.frames=2",
        "data.pairs.frames=2",
        "data.pairs.weight=1.0",
        "data.clips.weight=1.0",
    ];
    let merged: Vec<&str> = merged.iter().flat_map(|set| ["--set", set]).collect();
    let mixtures = [("accumulate", vec![], [2, 3, 2]), ("merged", merged, [1, 1, 1])];
    for (mixture, more, cuts) in mixtures {
        let train = |name: &str, cuts: [usize; 3]| {
            let sets = ["pages", "pairs", "clips"].iter().zip(cuts);
            let sets: Vec<String> =
                sets.map(|(data, n)| format!("data.{data}.micro_batches={n}")).collect();
            let sets = sets.iter().flat_map(|set| ["--set", set.as_str()]);
            let args: Vec<&str> =
                base.into_iter().chain(more.iter().copied()).chain(sets).collect();
            let run = format!("{mixture}-{name}");
            world.train("flamingo", FLAMINGO, &run, &args).expect_success();
            metrics(&world.path(&run))
        };
        let blind = |line: &Value| {
            let mut line = line.clone();
            // Images are shuffled among the rows of a part.
            line["observed"].as_object_mut().unwrap().retain(|name, _| !name.contains("shuffled"));
            line
        };
        let [whole, cut] = [train("whole", [1, 1, 1]), train("cut", cuts)]
            .map(|lines| lines.iter().map(blind).collect::<Vec<_>>());
        assert!(whole[0]["observed"].as_object().unwrap().keys().any(|key| key.contains("blank")));
        assert_same_metrics(&cut, &whole, 1e-5);
    }
}

#[test]
fn a_run_goes_on_with_batches_in_parts_and_remembers_its_normalisation() {
    let world = World::new();
    world.train("language", LANGUAGE, "run", &["--stop-after", "2"]).expect_success();
    let parts = ["--resume", "--set", "data.pages.micro_batches=2", "--stop-after", "4"];
    world.train("language", LANGUAGE, "run", &parts).expect_success();
    let summed = world.train(
        "language",
        LANGUAGE,
        "run",
        &["--resume", "--set", "loss_normalisation=\"sum\""],
    );
    assert_eq!(summed.code(), Some(2), "{}", summed.stderr());
    assert!(summed.stderr().contains("`loss_normalisation` is \"sum\""), "{}", summed.stderr());
}

#[test]
fn a_sum_over_the_tokens_of_a_row_is_told_and_the_mean_as_well() {
    let world = World::new();
    let one = LANGUAGE.split("[[data]]\nname = \"pairs\"").next().unwrap();
    let first = |name: &str, more: &[&str]| {
        let args = [&["--stop-after", "1"], more].concat();
        world.train("language", one, name, &args).expect_success();
        metrics(&world.path(name)).remove(0)
    };
    let mean = first("mean", &[]);
    let sum = first("sum", &["--set", "loss_normalisation=\"sum\""]);
    assert_eq!(sum["losses"], mean["losses"]);
    // Two rows.
    let per_row = mean["tokens"].as_f64().unwrap() / 2.0;
    for key in ["loss", "grad_norm"] {
        let expected = mean[key].as_f64().unwrap() * per_row;
        assert_close(key, &sum[key], &expected.into(), 1e-5);
    }
}

#[test]
fn parts_that_do_not_divide_a_batch_or_a_loss_are_refused_by_key() {
    let world = World::new();
    let refused = |stage: &str, config: &str, set: &[&str], words: &str| {
        let sets: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
        let finished = world.train(stage, config, "refused", &sets);
        assert_eq!(finished.code(), Some(2), "{}", finished.stderr());
        assert!(finished.stderr().contains(words), "{}", finished.stderr());
        assert!(!world.path("refused").exists());
    };
    let key = "`data.pages.micro_batches` is";
    let (divisor, none) = (format!("{key} 3, expected a divisor of batch, 2"), format!("{key} 0"));
    refused("language", LANGUAGE, &["data.pages.micro_batches=3"], &divisor);
    refused("language", LANGUAGE, &["data.pages.micro_batches=0"], &none);
    let merged = ["mixture=\"merged\"", "data.pages.micro_batches=2"];
    let alike = "`data.pairs.micro_batches` is 1, expected 2, as in `pages`, to merge";
    refused("language", LANGUAGE, &merged, alike);
    let whole = "`data.pairs.micro_batches` is 2, expected 1: each pair";
    refused("contrastive", CONTRASTIVE, &["data.pairs.micro_batches=2"], whole);
    let sum = "`loss_normalisation` is sum, expected nothing";
    refused("contrastive", CONTRASTIVE, &["loss_normalisation=\"sum\""], sum);
    let unknown = "`token-mean` or `sum`";
    refused("language", LANGUAGE, &["loss_normalisation=\"mean\""], unknown);
}
