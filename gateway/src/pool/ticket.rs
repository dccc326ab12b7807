//! One request's way through its pool: what it asks for, and what it may still be tried for.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Pool;
use crate::endpoint::Endpoint;
use crate::failure::{Cause, Failure};
use crate::queue::{Place, Request};
use crate::refusal::Refusal;

/// A request that was in flight at so many unannounced deaths of replicas is not given to another.
const MOST_DEATHS: u32 = 2;

/// A request to which so many replicas answered with an error of their own has its answer.
const MOST_ERRORS: u32 = 2;

/// What a request asks of the endpoint that it gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wants {
    /// The model, by the name that is sent.
    pub(crate) model: Option<Arc<str>>,
    /// Endpoints that failed it.
    pub(crate) avoid: BTreeSet<SocketAddr>,
}

/// Where a request is in the queue's order, and what it brings.
pub(crate) struct Ticket {
    pub(crate) request: Request,
    pub(super) place: Option<Place>,
    pub(crate) wants: Wants,
    /// Tries at which a replica may have worked on it.
    pub(super) tries: u32,
    /// Unannounced deaths of replicas that had it.
    pub(super) deaths: u32,
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
            deaths: 0,
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
    /// the pool's retry budget, and not when two replicas have died with it.
    pub(crate) fn try_again(
        &self,
        ticket: &mut Ticket,
        address: SocketAddr,
        failure: &Failure,
    ) -> Result<(), Refusal> {
        ticket.wants.avoid.insert(address);
        let mut books = self.books.lock();
        let announced = books.endpoints.get(&address).is_none_or(Endpoint::is_draining);
        ticket.deaths += u32::from(failure.cause.is_death() && !announced);
        ticket.tries += u32::from(failure.cause.is_try());
        ticket.errors += u32::from(failure.cause == Cause::Server);
        if ticket.deaths >= MOST_DEATHS {
            drop(books);
            tracing::error!(
                endpoint = %address,
                "{}: two replicas died with the same request in flight; it is given to no third",
                self.name,
            );
            return Err(Refusal::Poison);
        }
        if ticket.errors >= MOST_ERRORS {
            return Err(Refusal::Failed(failure.clone()));
        }
        let refused = || Refusal::Exhausted { tries: ticket.tries, last: failure.clone() };
        if ticket.tries >= self.settings().upstream.max_tries {
            return Err(refused());
        }
        let free = !failure.cause.is_try() || books.budget.withdraw(Instant::now());
        free.then_some(()).ok_or_else(refused)
    }
}
