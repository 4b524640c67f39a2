//! Reads every page of a folder to text and image nodes, a number of times, and measures and judges
//! their texts where a preset is named: what `ingest/benches/pages.py` measures.
//!
//! ```sh
//! cargo run --release -p flamingo-ingest --example pages -- FOLDER TIMES [PRESET]
//! ```

#![allow(clippy::print_stdout, reason = "the example is run for what it prints")]

use std::error::Error;

use flamingo_ingest::html::{Node, read_page};
use flamingo_ingest::plan::BuildPlan;
use flamingo_ingest::rules::{Rules, page_text};
use url::Url;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("expected a folder of pages")?;
    let times: usize = arguments.next().ok_or("expected how often to read them")?.parse()?;
    let rules = arguments.next().map(|preset| {
        let plan = BuildPlan::from_toml(&format!("preset = {preset:?}"), "the preset")?;
        Rules::new(&plan)
    });
    let rules = rules.transpose()?;
    let url = Url::parse("https://a.example/")?;
    let mut pages = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        pages.push(std::fs::read_to_string(entry?.path())?);
    }
    let (mut n_bytes, mut n_images, mut n_refused, mut n_dropped) = (0, 0, 0, 0);
    for page in pages.iter().cycle().take(times * pages.len()) {
        let Ok(mut page) = read_page(page, &url) else {
            n_refused += 1;
            continue;
        };
        if let Some(rules) = &rules {
            rules.drop_paragraphs(&mut page.nodes);
            n_dropped += usize::from(rules.document(&page_text(&page.nodes)).drop.is_some());
        }
        for node in &page.nodes {
            match node {
                Node::Text { text, .. } => n_bytes += text.len(),
                Node::Image(_) => n_images += 1,
            }
        }
    }
    println!(
        "{} pages, {n_bytes} bytes of text, {n_images} images, {n_refused} refused, {n_dropped} dropped by rules",
        pages.len()
    );
    Ok(())
}
