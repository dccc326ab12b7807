//! A request's end and its first token: values that the metrics, the pool's totals and the access
//! log share.

use std::time::Duration;

use crate::answer::failure::Cause;
use crate::answer::meter::Tokens;
use crate::answer::traffic::Traffic;

/// The reason for a request that took longer than its time limit.
pub(crate) const TOO_LONG: &str = "too_long";
/// The reason for a request that a shutdown did not wait for.
pub(crate) const SHUTTING_DOWN: &str = "shutting_down";

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Answered to the end.
    Completed,
    /// Answered with a replica's refusal (4xx).
    ClientError,
    /// Failed on the gateway's side: no replica answered, or an answer broke off.
    Failed,
    /// The client left before the end.
    ClientLeft,
    /// Refused by the gateway itself.
    Refused,
}

/// Who ended an answer early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aborter {
    /// The client: it left while a replica had its request.
    Client,
    /// The replica: its answer reports an abort.
    Replica,
    /// The gateway: the request took longer than its time limit.
    Gateway,
}

/// A stream's first token, for the metrics.
pub(crate) struct FirstToken {
    /// The time since the request was accepted.
    pub(crate) ttft: Duration,
    /// The part of it that the request waited for a cold start.
    pub(crate) cold: Duration,
    /// The time since the request was released.
    pub(crate) upstream: Duration,
}

/// The pause of a stream with which another replica went on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pause {
    /// Why it broke, or that it moved.
    pub(crate) cause: Cause,
    /// From that moment to the first part from the other replica.
    pub(crate) all: Duration,
    /// The part of it in which no other replica had room.
    pub(crate) held: Duration,
}

/// A request's end, for the metrics.
pub(crate) struct RequestEnd<'a> {
    pub(crate) outcome: Outcome,
    /// The reason for its refusal or failure.
    pub(crate) reason: Option<&'static str>,
    pub(crate) aborted: Option<Aborter>,
    /// The hold time; `None` if it never entered the queue.
    pub(crate) held: Option<Duration>,
    pub(crate) took: Duration,
    pub(crate) tries: u32,
    pub(crate) tokens: &'a Tokens,
    /// The tokens of the answer that the last replica took over from earlier ones.
    pub(crate) carried: u64,
    /// For a WebSocket session: how long it was open, and the data it carried.
    pub(crate) session: Option<(Duration, &'a Traffic)>,
}

impl Outcome {
    pub(crate) const ALL: [Self; 5] =
        [Self::Completed, Self::ClientError, Self::Failed, Self::ClientLeft, Self::Refused];

    /// Its label in metrics and logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::ClientError => "client_error",
            Self::Failed => "failed",
            Self::ClientLeft => "client_left",
            Self::Refused => "refused",
        }
    }
}

impl Aborter {
    pub(crate) const ALL: [Self; 3] = [Self::Client, Self::Replica, Self::Gateway];

    /// Its label in metrics and logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Replica => "replica",
            Self::Gateway => "gateway",
        }
    }
}
