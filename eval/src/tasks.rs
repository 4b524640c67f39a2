//! The benchmarks that come with the program.

/// Name and file of each, in the order of the paper's table 6, then what it classifies and our own corpora.
pub const TASKS: [(&str, &str); 2] =
    [("caption", include_str!("tasks/caption.toml")), ("label", include_str!("tasks/label.toml"))];

/// The file of a benchmark.
pub fn built_in(name: &str) -> Option<&'static str> {
    TASKS.iter().find(|(own, _)| *own == name).map(|(_, text)| *text)
}
