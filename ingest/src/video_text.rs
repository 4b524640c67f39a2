//! Clips and their captions to rows of frames (paper, section 2.4: VTP).
//!
//! A caption comes from a list, else from a file beside the clip: `.txt`, `.json`, `.vtt` or `.srt`.
//! A list may name parts of clips, and so may a `.json` file and, by the plan, the cues of subtitles:
//! each part is a row.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flamingo_dataset::{CorpusStore, EncodedImage, Row, VideoText};
use tempfile::NamedTempFile;

use crate::alt_text::{self, check_caption};
use crate::clip::{Part, Sampled};
use crate::decoder::Decoders;
use crate::error::IngestError;
use crate::image::encode_jpeg;
use crate::list::{self, ListItem, ListRow};
use crate::ordered::Weigh;
use crate::outcome::{Outcome, without_panic};
use crate::plan::BuildPlan;
use crate::reject::{DropReason, Origin, Reject, Stage};
use crate::sidecar::{self, Beside, Captioned};
use crate::source::{self, Source, is_url};
use crate::split;

/// Endings of clips.
const CLIP_SUFFIXES: &[&str] = &[
    ".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ogv", ".3gp", ".ts",
    ".mts", ".m2ts", ".flv", ".wmv", ".asf", ".mxf", ".vob",
];
/// A list of one of these names in a folder of clips has their captions.
const FOLDER_LISTS: &[&str] = &["clips.csv", "clips.tsv", "clips.jsonl", "clips.parquet"];

/// Files that `inputs` name: lists and clips as they are, a folder or a prefix of an object store as
/// its list `clips.csv` (or .tsv, .jsonl, .parquet) or, where it has none, all clips in it, sorted by path.
///
/// # Errors
/// When an input is of another kind or is an empty folder.
pub fn expand(inputs: &[String]) -> Result<Vec<String>, IngestError> {
    let suffixes = [CLIP_SUFFIXES, list::SUFFIXES].concat();
    let mut files = Vec::new();
    for input in inputs {
        let is_folder = source::is_prefix(input) || (!is_url(input) && Path::new(input).is_dir());
        let (list, kinds) =
            if is_folder { (folder_list(input)?, CLIP_SUFFIXES) } else { (None, &*suffixes) };
        match list {
            Some(list) => files.push(list),
            None => files.extend(source::expand(std::slice::from_ref(input), kinds)?),
        }
    }
    Ok(files)
}

/// The list of a folder, or of a prefix of an object store, if it has one.
fn folder_list(folder: &str) -> Result<Option<String>, IngestError> {
    let place = |name: &str| Path::new(folder).join(name).to_string_lossy().into_owned();
    if !source::is_prefix(folder) {
        let mut lists = FOLDER_LISTS.iter().map(|name| place(name));
        return Ok(lists.find(|list| Path::new(list).is_file()));
    }
    let fetch =
        |source| IngestError::InputFetch { input: folder.to_owned(), source: Box::new(source) };
    let store = CorpusStore::open(folder).map_err(fetch)?;
    for name in FOLDER_LISTS {
        if store.size_if_any(name).map_err(fetch)?.is_some() {
            return Ok(Some(place(name)));
        }
    }
    Ok(None)
}

/// The inputs and rules that every clip needs.
pub struct ClipJob<'a> {
    sources: &'a [Arc<Source>],
    plan: &'a BuildPlan,
    decoders: Decoders,
    beside: Arc<Beside>,
}

/// A clip to be read, or a row that is none.
pub enum ClipItem {
    /// A row of a list.
    Listed(ListItem),
    /// A file that was given or found, or a part of it.
    File(FilePart),
    /// A file whose parts cannot be told.
    Dropped(Reject),
}

/// A part of a file.
pub struct FilePart {
    /// Index of the source.
    source: usize,
    /// Number of the part, where there are several.
    number: Option<usize>,
    row: Captioned,
}

impl Weigh for ClipItem {}

/// A clip and what is known of it.
struct Candidate {
    key: String,
    /// A path or an address.
    place: String,
    part: Part,
    url: Option<String>,
    caption: Option<String>,
    /// What the split looks at.
    address: String,
}

/// A clip on a disk: itself, or a copy for the time being.
struct LocalClip {
    path: PathBuf,
    sha256: String,
    /// Deletes the copy in the end.
    _copy: Option<NamedTempFile>,
}

impl<'a> ClipJob<'a> {
    /// Finds the program that decodes.
    ///
    /// # Errors
    /// When it cannot be found.
    pub fn new(sources: &'a [Arc<Source>], plan: &'a BuildPlan) -> Result<Self, IngestError> {
        let decoders = Decoders::of_this_program().map_err(|error| no_decoder(&error))?;
        Ok(Self { sources, plan, decoders, beside: Arc::default() })
    }

    /// All clips in order.
    pub fn items(&self) -> impl Iterator<Item = Result<ClipItem, IngestError>> + Send + 'a {
        let (sources, plan, beside) = (self.sources, self.plan, Arc::clone(&self.beside));
        sources.iter().enumerate().flat_map(move |(i, source)| {
            let items: Box<dyn Iterator<Item = _> + Send> = if list::is_list(source.input()) {
                let rows = list::list_rows(i, source, &plan.list);
                Box::new(rows.map(|item| item.map(ClipItem::Listed)))
            } else {
                Box::new(file_items(i, source, plan, &beside).into_iter().map(Ok))
            };
            items
        })
    }

    /// Makes one row, or says why not.
    ///
    /// # Errors
    /// When no process can be started that decodes.
    pub fn clip(&self, item: ClipItem) -> Result<Outcome, IngestError> {
        let (origin, candidate) = match item {
            ClipItem::Listed(ListItem::Dropped(reject)) | ClipItem::Dropped(reject) => {
                return Ok(Outcome::dropped(reject));
            }
            ClipItem::Listed(ListItem::Row(row)) => {
                let origin = alt_text::origin(&self.sources[row.list], &row);
                (origin, self.listed(row))
            }
            ClipItem::File(part) => (file_origin(&self.sources[part.source]), Ok(self.file(part))),
        };
        let row = match candidate {
            Err(drop) => Err((Stage::Read, drop)),
            Ok(candidate) => match without_panic(|| self.read(candidate)) {
                Err(drop) => Err((Stage::Video, drop)),
                Ok(Err(error)) => return Err(no_decoder(&error)),
                Ok(Ok(row)) => row,
            },
        };
        Ok(match row {
            Ok(row) => Outcome::kept(Row::VideoText(row)),
            Err((stage, drop)) => Outcome::dropped(drop.at(stage, &origin, None)),
        })
    }

    fn listed(&self, row: ListRow) -> Result<Candidate, DropReason> {
        let list = &self.sources[row.list];
        let key = alt_text::key(list.name(), row.row);
        let file = row.file.as_deref().ok_or_else(|| {
            DropReason::because(if row.url.is_some() { "not_fetched" } else { "no_file" })
        })?;
        let place = alt_text::place(alt_text::folder(list.input()), file)?;
        let part = sidecar::part(row.start.as_deref(), row.end.as_deref())?;
        let address = row.url.clone().or(row.file).unwrap_or_else(|| key.clone());
        Ok(Candidate { key, place, part, url: row.url, caption: row.caption, address })
    }

    fn file(&self, FilePart { source: i, number, row }: FilePart) -> Candidate {
        let source = &self.sources[i];
        let name = source.name();
        let number = number.map(|number| format!("#{number:05}")).unwrap_or_default();
        Candidate {
            key: format!("{i:09}:{name}{number}"),
            place: source.input().to_owned(),
            part: row.part,
            url: row.url,
            caption: row.caption,
            // All parts of a film are on one side of the split.
            address: name.to_owned(),
        }
    }

    /// The row of a clip. The outer error is about the program that decodes.
    fn read(&self, candidate: Candidate) -> io::Result<Result<VideoText, (Stage, DropReason)>> {
        match self.checked(&candidate) {
            Err(dropped) => Ok(Err(dropped)),
            Ok((local, caption)) => {
                let row = self.row(candidate, caption, local)?;
                Ok(row.map_err(|drop| (Stage::Video, drop)))
            }
        }
    }

    /// The file and the caption of a clip, before anything of it is decoded.
    fn checked(&self, candidate: &Candidate) -> Result<(LocalClip, String), (Stage, DropReason)> {
        if let Some(drop) = split::check(&self.plan.split, &candidate.address) {
            return Err((Stage::Split, drop));
        }
        let read = |drop| (Stage::Read, drop);
        let bytes_max = self.plan.video.bytes_max;
        let source = alt_text::open_file(&candidate.place).map_err(read)?;
        if source.len() > bytes_max {
            let drop = DropReason::limit("too_many_bytes", source.len() as f64, bytes_max as f64);
            return Err(read(drop));
        }
        let mut caption = candidate.caption.clone();
        if caption.is_none() {
            // A list without captions: what lies beside the clip is about the whole of it.
            let beside = sidecar::read(Path::new(&candidate.place), self.plan, &self.beside)
                .map_err(read)?;
            let [only] = <[Captioned; 1]>::try_from(beside).unwrap_or([Captioned::none()]);
            caption = only.caption;
        }
        let caption = check_caption(caption.as_deref(), &self.plan.caption)
            .map_err(|drop| (Stage::Caption, drop))?;
        let local = local_clip(&source, &candidate.place);
        let local = local
            .map_err(|error| read(DropReason::detail("unreadable_file", error.to_string())))?;
        Ok((local, caption))
    }

    fn row(
        &self,
        candidate: Candidate,
        caption: String,
        local: LocalClip,
    ) -> io::Result<Result<VideoText, DropReason>> {
        let rules = &self.plan.video;
        let (mut frames, mut frame_ms, mut size) = (Vec::new(), Vec::new(), (0, 0));
        let facts = self.decoders.read(&local.path, candidate.part, rules, |sampled| {
            match sampled {
                Sampled::Frame(rgb, ms) => {
                    size = rgb.dimensions();
                    let bytes = encode_jpeg(&rgb, rules.jpeg_quality)?;
                    frames.push(EncodedImage { bytes: bytes.into(), path: None });
                    frame_ms.push(ms);
                }
                Sampled::Again => {
                    frames.clear();
                    frame_ms.clear();
                }
            }
            Ok(())
        })?;
        Ok(facts.map(|facts| VideoText {
            key: candidate.key,
            url: candidate.url,
            caption,
            frames,
            frame_ms,
            start_ms: facts.start_ms,
            end_ms: facts.end_ms,
            duration_ms: facts.duration_ms,
            width: size.0 as i32,
            height: size.1 as i32,
            codec: facts.codec,
            sha256: local.sha256,
        }))
    }
}

/// The parts of a file: by what lies beside it.
fn file_items(i: usize, source: &Source, plan: &BuildPlan, beside: &Beside) -> Vec<ClipItem> {
    let rows = match sidecar::read(Path::new(source.input()), plan, beside) {
        Ok(rows) => rows,
        Err(drop) => {
            let reject = drop.at(Stage::Read, &file_origin(source), None);
            return vec![ClipItem::Dropped(reject)];
        }
    };
    let is_cut = rows.len() > 1 || rows.iter().any(|row| row.part != Part::WHOLE);
    let numbered = rows.into_iter().enumerate();
    numbered
        .map(|(n, row)| ClipItem::File(FilePart { source: i, number: is_cut.then_some(n), row }))
        .collect()
}

fn file_origin(source: &Source) -> Origin {
    Origin { source: source.name().to_owned(), offset: None, url: None }
}

fn no_decoder(error: &io::Error) -> IngestError {
    IngestError::VideoDecoder { message: error.to_string() }
}

/// The clip as a file, which it is already unless it lies on an object store.
fn local_clip(source: &Source, place: &str) -> io::Result<LocalClip> {
    if !is_url(place) {
        return Ok(LocalClip { path: place.into(), sha256: source.sha256()?, _copy: None });
    }
    let ending =
        Path::new(place).extension().map(|ending| format!(".{}", ending.to_string_lossy()));
    let mut copy = tempfile::Builder::new().suffix(&ending.unwrap_or_default()).tempfile()?;
    io::copy(&mut source.reader(0), &mut copy)?;
    let path = copy.path().to_owned();
    let sha256 = Source::open(&path.to_string_lossy()).map_err(io::Error::other)?.sha256()?;
    Ok(LocalClip { path, sha256, _copy: Some(copy) })
}

#[cfg(test)]
mod tests {
    use std::fs;

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
        fs::write(path("clips.jsonl"), "").unwrap();
        assert_eq!(all(), [path("clips.jsonl")]);
        fs::write(path("clips.csv"), "file,caption\n").unwrap();
        assert_eq!(all(), [path("clips.csv")]);
        assert!(expand(&[path("sound.mp3")]).is_err());
    }
}
