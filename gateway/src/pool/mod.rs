//! A pool: one queue, its endpoints and its books, shared by all threads behind one short lock.
//!
//! The lock is taken a few times a request and never per chunk. Binding is late: a request gets its
//! endpoint when there is room, so that a new replica takes waiting work the moment it answers.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use forebay_signals::{Histogram, Totals};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::figures::Metrics;
use crate::figures::arrivals::Recorder;
use crate::pool::budget::RetryBudget;
use crate::pool::model_registry::Served;
use crate::pool::queue::Queue;
use crate::pool::upstream_key::UpstreamKey;

use books::Books;
pub(crate) use slot::{End, Slot};
pub(crate) use ticket::Ticket;

mod books;
pub(crate) mod budget;
pub(crate) mod cold_wait;
pub(crate) mod directory;
pub(crate) mod discover;
mod discovered;
pub(crate) mod endpoint;
mod endpoints;
mod hold;
pub(crate) mod model_registry;
pub(crate) mod probe;
pub(crate) mod queue;
mod reload;
mod slot;
#[cfg(test)]
mod tests;
mod ticket;
pub(crate) mod upstream_key;
pub(crate) mod waiting;

/// Shared by every thread.
pub(crate) struct Pool {
    pub(crate) name: Arc<str>,
    settings: ArcSwap<forebay_config::Pool>,
    pub(crate) metrics: Metrics,
    pub(crate) key: UpstreamKey,
    pub(crate) served: Served,
    /// Where arrivals are recorded, if they are.
    pub(crate) recorder: OnceLock<Recorder>,
    /// Woken when the scaler should hear of a change at once.
    pub(crate) news: Arc<Notify>,
    books: Mutex<Books>,
}

impl Pool {
    pub(crate) fn new(settings: forebay_config::Pool, news: Arc<Notify>) -> Arc<Self> {
        let hold = &settings.hold;
        let books = Books {
            queue: Queue::bounded(hold.max_requests as usize, hold.max_bytes.bytes()),
            endpoints: BTreeMap::new(),
            waiting: BTreeMap::new(),
            budget: RetryBudget::new(Instant::now()),
            barrier: None,
            cold_start: None,
            totals: Totals::default(),
            in_flight_tokens: 0,
            hold: Histogram::default(),
            ttft: Histogram::default(),
            warm_ttft: Histogram::default(),
            upstream_ttft: Histogram::default(),
            itl: Histogram::default(),
            end_to_end: Histogram::default(),
            told_depth: 0,
            none_ready: Some(Instant::now()),
            starting: None,
            turned_away: 0,
            turn: 0,
            closed: false,
            burst: (0, Duration::ZERO),
        };
        let metrics = Metrics::register(&settings.name);
        let name = Arc::from(settings.name.as_str());
        Arc::new(Self {
            name,
            settings: ArcSwap::from_pointee(settings),
            metrics,
            key: UpstreamKey::default(),
            served: Served::default(),
            recorder: OnceLock::new(),
            news,
            books: Mutex::new(books),
        })
    }
}
