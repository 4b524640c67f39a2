//! The pre-norm transformer block of every tower: self-attention, then feed-forward, each after a
//! norm and onto a residual. How it is built in detail, GPT-2's way or another family's, is a
//! matter of its [`BlockShape`].

use std::sync::Arc;

use crate::error::ModelError;
use crate::layers::{Linear, Norm, NormKind, fan_in};
use crate::ops::{self, Activation, Heads, Recompute, Rotation, Sequences, Stage, Visible};
use crate::params::{Declare, Params, Start};
use crate::tensor::{DeviceError, Matrix, Record, Recording};

/// How the blocks of a stack are built.
#[expect(clippy::struct_excessive_bools, reason = "each is a choice of its own, by its field name")]
#[derive(Debug, Clone)]
pub(crate) struct BlockShape {
    pub(crate) width: usize,
    pub(crate) layers: usize,
    pub(crate) heads: Heads,
    /// Width of the hidden layer of the feed-forward.
    pub(crate) hidden: usize,
    pub(crate) activation: Activation,
    /// Whether the feed-forward's hidden layer is `activation(a) * b`.
    pub(crate) gated: bool,
    pub(crate) norm: NormKind,
    pub(crate) norm_epsilon: f32,
    /// Whether attention and feed-forward read the same states, and not one after the other.
    pub(crate) parallel: bool,
    /// Whether queries, keys and values have biases.
    pub(crate) qkv_bias: bool,
    /// Whether the other affine maps have biases.
    pub(crate) biases: bool,
    /// Whether queries and keys are normalised, each over all heads together.
    pub(crate) qk_norm: bool,
    /// How queries and keys are turned by their positions, if at all.
    pub(crate) rotation: Option<Rotation>,
}

/// Values of a row in a training step of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowSize {
    pub(crate) width: usize,
    /// That the backward pass needs.
    pub(crate) kept: usize,
    /// Of the hidden layer, before and after its activation.
    pub(crate) hidden: usize,
    pub(crate) is_trained: bool,
}

/// One block.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    norm_1: Norm,
    to_qkv: Linear,
    qk_norms: Option<[Norm; 2]>,
    to_out: Linear,
    norm_2: Norm,
    up: Linear,
    down: Linear,
    shape: Arc<BlockShape>,
}

impl Block {
    /// Declares a block under `name`, which ends in a dot.
    ///
    /// Kernels start normal with deviation `1 / sqrt(inputs)`; those that feed the residual are
    /// divided by `sqrt(2 layers)` as in GPT-2, so that the residual's size does not grow with
    /// depth.
    fn new(declare: &mut Declare, name: &str, shape: &Arc<BlockShape>) -> Result<Self, ModelError> {
        let BlockShape { width, heads, hidden, norm: kind, norm_epsilon, .. } = **shape;
        let onto =
            |inputs: usize| Start::Normal(((inputs * 2 * shape.layers) as f32).sqrt().recip());
        let at = |part: &str| format!("{name}{part}");
        let norm = |declare: &mut Declare, part: &str, width: usize| {
            Norm::of_kind(declare, &at(part), width, kind, norm_epsilon)
        };
        let linear = |declare: &mut Declare, part: &str, ends, bias, start| {
            Linear::starting(declare, &at(part), ends, bias, start)
        };
        let up = if shape.gated { ("mlp.gate_up", 2 * hidden) } else { ("mlp.up", hidden) };
        Ok(Self {
            norm_1: norm(declare, "norm_1", width)?,
            to_qkv: linear(
                declare,
                "attn.qkv",
                (width, heads.row_width()),
                shape.qkv_bias,
                fan_in(width),
            )?,
            qk_norms: if shape.qk_norm {
                let q = norm(declare, "attn.q_norm", heads.query_width())?;
                Some([q, norm(declare, "attn.k_norm", heads.key_width())?])
            } else {
                None
            },
            to_out: linear(
                declare,
                "attn.out",
                (heads.query_width(), width),
                shape.biases,
                onto(heads.query_width()),
            )?,
            norm_2: norm(declare, "norm_2", width)?,
            up: linear(declare, up.0, (width, up.1), shape.biases, fan_in(width))?,
            down: linear(declare, "mlp.down", (hidden, width), shape.biases, onto(hidden))?,
            shape: Arc::clone(shape),
        })
    }

    /// Declares `shape.layers` blocks under `NAME0.`, `NAME1.` and so on.
    pub(crate) fn stack(
        declare: &mut Declare,
        name: &str,
        shape: BlockShape,
    ) -> Result<Vec<Self>, ModelError> {
        let shape = Arc::new(shape);
        (0..shape.layers).map(|i| Self::new(declare, &format!("{name}{i}."), &shape)).collect()
    }

    /// What a row leaves of a training step.
    pub(crate) fn row_size(&self, p: &Params) -> RowSize {
        let BlockShape { width, heads, hidden, gated, .. } = *self.shape;
        let (before, is_trained) =
            (if gated { 2 * hidden } else { hidden }, self.to_qkv.is_trained(p));
        let kept = if is_trained {
            4 * width + heads.row_width() + heads.query_width() + before + hidden
        } else {
            2 * width + heads.row_width() + before
        };
        RowSize { width, kept, hidden: before + hidden, is_trained }
    }

    /// The block's heads.
    pub(crate) fn heads(&self) -> Heads {
        self.shape.heads
    }

    /// `[N, D]` to `[N, D]`; `positions` `[N]` are the rows' places in their sequences; `attend`
    /// turns queries, keys and values into what is read, `[N, heads * size]`.
    pub(crate) fn forward<T: Record>(
        &self,
        p: &Params,
        x: Matrix<T>,
        positions: &Arc<[usize]>,
        attend: impl FnOnce(Matrix<T>) -> Result<Matrix<T>, DeviceError>,
    ) -> Result<Matrix<T>, DeviceError> {
        if !self.shape.parallel {
            return self.think(p, self.read(p, x, positions, attend)?);
        }
        let (x, tape) = x.split();
        let y = self.read(p, x.clone().with(tape), positions, attend)?;
        let (y, tape) = y.split();
        self.think_onto(p, x.with(tape), y)
    }

    /// The attention half: `x` `[N, D]` and what it reads.
    pub(crate) fn read<T: Record>(
        &self,
        p: &Params,
        x: Matrix<T>,
        positions: &Arc<[usize]>,
        attend: impl FnOnce(Matrix<T>) -> Result<Matrix<T>, DeviceError>,
    ) -> Result<Matrix<T>, DeviceError> {
        let (x, tape) = x.split();
        let normal = self.norm_1.forward(p, x.clone().with(tape))?; // [N, D]
        let read = attend(self.queries_keys_values(p, normal, positions)?)?;
        self.to_out.forward_onto(p, read, x) // [N, D]
    }

    /// The feed-forward half: `y` `[N, D]` and what the feed-forward makes of it.
    pub(crate) fn think<T: Record>(
        &self,
        p: &Params,
        y: Matrix<T>,
    ) -> Result<Matrix<T>, DeviceError> {
        let (y, tape) = y.split();
        self.think_onto(p, y.clone().with(tape), y)
    }

    /// `y` plus what the feed-forward makes of `x`.
    fn think_onto<T: Record>(
        &self,
        p: &Params,
        x: Matrix<T>,
        y: Matrix,
    ) -> Result<Matrix<T>, DeviceError> {
        let hidden = self.up.forward(p, self.norm_2.forward(p, x)?)?; // [N, H]
        let hidden = if self.shape.gated {
            ops::activate_gate(hidden, self.shape.activation)?
        } else {
            ops::activate(hidden, self.shape.activation)?
        };
        self.down.forward_onto(p, hidden, y)
    }

    /// Rows `[N, heads.row_width()]` of normalised states `[N, D]`.
    fn queries_keys_values<T: Record>(
        &self,
        p: &Params,
        normal: Matrix<T>,
        positions: &Arc<[usize]>,
    ) -> Result<Matrix<T>, DeviceError> {
        let mut qkv = self.to_qkv.forward(p, normal)?;
        if let Some([q, k]) = &self.qk_norms {
            qkv = q.forward_columns(p, qkv, 0)?;
            qkv = k.forward_columns(p, qkv, self.heads().query_width())?;
        }
        match &self.shape.rotation {
            Some(rotation) => ops::rotate(qkv, positions, rotation),
            None => Ok(qkv),
        }
    }
}

/// A block, or half of one, over whole sequences, which can run again.
#[derive(Clone)]
pub(crate) struct WholeSequences {
    pub(crate) block: Block,
    pub(crate) params: Params,
    /// `[N]`: places of the rows in their sequences.
    pub(crate) positions: Arc<[usize]>,
    pub(crate) sequences: Sequences,
    pub(crate) visible: Visible,
    pub(crate) part: Part,
}

/// What of a block runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    All,
    Attention,
    FeedForward,
}

impl WholeSequences {
    /// Runs on `x` `[N, D]`; `recompute` says whether only that is kept for the backward pass.
    pub(crate) fn forward<T: Record>(
        self,
        x: Matrix<T>,
        recompute: Recompute,
    ) -> Result<Matrix<T>, DeviceError> {
        if T::OWNS_TAPE && recompute.covers(self.is_trained()) {
            ops::recomputed(x, self)
        } else {
            self.run(x)
        }
    }
}

impl Stage for WholeSequences {
    fn is_trained(&self) -> bool {
        self.block.to_qkv.is_trained(&self.params)
    }

    fn run<T: Record>(&self, x: Matrix<T>) -> Result<Matrix<T>, DeviceError> {
        let attend =
            |qkv| ops::self_attention(qkv, &self.sequences, self.block.heads(), &self.visible);
        let (block, p) = (&self.block, &self.params);
        match self.part {
            Part::All => block.forward(p, x, &self.positions, attend),
            Part::Attention => block.read(p, x, &self.positions, attend),
            Part::FeedForward => block.think(p, x),
        }
    }

    fn run_again(&self, x: Matrix<Recording>) -> Result<Matrix<Recording>, DeviceError> {
        let mut again = self.clone();
        let block = &mut again.block;
        // What ends in the residual feeds nothing else.
        if self.part == Part::Attention || block.shape.parallel {
            block.to_out = block.to_out.clone().unread();
        }
        block.down = block.down.clone().unread();
        again.run(x)
    }
}
