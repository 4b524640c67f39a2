//! How deep a page nests elements, from its text alone, so that no tree is built of a hostile page:
//! the parser's time grows with depth times size.
//!
//! The estimate follows the HTML standard in what is a tag and in which elements an end tag ends.
//! Where it differs it counts more, never less: a tag that it overlooks, or an end that it believes,
//! would be a way around it.

/// Elements without an end, and those that the next of their kind ends: leaving their end out is
/// common and nests nothing.
const CLOSE_THEMSELVES: [&str; 28] = [
    "area", "base", "body", "br", "col", "dd", "dt", "embed", "head", "hr", "html", "img", "input",
    "li", "link", "meta", "option", "p", "param", "source", "tbody", "td", "tfoot", "th", "thead",
    "tr", "track", "wbr",
];
/// Elements whose inside is text up to their end.
const TEXTS: [&str; 4] = ["script", "style", "textarea", "title"];
/// Text styles: one that is not ended in its block goes on in the next.
const STYLES: [&str; 14] = [
    "a", "b", "big", "code", "em", "font", "i", "nobr", "s", "small", "strike", "strong", "tt", "u",
];
/// Elements that the end of an element around them does not end.
const SCOPES: [&str; 8] =
    ["applet", "caption", "marquee", "math", "object", "svg", "table", "template"];
/// Elements that end together with everything inside them, unless that is one of [`SCOPES`].
const BLOCKS: [&str; 33] = [
    "address",
    "applet",
    "article",
    "aside",
    "blockquote",
    "button",
    "caption",
    "center",
    "details",
    "dialog",
    "dir",
    "div",
    "dl",
    "fieldset",
    "figcaption",
    "figure",
    "footer",
    "header",
    "hgroup",
    "listing",
    "main",
    "marquee",
    "menu",
    "nav",
    "object",
    "ol",
    "pre",
    "search",
    "section",
    "select",
    "summary",
    "ul",
    "h1",
];
/// Further elements, with [`BLOCKS`] and [`SCOPES`], that the end of `<span>` or an unknown element
/// does not reach through.
const SPECIAL: [&str; 25] = [
    "annotation-xml",
    "basefont",
    "bgsound",
    "colgroup",
    "desc",
    "foreignobject",
    "form",
    "frame",
    "frameset",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "iframe",
    "keygen",
    "mi",
    "mn",
    "mo",
    "ms",
    "mtext",
    "noembed",
    "noframes",
    "noscript",
    "xmp",
];
/// Elements of drawings. Where nothing else came since a drawing began, `/>` ends an element.
const DRAWING: [&str; 17] = [
    "circle",
    "clippath",
    "defs",
    "ellipse",
    "g",
    "line",
    "lineargradient",
    "mask",
    "path",
    "polygon",
    "polyline",
    "radialgradient",
    "rect",
    "stop",
    "svg",
    "symbol",
    "use",
];
/// Equal text styles that go on in later blocks; the standard keeps no more.
const EQUAL_STYLES_MAX: usize = 3;

/// The deepest nesting of elements in a page, text styles that go on included. It stops counting
/// where it is above `limit`.
pub(crate) fn depth(html: &str, limit: usize) -> usize {
    let mut open = Open::default();
    let (mut deepest, mut at) = (0, 0);
    while let Some(step) = html[at..].find('<') {
        at += step + 1;
        let rest = &html[at..];
        let is_end = rest.starts_with('/');
        let tag = &rest[usize::from(is_end)..];
        if !tag.starts_with(|c: char| c.is_ascii_alphabetic()) {
            at += if open.n_unsure == 0 { markup_end(rest) } else { 0 };
            continue;
        }
        let tag = Tag::read(tag);
        at += usize::from(is_end) + tag.text.len();
        let name = tag.name.as_str();
        if is_end {
            open.end(name);
        } else if TEXTS.contains(&name) && open.n_unsure == 0 {
            at += text_end(&html.as_bytes()[at..], name.as_bytes());
        } else {
            open.start(tag);
        }
        deepest = deepest.max(open.elements.len() + open.styles.len());
        if deepest > limit {
            break;
        }
    }
    deepest
}

/// A start or end tag.
struct Tag<'a> {
    name: String,
    /// All of it from the name on.
    text: &'a str,
    /// Whether it ends with a slash that is not part of a value.
    has_slash: bool,
}

/// A place in a tag.
#[derive(Clone, Copy, PartialEq)]
enum InTag {
    BeforeName,
    Name,
    AfterName,
    BeforeValue,
    Unquoted,
    Quoted(u8),
    Slash,
}

impl<'a> Tag<'a> {
    /// Reads the tag whose name is at the start of `rest`: a `>` in quotes does not end it.
    fn read(rest: &'a str) -> Self {
        let length = rest.find(|c: char| c.is_ascii_whitespace() || "/>".contains(c));
        let length = length.unwrap_or(rest.len());
        let name = rest[..length].to_ascii_lowercase();
        let mut place = InTag::BeforeName;
        for (i, byte) in rest.bytes().enumerate().skip(length) {
            let is_space = byte.is_ascii_whitespace();
            place = match (place, byte) {
                (InTag::Quoted(quote), _) if byte == quote => InTag::BeforeName,
                (InTag::Quoted(_), _) => place,
                (_, b'>') => {
                    let has_slash = place == InTag::Slash;
                    return Self { name, text: &rest[..=i], has_slash };
                }
                (InTag::Unquoted, _) if is_space => InTag::BeforeName,
                (InTag::Unquoted, _) => place,
                (InTag::BeforeValue, _) if is_space => place,
                (InTag::BeforeValue, b'"' | b'\'') => InTag::Quoted(byte),
                (InTag::BeforeValue, _) => InTag::Unquoted,
                (InTag::Name | InTag::AfterName, b'=') => InTag::BeforeValue,
                (InTag::Name | InTag::AfterName, _) if is_space => InTag::AfterName,
                (_, b'/') => InTag::Slash,
                (_, _) if is_space => InTag::BeforeName,
                _ => InTag::Name,
            };
        }
        Self { name, text: rest, has_slash: false }
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

struct Element<'a> {
    name: String,
    tag: &'a str,
    barrier: Barrier,
}

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
    fn start(&mut self, tag: Tag<'a>) {
        let name = tag.name.as_str();
        self.is_drawing = DRAWING.contains(&name) && (self.is_drawing || name == "svg");
        if CLOSE_THEMSELVES.contains(&name) || (self.is_drawing && tag.has_slash) {
            return;
        }
        // A link inside a link ends it.
        if name == "a" {
            self.end("a");
        }
        let barrier = match () {
            () if SCOPES.contains(&name) => Barrier::Scope,
            () if BLOCKS.contains(&name) || SPECIAL.contains(&name) => Barrier::Special,
            () => Barrier::None,
        };
        self.n_unsure += usize::from(is_unsure(name));
        self.elements.push(Element { name: tag.name, tag: tag.text, barrier });
    }

    fn end(&mut self, name: &str) {
        self.is_drawing &= self.elements.last().is_some_and(|last| last.name == name);
        // The end of a form leaves the elements inside it open, and inside it in the tree.
        if name == "form" && self.elements.last().is_some_and(|last| last.name != name) {
            return;
        }
        let is_style = STYLES.contains(&name);
        let reach = match name {
            "template" | "table" => Barrier::Scope,
            _ if is_style || BLOCKS.contains(&name) => Barrier::Special,
            _ => Barrier::None,
        };
        for (i, element) in self.elements.iter().enumerate().rev() {
            if element.name == name {
                // The end of a style leaves the elements inside it open.
                self.remove(i, if is_style { i + 1 } else { self.elements.len() });
                return;
            }
            if element.barrier > reach || (name == "table" && element.name == "template") {
                return;
            }
        }
        if is_style && let Some(i) = self.styles.iter().rposition(|style| style.name == name) {
            self.styles.remove(i);
        }
    }

    /// Removes elements `from` to `end`; styles among those inside the first one go on.
    fn remove(&mut self, from: usize, end: usize) {
        for (i, element) in self.elements.drain(from..end).enumerate() {
            self.n_unsure -= usize::from(is_unsure(&element.name));
            let n_equal = || self.styles.iter().filter(|style| style.tag == element.tag).count();
            let is_style = i > 0 && STYLES.contains(&element.name.as_str());
            if is_style && n_equal() < EQUAL_STYLES_MAX {
                self.styles.push(element);
            }
        }
    }
}

/// Foreign elements have no texts and may hold CDATA sections; a list of options drops texts.
fn is_unsure(name: &str) -> bool {
    matches!(name, "svg" | "math" | "select")
}

/// Bytes after `<` up to the end of what is no tag: a comment, a declaration, or a plain `<`.
fn markup_end(rest: &str) -> usize {
    let Some(comment) = rest.strip_prefix("!--") else {
        let is_skipped = rest.starts_with(['!', '?', '/']);
        let end = || rest.find('>').map_or(rest.len(), |end| end + 1);
        return if is_skipped { end() } else { 0 };
    };
    if comment.starts_with('>') || comment.starts_with("->") {
        return 3;
    }
    let bytes = comment.as_bytes();
    let is_end = |i: &usize| bytes[*i..].starts_with(b"-->") || bytes[*i..].starts_with(b"--!>");
    (0..bytes.len()).find(is_end).map_or(rest.len(), |end| 3 + end + 2)
}

/// Bytes up to the end tag of the text element `name`. Inside a comment in a script, a script
/// that begins has an end of its own.
fn text_end(bytes: &[u8], name: &[u8]) -> usize {
    let (mut is_comment, mut is_inner) = (false, false);
    for i in 0..bytes.len() {
        let rest = &bytes[i..];
        if is_named(rest, b"</", name) {
            if !is_inner {
                return i;
            }
            is_inner = false;
        } else if name == b"script" && rest.starts_with(b"<!--") {
            is_comment = true;
        } else if rest.starts_with(b"-->") {
            (is_comment, is_inner) = (false, false);
        } else if is_comment && is_named(rest, b"<", name) {
            is_inner = true;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Elements that a parser nests, at most by `slack` more than are counted.
    fn check(html: &str, slack: usize) {
        let tree = scraper::Html::parse_document(html).tree;
        let mut deepest = 0;
        for node in tree.nodes() {
            let around = node.ancestors().filter(|node| node.value().is_element());
            deepest = deepest.max(around.count());
        }
        let counted = depth(html, usize::MAX);
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
            let counted = depth(&html.repeat(2000), 1000);
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
