//! A pool's rules, as the decision wants them.

use std::time::Duration;

use super::behavior::Rules;

/// The rules of one pool; times in milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Fewest replicas while the pool is in use.
    pub min: u32,
    /// Most replicas.
    pub max: u32,
    /// Replicas of an idle pool; `min` or less.
    pub idle: u32,
    /// Requests for each replica, at least 1.
    pub target_concurrency: u32,
    /// `target_concurrency` was written, and is no guess.
    pub concurrency_given: bool,
    /// Most requests at one replica.
    pub limit: u32,
    /// Requests must be more than this to wake a pool; a held one always does.
    pub activation_threshold: u32,
    /// Longest time to the first token that keeps the objective.
    pub objective_ttft_ms: u64,
    /// Share of the requests for which that is to hold.
    pub objective_share: f64,
    /// Window to scale down by.
    pub stable_window_ms: u64,
    /// Window to scale up by.
    pub panic_window_ms: u64,
    /// Panic begins when the panic window asks for so many times the ready replicas.
    pub panic_threshold: f64,
    /// Idle time to zero.
    pub cooldown_ms: u64,
    /// No zero before so long after the first decision.
    pub initial_cooldown_ms: u64,
    /// How fast the count may change, where that was written.
    pub behavior: Option<Rules>,
    /// The same for triggers, where it was not.
    pub trigger_rules: Rules,
}

impl Policy {
    /// As configured for a pool. Target concurrency is 80 % of an endpoint's limit by default.
    #[must_use]
    pub fn of(pool: &forebay_config::Pool) -> Self {
        let scaling = &pool.scaling;
        let ms = |duration: Duration| duration.as_millis() as u64;
        let min = scaling.min_replica_count;
        Self {
            min,
            max: scaling.max_replica_count,
            idle: scaling.idle_replica_count.unwrap_or(min).min(min),
            target_concurrency: pool.target_concurrency(),
            concurrency_given: scaling.target_concurrency.is_some(),
            limit: pool.max_in_flight.max(1),
            activation_threshold: scaling.activation_threshold,
            objective_ttft_ms: ms(scaling.objective.ttft).max(1),
            objective_share: scaling.objective.share,
            stable_window_ms: ms(scaling.stable_window),
            panic_window_ms: ms(scaling.panic_window),
            panic_threshold: scaling.panic_threshold,
            cooldown_ms: ms(scaling.cooldown_period),
            initial_cooldown_ms: ms(scaling.initial_cooldown_period),
            behavior: scaling.behavior().map(Rules::of),
            trigger_rules: Rules::of_triggers(),
        }
    }
}
