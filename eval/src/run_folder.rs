//! A model on disk as an evaluation reads it: which weights, which tokenizer, how images become pixels, and how the
//! losses went.
//!
//! It is a run of `flamingo-train` or one of its checkpoints; a folder that `export --format flamingo` wrote; or one
//! that holds a checkpoint of `OpenFlamingo` beside the towers that it was trained with:
//!
//! ```text
//! checkpoint.pt (or checkpoint.safetensors)    vision/    language/ with its tokenizer
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use flamingo_dataset::{ImageConfig, sha256_hex};
use flamingo_model::{
    CHECKSUMS_FILE, Flamingo, FlamingoConfig, Tensors, base_weights, model_folder, read_config,
};
use serde::Deserialize;

use crate::error::EvalError;
use crate::image_settings::image_settings;

/// Names of a checkpoint of `OpenFlamingo`, the likeliest first.
const OPEN_FLAMINGO: [&str; 2] = ["checkpoint.pt", "checkpoint.safetensors"];

/// Files of a checkpoint that serve training alone, and the checksums of these and others.
const NOT_THE_MODEL: [&str; 3] = ["optimizer.safetensors", "state.json", CHECKSUMS_FILE];

/// The part of a run's `config.toml` that an evaluation needs.
#[derive(Debug, Clone, Deserialize)]
struct RunConfig {
    image: ImageConfig,
    #[serde(default)]
    model: ModelConfig,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct ModelConfig {
    vision: Option<toml::Value>,
    language: Option<toml::Value>,
    /// Of a run that finetuned another's model.
    from: Option<toml::Value>,
}

/// A model on disk with what belongs to it.
#[derive(Debug, Clone)]
pub struct RunFolder {
    /// The run.
    pub run: PathBuf,
    /// The checkpoint: `config.json` and the weights.
    pub checkpoint: PathBuf,
    /// How images become pixels.
    pub image: ImageConfig,
    /// Runs whose models this one was built from, with their stage, where they can be found.
    pub built_from: Vec<(String, PathBuf)>,
    tokenizer: PathBuf,
    form: Form,
}

/// Whose weights they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Ours.
    Flamingo,
    /// `OpenFlamingo`'s.
    OpenFlamingo,
}

impl RunFolder {
    /// Loads the newest checkpoint of a run, `RUN/checkpoints/step-N` as given, or a model's folder.
    ///
    /// # Errors
    /// When the folder is none of these, or its config cannot be read.
    pub fn open(path: &Path) -> Result<(Self, Flamingo), EvalError> {
        if !path.is_dir() {
            return Err(not_a_model(path, "no such folder"));
        }
        if let Some(name) = OPEN_FLAMINGO.iter().find(|name| path.join(name).is_file()) {
            return Self::of_open_flamingo(path, &path.join(name));
        }
        let folder = Self::find(path)?;
        let model = Flamingo::load(&folder.checkpoint);
        let model = model.map_err(EvalError::model(&folder.checkpoint))?;
        let (size, encoder) = (folder.image.size, model.config().vision.image_size());
        if size != encoder {
            let (run, checkpoint) = (folder.run.display(), folder.checkpoint.display());
            let problem = format!("images of {size} pixels in {run}, of {encoder} in {checkpoint}");
            return Err(not_a_model(path, &problem));
        }
        Ok((folder, model))
    }

    /// The folder of a model of ours, without its weights.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn find(path: &Path) -> Result<Self, EvalError> {
        if !path.is_dir() {
            return Err(not_a_model(path, "no such folder"));
        }
        let has_towers = ["vision", "language"].iter().all(|name| path.join(name).is_dir());
        if has_towers && !path.join("latest").is_file() && !path.join("config.json").is_file() {
            let files = OPEN_FLAMINGO.join("` or `");
            let problem = format!("vision/ and language/, but no `{files}`, which joins them");
            return Err(not_a_model(path, &problem));
        }
        let checkpoint = model_folder(path).map_err(EvalError::NoModel)?;
        let whole = checkpoint.canonicalize().map_err(EvalError::file("read", &checkpoint))?;
        // A checkpoint is RUN/checkpoints/step-N, and its averaged model RUN/checkpoints/step-N/ema.
        let is_run = |folder: &&Path| folder.join("config.toml").is_file();
        if checkpoint != path {
            return Self::of_run(path, path, checkpoint);
        }
        match whole.ancestors().skip(2).take(2).find(is_run) {
            Some(run) => Self::of_run(path, run, checkpoint),
            None => Self::of_model_folder(path),
        }
    }

    fn of_run(path: &Path, run: &Path, checkpoint: PathBuf) -> Result<Self, EvalError> {
        let tokenizer = run.join("tokenizer.json");
        for file in [&tokenizer, &run.join("config.toml"), &checkpoint.join("config.json")] {
            if !file.is_file() {
                return Err(not_a_model(path, &format!("no {}", file.display())));
            }
        }
        let file = run.join("config.toml");
        let text = read(&file)?;
        let config: RunConfig = toml::from_str(&text)
            .map_err(|error| EvalError::toml(&file.display().to_string(), &text, &error))?;
        let built_from = built_from(run, &config.model);
        let (run, image, form) = (run.to_path_buf(), config.image, Form::Flamingo);
        Ok(Self { run, checkpoint, image, built_from, tokenizer, form })
    }

    /// What `export --format flamingo` writes.
    fn of_model_folder(path: &Path) -> Result<Self, EvalError> {
        let tokenizer = path.join("tokenizer.json");
        if !tokenizer.is_file() {
            let problem =
                "neither a checkpoint below a run's config.toml nor with a tokenizer.json";
            return Err(not_a_model(path, problem));
        }
        let config: FlamingoConfig = read_config(path).map_err(EvalError::model(path))?;
        let folder = path.to_path_buf();
        Ok(Self {
            image: image_settings(std::slice::from_ref(&folder), &config.vision)?,
            run: folder.clone(),
            checkpoint: folder,
            built_from: Vec::new(),
            tokenizer,
            form: Form::Flamingo,
        })
    }

    fn of_open_flamingo(path: &Path, checkpoint: &Path) -> Result<(Self, Flamingo), EvalError> {
        let [vision, language] = ["vision", "language"].map(|name| path.join(name));
        for (folder, what) in [
            (&vision, "the CLIP that it was trained with"),
            (&language, "its language model and tokenizer"),
        ] {
            if !folder.is_dir() {
                let name = checkpoint.file_name().unwrap_or_default().display();
                let problem = format!("{name}, but no {} with {what}", folder.display());
                return Err(not_a_model(path, &problem));
            }
        }
        let every = every_of(checkpoint)?;
        let model = Flamingo::from_open_flamingo(checkpoint, &vision, &language, every)
            .map_err(EvalError::model(checkpoint))?;
        let folder = Self {
            image: image_settings(&[path.to_path_buf(), vision], &model.config().vision)?,
            run: path.to_path_buf(),
            checkpoint: checkpoint.to_path_buf(),
            built_from: Vec::new(),
            tokenizer: language,
            form: Form::OpenFlamingo,
        };
        Ok((folder, model))
    }

    /// The tokenizer's file or folder.
    pub fn tokenizer(&self) -> &Path {
        &self.tokenizer
    }

    /// Whether prompts begin with `<BOS>` only where the tokenizer puts it there by itself, as `OpenFlamingo` has it. Ours
    /// always do.
    pub fn begins_as_tokenizer(&self) -> bool {
        self.form != Form::Flamingo
    }

    /// Digest of all that decides the model's answers: weights, config, tokenizer, image settings.
    ///
    /// # Errors
    /// When a file cannot be read.
    ///
    /// # Panics
    /// Never: image settings are numbers and names.
    pub fn sha256(&self) -> Result<String, EvalError> {
        let mut files = match self.form {
            Form::Flamingo => {
                let mut files = parts_in(&self.checkpoint)?;
                files.push(self.tokenizer.clone());
                files.extend(base_weights(&self.checkpoint));
                files
            }
            Form::OpenFlamingo => {
                let mut files = parts_in(&self.run.join("vision"))?;
                files.extend(parts_in(&self.tokenizer)?);
                files.push(self.checkpoint.clone());
                files
            }
        };
        files.sort();
        files.dedup();
        let mut lines = vec![serde_json::to_string(&self.image).expect("numbers and names")];
        for file in files {
            let bytes = std::fs::read(&file).map_err(EvalError::file("read", &file))?;
            let name = file.file_name().unwrap_or_default().display();
            lines.push(format!("{name} {}", sha256_hex(&bytes)));
        }
        Ok(sha256_hex(lines.join("\n").as_bytes()))
    }
}

/// Files of a folder that make a model. A folder in it is a model of its own, such as the averaged one.
fn parts_in(folder: &Path) -> Result<Vec<PathBuf>, EvalError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(EvalError::file("read", folder))? {
        let entry = entry.map_err(EvalError::file("read", folder))?;
        let is_part = !NOT_THE_MODEL.iter().any(|name| entry.file_name() == *name);
        if is_part && entry.path().is_file() {
            files.push(entry.path());
        }
    }
    Ok(files)
}

/// Layers of the language model from one cross-attention block to the next: the first stands before the last of them.
fn every_of(checkpoint: &Path) -> Result<usize, EvalError> {
    let tensors = Tensors::open(checkpoint).map_err(EvalError::model(checkpoint))?;
    let layer = |name: &str| {
        let (before, after) = name.split_once("gated_cross_attn_layer")?;
        let number = match after.strip_prefix("s.") {
            Some(rest) => rest.split('.').next()?,
            None => before.trim_end_matches('.').rsplit('.').next()?,
        };
        number.parse::<usize>().ok()
    };
    let first = tensors.names().filter_map(layer).min();
    first.map(|layer| layer + 1).ok_or_else(|| {
        not_a_model(checkpoint, "no tensor of a `gated_cross_attn_layer`, as OpenFlamingo's have")
    })
}

fn not_a_model(path: &Path, problem: &str) -> EvalError {
    EvalError::NotARun { path: path.to_path_buf(), problem: problem.to_owned() }
}

fn read(path: &Path) -> Result<String, EvalError> {
    std::fs::read_to_string(path).map_err(EvalError::file("read", path))
}

/// Paths in a config start from the working directory of its run; a run beside this one is tried
/// too.
fn built_from(run: &Path, model: &ModelConfig) -> Vec<(String, PathBuf)> {
    let stages =
        [("flamingo", &model.from), ("vision", &model.vision), ("language", &model.language)];
    let found = stages.into_iter().filter_map(|(stage, place)| {
        let place = Path::new(place.as_ref()?.as_str()?);
        let beside = run.parent().unwrap_or(run).join(place);
        let folder = [place.to_path_buf(), beside].into_iter().find(|folder| folder.is_dir())?;
        // One of its checkpoints may be named.
        let run = folder.ancestors().take(4).find(|folder| folder.join("config.toml").is_file());
        let folder = run.unwrap_or(&folder).to_path_buf();
        Some((stage.to_owned(), folder))
    });
    found.collect()
}

/// A named curve: values by step.
pub type Curve = (String, Vec<(f64, f64)>);

/// One line of `metrics.jsonl`, as far as curves need it.
#[derive(Deserialize)]
struct MetricsLine {
    step: f64,
    #[serde(default)]
    losses: BTreeMap<String, f64>,
}

/// The loss of each dataset of a run by step; empty where the run kept no metrics.
///
/// Lines that cannot be read are left out: a run may be going on while it is evaluated.
pub fn loss_curves(run: &Path) -> Vec<Curve> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<MetricsLine>(line).ok());
    let mut curves = BTreeMap::<String, Vec<(f64, f64)>>::new();
    for line in lines {
        for (dataset, loss) in line.losses {
            curves.entry(dataset).or_default().push((line.step, loss));
        }
    }
    curves.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "steps = 3\n[image]\nsize = 8\nfit = \"squash\"\nmean = [0.5, 0.5, 0.5]\n\
                          std = [0.5, 0.5, 0.5]\n[model]\nvision = \"vision\"\n\
                          language = \"gone\"\n";

    fn run(dir: &Path) -> PathBuf {
        let run = dir.join("flamingo");
        std::fs::create_dir_all(run.join("checkpoints/step-3")).unwrap();
        std::fs::create_dir_all(dir.join("vision")).unwrap();
        for (file, text) in [
            ("latest", "step-3\n"),
            ("tokenizer.json", "{}"),
            ("config.toml", CONFIG),
            ("checkpoints/step-3/config.json", "{}"),
            ("checkpoints/step-3/model.safetensors", "w"),
            ("checkpoints/step-3/optimizer.safetensors", "m"),
        ] {
            std::fs::write(run.join(file), text).unwrap();
        }
        run
    }

    #[test]
    fn run_and_checkpoint_lead_to_the_same_model() {
        let dir = tempfile::tempdir().unwrap();
        let run = run(&dir.path().canonicalize().unwrap());
        let by_run = RunFolder::find(&run).unwrap();
        let by_checkpoint = RunFolder::find(&run.join("checkpoints/step-3")).unwrap();
        assert_eq!(by_run.checkpoint, by_checkpoint.checkpoint);
        assert_eq!(by_run.tokenizer(), by_checkpoint.tokenizer());
        assert_eq!(by_run.image.size, 8);
        let names: Vec<&str> = by_run.built_from.iter().map(|(stage, _)| stage.as_str()).collect();
        assert_eq!(names, ["vision"]);
    }

    #[test]
    fn digest_follows_the_weights_and_not_the_optimizer() {
        let dir = tempfile::tempdir().unwrap();
        let path = run(dir.path());
        let digest = || RunFolder::find(&path).unwrap().sha256().unwrap();
        let first = digest();
        for file in ["optimizer.safetensors", "SHA256SUMS"] {
            std::fs::write(path.join("checkpoints/step-3").join(file), "other").unwrap();
            assert_eq!(digest(), first);
        }
        std::fs::write(path.join("checkpoints/step-3/model.safetensors"), "other").unwrap();
        assert_ne!(digest(), first);
    }

    #[test]
    fn the_averaged_model_of_a_checkpoint_has_its_run_and_a_digest_of_both_weights() {
        let dir = tempfile::tempdir().unwrap();
        let path = run(&dir.path().canonicalize().unwrap());
        let step = path.join("checkpoints/step-3");
        let before = RunFolder::find(&path).unwrap().sha256().unwrap();
        std::fs::create_dir(step.join("ema")).unwrap();
        for (file, text) in [("config.json", "{}"), ("model.safetensors", "a"), ("base", "..\n")] {
            std::fs::write(step.join("ema").join(file), text).unwrap();
        }
        assert_eq!(RunFolder::find(&path).unwrap().sha256().unwrap(), before);
        let averaged = || RunFolder::find(&step.join("ema")).unwrap();
        assert_eq!((averaged().run, averaged().checkpoint), (path, step.join("ema")));
        let mut digests = vec![before, averaged().sha256().unwrap()];
        for file in ["ema/model.safetensors", "model.safetensors"] {
            std::fs::write(step.join(file), "other").unwrap();
            digests.push(averaged().sha256().unwrap());
        }
        digests.dedup();
        assert_eq!(digests.len(), 4, "each change is another model");
    }

    #[test]
    fn what_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = |path: &Path| RunFolder::find(path).unwrap_err().to_string();
        assert!(error(dir.path()).contains("no `latest` and no `config.json`"));
        assert!(error(&dir.path().join("nowhere")).contains("no such folder"));
        let path = run(dir.path());
        std::fs::write(path.join("config.toml"), "steps = 3\n").unwrap();
        let message = error(&path);
        assert!(message.contains("config.toml") && message.contains("image"), "{message}");
        std::fs::remove_file(path.join("tokenizer.json")).unwrap();
        assert!(error(&path).contains("tokenizer.json"));
    }

    #[test]
    fn curves_are_one_per_dataset_and_skip_torn_lines() {
        let dir = tempfile::tempdir().unwrap();
        let lines = "{\"step\":1,\"losses\":{\"a\":2.0,\"b\":3.0}}\n\
                     {\"step\":2,\"losses\":{\"a\":1.0}}\n{\"st";
        std::fs::write(dir.path().join("metrics.jsonl"), lines).unwrap();
        let expected: Vec<Curve> =
            vec![("a".into(), vec![(1.0, 2.0), (2.0, 1.0)]), ("b".into(), vec![(1.0, 3.0)])];
        assert_eq!(loss_curves(dir.path()), expected);
        assert_eq!(loss_curves(&dir.path().join("none")), []);
    }
}
