//! Silence of an endpoint that has work, and its consequences for the requests there.
//!
//! A working engine produces something every few seconds, whatever kind of work it has. If one has
//! work and produces nothing for `freezeTimeout`, it gets a one-token probe, and no new requests
//! meanwhile. If that brings nothing either, it is ejected. Requests without an answer go
//! elsewhere:
//!
//! - when the endpoint can't be reached for a second and nothing came meanwhile: the process that
//!   listened there is gone, and nothing comes on connections that stay open. A single failed
//!   connection shows nothing, and while bytes come the endpoint is finishing its work;
//! - after `freezeTimeout` if it accepts connections and answers nothing, not even `/health`;
//! - when its engine hangs, as soon as another endpoint is ready. A suspicion alone takes nothing
//!   away from the last endpoint.
//!
//! An answer that has begun may continue when the process wakes. If another replica can go on with it, it
//! leaves with the requests without an answer when the engine hangs. It ends when the endpoint can't be
//! reached for `freezeTimeout` and nothing came. A session may be silent, so it ends only where the
//! server in front of the engine is silent as well.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use forebay_scheduling::pick::EndpointId;
use forebay_scheduling::room::LimitRule;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::room::EndpointRoom;
use super::{Endpoint, Standing};

/// How long an endpoint can't be reached and sends nothing before it counts as gone.
pub(super) const GONE: Duration = Duration::from_secs(1);
/// How many microseconds after a beat a further one tells nothing new.
const SAME_BEAT: u64 = 10_000;

/// The time at which an endpoint's engine last produced something. Set for every chunk, without a
/// lock.
#[derive(Clone, Debug)]
pub(crate) struct Pulse(Arc<Beats>);

#[derive(Debug)]
struct Beats {
    since: Instant,
    micros: AtomicU64,
    /// Whether the next beat is reported. The endpoint is suspect, and the beat ends that.
    watched: AtomicBool,
    /// Where it is reported, and under which number.
    report: Option<(Arc<Awakened>, EndpointId)>,
}

/// Suspect endpoints whose engines produced something since. Written without the pool's lock.
#[derive(Debug, Default)]
pub(crate) struct Awakened {
    any: AtomicBool,
    ids: Mutex<Vec<EndpointId>>,
}

impl Awakened {
    fn add(&self, id: EndpointId) {
        self.ids.lock().push(id);
        self.any.store(true, Ordering::Release);
    }

    /// Takes all of them.
    pub(crate) fn take(&self) -> Vec<EndpointId> {
        if self.any.load(Ordering::Relaxed) && self.any.swap(false, Ordering::Acquire) {
            std::mem::take(&mut *self.ids.lock())
        } else {
            Vec::new()
        }
    }
}

impl Pulse {
    fn new(now: Instant, report: Option<(Arc<Awakened>, EndpointId)>) -> Self {
        let (micros, watched) = (AtomicU64::new(0), AtomicBool::new(false));
        Self(Arc::new(Beats { since: now, micros, watched, report }))
    }

    /// Notes that something came. Cheap enough for every chunk: most of them write nothing.
    pub(crate) fn beat(&self, now: Instant) {
        let beats = &*self.0;
        let micros = now.saturating_duration_since(beats.since).as_micros() as u64;
        let last = beats.micros.load(Ordering::Relaxed);
        let same = last > 0 && micros < last.saturating_add(SAME_BEAT);
        if same && !beats.watched.load(Ordering::Relaxed) {
            return;
        }
        // In one order with `watch`: either that sees this beat, or this sees that it is watched.
        beats.micros.fetch_max(micros, Ordering::SeqCst);
        if beats.watched.load(Ordering::SeqCst)
            && beats.watched.swap(false, Ordering::SeqCst)
            && let Some((awakened, id)) = &beats.report
        {
            awakened.add(*id);
        }
    }

    /// Has the next beat reported.
    fn watch(&self) {
        self.0.watched.store(true, Ordering::SeqCst);
    }

    fn last(&self) -> Instant {
        self.0.since + Duration::from_micros(self.0.micros.load(Ordering::SeqCst))
    }

    pub(super) fn silent(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last())
    }
}

/// The requests at an endpoint, and whether its engine works on them.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pub(super) pulse: Pulse,
    /// The arrival of the first request since it last produced something. Time without requests
    /// does not count: it moves this moment forward.
    owed_since: Instant,
    /// The time since which it has no work. Sessions may be silent, so they are not work.
    idle_since: Option<Instant>,
    in_flight: u32,
    /// Sessions among those in flight.
    sessions: u32,
    pub(super) room: EndpointRoom,
}

impl Work {
    pub(super) fn new(limit: LimitRule, now: Instant) -> Self {
        Self {
            pulse: Pulse::new(now, None),
            owed_since: now,
            idle_since: Some(now),
            in_flight: 0,
            sessions: 0,
            room: EndpointRoom::new(limit, now),
        }
    }

    /// Starts afresh for a new process, which owes no answer.
    pub(super) fn owe_nothing(&mut self, now: Instant) {
        self.owed_since = now;
        self.idle_since = self.idle_since.map(|_| now);
    }

    /// Notes the time if no work is left.
    fn rest(&mut self, now: Instant) {
        if self.in_flight <= self.sessions && self.idle_since.is_none() {
            self.owed_since = self.owed_since.max(self.pulse.last());
            self.idle_since = Some(now);
        }
    }

    /// When it will have had work for `freeze` and produced nothing; `None` without work.
    pub(super) fn suspect_at(&self, freeze: Duration) -> Option<Instant> {
        let since = self.idle_since.is_none().then(|| self.pulse.last().max(self.owed_since))?;
        since.checked_add(freeze)
    }
}

/// The signs for requests at an endpoint that they should leave it: tokens that are cancelled when they
/// have no hope of an answer there, and since when it drains.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evictions {
    /// For requests without an answer, which can be tried elsewhere.
    pub(crate) unanswered: CancellationToken,
    /// For answers that have begun.
    pub(crate) begun: CancellationToken,
    /// For answers that have begun, and with which another replica may go on.
    pub(crate) hung: CancellationToken,
    /// For sessions, which may be silent.
    pub(crate) sessions: CancellationToken,
    /// Since when the endpoint drains, if it does. All its requests share this.
    pub(crate) draining: Arc<watch::Sender<Option<Instant>>>,
}

impl Endpoint {
    pub(crate) fn pulse(&self) -> Pulse {
        self.work.pulse.clone()
    }

    pub(crate) fn evictions(&self) -> Arc<Evictions> {
        Arc::clone(&self.evictions)
    }

    /// The number of requests in flight there.
    pub(crate) fn in_flight(&self) -> u32 {
        self.work.in_flight
    }

    /// Counts a request that it is given.
    pub(crate) fn given(&mut self, now: Instant) {
        let work = &mut self.work;
        if let Some(since) = work.idle_since.take() {
            // It may still owe an answer to an earlier request, whose client left.
            let owes = work.pulse.last() <= work.owed_since;
            let idle = now.saturating_duration_since(since);
            work.owed_since = if owes { work.owed_since + idle } else { now };
        }
        work.in_flight += 1;
    }

    /// Counts the end of a request there.
    pub(crate) fn given_back(&mut self, session: bool, now: Instant) {
        let work = &mut self.work;
        work.in_flight = work.in_flight.saturating_sub(1);
        work.sessions = work.sessions.saturating_sub(u32::from(session));
        work.rest(now);
    }

    /// Notes that a request there became a session, which may be silent while its client is.
    pub(crate) fn session_began(&mut self, now: Instant) {
        self.work.pulse.beat(now);
        self.work.sessions += 1;
        self.work.rest(now);
    }

    /// Whether its engine may hang. If so, it is probed, and gets no new requests.
    pub(crate) fn is_suspect(&self, now: Instant) -> bool {
        self.work.suspect_at(self.rules.freeze).is_some_and(|at| at <= now)
    }

    /// The next moment at which time alone may change whether it gets requests, if there is one.
    pub(crate) fn changes_at(&self, now: Instant) -> Option<Instant> {
        let moments = [
            self.work.suspect_at(self.rules.freeze),
            self.behaviour.full_until,
            self.work.room.changes_at(),
        ];
        moments.into_iter().flatten().filter(|at| now < *at).min()
    }

    /// Has the end of its silence reported to `awakened`, with its number in the pool. Called
    /// before it gets requests.
    pub(crate) fn report_to(&mut self, awakened: &Arc<Awakened>, id: EndpointId, now: Instant) {
        self.work.pulse = Pulse::new(now, Some((Arc::clone(awakened), id)));
    }

    /// Has the end of its silence reported; false if it has ended already.
    pub(crate) fn watch_silence(&self, now: Instant) -> bool {
        self.work.pulse.watch();
        self.is_suspect(now)
    }

    /// Whether no connection to it can be made.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.probing.unreachable_since.is_some()
    }

    /// Whether it is ejected because its engine hangs, and its requests are still there.
    pub(crate) fn is_hung(&self) -> bool {
        matches!(self.standing, Standing::Ejected { hung: true, .. })
    }

    /// Sends requests without an answer elsewhere, and answers that another replica may continue, if
    /// nothing came since its engine hung.
    pub(crate) fn relieve(&mut self, now: Instant) {
        let suspect = self.is_suspect(now);
        if let Standing::Ejected { hung, .. } = &mut self.standing
            && *hung
            && suspect
        {
            *hung = false;
            self.evict_unanswered();
            std::mem::take(&mut self.evictions_mut().hung).cancel();
        }
    }

    /// The tokens of later requests. Those of present ones stay as they are.
    fn evictions_mut(&mut self) -> &mut Evictions {
        Arc::make_mut(&mut self.evictions)
    }

    /// Sends requests without an answer elsewhere. It does not concern later requests.
    pub(crate) fn evict_unanswered(&mut self) {
        std::mem::take(&mut self.evictions_mut().unanswered).cancel();
    }

    /// Evicts requests that have no hope of an answer, after a probe's outcome.
    pub(super) fn evict(&mut self, now: Instant) {
        if self.standing == Standing::Up {
            return;
        }
        let silent = self.work.pulse.silent(now);
        if let Some(since) = self.probing.unreachable_since {
            let gone = silent.min(now.saturating_duration_since(since));
            if gone >= GONE {
                self.evict_unanswered();
            }
            if gone >= self.rules.freeze {
                std::mem::take(&mut self.evictions_mut().begun).cancel();
                std::mem::take(&mut self.evictions_mut().sessions).cancel();
            }
        } else if self.probing.silent >= 2 && silent >= self.rules.freeze {
            self.evict_unanswered();
            std::mem::take(&mut self.evictions_mut().sessions).cancel();
        }
    }
}
