//! Content cut into blocks, and the hash of each.
//!
//! The hash is rapidhash V3 with its published constants: its results are the same in every build
//! and on every machine, so that gateways agree on them without talking.

use forebay_scheduling::prompt::{BLOCK_BYTES, MAX_BLOCKS};
use rapidhash::v3::{RapidSecrets, rapidhash_v3_seeded};

/// A chain of hashes. The seed of the next one is the one before it.
#[derive(Clone, Copy)]
pub(super) struct Chain(RapidSecrets);

impl Chain {
    pub(super) const START: Self = Self(RapidSecrets::seed_cpp(0));

    /// The chain with `bytes` behind it.
    #[must_use]
    pub(super) fn with(mut self, bytes: &[u8]) -> Self {
        self.add(bytes);
        self
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.0.seed = rapidhash_v3_seeded(bytes, &self.0);
    }

    /// The hash of all that is in the chain.
    pub(super) fn hash(&self) -> u64 {
        self.0.seed
    }
}

/// The hash of one piece of content.
pub(super) fn hash(content: &[u8]) -> u64 {
    Chain::START.with(content).hash()
}

/// One part of a prompt, hashed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Blocks {
    /// A hash of each full block.
    pub(super) full: Vec<u64>,
    /// The hash of the rest, which is shorter than a block; `None` if nothing is left.
    pub(super) rest: Option<u64>,
    /// The length of the content.
    pub(super) bytes: usize,
}

impl Blocks {
    /// The hash of the whole content.
    pub(super) fn hash(&self) -> u64 {
        let all = self.full.iter().chain(&self.rest);
        all.fold(Chain::START, |chain, block| chain.with(&block.to_le_bytes())).hash()
    }
}

/// Cuts content into blocks and hashes each.
pub(super) struct BlockHasher {
    blocks: Vec<u64>,
    /// The beginning of the next block.
    begun: [u8; BLOCK_BYTES],
    length: usize,
    bytes: usize,
}

/// A state of a [`BlockHasher`].
pub(super) struct Saved {
    blocks: usize,
    begun: [u8; BLOCK_BYTES],
    length: usize,
    bytes: usize,
}

impl BlockHasher {
    pub(super) fn new() -> Self {
        Self { blocks: Vec::new(), begun: [0; BLOCK_BYTES], length: 0, bytes: 0 }
    }

    pub(super) fn push(&mut self, content: &[u8]) {
        self.bytes += content.len();
        let free = &mut self.begun[self.length..];
        if content.len() < free.len() {
            free[..content.len()].copy_from_slice(content);
            self.length += content.len();
        } else {
            self.push_over_end(content);
        }
    }

    #[inline(never)]
    fn push_over_end(&mut self, mut content: &[u8]) {
        if self.length > 0 {
            let (first, rest) = content.split_at(BLOCK_BYTES - self.length);
            self.begun[self.length..].copy_from_slice(first);
            let full = hash(&self.begun);
            self.add(full);
            content = rest;
        }
        // Blocks that lie whole in the content are not copied.
        while let Some((block, rest)) = content.split_first_chunk::<BLOCK_BYTES>() {
            self.add(hash(block));
            content = rest;
        }
        self.begun[..content.len()].copy_from_slice(content);
        self.length = content.len();
    }

    fn add(&mut self, block: u64) {
        if self.blocks.len() < MAX_BLOCKS {
            self.blocks.push(block);
        }
    }

    /// Whether no further content gets a hash.
    pub(super) fn are_all(&self) -> bool {
        self.blocks.len() >= MAX_BLOCKS
    }

    /// Counts content that needs no hash.
    pub(super) fn count(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    /// The present state, to come back to.
    pub(super) fn saved(&self) -> Saved {
        let Self { begun, length, bytes, .. } = *self;
        Saved { blocks: self.blocks.len(), begun, length, bytes }
    }

    /// Takes back what was pushed since.
    pub(super) fn restore(&mut self, saved: &Saved) {
        self.blocks.truncate(saved.blocks);
        self.begun = saved.begun;
        (self.length, self.bytes) = (saved.length, saved.bytes);
    }

    /// Ends the content that was pushed.
    pub(super) fn end(self) -> Blocks {
        let rest = &self.begun[..self.length];
        let rest = (!rest.is_empty() && self.blocks.len() < MAX_BLOCKS).then(|| hash(rest));
        Blocks { full: self.blocks, rest, bytes: self.bytes }
    }
}
