//! How long training waits for a checkpoint of about 1 GB of trained weights and moments, and how long it
//! takes until `latest` names it. Checkpoints go into a temporary folder, below `TMPDIR` if it is set.
#![expect(clippy::print_stdout, reason = "the figures are what the bench is for")]
#![expect(clippy::unwrap_used, reason = "a bench stops at the first surprise")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use flamingo_dataset::Batch;
use flamingo_model::{
    Gradients, LanguageConfig, LanguageModel, LossTerms, ModelError, Snapshot, Spare, Trainable,
};
use flamingo_train::TrainError;
use flamingo_train::checkpoint::{Keep, State};
use flamingo_train::checkpoint_writer::{CheckpointWriter, Job, Learned};
use flamingo_train::groups::Norms;
use flamingo_train::metrics::MetricsLog;
use flamingo_train::optimizer::{AdamW, OptimizerConfig, Share};
use flamingo_train::room::{Size, copies};
use flamingo_train::stage::Stage;

/// Checkpoints that are written.
const CHECKPOINTS: u64 = 4;

/// 1.0 GB: 84 million weights, and two moments of each.
const MODEL: &str = r#"{"vocabulary": 8000, "context": 256, "width": 1024, "layers": 6, "heads": 8,
    "activation": "gelu"}"#;

const OPTIMIZER: &str = r#"{"lr": 1e-4, "warmup_steps": 0, "schedule": "constant"}"#;

/// A model that nothing is asked of but to be saved.
struct Resting(LanguageModel);

impl Stage for Resting {
    fn loss(&self, _: &Batch) -> Result<f32, TrainError> {
        Ok(0.0)
    }

    fn step(
        &self,
        _: &Batch,
        _: f32,
        sum: Gradients,
    ) -> Result<(LossTerms, Gradients), TrainError> {
        Ok((LossTerms::default(), sum))
    }

    fn activation_bytes(&self, _: &Batch) -> u64 {
        0
    }

    fn model(&self) -> &dyn Trainable {
        &self.0
    }

    fn model_mut(&mut self) -> &mut dyn Trainable {
        &mut self.0
    }

    fn snapshot(&self, spare: &Spare) -> Result<Snapshot, ModelError> {
        self.0.snapshot(spare)
    }

    fn save(&self, folder: &Path) -> Result<(), ModelError> {
        self.0.save(folder)
    }
}

fn main() {
    let config: LanguageConfig = serde_json::from_str(MODEL).unwrap();
    let optimizer: OptimizerConfig = serde_json::from_str(OPTIMIZER).unwrap();
    let mut stage = Resting(LanguageModel::new(&config, 1).unwrap());
    let mut adamw = AdamW::new(&optimizer, Share::All);
    let mut update = |stage: &mut Resting, done| {
        let params = &mut stage.model_mut().params_mut();
        let norms = Norms { all: 1.0, together: 1.0, by_group: BTreeMap::new() };
        adamw.update(params, &mut Gradients::default(), &norms, 1e-4, done).unwrap();
    };
    update(&mut stage, 0);
    let size = Size::of(&stage.model().params(), copies(None));
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path();
    std::fs::write(run.join("config.toml"), "").unwrap();
    let log = MetricsLog::open(run, 0).unwrap();
    println!("{:.3} GB of trained weights and moments", size.copied_bytes as f64 / 1e9);

    let learned = Learned { stage: &stage, optimizer: &adamw, ema: None };
    let mut writer = CheckpointWriter::start(learned, 0).unwrap();
    writer.wait().unwrap();
    for step in 1..=CHECKPOINTS {
        let state: State = serde_json::from_value(serde_json::json!({
            "step": step, "frozen_sha256": null, "tokenizer_sha256": "", "corpora_sha256": [],
        }))
        .unwrap();
        let keep = Some(Keep { last: 1, every: None, back: None });
        let job = Job { run: run.to_path_buf(), state, log: log.shared().unwrap(), keep };
        let clock = Instant::now();
        let waited = writer.write(job, learned).unwrap();
        writer.wait().unwrap();
        let whole = clock.elapsed().as_secs_f64();
        println!("checkpoint {step}: training waits {waited:.3} s, on disk after {whole:.3} s");
    }
}
