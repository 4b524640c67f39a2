//! What became of one item of the input.

use flamingo_dataset::Row;

use crate::reject::Reject;

/// The row an item gave, if any, and everything that was dropped on the way.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outcome {
    /// The row.
    pub row: Option<Row>,
    /// What was dropped: the item itself, or images of it.
    pub rejects: Vec<Reject>,
}

impl Outcome {
    /// An item that gave no row.
    pub fn dropped(reject: Reject) -> Self {
        Self { row: None, rejects: vec![reject] }
    }

    /// An item that gave a row and lost nothing.
    pub fn kept(row: Row) -> Self {
        Self { row: Some(row), rejects: Vec::new() }
    }
}
