//! How an endpoint stands: probed, ready, out after failures, draining.
//!
//! Pure: callers pass `now`; the probe itself is in `probe.rs`. Behaviour counts more than
//! `/health`, which vLLM answers with 200 while it drains, hangs or sleeps.

use std::time::Duration;

use forebay_signals::{EndpointSignals, Health};
use tokio::time::Instant;

const FIRST_EJECTION: Duration = Duration::from_millis(250);
const LONGEST_EJECTION: Duration = Duration::from_secs(30);

/// One endpoint in the pool's books.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    probed: bool,
    once_ready: bool,
    draining: bool,
    reason: String,
    failures: u32,
    out_until: Option<Instant>,
    pub(crate) in_flight: u32,
    limit: u32,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    pub(crate) generated_tokens: u64,
}

impl Endpoint {
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            probed: false,
            once_ready: false,
            draining: false,
            reason: "not probed yet".to_owned(),
            failures: 0,
            out_until: None,
            in_flight: 0,
            limit,
            completed: 0,
            failed: 0,
            generated_tokens: 0,
        }
    }

    /// The probe's word. A failed one takes a ready endpoint out; an answer brings it back, once
    /// the time for which its failures took it out is over.
    pub(crate) fn probed(&mut self, outcome: Result<(), String>, now: Instant) -> bool {
        let before = self.health();
        match outcome {
            Ok(()) if self.out_until.is_some_and(|until| now < until) => {}
            Ok(()) => {
                self.probed = true;
                self.once_ready = true;
                self.out_until = None;
                self.reason.clear();
            }
            Err(reason) => {
                self.probed = false;
                self.reason = reason;
            }
        }
        before != self.health()
    }

    /// A request failed there for a reason of the endpoint's own: out at once, longer with each
    /// failure in a row.
    pub(crate) fn failed(&mut self, reason: String, now: Instant) {
        self.failed += 1;
        // All that failed together is one failure.
        if self.out_until.is_some_and(|until| now < until) {
            return;
        }
        let out = FIRST_EJECTION * 2u32.saturating_pow(self.failures.min(16));
        self.failures += 1;
        self.out_until = Some(now + out.min(LONGEST_EJECTION));
        self.probed = false;
        self.reason = reason;
    }

    pub(crate) fn completed(&mut self) {
        self.completed += 1;
        self.failures = 0;
    }

    pub(crate) fn drain(&mut self, draining: bool) -> bool {
        std::mem::replace(&mut self.draining, draining) != draining
    }

    pub(crate) fn health(&self) -> Health {
        match (self.draining, self.probed, self.once_ready) {
            (true, ..) => Health::Draining,
            (_, true, _) => Health::Ready,
            (_, false, true) => Health::Ejected,
            (_, false, false) => Health::Starting,
        }
    }

    /// How many more it can take.
    pub(crate) fn room(&self) -> u32 {
        if self.health() == Health::Ready { self.limit.saturating_sub(self.in_flight) } else { 0 }
    }

    pub(crate) fn signals(&self) -> EndpointSignals {
        EndpointSignals {
            health: self.health(),
            phase: None,
            reason: self.reason.clone(),
            in_flight: self.in_flight,
            limit: self.limit,
            completed: self.completed,
            failed: self.failed,
            generated_tokens: self.generated_tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failures_take_an_endpoint_out_longer_each_time_though_its_probe_answers() {
        let mut endpoint = Endpoint::new(4);
        let start = Instant::now();
        assert_eq!((endpoint.health(), endpoint.room()), (Health::Starting, 0));
        endpoint.probed(Ok(()), start);
        assert_eq!((endpoint.health(), endpoint.room()), (Health::Ready, 4));

        let mut now = start;
        for out in [250, 500, 1000] {
            endpoint.failed("reset".into(), now);
            assert_eq!((endpoint.health(), endpoint.room()), (Health::Ejected, 0));
            endpoint.probed(Ok(()), now + Duration::from_millis(out - 1));
            assert_eq!(endpoint.health(), Health::Ejected, "not before {out} ms");
            now += Duration::from_millis(out);
            endpoint.probed(Ok(()), now);
            assert_eq!(endpoint.health(), Health::Ready, "after {out} ms");
        }
        endpoint.completed();
        (0..16).for_each(|_| endpoint.failed("reset".into(), now));
        endpoint.probed(Ok(()), now + FIRST_EJECTION);
        assert_eq!(
            endpoint.health(),
            Health::Ready,
            "an answer clears the count, and what fails together is one failure"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_draining_endpoint_has_no_room() {
        let mut endpoint = Endpoint::new(4);
        endpoint.probed(Ok(()), Instant::now());
        assert!(endpoint.drain(true));
        assert_eq!((endpoint.health(), endpoint.room()), (Health::Draining, 0));
        assert!(endpoint.drain(false));
        assert_eq!(endpoint.room(), 4);
    }
}
