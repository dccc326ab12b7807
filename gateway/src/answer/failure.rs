//! The failure of a try at an endpoint: a cause for rules, and a message for people.

use std::fmt;

/// The reason why a try brought no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) cause: Cause,
    /// The server's status, or the one that fits the cause.
    pub(crate) status: u16,
    pub(crate) message: String,
}

/// The kind of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    /// No connection could be made.
    Connect,
    /// The connection died before the answer was complete.
    Connection,
    /// The replica sent nothing for longer than the stall limit.
    Stalled,
    /// The replica sends nothing, and no new connection can be made.
    Unreachable,
    /// The replica's queue is full: it is busy, and sound.
    QueueFull,
    /// The replica is shutting down and accepts no new work.
    ShuttingDown,
    /// The replica's engine died, and its server will follow.
    EngineDead,
    /// The replica ended the request on its own.
    Aborted,
    /// The replica failed in another way.
    Server,
    /// The answer ended without its end mark, or in the middle of its JSON.
    Truncated,
    /// The replica sent an event over the size limit.
    EventTooLong,
    /// The replica refused the gateway's key, or requires one where the gateway sends none.
    KeyRefused,
    /// The replica does not know the model or the API that its pool serves.
    NotServed,
    /// The replica does not go on with an answer from its token ids.
    NotContinued,
    /// No replica was tried: the gateway itself is short of what a connection needs.
    Shortage,
    /// No failure: the stream moved off an endpoint that drains.
    Moved,
}

impl Cause {
    pub(crate) const ALL: [Self; 16] = [
        Self::Connect,
        Self::Connection,
        Self::Stalled,
        Self::Unreachable,
        Self::QueueFull,
        Self::ShuttingDown,
        Self::EngineDead,
        Self::Aborted,
        Self::Server,
        Self::Truncated,
        Self::EventTooLong,
        Self::KeyRefused,
        Self::NotServed,
        Self::NotContinued,
        Self::Shortage,
        Self::Moved,
    ];

    /// Its label in metrics and logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Connection => "connection",
            Self::Stalled => "stalled",
            Self::Unreachable => "unreachable",
            Self::QueueFull => "queue_full",
            Self::ShuttingDown => "shutting_down",
            Self::EngineDead => "engine_dead",
            Self::Aborted => "aborted",
            Self::Server => "server",
            Self::Truncated => "truncated",
            Self::EventTooLong => "event_too_long",
            Self::KeyRefused => "key_refused",
            Self::NotServed => "not_served",
            Self::NotContinued => "not_continued",
            Self::Shortage => "gateway_shortage",
            Self::Moved => "moved",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Failure {
    /// A failure with a message of the gateway's own. The status is 500 for a fault of the server,
    /// as the server itself would answer, and 502 for a fault on the way to it.
    pub(crate) fn new(cause: Cause, message: impl Into<String>) -> Self {
        let status = match cause {
            Cause::Connect
            | Cause::Connection
            | Cause::Unreachable
            | Cause::Truncated
            | Cause::EventTooLong
            | Cause::KeyRefused
            | Cause::NotServed
            | Cause::NotContinued => 502,
            Cause::QueueFull | Cause::ShuttingDown | Cause::Shortage | Cause::Moved => 503,
            Cause::Stalled => 504,
            Cause::EngineDead | Cause::Aborted | Cause::Server => 500,
        };
        Self { cause, status, message: message.into() }
    }

    /// The failure of an endpoint that can't be reached and has left its connections open.
    pub(crate) fn unreachable() -> Self {
        let message = "The replica can't be reached any longer, and sends nothing.";
        Self::new(Cause::Unreachable, message)
    }

    /// The failure of a request that the replica ended on its own.
    pub(crate) fn aborted() -> Self {
        Self::new(Cause::Aborted, "The replica aborted the request.")
    }

    /// A failure with the server's own message, which shows the cause.
    pub(crate) fn of(status: u16, message: String) -> Self {
        let says = |words: &str| message.contains(words);
        let cause = if says("cannot schedule new futures after shutdown") {
            Cause::ShuttingDown
        } else if says("EngineCore") || says("EngineDead") {
            Cause::EngineDead
        } else if says("currently busy and cannot accept new requests") {
            Cause::QueueFull
        } else {
            Cause::Server
        };
        Self { cause, status, message }
    }

    /// The error's type in vLLM's shape.
    pub(crate) fn kind(&self) -> &'static str {
        match self.status {
            502 => "BadGatewayError",
            503 => "ServiceUnavailableError",
            504 => "GatewayTimeoutError",
            _ => "InternalServerError",
        }
    }
}
