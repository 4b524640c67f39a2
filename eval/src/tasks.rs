//! The benchmarks that come with the program.

use std::fmt::Write as _;

use crate::error::EvalError;
use crate::task_file::TaskFile;

/// Name and file of each, in the order of the paper's table 6, then what it classifies and our own corpora.
pub const TASKS: [(&str, &str); 20] = [
    ("coco", include_str!("tasks/coco.toml")),
    ("vqav2", include_str!("tasks/vqav2.toml")),
    ("okvqa", include_str!("tasks/okvqa.toml")),
    ("flickr30k", include_str!("tasks/flickr30k.toml")),
    ("vizwiz", include_str!("tasks/vizwiz.toml")),
    ("textvqa", include_str!("tasks/textvqa.toml")),
    ("visdial", include_str!("tasks/visdial.toml")),
    ("hateful_memes", include_str!("tasks/hateful_memes.toml")),
    ("msvdqa", include_str!("tasks/msvdqa.toml")),
    ("vatex", include_str!("tasks/vatex.toml")),
    ("msrvttqa", include_str!("tasks/msrvttqa.toml")),
    ("ivqa", include_str!("tasks/ivqa.toml")),
    ("nextqa", include_str!("tasks/nextqa.toml")),
    ("youcook2", include_str!("tasks/youcook2.toml")),
    ("star", include_str!("tasks/star.toml")),
    ("rareact", include_str!("tasks/rareact.toml")),
    ("imagenet", include_str!("tasks/imagenet.toml")),
    ("kinetics", include_str!("tasks/kinetics.toml")),
    ("caption", include_str!("tasks/caption.toml")),
    ("label", include_str!("tasks/label.toml")),
];

/// The file of a benchmark.
pub fn built_in(name: &str) -> Option<&'static str> {
    TASKS.iter().find(|(own, _)| *own == name).map(|(_, text)| *text)
}

/// A line for each benchmark: its name, and what it asks.
///
/// # Errors
/// When a file that comes with the program is broken, which a test rules out.
pub fn list() -> Result<String, EvalError> {
    let mut lines = String::new();
    for (name, _) in TASKS {
        let task = TaskFile::find(name)?;
        let _ = writeln!(lines, "{name:<14} {}", task.about);
    }
    Ok(lines)
}

/// What a benchmark needs: the files of each split, where they come from, and the whole of its own file.
///
/// # Errors
/// When there is no such benchmark, or its file is broken.
pub fn describe(name_or_path: &str) -> Result<String, EvalError> {
    let task = TaskFile::find(name_or_path)?;
    let mut text = format!("{}: {}\n\nsplits\n", task.name, task.about);
    for (split, roles) in &task.splits {
        let use_ = match (task.query == *split, task.support.as_ref() == Some(split)) {
            (true, _) => "  asked about",
            (false, true) => "  examples",
            (false, false) => "",
        };
        let _ = writeln!(text, "  {split}{use_}");
        for (role, value) in roles {
            let _ = writeln!(text, "    {role:<12} {value}");
        }
    }
    if !task.sources.is_empty() {
        text.push_str("\nwhere they come from\n");
    }
    for source in &task.sources {
        let _ = writeln!(text, "  {}\n    {}", source.file, source.from);
    }
    let _ = write!(text, "\ntask file\n\n{}", TaskFile::text(name_or_path)?);
    Ok(text)
}
