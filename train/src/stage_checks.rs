//! What a stage asks of a config beyond what all of them do: each calls what concerns it before anything is
//! opened.

use std::path::Path;

use flamingo_dataset::{LossMask, Tokenizer};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::RunConfig;
use crate::config_file::ConfigFile;
use crate::error::TrainError;
use crate::few_shot;
use crate::gradient::LossNormalisation;
use crate::validation::{self, CLASS_ACCURACY, CLASS_ROWS, measure_name};

impl<M: DeserializeOwned + Serialize> ConfigFile<M> {
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
    /// When a batch cannot.
    pub fn require_ranks(&self, n_ranks: usize) -> Result<(), TrainError> {
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
}
