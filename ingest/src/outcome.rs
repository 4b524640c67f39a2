//! What became of one item of the input.

use std::panic::{AssertUnwindSafe, catch_unwind};

use flamingo_dataset::Row;
use serde::{Deserialize, Serialize};

use crate::figures::Figures;
use crate::ledger::Fetch;
use crate::ordered::Weigh;
use crate::reject::{DropReason, Reject};

/// About how many bytes a reject, a row of figures or a fetch takes.
const NOTE_BYTES: usize = 512;

/// The rows an item gave, if any, and everything that was dropped on the way.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// The rows: most items give one, a page searched for pairs any number.
    pub rows: Vec<Row>,
    /// What was dropped: the item itself, or images of it.
    pub rejects: Vec<Reject>,
    /// What was measured of it and its parts, kept or dropped.
    pub figures: Vec<Figures>,
    /// What was asked for over the network on its behalf.
    pub fetches: Vec<Fetch>,
}

impl Outcome {
    /// An item that gave no row.
    pub fn dropped(reject: Reject) -> Self {
        Self { rejects: vec![reject], ..Self::default() }
    }

    /// An item that gave a row and lost nothing.
    pub fn kept(row: Row) -> Self {
        Self { rows: vec![row], ..Self::default() }
    }
}

impl Weigh for Outcome {
    fn weight(&self) -> u64 {
        let rows = self.rows.iter().map(Row::stored_bytes).sum::<usize>();
        let notes = self.rejects.len() + self.figures.len() + self.fetches.len();
        let pictures = self.rejects.iter().filter_map(|reject| reject.drop.picture.as_ref());
        let pictures = pictures.map(bytes::Bytes::len).sum::<usize>();
        (rows + pictures + notes * NOTE_BYTES) as u64
    }
}

/// The result of `work` on one item. A panic in it, which is a mistake of this program or of a
/// decoder, costs the item and not the run.
///
/// # Errors
/// When `work` panics.
pub fn without_panic<T>(work: impl FnOnce() -> T) -> Result<T, DropReason> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        DropReason::detail("internal_error", text.unwrap_or("a panic without words"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_reason() {
        assert_eq!(without_panic(|| 3).unwrap(), 3);
        let sides: Vec<u32> = Vec::new();
        let drop = without_panic(|| sides[0]).unwrap_err();
        assert_eq!(drop.reason, "internal_error");
        assert!(drop.detail.unwrap().contains("out of bounds"));
    }
}
