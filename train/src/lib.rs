//! Training of the three parts of a Flamingo model (arXiv 2204.14198), one stage at a time: a
//! vision encoder by contrast, a language model, and the resampler and gated cross-attention that
//! join them while both stay frozen.
//!
//! A run is a folder: `config.toml` (effective), `run.json`, `tokenizer.json`, `metrics.jsonl`,
//! `checkpoints/step-N/`, `latest`, `tensorboard/` and `report.html`. Killed at any instant and resumed, it ends
//! with the weights of a run that was never killed, bit by bit on the CPU.
//!
//! ```
//! use flamingo_train::schedule::{Decay, Schedule};
//!
//! let (lr_peak, warmup_steps, steps) = (1e-4, 5_000, 500_000);
//! let paper = Schedule { lr_peak, warmup_steps, steps, decay: Decay::Constant };
//! assert_eq!(paper.lr(2_499), 5e-5);
//! assert_eq!(paper.lr(400_000), 1e-4);
//! ```
//!
//! In reading order:
//! - [`trainer`]: the loop; [`run`]: what it works with; [`stage`]: what differs between stages; [`ended`]: how it ends
//! - [`contrastive`], [`language`], [`flamingo`], [`finetune`]: the stages; `joined`: the model of the last two under
//!   training; `run_image`: how images became pixels for the one that it was made of
//! - [`grid`]: many runs, of which the best is wanted
//! - [`command`], [`setup`], [`corpora`], [`run_tokenizer`]: from a command to a run that is ready
//! - [`inputs`]: from the loader's batch to the models' inputs
//! - [`config`], [`config_file`], [`overrides`]: every number of a run; [`config_checks`], [`data_checks`],
//!   [`stage_checks`]: whether it can work
//! - [`limits`], [`difference`]: how large numbers may be, and which of them changed
//! - [`gradient`], [`extent`]: what the batches of a step make, and how much there is of them
//! - [`launch`], [`collective`], [`ranks`], [`sharding`]: processes that train one model together
//! - [`optimizer`], [`groups`], [`schedule`]: one update, for which weights it differs, and how far it goes
//! - [`ema`]: the running average of the weights
//! - [`trouble`], [`stop`]: steps that go wrong, and signals to stop
//! - [`validation`], [`text_loss`], [`retrieval`], [`early_stop`]: rows that are not learned from, and when a run ends by
//!   them
//! - [`checkpoint`], [`checkpoint_writer`], [`room`], [`run_folder`], [`files`]: what is on disk, whatever
//!   happens
//! - [`metrics`], [`history`], [`report`], [`tensorboard`], [`progress`]: what a user sees of a run
//! - [`looks`], [`accounting`]: whether the model reads its images, and whose gradient it is
//! - [`few_shot`]: what another program makes of its checkpoints
//! - [`masks`], [`batches`]: what a row and a step look like to the trainer
//! - [`plan`], [`replay`], [`data_history`]: what a run would be, and what a step of one was
//! - [`export`], [`preprocessor`]: models for others, and from them
//! - [`device`], [`machine`], [`flop`], [`bench`], [`bench_memory`]: where a command runs, and how fast

pub mod accounting;
pub mod batches;
pub mod bench;
pub mod bench_memory;
pub mod checkpoint;
pub mod checkpoint_writer;
pub mod collective;
pub mod command;
pub mod config;
pub mod config_checks;
pub mod config_file;
pub mod contrastive;
pub mod corpora;
pub mod data_checks;
pub mod data_history;
pub mod device;
pub mod difference;
pub mod early_stop;
pub mod ema;
pub mod ended;
pub mod error;
pub mod export;
pub mod extent;
pub mod few_shot;
pub mod files;
pub mod finetune;
pub mod flamingo;
pub mod flop;
pub mod gradient;
pub mod grid;
pub mod groups;
pub mod history;
pub mod inputs;
mod joined;
pub mod language;
pub mod launch;
pub mod limits;
pub mod looks;
pub mod machine;
pub mod masks;
mod measured;
pub mod metrics;
#[cfg(feature = "mpi")]
pub mod mpi_ranks;
#[cfg(feature = "nccl")]
pub mod nccl_ranks;
pub mod optimizer;
mod outputs;
pub mod overrides;
pub mod plan;
pub mod preprocessor;
pub mod progress;
pub mod ranks;
mod recovery;
pub mod replay;
pub mod report;
pub mod retrieval;
pub mod room;
pub mod run;
pub mod run_folder;
mod run_image;
pub mod run_tokenizer;
pub mod schedule;
pub mod setup;
pub mod sharding;
pub mod stage;
pub mod stage_checks;
pub mod stop;
pub mod tensorboard;
pub mod text_loss;
pub mod trainer;
pub mod trouble;
pub mod validation;

pub use command::Command;
pub use error::TrainError;
