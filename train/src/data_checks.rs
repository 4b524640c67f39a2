//! What must hold of the datasets of a config, one by one and together, in every stage.

use flamingo_dataset::MixtureMode;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::{DataConfig, RunConfig};
use crate::config_file::ConfigFile;
use crate::error::TrainError;
use crate::limits;

impl<M: DeserializeOwned + Serialize> ConfigFile<M> {
    /// Checks the datasets of a table one by one.
    pub(crate) fn check_datasets(&self, table: &str, all: &[DataConfig]) -> Result<(), TrainError> {
        for (index, entry) in all.iter().enumerate() {
            let is_new = all[..index].iter().all(|other| other.name != entry.name);
            let key = format!("{table}.{index}.name");
            self.require(is_new, &key[..], &entry.name, "a name of its own")?;
            let is_shown = !entry.name.trim().is_empty() && !entry.name.contains(char::is_control);
            let name = format!("{:?}", entry.name);
            self.require(is_shown, key, &name, "a name that can be shown in a line")?;
            let path = format!("{table}.{}", entry.name);
            self.check_dataset(&path, entry)?;
            self.check_memory(&path, entry)?;
        }
        Ok(())
    }

    fn check_dataset(&self, path: &str, entry: &DataConfig) -> Result<(), TrainError> {
        let key = |field: &str| format!("{path}.{field}");
        self.require(entry.batch > 0, key("batch"), &entry.batch, "at least 1")?;
        let weight = entry.weight;
        self.require(
            weight >= 0.0 && weight.is_finite(),
            key("weight"),
            &weight,
            "a number, 0 or more",
        )?;
        self.require(entry.tokens > 1, key("tokens"), &entry.tokens, "at least 2")?;
        self.require(entry.frames > 0, key("frames"), &entry.frames, "at least 1")?;
        self.require(entry.pack > 0, key("pack"), &entry.pack, "at least 1")?;
        let sizes = [
            ("batch", entry.batch, limits::BATCH_MAX),
            ("tokens", entry.tokens, limits::TOKENS_MAX),
            ("images", entry.images, limits::IMAGES_MAX),
            ("frames", entry.frames, limits::FRAMES_MAX),
        ];
        self.require_sizes(path, &sizes)?;
        if let Some(text) = &entry.learn_after {
            self.require(!text.is_empty(), key("learn_after"), &"empty", "a text")?;
        }
        for (field, value) in [
            ("next_image_probability", entry.next_image_probability),
            ("space_prefix_probability", entry.space_prefix_probability),
            ("flip_probability", entry.flip_probability),
            ("colour_jitter", entry.colour_jitter),
        ] {
            self.require((0.0..=1.0).contains(&value), key(field), &value, "0 to 1")?;
        }
        Ok(())
    }

    /// Each of the sizes may be within its limit and their product not.
    fn check_memory(&self, path: &str, entry: &DataConfig) -> Result<(), TrainError> {
        let key = format!("{path}.batch");
        let side = self.config.image.as_ref().map_or(0, |image| image.size);
        let row = [entry.images, entry.frames, 3, side, side];
        let expected = format!(
            "at most {} pixel values in batch * images * frames * 3 * image.size^2",
            limits::BATCH_PIXEL_VALUES_MAX
        );
        let fits = fits_in(limits::BATCH_PIXEL_VALUES_MAX, entry.batch, &row);
        self.require(fits, &key[..], &entry.batch, &expected)?;
        let expected = format!("at most {} tokens in batch * tokens", limits::BATCH_TOKENS_MAX);
        let fits = fits_in(limits::BATCH_TOKENS_MAX, entry.batch, &[entry.tokens]);
        self.require(fits, key, &entry.batch, &expected)
    }

    /// Rows of one batch have the same number of frames.
    pub(crate) fn check_frames(&self, entry: &DataConfig) -> Result<(), TrainError> {
        let first = &self.config.data[0];
        let fits = self.config.mixture != MixtureMode::Merged || entry.frames == first.frames;
        let key = format!("data.{}.frames", entry.name);
        let expected = format!("{}, as in `{}`, to merge", first.frames, first.name);
        self.require(fits, key, &entry.frames, &expected)
    }

    /// The parts of a batch are alike, and a merged batch is cut as one.
    pub(crate) fn check_micro_batches(&self, entry: &DataConfig) -> Result<(), TrainError> {
        let (key, n) = (format!("data.{}.micro_batches", entry.name), entry.micro_batches);
        let divides = n > 0 && entry.batch.is_multiple_of(n);
        let expected = format!("a divisor of batch, {}", entry.batch);
        self.require(divides, &key[..], &n, &expected)?;
        let first = &self.config.data[0];
        let fits = self.config.mixture != MixtureMode::Merged || n == first.micro_batches;
        let expected = format!("{}, as in `{}`, to merge", first.micro_batches, first.name);
        self.require(fits, key, &n, &expected)
    }

    /// Something is learned; and where rows of all datasets are one batch, they have one mean loss.
    pub(crate) fn check_weights(&self) -> Result<(), TrainError> {
        let RunConfig { mixture, data, .. } = &self.config;
        let key = |entry: &DataConfig| format!("data.{}.weight", entry.name);
        let is_merged = *mixture == MixtureMode::Merged;
        for entry in data.iter().filter(|_| is_merged) {
            let expected = "1 with `mixture = \"merged\"`, where rows of all datasets are one batch with one loss";
            let is_one = (entry.weight - 1.0).abs() < f64::EPSILON;
            self.require(is_one, key(entry), &entry.weight, expected)?;
        }
        let learns = data.iter().any(|entry| entry.weight > 0.0);
        let first = &data[0];
        self.require(learns, key(first), &first.weight, "above 0 in one dataset at least")
    }
}

/// Whether `first` times all of `rest` is at most `most`.
fn fits_in(most: usize, first: usize, rest: &[usize]) -> bool {
    let product = rest.iter().try_fold(first, |product, factor| product.checked_mul(*factor));
    product.is_some_and(|product| product <= most)
}
