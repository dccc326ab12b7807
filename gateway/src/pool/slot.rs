//! One request at one endpoint, from its release to its end.

use std::net::SocketAddr;
use std::sync::Arc;

use forebay_signals::Health;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Pool;
use crate::answer::failure::{Cause, Failure};
use crate::answer::fingerprint::Fingerprint;
use crate::pool::endpoint::{Endpoint, Evictions, Life, Pulse};
use crate::pool::queue::Place;

/// How a try at an endpoint ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Complete,
    /// For a reason of the endpoint's own.
    Failed(Failure),
    /// By the client's leaving, or for no fault of the endpoint.
    Dropped,
}

impl End {
    /// A failed try's. What the gateway itself was short of is not the endpoint's failure.
    pub(crate) fn of(failure: Failure) -> Self {
        if failure.cause == Cause::Shortage { Self::Dropped } else { Self::Failed(failure) }
    }
}

/// One request at one endpoint, counted while this lives. Dropped without a word it counts as one
/// whose client left.
#[must_use = "dropping it ends the request's accounting"]
pub(crate) struct Slot {
    pub(super) pool: Arc<Pool>,
    pub(crate) address: SocketAddr,
    pub(super) tokens: u64,
    pub(super) end: End,
    /// Its place in the queue, and the tokens of the answer that its tenant was counted.
    pub(super) turn: Option<(Place, u64)>,
    pub(super) generated: u64,
    pub(super) pulse: Pulse,
    /// Whether its answer shows that the engine works.
    pub(super) engine: bool,
    pub(super) session: bool,
    pub(super) evictions: Evictions,
    /// The process that has it.
    pub(super) life: Arc<Life>,
}

impl Slot {
    pub(crate) fn ended(mut self, end: End) {
        self.end = end;
    }

    /// Its answer is no sign of the engine: the server in front of it gives that by itself.
    pub(crate) fn without_engine(&mut self) {
        self.engine = false;
    }

    /// It is a session from now on, which may be silent.
    pub(crate) fn session_began(&mut self) {
        if !std::mem::replace(&mut self.session, true) {
            let began = |endpoint: &mut Endpoint| endpoint.session_began(Instant::now());
            self.pool.with_endpoint(self.address, began);
        }
    }

    /// Ends when a request without an answer is better off elsewhere, with the reason.
    pub(crate) async fn evicted(&self) -> Failure {
        self.evictions.unanswered.cancelled().await;
        let books = self.pool.books.lock();
        if books.endpoints.get(&self.address).is_some_and(Endpoint::is_unreachable) {
            return Failure::unreachable();
        }
        let message = "The replica has work, and answers nothing, not even a probe.";
        Failure::new(Cause::Stalled, message)
    }

    /// Cancelled when an answer that has begun will not go on.
    pub(crate) fn lost(&self) -> CancellationToken {
        self.evictions.begun.clone()
    }

    /// Ends when a session, which may be silent, should not wait any more.
    pub(crate) async fn given_up(&self) {
        self.evictions.sessions.cancelled().await;
    }

    /// Tokens of the answer so far. What goes beyond a usual one is counted for the tenant now, not
    /// when a long answer is over.
    pub(crate) fn generated(&mut self, tokens: u64) {
        self.generated = tokens;
        if let Some((place, counted)) = &mut self.turn
            && tokens > *counted
        {
            let more = i64::try_from(tokens - *counted).unwrap_or(i64::MAX);
            *counted = tokens;
            self.pool.books.lock().queue.charge(*place, more);
        }
    }

    /// The replica said what it is to be known by.
    pub(crate) fn known_by(&self, fingerprint: &Fingerprint) {
        self.pool.with_endpoint(self.address, |endpoint| {
            if endpoint.fingerprint.as_ref() != Some(fingerprint) {
                endpoint.fingerprint = Some(fingerprint.clone());
            }
        });
    }

    /// Something came: told for every chunk, without a lock.
    pub(crate) fn pulse(&self, now: Instant) {
        self.pulse.beat(now);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let end = std::mem::replace(&mut self.end, End::Dropped);
        let pool = Arc::clone(&self.pool);
        // What failed is tried again, and is counted then.
        if let (Some((place, counted)), false) = (self.turn, matches!(end, End::Failed(_))) {
            let unused = i64::try_from(counted.saturating_sub(self.generated)).unwrap_or(i64::MAX);
            pool.books.lock().queue.charge(place, -unused);
        }
        pool.give_back(self, end);
    }
}

impl Pool {
    fn give_back(self: &Arc<Self>, slot: &Slot, end: End) {
        let address = slot.address;
        let (mut known, mut out) = (false, false);
        {
            let now = Instant::now();
            let mut books = self.books.lock();
            books.in_flight_tokens = books.in_flight_tokens.saturating_sub(slot.tokens);
            let last = books.is_last(address);
            if let Some(endpoint) = books.endpoints.get_mut(&address) {
                known = true;
                match &end {
                    End::Complete => endpoint.completed(slot.engine, now),
                    End::Failed(failure) => {
                        out = endpoint.failed(failure, last, now);
                        self.news.notify_one();
                    }
                    End::Dropped => {}
                }
                endpoint.given_back(slot.session, now);
                if endpoint.health() == Health::Draining && endpoint.in_flight == 0 {
                    self.news.notify_one();
                    if endpoint.is_gone() {
                        books.endpoints.remove(&address);
                    }
                }
            }
            books.note_readiness(now);
        }
        if let (End::Failed(failure), true) = (&end, known) {
            self.metrics.failed(failure.cause);
            let (kind, reason) = (failure.cause.name(), &failure.message);
            tracing::warn!(kind, "{}: {address} failed a request: {reason}", self.name);
            if out {
                tracing::warn!("{}: {address} is out: {reason}", self.name);
            }
        }
        self.release();
    }

    /// What the replica there is known by, if it told.
    pub(crate) fn fingerprint(&self, address: SocketAddr) -> Option<Fingerprint> {
        self.books.lock().endpoints.get(&address)?.fingerprint.clone()
    }

    pub(super) fn with_endpoint(&self, address: SocketAddr, change: impl FnOnce(&mut Endpoint)) {
        if let Some(endpoint) = self.books.lock().endpoints.get_mut(&address) {
            change(endpoint);
        }
    }
}
