//! Counts of the messages and bytes of a WebSocket session.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A session's messages and bytes so far.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// Sent by the client.
    pub(crate) client: SideTraffic,
    /// Sent by the replica.
    pub(crate) replica: SideTraffic,
}

/// Messages and bytes from one side.
#[derive(Debug, Default)]
pub(crate) struct SideTraffic {
    /// Complete messages.
    messages: AtomicU64,
    /// Bytes of frames, their heads included.
    bytes: AtomicU64,
}

impl SideTraffic {
    /// Adds `bytes` that have come; `messages` is the new number of complete messages.
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
