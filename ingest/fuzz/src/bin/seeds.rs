//! Writes the inputs from which each fuzz target starts: `seeds ingest/fuzz/corpus`.

use std::path::Path;
use std::{env, fs, io};

use flamingo_fixtures::http::{Response, Transfer};
use flamingo_fixtures::page::Page;
use flamingo_fixtures::warc::Kind;
use flamingo_fixtures::{archive, broken, html, warc};

/// The seed of the made-up web.
const SEED: u64 = 7;
/// Pages that become seeds.
const PAGES: u64 = 8;

fn main() -> io::Result<()> {
    let folder = env::args().nth(1).unwrap_or_else(|| "ingest/fuzz/corpus".to_owned());
    let write = |target: &str, name: String, bytes: &[u8]| {
        let folder = Path::new(&folder).join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(name), bytes)
    };
    for (i, page) in (0..PAGES).map(|i| (i, Page::random(SEED, i))) {
        let html = html::render(&page);
        write("html", format!("page-{i}"), html.as_bytes())?;
        for transfer in [Transfer::Identity, Transfer::Gzip, Transfer::Chunked, Transfer::GzipChunked] {
            let body = html.clone().into_bytes();
            let response = Response { transfer, ..Response::ok("text/html; charset=utf-8", body) };
            write("http_head", format!("page-{i}-{transfer:?}"), &response.to_bytes())?;
        }
        let mut records = archive::page_records(&page);
        // Pictures would fill the seeds with bytes that no parser here reads.
        records.retain(|record| record.kind != Kind::Response || record.block.len() < 16_384);
        write("warc", format!("plain-{i}"), &warc::plain(&records))?;
        write("warc", format!("gzip-{i}"), &warc::gzipped(&records))?;
    }
    write("http_head", "moved".to_owned(), &Response::moved("/elsewhere").to_bytes())?;
    write("http_head", "not-found".to_owned(), &Response::not_found().to_bytes())?;
    write("warc", "truncated".to_owned(), &broken::truncated_gzip_warc())
}
