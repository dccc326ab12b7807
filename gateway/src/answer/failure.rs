//! Why a try at an endpoint brought no answer: a cause for rules, and a text for people.

use std::fmt;

/// Why an answer is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) cause: Cause,
    /// The status as the server gave it, or what it amounts to.
    pub(crate) status: u16,
    pub(crate) message: String,
}

/// What a failure tells about the replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    /// No connection could be made.
    Connect,
    /// The connection died before the answer was complete.
    Connection,
    /// Nothing came for longer than the stall limit.
    Stalled,
    /// Nothing came, and no new connection can be made.
    Unreachable,
    /// It has more waiting than it allows: busy, and sound.
    QueueFull,
    /// It is shutting down and takes no new work.
    ShuttingDown,
    /// Its engine died, and the rest of it will.
    EngineDead,
    /// It ended the request on its own.
    Aborted,
    /// It failed in another way.
    Server,
    /// The answer ended without its end mark, or in the middle of its JSON.
    Truncated,
    /// It sent an event without end.
    EventTooLong,
    /// It refused the key that the gateway sends, or asked for one where it sends none.
    KeyRefused,
    /// It does not know the model or the API that its pool serves.
    NotServed,
    /// It was not asked: the gateway itself is short of what a connection needs.
    Shortage,
}

impl Cause {
    pub(crate) const ALL: [Self; 14] = [
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
        Self::Shortage,
    ];

    /// The word for it in figures and logs.
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
            Self::Shortage => "gateway_shortage",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Failure {
    /// A failure in words of our own. What the server did wrong is 500, as its own words for it
    /// would be; what happened on the way to it is 502.
    pub(crate) fn new(cause: Cause, message: impl Into<String>) -> Self {
        let status = match cause {
            Cause::Connect
            | Cause::Connection
            | Cause::Unreachable
            | Cause::Truncated
            | Cause::EventTooLong
            | Cause::KeyRefused
            | Cause::NotServed => 502,
            Cause::QueueFull | Cause::ShuttingDown | Cause::Shortage => 503,
            Cause::Stalled => 504,
            Cause::EngineDead | Cause::Aborted | Cause::Server => 500,
        };
        Self { cause, status, message: message.into() }
    }

    /// Of an endpoint that can't be reached and left its connections open.
    pub(crate) fn unreachable() -> Self {
        let message = "The replica can't be reached any more, and nothing comes from it.";
        Self::new(Cause::Unreachable, message)
    }

    pub(crate) fn aborted() -> Self {
        Self::new(Cause::Aborted, "The replica aborted the request.")
    }

    /// An error in the server's words, whose cause only these tell.
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
