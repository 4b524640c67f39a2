//! What is kept of a split while it is read: everything, or as many entries as examples are drawn from. A file of
//! half a million questions then takes the memory of 2048.

use std::collections::BTreeMap;

use crate::draw::mix_text;

/// A choice of so many entries, by their ids alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// Most entries; 0 for all.
    pub most: usize,
    /// Key of their random numbers.
    pub key: u64,
}

/// Entries with the smallest random numbers so far.
pub struct Kept<T> {
    draw: Option<Draw>,
    /// By random number and place, where there is a draw.
    drawn: BTreeMap<(u64, usize), T>,
    /// With their places, where there is none.
    all: Vec<(usize, T)>,
}

impl<T> Kept<T> {
    /// Nothing so far.
    pub fn new(draw: Option<Draw>) -> Self {
        let draw = draw.filter(|draw| draw.most > 0);
        Self { draw, drawn: BTreeMap::new(), all: Vec::new() }
    }

    /// Whether an entry would be kept as things are.
    pub fn wants(&self, id: &str, place: usize) -> bool {
        let Some(draw) = self.draw else { return true };
        let last = self.drawn.last_key_value();
        self.drawn.len() < draw.most
            || last.is_some_and(|(last, _)| (mix_text(draw.key, id), place) < *last)
    }

    /// Keeps an entry, perhaps in place of another. `place` is where it stands in the split.
    pub fn push(&mut self, id: &str, place: usize, entry: T) {
        if !self.wants(id, place) {
            return;
        }
        let Some(draw) = self.draw else { return self.all.push((place, entry)) };
        self.drawn.insert((mix_text(draw.key, id), place), entry);
        if self.drawn.len() > draw.most {
            self.drawn.pop_last();
        }
    }

    /// What was kept, in the order of the places.
    pub fn into_entries(self) -> Vec<T> {
        let mut placed = self.all;
        placed.extend(self.drawn.into_iter().map(|((_, place), entry)| (place, entry)));
        placed.sort_unstable_by_key(|(place, _)| *place);
        placed.into_iter().map(|(_, entry)| entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(n: usize, draw: Option<Draw>) -> Vec<usize> {
        let mut kept = Kept::new(draw);
        (0..n).for_each(|i| kept.push(&format!("q{i}"), i, i));
        kept.into_entries()
    }

    #[test]
    fn as_many_are_kept_in_order_and_the_key_decides_which() {
        let draw = |most, key| Some(Draw { most, key });
        assert_eq!(kept(100, None).len(), 100);
        assert_eq!(kept(100, draw(0, 1)).len(), 100);
        assert_eq!(kept(20, draw(30, 1)).len(), 20);
        let some = kept(100, draw(30, 1));
        assert_eq!(some.len(), 30);
        assert!(some.is_sorted());
        assert_eq!(some, kept(100, draw(30, 1)));
        assert_ne!(some, kept(100, draw(30, 2)));
        // Of fewer entries the same ones win, as far as they are there.
        let fewer = kept(60, draw(30, 1));
        assert!(some.iter().filter(|i| **i < 60).all(|i| fewer.contains(i)));
    }
}
