//! Reading prompts and writing on: greedy generation, scores of given text, ranking of answers.
//!
//! Sequences of different lengths are laid one after the other, without padding. Each keeps its
//! keys and values, so a new token costs one token's work, and the media of a prompt are projected
//! once.

use std::sync::Arc;

use crate::buffer::Buffer;
use crate::error::ModelError;
use crate::flamingo::Flamingo;
use crate::gated_xattn::MediaKeys;
use crate::inputs::{Latents, check_phi, check_phi_length};
use crate::ops::{self, MediaReads, Past};
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
    /// Per layer of the language model.
    pasts: Vec<Past>,
    /// Tokens read so far.
    length: usize,
    /// Where the sequence's images begin among the media.
    first_image: usize,
}

/// The images of several prompts, projected for every cross-attention block.
struct Media {
    keys: Vec<MediaKeys>,
}

/// New tokens of a sequence and the images that they see.
struct Reading<'a> {
    sequence: &'a mut Sequence,
    tokens: &'a [u32],
    phi: &'a [i32],
}

impl Flamingo {
    /// The likeliest continuation of every prompt, token by token, until `stop` (not included),
    /// `tokens_max` tokens, or the end of the model's context. New tokens see the image that the
    /// prompt's last token sees.
    ///
    /// # Errors
    /// When a prompt does not fit the model, or a logit is not finite.
    pub fn generate_greedy(
        &self,
        prompts: &[Prompt],
        tokens_max: usize,
        stop: u32,
    ) -> Result<Vec<Vec<u32>>, ModelError> {
        self.in_groups(prompts, |group| self.generate(group, tokens_max, stop))
    }

    /// Scores of every prompt's own tokens.
    ///
    /// # Errors
    /// When a prompt does not fit the model, or a logit is not finite.
    pub fn score(&self, prompts: &[Prompt]) -> Result<Vec<Scores>, ModelError> {
        self.in_groups(prompts, |group| {
            let (media, mut sequences) = self.begin(group)?;
            let hidden = self.read(&media, readings(&mut sequences, group))?;
            let targets: Vec<Option<u32>> =
                group.iter().flat_map(|prompt| following(&prompt.tokens)).collect();
            let (decoder, params) = self.language.parts();
            let nll = ops::token_losses(&hidden, decoder.head(params), &targets);
            let likeliest = self.likeliest(&hidden)?;
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
            self.config.language.check_tokens(answer, answer.len())?;
            self.check_length(length)?;
        }
        ops::on_pool(|| self.log_likelihoods(prompt, answers))
    }

    fn in_groups<R: Send>(
        &self,
        prompts: &[Prompt],
        work: impl Fn(&[Prompt]) -> Result<Vec<R>, ModelError> + Sync,
    ) -> Result<Vec<R>, ModelError> {
        prompts.iter().try_for_each(|prompt| self.check_prompt(prompt))?;
        ops::on_pool(|| {
            let mut all = Vec::with_capacity(prompts.len());
            for group in prompts.chunks(PROMPTS_AT_ONCE) {
                all.extend(work(group)?);
            }
            Ok(all)
        })
    }

    fn generate(
        &self,
        prompts: &[Prompt],
        tokens_max: usize,
        stop: u32,
    ) -> Result<Vec<Vec<u32>>, ModelError> {
        let (media, mut sequences) = self.begin(prompts)?;
        let mut written = vec![Vec::new(); prompts.len()];
        if tokens_max == 0 {
            return Ok(written);
        }
        let mut hidden = self.read(&media, readings(&mut sequences, prompts))?;
        let lengths: Vec<usize> = prompts.iter().map(|prompt| prompt.tokens.len()).collect();
        hidden = last_rows(&hidden, &lengths)?;
        let mut going: Vec<usize> = (0..prompts.len()).collect();
        loop {
            let mut next = Vec::with_capacity(going.len());
            for (who, token) in going.iter().zip(self.likeliest(&hidden)?) {
                let full = sequences[*who].length == self.config.language.context;
                if token != stop {
                    written[*who].push(token);
                    if written[*who].len() < tokens_max && !full {
                        next.push((*who, token, prompts[*who].phi.last().copied().unwrap_or(-1)));
                    }
                }
            }
            if next.is_empty() {
                return Ok(written);
            }
            going = next.iter().map(|(who, ..)| *who).collect();
            let chosen = sequences.iter_mut().enumerate().filter(|(i, _)| going.contains(i));
            let new = chosen
                .zip(&next)
                .map(|((_, sequence), (_, token, phi))| Reading {
                    sequence,
                    tokens: std::slice::from_ref(token),
                    phi: std::slice::from_ref(phi),
                })
                .collect();
            hidden = self.read(&media, new)?;
        }
    }

    fn log_likelihoods(
        &self,
        prompt: &Prompt,
        answers: &[Vec<u32>],
    ) -> Result<Vec<f32>, ModelError> {
        let one = std::slice::from_ref(prompt);
        let (media, mut sequences) = self.begin(one)?;
        let hidden = self.read(&media, readings(&mut sequences, one))?;
        let last = last_rows(&hidden, &[prompt.tokens.len()])?; // [1, D]
        let phi = vec![prompt.phi.last().copied().unwrap_or(-1); self.config.language.context];
        let (decoder, params) = self.language.parts();
        let mut all = Vec::with_capacity(answers.len());
        for group in answers.chunks(PROMPTS_AT_ONCE) {
            // The first token of an answer follows from the prompt, the others from the answer
            // itself.
            let firsts =
                Matrix::constant(Buffer::from(last.values().repeat(group.len())), last.width());
            let targets: Vec<Option<u32>> = group.iter().map(|a| a.first().copied()).collect();
            let firsts = ops::token_losses(&firsts, decoder.head(params), &targets);
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
                let hidden = self.read(&media, new)?;
                let losses = ops::token_losses(&hidden, decoder.head(params), &targets);
                owners.iter().zip(losses).for_each(|(i, loss)| sums[*i] -= loss);
            }
            all.extend(sums);
        }
        let finite = all.iter().all(|sum| sum.is_finite());
        finite.then_some(all).ok_or(ModelError::NotFinite { what: "log-likelihoods" })
    }

    /// Empty sequences for the prompts, and their images. Prompts that share their latents share
    /// the projected media.
    fn begin(&self, prompts: &[Prompt]) -> Result<(Media, Vec<Sequence>), DeviceError> {
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
            let pasts = vec![Past::default(); self.config.language.layers];
            sequences.push(Sequence { pasts, length: 0, first_image });
        }
        let values: Vec<&[f32]> =
            distinct.iter().map(|(latents, _)| latents.matrix.values()).collect();
        let media = Matrix::constant(values.concat().into(), self.config.vision.width);
        let (keys, _) = self.media_keys(media.with(NotRecording::default()))?;
        Ok((Media { keys }, sequences))
    }

    /// Reads new tokens; returns their states after the last norm, sequence after sequence:
    /// `[sum of lengths, D]`.
    fn read(&self, media: &Media, mut new: Vec<Reading>) -> Result<Matrix, DeviceError> {
        let counts: Vec<usize> = new.iter().map(|reading| reading.tokens.len()).collect();
        let placed = new
            .iter()
            .flat_map(|reading| {
                let start = reading.sequence.length;
                reading.tokens.iter().enumerate().map(move |(i, token)| (*token, start + i))
            })
            .collect();
        let seen = new.iter().flat_map(|reading| {
            let first = reading.sequence.first_image;
            reading.phi.iter().map(move |image| usize::try_from(*image).ok().map(|i| first + i))
        });
        let reads = Arc::new(MediaReads::new(seen, self.config.resampler.latents));
        let (decoder, params) = self.language.parts();
        let mut x = decoder.embed(params, placed, NotRecording::default())?;
        for (layer, block) in decoder.blocks.iter().enumerate() {
            if let Some(i) = self.block_before(layer) {
                x = self.cross_attention[i].forward(&self.params, x, &media.keys[i], &reads)?;
            }
            let mut pasts: Vec<&mut Past> =
                new.iter_mut().map(|reading| &mut reading.sequence.pasts[layer]).collect();
            x = block.forward(params, x, |qkv| {
                Ok(ops::continue_attention(&qkv, &mut pasts, &counts, block.heads))
            })?;
        }
        for reading in &mut new {
            reading.sequence.length += reading.tokens.len();
        }
        decoder.finish(params, x)
    }

    fn check_prompt(&self, prompt: &Prompt) -> Result<(), ModelError> {
        self.config.language.check_tokens(&prompt.tokens, prompt.tokens.len())?;
        check_phi_length(&prompt.phi, &prompt.tokens)?;
        let (latents, width) = (self.config.resampler.latents, self.config.vision.width);
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

/// All tokens of the prompts, to be read into their sequences.
fn readings<'a>(sequences: &'a mut [Sequence], prompts: &'a [Prompt]) -> Vec<Reading<'a>> {
    sequences
        .iter_mut()
        .zip(prompts)
        .map(|(sequence, prompt)| Reading { sequence, tokens: &prompt.tokens, phi: &prompt.phi })
        .collect()
}

/// The token after each token, none after the last.
fn following(tokens: &[u32]) -> impl Iterator<Item = Option<u32>> + '_ {
    tokens.iter().skip(1).copied().map(Some).chain([None])
}

/// The last row of each sequence: `[sequences, D]`.
fn last_rows(hidden: &Matrix, lengths: &[usize]) -> Result<Matrix, DeviceError> {
    let ends = lengths.iter().scan(0, |end, n| {
        *end += n;
        Some(*end - 1)
    });
    ops::pick_rows(hidden.clone(), ends.collect())
}
