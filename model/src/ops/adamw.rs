//! `AdamW` with decoupled weight decay (Loshchilov and Hutter, 2019), on gradients that are clipped as
//! they are read. All numbers are f32, in torch's order of operations.

use rayon::prelude::*;

#[cfg(feature = "cuda")]
use crate::cuda::Array;
use crate::spare::Spare;
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

    /// A copy of the mean of the gradients and of that of their squares.
    ///
    /// # Errors
    /// When the device fails, or memory cannot hold the copy.
    pub fn values(&self, spare: &Spare) -> Result<[Vec<f32>; 2], DeviceError> {
        match &self.means {
            Means::Host { first, second } => Ok([spare.copy(first)?, spare.copy(second)?]),
            #[cfg(feature = "cuda")]
            Means::Cuda { first, second } => Ok([first.to_vec()?, second.to_vec()?]),
        }
    }
}

/// A weight that is to be updated, its moments, and how.
pub(crate) type Update<'a> = (&'a mut TrainedWeight, &'a mut Moments, AdamStep);

/// Makes one update of some weights, which are all on one device.
///
/// # Errors
/// When the device fails.
pub(crate) fn adamw(updates: Vec<Update>, gradients: &mut Gradients) -> Result<(), DeviceError> {
    #[cfg(feature = "cuda")]
    if updates.first().is_some_and(|(weight, ..)| weight.is_on_gpu()) {
        return cuda::adamw(updates, gradients);
    }
    updates.into_iter().try_for_each(|update| adamw_on_host(update, gradients))
}

fn adamw_on_host(
    (weight, moments, step): Update,
    gradients: &mut Gradients,
) -> Result<(), DeviceError> {
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
pub(super) mod cuda {
    use super::{Means, Update};
    use crate::cuda::{Array, CudaError, Gpu, Grid, Kind, THREADS, kernel};
    use crate::tensor::{DeviceError, Gradients};

    /// Values that one block takes.
    const PER_BLOCK: usize = 1 << 14;
    /// 64-bit words of an entry of the tables that `adamw.cu` reads, `AdamWeight` and `Summand`.
    const WEIGHT_WORDS: usize = 11;
    const SUMMAND_WORDS: usize = 3;

    pub(super) fn adamw(
        updates: Vec<Update>,
        gradients: &mut Gradients,
    ) -> Result<(), DeviceError> {
        let (mut table, mut blocks, mut on) = (Vec::new(), 0, None);
        for (weight, moments, step) in updates {
            let weight = weight.own_device()?.expect("all weights are on one device");
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
            let address = |array: Option<&Array>| array.map_or(0, Array::address);
            let both = |a: f32, b: f32| u64::from(a.to_bits()) | u64::from(b.to_bits()) << 32;
            table.extend([
                weight.full().address(),
                address(gradient),
                first.address(),
                second.address(),
                address(weight.low()),
                n as u64,
                blocks as u64,
                both(step.clip, step.keep),
                both(step.first, step.second_keep),
                both(step.second, step.step_size),
                both(step.second_correction_sqrt, step.epsilon),
            ]);
            blocks += n.div_ceil(PER_BLOCK);
            on = Some(gpu);
        }
        let Some(gpu) = on else { return Ok(()) };
        let n_weights = table.len() / WEIGHT_WORDS;
        let table = gpu.upload_words(&table)?;
        let args = [(&table).into(), n_weights.into(), PER_BLOCK.into()];
        Ok(gpu.launch(kernel!("adamw"), Grid::of(blocks, THREADS), &args)?)
    }

    /// The sum of the squares of the values of each of some arrays in f32, in f64.
    ///
    /// # Errors
    /// When the GPU fails.
    pub(crate) fn square_sums(gpu: &'static Gpu, arrays: &[&Array]) -> Result<Vec<f64>, CudaError> {
        let (mut table, mut blocks) = (Vec::new(), 0);
        let blocks_of = |array: &Array| array.len().div_ceil(PER_BLOCK);
        for array in arrays {
            table.extend([array.address(), array.len() as u64, blocks as u64]);
            blocks += blocks_of(array);
        }
        if blocks == 0 {
            return Ok(vec![0.0; arrays.len()]);
        }
        let n_arrays = table.len() / SUMMAND_WORDS;
        let table = gpu.upload_words(&table)?;
        // Two f32 are the room of one f64.
        let sums = gpu.unset(2 * blocks, Kind::F32)?;
        let args = [(&table).into(), n_arrays.into(), PER_BLOCK.into(), (&sums).into()];
        gpu.launch(kernel!("square_sums"), Grid::of(blocks, THREADS), &args)?;
        let mut sums = gpu.download_f64(&sums)?.into_iter();
        Ok(arrays.iter().map(|array| sums.by_ref().take(blocks_of(array)).sum()).collect())
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
            adamw(vec![(trained, &mut moments, step)], &mut gradients).unwrap();
            let [first, second] = moments.values(&Spare::default()).unwrap();
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

    #[cfg(feature = "cuda")]
    #[test]
    fn several_weights_of_several_blocks_are_updated_and_summed_as_on_the_processor() {
        let sizes = [3, 40_000, 1, 16_384, 20_000];
        let run = |gpu: Option<&'static crate::cuda::Gpu>| {
            let mut gradients = Gradients::default();
            let mut weights: Vec<Weight> = sizes
                .iter()
                .map(|n| {
                    let mut weight = Weight::trained(pseudo_random(*n, 3)).unwrap();
                    weight.place(gpu).unwrap();
                    weight
                })
                .collect();
            // One has no gradient.
            for (i, weight) in weights.iter().enumerate().filter(|(i, _)| *i != 3) {
                let values = pseudo_random(sizes[i], 10 + i as u64);
                weight.accumulate(&mut gradients.0, |sum| sum.copy_from_slice(&values)).unwrap();
            }
            let mut moments: Vec<Moments> = sizes.iter().map(|n| Moments::zeros(&[*n])).collect();
            for keep in [1.0, 0.9] {
                let step = |i: usize| AdamStep {
                    clip: 1.0,
                    keep,
                    first: 0.1,
                    second_keep: 0.999,
                    second: 0.001,
                    step_size: 1e-3 * (i + 1) as f32,
                    second_correction_sqrt: 0.5,
                    epsilon: 1e-8,
                };
                let updates = weights.iter_mut().zip(&mut moments).enumerate();
                let updates = updates.map(|(i, (weight, moments))| {
                    let Weight::Trained(weight) = weight else { unreachable!("it is trained") };
                    (weight, moments, step(i))
                });
                adamw(updates.collect(), &mut gradients).unwrap();
            }
            let sums = gpu.map(|gpu| {
                let of = |w: &Weight| w.device().cloned();
                let weights: Vec<_> = weights.iter().filter_map(of).collect();
                let arrays =
                    weights.iter().filter_map(|w| w.gradient_array(gradients.0.device_ref()));
                cuda::square_sums(gpu, &arrays.collect::<Vec<_>>()).unwrap()
            });
            let values: Vec<f32> = weights.iter().flat_map(|w| w.values().to_vec()).collect();
            (values, sums)
        };
        let (expected, _) = run(None);
        let squares = [0_u64, 1, 2, 4].map(|i| {
            let values = pseudo_random(sizes[i as usize], 10 + i);
            values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>()
        });
        for gpu in crate::ops::gradient_check::gpus() {
            let (got, sums) = run(Some(gpu));
            for (i, (a, b)) in got.iter().zip(&expected).enumerate() {
                assert!((a - b).abs() < 1e-6, "{i}: {a}, {b} on the processor");
            }
            let sums = sums.unwrap();
            assert_eq!(sums.len(), squares.len());
            for (sum, square) in sums.iter().zip(&squares) {
                assert!((sum - square).abs() < 1e-9 * square, "{sum} {square}");
            }
        }
    }
}
