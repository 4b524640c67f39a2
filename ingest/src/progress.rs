//! How far a run is: a bar on a terminal, a line every few seconds elsewhere.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::meter::Meter;
use crate::source;

/// Time between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// Time between two looks at the numbers for a bar.
const BAR_INTERVAL: Duration = Duration::from_millis(200);
/// Rules that are named in a line.
const TOP_REJECTS: usize = 3;

/// Which numbers are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Records are indexed.
    Index,
    /// Items become rows.
    Work,
}

/// Shows a meter on standard error until it is dropped.
pub(crate) struct Progress {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Shows how many items, called `noun`, are done.
    pub(crate) fn start(phase: Phase, noun: &'static str, meter: &Arc<Meter>) -> Self {
        let mut view = View::new(phase, noun, Arc::clone(meter));
        let (end, ended) = channel();
        let thread = std::thread::spawn(move || {
            if std::io::stderr().is_terminal() {
                let bar = view.bar();
                while ended.recv_timeout(BAR_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                    bar.set_position(view.done());
                    bar.set_message(view.line());
                }
                bar.finish_and_clear();
            } else {
                while ended.recv_timeout(LINE_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                    eprintln!("{}", view.line());
                }
            }
        });
        Self { end: Some(end), thread: Some(thread) }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end.take();
        if let Some(thread) = self.thread.take() {
            // A panic in it is no reason for another one.
            let _ = thread.join();
        }
    }
}

/// What is shown, and what is known from the look before.
struct View {
    phase: Phase,
    noun: &'static str,
    meter: Arc<Meter>,
    started: Instant,
    done_before: u64,
    last: Instant,
    bytes_last: u64,
}

impl View {
    fn new(phase: Phase, noun: &'static str, meter: Arc<Meter>) -> Self {
        let now = Instant::now();
        let mut view =
            Self { phase, noun, meter, started: now, done_before: 0, last: now, bytes_last: 0 };
        view.done_before = view.done();
        view.bytes_last = view.bytes();
        view
    }

    fn done(&self) -> u64 {
        match self.phase {
            Phase::Index => self.meter.records.load(Relaxed),
            Phase::Work => self.meter.items.load(Relaxed),
        }
    }

    /// How many items there are, where that is known.
    fn expected(&self) -> Option<u64> {
        let expected = self.meter.items_expected.load(Relaxed);
        (self.phase == Phase::Work && expected > 0).then_some(expected)
    }

    fn bytes(&self) -> u64 {
        source::bytes_read() + self.meter.bytes_fetched.load(Relaxed)
    }

    fn bar(&self) -> ProgressBar {
        let bar = ProgressBar::new(self.expected().unwrap_or(0));
        let template = match self.expected() {
            Some(_) => "{bar:30} {wide_msg}",
            None => "{spinner} {wide_msg}",
        };
        bar.set_style(ProgressStyle::with_template(template).expect("the template is valid"));
        bar
    }

    /// Everything in one line.
    fn line(&mut self) -> String {
        let (done, bytes) = (self.done(), self.bytes());
        let seconds = self.last.elapsed().as_secs_f64().max(1e-3);
        let rate = (bytes - self.bytes_last) as f64 / seconds / 1e6;
        (self.last, self.bytes_last) = (Instant::now(), bytes);
        let elapsed = self.started.elapsed();
        let mut line = format!("{} s: {done}", elapsed.as_secs());
        let add = |line: &mut String, text: std::fmt::Arguments<'_>| {
            line.write_fmt(text).expect("writing to a string does not fail");
        };
        if let Some(expected) = self.expected() {
            add(&mut line, format_args!(" of {expected}"));
        }
        add(&mut line, format_args!(" {}", self.noun));
        if self.phase == Phase::Work {
            let (rows, images) = (self.meter.rows.load(Relaxed), self.meter.images.load(Relaxed));
            let share = 100.0 * rows as f64 / done.max(1) as f64;
            add(&mut line, format_args!(", {rows} rows ({share:.0} %), {images} images"));
        }
        add(&mut line, format_args!(", {rate:.1} MB/s"));
        if let Some(left) = self.seconds_left(done, elapsed) {
            add(&mut line, format_args!(", {left:.0} s left"));
        }
        let top = self.meter.top_rejects(TOP_REJECTS);
        let top: Vec<_> = top.iter().map(|(rule, n)| format!("{n} {rule}")).collect();
        if !top.is_empty() {
            add(&mut line, format_args!("; rejected: {}", top.join(", ")));
        }
        line
    }

    /// At the pace so far.
    fn seconds_left(&self, done: u64, elapsed: Duration) -> Option<f64> {
        let left = self.expected()?.checked_sub(done)?;
        let new = done.checked_sub(self.done_before).filter(|&new| new > 0)?;
        Some(elapsed.as_secs_f64() * left as f64 / new as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_done_and_left() {
        let meter = Arc::new(Meter::default());
        meter.items.store(10, Relaxed);
        meter.items_expected.store(40, Relaxed);
        let mut view = View::new(Phase::Work, "pages", Arc::clone(&meter));
        view.started = Instant::now().checked_sub(Duration::from_secs(20)).unwrap();
        meter.items.store(20, Relaxed);
        meter.rows.store(15, Relaxed);
        meter.images.store(60, Relaxed);
        meter.count_rejects([("image/aspect".to_owned(), 7)].into_iter());
        let line = view.line();
        assert!(line.starts_with("20 s: 20 of 40 pages, 15 rows (75 %), 60 images, "), "{line}");
        assert!(line.ends_with("MB/s, 40 s left; rejected: 7 image/aspect"), "{line}");
        let mut view = View::new(Phase::Index, "records", meter);
        assert!(view.line().starts_with("0 s: 0 records, "));
    }
}
