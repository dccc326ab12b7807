//! What a pool has in its books: read and written under the pool's lock alone.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use forebay_signals::{ColdStart, EndpointSignals, Health, Histogram, PoolSignals, Totals};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::slot::Slot;
use super::ticket::Wants;
use super::{Pool, discovered};
use crate::answer::outcome::{Ended, FirstToken, Outcome};
use crate::pool::budget::RetryBudget;
use crate::pool::cold_wait::Cold;
use crate::pool::endpoint::Endpoint;
use crate::pool::queue::Queue;

/// A held request's way to be released.
pub(super) struct Waiter {
    pub(super) slot: oneshot::Sender<Slot>,
    pub(super) wants: Wants,
}

pub(super) struct Books {
    pub(super) queue: Queue<Waiter>,
    pub(super) endpoints: BTreeMap<SocketAddr, Endpoint>,
    /// Pods that have no address yet.
    pub(super) waiting: BTreeMap<String, discovered::Pending>,
    pub(super) budget: RetryBudget,
    pub(super) barrier: Option<(u64, Instant)>,
    pub(super) cold_start: Option<ColdStart>,
    pub(super) totals: Totals,
    pub(super) in_flight_tokens: u64,
    pub(super) hold: Histogram,
    pub(super) ttft: Histogram,
    pub(super) warm_ttft: Histogram,
    pub(super) upstream_ttft: Histogram,
    pub(super) itl: Histogram,
    pub(super) end_to_end: Histogram,
    /// Doubling from here is news.
    pub(super) told_depth: usize,
    /// Since when no endpoint has been ready.
    pub(super) none_ready: Option<Instant>,
    /// Since when replicas are wanted while none is ready.
    pub(super) starting: Option<Instant>,
    /// Requests refused for the cold start since the last tick: they are demand all the same.
    pub(super) turned_away: u32,
    pub(super) turn: usize,
    /// No longer configured.
    pub(super) closed: bool,
    /// The holds since the queue was last empty, for one line when it is again.
    pub(super) burst: (u64, Duration),
}

impl Books {
    /// A barrier that nobody renewed has run out: serving does not depend on the scaler.
    pub(super) fn barrier_is_up(&self) -> bool {
        self.barrier.is_some_and(|(_, until)| Instant::now() < until)
    }

    /// Whether no other is ready.
    pub(super) fn is_last(&self, address: SocketAddr) -> bool {
        let ready = |(other, endpoint): (&SocketAddr, &Endpoint)| {
            *other != address && endpoint.health() == Health::Ready
        };
        !self.endpoints.iter().any(ready)
    }

    /// What waits for engines that hang goes elsewhere, once there is an elsewhere.
    pub(super) fn relieve_hung(&mut self, now: Instant) {
        let mut endpoints = self.endpoints.values();
        if endpoints.any(|endpoint| endpoint.health() == Health::Ready) {
            let hung = self.endpoints.values_mut().filter(|endpoint| endpoint.hangs(now));
            hung.for_each(Endpoint::evict_unanswered);
        }
    }

    pub(super) fn set_budget(&mut self, limit: u32) {
        let count = u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX);
        self.budget.set_capacity(limit.saturating_mul(count));
    }

    pub(super) fn note_readiness(&mut self, now: Instant) {
        let ready = self.endpoints.values().any(|endpoint| endpoint.health() == Health::Ready);
        match (ready, self.none_ready) {
            (true, Some(_)) => (self.none_ready, self.starting) = (None, None),
            (false, None) => self.none_ready = Some(now),
            _ => {}
        }
    }

    pub(super) fn cold(&self, starts: bool) -> Cold {
        Cold { learned: self.cold_start, since: self.starting, starts }
    }

    /// Whether something that is no capacity now may become some by itself.
    pub(super) fn any_starting(&self) -> bool {
        self.endpoints.values().any(|endpoint| endpoint.health() == Health::Starting)
    }

    /// When it makes sense to come back: once a replica is there, or in a second.
    pub(super) fn retry_after(&self) -> Duration {
        match self.none_ready {
            Some(_) => self.cold(true).retry_after(Instant::now()),
            None => Duration::from_secs(1),
        }
    }
}

impl Pool {
    /// A stream's first token passed on.
    pub(crate) fn first_token(&self, token: &FirstToken) {
        let FirstToken { endpoint, ttft, cold, upstream } = *token;
        self.metrics.first_token(ttft, upstream);
        let mut books = self.books.lock();
        books.ttft.record(ttft.as_secs_f64());
        books.warm_ttft.record(ttft.saturating_sub(cold).as_secs_f64());
        books.upstream_ttft.record(upstream.as_secs_f64());
        if let Some(endpoint) = books.endpoints.get_mut(&endpoint) {
            endpoint.figures.first_token(upstream);
        }
    }

    /// Gaps between the tokens of one stream.
    pub(crate) fn gaps(&self, endpoint: SocketAddr, gaps: &Histogram) {
        self.metrics.gaps(gaps);
        let mut books = self.books.lock();
        books.itl.merge(gaps);
        if let Some(endpoint) = books.endpoints.get_mut(&endpoint) {
            endpoint.figures.gaps(gaps);
        }
    }

    /// A request's end, whatever it was.
    pub(crate) fn ended(&self, ended: &Ended<'_>) {
        self.metrics.ended(ended);
        let mut books = self.books.lock();
        if let Some(held) = ended.held {
            books.hold.record(held.as_secs_f64());
        }
        // A session lasts for as long as its client likes.
        if ended.session.is_none() {
            books.end_to_end.record(ended.took.as_secs_f64());
        }
        books.totals.retries += u64::from(ended.tries.saturating_sub(1));
        books.totals.prompt_tokens += ended.tokens.prompt.unwrap_or(0);
        books.totals.generated_tokens += ended.tokens.generated;
        *match ended.outcome {
            // The replica answered, be it with a refusal.
            Outcome::Completed | Outcome::ClientError => &mut books.totals.completed,
            Outcome::Failed => &mut books.totals.failed,
            Outcome::ClientLeft => &mut books.totals.client_left,
            Outcome::Refused => &mut books.totals.refused,
        } += 1;
        if let Some(endpoint) = ended.endpoint
            && let Some(endpoint) = books.endpoints.get_mut(&endpoint)
        {
            endpoint.figures.tokens(ended.tokens);
        }
    }

    /// Everything the scaler hears of this pool.
    pub(crate) fn signals(&self) -> PoolSignals {
        let books = self.books.lock();
        let endpoint = |(address, endpoint): (&SocketAddr, &Endpoint)| {
            (address.to_string(), Some(endpoint.signals()))
        };
        let endpoints: BTreeMap<String, Option<EndpointSignals>> =
            books.endpoints.iter().map(endpoint).collect();
        let waiting = books.waiting.iter();
        let waiting = waiting.map(|(name, (it, _))| (name.clone(), Some(it.clone()))).collect();
        let in_flight = books.endpoints.values().map(|endpoint| endpoint.in_flight).sum();
        let barrier = books.barrier_is_up() && in_flight == 0;
        PoolSignals {
            queue_depth: books.queue.depth() as u32 + books.turned_away,
            queue_bytes: books.queue.bytes(),
            held_tokens: books.queue.tokens(),
            oldest_hold_seconds: books
                .queue
                .oldest()
                .map_or(0.0, |since| since.elapsed().as_secs_f64()),
            in_flight,
            in_flight_tokens: books.in_flight_tokens,
            totals: books.totals,
            hold: books.hold.clone(),
            ttft: books.ttft.clone(),
            warm_ttft: books.warm_ttft.clone(),
            upstream_ttft: books.upstream_ttft.clone(),
            itl: books.itl.clone(),
            end_to_end: books.end_to_end.clone(),
            zero_epoch: books.barrier.filter(|_| barrier).map(|(epoch, _)| epoch),
            endpoints,
            waiting,
        }
    }
}
