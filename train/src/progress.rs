//! What a user sees while a run goes on: a bar on a terminal, a line every few seconds elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::metrics::StepMetrics;

/// Time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Waits that are told of.
const WAIT_TOLD_SECONDS: f64 = 1.0;

/// Shows the steps of one run.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    steps: u64,
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
        Self { bar, steps, last_line: Instant::now() }
    }

    /// Shows a step.
    pub fn show(&mut self, metrics: &StepMetrics) {
        let text = describe(metrics);
        if let Some(bar) = &self.bar {
            bar.set_message(text);
            bar.set_position(metrics.step);
        } else if self.last_line.elapsed() >= LINE_EVERY || metrics.step == self.steps {
            eprintln!("step {}/{} {text}", metrics.step, self.steps);
            self.last_line = Instant::now();
        }
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
    fn a_line_names_losses_and_throughput() {
        let mut metrics = crate::metrics::tests::metrics(1, 2.5);
        let line = "loss 2.500 (pairs 2.500) lr 1.0e-3 0.25 s/step (20 % waiting for rows) \
                    16.0 samples/s 48 tokens/s 12.0 images/s";
        assert_eq!(describe(&metrics), line);
        metrics.machine.mfu = Some(0.4167);
        assert_eq!(describe(&metrics), format!("{line} MFU 0.417"));
    }
}
