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
//! In reading order: [`task_file`] what a benchmark is and [`tasks`] those there are, [`item`] one thing that is
//! asked with its [`medium`], [`readers`] from official files to items, [`benchmark`] all of one, [`check`] whether it is there, [`shots`] which
//! examples are shown, by [`draw`] or by [`likeness`], [`prompt`] the layout, [`subject`] a model under test and
//! [`local_subject`] one of ours from a [`run_folder`] with [`image_settings`] and [`inputs`] from prompts to what it takes,
//! [`models`] all that can be asked: a [`served_subject`] at an [`endpoint`] by [`chat`], at a [`pace`] from a [`queue`] with [`back_off`], with [`candidate_match`] what it means, and [`predictions`], [`evaluate`]
//! one benchmark or [`part`] of it to an [`evaluation`], [`command`] all of them, [`controls`] and [`words`] whether it looks, [`seeds`] what the choice
//! of shots does, [`metric`] metrics by name on [`metrics`] and [`bootstrap`], [`score`] files without a model ([`npy`] among them), [`self_check`] all metrics against the official tools, [`compare`] two runs, [`paired`] item by item, [`generate`] a text of one's own, [`linter`] and [`submission`] before a server sees them, [`leaks`] by [`near_hashes`] what was seen before,
//! [`samples`] and [`settings`] for going on, [`oddities`] of answers, [`results`], [`table`] and [`report`] for what comes out.

pub mod back_off;
pub mod benchmark;
pub mod bootstrap;
pub mod candidate_match;
pub mod chat;
pub mod check;
pub mod command;
pub mod compare;
pub mod controls;
pub mod draw;
pub mod endpoint;
pub mod error;
pub mod evaluate;
pub mod evaluation;
pub mod generate;
mod ids;
pub mod image_settings;
pub mod inputs;
pub mod item;
pub mod leaks;
pub mod likeness;
pub mod linter;
pub mod local_subject;
pub mod medium;
pub mod metric;
pub mod metrics;
pub mod models;
pub mod near_hashes;
pub mod npy;
pub mod oddities;
pub mod pace;
pub mod paired;
pub mod part;
pub mod predictions;
mod progress;
pub mod prompt;
pub mod queue;
pub mod readers;
pub mod report;
pub mod results;
pub mod run_folder;
pub mod samples;
pub mod score;
pub mod seeds;
pub mod self_check;
pub mod served_subject;
pub mod settings;
pub mod shots;
pub mod subject;
pub mod submission;
pub mod table;
pub mod task_file;
pub mod tasks;
pub mod words;
