//! The folder of METEOR 1.5: the program `meteor-1.5.jar`, of which the word lists are read, and the table of
//! paraphrases beside it. None of its code runs.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::{DeflateDecoder, MultiGzDecoder};
use zip::{CompressionMethod, ZipArchive};

use crate::error::EvalError;

/// Names the folder where no option does.
pub(crate) const FOLDER_VARIABLE: &str = "METEOR_DATA";

/// The program, which is a zip archive.
const PROGRAM: &str = "meteor-1.5.jar";

/// The table of English paraphrases.
const TABLE: &str = "data/paraphrase-en.gz";

/// Longest word list that is read; that of synonyms has 3.7 MB.
const LIST_BYTES_MAX: u64 = 64 << 20;

/// The program's file, opened, and where the table is.
#[derive(Debug)]
pub(crate) struct Archive {
    path: PathBuf,
    program: ZipArchive<BufReader<File>>,
    table: PathBuf,
}

impl Archive {
    /// Opens a folder; without one, that which `METEOR_DATA` names.
    pub(crate) fn open(folder: Option<&Path>) -> Result<Self, EvalError> {
        let named = std::env::var_os(FOLDER_VARIABLE).map(PathBuf::from);
        let folder = folder.map(Path::to_path_buf).or(named).ok_or(EvalError::NoMeteorFolder)?;
        let [path, table] = [PROGRAM, TABLE].map(|file| folder.join(file));
        let absent = |path: &Path, source| EvalError::NoMeteor { path: path.to_path_buf(), source };
        let program = File::open(&path).map_err(|source| absent(&path, source))?;
        File::open(&table).map_err(|source| absent(&table, source))?;
        let program = ZipArchive::new(BufReader::new(program)).map_err(|error| {
            EvalError::Meteor { path: path.clone(), problem: error.to_string() }
        })?;
        Ok(Self { path, program, table })
    }

    /// A word list of the program.
    pub(crate) fn list(&mut self, name: &str) -> Result<String, EvalError> {
        let path = self.path.join(name);
        let wrong = |problem| EvalError::Meteor { path: path.clone(), problem };
        let index = self.program.index_for_name(name);
        let index = index.ok_or_else(|| wrong("there is none in the archive".to_owned()))?;
        // Compressed lists are inflated here: the archives that are read elsewhere have nothing compressed.
        let entry = self.program.by_index_raw(index).map_err(|error| wrong(error.to_string()))?;
        let (method, mut text) = (entry.compression(), String::new());
        let read = match method {
            CompressionMethod::Stored => entry.take(LIST_BYTES_MAX).read_to_string(&mut text),
            CompressionMethod::DEFLATE => {
                DeflateDecoder::new(entry).take(LIST_BYTES_MAX).read_to_string(&mut text)
            }
            other => return Err(wrong(format!("it is compressed by {other}, expected deflate"))),
        };
        read.map_err(EvalError::file("read", &path))?;
        if text.len() as u64 == LIST_BYTES_MAX {
            return Err(wrong(format!("it has more than {LIST_BYTES_MAX} bytes")));
        }
        Ok(text)
    }

    /// The entries of a list of two lines each: a word, and what the list says of it.
    pub(crate) fn entries<'a>(
        &self,
        name: &str,
        text: &'a str,
    ) -> Result<impl Iterator<Item = (&'a str, &'a str)> + use<'a>, EvalError> {
        let n_lines = text.lines().count();
        if !n_lines.is_multiple_of(2) {
            return Err(
                self.wrong_list(name, format!("it ends within an entry, at line {n_lines}"))
            );
        }
        let mut lines = text.lines();
        Ok(std::iter::from_fn(move || Some((lines.next()?, lines.next()?))))
    }

    /// An error about a list.
    pub(crate) fn wrong_list(&self, name: &str, problem: String) -> EvalError {
        EvalError::Meteor { path: self.path.join(name), problem }
    }

    /// The table's path, and its text.
    pub(crate) fn table(&self) -> Result<(&Path, impl Read + use<>), EvalError> {
        let file = File::open(&self.table).map_err(EvalError::file("open", &self.table))?;
        Ok((&self.table, MultiGzDecoder::new(BufReader::with_capacity(TABLE_BUFFER_BYTES, file))))
    }
}

/// The table is read in pieces of this size.
const TABLE_BUFFER_BYTES: usize = 1 << 18;
