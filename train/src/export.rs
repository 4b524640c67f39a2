//! `flamingo-train export`: models in the forms that others read, models from what others wrote,
//! and tables of parameters.
//!
//! What is written is there as a whole or not at all: files are written under another name, brought
//! to disk and renamed.

use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::{ArgGroup, Args, ValueEnum};
use flamingo_model::{
    Clip, Flamingo, FlamingoConfig, LanguageModel, ModelError, Tensors, VisionConfig, read_config,
};
use serde_json::Value;

use crate::error::TrainError;
use crate::run_image::{image_of_run, is_run};
use crate::run_tokenizer::TOKENIZER_CONFIG;
use crate::{files, preprocessor, run_folder};

/// Name of the file with a tokenizer.
const TOKENIZER: &str = "tokenizer.json";

/// What is exported, and how.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("source").required(true))]
pub struct Export {
    /// Name of a model of the paper or of `OpenFlamingo`, of which there are no weights here.
    #[arg(long, value_name = "NAME", requires = "dry_run", group = "source",
          value_parser = PossibleValuesParser::new(FlamingoConfig::preset_names()))]
    preset: Option<String>,
    /// Run, whose last checkpoint is taken, a checkpoint, the averaged model in it, or a model's folder.
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
    /// encoder in `vision/`, each as transformers reads it, without what joins them. Of a run of the
    /// language stage its model, and of the contrastive stage the vision encoder, in the folder itself.
    /// Where images are padded (`fit = "mean_pad"`) transformers, which cannot, is told to squash them.
    HuggingFace,
    /// The whole model, with its `tokenizer.json` and `preprocessor_config.json` if there are, in a folder
    /// of this project.
    Flamingo,
}

/// A model that is exported.
enum Model {
    /// Of the Flamingo or the finetune stage.
    Flamingo(Box<Flamingo>),
    /// Of the language stage.
    Language(Box<LanguageModel>),
    /// Of the contrastive stage.
    Contrastive(Box<Clip>),
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
    if out.join(run_folder::CONFIG).is_file() {
        return Err(TrainError::OutIsRun { path: out.clone() });
    }
    let model = export.read()?;
    model.require_form(format)?;
    if let (Some(write), Model::Flamingo(model)) = (write_file, &model) {
        let tensors = model.to_open_flamingo().map_err(TrainError::model("export"))?;
        let n = tensors.names().count();
        replace_file(out, |part| write(&tensors, part))?;
        return Ok(format!("{n} tensors in {}\n", out.display()));
    }
    let beside = export.beside(&model)?;
    let written = files::fill_folder(out, |folder| {
        let written = model.write(format, folder)?;
        for (place, reads) in &written.places {
            beside.put(place, *reads)?;
        }
        Ok(written)
    })?;
    let has = |wanted: Reads, bytes: &Option<Vec<u8>>| {
        bytes.is_some() && written.places.iter().any(|(_, reads)| reads.includes(wanted))
    };
    let with = if has(Reads::Tokens, &beside.tokenizer[0]) { ", with tokenizer.json," } else { "" };
    let is_padded = has(Reads::Images, &beside.preprocessor)
        && beside.preprocessor.as_deref().is_some_and(preprocessor::is_padded);
    let note = if is_padded { SQUASHED } else { "" };
    Ok(format!("{}{with} in {}\n{note}", written.parts, out.display()))
}

/// What is said where images are padded.
const SQUASHED: &str = "preprocessor_config.json: images are padded with the mean here (fit \"mean_pad\"), which \
    transformers cannot; it is told to squash them\n";

/// What was written into a folder.
struct Written {
    /// In words.
    parts: &'static str,
    /// The folders of the parts, and what each of these reads.
    places: Vec<(PathBuf, Reads)>,
}

/// What a part of a model reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reads {
    Tokens,
    Images,
    Both,
}

impl Reads {
    fn includes(self, other: Self) -> bool {
        self == Self::Both || self == other
    }
}

/// What stands beside a model, where there is such a file.
struct Beside {
    /// `tokenizer.json`, and what names its marks where their names do not.
    tokenizer: [Option<Vec<u8>>; 2],
    /// `preprocessor_config.json`.
    preprocessor: Option<Vec<u8>>,
}

impl Beside {
    /// Puts the files of a part beside it. Those that it has not, or does not read, are another model's and go.
    fn put(&self, place: &Path, reads: Reads) -> Result<(), TrainError> {
        let [tokenizer, names] = &self.tokenizer;
        for (name, kind, bytes) in [
            // First, for it is nothing without the other.
            (TOKENIZER_CONFIG, Reads::Tokens, names),
            (TOKENIZER, Reads::Tokens, tokenizer),
            (preprocessor::FILE, Reads::Images, &self.preprocessor),
        ] {
            let bytes = bytes.as_deref().filter(|_| reads.includes(kind));
            put_beside(&place.join(name), bytes)?;
        }
        Ok(())
    }
}

/// Puts a file beside a model; without one, that of another model goes.
fn put_beside(target: &Path, bytes: Option<&[u8]>) -> Result<(), TrainError> {
    match bytes {
        Some(bytes) => files::replace(target, bytes),
        None if target.exists() => {
            std::fs::remove_file(target).map_err(TrainError::file("remove", target))
        }
        None => Ok(()),
    }
}

impl Export {
    /// The configuration of the model that is meant, without reading weights.
    fn config(&self) -> Result<FlamingoConfig, TrainError> {
        if let Some(name) = &self.preset {
            return FlamingoConfig::preset(name).map_err(TrainError::model("find"));
        }
        if let Some(folder) = &self.model {
            return match kind(folder)? {
                Kind::Flamingo => read_config(folder).map_err(TrainError::model("read")),
                other => Err(TrainError::NoForm { what: other.name() }),
            };
        }
        let given = self.of_open_flamingo()?;
        Ok(given.config().clone())
    }

    /// The folder that the model comes from, or its language model.
    fn folder(&self) -> Option<PathBuf> {
        self.model.as_ref().or(self.language.as_ref()).map(|folder| run_folder::run_of(folder))
    }

    /// What stands beside the model that is read.
    fn beside(&self, model: &Model) -> Result<Beside, TrainError> {
        let preprocessor = match model {
            Model::Language(_) => None,
            Model::Flamingo(model) => self.preprocessor(&model.config().vision)?,
            Model::Contrastive(model) => self.preprocessor(&model.config().vision)?,
        };
        Ok(Beside { tokenizer: self.tokenizer()?, preprocessor })
    }

    /// The `tokenizer.json` of the run, or beside the model or the language model, and its
    /// `tokenizer_config.json`.
    fn tokenizer(&self) -> Result<[Option<Vec<u8>>; 2], TrainError> {
        let Some(path) = self.folder().map(|folder| run_folder::tokenizer(&folder)) else {
            return Ok([None, None]);
        };
        let tokenizer = read_if_there(&path)?;
        let names = match tokenizer {
            Some(_) => read_if_there(&path.with_file_name(TOKENIZER_CONFIG))?,
            None => None,
        };
        Ok([tokenizer, names])
    }

    /// The `preprocessor_config.json` beside the model or the vision encoder, or what a run's config says.
    fn preprocessor(&self, vision: &VisionConfig) -> Result<Option<Vec<u8>>, TrainError> {
        let Some(folder) = self.model.as_ref().or(self.vision.as_ref()) else { return Ok(None) };
        let run = run_folder::run_of(folder);
        if is_run(&run) {
            let (image, _) = image_of_run(&run)?;
            return Ok(Some(preprocessor::text(&image).into_bytes()));
        }
        preprocessor::beside(folder, vision.image_size())
    }

    fn read(&self) -> Result<Model, TrainError> {
        let Some(folder) = &self.model else {
            return Ok(Model::Flamingo(Box::new(self.of_open_flamingo()?)));
        };
        let read = match kind(folder)? {
            Kind::Flamingo => Flamingo::load(folder).map(Box::new).map(Model::Flamingo),
            Kind::Language => LanguageModel::load(folder).map(Box::new).map(Model::Language),
            Kind::Contrastive => Clip::load(folder).map(Box::new).map(Model::Contrastive),
        };
        read.map_err(TrainError::model("load"))
    }

    fn of_open_flamingo(&self) -> Result<Flamingo, TrainError> {
        let given = (&self.from_open_flamingo, &self.vision, &self.language, self.every);
        let (Some(checkpoint), Some(vision), Some(language), Some(every)) = given else {
            return Err(TrainError::NoModel);
        };
        Flamingo::from_open_flamingo(checkpoint, vision, language, every as usize)
            .map_err(TrainError::model("load"))
    }
}

/// What a folder of ours holds.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Flamingo,
    Language,
    Contrastive,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Flamingo => "a Flamingo",
            Self::Language => "a language model",
            Self::Contrastive => "a contrastive model",
        }
    }
}

/// The kind of the model in a folder: each has a key in its `config.json` that the others lack.
fn kind(folder: &Path) -> Result<Kind, TrainError> {
    let config: Value = read_config(folder).map_err(TrainError::model("read"))?;
    Ok(match (config.get("embedding"), config.get("vocabulary")) {
        (Some(_), _) => Kind::Contrastive,
        (_, Some(_)) => Kind::Language,
        _ => Kind::Flamingo,
    })
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, TrainError> {
    let read = || std::fs::read(path).map_err(TrainError::file("read", path));
    path.is_file().then(read).transpose()
}

impl Model {
    /// Fails where only a whole Flamingo has such a form.
    fn require_form(&self, format: Format) -> Result<(), TrainError> {
        let kind = match (self, format) {
            (Self::Flamingo(_), _) | (_, Format::HuggingFace) => return Ok(()),
            (Self::Language(_), _) => Kind::Language,
            (Self::Contrastive(_), _) => Kind::Contrastive,
        };
        Err(TrainError::NoForm { what: kind.name() })
    }

    /// Writes it into a folder.
    fn write(&self, format: Format, folder: &Path) -> Result<Written, TrainError> {
        let export = TrainError::model("export");
        let here = |reads| vec![(folder.to_path_buf(), reads)];
        match (self, format) {
            (Self::Flamingo(model), Format::HuggingFace) => save_towers(model, folder),
            (Self::Flamingo(model), Format::OpenFlamingo | Format::Flamingo) => {
                model.save(folder).map_err(export)?;
                let parts = "config.json and model.safetensors";
                Ok(Written { parts, places: here(Reads::Both) })
            }
            (Self::Language(model), _) => {
                model.save_hugging_face(folder).map_err(export)?;
                Ok(Written { parts: "language model", places: here(Reads::Tokens) })
            }
            (Self::Contrastive(model), _) => {
                model.save_vision_hugging_face(folder).map_err(export)?;
                Ok(Written { parts: "vision encoder", places: here(Reads::Images) })
            }
        }
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

/// Language model and, if others know its kind, vision encoder.
fn save_towers(model: &Flamingo, folder: &Path) -> Result<Written, TrainError> {
    let made = |name: &str| {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).map_err(TrainError::file("make", &folder))?;
        Ok::<_, TrainError>(folder)
    };
    let language = made("language")?;
    let saved = model.language_model().save_hugging_face(&language);
    saved.map_err(TrainError::model("export"))?;
    let mut places = vec![(language, Reads::Tokens)];
    let parts = match &model.config().vision {
        VisionConfig::Vit(_) => {
            let vision = made("vision")?;
            let saved = model.save_vision_hugging_face(&vision);
            saved.map_err(TrainError::model("export"))?;
            places.push((vision, Reads::Images));
            "language model and vision encoder"
        }
        VisionConfig::Nfnet(_) => "language model alone, for transformers has no NFNet,",
    };
    Ok(Written { parts, places })
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
