//! How far a run is: a bar on a terminal, a line every few seconds elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Time between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Counts items of one kind on standard error.
pub(crate) struct Progress {
    bar: ProgressBar,
    noun: &'static str,
    started: Instant,
    last_line: Instant,
    is_terminal: bool,
}

impl Progress {
    /// Starts at `done` of `n_items`, which may be unknown.
    pub(crate) fn new(noun: &'static str, n_items: Option<u64>, done: u64) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let target =
            if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(n_items, target).with_position(done);
        let template = match n_items {
            Some(_) => "{elapsed_precise} {wide_bar} {pos}/{len} {msg} ({eta} left)",
            None => "{elapsed_precise} {spinner} {pos} {msg}",
        };
        bar.set_style(ProgressStyle::with_template(template).expect("the template is valid"));
        bar.set_message(noun);
        bar.reset_eta();
        let now = Instant::now();
        Self { bar, noun, started: now, last_line: now, is_terminal }
    }

    /// One more item is done.
    pub(crate) fn step(&mut self) {
        self.bar.inc(1);
        if !self.is_terminal && self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            let of = self.bar.length().map(|n| format!(" of {n}")).unwrap_or_default();
            let (seconds, n) = (self.started.elapsed().as_secs(), self.bar.position());
            eprintln!("{seconds} s: {n}{of} {}", self.noun);
        }
    }

    /// Takes the bar off the screen.
    pub(crate) fn finish(self) {
        self.bar.finish_and_clear();
    }
}
