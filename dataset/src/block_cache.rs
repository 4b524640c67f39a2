//! What blocks of rows hold beside images, kept while a shuffled epoch comes back to them.
//!
//! An order that mixes groups of blocks (see `order`) returns to a block as often as it has rows, so
//! that its texts are fetched and decompressed once for all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::CorpusError;

/// Most bytes of blocks that a corpus keeps: the default shuffle comes back to some 20,000 rows with the
/// neighbours that share their blocks, of which a page with its slots may take 9 KB.
const BYTES_MAX: usize = 192 << 20;

/// A block of a corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BlockKey {
    /// Number of the shard.
    pub(crate) shard: usize,
    /// Number of the row group in it.
    pub(crate) group: usize,
    /// Number of the block in that.
    pub(crate) block: u64,
}

/// The blocks that were used last.
pub(crate) struct BlockCache<B> {
    kept: Mutex<Kept<B>>,
}

struct Kept<B> {
    slots: HashMap<BlockKey, Slot<B>>,
    bytes: usize,
    /// Counts uses.
    clock: u64,
}

/// A block, which the first who wants it reads while others wait.
type BlockSlot<B> = Arc<Mutex<Option<Arc<B>>>>;

struct Slot<B> {
    block: BlockSlot<B>,
    bytes: usize,
    used: u64,
}

impl<B> Default for BlockCache<B> {
    fn default() -> Self {
        Self { kept: Mutex::new(Kept { slots: HashMap::new(), bytes: 0, clock: 0 }) }
    }
}

impl<B> BlockCache<B> {
    /// A block: kept, or read now, which tells its size in memory too.
    pub(crate) fn get(
        &self,
        key: BlockKey,
        read: impl FnOnce() -> Result<(B, usize), CorpusError>,
    ) -> Result<Arc<B>, CorpusError> {
        let slot = self.slot(key);
        let mut kept = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = &*kept {
            return Ok(Arc::clone(block));
        }
        let (block, bytes) = read()?;
        let block = Arc::new(block);
        *kept = Some(Arc::clone(&block));
        self.count(key, &slot, bytes);
        Ok(block)
    }

    fn slot(&self, key: BlockKey) -> BlockSlot<B> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clock += 1;
        let used = kept.clock;
        let new = || Slot { block: BlockSlot::default(), bytes: 0, used };
        let slot = kept.slots.entry(key).or_insert_with(new);
        slot.used = used;
        Arc::clone(&slot.block)
    }

    /// Notes how large a block is that was read, and lets those go that were not used for longest.
    fn count(&self, key: BlockKey, block: &BlockSlot<B>, bytes: usize) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(slot) = kept.slots.get_mut(&key).filter(|slot| Arc::ptr_eq(&slot.block, block))
        else {
            return;
        };
        slot.bytes = bytes;
        kept.bytes += bytes;
        while kept.bytes > BYTES_MAX {
            // Those without bytes are being read.
            let others = kept.slots.iter().filter(|(other, slot)| **other != key && slot.bytes > 0);
            let Some(oldest) = others.min_by_key(|(_, slot)| slot.used).map(|(key, _)| *key) else {
                return;
            };
            let freed = kept.slots.remove(&oldest).map_or(0, |slot| slot.bytes);
            kept.bytes -= freed;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn key(block: u64) -> BlockKey {
        BlockKey { shard: 0, group: 0, block }
    }

    #[test]
    fn a_block_is_read_once_until_others_take_its_room() {
        let cache = BlockCache::default();
        let n_read = Cell::new(0);
        let get = |block, bytes| {
            let read = || {
                n_read.set(n_read.get() + 1);
                Ok(((), bytes))
            };
            cache.get(key(block), read).unwrap();
            n_read.get()
        };
        assert_eq!(get(0, 100), 1);
        assert_eq!(get(0, 100), 1);
        let third = BYTES_MAX / 3 + 1;
        assert_eq!(get(1, third), 2);
        assert_eq!(get(2, third), 3);
        assert_eq!(get(1, third), 3, "still there");
        assert_eq!(get(3, third), 4);
        assert_eq!(get(1, third), 4, "used after the second");
        assert_eq!(get(2, third), 5, "had to go");
        // One that is larger than everything is given out, and the next takes its place.
        assert_eq!(get(4, 2 * BYTES_MAX), 6);
        assert_eq!(get(1, third), 7);
        assert!(cache.kept.lock().unwrap().bytes <= BYTES_MAX);
    }

    #[test]
    fn a_block_that_cannot_be_read_is_tried_again() {
        let cache = BlockCache::default();
        let failed = || Err(CorpusError::EmptyMixture);
        assert!(cache.get(key(0), failed).is_err());
        assert!(cache.get(key(0), || Ok(((), 1))).is_ok());
    }
}
