//! A pool's retry budget: retries are a share of the requests, so that a pool that is failing is not
//! sent several times its load.
//!
//! One replica's death returns all it had in flight at once, so the budget holds at least as many as
//! can be in flight. Beyond that, a fifth of the requests and ten a second may be tried again, as in
//! Finagle's and linkerd's budgets. Pure: callers pass `now`.

use tokio::time::Instant;

const SHARE: f64 = 0.2;
const PER_SECOND: f64 = 10.0;
const LEAST: f64 = 100.0;

/// See the module.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    left: f64,
    capacity: f64,
    since: Instant,
}

impl RetryBudget {
    pub(crate) fn new(now: Instant) -> Self {
        Self { left: LEAST, capacity: LEAST, since: now }
    }

    /// As many as the endpoints together may have in flight.
    pub(crate) fn set_capacity(&mut self, in_flight: u32) {
        let capacity = f64::from(in_flight).max(LEAST);
        // What is new is full: an endpoint may die at once.
        self.left = (self.left + (capacity - self.capacity).max(0.0)).min(capacity);
        self.capacity = capacity;
    }

    /// A request's first try.
    pub(crate) fn deposit(&mut self) {
        self.left = (self.left + SHARE).min(self.capacity);
    }

    /// Whether one more try may be made.
    pub(crate) fn withdraw(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        self.since = now;
        self.left = (self.left + passed * PER_SECOND).min(self.capacity);
        let granted = self.left > 1.0 - 1e-9;
        if granted {
            self.left = (self.left - 1.0).max(0.0);
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn all_that_a_dying_replica_had_is_tried_again_and_a_failing_pool_is_not_flooded() {
        let now = Instant::now();
        let mut budget = RetryBudget::new(now);
        budget.set_capacity(256);
        assert!((0..256).all(|_| budget.withdraw(now)), "one replica's death");
        assert!(!budget.withdraw(now), "and then every request fails once more");
        (0..10).for_each(|_| budget.deposit());
        assert!(budget.withdraw(now) && budget.withdraw(now) && !budget.withdraw(now));
        let later = now + Duration::from_secs(1);
        assert!((0..10).all(|_| budget.withdraw(later)) && !budget.withdraw(later));
    }

    proptest! {
        #[test]
        fn retries_never_exceed_capacity_and_share(
            steps in prop::collection::vec((any::<bool>(), 0..50u64), 0..400), capacity in 0..500u32,
        ) {
            let start = Instant::now();
            let (mut budget, mut now) = (RetryBudget::new(start), start);
            budget.set_capacity(capacity);
            let (mut first, mut again) = (0.0, 0.0);
            for (retry, ms) in steps {
                now += Duration::from_millis(ms);
                if retry {
                    again += f64::from(u8::from(budget.withdraw(now)));
                } else {
                    budget.deposit();
                    first += 1.0;
                }
            }
            let most = f64::from(capacity).max(LEAST)
                + first * SHARE
                + (now - start).as_secs_f64() * PER_SECOND;
            prop_assert!(again <= most + 1e-6);
        }
    }
}
