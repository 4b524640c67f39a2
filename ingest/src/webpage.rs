//! Nodes of a page and the image records of the archives to one interleaved document.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::compute::kernels::cast_utils::string_to_timestamp_nanos;
use flamingo_dataset::{ImageMeta, Interleaved, Row, Slot, WarcPlace, sha256_hex};
use url::Url;

use crate::archive::{self, Archive, Found, NOT_IN_ARCHIVE, Place};
use crate::error::IngestError;
use crate::fetch::{Answer, Body, Wish};
use crate::figures::{Figures, Level};
use crate::html::{self, BlockKind, Node, Page};
use crate::http::{self, Head};
use crate::image;
use crate::img_tag::ImageNode;
use crate::opt_out;
use crate::outcome::{Outcome, without_panic};
use crate::plan::{BuildPlan, DocumentPlan};
use crate::reject::{DropReason, Origin, Reject, Stage};
use crate::rules::language::Language;
use crate::rules::plan::ScoreLevel;
use crate::rules::{self, Keys, Rules, Values};
use crate::source::Source;
use crate::split;
use crate::warc::Record;

/// Most images of a page that are asked for.
const WISHES_MAX: usize = 1000;

/// The inputs and rules that every page needs.
pub struct WebJob<'a> {
    /// The archives.
    pub sources: &'a [Arc<Source>],
    /// What they hold.
    pub archive: &'a Archive,
    /// The rules.
    pub plan: &'a BuildPlan,
    /// The rules for texts, addresses and scores.
    pub rules: &'a Rules,
}

impl WebJob<'_> {
    /// Makes one document, or says why not, with the answers to its wishes.
    ///
    /// # Errors
    /// When an archive cannot be read any more.
    pub fn document(&self, found: &Found, answers: Vec<Answer>) -> Result<Outcome, IngestError> {
        let (place, url) = match found {
            Found::Page { place, url } => (*place, url),
            Found::Dropped(reject) => return Ok(Outcome::dropped(reject.clone())),
        };
        let origin = archive::origin(&self.sources[place.source], place.offset, Some(url));
        let mut fetches = Vec::new();
        let mut fetched = Fetched::new();
        for Answer { result, fetch } in answers {
            fetched.insert(fetch.url.clone(), result);
            fetches.push(fetch);
        }
        let outcome = without_panic(|| self.page(place, url, &origin, &fetched))
            .unwrap_or_else(|drop| Ok(Outcome::dropped(drop.at(Stage::Page, &origin, None))));
        outcome.map(|outcome| Outcome { fetches, ..outcome })
    }

    /// The addresses of the images of a page that the archives lack. The page is read here and again
    /// when they are there, so that what waits for the network are addresses, not pages.
    ///
    /// # Errors
    /// When an archive cannot be read any more.
    pub fn wishes(&self, found: &Found) -> Result<Vec<Wish>, IngestError> {
        let Found::Page { place, url } = found else { return Ok(Vec::new()) };
        if split::check(&self.plan.split, url).is_some()
            || self.rules.refuse(url, Stage::Page).is_some()
        {
            return Ok(Vec::new());
        }
        let body =
            self.archive.read_body(self.sources, *place, self.plan.archive.page_bytes_max)?;
        let Ok((_, head, body)) = body else { return Ok(Vec::new()) };
        // What is wrong with a page is said when it is made.
        let page = without_panic(|| {
            let mut page = self.read_page(&head, &body, url).ok()?;
            self.rules.drop_paragraphs(&mut page.nodes);
            let is_dropped = self.rules.document(&rules::page_text(&page.nodes)).drop.is_some();
            (!is_dropped).then_some(page)
        });
        let page = page.ok().flatten();
        let mut wanted = Vec::new();
        for node in page.into_iter().flat_map(|page| page.nodes) {
            let Node::Image(node) = node else { continue };
            let is_missing = |url: &String| {
                let found = self.archive.find(url, self.plan.archive.redirects_max);
                found.is_err_and(|(_, drop)| drop.reason == NOT_IN_ARCHIVE)
            };
            let url = node.urls.first().filter(|url| !wanted.contains(*url));
            if let Some(url) = url
                && check_tag(&node, self.plan).is_none()
                && node.urls.iter().all(is_missing)
                && node.urls.iter().all(|url| self.rules.refuse(url, Stage::Image).is_none())
            {
                wanted.push(url.clone());
            }
        }
        // A page with more images than a document may have is dropped, whatever comes of them.
        let key = sha256_hex(url.as_bytes());
        let bytes_max = self.plan.image.bytes_max;
        let wish = |url| Wish { key: key.clone(), url, bytes_max };
        Ok(wanted.into_iter().take(WISHES_MAX).map(wish).collect())
    }

    fn page(
        &self,
        place: Place,
        url: &str,
        origin: &Origin,
        fetched: &Fetched,
    ) -> Result<Outcome, IngestError> {
        if let Some(drop) = split::check(&self.plan.split, url) {
            return Ok(Outcome::dropped(drop.at(Stage::Split, origin, None)));
        }
        if let Some((stage, drop)) = self.rules.refuse(url, Stage::Page) {
            return Ok(Outcome::dropped(drop.at(stage, origin, None)));
        }
        let body = self.archive.read_body(self.sources, place, self.plan.archive.page_bytes_max)?;
        let read = body.map_err(|drop| (Stage::Read, drop)).and_then(|(record, head, body)| {
            let page = self.read_page(&head, &body, url)?;
            Ok((record, page))
        });
        match read {
            Ok((record, page)) => self.assemble(&record, url, page, origin, fetched),
            Err((stage, drop)) => Ok(Outcome::dropped(drop.at(stage, origin, None))),
        }
    }

    fn read_page(&self, head: &Head, body: &[u8], url: &str) -> Result<Page, (Stage, DropReason)> {
        let rules = &self.plan.opt_out;
        if let Some(drop) = opt_out::in_head(head, rules) {
            return Err((Stage::OptOut, drop));
        }
        let address = Url::parse(url)
            .map_err(|error| (Stage::Page, DropReason::detail("bad_url", error.to_string())))?;
        let text = http::decode_text(head, body);
        if head.media_type() == "text/plain" {
            return Ok(text_page(&text));
        }
        let page = html::read_page(&text, &address).map_err(|drop| (Stage::Page, drop))?;
        match opt_out::in_meta(&page.robots, page.tdm_reservation.as_deref(), rules) {
            Some(drop) => Err((Stage::OptOut, drop)),
            None => Ok(page),
        }
    }

    fn assemble(
        &self,
        record: &Record,
        url: &str,
        mut page: Page,
        origin: &Origin,
        fetched: &Fetched,
    ) -> Result<Outcome, IngestError> {
        let mut outcome = Outcome::default();
        let doc_id = sha256_hex(url.as_bytes());
        // Texts are judged before images, which take far more time.
        let judged = self.judge_text(&mut page, &doc_id, url, origin, &mut outcome);
        let Ok((values, language)) = judged else { return Ok(outcome) };
        let mut slots = Slots::default();
        let mut seen = Seen::default();
        for node in page.nodes {
            match node {
                Node::Text { kind, text } => slots.push_text(kind, &text),
                Node::Image(image) => {
                    let row = (&doc_id[..], &mut outcome.figures);
                    match self.find_image(&image, &mut seen, fetched, row)? {
                        Ok(slot) => slots.push_image(slot),
                        Err((stage, drop)) => {
                            outcome.rejects.push(drop.at(
                                stage,
                                origin,
                                image.urls.first().map(String::as_str),
                            ));
                        }
                    }
                }
            }
        }
        let document = Interleaved {
            doc_id,
            url: url.to_owned(),
            slots: slots.slots,
            title: page.title,
            lang: language.map(|language| language.code.to_owned()).or(page.lang),
            lang_score: language.map(|language| language.score),
            warc: Some(WarcPlace {
                filename: origin.source.clone(),
                offset: record.offset as i64,
                length: record.length as i64,
            }),
            fetched_at_us: record.field("WARC-Date").and_then(microseconds),
        };
        let row = Row::Interleaved(document);
        let mut figures = document_figures(row.key(), url, values);
        figures.values.extend(counts(&row));
        match check_document(&row, &self.plan.document) {
            Ok(()) => outcome.rows.push(row),
            Err(drop) => {
                let reject = drop.at(Stage::Document, origin, None);
                figures.dropped_by = Some(reject.rule());
                outcome.rejects.push(reject);
            }
        }
        outcome.figures.push(figures);
        Ok(outcome)
    }

    /// Takes out paragraphs and judges the text that is left. An error means that the document is
    /// dropped; the outcome says why.
    fn judge_text(
        &self,
        page: &mut Page,
        doc_id: &str,
        url: &str,
        origin: &Origin,
        outcome: &mut Outcome,
    ) -> Result<(Values, Option<Language>), ()> {
        for paragraph in self.rules.drop_paragraphs(&mut page.nodes) {
            let reject = paragraph.drop.map(|drop| drop.at(Stage::Paragraph, origin, None));
            outcome.figures.push(Figures {
                level: Level::Paragraph,
                dropped_by: reject.as_ref().map(Reject::rule),
                ..document_figures(doc_id, url, paragraph.values)
            });
            outcome.rejects.extend(reject);
        }
        let mut text = self.rules.document(&rules::page_text(&page.nodes));
        let keys = Keys { url: Some(url), key: Some(doc_id), ..Keys::default() };
        let (scores, drop) = self.rules.scores(ScoreLevel::Document, keys);
        text.values.0.extend(scores);
        let Some(drop) = text.drop.or(drop) else { return Ok((text.values, text.language)) };
        let reject = drop.at(Stage::Text, origin, None);
        outcome.figures.push(Figures {
            dropped_by: Some(reject.rule()),
            ..document_figures(doc_id, url, text.values)
        });
        outcome.rejects.push(reject);
        Err(())
    }

    /// The image of a node, from the first of its addresses that the archives have.
    fn find_image(
        &self,
        node: &ImageNode,
        seen: &mut Seen,
        fetched: &Fetched,
        (doc_id, figures): (&str, &mut Vec<Figures>),
    ) -> Result<Result<Slot, (Stage, DropReason)>, IngestError> {
        if let Some(drop) = check_tag(node, self.plan) {
            return Ok(Err((Stage::Image, drop)));
        }
        // A site that says no to one size of an image says no to the image.
        if let Some(no) = node.urls.iter().find_map(|url| self.rules.refuse(url, Stage::Image)) {
            return Ok(Err(no));
        }
        let redirects_max = self.plan.archive.redirects_max;
        let mut first = None;
        let mut found = None;
        for url in &node.urls {
            match self.archive.find(url, redirects_max) {
                Ok(place) => {
                    found = Some((url, place));
                    break;
                }
                // A site that says no to one size of an image says no to the image.
                Err((Stage::OptOut, drop)) => return Ok(Err((Stage::OptOut, drop))),
                // Sites often list sizes that nobody fetched: what is known of another size says more.
                Err(reason) if tells_more(first.as_ref()) => first = Some(reason),
                Err(_) => {}
            }
        }
        let rules = &self.plan.image;
        let (url, body) = match found {
            None => match node.urls.first().and_then(|url| Some((url, fetched.get(url)?))) {
                None => return Ok(Err(first.expect("an image has an address"))),
                Some((url, _)) if !seen.fetched.insert(url.clone()) => {
                    return Ok(Err((Stage::Image, DropReason::because("repeated_image"))));
                }
                Some((_, Err(reason))) => return Ok(Err(reason.clone())),
                Some((url, Ok(body))) => match body.decoded(rules.bytes_max) {
                    Ok(body) => (url, body),
                    Err(reason) => return Ok(Err(reason)),
                },
            },
            Some((_, place)) if !seen.places.insert(place) => {
                return Ok(Err((Stage::Image, DropReason::because("repeated_image"))));
            }
            Some((url, place)) => {
                let (head, body) =
                    match self.archive.read_body(self.sources, place, rules.bytes_max)? {
                        Ok((_, head, body)) => (head, body),
                        Err(drop) => return Ok(Err((Stage::Image, drop))),
                    };
                // A revisit leads to a record of another address, with headers of its own.
                if let Some(drop) = opt_out::in_head(&head, &self.plan.opt_out) {
                    return Ok(Err((Stage::OptOut, drop)));
                }
                (url, body)
            }
        };
        let judged = image::prepare(&body, rules);
        let mut image_figures = judged.row(doc_id, Some(url));
        let dropped = |drop: DropReason| (Stage::Image, drop.with_picture(&body));
        let judged = judged.picture.and_then(|picture| {
            let keys = Keys { url: Some(url), sha256: Some(&picture.sha256), key: None };
            let (scores, drop) = self.rules.scores(ScoreLevel::Image, keys);
            image_figures.judge(&scores, drop.as_ref());
            drop.map_or(Ok(picture), Err)
        });
        figures.push(image_figures);
        Ok(judged.map_err(dropped).map(|picture| {
            let meta = ImageMeta {
                url: Some(url.clone()),
                alt: node.alt.clone(),
                width: picture.size.0 as i32,
                height: picture.size.1 as i32,
                sha256: picture.sha256,
                phash: picture.phash,
                mime: picture.mime.to_owned(),
            };
            Slot::Image { image: picture.image, meta }
        }))
    }
}

/// The text of a page that somebody else extracted (WET): a paragraph per line.
fn text_page(text: &str) -> Page {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let node = |line: &str| Node::Text { kind: BlockKind::Paragraph, text: line.to_owned() };
    Page { nodes: lines.map(node).collect(), ..Page::default() }
}

/// What the network has given of what a page wished for, by address.
type Fetched = HashMap<String, Result<Body, (Stage, DropReason)>>;

/// The images that a document has already.
#[derive(Default)]
struct Seen {
    places: HashSet<Place>,
    fetched: HashSet<String>,
}

/// Whether any reason says more than the one found so far.
fn tells_more(found: Option<&(Stage, DropReason)>) -> bool {
    found.is_none_or(|(_, drop)| drop.reason == NOT_IN_ARCHIVE)
}

/// What the tag alone tells: furniture by its name or by the size at which it is shown.
fn check_tag(node: &ImageNode, plan: &BuildPlan) -> Option<DropReason> {
    let rules = &plan.image;
    if let Some((width, height)) = node.shown
        && width.min(height) < rules.side_min
    {
        let short = f64::from(width.min(height));
        return Some(DropReason::limit("shown_too_small", short, f64::from(rules.side_min)));
    }
    let url = node.urls.first().and_then(|url| Url::parse(url).ok())?;
    let path = url.path().to_lowercase();
    let mut words = path.split(|c: char| !c.is_ascii_alphanumeric());
    let banned = words.find(|word| rules.url_words_banned.iter().any(|banned| banned == word));
    banned.map(|word| DropReason::detail("banned_word", word))
}

/// The figures of a document that is kept so far.
fn document_figures(doc_id: &str, url: &str, values: Values) -> Figures {
    Figures {
        level: Level::Document,
        key: doc_id.to_owned(),
        url: Some(url.to_owned()),
        dropped_by: None,
        values: values.0,
    }
}

/// What is counted in a finished document.
fn counts(row: &Row) -> [(&'static str, f32); 3] {
    let bytes: u64 = row.images().iter().map(|image| image.bytes.len() as u64).sum();
    [
        ("images", row.n_images() as f32),
        ("image_bytes", bytes as f32),
        ("spaced_words", row.words() as f32),
    ]
}

fn check_document(row: &Row, rules: &DocumentPlan) -> Result<(), DropReason> {
    let within = |low: &'static str, high: &'static str, n: u64, min: u64, max: u64| {
        if n < min {
            Err(DropReason::limit(low, n as f64, min as f64))
        } else if n > max {
            Err(DropReason::limit(high, n as f64, max as f64))
        } else {
            Ok(())
        }
    };
    let n_images = row.n_images() as u64;
    let bytes = row.images().iter().map(|image| image.bytes.len() as u64).sum();
    within("too_few_images", "too_many_images", n_images, rules.images_min, rules.images_max)?;
    within(
        "too_few_words",
        "too_many_words",
        row.words() as u64,
        rules.words_min,
        rules.words_max,
    )?;
    within("", "too_many_image_bytes", bytes, 0, rules.image_bytes_max)
}

/// Slots of a document: blocks of text between two images are one slot.
#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    last_kind: Option<BlockKind>,
}

impl Slots {
    /// Adds a block: an empty line before it, or only a line end between items of a list.
    fn push_text(&mut self, kind: BlockKind, block: &str) {
        let is_list = kind == BlockKind::ListItem && self.last_kind == Some(kind);
        match self.slots.last_mut() {
            Some(Slot::Text(text)) => {
                text.push_str(if is_list { "\n" } else { "\n\n" });
                text.push_str(block);
            }
            _ => self.slots.push(Slot::Text(block.to_owned())),
        }
        self.last_kind = Some(kind);
    }

    fn push_image(&mut self, slot: Slot) {
        self.slots.push(slot);
        self.last_kind = None;
    }
}

/// Microseconds since 1970 of a date like `2026-05-04T10:20:34Z`.
fn microseconds(date: &str) -> Option<i64> {
    string_to_timestamp_nanos(date).ok().map(|nanoseconds| nanoseconds.div_euclid(1000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::img_tag::Loading;

    #[test]
    fn blocks_between_images_are_one_slot() {
        let mut slots = Slots::default();
        for (kind, text) in [
            (BlockKind::Heading, "h"),
            (BlockKind::ListItem, "a"),
            (BlockKind::ListItem, "b"),
            (BlockKind::Paragraph, "p"),
        ] {
            slots.push_text(kind, text);
        }
        assert_eq!(slots.slots, [Slot::Text("h\n\na\nb\n\np".into())]);
    }

    #[test]
    fn furniture_is_known_by_its_tag() {
        let check = |url: &str, shown, expected: Option<&str>| {
            let node =
                ImageNode { urls: vec![url.into()], alt: None, shown, loading: Loading::Plain };
            let reason = check_tag(&node, &BuildPlan::default()).map(|drop| drop.reason);
            assert_eq!(reason, expected, "{url}");
        };
        check("https://a.example/logo.png", None, Some("banned_word"));
        check("https://a.example/silicon.png", None, None);
        check("https://icon.example/a.png", None, None);
        check("https://a.example/a.png", Some((24, 300)), Some("shown_too_small"));
        check("https://a.example/a.png", Some((320, 64)), None);
    }

    #[test]
    fn dates_of_archives_are_read() {
        assert_eq!(microseconds("1970-01-01T00:00:01.5Z"), Some(1_500_000));
        assert_eq!(microseconds("yesterday"), None);
    }
}
