//! Times operations on the first GPU, and prints a Markdown table.
//!
//! `cargo bench -p flamingo-model --bench gpu --features cuda,ops-bench`. Launches are queued back to back and
//! timed by the clock of the host from one wait to the next, so that the table shows what a step pays. PyTorch's
//! side: `benches/torch_flamingo.py gemm` and `attention`.
#![expect(clippy::print_stdout, reason = "a bench reports on standard output")]

use std::time::Instant;

use flamingo_model::DeviceError;
use flamingo_model::gpu_bench::{CASES, name, wait};

/// Runs before the clock starts, rounds that are timed, and runs of a round.
const WARM: usize = 3;
const ROUNDS: usize = 7;
const RUNS: usize = 10;

fn main() -> Result<(), DeviceError> {
    // `cargo test --all-targets` starts benches too, without this flag: nothing is timed then.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    println!("{}\n", name()?);
    println!("| operation | ms | TFLOP/s | GB/s |\n| --- | --- | --- | --- |");
    for prepare in CASES {
        let mut case = match prepare() {
            Ok(case) => case,
            Err(error) => {
                println!("| passed over: {error} | | | |");
                continue;
            }
        };
        for _ in 0..WARM {
            (case.run)()?;
        }
        wait()?;
        let mut seconds = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            let start = Instant::now();
            for _ in 0..RUNS {
                (case.run)()?;
            }
            wait()?;
            seconds.push(start.elapsed().as_secs_f64() / RUNS as f64);
        }
        seconds.sort_by(f64::total_cmp);
        let median = seconds[ROUNDS / 2];
        let rate = |n: f64, unit: f64| {
            if n > 0.0 { format!("{:.0}", n / median / unit) } else { "-".to_owned() }
        };
        let (flop, bytes) = (rate(case.flop, 1e12), rate(case.bytes, 1e9));
        println!("| {} | {:.3} | {flop} | {bytes} |", case.name, median * 1e3);
    }
    Ok(())
}
