//! The demand: the count that the load, or the triggers, ask for.
//!
//! Without triggers it is the largest of up to five counts:
//!
//! - **recent**: the arrivals of the last minutes, replayed against each number of replicas with the
//!   learned throughput ([`worth`]);
//! - **backlog**: the current queue and the arrivals expected until a replica that is requested now has
//!   started, played forward ([`for_backlog`]);
//! - **season**: the load that is usual at this time of day;
//! - `targetConcurrency`, if it is configured;
//! - one replica, if a request is held.
//!
//! The throughput of a replica comes from [`super::capacity`].

use super::backlog::{Fleet, for_backlog, worth};
use super::condition::Condition;
use super::explain::{Figures, Why};
use super::forecast::trend;
use super::inputs::Inputs;
use super::policy::Policy;
use super::proposal::{Proposal, round_up};
use super::state::{Counts, State};
use forebay_config::Millis;

/// The number of cold starts over which past load counts, and the longest such time.
const MEMORY_COLD_STARTS: u64 = 20;
const LONGEST_MEMORY: Millis = Millis::from_secs(30 * 60);
/// A load ends with a pause that is this many times as long as any pause before it.
const LONG_PAUSE: u64 = 2;
/// The shortest time over which the rate is measured, in cold starts.
const SHORTEST_RATE: f64 = 0.4;
/// The time within which ready replicas have to work off the queue, in cold starts.
const RECOVERY: f64 = 0.5;
/// The weight of a late request is this, divided by the share of requests that may be late. With 1 %
/// a late request weighs as much as 10 served ones.
const LATE_WEIGHT: f64 = 0.1;
/// The share of a replica's throughput that the season's count plans with.
const SEASON_FILL: f64 = 0.9;
/// A demand that exceeds `maxReplicaCount` is looked for up to this many times as many replicas.
const FARTHEST: u32 = 10;

/// The counts that the load or the triggers ask for.
pub(crate) struct Demand {
    pub(crate) up: u32,
    pub(crate) up_why: Why,
    pub(crate) down: u32,
    pub(crate) down_why: Why,
    /// Whether this is enough to wake a pool from zero, or to keep it from going there.
    pub(crate) active: bool,
    pub(crate) figures: Figures,
}

/// The largest count so far, and its reason. Of equal counts the first one raised gives the reason.
#[derive(Default)]
struct Largest(u32, Option<Why>);

impl Largest {
    fn raise(&mut self, count: u32, why: Why) {
        if count > self.0 {
            *self = Self(count, Some(why));
        }
    }
}

impl State {
    /// The time over which past load counts. The slower a start is, the longer a load is remembered,
    /// because a slow replica must be running before the load returns.
    pub(crate) fn memory(&self, policy: &Policy) -> Millis {
        let cold = Millis::from_secs_f64(self.learned.cold_starts.expected_seconds());
        (cold * MEMORY_COLD_STARTS).min(LONGEST_MEMORY).max(policy.windows.stable)
    }

    /// The arrivals of this span, in mean requests, each with its age in seconds; oldest first.
    fn arrivals(&self, span: Millis, now: Millis) -> Vec<(u64, f64)> {
        let arrivals = self.recent.arrivals.recent(span, now);
        arrivals
            .map(|(ago, n, tokens)| (ago, self.learned.capacity.in_requests(n, tokens)))
            .collect()
    }

    /// Requests per second over the time of a cold start.
    pub(crate) fn rate(&self, policy: &Policy, now: Millis) -> f64 {
        let arrivals = self.arrivals(self.memory(policy), now);
        let arrivals = since_the_pause(&arrivals, policy.windows.stable.as_secs());
        let panic_seconds = policy.windows.panic.max(Millis::from_secs(1)).as_secs_f64();
        rate(arrivals, self.learned.cold_starts.expected_seconds(), panic_seconds)
    }

    /// The replicas that are ready, and the time until each of the others will be.
    fn fleet(&self, inputs: &Inputs<'_>, counts: Counts, now: Millis) -> Fleet {
        let cold = self.learned.cold_starts.expected_seconds();
        let ready_in = inputs.replicas.iter().filter_map(|replica| match replica.condition {
            Condition::Pending | Condition::Starting => {
                let waited = now.since(replica.requested_at).as_secs_f64();
                // An overdue start is expected to take as much longer as it is overdue already.
                Some(if waited < cold { cold - waited } else { (waited - cold).max(1.0) })
            }
            _ => None,
        });
        let mut ready_in: Vec<_> = ready_in.collect();
        // Replicas that the target does not report yet were requested just now.
        let reported = counts.past_start() + ready_in.len() as u32;
        let unreported = self.desired().saturating_sub(reported);
        ready_in.extend(std::iter::repeat_n(cold, unreported as usize));
        ready_in.sort_by(f64::total_cmp);
        Fleet { ready: counts.ready, ready_in, cold_seconds: cold }
    }

    /// The demand without triggers: the work in the system against the learned throughput of replicas.
    pub(crate) fn by_load(
        &mut self,
        inputs: &Inputs<'_>,
        counts: Counts,
        policy: &Policy,
        now: Millis,
    ) -> Demand {
        let load = inputs.load;
        let (held, in_flight) = (load.held, load.in_flight);
        let requests = held.saturating_add(in_flight);
        let given = policy.concurrency.given.then_some(policy.concurrency.per_replica);
        let limit = match load.learned_limit {
            learned if learned >= 1.0 => learned as u32,
            _ => policy.concurrency.limit,
        };
        let curve = self.learned.capacity.curve(limit.min(given.unwrap_or(limit)));
        let objective = policy.objective.ttft.as_secs_f64();
        let fleet = self.fleet(inputs, counts, now);
        let cold = fleet.cold_seconds;

        // The past: the replicas that would have been enough.
        let memory = self.memory(policy);
        let arrivals = self.arrivals(memory, now);
        let arrivals = since_the_pause(&arrivals, policy.windows.stable.as_secs());
        let late = (1.0 - policy.objective.share).max(1e-4);
        let observed = self.times.since.map_or(now, |since| now.since(since));
        let watched = memory.min(observed).max(Millis::from_secs(1)).as_secs_f64();
        let most = policy.counts.max;
        let recent = beyond(most, |most| {
            worth(arrivals, watched, &curve, objective, late, LATE_WEIGHT / late, most)
        });

        // The future.
        let panic_seconds = policy.windows.panic.max(Millis::from_secs(1)).as_secs_f64();
        let rate = rate(arrivals, cold, panic_seconds);
        let prompt = load.held_prompt_tokens as f64;
        let queue =
            self.learned.capacity.in_requests(f64::from(held), prompt) + f64::from(in_flight);
        // Without a ready replica every request is late already, so the objective alone is the limit.
        let longest = if counts.ready == 0 { 0.0 } else { RECOVERY * cold };
        let recovery = objective.max(longest);
        let expected = |after, span| (rate + trend(arrivals, cold, after, span)).max(0.0);
        let rates = [expected(0.0, cold), expected(cold, recovery)];
        let backlog = beyond(most, |most| {
            for_backlog(queue, rates, &fleet, &curve, objective, recovery, most)
        });
        let usual = self.learned.season.rate(now + Millis::from_secs_f64(cold));
        // A usual load counts only if about one request is likely during a start.
        let usual = usual.filter(|rate| rate * cold >= 0.5).unwrap_or(0.0);
        let season = round_up(usual / (SEASON_FILL * curve.full_rate()));

        let active = held > 0 || requests > policy.concurrency.activation_threshold;
        let (mut largest, mut down, mut concurrency) = (Largest::default(), 0, None);
        if held > 0 {
            let per_replica = policy.concurrency.per_replica;
            largest.raise(1, Why::Held { held, in_flight, per_replica });
        }
        if self.desired() > 0 || active {
            largest.raise(recent, Why::Recent { span: memory, ttft: policy.objective.ttft });
            largest.raise(backlog, Why::Backlog { held, in_flight, rate });
            if let Some(per_replica) = given {
                let (count, load, why) = self.by_concurrency(requests, held, policy, now);
                largest.raise(count, why);
                concurrency = Some(count);
                down = round_up(load / f64::from(per_replica.max(1)));
            }
        }
        largest.raise(season, Why::Season { rate: usual });
        if per_second(arrivals, panic_seconds)
            >= policy.windows.panic_threshold * f64::from(counts.ready.max(1)) * curve.full_rate()
        {
            self.times.panic_until = Some(now + policy.windows.stable);
        }
        let Largest(up, up_why) = largest;
        let window = policy.windows.stable;
        let (down, down_why) = match &up_why {
            // The mean of the window needs more than the present load.
            _ if down > up => (down, Why::Kept { span: window, because: None }),
            Some(why) => (up, why.clone()),
            None => (up, Why::Last),
        };
        let (down, down_why) = self.stable(down, down_why, window, now);
        Demand {
            up,
            up_why: up_why.unwrap_or(Why::Steady),
            down,
            down_why,
            active: active || season > 0,
            figures: Figures {
                rate,
                curve,
                recent,
                backlog,
                season,
                concurrency,
                ..Figures::default()
            },
        }
    }

    /// The count by `targetConcurrency`, the load to scale down by, and the reason for the count.
    fn by_concurrency(
        &self,
        requests: u32,
        held: u32,
        policy: &Policy,
        now: Millis,
    ) -> (u32, f64, Why) {
        let per_replica = policy.concurrency.per_replica.max(1);
        let needed = |load: f64| round_up(load / f64::from(per_replica));
        let falling = self.recent.concurrency.mean(now, policy.windows.stable);
        if held > 0 {
            // The current replicas can't serve the held requests, so the load is not averaged.
            let in_flight = requests - held;
            let why = Why::Held { held, in_flight, per_replica };
            return (needed(f64::from(requests)), falling, why);
        }
        let rising = self.recent.concurrency.mean(now, policy.windows.panic);
        (needed(rising), falling, Why::Rising { load: rising, per_replica })
    }

    /// Records a demand with its reason; returns the highest one within the window, which a lower count
    /// must satisfy. The reason of an earlier demand holds for its own time, and is marked as such.
    fn stable(&mut self, demand: u32, why: Why, window: Millis, now: Millis) -> (u32, Why) {
        let demands = &mut self.recent.demands;
        while demands.back().is_some_and(|(_, earlier, _)| *earlier <= demand) {
            demands.pop_back();
        }
        demands.push_back((now, demand, why));
        while demands.front().is_some_and(|(at, ..)| *at + window <= now) {
            demands.pop_front();
        }
        match demands.front() {
            Some((at, most, why)) if *at < now && !matches!(why, Why::Kept { .. }) => {
                (*most, Why::Kept { span: window, because: Some(Box::new(why.clone())) })
            }
            Some((_, most, why)) => (*most, why.clone()),
            None => (demand, Why::Last),
        }
    }
}

/// Requests per second over the time of a cold start. A load that has just begun is measured since its
/// beginning, but not over less than `SHORTEST_RATE` or `least` seconds: the rate of a moment is no
/// forecast.
fn rate(arrivals: &[(u64, f64)], cold: f64, least: f64) -> f64 {
    let began = arrivals.first().map_or(0.0, |(ago, _)| (*ago + 1) as f64);
    per_second(arrivals, began.clamp(SHORTEST_RATE * cold, cold).max(least))
}

/// Requests per second over the last `seconds`.
fn per_second(arrivals: &[(u64, f64)], seconds: f64) -> f64 {
    let within = arrivals.iter().filter(|(ago, _)| (*ago as f64) < seconds);
    // `sum` of nothing is -0.0, which people would read.
    within.fold(0.0, |sum, (_, n)| sum + n) / seconds
}

/// The count that `needed` finds among at most `most` replicas. If that is all of them, more may be needed:
/// then it looks farther, so that the decision can say what `maxReplicaCount` holds back.
fn beyond(most: u32, needed: impl Fn(u32) -> u32) -> u32 {
    let count = needed(most);
    if count < most { count } else { needed(most.saturating_mul(FARTHEST)).max(count) }
}

/// The arrivals since the last pause that ended a load. `least` is the length in seconds below which no
/// pause ends a load.
fn since_the_pause(arrivals: &[(u64, f64)], least: u64) -> &[(u64, f64)] {
    let (mut longest, mut from) = (least, 0);
    let ends = arrivals.iter().skip(1).map(|(ago, _)| *ago).chain([0]);
    for (at, (before, end)) in arrivals.iter().zip(ends).enumerate() {
        let pause = before.0.saturating_sub(end);
        if pause > LONG_PAUSE * longest {
            from = at + 1;
        }
        longest = longest.max(pause);
    }
    &arrivals[from..]
}

/// The demand of the triggers: the largest proposal, of equal ones the last configured. Proposals
/// already respect the tolerance. A held request wakes a pool regardless of the triggers.
pub(crate) fn by_triggers(
    triggers: &[&Proposal],
    inputs: &Inputs<'_>,
    from: u32,
    policy: &Policy,
) -> Demand {
    let (held, in_flight) = (inputs.load.held, inputs.load.in_flight);
    let active = triggers.iter().any(|trigger| trigger.active);
    let replicas = |trigger: &Proposal| trigger.replicas().filter(|_| from > 0 || trigger.active);
    let largest = triggers
        .iter()
        .filter_map(|trigger| Some((replicas(trigger)?, *trigger)))
        .max_by_key(|(replicas, _)| *replicas);
    let why = |trigger: &Proposal| match trigger.figure {
        Some(figure) if !trigger.is_schedule() => {
            Why::Trigger { name: trigger.name.clone(), figure, threshold: trigger.threshold }
        }
        _ => Why::Schedule { name: trigger.name.clone(), within: trigger.active },
    };
    let (mut up, mut up_why) = match largest {
        Some((replicas, trigger)) => (replicas.max(u32::from(active)), why(trigger)),
        None => (u32::from(active), Why::Steady),
    };
    let down_why = up_why.clone();
    if held > 0 && up == 0 {
        let per_replica = policy.concurrency.per_replica;
        (up, up_why) = (1, Why::Held { held, in_flight, per_replica });
    }
    // If no trigger proposes a count, none allows fewer replicas.
    let down = if largest.is_some() { up } else { from.max(up) };
    Demand { up, up_why, down, down_why, active: active || held > 0, figures: Figures::default() }
}
