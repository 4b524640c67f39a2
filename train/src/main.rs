//! `flamingo-train`: parses the command line, runs one stage, sets the exit code.

use std::error::Error;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use flamingo_dataset::{Fit, ImageConfig, LossMask, SampleConfig};
use flamingo_train::masks::MasksJob;
use flamingo_train::overrides::Override;
use flamingo_train::run_folder::Start;
use flamingo_train::{Command, TrainError, contrastive, flamingo, language};

/// Trains the three parts of a Flamingo model, one stage at a time.
///
/// Exit codes: 0 done, 1 failed, 2 bad usage or config.
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
    #[command(after_help = "Example:\n  \
        flamingo-train flamingo --config configs/flamingo.toml --root runs/demo \\\n      \
        --out runs/demo/flamingo --set steps=200 --set data.pairs.weight=0.5")]
    Flamingo(StageArgs),
    /// Shows which image each token of a row sees and which tokens are learned, or looks for rows
    /// whose masks are wrong.
    #[command(after_help = "Examples:\n  \
        flamingo-train masks --corpus corpora/webpages --row 7 \\\n      \
        --tokenizer runs/demo/language/tokenizer.json --out row.html\n  \
        flamingo-train masks --corpus corpora/webpages --lint \\\n      \
        --tokenizer runs/demo/language/tokenizer.json")]
    Masks(MasksArgs),
}

#[derive(Args)]
struct MasksArgs {
    /// Path or URL of the corpus.
    #[arg(long)]
    corpus: String,
    /// The `tokenizer.json` of a run.
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
    /// Tokens of an example.
    #[arg(long, value_name = "L", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(2..))]
    tokens: u32,
    /// Most images of an example.
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..))]
    images: u32,
    /// Frames of a clip.
    #[arg(long, value_name = "F", default_value_t = 8,
          value_parser = clap::value_parser!(u32).range(1..))]
    frames: u32,
    /// Chance that the text of a page sees the next image in place of the previous one.
    #[arg(long, value_name = "P", default_value_t = 0.5, value_parser = probability)]
    next_image_probability: f64,
    /// Chance of a space before a caption.
    #[arg(long, value_name = "P", default_value_t = 0.5, value_parser = probability)]
    space_prefix_probability: f64,
    /// Only tokens that see an image are learned.
    #[arg(long)]
    loss_seeing_an_image: bool,
    /// Seed of the run.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How often the corpus was gone through before: another window of a long page.
    #[arg(long, default_value_t = 0)]
    epoch: u64,
}

impl From<&MasksArgs> for MasksJob {
    fn from(args: &MasksArgs) -> Self {
        let loss = if args.loss_seeing_an_image { LossMask::SeeingAnImage } else { LossMask::All };
        Self {
            corpus: args.corpus.clone(),
            tokenizer: args.tokenizer.clone(),
            sample: SampleConfig {
                tokens: args.tokens as usize,
                images: args.images as usize,
                frames: args.frames as usize,
                next_image_probability: args.next_image_probability,
                space_prefix_probability: args.space_prefix_probability,
                flip_probability: 0.0,
                colour_jitter: 0.0,
                // The pixels are not looked at; they must only be there.
                image: ImageConfig { size: 8, fit: Fit::Squash, mean: [0.0; 3], std: [1.0; 3] },
                loss,
            },
            seed: args.seed,
            epoch: args.epoch,
        }
    }
}

fn probability(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| "expected a number from 0 to 1".to_owned())
}

/// Runs `masks`; false where a corpus has problems.
#[expect(clippy::print_stdout, reason = "the row is what the user asked for")]
fn masks(args: &MasksArgs) -> Result<bool, TrainError> {
    let job = MasksJob::from(args);
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
}

impl From<StageArgs> for Command {
    fn from(args: StageArgs) -> Self {
        Self {
            config: args.config,
            root: args.root,
            out: args.out,
            start: if args.resume { Start::Resume } else { Start::New },
            overrides: args.overrides,
            stop_after: args.stop_after,
        }
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().stage {
        Stage::Contrastive(args) => contrastive::run(&args.into()).map(|()| true),
        Stage::Language(args) => language::run(&args.into()).map(|()| true),
        Stage::Flamingo(args) => flamingo::run(&args.into()).map(|()| true),
        Stage::Masks(args) => masks(&args),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {}", one_line(&error));
            ExitCode::from(error.exit_code())
        }
    }
}

/// The error and its causes, separated by colons.
fn one_line(error: &TrainError) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line.replace('\n', " ")
}
