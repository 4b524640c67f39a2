//! `VisDial` v1.0: `data` of `questions`, `answers` and `dialogs`, whose rounds refer to both by number; and dense
//! annotations, in which people said how far each of a round's 100 answers is right.
//!
//! Items are rounds. With dense annotations they are those that have some, one per dialog; of a training split all
//! rounds; of a test split, whose answers are kept back, the last round of each dialog.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;

use crate::error::EvalError;
use crate::ids::{Id, some_of};
use crate::item::{Item, Truth};
use crate::readers::SplitFiles;
use crate::readers::entries::JsonFile;
use crate::readers::kept::Kept;

#[derive(Deserialize)]
struct Dialog {
    image_id: Id,
    caption: String,
    #[serde(rename = "dialog")]
    rounds: Vec<Round>,
}

#[derive(Deserialize)]
struct Round {
    question: usize,
    answer: Option<usize>,
    #[serde(default)]
    answer_options: Vec<usize>,
    gt_index: Option<usize>,
}

#[derive(Deserialize)]
struct Dense {
    image_id: Id,
    /// From 1.
    round_id: usize,
    /// The training split has it under another name than the validation split.
    #[serde(alias = "relevance")]
    gt_relevance: Vec<f64>,
}

/// Which rounds of which dialogs are meant, by image.
type Relevance = HashMap<String, (usize, Vec<f64>)>;

/// The texts that rounds refer to.
struct Texts {
    questions: Vec<String>,
    answers: Vec<String>,
}

/// One item per round, named by its image and number from 1: `185565-10`. Fields: `caption`, `question`, and
/// `history`, the rounds before it in the layout of questions and answers with a space behind each.
pub(super) fn read(split: &SplitFiles<'_>) -> Result<Vec<Item>, EvalError> {
    let mut relevance = split.optional("dense").map(|path| dense(&path)).transpose()?;
    let file = JsonFile::at(&split.path("annotations")?);
    let mut texts = Texts { questions: Vec::new(), answers: Vec::new() };
    file.each(&["data", "questions"], "question", |text| {
        texts.questions.push(text);
        Ok(())
    })?;
    file.each(&["data", "answers"], "answer", |text| {
        texts.answers.push(text);
        Ok(())
    })?;
    let mut kept = Kept::new(split.draw);
    let mut place = 0;
    file.each(&["data", "dialogs"], "dialog", |dialog: Dialog| {
        let rounds = match &mut relevance {
            None => meant(&dialog).map(|round| (round, None)).collect(),
            Some(relevance) => match relevance.remove(&dialog.image_id.0) {
                Some((round, relevance)) => vec![(round, Some(relevance))],
                None => Vec::new(),
            },
        };
        for (round, relevance) in rounds {
            let id = format!("{}-{}", dialog.image_id.0, round + 1);
            place += 1;
            if kept.wants(&id, place) {
                let item = texts.item(split, &dialog, round, relevance)?;
                kept.push(&id, place, item);
            }
        }
        Ok(())
    })?;
    if let Some(relevance) = relevance.filter(|rest| !rest.is_empty()) {
        let mut unknown: Vec<&str> = relevance.keys().map(String::as_str).collect();
        unknown.sort_unstable();
        let (n, named) = (unknown.len(), some_of(&unknown));
        return Err(
            file.wrong(format!("it has no dialog of {n} images with dense annotations: {named}"))
        );
    }
    Ok(kept.into_entries())
}

/// Rounds whose answers are known; the last one where none is.
fn meant(dialog: &Dialog) -> impl Iterator<Item = usize> + use<> {
    let known: Vec<usize> =
        (0..dialog.rounds.len()).filter(|&i| dialog.rounds[i].gt_index.is_some()).collect();
    let last = dialog.rounds.len().checked_sub(1).filter(|_| known.is_empty());
    known.into_iter().chain(last)
}

fn dense(path: &str) -> Result<Relevance, EvalError> {
    let mut relevance = Relevance::new();
    JsonFile::at(path).each(&[], "dense annotation", |it: Dense| {
        let round = it.round_id.checked_sub(1).ok_or("has `round_id` 0, which counts from 1")?;
        if let Some(wrong) = it.gt_relevance.iter().find(|value| !(0.0..=1.0).contains(*value)) {
            return Err(format!("has the relevance {wrong}, expected 0 to 1"));
        }
        let before = relevance.insert(it.image_id.0, (round, it.gt_relevance));
        before.map_or(Ok(()), |_| Err("is of an image that has one already".to_owned()))
    })?;
    Ok(relevance)
}

impl Texts {
    fn item(
        &self,
        split: &SplitFiles<'_>,
        dialog: &Dialog,
        index: usize,
        relevance: Option<Vec<f64>>,
    ) -> Result<Item, String> {
        let number = index + 1;
        let n_rounds = dialog.rounds.len();
        let round = dialog.rounds.get(index);
        let round = round.ok_or_else(|| format!("has {n_rounds} rounds and no round {number}"))?;
        let options =
            round.answer_options.iter().map(|&option| self.answer(option).map(str::to_owned));
        let candidates: Arc<[String]> = options.collect::<Result<Vec<_>, _>>()?.into();
        if let Some(relevance) = relevance.as_ref().filter(|it| it.len() != candidates.len()) {
            let (n, options) = (relevance.len(), candidates.len());
            return Err(format!("has {options} options in round {number}, and {n} relevances"));
        }
        let truth = match round.gt_index {
            Some(right) if right >= candidates.len() => {
                let n = candidates.len();
                return Err(format!("has `gt_index` {right} of {n} options in round {number}"));
            }
            Some(right) => Truth::Candidate { right, relevance },
            None if relevance.is_some() => {
                return Err(format!("has no `gt_index` in round {number}"));
            }
            None => Truth::Hidden,
        };
        let Id(image) = &dialog.image_id;
        let mut history = String::new();
        for before in &dialog.rounds[..index] {
            let answer =
                before.answer.ok_or_else(|| format!("has no `answer` before round {number}"))?;
            let (question, answer) = (self.question(before.question)?, self.answer(answer)?);
            history = format!("{history}Question: {question} Answer: {answer} ");
        }
        Ok(Item {
            id: format!("{image}-{number}"),
            medium_id: image.clone(),
            medium: split.image(&[("image_id", image)])?,
            fields: [
                ("caption", dialog.caption.clone()),
                ("history", history),
                ("question", self.question(round.question)?.to_owned()),
            ]
            .into(),
            truth,
            candidates,
            category: None,
        })
    }

    fn question(&self, at: usize) -> Result<&str, String> {
        let (text, n) = (self.questions.get(at), self.questions.len());
        text.map(String::as_str).ok_or_else(|| format!("refers to question {at} of {n}"))
    }

    fn answer(&self, at: usize) -> Result<&str, String> {
        let (text, n) = (self.answers.get(at), self.answers.len());
        text.map(String::as_str).ok_or_else(|| format!("refers to answer {at} of {n}"))
    }
}
