//! A web page as text and image nodes of its main content, in the order of the DOM (paper,
//! appendix A.3.1: text and images "at the same level in the HTML tree", in reading order).
//!
//! Nothing here recurses: the tree is flattened once, and every later pass is a loop.

use std::collections::HashSet;

use url::Url;

use crate::dom::{Dom, Element};
use crate::flat_tree::{FlatKind, FlatTree};
use crate::furniture::{self, Furniture};
use crate::img_tag::{self, ImageNode, Loading};
use crate::main_part;
use crate::reject::DropReason;
use crate::thin::{self, Excess, Limits};

/// What a page may have at most. Browsers stop at a depth of 512, and the parser's time grows with
/// depth times size; the longest pages of real sites have some 500,000 elements.
const LIMITS: Limits = Limits { depth: 1000, elements: 1_000_000, attributes: 256 };

/// What a block of text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// `h1` to `h6`.
    Heading,
    /// Running text.
    Paragraph,
    /// An item of a list or a definition.
    ListItem,
    /// A whole table: cells joined by spaces, rows by line ends.
    Table,
    /// The caption of a figure or table.
    Caption,
}

/// A piece of the page.
#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    /// A block of text, white space joined.
    Text {
        /// What the block is.
        kind: BlockKind,
        /// Its text, never empty.
        text: String,
    },
    /// An image that belongs to the content.
    Image(ImageNode),
}

/// The main content of a page and what the page says about itself.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Page {
    /// Text of `<title>`.
    pub title: Option<String>,
    /// `lang` of the root element.
    pub lang: Option<String>,
    /// Contents of `<meta name="robots">`, and of those for one crawler as `name: content`.
    pub robots: Vec<String>,
    /// Content of `<meta name="tdm-reservation">`.
    pub tdm_reservation: Option<String>,
    /// Content of `<meta name="tdm-policy">`: the address of what the site allows.
    pub tdm_policy: Option<String>,
    /// The address that the page gives itself, absolute.
    pub canonical: Option<String>,
    /// Text and images in reading order.
    pub nodes: Vec<Node>,
}

/// Reads a page that was found at `url`.
///
/// # Errors
/// When elements are nested deeper than any browser shows.
pub fn read_page(html: &str, url: &Url) -> Result<Page, DropReason> {
    let html = thin::thin(html, LIMITS).map_err(too_much)?;
    let dom = Dom::page(&html);
    let tree = FlatTree::new(&dom);
    let base = base_url(&tree, url);
    let mut page = read_head(&tree, &base);
    page.nodes = Walk::new(&tree, &base).run();
    Ok(page)
}

fn too_much(excess: Excess) -> DropReason {
    let (reason, found, most) = match excess {
        Excess::Depth(depth) => ("nested_too_deep", depth, LIMITS.depth),
        Excess::Elements(elements) => ("too_many_elements", elements, LIMITS.elements),
        Excess::Attributes(attributes) => ("too_many_attributes", attributes, LIMITS.attributes),
    };
    DropReason::limit(reason, found as f64, most as f64)
}

fn read_head(tree: &FlatTree, base: &Url) -> Page {
    let mut page = Page::default();
    for (i, element) in tree.elements() {
        let content = || element.attr("content").unwrap_or("").trim().to_owned();
        match element.name() {
            "html" => page.lang = page.lang.or_else(|| language(element)),
            "title" if page.title.is_none() => {
                page.title = Some(joined(&tree.text(i))).filter(|title| !title.is_empty());
            }
            "meta" => {
                let name = element.attr("name").unwrap_or("").trim().to_ascii_lowercase();
                match name.as_str() {
                    "robots" => page.robots.push(content()),
                    "tdm-reservation" => page.tdm_reservation = Some(content()),
                    "tdm-policy" => page.tdm_policy = Some(content()),
                    name if is_crawler(name) => page.robots.push(format!("{name}: {}", content())),
                    _ => {}
                }
            }
            "link" if page.canonical.is_none() => page.canonical = canonical(element, base),
            _ => {}
        }
    }
    page
}

/// Crawlers that pages address by name and whose name does not end in `bot`.
const CRAWLERS: [&str; 9] = [
    "anthropic-ai",
    "bytespider",
    "cohere-ai",
    "facebookexternalhit",
    "google-extended",
    "googlebot-image",
    "googlebot-news",
    "meta-externalagent",
    "slurp",
];

/// Whether a `<meta>` of this name says something to one crawler.
fn is_crawler(name: &str) -> bool {
    name.ends_with("bot") || CRAWLERS.contains(&name)
}

fn canonical(element: &Element, base: &Url) -> Option<String> {
    let mut kinds = element.attr("rel")?.split_ascii_whitespace();
    kinds.find(|kind| kind.eq_ignore_ascii_case("canonical"))?;
    base.join(element.attr("href")?.trim()).ok().map(String::from)
}

fn language(element: &Element) -> Option<String> {
    element.attr("lang").map(|lang| lang.trim().to_lowercase()).filter(|lang| !lang.is_empty())
}

/// The address that relative addresses are relative to: the first `<base>`, itself relative to the page.
fn base_url(tree: &FlatTree, url: &Url) -> Url {
    let mut bases = tree.elements().filter(|(_, element)| element.name() == "base");
    let href = bases.find_map(|(_, element)| element.attr("href"));
    href.and_then(|href| url.join(href.trim()).ok()).unwrap_or_else(|| url.clone())
}

/// Text with all white space joined to single spaces.
pub(crate) fn joined(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// One pass over the content of a page.
struct Walk<'a> {
    tree: &'a FlatTree<'a>,
    base: &'a Url,
    furniture: Furniture,
    nodes: Vec<Node>,
    /// Text of the block that is open.
    text: String,
    /// Elements that are open and matter at their end, innermost last.
    open: Vec<Open>,
    /// Kinds of the open blocks, innermost last.
    kinds: Vec<BlockKind>,
}

/// An element whose end does something.
struct Open {
    /// Index of the first node after the element.
    end: usize,
    /// Whether its end closes a block of text.
    is_block: bool,
    /// Whether it opened a kind of block.
    has_kind: bool,
    /// For a figure: how many nodes there were before it.
    figure_from: Option<usize>,
}

impl<'a> Walk<'a> {
    fn new(tree: &'a FlatTree<'a>, base: &'a Url) -> Self {
        let furniture = Furniture::new(tree);
        let (nodes, text, open) = (Vec::new(), String::new(), Vec::new());
        Self { tree, base, furniture, nodes, text, open, kinds: Vec::new() }
    }

    fn run(mut self) -> Vec<Node> {
        let root = main_part::root(self.tree, &self.furniture);
        if let Some(heading) = main_part::heading_before(self.tree, &self.furniture, root) {
            self.visit(heading, self.tree.nodes[heading].end);
        }
        for figure in main_part::figures_before(self.tree, &self.furniture, root) {
            self.visit(figure, self.tree.nodes[figure].end);
        }
        for part in main_part::parts(self.tree, root) {
            if !self.furniture.is(part) {
                self.visit(part, self.tree.nodes[part].end);
            }
        }
        drop_repeated_fallbacks(&mut self.nodes);
        join_sizes(&mut self.nodes);
        self.nodes
    }

    fn visit(&mut self, from: usize, end: usize) {
        let mut i = from;
        while i < end {
            self.close_until(i);
            i = match self.tree.nodes[i].kind {
                FlatKind::Text(text) => {
                    self.text.push_str(text);
                    i + 1
                }
                FlatKind::Element(_) if i != from && self.furniture.is(i) => self.tree.nodes[i].end,
                FlatKind::Element(element) => self.enter(i, element),
            };
        }
        self.close_until(end);
        self.flush();
    }

    /// Enters an element; returns the index to go on at.
    fn enter(&mut self, i: usize, element: &Element) -> usize {
        let end = self.tree.nodes[i].end;
        match element.name() {
            "img" | "picture" => {
                self.image(i, end);
                return end;
            }
            "noscript" => {
                self.noscript(i);
                return end;
            }
            "table" if self.tree.is_data_table(i) => {
                self.table(i, end);
                return end;
            }
            // A line end inside a block; two of them end it.
            "br" => {
                if self.text.ends_with('\u{1}') {
                    self.flush();
                } else {
                    self.text.push('\u{1}');
                }
                return end;
            }
            _ => {}
        }
        let kind = block_kind(element);
        let is_block = kind.is_some() || is_block(element.name());
        if is_block {
            self.flush();
        }
        if let Some(kind) = kind {
            self.kinds.push(kind);
        }
        let figure_from = (element.name() == "figure").then_some(self.nodes.len());
        if is_block {
            self.open.push(Open { end, is_block, has_kind: kind.is_some(), figure_from });
        }
        if figure_from.is_some()
            && self.tree.nodes[i].inside.images == 0
            && let Some(image) = img_tag::of_figure(element, self.base)
        {
            self.nodes.push(Node::Image(image));
        }
        i + 1
    }

    /// Ends all elements that end at or before `i`.
    fn close_until(&mut self, i: usize) {
        while let Some(open) = self.open.pop_if(|open| open.end <= i) {
            if open.is_block {
                self.flush();
            }
            if open.has_kind {
                self.kinds.pop();
            }
            if let Some(from) = open.figure_from {
                captions_after_images(&mut self.nodes[from..]);
            }
        }
    }

    /// Closes the block of text that is open.
    fn flush(&mut self) {
        let text = std::mem::take(&mut self.text);
        let kind = self.kinds.last().copied().unwrap_or(BlockKind::Paragraph);
        self.push_text(kind, &text);
    }

    fn push_text(&mut self, kind: BlockKind, text: &str) {
        let lines = text.split('\u{1}').map(joined).filter(|line| !line.is_empty());
        let text = lines.collect::<Vec<_>>().join("\n");
        if !text.is_empty() {
            self.nodes.push(Node::Text { kind, text });
        }
    }

    fn image(&mut self, i: usize, end: usize) {
        let elements = (i..end).filter_map(|i| self.tree.element(i)).collect::<Vec<_>>();
        if let Some(image) = img_tag::read(&elements, self.base) {
            self.flush();
            self.nodes.push(Node::Image(image));
        }
    }

    /// Images that stand in for lazy ones where scripts do not run. With scripts on, the parser
    /// gives the inside as text.
    fn noscript(&mut self, i: usize) {
        let inside = self.tree.text(i);
        if !inside.contains("<img") && !inside.contains("<IMG") {
            return;
        }
        let Ok(inside) = thin::thin(&inside, LIMITS) else { return };
        let fragment = Dom::fragment(&inside);
        let tree = FlatTree::new(&fragment);
        let images = tree.elements().filter(|(_, element)| element.name() == "img");
        // Outside everything else stand counters of visits, which are told of the visit.
        let is_outside =
            self.tree.element(self.tree.nodes[i].parent).is_some_and(|e| e.name() == "body");
        for (_, element) in images {
            if let Some(image) = img_tag::read(&[element], self.base)
                && !(is_outside && image.urls[0].contains('?'))
            {
                self.flush();
                self.nodes.push(Node::Image(ImageNode { loading: Loading::NoScript, ..image }));
            }
        }
    }

    /// A table of values: cells joined by spaces, rows by line ends, its caption a block of its own.
    fn table(&mut self, i: usize, end: usize) {
        self.flush();
        let (mut cells, mut at) = (String::new(), i + 1);
        while at < end {
            match self.tree.nodes[at].kind {
                FlatKind::Text(text) => cells.push_str(text),
                FlatKind::Element(element) => match element.name() {
                    "caption" => {
                        let caption = self.tree.text(at);
                        self.push_text(BlockKind::Caption, &caption);
                        at = self.tree.nodes[at].end;
                        continue;
                    }
                    "tr" => cells.push('\u{1}'),
                    name if is_block(name) || name == "br" => cells.push(' '),
                    _ => {}
                },
            }
            at += 1;
        }
        self.push_text(BlockKind::Table, &cells);
    }
}

/// Removes images of `<noscript>` that the page shows anyway: the same address, or the place next to
/// an image that a script would load. A small picture that holds the place of a large one of the
/// same name takes the addresses of the large one.
fn drop_repeated_fallbacks(nodes: &mut Vec<Node>) {
    let images = nodes.iter().filter_map(|node| match node {
        Node::Image(image) if image.loading != Loading::NoScript => Some(&image.urls),
        _ => None,
    });
    let shown: HashSet<String> = images.flatten().cloned().collect();
    let mut kept: Vec<Node> = Vec::with_capacity(nodes.len());
    let mut rest = std::mem::take(nodes).into_iter().peekable();
    while let Some(node) = rest.next() {
        let Node::Image(image) = node else {
            kept.push(node);
            continue;
        };
        if image.loading != Loading::NoScript {
            kept.push(Node::Image(image));
            continue;
        }
        let is_lazy = |node: Option<&Node>| matches!(node, Some(Node::Image(image)) if image.loading == Loading::Lazy);
        if image.urls.iter().any(|url| shown.contains(url))
            || is_lazy(kept.last())
            || is_lazy(rest.peek())
        {
            continue;
        }
        match kept.last_mut() {
            Some(Node::Image(small)) if file_name(small) == file_name(&image) => {
                small.urls = [image.urls, std::mem::take(&mut small.urls)].concat();
            }
            _ => kept.push(Node::Image(image)),
        }
    }
    *nodes = kept;
}

/// Makes one image, with its captions once, of those that follow each other and are files of one name:
/// a site keeps an image in a folder for each of its sizes and shows the one that fits the screen.
fn join_sizes(nodes: &mut Vec<Node>) {
    let mut kept: Vec<Node> = Vec::with_capacity(nodes.len());
    // Where the last image is, with the captions after it.
    let mut last = None;
    for node in nodes.drain(..) {
        match (node, last.map(|last: usize| kept[last..].split_first_mut())) {
            (Node::Image(image), Some(Some((Node::Image(before), _))))
                if is_same_file(before, &image) =>
            {
                before.urls.extend(image.urls);
            }
            (Node::Image(image), _) => {
                last = Some(kept.len());
                kept.push(Node::Image(image));
            }
            (caption @ Node::Text { kind: BlockKind::Caption, .. }, captions) => {
                if !captions.flatten().is_some_and(|(_, captions)| captions.contains(&caption)) {
                    kept.push(caption);
                }
            }
            (text, _) => {
                last = None;
                kept.push(text);
            }
        }
    }
    *nodes = kept;
}

fn is_same_file(one: &ImageNode, other: &ImageNode) -> bool {
    file_name(one).is_some_and(is_telling) && file_name(one) == file_name(other)
}

/// Whether the name of an image file is unlikely to be that of another image: `DSC00889.jpg`, unlike
/// `large.jpg` and `image.php`.
fn is_telling(name: &str) -> bool {
    let Some((stem, suffix)) = name.rsplit_once('.') else { return false };
    let is_image = furniture::IMAGE_SUFFIXES.iter().any(|image| suffix.eq_ignore_ascii_case(image));
    is_image && stem.len() >= 8 && stem.bytes().any(|byte| byte.is_ascii_digit())
}

/// The last part of an image's address, without parameters.
fn file_name(image: &ImageNode) -> Option<&str> {
    let path = image.urls.first()?.split(['?', '#']).next()?;
    path.rsplit('/').next().filter(|name| !name.is_empty())
}

/// Moves captions that lead a figure behind the images they speak of.
fn captions_after_images(figure: &mut [Node]) {
    let is_caption = |node: &&Node| matches!(node, Node::Text { kind: BlockKind::Caption, .. });
    let captions = figure.iter().take_while(is_caption).count();
    let after = figure[captions..].iter().take_while(|node| matches!(node, Node::Image(_))).count();
    figure[..captions + after].rotate_left(captions);
}

fn block_kind(element: &Element) -> Option<BlockKind> {
    match element.name() {
        "h1" | "h2" | "h3" | "h4" | "h5" | "h6" => Some(BlockKind::Heading),
        "li" | "dt" | "dd" => Some(BlockKind::ListItem),
        "figcaption" | "caption" => Some(BlockKind::Caption),
        "p" | "div" | "span" if furniture::is_caption(element) => Some(BlockKind::Caption),
        _ => None,
    }
}

/// Elements that begin and end a block of text.
pub(crate) fn is_block(name: &str) -> bool {
    matches!(
        name,
        "address"
            | "article"
            | "aside"
            | "blockquote"
            | "body"
            | "caption"
            | "center"
            | "dd"
            | "details"
            | "dialog"
            | "dir"
            | "div"
            | "dl"
            | "dt"
            | "fieldset"
            | "figcaption"
            | "figure"
            | "footer"
            | "form"
            | "h1"
            | "h2"
            | "h3"
            | "h4"
            | "h5"
            | "h6"
            | "header"
            | "hgroup"
            | "hr"
            | "html"
            | "legend"
            | "li"
            | "main"
            | "menu"
            | "nav"
            | "ol"
            | "optgroup"
            | "p"
            | "pre"
            | "search"
            | "section"
            | "summary"
            | "table"
            | "tbody"
            | "td"
            | "tfoot"
            | "th"
            | "thead"
            | "tr"
            | "ul"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The content of a page in one line: `# heading`, `- item`, `| table`, `^ caption`, `[image]`.
    fn read(html: &str) -> String {
        let url = Url::parse("https://a.example/b/").unwrap();
        let page = read_page(html, &url).unwrap();
        let show = |node: &Node| match node {
            Node::Text { kind: BlockKind::Heading, text } => format!("# {text}"),
            Node::Text { kind: BlockKind::Paragraph, text } => text.clone(),
            Node::Text { kind: BlockKind::ListItem, text } => format!("- {text}"),
            Node::Text { kind: BlockKind::Table, text } => format!("| {text}"),
            Node::Text { kind: BlockKind::Caption, text } => format!("^ {text}"),
            Node::Image(image) => {
                format!("[{}]", image.urls[0].trim_start_matches("https://a.example/b/"))
            }
        };
        page.nodes.iter().map(show).collect::<Vec<_>>().join(" / ")
    }

    fn check(html: &str, expected: &str) {
        assert_eq!(read(html), expected, "{html}");
    }

    #[test]
    fn text_and_images_keep_their_order() {
        check("<h1>T</h1><p>a <b>b</b>\n c<p>d<img src=x.jpg>e", "# T / a b c / d / [x.jpg] / e");
        check("<ul><li>one<li><p>two</p></ul>", "- one / - two");
        check("<dl><dt>t<dd>d</dl>", "- t / - d");
        check("a<br>b<br><br>c", "a\nb / c");
        check("<pre>  x\n y</pre>", "x y");
        check("", "");
    }

    #[test]
    fn captions_follow_their_images() {
        let after = "[x.jpg] / ^ c / t";
        check("<figure><img src=x.jpg><figcaption>c</figcaption></figure>t", after);
        check("<figure><figcaption>c</figcaption><img src=x.jpg></figure>t", after);
        check("<div><img src=x.jpg><p class=wp-caption-text>c</p></div>t", after);
        check(
            "<figure><figure><img src=x.jpg><figcaption>c</figcaption></figure>\
             <figure><img src=y.jpg><figcaption>d</figcaption></figure></figure>",
            "[x.jpg] / ^ c / [y.jpg] / ^ d",
        );
    }

    #[test]
    fn tables_of_values_are_text_and_tables_of_layout_are_not() {
        check(
            "<table><caption>c</caption><tr><th>a<th>b<tr><td><p>1</p><td>2</table>",
            "^ c / | a b\n1 2",
        );
        check("<table><tr><td><h2>h</h2>p<td><img src=x.jpg></table>", "# h / p / [x.jpg]");
    }

    #[test]
    fn furniture_is_left_out() {
        let content = "<p>This paragraph is the content of the page and longer than the rest.</p>";
        let expected = "This paragraph is the content of the page and longer than the rest.";
        for furniture in [
            "<nav><a href=/>home</a></nav>",
            "<header><img src=logo.png>Site</header>",
            "<footer>(c)</footer>",
            "<aside>see also</aside>",
            "<div class='Share-Buttons'><img src=bird.png></div>",
            "<div id=cookie_banner>we use cookies</div>",
            "<div role=navigation>menu</div>",
            "<section class=comments><p>first!</p></section>",
            "<p hidden>x</p><p style='color:red; DISPLAY : none'>x</p><p aria-hidden=true>x</p>",
            "<ul><li><a href=a>one</a><li><a href=b>two</a><li><a href=c>three</a></ul>",
            "<script>x</script><style>x</style><template>x</template><select><option>x</select>",
            "<!-- x --><button>x</button><svg><text>x</text></svg><iframe src=x></iframe>",
        ] {
            check(&format!("{furniture}{content}{furniture}"), expected);
        }
        check(&format!("<div class=with-sidebar>{content}</div>"), expected);
    }

    #[test]
    fn the_heading_before_the_main_part_is_kept() {
        let main = "<main><p>A paragraph that is long enough to be most of the page.</p></main>";
        check(
            &format!("<div>teaser</div><h1>T</h1>{main}<p>after</p>"),
            "# T / A paragraph that is long enough to be most of the page.",
        );
    }

    #[test]
    fn lazy_images_are_there_once() {
        let noscript = "<noscript><img src=x.jpg></noscript>";
        check(&format!("<img src='data:,' data-src=x.jpg>{noscript}"), "[x.jpg]");
        check(&format!("{noscript}<img src='data:,' data-src=x.jpg>"), "[x.jpg]");
        check(&format!("<img data-src=x-300.jpg>{noscript}"), "[x-300.jpg]");
        check(&format!("a{noscript}b"), "a / [x.jpg] / b");
        check(
            "<picture><source srcset=x.webp><img src=x.jpg></picture><picture></picture>",
            "[x.webp]",
        );
    }

    #[test]
    fn a_picture_that_holds_a_place_takes_the_addresses_of_the_large_one() {
        check(
            "<img src=/60/x.png><noscript><img src=/800/x.png></noscript>",
            "[https://a.example/800/x.png]",
        );
        check("<img data-src='{\"a\": 1}' src=x.jpg><img class=avatar src=y.jpg>", "[x.jpg]");
    }

    /// A paragraph that counts for the element around it.
    fn paragraph(n: usize) -> String {
        let sentence =
            "This sentence is one of those that make up the running text of an article. ";
        sentence.repeat(n).trim().to_owned()
    }

    #[test]
    fn the_main_part_is_where_the_running_text_is() {
        let (a, b) = (paragraph(8), paragraph(9));
        let article = format!("<div><p>{a}</p><p>{b}</p></div>");
        let expected = format!("{a} / {b}");
        for around in [
            "<div><p>Got a tip for us? <a href=/tip>Let us know</a></p></div>",
            "<div><h3><a href=/1>Another story</a></h3><p>And how it begins.</p></div>",
            "<div><h2>Most read</h2><p>What others read at this time of the day.</p></div>",
            "<div><ul><li><a href=/1><img src=1.jpg>One more story</a></ul></div>",
            "<div class=tags>Tags: one, two</div>",
        ] {
            check(&format!("<div>{around}{article}{around}</div>"), &expected);
        }
        let comments = format!("<div class=comments><p>{b}</p><p>{b}</p><p>{a}</p></div>");
        check(&format!("<div class='has-comments'>{article}{comments}</div>"), &expected);
    }

    #[test]
    fn the_figure_above_the_text_of_an_article_is_kept() {
        let text = paragraph(9);
        let figure = "<figure><img src=x.jpg><figcaption>c</figcaption></figure>";
        check(
            &format!(
                "<article><header><h1>T</h1>{figure}</header><div><p>{text}</p></div></article>"
            ),
            &format!("# T / [x.jpg] / ^ c / {text}"),
        );
    }

    #[test]
    fn one_image_in_many_sizes_is_one_image() {
        let figure = |size| {
            format!("<figure><img src=/{size}/DSC00889.jpg><figcaption>c</figcaption></figure>")
        };
        check(
            &format!("{}{}t", figure(1), figure(2)),
            "[https://a.example/1/DSC00889.jpg] / ^ c / t",
        );
        check(&format!("{}t{}", figure(1), figure(1)).replace("889", ""), &{
            let image = "[https://a.example/1/DSC00.jpg] / ^ c";
            format!("{image} / t / {image}")
        });
        check("<img src=a/large.jpg><img src=b/large.jpg>", "[a/large.jpg] / [b/large.jpg]");
        let drawing = |n| format!("<div class=g-artboard><img src={n}.png><p>{n}</div>");
        check(&format!("<div>{}\n{}</div>", drawing(1), drawing(2)), "[2.png] / 2");
    }

    #[test]
    fn figures_that_a_script_fills_have_their_image() {
        let figure = "<figure itemtype='http://schema.org/ImageObject' itemid=x.jpg>";
        check(&format!("{figure}<figcaption>c</figcaption></figure>"), "[x.jpg] / ^ c");
        check(&format!("{figure}<img src=y.jpg></figure>"), "[y.jpg]");
        check("<figure itemid=x.jpg></figure>t", "t");
    }

    #[test]
    fn images_that_lead_elsewhere_or_count_visits_are_left_out() {
        let item = |link| format!("<li><a href={link}><img src=x.jpg></a>");
        let list = |link| format!("<p>text</p><ul>{}</ul>", item(link).repeat(3));
        check(&list("/next-page"), "text");
        check(&list("/x-large.jpg"), "text / [x.jpg] / [x.jpg] / [x.jpg]");
        check("<body>text<noscript><img src=/count.gif?id=1></noscript></body>", "text");
    }

    #[test]
    fn parts_of_one_article_are_read_together() {
        let text = paragraph(9);
        let part = |text: &str| format!("<div class=part><p>{text}</p></div>");
        let short = paragraph(3);
        let page = format!(
            "<div><p>menu</p>{}<div><img src=x.jpg></div>{}<div>end</div></div>",
            part(&format!("{text} {text} {text}")),
            part(&short)
        );
        check(&page, &format!("{text} {text} {text} / [x.jpg] / {short}"));
    }

    #[test]
    fn the_head_is_read() {
        let html = "<html lang=EN><title> A\n title </title><base href=/c/><base href=/d/>\
                    <meta name=Robots content=noai><meta name=GPTBot content=noindex>\
                    <meta name=tdm-reservation content=1><meta name=tdm-policy content=/p.json>\
                    <link rel=canonical href=y><img src=x.jpg>";
        let page = read_page(html, &Url::parse("https://a.example/b/").unwrap()).unwrap();
        assert_eq!((page.title.as_deref(), page.lang.as_deref()), (Some("A title"), Some("en")));
        assert_eq!(page.robots, ["noai", "gptbot: noindex"]);
        assert_eq!(page.tdm_reservation.as_deref(), Some("1"));
        assert_eq!(page.tdm_policy.as_deref(), Some("/p.json"));
        assert_eq!(page.canonical.as_deref(), Some("https://a.example/c/y"));
        let Node::Image(image) = &page.nodes[0] else { panic!("{:?}", page.nodes) };
        assert_eq!(image.urls, ["https://a.example/c/x.jpg"]);
    }

    #[test]
    fn hostile_nesting_is_refused_before_it_is_parsed() {
        let url = Url::parse("https://a.example/").unwrap();
        let reason = |html: &str| read_page(html, &url).map_err(|drop| drop.reason);
        assert_eq!(reason(&"<div>".repeat(1_000_000)), Err("nested_too_deep"));
        assert_eq!(reason(&"<table><tr><td>".repeat(100_000)), Err("nested_too_deep"));
        assert_eq!(reason(&"<q></z>".repeat(40_000)), Err("nested_too_deep"));
        assert_eq!(reason(&"<q><div></q>".repeat(40_000)), Err("nested_too_deep"));
        assert!(reason(&"<p><li>text<br>".repeat(10_000)).is_ok());
        assert!(reason(&"<div><!-- <div><div> --></div>".repeat(10_000)).is_ok());
        assert!(reason(&format!("<script>{}</script>", "'<div>'".repeat(10_000))).is_ok());
        assert!(reason(&"<b><div>".repeat(400)).is_ok());
    }
}
