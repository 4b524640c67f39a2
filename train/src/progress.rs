//! What a user sees while a run goes on: a bar on a terminal, a line every few seconds elsewhere.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{FormattedDuration, ProgressBar, ProgressStyle};

use crate::metrics::StepMetrics;

/// Time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Steps whose times say how long the others will take.
const TIMED_STEPS: usize = 100;

/// Waits that are told of.
const WAIT_TOLD_SECONDS: f64 = 1.0;

/// Shows the steps of one run.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    steps: u64,
    /// Seconds of the last steps.
    recent: VecDeque<f64>,
    last_line: Instant,
}

impl Progress {
    /// Starts after `done` of `steps` steps.
    ///
    /// # Panics
    /// Never: the bar's template is well-formed.
    pub fn start(done: u64, steps: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} eta {eta}")
                .expect("the template is well-formed");
            ProgressBar::new(steps).with_style(style).with_position(done)
        });
        Self { bar, steps, recent: VecDeque::new(), last_line: Instant::now() }
    }

    /// Shows a step.
    pub fn show(&mut self, metrics: &StepMetrics) {
        let text = describe(metrics);
        self.recent.push_back(metrics.seconds);
        if self.recent.len() > TIMED_STEPS {
            self.recent.pop_front();
        }
        if let Some(bar) = &self.bar {
            bar.set_message(text);
            bar.set_position(metrics.step);
        } else if self.last_line.elapsed() >= LINE_EVERY || metrics.step == self.steps {
            let left = self.time_left(metrics.step);
            eprintln!("step {}/{} {text} eta {left}", metrics.step, self.steps);
            self.last_line = Instant::now();
        }
    }

    /// How long the steps after `done` will take, such as "2d 07:30:00", if they take as long as the last
    /// ones did.
    fn time_left(&self, done: u64) -> FormattedDuration {
        let mean = self.recent.iter().sum::<f64>() / self.recent.len().max(1) as f64;
        let left = mean * self.steps.saturating_sub(done) as f64;
        FormattedDuration(Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX))
    }

    /// Says it, if there is something to say.
    pub fn note_all(&self, texts: impl IntoIterator<Item = String>) {
        texts.into_iter().for_each(|text| self.note(&text));
    }

    /// Says something that stays on the screen.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// Says how long training waited for a checkpoint, where that is long.
    pub fn note_wait(&self, step: u64, seconds: f64) {
        if seconds >= WAIT_TOLD_SECONDS {
            self.note(&format!("training waited {seconds:.1} s for the checkpoint of step {step}"));
        }
    }

    /// Leaves the bar as it stands.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

fn describe(metrics: &StepMetrics) -> String {
    let losses: Vec<String> =
        metrics.losses.iter().map(|(name, loss)| format!("{name} {loss:.3}")).collect();
    let mfu = metrics.machine.mfu.map(|mfu| format!(" MFU {mfu:.3}")).unwrap_or_default();
    format!(
        "loss {:.3} ({}) lr {:.1e} {:.2} s/step ({:.0} % waiting for rows) {:.1} samples/s \
         {:.0} tokens/s {:.1} images/s{mfu}",
        metrics.loss,
        losses.join(", "),
        metrics.lr,
        metrics.seconds,
        100.0 * metrics.data_wait_share(),
        metrics.per_second(metrics.samples),
        metrics.per_second(metrics.tokens),
        metrics.per_second(metrics.images),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_that_of_the_last_steps() {
        let mut progress = Progress { bar: None, ..Progress::start(0, 400_000) };
        let mut metrics = crate::metrics::tests::metrics(1, 2.5);
        for (step, seconds) in (1..=200).zip([[9.0; 100], [0.5; 100]].as_flattened()) {
            (metrics.step, metrics.seconds) = (step, *seconds);
            progress.show(&metrics);
        }
        // 399,800 steps of half a second.
        assert_eq!(progress.time_left(200).to_string(), "2d 07:31:40");
        assert_eq!(progress.time_left(400_000).to_string(), "00:00:00");
    }

    #[test]
    fn a_line_names_losses_and_throughput() {
        let mut metrics = crate::metrics::tests::metrics(1, 2.5);
        let line = "loss 2.500 (pairs 2.500) lr 1.0e-3 0.25 s/step (20 % waiting for rows) \
                    16.0 samples/s 48 tokens/s 12.0 images/s";
        assert_eq!(describe(&metrics), line);
        metrics.machine.mfu = Some(0.4167);
        assert_eq!(describe(&metrics), format!("{line} MFU 0.417"));
    }
}
