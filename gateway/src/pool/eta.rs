//! When held requests will start: for their clients, for operators, and to refuse those that can't
//! start in time.
//!
//! The estimate is made when a request arrives, and again each second, since replicas die, starts
//! fail, and requests take longer than expected.

use std::time::{Duration, SystemTime};

use forebay_config::{HoldOrder, PriorityClass};
use forebay_scheduling::eta::{Ahead, Outlook, Passed, TooLate, Wait};
use forebay_scheduling::queue::{Place, Walk};
use parking_lot::MutexGuard;
use serde::Serialize;
use tokio::time::Instant;

use super::Pool;
use super::scheduling::{Readiness, Release, Scheduling, Waiter};
use super::ticket::{Fallback, Ticket};

/// How soon the scaler reacts to a load at the latest. A request that was held for longer gets no
/// replica that is not starting yet.
const REACTION: Duration = Duration::from_secs(5);

/// The number of held requests that are estimated under one lock: less than a millisecond's work.
const SLICE: usize = 1000;

impl Waiter {
    /// Shows its client when it will start.
    pub(super) fn expect(&self, at: Option<Instant>) {
        if let Some(expected) = &self.expected {
            expected.set(at);
        }
    }

    /// How long it can be held in all.
    fn hold(&self) -> Duration {
        self.until.saturating_duration_since(self.since)
    }
}

/// A pool's held requests, for operators.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct QueueReport {
    pub(crate) pool: String,
    /// Requests held now.
    pub(crate) held: usize,
    /// How long one more request would wait behind all of them, in seconds; `null` if that is not
    /// known.
    pub(crate) expected_wait_seconds: Option<f64>,
    /// The next ones to be released, in their order.
    pub(crate) requests: Vec<QueuedRequest>,
}

/// One held request. Nothing that its client wrote is in it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct QueuedRequest {
    /// The number of its arrival in the pool, as in the access log.
    pub(crate) seq: u64,
    pub(crate) tenant: String,
    pub(crate) class: PriorityClass,
    /// When it was accepted, in milliseconds since the epoch.
    pub(crate) since_millis: u64,
    /// When it will start, in milliseconds since the epoch; `null` if that is not known.
    pub(crate) expected_millis: Option<u64>,
    /// When it is refused if it has not started, in milliseconds since the epoch.
    pub(crate) until_millis: u64,
    /// Estimated tokens of the prompt and the longest answer.
    pub(crate) tokens: u64,
    /// It has failed at a replica, and is tried again.
    pub(crate) again: bool,
    /// It can no longer meet the objective, and lets those go first that can.
    pub(crate) late: bool,
}

impl Scheduling {
    /// How long a request would wait behind all that are held; `None` if that is not known.
    pub(super) fn expected_wait(
        &self,
        settings: &forebay_config::Pool,
        now: Instant,
    ) -> Option<Duration> {
        if self.queue.depth() == 0 && self.endpoints.candidates().have_room() {
            return Some(Duration::ZERO);
        }
        self.outlook(settings, now).expected(self.queue.depth())
    }

    /// The moment from which a release of a request that was accepted then is too late for the
    /// objective, as the queue counts time; `None` if the order does not depend on that, or if no
    /// endpoint is ready: what waits for a cold start keeps its place.
    pub(super) fn late_from(
        &self,
        settings: &forebay_config::Pool,
        accepted: Instant,
    ) -> Option<Duration> {
        let counts = settings.hold.order == HoldOrder::Objective;
        let objective = settings.scaling.objective.ttft;
        let Readiness { none_since, times, .. } = &self.readiness;
        (counts && none_since.is_none())
            .then(|| times.first_token.late_from(self.at(accepted), objective))
    }

    /// When a client that was refused should come back: once those that are held have started.
    pub(super) fn retry_after(&self, settings: &forebay_config::Pool, now: Instant) -> Duration {
        self.outlook(settings, now).retry_after(self.queue.depth())
    }
}

impl Scheduling {
    /// Estimates when the next [`SLICE`] requests of a walk will start; false if it is over. `passed`:
    /// the requests that start before them.
    fn estimate_slice(
        &mut self,
        settings: &forebay_config::Pool,
        (walk, passed): (&mut Walk, &mut Passed),
        now: Instant,
    ) -> bool {
        let outlook = self.outlook(settings, now);
        let decided = Outlook { more_starts: 0, ..outlook };
        let comparable = !self.endpoints.candidates().lists_differ();
        let (mut looked_at, mut too_late) = (0, Vec::new());
        while looked_at < SLICE
            && let Some((place, entry, waiter)) = walk.next(&self.queue)
        {
            looked_at += 1;
            let longest = waiter.until.saturating_duration_since(now);
            let held = now.saturating_duration_since(waiter.since);
            let outlook = if held < REACTION { &outlook } else { &decided };
            let wait = Wait { longest, fallback: waiter.fallback, held: true };
            let ahead = passed.before(entry, outlook.now, waiter.hold());
            let late = (waiter.first && comparable)
                .then(|| outlook.cannot_start_in_time(ahead, wait))
                .flatten();
            match late {
                Some(late) => too_late.push((place, late)),
                None => {
                    waiter.expect(outlook.expected(ahead).map(|wait| now + wait));
                    passed.pass(entry, outlook.now);
                }
            }
        }
        for (place, late) in too_late {
            if let Some((_, waiter)) = self.queue.remove(place) {
                self.backlog.refused += 1;
                // Its client may have left meanwhile.
                let _ = waiter.release.send(Release::TooLate(late));
            }
        }
        looked_at == SLICE
    }
}

impl Pool {
    /// The requests that start before one that arrives.
    pub(super) fn ahead(
        &self,
        state: &Scheduling,
        (place, ticket): (Place, &Ticket),
        now: Instant,
    ) -> Ahead {
        let settings = self.settings();
        let until = ticket.waits_until(settings.hold.timeout, now);
        let hold = until.saturating_duration_since(now);
        // The requests before it may wait for endpoints that this one does not need.
        let comparable = !state.endpoints.candidates().lists_differ();
        let late_from = ticket.entry.late_from.filter(|_| comparable);
        state.outlook(&settings, now).ahead(&state.queue, place, late_from, hold)
    }

    /// Why a request that arrives can't start in time, if that is so. It counts as demand.
    pub(super) fn cannot_start_in_time(
        &self,
        state: &mut Scheduling,
        (ahead, ticket): (Ahead, &Ticket),
        now: Instant,
    ) -> Option<TooLate> {
        let settings = self.settings();
        let outlook = state.outlook(&settings, now);
        let until = ticket.waits_until(settings.hold.timeout, now);
        let longest = until.saturating_duration_since(now);
        let longest = settings.hold.max_wait.map_or(longest, |most| longest.min(most));
        let fallback = ticket.fallback != Fallback::None;
        let wait = Wait { longest, fallback, held: false };
        let too_late = outlook.cannot_start_in_time(ahead, wait)?;
        // The requests before it may wait for endpoints that this one does not need.
        if state.endpoints.candidates().lists_differ()
            || state.pick(&ticket.requirements, now).is_some()
        {
            return None;
        }
        state.backlog.refused += 1;
        self.changed.notify_one();
        Some(too_late)
    }

    /// Estimates anew when each held request will start, shows it to the clients that get heartbeats,
    /// and ends the hold of those that no longer can start in time. Others get the pool's lock after
    /// each [`SLICE`].
    pub(super) fn estimate(&self, now: Instant) {
        let settings = self.settings();
        let mut state = self.scheduling.lock();
        if state.queue.depth() == 0 {
            return;
        }
        if settings.hold.order == HoldOrder::Objective {
            state.readiness.times.first_token.learn(&self.figures.sums().upstream_ttft);
        }
        let at = state.at(now);
        state.queue.advance(at);
        let (mut walk, mut passed) = (state.queue.walk(), Passed::none(&state.queue));
        while state.estimate_slice(&settings, (&mut walk, &mut passed), now) {
            MutexGuard::bump(&mut state);
        }
        let deferred = self.note_depth(&mut state);
        drop(state);
        deferred.run(self);
    }

    /// The next held requests, at most `limit` of them.
    pub(crate) fn queue_report(&self, limit: usize) -> QueueReport {
        let settings = self.settings();
        let state = self.scheduling.peek();
        let (now, wall) = (Instant::now(), SystemTime::now());
        let epoch = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let millis = |at: Instant| {
            let later = at.saturating_duration_since(now);
            let earlier = now.saturating_duration_since(at);
            (epoch + later).saturating_sub(earlier).as_millis() as u64
        };
        let expected_wait_seconds =
            state.expected_wait(&settings, now).map(|wait| wait.as_secs_f64());
        let at = state.at(now);
        let outlook = state.outlook(&settings, now);
        let (mut requests, mut passed) = (Vec::new(), Passed::none(&state.queue));
        for (place, entry, waiter) in state.queue.releases().take(limit) {
            let expected = outlook.expected(passed.before(entry, at, waiter.hold()));
            passed.pass(entry, at);
            requests.push(QueuedRequest {
                seq: place.seq,
                tenant: entry.tenant.to_string(),
                class: entry.class,
                since_millis: millis(waiter.accepted),
                expected_millis: expected.map(|wait| millis(now + wait)),
                until_millis: millis(waiter.until),
                tokens: entry.tokens,
                again: !waiter.first,
                late: entry.late_from.is_some_and(|from| from <= at),
            });
        }
        QueueReport {
            pool: self.name.to_string(),
            held: state.queue.depth(),
            expected_wait_seconds,
            requests,
        }
    }
}
