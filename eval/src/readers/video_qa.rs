//! MSVD-QA and MSRVTT-QA (`test_qa.json`): a list of `id`, `video_id`, `question` and `answer`. MSVD-QA counts its
//! films; `youtube_mapping.txt`, of lines `NAME vidN`, says which is which.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;

use crate::error::EvalError;
use crate::ids::Id;
use crate::item::{Item, Truth};
use crate::metrics::vqa::HumanAnswer;
use crate::readers::SplitFiles;
use crate::readers::entries::{JsonFile, Labelled, wrong};

#[derive(Deserialize)]
struct Entry {
    id: Id,
    video_id: Id,
    question: String,
    answer: Option<String>,
}

/// One item per question. Categories are the words that questions begin with: what, who, how, when, where.
pub(super) fn read(split: &SplitFiles<'_>) -> Result<Vec<Item>, EvalError> {
    let path = split.path("annotations")?;
    let names = split.optional("mapping").map(|path| mapping(&path)).transpose()?;
    let mut items = Vec::new();
    let mut labelled = Labelled::default();
    JsonFile::at(&path).each(&[], "entry", |entry: Entry| {
        let Id(video) = &entry.video_id;
        let mut values = vec![("video_id", &**video)];
        if let Some(names) = &names {
            let name = names.get(video);
            let name =
                name.ok_or_else(|| format!("is of film {video}, which the mapping lacks"))?;
            values.push(("video_name", name));
        }
        labelled.note(&entry.id.0, entry.answer.is_some());
        items.push(Item {
            medium: split.film(&values, None)?,
            medium_id: entry.video_id.0.clone(),
            id: entry.id.0,
            category: entry.question.split_whitespace().next().map(str::to_lowercase),
            fields: [("question", entry.question)].into(),
            truth: entry
                .answer
                .map_or(Truth::Hidden, |it| Truth::Answers(vec![HumanAnswer::plain(it)])),
            candidates: Arc::default(),
        });
        Ok(())
    })?;
    labelled.check(&path, "answer")?;
    Ok(items)
}

/// Names of films by number.
fn mapping(path: &str) -> Result<HashMap<String, String>, EvalError> {
    let text = std::fs::read_to_string(path).map_err(EvalError::file("read", path))?;
    let mut names = HashMap::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let refuse = |problem: &str| wrong(path, format!("line {} {problem}", i + 1));
        let (name, number) =
            line.trim().rsplit_once(' ').ok_or_else(|| refuse("is not `NAME vidN`"))?;
        let number = number.strip_prefix("vid").ok_or_else(|| refuse("has no number `vidN`"))?;
        if names.insert(number.to_owned(), name.trim().to_owned()).is_some() {
            return Err(refuse(&format!("is the second of film {number}")));
        }
    }
    Ok(names)
}
