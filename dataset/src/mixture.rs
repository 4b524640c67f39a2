//! Several corpora drawn from together: which rows make up step s.
//!
//! Step s of dataset m covers positions `s * b_m` and on of an endless sequence of positions, where
//! `b_m` is the batch of the dataset times the rows of a sequence (round-robin counts only the steps at
//! which the dataset has its turn). Position p lies in epoch p / n and names a row through that epoch's permutation, so any
//! step can be made without those before it.
//!
//! A corrupt row is replaced by the row of the next position of its epoch, at the end of the epoch
//! by that of the first, and is named in [`Batch::corrupt`]. Rows of the skip list are passed over in
//! the same way: the list is part of the order.
//!
//! Several processes share the batches of one order: each makes the rows of its share, and together
//! they make those that one process would.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::batch::{Batch, BatchPixels, BatchShape, CorruptRow};
use crate::digest::sha256_u64;
use crate::order::{EpochOrder, Shuffle};
use crate::patience::patiently;
use crate::pixels::PixelType;
use crate::read_ahead::{ReadAhead, read_ahead};
use crate::sample::{SampleConfig, SampleKey, Sequence, make_sequence};
use crate::{Corpus, CorpusError, CorpusKind, DiskCacheConfig, Layout, Row, Tokenizer};

/// Name of a batch that holds rows of all datasets.
pub const MERGED: &str = "merged";

/// Rows tried in the place of a corrupt one before a corpus is given up.
const SUBSTITUTES_MAX: u64 = 32;

/// One dataset of a mixture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixtureEntry {
    /// Name in metrics and messages.
    pub name: String,
    /// Path or URL of the corpus.
    pub corpus: String,
    /// Who wrote it.
    pub layout: Layout,
    /// Where pieces of a corpus in a distant store are kept.
    pub disk_cache: Option<DiskCacheConfig>,
    /// Sequences per step, `b_m`.
    pub batch: usize,
    /// Weight of the loss, the paper's lambda (section 2.4). The loader only checks it; 0 is watched and
    /// not learned.
    pub weight: f64,
    /// How rows become examples.
    pub sample: SampleConfig,
    /// How far rows are mixed.
    pub shuffle: Shuffle,
    /// Rows that are never drawn, by their number in the corpus.
    pub skip_rows: BTreeSet<u64>,
    /// Largest share of corrupt rows, of those read since the loader began; more stop it.
    pub corrupt_share_max: f64,
}

/// One of several processes that share every batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rank {
    /// Its number, from 0.
    pub index: usize,
    /// How many there are.
    pub count: usize,
}

impl Rank {
    /// The only process.
    pub const ONLY: Self = Self { index: 0, count: 1 };
}

/// How the datasets share the steps (paper appendix B.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MixtureMode {
    /// Each step has one batch of every dataset, for one update: the paper's choice.
    Accumulate,
    /// Each step has one batch of one dataset, in turn.
    RoundRobin,
    /// Each step has one batch, made of the batches of all datasets under each other. Shorter
    /// sequences are padded; frames and image size must agree.
    Merged,
}

/// A mixture open for reading.
pub struct Mixture {
    datasets: Vec<Dataset>,
    tokenizer: Arc<Tokenizer>,
    mode: MixtureMode,
    seed: u64,
    rank: Rank,
}

struct Dataset {
    entry: MixtureEntry,
    corpus: Corpus,
    /// From the manifest, so that another corpus has another order.
    key: u64,
}

/// Sequences `first..first + entry.batch` of one dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    dataset: usize,
    first: u64,
}

impl Mixture {
    /// Opens the corpora of a mixture and checks its settings.
    ///
    /// # Errors
    /// When there is no entry, a setting is out of range, or a corpus cannot be opened or is empty.
    pub fn open(
        entries: Vec<MixtureEntry>,
        tokenizer: Arc<Tokenizer>,
        mode: MixtureMode,
        seed: u64,
    ) -> Result<Self, CorpusError> {
        check_entries(&entries.iter().collect::<Vec<_>>(), mode)?;
        let open = |entry: MixtureEntry| {
            let cache = entry.disk_cache.as_ref();
            let corpus = Corpus::open_as(&entry.corpus, &entry.layout, cache)?;
            Ok((entry, corpus))
        };
        let entries = entries.into_iter().map(open).collect::<Result<Vec<_>, _>>()?;
        Self::with_corpora(entries, tokenizer, mode, seed)
    }

    /// The mixture of corpora that are open.
    ///
    /// # Errors
    /// When there is no entry, a setting is out of range, or a corpus is empty.
    pub fn with_corpora(
        entries: Vec<(MixtureEntry, Corpus)>,
        tokenizer: Arc<Tokenizer>,
        mode: MixtureMode,
        seed: u64,
    ) -> Result<Self, CorpusError> {
        check_entries(&entries.iter().map(|(entry, _)| entry).collect::<Vec<_>>(), mode)?;
        let datasets = entries.into_iter().map(|(entry, corpus)| Dataset::new(entry, corpus));
        let datasets = datasets.collect::<Result<Vec<_>, _>>()?;
        Ok(Self { datasets, tokenizer, mode, seed, rank: Rank::ONLY })
    }

    /// The share of one of several processes: of the sequences of each dataset in each batch, as many for
    /// every process, in the order of their numbers.
    ///
    /// # Errors
    /// When there is no such process, or a batch cannot be shared out evenly.
    pub fn for_rank(self, rank: Rank) -> Result<Self, CorpusError> {
        for Dataset { entry, .. } in &self.datasets {
            if rank.index >= rank.count || entry.batch % rank.count != 0 {
                let Rank { index, count } = rank;
                let problem = format!("is {}, for process {index} of {count}", entry.batch);
                return Err(setting(entry, "batch", problem));
            }
        }
        Ok(Self { rank, ..self })
    }

    /// The datasets in order, and how many sequences of each batch of theirs this process makes.
    pub(crate) fn shares(&self) -> impl Iterator<Item = (&MixtureEntry, u64)> {
        let share = |entry: &MixtureEntry| (entry.batch / self.rank.count) as u64;
        self.datasets.iter().map(move |Dataset { entry, .. }| (entry, share(entry)))
    }

    /// The batches of one step.
    ///
    /// # Errors
    /// When a corpus cannot be read, or has too many corrupt rows in a row.
    pub fn step(&self, step: u64) -> Result<Vec<Batch>, CorpusError> {
        let n = self.batches_per_step();
        let batches = (step * n..(step + 1) * n).map(|i| self.batch(i, &AtomicBool::new(false)));
        Ok(batches.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    /// Batches of each step.
    pub(crate) fn batches_per_step(&self) -> u64 {
        match self.mode {
            MixtureMode::Accumulate => self.datasets.len() as u64,
            MixtureMode::RoundRobin | MixtureMode::Merged => 1,
        }
    }

    /// Batch `number`, counted from step 0; `None` once `stop` is set.
    pub(crate) fn batch(
        &self,
        number: u64,
        stop: &AtomicBool,
    ) -> Result<Option<Batch>, CorpusError> {
        let parts = self.parts(number);
        let shape = self.shape(&parts);
        let first = parts[0].dataset;
        let name = match self.mode {
            MixtureMode::Merged => MERGED,
            _ => &self.datasets[first].entry.name,
        };
        let size = parts.iter().map(|part| self.datasets[part.dataset].entry.batch).sum::<usize>();
        let sample = &self.datasets[first].entry.sample;
        let pixels = BatchPixels::of(sample.pixels, &sample.image);
        let mut batch = Batch::empty(first, name, size / self.rank.count, shape, pixels);
        for part in parts {
            let dataset = &self.datasets[part.dataset];
            let share = (dataset.entry.batch / self.rank.count) as u64;
            let first = part.first + self.rank.index as u64 * share;
            let sequences = first..first + share;
            let mut fill = |ahead: Option<&ReadAhead>| {
                let from = Reading { ahead, stop };
                for sequence in sequences.clone() {
                    if stop.load(Ordering::Relaxed) {
                        return Ok(false);
                    }
                    let pixels = &mut batch.pixels;
                    let drawn = dataset.draw(sequence, self.seed, &self.tokenizer, pixels, from)?;
                    batch.corrupt.extend(drawn.corrupt);
                    batch.push(drawn.sequence, &drawn.rows, self.tokenizer.pad_id(), shape);
                }
                Ok(true)
            };
            let is_whole = if dataset.corpus.is_distant() {
                let rows = dataset.rows(sequences.clone(), self.seed);
                read_ahead(&rows, |row| dataset.read(row, stop), |ahead| fill(Some(ahead)))?
            } else {
                fill(None)?
            };
            if !is_whole {
                return Ok(None);
            }
        }
        Ok(Some(batch))
    }

    fn parts(&self, number: u64) -> Vec<Part> {
        let n = self.datasets.len() as u64;
        let part = |dataset: u64, turn: u64| {
            let batch = self.datasets[dataset as usize].entry.batch as u64;
            Part { dataset: dataset as usize, first: turn * batch }
        };
        match self.mode {
            MixtureMode::Accumulate | MixtureMode::RoundRobin => vec![part(number % n, number / n)],
            MixtureMode::Merged => (0..n).map(|dataset| part(dataset, number)).collect(),
        }
    }

    /// The shape that holds the examples of all parts.
    fn shape(&self, parts: &[Part]) -> BatchShape {
        let samples = || parts.iter().map(|part| &self.datasets[part.dataset].entry.sample);
        let first = &self.datasets[parts[0].dataset].entry.sample;
        BatchShape {
            tokens: samples().map(|s| s.tokens).max().unwrap_or(first.tokens),
            images: samples().map(|s| s.images).max().unwrap_or(first.images),
            frames: first.frames,
            image_len: first.frames * 3 * first.image.size * first.image.size,
        }
    }
}

/// How rows are read.
#[derive(Clone, Copy)]
struct Reading<'a> {
    /// Those that are on their way already.
    ahead: Option<&'a ReadAhead<'a>>,
    /// Set when nobody wants them any more.
    stop: &'a AtomicBool,
}

/// A sequence and what it cost.
struct Drawn {
    sequence: Sequence,
    /// The rows that it is made of.
    rows: Vec<u64>,
    corrupt: Vec<CorruptRow>,
}

impl Dataset {
    fn new(entry: MixtureEntry, corpus: Corpus) -> Result<Self, CorpusError> {
        let n_rows = corpus.n_rows();
        if n_rows == 0 {
            return Err(setting(&entry, "corpus", format!("{} has no rows", entry.corpus)));
        }
        if let Some(row) = entry.skip_rows.iter().find(|row| **row >= n_rows) {
            let problem = format!("names row {row}, {} has {n_rows}", entry.corpus);
            return Err(setting(&entry, "skip_rows", problem));
        }
        if entry.skip_rows.len() as u64 == n_rows {
            let problem = format!("names every row of {}", entry.corpus);
            return Err(setting(&entry, "skip_rows", problem));
        }
        if entry.sample.learn_after.is_some() && corpus.kind() == CorpusKind::Interleaved {
            let problem = format!("is for captions, {} has pages", entry.corpus);
            return Err(setting(&entry, "learn_after", problem));
        }
        let key = sha256_u64(corpus.manifest().to_json().as_bytes());
        Ok(Self { entry, corpus, key })
    }

    /// The rows of sequences, where none is corrupt.
    fn rows(&self, sequences: Range<u64>, seed: u64) -> Vec<u64> {
        let pack = self.entry.sample.pack as u64;
        let positions = sequences.start * pack..sequences.end * pack;
        positions.map(|position| self.candidates(position, seed).next_row()).collect()
    }

    /// A row; a distant store that does not answer is waited for until `stop` is set.
    fn read(&self, row: u64, stop: &AtomicBool) -> Result<Row, CorpusError> {
        let read = || {
            if self.entry.sample.images > 0 {
                self.corpus.read(row)
            } else {
                self.corpus.read_texts(row)
            }
        };
        if self.corpus.is_distant() { patiently(stop, read) } else { read() }
    }

    /// Makes a sequence of the rows of its positions, or of the first sound rows after them. Adds its
    /// pixels to those of others.
    fn draw(
        &self,
        sequence: u64,
        seed: u64,
        tokenizer: &Tokenizer,
        pixels: &mut BatchPixels,
        from: Reading,
    ) -> Result<Drawn, CorpusError> {
        let pack = self.entry.sample.pack as u64;
        let positions = sequence * pack..(sequence + 1) * pack;
        let mut candidates: Vec<_> = positions.map(|at| self.candidates(at, seed)).collect();
        let mut corrupt = Vec::new();
        let mut drawn = Vec::with_capacity(candidates.len());
        for candidates in &mut candidates {
            drawn.push(self.next_readable(candidates, &mut corrupt, from)?);
        }
        loop {
            let rows: Vec<_> = drawn.iter().map(|(row, key)| (row, *key)).collect();
            let before = pixels.len();
            let (place, error) = match make_sequence(&rows, &self.entry.sample, tokenizer, pixels) {
                Ok(sequence) => {
                    let rows = drawn.iter().map(|(_, key)| key.row).collect();
                    return Ok(Drawn { sequence, rows, corrupt });
                }
                Err(problem) => problem,
            };
            pixels.truncate(before);
            candidates[place].note(drawn[place].1.row, error, &mut corrupt)?;
            drawn[place] = self.next_readable(&mut candidates[place], &mut corrupt, from)?;
        }
    }

    /// The rows that may stand at a position, in the order in which they are tried.
    fn candidates(&self, position: u64, seed: u64) -> Candidates<'_> {
        let n_rows = self.corpus.n_rows();
        let (epoch, place) = (position / n_rows, position % n_rows);
        let order = EpochOrder::new(n_rows, self.entry.shuffle, &[self.key, seed, epoch]);
        Candidates { dataset: self, order, seed, epoch, place, further: 0, tried: Vec::new() }
    }

    /// The next row that can be read.
    fn next_readable(
        &self,
        candidates: &mut Candidates,
        corrupt: &mut Vec<CorruptRow>,
        from: Reading,
    ) -> Result<(Row, SampleKey), CorpusError> {
        loop {
            let row = candidates.next_row();
            let was_read = from.ahead.and_then(|ahead| ahead.take(row));
            match was_read.unwrap_or_else(|| self.read(row, from.stop)) {
                Ok(stored) => {
                    let (seed, epoch) = (candidates.seed, candidates.epoch);
                    return Ok((stored, SampleKey { seed, epoch, row }));
                }
                Err(error) => candidates.note(row, error, corrupt)?,
            }
        }
    }
}

/// The rows that may stand at a position: its own, then those of the positions after it, to the end of
/// the epoch and from its start.
struct Candidates<'a> {
    dataset: &'a Dataset,
    order: EpochOrder,
    seed: u64,
    epoch: u64,
    place: u64,
    /// Positions that were passed.
    further: u64,
    /// Rows that are corrupt.
    tried: Vec<u64>,
}

impl Candidates<'_> {
    fn next_row(&mut self) -> u64 {
        let n_rows = self.dataset.corpus.n_rows();
        loop {
            assert!(
                self.further < n_rows,
                "the skip list leaves a row, and the last one ends this"
            );
            let row = self.order.row((self.place + self.further) % n_rows);
            self.further += 1;
            if !self.dataset.entry.skip_rows.contains(&row) {
                return row;
            }
        }
    }

    /// Notes a corrupt row; fails where it is no fault of the row, or too many were.
    fn note(
        &mut self,
        row: u64,
        error: CorpusError,
        corrupt: &mut Vec<CorruptRow>,
    ) -> Result<(), CorpusError> {
        if !error.is_about_one_row() {
            return Err(error);
        }
        let entry = &self.dataset.entry;
        let n_drawn = self.dataset.corpus.n_rows() - entry.skip_rows.len() as u64;
        let tried = self.tried.len() as u64;
        if tried == SUBSTITUTES_MAX.min(n_drawn - 1) {
            return Err(CorpusError::AllCorrupt {
                name: entry.name.clone(),
                location: entry.corpus.clone(),
                row: self.tried.first().copied().unwrap_or(row),
                tried,
                source: Box::new(error),
            });
        }
        self.tried.push(row);
        let dataset = entry.name.clone();
        corrupt.push(CorruptRow { dataset, row, problem: error.to_string() });
        Ok(())
    }
}

fn check_entries(entries: &[&MixtureEntry], mode: MixtureMode) -> Result<(), CorpusError> {
    let Some(first) = entries.first() else { return Err(CorpusError::EmptyMixture) };
    for entry in entries {
        if entry.batch == 0 {
            return Err(setting(entry, "batch", "is 0, at least 1 expected".to_owned()));
        }
        if !(entry.weight.is_finite() && entry.weight >= 0.0) {
            let problem = format!("is {}, a number from 0 on expected", entry.weight);
            return Err(setting(entry, "weight", problem));
        }
        if !(0.0..=1.0).contains(&entry.corrupt_share_max) {
            let problem = format!("is {}, 0 to 1 expected", entry.corrupt_share_max);
            return Err(setting(entry, "corrupt_share_max", problem));
        }
        let Shuffle { block_rows, group_blocks } = entry.shuffle;
        if block_rows == 0 || group_blocks == 0 {
            let problem =
                format!("is {block_rows} rows x {group_blocks} blocks, at least 1 expected");
            return Err(setting(entry, "shuffle", problem));
        }
        if let Some((field, problem)) = entry.sample.problem() {
            return Err(setting(entry, field, problem));
        }
        let is_taken = |other: &&&MixtureEntry| other.name == entry.name;
        if entry.name == MERGED || entries.iter().filter(is_taken).count() > 1 {
            let problem = format!("must be unlike the others and `{MERGED}`");
            return Err(setting(entry, "name", problem));
        }
        let same_images = entry.sample.frames == first.sample.frames
            && entry.sample.image.size == first.sample.image.size;
        if mode == MixtureMode::Merged && !same_images {
            let problem = format!("and image size must be those of `{}` to merge", first.name);
            return Err(setting(entry, "frames", problem));
        }
        let same_pixels = entry.sample.pixels == first.sample.pixels
            && (entry.sample.pixels == PixelType::F32
                || (entry.sample.image.mean, entry.sample.image.std)
                    == (first.sample.image.mean, first.sample.image.std));
        if mode == MixtureMode::Merged && !same_pixels {
            let problem = format!("must be those of `{}` to merge", first.name);
            return Err(setting(entry, "pixels", problem));
        }
    }
    Ok(())
}

fn setting(entry: &MixtureEntry, field: &'static str, problem: String) -> CorpusError {
    CorpusError::Setting { name: entry.name.clone(), field, problem }
}
