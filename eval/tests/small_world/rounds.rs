//! Rounds of questions: parts that processes share, seeds and orders of shots, shots by likeness, controls.

use std::path::{Path, PathBuf};
use std::process::Command;

use flamingo_model::{Clip, ClipConfig, Flamingo, FlamingoConfig};
use serde_json::Value;

use crate::models::IMAGES;
use crate::run::{check_failure, files, lines, results, single, succeed, text};
use crate::server::{Reaction, Server};
use crate::world::World;

/// The label task at one shot count, with more arguments.
fn labels(world: &World, out: &Path, more: &[&str]) -> Command {
    let mut command = single(&world.path("run"), &world.path("label"), out);
    command.args(more);
    command
}

fn likelihoods(sample: &Value) -> Vec<f64> {
    sample["log_likelihoods"].as_array().unwrap().iter().map(|it| it.as_f64().unwrap()).collect()
}

#[test]
fn parts_merge_to_the_bytes_of_one_run() {
    let world = World::new();
    let (whole, parts) = (world.path("whole"), world.path("parts"));
    let run = |out: &Path, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
        command.arg("run").arg("--model").arg(world.path("run")).args(["--device", "cpu"]);
        for task in ["caption", "label"] {
            command.args(["--task", task, "--annotations"]).arg(world.path(task));
        }
        command.args(["--shots", "0,2", "--out"]).arg(out).args(more);
        text(&succeed(&mut command).stdout)
    };
    run(&whole, &[]);
    let told = run(&parts, &["--index", "1/2"]);
    assert!(told.contains("part 1/2 is done"), "{told}");
    assert!(!parts.join("results.json").exists());
    let part = lines(&parts.join("samples_label_2shot.part-1-of-2.jsonl"));
    assert_eq!(part.len(), 4, "20 queries, the second batch of 16");
    run(&parts, &["--index", "0/2"]);
    assert!(!parts.join("samples_label_2shot.jsonl").exists(), "nothing is whole yet");
    run(&parts, &[]);
    assert_eq!(files(&parts), files(&whole));
    run(&parts, &[]);
    assert_eq!(files(&parts), files(&whole), "merging again changes nothing");
}

#[test]
fn seeds_tell_the_spread_of_shots_from_that_of_queries() {
    let world = World::new();
    let out = world.path("out");
    let table = succeed(&mut labels(&world, &out, &["--demo-seeds", "3,4,5"]));
    assert!(text(&table.stdout).contains("sd over shots"), "{}", text(&table.stdout));
    let file = results(&out);
    let value = |entry: &str, key: &str| file["results"][entry][key].as_f64().unwrap();
    let scores = ["3", "4", "5"].map(|seed| value(&format!("label_1shot_seed{seed}"), "acc,none"));
    let mean = scores.iter().sum::<f64>() / 3.0;
    let variance = scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / 2.0;
    assert!((value("label_1shot", "acc,none") - mean).abs() < 1e-12);
    assert!((value("label_1shot", "acc_demo_sd,none") - variance.sqrt()).abs() < 1e-12);
    assert!(value("label_1shot", "acc_item_stderr,none") > 0.0);
    let shots = |seed: &str| {
        let samples = lines(&out.join(format!("samples_label_1shot_seed{seed}.jsonl")));
        samples.iter().map(|sample| sample["shots"][0].clone()).collect::<Vec<_>>()
    };
    assert_ne!(shots("3"), shots("4"));
    // Samples of one seed are never taken for those of another.
    let one = world.path("one");
    succeed(&mut labels(&world, &one, &[]));
    let told = text(&succeed(&mut labels(&world, &one, &["--demo-seeds", "3"])).stdout);
    assert!(
        !told.contains("sd over shots") && !told.contains("NaN"),
        "one seed has no spread: {told}"
    );
    assert!(
        results(&one)["results"]["label_1shot"].get("acc_demo_sd,none").is_none_or(Value::is_null)
    );
    let alone = lines(&one.join("samples_label_1shot_seed3.jsonl"));
    assert_eq!(alone.iter().map(|it| it["shots"][0].clone()).collect::<Vec<_>>(), shots("3"));
}

#[test]
fn controls_change_what_the_model_sees_and_nothing_where_gates_are_closed() {
    let check = |world: &World, sees: bool| {
        let out = world.path("out");
        let controls = "text-shots,shuffled-images,no-image";
        succeed(&mut labels(world, &out, &["--controls", controls]));
        let right = lines(&out.join("samples_label_1shot.jsonl"));
        for control in controls.split(',') {
            let other = lines(&out.join(format!("samples_label_1shot_{control}.jsonl")));
            assert_eq!(other.len(), right.len());
            let differ = right.iter().zip(&other).filter(|(a, b)| {
                assert_eq!(a["shots"], b["shots"], "the same examples");
                likelihoods(a).iter().zip(likelihoods(b)).any(|(a, b)| (a - b).abs() > 1e-4)
            });
            // Marks of images are tokens, too: without them the text is another one.
            let is_same_text = control == "shuffled-images";
            let expected = if sees || !is_same_text { right.len() } else { 0 };
            let least = if expected == 0 { 0 } else { right.len() / 2 };
            let found = differ.count();
            assert!(found >= least && found <= expected, "{control}, {sees}: {found}");
        }
        let file = results(&out);
        assert!(file["results"]["label_1shot_no-image"]["acc,none"].is_f64());
    };
    check(&World::new(), true);
    let world = World::new();
    world.set_gates(0.0);
    check(&world, false);
}

#[test]
fn rices_shows_what_looks_alike_and_looks_once() {
    let world = World::new();
    let out = world.path("out");
    let rices = ["--shot-choice", "rices", "--shots", "3"];
    succeed(&mut labels(&world, &out, &rices));
    let number = |key: &Value| -> usize {
        key.as_str().unwrap().rsplit('-').next().unwrap().parse().unwrap()
    };
    // Pictures are of one colour, but for a corner; rows of the colour `i / 2 % 4` are asked about it.
    for sample in lines(&out.join("samples_label_3shot.jsonl")) {
        let colour = |key: &Value| number(key) / 2 % 4;
        for shot in sample["shots"].as_array().unwrap() {
            assert_eq!(colour(shot), colour(&sample["key"]), "{sample}");
        }
    }
    let cache = out.join("features_label.jsonl");
    let features = std::fs::read(&cache).unwrap();
    assert_eq!(lines(&cache).len(), 24 + 20);
    std::fs::remove_file(out.join("results.json")).unwrap();
    succeed(&mut labels(&world, &out, &rices));
    assert_eq!(std::fs::read(&cache).unwrap(), features);
    let error = ["--shots", "3"];
    check_failure(
        &mut labels(&world, &out, &error),
        2,
        &["`shot_choice` \"rices\", now \"random\""],
    );
}

#[test]
fn a_model_of_ours_finds_the_examples_of_one_behind_a_server() {
    let world = World::new();
    let server = Server::start(|_, _| Reaction::Says("red".to_owned()));
    let rices = ["--shot-choice", "rices", "--shots", "3"];
    let (own, served) = (world.path("own"), world.path("served"));
    succeed(&mut labels(&world, &own, &rices));
    let run = world.path("run");
    let ask = |with: Option<&Path>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
        command.args(["run", "--model", "openai:m", "--endpoint", &server.address]);
        command.args(["--task", "label", "--annotations"]).arg(world.path("label"));
        if let Some(with) = with {
            command.arg("--rices-with").arg(with);
        }
        command.args(rices).args(["--device", "cpu", "--out"]).arg(&served);
        command
    };
    let blind = ask(None).output().unwrap();
    assert_eq!(blind.status.code(), Some(2));
    assert!(text(&blind.stderr).contains("needs --rices-with RUN"), "{}", text(&blind.stderr));
    assert!(!served.exists(), "nothing stands in the way of the same with --rices-with");
    succeed(&mut ask(Some(&run)));
    let shots = |out: &Path| {
        let samples = lines(&out.join("samples_label_3shot.jsonl"));
        samples.into_iter().map(|sample| sample["shots"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(shots(&served), shots(&own));
    let asked = server.asked().len();
    assert_eq!(asked, 20);
    succeed(&mut ask(Some(&run)));
    assert_eq!(server.asked().len(), asked);
    world.set_gates(0.5);
    check_failure(&mut ask(Some(&run)), 2, &["`rices_with.model_sha256`"]);
}

/// The model of the small world with another vision encoder.
fn write_other_eyes(world: &World) -> PathBuf {
    let (run, other) = (world.path("run"), world.path("other"));
    let clip: ClipConfig = flamingo_model::read_config(&run.join("clip")).unwrap();
    let (from, model) = (other.join("clip"), other.join("model"));
    for folder in [&from, &model] {
        std::fs::create_dir_all(folder).unwrap();
    }
    Clip::new(&clip, 99).unwrap().save(&from).unwrap();
    let config: FlamingoConfig = flamingo_model::read_config(&run).unwrap();
    Flamingo::new(&config, &from, &run.join("language"), 3).unwrap().save(&model).unwrap();
    std::fs::copy(run.join("tokenizer.json"), model.join("tokenizer.json")).unwrap();
    std::fs::write(model.join("preprocessor_config.json"), IMAGES).unwrap();
    model
}

#[test]
fn pictures_are_seen_by_the_model_that_is_named() {
    let world = World::new();
    let other = write_other_eyes(&world);
    let rices = ["--shot-choice", "rices", "--shots", "3"];
    let features = |model: &Path, with: Option<&Path>, name: &str| {
        let out = world.path(name);
        let mut command = single(model, &world.path("label"), &out);
        command.args(rices);
        if let Some(with) = with {
            command.arg("--rices-with").arg(with);
        }
        succeed(&mut command);
        std::fs::read(out.join("features_label.jsonl")).unwrap()
    };
    let run = world.path("run");
    let seen = features(&run, Some(&other), "seen");
    assert_eq!(seen, features(&other, None, "others"));
    assert_ne!(seen, features(&run, None, "own"));
}

#[test]
fn eyes_that_nobody_uses_are_refused() {
    let world = World::new();
    let out = world.path("out");
    let place = |path: &Path| path.display().to_string();
    let check = |model: &str, more: &[&str], expected: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
        command.args(["run", "--model", model, "--rices-with", "run", "--task", "label"]);
        command.arg("--annotations").arg(world.path("label")).args(more).arg("--out").arg(&out);
        let output = command.output().unwrap();
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(expected), "`{expected}` in `{message}`");
        assert!(!out.exists());
    };
    let run = place(&world.path("run"));
    check(&run, &[], "goes with --shot-choice rices");
    let rices = ["--shot-choice", "rices"];
    check("predictions:mine.json", &rices, "no examples are shown");
    check(&run, &[&rices[..], &["--fine-tuned"]].concat(), "no examples are shown");
}

#[test]
fn orders_of_shots_are_averaged() {
    let world = World::new();
    let run = |name: &str, more: &[&str]| {
        let out = world.path(name);
        succeed(&mut labels(&world, &out, &[&["--shots", "2"], more].concat()));
        lines(&out.join("samples_label_2shot.jsonl"))
    };
    let given = run("given", &[]);
    let mean = run("mean", &["--orders", "6"]);
    // Two shots have two orders: the other one is twice the mean less the given one, and a likelihood, too.
    let mut n_differ = 0;
    for (given, mean) in given.iter().zip(&mean) {
        assert_eq!(given["shots"], mean["shots"]);
        for (given, mean) in likelihoods(given).iter().zip(likelihoods(mean)) {
            assert!(2.0 * mean - given < 0.0);
            n_differ += usize::from((given - mean).abs() > 1e-6);
        }
    }
    assert!(n_differ > 50, "{n_differ}");
    assert_eq!(run("two", &["--orders", "2"]), mean, "there are no more than two orders");
}

#[test]
fn a_task_of_ones_own_is_a_file() {
    let world = World::new();
    std::fs::remove_file(world.path("label/task.toml")).unwrap();
    let task = world.path("colours.toml");
    let toml = "name = \"colours\"\nabout = \"which colour\"\nreader = \"corpus-labels\"\n\
                decoding = \"closed-mean\"\nmetrics = [\"accuracy\"]\nquery = \"asked\"\n\
                [templates.flamingo]\nprompt = \"<image>colour:\"\n\
                [templates.bare]\nprompt = \"<image>\"\n\
                [templates.summed]\nprompt = \"<image>colour:\"\ndecoding = \"closed-sum\"\n\
                [splits.asked]\ncorpus = \"query\"\n";
    std::fs::write(&task, toml).unwrap();
    let run_in = |out: &Path, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
        command.arg("run").arg("--model").arg(world.path("run")).args(["--device", "cpu"]);
        command.arg("--task").arg(&task).arg("--annotations").arg(world.path("label"));
        command.args(["--shots", "0", "--out"]).arg(out).args(more);
        command
    };
    let run = |more: &[&str]| run_in(&world.path("out"), more);
    succeed(&mut run(&[]));
    assert!(results(&world.path("out"))["results"]["colours_0shot"]["acc,none"].is_f64());
    // A template may have a rule of its own for the likelihood of an answer.
    let summed = world.path("summed");
    succeed(&mut run_in(&summed, &["--template", "summed"]));
    let first = |out: &Path| likelihoods(&lines(&out.join("samples_colours_0shot.jsonl"))[0]);
    let (means, sums) = (first(&world.path("out")), first(&summed));
    assert!(means.iter().zip(&sums).all(|(mean, sum)| *sum < 1.5 * mean), "{means:?} {sums:?}");
    check_failure(
        &mut run(&["--template", "mine"]),
        2,
        &["`mine`", "one of bare, flamingo, summed"],
    );
    check_failure(&mut run(&["--query-split", "test"]), 2, &["no split `test`", "asked"]);
    check_failure(&mut run(&["--shots", "1"]), 2, &["task `colours` has no examples to show"]);
    std::fs::write(&task, toml.replace("colour:", "{question}")).unwrap();
    check_failure(&mut run(&[]), 2, &["template `flamingo` has {question}", "`query-0`"]);
    std::fs::write(&task, toml.replace("<image>colour:", "colour:")).unwrap();
    check_failure(
        &mut run(&[]),
        2,
        &["`templates.*.prompt` is \"colour:\", expected one `<image>`"],
    );
    std::fs::write(&task, toml.replace("\"accuracy\"", "\"exactness\"")).unwrap();
    check_failure(&mut run(&[]), 2, &["colours.toml line 5", "unknown metric `exactness`"]);
    check_failure(
        Command::new(env!("CARGO_BIN_EXE_flamingo-eval")).args([
            "run",
            "--task",
            "coco2",
            "--annotations",
            ".",
            "--model",
            ".",
            "--out",
            ".",
        ]),
        2,
        &["no task `coco2`"],
    );
}

#[test]
fn a_template_may_show_text_only_shots_where_its_task_shows_none() {
    let world = World::new();
    let task = world.path("own.toml");
    let own = include_str!("../../src/tasks/label.toml").replace(
        "[splits.query]",
        "[templates.telling]\nprompt = \"<image>Output:\"\nzero_shot = \"text-shots\"\n\n[splits.query]",
    );
    std::fs::write(&task, own).unwrap();
    for (template, n_shots) in [("flamingo", 0), ("telling", 2)] {
        let out = world.path(template);
        let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
        command.arg("run").arg("--model").arg(world.path("run")).args(["--device", "cpu"]);
        command.arg("--task").arg(&task).arg("--annotations").arg(world.path("label"));
        command.args(["--shots", "0", "--template", template, "--out"]).arg(&out);
        succeed(&mut command);
        for sample in lines(&out.join("samples_label_0shot.jsonl")) {
            assert_eq!(sample["shots"].as_array().unwrap().len(), n_shots, "{template}: {sample}");
        }
    }
}

#[test]
fn a_model_that_was_finetuned_is_shown_no_examples() {
    let world = World::new();
    let out = world.path("out");
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
    command.arg("run").arg("--model").arg(world.path("run")).args(["--device", "cpu"]);
    command.args(["--fine-tuned", "--task", "caption", "--annotations"]).arg(world.path("caption"));
    succeed(command.arg("--out").arg(&out));
    assert!(results(&out)["results"]["caption_fine-tuned_0shot"]["cider,none"].is_f64());
    for sample in lines(&out.join("samples_caption_fine-tuned_0shot.jsonl")) {
        assert_eq!(sample["shots"], serde_json::json!([]), "{sample}");
    }
}

#[test]
fn samples_score_again_as_they_did() {
    let world = World::new();
    let out = world.path("out");
    succeed(&mut labels(&world, &out, &[]));
    let score = |file: &Path, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
        command.args(["score", "--task", "label", "--annotations"]).arg(world.path("label"));
        command.arg("--predictions").arg(file).args(more);
        command
    };
    let samples = out.join("samples_label_1shot.jsonl");
    let again = succeed(&mut score(&samples, &["--json"])).stdout;
    let again: Value = serde_json::from_slice(&again).unwrap();
    let expected = &results(&out)["results"]["label_1shot"]["acc,none"];
    assert_eq!(&again["scores"]["accuracy"]["value"], expected, "{again}");
    check_failure(
        &mut score(&samples, &["--metric", "vqa:official"]),
        1,
        &["nothing that vqa:official"],
    );
    let all = std::fs::read_to_string(&samples).unwrap();
    let few = world.path("few.jsonl");
    let first = all.split_inclusive('\n').take(3).collect::<String>();
    std::fs::write(&few, first).unwrap();
    check_failure(&mut score(&few, &[]), 1, &["no prediction of", "and 12 more"]);
    let subset = text(&succeed(&mut score(&few, &["--subset"])).stdout);
    assert!(subset.starts_with("3 predictions"), "{subset}");
}

#[test]
fn a_text_with_pictures_is_written_on() {
    let world = World::new();
    let picture = world.path("one.bmp");
    std::fs::write(&picture, crate::world::bmp([220, 20, 20], 7)).unwrap();
    let generate = |text: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
        command.args(["generate", "--device", "cpu", "--max-new-tokens", "6", "--model"]);
        command.arg(world.path("run")).arg(text).args(more);
        command
    };
    let mark = format!("<image:{}>shows:", picture.display());
    let shot = format!("{mark} a red star<EOC>{mark}");
    let written = |text: &str, more: &[&str]| succeed(&mut generate(text, more)).stdout;
    assert_eq!(written(&shot, &[]), written(&shot, &[]));
    assert_ne!(written(&mark, &["--beams", "1"]), written("shows:", &["--beams", "1"]));
    let sampled = |seed: &str| written(&shot, &["--temperature", "1.5", "--seed", seed]);
    assert_eq!(sampled("1"), sampled("1"));
    assert_ne!(sampled("1"), sampled("2"));
    let missing = ["error: gone.jpg: no such picture"];
    check_failure(&mut generate("<image:gone.jpg>shows:", &[]), 1, &missing);
    check_failure(&mut generate(&"word ".repeat(200), &[]), 1, &["model ", "96"]);
}

#[test]
fn parts_look_at_their_own_pictures() {
    let world = World::new();
    let (whole, parts) = (world.path("whole"), world.path("parts"));
    let run = |out: &Path, more: &[&str]| {
        let rices = ["--shot-choice", "rices", "--shots", "3", "--controls", "shuffled-images"];
        succeed(&mut labels(&world, out, &[&rices[..], more].concat()));
    };
    run(&whole, &[]);
    run(&parts, &["--index", "1/2"]);
    assert_eq!(lines(&parts.join("features_label.part-1-of-2.jsonl")).len(), 24 + 4);
    run(&parts, &["--index", "0/2"]);
    run(&parts, &[]);
    for name in
        ["results.json", "samples_label_3shot.jsonl", "samples_label_3shot_shuffled-images.jsonl"]
    {
        assert_eq!(
            std::fs::read(parts.join(name)).unwrap(),
            std::fs::read(whole.join(name)).unwrap()
        );
    }
    assert_eq!(lines(&parts.join("features_label.jsonl")).len(), 24 + 20);
    assert!(!parts.join("features_label.part-1-of-2.jsonl").exists());
}

#[test]
fn a_metric_that_does_not_fit_a_split_is_refused() {
    let world = World::new();
    std::fs::remove_file(world.path("label/task.toml")).unwrap();
    let task = world.path("ranks.toml");
    let toml = "name = \"ranks\"\nabout = \"ranks\"\nreader = \"corpus-labels\"\n\
                decoding = \"closed-sum\"\nmetrics = [\"ndcg\", \"recall\"]\nquery = \"asked\"\n\
                [templates.flamingo]\nprompt = \"<image>colour:\"\n\
                [splits.asked]\ncorpus = \"query\"\n";
    std::fs::write(&task, toml).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
    command.arg("run").arg("--model").arg(world.path("run")).args(["--device", "cpu"]);
    command.arg("--task").arg(&task).arg("--annotations").arg(world.path("label"));
    command.args(["--shots", "0", "--out"]).arg(world.path("out"));
    let expected = ["task `ranks`, split `asked`", "`query-0` has nothing that ndcg could judge"];
    check_failure(&mut command, 2, &expected);
}

#[test]
fn rices_has_no_seeds_and_gains_name_what_they_are_over() {
    let world = World::new();
    let out = world.path("out");
    let rices = ["--shot-choice", "rices", "--demo-seeds", "0,1", "--shots", "3"];
    let controls = ["--controls", "text-shots"];
    let table = succeed(&mut labels(&world, &out, &[&rices[..], &controls].concat()));
    assert!(out.join("samples_label_3shot_seed0.jsonl").exists());
    assert!(!out.join("samples_label_3shot_seed1.jsonl").exists());
    let told = text(&table.stdout);
    assert!(told.contains("gain over 1 shots") && !told.contains("sd over shots"), "{told}");
}

#[test]
fn candidates_are_those_of_the_examples_even_where_none_are_shown() {
    let world = World::new();
    // Answers of queries alone would be fewer.
    let rows =
        [crate::world::row("q".into(), "red".into(), &crate::world::bmp([9; 3], 1), "colour")];
    crate::world::write_corpus(&world.path("few/query"), &rows);
    std::fs::create_dir_all(world.path("few/support")).unwrap();
    for entry in std::fs::read_dir(world.path("label/support")).unwrap() {
        let path = entry.unwrap().path();
        let to = world.path("few/support").join(path.file_name().unwrap());
        std::fs::copy(&path, to).unwrap();
    }
    let run = |model: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
        command.args(["run", "--model", model, "--device", "cpu", "--task", "label"]);
        command.arg("--annotations").arg(world.path("few")).args(more);
        command
    };
    let model = world.path("run").display().to_string();
    let (out, again, tuned) = (world.path("out"), world.path("again"), world.path("tuned"));
    let place = |path: &Path| path.display().to_string();
    succeed(&mut run(&model, &["--shots", "1", "--out", &place(&out)]));
    let samples = format!("predictions:{}", place(&out.join("samples_label_1shot.jsonl")));
    succeed(&mut run(&samples, &["--out", &place(&again)]));
    succeed(&mut run(&model, &["--fine-tuned", "--out", &place(&tuned)]));
    let tuned = lines(&tuned.join("samples_label_fine-tuned_0shot.jsonl"));
    assert_eq!(likelihoods(&tuned[0]).len(), 7);
    let barred = ["--support-split", "query", "--fine-tuned", "--out", &place(&out)];
    check_failure(
        &mut run(&model, &barred),
        2,
        &["--support-split query", "no examples are shown"],
    );
}
