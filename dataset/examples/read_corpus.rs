//! Reads a corpus of pairs in shuffled order and tells how fast: what `dataset/benches/loaders.py`
//! measures.
//!
//! ```sh
//! cargo run --release -p flamingo-dataset --example read_corpus -- \
//!     CORPUS pixels|bytes|hashes THREADS BATCHES [FIRST_BATCH]
//! ```
//!
//! CORPUS may be several, with commas between them, for `pixels`: each gives every step a batch.
//! `pixels` takes batches of 64 from the loader: 224 x 224, centre crop, normalised, from
//! `FIRST_BATCH` on. `bytes` reads the same rows in the same order and decodes nothing.
//! `hashes` prints the SHA-256 of each batch in place of times: what `dataset/tests/faulty_store.py`
//! compares.

#![allow(clippy::print_stdout, reason = "the example is run for what it prints")]

use std::collections::BTreeSet;
use std::error::Error;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use flamingo_dataset::{
    Batch, Corpus, EpochOrder, Fit, ImageConfig, Loader, LossMask, Mixture, MixtureEntry,
    MixtureMode, SampleConfig, Shuffle, Tokenizer,
};

/// Rows of a batch.
const BATCH: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let corpus = arguments.next().ok_or("expected a corpus")?;
    let what = arguments.next().ok_or("expected `pixels`, `bytes` or `hashes`")?;
    let threads: usize = arguments.next().ok_or("expected a number of threads")?.parse()?;
    let batches: u64 = arguments.next().ok_or("expected a number of batches")?.parse()?;
    let from: u64 = arguments.next().map_or(Ok(0), |number| number.parse())?;
    let started = Instant::now();
    let first = match &*what {
        "pixels" => pixels(&corpus, threads, from..from + batches, |_| ())?,
        "bytes" => bytes(&corpus, threads, batches)?,
        "hashes" => {
            pixels(&corpus, threads, from..from + batches, |batch| println!("{}", batch.sha256()))?;
            return Ok(());
        }
        other => return Err(format!("`{other}`, expected `pixels`, `bytes` or `hashes`").into()),
    };
    let seconds = started.elapsed().as_secs_f64();
    let n = batches * BATCH as u64;
    println!(
        "{n} samples in {seconds:.3} s, {:.0} a second, first after {first:.3} s",
        n as f64 / seconds
    );
    Ok(())
}

/// Takes batches from the loader; seconds to the first.
fn pixels(
    corpora: &str,
    threads: usize,
    batches: Range<u64>,
    seen: impl Fn(&Batch),
) -> Result<f64, Box<dyn Error>> {
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
        loss: LossMask::All,
    };
    let entry = |(i, corpus): (usize, &str)| MixtureEntry {
        name: format!("pairs {i}"),
        corpus: corpus.to_owned(),
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
    Ok(first)
}

/// Reads rows; seconds until the corpus is open.
fn bytes(corpus: &str, threads: usize, batches: u64) -> Result<f64, Box<dyn Error>> {
    let started = Instant::now();
    let corpus = Corpus::open(corpus)?;
    let first = started.elapsed().as_secs_f64();
    let order = EpochOrder::new(corpus.n_rows(), Shuffle::default(), &[0]);
    let n_bytes = AtomicU64::new(0);
    let read = |thread: u64| {
        let positions = (thread..batches * BATCH as u64).step_by(threads);
        positions.map(|position| corpus.read(order.row(position % corpus.n_rows()))).try_for_each(
            |row| {
                let n: usize = row?.images().iter().map(|image| image.bytes.len()).sum();
                n_bytes.fetch_add(n as u64, Ordering::Relaxed);
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
    assert!(n_bytes.into_inner() > 0, "the rows have images");
    Ok(first)
}
