//! A benchmark on disk: its task file with the items that are asked about and those that examples are drawn
//! from.

use std::fmt::Write as _;
use std::sync::Arc;

use flamingo_dataset::{CorpusStore, sha256_hex_of};

use crate::draw::mix;
use crate::error::EvalError;
use crate::item::Item;
use crate::medium::Medium;
use crate::prompt::ImagePlace;
use crate::readers::kept::{Draw, Kept};
use crate::readers::{SplitFiles, read_split};
use crate::task_file::{SETTINGS_FILE, TaskFile};

/// A benchmark with its items.
pub struct Benchmark {
    /// Its rules.
    pub task: TaskFile,
    /// Where its files lie, as given.
    pub location: String,
    /// Items that may be shown as examples.
    pub support: Vec<Item>,
    /// Items that are asked about.
    pub query: Vec<Item>,
    /// How many more the split has, which were left out since their picture or film is not there.
    pub n_skipped: usize,
}

/// Which splits of a benchmark are used, if not those of its file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SplitChoice {
    /// The split that is asked about.
    pub query: Option<String>,
    /// Where examples are drawn from.
    pub support: SupportChoice,
}

/// Where examples are drawn from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SupportChoice {
    /// The task's own split.
    #[default]
    OfTask,
    /// Another split.
    Split(String),
    /// There are none. The task's split still tells what answers there are to choose from.
    Nowhere,
}

impl Benchmark {
    /// Reads the files of a task in a folder, or at the prefix of an object store where the task is one of
    /// our corpora.
    ///
    /// # Errors
    /// When a file is missing or is not what the task says, or two items share an id.
    pub fn open(
        mut task: TaskFile,
        location: &str,
        choice: &SplitChoice,
        seed: u64,
    ) -> Result<Self, EvalError> {
        let at = location.trim_end_matches('/');
        if let Some(query) = &choice.query {
            task.query.clone_from(query);
        }
        if let SupportChoice::Split(split) = &choice.support {
            task.support = Some(split.clone());
        }
        if task.reader.has_settings() {
            let store = CorpusStore::open(at)?;
            if store.exists(SETTINGS_FILE)? {
                let text = String::from_utf8_lossy(&store.get(SETTINGS_FILE)?).into_owned();
                task = task.with_settings(&format!("{at}/{SETTINGS_FILE}"), &text)?;
            }
        }
        let read = |split: &str, draw: Option<Draw>| {
            let files = SplitFiles { location: at, files: task.split(split)?, task: &task, draw };
            let items = read_split(&files)?;
            check(&task, split, at, &items)?;
            Ok::<_, EvalError>(items)
        };
        let draw = Draw { most: task.support_max, key: mix(seed, 3) };
        let split = task.support.as_deref().filter(|_| choice.support != SupportChoice::Nowhere);
        let support = split.map(|split| read(split, Some(draw)));
        let support = support.transpose()?.unwrap_or_default();
        let query = read(&task.query, None)?;
        let mut kept = Kept::new(Some(draw));
        for (place, item) in support.into_iter().enumerate() {
            if item.shown_answer(task.shown_answer).is_some() {
                kept.push(&item.id.clone(), place, item);
            }
        }
        let support = kept.into_entries();
        Ok(Self { task, location: location.to_owned(), support, query, n_skipped: 0 })
    }

    /// The item of an image or film of a prompt.
    pub fn item(&self, place: ImagePlace) -> &Item {
        match place {
            ImagePlace::Support(index) => &self.support[index],
            ImagePlace::Query(index) => &self.query[index],
        }
    }
}

/// Digest of items: of all that decides what a model is asked but the bytes of pictures that are not in a
/// corpus. Where the files lie does not count.
pub fn items_sha256(items: &[Item], location: &str) -> String {
    let mut before: Option<&Item> = None;
    // As one text it would take more memory than the items.
    let pieces = items.iter().map(|item| {
        let mut text = String::new();
        let medium = item.medium.as_ref().map(Medium::key).unwrap_or_default();
        let medium = medium.strip_prefix(location).unwrap_or(&medium);
        let Item { id, medium_id, fields, truth, category, .. } = item;
        let _ = writeln!(text, "{id:?} {medium_id:?} {medium:?} {fields:?} {truth:?} {category:?}");
        // Most items share their candidates.
        if !before.is_some_and(|before| Arc::ptr_eq(&before.candidates, &item.candidates)) {
            let _ = writeln!(text, "{:?}", item.candidates);
        }
        before = Some(item);
        text
    });
    sha256_hex_of(pieces)
}

/// Items must be there, be told apart by their ids, and have what the template and the metrics need.
fn check(task: &TaskFile, split: &str, location: &str, items: &[Item]) -> Result<(), EvalError> {
    let name = format!("{location} (split `{split}`)");
    if items.is_empty() {
        return Err(EvalError::Empty { location: name });
    }
    let mut ids: Vec<&str> = items.iter().map(|item| item.id.as_str()).collect();
    ids.sort_unstable();
    if let Some(twice) = ids.windows(2).find(|two| two[0] == two[1]) {
        return Err(EvalError::DuplicateKey { location: name, key: twice[0].to_owned() });
    }
    let fields = task
        .templates
        .iter()
        .flat_map(|(name, template)| template.fields().into_iter().map(move |field| (name, field)));
    for (template, field) in fields {
        if let Some(item) = items.iter().find(|item| !item.fields.contains_key(field)) {
            let known: Vec<&str> = item.fields.keys().copied().collect();
            return Err(EvalError::NoField {
                template: format!("task `{}`: template `{template}`", task.name),
                field: field.to_owned(),
                item: item.id.clone(),
                fields: format!("[{}]", known.join(", ")),
            });
        }
    }
    if task.decoding.is_closed()
        && let Some(item) = items.iter().find(|item| item.candidates.len() < 2)
    {
        let (task, item) = (task.name.clone(), item.id.clone());
        return Err(EvalError::NoCandidates { task, item });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::item::Truth;

    fn items(n: usize) -> Vec<Item> {
        let item = |i: usize| Item {
            id: format!("q{i}"),
            medium_id: i.to_string(),
            medium: None,
            fields: BTreeMap::new(),
            truth: Truth::Hidden,
            candidates: Arc::default(),
            category: None,
        };
        (0..n).map(item).collect()
    }

    #[test]
    fn items_that_share_an_id_are_named() {
        let task = TaskFile::find("caption").unwrap();
        let mut all = items(3);
        check(&task, "query", "folder", &all).unwrap();
        all[2].id = "q0".into();
        let error = check(&task, "query", "folder", &all).unwrap_err().to_string();
        assert!(error.contains("folder (split `query`) has two rows with key `q0`"), "{error}");
        assert!(check(&task, "query", "folder", &[]).is_err());
    }

    #[test]
    fn a_change_of_any_item_changes_the_digest() {
        let all = items(3);
        let mut other = all.clone();
        assert_eq!(items_sha256(&all, ""), items_sha256(&other, ""));
        other[1].truth = Truth::Captions(vec!["a".into()]);
        assert_ne!(items_sha256(&all, ""), items_sha256(&other, ""));
    }

    #[test]
    fn the_part_of_a_film_is_in_the_digest_and_where_it_lies_is_not() {
        let digest = |location: &str, film: &str, span| {
            let folder = format!("{location}/{film}").into();
            let medium = Some(Medium::Frames { folder, span });
            let all: Vec<Item> =
                items(1).into_iter().map(|item| Item { medium: medium.clone(), ..item }).collect();
            items_sha256(&all, location)
        };
        let own = digest("here", "frames/a", Some((0.0, 5.0)));
        assert_eq!(own, digest("far/away", "frames/a", Some((0.0, 5.0))));
        assert_ne!(own, digest("here", "frames/a", Some((5.0, 9.0))));
        assert_ne!(own, digest("here", "frames/b", Some((0.0, 5.0))));
    }
}
