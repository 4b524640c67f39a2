//! What lies beside a clip: its caption in `.txt`, its parts in `.json`, its words in `.vtt` or `.srt`.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use flamingo_dataset::{CorpusError, CorpusStore};
use serde_json::Value;

use crate::clip::Part;
use crate::plan::{BuildPlan, Cues, ListPlan};
use crate::reject::DropReason;
use crate::source::is_url;
use crate::subtitles;

/// Largest file beside a clip, in bytes.
const BYTES_MAX: u64 = 16 << 20;
/// Most parts of one clip.
const PARTS_MAX: usize = 100_000;
/// Endings of subtitles, the most particular first.
const SUBTITLES: &[&str] = &["vtt", "srt", "en.vtt", "en.srt"];
/// Name of the list of parts in `.json`, as video2dataset has it.
const PARTS_KEY: &str = "clips";

/// A part of a clip with its caption.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Captioned {
    pub(crate) part: Part,
    pub(crate) caption: Option<String>,
    pub(crate) url: Option<String>,
}

impl Captioned {
    /// A whole clip of which nothing is said.
    pub(crate) fn none() -> Self {
        Self::whole(None)
    }

    fn whole(caption: Option<String>) -> Self {
        Self { part: Part::WHOLE, caption, url: None }
    }
}

/// The rows that a clip gives: one without a caption where nothing lies beside it. Where there are
/// several files, `.txt` is taken before `.json`, and that before subtitles.
///
/// # Errors
/// When a file is there but cannot be used.
pub(crate) fn read(
    clip: &Path,
    plan: &BuildPlan,
    beside: &Beside,
) -> Result<Vec<Captioned>, DropReason> {
    if let Some(text) = beside.text(clip, "txt")? {
        return Ok(vec![Captioned::whole(Some(text))]);
    }
    if let Some(text) = beside.text(clip, "json")? {
        let value: Value =
            serde_json::from_str(&text).map_err(|error| bad(clip, "json", &error.to_string()))?;
        return parts(&value, &plan.list).map_err(|message| bad(clip, "json", &message));
    }
    for extension in SUBTITLES {
        let Some(text) = beside.text(clip, extension)? else { continue };
        let cues = subtitles::cues(&text);
        if plan.video.cues == Cues::Join || cues.is_empty() {
            return Ok(vec![Captioned::whole(Some(subtitles::text(&cues)))]);
        }
        let (ms_min, gap_ms_max) = (plan.video.cue_ms_min, plan.video.cue_gap_ms_max);
        let cues = subtitles::joined(cues, ms_min, gap_ms_max);
        if cues.len() > PARTS_MAX {
            return Err(DropReason::limit("many_parts", cues.len() as f64, PARTS_MAX as f64));
        }
        let rows = cues.into_iter().map(|cue| Captioned {
            part: Part { start_ms: cue.start_ms as f64, end_ms: Some(cue.end_ms as f64) },
            ..Captioned::whole(Some(cue.text))
        });
        return Ok(rows.collect());
    }
    Ok(vec![Captioned::none()])
}

/// Start and end of a part, in seconds or as times of a clock. An empty text is none.
///
/// # Errors
/// When one is no time, or the part has no length.
pub(crate) fn part(start: Option<&str>, end: Option<&str>) -> Result<Part, DropReason> {
    let ms = |text: Option<&str>| {
        let text = text.map(str::trim).filter(|text| !text.is_empty());
        let bad = |text| DropReason::detail("bad_times", format!("`{text}`, expected a time"));
        text.map(|text| subtitles::clock_ms(text).ok_or_else(|| bad(text))).transpose()
    };
    let (start, end) = (ms(start)?, ms(end)?);
    let start = start.unwrap_or(0);
    if let Some(end) = end.filter(|end| *end <= start) {
        return Err(DropReason::detail("bad_times", format!("{start} ms to {end} ms")));
    }
    Ok(Part { start_ms: start as f64, end_ms: end.map(|end| end as f64) })
}

fn bad(clip: &Path, extension: &str, message: &str) -> DropReason {
    let file = clip.with_extension(extension);
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    DropReason::detail("bad_sidecar", format!("{name}: {message}"))
}

/// The rows of a `.json` file: of its list of parts, or of the whole clip. Each part is an object with
/// the columns of the plan, or `[start, end]`, or `[start, end, caption]`.
fn parts(value: &Value, plan: &ListPlan) -> Result<Vec<Captioned>, String> {
    let whole = value.as_object();
    let list =
        whole.and_then(|whole| whole.get(PARTS_KEY)).or(Some(value)).and_then(Value::as_array);
    let text = |value: &Value, column: &str| value.get(column).and_then(as_text);
    let row = |value: &Value| -> Result<Captioned, String> {
        let (start, end, caption) = match value.as_array().map(Vec::as_slice) {
            Some([start, end]) => (as_text(start), as_text(end), None),
            Some([start, end, caption]) => (as_text(start), as_text(end), as_text(caption)),
            Some(_) => return Err("a part is not `[start, end]` or `[start, end, caption]`".into()),
            None if value.is_object() => (
                text(value, &plan.start_column),
                text(value, &plan.end_column),
                text(value, &plan.caption_column),
            ),
            None => return Err("expected an object, or a list of parts".into()),
        };
        let part = part(start.as_deref(), end.as_deref());
        let part = part.map_err(|drop| drop.detail.unwrap_or_default())?;
        let own =
            |column: &str| text(value, column).or_else(|| whole?.get(column).and_then(as_text));
        Ok(Captioned {
            part,
            caption: caption.or_else(|| own(&plan.caption_column)),
            url: own(&plan.url_column),
        })
    };
    let Some(list) = list else { return Ok(vec![row(value)?]) };
    if list.len() > PARTS_MAX {
        return Err(format!("{} parts, expected at most {PARTS_MAX}", list.len()));
    }
    let numbered = list.iter().enumerate();
    numbered
        .map(|(i, value)| row(value).map_err(|message| format!("part {i}: {message}")))
        .collect()
}

/// A text or a number as a text.
fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// What lies beside clips.
#[derive(Default)]
pub(crate) struct Beside {
    prefixes: Mutex<HashMap<String, Arc<Prefix>>>,
}

/// A prefix of an object store, listed once for all its clips.
struct Prefix {
    store: CorpusStore,
    /// None where it may not be listed: then each object is asked for.
    names: Option<HashSet<String>>,
}

impl Beside {
    /// The text of the file or object with the name of the clip and this ending; none where there is no
    /// such.
    fn text(&self, clip: &Path, extension: &str) -> Result<Option<String>, DropReason> {
        let path: PathBuf = clip.with_extension(extension);
        if path == clip {
            return Ok(None);
        }
        let place = path.to_string_lossy();
        let bytes = if is_url(&place) { self.object_bytes(&place) } else { file_bytes(&path) };
        let bytes = bytes.map_err(|message| bad(clip, extension, &message))?;
        Ok(bytes.map(|bytes| subtitles::decoded(&bytes).into_owned()))
    }

    fn object_bytes(&self, url: &str) -> Result<Option<Vec<u8>>, String> {
        let (prefix, object) = url.rsplit_once('/').unwrap_or((url, ""));
        let words = |error: CorpusError| error.to_string();
        let prefix = self.prefix(prefix).map_err(words)?;
        if prefix.names.as_ref().is_some_and(|names| !names.contains(object)) {
            return Ok(None);
        }
        let Some(size) = prefix.store.size_if_any(object).map_err(words)? else { return Ok(None) };
        check_bytes(size)?;
        prefix.store.get(object).map(|bytes| Some(bytes.to_vec())).map_err(words)
    }

    fn prefix(&self, location: &str) -> Result<Arc<Prefix>, CorpusError> {
        let mut prefixes = self.prefixes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = prefixes.get(location) {
            return Ok(Arc::clone(known));
        }
        let store = CorpusStore::open(location)?;
        let names = store.list("").ok().map(HashSet::from_iter);
        let prefix = Arc::new(Prefix { store, names });
        prefixes.insert(location.to_owned(), Arc::clone(&prefix));
        Ok(prefix)
    }
}

fn file_bytes(path: &Path) -> Result<Option<Vec<u8>>, String> {
    // A pipe would block for ever when it is opened.
    if !path.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let read =
        fs::File::open(path).and_then(|file| file.take(BYTES_MAX + 1).read_to_end(&mut bytes));
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
        Ok(n) => check_bytes(n as u64).map(|()| Some(bytes)),
    }
}

fn check_bytes(n: u64) -> Result<(), String> {
    if n > BYTES_MAX { Err(format!("expected at most {BYTES_MAX} bytes")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(start_ms: f64, end_ms: Option<f64>, caption: &str) -> Captioned {
        let caption = Some(caption.to_owned());
        Captioned { part: Part { start_ms, end_ms }, caption, url: None }
    }

    #[test]
    fn what_lies_beside_a_clip_becomes_rows() {
        let folder = tempfile::tempdir().unwrap();
        let clip = folder.path().join("a.mp4");
        let write = |extension: &str, text: &str| {
            fs::write(clip.with_extension(extension), text).unwrap();
        };
        let mut plan = BuildPlan::default();
        assert_eq!(read(&clip, &plan, &Beside::default()).unwrap(), [Captioned::whole(None)]);
        write(
            "en.srt",
            "1\n00:00:01,000 --> 00:00:02,000\nHello\n\n2\n00:00:03,000 --> 00:00:04,000\nyou\n",
        );
        assert_eq!(read(&clip, &plan, &Beside::default()).unwrap(), [row(0.0, None, "Hello you")]);
        plan.video.cues = Cues::Clips;
        let cues = [row(1000.0, Some(2000.0), "Hello"), row(3000.0, Some(4000.0), "you")];
        assert_eq!(read(&clip, &plan, &Beside::default()).unwrap(), cues);
        write("json", r#"{"caption": "all", "clips": [[0, 1.5], ["00:00:02", 3, "own"]]}"#);
        let parts = [row(0.0, Some(1500.0), "all"), row(2000.0, Some(3000.0), "own")];
        assert_eq!(read(&clip, &plan, &Beside::default()).unwrap(), parts);
        write("txt", "written");
        assert_eq!(read(&clip, &plan, &Beside::default()).unwrap(), [row(0.0, None, "written")]);
    }

    #[test]
    fn json_comes_in_several_shapes() {
        let check = |json: &str, expected: &[Captioned]| {
            let value = serde_json::from_str(json).unwrap();
            assert_eq!(parts(&value, &ListPlan::default()).unwrap(), expected, "{json}");
        };
        check(r#"{"caption": "c"}"#, &[row(0.0, None, "c")]);
        check(r#"{"caption": "c", "start": 2}"#, &[row(2000.0, None, "c")]);
        check(
            r#"[{"start": "1", "end": "0:02", "caption": "c"}]"#,
            &[row(1000.0, Some(2000.0), "c")],
        );
        let with_url = Captioned { url: Some("u".into()), ..row(0.0, Some(1000.0), "c") };
        check(r#"{"url": "u", "caption": "c", "clips": [{"end": 1}]}"#, &[with_url]);
        check("[]", &[]);
    }

    #[test]
    fn a_part_that_cannot_be_is_named() {
        let check = |json: &str, expected: &str| {
            let value = serde_json::from_str(json).unwrap();
            let message = parts(&value, &ListPlan::default()).unwrap_err();
            assert!(message.contains(expected), "{message}");
        };
        check("3", "expected an object");
        check("[[1]]", "part 0: a part is not");
        check("[[0, 1], [2, 1]]", "part 1: 2000 ms to 1000 ms");
        check(r#"{"start": "soon"}"#, "`soon`, expected a time");
    }
}
