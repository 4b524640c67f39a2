//! The DOM as one list in reading order, where a subtree is a range: passes over it are loops,
//! whatever the depth.

use scraper::node::Element;
use scraper::{Html, Node};

/// A node in reading order.
pub(crate) struct FlatNode<'a> {
    /// Element or text.
    pub(crate) kind: FlatKind<'a>,
    /// Index of the first node after this one and everything inside it.
    pub(crate) end: usize,
    /// What is inside.
    pub(crate) inside: Inside,
}

/// What is inside an element, or how long a text is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Inside {
    /// Characters of text, white space not counted.
    pub(crate) chars: usize,
    /// Of these, characters inside links.
    pub(crate) link_chars: usize,
    /// Links.
    pub(crate) links: usize,
    /// Images.
    pub(crate) images: usize,
    /// Tables, headings and figures, which make a table around them one of layout.
    pub(crate) sections: usize,
}

/// What a node is.
#[derive(Clone, Copy)]
pub(crate) enum FlatKind<'a> {
    /// An element.
    Element(&'a Element),
    /// Text.
    Text(&'a str),
}

/// A document without comments, scripts and form fields.
pub(crate) struct FlatTree<'a> {
    /// All nodes; the first is the root element. Empty for an empty document.
    pub(crate) nodes: Vec<FlatNode<'a>>,
}

impl<'a> FlatTree<'a> {
    /// Flattens a parsed page or fragment.
    pub(crate) fn new(html: &'a Html) -> Self {
        let mut nodes: Vec<FlatNode<'a>> = Vec::new();
        // The open elements: where each stands in `nodes`, none for one that is not read.
        let mut open: Vec<Option<usize>> = Vec::new();
        let mut next = html.tree.root().first_child();
        let mut n_unread = 0;
        while let Some(node) = next {
            let kind = match node.value() {
                Node::Element(element) => Some(FlatKind::Element(element)),
                Node::Text(text) => Some(FlatKind::Text(text)),
                _ => None,
            };
            n_unread += usize::from(is_unread(node.value()));
            let kind = kind.filter(|_| n_unread == 0);
            let at = kind.map(|kind| {
                nodes.push(FlatNode { kind, end: 0, inside: Inside::of(kind) });
                nodes.len() - 1
            });
            open.push(at);
            next = node.first_child();
            // Where nothing is inside, this node and all that it is the last of come to their end.
            let mut closing = node;
            while next.is_none() {
                let ended = open.pop().expect("a node that closes was opened");
                if let Some(i) = ended {
                    close(&mut nodes, i, open.iter().rev().find_map(|at| *at));
                }
                n_unread -= usize::from(is_unread(closing.value()));
                next = closing.next_sibling();
                match closing.parent() {
                    Some(parent) if next.is_none() && !open.is_empty() => closing = parent,
                    _ => break,
                }
            }
        }
        Self { nodes }
    }

    /// The element at `i`, if it is one.
    pub(crate) fn element(&self, i: usize) -> Option<&'a Element> {
        match self.nodes[i].kind {
            FlatKind::Element(element) => Some(element),
            FlatKind::Text(_) => None,
        }
    }

    /// All elements with their places.
    pub(crate) fn elements(&self) -> impl Iterator<Item = (usize, &'a Element)> {
        (0..self.nodes.len()).filter_map(|i| self.element(i).map(|element| (i, element)))
    }

    /// All text inside the node at `i`, as written.
    pub(crate) fn text(&self, i: usize) -> String {
        let inside = self.nodes[i..self.nodes[i].end].iter();
        let texts = inside.filter_map(|node| match node.kind {
            FlatKind::Text(text) => Some(text),
            FlatKind::Element(_) => None,
        });
        texts.collect()
    }

    /// Whether the table at `i` holds values, not a whole page laid out in cells.
    pub(crate) fn is_data_table(&self, i: usize) -> bool {
        let inside = self.nodes[i].inside;
        // The table counts itself.
        inside.images == 0 && inside.sections <= 1
    }
}

/// Ends the node at `i` and adds what is inside it to its parent.
fn close(nodes: &mut [FlatNode<'_>], i: usize, parent: Option<usize>) {
    nodes[i].end = nodes.len();
    if let FlatKind::Element(element) = nodes[i].kind
        && element.name() == "a"
    {
        nodes[i].inside.link_chars = nodes[i].inside.chars;
        nodes[i].inside.links = 1;
    }
    let inside = nodes[i].inside;
    if let Some(parent) = parent {
        nodes[parent].inside.add(inside);
    }
}

impl Inside {
    /// What the node itself adds.
    fn of(kind: FlatKind<'_>) -> Self {
        match kind {
            FlatKind::Text(text) => {
                let chars = text.chars().filter(|c| !c.is_whitespace()).count();
                Self { chars, ..Self::default() }
            }
            FlatKind::Element(element) => match element.name() {
                "img" => Self { images: 1, ..Self::default() },
                "table" | "figure" | "h1" | "h2" | "h3" | "h4" | "h5" | "h6" => {
                    Self { sections: 1, ..Self::default() }
                }
                _ => Self::default(),
            },
        }
    }

    fn add(&mut self, other: Self) {
        self.chars += other.chars;
        self.link_chars += other.link_chars;
        self.links += other.links;
        self.images += other.images;
        self.sections += other.sections;
    }
}

/// Whether a node is an element whose inside no reader sees as text.
fn is_unread(node: &Node) -> bool {
    let Node::Element(element) = node else { return false };
    matches!(
        element.name(),
        "script"
            | "style"
            | "template"
            | "iframe"
            | "object"
            | "embed"
            | "canvas"
            | "audio"
            | "video"
            | "map"
            | "svg"
            | "select"
            | "datalist"
            | "textarea"
            | "button"
            | "input"
            | "annotation"
            | "annotation-xml"
            | "frameset"
            | "noframes"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subtrees_are_ranges_with_counts() {
        let html = Html::parse_document(
            "<title>t</title><div><p>ab <a href=x>cde</a></p><script>no</script><img></div><p>f",
        );
        let tree = FlatTree::new(&html);
        let find = |name: &str| tree.elements().find(|(_, e)| e.name() == name).unwrap().0;
        let div = find("div");
        assert_eq!(tree.text(div), "ab cde");
        let inside = Inside { chars: 5, link_chars: 3, links: 1, images: 1, sections: 0 };
        assert_eq!(tree.nodes[div].inside, inside);
        assert_eq!(tree.text(tree.nodes[div].end), "f");
        assert_eq!(tree.nodes[0].end, tree.nodes.len());
        assert_eq!(tree.nodes[0].inside.chars, 7);
    }

    #[test]
    fn any_depth_is_flattened_without_recursion() {
        let html = Html::parse_document(&"<b><i>".repeat(3000));
        assert!(FlatTree::new(&html).nodes.len() > 6000);
        assert!(FlatTree::new(&Html::new_document()).nodes.is_empty());
    }
}
