//! How many replicas, and why.
//!
//! Work in the system (held and in flight) over what one replica should have. Up: at once while
//! something is held, else by a short window; down: by a long one, as Knative's autoscaler does
//! (stable and panic windows; never down in panic). To zero: after an idle time that begins with the
//! last request or the last replica's becoming ready, whichever is later. What can't be read forbids
//! scaling down and is never taken for zero.

use std::fmt;

use crate::core::merge::Load;
use crate::core::window::Window;

/// The rules, in milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Fewest replicas.
    pub min: u32,
    /// Most replicas.
    pub max: u32,
    /// Requests for each replica, at least 1.
    pub target_concurrency: u32,
    /// Requests must be more than this to wake a pool; a held one always does.
    pub activation_threshold: u32,
    /// Window to scale down by.
    pub stable_window_ms: u64,
    /// Window to scale up by.
    pub panic_window_ms: u64,
    /// Panic begins when the panic window asks for so many times the ready replicas.
    pub panic_threshold: f64,
    /// Idle time to zero.
    pub cooldown_ms: u64,
}

impl Policy {
    /// As configured for a pool. Target concurrency is 80 % of an endpoint's limit by default.
    #[must_use]
    pub fn of(pool: &forebay_config::Pool) -> Self {
        let scaling = &pool.scaling;
        let default = (u64::from(pool.max_in_flight) * 4 / 5) as u32;
        let ms = |duration: std::time::Duration| duration.as_millis() as u64;
        Self {
            min: scaling.min_replica_count,
            max: scaling.max_replica_count,
            target_concurrency: scaling.target_concurrency.unwrap_or(default).max(1),
            activation_threshold: scaling.activation_threshold,
            stable_window_ms: ms(scaling.stable_window),
            panic_window_ms: ms(scaling.panic_window),
            panic_threshold: scaling.panic_threshold,
            cooldown_ms: ms(scaling.cooldown_period),
        }
    }
}

/// What is known now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inputs {
    /// Merged over the gateways.
    pub load: Load,
    /// Replicas that take requests.
    pub ready: u32,
    /// Replicas that failed and wait for their next start.
    pub failed: u32,
    /// Replicas that were ready and are not now, though they run: no capacity, and no start either.
    pub ejected: u32,
}

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
}

impl State {
    /// Begins from the replicas that are there already, instead of from none.
    pub fn adopt(&mut self, replicas: u32) {
        self.desired = self.desired.max(replicas);
    }
}

/// A count with its reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The count before.
    pub from: u32,
    /// The count from now on.
    pub desired: u32,
    /// The rule that won.
    pub why: Why,
}

/// The rule that won; its `Display` is half a sentence for people.
#[derive(Clone, Debug, PartialEq)]
pub enum Why {
    /// Nothing to do.
    Steady,
    /// `minReplicaCount`.
    Minimum,
    /// Held requests, with those in flight, need so many.
    Held {
        /// Requests held.
        held: u32,
        /// Requests in flight.
        in_flight: u32,
        /// Requests for each replica.
        target: u32,
    },
    /// The load of the panic window.
    Rising {
        /// Mean requests held and in flight.
        load: f64,
        /// Requests for each replica.
        target: u32,
    },
    /// The load of the stable window.
    Falling {
        /// Mean requests held and in flight.
        load: f64,
        /// Requests for each replica.
        target: u32,
    },
    /// No request for the idle time.
    Idle {
        /// For how long.
        for_ms: u64,
    },
    /// A lower count is not taken while the load may be more than was heard.
    Unheard,
    /// A lower count is not taken in panic.
    Panic,
    /// A lower count is not taken while a start is under way.
    Starting,
    /// A lower count is not taken before a start has shown what it is worth.
    Settling,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Steady => f.write_str("the load asks for no other count"),
            Self::Minimum => f.write_str("minReplicaCount asks for it"),
            Self::Held { held: 1, in_flight: 0, .. } => f.write_str("1 request is held"),
            Self::Held { held, in_flight, target } => write!(
                f,
                "{held} requests are held and {in_flight} in flight, {target} for each replica"
            ),
            Self::Rising { load, target } => {
                write!(f, "{load:.1} requests are in the system, {target} for each replica")
            }
            Self::Falling { load, target } => {
                write!(f, "only {load:.1} requests were in the system, {target} for each replica")
            }
            Self::Idle { for_ms } => write!(f, "no request came for {} s", for_ms / 1000),
            Self::Unheard => f.write_str("a gateway is silent, so nothing scales down"),
            Self::Panic => f.write_str("the load rose steeply, so nothing scales down yet"),
            Self::Starting => f.write_str("a start is under way"),
            Self::Settling => f.write_str("the last start is too fresh to be taken back"),
        }
    }
}

impl Decision {
    /// One sentence for people, without the pool's name.
    #[must_use]
    pub fn sentence(&self) -> String {
        let Self { from, desired, why } = self;
        match why {
            Why::Idle { for_ms } => {
                format!("idle for {} s, scaling {from} → {desired}", for_ms / 1000)
            }
            _ if from != desired => format!("scaling {from} → {desired} because {why}"),
            _ => format!("staying at {desired}: {why}"),
        }
    }
}

/// ⌈load ÷ target⌉.
fn replicas_for(load: f64, target: u32) -> u32 {
    // A hair is taken off, so that rounding never asks for one more.
    (load / f64::from(target) - 1e-9).ceil().max(0.0) as u32
}

/// Decides. Pure in its arguments; `now_ms` never goes back.
pub fn decide(state: &mut State, inputs: Inputs, policy: &Policy, now_ms: u64) -> Decision {
    let Load { held, in_flight, accepted, missing, stale } = inputs.load;
    let concurrency = held.saturating_add(in_flight);
    let target = policy.target_concurrency.max(1);
    let keep = policy.stable_window_ms.max(policy.panic_window_ms);
    state.concurrency.record(now_ms, concurrency, keep);
    // The sum shrinks when a gateway leaves or restarts; what comes then is seen all the same.
    if concurrency > 0 || accepted > state.accepted || state.busy_ms == 0 {
        state.busy_ms = now_ms;
    }
    state.accepted = accepted;
    // One that comes back after an ejection did not start.
    let started = inputs.ready + inputs.ejected;
    if started > state.started {
        state.ready_ms = now_ms;
    }
    state.started = started;
    let from = state.desired;

    // What the load asks for, upwards and downwards.
    let rising = state.concurrency.mean(now_ms, policy.panic_window_ms);
    let falling = state.concurrency.mean(now_ms, policy.stable_window_ms);
    let awake = from > 0 || held > 0 || concurrency > policy.activation_threshold;
    let (up, up_why) = if held > 0 {
        // What is held can't be served by what is there: no averaging.
        let needed = replicas_for(f64::from(concurrency), target).max(1);
        (needed, Why::Held { held, in_flight, target })
    } else if awake {
        (replicas_for(rising, target), Why::Rising { load: rising, target })
    } else {
        (0, Why::Steady)
    };
    let down = replicas_for(falling, target).max(up);
    if f64::from(up) >= policy.panic_threshold * f64::from(inputs.ready.max(1)) && up > 1 {
        state.panic_until_ms = now_ms + policy.stable_window_ms;
    }

    let idle_ms = now_ms.saturating_sub(state.busy_ms.max(state.ready_ms));
    // The windows may be longer than the idle time; they don't keep an idle pool up.
    let idle = concurrency == 0 && idle_ms >= policy.cooldown_ms;

    let (mut desired, mut why) = (from, Why::Steady);
    if up > from && !idle {
        (desired, why) = (up, up_why);
    } else if from > 0 && (idle || down < from) {
        let under_way = started + inputs.failed < from;
        let settled_ms = state.raised_ms.max(state.ready_ms) + policy.stable_window_ms;
        (desired, why) = if missing {
            (from, Why::Unheard)
        } else if under_way {
            // An impatient client's leaving does not end a start.
            (from, Why::Starting)
        } else if idle && !stale {
            (0, Why::Idle { for_ms: idle_ms })
        } else if now_ms < state.panic_until_ms {
            (from, Why::Panic)
        } else if from == 1 {
            // The last one goes by the idle time alone, and by the word of every gateway.
            (1, if stale { Why::Unheard } else { Why::Steady })
        } else if now_ms < settled_ms {
            (from, Why::Settling)
        } else {
            (down.clamp(1, from), Why::Falling { load: falling, target })
        };
    }
    if desired < policy.min {
        (desired, why) = (policy.min, Why::Minimum);
    }
    desired = desired.min(policy.max);
    let kept = matches!(why, Why::Unheard | Why::Panic | Why::Starting | Why::Settling);
    if desired == from && !kept {
        why = Why::Steady;
    }
    if desired > from {
        state.raised_ms = now_ms;
    }
    state.desired = desired;
    Decision { from, desired, why }
}

#[cfg(test)]
mod tests;
