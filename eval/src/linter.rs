//! `flamingo-eval lint`: what is wrong, or looks wrong, with a file of predictions before a tool or server sees it.
//!
//! Errors make an official tool refuse the file, or score something else than was meant. Warnings are what files look like when
//! something went wrong: they name ids, and how many there are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use clap::Args;

use crate::benchmark::Benchmark;
use crate::error::EvalError;
use crate::ids::some_of;
use crate::item::{Item, Truth};
use crate::metrics::ptb_tokenize::LINE_ENDS;
use crate::predictions::{Prediction, Predictions, candidate_of};
use crate::prompt::Template;
use crate::subject::Ending;
use crate::submission::Predicted;

/// Predictions from which shares are looked at: of fewer, most can be alike by chance.
const SHARE_OF_AT_LEAST: usize = 20;

/// The share of captions that may be word for word what a person wrote. Models that describe well repeat few of a
/// hundred.
const SAME_AS_REFERENCE_MAX: f64 = 0.5;

/// The share of answers that may be one and the same.
const ONE_ANSWER_MAX: f64 = 0.9;

/// The share of answers that may be cut off: by what their file says, or else of captions by ending in a word that begins something.
const CUT_MAX: f64 = 0.1;

/// Words that no caption ends in, unless it was cut off.
const OPENING_WORDS: [&str; 14] =
    ["a", "an", "the", "of", "with", "and", "in", "on", "at", "to", "is", "are", "his", "her"];

/// What is checked.
#[derive(Debug, Args)]
pub struct Lint {
    #[command(flatten)]
    predicted: Predicted,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The file is refused, or scored wrongly.
    Error,
    /// It looks as if something went wrong.
    Warning,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is, with ids and how many.
    pub text: String,
}

/// Checks a file; what is to be printed comes back, and whether there is no error.
///
/// # Errors
/// When a file cannot be read or is of no known form.
pub fn run(lint_args: &Lint) -> Result<(String, bool), EvalError> {
    let (benchmark, file) = lint_args.predicted.read()?;
    let findings = lint(&benchmark, &file);
    let is_sound = findings.iter().all(|finding| finding.severity != Severity::Error);
    let n = file.entries.len();
    let summary = if findings.is_empty() { "nothing to complain about" } else { "checked" };
    Ok((format!("{}{n} predictions: {summary}\n", as_text(&findings)), is_sound))
}

/// One line each, errors first.
pub fn as_text(findings: &[Finding]) -> String {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| finding.severity);
    let mut text = String::new();
    for Finding { severity, text: what } in sorted {
        let name = if *severity == Severity::Error { "error" } else { "warning" };
        let _ = writeln!(text, "{name}: {what}");
    }
    text
}

/// What is wrong with predictions of a benchmark's queries.
pub fn lint(benchmark: &Benchmark, file: &Predictions) -> Vec<Finding> {
    let mut findings = id_findings(benchmark, file);
    let items: BTreeMap<&str, &Item> =
        benchmark.query.iter().map(|item| (item.id.as_str(), item)).collect();
    let pairs = file.entries.iter().filter_map(|it| Some((*items.get(it.id.as_str())?, it)));
    let pairs: Vec<(&Item, &Prediction)> = pairs.collect();
    let is_closed = benchmark.task.decoding.is_closed();
    let warnings = if is_closed {
        vec![other_than_candidates(&pairs), kept_back(&pairs), percentages(&pairs)]
    } else {
        vec![
            empty(&pairs),
            kept_back(&pairs),
            line_breaks(&pairs),
            echoes(&pairs, benchmark.task.templates.values()),
            references(&pairs),
            cut_off(&pairs),
            one_answer(&pairs),
        ]
    };
    findings.extend(wrong_number_of_scores(&pairs));
    findings.extend(other_rounds(file));
    findings.extend(warnings.into_iter().flatten());
    findings
}

fn wrong_number_of_scores(pairs: &Pairs<'_>) -> Option<Finding> {
    let is_wrong = |item: &Item, it: &Prediction| {
        !it.scores.is_empty() && it.scores.len() != item.candidates.len()
    };
    let found = named(pairs, "predictions with more or fewer scores than candidates", is_wrong)?;
    Some(Finding { severity: Severity::Error, ..found })
}

fn other_rounds(file: &Predictions) -> Option<Finding> {
    let (n, named) = (file.other_rounds.len(), some_of(&file.other_rounds));
    (n > 0).then(|| warning(format!("{n} rounds are not asked: {named}")))
}

fn id_findings(benchmark: &Benchmark, file: &Predictions) -> Vec<Finding> {
    let faults = file.faults(&benchmark.query);
    let counts = [faults.repeated.len(), faults.unknown.len(), faults.missing.len()];
    let texts = faults.lines().into_iter().zip(counts.into_iter().filter(|n| *n > 0));
    let error = |(text, n): (String, usize)| Finding {
        severity: Severity::Error,
        text: format!("{n}: {text}"),
    };
    let mut findings: Vec<Finding> = texts.map(error).collect();
    let is_swapped = faults.repeated.len() >= benchmark.query.len() && faults.missing.is_empty();
    if is_swapped {
        let text = "several entries of every item: is this the file of references?".to_owned();
        findings.push(Finding { severity: Severity::Error, text });
    }
    findings
}

type Pairs<'p> = [(&'p Item, &'p Prediction)];

/// A warning that names the pairs that are `so`.
fn named(
    pairs: &Pairs<'_>,
    what: &str,
    so: impl Fn(&Item, &Prediction) -> bool,
) -> Option<Finding> {
    let found = pairs.iter().filter(|(item, it)| so(item, it));
    let ids: Vec<String> = found.map(|(item, _)| item.id.clone()).collect();
    let text = format!("{} {what}: {}", ids.len(), some_of(&ids));
    (!ids.is_empty()).then_some(Finding { severity: Severity::Warning, text })
}

/// The share of pairs that are `so`, where there are enough of them.
fn share(pairs: &Pairs<'_>, so: impl Fn(&Item, &Prediction) -> bool) -> Option<f64> {
    let n = pairs.iter().filter(|(item, it)| so(item, it)).count();
    (pairs.len() >= SHARE_OF_AT_LEAST).then(|| n as f64 / pairs.len() as f64)
}

fn warning(text: String) -> Finding {
    Finding { severity: Severity::Warning, text }
}

fn empty(pairs: &Pairs<'_>) -> Option<Finding> {
    named(pairs, "empty answers", |_, it| it.text.trim().is_empty())
}

fn line_breaks(pairs: &Pairs<'_>) -> Option<Finding> {
    let what = "answers with a line break or NUL, after which official caption tools score every later caption under \
                another image's id";
    named(pairs, what, |_, it| it.text.contains(LINE_ENDS) || it.text.contains('\0'))
}

/// Answers that repeat a part of the prompt, or the question.
fn echoes<'t>(pairs: &Pairs<'_>, templates: impl Iterator<Item = &'t Template>) -> Option<Finding> {
    let marks: BTreeSet<String> = templates.flat_map(prompt_marks).collect();
    let repeats = |item: &Item, it: &Prediction| {
        let question = item.fields.get("question").map(|question| question.trim());
        let has_question = question.is_some_and(|question| {
            question.split_whitespace().count() > 2 && it.text.contains(question)
        });
        has_question || marks.iter().any(|mark| it.text.contains(mark.as_str()))
    };
    named(pairs, "answers that repeat the prompt", repeats)
}

/// Words of a template with a colon behind them, such as `Question:`.
fn prompt_marks(template: &Template) -> Vec<String> {
    let words =
        template.prompt.split(|c: char| c.is_whitespace() || matches!(c, '{' | '}' | '>' | '<'));
    let marks = words.filter(|word| word.len() > 3 && word.ends_with(':'));
    marks.map(str::to_owned).collect()
}

fn references(pairs: &Pairs<'_>) -> Option<Finding> {
    let is_reference = |item: &Item, it: &Prediction| match &item.truth {
        Truth::Captions(captions) => captions.contains(&it.text),
        _ => false,
    };
    let share = share(pairs, is_reference).filter(|share| *share > SAME_AS_REFERENCE_MAX)?;
    let percent = 100.0 * share;
    Some(warning(format!(
        "{percent:.0} % of the captions are word for word those of people: are predictions and references swapped?"
    )))
}

fn kept_back(pairs: &Pairs<'_>) -> Option<Finding> {
    let what = "answers that the server kept back, or the model refused";
    named(pairs, what, |_, it| it.ending == Some(Ending::ContentFilter))
}

/// Answers that ended at the limit of their tokens, where the file says so; else captions that look like it.
fn cut_off(pairs: &Pairs<'_>) -> Option<Finding> {
    let is_at_limit = |_: &Item, it: &Prediction| it.ending == Some(Ending::Length);
    if pairs.iter().any(|(_, it)| it.ending.is_some()) {
        share(pairs, is_at_limit).filter(|share| *share > CUT_MAX)?;
        let what = "answers that were cut off at the limit of tokens (`max_new_tokens`)";
        return named(pairs, what, is_at_limit);
    }
    let is_cut = |item: &Item, it: &Prediction| {
        let last = it.text.split_whitespace().next_back().unwrap_or_default().to_lowercase();
        matches!(item.truth, Truth::Captions(_)) && OPENING_WORDS.contains(&last.as_str())
    };
    share(pairs, is_cut).filter(|share| *share > CUT_MAX)?;
    named(pairs, "captions that end in the middle (is the limit of tokens too low?)", is_cut)
}

fn one_answer(pairs: &Pairs<'_>) -> Option<Finding> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, it) in pairs {
        *counts.entry(it.text.as_str()).or_default() += 1;
    }
    let (text, _) = counts.into_iter().max_by_key(|(_, n)| *n)?;
    let share = share(pairs, |_, it| it.text == text).filter(|share| *share > ONE_ANSWER_MAX)?;
    let shown: String = text.chars().take(40).collect();
    Some(warning(format!("{:.0} % of the answers are {shown:?}", 100.0 * share)))
}

fn other_than_candidates(pairs: &Pairs<'_>) -> Option<Finding> {
    let is_other = |item: &Item, it: &Prediction| candidate_of(item, &it.text).is_none();
    named(pairs, "answers that are none of the candidates", is_other)
}

/// Percentages beside shares of 1 would be another scale.
fn percentages(pairs: &Pairs<'_>) -> Option<Finding> {
    let all = || pairs.iter().flat_map(|(_, it)| &it.scores).copied();
    let most = all().fold(0.0, f64::max);
    let is_like = all().all(|score| (0.0..=100.0).contains(&score)) && most > 1.0;
    is_like
        .then(|| warning(format!("scores from 0 to {most}: percentages, where 0 to 1 is usual?")))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::task_file::TaskFile;

    const N: usize = 24;

    fn benchmark(task: &str) -> Benchmark {
        let item = |i: usize| Item {
            id: i.to_string(),
            medium_id: i.to_string(),
            medium: None,
            fields: [("question", "what is it here?".to_owned())].into(),
            truth: Truth::Captions(vec![format!("a dog {i}"), "a cat".into()]),
            candidates: ["yes", "no"].map(str::to_owned).into(),
            category: None,
        };
        let mut task = TaskFile::find(task).unwrap();
        task.templates.insert("qa".into(), Template::new("<image>Question: {question} Answer:"));
        Benchmark {
            n_skipped: 0,
            task,
            location: "here".into(),
            support: Vec::new(),
            query: (0..N).map(item).collect(),
        }
    }

    fn predictions(text: impl Fn(usize) -> String) -> Predictions {
        let entry = |i: usize| Prediction {
            id: i.to_string(),
            text: text(i),
            scores: Vec::new(),
            ending: None,
        };
        Predictions {
            entries: (0..N).map(entry).collect(),
            ..Predictions::new(PathBuf::from("mine.json"))
        }
    }

    fn check(task: &str, file: &Predictions, expected: &[&str]) {
        let text = as_text(&lint(&benchmark(task), file));
        assert_eq!(text.lines().count(), expected.len(), "{text}");
        for (line, part) in text.lines().zip(expected) {
            assert!(line.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn sound_files_pass() {
        check("caption", &predictions(|i| format!("a good dog number {i}.")), &[]);
        check("label", &predictions(|i| ["yes", "no"][i % 2].into()), &[]);
    }

    #[test]
    fn ids_that_do_not_fit_are_errors_that_come_first() {
        let mut file = predictions(|i| format!("dog {i}"));
        file.entries[3].text = " ".into();
        file.entries[4].id = "5".into();
        file.entries[6].id = "elsewhere".into();
        let expected = [
            "error: 1: more than one prediction of 5",
            "error: 1: predictions of what is not asked: elsewhere",
            "error: 2: no prediction of 4, 6",
            "warning: 1 empty answers: 3",
        ];
        check("caption", &file, &expected);
        let twice = Predictions {
            entries: [&file.entries[7..], &file.entries[7..]].concat(),
            ..predictions(|i| format!("dog {i}"))
        };
        assert!(lint(&benchmark("caption"), &twice).len() >= 2);
    }

    #[test]
    fn files_of_references_are_told() {
        let mut file = predictions(|i| format!("a dog {i}"));
        check("caption", &file, &["100 % of the captions are word for word"]);
        let others = predictions(|_| "a cat".into());
        file.entries.extend(others.entries);
        let text = as_text(&lint(&benchmark("caption"), &file));
        assert!(
            text.contains("error: several entries of every item: is this the file of references?")
        );
    }

    #[test]
    fn what_models_and_tools_do_wrong_is_told() {
        let one =
            |i: usize, odd: &str| if i == 7 { odd.to_owned() } else { format!("a big dog {i}") };
        let check_one = |odd: &str, expected: &str| {
            check("caption", &predictions(|i| one(i, odd)), &[expected]);
        };
        check_one("a\rb", "1 answers with a line break or NUL");
        check_one("a\u{2028}b", "1 answers with a line break or NUL");
        check_one("a\0b", "1 answers with a line break or NUL");
        check_one("a dog Question: what", "1 answers that repeat the prompt: 7");
        check_one("Output: a dog", "1 answers that repeat the prompt: 7");
        check_one("what is it here? a dog", "1 answers that repeat the prompt: 7");
        check("caption", &predictions(|i| one(i, "a dog\nand a cat")), &[]);
        check(
            "caption",
            &predictions(|i| format!("dog {i} with a")),
            &["24 captions that end in the middle"],
        );
        check("caption", &predictions(|_| "dog".into()), &["100 % of the answers are \"dog\""]);
        check(
            "label",
            &predictions(|i| one(i, "maybe")),
            &["24 answers that are none of the candidates"],
        );
        let mut scored = predictions(|_| "yes".into());
        for entry in &mut scored.entries {
            entry.scores = vec![40.0, 60.0];
        }
        check("label", &scored, &["scores from 0 to 60: percentages"]);
    }

    #[test]
    fn what_the_file_says_of_ends_goes_before_what_texts_look_like() {
        let ended = |n_cut: usize| {
            let mut file = predictions(|i| format!("dog {i} with a"));
            for entry in &mut file.entries[..n_cut] {
                entry.ending = Some(Ending::Length);
            }
            file
        };
        check("caption", &ended(0), &["24 captions that end in the middle"]);
        check("caption", &ended(2), &[]);
        check("caption", &ended(3), &["3 answers that were cut off at the limit of tokens"]);
        let mut kept_back = predictions(|i| format!("dog {i}"));
        kept_back.entries[5].ending = Some(Ending::ContentFilter);
        check("caption", &kept_back, &["1 answers that the server kept back"]);
    }

    #[test]
    fn line_ends_are_those_of_the_official_tokenizer() {
        let with =
            |c: char| predictions(|i| format!("a dog {i}{}of two", if i == 3 { c } else { ' ' }));
        for c in LINE_ENDS {
            check("caption", &with(c), &["1 answers with a line break or NUL"]);
        }
        check("caption", &with('\u{85}'), &[]);
    }
}
