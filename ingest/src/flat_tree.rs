//! The DOM as one list in reading order, where a subtree is a range: passes over it are loops,
//! whatever the depth.

use crate::dom::{Dom, Element, Kind};

/// A node in reading order.
pub(crate) struct FlatNode<'a> {
    /// Element or text.
    pub(crate) kind: FlatKind<'a>,
    /// Index of the element around it; its own for a root.
    pub(crate) parent: usize,
    /// Index of the first node after this one and everything inside it.
    pub(crate) end: usize,
    /// What is inside.
    pub(crate) inside: Inside,
}

/// What is inside an element, or how long a text is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Inside {
    /// Bytes of text, white space not counted.
    pub(crate) chars: usize,
    /// Of these, bytes inside links.
    pub(crate) link_chars: usize,
    /// Links.
    pub(crate) links: usize,
    /// Images.
    pub(crate) images: usize,
    /// Of these, images inside links.
    pub(crate) linked_images: usize,
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
    pub(crate) fn new(dom: &'a Dom) -> Self {
        let mut nodes: Vec<FlatNode<'a>> = Vec::new();
        // Places in `nodes` of the open elements.
        let mut open: Vec<usize> = Vec::new();
        let mut next = dom.first(Dom::ROOT);
        while let Some(id) = next {
            let kind = match dom.kind(id) {
                Kind::Element(element) if !is_unread(element) => Some(FlatKind::Element(element)),
                Kind::Text(text) => Some(FlatKind::Text(text)),
                _ => None,
            };
            let inside = kind.and_then(|_| dom.first(id));
            if let Some(kind) = kind {
                let i = nodes.len();
                let parent = open.last().copied().unwrap_or(i);
                nodes.push(FlatNode { kind, parent, end: 0, inside: Inside::of(kind) });
                if inside.is_some() {
                    open.push(i);
                } else {
                    close(&mut nodes, i, open.last().copied());
                }
            }
            next = inside.or_else(|| dom.next(id));
            // Where a node is the last of its parent, the parent ends, too.
            let mut last = id;
            while next.is_none()
                && let Some(i) = open.pop()
            {
                close(&mut nodes, i, open.last().copied());
                last = dom.parent(last).expect("what is inside an element has a parent");
                next = dom.next(last);
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
        nodes[i].inside.linked_images = nodes[i].inside.images;
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
                let chars = text.bytes().filter(|byte| *byte > b' ').count();
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

    /// Bytes of text outside links.
    pub(crate) fn own(self) -> usize {
        self.chars - self.link_chars
    }

    fn add(&mut self, other: Self) {
        self.chars += other.chars;
        self.link_chars += other.link_chars;
        self.links += other.links;
        self.images += other.images;
        self.linked_images += other.linked_images;
        self.sections += other.sections;
    }
}

/// Whether a node is an element whose inside no reader sees as text.
fn is_unread(element: &Element) -> bool {
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
        let html = Dom::page(
            "<title>t</title><div><p>ab <a href=x>cde</a></p><script>no</script><img></div><p>f",
        );
        let tree = FlatTree::new(&html);
        let find = |name: &str| tree.elements().find(|(_, e)| e.name() == name).unwrap().0;
        let div = find("div");
        assert_eq!(tree.text(div), "ab cde");
        let inside =
            Inside { chars: 5, link_chars: 3, links: 1, images: 1, linked_images: 0, sections: 0 };
        assert_eq!(tree.nodes[div].inside, inside);
        assert_eq!(tree.text(tree.nodes[div].end), "f");
        assert_eq!(tree.nodes[0].end, tree.nodes.len());
        assert_eq!(tree.nodes[0].inside.chars, 7);
    }

    #[test]
    fn any_depth_is_flattened_without_recursion() {
        let html = Dom::page(&"<b><i>".repeat(3000));
        assert!(FlatTree::new(&html).nodes.len() > 6000);
        assert!(FlatTree::new(&Dom::fragment("")).nodes.len() <= 1);
    }
}
