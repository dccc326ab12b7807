//! A pool's scaling rules, in the form that the decision needs.

use forebay_config::Millis;

use super::behavior::Rules;

/// The scaling rules of one pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Bounds of the count.
    pub counts: CountBounds,
    /// Requests per replica.
    pub concurrency: ConcurrencyRules,
    /// The promise to clients.
    pub objective: TtftObjective,
    /// Windows to scale by.
    pub windows: Windows,
    /// Time without work before the pool goes to zero.
    pub cooldown: Cooldown,
    /// Limits on changes of the count, if configured.
    pub behavior: Option<Rules>,
    /// The limits for triggers if none are configured.
    pub trigger_rules: Rules,
}

/// Bounds of the replica count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountBounds {
    /// Fewest replicas while the pool is in use.
    pub min: u32,
    /// Most replicas.
    pub max: u32,
    /// Replicas of an idle pool; `min` or less.
    pub idle: u32,
}

/// Requests per replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConcurrencyRules {
    /// The target concurrency: requests to plan with for one replica, at least 1.
    pub per_replica: u32,
    /// Whether `per_replica` was configured rather than derived.
    pub given: bool,
    /// Most requests at one replica.
    pub limit: u32,
    /// A pool wakes if it has more requests than this. A held request always wakes it.
    pub activation_threshold: u32,
}

/// The promise to clients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TtftObjective {
    /// The longest time to the first token that meets the objective.
    pub ttft: Millis,
    /// The share of requests that have to meet it.
    pub share: f64,
}

/// Windows to scale by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Windows {
    /// The window to scale down by.
    pub stable: Millis,
    /// The window to scale up by.
    pub panic: Millis,
    /// Panic begins when the panic window needs this many times the ready replicas.
    pub panic_threshold: f64,
}

/// Time without work before the pool goes to zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cooldown {
    /// The time itself.
    pub after: Millis,
    /// No zero before this time after the first decision.
    pub initial: Millis,
}

impl Policy {
    /// The rules configured for a pool. Target concurrency is 80 % of an endpoint's limit by default.
    #[must_use]
    pub fn of(pool: &forebay_config::Pool) -> Self {
        let scaling = &pool.scaling;
        let min = scaling.min_replica_count;
        Self {
            counts: CountBounds {
                min,
                max: scaling.max_replica_count,
                idle: scaling.idle_replica_count.unwrap_or(min).min(min),
            },
            concurrency: ConcurrencyRules {
                per_replica: pool.target_concurrency(),
                given: scaling.target_concurrency.is_some(),
                limit: pool.assumed_limit(),
                activation_threshold: scaling.activation_threshold,
            },
            objective: TtftObjective {
                ttft: Millis::from(scaling.objective.ttft).max(Millis::new(1)),
                share: scaling.objective.share,
            },
            windows: Windows {
                stable: scaling.stable_window.into(),
                panic: scaling.panic_window.into(),
                panic_threshold: scaling.panic_threshold,
            },
            cooldown: Cooldown {
                after: scaling.cooldown_period.into(),
                initial: scaling.initial_cooldown_period.into(),
            },
            behavior: scaling.behavior().map(Rules::of),
            trigger_rules: Rules::of_triggers(),
        }
    }
}
