//! The end of a try: under one lock, the request's place at the endpoint is given back, the next
//! try is decided on if this one failed, and held requests are released.

use std::net::SocketAddr;
use std::sync::Arc;

use forebay_scheduling::pick::Given;
use forebay_signals::Health;
use tokio::time::Instant;

use super::scheduling::Scheduling;
use super::slot::{End, Kind, Slot};
use super::{Pool, Ticket};
use crate::answer::failure::Failure;
use crate::answer::refusal::Refusal;
use crate::net::clock;

/// The consequence of a try for its endpoint.
struct Consequence {
    /// The pool still has the endpoint.
    known: bool,
    ejected: bool,
}

impl Slot {
    /// Gives the place back after a failure, and decides whether the request is tried again; see
    /// [`Pool::try_again`].
    ///
    /// # Errors
    /// The client's answer, if the request is not tried again.
    pub(crate) fn decide_retry(
        mut self: Box<Self>,
        ticket: &mut Ticket,
        failure: Failure,
    ) -> Result<(), Refusal> {
        self.end = None;
        let given = self.lessons.given.take();
        self.pool.give_back_failed(&self, given, ticket, failure)
    }
}

impl Pool {
    pub(super) fn give_back(self: &Arc<Self>, slot: &Slot, given: Option<Box<Given>>, end: &End) {
        let mut state = self.scheduling.lock();
        let now = clock::now();
        let consequence = self.give_back_locked(&mut state, slot, given, end, now);
        let deferred = self.release_held(&mut state, now);
        drop(state);
        self.report_failure(slot.address, end, &consequence);
        deferred.run(self);
    }

    fn give_back_failed(
        self: &Arc<Self>,
        slot: &Slot,
        given: Option<Box<Given>>,
        ticket: &mut Ticket,
        failure: Failure,
    ) -> Result<(), Refusal> {
        let mut state = self.scheduling.lock();
        let now = clock::now();
        let again = self.try_again(&mut state, ticket, slot, &failure);
        let end = End::of(failure);
        let consequence = self.give_back_locked(&mut state, slot, given, &end, now);
        let deferred = self.release_held(&mut state, now);
        drop(state);
        if matches!(again, Err(Refusal::Poison)) {
            tracing::error!(
                endpoint = %slot.address,
                "{}: {} replicas died with the same request in flight; no other gets it",
                self.name,
                ticket.deaths(),
            );
        }
        self.report_failure(slot.address, &end, &consequence);
        deferred.run(self);
        again
    }

    /// Ends the accounting of one try: its tenant gets back the tokens that were not generated, and
    /// the endpoint takes the outcome.
    fn give_back_locked(
        &self,
        state: &mut Scheduling,
        slot: &Slot,
        given: Option<Box<Given>>,
        end: &End,
        now: Instant,
    ) -> Consequence {
        // If the request is tried again, its next release charges the answer again.
        if let Some(turn) = &slot.turn {
            let tokens = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
            state.queue.charge(turn.place, tokens(turn.generated) - tokens(turn.charged));
            // A place that a failure or a move gives back is lost with its endpoint, a place without
            // an answer served nobody, and a session lasts as long as its client wants.
            let served = matches!(end, End::Complete | End::Dropped);
            if slot.kind != Kind::Session && served {
                state.readiness.times.service.record(now.saturating_duration_since(turn.since));
            }
        }
        let in_flight_tokens = &mut state.admitted.in_flight_tokens;
        *in_flight_tokens = in_flight_tokens.saturating_sub(slot.tokens);
        if let Some(given) = given {
            let complete = *end == End::Complete && slot.kind == Kind::Engine;
            if let Some(cached) = state.ended(&given, complete, now) {
                self.figures.count_cached(cached, slot.totals());
            }
        }
        let last = state.endpoints.is_last(slot.id);
        let mut consequence = Consequence { known: false, ejected: false };
        let mut drained = false;
        let gone = state.endpoints.change(slot.id, now, |endpoint| {
            consequence.known = true;
            match end {
                End::Complete => endpoint.request_completed(slot.kind != Kind::Server, now),
                End::Failed(failure) => {
                    consequence.ejected = endpoint.request_failed(failure, last, now);
                }
                End::Dropped | End::Unused | End::Moved => {}
            }
            endpoint.given_back(slot.kind == Kind::Session, now);
            let answered = *end == End::Complete && slot.kind != Kind::Server;
            endpoint.vacate(slot.lessons.occupancy, answered, now);
            drained = endpoint.health() == Health::Draining && endpoint.in_flight() == 0;
            drained && endpoint.is_gone()
        });
        if gone == Some(true) {
            state.remove_endpoint(slot.id);
        }
        if drained || (consequence.known && matches!(end, End::Failed(_))) {
            self.changed.notify_one();
        }
        state.note_readiness(now);
        consequence
    }

    fn report_failure(&self, address: SocketAddr, end: &End, consequence: &Consequence) {
        if let (End::Failed(failure), true) = (end, consequence.known) {
            self.figures.count_failure(failure.cause);
            let (kind, reason) = (failure.cause.name(), &failure.message);
            tracing::warn!(kind, "{}: {address} failed a request: {reason}", self.name);
            if consequence.ejected {
                tracing::warn!("{}: {address} is out: {reason}", self.name);
            }
        }
    }
}
