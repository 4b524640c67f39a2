//! Batches depend on seed and step alone: not on threads, not on where a run was resumed.

#![expect(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use flamingo_dataset::{
    Batch, CorpusError, CorpusKind, Cursor, Fit, ImageConfig, Layout, Loader, LossMask, MERGED,
    Mixture, MixtureEntry, MixtureMode, PixelType, Rank, Row, SampleConfig, Shuffle, Tokenizer,
    Verify,
};
use proptest::prelude::*;
use support::{clip, page, pair, write_corpus};

fn sample(tokens: usize, images: usize, frames: usize) -> SampleConfig {
    SampleConfig {
        tokens,
        images,
        frames,
        next_image_probability: 0.5,
        space_prefix_probability: 0.5,
        flip_probability: 0.5,
        colour_jitter: 0.2,
        image: ImageConfig { size: 6, fit: Fit::MeanPad, mean: [0.5; 3], std: [0.3; 3] },
        pixels: PixelType::F32,
        loss: LossMask::Paper,
        pack: 1,
        learn_after: None,
        verify: Verify::Images,
    }
}

fn entry(name: &str, corpus: &str, batch: usize, sample: SampleConfig) -> MixtureEntry {
    MixtureEntry {
        name: name.to_owned(),
        corpus: corpus.to_owned(),
        layout: Layout::Corpus,
        disk_cache: None,
        batch,
        weight: 1.0,
        sample,
        shuffle: Shuffle { block_rows: 2, group_blocks: 2 },
        skip_rows: BTreeSet::new(),
        corrupt_share_max: 1.0,
    }
}

fn tokenizer() -> Arc<Tokenizer> {
    let texts = ["a red circle and a blue square".to_owned(), "a square moves right".to_owned()];
    Arc::new(Tokenizer::train(texts.into_iter(), 290).unwrap())
}

/// Pages, pairs and clips; few enough that epochs end within the tests.
fn three_corpora(folder: &Path) -> Vec<MixtureEntry> {
    let pages: Vec<Row> = (0..7).map(|i| page(i, 1 + i % 4)).collect();
    let pairs: Vec<Row> = (0..11).map(pair).collect();
    let clips: Vec<Row> = (0..5).map(|i| clip(i, 1 + i)).collect();
    let (a, b) = pages.split_at(3);
    let pages = write_corpus(&folder.join("pages"), CorpusKind::Interleaved, &[a, b]);
    let pairs = write_corpus(&folder.join("pairs"), CorpusKind::ImageText, &[&pairs]);
    let clips = write_corpus(&folder.join("clips"), CorpusKind::VideoText, &[&clips]);
    vec![
        entry("pages", &pages, 2, sample(24, 2, 1)),
        entry("pairs", &pairs, 4, sample(12, 1, 1)),
        entry("clips", &clips, 1, sample(12, 1, 3)),
    ]
}

fn mixture(entries: &[MixtureEntry], mode: MixtureMode) -> Mixture {
    Mixture::open(entries.to_vec(), tokenizer(), mode, 42).unwrap()
}

fn steps(loader: &mut Loader, n: usize) -> Vec<Vec<Batch>> {
    (0..n).map(|_| loader.next_step().unwrap()).collect()
}

/// The pixels of a batch.
fn numbers(batch: &Batch) -> Vec<f32> {
    let mut numbers = Vec::new();
    batch.pixels.append_to(&mut numbers, 0..batch.pixels.len());
    numbers
}

#[test]
fn resuming_twice_equals_never_stopping() {
    let folder = tempfile::tempdir().unwrap();
    let entries = three_corpora(folder.path());
    for mode in [MixtureMode::Accumulate, MixtureMode::RoundRobin] {
        let open = |step| Loader::open(entries.clone(), tokenizer(), mode, 42, step).unwrap();
        let never_stopped = steps(&mut open(0), 17);
        let mut resumed = Vec::new();
        let mut cursor = Cursor { step: 0 };
        for n in [5, 3, 9] {
            let stored = serde_json::to_string(&cursor).unwrap();
            cursor = serde_json::from_str(&stored).unwrap();
            let mut loader = open(cursor.step);
            resumed.extend(steps(&mut loader, n));
            cursor = loader.cursor();
        }
        assert_eq!(cursor, Cursor { step: 17 });
        assert_eq!(resumed, never_stopped, "{mode:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Killed anywhere, twice, with other numbers of threads: every batch has the same hash.
    #[test]
    fn stops_and_threads_change_no_hash(
        first in 0_u64..9, second in 0_u64..9, threads in proptest::array::uniform3(1_usize..5),
        seed: u64, block_rows in 1_u64..5, merged: bool, pack in 1_usize..3,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut entries = three_corpora(folder.path());
        for entry in &mut entries {
            entry.shuffle.block_rows = block_rows;
        }
        entries[0].sample.pack = pack;
        if !merged {
            entries[1].sample.pixels = PixelType::U8;
        }
        let mode = if merged { MixtureMode::Merged } else { MixtureMode::Accumulate };
        entries.truncate(if merged { 2 } else { 3 });
        let open = || Mixture::open(entries.clone(), tokenizer(), mode, seed).unwrap();
        let hashes = |step: Vec<Batch>| step.iter().map(Batch::sha256).collect::<Vec<_>>();
        let n_steps = first + second + 4;
        let whole = open();
        let expected: Vec<_> = (0..n_steps).map(|s| hashes(whole.step(s).unwrap())).collect();
        let (mut found, mut step) = (Vec::new(), 0);
        for (n, n_threads) in [first, second, 4].into_iter().zip(threads) {
            let mut loader = Loader::start(open(), step, n_threads);
            found.extend((0..n).map(|_| hashes(loader.next_step().unwrap())));
            step = loader.cursor().step;
        }
        prop_assert_eq!(found, expected);
    }
}

/// Two short rows in a sequence: the rows of two steps of one row each, in the same order.
#[test]
fn packed_sequences_take_the_rows_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut entries = three_corpora(folder.path());
    entries.truncate(1);
    let alone = mixture(&entries, MixtureMode::Accumulate);
    entries[0].sample.pack = 2;
    entries[0].sample.tokens = 256;
    entries[0].sample.images = 10;
    let packed = mixture(&entries, MixtureMode::Accumulate);
    let mut n_images = 0;
    for step in 0..9 {
        let batch = &packed.step(step).unwrap()[0];
        let rows = [2 * step, 2 * step + 1].map(|s| alone.step(s).unwrap()[0].rows.clone());
        assert_eq!(batch.rows, rows.concat());
        assert_eq!((batch.size, batch.rows.len()), (2, 4));
        n_images += batch.image_count.iter().sum::<usize>();
    }
    // Pages have 1 + i % 4 images, and all fit: 36 rows are five epochs of seven and one row.
    let per_epoch: usize = (0..7).map(|i| 1 + i % 4).sum();
    assert!((5 * per_epoch + 1..=5 * per_epoch + 4).contains(&n_images), "{n_images}");
}

#[test]
fn threads_do_not_change_a_batch() {
    let folder = tempfile::tempdir().unwrap();
    let entries = three_corpora(folder.path());
    let plain = mixture(&entries, MixtureMode::Accumulate);
    let expected: Vec<_> = (0..9).map(|step| plain.step(step).unwrap()).collect();
    for n_threads in [1, 2, 7] {
        let mixture = mixture(&entries, MixtureMode::Accumulate);
        assert_eq!(steps(&mut Loader::start(mixture, 0, n_threads), 9), expected);
    }
}

#[test]
fn loaders_of_a_range_share_a_mixture_and_end_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let entries = three_corpora(folder.path());
    let plain = Arc::new(mixture(&entries, MixtureMode::Accumulate));
    for n_threads in [1, 3] {
        let start = || Loader::start_within(Arc::clone(&plain), 2..4, n_threads);
        let (mut one, mut other) = (start(), start());
        for step in 2..4 {
            let expected = plain.step(step).unwrap();
            assert_eq!(one.next_step().unwrap(), expected);
            assert_eq!(other.next_step().unwrap(), expected);
        }
        let ended = one.next_step().unwrap_err().to_string();
        assert!(ended.contains("before step 4"), "{ended}");
    }
}

#[test]
fn another_seed_gives_another_order() {
    let folder = tempfile::tempdir().unwrap();
    let entries = three_corpora(folder.path());
    let rows = |seed| {
        let mode = MixtureMode::Accumulate;
        let mixture = Mixture::open(entries.clone(), tokenizer(), mode, seed).unwrap();
        (0..5).map(|step| mixture.step(step).unwrap()[1].rows.clone()).collect::<Vec<_>>()
    };
    assert_eq!(rows(1), rows(1));
    assert_ne!(rows(1), rows(2));
}

#[test]
fn each_epoch_has_every_row_once_in_its_own_order() {
    let folder = tempfile::tempdir().unwrap();
    let entries = three_corpora(folder.path());
    let mixture = mixture(&entries[1..2], MixtureMode::Accumulate);
    let rows: Vec<u64> = (0..11).flat_map(|s| mixture.step(s).unwrap()[0].rows.clone()).collect();
    let epochs: Vec<&[u64]> = rows.chunks(11).collect();
    for epoch in &epochs {
        let mut sorted = epoch.to_vec();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..11).collect::<Vec<_>>());
    }
    assert_eq!(epochs.len(), 4);
    assert_ne!(epochs[0], epochs[1]);
}

#[test]
fn a_batch_has_the_shape_it_states() {
    let folder = tempfile::tempdir().unwrap();
    let entries = three_corpora(folder.path());
    let batches = mixture(&entries, MixtureMode::Accumulate).step(3).unwrap();
    assert_eq!(batches.len(), 3);
    for (idx, (batch, entry)) in batches.iter().zip(&entries).enumerate() {
        assert_eq!((batch.dataset, &batch.name, batch.size), (idx, &entry.name, entry.batch));
        let tokens = batch.size * batch.length;
        assert_eq!(batch.tokens.len(), tokens);
        assert_eq!(batch.phi.len(), tokens);
        assert_eq!(batch.loss_mask.len(), tokens);
        let pixels = batch.size * batch.n_images * batch.n_frames * 3 * 6 * 6;
        assert_eq!(batch.pixels.len(), pixels);
        assert_eq!((batch.n_images, batch.n_frames), (entry.sample.images, entry.sample.frames));
        assert_eq!((batch.image_count.len(), batch.rows.len()), (batch.size, batch.size));
        let marks = batch.tokens.chunks(batch.length);
        let marks = marks.map(|t| t.iter().filter(|&&t| t == 3).count());
        assert_eq!(marks.collect::<Vec<_>>(), batch.image_count, "one image per mark");
    }
}

#[test]
fn without_images_a_row_is_its_text_with_all_marks() {
    let folder = tempfile::tempdir().unwrap();
    let mut entries = three_corpora(folder.path());
    // Not an image at all: it would not decode.
    let Row::ImageText(mut broken) = pair(0) else { unreachable!("pairs are image_text rows") };
    broken.image.bytes = Bytes::from_static(b"no image");
    let broken = [Row::ImageText(broken)];
    entries[1].corpus =
        write_corpus(&folder.path().join("broken"), CorpusKind::ImageText, &[&broken]);
    for entry in &mut entries {
        entry.sample.images = 0;
    }
    entries[0].sample.tokens = 200;
    let batches = mixture(&entries, MixtureMode::Accumulate).step(0).unwrap();
    for (batch, marks_expected) in batches.iter().zip([2, 4, 1]) {
        assert!(batch.pixels.is_empty() && batch.corrupt.is_empty());
        assert!(batch.phi.iter().all(|&phi| phi == -1));
        assert_eq!(batch.image_count, vec![0; batch.size]);
        let marks = batch.tokens.iter().filter(|&&token| token == 3).count();
        assert!(marks >= marks_expected, "{}: {marks} marks", batch.name);
    }
}

#[test]
fn round_robin_gives_each_dataset_its_turn() {
    let folder = tempfile::tempdir().unwrap();
    let entries = three_corpora(folder.path());
    let turns = mixture(&entries, MixtureMode::RoundRobin);
    let together = mixture(&entries, MixtureMode::Accumulate);
    for step in 0..7 {
        let batches = turns.step(step).unwrap();
        assert_eq!(batches.len(), 1);
        let dataset = (step % 3) as usize;
        assert_eq!(batches[0], together.step(step / 3).unwrap()[dataset]);
    }
}

#[test]
fn merging_puts_all_rows_under_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let entries = three_corpora(folder.path());
    let merged = mixture(&entries[..2], MixtureMode::Merged).step(2).unwrap();
    let apart = mixture(&entries[..2], MixtureMode::Accumulate).step(2).unwrap();
    let [batch] = merged.as_slice() else { panic!("one batch") };
    assert_eq!((batch.name.as_str(), batch.size, batch.length), (MERGED, 6, 24));
    assert_eq!(batch.rows, [apart[0].rows.clone(), apart[1].rows.clone()].concat());
    assert_eq!(&batch.tokens[..48], apart[0].tokens);
    assert_eq!(&batch.tokens[48..60], &apart[1].tokens[..12]);
    assert!(batch.tokens[60..72].iter().all(|&t| t == 0), "padded");
    assert_eq!(batch.pixels.len(), 6 * 2 * 3 * 36);
    let error = Mixture::open(entries, tokenizer(), MixtureMode::Merged, 1).err().unwrap();
    assert!(error.to_string().contains("`clips`"), "frames differ: {error}");
}

/// Pairs of which the given ones have no image in their bytes.
fn pairs_with_corrupt(folder: &Path, n: u8, corrupt: &[u8]) -> MixtureEntry {
    let rows: Vec<Row> = (0..n)
        .map(|i| {
            let Row::ImageText(mut row) = pair(i) else { unreachable!() };
            if corrupt.contains(&i) {
                row.image.bytes = Bytes::from_static(b"<html>404</html>");
            }
            Row::ImageText(row)
        })
        .collect();
    let location = write_corpus(folder, CorpusKind::ImageText, &[&rows]);
    entry("pairs", &location, 4, sample(12, 1, 1))
}

#[test]
fn a_corrupt_row_is_counted_and_the_next_one_stands_in() {
    let folder = tempfile::tempdir().unwrap();
    let good = pairs_with_corrupt(&folder.path().join("good"), 12, &[]);
    let bad = pairs_with_corrupt(&folder.path().join("bad"), 12, &[2, 7]);
    let mixture = mixture(std::slice::from_ref(&bad), MixtureMode::Accumulate);
    let epoch: Vec<Batch> = (0..3).map(|s| mixture.step(s).unwrap().remove(0)).collect();
    assert_eq!(epoch.iter().map(|b| b.size).collect::<Vec<_>>(), [4, 4, 4]);
    let corrupt: Vec<_> = epoch.iter().flat_map(|b| b.corrupt.clone()).collect();
    assert!([2, 7].iter().all(|bad| corrupt.iter().any(|found| found.row == *bad)), "{corrupt:?}");
    assert!(
        corrupt.iter().all(|f| f.dataset == "pairs" && f.problem.contains("image")),
        "{corrupt:?}"
    );
    let rows: Vec<u64> = epoch.iter().flat_map(|b| b.rows.clone()).collect();
    assert!(!rows.contains(&2) && !rows.contains(&7), "{rows:?}");
    let mut all = rows.clone();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 10, "every sound row still comes: {rows:?}");
    let loader = Loader::open(vec![bad], tokenizer(), MixtureMode::Accumulate, 42, 1);
    assert_eq!(loader.unwrap().next_step().unwrap(), mixture.step(1).unwrap(), "also resumed");
    let sound = Mixture::open(vec![good], tokenizer(), MixtureMode::Accumulate, 42).unwrap();
    assert!(sound.step(0).unwrap()[0].corrupt.is_empty());
}

#[test]
fn a_corpus_of_corrupt_rows_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let entry = pairs_with_corrupt(folder.path(), 3, &[0, 1, 2]);
    let location = entry.corpus.clone();
    let open = Loader::open(vec![entry], tokenizer(), MixtureMode::Accumulate, 42, 0);
    let mut loader = open.unwrap();
    let error = loader.next_step().unwrap_err();
    assert!(matches!(error, CorpusError::AllCorrupt { tried: 2, .. }), "{error}");
    assert!(error.to_string().contains(&location), "{error}");
    assert!(matches!(loader.next_step().unwrap_err(), CorpusError::LoaderStopped { step: 0 }));
}

#[test]
fn more_corrupt_rows_than_allowed_stop_the_loader() {
    let folder = tempfile::tempdir().unwrap();
    let mut entry = pairs_with_corrupt(folder.path(), 12, &[2]);
    // Of the first 1000 rows, ten may be corrupt: those of ten epochs.
    entry.corrupt_share_max = 0.01;
    let open = Loader::open(vec![entry], tokenizer(), MixtureMode::Accumulate, 42, 0);
    let mut loader = open.unwrap();
    let failed = (0..40).find_map(|step| loader.next_step().err().map(|error| (step, error)));
    let (step, error) = failed.unwrap();
    assert!(matches!(error, CorpusError::TooManyCorrupt { n_corrupt: 11, row: 2, .. }), "{error}");
    assert!((25..33).contains(&step), "{step}");
    assert!(error.to_string().contains("`pairs`"), "{error}");
}

#[test]
fn rows_of_the_skip_list_never_come_and_all_others_do() {
    let folder = tempfile::tempdir().unwrap();
    let entries = three_corpora(folder.path());
    let mut skipping = entries.clone();
    skipping[1].skip_rows = BTreeSet::from([0, 5, 9]);
    let read = mixture(&skipping, MixtureMode::Accumulate);
    let epoch: Vec<u64> = (0..11).flat_map(|s| read.step(s).unwrap()[1].rows.clone()).collect();
    let expected: BTreeSet<u64> = (0..11).filter(|row| ![0, 5, 9].contains(row)).collect();
    assert_eq!(epoch.into_iter().collect::<BTreeSet<_>>(), expected);
    // The order of other datasets, and of rows that were not to be passed over, stays as it was.
    let plain = mixture(&entries, MixtureMode::Accumulate);
    for step in 0..11 {
        let (with, without) = (read.step(step).unwrap(), plain.step(step).unwrap());
        assert_eq!((&with[0], &with[2]), (&without[0], &without[2]));
        for (row, before) in with[1].rows.iter().zip(&without[1].rows) {
            assert!(row == before || [0, 5, 9].contains(before), "{row}, before {before}");
        }
    }
    skipping[1].skip_rows = (0..11).collect();
    let error = Mixture::open(skipping, tokenizer(), MixtureMode::Accumulate, 1).err().unwrap();
    assert!(error.to_string().contains("names every row"), "{error}");
}

#[test]
fn processes_together_read_what_one_reads() {
    let folder = tempfile::tempdir().unwrap();
    let mut entries = three_corpora(folder.path());
    for entry in &mut entries {
        entry.batch = 4;
    }
    let whole = mixture(&entries, MixtureMode::Accumulate);
    for count in [1, 2, 4] {
        let ranks = (0..count).map(|index| {
            mixture(&entries, MixtureMode::Accumulate).for_rank(Rank { index, count }).unwrap()
        });
        let ranks: Vec<_> = ranks.collect();
        for step in 0..5 {
            let shares: Vec<_> = ranks.iter().map(|rank| rank.step(step).unwrap()).collect();
            for (i, batch) in whole.step(step).unwrap().iter().enumerate() {
                let joined = |part: &dyn Fn(&Batch) -> Vec<u32>| -> Vec<u32> {
                    shares.iter().flat_map(|share| part(&share[i])).collect()
                };
                let bits =
                    |numbers: &[f32]| numbers.iter().map(|n| n.to_bits()).collect::<Vec<_>>();
                assert_eq!(joined(&|batch| batch.tokens.clone()), batch.tokens);
                let pixels = joined(&|batch| bits(&numbers(batch)));
                assert_eq!(pixels, bits(&numbers(batch)));
            }
        }
    }
    let uneven = mixture(&entries, MixtureMode::Accumulate).for_rank(Rank { index: 0, count: 3 });
    assert!(uneven.err().unwrap().to_string().contains("process 0 of 3"));
}

#[test]
fn a_shard_that_vanishes_stops_the_loader() {
    let folder = tempfile::tempdir().unwrap();
    let entries = three_corpora(folder.path());
    std::fs::remove_file(folder.path().join("pairs/shard-00000.parquet")).unwrap();
    let mut loader = Loader::start(mixture(&entries, MixtureMode::Accumulate), 0, 2);
    let error = loader.next_step().unwrap_err();
    assert!(matches!(error, CorpusError::Object { .. }), "{error}");
}

#[test]
fn settings_out_of_range_name_dataset_and_field() {
    let folder = tempfile::tempdir().unwrap();
    let entries = three_corpora(folder.path());
    let message = |change: fn(&mut MixtureEntry)| {
        let mut entries = entries.clone();
        change(&mut entries[1]);
        let mode = MixtureMode::Accumulate;
        Mixture::open(entries, tokenizer(), mode, 1).err().unwrap().to_string()
    };
    let expect = |change, field: &str| {
        let message = message(change);
        assert!(message.contains("`pairs`") && message.contains(field), "{message}");
    };
    expect(|e| e.batch = 0, "`batch`");
    expect(|e| e.weight = f64::NAN, "`weight`");
    expect(|e| e.sample.tokens = 1, "`tokens`");
    expect(|e| e.sample.flip_probability = 1.5, "`flip_probability`");
    expect(|e| e.sample.image.std[1] = 0.0, "`image.std`");
    assert!(Mixture::open(vec![], tokenizer(), MixtureMode::Merged, 1).is_err());
}

#[test]
fn dropping_a_loader_ends_its_threads() {
    let folder = tempfile::tempdir().unwrap();
    let entries = three_corpora(folder.path());
    for n_steps in [0, 1, 4] {
        let mut loader = Loader::start(mixture(&entries, MixtureMode::Accumulate), 0, 3);
        steps(&mut loader, n_steps);
        drop(loader); // joins; a thread that went on would hang the test
    }
}
