//! A listener's places, and what each connection does with its own.
//!
//! A connection is waiting, in a request, or stuck in an answer that its client does not take; each
//! has its time limit. Where all places are taken the connection that has waited longest makes way,
//! those first that never asked anything: whoever only holds connections open keeps nobody out.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use metrics::Counter;
use parking_lot::Mutex;
use tokio::time::Instant;

/// What a listener allows.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at once.
    pub connections: usize,
    /// From accepted to the first request, and for each later head from its first byte.
    pub head: Duration,
    /// From a request's end to the next one's beginning; `None` where pings tell who is gone.
    pub idle: Option<Duration>,
    /// How long a client may take nothing of its answer.
    pub write: Duration,
    /// Several requests at once, as over HTTP/2: what comes between them is not a head.
    pub multiplexed: bool,
}

/// Who is connected; in each request's extensions.
#[derive(Clone)]
pub struct Peer {
    /// Where it connected from.
    pub address: SocketAddr,
    pub(crate) seat: Arc<Seat>,
}

/// One connection's place.
pub(crate) struct Seat {
    bounds: Bounds,
    state: Mutex<State>,
    /// Who drives the connection, to be woken when it is to end.
    pub(crate) driver: AtomicWaker,
}

struct State {
    requests: u32,
    /// It has asked something.
    asked: bool,
    /// Where there is no request: since when.
    since: Instant,
    /// Where a head has begun: since when.
    head: Option<Instant>,
    /// Where a piece of an answer waits to be sent: since when.
    blocked: Option<Instant>,
    /// Its place was given to another.
    lost: bool,
}

/// Why a connection is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Over {
    #[error("it made way for a new one")]
    MadeWay,
    #[error("no request came in time")]
    Head,
    #[error("nothing was asked for too long")]
    Idle,
    #[error("its answer was not taken")]
    Write,
}

impl Seat {
    pub(crate) fn new(bounds: Bounds, now: Instant) -> Arc<Self> {
        let state =
            State { requests: 0, asked: false, since: now, head: None, blocked: None, lost: false };
        Arc::new(Self { bounds, state: Mutex::new(state), driver: AtomicWaker::new() })
    }

    /// When it will be over unless more happens, and why.
    pub(crate) fn due(&self) -> Option<(Instant, Over)> {
        let (state, bounds) = (self.state.lock(), &self.bounds);
        if state.lost {
            Some((state.since, Over::MadeWay))
        } else if state.requests > 0 {
            Some((state.blocked? + bounds.write, Over::Write))
        } else if let Some(begun) = state.head.or((!state.asked).then_some(state.since)) {
            Some((begun + bounds.head, Over::Head))
        } else {
            Some((state.since + bounds.idle?, Over::Idle))
        }
    }

    /// Bytes came.
    pub(crate) fn received(&self, now: Instant) {
        let mut state = self.state.lock();
        if state.asked && state.requests == 0 && !self.bounds.multiplexed {
            state.head.get_or_insert(now);
        }
    }

    /// A head is complete; the request ends with what is returned.
    pub(crate) fn begin(self: &Arc<Self>) -> Flight {
        let mut state = self.state.lock();
        (state.asked, state.head) = (true, None);
        state.requests += 1;
        Flight(Arc::clone(self))
    }

    /// Its place is given to another.
    fn lose(&self) {
        self.state.lock().lost = true;
        self.driver.wake();
    }
}

/// One request, to the last byte of its answer. Dropping it ends it.
#[must_use = "dropping it ends the request"]
pub(crate) struct Flight(Arc<Seat>);

impl Flight {
    /// Whether a piece of the answer waits to be sent.
    pub(crate) fn blocked(&self, now: Option<Instant>) {
        // Where requests share a connection, one that waits does not speak for the others.
        if !self.0.bounds.multiplexed {
            self.0.state.lock().blocked = now;
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.requests -= 1;
        if state.requests == 0 {
            (state.since, state.blocked) = (Instant::now(), None);
        }
    }
}

/// The places of one listener.
pub(crate) struct Seats {
    bounds: Bounds,
    taken: Mutex<Taken>,
    closed: Counter,
}

#[derive(Default)]
struct Taken {
    next: u64,
    seats: BTreeMap<u64, Arc<Seat>>,
}

/// A place that is given back when this is dropped.
pub(crate) struct Place {
    seats: Arc<Seats>,
    number: u64,
}

impl Seats {
    pub(crate) fn new(bounds: Bounds, closed: Counter) -> Arc<Self> {
        Arc::new(Self { bounds, taken: Mutex::default(), closed })
    }

    /// A place for a new connection; `None` where every other is in a request.
    pub(crate) fn take(self: &Arc<Self>, now: Instant) -> Option<(Place, Arc<Seat>)> {
        let mut taken = self.taken.lock();
        if taken.seats.len() >= self.bounds.connections {
            self.closed.increment(1);
            let waits = |(number, seat): (&u64, &Arc<Seat>)| {
                let state = seat.state.lock();
                (state.requests == 0).then_some((state.asked, state.since, *number))
            };
            let (.., longest) = taken.seats.iter().filter_map(waits).min()?;
            if let Some(seat) = taken.seats.remove(&longest) {
                seat.lose();
            }
        }
        let (number, seat) = (taken.next, Seat::new(self.bounds, now));
        taken.next += 1;
        taken.seats.insert(number, Arc::clone(&seat));
        Some((Place { seats: Arc::clone(self), number }, seat))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.seats.taken.lock().seats.remove(&self.number);
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
    async fn each_thing_that_a_connection_does_has_its_limit() {
        let start = Instant::now();
        let seat = Seat::new(bounds(), start);
        let due = || seat.due().map(|(at, over)| ((at - start).as_secs(), over));
        let pass = |seconds| tokio::time::advance(SECOND * seconds);
        assert_eq!(due(), Some((10, Over::Head)));
        pass(9).await;
        seat.received(Instant::now());
        assert_eq!(due(), Some((10, Over::Head)), "drops of a head do not prolong it");
        let flight = seat.begin();
        assert_eq!(due(), None, "the answer is waited for");
        flight.blocked(Some(Instant::now()));
        assert_eq!(due(), Some((39, Over::Write)));
        pass(1).await;
        flight.blocked(None);
        assert_eq!(due(), None, "it was taken");
        drop(flight);
        assert_eq!(due(), Some((85, Over::Idle)));
        pass(20).await;
        seat.received(Instant::now());
        assert_eq!(due(), Some((40, Over::Head)));
    }

    #[tokio::test(start_paused = true)]
    async fn where_requests_share_a_connection_pings_are_not_heads() {
        let seat = Seat::new(Bounds { idle: None, multiplexed: true, ..bounds() }, Instant::now());
        assert_eq!(seat.due().map(|(_, over)| over), Some(Over::Head), "the first has its limit");
        let (first, second) = (seat.begin(), seat.begin());
        first.blocked(Some(Instant::now()));
        assert_eq!(seat.due(), None);
        drop((first, second));
        seat.received(Instant::now());
        assert_eq!(seat.due(), None, "pings tell who is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_waited_longest_makes_way_and_who_asked_nothing_first() {
        let seats = Seats::new(bounds(), Counter::noop());
        let take = || seats.take(Instant::now());
        let pass = || tokio::time::advance(SECOND);
        let is_lost = |seat: &Seat| seat.due().is_some_and(|(_, over)| over == Over::MadeWay);
        let (_asked_place, asked) = take().expect("room");
        drop(asked.begin());
        pass().await;
        let (_silent_place, silent) = take().expect("room");
        pass().await;
        let (_busy_place, busy) = take().expect("room");
        let flight = busy.begin();
        pass().await;
        let (place, new) = take().expect("the silent one's");
        assert!(is_lost(&silent) && !is_lost(&asked) && !is_lost(&busy));
        drop(place);
        let (_place, newer) = take().expect("one that was given back");
        assert!(!is_lost(&asked) && !is_lost(&new));
        let newer = newer.begin();
        let (_place, newest) = take().expect("the one's that waits between requests");
        assert!(is_lost(&asked));
        let _newest = newest.begin();
        assert!(take().is_none(), "requests are not ended for a new one");
        drop((flight, newer));
    }
}
