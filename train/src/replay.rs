//! `flamingo-train replay`: makes one step of a run again, from the checkpoint before it, and shows what it
//! was made of: its rows, its losses, and the gradient of each parameter.
//!
//! The run folder is only read. Of what may change when a run goes on, and changes what comes out, each step has
//! what held when it was made (see [`data_history`](crate::data_history)). Rows that the run left out since steps went wrong are left out in the
//! steps that came after those, as they were. A run that went back and has made no checkpoint since does
//! not know them yet: its last steps come out as if it had not gone back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use clap::Args;
use flamingo_dataset::{Batch, Loader, MixtureEntry, MixtureMode, Tokenizer};
use flamingo_model::{Gradients, Tensors};
use serde::Serialize;

use crate::batches;
use crate::checkpoint::Checkpoint;
use crate::collective::Alone;
use crate::command::{Command, Purpose, Told};
use crate::data_history::{self, AllDrawn};
use crate::device::DeviceArgs;
use crate::error::TrainError;
use crate::extent::Extent;
use crate::files;
use crate::gradient::{StepGradient, accumulate};
use crate::metrics;
use crate::ranks;
use crate::run::Run;
use crate::run_folder::{self, StageName, Start};
use crate::trouble::Trouble;
use crate::{contrastive, finetune, flamingo, language};

/// Which step.
#[derive(Debug, Args)]
pub struct Replay {
    /// Folder of the run.
    #[arg(long, value_name = "FOLDER")]
    run: PathBuf,
    /// The step, from 1.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    step: u64,
    /// Folder that relative paths in the run's config start from [default: the run's own].
    #[arg(long)]
    root: Option<PathBuf>,
    /// Folder for `batch.safetensors`, `gradients.safetensors` and `step.json`; must not exist.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// What a set-up is told of a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    step: u64,
    out: Option<PathBuf>,
}

/// Makes the step again; right if its loss and the norm of its gradient are those of the run, bit by bit.
///
/// # Errors
/// When the folder is no run, the run has not made the step, what it was made from is no longer there, or
/// the output cannot be written.
pub fn run(replay: &Replay) -> Result<Told, TrainError> {
    let Replay { run, step, root, out, device } = replay;
    if let Some(out) = out
        && out.exists()
    {
        return Err(TrainError::file("write", out)(std::io::ErrorKind::AlreadyExists.into()));
    }
    let stage = run_folder::stage_of(run)?;
    let command = Command {
        config: run.join(run_folder::CONFIG),
        root: match root {
            Some(root) => Some(root.clone()),
            None => run_folder::root_of(run)?,
        },
        out: run.clone(),
        start: Start::Before(*step),
        overrides: Vec::new(),
        ranks: Rc::new(Alone),
        stop_after: None,
        device: *device,
        purpose: Purpose::Replay(Job { step: *step, out: out.clone() }),
    };
    match stage {
        StageName::Contrastive => contrastive::run(&command),
        StageName::Language => language::run(&command),
        StageName::Flamingo => flamingo::run(&command),
        StageName::Finetune => finetune::run(&command),
    }
}

/// Where the rows of a run come from.
pub(crate) struct Rows {
    /// The datasets, without what was left out later.
    pub(crate) entries: Vec<MixtureEntry>,
    /// What they are drawn by after the last checkpoint.
    pub(crate) drawn: AllDrawn,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) mode: MixtureMode,
    pub(crate) seed: u64,
}

impl Rows {
    /// Reads from the step after `done` on what is drawn then, without the rows of `troubles`.
    fn open(
        &self,
        drawn: &AllDrawn,
        troubles: &[&Trouble],
        done: u64,
    ) -> Result<Loader, TrainError> {
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            if let Some(drawn) = drawn.get(&entry.name) {
                entry.batch = drawn.batch;
                entry.skip_rows.clone_from(&drawn.skip_rows);
            }
            let rows = troubles.iter().filter_map(|trouble| trouble.rows.get(&entry.name));
            entry.skip_rows.extend(rows.flatten());
        }
        let tokenizer = Arc::clone(&self.tokenizer);
        Loader::open(entries, tokenizer, self.mode, self.seed, done).map_err(TrainError::loader)
    }

    /// Into how many parts the batches of a step are cut, as [`Objective`](crate::gradient::Objective) has
    /// it.
    fn micro_batches(&self, drawn: &AllDrawn) -> Vec<usize> {
        let of_one = |entry: &MixtureEntry| drawn.get(&entry.name).map_or(1, |d| d.micro_batches);
        let n_batches = match self.mode {
            MixtureMode::Merged => 1,
            MixtureMode::Accumulate | MixtureMode::RoundRobin => self.entries.len(),
        };
        self.entries.iter().take(n_batches).map(of_one).collect()
    }
}

/// The step, made again.
struct Made {
    batches: Vec<Batch>,
    extents: Vec<Extent>,
    step: StepGradient,
}

/// What is told of the step, as in `step.json`.
#[derive(Serialize)]
struct Summary {
    step: u64,
    /// The checkpoint that it was made from; 0 is the start.
    from: u64,
    lr: f64,
    loss: f64,
    losses: BTreeMap<String, f64>,
    grad_norm: f64,
    /// What `metrics.jsonl` has.
    logged_loss: f64,
    logged_grad_norm: f64,
    /// Whether both are the same, bit by bit.
    loss_is_equal: bool,
    grad_norm_is_equal: bool,
    /// The most ranks that made the run's steps since the checkpoint. Above 1 sums are rounded otherwise
    /// than here, and what is close is right.
    ranks: usize,
    parameters: Vec<Norms>,
}

/// Norms of one parameter.
#[derive(Serialize)]
struct Norms {
    name: String,
    shape: Vec<usize>,
    /// Before the update.
    weight: f64,
    /// After all lambdas, before clipping; none if the parameter is frozen.
    gradient: Option<f64>,
}

/// Goes on from the run's checkpoint to the step, without writing into its folder.
pub(crate) fn replay(mut run: Run, rows: &Rows, job: &Job) -> Result<Told, TrainError> {
    let (mut found, mut skipped, mut last) = (None, BTreeSet::new(), 0);
    metrics::each_with_text(&run.folder.path, |line, text| {
        last = line.step;
        if line.skipped.is_some() {
            skipped.insert(line.step);
        }
        if line.step == job.step {
            found = Some((line, String::from_utf8_lossy(text).into_owned()));
        }
    })?;
    let Some((line, text)) = found else {
        return Err(TrainError::NoStep { run: run.folder.path.clone(), step: job.step, last });
    };
    let latest = Checkpoint::latest(&run.folder.path)?.map(|latest| latest.state.ranks);
    let ranks = ranks::most(&latest.unwrap_or_default(), run.folder.step()..job.step);
    let mut made = make(&mut run, rows, job.step, &skipped)?;
    let parameters = norms(&run, &mut made.step.gradients)?;
    let loss = run.objective.value(&made.batches, &made.extents, &made.step.losses);
    let norm = made.step.norms.all;
    let each = made.batches.iter().zip(&made.step.losses).filter(|(_, loss)| loss.is_finite());
    let summary = Summary {
        step: job.step,
        from: run.folder.step(),
        lr: run.schedule.lr(job.step - 1),
        loss,
        losses: each.map(|(batch, loss)| (batch.name.clone(), f64::from(*loss))).collect(),
        grad_norm: norm,
        logged_loss: line.loss,
        logged_grad_norm: line.grad_norm,
        loss_is_equal: has(&text, "loss", loss),
        grad_norm_is_equal: has(&text, "grad_norm", norm),
        ranks,
        parameters,
    };
    if let Some(out) = &job.out {
        write(out, &run, &mut made, &summary)?;
    }
    let is_right = summary.compared().iter().all(|compared| compared.is_right(ranks));
    Ok(Told { text: summary.text(&run.folder.path), is_right })
}

/// Makes all steps from the checkpoint to this one, whose update is not made.
fn make(
    run: &mut Run,
    rows: &Rows,
    step: u64,
    skipped: &BTreeSet<u64>,
) -> Result<Made, TrainError> {
    let latest = Checkpoint::latest(&run.folder.path)?.map(|latest| latest.state);
    let last_step = latest.as_ref().map_or(0, |state| state.step);
    let (troubles, mut history) =
        latest.map(|state| (state.troubles, state.data_history)).unwrap_or_default();
    // The config in the run folder is the one with which the run went on from there.
    data_history::note(&mut history, last_step, &rows.drawn);
    let drawn = |done: u64| data_history::after(&history, done).unwrap_or(&rows.drawn);
    let left_out = |done: u64| -> Vec<&Trouble> {
        troubles.iter().filter(|trouble| trouble.begins_after() <= done).collect()
    };
    run.loader = rows.open(drawn(run.done), &left_out(run.done), run.done)?;
    loop {
        let done = run.done;
        run.objective.micro_batches = rows.micro_batches(drawn(done));
        let batches = run.loader.next_step().map_err(TrainError::loader)?;
        let extents = run.extents(&batches)?;
        let made = accumulate(&run.step(), &batches, &extents).map_err(run.failed());
        let mut made = made?;
        if done + 1 == step {
            return Ok(Made { batches, extents, step: made });
        }
        if !skipped.contains(&(done + 1)) {
            run.update(&mut made).map_err(run.failed())?;
        }
        run.done += 1;
        let next = run.done;
        if left_out(next).len() != left_out(done).len() || drawn(next) != drawn(done) {
            run.loader = rows.open(drawn(next), &left_out(next), next)?;
        }
    }
}

/// Whether a line of metrics has exactly this number: the texts of two numbers are different.
fn has(line: &str, key: &str, value: f64) -> bool {
    serde_json::to_string(&value).is_ok_and(|text| line.contains(&format!("\"{key}\":{text},")))
}

fn norms(run: &Run, gradients: &mut Gradients) -> Result<Vec<Norms>, TrainError> {
    let mut all = Vec::new();
    for params in run.stage.model().params() {
        for parameter in params.iter() {
            let gradient = params.gradient(gradients, &parameter.name);
            let gradient = gradient.map_err(TrainError::model("run"))?;
            all.push(Norms {
                name: parameter.name.clone(),
                shape: parameter.shape.clone(),
                weight: norm(&parameter.weight.values()),
                gradient: gradient.as_deref().map(norm),
            });
        }
    }
    Ok(all)
}

fn norm(values: &[f32]) -> f64 {
    square_sum(values.iter().map(|value| f64::from(*value))).sqrt()
}

fn square_sum(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum()
}

/// Writes the files under another name and gives the folder its own when they are whole.
fn write(out: &Path, run: &Run, made: &mut Made, summary: &Summary) -> Result<(), TrainError> {
    let mut rows = Tensors::default();
    made.batches.iter().for_each(|batch| batches::add(&mut rows, batch));
    let mut gradients = Tensors::default();
    for params in run.stage.model().params() {
        for parameter in params.iter() {
            let values = params.gradient(&mut made.step.gradients, &parameter.name);
            if let Some(values) = values.map_err(TrainError::model("run"))? {
                gradients.insert(parameter.name.clone(), &parameter.shape, values);
            }
        }
    }
    let text = serde_json::to_vec_pretty(summary).expect("a summary is numbers under texts");
    files::fill_folder(out, |folder| {
        for (name, tensors) in [("batch", rows), ("gradients", gradients)] {
            let path = folder.join(format!("{name}.safetensors"));
            tensors.write(&path).map_err(TrainError::model("save"))?;
        }
        files::write_new(&folder.join("step.json"), &text)
    })
}

/// Largest difference from what several ranks found, as a share of it.
const CLOSE: f64 = 1e-6;

/// A number of the step beside that of the log.
struct Compared {
    name: &'static str,
    found: f64,
    logged: f64,
    is_equal: bool,
}

impl Compared {
    fn is_right(&self, ranks: usize) -> bool {
        let is_close = (self.found - self.logged).abs() <= CLOSE * self.logged.abs();
        self.is_equal || ranks > 1 && is_close
    }

    fn text(&self, ranks: usize) -> String {
        let Self { name, found, logged, is_equal } = self;
        if *is_equal {
            format!("{name} {found}: the same as in metrics.jsonl, bit by bit")
        } else if self.is_right(ranks) {
            format!(
                "{name} {found}: as in metrics.jsonl, {logged}, but for the rounding of sums over ranks"
            )
        } else {
            format!("{name} {found}: NOT the same as in metrics.jsonl, {logged}")
        }
    }
}

impl Summary {
    fn compared(&self) -> [Compared; 2] {
        let compared = |name, found, logged, is_equal| Compared { name, found, logged, is_equal };
        [
            compared("loss", self.loss, self.logged_loss, self.loss_is_equal),
            compared("grad_norm", self.grad_norm, self.logged_grad_norm, self.grad_norm_is_equal),
        ]
    }

    /// What people read: norms of the parts of the model, and how the step compares with the log.
    fn text(&self, run: &Path) -> String {
        let from = match self.from {
            0 => "the start".to_owned(),
            step => format!("the checkpoint of step {step}"),
        };
        let mut lines = vec![format!("step {} of {}, from {from}", self.step, run.display())];
        if self.ranks > 1 {
            lines.push(format!("the run's steps since then were made by {} ranks", self.ranks));
        }
        lines.push(format!("{:<30} {:>14} {:>14}", "norms of", "weights", "gradient"));
        let mut parts: Vec<(String, Vec<&Norms>)> = Vec::new();
        for norms in &self.parameters {
            let name = part_of(&norms.name);
            match parts.last_mut().filter(|(last, _)| *last == name) {
                Some((_, all)) => all.push(norms),
                None => parts.push((name, vec![norms])),
            }
        }
        for (name, all) in parts {
            let weight = square_sum(all.iter().map(|norms| norms.weight)).sqrt();
            let trained: Vec<f64> = all.iter().filter_map(|norms| norms.gradient).collect();
            let gradient = square_sum(trained.iter().copied()).sqrt();
            let gradient =
                if trained.is_empty() { "frozen".to_owned() } else { format!("{gradient:.6e}") };
            lines.push(format!("{name:<30} {weight:>14.6e} {gradient:>14}"));
        }
        for (name, loss) in &self.losses {
            lines.push(format!("loss of {name}: {loss}"));
        }
        lines.extend(self.compared().iter().map(|compared| compared.text(self.ranks)));
        lines.join("\n") + "\n"
    }
}

/// The layer that a parameter is in: its name up to the first number, or its first word.
fn part_of(name: &str) -> String {
    let words: Vec<&str> = name.split('.').collect();
    let number = words.iter().position(|word| word.parse::<usize>().is_ok());
    words[..=number.unwrap_or(0)].join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_the_same_only_if_every_bit_is() {
        let line = |loss: f64| format!("{{\"step\":3,\"loss\":{loss},\"losses\":{{}}}}");
        let loss = 0.1_f64 + 0.2;
        assert!(has(&line(loss), "loss", loss));
        for other in [f64::from_bits(loss.to_bits() + 1), f64::from_bits(loss.to_bits() - 1), 3.0] {
            assert!(!has(&line(loss), "loss", other), "{other}");
        }
    }

    #[test]
    fn what_is_close_is_right_after_several_ranks_alone() {
        let right = |found, ranks| {
            let compared = Compared { name: "loss", found, logged: 2.0, is_equal: false };
            (compared.is_right(ranks), compared.text(ranks).contains("NOT"))
        };
        assert_eq!(right(2.000_001, 2), (true, false));
        assert_eq!(right(2.000_001, 1), (false, true));
        for wrong in [2.000_003, f64::NAN] {
            assert_eq!(right(wrong, 2), (false, true));
        }
    }

    #[test]
    fn parameters_are_grouped_by_layer() {
        for (name, expected) in [
            ("language.blocks.12.attn.qkv.weight", "language.blocks.12"),
            ("resampler.latents", "resampler"),
            ("log_beta", "log_beta"),
        ] {
            assert_eq!(part_of(name), expected);
        }
    }
}
