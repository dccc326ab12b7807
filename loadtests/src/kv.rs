//! The KV cache: a fixed number of blocks, shared by prompt prefix.
//!
//! Full blocks of a prompt are known by the hash of everything up to their end, so two prompts
//! share exactly their common leading blocks. A block that no sequence uses stays until its space
//! is needed; the oldest goes first. Blocks of generated tokens belong to one sequence and are not kept.
//!
//! Invariant: blocks in use and blocks kept never exceed the capacity together.

use std::collections::{BTreeMap, HashMap};

/// The blocks of the KV cache and their holders.
#[derive(Debug)]
pub(crate) struct KvCache {
    capacity: usize,
    /// The number of blocks that belong to one sequence each.
    private: usize,
    shared: HashMap<u64, SharedBlock>,
    /// Shared blocks without a holder, by the time of their release.
    idle: BTreeMap<u64, u64>,
    clock: u64,
}

#[derive(Debug)]
struct SharedBlock {
    holders: u32,
    idle_since: u64,
}

/// The blocks of one sequence. Return them with [`KvCache::release`].
#[derive(Debug, Default)]
#[must_use = "blocks that are not released are lost to the cache"]
pub(crate) struct HeldBlocks {
    shared: Vec<u64>,
    private: usize,
}

impl HeldBlocks {
    /// Blocks held, shared or not.
    pub(crate) fn blocks(&self) -> usize {
        self.shared.len() + self.private
    }
}

impl KvCache {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, private: 0, shared: HashMap::new(), idle: BTreeMap::new(), clock: 0 }
    }

    /// The share of blocks in use, 0 to 1. Blocks without a holder count as free.
    pub(crate) fn usage(&self) -> f64 {
        if self.capacity == 0 { 0.0 } else { self.used() as f64 / self.capacity as f64 }
    }

    /// The number of leading blocks that the cache already has.
    pub(crate) fn hits(&self, prefix: &[u64]) -> usize {
        prefix.iter().take_while(|hash| self.shared.contains_key(hash)).count()
    }

    /// Allocates the prompt's full blocks and `private` more, all or nothing.
    pub(crate) fn acquire(&mut self, prefix: &[u64], private: usize) -> Option<HeldBlocks> {
        let hits = self.hits(prefix);
        let idle_hits = prefix[..hits].iter().filter(|hash| self.shared[hash].holders == 0).count();
        let fresh = prefix.len() - hits + private;
        // Idle blocks that this prompt is about to use can't be evicted for it as well.
        if fresh + idle_hits > self.capacity - self.used() {
            return None;
        }
        for hash in &prefix[..hits] {
            self.hold(*hash);
        }
        self.make_room(fresh);
        for hash in &prefix[hits..] {
            self.shared.insert(*hash, SharedBlock { holders: 1, idle_since: 0 });
        }
        self.private += private;
        Some(HeldBlocks { shared: prefix.to_vec(), private })
    }

    /// Allocates one more block for a growing sequence; false if none is free.
    pub(crate) fn grow(&mut self, held: &mut HeldBlocks) -> bool {
        if self.used() >= self.capacity {
            return false;
        }
        self.make_room(1);
        self.private += 1;
        held.private += 1;
        true
    }

    /// Returns a sequence's blocks. The prompt's blocks stay cached for the next similar prompt.
    pub(crate) fn release(&mut self, held: HeldBlocks) {
        self.private -= held.private;
        // Deepest first: the start of a prefix is worth the most and goes last.
        for hash in held.shared.into_iter().rev() {
            let Some(block) = self.shared.get_mut(&hash) else { continue };
            block.holders -= 1;
            if block.holders == 0 {
                self.clock += 1;
                block.idle_since = self.clock;
                self.idle.insert(self.clock, hash);
            }
        }
    }

    /// Drops every block without a holder.
    pub(crate) fn reset(&mut self) {
        for hash in std::mem::take(&mut self.idle).into_values() {
            self.shared.remove(&hash);
        }
    }

    fn used(&self) -> usize {
        self.private + self.shared.len() - self.idle.len()
    }

    fn hold(&mut self, hash: u64) {
        if let Some(block) = self.shared.get_mut(&hash) {
            if block.holders == 0 {
                self.idle.remove(&block.idle_since);
            }
            block.holders += 1;
        }
    }

    fn make_room(&mut self, blocks: usize) {
        while self.private + self.shared.len() + blocks > self.capacity {
            let Some((_, hash)) = self.idle.pop_first() else { break };
            self.shared.remove(&hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_second_prompt_finds_the_blocks_it_shares_with_the_first() {
        let mut kv = KvCache::new(8);
        let first = kv.acquire(&[1, 2, 3], 1).expect("room");
        assert_eq!((kv.hits(&[1, 2, 9]), kv.usage()), (2, 0.5));
        let second = kv.acquire(&[1, 2, 9], 1).expect("room");
        assert_eq!(kv.usage(), 0.75, "two blocks are shared");
        kv.release(first);
        kv.release(second);
        assert_eq!((kv.usage(), kv.hits(&[1, 2, 3])), (0.0, 3), "kept after use");
        kv.reset();
        assert_eq!(kv.hits(&[1, 2, 3]), 0);
    }

    #[test]
    fn the_block_unused_longest_makes_room() {
        let mut kv = KvCache::new(3);
        for hash in [1, 2, 3] {
            let held = kv.acquire(&[hash], 0).expect("room");
            kv.release(held);
        }
        let held = kv.acquire(&[4], 0).expect("room");
        assert_eq!([kv.hits(&[1]), kv.hits(&[2]), kv.hits(&[3])], [0, 1, 1]);
        assert!(kv.acquire(&[], 3).is_none(), "all or nothing");
        kv.release(held);
    }

    proptest! {
        #[test]
        fn blocks_never_exceed_the_capacity_and_all_come_back(
            steps in proptest::collection::vec((0..6u64, 1..4usize, 0..3usize), 1..200),
        ) {
            let mut kv = KvCache::new(12);
            let mut held = Vec::new();
            for (start, len, private) in steps {
                let prefix: Vec<u64> = (0..len as u64).map(|i| start * 100 + i).collect();
                match kv.acquire(&prefix, private) {
                    Some(mut taken) => {
                        let _ = kv.grow(&mut taken);
                        held.push(taken);
                    }
                    None => {
                        if !held.is_empty() {
                            kv.release(held.remove(0));
                        }
                    }
                }
                prop_assert!(kv.private + kv.shared.len() <= 12);
                prop_assert!((0.0..=1.0).contains(&kv.usage()));
            }
            for taken in held {
                kv.release(taken);
            }
            prop_assert_eq!(kv.usage(), 0.0);
        }
    }
}
