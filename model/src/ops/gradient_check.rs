//! Compares an operation with its plain formula in f64: values and gradients, on the processor and on GPUs.

#[cfg(feature = "cuda")]
use crate::cuda::{Gpu, Kind, from_bf16, to_bf16};
use crate::device::{Device, Precision};
use crate::tensor::{
    Gradients, Matrix, NotRecording, Recording, Weight, differentiate, record_loss,
};

/// Half the distance of the two sums whose difference is a derivative in f64.
const STEP: f64 = 1e-5;

/// Values in -1..1 that look random and never change.
pub(crate) fn pseudo_random(n: usize, seed: u64) -> Vec<f32> {
    (0..n as u64).map(|i| crate::params::uniform(seed, i) * 2.0 - 1.0).collect()
}

/// Evenly spaced weights from -1 to 1.
fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| -1.0 + 2.0 * i as f32 / (n.max(2) - 1) as f32).collect()
}

/// The same, rounded to what bf16 can hold.
pub(crate) fn coarse_ramp(n: usize) -> Vec<f32> {
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
pub(crate) fn gradients_of_sum(
    out: Matrix<Recording>,
    weights: fn(usize) -> Vec<f32>,
) -> (Matrix, Gradients) {
    let (out, tape) = out.split();
    let seeded = out.clone();
    let loss = record_loss(0.0, tape, move |_, store| {
        seeded.give_values(store, weights(seeded.rows() * seeded.width()))
    });
    (out, differentiate(loss.unwrap(), 1.0).unwrap().1)
}

/// Runs an operation on every device, once on tape and once without, and its `formula` in f64 on the inputs
/// (values and widths) and parameters as the device stores them.
///
/// # Panics
/// If values, or a gradient of the outputs summed by weights, are off by more than the format allows.
pub(crate) fn check(
    inputs: &[(Vec<f32>, usize)],
    params: &[Vec<f32>],
    taped: impl Fn(Recording, &[Matrix], &[Weight]) -> Matrix<Recording>,
    plain: impl Fn(NotRecording, &[Matrix], &[Weight]) -> Matrix,
    formula: impl Fn(&[Vec<f64>], &[Vec<f64>]) -> Vec<f64>,
) {
    for device in devices() {
        let case = Case { device, inputs, params };
        let expected = Expected::by_differences(case.stored(), |variables| {
            let (inputs, params) = variables.split_at(inputs.len());
            formula(inputs, params)
        });
        case.check(&expected, &taped, &plain);
    }
}

/// The processor, and the GPUs that operations are checked on.
pub(crate) fn devices() -> Vec<Device> {
    #[cfg(feature = "cuda")]
    return [Device::cpu()].into_iter().chain(gpus().into_iter().map(Device::of)).collect();
    #[cfg(not(feature = "cuda"))]
    vec![Device::cpu()]
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
pub(crate) fn relative_error(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - b));
    let error = difference / norm(&mut b.iter().copied()).max(1e-6);
    if error.is_nan() { f64::INFINITY } else { error }
}

/// The most that values, or a gradient, may be off on a device, relative to their norm. Rounding a result to bf16
/// costs 1.7e-3, and 2.4e-3 if it is a sum of values that were rounded.
pub(crate) fn error_max(device: Device) -> f64 {
    match device.precision() {
        Precision::Bf16 => 3e-3,
        Precision::F32 => 1e-5,
    }
}

/// What an operation should make of its variables: its inputs, then its parameters.
pub(crate) struct Expected {
    pub(crate) values: Vec<f64>,
    /// Of the values summed by [`coarse_ramp`], by each variable.
    pub(crate) gradients: Vec<Vec<f64>>,
}

impl Expected {
    /// By a formula for the values, and by central differences.
    pub(crate) fn by_differences(
        mut variables: Vec<Vec<f64>>,
        formula: impl Fn(&[Vec<f64>]) -> Vec<f64>,
    ) -> Self {
        let values = formula(&variables);
        let weights = coarse_ramp(values.len());
        let mut gradients: Vec<Vec<f64>> = variables.iter().map(|v| vec![0.0; v.len()]).collect();
        for (which, gradient) in gradients.iter_mut().enumerate() {
            for (i, slope) in gradient.iter_mut().enumerate() {
                let here = variables[which][i];
                let mut sum_at = |value: f64| -> f64 {
                    variables[which][i] = value;
                    formula(&variables).iter().zip(&weights).map(|(v, w)| v * f64::from(*w)).sum()
                };
                *slope = (sum_at(here + STEP) - sum_at(here - STEP)) / (2.0 * STEP);
                variables[which][i] = here;
            }
        }
        Self { values, gradients }
    }
}

/// Inputs of an operation, with their widths, and parameters, on a device.
pub(crate) struct Case<'a> {
    pub(crate) device: Device,
    pub(crate) inputs: &'a [(Vec<f32>, usize)],
    pub(crate) params: &'a [Vec<f32>],
}

impl Case<'_> {
    /// Inputs and parameters as the device stores them.
    pub(crate) fn stored(&self) -> Vec<Vec<f64>> {
        let all = self.inputs.iter().map(|(values, _)| values).chain(self.params);
        let stored = all.map(|values| self.device.stored(values));
        stored.map(|values| values.into_iter().map(f64::from).collect()).collect()
    }

    /// Compares an operation, on tape and without, with what it should make.
    ///
    /// # Panics
    /// If values or a gradient are off by more than the format allows.
    pub(crate) fn check(
        &self,
        expected: &Expected,
        taped: &impl Fn(Recording, &[Matrix], &[Weight]) -> Matrix<Recording>,
        plain: &impl Fn(NotRecording, &[Matrix], &[Weight]) -> Matrix,
    ) {
        let device = self.device;
        let near = |what: &str, found: &[f32], expected: &[f64]| {
            let error = relative_error(found, expected);
            let error_max = error_max(device);
            assert!(
                error < error_max,
                "{device}, {what}: off by {error:.1e}; {:?}, not {:?}",
                &found[..found.len().min(20)],
                &expected[..expected.len().min(20)]
            );
        };
        let inputs: Vec<Matrix> =
            self.inputs.iter().map(|(values, width)| device.variable(values, *width)).collect();
        let weights = |new: fn(Vec<f32>) -> Weight| -> Vec<Weight> {
            self.params.iter().map(|v| device.weight(new(device.stored(v)))).collect()
        };
        let constants: Vec<Matrix> = inputs.iter().map(Matrix::as_constant).collect();
        let frozen = weights(|values| Weight::Frozen(values.into()));
        let out = plain(NotRecording::default(), &constants, &frozen);
        near("values without tape", &out.to_vec().unwrap(), &expected.values);

        let trained = weights(|values| Weight::trained(values).unwrap());
        let out = taped(Recording::default(), &inputs, &trained);
        let (out, mut grads) = gradients_of_sum(out, coarse_ramp);
        near("values", &out.to_vec().unwrap(), &expected.values);
        let (of_inputs, of_weights) = expected.gradients.split_at(inputs.len());
        for (k, (input, expected)) in inputs.iter().zip(of_inputs).enumerate() {
            let gradient = input.take_gradient(&mut grads.0).unwrap();
            let gradient = gradient.expect("a gradient reaches every input");
            near(&format!("gradient of input {k}"), &gradient, expected);
        }
        for (k, (weight, expected)) in trained.iter().zip(of_weights).enumerate() {
            weight
                .accumulate(&mut grads.0, |g| near(&format!("gradient of weight {k}"), g, expected))
                .unwrap();
        }
    }
}
