//! Every metric equals the official tools, on the files in the program and on the official data beside the
//! checkout, all of whose values are compared.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

const PARITY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/parity");

fn self_check(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
    command.arg("self-check").args(args).output().unwrap()
}

/// Checks, of which each passed; with the values of each.
fn passed(output: &Output) -> Vec<usize> {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let rows = text.lines().skip(2).take_while(|line| !line.is_empty());
    let values = rows.map(|row| {
        let is_skipped =
            ["skipped: no WordNet", "skipped: METEOR needs"].iter().any(|why| row.contains(why));
        assert!(row.contains(" equal ") || is_skipped, "{row}");
        row.split("  ").find_map(|cell| cell.trim().parse().ok()).unwrap()
    });
    values.collect()
}

#[test]
fn every_metric_equals_its_tool_on_the_files_in_the_program() {
    assert_eq!(passed(&self_check(&[])).len(), 25);
}

#[test]
fn every_value_of_the_official_data_is_equal() {
    if !Path::new(PARITY).exists() {
        eprintln!("skipped: no parity data at {PARITY}");
        return;
    }
    let values = passed(&self_check(&["--data", PARITY]));
    assert_eq!(values.len(), 31);
    // Tokens, words, answers and images one by one.
    let of_meteor = if std::env::var_os("METEOR_DATA").is_some() { 6002 } else { 0 };
    assert_eq!(values.iter().sum::<usize>(), 239_612 + of_meteor);
}

#[test]
fn a_folder_without_the_values_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let output = self_check(&["--data", folder.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("cannot read") && text.contains("reference-values.json"), "{text}");
}
