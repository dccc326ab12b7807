//! The consequences of a failure: whether it ejects the endpoint, and whether the request counts it
//! as a try and as a death.

use crate::answer::failure::Cause;

/// How a failure ejects its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ejection {
    /// Not at all: the endpoint is sound.
    No,
    /// After enough failures in a row, or if the endpoint's streams are silent as well. The last
    /// endpoint is never ejected like this.
    Counted,
    /// At once: all that is sent there now will fail, too.
    AtOnce,
}

impl Cause {
    /// How this failure ejects its endpoint.
    pub(crate) fn ejection(self) -> Ejection {
        match self {
            Self::QueueFull | Self::NotContinued | Self::Shortage | Self::Moved => Ejection::No,
            // The prompt may be the reason: it would take too long, or be aborted, everywhere.
            Self::Server | Self::EventTooLong | Self::Stalled | Self::Aborted => Ejection::Counted,
            // This may concern one model or API of several, and a key can change at any time.
            Self::KeyRefused | Self::NotServed => Ejection::Counted,
            Self::Connect
            | Self::Connection
            | Self::Truncated
            | Self::EngineDead
            | Self::Unreachable
            | Self::ShuttingDown => Ejection::AtOnce,
        }
    }

    /// Whether the replica may have worked on the request. Only then the try counts towards
    /// `upstream.maxTries` and is charged to the retry budget. The access log and the pool's count of
    /// retries count every try.
    pub(crate) fn is_counted_try(self) -> bool {
        !matches!(self, Self::Connect | Self::ShuttingDown | Self::QueueFull)
            && !matches!(self, Self::Shortage | Self::Moved)
            && !self.is_misfit()
    }

    /// Whether the replica is not set up for its pool's models, APIs or key. Another replica may
    /// be; this one can't answer the request however often it is tried.
    pub(crate) fn is_misfit(self) -> bool {
        matches!(self, Self::KeyRefused | Self::NotServed | Self::NotContinued)
    }

    /// Whether the replica died with the request in flight, perhaps because of it. A meaningless
    /// answer is not a death: a live server wrote it.
    pub(crate) fn is_death(self) -> bool {
        matches!(self, Self::Connection | Self::EngineDead)
    }

    /// Whether the replica's process may have ended, on its own or by an order.
    pub(crate) fn is_end(self) -> bool {
        self.is_death() || matches!(self, Self::Aborted | Self::ShuttingDown | Self::Unreachable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_try_that_may_have_cost_work_counts() {
        for cause in Cause::ALL {
            let free = match cause {
                Cause::Connect | Cause::ShuttingDown | Cause::QueueFull | Cause::Shortage => true,
                Cause::KeyRefused | Cause::NotServed | Cause::NotContinued | Cause::Moved => true,
                Cause::Connection
                | Cause::Stalled
                | Cause::Unreachable
                | Cause::EngineDead
                | Cause::Aborted
                | Cause::Server
                | Cause::Truncated
                | Cause::EventTooLong => false,
            };
            assert_eq!(cause.is_counted_try(), !free, "{cause:?}");
            assert!(
                !cause.is_death() || cause.is_counted_try(),
                "{cause:?}: a death follows a counted try"
            );
        }
    }
}
