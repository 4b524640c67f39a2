//! `flamingo-eval compare`: two runs on the same items, from the credits that `score --samples` and `run` wrote.
//!
//! BLEU, METEOR, ROC-AUC, mWAP and STAR's mean over types are computed anew from the terms that the samples hold of them;
//! every other score is the mean of its credits.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::bootstrap::{Clusters, RESAMPLES, Resampling, Scores, Sums, ratio};
use crate::error::EvalError;
use crate::ids::{Id, NAMED_MAX, first_of};
use crate::metric::Metric;
use crate::metrics::bleu::BleuCounts;
use crate::metrics::meteor::MeteorCounts;
use crate::metrics::mwap::{Clip, actions, mwap};
use crate::metrics::roc_auc::{Judged, Thresholds};
use crate::paired::{Difference, Flips, difference, flips};
use crate::table::Table;

/// What is compared.
#[derive(Debug, Args)]
pub struct Compare {
    /// Folder of results with `samples_*.jsonl`, or one such file, of the first run.
    #[arg(value_name = "A")]
    pub a: PathBuf,
    /// The same of the second run.
    #[arg(value_name = "B")]
    pub b: PathBuf,
    /// Prints one JSON object in place of tables.
    #[arg(long)]
    pub json: bool,
    /// Items that changed most, named for each metric, better ones and worse ones.
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub changed: usize,
    /// Seed of the intervals.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Resamples of the intervals.
    #[arg(long, default_value_t = RESAMPLES)]
    pub resamples: usize,
}

/// A line of a file of samples, as far as it is compared.
#[derive(Debug, Deserialize)]
struct Line {
    #[serde(alias = "key")]
    id: Id,
    #[serde(default)]
    cluster: Option<Id>,
    #[serde(default)]
    credit: Map<String, Value>,
    #[serde(default)]
    terms: Map<String, Value>,
    /// Of each candidate.
    #[serde(default, alias = "log_likelihoods")]
    scores: Vec<f64>,
}

/// The lines of a file, by id.
type Lines = BTreeMap<String, Line>;

/// Two runs of one task.
#[derive(Debug, Serialize)]
struct TaskComparison {
    /// Name of the file without `samples_`; nothing where two files were given.
    task: String,
    /// Items of both.
    n: usize,
    only_in_a: Ids,
    only_in_b: Ids,
    /// Metrics that only one of both has.
    metrics_of_one: Vec<String>,
    metrics: Vec<MetricComparison>,
}

/// Some ids, of which the first are named.
#[derive(Debug, Serialize)]
struct Ids {
    n: usize,
    first: Vec<String>,
}

#[derive(Debug, Serialize)]
struct MetricComparison {
    metric: String,
    /// Items with a credit in both.
    n: usize,
    #[serde(flatten)]
    difference: Difference,
    flips: Flips,
    most_better: Vec<Change>,
    most_worse: Vec<Change>,
}

/// Credit of an item in both.
#[derive(Debug, Clone, Serialize)]
struct Change {
    id: String,
    a: f64,
    b: f64,
}

/// Compares two runs; what is to be printed comes back.
///
/// # Errors
/// When a file cannot be read or holds no credits, or the runs have no item or metric in common.
pub fn run(compare: &Compare) -> Result<String, EvalError> {
    if compare.resamples == 0 {
        let (what, problem) = ("--resamples".to_owned(), "is 0, expected 1 or more".to_owned());
        return Err(EvalError::Unfit { what, problem });
    }
    let pairs = file_pairs(compare)?;
    let (mut tasks, mut not_scored) = (Vec::new(), Vec::new());
    for FilePair { task, a, b } in &pairs.both {
        let of_both = [lines(a)?, lines(b)?];
        let is_scored = |lines: &Lines| lines.values().any(|line| !line.credit.is_empty());
        // Answers of some splits are known to a server alone.
        if !task.is_empty() && !of_both.iter().all(is_scored) {
            not_scored.push(task.clone());
            continue;
        }
        let [of_a, of_b] = of_both;
        tasks.push(compare_files(compare, task, (a, of_a), (b, of_b))?);
    }
    if compare.json {
        let [a, b] = [&pairs.only_in_a, &pairs.only_in_b];
        let json = json!({ "tasks": tasks, "not_scored": not_scored, "files_only_in_a": a,
            "files_only_in_b": b });
        return Ok(format!("{json}\n"));
    }
    let mut text: String = tasks.iter().map(as_text).collect();
    let told = [
        ("not scored", &not_scored),
        ("files only in A", &pairs.only_in_a),
        ("files only in B", &pairs.only_in_b),
    ];
    for (what, names) in told.into_iter().filter(|(_, names)| !names.is_empty()) {
        let _ = writeln!(text, "{what}: {}", names.join(", "));
    }
    Ok(text)
}

/// Files of one round.
struct FilePair {
    /// Task and round; nothing where two files were given.
    task: String,
    a: PathBuf,
    b: PathBuf,
}

struct FilePairs {
    both: Vec<FilePair>,
    only_in_a: Vec<String>,
    only_in_b: Vec<String>,
}

/// The files of two folders by name, or two files.
fn file_pairs(compare: &Compare) -> Result<FilePairs, EvalError> {
    let refuse = |path: &Path, problem: &str| EvalError::Annotations {
        path: path.to_path_buf(),
        problem: problem.to_owned(),
    };
    match (compare.a.is_dir(), compare.b.is_dir()) {
        (false, false) => {
            let pair = FilePair { task: String::new(), a: compare.a.clone(), b: compare.b.clone() };
            return Ok(FilePairs {
                both: vec![pair],
                only_in_a: Vec::new(),
                only_in_b: Vec::new(),
            });
        }
        (true, false) => return Err(refuse(&compare.b, "it is no folder, but the other one is")),
        (false, true) => return Err(refuse(&compare.a, "it is no folder, but the other one is")),
        (true, true) => {}
    }
    let (of_a, of_b) = (sample_files(&compare.a)?, sample_files(&compare.b)?);
    let only = |these: &BTreeSet<String>, those: &BTreeSet<String>| {
        these.difference(those).cloned().collect::<Vec<_>>()
    };
    let pair = |name: &String| {
        let task = name.trim_start_matches("samples_").trim_end_matches(".jsonl").to_owned();
        FilePair { task, a: compare.a.join(name), b: compare.b.join(name) }
    };
    let both: Vec<_> = of_a.intersection(&of_b).map(pair).collect();
    if both.is_empty() {
        return Err(refuse(&compare.b, "it has no samples_*.jsonl that the other one has, too"));
    }
    Ok(FilePairs { both, only_in_a: only(&of_a, &of_b), only_in_b: only(&of_b, &of_a) })
}

/// Names of the files of answers.
fn sample_files(folder: &Path) -> Result<BTreeSet<String>, EvalError> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(EvalError::file("read", folder))? {
        let name = entry.map_err(EvalError::file("read", folder))?.file_name();
        let name = name.to_string_lossy();
        let round = name.strip_prefix("samples_").and_then(|name| name.strip_suffix(".jsonl"));
        // Readings of the controls are no answers, and parts are not whole.
        let is_of_answers =
            |round: &str| !round.ends_with("_controls") && !round.contains(".part-");
        if round.is_some_and(is_of_answers) {
            names.insert(name.into_owned());
        }
    }
    Ok(names)
}

fn lines(path: &Path) -> Result<Lines, EvalError> {
    let refuse = |problem| EvalError::Annotations { path: path.to_path_buf(), problem };
    let bytes = std::fs::read(path).map_err(EvalError::file("read", path))?;
    let mut lines = Lines::new();
    for (i, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let wrong = |problem: String| refuse(format!("line {}: {problem}", i + 1));
        let line: Line =
            serde_json::from_slice(line).map_err(|error| wrong(format!("no sample: {error}")))?;
        let Id(id) = line.id.clone();
        if lines.insert(id.clone(), line).is_some() {
            return Err(wrong(format!("`{id}` is there twice")));
        }
    }
    Ok(lines)
}

fn compare_files(
    compare: &Compare,
    task: &str,
    (a, of_a): (&Path, Lines),
    (b, of_b): (&Path, Lines),
) -> Result<TaskComparison, EvalError> {
    for (path, lines) in [(a, &of_a), (b, &of_b)] {
        if let Some((id, _)) = lines.iter().find(|(_, line)| line.credit.is_empty()) {
            let problem =
                format!("`{id}` has no `credit`, as `score --samples` and a finished `run` write");
            return Err(EvalError::Annotations { path: path.to_path_buf(), problem });
        }
    }
    let only = |these: &Lines, those: &Lines| {
        let ids: Vec<&String> = these.keys().filter(|id| !those.contains_key(*id)).collect();
        Ids { n: ids.len(), first: ids.into_iter().take(NAMED_MAX).cloned().collect() }
    };
    let items: Vec<Pair<'_>> =
        of_a.iter().filter_map(|(id, a)| Some(Pair { id, a, b: of_b.get(id)? })).collect();
    if items.is_empty() {
        let problem = "it has no id that the other file has, too".to_owned();
        return Err(EvalError::Annotations { path: b.to_path_buf(), problem });
    }
    let names = |lines: &Lines| {
        lines.values().flat_map(|line| line.credit.keys().cloned()).collect::<BTreeSet<_>>()
    };
    let (names_a, names_b) = (names(&of_a), names(&of_b));
    let mut metrics = Vec::new();
    for metric in names_a.intersection(&names_b) {
        let compared = compare_metric(compare, metric, &items);
        metrics.extend(compared.map_err(|WithoutTerms { side, id }| {
            let path = if side == Side::A { a } else { b };
            let problem = format!(
                "`{id}` has no `terms` of {metric}, of which that score is made; score the predictions again"
            );
            EvalError::Annotations { path: path.to_path_buf(), problem }
        })?);
    }
    Ok(TaskComparison {
        task: task.to_owned(),
        n: items.len(),
        only_in_a: only(&of_a, &of_b),
        only_in_b: only(&of_b, &of_a),
        metrics_of_one: names_a.symmetric_difference(&names_b).cloned().collect(),
        metrics,
    })
}

/// An item in both runs.
#[derive(Clone, Copy)]
struct Pair<'a> {
    id: &'a str,
    a: &'a Line,
    b: &'a Line,
}

/// Which line lacks what a corpus score is made of.
struct WithoutTerms {
    side: Side,
    id: String,
}

/// The figures of a metric: one, or several where credits are lists.
fn compare_metric(
    compare: &Compare,
    metric: &str,
    items: &[Pair<'_>],
) -> Result<Vec<MetricComparison>, WithoutTerms> {
    let listed =
        |pair: &Pair<'_>| pair.a.credit.get(metric).and_then(Value::as_array).map(Vec::len);
    let places: Vec<Option<usize>> = match items.iter().filter_map(listed).max() {
        None => vec![None],
        Some(n) => (0..n).map(Some).collect(),
    };
    let clusters = |items: &[Pair<'_>]| {
        let cluster = |pair: &Pair<'_>| {
            pair.a.cluster.as_ref().map_or(pair.id.to_owned(), |Id(cluster)| cluster.clone())
        };
        Clusters::of(items.iter().map(cluster))
    };
    let mut found = Vec::new();
    for at in places {
        let credits = |pair: &Pair<'_>| {
            let credit = |line: &Line| {
                let value = line.credit.get(metric)?;
                at.map_or_else(|| value.as_f64(), |at| value.get(at)?.as_f64())
            };
            Some((credit(pair.a)?, credit(pair.b)?))
        };
        let credited: Vec<(Pair<'_>, (f64, f64))> =
            items.iter().filter_map(|pair| Some((*pair, credits(pair)?))).collect();
        let (credited, credits): (Vec<Pair<'_>>, Vec<(f64, f64)>) = credited.into_iter().unzip();
        // What has no credit may count for a corpus score all the same.
        let is_of_corpus = Metric::try_from(metric.to_owned()).is_ok_and(Metric::has_terms);
        let drawn_items = if is_of_corpus { items } else { &credited };
        let clusters = clusters(drawn_items);
        let (seed, resamples) = (compare.seed, compare.resamples);
        let plan = Resampling { clusters: &clusters, seed, resamples };
        let score = |side: Side| -> Result<Box<Scores<'_>>, WithoutTerms> {
            if is_of_corpus {
                return of_terms(metric, at, &clusters, drawn_items, side);
            }
            let of_side = |(a, b): &(f64, f64)| [if side == Side::A { *a } else { *b }, 1.0];
            let sums = Sums::of(&clusters, credits.iter().map(of_side));
            Ok(Box::new(move |times| vec![ratio(sums.drawn(times))]))
        };
        let (score_a, score_b) = (score(Side::A)?, score(Side::B)?);
        let drawn = plan.draw(&[&*score_a, &*score_b]);
        let Some(difference) = difference(&drawn[0], &drawn[1], 0) else { continue };
        let (most_better, most_worse) = most_changed(compare.changed, &credited, &credits);
        found.push(MetricComparison {
            metric: figure_name(metric, at),
            n: drawn_items.len(),
            difference,
            flips: flips(credits.iter().copied()),
            most_better,
            most_worse,
        });
    }
    Ok(found)
}

/// Name of the figure that credits are the mean of.
fn figure_name(metric: &str, at: Option<usize>) -> String {
    match (metric.split_once(':'), metric, at) {
        (Some(("bleu", rule)), _, Some(at)) => format!("bleu-{}:{rule}", at + 1),
        (_, "top-k", Some(at)) => ["top-1", "top-5"].get(at).copied().unwrap_or(metric).to_owned(),
        (_, "recall", None) => "mean-reciprocal-rank".to_owned(),
        (_, _, Some(at)) => format!("{metric}[{at}]"),
        (_, _, None) => metric.to_owned(),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    A,
    B,
}

/// The corpus score of one side, from what the lines say that it is made of.
fn of_terms<'a>(
    metric: &str,
    at: Option<usize>,
    clusters: &'a Clusters,
    items: &[Pair<'a>],
    side: Side,
) -> Result<Box<Scores<'a>>, WithoutTerms> {
    let line_of = |pair: &Pair<'a>| if side == Side::A { pair.a } else { pair.b };
    let terms = |pair: &Pair<'a>| {
        let terms = line_of(pair).terms.get(metric).and_then(Value::as_array).cloned();
        terms.ok_or_else(|| WithoutTerms { side, id: pair.id.to_owned() })
    };
    let all = items.iter().map(terms).collect::<Result<Vec<_>, _>>()?;
    let times_of = |times: &[u32], i: usize| f64::from(times[clusters.of_query(i)]);
    if let (Some(counts), Some(order)) = (number_terms(&all), at) {
        let sums = Sums::of(clusters, counts);
        return Ok(Box::new(move |times| {
            let scores = BleuCounts::of_terms(sums.drawn(times)).scores();
            vec![scores.get(order).copied()]
        }));
    }
    if let Some(counts) = number_terms(&all) {
        let sums = Sums::of(clusters, counts);
        return Ok(Box::new(move |times| {
            vec![Some(MeteorCounts::of_terms(sums.drawn(times)).score())]
        }));
    }
    if let Some(thresholds) = judged_terms(&all).and_then(|judged| Thresholds::of(&judged)) {
        return Ok(Box::new(move |times| vec![thresholds.roc_auc(|i| times_of(times, i))]));
    }
    if let Some(types) = type_terms(&all) {
        let names: BTreeSet<&String> = types.iter().map(|(name, _)| name).collect();
        let sums_of = |name: &String| {
            let term = |(kind, credit): &(String, f64)| {
                if kind == name { [*credit, 1.0] } else { [0.0, 0.0] }
            };
            Sums::of(clusters, types.iter().map(term))
        };
        let of_types: Vec<Sums<2>> = names.into_iter().map(sums_of).collect();
        return Ok(Box::new(move |times| {
            let sum: Option<f64> = of_types.iter().map(|sums| ratio(sums.drawn(times))).sum();
            vec![sum.map(|sum| sum / of_types.len() as f64)]
        }));
    }
    let scores: Vec<&[f64]> = items.iter().map(|pair| &*line_of(pair).scores).collect();
    let actions = clip_terms(&all).and_then(|clips| {
        actions(&clips, |clip, class| scores[clip].get(class).copied().unwrap_or(f64::NAN)).ok()
    });
    match (actions, items.first()) {
        (Some(actions), _) => {
            Ok(Box::new(move |times| vec![mwap(&actions, |i| times_of(times, i))]))
        }
        (None, first) => {
            let id = first.map(|pair| pair.id.to_owned()).unwrap_or_default();
            Err(WithoutTerms { side, id })
        }
    }
}

/// Types with their credits.
fn type_terms(all: &[Vec<Value>]) -> Option<Vec<(String, f64)>> {
    let one = |terms: &Vec<Value>| match terms.as_slice() {
        [kind, credit] => Some((kind.as_str()?.to_owned(), credit.as_f64()?)),
        _ => None,
    };
    all.iter().map(one).collect()
}

fn clip_terms(all: &[Vec<Value>]) -> Option<Vec<Clip>> {
    let one = |terms: &Vec<Value>| match terms.as_slice() {
        [clip] => serde_json::from_value(clip.clone()).ok(),
        _ => None,
    };
    all.iter().map(one).collect()
}

/// Terms of so many numbers.
fn number_terms<const N: usize>(all: &[Vec<Value>]) -> Option<Vec<[f64; N]>> {
    let one = |terms: &Vec<Value>| {
        let counts: Option<Vec<f64>> = terms.iter().map(Value::as_f64).collect();
        counts?.try_into().ok()
    };
    all.iter().map(one).collect()
}

/// Scores with their truths.
fn judged_terms(all: &[Vec<Value>]) -> Option<Vec<Judged>> {
    let one = |terms: &Vec<Value>| match terms.as_slice() {
        [score, truth] => Some((score.as_f64()?, truth.as_bool()?)),
        _ => None,
    };
    all.iter().map(one).collect()
}

/// The items with most gain, and those with most loss.
fn most_changed(
    n: usize,
    items: &[Pair<'_>],
    credits: &[(f64, f64)],
) -> (Vec<Change>, Vec<Change>) {
    let change =
        |(pair, (a, b)): (&Pair<'_>, &(f64, f64))| Change { id: pair.id.to_owned(), a: *a, b: *b };
    let mut changes: Vec<Change> = items.iter().zip(credits).map(change).collect();
    changes.sort_by(|x, y| (y.b - y.a).total_cmp(&(x.b - x.a)));
    let better = changes.iter().filter(|change| change.b > change.a).take(n).cloned().collect();
    let worse = changes.iter().rev().filter(|change| change.b < change.a).take(n).cloned();
    (better, worse.collect())
}

fn as_text(task: &TaskComparison) -> String {
    let name = if task.task.is_empty() { String::new() } else { format!("{}: ", task.task) };
    let headers = [
        format!("{name}{} items", task.n),
        "A".to_owned(),
        "B".to_owned(),
        "B - A [95 % interval]".to_owned(),
        "p".to_owned(),
        "better".to_owned(),
        "worse".to_owned(),
        "sign test p".to_owned(),
    ];
    let row = |one: &MetricComparison| {
        let Difference { a, b, difference, p } = one.difference;
        vec![
            one.metric.clone(),
            format!("{a:.3}"),
            format!("{b:.3}"),
            format!("{:+.3} [{:+.3}, {:+.3}]", difference.value, difference.low, difference.high),
            format!("{p:.3}"),
            one.flips.better.to_string(),
            one.flips.worse.to_string(),
            format!("{:.3}", one.flips.sign_test_p),
        ]
    };
    let rows = task.metrics.iter().map(row).collect();
    let mut text = Table { headers: headers.to_vec(), rows }.to_text();
    for one in &task.metrics {
        for (what, changes) in [("better", &one.most_better), ("worse", &one.most_worse)] {
            let change =
                |change: &Change| format!("{} {:.3} -> {:.3}", change.id, change.a, change.b);
            if !changes.is_empty() {
                let changes: Vec<String> = changes.iter().map(change).collect();
                let _ = writeln!(text, "{} most {what}: {}", one.metric, changes.join("; "));
            }
        }
    }
    for (which, ids) in [("A", &task.only_in_a), ("B", &task.only_in_b)] {
        if ids.n > 0 {
            let (n, some) = (ids.n, first_of(&ids.first, ids.n));
            let _ = writeln!(text, "warning: {n} items only in {which}: {some}");
        }
    }
    if !task.metrics_of_one.is_empty() {
        let _ = writeln!(text, "warning: in one alone: {}", task.metrics_of_one.join(", "));
    }
    text
}
