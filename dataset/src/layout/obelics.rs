//! Pages in Parquet files of OBELICS: `texts` and `images` of the same length, of which at each place
//! one is null, and `general_metadata` in JSON.

use arrow::array::{Array, StructArray};
use arrow::datatypes::DataType;
use serde_json::Value;

use super::image_source::{ImageSource, meta, no_image};
use super::parquet_file::{ParquetFile, text_of, texts_of};
use super::{ForeignRows, IndexedFile, MissingImage, Place};
use crate::block_cache::BlockCache;
use crate::{CorpusError, CorpusStore, EncodedImage, Interleaved, Row, Slot, WarcPlace};

pub(super) struct PageFile {
    file: ParquetFile,
    /// Whether images are URLs.
    by_url: bool,
}

pub(super) fn index(store: &CorpusStore, file: &str) -> Result<IndexedFile<PageFile>, CorpusError> {
    let file = ParquetFile::open(store, file)?;
    for name in ["texts", "images"] {
        if !matches!(file.column(name), Some(DataType::List(_) | DataType::LargeList(_))) {
            let found = file.column_names().join("`, `");
            return Err(file.problem(format!("no list `{name}` among its columns `{found}`")));
        }
    }
    let by_url = matches!(file.column("images"), Some(DataType::List(e) | DataType::LargeList(e))
        if !matches!(e.data_type(), DataType::Struct(_) | DataType::Binary));
    let texts = ["texts", "general_metadata"];
    // URLs are texts like others.
    let texts = if by_url { [&texts[..], &["images"]].concat() } else { texts.to_vec() };
    let (n_rows, sha256) = (file.n_rows(), file.sha256());
    let rows = PageFile { file: file.with_columns(&texts, "images"), by_url };
    Ok(IndexedFile { rows, n_rows, sha256 })
}

/// An image as a page has it.
struct PageImage {
    url: Option<String>,
    /// None where it is text that stands there, or the image could not be fetched.
    image: Option<EncodedImage>,
}

pub(super) struct PageFiles {
    files: Vec<PageFile>,
    images: Option<ImageSource>,
    missing: MissingImage,
    texts: BlockCache<StructArray>,
}

impl PageFiles {
    pub(super) fn new(
        files: Vec<PageFile>,
        images: Option<ImageSource>,
        missing: MissingImage,
    ) -> Self {
        Self { files, images, missing, texts: BlockCache::default() }
    }

    /// The images of a row.
    fn images(
        &self,
        file: usize,
        group: usize,
        at: usize,
        place: &Place,
    ) -> Result<Vec<PageImage>, CorpusError> {
        let PageFile { file: parquet, by_url } = &self.files[file];
        if !place.with_images {
            return Ok(Vec::new());
        }
        if !by_url {
            let images = parquet.images(group, at)?.into_iter();
            return Ok(images.map(|image| PageImage { url: None, image }).collect());
        }
        let Some(source) = &self.images else {
            return Err(parquet.problem("its images are URLs: say in `images` where they are"));
        };
        let texts = parquet.texts(file, group, at, &self.texts)?;
        let urls = texts.column_by_name("images").filter(|column| column.is_valid(0));
        let urls = urls.ok_or_else(|| place.wrong("images", "it is null"))?;
        let found = texts_of(urls).into_iter().map(|url| match url {
            Some(url) => {
                let image = source.find(&url, None, place)?;
                Ok(PageImage { url: Some(url), image })
            }
            None => Ok(PageImage { url: None, image: None }),
        });
        found.collect()
    }
}

impl ForeignRows for PageFiles {
    fn read(&self, file: usize, row_idx: u64, place: &Place) -> Result<Row, CorpusError> {
        let parquet = &self.files[file].file;
        let Some((group, at)) = parquet.place_of(row_idx) else {
            return Err(parquet.problem(format!("its row groups lack row {row_idx}")));
        };
        let columns = parquet.texts(file, group, at, &self.texts)?;
        let texts = columns.column_by_name("texts").filter(|column| column.is_valid(0));
        let texts = texts_of(texts.ok_or_else(|| place.wrong("texts", "it is null"))?);
        let mut images = self.images(file, group, at, place)?;
        if !place.with_images {
            // Where there is no text an image stands.
            let image = |text: &Option<String>| text.is_none().then(no_image);
            images = texts.iter().map(|text| PageImage { url: None, image: image(text) }).collect();
        }
        if texts.len() != images.len() {
            let problem =
                format!("{} texts and {} images, as many expected", texts.len(), images.len());
            return Err(place.wrong("images", problem));
        }
        let mut slots = Vec::with_capacity(texts.len());
        for (text, PageImage { url, image }) in texts.into_iter().zip(images) {
            match (text, image) {
                (Some(text), None) if url.is_none() => slots.push(Slot::Text(text)),
                (None, Some(image)) => slots.push(Slot::Image { image, meta: meta(url) }),
                (None, None) => self.missing.check(url.as_deref(), place)?,
                _ => return Err(place.wrong("texts", "a place is both text and image")),
            }
        }
        require_image(&slots, place)?;
        let known = text_of(&columns, "general_metadata");
        let known: Value =
            known.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default();
        let url = known["url"].as_str().unwrap_or_default().to_owned();
        let warc = known["warc_filename"].as_str().map(|filename| WarcPlace {
            filename: filename.to_owned(),
            offset: known["warc_record_offset"].as_i64().unwrap_or(0),
            length: known["warc_record_length"].as_i64().unwrap_or(0),
        });
        Ok(page(format!("{}:{row_idx}", parquet.file()), url, slots, warc))
    }
}

impl MissingImage {
    /// Fails where a page that lacks an image is corrupt.
    pub(super) fn check(self, url: Option<&str>, place: &Place) -> Result<(), CorpusError> {
        match self {
            Self::LeaveOut => Ok(()),
            Self::Corrupt => {
                let url = url.unwrap_or("(no URL)");
                Err(place.wrong("images", format!("{url} is not among the images")))
            }
        }
    }
}

/// Fails where no image is left of a page.
pub(super) fn require_image(slots: &[Slot], place: &Place) -> Result<(), CorpusError> {
    if slots.iter().any(Slot::is_image) {
        return Ok(());
    }
    Err(place.wrong("images", "none of the page's images is there"))
}

/// A page of which little is known.
pub(super) fn page(doc_id: String, url: String, slots: Vec<Slot>, warc: Option<WarcPlace>) -> Row {
    Row::Interleaved(Interleaved {
        doc_id,
        url,
        slots,
        title: None,
        lang: None,
        lang_score: None,
        warc,
        fetched_at_us: None,
    })
}
