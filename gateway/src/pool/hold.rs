//! Holding requests, and releasing them to endpoints with room.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use forebay_signals::Health;
use parking_lot::MutexGuard;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::Pool;
use super::books::{Books, Waiter};
use super::slot::{End, Slot};
use super::ticket::{Ticket, Wants};
use crate::answer::refusal::Refusal;
use crate::pool::cold_wait::Patience;
use crate::pool::endpoint::Endpoint;
use crate::pool::model_registry::{Served, Who};
use crate::pool::queue::Place;

/// What every choice of an endpoint at one moment goes by.
struct Choice {
    who: Arc<Who>,
    turn: usize,
    now: Instant,
}

impl Choice {
    /// `None` while nobody is released at all.
    fn among(books: &Books, served: &Served) -> Option<Self> {
        let (turn, now) = (books.turn, Instant::now());
        let room = !books.barrier_is_up() && books.endpoints.values().any(|it| it.room(now) > 0);
        room.then(|| Self { who: served.who(), turn, now })
    }

    /// The least loaded endpoint with room that knows the model; one that failed this request, or
    /// whose engine may hang, only where no other is ready, be it full; one that refused it, never.
    fn of(&self, endpoints: &BTreeMap<SocketAddr, Endpoint>, wants: &Wants) -> Option<SocketAddr> {
        let Self { who, turn, now } = self;
        let knows = |address: &SocketAddr| who.knows(*address, wants.model.as_deref());
        let last_resort = |endpoint: &Endpoint| {
            wants.avoid.contains(&endpoint.life().id()) || endpoint.is_suspect(*now)
        };
        let others = endpoints.iter().any(|(address, endpoint)| {
            endpoint.health() == Health::Ready && !last_resort(endpoint) && knows(address)
        });
        let restarted =
            |endpoint: &Endpoint| wants.ended_at.is_none_or(|ended| endpoint.up_since() > ended);
        endpoints
            .iter()
            .enumerate()
            .filter(|(_, (address, endpoint))| {
                endpoint.room(*now) > 0
                    && !(others && last_resort(endpoint))
                    && !wants.refused.contains(&endpoint.life().id())
                    && knows(address)
            })
            // Equals take turns.
            .min_by_key(|(i, (_, endpoint))| {
                let turn = i.wrapping_add(*turn) % endpoints.len();
                (!restarted(endpoint), endpoint.in_flight, turn)
            })
            .map(|(_, (address, _))| *address)
    }
}

/// A place in the queue, given up when dropped.
struct Held<'a> {
    pool: &'a Arc<Pool>,
    place: Place,
    slot: oneshot::Receiver<Slot>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut books = self.pool.books.lock();
        books.queue.remove(self.place);
        let held = self.pool.tell_of_depth(&mut books);
        drop(books);
        self.pool.log_held(held);
    }
}

impl Pool {
    /// Waits for an endpoint with room. Dropping the future leaves the queue at once.
    pub(crate) async fn hold(self: &Arc<Self>, ticket: &mut Ticket) -> Result<Slot, Refusal> {
        let started = Instant::now();
        let (mut held, cold, first_held) = {
            let mut books = self.books.lock();
            if books.closed {
                return Err(Refusal::PoolRemoved);
            }
            let first = ticket.place.is_none();
            if first {
                books.totals.accepted += 1;
                // As the estimate of all tokens: four bytes a token.
                books.totals.accepted_prompt_tokens += ticket.request.bytes / 4;
                books.budget.deposit();
            }
            let place = *ticket.place.get_or_insert_with(|| {
                books.queue.arrive(ticket.request.class, &ticket.request.tenant)
            });
            if books.queue.depth() == 0
                && let Some(choice) = Choice::among(&books, &self.served)
                && let Some(address) = choice.of(&books.endpoints, &ticket.wants)
                && let Some(mut slot) = self.occupy(&mut books, address, ticket.request.tokens)
            {
                if first {
                    books.queue.pass(place, ticket.request.cost);
                }
                slot.turn = Some((place, ticket.request.answer));
                return Ok(slot);
            }
            if first && let Some(retry_after) = self.in_vain(&mut books, ticket, started) {
                return Err(Refusal::InVain { retry_after });
            }
            let (sender, slot) = oneshot::channel();
            let request = ticket.request.clone();
            let waiter = Waiter { slot: sender, wants: ticket.wants.clone() };
            if let Err(full) = books.queue.push(place, request, waiter, !first) {
                let retry_after = books.retry_after();
                let why = books.why_waiting();
                return Err(Refusal::QueueFull { held: full.requests, retry_after, why });
            }
            let first_held = self.tell_of_depth(&mut books);
            // What began while nothing was ready ends with the first that is.
            (Held { pool: self, place, slot }, books.none_ready.is_some(), first_held)
        };
        self.log_held(first_held);
        // An endpoint may have become free between a failed try and this one.
        self.release();
        let longest = ticket.longest_hold(self.settings().hold.timeout);
        let rest = longest.saturating_sub(ticket.held);
        let deadline = ticket.request.deadline.min(started + rest);
        let outcome = timeout_at(deadline, &mut held.slot).await;
        ticket.held += started.elapsed();
        match outcome {
            Ok(Ok(slot)) => {
                let mut books = self.books.lock();
                if cold {
                    ticket.cold += started.elapsed();
                }
                books.burst.0 += 1;
                books.burst.1 = books.burst.1.max(ticket.held);
                let burst = (books.queue.depth() == 0).then(|| std::mem::take(&mut books.burst));
                drop(books);
                if let Some((released, longest)) = burst {
                    let noun = if released == 1 { "request" } else { "requests" };
                    let seconds = longest.as_secs_f64();
                    tracing::info!(
                        "{}: {released} {noun} released after {seconds:.1} s",
                        self.name
                    );
                }
                Ok(slot)
            }
            Ok(Err(_)) => Err(Refusal::PoolRemoved),
            Err(_) => {
                let books = self.books.lock();
                let (retry_after, why) = (books.retry_after(), books.why_waiting());
                Err(Refusal::HoldExpired { waited: ticket.held, retry_after, why })
            }
        }
    }

    /// Whether a request need not be held at all, and when its client may come back.
    pub(super) fn in_vain(
        &self,
        books: &mut MutexGuard<'_, Books>,
        ticket: &Ticket,
        now: Instant,
    ) -> Option<Duration> {
        books.none_ready?;
        let settings = self.settings();
        let hold = now + ticket.longest_hold(settings.hold.timeout);
        let until = hold.min(ticket.request.deadline).min(ticket.gives_up.unwrap_or(hold));
        let patience = Patience { until, elsewhere: ticket.elsewhere.is_some() };
        let starts = settings.target.is_some() || books.any_starting();
        let retry_after = books.cold(starts).in_vain(patience, now)?;
        books.turned_away += 1;
        self.news.notify_one();
        Some(retry_after)
    }

    /// Takes a place at an endpoint.
    pub(super) fn occupy(
        self: &Arc<Self>,
        books: &mut Books,
        address: SocketAddr,
        tokens: u64,
    ) -> Option<Slot> {
        books.turn = books.turn.wrapping_add(1);
        let endpoint = books.endpoints.get_mut(&address)?;
        endpoint.given(Instant::now());
        let (pulse, evictions) = (endpoint.pulse(), endpoint.evictions());
        let life = Arc::clone(endpoint.life());
        books.in_flight_tokens += tokens;
        books.totals.released += 1;
        let (pool, end) = (Arc::clone(self), End::Dropped);
        Some(Slot {
            pool,
            address,
            tokens,
            end,
            turn: None,
            generated: 0,
            pulse,
            engine: true,
            session: false,
            evictions,
            life,
        })
    }

    /// Gives endpoints with room to those held longest. Who waits for one that is full holds up
    /// nobody who does not.
    pub(super) fn release(self: &Arc<Self>) {
        // What nobody took is given back after the lock is gone: a slot's drop takes it again.
        let (mut untaken, mut released) = (Vec::new(), Vec::new());
        let mut books = self.books.lock();
        while books.queue.depth() > 0 {
            let Some(choice) = Choice::among(&books, &self.served) else { break };
            let Books { queue, endpoints, .. } = &mut *books;
            let mut chosen = None;
            // Neighbours mostly want the same.
            let mut in_vain: Option<Wants> = None;
            let popped = queue.pop_first(|_, waiter| {
                if in_vain.as_ref() == Some(&waiter.wants) {
                    return false;
                }
                chosen = choice.of(endpoints, &waiter.wants);
                if chosen.is_none() {
                    in_vain = Some(waiter.wants.clone());
                }
                chosen.is_some()
            });
            let (Some(address), Some((place, request, waiter))) = (chosen, popped) else { break };
            let Some(mut slot) = self.occupy(&mut books, address, request.tokens) else { break };
            slot.turn = Some((place, request.answer));
            released.push((place.seq, request.tenant));
            if let Err(slot) = waiter.slot.send(slot) {
                untaken.push(slot);
            }
        }
        let held = self.tell_of_depth(&mut books);
        drop(books);
        self.log_held(held);
        for (seq, tenant) in released {
            tracing::debug!(pool = %self.name, seq, %tenant, "released");
        }
        drop(untaken);
    }

    /// Leaving zero, reaching it and doubling are news for the scaler. Why the first is held is for
    /// the log, which is written when the lock is gone.
    #[must_use]
    pub(super) fn tell_of_depth(&self, books: &mut MutexGuard<'_, Books>) -> Option<&'static str> {
        let depth = books.queue.depth();
        let told = books.told_depth;
        let why = (told == 0 && depth > 0).then(|| {
            let ready = books.endpoints.values().filter(|e| e.health() == Health::Ready).count();
            if ready == 0 { "no replica is ready" } else { "every replica is full" }
        });
        if (depth == 0) != (told == 0) || depth >= told.saturating_mul(2).max(1) {
            books.told_depth = depth;
            self.news.notify_one();
        } else if depth < told / 2 {
            books.told_depth = depth;
        }
        why
    }

    pub(super) fn log_held(&self, why: Option<&'static str>) {
        if let Some(why) = why {
            tracing::info!("{}: request held, {why}", self.name);
        }
    }
}
