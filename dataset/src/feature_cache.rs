//! What a frozen encoder made of images, kept as Parquet between steps, runs and machines.
//!
//! A feature is named by the SHA-256 of the pixels that the encoder read, so another image, another
//! augmentation or another normalisation is another feature, and lies in a folder that is named by
//! the encoder, since another encoder makes other numbers. The numbers come back bit by bit.
//!
//! New features are gathered and written as one file under another name, which is then renamed; a
//! killed process leaves no file that is not whole.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection,
    RowSelector,
};
use parquet::basic::{Compression, Encoding};
use parquet::file::metadata::PageIndexPolicy;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use sha2::{Digest, Sha256};

use crate::digest::{hex, sha256_hex};
use crate::{CorpusError, write_durably};

/// New features are written together once they have this many bytes.
const PART_BYTES: usize = 64 << 20;

/// A page holds one feature, which nearly always is larger.
const PAGE_BYTES: usize = 4096;

const KEY_COLUMN: &str = "pixels_sha256";
const FEATURE_COLUMN: &str = "features";

/// Features of one encoder.
#[derive(Debug)]
pub struct FeatureCache {
    folder: PathBuf,
    /// Numbers of one feature.
    n_values: usize,
    bytes_max: u64,
    bytes: u64,
    parts: Vec<Part>,
    stored: HashMap<String, Place>,
    /// Features that are in no file yet, in the order in which they came.
    new: Vec<(String, Vec<f32>)>,
    /// Their places among the new ones.
    new_places: HashMap<String, usize>,
}

#[derive(Debug)]
struct Part {
    path: PathBuf,
    metadata: ArrowReaderMetadata,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    part: usize,
    row: usize,
}

impl FeatureCache {
    /// Opens the features of the encoder that `encoder_sha256` names, below `folder`; each has
    /// `n_values` numbers. No more are added once the files have `bytes_max` bytes.
    ///
    /// # Errors
    /// When the folder cannot be made or read, or a file in it is not of such features.
    pub fn open(
        folder: &Path,
        encoder_sha256: &str,
        n_values: usize,
        bytes_max: u64,
    ) -> Result<Self, CorpusError> {
        let folder = folder.join(encoder_sha256);
        std::fs::create_dir_all(&folder).map_err(|e| failed(&folder, &e))?;
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(|e| failed(&folder, &e))? {
            let path = entry.map_err(|e| failed(&folder, &e))?.path();
            if path.extension().is_some_and(|extension| extension == "parquet") {
                files.push(path);
            }
        }
        files.sort();
        let mut cache = Self {
            folder,
            n_values,
            bytes_max,
            bytes: 0,
            parts: Vec::new(),
            stored: HashMap::new(),
            new: Vec::new(),
            new_places: HashMap::new(),
        };
        files.into_iter().try_for_each(|path| cache.add_part(path))?;
        Ok(cache)
    }

    /// Names the feature of some pixels.
    pub fn key(pixels: &[f32]) -> String {
        let mut hash = Sha256::new();
        let mut bytes = [0; 4096];
        for part in pixels.chunks(bytes.len() / 4) {
            for (bytes, number) in bytes.chunks_exact_mut(4).zip(part) {
                bytes.copy_from_slice(&number.to_le_bytes());
            }
            hash.update(&bytes[..4 * part.len()]);
        }
        hex(&hash.finalize())
    }

    /// The feature that `key` names, if it is there.
    ///
    /// # Errors
    /// When its file cannot be read any more.
    pub fn get(&self, key: &str) -> Result<Option<Vec<f32>>, CorpusError> {
        if let Some(place) = self.new_places.get(key) {
            return Ok(Some(self.new[*place].1.clone()));
        }
        let Some(Place { part, row }) = self.stored.get(key).copied() else { return Ok(None) };
        let Part { path, metadata } = &self.parts[part];
        let column = read_column(path, metadata, FEATURE_COLUMN, Some(row))?;
        let column = column.as_binary_opt::<i32>().filter(|column| column.len() == 1);
        let bytes = column.map(|column| column.value(0)).unwrap_or_default();
        if bytes.len() != 4 * self.n_values {
            let problem =
                format!("row {row} has {} bytes, {} expected", bytes.len(), 4 * self.n_values);
            return Err(failed(path, &problem));
        }
        let numbers = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Ok(Some(numbers.collect()))
    }

    /// Keeps a feature, unless it is there or the cache is full.
    ///
    /// # Errors
    /// When the features that have gathered cannot be written.
    ///
    /// # Panics
    /// When it has another number of values than the others.
    pub fn put(&mut self, key: String, feature: Vec<f32>) -> Result<(), CorpusError> {
        assert_eq!(feature.len(), self.n_values, "a feature of this encoder");
        let new_bytes = (4 * self.n_values * (self.new.len() + 1)) as u64;
        let is_there = self.stored.contains_key(&key) || self.new_places.contains_key(&key);
        if is_there || self.bytes + new_bytes > self.bytes_max {
            return Ok(());
        }
        self.new_places.insert(key.clone(), self.new.len());
        self.new.push((key, feature));
        if new_bytes as usize >= PART_BYTES { self.flush() } else { Ok(()) }
    }

    /// Writes the new features into a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn flush(&mut self) -> Result<(), CorpusError> {
        if self.new.is_empty() {
            return Ok(());
        }
        let keys: String = self.new.iter().map(|(key, _)| key.as_str()).collect();
        let name = format!("part-{}.parquet", &sha256_hex(keys.as_bytes())[..16]);
        let path = self.folder.join(name);
        let bytes = encode(&self.new).map_err(|e| failed(&path, &e))?;
        write_durably(&path, &bytes).map_err(|e| failed(&path, &e))?;
        self.new.clear();
        self.new_places.clear();
        self.add_part(path)
    }

    /// Features that can be had.
    pub fn n_features(&self) -> usize {
        self.stored.len() + self.new.len()
    }

    /// Reads the keys of a file.
    fn add_part(&mut self, path: PathBuf) -> Result<(), CorpusError> {
        let file = File::open(&path).map_err(|e| failed(&path, &e))?;
        self.bytes += file.metadata().map_err(|e| failed(&path, &e))?.len();
        let options = ArrowReaderOptions::new().with_offset_index_policy(PageIndexPolicy::Required);
        let metadata = ArrowReaderMetadata::load(&file, options).map_err(|e| failed(&path, &e))?;
        let keys = read_column(&path, &metadata, KEY_COLUMN, None)?;
        let keys = keys.as_string_opt::<i32>().ok_or_else(|| failed(&path, &"it has no keys"))?;
        let part = self.parts.len();
        for (row, key) in keys.iter().flatten().enumerate() {
            self.stored.insert(key.to_owned(), Place { part, row });
        }
        self.parts.push(Part { path, metadata });
        Ok(())
    }
}

fn encode(features: &[(String, Vec<f32>)]) -> Result<Vec<u8>, parquet::errors::ParquetError> {
    let keys = StringArray::from_iter_values(features.iter().map(|(key, _)| key));
    let bytes = |numbers: &Vec<f32>| numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    let numbers = features.iter().map(|(_, numbers)| bytes(numbers));
    let columns: [(&str, ArrayRef); 2] = [
        (KEY_COLUMN, Arc::new(keys)),
        (
            FEATURE_COLUMN,
            Arc::new(BinaryArray::from_iter_values(numbers.collect::<Vec<Vec<u8>>>())),
        ),
    ];
    let batch = RecordBatch::try_from_iter(columns)?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::UNCOMPRESSED)
        .set_dictionary_enabled(false)
        .set_encoding(Encoding::PLAIN)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_data_page_size_limit(PAGE_BYTES)
        .set_write_batch_size(1)
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties))?;
    writer.write(&batch)?;
    writer.into_inner()
}

/// A column of a file, or one row of it.
fn read_column(
    path: &Path,
    metadata: &ArrowReaderMetadata,
    name: &str,
    row: Option<usize>,
) -> Result<ArrayRef, CorpusError> {
    let file = File::open(path).map_err(|e| failed(path, &e))?;
    let columns = ProjectionMask::columns(metadata.parquet_schema(), [name]);
    let n_rows = metadata.metadata().file_metadata().num_rows() as usize;
    let mut builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata.clone())
        .with_projection(columns)
        .with_batch_size(n_rows.max(1));
    if let Some(row) = row {
        let one = vec![RowSelector::skip(row), RowSelector::select(1)];
        builder = builder.with_row_selection(RowSelection::from(one));
    }
    let mut reader = builder.build().map_err(|e| failed(path, &e))?;
    let batch = reader.next().ok_or_else(|| failed(path, &"it has no such row"))?;
    let batch = batch.map_err(|e| failed(path, &e))?;
    let column = batch.column_by_name(name).cloned();
    column.ok_or_else(|| failed(path, &format!("it has no column `{name}`")))
}

fn failed(path: &Path, problem: &dyn std::fmt::Display) -> CorpusError {
    CorpusError::FeatureCache { path: path.display().to_string(), problem: problem.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feature(number: u32) -> Vec<f32> {
        // Any bits, those of a NaN with a payload included.
        (0..1500).map(|i| f32::from_bits(0x7fc0_0000 ^ (number * 0x9e37 + i * 0x61c8))).collect()
    }

    fn bits(numbers: &[f32]) -> Vec<u32> {
        numbers.iter().map(|number| number.to_bits()).collect()
    }

    #[test]
    fn features_come_back_bit_by_bit_now_and_after_another_start() {
        let folder = tempfile::tempdir().unwrap();
        let open = |encoder| FeatureCache::open(folder.path(), encoder, 1500, 1 << 30).unwrap();
        let mut cache = open("one");
        let key = |number: u32| FeatureCache::key(&[number as f32, 0.5]);
        for number in 0..20 {
            assert!(cache.get(&key(number)).unwrap().is_none());
            cache.put(key(number), feature(number)).unwrap();
            if number == 7 {
                cache.flush().unwrap();
            }
        }
        let check = |cache: &FeatureCache, n: u32| {
            for number in 0..n {
                let found = cache.get(&key(number)).unwrap().unwrap();
                assert_eq!(bits(&found), bits(&feature(number)), "{number}");
            }
            assert_eq!(cache.n_features(), n as usize);
        };
        check(&cache, 20);
        // Killed before the last ones were written.
        drop(cache);
        let mut cache = open("one");
        check(&cache, 8);
        for number in 0..20 {
            cache.put(key(number), feature(number)).unwrap();
        }
        cache.flush().unwrap();
        check(&cache, 20);
        check(&open("one"), 20);
        assert_eq!(open("two").n_features(), 0, "another encoder");
        assert_ne!(FeatureCache::key(&[0.0]), FeatureCache::key(&[-0.0]));
    }

    #[test]
    fn a_full_cache_takes_no_more_and_a_damaged_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut cache = FeatureCache::open(folder.path(), "one", 1500, 20_000).unwrap();
        for number in 0..9 {
            cache.put(number.to_string(), feature(number)).unwrap();
        }
        assert_eq!(cache.n_features(), 3);
        cache.flush().unwrap();
        let path = cache.parts[0].path.clone();
        let other = FeatureCache::open(folder.path(), "one", 1501, 20_000).unwrap();
        assert!(other.get("0").unwrap_err().to_string().contains("6000 bytes"));
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let error = FeatureCache::open(folder.path(), "one", 1500, 20_000).unwrap_err();
        let file = path.file_name().unwrap().to_str().unwrap();
        assert!(error.to_string().contains(file), "{error}");
    }
}
