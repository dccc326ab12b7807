//! A pool's retry budget. It limits retries to a share of the requests, so that a failing pool does
//! not get several times its load.
//!
//! A dying replica fails everything that it had in flight at once. So the budget holds as many
//! retries as the endpoints can have requests in flight. Beyond that it refills by a fifth of the
//! requests and by ten a second, as in Finagle's and linkerd's budgets.

use std::time::Duration;

/// Retries that each request adds.
const SHARE: f64 = 0.2;
/// Retries that each second adds.
const PER_SECOND: f64 = 10.0;
/// The least capacity.
const LEAST: f64 = 100.0;

/// The retries that a pool may make now.
#[derive(Debug)]
pub struct RetryBudget {
    left: f64,
    capacity: f64,
    filled: Duration,
}

impl RetryBudget {
    /// A full budget. `now`, here and below, is the time since a fixed moment of the caller's
    /// choice.
    #[must_use]
    pub fn new(now: Duration) -> Self {
        Self { left: LEAST, capacity: LEAST, filled: now }
    }

    /// Sets the capacity: the requests that all endpoints together can have in flight. Added
    /// capacity can be used at once, since an endpoint may die at any time.
    pub fn set_capacity(&mut self, in_flight: u32) {
        let capacity = f64::from(in_flight).max(LEAST);
        self.left = (self.left + (capacity - self.capacity).max(0.0)).min(capacity);
        self.capacity = capacity;
    }

    /// Adds a request's share, at its first try.
    pub fn deposit(&mut self) {
        self.left = (self.left + SHARE).min(self.capacity);
    }

    /// Takes one try; false if none is left.
    pub fn withdraw(&mut self, now: Duration) -> bool {
        let passed = now.saturating_sub(self.filled).as_secs_f64();
        self.filled = now;
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

    #[test]
    fn all_requests_of_a_dying_replica_are_tried_again_and_a_failing_pool_is_not_flooded() {
        let now = Duration::ZERO;
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
            let mut now = Duration::ZERO;
            let mut budget = RetryBudget::new(now);
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
                + now.as_secs_f64() * PER_SECOND;
            prop_assert!(again <= most + 1e-6);
        }
    }
}
