//! `flamingo-eval`: parses the command line, runs the benchmarks, prints their tables, sets the
//! exit code.

use std::collections::BTreeSet;
use std::error::Error;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use flamingo_eval::command::{Benchmark, Command, run};
use flamingo_eval::error::EvalError;
use flamingo_eval::score::{self, Score};
use flamingo_eval::task::TaskName;
use flamingo_model::{DeviceChoice, Precision};

/// Evaluates Flamingo models on few-shot benchmarks.
///
/// Exit codes: 0 done, 1 failed, 2 bad usage or config.
#[derive(Parser)]
#[command(name = "flamingo-eval", version)]
struct Cli {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Puts the queries of one or more benchmarks to a model and scores its answers.
    ///
    /// An evaluation that was cut off goes on when the same command is given again.
    #[command(after_help = "Example:\n  \
        flamingo-eval run --model runs/flamingo \\\n      \
        --task caption --annotations tasks/caption \\\n      \
        --task label --annotations tasks/label --shots 0,4,8 --out runs/scores")]
    Run(RunArgs),
    /// Scores a file of predictions against official annotations, without a model.
    #[command(after_help = "Examples:\n  \
        flamingo-eval score --annotations captions_val2014.json --predictions results.json\n  \
        flamingo-eval score --annotations v2_mscoco_val2014_annotations.json \\\n      \
        --predictions answers.json --metric vqa:official --metric vqa:open-flamingo")]
    Score(Score),
    /// Lists the tasks with what they ask and how they are scored.
    #[command(after_help = "Example:\n  flamingo-eval tasks")]
    Tasks,
}

#[derive(Args)]
struct RunArgs {
    /// Task; repeatable, the first --task goes with the first --annotations and so on.
    #[arg(long = "task", value_enum, required = true, value_name = "TASK")]
    tasks: Vec<TaskName>,
    /// Folder or URL with the corpora `support/` and `query/` and, if need be, `task.toml` with
    /// `prompt`, `content_words`, `candidates` and `max_new_tokens`; repeatable.
    #[arg(long, required = true, value_name = "DIR")]
    annotations: Vec<String>,
    /// Run folder of flamingo-train (its newest checkpoint), or one of its checkpoints.
    #[arg(long, value_name = "RUN")]
    model: PathBuf,
    /// Shot counts, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "0,4,8")]
    shots: Vec<usize>,
    /// Folder for results.json, report.html and the samples.
    #[arg(long)]
    out: PathBuf,
    /// Ask only this many queries, from the start of each corpus. CIDEr-D weighs words by how rare
    /// they are among the queries, so its values of different limits do not compare.
    #[arg(long)]
    limit: Option<NonZeroUsize>,
    /// Seed of the choice of shots, of the shuffled images and of the intervals.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where the model runs: `cpu`, `cuda:0`, `cuda:1` and so on, or `auto`: the first GPU, or the CPU
    /// where there is none or the program was built without CUDA.
    #[arg(long, value_name = "DEVICE", default_value_t)]
    device: DeviceChoice,
    /// How a GPU keeps activations and frozen weights, and multiplies: `bf16` or `f32`. A CPU computes in
    /// f32.
    #[arg(long, value_name = "FORMAT", default_value = "bf16")]
    precision: Precision,
}

impl RunArgs {
    fn checked(self) -> Result<Command, String> {
        if self.tasks.len() != self.annotations.len() {
            let (tasks, annotations) = (self.tasks.len(), self.annotations.len());
            return Err(format!("{tasks} times --task but {annotations} times --annotations"));
        }
        if let Some(repeated) = first_repeated(self.tasks.iter().map(|task| task.name())) {
            return Err(format!("--task {repeated} is given twice"));
        }
        if let Some(repeated) = first_repeated(self.shots.iter()) {
            return Err(format!("--shots has {repeated} twice"));
        }
        let pairs = self.tasks.into_iter().zip(self.annotations);
        Ok(Command {
            benchmarks: pairs.map(|(task, annotations)| Benchmark { task, annotations }).collect(),
            model: self.model,
            shots: self.shots,
            out: self.out,
            limit: self.limit.map(NonZeroUsize::get),
            seed: self.seed,
            device: self.device,
            precision: self.precision,
        })
    }
}

fn first_repeated<T: Ord + Copy>(mut values: impl Iterator<Item = T>) -> Option<T> {
    let mut seen = BTreeSet::new();
    values.find(|value| !seen.insert(*value))
}

fn main() -> ExitCode {
    let text = match Cli::parse().action {
        Action::Tasks => Ok(tasks()),
        Action::Score(args) => score::run(&args),
        Action::Run(args) => match args.checked() {
            Ok(command) => evaluate(&command),
            Err(problem) => Cli::command().error(ErrorKind::ValueValidation, problem).exit(),
        },
    };
    match text {
        Ok(text) => print(&text),
        Err(error) => {
            eprintln!("error: {}", one_line(&error));
            ExitCode::from(if error.is_bad_config() { 2 } else { 1 })
        }
    }
}

fn evaluate(command: &Command) -> Result<String, EvalError> {
    let tables = run(command)?;
    let out = command.out.display();
    Ok(format!("{tables}\nscores  {out}/results.json\nreport  {out}/report.html\n"))
}

fn tasks() -> String {
    let line = |task: &TaskName| format!("{:<9} {}\n", task.name(), task.about());
    TaskName::value_variants().iter().map(line).collect()
}

/// A reader that goes away, as `head` does, is no failure.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

/// The error and its causes, separated by colons.
fn one_line(error: &EvalError) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line.replace('\n', " ")
}
