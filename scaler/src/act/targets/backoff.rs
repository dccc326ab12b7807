//! How long a replica that died is left alone before it is started again.

use std::time::Duration;

use rand::Rng;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// Doubles from 1 s to 60 s, each spread by a quarter, so that replicas which died together don't
/// start together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next pause.
    #[must_use]
    pub(super) fn next(&mut self, rng: &mut impl Rng) -> Duration {
        let pause = FIRST * 2_u32.pow(self.failures.min(6));
        self.failures = self.failures.saturating_add(1);
        pause.min(LONGEST).mul_f64(rng.random_range(0.75..1.25)).clamp(FIRST, LONGEST)
    }

    /// As it is after so many failures in a row.
    pub(super) fn after(failures: u32) -> Self {
        Self { failures }
    }

    /// Failures in a row.
    pub(super) fn failures(self) -> u32 {
        self.failures
    }

    /// After a replica that was ready, its failures begin anew.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    proptest! {
        #[test]
        fn pauses_grow_from_one_second_to_a_minute(seed: u64) {
            let (mut rng, mut backoff) = (SmallRng::seed_from_u64(seed), Backoff::default());
            for nominal in [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0] {
                let pause = backoff.next(&mut rng).as_secs_f64();
                prop_assert!((1.0..=60.0).contains(&pause), "{pause}");
                prop_assert!((nominal * 0.75..=nominal * 1.25).contains(&pause), "{pause}");
            }
        }

        #[test]
        fn it_never_leaves_its_bounds_and_starts_over_after_a_reset(seed: u64, failures: u16) {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut backoff = Backoff { failures: u32::MAX - u32::from(failures) };
            for _ in 0..3 {
                prop_assert!((45..=60).contains(&backoff.next(&mut rng).as_secs()));
            }
            backoff.reset();
            prop_assert!(backoff.next(&mut rng) < Duration::from_millis(1250));
        }
    }

    #[test]
    fn replicas_that_died_together_start_apart() {
        let pause = |seed| Backoff { failures: 5 }.next(&mut SmallRng::seed_from_u64(seed));
        assert_ne!(pause(1), pause(2));
    }
}
