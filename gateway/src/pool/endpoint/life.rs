//! One life of an endpoint: a server process from its first answer to its end.
//!
//! A process that was stopped by an order is no evidence against the requests it had. The order may
//! become known before the end or after it, so requests keep the life in which they failed and
//! look at it when it matters.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// See the module.
#[derive(Debug)]
pub(crate) struct Life {
    /// Unique among all endpoints.
    id: u64,
    stopped: AtomicBool,
    crashed: AtomicBool,
}

impl Life {
    pub(crate) fn new() -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Relaxed);
        Arc::new(Self { id, stopped: AtomicBool::new(false), crashed: AtomicBool::new(false) })
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// It ends, or ended, by an order: to stop, to drain, to be deleted.
    pub(crate) fn stopped(&self) {
        self.stopped.store(true, Relaxed);
    }

    /// Whoever watches the process saw it crash. That outranks every other sign.
    pub(crate) fn crashed(&self) {
        self.crashed.store(true, Relaxed);
    }

    /// Whether its end says nothing about the requests it had.
    pub(crate) fn was_stopped(&self) -> bool {
        self.stopped.load(Relaxed) && !self.crashed.load(Relaxed)
    }
}
