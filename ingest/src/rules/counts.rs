//! How often each of many hashes comes, in the order in which they first came.

/// A table of counts that is used again for text after text without being cleared.
#[derive(Default)]
pub(super) struct Counts {
    /// Open addressing with linear probing; a slot of an older epoch is empty.
    slots: Vec<Slot>,
    epoch: u32,
    /// Slots in use are the first `mask + 1`: small texts stay in the cache.
    mask: usize,
    /// One entry for each different key, in the order of their first coming.
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    key: u64,
    epoch: u32,
    entry: u32,
}

/// A key that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// The `n`-th call of [`Counts::add`] since the start was the first with this key.
    pub(super) first: u32,
    /// How often it came.
    pub(super) count: u32,
}

impl Counts {
    /// Forgets everything and makes room for `n` keys.
    pub(super) fn start(&mut self, n: usize) {
        let size = (2 * n).max(16).next_power_of_two();
        if self.slots.len() < size {
            self.slots.resize(size, Slot::default());
        }
        if self.epoch == u32::MAX {
            self.slots.fill(Slot::default());
            self.epoch = 0;
        }
        self.epoch += 1;
        self.mask = size - 1;
        self.entries.clear();
    }

    /// Counts a key, which is the one with number `index`; returns how often it has come now.
    ///
    /// # Panics
    /// Never, while no more keys come than [`Counts::start`] made room for.
    #[inline]
    pub(super) fn add(&mut self, key: u64, index: usize) -> u32 {
        // Sums of products have their best bits at the top.
        let mut at = (key ^ (key >> 32)) as usize & self.mask;
        loop {
            let slot = &mut self.slots[at];
            if slot.epoch != self.epoch {
                let entry = self.entries.len() as u32;
                *slot = Slot { key, epoch: self.epoch, entry };
                self.entries.push(Entry { first: index as u32, count: 1 });
                return 1;
            }
            if slot.key == key {
                let entry = &mut self.entries[slot.entry as usize];
                entry.count += 1;
                return entry.count;
            }
            at = (at + 1) & self.mask;
        }
    }

    /// How often a key has come.
    #[inline]
    pub(super) fn get(&self, key: u64) -> u32 {
        let mut at = (key ^ (key >> 32)) as usize & self.mask;
        loop {
            let slot = &self.slots[at];
            if slot.epoch != self.epoch {
                return 0;
            }
            if slot.key == key {
                return self.entries[slot.entry as usize].count;
            }
            at = (at + 1) & self.mask;
        }
    }

    /// The different keys, in the order of their first coming.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

/// Tells most keys that come only once, with a few bits for each key.
#[derive(Default)]
pub(super) struct Filter {
    /// Bits of keys that came, and of keys that came again.
    words: Vec<[u64; 2]>,
    mask: usize,
}

/// Bits for each key: one in sixteen keys that come once is taken for one that comes again.
const FILTER_BITS: usize = 16;

impl Filter {
    /// Forgets everything and makes room for `n` keys.
    pub(super) fn start(&mut self, n: usize) {
        let n_words = (n * FILTER_BITS / 64).max(1).next_power_of_two();
        self.words.clear();
        self.words.resize(n_words, [0, 0]);
        self.mask = n_words - 1;
    }

    /// Notes a key.
    #[inline]
    pub(super) fn add(&mut self, key: u64) {
        let (word, bit) = self.place(key);
        let [once, again] = &mut self.words[word];
        *again |= *once & bit;
        *once |= bit;
    }

    /// False only for keys that came once.
    #[inline]
    pub(super) fn may_repeat(&self, key: u64) -> bool {
        let (word, bit) = self.place(key);
        self.words[word][1] & bit != 0
    }

    #[inline]
    fn place(&self, key: u64) -> (usize, u64) {
        ((key >> 38) as usize & self.mask, 1 << ((key >> 32) & 63))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_those_of_a_map_and_a_start_forgets() {
        let mut counts = Counts::default();
        for round in 0..3_u64 {
            counts.start(1000);
            let mut expected = std::collections::BTreeMap::new();
            for i in 0..1000_u64 {
                let key = (i * i + round) % 97;
                *expected.entry(key).or_insert(0_u32) += 1;
                assert_eq!(counts.add(key, i as usize), expected[&key]);
            }
            assert_eq!(counts.entries().len(), expected.len());
            assert_eq!(counts.entries().iter().map(|e| e.count).sum::<u32>(), 1000);
            assert!(counts.entries().is_sorted_by_key(|e| e.first));
            assert!(expected.iter().all(|(key, n)| counts.get(*key) == *n));
            assert_eq!(counts.get(97), 0);
        }
    }

    #[test]
    fn the_filter_lets_every_repeated_key_pass_and_few_others() {
        let mut filter = Filter::default();
        for _ in 0..2 {
            filter.start(10_000);
            let key = super::super::tokens::mix;
            (0..9000).chain(0..1000).for_each(|i| filter.add(key(i)));
            assert!((0..1000).all(|i| filter.may_repeat(key(i))));
            let n_wrong = (1000..9000).filter(|i| filter.may_repeat(key(*i))).count();
            assert!(n_wrong < 1000, "{n_wrong}");
        }
    }
}
