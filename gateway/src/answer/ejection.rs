//! What follows from a failure: for the endpoint, whether it is taken out; for the request, whether
//! it counts as a try and as a death.

use crate::answer::failure::Cause;

/// How an endpoint is taken out for a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ejection {
    /// It is sound.
    No,
    /// When enough came in a row, or its streams are silent as well; never the last.
    Counted,
    /// Whatever is sent there now will fail too.
    AtOnce,
}

impl Cause {
    pub(crate) fn ejection(self) -> Ejection {
        match self {
            Self::QueueFull | Self::Shortage => Ejection::No,
            // A prompt that takes too long, or that the replica ends, may do so everywhere.
            Self::Server | Self::EventTooLong | Self::Stalled | Self::Aborted => Ejection::Counted,
            // One model or API of several, perhaps; a key may be changed at any time.
            Self::KeyRefused | Self::NotServed => Ejection::Counted,
            Self::Connect
            | Self::Connection
            | Self::Truncated
            | Self::EngineDead
            | Self::Unreachable
            | Self::ShuttingDown => Ejection::AtOnce,
        }
    }

    /// Whether the replica may have worked on the request: only that is a try, and costs of the
    /// retry budget.
    pub(crate) fn is_try(self) -> bool {
        !matches!(self, Self::Connect | Self::ShuttingDown | Self::QueueFull | Self::Shortage)
            && !self.is_misfit()
    }

    /// Whether the replica is not set up for what its pool serves: another one may be, and this one
    /// is no use to the request however often it is asked.
    pub(crate) fn is_misfit(self) -> bool {
        matches!(self, Self::KeyRefused | Self::NotServed)
    }

    /// Whether the replica died with the request in it, perhaps of it. An answer that makes no sense
    /// is not a death: somebody wrote it.
    pub(crate) fn is_death(self) -> bool {
        matches!(self, Self::Connection | Self::EngineDead)
    }

    /// Whether the replica's process ends, be it by an order.
    pub(crate) fn is_end(self) -> bool {
        self.is_death() || matches!(self, Self::Aborted | Self::ShuttingDown | Self::Unreachable)
    }
}
