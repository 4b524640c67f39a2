//! The model under test, on the images of one benchmark.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use flamingo_dataset::Tokenizer;
use flamingo_model::{Device, Flamingo, Generation, Latents, ModelError, Prompt as ModelPrompt};

use crate::annotations::Annotations;
use crate::error::EvalError;
use crate::inputs::{model_prompt, pixels, text_batch};
use crate::prompt::{ImagePlace, Prompt};
use crate::run_folder::RunFolder;

/// Images whose latents are kept. At the paper's size one takes 64 x 1024 x 4 bytes, so 1 GiB.
const LATENTS_MAX: usize = 4096;

/// A model with its tokenizer, from a run.
pub struct LoadedModel {
    /// Where it came from.
    pub folder: RunFolder,
    flamingo: Flamingo,
    tokenizer: Tokenizer,
    sha256: String,
    device: Device,
}

impl LoadedModel {
    /// Loads the newest checkpoint of a run, or a checkpoint, onto a device.
    ///
    /// # Errors
    /// When the folder is neither, a part of the model cannot be read, or the device has no room for it.
    pub fn open(path: &Path, device: Device) -> Result<Self, EvalError> {
        let folder = RunFolder::open(path)?;
        let tokenizer = Tokenizer::load(folder.tokenizer())?;
        let mut flamingo =
            Flamingo::load(&folder.checkpoint).map_err(EvalError::model(&folder.checkpoint))?;
        let vocabulary = flamingo.config().vocabulary();
        if tokenizer.n_tokens() > vocabulary {
            return Err(EvalError::NotARun {
                path: path.to_path_buf(),
                problem: format!(
                    "its tokenizer has {} tokens, its model {vocabulary}",
                    tokenizer.n_tokens()
                ),
            });
        }
        device.place(&mut flamingo).map_err(EvalError::model(&folder.checkpoint))?;
        let sha256 = folder.sha256()?;
        Ok(Self { folder, flamingo, tokenizer, sha256, device })
    }

    /// Where it computes, such as `CPU (f32)`.
    pub fn device(&self) -> String {
        self.device.to_string()
    }
}

/// An answer and what it follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taught {
    /// What comes first.
    pub prompt: Prompt,
    /// The tokens to be predicted, each from the true ones before it.
    pub answer: Vec<u32>,
}

/// What the model makes of a given answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Loss of each of its tokens, in nats.
    pub nll: Vec<f32>,
    /// Whether the model would have said each of its tokens.
    pub is_top: Vec<bool>,
}

impl Reading {
    /// Loss of the whole answer, in nats.
    pub fn total(&self) -> f64 {
        self.nll.iter().copied().map(f64::from).sum()
    }
}

/// A model together with the images that its prompts refer to.
pub struct Subject<'a> {
    model: &'a LoadedModel,
    annotations: &'a Annotations,
    /// By SHA-256 of the image: every distinct image is looked at once.
    latents: RefCell<BTreeMap<String, Latents>>,
}

impl<'a> Subject<'a> {
    /// The model on the images of `annotations`.
    pub fn new(model: &'a LoadedModel, annotations: &'a Annotations) -> Self {
        Self { model, annotations, latents: RefCell::default() }
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.model.tokenizer
    }

    /// Tokens that the model can hold.
    pub fn context(&self) -> usize {
        self.model.flamingo.config().language.context
    }

    /// Digest of the model.
    pub fn sha256(&self) -> &str {
        &self.model.sha256
    }

    /// Where the model computes.
    pub fn device(&self) -> String {
        self.model.device()
    }

    /// The most likely text after each prompt, up to `<EOC>` or `tokens_max` tokens.
    ///
    /// # Errors
    /// When an image cannot be read or the model fails.
    pub fn generate(
        &self,
        prompts: &[Prompt],
        tokens_max: usize,
    ) -> Result<Vec<String>, EvalError> {
        let prompts = self.with_latents(prompts)?;
        let stop = self.tokenizer().eoc_id();
        let generation = Generation::greedy(tokens_max, stop);
        let texts = self.model.flamingo.generate(&prompts, &generation);
        let texts = texts.map_err(self.failed())?;
        Ok(texts.iter().map(|tokens| self.tokenizer().decode(tokens)).collect())
    }

    /// Log-likelihood in nats of each of `answers` (columns) after each prompt (rows).
    ///
    /// # Errors
    /// When an image cannot be read, the model fails, or gives what is no number.
    pub fn log_likelihoods(
        &self,
        prompts: &[Prompt],
        answers: &[Vec<u32>],
    ) -> Result<Vec<Vec<f64>>, EvalError> {
        let prompts = self.with_latents(prompts)?;
        let rows = prompts.iter().map(|prompt| {
            let row = self.model.flamingo.rank(prompt, answers).map_err(self.failed())?;
            Ok(row.into_iter().map(f64::from).collect())
        });
        rows.collect()
    }

    /// What the model makes of given answers.
    ///
    /// # Errors
    /// When an image cannot be read, the model fails, or gives what is no number.
    pub fn read(&self, all: &[Taught]) -> Result<Vec<Reading>, EvalError> {
        let whole: Vec<Prompt> = all.iter().map(Taught::whole).collect();
        let scores = self.model.flamingo.score(&self.with_latents(&whole)?);
        let scores = scores.map_err(self.failed())?;
        let readings = all.iter().zip(scores).map(|(taught, scores)| {
            // Token l + 1 is predicted at position l.
            let from = taught.prompt.tokens.len() - 1;
            let said = scores.likeliest[from..].iter().zip(&taught.answer);
            Reading {
                nll: scores.nll[from..].to_vec(),
                is_top: said.map(|(said, token)| said == token).collect(),
            }
        });
        Ok(readings.collect())
    }

    /// Loss in nats of each given answer under the language model alone, as with closed gates.
    ///
    /// # Errors
    /// When the model fails, or gives what is no number.
    pub fn nll_with_closed_gates(&self, all: &[Taught]) -> Result<Vec<f64>, EvalError> {
        let whole: Vec<Prompt> = all.iter().map(Taught::whole).collect();
        let lengths: Vec<usize> = all.iter().map(|taught| taught.prompt.tokens.len()).collect();
        let batch = text_batch(&whole, &lengths, self.tokenizer().pad_id());
        let language = self.model.flamingo.language_model();
        let nll = language.nll(&batch).map_err(self.failed())?;
        let sums = nll.chunks(batch.length.max(1)).map(|row| row.iter().sum::<f32>());
        sums.zip(all).map(|(sum, taught)| Ok(-self.finite(-sum, &taught.answer)?)).collect()
    }

    fn finite(&self, value: f32, answer: &[u32]) -> Result<f64, EvalError> {
        let value = f64::from(value);
        if value.is_finite() {
            return Ok(value);
        }
        let path = self.model.folder.checkpoint.clone();
        let text = self.tokenizer().decode(answer).trim().to_owned();
        Err(EvalError::NotFinite { path, found: value, text })
    }

    fn failed(&self) -> impl FnOnce(ModelError) -> EvalError {
        EvalError::model(&self.model.folder.checkpoint)
    }

    fn with_latents(&self, prompts: &[Prompt]) -> Result<Vec<ModelPrompt>, EvalError> {
        self.look_at(prompts.iter().flat_map(|prompt| &prompt.images))?;
        let known = self.latents.borrow();
        let joined = prompts.iter().map(|prompt| {
            let latents = prompt.images.iter().map(|place| &known[self.image_sha256(*place)]);
            model_prompt(prompt, latents, self.tokenizer()).map_err(self.failed())
        });
        joined.collect()
    }

    /// Makes the latents of images that have none yet.
    fn look_at<'p>(&self, places: impl Iterator<Item = &'p ImagePlace>) -> Result<(), EvalError> {
        let mut known = self.latents.borrow_mut();
        if known.len() > LATENTS_MAX {
            known.clear();
        }
        let missing: BTreeMap<&str, ImagePlace> = places
            .map(|place| (self.image_sha256(*place), *place))
            .filter(|(sha256, _)| !known.contains_key(*sha256))
            .collect();
        for (sha256, place) in missing {
            let latents = self.latents_of(place)?;
            known.insert(sha256.to_owned(), latents);
        }
        Ok(())
    }

    /// One image at a time, so that its latents do not depend on what else is missing.
    fn latents_of(&self, place: ImagePlace) -> Result<Latents, EvalError> {
        let image = match place {
            ImagePlace::Support(index) => self.annotations.support.image(index)?,
            ImagePlace::Query(index) => self.annotations.query.image(index)?,
        };
        let pixels = pixels(&image, &self.model.folder.image).map_err(|source| {
            let (key, source) = (self.example_key(place).to_owned(), Box::new(source));
            EvalError::Image { key, source }
        })?;
        self.model.flamingo.latents(&pixels, 1).map_err(self.failed())
    }

    fn image_sha256(&self, place: ImagePlace) -> &str {
        match place {
            ImagePlace::Support(index) => &self.annotations.support.examples[index].sha256,
            ImagePlace::Query(index) => &self.annotations.query.examples[index].sha256,
        }
    }

    fn example_key(&self, place: ImagePlace) -> &str {
        match place {
            ImagePlace::Support(index) => &self.annotations.support.examples[index].key,
            ImagePlace::Query(index) => &self.annotations.query.examples[index].key,
        }
    }
}

impl Taught {
    fn whole(&self) -> Prompt {
        self.prompt.followed_by(&self.answer)
    }
}
