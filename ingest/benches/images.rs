//! Images of a folder through the rules of an ingest run, one thread, for `images.py`.
//!
//! `images FOLDER PLAN ROUNDS [OUT]` prints, as JSON, the images that were kept, the CPU seconds that
//! they took and the growth of the peak of memory; OUT takes the files that would be stored.

#![allow(clippy::print_stdout, reason = "images.py reads the figures there")]

use std::path::{Path, PathBuf};

use bytes::Bytes;
use flamingo_ingest::image::prepare;
use flamingo_ingest::plan::BuildPlan;

fn main() {
    // Cargo adds `--bench`.
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [folder, plan, rounds, out @ ..] = &arguments[..] else {
        eprintln!("images.rs: run by images.py");
        return;
    };
    let rules = BuildPlan::load(Some(Path::new(plan))).expect("the plan is valid").image;
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("the folder can be read")
        .map(|entry| entry.expect("the folder can be read").path())
        .collect();
    paths.sort();
    let files: Vec<Bytes> =
        paths.iter().map(|path| std::fs::read(path).expect("a file").into()).collect();

    let rounds: u32 = rounds.parse().expect("a number of rounds");
    let (peak, start) = (peak_bytes(), cpu_seconds());
    let mut kept = 0;
    for _ in 0..rounds {
        kept = files.iter().filter(|bytes| prepare(bytes, &rules).picture.is_ok()).count();
    }
    let seconds = (cpu_seconds() - start) / f64::from(rounds);
    let grown = peak_bytes() - peak;
    println!("{{\"kept\": {kept}, \"cpu_s\": {seconds}, \"grown_bytes\": {grown}}}");

    for out in out {
        for (path, bytes) in paths.iter().zip(&files) {
            if let Ok(picture) = prepare(bytes, &rules).picture {
                let name = path.file_name().expect("a file has a name");
                std::fs::write(Path::new(out).join(name), picture.image.bytes).expect("room");
            }
        }
    }
}

/// User and system time of this process, from the kernel's clock of nanoseconds.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The peak of this process's memory.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux");
    1024 * line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB")
}
