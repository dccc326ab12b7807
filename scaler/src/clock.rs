//! The edge's clock for the pure core.

use tokio::time::Instant;

/// Milliseconds since the epoch that never go back, whatever is done to the system's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    started: Instant,
    started_ms: u64,
}

impl Clock {
    pub(crate) fn start() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let started_ms = since.map_or(0, |since| since.as_millis() as u64);
        Self { started: Instant::now(), started_ms }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.started_ms + self.started.elapsed().as_millis() as u64
    }
}
