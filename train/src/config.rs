//! `RunConfig`: every number of a run, read from TOML. Relative paths in it start from `--root`, by
//! default the working directory.
//!
//! The parts are the same for every stage; `[model]` is the stage's own. The effective config, with
//! all defaults spelled out and every `--set` applied, is written to the run folder as
//! `config.toml`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use flamingo_dataset::{
    DiskCacheConfig, ImageConfig, Layout, LossMask, MixtureEntry, MixtureMode, PixelType,
    SampleConfig, Shuffle, Verify,
};
use flamingo_model::Recompute;
use serde::{Deserialize, Serialize};

use crate::checkpoint::Keep;
use crate::early_stop::EarlyStopConfig;
use crate::ema::EmaConfig;
use crate::few_shot::FewShotConfig;
use crate::gradient::LossNormalisation;
use crate::grid::GridConfig;
use crate::machine::HardwareConfig;
use crate::optimizer::OptimizerConfig;
use crate::schedule::Schedule;
use crate::trouble::{Action, GuardConfig};
use crate::validation::{HeldOutConfig, ValidationConfig};

/// All numbers of a run. `M` is the stage's `[model]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig<M> {
    /// Seed of fresh weights, of the order of rows and of augmentations.
    pub seed: u64,
    /// Updates of the whole run. May change when a run with a constant schedule is continued;
    /// decays end at the last step, so another number of them would be another run.
    pub steps: u64,
    /// Updates between checkpoints. May change when a run is continued, but steps that go wrong are
    /// rolled back to these checkpoints alone.
    pub checkpoint_every: u64,
    /// How many of the newest checkpoints stay. May change when a run is continued.
    pub keep_last: usize,
    /// Checkpoints of steps that are multiples of it stay for ever beside those. May change when a run is
    /// continued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_every: Option<u64>,
    /// How the datasets meet. Paper: gradients of all of them make one update (appendix B.1.2).
    #[serde(default = "paper_mixture")]
    pub mixture: MixtureMode,
    /// Weight of the mean of `log(Z)^2` over the predicted tokens beside the loss of each dataset, `Z` being
    /// the sum of the exponentials of a token's logits, in stages with a language model. `PaLM`: 1e-4,
    /// IDEFICS: 1e-3; the paper has none. Logged as `z_loss.DATASET`; `loss` and `losses` are without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub z_loss: Option<f32>,
    /// Which blocks of the model keep only their input for the backward pass: `nothing`, `frozen` or
    /// `all`. May change when a run is continued: the numbers are the same.
    #[serde(default)]
    pub recompute: Recompute,
    /// What is done about steps that go wrong. May change when a run is continued.
    #[serde(default)]
    pub guard: GuardConfig,
    /// Steps between two looks at how much the Flamingo stage's model looks at its images: how much
    /// more each dataset loses when its images are shuffled among its rows, and when they are blank.
    /// May change when a run is continued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blindness_every: Option<u64>,
    /// Steps between two looks at what the Flamingo stage's cross-attention adds to the text: the ratio of
    /// `tanh(alpha) * xattn(y)`, and of `tanh(beta) * ffw(y)`, to `y` itself, by layer. May change when
    /// a run is continued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gates_every: Option<u64>,
    /// Steps between two looks at the gradient of each dataset by itself, where gradients of at least two
    /// accumulate: its norm, its angle to the mixture's, its noise scale, and the lambdas that would make
    /// norms equal. A look takes as long as one to two steps, and memory for one more gradient. May change
    /// when a run is continued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accounting_every: Option<u64>,
    /// The program `flamingo-eval` for `few_shot`, if not the one beside this program. May change when a
    /// run is continued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_program: Option<PathBuf>,
    /// Rows that are not learned from, and when they are looked at. May change when a run without
    /// `early_stop` is continued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationConfig>,
    /// When the run ends before its last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_stop: Option<EarlyStopConfig>,
    /// Values to try, each combination in a run of its own, whose config has no grid.
    #[serde(default, skip_serializing)]
    pub grid: Option<GridConfig>,
    /// What is known of the machine. May change when a run is continued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<HardwareConfig>,
    /// What the losses of the tokens of a batch become: `token-mean`, or `sum`.
    #[serde(default)]
    pub loss_normalisation: LossNormalisation,
    /// The optimizer and its learning rate.
    pub optimizer: OptimizerConfig,
    /// The running average of the trained weights, if one is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<EmaConfig>,
    /// Where the tokenizer comes from, in stages that do not build on another run's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerConfig>,
    /// How images become pixels, in stages that look at images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageConfig>,
    /// Where pieces of corpora in distant stores are kept. May change when a run is continued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_cache: Option<DiskCacheConfig>,
    /// Where the Flamingo stage keeps what its frozen vision encoder made of images. May change when a
    /// run is continued: the numbers are the same with and without, but for the last bits on a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature_cache: Option<FeatureCacheConfig>,
    /// The stage's model.
    pub model: M,
    /// The datasets.
    pub data: Vec<DataConfig>,
    /// Tasks to which checkpoints of the Flamingo stage are put. May change when a run is continued.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub few_shot: Vec<FewShotConfig>,
}

fn paper_mixture() -> MixtureMode {
    MixtureMode::Accumulate
}

/// Where features are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureCacheConfig {
    /// Folder, which runs with the same encoder may share.
    pub folder: PathBuf,
    /// No more are added once the encoder's files have this many bytes: an image takes 4 * patches *
    /// width. Paper: none; for CLIP's ViT-L/14 a megabyte.
    #[serde(default = "cache_bytes")]
    pub bytes_max: u64,
}

fn cache_bytes() -> u64 {
    100_000_000_000
}

/// Where a tokenizer comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TokenizerConfig {
    /// A `tokenizer.json` of Hugging Face, a folder with one or with `vocab.json` and `merges.txt`, the
    /// merges of GPT-2 or CLIP, or ranks of tiktoken. Marks that it lacks are added after its tokens.
    Path(PathBuf),
    /// Trained on the texts of the run's corpora.
    Train {
        /// Most tokens, the five marks and the 256 bytes included.
        vocabulary: usize,
        /// Most rows read of each corpus, from its start.
        rows_max: u64,
    },
}

/// One dataset of the mixture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Its name in metrics and messages.
    pub name: String,
    /// Path or URL of the corpus.
    pub corpus: String,
    /// Who wrote it, where it is not a corpus of this project.
    #[serde(default, skip_serializing_if = "Layout::is_own")]
    pub layout: Layout,
    /// Rows per update. May change when a run is continued where memory is short: it goes on at the rows
    /// that the next step would have had with this number from the start.
    pub batch: usize,
    /// Parts of a batch that run one after the other, their gradients added: less memory for the same
    /// update, but for the rounding of sums. Divides `batch`. May change when a run is continued.
    #[serde(default = "one")]
    pub micro_batches: usize,
    /// Its lambda. Paper: 1.0 for M3W, 0.2 for ALIGN and LTIP, 0.03 for VTP. Where the rows of all datasets
    /// are one batch, which has one loss, it is 1.
    pub weight: f64,
    /// Tokens per row. Paper: 256 for M3W, 32 or 64 for pairs.
    pub tokens: usize,
    /// Most images per row; with 0 the images stay unread and only their marks remain. Paper: 5 for
    /// M3W.
    #[serde(default)]
    pub images: usize,
    /// Frames per image or clip; an image is a clip of one frame. Paper: 8 for video.
    #[serde(default = "one")]
    pub frames: usize,
    /// Chance that the text of a page looks at the next image instead of the previous one. Paper:
    /// 0.5.
    #[serde(default = "paper_chance")]
    pub next_image_probability: f64,
    /// Chance of a space before a caption. Paper: 0.5.
    #[serde(default = "paper_chance")]
    pub space_prefix_probability: f64,
    /// Chance of a left-right flip. The paper flips at random; 0.5 is our reading of it.
    #[serde(default = "paper_chance")]
    pub flip_probability: f64,
    /// Strength of the colour augmentation. The paper names it but gives no strength; 0 is none.
    #[serde(default)]
    pub colour_jitter: f64,
    /// How pixels leave the loader: `u8`, values of 256 that are augmented and normalised where the model runs,
    /// or `f32` for four times the memory of batches read ahead. May change when a run is continued.
    #[serde(default)]
    pub pixels: PixelType,
    /// Which tokens are learned: `paper` (all), `open_flamingo` or `seeing_an_image`.
    #[serde(default = "paper_loss")]
    pub loss: LossMask,
    /// Of captions only what follows the last occurrence of this text is learned, such as "Answer:"; a
    /// row without it counts as corrupt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learn_after: Option<String>,
    /// Rows that share a sequence, where most are far shorter than `tokens`.
    #[serde(default = "one")]
    pub pack: usize,
    /// How far rows are mixed.
    #[serde(default)]
    pub shuffle: Shuffle,
    /// Rows that are never drawn, by their number in the corpus.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub skip_rows: BTreeSet<u64>,
    /// Largest share of corrupt rows; each is replaced by the next sound one, and more stop the run.
    #[serde(default = "few_corrupt")]
    pub corrupt_share_max: f64,
    /// Whether images are compared with the digests that the corpus has of them, if it is one of this project
    /// and none of clips: `images` (one that differs makes a corrupt row) or `nothing`.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub verify: Verify,
}

/// Whether a value is the one that stands where none is given.
pub(crate) fn is_usual<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

pub(crate) fn few_corrupt() -> f64 {
    0.01
}

pub(crate) fn one() -> usize {
    1
}

pub(crate) fn paper_chance() -> f64 {
    0.5
}

pub(crate) fn paper_loss() -> LossMask {
    LossMask::Paper
}

impl<M> RunConfig<M> {
    /// The learning rate at each step.
    pub fn schedule(&self) -> Schedule {
        Schedule {
            lr_peak: self.optimizer.lr,
            warmup_steps: self.optimizer.warmup_steps,
            steps: self.steps,
            decay: self.optimizer.schedule,
        }
    }

    /// Which checkpoints stay.
    pub fn keep(&self) -> Keep {
        let goes_back = self.guard.action == Action::RollBack;
        Keep {
            last: self.keep_last,
            every: self.keep_every,
            back: goes_back.then_some(self.checkpoint_every),
        }
    }

    /// What can be done where memory does not suffice for a step on one of so many ranks;
    /// `batches_divide` if a batch can be cut.
    pub fn less_memory(&self, batches_divide: BatchesDivide, n_ranks: usize) -> String {
        let largest = self.data.iter().max_by_key(|entry| entry.tokens_at_once());
        let cut = |entries: &[DataConfig]| {
            let n = next_micro_batches(entries, n_ranks)?;
            let set = |entry: &DataConfig| format!("--set data.{}.micro_batches={n}", entry.name);
            let sets: Vec<String> = entries.iter().map(set).collect();
            Some(format!(
                "`{}`, which takes time and changes no number but by rounding",
                sets.join(" ")
            ))
        };
        let halved = |entry: &DataConfig| {
            let (name, half) = (&entry.name, entry.batch / 2);
            (half > 0).then(|| format!("`--set data.{name}.batch={half}`, half of it"))
        };
        let smaller = largest.and_then(|entry| match batches_divide {
            // It is cut as one.
            BatchesDivide::Yes if self.mixture == MixtureMode::Merged => cut(&self.data),
            BatchesDivide::Yes => cut(std::slice::from_ref(entry)),
            BatchesDivide::No => halved(entry),
        });
        let again = (self.recompute != Recompute::All).then(|| {
            "`--set recompute=\"all\"`, which takes time and changes no number".to_owned()
        });
        let ways: Vec<_> = smaller.into_iter().chain(again).collect();
        match &*ways {
            [] => "a GPU with more of it can go on from there with --resume".to_owned(),
            ways => format!("go on from there with --resume and {}", ways.join(", or ")),
        }
    }

    /// The datasets as the loader takes them; `locate` says where the path of a corpus leads.
    pub fn mixture_entries(
        &self,
        image: &ImageConfig,
        locate: impl Fn(&str) -> String,
    ) -> Vec<MixtureEntry> {
        self.entries(&self.data, image, locate)
    }

    /// The same of the datasets that are not learned from.
    pub fn held_out_entries(
        &self,
        image: &ImageConfig,
        locate: impl Fn(&str) -> String,
    ) -> Vec<MixtureEntry> {
        self.entries(&self.held_out(), image, locate)
    }

    /// The datasets of `[validation]`.
    pub(crate) fn held_out(&self) -> Vec<DataConfig> {
        let all = self.validation.iter().flat_map(|validation| &validation.data);
        all.map(HeldOutConfig::to_data).collect()
    }

    fn entries(
        &self,
        data: &[DataConfig],
        image: &ImageConfig,
        locate: impl Fn(&str) -> String,
    ) -> Vec<MixtureEntry> {
        let mut disk_cache = self.disk_cache.clone();
        if let Some(cache) = &mut disk_cache {
            cache.folder = locate(&cache.folder.to_string_lossy()).into();
        }
        let entries = data.iter().map(|entry| MixtureEntry {
            disk_cache: disk_cache.clone(),
            ..entry.to_mixture(image, &locate)
        });
        entries.collect()
    }
}

/// Whether a batch of a stage can be cut into parts that run one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchesDivide {
    /// The loss of a row is its own.
    Yes,
    /// It depends on the other rows.
    No,
}

impl DataConfig {
    /// About how many tokens a step looks at together, images included.
    fn tokens_at_once(&self) -> usize {
        // As many tokens as the paper's latents of an image.
        const IMAGE_TOKENS: usize = 64;
        let rows = self.batch / self.micro_batches;
        rows * (self.tokens + IMAGE_TOKENS * self.images * self.frames)
    }

    /// Rows of one batch.
    pub fn rows(&self) -> usize {
        self.batch * self.pack
    }

    fn to_mixture(&self, image: &ImageConfig, locate: impl Fn(&str) -> String) -> MixtureEntry {
        MixtureEntry {
            name: self.name.clone(),
            corpus: locate(&self.corpus),
            layout: self.layout.clone().located(locate),
            disk_cache: None,
            batch: self.batch,
            weight: self.weight,
            sample: SampleConfig {
                tokens: self.tokens,
                images: self.images,
                frames: self.frames,
                next_image_probability: self.next_image_probability,
                space_prefix_probability: self.space_prefix_probability,
                flip_probability: self.flip_probability,
                colour_jitter: self.colour_jitter,
                image: image.clone(),
                pixels: self.pixels,
                loss: self.loss,
                pack: self.pack,
                learn_after: self.learn_after.clone(),
                verify: if self.layout.is_own() { self.verify } else { Verify::Nothing },
            },
            shuffle: self.shuffle,
            skip_rows: self.skip_rows.clone(),
            corrupt_share_max: self.corrupt_share_max,
        }
    }
}

/// The next larger number of parts that a rank's share of each of these batches can be cut into.
fn next_micro_batches(entries: &[DataConfig], n_ranks: usize) -> Option<usize> {
    let shares = || entries.iter().map(|entry| entry.batch / n_ranks);
    let now = entries.iter().map(|entry| entry.micro_batches).max()?;
    (now + 1..=shares().min()?).find(|n| shares().all(|share| share.is_multiple_of(*n)))
}

#[cfg(test)]
mod tests {
    use flamingo_dataset::Fit;
    use flamingo_model::{DeviceError, ModelError};
    use toml::Table;

    use super::*;
    use crate::error::TrainError;

    fn check(
        batches: [(usize, usize); 2],
        recompute: &str,
        batches_divide: BatchesDivide,
        expected: &str,
    ) {
        check_mixture("accumulate", batches, recompute, batches_divide, expected);
    }

    /// Batches and their micro-batches.
    fn check_mixture(
        mixture: &str,
        batches: [(usize, usize); 2],
        recompute: &str,
        batches_divide: BatchesDivide,
        expected: &str,
    ) {
        let dataset = |(name, images, (batch, micro_batches)): (&str, usize, (usize, usize))| {
            format!(
                "[[data]]\nname = {name:?}\ncorpus = ''\nweight = 1\ntokens = 64\n\
                 images = {images}\nbatch = {batch}\nmicro_batches = {micro_batches}\n"
            )
        };
        let [pages, pairs] = batches;
        let data: String = [("pages", 5, pages), ("pairs", 1, pairs)].map(dataset).concat();
        let config: RunConfig<Table> = toml::from_str(&format!(
            "seed = 0\nsteps = 1\ncheckpoint_every = 1\nkeep_last = 1\nrecompute = {recompute:?}\n\
             mixture = {mixture:?}\n[optimizer]\nlr = 1e-4\nwarmup_steps = 0\nschedule = 'constant'\n[model]\n{data}"
        ))
        .unwrap();
        let source = ModelError::Device(DeviceError::OutOfMemory);
        let error = TrainError::Model { action: "run", source }
            .in_step(7, &config.less_memory(batches_divide, 1));
        let text = error.to_string();
        let rest = text.strip_prefix(
            "step 7 does not fit into memory; the last checkpoint, if there is one, stands: ",
        );
        assert_eq!(rest, Some(expected), "{text}");
    }

    #[test]
    fn images_of_corpora_of_others_are_not_compared_with_digests_of_what_was_found() {
        let verify = |key: &str| {
            let config: RunConfig<Table> = toml::from_str(&format!(
                "seed = 0\nsteps = 1\ncheckpoint_every = 1\nkeep_last = 1\n[optimizer]\nlr = 1e-4\n\
                 warmup_steps = 0\nschedule = 'constant'\n[model]\n[[data]]\nname = 'pairs'\n\
                 corpus = ''\nweight = 1\ntokens = 64\nbatch = 1\n{key}"
            ))
            .unwrap();
            let image = ImageConfig { size: 8, fit: Fit::MeanPad, mean: [0.5; 3], std: [0.5; 3] };
            config.mixture_entries(&image, str::to_owned)[0].sample.verify
        };
        assert_eq!(verify(""), Verify::Images);
        assert_eq!(verify("verify = 'nothing'"), Verify::Nothing);
        assert_eq!(verify("layout = { format = 'webdataset' }"), Verify::Nothing);
    }

    #[test]
    fn without_memory_the_largest_dataset_is_to_be_cut_or_halved() {
        use BatchesDivide::{No, Yes};
        let again = "`--set recompute=\"all\"`, which takes time and changes no number";
        let go_on = "go on from there with --resume and";
        let halved =
            |name: &str, half| format!("{go_on} `--set data.{name}.batch={half}`, half of it");
        let cut = |name: &str, n| {
            let set = format!("{go_on} `--set data.{name}.micro_batches={n}`");
            format!("{set}, which takes time and changes no number but by rounding")
        };
        check([(9, 1), (12, 1)], "frozen", No, &format!("{}, or {again}", halved("pages", 4)));
        check([(9, 1), (12, 1)], "frozen", Yes, &format!("{}, or {again}", cut("pages", 3)));
        check([(9, 9), (12, 3)], "all", Yes, &cut("pairs", 4));
        check([(2, 1), (12, 1)], "all", No, &halved("pairs", 6));
        check([(1, 1), (2, 1)], "nothing", Yes, &format!("{go_on} {again}"));
        let more = "a GPU with more of it can go on from there with --resume";
        check([(1, 1), (1, 1)], "all", No, more);
        check([(9, 9), (1, 1)], "all", Yes, more);
        // A merged batch is cut as one: in parts that are alike in every dataset.
        let both = "`--set data.pages.micro_batches=3 --set data.pairs.micro_batches=3`";
        let both =
            format!("{go_on} {both}, which takes time and changes no number but by rounding");
        check_mixture("merged", [(9, 1), (12, 1)], "all", Yes, &both);
        check_mixture("merged", [(9, 3), (12, 3)], "all", Yes, more);
    }
}
