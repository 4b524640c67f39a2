//! A model of ours under test, on the images and films of one benchmark.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use flamingo_dataset::Tokenizer;
use flamingo_model::{
    Device, Flamingo, Generation, Latents, ModelError, Pixels, Prompt as ModelPrompt, Search,
};

use crate::benchmark::Benchmark;
use crate::error::EvalError;
use crate::inputs::{model_prompt, pixels, text_batch};
use crate::medium::Medium;
use crate::prompt::{ImagePlace, Piece, Prompt};
use crate::run_folder::RunFolder;
use crate::subject::{Asked, Ending, ModelCard, OutOfContext, Ranked, Said, Subject, Writing};
use crate::task_file::Decoding;

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
        let (folder, mut flamingo) = RunFolder::open(path)?;
        let tokenizer = Tokenizer::load(folder.tokenizer())?;
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

    /// What results say of it.
    pub fn card(&self) -> ModelCard {
        ModelCard {
            name: self.folder.checkpoint.display().to_string(),
            sha256: self.sha256.clone(),
            device: self.device(),
        }
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
pub struct LocalSubject<'a> {
    model: &'a LoadedModel,
    benchmark: &'a Benchmark,
    /// By medium: every distinct picture or film is looked at once.
    latents: RefCell<BTreeMap<String, Latents>>,
}

impl<'a> LocalSubject<'a> {
    /// The model on the media of `benchmark`.
    pub fn new(model: &'a LoadedModel, benchmark: &'a Benchmark) -> Self {
        Self { model, benchmark, latents: RefCell::default() }
    }

    /// The model.
    pub fn model(&self) -> &LoadedModel {
        self.model
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.model.tokenizer
    }

    /// Encodes pieces as the model's prompts begin.
    pub fn prompt(&self, pieces: &[Piece]) -> Prompt {
        let mut prompt = Prompt::encode(pieces, self.tokenizer());
        let is_bare = self.model.folder.begins_as_tokenizer() && !self.tokenizer().adds_bos();
        if is_bare && prompt.tokens.len() > 1 {
            prompt.tokens.remove(0);
        }
        prompt
    }

    /// Tokens that the model can hold.
    pub fn context(&self) -> usize {
        self.model.flamingo.config().language.context
    }

    /// What the vision encoder makes of a picture or film: its features averaged over patches and frames, of
    /// length 1.
    ///
    /// # Errors
    /// When a picture cannot be read or the model fails.
    pub fn features(&self, place: ImagePlace) -> Result<Vec<f32>, EvalError> {
        let (pixels, _) = self.pixels_of(place)?;
        let features = self.model.flamingo.features(&pixels).map_err(self.failed())?;
        let width = self.model.flamingo.config().vision.width();
        let mut mean = vec![0.0_f32; width];
        for patch in features.chunks_exact(width) {
            mean.iter_mut().zip(patch).for_each(|(sum, value)| *sum += value);
        }
        let length = mean.iter().map(|value| value * value).sum::<f32>().sqrt();
        Ok(mean.iter().map(|value| value / length.max(f32::MIN_POSITIVE)).collect())
    }

    /// What the model writes after some pieces, up to `<EOC>` or `tokens_max` tokens.
    ///
    /// # Errors
    /// When a picture cannot be read, the pieces are too long for the model, or it fails.
    pub fn write_on(
        &self,
        pieces: &[Piece],
        tokens_max: usize,
        search: Search,
    ) -> Result<String, EvalError> {
        let prompt = self.prompt(pieces);
        let said = self.generate(&[prompt], tokens_max, search)?;
        Ok(said.into_iter().map(|said| said.text).collect())
    }

    fn generate(
        &self,
        prompts: &[Prompt],
        tokens_max: usize,
        search: Search,
    ) -> Result<Vec<Said>, EvalError> {
        let prompts = self.with_latents(prompts)?;
        let generation = Generation { tokens_max, stop: self.tokenizer().eoc_id(), search };
        let texts = self.model.flamingo.generate(&prompts, &generation);
        let texts = texts.map_err(self.failed())?;
        let said = texts.iter().map(|tokens| {
            // What ends by itself has its end as one token more.
            let ending = (tokens.len() >= tokens_max).then_some(Ending::Length);
            Said { text: self.tokenizer().decode(tokens), ending }
        });
        Ok(said.collect())
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

    /// Tokens of the texts that may follow, with the `<EOC>` that ends them where they are compared by sums:
    /// else a text that begins another one is always the likelier.
    fn answer_tokens(&self, answers: &[String], decoding: Decoding) -> Vec<Vec<u32>> {
        let tokens = answers.iter().map(|answer| {
            let mut tokens = self.tokenizer().encode(answer);
            if decoding != Decoding::ClosedMean || tokens.is_empty() {
                tokens.push(self.tokenizer().eoc_id());
            }
            tokens
        });
        tokens.collect()
    }

    fn prompts(&self, asked: &[Asked<'_>]) -> Vec<Prompt> {
        asked.iter().map(|asked| self.prompt(&asked.pieces)).collect()
    }

    fn with_latents(&self, prompts: &[Prompt]) -> Result<Vec<ModelPrompt>, EvalError> {
        self.look_at(prompts.iter().flat_map(|prompt| &prompt.images))?;
        let known = self.latents.borrow();
        let joined = prompts.iter().map(|prompt| {
            let latents = prompt.images.iter().map(|place| &known[&self.medium_key(*place)]);
            model_prompt(prompt, latents, self.tokenizer()).map_err(self.failed())
        });
        joined.collect()
    }

    /// Makes the latents of media that have none yet.
    fn look_at<'p>(&self, places: impl Iterator<Item = &'p ImagePlace>) -> Result<(), EvalError> {
        let mut known = self.latents.borrow_mut();
        if known.len() > LATENTS_MAX {
            known.clear();
        }
        let missing: BTreeMap<String, ImagePlace> = places
            .map(|place| (self.medium_key(*place), *place))
            .filter(|(key, _)| !known.contains_key(key))
            .collect();
        for (key, place) in missing {
            let latents = self.latents_of(place)?;
            known.insert(key, latents);
        }
        Ok(())
    }

    /// One medium at a time, so that its latents do not depend on what else is missing.
    fn latents_of(&self, place: ImagePlace) -> Result<Latents, EvalError> {
        let (pixels, n_frames) = self.pixels_of(place)?;
        self.model.flamingo.latents(&pixels, n_frames).map_err(self.failed())
    }

    /// Pixels of a picture or of the frames of a film, `[F, 3, H, W]`, and F.
    fn pixels_of(&self, place: ImagePlace) -> Result<(Pixels, usize), EvalError> {
        let item = self.benchmark.item(place);
        let medium = item.medium.as_ref().ok_or_else(|| EvalError::Medium {
            name: item.id.clone(),
            problem: "has no picture or film".into(),
        })?;
        let frames = medium.frames(self.benchmark.task.frames)?;
        let all = pixels(&frames, &self.model.folder.image).map_err(|source| EvalError::Image {
            key: item.id.clone(),
            source: Box::new(source),
        })?;
        Ok((all, frames.len()))
    }

    fn medium_key(&self, place: ImagePlace) -> String {
        self.benchmark.item(place).medium.as_ref().map(Medium::key).unwrap_or_default()
    }
}

impl Subject for LocalSubject<'_> {
    fn card(&self) -> ModelCard {
        self.model.card()
    }

    fn out_of_context(&self, asked: &Asked<'_>, tokens_max: usize) -> Option<OutOfContext> {
        let prompt = self.prompt(&asked.pieces);
        let answers = self.answer_tokens(&asked.answers, asked.decoding);
        let answer = answers.iter().map(Vec::len).max().unwrap_or(tokens_max);
        // The last token of an answer is predicted and never read.
        let needed = (prompt.tokens.len() + answer).saturating_sub(1);
        let context = self.context();
        (needed > context).then_some(OutOfContext { needed, context })
    }

    fn write(&self, asked: &[Asked<'_>], writing: Writing<'_>) -> Result<Vec<Said>, EvalError> {
        let search = match writing.beams {
            1 => Search::Greedy,
            beams => Search::Beam { beams, length_penalty: writing.length_penalty },
        };
        self.generate(&self.prompts(asked), writing.tokens_max, search)
    }

    /// One prompt at a time, so that no more latents than those of one are arranged.
    fn rank(&self, asked: &[Asked<'_>], decoding: Decoding) -> Result<Vec<Ranked>, EvalError> {
        let rows = asked.iter().map(|asked| {
            let prompts = self.with_latents(&self.prompts(std::slice::from_ref(asked)))?;
            let answers = self.answer_tokens(&asked.answers, decoding);
            let row = self.model.flamingo.rank(&prompts[0], &answers).map_err(self.failed())?;
            let sums = row.into_iter().map(f64::from);
            Ok(Ranked::of(match decoding {
                Decoding::ClosedMean => {
                    sums.zip(&answers).map(|(sum, tokens)| sum / tokens.len() as f64).collect()
                }
                Decoding::ClosedSum | Decoding::Open => sums.collect(),
            }))
        });
        rows.collect()
    }

    fn local(&self) -> Option<&LocalSubject<'_>> {
        Some(self)
    }
}

impl Taught {
    fn whole(&self) -> Prompt {
        self.prompt.followed_by(&self.answer)
    }
}
