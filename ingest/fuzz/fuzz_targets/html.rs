//! Any bytes as a page: it is read or refused, texts are not empty, and images have absolute addresses.

#![no_main]

use flamingo_ingest::html::{self, Node};
use libfuzzer_sys::fuzz_target;
use url::Url;

fuzz_target!(|bytes: &[u8]| {
    let url = Url::parse("https://a.example/b/c.html?d#e").unwrap();
    let Ok(page) = html::read_page(&String::from_utf8_lossy(bytes), &url) else { return };
    for node in page.nodes {
        match node {
            Node::Text { text, .. } => assert!(!text.trim().is_empty()),
            Node::Image(image) => {
                assert!(!image.urls.is_empty());
                assert!(image.urls.iter().all(|url| Url::parse(url).is_ok()), "{:?}", image.urls);
            }
        }
    }
});
