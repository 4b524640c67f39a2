//! Main content against benchmarks that nobody here wrote: the text of articles
//! (scrapinghub/article-extraction-benchmark, by its own scoring) and the images that readability
//! keeps (mozilla/readability, `expected.html`).

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use flamingo_ingest::html::{BlockKind, Node, Page, read_page};
use flamingo_ingest::plan::BuildPlan;
use html5ever::tokenizer::{BufferQueue, Tag, Token, TokenSink, TokenSinkResult, Tokenizer};
use serde_json::Value;
use url::Url;

use crate::program::real;

fn unzip(path: &Path) -> String {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap())
        .read_to_end(&mut bytes)
        .unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// How often each run of four words occurs: the benchmark's `evaluate.py`.
fn shingles(text: &str) -> HashMap<Vec<&str>, f64> {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    let mut counts = HashMap::new();
    for i in 0..words.len().saturating_sub(3).max(1) {
        let shingle = words[i..words.len().min(i + 4)].to_vec();
        *counts.entry(shingle).or_default() += 1.0;
    }
    counts
}

/// Mean precision and recall of pages, and their harmonic mean.
#[derive(Debug, Default)]
struct Score {
    pages: f64,
    precision: f64,
    recall: f64,
}

impl Score {
    /// Adds a page and returns its own precision and recall.
    fn add(&mut self, expected: &str, found: &str) -> (f64, f64) {
        let (expected, found) = (shingles(expected), shingles(found));
        let common: f64 =
            expected.iter().map(|(shingle, n)| n.min(*found.get(shingle).unwrap_or(&0.0))).sum();
        let share = |all: &HashMap<Vec<&str>, f64>| match all.values().sum::<f64>() {
            all if all > common => common / all,
            _ => 1.0,
        };
        let (precision, recall) = (share(&found), share(&expected));
        self.pages += 1.0;
        self.precision += precision;
        self.recall += recall;
        (precision, recall)
    }

    fn f1(&self) -> f64 {
        let (precision, recall) = (self.precision / self.pages, self.recall / self.pages);
        2.0 * precision * recall / (precision + recall)
    }
}

/// What the benchmark calls the body of an article: no headline and no captions.
fn article_body(page: &Page) -> String {
    let mut body = String::new();
    for node in &page.nodes {
        match node {
            Node::Text { kind: BlockKind::Caption, .. } | Node::Image(_) => {}
            Node::Text { kind: BlockKind::Heading, .. } if body.is_empty() => {}
            Node::Text { text, .. } => body.extend([text.as_str(), "\n"]),
        }
    }
    body
}

fn bodies(path: &Path) -> HashMap<String, String> {
    let json: Value = serde_json::from_str(&unzip(path)).unwrap();
    let output = json.get("output").unwrap_or(&json).as_object().unwrap();
    let body = |page: &Value| page["articleBody"].as_str().unwrap_or("").to_owned();
    output.iter().map(|(key, page)| (key.clone(), body(page))).collect()
}

#[test]
fn the_scoring_gives_the_peers_their_published_figures() {
    let Some(data) = real("html/scrapinghub") else { return };
    let truth = bodies(&data.join("ground-truth.json.gz"));
    for (peer, published) in
        [("trafilatura", 0.958), ("readability_js", 0.947), ("rs_trafilatura", 0.970)]
    {
        let found = bodies(&data.join(format!("{peer}.json.gz")));
        let mut score = Score::default();
        for (key, body) in &truth {
            score.add(body, &found[key]);
        }
        println!("{peer}: F1 {:.4} of {published} published", score.f1());
        assert!((score.f1() - published).abs() < 0.001, "{peer}: {}", score.f1());
    }
}

#[test]
fn articles_are_read_as_well_as_the_best_do() {
    let Some(data) = real("html/scrapinghub") else { return };
    let truth = bodies(&data.join("ground-truth.json.gz"));
    let trafilatura = bodies(&data.join("trafilatura.json.gz"));
    let (mut all, mut halves, mut peer) =
        (Score::default(), <[Score; 2]>::default(), Score::default());
    for (i, path) in sorted(&data.join("html")).iter().enumerate() {
        let key = path.file_name().unwrap().to_str().unwrap().trim_end_matches(".html.gz");
        let url = Url::parse("https://a.example/").unwrap();
        let body = article_body(&read_page(&unzip(path), &url).unwrap());
        let (precision, recall) = all.add(&truth[key], &body);
        halves[i % 2].add(&truth[key], &body);
        peer.add(&truth[key], &trafilatura[key]);
        println!("{key:.8} precision {precision:.3} recall {recall:.3}");
    }
    println!(
        "articles: {} pages, F1 {:.4} (precision {:.4}, recall {:.4}), rules seen {:.4}, held out \
         {:.4}, trafilatura on these pages {:.4}",
        all.pages,
        all.f1(),
        all.precision / all.pages,
        all.recall / all.pages,
        halves[0].f1(),
        halves[1].f1(),
        peer.f1(),
    );
    assert!(all.f1() >= 0.955, "{all:?}");
}

/// Images without repeats, each by all its addresses.
fn distinct(images: impl Iterator<Item = Vec<String>>) -> Vec<Vec<String>> {
    let mut distinct: Vec<Vec<String>> = Vec::new();
    for urls in images {
        let is_known = distinct.iter().flatten().any(|known| urls.contains(known));
        if !urls.is_empty() && !is_known {
            distinct.push(urls);
        }
    }
    distinct
}

/// The `<img>` tags of a text.
#[derive(Default)]
struct ImgTags(RefCell<Vec<Tag>>);

impl TokenSink for ImgTags {
    type Handle = ();

    fn process_token(&self, token: Token, _: u64) -> TokenSinkResult<()> {
        match token {
            Token::TagToken(tag) if &*tag.name == "img" => self.0.borrow_mut().push(tag),
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

fn img_tags(html: &str) -> Vec<Tag> {
    let tokenizer = Tokenizer::new(ImgTags::default(), <_>::default());
    let input = BufferQueue::default();
    input.push_back(html.into());
    let _ = tokenizer.feed(&input);
    tokenizer.end();
    tokenizer.sink.0.into_inner()
}

/// Images of a page that readability kept, but those shown smaller than `side_min`.
fn expected_images(html: &str, base: &Url, side_min: f32) -> Vec<Vec<String>> {
    let urls = img_tags(html).into_iter().map(|image| {
        let attr = |name| {
            let mut attrs = image.attrs.iter();
            attrs.find(|attr| &*attr.name.local == name).map(|attr| &*attr.value)
        };
        let side = |name| attr(name)?.trim_end_matches("px").parse::<f32>().ok();
        if side("width").zip(side("height")).is_some_and(|(w, h)| w.min(h) < side_min) {
            return Vec::new();
        }
        let sets = ["srcset", "data-srcset"].into_iter().filter_map(attr);
        let sets = sets.flat_map(str::split_whitespace).map(|url| url.trim_end_matches(','));
        let single = ["src", "data-src", "data-original"].into_iter();
        let urls = single.filter_map(attr).chain(sets.filter(|url| url.contains('/')));
        let urls = urls.filter_map(|url| base.join(url.trim()).ok());
        urls.filter(|url| url.scheme().starts_with("http")).map(String::from).collect()
    });
    distinct(urls)
}

/// Images of a page that the default plan does not drop for its tag alone.
fn found_images(page: Page, plan: &BuildPlan) -> Vec<Vec<String>> {
    let images = page.nodes.into_iter().filter_map(|node| match node {
        Node::Image(image) => Some(image),
        Node::Text { .. } => None,
    });
    let is_kept = |image: &flamingo_ingest::img_tag::ImageNode| {
        let path = Url::parse(&image.urls[0]).unwrap().path().to_lowercase();
        let mut words = path.split(|c: char| !c.is_ascii_alphanumeric());
        image.shown.is_none_or(|(width, height)| width.min(height) >= plan.image.side_min)
            && !words.any(|word| plan.image.url_words_banned.iter().any(|banned| banned == word))
    };
    distinct(images.filter(is_kept).map(|image| image.urls))
}

#[test]
fn images_of_articles_are_those_that_readability_keeps() {
    let Some(data) = real("html/readability") else { return };
    let plan = BuildPlan::default();
    let base = Url::parse("http://fakehost/test/page.html").unwrap();
    let (mut n_common, mut n_expected, mut n_found) = (0, 0, 0);
    for folder in sorted(&data) {
        let side_min = plan.image.side_min as f32;
        let expected = expected_images(&unzip(&folder.join("expected.html.gz")), &base, side_min);
        let page = read_page(&unzip(&folder.join("source.html.gz")), &base).unwrap();
        let found = found_images(page, &plan);
        let is_common = |urls: &&Vec<String>| found.iter().flatten().any(|url| urls.contains(url));
        let common = expected.iter().filter(is_common).count();
        if common < expected.len().max(found.len()) {
            let name = folder.file_name().unwrap().to_str().unwrap();
            println!("{name}: {common} common, {} expected, {} found", expected.len(), found.len());
            let is_wrong =
                |urls: &&Vec<String>| !expected.iter().flatten().any(|url| urls.contains(url));
            found
                .iter()
                .filter(is_wrong)
                .for_each(|urls| println!("  not kept there: {}", urls[0]));
            expected
                .iter()
                .filter(|urls| !is_common(urls))
                .for_each(|urls| println!("  missing: {}", urls[0]));
        }
        n_common += common;
        n_expected += expected.len();
        n_found += found.len();
    }
    let (recall, precision) =
        (n_common as f64 / n_expected as f64, n_common as f64 / n_found as f64);
    println!("images: recall {recall:.3} of {n_expected}, precision {precision:.3} of {n_found}");
    // Readability leaves out most pictures above an article's text; they count as wrong here.
    assert!(recall >= 0.9 && precision >= 0.9, "recall {recall}, precision {precision}");
}
