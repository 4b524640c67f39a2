//! Adaptive gradient clipping (Brock and others, 2021, "High-Performance Large-Scale Image Recognition
//! Without Normalization", section 4): the gradient of each unit, such as a row of a matrix or a filter,
//! is at most a share of the norm of the unit's weights.
//!
//! Which values are a unit, and both least norms, are timm's (`utils/agc.py`).

use rayon::prelude::*;

use crate::tensor::{DeviceError, Gradients, TrainedWeight};

/// Weights count as if their norm were at least so much: fresh ones of zero could never move.
const WEIGHT_NORM_MIN: f64 = 1e-3;
/// Keeps the division finite.
const GRADIENT_NORM_MIN: f64 = 1e-6;

/// A weight, its shape, and the largest norm of a unit's gradient as a share of that of its weights.
pub(crate) type UnitClip<'a> = (&'a TrainedWeight, &'a [usize], f64);

/// Clips the gradients of some weights, which are all on one device. Units of a weight with two or more
/// axes are its slices along the first one; other weights are one unit.
///
/// # Errors
/// When the device fails.
pub(crate) fn clip_units(clips: &[UnitClip], gradients: &mut Gradients) -> Result<(), DeviceError> {
    #[cfg(feature = "cuda")]
    if clips.first().is_some_and(|(weight, ..)| weight.is_on_gpu()) {
        return cuda::clip_units(clips, gradients);
    }
    for (weight, shape, share) in clips {
        let width = unit_width(shape);
        let (values, gradient) = (weight.host_values(), weight.gradient(&mut gradients.0)?);
        let units = gradient.par_chunks_mut(width).with_min_len(super::rows_per_chunk(width));
        units.zip(values.par_chunks(width)).for_each(|(gradient, values)| {
            clip(gradient, values, *share);
        });
    }
    Ok(())
}

/// Values of one unit of a weight of this shape.
fn unit_width(shape: &[usize]) -> usize {
    let axes = if shape.len() < 2 { shape } else { &shape[1..] };
    axes.iter().product::<usize>().max(1)
}

fn clip(gradient: &mut [f32], values: &[f32], share: f64) {
    let most = share * norm(values).max(WEIGHT_NORM_MIN);
    let found = norm(gradient);
    if found > most {
        let factor = (most / found.max(GRADIENT_NORM_MIN)) as f32;
        for g in gradient {
            *g *= factor;
        }
    }
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt()
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::{UnitClip, unit_width};
    use crate::cuda::{Grid, THREADS, kernel};
    use crate::tensor::{DeviceError, Gradients};

    /// 64-bit words of an entry of the table that `unit_clip.cu` reads, `ClippedWeight`.
    const WEIGHT_WORDS: usize = 5;

    pub(super) fn clip_units(
        clips: &[UnitClip],
        gradients: &mut Gradients,
    ) -> Result<(), DeviceError> {
        let (mut table, mut blocks, mut on) = (Vec::new(), 0, None);
        for (weight, shape, share) in clips {
            let weight = weight.on_gpu().expect("all weights are on one device");
            let Some(gradient) = weight.gradient_array(gradients.0.device_ref()) else { continue };
            let width = unit_width(shape);
            table.extend([
                gradient.address(),
                weight.full().address(),
                width as u64,
                blocks as u64,
                share.to_bits(),
            ]);
            blocks += weight.len() / width;
            on = Some(weight.gpu());
        }
        let Some(gpu) = on else { return Ok(()) };
        let n_weights = table.len() / WEIGHT_WORDS;
        let table = gpu.upload_words(&table)?;
        let args = [(&table).into(), n_weights.into()];
        Ok(gpu.launch(kernel!("clip_units"), Grid::of(blocks, THREADS), &args)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::pseudo_random;
    use crate::tensor::Weight;

    /// The gradients of weights after clipping, and those of the formula in f64.
    fn clipped(place: impl Fn(&mut Weight)) -> Vec<(f32, f64)> {
        // A matrix with a row of zeros, filters, their gains, a vector, a scalar, and a large matrix.
        let shapes: [&[usize]; 6] = [&[4, 6], &[3, 2, 2, 2], &[5, 1, 1, 1], &[7], &[], &[300, 130]];
        let mut pairs = Vec::new();
        for (i, shape) in shapes.into_iter().enumerate() {
            let n: usize = shape.iter().product();
            let mut values = pseudo_random(n, 2 * i as u64);
            if i == 0 {
                values[..6].fill(0.0);
            }
            // Some units are within the bound and some are not.
            let scale = |(j, g): (usize, f32)| if j % 12 < 6 { 0.2 * g } else { 1e-3 * g };
            let gradient = pseudo_random(n, 2 * i as u64 + 1).into_iter().enumerate().map(scale);
            let gradient: Vec<f32> = gradient.collect();
            let mut weight = Weight::trained(values.clone()).unwrap();
            place(&mut weight);
            let mut gradients = Gradients::default();
            weight.accumulate(&mut gradients.0, |sum| sum.copy_from_slice(&gradient)).unwrap();
            let Weight::Trained(trained) = &weight else { unreachable!("it is trained") };
            clip_units(&[(trained, shape, 0.05)], &mut gradients).unwrap();
            let found = trained.gradient(&mut gradients.0).unwrap();

            let rows = if shape.len() > 1 { shape[0] } else { 1 };
            for row in 0..rows {
                let unit = row * n / rows..(row + 1) * n / rows;
                let square = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
                let most = 0.05 * square(&values[unit.clone()]).sqrt().max(1e-3);
                let factor = (most / square(&gradient[unit.clone()]).sqrt()).min(1.0);
                pairs.extend(unit.map(|j| (found[j], factor * f64::from(gradient[j]))));
            }
        }
        pairs
    }

    fn check(pairs: &[(f32, f64)]) {
        for (i, (found, expected)) in pairs.iter().enumerate() {
            let error = (f64::from(*found) - expected).abs();
            assert!(error < 1e-6 * expected.abs() + 1e-12, "{i}: {found} {expected}");
        }
    }

    #[test]
    fn clipped_gradients_equal_the_formula_in_double_precision() {
        check(&clipped(|_| {}));
        #[cfg(feature = "cuda")]
        for gpu in crate::ops::gradient_check::gpus() {
            check(&clipped(|weight| weight.place(Some(gpu)).unwrap()));
        }
    }

    /// `timm.utils.agc.adaptive_clip_grad` of timm 1.0.31 with `clip_factor=0.1`.
    #[test]
    fn clipped_gradients_equal_timms() {
        let check = |shape: &[usize], values: &[f32], gradient: &[f32], expected: &[f32]| {
            let weight = Weight::trained(values.to_vec()).unwrap();
            let mut gradients = Gradients::default();
            weight.accumulate(&mut gradients.0, |sum| sum.copy_from_slice(gradient)).unwrap();
            let Weight::Trained(trained) = &weight else { unreachable!("it is trained") };
            clip_units(&[(trained, shape, 0.1)], &mut gradients).unwrap();
            for (found, expected) in
                trained.gradient(&mut gradients.0).unwrap().iter().zip(expected)
            {
                assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{found} {expected}");
            }
        };
        let (values, gradient) = ([3.0, 4.0, 0.0, 0.0], [0.3, 0.4, 6.0, 8.0]);
        check(&[2, 2], &values, &gradient, &[0.3, 0.4, 6.000_000_6e-5, 8.000_000_5e-5]);
        check(&[4, 1, 1, 1], &values, &gradient, &[0.3, 0.4, 1e-4, 1e-4]);
        check(&[4], &values, &gradient, &[0.014_981_286, 0.019_975_048, 0.299_625_7, 0.399_500_94]);
    }
}
