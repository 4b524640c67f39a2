//! A corpus in the forms that other programs read: webdataset archives, JSON lines beside image
//! files, and the interleaved rows of `NeMo` Curator.
//!
//! Rows are read one row group at a time and written at once, in the order of the corpus: the same
//! corpus gives the same bytes. Everything goes to a folder of another name, which is renamed when
//! all of it is on the disk.

mod jsonl;
mod nemo;
mod webdataset;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use flamingo_dataset::{Corpus, EncodedImage, Row, Slot};
use serde_json::{Value, json};

use crate::error::IngestError;
use crate::meter::Meter;
use crate::progress::{Phase, Progress};
use crate::source::is_url;

/// Rows of one file of an export, unless told otherwise (img2dataset: 10,000).
pub const FILE_ROWS: u64 = 10_000;
/// What says that a folder is an export, finished or not.
const EXPORT_FILE: &str = "export.json";

/// A form of export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Tar archives as img2dataset writes them: `KEY.jpg`, `KEY.txt`, `KEY.json`; for documents
    /// `KEY.json` with the slots and `KEY.N.jpg`, for clips `KEY.N.jpg`.
    Webdataset,
    /// Tar archives with one `KEY.json` for each document, its images inside, as `OpenFlamingo`'s loader
    /// of mmc4 reads them.
    Mmc4,
    /// JSON lines with the columns of OBELICS, images as files.
    Jsonl,
    /// Parquet with a row for each text and image, as `NeMo` Curator's interleaved stages read them.
    Nemo,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Webdataset => "webdataset",
            Self::Mmc4 => "mmc4",
            Self::Jsonl => "jsonl",
            Self::Nemo => "nemo",
        }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exported {
    /// Rows of the corpus.
    pub rows: u64,
    /// Images, or frames.
    pub images: u64,
    /// Files, images that are files of their own not counted.
    pub files: u64,
    /// Bytes of all files.
    pub bytes: u64,
}

/// A file of an export while it is written, and one row after another goes into it.
trait Writer {
    /// Adds row `row_idx` of the corpus.
    fn add(&mut self, row_idx: u64, row: &Row) -> io::Result<()>;

    /// Ends the file; the names of what was written, relative to the export, and their bytes.
    fn finish(self: Box<Self>) -> io::Result<u64>;
}

/// Writes the corpus at `location` as `format` into the new folder `out`, `file_rows` rows a file.
///
/// # Errors
/// When the corpus cannot be read or is of a kind that the format has no place for, `out` exists, or
/// the disk refuses a write. Then nothing stays at `out`.
pub fn export(
    location: &str,
    format: Format,
    out: &str,
    file_rows: u64,
) -> Result<Exported, IngestError> {
    let corpus = Corpus::open(location)?;
    if format == Format::Mmc4 && corpus.kind() != flamingo_dataset::CorpusKind::Interleaved {
        let kind = corpus.kind().name();
        return Err(IngestError::ExportKind { format: format.name(), kind });
    }
    let folder = PathBuf::from(out.strip_prefix("file://").unwrap_or(out));
    if is_url(&folder.to_string_lossy()) || folder.exists() {
        return Err(IngestError::ExportExists { out: out.to_owned() });
    }
    let partial = partial_name(&folder);
    let failed = |source| IngestError::Write { path: partial.clone(), source };
    clear(&partial)?;
    fs::create_dir_all(&partial).map_err(failed)?;
    let job = Job { corpus: &corpus, format, folder: &partial, file_rows };
    // The marker comes first, so that what is left of a killed export is known by it.
    let written = job.mark(None).and_then(|()| job.write());
    let published = written.and_then(|exported| {
        job.mark(Some(&exported))?;
        sync(&partial).and_then(|()| fs::rename(&partial, &folder)).map_err(failed)?;
        Ok(exported)
    });
    if published.is_err() {
        // The error that matters is the first one.
        let _ = fs::remove_dir_all(&partial);
    }
    published
}

/// `.NAME.partial` beside the folder.
fn partial_name(folder: &Path) -> PathBuf {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    folder.with_file_name(format!(".{name}.partial"))
}

/// Removes what an export that was killed left behind, and nothing else.
fn clear(partial: &Path) -> Result<(), IngestError> {
    if !partial.exists() {
        return Ok(());
    }
    if !partial.join(EXPORT_FILE).exists() {
        return Err(IngestError::ExportExists { out: partial.display().to_string() });
    }
    fs::remove_dir_all(partial)
        .map_err(|source| IngestError::Write { path: partial.to_owned(), source })
}

/// Flushes a folder and its files to the disk.
fn sync(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { sync(&path)? } else { File::open(&path)?.sync_all()? }
    }
    File::open(folder)?.sync_all()
}

struct Job<'a> {
    corpus: &'a Corpus,
    format: Format,
    folder: &'a Path,
    file_rows: u64,
}

impl Job<'_> {
    fn failed(&self) -> impl Fn(io::Error) -> IngestError + '_ {
        |source| IngestError::Write { path: self.folder.to_owned(), source }
    }

    /// Writes what the export is of.
    fn mark(&self, exported: Option<&Exported>) -> Result<(), IngestError> {
        let manifest = self.corpus.manifest();
        let marker = json!({
            "format": self.format.name(),
            "kind": manifest.kind.name(),
            "manifest_sha256": manifest.sha256(),
            "rows": exported.map(|exported| exported.rows),
            "images": exported.map(|exported| exported.images),
            "files": exported.map(|exported| exported.files),
        });
        fs::write(self.folder.join(EXPORT_FILE), format!("{marker:#}\n")).map_err(self.failed())
    }

    fn write(&self) -> Result<Exported, IngestError> {
        let mut exported = Exported::default();
        let meter = Arc::new(Meter::default());
        meter.items_expected.store(self.corpus.n_rows(), Relaxed);
        let _progress = Progress::start(Phase::Work, "rows", &meter);
        let mut writer: Option<Box<dyn Writer>> = None;
        for row in self.corpus.scan() {
            let row = row?;
            if exported.rows % self.file_rows == 0 {
                self.close(writer.take(), &mut exported)?;
                let opened = self.open(exported.rows / self.file_rows);
                writer = Some(opened.map_err(self.failed())?);
            }
            let open = writer.as_mut().expect("a file is open from the first row on");
            open.add(exported.rows, &row).map_err(self.failed())?;
            exported.rows += 1;
            exported.images += row.n_images() as u64;
            meter.items.fetch_add(1, Relaxed);
            meter.rows.fetch_add(1, Relaxed);
            meter.images.fetch_add(row.n_images() as u64, Relaxed);
            meter.bytes_fetched.fetch_add(row.stored_bytes() as u64, Relaxed);
        }
        self.close(writer, &mut exported)?;
        Ok(exported)
    }

    fn open(&self, i: u64) -> io::Result<Box<dyn Writer>> {
        Ok(match self.format {
            Format::Webdataset => Box::new(webdataset::Samples::create(self.folder, i)?),
            Format::Mmc4 => Box::new(webdataset::Documents::create(self.folder, i)?),
            Format::Jsonl => Box::new(jsonl::Lines::create(self.folder, i)?),
            Format::Nemo => Box::new(nemo::Items::create(self.folder, i)?),
        })
    }

    fn close(
        &self,
        writer: Option<Box<dyn Writer>>,
        exported: &mut Exported,
    ) -> Result<(), IngestError> {
        let Some(writer) = writer else { return Ok(()) };
        exported.bytes += writer.finish().map_err(self.failed())?;
        exported.files += 1;
        Ok(())
    }
}

/// A file that counts its bytes.
struct Counted {
    file: io::BufWriter<File>,
    bytes: u64,
}

impl Counted {
    fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { file: io::BufWriter::new(File::create(path)?), bytes: 0 })
    }
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The name of a row in an export: its number, which is unique and without the dots and slashes that
/// keys and addresses have; the key itself is in the JSON.
fn name(row_idx: u64) -> String {
    format!("{row_idx:09}")
}

/// The usual ending of an image file.
fn extension(image: &EncodedImage) -> &'static str {
    match image::guess_format(&image.bytes) {
        Ok(image::ImageFormat::Jpeg) => "jpg",
        Ok(image::ImageFormat::Png) => "png",
        Ok(image::ImageFormat::WebP) => "webp",
        Ok(format) => format.extensions_str().first().copied().unwrap_or("bin"),
        Err(_) => "bin",
    }
}

/// The media type of an image file.
fn mime(image: &EncodedImage) -> &'static str {
    image::guess_format(&image.bytes).map_or("application/octet-stream", |f| f.to_mime_type())
}

/// What is known of a row beside its texts and images, as one JSON object.
fn about(row: &Row) -> Value {
    let place = |warc: Option<&flamingo_dataset::WarcPlace>| {
        let warc = warc.cloned();
        (
            warc.as_ref().map(|w| w.filename.clone()),
            warc.as_ref().map(|w| w.offset),
            warc.map(|w| w.length),
        )
    };
    match row {
        Row::Interleaved(page) => {
            let (filename, offset, length) = place(page.warc.as_ref());
            json!({
                "url": page.url, "doc_id": page.doc_id, "title": page.title, "lang": page.lang,
                "lang_score": page.lang_score, "fetched_at_us": page.fetched_at_us,
                "warc_filename": filename, "warc_record_offset": offset,
                "warc_record_length": length,
            })
        }
        Row::ImageText(pair) => {
            let (filename, offset, length) = place(pair.warc.as_ref());
            let scores: serde_json::Map<_, _> =
                pair.scores.iter().map(|(name, score)| (name.clone(), json!(score))).collect();
            json!({
                "key": pair.key, "url": pair.url, "caption": pair.caption, "width": pair.width,
                "height": pair.height, "original_width": pair.original_width,
                "original_height": pair.original_height, "sha256": pair.sha256,
                "phash": format!("{:016x}", pair.phash), "source": pair.source, "scores": scores,
                "warc_filename": filename, "warc_record_offset": offset,
                "warc_record_length": length,
            })
        }
        Row::VideoText(clip) => json!({
            "key": clip.key, "url": clip.url, "caption": clip.caption, "frame_ms": clip.frame_ms,
            "start_ms": clip.start_ms, "end_ms": clip.end_ms, "duration_ms": clip.duration_ms,
            "width": clip.width, "height": clip.height, "codec": clip.codec, "sha256": clip.sha256,
        }),
    }
}

/// What is known of one image of a document, in OBELICS' words where it has them.
fn about_image(slot: &Slot, document_url: &str) -> Option<Value> {
    let Slot::Image { image, meta } = slot else { return None };
    Some(json!({
        "document_url": document_url, "src": meta.url, "alt_text": meta.alt,
        "original_width": meta.width, "original_height": meta.height,
        "format": extension(image), "sha256": meta.sha256, "phash": format!("{:016x}", meta.phash),
    }))
}
