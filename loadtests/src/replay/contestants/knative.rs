//! Knative's KPA: stable and panic windows of concurrency, read every 2 s.
//!
//! With `R = max(1, ready)` and `target = 0.7 · containerConcurrency`: the stable and the panic
//! proposal are ⌈mean over 60 s / target⌉ and ⌈mean over 6 s / target⌉, each within ⌊R/2⌋ and
//! 1000·R. Panic begins when the panic proposal is at least 2·R and ends 60 s after the last such
//! proposal; during it the count never falls. Zero comes after a stable window without a request and
//! the retention of the last pod. The activator holds while there is no room, and reports its first
//! held request at zero at once. Here it is always in the path, which is the best case for Knative.

use std::collections::VecDeque;

use super::{Bounds, Contestant, Rules};
use crate::replay::trace::{SECOND, Us};
use crate::replay::world::{Hold, Victim, World};

const TICK: Us = 2 * SECOND;
const REPORT: Us = SECOND;
const STABLE: Us = 60 * SECOND;
const PANIC: Us = 6 * SECOND;
const UTILIZATION: f64 = 0.7;
const PANIC_THRESHOLD: f64 = 2.0;
const GRACE: Us = 30 * SECOND;

/// The autoscaler of one revision.
#[derive(Debug)]
pub(crate) struct Knative {
    bounds: Bounds,
    target: f64,
    /// Mean concurrency of each second, with the second's end.
    seconds: VecDeque<(Us, f64)>,
    work: u64,
    next_report: Us,
    next_tick: Us,
    panicking_since: Option<Us>,
    panic_most: u32,
    inactive_since: Option<Us>,
    desired: u32,
}

impl Knative {
    pub(crate) fn new(bounds: Bounds, concurrency: u32) -> Self {
        Self {
            bounds: Bounds { limit: concurrency, ..bounds },
            target: (f64::from(concurrency) * UTILIZATION).max(0.01),
            seconds: VecDeque::new(),
            work: 0,
            next_report: REPORT,
            next_tick: TICK,
            panicking_since: None,
            panic_most: 0,
            inactive_since: None,
            desired: bounds.min,
        }
    }

    fn report(&mut self, now: Us, mean: f64) {
        self.seconds.push_back((now, mean));
        while self.seconds.front().is_some_and(|(at, _)| *at + STABLE <= now) {
            self.seconds.pop_front();
        }
    }

    fn mean(&self, now: Us, window: Us) -> f64 {
        let within = self.seconds.iter().rev().take_while(|(at, _)| *at + window > now);
        let (sum, count) = within.fold((0.0, 0), |(sum, n), (_, mean)| (sum + mean, n + 1));
        if count == 0 { 0.0 } else { sum / f64::from(count) }
    }

    /// The KPA's formula.
    fn decide(&mut self, now: Us, ready: u32) -> u32 {
        let ready = ready.max(1);
        let (stable, panic) = (self.mean(now, STABLE), self.mean(now, PANIC));
        let clamp = |count: f64| (count as u32).clamp(ready / 2, ready * 1000);
        let panic_pods = (panic / self.target).ceil();
        let over = panic_pods / f64::from(ready) >= PANIC_THRESHOLD;
        if over {
            self.panicking_since = Some(now);
        } else if self.panicking_since.is_some_and(|since| since + STABLE < now) {
            (self.panicking_since, self.panic_most) = (None, 0);
        }
        let mut desired = clamp((stable / self.target).ceil());
        if self.panicking_since.is_some() {
            self.panic_most = self.panic_most.max(desired).max(clamp(panic_pods));
            desired = self.panic_most;
        }
        // Zero only after an empty window, and the retention.
        if stable > 0.0 || self.seconds.is_empty() {
            self.inactive_since = None;
        } else {
            self.inactive_since.get_or_insert(now);
        }
        let retention = self.bounds.cooldown.saturating_sub(STABLE).max(GRACE);
        let may_end = self.inactive_since.is_some_and(|since| since + retention <= now);
        if self.desired > 0 && !may_end {
            desired = desired.max(1);
        }
        self.desired = desired.clamp(self.bounds.min, self.bounds.max);
        self.desired
    }
}

impl Contestant for Knative {
    fn rules(&self) -> Rules {
        Rules {
            hold: Hold::UntilRoom,
            victim: Victim::Youngest,
            revives_draining: false,
            move_after: None,
            scales: true,
            measures_room: false,
            initial_replicas: self.bounds.min,
        }
    }

    fn next_look(&self) -> Us {
        self.next_report.min(self.next_tick)
    }

    fn look(&mut self, world: &World<'_>) -> Option<u32> {
        let now = world.now();
        if self.next_report <= now {
            self.next_report += REPORT;
            let work = world.work();
            self.report(now, (work - self.work) as f64 / REPORT as f64);
            self.work = work;
            return None;
        }
        self.next_tick += TICK;
        Some(self.decide(now, world.counts().ready))
    }

    fn wants_pushes(&self) -> bool {
        true
    }

    /// The activator's poke: at zero, the first request starts one replica at once.
    fn on_push(&mut self, world: &World<'_>) -> Option<u32> {
        (self.desired == 0 && world.held() > 0).then(|| {
            self.inactive_since = None;
            self.desired = 1.min(self.bounds.max);
            self.desired
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kpa(min: u32, concurrency: u32) -> Knative {
        let bounds = Bounds { min, max: 100, cooldown: 90 * SECOND, limit: 10, target: 8 };
        Knative::new(bounds, concurrency)
    }

    /// Plays seconds of this concurrency, deciding every 2 s, and returns the last count.
    fn run(kpa: &mut Knative, now: &mut Us, seconds: u64, concurrency: f64, ready: u32) -> u32 {
        for _ in 0..seconds {
            *now += SECOND;
            kpa.report(*now, concurrency);
            if now.is_multiple_of(TICK) {
                kpa.decide(*now, ready);
            }
        }
        kpa.desired
    }

    #[test]
    fn the_count_is_the_mean_over_seventy_percent_of_the_container_concurrency() {
        for (concurrency, want) in [(7.0, 1), (7.1, 2), (14.0, 2), (70.0, 10)] {
            assert_eq!(run(&mut kpa(1, 10), &mut 0, 120, concurrency, want), want, "{concurrency}");
        }
    }

    #[test]
    fn a_burst_panics_and_the_count_does_not_fall_for_a_minute_after() {
        let (mut kpa, mut now) = (kpa(1, 10), 0);
        run(&mut kpa, &mut now, 60, 7.0, 1);
        assert_eq!(run(&mut kpa, &mut now, 6, 70.0, 1), 10, "by the six-second window");
        assert_eq!(run(&mut kpa, &mut now, 58, 7.0, 10), 10, "panic goes on");
        assert_eq!(run(&mut kpa, &mut now, 20, 7.0, 10), 5, "then down, by half at a time");
    }

    #[test]
    fn zero_comes_after_the_window_and_the_retention() {
        let (mut kpa, mut now) = (kpa(0, 10), 0);
        assert_eq!(run(&mut kpa, &mut now, 10, 5.0, 1), 1);
        assert_eq!(run(&mut kpa, &mut now, 88, 0.0, 1), 1, "60 s of window, 30 s of retention");
        assert_eq!(run(&mut kpa, &mut now, 6, 0.0, 1), 0);
    }
}
