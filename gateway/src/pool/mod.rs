//! A pool: one queue, its endpoints, and the way of a request between them.
//!
//! - Scheduling, behind one short lock: `scheduling.rs` has the state, `hold.rs` holds and releases
//!   requests, `slot.rs` is a request's place at an endpoint, `give_back.rs` ends it, `ticket.rs`
//!   decides whether a failed request is tried again; `leave.rs` finds places for streams that
//!   leave endpoints that drain, which `moves.rs` keeps; `failed_start.rs` refuses requests while no
//!   replica can be started; `eta.rs` says when held requests will start. The order of release and the choice of an
//!   endpoint are the crate `forebay-scheduling`.
//! - Endpoints: `endpoint.rs` judges their health, `endpoint_set.rs` keeps them in order for a pick,
//!   `probe.rs` probes them, `endpoints.rs` and
//!   `pods.rs` take the scaler's and discovery's reports, `directory.rs` and `discover.rs` decide
//!   which endpoints there are, `model_registry.rs` knows which models they serve.
//! - `abilities.rs` has what replicas showed that they can do, `tried.rs` the console's own requests.
//! - Figures are recorded without the lock: see the room `figures`.
//!
//! Binding is late: a request gets its endpoint when there is room, so a new replica takes waiting
//! work the moment it answers. The lock is taken at most three times for each try of a request,
//! and never for a chunk. May use `text`, `wire`, `answer`, `figures`
//! and `net`.

use std::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Release},
};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::figures::arrivals::Recorder;
use crate::figures::pool::PoolFigures;
use crate::pool::abilities::Abilities;
use crate::pool::lock::Lock;
use crate::pool::model_registry::ModelRegistry;
use crate::pool::scheduling::Scheduling;
use crate::pool::tried::TriedRequests;
use crate::pool::upstream_key::UpstreamKey;

pub(crate) use expected_start::ExpectedStart;
pub(crate) use moves::UnderWay;
pub(crate) use slot::{End, Slot};
pub(crate) use ticket::{Fallback, Ticket};

pub(crate) mod abilities;
pub(crate) mod directory;
pub(crate) mod discover;
pub(crate) mod endpoint;
mod endpoint_report;
mod endpoint_set;
mod endpoints;
mod eta;
mod expected_start;
mod failed_start;
mod give_back;
mod hold;
mod leave;
mod lock;
pub(crate) mod model_registry;
mod moves;
pub(crate) mod pods;
pub(crate) mod probe;
mod reload;
mod scheduling;
mod signals;
mod slot;
#[cfg(test)]
pub(crate) mod tests;
mod ticket;
pub(crate) mod tried;
pub(crate) mod upstream_key;

/// A pool, shared by every thread.
pub(crate) struct Pool {
    pub(crate) name: Arc<str>,
    settings: ArcSwap<forebay_config::Pool>,
    pub(crate) figures: PoolFigures,
    pub(crate) key: UpstreamKey,
    pub(crate) models: ModelRegistry,
    /// The recording of arrivals, if it is configured.
    pub(crate) recorder: OnceLock<Recorder>,
    changed: ChangeNotice,
    pub(crate) abilities: Abilities,
    pub(crate) tried: TriedRequests,
    /// The moment from which the retry budget's times count.
    began: Instant,
    scheduling: Lock<Scheduling>,
}

/// Notes changes that the scaler should hear of at once.
struct ChangeNotice {
    /// Whether this pool has changed since its last report.
    pending: AtomicBool,
    /// Notified of a change in any pool.
    any: Arc<Notify>,
}

impl ChangeNotice {
    fn notify_one(&self) {
        self.pending.store(true, Release);
        self.any.notify_one();
    }
}

impl Pool {
    /// Whether it has changed since the last call.
    pub(crate) fn take_change(&self) -> bool {
        self.changed.pending.swap(false, Acquire)
    }

    pub(crate) fn new(settings: forebay_config::Pool, changed: Arc<Notify>) -> Arc<Self> {
        let began = Instant::now();
        Arc::new(Self {
            name: Arc::from(settings.name.as_str()),
            figures: PoolFigures::register(&settings.name),
            key: UpstreamKey::default(),
            models: ModelRegistry::default(),
            recorder: OnceLock::new(),
            tried: TriedRequests::default(),
            changed: ChangeNotice { pending: AtomicBool::new(true), any: changed },
            abilities: Abilities::default(),
            began,
            scheduling: Lock::new(Scheduling::new(&settings, began)),
            settings: ArcSwap::from_pointee(settings),
        })
    }
}
