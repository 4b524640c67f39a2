//! What the inputs of a run hold: which record has which address, and what each page needs to find
//! its images. Built by one walk over all inputs, before any page is read.

use std::collections::hash_map::Entry as MapEntry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use url::Url;

use crate::error::IngestError;
use crate::http::{self, Head};
use crate::image;
use crate::opt_out;
use crate::ordered::{Weigh, ordered_map};
use crate::plan::{BuildPlan, CutOff, TruncatedRecords};
use crate::reject::{DropReason, Origin, Reject, Stage};
use crate::saved_page::{self, LocalFiles};
use crate::source::{self, Source, has_suffix};
use crate::spool::{Spool, SpoolRoom};
use crate::warc::{self, Damage, Record, Walk};

/// Why an image is not there that no archive has a record of.
pub(crate) const NOT_IN_ARCHIVE: &str = "not_in_archive";
/// Endings of what is read for web pages. Files that are named one by one may have any ending: their
/// first bytes decide.
pub const SUFFIXES: &[&str] = &[
    ".warc",
    ".warc.gz",
    ".warc.zst",
    ".warc.lz4",
    ".arc",
    ".arc.gz",
    ".arc.zst",
    ".arc.lz4",
    ".wet",
    ".wet.gz",
    ".wet.zst",
    ".wat",
    ".wat.gz",
    ".wat.zst",
    ".html",
    ".htm",
    ".html.gz",
    ".htm.gz",
];
/// Bytes of a block that are read for the index: enough for the head of a response.
const HEAD_BYTES: usize = 64 << 10;
/// Most bytes that the beginning of a compressed body may grow to when a page is looked for in it.
const SNIFF_BYTES_MAX: u64 = 64 << 20;
/// Most records of one run: each takes about 400 bytes of memory.
const RECORDS_MAX: usize = 20_000_000;
/// Types of records that are counted by name.
const KINDS: [&str; 8] = [
    "warcinfo",
    "response",
    "resource",
    "request",
    "metadata",
    "revisit",
    "conversion",
    "continuation",
];

/// Where a record or file lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// Index of the input.
    pub source: usize,
    /// Offset in the input, see [`Record::offset`].
    pub offset: u64,
    /// Bytes that the record takes.
    pub length: u64,
    at: At,
}

/// How a place is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum At {
    /// By its offset in the input.
    Record,
    /// By this offset in the spool of the input.
    Spooled(u64),
    /// The input is the page.
    Saved,
    /// A file beside a saved page, by its number.
    Local(usize),
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
    /// A body in another record.
    Revisit(Box<Revisit>),
    /// Another address.
    Redirect { to: String },
    /// An error.
    Failure { status: u16 },
}

/// What a `revisit` record says of the record with the body, most exact first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Revisit {
    id: Option<Key>,
    captured: Option<Key>,
    payload: Option<Key>,
    url: Option<String>,
}

/// Under what a body is found again: half of a hash of a name of it.
type Key = u128;

impl AnswerKind {
    /// Which of several answers to one address is used: a body, then a way to one, then an error.
    fn rank(&self) -> u8 {
        match self {
            Self::Body => 0,
            Self::Revisit(_) => 1,
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
    /// The first body under each name.
    bodies: HashMap<Key, Place>,
    /// Bodies of archives that cannot be read at an offset, by input.
    spools: HashMap<usize, Source>,
    /// Files beside saved pages.
    local: LocalFiles,
    /// Pages of `revisit` records: where they are in `found`.
    repeated: Vec<(usize, Revisit)>,
    /// Records of each type, whether they were used or not.
    pub kinds: BTreeMap<&'static str, u64>,
    /// Pages and damaged records in reading order.
    pub found: Vec<Found>,
}

/// How the inputs are walked over.
#[derive(Debug, Clone, Copy)]
pub struct Walking<'a> {
    /// Threads; each takes one input at a time.
    pub workers: usize,
    /// Where records are kept that cannot be read at an offset.
    pub spool_folder: &'a Path,
}

/// What one input holds.
struct Walked {
    items: Vec<Item>,
    kinds: BTreeMap<&'static str, u64>,
    spool: Option<Source>,
    /// Why it is no archive, where it has no record.
    foreign: Option<&'static str>,
}

enum Item {
    Answer(Box<Listed>),
    Dropped(Reject),
}

/// An answer with everything under which it is listed.
struct Listed {
    answer: Answer,
    target: String,
    names: Vec<Key>,
    page: PageKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PageKind {
    None,
    /// A web page.
    Html,
    /// The text of a web page (WET).
    Text,
}

impl Archive {
    /// Walks over all sources. `seen` is called for each record.
    ///
    /// # Errors
    /// When a source cannot be read, there is no record at all, the plan wants whole archives and one
    /// is not, or there are too many records.
    pub fn index(
        sources: &[Arc<Source>],
        plan: &BuildPlan,
        walking: Walking<'_>,
        seen: impl Fn() + Sync,
    ) -> Result<Self, IngestError> {
        let mut archive = Self { local: LocalFiles::of(sources), ..Self::default() };
        let room = SpoolRoom::new(walking.spool_folder, plan.archive.spool_bytes_max);
        let walk = |(i, source): (usize, &Arc<Source>)| {
            let walker = Walker { i, source, plan, room: &room };
            Ok((i, if is_saved_page(source) { walker.saved(&seen)? } else { walker.walk(&seen)? }))
        };
        let mut foreign = None;
        let items = sources.iter().enumerate().map(Ok);
        ordered_map(items, walking.workers, walk, |(i, walked): (usize, Walked)| {
            if let (Some(reason), None) = (walked.foreign, &foreign) {
                foreign = Some((i, reason));
            }
            archive.merge(i, walked);
            let is_full = archive.answers.len() > RECORDS_MAX || archive.found.len() > RECORDS_MAX;
            let full = IngestError::TooManyRecords { limit: RECORDS_MAX };
            if is_full { Err(full) } else { Ok(()) }
        })?;
        if let (Some((i, reason)), true) = (foreign, archive.kinds.is_empty()) {
            let input = sources[i].input().to_owned();
            return Err(IngestError::ArchiveForeign { input, reason });
        }
        archive.drop_revisits(sources);
        archive.drop_repeated_pages(sources);
        Ok(archive)
    }

    fn merge(&mut self, i: usize, walked: Walked) {
        for (kind, n) in walked.kinds {
            *self.kinds.entry(kind).or_default() += n;
        }
        self.spools.extend(walked.spool.map(|spool| (i, spool)));
        for item in walked.items {
            match item {
                Item::Dropped(reject) => self.found.push(Found::Dropped(reject)),
                Item::Answer(listed) => self.list(*listed),
            }
        }
    }

    fn list(&mut self, listed: Listed) {
        let Listed { answer, target, names, page } = listed;
        for name in names {
            self.bodies.entry(name).or_insert(answer.place);
        }
        if page != PageKind::None {
            if let AnswerKind::Revisit(revisit) = &answer.kind {
                self.repeated.push((self.found.len(), (**revisit).clone()));
            }
            if matches!(answer.kind, AnswerKind::Body | AnswerKind::Revisit(_)) {
                self.found.push(Found::Page { place: answer.place, url: target.clone() });
            }
        }
        match self.answers.entry(key(&target)) {
            MapEntry::Vacant(entry) => {
                entry.insert(answer);
            }
            MapEntry::Occupied(mut entry) => {
                if answer.kind.rank() < entry.get().kind.rank() {
                    entry.insert(answer);
                }
            }
        }
    }

    /// Turns pages of `revisit` records into rejects: their content is another page's.
    fn drop_revisits(&mut self, sources: &[Arc<Source>]) {
        for (at, revisit) in std::mem::take(&mut self.repeated) {
            let (stage, reason) = match self.original(&revisit) {
                Some(_) => (Stage::Page, "repeated_page"),
                None => (Stage::Read, "revisit_of_nothing"),
            };
            let Found::Page { place, url } = &self.found[at] else { continue };
            let origin = origin(&sources[place.source], place.offset, Some(url));
            let reject = DropReason::because(reason).at(stage, &origin, None);
            self.found[at] = Found::Dropped(reject);
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
                let file = self.local.find(&url).map(|(file, length)| Place {
                    source: 0,
                    offset: 0,
                    length,
                    at: At::Local(file),
                });
                return file.ok_or_else(|| read(DropReason::because(NOT_IN_ARCHIVE)));
            };
            if let Some(drop) = &answer.opt_out {
                return Err((Stage::OptOut, drop.clone()));
            }
            match &answer.kind {
                AnswerKind::Body => return Ok(answer.place),
                AnswerKind::Revisit(revisit) => {
                    let place = self.original(revisit);
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

    /// The record with the body that a `revisit` record stands for.
    fn original(&self, revisit: &Revisit) -> Option<Place> {
        let names = [revisit.id, revisit.captured, revisit.payload];
        let named = names.into_iter().flatten().find_map(|name| self.bodies.get(&name).copied());
        named.or_else(|| {
            let answer = self.answers.get(&key(revisit.url.as_deref()?))?;
            (answer.kind == AnswerKind::Body).then_some(answer.place)
        })
    }

    /// The record at `place` and its body, at most `bytes_max` bytes after all codings are removed.
    ///
    /// # Errors
    /// The outer error when the source cannot be read, the inner one when the record is damaged or its
    /// body too long.
    pub fn read_body(
        &self,
        sources: &[Arc<Source>],
        place: Place,
        bytes_max: u64,
    ) -> Result<Result<(Record, Head, Bytes), DropReason>, IngestError> {
        let block_max = usize::try_from(bytes_max).unwrap_or(usize::MAX).saturating_add(HEAD_BYTES);
        let (source, offset) = match place.at {
            At::Record => (&*sources[place.source], place.offset),
            At::Spooled(offset) => (&self.spools[&place.source], offset),
            At::Saved => return saved_page::read(&sources[place.source], bytes_max),
            At::Local(file) => return Ok(self.local.read(file, bytes_max)),
        };
        let record = warc::read_record(source, offset, place.length, block_max)
            .map_err(|error| unreadable(&sources[place.source], error))?;
        let (offset, length) = (place.offset, place.length);
        let record = record.map(|record| Record { offset, length, ..record });
        Ok(open_body(record, bytes_max))
    }
}

/// One input on its walk.
struct Walker<'a> {
    i: usize,
    source: &'a Source,
    plan: &'a BuildPlan,
    room: &'a SpoolRoom,
}

impl Walker<'_> {
    fn walk(&self, seen: impl Fn()) -> Result<Walked, IngestError> {
        let (source, cut_off) = (self.source, self.plan.archive.cut_off);
        let mut walked =
            Walked { items: Vec::new(), kinds: BTreeMap::new(), spool: None, foreign: None };
        let mut spool = Spool::new(self.room);
        let mut walk = Walk::new(source);
        let mut foreign = "no whole record";
        while let Some(step) = walk.advance().map_err(|error| unreadable(source, error))? {
            let taken = match step {
                Ok(()) => walk
                    .take_record(HEAD_BYTES, Some(&mut spool), is_body)
                    .map_err(|error| unreadable(source, error))?,
                Err(damage) => Err(damage),
            };
            spool.check()?;
            match taken {
                Ok((record, spooled)) => self.add(&record, spooled, &mut walked),
                Err((offset, Damage::Truncated)) if cut_off == CutOff::Fail => {
                    let input = source.input().to_owned();
                    return Err(IngestError::ArchiveCutOff { input, offset });
                }
                Err((offset, damage)) => {
                    if offset == 0 && damage == Damage::NotWarc {
                        foreign = damage.reason();
                    }
                    self.drop_at(offset, None, DropReason::because(damage.reason()), &mut walked);
                }
            }
            seen();
        }
        if walked.kinds.is_empty() {
            if cut_off == CutOff::Fail {
                let (input, reason) = (source.input().to_owned(), foreign);
                return Err(IngestError::ArchiveForeign { input, reason });
            }
            walked.foreign = Some(foreign);
            if walked.items.is_empty() {
                self.drop_at(0, None, DropReason::because("no_record"), &mut walked);
            }
        }
        walked.spool = spool.into_source(source.name())?;
        Ok(walked)
    }

    /// A saved page is an input of its own.
    fn saved(&self, seen: impl Fn()) -> Result<Walked, IngestError> {
        let source = self.source;
        let url = saved_page::address(source).map_err(|error| unreadable(source, error))?;
        seen();
        let place = Place { source: self.i, offset: 0, length: source.len(), at: At::Saved };
        let answer = Answer { place, kind: AnswerKind::Body, opt_out: None };
        let listed = Listed { answer, target: url, names: Vec::new(), page: PageKind::Html };
        let kinds = BTreeMap::from([("saved page", 1)]);
        let items = vec![Item::Answer(Box::new(listed))];
        Ok(Walked { items, kinds, spool: None, foreign: None })
    }

    fn drop_at(&self, offset: u64, url: Option<&str>, drop: DropReason, walked: &mut Walked) {
        let origin = origin(self.source, offset, url);
        walked.items.push(Item::Dropped(drop.at(Stage::Read, &origin, None)));
    }

    fn add(&self, record: &Record, spooled: Option<u64>, walked: &mut Walked) {
        let kind = KINDS.into_iter().find(|kind| *kind == record.kind()).unwrap_or("other");
        *walked.kinds.entry(kind).or_default() += 1;
        match self.answer(record, spooled) {
            Ok(Some(listed)) => walked.items.push(Item::Answer(Box::new(listed))),
            Ok(None) => {}
            Err((stage, drop)) => {
                let origin = origin(self.source, record.offset, record.target());
                walked.items.push(Item::Dropped(drop.at(stage, &origin, None)));
            }
        }
    }

    fn answer(
        &self,
        record: &Record,
        spooled: Option<u64>,
    ) -> Result<Option<Listed>, (Stage, DropReason)> {
        let read = |drop| (Stage::Read, drop);
        let Some(response) = response(record) else { return Ok(None) };
        let (head, body) = response.map_err(read)?;
        let target = record.target().ok_or_else(|| read(DropReason::because("no_target_uri")))?;
        let page = page_kind(record, &head, body);
        if page == PageKind::Text && self.plan.document.images_min > 0 {
            let least = self.plan.document.images_min as f64;
            return Err((Stage::Page, DropReason::limit("text_without_images", 0.0, least)));
        }
        if page != PageKind::None
            && self.plan.archive.truncated == TruncatedRecords::Drop
            && let Some(why) = record.field("WARC-Truncated")
        {
            return Err(read(DropReason::detail("truncated_record", why)));
        }
        let at = spooled.map_or(At::Record, At::Spooled);
        let place = Place { source: self.i, offset: record.offset, length: record.length, at };
        let kind = answer_kind(record, &head);
        let names = if kind == AnswerKind::Body { names(record, target) } else { Vec::new() };
        let answer = Answer { place, kind, opt_out: opt_out::in_head(&head, &self.plan.opt_out) };
        Ok(Some(Listed { answer, target: target.to_owned(), names, page }))
    }
}

/// Whether a record has a body that may be wanted later.
fn is_body(record: &Record) -> bool {
    let head = response(record).and_then(Result::ok).map(|(head, _)| head);
    head.is_some_and(|head| answer_kind(record, &head) == AnswerKind::Body)
}

fn answer_kind(record: &Record, head: &Head) -> AnswerKind {
    if record.kind() == "revisit" {
        let name = |kind: &str, field: &str| record.field(field).map(|name| name_key(kind, name));
        let url = record.field("WARC-Refers-To-Target-URI").map(|url| url.trim_matches(['<', '>']));
        let date = record.field("WARC-Refers-To-Date");
        return AnswerKind::Revisit(Box::new(Revisit {
            id: name("id", "WARC-Refers-To"),
            captured: url.zip(date).map(|(url, date)| captured_key(url, date)),
            payload: name("payload", "WARC-Payload-Digest"),
            url: url.map(str::to_owned),
        }));
    }
    match (head.status, head.header("Location")) {
        (300..=303 | 307 | 308, Some(to)) => AnswerKind::Redirect { to: to.to_owned() },
        (200..300, _) => AnswerKind::Body,
        (status, _) => AnswerKind::Failure { status },
    }
}

/// The names under which a `revisit` record may refer to a body.
fn names(record: &Record, target: &str) -> Vec<Key> {
    let mut names = Vec::with_capacity(3);
    names.extend(record.field("WARC-Record-ID").map(|id| name_key("id", id)));
    names.extend(record.field("WARC-Date").map(|date| captured_key(target, date)));
    names.extend(record.field("WARC-Payload-Digest").map(|digest| name_key("payload", digest)));
    names
}

fn name_key(kind: &str, name: &str) -> Key {
    let hash = Sha256::digest(format!("{kind} {}", name.trim_matches(['<', '>']).to_lowercase()));
    Key::from_le_bytes(hash[..16].try_into().expect("a hash has 32 bytes"))
}

fn captured_key(url: &str, date: &str) -> Key {
    name_key("captured", &format!("{} {date}", key(url)))
}

/// The files that `inputs` name: folders and prefixes of an object store as all files in them with an
/// ending of [`SUFFIXES`], files as they are where their ending or their first bytes fit.
///
/// # Errors
/// When an input is missing, is a file of another kind, or is a folder without such files.
pub fn expand(inputs: &[String]) -> Result<Vec<String>, IngestError> {
    let mut files = Vec::new();
    for input in inputs {
        if !has_suffix(input, SUFFIXES) && !source::is_url(input) && begins_well(input) {
            files.push(input.clone());
        } else {
            files.extend(source::expand(std::slice::from_ref(input), SUFFIXES)?);
        }
    }
    files.retain(|file| !saved_page::is_part(file));
    Ok(files)
}

/// Whether an input is named like an archive or a page. WAT files only list the links of pages.
pub fn is_archive(input: &str) -> bool {
    has_suffix(input, SUFFIXES) && !has_suffix(input, &[".wat", ".wat.gz", ".wat.zst"])
}

/// Whether a file begins like an archive or a web page.
fn begins_well(path: &str) -> bool {
    Source::open(path).is_ok_and(|source| {
        let starts = || warc::starts(&source).unwrap_or(false);
        starts() || saved_page::begins(&source)
    })
}

/// Whether an input is a web page and no archive.
fn is_saved_page(source: &Source) -> bool {
    let name = source.input();
    has_suffix(name, saved_page::SUFFIXES)
        || (!has_suffix(name, SUFFIXES) && saved_page::begins(source))
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
fn page_kind(record: &Record, head: &Head, body: &[u8]) -> PageKind {
    let is_page = match head.media_type().as_str() {
        "text/html" | "application/xhtml+xml" => true,
        "text/plain" if record.kind() == "conversion" => return PageKind::Text,
        // ARC records without a known type say so.
        "" | "unknown" | "no-type" => {
            http::decode_body(head, body, SNIFF_BYTES_MAX).is_ok_and(|body| image::is_html(&body))
        }
        _ => false,
    };
    if is_page { PageKind::Html } else { PageKind::None }
}

/// Head and body of a record that answers a request, or why it has none; nothing for other records.
pub fn response(record: &Record) -> Option<Result<(Head, &[u8]), DropReason>> {
    let target = record.target().unwrap_or("");
    let scheme = target.split_once(':').map_or("", |(scheme, _)| scheme);
    let is_web = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    let stored = || {
        let content_type = record.field("Content-Type").unwrap_or("").to_owned();
        let headers = vec![("Content-Type".to_owned(), content_type)];
        Some(Ok((Head { status: 200, headers }, &*record.block)))
    };
    match record.kind() {
        // Answers of name servers are stored as responses, too.
        "response" if matches!(scheme, "dns" | "whois") => None,
        // Neither have answers of file servers a head.
        "response" if matches!(scheme, "ftp" | "ftps" | "sftp") => stored(),
        // A repeated answer may be stored without its head.
        "revisit" if record.block.is_empty() => Some(Ok((Head::default(), &[]))),
        "response" | "revisit" => Some(http::parse_head(&record.block)),
        // A file that was stored without a conversation around it.
        "resource" if is_web || !target.starts_with("urn:") => stored(),
        "conversion" => stored(),
        // The rest of a record that was cut into several.
        "continuation" => Some(Err(DropReason::because("segmented_record"))),
        _ => None,
    }
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
        let walking = Walking { workers: 2, spool_folder: folder.path() };
        let archive = Archive::index(&sources, &BuildPlan::default(), walking, || ()).unwrap();
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

    fn fields(kind: &str, more: &str, block: &str) -> String {
        let length = block.len();
        format!(
            "WARC/1.0\r\nWARC-Type: {kind}\r\n{more}Content-Length: {length}\r\n\r\n{block}\r\n\r\n"
        )
    }

    fn archive(bytes: Vec<u8>, plan: &BuildPlan) -> ([Arc<Source>; 1], Archive) {
        let sources = [Arc::new(Source::of_bytes("a.warc", bytes))];
        let folder = std::env::temp_dir();
        let walking = Walking { workers: 1, spool_folder: &folder };
        let archive = Archive::index(&sources, plan, walking, || ()).unwrap();
        (sources, archive)
    }

    #[test]
    fn a_revisit_is_found_by_record_by_date_by_digest_or_by_address() {
        let answer = "HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n";
        let original = |n: u32| {
            let more = format!(
                "WARC-Target-URI: http://a/x\r\nWARC-Date: 2020-01-01T00:00:0{n}Z\r\n\
                 WARC-Record-ID: <urn:uuid:{n}>\r\nWARC-Payload-Digest: sha1:{n}\r\n"
            );
            fields("response", &more, &format!("{answer}body {n}"))
        };
        let check = |more: &str, expected: Option<&str>| {
            let more = format!("WARC-Target-URI: http://a/y\r\n{more}");
            let records = [original(1), original(2), fields("revisit", &more, answer)].concat();
            let (sources, archive) = archive(records.into_bytes(), &BuildPlan::default());
            let place = archive.find("http://a/y", 5).map_err(|(_, drop)| drop.reason);
            let body =
                place.map(|place| archive.read_body(&sources, place, 100).unwrap().unwrap().2);
            assert_eq!(body.ok().as_deref(), expected.map(str::as_bytes), "{more}");
        };
        check("WARC-Refers-To: <URN:uuid:2>\r\n", Some("body 2"));
        let at = "WARC-Refers-To-Target-URI: http://a/x\r\nWARC-Refers-To-Date: 2020-01-01T00:00:0";
        check(&format!("{at}2Z\r\n"), Some("body 2"));
        check(&format!("{at}7Z\r\n"), Some("body 1"));
        check("WARC-Payload-Digest: SHA1:2\r\n", Some("body 2"));
        check("WARC-Payload-Digest: sha1:3\r\n", None);
        check("", None);
    }

    #[test]
    fn bodies_of_an_archive_in_one_stream_are_kept_beside_it() {
        let page =
            response("http://a/", "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>one");
        let image =
            response("http://a/i", &format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(200_000)));
        let missing = response("http://a/m", "HTTP/1.1 404 No\r\n\r\nnothing");
        let records =
            [&*page, &*missing, &*image, &page.replace("http://a/", "http://b/")].concat();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gzip, records.as_bytes()).unwrap();
        let mut plan = BuildPlan::default();
        let packed = gzip.finish().unwrap();
        let (sources, whole) = archive(packed.clone(), &plan);
        let body = |url: &str| {
            let place = whole.find(url, 0).unwrap();
            let (record, _, body) = whole.read_body(&sources, place, 1 << 20).unwrap().unwrap();
            (record.offset, body.len())
        };
        assert_eq!(body("http://a/"), (0, 6));
        assert_eq!(body("http://a/i"), ((page.len() + missing.len()) as u64, 200_000));
        assert_eq!(body("http://b/").1, 6);
        plan.archive.spool_bytes_max = 100_000;
        let folder = std::env::temp_dir();
        let walking = Walking { workers: 1, spool_folder: &folder };
        let error = Archive::index(&sources, &plan, walking, || ()).err().unwrap();
        assert!(error.to_string().contains("archive.spool_bytes_max"), "{error}");
    }

    #[test]
    fn texts_without_images_are_pages_only_where_the_plan_wants_none() {
        let more = "WARC-Target-URI: http://a/\r\nContent-Type: text/plain\r\n";
        let wet = fields("conversion", more, "one\ntwo\n");
        assert_eq!(index(std::slice::from_ref(&wet)), ["page/text_without_images"]);
        let mut plan = BuildPlan::default();
        plan.document.images_min = 0;
        let (_, archive) = archive(wet.into_bytes(), &plan);
        assert!(matches!(&archive.found[..], [Found::Page { url, .. }] if url == "http://a/"));
        assert_eq!(archive.kinds["conversion"], 1);
        assert_eq!(index(&[fields("continuation", more, "x")]), ["read/segmented_record"]);
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
