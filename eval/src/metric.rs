//! Metrics by name: which rule on which kind of truth, the figures with their intervals, and the credit of
//! each item.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::bootstrap::{Estimate, Term, estimate, estimate_by};
use crate::item::{Item, Truth};
use crate::metrics::bleu::{bleu_counts, total};
use crate::metrics::captions::{CaptionPair, WordPair, Words};
use crate::metrics::cider::cider_d_of_words;
use crate::metrics::rouge::rouge_l;
use crate::metrics::vqa::{VqaRule, vqa_accuracy};

/// A metric and a rule for it. The name before the colon is the metric, the one behind it the rule.
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
    /// Share of items whose chosen candidate is the right one.
    #[value(name = "accuracy")]
    Accuracy,
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
}

impl Metric {
    /// Its name on the command line, in task files and in results.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Whether it judges items with this truth.
    pub fn fits(self, truth: &Truth) -> bool {
        match self {
            Self::BleuCoco
            | Self::RougeCoco
            | Self::CiderCoco
            | Self::BleuNoPtb
            | Self::RougeNoPtb
            | Self::CiderNoPtb => matches!(truth, Truth::Captions(_)),
            Self::VqaOfficial | Self::VqaOpenFlamingo | Self::VqaVizwiz => {
                matches!(truth, Truth::Answers(_))
            }
            Self::Accuracy => matches!(truth, Truth::Candidate { .. }),
        }
    }

    /// Judges items, all of which it fits.
    pub fn judge(self, judged: &[Judged<'_>], seed: u64) -> Judgement {
        match self {
            Self::VqaOfficial => self.mean(&vqa_scores(VqaRule::Official, judged), seed),
            Self::VqaOpenFlamingo => self.mean(&vqa_scores(VqaRule::OpenFlamingo, judged), seed),
            Self::VqaVizwiz => self.mean(&vqa_scores(VqaRule::ByIndex, judged), seed),
            Self::RougeCoco => self.mean(&rouge_l(&word_pairs(judged, Words::Ptb)), seed),
            Self::RougeNoPtb => self.mean(&rouge_l(&word_pairs(judged, Words::WhiteSpace)), seed),
            Self::CiderCoco => self.mean(&cider_d_of_words(&word_pairs(judged, Words::Ptb)), seed),
            Self::CiderNoPtb => {
                self.mean(&cider_d_of_words(&word_pairs(judged, Words::WhiteSpace)), seed)
            }
            Self::BleuCoco => self.bleu(&word_pairs(judged, Words::Ptb), seed),
            Self::BleuNoPtb => self.bleu(&word_pairs(judged, Words::WhiteSpace), seed),
            Self::Accuracy => {
                let right = judged.iter().map(|one| f64::from(u8::from(is_right(one))));
                self.mean(&right.collect::<Vec<_>>(), seed)
            }
        }
    }

    fn mean(self, scores: &[f64], seed: u64) -> Judgement {
        let terms: Vec<Term> = scores.iter().map(|score| Term::of(*score)).collect();
        let figure = estimate(&terms, seed).map(|estimate| Figure { name: self.name(), estimate });
        Judgement {
            figures: figure.into_iter().collect(),
            credits: scores.iter().map(|score| json!(score)).collect(),
        }
    }

    fn bleu(self, pairs: &[WordPair], seed: u64) -> Judgement {
        let counts = bleu_counts(pairs);
        let figure = |n: usize| {
            let score = |drawn: &mut dyn Iterator<Item = usize>| {
                Some(total(drawn.map(|i| &counts[i])).scores()[n - 1])
            };
            let estimate = estimate_by(counts.len(), seed, score)?;
            Some(Figure { name: self.name().replace("bleu", &format!("bleu-{n}")), estimate })
        };
        Judgement {
            figures: (1..=4).filter_map(figure).collect(),
            credits: counts.iter().map(|counts| json!(counts.scores())).collect(),
        }
    }
}

fn vqa_scores(rule: VqaRule, judged: &[Judged<'_>]) -> Vec<f64> {
    let score = |one: &Judged<'_>| match &one.item.truth {
        Truth::Answers(answers) => vqa_accuracy(rule, one.prediction, answers),
        _ => unreachable!("the metric fits the items"),
    };
    judged.iter().map(score).collect()
}

fn word_pairs(judged: &[Judged<'_>], words: Words) -> Vec<WordPair> {
    let pair = |one: &Judged<'_>| match &one.item.truth {
        Truth::Captions(captions) => {
            let references = captions.iter().map(String::as_str).collect();
            WordPair::of(&CaptionPair { prediction: one.prediction, references }, words)
        }
        _ => unreachable!("the metric fits the items"),
    };
    judged.iter().map(pair).collect()
}

fn is_right(one: &Judged<'_>) -> bool {
    match &one.item.truth {
        Truth::Candidate { right, .. } => one.item.candidates[*right] == one.prediction,
        _ => unreachable!("the metric fits the items"),
    }
}
