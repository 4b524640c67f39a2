//! Reads a corpus of pairs in shuffled order and tells how fast: what `dataset/benches/loaders.py`
//! measures.
//!
//! ```sh
//! cargo run --release -p flamingo-dataset --example read_corpus -- \
//!     CORPUS pixels|bytes|batches|random|hashes THREADS BATCHES [FIRST_BATCH]
//! cargo run --release -p flamingo-dataset --example read_corpus -- CORPUS rows LAYOUT
//! ```
//!
//! CORPUS may be several, with commas between them, for `pixels`: each gives every step a batch.
//! `pixels` takes batches of 64 from the loader: 224 x 224, centre crop, normalised, from
//! `FIRST_BATCH` on. `bytes` reads the same rows in the same order and decodes nothing; `batches` also hands
//! them to the calling thread, 64 at a time; `random` reads rows from anywhere. Speeds are without the time that it takes to open the corpus. The variable
//! `DISK_CACHE` names a cache: `FOLDER,BYTES,BYTES_OF_A_PIECE`.
//! With `VERIFY=nothing` images are not compared with their digests; with `PIXELS=u8` they stay values of 256.
//! `hashes` prints the SHA-256 of each batch in place of times: what `dataset/tests/faulty_store.py`
//! compares. `rows` prints every row of a layout, given as JSON, as a line of JSON: the texts and the
//! SHA-256 of the images. `dataset/tests/layouts.py` compares them.

#![allow(clippy::print_stdout, reason = "the example is run for what it prints")]

use std::collections::BTreeSet;
use std::error::Error;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use flamingo_dataset::{
    Batch, Corpus, DiskCacheConfig, EncodedImage, EpochOrder, Fit, ImageConfig, Layout, Loader,
    LossMask, Mixture, MixtureEntry, MixtureMode, PixelType, Row, SampleConfig, Shuffle, Tokenizer,
    Verify, sha256_hex,
};

/// Rows of a batch.
const BATCH: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let corpus = arguments.next().ok_or("expected a corpus")?;
    let what = arguments
        .next()
        .ok_or("expected `pixels`, `bytes`, `batches`, `random`, `hashes` or `rows`")?;
    if what == "rows" {
        return rows(&corpus, &arguments.next().ok_or("expected a layout in JSON")?);
    }
    let threads: usize = arguments.next().ok_or("expected a number of threads")?.parse()?;
    let batches: u64 = arguments.next().ok_or("expected a number of batches")?.parse()?;
    let from: u64 = arguments.next().map_or(Ok(0), |number| number.parse())?;
    let Times { seconds, first, n_bytes } = match &*what {
        "pixels" => pixels(&corpus, threads, from..from + batches, |_| ())?,
        "bytes" => bytes(&corpus, threads, batches, Shuffle::default())?,
        "batches" => whole_batches(&corpus, threads, batches)?,
        "random" => {
            let uniform = Shuffle { block_rows: 1, group_blocks: u64::MAX };
            bytes(&corpus, threads, batches, uniform)?
        }
        "hashes" => {
            pixels(&corpus, threads, from..from + batches, |batch| println!("{}", batch.sha256()))?;
            return Ok(());
        }
        other => return Err(format!("`{other}`, expected `pixels`, `bytes` or `hashes`").into()),
    };
    let n = batches * BATCH as u64;
    println!(
        "{n} samples in {seconds:.3} s, {:.0} a second, first after {first:.3} s, {n_bytes} bytes",
        n as f64 / seconds
    );
    Ok(())
}

/// What is measured.
struct Times {
    /// From an open corpus to the last row.
    seconds: f64,
    /// From the start to the first batch, or for `bytes` until the corpus is open.
    first: f64,
    /// Bytes of images and texts, as far as they were counted.
    n_bytes: u64,
}

/// Prints every row, or why it cannot be read.
fn rows(corpus: &str, layout: &str) -> Result<(), Box<dyn Error>> {
    let corpus = Corpus::open_as(corpus, &serde_json::from_str::<Layout>(layout)?, None)?;
    for number in 0..corpus.n_rows() {
        let row = match corpus.read(number) {
            Ok(row) => row,
            Err(error) => {
                println!("{}", serde_json::json!({ "error": error.to_string() }));
                continue;
            }
        };
        let image = |image: &&EncodedImage| sha256_hex(&image.bytes);
        let images: Vec<_> = row.images().iter().map(image).collect();
        let slots = match &row {
            Row::Interleaved(page) => page.joined_text().text,
            _ => String::new(),
        };
        println!(
            "{}",
            serde_json::json!({ "key": row.key(), "texts": row.texts(), "images": images,
                "slots": slots })
        );
    }
    Ok(())
}

/// The cache that the environment names: FOLDER, BYTES and BYTES of a piece.
fn disk_cache() -> Option<DiskCacheConfig> {
    let named = std::env::var("DISK_CACHE").ok()?;
    let mut parts = named.split(',');
    let folder = parts.next()?.into();
    let mut number = || parts.next()?.parse().ok();
    Some(DiskCacheConfig { folder, bytes_max: number()?, piece_bytes: number()? })
}

/// Takes batches from the loader.
fn pixels(
    corpora: &str,
    threads: usize,
    batches: Range<u64>,
    seen: impl Fn(&Batch),
) -> Result<Times, Box<dyn Error>> {
    let started = Instant::now();
    let image =
        ImageConfig { size: 224, fit: Fit::CenterCrop, mean: [0.48, 0.46, 0.41], std: [0.27; 3] };
    let sample = SampleConfig {
        tokens: 32,
        images: 1,
        frames: 1,
        next_image_probability: 0.0,
        space_prefix_probability: 0.5,
        flip_probability: 0.0,
        colour_jitter: 0.0,
        image,
        pixels: match std::env::var("PIXELS").as_deref() {
            Ok("u8") => PixelType::U8,
            _ => PixelType::F32,
        },
        loss: LossMask::Paper,
        pack: 1,
        learn_after: None,
        verify: match std::env::var("VERIFY").as_deref() {
            Ok("nothing") => Verify::Nothing,
            _ => Verify::Images,
        },
    };
    let entry = |(i, corpus): (usize, &str)| MixtureEntry {
        name: format!("pairs {i}"),
        corpus: corpus.to_owned(),
        layout: Layout::Corpus,
        disk_cache: disk_cache(),
        batch: BATCH,
        weight: 1.0,
        sample: sample.clone(),
        shuffle: Shuffle::default(),
        skip_rows: BTreeSet::new(),
        corrupt_share_max: 0.0,
    };
    let entries: Vec<_> = corpora.split(',').enumerate().map(entry).collect();
    let tokenizer = Arc::new(Tokenizer::train(["a photograph".to_owned()].into_iter(), 270)?);
    let mixture = Mixture::open(entries, tokenizer, MixtureMode::Accumulate, 0)?;
    let open = Instant::now();
    let mut loader = Loader::start(mixture, batches.start, threads);
    let mut first = 0.0;
    for batch in batches.clone() {
        let step = loader.next_step()?;
        assert_eq!(step[0].pixels.len(), BATCH * 3 * 224 * 224, "pixels of a batch");
        seen(&step[0]);
        if batch == batches.start {
            first = started.elapsed().as_secs_f64();
        }
    }
    Ok(Times { seconds: open.elapsed().as_secs_f64(), first, n_bytes: 0 })
}

/// Reads rows.
fn bytes(
    corpus: &str,
    threads: usize,
    batches: u64,
    shuffle: Shuffle,
) -> Result<Times, Box<dyn Error>> {
    let started = Instant::now();
    let corpus = Corpus::open_as(corpus, &Layout::Corpus, disk_cache().as_ref())?;
    let first = started.elapsed().as_secs_f64();
    let open = Instant::now();
    let order = EpochOrder::new(corpus.n_rows(), shuffle, &[0]);
    let n_bytes = AtomicU64::new(0);
    let read = |thread: u64| {
        let positions = (thread..batches * BATCH as u64).step_by(threads);
        positions.map(|position| corpus.read(order.row(position % corpus.n_rows()))).try_for_each(
            |row| {
                let row = row?;
                n_bytes.fetch_add(n_bytes_of(&row), Ordering::Relaxed);
                Ok::<_, flamingo_dataset::CorpusError>(())
            },
        )
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads as u64)
            .map(|thread| {
                scope.spawn({
                    let read = &read;
                    move || read(thread)
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a reader does not panic"))
    })?;
    let seconds = open.elapsed().as_secs_f64();
    Ok(Times { seconds, first, n_bytes: n_bytes.into_inner() })
}

/// As [`bytes`], but the rows arrive here, 64 at a time and in order.
fn whole_batches(corpus: &str, threads: usize, batches: u64) -> Result<Times, Box<dyn Error>> {
    let started = Instant::now();
    let corpus = Corpus::open_as(corpus, &Layout::Corpus, disk_cache().as_ref())?;
    let first = started.elapsed().as_secs_f64();
    let open = Instant::now();
    let order = EpochOrder::new(corpus.n_rows(), Shuffle::default(), &[0]);
    let read = |batch: u64| -> Result<Vec<Row>, flamingo_dataset::CorpusError> {
        let positions = batch * BATCH as u64..(batch + 1) * BATCH as u64;
        positions.map(|position| corpus.read(order.row(position % corpus.n_rows()))).collect()
    };
    let mut n_bytes = 0;
    std::thread::scope(|scope| {
        // Each thread reads every so manieth batch, at most two ahead, as a PyTorch loader does.
        let arriving: Vec<_> = (0..threads as u64)
            .map(|thread| {
                let (sender, receiver) = std::sync::mpsc::sync_channel(1);
                let read = &read;
                scope.spawn(move || {
                    (thread..batches).step_by(threads).try_for_each(|b| sender.send(read(b)))
                });
                receiver
            })
            .collect();
        for receiver in arriving.iter().cycle().take(batches as usize) {
            n_bytes += receiver.recv()??.iter().map(n_bytes_of).sum::<u64>();
        }
        Ok::<_, Box<dyn Error>>(())
    })?;
    Ok(Times { seconds: open.elapsed().as_secs_f64(), first, n_bytes })
}

/// Bytes of a row's images and texts.
fn n_bytes_of(row: &Row) -> u64 {
    let images: usize = row.images().iter().map(|image| image.bytes.len()).sum();
    let texts: usize = row.texts().iter().map(|text| text.len()).sum();
    (images + texts) as u64
}
