//! Models behind a chat interface, and files of predictions: real requests to a server on this machine.

use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use crate::models::{error, evaluate, samples};
use crate::server::{Asked, Reaction, Server};
use crate::world::World;

const NAMES: [&str; 3] = ["caption_0shot", "caption_2shot", "label_2shot"];

fn ask(world: &World, server: &Server, out: &Path, more: &[&str]) -> Output {
    let more = [&["--shots", "0,2", "--endpoint", &server.address], more].concat();
    evaluate(world, "openai:some/model", out, &more)
}

fn all_samples(out: &Path) -> Vec<Vec<Value>> {
    NAMES.iter().map(|name| samples(out, name)).collect()
}

/// Text and pictures of a request.
fn parts(asked: &Asked) -> (String, Vec<String>) {
    let content = &asked.body["messages"][1]["content"];
    if let Some(text) = content.as_str() {
        return (text.to_owned(), Vec::new());
    }
    let (mut text, mut images) = (String::new(), Vec::new());
    for part in content.as_array().unwrap() {
        if let Some(url) = part["image_url"]["url"].as_str() {
            text.push_str("[image]");
            images.push(url.to_owned());
        } else {
            text.push_str(part["text"].as_str().unwrap());
        }
    }
    (text, images)
}

/// Whether candidates are listed.
fn is_closed(asked: &Asked) -> bool {
    parts(asked).0.contains("Reply with one of these")
}

/// A number that stands for a request.
fn number(asked: &Asked) -> usize {
    asked.body.to_string().bytes().map(usize::from).sum()
}

/// Says the caption `a red star`, and of labels one that is there, or none.
fn says(asked: &Asked) -> Reaction {
    let answers = ["It is Red.", "BLUE", "mauve"];
    let text = if is_closed(asked) { answers[number(asked) % 3] } else { " a red star" };
    Reaction::Says(text.to_owned())
}

#[test]
fn a_server_is_asked_with_pictures_between_texts_and_nothing_twice() {
    let world = World::new();
    let server = Server::start(|asked, _| says(asked));
    let out = world.path("out");
    let output = ask(&world, &server, &out, &["--concurrency-max", "3"]);
    assert!(output.status.success(), "{}", error(&output));
    assert!(server.most_at_a_time() <= 3);
    let asked = server.asked();
    // 16 pictures with captions and 20 with labels, at 0 and 2 shots.
    assert_eq!(asked.len(), 2 * (16 + 20));
    for one in &asked {
        assert!(one.head.starts_with("POST /v1/chat/completions HTTP/1.1"), "{}", one.head);
        assert!(!one.head.to_lowercase().contains("authorization"));
        assert_eq!(
            (&one.body["model"], &one.body["temperature"]),
            (&json!("some/model"), &json!(0))
        );
        let (text, images) = parts(one);
        assert!(images.iter().all(|url| url.starts_with("data:image/png;base64,")));
        let is_last = |text: &str| text.ends_with("[image]shows:") || is_closed(one);
        assert!(is_last(&text), "{text}");
        match images.len() {
            3 => assert_eq!(text.matches("[image]shows: ").count(), 2, "{text}"),
            // Candidates tell the format; captions have two shots without their pictures.
            1 => assert_eq!(text.matches("shows: ").count(), if is_closed(one) { 0 } else { 2 }),
            n => panic!("{n} pictures: {text}"),
        }
        if !is_closed(one) {
            assert_eq!(one.body["max_tokens"], 8);
        }
    }
    let label = samples(&out, "label_2shot");
    let said = |text: &str| label.iter().filter(|it| it["prediction"] == text).count();
    assert_eq!(said("red") + said("blue") + said("mauve"), 20);
    assert!(said("mauve") > 0 && said("red") > 0);
    for sample in &label {
        let sum: f64 = sample["log_likelihoods"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it.as_f64().unwrap())
            .sum();
        let expected = if sample["prediction"] == "mauve" { 0.0 } else { 1.0 };
        assert!((sum - expected).abs() < 1e-9, "{sample}");
        if sample["prediction"] == "mauve" {
            assert_eq!(sample["credit"]["accuracy"], 0.0, "no candidate is guessed");
        }
    }
    let results: Value =
        serde_json::from_slice(&std::fs::read(out.join("results.json")).unwrap()).unwrap();
    assert_eq!(results["results"]["label_2shot"]["unmatched_answers"], said("mauve"));
    assert_eq!(results["results"]["caption_2shot"].get("unmatched_answers"), None);

    let expected = all_samples(&out);
    for name in NAMES {
        std::fs::remove_file(out.join(format!("samples_{name}.jsonl"))).unwrap();
    }
    let output = ask(&world, &server, &out, &[]);
    assert!(output.status.success(), "{}", error(&output));
    assert_eq!(server.asked().len(), asked.len(), "every answer was kept");
    assert_eq!(all_samples(&out), expected);
}

#[test]
fn troubles_that_pass_change_no_answer() {
    let world = World::new();
    let calm = Server::start(|asked, _| says(asked));
    let out = world.path("calm");
    assert!(ask(&world, &calm, &out, &["--limit", "4"]).status.success());
    let stormy = Server::start(|asked, before| {
        let now = "Retry-After: 0\r\n";
        match (number(asked) % 5, before) {
            (0, 0 | 1) => Reaction::Status("429 Too Many Requests", now, b"slow down".to_vec()),
            (1, 0) => Reaction::Status("503 Service Unavailable", now, b"<html>".to_vec()),
            (2, 0) => Reaction::HangUp,
            (3, 0) => Reaction::Body(b"{\"choices\": [{\"message\": ".to_vec()),
            (4, 0) => Reaction::Silence,
            _ => says(asked),
        }
    });
    let troubled = world.path("stormy");
    let output = ask(&world, &stormy, &troubled, &["--limit", "4", "--timeout", "1"]);
    assert!(output.status.success(), "{}", error(&output));
    assert_eq!(all_samples(&troubled), all_samples(&out));
    assert!(stormy.asked().len() > calm.asked().len());
}

#[test]
fn troubles_that_stay_stop_the_evaluation_and_keep_what_was_answered() {
    let world = World::new();
    let check = |server: &Server, more: &[&str], expected: &[&str]| {
        let out = tempfile::tempdir().unwrap();
        let more = [&["--limit", "3"], more].concat();
        let message = error(&ask(&world, server, out.path(), &more));
        for part in expected.iter().chain(&["/v1/chat/completions at item `query-"]) {
            assert!(message.contains(part), "{part} in {message}");
        }
    };
    let key = "a key that is wrong";
    let refuses = Server::start(move |_, _| Reaction::Status("401 Unauthorized", "", key.into()));
    check(&refuses, &[], &["401 Unauthorized", key]);
    let mut items: Vec<Value> = refuses.asked().into_iter().map(|asked| asked.body).collect();
    items.dedup();
    assert_eq!(items.len(), refuses.asked().len(), "it is asked once");
    let busy = Server::start(|_, _| {
        Reaction::Status("500 Oops", "Retry-After: 0\r\n", b"busy\n\x1b[31m".to_vec())
    });
    check(&busy, &["--retries", "3"], &["asked 4 times, at last 500 Internal Server Error: busy"]);
    let patient = Server::start(|_, _| {
        Reaction::Status("429 Too Many Requests", "Retry-After: 4000\r\n", Vec::new())
    });
    check(&patient, &[], &["asks for a pause of 4000 s"]);
    let endless = Server::start(|_, _| Reaction::Body(vec![b' '; 9 << 20]));
    check(&endless, &[], &["more than 8388608 bytes"]);
    let odd = Server::start(|_, _| Reaction::Body(b"{}".to_vec()));
    check(&odd, &["--retries", "0"], &["no chat completion", "choices"]);
    let silent = Server::start(|_, _| Reaction::Silence);
    check(&silent, &["--retries", "0", "--timeout", "1"], &["no answer in time"]);
    let elsewhere = Server::start(|_, _| {
        Reaction::Status("302 Found", "Location: http://127.0.0.1:1/\r\n", Vec::new())
    });
    check(&elsewhere, &[], &["302 Found"]);

    // Half of the answers, then the end of the quota.
    let server = Server::start(|asked, _| {
        if number(asked).is_multiple_of(2) {
            Reaction::Status("402 Payment Required", "", Vec::new())
        } else {
            says(asked)
        }
    });
    let out = world.path("out");
    let _ = error(&ask(&world, &server, &out, &["--concurrency-max", "1"]));
    let kept = std::fs::read_to_string(out.join("replies_caption.jsonl")).unwrap().lines().count();
    assert_eq!(kept, server.asked().len() - 1, "all but the last were answered");
}

#[test]
fn the_key_goes_to_the_server_and_nowhere_else() {
    let world = World::new();
    let server = Server::start(|asked, _| {
        if asked.head.contains("Bearer sk-secret") {
            Reaction::Status("400 Bad Request", "", b"too long".to_vec())
        } else {
            Reaction::Status("401 Unauthorized", "", Vec::new())
        }
    });
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
    command.args(["run", "--model", "openai:m", "--endpoint", &server.address, "--shots", "0"]);
    command.args(["--task", "label", "--annotations"]).arg(world.path("label"));
    let output = command.arg("--out").arg(world.path("out")).env("OPENAI_API_KEY", "sk-secret");
    let message = error(&output.output().unwrap());
    assert!(message.contains("400 Bad Request: too long"), "{message}");
    assert!(!message.contains("secret"), "{message}");
    for entry in std::fs::read_dir(world.path("out")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("secret"));
    }
}

#[test]
fn names_and_addresses_of_models_are_checked() {
    let world = World::new();
    let check = |model: &str, more: &[&str], code: i32, expected: &str| {
        let output = evaluate(&world, model, &world.path("out"), more);
        let message = error(&output);
        assert!(message.contains(expected), "{expected} in {message}");
        assert_eq!(output.status.code(), Some(code), "{message}");
    };
    check("openai:m", &[], 2, "go together");
    check("openai:m", &["--endpoint", "not an address"], 2, "--endpoint");
    check("openai:m", &["--endpoint", "ftp://a/v1"], 2, "http:// or https://");
    check("run", &["--endpoint", "http://127.0.0.1:9/v1"], 2, "go together");
    check(
        "openai:m",
        &["--endpoint", "http://127.0.0.1:9/v1", "--retries", "0"],
        1,
        "no connection",
    );
    check("predictions:none.json", &["--shots", "4"], 2, "no --shots");
    check("predictions:none.json", &[], 1, "cannot read none.json");
}

#[test]
fn samples_of_a_run_are_predictions_with_the_same_scores() {
    let world = World::new();
    let run = world.path("run");
    let out = world.path("out");
    let made = evaluate(&world, run.to_str().unwrap(), &out, &["--shots", "2"]);
    assert!(made.status.success(), "{}", error(&made));
    for (task, metric) in [("caption", "cider,none"), ("label", "acc,none")] {
        let again = |file: &Path, name: &str| {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
            command.args(["run", "--task", task, "--annotations"]).arg(world.path(task));
            command.args(["--model", &format!("predictions:{}", file.display())]);
            command.arg("--out").arg(world.path(name)).output().unwrap()
        };
        let file = out.join(format!("samples_{task}_2shot.jsonl"));
        let name = format!("again-{task}");
        let output = again(&file, &name);
        assert!(output.status.success(), "{}", error(&output));
        let score = |out: &Path, round: &str| {
            let bytes = std::fs::read(out.join("results.json")).unwrap();
            let file: Value = serde_json::from_slice(&bytes).unwrap();
            file["results"][format!("{task}_{round}")][metric].clone()
        };
        assert_eq!(score(&world.path(&name), "0shot"), score(&out, "2shot"), "{task}");
        assert!(score(&out, "2shot").is_f64());

        // The same as the official tools take it, and with faults.
        let text = |sample: &Value| json!({ "id": sample["key"], "answer": sample["prediction"] });
        let rows: Vec<Value> = samples(&out, &format!("{task}_2shot")).iter().map(text).collect();
        let write = |rows: &[Value]| {
            let path = world.path("mine.json");
            std::fs::write(&path, json!(rows).to_string()).unwrap();
            path
        };
        let name = format!("official-{task}");
        let output = again(&write(&rows), &name);
        assert!(output.status.success(), "{}", error(&output));
        assert_eq!(score(&world.path(&name), "0shot"), score(&out, "2shot"), "{task}");
        if task == "label" {
            // Candidates by number, as STAR's server takes them.
            let numbered = |sample: &Value| {
                let scores = sample["log_likelihoods"].as_array().unwrap();
                let scores: Vec<f64> = scores.iter().map(|score| score.as_f64().unwrap()).collect();
                let best = (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b]));
                json!({ "id": sample["key"], "answer": best.unwrap() })
            };
            let rows: Vec<Value> = samples(&out, "label_2shot").iter().map(numbered).collect();
            let output = again(&write(&rows), "numbered");
            assert!(output.status.success(), "{}", error(&output));
            assert_eq!(score(&world.path("numbered"), "0shot"), score(&out, "2shot"));
        }
        let mut faulty = rows[1..].to_vec();
        faulty.push(json!({ "id": "nobody", "answer": "" }));
        faulty.push(rows[2].clone());
        let message = error(&again(&write(&faulty), "faulty"));
        for expected in
            ["more than one prediction of query-2", "not asked: nobody", "no prediction of query-0"]
        {
            assert!(message.contains(expected), "{expected} in {message}");
        }
    }
}
