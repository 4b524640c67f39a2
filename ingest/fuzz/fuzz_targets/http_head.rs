//! Any bytes as an HTTP response: head, body without its codings within the limit, text.

#![no_main]

use flamingo_ingest::http;
use libfuzzer_sys::fuzz_target;

/// Most bytes of a body.
const BYTES_MAX: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Ok((head, body)) = http::parse_head(bytes) else { return };
    let _ = (head.media_type(), head.charset());
    if let Ok(body) = http::decode_body(&head, body, BYTES_MAX) {
        assert!(body.len() as u64 <= BYTES_MAX);
        let _ = http::decode_text(&head, &body);
    }
});
