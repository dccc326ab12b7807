//! How a request ended, and its first token: the values that figures, the pool's totals and the
//! access log share.

use std::net::SocketAddr;
use std::time::Duration;

use crate::answer::meter::Tokens;
use crate::answer::traffic::Traffic;

/// The reason where a request's own time ran out.
pub(crate) const TOO_LONG: &str = "too_long";
/// The reason of one that a shutdown did not wait for.
pub(crate) const SHUTTING_DOWN: &str = "shutting_down";

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Answered to the end.
    Completed,
    /// Answered with a replica's refusal (4xx).
    ClientError,
    /// By our side's fault: no replica answered, or an answer broke off.
    Failed,
    /// The client was gone first.
    ClientLeft,
    /// By the gateway itself.
    Refused,
}

/// Whose fault an answer's end before its time was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aborter {
    /// It left while a replica had its request.
    Client,
    /// By an answer that said so.
    Replica,
    /// The request's time was over.
    Gateway,
}

/// A stream's first token, for the figures.
pub(crate) struct FirstToken {
    pub(crate) endpoint: SocketAddr,
    /// From acceptance.
    pub(crate) ttft: Duration,
    /// What of it was waited for a cold start.
    pub(crate) cold: Duration,
    /// From release.
    pub(crate) upstream: Duration,
}

/// A request's end, for the figures.
pub(crate) struct Ended<'a> {
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) outcome: Outcome,
    /// Why it was refused or failed.
    pub(crate) reason: Option<&'static str>,
    pub(crate) aborted: Option<Aborter>,
    /// `None` for what never came into the queue.
    pub(crate) held: Option<Duration>,
    pub(crate) took: Duration,
    pub(crate) tries: u32,
    pub(crate) tokens: &'a Tokens,
    /// Of a WebSocket session: how long it was open, and what it carried.
    pub(crate) session: Option<(Duration, &'a Traffic)>,
}

impl Outcome {
    pub(crate) const ALL: [Self; 5] =
        [Self::Completed, Self::ClientError, Self::Failed, Self::ClientLeft, Self::Refused];

    /// The word for it in figures and logs.
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

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Replica => "replica",
            Self::Gateway => "gateway",
        }
    }
}
