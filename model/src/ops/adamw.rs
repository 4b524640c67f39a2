//! `AdamW` with decoupled weight decay (Loshchilov and Hutter, 2019), on gradients that are clipped as
//! they are read. All numbers are f32, in torch's order of operations.

use rayon::prelude::*;

#[cfg(feature = "cuda")]
use crate::cuda::Array;
use crate::tensor::{DeviceError, Gradients, TrainedWeight};

/// Running means of one parameter's gradients, which live where the parameter does.
#[derive(Debug)]
pub struct Moments {
    shape: Vec<usize>,
    means: Means,
}

#[derive(Debug)]
enum Means {
    Host {
        first: Vec<f32>,
        second: Vec<f32>,
    },
    #[cfg(feature = "cuda")]
    Cuda {
        first: Array,
        second: Array,
    },
}

/// The numbers of one update.
#[derive(Debug, Clone, Copy)]
pub struct AdamStep {
    /// What gradients are multiplied by.
    pub clip: f32,
    /// What weights are multiplied by.
    pub keep: f32,
    /// Share of the new gradient in the mean of gradients.
    pub first: f32,
    /// Share of the old mean of squares in the new one.
    pub second_keep: f32,
    /// Share of the new gradient's square.
    pub second: f32,
    /// Learning rate over the correction of the mean of gradients.
    pub step_size: f32,
    /// Square root of the correction of the mean of squares.
    pub second_correction_sqrt: f32,
    /// Keeps the division finite.
    pub epsilon: f32,
}

/// Parameters of at least this many values are updated on all cores.
const PARALLEL_VALUES_MIN: usize = 1 << 16;
/// Values that one core updates at a time.
const CHUNK_VALUES: usize = 1 << 14;

impl Moments {
    /// Moments `[shape]` of a parameter, as a checkpoint has them.
    ///
    /// # Panics
    /// If their lengths are not that of the shape.
    pub fn new(shape: &[usize], first: Vec<f32>, second: Vec<f32>) -> Self {
        let n = shape.iter().product::<usize>();
        assert_eq!((first.len(), second.len()), (n, n));
        Self { shape: shape.to_vec(), means: Means::Host { first, second } }
    }

    /// Moments of a parameter that has seen no gradient.
    pub(crate) fn zeros(shape: &[usize]) -> Self {
        let n = shape.iter().product();
        Self::new(shape, vec![0.0; n], vec![0.0; n])
    }

    /// The shape of the parameter.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The mean of the gradients and that of their squares.
    ///
    /// # Errors
    /// When the device fails.
    pub fn values(&self) -> Result<[Vec<f32>; 2], DeviceError> {
        match &self.means {
            Means::Host { first, second } => Ok([first.clone(), second.clone()]),
            #[cfg(feature = "cuda")]
            Means::Cuda { first, second } => Ok([first.to_vec()?, second.to_vec()?]),
        }
    }
}

/// Makes one update of a weight.
///
/// # Errors
/// When the device fails.
pub(crate) fn adamw(
    weight: &mut TrainedWeight,
    gradients: &mut Gradients,
    moments: &mut Moments,
    step: AdamStep,
) -> Result<(), DeviceError> {
    #[cfg(feature = "cuda")]
    if let Some(device) = weight.own_device()? {
        return cuda::adamw(device, gradients, moments, step);
    }
    let gradient = weight.gradient(&mut gradients.0)?;
    let (first, second) = match &mut moments.means {
        Means::Host { first, second } => (first, second),
        #[cfg(feature = "cuda")]
        Means::Cuda { .. } => unreachable!("moments on a GPU of a weight that is not"),
    };
    weight.change(|values| {
        if values.len() < PARALLEL_VALUES_MIN {
            return update_chunk(values, gradient, first, second, step);
        }
        values
            .par_chunks_mut(CHUNK_VALUES)
            .zip(gradient.par_chunks(CHUNK_VALUES))
            .zip(first.par_chunks_mut(CHUNK_VALUES))
            .zip(second.par_chunks_mut(CHUNK_VALUES))
            .for_each(|(((values, gradient), first), second)| {
                update_chunk(values, gradient, first, second, step);
            });
    })
}

fn update_chunk(
    values: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    with: AdamStep,
) {
    let moments = first.iter_mut().zip(second);
    for ((value, gradient), (first, second)) in values.iter_mut().zip(gradient).zip(moments) {
        let gradient = gradient * with.clip;
        *value *= with.keep;
        *first += with.first * (gradient - *first);
        *second = *second * with.second_keep + with.second * gradient * gradient;
        let spread = second.sqrt() / with.second_correction_sqrt + with.epsilon;
        *value -= with.step_size * (*first / spread);
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::{AdamStep, Means, Moments};
    use crate::cuda::{Grid, Kind, THREADS, kernel, long};
    use crate::device_weight::DeviceWeight;
    use crate::tensor::{DeviceError, Gradients};

    /// Most blocks that one weight is updated by.
    const BLOCKS_MAX: usize = 4096;

    pub(super) fn adamw(
        weight: &DeviceWeight,
        gradients: &mut Gradients,
        moments: &mut Moments,
        step: AdamStep,
    ) -> Result<(), DeviceError> {
        let (gpu, n) = (weight.gpu(), weight.len());
        if let Means::Host { first, second } = &moments.means {
            let [first, second] =
                [gpu.upload_as(first, Kind::F32)?, gpu.upload_as(second, Kind::F32)?];
            moments.means = Means::Cuda { first, second };
        }
        let Means::Cuda { first, second } = &moments.means else {
            unreachable!("the moments were sent to the GPU")
        };
        let gradient = weight.gradient_array(gradients.0.device());
        let args = [
            weight.full().into(),
            gradient.into(),
            first.into(),
            second.into(),
            weight.low().into(),
            long(n),
            step.clip.into(),
            step.keep.into(),
            step.first.into(),
            step.second_keep.into(),
            step.second.into(),
            step.step_size.into(),
            step.second_correction_sqrt.into(),
            step.epsilon.into(),
        ];
        let grid = Grid::of(n.div_ceil(THREADS).min(BLOCKS_MAX), THREADS);
        Ok(gpu.launch(kernel!("adamw"), grid, &args)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::pseudo_random;
    use crate::tensor::Weight;

    #[test]
    fn an_update_equals_the_formula_in_double_precision() {
        let n = 1000;
        let (values, gradient) = (pseudo_random(n, 1), pseudo_random(n, 2));
        let step = AdamStep {
            clip: 0.5,
            keep: 0.999,
            first: 0.1,
            second_keep: 0.999,
            second: 0.001,
            step_size: 1e-2,
            second_correction_sqrt: 0.5,
            epsilon: 1e-8,
        };
        let check = |mut weight: Weight, tolerance: f64| {
            let mut gradients = Gradients::default();
            weight.accumulate(&mut gradients.0, |sum| sum.copy_from_slice(&gradient)).unwrap();
            let mut moments =
                Moments::new(&[n], vec![0.25; n], (0..n).map(|i| i as f32 * 1e-3).collect());
            let Weight::Trained(trained) = &mut weight else { unreachable!("it is trained") };
            adamw(trained, &mut gradients, &mut moments, step).unwrap();
            let [first, second] = moments.values().unwrap();
            for (i, got) in weight.values().iter().enumerate() {
                let g = f64::from(gradient[i]) * 0.5;
                let m = 0.25 + 0.1 * (g - 0.25);
                let s = i as f64 * 1e-3 * 0.999 + 0.001 * g * g;
                let w = f64::from(values[i]) * 0.999 - 1e-2 * m / (s.sqrt() / 0.5 + 1e-8);
                assert!(
                    (f64::from(*got) - w).abs() < tolerance * w.abs().max(1.0),
                    "{i}: {got} {w}"
                );
                assert!((f64::from(first[i]) - m).abs() < 1e-6);
                assert!((f64::from(second[i]) - s).abs() < 1e-6);
            }
        };
        check(Weight::trained(values.clone()).unwrap(), 1e-6);
        #[cfg(feature = "cuda")]
        for gpu in crate::ops::gradient_check::gpus() {
            let mut weight = Weight::trained(values.clone()).unwrap();
            weight.place(Some(gpu)).unwrap();
            check(weight, 1e-6);
        }
    }
}
