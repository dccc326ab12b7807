//! A request's place at an endpoint, from its release to its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use forebay_scheduling::pick::{EndpointId, Given, Usage};
use forebay_scheduling::queue::{Place, Tab};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Pool;
use crate::answer::failure::{Cause, Failure};
use crate::answer::fingerprint::Fingerprint;
use crate::answer::meter::Tokens;
use crate::figures::endpoint_totals::EndpointTotals;
use crate::net::clock;
use crate::pool::endpoint::{Endpoint, Evictions, Occupancy, Process, Pulse};

/// How a try at an endpoint ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Complete,
    /// It failed by the endpoint's own fault.
    Failed(Failure),
    /// The client left, or it ended by no fault of the endpoint.
    Dropped,
    /// Nothing of an answer came from it, by no fault of the endpoint.
    Unused,
    /// Another replica goes on with the answer, to free the endpoint.
    Moved,
}

impl End {
    /// A failed try's end. A shortage of the gateway itself is not the endpoint's failure, and an
    /// endpoint that can't go on with another one's answer is sound.
    pub(crate) fn of(failure: Failure) -> Self {
        match failure.cause {
            Cause::Shortage | Cause::NotContinued | Cause::Moved => Self::Unused,
            _ => Self::Failed(failure),
        }
    }
}

/// A request as the pool learns from it.
pub(super) struct Lessons {
    /// As the pool's picker knows it; `None` if that learns nothing from it.
    pub(super) given: Option<Box<Given>>,
    /// Its part in the endpoint's room.
    pub(super) occupancy: Occupancy,
}

/// A request's place at an endpoint. Dropping it counts as the client's leaving.
#[must_use = "dropping it ends the request's accounting"]
pub(crate) struct Slot {
    pub(super) pool: Arc<Pool>,
    /// The endpoint's number in the pool. The endpoint stays in the pool while this lives.
    pub(super) id: EndpointId,
    pub(crate) address: SocketAddr,
    /// Estimated tokens of prompt and answer.
    pub(super) tokens: u64,
    /// `None` once the place is given back.
    pub(super) end: Option<End>,
    pub(super) turn: Option<Turn>,
    pub(super) lessons: Lessons,
    pulse: Pulse,
    pub(super) kind: Kind,
    pub(super) evictions: Arc<Evictions>,
    pub(super) process: Arc<Process>,
    totals: Arc<EndpointTotals>,
}

/// How many tokens of a long answer are charged together.
const CHARGED_TOGETHER: u64 = 16;

/// A request's turn in the queue, and the tokens that its tenant was charged for the answer.
pub(super) struct Turn {
    pub(super) place: Place,
    /// The moment of its release.
    pub(super) since: Instant,
    pub(super) charged: u64,
    pub(super) generated: u64,
    tab: Tab,
}

impl Turn {
    pub(super) fn new((place, since): (Place, Instant), charged: u64, tab: Tab) -> Self {
        Self { place, since, charged, generated: 0, tab }
    }
}

/// A request's kind, as far as it matters to the endpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The answer shows that the engine works.
    Engine,
    /// The server in front of the engine answers.
    Server,
    Session,
}

impl Slot {
    /// Boxed, because it is moved through many futures.
    pub(super) fn new(
        pool: &Arc<Pool>,
        (id, address): (EndpointId, SocketAddr),
        tokens: u64,
        (endpoint, occupancy): (&Endpoint, Occupancy),
    ) -> Box<Self> {
        Box::new(Self {
            pool: Arc::clone(pool),
            id,
            address,
            tokens,
            end: Some(End::Dropped),
            turn: None,
            lessons: Lessons { given: None, occupancy },
            pulse: endpoint.pulse(),
            kind: Kind::Engine,
            evictions: endpoint.evictions(),
            process: Arc::clone(endpoint.process()),
            totals: Arc::clone(endpoint.totals()),
        })
    }

    /// Gives the place back.
    pub(crate) fn ended(mut self: Box<Self>, end: End) {
        self.end = Some(end);
    }

    /// Notes that the answer says nothing about the engine, since the server in front of it
    /// answers.
    pub(crate) fn without_engine(&mut self) {
        self.kind = Kind::Server;
    }

    /// Notes that it is a session from now on, which may be silent.
    pub(crate) fn session_began(&mut self) {
        if self.kind != Kind::Session {
            self.kind = Kind::Session;
            let now = clock::now();
            let mut state = self.pool.scheduling.lock();
            state.endpoints.change(self.id, now, |endpoint| endpoint.session_began(now));
        }
    }

    /// Completes, with the reason, when a request without an answer should go elsewhere.
    pub(crate) async fn evicted(&self) -> Failure {
        self.evictions.unanswered.cancelled().await;
        let state = self.pool.scheduling.lock();
        if state.endpoints.get(self.id).is_some_and(Endpoint::is_unreachable) {
            return Failure::unreachable();
        }
        let message = "The replica has work, and answers nothing, not even a probe.";
        Failure::new(Cause::Stalled, message)
    }

    /// Gives the place back after a failure that the request is not tried again for.
    pub(crate) fn failed(self: Box<Self>, failure: Failure) {
        self.ended(End::of(failure));
    }

    /// Cancelled when an answer that has begun will not go on.
    pub(crate) fn lost(&self) -> CancellationToken {
        self.evictions.begun.clone()
    }

    /// Cancelled when the endpoint's engine hangs and another endpoint is ready.
    pub(crate) fn hung(&self) -> CancellationToken {
        self.evictions.hung.clone()
    }

    /// Notes that it goes on with an answer of another replica, whose beginning is a part of its prompt.
    pub(crate) fn goes_on(&mut self) {
        if let Some(given) = &mut self.lessons.given {
            given.goes_on();
        }
    }

    /// Completes when a session, which may be silent, should wait no longer.
    pub(crate) async fn given_up(&self) {
        self.evictions.sessions.cancelled().await;
    }

    /// Takes the answer's tokens so far. Those beyond a usual answer are charged to the tenant while
    /// they come, not when a long answer is over.
    pub(crate) fn tokens(&mut self, tokens: &Tokens) {
        if let Some(given) = &mut self.lessons.given {
            given.set_usage(Usage {
                prompt: tokens.prompt.unwrap_or(0),
                cached: tokens.cached,
                generated: tokens.generated,
            });
        }
        self.generated(tokens.generated);
    }

    /// Takes the number of the answer's tokens so far. It never falls: once another replica goes on with
    /// the answer, these are a part of its prompt.
    pub(crate) fn generated(&mut self, tokens: u64) {
        let Some(turn) = &mut self.turn else { return };
        turn.generated = turn.generated.max(tokens);
        if tokens >= turn.charged + CHARGED_TOGETHER {
            turn.tab.charge(i64::try_from(tokens - turn.charged).unwrap_or(i64::MAX));
            turn.charged = tokens;
        }
    }

    /// Takes the time for which the client kept the answer waiting, which is not the replica's.
    pub(crate) fn client_was_slow(&mut self, time: Duration) {
        if let Some(given) = &mut self.lessons.given {
            given.set_client_time(time);
        }
    }

    /// Notes the first token of a stream. The first call takes the lock if the pool's picker learns
    /// from it, or if the endpoint starts slowly.
    pub(crate) fn first_token(&mut self, at: Instant) {
        let given = self.lessons.given.as_mut().filter(|given| !given.is_answered());
        let waits =
            Some(&mut self.lessons.occupancy).filter(|occupancy| occupancy.waits_for_token());
        if given.is_some() || waits.is_some() {
            self.pool.take_first_token(self.id, given.map(|given| &mut **given), waits, at);
        }
    }

    /// The fingerprint that the replica's streams carry, once it has reported one.
    pub(crate) fn fingerprint(&self) -> Option<Fingerprint> {
        self.process.fingerprint()
    }

    /// Takes the fingerprint that the replica reported.
    pub(crate) fn set_fingerprint(&self, fingerprint: &Fingerprint) {
        self.process.set_fingerprint(fingerprint);
    }

    /// Notes that something came from the engine. Called for every chunk; takes no lock.
    pub(crate) fn pulse(&self, now: Instant) {
        self.pulse.beat(now);
    }

    /// Whether its process refuses to report token ids.
    pub(crate) fn refuses_token_ids(&self) -> bool {
        self.process.refuses_token_ids()
    }

    /// Notes that its process refuses to report token ids.
    pub(crate) fn note_refuses_token_ids(&self) {
        self.process.note_refuses_token_ids();
    }

    /// Notes that its process begins anew where it should go on with an answer.
    pub(crate) fn begins_anew(&self) {
        self.pool.abilities.note_begins_anew(self.process.id());
    }

    /// Notes that its process does not turn tokens into text.
    pub(crate) fn has_no_text(&self) {
        self.pool.abilities.note_no_text(self.process.id());
    }

    /// The sums of its endpoint.
    pub(crate) fn totals(&self) -> &Arc<EndpointTotals> {
        &self.totals
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            let given = self.lessons.given.take();
            self.pool.give_back(self, given, &end);
        }
    }
}
