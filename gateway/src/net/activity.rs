//! One connection's books of time: when it has been idle, in a head or in an answer for too long.
//!
//! Milliseconds since the connection was accepted, in atomics: written where a request begins and
//! ends, read where the connection is driven, all on one thread.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use forebay_config::Limits;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;

/// No such moment. Moments are counted from 1.
const NEVER: u64 = 0;

/// What a connection is doing, for its time limits.
pub(crate) struct Activity {
    base: Instant,
    /// Whether one request follows another, as on HTTP/1.
    serial: bool,
    requests: AtomicU32,
    /// Where there is no request: since when.
    idle: AtomicU64,
    /// Where a head has begun: since when.
    head: AtomicU64,
    /// Where there is a request on a serial connection: since when.
    request: AtomicU64,
    /// Something came of a request that is not read to its end: of a body that nobody wants, or of
    /// a head that is none.
    unread: AtomicBool,
}

/// Why a connection is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// Nothing was asked for too long; not an error.
    Idle,
    /// A head did not arrive in time.
    Head,
    /// A client took too long over its answer.
    Total,
}

impl Activity {
    /// Of a connection that is new; its first head is waited for as if it had begun.
    pub(crate) fn new(now: Instant, serial: bool) -> Arc<Self> {
        Arc::new(Self {
            base: now,
            serial,
            requests: AtomicU32::new(0),
            idle: AtomicU64::new(1),
            head: AtomicU64::new(if serial { 1 } else { NEVER }),
            request: AtomicU64::new(NEVER),
            unread: AtomicBool::new(false),
        })
    }

    fn moment(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.base).as_millis()).unwrap_or(u64::MAX) + 1
    }

    fn after(&self, moment: u64, limit: Duration) -> Instant {
        // A day too far is as good as never, and adds up.
        let far = Duration::from_secs(10 * 365 * 24 * 3600);
        self.base + (Duration::from_millis(moment - 1) + limit).min(far)
    }

    /// Bytes came.
    pub(crate) fn received(&self, now: Instant) {
        if self.serial && self.requests.load(Relaxed) == 0 {
            self.unread.store(true, Relaxed);
            if self.head.load(Relaxed) == NEVER {
                self.head.store(self.moment(now), Relaxed);
            }
        }
    }

    /// A request's body was given up before its end.
    pub(crate) fn left_unread(&self) {
        self.unread.store(self.serial, Relaxed);
    }

    /// Our side is closed: what comes from now on begins nothing.
    pub(crate) fn closed(&self, now: Instant) {
        self.head.store(NEVER, Relaxed);
        self.idle.store(self.moment(now), Relaxed);
    }

    /// Whether the client may be sending what nobody reads.
    pub(crate) fn is_unread(&self) -> bool {
        self.unread.load(Relaxed)
    }

    /// Since when there has been no request, if there is none. A head on its way is none yet.
    pub(crate) fn unused(&self) -> Option<Instant> {
        let idle = (self.requests.load(Relaxed) == 0).then(|| self.idle.load(Relaxed).max(1))?;
        Some(self.after(idle, Duration::ZERO))
    }

    /// A head is complete, and with it there is a request.
    pub(crate) fn begin(self: &Arc<Self>, now: Instant) -> Arc<Flight> {
        let moment = self.moment(now);
        self.requests.fetch_add(1, Relaxed);
        self.head.store(NEVER, Relaxed);
        self.unread.store(false, Relaxed);
        self.request.store(moment, Relaxed);
        let blocked = AtomicU64::new(NEVER);
        Arc::new(Flight { activity: Arc::clone(self), begun: moment, blocked })
    }

    /// When something will be over unless more happens, and what.
    pub(crate) fn due(&self, limits: &Limits) -> (Instant, Over) {
        if self.requests.load(Relaxed) > 0 {
            // Where requests go side by side, each has its own alarm.
            let begun = if self.serial { self.request.load(Relaxed) } else { u64::MAX >> 1 };
            (self.after(begun, limits.total_timeout), Over::Total)
        } else if let head @ 1.. = self.head.load(Relaxed) {
            (self.after(head, limits.header_timeout), Over::Head)
        } else {
            (self.after(self.idle.load(Relaxed), limits.idle_timeout), Over::Idle)
        }
    }
}

/// One request, from its head to the last byte of its answer. Dropping it ends it.
pub(crate) struct Flight {
    activity: Arc<Activity>,
    begun: u64,
    /// Since when a piece of the answer waits to be sent.
    blocked: AtomicU64,
}

impl Flight {
    /// When this request will be over unless its client takes something.
    pub(crate) fn due(&self, now: Instant, limits: &Limits) -> Instant {
        let total = self.activity.after(self.begun, limits.total_timeout);
        let write = match self.blocked.load(Relaxed) {
            NEVER => now + limits.write_timeout,
            blocked => self.activity.after(blocked, limits.write_timeout),
        };
        total.min(write)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let activity = &self.activity;
        if activity.requests.fetch_sub(1, Relaxed) == 1 {
            activity.idle.store(activity.moment(Instant::now()), Relaxed);
        }
    }
}

/// An answer's body that notes whether the client takes it.
pub(crate) struct Watched<B> {
    body: B,
    flight: Arc<Flight>,
}

impl<B> Watched<B> {
    pub(crate) fn new(body: B, flight: Arc<Flight>) -> Self {
        Self { body, flight }
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Watched<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        // Asked for more: what was given before is on its way.
        self.flight.blocked.store(NEVER, Relaxed);
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_some() {
            let moment = self.flight.activity.moment(Instant::now());
            self.flight.blocked.store(moment, Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(120),
            total_timeout: Duration::from_secs(7200),
            ..Limits::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_in_a_head_then_in_a_request_then_idle() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let activity = Activity::new(start, true);
        let due = || {
            let (at, over) = activity.due(&limits());
            ((at - start).as_secs(), over)
        };
        assert_eq!(due(), (10, Over::Head), "the first head is waited for from the beginning");
        tokio::time::advance(3 * second).await;
        activity.received(Instant::now());
        assert_eq!(due(), (10, Over::Head), "drops of a head do not prolong it");
        let flight = activity.begin(Instant::now());
        assert_eq!(due(), (7203, Over::Total));
        activity.received(Instant::now());
        tokio::time::advance(2 * second).await;
        drop(flight);
        assert_eq!(due(), (80, Over::Idle), "a body's bytes are no head");
        tokio::time::advance(70 * second).await;
        activity.received(Instant::now());
        assert_eq!(due(), (85, Over::Head));
        tokio::time::advance(5 * second).await;
        activity.closed(Instant::now());
        assert_eq!(due(), (155, Over::Idle), "a head that was refused is not waited for");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_known_by_what_waits() {
        use http_body_util::{BodyExt, Full};
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let activity = Activity::new(start, false);
        let flight = activity.begin(start);
        let due = |flight: &Flight| (flight.due(Instant::now(), &limits()) - start).as_secs();
        tokio::time::advance(1000 * second).await;
        assert_eq!(due(&flight), 1120, "waiting for the answer is not the client's fault");
        let mut body = Watched::new(Full::from("x"), Arc::clone(&flight));
        body.frame().await.expect("a frame").expect("right");
        tokio::time::advance(100 * second).await;
        assert_eq!(due(&flight), 1120, "what was given has not gone out for so long");
        assert!(body.frame().await.is_none());
        tokio::time::advance(6000 * second).await;
        assert_eq!(due(&flight), 7200, "there is a limit to everything");
        assert_eq!(activity.due(&limits()).1, Over::Total);
        drop((body, flight));
        assert_eq!(activity.due(&limits()), (start + 7175 * second, Over::Idle));
    }
}
