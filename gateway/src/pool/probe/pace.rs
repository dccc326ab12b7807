//! How many probes are under way, and how often endpoints that do not answer are probed.
//!
//! Probes run on the thread that started the gateway, never on one that serves clients. An endpoint
//! that answers costs a request every few seconds. One that does not could cost ten connections a
//! second for as long as it is dead, so all of those share a number of probes per second, in turns.
//! The young ones, which may be starting, have the greater part of it for themselves. Places bound how
//! many wait for an answer at the same time: an address that swallows connections takes one for two
//! seconds. Endpoints that answer have places of their own, so dead ones never delay them.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::SemaphorePermit;
use tokio::time::Instant;

use crate::net::file_shares::PROBE_FILES;
use crate::pool::endpoint::Urgency;

/// The pauses between two probes of young endpoints that do not answer, whichever they are, and of
/// old ones: 1500 and 500 a second.
const YOUNG_GAP: Duration = Duration::from_micros(667);
const OLD_GAP: Duration = Duration::from_micros(2000);

/// Endpoints that answer are looked at in steps of this time: the thread wakes once for many of them.
pub(super) const STEP: Duration = Duration::from_millis(50);

/// The turns of one gateway's endpoints that do not answer, and the steps of those that do.
#[derive(Debug)]
pub(super) struct Pace {
    began: Instant,
    young: Turns,
    old: Turns,
}

#[derive(Debug)]
struct Turns {
    gap: Duration,
    /// The first turn that is free.
    next: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        let turns = |gap| Turns { gap, next: Mutex::new(now) };
        Self { began: now, young: turns(YOUNG_GAP), old: turns(OLD_GAP) }
    }

    /// The number of the first step that is not before `at`.
    pub(super) fn step(&self, at: Instant) -> u64 {
        let past = at.saturating_duration_since(self.began).as_nanos() as u64;
        past.div_ceil(STEP.as_nanos() as u64)
    }

    /// The time of a step.
    pub(super) fn time(&self, step: u64) -> Instant {
        self.began + Duration::from_nanos(step * STEP.as_nanos() as u64)
    }

    /// The earliest time for the next probe of an endpoint whose last one, of this urgency, brought no
    /// answer.
    pub(super) fn turn(&self, urgency: Urgency, now: Instant) -> Instant {
        match urgency {
            Urgency::Answering => now,
            Urgency::Young => self.young.take(now),
            Urgency::Old => self.old.take(now),
        }
    }
}

impl Turns {
    fn take(&self, now: Instant) -> Instant {
        let mut next = self.next.lock();
        let turn = now.max(*next);
        *next = turn + self.gap;
        turn
    }
}

/// Waits for a place among the probes under way.
pub(super) async fn place(urgency: Urgency) -> Option<SemaphorePermit<'static>> {
    let places = match urgency {
        Urgency::Answering => &PROBE_FILES.answering,
        Urgency::Young | Urgency::Old => &PROBE_FILES.silent,
    };
    places.acquire().await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn dead_endpoints_take_turns_and_together_stay_below_two_thousand_probes_a_second() {
        let start = Instant::now();
        let pace = Pace::new(start);
        let mut turns: Vec<_> = (0..900).map(|_| pace.turn(Urgency::Old, start)).collect();
        let mut rounds = vec![0; turns.len()];
        // Each asks for its next turn when its last one has come.
        for _ in 0..3 * turns.len() {
            let (first, turn) =
                turns.iter().copied().enumerate().min_by_key(|(_, turn)| *turn).expect("some");
            turns[first] = pace.turn(Urgency::Old, turn);
            rounds[first] += 1;
        }
        assert!(rounds.iter().all(|rounds| *rounds == 3), "none twice before all");
        let (took, least) = (*turns.iter().min().expect("some") - start, 3 * 900 / 500);
        assert!(took >= SECOND * least, "{took:?}");
        assert!(pace.turn(Urgency::Young, start) == start, "young ones do not wait for them");
    }

    #[tokio::test(start_paused = true)]
    async fn endpoints_that_answer_are_looked_at_in_steps_and_never_too_early() {
        let start = Instant::now();
        let pace = Pace::new(start);
        for (at, step) in [(0, 0), (1, 50), (50, 50), (3501, 3550), (86_400_000, 86_400_000)] {
            let [at, step] = [at, step].map(|ms| start + Duration::from_millis(ms));
            assert_eq!(pace.time(pace.step(at)), step);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_that_start_are_probed_as_often_as_they_are_due() {
        let start = Instant::now();
        let pace = Pace::new(start);
        let pause = Duration::from_millis(100);
        for round in 0..50 {
            let now = start + pause * round;
            for _ in 0..100 {
                assert!(pace.turn(Urgency::Young, now) < now + pause);
            }
        }
    }
}
