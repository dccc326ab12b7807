//! The replica count, and its reason.
//!
//! The steps, in order:
//!
//! 1. The demand of the load or of the triggers (`demand.rs`). A higher one is followed at once.
//! 2. The idle time. It begins with the last request, or when the last replica became ready if that is
//!    later. When it has lasted for the cooldown, the pool goes to its idle count.
//! 3. The gates, which forbid scaling down. One of them is a signal that can't be read: it never counts
//!    as zero.
//! 4. The limits: `behavior` (`behavior.rs`), then the bounds.
//! 5. An operator's order for this moment, and an override, which replaces the result.

use super::behavior::Rules;
use super::demand::{Demand, by_triggers};
use super::explain::{Decision, Figures, Why};
use super::inputs::{Inputs, Override};
use super::policy::Policy;
use super::proposal::Proposal;
use super::state::{Counts, Order, State};
use forebay_config::Millis;

/// The shortest time after which a start counts as stuck.
const STUCK_AFTER: Millis = Millis::from_secs(30 * 60);

/// A count between two steps, with its reason.
struct Wish(u32, Why);

/// The time without work.
#[derive(Clone, Copy)]
struct Idle {
    span: Millis,
    /// Whether it has lasted for the whole cooldown.
    over: bool,
}

/// Decides a pool's count. `now` must never go back.
pub fn decide(state: &mut State, inputs: &Inputs<'_>, policy: &Policy, now: Millis) -> Decision {
    let counts = Counts::of(inputs);
    let from = state.desired;
    let triggers: Vec<_> = inputs.proposals.iter().filter(|proposal| proposal.counts()).collect();
    let requests = inputs.load.held.saturating_add(inputs.load.in_flight);
    let triggered = triggers.iter().any(|trigger| trigger.active || trigger.unreadable());
    let order = state.order.take();
    let busy = requests > 0 || triggered || order == Some(Order::Wake);
    state.observe(inputs, counts, busy, policy, now);

    // `behavior` limits both kinds of demand. Without it, triggers have the HPA's default limits, and the
    // load has only its own windows.
    let (demand, rules) = if triggers.is_empty() {
        (state.by_load(inputs, counts, policy, now), policy.behavior.as_ref())
    } else {
        let rules = policy.behavior.as_ref().unwrap_or(&policy.trigger_rules);
        let mut demand = by_triggers(&triggers, inputs, from, policy);
        demand.figures.rate = state.rate(policy, now);
        (demand, Some(rules))
    };
    // The windows don't keep an idle pool up, even if they are longer than the cooldown.
    let since = state.times.last_busy.max(state.times.ready_at);
    let span = since.map_or(now, |since| now.since(since));
    let over = requests == 0
        && !triggered
        && span >= policy.cooldown.after
        && state.times.since.is_none_or(|since| now >= since + policy.cooldown.initial);
    let idle = Idle { span, over };
    let active = demand.active;
    let figures = demand.figures;

    let wish = state.gate(demand, inputs, counts, idle, &triggers, policy, now);
    let wish = state.limit(wish, idle, active, rules, policy, now);
    let wish = ordered(wish, order, requests, inputs, policy);
    let Wish(desired, why) = overridden(wish, inputs.operator_override, from, policy);
    if let Some(rules) = rules {
        state.history.changed(rules, from, desired, now);
    }
    state.desired = desired;
    if desired > from {
        state.times.raised_at = Some(now);
    }
    Decision {
        from,
        desired,
        active: desired > policy.counts.idle || (active && !idle.over),
        why,
        proposals: inputs.proposals.to_vec(),
        figures: Figures {
            held: inputs.load.held,
            in_flight: inputs.load.in_flight,
            ready: counts.ready,
            starting: from.saturating_sub(counts.past_start()),
            cold_start_seconds: state.learned.cold_starts.expected_seconds(),
            ..figures
        },
    }
}

impl State {
    /// Records the inputs: the load, the starts, and the times that later steps depend on.
    fn observe(
        &mut self,
        inputs: &Inputs<'_>,
        counts: Counts,
        busy: bool,
        policy: &Policy,
        now: Millis,
    ) {
        let (load, totals) = (inputs.load, inputs.load.totals);
        let requests = load.held.saturating_add(load.in_flight);
        let windows = policy.windows.stable.max(policy.windows.panic);
        self.recent.concurrency.record(now, requests, windows);
        if self.times.since.is_none() {
            self.times.since = Some(now);
            self.times.last_busy = Some(now);
            self.recent.arrivals.found(requests, load.held_prompt_tokens, now);
        } else {
            let arrived = totals.accepted.saturating_sub(self.recent.accepted);
            self.learned.season.observe(arrived as f64, now);
        }
        let keep = self.memory(policy).max(windows);
        self.recent.arrivals.observe(totals.accepted, totals.accepted_prompt_tokens, keep, now);
        self.learned.cold_starts.observe(inputs.replicas, now);
        // Requests that come and go between two reports also count.
        if busy || totals.accepted > self.recent.accepted {
            self.times.last_busy = Some(now);
        }
        self.recent.accepted = totals.accepted;
        // An ejected replica counts as started, so its return is not a start.
        let started = counts.ready + counts.ejected;
        if started > self.started {
            self.times.ready_at = Some(now);
        }
        self.started = started;
        self.learned.capacity.observe(load, counts.ready, self.times.ready_at, now);
    }

    /// Whether a start is stuck: it takes so much longer than usual that it may never end, for example
    /// because no node has a free GPU. A stuck start doesn't keep the other replicas up.
    fn is_stuck(&self, now: Millis) -> bool {
        let expected = Millis::from_secs_f64(self.learned.cold_starts.expected_seconds());
        let since = self.times.raised_at.max(self.times.ready_at);
        since.map_or(now, |since| now.since(since)) >= STUCK_AFTER.max(expected * 10)
    }

    /// Applies the idle time and the gates: up to the demand, down only if no gate forbids it.
    #[allow(clippy::too_many_arguments, reason = "the gates look at everything")]
    fn gate(
        &self,
        demand: Demand,
        inputs: &Inputs<'_>,
        counts: Counts,
        idle: Idle,
        triggers: &[&Proposal],
        policy: &Policy,
        now: Millis,
    ) -> Wish {
        let from = self.desired;
        let least = if idle.over { policy.counts.idle } else { policy.counts.min };
        if demand.up > from && !idle.over {
            return Wish(demand.up, demand.up_why);
        }
        let unread = triggers.iter().find(|trigger| trigger.unreadable());
        if from <= least || !(idle.over || demand.down < from) {
            // A trigger that may ask for more is the reason if the others ask for fewer.
            let unread = unread.filter(|_| from > least && demand.up < from);
            let unread = unread.map(|trigger| Why::Unread { name: trigger.name.clone() });
            return Wish(from, unread.unwrap_or_else(|| stays(demand, from, least, policy)));
        }
        let is_within = |at| now < at + policy.windows.stable;
        let adopted = self.times.adopted_at.is_some_and(is_within);
        if inputs.load.missing {
            Wish(from, Why::Unheard)
        } else if let Some(trigger) = unread {
            Wish(from, Why::Unread { name: trigger.name.clone() })
        } else if adopted {
            Wish(from, Why::Learning)
        } else if counts.past_start() < from && !self.is_stuck(now) {
            // If the client that caused a start leaves, the start goes on.
            Wish(from, Why::Starting)
        } else if idle.over && !inputs.load.stale {
            Wish(policy.counts.idle, Why::Idle { span: idle.span })
        } else if self.times.panics(now) {
            Wish(from, Why::Panic)
        } else if from == 1 {
            // The last replica stops only after the cooldown, and only if every gateway reports.
            Wish(1, if inputs.load.stale { Why::Unheard } else { Why::Last })
        } else {
            Wish(demand.down.clamp(1, from), demand.down_why)
        }
    }

    /// Applies `behavior` and the bounds.
    fn limit(
        &mut self,
        Wish(wanted, mut why): Wish,
        idle: Idle,
        active: bool,
        rules: Option<&Rules>,
        policy: &Policy,
        now: Millis,
    ) -> Wish {
        let from = self.desired;
        let mut desired = wanted;
        if let Some(rules) = rules {
            let allowed = rules.apply(&mut self.history, from, wanted, now);
            // The HPA does nothing at zero, so its limits apply neither to waking nor to going to zero.
            let sleeps = matches!(why, Why::Idle { .. });
            let wakes =
                if from == 0 && wanted > 0 { policy.counts.min.max(1).min(wanted) } else { 0 };
            let allowed = allowed.max(wakes);
            // Where the maximum allows no more than `behavior`, it is the limit to name.
            let at_maximum = wanted > policy.counts.max && allowed >= policy.counts.max;
            if !sleeps && allowed != wanted && !at_maximum {
                desired = allowed;
                why = Why::Behavior { wanted, because: Box::new(why) };
            }
        }
        let least = if idle.over || (from == 0 && !active) {
            policy.counts.idle
        } else {
            policy.counts.min
        };
        // Without a higher demand the bound itself is the cause: it was configured anew.
        let demanded = desired > from;
        if desired < least {
            let because = demanded.then(|| (desired, Box::new(why)));
            (desired, why) = (least, Why::Minimum { because });
        }
        if desired > policy.counts.max {
            let because = demanded.then(|| Box::new(why));
            (desired, why) = (policy.counts.max, Why::Maximum { wanted: desired, because });
        }
        Wish(desired, why)
    }
}

/// The reason why a count stays as it is.
fn stays(demand: Demand, from: u32, least: u32, policy: &Policy) -> Why {
    if from == 0 {
        Why::Steady
    } else if demand.up >= from {
        demand.up_why
    } else if from <= least {
        Why::Minimum { because: None }
    } else {
        Why::Kept { span: policy.windows.stable, because: None }
    }
}

/// Applies an operator's order for this moment.
fn ordered(
    wish: Wish,
    order: Option<Order>,
    requests: u32,
    inputs: &Inputs<'_>,
    policy: &Policy,
) -> Wish {
    let Wish(desired, _) = wish;
    let awake = policy.counts.min.max(1).min(policy.counts.max);
    let is_known = !inputs.load.missing && !inputs.load.stale;
    match order {
        Some(Order::Wake) if desired < awake => Wish(awake, Why::Ordered),
        Some(Order::Rest) if requests == 0 && is_known && desired > policy.counts.idle => {
            Wish(policy.counts.idle, Why::Ordered)
        }
        _ => wish,
    }
}

/// Applies an operator's override, which comes before everything else.
fn overridden(
    Wish(desired, why): Wish,
    operator_override: Override,
    from: u32,
    policy: &Policy,
) -> Wish {
    match operator_override {
        Override::Paused => Wish(from, Why::Paused),
        Override::Fixed(count) => Wish(count.min(policy.counts.max), Why::Fixed),
        Override::None => Wish(desired, why),
    }
}

#[cfg(test)]
mod tests;
