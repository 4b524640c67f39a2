//! Reads every payload of archives: what the benchmark and the comparison with other readers run.
//!
//! `records list FILE...` prints a JSON line per record; `records read FILE...` only reads, and prints
//! how many records and bytes there were.

use std::io::Write as _;

use flamingo_dataset::sha256_hex;
use flamingo_ingest::source::Source;
use flamingo_ingest::warc::Walk;
use serde_json::json;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let is_list = match arguments.next().as_deref() {
        Some("list") => true,
        Some("read") => false,
        _ => return Err("expected `list` or `read`, then files".into()),
    };
    let mut out = std::io::BufWriter::new(std::io::stdout());
    let (mut n_records, mut n_bytes) = (0_u64, 0_u64);
    for file in arguments {
        let source = Source::open(&file)?;
        let mut walk = Walk::new(&source);
        while let Some(step) = walk.advance()? {
            if let Err((offset, damage)) = step {
                writeln!(out, "{}", json!({ "offset": offset, "damage": damage.reason() }))?;
                continue;
            }
            n_records += 1;
            let mut block = Vec::new();
            let offset = walk.offset();
            let damage = loop {
                match walk.piece()? {
                    Ok(Some(piece)) => {
                        n_bytes += piece.len() as u64;
                        if is_list {
                            block.extend_from_slice(piece);
                        }
                    }
                    Ok(None) => break walk.finish()?.err(),
                    Err(damage) => break Some(damage),
                }
            };
            if !is_list {
                continue;
            }
            let field = |name| walk.fields().get(name);
            let record = json!({
                "offset": offset,
                "type": field("WARC-Type"),
                "target": field("WARC-Target-URI"),
                "sha256": sha256_hex(&block),
                "damage": damage.map(|(_, damage)| damage.reason()),
            });
            writeln!(out, "{record}")?;
        }
    }
    if !is_list {
        writeln!(out, "{n_records} records, {n_bytes} bytes")?;
    }
    out.flush()?;
    Ok(())
}
