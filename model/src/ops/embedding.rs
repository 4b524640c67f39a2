//! Token and position embeddings.

use rayon::prelude::*;

use super::TokenTable;
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
    table: &TokenTable,
    positions: Option<&Weight>,
    width: usize,
    tape: T,
) -> Result<Matrix<T>, DeviceError> {
    #[cfg(feature = "cuda")]
    if table.rows.device().is_some() {
        return cuda::embed_tokens(&tokens, table, positions, width, tape);
    }
    let mut out = Buffer::unset(tokens.len() * width);
    let weights: Vec<_> = table.weights().map(Weight::values).collect();
    let places = positions.map(Weight::values);
    let layout = table.layout(width);
    out.par_chunks_mut(width).with_min_len(super::rows_per_chunk(width)).zip(&tokens).for_each(
        |(out, (token, place))| {
            let (weight, row) = layout.place_of(*token);
            out.copy_from_slice(&weights[weight][row * width..][..width]);
            if let Some(places) = &places {
                let place = &places[place * width..][..width];
                wide!(out.iter_mut().zip(place).for_each(|(o, p)| *o += p));
            }
        },
    );
    drop((weights, places));
    let (table, positions) = (table.clone(), positions.cloned());
    let wanted = table.is_trained() || positions.as_ref().is_some_and(Weight::is_trained);
    record(out, width, tape, wanted, move |grad_out, store| {
        for (this, weight) in table.weights().enumerate() {
            weight.accumulate(store, |sum| {
                for ((token, _), g) in tokens.iter().zip(grad_out.chunks_exact(width)) {
                    let (of, row) = layout.place_of(*token);
                    if of == this {
                        super::add_to(&mut sum[row * width..][..width], g);
                    }
                }
            })?;
        }
        let Some(positions) = positions else { return Ok(()) };
        positions.accumulate(store, |sum| {
            for ((_, place), g) in tokens.iter().zip(grad_out.chunks_exact(width)) {
                super::add_to(&mut sum[place * width..][..width], g);
            }
        })
    })
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::super::TokenTable;
    use super::super::add::cuda::{gradient_to_add, on_gpu};
    use crate::cuda::{Array, Grid, kernel};
    use crate::tensor::{DeviceError, Matrix, Record, Store, Weight, record_on_gpu};

    pub(super) fn embed_tokens<T: Record>(
        tokens: &[(u32, usize)],
        table: &TokenTable,
        positions: Option<&Weight>,
        width: usize,
        tape: T,
    ) -> Result<Matrix<T>, DeviceError> {
        let gpu = on_gpu(&table.rows).gpu();
        let layout = table.layout(width);
        let places = tokens.iter().flat_map(|(token, place)| {
            let (weight, row) = layout.place_of(*token);
            [weight as i32, row as i32, *place as i32]
        });
        let places = gpu.upload_i32(&places.collect::<Vec<_>>())?;
        let mut weights = table.weights().map(|weight| on_gpu(weight).array());
        let out = gpu.unset(tokens.len() * width, gpu.kind())?;
        let args = [
            weights.next().into(),
            weights.next().into(),
            weights.next().into(),
            positions.map(|positions| on_gpu(positions).array()).into(),
            (&places).into(),
            (&out).into(),
            width.into(),
        ];
        gpu.launch(kernel!("embed", gpu.kind()), Grid::rows(tokens.len(), width), &args)?;
        let wanted = table.is_trained() || positions.is_some_and(Weight::is_trained);
        let tokens = if wanted { tokens.to_vec() } else { Vec::new() };
        let (table, positions) = (table.clone(), positions.cloned());
        record_on_gpu(out, width, tape, wanted, move |grad_out, store| {
            for (this, weight) in table.weights().enumerate() {
                let rows = tokens.iter().enumerate().filter_map(|(i, (token, _))| {
                    let (of, row) = layout.place_of(*token);
                    (of == this).then_some((row, i))
                });
                add_rows(weight, store, &grad_out, width, rows)?;
            }
            let Some(positions) = positions else { return Ok(()) };
            let rows = tokens.iter().enumerate().map(|(i, (_, place))| (*place, i));
            add_rows(&positions, store, &grad_out, width, rows)
        })
    }

    /// Adds rows of the gradient to rows of a weight's: pairs of a row there and a row of `grad_out`. Those
    /// of one row are added in their order.
    fn add_rows(
        weight: &Weight,
        store: &mut Store,
        grad_out: &Array,
        width: usize,
        pairs: impl Iterator<Item = (usize, usize)>,
    ) -> Result<(), DeviceError> {
        let Some(gradient) = gradient_to_add(weight, store)? else { return Ok(()) };
        let mut pairs: Vec<(usize, usize)> = pairs.collect();
        pairs.sort_unstable();
        let (mut targets, mut starts, mut order) = (Vec::new(), Vec::new(), Vec::new());
        for (to, from) in pairs {
            if targets.last() != Some(&(to as i32)) {
                targets.push(to as i32);
                starts.push(order.len() as i32);
            }
            order.push(from as i32);
        }
        starts.push(order.len() as i32);
        let gpu = grad_out.gpu();
        let groups = targets.len();
        let [targets, starts, order] =
            [gpu.upload_i32(&targets)?, gpu.upload_i32(&starts)?, gpu.upload_i32(&order)?];
        let args = [
            grad_out.into(),
            (&targets).into(),
            (&starts).into(),
            (&order).into(),
            gradient.into(),
            width.into(),
        ];
        Ok(gpu.launch(kernel!("add_groups", grad_out.kind()), Grid::rows(groups, width), &args)?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ops::MovedRows;
    use crate::ops::gradient_check::{check, pseudo_random};

    #[test]
    fn values_and_gradients_equal_the_formula() {
        let tokens = vec![(2, 0), (0, 1), (2, 2), (1, 0), (1, 1), (2, 2)];
        check(
            &[],
            &[pseudo_random(9, 1), pseudo_random(9, 2)],
            |t, _, w| {
                embed_tokens(tokens.clone(), &w[0].clone().into(), Some(&w[1]), 3, t).unwrap()
            },
            |t, _, w| {
                embed_tokens(tokens.clone(), &w[0].clone().into(), Some(&w[1]), 3, t).unwrap()
            },
            |_, w| {
                let of = |(token, place): &(u32, usize)| {
                    [0, 1, 2].map(|c| w[0][*token as usize * 3 + c] + w[1][place * 3 + c])
                };
                tokens.iter().flat_map(of).collect()
            },
        );
        // Tokens 0 and 1, of which 0 was moved, and 2, which was added.
        let three = |w: &[Weight]| TokenTable {
            rows: w[0].clone(),
            added: Some(w[1].clone()),
            moved: Some(MovedRows { tokens: Arc::from([0]), rows: w[2].clone() }),
        };
        check(
            &[],
            &[pseudo_random(6, 1), pseudo_random(3, 2), pseudo_random(3, 3)],
            |t, _, w| embed_tokens(tokens.clone(), &three(w), None, 3, t).unwrap(),
            |t, _, w| embed_tokens(tokens.clone(), &three(w), None, 3, t).unwrap(),
            |_, w| {
                let rows = [&w[2][..], &w[0][3..], &w[1]];
                tokens.iter().flat_map(|(token, _)| rows[*token as usize].to_vec()).collect()
            },
        );
    }
}
