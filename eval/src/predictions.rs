//! Files of predictions, by whomever they were made, as the answers of a model to a benchmark.
//!
//! What a row may look like: [`rows`]; which row is of which item: [`matched`].

pub(crate) mod matched;
pub(crate) mod rows;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use flamingo_dataset::sha256_hex;

use crate::benchmark::Benchmark;
use crate::error::EvalError;
use crate::item::{Item, Truth};
use crate::metric::evidence;
use crate::metric::{Form, yes_of};
use crate::readers::Reader;
use crate::subject::{Asked, Ending, ModelCard, OutOfContext, Ranked, Said, Subject, Writing};
use crate::task_file::Decoding;
pub use matched::IdFaults;
use matched::{Found, Matched, Names};
use rows::{Entry, entries};

/// Above which the score of yes means yes, where the file does not say what was chosen.
const YES_ABOVE: f64 = 0.5;

/// What was predicted of one thing.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Id of the image, question or clip.
    pub id: String,
    /// The answer; of closed tasks the text of the candidate that was chosen, if it is one.
    pub text: String,
    /// A score for each candidate, the higher the better; empty where none are given.
    pub scores: Vec<f64>,
    /// How the answer ended, if not by itself and the file says so.
    pub ending: Option<Ending>,
}

/// A file of predictions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PredictionFile {
    path: PathBuf,
    sha256: String,
    bytes: Vec<u8>,
}

impl PredictionFile {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(path: &Path) -> Result<Self, EvalError> {
        let bytes = std::fs::read(path).map_err(EvalError::file("read", path))?;
        Ok(Self { path: path.to_path_buf(), sha256: sha256_hex(&bytes), bytes })
    }

    /// What results say of it.
    pub fn card(&self) -> ModelCard {
        ModelCard {
            name: format!("predictions:{}", self.path.display()),
            sha256: self.sha256.clone(),
            device: "a file".to_owned(),
        }
    }

    /// What it predicts of a benchmark's queries.
    ///
    /// # Errors
    /// When a row is of no form that such queries have, the first one is named; or when there is none.
    pub fn of(&self, benchmark: &Benchmark) -> Result<Predictions, EvalError> {
        let items = &benchmark.query;
        let form = form_of(benchmark);
        let ids: Vec<&str> = items.iter().map(|item| item.id.as_str()).collect();
        let entries = entries(&self.path, &self.bytes, form, &ids)?;
        if entries.is_empty() {
            let problem = "no predictions".to_owned();
            return Err(EvalError::Annotations { path: self.path.clone(), problem });
        }
        let media = items.iter().map(|item| (item.id.as_str(), Some(item.medium_id.as_str())));
        let names = Names::of(form, media);
        let mut predictions = Predictions::new(self.path.clone());
        for entry in entries {
            match names.find(&entry.id) {
                Found::Item(place) => predictions.entries.push(of_item(form, &items[place], entry)),
                Found::OtherRound => predictions.other_rounds.push(entry.id),
                Found::Nothing => predictions.entries.push(of_stranger(entry)),
            }
        }
        Ok(predictions)
    }
}

/// In which forms predictions of a benchmark come.
fn form_of(benchmark: &Benchmark) -> Form {
    let has_relevance =
        |item: &Item| matches!(item.truth, Truth::Candidate { relevance: Some(_), .. });
    match benchmark.task.reader {
        Reader::CorpusCaptions
        | Reader::CocoCaptions
        | Reader::Karpathy
        | Reader::Vatex
        | Reader::Youcook2 => Form::Captions,
        Reader::VqaPair | Reader::Vizwiz | Reader::Textvqa => Form::People,
        Reader::Visdial if benchmark.query.iter().any(has_relevance) => Form::Relevance,
        Reader::Visdial => Form::Candidates,
        Reader::HatefulMemes => Form::Label,
        Reader::VideoQa => Form::OneAnswer,
        Reader::Ivqa => Form::Ivqa,
        Reader::NextOe => Form::NextOpen,
        Reader::Star => Form::Star,
        Reader::Rareact => Form::Clips,
        Reader::CorpusLabels | Reader::ImageFolders | Reader::Kinetics => Form::Classes,
    }
}

/// What is predicted of an item.
fn of_item(form: Form, item: &Item, entry: Entry<'_>) -> Prediction {
    let named = |text: &str| {
        let candidate = candidate_of(item, text).map(|index| item.candidates[index].clone());
        candidate.unwrap_or_else(|| text.to_owned())
    };
    let (text, scores) = match entry.said {
        evidence::Prediction::Scores(scores) => {
            let (best, scores) = match scores[..] {
                [yes] if form == Form::Label => of_yes(item, yes),
                _ => (best_of(&scores), scores),
            };
            let best = best.and_then(|best| item.candidates.get(best)).cloned();
            let chosen = entry.chosen.map(|chosen| named(&chosen));
            (chosen.or(best).unwrap_or_default(), scores)
        }
        other => (named(&text_of(other)), Vec::new()),
    };
    Prediction { id: item.id.clone(), text, scores, ending: entry.ending }
}

/// The candidate that is chosen, and a score for each, where there is one of yes alone: no has nothing.
fn of_yes(item: &Item, score: f64) -> (Option<usize>, Vec<f64>) {
    let yes = yes_of(item);
    let n = item.candidates.len();
    let scores = (0..n).map(|index| if index == yes { score } else { 0.0 }).collect();
    let best = if score > YES_ABOVE { Some(yes) } else { (0..n).find(|index| *index != yes) };
    (best, scores)
}

/// The highest score; of equal ones the first.
fn best_of(scores: &[f64]) -> Option<usize> {
    let scores = scores.iter().enumerate().rev();
    scores.max_by(|a, b| a.1.total_cmp(b.1)).map(|(index, _)| index)
}

fn of_stranger(entry: Entry<'_>) -> Prediction {
    let scores = entry.said.scores().to_vec();
    let text = entry.chosen.map_or_else(|| text_of(entry.said), std::borrow::Cow::into_owned);
    Prediction { id: entry.id, text, scores, ending: entry.ending }
}

/// The answer, or the best of several.
fn text_of(said: evidence::Prediction<'_>) -> String {
    match said {
        evidence::Prediction::Ranking(ranking) => ranking.into_iter().next().unwrap_or_default(),
        other => other.into_text().map(std::borrow::Cow::into_owned).unwrap_or_default(),
    }
}

/// What a file predicts of the queries of a benchmark.
#[derive(Debug, Clone, PartialEq)]
pub struct Predictions {
    /// The file.
    pub path: PathBuf,
    /// Its entries, in its order; ids may be there twice.
    pub entries: Vec<Prediction>,
    /// Rounds of dialogs that are there beside those that are asked.
    pub other_rounds: Vec<String>,
}

impl Predictions {
    /// None of a file.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, entries: Vec::new(), other_rounds: Vec::new() }
    }

    /// Each prediction by its id.
    ///
    /// # Errors
    /// When there are several of one item, some of none of `items`, or none of an item, ids are named, with counts; and
    /// when scores are not as many as the candidates of their item.
    pub fn of<'p>(
        &'p self,
        items: &[Item],
    ) -> Result<BTreeMap<&'p str, &'p Prediction>, EvalError> {
        let refuse = |problem| Err(EvalError::Annotations { path: self.path.clone(), problem });
        let faults = self.faults(items);
        if !faults.is_empty() {
            return refuse(faults.lines().join("; "));
        }
        let by_id: BTreeMap<&str, &Prediction> =
            self.entries.iter().map(|entry| (&*entry.id, entry)).collect();
        for item in items {
            let (found, expected) = (by_id[&*item.id].scores.len(), item.candidates.len());
            if found != 0 && found != expected {
                let id = &item.id;
                return refuse(format!("{found} scores for the {expected} candidates of {id}"));
            }
        }
        Ok(by_id)
    }

    /// What does not fit between the predictions and the items that are asked about.
    pub fn faults(&self, items: &[Item]) -> IdFaults {
        let predicted = self.entries.iter().map(|entry| entry.id.as_str());
        let matched = Matched::of(&Names::of_items(items), items.len(), predicted);
        matched.with_missing(items.iter().map(|item| item.id.as_str())).faults
    }
}

/// The candidate that a prediction names, by its text or else by its number, both as files have them.
pub fn candidate_of(item: &Item, text: &str) -> Option<usize> {
    let by_text = item.candidates.iter().position(|candidate| candidate == text);
    let by_number = || text.parse().ok().filter(|number| *number < item.candidates.len());
    by_text.or_else(by_number)
}

/// Predictions as a model on one benchmark.
pub struct PredictionSubject {
    card: ModelCard,
    by_id: BTreeMap<String, Prediction>,
}

impl PredictionSubject {
    /// The predictions of the items of a benchmark that are asked about.
    ///
    /// # Errors
    /// As [`PredictionFile::of`] and [`Predictions::of`].
    pub fn new(file: &PredictionFile, benchmark: &Benchmark) -> Result<Self, EvalError> {
        let predictions = file.of(benchmark)?;
        predictions.of(&benchmark.query)?;
        let by_id = predictions.entries.into_iter().map(|entry| (entry.id.clone(), entry));
        Ok(Self { card: file.card(), by_id: by_id.collect() })
    }

    /// A score for each candidate: those of the file, or 1 for the one that is named; and what was chosen, where that
    /// is another one than the best.
    fn ranked(&self, item: &Item) -> Ranked {
        let Prediction { text, scores, ending, .. } = &self.by_id[&item.id];
        let named = item.candidates.iter().position(|candidate| candidate == text);
        let scores = if scores.is_empty() {
            let score = |index| f64::from(u8::from(Some(index) == named));
            (0..item.candidates.len()).map(score).collect()
        } else {
            scores.clone()
        };
        let is_best = named.is_some() && named == best_of(&scores);
        Ranked { scores, said: (!is_best).then(|| text.clone()), ending: *ending }
    }
}

impl Subject for PredictionSubject {
    fn card(&self) -> ModelCard {
        self.card.clone()
    }

    fn out_of_context(&self, _: &Asked<'_>, _: usize) -> Option<OutOfContext> {
        None
    }

    fn write(&self, asked: &[Asked<'_>], _: Writing<'_>) -> Result<Vec<Said>, EvalError> {
        let said = asked.iter().map(|asked| {
            let Prediction { text, ending, .. } = &self.by_id[&asked.item.id];
            Said { text: text.clone(), ending: *ending }
        });
        Ok(said.collect())
    }

    fn rank(&self, asked: &[Asked<'_>], _: Decoding) -> Result<Vec<Ranked>, EvalError> {
        Ok(asked.iter().map(|asked| self.ranked(asked.item)).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn item(candidates: &[&str]) -> Item {
        Item {
            id: "k".into(),
            medium_id: "k".into(),
            medium: None,
            fields: BTreeMap::new(),
            truth: Truth::Hidden,
            candidates: candidates.iter().map(|text| (*text).to_owned()).collect::<Arc<[_]>>(),
            category: None,
        }
    }

    #[test]
    fn the_candidate_that_was_chosen_is_named_by_its_text() {
        let check = |form: Form, row: &str, (text, scores): (&str, &[f64])| {
            let candidates: &[&str] =
                if form == Form::Label { &["no", "yes"] } else { &["red", "blue", "1"] };
            let entry = entries(Path::new("mine"), row.as_bytes(), form, &[]).unwrap().remove(0);
            let found = of_item(form, &item(candidates), entry);
            assert_eq!((found.text.as_str(), &found.scores[..]), (text, scores), "{row}");
        };
        let classes = Form::Classes;
        check(classes, r#"[{"key": "k", "answer": "blue"}]"#, ("blue", &[]));
        check(classes, r#"[{"key": "k", "answer": 0}]"#, ("red", &[]));
        // Its text comes before its number.
        check(classes, r#"[{"key": "k", "answer": "1"}]"#, ("1", &[]));
        check(classes, r#"[{"key": "k", "answer": 3}]"#, ("3", &[]));
        check(classes, r#"[{"key": "k", "scores": [1, 2, 2]}]"#, ("blue", &[1.0, 2.0, 2.0]));
        // Of a model without likelihoods, which said something else.
        let other = r#"[{"key": "k", "prediction": "mauve", "log_likelihoods": [0, 0, 0]}]"#;
        check(classes, other, ("mauve", &[0.0; 3]));
        let none = r#"[{"key": "k", "prediction": "", "log_likelihoods": [0, 0, 0]}]"#;
        check(classes, none, ("", &[0.0; 3]));
        check(Form::Label, r#"[{"id": "k", "proba": 0.7}]"#, ("yes", &[0.0, 0.7]));
        check(Form::Label, r#"[{"id": "k", "proba": 0.3}]"#, ("no", &[0.0, 0.3]));
        check(Form::Label, r#"[{"id": "k", "proba": 0.3, "label": 1}]"#, ("yes", &[0.0, 0.3]));
        check(Form::Label, r#"[{"id": "k", "label": 0}]"#, ("no", &[]));
        check(Form::Label, r#"[{"id": "k", "scores": [-1, -2]}]"#, ("no", &[-1.0, -2.0]));
    }

    #[test]
    fn a_model_of_predictions_keeps_what_was_chosen() {
        let ranked = |text: &str, scores: &[f64]| {
            let entry = Prediction {
                id: "k".into(),
                text: text.into(),
                scores: scores.to_vec(),
                ending: None,
            };
            let card =
                PredictionFile { path: "f".into(), sha256: String::new(), bytes: Vec::new() };
            let by_id = [("k".to_owned(), entry)].into();
            PredictionSubject { card: card.card(), by_id }.ranked(&item(&["red", "blue"]))
        };
        let check = |found: Ranked, scores: [f64; 2], said: Option<&str>| {
            assert_eq!(
                found,
                Ranked { scores: scores.to_vec(), said: said.map(str::to_owned), ending: None }
            );
        };
        check(ranked("blue", &[]), [0.0, 1.0], None);
        check(ranked("mauve", &[]), [0.0, 0.0], Some("mauve"));
        check(ranked("blue", &[-2.0, -1.0]), [-2.0, -1.0], None);
        check(ranked("red", &[0.0, 0.3]), [0.0, 0.3], Some("red"));
        check(ranked("mauve", &[0.0, 0.0]), [0.0, 0.0], Some("mauve"));
    }
}
