//! The HPA's `behavior`: stabilization windows and rate policies, rule for rule as its controller
//! (`pkg/controller/podautoscaler/horizontal.go`) applies them. The tolerance is the triggers' own
//! ([`super::triggers`]).

use std::collections::VecDeque;

use forebay_config::{Behavior, PolicyType, ScalingPolicy, ScalingRules, SelectPolicy};

/// Down to no less than the most that was asked for in so many seconds.
const STABILIZE_DOWN_SECONDS: u32 = 300;

/// Rules for both directions, with the HPA's defaults where a part was left out.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    up: Direction,
    down: Direction,
}

#[derive(Clone, Debug, PartialEq)]
struct Direction {
    window_ms: u64,
    select: SelectPolicy,
    policies: Vec<ScalingPolicy>,
}

/// What was asked for and what was changed before.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Proposals that no later one is above, and below; oldest first.
    highest: VecDeque<(u64, u32)>,
    lowest: VecDeque<(u64, u32)>,
    /// Changes made.
    changes: VecDeque<(u64, i64)>,
}

impl Rules {
    /// As written, each part that is left out at the HPA's default.
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

    /// What triggers are stabilized by where no `behavior` is written: the HPA's default downwards,
    /// and upwards nothing that would slow it.
    #[must_use]
    pub fn of_triggers() -> Self {
        let free =
            vec![ScalingPolicy { r#type: PolicyType::Pods, value: u32::MAX, period_seconds: 1 }];
        let mut rules = Self::of(&Behavior::default());
        rules.up.policies = free;
        rules
    }

    /// What is allowed of `desired` now, with `current` replicas.
    pub fn apply(&self, history: &mut History, current: u32, desired: u32, now_ms: u64) -> u32 {
        let desired = self.stabilize(history, current, desired, now_ms);
        if desired > current {
            desired.min(self.up_limit(history, current, now_ms).max(current))
        } else if desired < current {
            desired.max(self.down_limit(history, current, now_ms).min(current))
        } else {
            current
        }
    }

    fn stabilize(&self, history: &mut History, current: u32, desired: u32, now_ms: u64) -> u32 {
        if history.highest.is_empty() {
            // As the HPA begins: from what is there.
            history.propose(now_ms, current, self);
        }
        history.propose(now_ms, desired, self);
        let within = |entry: &&(u64, u32), window: u64| entry.0 + window > now_ms;
        let up = history.lowest.iter().find(|it| within(it, self.up.window_ms));
        let down = history.highest.iter().find(|it| within(it, self.down.window_ms));
        let up = up.map_or(desired, |(_, least)| (*least).min(desired));
        let down = down.map_or(desired, |(_, most)| (*most).max(desired));
        current.max(up).min(down)
    }

    fn up_limit(&self, history: &History, current: u32, now_ms: u64) -> u32 {
        let limits = self.up.policies.iter().map(|policy| {
            let start = history.start(policy, current, now_ms);
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

    fn down_limit(&self, history: &History, current: u32, now_ms: u64) -> u32 {
        let limits = self.down.policies.iter().map(|policy| {
            let start = history.start(policy, current, now_ms);
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

    fn longest_ms(&self) -> u64 {
        let policies = self.up.policies.iter().chain(&self.down.policies);
        policies.map(|policy| u64::from(policy.period_seconds) * 1000).max().unwrap_or(0)
    }
}

impl Direction {
    fn of(rules: Option<&ScalingRules>, window: u32, policies: Vec<ScalingPolicy>) -> Self {
        let rules = rules.cloned().unwrap_or_default();
        let window = rules.stabilization_window_seconds.unwrap_or(window);
        Self {
            window_ms: u64::from(window) * 1000,
            select: rules.select_policy.unwrap_or_default(),
            policies: rules.policies.unwrap_or(policies),
        }
    }
}

impl History {
    fn propose(&mut self, now_ms: u64, desired: u32, rules: &Rules) {
        while self.highest.back().is_some_and(|(_, most)| *most <= desired) {
            self.highest.pop_back();
        }
        while self.lowest.back().is_some_and(|(_, least)| *least >= desired) {
            self.lowest.pop_back();
        }
        self.highest.push_back((now_ms, desired));
        self.lowest.push_back((now_ms, desired));
        let past = |it: Option<&(u64, u32)>, window: u64| {
            it.is_some_and(|(at, _)| at + window <= now_ms && *at < now_ms)
        };
        while past(self.highest.front(), rules.down.window_ms) {
            self.highest.pop_front();
        }
        while past(self.lowest.front(), rules.up.window_ms) {
            self.lowest.pop_front();
        }
    }

    /// A change was made.
    pub fn changed(&mut self, rules: &Rules, from: u32, to: u32, now_ms: u64) {
        let horizon = now_ms.saturating_sub(rules.longest_ms());
        while self.changes.front().is_some_and(|(at, _)| *at < horizon) {
            self.changes.pop_front();
        }
        if from != to {
            self.changes.push_back((now_ms, i64::from(to) - i64::from(from)));
        }
    }

    /// Replicas at the beginning of a policy's period.
    fn start(&self, policy: &ScalingPolicy, current: u32, now_ms: u64) -> f64 {
        let period_ms = u64::from(policy.period_seconds) * 1000;
        let within = self.changes.iter().filter(|(at, _)| at + period_ms > now_ms);
        let change: i64 = within.map(|(_, change)| change).sum();
        (i64::from(current) - change) as f64
    }
}

#[cfg(test)]
mod tests;
