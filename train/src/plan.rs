//! `--dry-run`: what a run would be, from the set-up of a real one up to its first rows. Nothing is
//! written, no step is made.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use flamingo_dataset::{Batch, BatchPixels, Loader, MERGED, Tokenizer};
use flamingo_model::Params;

use crate::config::RunConfig;
use crate::error::TrainError;
use crate::gradient::Objective;
use crate::masks::{MaskedTokens, lines};
use crate::room::{self, Size};
use crate::run::Source;
use crate::schedule::Schedule;
use crate::stage::Stage;

/// What a plan is made of.
pub(crate) struct Plan<'a> {
    /// The run folder.
    pub(crate) run: &'a Path,
    /// What is trained.
    pub(crate) stage: &'a dyn Stage,
    /// Values of each trained parameter in a checkpoint.
    pub(crate) copies: usize,
    /// What looks hold beside.
    pub(crate) beside: Beside,
    /// The rows of each dataset.
    pub(crate) sources: &'a [Source],
    /// What is minimised.
    pub(crate) objective: &'a Objective,
    /// Steps in which every dataset has its turn.
    pub(crate) turns: u64,
    /// The learning rate of each step.
    pub(crate) schedule: Schedule,
    /// The rows of each step.
    pub(crate) loader: Loader,
    /// Makes texts of tokens.
    pub(crate) tokenizer: &'a Tokenizer,
    /// How many ranks share each batch.
    pub(crate) n_ranks: usize,
}

/// Copies of the trained values that are there during a look.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beside {
    /// A second gradient, of one dataset.
    accounting: u64,
    /// The weights, and the averages that are put in their place.
    validation: u64,
}

impl Beside {
    /// Those of a config.
    pub(crate) fn of<M>(config: &RunConfig<M>) -> Self {
        let is_averaged = config.validation.as_ref().is_some_and(|it| !it.weights.is_raw());
        Self {
            accounting: u64::from(config.accounting_every.is_some()),
            validation: if is_averaged { 2 } else { 0 },
        }
    }
}

/// Where the first sequence of a dataset is in a batch.
#[derive(Default)]
struct First {
    sequence: usize,
    /// Of the rows of the batch.
    row: usize,
}

/// Bytes of a value: all are f32.
const VALUE_BYTES: u64 = size_of::<f32>() as u64;

/// What a part of a model has.
#[derive(Default)]
struct Part {
    trained: u64,
    frozen: u64,
}

impl Plan<'_> {
    /// The plan in words, with the masks of the first row of each dataset.
    ///
    /// # Errors
    /// When the first rows cannot be read.
    pub(crate) fn text(mut self) -> Result<String, TrainError> {
        let first_step = self.loader.cursor().step;
        let mut batches = Vec::new();
        for _ in 0..self.turns {
            batches.extend(self.loader.next_step().map_err(TrainError::loader)?);
        }
        let mut text = String::new();
        self.parameters(&mut text);
        self.memory(&mut text, &batches);
        self.datasets(&mut text, first_step);
        self.learning_rates(&mut text);
        text.push_str(
            "\nfirst row of each dataset: the image that each token sees, [not learned]\n",
        );
        for batch in &batches {
            self.first_rows(&mut text, batch);
        }
        Ok(text)
    }

    fn params(&self) -> Vec<&Params> {
        self.stage.model().params()
    }

    fn parameters(&self, text: &mut String) {
        let mut parts: BTreeMap<&str, Part> = BTreeMap::new();
        let mut order = Vec::new();
        let mut total = Part::default();
        for parameter in self.params().into_iter().flat_map(Params::iter) {
            let name = parameter.name.split('.').next().unwrap_or_default();
            if !parts.contains_key(name) {
                order.push(name);
            }
            let part = parts.entry(name).or_default();
            let n = parameter.n_values() as u64;
            let (of_part, of_all) = if parameter.weight.is_trained() {
                (&mut part.trained, &mut total.trained)
            } else {
                (&mut part.frozen, &mut total.frozen)
            };
            *of_part += n;
            *of_all += n;
        }
        let mut line = |name: &str, n: u64, state: &str| {
            if n > 0 {
                let bytes = VALUE_BYTES * n;
                put(text, &format!("{name:<22} {n:>16} {state:<7} {bytes:>18} bytes"));
            }
        };
        for name in order {
            line(name, parts[name].trained, "trained");
            line(name, parts[name].frozen, "frozen");
        }
        line("total", total.trained, "trained");
        line("total", total.frozen, "frozen");
    }

    fn memory(&self, text: &mut String, batches: &[Batch]) {
        let size = Size::of(&self.params(), self.copies);
        let trained = size.copied_bytes / self.copies as u64;
        let all = self.params().iter().map(|params| params.n_values() as u64).sum::<u64>();
        let inputs = batches.iter().map(input_bytes).max().unwrap_or(0);
        let learned = batches.iter().filter(|batch| self.objective.learns_from(batch));
        let parts = learned.filter_map(|batch| self.objective.parts(batch).next());
        let activations = parts.map(|part| self.stage.activation_bytes(&part)).max().unwrap_or(0);
        let rows = [
            ("weights", VALUE_BYTES * all),
            ("gradients", trained),
            ("moments", 2 * trained),
            ("averages", size.copied_bytes - 3 * trained),
            ("copy for checkpoints", size.copied_bytes),
            ("gradient, accounting", trained * self.beside.accounting),
            ("weights and averages", trained * self.beside.validation),
            ("inputs, largest batch", inputs),
            ("activations, estimated", activations),
        ];
        // What a run has not is no row.
        let rows = rows.into_iter().filter(|(_, bytes)| *bytes > 0);
        let rows: Vec<_> = rows.collect();
        let heading = "\nmemory, in f32 on the CPU".to_owned();
        let of_ranks = |n| {
            format!(
                "\nmemory of the first of {n} ranks, in f32 on the CPU; others have the moments of their \
                 share only, and make no copy"
            )
        };
        put(text, &if self.n_ranks == 1 { heading } else { of_ranks(self.n_ranks) });
        for (name, bytes) in &rows {
            put(text, &format!("{name:<22} {bytes:>16} bytes"));
        }
        let total: u64 = rows.iter().map(|(_, bytes)| bytes).sum();
        put(text, &format!("{:<22} {total:>16} bytes", "sum"));
        text.push_str(
            "activations are those of the first batch of each dataset; others may have more images\n\
             not counted: batches that are read ahead, caches, the allocator's slack; a GPU holds frozen \
             weights and activations as bf16 and the host keeps these weights too, unless --precision is f32\n",
        );
        let free = room::disk_bytes(self.run);
        let free = free.map_or("an unknown number of".to_owned(), |bytes| bytes.to_string());
        let folder = self.run.display();
        put(
            text,
            &format!("\na checkpoint takes {} bytes, {folder} has {free} free", size.file_bytes),
        );
    }

    fn datasets(&self, text: &mut String, first_step: u64) {
        let (steps, turns, weights) = (self.schedule.steps, self.turns, &self.objective.weights);
        // Of a run that goes on, those that are done are done.
        let steps_left = steps.saturating_sub(first_step);
        put(
            text,
            &match steps_left {
                0 => format!("\ndatasets; all {steps} steps are done"),
                _ => format!("\ndatasets, for steps {} to {steps}", first_step + 1),
            },
        );
        for (index, source) in self.sources.iter().enumerate() {
            let Source { name, batch_rows, n_rows, left_out, .. } = source;
            let rows = n_rows.saturating_sub(left_out.len() as u64);
            let per_epoch = rows as f64 * turns as f64 / *batch_rows as f64;
            let epochs = steps_left as f64 / per_epoch;
            // Merged rows have no lambda of their own.
            let weight = weights.get(index).filter(|_| weights.len() == self.sources.len());
            let weight = weight.map_or(String::new(), |weight| format!(", lambda {weight}"));
            put(
                text,
                &format!(
                    "{name}: {rows} rows, {batch_rows} a batch{weight}, {per_epoch:.1} steps an epoch, \
                     {epochs:.2} epochs"
                ),
            );
        }
    }

    fn learning_rates(&self, text: &mut String) {
        let Schedule { steps, warmup_steps, .. } = self.schedule;
        let quarters = (1..=4).map(|quarter| (u128::from(steps) * quarter / 4) as u64);
        let mut points: Vec<u64> = [1, warmup_steps].into_iter().chain(quarters).collect();
        points.retain(|step| (1..=steps).contains(step));
        points.sort_unstable();
        points.dedup();
        text.push_str("\nlearning rate\n");
        for step in points {
            put(text, &format!("step {step:>12} {:.6e}", self.schedule.lr(step - 1)));
        }
        if let Some(warning) = self.schedule.warning() {
            put(text, &warning);
        }
    }

    /// The first sequence of each dataset that is in a batch. In a merged one datasets may pack their rows
    /// differently.
    fn first_rows(&self, text: &mut String, batch: &Batch) {
        let mut first = First::default();
        let in_batch = |source: &&Source| batch.name == MERGED || batch.name == source.name;
        for source in self.sources.iter().filter(in_batch) {
            self.sequence(text, batch, source, &first);
            first.sequence += source.batch / self.n_ranks;
            first.row += source.batch_rows / self.n_ranks;
        }
    }

    fn sequence(&self, text: &mut String, batch: &Batch, source: &Source, first: &First) {
        let First { sequence, row } = *first;
        let of_text = sequence * batch.length..(sequence + 1) * batch.length;
        let pack = source.batch_rows / source.batch;
        let rows: Vec<String> = batch.rows[row..row + pack].iter().map(u64::to_string).collect();
        let shown = MaskedTokens {
            tokens: &batch.tokens[of_text.clone()],
            phi: &batch.phi[of_text.clone()],
            loss_mask: &batch.loss_mask[of_text],
            tokenizer: self.tokenizer,
        }
        .shown();
        let n_learned = shown.iter().filter(|token| token.is_learned).count();
        let (n, images) = (shown.len(), batch.image_count.get(sequence).copied().unwrap_or(0));
        let (name, rows) = (&source.name, rows.join(" "));
        put(text, &format!("{name} row {rows}: {n} tokens, {n_learned} learned, {images} images"));
        text.push_str(&lines(&shown, false));
    }
}

/// Bytes of what a model takes of a batch: tokens, masks and the pixels.
fn input_bytes(batch: &Batch) -> u64 {
    let of_token = size_of::<u32>() + size_of::<i32>() + size_of::<f32>();
    let of_pixel = match batch.pixels {
        BatchPixels::F32(_) => size_of::<f32>(),
        BatchPixels::U8 { .. } => size_of::<u8>(),
    };
    (of_token * batch.tokens.len() + of_pixel * batch.pixels.len()) as u64
}

fn put(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("a string takes all that is written");
}
