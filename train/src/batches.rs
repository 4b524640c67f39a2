//! `flamingo-train batches`: the batches of a run's steps as files, for who wants to look at them or to
//! train another program on the same rows in the same order.
//!
//! Letters: `B` rows, `L` tokens, `N` images, `F` frames, `H` = `W` size.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use flamingo_dataset::{Batch, Loader};
use flamingo_model::Tensors;

use crate::command::located;
use crate::config_file::ConfigFile;
use crate::error::TrainError;
use crate::inputs::padded_pixels;
use crate::limits::STEPS_WRITTEN_MAX;
use crate::masks::unseen;
use crate::overrides::Override;
use crate::run_tokenizer::read_tokenizer;

/// Which batches, and where they go.
#[derive(Debug, Args)]
pub struct Batches {
    /// Config of a run of any stage, such as its `config.toml`.
    #[arg(long)]
    config: PathBuf,
    /// Folder that relative paths in the config start from [default: the working directory].
    #[arg(long)]
    root: Option<PathBuf>,
    /// Change one value of the config, as for a stage. Repeatable.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    overrides: Vec<Override>,
    /// A `tokenizer.json`, such as a run has, or another tokenizer that a config may name.
    #[arg(long, value_name = "FILE")]
    tokenizer: PathBuf,
    /// The first step, from 1.
    #[arg(long, value_name = "STEP", default_value_t = 1,
          value_parser = clap::value_parser!(u64).range(1..=STEPS_WRITTEN_MAX))]
    first: u64,
    /// How many steps.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u64).range(1..=STEPS_WRITTEN_MAX))]
    steps: u64,
    /// Folder for a file `step-N.safetensors` of each step; must not exist.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
}

/// Writes the batches; says how many.
///
/// Rows that a run leaves out since steps went wrong are known to its checkpoint alone, so batches after
/// such a step are others.
///
/// # Errors
/// When the config, a corpus or the tokenizer cannot be read, or the folder is there already or cannot
/// be written.
pub fn run(batches: &Batches) -> Result<String, TrainError> {
    let Batches { root, overrides, tokenizer, first, steps, out, .. } = batches;
    if out.exists() {
        let there = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
        return Err(TrainError::file("write", out)(there));
    }
    let file = ConfigFile::<toml::Table>::read(&batches.config, overrides)?;
    let config = &file.config;
    let image = config.image.clone().unwrap_or_else(unseen);
    let entries = config.mixture_entries(&image, |path| located(root.as_deref(), path));
    let tokenizer = Arc::new(read_tokenizer(tokenizer)?);
    let mut loader = Loader::open(entries, tokenizer, config.mixture, config.seed, first - 1)
        .map_err(TrainError::loader)?;
    std::fs::create_dir_all(out).map_err(TrainError::file("create", out))?;
    for step in *first..first + steps {
        let mut tensors = Tensors::default();
        for batch in loader.next_step().map_err(TrainError::loader)? {
            add(&mut tensors, &batch);
        }
        write(&tensors, &out.join(format!("step-{step}.safetensors")))?;
    }
    Ok(format!("batches of {steps} steps in {}", out.display()))
}

fn write(tensors: &Tensors, path: &Path) -> Result<(), TrainError> {
    tensors.write(path).map_err(TrainError::model("write"))
}

/// Adds a batch under the name of its dataset, all as f32: `NAME.tokens`, `.phi` and `.loss_mask` `[B, L]`,
/// `.pixels` `[B, N, F, 3, H, W]` if there are any, `.image_count` `[B]`, and `.rows` `[R, 2]`: how often
/// 2^24 is in the number of a row, and the rest, since an f32 holds whole numbers exactly up to there.
pub(crate) fn add(tensors: &mut Tensors, batch: &Batch) {
    let mut add = |part: &str, shape: &[usize], values: Vec<f32>| {
        tensors.insert(format!("{}.{part}", batch.name), shape, values);
    };
    let text = [batch.size, batch.length];
    add("tokens", &text, batch.tokens.iter().map(|token| *token as f32).collect());
    add("phi", &text, batch.phi.iter().map(|phi| *phi as f32).collect());
    add("loss_mask", &text, batch.loss_mask.clone());
    add("image_count", &[batch.size], batch.image_count.iter().map(|n| *n as f32).collect());
    add("rows", &[batch.rows.len(), 2], batch.rows.iter().flat_map(|row| halves(*row)).collect());
    if let Some((side, pixels)) = padded_pixels(batch) {
        add("pixels", &[batch.size, batch.n_images, batch.n_frames, 3, side, side], pixels);
    }
}

/// A row's number as multiples of 2^24 and the rest.
fn halves(row: u64) -> [f32; 2] {
    const EXACT: u64 = 1 << f32::MANTISSA_DIGITS;
    [row / EXACT, row % EXACT].map(|half| half as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_rows_are_whole_in_corpora_of_billions() {
        for row in [0, (1 << 24) - 1, (1 << 24) + 1, 1_800_000_001, (1 << 47) + 1] {
            let [times, rest] = halves(row).map(|half| half as u64);
            assert_eq!(times * (1 << 24) + rest, row);
        }
    }
}
