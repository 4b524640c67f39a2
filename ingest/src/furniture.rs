//! What of a page is not content: menus, footers, banners, sidebars, comments, icons, share
//! buttons, advertisements, teasers of other pages, and everything that is hidden.
//!
//! An element is furniture by its tag, its role, a word of its class or id, because it is a list
//! of links, or because of the heading it begins with. An element that holds much of the page's
//! text is never furniture: layouts are named `with-sidebar`, too.

use std::sync::LazyLock;

use crate::dom::Element;
use crate::flat_tree::{FlatKind, FlatTree};
use crate::names::Names;

/// A word of a class or id says that the element is furniture.
const STRONG: u8 = 1;
/// It says so of an element with little text only: of an article it may say who wrote it.
const WEAK: u8 = 1 << 1;
/// It says so of an element that is mostly links or short: it is also said of quoted posts.
const SOCIAL: u8 = 1 << 2;
/// It says that the element is a caption.
const CAPTION: u8 = 1 << 3;
/// It says what a layout has or lacks with the word after it: `with-sidebar`, `fig--has-shares`.
const LAYOUT: u8 = 1 << 4;

/// It says so of nearly everything: comments are often longer than what they are about.
const COMMENTS: u8 = 1 << 6;
/// It says so of an element with little text outside links.
const SHARE: u8 = 1 << 5;

/// The words of each kind, in lower case.
const WORDS: [(u8, &str); 7] = [
    (
        STRONG,
        "ad ads adslot adsense advert advertisement advertising advertorial breadcrumb breadcrumbs \
         consent cookie cookies copyright donate footer gdpr links \
         login masthead menu menubar modal nav navbar navbox navigation newsletter outbrain pager \
         pagination paywall popup popular promo promos promotion recirc recirculation recommended \
         recommendation recommendations related search sidebar signup skip skyscraper sponsor \
         sponsored subnav subscribe subscription taboola toolbar trending noprint editsection \
         addthis sharedaddy sharethis",
    ),
    (
        WEAK,
        "author authors avatar banner bio byline credit date dateline datetime meta metadata \
         posted published publish rating ratings tag tags taglist timestamp topics toc updated views \
         button buttons btn follow tools kicker eyebrow",
    ),
    (COMMENTS, "comment comments commentlist disqus respond"),
    (SHARE, "share shares sharing sharebar"),
    (SOCIAL, "social embed widget twitter facebook prev previous next"),
    (CAPTION, "caption imagecaption thumbcaption"),
    (LAYOUT, "and body has is js no not one two with without"),
];

/// Roles that name furniture.
const ROLES: [&str; 12] = [
    "alert",
    "alertdialog",
    "banner",
    "complementary",
    "contentinfo",
    "dialog",
    "menu",
    "menubar",
    "navigation",
    "search",
    "tablist",
    "toolbar",
];

/// Beginnings of headings of what leads to other pages, in lower case.
const HEADINGS: [&str; 32] = [
    "related",
    "more from",
    "more in",
    "more on",
    "more stories",
    "more news",
    "more articles",
    "most popular",
    "most read",
    "most viewed",
    "popular",
    "recommended",
    "read next",
    "read more",
    "read also",
    "also read",
    "up next",
    "you may also",
    "you might also",
    "you may like",
    "latest news",
    "latest stories",
    "our latest",
    "top stories",
    "trending",
    "share this",
    "comments",
    "leave a reply",
    "leave a comment",
    "sign up",
    "newsletter",
    "関連記事",
];

/// Longest heading that is compared with [`HEADINGS`], in bytes.
const HEADING_MAX: usize = 60;
/// Share of an element's text inside links from which on it is a list of links.
const LINK_SHARE: f64 = 0.75;
/// Fewest links of a list of links.
const LINKS_MIN: usize = 3;
/// The same of a list of teasers, where each image is a link.
const TEASER_SHARE: f64 = 0.6;
/// Most bytes of text outside links in a list of teasers.
const TEASER_OWN_MAX: usize = 300;
/// Fewest links of a list of teasers.
const TEASERS_MIN: usize = 2;
/// Fewest bytes of link text for each image of a list of teasers.
const TEASER_CHARS: usize = 15;
/// Most bytes of text for each image of a gallery that leads to other pages.
const GALLERY_CHARS: usize = 5;
/// Share of the page's text from which on a word does not make an element furniture.
const TEXT_SHARE: f64 = 0.4;
/// The same for asides and comments.
const ASIDE_SHARE: f64 = 0.75;
/// Most bytes of text that a weak word makes furniture.
const WEAK_MAX: usize = 150;
/// Most bytes of text outside links that a social word makes furniture.
const SOCIAL_MAX: usize = 60;

/// Ends of the names of image files.
pub(crate) const IMAGE_SUFFIXES: [&str; 6] = ["avif", "gif", "jpeg", "jpg", "png", "webp"];

static TABLE: LazyLock<Names<u8>> = LazyLock::new(|| {
    let mut names = Names::new();
    for (kind, words) in WORDS {
        words.split_whitespace().for_each(|word| *names.entry(word, 0) |= kind);
    }
    names
});

/// Which nodes of a page are furniture.
pub(crate) struct Furniture {
    /// For each node, whether it and all inside it is furniture. Nodes inside are not marked.
    is_furniture: Vec<bool>,
}

impl Furniture {
    /// Marks the furniture of a page.
    pub(crate) fn new(tree: &FlatTree) -> Self {
        let mut is_furniture = vec![false; tree.nodes.len()];
        let page = tree.nodes.first().map_or(0, |root| root.inside.own()) as f64;
        let mut i = 1;
        while i < tree.nodes.len() {
            let is_some = match tree.nodes[i].kind {
                FlatKind::Element(element) => is_furniture_at(tree, i, element, page),
                FlatKind::Text(_) => false,
            };
            is_furniture[i] = is_some;
            i = if is_some { tree.nodes[i].end } else { i + 1 };
        }
        let mut furniture = Self { is_furniture };
        furniture.mark_headed(tree, page);
        furniture
    }

    /// Whether the node at `i`, and all inside it, is furniture.
    pub(crate) fn is(&self, i: usize) -> bool {
        self.is_furniture[i]
    }

    /// Marks what stands below a heading that leads to other pages: all that the heading begins, or
    /// its siblings up to the next heading.
    fn mark_headed(&mut self, tree: &FlatTree, page: f64) {
        let before = text_before(tree);
        for (i, element) in tree.elements() {
            let node = &tree.nodes[i];
            if !is_heading(element.name())
                || node.inside.chars > HEADING_MAX
                || node.inside.chars == 0
            {
                continue;
            }
            let text = crate::html::joined(&tree.text(i)).to_lowercase();
            if text != "about the author" && !HEADINGS.iter().any(|start| text.starts_with(start)) {
                continue;
            }
            let mut at = i;
            // What the heading begins.
            while tree.nodes[at].parent != at {
                let parent = tree.nodes[at].parent;
                let is_first = before[parent] == before[i];
                if !is_first || tree.nodes[parent].inside.own() as f64 > TEXT_SHARE * page {
                    break;
                }
                at = parent;
            }
            if at != i {
                self.is_furniture[at] = true;
                continue;
            }
            let end = tree.nodes[node.parent].end;
            while at < end {
                self.is_furniture[at] = true;
                at = tree.nodes[at].end;
                let next = tree.nodes.get(at).filter(|_| at < end);
                let is_next = |kind| matches!(kind, FlatKind::Element(e) if is_heading(e.name()));
                if next
                    .is_none_or(|next| is_next(next.kind) || next.inside.own() as f64 > 0.2 * page)
                {
                    break;
                }
            }
        }
    }
}

/// Bytes of text that stand before each node.
fn text_before(tree: &FlatTree) -> Vec<usize> {
    let bytes = |kind: FlatKind, inside: usize| match kind {
        FlatKind::Text(_) => inside,
        FlatKind::Element(_) => 0,
    };
    let sum = |sum: &mut usize, bytes: usize| Some(std::mem::replace(sum, *sum + bytes));
    let texts = tree.nodes.iter().map(|node| bytes(node.kind, node.inside.chars));
    texts.scan(0, sum).collect()
}

/// Whether a name is `h1` to `h6`.
pub(crate) fn is_heading(name: &str) -> bool {
    matches!(name, "h1" | "h2" | "h3" | "h4" | "h5" | "h6")
}

/// Whether the element at `i` of a page with `page` bytes of text outside links is furniture.
fn is_furniture_at(tree: &FlatTree, i: usize, element: &Element, page: f64) -> bool {
    let inside = tree.nodes[i].inside;
    let name = element.name();
    if is_hidden(element)
        || is_other_width(tree, i, element)
        || matches!(name, "head" | "nav" | "footer" | "dialog")
    {
        return true;
    }
    if inside.own() as f64 > ASIDE_SHARE * page {
        return false;
    }
    let words = words(element);
    if name == "aside" || words & COMMENTS != 0 {
        return true;
    }
    if inside.own() as f64 > TEXT_SHARE * page {
        return false;
    }
    // The header of an article has its heading, the header of a site does not.
    (name == "header" && inside.sections == 0)
        || element
            .attr("role")
            .is_some_and(|role| ROLES.iter().any(|furniture| furniture.eq_ignore_ascii_case(role)))
        || is_named(tree, i, element, words)
        || is_list_of_links(tree, i, name)
}

fn is_named(tree: &FlatTree, i: usize, element: &Element, words: u8) -> bool {
    let inside = tree.nodes[i].inside;
    words & STRONG != 0
        || (words & WEAK != 0
            && inside.images == 0
            && inside.chars <= WEAK_MAX
            && !matches!(element.name(), "p" | "a"))
        || (words & (SOCIAL | SHARE) != 0
            && element.name() != "blockquote"
            && inside.own() <= SOCIAL_MAX
            && (words & SHARE != 0 || inside.images == inside.linked_images))
}

/// Whether an element is nothing but links, or teasers of other pages with their images.
fn is_list_of_links(tree: &FlatTree, i: usize, name: &str) -> bool {
    let inside = tree.nodes[i].inside;
    let is_linked = |links_min: usize, share: f64| {
        inside.links >= links_min && inside.link_chars as f64 > share * inside.chars as f64
    };
    let are_teasers =
        inside.images > 0 && inside.own() <= TEASER_OWN_MAX && is_linked(TEASERS_MIN, TEASER_SHARE);
    is_gallery_of_links(tree, i, name)
        || matches!(name, "ul" | "ol" | "dl" | "table" | "div" | "section" | "menu")
            && inside.images == inside.linked_images
            && inside.link_chars >= TEASER_CHARS * inside.images
            && (are_teasers || is_linked(LINKS_MIN, LINK_SHARE))
            && !(inside.images == 1 && has_caption(tree, i))
}

/// Whether something inside an element is a caption.
fn has_caption(tree: &FlatTree, i: usize) -> bool {
    let mut elements = (i + 1..tree.nodes[i].end).filter_map(|i| tree.element(i));
    elements.any(|element| element.name() == "figcaption" || is_caption(element))
}

/// Whether a list is little more than images that each lead to another page, not to the image itself.
fn is_gallery_of_links(tree: &FlatTree, i: usize, name: &str) -> bool {
    let inside = tree.nodes[i].inside;
    let is_image = |link: &Element| {
        let path = link.attr("href").unwrap_or("").split(['?', '#']).next().unwrap_or("");
        let suffix = path.rsplit('.').next().unwrap_or("");
        IMAGE_SUFFIXES.iter().any(|image| suffix.eq_ignore_ascii_case(image))
    };
    let mut elements = (i + 1..tree.nodes[i].end).filter_map(|i| tree.element(i));
    matches!(name, "ul" | "ol")
        && inside.chars <= GALLERY_CHARS * inside.images
        && inside.images >= LINKS_MIN
        && inside.images == inside.linked_images
        && !elements.any(|element| element.name() == "a" && is_image(element))
}

/// Whether an element is not shown to anyone.
fn is_hidden(element: &Element) -> bool {
    element.attrs().any(|(name, value)| match name {
        "hidden" => true,
        "aria-hidden" => value == "true",
        "style" => {
            let style = value.to_ascii_lowercase().replace(' ', "");
            style.contains("display:none") || style.contains("visibility:hidden")
        }
        _ => false,
    })
}

/// Whether an element is a drawing for a narrower screen than the one after it: ai2html makes one
/// for each width and shows the one that fits.
fn is_other_width(tree: &FlatTree, i: usize, element: &Element) -> bool {
    let is_artboard = |element: &Element| {
        let classes = element.attr("class").unwrap_or("");
        classes.split_ascii_whitespace().any(|class| class == "g-artboard")
    };
    let node = &tree.nodes[i];
    is_artboard(element)
        && (node.end..tree.nodes[node.parent].end)
            .find_map(|next| tree.element(next))
            .is_some_and(is_artboard)
}

/// Words of an image's class, id or path that make it an ornament or a counter of visits.
const IMAGE_WORDS: [&str; 20] = [
    "avatar", "avatars", "badge", "beacon", "blank", "bullet", "emoji", "emoticon", "icons",
    "loader", "loading", "logos", "pixel", "qrcode", "smiley", "smilies", "spacer", "spinner",
    "tracker", "tracking",
];

/// Whether an image is an ornament or a counter of visits, by its names and by its address.
pub(crate) fn is_ornament(image: &Element, url: &str) -> bool {
    let named = ["class", "id"].into_iter().filter_map(|name| image.attr(name));
    let path = url.split(['?', '#']).next().unwrap_or("");
    named.chain([path]).any(|value| {
        value.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| {
            word.len() >= 5 && IMAGE_WORDS.iter().any(|found| found.eq_ignore_ascii_case(word))
        })
    })
}

/// Whether an element is named as a caption.
pub(crate) fn is_caption(element: &Element) -> bool {
    words(element) & CAPTION != 0
}

/// What the words of an element's class and id say.
fn words(element: &Element) -> u8 {
    let mut found = 0;
    for (name, value) in element.attrs() {
        if !matches!(name, "class" | "id") {
            continue;
        }
        for name in value.split_ascii_whitespace() {
            let mut before = 0;
            for word in name.split(|c: char| !c.is_ascii_alphanumeric()) {
                let kinds = TABLE.find(word.as_bytes()).unwrap_or(0);
                found |= if before & LAYOUT == 0 { kinds } else { 0 };
                before = kinds;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dom::Dom;

    #[test]
    fn words_are_whole_and_of_any_case() {
        let check = |html: &str, expected: bool| {
            let dom = Dom::fragment(html);
            let tree = FlatTree::new(&dom);
            let (_, element) = tree.elements().find(|(_, e)| e.name() == "div").unwrap();
            assert_eq!(words(element) & STRONG != 0, expected, "{html:?}");
        };
        check("<div class='top Nav-bar'>", true);
        check("<div id=Site_Footer>", true);
        check("<div class='canvas adjective download'>", false);
        check("<div title=menu>", false);
        check("<div class='with-sidebar fig--has-related'>", false);
    }

    #[test]
    fn the_largest_part_of_a_page_is_never_furniture() {
        let dom = Dom::page("<div class=sidebar>most of the text</div><p>rest</p>");
        let tree = FlatTree::new(&dom);
        let furniture = Furniture::new(&tree);
        assert!(tree.elements().all(|(i, e)| e.name() == "head" || !furniture.is(i)));
    }
}
