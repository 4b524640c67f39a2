//! Writes a large corpus of pairs that all have the same picture, of some four kilobytes.
//!
//! ```sh
//! cargo run --release -p flamingo-dataset --example write_pairs -- FOLDER ROWS
//! ```

#![allow(clippy::print_stdout, reason = "the example is run for what it prints")]

use std::error::Error;
use std::io::Cursor;

use bytes::Bytes;
use flamingo_dataset::{
    CorpusKind, CorpusStore, EncodedImage, ImageText, Manifest, Row, ShardEntry, encode_shard,
    sha256_hex,
};

/// Rows of a shard: 85 MB.
const SHARD_ROWS: u64 = 20_000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("expected a folder")?;
    let n_rows: u64 = arguments.next().ok_or("expected a number of rows")?.parse()?;
    let store = CorpusStore::create(&folder)?;
    let image = picture()?;
    let mut shards = Vec::new();
    for first in (0..n_rows).step_by(SHARD_ROWS as usize) {
        let rows = (first..n_rows.min(first + SHARD_ROWS)).map(|row| pair(row, &image));
        let rows: Vec<Row> = rows.collect();
        let bytes = encode_shard(CorpusKind::ImageText, &rows)?;
        let entry = ShardEntry {
            file: format!("shard-{:05}.parquet", shards.len()),
            rows: rows.len() as u64,
            images: rows.len() as u64,
            words: 3 * rows.len() as u64,
            bytes: bytes.len() as u64,
            sha256: sha256_hex(&bytes),
        };
        store.put(&entry.file, bytes.into())?;
        shards.push(entry);
    }
    Manifest::new(CorpusKind::ImageText, sha256_hex(b"write_pairs"), shards).write(&store)?;
    println!("{n_rows} rows with pictures of {} bytes", image.len());
    Ok(())
}

/// A JPEG of noise.
fn picture() -> Result<Bytes, Box<dyn Error>> {
    let noise = |x: u32, y: u32, c: u32| {
        ((x * 7919 + y * 104_729 + c * 1301) * (x + 3 * y + 11) % 251) as u8
    };
    let pixels =
        image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([0, 1, 2].map(|c| noise(x, y, c))));
    let mut bytes = Cursor::new(Vec::new());
    pixels.write_to(&mut bytes, image::ImageFormat::Jpeg)?;
    Ok(bytes.into_inner().into())
}

fn pair(row: u64, image: &Bytes) -> Row {
    Row::ImageText(ImageText {
        key: format!("{row:012}"),
        url: Some(format!("https://made.up/{row}.jpg")),
        caption: format!("photograph number {row}"),
        image: EncodedImage { bytes: image.clone(), path: Some(format!("{row:012}.jpg")) },
        width: 64,
        height: 64,
        original_width: 64,
        original_height: 64,
        sha256: sha256_hex(image),
        phash: row,
        source: None,
        scores: Vec::new(),
        warc: None,
    })
}
