//! The queue as a fluid: how a load would have fared, or will fare, with so many replicas.
//!
//! Everything is in mean requests. In each second some come; each replica works on as many at once
//! as it may have, at the rate of its [`Curve`]; who finds more before them than can be worked off
//! within the objective is late.

use super::capacity::Curve;
use super::proposal::round_up;

/// Replicas from now on: those that are ready, and when others will be.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    /// Take requests now.
    pub ready: u32,
    /// Seconds until each of those on their way will be ready, soonest first.
    pub coming: Vec<f64>,
    /// Seconds until one that is asked for now would be.
    pub cold_seconds: f64,
}

impl Fleet {
    /// How many there will be in `seconds`, if `wanted` are asked for now.
    fn at(&self, seconds: f64, wanted: u32) -> u32 {
        let coming = self.coming.iter().take_while(|at| **at <= seconds).count() as u32;
        let known = self.ready + self.coming.len() as u32;
        let new = if seconds >= self.cold_seconds { wanted.saturating_sub(known) } else { 0 };
        (self.ready + coming + new).min(wanted)
    }
}

/// One second or more of the fluid: what is left of `queue` after `arrivals`.
fn step(queue: f64, arrivals: f64, replicas: u32, curve: &Curve, seconds: f64) -> f64 {
    let there = queue + arrivals;
    if replicas == 0 {
        return there;
    }
    let n = f64::from(replicas);
    (there - n * curve.rate(there / n) * seconds).max(0.0)
}

/// The share of `arrivals` (seconds ago, mean requests; oldest first) whose first token would have
/// come later than `objective` seconds, had there been `replicas` all the time.
#[must_use]
pub fn late_share(arrivals: &[(u64, f64)], replicas: u32, curve: &Curve, objective: f64) -> f64 {
    let room = f64::from(replicas) * curve.room(objective);
    let (mut queue, mut late, mut all, mut last) = (0.0f64, 0.0, 0.0, None);
    for (ago, count) in arrivals {
        let pause = last.map_or(0, |last: u64| last.saturating_sub(*ago));
        last = Some(*ago);
        for _ in 0..pause {
            if queue <= 0.0 {
                break;
            }
            queue = step(queue, 0.0, replicas, curve, 1.0);
        }
        queue += count;
        late += (queue - room).clamp(0.0, *count);
        all += count;
    }
    if all > 0.0 { late / all } else { 0.0 }
}

/// Replicas that the arrivals of the last `seconds` were worth, `most` at most: as few as would have
/// kept the objective, or fewer where the last of these would not have earned its keep. One that
/// saves a request from being late is worth as much as one that serves `weight` requests.
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
    let share = |replicas| late_share(arrivals, replicas, curve, objective);
    let enough = fewest(1, most, |replicas| share(replicas) <= late);
    let all: f64 = arrivals.iter().map(|(_, count)| count).sum();
    let cost = |replicas: u32| {
        weight * share(replicas) * all + f64::from(replicas) * curve.full_rate() * seconds
    };
    // Fewer than serve the mean rate are never enough: once everybody is late, one more replica saves
    // nobody, and would not seem to be worth it.
    let least_stable = round_up(all / seconds / curve.full_rate()).clamp(1, enough);
    let step = (enough / 16).max(1) as usize;
    let (mut best, mut least) = (enough, cost(enough));
    for replicas in (least_stable..enough).rev().step_by(step) {
        let cost = cost(replicas);
        if cost < least {
            (best, least) = (replicas, cost);
        }
    }
    best
}

/// The fewest replicas to ask for now, so that with `queue` in the system a request that comes
/// `recovery` seconds after they are ready is in time. `coming` is how many more come in each
/// second, until they are ready and from then on.
#[must_use]
pub fn enough_ahead(
    queue: f64,
    coming: [f64; 2],
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
            let rate = coming[usize::from(at >= fleet.cold_seconds)];
            left = step(left, rate * dt, fleet.at(at, wanted), curve, dt);
            at += dt;
        }
        left <= f64::from(wanted) * curve.room(objective)
    };
    if queue + coming[0] + coming[1] <= 0.0 { 0 } else { fewest(1, most, recovers) }
}

/// The smallest of `least..=most` that will do, supposing that more never does worse; `most` if none.
fn fewest(least: u32, most: u32, will_do: impl Fn(u32) -> bool) -> u32 {
    let (mut low, mut high) = (least, most.max(least));
    while low < high {
        let middle = low + (high - low) / 2;
        if will_do(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

#[cfg(test)]
mod tests;
