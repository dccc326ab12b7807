//! One request's way through its pool: what it asks for, and what it may still be tried for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use forebay_signals::Health;
use tokio::time::Instant;

use super::{Pool, Slot};
use crate::answer::failure::{Cause, Failure};
use crate::answer::refusal::Refusal;
use crate::pool::endpoint::{Endpoint, Life};
use crate::pool::model_registry::Who;
use crate::pool::queue::{Place, Request};

/// A request that was in flight at so many deaths of replicas that no order explains is not given to
/// another. Restarts in turn can look like two such deaths: the one that it was at, and the one that
/// it was moved to. The third try goes to a replica that was started since, where there is one.
const MOST_DEATHS: usize = 3;

/// A request to which so many replicas answered with an error of their own has its answer.
const MOST_ERRORS: u32 = 2;

/// What a request asks of the endpoint that it gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wants {
    /// The model, by the name that is sent.
    pub(crate) model: Option<Arc<str>>,
    /// Lives of endpoints that failed it.
    pub(crate) avoid: BTreeSet<u64>,
    /// Those among them that are not set up for it, and so would fail it again.
    pub(crate) refused: BTreeSet<u64>,
    /// When a replica's end first cost it a try. Where replicas are restarted in turn, one that was
    /// started since has its restart behind it.
    pub(crate) ended_at: Option<Instant>,
}

impl Wants {
    /// Whether one is ready, be it full, that knows its model and has not refused it.
    fn served_by_any(&self, endpoints: &BTreeMap<SocketAddr, Endpoint>, who: &Who) -> bool {
        endpoints.iter().any(|(address, endpoint)| {
            endpoint.health() == Health::Ready
                && !self.refused.contains(&endpoint.life().id())
                && who.knows(*address, self.model.as_deref())
        })
    }
}

/// Where a request is in the queue's order, and what it brings.
pub(crate) struct Ticket {
    pub(crate) request: Request,
    pub(super) place: Option<Place>,
    pub(crate) wants: Wants,
    /// Tries at which a replica may have worked on it.
    pub(super) tries: u32,
    /// Lives that ended with it in flight, each once.
    pub(super) deaths: Vec<Arc<Life>>,
    /// Replicas' own errors about it.
    pub(super) errors: u32,
    /// Time held while nothing was ready.
    pub(crate) cold: Duration,
    pub(crate) held: Duration,
    /// Until when its client waits, where that is known.
    pub(super) gives_up: Option<Instant>,
    /// Another pool is asked when this one can't serve it, after so long a hold if that is given.
    pub(super) elsewhere: Option<Option<Duration>>,
}

impl Ticket {
    pub(crate) fn new(request: Request) -> Self {
        Self {
            request,
            place: None,
            wants: Wants::default(),
            tries: 0,
            deaths: Vec::new(),
            errors: 0,
            cold: Duration::ZERO,
            held: Duration::ZERO,
            gives_up: None,
            elsewhere: None,
        }
    }

    /// The model, by the name that is sent.
    pub(crate) fn model(&mut self, name: Option<&str>) {
        self.wants.model = name.map(Arc::from);
    }

    /// Its client waits no longer than this.
    pub(crate) fn gives_up(&mut self, at: Option<Instant>) {
        self.gives_up = at;
    }

    /// Another pool is asked when this one can't serve it in time, or `after` so long a hold.
    pub(crate) fn may_go_elsewhere(&mut self, after: Option<Duration>) {
        self.elsewhere = Some(after);
    }

    /// How long its pool may hold it in all.
    pub(super) fn longest_hold(&self, hold: Duration) -> Duration {
        self.elsewhere.flatten().map_or(hold, |after| after.min(hold))
    }

    /// The queue's own number of this arrival.
    pub(crate) fn seq(&self) -> u64 {
        self.place.map_or(0, |place| place.seq)
    }
}

impl Pool {
    /// Whether a request that an endpoint failed may be tried again: within its number of tries and
    /// the pool's retry budget, and not when three replicas have died with it. One that replicas are
    /// not set up for goes to each that is ready once.
    pub(crate) fn try_again(
        &self,
        ticket: &mut Ticket,
        slot: &Slot,
        failure: &Failure,
    ) -> Result<(), Refusal> {
        if failure.cause == Cause::Shortage {
            // It was waited for until the request's time was over.
            return Err(Refusal::Shortage(failure.message.clone()));
        }
        let (life, now) = (&slot.life, Instant::now());
        ticket.wants.avoid.insert(life.id());
        let mut books = self.books.lock();
        // Deleted, to be drained, or no longer listed. Of a local replica that is no longer listed since
        // it crashed, its supervisor says so, which outranks this.
        if books.endpoints.get(&slot.address).is_none_or(|endpoint| endpoint.is_draining()) {
            life.stopped();
        }
        if failure.cause.is_end() {
            ticket.wants.ended_at.get_or_insert(now);
        }
        if failure.cause.is_death() && ticket.deaths.iter().all(|death| death.id() != life.id()) {
            ticket.deaths.push(Arc::clone(life));
        }
        ticket.tries += u32::from(failure.cause.is_try());
        ticket.errors += u32::from(failure.cause == Cause::Server);
        // What explains an end may have become known since.
        let unexplained = ticket.deaths.iter().filter(|death| !death.was_stopped()).count();
        if unexplained >= MOST_DEATHS {
            drop(books);
            tracing::error!(
                endpoint = %slot.address,
                "{}: three replicas died with the same request in flight; it is given to no other",
                self.name,
            );
            return Err(Refusal::Poison);
        }
        if failure.cause.is_misfit() {
            ticket.wants.refused.insert(life.id());
            let served = ticket.wants.served_by_any(&books.endpoints, &self.served.who());
            return if served { Ok(()) } else { Err(Refusal::Failed(failure.clone())) };
        }
        if ticket.errors >= MOST_ERRORS {
            return Err(Refusal::Failed(failure.clone()));
        }
        let refused = || Refusal::Exhausted { tries: ticket.tries, last: failure.clone() };
        if ticket.tries >= self.settings().upstream.max_tries {
            return Err(refused());
        }
        let free = !failure.cause.is_try() || books.budget.withdraw(now);
        free.then_some(()).ok_or_else(refused)
    }
}
