//! Reads every page of a folder to text and image nodes, a number of times: what
//! `ingest/benches/pages.py` measures.
//!
//! ```sh
//! cargo run --release -p flamingo-ingest --example pages -- FOLDER TIMES
//! ```

#![allow(clippy::print_stdout, reason = "the example is run for what it prints")]

use std::error::Error;

use flamingo_ingest::html::{Node, read_page};
use url::Url;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("expected a folder of pages")?;
    let times: usize = arguments.next().ok_or("expected how often to read them")?.parse()?;
    let url = Url::parse("https://a.example/")?;
    let mut pages = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        pages.push(std::fs::read_to_string(entry?.path())?);
    }
    let (mut n_bytes, mut n_images, mut n_refused) = (0, 0, 0);
    for page in pages.iter().cycle().take(times * pages.len()) {
        let Ok(page) = read_page(page, &url) else {
            n_refused += 1;
            continue;
        };
        for node in &page.nodes {
            match node {
                Node::Text { text, .. } => n_bytes += text.len(),
                Node::Image(_) => n_images += 1,
            }
        }
    }
    println!(
        "{} pages, {n_bytes} bytes of text, {n_images} images, {n_refused} refused",
        pages.len()
    );
    Ok(())
}
