//! A pool: one queue, its endpoints and its books, shared by all threads behind one short lock.
//!
//! The lock is taken a few times a request and never per chunk. Binding is late: a request gets its
//! endpoint when there is room, so that a new replica takes waiting work the moment it answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use forebay_signals::{ColdStart, EndpointSignals, Health, Histogram, PoolSignals, Totals};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::arrivals::Recorder;
use crate::budget::RetryBudget;
use crate::endpoint::{Endpoint, Probe, Probed, Pulse, Rules};
use crate::failure::{Cause, Failure};
use crate::key::UpstreamKey;
use crate::metric::Metrics;
use crate::patience::{Cold, Patience};
use crate::queue::{Place, Queue, Request};
use crate::record::{Ended, FirstToken, Outcome};
use crate::refusal::Refusal;
use crate::served::{Served, ServedModel, Who};

/// A request that was in flight at so many unannounced deaths of replicas is not given to another.
const MOST_DEATHS: u32 = 2;

/// A request to which so many replicas answered with an error of their own has its answer.
const MOST_ERRORS: u32 = 2;

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

struct Books {
    queue: Queue<Waiter>,
    endpoints: BTreeMap<SocketAddr, Endpoint>,
    /// Pods that have no address yet.
    waiting: BTreeMap<String, discovered::Pending>,
    budget: RetryBudget,
    barrier: Option<(u64, Instant)>,
    cold_start: Option<ColdStart>,
    totals: Totals,
    in_flight_tokens: u64,
    hold: Histogram,
    ttft: Histogram,
    warm_ttft: Histogram,
    upstream_ttft: Histogram,
    itl: Histogram,
    end_to_end: Histogram,
    /// Doubling from here is news.
    told_depth: usize,
    /// Since when no endpoint has been ready.
    none_ready: Option<Instant>,
    /// Since when replicas are wanted while none is ready.
    starting: Option<Instant>,
    /// Requests refused for the cold start since the last tick: they are demand all the same.
    turned_away: u32,
    turn: usize,
    /// No longer configured.
    closed: bool,
    /// The holds since the queue was last empty, for one line when it is again.
    burst: (u64, Duration),
}

/// A held request's way to be released.
struct Waiter {
    slot: oneshot::Sender<Slot>,
    wants: Wants,
}

/// What a request asks of the endpoint that it gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wants {
    /// The model, by the name that is sent.
    pub(crate) model: Option<Arc<str>>,
    /// Endpoints that failed it.
    pub(crate) avoid: BTreeSet<SocketAddr>,
}

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

    /// The least loaded endpoint with room that knows the model; one that failed this request only
    /// where no other is ready, be it full.
    fn of(&self, endpoints: &BTreeMap<SocketAddr, Endpoint>, wants: &Wants) -> Option<SocketAddr> {
        let Self { who, turn, now } = self;
        let knows = |address: &SocketAddr| who.knows(*address, wants.model.as_deref());
        let others = endpoints.iter().any(|(address, endpoint)| {
            endpoint.health() == Health::Ready && !wants.avoid.contains(address) && knows(address)
        });
        endpoints
            .iter()
            .enumerate()
            .filter(|(_, (address, endpoint))| {
                endpoint.room(*now) > 0
                    && !(others && wants.avoid.contains(address))
                    && knows(address)
            })
            // Equals take turns.
            .min_by_key(|(i, (_, endpoint))| {
                (endpoint.in_flight, i.wrapping_add(*turn) % endpoints.len())
            })
            .map(|(_, (address, _))| *address)
    }
}

/// Where a request is in the queue's order, and what it brings.
pub(crate) struct Ticket {
    pub(crate) request: Request,
    place: Option<Place>,
    pub(crate) wants: Wants,
    /// Tries at which a replica may have worked on it.
    tries: u32,
    /// Unannounced deaths of replicas that had it.
    deaths: u32,
    /// Replicas' own errors about it.
    errors: u32,
    /// Time held while nothing was ready.
    pub(crate) cold: Duration,
    pub(crate) held: Duration,
    /// Until when its client waits, where that is known.
    gives_up: Option<Instant>,
    /// Another pool is asked when this one can't serve it, after so long a hold if that is given.
    elsewhere: Option<Option<Duration>>,
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
    fn longest_hold(&self, hold: Duration) -> Duration {
        self.elsewhere.flatten().map_or(hold, |after| after.min(hold))
    }

    /// The queue's own number of this arrival.
    pub(crate) fn seq(&self) -> u64 {
        self.place.map_or(0, |place| place.seq)
    }
}

/// How a try at an endpoint ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Complete,
    /// For a reason of the endpoint's own.
    Failed(Failure),
    /// By the client's leaving, or for no fault of the endpoint.
    Dropped,
}

/// One request at one endpoint, counted while this lives. Dropped without a word it counts as one
/// whose client left.
#[must_use = "dropping it ends the request's accounting"]
pub(crate) struct Slot {
    pool: Arc<Pool>,
    pub(crate) address: SocketAddr,
    tokens: u64,
    end: End,
    /// Its place in the queue, and the tokens of the answer that its tenant was counted.
    turn: Option<(Place, u64)>,
    generated: u64,
    pulse: Pulse,
    streaming: bool,
    eviction: CancellationToken,
}

impl Slot {
    pub(crate) fn ended(mut self, end: End) {
        self.end = end;
    }

    /// Ends when the endpoint is silent for so long that a request without an answer is better off
    /// elsewhere.
    pub(crate) async fn evicted(&self) {
        self.eviction.cancelled().await;
    }

    /// The stream has begun: from here on it should not fall silent.
    pub(crate) fn stream_began(&mut self) {
        if !std::mem::replace(&mut self.streaming, true) {
            self.pool.with_endpoint(self.address, |endpoint| endpoint.stream_began(Instant::now()));
        }
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
        // A stream that stalled is judged together with those that are silent beside it.
        pool.give_back(self.address, self.tokens, end);
        if self.streaming {
            pool.with_endpoint(self.address, Endpoint::stream_ended);
        }
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
    fn in_vain(
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
    fn occupy(
        self: &Arc<Self>,
        books: &mut Books,
        address: SocketAddr,
        tokens: u64,
    ) -> Option<Slot> {
        books.turn = books.turn.wrapping_add(1);
        let endpoint = books.endpoints.get_mut(&address)?;
        endpoint.in_flight += 1;
        let (pulse, eviction) = (endpoint.pulse(), endpoint.eviction());
        books.in_flight_tokens += tokens;
        books.totals.released += 1;
        let (pool, end) = (Arc::clone(self), End::Dropped);
        let (turn, generated, streaming) = (None, 0, false);
        Some(Slot { pool, address, tokens, end, turn, generated, pulse, streaming, eviction })
    }

    /// Gives endpoints with room to those held longest. Who waits for one that is full holds up
    /// nobody who does not.
    fn release(self: &Arc<Self>) {
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

    fn give_back(self: &Arc<Self>, address: SocketAddr, tokens: u64, end: End) {
        let (mut known, mut out) = (false, false);
        {
            let now = Instant::now();
            let mut books = self.books.lock();
            books.in_flight_tokens = books.in_flight_tokens.saturating_sub(tokens);
            let last = books.is_last(address);
            if let Some(endpoint) = books.endpoints.get_mut(&address) {
                known = true;
                endpoint.in_flight = endpoint.in_flight.saturating_sub(1);
                let drained = endpoint.health() == Health::Draining && endpoint.in_flight == 0;
                match &end {
                    End::Complete => endpoint.completed(now),
                    End::Failed(failure) => {
                        out = endpoint.failed(failure, last, now);
                        self.news.notify_one();
                    }
                    End::Dropped => {}
                }
                if drained {
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

    /// Leaving zero, reaching it and doubling are news for the scaler. Why the first is held is for
    /// the log, which is written when the lock is gone.
    #[must_use]
    fn tell_of_depth(&self, books: &mut MutexGuard<'_, Books>) -> Option<&'static str> {
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

    fn log_held(&self, why: Option<&'static str>) {
        if let Some(why) = why {
            tracing::info!("{}: request held, {why}", self.name);
        }
    }

    // === what the feed of the scaler, the probes and the configuration say ===

    pub(crate) fn add_endpoint(&self, address: SocketAddr) -> bool {
        let mut books = self.books.lock();
        let rules = Rules::of(&self.settings());
        let mut new = false;
        let endpoint = books.endpoints.entry(address).or_insert_with(|| {
            new = true;
            Endpoint::new(rules, Instant::now())
        });
        if endpoint.is_gone() {
            new = true;
            endpoint.come_back(rules);
        }
        books.set_budget(rules.limit);
        if new {
            self.news.notify_one();
        }
        new
    }

    pub(crate) fn remove_endpoint(&self, address: SocketAddr) {
        let mut books = self.books.lock();
        // Streams there go on as long as they do.
        if let Some(endpoint) = books.endpoints.get_mut(&address)
            && !endpoint.leave()
        {
            books.endpoints.remove(&address);
        }
        self.served.gone(address);
        books.set_budget(self.settings().max_in_flight);
        books.note_readiness(Instant::now());
        self.news.notify_one();
    }

    pub(crate) fn drain_endpoint(self: &Arc<Self>, address: SocketAddr, draining: bool) {
        let changed = {
            let mut books = self.books.lock();
            let changed = books.endpoints.get_mut(&address).is_some_and(|e| e.drain(draining));
            books.note_readiness(Instant::now());
            changed
        };
        if changed {
            self.news.notify_one();
            self.release();
        }
    }

    /// The probe's word on one endpoint; true if that changed how it stands.
    pub(crate) fn probed(
        self: &Arc<Self>,
        address: SocketAddr,
        probe: Probe,
        word: Probed,
    ) -> bool {
        let now = Instant::now();
        let changed = {
            let mut books = self.books.lock();
            let last = books.is_last(address);
            let endpoint = books.endpoints.get_mut(&address);
            let changed = endpoint.is_some_and(|it| it.probed(probe, word, last, now));
            books.note_readiness(now);
            changed
        };
        if changed {
            self.release();
            self.news.notify_one();
        }
        changed
    }

    /// What one endpoint says that it serves.
    pub(crate) fn serves(self: &Arc<Self>, address: SocketAddr, models: Vec<ServedModel>) {
        if self.served.tell(address, models) {
            self.release();
        }
    }

    /// What to ask an endpoint now.
    pub(crate) fn probe_due(&self, address: SocketAddr) -> Option<Probe> {
        let mut books = self.books.lock();
        books.endpoints.get_mut(&address).and_then(|endpoint| endpoint.due(Instant::now()))
    }

    fn with_endpoint(&self, address: SocketAddr, change: impl FnOnce(&mut Endpoint)) {
        if let Some(endpoint) = self.books.lock().endpoints.get_mut(&address) {
            change(endpoint);
        }
    }

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

    /// Holds everything for a barrier, or lifts it.
    pub(crate) fn set_barrier(self: &Arc<Self>, barrier: Option<(u64, Duration)>) {
        {
            let mut books = self.books.lock();
            let before = books.barrier.map(|(epoch, _)| epoch);
            books.barrier = barrier.map(|(epoch, lease)| (epoch, Instant::now() + lease));
            if before != barrier.map(|(epoch, _)| epoch) {
                self.news.notify_one();
            }
        }
        self.release();
    }

    /// Once a second. A barrier that nobody renewed has run out: the scaler is gone, and what it
    /// wanted drained serves on, if its probe answers.
    pub(crate) fn tick(self: &Arc<Self>) {
        let ran_out = {
            let mut books = self.books.lock();
            books.turned_away = 0;
            let ran_out = books.barrier.is_some() && !books.barrier_is_up();
            if ran_out {
                books.barrier = None;
                for endpoint in books.endpoints.values_mut() {
                    endpoint.drain(false);
                }
                books.note_readiness(Instant::now());
            }
            ran_out
        };
        if ran_out {
            tracing::warn!("{}: the scaler is silent; serving with what answers", self.name);
        }
        self.release();
    }

    /// What the scaler has learned of starts, and how many replicas it wants.
    pub(crate) fn set_cold_start(&self, cold_start: Option<ColdStart>, desired: u32) {
        let mut books = self.books.lock();
        books.cold_start = cold_start;
        let starting = desired > 0 && books.none_ready.is_some();
        books.starting = starting.then(|| books.starting.unwrap_or_else(Instant::now));
    }

    // === books ===

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
        books.end_to_end.record(ended.took.as_secs_f64());
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

impl Books {
    /// A barrier that nobody renewed has run out: serving does not depend on the scaler.
    fn barrier_is_up(&self) -> bool {
        self.barrier.is_some_and(|(_, until)| Instant::now() < until)
    }

    /// Whether no other is ready.
    fn is_last(&self, address: SocketAddr) -> bool {
        let ready = |(other, endpoint): (&SocketAddr, &Endpoint)| {
            *other != address && endpoint.health() == Health::Ready
        };
        !self.endpoints.iter().any(ready)
    }

    fn set_budget(&mut self, limit: u32) {
        let count = u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX);
        self.budget.set_capacity(limit.saturating_mul(count));
    }

    fn note_readiness(&mut self, now: Instant) {
        let ready = self.endpoints.values().any(|endpoint| endpoint.health() == Health::Ready);
        match (ready, self.none_ready) {
            (true, Some(_)) => (self.none_ready, self.starting) = (None, None),
            (false, None) => self.none_ready = Some(now),
            _ => {}
        }
    }

    fn cold(&self, starts: bool) -> Cold {
        Cold { learned: self.cold_start, since: self.starting, starts }
    }

    /// Whether something that is no capacity now may become some by itself.
    fn any_starting(&self) -> bool {
        self.endpoints.values().any(|endpoint| endpoint.health() == Health::Starting)
    }

    /// When it makes sense to come back: once a replica is there, or in a second.
    fn retry_after(&self) -> Duration {
        match self.none_ready {
            Some(_) => self.cold(true).retry_after(Instant::now()),
            None => Duration::from_secs(1),
        }
    }
}

mod discovered;
mod reload;
#[cfg(test)]
mod tests;
