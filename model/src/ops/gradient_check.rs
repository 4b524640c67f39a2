//! Compares an operation's gradients with central differences, and an operation with what dfdx
//! makes of the same inputs by operations of its own.

use dfdx::prelude::{Backward, PutTape, SumTo, Tensor, TensorFromVec, TryMatMul};

#[cfg(feature = "cuda")]
use crate::cuda::{Gpu, Kind, from_bf16, to_bf16};
use crate::tensor::{
    Gradients, HostDevice, Matrix, NotRecording, Recording, Weight, differentiate, record_loss,
};

/// Values in -1..1 that look random and never change.
pub(crate) fn pseudo_random(n: usize, seed: u64) -> Vec<f32> {
    (0..n as u64).map(|i| crate::params::uniform(seed, i) * 2.0 - 1.0).collect()
}

/// Evenly spaced weights from -1 to 1.
fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| -1.0 + 2.0 * i as f32 / (n.max(2) - 1) as f32).collect()
}

/// The same, rounded to what bf16 can hold.
#[cfg(feature = "cuda")]
fn coarse_ramp(n: usize) -> Vec<f32> {
    ramp(n).into_iter().map(|v| (v * 128.0).round() / 128.0).collect()
}

/// The sum of the outputs by evenly spaced weights.
pub(crate) fn weighted_sum(out: &Matrix) -> f64 {
    let v = out.values();
    v.iter().zip(ramp(v.len())).map(|(a, b)| f64::from(*a) * f64::from(b)).sum()
}

/// Gradients of the outputs summed by evenly spaced weights.
pub(crate) fn gradients_of_ramp(out: Matrix<Recording>) -> (Matrix, Gradients) {
    gradients_of_sum(out, ramp)
}

/// Gradients of the outputs summed by weights.
fn gradients_of_sum(out: Matrix<Recording>, weights: fn(usize) -> Vec<f32>) -> (Matrix, Gradients) {
    let (out, tape) = out.split();
    let seeded = out.clone();
    let loss = record_loss(0.0, tape, move |_, store| {
        seeded.give_values(store, weights(seeded.rows() * seeded.width()))
    });
    (out, differentiate(loss.unwrap(), 1.0).unwrap().1)
}

/// Runs `taped` once on tape, and `plain` for central differences on every value of `inputs` and of
/// `params`.
///
/// # Panics
/// If a gradient differs by more than `tolerance` relative to the largest gradient of the same
/// input.
pub(crate) fn check(
    inputs: &[(Vec<f32>, usize)],
    params: &[Vec<f32>],
    tolerance: f64,
    taped: impl Fn(Recording, &[Matrix], &[Weight]) -> Matrix<Recording>,
    plain: impl Fn(NotRecording, &[Matrix], &[Weight]) -> Matrix,
) {
    let variables: Vec<Matrix> =
        inputs.iter().map(|(v, w)| Matrix::variable(v.clone().into(), *w).unwrap()).collect();
    let trained: Vec<Weight> = params.iter().map(|v| Weight::trained(v.clone()).unwrap()).collect();
    let (_, mut grads) = gradients_of_ramp(taped(Recording::default(), &variables, &trained));

    let at = |which: usize, i: usize, h: f32, is_param: bool| -> f64 {
        let bump = |v: &Vec<f32>, hit: bool| {
            let mut v = v.clone();
            if hit {
                v[i] += h;
            }
            v
        };
        let xs: Vec<Matrix> = inputs
            .iter()
            .enumerate()
            .map(|(k, (v, w))| Matrix::constant(bump(v, !is_param && k == which).into(), *w))
            .collect();
        let ps: Vec<Weight> = params
            .iter()
            .enumerate()
            .map(|(k, v)| Weight::Frozen(bump(v, is_param && k == which).into()))
            .collect();
        weighted_sum(&plain(NotRecording::default(), &xs, &ps))
    };
    let h = 2e-3_f32;
    let compare = |what: String, got: Vec<f32>, which: usize, is_param: bool| {
        let expected: Vec<f64> = (0..got.len())
            .map(|i| (at(which, i, h, is_param) - at(which, i, -h, is_param)) / f64::from(2.0 * h))
            .collect();
        let scale = expected.iter().fold(1e-3_f64, |m, e| m.max(e.abs()));
        for (i, (g, e)) in got.iter().zip(&expected).enumerate() {
            let error = (f64::from(*g) - e).abs() / scale;
            assert!(error < tolerance, "{what}[{i}]: {g} against {e}, error {error:.1e}");
        }
    };
    for (k, x) in variables.iter().enumerate() {
        let got = x.take_gradient(&mut grads.0).unwrap().expect("a gradient reaches every input");
        compare(format!("input {k}"), got.into_vec(), k, false);
    }
    for (k, w) in trained.iter().enumerate() {
        let mut got = Vec::new();
        w.accumulate(&mut grads.0, |g| got = g.to_vec()).unwrap();
        compare(format!("weight {k}"), got, k, true);
    }
    #[cfg(feature = "cuda")]
    for gpu in gpus() {
        gpu_equals_cpu(gpu, inputs, params, &taped, &plain);
    }
}

/// The GPUs that kernels are checked on, one for each number format: a real one, or with the emulator's
/// feature and without a GPU the emulator.
#[cfg(feature = "cuda")]
pub(crate) fn gpus() -> Vec<&'static Gpu> {
    [Kind::F32, Kind::Bf16]
        .into_iter()
        .filter_map(|kind| {
            let real = Gpu::open(0, kind);
            #[cfg(feature = "cuda-emulator")]
            let real = real.or_else(|_| Ok::<_, ()>(Gpu::emulated(kind)));
            if real.is_err() {
                eprintln!("skipped on GPUs: there is none");
            }
            real.ok()
        })
        .collect()
}

/// Values as a GPU stores them.
#[cfg(feature = "cuda")]
pub(crate) fn stored(gpu: &Gpu, values: &[f32]) -> Vec<f32> {
    match gpu.kind() {
        Kind::Bf16 => values.iter().map(|v| from_bf16(to_bf16(*v))).collect(),
        _ => values.to_vec(),
    }
}

/// `|a - b| / |b|` of two vectors. What is no number is infinitely wrong.
#[cfg(feature = "cuda")]
pub(crate) fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let error = difference / norm(&mut b.iter().map(|b| f64::from(*b))).max(1e-6);
    if error.is_nan() { f64::INFINITY } else { error }
}

/// Compares values and all gradients of an operation on a GPU with those on the processor, which are checked
/// by central differences.
#[cfg(feature = "cuda")]
pub(crate) fn gpu_equals_cpu(
    gpu: &'static Gpu,
    inputs: &[(Vec<f32>, usize)],
    params: &[Vec<f32>],
    taped: &impl Fn(Recording, &[Matrix], &[Weight]) -> Matrix<Recording>,
    plain: &impl Fn(NotRecording, &[Matrix], &[Weight]) -> Matrix,
) {
    // Rounding one result to bf16 costs 1e-3 of its norm, and few operations round less than twice.
    let tolerance = if gpu.kind() == Kind::Bf16 { 5e-3 } else { 1e-5 };
    let run = |on_gpu: bool| {
        let values = |v: &[f32]| stored(gpu, v);
        let xs: Vec<Matrix> = inputs
            .iter()
            .map(|(v, width)| {
                if on_gpu {
                    Matrix::on_gpu(gpu.upload(v).unwrap().into(), *width, true)
                } else {
                    Matrix::variable(values(v).into(), *width).unwrap()
                }
            })
            .collect();
        let weights = |trained: bool| -> Vec<Weight> {
            params
                .iter()
                .map(|v| {
                    let mut weight = if trained {
                        Weight::trained(values(v)).unwrap()
                    } else {
                        Weight::Frozen(values(v).into())
                    };
                    weight.place(on_gpu.then_some(gpu)).unwrap();
                    weight
                })
                .collect()
        };
        let constants: Vec<Matrix> = xs.iter().map(Matrix::as_constant).collect();
        let unrecorded = plain(NotRecording::default(), &constants, &weights(false));
        let mut all = vec![("unrecorded".to_owned(), unrecorded.to_vec().unwrap())];
        let weights = weights(true);
        let out = taped(Recording::default(), &xs, &weights);
        let (out, mut grads) = gradients_of_sum(out, coarse_ramp);
        all.push(("value".to_owned(), out.to_vec().unwrap()));
        for (k, x) in xs.iter().enumerate() {
            let gradient = x.take_gradient(&mut grads.0).unwrap();
            all.push((format!("gradient of input {k}"), gradient.unwrap().into_vec()));
        }
        for (k, w) in weights.iter().enumerate() {
            let mut got = Vec::new();
            w.accumulate(&mut grads.0, |g| got = g.to_vec()).unwrap();
            all.push((format!("gradient of weight {k}"), got));
        }
        all
    };
    for ((what, got), (_, expected)) in run(true).iter().zip(&run(false)) {
        let error = relative_error(got, expected);
        assert!(error < tolerance, "{gpu:?}, {what}: {got:?} against {expected:?}, {error:.1e}");
    }
}

/// dfdx's own `[rows, width]`.
pub(crate) type Theirs<T = NotRecording> = Tensor<(usize, usize), f32, HostDevice, T>;

/// dfdx's own tape.
pub(crate) type Taped = dfdx::prelude::OwnedTape<f32, HostDevice>;

/// dfdx's matrix of `values`.
pub(crate) fn theirs(values: Vec<f32>, width: usize) -> Theirs {
    let shape = (values.len() / width, width);
    HostDevice::default().tensor_from_vec(values, shape)
}

/// `row` `[1, width]` `n` times.
pub(crate) fn each_row(n: usize, row: Theirs<Taped>) -> Theirs<Taped> {
    theirs(vec![1.0; n], 1).put_tape(Taped::default()).matmul(row)
}

/// Runs `taped` on `inputs` and `params`, and `composed` on all of them as dfdx has them.
///
/// # Panics
/// If a value, or a gradient of the outputs summed by evenly spaced weights, differs by more than
/// 1e-5, relative where it is large.
pub(crate) fn equals_dfdx(
    inputs: &[(Vec<f32>, usize)],
    params: &[(Vec<f32>, usize)],
    taped: impl Fn(Recording, &[Matrix], &[Weight]) -> Matrix<Recording>,
    composed: impl Fn(&[Theirs]) -> Theirs<Taped>,
) {
    let close = |what: &str, ours: &[f32], theirs: &[f32]| {
        assert_eq!(ours.len(), theirs.len(), "{what}");
        for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
            assert!((a - b).abs() < 1e-5 * b.abs().max(1.0), "{what}[{i}]: {a}, dfdx {b}");
        }
    };
    let variables: Vec<Matrix> =
        inputs.iter().map(|(v, w)| Matrix::variable(v.clone().into(), *w).unwrap()).collect();
    let trained: Vec<Weight> =
        params.iter().map(|(v, _)| Weight::trained(v.clone()).unwrap()).collect();
    let (out, mut grads) = gradients_of_ramp(taped(Recording::default(), &variables, &trained));

    let all: Vec<Theirs> =
        inputs.iter().chain(params).map(|(v, w)| theirs(v.clone(), *w)).collect();
    let composed = composed(&all);
    close("value", out.values(), &composed.as_vec());
    let weights = theirs(ramp(out.values().len()), out.width());
    let their_grads = (composed * weights).sum::<(), _>().backward();

    for (k, theirs) in all.iter().enumerate() {
        let ours = if let Some(x) = variables.get(k) {
            let gradient = x.take_gradient(&mut grads.0).unwrap();
            gradient.expect("a gradient reaches every input").into_vec()
        } else {
            let mut gradient = Vec::new();
            trained[k - variables.len()]
                .accumulate(&mut grads.0, |g| gradient = g.to_vec())
                .unwrap();
            gradient
        };
        close(&format!("gradient {k}"), &ours, &their_grads.get(theirs).as_vec());
    }
}
