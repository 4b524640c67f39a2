//! The decoder that language model and text tower share: GPT-2's (pre-norm blocks, learned
//! positions).
//!
//! Letters: `B` sequences, `L` tokens, `D` width.

use serde::{Deserialize, Serialize};

use crate::block::{Block, BlockSize};
use crate::error::ModelError;
use crate::layers::{LayerNorm, NORM_EPSILON};
use crate::limits::{
    CONTEXT_MAX, LAYERS_MAX, VOCABULARY_MAX, WIDTH_MAX, check_at_most, check_heads, check_size,
    check_tower,
};
use crate::ops::{self, Activation, Visible};
use crate::params::{Declare, ParamId, Params, Start};
use crate::tensor::{DeviceError, Matrix, Record, Weight};

/// Shape of a language model or text tower. Read from `[model.language]` or `[model.text]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageConfig {
    /// Tokens of the tokenizer.
    pub vocabulary: usize,
    /// Longest sequence, in tokens.
    pub context: usize,
    /// Width of the residual.
    pub width: usize,
    /// Blocks.
    pub layers: usize,
    /// Heads; divide `width`.
    pub heads: usize,
    /// Activation of the feed-forward; `gelu_new` in GPT-2.
    pub activation: Activation,
}

impl LanguageConfig {
    /// Checks that the sizes can work.
    ///
    /// # Errors
    /// Names the first field that cannot.
    pub fn validate(&self) -> Result<(), ModelError> {
        self.validate_at("language")
    }

    /// As [`LanguageConfig::validate`], for the configuration under the key `table`.
    pub(crate) fn validate_at(&self, table: &str) -> Result<(), ModelError> {
        check_size(&format!("{table}.vocabulary"), self.vocabulary, VOCABULARY_MAX)?;
        check_size(&format!("{table}.context"), self.context, CONTEXT_MAX)?;
        check_size(&format!("{table}.width"), self.width, WIDTH_MAX)?;
        check_at_most(&format!("{table}.layers"), self.layers, LAYERS_MAX)?;
        check_heads(&format!("{table}.heads"), self.heads, self.width)?;
        check_tower(table, self.width, self.layers, self.vocabulary + self.context)
    }

    /// Checks tokens `[B, L]` against vocabulary and context; returns `B`.
    pub(crate) fn check_tokens(&self, tokens: &[u32], length: usize) -> Result<usize, ModelError> {
        if length == 0 || length > self.context {
            return Err(ModelError::Input {
                what: "length",
                found: length.to_string(),
                expected: format!("1 to {} tokens, the context of the model", self.context),
            });
        }
        if tokens.is_empty() || !tokens.len().is_multiple_of(length) {
            return Err(ModelError::Input {
                what: "tokens",
                found: format!("{} tokens", tokens.len()),
                expected: format!("a multiple of the length {length}"),
            });
        }
        match tokens.iter().find(|token| **token as usize >= self.vocabulary) {
            None => Ok(tokens.len() / length),
            Some(token) => Err(ModelError::Input {
                what: "token",
                found: token.to_string(),
                expected: format!("below {}, the vocabulary of the model", self.vocabulary),
            }),
        }
    }
}

/// The decoder.
#[derive(Debug, Clone)]
pub(crate) struct Decoder {
    tokens: ParamId,
    positions: ParamId,
    /// The blocks, from the bottom up.
    pub(crate) blocks: Vec<Block>,
    norm: LayerNorm,
    width: usize,
}

/// Deviation of fresh token and position embeddings, GPT-2's.
const EMBEDDING_DEVIATION: f32 = 0.02;

impl Decoder {
    /// Declares the decoder under `name`, with the names of Hugging Face's GPT-2 below it.
    pub(crate) fn new(
        declare: &mut Declare,
        name: &str,
        config: &LanguageConfig,
    ) -> Result<Self, ModelError> {
        let width = config.width;
        let at = |part: &str| format!("{name}{part}");
        let start = Start::Normal(EMBEDDING_DEVIATION);
        let size = BlockSize {
            width,
            layers: config.layers,
            heads: config.heads,
            activation: config.activation,
        };
        Ok(Self {
            tokens: declare.add(at("wte.weight"), &[config.vocabulary, width], start)?,
            positions: declare.add(at("wpe.weight"), &[config.context, width], start)?,
            blocks: Block::stack(declare, &at("h."), size)?,
            norm: LayerNorm::new(declare, &at("ln_f"), width, NORM_EPSILON)?,
            width,
        })
    }

    /// The head, tied to the token embeddings: `[vocabulary, D]`.
    pub(crate) fn head<'a>(&self, p: &'a Params) -> &'a Weight {
        p.get(self.tokens)
    }

    /// Embeddings of `(token, position)` pairs: `[N, D]`.
    pub(crate) fn embed<T: Record>(
        &self,
        p: &Params,
        tokens: Vec<(u32, usize)>,
        tape: T,
    ) -> Result<Matrix<T>, DeviceError> {
        ops::embed_tokens(tokens, p.get(self.tokens), p.get(self.positions), self.width, tape)
    }

    /// The norm after the last block.
    pub(crate) fn finish<T: Record>(
        &self,
        p: &Params,
        x: Matrix<T>,
    ) -> Result<Matrix<T>, DeviceError> {
        self.norm.forward(p, x)
    }

    /// `tokens` `[B, L]` to states after the last norm: `[B * L, D]`. `between(i, x)` may change
    /// the states before block i.
    pub(crate) fn forward<T: Record>(
        &self,
        p: &Params,
        tokens: &[u32],
        length: usize,
        tape: T,
        between: impl Fn(usize, Matrix<T>) -> Result<Matrix<T>, DeviceError>,
    ) -> Result<Matrix<T>, DeviceError> {
        let placed = tokens.iter().enumerate().map(|(i, token)| (*token, i % length)).collect();
        let mut x = self.embed(p, placed, tape)?; // [B * L, D]
        for (i, block) in self.blocks.iter().enumerate() {
            x = between(i, x)?;
            x = block.forward(p, x, |qkv| {
                ops::self_attention(qkv, length, block.heads, Visible::Causal)
            })?;
        }
        self.finish(p, x)
    }
}
