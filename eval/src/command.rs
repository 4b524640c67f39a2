//! `flamingo-eval run`: from a checked command line to `results.json`, samples and `report.html`.

use std::path::PathBuf;

use crate::benchmark::{Benchmark, SplitChoice, SupportChoice};
use crate::bootstrap::RESAMPLES;
use crate::check::{self, MissingMedia, Opening};
use crate::endpoint::EndpointOptions;
use crate::error::EvalError;
use crate::evaluate::{Options, Plan};
use crate::evaluation::Evaluation;
use crate::local_subject::LocalSubject;
use crate::models::{Model, ModelChoice, Place, open_local};
use crate::oddities::oddity_table;
use crate::report::report_html;
use crate::results::results_json;
use crate::settings::write_whole;
use crate::submission::{Server, of_evaluation};
use crate::table::{control_table, score_table, seed_table};
use crate::task_file::TaskFile;

/// A task with its annotations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asking {
    /// Its name, or the path of its file.
    pub task: String,
    /// Whether the model was finetuned on the task.
    pub protocol: Protocol,
    /// Folder with its official files; or URL of our corpora.
    pub annotations: String,
}

/// What a model has seen of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Nothing but the examples of a prompt.
    FewShot,
    /// Its training split: it is asked without examples.
    FineTuned,
}

/// A command line, checked for form.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// What to ask, each task once.
    pub asking: Vec<Asking>,
    /// Which splits.
    pub splits: SplitChoice,
    /// What is done about pictures and films that are not there.
    pub missing_media: MissingMedia,
    /// Which model.
    pub model: ModelChoice,
    /// Whose vision encoder finds examples, if it is not the model's own.
    pub rices_with: Option<PathBuf>,
    /// What is asked of each.
    pub options: Options,
    /// Where a model of ours computes.
    pub place: Place,
    /// How a server is asked.
    pub endpoint: EndpointOptions,
}

impl Command {
    /// The splits to read. Where there are no examples, none can be asked for.
    fn splits(&self, protocol: Protocol) -> Result<SplitChoice, EvalError> {
        let is_made = matches!(self.model, ModelChoice::Predictions(_));
        if !is_made && protocol == Protocol::FewShot {
            return Ok(self.splits.clone());
        }
        if let SupportChoice::Split(split) = &self.splits.support {
            return Err(EvalError::Unfit {
                what: format!("--support-split {split}"),
                problem: "no examples are shown with --fine-tuned and --model predictions:".into(),
            });
        }
        Ok(SplitChoice { support: SupportChoice::Nowhere, ..self.splits.clone() })
    }
}

/// Runs the benchmarks and returns their tables as text.
///
/// # Errors
/// When the device cannot be used, the model or a benchmark cannot be read, a benchmark has too few support examples, the
/// output folder holds samples made with other
/// settings, the model fails, or the disk does.
pub fn run(command: &Command) -> Result<String, EvalError> {
    let options = &command.options;
    let mut benchmarks: Vec<Benchmark> = Vec::new();
    for asking in &command.asking {
        let mut task = TaskFile::find(&asking.task)?;
        if asking.protocol == Protocol::FineTuned {
            task = task.fine_tuned();
        }
        if benchmarks.iter().any(|other| other.task.name == task.name) {
            let what = format!("--task {}", asking.task);
            return Err(EvalError::Unfit { what, problem: format!("a second `{}`", task.name) });
        }
        let location = &asking.annotations;
        let missing_media = match command.model {
            // Nobody looks at them.
            ModelChoice::Predictions(_) => MissingMedia::Ignore,
            _ => command.missing_media,
        };
        let how = Opening { seed: options.seed, missing_media };
        benchmarks.push(check::open(task, location, &command.splits(asking.protocol)?, how)?);
    }
    let plans = benchmarks.iter().map(|benchmark| Plan::new(benchmark, options));
    let plans = plans.collect::<Result<Vec<_>, _>>()?;
    plans.iter().try_for_each(Plan::check_shots)?;
    let servers: Vec<Option<Server>> = benchmarks.iter().map(server).collect();
    let model = Model::open(&command.model, command.place, &command.endpoint)?;
    let eyes = command.rices_with.as_deref().map(|path| open_local(path, command.place));
    let eyes = eyes.transpose()?;
    std::fs::create_dir_all(&options.out).map_err(EvalError::file("create", &options.out))?;
    let mut evaluations: Vec<Evaluation<'_>> = Vec::new();
    for plan in &plans {
        let subject = model.subject(plan.benchmark, &options.out, options.part)?;
        let eyes = eyes.as_ref().map(|model| LocalSubject::new(model, plan.benchmark));
        evaluations.push(plan.run(&*subject, eyes.as_ref())?);
    }
    if let Some(part) = options.part {
        let out = options.out.display();
        return Ok(format!(
            "part {part} is done; once all are, the same command without --index merges them in {out}\n"
        ));
    }
    for (server, evaluation) in servers.iter().zip(&evaluations) {
        for file in server.iter().map(|it| of_evaluation(it, evaluation, &options.out)) {
            file?.iter().for_each(|file| eprintln!("for the server: {}", file.display()));
        }
    }
    let report = report_html(&model.card(), model.run(), &evaluations)?;
    write_whole(&options.out.join("report.html"), &report)?;
    write_whole(&options.out.join("results.json"), &results_json(&evaluations, RESAMPLES))?;
    Ok(tables(&evaluations))
}

/// The server of a benchmark; none where it cannot be served, which is no reason not to ask the model.
fn server(benchmark: &Benchmark) -> Option<Server> {
    Server::of(benchmark).unwrap_or_else(|error| {
        eprintln!("{}: there will be no file for its server: {error}", benchmark.task.name);
        None
    })
}

fn tables(evaluations: &[Evaluation<'_>]) -> String {
    let seeds = evaluations.iter().filter_map(seed_table);
    let controls = evaluations.iter().filter_map(control_table);
    let odd = oddity_table(evaluations);
    let tables = [score_table(evaluations)].into_iter().chain(seeds).chain(controls).chain(odd);
    let texts: Vec<String> = tables.map(|table| table.to_text()).collect();
    texts.join("\n")
}
