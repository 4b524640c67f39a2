//! Entries of annotation files, one at a time: lists in JSON files, lines of JSON, rows of CSV.
//!
//! Lists are read entry by entry from the disk, so that memory holds what is kept of them. What is wrong
//! with an entry is told with its number, counted from 0, and its id.

use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::de::{DeserializeOwned, DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess};
use serde::{Deserialize, Deserializer, de::Visitor};
use serde_json::Value;

use crate::error::EvalError;
use crate::ids::some_of;

/// Bytes of a file that are in memory at a time.
const BUFFER_BYTES: usize = 1 << 16;

/// A JSON file.
pub(super) struct JsonFile {
    path: PathBuf,
}

impl JsonFile {
    pub(super) fn at(path: &str) -> Self {
        Self { path: path.into() }
    }

    fn open(&self) -> Result<BufReader<File>, EvalError> {
        let file = File::open(&self.path).map_err(EvalError::file("read", &self.path))?;
        Ok(BufReader::with_capacity(BUFFER_BYTES, file))
    }

    /// Hands each entry of the list at `keys` to `take`, in order; without keys the file is the list. `noun` is
    /// what messages call an entry.
    ///
    /// # Errors
    /// When the file cannot be read, is not JSON or lacks the list, an entry is not as expected, or `take` refuses one.
    pub(super) fn each<'t, T: Deserialize<'t>>(
        &self,
        keys: &[&str],
        noun: &str,
        mut take: impl FnMut(T) -> Result<(), String>,
    ) -> Result<(), EvalError> {
        let mut progress = Progress { n: 0, is_found: false, refused: None };
        let entries =
            Entries { keys, take: &mut take, progress: &mut progress, kind: PhantomData::<T> };
        let mut json = serde_json::Deserializer::from_reader(self.open()?);
        let outcome = entries.deserialize(&mut json).and_then(|()| json.end());
        match outcome {
            Ok(()) if progress.is_found => Ok(()),
            Ok(()) => Err(self.wrong(format!("it has no list `{}`", keys.join(".")))),
            Err(error) if error.is_data() && progress.is_found => {
                let entry = self.entry(keys, progress.n);
                let id = entry.as_ref().map_or_else(String::new, id_of_entry);
                let problem = progress.refused.unwrap_or_else(|| told::<T>(&error, entry));
                Err(self.wrong(format!("{noun} {}{id} {problem}", progress.n)))
            }
            Err(error) => Err(self.unexpected(error)),
        }
    }

    /// The file as one value.
    ///
    /// # Errors
    /// When it cannot be read, is not JSON or of another form.
    pub(super) fn whole<T: DeserializeOwned>(&self) -> Result<T, EvalError> {
        let mut json = serde_json::Deserializer::from_reader(self.open()?);
        let found = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let place = error.path().to_string();
            match error.into_inner() {
                inner if inner.is_data() && place != TOP => {
                    self.wrong(format!("`{place}` is wrong: {inner}"))
                }
                inner => self.unexpected(inner),
            }
        })?;
        json.end().map_err(|error| self.unexpected(error))?;
        Ok(found)
    }

    fn unexpected(&self, error: serde_json::Error) -> EvalError {
        if error.is_io() {
            return EvalError::file("read", &self.path)(error.into());
        }
        self.wrong(format!("it is not what was expected: {error}"))
    }

    pub(super) fn wrong(&self, problem: String) -> EvalError {
        EvalError::Annotations { path: self.path.clone(), problem }
    }

    /// An entry that is wrong; the file is read once more for it.
    fn entry(&self, keys: &[&str], n: usize) -> Option<Value> {
        let file = self.open().ok().and_then(|file| serde_json::from_reader::<_, Value>(file).ok());
        let list = keys.iter().try_fold(file?, |mut value, key| Some(value.get_mut(key)?.take()));
        Some(list?.get_mut(n)?.take())
    }
}

/// Keys that name an entry, in the order in which they are looked for.
const ID_KEYS: [&str; 7] =
    ["question_id", "cocoid", "videoID", "id", "image_id", "image", "filename"];

fn id_of_entry(entry: &Value) -> String {
    let id = ID_KEYS.iter().find_map(|key| Some((key, entry.get(key)?)));
    id.map_or_else(String::new, |(key, id)| {
        format!(" ({key} {})", id.to_string().trim_matches('"'))
    })
}

/// The path of a value that is wrong as a whole.
const TOP: &str = ".";

/// What a parser says of an entry, with the field but without the line: entries have names.
fn told<'t, T: Deserialize<'t>>(error: &serde_json::Error, entry: Option<Value>) -> String {
    let text = error.to_string();
    let text = text.rfind(" at line ").map_or(text.as_str(), |end| &text[..end]);
    let again = entry.and_then(|entry| serde_path_to_error::deserialize::<_, T>(entry).err());
    let place = again.map(|error| error.path().to_string()).filter(|place| place != TOP);
    match (place, text.strip_prefix("missing field ")) {
        (Some(place), Some(field)) => format!("has no {field} in `{place}`"),
        (Some(place), None) => format!("has a wrong `{place}`: {text}"),
        (None, _) => as_lacking(text),
    }
}

fn as_lacking(text: &str) -> String {
    text.strip_prefix("missing field ")
        .map_or_else(|| format!("is wrong: {text}"), |field| format!("has no {field}"))
}

struct Progress {
    n: usize,
    is_found: bool,
    refused: Option<String>,
}

struct Entries<'a, T, F> {
    keys: &'a [&'a str],
    take: &'a mut F,
    progress: &'a mut Progress,
    kind: PhantomData<T>,
}

impl<'de, T, F> DeserializeSeed<'de> for Entries<'_, T, F>
where
    T: Deserialize<'de>,
    F: FnMut(T) -> Result<(), String>,
{
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.keys.is_empty() {
            deserializer.deserialize_seq(self)
        } else {
            deserializer.deserialize_map(self)
        }
    }
}

impl<'de, T, F> Visitor<'de> for Entries<'_, T, F>
where
    T: Deserialize<'de>,
    F: FnMut(T) -> Result<(), String>,
{
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.keys.first() {
            Some(key) => write!(f, "an object with `{key}`"),
            None => f.write_str("a list"),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        self.progress.is_found = true;
        while let Some(entry) = list.next_element()? {
            if let Err(problem) = (self.take)(entry) {
                self.progress.refused = Some(problem);
                return Err(A::Error::custom("an entry was refused"));
            }
            self.progress.n += 1;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<std::borrow::Cow<'_, str>>()? {
            if self.keys.first().is_some_and(|wanted| *wanted == key) && !self.progress.is_found {
                map.next_value_seed(Entries {
                    keys: &self.keys[1..],
                    take: &mut *self.take,
                    progress: &mut *self.progress,
                    kind: PhantomData::<T>,
                })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// Hands each line of a file of JSON lines to `take`; lines of white space are left out.
///
/// # Errors
/// When the file cannot be read, a line is not as expected, or `take` refuses one.
pub(super) fn json_lines<T: DeserializeOwned>(
    path: &str,
    mut take: impl FnMut(T) -> Result<(), String>,
) -> Result<(), EvalError> {
    let text = std::fs::read_to_string(path).map_err(EvalError::file("read", path))?;
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let value = || serde_json::from_str::<Value>(line).ok();
        let entry = serde_json::from_str(line).map_err(|error| told::<T>(&error, value()));
        entry.and_then(&mut take).map_err(|problem| {
            let id = value().as_ref().map_or_else(String::new, id_of_entry);
            wrong(path, format!("line {}{id} {problem}", i + 1))
        })?;
    }
    Ok(())
}

/// Hands each row of a CSV file with a header to `take`, with its number from 0.
///
/// # Errors
/// When the file cannot be read, lacks a column, a row is not as expected, or `take` refuses one.
pub(super) fn csv_rows<T: DeserializeOwned>(
    path: &str,
    mut take: impl FnMut(usize, T) -> Result<(), String>,
) -> Result<(), EvalError> {
    let file = std::fs::File::open(path).map_err(EvalError::file("read", path))?;
    let mut rows = csv::Reader::from_reader(file);
    let headers = rows.headers().map_err(|error| wrong(path, error.to_string()))?.clone();
    for (i, record) in rows.records().enumerate() {
        let record = record
            .map_err(|error| wrong(path, format!("row {i} {}", told_of_row(&error, &headers))))?;
        let row = record.deserialize(Some(&headers));
        let row = row.map_err(|error| told_of_row(&error, &headers));
        row.and_then(|row| take(i, row)).map_err(|problem| {
            wrong(path, format!("row {i}{} {problem}", id_of_row(&record, &headers)))
        })?;
    }
    Ok(())
}

/// Columns that name a row, by themselves or together.
const ID_COLUMNS: [&str; 5] = ["id", "video_id", "youtube_id", "video", "qid"];

fn id_of_row(record: &csv::StringRecord, headers: &csv::StringRecord) -> String {
    let cells = headers.iter().zip(record).filter(|(column, _)| ID_COLUMNS.contains(column));
    let named: Vec<String> = cells.map(|(column, cell)| format!("{column} {cell}")).collect();
    if named.is_empty() { String::new() } else { format!(" ({})", named.join(", ")) }
}

fn told_of_row(error: &csv::Error, headers: &csv::StringRecord) -> String {
    let csv::ErrorKind::Deserialize { err, .. } = error.kind() else {
        return format!("is wrong: {error}");
    };
    let column = err.field().and_then(|field| headers.get(field as usize));
    match column {
        Some(column) => format!("has a wrong `{column}`: {}", err.kind()),
        None => as_lacking(&err.kind().to_string()),
    }
}

pub(super) fn wrong(path: &str, problem: String) -> EvalError {
    EvalError::Annotations { path: Path::new(path).to_path_buf(), problem }
}

/// Whether people's answers are there for all entries or for none: half a file of answers is a mistake.
#[derive(Default)]
pub(super) struct Labelled {
    with: usize,
    without: Vec<String>,
}

impl Labelled {
    pub(super) fn note(&mut self, id: &str, has_truth: bool) {
        if has_truth {
            self.with += 1;
        } else {
            self.without.push(id.to_owned());
        }
    }

    /// # Errors
    /// When some entries have their `field` and others have not.
    pub(super) fn check(&self, path: &str, field: &str) -> Result<(), EvalError> {
        if self.with == 0 || self.without.is_empty() {
            return Ok(());
        }
        let (n, named) = (self.without.len(), some_of(&self.without));
        Err(wrong(path, format!("{n} entries have no `{field}`, others do: {named}")))
    }
}
