//! What the load, or the triggers, ask for.
//!
//! Without triggers: the arrivals of the last minutes are played against fewer and more replicas, by
//! what one of them is known to be worth; and what is there now, with what comes, is played forward
//! over the time that a start takes. See [`super::backlog`] and [`super::capacity`].

use super::backlog::{Fleet, enough_ahead, worth};
use super::explain::{Figures, Why};
use super::forecast::trend;
use super::inputs::{Inputs, Standing};
use super::policy::Policy;
use super::proposal::{Proposal, round_up};
use super::state::{Counts, State};

/// For how many cold starts the load of the past counts, and how long at most.
const MEMORY_COLD_STARTS: u64 = 20;
const LONGEST_MEMORY_MS: u64 = 30 * 60 * 1000;
/// A pause so many times as long as any before it ends a load.
const LONG_PAUSE: u64 = 2;
/// The shortest time whose rate is believed, in cold starts.
const YOUNGEST: f64 = 0.4;
/// In what time a queue is to be gone once the replicas for it are ready, in cold starts.
const RECOVERY: f64 = 0.5;
/// A request that is late weighs as much as so many that are served, divided by the share that may
/// be late: as much as 10 where that is 1 %.
const LATE_WEIGHT: f64 = 0.1;
/// Share of a replica's throughput that is planned with for a usual time of day.
const SEASON_FILL: f64 = 0.9;

/// What the load or the triggers ask for.
pub(crate) struct Demand {
    pub(crate) up: u32,
    pub(crate) up_why: Why,
    pub(crate) down: u32,
    pub(crate) down_why: Why,
    /// Enough to wake a sleeping pool, or to keep one awake.
    pub(crate) active: bool,
    pub(crate) figures: Figures,
}

/// The largest count and its reason.
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
    /// How long the load of the past counts. What a start can't answer in time must be there before,
    /// so the slower starts are, the longer a load is remembered.
    pub(crate) fn memory_ms(&self, policy: &Policy) -> u64 {
        let cold_ms = (self.cold_starts.expected_seconds() * 1000.0) as u64;
        (MEMORY_COLD_STARTS * cold_ms).min(LONGEST_MEMORY_MS).max(policy.stable_window_ms)
    }

    fn fleet(&self, inputs: &Inputs<'_>, counts: Counts, now_ms: u64) -> Fleet {
        let cold = self.cold_starts.expected_seconds();
        let coming = inputs.replicas.iter().filter_map(|replica| match replica.standing {
            Standing::Pending | Standing::Starting => {
                let waited = now_ms.saturating_sub(replica.asked_ms) as f64 / 1000.0;
                // One that is late may be as late again as it is.
                Some(if waited < cold { cold - waited } else { (waited - cold).max(1.0) })
            }
            _ => None,
        });
        let mut coming: Vec<_> = coming.collect();
        // Those that the target has not told of yet were asked for just now.
        let told = counts.known() + coming.len() as u32;
        let untold = self.desired().saturating_sub(told);
        coming.extend(std::iter::repeat_n(cold, untold as usize));
        coming.sort_by(f64::total_cmp);
        Fleet { ready: counts.ready, coming, cold_seconds: cold }
    }

    /// The default: work in the system, against what replicas are known to be worth.
    pub(crate) fn by_load(
        &mut self,
        inputs: &Inputs<'_>,
        counts: Counts,
        policy: &Policy,
        now_ms: u64,
    ) -> Demand {
        let load = inputs.load;
        let (held, in_flight) = (load.held, load.in_flight);
        let requests = held.saturating_add(in_flight);
        let given = policy.concurrency_given.then_some(policy.target_concurrency);
        let curve = self.capacity.curve(policy.limit.min(given.unwrap_or(policy.limit)));
        let objective = policy.objective_ttft_ms as f64 / 1000.0;
        let fleet = self.fleet(inputs, counts, now_ms);
        let cold = fleet.cold_seconds;

        // The past: what would have been enough.
        let memory_ms = self.memory_ms(policy);
        let arrivals = self.arrivals.recent(memory_ms, now_ms);
        let arrivals: Vec<_> =
            arrivals.map(|(ago, n, tokens)| (ago, self.capacity.in_requests(n, tokens))).collect();
        let arrivals = since_the_pause(&arrivals, policy.stable_window_ms / 1000);
        let late = (1.0 - policy.objective_share).max(1e-4);
        let watched = memory_ms.min(now_ms.saturating_sub(self.since_ms)).max(1000) as f64 / 1000.0;
        let recent =
            worth(arrivals, watched, &curve, objective, late, LATE_WEIGHT / late, policy.max);

        // What is coming: a load that has just begun has no longer past, but a moment's rate is not
        // believed either.
        let per_second = |seconds: f64| {
            let within = arrivals.iter().filter(|(ago, _)| (*ago as f64) < seconds);
            within.map(|(_, n)| n).sum::<f64>() / seconds
        };
        let panic_seconds = policy.panic_window_ms.max(1000) as f64 / 1000.0;
        let began = arrivals.first().map_or(0.0, |(ago, _)| (*ago + 1) as f64);
        let rate = per_second(began.clamp(YOUNGEST * cold, cold).max(panic_seconds));
        let prompt = load.held_prompt_tokens as f64;
        let queue = self.capacity.in_requests(f64::from(held), prompt) + f64::from(in_flight);
        // While nothing serves, everybody is late: then the sooner the better.
        let slow = if counts.ready == 0 { 0.0 } else { RECOVERY * cold };
        let recovery = objective.max(slow);
        let expected = |after, span| (rate + trend(arrivals, cold, after, span)).max(0.0);
        let coming = [expected(0.0, cold), expected(cold, recovery)];
        let ahead = enough_ahead(queue, coming, &fleet, &curve, objective, recovery, policy.max);
        let usual = self.season.rate(now_ms + (cold * 1000.0) as u64);
        // At least one request is to be expected while a replica starts and settles.
        let usual = usual.filter(|rate| rate * cold >= 0.5).unwrap_or(0.0);
        let season = round_up(usual / (SEASON_FILL * curve.full_rate())).min(policy.max);

        let active = held > 0 || requests > policy.activation_threshold;
        let recent_why = Why::Recent { for_ms: memory_ms, ttft_ms: policy.objective_ttft_ms };
        let (mut most, mut down) = (Largest::default(), 0);
        if held > 0 {
            most.raise(1, Why::Held { held, in_flight, target: policy.target_concurrency });
        }
        if self.desired() > 0 || active {
            most.raise(recent, recent_why.clone());
            most.raise(ahead, Why::Backlog { held, in_flight, rate });
            if let Some(target) = given {
                let (count, load, why) = self.by_concurrency(requests, held, policy, now_ms);
                most.raise(count, why);
                down = round_up(load / f64::from(target.max(1)));
            }
        }
        most.raise(season, Why::Season { rate: usual });
        if per_second(panic_seconds)
            >= policy.panic_threshold * f64::from(counts.ready.max(1)) * curve.full_rate()
        {
            self.panic_until_ms = now_ms + policy.stable_window_ms;
        }
        let Largest(up, up_why) = most;
        Demand {
            up,
            up_why: up_why.unwrap_or(Why::Steady),
            down: self.stable(down.max(up), policy.stable_window_ms, now_ms),
            down_why: recent_why,
            active: active || season > 0,
            figures: Figures { rate, curve, recent, ahead, season, ..Figures::default() },
        }
    }

    /// By `targetConcurrency`, where it was written: the count, and the load to scale down by.
    fn by_concurrency(
        &self,
        requests: u32,
        held: u32,
        policy: &Policy,
        now_ms: u64,
    ) -> (u32, f64, Why) {
        let target = policy.target_concurrency.max(1);
        let needed = |load: f64| round_up(load / f64::from(target));
        let falling = self.concurrency.mean(now_ms, policy.stable_window_ms);
        if held > 0 {
            // What is held can't be served by what is there: no averaging.
            let in_flight = requests - held;
            let why = Why::Held { held, in_flight, target };
            return (needed(f64::from(requests)), falling, why);
        }
        let rising = self.concurrency.mean(now_ms, policy.panic_window_ms);
        (needed(rising), falling, Why::Rising { load: rising, target })
    }

    /// The most that was demanded in the stable window: a lower count must be enough for all of it.
    fn stable(&mut self, demand: u32, window_ms: u64, now_ms: u64) -> u32 {
        while self.demands.back().is_some_and(|(_, least)| *least <= demand) {
            self.demands.pop_back();
        }
        self.demands.push_back((now_ms, demand));
        while self.demands.front().is_some_and(|(at, _)| at + window_ms <= now_ms) {
            self.demands.pop_front();
        }
        self.demands.front().map_or(demand, |(_, most)| *most)
    }
}

/// The arrivals that still tell of what is to come: a pause much longer than any before it ends a
/// load, and what came before that counts no more.
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

/// The largest proposal wins; each has its own tolerance in it. What is held wakes a pool whatever
/// the triggers say.
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
        (up, up_why) = (1, Why::Held { held, in_flight, target: policy.target_concurrency });
    }
    // Nobody proposes: then nobody asks for fewer either.
    let down = if largest.is_some() { up } else { from.max(up) };
    Demand { up, up_why, down, down_why, active: active || held > 0, figures: Figures::default() }
}
