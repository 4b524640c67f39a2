//! Few-shot scores while a run goes on: at some of its checkpoints `flamingo-eval` puts a few queries to
//! them. It is another program, which this one starts and waits for: training stands still meanwhile.
//!
//! Scores stand in `few_shot.jsonl`, one a line, and not in `metrics.jsonl`, whose line of a step is
//! written before its checkpoint. What was evaluated is kept in `few_shot/TASK/step-N/`, of averages in
//! `few_shot/TASK/step-N-ema/`.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checkpoint;
use crate::device::DeviceArgs;
use crate::ema::{self, WeightsUsed};
use crate::error::TrainError;
use crate::files;
use crate::progress::Progress;

/// Name of the file with the scores, and of the folder with what they are of.
const SCORES: &str = "few_shot.jsonl";
const FOLDER: &str = "few_shot";

/// The program, beside this one.
const PROGRAM: &str = "flamingo-eval";

/// Time between two looks at whether the program has ended.
const LOOKED_EVERY: Duration = Duration::from_millis(20);

/// A task whose score is followed. Read from `[[few_shot]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FewShotConfig {
    /// Name of a task of `flamingo-eval tasks`.
    pub task: String,
    /// Folder or URL with its corpora `support/` and `query/`.
    pub annotations: String,
    /// Steps between two evaluations: a multiple of `checkpoint_every`.
    pub every: u64,
    /// Numbers of shots. Paper: 4 in its ablations.
    #[serde(default = "paper_shots")]
    pub shots: Vec<usize>,
    /// Which weights are evaluated: `raw`, or `ema`, the averages of `[ema]`. A resumed run keeps to it. A task
    /// may be given twice, once for each.
    #[serde(default, skip_serializing_if = "WeightsUsed::is_raw")]
    pub weights: WeightsUsed,
    /// Queries, from the start of the corpus.
    #[serde(default = "few_queries")]
    pub queries: usize,
    /// After so many seconds the evaluation is ended.
    #[serde(default = "an_hour")]
    pub seconds_max: u64,
    /// What becomes of the run where an evaluation fails.
    #[serde(default)]
    pub on_failure: OnFailure,
}

fn paper_shots() -> Vec<usize> {
    vec![0, 4]
}

fn few_queries() -> usize {
    64
}

fn an_hour() -> u64 {
    3600
}

/// What becomes of a run where an evaluation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// It goes on, and the failure is said.
    #[default]
    Note,
    /// It stops; its last checkpoint stands.
    Stop,
}

/// One score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The step of the checkpoint.
    pub step: u64,
    /// The task.
    pub task: String,
    /// Examples before each query.
    pub shots: usize,
    /// Which weights have it.
    #[serde(default, skip_serializing_if = "WeightsUsed::is_raw")]
    pub weights: WeightsUsed,
    /// Name of the score.
    pub metric: String,
    /// The score.
    pub value: f64,
    /// Its standard error over queries.
    pub stderr: Option<f64>,
}

impl Score {
    /// The name of its curve.
    pub fn name(&self) -> String {
        let Self { task, shots, .. } = self;
        match self.weights {
            WeightsUsed::Raw => format!("{task}.{shots}"),
            WeightsUsed::Ema => format!("{task}.ema.{shots}"),
        }
    }
}

/// The evaluations of a run.
#[derive(Debug)]
pub struct FewShot {
    /// The run folder.
    run: PathBuf,
    program: PathBuf,
    tasks: Vec<FewShotConfig>,
    device: DeviceArgs,
    /// All of the run so far.
    scores: Vec<Score>,
}

impl FewShot {
    /// The evaluations of these tasks, whose annotations are where they are to be looked for.
    pub fn new(
        run: &Path,
        program: PathBuf,
        tasks: Vec<FewShotConfig>,
        device: DeviceArgs,
    ) -> Self {
        Self { run: run.to_path_buf(), program, tasks, device, scores: Vec::new() }
    }

    /// Goes on after `step`: what was found at later steps is forgotten. Gives what is known.
    ///
    /// # Errors
    /// When the scores of a run cannot be read or written.
    pub fn open(&mut self, step: u64) -> Result<&[Score], TrainError> {
        let path = self.run.join(SCORES);
        if path.exists() {
            let text = std::fs::read_to_string(&path).map_err(TrainError::file("read", &path))?;
            // A last line without an end was cut by a crash.
            let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            let expected = "a list of scores, one JSON object a line";
            let scores = whole.map(serde_json::from_str).collect::<Result<Vec<Score>, _>>();
            self.scores = scores.map_err(|source| TrainError::Broken {
                path: path.clone(),
                expected,
                source,
            })?;
            self.scores.retain(|score| score.step <= step);
            files::replace(&path, lines(&self.scores).as_bytes())?;
        }
        Ok(&self.scores)
    }

    /// Whether a checkpoint of this step is to be evaluated, and was not.
    pub fn is_due(&self, step: u64) -> bool {
        step > 0 && self.due(step).next().is_some()
    }

    fn due(&self, step: u64) -> impl Iterator<Item = &FewShotConfig> {
        let is_known = move |config: &FewShotConfig| {
            config.shots.iter().all(|shots| self.knows(step, config, *shots))
        };
        let due = move |config: &&FewShotConfig| step.is_multiple_of(config.every);
        self.tasks.iter().filter(due).filter(move |config| !is_known(config))
    }

    fn knows(&self, step: u64, config: &FewShotConfig, shots: usize) -> bool {
        let is_it = |score: &Score| {
            let of = (score.step, score.shots, &score.task, score.weights);
            of == (step, shots, &config.task, config.weights)
        };
        self.scores.iter().any(is_it)
    }

    /// Evaluates the checkpoint of a step, which is on disk. Waits for it, unless `is_stopped`.
    ///
    /// # Errors
    /// When an evaluation fails and the run is to stop then, or scores cannot be written.
    pub fn evaluate(
        &mut self,
        step: u64,
        progress: &Progress,
        is_stopped: impl Fn() -> bool,
    ) -> Result<Vec<Score>, TrainError> {
        let tasks: Vec<FewShotConfig> = self.due(step).cloned().collect();
        let mut all = Vec::new();
        for config in tasks {
            let clock = Instant::now();
            match self.evaluate_task(&config, step, &is_stopped) {
                Ok(mut scores) => {
                    // A crash may have left some of them.
                    scores.retain(|score| !self.knows(step, &config, score.shots));
                    let found: Vec<String> = scores.iter().map(Score::text).collect();
                    let seconds = clock.elapsed().as_secs_f64();
                    let found = found.join(", ");
                    progress.note(&format!("few-shot at step {step}: {found} in {seconds:.1} s"));
                    self.write(&scores)?;
                    all.extend(scores);
                }
                Err(failure) if config.on_failure == OnFailure::Note || is_stopped() => {
                    let task = &config.task;
                    progress
                        .note(&format!("no few-shot score of `{task}`, step {step}: {failure}"));
                }
                Err(failure) => {
                    return Err(TrainError::FewShot { task: config.task, step, failure });
                }
            }
        }
        Ok(all)
    }

    /// What is wrong, in words, where there are no scores.
    fn evaluate_task(
        &self,
        config: &FewShotConfig,
        step: u64,
        is_stopped: &impl Fn() -> bool,
    ) -> Result<Vec<Score>, String> {
        let folder = self.run.join(FOLDER).join(&config.task);
        let out = folder.join(match config.weights {
            WeightsUsed::Raw => format!("step-{step}"),
            WeightsUsed::Ema => format!("step-{step}-ema"),
        });
        let log = out.with_extension("log");
        let failed = |what: &str, path: &Path| {
            let path = path.display().to_string();
            let what = what.to_owned();
            move |error: std::io::Error| format!("cannot {what} {path}: {error}")
        };
        std::fs::create_dir_all(&folder).map_err(failed("create", &folder))?;
        if out.exists() {
            // Of other weights, before the run went back.
            std::fs::remove_dir_all(&out).map_err(failed("remove", &out))?;
        }
        let file = File::create(&log).map_err(failed("write", &log))?;
        let mut command = self.command(config, step, &out);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        let child = command.spawn().map_err(failed("start", &self.program))?;
        let status = wait(child, Duration::from_secs(config.seconds_max), is_stopped)?;
        if !status.success() {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no word");
            return Err(format!("{PROGRAM} ended with {status}: {last}"));
        }
        let path = out.join("results.json");
        let text = std::fs::read_to_string(&path).map_err(failed("read", &path))?;
        let scores = scores_of(&text, config, step).ok_or_else(|| {
            format!(
                "{} lacks scores of `{}`, {:?} shots",
                path.display(),
                config.task,
                config.shots
            )
        })?;
        // What it said is of no more use.
        let _ = std::fs::remove_file(&log);
        Ok(scores)
    }

    fn command(&self, config: &FewShotConfig, step: u64, out: &Path) -> Command {
        let shots: Vec<String> = config.shots.iter().map(usize::to_string).collect();
        let mut command = Command::new(&self.program);
        command.args(["run", "--task", &config.task, "--annotations", &config.annotations]);
        command.args(["--shots", &shots.join(","), "--limit", &config.queries.to_string()]);
        let model = checkpoint::folder(&self.run, step);
        let model = match config.weights {
            WeightsUsed::Raw => model,
            WeightsUsed::Ema => model.join(ema::FOLDER),
        };
        command.arg("--model").arg(model).arg("--out").arg(out);
        let DeviceArgs { device, precision, .. } = self.device;
        command.args(["--device", &device.to_string(), "--precision", &precision.to_string()]);
        command
    }

    fn write(&mut self, scores: &[Score]) -> Result<(), TrainError> {
        let path = self.run.join(SCORES);
        let file = File::options().create(true).append(true).open(&path);
        file.and_then(|mut file| file.write_all(lines(scores).as_bytes()))
            .map_err(TrainError::file("write", &path))?;
        self.scores.extend_from_slice(scores);
        Ok(())
    }
}

impl Score {
    fn text(&self) -> String {
        let Self { task, shots, metric, value, .. } = self;
        let of = if self.weights.is_raw() { "" } else { " of the averages" };
        format!("{task}{of}, {shots} shots, {metric} {value:.4}")
    }
}

fn lines(scores: &[Score]) -> String {
    let line = |score: &Score| serde_json::json!(score).to_string() + "\n";
    scores.iter().map(line).collect()
}

/// Waits for a program, and ends it where that takes too long or the run is to stop.
fn wait(
    mut child: Child,
    most: Duration,
    is_stopped: &impl Fn() -> bool,
) -> Result<ExitStatus, String> {
    let started = Instant::now();
    let problem = loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if is_stopped() => break "the run is to stop".to_owned(),
            Ok(None) if started.elapsed() > most => {
                break format!("it took longer than {} s", most.as_secs());
            }
            Ok(None) => std::thread::sleep(LOOKED_EVERY),
            Err(error) => break format!("cannot wait for {PROGRAM}: {error}"),
        }
    };
    // It may have ended by now; and it must not stay as a zombie.
    let _ = child.kill();
    let _ = child.wait();
    Err(problem)
}

/// The scores in `results.json`; none if one of them is missing. Prompts that do not fit into the context
/// have none.
fn scores_of(results: &str, config: &FewShotConfig, step: u64) -> Option<Vec<Score>> {
    let file: Value = serde_json::from_str(results).ok()?;
    let mut all = Vec::new();
    for &shots in &config.shots {
        let entry = file["results"][format!("{}_{shots}shot", config.task)].as_object()?;
        let is_score =
            |name: &str| ["_stderr", "_ci95", "_gain"].iter().all(|suffix| !name.ends_with(suffix));
        let mut names = entry.keys().filter_map(|key| key.strip_suffix(",none"));
        let metric = names.find(|name| is_score(name))?;
        let number = |name: String| entry.get(&name).and_then(Value::as_f64);
        let Some(value) = number(format!("{metric},none")) else { continue };
        let (task, weights) = (config.task.clone(), config.weights);
        let stderr = number(format!("{metric}_stderr,none"));
        all.push(Score { step, task, shots, weights, metric: metric.to_owned(), value, stderr });
    }
    Some(all)
}

/// The program that evaluates: the one of the config, or the one beside this program.
///
/// # Errors
/// When the system does not say where this program is.
pub fn program(configured: Option<&Path>) -> Result<PathBuf, TrainError> {
    if let Some(path) = configured {
        return Ok(path.to_path_buf());
    }
    let own = std::env::current_exe();
    own.map(|own| own.with_file_name(PROGRAM)).map_err(TrainError::OwnProgram)
}

/// The names of the tasks that a program knows.
///
/// # Errors
/// What is wrong, in words, where it does not run or fails.
pub fn tasks(program: &Path) -> Result<Vec<String>, String> {
    let output = Command::new(program).arg("tasks").stdin(Stdio::null()).output();
    let output = output.map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(output.status.to_string());
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(shots: &[usize]) -> FewShotConfig {
        let text = "task = 'caption'\nannotations = 'tasks/caption'\nevery = 10";
        FewShotConfig { shots: shots.to_vec(), ..toml::from_str(text).unwrap() }
    }

    #[test]
    fn scores_are_read_as_flamingo_eval_writes_them() {
        let results = r#"{"results": {
            "caption_0shot": {"alias": " - caption_0shot", "cider,none": 0.25,
                "cider_stderr,none": 0.01, "cider_ci95,none": [0.2, 0.3], "cider_gain,none": 0.1},
            "caption_4shot": {"cider,none": null, "out_of_context": [9, 8]},
            "caption_controls": {"cider_shuffled,none": 0.1}}}"#;
        let scores = scores_of(results, &config(&[0, 4]), 30).unwrap();
        let expected = Score {
            step: 30,
            task: "caption".to_owned(),
            shots: 0,
            weights: WeightsUsed::Raw,
            metric: "cider".to_owned(),
            value: 0.25,
            stderr: Some(0.01),
        };
        assert_eq!(scores, [expected]);
        assert_eq!(scores_of(results, &config(&[0, 8]), 30), None);
        assert_eq!(scores_of("{}", &config(&[0]), 30), None);
    }

    #[test]
    fn what_came_after_the_step_and_a_torn_line_are_forgotten() {
        let run = tempfile::tempdir().unwrap();
        let open = |step| {
            let tasks = vec![config(&[0])];
            let program = PathBuf::from("none");
            let mut few_shot = FewShot::new(run.path(), program, tasks, DeviceArgs::default());
            let n = few_shot.open(step).unwrap().len();
            (n, few_shot)
        };
        let (n, mut few_shot) = open(0);
        assert!(n == 0 && !few_shot.is_due(0) && few_shot.is_due(10) && !few_shot.is_due(15));
        let score = |step| Score {
            step,
            task: "caption".to_owned(),
            shots: 0,
            weights: WeightsUsed::Raw,
            metric: "cider".to_owned(),
            value: 0.5,
            stderr: None,
        };
        few_shot.write(&[score(10), score(20)]).unwrap();
        assert!(!few_shot.is_due(10) && few_shot.is_due(30));
        let path = run.path().join(SCORES);
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("{\"step\": 3");
        std::fs::write(&path, text).unwrap();
        let tasks = vec![config(&[0, 4])];
        let mut more = FewShot::new(run.path(), "none".into(), tasks, DeviceArgs::default());
        assert_eq!(more.open(20).unwrap().len(), 2);
        assert!(more.is_due(10), "a number of shots is missing");
        more.scores.push(Score { shots: 4, weights: WeightsUsed::Ema, ..score(10) });
        assert!(more.is_due(10), "those of the averages are others");
        more.scores.push(Score { shots: 4, ..score(10) });
        assert!(!more.is_due(10));
        let (n, few_shot) = open(15);
        assert!(n == 1 && !few_shot.is_due(10) && few_shot.is_due(20));
        assert_eq!((open(20).0, open(10).0, open(9).0), (1, 1, 0));
    }
}
