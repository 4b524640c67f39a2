//! `flamingo-eval`: parses the command line, runs the benchmarks, prints their tables, sets the
//! exit code.

use std::collections::BTreeSet;
use std::error::Error;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use flamingo_eval::benchmark::{SplitChoice, SupportChoice};
use flamingo_eval::check::{self, MissingMedia};
use flamingo_eval::command::{Asking, Command, Protocol, run};
use flamingo_eval::compare::{self, Compare};
use flamingo_eval::endpoint::EndpointOptions;
use flamingo_eval::error::EvalError;
use flamingo_eval::evaluate::Options;
use flamingo_eval::evaluation::Control;
use flamingo_eval::generate::{self, Generate};
use flamingo_eval::leaks::{self, Leaks};
use flamingo_eval::linter::{self, Lint};
use flamingo_eval::models::{ModelChoice, Place};
use flamingo_eval::part::Part;
use flamingo_eval::score::{self, Score};
use flamingo_eval::self_check::{self, SelfCheck};
use flamingo_eval::shots::ShotChoice;
use flamingo_eval::submission::{self, Submission};
use flamingo_eval::task_file::TaskFile;
use flamingo_eval::tasks::{describe, list};
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
        --task label --annotations tasks/label --shots 0,4,8 --out runs/scores\n  \
        flamingo-eval run --model openai:NAME --endpoint http://127.0.0.1:8000/v1 \\\n      \
        --task caption --annotations tasks/caption --out runs/served")]
    Run(Box<RunArgs>),
    /// Scores a file of predictions against official annotations, without a model.
    #[command(after_help = "Examples:\n  \
        flamingo-eval score --annotations captions_val2014.json --predictions results.json\n  \
        flamingo-eval score --annotations v2_mscoco_val2014_annotations.json \\\n      \
        --predictions answers.json --metric vqa:official --metric vqa:open-flamingo\n  \
        flamingo-eval score --annotations val.csv --predictions answers.json --metric wups0:stop\n  \
        flamingo-eval score --task vqav2 --annotations vqav2/ --predictions answers.json")]
    Score(Score),
    /// Compares every metric with values of the official tools; exit code 1 where one differs.
    #[command(after_help = "Examples:\n  \
        flamingo-eval self-check\n  \
        flamingo-eval self-check --data ../shared/data/parity")]
    SelfCheck(SelfCheck),
    /// Compares two runs on the same items: differences with intervals, and which items changed.
    #[command(after_help = "Examples:\n  \
        flamingo-eval compare runs/a-scores runs/b-scores\n  \
        flamingo-eval compare a.jsonl b.jsonl --json")]
    Compare(Compare),
    /// Writes on after a text with pictures.
    #[command(after_help = "Examples:\n  \
        flamingo-eval generate --model runs/flamingo '<image:cat.jpg>Output:'\n  \
        flamingo-eval generate --model runs/flamingo --temperature 0.7 \\\n      \
        '<image:cat.jpg>Output: a cat<EOC><image:dog.jpg>Output:'")]
    Generate(Generate),
    /// Checks a file of predictions before a tool or server sees it: ids, empty answers, echoes of the prompt, swapped files.
    ///
    /// Exit code 1 where there is an error.
    #[command(after_help = "Example:\n  \
        flamingo-eval lint --task vqav2 --annotations vqav2 --query-split test \\\n      \
        --predictions runs/scores/samples_vqav2_4shot.jsonl")]
    Lint(Lint),
    /// Finds queries whose pictures or films the model has seen: among the examples of all tasks, and in training corpora.
    #[command(after_help = "Example:\n  \
        flamingo-eval leaks --task coco --annotations coco --task vqav2 --annotations vqav2 \\\n      \
        --corpus corpora/pages --corpus corpora/pairs")]
    Leaks(Leaks),
    /// Writes the file that the server of a benchmark takes, unless the server would refuse it.
    #[command(after_help = "Example:\n  \
        flamingo-eval submission --task vqav2 --annotations vqav2 --query-split test \\\n      \
        --predictions runs/scores/samples_vqav2_4shot.jsonl --out vqav2.json")]
    Submission(Submission),
    /// Lists the tasks with what they ask and how they are scored.
    #[command(after_help = "Examples:\n  flamingo-eval tasks\n  flamingo-eval tasks vqav2\n  \
        flamingo-eval tasks vqav2 --check data/vqav2\n  flamingo-eval tasks vqav2 --toml > mine.toml")]
    Tasks(TasksArgs),
}

#[derive(Args)]
struct TasksArgs {
    /// Task to tell of in full, by its name or the path of its file: what files each split needs and where they
    /// come from.
    task: Option<String>,
    /// Print the task's file alone, to be changed and given to `run` by its path.
    #[arg(long, requires = "task", conflicts_with = "check")]
    toml: bool,
    /// Check the files of the task in this folder, with the pictures and films that they name.
    #[arg(long, value_name = "DIR", requires = "task")]
    check: Option<String>,
    /// Split to check in place of the one that is asked about.
    #[arg(long, value_name = "SPLIT", requires = "check")]
    query_split: Option<String>,
    /// Split to check in place of the one that examples are drawn from.
    #[arg(long, value_name = "SPLIT", requires = "check")]
    support_split: Option<String>,
}

#[derive(Args)]
struct RunArgs {
    /// Task of `flamingo-eval tasks`, or the path of a task file; repeatable, the first --task goes with the
    /// first --annotations and so on.
    #[arg(long = "task", required = true, value_name = "TASK")]
    tasks: Vec<String>,
    /// Folder with the official files as downloaded; for `caption` and `label` a folder or URL with the corpora
    /// `support/` and `query/` and, if need be, `task.toml` with `prompt`, `content_words`, `candidates` and
    /// `max_new_tokens`; repeatable.
    #[arg(long, required = true, value_name = "DIR")]
    annotations: Vec<String>,
    /// Split that is asked about, if not the task's own.
    #[arg(long, value_name = "SPLIT")]
    query_split: Option<String>,
    /// Split that examples are drawn from, if not the task's own.
    #[arg(long, value_name = "SPLIT")]
    support_split: Option<String>,
    /// Leave out items whose picture or film is not there; without it they are an error.
    #[arg(long)]
    skip_missing_media: bool,
    /// Run folder of flamingo-train (its newest checkpoint), one of its checkpoints, or a folder that export wrote; a
    /// folder with OpenFlamingo's checkpoint.pt beside vision/ and language/; `openai:NAME`, a model behind
    /// --endpoint; or `predictions:FILE`, answers that were made elsewhere (samples of ours, or what the official
    /// tool takes), which are scored without shots.
    #[arg(long, value_name = "MODEL")]
    model: ModelChoice,
    /// Shot counts, separated by commas [default: 0,4,8].
    #[arg(long, value_delimiter = ',')]
    shots: Vec<usize>,
    /// The model was finetuned on the tasks, as the paper's on five of them: it is asked without examples, not even
    /// text-only ones, on the split that its task names for that.
    #[arg(long, conflicts_with = "shots")]
    fine_tuned: bool,
    /// Folder for results.json, report.html and the samples.
    #[arg(long)]
    out: PathBuf,
    /// How examples are chosen.
    #[arg(long, value_enum, default_value_t)]
    shot_choice: ShotChoice,
    /// Model of ours whose vision encoder finds the examples that look like the query, for `--shot-choice rices`: in place
    /// of the model's own, or where that is behind a server.
    #[arg(long, value_name = "RUN")]
    rices_with: Option<PathBuf>,
    /// Seeds of the choice of examples, separated by commas [default: that of --seed]. With several, results tell
    /// how far scores move with other examples and how far with other queries.
    #[arg(long, value_delimiter = ',', value_name = "SEEDS")]
    demo_seeds: Vec<u64>,
    /// Layout of prompts: `flamingo`, `open-flamingo`, or another one of the task file.
    #[arg(long, default_value = "flamingo")]
    template: String,
    /// Orders of the examples over which the log-likelihoods of a closed task are averaged (paper: 6).
    #[arg(long, default_value = "1", value_name = "N")]
    orders: NonZeroUsize,
    /// Beams of written answers; 1 takes the likeliest token at each step (paper: 3).
    #[arg(long, default_value = "3", value_name = "N")]
    beams: NonZeroUsize,
    /// A beam's log-probability is divided by its length to this power.
    #[arg(long, default_value_t = 0.0, value_name = "POWER")]
    length_penalty: f32,
    /// Also asks with something missing or wrong in the prompts, separated by commas.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "CONTROL")]
    controls: Vec<Control>,
    /// Only this part of the queries, for processes that share the work: 0/4 to 3/4, in one --out. The same command
    /// without --index merges them.
    #[arg(long, value_name = "I/N")]
    index: Option<Part>,
    /// Ask only this many queries, from the start of each corpus. CIDEr-D weighs words by how rare
    /// they are among the queries, so its values of different limits do not compare.
    #[arg(long)]
    limit: Option<NonZeroUsize>,
    /// Seed of everything random: examples, shuffled images, orders, intervals.
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
    #[command(flatten)]
    endpoint: EndpointOptions,
}

impl RunArgs {
    /// Shot counts, without repeats.
    fn shots(&self) -> Result<Vec<usize>, String> {
        if let Some(repeated) = first_repeated(self.shots.iter()) {
            return Err(format!("--shots has {repeated} twice"));
        }
        let is_made = matches!(self.model, ModelChoice::Predictions(_));
        if is_made && !(self.shots.is_empty() && self.controls.is_empty()) {
            return Err("predictions are there already: no --shots and no --controls".to_owned());
        }
        Ok(match (&self.shots[..], is_made || self.fine_tuned) {
            ([], true) => vec![0],
            ([], false) => vec![0, 4, 8],
            (shots, _) => shots.to_vec(),
        })
    }

    /// That somebody looks at pictures where examples are to look alike, and nobody elsewhere.
    fn check_rices(&self) -> Result<(), String> {
        let is_shown = !(self.fine_tuned || matches!(self.model, ModelChoice::Predictions(_)));
        let problem = match (&self.model, self.shot_choice, &self.rices_with) {
            (_, ShotChoice::Random, Some(_)) => "--rices-with RUN goes with --shot-choice rices",
            (_, _, Some(_)) if !is_shown => {
                "no examples are shown with --fine-tuned and --model predictions:, so --rices-with RUN finds none"
            }
            (ModelChoice::Endpoint(_), ShotChoice::Rices, None) if is_shown => {
                "a server shows no vision encoder: --shot-choice rices needs --rices-with RUN"
            }
            _ => return Ok(()),
        };
        Err(problem.to_owned())
    }

    fn checked(self) -> Result<Command, String> {
        if self.tasks.len() != self.annotations.len() {
            let (tasks, annotations) = (self.tasks.len(), self.annotations.len());
            return Err(format!("{tasks} times --task but {annotations} times --annotations"));
        }
        if let Some(repeated) = first_repeated(self.tasks.iter()) {
            return Err(format!("--task {repeated} is given twice"));
        }
        let shots = self.shots()?;
        if matches!(self.model, ModelChoice::Endpoint(_)) != self.endpoint.endpoint.is_some() {
            return Err("--model openai:NAME and --endpoint URL go together".to_owned());
        }
        self.endpoint.address()?;
        self.check_rices()?;
        if let Some(repeated) = first_repeated(self.demo_seeds.iter()) {
            return Err(format!("--demo-seeds has {repeated} twice"));
        }
        if let Some(repeated) = first_repeated(self.controls.iter().copied()) {
            return Err(format!("--controls has {} twice", repeated.name()));
        }
        if !self.length_penalty.is_finite() {
            return Err(format!("--length-penalty is {}", self.length_penalty));
        }
        let protocol = if self.fine_tuned { Protocol::FineTuned } else { Protocol::FewShot };
        let pairs = self.tasks.into_iter().zip(self.annotations);
        let asking = pairs.map(|(task, annotations)| Asking { task, protocol, annotations });
        let demo_seeds = if self.demo_seeds.is_empty() { vec![self.seed] } else { self.demo_seeds };
        let options = Options {
            shots,
            demo_seeds,
            choice: self.shot_choice,
            template: self.template,
            orders: self.orders.get(),
            beams: self.beams.get(),
            length_penalty: self.length_penalty,
            controls: self.controls,
            limit: self.limit.map(NonZeroUsize::get),
            seed: self.seed,
            part: self.index,
            out: self.out,
        };
        Ok(Command {
            asking: asking.collect(),
            splits: SplitChoice { query: self.query_split, support: support(self.support_split) },
            missing_media: if self.skip_missing_media {
                MissingMedia::Skip
            } else {
                MissingMedia::Refuse
            },
            model: self.model,
            rices_with: self.rices_with,
            options,
            place: Place { device: self.device, precision: self.precision },
            endpoint: self.endpoint,
        })
    }
}

fn support(split: Option<String>) -> SupportChoice {
    split.map_or(SupportChoice::OfTask, SupportChoice::Split)
}

fn first_repeated<T: Ord + Copy>(mut values: impl Iterator<Item = T>) -> Option<T> {
    let mut seen = BTreeSet::new();
    values.find(|value| !seen.insert(*value))
}

fn main() -> ExitCode {
    let text = match Cli::parse().action {
        Action::Tasks(args) => tasks(&args),
        Action::Generate(args) => generate::run(&args),
        Action::Score(args) => score::run(&args),
        Action::Compare(args) => compare::run(&args),
        Action::SelfCheck(args) => match self_check::run(&args) {
            Ok(report) if report.has_failed => {
                print(&report.text);
                return ExitCode::FAILURE;
            }
            report => report.map(|report| report.text),
        },
        Action::Lint(args) => match linter::run(&args) {
            Ok((text, false)) => {
                print(&text);
                return ExitCode::FAILURE;
            }
            found => found.map(|(text, _)| text),
        },
        Action::Leaks(args) => leaks::run(&args),
        Action::Submission(args) => submission::run(&args),
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
    let out = command.options.out.display();
    if command.options.part.is_some() {
        return Ok(tables);
    }
    Ok(format!("{tables}\nscores  {out}/results.json\nreport  {out}/report.html\n"))
}

fn tasks(args: &TasksArgs) -> Result<String, EvalError> {
    let Some(name) = &args.task else { return list() };
    if args.toml {
        return TaskFile::text(name).map(std::borrow::Cow::into_owned);
    }
    let Some(folder) = &args.check else { return describe(name) };
    let splits = SplitChoice {
        query: args.query_split.clone(),
        support: support(args.support_split.clone()),
    };
    check::run(TaskFile::find(name)?, folder, &splits)
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
