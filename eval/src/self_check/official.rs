//! The official data, in the layout of `data/parity`: every value of its `reference-values.json` that a metric
//! here has.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Check, Folders, TOLERANCE, figure, similarities};
use crate::error::EvalError;
use crate::metric::Metric;
use crate::metrics::meteor::Meteor;
use crate::metrics::ptb_tokenize::PtbTokenizer;
use crate::metrics::roc_auc::{Judged, average_precision};
use crate::metrics::vqa::normalised;
use crate::metrics::wordnet::WordNet;
use crate::score::{Score, Scored, scored, scored_bytes};

const METEOR_TOOL: &str = "pycocoevalcap, METEOR 1.5";

/// The folder, with its values.
struct Data<'a> {
    folder: &'a Path,
    values: Value,
    folders: Folders<'a>,
}

/// Checks everything in a folder.
pub(super) fn checks(folder: &Path, folders: Folders<'_>) -> Result<Vec<Check>, EvalError> {
    let data = Data { folder, values: read(&folder.join("reference-values.json"))?, folders };
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

/// Accuracies by question in percent, in the order of `question_ids`.
#[derive(Deserialize)]
struct PerQuestion {
    question_ids: Vec<i64>,
    pct: Vec<f64>,
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
            wordnet: self.folders.wordnet.map(Path::to_path_buf),
            meteor_data: self.folders.meteor.map(Path::to_path_buf),
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
        let found = scored(&score)?;
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
                bleu.value(&name, figure(&found, &name), self.number(&pointer));
            }
            checks.push(bleu);
            for (family, key) in [("rouge", "ROUGE_L"), ("cider", "CIDEr")] {
                let name = format!("{family}:{rule}");
                let mut check = Check::of(&format!("{name} {set}"), tool, TOLERANCE);
                let expected = self.number(&format!("{root}/{group}/{key}"));
                check.value(&name, figure(&found, &name), expected);
                if rule == "coco" {
                    per_image_check(&mut check, &found, &name, key, &per_image);
                }
                checks.push(check);
            }
        }
        let name = format!("meteor:coco {set}");
        if let Err(error) = Meteor::open(self.folders.meteor) {
            checks.push(Check::skipped(&name, METEOR_TOOL, &error));
            return Ok(());
        }
        let scored = scored(&self.score(&truth, &said, &[Metric::MeteorCoco]))?;
        let mut check = Check::of(&name, METEOR_TOOL, TOLERANCE);
        let expected = self.number(&format!("{root}/scores/METEOR"));
        check.value("meteor:coco", figure(&scored, "meteor:coco"), expected);
        per_image_check(&mut check, &scored, "meteor:coco", "METEOR", &per_image);
        checks.push(check);
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
                let file = format!("vqa/per_question_textvqa_{tool}_{kind}.json");
                let theirs: PerQuestion = read(&self.path(&file))?;
                per_question_check(&mut check, scored, &metric.name(), &theirs);
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

    /// The answer that most people gave. The reference compares answers as they stand, so each is replaced by a word
    /// that normalising leaves alone.
    fn vizwiz(&self, checks: &mut Vec<Check>) -> Result<(), EvalError> {
        let truth = "vqa/vizwiz_val_annotations_vqa_format.json";
        let score = self.score(truth, "majority.json", &[Metric::VqaVizwiz, Metric::VqaOfficial]);
        let mut annotations: Value = read(&score.annotations)?;
        let mut words: HashMap<String, String> = HashMap::new();
        let mut said = Vec::new();
        for row in annotations["annotations"].as_array_mut().into_iter().flatten() {
            let mut answers: Vec<String> = Vec::new();
            for answer in row["answers"].as_array_mut().into_iter().flatten() {
                let (text, n) = (answer["answer"].to_string(), words.len());
                let word = words.entry(text).or_insert_with(|| format!("w{n}"));
                answer["answer"] = json!(word);
                answers.push(word.clone());
            }
            let votes = |it: &&String| answers.iter().filter(|other| other == it).count();
            // Of equals, the first.
            let most = answers.iter().rev().max_by_key(votes);
            said.push(json!({ "question_id": row["question_id"], "answer": most }));
        }
        let scored = scored_texts(&score, &annotations, &json!(said))?;
        for (name, key) in [
            ("vqa:vizwiz-api", "leave_one_out_by_index"),
            ("vqa:official", "leave_one_out_by_dict_inequality_(as_file,no answer_id)"),
        ] {
            let mut check = Check::of(&format!("{name} on VizWiz"), "majority answer", TOLERANCE);
            let expected = self.number(&format!("/vqa/vizwiz_oracle_mode_answer/{key}"));
            check.value(key, figure(&scored, name).map(|found| 100.0 * found), expected);
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
        let database = match WordNet::open(self.folders.wordnet) {
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
        let both = || file.y.iter().map(|y| *y > 0.5).zip(&file.score).enumerate();
        let labels = both().map(|(i, (y, _))| json!({ "id": i, "label": u8::from(y) }));
        let said = both().map(|(i, (_, score))| json!({ "id": i, "score": score }));
        let score = self.score("labels.json", "scores.json", &[Metric::RocAuc]);
        let scored = scored_texts(&score, &labels.collect(), &said.collect())?;
        let mut check = Check::of("roc_auc", "scikit-learn", TOLERANCE);
        check.value("area", figure(&scored, "roc_auc"), self.number("/roc_auc/roc_auc"));
        let judged: Vec<Judged> = both().map(|(_, (y, score))| (*score, y)).collect();
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
        let scores = file.scores.iter().enumerate();
        let said = scores.map(|(i, it)| json!({ "image_id": i, "round_id": 1, "scores": it }));
        let said: Value = said.collect();
        let relevance = file.relevance.iter().enumerate();
        let dense: Value = relevance
            .map(|(i, it)| json!({ "image_id": i, "round_id": 1, "gt_relevance": it }))
            .collect();
        let dialog = |(i, (right, scores)): (usize, (&usize, &Vec<f64>))| {
            let options: Vec<usize> = (0..scores.len()).collect();
            let round = json!({ "question": 0, "answer_options": options, "gt_index": right });
            json!({ "image_id": i, "caption": "", "dialog": [round] })
        };
        let dialogs: Vec<Value> =
            file.gt_index.iter().zip(&file.scores).enumerate().map(dialog).collect();
        let dialogs = json!({ "data": { "dialogs": dialogs } });
        let gains = self.score("dense.json", "scores.json", &[Metric::Ndcg]);
        let gains = scored_texts(&gains, &dense, &said)?;
        let ranks = self.score("dialogs.json", "scores.json", &[Metric::Recall]);
        let ranks = scored_texts(&ranks, &dialogs, &said)?;
        let mut check = Check::of("ndcg, recall", "visdial-challenge-starter-pytorch", TOLERANCE);
        for (i, expected) in file.per_dialog_ndcg.iter().enumerate() {
            let credit = gains.credits.first().and_then(|it| it.of_items.get(i)?.as_f64());
            check.value(&format!("dialog {i}"), credit, *expected);
        }
        for (key, scored, name) in [
            ("ndcg", &gains, "ndcg"),
            ("r@1", &ranks, "recall@1"),
            ("r@5", &ranks, "recall@5"),
            ("r@10", &ranks, "recall@10"),
            ("mean", &ranks, "mean-rank"),
            ("mrr", &ranks, "mean-reciprocal-rank"),
        ] {
            check.value(key, figure(scored, name), self.number(&format!("/visdial/{key}")));
        }
        Ok(check)
    }
}

/// Scores files that are made here.
fn scored_texts(score: &Score, truth: &Value, said: &Value) -> Result<Scored, EvalError> {
    scored_bytes(score, truth.to_string().as_bytes(), said.to_string().as_bytes())
}

fn per_image_check(check: &mut Check, scored: &Scored, name: &str, key: &str, theirs: &PerImage) {
    let ours = credits_by_id(scored, name);
    let values = theirs.per_image.get(key).and_then(Value::as_array).into_iter().flatten();
    for (id, expected) in theirs.image_ids.iter().zip(values) {
        let found = ours.get(id.to_string().as_str()).copied().flatten();
        check.value(&format!("image {id}"), found, expected.as_f64().unwrap_or(f64::NAN));
    }
}

fn per_question_check(check: &mut Check, scored: &Scored, name: &str, theirs: &PerQuestion) {
    let ours = credits_by_id(scored, name);
    for (id, expected) in theirs.question_ids.iter().zip(&theirs.pct) {
        let found = ours.get(id.to_string().as_str()).copied().flatten();
        check.value(&format!("question {id}"), found.map(|found| 100.0 * found), *expected);
    }
}

/// What each item adds under a metric, by its id.
fn credits_by_id<'a>(scored: &'a Scored, name: &str) -> HashMap<&'a str, Option<f64>> {
    let credits = scored.credits.iter().find(|it| it.metric == name).map(|it| &it.of_items);
    let credits = credits.into_iter().flatten().map(Value::as_f64);
    scored.ids.iter().map(String::as_str).zip(credits).collect()
}
