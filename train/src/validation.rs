//! Validation: what a model makes of rows that it never learns from, every few updates.
//!
//! Each time the same batches are read, the first ones of epoch 0 in the order of the run's seed, by a
//! loader of their own: the rows that are learned from, and every weight, are those of a run without
//! validation. Nothing is augmented.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flamingo_dataset::{
    Batch, Corpus, CorruptRow, Layout, Loader, LossMask, Mixture, MixtureEntry, MixtureMode,
    PixelType, Shuffle, Tokenizer, Verify,
};
use serde::{Deserialize, Serialize};

use crate::config::{self, DataConfig};
use crate::config_file::ConfigFile;
use crate::ema::{Ema, WeightsUsed};
use crate::error::TrainError;
use crate::stage::Stage;
use crate::stop::StopSignals;

/// What the names of all measures begin with.
pub const PREFIX: &str = "validation";

/// Measures by their names.
pub type Measures = BTreeMap<String, f64>;

/// Read from `[validation]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidationConfig {
    /// Updates between two validations; there is one after the last step as well, which stays where a run goes
    /// on for more steps.
    pub every: u64,
    /// Most batches of each dataset; one with fewer rows gives as many whole batches as it has.
    pub batches: u64,
    /// Which weights are looked at: `raw`, or `ema`, the averages of `[ema]`. A resumed run keeps to it.
    /// With an early stop `best`, like a grid's table, names the checkpoint, in which the averages are `ema/`.
    #[serde(default, skip_serializing_if = "WeightsUsed::is_raw")]
    pub weights: WeightsUsed,
    /// The datasets.
    pub data: Vec<HeldOutConfig>,
}

/// A dataset that is not learned from. Keys are those of `[[data]]`, without weight, augmentations and
/// shuffling.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOutConfig {
    /// Its name in metrics and messages. When a run is continued, another corpus needs another name.
    pub name: String,
    /// Path or URL of the corpus.
    pub corpus: String,
    /// Who wrote it, where it is not a corpus of this project.
    #[serde(default, skip_serializing_if = "Layout::is_own")]
    pub layout: Layout,
    /// Rows per batch.
    pub batch: usize,
    /// Tokens per row.
    pub tokens: usize,
    /// Most images per row.
    #[serde(default)]
    pub images: usize,
    /// Frames per image or clip.
    #[serde(default = "config::one")]
    pub frames: usize,
    /// Chance that the text of a page looks at the next image. Drawn for each document from the seed,
    /// so that it is the same each time.
    #[serde(default = "config::paper_chance")]
    pub next_image_probability: f64,
    /// How pixels leave the loader: `u8` or `f32`.
    #[serde(default)]
    pub pixels: PixelType,
    /// Which tokens are predicted.
    #[serde(default = "config::paper_loss")]
    pub loss: LossMask,
    /// Rows that share a sequence.
    #[serde(default = "config::one")]
    pub pack: usize,
    /// Of captions only what follows the last occurrence of this text is predicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learn_after: Option<String>,
    /// Largest share of corrupt rows.
    #[serde(default = "config::few_corrupt")]
    pub corrupt_share_max: f64,
    /// Whether images are compared with their digests.
    #[serde(default, skip_serializing_if = "config::is_usual")]
    pub verify: Verify,
    /// In the contrastive stage: classes among which images are told apart by their captions' words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// Texts that describe an image of a class, whose name stands for `{}`; a class is the mean of their
    /// embeddings.
    #[serde(default = "class_alone", skip_serializing_if = "is_class_alone")]
    pub prompts: Vec<String>,
}

/// Share of images that are nearest to the class that their caption names.
pub const CLASS_ACCURACY: &str = "class_accuracy";

/// Images whose captions name one class.
pub const CLASS_ROWS: &str = "class_rows";

/// The measures of texts, see [`TextLoss::measures`].
pub const OF_TEXTS: [&str; 3] = ["nll", "perplexity", "bits_per_byte"];

/// The name of a measure of a dataset.
pub(crate) fn measure_name(dataset: &str, measure: &str) -> String {
    format!("{PREFIX}.{dataset}.{measure}")
}

/// Stands for the name of a class.
pub const CLASS_PLACE: &str = "{}";

fn class_alone() -> Vec<String> {
    vec![CLASS_PLACE.to_owned()]
}

/// Whether these are the prompts where none are given.
pub(crate) fn is_class_alone(prompts: &Vec<String>) -> bool {
    *prompts == class_alone()
}

impl HeldOutConfig {
    /// The dataset as one that is learned from, with weight 0 and without augmentation.
    pub fn to_data(&self) -> DataConfig {
        DataConfig {
            name: self.name.clone(),
            corpus: self.corpus.clone(),
            layout: self.layout.clone(),
            batch: self.batch,
            micro_batches: 1,
            weight: 0.0,
            tokens: self.tokens,
            images: self.images,
            frames: self.frames,
            next_image_probability: self.next_image_probability,
            space_prefix_probability: 0.0,
            flip_probability: 0.0,
            colour_jitter: 0.0,
            pixels: self.pixels,
            loss: self.loss,
            learn_after: self.learn_after.clone(),
            pack: self.pack,
            shuffle: Shuffle::default(),
            skip_rows: BTreeSet::new(),
            corrupt_share_max: self.corrupt_share_max,
            verify: self.verify,
        }
    }
}

/// The validation of a run.
pub struct Validation {
    every: u64,
    /// The last step of the run, which there is a validation after as well.
    last: u64,
    /// Whether an early stop goes by it, and it may not change.
    decides: bool,
    weights: WeightsUsed,
    held_out: Vec<HeldOut>,
}

/// A dataset that is not learned from, open.
pub struct HeldOut {
    config: HeldOutConfig,
    mixture: Arc<Mixture>,
    n_batches: u64,
    tokenizer: Arc<Tokenizer>,
    /// Those of the last time that all batches were given.
    corrupt: RefCell<Vec<CorruptRow>>,
}

/// Corrupt rows that were told of, under the names of their datasets.
pub type CorruptTold = BTreeMap<String, BTreeSet<u64>>;

/// What a validation finds.
#[derive(Debug, Default)]
pub struct Found {
    /// All measures of all datasets, such as `validation.pairs.nll`.
    pub measures: Measures,
    /// Corrupt rows that others stood in for; their datasets are named as in `validation.pairs`.
    pub corrupt_rows: Vec<CorruptRow>,
}

impl Found {
    /// Leaves out the corrupt rows that were told of, and notes the others: the same rows are read each time.
    pub fn tell_once(&mut self, told: &mut CorruptTold) {
        self.corrupt_rows
            .retain(|found| told.entry(found.dataset.clone()).or_default().insert(found.row));
    }
}

impl Validation {
    /// The datasets of a config, which are open in its order; none if it has no `[validation]`.
    ///
    /// # Errors
    /// When a corpus has no whole batch.
    pub(crate) fn open<M>(
        file: &ConfigFile<M>,
        corpora: Vec<(MixtureEntry, Corpus)>,
        tokenizer: &Arc<Tokenizer>,
    ) -> Result<Option<Self>, TrainError> {
        let Some(config) = &file.config.validation else { return Ok(None) };
        let mut held_out = Vec::with_capacity(corpora.len());
        for (data, (entry, corpus)) in config.data.iter().zip(corpora) {
            let (n_rows, batch_rows) = (corpus.n_rows(), (data.batch * data.pack) as u64);
            let n_whole = n_rows / batch_rows;
            if n_whole == 0 {
                return Err(TrainError::ConfigValue {
                    path: file.path.clone(),
                    key: format!("validation.data.{}.batch", data.name),
                    value: data.batch.to_string(),
                    expected: format!("a batch that the {n_rows} rows of its corpus fill"),
                });
            }
            let (tokenizer, seed) = (Arc::clone(tokenizer), file.config.seed);
            let corpora = vec![(entry, corpus)];
            let mode = MixtureMode::Accumulate;
            let mixture = Mixture::with_corpora(corpora, Arc::clone(&tokenizer), mode, seed)
                .map_err(TrainError::loader)?;
            let (config, n_batches) = (data.clone(), config.batches.min(n_whole));
            let (mixture, corrupt) = (Arc::new(mixture), RefCell::default());
            held_out.push(HeldOut { config, mixture, n_batches, tokenizer, corrupt });
        }
        let (last, decides) = (file.config.steps, file.config.early_stop.is_some());
        let (every, weights) = (config.every, config.weights);
        Ok(Some(Self { every, last, decides, weights, held_out }))
    }

    /// Whether there is to be a validation after `done` updates. Where a run is stopped before its last step
    /// counts for nothing: it finds the same when it goes on.
    pub fn is_due(&self, done: u64) -> bool {
        done.is_multiple_of(self.every) || done == self.last
    }

    /// Looks at all datasets after `done` updates, with the weights or with the averages, as the config says.
    ///
    /// # Errors
    /// When rows cannot be read or the model cannot be run.
    pub fn measure(
        &self,
        stage: &mut dyn Stage,
        averages: Option<&Ema>,
        done: u64,
    ) -> Result<Found, TrainError> {
        match averages.filter(|_| self.weights == WeightsUsed::Ema) {
            Some(averages) => averages.in_place(stage, |stage| self.measured(stage, done)),
            None => self.measured(stage, done),
        }
    }

    fn measured(&self, stage: &dyn Stage, done: u64) -> Result<Found, TrainError> {
        let mut found = Found::default();
        for held_out in &self.held_out {
            let name = &held_out.config.name;
            let measures = stage.validate(held_out);
            let measures = measures.map_err(|error| self.failed(error, &held_out.config, done))?;
            let named = measures.into_iter().map(|(key, value)| (measure_name(name, &key), value));
            found.measures.extend(named);
            found.corrupt_rows.extend(held_out.corrupt.take().into_iter().map(|row| {
                let dataset = format!("{PREFIX}.{}", row.dataset);
                CorruptRow { dataset, ..row }
            }));
        }
        Ok(found)
    }

    /// An error, or what can be done about it where it is that a batch found no memory.
    fn failed(&self, error: TrainError, of: &HeldOutConfig, step: u64) -> TrainError {
        let TrainError::Model { action, source } = error else { return error };
        if !source.is_out_of_memory() {
            return TrainError::Model { action, source };
        }
        let (dataset, half) = (of.name.clone(), of.batch / 2);
        let set = format!("`--set validation.data.{dataset}.batch={half}`, half of it");
        let less_memory = match (half, self.decides) {
            (0, _) => "a GPU with more of it can go on from there with --resume".to_owned(),
            (_, false) => format!("go on from there with --resume and {set}"),
            (_, true) => format!("start anew with {set}: what an early stop goes by cannot change"),
        };
        TrainError::ValidationMemory { step, dataset, less_memory, source: Box::new(source) }
    }
}

impl HeldOut {
    /// What the config says of it.
    pub fn config(&self) -> &HeldOutConfig {
        &self.config
    }

    /// The run's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Gives each batch to `look`, in the same order each time.
    ///
    /// # Errors
    /// When rows cannot be read, a signal comes while they are waited for, or `look` fails.
    pub fn each_batch(
        &self,
        mut look: impl FnMut(&Batch) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
        let n_threads = n_threads.min(self.n_batches as usize);
        let steps = 0..self.n_batches;
        self.corrupt.take();
        let signals = StopSignals::listen().map_err(TrainError::Signals)?;
        let mut loader = Loader::start_within(Arc::clone(&self.mixture), steps, n_threads);
        for _ in 0..self.n_batches {
            let batches = loader.next_step_unless(&|| signals.came().is_some());
            let batches = batches.map_err(TrainError::loader)?;
            for batch in batches.ok_or(TrainError::ValidationCut)? {
                self.corrupt.borrow_mut().extend_from_slice(&batch.corrupt);
                look(&batch)?;
            }
        }
        Ok(())
    }
}

/// Measures in one line.
pub fn text(measures: &Measures) -> String {
    let one = |(name, value): (&String, &f64)| {
        let name = name.strip_prefix(PREFIX).map_or(&name[..], |name| &name[1..]);
        format!("{name} {value:.4}")
    };
    measures.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use flamingo_model::{DeviceError, ModelError};

    use super::*;

    #[test]
    fn without_memory_the_batch_that_found_none_is_named() {
        let check = |batch, decides, expected: &str| {
            let keys = "name = 'held'\ncorpus = ''\ntokens = 8";
            let of: HeldOutConfig = toml::from_str(&format!("{keys}\nbatch = {batch}")).unwrap();
            let (weights, held_out) = (WeightsUsed::Raw, Vec::new());
            let validation = Validation { every: 5, last: 10, decides, weights, held_out };
            let source = ModelError::Device(DeviceError::OutOfMemory);
            let error = TrainError::Model { action: "run", source };
            // Not what would be less memory in a step.
            let error = validation.failed(error, &of, 5).in_step(6, "less of the step's");
            assert_eq!(error.exit_code(), 1);
            let text = error.to_string();
            let rest = text.strip_prefix(
                "the validation of `held` after step 5 does not fit into memory; the last checkpoint, if \
                 there is one, stands: ",
            );
            assert_eq!(rest, Some(expected), "{text}");
        };
        let set = |half| format!("`--set validation.data.held.batch={half}`, half of it");
        check(9, false, &format!("go on from there with --resume and {}", set(4)));
        let anew = format!("start anew with {}: what an early stop goes by cannot change", set(1));
        check(2, true, &anew);
        check(1, false, "a GPU with more of it can go on from there with --resume");
    }
}
