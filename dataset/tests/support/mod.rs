//! Small corpora for the tests of this crate.

use std::io::Cursor;
use std::path::Path;

use bytes::Bytes;
use flamingo_dataset::{
    CorpusKind, CorpusStore, EncodedImage, ImageMeta, ImageText, Interleaved, Manifest, Row,
    ShardEntry, Slot, VideoText, WarcPlace, encode_shard, sha256_hex,
};

/// A PNG of one colour that `number` picks.
pub(crate) fn png(number: u8, side: u32) -> EncodedImage {
    let pixels = image::RgbImage::from_fn(side, side, |x, y| {
        image::Rgb([number.wrapping_mul(37), (x * 9) as u8, (y * 7) as u8])
    });
    let mut bytes = Cursor::new(Vec::new());
    pixels.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    let path = Some(format!("{number}.png"));
    EncodedImage { bytes: Bytes::from(bytes.into_inner()), path }
}

pub(crate) fn meta(number: u8) -> ImageMeta {
    ImageMeta {
        url: Some(format!("https://example.org/{number}.png")),
        alt: None,
        width: 12,
        height: 12,
        sha256: format!("{number:064x}"),
        phash: u64::MAX - u64::from(number),
        mime: "image/png".to_owned(),
    }
}

/// A page with `n_images` images between texts.
pub(crate) fn page(number: u8, n_images: u8) -> Row {
    let mut slots = vec![Slot::Text(format!("Page {number} begins with two red circles."))];
    for i in 0..n_images {
        let image = png(number.wrapping_add(i), 12);
        let meta = ImageMeta { sha256: sha256_hex(&image.bytes), ..meta(i) };
        slots.push(Slot::Image { image, meta });
        slots.push(Slot::Text(format!("Image {i} shows a blue square, number {number}.")));
    }
    Row::Interleaved(Interleaved {
        doc_id: format!("doc-{number}"),
        url: format!("https://example.org/{number}"),
        slots,
        title: Some("Shapes".to_owned()),
        lang: Some("en".to_owned()),
        lang_score: Some(0.5),
        warc: Some(WarcPlace { filename: "a.warc.gz".to_owned(), offset: 7, length: 1 << 40 }),
        fetched_at_us: Some(1_700_000_000_000_000),
    })
}

pub(crate) fn pair(number: u8) -> Row {
    let image = png(number, 16);
    Row::ImageText(ImageText {
        key: format!("pair-{number}"),
        url: Some(format!("https://example.org/{number}.png")),
        caption: format!("a red circle, number {number}"),
        sha256: sha256_hex(&image.bytes),
        image,
        width: 16,
        height: 16,
        original_width: 320,
        original_height: 320,
        phash: u64::from(number) << 56,
        source: Some("test".to_owned()),
        scores: vec![("clip".to_owned(), 0.25), ("blur".to_owned(), 1.0)],
        warc: None,
    })
}

pub(crate) fn clip(number: u8, n_frames: u8) -> Row {
    Row::VideoText(VideoText {
        key: format!("clip-{number}"),
        url: None,
        caption: "a square moves right".to_owned(),
        frames: (0..n_frames).map(|i| png(number.wrapping_add(i), 10)).collect(),
        frame_ms: (0..i32::from(n_frames)).map(|i| i * 1000).collect(),
        start_ms: 0,
        end_ms: 3000,
        duration_ms: 9000,
        width: 10,
        height: 10,
        codec: "h264".to_owned(),
        sha256: format!("{number:064x}"),
    })
}

/// Writes a corpus of the given shards.
pub(crate) fn write_corpus(folder: &Path, kind: CorpusKind, shards: &[&[Row]]) -> String {
    let location = folder.to_str().unwrap().to_owned();
    let store = CorpusStore::create(&location).unwrap();
    let mut entries = Vec::new();
    for (number, rows) in shards.iter().enumerate() {
        let bytes = encode_shard(kind, rows).unwrap();
        let file = format!("shard-{number:05}.parquet");
        entries.push(ShardEntry {
            file: file.clone(),
            rows: rows.len() as u64,
            images: rows.iter().map(|r| r.n_images() as u64).sum(),
            words: rows.iter().map(|r| r.words() as u64).sum(),
            bytes: bytes.len() as u64,
            sha256: sha256_hex(&bytes),
        });
        store.put(&file, Bytes::from(bytes)).unwrap();
    }
    Manifest::new(kind, "0".repeat(64), entries).write(&store).unwrap();
    location
}
