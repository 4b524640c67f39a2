//! What of a page is not content: menus, footers, banners, sidebars, comments, icons, share
//! buttons, advertisements, and everything that is hidden.
//!
//! An element is furniture by its tag, its role, a word of its class or id, or because it is a list
//! of links. An element that holds most of the page's text is never furniture: layouts are named
//! `with-sidebar`, too.

use scraper::node::Element;

use crate::flat_tree::FlatTree;

/// Words of a class or id that name furniture.
const WORDS: [&str; 54] = [
    "ad",
    "ads",
    "adslot",
    "adsense",
    "advert",
    "advertisement",
    "advertising",
    "advertorial",
    "banner",
    "breadcrumb",
    "breadcrumbs",
    "byline",
    "comment",
    "comments",
    "commentlist",
    "consent",
    "cookie",
    "cookies",
    "copyright",
    "disqus",
    "donate",
    "footer",
    "gdpr",
    "login",
    "masthead",
    "menu",
    "menubar",
    "modal",
    "nav",
    "navbar",
    "navbox",
    "navigation",
    "newsletter",
    "pager",
    "pagination",
    "popup",
    "promo",
    "recommended",
    "related",
    "respond",
    "search",
    "share",
    "sharing",
    "shares",
    "sharedaddy",
    "sidebar",
    "signup",
    "skip",
    "social",
    "sponsor",
    "sponsored",
    "subscribe",
    "toolbar",
    "widget",
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

/// Share of an element's text inside links from which on it is a list of links.
const LINK_SHARE: f64 = 0.75;
/// Fewest links of a list of links.
const LINKS_MIN: usize = 3;

/// What is needed to tell furniture from content.
pub(crate) struct Furniture {
    /// Characters of text of the whole page.
    chars: usize,
}

impl Furniture {
    /// Measures the page.
    pub(crate) fn new(tree: &FlatTree) -> Self {
        Self { chars: tree.nodes.first().map_or(0, |root| root.inside.chars) }
    }

    /// Whether the element at `i`, and all inside it, is furniture.
    pub(crate) fn is_furniture(&self, tree: &FlatTree, i: usize) -> bool {
        let Some(element) = tree.element(i) else { return false };
        let inside = tree.nodes[i].inside;
        if is_hidden(element) || matches!(element.name(), "head" | "nav" | "footer" | "dialog") {
            return true;
        }
        if inside.chars * 2 > self.chars {
            return false;
        }
        let role = element.attr("role").unwrap_or("").to_ascii_lowercase();
        element.name() == "aside"
            // The header of an article has its heading, the header of a site does not.
            || (element.name() == "header" && inside.sections == 0)
            || ROLES.contains(&role.as_str())
            || has_word(element, &WORDS)
            || (can_list_links(element.name())
                && inside.images == 0
                && inside.links >= LINKS_MIN
                && inside.link_chars as f64 > LINK_SHARE * inside.chars as f64)
    }
}

fn can_list_links(name: &str) -> bool {
    matches!(name, "ul" | "ol" | "dl" | "table" | "div" | "section" | "menu")
}

/// Whether an element is not shown to anyone.
fn is_hidden(element: &Element) -> bool {
    let style = || element.attr("style").unwrap_or("").to_ascii_lowercase().replace(' ', "");
    element.attr("hidden").is_some()
        || element.attr("aria-hidden") == Some("true")
        || (element.attr("style").is_some()
            && (style().contains("display:none") || style().contains("visibility:hidden")))
}

/// Whether the class or id of an element has one of `words` between its separators.
pub(crate) fn has_word(element: &Element, words: &[&str]) -> bool {
    let values = element.attrs().filter(|(name, _)| matches!(*name, "class" | "id"));
    values.into_iter().any(|(_, value)| {
        let mut parts = value.split(|c: char| !c.is_ascii_alphanumeric());
        parts.any(|part| words.iter().any(|word| word.eq_ignore_ascii_case(part)))
    })
}

/// Where the content begins: the page's one `<main>` (or `<article>`) that holds most of what is
/// not in lists of links, else the whole page.
pub(crate) fn content_root(tree: &FlatTree, furniture: &Furniture) -> usize {
    let own_chars = |i: usize| tree.nodes[i].inside.chars - tree.nodes[i].inside.link_chars;
    let page = if tree.nodes.is_empty() { 0 } else { own_chars(0) };
    let is_main =
        |element: &Element| element.name() == "main" || element.attr("role") == Some("main");
    let only = |is_wanted: &dyn Fn(&Element) -> bool| {
        let mut found = tree.elements().filter(|(i, element)| {
            is_wanted(element) && !furniture.is_furniture(tree, *i) && own_chars(*i) * 2 > page
        });
        found.next().map(|(i, _)| i)
    };
    only(&is_main).or_else(|| only(&|element| element.name() == "article")).unwrap_or(0)
}

/// The page's first `<h1>`, where it stands before the content begins.
pub(crate) fn heading_before(tree: &FlatTree, furniture: &Furniture, root: usize) -> Option<usize> {
    let mut headings = tree.elements().filter(|(_, element)| element.name() == "h1");
    let (first, _) = headings.next()?;
    let range = root..tree.nodes[root].end;
    let is_inside = tree.elements().any(|(i, e)| e.name() == "h1" && range.contains(&i));
    (first < root && !is_inside && !furniture.is_furniture(tree, first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use scraper::Html;

    use super::*;

    #[test]
    fn words_are_whole_and_of_any_case() {
        let check = |html: &str, expected: bool| {
            let html = Html::parse_fragment(html);
            let tree = FlatTree::new(&html);
            let (_, element) = tree.elements().find(|(_, e)| e.name() == "div").unwrap();
            assert_eq!(has_word(element, &WORDS), expected, "{html:?}");
        };
        check("<div class='top Nav-bar'>", true);
        check("<div id=Site_Footer>", true);
        check("<div class='canvas adjective download'>", false);
        check("<div title=menu>", false);
    }

    #[test]
    fn the_largest_part_of_a_page_is_never_furniture() {
        let html = Html::parse_document("<div class=sidebar>most of the text</div><p>rest</p>");
        let tree = FlatTree::new(&html);
        let furniture = Furniture::new(&tree);
        assert!(
            tree.elements().all(|(i, e)| e.name() == "head" || !furniture.is_furniture(&tree, i))
        );
    }
}
