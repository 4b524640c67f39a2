//! `flamingo-eval generate`: what a model of ours writes after a text with pictures.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use flamingo_model::{Device, DeviceChoice, Precision, Search};

use crate::benchmark::Benchmark;
use crate::error::EvalError;
use crate::item::{Item, Truth};
use crate::local_subject::{LoadedModel, LocalSubject};
use crate::medium::Medium;
use crate::prompt::{ImagePlace, Piece};
use crate::task_file::TaskFile;

/// What is written on, and how.
#[derive(Debug, Args)]
pub struct Generate {
    /// Text with marks `<image:PATH>` where pictures go, a folder of frames for a film, and `<EOC>` at the end of
    /// what belongs to a picture.
    text: String,
    /// Run folder of flamingo-train (its newest checkpoint), or one of its checkpoints.
    #[arg(long, value_name = "RUN")]
    model: PathBuf,
    /// Most tokens.
    #[arg(long, default_value = "64", value_name = "N")]
    max_new_tokens: NonZeroUsize,
    /// Beams; 1 takes the likeliest token at each step.
    #[arg(long, default_value = "3", value_name = "N", conflicts_with = "temperature")]
    beams: NonZeroUsize,
    /// Draws tokens by their probability, with logits divided by this.
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Draws only from so many of the likeliest tokens; 0 for all.
    #[arg(long, default_value_t = 0, value_name = "K", requires = "temperature")]
    top_k: usize,
    /// Draws only from the likeliest tokens that together reach this probability.
    #[arg(long, default_value_t = 1.0, value_name = "P", requires = "temperature")]
    top_p: f32,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where the model runs: `cpu`, `cuda:0` and so on, or `auto`.
    #[arg(long, value_name = "DEVICE", default_value_t)]
    device: DeviceChoice,
    /// How a GPU keeps activations and frozen weights: `bf16` or `f32`.
    #[arg(long, value_name = "FORMAT", default_value = "bf16")]
    precision: Precision,
}

/// What the model writes, with a line break behind it.
///
/// # Errors
/// When a picture cannot be read, the model cannot be loaded or fails, or the text is too long for it.
pub fn run(generate: &Generate) -> Result<String, EvalError> {
    let (pieces, media) = pieces(&generate.text);
    if let Some(missing) = media.iter().find(|medium| !medium.exists()) {
        return Err(EvalError::Medium { name: missing.name(), problem: "no such picture".into() });
    }
    let device = Device::open(generate.device, generate.precision, |text| eprintln!("{text}"))
        .map_err(EvalError::Device)?;
    let model = LoadedModel::open(&generate.model, device)?;
    let benchmark = Benchmark {
        n_skipped: 0,
        task: TaskFile::find("caption")?,
        location: String::new(),
        support: Vec::new(),
        query: media.into_iter().map(item).collect(),
    };
    let subject = LocalSubject::new(&model, &benchmark);
    let text = subject.write_on(&pieces, generate.max_new_tokens.get(), generate.search())?;
    Ok(format!("{}\n", text.trim()))
}

impl Generate {
    fn search(&self) -> Search {
        match self.temperature {
            Some(temperature) => {
                let Self { top_k, top_p, seed, .. } = *self;
                Search::Sample { temperature, top_k, top_p, seed }
            }
            None => Search::Beam { beams: self.beams.get(), length_penalty: 0.0 },
        }
    }
}

fn item(medium: Medium) -> Item {
    Item {
        id: medium.name(),
        medium_id: medium.name(),
        medium: Some(medium),
        fields: BTreeMap::new(),
        truth: Truth::Hidden,
        candidates: Arc::default(),
        category: None,
    }
}

/// What opens the mark of a picture.
const IMAGE: &str = "<image:";

/// The mark at the end of what belongs to a picture.
const END: &str = "<EOC>";

/// The text as pieces, with the media of its marks in order. A mark that is not closed is text.
fn pieces(text: &str) -> (Vec<Piece>, Vec<Medium>) {
    let (mut pieces, mut media) = (Vec::new(), Vec::new());
    let mut rest = text;
    while !rest.is_empty() {
        if let Some((path, after)) = rest.strip_prefix(IMAGE).and_then(|rest| rest.split_once('>'))
        {
            pieces.push(Piece::Image(ImagePlace::Query(media.len())));
            media.push(medium(Path::new(path)));
            rest = after;
        } else if let Some(after) = rest.strip_prefix(END) {
            pieces.push(Piece::EndOfChunk);
            rest = after;
        } else {
            let is_mark = |at: &usize| {
                let rest = &rest[*at..];
                rest.starts_with(END) || rest.strip_prefix(IMAGE).is_some_and(|it| it.contains('>'))
            };
            let marks = rest.match_indices('<').map(|(at, _)| at).filter(|at| *at > 0);
            let end = marks.into_iter().find(is_mark).unwrap_or(rest.len());
            pieces.push(Piece::Text(rest[..end].to_owned()));
            rest = &rest[end..];
        }
    }
    (pieces, media)
}

fn medium(path: &Path) -> Medium {
    if path.is_dir() {
        Medium::Frames { folder: path.to_path_buf(), span: None }
    } else {
        Medium::Image(path.to_path_buf())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_become_pictures_and_ends_and_the_rest_is_text() {
        let image = |index| Piece::Image(ImagePlace::Query(index));
        let words = |text: &str| Piece::Text(text.into());
        let check = |text: &str, expected: &[Piece], paths: &[&str]| {
            let (pieces, media) = pieces(text);
            assert_eq!(pieces, expected, "{text}");
            assert_eq!(media.iter().map(Medium::name).collect::<Vec<_>>(), paths);
        };
        let shot = "<image:a b.jpg>Output: a cat<EOC><image:c.png>Output:";
        let expected =
            [image(0), words("Output: a cat"), Piece::EndOfChunk, image(1), words("Output:")];
        check(shot, &expected, &["a b.jpg", "c.png"]);
        check("1 < 2 <image:", &[words("1 < 2 <image:")], &[]);
        check("<image:", &[words("<image:")], &[]);
        check("", &[], &[]);
    }
}
