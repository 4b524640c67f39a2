//! WUPS equals the official tool on NLTK question by question. Needs the official data beside the checkout,
//! and the database of the Debian package `wordnet-base`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use flamingo_eval::metrics::wordnet::WordNet;
use flamingo_eval::metrics::wups::{Wups, WupsItem, WupsText};
use serde_json::Value;

const PARITY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/parity/next-oe");

/// The JSON file, or none with a line that says so.
fn parity(file: &str) -> Option<Value> {
    let path = PathBuf::from(PARITY).join(file);
    let Ok(bytes) = std::fs::read(&path) else {
        eprintln!("skipped: no parity data at {}", path.display());
        return None;
    };
    Some(serde_json::from_slice(&bytes).unwrap())
}

#[test]
fn every_answer_has_the_credit_of_the_official_tool() {
    let Some(reference) = parity("wups_reference_val.json") else { return };
    let wordnet = WordNet::open(None).unwrap();
    let mut wups = Wups::new(&wordnet);
    for (name, text, threshold) in [
        ("wups0_raw", WupsText::Raw, 0.0),
        ("wups9_raw", WupsText::Raw, 0.9),
        ("wups0_stop", WupsText::WithoutStopWords, 0.0),
        ("wups9_stop", WupsText::WithoutStopWords, 0.9),
    ] {
        let mut sums = BTreeMap::<String, (f64, f64)>::new();
        for question in reference["per_question"].as_array().unwrap() {
            let part = |key: &str| question[key].as_str().unwrap();
            let item = WupsItem {
                prediction: part("pred"),
                references: &[part("gt").to_owned()],
                question_type: part("type"),
            };
            let found = wups.credit(&item, text, threshold).unwrap();
            let expected = question[name].as_f64().unwrap();
            assert!((found - expected).abs() < 1e-12, "{name} of {question}: {found}");
            let kind = if part("type") == "TP" { "TN" } else { part("type") };
            for group in ["all", &kind[..1], kind] {
                let sum = sums.entry(group.to_owned()).or_default();
                *sum = (sum.0 + found, sum.1 + 1.0);
            }
        }
        for (group, (sum, n)) in sums {
            let expected = reference["summary_pct"][name][&group].as_f64().unwrap();
            assert!((100.0 * sum / n - expected).abs() < 1e-9, "{name} of {group}");
        }
    }
}
