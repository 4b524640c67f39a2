//! What a run asks for over the network, how politely, and what becomes of each fault.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arrow::array::{Array, AsArray};
use arrow::datatypes::Int32Type;
use flamingo_dataset::Corpus;
use flamingo_fixtures::{image, scene::Scene};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::fault_server::{Deed, FaultServer, NameServer, Record, picture, response, status};
use crate::program::{files, folder, run, succeed};

/// Limits that make every fault quick.
const QUICK: &str = "contact = \"https://test.example/bot\"\nnetworks_allowed = [\"127.0.0.1/32\"]\nports = []\n\
     connect_timeout_ms = 400\nread_timeout_ms = 400\ntotal_timeout_ms = 3000\nbackoff_ms = 10\n\
     backoff_max_ms = 40\nhost_per_second = 10000.0\n";

fn jpeg(seed: u64) -> Vec<u8> {
    image::jpeg(Scene::random(seed, seed), image::SIZE, seed)
}

/// A list of addresses, a plan, and what a run makes of them.
struct Place {
    _folder: tempfile::TempDir,
    root: String,
}

impl Place {
    /// `names` lead to loopback; `more` are further lines of `[fetch]`.
    fn new(urls: &[String], names: &[&str], more: &str) -> Self {
        let (folder, root) = folder();
        let mut list = String::from("url,caption\n");
        for (i, url) in urls.iter().enumerate() {
            writeln!(list, "\"{url}\",caption {i}").unwrap();
        }
        std::fs::write(format!("{root}/list.csv"), list).unwrap();
        let mut hosts = String::new();
        for name in names {
            writeln!(hosts, "\"{name}\" = \"127.0.0.1\"").unwrap();
        }
        let plan = format!("[fetch]\n{QUICK}{more}\n[fetch.hosts]\n{hosts}");
        std::fs::write(format!("{root}/plan.toml"), plan).unwrap();
        Self { _folder: folder, root }
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.root)
    }

    fn run(&self, out: &str, more: &[&str]) -> String {
        let (plan, list, out) = (self.path("plan.toml"), self.path("list.csv"), self.path(out));
        let fixed = ["alt-text", "--plan", &plan, "--input", &list, "--out", &out];
        succeed(&[&fixed[..], more].concat())
    }

    fn ledger(&self, out: &str) -> Vec<Entry> {
        ledger(Path::new(&self.path(out)))
    }
}

/// A row of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    url: String,
    attempts: i32,
    status: Option<i32>,
    cause: String,
    robots: String,
    final_url: Option<String>,
}

fn ledger(corpus: &Path) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (name, bytes) in files(&corpus.join("ledger")) {
        assert!(name.ends_with(".parquet"));
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes)).unwrap();
        for batch in reader.build().unwrap() {
            let batch = batch.unwrap();
            let text = |name: &str, i: usize| {
                let column = batch.column_by_name(name).unwrap().as_string::<i32>();
                column.is_valid(i).then(|| column.value(i).to_owned())
            };
            let number = |name: &str, i: usize| {
                let column = batch.column_by_name(name).unwrap().as_primitive::<Int32Type>();
                column.is_valid(i).then(|| column.value(i))
            };
            entries.extend((0..batch.num_rows()).map(|i| Entry {
                url: text("url", i).unwrap(),
                attempts: number("attempts", i).unwrap(),
                status: number("http_status", i),
                cause: text("cause", i).unwrap(),
                robots: text("robots", i).unwrap(),
                final_url: text("final_url", i),
            }));
        }
    }
    entries
}

fn shards(corpus: &str) -> Vec<(String, Vec<u8>)> {
    let mut files = files(Path::new(corpus));
    files.retain(|(name, _)| name.starts_with("shard-"));
    files
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// What the server does with each path of `web.example`, and how long its robots.txt is in the way.
fn misbehave(jpeg: &[u8], path: &str, n: usize) -> Deed {
    let moved = |place: &str| status("302 Found", &format!("Location: {place}\r\n"));
    let half = jpeg.len() / 2;
    match path {
        "/robots.txt" => status("404 Not Found", ""),
        "/hang" => Deed::Hang(Vec::new()),
        "/hang-in-body" => Deed::Hang(response("200 OK", "", &jpeg[..half])[..half].to_vec()),
        "/trickle" => Deed::Trickle(
            b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n".to_vec(),
            Duration::from_millis(50),
        ),
        "/short" => {
            let whole = response("200 OK", "", jpeg);
            Deed::Close(whole[..whole.len() - 10].to_vec())
        }
        "/long" => {
            let mut bytes =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {half}\r\n\r\n").into_bytes();
            bytes.extend(jpeg);
            Deed::Close(bytes)
        }
        "/circle" => moved("/circle2"),
        "/circle2" => moved("/circle"),
        "/to-private" => moved("http://10.0.0.1/x.jpg"),
        "/to-metadata" => moved("http://169.254.169.254/latest/meta-data/"),
        "/to-file" => moved("file:///etc/passwd"),
        "/moved" => moved("/ok.jpg?moved"),
        "/bomb" => {
            let body = gzip(&vec![0; 30 << 20]);
            Deed::Send(response("200 OK", "Content-Encoding: gzip\r\n", &body))
        }
        "/gzip" => Deed::Send(response("200 OK", "Content-Encoding: gzip\r\n", &gzip(jpeg))),
        "/huge" => Deed::Hang(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n".to_vec()),
        "/endless" => {
            let mut piece = b"10000\r\n".to_vec();
            piece.extend(vec![7; 0x10000]);
            piece.extend(b"\r\n");
            Deed::Endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(), piece)
        }
        "/busy" if n == 0 => status("429 Too Many Requests", "Retry-After: 1\r\n"),
        "/flaky" if n < 2 => status("503 Service Unavailable", ""),
        "/broken" => status("500 Internal Server Error", ""),
        "/reset" => Deed::Reset(Vec::new()),
        "/reset-in-body" => Deed::Reset(response("200 OK", "", jpeg)[..half].to_vec()),
        "/html" => Deed::Send(response(
            "200 OK",
            "Content-Type: image/jpeg\r\n",
            b"<!doctype html><html><body>Not here any more</body></html>",
        )),
        "/empty" => status("204 No Content", ""),
        "/forbidden" => status("403 Forbidden", ""),
        "/gone" => status("410 Gone", ""),
        "/noai" => Deed::Send(response("200 OK", "X-Robots-Tag: noai\r\n", jpeg)),
        "/no-http" => Deed::Close(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
        "/no-end" => Deed::Close([b"HTTP/1.1 200 OK\r\n\r\n", jpeg].concat()),
        _ if path.starts_with("/none") => status("404 Not Found", ""),
        _ => picture(jpeg),
    }
}

#[test]
fn every_fault_has_its_cause_and_costs_one_row() {
    let bytes = jpeg(1);
    let server = FaultServer::start(move |_, path, n| misbehave(&bytes, path, n));
    let port = server.address.port();
    // Path or address, cause in the ledger, attempts, the reject if any.
    let cases: &[(&str, &str, i32, Option<&str>)] = &[
        ("/ok.jpg", "ok", 1, None),
        ("/hang", "timeout", 2, Some("fetch/timeout")),
        ("/hang-in-body", "timeout", 2, Some("fetch/timeout")),
        ("/trickle", "slow", 1, Some("fetch/slow")),
        ("/short", "truncated", 2, Some("fetch/truncated")),
        // What is left of the picture is for its decoder to judge.
        ("/long", "ok", 1, None),
        ("/circle", "redirects", 1, Some("fetch/redirects")),
        ("/to-private", "private_address", 1, Some("fetch/private_address")),
        ("/to-metadata", "private_address", 1, Some("fetch/private_address")),
        ("/to-file", "bad_url", 1, Some("fetch/bad_url")),
        ("/moved", "ok", 1, None),
        ("/bomb", "ok", 1, Some("fetch/too_many_bytes")),
        ("/gzip", "ok", 1, None),
        ("/huge", "too_many_bytes", 1, Some("fetch/too_many_bytes")),
        ("/endless", "too_many_bytes", 1, Some("fetch/too_many_bytes")),
        ("/busy", "ok", 2, None),
        ("/flaky", "ok", 3, None),
        ("/broken", "5xx", 3, Some("fetch/5xx")),
        ("/reset", "reset", 3, Some("fetch/reset")),
        ("/reset-in-body", "truncated", 2, Some("fetch/truncated")),
        ("/html", "ok", 1, Some("image/html_page")),
        ("/none.jpg", "404", 1, Some("fetch/404")),
        ("/empty", "2xx", 1, Some("fetch/2xx")),
        ("/forbidden", "403", 1, Some("fetch/403")),
        ("/gone", "410", 1, Some("fetch/410")),
        ("/noai", "opt_out", 1, Some("opt_out/x_robots_tag")),
        ("/no-http", "protocol", 1, Some("fetch/protocol")),
        ("/no-end", "ok", 1, None),
        ("https://web.example:PORT/tls", "tls", 1, Some("fetch/tls")),
        ("http://127.0.0.2:PORT/x", "private_address", 1, Some("fetch/private_address")),
        ("http://2130706434:PORT/x", "private_address", 1, Some("fetch/private_address")),
        ("http://[::1]:PORT/x", "private_address", 1, Some("fetch/private_address")),
        ("http://[::ffff:10.0.0.1]/x", "private_address", 1, Some("fetch/private_address")),
        ("http://meta.example/x", "private_address", 1, Some("fetch/private_address")),
        ("http://closed.example:1/x", "connect", 2, Some("fetch/connect")),
        ("ftp://web.example/x", "bad_url", 1, Some("fetch/bad_url")),
        ("no address", "bad_url", 1, Some("fetch/bad_url")),
    ];
    let url = |case: &str| match case.strip_prefix('/') {
        Some(path) => format!("http://web.example:{port}/{path}"),
        None => case.replace("PORT", &port.to_string()),
    };
    let urls: Vec<_> = cases.iter().map(|case| url(case.0)).collect();
    let names = ["web.example", "closed.example"];
    // Faults of one row must not close the host to the others, and no robots.txt of hosts that are
    // not there is in the way.
    let more = "robots = false\nbreaker_failures = 1000\nhost_concurrency = 8\n";
    let place = Place::new(&urls, &names, more);
    let plan = std::fs::read_to_string(place.path("plan.toml")).unwrap();
    std::fs::write(
        place.path("plan.toml"),
        format!("{plan}\"meta.example\" = \"169.254.169.254\"\n"),
    )
    .unwrap();
    let started = Instant::now();
    let lines = place.run("out", &[]);
    println!("{lines}{:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(15), "faults take {:?}", started.elapsed());
    let entries = place.ledger("out");
    assert_eq!(entries.len(), cases.len());
    let mut rejects: HashMap<&str, usize> = HashMap::new();
    for (entry, (case, cause, attempts, reject)) in entries.iter().zip(cases) {
        assert_eq!(
            (entry.cause.as_str(), entry.attempts),
            (*cause, *attempts),
            "{case}: {entry:?}"
        );
        if let Some(reject) = reject {
            *rejects.entry(reject).or_default() += 1;
        }
    }
    for (reject, n) in rejects {
        assert!(lines.contains(&format!("rejected: {n} {reject}")), "{n} {reject}: {lines}");
    }
    let entry = |case: &str| entries.iter().find(|entry| entry.url == url(case)).unwrap();
    assert_eq!(entry("/moved").final_url, Some(url("/ok.jpg?moved")));
    assert_eq!((entry("/busy").status, entry("/none.jpg").status), (Some(200), Some(404)));
    let agents = server.seen();
    let agent = "(+https://test.example/bot)";
    assert!(agents.iter().all(|seen| seen.user_agent.ends_with(agent)), "{:?}", agents[0]);
    succeed(&["check", &place.path("out")]);
    // The same answers with other numbers of workers and requests: the same shards.
    let plan = plan.replace("host_concurrency = 8", "host_concurrency = 2\nahead_items = 3");
    let plan = plan.replace("robots = false", "robots = false\nahead_bytes_max = 1");
    let good: Vec<_> = (0..40).map(|i| url(&format!("/ok{i}.jpg"))).collect();
    let one = Place::new(&good, &names, more);
    one.run("out", &["--workers", "1"]);
    std::fs::write(one.path("plan.toml"), plan).unwrap();
    one.run("other", &["--workers", "3"]);
    assert_eq!(shards(&one.path("out")), shards(&one.path("other")));
}

#[test]
fn robots_txt_is_kept_and_asked_for_once() {
    let bytes = jpeg(2);
    let server = FaultServer::start(move |host, path, _| match (host, path) {
        ("deny.example", "/robots.txt") => Deed::Send(response(
            "200 OK",
            "",
            b"User-agent: *\nDisallow: /private/\nAllow: /private/but-this\n",
        )),
        ("own.example", "/robots.txt") => Deed::Send(response(
            "200 OK",
            "",
            b"User-agent: *\nDisallow: /\n\nUser-agent: Flamingo-Ingest\nDisallow: /no\n",
        )),
        ("broken.example", "/robots.txt") => status("503 Service Unavailable", ""),
        ("hang.example", "/robots.txt") => Deed::Hang(Vec::new()),
        ("none.example", "/robots.txt") => status("404 Not Found", ""),
        ("locked.example", "/robots.txt") => status("401 Unauthorized", ""),
        ("moved.example", "/robots.txt") => status("301 Moved", "Location: /other-robots\r\n"),
        ("moved.example", "/other-robots") => {
            Deed::Send(response("200 OK", "", b"User-agent: *\nDisallow: /\n"))
        }
        ("large.example", "/robots.txt") => {
            let mut text = b"User-agent: *\nDisallow: /early\n".to_vec();
            text.resize(600 << 10, b'#');
            text.extend(b"\nDisallow: /late\n");
            Deed::Send(response("200 OK", "", &text))
        }
        _ => picture(&bytes),
    });
    let cases = [
        ("deny.example/public.jpg", "ok", "allowed"),
        ("deny.example/private/x.jpg", "robots", "disallowed"),
        ("deny.example/private/but-this.jpg", "ok", "allowed"),
        ("own.example/yes.jpg", "ok", "allowed"),
        ("own.example/no.jpg", "robots", "disallowed"),
        ("broken.example/x.jpg", "robots_unreachable", "unreachable"),
        ("broken.example/y.jpg", "robots_unreachable", "unreachable"),
        ("hang.example/x.jpg", "timeout", "unreachable"),
        ("none.example/x.jpg", "ok", "allowed"),
        ("locked.example/x.jpg", "ok", "allowed"),
        ("moved.example/x.jpg", "robots", "disallowed"),
        ("large.example/early", "robots", "disallowed"),
        ("large.example/late", "ok", "allowed"),
    ];
    let port = server.address.port();
    let url = |case: &str| {
        let (host, path) = case.split_once('/').unwrap();
        format!("http://{host}:{port}/{path}")
    };
    let urls: Vec<_> = cases.iter().map(|case| url(case.0)).collect();
    let mut names: Vec<_> = cases.iter().map(|case| case.0.split_once('/').unwrap().0).collect();
    names.dedup();
    let place = Place::new(&urls, &names, "");
    let lines = place.run("out", &[]);
    for (entry, (case, cause, robots)) in place.ledger("out").iter().zip(cases) {
        let found = (entry.cause.as_str(), entry.robots.as_str());
        assert_eq!(found, (cause, robots), "{case}: {entry:?}: {lines}");
    }
    assert!(lines.contains("rejected: 4 fetch/robots\n"), "{lines}");
    for host in ["deny.example", "own.example", "none.example", "large.example"] {
        assert_eq!(server.count(host, "/robots.txt"), 1, "{host}");
    }
    assert_eq!(server.count("broken.example", "/robots.txt"), 3, "its retries, once for both rows");
    assert_eq!(server.count("deny.example", "/private/x.jpg"), 0);
    assert_eq!(server.count("broken.example", "/x.jpg"), 0);
}

#[test]
fn hosts_are_asked_no_more_than_they_can_bear() {
    let bytes = jpeg(3);
    let server = FaultServer::start(move |_, path, _| match path {
        "/robots.txt" => status("404 Not Found", ""),
        _ => Deed::Late(Duration::from_millis(3), response("200 OK", "", &bytes)),
    });
    let port = server.address.port();
    let names: Vec<_> = (0..20).map(|i| format!("host{i}.example")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let urls: Vec<_> =
        (0..1000).map(|i| format!("http://{}:{port}/{i}.jpg", names[i * 7 % 20])).collect();
    let more = "host_concurrency = 3\nconcurrency = 40\n";
    let place = Place::new(&urls, &names, more);
    let plan = std::fs::read_to_string(place.path("plan.toml")).unwrap();
    let plan = plan.replace("host_per_second = 10000.0", "host_per_second = 40.0");
    std::fs::write(place.path("plan.toml"), plan).unwrap();
    let lines = place.run("out", &[]);
    assert!(lines.contains("1000 pairs"), "{lines}");
    let busiest = server.busiest();
    assert_eq!(busiest.len(), 20);
    assert!(busiest.values().all(|&most| most <= 3), "{busiest:?}");
    let seen = server.seen();
    for name in &names {
        let times: Vec<_> =
            seen.iter().filter(|seen| seen.host == *name).map(|seen| seen.at).collect();
        assert_eq!(times.len(), 51, "50 pictures and robots.txt");
        // A burst of three, then 40 a second; a slow machine only makes it slower.
        let elapsed = *times.last().unwrap() - times[0];
        assert!(elapsed > Duration::from_millis((51 - 3) * 25 / 2), "{name}: {elapsed:?}");
    }
    let n_connections = server.n_connections.load(Ordering::Relaxed);
    assert!(n_connections <= 20 * 4, "connections are used again: {n_connections}");
}

#[test]
fn a_host_that_is_down_or_says_wait_is_left_alone() {
    let server = FaultServer::start(move |host, path, _| match (host, path) {
        (_, "/robots.txt") => status("404 Not Found", ""),
        ("down.example", _) => status("500 Oh", ""),
        ("wait.example", _) => status("429 Too Many Requests", "Retry-After: 3600\r\n"),
        _ => picture(&jpeg(4)),
    });
    let port = server.address.port();
    let mut urls: Vec<_> = (0..60).map(|i| format!("http://down.example:{port}/{i}")).collect();
    urls.extend((0..10).map(|i| format!("http://wait.example:{port}/{i}")));
    urls.push(format!("http://up.example:{port}/x"));
    let names = ["down.example", "wait.example", "up.example"];
    let more = "breaker_failures = 9\nhost_concurrency = 1\n";
    let place = Place::new(&urls, &names, more);
    let lines = place.run("out", &[]);
    let entries = place.ledger("out");
    let count = |cause: &str| entries.iter().filter(|entry| entry.cause == cause).count();
    assert_eq!((count("429"), count("ok")), (10, 1), "{lines}");
    assert!(count("host_down") >= 50 && count("5xx") + count("host_down") == 60, "{lines}");
    let asked = |host| server.seen().iter().filter(|seen| seen.host == host).count();
    assert_eq!(asked("down.example"), 9 + 1, "and robots.txt");
    assert_eq!(asked("wait.example"), 1 + 1, "and robots.txt");
}

#[test]
fn names_are_looked_up_once_and_only_by_us() {
    let dns = NameServer::start(|name| {
        let quick = Duration::from_millis(5);
        match name {
            "slow.example" => (Duration::from_millis(150), Record::Address([127, 0, 0, 1])),
            "inside.example" => (quick, Record::Address([10, 1, 2, 3])),
            "silent.example" => (quick, Record::Nothing),
            "none.example" => (quick, Record::NoSuchName),
            _ => (quick, Record::Address([127, 0, 0, 1])),
        }
    });
    let bytes = jpeg(5);
    let server = FaultServer::start(move |_, path, _| match path {
        "/robots.txt" => status("404 Not Found", ""),
        // Every connection is a new one, and needs an address.
        _ => Deed::Close(response("200 OK", "Connection: close\r\n", &bytes)),
    });
    let port = server.address.port();
    let mut urls: Vec<_> = (0..100).map(|i| format!("http://many.example:{port}/{i}")).collect();
    for name in ["slow", "inside", "silent", "none", "none"] {
        urls.push(format!("http://{name}.example:{port}/x"));
    }
    let more = format!(
        "dns_servers = [\"{}\"]\ndns_timeout_ms = 200\nhost_concurrency = 1\n",
        dns.address
    );
    let place = Place::new(&urls, &[], &more);
    let lines = place.run("out", &[]);
    let causes: Vec<_> = place.ledger("out").into_iter().map(|entry| entry.cause).collect();
    assert!(causes[..101].iter().all(|cause| cause == "ok"), "{lines}");
    assert_eq!(causes[101..], ["private_address", "dns", "dns", "dns"], "{lines}");
    assert_eq!(dns.count("many.example"), 1);
    // Version 4, then version 6; what is not there is remembered.
    assert!(dns.count("none.example") <= 2, "{}", dns.count("none.example"));
    assert!(dns.count("silent.example") > 1, "it is asked for again");
}

#[test]
fn nothing_is_asked_for_without_a_contact() {
    let server = FaultServer::start(|_, _, _| status("404 Not Found", ""));
    let urls = [format!("http://127.0.0.1:{}/x.jpg", server.address.port())];
    let place = Place::new(&urls, &[], "");
    let (list, out) = (place.path("list.csv"), place.path("out"));
    let output = run(&["alt-text", "--input", &list, "--out", &out]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("`fetch.contact` is empty"), "{message}");
    assert!(!Path::new(&out).exists());
    let plan = place.path("offline.toml");
    std::fs::write(&plan, "[fetch]\nenabled = false\n").unwrap();
    let output = run(&["alt-text", "--plan", &plan, "--input", &list, "--out", &out]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("1 read/not_fetched"), "{message}");
    // With the default plan a private address is refused, whoever asks.
    std::fs::write(&plan, "[fetch]\ncontact = \"me@test.example\"\nports = []\n").unwrap();
    let output = run(&["alt-text", "--plan", &plan, "--input", &list, "--out", &out]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("1 fetch/private_address"), "{message}");
    for (line, key) in [
        ("host_per_second = 0.0", "fetch.host_per_second"),
        ("agent = \"my bot\"", "fetch.agent"),
        ("dns_servers = [\"dns.example\"]", "fetch.dns_servers"),
        ("contact = \"a (b)\"", "fetch.contact"),
    ] {
        std::fs::write(&plan, format!("[fetch]\n{line}\n")).unwrap();
        let output = run(&["alt-text", "--plan", &plan, "--input", &list, "--out", &out]);
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && message.contains(key), "{message}");
    }
    assert!(server.seen().is_empty(), "{:?}", server.seen());
    assert!(Corpus::open(&out).is_err());
}

/// A place whose hosts have a bad day: how many pictures of a hundred are not there at first.
fn bad_day() -> (Place, std::sync::Arc<std::sync::atomic::AtomicBool>, FaultServer) {
    let bytes = jpeg(6);
    let is_bad = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let day = std::sync::Arc::clone(&is_bad);
    let server = FaultServer::start(move |_, path, _| {
        let i: usize = path[1..].parse().unwrap_or(0);
        match i % 5 {
            _ if path == "/robots.txt" => status("404 Not Found", ""),
            1 if day.load(Ordering::Relaxed) => status("503 Service Unavailable", ""),
            2 if day.load(Ordering::Relaxed) => status("429 Too Many Requests", ""),
            3 => status("404 Not Found", ""),
            _ => picture(&bytes),
        }
    });
    let urls: Vec<_> = (0..100)
        .map(|i| format!("http://host{}.example:{}/{i}", i % 4, server.address.port()))
        .collect();
    let names = ["host0.example", "host1.example", "host2.example", "host3.example"];
    let place = Place::new(&urls, &names, "breaker_failures = 1000\n");
    let plan = std::fs::read_to_string(place.path("plan.toml")).unwrap();
    std::fs::write(place.path("plan.toml"), format!("{plan}[shard]\nrows_max = 7\n")).unwrap();
    (place, is_bad, server)
}

fn counts(corpus: &Path) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for entry in ledger(corpus) {
        *counts.entry(entry.cause).or_default() += 1;
    }
    counts
}

#[test]
fn a_retry_asks_for_what_failed_and_leaves_the_rest_alone() {
    let (place, is_bad, server) = bad_day();
    let lines = place.run("out", &[]);
    assert!(lines.contains("rejected: 20 fetch/5xx") && lines.contains("40 pairs"), "{lines}");
    let out = place.path("out");
    let before = shards(&out);
    let n_before = server.seen().len();
    // Still a bad day: nothing changes but the ledger.
    let lines = succeed(&["retry", &out, "--cause", "5xx"]);
    assert!(lines.contains("asked again for 20 addresses, 0 pairs added"), "{lines}");
    assert!(lines.contains("still rejected: 20 fetch/5xx"), "{lines}");
    assert_eq!(shards(&out), before);
    succeed(&["check", &out]);
    is_bad.store(false, Ordering::Relaxed);
    let lines = succeed(&["retry", &out, "--cause", "5xx"]);
    assert!(lines.contains("asked again for 20 addresses, 20 pairs added"), "{lines}");
    let asked: Vec<_> = server.seen()[n_before..].iter().map(|seen| seen.path.clone()).collect();
    let is_failed =
        |path: &String| path == "/robots.txt" || path[1..].parse::<usize>().unwrap() % 5 == 1;
    assert!(asked.iter().all(is_failed), "{asked:?}");
    let after = shards(&out);
    assert_eq!(after[..before.len()], before, "what is done is not touched");
    assert_eq!(Corpus::open(&out).unwrap().n_rows(), 60);
    let expected =
        HashMap::from([("ok".to_owned(), 60), ("429".to_owned(), 20), ("404".to_owned(), 20)]);
    assert_eq!(counts(Path::new(&out)), expected);
    let lines = succeed(&["retry", &out, "--cause", "429,dns,5xx"]);
    assert!(lines.contains("asked again for 20 addresses, 20 pairs added"), "{lines}");
    let rows: Vec<_> = Corpus::open(&out).unwrap().scan().collect::<Result<_, _>>().unwrap();
    let keys: std::collections::HashSet<_> = rows.iter().map(|row| row.key().to_owned()).collect();
    assert_eq!((rows.len(), keys.len()), (80, 80));
    let flamingo_dataset::Row::ImageText(pair) = &rows[79] else { panic!("it is a pair") };
    let i = pair.url.as_ref().unwrap().rsplit_once('/').unwrap().1;
    assert_eq!(pair.caption, format!("caption {i}"));
    assert!(pair.key.ends_with(&format!("list.csv:{:09}", i.parse::<usize>().unwrap())));
    succeed(&["check", &out]);
    let report = std::fs::read_to_string(format!("{out}/report.html")).unwrap();
    assert!(!report.contains("5xx") && report.contains("404"), "the report is made again");
    assert!(!Path::new(&format!("{out}/retry")).exists());
    let output = run(&["retry", &out, "--cause", "weather"]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && message.contains("timeout"), "{message}");
}

#[test]
fn a_retry_that_is_killed_leaves_a_whole_corpus() {
    let (place, is_bad, _server) = bad_day();
    place.run("out", &[]);
    is_bad.store(false, Ordering::Relaxed);
    let out = place.path("out");
    let arguments = ["retry", out.as_str(), "--cause", "5xx,429"];
    let mut n_inside = 0;
    for kill in 0..12 {
        let mut child =
            crate::program::ingest(&arguments).stdout(std::process::Stdio::null()).spawn().unwrap();
        let folder = format!("{out}/retry");
        while !Path::new(&folder).exists() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(100));
        }
        std::thread::sleep(Duration::from_micros(kill * 7919 % 4000));
        child.kill().unwrap();
        child.wait().unwrap();
        n_inside += usize::from(Path::new(&folder).exists());
        let corpus = Corpus::open(&out).unwrap();
        corpus.verify().unwrap();
        let rows = corpus.n_rows();
        assert!((40..=80).contains(&rows), "{rows}");
    }
    println!("{n_inside} of 12 kills hit an unfinished retry");
    succeed(&arguments);
    let rows: Vec<_> = Corpus::open(&out).unwrap().scan().collect::<Result<_, _>>().unwrap();
    let keys: std::collections::HashSet<_> = rows.iter().map(|row| row.key().to_owned()).collect();
    assert_eq!((rows.len(), keys.len()), (80, 80), "no row is lost or twice there");
    let expected = HashMap::from([("ok".to_owned(), 80), ("404".to_owned(), 20)]);
    assert_eq!(counts(Path::new(&out)), expected);
    succeed(&["check", &out]);
    assert!(!Path::new(&format!("{out}/retry")).exists());
}

#[test]
fn images_of_pages_that_the_archives_lack_are_asked_for() {
    let bytes = jpeg(7);
    let server = FaultServer::start(move |_, path, _| match path {
        "/robots.txt" => Deed::Send(response("200 OK", "", b"User-agent: *\nDisallow: /no/\n")),
        "/gone.jpg" => status("410 Gone", ""),
        _ => picture(&bytes),
    });
    let base = format!("http://web.example:{}", server.address.port());
    let place = Place::new(&[], &["web.example"], "pages = true\n");
    let text =
        "A paragraph that is long enough to be the main text of this page, with words and all. ";
    let page = |i: usize| {
        format!(
            "<html><body><main><h1>Page {i}</h1><p>{text}{text}<p><img src={base}/{i}.jpg alt=one><p>{text}\
             <img src={base}/gone.jpg><img src={base}/no/{i}.jpg><p>{text}<img src={base}/{i}.jpg>\
             <img src={base}/b{i}.jpg><p>{text}</main></body></html>"
        )
    };
    let mut warc = Vec::new();
    for i in 0..6 {
        let page = page(i);
        let http = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{page}",
            page.len()
        );
        let record = format!(
            "WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:{i}>\r\n\
             WARC-Date: 2026-05-04T10:20:34Z\r\nWARC-Target-URI: {base}/page{i}\r\n\
             Content-Type: application/http; msgtype=response\r\nContent-Length: {}\r\n\r\n{http}\r\n\r\n",
            http.len()
        );
        warc.extend(record.into_bytes());
    }
    std::fs::write(place.path("pages.warc"), warc).unwrap();
    let (plan, input, out) = (place.path("plan.toml"), place.path("pages.warc"), place.path("out"));
    let lines = succeed(&["webpages", "--plan", &plan, "--input", &input, "--out", &out]);
    assert!(lines.contains("6 documents, 12 images"), "{lines}");
    for reject in ["6 fetch/410", "6 fetch/robots", "6 image/repeated_image"] {
        assert!(lines.contains(&format!("rejected: {reject}\n")), "{reject}: {lines}");
    }
    let entries = place.ledger("out");
    assert_eq!(entries.len(), 6 * 4);
    assert_eq!(server.count("web.example", "/3.jpg"), 1);
    succeed(&["check", &out]);
    // Without the key nothing is asked for, and the images are not there.
    let n_before = server.seen().len();
    let output = run(&["webpages", "--input", &input, "--out", &place.path("offline")]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("not_in_archive"), "{message}");
    assert_eq!(server.seen().len(), n_before);
}
