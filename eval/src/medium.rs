//! Pictures and films as a benchmark has them: a file, a folder of frames, or a row of one of our corpora.
//!
//! Films come as frames, since nothing here decodes video: a folder of pictures in the order of their names
//! (`ffmpeg -i V.mp4 -vf fps=3 frames/V/%06d.jpg`), or rows of a `video_text` corpus.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flamingo_dataset::{Corpus, EncodedImage, Row, sha256_hex};
use serde::{Deserialize, Serialize};

use crate::error::EvalError;

/// Where a picture or film lies.
#[derive(Clone)]
pub enum Medium {
    /// A picture.
    Image(PathBuf),
    /// Frames of a film: the pictures of a folder, in the order of their names.
    Frames {
        /// The folder.
        folder: PathBuf,
        /// The part that is meant, in seconds from the start of the film; the whole film if none.
        span: Option<(f64, f64)>,
    },
    /// A row of a corpus of images or clips.
    Row {
        /// The corpus.
        corpus: Arc<Corpus>,
        /// The row, from 0.
        row: u64,
        /// Its key in the corpus.
        key: String,
        /// Hex SHA-256 of what it shows.
        sha256: String,
    },
}

impl fmt::Debug for Medium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// How frames of a film are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrameSampling {
    /// Most frames. Paper: 30 at test (appendix A.2), 8 in training.
    pub frames_max: usize,
    /// Frames in a second of the film, as they lie in the folder. Paper: 3 at test, 1 in training.
    pub frames_per_second: f64,
}

impl Default for FrameSampling {
    fn default() -> Self {
        Self { frames_max: 30, frames_per_second: 3.0 }
    }
}

/// File name endings of frames.
const PICTURES: [&str; 5] = ["jpg", "jpeg", "png", "webp", "bmp"];

impl Medium {
    /// Its frames, one for a picture; a longer film gives `frames_max` of them, evenly spaced.
    ///
    /// # Errors
    /// When a file or row cannot be read, or a film has no frames.
    pub fn frames(&self, sampling: FrameSampling) -> Result<Vec<EncodedImage>, EvalError> {
        match self {
            Self::Image(path) => Ok(vec![picture(path)?]),
            Self::Frames { folder, span } => {
                let all = frames_of(folder)?;
                let meant = within(&all, *span, sampling.frames_per_second);
                if meant.is_empty() {
                    return Err(
                        self.missing(format!("{} frames, none of which is meant", all.len()))
                    );
                }
                let chosen = evenly(meant.len(), sampling.frames_max);
                chosen.map(|index| picture(&meant[index])).collect()
            }
            Self::Row { corpus, row, key, .. } => match corpus.read(*row)? {
                Row::ImageText(pair) => Ok(vec![pair.image]),
                Row::VideoText(clip) if !clip.frames.is_empty() => {
                    let chosen = evenly(clip.frames.len(), sampling.frames_max);
                    Ok(chosen.map(|index| clip.frames[index].clone()).collect())
                }
                Row::VideoText(_) | Row::Interleaved(_) => Err(EvalError::Medium {
                    name: format!("{} `{key}`", corpus.location()),
                    problem: "a row without frames".into(),
                }),
            },
        }
    }

    /// What tells it from others: of rows what they show, of files their names and parts.
    pub fn key(&self) -> String {
        match self {
            Self::Row { sha256, .. } => sha256.clone(),
            Self::Frames { folder, span } => format!("{} {span:?}", folder.display()),
            Self::Image(path) => path.display().to_string(),
        }
    }

    /// How messages name it.
    pub fn name(&self) -> String {
        match self {
            Self::Image(path) => path.display().to_string(),
            Self::Frames { folder, .. } => folder.display().to_string(),
            Self::Row { key, .. } => key.clone(),
        }
    }

    /// Whether there is such a file, folder or row. Looks at names alone.
    pub fn exists(&self) -> bool {
        match self {
            Self::Image(path) => path.is_file(),
            Self::Frames { folder, .. } => folder.is_dir(),
            Self::Row { .. } => true,
        }
    }

    /// Whether there is something to look at: a file, or frames of the part that is meant. Folders are listed once;
    /// `listed` holds how many frames they have.
    pub fn has_frames(
        &self,
        sampling: FrameSampling,
        listed: &mut HashMap<PathBuf, usize>,
    ) -> bool {
        let Self::Frames { folder, span } = self else { return self.exists() };
        let count = || frames_of(folder).map_or(0, |frames| frames.len());
        let n = *listed.entry(folder.clone()).or_insert_with(count);
        !places_within(n, *span, sampling.frames_per_second).is_empty()
    }

    /// Hex SHA-256 of its frames under a sampling: equal for media that show the same.
    ///
    /// # Errors
    /// As [`Self::frames`].
    pub fn sha256(&self, sampling: FrameSampling) -> Result<String, EvalError> {
        if let Self::Row { sha256, .. } = self {
            return Ok(sha256.clone());
        }
        let digests: Vec<String> =
            self.frames(sampling)?.iter().map(|frame| sha256_hex(&frame.bytes)).collect();
        Ok(if digests.len() == 1 {
            digests.concat()
        } else {
            sha256_hex(digests.concat().as_bytes())
        })
    }

    fn missing(&self, problem: String) -> EvalError {
        EvalError::Medium { name: self.name(), problem }
    }
}

fn picture(path: &Path) -> Result<EncodedImage, EvalError> {
    let bytes = std::fs::read(path).map_err(EvalError::file("read", path))?;
    Ok(EncodedImage { bytes: bytes.into(), path: None })
}

/// Pictures of a folder in the order of their names.
fn frames_of(folder: &Path) -> Result<Vec<PathBuf>, EvalError> {
    let entries = std::fs::read_dir(folder).map_err(EvalError::file("read", folder))?;
    let mut frames = Vec::new();
    for entry in entries {
        let path = entry.map_err(EvalError::file("read", folder))?.path();
        // Of files that other programs leave behind.
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
            continue;
        }
        if is_picture(&path) {
            frames.push(path);
        }
    }
    frames.sort_by_cached_key(|path| (number_of(path), path.clone()));
    Ok(frames)
}

/// Whether the name of a file ends as a picture's does.
pub(crate) fn is_picture(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str()).map(str::to_lowercase);
    ending.is_some_and(|ending| PICTURES.contains(&ending.as_str()))
}

/// The number that the name of a frame ends with: frame 10 comes after frame 9, however they are written.
fn number_of(path: &Path) -> Option<u64> {
    let stem = path.file_stem()?.to_str()?;
    let digits = stem.len() - stem.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    stem[stem.len() - digits..].parse().ok()
}

/// The frames from the start to the end of a span in seconds; at least the one at its start, as long as the
/// film is not over by then.
fn within(all: &[PathBuf], span: Option<(f64, f64)>, frames_per_second: f64) -> &[PathBuf] {
    &all[places_within(all.len(), span, frames_per_second)]
}

/// The places, of `n` frames, that a span means.
fn places_within(n: usize, span: Option<(f64, f64)>, frames_per_second: f64) -> Range<usize> {
    let Some((start, end)) = span else { return 0..n };
    let first = ((start * frames_per_second).floor().max(0.0) as usize).min(n);
    let last = ((end * frames_per_second).ceil().max(0.0) as usize).clamp(first, n);
    first..if last == first { (first + 1).min(n) } else { last }
}

/// `most` of `n` places at even distances, each in the middle of its part; all of them if there are no more.
fn evenly(n: usize, most: usize) -> impl Iterator<Item = usize> {
    let taken = n.min(most.max(1));
    (0..taken).map(move |i| (2 * i + 1) * n / (2 * taken))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_spread_evenly() {
        assert_eq!(evenly(3, 30).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(evenly(9, 3).collect::<Vec<_>>(), [1, 4, 7]);
        assert_eq!(evenly(100, 30).count(), 30);
        assert_eq!(evenly(0, 30).count(), 0);
    }

    #[test]
    fn a_span_is_cut_out_and_never_empty_within_the_film() {
        let all: Vec<PathBuf> = (0..30).map(|i| PathBuf::from(i.to_string())).collect();
        let check = |span, expected: std::ops::Range<usize>| {
            assert_eq!(within(&all, span, 3.0), &all[expected], "{span:?}");
        };
        check(None, 0..30);
        check(Some((1.0, 3.0)), 3..9);
        check(Some((2.0, 2.0)), 6..7);
        check(Some((9.0, 99.0)), 27..30);
        check(Some((50.0, 60.0)), 30..30);
        check(Some((-1.0, 0.5)), 0..2);
    }

    #[test]
    fn a_folder_gives_its_pictures_in_order_and_says_when_it_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let film = Medium::Frames { folder: dir.path().to_path_buf(), span: None };
        let sampling = FrameSampling { frames_max: 2, frames_per_second: 1.0 };
        let error = film.frames(sampling).unwrap_err().to_string();
        assert!(error.contains("0 frames"), "{error}");
        for name in ["b.jpg", "a.PNG", "c.jpg", "d.jpg", "notes.txt"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let listed = &mut HashMap::new();
        assert!(film.has_frames(sampling, listed));
        let late = Medium::Frames { folder: dir.path().to_path_buf(), span: Some((9.0, 10.0)) };
        assert!(!late.has_frames(sampling, listed));
        let frames = film.frames(sampling).unwrap();
        let texts: Vec<&[u8]> = frames.iter().map(|frame| &frame.bytes[..]).collect();
        assert_eq!(texts, [b"b.jpg", b"d.jpg"]);
        let digest = film.sha256(sampling).unwrap();
        assert_ne!(digest, film.sha256(FrameSampling::default()).unwrap());
    }
}
