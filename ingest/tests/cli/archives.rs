//! Archives of every kind and packing, saved pages, and files that are none of these.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use flamingo_fixtures::web::{self, WebSize};

use crate::program::{files, folder, ingest, real, succeed};

/// Longest time for one file that is no archive.
const SECONDS_MAX: Duration = Duration::from_secs(10);
/// Most address space of such a run in KiB: the program itself and its libraries take most of it.
const ADDRESS_KIB_MAX: u32 = 1 << 20;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(zstd_safe::compress_bound(bytes.len()));
    zstd_safe::compress(&mut packed, bytes, 1).unwrap();
    packed
}

fn lz4(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// What a run printed, without the name of its output.
fn summary(input: &str, out: &str) -> String {
    let lines = succeed(&["webpages", "--input", input, "--out", out]);
    succeed(&["check", out]);
    lines.replace(out, "OUT")
}

#[test]
fn the_same_pages_in_every_packing_make_the_same_documents() {
    let (_folder, root) = folder();
    let size = WebSize { pages: 5, pairs: 0, clips: 0, support: 1, queries: 1 };
    web::write(Path::new(&format!("{root}/web")), &size, 1).unwrap();
    let packed = std::fs::read(format!("{root}/web/pages.warc.gz")).unwrap();
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(&*packed), &mut plain)
        .unwrap();
    let expected = summary(&format!("{root}/web/pages.warc.gz"), &format!("{root}/expected"));
    assert!(expected.contains("5 documents"), "{expected}");
    // In the last, nothing of the name says what it is.
    for (name, bytes) in [
        ("plain.warc", plain.clone()),
        ("stream.warc.gz", gzip(&plain)),
        ("stream.warc.zst", zstd(&plain)),
        ("stream.warc.lz4", lz4(&plain)),
        ("nameless", zstd(&plain)),
    ] {
        let (input, out) = (format!("{root}/{name}"), format!("{root}/out-{name}"));
        std::fs::write(&input, bytes).unwrap();
        assert_eq!(summary(&input, &out), expected, "{name}");
    }
    // The records that had to be kept are gone.
    let left = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_str().unwrap().starts_with('.')).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn one_stream_gives_the_same_bytes_for_any_number_of_workers() {
    let (_folder, root) = folder();
    let size = WebSize { pages: 4, pairs: 0, clips: 0, support: 1, queries: 1 };
    web::write(Path::new(&format!("{root}/web")), &size, 1).unwrap();
    let packed = std::fs::read(format!("{root}/web/pages.warc.gz")).unwrap();
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(&*packed), &mut plain)
        .unwrap();
    for name in ["a.warc.gz", "b.warc.gz"] {
        std::fs::write(format!("{root}/{name}"), gzip(&plain)).unwrap();
    }
    let run = |workers: &str| {
        let out = format!("{root}/out-{workers}");
        let inputs = [format!("{root}/a.warc.gz"), format!("{root}/b.warc.gz")];
        let arguments =
            ["webpages", "--input", &inputs[0], &inputs[1], "--out", &out, "--workers", workers];
        let lines = succeed(&arguments);
        // The second archive repeats the first.
        assert!(lines.contains("rejected: 4 page/repeated_page"), "{lines}");
        files(Path::new(&out))
            .into_iter()
            .filter(|(name, _)| name.starts_with("shard"))
            .collect::<Vec<_>>()
    };
    assert_eq!(run("1"), run("3"));
}

#[test]
fn saved_pages_find_the_files_beside_them() {
    let (_folder, root) = folder();
    let picture = flamingo_fixtures::image::jpeg(
        flamingo_fixtures::scene::Scene::random(1, 1),
        flamingo_fixtures::image::SIZE,
        1,
    );
    let write = |name: &str, bytes: &[u8]| {
        let path = format!("{root}/saved/{name}");
        std::fs::create_dir_all(Path::new(&path).parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    let page = |head: &str, image: &str| {
        format!(
            "<html><head>{head}<title>t</title></head><body><h1>One picture</h1><p>Some words about it.</p><img src='{image}' alt='it'></body></html>"
        )
    };
    let from = "<!-- saved from url=(0022)https://a.example/cats -->\n";
    write("cats.html", (from.to_owned() + &page("", "./cats_files/a%20cat.jpg")).as_bytes());
    write("cats_files/a cat.jpg", &picture);
    write("cats_files/frame.html", page("", "a%20cat.jpg").as_bytes());
    write(
        "deep/dogs.htm",
        page("<link rel=canonical href=https://b.example/d/o.html>", "dogs_files/d.jpg").as_bytes(),
    );
    write("deep/dogs_files/d.jpg", &picture);
    // A page without an address of its own, in a mirrored site, packed.
    write("deep/mirror.html.gz", &gzip(page("", "../images/m.jpg").as_bytes()));
    write("images/m.jpg", &picture);
    write("missing.html", page("", "nothing.jpg").as_bytes());
    let lines = summary(&format!("{root}/saved"), &format!("{root}/out"));
    assert!(lines.contains("3 documents, 3 images"), "{lines}");
    assert!(lines.contains("of 4 items"), "{lines}");
    assert!(lines.contains("rejected: 1 read/not_in_archive"), "{lines}");
}

#[test]
fn texts_of_pages_are_documents_where_images_are_not_wanted() {
    let (_folder, root) = folder();
    let text = "A heading\nSome words about a thing that is no picture.\n";
    let wet = format!(
        "WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: http://a.example/\r\n\
         Content-Type: text/plain\r\nContent-Length: {}\r\n\r\n{text}\r\n\r\n",
        text.len()
    );
    let (input, plan) = (format!("{root}/a.warc.wet.gz"), format!("{root}/plan.toml"));
    std::fs::write(&input, gzip(wet.as_bytes())).unwrap();
    std::fs::write(&plan, "[document]\nimages_min = 0\n").unwrap();
    let out = format!("{root}/out");
    let lines = succeed(&["webpages", "--plan", &plan, "--input", &input, "--out", &out]);
    assert!(lines.contains("1 documents, 0 images"), "{lines}");
    let refused = ingest(&["webpages", "--input", &input, "--out", &format!("{root}/none")])
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{message}");
    assert!(message.contains("1 page/text_without_images"), "{message}");
}

#[test]
fn real_archives_of_every_kind_are_read_to_their_end() {
    let Some(archives) = real("warc") else { return };
    let (_folder, root) = folder();
    // Together: what is wrong with one of them is a reject.
    let out = format!("{root}/out");
    let plan = format!("{root}/plan.toml");
    std::fs::write(&plan, "[document]\nimages_min = 0\n").unwrap();
    let lines = succeed(&[
        "webpages",
        "--plan",
        &plan,
        "--input",
        archives.to_str().unwrap(),
        "--out",
        &out,
    ]);
    assert!(lines.contains("rejected: 1 read/truncated_archive"), "{lines}");
    // An archive in one gzip member, whose name says nothing.
    let odd = archives.join("pywb/example-bad.warc.gz.bad");
    let out = format!("{root}/odd");
    let lines =
        succeed(&["webpages", "--plan", &plan, "--input", odd.to_str().unwrap(), "--out", &out]);
    assert!(lines.contains(" documents"), "{lines}");
}

/// Runs the program with little address space; code, time and message.
fn limited(input: &str, out: &str) -> (Option<i32>, Duration, String) {
    let program = env!("CARGO_BIN_EXE_flamingo-ingest");
    let command = format!(
        "ulimit -v {ADDRESS_KIB_MAX}; exec {program} webpages --workers 1 --input '{input}' --out {out}"
    );
    let started = Instant::now();
    let output = std::process::Command::new("sh").args(["-c", &command]).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), started.elapsed(), message)
}

#[test]
fn files_that_are_no_archives_have_a_reason_each() {
    let Some(bad) = real("bad") else { return };
    let (_folder, root) = folder();
    let inputs = format!("{root}/inputs");
    std::fs::create_dir(&inputs).unwrap();
    let found = files(&bad);
    assert!(found.len() > 50, "{}", found.len());
    for (i, (name, bytes)) in found.iter().enumerate() {
        // Whatever it is called, it is read as an archive.
        let input = format!("{inputs}/{i:03}.warc.gz");
        std::fs::write(&input, bytes).unwrap();
        let (code, time, message) = limited(&input, &format!("{root}/out"));
        assert_eq!(code, Some(1), "{name}: {message}");
        assert!(message.contains(&input) && message.lines().count() == 1, "{name}: {message}");
        assert!(message.contains("is no WARC file"), "{name}: {message}");
        assert!(time < SECONDS_MAX, "{name}: {time:?}");
    }
    // All of them beside one archive: that one is read, and each of them is a reject.
    let size = WebSize { pages: 2, pairs: 0, clips: 0, support: 1, queries: 1 };
    web::write(Path::new(&format!("{root}/web")), &size, 1).unwrap();
    std::fs::copy(format!("{root}/web/pages.warc.gz"), format!("{inputs}/good.warc.gz")).unwrap();
    let lines = succeed(&["webpages", "--input", &inputs, "--out", &format!("{root}/out")]);
    assert!(lines.contains("2 documents"), "{lines}");
    let n_dropped: usize = lines
        .lines()
        .filter_map(|line| {
            line.strip_prefix("rejected: ")?.split_once(" read/")?.0.parse::<usize>().ok()
        })
        .sum();
    assert!(n_dropped >= found.len(), "{lines}");
}
