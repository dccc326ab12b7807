//! The time limits of one client connection: how long it may be idle, in a head, or in an answer.
//!
//! Times are milliseconds since the connection was accepted, in atomics: written where a request
//! begins and ends, read where the connection is driven, all on one thread. The clock is read once
//! for each poll of the connection.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use forebay_config::Limits;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;

use crate::wire::lines::{BringsLines, HeaderLines};

/// The value of a moment that has not come. Moments count from 1.
const NEVER: u64 = 0;

/// The state of a connection, as far as its time limits need it.
pub(crate) struct Activity {
    base: Instant,
    /// The time of the present poll.
    now: AtomicU64,
    /// Whether one request follows another, as on HTTP/1.
    serial: bool,
    requests: AtomicU32,
    /// When it last became idle.
    idle: AtomicU64,
    /// When the head that is arriving began.
    head: AtomicU64,
    /// When the last request began.
    request: AtomicU64,
    /// Data has come that no request reads: the rest of an unwanted body, or a part of a head.
    unread: AtomicBool,
    unframed: AtomicBool,
}

/// The time limit that ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimeLimit {
    /// No request came for too long; not an error.
    Idle,
    /// A head did not arrive in time.
    Head,
    /// A request took too long, from its head to the end of its answer.
    Total,
}

impl Activity {
    /// A new connection. The limit for its first head runs from now on.
    pub(crate) fn new(now: Instant, serial: bool) -> Arc<Self> {
        Arc::new(Self {
            base: now,
            now: AtomicU64::new(1),
            serial,
            requests: AtomicU32::new(0),
            idle: AtomicU64::new(1),
            head: AtomicU64::new(if serial { 1 } else { NEVER }),
            request: AtomicU64::new(NEVER),
            unread: AtomicBool::new(false),
            unframed: AtomicBool::new(false),
        })
    }

    fn moment(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.base).as_millis()).unwrap_or(u64::MAX) + 1
    }

    fn after(&self, moment: u64, limit: Duration) -> Instant {
        // A deadline ten years away stands for "never" and cannot overflow.
        let far = Duration::from_secs(10 * 365 * 24 * 3600);
        self.base + (Duration::from_millis(moment - 1) + limit).min(far)
    }

    /// Sets the time of everything that follows.
    pub(crate) fn set_now(&self, now: Instant) {
        self.now.store(self.moment(now), Relaxed);
    }

    fn now(&self) -> u64 {
        self.now.load(Relaxed)
    }

    /// Notes that bytes have come.
    pub(crate) fn received(&self) {
        if self.serial && self.requests.load(Relaxed) == 0 {
            self.unread.store(true, Relaxed);
            if self.head.load(Relaxed) == NEVER {
                self.head.store(self.now(), Relaxed);
            }
        }
    }

    /// Notes that a request's body was dropped before its end.
    pub(crate) fn left_unread(&self) {
        self.unread.store(self.serial, Relaxed);
    }

    /// Notes whether an answer is under way whose end is the connection's.
    pub(crate) fn set_unframed(&self, unframed: bool) {
        self.unframed.store(unframed, Relaxed);
    }

    /// Whether the connection's end would be taken for the end of an answer that is not whole.
    pub(crate) fn is_unframed(&self) -> bool {
        self.unframed.load(Relaxed)
    }

    /// Notes that our side is closed: bytes that come from now on begin no request.
    pub(crate) fn closed(&self) {
        self.head.store(NEVER, Relaxed);
        self.idle.store(self.now(), Relaxed);
    }

    /// Whether the client may be sending data that nothing reads.
    pub(crate) fn is_unread(&self) -> bool {
        self.unread.load(Relaxed)
    }

    /// When the connection became idle, if it is idle. A head that is still arriving is not a
    /// request yet.
    pub(crate) fn unused(&self) -> Option<Instant> {
        let idle = (self.requests.load(Relaxed) == 0).then(|| self.idle.load(Relaxed).max(1))?;
        Some(self.after(idle, Duration::ZERO))
    }

    /// Begins a request: its head is complete.
    pub(crate) fn begin(self: &Arc<Self>) -> Arc<RequestActivity> {
        let moment = self.now();
        self.requests.fetch_add(1, Relaxed);
        self.head.store(NEVER, Relaxed);
        self.unread.store(false, Relaxed);
        self.request.store(moment, Relaxed);
        let blocked = AtomicU64::new(NEVER);
        Arc::new(RequestActivity { activity: Arc::clone(self), begun: moment, blocked })
    }

    /// The time limit that ends the connection if nothing more happens, and when.
    pub(crate) fn due(&self, limits: &Limits) -> (Instant, TimeLimit) {
        if self.requests.load(Relaxed) > 0 {
            // Concurrent requests have an alarm each.
            let begun = if self.serial { self.request.load(Relaxed) } else { u64::MAX >> 1 };
            (self.after(begun, limits.total_timeout), TimeLimit::Total)
        } else if let head @ 1.. = self.head.load(Relaxed) {
            (self.after(head, limits.header_timeout), TimeLimit::Head)
        } else {
            (self.after(self.idle.load(Relaxed), limits.idle_timeout), TimeLimit::Idle)
        }
    }
}

/// One request, from its head to the last byte of its answer. Dropping it ends it.
pub(crate) struct RequestActivity {
    activity: Arc<Activity>,
    begun: u64,
    /// When the piece of the answer that waits to be sent was given to the server.
    blocked: AtomicU64,
}

impl RequestActivity {
    /// When this request is cut off unless its client reads more.
    pub(crate) fn due(&self, now: Instant, limits: &Limits) -> Instant {
        let total = self.activity.after(self.begun, limits.total_timeout);
        let write = match self.blocked.load(Relaxed) {
            NEVER => now + limits.write_timeout,
            blocked => self.activity.after(blocked, limits.write_timeout),
        };
        total.min(write)
    }
}

impl Drop for RequestActivity {
    fn drop(&mut self) {
        let activity = &self.activity;
        if activity.requests.fetch_sub(1, Relaxed) == 1 {
            activity.idle.store(activity.now(), Relaxed);
        }
    }
}

/// An answer's body that notes whether the client reads it.
pub(crate) struct WatchedBody<B> {
    body: B,
    flight: Arc<RequestActivity>,
}

impl<B> WatchedBody<B> {
    pub(crate) fn new(body: B, flight: Arc<RequestActivity>) -> Self {
        Self { body, flight }
    }
}

impl<B: BringsLines> BringsLines for WatchedBody<B> {
    fn take_lines(&mut self) -> HeaderLines {
        self.body.take_lines()
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for WatchedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        // The server polls for more, so the earlier data is on its way.
        self.flight.blocked.store(NEVER, Relaxed);
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_some() {
            self.flight.blocked.store(self.flight.activity.now(), Relaxed);
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
        assert_eq!(
            due(),
            (10, TimeLimit::Head),
            "the limit for the first head runs from the beginning"
        );
        let advance = async |seconds: u32| {
            tokio::time::advance(seconds * second).await;
            activity.set_now(Instant::now());
        };
        advance(3).await;
        activity.received();
        assert_eq!(due(), (10, TimeLimit::Head), "more bytes of a head do not extend its limit");
        let flight = activity.begin();
        assert_eq!(due(), (7203, TimeLimit::Total));
        activity.received();
        advance(2).await;
        drop(flight);
        assert_eq!(due(), (80, TimeLimit::Idle), "bytes of a body do not begin a head");
        advance(70).await;
        activity.received();
        assert_eq!(due(), (85, TimeLimit::Head));
        advance(5).await;
        activity.closed();
        assert_eq!(due(), (155, TimeLimit::Idle), "a head on a closed connection has no limit");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_is_cut_off_from_the_first_unread_piece_on() {
        use http_body_util::{BodyExt, Full};
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let activity = Activity::new(start, false);
        let flight = activity.begin();
        let due =
            |flight: &RequestActivity| (flight.due(Instant::now(), &limits()) - start).as_secs();
        let advance = async |seconds: u32| {
            tokio::time::advance(seconds * second).await;
            activity.set_now(Instant::now());
        };
        advance(1000).await;
        assert_eq!(due(&flight), 1120, "waiting for the answer is not the client's fault");
        let mut body = WatchedBody::new(Full::from("x"), Arc::clone(&flight));
        body.frame().await.expect("a frame").expect("right");
        advance(100).await;
        assert_eq!(due(&flight), 1120, "the piece has waited since then");
        assert!(body.frame().await.is_none());
        advance(6000).await;
        assert_eq!(due(&flight), 7200, "the total limit holds as well");
        assert_eq!(activity.due(&limits()).1, TimeLimit::Total);
        drop((body, flight));
        assert_eq!(activity.due(&limits()), (start + 7175 * second, TimeLimit::Idle));
    }
}
