//! Times every custom operation alone, forward and with its gradients.
//!
//! `cargo bench -p flamingo-model --bench ops --features ops-bench` runs divan's benches, then prints
//! a Markdown table; `-- attention` runs those whose name contains `attention`, `-- table` prints the
//! table alone. A share of the peak is that of the fastest square product in the same run with the same
//! threads.
#![expect(clippy::print_stdout, reason = "a bench reports on standard output")]

use std::time::{Duration, Instant};

use divan::Bencher;
use divan::counter::ItemsCount;
use flamingo_model::DeviceError;
use flamingo_model::ops_bench::{CASES, Case, Pass, n_threads, square};

fn main() -> Result<(), DeviceError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --all-targets` starts benches too, without this flag: nothing is timed then.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let alone = arguments.iter().any(|argument| argument == "table");
    if !alone {
        divan::main();
    }
    let all = arguments.iter().all(|argument| argument == "--bench");
    if alone || all { table() } else { Ok(()) }
}

#[divan::bench(args = CASES, max_time = 1)]
fn forward(bencher: Bencher, case: &Case) {
    bench(bencher, case, Pass::Forward, case.flop);
}

#[divan::bench(args = CASES, max_time = 1)]
fn forward_and_backward(bencher: Bencher, case: &Case) {
    bench(bencher, case, Pass::Both, case.flop * case.times);
}

/// Items that divan counts are floating-point operations.
fn bench(bencher: Bencher, case: &Case, pass: Pass, flop: f64) {
    let run = (case.prepare)().expect("memory for the inputs");
    bencher.counter(ItemsCount::new(flop as u64)).bench_local(|| run(pass).expect("memory"));
}

/// Timed runs, after two that are not timed: as many as fit this time, within these limits.
const TIME: Duration = Duration::from_millis(600);
const RUNS: std::ops::RangeInclusive<usize> = 7..=101;

/// Median and shortest seconds of `run`.
fn seconds<E>(mut run: impl FnMut() -> Result<(), E>) -> Result<(f64, f64), E> {
    let mut seconds = Vec::new();
    let mut start = Instant::now();
    while seconds.len() < RUNS.start() + 2
        || (start.elapsed() < TIME && seconds.len() < RUNS.end() + 2)
    {
        if seconds.len() == 2 {
            start = Instant::now();
        }
        let begun = Instant::now();
        run()?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    seconds.drain(..2);
    seconds.sort_by(f64::total_cmp);
    Ok((seconds[seconds.len() / 2], seconds[0]))
}

/// GFLOP/s of the fastest square product.
fn peak() -> Result<f64, DeviceError> {
    let mut best = 0.0_f64;
    for n in [512, 1024, 2048] {
        let product = square(n);
        let (_, shortest) = seconds(|| {
            product();
            Ok::<(), DeviceError>(())
        })?;
        best = best.max(2e-9 * (n * n * n) as f64 / shortest);
    }
    Ok(best)
}

fn table() -> Result<(), DeviceError> {
    let peak = peak()?;
    println!("\n{} threads; the fastest square product makes {peak:.0} GFLOP/s\n", n_threads());
    println!(
        "| operation | shape | forward, ms | GFLOP/s | of peak | both, ms | GFLOP/s | of peak |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for case in CASES {
        let run = (case.prepare)()?;
        let columns = [(Pass::Forward, 1.0), (Pass::Both, case.times)].map(|(pass, times)| {
            let (median, _) = seconds(|| run(pass))?;
            let speed = 1e-9 * case.flop * times / median;
            let share = 100.0 * speed / peak;
            Ok::<String, DeviceError>(if case.flop > 0.0 {
                format!("{:.3} | {speed:.0} | {share:.0} %", 1e3 * median)
            } else {
                format!("{:.3} | | ", 1e3 * median)
            })
        });
        let [forward, both] = columns;
        println!("| {} | {} | {} | {} |", case.name, case.shape, forward?, both?);
    }
    Ok(())
}
