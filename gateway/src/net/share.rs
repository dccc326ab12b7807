//! The gateway's share of the files that this process may have open.
//!
//! A client's connection may need one to a replica, so each side gets half of what is left beside a
//! reserve: for the probes, the admin port, the feeds, the scaler's targets, what each thread has
//! accepted and has no place for yet, and files that are read again. What has no place waits for one; nothing is opened at the reserve's cost.

use std::sync::{Arc, LazyLock};

use forebay_system::files;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// A place among the connections of one side, given back when dropped.
pub(crate) type Place = OwnedSemaphorePermit;

/// What is left for everything but the clients' connections and their requests.
const LEAST_RESERVE: u64 = 128;

/// How many files each part may have open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Split {
    /// Connections of clients.
    pub(crate) clients: u32,
    /// Connections to replicas, those that are kept idle among them.
    pub(crate) upstreams: u32,
}

impl Split {
    /// Of `limit` files in all. An eighth is kept back, and 128 at least, for as long as that leaves
    /// half of all.
    pub(crate) fn of(limit: u64) -> Self {
        let reserve = (limit / 8).max(LEAST_RESERVE).min(limit / 2);
        let half = (limit - reserve) / 2;
        // More than any process has, and what a semaphore can count.
        let half = u32::try_from(half).unwrap_or(u32::MAX).clamp(1, 1 << 28);
        Self { clients: half, upstreams: half }
    }
}

/// The process's connections to replicas: one process, one limit, however many gateways are in it.
pub(crate) static UPSTREAMS: LazyLock<Upstreams> = LazyLock::new(|| {
    let places = Arc::new(Semaphore::new(Split::of(files::limit()).upstreams as usize));
    Upstreams { places, wanted: Notify::new() }
});

/// See [`UPSTREAMS`].
pub(crate) struct Upstreams {
    places: Arc<Semaphore>,
    wanted: Notify,
}

impl Upstreams {
    /// A place if there is one now.
    pub(crate) fn try_place(&self) -> Option<Place> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// Waits for a place. Every thread is asked to close what it keeps idle.
    pub(crate) async fn place(&self) -> Option<Place> {
        self.wanted.notify_waiters();
        Arc::clone(&self.places).acquire_owned().await.ok()
    }

    /// Until a place is wanted.
    pub(crate) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Whether so few are left that none should be kept idle.
    pub(crate) fn is_scarce(&self) -> bool {
        self.places.available_permits() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_usual_limits_leave_a_reserve() {
        for (limit, each) in [(1024, 448), (4096, 1792), (1_048_576, 458_752), (256, 64), (0, 1)] {
            let split = Split { clients: each, upstreams: each };
            assert_eq!(Split::of(limit), split, "{limit}");
        }
        assert_eq!(Split::of(u64::MAX).clients, 1 << 28);
    }

    proptest! {
        #[test]
        fn no_limit_is_ever_exceeded(limit in 2..u64::from(u32::MAX)) {
            let Split { clients, upstreams } = Split::of(limit);
            prop_assert!(u64::from(clients) + u64::from(upstreams) <= limit);
            prop_assert!(clients >= 1 && upstreams >= 1);
        }
    }
}
