//! Lists of images or clips with captions: CSV, TSV, JSON lines and plain addresses (also gzip),
//! Parquet, tar files of webdataset, and WAT. Lists are read as a stream, whatever their size.

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use csv::ByteRecord;
use flate2::read::MultiGzDecoder;

use crate::error::IngestError;
use crate::ordered::Weigh;
use crate::parquet_list;
use crate::plan::{BuildPlan, ListPlan};
use crate::reject::{DropReason, Origin, Reject, Stage};
use crate::source::{self, Source, has_suffix};
use crate::{tar_list, wat_list};

/// Endings of lists.
pub const SUFFIXES: &[&str] =
    &[".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet"];
/// Endings of lists of addresses, one a line.
const ADDRESS_SUFFIXES: &[&str] = &[".txt", ".txt.gz"];
/// Longest row of a list in bytes: a quote that is never closed must not take all memory.
const ROW_BYTES_MAX: u64 = 16 << 20;

/// One row of a list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListRow {
    /// Index of the list.
    pub list: usize,
    /// Row number, from 0.
    pub row: u64,
    /// Address of the image or clip.
    pub url: Option<String>,
    /// Caption, as written.
    pub caption: Option<String>,
    /// Name of a file.
    pub file: Option<String>,
    /// Where the pair came from.
    pub source: Option<String>,
    /// The image itself.
    pub image: Option<Bytes>,
    /// Where a part of a clip starts, as written.
    pub start: Option<String>,
    /// Where it ends.
    pub end: Option<String>,
}

/// A row, or what was wrong with it.
#[derive(Debug, Clone, PartialEq)]
pub enum ListItem {
    /// A row.
    Row(ListRow),
    /// A row that cannot be read.
    Dropped(Reject),
}

impl Weigh for ListItem {
    fn weight(&self) -> u64 {
        match self {
            Self::Row(row) => row.image.as_ref().map_or(0, |image| image.len() as u64),
            Self::Dropped(_) => 0,
        }
    }
}

/// Items of one list, in order.
pub(crate) type Items<'a> = Box<dyn Iterator<Item = Result<ListItem, IngestError>> + Send + 'a>;

/// Whether a file is a list of rows of text or of Parquet by its name.
pub fn is_list(input: &str) -> bool {
    has_suffix(input, SUFFIXES) || has_suffix(input, ADDRESS_SUFFIXES)
}

/// Endings of lists of pairs in a folder: a text file there may be anything.
fn pair_suffixes() -> Vec<&'static str> {
    [SUFFIXES, tar_list::SUFFIXES, wat_list::SUFFIXES].concat()
}

/// The files that `inputs` name: as [`source::expand`], and lists of addresses where they are named
/// themselves.
///
/// # Errors
/// As [`source::expand`].
pub fn expand(inputs: &[String]) -> Result<Vec<String>, IngestError> {
    let mut files = Vec::new();
    for input in inputs {
        let is_folder = !source::is_url(input) && Path::new(input).is_dir();
        let mut suffixes = pair_suffixes();
        if !is_folder {
            suffixes.extend(ADDRESS_SUFFIXES);
        }
        files.extend(source::expand(std::slice::from_ref(input), &suffixes)?);
    }
    Ok(files)
}

/// Opens every list once: each must have a caption column, unless the plan takes images without, and
/// one of `columns`.
///
/// # Errors
/// When a list cannot be opened or lacks a column.
pub fn check(
    sources: &[Arc<Source>],
    plan: &BuildPlan,
    columns: &[&String],
) -> Result<(), IngestError> {
    let caption_column = &plan.list.caption_column;
    for source in sources {
        let Some(found) = header(source, &plan.list)? else { continue };
        let wrong = |expected: String| IngestError::InputColumns {
            input: source.input().to_owned(),
            found: found.join("`, `"),
            expected,
        };
        if !columns.iter().any(|column| found.contains(column)) {
            let names: Vec<_> = columns.iter().map(|column| format!("`{column}`")).collect();
            return Err(wrong(names.join(" or ")));
        }
        if plan.caption.chars_min > 0 && !found.contains(caption_column) {
            return Err(wrong(format!(
                "`{caption_column}`, or `caption.chars_min = 0` in the plan"
            )));
        }
    }
    Ok(())
}

/// Names of the columns; none where each row names its own.
fn header(source: &Arc<Source>, plan: &ListPlan) -> Result<Option<Vec<String>>, IngestError> {
    let input = source.input();
    if has_suffix(input, ADDRESS_SUFFIXES) {
        return Ok(Some(vec![plan.url_column.clone()]));
    }
    if has_suffix(input, tar_list::SUFFIXES) || has_suffix(input, wat_list::SUFFIXES) {
        return Ok(None);
    }
    if has_suffix(input, &[".parquet"]) {
        return parquet_list::columns(source).map(Some);
    }
    if has_suffix(input, &[".jsonl", ".jsonl.gz"]) {
        return Ok(None);
    }
    let mut reader = csv_reader(source);
    let header = reader.byte_headers().map_err(|error| broken(source, error.to_string()))?;
    Ok(Some(header.iter().map(lossy).collect()))
}

/// How many rows those lists have that are wanted, by their index; none where one does not tell.
///
/// # Errors
/// When a list cannot be opened.
pub fn n_rows(
    sources: &[Arc<Source>],
    is_wanted: impl Fn(usize) -> bool,
) -> Result<Option<u64>, IngestError> {
    if !sources.iter().all(|source| has_suffix(source.input(), &[".parquet"])) {
        return Ok(None);
    }
    let wanted = sources.iter().enumerate().filter(|(list, _)| is_wanted(*list));
    wanted.map(|(_, source)| parquet_list::n_rows(source)).sum::<Result<u64, _>>().map(Some)
}

/// All rows of those lists that are wanted, by their index, in order.
pub fn rows<'a>(
    sources: &'a [Arc<Source>],
    plan: &'a ListPlan,
    is_wanted: impl Fn(usize) -> bool + Send + 'a,
) -> impl Iterator<Item = Result<ListItem, IngestError>> + Send + 'a {
    let lists = sources.iter().enumerate().filter(move |(list, _)| is_wanted(*list));
    lists.flat_map(|(list, source)| list_rows(list, source, plan))
}

/// The rows of one list.
pub(crate) fn list_rows<'a>(list: usize, source: &'a Arc<Source>, plan: &'a ListPlan) -> Items<'a> {
    let input = source.input();
    if has_suffix(input, &[".parquet"]) {
        parquet_list::rows(list, source, plan)
    } else if has_suffix(input, &[".jsonl", ".jsonl.gz"]) {
        lines(source, move |line, row| json_row(source, line, plan, list, row))
    } else if has_suffix(input, ADDRESS_SUFFIXES) {
        lines(source, move |line, row| address_row(source, line, list, row))
    } else if has_suffix(input, tar_list::SUFFIXES) {
        tar_list::rows(list, source, plan)
    } else if has_suffix(input, wat_list::SUFFIXES) {
        wat_list::rows(list, source)
    } else {
        csv_rows(list, source, plan)
    }
}

/// A reject of a row that cannot be read.
pub(crate) fn bad_row(source: &Source, row: u64, message: impl Into<String>) -> ListItem {
    let drop = DropReason::detail("bad_row", message);
    let origin = Origin { source: source.name().to_owned(), offset: Some(row as i64), url: None };
    ListItem::Dropped(drop.at(Stage::Read, &origin, None))
}

/// A list that cannot be read on.
pub(crate) fn broken(source: &Source, message: impl Into<String>) -> IngestError {
    IngestError::InputFormat { input: source.input().to_owned(), message: message.into() }
}

fn text_reader(source: &Source) -> Limited<Box<dyn Read + Send + '_>> {
    let reader = source.reader(0);
    let inner: Box<dyn Read + Send> = if has_suffix(source.input(), &[".gz"]) {
        Box::new(MultiGzDecoder::new(reader))
    } else {
        Box::new(reader)
    };
    Limited { inner, left: ROW_BYTES_MAX }
}

/// A reader that gives at most `left` bytes until `left` is set again.
struct Limited<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            let message = format!("a row is longer than {ROW_BYTES_MAX} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let n = self.inner.read(buffer)?;
        self.left = self.left.saturating_sub(n as u64);
        Ok(n)
    }
}

type CsvReader<'a> = csv::Reader<Limited<Box<dyn Read + Send + 'a>>>;

fn csv_reader(source: &Source) -> CsvReader<'_> {
    let delimiter = if has_suffix(source.input(), &[".tsv", ".tsv.gz"]) { b'\t' } else { b',' };
    csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(text_reader(source))
}

fn csv_rows<'a>(list: usize, source: &'a Arc<Source>, plan: &'a ListPlan) -> Items<'a> {
    let mut reader = csv_reader(source);
    let header = match reader.byte_headers() {
        Ok(header) => header.iter().map(lossy).collect::<Vec<_>>(),
        Err(error) => return Box::new(std::iter::once(Err(broken(source, error.to_string())))),
    };
    let mut row = 0;
    let mut is_over = false;
    Box::new(std::iter::from_fn(move || {
        if is_over {
            return None;
        }
        reader.get_mut().left = ROW_BYTES_MAX;
        let mut record = ByteRecord::new();
        match reader.read_byte_record(&mut record) {
            Ok(false) => None,
            Ok(true) => {
                row += 1;
                Some(Ok(csv_row(source, &header, &record, plan, list, row - 1)))
            }
            Err(error) => {
                is_over = true;
                Some(Err(broken(source, format!("row {row}: {error}"))))
            }
        }
    }))
}

fn csv_row(
    source: &Source,
    header: &[String],
    record: &ByteRecord,
    plan: &ListPlan,
    list: usize,
    row: u64,
) -> ListItem {
    if std::str::from_utf8(record.as_slice()).is_err() {
        return bad_row(source, row, "it is not UTF-8");
    }
    let field = |column: &String| {
        let at = header.iter().position(|name| name == column)?;
        record.get(at).map(lossy).filter(|value| !value.trim().is_empty())
    };
    ListItem::Row(ListRow {
        list,
        row,
        url: field(&plan.url_column),
        caption: field(&plan.caption_column),
        file: field(&plan.file_column),
        source: field(&plan.source_column),
        image: None,
        start: field(&plan.start_column),
        end: field(&plan.end_column),
    })
}

/// A row for each line with something in it.
fn lines<'a>(
    source: &'a Arc<Source>,
    to_row: impl Fn(&[u8], u64) -> ListItem + Send + 'a,
) -> Items<'a> {
    let mut reader = BufReader::new(text_reader(source));
    let mut row = 0;
    let mut is_over = false;
    Box::new(std::iter::from_fn(move || {
        let mut line = Vec::new();
        // Empty lines are no rows.
        while !is_over && line.trim_ascii().is_empty() {
            line.clear();
            reader.get_mut().left = ROW_BYTES_MAX;
            match reader.read_until(b'\n', &mut line) {
                Ok(0) => is_over = true,
                Ok(_) => {}
                Err(error) => {
                    is_over = true;
                    return Some(Err(broken(source, format!("row {row}: {error}"))));
                }
            }
        }
        if is_over {
            return None;
        }
        row += 1;
        Some(Ok(to_row(&line, row - 1)))
    }))
}

fn address_row(source: &Source, line: &[u8], list: usize, row: u64) -> ListItem {
    match std::str::from_utf8(line) {
        Ok(url) => ListItem::Row(ListRow {
            list,
            row,
            url: Some(url.trim().to_owned()),
            ..ListRow::default()
        }),
        Err(_) => bad_row(source, row, "it is not UTF-8"),
    }
}

fn json_row(source: &Source, line: &[u8], plan: &ListPlan, list: usize, row: u64) -> ListItem {
    let object: serde_json::Map<String, serde_json::Value> = match serde_json::from_slice(line) {
        Ok(object) => object,
        Err(error) => return bad_row(source, row, error.to_string()),
    };
    let field = |column: &String| {
        let value = object.get(column)?.as_str()?;
        (!value.trim().is_empty()).then(|| value.to_owned())
    };
    let time = |column: &String| match object.get(column)? {
        serde_json::Value::Number(seconds) => Some(seconds.to_string()),
        _ => field(column),
    };
    ListItem::Row(ListRow {
        list,
        row,
        url: field(&plan.url_column),
        caption: field(&plan.caption_column),
        file: field(&plan.file_column),
        source: field(&plan.source_column),
        image: None,
        start: time(&plan.start_column),
        end: time(&plan.end_column),
    })
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn read(name: &str, bytes: &[u8]) -> Vec<Result<ListItem, IngestError>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let sources = [Arc::new(Source::open(path.to_str().unwrap()).unwrap())];
        rows(&sources, &ListPlan::default(), |_| true).collect()
    }

    fn captions(name: &str, bytes: &[u8]) -> Vec<Option<String>> {
        let caption = |item| match item {
            Ok(ListItem::Row(row)) => row.caption,
            other => panic!("{other:?}"),
        };
        read(name, bytes).into_iter().map(caption).collect()
    }

    #[test]
    fn every_text_format_gives_the_same_rows() {
        let expected = [Some("a, \"b\"\nc".to_owned()), None, Some("é".to_owned())];
        let csv = "\u{feff}file,caption\nx.jpg,\"a, \"\"b\"\"\nc\"\ny.jpg,\nz.jpg,é,more\n";
        let tsv = "file\tcaption\nx.jpg\t\"a, \"\"b\"\"\nc\"\ny.jpg\t\nz.jpg\té\n";
        let json = "{\"file\":\"x.jpg\",\"caption\":\"a, \\\"b\\\"\\nc\"}\n\n{\"file\":\"y.jpg\"}\n{\"caption\":\"é\",\"n\":1}";
        assert_eq!(captions("a.csv", csv.as_bytes()), expected);
        assert_eq!(captions("a.tsv", tsv.as_bytes()), expected);
        assert_eq!(captions("a.jsonl", json.as_bytes()), expected);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(csv.as_bytes()).unwrap();
        assert_eq!(captions("a.CSV.gz", &gzip.finish().unwrap()), expected);
    }

    #[test]
    fn a_line_is_an_address() {
        let items = read("a.txt", b"http://a/1\r\n\n  http://a/2\n\xff\n");
        let urls = items.iter().map(|item| match item.as_ref().unwrap() {
            ListItem::Row(row) => row.url.as_deref(),
            ListItem::Dropped(_) => None,
        });
        assert_eq!(urls.collect::<Vec<_>>(), [Some("http://a/1"), Some("http://a/2"), None]);
    }

    #[test]
    fn a_text_file_in_a_folder_is_no_list() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        for name in ["a.csv", "b.tar", "c.warc.wat.gz", "d.txt"] {
            std::fs::write(path(name), "x").unwrap();
        }
        let found = expand(&[folder.path().to_str().unwrap().to_owned()]).unwrap();
        assert_eq!(found, [path("a.csv"), path("b.tar"), path("c.warc.wat.gz")]);
        assert_eq!(expand(&[path("d.txt")]).unwrap(), [path("d.txt")]);
    }

    #[test]
    fn a_bad_row_costs_itself() {
        let items = read("a.csv", b"caption\none\n\xff\nthree\n");
        let dropped = ListItem::Dropped(DropReason::detail("bad_row", "it is not UTF-8").at(
            Stage::Read,
            &Origin { source: "a.csv".into(), offset: Some(1), url: None },
            None,
        ));
        assert_eq!((items.len(), items[1].as_ref().unwrap()), (3, &dropped));
        let items = read("a.jsonl", b"{\"caption\": 1}\n[1]\nnot json\n");
        assert!(matches!(items[0], Ok(ListItem::Row(_))));
        assert!(items[1..].iter().all(|item| matches!(item, Ok(ListItem::Dropped(_)))));
    }

    #[test]
    fn a_row_without_end_is_an_error_not_a_full_memory() {
        let mut bytes = b"caption\n\"".to_vec();
        bytes.resize(ROW_BYTES_MAX as usize + (1 << 20), b'x');
        let items = read("a.csv", &bytes);
        assert!(items.last().unwrap().is_err());
        assert!(items.len() <= 1, "{}", items.len());
    }

    #[test]
    fn a_list_without_captions_is_named_with_its_columns() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.csv");
        std::fs::write(&path, "url,text\n").unwrap();
        let sources = [Arc::new(Source::open(path.to_str().unwrap()).unwrap())];
        let mut plan = BuildPlan::default();
        let message =
            |columns: &[&String]| check(&sources, &plan, columns).unwrap_err().to_string();
        let missing = message(&[&plan.list.file_column]);
        assert!(missing.ends_with("has the columns `url`, `text`, expected `file`"), "{missing}");
        let missing = message(&[&plan.list.url_column]);
        assert!(missing.contains("expected `caption`, or `caption.chars_min = 0`"), "{missing}");
        plan.caption.chars_min = 0;
        check(&sources, &plan, &[&plan.list.url_column]).unwrap();
    }
}
