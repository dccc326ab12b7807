//! Pauses between tries: they double from one failure to the next, up to a bound.

use std::time::Duration;

use rand::Rng;

/// `first`, doubled `times` times, but not longer than `longest`.
#[must_use]
pub fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(times)).min(longest)
}

/// How chance changes each pause, so that clients that failed together return at different times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// By up to a quarter, up or down, as far as the bounds allow.
    Around,
    /// Down to a half of it.
    Below,
}

/// The pauses between the tries of one thing.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    spread: Spread,
    failures: u32,
}

impl Backoff {
    /// Doubles from `first` to `longest`.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration, spread: Spread) -> Self {
        Self { first, longest, spread, failures: 0 }
    }

    /// The state after this many failures in a row.
    #[must_use]
    pub const fn after(self, failures: u32) -> Self {
        Self { failures, ..self }
    }

    /// Failures in a row.
    #[must_use]
    pub const fn failures(self) -> u32 {
        self.failures
    }

    /// Begins anew after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Counts a failure and returns the pause that follows it.
    #[must_use]
    pub fn next(&mut self, rng: &mut impl Rng) -> Duration {
        let pause = doubled(self.first, self.failures, self.longest);
        self.failures = self.failures.saturating_add(1);
        let (least, most) = match self.spread {
            Spread::Around => {
                (pause.mul_f64(0.75).max(self.first), pause.mul_f64(1.25).min(self.longest))
            }
            Spread::Below => (pause / 2, pause),
        };
        // Drawn between the bounds. Clamped to them, half of all pauses would be equal.
        least + most.saturating_sub(least).mul_f64(rng.random::<f64>())
    }

    /// Counts a failure and sleeps.
    pub async fn pause(&mut self) {
        let pause = self.next(&mut rand::rng());
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);

    fn backoff(spread: Spread) -> Backoff {
        Backoff::new(SECOND, MINUTE, spread)
    }

    #[test]
    fn pauses_double_up_to_the_bound() {
        for (times, seconds) in (0..).zip([1, 2, 4, 8, 16, 32, 60, 60]) {
            assert_eq!(doubled(SECOND, times, MINUTE).as_secs(), seconds);
        }
        let (mut rng, mut backoff) = (SmallRng::seed_from_u64(1), backoff(Spread::Below));
        for _ in 0..8 {
            let _ = backoff.next(&mut rng);
        }
        assert_eq!(backoff.failures(), 8);
        assert!(backoff.next(&mut rng) >= MINUTE / 2);
        backoff.reset();
        assert!(backoff.next(&mut rng) <= SECOND);
    }

    proptest! {
        #[test]
        fn chance_keeps_pauses_within_their_bounds(seed: u64) {
            let mut rng = SmallRng::seed_from_u64(seed);
            let (mut around, mut below) = (backoff(Spread::Around), backoff(Spread::Below));
            for nominal in [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0] {
                let pause = around.next(&mut rng).as_secs_f64();
                prop_assert!((1.0..=60.0).contains(&pause), "{pause}");
                prop_assert!((nominal * 0.75..=nominal * 1.25).contains(&pause), "{pause}");
                let pause = below.next(&mut rng).as_secs_f64();
                prop_assert!((nominal * 0.5..=nominal).contains(&pause), "{pause}");
            }
        }

        #[test]
        fn no_count_of_failures_overflows(seed: u64, failures: u16) {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut backoff = backoff(Spread::Around).after(u32::MAX - u32::from(failures));
            for _ in 0..3 {
                prop_assert!((45..=60).contains(&backoff.next(&mut rng).as_secs()));
            }
        }
    }

    #[test]
    fn clients_that_failed_together_return_at_different_times_also_at_the_bounds() {
        for spread in [Spread::Around, Spread::Below] {
            for failures in [0, 5, 20] {
                let backoff = backoff(spread).after(failures);
                let pause = |seed| { backoff }.next(&mut SmallRng::seed_from_u64(seed));
                let pauses: std::collections::BTreeSet<_> = (0..1000).map(pause).collect();
                assert!(pauses.len() > 990, "{spread:?}, {failures}: {}", pauses.len());
            }
        }
    }
}
