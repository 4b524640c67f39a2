//! `bench` counts the operations of a step by its parts, and answers prompts to their end.

use std::process::{Command, Output};

use serde_json::Value;

fn bench(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-train"));
    command.args(["bench", "--device", "cpu", "--steps", "2", "--warm", "1"]).args(args);
    command.output().unwrap()
}

/// The lines of JSON on standard output.
fn figures(args: &[&str]) -> Vec<Value> {
    let output = bench(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_step_is_counted_by_its_parts() {
    let sizes = ["--preset", "tiny", "--batch", "3", "--tokens", "12", "--images", "2", "--json"];
    let all = figures(&[&sizes[..], &["--peak-tflops", "2"]].concat());
    let [figures] = &*all else { panic!("{all:?}") };
    let parameters = |part: &str| figures["parameters"][part].as_f64().unwrap();
    let check = |part: &str, expected: f64| {
        let found = figures["flop_parts"][part].as_f64().unwrap();
        assert!((found - expected).abs() < 0.5, "{part}: {found}, not {expected}");
    };
    // The last token of a sequence predicts nothing.
    let (tokens, images) = (3.0 * 11.0, 3.0 * 2.0);
    // Learned positions, 16 of width 8, multiply nothing.
    check("language", 4.0 * (parameters("language") - 16.0 * 8.0) * tokens);
    let crossing = parameters("cross_attention") + parameters("added_rows");
    check("cross_attention", 6.0 * crossing * tokens);
    // Two latents an image; four patches and the class token.
    check("resampler", 6.0 * parameters("resampler") * images * 2.0);
    check("vision", 2.0 * parameters("vision") * images * 5.0);
    assert_eq!(figures["parameters"]["added_rows"], 2 * 8);
    let number = |key: &str| figures[key].as_f64().unwrap();
    let rate = number("samples_per_second") * number("seconds") / 3.0;
    assert!((rate - 1.0).abs() < 1e-9, "{rate}");
    let mfu = number("flop") / number("seconds") / 2e12;
    assert!((number("mfu") / mfu - 1.0).abs() < 1e-9, "{figures}");
    assert!(number("loss").is_finite() && number("gradient_norm") > 0.0, "{figures}");
    assert_eq!(
        (figures["device"].as_str(), &figures["peak_bytes"]),
        (Some("CPU (f32)"), &Value::Null)
    );
}

#[test]
fn a_model_that_does_not_fit_into_memory_is_told_of_before_it_is_made() {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let free = free.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    if free.is_none_or(|kilobytes| kilobytes > 200_000_000) {
        eprintln!("skipped: this machine may have memory for the largest model");
        return;
    }
    for what in [&[][..], &["--score"]] {
        let output = bench(&[&["--preset", "flamingo-80b"], what].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        let is_told = stderr.starts_with("error: flamingo-80b takes ");
        assert!(is_told && stderr.contains("--force") && stderr.contains("weights"), "{stderr}");
        assert_eq!(stderr.contains("gradients and moments"), what.is_empty(), "{stderr}");
    }
}

#[test]
fn prompts_are_written_to_their_end_and_scored() {
    let prompts = ["--prompts", "2", "--shots", "1", "--tokens-per-shot", "3", "--json"];
    let jobs = ["--preset", "tiny", "--write-tokens", "4", "--score"];
    let all = figures(&[&jobs[..], &prompts].concat());
    let [written, scored] = &*all else { panic!("{all:?}") };
    assert_eq!((&written["bench"], &scored["bench"]), (&"generate".into(), &"score".into()));
    assert_eq!(written["first"].as_array().unwrap().len(), 4);
    assert!(scored["first"].as_f64().unwrap() < 0.0);
    assert_eq!((&scored["prompt_tokens"], &scored["images"]), (&6.into(), &2.into()));
}

#[test]
fn a_model_of_a_file_is_timed_and_wrong_sizes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    let config = flamingo_model::FlamingoConfig::preset("tiny").unwrap();
    std::fs::write(&file, serde_json::to_string(&config).unwrap()).unwrap();
    let file = file.to_str().unwrap();
    let sizes = ["--batch", "1", "--tokens", "8"];
    let output = bench(&[&["--model", file, "--recompute", "all"], &sizes[..]].concat());
    let stdout = String::from_utf8_lossy(&output.stdout);
    for word in ["step: seconds", "samples/s", "tokens/s", "TFLOP/s", "peak memory"] {
        assert!(stdout.contains(word), "no {word} in {stdout}");
    }
    assert!(!stdout.contains("MFU"), "nobody said what this CPU can do: {stdout}");
    let output = bench(&["--preset", "tiny", "--tokens", "17"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("error: cannot run the model") && stderr.contains("17"), "{stderr}");
}
