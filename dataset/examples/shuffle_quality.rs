//! Tells how well an order mixes a corpus of so many rows.
//!
//! ```sh
//! cargo run --release -p flamingo-dataset --example shuffle_quality -- ROWS BATCH [BLOCK_ROWS GROUP_BLOCKS]
//! ```

#![allow(clippy::print_stdout, reason = "the example is run for what it prints")]

use std::error::Error;
use std::time::Instant;

use flamingo_dataset::{EpochOrder, Shuffle, ShuffleQuality};

fn main() -> Result<(), Box<dyn Error>> {
    let numbers = std::env::args().skip(1).map(|number| number.parse());
    let numbers = numbers.collect::<Result<Vec<u64>, _>>()?;
    let (n_rows, batch, shuffle) = match numbers[..] {
        [n_rows, batch] => (n_rows, batch, Shuffle::default()),
        [n_rows, batch, block_rows, group_blocks] => {
            (n_rows, batch, Shuffle { block_rows, group_blocks })
        }
        _ => return Err("expected ROWS BATCH [BLOCK_ROWS GROUP_BLOCKS]".into()),
    };
    let started = Instant::now();
    let order = EpochOrder::new(n_rows, shuffle, &[0]);
    let ShuffleQuality { displacement, neighbours, neighbours_uniform } = order.quality(batch);
    let ns = started.elapsed().as_secs_f64() * 1e9 / n_rows as f64;
    println!("{n_rows} rows, batches of {batch}, {shuffle:?}");
    println!("mean displacement {displacement:.4} of the corpus (uniform: 0.3333)");
    println!(
        "neighbours in one batch {:.5} % (uniform: {:.5} %)",
        100.0 * neighbours,
        100.0 * neighbours_uniform
    );
    println!("{ns:.0} ns a row");
    Ok(())
}
