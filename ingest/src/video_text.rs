//! Clips and their captions to rows of frames (paper, section 2.4: VTP).
//!
//! A caption comes from a list, else from a `.txt` or `.vtt` file beside the clip.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flamingo_dataset::{EncodedImage, Row, VideoText};

use crate::alt_text::{self, check_caption};
use crate::clip::{self, Clip};
use crate::error::IngestError;
use crate::image::encode_jpeg;
use crate::list::{self, ListItem};
use crate::ordered::Weigh;
use crate::outcome::{Outcome, without_panic};
use crate::plan::BuildPlan;
use crate::reject::{DropReason, Origin, Stage};
use crate::source::{self, Source, is_url};
use crate::split;
use crate::subtitles;

/// Endings of clips.
const CLIP_SUFFIXES: &[&str] = &[
    ".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ogv", ".3gp", ".ts",
    ".flv", ".wmv",
];
/// A list of this name in a folder of clips has their captions.
const FOLDER_LIST: &str = "clips.csv";
/// Largest file of a caption, in bytes.
const CAPTION_BYTES_MAX: u64 = 1 << 20;

/// Files that `inputs` name: lists and clips as they are, a folder as its `clips.csv` or, where it
/// has none, all clips in it, sorted by path.
///
/// # Errors
/// When an input is an address, is of another kind, or is an empty folder.
pub fn expand(inputs: &[String]) -> Result<Vec<String>, IngestError> {
    if let Some(input) = inputs.iter().find(|input| is_url(input)) {
        return Err(IngestError::InputRemote { input: input.clone() });
    }
    let suffixes = [CLIP_SUFFIXES, list::SUFFIXES].concat();
    let mut files = Vec::new();
    for input in inputs {
        let listed = Path::new(input).join(FOLDER_LIST);
        if listed.is_file() {
            files.push(listed.to_string_lossy().into_owned());
        } else if Path::new(input).is_dir() {
            files.extend(source::expand(std::slice::from_ref(input), CLIP_SUFFIXES)?);
        } else {
            files.extend(source::expand(std::slice::from_ref(input), &suffixes)?);
        }
    }
    Ok(files)
}

/// The inputs and rules that every clip needs.
pub struct ClipJob<'a> {
    sources: &'a [Arc<Source>],
    plan: &'a BuildPlan,
}

/// A clip to be read, or a row of a list that is none.
pub enum ClipItem {
    /// A row of a list.
    Listed(ListItem),
    /// A file that was given or found: the index of its source.
    File(usize),
}

impl Weigh for ClipItem {}

/// A clip and what is known of it.
struct Candidate {
    key: String,
    path: PathBuf,
    url: Option<String>,
    caption: Option<String>,
    /// What the split looks at.
    address: String,
}

impl<'a> ClipJob<'a> {
    /// Starts the video library.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn new(sources: &'a [Arc<Source>], plan: &'a BuildPlan) -> Result<Self, IngestError> {
        ffmpeg_next::init()
            .map_err(|error| IngestError::VideoDecoder { message: error.to_string() })?;
        Ok(Self { sources, plan })
    }

    /// All clips in order.
    pub fn items(&self) -> impl Iterator<Item = Result<ClipItem, IngestError>> + Send + 'a {
        let (sources, plan) = (self.sources, &self.plan.list);
        sources.iter().enumerate().flat_map(move |(i, source)| {
            let items: Box<dyn Iterator<Item = _> + Send> = if list::is_list(source.input()) {
                Box::new(list::list_rows(i, source, plan).map(|item| item.map(ClipItem::Listed)))
            } else {
                Box::new(std::iter::once(Ok(ClipItem::File(i))))
            };
            items
        })
    }

    /// Makes one row, or says why not.
    pub fn clip(&self, item: ClipItem) -> Outcome {
        let (origin, candidate) = match item {
            ClipItem::Listed(ListItem::Dropped(reject)) => return Outcome::dropped(reject),
            ClipItem::Listed(ListItem::Row(row)) => {
                let list = &self.sources[row.list];
                let origin = alt_text::origin(list, &row);
                let key = alt_text::key(list.name(), row.row);
                let file = row.file.as_deref().ok_or_else(|| {
                    DropReason::because(if row.url.is_some() { "not_fetched" } else { "no_file" })
                });
                let place =
                    file.and_then(|file| alt_text::place(alt_text::folder(list.input()), file));
                let address = row.url.clone().or(row.file).unwrap_or_else(|| key.clone());
                let candidate = place.map(|place| Candidate {
                    key,
                    path: PathBuf::from(place),
                    url: row.url,
                    caption: row.caption,
                    address,
                });
                (origin, candidate)
            }
            ClipItem::File(i) => {
                let source = &self.sources[i];
                let name = source.name().to_owned();
                let origin = Origin { source: name.clone(), offset: None, url: None };
                let path = PathBuf::from(source.input());
                let (url, caption) = (None, None);
                let (key, address) = (format!("{i:09}:{name}"), name);
                (origin, Ok(Candidate { key, path, url, caption, address }))
            }
        };
        let row = candidate.map_err(|drop| (Stage::Read, drop)).and_then(|candidate| {
            without_panic(|| self.read(candidate)).map_err(|drop| (Stage::Video, drop))?
        });
        match row {
            Ok(row) => Outcome::kept(Row::VideoText(row)),
            Err((stage, drop)) => Outcome::dropped(drop.at(stage, &origin, None)),
        }
    }

    fn read(&self, candidate: Candidate) -> Result<VideoText, (Stage, DropReason)> {
        if let Some(drop) = split::check(&self.plan.split, &candidate.address) {
            return Err((Stage::Split, drop));
        }
        let read = |drop| (Stage::Read, drop);
        let bytes_max = self.plan.video.bytes_max;
        let file = alt_text::open_file(&candidate.path.to_string_lossy()).map_err(read)?;
        if file.len() > bytes_max {
            let drop = DropReason::limit("too_many_bytes", file.len() as f64, bytes_max as f64);
            return Err(read(drop));
        }
        let caption = candidate.caption.clone().or_else(|| caption_beside(&candidate.path));
        let caption = check_caption(caption.as_deref(), &self.plan.caption)
            .map_err(|drop| (Stage::Caption, drop))?;
        let clip = clip::read_clip(&candidate.path, &self.plan.video)
            .map_err(|drop| (Stage::Video, drop))?;
        let sha256 = file.sha256();
        let sha256 = sha256
            .map_err(|error| read(DropReason::detail("unreadable_file", error.to_string())))?;
        self.row(candidate, caption, &clip, sha256).map_err(|drop| (Stage::Video, drop))
    }

    fn row(
        &self,
        candidate: Candidate,
        caption: String,
        clip: &Clip,
        sha256: String,
    ) -> Result<VideoText, DropReason> {
        let encode = |frame| {
            let bytes = encode_jpeg(frame, self.plan.video.jpeg_quality)?;
            Ok(EncodedImage { bytes: bytes.into(), path: None })
        };
        let (width, height) = clip.frames[0].dimensions();
        Ok(VideoText {
            key: candidate.key,
            url: candidate.url,
            caption,
            frames: clip.frames.iter().map(encode).collect::<Result<_, _>>()?,
            frame_ms: clip.frame_ms.clone(),
            start_ms: 0,
            end_ms: clip.duration_ms,
            duration_ms: clip.duration_ms,
            width: width as i32,
            height: height as i32,
            codec: clip.codec.clone(),
            sha256,
        })
    }
}

/// The text of the `.txt` or `.vtt` file with the name of the clip.
fn caption_beside(clip: &Path) -> Option<String> {
    let read = |extension: &str| {
        let path = clip.with_extension(extension);
        let mut text = String::new();
        let file = fs::File::open(path).ok()?;
        file.take(CAPTION_BYTES_MAX).read_to_string(&mut text).ok()?;
        Some(text)
    };
    read("txt").or_else(|| read("vtt").map(|text| subtitles::text(&text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_its_list_or_its_clips() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        for name in ["b.webm", "a.MP4", "a.txt", "sound.mp3"] {
            fs::write(path(name), "x").unwrap();
        }
        let all = || expand(&[folder.path().to_str().unwrap().to_owned()]).unwrap();
        assert_eq!(all(), [path("a.MP4"), path("b.webm")]);
        fs::write(path("clips.csv"), "file,caption\n").unwrap();
        assert_eq!(all(), [path("clips.csv")]);
        assert!(expand(&[path("sound.mp3")]).is_err());
    }

    #[test]
    fn the_caption_beside_a_clip_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        assert_eq!(caption_beside(&path("a.mp4")), None);
        fs::write(path("a.vtt"), "WEBVTT\n\n00:00.000 --> 00:01.000\nHello <b>you</b>\n").unwrap();
        assert_eq!(caption_beside(&path("a.mp4")).unwrap(), "Hello you");
        fs::write(path("a.txt"), "written").unwrap();
        assert_eq!(caption_beside(&path("a.mp4")).unwrap(), "written");
    }
}
