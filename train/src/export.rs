//! `flamingo-train export`: models in the forms that others read, models from what others wrote,
//! and tables of parameters.
//!
//! What is written is there as a whole or not at all: files are written under another name, brought
//! to disk and renamed.

use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::{ArgGroup, Args, ValueEnum};
use flamingo_model::{Flamingo, FlamingoConfig, ModelError, Tensors, VisionConfig, read_config};

use crate::error::TrainError;
use crate::{files, run_folder};

/// What is exported, and how.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("source").required(true))]
pub struct Export {
    /// Name of a model of the paper or of `OpenFlamingo`, of which there are no weights here.
    #[arg(long, value_name = "NAME", requires = "dry_run", group = "source",
          value_parser = PossibleValuesParser::new(FlamingoConfig::preset_names()))]
    preset: Option<String>,
    /// Run of the Flamingo stage, whose last checkpoint is taken, or a model's folder.
    #[arg(long, value_name = "FOLDER", group = "source")]
    model: Option<PathBuf>,
    /// Checkpoint of OpenFlamingo (`torch.save`'s or safetensors), whose towers the next three
    /// options give.
    #[arg(long, value_name = "FILE", group = "source",
          requires_all = ["vision", "language", "every"])]
    from_open_flamingo: Option<PathBuf>,
    /// Folder of the CLIP that the checkpoint was trained with, in any form that is read.
    #[arg(long, value_name = "FOLDER", requires = "from_open_flamingo")]
    vision: Option<PathBuf>,
    /// Folder of its language model.
    #[arg(long, value_name = "FOLDER", requires = "from_open_flamingo")]
    language: Option<PathBuf>,
    /// Layers of the language model from one cross-attention block to the next.
    #[arg(long, value_name = "N", requires = "from_open_flamingo",
          value_parser = clap::value_parser!(u32).range(1..))]
    every: Option<u32>,
    /// Print how many parameters each part has, and write nothing.
    #[arg(long, conflicts_with_all = ["format", "out", "force"])]
    dry_run: bool,
    /// What is written.
    #[arg(long, value_enum, required_unless_present = "dry_run", requires = "out")]
    format: Option<Format>,
    /// File (`open-flamingo`) or folder to write; must not exist unless `--force` is given.
    #[arg(long, value_name = "PATH", requires = "format")]
    out: Option<PathBuf>,
    /// Replace the file, or the files of these names in the folder.
    #[arg(long)]
    force: bool,
}

/// What is written.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// OpenFlamingo's checkpoint: a `.pt` as `torch.save` writes it, or a `.safetensors`.
    OpenFlamingo,
    /// The language model, with its `tokenizer.json` if there is one, in `language/` and the vision
    /// encoder in `vision/`, each as transformers reads it, without what joins them.
    HuggingFace,
    /// The whole model, with its `tokenizer.json` if there is one, in a folder of this project.
    Flamingo,
}

/// Does what the command line asks for; what it says is for the user.
///
/// # Errors
/// When a model cannot be read or has no such form, or when the output is there already or cannot
/// be written.
pub fn run(export: &Export) -> Result<String, TrainError> {
    let (Some(format), Some(out)) = (export.format, &export.out) else {
        let table = export.config()?.parameter_table().map_err(TrainError::model("count"))?;
        return Ok(table.to_string());
    };
    let write_file = match format {
        Format::OpenFlamingo => Some(tensors_writer(out)?),
        Format::HuggingFace | Format::Flamingo => None,
    };
    if out.exists() && !export.force {
        return Err(TrainError::OutExists { path: out.clone() });
    }
    let model = export.read()?;
    if let Some(write) = write_file {
        let tensors = model.to_open_flamingo().map_err(TrainError::model("export"))?;
        let n = tensors.names().count();
        replace_file(out, |part| write(&tensors, part))?;
        return Ok(format!("{n} tensors in {}\n", out.display()));
    }
    let tokenizer = export.tokenizer();
    let parts = files::fill_folder(out, |folder| {
        let (parts, beside) = match format {
            Format::HuggingFace => (save_towers(&model, folder)?, folder.join("language")),
            Format::OpenFlamingo | Format::Flamingo => {
                model.save(folder).map_err(TrainError::model("export"))?;
                ("config.json and model.safetensors", folder.to_path_buf())
            }
        };
        let target = run_folder::tokenizer(&beside);
        if let Some(tokenizer) = &tokenizer {
            let bytes = std::fs::read(tokenizer).map_err(TrainError::file("read", tokenizer))?;
            files::replace(&target, &bytes)?;
        } else if target.exists() {
            // Another model's.
            std::fs::remove_file(&target).map_err(TrainError::file("remove", &target))?;
        }
        Ok(parts)
    })?;
    let with = if tokenizer.is_some() { ", with tokenizer.json," } else { "" };
    Ok(format!("{parts}{with} in {}\n", out.display()))
}

impl Export {
    /// The configuration of the model that is meant, without reading weights.
    fn config(&self) -> Result<FlamingoConfig, TrainError> {
        if let Some(name) = &self.preset {
            return FlamingoConfig::preset(name).map_err(TrainError::model("find"));
        }
        if let Some(folder) = &self.model {
            return read_config(folder).map_err(TrainError::model("read"));
        }
        self.read().map(|model| model.config().clone())
    }

    /// The `tokenizer.json` of the run, or beside the model or the language model.
    fn tokenizer(&self) -> Option<PathBuf> {
        let folder = self.model.as_ref().or(self.language.as_ref())?;
        Some(run_folder::tokenizer(&run_folder::run_of(folder))).filter(|file| file.is_file())
    }

    fn read(&self) -> Result<Flamingo, TrainError> {
        if let Some(folder) = &self.model {
            return Flamingo::load(folder).map_err(TrainError::model("load"));
        }
        let given = (&self.from_open_flamingo, &self.vision, &self.language, self.every);
        let (Some(checkpoint), Some(vision), Some(language), Some(every)) = given else {
            return Err(TrainError::NoModel);
        };
        Flamingo::from_open_flamingo(checkpoint, vision, language, every as usize)
            .map_err(TrainError::model("load"))
    }
}

/// Writes tensors to a file.
type Write = fn(&Tensors, &Path) -> Result<(), ModelError>;

/// How a file of this name is written.
fn tensors_writer(out: &Path) -> Result<Write, TrainError> {
    match out.extension().and_then(|ending| ending.to_str()) {
        Some("safetensors") => Ok(Tensors::write),
        Some("pt") => Ok(Tensors::write_torch),
        _ => Err(TrainError::OutName { path: out.into(), expected: ".pt or .safetensors" }),
    }
}

/// Language model and, if others know its kind, vision encoder; says which.
fn save_towers(model: &Flamingo, folder: &Path) -> Result<&'static str, TrainError> {
    let made = |name: &str| {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).map_err(TrainError::file("make", &folder))?;
        Ok::<_, TrainError>(folder)
    };
    let saved = model.language_model().save_hugging_face(&made("language")?);
    saved.map_err(TrainError::model("export"))?;
    match &model.config().vision {
        VisionConfig::Vit(_) => {
            let saved = model.save_vision_hugging_face(&made("vision")?);
            saved.map_err(TrainError::model("export"))?;
            Ok("language model and vision encoder")
        }
        VisionConfig::Nfnet(_) => Ok("language model alone, for transformers has no NFNet,"),
    }
}

/// Writes a file under another name and gives it its own.
fn replace_file(
    out: &Path,
    write: impl FnOnce(&Path) -> Result<(), ModelError>,
) -> Result<(), TrainError> {
    let part = files::part_of(out);
    write(&part).map_err(TrainError::model("export"))?;
    std::fs::rename(&part, out).map_err(|source| {
        // The first error is the one to report.
        let _ = std::fs::remove_file(&part);
        TrainError::file("replace", out)(source)
    })?;
    files::sync_parent(out)
}
