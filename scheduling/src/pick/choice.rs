//! The values that a picker and its callers exchange.

use super::candidate::EndpointId;
use crate::prompt::{BLOCK_BYTES, Prompt};

/// A chosen endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The endpoint.
    pub id: EndpointId,
    /// The blocks of the prompt that it should have in its prefix cache.
    pub blocks: u32,
    /// The blocks that were written into that cache since those were last used.
    pub age: u32,
    /// Whether the request begins a conversation as others do, so that it was chosen for the later turns.
    pub begins: bool,
}

/// The tokens of a request, as its replica reported them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt; 0 if it did not report them.
    pub prompt: u64,
    /// Of the prompt, found in the prefix cache; `None` if it did not report them.
    pub cached: Option<u64>,
    /// Of the answer.
    pub generated: u64,
}

/// The tokens of a request's prompt that its replica found in its prefix cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedTokens {
    /// As predicted.
    pub predicted: u64,
    /// By the share that the endpoint's own counters had lately; `None` if its answer has the number.
    pub counted: Option<u64>,
}

/// An endpoint's own report of its KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheReport {
    /// The tokens that it takes; zero if it keeps no prefixes.
    pub tokens: Option<u64>,
    /// The tokens of prompts that were found in it so far, and all that were looked for.
    pub counters: Option<(u64, u64)>,
    /// Whether the engine sleeps, which empties it.
    pub asleep: bool,
}

impl Choice {
    /// An endpoint of which nothing is known to be cached.
    #[must_use]
    pub fn of(id: EndpointId) -> Self {
        Self { id, blocks: 0, age: 0, begins: false }
    }

    /// The bytes of a prompt that the endpoint has to work on.
    pub(super) fn new_bytes(&self, prompt: &Prompt, trust: f64) -> u64 {
        if self.blocks == 0 {
            return u64::from(prompt.bytes);
        }
        let held = f64::from(self.blocks) * BLOCK_BYTES as f64 * trust;
        u64::from(prompt.bytes).saturating_sub(held as u64)
    }
}
