//! The clocks of the edge: one for the pure core, and the system's.

use std::time::{SystemTime, UNIX_EPOCH};

use forebay_config::Millis;
use tokio::time::Instant;

/// Time since the epoch that never goes back, even if the system's clock is set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    started: Instant,
    started_at: Millis,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now(), started_at: epoch_time() }
    }

    pub(crate) fn now(&self) -> Millis {
        self.started_at + self.started.elapsed().into()
    }
}

/// Time since the epoch by the system's clock, which may be set. For times from other programs.
pub(crate) fn epoch_time() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().into()
}
