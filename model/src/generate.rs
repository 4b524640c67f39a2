//! Reading prompts and writing on: greedy, beam search and sampling, scores of given text, ranking
//! of answers.
//!
//! Sequences of different lengths are laid one after the other, without padding. Each keeps its
//! keys and values, so a new token costs one token's work; continuations of one prompt share those
//! of the prompt. The media of a prompt are projected once.

use std::sync::Arc;

use crate::beam::BeamSearch;
use crate::decoder::{Decoder, LanguageConfig, Place, RowsBeside};
use crate::error::ModelError;
use crate::flamingo::Flamingo;
use crate::gated_xattn::MediaKeys;
use crate::inputs::{Latents, check_phi, check_phi_length};
use crate::language_model::LanguageModel;
use crate::ops::{self, MediaReads, Past, TokenTable, Visible};
use crate::params::{Params, uniform};
use crate::tensor::{DeviceError, Matrix, NotRecording};

/// A text with images that have been resampled already.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// `[L]`, not empty.
    pub tokens: Vec<u32>,
    /// `[L]`: the image that a token sees, -1 for none.
    pub phi: Vec<i32>,
    /// The images.
    pub latents: Latents,
}

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Search {
    /// The likeliest token.
    Greedy,
    /// The likeliest sequence that this many beams find.
    Beam {
        /// Open continuations at a time, at least 1. Paper: 3.
        beams: usize,
        /// A continuation's log-probability is divided by its length to this power.
        length_penalty: f32,
    },
    /// Drawn by probability.
    Sample {
        /// Logits are divided by it; above 0.
        temperature: f32,
        /// Only so many of the likeliest tokens are drawn from; 0 for all.
        top_k: usize,
        /// Only the likeliest tokens that together reach this probability are drawn from; 1 for
        /// all.
        top_p: f32,
        /// The same seed draws the same tokens, whatever else is in the batch.
        seed: u64,
    },
}

/// What to write after a prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Generation {
    /// Most tokens.
    pub tokens_max: usize,
    /// The token that ends a text, not included in it.
    pub stop: u32,
    /// How tokens are chosen.
    pub search: Search,
}

impl Generation {
    /// The likeliest token, step by step.
    pub fn greedy(tokens_max: usize, stop: u32) -> Self {
        Self { tokens_max, stop, search: Search::Greedy }
    }

    fn validate(&self) -> Result<(), ModelError> {
        let refuse = |what, found: String, expected: &str| {
            Err(ModelError::Input { what, found, expected: expected.to_owned() })
        };
        match self.search {
            Search::Beam { beams: 0, .. } => refuse("beams", "0".to_owned(), "at least 1"),
            Search::Beam { length_penalty, .. } if !length_penalty.is_finite() => {
                refuse("length_penalty", length_penalty.to_string(), "a finite number")
            }
            Search::Greedy | Search::Beam { .. } => Ok(()),
            Search::Sample { temperature, top_p, .. } => {
                if !(temperature > 0.0 && temperature.is_finite()) {
                    return refuse("temperature", temperature.to_string(), "above 0");
                }
                if !(top_p > 0.0 && top_p <= 1.0) {
                    return refuse("top_p", top_p.to_string(), "above 0 and at most 1");
                }
                Ok(())
            }
        }
    }
}

/// What the model makes of a given text.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// `[L - 1]`: the loss of token l + 1, in nats.
    pub nll: Vec<f32>,
    /// `[L]`: the likeliest token after token l.
    pub likeliest: Vec<u32>,
}

/// Prompts that are read together; bounds the memory that activations take.
const PROMPTS_AT_ONCE: usize = 32;

/// One sequence on its way.
#[derive(Debug, Clone)]
struct Sequence {
    /// Per layer of the language model, then per grafted layer.
    pasts: Vec<Past>,
    /// Tokens read so far.
    length: usize,
    /// Where the sequence's images begin among the media.
    first_image: usize,
    /// The image that new tokens see, -1 for none.
    phi: i32,
}

/// New tokens of a sequence and the images that they see.
struct Reading<'a> {
    sequence: &'a mut Sequence,
    tokens: &'a [u32],
    phi: &'a [i32],
}

/// What reads and writes: a language model, alone or with the cross-attention of a Flamingo and the
/// images of its prompts, projected for every block.
struct Reader<'a> {
    config: &'a LanguageConfig,
    decoder: &'a Decoder,
    params: &'a Params,
    beside: RowsBeside,
    media: Option<(&'a Flamingo, Vec<MediaKeys>)>,
}

impl Reader<'_> {
    fn head(&self) -> TokenTable {
        self.decoder.head(self.params, &self.beside)
    }

    /// Reads new tokens; returns their states after the last norm, sequence after sequence:
    /// `[sum of lengths, D]`.
    fn read(&self, mut new: Vec<Reading>) -> Result<Matrix, DeviceError> {
        let counts: Vec<usize> = new.iter().map(|reading| reading.tokens.len()).collect();
        let tokens: Vec<u32> = new.iter().flat_map(|reading| reading.tokens).copied().collect();
        let places = new.iter().flat_map(|reading| {
            let start = reading.sequence.length;
            start..start + reading.tokens.len()
        });
        let positions: Arc<[usize]> = places.collect();
        let media = self.media.as_ref().map(|(model, keys)| {
            let attend = model.config.cross_attention.attend;
            let seen = new.iter().flat_map(|reading| {
                let first = reading.sequence.first_image;
                reading.phi.iter().map(move |image| attend.images(*image, first))
            });
            (*model, keys, Arc::new(MediaReads::new(seen, model.config.resampler.latents)))
        });
        let condition = |place, x| match &media {
            Some((model, keys, reads)) => model.condition(place, x, keys, reads),
            None => Ok(x),
        };
        let (decoder, params) = (self.decoder, self.params);
        let mut x =
            decoder.embed(params, &tokens, &positions, &self.beside, NotRecording::default())?;
        let mut go_on = |layer: usize, qkv: Matrix, heads, visible: &Visible| {
            let mut pasts: Vec<&mut Past> =
                new.iter_mut().map(|reading| &mut reading.sequence.pasts[layer]).collect();
            ops::continue_attention(&qkv, &mut pasts, &counts, heads, visible)
        };
        let split = media.as_ref().is_some_and(|(model, ..)| model.splits_blocks());
        for (layer, block) in decoder.blocks.iter().enumerate() {
            x = condition(Place::Before(layer), x)?;
            let attend = |qkv| go_on(layer, qkv, block.heads(), &decoder.visible);
            x = if split {
                let x = block.read(params, x, &positions, attend)?;
                block.think(params, condition(Place::Middle(layer), x)?)?
            } else {
                block.forward(params, x, &positions, attend)?
            };
        }
        if let Some((model, keys, reads)) = &media {
            let first = decoder.blocks.len();
            x = model.graft(x, keys, reads, |i, qkv, heads| {
                go_on(first + i, qkv, heads, &Visible::Causal)
            })?;
        }
        for reading in &mut new {
            reading.sequence.length += reading.tokens.len();
        }
        decoder.finish(params, x)
    }

    /// Reads one more token of each sequence: `[sequences, D]`.
    fn read_next(&self, next: Vec<(&mut Sequence, u32)>) -> Result<Matrix, DeviceError> {
        let phis: Vec<i32> = next.iter().map(|(sequence, _)| sequence.phi).collect();
        let tokens: Vec<u32> = next.iter().map(|(_, token)| *token).collect();
        let readings = next.into_iter().zip(tokens.chunks(1).zip(phis.chunks(1)));
        self.read(
            readings
                .map(|((sequence, _), (tokens, phi))| Reading { sequence, tokens, phi })
                .collect(),
        )
    }

    /// Reads whole prompts, `tokens` and `phi` of each; returns the states of their last tokens:
    /// `[prompts, D]`.
    fn read_prompts(
        &self,
        sequences: &mut [Sequence],
        prompts: &[(&[u32], &[i32])],
    ) -> Result<Matrix, DeviceError> {
        let new = sequences.iter_mut().zip(prompts);
        let new = new.map(|(sequence, (tokens, phi))| Reading { sequence, tokens, phi }).collect();
        let hidden = self.read(new)?;
        let ends = prompts.iter().scan(0, |end, (tokens, _)| {
            *end += tokens.len();
            Some(*end - 1)
        });
        ops::pick_rows(hidden, ends.collect())
    }

    /// `choose(row, logits)` of every row of `hidden`.
    ///
    /// # Errors
    /// When a logit is not finite.
    fn each_row<R>(
        &self,
        hidden: &Matrix,
        mut choose: impl FnMut(usize, &[f32]) -> R,
    ) -> Result<Vec<R>, ModelError> {
        let mut all = Vec::with_capacity(hidden.rows());
        let mut finite = true;
        ops::each_logits(hidden, &self.head(), |row, logits| {
            finite &= logits.iter().all(|logit| logit.is_finite());
            all.push(choose(row, logits));
        })?;
        finite.then_some(all).ok_or(ModelError::NotFinite { what: "logits" })
    }

    /// The likeliest token after each row of `hidden`.
    ///
    /// # Errors
    /// When a logit is not finite.
    fn likeliest(&self, hidden: &Matrix) -> Result<Vec<u32>, ModelError> {
        let all = ops::likeliest_tokens(hidden, &self.head())?;
        let all: Option<Vec<u32>> = all.into_iter().collect();
        all.ok_or(ModelError::NotFinite { what: "logits" })
    }

    /// Writes after every prompt, whose `sequences` are empty so far. `first` is the number of the
    /// first prompt among all of the call.
    fn write(
        &self,
        mut sequences: Vec<Sequence>,
        prompts: &[(&[u32], &[i32])],
        generation: &Generation,
        first: usize,
    ) -> Result<Vec<Vec<u32>>, ModelError> {
        if generation.tokens_max == 0 {
            return Ok(vec![Vec::new(); prompts.len()]);
        }
        let hidden = self.read_prompts(&mut sequences, prompts)?;
        match generation.search {
            Search::Beam { beams, length_penalty } => {
                let search = BeamSearch::new(beams, length_penalty, generation.stop);
                self.write_beams(sequences, hidden, &search, generation.tokens_max)
            }
            Search::Greedy => self.write_one_by_one(sequences, hidden, generation, |hidden, _| {
                self.likeliest(hidden)
            }),
            Search::Sample { temperature, top_k, top_p, seed } => {
                self.write_one_by_one(sequences, hidden, generation, |hidden, who| {
                    self.each_row(hidden, |row, logits| {
                        let (who, at) = who[row];
                        let key = seed ^ ((first + who) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                        draw(logits, temperature, top_k, top_p, uniform(key, at as u64))
                    })
                })
            }
        }
    }

    /// `choose(states, who)` gives the next token after each row of states, of which `who` has the number of
    /// the prompt and that of the token.
    fn write_one_by_one(
        &self,
        mut sequences: Vec<Sequence>,
        mut hidden: Matrix,
        generation: &Generation,
        choose: impl Fn(&Matrix, &[(usize, usize)]) -> Result<Vec<u32>, ModelError>,
    ) -> Result<Vec<Vec<u32>>, ModelError> {
        let mut written: Vec<Vec<u32>> = vec![Vec::new(); sequences.len()];
        let mut going: Vec<usize> = (0..sequences.len()).collect();
        loop {
            let who: Vec<_> = going.iter().map(|who| (*who, written[*who].len())).collect();
            let tokens = choose(&hidden, &who)?;
            let mut next = Vec::with_capacity(going.len());
            for (who, token) in going.iter().zip(tokens) {
                if token == generation.stop {
                    continue;
                }
                written[*who].push(token);
                let full = sequences[*who].length == self.config.context;
                if written[*who].len() < generation.tokens_max && !full {
                    next.push((*who, token));
                }
            }
            if next.is_empty() {
                return Ok(written);
            }
            going = next.iter().map(|(who, _)| *who).collect();
            let chosen = sequences.iter_mut().enumerate().filter(|(i, _)| going.contains(i));
            let new = chosen.zip(&next).map(|((_, sequence), (_, token))| (sequence, *token));
            hidden = self.read_next(new.collect())?;
        }
    }

    fn write_beams(
        &self,
        sequences: Vec<Sequence>,
        mut hidden: Matrix,
        search: &BeamSearch,
        tokens_max: usize,
    ) -> Result<Vec<Vec<u32>>, ModelError> {
        // Per prompt: the search, and a sequence for each open beam.
        let mut all: Vec<(BeamSearch, Vec<Sequence>)> = sequences
            .into_iter()
            .map(|mut sequence| {
                sequence.pasts.iter_mut().for_each(Past::share);
                (search.clone(), vec![sequence])
            })
            .collect();
        for written in 1..=tokens_max {
            let mut rows = self.each_row(&hidden, |_, logits| log_softmax(logits))?.into_iter();
            for (search, sequences) in all.iter_mut().filter(|(search, _)| !search.is_done()) {
                let next: Vec<Vec<f32>> = rows.by_ref().take(sequences.len()).collect();
                search.advance(&next);
                *sequences =
                    search.open.iter().map(|beam| sequences[beam.parent].clone()).collect();
            }
            let full = |sequence: &Sequence| sequence.length == self.config.context;
            let going = all
                .iter_mut()
                .filter(|(search, _)| !search.is_done())
                .flat_map(|(search, sequences)| sequences.iter_mut().zip(&search.open))
                .map(|(sequence, beam)| (sequence, *beam.tokens.last().unwrap_or(&0)));
            let going: Vec<(&mut Sequence, u32)> = going.collect();
            if written == tokens_max || going.is_empty() || going.iter().any(|(s, _)| full(s)) {
                break;
            }
            hidden = self.read_next(going)?;
        }
        Ok(all.into_iter().map(|(search, _)| search.finish()).collect())
    }
}

/// Logarithms of the probabilities, in nats.
fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - top).exp()).sum();
    let shift = top + sum.ln() as f32;
    logits.iter().map(|logit| logit - shift).collect()
}

/// The token that a uniform draw in 0..1 means.
fn draw(logits: &[f32], temperature: f32, top_k: usize, top_p: f32, uniform: f32) -> u32 {
    let mut tokens: Vec<(u32, f64)> = {
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |logit: &f32| f64::from((logit - top) / temperature).exp();
        logits.iter().zip(0..).map(|(logit, token)| (token, weight(logit))).collect()
    };
    tokens.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if top_k > 0 {
        tokens.truncate(top_k);
    }
    let total: f64 = tokens.iter().map(|(_, weight)| weight).sum();
    let mut reached = 0.0;
    let kept = tokens.iter().take_while(|(_, weight)| {
        let wanted = reached < f64::from(top_p) * total;
        reached += weight;
        wanted
    });
    tokens = kept.copied().collect();
    let total: f64 = tokens.iter().map(|(_, weight)| weight).sum();
    let mut left = f64::from(uniform) * total;
    for (token, weight) in &tokens {
        left -= weight;
        if left < 0.0 {
            return *token;
        }
    }
    tokens.last().map_or(0, |(token, _)| *token)
}

impl LanguageModel {
    /// Continues every text, each token by token.
    ///
    /// # Errors
    /// When a text does not fit the model, the choices of `generation` cannot be, or a logit is not
    /// finite.
    pub fn generate(
        &self,
        texts: &[Vec<u32>],
        generation: &Generation,
    ) -> Result<Vec<Vec<u32>>, ModelError> {
        generation.validate()?;
        for text in texts {
            self.config().check_tokens(text, text.len())?;
        }
        let (decoder, params) = self.parts();
        let beside = RowsBeside::default();
        let reader = Reader { config: self.config(), decoder, params, beside, media: None };
        let sequence = Sequence {
            pasts: vec![Past::default(); self.config().layers],
            length: 0,
            first_image: 0,
            phi: -1,
        };
        ops::on_pool(|| {
            let mut all = Vec::with_capacity(texts.len());
            for group in texts.chunks(PROMPTS_AT_ONCE) {
                let none: Vec<Vec<i32>> = group.iter().map(|text| vec![-1; text.len()]).collect();
                let prompts: Vec<(&[u32], &[i32])> =
                    group.iter().zip(&none).map(|(text, phi)| (&**text, &**phi)).collect();
                let sequences = vec![sequence.clone(); group.len()];
                all.extend(reader.write(sequences, &prompts, generation, all.len())?);
            }
            Ok(all)
        })
    }
}

impl Flamingo {
    /// Continues every prompt, each token by token, until the stop, `tokens_max` tokens, or the end
    /// of the model's context. New tokens see the image that the prompt's last token sees.
    ///
    /// # Errors
    /// When a prompt does not fit the model, the choices of `generation` cannot be, or a logit is
    /// not finite.
    pub fn generate(
        &self,
        prompts: &[Prompt],
        generation: &Generation,
    ) -> Result<Vec<Vec<u32>>, ModelError> {
        generation.validate()?;
        self.in_groups(prompts, |group, first| {
            let (reader, sequences) = self.begin(group)?;
            reader.write(sequences, &texts(group), generation, first)
        })
    }

    /// Scores of every prompt's own tokens.
    ///
    /// # Errors
    /// When a prompt does not fit the model, or a logit is not finite.
    pub fn score(&self, prompts: &[Prompt]) -> Result<Vec<Scores>, ModelError> {
        self.in_groups(prompts, |group, _| {
            let (reader, mut sequences) = self.begin(group)?;
            let new = sequences.iter_mut().zip(group).map(|(sequence, prompt)| Reading {
                sequence,
                tokens: &prompt.tokens,
                phi: &prompt.phi,
            });
            let hidden = reader.read(new.collect())?;
            let targets: Vec<Option<u32>> =
                group.iter().flat_map(|prompt| following(&prompt.tokens)).collect();
            let nll = ops::token_losses(&hidden, &reader.head(), &targets)?;
            let likeliest = reader.likeliest(&hidden)?;
            let mut first = 0;
            Ok(group
                .iter()
                .map(|prompt| {
                    let rows = first..first + prompt.tokens.len();
                    first = rows.end;
                    Scores {
                        nll: nll[rows.start..rows.end - 1].to_vec(),
                        likeliest: likeliest[rows].to_vec(),
                    }
                })
                .collect())
        })
    }

    /// The log-likelihood of each of `answers` after `prompt`: the sum over the answer's tokens, in
    /// nats. The prompt is read once. An answer's tokens see the image that the prompt's last token
    /// sees.
    ///
    /// # Errors
    /// When prompt and answer do not fit the model together, an answer is empty, or a
    /// log-likelihood is not finite.
    pub fn rank(&self, prompt: &Prompt, answers: &[Vec<u32>]) -> Result<Vec<f32>, ModelError> {
        self.check_prompt(prompt)?;
        for answer in answers {
            let length = prompt.tokens.len() + answer.len() - usize::from(!answer.is_empty());
            self.config.check_tokens(answer, answer.len())?;
            self.check_length(length)?;
        }
        ops::on_pool(|| self.log_likelihoods(prompt, answers))
    }

    fn in_groups<R: Send>(
        &self,
        prompts: &[Prompt],
        work: impl Fn(&[Prompt], usize) -> Result<Vec<R>, ModelError> + Sync,
    ) -> Result<Vec<R>, ModelError> {
        prompts.iter().try_for_each(|prompt| self.check_prompt(prompt))?;
        ops::on_pool(|| {
            let mut all = Vec::with_capacity(prompts.len());
            for group in prompts.chunks(PROMPTS_AT_ONCE) {
                all.extend(work(group, all.len())?);
            }
            Ok(all)
        })
    }

    fn log_likelihoods(
        &self,
        prompt: &Prompt,
        answers: &[Vec<u32>],
    ) -> Result<Vec<f32>, ModelError> {
        let one = std::slice::from_ref(prompt);
        let (reader, mut sequences) = self.begin(one)?;
        let last = reader.read_prompts(&mut sequences, &texts(one))?; // [1, D]
        sequences[0].pasts.iter_mut().for_each(Past::share);
        let phi = vec![sequences[0].phi; self.config.language.context];
        let head = &reader.head();
        let mut all = Vec::with_capacity(answers.len());
        for group in answers.chunks(PROMPTS_AT_ONCE) {
            // The first token of an answer follows from the prompt, the others from the answer
            // itself.
            let firsts = ops::pick_rows(last.clone(), vec![0; group.len()])?;
            let targets: Vec<Option<u32>> = group.iter().map(|a| a.first().copied()).collect();
            let firsts = ops::token_losses(&firsts, head, &targets)?;
            let mut sums: Vec<f32> = firsts.iter().map(|loss| -loss).collect();

            let mut forks: Vec<(usize, Sequence)> = (0..group.len())
                .filter(|i| group[*i].len() > 1)
                .map(|i| (i, sequences[0].clone()))
                .collect();
            if !forks.is_empty() {
                let owners: Vec<usize> =
                    forks.iter().flat_map(|(i, _)| vec![*i; group[*i].len() - 1]).collect();
                let targets: Vec<Option<u32>> = forks
                    .iter()
                    .flat_map(|(i, _)| group[*i][1..].iter().copied().map(Some))
                    .collect();
                let new = forks
                    .iter_mut()
                    .map(|(i, sequence)| {
                        let tokens = &group[*i][..group[*i].len() - 1];
                        Reading { sequence, tokens, phi: &phi[..tokens.len()] }
                    })
                    .collect();
                let losses = ops::token_losses(&reader.read(new)?, head, &targets)?;
                owners.iter().zip(losses).for_each(|(i, loss)| sums[*i] -= loss);
            }
            all.extend(sums);
        }
        let finite = all.iter().all(|sum| sum.is_finite());
        finite.then_some(all).ok_or(ModelError::NotFinite { what: "log-likelihoods" })
    }

    /// Empty sequences for the prompts, and what reads them. Prompts that share their latents share
    /// the projected media.
    fn begin(&self, prompts: &[Prompt]) -> Result<(Reader<'_>, Vec<Sequence>), DeviceError> {
        let mut distinct: Vec<(&Latents, usize)> = Vec::new();
        let mut n_images = 0;
        let mut sequences = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let shared = distinct
                .iter()
                .find(|(latents, _)| latents.matrix.shares_values_with(&prompt.latents.matrix));
            let first_image = shared.map_or(n_images, |(_, first)| *first);
            if first_image == n_images {
                distinct.push((&prompt.latents, first_image));
                n_images += prompt.latents.n_images();
            }
            let pasts = vec![Past::default(); self.config.language.layers + self.n_grafts()];
            let phi = prompt.phi.last().copied().unwrap_or(-1);
            sequences.push(Sequence { pasts, length: 0, first_image, phi });
        }
        let parts: Vec<Matrix> =
            distinct.into_iter().map(|(latents, _)| latents.matrix.clone()).collect();
        let media = ops::join_rows(&parts, self.config.media_width())?;
        let media = self.params.bring(media)?;
        let (keys, _) = self.media_keys(media.with(NotRecording::default()))?;
        let (decoder, params) = self.language.parts();
        let config = &self.config.language;
        Ok((
            Reader {
                config,
                decoder,
                params,
                beside: self.rows_beside(),
                media: Some((self, keys)),
            },
            sequences,
        ))
    }

    fn check_prompt(&self, prompt: &Prompt) -> Result<(), ModelError> {
        self.config.check_tokens(&prompt.tokens, prompt.tokens.len())?;
        check_phi_length(&prompt.phi, &prompt.tokens)?;
        let (latents, width) = (self.config.resampler.latents, self.config.media_width());
        let (n, found) = (prompt.latents.n_images(), &prompt.latents.matrix);
        if n > 0 && (found.width() != width || found.rows() != n * latents) {
            return Err(ModelError::Input {
                what: "latents",
                found: format!("{} rows of {} values", found.rows(), found.width()),
                expected: format!("{latents} rows of {width} values for each of {n} images"),
            });
        }
        check_phi(&prompt.phi, prompt.latents.n_images())
    }

    fn check_length(&self, length: usize) -> Result<(), ModelError> {
        let context = self.config.language.context;
        if length <= context {
            return Ok(());
        }
        Err(ModelError::Input {
            what: "prompt with answer",
            found: format!("{length} tokens"),
            expected: format!("at most {context}, the context of the model"),
        })
    }
}

/// Tokens and images seen of each prompt.
fn texts(prompts: &[Prompt]) -> Vec<(&[u32], &[i32])> {
    prompts.iter().map(|prompt| (&*prompt.tokens, &*prompt.phi)).collect()
}

/// The token after each token, none after the last.
fn following(tokens: &[u32]) -> impl Iterator<Item = Option<u32>> + '_ {
    tokens.iter().skip(1).copied().map(Some).chain([None])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_probabilities_and_the_limits() {
        let logits = [1.0_f32.ln(), 4.0_f32.ln(), 3.0_f32.ln(), 2.0_f32.ln()];
        let all = |top_k, top_p| {
            let mut counts = [0; 4];
            for i in 0..10_000 {
                counts[draw(&logits, 1.0, top_k, top_p, uniform(3, i)) as usize] += 1;
            }
            counts
        };
        for (count, share) in all(0, 1.0).into_iter().zip([0.1, 0.4, 0.3, 0.2]) {
            assert!((f64::from(count) / 10_000.0 - share).abs() < 0.02, "{count} for {share}");
        }
        assert_eq!(all(2, 1.0).map(|count| count > 0), [false, true, true, false]);
        assert_eq!(all(0, 0.65).map(|count| count > 0), [false, true, true, false]);
        assert_eq!(all(0, 0.01).map(|count| count > 0), [false, true, false, false]);
        assert_eq!(draw(&logits, 1e-3, 0, 1.0, 0.999), 1, "cold draws are greedy");
    }
}
