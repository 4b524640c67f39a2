//! Reading a config file: overrides, the checks common to all stages, and messages that name file,
//! key and line.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use flamingo_dataset::{ImageConfig, LossMask, MixtureMode, Tokenizer};
use flamingo_model::ModelError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::Table;

use crate::config::{DataConfig, RunConfig, TokenizerConfig};
use crate::early_stop::EarlyStopConfig;
use crate::ema::WeightsUsed;
use crate::error::TrainError;
use crate::few_shot::{self, FewShotConfig};
use crate::gradient::LossNormalisation;
use crate::groups::GroupConfig;
use crate::limits::{self, Size};
use crate::optimizer::OptimizerConfig;
use crate::overrides::Override;
use crate::retrieval::words;
use crate::trouble::GuardConfig;
use crate::validation::{
    self, CLASS_ACCURACY, CLASS_PLACE, CLASS_ROWS, ValidationConfig, measure_name,
};

/// A config as read, with the names that messages need.
#[derive(Debug, Clone)]
pub struct ConfigFile<M> {
    /// The checked config.
    pub config: RunConfig<M>,
    /// The file that it was read from.
    pub path: PathBuf,
}

impl<M: DeserializeOwned + Serialize> ConfigFile<M> {
    /// Reads a config file, applies overrides and checks what is common to all stages.
    ///
    /// # Errors
    /// When the file cannot be read, is not TOML, has unknown, missing or wrong keys, or an
    /// override does not fit.
    pub fn read(path: &Path, overrides: &[Override]) -> Result<Self, TrainError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| TrainError::ConfigRead { path: path.to_path_buf(), source })?;
        let mut table: Table = toml::from_str(&text).map_err(|e| parse_error(path, &text, &e))?;
        if overrides.is_empty() {
            let config = toml::from_str(&text).map_err(|e| parse_error(path, &text, &e))?;
            return Self { config, path: path.to_path_buf() }.checked();
        }
        for change in overrides {
            change
                .apply(&mut table)
                .map_err(|message| TrainError::Override { given: change.given.clone(), message })?;
        }
        let config = table
            .try_into()
            .map_err(|error| overridden_error::<M>(path, &text, overrides, &error))?;
        Self { config, path: path.to_path_buf() }.checked()
    }

    fn checked(self) -> Result<Self, TrainError> {
        let config = &self.config;
        for (key, value) in [
            ("steps", config.steps),
            ("checkpoint_every", config.checkpoint_every),
            ("keep_last", config.keep_last as u64),
        ] {
            self.require(value > 0, key, &value, "at least 1")?;
        }
        if let Some(every) = config.keep_every {
            let checkpoint_every = config.checkpoint_every;
            let fits = every > 0 && every.is_multiple_of(checkpoint_every);
            let expected = format!("a multiple of checkpoint_every, {checkpoint_every}");
            self.require(fits, "keep_every", &every, &expected)?;
        }
        if let Some(z_loss) = config.z_loss {
            let is_share = z_loss > 0.0 && z_loss < 1.0;
            self.require(is_share, "z_loss", &z_loss, "above 0 and below 1")?;
        }
        self.check_optimizer(&config.optimizer)?;
        self.check_groups(&config.optimizer.groups)?;
        if let Some(ema) = &config.ema {
            let fits = (0.0..1.0).contains(&ema.decay);
            self.require(fits, "ema.decay", &ema.decay, "0 to below 1")?;
        }
        self.check_guard(&config.guard)?;
        for (key, every) in
            [("blindness_every", config.blindness_every), ("gates_every", config.gates_every)]
        {
            self.require(every != Some(0), key, &0, "at least 1")?;
        }
        if let Some(peak) = config.hardware.and_then(|hardware| hardware.peak_tflops) {
            let fits = peak > 0.0 && peak.is_finite();
            self.require(fits, "hardware.peak_tflops", &peak, "above 0")?;
        }
        self.check_accounting()?;
        self.check_few_shot()?;
        config.image.iter().try_for_each(|image| self.check_image(image))?;
        config.tokenizer.iter().try_for_each(|tokenizer| self.check_tokenizer(tokenizer))?;
        self.require(!config.data.is_empty(), "data", &"empty", "at least one dataset")?;
        self.check_datasets("data", &config.data)?;
        config.data.iter().try_for_each(|entry| self.check_frames(entry))?;
        config.data.iter().try_for_each(|entry| self.check_micro_batches(entry))?;
        self.check_weights()?;
        config.validation.iter().try_for_each(|validation| self.check_validation(validation))?;
        config.early_stop.iter().try_for_each(|stop| self.check_early_stop(stop))?;
        Ok(self)
    }

    fn check_weights_used(&self, key: String, weights: WeightsUsed) -> Result<(), TrainError> {
        let there = weights.is_raw() || self.config.ema.is_some();
        self.require(there, key, &"\"ema\"", "\"raw\" without a section [ema]")
    }

    fn check_few_shot(&self) -> Result<(), TrainError> {
        let RunConfig { few_shot, checkpoint_every, .. } = &self.config;
        for (index, entry) in few_shot.iter().enumerate() {
            let FewShotConfig { task, every, shots, queries, seconds_max, .. } = entry;
            let key = |field: &str| format!("few_shot.{index}.{field}");
            let is_new = few_shot[..index].iter().all(|other| other.task != *task);
            self.require(is_new, key("task"), task, "a task of its own")?;
            let at_checkpoints = *every > 0 && every.is_multiple_of(*checkpoint_every);
            let expected = format!("a multiple of `checkpoint_every`, {checkpoint_every}");
            self.require(at_checkpoints, key("every"), every, &expected)?;
            let differ = shots.iter().collect::<BTreeSet<_>>().len() == shots.len();
            let shots = format!("{shots:?}");
            self.require(differ && shots != "[]", key("shots"), &shots, "different numbers")?;
            self.require(*queries > 0, key("queries"), queries, "at least 1")?;
            self.require(*seconds_max > 0, key("seconds_max"), seconds_max, "at least 1")?;
            self.check_weights_used(key("weights"), entry.weights)?;
        }
        Ok(())
    }

    /// Fails unless the program that evaluates runs and knows the tasks of the config.
    ///
    /// # Errors
    /// When it does not.
    pub fn require_tasks(&self, program: &Path) -> Result<(), TrainError> {
        if self.config.few_shot.is_empty() {
            return Ok(());
        }
        let shown = program.display();
        let known = few_shot::tasks(program).or_else(|problem| {
            let expected = format!("a flamingo-eval that runs ({problem})");
            self.require(false, "eval_program", &shown, &expected).map(|()| Vec::new())
        })?;
        let expected = format!("one of {}, which {shown} knows", known.join(", "));
        self.config.few_shot.iter().enumerate().try_for_each(|(index, entry)| {
            let key = format!("few_shot.{index}.task");
            self.require(known.contains(&entry.task), key, &entry.task, &expected)
        })
    }

    fn check_accounting(&self) -> Result<(), TrainError> {
        let RunConfig { accounting_every, mixture, data, .. } = &self.config;
        let Some(every) = accounting_every else { return Ok(()) };
        let require = |holds, expected| self.require(holds, "accounting_every", every, expected);
        require(*every > 0, "at least 1")?;
        let several = data.iter().filter(|entry| entry.weight > 0.0).count() >= 2;
        let expected = "nothing: it needs two datasets of a weight whose gradients accumulate";
        require(several && *mixture == MixtureMode::Accumulate, expected)
    }

    fn check_optimizer(&self, optimizer: &OptimizerConfig) -> Result<(), TrainError> {
        for (key, value) in [
            ("optimizer.lr", optimizer.lr),
            ("optimizer.clip_norm", optimizer.clip_norm),
            ("optimizer.epsilon", optimizer.epsilon),
        ] {
            self.require(value > 0.0 && value.is_finite(), key, &value, "above 0")?;
        }
        for (key, value) in
            [("optimizer.beta1", optimizer.beta1), ("optimizer.beta2", optimizer.beta2)]
        {
            self.require((0.0..1.0).contains(&value), key, &value, "0 to below 1")?;
        }
        let decay = optimizer.weight_decay;
        let fits = decay >= 0.0 && decay.is_finite();
        self.require(fits, "optimizer.weight_decay", &decay, "0 or more")
    }

    /// What can be known of groups without a model.
    fn check_groups(&self, groups: &[GroupConfig]) -> Result<(), TrainError> {
        let expected = format!("at most {} groups", limits::GROUPS_MAX);
        let fits = groups.len() <= limits::GROUPS_MAX;
        self.require(fits, "optimizer.group", &groups.len(), &expected)?;
        for (index, group) in groups.iter().enumerate() {
            let is_new = groups[..index].iter().all(|other| other.name != group.name);
            let key = format!("optimizer.group.{index}.name");
            let named = is_new && !group.name.is_empty();
            self.require(named, key, &group.name, "a name of its own")?;
            let key = |field: &str| format!("optimizer.group.{}.{field}", group.name);
            let (n, most) = (group.parts.len(), limits::GROUPS_MAX);
            let whole = |part: &String| part.split('.').all(|part| !part.is_empty());
            let fits = (1..=most).contains(&n) && group.parts.iter().all(whole);
            let expected = format!("1 to {most} parts of names, such as \"vision.stem\"");
            self.require(fits, key("match"), &format!("{:?}", group.parts), &expected)?;
            for (field, value) in [
                ("lr_scale", Some(group.lr_scale)),
                ("clip_norm", group.clip_norm),
                ("agc", group.agc),
            ] {
                let Some(value) = value else { continue };
                let fits = value > 0.0 && value.is_finite();
                self.require(fits, key(field), &value, "above 0")?;
            }
            let decay = group.weight_decay.unwrap_or_default();
            let fits = decay >= 0.0 && decay.is_finite();
            self.require(fits, key("weight_decay"), &decay, "0 or more")?;
            if let (Some(agc), Some(_)) = (group.agc, group.clip_norm) {
                let expected = "nothing beside `clip_norm`: a group is clipped in one way";
                self.require(false, key("agc"), &agc, expected)?;
            }
        }
        Ok(())
    }

    fn check_guard(&self, guard: &GuardConfig) -> Result<(), TrainError> {
        if let Some(leap) = guard.leap {
            let is_factor = leap > 1.0 && leap.is_finite();
            self.require(is_factor, "guard.leap", &leap, "above 1")?;
        }
        self.require(guard.window > 0, "guard.window", &guard.window, "at least 1")?;
        let sizes = [
            ("window", guard.window, limits::GUARD_WINDOW_MAX),
            ("most", guard.most, limits::TROUBLES_MAX),
        ];
        self.require_sizes("guard", &sizes)
    }

    fn check_image(&self, image: &ImageConfig) -> Result<(), TrainError> {
        self.require(image.size > 0, "image.size", &image.size, "at least 1")?;
        self.require_sizes("image", &[("size", image.size, limits::IMAGE_SIZE_MAX)])?;
        let (mean, std) = (image.mean, image.std);
        let is_finite = mean.iter().all(|mean| mean.is_finite());
        self.require(is_finite, "image.mean", &format!("{mean:?}"), "numbers")?;
        let divides = std.iter().all(|std| std.is_finite() && *std > 0.0);
        self.require(divides, "image.std", &format!("{std:?}"), "numbers above 0")
    }

    fn check_tokenizer(&self, tokenizer: &TokenizerConfig) -> Result<(), TrainError> {
        let TokenizerConfig::Train { vocabulary, .. } = tokenizer else { return Ok(()) };
        let least = limits::TRAINED_VOCABULARY_MIN;
        let (key, expected) = ("tokenizer.train.vocabulary", format!("at least {least}"));
        self.require(*vocabulary >= least, key, vocabulary, &expected)?;
        let size = ("vocabulary", *vocabulary, limits::TRAINED_VOCABULARY_MAX);
        self.require_sizes("tokenizer.train", &[size])
    }

    fn check_validation(&self, validation: &ValidationConfig) -> Result<(), TrainError> {
        for (key, value) in
            [("validation.every", validation.every), ("validation.batches", validation.batches)]
        {
            self.require(value > 0, key, &value, "at least 1")?;
        }
        self.check_weights_used("validation.weights".to_owned(), validation.weights)?;
        let RunConfig { steps, early_stop, grid, .. } = &self.config;
        let is_chosen_by = early_stop.is_some() || grid.is_some();
        let fits = validation.every <= *steps || !is_chosen_by;
        let expected =
            format!("at most `steps`, {steps}, where an early stop or a grid goes by it");
        self.require(fits, "validation.every", &validation.every, &expected)?;
        let key = "validation.data";
        self.require(!validation.data.is_empty(), key, &"empty", "at least one dataset")?;
        self.check_datasets(key, &self.config.held_out())?;
        for data in &validation.data {
            let key = |field: &str| format!("{key}.{}.{field}", data.name);
            let classes: Vec<String> = data.classes.iter().map(|class| words(class)).collect();
            for (i, (class, name)) in classes.iter().zip(&data.classes).enumerate() {
                let has_words = !class.trim().is_empty();
                let name = format!("{name:?}");
                self.require(has_words, key("classes"), &name, "a class with a letter or digit")?;
                let is_new = !classes[..i].contains(class);
                self.require(is_new, key("classes"), &name, "each class once, by its words")?;
            }
            let n_classes = data.classes.len();
            self.require(n_classes != 1, key("classes"), &"one class", "none, or two at least")?;
            let prompts = format!("{:?}", data.prompts);
            let fits = n_classes > 0 || validation::is_class_alone(&data.prompts);
            self.require(fits, key("prompts"), &prompts, "nothing without `classes`")?;
            let place = |prompt: &&String| !prompt.contains(CLASS_PLACE);
            if let Some(prompt) = data.prompts.iter().find(place) {
                self.require(false, key("prompts"), prompt, "`{}` in place of the class")?;
            }
            self.require(!data.prompts.is_empty(), key("prompts"), &"empty", "a text with `{}`")?;
        }
        Ok(())
    }

    fn check_early_stop(&self, stop: &EarlyStopConfig) -> Result<(), TrainError> {
        let (patience, min_delta) = (stop.patience, stop.min_delta);
        self.require(patience > 0, "early_stop.patience", &patience, "at least 1")?;
        let fits = min_delta >= 0.0 && min_delta.is_finite();
        self.require(fits, "early_stop.min_delta", &min_delta, "0 or more")
    }

    /// Fails unless the measures that the config asks for are among those of the stage.
    ///
    /// # Errors
    /// When `early_stop.metric` is another one, or classes are given where none are told apart.
    pub fn require_measures(&self, of_stage: &[&str]) -> Result<(), TrainError> {
        let data = self.config.validation.iter().flat_map(|validation| &validation.data);
        let names: Vec<&str> = data.clone().map(|data| &*data.name).collect();
        if let Some(stop) = &self.config.early_stop {
            let metric = &stop.metric;
            let parts = metric
                .strip_prefix(validation::PREFIX)
                .and_then(|rest| rest.strip_prefix('.').and_then(|rest| rest.rsplit_once('.')));
            let fits =
                parts.is_some_and(|(name, key)| names.contains(&name) && of_stage.contains(&key));
            let (names, measures) = (names.join(", "), of_stage.join(", "));
            let expected = format!(
                "validation.NAME.MEASURE with a dataset of `[validation]` ({names}) and one of {measures}"
            );
            self.require(fits, "early_stop.metric", metric, &expected)?;
            let classless = data.clone().find(|data| {
                let of_classes =
                    [CLASS_ACCURACY, CLASS_ROWS].map(|key| measure_name(&data.name, key));
                data.classes.is_empty() && of_classes.contains(metric)
            });
            if let Some(data) = classless {
                let expected =
                    format!("a measure that needs no `validation.data.{}.classes`", data.name);
                self.require(false, "early_stop.metric", metric, &expected)?;
            }
        }
        let tells_classes = of_stage.contains(&CLASS_ACCURACY);
        for data in data.filter(|data| !data.classes.is_empty() && !tells_classes) {
            let key = format!("validation.data.{}.classes", data.name);
            self.require(false, key, &"given", "nothing: only in the contrastive stage")?;
        }
        Ok(())
    }

    /// All datasets, each with its path in the config.
    pub(crate) fn datasets(&self) -> Vec<(String, DataConfig)> {
        let learned = self.config.data.iter().cloned().map(|entry| ("data", entry));
        let held_out = self.config.held_out().into_iter().map(|entry| ("validation.data", entry));
        let all = learned.chain(held_out);
        all.map(|(table, entry)| (format!("{table}.{}", entry.name), entry)).collect()
    }

    /// Checks the datasets of a table one by one.
    fn check_datasets(&self, table: &str, all: &[DataConfig]) -> Result<(), TrainError> {
        for (index, entry) in all.iter().enumerate() {
            let is_new = all[..index].iter().all(|other| other.name != entry.name);
            let key = format!("{table}.{index}.name");
            self.require(is_new, key, &entry.name, "a name of its own")?;
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
        self.require(weight >= 0.0 && weight.is_finite(), key("weight"), &weight, "0 or more")?;
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
    fn check_frames(&self, entry: &DataConfig) -> Result<(), TrainError> {
        let first = &self.config.data[0];
        let fits = self.config.mixture != MixtureMode::Merged || entry.frames == first.frames;
        let key = format!("data.{}.frames", entry.name);
        let expected = format!("{}, as in `{}`, to merge", first.frames, first.name);
        self.require(fits, key, &entry.frames, &expected)
    }

    /// The parts of a batch are alike, and a merged batch is cut as one.
    fn check_micro_batches(&self, entry: &DataConfig) -> Result<(), TrainError> {
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
    fn check_weights(&self) -> Result<(), TrainError> {
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

    /// Fails unless every size of a table is within its limit.
    fn require_sizes(&self, table: &str, sizes: &[Size]) -> Result<(), TrainError> {
        sizes.iter().try_for_each(|(field, value, most)| {
            self.require(
                value <= most,
                format!("{table}.{field}"),
                value,
                &format!("at most {most}"),
            )
        })
    }

    /// Blames this file for what a model finds wrong with its `[model]`.
    ///
    /// # Errors
    /// When `checked` is an error. Its key becomes the one that stands in this file.
    pub fn require_model(&self, checked: Result<(), ModelError>) -> Result<(), TrainError> {
        checked.map_err(|error| match error {
            ModelError::Config { field, value, expected } => {
                let key = model_key(&field);
                TrainError::ConfigValue { path: self.path.clone(), key, value, expected }
            }
            other => TrainError::model("build")(other),
        })
    }

    /// Fails with the key's name unless `holds`.
    ///
    /// # Errors
    /// When `holds` is false.
    pub fn require(
        &self,
        holds: bool,
        key: impl Into<String>,
        value: &impl ToString,
        expected: &str,
    ) -> Result<(), TrainError> {
        if holds {
            return Ok(());
        }
        Err(TrainError::ConfigValue {
            path: self.path.clone(),
            key: key.into(),
            value: value.to_string(),
            expected: expected.to_owned(),
        })
    }

    /// Fails unless every dataset has a number of images that the stage can take.
    ///
    /// # Errors
    /// When a dataset has another number of images.
    pub fn require_images(
        &self,
        fits: impl Fn(usize) -> bool,
        expected: &str,
    ) -> Result<(), TrainError> {
        self.datasets().into_iter().try_for_each(|(path, entry)| {
            let key = format!("{path}.images");
            self.require(fits(entry.images), key, &entry.images, expected)
        })
    }

    /// Fails unless every dataset's rows fit the positions of the language model.
    ///
    /// # Errors
    /// When a dataset has longer rows.
    pub fn require_context(&self, context: usize) -> Result<(), TrainError> {
        self.datasets().into_iter().try_for_each(|(path, entry)| {
            let key = format!("{path}.tokens");
            let expected = format!("at most the model's context of {context}");
            self.require(entry.tokens <= context, key, &entry.tokens, &expected)
        })
    }

    /// The `[image]` section.
    ///
    /// # Errors
    /// When there is none.
    pub fn image(&self) -> Result<&ImageConfig, TrainError> {
        self.section(self.config.image.as_ref(), "image")
    }

    /// Fails where features are to be kept: the encoder of the stage is trained, or there is none.
    ///
    /// # Errors
    /// When there is a section `[feature_cache]`.
    pub fn require_no_feature_cache(&self) -> Result<(), TrainError> {
        let none = self.config.feature_cache.is_none();
        self.require(none, "feature_cache", &"given", "nothing: no frozen vision encoder here")
    }

    /// Fails where a tokenizer is asked for in a stage that takes another one.
    ///
    /// # Errors
    /// When there is a section `[tokenizer]`.
    pub fn require_no_tokenizer(&self, taken: &str) -> Result<(), TrainError> {
        let none = self.config.tokenizer.is_none();
        self.require(none, "tokenizer", &"given", &format!("nothing: that of `{taken}` is taken"))
    }

    /// Fails where it is said how images become pixels: the stage reads none.
    ///
    /// # Errors
    /// When there is a section `[image]`.
    pub fn require_no_image(&self) -> Result<(), TrainError> {
        let none = self.config.image.is_none();
        self.require(none, "image", &"given", "nothing: images are not read here")
    }

    /// Fails where only some tokens of a caption are to be learned: the stage has one loss of it as a
    /// whole.
    ///
    /// # Errors
    /// When a dataset has another `loss` than the default.
    pub fn require_whole_captions(&self) -> Result<(), TrainError> {
        self.datasets().into_iter().try_for_each(|(path, entry)| {
            let (key, value) = (format!("{path}.loss"), serde_json::json!(entry.loss));
            let expected = "\"paper\", the default: a caption is matched as a whole";
            self.require(entry.loss == LossMask::Paper, key, &value, expected)
        })
    }

    /// Fails where something is to be measured that only the Flamingo stage has: how its model looks at
    /// images.
    ///
    /// # Errors
    /// When there is a key `blindness_every`, `gates_every` or `few_shot`.
    pub fn require_nothing_of_flamingo(&self) -> Result<(), TrainError> {
        let RunConfig { blindness_every, gates_every, few_shot, .. } = &self.config;
        let given = [
            ("blindness_every", blindness_every.map(|every| every.to_string())),
            ("gates_every", gates_every.map(|every| every.to_string())),
            ("few_shot", few_shot.first().map(|_| "given".to_owned())),
        ];
        given.into_iter().filter_map(|(key, value)| Some((key, value?))).try_for_each(
            |(key, value)| self.require(false, key, &value, "nothing: only of a Flamingo"),
        )
    }

    /// Fails where batches are to be cut, or sums over the tokens of a row to be taken: the loss of the
    /// stage is one of all pairs of a batch together.
    ///
    /// # Errors
    /// When a dataset has `micro_batches` other than 1, or `loss_normalisation` is not the default.
    pub fn require_whole_batches(&self) -> Result<(), TrainError> {
        for entry in &self.config.data {
            let (key, n) = (format!("data.{}.micro_batches", entry.name), entry.micro_batches);
            self.require(n == 1, key, &n, "1: each pair is compared with all others of its batch")?;
        }
        let is_mean = self.config.loss_normalisation == LossNormalisation::TokenMean;
        self.require(is_mean, "loss_normalisation", &"sum", "nothing: pairs have one loss each")
    }

    /// Fails where a term beside the loss is asked for: the stage's loss has no logits of tokens.
    ///
    /// # Errors
    /// When there is a key `z_loss`.
    pub fn require_no_z_loss(&self) -> Result<(), TrainError> {
        self.config.z_loss.map_or(Ok(()), |z_loss| {
            self.require(false, "z_loss", &z_loss, "nothing: no language model learns here")
        })
    }

    /// Fails unless every batch can be shared out evenly among so many ranks, and the share of each be cut
    /// as it is to be.
    ///
    /// # Errors
    /// When a batch cannot, or `accounting_every` is given where there are several ranks.
    pub fn require_ranks(&self, n_ranks: usize) -> Result<(), TrainError> {
        if let Some(every) = self.config.accounting_every.filter(|_| n_ranks > 1) {
            let expected =
                format!("nothing on {n_ranks} ranks: one has the gradient of a part alone");
            self.require(false, "accounting_every", &every, &expected)?;
        }
        self.config.data.iter().try_for_each(|entry| {
            let key = format!("data.{}.batch", entry.name);
            let expected = match entry.micro_batches {
                1 => format!("a multiple of the {n_ranks} ranks"),
                n => format!("a multiple of the {n_ranks} ranks times {n} micro_batches"),
            };
            let divides = entry.batch.is_multiple_of(n_ranks * entry.micro_batches);
            self.require(divides, key, &entry.batch, &expected)
        })
    }

    /// The `[tokenizer]` section.
    ///
    /// # Errors
    /// When there is none.
    pub fn tokenizer(&self) -> Result<&TokenizerConfig, TrainError> {
        self.section(self.config.tokenizer.as_ref(), "tokenizer")
    }

    /// Fails unless the model has a row for every token.
    ///
    /// # Errors
    /// When the tokenizer has more tokens than the model's vocabulary.
    pub fn require_vocabulary(
        &self,
        key: &str,
        vocabulary: usize,
        tokenizer: &Tokenizer,
    ) -> Result<(), TrainError> {
        let n_tokens = tokenizer.n_tokens();
        let expected = format!("at least the tokenizer's {n_tokens} tokens");
        self.require(vocabulary >= n_tokens, key, &vocabulary, &expected)
    }

    fn section<'config, T>(
        &self,
        section: Option<&'config T>,
        key: &str,
    ) -> Result<&'config T, TrainError> {
        section.ok_or_else(|| TrainError::ConfigValue {
            path: self.path.clone(),
            key: key.to_owned(),
            value: "missing".to_owned(),
            expected: format!("a section [{key}]"),
        })
    }

    /// The effective config, as it is written to the run folder.
    ///
    /// # Panics
    /// Never: a config holds only numbers, texts, lists and tables.
    pub fn to_toml(&self) -> String {
        toml::to_string(&self.config).expect("a config holds only numbers, texts, lists and tables")
    }
}

/// The key of a model's field in a stage's config. The language stage's `[model]` is the model's
/// `language`; a field of several words and no table is a number that follows from others.
fn model_key(field: &str) -> String {
    if field.contains(' ') && !field.contains('.') {
        return field.to_owned();
    }
    format!("model.{}", field.strip_prefix("language.").unwrap_or(field))
}

/// Whether `first` times all of `rest` is at most `most`.
fn fits_in(most: usize, first: usize, rest: &[usize]) -> bool {
    let product = rest.iter().try_fold(first, |product, factor| product.checked_mul(*factor));
    product.is_some_and(|product| product <= most)
}

pub(crate) fn parse_error(path: &Path, text: &str, error: &toml::de::Error) -> TrainError {
    let line = error.span().map(|span| text[..span.start].matches('\n').count() + 1);
    let message = error.message().trim().replace('\n', " ");
    TrainError::ConfigParse { path: path.to_path_buf(), line, message }
}

/// Blames the file where the file alone is wrong, and the overrides otherwise.
fn overridden_error<M: DeserializeOwned>(
    path: &Path,
    text: &str,
    overrides: &[Override],
    error: &toml::de::Error,
) -> TrainError {
    if let Err(error) = toml::from_str::<RunConfig<M>>(text) {
        return parse_error(path, text, &error);
    }
    let given: Vec<&str> = overrides.iter().map(|change| change.given.as_str()).collect();
    let message = error.to_string().trim().replace('\n', " ");
    TrainError::Override { given: given.join(" --set "), message }
}
