//! The open connections of a listener, and the activity of each.
//!
//! A connection waits, has a request in flight, or is blocked by a client that does not read its
//! answer; each state has its time limit. When the table is full, the connection that has waited
//! longest makes way for a new one, and first those that never sent a request: a client that only
//! holds connections open keeps no other client out.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use metrics::Counter;
use parking_lot::Mutex;
use tokio::time::Instant;

/// The limits of a listener.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at once.
    pub connections: usize,
    /// Time from acceptance to the end of the first head, and for each later head from its first byte.
    pub head: Duration,
    /// Time from a request's end to the next one's beginning; `None` if pings detect lost clients.
    pub idle: Option<Duration>,
    /// How long a client may leave its answer unread.
    pub write: Duration,
    /// Whether a connection carries several requests at once, as in HTTP/2; bytes between them are not
    /// a head.
    pub multiplexed: bool,
}

/// The client of a connection; in each request's extensions.
#[derive(Clone)]
pub struct Peer {
    /// The address that it connects from.
    pub address: SocketAddr,
    pub(crate) activity: Arc<Activity>,
}

/// The activity of one connection, as far as its time limits need it.
pub(crate) struct Activity {
    bounds: Bounds,
    state: Mutex<State>,
    /// Wakes the task that drives the connection, so that it ends.
    pub(crate) driver: AtomicWaker,
}

struct State {
    requests: u32,
    /// Whether it has sent a request.
    had_request: bool,
    /// The time since which it has no request.
    since: Instant,
    /// The beginning of a head that is not complete.
    head: Option<Instant>,
    /// The time since which a piece of an answer waits to be sent.
    blocked: Option<Instant>,
    /// Whether it has made way for another.
    lost: bool,
}

/// Why a connection is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CloseReason {
    #[error("it made way for a new one")]
    MadeWay,
    #[error("no request came in time")]
    Head,
    #[error("no request came for too long")]
    Idle,
    #[error("its answer was not taken")]
    Write,
}

impl Activity {
    pub(crate) fn new(bounds: Bounds, now: Instant) -> Arc<Self> {
        let state = State {
            requests: 0,
            had_request: false,
            since: now,
            head: None,
            blocked: None,
            lost: false,
        };
        Arc::new(Self { bounds, state: Mutex::new(state), driver: AtomicWaker::new() })
    }

    /// The time at which the connection ends unless more happens, and the reason.
    pub(crate) fn due(&self) -> Option<(Instant, CloseReason)> {
        let (state, bounds) = (self.state.lock(), &self.bounds);
        if state.lost {
            Some((state.since, CloseReason::MadeWay))
        } else if state.requests > 0 {
            Some((state.blocked? + bounds.write, CloseReason::Write))
        } else if let Some(begun) = state.head.or((!state.had_request).then_some(state.since)) {
            Some((begun + bounds.head, CloseReason::Head))
        } else {
            Some((state.since + bounds.idle?, CloseReason::Idle))
        }
    }

    /// Notes that bytes have come.
    pub(crate) fn received(&self, now: Instant) {
        let mut state = self.state.lock();
        if state.had_request && state.requests == 0 && !self.bounds.multiplexed {
            state.head.get_or_insert(now);
        }
    }

    /// Notes a complete head. The request ends when the returned guard is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> InFlight {
        let mut state = self.state.lock();
        (state.had_request, state.head) = (true, None);
        state.requests += 1;
        InFlight(Arc::clone(self))
    }

    /// Makes way for another connection.
    fn lose(&self) {
        self.state.lock().lost = true;
        self.driver.wake();
    }
}

/// One request in flight, to the last byte of its answer.
#[must_use = "dropping it ends the request"]
pub(crate) struct InFlight(Arc<Activity>);

impl InFlight {
    /// Notes since when a piece of the answer waits to be sent; `None` if none does.
    pub(crate) fn blocked(&self, now: Option<Instant>) {
        // A connection that carries several requests is not blocked because one of them is.
        if !self.0.bounds.multiplexed {
            self.0.state.lock().blocked = now;
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.requests -= 1;
        if state.requests == 0 {
            (state.since, state.blocked) = (Instant::now(), None);
        }
    }
}

/// The open connections of one listener, up to its bound.
pub(crate) struct ConnectionTable {
    bounds: Bounds,
    open: Mutex<Open>,
    closed: Counter,
}

#[derive(Default)]
struct Open {
    next: u64,
    activities: BTreeMap<u64, Arc<Activity>>,
}

/// One connection's entry in the table, until this is dropped.
pub(crate) struct TableEntry {
    table: Arc<ConnectionTable>,
    number: u64,
}

impl ConnectionTable {
    pub(crate) fn new(bounds: Bounds, closed: Counter) -> Arc<Self> {
        Arc::new(Self { bounds, open: Mutex::default(), closed })
    }

    /// Enters a new connection, if need be in place of a waiting one. `None` if the table is full and
    /// every connection has a request in flight.
    pub(crate) fn take(self: &Arc<Self>, now: Instant) -> Option<(TableEntry, Arc<Activity>)> {
        let mut open = self.open.lock();
        if open.activities.len() >= self.bounds.connections {
            self.closed.increment(1);
            let waits = |(number, activity): (&u64, &Arc<Activity>)| {
                let state = activity.state.lock();
                (state.requests == 0).then_some((state.had_request, state.since, *number))
            };
            let (.., longest) = open.activities.iter().filter_map(waits).min()?;
            if let Some(activity) = open.activities.remove(&longest) {
                activity.lose();
            }
        }
        let (number, activity) = (open.next, Activity::new(self.bounds, now));
        open.next += 1;
        open.activities.insert(number, Arc::clone(&activity));
        Some((TableEntry { table: Arc::clone(self), number }, activity))
    }
}

impl Drop for TableEntry {
    fn drop(&mut self) {
        self.table.open.lock().activities.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn bounds() -> Bounds {
        Bounds {
            connections: 3,
            head: 10 * SECOND,
            idle: Some(75 * SECOND),
            write: 30 * SECOND,
            multiplexed: false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_state_of_a_connection_has_its_time_limit() {
        let start = Instant::now();
        let activity = Activity::new(bounds(), start);
        let due = || activity.due().map(|(at, reason)| ((at - start).as_secs(), reason));
        let pass = |seconds| tokio::time::advance(SECOND * seconds);
        assert_eq!(due(), Some((10, CloseReason::Head)));
        pass(9).await;
        activity.received(Instant::now());
        assert_eq!(due(), Some((10, CloseReason::Head)), "drops of a head do not prolong it");
        let in_flight = activity.begin();
        assert_eq!(due(), None, "the client waits for its answer");
        in_flight.blocked(Some(Instant::now()));
        assert_eq!(due(), Some((39, CloseReason::Write)));
        pass(1).await;
        in_flight.blocked(None);
        assert_eq!(due(), None, "it was taken");
        drop(in_flight);
        assert_eq!(due(), Some((85, CloseReason::Idle)));
        pass(20).await;
        activity.received(Instant::now());
        assert_eq!(due(), Some((40, CloseReason::Head)));
    }

    #[tokio::test(start_paused = true)]
    async fn where_requests_share_a_connection_pings_are_not_heads() {
        let activity =
            Activity::new(Bounds { idle: None, multiplexed: true, ..bounds() }, Instant::now());
        assert_eq!(
            activity.due().map(|(_, reason)| reason),
            Some(CloseReason::Head),
            "the first has its limit"
        );
        let (first, second) = (activity.begin(), activity.begin());
        first.blocked(Some(Instant::now()));
        assert_eq!(activity.due(), None);
        drop((first, second));
        activity.received(Instant::now());
        assert_eq!(activity.due(), None, "pings detect lost clients");
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_that_waited_longest_makes_way_and_silent_ones_first() {
        let table = ConnectionTable::new(bounds(), Counter::noop());
        let take = || table.take(Instant::now());
        let pass = || tokio::time::advance(SECOND);
        let is_lost = |activity: &Activity| {
            activity.due().is_some_and(|(_, reason)| reason == CloseReason::MadeWay)
        };
        let (_idle_entry, idle) = take().expect("room");
        drop(idle.begin());
        pass().await;
        let (_silent_entry, silent) = take().expect("room");
        pass().await;
        let (_busy_entry, busy) = take().expect("room");
        let in_flight = busy.begin();
        pass().await;
        let (entry, new) = take().expect("the silent one's");
        assert!(is_lost(&silent) && !is_lost(&idle) && !is_lost(&busy));
        drop(entry);
        let (_entry, newer) = take().expect("a free entry");
        assert!(!is_lost(&idle) && !is_lost(&new));
        let newer = newer.begin();
        let (_entry, newest) = take().expect("the idle one's");
        assert!(is_lost(&idle));
        let _newest = newest.begin();
        assert!(take().is_none(), "requests are not ended for a new one");
        drop((in_flight, newer));
    }
}
