//! What each dataset was drawn by over a run: the keys of `[[data]]` that may change when a run goes on
//! and change what comes out. A checkpoint knows them, so that a step can be made again later.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::config::DataConfig;

/// What a dataset is drawn by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drawn {
    /// Rows, or sequences of packed ones, per update.
    pub batch: usize,
    /// Parts of a batch that run one after the other.
    pub micro_batches: usize,
    /// Rows that the config leaves out.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub skip_rows: BTreeSet<u64>,
}

/// What all datasets are drawn by, under their names.
pub type AllDrawn = BTreeMap<String, Drawn>;

/// The same over a run, each under the step after which it began to hold.
pub type DataHistory = BTreeMap<u64, AllDrawn>;

/// What the datasets of a config are drawn by.
pub fn drawn(data: &[DataConfig]) -> AllDrawn {
    let one = |entry: &DataConfig| {
        let DataConfig { batch, micro_batches, ref skip_rows, .. } = *entry;
        (entry.name.clone(), Drawn { batch, micro_batches, skip_rows: skip_rows.clone() })
    };
    data.iter().map(one).collect()
}

/// Notes that a run goes on after `step` with `now`.
pub fn note(history: &mut DataHistory, step: u64, now: &AllDrawn) {
    let before = history.range(..step).next_back();
    if before.is_some_and(|(_, before)| before == now) {
        // What was noted of this very step has made none.
        history.remove(&step);
    } else {
        history.insert(step, now.clone());
    }
}

/// What held for the step after `done`, and whether it began there. Of steps that were made before any of
/// this was noted, the oldest that is known.
pub fn after(history: &DataHistory, done: u64) -> Option<&AllDrawn> {
    let held = history.range(..=done).next_back().or_else(|| history.first_key_value());
    held.map(|(_, drawn)| drawn)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(batch: usize) -> AllDrawn {
        let drawn = Drawn { batch, micro_batches: 1, skip_rows: BTreeSet::from([7]) };
        BTreeMap::from([("pages".to_owned(), drawn)])
    }

    #[test]
    fn each_step_has_what_held_when_it_was_made() {
        let mut history = DataHistory::new();
        assert_eq!(after(&history, 0), None);
        // Gone on with at 3 and 6 with the same, and at 6 twice, the first time without a step.
        for (step, batch) in [(0, 8), (3, 8), (6, 2), (6, 4), (9, 8)] {
            note(&mut history, step, &all(batch));
        }
        assert_eq!(history.keys().collect::<Vec<_>>(), [&0, &6, &9]);
        for (done, batch) in [(0, 8), (5, 8), (6, 4), (8, 4), (9, 8), (99, 8)] {
            assert_eq!(after(&history, done), Some(&all(batch)), "{done}");
        }
        note(&mut history, 9, &all(4));
        assert_eq!(history.keys().collect::<Vec<_>>(), [&0, &6]);
        let text = serde_json::to_string(&history).unwrap();
        assert_eq!(serde_json::from_str::<DataHistory>(&text).unwrap(), history);
        // A run that an earlier version began.
        let history = DataHistory::from([(6, all(4))]);
        assert_eq!(after(&history, 2), Some(&all(4)));
    }
}
