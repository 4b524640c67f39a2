//! `flamingo-train`: parses the command line, runs one stage, sets the exit code.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
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
        Stage::Contrastive(args) => contrastive::run(&args.into()),
        Stage::Language(args) => language::run(&args.into()),
        Stage::Flamingo(args) => flamingo::run(&args.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
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
