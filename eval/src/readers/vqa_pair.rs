//! VQA's pair of files: `questions` of `question_id`, `image_id` and `question`, `annotations` of `question_id` and
//! `answers`. `VQAv2` and OK-VQA come in it, and `open_flamingo`'s versions of `TextVQA` and `VizWiz`.
//!
//! A split without annotations is one whose answers the benchmark keeps back.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde::Deserialize;

use crate::error::EvalError;
use crate::ids::{Id, some_of};
use crate::item::{Item, Truth};
use crate::readers::SplitFiles;
use crate::readers::entries::JsonFile;
use crate::readers::kept::Kept;
use crate::readers::people::{People, PersonRow};

#[derive(Deserialize)]
struct Listed {
    question_id: Id,
    image_id: Id,
    question: String,
}

#[derive(Deserialize)]
struct Annotation<'a> {
    question_id: Id,
    image_id: Option<Id>,
    answer_type: Option<String>,
    question_type: Option<String>,
    #[serde(borrow)]
    answers: Vec<PersonRow<'a>>,
}

/// What is asked, and of which image.
struct Asked {
    image_id: Id,
    question: String,
}

/// A question of the list.
struct Question {
    place: usize,
    /// None once it has its answers.
    waiting: Option<Asked>,
}

/// One item per question, in the order of the questions. Categories are answer types (yes/no, number, other), or
/// question types where there is one answer type at most, as in OK-VQA.
pub(super) fn read(split: &SplitFiles<'_>) -> Result<Vec<Item>, EvalError> {
    let file = JsonFile::at(&split.path("questions")?);
    let mut questions = HashMap::new();
    file.each(&["questions"], "question", |it: Listed| {
        let place = questions.len();
        let Listed { question_id, image_id, question } = it;
        let waiting = Some(Asked { image_id, question });
        let before = questions.insert(question_id.0, Question { place, waiting });
        before.map_or(Ok(()), |_| Err("is there twice".to_owned()))
    })?;
    let Some(annotations) = split.optional("annotations") else {
        return unanswered(split, &file, questions);
    };
    let annotations = JsonFile::at(&annotations);
    let mut kept: Kept<(Item, Option<String>)> = Kept::new(split.draw);
    let (mut answer_types, mut people) = (BTreeSet::new(), People::default());
    annotations.each(&["annotations"], "annotation", |it: Annotation<'_>| {
        let question =
            questions.get_mut(&it.question_id.0).ok_or("is of a question that is not listed")?;
        let asked = question.waiting.take().ok_or("is of a question that has one already")?;
        if it.answers.is_empty() {
            return Err("has no answer in `answers`".to_owned());
        }
        if let Some(Id(image)) = it.image_id.filter(|image| *image != asked.image_id) {
            let asked = &asked.image_id.0;
            return Err(format!("is of image {image}, its question of image {asked}"));
        }
        if let Some(kind) = it.answer_type.as_ref().filter(|kind| !answer_types.contains(*kind)) {
            answer_types.insert(kind.clone());
        }
        if kept.wants(&it.question_id.0, question.place) {
            let truth = Truth::Answers(people.answers(&it.answers));
            let item = item(split, it.question_id.0, asked, truth, it.answer_type)?;
            kept.push(&item.id.clone(), question.place, (item, it.question_type));
        }
        Ok(())
    })?;
    let mut bare: Vec<(usize, &str)> = questions
        .iter()
        .filter(|(_, question)| question.waiting.is_some())
        .map(|(id, question)| (question.place, id.as_str()))
        .collect();
    bare.sort_unstable();
    if bare.is_empty() {
        let by_answer = answer_types.len() > 1;
        let items = kept.into_entries().into_iter().map(|(item, question_type)| {
            let other = question_type.filter(|_| !by_answer);
            Item { category: other.or(item.category), ..item }
        });
        return Ok(items.collect());
    }
    let ids: Vec<&str> = bare.iter().map(|(_, id)| *id).collect();
    let asked = split.path("questions")?;
    let (n, named) = (ids.len(), some_of(&ids));
    Err(annotations.wrong(format!("{n} questions of {asked} have no annotation: {named}")))
}

fn unanswered(
    split: &SplitFiles<'_>,
    file: &JsonFile,
    questions: HashMap<String, Question>,
) -> Result<Vec<Item>, EvalError> {
    let mut kept = Kept::new(split.draw);
    for (id, Question { place, waiting }) in questions {
        let Some(asked) = waiting else { continue };
        let item = item(split, id.clone(), asked, Truth::Hidden, None);
        let item = item.map_err(|problem| file.wrong(format!("question {id} {problem}")))?;
        kept.push(&id, place, item);
    }
    Ok(kept.into_entries())
}

fn item(
    split: &SplitFiles<'_>,
    id: String,
    asked: Asked,
    truth: Truth,
    category: Option<String>,
) -> Result<Item, String> {
    let Asked { image_id: Id(medium_id), question } = asked;
    Ok(Item {
        id,
        medium: split.image(&[("image_id", &medium_id)])?,
        medium_id,
        fields: [("question", question)].into(),
        truth,
        candidates: Arc::default(),
        category,
    })
}
