//! KEDA's prometheus trigger on `sum(vllm:num_requests_waiting)` and the HPA that it makes.
//!
//! Prometheus scrapes every 15 s and the HPA reads the last figure every 15 s, so that the HPA sees a
//! queue up to half a minute late. KEDA itself polls every 30 s: it stops the last replica after a
//! cooldown without a waiting request, and would wake the workload for one. But without a replica the
//! metric does not exist, so KEDA never wakes it. No gateway holds: refused clients retry.

use super::hpa::{Hpa, SYNC};
use super::{Bounds, Contestant, Rules};
use crate::replay::trace::{SECOND, Us};
use crate::replay::world::{Hold, Victim, World};

/// Waiting requests for each replica, the number that guides recommend.
pub(crate) const THRESHOLD: f64 = 5.0;
const SCRAPE: Us = 15 * SECOND;
const POLL: Us = 30 * SECOND;
/// First times of scrape, sync and poll, which are not in step.
const FIRST: [Us; 3] = [2 * SECOND, 9 * SECOND, 5 * SECOND];

/// KEDA, Prometheus and the HPA together.
#[derive(Debug)]
pub(crate) struct Keda {
    bounds: Bounds,
    threshold: f64,
    hpa: Hpa,
    scraped: f64,
    /// Next scrape, sync and poll.
    next: [Us; 3],
    active: Us,
}

impl Keda {
    pub(crate) fn new(bounds: Bounds, threshold: f64) -> Self {
        Self { bounds, threshold, hpa: Hpa::default(), scraped: 0.0, next: FIRST, active: 0 }
    }

    /// Runs the one of the three that is due.
    fn at(&mut self, now: Us, waiting: f64, current: u32) -> Option<u32> {
        if self.next[0] <= now {
            self.next[0] += SCRAPE;
            // No replica, no series: an empty result, which KEDA reads as 0.
            self.scraped = waiting;
            None
        } else if self.next[1] <= now {
            self.next[1] += SYNC;
            let bounds = (self.bounds.min, self.bounds.max);
            // The HPA leaves a workload at zero alone.
            (current > 0).then(|| self.hpa.sync(now, current, self.scraped, self.threshold, bounds))
        } else {
            self.next[2] += POLL;
            if self.scraped > 0.0 {
                self.active = now;
                return (current == 0).then(|| self.bounds.min.max(1));
            }
            let idle = now.saturating_sub(self.active) >= self.bounds.cooldown;
            (self.bounds.min == 0 && current > 0 && idle).then_some(0)
        }
    }
}

impl Contestant for Keda {
    fn rules(&self) -> Rules {
        Rules {
            hold: Hold::Never,
            victim: Victim::Youngest,
            revives_draining: false,
            move_after: None,
            scales: true,
            measures_room: false,
            initial_replicas: self.bounds.min,
        }
    }

    fn next_look(&self) -> Us {
        self.next.into_iter().min().unwrap_or(Us::MAX)
    }

    fn look(&mut self, world: &World<'_>) -> Option<u32> {
        let shown = world.replicas().filter(|replica| replica.ready || replica.draining);
        let waiting: usize = shown.map(|replica| replica.batch.waiting()).sum();
        let counts = world.counts();
        self.at(world.now(), waiting as f64, counts.starting + counts.ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(min: u32) -> Bounds {
        Bounds { min, max: 20, cooldown: 300 * SECOND, limit: 128, target: 100 }
    }

    /// Runs the three clocks to a time and returns every count that was set.
    fn until(keda: &mut Keda, end: Us, waiting: f64, mut current: u32) -> Vec<(u64, u32)> {
        let mut set = Vec::new();
        while keda.next_look() <= end {
            let now = keda.next_look();
            if let Some(count) = keda.at(now, waiting, current)
                && count != current
            {
                current = count;
                set.push((now / SECOND, count));
            }
        }
        set
    }

    #[test]
    fn a_queue_is_seen_at_the_scrape_and_acted_on_at_the_sync() {
        let set = until(&mut Keda::new(bounds(1), 5.0), 25 * SECOND, 40.0, 1);
        assert_eq!(set, [(9, 5), (24, 8)], "at most four more in 15 s, then as many as asked for");
    }

    #[test]
    fn without_a_replica_there_is_no_metric_and_so_no_wake() {
        let mut keda = Keda::new(bounds(0), 5.0);
        assert_eq!(until(&mut keda, 3600 * SECOND, 0.0, 0), []);
        let mut keda = Keda::new(bounds(0), 5.0);
        assert_eq!(until(&mut keda, 40 * SECOND, 1.0, 0), [(5, 1)], "it would, if there were one");
    }

    #[test]
    fn the_last_replica_goes_after_the_cooldown_without_a_waiting_request() {
        let set = until(&mut Keda::new(bounds(0), 5.0), 400 * SECOND, 0.0, 1);
        assert_eq!(set, [(305, 0)]);
        assert_eq!(until(&mut Keda::new(bounds(1), 5.0), 400 * SECOND, 0.0, 1), []);
    }
}
