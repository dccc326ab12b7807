//! The cache of an endpoint, as the index sees it.

use super::conversations::Conversations;
use crate::prompt::BLOCK_BYTES;

/// A cache: the number of its endpoint, and in the highest byte that of the cache among those of the
/// endpoint, from 1 on; 0 for none. After 255 caches their numbers come again. An entry of the one
/// before may then be taken for one of the cache that is there, which costs a wrong prediction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tag(u32);

/// The cache of one process at an endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cache {
    pub(super) tag: Tag,
    /// Whether it is still there.
    pub(super) live: bool,
    pub(super) process: u64,
    /// Blocks written so far. The count wraps around.
    pub(super) written: u32,
    /// The part of a block that was written beyond them, in bytes.
    rest: u32,
    /// The blocks that it takes.
    pub(super) horizon: u32,
    pub(super) conversations: Conversations,
}

impl Tag {
    pub(super) const NONE: Self = Self(0);
    /// The last endpoint whose caches are remembered.
    pub(super) const LAST_ENDPOINT: u32 = (1 << 24) - 1;

    pub(super) fn endpoint(self) -> u32 {
        self.0 & Self::LAST_ENDPOINT
    }

    /// The tag of the next cache at this endpoint.
    pub(super) fn next(self, endpoint: u32) -> Self {
        Self(endpoint | (((self.0 >> 24) % 255 + 1) << 24))
    }
}

impl Cache {
    /// The empty cache of a process that has begun.
    pub(super) fn new(tag: Tag, process: u64) -> Self {
        Self { tag, live: true, process, ..Self::default() }
    }

    /// Writes. Returns the blocks that are complete now.
    pub(super) fn write(&mut self, bytes: u64) -> u32 {
        let bytes = bytes + u64::from(self.rest);
        let block = BLOCK_BYTES as u64;
        let blocks = (bytes / block) as u32;
        self.written = self.written.wrapping_add(blocks);
        self.rest = (bytes % block) as u32;
        blocks
    }
}

/// The blocks that are in so many bytes.
pub(super) fn in_blocks(bytes: u64) -> u32 {
    // Far below half of the range, so that ages which wrap around stay comparable.
    u32::try_from(bytes / BLOCK_BYTES as u64).unwrap_or(u32::MAX).min(1 << 28)
}
