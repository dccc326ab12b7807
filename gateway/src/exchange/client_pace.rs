//! How long a client kept its stream waiting, so that a slow reader is not taken for a slow replica.
//! Pure.

use std::time::Duration;

use tokio::time::Instant;

/// The time for which a client did not take what had come.
///
/// While the client is slow, the gateway reads nothing from the replica. So what it reads next has been
/// there for a while: it comes without waiting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientPace {
    /// When something last came.
    last: Instant,
    /// Whether the replica was waited for since then.
    waited: bool,
    slow: Duration,
}

impl ClientPace {
    /// The pace of a client whose answer begins at `now`.
    pub(crate) fn new(now: Instant) -> Self {
        Self { last: now, waited: true, slow: Duration::ZERO }
    }

    /// Notes that the replica is waited for.
    pub(crate) fn waits(&mut self) {
        self.waited = true;
    }

    /// Notes that something came from the replica.
    pub(crate) fn came(&mut self, now: Instant) {
        if !self.waited {
            self.slow += now - self.last;
        }
        (self.last, self.waited) = (now, false);
    }

    /// The time for which the client kept the stream waiting so far.
    pub(crate) fn slow(&self) -> Duration {
        self.slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_there_already_counts_as_the_clients_time() {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut pace = ClientPace::new(begin);
        pace.came(at(10));
        pace.waits();
        pace.came(at(30));
        assert_eq!(pace.slow(), Duration::ZERO, "the replica was waited for");
        pace.came(at(30));
        pace.came(at(530));
        assert_eq!(pace.slow(), Duration::from_millis(500), "it was there, and nobody took it");
        pace.waits();
        pace.came(at(2_000));
        assert_eq!(pace.slow(), Duration::from_millis(500));
    }
}
