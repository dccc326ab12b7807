//! When a held request will start, for its heartbeats.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// When a held request will start, as its heartbeats show it. Written under the pool's lock, and read
/// without it.
#[derive(Debug)]
pub(crate) struct ExpectedStart {
    base: Instant,
    /// Milliseconds after `base`, plus 1; 0 if it is not known.
    after: AtomicU64,
}

impl ExpectedStart {
    /// Nothing is known yet. `base`: a moment before any that will be set.
    pub(crate) fn unknown(base: Instant) -> Self {
        Self { base, after: AtomicU64::new(0) }
    }

    pub(super) fn set(&self, at: Option<Instant>) {
        let after = |at: Instant| at.saturating_duration_since(self.base).as_millis() as u64 + 1;
        self.after.store(at.map_or(0, after), Relaxed);
    }

    /// How long it takes until then; `None` if that is not known, or if nothing is waited for.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        let after = self.after.load(Relaxed).checked_sub(1)?;
        Some((self.base + Duration::from_millis(after)).saturating_duration_since(now))
    }
}
