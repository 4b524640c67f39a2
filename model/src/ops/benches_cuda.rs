//! Operations on a GPU at the sizes of `OpenFlamingo`'s 3B model: what `benches/gpu.rs` times.

use std::sync::Arc;

use super::sequences::Sequences;
use super::{
    Activation, Heads, Kernel, Moments, Norm, Visible, activate, adamw, add_gated,
    contrastive_loss, cross_entropy, linear, linear_onto, normalise, self_attention, unfold_on_gpu,
};
use crate::cuda::{Array, Factor, Gpu, Kind, Product};
use crate::pixels::{FrameAugment, Normal, Pixels};
use crate::tensor::{
    DeviceError, Gradients, Matrix, NotRecording, Recording, Weight, differentiate, record_loss,
};

/// One operation at one size.
pub struct GpuCase {
    /// Its name and sizes.
    pub name: &'static str,
    /// Floating-point operations in matrix products.
    pub flop: f64,
    /// Bytes of device memory that it must read and write.
    pub bytes: f64,
    /// Runs it once.
    pub run: Box<dyn FnMut() -> Result<(), DeviceError>>,
}

/// The first GPU, with bf16 activations.
fn gpu() -> Result<&'static Gpu, DeviceError> {
    Ok(Gpu::open(0, Kind::Bf16)?)
}

/// What the GPU is called.
///
/// # Errors
/// When there is none.
pub fn name() -> Result<String, DeviceError> {
    Ok(gpu()?.name())
}

/// Waits for all that was launched.
///
/// # Errors
/// When the GPU fails.
pub fn wait() -> Result<(), DeviceError> {
    Ok(gpu()?.wait()?)
}

/// Values in -1..1 without pattern.
fn noise(gpu: &'static Gpu, n: usize, kind: Kind) -> Result<Array, DeviceError> {
    let values: Vec<f32> =
        (0..n as u64).map(|i| crate::params::uniform(7, i) * 2.0 - 1.0).collect();
    Ok(gpu.upload_as(&values, kind)?)
}

fn input(gpu: &'static Gpu, rows: usize, width: usize) -> Result<Matrix, DeviceError> {
    Ok(Matrix::on_gpu(noise(gpu, rows * width, Kind::Bf16)?.into(), width, true))
}

fn weight(gpu: &'static Gpu, n: usize, trained: bool) -> Result<Weight, DeviceError> {
    let values: Vec<f32> =
        (0..n as u64).map(|i| 0.05 * (crate::params::uniform(9, i) * 2.0 - 1.0)).collect();
    let mut weight = if trained { Weight::trained(values)? } else { Weight::Frozen(values.into()) };
    weight.place(Some(gpu))?;
    Ok(weight)
}

/// Runs an operation and its backward pass, given a gradient of the output.
fn both(
    gradient: &Arc<Array>,
    run: impl FnOnce(Recording) -> Result<Matrix<Recording>, DeviceError>,
) -> Result<(), DeviceError> {
    let (out, tape) = run(Recording::default())?.split();
    let gradient = Arc::clone(gradient);
    let loss = record_loss(0.0, tape, move |_, store| {
        // The backward pass may write over the gradient, which it owns.
        let gpu = gradient.gpu();
        let own = gpu.unset(gradient.len(), gradient.kind())?;
        gpu.put_part(&own, 0, &gradient)?;
        out.give_array(store, own)
    })?;
    drop(differentiate(loss, 1.0)?);
    Ok(())
}

/// Sequences, heads, rows and width of a head: of long texts, of images in CLIP's ViT-L/14, of a training step.
const LONG: [usize; 4] = [8, 16, 2048, 128];
const IMAGES: [usize; 4] = [192, 16, 257, 64];
const TEXTS: [usize; 4] = [64, 16, 256, 128];

/// All cases, one after the other, so that only one holds memory.
pub const CASES: &[fn() -> Result<GpuCase, DeviceError>] = &[
    || product("product 8192 x 8192 x 8192", [8192, 8192, 8192]),
    || product("product 16384 x 2048 x 8192", [16384, 2048, 8192]),
    || product("product 16384 x 8192 x 2048", [16384, 8192, 2048]),
    || product("product 49344 x 1024 x 4096", [49344, 1024, 4096]),
    || attention_case("attention 8 x 16 x 2048 x 128 causal", LONG, true, false, false),
    || attention_case("the same, forward and backward", LONG, true, true, false),
    || attention_case("attention 192 x 16 x 257 x 64", IMAGES, false, false, false),
    || attention_case("attention 64 x 16 x 256 x 128 causal", TEXTS, true, false, false),
    || attention_case("the same, forward and backward", TEXTS, true, true, false),
    || attention_case("Hopper's attention 8 x 16 x 2048 x 128 causal", LONG, true, false, true),
    || attention_case("the same, forward and backward", LONG, true, true, true),
    || attention_case("Hopper's attention 192 x 16 x 257 x 64", IMAGES, false, false, true),
    || attention_case("Hopper's attention 64 x 16 x 256 x 128 causal", TEXTS, true, false, true),
    || attention_case("the same, forward and backward", TEXTS, true, true, true),
    || linear_case("linear 16384 x 2048 -> 8192, bias", false),
    || linear_case("linear 16384 x 2048 -> 2048, residual", true),
    linear_trained,
    || norm_case("norm 16384 x 2048, forward", false),
    || norm_case("norm 16384 x 2048 trained, forward and backward", true),
    || activation_case("GELU 16384 x 8192, forward", false),
    || activation_case("GELU 16384 x 8192, forward and backward", true),
    gate_case,
    loss_case,
    contrastive_case,
    || pixels_case("192 images of 224 sent in bytes, cut into squares of 14", Sent::Bytes),
    || pixels_case("the same with other colours", Sent::Coloured),
    || pixels_case("the same sent in f32", Sent::Numbers),
    adamw_case,
];

fn product(name: &'static str, [rows, inner, columns]: [usize; 3]) -> Result<GpuCase, DeviceError> {
    let gpu = gpu()?;
    let (a, b) = (noise(gpu, rows * inner, Kind::Bf16)?, noise(gpu, columns * inner, Kind::Bf16)?);
    let out = gpu.unset(rows * columns, Kind::Bf16)?;
    let run = move || {
        let factor = |array: &Array, transposed| Factor {
            address: array.address(),
            stride: inner,
            transposed,
            kind: Kind::Bf16,
        };
        Ok(gpu.multiply(&Product {
            rows,
            inner,
            columns,
            left: factor(&a, false),
            right: factor(&b, true),
            alpha: 1.0,
            add: None,
            bias: None,
            out: out.address(),
            out_stride: columns,
            out_kind: Kind::Bf16,
        })?)
    };
    let flop = 2.0 * (rows * inner) as f64 * columns as f64;
    let bytes = 2.0 * (rows * inner + inner * columns + rows * columns) as f64;
    Ok(GpuCase { name, flop, bytes, run: Box::new(run) })
}

fn attention_case(
    name: &'static str,
    [batch, heads, length, size]: [usize; 4],
    causal: bool,
    backward: bool,
    hopper: bool,
) -> Result<GpuCase, DeviceError> {
    let gpu = if hopper { Gpu::hopper()? } else { gpu()? };
    let width = heads * size;
    let qkv = input(gpu, batch * length, 3 * width)?;
    let gradient = Arc::new(noise(gpu, batch * length * width, Kind::Bf16)?);
    let visible = if causal { Visible::Causal } else { Visible::All };
    let heads = Heads { queries: heads, keys: heads, size };
    let sequences = Sequences::equal(batch * length, length);
    let run = move || {
        if backward {
            return both(&gradient, |tape| {
                self_attention(qkv.clone().with(tape), &sequences, heads, &visible)
            });
        }
        let tape = NotRecording::default();
        self_attention(qkv.clone().with(tape), &sequences, heads, &visible).map(drop)
    };
    let rows = (batch * length) as f64;
    let forward = 4.0 * rows * width as f64 * length as f64 / if causal { 2.0 } else { 1.0 };
    let times = if backward { 3.5 } else { 1.0 };
    // Read three parts and write one; backward read five and write three.
    let parts = if backward { 12.0 } else { 4.0 };
    let bytes = parts * 2.0 * rows * width as f64;
    Ok(GpuCase { name, flop: forward * times, bytes, run: Box::new(run) })
}

const ROWS: usize = 16384;
const WIDTH: usize = 2048;

fn linear_case(name: &'static str, residual: bool) -> Result<GpuCase, DeviceError> {
    let gpu = gpu()?;
    let outputs = if residual { WIDTH } else { 4 * WIDTH };
    let x = input(gpu, ROWS, WIDTH)?;
    let kernel = Kernel {
        weight: weight(gpu, WIDTH * outputs, false)?,
        bias: (!residual).then(|| weight(gpu, outputs, false)).transpose()?,
        outputs,
        unread: false,
    };
    let run = move || {
        let y = x.clone().with(NotRecording::default());
        if residual {
            linear_onto(y, kernel.clone(), x.clone()).map(drop)
        } else {
            linear(y, kernel.clone()).map(drop)
        }
    };
    let flop = 2.0 * (ROWS * WIDTH) as f64 * outputs as f64;
    let bytes = 2.0 * (ROWS * (WIDTH + outputs) + WIDTH * outputs) as f64;
    Ok(GpuCase { name, flop, bytes, run: Box::new(run) })
}

fn linear_trained() -> Result<GpuCase, DeviceError> {
    let gpu = gpu()?;
    let outputs = 4 * WIDTH;
    let x = input(gpu, ROWS, WIDTH)?;
    let kernel =
        Kernel { weight: weight(gpu, WIDTH * outputs, true)?, bias: None, outputs, unread: false };
    let gradient = Arc::new(noise(gpu, ROWS * outputs, Kind::Bf16)?);
    let run = move || both(&gradient, |tape| linear(x.clone().with(tape), kernel.clone()));
    let flop = 6.0 * (ROWS * WIDTH) as f64 * outputs as f64;
    let bytes = 2.0 * (3 * ROWS * (WIDTH + outputs) + 4 * WIDTH * outputs) as f64;
    let name = "linear 16384 x 2048 -> 8192 trained, forward and backward";
    Ok(GpuCase { name, flop, bytes, run: Box::new(run) })
}

fn norm_case(name: &'static str, backward: bool) -> Result<GpuCase, DeviceError> {
    let gpu = gpu()?;
    let x = input(gpu, ROWS, WIDTH)?;
    let (scale, bias) = (weight(gpu, WIDTH, true)?, weight(gpu, WIDTH, true)?);
    let gradient = Arc::new(noise(gpu, ROWS * WIDTH, Kind::Bf16)?);
    let norm = Norm { scale, bias: Some(bias), centred: true, epsilon: 1e-5 };
    let run = move || {
        if backward {
            both(&gradient, |tape| normalise(x.clone().with(tape), norm.clone()))
        } else {
            normalise(x.clone().with(NotRecording::default()), norm.clone()).map(drop)
        }
    };
    let parts = if backward { 5.0 } else { 2.0 };
    let bytes = parts * 2.0 * (ROWS * WIDTH) as f64;
    Ok(GpuCase { name, flop: 0.0, bytes, run: Box::new(run) })
}

fn activation_case(name: &'static str, backward: bool) -> Result<GpuCase, DeviceError> {
    let gpu = gpu()?;
    let x = input(gpu, ROWS, 4 * WIDTH)?;
    let gradient = Arc::new(noise(gpu, ROWS * 4 * WIDTH, Kind::Bf16)?);
    let run = move || {
        if backward {
            both(&gradient, |tape| activate(x.clone().with(tape), Activation::Gelu))
        } else {
            activate(x.clone().with(NotRecording::default()), Activation::Gelu).map(drop)
        }
    };
    let parts = if backward { 5.0 } else { 2.0 };
    let bytes = parts * 2.0 * (ROWS * 4 * WIDTH) as f64;
    Ok(GpuCase { name, flop: 0.0, bytes, run: Box::new(run) })
}

fn gate_case() -> Result<GpuCase, DeviceError> {
    let gpu = gpu()?;
    let (x, y) = (input(gpu, ROWS, WIDTH)?, input(gpu, ROWS, WIDTH)?);
    let gate = weight(gpu, 1, true)?;
    let gradient = Arc::new(noise(gpu, ROWS * WIDTH, Kind::Bf16)?);
    let run = move || both(&gradient, |tape| add_gated(y.clone().with(tape), x.clone(), &gate));
    let bytes = 6.0 * 2.0 * (ROWS * WIDTH) as f64;
    let name = "gated sum 16384 x 2048, forward and backward";
    Ok(GpuCase { name, flop: 0.0, bytes, run: Box::new(run) })
}

fn loss_case() -> Result<GpuCase, DeviceError> {
    let gpu = gpu()?;
    let vocabulary = 50_280;
    let x = input(gpu, ROWS, WIDTH)?;
    let head = weight(gpu, vocabulary * WIDTH, false)?.into();
    let targets: Vec<Option<u32>> = (0..ROWS as u32).map(|i| Some(i * 3 % 50_000)).collect();
    let run = move || {
        let loss = cross_entropy(x.clone().with(Recording::default()), &head, &targets, 1e-3)?;
        drop(differentiate(loss, 1.0)?);
        Ok(())
    };
    let flop = 4.0 * (ROWS * WIDTH) as f64 * f64::from(vocabulary as u32);
    // Logits are written and read twice, their gradient written and read once.
    let bytes = (3.0 * 4.0 + 2.0 * 2.0) * ROWS as f64 * f64::from(vocabulary as u32);
    let name = "cross-entropy 16384 x 2048 x 50280 frozen, forward and backward";
    Ok(GpuCase { name, flop, bytes, run: Box::new(run) })
}

/// A batch of the paper's size (appendix B.1.3).
fn contrastive_case() -> Result<GpuCase, DeviceError> {
    let gpu = gpu()?;
    let (pairs, width) = (16384, 1376);
    let (images, texts) = (input(gpu, pairs, width)?, input(gpu, pairs, width)?);
    let log_beta = weight(gpu, 1, true)?;
    let run = move || {
        let images = images.clone().with(Recording::default());
        drop(differentiate(contrastive_loss(images, texts.clone(), &log_beta, 0.1)?, 1.0)?);
        Ok(())
    };
    let cosines = (pairs * pairs) as f64;
    // Cosines are written and read twice; back, for either side, written, read, written and read.
    let (flop, bytes) = (5.0 * 2.0 * cosines * width as f64, 11.0 * 4.0 * cosines);
    let name = "contrastive loss 16384 x 1376, forward and backward";
    Ok(GpuCase { name, flop, bytes, run: Box::new(run) })
}

/// How pixels are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Sent {
    Bytes,
    /// Bytes of images whose colours all change.
    Coloured,
    Numbers,
}

/// Pixels on their way to the vision tower; the bytes are written once when they come.
fn pixels_case(name: &'static str, sent: Sent) -> Result<GpuCase, DeviceError> {
    let gpu = gpu()?;
    let (images, size, patch) = (192, 224, 14);
    let n = images * 3 * size * size;
    let normal = Normal { factor: [1.0 / 64.0; 3], shift: [2.0; 3] };
    let pixels = match sent {
        Sent::Bytes | Sent::Coloured => {
            let factor = if sent == Sent::Coloured { 1.1 } else { 1.0 };
            let frame = FrameAugment {
                brightness: factor,
                contrast: factor,
                saturation: factor,
                ..FrameAugment::none(size)
            };
            Pixels::of_256((0..n).map(|i| i as u8).collect(), vec![frame; images], normal)
        }
        Sent::Numbers => Pixels::F32(vec![0.5; n]),
    };
    let run = move || unfold_on_gpu(gpu, (&pixels).into(), size, patch).map(drop);
    let of_one = match sent {
        Sent::Bytes => 4.0,
        // They are read once more for the mean grey.
        Sent::Coloured => 5.0,
        Sent::Numbers => 10.0,
    };
    let bytes = n as f64 * of_one;
    Ok(GpuCase { name, flop: 0.0, bytes, run: Box::new(run) })
}

fn adamw_case() -> Result<GpuCase, DeviceError> {
    let gpu = gpu()?;
    let n = 1 << 27;
    let mut weight = weight(gpu, n, true)?;
    let mut gradients = Gradients::default();
    weight.accumulate(&mut gradients.0, |sum| sum.fill(1e-3))?;
    let mut moments = Moments::zeros(&[n]);
    let step = super::AdamStep {
        clip: 1.0,
        keep: 1.0,
        first: 0.1,
        second_keep: 0.999,
        second: 0.001,
        step_size: 1e-9,
        second_correction_sqrt: 1.0,
        epsilon: 1e-8,
    };
    let run = move || {
        let Weight::Trained(weight) = &mut weight else { return Ok(()) };
        adamw(vec![(weight, &mut moments, step)], &mut gradients)
    };
    // Four arrays are read, three written, and the bf16 copy.
    let bytes = 30.0 * n as f64;
    Ok(GpuCase { name: "AdamW, 2^27 values", flop: 0.0, bytes, run: Box::new(run) })
}
