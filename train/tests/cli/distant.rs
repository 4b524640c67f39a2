//! Runs whose corpora lie on a server that fails or hangs.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::resume::assert_same_outcome;
use crate::world::{CONTRASTIVE, LANGUAGE, World, latest, metrics};

/// How the server answers to requests for shards.
const WELL: u8 = 0;
const NEVER: u8 = 1;
const DENIED: u8 = 2;

/// A server of the files of a folder on loopback.
struct Server {
    address: String,
    mode: Arc<AtomicU8>,
    /// Requests that got no answer.
    n_hung: Arc<AtomicUsize>,
}

impl Server {
    fn start(folder: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (mode, n_hung) = (Arc::new(AtomicU8::new(WELL)), Arc::new(AtomicUsize::new(0)));
        let server = Self { address, mode: Arc::clone(&mode), n_hung: Arc::clone(&n_hung) };
        let hung = Arc::new(Mutex::new(Vec::new()));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (folder, mode) = (folder.clone(), Arc::clone(&mode));
                let (n_hung, hung) = (Arc::clone(&n_hung), Arc::clone(&hung));
                std::thread::spawn(move || {
                    let stream = stream.unwrap();
                    // The reader of an answer may go away.
                    let ended = serve(&stream, &folder, &mode);
                    if ended.is_ok_and(|hangs| hangs) {
                        // Not before the stream is kept open.
                        hung.lock().unwrap().push(stream);
                        n_hung.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        server
    }

    fn set(&self, mode: u8) {
        self.mode.store(mode, Ordering::SeqCst);
    }
}

/// Answers requests until the reader goes away; true if one is to get no answer.
fn serve(stream: &TcpStream, folder: &Path, mode: &AtomicU8) -> std::io::Result<bool> {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut first, mut range) = (String::new(), None);
        if reader.read_line(&mut first)? == 0 {
            return Ok(false);
        }
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let line = line.trim().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(bytes) = line.strip_prefix("range: bytes=") {
                let (start, end) = bytes.split_once('-').unwrap();
                range = Some((start.parse::<usize>().unwrap(), end.parse::<usize>().ok()));
            }
        }
        let mut words = first.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let is_shard = path.ends_with(".parquet");
        let mode = if is_shard { mode.load(Ordering::SeqCst) } else { WELL };
        if mode == NEVER {
            return Ok(true);
        }
        let found = std::fs::read(folder.join(path.trim_start_matches('/')));
        let (status, body, place) = match (found, range, mode) {
            (_, _, DENIED) => ("403 Forbidden", Vec::new(), String::new()),
            (Err(_), ..) => ("404 Not Found", Vec::new(), String::new()),
            (Ok(bytes), None, _) => ("200 OK", bytes, String::new()),
            (Ok(bytes), Some((start, end)), _) => {
                let end = end.map_or(bytes.len(), |end| bytes.len().min(end + 1));
                let place = format!("Content-Range: bytes {start}-{}/{}\r\n", end - 1, bytes.len());
                ("206 Partial Content", bytes[start..end].to_vec(), place)
            }
        };
        let mut answer = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{place}Accept-Ranges: bytes\r\nETag: \"one\"\r\n\
             Last-Modified: Wed, 25 Nov 2026 00:00:00 GMT\r\n\r\n",
            body.len()
        )
        .into_bytes();
        if method != "HEAD" {
            answer.extend(body);
        }
        let mut writer = stream;
        writer.write_all(&answer)?;
    }
}

/// Waits for something that happens soon, on a machine of whatever speed.
fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
    let started = Instant::now();
    while !happened() {
        assert!(started.elapsed() < Duration::from_mins(1), "not after a minute: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn send(child: &Child, signal: &str) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
}

fn lines(run: &Path) -> usize {
    std::fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

/// More steps than are made, and a checkpoint only at the end.
const LONG: [&str; 4] = ["--set", "steps=100000", "--set", "checkpoint_every=100000"];

/// The config of the contrastive stage on a server, with a schedule that does not depend on its steps.
fn distant(server: &Server) -> String {
    let corpus = format!("corpus = \"{}/pairs\"", server.address);
    CONTRASTIVE.replace("corpus = \"pairs\"", &corpus).replace("\"linear\"", "\"constant\"")
}

/// Lets a run wait for rows that never come.
fn hang(server: &Server, run: &Path) {
    let n_before = server.n_hung.load(Ordering::SeqCst);
    server.set(NEVER);
    wait_until("a request without answer", || server.n_hung.load(Ordering::SeqCst) > n_before);
    // What was read ahead is used up when no line comes for a while; if not, the step goes on.
    let mut last = (lines(run), Instant::now());
    wait_until("the run to wait", || {
        if lines(run) != last.0 {
            last = (lines(run), Instant::now());
        }
        last.1.elapsed() > Duration::from_millis(300)
    });
}

#[test]
fn a_signal_is_heeded_while_a_server_hangs() {
    let world = World::new();
    let server = Server::start(world.path(""));
    let config = distant(&server);
    for (signal, code) in [("TERM", 0), ("INT", 130)] {
        let run = world.path(signal);
        let mut command = world.command("contrastive", &config, signal, &LONG);
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        wait_until("a step", || lines(&run) > 0);
        hang(&server, &run);
        send(&child, signal);
        // The store would be asked for minutes, and then again.
        let mut child = child;
        wait_until("the end", || child.try_wait().unwrap().is_some());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        let steps = metrics(&run).len();
        assert!(latest(&run).ends_with(format!("step-{steps}")), "{stderr}");

        server.set(WELL);
        let end = (steps + 2).to_string();
        let more = [&LONG[..], &["--resume", "--stop-after", &end]].concat();
        world.train("contrastive", &config, signal, &more).expect_success();
        let whole = format!("{signal}-whole");
        world.train("contrastive", &config, &whole, &more).expect_success();
        assert_same_outcome(&world.path(&whole), &run);
    }
}

#[test]
fn a_signal_before_the_first_rows_leaves_a_run_that_begins_anew() {
    let world = World::new();
    let server = Server::start(world.path(""));
    let config = distant(&server).replace("train]\nvocabulary = 300\nrows_max = 100", "x]");
    world.train("contrastive", CONTRASTIVE, "other", &["--stop-after", "1"]).expect_success();
    let tokenizer = format!("[tokenizer]\npath = {:?}", world.path("other/tokenizer.json"));
    let config = config.replace("[tokenizer.x]", &tokenizer);
    server.set(NEVER);
    let mut command = world.command("contrastive", &config, "run", &LONG);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    wait_until("a request without answer", || server.n_hung.load(Ordering::SeqCst) > 0);
    let run = world.path("run");
    wait_until("the run folder", || run.join("metrics.jsonl").exists());
    send(&child, "TERM");
    wait_until("the end", || child.try_wait().unwrap().is_some());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!run.join("latest").exists(), "there is nothing to go on from");
    server.set(WELL);
    let more = [&LONG[..], &["--resume", "--stop-after", "2"]].concat();
    world.train("contrastive", &config, "run", &more).expect_success();
    assert!(latest(&run).ends_with("step-2"));
}

#[test]
fn a_store_that_denies_its_rows_ends_the_run_at_a_checkpoint() {
    let world = World::new();
    let server = Server::start(world.path(""));
    let config = distant(&server);
    let run = world.path("run");
    let mut command = world.command("contrastive", &config, "run", &LONG);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    wait_until("a step", || lines(&run) > 0);
    server.set(DENIED);
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("error: cannot read the datasets: cannot read http://"), "{stderr}");
    assert!(stderr.contains("/pairs/shard-00000.parquet"), "{stderr}");
    let steps = metrics(&run).len();
    assert!(latest(&run).ends_with(format!("step-{steps}")), "{stderr}");
    server.set(WELL);
    let end = (steps + 2).to_string();
    let more = [&LONG[..], &["--resume", "--stop-after", &end]].concat();
    world.train("contrastive", &config, "run", &more).expect_success();
    world.train("contrastive", &config, "whole", &more).expect_success();
    assert_same_outcome(&world.path("whole"), &run);
}

/// What the validations of a run found, by step.
fn found(run: &Path) -> Vec<Vec<(String, serde_json::Value)>> {
    let of_step = |line: serde_json::Value| {
        let observed = line["observed"].as_object().unwrap().clone();
        observed.into_iter().filter(|(name, _)| name.starts_with("validation.")).collect()
    };
    metrics(run).into_iter().map(of_step).collect()
}

#[test]
fn a_validation_without_rows_ends_the_run_at_a_checkpoint_and_is_made_up_for() {
    let world = World::new();
    let (server, other) = (Server::start(world.path("")), Server::start(world.path("")));
    let validation = format!(
        "[validation]\nevery = 2\nbatches = 9\n[[validation.data]]\nname = \"held\"\n\
         corpus = \"{}/pairs\"\nbatch = 2\ntokens = 24\nimages = 1\n\
         [early_stop]\nmetric = \"validation.held.image_to_text_r1\"\npatience = 9\nbetter = \"higher\"\n",
        other.address
    );
    let config = format!("{}\n{validation}", distant(&server));
    let end = |step: &'static str| [&LONG[..], &["--resume", "--stop-after", step]].concat();
    world.train("contrastive", &config, "whole", &end("5")).expect_success();
    let whole = world.path("whole");
    for (name, mode, signal, code) in [
        ("TERM", NEVER, Some("TERM"), 0),
        ("INT", NEVER, Some("INT"), 130),
        ("denied", DENIED, None, 1),
    ] {
        let run = world.path(name);
        other.set(mode);
        // The second time it is cut off again, before any step.
        for more in [&LONG[..], &end("5")] {
            let n_before = other.n_hung.load(Ordering::SeqCst);
            let mut command = world.command("contrastive", &config, name, more);
            let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
            if let Some(signal) = signal {
                let is_asked = || other.n_hung.load(Ordering::SeqCst) > n_before;
                wait_until("a request without answer", is_asked);
                send(&child, signal);
            }
            wait_until("the end", || child.try_wait().unwrap().is_some());
            let output = child.wait_with_output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{stderr}");
            assert!(latest(&run).ends_with("step-2"), "{stderr}");
            assert_eq!(found(&run), [vec![], vec![]]);
        }
        other.set(WELL);
        world.train("contrastive", &config, name, &end("2")).expect_success();
        assert_eq!(found(&run), found(&whole)[..2]);
        world.train("contrastive", &config, name, &end("5")).expect_success();
        assert_eq!(found(&run), found(&whole));
        assert_same_outcome(&whole, &run);
    }
}

/// What a second signal does.
const SIGTERM: i32 = 15;
const SIGINT: i32 = 2;

#[test]
fn a_second_signal_of_the_other_kind_ends_a_run_at_once_that_waited_for_rows() {
    let world = World::new();
    let server = Server::start(world.path(""));
    let config = distant(&server);
    for (first, second, number) in [("TERM", "INT", SIGINT), ("INT", "TERM", SIGTERM)] {
        let run = world.path(first);
        let mut command = world.command("contrastive", &config, first, &LONG);
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        wait_until("a step", || lines(&run) > 0);
        // The checkpoint that the first signal asks for waits for a reader, who never comes.
        let pipe = run.join("latest.tmp");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        hang(&server, &run);
        send(&child, first);
        let checkpoint = run.join(format!("checkpoints/step-{}", lines(&run)));
        wait_until("a checkpoint that has its name", || checkpoint.exists());
        assert!(child.try_wait().unwrap().is_none(), "the run did not wait for its checkpoint");
        send(&child, second);
        wait_until("the end", || child.try_wait().unwrap().is_some());
        assert_eq!(child.wait().unwrap().signal(), Some(number));

        // Nothing names the checkpoint, so the run begins anew.
        std::fs::remove_file(&pipe).unwrap();
        assert!(!run.join("latest").exists());
        server.set(WELL);
        let more = [&LONG[..], &["--resume", "--stop-after", "3"]].concat();
        world.train("contrastive", &config, first, &more).expect_success();
        let whole = format!("{first}-whole");
        world.train("contrastive", &config, &whole, &more).expect_success();
        assert_same_outcome(&world.path(&whole), &run);
    }
}

#[test]
fn a_second_signal_ends_a_run_at_once_although_its_checkpoint_is_being_written() {
    let world = World::new();
    let run = world.path("run");
    let mut command = world.command("language", LANGUAGE, "run", &LONG);
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    wait_until("a step", || lines(&run) > 0);
    // Writing to it waits for a reader, who never comes.
    let pipe = run.join("latest.tmp");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    send(&child, "TERM");
    let checkpoints = run.join("checkpoints");
    let is_whole = || {
        let mut names = std::fs::read_dir(&checkpoints).into_iter().flatten();
        names.any(|name| name.unwrap().file_name().to_string_lossy().starts_with("step-"))
    };
    wait_until("a checkpoint that has its name", is_whole);
    assert!(child.try_wait().unwrap().is_none(), "the run did not wait for its checkpoint");
    send(&child, "TERM");
    wait_until("the end", || child.try_wait().unwrap().is_some());
    assert_eq!(child.wait().unwrap().signal(), Some(SIGTERM));

    std::fs::remove_file(&pipe).unwrap();
    assert!(!run.join("latest").exists());
    world.train("language", LANGUAGE, "run", &["--resume"]).expect_success();
    world.train("language", LANGUAGE, "whole", &[]).expect_success();
    assert_same_outcome(&world.path("whole"), &run);
}
