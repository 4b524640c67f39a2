//! Few-shot evaluation: benchmarks, their metrics, controls and reports.
//!
//! A benchmark is a folder with support examples and queries. Each query is put to a model after
//! some support examples, as text in which every image has its mark, and the answers are scored.
//! Every score comes with a bootstrap interval; the controls tell whether the model looks at the
//! image at all. Answers are written as they are made, so that a killed evaluation goes on.
//!
//! ```
//! use flamingo_eval::metrics::captions::CaptionPair;
//! use flamingo_eval::metrics::cider::cider_d;
//!
//! let pairs = [
//!     CaptionPair { prediction: "one red ball rolls", references: vec!["One red ball rolls."] },
//!     CaptionPair { prediction: "a dog", references: vec!["two green stars"] },
//! ];
//! assert!((cider_d(&pairs)[0] - 10.0).abs() < 1e-9);
//! ```
//!
//! In reading order: [`task`] what a benchmark must say, [`caption`] and [`label`] the benchmarks,
//! [`annotations`] and [`task_file`] their files, [`shots`] which examples are shown, [`prompt`]
//! the layout, [`inputs`] from prompts to what the model takes, [`run_folder`] and [`subject`] the
//! model under test, [`evaluate`] one benchmark, [`command`] all of them, [`controls`],
//! [`metrics`] and [`score`] files without a model, [`bootstrap`] on [`draw`], [`samples`] and [`settings`] for going on,
//! [`results`], [`table`] and [`report`] for what comes out.

pub mod annotations;
pub mod bootstrap;
pub mod caption;
pub mod command;
pub mod controls;
pub mod draw;
pub mod error;
pub mod evaluate;
pub mod inputs;
pub mod label;
pub mod metrics;
mod progress;
pub mod prompt;
pub mod report;
pub mod results;
pub mod run_folder;
pub mod samples;
pub mod score;
pub mod settings;
pub mod shots;
pub mod subject;
pub mod table;
pub mod task;
pub mod task_file;
pub mod words;
