//! Where on a page its main part is: the element whose blocks of running text weigh most against
//! its links, short lines and furniture.
//!
//! Each block of text has a value: its length, less what is inside links, less a fixed cost, so that
//! paragraphs count for an element and menus, teasers and labels count against it. The main part
//! is the innermost element that holds nearly all of the value.

use crate::dom::Element;
use crate::flat_tree::{FlatKind, FlatTree};
use crate::furniture::{Furniture, is_heading};
use crate::html::is_block;

/// What a block must have before it counts for an element, in bytes.
const BLOCK_COST: f32 = 60.0;
/// How much a byte inside a link counts against a block.
const LINK_COST: f32 = 2.0;
/// The most that something inside an element can count against it.
const LOSS_MAX: f32 = 100.0;
/// Share of the value of an element that an element inside it must hold to be the main part instead.
const SHARE_MIN: f32 = 0.75;

/// Value from which on the main part is known by its text; below it, by its name if it has one.
const VALUE_MIN: f32 = 400.0;
/// Fewest bytes of text outside links in a sibling of the main part that belongs to it.
const PART_MIN: usize = 140;
/// Most bytes of text that a `<main>` may add to the main part inside it.
const ADDED_MAX: usize = 160;

/// Where the main part begins; the whole page where nothing counts for anything.
pub(crate) fn root(tree: &FlatTree, furniture: &Furniture) -> usize {
    let values = values(tree, furniture);
    let own = |i: usize| tree.nodes[i].inside.own();
    let mut root = innermost(tree, &values);
    if values.get(root).is_none_or(|value| *value < VALUE_MIN) {
        let only = |is_wanted: fn(&Element) -> bool| {
            let mut found = tree.elements().filter(|(i, element)| {
                is_wanted(element) && !furniture.is(*i) && own(*i) * 2 > own(0)
            });
            found.next().map(|(i, _)| i)
        };
        let named = only(is_main).or_else(|| only(|element| element.name() == "article"));
        root = named.unwrap_or(root);
    }
    let mut at = root;
    while tree.nodes[at].parent != at {
        at = tree.nodes[at].parent;
        if tree.element(at).is_some_and(is_main) && own(at) <= own(root) + ADDED_MAX {
            return at;
        }
    }
    root
}

fn is_main(element: &Element) -> bool {
    element.name() == "main" || element.attr("role") == Some("main")
}

/// The innermost element that holds nearly all of the value.
fn innermost(tree: &FlatTree, values: &[f32]) -> usize {
    if values.first().is_none_or(|value| *value <= 0.0) {
        return 0;
    }
    let mut root = 0;
    loop {
        if tree.element(root).is_some_and(is_body) {
            return root;
        }
        let mut best = None;
        let mut i = root + 1;
        while i < tree.nodes[root].end {
            if tree.element(i).is_some_and(is_container)
                && best.is_none_or(|best: usize| values[i] > values[best])
            {
                best = Some(i);
            }
            i = tree.nodes[i].end;
        }
        match best {
            Some(best) if values[best] >= SHARE_MIN * values[root] => root = best,
            _ => return root,
        }
    }
}

/// What each element and all inside it counts for.
fn values(tree: &FlatTree, furniture: &Furniture) -> Vec<f32> {
    let n = tree.nodes.len();
    // The block that each node belongs to, and whether it is inside a link.
    let mut blocks = vec![0_u32; n];
    let mut in_link = vec![false; n];
    let mut values = vec![0.0_f32; n];
    let mut texts = vec![(0.0_f32, 0.0_f32); n];
    let mut i = 0;
    while i < n {
        let node = &tree.nodes[i];
        match node.kind {
            FlatKind::Text(_) => {
                let chars = node.inside.chars as f32;
                let text = &mut texts[blocks[node.parent] as usize];
                text.0 += chars;
                text.1 += if in_link[node.parent] { chars } else { 0.0 };
            }
            FlatKind::Element(element) => {
                if furniture.is(i) {
                    i = node.end;
                    continue;
                }
                let name = element.name();
                blocks[i] = if is_block(name) { i as u32 } else { blocks[node.parent] };
                in_link[i] = name == "a" || in_link[node.parent];
            }
        }
        i += 1;
    }
    for i in (0..n).rev() {
        let (chars, link_chars) = texts[i];
        if chars > 0.0 {
            let is_title = tree.element(i).is_some_and(|element| is_heading(element.name()));
            let own = chars - LINK_COST * link_chars - BLOCK_COST;
            values[i] += if is_title { own.min(0.0) } else { own };
        }
        let parent = tree.nodes[i].parent;
        if parent != i {
            values[parent] += values[i].max(-LOSS_MAX);
        }
    }
    values
}

/// Whether an element may be the main part: it groups blocks and is none itself.
fn is_container(element: &Element) -> bool {
    matches!(
        element.name(),
        "article"
            | "body"
            | "center"
            | "div"
            | "font"
            | "form"
            | "html"
            | "main"
            | "section"
            | "span"
            | "table"
            | "tbody"
            | "td"
            | "tr"
    )
}

/// Whether an element says that it is the body of an article.
fn is_body(element: &Element) -> bool {
    element
        .attr("itemprop")
        .is_some_and(|value| value.split_whitespace().any(|v| v == "articleBody"))
}

/// The main part with those of its siblings that are parts of one article: the like of it, with text of
/// their own, and all between them. In order of reading; the root is one of them.
pub(crate) fn parts(tree: &FlatTree, root: usize) -> Vec<usize> {
    let parent = tree.nodes[root].parent;
    let look = |i: usize| tree.element(i).map(|e| (e.name(), e.attr("class").unwrap_or("")));
    if parent == root || look(root).is_none_or(|(_, class)| class.is_empty()) {
        return vec![root];
    }
    let (mut siblings, mut i) = (Vec::new(), parent + 1);
    while i < tree.nodes[parent].end {
        siblings.push(i);
        i = tree.nodes[i].end;
    }
    let is_part =
        |i: &usize| *i == root || look(*i) == look(root) && tree.nodes[*i].inside.own() >= PART_MIN;
    let first = siblings.iter().position(is_part).unwrap_or(0);
    let last = siblings.iter().rposition(is_part).unwrap_or(siblings.len() - 1);
    siblings[first..=last].to_vec()
}

/// Figures of the article around the main part that stand before it: many articles begin with one
/// above their text.
pub(crate) fn figures_before(tree: &FlatTree, furniture: &Furniture, root: usize) -> Vec<usize> {
    let mut article = root;
    while tree.element(article).is_some_and(|element| element.name() != "article") {
        if tree.nodes[article].parent == article {
            return Vec::new();
        }
        article = tree.nodes[article].parent;
    }
    let mut figures = Vec::new();
    let mut i = article + 1;
    while i < root {
        let node = &tree.nodes[i];
        let is_figure = tree.element(i).is_some_and(|element| element.name() == "figure");
        if furniture.is(i) {
            i = node.end;
        } else if is_figure && node.end <= root {
            figures.push(i);
            i = node.end;
        } else {
            i += 1;
        }
    }
    figures
}

/// The page's first `<h1>`, where it stands before the content begins.
pub(crate) fn heading_before(tree: &FlatTree, furniture: &Furniture, root: usize) -> Option<usize> {
    let mut headings = tree.elements().filter(|(_, element)| element.name() == "h1");
    let (first, _) = headings.next()?;
    let range = root..tree.nodes[root].end;
    let is_inside = tree.elements().any(|(i, e)| e.name() == "h1" && range.contains(&i));
    (first < root && !is_inside && !furniture.is(first)).then_some(first)
}
