//! The HPA's `behavior`: stabilization windows and rate policies, as its controller applies them
//! (`pkg/controller/podautoscaler/horizontal.go`). The tolerance is part of each trigger's proposal
//! ([`super::triggers`]).

use std::collections::VecDeque;

use forebay_config::{Behavior, Millis, PolicyType, ScalingPolicy, ScalingRules, SelectPolicy};

/// The HPA's default window downwards.
const STABILIZE_DOWN_SECONDS: u32 = 300;

/// Rules for both directions, with the HPA's defaults for parts that are left out.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    up: Direction,
    down: Direction,
}

#[derive(Clone, Debug, PartialEq)]
struct Direction {
    window: Millis,
    select: SelectPolicy,
    policies: Vec<ScalingPolicy>,
}

/// Earlier proposals and changes, as far as the rules need them.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Proposals that no later one exceeds, oldest first.
    highest: VecDeque<(Millis, u32)>,
    /// Proposals that no later one undercuts, oldest first.
    lowest: VecDeque<(Millis, u32)>,
    /// Changes by time.
    changes: VecDeque<(Millis, i64)>,
}

impl Rules {
    /// The rules as configured, with the HPA's default for each part that is left out.
    #[must_use]
    pub fn of(behavior: &Behavior) -> Self {
        let policy = |r#type, value| ScalingPolicy { r#type, value, period_seconds: 15 };
        let up = vec![policy(PolicyType::Pods, 4), policy(PolicyType::Percent, 100)];
        let down = vec![policy(PolicyType::Percent, 100)];
        Self {
            up: Direction::of(behavior.scale_up.as_ref(), 0, up),
            down: Direction::of(behavior.scale_down.as_ref(), STABILIZE_DOWN_SECONDS, down),
        }
    }

    /// The rules for triggers without a configured `behavior`: the HPA's default downwards, no limit
    /// upwards.
    #[must_use]
    pub fn of_triggers() -> Self {
        let free =
            vec![ScalingPolicy { r#type: PolicyType::Pods, value: u32::MAX, period_seconds: 1 }];
        let mut rules = Self::of(&Behavior::default());
        rules.up.policies = free;
        rules
    }

    /// The count that the rules allow now, on the way from `current` to `desired`.
    pub fn apply(&self, history: &mut History, current: u32, desired: u32, now: Millis) -> u32 {
        let desired = self.stabilize(history, current, desired, now);
        if desired > current {
            desired.min(self.up_limit(history, current, now).max(current))
        } else if desired < current {
            desired.max(self.down_limit(history, current, now).min(current))
        } else {
            current
        }
    }

    fn stabilize(&self, history: &mut History, current: u32, desired: u32, now: Millis) -> u32 {
        if history.highest.is_empty() {
            // The HPA's window begins with the current count.
            history.propose(now, current, self);
        }
        history.propose(now, desired, self);
        let within = |entry: &&(Millis, u32), window: Millis| entry.0 + window > now;
        let up = history.lowest.iter().find(|entry| within(entry, self.up.window));
        let down = history.highest.iter().find(|entry| within(entry, self.down.window));
        let up = up.map_or(desired, |(_, least)| (*least).min(desired));
        let down = down.map_or(desired, |(_, most)| (*most).max(desired));
        current.max(up).min(down)
    }

    fn up_limit(&self, history: &History, current: u32, now: Millis) -> u32 {
        let limits = self.up.policies.iter().map(|policy| {
            let start = history.start(policy, current, now);
            match policy.r#type {
                PolicyType::Pods => start + f64::from(policy.value),
                PolicyType::Percent => (start * (1.0 + f64::from(policy.value) / 100.0)).ceil(),
            }
        });
        let limit = match self.up.select {
            SelectPolicy::Disabled => return current,
            SelectPolicy::Max => limits.fold(0.0, f64::max),
            SelectPolicy::Min => limits.fold(f64::INFINITY, f64::min),
        };
        limit as u32
    }

    fn down_limit(&self, history: &History, current: u32, now: Millis) -> u32 {
        let limits = self.down.policies.iter().map(|policy| {
            let start = history.start(policy, current, now);
            match policy.r#type {
                PolicyType::Pods => start - f64::from(policy.value),
                PolicyType::Percent => (start * (1.0 - f64::from(policy.value) / 100.0)).trunc(),
            }
        });
        let limit = match self.down.select {
            SelectPolicy::Disabled => return current,
            SelectPolicy::Max => limits.fold(f64::INFINITY, f64::min),
            SelectPolicy::Min => limits.fold(0.0, f64::max),
        };
        limit.max(0.0) as u32
    }

    fn longest(&self) -> Millis {
        let policies = self.up.policies.iter().chain(&self.down.policies);
        policies.map(period).max().unwrap_or_default()
    }
}

impl Direction {
    fn of(rules: Option<&ScalingRules>, window: u32, policies: Vec<ScalingPolicy>) -> Self {
        let rules = rules.cloned().unwrap_or_default();
        let window = rules.stabilization_window_seconds.unwrap_or(window);
        Self {
            window: Millis::from_secs(window.into()),
            select: rules.select_policy.unwrap_or_default(),
            policies: rules.policies.unwrap_or(policies),
        }
    }
}

impl History {
    fn propose(&mut self, now: Millis, desired: u32, rules: &Rules) {
        while self.highest.back().is_some_and(|(_, most)| *most <= desired) {
            self.highest.pop_back();
        }
        while self.lowest.back().is_some_and(|(_, least)| *least >= desired) {
            self.lowest.pop_back();
        }
        self.highest.push_back((now, desired));
        self.lowest.push_back((now, desired));
        let past = |oldest: Option<&(Millis, u32)>, window: Millis| {
            oldest.is_some_and(|(at, _)| *at + window <= now && *at < now)
        };
        while past(self.highest.front(), rules.down.window) {
            self.highest.pop_front();
        }
        while past(self.lowest.front(), rules.up.window) {
            self.lowest.pop_front();
        }
    }

    /// Records a change of the count.
    pub fn changed(&mut self, rules: &Rules, from: u32, to: u32, now: Millis) {
        let horizon = now.since(rules.longest());
        while self.changes.front().is_some_and(|(at, _)| *at < horizon) {
            self.changes.pop_front();
        }
        if from != to {
            self.changes.push_back((now, i64::from(to) - i64::from(from)));
        }
    }

    /// The replica count at the beginning of a policy's period.
    fn start(&self, policy: &ScalingPolicy, current: u32, now: Millis) -> f64 {
        let within = self.changes.iter().filter(|(at, _)| *at + period(policy) > now);
        let change: i64 = within.map(|(_, change)| change).sum();
        (i64::from(current) - change) as f64
    }
}

fn period(policy: &ScalingPolicy) -> Millis {
    Millis::from_secs(policy.period_seconds.into())
}

#[cfg(test)]
mod tests;
