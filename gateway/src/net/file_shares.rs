//! The shares of the open files that this process may have: connections of clients, connections to
//! replicas, and a reserve, half of it for probes.
//!
//! A client's connection may need a connection to a replica, so both sides get the same share. The
//! rest of the reserve is for the admin port, the feeds, the scaler's targets, connections that a
//! thread has accepted without a place, and files that are read again. A connection without a place
//! waits for one: no connection is opened at the reserve's cost.
//!
//! Probes keep idle connections in places that nothing else needs at the moment: in those for replicas,
//! and in half of those for clients while clients have not even half of them. Both are given back as
//! soon as that ends.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};

use forebay_base::open_files;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// A place among the connections of one side. Dropping it gives it back.
pub(crate) type FilePermit = OwnedSemaphorePermit;

/// The smallest reserve, for everything but the connections of clients and to replicas.
const LEAST_RESERVE: u64 = 128;

/// The number of files that each side may have open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileShares {
    /// Connections of clients.
    pub(crate) clients: u32,
    /// Connections to replicas, idle ones included.
    pub(crate) upstreams: u32,
    /// Probes under way, a half of the reserve.
    pub(crate) probes: u32,
}

impl FileShares {
    /// The shares of `limit` files. The reserve is an eighth, at least 128, and at most half of
    /// all.
    pub(crate) fn of(limit: u64) -> Self {
        let reserve = (limit / 8).max(LEAST_RESERVE).min(limit / 2);
        let half = (limit - reserve) / 2;
        // At most what a semaphore can count, which is more than any process has.
        let bounded = |files: u64| u32::try_from(files).unwrap_or(u32::MAX).clamp(1, 1 << 28);
        Self { clients: bounded(half), upstreams: bounded(half), probes: bounded(reserve / 2) }
    }
}

/// The places for the probes of this process.
pub(crate) static PROBE_FILES: LazyLock<ProbeFiles> =
    LazyLock::new(|| ProbeFiles::of(FileShares::of(open_files::limit()).probes));

/// The most probes of one kind under way, however many files there are.
const PROBES_AT_ONCE: usize = 4096;

/// The places for probes under way, each a file.
pub(crate) struct ProbeFiles {
    /// For probes of endpoints that answered the last one.
    pub(crate) answering: Semaphore,
    /// For probes of those that did not.
    pub(crate) silent: Semaphore,
}

impl ProbeFiles {
    fn of(files: u32) -> Self {
        let places = || Semaphore::new(((files / 2) as usize).clamp(1, PROBES_AT_ONCE));
        Self { answering: places(), silent: places() }
    }
}

/// The process's connections to replicas. The limit is the process's, however many gateways it has.
pub(crate) static UPSTREAM_FILES: LazyLock<UpstreamFiles> = LazyLock::new(|| {
    let shares = FileShares::of(open_files::limit());
    UpstreamFiles::of(shares.upstreams as usize, shares.clients as usize)
});

/// The part of the idle connections that is closed at a time when a place is wanted: one of so many.
pub(crate) const GIVEN_UP: usize = 8;

/// The places for connections to replicas.
pub(crate) struct UpstreamFiles {
    places: Arc<Semaphore>,
    most: usize,
    /// Half of the clients' places, while clients have less than the other half.
    lent: Arc<Semaphore>,
    clients: AtomicUsize,
    most_clients: usize,
    /// The places that are lent are wanted.
    called_in: Notify,
    wanted: Notify,
}

impl UpstreamFiles {
    fn of(most: usize, most_clients: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(most)),
            most,
            lent: Arc::new(Semaphore::new(most_clients / 2)),
            clients: AtomicUsize::new(0),
            most_clients,
            called_in: Notify::new(),
            wanted: Notify::new(),
        }
    }

    /// A place if there is one now.
    pub(crate) fn try_place(&self) -> Option<FilePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// A place for a connection that a probe keeps, if more than an eighth of all are free, or clients
    /// have less than half of theirs.
    pub(crate) fn spare_place(&self) -> Option<FilePermit> {
        if self.places.available_permits() > self.most / 8 {
            return self.try_place();
        }
        let lends = self.clients.load(Relaxed) < self.most_clients / 2;
        lends.then(|| Arc::clone(&self.lent).try_acquire_owned().ok()).flatten()
    }

    /// Counts a client's connection. If that makes half of their places, those that are lent are wanted.
    pub(crate) fn client_came(&self) {
        if self.clients.fetch_add(1, Relaxed) + 1 == self.most_clients / 2 {
            self.called_in.notify_waiters();
        }
    }

    /// Counts the end of a client's connection.
    pub(crate) fn client_left(&self) {
        self.clients.fetch_sub(1, Relaxed);
    }

    /// Waits for a place. Every thread gives up idle connections meanwhile, and so do probes.
    pub(crate) async fn place(&self) -> Option<FilePermit> {
        self.wanted.notify_waiters();
        Arc::clone(&self.places).acquire_owned().await.ok()
    }

    /// Waits until a place is wanted.
    pub(crate) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Waits until the places that are lent are wanted.
    pub(crate) async fn called_in(&self) {
        self.called_in.notified().await;
    }

    /// Whether no place is left, so that no connection should be kept idle.
    pub(crate) fn is_scarce(&self) -> bool {
        self.places.available_permits() == 0
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_usual_limits_leave_a_reserve() {
        for (limit, each, probes) in [
            (1024, 448, 64),
            (4096, 1792, 256),
            (1_048_576, 458_752, 65_536),
            (256, 64, 64),
            (0, 1, 1),
        ] {
            let split = FileShares { clients: each, upstreams: each, probes };
            assert_eq!(FileShares::of(limit), split, "{limit}");
        }
        assert_eq!(FileShares::of(u64::MAX).clients, 1 << 28);
    }

    #[test]
    fn connections_that_probes_keep_leave_an_eighth_to_requests() {
        let files = UpstreamFiles::of(16, 0);
        let kept: Vec<_> = std::iter::from_fn(|| files.spare_place()).collect();
        assert_eq!(kept.len(), 14);
        let requests = [files.try_place(), files.try_place()];
        assert!(requests.iter().all(Option::is_some) && files.is_scarce());
    }

    #[test]
    fn half_of_the_clients_places_are_lent_while_clients_need_less_than_the_other_half() {
        let files = UpstreamFiles::of(16, 8);
        let all = || std::iter::from_fn(|| files.spare_place()).collect::<Vec<_>>();
        let kept = all();
        assert_eq!(kept.len(), 14 + 4);
        drop(kept);
        let mut wanted = pin!(files.called_in());
        assert!(wanted.as_mut().now_or_never().is_none());
        for clients in 1..=4 {
            files.client_came();
            assert_eq!(wanted.as_mut().now_or_never().is_some(), clients == 4, "{clients}");
        }
        assert_eq!(all().len(), 14);
        files.client_left();
        assert_eq!(all().len(), 18);
    }

    proptest! {
        #[test]
        fn the_shares_never_exceed_the_limit(limit in 8..u64::from(u32::MAX)) {
            let FileShares { clients, upstreams, probes } = FileShares::of(limit);
            prop_assert!(u64::from(clients) + u64::from(upstreams) + u64::from(probes) <= limit);
            prop_assert!(clients >= 1 && upstreams >= 1 && probes >= 1);
            let ProbeFiles { answering, silent } = ProbeFiles::of(probes);
            let places = [&answering, &silent].map(Semaphore::available_permits);
            prop_assert!(places.iter().all(|places| *places >= 1));
            prop_assert!(places.iter().sum::<usize>() <= (probes as usize).max(2));
        }
    }
}
