//! `report.html`: curves of losses, of what was observed, of speed, and the config, in one
//! self-contained page, drawn again while the run goes on.
//!
//! The loop hands over each step and never waits for a drawing: a thread makes it, from a copy of what
//! the history keeps, which has a bound.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use flamingo_dataset::report::Page;

use crate::accounting::{self, Account};
use crate::device::{self, Devices};
use crate::error::TrainError;
use crate::few_shot::Score;
use crate::files;
use crate::history::{Chart, History, Section};
use crate::metrics::{self, StepMetrics};
use crate::progress::Progress;
use crate::run_folder;
use crate::trouble::Trouble;

const FILE: &str = "report.html";

/// Time between two drawings, and a step.
const REDRAWN_EVERY: Duration = Duration::from_secs(30);

/// Points of all curves together, so that the page stays below two megabytes.
const POINTS_MAX: usize = 120_000;

/// Points of a curve, at most: about two for each unit of a chart's width.
const CURVE_POINTS_MAX: usize = 1600;

/// The report of a run that goes on.
#[derive(Debug)]
pub struct Report {
    run: PathBuf,
    history: History,
    every: Duration,
    drawn: Instant,
    drawing: Option<JoinHandle<Result<(), TrainError>>>,
}

impl Report {
    /// Begins with the steps that the metrics of a run have already.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn open(run: &Path) -> Result<Self, TrainError> {
        let mut history = History::default();
        metrics::each(run, |step| history.add(&step))?;
        let (run, drawn) = (run.to_path_buf(), Instant::now());
        Ok(Self { run, history, every: REDRAWN_EVERY, drawn, drawing: None })
    }

    /// Takes in the next step.
    pub fn add(&mut self, step: &StepMetrics) {
        self.history.add(step);
    }

    /// Takes in few-shot scores.
    pub fn add_scores(&mut self, scores: &[Score]) {
        for score in scores {
            let chart = (Section::Observed, "few_shot");
            self.history.point(chart, &score.name(), score.step, score.value);
        }
    }

    /// Draws the page beside the loop where the last one is half a minute old and none is being drawn.
    /// That one could not be written is said, and no reason to stop.
    pub fn draw_if_due(&mut self, devices: &Devices, troubles: &[Trouble], progress: &Progress) {
        let is_busy = self.drawing.as_ref().is_some_and(|drawing| !drawing.is_finished());
        if is_busy || self.drawn.elapsed() < self.every {
            return;
        }
        if let Err(error) = self.wait() {
            progress.note(&format!("no report: {error}"));
        }
        self.drawn = Instant::now();
        let (run, history) = (self.run.clone(), self.history.clone());
        let (devices, troubles) = (devices.clone(), troubles.to_vec());
        let draw = move || write(&run, &history, &devices, &troubles);
        match Builder::new().name("report".to_owned()).spawn(draw) {
            Ok(drawing) => self.drawing = Some(drawing),
            Err(error) => progress.note(&format!("no report: {error}")),
        }
    }

    /// Draws the page, and waits for it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn draw(&mut self, devices: &Devices, troubles: &[Trouble]) -> Result<(), TrainError> {
        // If that one failed, so will this one, or it stands in for it.
        let _ = self.wait();
        write(&self.run, &self.history, devices, troubles)
    }

    /// Waits for the page that is being drawn.
    fn wait(&mut self) -> Result<(), TrainError> {
        let Some(drawing) = self.drawing.take() else { return Ok(()) };
        drawing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Report {
    /// The next attempt at the run draws into the same file.
    fn drop(&mut self) {
        if let Some(drawing) = self.drawing.take() {
            // A run that ends otherwise has said why.
            let _ = drawing.join();
        }
    }
}

fn write(
    run: &Path,
    history: &History,
    devices: &Devices,
    troubles: &[Trouble],
) -> Result<(), TrainError> {
    let config_path = run.join(run_folder::CONFIG);
    let config =
        std::fs::read_to_string(&config_path).map_err(TrainError::file("read", &config_path))?;
    let name = run
        .file_name()
        .map_or_else(|| run.display().to_string(), |name| name.to_string_lossy().into_owned());
    files::replace(&run.join(FILE), page(&name, history, devices, troubles, &config).as_bytes())
}

fn page(
    name: &str,
    history: &History,
    devices: &Devices,
    troubles: &[Trouble],
    config: &str,
) -> String {
    let mut page = Page::new(&format!("Training run {name}"));
    if let Some(last) = &history.last {
        page.heading("At the last step");
        page.table(&["measure", "value"], &summary(history, last, devices));
    }
    draw_charts(&mut page, history);
    if let Some((step, observed)) = &history.gradients {
        page.heading(&format!("Gradients of the datasets at step {step}"));
        page.table(&GRADIENT_HEADERS, &gradient_rows(observed));
        page.paragraph(LAMBDA_RULE);
    }
    let corrupt = corrupt_rows(history);
    if !corrupt.is_empty() {
        page.heading("Corrupt rows, which the next ones stood in for");
        page.table(&["step", "dataset", "row", "problem"], &corrupt);
    }
    if !troubles.is_empty() {
        page.heading("Steps that went wrong");
        page.table(
            &["step", "what was found", "what followed", "rows, left out from then on"],
            &trouble_rows(troubles),
        );
    }
    page.heading("Config");
    page.table(&["line"], &config.lines().map(|line| vec![line.to_owned()]).collect::<Vec<_>>());
    page.finish()
}

fn draw_charts(page: &mut Page, history: &History) {
    let n_curves: usize = history.charts.values().map(Chart::len).sum();
    let most = (POINTS_MAX / n_curves.max(1)).min(CURVE_POINTS_MAX);
    let mut within = None;
    for ((section, title), chart) in &history.charts {
        if within != Some(section) {
            page.heading(&section.to_string());
            within = Some(section);
        }
        let title = match section {
            Section::Observed => format!("Observed: {title}"),
            _ => title.clone(),
        };
        let lines = chart.iter().map(|(name, curve)| (name.clone(), curve.points(most)));
        page.line_chart(&title, "step", &lines.collect::<Vec<_>>());
    }
}

fn summary(history: &History, last: &StepMetrics, devices: &Devices) -> Vec<Vec<String>> {
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let mut rows = vec![row("step", last.step.to_string())];
    rows.extend(
        last.losses.iter().map(|(name, loss)| row(&format!("loss, {name}"), format!("{loss:.4}"))),
    );
    let History { seconds, data_wait_seconds, .. } = history;
    let per_second = |n: u64| n as f64 / seconds;
    rows.extend([
        row("seconds in all steps", format!("{seconds:.1}")),
        row("of these, waiting for rows", format!("{data_wait_seconds:.1}")),
        row("samples per second", format!("{:.1}", per_second(history.samples))),
        row("tokens per second", format!("{:.0}", per_second(history.tokens))),
        row("images per second", format!("{:.1}", per_second(history.images))),
        row("device", device::text(devices)),
        row("corrupt rows", history.n_corrupt.to_string()),
    ]);
    rows
}

const GRADIENT_HEADERS: [&str; 6] = [
    "dataset",
    "norm, times lambda",
    "share of the norms",
    "cosine to the mixture",
    "noise scale, sequences",
    "lambda for equal shares",
];

/// What the advised lambdas are, and are not.
const LAMBDA_RULE: &str = "With the lambdas of the last column the gradients of all datasets would have \
    one norm, and their norms together would be what they are. It is advice alone: for a share s of \
    the norms, a dataset's is to be multiplied by s times the number of datasets.";

fn gradient_rows(observed: &BTreeMap<String, f64>) -> Vec<Vec<String>> {
    let number = |value: Option<f64>, digits: usize| {
        value.map_or_else(String::new, |value| format!("{value:.digits$}"))
    };
    let row = |(name, account): (&str, Account)| {
        vec![
            name.to_owned(),
            format!("{:.4}", account.norm),
            format!("{:.1} %", 100.0 * account.share),
            number(account.cosine, 3),
            number(account.noise_scale, 1),
            number(account.lambda_advised, 4),
        ]
    };
    accounting::accounts(observed).into_iter().map(row).collect()
}

fn corrupt_rows(history: &History) -> Vec<Vec<String>> {
    let rows = history.corrupt.iter().map(|(step, found)| {
        vec![step.to_string(), found.dataset.clone(), found.row.to_string(), found.problem.clone()]
    });
    rows.collect()
}

fn trouble_rows(troubles: &[Trouble]) -> Vec<Vec<String>> {
    let line = |trouble: &Trouble| {
        let Trouble { step, found, .. } = trouble;
        vec![step.to_string(), found.clone(), trouble.action(), trouble.rows_text()]
    };
    troubles.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use flamingo_dataset::CorruptRow;

    use super::*;
    use crate::metrics::tests::metrics;

    fn history(steps: &[StepMetrics]) -> History {
        let mut history = History::default();
        for step in steps {
            history.add(step);
        }
        history
    }

    #[test]
    fn the_page_shows_losses_observations_and_config() {
        let mut steps = [metrics(1, 3.0), metrics(2, 2.0)];
        let (dataset, problem) = ("pairs".to_owned(), "it is cut off".to_owned());
        steps[1].corrupt_rows = vec![CorruptRow { dataset, row: 77, problem }];
        let trouble = Trouble {
            step: 9,
            found: "the loss of dataset `pairs` is NaN".to_owned(),
            back_to: Some(4),
            stops: false,
            rows: BTreeMap::from([("pairs".to_owned(), vec![8, 1234])]),
        };
        let devices = Devices::from([(0, "CPU (f32)".to_owned())]);
        let html = page("demo", &history(&steps), &devices, &[trouble], "seed = 7\n");
        for part in [
            "Training run demo",
            "loss, pairs",
            "2.0000",
            "Observed: gate",
            "0.attention",
            "seed = 7",
            "it is cut off",
            "the loss of dataset `pairs` is NaN",
            "back to step 4",
            "CPU (f32)",
            "pairs 8 1234",
        ] {
            assert!(html.contains(part), "{part} is missing");
        }
        page("demo", &History::default(), &devices, &[], "");
    }

    /// As many curves as a model of 24 blocks has, over more steps than a curve keeps.
    #[test]
    fn a_long_run_makes_a_page_below_two_megabytes() {
        let mut history = History::default();
        for step in 1..=6_000 {
            let mut metrics = metrics(step, 3.0 + (step as f64).sin() / step as f64);
            for block in 0..24 {
                for half in ["attention", "feed_forward"] {
                    for group in ["gate", "gate_ratio"] {
                        let name = format!("{group}.{block}.{half}");
                        metrics.observed.insert(name, (step as f64 / 7.0).cos());
                    }
                }
            }
            history.add(&metrics);
        }
        let html = page("long", &history, &Devices::new(), &[], "");
        assert!((500_000..2_000_000).contains(&html.len()), "{} bytes", html.len());
    }

    #[test]
    fn a_page_is_drawn_beside_the_loop_when_it_is_due() {
        let run = tempfile::tempdir().unwrap();
        std::fs::write(run.path().join(run_folder::CONFIG), "seed = 7\n").unwrap();
        let mut log = metrics::MetricsLog::open(run.path(), 0).unwrap();
        log.append(&metrics(1, 3.0)).unwrap();
        let mut report = Report::open(run.path()).unwrap();
        let (devices, progress) = (Devices::new(), Progress::start(0, 9));
        let page = || std::fs::read_to_string(run.path().join(FILE)).unwrap_or_default();

        report.every = Duration::MAX;
        report.draw_if_due(&devices, &[], &progress);
        assert!(report.drawing.is_none(), "it was drawn before its time");
        report.every = Duration::ZERO;
        report.add(&metrics(2, 1.25));
        report.draw_if_due(&devices, &[], &progress);
        report.wait().unwrap();
        assert!(page().contains("1.2500"), "{}", page());

        report.add(&metrics(3, 0.75));
        report.draw(&devices, &[]).unwrap();
        let complete = page();
        assert!(complete.contains("0.7500"), "{complete}");
        // One that cannot be written leaves the last one, and the run goes on.
        let config = run.path().join(run_folder::CONFIG);
        std::fs::remove_file(&config).unwrap();
        report.draw_if_due(&devices, &[], &progress);
        while !report.drawing.as_ref().unwrap().is_finished() {
            std::thread::yield_now();
        }
        report.draw_if_due(&devices, &[], &progress);
        let error = report.draw(&devices, &[]).unwrap_err().to_string();
        assert!(error.contains("config.toml") && page() == complete, "{error}");
    }
}
