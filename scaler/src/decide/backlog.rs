//! The queue as a fluid: the share of requests that a number of replicas serves late, in the past or in
//! the future.
//!
//! All amounts are in mean requests. Requests arrive, and each replica works off as many at once as its
//! limit allows, at the rate of its [`Curve`]. A request is late if the replicas can't work off the
//! requests before it within the objective.

use super::capacity::Curve;
use super::proposal::round_up;

/// The replicas that are ready, and the times at which more will be.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    /// Replicas that take requests now.
    pub ready: u32,
    /// Seconds until each replica that is starting becomes ready, soonest first.
    pub ready_in: Vec<f64>,
    /// Seconds until a replica requested now becomes ready.
    pub cold_seconds: f64,
}

impl Fleet {
    /// The replicas that are ready in `seconds` from now, if the count is set to `wanted` now.
    fn at(&self, seconds: f64, wanted: u32) -> u32 {
        let started = self.ready_in.iter().take_while(|at| **at <= seconds).count() as u32;
        let present = self.ready + self.ready_in.len() as u32;
        let new = if seconds >= self.cold_seconds { wanted.saturating_sub(present) } else { 0 };
        (self.ready + started + new).min(wanted)
    }
}

/// The requests that are left of these after `seconds`. Without a branch, so that the compiler takes several
/// lanes at once.
fn step(requests: f64, replicas: f64, curve: &Curve, seconds: f64) -> f64 {
    let each = requests / larger(replicas, 1.0);
    larger(requests - replicas * curve.rate(each) * seconds, 0.0)
}

/// As [`f64::max`], where neither is NaN, in one instruction.
fn larger(a: f64, b: f64) -> f64 {
    if a > b { a } else { b }
}

/// The share of `arrivals` that would have waited longer than `objective` seconds for the first token,
/// with `replicas` ready all the time. Each arrival is (seconds ago, mean requests); oldest first.
#[must_use]
pub fn late_share(arrivals: &[(u64, f64)], replicas: u32, curve: &Curve, objective: f64) -> f64 {
    late_shares(arrivals, [replicas; LANES], curve, objective)[0]
}

/// Replica counts that one walk over the arrivals tries. Each step of a queue waits for the division of
/// the one before; side by side these waits overlap.
const LANES: usize = 4;

/// [`late_share`] for several counts.
fn late_shares(
    arrivals: &[(u64, f64)],
    replicas: [u32; LANES],
    curve: &Curve,
    objective: f64,
) -> [f64; LANES] {
    let room = replicas.map(|replicas| f64::from(replicas) * curve.room(objective));
    let replicas = replicas.map(f64::from);
    let (mut queue, mut late) = ([0.0f64; LANES], [0.0; LANES]);
    let (mut all, mut last) = (0.0, None);
    for (ago, count) in arrivals {
        let pause = last.map_or(0, |last: u64| last.saturating_sub(*ago));
        last = Some(*ago);
        for _ in 0..pause {
            if queue.iter().all(|queue| *queue <= 0.0) {
                break;
            }
            for (queue, replicas) in queue.iter_mut().zip(replicas) {
                *queue = step(*queue, replicas, curve, 1.0);
            }
        }
        for lane in 0..LANES {
            queue[lane] += count;
            let over = larger(queue[lane] - room[lane], 0.0);
            late[lane] += if over < *count { over } else { *count };
        }
        all += count;
    }
    late.map(|late| if all > 0.0 { late / all } else { 0.0 })
}

/// The replicas that the arrivals of the last `seconds` were worth, at most `most`.
///
/// It starts from the fewest with which at most the share `late` of the requests would have been late,
/// and goes below that if it costs less. The cost of a count is the capacity of its replicas over
/// `seconds`, in requests, plus `weight` for each late request.
#[must_use]
pub fn worth(
    arrivals: &[(u64, f64)],
    seconds: f64,
    curve: &Curve,
    objective: f64,
    late: f64,
    weight: f64,
    most: u32,
) -> u32 {
    if arrivals.is_empty() {
        return 0;
    }
    let shares = |replicas| late_shares(arrivals, replicas, curve, objective);
    let enough = fewest_at_once(1, most, |replicas| shares(replicas).map(|share| share <= late));
    let all: f64 = arrivals.iter().map(|(_, count)| count).sum();
    let costs = |replicas: [u32; LANES]| {
        let shares = shares(replicas);
        std::array::from_fn::<f64, LANES, _>(|lane| {
            let capacity = f64::from(replicas[lane]) * curve.full_rate() * seconds;
            weight * shares[lane] * all + capacity
        })
    };
    // Never fewer than the mean rate needs. Below that every request is late, and one more replica saves
    // none of them, so the cost alone would always favour fewer.
    let least_stable = round_up(all / seconds / curve.full_rate()).clamp(1, enough);
    if least_stable == enough {
        return enough;
    }
    // Large pools are searched in coarser steps.
    let step = (enough / 16).max(1) as usize;
    let (mut best, mut least) = (enough, f64::INFINITY);
    let mut counts = std::iter::once(enough).chain((least_stable..enough).rev().step_by(step));
    while let Some(first) = counts.next() {
        let mut tried = [first; LANES];
        tried[1..].fill_with(|| counts.next().unwrap_or(first));
        for (replicas, cost) in tried.into_iter().zip(costs(tried)) {
            if cost < least {
                (best, least) = (replicas, cost);
            }
        }
    }
    best
}

/// The fewest replicas to request now, at most `most`, with which a request that arrives `recovery`
/// seconds after they are ready is served in time.
///
/// `queue` is the number of requests in the system. `arrival_rates` holds the expected arrivals per
/// second: until the new replicas are ready, and from then on.
#[must_use]
pub fn for_backlog(
    queue: f64,
    arrival_rates: [f64; 2],
    fleet: &Fleet,
    curve: &Curve,
    objective: f64,
    recovery: f64,
    most: u32,
) -> u32 {
    let horizon = fleet.cold_seconds + recovery;
    let dt = (horizon / 120.0).max(1.0);
    let recovers = |wanted: u32| {
        let (mut left, mut at) = (queue, 0.0);
        while at < horizon {
            let rate = arrival_rates[usize::from(at >= fleet.cold_seconds)];
            left = step(left + rate * dt, fleet.at(at, wanted).into(), curve, dt);
            at += dt;
        }
        left <= f64::from(wanted) * curve.room(objective)
    };
    let work = queue + arrival_rates[0] + arrival_rates[1];
    if work <= 0.0 { 0 } else { fewest(1, most, recovers) }
}

/// The smallest count of `least..=most` that is enough, or `most` if none is. If a count is enough, all
/// larger ones must be.
fn fewest(least: u32, most: u32, is_enough: impl Fn(u32) -> bool) -> u32 {
    let (mut low, mut high) = (least, most.max(least));
    while low < high {
        let middle = low + (high - low) / 2;
        if is_enough(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

/// The same, where several counts are judged at once.
fn fewest_at_once(
    least: u32,
    most: u32,
    are_enough: impl Fn([u32; LANES]) -> [bool; LANES],
) -> u32 {
    let (mut low, mut high) = (least, most.max(least));
    while low < high {
        let part = |lane: u64| u64::from(high - low) * (lane + 1) / (LANES as u64 + 1);
        let tried = std::array::from_fn(|lane| low + part(lane as u64) as u32);
        let first = are_enough(tried).iter().position(|enough| *enough);
        if first != Some(0) {
            low = tried[first.unwrap_or(LANES) - 1] + 1;
        }
        if let Some(first) = first {
            high = tried[first];
        }
    }
    low
}

#[cfg(test)]
mod tests;
