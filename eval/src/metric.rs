//! Metrics by name, `family:rule`, or the family alone where there is one rule: what they fit, their figures
//! with intervals, and the credit of each item.

use std::borrow::Cow;
use std::path::Path;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bootstrap::{Clusters, Drawn, Estimate, RESAMPLES, Resampling, Scores};
use crate::error::EvalError;
use crate::item::{Item, Truth as ItemTruth};
use crate::metrics::captions::Words;
use crate::metrics::mwap::{Clip, Seen};
use crate::metrics::vqa::{AnswerTable, HumanAnswer, VqaRule};
use crate::metrics::wups::WupsText;

pub(crate) mod evidence;
pub mod measure;

use evidence::{Evidence, Prediction, Truth};
use measure::{Bench, Frequencies, Measured, Measuring};

/// A metric and a rule for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Metric {
    /// BLEU-1 to BLEU-4 of the Penn Treebank's tokens, the official rule.
    #[value(name = "bleu:coco")]
    BleuCoco,
    /// ROUGE-L, likewise.
    #[value(name = "rouge:coco")]
    RougeCoco,
    /// CIDEr-D, likewise.
    #[value(name = "cider:coco")]
    CiderCoco,
    /// METEOR 1.5, on the data of METEOR's folder.
    #[value(name = "meteor:coco")]
    MeteorCoco,
    /// BLEU-1 to BLEU-4 of texts cut at white space, as `VLMEvalKit` has it.
    #[value(name = "bleu:no-ptb")]
    BleuNoPtb,
    /// ROUGE-L, likewise.
    #[value(name = "rouge:no-ptb")]
    RougeNoPtb,
    /// CIDEr-D, likewise.
    #[value(name = "cider:no-ptb")]
    CiderNoPtb,
    /// VQA accuracy of the official tool.
    #[value(name = "vqa:official")]
    VqaOfficial,
    /// VQA accuracy of `open_flamingo`.
    #[value(name = "vqa:open-flamingo")]
    VqaOpenFlamingo,
    /// VQA accuracy of `VizWiz`'s tool.
    #[value(name = "vqa:vizwiz-api")]
    VqaVizwiz,
    /// Share of items whose chosen candidate is the right one, and of each kind of item.
    #[value(name = "accuracy")]
    Accuracy,
    /// Accuracy by exact match, in lower case.
    #[value(name = "exact")]
    Exact,
    /// Whether the right answer is the first, or among the first five, of `answers`.
    #[value(name = "top-k")]
    TopK,
    /// Accuracy of iVQA: half for each of five annotators, at most 1.
    #[value(name = "ivqa")]
    Ivqa,
    /// WUPS@0 of texts as they stand, for all questions and by type.
    #[value(name = "wups0:raw")]
    Wups0Raw,
    /// WUPS@0 of texts without stop words.
    #[value(name = "wups0:stop")]
    Wups0Stop,
    /// WUPS@0.9 of texts as they stand.
    #[value(name = "wups9:raw")]
    Wups9Raw,
    /// WUPS@0.9 of texts without stop words.
    #[value(name = "wups9:stop")]
    Wups9Stop,
    /// Accuracy of NExT-QA's choices, for all questions and by type.
    #[value(name = "next-qa:mc")]
    NextChoice,
    /// Accuracy of STAR's choices: by type, and the mean over types.
    #[value(name = "star:mc")]
    Star,
    /// Area under the receiver operating characteristic.
    #[value(name = "roc_auc")]
    RocAuc,
    /// NDCG of `VisDial`.
    #[value(name = "ndcg")]
    Ndcg,
    /// Recall at 1, 5 and 10, mean rank and mean reciprocal rank of `VisDial`.
    #[value(name = "recall")]
    Recall,
    /// mWAP of `RareAct`.
    #[value(name = "mwap")]
    Mwap,
}

impl TryFrom<String> for Metric {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::from_str(&name, false).map_err(|_| {
            let names: Vec<String> = Self::value_variants().iter().map(|m| m.name()).collect();
            format!("unknown metric `{name}`, expected one of {}", names.join(", "))
        })
    }
}

impl From<Metric> for String {
    fn from(metric: Metric) -> Self {
        metric.name()
    }
}

/// An item with what a model said.
#[derive(Debug, Clone, Copy)]
pub struct Judged<'a> {
    /// The item.
    pub item: &'a Item,
    /// The answer: a text, or the candidate that was chosen.
    pub prediction: &'a str,
    /// What each candidate scored, in their order; empty where the answer was written.
    pub scores: &'a [f64],
}

/// How intervals are drawn, and what metrics need beside the items.
#[derive(Debug, Clone, Copy)]
pub struct Judging<'a> {
    /// Seed of the intervals.
    pub seed: u64,
    /// Resamples of the intervals; 0 for none.
    pub resamples: usize,
    /// How CIDEr-D is drawn.
    pub frequencies: Frequencies,
    /// Folder of the `WordNet` database, if not the usual one.
    pub wordnet: Option<&'a Path>,
    /// Folder of METEOR 1.5, if not the one that `METEOR_DATA` names.
    pub meteor: Option<&'a Path>,
    /// The predictions, for messages.
    pub path: &'a Path,
}

impl Judging<'_> {
    /// As evaluations are judged.
    pub fn of(seed: u64) -> Self {
        Self {
            seed,
            resamples: RESAMPLES,
            frequencies: Frequencies::Frozen,
            wordnet: None,
            meteor: None,
            path: Path::new("samples"),
        }
    }
}

/// A score with its interval.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// Its name, that of the metric in most cases.
    pub name: String,
    /// The score.
    pub estimate: Estimate,
}

/// What a metric found.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// The scores; the first is the one that counts.
    pub figures: Vec<Figure>,
    /// What each item adds, in order: a number, or several.
    pub credits: Vec<Value>,
    /// What the score is made of, item by item, where it is no mean of credits; else nothing.
    pub terms: Vec<Value>,
    /// Why there is no score, where there is none.
    pub problem: Option<String>,
    /// Values of all scores, and in each resample, for the difference to another judgement of the same items.
    pub drawn: Drawn,
}

/// What a file annotates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Captions of images.
    Captions,
    /// Answers of several people.
    People,
    /// One right answer.
    OneAnswer,
    /// Five annotators' answers (iVQA).
    Ivqa,
    /// Open-ended NExT-QA.
    NextOpen,
    /// NExT-QA with five choices.
    NextChoice,
    /// STAR, with four choices.
    Star,
    /// Yes or no.
    Label,
    /// Relevance of candidate answers (`VisDial`).
    Relevance,
    /// The right one of candidate answers (`VisDial`).
    Candidates,
    /// Clips of `RareAct`.
    Clips,
    /// One of some classes by name (`ImageNet`, Kinetics, our corpora).
    Classes,
}

impl Form {
    /// What it holds, for messages.
    pub(crate) fn holds(self) -> &'static str {
        match self {
            Self::Captions => "captions",
            Self::People => "answers of several people",
            Self::OneAnswer => "one answer for each question",
            Self::Ivqa => "answers of iVQA's annotators",
            Self::NextOpen => "open-ended questions of NExT-QA",
            Self::NextChoice => "questions of NExT-QA with choices",
            Self::Star => "questions of STAR",
            Self::Label => "labels",
            Self::Relevance => "relevance of candidates",
            Self::Candidates => "dialogs with candidates",
            Self::Clips => "clips of RareAct",
            Self::Classes => "classes",
        }
    }

    /// Whether a prediction may be the number of a candidate.
    pub(crate) fn has_candidates(self) -> bool {
        matches!(self, Self::NextChoice | Self::Star | Self::Label | Self::Classes)
    }
}

/// What a metric computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Rule {
    Bleu(Words),
    Rouge(Words),
    Cider(Words),
    Meteor,
    Vqa(VqaRule),
    Exact,
    TopK,
    Ivqa,
    Wups { text: WupsText, threshold: f64 },
    Choice,
    ChoiceByType,
    RocAuc,
    Ndcg,
    Recall,
    Mwap,
}

/// What rules look at, of an item and of what a model said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Text,
    People,
    Choice,
    Label,
    Relevance,
    Candidate,
    Clip,
}

impl Rule {
    fn look(self) -> Look {
        match self {
            Self::Vqa(_) => Look::People,
            Self::Choice | Self::ChoiceByType => Look::Choice,
            Self::RocAuc => Look::Label,
            Self::Ndcg => Look::Relevance,
            Self::Recall => Look::Candidate,
            Self::Mwap => Look::Clip,
            _ => Look::Text,
        }
    }
}

/// The threshold of WUPS@0.9.
const HIGH_THRESHOLD: f64 = 0.9;

impl Metric {
    pub(crate) fn rule(self) -> Rule {
        let wups = |text, threshold| Rule::Wups { text, threshold };
        match self {
            Self::BleuCoco => Rule::Bleu(Words::Ptb),
            Self::RougeCoco => Rule::Rouge(Words::Ptb),
            Self::CiderCoco => Rule::Cider(Words::Ptb),
            Self::MeteorCoco => Rule::Meteor,
            Self::BleuNoPtb => Rule::Bleu(Words::WhiteSpace),
            Self::RougeNoPtb => Rule::Rouge(Words::WhiteSpace),
            Self::CiderNoPtb => Rule::Cider(Words::WhiteSpace),
            Self::VqaOfficial => Rule::Vqa(VqaRule::Official),
            Self::VqaOpenFlamingo => Rule::Vqa(VqaRule::OpenFlamingo),
            Self::VqaVizwiz => Rule::Vqa(VqaRule::ByIndex),
            Self::Exact => Rule::Exact,
            Self::TopK => Rule::TopK,
            Self::Ivqa => Rule::Ivqa,
            Self::Wups0Raw => wups(WupsText::Raw, 0.0),
            Self::Wups0Stop => wups(WupsText::WithoutStopWords, 0.0),
            Self::Wups9Raw => wups(WupsText::Raw, HIGH_THRESHOLD),
            Self::Wups9Stop => wups(WupsText::WithoutStopWords, HIGH_THRESHOLD),
            Self::Accuracy | Self::NextChoice => Rule::Choice,
            Self::Star => Rule::ChoiceByType,
            Self::RocAuc => Rule::RocAuc,
            Self::Ndcg => Rule::Ndcg,
            Self::Recall => Rule::Recall,
            Self::Mwap => Rule::Mwap,
        }
    }

    /// Its name on the command line, in task files and in results.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// The name before the colon: rules of one family are compared.
    pub(crate) fn family(self) -> String {
        self.name().split(':').next().unwrap_or_default().to_owned()
    }

    pub(crate) fn is_of(self, form: Form) -> bool {
        match self.rule() {
            Rule::Bleu(_) | Rule::Rouge(_) | Rule::Cider(_) | Rule::Meteor => {
                form == Form::Captions
            }
            Rule::Vqa(_) => form == Form::People,
            Rule::Exact => matches!(form, Form::OneAnswer | Form::NextOpen),
            Rule::TopK => form == Form::OneAnswer,
            Rule::Ivqa => form == Form::Ivqa,
            Rule::Wups { .. } => form == Form::NextOpen,
            Rule::Choice => {
                let own = if self == Self::NextChoice { Form::NextChoice } else { Form::Classes };
                form == own
            }
            Rule::ChoiceByType => form == Form::Star,
            Rule::RocAuc => form == Form::Label,
            Rule::Ndcg => form == Form::Relevance,
            Rule::Recall => form == Form::Candidates,
            Rule::Mwap => form == Form::Clips,
        }
    }

    /// Whether its score is no mean of the credits of items, but made of terms.
    pub(crate) fn has_terms(self) -> bool {
        matches!(
            self.rule(),
            Rule::Bleu(_) | Rule::Meteor | Rule::ChoiceByType | Rule::RocAuc | Rule::Mwap
        )
    }

    /// Whether the terms are nothing without the scores of candidates.
    pub(crate) fn needs_scores(self) -> bool {
        self.rule() == Rule::Mwap
    }

    /// Metrics in their order, each once however often it is named.
    pub(crate) fn each_once(metrics: &[Self]) -> Vec<Self> {
        let mut once: Vec<Self> = Vec::new();
        for metric in metrics {
            if !once.contains(metric) {
                once.push(*metric);
            }
        }
        once
    }

    /// Whether it counts by the types of NExT-QA's questions.
    pub(crate) fn has_types_of_next_qa(self) -> bool {
        self == Self::NextChoice || matches!(self.rule(), Rule::Wups { .. })
    }

    /// The official metrics of a form of annotations.
    pub(crate) fn official(form: Form) -> &'static [Self] {
        match form {
            Form::Captions => &[Self::BleuCoco, Self::RougeCoco, Self::CiderCoco],
            Form::People => &[Self::VqaOfficial],
            Form::OneAnswer => &[Self::Exact],
            Form::Ivqa => &[Self::Ivqa],
            Form::NextOpen => &[Self::Wups0Raw, Self::Wups0Stop, Self::Wups9Raw, Self::Wups9Stop],
            Form::NextChoice => &[Self::NextChoice],
            Form::Star => &[Self::Star],
            Form::Label => &[Self::RocAuc],
            Form::Relevance => &[Self::Ndcg],
            Form::Candidates => &[Self::Recall],
            Form::Clips => &[Self::Mwap],
            Form::Classes => &[Self::Accuracy],
        }
    }

    /// Whether it judges items with this truth.
    pub fn fits(self, truth: &ItemTruth) -> bool {
        match self.rule() {
            Rule::Bleu(_) | Rule::Rouge(_) | Rule::Cider(_) | Rule::Meteor => {
                matches!(truth, ItemTruth::Captions(_))
            }
            Rule::Vqa(_) | Rule::Exact | Rule::Ivqa | Rule::Wups { .. } => {
                matches!(truth, ItemTruth::Answers(_))
            }
            Rule::Choice | Rule::ChoiceByType | Rule::RocAuc | Rule::Recall => {
                matches!(truth, ItemTruth::Candidate { .. })
            }
            Rule::Ndcg => matches!(truth, ItemTruth::Candidate { relevance: Some(_), .. }),
            Rule::Mwap => matches!(truth, ItemTruth::Action { .. }),
            // A task's answers are no rankings.
            Rule::TopK => false,
        }
    }

    /// Judges items by several metrics, all of which fit, on the same draws.
    ///
    /// # Errors
    /// When a metric needs a database that is not there, or scores are not what it needs.
    pub fn judge_all(
        metrics: &[Self],
        judged: &[Judged<'_>],
        how: &Judging<'_>,
    ) -> Result<Vec<Judgement>, EvalError> {
        let (measured, drawn) = measured(metrics, judged, how)?;
        let judgement = |(measured, drawn): (Measured, Drawn)| {
            let estimates = measured.estimates(&drawn).into_iter();
            let figures = measured.names.iter().zip(estimates);
            let figure = |(name, estimate): (&String, Option<Estimate>)| {
                Some(Figure { name: name.clone(), estimate: estimate? })
            };
            let (figures, problem) =
                (figures.filter_map(figure).collect(), measured.problem(&drawn));
            let Measured { credits, terms, .. } = measured;
            Judgement { figures, credits, terms, problem, drawn }
        };
        Ok(measured.into_iter().zip(drawn).map(judgement).collect())
    }
}

/// Measures items by several metrics, all of which fit, and draws all of them alike. What metrics share, words
/// and databases, is read once.
pub(crate) fn measured(
    metrics: &[Metric],
    judged: &[Judged<'_>],
    how: &Judging<'_>,
) -> Result<(Vec<Measured>, Vec<Drawn>), EvalError> {
    let clusters = Clusters::of(judged.iter().map(|one| &one.item.medium_id));
    let Judging { seed, resamples, frequencies, wordnet, meteor, path } = *how;
    let measuring = Measuring { clusters: &clusters, frequencies, wordnet, meteor, path };
    let mut of_metric: Vec<Option<Measured>> = metrics.iter().map(|_| None).collect();
    while let Some(first) = of_metric.iter().position(Option::is_none) {
        let look = metrics[first].rule().look();
        let mut answers = AnswerTable::default();
        let (items, predictions): (Vec<Evidence<'_>>, Vec<Prediction<'_>>) =
            judged.iter().map(|one| evidence_of(one, look, &mut answers)).unzip();
        let mut bench = Bench::of((&items, &predictions), &mut answers, measuring);
        for (metric, found) in metrics.iter().zip(&mut of_metric) {
            if metric.rule().look() == look {
                *found = Some(bench.measure(*metric)?);
            }
        }
    }
    let measured: Vec<Measured> = of_metric.into_iter().flatten().collect();
    let scores: Vec<&Scores<'_>> = measured.iter().map(|one| &*one.scores).collect();
    let drawn = Resampling { clusters: &clusters, seed, resamples }.draw(&scores);
    Ok((measured, drawn))
}

/// What there is to look at.
fn evidence_of<'a>(
    one: &Judged<'a>,
    look: Look,
    answers: &mut AnswerTable,
) -> (Evidence<'a>, Prediction<'a>) {
    let item = one.item;
    let texts = |answers: &[HumanAnswer]| {
        answers.iter().map(|it| it.answer.to_string()).collect::<Vec<_>>()
    };
    let truth = match (&item.truth, look) {
        (ItemTruth::Captions(captions), _) => {
            Truth::Captions(captions.iter().map(|text| Cow::Borrowed(text.as_str())).collect())
        }
        (ItemTruth::Answers(people), Look::People) => {
            let person = |it: &HumanAnswer| {
                let confidence = it.answer_confidence.as_deref().unwrap_or_default();
                answers.person(&it.answer, confidence, it.answer_id)
            };
            Truth::People(people.iter().map(person).collect())
        }
        (ItemTruth::Answers(people), _) => Truth::Texts(texts(people)),
        (ItemTruth::Candidate { right, .. }, Look::Candidate) => Truth::Candidate(*right),
        (ItemTruth::Candidate { relevance: Some(relevance), .. }, Look::Relevance) => {
            Truth::Relevance(relevance.clone())
        }
        (ItemTruth::Candidate { right, .. }, Look::Label) => Truth::Label(*right == yes_of(item)),
        (ItemTruth::Candidate { right, .. }, _) => Truth::Choice(*right as i64),
        (ItemTruth::Action { class, annotation }, _) => Truth::Clip(Box::new(Clip {
            video: item.medium_id.clone(),
            class: *class,
            verb: item.fields.get("verb").cloned().unwrap_or_default(),
            noun: item.fields.get("noun").cloned().unwrap_or_default(),
            seen: Seen::from_annotation(u32::from(*annotation)).unwrap_or(Seen::Part),
        })),
        (ItemTruth::Hidden, _) => Truth::Texts(Vec::new()),
    };
    let prediction = match look {
        Look::Choice => {
            let chosen = item.candidates.iter().position(|text| text == one.prediction);
            Prediction::Choice(chosen.map_or(-1, |chosen| chosen as i64))
        }
        Look::Label => {
            let yes = yes_of(item);
            let no = one.scores.iter().enumerate().filter(|(i, _)| *i != yes).map(|(_, s)| *s);
            let no = no.fold(f64::NEG_INFINITY, f64::max);
            let score = one.scores.get(yes).map(|yes| yes - no);
            Prediction::Scores(score.into_iter().collect())
        }
        Look::Relevance | Look::Candidate | Look::Clip => Prediction::Scores(one.scores.to_vec()),
        _ => Prediction::Text(Cow::Borrowed(one.prediction)),
    };
    let kind = item.category.clone().unwrap_or_default();
    let id = item.id.clone();
    (Evidence { id, cluster: Some(item.medium_id.clone()), kind, truth }, prediction)
}

/// The type that the official tools of NExT-QA count a question as: two are one.
fn official_type(kind: &str) -> &str {
    if kind == "TP" { "TN" } else { kind }
}

/// The candidate that means yes: `yes` itself, or the last.
pub(crate) fn yes_of(item: &Item) -> usize {
    let yes = item.candidates.iter().position(|text| text == "yes");
    yes.unwrap_or(item.candidates.len().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;

    fn item(id: &str, truth: ItemTruth, candidates: &[&str]) -> Item {
        Item {
            id: id.to_owned(),
            medium_id: id.to_owned(),
            medium: None,
            fields: BTreeMap::new(),
            truth,
            candidates: candidates.iter().map(|text| (*text).to_owned()).collect::<Arc<[_]>>(),
            category: Some(if id < "3" { "TP" } else { "CW" }.to_owned()),
        }
    }

    /// The figures of a metric on three items with two candidates, given the right ones and what the model says.
    fn figures(
        metric: Metric,
        right: [usize; 3],
        said: [(&str, [f64; 2]); 3],
    ) -> Vec<(String, f64)> {
        let relevance = Some(vec![0.0, 1.0]);
        let items: Vec<Item> = right
            .iter()
            .zip(["1", "2", "3"])
            .map(|(right, id)| {
                let truth = ItemTruth::Candidate { right: *right, relevance: relevance.clone() };
                item(id, truth, &["no", "yes"])
            })
            .collect();
        let judged: Vec<Judged<'_>> = items
            .iter()
            .zip(&said)
            .map(|(item, (prediction, scores))| Judged { item, prediction, scores })
            .collect();
        assert!(judged.iter().all(|one| metric.fits(&one.item.truth)));
        let found = Metric::judge_all(&[metric], &judged, &Judging::of(0)).unwrap().remove(0);
        found.figures.into_iter().map(|figure| (figure.name, figure.estimate.value)).collect()
    }

    #[test]
    fn candidates_are_judged_by_choice_by_rank_and_by_how_sure_a_yes_is() {
        // Differences of yes and no: 1, -1, 3.
        let said = [("yes", [-2.0, -1.0]), ("no", [-1.0, -2.0]), ("yes", [-3.0, 0.0])];
        let check = |metric, expected: &[(&str, f64)]| {
            let found = figures(metric, [1, 1, 0], said);
            for (name, expected) in expected {
                let value = found.iter().find(|(found, _)| found == name);
                let value = value.unwrap_or_else(|| panic!("no {name} in {found:?}")).1;
                assert!((value - expected).abs() < 1e-12, "{name}: {value}, not {expected}");
            }
        };
        let by_type = [("accuracy", 1.0 / 3.0), ("accuracy/TP", 0.5), ("accuracy/CW", 0.0)];
        check(Metric::Accuracy, &by_type);
        let by_type = [("next-qa:mc/TN", 0.5), ("next-qa:mc/T", 0.5), ("next-qa:mc/C", 0.0)];
        check(Metric::NextChoice, &by_type);
        assert!(
            figures(Metric::Accuracy, [1, 1, 0], said).iter().all(|(name, _)| name != "accuracy/C")
        );
        check(Metric::RocAuc, &[("roc_auc", 0.0)]);
        check(Metric::Recall, &[("recall@1", 1.0 / 3.0), ("mean-rank", 5.0 / 3.0)]);
        check(Metric::Ndcg, &[("ndcg", 2.0 / 3.0)]);
    }

    #[test]
    fn captions_of_one_film_are_drawn_together_whatever_the_frequencies() {
        let captions = ["a red ball rolls", "two green stars", "a dog", "the cat sleeps", "a cat"];
        let truth = |text: &str| ItemTruth::Captions(vec![text.to_owned(), "a ball".to_owned()]);
        let film = |(i, text): (usize, &&str)| Item {
            medium_id: format!("film {}", i / 3),
            ..item(&i.to_string(), truth(text), &[])
        };
        let items: Vec<Item> = captions.iter().enumerate().map(film).collect();
        let judged: Vec<Judged<'_>> = items
            .iter()
            .map(|item| Judged { item, prediction: "a red ball", scores: &[] })
            .collect();
        let value = |frequencies| {
            let how = Judging { frequencies, ..Judging::of(0) };
            let found = Metric::judge_all(&[Metric::CiderCoco], &judged, &how).unwrap();
            found[0].figures[0].estimate.value
        };
        let (frozen, recomputed) = (value(Frequencies::Frozen), value(Frequencies::Recomputed));
        assert!(frozen > 0.0 && (frozen - recomputed).abs() < 1e-12, "{frozen} {recomputed}");
    }

    #[test]
    fn a_score_that_there_is_not_is_named_and_the_others_stay() {
        let truth = ItemTruth::Candidate { right: 1, relevance: None };
        let items = ["1", "2"].map(|id| item(id, truth.clone(), &["no", "yes"]));
        let judged: Vec<Judged<'_>> = items
            .iter()
            .map(|item| Judged { item, prediction: "yes", scores: &[-1.0, -0.5] })
            .collect();
        let metrics = [Metric::RocAuc, Metric::Accuracy];
        let found = Metric::judge_all(&metrics, &judged, &Judging::of(0)).unwrap();
        assert_eq!(found[0].problem.as_deref(), Some("no roc_auc: all labels are alike"));
        assert!(found[0].figures.is_empty() && found[1].problem.is_none());
        assert_eq!(found[1].figures[0].estimate, Estimate::alone(1.0));
    }

    #[test]
    fn a_metric_that_a_task_names_twice_is_one() {
        let text = crate::tasks::built_in("star").unwrap();
        let twice =
            text.replace("[\"star:mc\", \"accuracy\"]", "[\"star:mc\", \"accuracy\", \"star:mc\"]");
        assert_ne!(twice, text);
        let task = crate::task_file::TaskFile::parse("mine", &twice).unwrap();
        assert_eq!(task.metrics, [Metric::Star, Metric::Accuracy]);
    }

    #[test]
    fn intervals_of_mwap_lie_around_the_score() {
        let clip = |i: usize| {
            let (verb, noun) = [("cut", "phone"), ("cut", "shoe"), ("wash", "hat")][i % 3];
            let annotation = u8::from(i % 4 < 2);
            let truth = ItemTruth::Action { class: i % 3, annotation };
            let fields = [("verb", verb.to_owned()), ("noun", noun.to_owned())].into();
            Item { fields, ..item(&i.to_string(), truth, &[]) }
        };
        let items: Vec<Item> = (0..24).map(clip).collect();
        let scores: Vec<[f64; 3]> =
            (0_u8..24).map(|i| [0, 1, 2].map(|class| f64::from(i * (class + 5) % 7))).collect();
        let judged: Vec<Judged<'_>> = items
            .iter()
            .zip(&scores)
            .map(|(item, scores)| Judged { item, prediction: "", scores })
            .collect();
        let (measured, drawn) = measured(&[Metric::Mwap], &judged, &Judging::of(0)).unwrap();
        let found = measured[0].estimates(&drawn[0])[0].unwrap();
        let resampled: Vec<f64> = drawn[0].resamples_of(0).collect();
        let bias = resampled.iter().sum::<f64>() / resampled.len() as f64 - found.value;
        assert!(bias.abs() > 0.01, "what is drawn twice ranks among itself: {bias}");
        let as_drawn = Estimate::of(found.value, resampled);
        assert!((as_drawn.low - bias - found.low).abs() < 1e-12, "{found:?} {as_drawn:?}");
        assert!((as_drawn.high - bias - found.high).abs() < 1e-12, "{found:?} {as_drawn:?}");
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for metric in Metric::value_variants() {
            assert_eq!(Metric::try_from(metric.name()), Ok(*metric));
        }
        let error = Metric::try_from("cider".to_owned()).unwrap_err();
        assert!(error.contains("unknown metric `cider`, expected one of bleu:coco"), "{error}");
    }
}
