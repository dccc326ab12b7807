//! The steps of one request: its times, its tries and its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::answer::failure::Cause;
use crate::answer::outcome::{FirstToken, Outcome, Pause};
use crate::figures::endpoint_totals::EndpointTotals;
use crate::net::clock;
use crate::pool::{Slot, Ticket};
use crate::text::stack::StackText;

/// The steps that a request has taken, with their times. A step that has not happened is `None`.
#[derive(Clone, Debug, Default)]
pub(crate) struct RequestProgress {
    /// The start of the present hold: the first one, or one before another try.
    hold_began: Option<Instant>,
    /// The time held before that.
    held: Option<Duration>,
    /// The part of `held` in which no replica was ready.
    pub(crate) cold: Duration,
    /// The queue's number of this arrival.
    pub(crate) seq: u64,
    pub(crate) tries: u32,
    /// The endpoint of the last try.
    pub(crate) endpoint: Option<SocketAddr>,
    /// The sums of that endpoint.
    pub(crate) endpoint_totals: Option<Arc<EndpointTotals>>,
    pub(crate) released: Option<Instant>,
    head_sent: Option<Instant>,
    pub(crate) first_token: Option<Instant>,
    pub(crate) seams: Seams,
    /// The tokens of the answer that the present replica took over from earlier ones.
    pub(crate) carried: u64,
}

/// How often other replicas went on with an answer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seams {
    pub(crate) continued: u32,
    /// How often of these it moved off a replica that drained.
    pub(crate) moved: u32,
    /// The time that the client waited for that.
    pub(crate) paused: Duration,
    /// The part of it in which no other replica had room.
    pub(crate) held: Duration,
}

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conclusion {
    pub(crate) outcome: Outcome,
    /// The status that was sent to the client.
    pub(crate) status: Option<u16>,
    /// Why the request was refused or failed.
    pub(crate) reason: Option<&'static str>,
}

impl RequestProgress {
    pub(crate) fn hold_began(&mut self) -> Instant {
        let now = clock::now();
        self.hold_began = Some(now);
        now
    }

    pub(crate) fn released(&mut self, ticket: &Ticket, slot: &Slot) -> Instant {
        let now = clock::now();
        self.tries += 1;
        self.endpoint = Some(slot.address);
        self.endpoint_totals = Some(Arc::clone(slot.totals()));
        self.released = Some(now);
        self.hold_began = None;
        self.held = Some(ticket.hold_time.all);
        self.cold = ticket.hold_time.cold;
        self.seq = ticket.seq();
        now
    }

    /// Notes that the replica in `slot` goes on after a pause, behind `carried` tokens of the answer. `prompt`:
    /// the tokens of the request's prompt.
    pub(crate) fn continued(&mut self, slot: &Slot, pause: Pause, prompt: u64, carried: u64) {
        if let Some(left) = &self.endpoint_totals {
            left.left(prompt + self.carried, carried.saturating_sub(self.carried));
        }
        self.carried = carried;
        self.endpoint = Some(slot.address);
        self.endpoint_totals = Some(Arc::clone(slot.totals()));
        self.seams.continued += 1;
        self.seams.moved += u32::from(pause.cause == Cause::Moved);
        self.seams.paused += pause.all;
        self.seams.held += pause.held;
    }

    pub(crate) fn head_sent(&mut self) {
        self.head_sent = Some(clock::now());
    }

    /// Notes the first token. Returns its figures the first time, if the request was released.
    pub(crate) fn first_token(&mut self, at: Instant, accepted: Instant) -> Option<FirstToken> {
        if self.first_token.is_some() {
            return None;
        }
        self.first_token = Some(at);
        Some(FirstToken {
            ttft: at.saturating_duration_since(accepted),
            cold: self.cold,
            upstream: at.saturating_duration_since(self.released?),
        })
    }

    /// Sets the time held, for tests of what is made of it.
    #[cfg(test)]
    pub(crate) fn set_held(&mut self, held: Duration) {
        self.held = Some(held);
    }

    /// The time held so far, or `None` if the request never reached the queue.
    pub(crate) fn held(&self) -> Option<Duration> {
        let now = self.hold_began.map(|since| clock::now() - since);
        now.or(self.held).map(|_| now.unwrap_or_default() + self.held.unwrap_or_default())
    }

    /// Whether a replica has the request now, or had it last.
    pub(crate) fn is_released(&self) -> bool {
        self.released.is_some() && self.hold_began.is_none()
    }

    /// The time since the head went out; zero before.
    pub(crate) fn since_head(&self) -> Duration {
        self.head_sent.map_or(Duration::ZERO, |since| clock::now() - since)
    }

    /// The value of `server-timing`, in milliseconds: the hold time, the time from release to the
    /// answer's head, and the total.
    pub(crate) fn server_timing(&self, accepted: Instant) -> StackText<128> {
        // Three numbers of at most twenty digits.
        let mut text = StackText::<128>::new();
        text.push(b"hold;dur=");
        text.millis(self.held().unwrap_or_default());
        if let (Some(released), Some(head_sent)) = (self.released, self.head_sent) {
            text.push(b", upstream;dur=");
            text.millis(head_sent - released);
        }
        text.push(b", total;dur=");
        text.millis(clock::now() - accepted);
        text
    }
}
