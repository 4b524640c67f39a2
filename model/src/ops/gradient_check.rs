//! Compares an operation's gradients with central differences, and an operation with what dfdx
//! makes of the same inputs by operations of its own.

use dfdx::prelude::{Backward, PutTape, SumTo, Tensor, TensorFromVec, TryMatMul};

use crate::tensor::{
    Device, Gradients, Matrix, NotRecording, Recording, Weight, differentiate, record_loss,
};

/// Values in -1..1 that look random and never change.
pub(crate) fn pseudo_random(n: usize, seed: u64) -> Vec<f32> {
    (0..n as u64).map(|i| crate::params::uniform(seed, i) * 2.0 - 1.0).collect()
}

/// Evenly spaced weights from -1 to 1, by which outputs are summed.
fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| -1.0 + 2.0 * i as f32 / (n.max(2) - 1) as f32).collect()
}

/// The sum of the outputs by evenly spaced weights.
pub(crate) fn weighted_sum(out: &Matrix) -> f64 {
    let v = out.values();
    v.iter().zip(ramp(v.len())).map(|(a, b)| f64::from(*a) * f64::from(b)).sum()
}

/// Gradients of the outputs summed by evenly spaced weights.
pub(crate) fn gradients_of_ramp(out: Matrix<Recording>) -> (Matrix, Gradients) {
    let (out, tape) = out.split();
    let seeded = out.clone();
    let loss = record_loss(0.0, tape, move |_, store| {
        seeded.give_gradient(store, ramp(seeded.values().len()).into())
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
}

/// dfdx's own `[rows, width]`.
pub(crate) type Theirs<T = NotRecording> = Tensor<(usize, usize), f32, Device, T>;

/// dfdx's matrix of `values`.
pub(crate) fn theirs(values: Vec<f32>, width: usize) -> Theirs {
    let shape = (values.len() / width, width);
    Device::default().tensor_from_vec(values, shape)
}

/// `row` `[1, width]` `n` times.
pub(crate) fn each_row(n: usize, row: Theirs<Recording>) -> Theirs<Recording> {
    theirs(vec![1.0; n], 1).put_tape(Recording::default()).matmul(row)
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
    composed: impl Fn(&[Theirs]) -> Theirs<Recording>,
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
