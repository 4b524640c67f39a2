//! Two textbooks as web archives against what a perfect reader keeps of them.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;

use flamingo_dataset::{Corpus, Interleaved, Row, Slot};
use serde_json::Value;

use crate::program::{files, folder, real, succeed};

/// Keeps every page, with or without images, so that all text is compared.
const PLAN: &str = "[document]\nimages_min = 0\nimages_max = 1000\nwords_min = 0\n[archive]\n";

/// The sums of a comparison.
#[derive(Debug, Default)]
struct Score {
    words_found: usize,
    words_expected: usize,
    words_common: usize,
    blocks: usize,
    blocks_found: usize,
    images: usize,
    images_found: usize,
    images_too_many: usize,
    pages: usize,
    pages_equal: usize,
}

impl Score {
    fn text_f1(&self) -> f64 {
        2.0 * self.words_common as f64 / (self.words_found + self.words_expected) as f64
    }
}

fn ingest(archive: &Path, out: &str) -> HashMap<String, Interleaved> {
    let plan = format!("{out}.toml");
    std::fs::write(&plan, PLAN).unwrap();
    succeed(&["webpages", "--plan", &plan, "--input", archive.to_str().unwrap(), "--out", out]);
    let rows = Corpus::open(out).unwrap().scan().collect::<Result<Vec<_>, _>>().unwrap();
    let document = |row| match row {
        Row::Interleaved(document) => (document.url.clone(), document),
        other => panic!("{other:?}"),
    };
    rows.into_iter().map(document).collect()
}

fn truth(path: &Path) -> Vec<Value> {
    let lines = std::fs::read_to_string(path).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn joined(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether an image of the truth is in the archive, may be used, and keeps the plan's rules.
fn is_expected(image: &Value) -> bool {
    let is_there = ["present", "redirect", "revisit", "octet_stream"]
        .contains(&image["archive"].as_str().unwrap());
    let side = |name: &str| image[name].as_f64().unwrap_or(0.0);
    let (short, long) = (side("width").min(side("height")), side("width").max(side("height")));
    is_there && image["noai"] != true && short >= 64.0 && long <= 3.0 * short
}

/// The page of the truth as one text with a mark for each expected image.
fn expected_text(page: &Value) -> String {
    let mut text = String::new();
    for block in page["blocks"].as_array().unwrap() {
        if block["type"] != "image" {
            write!(text, " {}", block["text"].as_str().unwrap()).unwrap();
        } else if is_expected(block) {
            write!(text, " <<{}>>", block["sha256"].as_str().unwrap()).unwrap();
        }
    }
    joined(&text)
}

/// The document in the same form.
fn found_text(document: &Interleaved) -> String {
    let mut text = String::new();
    for slot in &document.slots {
        match slot {
            Slot::Text(piece) => write!(text, " {piece}").unwrap(),
            Slot::Image { meta, .. } => write!(text, " <<{}>>", meta.sha256).unwrap(),
        }
    }
    joined(&text)
}

fn counts(text: &str) -> HashMap<&str, usize> {
    let mut counts = HashMap::new();
    for word in text.split_whitespace().filter(|word| !word.starts_with("<<")) {
        *counts.entry(word).or_default() += 1;
    }
    counts
}

fn compare(page: &Value, document: &Interleaved, score: &mut Score) {
    let (expected, found) = (expected_text(page), found_text(document));
    score.pages += 1;
    score.pages_equal += usize::from(expected == found);
    let (wanted, have) = (counts(&expected), counts(&found));
    score.words_expected += wanted.values().sum::<usize>();
    score.words_found += have.values().sum::<usize>();
    score.words_common +=
        wanted.iter().map(|(word, n)| *n.min(have.get(word).unwrap_or(&0))).sum::<usize>();
    let mut unused: Vec<_> = document
        .slots
        .iter()
        .filter_map(|slot| match slot {
            Slot::Image { meta, .. } => Some(meta),
            Slot::Text(_) => None,
        })
        .collect();
    for block in page["blocks"].as_array().unwrap() {
        if block["type"] != "image" {
            score.blocks += 1;
            score.blocks_found +=
                usize::from(found.contains(&joined(block["text"].as_str().unwrap())));
        } else if is_expected(block) {
            score.images += 1;
            let alt = block["alt"].as_str().map(joined).filter(|alt| !alt.is_empty());
            let place = unused.iter().position(|meta| {
                meta.url.as_deref() == block["url"].as_str()
                    && Some(meta.sha256.as_str()) == block["sha256"].as_str()
                    && meta.alt == alt
            });
            if let Some(place) = place {
                unused.remove(place);
                score.images_found += 1;
            }
        }
    }
    score.images_too_many += unused.len();
}

fn check_book(book: &str) {
    let Some(data) = real("openstax-warc") else { return };
    let (_folder, out) = folder();
    let out = format!("{out}/corpus");
    let documents = ingest(&data.join(format!("{book}.warc.gz")), &out);
    let mut score = Score::default();
    let mut n_expected = 0;
    for page in truth(&data.join(format!("{book}.truth.jsonl"))) {
        let url = page["url"].as_str().unwrap();
        let document = documents.get(url);
        if !page["noai"].is_null() {
            assert!(document.is_none(), "{url} says no: {}", page["noai"]);
            continue;
        }
        n_expected += 1;
        let document = document.unwrap_or_else(|| panic!("{url} is missing"));
        if page["truncated"] == true {
            check_beginning(&page, document);
        } else {
            compare(&page, document, &mut score);
        }
    }
    assert_eq!(documents.len(), n_expected);
    println!("{book}: text F1 {:.4}, {score:?}", score.text_f1());
    assert!(score.text_f1() >= 0.9999, "{score:?}");
    assert_eq!(score.blocks_found, score.blocks, "{score:?}");
    assert_eq!((score.images_found, score.images_too_many), (score.images, 0), "{score:?}");
    assert_eq!(score.pages_equal, score.pages, "{score:?}");
    succeed(&["check", &out]);
}

/// Of a page that is cut off, its beginning is there and nothing else.
fn check_beginning(page: &Value, document: &Interleaved) {
    let (expected, found) = (expected_text(page), found_text(document));
    let words: Vec<_> = found.split(' ').collect();
    let common = expected.split(' ').zip(&words).take_while(|(a, b)| a == *b).count();
    // The last words are the ones that the cut went through.
    assert!(common > 20 && common + 40 >= words.len(), "{common} of {} words", words.len());
}

#[test]
fn the_astronomy_book_is_read_as_its_truth_says() {
    check_book("astronomy");
}

#[test]
fn the_sociology_book_is_read_as_its_truth_says() {
    check_book("sociology");
}

#[test]
fn every_special_page_is_read() {
    for book in ["astronomy-mini", "sociology-mini"] {
        check_book(book);
    }
}

#[test]
fn plain_and_gzip_archives_give_equal_rows() {
    let Some(data) = real("openstax-warc") else { return };
    let (_folder, out) = folder();
    let read = |name: &str, to: &str| {
        let mut documents = ingest(&data.join(name), &format!("{out}/{to}"));
        for document in documents.values_mut() {
            let place = document.warc.take().unwrap();
            assert_eq!(place.filename, name);
        }
        documents
    };
    let gzip = read("astronomy-mini.warc.gz", "gzip");
    assert_eq!(gzip, read("astronomy-mini-plain.warc", "plain"));
    assert!(gzip.values().all(|document| document.fetched_at_us.is_some()));
}

#[test]
fn every_dropped_image_has_its_reason() {
    let Some(data) = real("openstax-warc") else { return };
    let (_folder, out) = folder();
    let out = format!("{out}/corpus");
    let plan = format!("{out}.toml");
    std::fs::write(&plan, PLAN).unwrap();
    let archive = data.join("astronomy.warc.gz");
    let lines = succeed(&[
        "webpages",
        "--plan",
        &plan,
        "--input",
        archive.to_str().unwrap(),
        "--out",
        &out,
    ]);
    let pages = truth(&data.join("astronomy.truth.jsonl"));
    let n_images = |archive: &str| {
        let kept = pages.iter().filter(|page| page["noai"].is_null() && page["truncated"] == false);
        let blocks = kept.flat_map(|page| page["blocks"].as_array().unwrap());
        blocks.filter(|block| block["archive"] == archive).count()
    };
    for (archive, rule) in [
        ("missing", "read/not_in_archive"),
        ("not_found", "read/http_status"),
        ("html_page", "image/html_page"),
    ] {
        let line = format!("rejected: {} {rule}\n", n_images(archive));
        assert!(lines.contains(&line), "expected {line}in {lines}");
    }
    assert!(lines.contains("opt_out/x_robots_tag"), "{lines}");
    assert!(files(Path::new(&out)).iter().any(|(name, _)| name == "rejects/part-00000.parquet"));
    let report = std::fs::read_to_string(format!("{out}/report.html")).unwrap();
    assert!(report.contains("not_in_archive") && report.contains("data:image/jpeg;base64,"));
}
