//! How many replicas, and why.
//!
//! What the load or the triggers ask for ([`super::demand`]), upwards at once and downwards with care;
//! the idle time, which begins with the last request or the last replica's becoming ready, whichever
//! is later; then the gates: what can't be read forbids scaling down and is never taken for zero.
//! Last `behavior`, the bounds, and a person's orders.

use super::behavior::Rules;
use super::demand::{Demand, by_triggers};
use super::explain::{Decision, Figures, Why};
use super::inputs::{Inputs, Override};
use super::policy::Policy;
use super::proposal::Proposal;
use super::state::{Counts, State};

/// A start that takes less is never given up.
const STUCK_AFTER_MS: u64 = 30 * 60_000;

/// A count on its way to be decided, with its reason.
struct Wish(u32, Why);

/// For how long nothing was to be done.
#[derive(Clone, Copy)]
struct Idle {
    for_ms: u64,
    /// For long enough.
    over: bool,
}

/// Decides. Pure in its arguments; `now_ms` never goes back.
pub fn decide(state: &mut State, inputs: &Inputs<'_>, policy: &Policy, now_ms: u64) -> Decision {
    let counts = Counts::of(inputs);
    let from = state.desired;
    let triggers: Vec<_> = inputs.proposals.iter().filter(|it| it.counts()).collect();
    let requests = inputs.load.held.saturating_add(inputs.load.in_flight);
    let triggered = triggers.iter().any(|trigger| trigger.active || trigger.unreadable());
    state.observe(inputs, counts, requests > 0 || triggered, policy, now_ms);

    // What is written for triggers is the HPA's meaning; the default has its own windows.
    let (demand, rules) = if triggers.is_empty() {
        (state.by_load(inputs, counts, policy, now_ms), policy.behavior.as_ref())
    } else {
        let rules = policy.behavior.as_ref().unwrap_or(&policy.trigger_rules);
        (by_triggers(&triggers, inputs, from, policy), Some(rules))
    };
    // The windows may be longer than the idle time; they don't keep an idle pool up.
    let for_ms = now_ms.saturating_sub(state.busy_ms.max(state.ready_ms));
    let over = requests == 0
        && !triggered
        && for_ms >= policy.cooldown_ms
        && now_ms >= state.since_ms + policy.initial_cooldown_ms;
    let idle = Idle { for_ms, over };
    let active = demand.active;
    let figures = demand.figures;

    let wish = state.wish(demand, inputs, counts, idle, &triggers, policy, now_ms);
    let wish = state.shape(wish, idle, active, rules, policy, now_ms);
    let Wish(desired, why) = ordered(wish, inputs.order, from, policy);
    if let Some(rules) = rules {
        state.history.changed(rules, from, desired, now_ms);
    }
    state.desired = desired;
    if desired > from {
        state.raised_ms = now_ms;
    }
    Decision {
        from,
        desired,
        active: desired > policy.idle || (active && !idle.over),
        why,
        proposals: inputs.proposals.to_vec(),
        figures: Figures {
            held: inputs.load.held,
            in_flight: inputs.load.in_flight,
            ready: counts.ready,
            coming: from.saturating_sub(counts.known()),
            cold_start_seconds: state.cold_starts.expected_seconds(),
            ..figures
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
        let (load, totals) = (inputs.load, inputs.load.totals);
        let requests = load.held.saturating_add(load.in_flight);
        let windows = policy.stable_window_ms.max(policy.panic_window_ms);
        self.concurrency.record(now_ms, requests, windows);
        if self.since_ms == 0 {
            self.since_ms = now_ms;
            self.busy_ms = now_ms;
            self.arrivals.found(requests, load.held_prompt_tokens, now_ms);
        } else {
            let arrived = totals.accepted.saturating_sub(self.accepted);
            self.season.observe(arrived as f64, now_ms);
        }
        let keep_ms = self.memory_ms(policy).max(windows);
        self.arrivals.observe(totals.accepted, totals.accepted_prompt_tokens, keep_ms, now_ms);
        self.cold_starts.observe(inputs.replicas, now_ms);
        // Those that come and go between two reports are seen all the same.
        if busy || totals.accepted > self.accepted {
            self.busy_ms = now_ms;
        }
        self.accepted = totals.accepted;
        // One that comes back after an ejection did not start.
        let started = counts.ready + counts.ejected;
        if started > self.started {
            self.ready_ms = now_ms;
        }
        self.started = started;
        self.capacity.observe(load, counts.ready, self.ready_ms, now_ms);
    }

    /// What is under way takes so much longer than ever that it may never come: a node without a
    /// GPU, a volume that can't be mounted. It keeps the others up no longer.
    fn is_stuck(&self, now_ms: u64) -> bool {
        let expected_ms = (self.cold_starts.expected_seconds() * 1_000.0) as u64;
        let patience_ms = STUCK_AFTER_MS.max(expected_ms.saturating_mul(10));
        now_ms.saturating_sub(self.raised_ms.max(self.ready_ms)) >= patience_ms
    }

    /// Up as asked for, down only where nothing forbids it.
    #[allow(clippy::too_many_arguments, reason = "the gates look at everything")]
    fn wish(
        &self,
        demand: Demand,
        inputs: &Inputs<'_>,
        counts: Counts,
        idle: Idle,
        triggers: &[&Proposal],
        policy: &Policy,
        now_ms: u64,
    ) -> Wish {
        let from = self.desired;
        let least = if idle.over { policy.idle } else { policy.min };
        if demand.up > from && !idle.over {
            return Wish(demand.up, demand.up_why);
        }
        if from <= least || !(idle.over || demand.down < from) {
            return Wish(from, stays(demand, from, least, policy));
        }
        let unread = triggers.iter().find(|trigger| trigger.unreadable());
        let adopted = self.adopted_ms > 0 && now_ms < self.adopted_ms + policy.stable_window_ms;
        if inputs.load.missing {
            Wish(from, Why::Unheard)
        } else if let Some(trigger) = unread {
            Wish(from, Why::Unread { name: trigger.name.clone() })
        } else if adopted {
            Wish(from, Why::Learning)
        } else if counts.known() < from && !self.is_stuck(now_ms) {
            // An impatient client's leaving does not end a start.
            Wish(from, Why::Starting)
        } else if idle.over && !inputs.load.stale {
            Wish(policy.idle, Why::Idle { for_ms: idle.for_ms })
        } else if now_ms < self.panic_until_ms {
            Wish(from, Why::Panic)
        } else if from == 1 {
            // The last one goes by the idle time alone, and by the word of every gateway.
            Wish(1, if inputs.load.stale { Why::Unheard } else { Why::Last })
        } else {
            Wish(demand.down.clamp(1, from), demand.down_why)
        }
    }

    /// What `behavior` and the bounds make of it.
    fn shape(
        &mut self,
        Wish(wanted, mut why): Wish,
        idle: Idle,
        active: bool,
        rules: Option<&Rules>,
        policy: &Policy,
        now_ms: u64,
    ) -> Wish {
        let from = self.desired;
        let mut desired = wanted;
        if let Some(rules) = rules {
            let allowed = rules.apply(&mut self.history, from, wanted, now_ms);
            // To wake and to put to sleep is not the HPA's: there is no autoscaler at zero.
            let sleeps = matches!(why, Why::Idle { .. });
            let wakes = if from == 0 && wanted > 0 { policy.min.max(1).min(wanted) } else { 0 };
            if !sleeps && allowed.max(wakes) != wanted {
                (desired, why) = (allowed.max(wakes), Why::Behavior { wanted });
            }
        }
        let least = if idle.over || (from == 0 && !active) { policy.idle } else { policy.min };
        if desired < least {
            (desired, why) = (least, Why::Minimum);
        }
        if desired > policy.max {
            (desired, why) = (policy.max, Why::Maximum { wanted: desired });
        }
        Wish(desired, why)
    }
}

/// Why a count stays as it is.
fn stays(demand: Demand, from: u32, least: u32, policy: &Policy) -> Why {
    if from == 0 {
        Why::Steady
    } else if demand.up >= from {
        demand.up_why
    } else if from <= least {
        Why::Minimum
    } else {
        Why::Kept { for_ms: policy.stable_window_ms }
    }
}

/// A person's order comes before everything.
fn ordered(Wish(desired, why): Wish, order: Override, from: u32, policy: &Policy) -> Wish {
    match order {
        Override::Paused => Wish(from, Why::Paused),
        Override::Fixed(count) => Wish(count.min(policy.max), Why::Fixed),
        Override::None => Wish(desired, why),
    }
}

#[cfg(test)]
mod tests;
