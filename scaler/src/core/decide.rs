//! How many replicas, and why.
//!
//! What the load or the triggers ask for, upwards at once and downwards with care; the idle time;
//! then the gates: what can't be read forbids scaling down and is never taken for zero. Last
//! `behavior`, the bounds, and a person's orders.

use super::explain::{Decision, Figures, Why};
use super::inputs::{Inputs, Override, Standing};
use super::policy::Policy;
use super::proposal::{Proposal, round_up};
use super::window::Window;

/// What the next decision needs of the last ones.
#[derive(Clone, Debug, Default)]
pub struct State {
    concurrency: Window,
    desired: u32,
    /// Replicas that have been ready, whether or not they are now.
    started: u32,
    accepted: u64,
    raised_ms: u64,
    panic_until_ms: u64,
    busy_ms: u64,
    ready_ms: u64,
    /// The first decision.
    since_ms: u64,
    /// Replicas that ran before this process were taken over then.
    adopted_ms: u64,
}

/// What the load or the triggers ask for.
struct Demand {
    up: u32,
    up_why: Why,
    down: u32,
    down_why: Why,
    /// Enough to wake a sleeping pool, or to keep one awake.
    active: bool,
}

/// Replicas by where they are.
#[derive(Clone, Copy, Default)]
struct Counts {
    ready: u32,
    failed: u32,
    ejected: u32,
}

impl State {
    /// Takes over so many replicas that ran before this process: the first decision is from there,
    /// and nothing goes before a whole window was seen.
    pub fn adopt(&mut self, replicas: u32, now_ms: u64) {
        if replicas > self.desired {
            self.desired = replicas;
            self.adopted_ms = now_ms;
        }
    }

    /// The count that was decided last.
    #[must_use]
    pub fn desired(&self) -> u32 {
        self.desired
    }
}

/// Decides. Pure in its arguments; `now_ms` never goes back.
pub fn decide(state: &mut State, inputs: &Inputs<'_>, policy: &Policy, now_ms: u64) -> Decision {
    let counts = Counts::of(inputs);
    let from = state.desired;
    let triggers: Vec<_> = inputs.proposals.iter().filter(|it| it.counts()).collect();
    let requests = inputs.load.held.saturating_add(inputs.load.in_flight);
    let triggered = triggers.iter().any(|trigger| trigger.active || trigger.unreadable());
    state.observe(inputs, counts, requests > 0 || triggered, policy, now_ms);

    let demand = if triggers.is_empty() {
        state.by_load(inputs, counts, policy, now_ms)
    } else {
        by_triggers(&triggers, inputs, from, policy)
    };
    let idle_ms = now_ms.saturating_sub(state.busy_ms.max(state.ready_ms));
    // The windows may be longer than the idle time; they don't keep an idle pool up.
    let idle = requests == 0
        && !triggered
        && idle_ms >= policy.cooldown_ms
        && now_ms >= state.since_ms + policy.initial_cooldown_ms;
    let least = if idle { policy.idle } else { policy.min };

    let (mut desired, mut why) = (from, Why::Steady);
    if demand.up > from && !idle {
        (desired, why) = (demand.up, demand.up_why);
    } else if from > least && (idle || demand.down < from) {
        let unread = triggers.iter().find(|trigger| trigger.unreadable());
        let settled_ms = state.raised_ms.max(state.ready_ms) + policy.stable_window_ms;
        let adopted = state.adopted_ms > 0 && now_ms < state.adopted_ms + policy.stable_window_ms;
        (desired, why) = if inputs.load.missing {
            (from, Why::Unheard)
        } else if let Some(trigger) = unread {
            (from, Why::Unread { name: trigger.name.clone() })
        } else if adopted {
            (from, Why::Learning)
        } else if counts.known() < from {
            // An impatient client's leaving does not end a start.
            (from, Why::Starting)
        } else if idle && !inputs.load.stale {
            (policy.idle, Why::Idle { for_ms: idle_ms })
        } else if now_ms < state.panic_until_ms {
            (from, Why::Panic)
        } else if from == 1 {
            // The last one goes by the idle time alone, and by the word of every gateway.
            (1, if inputs.load.stale { Why::Unheard } else { Why::Steady })
        } else if now_ms < settled_ms {
            (from, Why::Settling)
        } else {
            (demand.down.clamp(1, from), demand.down_why)
        };
    }
    if desired < least || (from == 0 && demand.active && desired < policy.min) {
        (desired, why) = (policy.min.max(least), Why::Minimum);
    }
    if desired > policy.max {
        (desired, why) = (policy.max, Why::Maximum { wanted: desired });
    }
    match inputs.order {
        Override::None => {}
        Override::Paused => (desired, why) = (from, Why::Paused),
        Override::Fixed(count) => (desired, why) = (count.min(policy.max), Why::Fixed),
    }
    if desired == from && !why.holds_back() && why != Why::Fixed {
        why = Why::Steady;
    }
    if desired > from {
        state.raised_ms = now_ms;
    }
    state.desired = desired;
    Decision {
        from,
        desired,
        active: desired > policy.idle || (demand.active && !idle),
        why,
        proposals: inputs.proposals.to_vec(),
        figures: Figures {
            held: inputs.load.held,
            in_flight: inputs.load.in_flight,
            ready: counts.ready,
            coming: from.saturating_sub(counts.known()),
            rising: state.concurrency.mean(now_ms, policy.panic_window_ms),
            falling: state.concurrency.mean(now_ms, policy.stable_window_ms),
        },
    }
}

impl State {
    fn observe(
        &mut self,
        inputs: &Inputs<'_>,
        counts: Counts,
        busy: bool,
        policy: &Policy,
        now_ms: u64,
    ) {
        let load = inputs.load;
        let keep = policy.stable_window_ms.max(policy.panic_window_ms);
        self.concurrency.record(now_ms, load.held.saturating_add(load.in_flight), keep);
        if self.since_ms == 0 {
            self.since_ms = now_ms;
            self.busy_ms = now_ms;
        }
        // Those that come and go between two reports are seen all the same.
        if busy || load.totals.accepted > self.accepted {
            self.busy_ms = now_ms;
        }
        self.accepted = load.totals.accepted;
        // One that comes back after an ejection did not start.
        let started = counts.ready + counts.ejected;
        if started > self.started {
            self.ready_ms = now_ms;
        }
        self.started = started;
    }

    /// The default: work in the system.
    fn by_load(
        &mut self,
        inputs: &Inputs<'_>,
        counts: Counts,
        policy: &Policy,
        now_ms: u64,
    ) -> Demand {
        let (held, in_flight) = (inputs.load.held, inputs.load.in_flight);
        let concurrency = held.saturating_add(in_flight);
        let target = policy.target_concurrency.max(1);
        let needed = |load: f64| round_up(load / f64::from(target));
        let rising = self.concurrency.mean(now_ms, policy.panic_window_ms);
        let falling = self.concurrency.mean(now_ms, policy.stable_window_ms);
        let awake = self.desired > 0 || held > 0 || concurrency > policy.activation_threshold;
        let (up, up_why) = if held > 0 {
            // What is held can't be served by what is there: no averaging.
            let needed = needed(f64::from(concurrency)).max(1);
            (needed, Why::Held { held, in_flight, target })
        } else if awake {
            (needed(rising), Why::Rising { load: rising, target })
        } else {
            (0, Why::Steady)
        };
        if f64::from(up) >= policy.panic_threshold * f64::from(counts.ready.max(1)) && up > 1 {
            self.panic_until_ms = now_ms + policy.stable_window_ms;
        }
        Demand {
            up,
            up_why,
            down: needed(falling).max(up),
            down_why: Why::Falling { load: falling, target },
            active: held > 0 || concurrency > policy.activation_threshold,
        }
    }
}

/// The largest proposal wins. What is held wakes a pool whatever the triggers say.
fn by_triggers(triggers: &[&Proposal], inputs: &Inputs<'_>, from: u32, policy: &Policy) -> Demand {
    let (held, in_flight) = (inputs.load.held, inputs.load.in_flight);
    let active = triggers.iter().any(|trigger| trigger.active);
    let proposing = |trigger: &&&Proposal| from > 0 || trigger.active;
    let largest = triggers
        .iter()
        .filter(proposing)
        .filter_map(|trigger| Some((trigger.replicas()?, *trigger)))
        .max_by_key(|(replicas, _)| *replicas);
    let why = |trigger: &Proposal| Why::Trigger {
        name: trigger.name.clone(),
        figure: trigger.figure.unwrap_or(f64::NAN),
        threshold: trigger.threshold,
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
    Demand { up, up_why, down, down_why, active: active || held > 0 }
}

impl Counts {
    fn of(inputs: &Inputs<'_>) -> Self {
        let mut counts = Self::default();
        for replica in inputs.replicas {
            match replica.standing {
                Standing::Ready => counts.ready += 1,
                Standing::Ejected => counts.ejected += 1,
                Standing::Failed => counts.failed += 1,
                Standing::Pending | Standing::Starting | Standing::Draining => {}
            }
        }
        counts
    }

    /// Those whose start has ended, well or not; the others are on their way, also those that the
    /// target has not told of yet.
    fn known(self) -> u32 {
        self.ready + self.ejected + self.failed
    }
}

#[cfg(test)]
mod tests;
