//! The official data, in the layout of `data/parity`: every value of its `reference-values.json` that a metric
//! here has.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Check, TOLERANCE, figure, similarities};
use crate::error::EvalError;
use crate::metric::Metric;
use crate::metrics::ptb_tokenize::PtbTokenizer;
use crate::metrics::ranking::{ndcg, rank, rank_scores};
use crate::metrics::roc_auc::{Judged, average_precision, roc_auc};
use crate::metrics::vqa::{HumanAnswer, VqaRule, agreement, normalised};
use crate::metrics::wordnet::WordNet;
use crate::score::{Score, Scored, scored, scored_bytes};

/// The folder, with its values.
struct Data<'a> {
    folder: &'a Path,
    values: Value,
    wordnet: Option<&'a Path>,
}

/// Checks everything in a folder.
pub(super) fn checks(folder: &Path, wordnet: Option<&Path>) -> Result<Vec<Check>, EvalError> {
    let data = Data { folder, values: read(&folder.join("reference-values.json"))?, wordnet };
    let mut checks = Vec::new();
    for set in ["fakecap1000", "human5k"] {
        data.captions(set, &mut checks)?;
    }
    checks.push(data.tokens("coco-caption/ptb_pairs_val2014_all.json")?);
    checks.push(data.tokens("ptb_tokenizer_stress.json")?);
    data.answers(&mut checks)?;
    checks.push(data.normaliser()?);
    data.vizwiz(&mut checks)?;
    data.next_choice(&mut checks)?;
    data.next_open(&mut checks)?;
    checks.push(data.clips()?);
    checks.push(data.labels()?);
    checks.push(data.dialogs()?);
    Ok(checks)
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, EvalError> {
    let bytes = std::fs::read(path).map_err(EvalError::file("read", path))?;
    serde_json::from_slice(&bytes).map_err(|error| EvalError::Annotations {
        path: path.to_path_buf(),
        problem: error.to_string(),
    })
}

/// Scores by image, in the order of `image_ids`.
#[derive(Deserialize)]
struct PerImage {
    image_ids: Vec<i64>,
    per_image: HashMap<String, Value>,
}

impl Data<'_> {
    fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// A number of the values; what is not there equals nothing.
    fn number(&self, pointer: &str) -> f64 {
        self.values.pointer(pointer).and_then(Value::as_f64).unwrap_or(f64::NAN)
    }

    fn score(&self, annotations: &str, predictions: &str, metrics: &[Metric]) -> Score {
        Score {
            metrics: metrics.to_vec(),
            wordnet: self.wordnet.map(Path::to_path_buf),
            ..Score::of(self.path(annotations), self.path(predictions))
        }
    }

    fn captions(&self, set: &str, checks: &mut Vec<Check>) -> Result<(), EvalError> {
        let root = format!("/coco_caption/{set}");
        let of = |key: &str| {
            let file = self.values.pointer(&format!("{root}/{key}")).and_then(Value::as_str);
            file.map(str::to_owned).unwrap_or_default()
        };
        // The note of the second set names no files.
        let file =
            |key: &str, otherwise: String| if of(key).is_empty() { otherwise } else { of(key) };
        let truth = file("gt", format!("coco-caption/{set}_gt.json"));
        let said = file("res", format!("coco-caption/{set}_results.json"));
        let coco = [Metric::BleuCoco, Metric::RougeCoco, Metric::CiderCoco];
        let plain = [Metric::BleuNoPtb, Metric::RougeNoPtb, Metric::CiderNoPtb];
        let score = self.score(&truth, &said, &[coco, plain].concat());
        let scored = scored(&score)?;
        let per_image: PerImage = read(&self.path(&format!("coco-caption/per_image_{set}.json")))?;
        for (rule, tool) in [("coco", "pycocoevalcap"), ("no-ptb", "pycocoevalcap, no tokenizer")] {
            let group = if rule == "coco" {
                "scores".to_owned()
            } else {
                "scores_without_PTB_tokenizer(VLMEvalKit style)".to_owned()
            };
            let mut bleu = Check::of(&format!("bleu:{rule} {set}"), tool, TOLERANCE);
            for n in 1..=4 {
                let pointer = if rule == "coco" {
                    format!("{root}/{group}/Bleu_{n}")
                } else {
                    format!("{root}/{group}/Bleu/{}", n - 1)
                };
                let name = format!("bleu-{n}:{rule}");
                bleu.value(&name, figure(&scored, &name), self.number(&pointer));
            }
            checks.push(bleu);
            for (family, key) in [("rouge", "ROUGE_L"), ("cider", "CIDEr")] {
                let name = format!("{family}:{rule}");
                let mut check = Check::of(&format!("{name} {set}"), tool, TOLERANCE);
                let expected = self.number(&format!("{root}/{group}/{key}"));
                check.value(&name, figure(&scored, &name), expected);
                if rule == "coco" {
                    per_image_check(&mut check, &scored, &name, key, &per_image);
                }
                checks.push(check);
            }
        }
        Ok(())
    }

    fn tokens(&self, file: &str) -> Result<Check, EvalError> {
        let pairs: Vec<(String, String)> = read(&self.path(file))?;
        let name = file.rsplit('/').next().unwrap_or(file).trim_end_matches(".json");
        let mut check = Check::of(name, "CoreNLP 3.4.1", TOLERANCE);
        let mut tokenizer = PtbTokenizer::default();
        for (text, expected) in &pairs {
            let mut tokens = Vec::new();
            tokenizer.each_token(text, |token| tokens.push(token.to_owned()));
            check.text(text, &tokens.join(" "), expected);
        }
        Ok(check)
    }

    /// Both rules, on the answers as they are and with numbers.
    fn answers(&self, checks: &mut Vec<Check>) -> Result<(), EvalError> {
        let (truth, said) = (
            "vqa/textvqa_val_annotations_vqa_format.json",
            "vqa/textvqa_val_synthetic_results.json",
        );
        let metrics = [Metric::VqaOfficial, Metric::VqaOpenFlamingo];
        let score = self.score(truth, said, &metrics);
        let mut annotations: Value = read(&score.annotations)?;
        let predictions = std::fs::read(&score.predictions);
        let predictions = predictions.map_err(EvalError::file("read", &score.predictions))?;
        let as_file = scored(&score)?;
        for row in annotations["annotations"].as_array_mut().into_iter().flatten() {
            for (i, answer) in row["answers"].as_array_mut().into_iter().flatten().enumerate() {
                answer["answer_id"] = (i + 1).into();
            }
        }
        let numbered = scored_bytes(&score, annotations.to_string().as_bytes(), &predictions)?;
        for (metric, tool) in metrics.iter().zip(["official_GT-Vision-Lab", "open_flamingo_port"]) {
            let mut check = Check::of(&metric.name(), tool, TOLERANCE);
            for (scored, kind) in [(&as_file, "as_file"), (&numbered, "answer_id_added")] {
                let pointer = format!("/vqa/values/textvqa~1{tool}~1{kind}/overall_unrounded");
                let found = figure(scored, &metric.name()).map(|value| 100.0 * value);
                check.value(kind, found, self.number(&pointer));
            }
            checks.push(check);
        }
        Ok(())
    }

    fn normaliser(&self) -> Result<Check, EvalError> {
        let triples: Vec<(String, String, String)> =
            read(&self.path("vqa/vqa_normaliser_pairs.json"))?;
        let mut check = Check::of("vqa normaliser", "GT-Vision-Lab/VQA", TOLERANCE);
        for (text, _, expected) in &triples {
            check.text(text, &normalised(text), expected);
        }
        Ok(check)
    }

    /// The answer that most people gave, as it stands.
    fn vizwiz(&self, checks: &mut Vec<Check>) -> Result<(), EvalError> {
        #[derive(Deserialize)]
        struct File {
            annotations: Vec<Row>,
        }
        #[derive(Deserialize)]
        struct Row {
            answers: Vec<HumanAnswer>,
        }
        let file: File = read(&self.path("vqa/vizwiz_val_annotations_vqa_format.json"))?;
        for (rule, name, key) in [
            (VqaRule::ByIndex, "vqa:vizwiz-api", "leave_one_out_by_index"),
            (
                VqaRule::Official,
                "vqa:official",
                "leave_one_out_by_dict_inequality_(as_file,no answer_id)",
            ),
        ] {
            let mut sum = 0.0;
            for row in &file.annotations {
                let votes = |it: &HumanAnswer| {
                    row.answers.iter().filter(|other| other.answer == it.answer).count()
                };
                // Of equals, the first.
                let most = row.answers.iter().rev().max_by_key(|it| votes(it));
                let answer = most.map(|it| it.answer.as_str()).unwrap_or_default();
                sum += agreement(rule, answer, &row.answers);
            }
            let found = 100.0 * sum / file.annotations.len() as f64;
            let mut check = Check::of(&format!("{name} on VizWiz"), "majority answer", TOLERANCE);
            let expected = self.number(&format!("/vqa/vizwiz_oracle_mode_answer/{key}"));
            check.value(key, Some(found), expected);
            checks.push(check);
        }
        Ok(())
    }

    fn next_choice(&self, checks: &mut Vec<Check>) -> Result<(), EvalError> {
        for file in ["HGA-bert-ft-h256-val.json", "HGA-bert-ft-h256-val-example.json"] {
            let score =
                self.score("next-qa/val.csv", &format!("next-qa/{file}"), &[Metric::NextChoice]);
            let scored = scored(&score)?;
            let mut check = Check::of("next-qa:mc", "eval_mc.py of NExT-QA", TOLERANCE);
            let values = self.values.pointer(&format!("/next_qa_mc/values/{file}"));
            for (key, expected) in values.and_then(Value::as_object).into_iter().flatten() {
                let (found, scale) = match key.as_str() {
                    "n" => (Some(scored.n_predictions as f64), 1.0),
                    "all" => (figure(&scored, "next-qa:mc"), 100.0),
                    key => {
                        let kind = key.trim_start_matches("Acc_");
                        (figure(&scored, &format!("next-qa:mc/{kind}")), 100.0)
                    }
                };
                let found = found.map(|found| scale * found);
                check.value(key, found, expected.as_f64().unwrap_or(f64::NAN));
            }
            checks.push(check);
        }
        Ok(())
    }

    fn next_open(&self, checks: &mut Vec<Check>) -> Result<(), EvalError> {
        let tool = "metrics.py of NExT-OE on NLTK";
        let database = match WordNet::open(self.wordnet) {
            Ok(database) => database,
            Err(error) => {
                checks.push(Check::skipped("wups", tool, &error));
                return Ok(());
            }
        };
        let file = self.path("next-oe/wup_word_pairs.json");
        let rows: Vec<Vec<Value>> = read(&file)?;
        let mut check = Check::of("wup similarity", "NLTK", TOLERANCE);
        similarities(&mut check, &database, &rows)
            .map_err(|problem| EvalError::Annotations { path: file, problem })?;
        checks.push(check);
        let metrics = [Metric::Wups0Raw, Metric::Wups9Raw, Metric::Wups0Stop, Metric::Wups9Stop];
        let said = "next-oe/HGA-same-att-qns23ans7-val-example.json";
        let scored = scored(&self.score("next-oe/val.csv", said, &metrics))?;
        for metric in metrics {
            let name = metric.name();
            let mut check = Check::of(&name, tool, TOLERANCE);
            let key = name.replace(':', "_");
            let values = self.values.pointer(&format!("/next_oe_wups/values/{key}"));
            for (kind, expected) in values.and_then(Value::as_object).into_iter().flatten() {
                let figure_name =
                    if kind == "all" { name.clone() } else { format!("{name}/{kind}") };
                let found = figure(&scored, &figure_name).map(|found| 100.0 * found);
                check.value(kind, found, expected.as_f64().unwrap_or(f64::NAN));
            }
            checks.push(check);
        }
        Ok(())
    }

    fn clips(&self) -> Result<Check, EvalError> {
        let (truth, said) = ("rareact/rareact.csv", "rareact/pred_synthetic_f32.npy");
        let scored = scored(&self.score(truth, said, &[Metric::Mwap]))?;
        let mut check = Check::of("mwap", "compute_score.py of RareAct", TOLERANCE);
        check.value("mwap", figure(&scored, "mwap"), self.number("/rareact/mWAP"));
        Ok(check)
    }

    fn labels(&self) -> Result<Check, EvalError> {
        #[derive(Deserialize)]
        struct Labels {
            y: Vec<f64>,
            score: Vec<f64>,
        }
        let file: Labels = read(&self.path("roc_auc_synthetic.json"))?;
        let labels = file.y.iter().map(|y| *y > 0.5);
        let judged: Vec<Judged> = file.score.iter().copied().zip(labels).collect();
        let mut check = Check::of("roc_auc", "scikit-learn", TOLERANCE);
        check.value("area", roc_auc(&judged), self.number("/roc_auc/roc_auc"));
        let expected = self.number("/roc_auc/average_precision");
        check.value("average precision", average_precision(&judged), expected);
        Ok(check)
    }

    fn dialogs(&self) -> Result<Check, EvalError> {
        #[derive(Deserialize)]
        struct Dialogs {
            scores: Vec<Vec<f64>>,
            relevance: Vec<Vec<f64>>,
            gt_index: Vec<usize>,
            per_dialog_ndcg: Vec<f64>,
        }
        let file: Dialogs = read(&self.path("visdial_synthetic.json"))?;
        let both = file.scores.iter().zip(&file.relevance);
        let gains: Vec<f64> =
            both.map(|(scores, relevance)| ndcg(scores, relevance).unwrap_or_default()).collect();
        let ranked = file.scores.iter().zip(&file.gt_index);
        let ranks: Vec<usize> = ranked.map(|(scores, right)| rank(scores, *right)).collect();
        let found = rank_scores(&ranks);
        let mut check = Check::of("ndcg, recall", "visdial-challenge-starter-pytorch", TOLERANCE);
        for (i, (gain, expected)) in gains.iter().zip(&file.per_dialog_ndcg).enumerate() {
            check.value(&format!("dialog {i}"), Some(*gain), *expected);
        }
        let mean = gains.iter().sum::<f64>() / gains.len() as f64;
        for (key, value) in [
            ("ndcg", mean),
            ("r@1", found.recall[0]),
            ("r@5", found.recall[1]),
            ("r@10", found.recall[2]),
            ("mean", found.mean),
            ("mrr", found.mean_reciprocal),
        ] {
            check.value(key, Some(value), self.number(&format!("/visdial/{key}")));
        }
        Ok(check)
    }
}

fn per_image_check(check: &mut Check, scored: &Scored, name: &str, key: &str, theirs: &PerImage) {
    let credits = scored.credits.iter().find(|it| it.metric == name).map(|it| &it.of_items);
    let ours: HashMap<&str, Option<f64>> = scored
        .ids
        .iter()
        .map(String::as_str)
        .zip(credits.into_iter().flatten().map(Value::as_f64))
        .collect();
    let values = theirs.per_image.get(key).and_then(Value::as_array).into_iter().flatten();
    for (id, expected) in theirs.image_ids.iter().zip(values) {
        let found = ours.get(id.to_string().as_str()).copied().flatten();
        check.value(&format!("image {id}"), found, expected.as_f64().unwrap_or(f64::NAN));
    }
}
