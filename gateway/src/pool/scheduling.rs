//! The state that scheduling needs, read and written only under the pool's lock.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use forebay_scheduling::eta::{Outlook, ServiceTime, Starts, TooLate};
use forebay_scheduling::objective::FirstTokenTime;
use forebay_scheduling::pick::{
    CacheReport, CachedTokens, Choice, EndpointId, Given, Learned, Picker, Requirements,
};
use forebay_scheduling::queue::{Entry, Place, Queue};
use forebay_scheduling::retry_budget::RetryBudget;
use forebay_signals::{ColdStart, FailedStart, Waiting};
use forebay_telemetry::context::TraceContext;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::expected_start::ExpectedStart;
use super::slot::Slot;
use crate::pool::endpoint_set::EndpointSet;

/// The longest time that a client is asked to stay away.
const LONGEST_RETRY: Duration = Duration::from_secs(3600);

pub(super) struct Scheduling {
    pub(super) queue: Queue<Box<Waiter>>,
    pub(super) endpoints: EndpointSet,
    /// Chooses an endpoint for a request.
    picker: Picker,
    /// The moment from which the picker's times count.
    began: Instant,
    /// Pods that have no address yet, by name.
    pub(super) pending_pods: BTreeMap<String, PendingPod>,
    pub(super) budget: RetryBudget,
    pub(super) barrier: Option<ZeroBarrier>,
    pub(super) readiness: Readiness,
    /// The scaler's report that no start succeeds, while no endpoint is ready.
    pub(super) failed_start: Option<ReportedFailedStart>,
    pub(super) admitted: Admitted,
    pub(super) backlog: Backlog,
    /// Whether the pool has been removed from the configuration.
    pub(super) closed: bool,
}

/// A pod without an address, with Kubernetes' short reason.
pub(super) type PendingPod = (Waiting, String);

/// A held request's side of its release.
pub(super) struct Waiter {
    pub(super) release: oneshot::Sender<Release>,
    pub(super) requirements: Requirements,
    pub(super) accepted: Instant,
    /// It has not been released before.
    pub(super) first: bool,
    /// The beginning of this hold.
    pub(super) since: Instant,
    /// The time that it was held before, between earlier tries.
    pub(super) held_before: Duration,
    /// The moment until which it can wait.
    pub(super) until: Instant,
    /// Whether another pool can serve it instead.
    pub(super) fallback: bool,
    /// Shows the client when it will start, if it gets heartbeats.
    pub(super) expected: Option<Arc<ExpectedStart>>,
    /// Its place in its trace, if it is traced.
    pub(super) trace: Option<TraceContext>,
}

/// A request out of the queue.
pub(super) type HeldWaiter = (Place, Entry, Box<Waiter>);

/// The end of a hold.
pub(super) enum Release {
    /// An endpoint has room for the request. Boxed: each held request keeps room for this.
    Slot(Box<Slot>),
    /// Something has happened, and now it can't start in time.
    TooLate(TooLate),
}

/// The zero barrier. While it is up, the gateway holds every request.
#[derive(Clone, Copy)]
pub(super) struct ZeroBarrier {
    pub(super) epoch: u64,
    pub(super) until: Instant,
}

/// The scaler's report that a pool's replicas can't be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReportedFailedStart {
    pub(super) report: FailedStart,
    /// The time at which it ceases to count unless the scaler repeats it.
    pub(super) until: Instant,
    /// When the next start begins.
    pub(super) next_try: Option<Instant>,
}

/// Whether the pool can serve, and when it will.
pub(super) struct Readiness {
    /// The time since which no endpoint has been ready; `None` if one is.
    pub(super) none_since: Option<Instant>,
    /// How many replicas the scaler wants.
    desired: usize,
    /// The starts under way.
    starts: Starts,
    pub(super) times: LearnedTimes,
}

/// The times that a pool has learned.
#[derive(Default)]
pub(super) struct LearnedTimes {
    /// The scaler's figures of cold starts.
    cold_start: Option<ColdStart>,
    /// How long requests keep their places at endpoints.
    pub(super) service: ServiceTime,
    /// How long first tokens take.
    pub(super) first_token: FirstTokenTime,
}

/// Sums of the requests that the pool admitted, each counted once over all its tries.
#[derive(Default)]
pub(super) struct Admitted {
    pub(super) accepted: u64,
    pub(super) accepted_prompt_tokens: u64,
    pub(super) released: u64,
    /// A gauge: estimated tokens of the requests at endpoints now.
    pub(super) in_flight_tokens: u64,
}

/// How the queue grows and shrinks, for the scaler and the log.
#[derive(Default)]
pub(super) struct Backlog {
    /// The depth that the next doubling counts from.
    reported_depth: usize,
    /// Requests refused since the last tick because they could not start in time, or no replica can
    /// start. They are demand too, so they count into the reported queue depth.
    pub(super) refused: u32,
    /// Requests released since the queue was last empty, and the longest time one of them was held.
    burst: (u64, Duration),
}

/// The [kinds](Entry::kind) of requests for which no endpoint has room, while no room is given back: the
/// policy is asked once for each.
#[derive(Default)]
pub(super) struct Unplaced(HashSet<u64>);

impl Scheduling {
    pub(super) fn new(settings: &forebay_config::Pool, now: Instant) -> Self {
        let hold = &settings.hold;
        let mut scheduling = Self {
            queue: Queue::bounded(hold.max_requests as usize, hold.max_bytes.bytes()),
            endpoints: EndpointSet::default(),
            picker: Picker::new(settings.pick, rand::random()),
            began: now,
            pending_pods: BTreeMap::new(),
            budget: RetryBudget::new(Duration::ZERO),
            barrier: None,
            readiness: Readiness {
                none_since: Some(now),
                desired: 0,
                starts: Starts::default(),
                times: LearnedTimes::default(),
            },
            failed_start: None,
            admitted: Admitted::default(),
            backlog: Backlog::default(),
            closed: false,
        };
        scheduling.set_policy(settings.pick);
        scheduling.queue.set_lower_share(settings.hold.lower_class_share);
        scheduling
    }

    /// Changes the policy that chooses endpoints; true if it was another one.
    pub(super) fn set_policy(&mut self, policy: forebay_config::Pick) -> bool {
        self.endpoints.set_policy(&mut self.picker, policy)
    }

    // === endpoints ===

    /// Whether the zero barrier is up. It falls when the scaler does not renew its lease: serving
    /// does not depend on the scaler.
    pub(super) fn barrier_is_up(&self, now: Instant) -> bool {
        self.barrier.is_some_and(|barrier| now < barrier.until)
    }

    /// Whether nothing waits, and time alone changes nothing that reports show.
    pub(super) fn is_at_rest(&self, now: Instant) -> bool {
        let leases = self.barrier.is_some() || self.failed_start.is_some();
        let demand = self.queue.depth() > 0 || self.backlog.refused > 0;
        let moves = !self.endpoints.moves.is_empty();
        // Without room, the expected wait depends on the time.
        let have_room = self.endpoints.candidates().have_room();
        have_room && !leases && !demand && !moves && !self.endpoints.is_due(now)
    }

    /// The endpoint that the policy finds for a request now.
    pub(super) fn pick(&mut self, request: &Requirements, now: Instant) -> Option<Choice> {
        if self.barrier_is_up(now) {
            return None;
        }
        self.endpoints.advance(now);
        let at = self.at(now);
        self.picker.pick(self.endpoints.candidates(), request, at)
    }

    /// Shows the picker that a request is at the endpoint that was chosen for it.
    pub(super) fn given(
        &mut self,
        choice: Choice,
        request: &Requirements,
        now: Instant,
    ) -> Option<Box<Given>> {
        let at = self.at(now);
        self.picker.given(self.endpoints.candidates(), choice, request, at)
    }

    /// Shows the picker the first token of a request.
    pub(super) fn first_token(&mut self, given: &mut Given, now: Instant) {
        let at = self.at(now);
        self.picker.first_token(given, at);
    }

    /// Shows the picker the end of a request. See [`Picker::ended`].
    pub(super) fn ended(
        &mut self,
        given: &Given,
        complete: bool,
        now: Instant,
    ) -> Option<CachedTokens> {
        let at = self.at(now);
        self.picker.ended(given, complete, at)
    }

    /// Removes an endpoint.
    pub(super) fn remove_endpoint(&mut self, id: EndpointId) {
        self.endpoints.remove(id);
        self.picker.removed(id);
    }

    /// The picker's knowledge of an endpoint; `None` if it learns nothing of it.
    pub(super) fn learned(&self, id: EndpointId, now: Instant) -> Option<Learned> {
        let process = self.endpoints.get(id)?.process().id();
        self.picker.learned(id, process, self.at(now))
    }

    /// Whether the picker wants an endpoint's report about its cache.
    pub(super) fn wants_cache_report(&mut self, id: EndpointId) -> bool {
        let process = self.endpoints.candidates().get(id).map(|candidate| candidate.process);
        process.is_some_and(|process| self.picker.wants_report(id, process))
    }

    /// Shows the picker an endpoint's report about its cache.
    pub(super) fn cache_reported(&mut self, id: EndpointId, report: &CacheReport) {
        if let Some(candidate) = self.endpoints.candidates().get(id) {
            self.picker.reported(id, candidate.process, report);
        }
    }

    /// A moment as the picker and the queue count time.
    pub(super) fn at(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    /// Takes the first held request that the policy finds an endpoint for.
    pub(super) fn pop_releasable(
        &mut self,
        unplaced: &mut Unplaced,
        now: Instant,
    ) -> Option<(Choice, HeldWaiter)> {
        if self.queue.depth() == 0 || self.barrier_is_up(now) {
            return None;
        }
        self.endpoints.advance(now);
        let at = self.at(now);
        self.queue.advance(at);
        let (picker, candidates) = (&mut self.picker, self.endpoints.candidates());
        if !candidates.have_room() {
            return None;
        }
        let mut picked = None;
        let popped = self.queue.pop_first(|entry, waiter| {
            if unplaced.0.contains(&entry.kind) {
                return false;
            }
            picked = picker.pick(candidates, &waiter.requirements, at);
            if picked.is_none() {
                unplaced.0.insert(entry.kind);
            }
            picked.is_some()
        });
        picked.zip(popped)
    }

    /// Sets the retry budget's capacity: all endpoints together, each with `limit` requests in
    /// flight.
    pub(super) fn set_budget(&mut self, limit: u32) {
        let count = u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX);
        self.budget.set_capacity(limit.saturating_mul(count));
    }

    /// Notes when the pool became ready or ceased to be. Called after each change of an endpoint.
    pub(super) fn note_readiness(&mut self, now: Instant) {
        let ready = self.endpoints.any_ready();
        if ready {
            self.failed_start = None;
        }
        let readiness = &mut self.readiness;
        match (ready, readiness.none_since) {
            (true, Some(_)) => readiness.none_since = None,
            (false, None) => {
                readiness.none_since = Some(now);
                let at = self.at(now);
                self.queue.keep_places(at);
            }
            _ => {}
        }
        self.count_starts(now);
    }

    /// Takes the scaler's figures of cold starts, how many replicas it wants, and how many of their
    /// starts have failed since its last report.
    pub(super) fn set_cold_start(
        &mut self,
        learned: Option<ColdStart>,
        desired: u32,
        failed: usize,
        now: Instant,
    ) {
        let at = self.at(now);
        self.readiness.times.cold_start = learned;
        self.readiness.desired = desired as usize;
        self.readiness.starts.failed(failed, at);
        self.count_starts(now);
    }

    /// Whether these are the scaler's figures of cold starts, and the replicas that it wants.
    pub(super) fn has_cold_start(&self, learned: Option<ColdStart>, desired: u32) -> bool {
        let Readiness { desired: known, times, starts, .. } = &self.readiness;
        let (desired, serving) = (desired as usize, self.endpoints.serving());
        let counted = starts.count() == desired.saturating_sub(serving);
        counted && *known == desired && times.cold_start == learned
    }

    /// Notes how many starts are under way: the replicas that are wanted and can't serve yet.
    fn count_starts(&mut self, now: Instant) {
        let (at, serving) = (self.at(now), self.endpoints.serving());
        let readiness = &mut self.readiness;
        readiness.starts.set(readiness.desired.saturating_sub(serving), at);
    }

    /// The pool's knowledge of its future. `settings`: the pool's own.
    pub(super) fn outlook(&self, settings: &forebay_config::Pool, now: Instant) -> Outlook<'_> {
        let Readiness { starts, times, .. } = &self.readiness;
        let there = self.endpoints.serving() + starts.count();
        let most = match &settings.target {
            Some(_) => settings.scaling.max_replica_count as usize,
            None => usize::from(self.endpoints.any_starting()),
        };
        Outlook {
            now: self.at(now),
            places: self.endpoints.places(),
            service: times.service,
            starts,
            learned: times.cold_start,
            places_of_start: self.endpoints.usual_limit(settings).into(),
            more_starts: u32::try_from(most.saturating_sub(there)).unwrap_or(u32::MAX),
        }
    }

    /// How long a start takes from its beginning: as learned, or a second.
    pub(super) fn learned_start(&self) -> Duration {
        let second = Duration::from_secs(1);
        let learned = self.readiness.times.cold_start.map_or(1.0, |learned| learned.p90_seconds);
        Duration::try_from_secs_f64(learned).unwrap_or(second).clamp(second, LONGEST_RETRY)
    }
}

impl Backlog {
    /// Counts a release; `held`: the request's time in the queue. Once the queue is empty, returns
    /// the burst that has ended.
    pub(super) fn released(&mut self, held: Duration, depth: usize) -> Option<(u64, Duration)> {
        self.burst = (self.burst.0 + 1, self.burst.1.max(held));
        (depth == 0).then(|| std::mem::take(&mut self.burst))
    }

    /// Notes the depth; true if the scaler should hear of it at once, because the queue left zero,
    /// reached it, or doubled.
    pub(super) fn note_depth(&mut self, depth: usize) -> bool {
        let before = self.reported_depth;
        let report = (depth == 0) != (before == 0) || depth >= before.saturating_mul(2).max(1);
        if report || depth < before / 2 {
            self.reported_depth = depth;
        }
        report
    }

    /// Whether the queue was empty when its depth was noted last.
    pub(super) fn was_empty(&self) -> bool {
        self.reported_depth == 0
    }
}
