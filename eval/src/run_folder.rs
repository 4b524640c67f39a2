//! A run of `flamingo-train` as an evaluation reads it: which checkpoint, which tokenizer, how
//! images become pixels, and how the losses went.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use flamingo_dataset::{ImageConfig, sha256_hex};
use flamingo_model::{base_weights, model_folder};
use serde::Deserialize;

use crate::error::EvalError;

/// Files of a checkpoint that serve training alone.
const NOT_THE_MODEL: [&str; 2] = ["optimizer.safetensors", "state.json"];

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
}

impl RunFolder {
    /// Finds the newest checkpoint of a run, or takes `RUN/checkpoints/step-N` as given.
    ///
    /// # Errors
    /// When the folder is neither, or its config cannot be read.
    pub fn open(path: &Path) -> Result<Self, EvalError> {
        let not_a_run = |problem: String| EvalError::NotARun { path: path.to_path_buf(), problem };
        if !path.is_dir() {
            return Err(not_a_run("no such folder".to_owned()));
        }
        let checkpoint = model_folder(path).map_err(EvalError::NoModel)?;
        let whole = checkpoint.canonicalize().map_err(EvalError::file("read", &checkpoint))?;
        // A checkpoint is RUN/checkpoints/step-N, and its averaged model RUN/checkpoints/step-N/ema.
        let is_run = |folder: &&Path| folder.join("config.toml").is_file();
        let above = || whole.ancestors().skip(2).take(2).find(is_run).or(whole.ancestors().nth(2));
        let run = if checkpoint == path { above() } else { Some(path) };
        let run = run.unwrap_or(path).to_path_buf();
        for file in
            [run.join("tokenizer.json"), run.join("config.toml"), checkpoint.join("config.json")]
        {
            if !file.is_file() {
                return Err(not_a_run(format!("no {}", file.display())));
            }
        }
        let file = run.join("config.toml");
        let text = read(&file)?;
        let config: RunConfig = toml::from_str(&text)
            .map_err(|error| EvalError::toml(&file.display().to_string(), &text, &error))?;
        let built_from = built_from(&run, &config.model);
        Ok(Self { run, checkpoint, image: config.image, built_from })
    }

    /// The tokenizer's file.
    pub fn tokenizer(&self) -> PathBuf {
        self.run.join("tokenizer.json")
    }

    /// Digest of all that decides the model's answers: weights, config, tokenizer, image settings.
    ///
    /// # Errors
    /// When a file cannot be read.
    ///
    /// # Panics
    /// Never: image settings are numbers and names.
    pub fn sha256(&self) -> Result<String, EvalError> {
        let folder = std::fs::read_dir(&self.checkpoint);
        let folder = folder.map_err(EvalError::file("read", &self.checkpoint))?;
        let mut files = vec![self.tokenizer()];
        for entry in folder {
            let entry = entry.map_err(EvalError::file("read", &self.checkpoint))?;
            // A folder is a model of its own, such as the averaged one.
            let is_part = !NOT_THE_MODEL.iter().any(|name| entry.file_name() == *name);
            if is_part && entry.path().is_file() {
                files.push(entry.path());
            }
        }
        files.extend(base_weights(&self.checkpoint));
        files.sort();
        let mut lines = vec![serde_json::to_string(&self.image).expect("numbers and names")];
        for file in files {
            let bytes = std::fs::read(&file).map_err(EvalError::file("read", &file))?;
            let name = file.file_name().unwrap_or_default().display();
            lines.push(format!("{name} {}", sha256_hex(&bytes)));
        }
        Ok(sha256_hex(lines.join("\n").as_bytes()))
    }
}

fn read(path: &Path) -> Result<String, EvalError> {
    std::fs::read_to_string(path).map_err(EvalError::file("read", path))
}

/// Paths in a config start from the working directory of its run; a run beside this one is tried
/// too.
fn built_from(run: &Path, model: &ModelConfig) -> Vec<(String, PathBuf)> {
    let stages = [("vision", &model.vision), ("language", &model.language)];
    let found = stages.into_iter().filter_map(|(stage, place)| {
        let place = Path::new(place.as_ref()?.as_str()?);
        let beside = run.parent().unwrap_or(run).join(place);
        let folder = [place.to_path_buf(), beside].into_iter().find(|folder| folder.is_dir())?;
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
        let by_run = RunFolder::open(&run).unwrap();
        let by_checkpoint = RunFolder::open(&run.join("checkpoints/step-3")).unwrap();
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
        let digest = || RunFolder::open(&path).unwrap().sha256().unwrap();
        let first = digest();
        std::fs::write(path.join("checkpoints/step-3/optimizer.safetensors"), "other").unwrap();
        assert_eq!(digest(), first);
        std::fs::write(path.join("checkpoints/step-3/model.safetensors"), "other").unwrap();
        assert_ne!(digest(), first);
    }

    #[test]
    fn the_averaged_model_of_a_checkpoint_has_its_run_and_a_digest_of_both_weights() {
        let dir = tempfile::tempdir().unwrap();
        let path = run(&dir.path().canonicalize().unwrap());
        let step = path.join("checkpoints/step-3");
        let before = RunFolder::open(&path).unwrap().sha256().unwrap();
        std::fs::create_dir(step.join("ema")).unwrap();
        for (file, text) in [("config.json", "{}"), ("model.safetensors", "a"), ("base", "..\n")] {
            std::fs::write(step.join("ema").join(file), text).unwrap();
        }
        assert_eq!(RunFolder::open(&path).unwrap().sha256().unwrap(), before);
        let averaged = || RunFolder::open(&step.join("ema")).unwrap();
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
        let error = |path: &Path| RunFolder::open(path).unwrap_err().to_string();
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
