//! Each operation alone, forward and with its gradients, at the sizes of a small real model: what
//! `benches/ops.rs` times. Behind the feature `ops-bench` alone, and no part of the crate's
//! interface: a bench is another crate and sees nothing that is private.
//!
//! In the table's counts of floating-point operations a multiply-add is 2, backward passes make each
//! product once for every gradient that is wanted, and a masked score counts as none. What is made
//! again instead of kept is not counted, nor is what an operation does beside its products.

use std::fmt;
use std::hint::black_box;
use std::sync::Arc;

use super::matmul::{Target, View, matmul, matmul_by_gemm};
use super::sequences::Sequences;
use super::{
    Activation, AttentionShape, Convolution, Grid, Heads, Kernel, KernelSize, MediaReads, Norm,
    Rotation, SqueezeExcitation, Stage, Visible, activate, activate_gate, add_gated, attention,
    contrastive_loss, convolve, cross_entropy, embed_tokens, halve, linear, media_attention,
    normalise, recomputed, rotate, self_attention, squeeze_excite_onto, standardize,
};
use crate::buffer::Buffer;
use crate::tensor::{
    DeviceError, Loss, Matrix, NotRecording, Record, Recording, Weight, differentiate, record_loss,
};

/// What is run of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// The result alone.
    Forward,
    /// The result and the gradients of all inputs and trained weights.
    Both,
}

/// An operation on inputs that are made already.
pub type Run = Box<dyn Fn(Pass) -> Result<(), DeviceError>>;

/// One operation at one size.
#[derive(Clone, Copy)]
pub struct Case {
    /// Name of the operation.
    pub name: &'static str,
    /// Its sizes, in words.
    pub shape: &'static str,
    /// Floating-point operations in matrix products of the forward pass; 0 if it has none.
    pub flop: f64,
    /// As often as that in both passes together.
    pub times: f64,
    /// Makes the inputs.
    pub prepare: fn() -> Result<Run, DeviceError>,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.name, self.shape)
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A [`Run`] of an expression with a tape, which is of another type in each pass.
macro_rules! passes {
    (|$tape:ident| $run:expr) => {
        Ok(Box::new(move |pass| {
            match pass {
                Pass::Forward => {
                    let $tape = NotRecording::default();
                    black_box($run?);
                }
                Pass::Both => {
                    let $tape = Recording::default();
                    black_box($run?.gradients()?);
                }
            }
            Ok(())
        }))
    };
}

/// What an operation makes on a tape.
trait Output {
    /// Runs the tape backwards, from gradients of 1.
    fn gradients(self) -> Result<crate::tensor::Gradients, DeviceError>;
}

impl Output for Matrix<Recording> {
    fn gradients(self) -> Result<crate::tensor::Gradients, DeviceError> {
        let (out, tape) = self.split();
        let loss = record_loss(0.0, tape, move |_, store| {
            let mut ones = Buffer::unset(out.values().len());
            ones.fill(1.0);
            out.give_gradient(store, ones)
        })?;
        Ok(differentiate(loss, 1.0)?.1)
    }
}

impl Output for Loss<Recording> {
    fn gradients(self) -> Result<crate::tensor::Gradients, DeviceError> {
        Ok(differentiate(self, 1.0)?.1)
    }
}

/// Values in -1..1 without pattern.
fn noise(n: usize) -> Vec<f32> {
    (0..n as u64).map(|i| crate::params::uniform(7, i) * 2.0 - 1.0).collect()
}

/// An input `[rows, width]` whose gradient is wanted.
fn input(rows: usize, width: usize) -> Result<Matrix, DeviceError> {
    Matrix::variable(noise(rows * width).into(), width)
}

/// `n` values, small enough that sums of many products stay small.
fn small(n: usize) -> Vec<f32> {
    noise(n).into_iter().map(|v| 0.05 * v).collect()
}

fn trained(n: usize) -> Result<Weight, DeviceError> {
    Weight::trained(small(n))
}

fn frozen(n: usize) -> Weight {
    Weight::Frozen(small(n).into())
}

/// Rows of text, of [`SEQUENCES`] sequences.
const ROWS: usize = SEQUENCES * LENGTH;
const SEQUENCES: usize = 4;
const LENGTH: usize = 256;
/// Width of the model, and of its feed-forward layers.
const WIDTH: usize = 512;
const WIDE: usize = 4 * WIDTH;
const HEADS: usize = 8;
const VOCABULARY: usize = 32_000;
/// Rows with a target of a cross-entropy.
const TARGETS: usize = 256;
/// Images, their latents, and their features.
const IMAGES: usize = 16;
const LATENTS: usize = 64;
const FEATURES: usize = 256;
/// Of `NFNet`'s third stage: pixels, channels of a grouped convolution, its groups.
const GRID: Grid = Grid { height: 14, width: 14 };
const CHANNELS: usize = 768;
const GROUPS: usize = 6;

/// Operations of a product.
const fn product(m: usize, k: usize, n: usize) -> f64 {
    (2 * m * k * n) as f64
}

/// Operations of the forward pass of a causal self-attention.
const CAUSAL: f64 = (SEQUENCES * 2 * LENGTH * (LENGTH + 1) * WIDTH) as f64;

/// All operations.
pub const CASES: &[Case] = &[
    Case {
        name: "matmul",
        shape: "1024 x 512 x 2048",
        flop: product(ROWS, WIDTH, WIDE),
        times: 3.0,
        prepare: || Ok(products(matmul)),
    },
    Case {
        name: "matmul through gemm",
        shape: "1024 x 512 x 2048",
        flop: product(ROWS, WIDTH, WIDE),
        times: 3.0,
        prepare: || Ok(products(matmul_by_gemm)),
    },
    Case {
        name: "linear, trained",
        shape: "1024 x 512 x 2048",
        flop: product(ROWS, WIDTH, WIDE),
        times: 3.0,
        prepare: || affine(ROWS, (WIDTH, WIDE), trained(WIDTH * WIDE)?, trained(WIDE)?),
    },
    Case {
        name: "linear, frozen",
        shape: "1024 x 512 x 2048",
        flop: product(ROWS, WIDTH, WIDE),
        times: 2.0,
        prepare: || affine(ROWS, (WIDTH, WIDE), frozen(WIDTH * WIDE), frozen(WIDE)),
    },
    Case {
        name: "linear, trained",
        shape: "1024 x 2048 x 512",
        flop: product(ROWS, WIDTH, WIDE),
        times: 3.0,
        prepare: || affine(ROWS, (WIDE, WIDTH), trained(WIDTH * WIDE)?, trained(WIDTH)?),
    },
    Case {
        name: "linear, frozen",
        shape: "1 x 512 x 2048",
        flop: product(1, WIDTH, WIDE),
        times: 2.0,
        prepare: || affine(1, (WIDTH, WIDE), frozen(WIDTH * WIDE), frozen(WIDE)),
    },
    Case {
        name: "attention",
        shape: "4 x 256, 8 heads x 64",
        flop: (SEQUENCES * 4 * LENGTH * LENGTH * WIDTH) as f64,
        times: 3.0,
        prepare: || within(HEADS, Visible::All),
    },
    Case {
        name: "attention, causal",
        shape: "4 x 256, 8 heads x 64",
        flop: CAUSAL,
        times: 3.0,
        prepare: || within(HEADS, Visible::Causal),
    },
    Case {
        name: "attention, ALiBi",
        shape: "4 x 256, 8 heads x 64",
        flop: CAUSAL,
        times: 3.0,
        prepare: || within(HEADS, Visible::sloped(HEADS)),
    },
    Case {
        name: "attention, causal, grouped",
        shape: "4 x 256, 8 heads x 64 on 2",
        flop: CAUSAL,
        times: 3.0,
        prepare: || within(2, Visible::Causal),
    },
    Case {
        name: "attention, latents",
        shape: "16 x 64 on 320, 8 heads x 64",
        flop: (IMAGES * 4 * LATENTS * (LATENTS + FEATURES) * WIDTH) as f64,
        times: 3.0,
        prepare: || {
            let shape = AttentionShape { queries: LATENTS, keys: LATENTS + FEATURES, heads: HEADS };
            let q = input(IMAGES * shape.queries, WIDTH)?;
            let (k, v) = (input(IMAGES * shape.keys, WIDTH)?, input(IMAGES * shape.keys, WIDTH)?);
            passes!(|tape| attention(
                q.clone().with(tape),
                k.clone(),
                v.clone(),
                shape,
                &Visible::All
            ))
        },
    },
    Case {
        name: "media attention",
        shape: "4 x 256 on 16 x 64, 8 heads x 64",
        flop: (ROWS * 4 * LATENTS * WIDTH) as f64,
        times: 3.0,
        prepare: || {
            let images = (0..ROWS).map(|row| row * IMAGES / ROWS).map(|image| image..image + 1);
            let reads = Arc::new(MediaReads::new(images, LATENTS));
            let q = input(ROWS, WIDTH)?;
            let (k, v) = (input(IMAGES * LATENTS, WIDTH)?, input(IMAGES * LATENTS, WIDTH)?);
            passes!(|tape| media_attention(
                q.clone().with(tape),
                k.clone(),
                v.clone(),
                &reads,
                HEADS
            ))
        },
    },
    Case {
        name: "cross-entropy, trained head",
        shape: "256 x 512 x 32000",
        flop: product(TARGETS, WIDTH, VOCABULARY),
        times: 3.0,
        prepare: || next_token(trained(WIDTH * VOCABULARY)?),
    },
    Case {
        name: "cross-entropy, frozen head",
        shape: "256 x 512 x 32000",
        flop: product(TARGETS, WIDTH, VOCABULARY),
        times: 2.0,
        prepare: || next_token(frozen(WIDTH * VOCABULARY)),
    },
    Case {
        name: "contrastive loss",
        shape: "256 pairs x 512",
        flop: product(TARGETS, WIDTH, TARGETS),
        times: 3.0,
        prepare: || {
            let (images, texts) = (input(TARGETS, WIDTH)?, input(TARGETS, WIDTH)?);
            let log_beta = trained(1)?;
            passes!(|tape| contrastive_loss(
                images.clone().with(tape),
                texts.clone(),
                &log_beta,
                0.1
            ))
        },
    },
    Case {
        name: "convolution 1 x 1, trained",
        shape: "16 x 14 x 14, 768 to 768",
        flop: product(IMAGES * 196, CHANNELS, CHANNELS),
        times: 3.0,
        prepare: || images(1, 1),
    },
    Case {
        name: "convolution 3 x 3, trained",
        shape: "16 x 14 x 14, 768 to 768 in 6 groups",
        flop: product(IMAGES * 196, 9 * CHANNELS / GROUPS, CHANNELS),
        times: 3.0,
        prepare: || images(3, GROUPS),
    },
    Case {
        name: "weight standardisation",
        shape: "768 x 128 x 3 x 3",
        flop: 0.0,
        times: 0.0,
        prepare: || {
            let size = KernelSize { inputs: CHANNELS, outputs: CHANNELS, side: 3, groups: GROUPS };
            let (weight, gain) = (trained(CHANNELS * size.fan_in())?, trained(CHANNELS)?);
            passes!(|tape| standardize(&weight, &gain, size, 1e-5, tape))
        },
    },
    Case {
        name: "pooling",
        shape: "16 x 14 x 14 x 768",
        flop: 0.0,
        times: 0.0,
        prepare: || {
            let x = input(IMAGES * GRID.n_pixels(), CHANNELS)?;
            passes!(|tape| halve(x.clone().with(tape), GRID))
        },
    },
    Case {
        name: "squeeze-excitation",
        shape: "16 x 14 x 14 x 768, 384 squeezed",
        flop: 0.0,
        times: 0.0,
        prepare: || {
            let squeezed = CHANNELS / 2;
            let weights = SqueezeExcitation {
                squeeze: trained(squeezed * CHANNELS)?,
                squeeze_bias: trained(squeezed)?,
                excite: trained(CHANNELS * squeezed)?,
                excite_bias: trained(CHANNELS)?,
                gain: trained(1)?,
                factor: 2.0,
            };
            let rows = IMAGES * GRID.n_pixels();
            let (x, residual) = (input(rows, CHANNELS)?, input(rows, CHANNELS)?);
            passes!(|tape| squeeze_excite_onto(
                x.clone().with(tape),
                residual.clone(),
                GRID.n_pixels(),
                weights.clone()
            ))
        },
    },
    Case {
        name: "layer norm",
        shape: "1024 x 2048",
        flop: 0.0,
        times: 0.0,
        prepare: || rows_normal(true),
    },
    Case {
        name: "RMS norm",
        shape: "1024 x 2048",
        flop: 0.0,
        times: 0.0,
        prepare: || rows_normal(false),
    },
    Case {
        name: "GELU",
        shape: "1024 x 2048",
        flop: 0.0,
        times: 0.0,
        prepare: || active(Activation::Gelu),
    },
    Case {
        name: "GELU by tanh",
        shape: "1024 x 2048",
        flop: 0.0,
        times: 0.0,
        prepare: || active(Activation::GeluTanh),
    },
    Case {
        name: "quick GELU",
        shape: "1024 x 2048",
        flop: 0.0,
        times: 0.0,
        prepare: || active(Activation::QuickGelu),
    },
    Case {
        name: "SiLU",
        shape: "1024 x 2048",
        flop: 0.0,
        times: 0.0,
        prepare: || active(Activation::Silu),
    },
    Case {
        name: "ReLU",
        shape: "1024 x 2048",
        flop: 0.0,
        times: 0.0,
        prepare: || active(Activation::Relu),
    },
    Case {
        name: "squared ReLU",
        shape: "1024 x 2048",
        flop: 0.0,
        times: 0.0,
        prepare: || active(Activation::SquaredRelu),
    },
    Case {
        name: "gated SiLU",
        shape: "1024 x 2 x 2048",
        flop: 0.0,
        times: 0.0,
        prepare: || {
            let x = input(ROWS, 2 * WIDE)?;
            passes!(|tape| activate_gate(x.clone().with(tape), Activation::Silu))
        },
    },
    Case {
        name: "gated residual",
        shape: "1024 x 2048",
        flop: 0.0,
        times: 0.0,
        prepare: || {
            let (x, y, gate) = (input(ROWS, WIDE)?, input(ROWS, WIDE)?, trained(1)?);
            passes!(|tape| add_gated(y.clone().with(tape), x.clone(), &gate))
        },
    },
    Case {
        name: "rotary positions",
        shape: "1024 x 16 heads x 64",
        flop: 0.0,
        times: 0.0,
        prepare: || {
            let size = WIDTH / HEADS;
            let speeds = (0..size / 2).map(|i| (-0.3 * i as f32).exp()).collect();
            let rotation = Rotation { heads: 2 * HEADS, size, speeds };
            let positions = (0..ROWS).map(|row| row % LENGTH).collect();
            let x = input(ROWS, 3 * WIDTH)?;
            passes!(|tape| rotate(x.clone().with(tape), &positions, &rotation))
        },
    },
    Case {
        name: "embedding",
        shape: "1024 of 32000 x 512",
        flop: 0.0,
        times: 0.0,
        prepare: || {
            let (table, positions) = (trained(VOCABULARY * WIDTH)?, trained(LENGTH * WIDTH)?);
            let tokens: Vec<_> =
                (0..ROWS).map(|i| ((i * 7919 % VOCABULARY) as u32, i % LENGTH)).collect();
            passes!(|tape| embed_tokens(
                tokens.clone(),
                &table.clone().into(),
                Some(&positions),
                WIDTH,
                tape
            ))
        },
    },
    Case {
        name: "recomputed norm and linear",
        shape: "1024 x 512 x 2048",
        flop: product(ROWS, WIDTH, WIDE),
        times: 3.0,
        prepare: || {
            let norm = Norm {
                scale: trained(WIDTH)?,
                bias: Some(trained(WIDTH)?),
                centred: true,
                epsilon: 1e-5,
            };
            let kernel = Kernel {
                weight: trained(WIDTH * WIDE)?,
                bias: Some(trained(WIDE)?),
                outputs: WIDE,
                unread: false,
            };
            let (x, stage) = (input(ROWS, WIDTH)?, NormAndLinear { norm, kernel });
            passes!(|tape| recomputed(x.clone().with(tape), stage.clone()))
        },
    },
];

fn affine(
    rows: usize,
    (inputs, outputs): (usize, usize),
    weight: Weight,
    bias: Weight,
) -> Result<Run, DeviceError> {
    let x = input(rows, inputs)?;
    let kernel = Kernel { weight, bias: Some(bias), outputs, unread: false };
    passes!(|tape| linear(x.clone().with(tape), kernel.clone()))
}

fn within(keys: usize, visible: Visible) -> Result<Run, DeviceError> {
    let heads = Heads { queries: HEADS, keys, size: WIDTH / HEADS };
    let qkv = input(ROWS, heads.row_width())?;
    let sequences = Sequences::equal(ROWS, LENGTH);
    passes!(|tape| self_attention(qkv.clone().with(tape), &sequences, heads, &visible))
}

fn next_token(head: Weight) -> Result<Run, DeviceError> {
    let hidden = input(TARGETS, WIDTH)?;
    let targets: Vec<_> = (0..TARGETS).map(|i| Some((i * 7919 % VOCABULARY) as u32)).collect();
    passes!(|tape| cross_entropy(hidden.clone().with(tape), &head.clone().into(), &targets, 1.0))
}

fn images(side: usize, groups: usize) -> Result<Run, DeviceError> {
    let shape = Convolution { grid: GRID, side, stride: 1, groups };
    let x = input(IMAGES * GRID.n_pixels(), CHANNELS)?;
    let kernel = input(side * side * CHANNELS, CHANNELS / groups)?;
    let bias = trained(CHANNELS)?;
    passes!(|tape| convolve(x.clone().with(tape), kernel.clone(), &bias, shape))
}

fn rows_normal(centred: bool) -> Result<Run, DeviceError> {
    let bias = if centred { Some(trained(WIDE)?) } else { None };
    let (x, norm) =
        (input(ROWS, WIDE)?, Norm { scale: trained(WIDE)?, bias, centred, epsilon: 1e-5 });
    passes!(|tape| normalise(x.clone().with(tape), norm.clone()))
}

fn active(kind: Activation) -> Result<Run, DeviceError> {
    let x = input(ROWS, WIDE)?;
    passes!(|tape| activate(x.clone().with(tape), kind))
}

/// A stage that is run again in the backward pass.
#[derive(Clone)]
struct NormAndLinear {
    norm: Norm,
    kernel: Kernel,
}

impl Stage for NormAndLinear {
    fn is_trained(&self) -> bool {
        true
    }

    fn run<T: Record>(&self, x: Matrix<T>) -> Result<Matrix<T>, DeviceError> {
        linear(normalise(x, self.norm.clone())?, self.kernel.clone())
    }
}

/// The products of an affine map, as `make` makes them: the map; in both passes also the gradients of
/// its input and of its weight.
fn products(make: fn(usize, usize, usize, f32, View, View, Target)) -> Run {
    let (x, weight) = (noise(ROWS * WIDTH), noise(WIDE * WIDTH));
    Box::new(move |pass| {
        let (inputs, map) = (View::rows(&x, WIDTH), View::rows(&weight, WIDTH));
        let mut out = Buffer::unset(ROWS * WIDE);
        make(ROWS, WIDTH, WIDE, 1.0, inputs, map.t(), Target::rows(&mut out, WIDE));
        if pass == Pass::Both {
            let grad = View::rows(&out, WIDE);
            let mut of_input = Buffer::unset(ROWS * WIDTH);
            make(ROWS, WIDE, WIDTH, 1.0, grad, map, Target::rows(&mut of_input, WIDTH));
            let mut of_weight = Buffer::unset(WIDE * WIDTH);
            make(WIDE, ROWS, WIDTH, 1.0, grad.t(), inputs, Target::rows(&mut of_weight, WIDTH));
            black_box((&of_input, &of_weight));
        }
        black_box(&out);
        Ok(())
    })
}

/// The product of two square matrices of `n` rows on all threads, as fast as it can be had.
pub fn square(n: usize) -> impl Fn() {
    let (a, b) = (noise(n * n), noise(n * n));
    move || {
        let mut out = Buffer::unset(n * n);
        matmul(n, n, n, 1.0, View::rows(&a, n), View::rows(&b, n), Target::rows(&mut out, n));
        black_box(&out);
    }
}

/// Threads that operations run on.
pub fn n_threads() -> usize {
    rayon::current_num_threads()
}
