//! What must hold of a config in every stage, besides its datasets.

use std::collections::BTreeSet;

use flamingo_dataset::{Fit, ImageConfig, MixtureMode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::{RunConfig, TokenizerConfig};
use crate::config_file::ConfigFile;
use crate::early_stop::EarlyStopConfig;
use crate::ema::WeightsUsed;
use crate::error::TrainError;
use crate::few_shot::FewShotConfig;
use crate::groups::GroupConfig;
use crate::limits;
use crate::optimizer::OptimizerConfig;
use crate::retrieval::words;
use crate::trouble::GuardConfig;
use crate::validation::{self, CLASS_PLACE, ValidationConfig};

impl<M: DeserializeOwned + Serialize> ConfigFile<M> {
    /// The config, if all that is common to the stages can work.
    pub(crate) fn checked(self) -> Result<Self, TrainError> {
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
            self.require(fits, "hardware.peak_tflops", &peak, "a number above 0")?;
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
            let is_same =
                |other: &FewShotConfig| other.task == *task && other.weights == entry.weights;
            let is_new = !few_shot[..index].iter().any(is_same);
            let expected = "a task of its own, or other `weights` of it";
            self.require(is_new, key("task"), task, expected)?;
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
            let fits = value > 0.0 && value.is_finite();
            self.require(fits, key, &value, "a number above 0")?;
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
                self.require(fits, key(field), &value, "a number above 0")?;
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
        if let Fit::CropFrom(side) = image.fit {
            let most = limits::IMAGE_SIZE_MAX;
            let fits = (image.size..=most).contains(&side);
            let expected = format!("{} (image.size) to {most}", image.size);
            self.require(fits, "image.fit.crop_from", &side, &expected)?;
        }
        let (mean, std) = (image.mean, image.std);
        let is_finite = mean.iter().all(|mean| mean.is_finite());
        self.require(is_finite, "image.mean", &format!("{mean:?}"), "numbers")?;
        let divides = std.iter().all(|std| std.is_finite() && *std > 0.0);
        self.require(divides, "image.std", &format!("{std:?}"), "numbers above 0")
    }

    fn check_tokenizer(&self, tokenizer: &TokenizerConfig) -> Result<(), TrainError> {
        let TokenizerConfig::Train { vocabulary, rows_max } = tokenizer else { return Ok(()) };
        self.require(*rows_max > 0, "tokenizer.train.rows_max", rows_max, "at least 1")?;
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
}
