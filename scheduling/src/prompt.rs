//! A prompt as far as picking needs it: the hashes of its blocks.
//!
//! A replica's engine keeps the beginnings of prompts in its KV cache. Two prompts with the same
//! hash of a block have all content up to the end of that block in common, so an endpoint that
//! worked on one of them need not work on that part of the other.

/// The content that one hash stands for, in bytes: about 128 tokens. The engine's own blocks are
/// smaller; what a prompt has in common with another beyond the last full block is not counted.
pub const BLOCK_BYTES: usize = 512;

/// The most blocks of a prompt that are hashed: 2 MiB of content, about half a million tokens.
/// Content after them counts as content that no endpoint remembers.
pub const MAX_BLOCKS: usize = 4096;

/// A prompt's content, as hashes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// Chained hashes of the blocks of [`BLOCK_BYTES`] bytes, in the order in which the model sees
    /// them: each stands for all content up to the end of its block. A last part shorter than a
    /// block has none. The chain's beginning depends on all that separates caches: the model, the
    /// adapter, the client's `cache_salt`, and the tenant where tenants are kept apart. At most
    /// [`MAX_BLOCKS`].
    pub blocks: Box<[u64]>,
    /// All content, in bytes.
    pub bytes: u32,
    /// The client's session, hashed with the same beginning; `None` if the client names none.
    pub session: Option<u64>,
}

impl Prompt {
    /// The key that keeps requests together that have the same content at first: the session, or else the
    /// first block. `None` for a short prompt without a session.
    #[must_use]
    pub fn key(&self) -> Option<u64> {
        self.session.or_else(|| self.blocks.first().copied())
    }
}
