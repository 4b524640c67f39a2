//! Scores of outside classifiers, joined to documents and images by a key.
//!
//! A table may have more rows than memory: its rows become records of one size, sorted by the hash of
//! their key, in memory where they are few and in a temporary file where they are many. A look-up
//! reads one block of the file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type};

use super::plan::{Missing, ScoreKey, ScoreLevel, ScoreRule, ScoresPlan};
use super::tokens::hash;
use super::{Bound, intern};
use crate::error::IngestError;
use crate::parquet_list;
use crate::reject::DropReason;
use crate::source::{Source, has_suffix};

/// Bytes of records that are sorted in memory at a time.
const MEMORY_BYTES_MAX: usize = 64 << 20;
/// Files that the records of a large table are spread over, by the top bits of their hash.
const BUCKETS: usize = 256;
/// Records of a block of the file.
const BLOCK_RECORDS: usize = 256;
/// Bytes of a hash in a record.
const HASH_BYTES: usize = 8;

/// What a thing is looked up by.
#[derive(Debug, Clone, Copy, Default)]
pub struct Keys<'a> {
    /// Its address.
    pub url: Option<&'a str>,
    /// Hex SHA-256 of the stored image.
    pub sha256: Option<&'a str>,
    /// `doc_id` or `key` of its row.
    pub key: Option<&'a str>,
}

/// One table of scores.
#[derive(Debug)]
pub(super) struct ScoreTable {
    key: ScoreKey,
    /// Names of the columns, and of their figures.
    columns: Vec<(String, &'static str)>,
    rules: Vec<ScoreRule>,
    records: Records,
}

impl ScoreTable {
    /// Reads a table.
    ///
    /// # Errors
    /// When it cannot be read, lacks a column, or holds something that is no number.
    pub(super) fn read(plan: &ScoresPlan) -> Result<Self, IngestError> {
        let source = Arc::new(Source::open(&plan.file)?);
        let mut sorter = Sorter::new(&plan.file, plan.columns.len());
        let is_parquet = has_suffix(&plan.file, &[".parquet"]);
        let read = if is_parquet { read_parquet } else { read_csv };
        read(&source, plan, &mut sorter)?;
        let columns = plan.columns.iter().map(|name| (name.clone(), figure(name))).collect();
        Ok(Self { key: plan.key, columns, rules: plan.rules.clone(), records: sorter.finish()? })
    }

    /// Adds the scores of a thing, and says which rule drops it, if one does.
    pub(super) fn look_up(
        &self,
        level: ScoreLevel,
        keys: Keys<'_>,
        found: &mut Vec<(&'static str, f32)>,
    ) -> Option<DropReason> {
        let is_ours = |rule: &&ScoreRule| rule.level == level;
        if !self.rules.is_empty() && !self.rules.iter().any(|rule| is_ours(&rule)) {
            return None;
        }
        let key = match self.key {
            ScoreKey::Url => keys.url,
            ScoreKey::Sha256 => keys.sha256,
            ScoreKey::Key => keys.key,
        };
        let scores = key.and_then(|key| self.records.find(hash(key.as_bytes())));
        let score = |name: &str| {
            let column = self.columns.iter().position(|(column, _)| column == name)?;
            scores.as_ref().map(|scores| scores[column]).filter(|score| !score.is_nan())
        };
        let named = self.columns.iter().filter_map(|(name, figure)| Some((*figure, score(name)?)));
        found.extend(named);
        self.rules.iter().filter(is_ours).find_map(|rule| broken(rule, score(&rule.name)))
    }
}

/// Why a score is dropped, if it is.
fn broken(rule: &ScoreRule, score: Option<f32>) -> Option<DropReason> {
    let Some(score) = score else {
        let reason = intern(&format!("score_{}_missing", rule.name));
        return (rule.missing == Missing::Drop).then(|| DropReason::because(reason));
    };
    let bounds = [(Bound::Min, rule.min), (Bound::Max, rule.max)];
    let (_, limit) = bounds.into_iter().find(|(bound, limit)| bound.is_broken(score, *limit))?;
    Some(DropReason::limit(reason(&rule.name), f64::from(score), limit))
}

/// Name of the reason of a score's rules.
pub(super) fn reason(name: &str) -> &'static str {
    intern(&format!("score_{name}"))
}

/// Name of the figure of a score.
pub(super) fn figure(name: &str) -> &'static str {
    intern(&format!("{}{name}", crate::figures::SCORE))
}

fn wrong(file: &str, message: String) -> IngestError {
    IngestError::InputFormat { input: file.to_owned(), message }
}

fn key_column(plan: &ScoresPlan) -> &str {
    match (plan.key_column.as_str(), plan.key) {
        ("", ScoreKey::Url) => "url",
        ("", ScoreKey::Sha256) => "sha256",
        ("", ScoreKey::Key) => "key",
        (column, _) => column,
    }
}

fn missing(plan: &ScoresPlan, found: &[String]) -> Option<IngestError> {
    let mut wanted =
        std::iter::once(key_column(plan)).chain(plan.columns.iter().map(String::as_str));
    let missing = wanted.find(|name| !found.iter().any(|column| column == name))?;
    Some(IngestError::InputColumns {
        input: plan.file.clone(),
        found: found.join("`, `"),
        expected: format!("`{missing}`"),
    })
}

fn read_csv(
    source: &Arc<Source>,
    plan: &ScoresPlan,
    sorter: &mut Sorter,
) -> Result<(), IngestError> {
    let inner: Box<dyn Read + '_> = if has_suffix(&plan.file, &[".gz"]) {
        Box::new(flate2::read::MultiGzDecoder::new(source.reader(0)))
    } else {
        Box::new(source.reader(0))
    };
    let delimiter = if has_suffix(&plan.file, &[".tsv", ".tsv.gz"]) { b'\t' } else { b',' };
    let mut reader =
        csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(inner);
    let broken = |error: csv::Error| wrong(&plan.file, error.to_string());
    let header: Vec<_> = reader.headers().map_err(broken)?.iter().map(str::to_owned).collect();
    if let Some(error) = missing(plan, &header) {
        return Err(error);
    }
    let place = |name: &str| header.iter().position(|column| column == name).unwrap_or_default();
    let key = place(key_column(plan));
    let places: Vec<_> = plan.columns.iter().map(|name| place(name)).collect();
    let mut scores = vec![f32::NAN; places.len()];
    let mut record = csv::StringRecord::new();
    for row in 0_u64.. {
        if !reader.read_record(&mut record).map_err(broken)? {
            break;
        }
        for (score, place) in scores.iter_mut().zip(&places) {
            *score = match record.get(*place).map_or("", str::trim) {
                "" => f32::NAN,
                text => text.parse().map_err(|_| {
                    let column = &header[*place];
                    wrong(
                        &plan.file,
                        format!("row {row}: `{column}` is `{text}`, expected a number"),
                    )
                })?,
            };
        }
        sorter.push(record.get(key).unwrap_or(""), &scores)?;
    }
    Ok(())
}

fn read_parquet(
    source: &Arc<Source>,
    plan: &ScoresPlan,
    sorter: &mut Sorter,
) -> Result<(), IngestError> {
    if let Some(error) = missing(plan, &parquet_list::columns(source)?) {
        return Err(error);
    }
    let key = key_column(plan);
    let mut wanted: Vec<&str> = plan.columns.iter().map(String::as_str).collect();
    wanted.push(key);
    for batch in parquet_list::batches(source, &wanted)? {
        let batch = batch?;
        let column = |name: &str, to: &DataType| {
            let column = &batch[name];
            cast(column, to).map_err(|_| {
                let found = column.data_type();
                wrong(&plan.file, format!("column `{name}` holds {found}, expected {to}"))
            })
        };
        let keys = column(key, &DataType::Utf8)?;
        let scores = plan.columns.iter().map(|name| column(name, &DataType::Float32));
        push_batch(&batch, &keys, &scores.collect::<Result<Vec<_>, _>>()?, sorter)?;
    }
    Ok(())
}

fn push_batch(
    batch: &RecordBatch,
    keys: &dyn Array,
    columns: &[arrow::array::ArrayRef],
    sorter: &mut Sorter,
) -> Result<(), IngestError> {
    let keys = keys.as_string::<i32>();
    let columns: Vec<_> = columns.iter().map(AsArray::as_primitive::<Float32Type>).collect();
    for row in (0..batch.num_rows()).filter(|row| keys.is_valid(*row)) {
        let score = |column: &&arrow::array::Float32Array| {
            if column.is_valid(row) { column.value(row) } else { f32::NAN }
        };
        sorter.push(keys.value(row), &columns.iter().map(score).collect::<Vec<_>>())?;
    }
    Ok(())
}

/// Takes rows in any order.
struct Sorter {
    name: String,
    stride: usize,
    buffer: Vec<u8>,
    buckets: Vec<File>,
}

impl Sorter {
    fn new(name: &str, n_columns: usize) -> Self {
        let stride = HASH_BYTES + 4 * n_columns;
        Self { name: name.to_owned(), stride, buffer: Vec::new(), buckets: Vec::new() }
    }

    fn push(&mut self, key: &str, scores: &[f32]) -> Result<(), IngestError> {
        if self.buffer.len() + self.stride > MEMORY_BYTES_MAX {
            self.spill().map_err(|source| self.no_room(source))?;
        }
        self.buffer.extend(hash(key.as_bytes()).to_be_bytes());
        self.buffer.extend(scores.iter().flat_map(|score| score.to_le_bytes()));
        Ok(())
    }

    fn no_room(&self, source: std::io::Error) -> IngestError {
        IngestError::InputRead {
            input: format!("{} (sorted, in a temporary file)", self.name),
            source,
        }
    }

    /// Moves what is in memory to the files of the buckets.
    fn spill(&mut self) -> std::io::Result<()> {
        while self.buckets.len() < BUCKETS {
            self.buckets.push(tempfile::tempfile()?);
        }
        let mut parts = vec![Vec::new(); BUCKETS];
        for record in self.buffer.chunks_exact(self.stride) {
            parts[usize::from(record[0])].extend_from_slice(record);
        }
        for (bucket, part) in self.buckets.iter_mut().zip(parts) {
            bucket.write_all(&part)?;
        }
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<Records, IngestError> {
        if self.buckets.is_empty() {
            let bytes = sorted(&self.buffer, self.stride);
            return Ok(Records { stride: self.stride, place: Place::Memory(bytes) });
        }
        let file = self.spill().and_then(|()| self.merge());
        let (file, firsts, n) = file.map_err(|source| self.no_room(source))?;
        Ok(Records { stride: self.stride, place: Place::File { file, firsts, n } })
    }

    /// All buckets, each sorted, in one file; the first hash of each block; how many records.
    fn merge(&mut self) -> std::io::Result<(File, Vec<u64>, usize)> {
        let mut file = std::io::BufWriter::new(tempfile::tempfile()?);
        let (mut firsts, mut n) = (Vec::new(), 0);
        for mut bucket in std::mem::take(&mut self.buckets) {
            let mut bytes = Vec::new();
            bucket.seek(SeekFrom::Start(0))?;
            bucket.read_to_end(&mut bytes)?;
            for record in sorted(&bytes, self.stride).chunks_exact(self.stride) {
                if n % BLOCK_RECORDS == 0 {
                    firsts.push(hash_of(record));
                }
                file.write_all(record)?;
                n += 1;
            }
        }
        let file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        Ok((file, firsts, n))
    }
}

/// The records by their hash; of those with one hash, the last.
fn sorted(bytes: &[u8], stride: usize) -> Vec<u8> {
    let mut records: Vec<_> = bytes.chunks_exact(stride).collect();
    // A stable sort keeps the order of rows with one key.
    records.sort_by_key(|record| hash_of(record));
    let mut kept = Vec::with_capacity(bytes.len());
    for (i, record) in records.iter().enumerate() {
        if records.get(i + 1).is_none_or(|next| hash_of(next) != hash_of(record)) {
            kept.extend_from_slice(record);
        }
    }
    kept
}

fn hash_of(record: &[u8]) -> u64 {
    record[..HASH_BYTES].iter().fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

/// Sorted records.
#[derive(Debug)]
struct Records {
    stride: usize,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Memory(Vec<u8>),
    File { file: File, firsts: Vec<u64>, n: usize },
}

impl Records {
    /// The scores of a key.
    ///
    /// # Panics
    /// When the temporary file, which has no name, cannot be read any more.
    fn find(&self, hash: u64) -> Option<Vec<f32>> {
        match &self.place {
            Place::Memory(bytes) => find_in(bytes, self.stride, hash),
            Place::File { file, firsts, n } => {
                let block = firsts.partition_point(|first| *first <= hash).checked_sub(1)?;
                let start = block * BLOCK_RECORDS;
                let mut bytes = vec![0; BLOCK_RECORDS.min(n - start) * self.stride];
                file.read_exact_at(&mut bytes, (start * self.stride) as u64)
                    .expect("a temporary file that was written can be read");
                find_in(&bytes, self.stride, hash)
            }
        }
    }
}

/// Binary search in sorted records.
fn find_in(bytes: &[u8], stride: usize, hash: u64) -> Option<Vec<f32>> {
    let (mut low, mut high) = (0, bytes.len() / stride);
    while low < high {
        let middle = usize::midpoint(low, high);
        let record = &bytes[middle * stride..(middle + 1) * stride];
        match hash_of(record).cmp(&hash) {
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
            std::cmp::Ordering::Equal => {
                let scores = record[HASH_BYTES..].chunks_exact(4);
                let score = |bytes: &[u8]| bytes.try_into().map_or(f32::NAN, f32::from_le_bytes);
                return Some(scores.map(score).collect());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, bytes: &[u8], rules: Vec<ScoreRule>) -> Result<ScoreTable, IngestError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        ScoreTable::read(&ScoresPlan {
            file: path.to_str().unwrap().to_owned(),
            sha256: String::new(),
            key: ScoreKey::Url,
            key_column: String::new(),
            columns: vec!["nsfw".into(), "clip".into()],
            rules,
        })
    }

    fn rule(name: &str, min: f64, max: f64, missing: Missing) -> ScoreRule {
        ScoreRule { name: name.into(), level: ScoreLevel::Image, min, max, missing }
    }

    #[test]
    fn scores_are_found_by_key_and_rules_look_at_them() {
        let rules = vec![
            rule("nsfw", f64::NEG_INFINITY, 0.9, Missing::Keep),
            rule("clip", 0.25, f64::INFINITY, Missing::Drop),
        ];
        let csv = "url,clip,more,nsfw\na,0.5,x,0.1\nb,0.5,,0.95\nc,0.2,,\nd,,,0.2\na,0.6,,0.2\n";
        let table = table("s.csv", csv.as_bytes(), rules).unwrap();
        let look_up = |level, url| {
            let mut found = Vec::new();
            let drop = table.look_up(level, Keys { url: Some(url), ..Keys::default() }, &mut found);
            (found, drop.map(|drop| drop.reason))
        };
        let check = |url, expected: &[(&str, f32)], reason: Option<&str>| {
            assert_eq!(look_up(ScoreLevel::Image, url), (expected.to_vec(), reason), "{url}");
        };
        // The last row of a key counts.
        check("a", &[("score:nsfw", 0.2), ("score:clip", 0.6)], None);
        check("b", &[("score:nsfw", 0.95), ("score:clip", 0.5)], Some("score_nsfw"));
        check("c", &[("score:clip", 0.2)], Some("score_clip"));
        check("d", &[("score:nsfw", 0.2)], Some("score_clip_missing"));
        check("e", &[], Some("score_clip_missing"));
        assert_eq!(look_up(ScoreLevel::Document, "b"), (vec![], None));
    }

    #[test]
    fn a_bad_table_is_named_with_row_and_column() {
        let error = |csv: &str| table("s.csv", csv.as_bytes(), vec![]).unwrap_err().to_string();
        assert!(error("url,nsfw\n").ends_with("expected `clip`"));
        let message = error("url,nsfw,clip\na,1,2\nb,high,3\n");
        assert!(message.contains("row 1: `nsfw` is `high`"), "{message}");
    }

    #[test]
    fn a_table_larger_than_memory_is_sorted_on_disk() {
        let mut sorter = Sorter::new("test", 1);
        let n = 5000_u32;
        for i in 0..n {
            sorter.push(&format!("key {i}"), &[i as f32]).unwrap();
            if i % 1000 == 999 {
                sorter.spill().unwrap();
            }
        }
        sorter.push("key 7", &[-1.0]).unwrap();
        let records = sorter.finish().unwrap();
        assert!(matches!(records.place, Place::File { n: 5000, .. }));
        for i in 0..n {
            let expected = if i == 7 { -1.0 } else { i as f32 };
            assert_eq!(records.find(hash(format!("key {i}").as_bytes())), Some(vec![expected]));
        }
        assert_eq!(records.find(hash(b"key 5000")), None);
        assert_eq!((records.find(0), records.find(u64::MAX)), (None, None));
    }
}
