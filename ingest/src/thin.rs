//! One pass over the text of a page, before any tree is built of it: how deep it nests elements, so
//! that a hostile page is refused (the parser's time grows with depth times size), and a thinner
//! page that gives the same content (most of a page's bytes are scripts, styles, drawings, and
//! attributes that nobody reads).
//!
//! The pass follows the HTML standard in what is a tag and in which elements an end tag ends.
//! Where its depth differs it counts more, never less: a tag that it overlooks, or an end that it
//! believes, would be a way around it. Where it is not sure what the parser makes of a text (inside
//! `<svg>`, `<math>` and `<select>`), it leaves the text as it is.

use std::ops::Range;
use std::sync::LazyLock;

use memchr::{memchr, memchr2};

use crate::names::Names;

/// What a page may be at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Elements inside each other.
    pub(crate) depth: usize,
    /// Start tags.
    pub(crate) elements: usize,
    /// Attributes of one element where the pass leaves them as they are: the parser compares each
    /// with each.
    pub(crate) attributes: usize,
}

/// What a page has too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Excess {
    /// Elements inside each other.
    Depth(usize),
    /// Start tags.
    Elements(usize),
    /// Attributes of one element.
    Attributes(usize),
}

/// Elements without an end, and those that the next of their kind ends: leaving their end out is
/// common and nests nothing.
const CLOSES_ITSELF: u16 = 1;
/// Elements whose inside is text up to their end.
const TEXT: u16 = 1 << 1;
/// Of these, those whose inside nobody reads.
const SKIPPED: u16 = 1 << 2;
/// Text styles: one that is not ended in its block goes on in the next.
const STYLE: u16 = 1 << 3;
/// Elements that the end of an element around them does not end.
const SCOPE: u16 = 1 << 4;
/// Elements that end together with everything inside them, unless that is a [`SCOPE`].
const BLOCK: u16 = 1 << 5;
/// Further elements, with [`BLOCK`] and [`SCOPE`], that the end of `<span>` or an unknown element
/// does not reach through.
const SPECIAL: u16 = 1 << 6;
/// Elements of drawings. Where nothing else came since a drawing began, `/>` ends an element.
const DRAWING: u16 = 1 << 7;
/// Foreign elements have no texts and may hold CDATA sections; a list of options drops texts.
const UNSURE: u16 = 1 << 8;
/// Elements that end a drawing, or whose inside is not a drawing.
const UNDRAWN: u16 = 1 << 9;

/// The names of each kind of element.
const KINDS: [(u16, &str); 10] = [
    (
        CLOSES_ITSELF,
        "area base body br col dd dt embed head hr html img input li link meta option p param \
         source tbody td tfoot th thead tr track wbr",
    ),
    (TEXT, "script style textarea title noscript iframe noembed noframes xmp"),
    (SKIPPED, "script style textarea iframe noembed noframes"),
    (STYLE, "a b big code em font i nobr s small strike strong tt u"),
    (SCOPE, "applet caption marquee math object svg table template"),
    (
        BLOCK,
        "address applet article aside blockquote button caption center details dialog dir div dl \
         fieldset figcaption figure footer header hgroup listing main marquee menu nav object ol \
         pre search section select summary ul h1",
    ),
    (
        SPECIAL,
        "annotation-xml basefont bgsound colgroup desc foreignobject form frame frameset h2 h3 h4 \
         h5 h6 iframe keygen mi mn mo ms mtext noembed noframes noscript xmp",
    ),
    (
        DRAWING,
        "circle clippath defs ellipse g line lineargradient mask path polygon polyline \
         radialgradient rect stop svg symbol use",
    ),
    (UNSURE, "svg math select"),
    (
        UNDRAWN,
        "b big blockquote body br center code dd div dl dt em embed h1 h2 h3 h4 h5 h6 head hr i \
         img li listing menu meta nobr ol p pre ruby s small span strong strike sub sup table tt \
         u ul var font foreignobject script math title desc",
    ),
];

/// The attributes that are read, in one word each.
const ATTRIBUTES: &str = "alt aria-hidden class color content encoding face height hidden href \
    http-equiv id itemid itemprop itemtype lang name property rel role size src srcset style type width \
    data-src data-srcset data-original data-original-src data-lazy data-lazy-src data-lazy-srcset \
    data-img-src data-src-fg data-scroll-image data-lateloadsrc data-gt-lazy-src data-url \
    data-hi-res-src data-full-src data-image data-medium-file data-large-file data-orig-file \
    data-echo data-lazyload data-src-large data-src-medium data-default-src src2 sizes start \
    alttext display";

static TAG_KINDS: LazyLock<Names<u16>> = LazyLock::new(|| {
    let mut names = Names::new();
    for (kind, list) in KINDS {
        list.split_whitespace().for_each(|name| *names.entry(name, 0) |= kind);
    }
    names
});

/// The place of each attribute in [`ATTRIBUTES`].
static KEPT_ATTRIBUTES: LazyLock<Names<u8>> = LazyLock::new(|| {
    let mut names = Names::new();
    for (i, name) in ATTRIBUTES.split_whitespace().enumerate() {
        names.entry(name, i as u8);
    }
    names
});

fn kinds(name: &str) -> u16 {
    TAG_KINDS.find(name.as_bytes()).unwrap_or(0)
}

/// A thinner page with the same content.
///
/// # Errors
/// When the page has more of something than `limits` say.
pub(crate) fn thin(html: &str, limits: Limits) -> Result<String, Excess> {
    let pass = Pass { html, limits, out: String::with_capacity(html.len() / 2), ..Pass::default() };
    pass.run()
}

/// The pass over a page.
struct Pass<'a> {
    html: &'a str,
    limits: Limits,
    /// The thinner page so far.
    out: String,
    /// Where the text begins that goes to the thinner page as it is.
    from: usize,
    open: Open<'a>,
    n_elements: usize,
}

impl Default for Pass<'_> {
    fn default() -> Self {
        let limits = Limits { depth: 0, elements: 0, attributes: 0 };
        let (out, open) = (String::new(), Open::default());
        Self { html: "", limits, out, from: 0, open, n_elements: 0 }
    }
}

impl<'a> Pass<'a> {
    fn run(mut self) -> Result<String, Excess> {
        let html = self.html;
        let bytes = html.as_bytes();
        let mut at = 0;
        while let Some(step) = memchr(b'<', &bytes[at..]) {
            let start = at + step;
            let is_end = bytes.get(start + 1) == Some(&b'/');
            let name = start + 1 + usize::from(is_end);
            at = if !bytes.get(name).is_some_and(u8::is_ascii_alphabetic) {
                self.markup(start)
            } else if is_end {
                self.end_tag(start)
            } else {
                self.start_tag(start)?
            };
        }
        self.keep_until(html.len());
        Ok(self.out)
    }

    /// Keeps the text up to `end` as it is.
    fn keep_until(&mut self, end: usize) {
        self.out.push_str(&self.html[self.from..end]);
        self.from = end;
    }

    /// Leaves out the text from `start` to `end`; what was apart before stays apart.
    fn leave_out(&mut self, start: usize, end: usize) {
        self.keep_until(start);
        self.from = end;
        if !self.out.ends_with(|c: char| c == '>' || c.is_ascii_whitespace()) {
            self.out.push_str("<!---->");
        }
    }

    /// What is no tag: a comment, a declaration, or a plain `<`. Returns where to go on.
    fn markup(&mut self, start: usize) -> usize {
        let rest = &self.html[start + 1..];
        if self.open.n_unsure > 0 {
            self.open.is_drawing = false;
            return start + 1;
        }
        let length = markup_end(rest);
        let is_doctype =
            rest.as_bytes().get(..8).is_some_and(|a| a.eq_ignore_ascii_case(b"!doctype"));
        if length > 0 && !is_doctype {
            self.leave_out(start, start + 1 + length);
        }
        start + 1 + length
    }

    fn end_tag(&mut self, start: usize) -> usize {
        let Some(tag) = Tag::read(self.html, start + 2, |_, _| {}) else {
            return self.cut_off(start);
        };
        let name = &self.html[tag.name.clone()];
        self.open.end(name, kinds(name));
        if self.open.n_unsure == 0 && tag.end > tag.name.end + 1 {
            self.keep_until(tag.name.end);
            self.out.push('>');
            self.from = tag.end;
        }
        tag.end
    }

    /// A page that ends inside a tag ends before it.
    fn cut_off(&mut self, start: usize) -> usize {
        self.leave_out(start, self.html.len());
        self.html.len()
    }

    fn start_tag(&mut self, start: usize) -> Result<usize, Excess> {
        let html = self.html;
        let is_sure = self.open.n_unsure == 0;
        let length = self.out.len();
        let mut kept = Attributes::default();
        let (from, out) = (self.from, &mut self.out);
        if is_sure {
            out.push_str(&html[from..start]);
        }
        let name_at = out.len();
        let mut n_attributes = 0;
        let tag = Tag::read(html, start + 1, |name, value| {
            n_attributes += 1;
            if is_sure {
                kept.push(html, name, value, out);
            }
        });
        let Some(tag) = tag else {
            self.out.truncate(length);
            return Ok(self.cut_off(start));
        };
        let name = &html[tag.name.clone()];
        let kinds = kinds(name);
        self.n_elements += 1;
        if self.n_elements > self.limits.elements {
            return Err(Excess::Elements(self.n_elements));
        }
        if !is_sure {
            if n_attributes > self.limits.attributes {
                return Err(Excess::Attributes(n_attributes));
            }
            self.push_open(name, kinds, &html[start..tag.end], tag.has_slash)?;
            return Ok(tag.end);
        }
        // The name goes before the attributes that are there already.
        self.from = start;
        if kinds & SKIPPED != 0 || is_unread(name, &html[tag.name.end..tag.end]) {
            self.out.truncate(name_at);
            let end = if kinds & TEXT == 0 {
                tag.end
            } else {
                let end = tag.end + text_end(&html.as_bytes()[tag.end..], name.as_bytes());
                Tag::read(html, end + 2, |_, _| {}).map_or(html.len(), |tag| tag.end)
            };
            self.leave_out(start, end.min(html.len()));
            return Ok(self.from);
        }
        if name.eq_ignore_ascii_case("svg")
            && let Some(end) = drawing_end(html, &tag)
        {
            self.out.truncate(name_at);
            self.leave_out(start, end);
            return Ok(end);
        }
        self.out.insert_str(name_at, &html[start..tag.name.end]);
        self.out.push_str(if tag.has_slash { " />" } else { ">" });
        self.from = tag.end;
        if name.eq_ignore_ascii_case("plaintext") {
            return Ok(html.len());
        }
        if kinds & TEXT != 0 {
            return Ok(tag.end + text_end(&html.as_bytes()[tag.end..], name.as_bytes()));
        }
        self.push_open(name, kinds, &html[start..tag.end], tag.has_slash)?;
        Ok(tag.end)
    }

    fn push_open(
        &mut self,
        name: &'a str,
        kinds: u16,
        tag: &'a str,
        has_slash: bool,
    ) -> Result<(), Excess> {
        self.open.start(name, kinds, tag, has_slash);
        let depth = self.open.elements.len() + self.open.styles.len();
        if depth > self.limits.depth { Err(Excess::Depth(depth)) } else { Ok(()) }
    }
}

/// Elements that are nothing to the content but are many: links of the head other than the page's
/// own address.
fn is_unread(name: &str, attributes: &str) -> bool {
    let is_wanted = |word: &[u8]| word.eq_ignore_ascii_case(b"canonical");
    name.eq_ignore_ascii_case("link") && !attributes.as_bytes().windows(9).any(is_wanted)
}

/// The attributes of a tag that were kept so far.
#[derive(Default)]
struct Attributes {
    /// A bit for each of [`ATTRIBUTES`].
    seen: u64,
}

impl Attributes {
    /// Adds an attribute to the thinner page if it is read and the first of its name.
    fn push(&mut self, html: &str, name: Range<usize>, value: Range<usize>, out: &mut String) {
        let Some(place) = KEPT_ATTRIBUTES.find(html[name.clone()].as_bytes()) else { return };
        if self.seen & (1 << place) != 0 {
            return;
        }
        self.seen |= 1 << place;
        let value = &html[value];
        // Of styles, only those that hide are read.
        if html[name.clone()].eq_ignore_ascii_case("style") && !may_hide(value.as_bytes()) {
            return;
        }
        out.push(' ');
        out.push_str(&html[name]);
        if !value.is_empty() {
            out.push('=');
            out.push_str(value);
        }
    }
}

fn may_hide(style: &[u8]) -> bool {
    let has = |word: &[u8]| style.windows(word.len()).any(|found| found.eq_ignore_ascii_case(word));
    has(b"none") || has(b"hidden")
}

/// A start or end tag.
struct Tag {
    name: Range<usize>,
    /// Where the text after it begins.
    end: usize,
    /// Whether it ends with a slash that is not part of a value.
    has_slash: bool,
}

impl Tag {
    /// Reads the tag whose name is at `start`, and tells the name and the value of each attribute
    /// (quotes included, empty where there is none). None where the page ends before the tag does.
    fn read(
        html: &str,
        start: usize,
        mut attribute: impl FnMut(Range<usize>, Range<usize>),
    ) -> Option<Self> {
        let bytes = html.as_bytes();
        let until = |from: usize, is_end: &dyn Fn(u8) -> bool| {
            let rest = bytes.get(from..)?;
            Some(from + rest.iter().position(|byte| is_end(*byte))?)
        };
        let past_space = |from| until(from, &|byte| !byte.is_ascii_whitespace());
        let mut at =
            until(start, &|byte| byte.is_ascii_whitespace() || matches!(byte, b'/' | b'>'))?;
        let name = start..at;
        let mut has_slash = false;
        loop {
            match bytes.get(at)? {
                b'>' => return Some(Self { name, end: at + 1, has_slash }),
                b'/' => (has_slash, at) = (true, at + 1),
                byte if byte.is_ascii_whitespace() => (has_slash, at) = (false, at + 1),
                _ => {
                    has_slash = false;
                    let end = until(at + 1, &|byte| {
                        byte.is_ascii_whitespace() || matches!(byte, b'/' | b'>' | b'=')
                    })?;
                    let name = at..end;
                    at = past_space(end)?;
                    if bytes[at] != b'=' {
                        attribute(name, end..end);
                        continue;
                    }
                    let value = past_space(at + 1)?;
                    at = match bytes[value] {
                        quote @ (b'"' | b'\'') => {
                            value + 2 + memchr(quote, bytes.get(value + 1..)?)?
                        }
                        b'>' => value,
                        _ => until(value, &|byte| byte.is_ascii_whitespace() || byte == b'>')?,
                    };
                    attribute(name, value..at);
                }
            }
        }
    }
}

/// How far an end tag reaches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Barrier {
    /// Every end tag reaches through the element.
    None,
    /// Only the end of a block or style does.
    Special,
    /// Only the end of a table or template does.
    Scope,
}

#[derive(Clone, Copy)]
struct Element<'a> {
    name: &'a str,
    kinds: u16,
    tag: &'a str,
    barrier: Barrier,
}

impl Element<'_> {
    fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }
}

/// Equal text styles that go on in later blocks; the standard keeps no more.
const EQUAL_STYLES_MAX: usize = 3;

/// The elements that are open.
#[derive(Default)]
struct Open<'a> {
    /// Innermost last.
    elements: Vec<Element<'a>>,
    /// Text styles that were open when a block around them ended.
    styles: Vec<Element<'a>>,
    /// Open elements in which scripts, titles and comments may be something else than text.
    n_unsure: usize,
    /// Whether nothing but parts of a drawing came since a drawing began.
    is_drawing: bool,
}

impl<'a> Open<'a> {
    fn start(&mut self, name: &'a str, kinds: u16, tag: &'a str, has_slash: bool) {
        let is_svg = kinds & DRAWING != 0 && name.eq_ignore_ascii_case("svg");
        self.is_drawing = kinds & DRAWING != 0 && (self.is_drawing || is_svg);
        if kinds & CLOSES_ITSELF != 0 || (self.is_drawing && has_slash) {
            return;
        }
        // A link inside a link ends it.
        if name.eq_ignore_ascii_case("a") {
            self.end("a", STYLE);
        }
        let barrier = match () {
            () if kinds & SCOPE != 0 => Barrier::Scope,
            () if kinds & (BLOCK | SPECIAL) != 0 => Barrier::Special,
            () => Barrier::None,
        };
        self.n_unsure += usize::from(kinds & UNSURE != 0);
        self.elements.push(Element { name, kinds, tag, barrier });
    }

    fn end(&mut self, name: &str, kinds: u16) {
        self.is_drawing &= self.elements.last().is_some_and(|last| last.is(name));
        // The end of a form leaves the elements inside it open, and inside it in the tree.
        if name.eq_ignore_ascii_case("form")
            && self.elements.last().is_some_and(|last| !last.is(name))
        {
            return;
        }
        let is_style = kinds & STYLE != 0;
        let is_table = name.eq_ignore_ascii_case("table");
        let reach = match () {
            () if is_table || name.eq_ignore_ascii_case("template") => Barrier::Scope,
            () if kinds & (STYLE | BLOCK) != 0 => Barrier::Special,
            () => Barrier::None,
        };
        for (i, element) in self.elements.iter().enumerate().rev() {
            if element.is(name) {
                // The end of a style leaves the elements inside it open.
                self.remove(i, if is_style { i + 1 } else { self.elements.len() });
                return;
            }
            if element.barrier > reach || (is_table && element.is("template")) {
                return;
            }
        }
        if is_style && let Some(i) = self.styles.iter().rposition(|style| style.is(name)) {
            self.styles.remove(i);
        }
    }

    /// Removes elements `from` to `end`; styles among those inside the first one go on.
    fn remove(&mut self, from: usize, end: usize) {
        for (i, element) in self.elements.drain(from..end).enumerate() {
            self.n_unsure -= usize::from(element.kinds & UNSURE != 0);
            let n_equal = || self.styles.iter().filter(|style| style.tag == element.tag).count();
            if i > 0 && element.kinds & STYLE != 0 && n_equal() < EQUAL_STYLES_MAX {
                self.styles.push(element);
            }
        }
    }
}

/// Bytes after `<` up to the end of what is no tag: a comment, a declaration, or a plain `<`.
fn markup_end(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    if !bytes.starts_with(b"!--") {
        let is_skipped = bytes.first().is_some_and(|first| b"!?/".contains(first));
        // A page that ends in `</` ends in text.
        let is_skipped = is_skipped && bytes != b"/";
        let end = || memchr(b'>', bytes).map_or(rest.len(), |end| end + 1);
        return if is_skipped { end() } else { 0 };
    }
    let comment = &bytes[3..];
    for empty in [b">".as_slice(), b"->"] {
        if comment.starts_with(empty) {
            return 3 + empty.len();
        }
    }
    let mut at = 0;
    while let Some(step) = memchr(b'>', &comment[at..]) {
        at += step;
        if comment[..at].ends_with(b"--") || comment[..at].ends_with(b"--!") {
            return 3 + at + 1;
        }
        at += 1;
    }
    rest.len()
}

/// Bytes up to the end tag of the text element `name`. Inside a comment in a script, a script
/// that begins has an end of its own.
fn text_end(bytes: &[u8], name: &[u8]) -> usize {
    let is_script = name.eq_ignore_ascii_case(b"script");
    let (mut is_comment, mut is_inner) = (false, false);
    let mut at = 0;
    let next = |from: usize| {
        let rest = &bytes[from..];
        if is_script { memchr2(b'<', b'-', rest) } else { memchr(b'<', rest) }
    };
    while let Some(step) = next(at) {
        at += step;
        let rest = &bytes[at..];
        if is_named(rest, b"</", name) {
            if !is_inner {
                return at;
            }
            is_inner = false;
        } else if is_script && rest.starts_with(b"<!--") {
            is_comment = true;
        } else if is_script && rest.starts_with(b"-->") {
            (is_comment, is_inner) = (false, false);
        } else if is_comment && is_named(rest, b"<", name) {
            is_inner = true;
        }
        at += 1;
    }
    bytes.len()
}

/// Whether a tag of this name is at the start of `bytes`.
fn is_named(bytes: &[u8], start: &[u8], name: &[u8]) -> bool {
    let Some(rest) = bytes.strip_prefix(start) else { return false };
    let is_end = |byte: &u8| byte.is_ascii_whitespace() || b"/>".contains(byte);
    rest.get(..name.len()).is_some_and(|found| found.eq_ignore_ascii_case(name))
        && rest.get(name.len()).is_some_and(is_end)
}

/// Deepest drawing that is left out.
const DRAWING_DEPTH_MAX: usize = 64;

/// Where the drawing that begins with `svg` ends, if all that it holds ends inside it.
fn drawing_end(html: &str, svg: &Tag) -> Option<usize> {
    if svg.has_slash {
        return Some(svg.end);
    }
    let bytes = html.as_bytes();
    let mut open = vec!["svg"];
    let mut at = svg.end;
    loop {
        let start = at + memchr(b'<', bytes.get(at..)?)?;
        let is_end = bytes.get(start + 1) == Some(&b'/');
        let name_at = start + 1 + usize::from(is_end);
        if !bytes.get(name_at)?.is_ascii_alphabetic() {
            let is_comment = bytes[start + 1..].starts_with(b"!--");
            if !is_comment {
                return None;
            }
            at = start + 1 + markup_end(&html[start + 1..]);
            continue;
        }
        let tag = Tag::read(html, name_at, |_, _| {})?;
        let name = &html[tag.name.clone()];
        at = tag.end;
        if is_end {
            if !open.pop()?.eq_ignore_ascii_case(name) {
                return None;
            }
            if open.is_empty() {
                return Some(at);
            }
        } else if name.eq_ignore_ascii_case("title") || name.eq_ignore_ascii_case("desc") {
            // Their inside is read as HTML; plain text stays text.
            at += memchr(b'<', &bytes[at..])?;
            if tag.has_slash || !is_named(&bytes[at..], b"</", name.as_bytes()) {
                return None;
            }
            at += 1 + memchr(b'>', &bytes[at + 1..])?;
        } else if kinds(name) & UNDRAWN != 0 || open.len() == DRAWING_DEPTH_MAX {
            return None;
        } else if !tag.has_slash {
            open.push(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dom::{Dom, Kind};

    const NO_LIMITS: Limits =
        Limits { depth: usize::MAX, elements: usize::MAX, attributes: usize::MAX };

    /// The text, and the elements around each piece of it, that a parser makes of a page.
    fn content(html: &str) -> Vec<String> {
        let dom = Dom::page(html);
        let tree = crate::flat_tree::FlatTree::new(&dom);
        let mut lines: Vec<String> = Vec::new();
        for (i, node) in tree.nodes.iter().enumerate() {
            match node.kind {
                // What was left out may have stood between two texts.
                crate::flat_tree::FlatKind::Text(text) => match lines.last_mut() {
                    Some(last) if last.starts_with('=') => last.push_str(text),
                    _ => lines.push(format!("={text}")),
                },
                crate::flat_tree::FlatKind::Element(element) => {
                    let kept = |(name, value): &(&str, &str)| {
                        KEPT_ATTRIBUTES.find(name.as_bytes()).is_some()
                            && (*name != "style" || may_hide(value.as_bytes()))
                    };
                    let attrs: Vec<_> = element.attrs().filter(kept).collect();
                    let name = element.name();
                    if !matches!(name, "link" | "noscript") {
                        lines.push(format!("{name} {attrs:?} {}", tree.text(i).len()));
                    }
                }
            }
        }
        lines
    }

    #[track_caller]
    fn same(html: &str) {
        let thinner = thin(html, NO_LIMITS).unwrap();
        assert_eq!(content(&thinner), content(html), "{html:?} became {thinner:?}");
    }

    #[test]
    fn a_thinner_page_has_the_same_content() {
        for html in [
            "<!DOCTYPE html><html lang=en><head><title>a<b></title></head><body>x",
            "a<!-- x -->b<!---->c<!-->d<!--->e<!--x--!>f",
            "a <<!-- x -->p> &am<!-- x -->p; <<!x>/p>",
            "<p class=a id='b' onclick=\"x>y\" data-x title='<p>'>t</p foo>u",
            "<p class=a class=b CLASS=c/>x<br/>y",
            "<p =class=a>x<p class==>y<p class= >z<p/class=x/id>w",
            "a<script>if (a</b) '<p>'</script >b<script><!--<script></script>--></script>c",
            "a<style>p > a</style>b<textarea><p>x</textarea>c<iframe><p></iframe>d<xmp><p></xmp>e",
            "<noscript><img src=x title=\"</noscript>\">y</noscript>z",
            "a<svg viewBox='0'><g><path d='a>b'/><title>t</title></g></svg>b",
            "a<svg><p>b</p></svg>c<svg><g></div></svg><div>x</svg>y",
            "a<svg><desc><p>b</desc></svg>c<svg/>d<svg><![CDATA[<p>]]></svg>e",
            "<math><mi title=x>y</mi><annotation-xml encoding='text/html'><p>z</math>",
            "<select><option title=x>y<textarea>z</select>w",
            "<table><tr><td style='color:red'>a<p>b<svg></svg>c<script>d</script>e</table>",
            "a<plaintext>b<script>c</script>",
            "a<p class='b",
            "a</p",
            "a</",
            "a<",
            "a</ b>c<?php x>d",
            "<link rel=stylesheet><link rel=canonical href=x><body>y",
            "<b id=1><p>x</b>y<b id=2>z</p>w",
            "x<title>y</titlex></title >z",
            "<p style='display:none'>x<p style='COLOR:red;Visibility: HIDDEN'>y",
            "<script>a</script",
            "<svg><title>x</svg>y",
        ] {
            same(html);
        }
    }

    #[test]
    fn scripts_styles_drawings_and_unread_attributes_are_left_out() {
        let html = "<body onload=x class='a'><!-- c --><script>s</script><svg><path/></svg>\
                    <p style='color:red' data-x=y>t</p>";
        assert_eq!(thin(html, NO_LIMITS).unwrap(), "<body class='a'><p>t</p>");
    }

    fn excess(html: &str) -> Option<Excess> {
        thin(html, Limits { depth: 1000, elements: 5000, attributes: 100 }).err()
    }

    #[test]
    fn pages_without_end_are_refused() {
        assert_eq!(excess(&"<br>".repeat(5001)), Some(Excess::Elements(5001)));
        let attributes = (0..101).map(|i| format!(" a{i}")).collect::<Vec<_>>().concat();
        assert_eq!(excess(&format!("<svg><p><g{attributes}>")), Some(Excess::Attributes(101)));
        assert_eq!(excess(&format!("<p{attributes}>")), None);
    }

    fn depth(html: &str) -> usize {
        let mut low = 0;
        let mut high = html.len();
        while low < high {
            let middle = usize::midpoint(low, high);
            match thin(html, Limits { depth: middle, ..NO_LIMITS }) {
                Ok(_) => high = middle,
                Err(_) => low = middle + 1,
            }
        }
        low
    }

    /// Elements that a parser nests, at most by `slack` more than are counted.
    fn check(html: &str, slack: usize) {
        let dom = Dom::page(html);
        let (mut deepest, mut at, mut next) = (0_usize, 0, dom.first(Dom::ROOT));
        while let Some(id) = next {
            deepest = deepest.max(at + usize::from(matches!(dom.kind(id), Kind::Element(_))));
            next = dom.first(id);
            at += usize::from(next.is_some());
            let mut last = id;
            while next.is_none() {
                next = dom.next(last);
                if next.is_none() {
                    match dom.parent(last) {
                        Some(parent) => last = parent,
                        None => break,
                    }
                    at = at.saturating_sub(1);
                }
            }
        }
        let counted = depth(html);
        assert!(deepest <= counted + slack, "{deepest} nested, {counted} counted: {html:.200}");
    }

    #[test]
    fn no_trick_nests_more_than_is_counted() {
        let divs = "<div>".repeat(60);
        for trick in [
            "<q></z>",
            "<q><div></q>",
            "<div><object></div>",
            "<object><table></object>",
            "<form><div></form>",
            "<form><q></form>",
            "<b><div></b>",
            "<b><i></b></i><div>",
            "<svg><title><style>",
            "<svg><circle a=b/>",
            "<g><svg></g><circle/>",
            "<svg></p><circle/>",
            "<q\"></q>",
            "<template><div></table>",
        ] {
            check(&trick.repeat(50), 8);
        }
        let styles: Vec<_> = (0..50).map(|i| format!("<div><b id={i}>x</div>")).collect();
        check(&styles.concat(), 8);
        for trick in [
            "<!-- --!>",
            "<!x <!-- >",
            "<!-->",
            "</ <!-- >",
            "<a title='<!--'>",
            "<a =\"x>",
            "<a b=c=\"x>",
            "<q=\"x>",
            "<svg><title>",
            "<svg><![CDATA[<!--]]>",
            "<select><title></select>",
            "<script></x a=\"></script>",
            "<script><!--<script></script><a b=\"--></script>",
        ] {
            check(&format!("{trick}{divs}"), 8);
        }
    }

    #[test]
    fn what_pages_do_is_not_counted() {
        let check = |html: &str, most: usize| {
            let counted = depth(&html.repeat(2000));
            assert!(counted <= most, "{counted}: {html}");
        };
        check("<p><li>text<br>", 0);
        check("<div><span>never ended</div>", 2);
        check("<div><b>never ended</div>", 5);
        check("<div><!-- <div><div> --></div>", 1);
        check("<script>'<div>' + '</div><div>'</script>", 0);
        check("<svg><g><circle r='1'/><path d=''/></g></svg>", 2);
        check("<table><tr><td><a href=x>x</a><td>y</table>", 2);
        check("a < b <3 <!doctype html> <?xml?>", 0);
    }
}
