//! Holding requests, and releasing them to endpoints with room.

use std::sync::Arc;
use std::time::Duration;

use forebay_scheduling::eta::TooLate;
use forebay_scheduling::pick::{Choice, EndpointId, Given, Requirements};
use forebay_scheduling::queue::{Entry, Place};
use forebay_signals::estimated_tokens;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::Pool;
use super::scheduling::{Release, Scheduling, Unplaced, Waiter};
use super::slot::{End, Slot, Turn};
use super::ticket::{Fallback, Ticket};
use crate::answer::refusal::Refusal;
use crate::net::clock;
use crate::pool::endpoint::Occupancy;

/// An admitted request.
enum Admission<'a> {
    Released(Box<Slot>),
    Held(HeldRequest<'a>),
}

/// A request in the queue. Dropping this takes the request out of the queue.
struct HeldRequest<'a> {
    pool: &'a Arc<Pool>,
    place: Place,
    release: oneshot::Receiver<Release>,
    since: Instant,
    /// Whether no endpoint was ready when the hold began. Such a hold ends when the first one is.
    cold: bool,
    /// Whether the request may still be in the queue.
    queued: bool,
}

/// Work that follows a release, once the lock is free: logging, and giving back slots, which takes
/// the lock again.
#[must_use]
#[derive(Default)]
pub(super) struct Deferred {
    /// Slots of requests whose clients left in the meantime.
    #[expect(clippy::vec_box, reason = "slots come in boxes")]
    pub(super) untaken: Vec<Box<Slot>>,
    released: Vec<(u64, Arc<str>)>,
    /// The number of requests in a burst that is over, and the longest time one of them was held.
    burst: Option<(u64, Duration)>,
    /// The reason why the first request of a new burst is held.
    held: Option<&'static str>,
}

impl Deferred {
    pub(super) fn run(self, pool: &Pool) {
        if let Some(why) = self.held {
            tracing::info!("{}: request held, {why}", pool.name);
        }
        for (seq, tenant) in self.released {
            tracing::debug!(pool = %pool.name, seq, %tenant, "released");
        }
        if let Some((released, longest)) = self.burst {
            let noun = if released == 1 { "request" } else { "requests" };
            let seconds = longest.as_secs_f64();
            tracing::info!("{}: {released} {noun} released after {seconds:.1} s", pool.name);
        }
        self.untaken.into_iter().for_each(|slot| slot.ended(End::Unused));
    }
}

impl Drop for HeldRequest<'_> {
    fn drop(&mut self) {
        if self.queued {
            let mut state = self.pool.scheduling.lock();
            state.queue.remove(self.place);
            let deferred = self.pool.note_depth(&mut state);
            drop(state);
            deferred.run(self.pool);
        }
    }
}

impl HeldRequest<'_> {
    /// The endpoint that it gets; `None` if it was taken out of the queue, and has to ask again.
    async fn released(&mut self, ticket: &mut Ticket) -> Result<Option<Box<Slot>>, Refusal> {
        let rest = ticket.rest_of_hold(self.pool.settings().hold.timeout);
        let deadline = ticket.deadline.min(self.since + rest);
        let outcome = timeout_at(deadline, &mut self.release).await;
        let held = clock::now() - self.since;
        ticket.hold_time.all += held;
        match outcome {
            Ok(Ok(Release::Slot(slot))) => {
                self.queued = false;
                ticket.starts();
                ticket.released = true;
                if self.cold {
                    ticket.hold_time.cold += held;
                }
                Ok(Some(slot))
            }
            Ok(Ok(Release::TooLate(TooLate { expected, retry_after }))) => {
                self.queued = false;
                Err(Refusal::CannotStartInTime { expected, retry_after })
            }
            Ok(Err(_)) => {
                self.queued = false;
                Ok(None)
            }
            Err(_) => {
                let settings = self.pool.settings();
                let state = self.pool.scheduling.lock();
                let retry_after = state.retry_after(&settings, clock::now());
                let why = state.why_waiting();
                Err(Refusal::HoldExpired { waited: ticket.hold_time.all, retry_after, why })
            }
        }
    }
}

impl Pool {
    /// Waits for an endpoint with room. Dropping the future takes the request out of the queue at
    /// once.
    ///
    /// # Errors
    /// The queue is full, the request can't or could not be served in time, no replica can be
    /// started, or the pool is removed.
    pub(crate) async fn hold(self: &Arc<Self>, ticket: &mut Ticket) -> Result<Box<Slot>, Refusal> {
        loop {
            // Not awaited in the `match`, which would keep the admission.
            let mut held = match self.admit(ticket)? {
                Admission::Released(slot) => return Ok(slot),
                Admission::Held(held) => held,
            };
            if let Some(slot) = held.released(ticket).await? {
                return Ok(slot);
            }
        }
    }

    /// Releases a request at once if an endpoint has room for it, and otherwise puts it into the
    /// queue.
    fn admit(self: &Arc<Self>, ticket: &mut Ticket) -> Result<Admission<'_>, Refusal> {
        let now = clock::now();
        let mut state = self.scheduling.lock();
        if state.closed {
            return Err(Refusal::PoolRemoved);
        }
        if ticket.place.is_none() {
            state.admitted.accepted += 1;
            state.admitted.accepted_prompt_tokens += estimated_tokens(ticket.entry.bytes);
            state.budget.deposit();
        }
        let place = match (ticket.place, ticket.take_break()) {
            (Some(place), true) => state.queue.broke(place),
            (Some(place), false) => place,
            (None, _) => state.queue.arrive(ticket.entry.class, &ticket.entry.tenant),
        };
        ticket.place = Some(place);
        // A request that was taken out of the queue without an endpoint has not had its turn.
        let first = !ticket.released;
        let empty = state.queue.depth() == 0;
        if empty
            && let Some(choice) = state.pick(&ticket.requirements, now)
            && let Some(mut slot) =
                self.occupy(&mut state, (choice, &ticket.requirements), &ticket.entry, now)
        {
            state.queue.pass(place, &ticket.entry, !first);
            state.admitted.released += u64::from(first);
            ticket.released = true;
            slot.turn = Some(Turn::new((place, now), ticket.entry.answer, state.queue.tab(place)));
            return Ok(Admission::Released(slot));
        }
        if let Some(refusal) = self.start_refused(&mut state, now) {
            return Err(refusal);
        }
        let settings = self.settings();
        ticket.entry.late_from =
            if first { state.late_from(&settings, ticket.accepted) } else { None };
        let ahead = self.ahead(&state, (place, &*ticket), now);
        if first && let Some(late) = self.cannot_start_in_time(&mut state, (ahead, &*ticket), now) {
            let TooLate { expected, retry_after } = late;
            return Err(Refusal::CannotStartInTime { expected, retry_after });
        }
        ticket.entry.late_from = ahead.late_from(ticket.entry.late_from, state.at(now));
        ticket.entry.kind = ticket.requirements.kind();
        let (sender, release) = oneshot::channel();
        // Boxed: the rows of a queue have room for twice as many.
        let waiter = Box::new(Waiter {
            release: sender,
            requirements: ticket.requirements.clone(),
            accepted: ticket.accepted,
            first,
            since: now,
            held_before: ticket.hold_time.all,
            until: ticket.waits_until(settings.hold.timeout, now),
            fallback: ticket.fallback != Fallback::None,
            expected: ticket.expected.clone(),
            trace: ticket.trace,
        });
        if waiter.expected.is_some() {
            let outlook = state.outlook(&settings, now);
            waiter.expect(outlook.expected(ahead).map(|wait| now + wait));
        }
        if let Err(full) = state.queue.push(place, ticket.entry.clone(), waiter, !first) {
            let (retry_after, why) = (state.retry_after(&settings, now), state.why_waiting());
            return Err(Refusal::QueueFull { held: full.requests, retry_after, why });
        }
        let cold = state.readiness.none_since.is_some();
        // The requests before it may wait for endpoints that this one does not need.
        let deferred =
            if empty { self.note_depth(&mut state) } else { self.release_held(&mut state, now) };
        drop(state);
        let held = HeldRequest { pool: self, place, release, since: now, cold, queued: true };
        deferred.run(self);
        Ok(Admission::Held(held))
    }

    /// Takes a place at an endpoint.
    pub(super) fn occupy(
        self: &Arc<Self>,
        state: &mut Scheduling,
        (choice, request): (Choice, &Requirements),
        entry: &Entry,
        now: Instant,
    ) -> Option<Box<Slot>> {
        let prompt = (estimated_tokens(entry.bytes), request.streamed);
        let (address, endpoint, occupancy) = state.endpoints.give(choice.id, prompt, now)?;
        let (id, place) = (choice.id, (endpoint, occupancy));
        let mut slot = Slot::new(self, (id, address), entry.tokens, place);
        slot.lessons.given = state.given(choice, request, now);
        state.admitted.in_flight_tokens += entry.tokens;
        Some(slot)
    }

    /// Takes the first token of a request, which makes room for others at an endpoint that starts
    /// slowly.
    pub(super) fn take_first_token(
        self: &Arc<Self>,
        id: EndpointId,
        given: Option<&mut Given>,
        occupancy: Option<&mut Occupancy>,
        at: Instant,
    ) {
        let mut state = self.scheduling.lock();
        if let Some(given) = given {
            state.first_token(given, at);
        }
        let Some(occupancy) = occupancy else { return };
        let now = clock::now();
        let room = state.endpoints.change(id, now, |endpoint| endpoint.first_token(occupancy, now));
        if room == Some(true) {
            let deferred = self.release_held(&mut state, now);
            drop(state);
            deferred.run(self);
        }
    }

    /// Releases held requests as long as an endpoint has room for any of them.
    pub(super) fn release(self: &Arc<Self>) {
        let mut state = self.scheduling.lock();
        let deferred = self.release_held(&mut state, Instant::now());
        drop(state);
        deferred.run(self);
    }

    /// Gives endpoints with room to held requests, in the queue's order, and what they leave to streams
    /// that move. A request whose endpoints are full does not block those behind it.
    pub(super) fn release_held(self: &Arc<Self>, state: &mut Scheduling, now: Instant) -> Deferred {
        let mut deferred = Deferred::default();
        if state.queue.depth() == 0 && state.backlog.was_empty() {
            self.release_moves(state, now);
            return deferred;
        }
        let mut unplaced = Unplaced::default();
        while let Some((choice, (place, entry, waiter))) = state.pop_releasable(&mut unplaced, now)
        {
            let chosen = (choice, &waiter.requirements);
            let Some(mut slot) = self.occupy(state, chosen, &entry, now) else { break };
            slot.turn = Some(Turn::new((place, now), entry.answer, state.queue.tab(place)));
            state.admitted.released += u64::from(waiter.first);
            deferred.released.push((place.seq, entry.tenant));
            let held = waiter.held_before + now.saturating_duration_since(waiter.since);
            let burst = state.backlog.released(held, state.queue.depth());
            deferred.burst = burst.or(deferred.burst);
            if let Err(Release::Slot(slot)) = waiter.release.send(Release::Slot(slot)) {
                deferred.untaken.push(slot);
            }
        }
        self.release_moves(state, now);
        deferred.held = self.note_depth(state).held;
        deferred
    }

    /// Notes the queue's depth, and notifies the scaler's feed if it should hear of it at once.
    pub(super) fn note_depth(&self, state: &mut Scheduling) -> Deferred {
        let depth = state.queue.depth();
        let held =
            (state.backlog.was_empty() && depth > 0).then(|| match state.endpoints.any_ready() {
                true => "every replica is full",
                false => "no replica is ready",
            });
        if state.backlog.note_depth(depth) {
            self.changed.notify_one();
        }
        Deferred { held, ..Deferred::default() }
    }
}
