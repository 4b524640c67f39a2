//! The DOM of a page as html5ever builds it, in one arena of nodes that link to each other.
//!
//! It keeps what [`crate::flat_tree`] reads: elements with their attributes, and text. Comments and
//! doctypes have a place in the tree, so that the parser's rules hold, but no content.

use std::borrow::Cow;
use std::cell::{Ref, RefCell};

use html5ever::interface::{ElementFlags, NodeOrText, QuirksMode, TreeSink};
use html5ever::tendril::{StrTendril, TendrilSink};
use html5ever::{Attribute, ParseOpts, QualName, local_name, ns, parse_document, parse_fragment};

/// An element: its name and attributes.
#[derive(Debug)]
pub(crate) struct Element {
    name: QualName,
    attrs: Vec<Attribute>,
    /// The inside of a `<template>` hangs below a node of its own.
    template: Option<NodeId>,
    is_integration_point: bool,
}

impl Element {
    /// The name without its namespace, in lower case for elements of HTML.
    pub(crate) fn name(&self) -> &str {
        &self.name.local
    }

    /// The value of an attribute.
    pub(crate) fn attr(&self, name: &str) -> Option<&str> {
        self.attrs().find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// Names and values of all attributes.
    pub(crate) fn attrs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.attrs.iter().map(|attr| (&*attr.name.local, &*attr.value))
    }
}

/// What a node of the tree is.
#[derive(Debug)]
pub(crate) enum Kind {
    /// The root, or the inside of a template.
    Root,
    /// An element.
    Element(Element),
    /// Text.
    Text(StrTendril),
    /// A comment or processing instruction.
    Unread,
}

/// The index of a node.
pub(crate) type NodeId = u32;

/// In place of a node's index where there is no node.
const NONE: NodeId = NodeId::MAX;

/// A node and its links.
#[derive(Debug)]
struct Node {
    kind: Kind,
    parent: NodeId,
    previous: NodeId,
    next: NodeId,
    first: NodeId,
    last: NodeId,
}

/// A parsed page or fragment.
#[derive(Debug)]
pub(crate) struct Dom {
    nodes: Vec<Node>,
}

impl Dom {
    /// Parses a whole page.
    pub(crate) fn page(html: &str) -> Self {
        parse_document(Sink::new(), ParseOpts::default()).one(html)
    }

    /// Parses what stands somewhere inside `<body>`.
    pub(crate) fn fragment(html: &str) -> Self {
        let body = QualName::new(None, ns!(html), local_name!("body"));
        parse_fragment(Sink::new(), ParseOpts::default(), body, Vec::new(), false).one(html)
    }

    /// The root of the tree.
    pub(crate) const ROOT: NodeId = 0;

    /// What a node is.
    pub(crate) fn kind(&self, id: NodeId) -> &Kind {
        &self.nodes[id as usize].kind
    }

    /// The node that holds a node.
    pub(crate) fn parent(&self, id: NodeId) -> Option<NodeId> {
        some(self.nodes[id as usize].parent)
    }

    /// The node after a node, in the same parent.
    pub(crate) fn next(&self, id: NodeId) -> Option<NodeId> {
        some(self.nodes[id as usize].next)
    }

    /// The first node inside a node.
    pub(crate) fn first(&self, id: NodeId) -> Option<NodeId> {
        some(self.nodes[id as usize].first)
    }

    fn node(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id as usize]
    }

    fn add(&mut self, kind: Kind) -> NodeId {
        let (parent, previous, next, first, last) = (NONE, NONE, NONE, NONE, NONE);
        self.nodes.push(Node { kind, parent, previous, next, first, last });
        (self.nodes.len() - 1) as NodeId
    }

    fn detach(&mut self, id: NodeId) {
        let Node { parent, previous, next, .. } = self.nodes[id as usize];
        match some(previous) {
            Some(previous) => self.node(previous).next = next,
            None if parent != NONE => self.node(parent).first = next,
            None => {}
        }
        match some(next) {
            Some(next) => self.node(next).previous = previous,
            None if parent != NONE => self.node(parent).last = previous,
            None => {}
        }
        let node = self.node(id);
        (node.parent, node.previous, node.next) = (NONE, NONE, NONE);
    }

    /// Puts a node inside `parent`, before `next` or at the end.
    fn insert(&mut self, id: NodeId, parent: NodeId, next: NodeId) {
        self.detach(id);
        let previous = match some(next) {
            Some(next) => std::mem::replace(&mut self.node(next).previous, id),
            None => std::mem::replace(&mut self.node(parent).last, id),
        };
        match some(previous) {
            Some(previous) => self.node(previous).next = id,
            None => self.node(parent).first = id,
        }
        let node = self.node(id);
        (node.parent, node.previous, node.next) = (parent, previous, next);
    }

    /// Puts a node or text inside `parent`, before `next` or at the end; text joins text before it.
    fn place(&mut self, child: NodeOrText<NodeId>, parent: NodeId, next: NodeId) {
        let id = match child {
            NodeOrText::AppendNode(id) => id,
            NodeOrText::AppendText(text) => {
                let before = match some(next) {
                    Some(next) => self.nodes[next as usize].previous,
                    None => self.nodes[parent as usize].last,
                };
                if let Some(before) = some(before)
                    && let Kind::Text(joined) = &mut self.node(before).kind
                {
                    joined.push_tendril(&text);
                    return;
                }
                self.add(Kind::Text(text))
            }
        };
        self.insert(id, parent, next);
    }
}

fn some(id: NodeId) -> Option<NodeId> {
    (id != NONE).then_some(id)
}

/// Builds the arena at the parser's word.
struct Sink(RefCell<Dom>);

impl Sink {
    fn new() -> Self {
        let mut dom = Dom { nodes: Vec::new() };
        dom.add(Kind::Root);
        Self(RefCell::new(dom))
    }
}

impl TreeSink for Sink {
    type Handle = NodeId;
    type Output = Dom;
    type ElemName<'a> = Ref<'a, QualName>;

    fn finish(self) -> Dom {
        self.0.into_inner()
    }

    fn parse_error(&self, _: Cow<'static, str>) {}

    fn get_document(&self) -> NodeId {
        Dom::ROOT
    }

    fn elem_name<'a>(&'a self, target: &'a NodeId) -> Ref<'a, QualName> {
        Ref::map(self.0.borrow(), |dom| match dom.kind(*target) {
            Kind::Element(element) => &element.name,
            _ => unreachable!("the parser asks elements for their names"),
        })
    }

    fn create_element(&self, name: QualName, attrs: Vec<Attribute>, flags: ElementFlags) -> NodeId {
        let mut dom = self.0.borrow_mut();
        let template = flags.template.then(|| dom.add(Kind::Root));
        let is_integration_point = flags.mathml_annotation_xml_integration_point;
        dom.add(Kind::Element(Element { name, attrs, template, is_integration_point }))
    }

    fn create_comment(&self, _: StrTendril) -> NodeId {
        self.0.borrow_mut().add(Kind::Unread)
    }

    fn create_pi(&self, _: StrTendril, _: StrTendril) -> NodeId {
        self.0.borrow_mut().add(Kind::Unread)
    }

    fn append(&self, parent: &NodeId, child: NodeOrText<NodeId>) {
        self.0.borrow_mut().place(child, *parent, NONE);
    }

    fn append_based_on_parent_node(
        &self,
        element: &NodeId,
        previous: &NodeId,
        child: NodeOrText<NodeId>,
    ) {
        let has_parent = self.0.borrow().parent(*element).is_some();
        if has_parent {
            self.append_before_sibling(element, child);
        } else {
            self.append(previous, child);
        }
    }

    fn append_doctype_to_document(&self, _: StrTendril, _: StrTendril, _: StrTendril) {}

    fn get_template_contents(&self, target: &NodeId) -> NodeId {
        match self.0.borrow().kind(*target) {
            Kind::Element(Element { template: Some(inside), .. }) => *inside,
            _ => unreachable!("the parser asks templates for their inside"),
        }
    }

    fn same_node(&self, x: &NodeId, y: &NodeId) -> bool {
        x == y
    }

    fn set_quirks_mode(&self, _: QuirksMode) {}

    fn append_before_sibling(&self, sibling: &NodeId, child: NodeOrText<NodeId>) {
        let mut dom = self.0.borrow_mut();
        if let Some(parent) = dom.parent(*sibling) {
            dom.place(child, parent, *sibling);
        }
    }

    fn add_attrs_if_missing(&self, target: &NodeId, attrs: Vec<Attribute>) {
        if let Kind::Element(element) = &mut self.0.borrow_mut().node(*target).kind {
            for attr in attrs {
                if element.attrs.iter().all(|had| had.name != attr.name) {
                    element.attrs.push(attr);
                }
            }
        }
    }

    fn remove_from_parent(&self, target: &NodeId) {
        self.0.borrow_mut().detach(*target);
    }

    fn reparent_children(&self, node: &NodeId, new_parent: &NodeId) {
        let mut dom = self.0.borrow_mut();
        while let Some(child) = dom.first(*node) {
            dom.insert(child, *new_parent, NONE);
        }
    }

    fn is_mathml_annotation_xml_integration_point(&self, target: &NodeId) -> bool {
        let dom = self.0.borrow();
        matches!(dom.kind(*target), Kind::Element(element) if element.is_integration_point)
    }
}
