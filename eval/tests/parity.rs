//! Agreement with the official caption tools on their own data, which lies beside the checkout.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and says what it skips"
)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use flamingo_eval::cider::{CaptionPair, cider_d};
use flamingo_eval::ptb_tokenize::ptb_tokens;
use serde_json::Value;

const PARITY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/parity");

/// The JSON file, or none with a line that says so.
fn parity(file: &str) -> Option<Value> {
    let path = PathBuf::from(PARITY).join(file);
    let Ok(bytes) = std::fs::read(&path) else {
        println!("skipped: no parity data at {}", path.display());
        return None;
    };
    Some(serde_json::from_slice(&bytes).expect("parity data is JSON"))
}

/// Captions by image.
fn captions_by_image(rows: &Value) -> BTreeMap<i64, Vec<&str>> {
    let mut images = BTreeMap::<i64, Vec<&str>>::new();
    for row in rows.as_array().unwrap() {
        let caption = row["caption"].as_str().unwrap();
        images.entry(row["image_id"].as_i64().unwrap()).or_default().push(caption);
    }
    images
}

/// Scores must equal the official ones, in the mean and image by image.
fn check_cider(ground_truth: &str, results: &str, per_image: &str, set: &str) {
    let (Some(truth), Some(results), Some(official), Some(values)) =
        (parity(ground_truth), parity(results), parity(per_image), parity("reference-values.json"))
    else {
        return;
    };
    let references = captions_by_image(&truth["annotations"]);
    let predictions = captions_by_image(&results);
    let ids: Vec<i64> =
        official["image_ids"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
    let pairs: Vec<CaptionPair<'_>> = ids
        .iter()
        .map(|id| CaptionPair {
            prediction: predictions[id][0],
            references: references[id].clone(),
        })
        .collect();
    let scores = cider_d(&pairs);
    let theirs = official["per_image"]["CIDEr"].as_array().unwrap();
    for ((id, score), theirs) in ids.iter().zip(&scores).zip(theirs) {
        let theirs = theirs.as_f64().unwrap();
        assert!((score - theirs).abs() < 1e-9, "image {id}: {score} against {theirs}");
    }
    let mean = scores.iter().sum::<f64>() / scores.len() as f64;
    let expected = values["coco_caption"][set]["scores"]["CIDEr"].as_f64().unwrap();
    assert!((mean - expected).abs() < 1e-9, "{set}: {mean} against {expected}");
}

#[test]
fn cider_of_the_fake_captions_is_the_official_one() {
    check_cider(
        "coco-caption/captions_val2014_fakecap1000_gt.json",
        "coco-caption/captions_val2014_fakecap_results.json",
        "coco-caption/per_image_fakecap1000.json",
        "fakecap1000",
    );
}

#[test]
fn cider_of_the_human_captions_is_the_official_one() {
    check_cider(
        "coco-caption/human5k_gt.json",
        "coco-caption/human5k_results.json",
        "coco-caption/per_image_human5k.json",
        "human5k",
    );
}

/// Every [caption, tokens] pair must agree.
fn check_tokens(file: &str) {
    let Some(pairs) = parity(file) else { return };
    for pair in pairs.as_array().unwrap() {
        let (caption, expected) = (pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
        assert_eq!(ptb_tokens(caption).join(" "), expected, "tokens of {caption:?}");
    }
}

#[test]
fn tokens_of_all_coco_captions_are_the_official_ones() {
    check_tokens("coco-caption/ptb_pairs_val2014_all.json");
}

#[test]
fn tokens_of_odd_strings_are_the_official_ones() {
    check_tokens("ptb_tokenizer_stress.json");
}
