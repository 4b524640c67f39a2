//! `flamingo-eval run`: from a checked command line to `results.json`, samples and `report.html`.

use std::path::PathBuf;

use flamingo_model::{Device, DeviceChoice, Precision};

use crate::annotations::Annotations;
use crate::bootstrap::RESAMPLES;
use crate::error::EvalError;
use crate::evaluate::{Evaluation, Plan};
use crate::report::report_html;
use crate::results::results_json;
use crate::settings::write_whole;
use crate::subject::{LoadedModel, Subject};
use crate::table::{control_table, score_table};
use crate::task::TaskName;

/// A task with its annotations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Benchmark {
    /// The rules.
    pub task: TaskName,
    /// Folder or URL with `support/`, `query/` and perhaps `task.toml`.
    pub annotations: String,
}

/// A command line, checked for form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// What to ask, each task once.
    pub benchmarks: Vec<Benchmark>,
    /// A run of `flamingo-train`, or one of its checkpoints.
    pub model: PathBuf,
    /// Shot counts, without repeats.
    pub shots: Vec<usize>,
    /// Folder for results.
    pub out: PathBuf,
    /// Only this many queries of each benchmark.
    pub limit: Option<usize>,
    /// Seed of everything random.
    pub seed: u64,
    /// Where the model computes.
    pub device: DeviceChoice,
    /// In which number format, on a GPU.
    pub precision: Precision,
}

/// Runs the benchmarks and returns their tables as text.
///
/// # Errors
/// When the device cannot be used, the model or a benchmark cannot be read, a benchmark has too few support examples, the
/// output folder holds samples made with other
/// settings, the model fails, or the disk does.
pub fn run(command: &Command) -> Result<String, EvalError> {
    let device = Device::open(command.device, command.precision, |text| eprintln!("{text}"))
        .map_err(EvalError::Device)?;
    let model = LoadedModel::open(&command.model, device)?;
    eprintln!("device: {device}");
    let mut opened = Vec::new();
    for benchmark in &command.benchmarks {
        let annotations = Annotations::open(&benchmark.annotations)?;
        opened.push((benchmark.task.on(&annotations)?, annotations));
    }
    let plans = opened.iter().map(|(task, annotations)| Plan {
        task: task.as_ref(),
        annotations,
        shots: &command.shots,
        limit: command.limit,
        seed: command.seed,
        out: &command.out,
    });
    let plans = plans.map(|plan| Ok((plan.choose_shots()?, plan)));
    let plans = plans.collect::<Result<Vec<_>, EvalError>>()?;
    std::fs::create_dir_all(&command.out).map_err(EvalError::file("create", &command.out))?;
    let mut evaluations: Vec<(Evaluation, &Annotations)> = Vec::new();
    for (shown, plan) in &plans {
        let subject = Subject::new(&model, plan.annotations);
        evaluations.push((plan.run(&subject, shown)?, plan.annotations));
    }
    let pairs: Vec<_> =
        evaluations.iter().map(|(evaluation, files)| (evaluation, *files)).collect();
    let report = report_html(&model, &pairs)?;
    let all: Vec<&Evaluation> = pairs.iter().map(|(evaluation, _)| *evaluation).collect();
    write_whole(&command.out.join("report.html"), &report)?;
    write_whole(&command.out.join("results.json"), &results_json(&all, RESAMPLES))?;
    Ok(tables(&all))
}

fn tables(evaluations: &[&Evaluation]) -> String {
    let controls = evaluations.iter().filter_map(|evaluation| control_table(evaluation));
    let tables = [score_table(evaluations)].into_iter().chain(controls);
    let texts: Vec<String> = tables.map(|table| table.to_text()).collect();
    texts.join("\n")
}
