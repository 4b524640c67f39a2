//! Rows of the Perceiver resampler: time embeddings, repeated latents, keys made of features and
//! latents.

use rayon::prelude::*;

use super::wide::wide;
use crate::buffer::Buffer;
use crate::tensor::{DeviceError, Matrix, Record, Weight, record};

/// Adds time embedding `f` to the rows of frame `f`: `features` `[M * frames * tokens, D]`, `time`
/// `[trained, D]`.
///
/// With more frames than were trained, the embeddings are interpolated linearly, both ends aligned
/// (paper, appendix B.1.4).
///
/// # Errors
/// When the device fails.
pub(crate) fn add_time<T: Record>(
    features: Matrix<T>,
    time: &Weight,
    frames: usize,
    tokens: usize,
) -> Result<Matrix<T>, DeviceError> {
    #[cfg(feature = "cuda")]
    if features.array().is_some() {
        return cuda::add_time(features, time, frames, tokens);
    }
    let (features, tape) = features.split();
    let width = features.width();
    let rows = time.values();
    let trained = rows.len() / width;
    let mixes: Vec<[(usize, f32); 2]> = (0..frames).map(|f| time_mix(f, frames, trained)).collect();
    let mut out = Buffer::unset(features.values().len());
    let frame = tokens * width;
    out.par_chunks_mut(frame).zip(features.values().par_chunks(frame)).enumerate().for_each(
        |(i, (out, features))| {
            let [(low, low_share), (high, high_share)] = mixes[i % frames];
            let (low, high) = (&rows[low * width..][..width], &rows[high * width..][..width]);
            wide!({
                for (out, x) in out.chunks_exact_mut(width).zip(features.chunks_exact(width)) {
                    for (((o, x), a), b) in out.iter_mut().zip(x).zip(low).zip(high) {
                        *o = x + low_share * a + high_share * b;
                    }
                }
            });
        },
    );
    drop(rows);
    let time = time.clone();
    let wanted = features.wants_gradient() || time.is_trained();
    record(out, width, tape, wanted, move |grad_out, store| {
        time.accumulate(store, |sum| {
            let of_frames: Vec<Vec<f32>> =
                grad_out.par_chunks(frame).map(|g| sum_rows(g, width)).collect();
            for (i, g) in of_frames.iter().enumerate() {
                for (row, share) in mixes[i % frames] {
                    sum[row * width..].iter_mut().zip(g).for_each(|(s, g)| *s += share * g);
                }
            }
        })?;
        features.give_gradient(store, grad_out)
    })
}

fn sum_rows(x: &[f32], width: usize) -> Vec<f32> {
    let mut sum = vec![0.0; width];
    wide!({
        for row in x.chunks_exact(width) {
            sum.iter_mut().zip(row).for_each(|(s, v)| *s += v);
        }
    });
    sum
}

/// The two trained rows that frame `f` of `frames` is mixed from, with their shares.
fn time_mix(f: usize, frames: usize, trained: usize) -> [(usize, f32); 2] {
    if frames <= trained {
        return [(f, 1.0), (f, 0.0)];
    }
    let at = f as f32 * (trained - 1) as f32 / (frames - 1) as f32;
    let low = (at as usize).min(trained - 1);
    let share = at - low as f32;
    [(low, 1.0 - share), ((low + 1).min(trained - 1), share)]
}

/// `latents` `[R, D]` once for each of `n` images: `[n * R, D]`.
///
/// # Errors
/// When the device fails.
pub(crate) fn repeat_latents<T: Record>(
    latents: &Weight,
    n: usize,
    width: usize,
    tape: T,
) -> Result<Matrix<T>, DeviceError> {
    #[cfg(feature = "cuda")]
    if latents.device().is_some() {
        return cuda::repeat_latents(latents, n, width, tape);
    }
    let out: Buffer = latents.values().repeat(n).into();
    let latents = latents.clone();
    record(out, width, tape, latents.is_trained(), move |grad_out, store| {
        latents.accumulate(store, |sum| super::add::add_rows_to(sum, &grad_out))
    })
}

/// Per image, its `features` `[M * S, D]` followed by its `latents` `[M * R, D]`:
/// `[M * (S + R), D]`.
///
/// # Errors
/// When the device fails.
pub(crate) fn with_latents<T: Record>(
    features: Matrix<T>,
    latents: Matrix,
    features_per_image: usize,
    latents_per_image: usize,
) -> Result<Matrix<T>, DeviceError> {
    #[cfg(feature = "cuda")]
    if features.array().is_some() {
        return cuda::with_latents(features, latents, features_per_image, latents_per_image);
    }
    let (features, tape) = features.split();
    let width = features.width();
    let (s, r) = (features_per_image * width, latents_per_image * width);
    let mut out = Buffer::unset(features.values().len() + latents.values().len());
    out.par_chunks_mut(s + r)
        .zip(features.values().par_chunks(s))
        .zip(latents.values().par_chunks(r))
        .for_each(|((out, features), latents)| {
            out[..s].copy_from_slice(features);
            out[s..].copy_from_slice(latents);
        });
    let wanted = features.wants_gradient() || latents.wants_gradient();
    record(out, width, tape, wanted, move |grad_out, store| {
        let mut grad_features = Buffer::unset(features.values().len());
        let mut grad_latents = Buffer::unset(latents.values().len());
        grad_features
            .par_chunks_mut(s)
            .zip(grad_latents.par_chunks_mut(r))
            .zip(grad_out.par_chunks(s + r))
            .for_each(|((features, latents), g)| {
                features.copy_from_slice(&g[..s]);
                latents.copy_from_slice(&g[s..]);
            });
        features.give_gradient(store, grad_features)?;
        latents.give_gradient(store, grad_latents)
    })
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::super::add::cuda::{add_column_sums, column_sums, gradient_to_add, on_gpu};
    use super::time_mix;
    use crate::cuda::{Grid, Kind, kernel};
    use crate::tensor::{DeviceError, Matrix, Record, Weight, record_on_gpu};

    pub(super) fn add_time<T: Record>(
        features: Matrix<T>,
        time: &Weight,
        frames: usize,
        tokens: usize,
    ) -> Result<Matrix<T>, DeviceError> {
        let (features, tape) = features.split();
        let input = features.gpu_array();
        let (gpu, kind, width) = (input.gpu(), input.kind(), features.width());
        let trained = time.len() / width;
        let mixes: Vec<(usize, f32)> =
            (0..frames).flat_map(|f| time_mix(f, frames, trained)).collect();
        let rows: Vec<i32> = mixes.iter().map(|(row, _)| *row as i32).collect();
        let shares: Vec<f32> = mixes.iter().map(|(_, share)| *share).collect();
        let (rows, shares) = (gpu.upload_i32(&rows)?, gpu.upload_as(&shares, Kind::F32)?);
        let out = gpu.unset(input.len(), kind)?;
        let args = [
            input.into(),
            on_gpu(time).into(),
            (&rows).into(),
            (&shares).into(),
            (&out).into(),
            frames.into(),
            tokens.into(),
            width.into(),
        ];
        gpu.launch(kernel!("add_time", kind), Grid::rows(features.rows(), width), &args)?;
        let time = time.clone();
        let wanted = features.wants_gradient() || time.is_trained();
        let features = features.without_values();
        record_on_gpu(out, width, tape, wanted, move |grad_out, store| {
            if let Some(gradient) = gradient_to_add(&time, store)? {
                // Per frame, the sum over its tokens and over the videos: first over the videos.
                let video = frames * tokens * width;
                let over_videos = gpu.unset(video, Kind::F32)?;
                column_sums(&grad_out, video, video, &over_videos, false)?;
                let sums = gpu.unset(frames * width, Kind::F32)?;
                for f in 0..frames {
                    let frame = gpu.unset(tokens * width, Kind::F32)?;
                    gpu.copy_part(&frame, &over_videos, f * tokens * width)?;
                    let sum = gpu.unset(width, Kind::F32)?;
                    column_sums(&frame, width, width, &sum, false)?;
                    gpu.put_part(&sums, f * width, &sum)?;
                }
                let args = [
                    (&sums).into(),
                    (&rows).into(),
                    (&shares).into(),
                    gradient.into(),
                    frames.into(),
                    width.into(),
                ];
                gpu.launch(kernel!("add_time_backward"), Grid::rows(trained, width), &args)?;
            }
            features.give_array(store, grad_out)
        })
    }

    pub(super) fn repeat_latents<T: Record>(
        latents: &Weight,
        n: usize,
        width: usize,
        tape: T,
    ) -> Result<Matrix<T>, DeviceError> {
        let weight = on_gpu(latents);
        let (gpu, all) = (weight.gpu(), weight.len());
        let out = gpu.unset(n * all, gpu.kind())?;
        let args = [weight.into(), (&out).into(), (all / width).into(), width.into()];
        gpu.launch(kernel!("repeat_rows", gpu.kind()), Grid::rows(n * all / width, width), &args)?;
        let latents = latents.clone();
        record_on_gpu(out, width, tape, latents.is_trained(), move |grad_out, store| {
            add_column_sums(&latents, store, &grad_out, all, all)
        })
    }

    pub(super) fn with_latents<T: Record>(
        features: Matrix<T>,
        latents: Matrix,
        features_per_image: usize,
        latents_per_image: usize,
    ) -> Result<Matrix<T>, DeviceError> {
        let (features, tape) = features.split();
        let (of_features, of_latents) = (features.gpu_array(), latents.gpu_array());
        let (gpu, kind, width) = (of_features.gpu(), of_features.kind(), features.width());
        let (f, l) = (features_per_image, latents_per_image);
        let rows = features.rows() + latents.rows();
        let out = gpu.unset(rows * width, kind)?;
        let args = [
            of_features.into(),
            of_latents.into(),
            (&out).into(),
            f.into(),
            l.into(),
            width.into(),
        ];
        gpu.launch(kernel!("with_latents", kind), Grid::rows(rows, width), &args)?;
        let wanted = features.wants_gradient() || latents.wants_gradient();
        let images = latents.rows() / l;
        let (features, latents) = (features.without_values(), latents.without_values());
        record_on_gpu(out, width, tape, wanted, move |grad_out, store| {
            for (part, first, n) in [(&features, 0, f), (&latents, f, l)] {
                if !part.wants_gradient() {
                    continue;
                }
                let grad = gpu.unset(images * n * width, kind)?;
                let args = [
                    (&grad_out).into(),
                    (&grad).into(),
                    (f + l).into(),
                    first.into(),
                    n.into(),
                    width.into(),
                ];
                gpu.launch(kernel!("take_part", kind), Grid::rows(images * n, width), &args)?;
                part.give_array(store, grad)?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::{check, pseudo_random};

    #[test]
    fn values_and_gradients_equal_the_formula() {
        for frames in [2, 3, 5] {
            check(
                &[(pseudo_random(2 * frames * 2 * 3, 1), 3)],
                &[pseudo_random(9, 2)],
                |t, x, w| add_time(x[0].clone().with(t), &w[0], frames, 2).unwrap(),
                |t, x, w| add_time(x[0].clone().with(t), &w[0], frames, 2).unwrap(),
                |x, w| {
                    // Two rows of 3 values a frame; the first and the last of 5 are the trained ones.
                    let with_time = |(i, x): (usize, &f64)| {
                        let (frame, c) = (i / 6 % frames, i % 3);
                        let at = frame as f64 * if frames > 3 { 0.5 } else { 1.0 };
                        let (low, share) = (at.floor() as usize, at.fract());
                        let high = (low + 1).min(2);
                        x + (1.0 - share) * w[0][low * 3 + c] + share * w[0][high * 3 + c]
                    };
                    x[0].iter().enumerate().map(with_time).collect()
                },
            );
        }
        check(
            &[],
            &[pseudo_random(6, 1)],
            |t, _, w| repeat_latents(&w[0], 3, 2, t).unwrap(),
            |t, _, w| repeat_latents(&w[0], 3, 2, t).unwrap(),
            |_, w| w[0].repeat(3),
        );
        check(
            &[(pseudo_random(12, 1), 2), (pseudo_random(8, 2), 2)],
            &[],
            |t, x, _| with_latents(x[0].clone().with(t), x[1].clone(), 3, 2).unwrap(),
            |t, x, _| with_latents(x[0].clone().with(t), x[1].clone(), 3, 2).unwrap(),
            |x, _| [&x[0][..6], &x[1][..4], &x[0][6..], &x[1][4..]].concat(),
        );
    }
}
