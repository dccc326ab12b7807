//! How long to wait before the next try.

use std::time::Duration;

use rand::Rng;

const FIRST: Duration = Duration::from_millis(100);
const MOST: Duration = Duration::from_secs(5);

/// Pauses that double up to a few seconds, each shortened by chance, so that many who lost the
/// API server in one moment come back apart.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    failures: u32,
}

impl Pace {
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    pub(crate) async fn pause(&mut self) {
        let pause = FIRST * 2u32.saturating_pow(self.failures.min(8));
        self.failures = self.failures.saturating_add(1);
        let share = rand::rng().random_range(0.5..1.0);
        tokio::time::sleep(pause.min(MOST).mul_f64(share)).await;
    }
}
