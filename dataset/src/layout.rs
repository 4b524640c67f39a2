//! Corpora that other programs wrote, read as they are.
//!
//! Each layout numbers the rows of its files, sorted by name, and makes one row of a corpus of any of
//! them. Nothing is converted: a file is opened once for its index, and a row is read from its
//! place. Rows that the other program marks as failed have no number.

mod image_source;
mod lines;
mod mmc4;
mod obelics;
mod pairs;
mod parquet_file;
mod texts;
mod webdataset;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::sha256_hex;
use crate::layout::lines::LineFiles;
use crate::{CorpusError, CorpusKind, CorpusStore, DiskCacheConfig, Manifest, Row, ShardEntry};

/// Who wrote a corpus, and what must be known to read it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "format", rename_all = "snake_case", deny_unknown_fields)]
pub enum Layout {
    /// A corpus of this project.
    #[default]
    Corpus,
    /// Parquet files of img2dataset: images that it could fetch, with their captions.
    Img2dataset {},
    /// Tar files of webdataset, such as img2dataset writes by default: members with one name before
    /// the first dot are a pair, its caption in `.txt` or under `caption` in `.json`.
    Webdataset {},
    /// Parquet files of Hugging Face `datasets` with a column of images and one of texts.
    HuggingFace {
        /// Name of the column of images.
        #[serde(default = "image_column")]
        image: String,
        /// Name of the column of texts; the first of a list of texts is taken.
        #[serde(default = "text_column")]
        text: String,
        /// How the names of the files begin that are read, such as `data/train-`; all where it is empty.
        #[serde(default)]
        files: String,
    },
    /// Parquet files of OBELICS: texts and images of pages, the images in the files or as URLs.
    Obelics {
        /// Where the images of URLs are: a corpus of pairs that have these URLs, or a folder with
        /// objects that are named by the SHA-256 of the URL, in hexadecimal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        images: Option<String>,
        /// What becomes of a page that lacks an image.
        #[serde(default)]
        missing: MissingImage,
    },
    /// JSON lines of mmc4: each image stands before the sentence that it matches.
    Mmc4 {
        /// Where the images are: a corpus of pairs that have their URLs, or a folder with objects
        /// that are named by `image_name`.
        images: String,
        /// Images that match less well are left out. `OpenFlamingo`: 0.24.
        #[serde(default)]
        similarity_min: f64,
        /// What becomes of a page that lacks an image.
        #[serde(default)]
        missing: MissingImage,
    },
    /// Plain text files, `.txt`.
    TextFiles {
        /// The line that stands between documents, without white space around it; a blank line by default.
        #[serde(default)]
        separator: String,
    },
    /// JSON lines, `.jsonl`, with a text each.
    JsonLines {
        /// Its key.
        #[serde(default = "text_column")]
        text: String,
    },
    /// Parquet files with a column of texts.
    TextColumn {
        /// Name of the column; the first of a list of texts is taken.
        #[serde(default = "text_column")]
        text: String,
        /// How the names of the files begin that are read; all where it is empty.
        #[serde(default)]
        files: String,
    },
}

/// What becomes of a page one of whose images could not be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MissingImage {
    /// The page is a corrupt row.
    #[default]
    Corrupt,
    /// The page stays without the image, if others are left.
    LeaveOut,
}

fn image_column() -> String {
    "image".to_owned()
}

fn text_column() -> String {
    "text".to_owned()
}

impl Layout {
    /// Whether it is a corpus of this project.
    pub fn is_own(&self) -> bool {
        *self == Self::Corpus
    }

    /// The same with the places of its images changed by `locate`.
    #[must_use]
    pub fn located(mut self, locate: impl Fn(&str) -> String) -> Self {
        if let Self::Obelics { images: Some(images), .. } | Self::Mmc4 { images, .. } = &mut self {
            *images = locate(images);
        }
        self
    }

    fn extension(&self) -> &'static str {
        match self {
            Self::Webdataset {} => "tar",
            Self::Mmc4 { .. } | Self::JsonLines { .. } => "jsonl",
            Self::TextFiles { .. } => "txt",
            _ => "parquet",
        }
    }

    fn kind(&self) -> CorpusKind {
        match self {
            Self::Img2dataset {} | Self::Webdataset {} | Self::HuggingFace { .. } => {
                CorpusKind::ImageText
            }
            _ => CorpusKind::Interleaved,
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Corpus => "this project",
            Self::Img2dataset {} => "img2dataset",
            Self::Webdataset {} => "webdataset",
            Self::HuggingFace { .. } => "Hugging Face datasets",
            Self::Obelics { .. } => "OBELICS",
            Self::Mmc4 { .. } => "mmc4",
            Self::TextFiles { .. } | Self::JsonLines { .. } | Self::TextColumn { .. } => {
                "a writer of texts"
            }
        })
    }
}

/// The rows of the files of a layout.
pub(crate) trait ForeignRows: Send + Sync {
    /// Row `row_idx` of a file; `place` has the words for messages.
    fn read(&self, file: usize, row_idx: u64, place: &Place) -> Result<Row, CorpusError>;
}

/// Where a row is, for messages.
pub(crate) struct Place<'a> {
    pub(crate) location: &'a str,
    /// Number of the row in the corpus.
    pub(crate) row: u64,
    /// Whether the bytes of images are wanted.
    pub(crate) with_images: bool,
}

impl Place<'_> {
    pub(crate) fn wrong(&self, column: &str, problem: impl Into<String>) -> CorpusError {
        CorpusError::Row {
            location: self.location.to_owned(),
            row: self.row,
            column: column.to_owned(),
            problem: problem.into(),
        }
    }
}

/// One file of a layout as its index tells it.
struct IndexedFile<T> {
    /// What is needed to read its rows.
    rows: T,
    n_rows: u64,
    /// Names what is in it, as far as an index can.
    sha256: String,
}

/// Opens the files below a location: their rows, and what a manifest would say of them.
pub(crate) fn open(
    store: &CorpusStore,
    layout: &Layout,
    cache: Option<&DiskCacheConfig>,
) -> Result<(Box<dyn ForeignRows>, Manifest), CorpusError> {
    let suffix = format!(".{}", layout.extension());
    let mut files = store.list("")?;
    let prefix = match layout {
        Layout::HuggingFace { files, .. } | Layout::TextColumn { files, .. } => files,
        _ => "",
    };
    files.retain(|file| file.starts_with(prefix) && file.ends_with(&suffix));
    if files.is_empty() {
        let problem = format!("no file {prefix}*{suffix}, as {layout} writes them");
        return Err(CorpusError::Layout { object: store.location().to_owned(), problem });
    }
    let mut shards = Vec::with_capacity(files.len());
    let mut images_sha256 = String::new();
    let mut open_images = |location: &str| {
        let images = image_source::ImageSource::open(location, cache)?;
        images_sha256 = images.sha256();
        Ok::<_, CorpusError>(images)
    };
    let rows: Box<dyn ForeignRows> = match layout {
        Layout::Corpus => unreachable!("opened by its manifest"),
        Layout::Img2dataset {} => {
            let columns = pairs::Columns::img2dataset();
            let indexed = index_all(store, &files, &mut shards, |file| columns.index(store, file))?;
            Box::new(pairs::PairFiles::new(indexed))
        }
        Layout::HuggingFace { image, text, .. } => {
            let columns = pairs::Columns::hugging_face(image, text);
            let indexed = index_all(store, &files, &mut shards, |file| columns.index(store, file))?;
            Box::new(pairs::PairFiles::new(indexed))
        }
        Layout::Webdataset {} => {
            let indexed =
                index_all(store, &files, &mut shards, |file| webdataset::index(store, file))?;
            Box::new(webdataset::TarFiles::new(store, files, indexed))
        }
        Layout::Obelics { images, missing } => {
            let images = images.as_deref().map(&mut open_images).transpose()?;
            let indexed =
                index_all(store, &files, &mut shards, |file| obelics::index(store, file))?;
            Box::new(obelics::PageFiles::new(indexed, images, *missing))
        }
        Layout::Mmc4 { images, similarity_min, missing } => {
            let images = open_images(images)?;
            let lines = index_all(store, &files, &mut shards, |file| lines::index(store, file))?;
            let files = LineFiles { store: store.clone(), files, lines };
            Box::new(mmc4::Pages {
                files,
                images,
                similarity_min: *similarity_min,
                missing: *missing,
            })
        }
        Layout::TextFiles { separator } => {
            let find = |file: &str| lines::index_documents(store, file, separator);
            let lines = index_all(store, &files, &mut shards, find)?;
            Box::new(texts::PlainTexts(LineFiles { store: store.clone(), files, lines }))
        }
        Layout::JsonLines { text } => {
            let lines = index_all(store, &files, &mut shards, |file| lines::index(store, file))?;
            let files = LineFiles { store: store.clone(), files, lines };
            Box::new(texts::JsonTexts { files, key: text.clone() })
        }
        Layout::TextColumn { text, .. } => {
            let find = |file: &str| texts::index_column(store, file, text);
            let indexed = index_all(store, &files, &mut shards, find)?;
            Box::new(texts::ColumnTexts::new(indexed, text))
        }
    };
    // Not where the images are, but which.
    let settings = serde_json::to_string(&layout.clone().located(|_| images_sha256.clone()));
    let settings = settings
        .map_err(|source| CorpusError::Manifest { object: store.location().to_owned(), source })?;
    Ok((rows, Manifest::new(layout.kind(), sha256_hex(settings.as_bytes()), shards)))
}

/// Indexes all files, on all processors.
fn index_all<T: Send>(
    store: &CorpusStore,
    files: &[String],
    shards: &mut Vec<ShardEntry>,
    index: impl Fn(&str) -> Result<IndexedFile<T>, CorpusError> + Sync,
) -> Result<Vec<T>, CorpusError> {
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let each = files.len().div_ceil(n_threads).max(1);
    let sized = |file: &String| Ok((store.size(file)?, index(file)?));
    let indexed = std::thread::scope(|scope| {
        let work = |part: &[String]| part.iter().map(sized).collect::<Result<Vec<_>, _>>();
        let threads = files.chunks(each).map(|part| scope.spawn(move || work(part)));
        let threads: Vec<_> = threads.collect();
        let parts = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        parts.collect::<Result<Vec<_>, CorpusError>>()
    })?;
    let mut all = Vec::with_capacity(files.len());
    for (file, (bytes, found)) in files.iter().zip(indexed.into_iter().flatten()) {
        shards.push(ShardEntry {
            file: file.clone(),
            rows: found.n_rows,
            // Not known without reading the rows.
            images: 0,
            words: 0,
            bytes,
            sha256: found.sha256,
        });
        all.push(found.rows);
    }
    Ok(all)
}
