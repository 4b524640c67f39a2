//! What a user sees while queries are answered: a bar on a terminal, a line per part elsewhere.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// One part of an evaluation under way.
#[derive(Debug)]
pub(crate) struct Progress {
    name: String,
    n_queries: usize,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Starts a part with so many queries.
    ///
    /// # Panics
    /// Never: the template of the bar is well-formed.
    pub(crate) fn start(name: String, n_queries: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{msg:24} {bar:30} {pos}/{len} eta {eta}")
                .expect("the template is well-formed");
            ProgressBar::new(n_queries as u64).with_style(style).with_message(name.clone())
        });
        Self { name, n_queries, bar }
    }

    /// Some more queries are done.
    pub(crate) fn advance(&self, n_queries: usize) {
        if let Some(bar) = &self.bar {
            bar.inc(n_queries as u64);
        }
    }

    /// The part is done.
    pub(crate) fn finish(self) {
        match &self.bar {
            Some(bar) => bar.abandon(),
            None => eprintln!("{}: {} queries done", self.name, self.n_queries),
        }
    }
}
