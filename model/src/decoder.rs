//! The decoder that language model and text tower share, GPT-2's by default; its
//! [`Architecture`] makes it another family's.
//!
//! Letters: `B` sequences, `L` tokens, `D` width.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::architecture::{Architecture, Positions};
use crate::block::{Block, Part, WholeSequences};
use crate::error::ModelError;
use crate::layers::Norm;
use crate::limits::{CONTEXT_MAX, LAYERS_MAX, VOCABULARY_MAX, WIDTH_MAX, check_size, check_tower};
use crate::ops::{self, Activation, MovedRows, Recompute, Sequences, TokenTable, Visible};
use crate::params::{Declare, ParamId, Params, Start};
use crate::tensor::{DeviceError, Matrix, Record, Weight};

/// Shape of a language model or text tower. Read from `[model.language]` or `[model.text]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// Heads of queries; divide `width` unless the architecture gives heads a width.
    pub heads: usize,
    /// Activation of the feed-forward; `gelu_new` in GPT-2.
    pub activation: Activation,
    /// How the decoder is built beside its sizes; GPT-2's way if not given.
    #[serde(default)]
    pub architecture: Architecture,
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
        check_size(&format!("{table}.layers"), self.layers, LAYERS_MAX)?;
        check_size(&format!("{table}.heads"), self.heads, WIDTH_MAX)?;
        self.architecture.validate_at(table, self)?;
        check_tower(table, self.width, self.layers, 2 * self.vocabulary + self.context)
    }

    /// Checks tokens `[B, L]` against vocabulary and context; returns `B`.
    pub(crate) fn check_tokens(&self, tokens: &[u32], length: usize) -> Result<usize, ModelError> {
        self.check_tokens_below(tokens, length, self.vocabulary)
    }

    /// As [`LanguageConfig::check_tokens`], with another vocabulary.
    pub(crate) fn check_tokens_below(
        &self,
        tokens: &[u32],
        length: usize,
        vocabulary: usize,
    ) -> Result<usize, ModelError> {
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
        match tokens.iter().find(|token| **token as usize >= vocabulary) {
            None => Ok(tokens.len() / length),
            Some(token) => Err(ModelError::Input {
                what: "token",
                found: token.to_string(),
                expected: format!("below {vocabulary}, the vocabulary of the model"),
            }),
        }
    }
}

/// The decoder.
#[derive(Debug, Clone)]
pub(crate) struct Decoder {
    tokens: ParamId,
    positions: Option<ParamId>,
    position_offset: usize,
    /// The blocks, from the bottom up.
    pub(crate) blocks: Vec<Block>,
    norm: Norm,
    head: Option<ParamId>,
    width: usize,
    /// The keys that a token sees.
    pub(crate) visible: Visible,
}

/// Where the states of a decoder may be changed on their way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Before this block.
    Before(usize),
    /// Between attention and feed-forward of this block, in a pass that splits blocks.
    Middle(usize),
    /// After the last block, before the last norm.
    End,
}

/// Deviation of fresh token and position embeddings, GPT-2's.
pub(crate) const EMBEDDING_DEVIATION: f32 = 0.02;

impl Decoder {
    /// Declares the decoder under `name`, which ends in a dot.
    pub(crate) fn new(
        declare: &mut Declare,
        name: &str,
        config: &LanguageConfig,
    ) -> Result<Self, ModelError> {
        let (width, how) = (config.width, &config.architecture);
        let at = |part: &str| format!("{name}{part}");
        let start = Start::Normal(EMBEDDING_DEVIATION);
        let table = |declare: &mut Declare, part: &str, rows: usize| {
            declare.add(at(part), &[rows, width], start)
        };
        let positions = config.context + how.position_offset;
        let learned = how.positions == Positions::Learned;
        Ok(Self {
            tokens: table(declare, "tokens.weight", config.vocabulary)?,
            positions: learned
                .then(|| table(declare, "positions.weight", positions))
                .transpose()?,
            position_offset: how.position_offset,
            blocks: Block::stack(declare, &at("blocks."), how.block_shape(config))?,
            norm: Norm::of_kind(declare, &at("norm"), width, how.norm, how.norm_epsilon)?,
            head: (!how.tied)
                .then(|| table(declare, "head.weight", config.vocabulary))
                .transpose()?,
            width,
            visible: how.visible(config.heads),
        })
    }

    /// Other embeddings of tokens, and another head where there is one; both `[vocabulary, D]`.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn replace_embeddings(
        &self,
        p: &mut Params,
        vocabulary: usize,
        tokens: Vec<f32>,
        head: Option<Vec<f32>>,
    ) -> Result<(), DeviceError> {
        let shape = [vocabulary, self.width];
        p.replace(self.tokens, &shape, tokens)?;
        match (self.head, head) {
            (Some(id), Some(head)) => p.replace(id, &shape, head),
            _ => Ok(()),
        }
    }

    /// Rows of the embeddings and of the head, or of the embeddings alone where they are the head: those
    /// of some tokens, `[R, D]` each.
    pub(crate) fn rows_of(&self, p: &Params, tokens: &[u32]) -> (Vec<f32>, Option<Vec<f32>>) {
        let rows = |id: ParamId| {
            let all = p.get(id).values();
            let row = |token: &u32| &all[*token as usize * self.width..][..self.width];
            tokens.iter().flat_map(row).copied().collect()
        };
        (rows(self.tokens), self.head.map(rows))
    }

    /// The head: `[vocabulary, D]`, and the rows beside it.
    pub(crate) fn head(&self, p: &Params, beside: &RowsBeside) -> TokenTable {
        let rows = p.get(self.head.unwrap_or(self.tokens)).clone();
        beside.table(rows, |rows| &rows.head)
    }

    /// Embeddings of `tokens` at `positions`: `[N, D]`.
    pub(crate) fn embed<T: Record>(
        &self,
        p: &Params,
        tokens: &[u32],
        positions: &[usize],
        beside: &RowsBeside,
        tape: T,
    ) -> Result<Matrix<T>, DeviceError> {
        let rows = positions.iter().map(|position| position + self.position_offset);
        let placed = tokens.iter().copied().zip(rows).collect();
        let places = self.positions.map(|id| p.get(id));
        let rows = p.get(self.tokens).clone();
        let table = beside.table(rows, |rows| &rows.tokens);
        ops::embed_tokens(placed, &table, places, self.width, tape)
    }

    /// The norm after the last block.
    pub(crate) fn finish<T: Record>(
        &self,
        p: &Params,
        x: Matrix<T>,
    ) -> Result<Matrix<T>, DeviceError> {
        self.norm.forward(p, x)
    }

    /// `tokens` `[N]` of `sequences` to states after the last norm: `[N, D]`. `between` may change
    /// the states at every place.
    pub(crate) fn forward<T: Record>(
        &self,
        p: &Params,
        tokens: &[u32],
        sequences: &Sequences,
        tape: T,
        pass: &Pass,
        between: impl Fn(Place, Matrix<T>) -> Result<Matrix<T>, DeviceError>,
    ) -> Result<Matrix<T>, DeviceError> {
        let positions = sequences.positions();
        let mut x = self.embed(p, tokens, &positions, &pass.beside, tape)?; // [N, D]
        for (i, block) in self.blocks.iter().enumerate() {
            x = between(Place::Before(i), x)?;
            let whole = WholeSequences {
                block: block.clone(),
                params: p.clone(),
                positions: Arc::clone(&positions),
                sequences: sequences.clone(),
                visible: self.visible.clone(),
                part: Part::All,
            };
            if pass.split {
                let half = WholeSequences { part: Part::Attention, ..whole.clone() };
                x = between(Place::Middle(i), half.forward(x, pass.recompute)?)?;
                let half = WholeSequences { part: Part::FeedForward, ..whole };
                x = half.forward(x, pass.recompute)?;
            } else {
                x = whole.forward(x, pass.recompute)?;
            }
        }
        self.finish(p, between(Place::End, x)?)
    }
}

/// Rows of some tokens, `[K, D]` each.
#[derive(Debug, Clone)]
pub(crate) struct TokenRows {
    /// Their embeddings.
    pub(crate) tokens: Weight,
    /// Their rows of the head; the embeddings themselves in a tied model.
    pub(crate) head: Weight,
}

/// Rows that stand beside those of a language model.
#[derive(Debug, Clone, Default)]
pub(crate) struct RowsBeside {
    /// Of tokens that were added to it.
    pub(crate) added: Option<TokenRows>,
    /// Of some of its own tokens, in ascending order, in the place of its rows.
    pub(crate) moved: Option<(Arc<[u32]>, TokenRows)>,
}

impl RowsBeside {
    /// A table of the language model's `rows` and of these; `which` chooses embeddings or head.
    fn table(&self, rows: Weight, which: impl Fn(&TokenRows) -> &Weight) -> TokenTable {
        let moved = self.moved.as_ref().map(|(tokens, rows)| MovedRows {
            tokens: Arc::clone(tokens),
            rows: which(rows).clone(),
        });
        TokenTable { rows, added: self.added.as_ref().map(|added| which(added).clone()), moved }
    }
}

/// How a decoder is run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pass {
    /// Rows that the decoder does not have by itself.
    pub(crate) beside: RowsBeside,
    /// Which blocks keep only their inputs for the backward pass.
    pub(crate) recompute: Recompute,
    /// Whether states may change between the halves of blocks, which are not parallel then.
    pub(crate) split: bool,
}
