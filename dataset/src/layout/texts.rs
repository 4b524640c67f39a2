//! Texts alone, for language models: plain text files, JSON lines, and a column of Parquet files. A row is
//! a page without images.

use arrow::array::StructArray;
use serde_json::Value;

use super::lines::LineFiles;
use super::obelics::page;
use super::parquet_file::{ParquetFile, text_of};
use super::{ForeignRows, IndexedFile, Place};
use crate::block_cache::BlockCache;
use crate::{CorpusError, CorpusStore, Row, Slot};

fn row(id: String, text: String) -> Row {
    page(id, String::new(), vec![Slot::Text(text)], None)
}

/// Documents of plain text files.
pub(super) struct PlainTexts(pub(super) LineFiles);

impl ForeignRows for PlainTexts {
    fn read(&self, file: usize, row_idx: u64, place: &Place) -> Result<Row, CorpusError> {
        let bytes = self.0.read(file, row_idx)?;
        let text = std::str::from_utf8(bytes.trim_ascii());
        let text = text.map_err(|e| place.wrong("text", format!("it is not UTF-8: {e}")))?;
        Ok(row(self.0.id(file, row_idx), text.to_owned()))
    }
}

/// Texts under a key of JSON lines.
pub(super) struct JsonTexts {
    pub(super) files: LineFiles,
    pub(super) key: String,
}

impl ForeignRows for JsonTexts {
    fn read(&self, file: usize, row_idx: u64, place: &Place) -> Result<Row, CorpusError> {
        let line = self.files.read(file, row_idx)?;
        let line: Value =
            serde_json::from_slice(&line).map_err(|e| place.wrong("line", e.to_string()))?;
        match line.get(&self.key) {
            Some(Value::String(text)) => Ok(row(self.files.id(file, row_idx), text.clone())),
            _ => Err(place.wrong(&self.key, "it is not a text")),
        }
    }
}

/// Opens a Parquet file for one of its columns.
pub(super) fn index_column(
    store: &CorpusStore,
    file: &str,
    column: &str,
) -> Result<IndexedFile<ParquetFile>, CorpusError> {
    let file = ParquetFile::open(store, file)?;
    if file.column(column).is_none() {
        let found = file.column_names().join("`, `");
        return Err(file.problem(format!("no column `{column}` among `{found}`")));
    }
    let (n_rows, sha256) = (file.n_rows(), file.sha256());
    Ok(IndexedFile { rows: file.with_columns(&[column], ""), n_rows, sha256 })
}

/// Texts of a column of Parquet files.
pub(super) struct ColumnTexts {
    files: Vec<ParquetFile>,
    column: String,
    texts: BlockCache<StructArray>,
}

impl ColumnTexts {
    pub(super) fn new(files: Vec<ParquetFile>, column: &str) -> Self {
        Self { files, column: column.to_owned(), texts: BlockCache::default() }
    }
}

impl ForeignRows for ColumnTexts {
    fn read(&self, file: usize, row_idx: u64, place: &Place) -> Result<Row, CorpusError> {
        let parquet = &self.files[file];
        let Some((group, at)) = parquet.place_of(row_idx) else {
            return Err(parquet.problem(format!("its row groups lack row {row_idx}")));
        };
        let texts = parquet.texts(file, group, at, &self.texts)?;
        let text = text_of(&texts, &self.column);
        let text = text.ok_or_else(|| place.wrong(&self.column, "it is null, or no text"))?;
        Ok(row(format!("{}:{row_idx}", parquet.file()), text))
    }
}
