//! Running averages of weights, in f32 and where the weights are: `a + rate * (w - a)`.

use rayon::prelude::*;

#[cfg(feature = "cuda")]
use crate::cuda::Array;
use crate::spare::Spare;
use crate::tensor::{DeviceError, TrainedWeight};

/// The running average of one parameter, which lives where the parameter does.
#[derive(Debug)]
pub struct Average {
    shape: Vec<usize>,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Host(Vec<f32>),
    #[cfg(feature = "cuda")]
    Cuda(Array),
}

/// Averages of at least this many values are moved on all cores.
const PARALLEL_VALUES_MIN: usize = 1 << 16;
/// Values that one core moves at a time.
const CHUNK_VALUES: usize = 1 << 14;

impl Average {
    /// An average `[shape]`, as a checkpoint has it or as a weight begins.
    ///
    /// # Panics
    /// If there are not as many values as the shape says.
    pub fn new(shape: &[usize], values: Vec<f32>) -> Self {
        assert_eq!(values.len(), shape.iter().product::<usize>());
        Self { shape: shape.to_vec(), values: Values::Host(values) }
    }

    /// The shape of the parameter.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// A copy of the average.
    ///
    /// # Errors
    /// When the device fails, or memory cannot hold the copy.
    pub fn values(&self, spare: &Spare) -> Result<Vec<f32>, DeviceError> {
        match &self.values {
            Values::Host(values) => spare.copy(values),
            #[cfg(feature = "cuda")]
            Values::Cuda(array) => Ok(array.to_vec()?),
        }
    }

    /// The average of a weight that is not on a GPU.
    fn on_host(&mut self) -> &mut [f32] {
        match &mut self.values {
            Values::Host(values) => values,
            #[cfg(feature = "cuda")]
            Values::Cuda(_) => unreachable!("an average on a GPU of a weight that is not"),
        }
    }
}

/// A weight and its average.
pub(crate) type Averaged<'a> = (&'a TrainedWeight, &'a mut Average);

/// Moves some averages by `rate` of the way to their weights, which are all on one device.
///
/// # Errors
/// When the device fails.
#[cfg_attr(not(feature = "cuda"), expect(clippy::unnecessary_wraps, reason = "GPUs need it"))]
pub(crate) fn average(averages: Vec<Averaged>, rate: f32) -> Result<(), DeviceError> {
    #[cfg(feature = "cuda")]
    if averages.first().is_some_and(|(weight, _)| weight.is_on_gpu()) {
        return cuda::average(averages, rate);
    }
    for (weight, average) in averages {
        let weights = weight.host_values();
        let values = average.on_host();
        if values.len() < PARALLEL_VALUES_MIN {
            move_chunk(values, weights, rate);
            continue;
        }
        let chunks = values.par_chunks_mut(CHUNK_VALUES).zip(weights.par_chunks(CHUNK_VALUES));
        chunks.for_each(|(values, weights)| move_chunk(values, weights, rate));
    }
    Ok(())
}

fn move_chunk(averages: &mut [f32], weights: &[f32], rate: f32) {
    averages.iter_mut().zip(weights).for_each(|(a, w)| *a += rate * (w - *a));
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::{Averaged, Values};
    use crate::cuda::{Grid, Kind, THREADS, kernel};
    use crate::tensor::DeviceError;

    /// Values that one block takes.
    const PER_BLOCK: usize = 1 << 14;
    /// 64-bit words of an entry of the table that `average.cu` reads, `AveragedWeight`.
    const WEIGHT_WORDS: usize = 4;

    pub(super) fn average(averages: Vec<Averaged>, rate: f32) -> Result<(), DeviceError> {
        let (mut table, mut blocks, mut on) = (Vec::new(), 0, None);
        for (weight, average) in averages {
            let weight = weight.on_gpu().expect("all weights are on one device");
            if let Values::Host(values) = &average.values {
                average.values = Values::Cuda(weight.gpu().upload_as(values, Kind::F32)?);
            }
            let Values::Cuda(array) = &average.values else {
                unreachable!("the average was sent to the GPU")
            };
            let n = weight.len();
            table.extend([array.address(), weight.full().address(), n as u64, blocks as u64]);
            blocks += n.div_ceil(PER_BLOCK);
            on = Some(weight.gpu());
        }
        let Some(gpu) = on else { return Ok(()) };
        let n_weights = table.len() / WEIGHT_WORDS;
        let table = gpu.upload_words(&table)?;
        let args = [(&table).into(), n_weights.into(), PER_BLOCK.into(), rate.into()];
        Ok(gpu.launch(kernel!("average_weights"), Grid::of(blocks, THREADS), &args)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::pseudo_random;
    use crate::tensor::Weight;

    #[test]
    fn averages_follow_the_formula_in_double_precision() {
        // The last is so large that all cores, and several blocks, take part.
        let sizes = [1, 37, 70_000];
        let check = |place: &dyn Fn(&mut Weight)| {
            let start = |i: usize| pseudo_random(sizes[i], i as u64);
            let mut all: Vec<Average> =
                (0..3).map(|i| Average::new(&[sizes[i]], start(i))).collect();
            let mut expected: Vec<Vec<f64>> =
                (0..3).map(|i| start(i).into_iter().map(f64::from).collect()).collect();
            for (step, rate) in [0.9_f32, 0.01, 1e-4].into_iter().enumerate() {
                let weights: Vec<Vec<f32>> =
                    (0..3).map(|i| pseudo_random(sizes[i], 10 + (3 * step + i) as u64)).collect();
                let trained: Vec<Weight> = weights
                    .iter()
                    .map(|values| {
                        let mut weight = Weight::trained(values.clone()).unwrap();
                        place(&mut weight);
                        weight
                    })
                    .collect();
                let pairs = trained.iter().zip(&mut all).map(|(weight, average)| {
                    let Weight::Trained(weight) = weight else { unreachable!("it is trained") };
                    (weight, average)
                });
                average(pairs.collect(), rate).unwrap();
                for (expected, weights) in expected.iter_mut().zip(&weights) {
                    for (a, w) in expected.iter_mut().zip(weights) {
                        *a = (1.0 - f64::from(rate)) * *a + f64::from(rate) * f64::from(*w);
                    }
                }
            }
            for (average, expected) in all.iter().zip(&expected) {
                for (i, (found, expected)) in
                    average.values(&Spare::default()).unwrap().iter().zip(expected).enumerate()
                {
                    let error = (f64::from(*found) - expected).abs();
                    assert!(error < 3e-7, "{i}: {found} {expected}");
                }
            }
        };
        check(&|_| {});
        #[cfg(feature = "cuda")]
        for gpu in crate::ops::gradient_check::gpus() {
            check(&|weight| weight.place(Some(gpu)).unwrap());
        }
    }
}
