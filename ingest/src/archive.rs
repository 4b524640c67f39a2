//! What the archives of a run hold: which record has which address, and what each page needs to
//! find its images. Built by one walk over all inputs, before any page is read.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use url::Url;

use crate::error::IngestError;
use crate::http::{self, Head};
use crate::image;
use crate::opt_out;
use crate::ordered::Weigh;
use crate::plan::{BuildPlan, CutOff, OptOutPlan};
use crate::reject::{DropReason, Origin, Reject, Stage};
use crate::source::Source;
use crate::warc::{self, Damage, Record};

/// Why an image is not there that no archive has a record of.
pub(crate) const NOT_IN_ARCHIVE: &str = "not_in_archive";
/// Bytes of a block that are read for the index: enough for the head of a response.
const HEAD_BYTES: usize = 64 << 10;
/// Most bytes that the beginning of a compressed body may grow to when a page is looked for in it.
const SNIFF_BYTES_MAX: u64 = 64 << 20;
/// Most records of one run: each takes about 300 bytes of memory.
const RECORDS_MAX: usize = 20_000_000;

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// Index of the input.
    pub source: usize,
    /// Offset in the input.
    pub offset: u64,
    /// Bytes that the record takes.
    pub length: u64,
}

/// One answer of a site to one address.
#[derive(Debug, Clone)]
struct Answer {
    place: Place,
    kind: AnswerKind,
    /// What its headers say against its use.
    opt_out: Option<DropReason>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum AnswerKind {
    /// A body in the record itself.
    Body,
    /// A body in another record with the same payload digest.
    Revisit { digest: String },
    /// Another address.
    Redirect { to: String },
    /// An error.
    Failure { status: u16 },
}

impl AnswerKind {
    /// Which of several answers to one address is used: a body, then a way to one, then an error.
    fn rank(&self) -> u8 {
        match self {
            Self::Body => 0,
            Self::Revisit { .. } => 1,
            Self::Redirect { .. } => 2,
            Self::Failure { .. } => 3,
        }
    }
}

/// What the walk found in reading order: pages to be read, and what is already known to be dropped.
#[derive(Debug, Clone)]
pub enum Found {
    /// A page.
    Page {
        /// Where it lies.
        place: Place,
        /// Its address, as the archive has it.
        url: String,
    },
    /// A damaged record, an answer that cannot be read, or a page that is there twice.
    Dropped(Reject),
}

impl Weigh for &Found {}

/// All records by address.
#[derive(Default)]
pub struct Archive {
    answers: HashMap<String, Answer>,
    /// The first body with each payload digest.
    digests: HashMap<String, Place>,
    /// Pages and damaged records in reading order.
    pub found: Vec<Found>,
}

impl Archive {
    /// Walks over all sources. `seen` is called for each record.
    ///
    /// # Errors
    /// When a source cannot be read, is no archive, is cut off (unless the plan allows it), or there
    /// are too many records.
    pub fn index(
        sources: &[Arc<Source>],
        plan: &BuildPlan,
        mut seen: impl FnMut(),
    ) -> Result<Self, IngestError> {
        let mut archive = Self::default();
        for (i, source) in sources.iter().enumerate() {
            let mut n_records = 0;
            for item in warc::records(source, HEAD_BYTES) {
                match item.map_err(|error| unreadable(source, error))? {
                    Ok(record) => {
                        archive.add(i, source, &record, &plan.opt_out);
                        n_records += 1;
                    }
                    Err((0, damage)) if damage == Damage::NotWarc => {
                        let (input, reason) = (source.input().to_owned(), damage.reason());
                        return Err(IngestError::ArchiveForeign { input, reason });
                    }
                    Err((offset, Damage::Truncated)) if plan.archive.cut_off == CutOff::Fail => {
                        let input = source.input().to_owned();
                        return Err(IngestError::ArchiveCutOff { input, offset });
                    }
                    Err((offset, damage)) => archive.drop_damaged(source, offset, damage),
                }
                seen();
            }
            if n_records == 0 {
                let (input, reason) = (source.input().to_owned(), "no whole record");
                return Err(IngestError::ArchiveForeign { input, reason });
            }
            if archive.answers.len() > RECORDS_MAX {
                return Err(IngestError::TooManyRecords { limit: RECORDS_MAX });
            }
        }
        archive.drop_repeated_pages(sources);
        Ok(archive)
    }

    fn drop_damaged(&mut self, source: &Source, offset: u64, damage: Damage) {
        let origin = origin(source, offset, None);
        let drop = DropReason::because(damage.reason());
        self.found.push(Found::Dropped(drop.at(Stage::Read, &origin, None)));
    }

    fn add(&mut self, i: usize, source: &Source, record: &Record, rules: &OptOutPlan) {
        if let Err(drop) = self.add_answer(i, source, record, rules) {
            let origin = origin(source, record.offset, record.target());
            self.found.push(Found::Dropped(drop.at(Stage::Read, &origin, None)));
        }
    }

    fn add_answer(
        &mut self,
        i: usize,
        source: &Source,
        record: &Record,
        rules: &OptOutPlan,
    ) -> Result<(), DropReason> {
        let Some(response) = response(record) else { return Ok(()) };
        let (head, body) = response?;
        let target = record.target().ok_or_else(|| DropReason::because("no_target_uri"))?;
        let place = Place { source: i, offset: record.offset, length: record.length };
        let kind = self.answer_kind(record, &head, place);
        let is_page = is_page(&head, body);
        match &kind {
            // An image that is a web page is found out when the image is wanted.
            AnswerKind::Body if is_page => {
                self.found.push(Found::Page { place, url: target.to_owned() });
            }
            AnswerKind::Revisit { .. } if is_page => {
                let origin = origin(source, record.offset, Some(target));
                let drop = DropReason::because("repeated_page");
                self.found.push(Found::Dropped(drop.at(Stage::Page, &origin, None)));
            }
            _ => {}
        }
        let answer = Answer { place, kind, opt_out: opt_out::in_head(&head, rules) };
        match self.answers.entry(key(target)) {
            Entry::Vacant(entry) => {
                entry.insert(answer);
            }
            Entry::Occupied(mut entry) => {
                if answer.kind.rank() < entry.get().kind.rank() {
                    entry.insert(answer);
                }
            }
        }
        Ok(())
    }

    fn answer_kind(&mut self, record: &Record, head: &Head, place: Place) -> AnswerKind {
        let digest = record.field("WARC-Payload-Digest").map(str::to_ascii_lowercase);
        match (record.kind(), digest, head.header("Location")) {
            ("revisit", Some(digest), _) => AnswerKind::Revisit { digest },
            (_, _, Some(to)) if (300..400).contains(&head.status) => {
                AnswerKind::Redirect { to: to.to_owned() }
            }
            (_, digest, _) if (200..300).contains(&head.status) => {
                if let Some(digest) = digest {
                    self.digests.entry(digest).or_insert(place);
                }
                AnswerKind::Body
            }
            _ => AnswerKind::Failure { status: head.status },
        }
    }

    /// Turns pages whose address has an earlier page into rejects. Records of other types do not
    /// count: an address may give a page to browsers and something else to scripts.
    fn drop_repeated_pages(&mut self, sources: &[Arc<Source>]) {
        let mut seen = HashSet::new();
        for found in &mut self.found {
            let Found::Page { place, url } = found else { continue };
            if !seen.insert(key(url)) {
                let origin = origin(&sources[place.source], place.offset, Some(url));
                let drop = DropReason::because("repeated_page");
                *found = Found::Dropped(drop.at(Stage::Page, &origin, None));
            }
        }
    }

    /// Where the body for an address lies, redirects followed.
    ///
    /// # Errors
    /// With the reason why there is none, or why it may not be used.
    pub fn find(&self, url: &str, redirects_max: u32) -> Result<Place, (Stage, DropReason)> {
        let read = |drop| (Stage::Read, drop);
        let mut url = url.to_owned();
        for _ in 0..=redirects_max {
            let Some(answer) = self.answers.get(&key(&url)) else {
                return Err(read(DropReason::because(NOT_IN_ARCHIVE)));
            };
            if let Some(drop) = &answer.opt_out {
                return Err((Stage::OptOut, drop.clone()));
            }
            match &answer.kind {
                AnswerKind::Body => return Ok(answer.place),
                AnswerKind::Revisit { digest } => {
                    let place = self.digests.get(digest).copied();
                    return place.ok_or_else(|| read(DropReason::because("revisit_of_nothing")));
                }
                AnswerKind::Failure { status } => {
                    return Err(read(DropReason {
                        measured: Some(f64::from(*status)),
                        ..DropReason::because("http_status")
                    }));
                }
                AnswerKind::Redirect { to } => {
                    let next = Url::parse(&url).and_then(|url| url.join(to));
                    let Ok(next) = next else {
                        return Err(read(DropReason::detail("bad_redirect", to.as_str())));
                    };
                    url = next.into();
                }
            }
        }
        Err(read(DropReason::limit(
            "too_many_redirects",
            f64::from(redirects_max + 1),
            f64::from(redirects_max),
        )))
    }
}

/// Where a record of `source` came from.
pub fn origin(source: &Source, offset: u64, url: Option<&str>) -> Origin {
    Origin {
        source: source.name().to_owned(),
        offset: Some(offset as i64),
        url: url.map(str::to_owned),
    }
}

fn unreadable(source: &Source, error: io::Error) -> IngestError {
    IngestError::InputRead { input: source.input().to_owned(), source: error }
}

/// The address under which a record is found: without fragment, in the form of the URL standard.
fn key(url: &str) -> String {
    let Ok(mut parsed) = Url::parse(url) else { return url.to_owned() };
    parsed.set_fragment(None);
    parsed.into()
}

/// Whether an answer is a web page: by its type, else by its first bytes.
fn is_page(head: &Head, body: &[u8]) -> bool {
    match head.media_type().as_str() {
        "text/html" | "application/xhtml+xml" => true,
        "" => {
            http::decode_body(head, body, SNIFF_BYTES_MAX).is_ok_and(|body| image::is_html(&body))
        }
        _ => false,
    }
}

/// Head and body of a record that answers a request, or why it has none; nothing for other records.
pub fn response(record: &Record) -> Option<Result<(Head, &[u8]), DropReason>> {
    match record.kind() {
        // Answers of name servers are stored as responses, too.
        "response" if record.target().is_some_and(|target| target.starts_with("dns:")) => None,
        // A repeated answer may be stored without its head.
        "revisit" if record.block.is_empty() => Some(Ok((Head::default(), &[]))),
        "response" | "revisit" => Some(http::parse_head(&record.block)),
        // A file that was stored without a conversation around it.
        "resource" => {
            let content_type = record.field("Content-Type").unwrap_or("").to_owned();
            let headers = vec![("Content-Type".to_owned(), content_type)];
            Some(Ok((Head { status: 200, headers }, &record.block)))
        }
        _ => None,
    }
}

/// The record at `place` and its body, at most `bytes_max` bytes after all codings are removed.
///
/// # Errors
/// The outer error when the source cannot be read, the inner one when the record is damaged or its
/// body too long.
pub fn read_body(
    sources: &[Arc<Source>],
    place: Place,
    bytes_max: u64,
) -> Result<Result<(Record, Head, Bytes), DropReason>, IngestError> {
    let source = &sources[place.source];
    let block_max = usize::try_from(bytes_max).unwrap_or(usize::MAX).saturating_add(HEAD_BYTES);
    let record = warc::read_record(source, place.offset, place.length, block_max)
        .map_err(|error| unreadable(source, error))?;
    Ok(open_body(record, bytes_max))
}

fn open_body(
    record: Result<Record, Damage>,
    bytes_max: u64,
) -> Result<(Record, Head, Bytes), DropReason> {
    let mut record = record.map_err(|damage| DropReason::because(damage.reason()))?;
    if record.is_cut {
        let length = record.field("Content-Length").and_then(|length| length.parse().ok());
        return Err(DropReason::limit(
            "too_many_bytes",
            length.unwrap_or(f64::MAX),
            bytes_max as f64,
        ));
    }
    let block = std::mem::take(&mut record.block);
    let with_block = Record { block, ..record };
    let response = response(&with_block);
    let (head, body) = response.ok_or_else(|| DropReason::because("not_a_response"))??;
    let body = http::decode_body(&head, body, bytes_max)?;
    let body = Bytes::from(body.into_owned());
    Ok((with_block, head, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(target: &str, http: &str) -> String {
        format!(
            "WARC/1.1\r\nWARC-Type: response\r\nWARC-Target-URI: {target}\r\n\
             Content-Length: {}\r\n\r\n{http}\r\n\r\n",
            http.len()
        )
    }

    /// What the walk finds: addresses of pages, reasons of what is dropped.
    fn index(records: &[String]) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.warc");
        std::fs::write(&path, records.concat()).unwrap();
        let sources = [Arc::new(Source::open(path.to_str().unwrap()).unwrap())];
        let archive = Archive::index(&sources, &BuildPlan::default(), || ()).unwrap();
        let show = |found: &Found| match found {
            Found::Page { url, .. } => url.clone(),
            Found::Dropped(reject) => reject.rule(),
        };
        archive.found.iter().map(show).collect()
    }

    #[test]
    fn an_answer_that_cannot_be_read_has_its_reject() {
        let long = format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n<html>", "a".repeat(HEAD_BYTES));
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n<html>", "A: b\r\n".repeat(257));
        let check = |http: &str, expected: &str| {
            assert_eq!(index(&[response("http://a/", http)]), [expected]);
        };
        check(&long, "read/head_not_whole");
        check(&many, "read/too_many_headers");
        check("garbage\r\n\r\n<html>", "read/bad_http_head");
        check("HTTP/1.1 200 OK\r\n\r\n<!doctype html><p>no type", "http://a/");
        assert!(index(&[response("dns:a.example", "20260101\n1.2.3.4")]).is_empty());
    }

    #[test]
    fn the_first_page_of_an_address_is_kept() {
        let answer = |media_type: &str| {
            response(
                "http://a/",
                &format!("HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\n\r\nx"),
            )
        };
        let records = ["application/json", "text/html", "text/html"].map(answer);
        assert_eq!(index(&records), ["http://a/", "page/repeated_page"]);
    }
}
