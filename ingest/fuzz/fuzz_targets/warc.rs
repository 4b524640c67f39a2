//! Any bytes as an archive: the walk ends, pieces of a block add up to its stated length, and a record
//! that can be found by its offset is found there again.

#![no_main]

use flamingo_ingest::source::Source;
use flamingo_ingest::warc::{self, Walk};
use libfuzzer_sys::fuzz_target;

/// Bytes of a block that are compared.
const BLOCK_MAX: usize = 1 << 10;

fuzz_target!(|bytes: &[u8]| {
    let source = Source::of_bytes("fuzz", bytes.to_vec());
    let mut walk = Walk::new(&source);
    while let Some(step) = walk.advance().unwrap() {
        if step.is_err() {
            continue;
        }
        let stated: u64 = walk.fields().get("Content-Length").unwrap().parse().unwrap();
        let mut given = 0;
        loop {
            match walk.piece().unwrap() {
                Ok(Some(piece)) => given += piece.len() as u64,
                Ok(None) => break assert_eq!(given, stated),
                Err(_) => break,
            }
        }
    }
    for record in warc::records(&source, BLOCK_MAX).take(64) {
        if let Ok(record) = record.unwrap()
            && record.is_first
        {
            let again = warc::read_record(&source, record.offset, record.length, BLOCK_MAX).unwrap();
            assert_eq!(again, Ok(record));
        }
    }
});
