//! `flamingo-train`: parses the command line, runs one stage, sets the exit code.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use flamingo_dataset::{Layout, LossMask};
use flamingo_train::batches::{self, Batches};
use flamingo_train::bench::{self, Bench};
use flamingo_train::command::{Purpose, Told};
use flamingo_train::device::DeviceArgs;
use flamingo_train::export::{self, Export};
use flamingo_train::launch::Launch;
use flamingo_train::limits::{TRAINED_VOCABULARY_MAX, TRAINED_VOCABULARY_MIN};
use flamingo_train::masks::MasksJob;
use flamingo_train::overrides::Override;
use flamingo_train::replay::{self, Replay};
use flamingo_train::run_folder::Start;
use flamingo_train::{
    Command, TrainError, contrastive, finetune, flamingo, language, run_tokenizer, stop,
};

/// Trains the three parts of a Flamingo model, one stage at a time.
///
/// A stage that gets SIGTERM, as schedulers send it, or Ctrl-C writes a checkpoint after the step that
/// it is at; a second signal ends it at once.
///
/// Exit codes: 0 done, or at a checkpoint after SIGTERM; 1 failed; 2 bad usage or config; 130 at a
/// checkpoint after Ctrl-C.
#[derive(Parser)]
#[command(name = "flamingo-train", version)]
struct Cli {
    #[command(subcommand)]
    stage: Stage,
}

#[derive(Subcommand)]
enum Stage {
    /// Trains a vision encoder to match images with their captions (paper, appendix B.1.3).
    #[command(after_help = "Example:\n  \
        flamingo-train contrastive --config configs/vision.toml --root runs/demo \\\n      \
        --out runs/demo/vision")]
    Contrastive(StageArgs),
    /// Trains a language model on the texts of corpora; images stay unread.
    #[command(after_help = "Example:\n  \
        flamingo-train language --config configs/language.toml --root runs/demo \\\n      \
        --out runs/demo/language")]
    Language(StageArgs),
    /// Joins a frozen vision encoder and a frozen language model (paper, sections 2 and 2.4).
    ///
    /// Where the config has `[[few_shot]]`, training stands still while flamingo-eval, another process, puts a
    /// checkpoint to these tasks: few queries, seldom, cost little.
    #[command(after_help = "Examples:\n  \
        flamingo-train flamingo --config configs/flamingo.toml --root runs/demo \\\n      \
        --out runs/demo/flamingo --set steps=200 --set data.pairs.weight=0.5\n  \
        flamingo-train flamingo --config configs/flamingo.toml --root runs/demo \\\n      \
        --out runs/demo/flamingo --dry-run")]
    Flamingo(StageArgs),
    /// Makes one step of a run again: its rows, its losses, the gradient of each parameter; fails where
    /// they are not those of the run.
    #[command(after_help = "Example:\n  \
        flamingo-train replay --run runs/mine --step 1234 --out step-1234")]
    Replay(Replay),
    /// Trains a Flamingo on a task of its own, on larger images (paper, appendix B.2.2).
    #[command(after_help = "Example:\n  \
        flamingo-train finetune --config configs/finetune.toml --root runs/demo \\\n      \
        --out runs/demo/finetuned")]
    Finetune(StageArgs),
    /// Shows which image each token of a row sees and which tokens are learned, or looks for rows
    /// whose masks are wrong.
    #[command(after_help = "Examples:\n  \
        flamingo-train masks --corpus corpora/webpages --row 7 \\\n      \
        --tokenizer runs/demo/language/tokenizer.json --out row.html\n  \
        flamingo-train masks --corpus corpora/webpages --lint \\\n      \
        --tokenizer runs/demo/language/tokenizer.json\n  \
        flamingo-train masks --config configs/flamingo.toml --root runs/demo --data webpages \\\n      \
        --row 7 --tokenizer runs/demo/language/tokenizer.json")]
    Masks(MasksArgs),
    /// Writes the batches of a run's steps as safetensors, such as for another trainer to learn the same.
    #[command(after_help = "Example:\n  \
        flamingo-train batches --config configs/flamingo.toml --root runs/demo --steps 100 \\\n      \
        --tokenizer runs/demo/language/tokenizer.json --out batches")]
    Batches(Batches),
    /// Trains a byte-level BPE tokenizer on the texts of corpora, as GPT-2's was.
    #[command(after_help = "Example:\n  \
        flamingo-train train-tokenizer --corpus corpora/webpages --corpus corpora/pairs \\\n      \
        --vocabulary 8000 --out tokenizer.json")]
    TrainTokenizer(TokenizerArgs),
    /// Writes a trained model as OpenFlamingo or transformers reads it, makes a model of
    /// OpenFlamingo's checkpoint, or counts parameters.
    #[command(after_help = "Examples:\n  \
        flamingo-train export --preset flamingo-80b --dry-run\n  \
        flamingo-train export --model runs/mine --format open-flamingo --out checkpoint.pt\n  \
        flamingo-train export --model runs/mine --format hugging-face --out towers\n  \
        flamingo-train export --model runs/language --format hugging-face --out models/language\n  \
        flamingo-train export --from-open-flamingo checkpoint.pt --vision clip-vit-large-patch14 \\\n      \
        --language mpt-1b-redpajama-200b --every 1 --format flamingo --out models/of-3b")]
    Export(Export),
    /// Times training steps of a model with random weights, or answers to prompts.
    #[command(after_help = "Examples:\n  \
        flamingo-train bench --preset tiny --batch 8 --tokens 16\n  \
        flamingo-train bench --preset openflamingo-3b --device cuda:0 --json\n  \
        flamingo-train bench --preset openflamingo-3b --write-tokens 20 --score")]
    Bench(Bench),
}

/// Prints what a stage was asked to say.
#[expect(clippy::print_stdout, reason = "the user asked for it")]
#[expect(clippy::needless_pass_by_value, reason = "it is at the end of its way")]
fn told(told: Told) -> bool {
    print!("{}", told.text);
    told.is_right
}

/// Runs `bench`.
#[expect(clippy::print_stdout, reason = "the figures are what the user asked for")]
fn bench(args: &Bench) -> Result<bool, TrainError> {
    bench::run(args, |line| println!("{line}"))?;
    Ok(true)
}

/// Runs `batches`.
#[expect(clippy::print_stdout, reason = "the user is told what was made")]
fn batches(args: &Batches) -> Result<bool, TrainError> {
    println!("{}", batches::run(args)?);
    Ok(true)
}

/// Runs `export`.
#[expect(clippy::print_stdout, reason = "the user is told what was made, or how large it would be")]
fn export(args: &Export) -> Result<bool, TrainError> {
    print!("{}", export::run(args)?);
    Ok(true)
}

#[derive(Args)]
struct TokenizerArgs {
    /// Path or URL of a corpus. Repeatable.
    #[arg(long = "corpus", value_name = "CORPUS", required = true)]
    corpora: Vec<String>,
    /// Most tokens, the five marks and the 256 bytes included.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32)
          .range(TRAINED_VOCABULARY_MIN as i64..=TRAINED_VOCABULARY_MAX as i64))]
    vocabulary: u32,
    /// Most rows read of each corpus, from its start.
    #[arg(long, value_name = "ROWS", default_value_t = 100_000,
          value_parser = clap::value_parser!(u64).range(1..))]
    rows_max: u64,
    /// File to write; must not exist.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Runs `train-tokenizer`.
#[expect(clippy::print_stdout, reason = "the user is told what was made")]
fn train_tokenizer(args: &TokenizerArgs) -> Result<bool, TrainError> {
    let made = run_tokenizer::write_tokenizer(
        &args.corpora,
        args.vocabulary as usize,
        args.rows_max,
        &args.out,
    )?;
    println!("{made}");
    Ok(true)
}

#[derive(Args)]
struct MasksArgs {
    /// Path or URL of the corpus.
    #[arg(long, required_unless_present = "config")]
    corpus: Option<String>,
    /// Config of a run: corpus, numbers and seed are those of a dataset of it, but for those given
    /// here.
    #[arg(long, value_name = "FILE", requires = "data")]
    config: Option<PathBuf>,
    /// Name of the dataset in the config.
    #[arg(long, value_name = "NAME", requires = "config")]
    data: Option<String>,
    /// Folder that relative paths in the config start from [default: the working directory].
    #[arg(long, requires = "config")]
    root: Option<PathBuf>,
    /// A `tokenizer.json`, such as a run has, or another tokenizer that a config may name.
    #[arg(long, value_name = "FILE")]
    tokenizer: PathBuf,
    /// Number of the row, from 0.
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "lint")]
    row: u64,
    /// Also writes the row with its images into this HTML file.
    #[arg(long, value_name = "FILE", conflicts_with = "lint")]
    out: Option<PathBuf>,
    /// Checks every row: as many marks as images, something learned, no token that sees an image it
    /// must not. Fails where there is a problem.
    #[arg(long)]
    lint: bool,
    /// With --lint, looks at the first rows only.
    #[arg(long, value_name = "N", requires = "lint")]
    rows: Option<u64>,
    /// Tokens of an example [default: 256, or the config's].
    #[arg(long, value_name = "L", value_parser = clap::value_parser!(u32).range(2..))]
    tokens: Option<u32>,
    /// Most images of an example [default: 5, or the config's].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    images: Option<u32>,
    /// Frames of a clip [default: 8, or the config's].
    #[arg(long, value_name = "F", value_parser = clap::value_parser!(u32).range(1..))]
    frames: Option<u32>,
    /// Chance that the text of a page sees the next image in place of the previous one [default: 0.5,
    /// or the config's].
    #[arg(long, value_name = "P", value_parser = probability)]
    next_image_probability: Option<f64>,
    /// Chance of a space before a caption [default: 0.5, or the config's].
    #[arg(long, value_name = "P", value_parser = probability)]
    space_prefix_probability: Option<f64>,
    /// Which tokens are learned [default: paper, or the config's].
    #[arg(long, value_enum)]
    loss: Option<Loss>,
    /// Seed of the run [default: 0, or the config's].
    #[arg(long)]
    seed: Option<u64>,
    /// How often the corpus was gone through before: another window of a long page.
    #[arg(long, default_value_t = 0)]
    epoch: u64,
}

/// The rules of a config's `loss`.
#[derive(Clone, Copy, ValueEnum)]
enum Loss {
    /// All text.
    Paper,
    /// Captions, and of pages what follows an image up to its end of chunk.
    OpenFlamingo,
    /// What sees an image.
    SeeingAnImage,
}

impl MasksArgs {
    fn job(&self) -> Result<MasksJob, TrainError> {
        let mut job = match (&self.config, &self.data) {
            (Some(config), Some(data)) => MasksJob::of_config(config, data, self.root.as_deref())?,
            _ => MasksJob::new(self.corpus.clone().unwrap_or_default()),
        };
        if let Some(corpus) = &self.corpus {
            job.corpus.clone_from(corpus);
            job.layout = Layout::Corpus;
        }
        job.tokenizer.clone_from(&self.tokenizer);
        job.epoch = self.epoch;
        job.seed = self.seed.unwrap_or(job.seed);
        let sample = &mut job.sample;
        let number = |given: Option<u32>, number| given.map_or(number, |given| given as usize);
        sample.tokens = number(self.tokens, sample.tokens);
        sample.images = number(self.images, sample.images);
        sample.frames = number(self.frames, sample.frames);
        let next = &mut sample.next_image_probability;
        *next = self.next_image_probability.unwrap_or(*next);
        let space = &mut sample.space_prefix_probability;
        *space = self.space_prefix_probability.unwrap_or(*space);
        sample.loss = match self.loss {
            None => sample.loss,
            Some(Loss::Paper) => LossMask::Paper,
            Some(Loss::OpenFlamingo) => LossMask::OpenFlamingo,
            Some(Loss::SeeingAnImage) => LossMask::SeeingAnImage,
        };
        Ok(job)
    }
}

fn probability(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| "expected a number from 0 to 1".to_owned())
}

/// Runs `masks`; false where a corpus has problems.
#[expect(clippy::print_stdout, reason = "the row is what the user asked for")]
fn masks(args: &MasksArgs) -> Result<bool, TrainError> {
    let job = args.job()?;
    if !args.lint {
        let row = job.row(args.row)?;
        print!("{}", row.text(std::io::stdout().is_terminal()));
        if let Some(out) = &args.out {
            row.write_page(out)?;
        }
        return Ok(true);
    }
    let lint = job.lint(args.rows.unwrap_or(u64::MAX), |problem| println!("{problem}"))?;
    println!("{} rows, {} problems", lint.n_rows, lint.n_problems);
    Ok(lint.n_problems == 0)
}

#[derive(Args)]
struct StageArgs {
    /// Config (TOML); every number of the run lives there.
    #[arg(long)]
    config: PathBuf,
    /// Folder that relative paths in the config start from [default: the working directory].
    #[arg(long)]
    root: Option<PathBuf>,
    /// Folder of the run. Must not exist unless `--resume` is given.
    #[arg(long)]
    out: PathBuf,
    /// Go on from the last checkpoint in `--out`, bit by bit as if the run had not stopped; start
    /// if there is none.
    #[arg(long)]
    resume: bool,
    /// Change one value of the config; elements of a list go by name or index. Repeatable.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    overrides: Vec<Override>,
    /// Stop after this step, with a checkpoint, although the config asks for more steps.
    #[arg(long, value_name = "STEP", value_parser = clap::value_parser!(u64).range(1..))]
    stop_after: Option<u64>,
    /// Say what the run would be - parameters, memory, epochs, learning rates, the masks of its first
    /// rows - after the checks of a real start, and write nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

impl StageArgs {
    /// The command, after meeting the other ranks, if there are any.
    fn command(self) -> Result<Command, TrainError> {
        let launch = Launch::discover(|name| std::env::var(name).ok())?;
        let device = launch.device(self.device.device);
        Ok(Command {
            config: self.config,
            root: self.root,
            out: self.out,
            start: if self.resume { Start::Resume } else { Start::New },
            overrides: self.overrides,
            stop_after: self.stop_after,
            device: DeviceArgs { device, ..self.device },
            purpose: if self.dry_run { Purpose::DryRun } else { Purpose::Train },
            ranks: launch.connect(device)?,
        })
    }
}

/// Runs a stage. Where there are several ranks, one that fails ends all of them.
fn train(
    args: StageArgs,
    stage: impl FnOnce(&Command) -> Result<Told, TrainError>,
) -> Result<bool, TrainError> {
    let command = args.command()?;
    let done = stage(&command);
    if let Err(error) = &done
        && !command.ranks.is_alone()
        // To which all ranks come together.
        && !matches!(error, TrainError::Interrupted { .. })
    {
        eprintln!("error: rank {}: {}", command.ranks.rank().index, error.one_line());
        command.ranks.abort(error.exit_code());
    }
    let is_first = command.ranks.is_first();
    done.map(|text| if is_first { told(text) } else { text.is_right })
}

fn main() -> ExitCode {
    let stage = Cli::parse().stage;
    let result = stop::outlive_file_limits().map_err(TrainError::Signals).and_then(|()| run(stage));
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {}", error.one_line());
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(stage: Stage) -> Result<bool, TrainError> {
    match stage {
        Stage::Contrastive(args) => train(args, contrastive::run),
        Stage::Language(args) => train(args, language::run),
        Stage::Flamingo(args) => train(args, flamingo::run),
        Stage::Replay(args) => replay::run(&args).map(told),
        Stage::Finetune(args) => train(args, finetune::run),
        Stage::Masks(args) => masks(&args),
        Stage::Batches(args) => batches(&args),
        Stage::TrainTokenizer(args) => train_tokenizer(&args),
        Stage::Export(args) => export(&args),
        Stage::Bench(args) => bench(&args),
    }
}
