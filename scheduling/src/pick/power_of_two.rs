//! Power of two choices: the better of two endpoints taken at random.
//!
//! The better one has the smaller product of its peak EWMA of the time to the first token and of its
//! requests in flight, this one included. So an endpoint that is slow gets fewer, and several
//! gateways that see only their own requests don't all run to the same endpoint. While one of the two
//! has shown no first token yet, only the requests in flight count.
//!
//! Sources: Mitzenmacher, "The power of two choices in randomized load balancing", 2001; the peak
//! EWMA is Finagle's and linkerd's (`tower::load::PeakEwma`): it takes a longer time at once, and
//! forgets it over ten seconds.

use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;

use super::candidate::EndpointId;
use super::suitable::Suitable;

/// The time after which a measurement counts 1/e.
const DECAY: f64 = 10.0;
/// The fewest seconds. Without news for long, only the requests in flight count.
const LEAST: f64 = 0.001;
/// The draws for two endpoints. Where few of many are suitable, draws mostly find none.
const DRAWS: usize = 8;

/// The times to the first tokens of a pool's endpoints.
#[derive(Debug, Default)]
pub(super) struct Latencies(Vec<Latency>);

/// An endpoint's peak EWMA.
#[derive(Clone, Copy, Debug, Default)]
struct Latency {
    /// The process that was measured. Another one at the same endpoint begins anew.
    process: u64,
    seconds: f64,
    at: Duration,
}

impl Latency {
    /// The mean as it is now: without news it falls.
    fn at(&self, now: Duration) -> f64 {
        let idle = now.saturating_sub(self.at).as_secs_f64();
        let decayed = if idle == 0.0 { self.seconds } else { self.seconds * (-idle / DECAY).exp() };
        decayed.max(LEAST)
    }
}

impl Latencies {
    /// Takes the time that a request at an endpoint waited for its first token.
    pub(super) fn observe(&mut self, id: EndpointId, process: u64, took: f64, now: Duration) {
        let at = id.number();
        if self.0.len() <= at {
            self.0.resize_with(at + 1, Latency::default);
        }
        let known = &mut self.0[at];
        // The last answer of a process that another one has followed.
        if process < known.process {
            return;
        }
        let before = if known.process == process { known.at(now) } else { 0.0 };
        let seconds = if took >= before {
            took
        } else {
            let weight = (-now.saturating_sub(known.at).as_secs_f64() / DECAY).exp();
            known.seconds * weight + took * (1.0 - weight)
        };
        *known = Latency { process, seconds, at: now };
    }

    fn of(&self, id: EndpointId, process: u64, now: Duration) -> Option<f64> {
        let known = self.0.get(id.number())?;
        (known.process == process && process > 0).then(|| known.at(now))
    }
}

/// Chooses the better of two suitable endpoints.
pub(super) fn power_of_two(
    suitable: &Suitable<'_>,
    latencies: &Latencies,
    random: &mut SmallRng,
    now: Duration,
) -> Option<EndpointId> {
    let mut drawn: Option<EndpointId> = None;
    for _ in 0..DRAWS {
        let Some(id) = suitable.draw(|most| random.random_range(0..most)) else { break };
        match drawn {
            None => drawn = Some(id),
            Some(first) if first != id => {
                return Some(better(suitable, latencies, (first, id), now));
            }
            Some(_) => {}
        }
    }
    drawn.or_else(|| suitable.least_busy())
}

fn better(
    suitable: &Suitable<'_>,
    latencies: &Latencies,
    (first, second): (EndpointId, EndpointId),
    now: Duration,
) -> EndpointId {
    let known = |id| latencies.of(id, suitable.get(id)?.process, now);
    let times = known(first).zip(known(second)).unwrap_or((1.0, 1.0));
    let cost = |id, time: f64| {
        suitable.get(id).map_or(f64::INFINITY, |seen| time * f64::from(seen.in_flight + 1))
    };
    if cost(second, times.1) < cost(first, times.0) { second } else { first }
}

#[cfg(test)]
mod tests {
    use forebay_config::Pick;

    use super::super::tests::{Pool, candidate};
    use super::super::{Candidate, Requirements};
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_less_busy_of_two_is_chosen() {
        let busy = Candidate { in_flight: 9, ..candidate(1) };
        let mut pool = Pool::new(Pick::PowerOfTwo, &[busy, candidate(2)]);
        let picks = pool.picks(6, &Requirements::default());
        assert!(picks.iter().filter(|port| **port == 2).count() >= 5, "{picks:?}");
    }

    #[test]
    fn a_new_endpoint_beside_fast_busy_ones_is_chosen() {
        let mut pool = Pool::new(Pick::PowerOfTwo, &[1, 2].map(candidate));
        let now = seconds(1);
        for _ in 0..20 {
            let mut given = pool.give(&Requirements::default(), now).expect("it measures");
            pool.first_token(&mut given, now + Duration::from_millis(40));
        }
        pool.add(candidate(3));
        let picks = pool.picks(9, &Requirements::default());
        assert!(picks.iter().filter(|port| **port == 3).count() >= 4, "{picks:?}");
    }

    #[test]
    fn every_endpoint_of_many_is_chosen_and_none_often() {
        let all: Vec<_> = (1..101).map(candidate).collect();
        let mut pool = Pool::new(Pick::PowerOfTwo, &all);
        for _ in 0..1000 {
            pool.give(&Requirements::default(), Duration::ZERO);
        }
        let loads = pool.loads();
        assert!(loads.iter().all(|load| (7..=13).contains(load)), "{loads:?}");
    }

    #[test]
    fn a_slow_endpoint_gets_fewer_until_its_slowness_is_forgotten() {
        let mut pool = Pool::new(Pick::PowerOfTwo, &[candidate(1), candidate(2)]);
        for port in [1, 2] {
            let took = Duration::from_millis(if port == 1 { 5000 } else { 500 });
            pool.observe(port, took, seconds(10));
        }
        for _ in 0..33 {
            pool.give(&Requirements::default(), seconds(10));
        }
        let loads = pool.loads();
        assert!((2..=4).contains(&loads[0]), "a tenth as fast: {loads:?}");
        for _ in 0..33 {
            pool.give(&Requirements::default(), seconds(10_000));
        }
        let loads = pool.loads();
        assert!(loads[0].abs_diff(loads[1]) <= 2, "{loads:?}");
    }

    #[test]
    fn a_plain_answer_counts_by_the_time_for_each_of_its_tokens() {
        let mut pool = Pool::new(Pick::PowerOfTwo, &[candidate(1)]);
        let given = pool.give(&Requirements::default(), seconds(1)).expect("it measures");
        pool.end_after(given, 500, seconds(6));
        pool.add(candidate(2));
        pool.observe(2, Duration::from_millis(100), seconds(6));
        for _ in 0..33 {
            pool.give(&Requirements::default(), seconds(6));
        }
        let loads = pool.loads();
        assert!(loads[0] > 3 * loads[1], "10 ms against 100 ms: {loads:?}");
    }

    #[test]
    fn a_longer_time_counts_at_once_and_a_shorter_one_by_and_by() {
        let mut latencies = Latencies::default();
        let id = Pool::new(Pick::PowerOfTwo, &[candidate(1)]).ids[0];
        assert_eq!(latencies.of(id, 1, seconds(0)), None);
        latencies.observe(id, 1, 0.1, seconds(0));
        latencies.observe(id, 1, 2.0, seconds(1));
        assert_eq!(latencies.of(id, 1, seconds(1)), Some(2.0));
        latencies.observe(id, 1, 0.1, seconds(2));
        let now = latencies.of(id, 1, seconds(2)).expect("measured");
        assert!((1.5..2.0).contains(&now), "{now}");
        assert!(latencies.of(id, 1, seconds(60)).expect("measured") < 0.01);
        assert_eq!(latencies.of(id, 2, seconds(2)), None, "another process");
        latencies.observe(id, 2, 0.2, seconds(3));
        assert_eq!(latencies.of(id, 2, seconds(3)), Some(0.2));
    }

    #[test]
    fn one_that_few_draws_find_is_still_found() {
        let full = |port| Candidate { room: 0, ..candidate(port) };
        let mut all: Vec<_> = (1..100).map(full).collect();
        all.push(candidate(100));
        let mut pool = Pool::new(Pick::PowerOfTwo, &all);
        assert_eq!(pool.picks(1, &Requirements::default()), [100]);
        let avoiding = Requirements { avoid: [100].into(), ..Requirements::default() };
        assert_eq!(pool.picks(1, &avoiding), [0; 0], "others are ready, though full");
    }
}
