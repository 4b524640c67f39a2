//! Models behind a chat interface, and files of predictions: real requests to a server on this machine.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

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
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
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
fn those_that_failed_come_back_no_faster_than_the_pace_allows() {
    let world = World::new();
    let again = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let counts = (again.clone(), most.clone());
    let server = Server::start(move |asked, before| {
        if before == 0 {
            // A server that asks for no pause at all has the pauses of the client.
            let now = "Retry-After: 0\r\n";
            return Reaction::Status("429 Too Many Requests", now, b"slow down".to_vec());
        }
        let (again, most) = &counts;
        most.fetch_max(again.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        // As long as the pauses differ, so that all would meet.
        std::thread::sleep(Duration::from_millis(300));
        again.fetch_sub(1, Ordering::SeqCst);
        says(asked)
    });
    let out = world.path("out");
    let more = ["--limit", "4", "--task", "label", "--annotations"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
    command.args(["run", "--model", "openai:m", "--endpoint", &server.address, "--shots", "0"]);
    let output = command.args(more).arg(world.path("label")).arg("--out").arg(&out).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", error(&output));
    // Four at the start, whose first failure halves them.
    assert_eq!(server.asked().len(), 8);
    assert_eq!(most.load(Ordering::SeqCst), 2);
}

fn results(out: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(out.join("results.json")).unwrap()).unwrap()
}

#[test]
fn what_is_kept_back_or_cut_off_is_counted_and_asked_once() {
    let world = World::new();
    let server = Server::start(|asked, _| {
        if is_closed(asked) {
            let body = r#"{"error": {"code": "content_filter", "message": "no", "status": 400}}"#;
            return Reaction::Status("400 Bad Request", "", body.into());
        }
        let ending = ["length", "content_filter"][number(asked) % 2];
        let choice = json!({ "message": { "content": null }, "finish_reason": ending });
        Reaction::Body(json!({ "choices": [choice] }).to_string().into())
    });
    let out = world.path("out");
    let output = ask(&world, &server, &out, &["--limit", "6"]);
    assert!(output.status.success(), "{}", error(&output));
    let mut bodies: Vec<String> = server.asked().iter().map(|it| it.body.to_string()).collect();
    let n = bodies.len();
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), n);
    let found = results(&out);
    let captions = samples(&out, "caption_2shot");
    assert!(captions.iter().all(|it| it["prediction"] == ""));
    let n_ended = |ending: &str| captions.iter().filter(|it| it["ending"] == ending).count();
    let round = &found["results"]["caption_2shot"];
    for (name, ending) in [("cut_off_answers", "length"), ("kept_back_answers", "content_filter")] {
        assert!(n_ended(ending) > 0, "{ending}");
        assert_eq!(round[name], n_ended(ending), "{ending}");
    }
    let round = &found["results"]["label_2shot"];
    assert_eq!((&round["kept_back_answers"], &round["unmatched_answers"]), (&json!(6), &json!(6)));
    assert_eq!(round["acc,none"], 0.0);
    let told = String::from_utf8(output.stdout).unwrap();
    let (cut, back) = (n_ended("length").to_string(), n_ended("content_filter").to_string());
    let line = |name: &str| {
        let line = told.lines().rfind(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(line("caption_2shot"), ["caption_2shot", "6", "0", &cut, &back], "{told}");
    assert_eq!(line("label_2shot"), ["label_2shot", "6", "6", "0", "6"], "{told}");
    let report = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(report.contains("<td>caption_2shot</td>"), "{told}");
}

#[test]
fn prompts_that_a_server_finds_too_long_are_out_of_context() {
    let world = World::new();
    let server = Server::start(|asked, _| {
        if parts(asked).1.len() < 3 {
            return says(asked);
        }
        let message = "This model's maximum context length is 64 tokens. However, your messages resulted in 99 \
                       tokens.";
        let body = json!({ "error": { "message": message, "code": "context_length_exceeded" } });
        Reaction::Status("400 Bad Request", "", body.to_string().into())
    });
    let out = world.path("out");
    let output = ask(&world, &server, &out, &["--limit", "5"]);
    assert!(output.status.success(), "{}", error(&output));
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    let cell = "out of context (99 tokens, the model holds 64; 5 of 5 queries)";
    assert_eq!(table.matches(cell).count(), 2, "{table}");
    let found = results(&out);
    let round = &found["results"]["label_2shot"];
    assert_eq!((&round["acc,none"], &round["out_of_context"]), (&Value::Null, &json!([99, 64])));
    assert_eq!(round["out_of_context_queries"], 5);
    assert!(found["results"]["label_0shot"]["acc,none"].is_f64());
    let n = server.asked().len();
    assert!(ask(&world, &server, &out, &["--limit", "5"]).status.success());
    assert_eq!(server.asked().len(), n, "it is not asked again");
}

#[test]
fn parts_share_what_a_server_is_asked_and_leave_no_files_of_their_own() {
    let world = World::new();
    let server = Server::start(|asked, _| says(asked));
    let whole = world.path("whole");
    assert!(ask(&world, &server, &whole, &["--limit", "5"]).status.success());
    let n = server.asked().len();
    let out = world.path("out");
    for (index, asked) in [("0/2", n + 4 * 3), ("1/2", n + 4 * 5)] {
        let output = ask(&world, &server, &out, &["--limit", "5", "--index", index]);
        assert!(output.status.success(), "{}", error(&output));
        // 5 queries by turns, of 2 tasks at 2 shot counts.
        assert_eq!(server.asked().len(), asked, "{index}");
    }
    assert!(out.join("replies_label.part-1-of-2.jsonl").is_file());
    assert!(ask(&world, &server, &out, &["--limit", "5"]).status.success());
    assert_eq!(server.asked().len(), 2 * n, "the whole takes over what parts were answered");
    assert_eq!(all_samples(&out), all_samples(&whole));
    let files = std::fs::read_dir(&out).unwrap().map(|it| it.unwrap().file_name());
    let files: Vec<String> = files.map(|it| it.into_string().unwrap()).collect();
    assert!(files.iter().all(|name| !name.contains(".part-")), "{files:?}");
    let n_replies = |task: &str| {
        let path = out.join(format!("replies_{task}.jsonl"));
        std::fs::read_to_string(path).unwrap().lines().count()
    };
    assert_eq!(n_replies("caption") + n_replies("label"), n);
}

/// All that a command wrote: its output and the files of its folder.
fn all_written(output: &Output, out: &Path) -> String {
    let mut all = [&output.stdout[..], &output.stderr].concat();
    for entry in std::fs::read_dir(out).unwrap() {
        all.extend(std::fs::read(entry.unwrap().path()).unwrap());
    }
    String::from_utf8_lossy(&all).into_owned()
}

#[test]
fn what_is_secret_in_an_address_goes_to_the_server_and_nowhere_else() {
    let world = World::new();
    let server = Server::start(|asked, before| {
        // base64 of me:pa$$word
        let is_known = asked.head.to_lowercase().contains("authorization: basic bwu6cgekjhdvcmq=")
            && asked.head.starts_with("POST /v1/chat/completions?token=qu%2Fery HTTP/1.1");
        match (is_known, before) {
            (false, _) => Reaction::Status("401 Unauthorized", "", Vec::new()),
            (true, 0) => says(asked),
            (true, _) => Reaction::Status("403 Forbidden", "", asked.head.clone().into()),
        }
    });
    let address = server.address.replace("http://", "http://me:pa$$word@");
    let address = format!("{address}?token=qu%2Fery");
    let check = |out: &str, succeeds: bool| {
        let more = ["--limit", "2", "--shots", "0", "--endpoint", &address];
        let out = world.path(out);
        let output = evaluate(&world, "openai:m", &out, &more);
        assert_eq!(output.status.success(), succeeds, "{output:?}");
        let all = all_written(&output, &out);
        for secret in
            ["pa$$word", "pa%24%24word", "qu/ery", "qu%2Fery", "cGEkJHdvcmQ", "me:pa", "me@"]
        {
            assert!(!all.contains(secret), "{secret} in {all}");
        }
        assert!(all.contains(&format!("{}/chat/completions", server.address)), "{all}");
    };
    check("out", true);
    // The same once more, to a server that repeats its request as it refuses it.
    check("again", false);
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
            let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
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
