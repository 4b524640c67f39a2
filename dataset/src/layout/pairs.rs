//! Pairs in Parquet files of img2dataset and of Hugging Face `datasets`.

use arrow::array::StructArray;

use super::image_source::no_image;
use super::parquet_file::{ParquetFile, number_of, text_of};
use super::{ForeignRows, IndexedFile, Place};
use crate::block_cache::BlockCache;
use crate::digest::sha256_hex;
use crate::{CorpusError, CorpusStore, EncodedImage, ImageText, Row};

/// Names that img2dataset gives to the column of images: its `encode_format`.
const ENCODE_FORMATS: [&str; 3] = ["jpg", "png", "webp"];

/// The columns of a pair.
pub(super) struct Columns {
    /// The first one that a file has.
    image: Vec<String>,
    text: String,
    /// The column that says whether a row is whole, with the word for it.
    status: Option<(&'static str, &'static str)>,
}

impl Columns {
    pub(super) fn img2dataset() -> Self {
        Self {
            image: ENCODE_FORMATS.map(str::to_owned).to_vec(),
            text: "caption".to_owned(),
            status: Some(("status", "success")),
        }
    }

    pub(super) fn hugging_face(image: &str, text: &str) -> Self {
        Self { image: vec![image.to_owned()], text: text.to_owned(), status: None }
    }

    pub(super) fn index(
        &self,
        store: &CorpusStore,
        file: &str,
    ) -> Result<IndexedFile<PairFile>, CorpusError> {
        let file = ParquetFile::open(store, file)?;
        let has = |name: &String| file.column(name).is_some();
        let Some(image) = self.image.iter().find(|name| has(name)) else {
            let (wanted, found) = (self.image.join("` or `"), file.column_names().join("`, `"));
            return Err(file.problem(format!("no column `{wanted}` with images among `{found}`")));
        };
        if !has(&self.text) {
            let found = file.column_names().join("`, `");
            return Err(file.problem(format!("no column `{}` among `{found}`", self.text)));
        }
        let mut texts = vec![self.text.as_str(), "key", "url", "sha256"];
        texts.extend(["width", "height", "original_width", "original_height"]);
        let whole = match self.status {
            Some((column, word)) if file.column(column).is_some() => {
                let status = file.all_texts(column)?;
                let whole = (0..).zip(&status).filter(|(_, s)| s.as_deref() == Some(word));
                Some(whole.map(|(row, _)| row).collect::<Vec<u32>>())
            }
            _ => None,
        };
        let n_rows = whole.as_ref().map_or(file.n_rows(), |rows| rows.len() as u64);
        let numbers = whole.iter().flatten().map(u32::to_string).collect::<Vec<_>>().join(" ");
        let sha256 = sha256_hex(format!("{} {numbers}", file.sha256()).as_bytes());
        let file = file.with_columns(&texts, image);
        let rows = PairFile { file, whole, text: self.text.clone() };
        Ok(IndexedFile { rows, n_rows, sha256 })
    }
}

pub(super) struct PairFile {
    file: ParquetFile,
    /// The rows that are whole, where not all are.
    whole: Option<Vec<u32>>,
    text: String,
}

pub(super) struct PairFiles {
    files: Vec<PairFile>,
    texts: BlockCache<StructArray>,
}

impl PairFiles {
    pub(super) fn new(files: Vec<PairFile>) -> Self {
        Self { files, texts: BlockCache::default() }
    }
}

impl ForeignRows for PairFiles {
    fn read(&self, file: usize, row_idx: u64, place: &Place) -> Result<Row, CorpusError> {
        let PairFile { file: parquet, whole, text } = &self.files[file];
        let row_idx = whole.as_ref().map_or(row_idx, |rows| u64::from(rows[row_idx as usize]));
        let Some((group, at)) = parquet.place_of(row_idx) else {
            return Err(parquet.problem(format!("its row groups lack row {row_idx}")));
        };
        let texts = parquet.texts(file, group, at, &self.texts)?;
        let caption = text_of(&texts, text).ok_or_else(|| place.wrong(text, "it is null"))?;
        let image = if place.with_images {
            parquet.images(group, at)?.into_iter().next().flatten()
        } else {
            Some(no_image())
        };
        let image = image.ok_or_else(|| place.wrong("image", "it is null"))?;
        let side =
            |column: &str| i32::try_from(number_of(&texts, column).unwrap_or(0)).unwrap_or(0);
        Ok(Row::ImageText(ImageText {
            key: text_of(&texts, "key").unwrap_or_else(|| format!("{}:{row_idx}", parquet.file())),
            url: text_of(&texts, "url"),
            caption,
            image: EncodedImage { path: image.path, bytes: image.bytes },
            width: side("width"),
            height: side("height"),
            original_width: side("original_width"),
            original_height: side("original_height"),
            sha256: text_of(&texts, "sha256").unwrap_or_default(),
            phash: 0,
            source: Some(parquet.name()),
            scores: Vec::new(),
            warc: None,
        }))
    }
}
