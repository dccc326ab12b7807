//! The messages and bytes that a WebSocket session has carried.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a session has carried so far.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// From the client.
    pub(crate) client: Carried,
    /// From the replica.
    pub(crate) replica: Carried,
}

/// What came from one side.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    /// Complete ones.
    messages: AtomicU64,
    /// Of frames, heads included.
    bytes: AtomicU64,
}

impl Carried {
    /// Bytes that have come, and the messages that are complete with them.
    pub(crate) fn add(&self, bytes: u64, messages: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
        self.messages.store(messages, Relaxed);
    }

    pub(crate) fn messages(&self) -> u64 {
        self.messages.load(Relaxed)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}
