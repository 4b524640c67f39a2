//! Token and position embeddings.

use rayon::prelude::*;

use super::wide::wide;
use crate::buffer::Buffer;
use crate::tensor::{DeviceError, Matrix, Record, Weight, record};

/// `table[token] + positions[place]` of every `(token, place)`, or the former alone: `[N, D]`.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// If a token or a place has no row; callers check both at the crate's edge.
pub(crate) fn embed_tokens<T: Record>(
    tokens: Vec<(u32, usize)>,
    table: &Weight,
    positions: Option<&Weight>,
    width: usize,
    tape: T,
) -> Result<Matrix<T>, DeviceError> {
    let mut out = Buffer::unset(tokens.len() * width);
    let (rows, places) = (table.values(), positions.map(Weight::values));
    out.par_chunks_mut(width).with_min_len(super::rows_per_chunk(width)).zip(&tokens).for_each(
        |(out, (token, place))| {
            let row = &rows[*token as usize * width..][..width];
            out.copy_from_slice(row);
            if let Some(places) = &places {
                let place = &places[place * width..][..width];
                wide!(out.iter_mut().zip(place).for_each(|(o, p)| *o += p));
            }
        },
    );
    drop((rows, places));
    let (table, positions) = (table.clone(), positions.cloned());
    let wanted = table.is_trained() || positions.as_ref().is_some_and(Weight::is_trained);
    record(out, width, tape, wanted, move |grad_out, store| {
        table.accumulate(store, |sum| {
            for ((token, _), g) in tokens.iter().zip(grad_out.chunks_exact(width)) {
                super::add_to(&mut sum[*token as usize * width..][..width], g);
            }
        })?;
        let Some(positions) = positions else { return Ok(()) };
        positions.accumulate(store, |sum| {
            for ((_, place), g) in tokens.iter().zip(grad_out.chunks_exact(width)) {
                super::add_to(&mut sum[place * width..][..width], g);
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::{check, pseudo_random};

    #[test]
    fn gradients_equal_finite_differences() {
        let tokens = vec![(2, 0), (0, 1), (2, 2), (1, 0), (1, 1), (2, 2)];
        check(
            &[],
            &[pseudo_random(9, 1), pseudo_random(9, 2)],
            2e-3,
            |t, _, w| embed_tokens(tokens.clone(), &w[0], Some(&w[1]), 3, t).unwrap(),
            |t, _, w| embed_tokens(tokens.clone(), &w[0], Some(&w[1]), 3, t).unwrap(),
        );
        check(
            &[],
            &[pseudo_random(9, 1)],
            2e-3,
            |t, _, w| embed_tokens(tokens.clone(), &w[0], None, 3, t).unwrap(),
            |t, _, w| embed_tokens(tokens.clone(), &w[0], None, 3, t).unwrap(),
        );
    }
}
