//! From annotated items with their predictions to what a metric makes of them: its figures, as functions of
//! how often each cluster is drawn, and the credit of each item.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use super::evidence::{Evidence, Prediction, Truth};
use super::{Metric, Rule, official_type};
use crate::bootstrap::{Clusters, Drawn, Estimate, Scores, Sums, ratio};
use crate::error::EvalError;
use crate::metrics::bleu::{BleuCounts, bleu_counts};
use crate::metrics::captions::{CaptionPair, CaptionSet, Words};
use crate::metrics::cider::{CiderDraws, cider_d_of};
use crate::metrics::exact::{is_exact, ivqa_accuracy};
use crate::metrics::meteor::{Meteor, MeteorCounts, MeteorError};
use crate::metrics::mwap::{Action, Clip, actions, mwap};
use crate::metrics::ranking::{ndcg, rank};
use crate::metrics::roc_auc::{Judged, Thresholds};
use crate::metrics::rouge::rouge_l;
use crate::metrics::vqa::AnswerTable;
use crate::metrics::wordnet::WordNet;
use crate::metrics::wups::{Wups, WupsItem, WupsText};

/// How CIDEr-D is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Frequencies {
    /// With the document frequencies of all images at hand, whatever is drawn: fast.
    Frozen,
    /// With those of the images that are drawn, as another set of images would have its own.
    Recomputed,
}

/// What a metric found.
pub(crate) struct Measured {
    pub(crate) metric: Metric,
    /// Names of its figures.
    pub(crate) names: Vec<String>,
    pub(crate) scores: Box<Scores<'static>>,
    /// What each item adds, in the order of the items; null where it adds nothing.
    pub(crate) credits: Vec<Value>,
    /// What the corpus score is made of, where that is no mean of credits; else nothing.
    pub(crate) terms: Vec<Value>,
}

impl Measured {
    /// Each figure with its interval.
    pub(crate) fn estimates(&self, drawn: &Drawn) -> Vec<Option<Estimate>> {
        let mut estimates = drawn.estimates();
        if self.metric == Metric::Mwap {
            for (i, estimate) in estimates.iter_mut().enumerate() {
                *estimate = estimate.map(|one| one.centred(drawn.resamples_of(i)));
            }
        }
        estimates
    }

    /// Why there is no score, where there is none.
    pub(crate) fn problem(&self, drawn: &Drawn) -> Option<String> {
        let why = match self.metric.rule() {
            Rule::RocAuc => "all labels are alike",
            Rule::Mwap => "no clip shows its action",
            _ => "there is nothing that it could be the mean of",
        };
        let is_there = drawn.values.first().is_some_and(Option::is_some);
        (!is_there).then(|| format!("no {}: {why}", self.metric.name()))
    }
}

/// Items with their predictions, and what metrics share.
pub(crate) struct Bench<'a> {
    items: &'a [Evidence<'a>],
    /// In the order of the items.
    predictions: &'a [Prediction<'a>],
    answers: &'a mut AnswerTable,
    clusters: &'a Clusters,
    frequencies: Frequencies,
    wordnet: Option<&'a Path>,
    meteor: Option<&'a Path>,
    path: &'a Path,
    /// The captions as words, and by which rule.
    captions: Option<(Words, CaptionSet)>,
    /// Opened for the first metric that looks words up.
    database: Option<WordNet>,
}

/// How metrics are measured.
#[derive(Clone, Copy)]
pub(crate) struct Measuring<'a> {
    pub(crate) clusters: &'a Clusters,
    pub(crate) frequencies: Frequencies,
    /// Folder of the `WordNet` database, unless it is the usual one.
    pub(crate) wordnet: Option<&'a Path>,
    /// Folder of METEOR 1.5, unless `METEOR_DATA` names it.
    pub(crate) meteor: Option<&'a Path>,
    /// The file of the predictions, for messages.
    pub(crate) path: &'a Path,
}

impl<'a> Bench<'a> {
    /// Items with a prediction of each, in the same order.
    pub(crate) fn of(
        (items, predictions): (&'a [Evidence<'a>], &'a [Prediction<'a>]),
        answers: &'a mut AnswerTable,
        how: Measuring<'a>,
    ) -> Self {
        let Measuring { clusters, frequencies, wordnet, meteor, path } = how;
        let (captions, database) = (None, None);
        Self {
            items,
            predictions,
            answers,
            clusters,
            frequencies,
            wordnet,
            meteor,
            path,
            captions,
            database,
        }
    }

    /// Computes a metric that fits the items.
    pub(crate) fn measure(&mut self, metric: Metric) -> Result<Measured, EvalError> {
        match metric.rule() {
            Rule::Bleu(words) => Ok(self.bleu(metric, words)),
            Rule::Rouge(words) => {
                let credits = rouge_l(self.words(words));
                Ok(self.mean(metric, &credits))
            }
            Rule::Cider(words) => Ok(self.cider(metric, words)),
            Rule::Meteor => self.meteor(metric),
            Rule::Vqa(rule) => {
                let mut credits = Vec::with_capacity(self.items.len());
                for (item, prediction) in self.items.iter().zip(self.predictions) {
                    let Truth::People(people) = &item.truth else { continue };
                    credits.push(self.answers.accuracy(rule, prediction.text(), people));
                }
                Ok(self.by_kind(metric, &credits, Overall::Items))
            }
            Rule::Exact => {
                let is_right = |texts: &[String], said: &Prediction<'_>| {
                    f64::from(u8::from(texts.iter().any(|text| is_exact(said.text(), text))))
                };
                Ok(self.mean(metric, &self.by_texts(is_right)))
            }
            Rule::Ivqa => {
                let accuracy =
                    |texts: &[String], said: &Prediction<'_>| ivqa_accuracy(said.text(), texts);
                Ok(self.mean(metric, &self.by_texts(accuracy)))
            }
            Rule::TopK => Ok(self.top_k(metric)),
            Rule::Wups { text, threshold } => {
                let credits = self.wups(text, threshold)?;
                Ok(self.by_kind(metric, &credits, Overall::Items))
            }
            Rule::Choice => Ok(self.by_kind(metric, &self.choices(), Overall::Items)),
            Rule::ChoiceByType => Ok(self.by_kind(metric, &self.choices(), Overall::Types)),
            Rule::RocAuc => self.roc_auc(metric),
            Rule::Ndcg => self.ndcg(metric),
            Rule::Recall => self.recall(metric),
            Rule::Mwap => self.mwap(metric),
        }
    }

    fn refuse(&self, problem: String) -> EvalError {
        EvalError::Annotations { path: self.path.to_path_buf(), problem }
    }

    /// The captions as words, which follow from the texts alone.
    fn words(&mut self, words: Words) -> &CaptionSet {
        if self.captions.as_ref().is_none_or(|(rule, _)| *rule != words) {
            self.captions = None;
        }
        let (items, predictions) = (self.items, self.predictions);
        let (_, set) = self.captions.get_or_insert_with(|| {
            let pairs: Vec<CaptionPair<'_>> =
                items.iter().zip(predictions).map(caption_pair).collect();
            (words, CaptionSet::of(&pairs, words))
        });
        set
    }

    /// A mean of credits.
    fn mean(&self, metric: Metric, credits: &[f64]) -> Measured {
        let sums = Sums::of(self.clusters, credits.iter().map(|credit| [*credit, 1.0]));
        Measured {
            metric,
            names: vec![metric.name()],
            scores: Box::new(move |times| vec![ratio(sums.drawn(times))]),
            credits: credits.iter().map(|credit| json!(credit)).collect(),
            terms: Vec::new(),
        }
    }

    fn cider(&mut self, metric: Metric, words: Words) -> Measured {
        let set = self.words(words);
        let credits = cider_d_of(set);
        if self.frequencies == Frequencies::Frozen {
            return self.mean(metric, &credits);
        }
        let draws = CiderDraws::of(self.words(words));
        let measured = self.mean(metric, &credits);
        let clusters = self.clusters.clone();
        let scores = Box::new(move |times: &[u32]| {
            vec![draws.score(|image| times[clusters.of_query(image)])]
        });
        Measured { scores, ..measured }
    }

    fn bleu(&mut self, metric: Metric, words: Words) -> Measured {
        let counts = bleu_counts(self.words(words));
        let sums = Sums::of(self.clusters, counts.iter().map(BleuCounts::terms));
        let name = |n: usize| metric.name().replace("bleu", &format!("bleu-{n}"));
        Measured {
            metric,
            names: (1..=4).map(name).collect(),
            scores: Box::new(move |times| {
                BleuCounts::of_terms(sums.drawn(times)).scores().map(Some).to_vec()
            }),
            credits: counts.iter().map(|counts| json!(counts.scores())).collect(),
            terms: counts.iter().map(|counts| json!(counts.terms())).collect(),
        }
    }

    fn meteor(&self, metric: Metric) -> Result<Measured, EvalError> {
        let both = self.items.iter().zip(self.predictions);
        let pairs: Vec<CaptionPair<'_>> = both.map(caption_pair).collect();
        let counts = Meteor::open(self.meteor)?.counts(&pairs).map_err(|error| match error {
            MeteorError::Data(error) => error,
            MeteorError::TooLong { at, n_words } => self.refuse(format!(
                "the prediction of {} has {n_words} words: it and its references are too long for METEOR",
                self.items[at].id
            )),
        })?;
        let sums = Sums::of(self.clusters, counts.iter().map(MeteorCounts::terms));
        Ok(Measured {
            metric,
            names: vec![metric.name()],
            scores: Box::new(move |times| {
                vec![Some(MeteorCounts::of_terms(sums.drawn(times)).score())]
            }),
            credits: counts.iter().map(|counts| json!(counts.score())).collect(),
            terms: counts.iter().map(|counts| json!(counts.terms())).collect(),
        })
    }

    fn by_texts(&self, credit: impl Fn(&[String], &Prediction<'_>) -> f64) -> Vec<f64> {
        let both = self.items.iter().zip(self.predictions);
        both.filter_map(|(item, prediction)| match &item.truth {
            Truth::Texts(texts) => Some(credit(texts, prediction)),
            _ => None,
        })
        .collect()
    }

    fn top_k(&self, metric: Metric) -> Measured {
        let place = |texts: &[String], prediction: &Prediction<'_>| {
            let is_right = |said: &str| texts.iter().any(|text| is_exact(said, text));
            let place = match prediction {
                Prediction::Ranking(ranking) => ranking.iter().position(|said| is_right(said)),
                other => is_right(other.text()).then_some(0),
            };
            place.map_or(f64::INFINITY, |place| place as f64 + 1.0)
        };
        let places = self.by_texts(place);
        let within = |place: f64, k: f64| f64::from(u8::from(place <= k));
        let terms = places.iter().map(|place| [within(*place, 1.0), within(*place, 5.0), 1.0]);
        let sums = Sums::of(self.clusters, terms);
        Measured {
            metric,
            names: vec!["top-1".to_owned(), "top-5".to_owned()],
            scores: Box::new(move |times| {
                let [one, five, n] = sums.drawn(times);
                vec![ratio([one, n]), ratio([five, n])]
            }),
            credits: places.iter().map(|p| json!([within(*p, 1.0), within(*p, 5.0)])).collect(),
            terms: Vec::new(),
        }
    }

    fn wups(&mut self, text: WupsText, threshold: f64) -> Result<Vec<f64>, EvalError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => WordNet::open(self.wordnet)?,
        };
        let mut wups = Wups::new(self.database.insert(database));
        let mut credits = Vec::with_capacity(self.items.len());
        for (item, prediction) in self.items.iter().zip(self.predictions) {
            let Truth::Texts(references) = &item.truth else { continue };
            let prediction = prediction.text();
            let item = WupsItem { prediction, references, question_type: &item.kind };
            credits.push(wups.credit(&item, text, threshold)?);
        }
        Ok(credits)
    }

    fn choices(&self) -> Vec<f64> {
        let both = self.items.iter().zip(self.predictions);
        both.map(|(item, prediction)| {
            let is_right = matches!((&item.truth, prediction),
                (Truth::Choice(right), Prediction::Choice(chosen)) if right == chosen);
            f64::from(u8::from(is_right))
        })
        .collect()
    }

    /// The mean over all, and over the items of each type, and of each first letter of the two of NExT-QA's types.
    fn by_kind(&self, metric: Metric, credits: &[f64], overall: Overall) -> Measured {
        let is_next_qa = metric.has_types_of_next_qa();
        let kind_of = |item: &'a Evidence<'a>| {
            if is_next_qa { official_type(&item.kind) } else { &item.kind }
        };
        let types = self.items.iter().map(kind_of);
        let types: BTreeSet<&str> = types.filter(|kind| !kind.is_empty()).collect();
        let has_letters = is_next_qa && types.iter().all(|kind| kind.len() == 2);
        let mut groups: BTreeSet<&str> = types.clone();
        if has_letters {
            groups.extend(types.iter().filter_map(|kind| kind.get(..1)));
        }
        let n_types = types.len();
        let terms = match overall {
            Overall::Items => Vec::new(),
            Overall::Types => {
                let both = self.items.iter().zip(credits);
                both.map(|(item, credit)| json!([item.kind, credit])).collect()
            }
        };
        let sums_of = |group: &str| {
            let term = |(item, credit): (&'a Evidence<'a>, &f64)| {
                let kind = kind_of(item);
                let is_in = kind == group || has_letters && kind.starts_with(group);
                if is_in { [*credit, 1.0] } else { [0.0, 0.0] }
            };
            Sums::of(self.clusters, self.items.iter().zip(credits).map(term))
        };
        let all = Sums::of(self.clusters, credits.iter().map(|credit| [*credit, 1.0]));
        let of_groups: Vec<Sums<2>> = groups.iter().map(|group| sums_of(group)).collect();
        let name = |group: &&str| format!("{}/{group}", metric.name());
        Measured {
            metric,
            names: std::iter::once(metric.name()).chain(groups.iter().map(name)).collect(),
            scores: Box::new(move |times| {
                let groups: Vec<Option<f64>> =
                    of_groups.iter().map(|sums| ratio(sums.drawn(times))).collect();
                let all = match overall {
                    Overall::Items => ratio(all.drawn(times)),
                    Overall::Types => {
                        let sum: Option<f64> = groups.iter().copied().sum();
                        sum.map(|sum| sum / n_types as f64)
                    }
                };
                std::iter::once(all).chain(groups).collect()
            }),
            credits: credits.iter().map(|credit| json!(credit)).collect(),
            terms,
        }
    }

    fn roc_auc(&self, metric: Metric) -> Result<Measured, EvalError> {
        let mut judged: Vec<Judged> = Vec::with_capacity(self.items.len());
        for (item, prediction) in self.items.iter().zip(self.predictions) {
            let Truth::Label(label) = item.truth else { continue };
            let score = prediction.scores().first().copied();
            let score = score.ok_or_else(|| self.without_scores(item, metric))?;
            if score.is_nan() {
                return Err(self.refuse(format!("the score of {} is not a number", item.id)));
            }
            judged.push((score, label));
        }
        let thresholds = Thresholds::of(&judged).expect("each score is a number");
        let credits = thresholds.shares().into_iter().map(|share| json!(share)).collect();
        let clusters = self.clusters.clone();
        Ok(Measured {
            metric,
            names: vec![metric.name()],
            scores: Box::new(move |times| {
                vec![thresholds.roc_auc(|i| f64::from(times[clusters.of_query(i)]))]
            }),
            credits,
            terms: judged.iter().map(|(score, label)| json!([score, label])).collect(),
        })
    }

    /// A text alone tells no rank.
    fn without_scores(&self, item: &Evidence<'_>, metric: Metric) -> EvalError {
        let (id, name) = (&item.id, metric.name());
        self.refuse(format!(
            "the prediction of {id} has no scores of candidates, which {name} needs"
        ))
    }

    /// Scores of candidates, of which there must be `n`.
    fn candidates<'b>(
        &self,
        metric: Metric,
        (item, prediction): (&Evidence<'_>, &'b Prediction<'_>),
        n: Option<usize>,
    ) -> Result<&'b [f64], EvalError> {
        let scores = prediction.scores();
        if scores.is_empty() {
            return Err(self.without_scores(item, metric));
        }
        if let Some(n) = n.filter(|n| *n != scores.len()) {
            let found = scores.len();
            return Err(self.refuse(format!("{} has {found} candidates, expected {n}", item.id)));
        }
        match scores.iter().position(|score| score.is_nan()) {
            None => Ok(scores),
            Some(at) => {
                let problem = format!("candidate {at} of {} is not a number", item.id);
                Err(self.refuse(problem))
            }
        }
    }

    fn ndcg(&self, metric: Metric) -> Result<Measured, EvalError> {
        let mut credits = Vec::with_capacity(self.items.len());
        for (item, prediction) in self.items.iter().zip(self.predictions) {
            let Truth::Relevance(relevance) = &item.truth else { continue };
            let n = Some(relevance.len());
            let scores = self.candidates(metric, (item, prediction), n)?;
            // Where nothing is relevant, the official tool counts zero.
            credits.push(ndcg(scores, relevance).unwrap_or_default());
        }
        Ok(self.mean(metric, &credits))
    }

    fn recall(&self, metric: Metric) -> Result<Measured, EvalError> {
        let mut ranks = Vec::with_capacity(self.items.len());
        for (item, prediction) in self.items.iter().zip(self.predictions) {
            let Truth::Candidate(right) = &item.truth else { continue };
            let scores = self.candidates(metric, (item, prediction), None)?;
            if *right >= scores.len() {
                let found = scores.len();
                let problem =
                    format!("{} has {found} candidates, the right one is {right}", item.id);
                return Err(self.refuse(problem));
            }
            ranks.push(rank(scores, *right) as f64);
        }
        let within = |rank: f64, k: f64| f64::from(u8::from(rank <= k));
        let term = |rank: &f64| {
            let at = |k| within(*rank, k);
            [at(1.0), at(5.0), at(10.0), *rank, 1.0 / rank, 1.0]
        };
        let sums = Sums::of(self.clusters, ranks.iter().map(term));
        let names = ["recall@1", "recall@5", "recall@10", "mean-rank", "mean-reciprocal-rank"];
        Ok(Measured {
            metric,
            names: names.map(str::to_owned).to_vec(),
            scores: Box::new(move |times| {
                let [one, five, ten, rank, reciprocal, n] = sums.drawn(times);
                [one, five, ten, rank, reciprocal].map(|sum| ratio([sum, n])).to_vec()
            }),
            credits: ranks.iter().map(|rank| json!(1.0 / rank)).collect(),
            terms: Vec::new(),
        })
    }

    fn mwap(&self, metric: Metric) -> Result<Measured, EvalError> {
        let clip = |item: &Evidence<'_>| match &item.truth {
            Truth::Clip(clip) => Some(Clip::clone(clip)),
            _ => None,
        };
        let clips: Vec<Clip> = self.items.iter().filter_map(clip).collect();
        let n_classes = clips.iter().map(|clip| clip.class + 1).max().unwrap_or_default();
        for (item, prediction) in self.items.iter().zip(self.predictions) {
            let found = prediction.scores().len();
            if found == 0 {
                return Err(self.without_scores(item, metric));
            }
            if found < n_classes {
                let problem =
                    format!("clip {} has scores of {found} of {n_classes} classes", item.id);
                return Err(self.refuse(problem));
            }
        }
        let score = |clip: usize, class: usize| self.predictions[clip].scores()[class];
        let actions = actions(&clips, score).map_err(|error| {
            let clip = &self.items[error.clip].id;
            self.refuse(format!(
                "the score of clip {clip} for class {} is not a number",
                error.class
            ))
        })?;
        let mut credits = vec![Value::Null; self.items.len()];
        for (clip, precision) in actions.iter().flat_map(Action::precisions) {
            credits[clip] = json!(precision);
        }
        // The scores stand beside them in samples.
        let terms = clips.iter().map(|clip| json!([clip])).collect();
        let clusters = self.clusters.clone();
        Ok(Measured {
            metric,
            names: vec![metric.name()],
            scores: Box::new(move |times| {
                vec![mwap(&actions, |clip| f64::from(times[clusters.of_query(clip)]))]
            }),
            credits,
            terms,
        })
    }
}

/// What the first figure of a metric with types is the mean of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Overall {
    Items,
    Types,
}

fn caption_pair<'a>((item, prediction): (&'a Evidence<'a>, &'a Prediction<'a>)) -> CaptionPair<'a> {
    let references = match &item.truth {
        Truth::Captions(captions) => captions.iter().map(AsRef::as_ref).collect(),
        _ => Vec::new(),
    };
    CaptionPair { prediction: prediction.text(), references }
}
