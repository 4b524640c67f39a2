//! Agreement with the official caption tools on their own data, which lies beside the checkout.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and says what it skips"
)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use flamingo_eval::metrics::bleu::{bleu_counts, total};
use flamingo_eval::metrics::captions::{CaptionPair, CaptionSet, Words};
use flamingo_eval::metrics::cider::cider_d_of;
use flamingo_eval::metrics::ptb_tokenize::PtbTokenizer;
use flamingo_eval::metrics::ranking::{ndcg, rank, rank_scores};
use flamingo_eval::metrics::roc_auc::{average_precision, roc_auc};
use flamingo_eval::metrics::rouge::rouge_l;
use flamingo_eval::metrics::vqa::{HumanAnswer, VqaRule, agreement, normalised, vqa_accuracy};
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

fn close(what: &str, found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-9, "{what}: {found} against {expected}");
}

/// Scores must equal the official ones, in the mean and image by image.
fn check_captions(set: &str, ground_truth: &str, results: &str) {
    let (Some(truth), Some(results), Some(official), Some(values)) = (
        parity(&format!("coco-caption/{ground_truth}")),
        parity(&format!("coco-caption/{results}")),
        parity(&format!("coco-caption/per_image_{set}.json")),
        parity("reference-values.json"),
    ) else {
        return;
    };
    let references = captions_by_image(&truth["annotations"]);
    let predictions = captions_by_image(&results);
    let ids: Vec<i64> =
        official["image_ids"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
    let pair = |id: &i64| CaptionPair {
        prediction: predictions[id][0],
        references: references[id].clone(),
    };
    let pairs: Vec<CaptionPair<'_>> = ids.iter().map(pair).collect();
    for (words, key) in [
        (Words::Ptb, "scores"),
        (Words::WhiteSpace, "scores_without_PTB_tokenizer(VLMEvalKit style)"),
    ] {
        let words = CaptionSet::of(&pairs, words);
        let (cider, rouge, bleu) = (cider_d_of(&words), rouge_l(&words), bleu_counts(&words));
        let expected = &values["coco_caption"][set][key];
        let mean = |scores: &[f64]| scores.iter().sum::<f64>() / scores.len() as f64;
        close("CIDEr", mean(&cider), expected["CIDEr"].as_f64().unwrap());
        close("ROUGE-L", mean(&rouge), expected["ROUGE_L"].as_f64().unwrap());
        for (n, found) in total(&bleu).scores().into_iter().enumerate() {
            let one = expected.get(format!("Bleu_{}", n + 1));
            let expected = one.unwrap_or_else(|| &expected["Bleu"][n]).as_f64().unwrap();
            close(&format!("BLEU-{}", n + 1), found, expected);
        }
        if key != "scores" {
            continue;
        }
        for (name, scores) in [("CIDEr", &cider), ("ROUGE_L", &rouge)] {
            let theirs = official["per_image"][name].as_array().unwrap();
            for ((id, score), theirs) in ids.iter().zip(scores).zip(theirs) {
                close(&format!("{name} of image {id}"), *score, theirs.as_f64().unwrap());
            }
        }
    }
}

#[test]
fn scores_of_the_fake_captions_are_the_official_ones() {
    let (truth, results) =
        ("captions_val2014_fakecap1000_gt.json", "captions_val2014_fakecap_results.json");
    check_captions("fakecap1000", truth, results);
}

#[test]
fn scores_of_the_human_captions_are_the_official_ones() {
    check_captions("human5k", "human5k_gt.json", "human5k_results.json");
}

#[test]
fn answers_are_normalised_as_officially() {
    let Some(pairs) = parity("vqa/vqa_normaliser_pairs.json") else { return };
    for pair in pairs.as_array().unwrap() {
        let (raw, expected) = (pair[0].as_str().unwrap(), pair[2].as_str().unwrap());
        assert_eq!(normalised(raw), expected, "{raw:?}");
    }
}

fn human_answers(annotation: &Value) -> Vec<HumanAnswer> {
    let answers = annotation["answers"].as_array().unwrap().iter();
    answers.map(|answer| serde_json::from_value(answer.clone()).unwrap()).collect()
}

#[test]
fn vqa_accuracy_of_each_rule_is_its_tools() {
    let (Some(annotations), Some(results), Some(values)) = (
        parity("vqa/textvqa_val_annotations_vqa_format.json"),
        parity("vqa/textvqa_val_synthetic_results.json"),
        parity("reference-values.json"),
    ) else {
        return;
    };
    let results = results.as_array().unwrap().iter();
    let predictions: BTreeMap<i64, &str> = results
        .map(|row| (row["question_id"].as_i64().unwrap(), row["answer"].as_str().unwrap()))
        .collect();
    for (rule, tool) in [
        (VqaRule::Official, "official_GT-Vision-Lab"),
        (VqaRule::OpenFlamingo, "open_flamingo_port"),
    ] {
        let scores: Vec<f64> = annotations["annotations"]
            .as_array()
            .unwrap()
            .iter()
            .map(|annotation| {
                let prediction = predictions[&annotation["question_id"].as_i64().unwrap()];
                vqa_accuracy(rule, prediction, &human_answers(annotation))
            })
            .collect();
        let mean = 100.0 * scores.iter().sum::<f64>() / scores.len() as f64;
        let expected = &values["vqa"]["values"][format!("textvqa/{tool}/as_file")];
        close(tool, mean, expected["overall_unrounded"].as_f64().unwrap());
    }
}

#[test]
fn vizwiz_leaves_out_one_answer_and_not_all_that_equal_it() {
    let (Some(annotations), Some(values)) =
        (parity("vqa/vizwiz_val_annotations_vqa_format.json"), parity("reference-values.json"))
    else {
        return;
    };
    let expected = &values["vqa"]["vizwiz_oracle_mode_answer"];
    let mut sum = 0.0;
    let annotations = annotations["annotations"].as_array().unwrap();
    for annotation in annotations {
        let answers = human_answers(annotation);
        // Of answers given equally often, the first.
        let count = |text: &str| answers.iter().filter(|other| other.answer == text).count();
        let most = answers.iter().map(|answer| count(&answer.answer)).max().unwrap();
        let mode = answers.iter().find(|answer| count(&answer.answer) == most).unwrap();
        sum += agreement(VqaRule::ByIndex, &mode.answer, &answers);
    }
    let found = 100.0 * sum / annotations.len() as f64;
    close("VizWiz", found, expected["leave_one_out_by_index"].as_f64().unwrap());
}

#[test]
fn rankings_and_areas_are_the_reference_ones() {
    let numbers = |value: &Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
    };
    if let Some(dialogs) = parity("visdial_synthetic.json") {
        let rows = |key: &str| dialogs[key].as_array().unwrap().iter();
        let (mut gains, mut ranks) = (Vec::new(), Vec::new());
        for ((scores, relevance), right) in
            rows("scores").zip(rows("relevance")).zip(rows("gt_index"))
        {
            let (scores, right) = (numbers(scores), right.as_u64().unwrap() as usize);
            gains.push(ndcg(&scores, &numbers(relevance)).unwrap_or_default());
            ranks.push(rank(&scores, right));
        }
        for (found, theirs) in gains.iter().zip(rows("per_dialog_ndcg")) {
            let theirs = theirs.as_f64().unwrap();
            assert!((found - theirs).abs() < 1e-6, "{found} against {theirs} in f32");
        }
        let expected = |key: &str| dialogs["reference"][key].as_f64().unwrap();
        let found = gains.iter().sum::<f64>() / gains.len() as f64;
        assert!((found - expected("ndcg")).abs() < 1e-6, "{found}");
        let found = rank_scores(&ranks);
        for (found, key) in [
            (found.recall[0], "r@1"),
            (found.recall[1], "r@5"),
            (found.recall[2], "r@10"),
            (found.mean, "mean"),
        ] {
            assert!((found - expected(key)).abs() < 1e-5 * expected(key), "{key}: {found}");
        }
        assert!((found.mean_reciprocal - expected("mrr")).abs() < 1e-6);
    }
    if let Some(answers) = parity("roc_auc_synthetic.json") {
        let truths = answers["y"].as_array().unwrap().iter().map(|y| y.as_f64() == Some(1.0));
        let judged: Vec<(f64, bool)> = numbers(&answers["score"]).into_iter().zip(truths).collect();
        close("ROC-AUC", roc_auc(&judged).unwrap(), answers["roc_auc"].as_f64().unwrap());
        let expected = answers["average_precision"].as_f64().unwrap();
        close("average precision", average_precision(&judged).unwrap(), expected);
    }
}

/// Every [caption, tokens] pair must agree, whatever the tokenizer has met before.
fn check_tokens(file: &str) {
    let Some(pairs) = parity(file) else { return };
    let mut tokenizer = PtbTokenizer::default();
    for pair in pairs.as_array().unwrap() {
        let (caption, expected) = (pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
        let mut tokens = Vec::new();
        tokenizer.each_token(caption, |token| tokens.push(token.to_owned()));
        assert_eq!(tokens.join(" "), expected, "tokens of {caption:?}");
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
