//! Whether a benchmark is there, before any model runs: its files, what they say, and its pictures and films. What is
//! missing is named, as far as a message can, and counted.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use crate::benchmark::{Benchmark, SplitChoice, SupportChoice};
use crate::error::EvalError;
use crate::ids::some_of;
use crate::item::{Item, Truth};
use crate::medium::{FrameSampling, Medium};
use crate::task_file::TaskFile;

/// What is done about pictures and films that are not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MissingMedia {
    /// They are an error.
    #[default]
    Refuse,
    /// Their items are left out, of the queries, too: scores are of another benchmark, which is said.
    Skip,
    /// They are not looked for: answers are there already.
    Ignore,
}

/// How a benchmark is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Opening {
    /// Seed of the examples to draw from.
    pub seed: u64,
    /// What is done about pictures and films that are not there.
    pub missing_media: MissingMedia,
}

/// The files of a split that are not there, as paths.
fn missing_files(task: &TaskFile, location: &str, split: &str) -> Result<Vec<String>, EvalError> {
    // Corpora may lie in an object store; they say themselves when they are not there.
    if task.reader.has_settings() {
        return Ok(Vec::new());
    }
    let files = task.split(split)?.iter().filter(|(role, _)| task.reader.is_file(role));
    let missing = files.filter(|(_, file)| !Path::new(location).join(file).exists());
    Ok(missing.map(|(_, file)| file.clone()).collect())
}

/// Checks that the files of the splits in question are there.
///
/// # Errors
/// When some are not, naming all of them and where they are to be had, or there is no such split.
pub fn files(task: &TaskFile, location: &str, choice: &SplitChoice) -> Result<(), EvalError> {
    let query = Some(choice.query.as_ref().unwrap_or(&task.query));
    let support = match &choice.support {
        SupportChoice::OfTask => task.support.as_ref(),
        SupportChoice::Split(split) => Some(split),
        SupportChoice::Nowhere => None,
    };
    let mut missing = BTreeSet::new();
    for split in [query, support].into_iter().flatten() {
        missing.extend(missing_files(task, location, split)?);
    }
    if missing.is_empty() {
        return Ok(());
    }
    let named: Vec<String> = missing.into_iter().collect();
    let problem = format!(
        "task `{}` needs {}, which {} not there; `flamingo-eval tasks {0}` tells where to get {}",
        task.name,
        named.join(", "),
        if named.len() == 1 { "is" } else { "are" },
        if named.len() == 1 { "it" } else { "them" },
    );
    Err(EvalError::Annotations { path: location.into(), problem })
}

/// Which items have nothing to look at, with the names of what is missing, each once.
fn without_media(items: &[Item], sampling: FrameSampling) -> (Vec<bool>, Vec<String>) {
    let (mut listed, mut seen) = (HashMap::new(), HashMap::new());
    let mut names = Vec::new();
    let lost = items.iter().map(|item| {
        let name = item.medium.as_ref().map_or_else(|| format!("none of `{}`", item.id), named);
        *seen.entry(name.clone()).or_insert_with(|| {
            let is_there = |medium: &Medium| medium.has_frames(sampling, &mut listed);
            let is_lost = !item.medium.as_ref().is_some_and(is_there);
            if is_lost {
                names.push(name);
            }
            is_lost
        })
    });
    (lost.collect(), names)
}

/// A medium with the part that is meant.
fn named(medium: &Medium) -> String {
    match medium {
        Medium::Frames { span: Some((start, end)), .. } => {
            format!("{} from {start} to {end} s", medium.name())
        }
        _ => medium.name(),
    }
}

/// Checks that pictures and films are there, or leaves out items whose are not. What is to be said of it comes back;
/// none if all are there.
///
/// # Errors
/// When some are missing and that is not wanted, or none are left.
pub fn media(
    benchmark: &mut Benchmark,
    missing: MissingMedia,
) -> Result<Option<String>, EvalError> {
    if missing == MissingMedia::Ignore {
        return Ok(None);
    }
    let name = benchmark.task.name.clone();
    let location = benchmark.location.clone();
    let sampling = benchmark.task.frames;
    let mut told = Vec::new();
    for (which, items) in [("query", &mut benchmark.query), ("support", &mut benchmark.support)] {
        let (is_lost, names) = without_media(items, sampling);
        let (n, total) = (is_lost.iter().filter(|is_lost| **is_lost).count(), items.len());
        if n == 0 {
            continue;
        }
        told.push(format!(
            "{n} of {total} {which} items have no picture or film: {} missing or without frames, {}",
            names.len(),
            some_of(&names)
        ));
        if missing == MissingMedia::Skip {
            if which == "query" {
                benchmark.n_skipped += n;
            }
            let mut is_lost = is_lost.iter();
            items.retain(|_| is_lost.next() == Some(&false));
        }
    }
    if told.is_empty() {
        return Ok(None);
    }
    let problem = format!("task `{name}`: {}", told.join("; "));
    let refuse = |problem| Err(EvalError::Annotations { path: location.into(), problem });
    match missing {
        MissingMedia::Refuse => {
            refuse(format!("{problem}; --skip-missing-media leaves such items out"))
        }
        MissingMedia::Skip if benchmark.query.is_empty() => {
            refuse(format!("{problem}; nothing is left to be asked"))
        }
        MissingMedia::Skip | MissingMedia::Ignore => {
            Ok(Some(format!("{problem}; they are left out")))
        }
    }
}

/// Reads a benchmark of which everything is there; says on stderr what was left out.
///
/// # Errors
/// As [`files`], [`Benchmark::open`] and [`media`].
pub fn open(
    task: TaskFile,
    location: &str,
    choice: &SplitChoice,
    how: Opening,
) -> Result<Benchmark, EvalError> {
    files(&task, location, choice)?;
    let mut benchmark = Benchmark::open(task, location, choice, how.seed)?;
    if let Some(told) = media(&mut benchmark, how.missing_media)? {
        eprintln!("{told}");
    }
    Ok(benchmark)
}

/// All that can be told of a benchmark without a model, as text: `tasks NAME --check DIR`.
///
/// # Errors
/// When files are missing or wrong, or pictures or films are missing.
pub fn run(task: TaskFile, location: &str, choice: &SplitChoice) -> Result<String, EvalError> {
    let benchmark = open(task, location, choice, Opening::default())?;
    let task = &benchmark.task;
    let mut text = format!("{}: {} is complete\n", task.name, location);
    let support = task.support.as_deref().map(|split| (split, "support", &benchmark.support));
    let splits = [Some((task.query.as_str(), "query", &benchmark.query)), support];
    for (split, which, items) in splits.into_iter().flatten() {
        let media: BTreeSet<String> =
            items.iter().filter_map(|item| item.medium.as_ref().map(Medium::name)).collect();
        let hidden = items.iter().filter(|item| item.truth == Truth::Hidden).count();
        let hidden = match hidden {
            0 => String::new(),
            n => format!(", {n} with answers that the benchmark keeps back"),
        };
        let (n, media) = (items.len(), media.len());
        let drawn = if which == "support" && n == task.support_max {
            ", drawn by seed 0: no others were looked at"
        } else {
            ""
        };
        text = format!(
            "{text}  {which:<8} {split:<10} {n} items, {media} pictures or films{hidden}{drawn}\n"
        );
    }
    Ok(text)
}
